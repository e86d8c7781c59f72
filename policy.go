package smallben

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// RunOptions says how the runs of a job are treated. The zero value means what the
// Config of the SmallBen says, and one attempt for each run.
type RunOptions struct {
	// Overlap says what becomes of a tick that comes while the job still runs.
	// Zero means what SchedulerConfig says.
	Overlap Overlap

	// Timeout ends the context of each run of a ContextJob after this time.
	// Zero means SchedulerConfig.RunTimeout, negative no limit.
	Timeout time.Duration

	// Missed says what becomes of ticks that no process ran. It matters where runs
	// are recorded: without the record nobody knows what was missed. What was missed
	// while the job decoded in no process is treated as RunsConfig.Missed says.
	// Zero means RunsConfig.Missed.
	Missed MissedPolicy

	// MissedWithin bounds the age of the ticks that Missed makes up for, when they
	// are found: those that were missed longer ago are recorded, and not run.
	// Zero means no bound.
	MissedWithin time.Duration

	// Attempts is how often a run is tried. One that ends with an error, a panic or
	// a timeout is tried again, unless the error is Permanent, until there have been
	// so many. If runs are recorded, a run that is lost counts as an attempt.
	// Zero means one: it is not tried again.
	Attempts int

	// Backoff is the time from the end of the first attempt to the second. It is
	// doubled for each further attempt, up to MaxBackoff. To each a fifth at most
	// is added, at random.
	// Zero means 10 s.
	Backoff time.Duration

	// MaxBackoff bounds the time between attempts.
	// Zero means an hour, or Backoff if that is longer.
	MaxBackoff time.Duration
}

const (
	defaultBackoff    = 10 * time.Second
	defaultMaxBackoff = time.Hour
	// jitterShare is the part of a backoff that is added at most, at random.
	jitterShare = 5
	// noTimeout is what Job.RunOptions returns for no limit.
	noTimeout = -time.Nanosecond
)

// ConfiguredJob is what a job may implement beside CronJob to say how its runs are
// treated.
//
// RunOptions is called once when the job is added, and once when its row is loaded,
// not at each run. It is a pure function of what is stored of the job: it may depend
// on fields, and must not call SmallBen. If it panics, or what it returns is not
// valid, the job is refused (ErrInvalidJob), and a row is held back (ErrUndecodable).
type ConfiguredJob interface {
	RunOptions() RunOptions
}

// Overlap says what becomes of a tick that comes while its job still runs. The zero
// value is what SchedulerConfig says.
type Overlap int

// The kinds of Overlap.
const (
	// OverlapAllow lets runs of the job overlap.
	OverlapAllow Overlap = iota + 1
	// OverlapSkip skips the tick, as SchedulerConfig.SkipIfStillRunning does.
	OverlapSkip
	// OverlapDelay lets the tick wait, as SchedulerConfig.DelayIfStillRunning does.
	OverlapDelay
)

var overlapNames = map[Overlap]string{0: "default", OverlapAllow: "allow", OverlapSkip: "skip", OverlapDelay: "delay"}

// String is "default", "allow", "skip" or "delay".
func (o Overlap) String() string {
	if name, ok := overlapNames[o]; ok {
		return name
	}
	return fmt.Sprintf("Overlap(%d)", int(o))
}

var missedNames = map[MissedPolicy]string{MissedDefault: "default", MissedSkip: "skip", MissedRunOnce: "run once", MissedRunAll: "run all"}

// String is "default", "skip", "run once" or "run all".
func (p MissedPolicy) String() string {
	if name, ok := missedNames[p]; ok {
		return name
	}
	return fmt.Sprintf("MissedPolicy(%d)", int(p))
}

// String lists what is set: "overlap skip, 5 attempts, backoff 10s". It is "default" if
// nothing is.
func (o RunOptions) String() string {
	var parts []string
	add := func(set bool, format string, args ...any) {
		if set {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(o.Overlap != 0, "overlap %v", o.Overlap)
	add(o.Timeout > 0, "timeout %v", o.Timeout)
	add(o.Timeout < 0, "no timeout")
	add(o.Missed != MissedDefault, "missed %v", o.Missed)
	add(o.MissedWithin != 0, "missed within %v", o.MissedWithin)
	add(o.Attempts == 1, "1 attempt")
	add(o.Attempts != 0 && o.Attempts != 1, "%d attempts", o.Attempts)
	add(o.Backoff != 0, "backoff %v", o.Backoff)
	add(o.MaxBackoff != 0, "backoff at most %v", o.MaxBackoff)
	if len(parts) == 0 {
		return "default"
	}
	return strings.Join(parts, ", ")
}

// check says which field is not valid, or returns nil.
func (o *RunOptions) check() error {
	if _, ok := overlapNames[o.Overlap]; !ok {
		return fmt.Errorf("RunOptions.Overlap is %d, which is no Overlap", o.Overlap)
	}
	if _, ok := missedNames[o.Missed]; !ok {
		return fmt.Errorf("RunOptions.Missed is %d, which is no MissedPolicy", o.Missed)
	}
	if o.Attempts < 0 {
		return fmt.Errorf("RunOptions.Attempts is %d, less than 0", o.Attempts)
	}
	for _, field := range []struct {
		name  string
		value time.Duration
	}{
		{"MissedWithin", o.MissedWithin},
		{"Backoff", o.Backoff},
		{"MaxBackoff", o.MaxBackoff},
	} {
		if field.value < 0 {
			return fmt.Errorf("RunOptions.%s is %v, less than 0", field.name, field.value)
		}
	}
	return nil
}

// optionsOf returns the RunOptions of a job, or nil if it is no ConfiguredJob. It calls
// code of the user, on a goroutine that this code may end.
func optionsOf(job CronJob) (options *RunOptions, err error) {
	configured, ok := job.(ConfiguredJob)
	if !ok {
		return nil, nil
	}
	err = errors.New("RunOptions: runtime.Goexit was called")
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("RunOptions: panic: %v", v)
			}
		}()
		own := configured.RunOptions()
		options, err = &own, own.check()
	}()
	<-done
	return options, err
}

// defaultOptions are those of a job that says nothing.
func (c *Config) defaultOptions() *RunOptions {
	options := &RunOptions{
		Overlap:    OverlapAllow,
		Timeout:    c.SchedulerConfig.RunTimeout,
		Missed:     cmp.Or(c.Runs.Missed, MissedSkip),
		Attempts:   1,
		Backoff:    defaultBackoff,
		MaxBackoff: defaultMaxBackoff,
	}
	switch {
	case c.SchedulerConfig.DelayIfStillRunning:
		options.Overlap = OverlapDelay
	case c.SchedulerConfig.SkipIfStillRunning:
		options.Overlap = OverlapSkip
	}
	if options.Timeout <= 0 {
		options.Timeout = noTimeout
	}
	return options
}

// resolve puts in place of each zero of a job's own options what it stands for. Jobs
// without options of their own share the defaults.
func (o *RunOptions) resolve(defaults *RunOptions) *RunOptions {
	if o == nil {
		return defaults
	}
	backoff := cmp.Or(o.Backoff, defaults.Backoff)
	return &RunOptions{
		Overlap:      cmp.Or(o.Overlap, defaults.Overlap),
		Timeout:      cmp.Or(o.Timeout, defaults.Timeout),
		Missed:       cmp.Or(o.Missed, defaults.Missed),
		MissedWithin: o.MissedWithin,
		Attempts:     cmp.Or(o.Attempts, defaults.Attempts),
		Backoff:      backoff,
		MaxBackoff:   cmp.Or(o.MaxBackoff, max(defaults.MaxBackoff, backoff)),
	}
}

// backoff is the time from the end of an attempt to the next. It expects options that
// are resolved.
func (o *RunOptions) backoff(attempt int) time.Duration {
	wait := min(o.Backoff, o.MaxBackoff)
	for ; attempt > 1 && wait < o.MaxBackoff; attempt-- {
		wait += min(wait, o.MaxBackoff-wait) // without an overflow
	}
	return wait + rand.N(min(wait/jitterShare, math.MaxInt64-wait)+1)
}

// Permanent wraps the error of a run that is not to be tried again, whatever
// RunOptions.Attempts says. The error's text stays. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }

func (e *permanentError) Unwrap() error { return e.err }

// retry is when the next attempt of a run that has ended is due, or the zero time if
// there is to be none.
func (r *run) retry(result *runResult) time.Time {
	if result.Outcome == OutcomeOK || result.permanent || r.input.Attempt >= r.options.Attempts || r.canceled() {
		return time.Time{}
	}
	now := time.Now()
	if r.grant != nil {
		now = r.session.ledger.Now()
	}
	return now.Add(r.options.backoff(r.input.Attempt))
}

func (r *run) canceled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cause != nil
}

// tryAgain lets the next attempt of a run wait for its time. It returns false if there
// is to be none: a later tick has started, or SmallBen was stopped. It expects the entry's mu.
func (s *scheduler) tryAgain(r *run, due time.Time) bool {
	at := r.tick
	at.slot, at.tried = nil, int32(r.input.Attempt)
	if at.stopped() || !at.triggered && at.at.UnixMicro() < r.entry.runs.newest {
		return false
	}
	timer := time.AfterFunc(time.Until(due), func() { s.fire(&at) })
	r.entry.runs.waiting = append(r.entry.runs.waiting, &waitingTick{tick: at, awaits: itsTime, due: due, timer: timer})
	return true
}

// endOlderAttempts ends the attempts of the ticks before one of the schedule that has
// started. It expects the entry's mu.
func (s *scheduler) endOlderAttempts(at *tick) {
	if at.triggered || at.tried > 0 {
		return
	}
	runs := at.entry.runs
	runs.newest = max(runs.newest, at.at.UnixMicro())
	if len(runs.waiting) > 0 {
		s.endWaiting(at.entry, func(w *waitingTick) bool { return w.supersededBy(at) })
	}
}

// supersededBy reports whether a tick is an attempt that is not to start any more when
// another tick does.
func (t *tick) supersededBy(other *tick) bool {
	return t.tried > 0 && !t.triggered && other.tried == 0 && !other.triggered && t.at.Before(other.at)
}

// nextAttempt returns the attempt that is due first, or the zero value. It expects mu.
func (e *entry) nextAttempt() (next Run) {
	for _, w := range e.runs.waiting {
		if w.awaits == itsTime && (next.Due.IsZero() || w.due.Before(next.Due)) {
			next = Run{JobID: e.id, Tick: w.at, Triggered: w.triggered, Attempt: w.attempt(), GroupID: e.groupID,
				SuperGroupID: e.superGroupID, Outcome: OutcomeWaiting, Due: w.due.In(w.at.Location())}
		}
	}
	return next
}

// endAttempts ends the attempts that wait, and returns them. A tick that waited for the end
// of one starts, if there is a place. It expects the entry's mu.
func (s *scheduler) endAttempts(e *entry) (ended []tick) {
	if ended = s.endWaiting(e, func(w *waitingTick) bool { return w.tried > 0 }); len(ended) == 0 || e.runs.busy() {
		return ended
	}
	if next, waited := e.runs.take(runsEnd, nil); waited && s.awaitPlace(&next) {
		if begun := s.begin(&next); begun != nil {
			go s.execute(begun)
		} else {
			s.freePlace()
		}
	}
	return ended
}

// dropAttemptsLocked ends all attempts that wait, and logs that: SmallBen was stopped.
func (s *scheduler) dropAttemptsLocked() {
	var ids []int64
	count := 0
	s.eachLocked(func(e *entry) {
		if ended := s.endAttempts(e); len(ended) > 0 {
			ids = append(ids, e.id)
			count += len(ended)
		}
	})
	slices.Sort(ids)
	if count > 0 {
		s.logDropped(ids, count)
	}
}

func (s *scheduler) logDropped(ids []int64, count int) {
	s.log.Info("attempts dropped: SmallBen was stopped", "count", count, "jobs", idText(ids))
}

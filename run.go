package smallben

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/robfig/cron/v3"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/metrics"
	"github.com/nbena/smallben/internal/stored"
)

// ContextJob is what a job may implement beside CronJob to be given a context
// and to return an error. RunContext is then called in place of Run, for every
// kind of run. What CronJob says of Run holds for it.
//
// The context carries a logger of the run (logr.FromContext). It ends when
// SchedulerConfig.RunTimeout or RunOptions.Timeout has passed since the start of the
// run, or when the context of a StopContext has ended. Nothing interrupts a run that goes on. An
// error is logged and counted, and stops nothing.
type ContextJob interface {
	RunContext(ctx context.Context, input CronJobInput) error
}

// RunFunc is one run of a job. Config.WrapRun is given one and returns one. A job
// that is no ContextJob takes no notice of ctx, and its error is nil unless it
// panicked.
type RunFunc func(ctx context.Context, input CronJobInput) error

// Outcome says how a run ended. It is the label outcome of smallben_runs_total.
type Outcome string

// The outcomes of a run.
const (
	// OutcomeOK is the outcome of a run that returned no error.
	OutcomeOK Outcome = "ok"
	// OutcomeError is the outcome of a run that returned an error, in time, or
	// because StopContext had ended its context.
	OutcomeError Outcome = "error"
	// OutcomePanic is the outcome of a run that panicked or called
	// runtime.Goexit.
	OutcomePanic Outcome = "panic"
	// OutcomeTimeout is the outcome of a run that returned an error after its
	// timeout had passed.
	OutcomeTimeout Outcome = "timeout"
)

// The outcomes of the record of runs (Config.Runs). Without it there are
// OutcomeWaiting, of attempts, and OutcomeAbandoned.
const (
	// OutcomeRunning is the outcome of a run that has not ended.
	OutcomeRunning Outcome = "running"
	// OutcomeLost is the outcome of a run whose process died, or was taken for
	// dead, before it had recorded its end.
	OutcomeLost Outcome = "lost"
	// OutcomeAbandoned is the outcome of a run that CancelRuns gave up. It may still
	// go on.
	OutcomeAbandoned Outcome = "abandoned"
	// OutcomeSkipped is the outcome of a tick that did not run because its job was
	// still running, or was paused, deleted or stopped while the tick waited.
	OutcomeSkipped Outcome = "skipped"
	// OutcomeWaiting is the outcome of a run that waits: for another of its job to
	// end, for its time, or for a process that has room for it.
	OutcomeWaiting Outcome = "waiting"
	// OutcomeMissed is the outcome of ticks that no process ran.
	OutcomeMissed Outcome = "missed"
)

// runResult is a run that has ended, as memory keeps it. The zero value stands for
// none.
type runResult struct {
	Tick      time.Time
	Triggered bool
	permanent bool // its error was Permanent
	Attempt   int32
	Start     time.Time
	Duration  time.Duration
	Outcome   Outcome
	Error     string
}

// run gives the result to users.
func (r *runResult) run(jobID int64) Run {
	if r.Outcome == "" {
		return Run{}
	}
	return Run{JobID: jobID, Tick: r.Tick, Triggered: r.Triggered, Attempt: int(r.Attempt), Start: r.Start, End: r.Start.Add(r.Duration), Outcome: r.Outcome, Error: r.Error}
}

// tick is an instant that a run of an entry is for.
type tick struct {
	entry     *entry
	session   *session
	slot      *slot         // that fired it; nil: it was triggered or claimed, or is a further attempt
	grant     *ledger.Grant // nil: runs are not recorded
	at        time.Time
	tried     int32 // attempts before this one, where runs are not recorded
	triggered bool  // by TriggerJobs, not by the schedule
}

// attempt is the number of the attempt that the tick is for.
func (t *tick) attempt() int {
	if t.grant == nil {
		return 1 + int(t.tried)
	}
	return t.grant.Attempt
}

// stopped reports whether the tick came to nothing with Stop. One that is claimed starts
// all the same: Stop waits for it.
func (t *tick) stopped() bool { return t.grant == nil && t.session.stopped.Load() }

// skip records that the tick will not run, if it is claimed.
func (t *tick) skip(reason string) {
	if t.grant != nil {
		t.grant.Skip(reason)
	}
}

// run is a run that was admitted.
type run struct {
	tick
	metrics *metrics.Type

	// These are as they were in the entry when the run began.
	generation int32
	createdAt  int64
	options    *RunOptions
	job        CronJob
	input      CronJobInput
	given      *stored.Given

	// result is of the goroutine of execute, which alone uses it, but for its Start.
	result runResult

	mu     sync.Mutex              // guards result.Start, which is zero until the run starts, and the fields below; for moments
	cancel context.CancelCauseFunc // nil if it has no context
	cause  error                   // why it was canceled, or nil
}

// start sets the result to that of a run that has started and not ended.
func (r *runResult) start(input *CronJobInput, start time.Time) {
	r.Tick, r.Triggered, r.Attempt, r.Start = input.ScheduledAt, input.Triggered, int32(input.Attempt), start
}

// jobRuns is what is known of the runs of a job. The mu of its entry guards it.
type jobRuns struct {
	running []*run         // those in progress
	waiting []*waitingTick // at most one of them for the end of a run
	last    runResult      // of the job that was created at createdAt
	newest  int64          // the newest tick of the schedule that has started without a grant, in Unix microseconds
	skipped int            // ticks, since the job fell behind its schedule
	behind  bool           // some of them since a run ended
}

// waitingTick is a tick that waits.
type waitingTick struct {
	tick
	awaits awaited
	due    time.Time   // of an attempt
	timer  *time.Timer // of an attempt
}

// awaited is what a tick waits for.
type awaited int

const (
	place   awaited = iota // of MaxConcurrentRuns: it stands in places as well
	runsEnd                // of the runs before it
	itsTime                // a further attempt
)

// busy reports whether a run of the job is in progress, or waits for a place.
func (r *jobRuns) busy() bool {
	return len(r.running) > 0 || slices.ContainsFunc(r.waiting, func(w *waitingTick) bool { return w.awaits == place })
}

// take lets a tick wait no more for something: the given one or, if at is nil, the first.
func (r *jobRuns) take(awaits awaited, at *tick) (taken tick, ok bool) {
	for i, w := range r.waiting {
		if w.awaits == awaits && (at == nil || w.tick == *at) {
			r.waiting = slices.Delete(r.waiting, i, i+1)
			return w.tick, true
		}
	}
	return tick{}, false
}

// awaitPlace is places.Enter for a run of a tick.
//
//go:noinline
func (s *scheduler) awaitPlace(at *tick) (entered bool) {
	if s.places.Enter(at.at, *at) {
		return true
	}
	runs := at.entry.runs
	runs.waiting = append(runs.waiting, &waitingTick{tick: *at, awaits: place})
	return false
}

// awaitRunsEnd lets a tick wait for the end of the runs in progress, unless another does
// that is still to start then.
func (r *jobRuns) awaitRunsEnd(at *tick) bool {
	first, ok := r.take(runsEnd, nil)
	stays := ok && !first.stopped() && !first.supersededBy(at)
	if !stays {
		first = *at
	}
	r.waiting = append(r.waiting, &waitingTick{tick: first, awaits: runsEnd})
	return !stays
}

// endWaiting lets the ticks that match wait no more, and returns them. It expects the
// entry's mu.
func (s *scheduler) endWaiting(e *entry, match func(w *waitingTick) bool) (ended []tick) {
	if e.runs == nil {
		return nil
	}
	placeless := false // some of them wait for a place
	e.runs.waiting = slices.DeleteFunc(e.runs.waiting, func(w *waitingTick) bool {
		if !match(w) {
			return false
		}
		if w.timer != nil {
			w.timer.Stop()
		}
		ended = append(ended, w.tick)
		placeless = placeless || w.awaits == place
		return true
	})
	if placeless {
		s.places.Remove(func(at tick) bool { return at.entry == e && match(&waitingTick{tick: at, awaits: place}) })
	}
	return ended
}

// fire asks for the claim of a tick, if runs are recorded, and else runs it.
func (s *session) fire(from *slot, at time.Time) {
	if s.ledger == nil {
		s.scheduler.fire(&tick{entry: from.Key, session: s, slot: from, at: at})
	} else if s.ledger.Concerns(from.Key.id) {
		s.ask(from, at)
	}
}

// ask has a frame of its own, as has all that a plain run does not need, and run is
// filled in place: else the stack of each run's goroutine outgrows the 2 KB that it
// starts with, and copying it takes a quarter of the CPU of a burst.
//
//go:noinline
func (s *session) ask(from *slot, at time.Time) {
	e := from.Key
	e.mu.Lock()
	current, job := e.slot == from, e.forLedgerLocked()
	e.mu.Unlock()
	if current {
		s.ledger.Ask(job, at)
	}
}

// fire runs a tick, or lets it wait, or skips it.
func (s *scheduler) fire(at *tick) {
	r, refusal := s.admit(at, false)
	if r != nil {
		s.execute(r)
	} else if refusal != "" {
		at.skip(refusal)
	}
}

// Why ticks are refused.
const (
	stillRunning  = "the job is still running"
	changedBefore = "its job was paused, changed or deleted before it started"
	stoppedBefore = "SmallBen was stopped"
)

// countSkipped counts a tick that is skipped because the job is still running. A
// line says when that begins, and another one when it is over. It expects the
// entry's mu.
func (s *scheduler) countSkipped(e *entry, tick time.Time) {
	e.metrics.Skipped()
	if e.runs.skipped == 0 {
		s.log.Info("run skipped: "+stillRunning, "job", e.id, "tick", tick)
	}
	e.runs.skipped++
	e.runs.behind = true
}

// keptUp is called when a run ends. If no tick was skipped since the one before it
// ended, the job is not behind its schedule any more. It expects the entry's mu.
func (s *scheduler) keptUp(e *entry) {
	if !e.runs.behind && e.runs.skipped > 0 {
		s.log.Info("the job keeps up with its schedule again", "job", e.id, "skipped", e.runs.skipped)
		e.runs.skipped = 0
	}
	e.runs.behind = false
}

// admit begins the run of a tick, or lets it wait, or says why not. If it is placed, it has a
// place already, which the caller gives back unless the run begins.
func (s *scheduler) admit(at *tick, placed bool) (begun *run, refusal string) {
	e := at.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	if refusal := e.refusal(at); refusal != "" {
		return nil, refusal
	}
	if e.runs == nil {
		e.runs = &jobRuns{}
	}
	if at.tried > 0 {
		if _, waited := e.runs.take(itsTime, at); !waited {
			return nil, changedBefore
		}
	}
	if e.runs.busy() {
		switch {
		case e.options.Overlap == OverlapAllow:
		case (e.options.Overlap == OverlapDelay || at.tried > 0) && e.runs.awaitRunsEnd(at):
			return nil, ""
		default:
			s.countSkipped(e, at.at)
			return nil, stillRunning
		}
	}
	if !placed && !s.awaitPlace(at) {
		return nil, ""
	}
	if begun = s.begin(at); begun != nil {
		return begun, ""
	}
	if !placed {
		s.freePlace()
	}
	return nil, stoppedBefore
}

// refusal says why a tick that comes now is not one of its job, or not any more. It expects
// mu.
func (e *entry) refusal(at *tick) string {
	switch {
	case at.stopped():
		return stoppedBefore
	case at.slot != nil && at.slot != e.slot:
		return changedBefore
	case at.grant != nil && (e.job == nil || e.createdAt != at.grant.CreatedAt || e.slot == nil && !at.triggered):
		return changedBefore
	}
	return ""
}

// freePlace gives the place of a run to the next tick that waits for one.
func (s *scheduler) freePlace() {
	if next, ok := s.places.Leave(); ok {
		go s.startPlaced(next)
	}
}

// startPlaced runs a tick that has waited for a place, and has one now. If it may not
// start any more, the place goes to the next.
func (s *scheduler) startPlaced(at tick) {
	e := at.entry
	e.mu.Lock()
	var next *run
	if _, waited := e.runs.take(place, &at); waited {
		next = s.begin(&at)
	}
	if next == nil {
		next = s.beginNext(e)
	}
	e.mu.Unlock()
	if next == nil {
		s.freePlace()
		return
	}
	s.execute(next)
}

// begin adds a run to those in progress, or returns nil if the session was stopped. It
// leaves out the input's own map: execute makes it, outside the lock. It expects the
// entry's mu.
func (s *scheduler) begin(at *tick) *run {
	e := at.entry
	if at.grant == nil {
		if !at.session.hold() {
			return nil
		}
		s.endOlderAttempts(at)
	}
	r := &run{tick: *at, metrics: e.metrics, generation: e.generation, createdAt: e.createdAt, options: e.options, job: e.job, given: e.given,
		input: CronJobInput{JobID: e.id, GroupID: e.groupID, SuperGroupID: e.superGroupID, CronExpression: e.scheduled.expression,
			ScheduledAt: at.at, Triggered: at.triggered, Attempt: at.attempt(), stored: e.storedInput}}
	if at.grant != nil {
		r.input.Missed = at.grant.Missed
	}
	e.runs.running = append(e.runs.running, r)
	return r
}

// beginNext begins the run that waited for the end of others, if they have ended and it
// may still start. It expects the entry's mu.
func (s *scheduler) beginNext(e *entry) *run {
	if e.runs.busy() {
		return nil
	}
	if next, waited := e.runs.take(runsEnd, nil); waited {
		return s.begin(&next)
	}
	return nil
}

// end removes a run from those in progress, and returns the one that waited for it,
// if that may still start. A due that is not zero is when the run may be tried again: retry
// is due if it is, and else zero. Ended is false if the run has been removed already.
func (s *scheduler) end(r *run, result *runResult, due time.Time) (next *run, retry time.Time, ended bool) {
	e := r.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.Index(e.runs.running, r)
	if i < 0 {
		return nil, time.Time{}, false
	}
	e.runs.running = slices.Delete(e.runs.running, i, i+1)
	if e.createdAt == r.createdAt {
		e.runs.last = *result
	}
	if len(e.runs.running) == 0 {
		s.keptUp(e)
	}
	if len(e.runs.waiting) > 0 {
		next = s.beginNext(e) // if that is of a later tick, this one is not tried again
	}
	if !due.IsZero() && e.generation == r.generation && (r.grant != nil || s.tryAgain(r, due)) {
		retry = due
	}
	if e.createdAt == noJob && !e.runs.busy() {
		go s.drop(e)
	}
	return next, retry, true
}

// Cancel implements ledger.Canceler: it ends the context of the run, now or as soon as
// there is one.
func (r *run) Cancel(cause error) {
	r.mu.Lock()
	cancel := r.cancel
	if r.cause == nil {
		r.cause = cause
	}
	r.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}

// cancelable gives the context that Cancel ends.
func (r *run) cancelable(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	r.mu.Lock()
	r.cancel = cancel
	cause := r.cause
	r.mu.Unlock()
	if cause != nil {
		cancel(cause)
	}
	return ctx, cancel
}

// Abandon implements ledger.Canceler: it ends the run for all that wait for it, unless
// it has ended.
func (r *run) Abandon() {
	s := r.session.scheduler
	now := time.Now()
	r.mu.Lock()
	start := cmp.Or(r.result.Start, now)
	r.mu.Unlock()
	var result runResult
	result.start(&r.input, start)
	result.Duration, result.Outcome, result.Error = now.Sub(start), OutcomeAbandoned, "it went on after it was canceled"
	if _, ok := s.finish(r, &result); ok {
		s.log.Info("run abandoned", "job", r.input.JobID, "tick", result.Tick)
	}
}

// finish ends a run, and starts the one that waited for it. It returns
// when the run is tried again, or the zero time if it is not, and false if it was
// abandoned before.
func (s *scheduler) finish(r *run, result *runResult) (retry time.Time, ended bool) {
	due := r.retry(result)
	next, retry, ended := s.end(r, result, due)
	if !ended {
		return time.Time{}, false
	}
	// Before Stop goes on: a scrape after it counts the run.
	r.metrics.Ended(string(result.Outcome), result.Attempt, result.Duration, result.Outcome != OutcomeOK && r.options.Attempts > 1 && due.IsZero())
	if r.grant == nil {
		r.session.release()
	} else {
		r.recordEnd(result, retry)
	}
	if retry.IsZero() && !due.IsZero() && r.stopped() {
		s.logDropped([]int64{r.input.JobID}, 1)
	}
	if next != nil {
		go s.execute(next) // in the same place
	} else {
		s.freePlace()
	}
	return retry, true
}

// recordEnd has a frame of its own: see ask.
//
//go:noinline
func (r *run) recordEnd(result *runResult, retry time.Time) {
	r.grant.End(result.Start, result.Start.Add(result.Duration), ledger.Outcome(result.Outcome), result.Error, retry)
}

// runLogger is what runs log to: where SmallBen does, if that is a logr.Logger, as it is
// unless the program replaced DefaultLogger.
func runLogger(config *Config) logr.Logger {
	if config.Logger.GetSink() != nil {
		return config.Logger
	}
	logger, _ := DefaultLogger.(logr.Logger)
	return logger
}

// execute calls the job and survives it. The run ends before anything is logged: a sink
// that blocks holds up nothing else.
func (s *scheduler) execute(r *run) {
	r.input.OtherInputs = r.given.Decode(r.input.stored)
	begin := time.Now()
	result := &r.result
	r.mu.Lock()
	result.start(&r.input, begin.Add(r.session.timetable.Ahead()))
	r.mu.Unlock()
	r.metrics.Started(result.Attempt, result.Start.Sub(result.Tick))
	if r.grant != nil {
		r.grant.Attach(r)
	}
	// Nothing else is left of a run that leaves its goroutine.
	err, timedOut := error(&panicError{value: "runtime.Goexit was called"}), false
	defer func() {
		if v := recover(); v != nil {
			err = panicked(v)
		}
		result.Duration = time.Since(begin)
		if err != nil {
			s.finishFailed(r, err, timedOut)
			return
		}
		result.Outcome = OutcomeOK
		s.finish(r, result)
	}()
	err, timedOut = s.call(r)
}

// finishFailed is finish for a run that returned an error, or panicked: it logs that.
func (s *scheduler) finishFailed(r *run, err error, timedOut bool) {
	result := &r.result
	failure, err := result.setError(err, timedOut)
	s.log.Begin() // so that Stop waits for the line
	retry, _ := s.finish(r, result)
	s.logFailure(r, result, retry, err, failure)
}

// setError notes what went wrong. It returns the panic, if it was one, and the error
// to log. The error is the job's own, and so are its methods: they may panic.
func (r *runResult) setError(err error, timedOut bool) (failure *panicError, logged error) {
	defer func() {
		if v := recover(); v != nil {
			r.Outcome = OutcomeError
			r.Error = fmt.Sprintf("%T, whose methods panic: %v", err, v)
			failure, logged = nil, errors.New(r.Error)
		}
	}()
	switch {
	case errors.As(err, &failure):
		if failure.stack == nil {
			failure.stack = debug.Stack()
		}
		r.Outcome = OutcomePanic
	case timedOut:
		r.Outcome = OutcomeTimeout
	default:
		r.Outcome = OutcomeError
	}
	r.permanent = errors.As(err, new(*permanentError))
	r.Error = err.Error()
	if len(r.Error) > maxErrorText {
		r.Error = strings.ToValidUTF8(r.Error[:maxErrorText], "") + "…"
	}
	return failure, err
}

// maxErrorText bounds the text that is kept of a run's error, in bytes.
const maxErrorText = 1 << 10

// logFailure logs a run that failed. A retry that is not zero is when the next attempt
// is due.
func (s *scheduler) logFailure(r *run, result *runResult, retry time.Time, err error, failure *panicError) {
	keysAndValues := []any{"job", r.input.JobID, "group", r.input.GroupID, "superGroup", r.input.SuperGroupID,
		"tick", result.Tick, "outcome", result.Outcome}
	if r.options.Attempts > 1 {
		keysAndValues = append(keysAndValues, "attempt", result.Attempt, "attempts", r.options.Attempts)
	}
	if !retry.IsZero() {
		keysAndValues = append(keysAndValues, "nextAttempt", retry.In(s.location))
	}
	if failure != nil {
		keysAndValues = append(keysAndValues, "stack", string(failure.stack))
	}
	s.log.Write(func(sink cron.Logger) { sink.Error(err, "run failed", keysAndValues...) })
}

// call makes the one call of a run. Its frame is small: the stack of a goroutine
// that runs a plain job needs not grow.
func (s *scheduler) call(r *run) (err error, timedOut bool) {
	contextJob, ok := r.job.(ContextJob)
	if !ok && s.wrap == nil {
		return recovered(func() error { r.job.Run(r.input); return nil }), false
	}
	return s.callInContext(r, contextJob)
}

// callInContext is call within the context of the run, and what the user wraps
// around it. A contextJob that is nil stands for a job that takes no context.
func (s *scheduler) callInContext(r *run, contextJob ContextJob) (err error, timedOut bool) {
	ctx := logr.NewContext(r.session.context, s.loggerOf(r))
	ctx, end := r.cancelable(ctx)
	defer end(nil)
	if contextJob != nil && r.options.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.options.Timeout)
		defer cancel()
	}
	var wrapped RunFunc = func(ctx context.Context, input CronJobInput) error {
		return recovered(func() error {
			if contextJob != nil {
				return contextJob.RunContext(ctx, input)
			}
			r.job.Run(input)
			return nil
		})
	}
	if s.wrap != nil {
		wrapped = s.wrap(wrapped)
	}
	err = wrapped(ctx, r.input)
	return err, errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// loggerOf gives the logger of a run. A sink that panics does not take the run
// with it.
func (s *scheduler) loggerOf(r *run) (logger logr.Logger) {
	defer func() {
		if recover() != nil {
			logger = s.runLogger
		}
	}()
	return s.runLogger.WithValues("job", r.input.JobID, "tick", r.input.ScheduledAt)
}

// recovered makes a panic of the job an error, innermost, so that wrappers see
// it.
func recovered(do func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked(v)
		}
	}()
	return do()
}

// panicError is the error of a run that panicked.
type panicError struct {
	value string
	stack []byte
}

// panicked is the error of what a deferred call has recovered.
func panicked(value any) *panicError {
	return &panicError{fmt.Sprint("panic: ", value), debug.Stack()}
}

func (e *panicError) Error() string { return e.value }

// Stack returns the stack of the panic, for reporters that look for it.
func (e *panicError) Stack() []byte { return e.stack }

package smallben

import (
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

// run is a run that was admitted.
type run struct {
	entry   *entry
	state   *jobState
	metrics *metrics.Type
	grant   *ledger.Grant // nil: runs are not recorded

	// These are as they were in the entry when the run began.
	options *RunOptions
	job     CronJob
	input   CronJobInput
	given   *stored.Given

	result runResult // of the goroutine of execute, which alone uses it
	over   bool      // it has ended, or was abandoned: guarded by the shard's mu

	mu     sync.Mutex              // guards the fields below, for moments
	start  time.Time               // zero until it starts
	cancel context.CancelCauseFunc // nil if it has no context
	cause  error                   // why it was canceled, or nil
}

// start sets the result to that of a run that has started and not ended.
func (r *runResult) start(input *CronJobInput, start time.Time) {
	r.Tick, r.Triggered, r.Attempt, r.Start = input.ScheduledAt, input.Triggered, int32(input.Attempt), start
}

// jobState is what is known of a job by its id, whatever its entries: it keeps a
// job from overlapping itself across updates, pauses and a deletion, and
// remembers the last run. It exists from the first tick or trigger on.
type jobState struct {
	running []*run      // those in progress
	queued  int         // ticks that wait for a place
	waiting waitingTick // for the end of a run; its entry is nil if none does
	last    runResult   // of the job that was created at createdAt
	skipped int         // ticks, since the job fell behind its schedule
	behind  bool        // some of them since a run ended
	gone    bool        // the job was deleted: the state goes with its last run
	loose   *entry      // through which the paused job runs when it is triggered, if it was

	createdAt int64      // as entry.createdAt
	newest    int64      // the newest tick of the schedule that has started without a grant, in Unix microseconds
	attempts  []*attempt // that wait in memory for their time
}

// tick is an instant that a run is for.
type tick struct {
	at        time.Time
	triggered bool          // by TriggerJobs, not by the schedule
	tried     int32         // attempts before this one, where runs are not recorded
	grant     *ledger.Grant // nil: runs are not recorded
}

// waitingTick is a tick of an entry that waits: for the end of a run, for a place, or, if
// it is a further attempt, for its time.
type waitingTick struct {
	entry *entry
	tick  tick
}

func (t tick) attempt() int {
	if t.grant == nil {
		return 1 + int(t.tried)
	}
	return t.grant.Attempt
}

// live reports whether a run of the entry may start at a tick. It expects the
// shard's mu. One that is claimed starts though its session was stopped, which
// waits for it.
func (e *entry) live(at tick) bool {
	return !e.dead && (at.grant != nil || !e.session.stopped.Load())
}

// skip records that the tick will not run, if it is claimed.
func (t tick) skip(reason string) {
	if t.grant != nil {
		t.grant.Skip(reason)
	}
}

// fire asks for the claim of a tick, if runs are recorded, and else runs it.
func (e *entry) fire(at time.Time) {
	if record := e.session.ledger; record != nil {
		if record.Concerns(e.id) {
			e.ask(record, at)
		}
		return
	}
	e.session.scheduler.fire(e, tick{at: at})
}

// ask has a frame of its own, as has all that a plain run does not need, and run is
// filled in place: else the stack of each run's goroutine outgrows the 2 KB that it
// starts with, and copying it takes a quarter of the CPU of a burst.
//
//go:noinline
func (e *entry) ask(record *ledger.Session, at time.Time) { record.Ask(e.forLedger(), at) }

// fire runs a tick, or lets it wait, or skips it.
func (s *scheduler) fire(e *entry, at tick) {
	r, decision := s.admit(e, at, false)
	switch decision {
	case starts:
		s.execute(r)
	case refused:
		at.skip(stillRunning)
	case gone:
		at.skip(changedBefore)
	}
}

// Why ticks are skipped.
const (
	stillRunning  = "the job is still running"
	changedBefore = "its job was paused, changed or deleted before it started"
)

// countSkipped counts a tick that is skipped because the job is still running. A
// line says when that begins, and another one when it is over. It expects the
// shard's mu.
func (s *scheduler) countSkipped(state *jobState, e *entry, tick time.Time) {
	e.metrics.Skipped()
	if state.skipped == 0 {
		s.log.Info("run skipped: "+stillRunning, "job", e.id, "tick", tick)
	}
	state.skipped++
	state.behind = true
}

// keptUp is called when a run ends. If no tick was skipped since the one before it
// ended, the job is not behind its schedule any more. It expects the shard's mu.
func (s *scheduler) keptUp(state *jobState, id int64) {
	if !state.behind && state.skipped > 0 {
		s.log.Info("the job keeps up with its schedule again", "job", id, "skipped", state.skipped)
		state.skipped = 0
	}
	state.behind = false
}

// admission is what becomes of a tick.
type admission int

const (
	starts  admission = iota
	waits             // for the end of a run, or for a place
	refused           // the job is still running
	gone              // the entry is, or its session
)

// admit decides on a tick, which may have a place already. A run that is admitted has one;
// otherwise the place is given back.
func (s *scheduler) admit(e *entry, at tick, placed bool) (admitted *run, decision admission) {
	shard := s.lockShard(e.id)
	defer shard.mu.Unlock()
	defer func() {
		if placed && admitted == nil {
			s.freePlace()
		}
	}()
	if !e.live(at) {
		return nil, gone
	}
	state := shard.state(e)
	if at.tried > 0 && !state.takeAttempt(at) {
		return nil, gone
	}
	if state.busy() {
		switch {
		case e.options.Overlap == OverlapAllow:
		case (e.options.Overlap == OverlapDelay || at.tried > 0) && state.hasRoom(at):
			state.waiting = waitingTick{e, at}
			return nil, waits
		default:
			s.countSkipped(state, e, at.at)
			return nil, refused
		}
	}
	if !placed && !s.places.Enter(e.id, at.at, waitingTick{e, at}) {
		state.queued++
		return nil, waits
	}
	placed = true
	if r := state.begin(e, at); r != nil {
		return r, starts
	}
	return nil, gone
}

// hasRoom reports whether a tick may wait for the end of a run.
func (state *jobState) hasRoom(at tick) bool {
	w := state.waiting
	return w.entry == nil || !w.entry.live(w.tick) || w.tick.supersededBy(at)
}

// freePlace gives the place of a run to the next tick that waits for one.
func (s *scheduler) freePlace() {
	if next, ok := s.places.Leave(); ok {
		go s.runNext(next)
	}
}

// runNext runs a tick that has waited for a place, and has one now. If it may not
// start any more, the place goes to the next.
func (s *scheduler) runNext(w waitingTick) {
	shard := s.lockShard(w.entry.id)
	state := shard.states[w.entry.id] // it is busy, and stays if its job is deleted
	state.queued--
	r := state.begin(w.entry, w.tick)
	next := r
	if r == nil {
		next = s.promote(shard, state, w.entry.id)
	}
	shard.mu.Unlock()
	if r == nil {
		w.tick.skip(changedBefore)
	}
	if next == nil {
		s.freePlace()
		return
	}
	s.execute(next)
}

// busy reports whether a run of the job is in progress, or waits for a place.
func (state *jobState) busy() bool { return len(state.running)+state.queued > 0 }

// state returns what is known of the runs of the entry's job. It expects mu.
func (s *shard) state(e *entry) *jobState {
	state := s.states[e.id]
	if state == nil {
		state = &jobState{}
		s.states[e.id] = state
	}
	if state.createdAt != e.createdAt {
		// One of the same id was deleted.
		state.createdAt = e.createdAt
		state.last = runResult{}
	}
	state.gone = false
	return state
}

// begin adds a run to those in progress, or returns nil if the session was stopped.
// It expects the shard's mu.
func (state *jobState) begin(e *entry, at tick) *run {
	if e.dead || at.grant == nil && !e.session.hold() {
		return nil
	}
	if at.grant == nil {
		state.endOlderAttempts(at)
	}
	r := &run{entry: e, state: state, metrics: e.metrics, grant: at.grant, options: e.options, job: e.job, given: e.given}
	e.setInput(&r.input, at)
	state.running = append(state.running, r)
	return r
}

// setInput sets what a run of the tick receives, its own map excepted: that one is
// made by execute, outside the lock. It expects the shard's mu.
func (e *entry) setInput(input *CronJobInput, at tick) {
	input.JobID = e.id
	input.GroupID = e.groupID
	input.SuperGroupID = e.superGroupID
	input.CronExpression = e.expression
	input.ScheduledAt = at.at
	input.Triggered = at.triggered
	input.Attempt = at.attempt()
	if at.grant != nil {
		input.Missed = at.grant.Missed
	}
	input.stored = e.storedInput
}

// end removes a run from those in progress, and returns the one that waited for it,
// if that may still start. A due that is not zero is when the run may be tried again, and
// again says that it is. Ended is false if the run has been removed already.
func (s *scheduler) end(r *run, result *runResult, due time.Time) (next *run, again, ended bool) {
	id, state := r.input.JobID, r.state
	shard := s.lockShard(id)
	defer shard.mu.Unlock()
	if r.over {
		return nil, false, false
	}
	r.over = true
	i := slices.Index(state.running, r)
	state.running = slices.Delete(state.running, i, i+1)
	if state.createdAt == r.entry.createdAt {
		state.last = *result
	}
	if len(state.running) == 0 {
		s.keptUp(state, id)
	}
	if !due.IsZero() {
		again = r.grant != nil && !r.entry.dead || r.grant == nil && s.tryAgain(state, r, due)
	}
	if state.waiting.entry != nil || state.gone {
		next = s.promote(shard, state, id)
	}
	return next, again, true
}

// promote begins the run that waited for the end of others, if it may still start,
// and returns it. It expects the shard's mu.
func (s *scheduler) promote(shard *shard, state *jobState, id int64) (next *run) {
	if state.busy() {
		return nil
	}
	if w := state.waiting; w.entry != nil {
		if next = state.begin(w.entry, w.tick); next == nil && w.tick.grant != nil {
			go w.tick.skip("its job was deleted while it waited")
		}
		state.waiting = waitingTick{}
	}
	if state.gone && next == nil {
		delete(shard.states, id)
	}
	return next
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
	s := r.entry.session.scheduler
	now := time.Now()
	r.mu.Lock()
	start := r.start
	r.mu.Unlock()
	if start.IsZero() {
		start = now
	}
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
	next, again, ended := s.end(r, result, due)
	if !ended {
		return time.Time{}, false
	}
	if again {
		retry = due
	}
	// Before Stop goes on: a scrape after it counts the run.
	r.metrics.Ended(string(result.Outcome), result.Attempt, result.Duration, result.Outcome != OutcomeOK && r.options.Attempts > 1 && due.IsZero())
	if r.grant == nil {
		r.entry.session.release()
	} else {
		r.grant.End(result.Start, result.Start.Add(result.Duration), ledger.Outcome(result.Outcome), result.Error, retry)
	}
	if !again && !due.IsZero() && r.grant == nil && r.entry.session.stopped.Load() {
		s.logDropped([]int64{r.input.JobID}, 1)
	}
	if next != nil {
		go s.execute(next) // in the same place
	} else {
		s.freePlace()
	}
	return retry, true
}

// runner is how runs are called.
type runner struct {
	wrap   func(next RunFunc) RunFunc // nil: not at all
	logger logr.Logger
}

func newRunner(config *Config) runner {
	logger := config.Logger
	if logger.GetSink() == nil {
		// Runs log where SmallBen does, if that is a logr.Logger, as it is
		// unless the program replaced DefaultLogger.
		logger, _ = DefaultLogger.(logr.Logger)
	}
	return runner{wrap: config.WrapRun, logger: logger}
}

// execute calls the job and survives it. The run ends before anything is logged: a sink
// that blocks holds up nothing else.
func (s *scheduler) execute(r *run) {
	r.input.OtherInputs = r.given.Decode(r.input.stored)
	begin := time.Now()
	result := &r.result
	result.start(&r.input, begin.Add(r.entry.session.timetable.Ahead()))
	r.metrics.Started(result.Attempt, result.Start.Sub(result.Tick))
	r.mu.Lock()
	r.start = result.Start
	r.mu.Unlock()
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
	err, timedOut = s.runs.call(r)
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
func (c *runner) call(r *run) (err error, timedOut bool) {
	contextJob, ok := r.job.(ContextJob)
	if !ok && c.wrap == nil {
		return recovered(func() error { r.job.Run(r.input); return nil }), false
	}
	return c.callInContext(r, contextJob)
}

// callInContext is call within the context of the run, and what the user wraps
// around it. A contextJob that is nil stands for a job that takes no context.
func (c *runner) callInContext(r *run, contextJob ContextJob) (err error, timedOut bool) {
	ctx := logr.NewContext(r.entry.session.context, c.loggerOf(r))
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
	if c.wrap != nil {
		wrapped = c.wrap(wrapped)
	}
	err = wrapped(ctx, r.input)
	return err, errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// loggerOf gives the logger of a run. A sink that panics does not take the run
// with it.
func (c *runner) loggerOf(r *run) (logger logr.Logger) {
	defer func() {
		if recover() != nil {
			logger = c.logger
		}
	}()
	return c.logger.WithValues("job", r.input.JobID, "tick", r.input.ScheduledAt)
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

package smallben

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nbena/smallben/internal/ledger"
)

// Run is a run of a job or, in the record of runs (Config.Runs), a stretch of ticks
// that were missed. The zero value stands for none.
type Run struct {
	JobID int64
	// Tick is the nominal instant of the run; if it was triggered, the time of the
	// call.
	Tick      time.Time
	Triggered bool
	// Attempt is 1 for the first run of a tick, and one more for each further one.
	Attempt int
	// GroupID and SuperGroupID are those of the job when it ran.
	GroupID      int64
	SuperGroupID int64
	// Process is the process that ran it: its host, its process id, and letters
	// that tell its sessions apart. Of missed ticks it is the one that found out.
	// It is empty for a run that waits, and where runs are not recorded.
	Process string
	// Start and End are when the run started and ended, by the clock that ticks go
	// by: of its process or, where that differs by more than a second, of the
	// database. Until the run has ended, Start is when it was claimed, and End is
	// the zero time.
	Start, End time.Time
	// Outcome says how it ended, or that it has not, and Error what went wrong.
	Outcome Outcome
	Error   string
	// Missed is, for OutcomeMissed, how many ticks the entry stands for: FirstTick
	// to Tick. From 10,000 on it stands for at least as many. Of a run that makes
	// up for missed ticks it is how many, its own included.
	Missed    int
	FirstTick time.Time
	// Due is, for OutcomeWaiting, when the run may start.
	Due time.Time
}

// ErrRunLost is the cause (context.Cause) with which the context of a run ends whose
// process was taken for dead: the run is recorded as lost, and may run again elsewhere.
var ErrRunLost = ledger.ErrLost

// Duration is how long the run took. It is 0 until it has ended.
func (r Run) Duration() time.Duration {
	if r.End.IsZero() {
		return 0
	}
	return r.End.Sub(r.Start)
}

// Lateness is the time from the tick to the start. It is 0 for what never started.
func (r Run) Lateness() time.Duration {
	switch r.Outcome {
	case OutcomeMissed, OutcomeSkipped, OutcomeWaiting:
		return 0
	}
	return r.Start.Sub(r.Tick)
}

// String describes the run in a line.
func (r Run) String() string {
	if r.Outcome == "" {
		return "none"
	}
	text := fmt.Sprintf("job %d, tick %s: %s", r.JobID, r.Tick.Format(time.RFC3339), r.Outcome)
	if r.Triggered {
		text += ", triggered"
	}
	if r.Attempt > 1 {
		text += fmt.Sprintf(", attempt %d", r.Attempt)
	}
	if r.Missed > 1 {
		text += fmt.Sprintf(", %d ticks", r.Missed)
	}
	if r.Process != "" {
		text += ", on " + r.Process
	}
	if r.Error != "" {
		text += ": " + r.Error
	}
	return text
}

// ListRunsOptions selects runs. A run is selected if it matches every filter that
// is given. The zero value selects the newest thousand.
type ListRunsOptions struct {
	// JobIDs, GroupIDs and SuperGroupIDs select the runs of jobs with one of these
	// ids. Nil means any; an empty slice that is not nil selects nothing.
	JobIDs        []int64
	GroupIDs      []int64
	SuperGroupIDs []int64
	// Outcomes selects runs with one of these outcomes. Nil means any.
	Outcomes []Outcome
	// From and Before select by the tick: not before From, and before Before. The
	// zero time does not select.
	From, Before time.Time
	// After selects what is listed after this run: the last one of the page before.
	// Nil means from the first.
	After *Run
	// Limit is how many runs to return at most, the newest ones. Zero or less
	// means 1,000.
	Limit int
}

// String says in words which runs are selected.
func (o ListRunsOptions) String() string {
	jobs := ListJobsOptions{JobIDs: o.JobIDs, GroupIDs: o.GroupIDs, SuperGroupIDs: o.SuperGroupIDs}
	text := "runs of " + jobs.String()
	if o.Outcomes != nil {
		names := make([]string, len(o.Outcomes))
		for i, outcome := range o.Outcomes {
			names[i] = string(outcome)
		}
		text += ", outcome " + strings.Join(names, " or ")
	}
	if !o.From.IsZero() {
		text += ", from " + o.From.Format(time.RFC3339)
	}
	if !o.Before.IsZero() {
		text += ", before " + o.Before.Format(time.RFC3339)
	}
	if o.After != nil {
		text += fmt.Sprintf(", after job %d, tick %s", o.After.JobID, o.After.Tick.Format(time.RFC3339))
	}
	return text
}

func (o *ListRunsOptions) query() ledger.Query {
	query := ledger.Query{JobIDs: o.JobIDs, GroupIDs: o.GroupIDs, SuperGroupIDs: o.SuperGroupIDs, From: o.From, Before: o.Before, Limit: o.Limit}
	if o.After != nil {
		query.After = &ledger.Key{JobID: o.After.JobID, Tick: o.After.Tick, Triggered: o.After.Triggered, Attempt: o.After.Attempt}
	}
	if o.Outcomes != nil {
		query.Outcomes = make([]ledger.Outcome, len(o.Outcomes))
		for i, outcome := range o.Outcomes {
			query.Outcomes[i] = ledger.Outcome(outcome)
		}
	}
	return query
}

// ListRuns returns the recorded runs that match options, newest tick first: what
// ran, where and how it went, what was missed, skipped or lost, what is running and
// what waits. Nil options match the newest thousand. Times are in the location of
// SchedulerConfig. Without Config.Runs.Record it returns an error.
func (s *SmallBen) ListRuns(options *ListRunsOptions) ([]Run, error) {
	return s.ListRunsContext(context.Background(), options)
}

// ListRunsContext is ListRuns, and ends with ctx.
func (s *SmallBen) ListRunsContext(ctx context.Context, options *ListRunsOptions) ([]Run, error) {
	if options == nil {
		options = &ListRunsOptions{}
	}
	c := s.begin(ctx)
	defer c.end()
	if err := c.await(s.record.open); err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	rows, err := c.store.ListRuns(options.query())
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	return s.record.forUsers(rows), nil
}

// Process is a process that shares the record of runs.
type Process struct {
	// Name is its host, its process id, and letters that tell its sessions apart.
	Name string
	// Version is that of its program, as debug.ReadBuildInfo has it: "v1.4.2", or what
	// the go command makes of a commit. It is "(devel)" or empty if it is not known.
	Version string
	// Since is when it started, by the clock of the database.
	Since time.Time
	// Heartbeat is how long ago it was heard of.
	Heartbeat time.Duration
	// Claims says that it runs jobs: it has started, and was not stopped.
	Claims bool
	// Leads says that it is the one that looks for missed ticks and prunes.
	Leads bool
	// Partial says that some jobs do not decode there.
	Partial bool
	// ClockOffset is by how much the database's clock was ahead of its own.
	ClockOffset time.Duration
}

// Processes returns the processes that share the record of runs, in the order of their
// names. Without Config.Runs.Record it returns an error.
func (s *SmallBen) Processes() ([]Process, error) {
	if err := s.record.open(); err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	found, err := s.record.store.Processes()
	if err != nil {
		return nil, err
	}
	processes := make([]Process, len(found))
	for i := range found {
		p := &found[i]
		processes[i] = Process{Name: p.Process, Version: p.Version, Since: p.Since.In(s.scheduler.location), Heartbeat: p.Age, Claims: p.Claims, Leads: p.Leads, Partial: p.Partial, ClockOffset: p.Offset}
	}
	return processes, nil
}

// RunCount is how many ticks within a step of time had an outcome.
type RunCount struct {
	From    time.Time
	Outcome Outcome
	Count   int
}

// CountRuns counts the runs whose tick is not before from, by steps of time since
// from and by outcome, in that order. An entry for missed ticks counts as many as
// it stands for. It looks at the newest limit runs at most, and returns since when
// all are counted: from, or a tick after it. Without Config.Runs.Record it returns
// an error.
func (s *SmallBen) CountRuns(from time.Time, step time.Duration, limit int) (counts []RunCount, since time.Time, err error) {
	if s.record != nil && (step < time.Microsecond || limit <= 0) {
		return nil, from, errors.New("count runs: step and limit must be positive")
	}
	if err := s.record.open(); err != nil {
		return nil, from, fmt.Errorf("count runs: %w", err)
	}
	found, since, err := s.record.store.CountRuns(from, step, limit)
	if err != nil {
		return nil, from, fmt.Errorf("count runs: %w", err)
	}
	for _, c := range found {
		counts = append(counts, RunCount{from.Add(time.Duration(c.Step) * step), Outcome(c.Outcome), c.Ticks})
	}
	return counts, since, nil
}

// ErrRunCanceled is the cause (context.Cause) with which the context of a run ends that
// CancelRuns was called for.
var ErrRunCanceled = ledger.ErrCanceled

// CancelRunsOptions selects runs in progress: those of the jobs that match every filter
// that is given. The zero value selects all.
type CancelRunsOptions struct {
	// JobIDs, GroupIDs and SuperGroupIDs select the runs of jobs with one of these
	// ids. Nil means any; an empty slice that is not nil selects nothing.
	JobIDs        []int64
	GroupIDs      []int64
	SuperGroupIDs []int64
	// AbandonAfter is how long a run may go on. One that has not ended by then is
	// recorded with OutcomeAbandoned, and neither its job nor Stop waits for it.
	// Zero means that no run is given up.
	AbandonAfter time.Duration
}

// CancelRuns ends the contexts of runs in progress, with the cause ErrRunCanceled. Only
// a ContextJob takes notice: nothing interrupts a run that goes on. If runs are recorded
// (Config.Runs), it reaches those of every process, within a SyncInterval, and returns
// when that is stored. A run that was canceled is not tried again
// (RunOptions.Attempts).
//
// AbandonAfter lets a job that hangs run again: the run is given up, and its lock is
// freed. The price is that it still goes on, and may do so beside the next run of its
// job, whatever the overlap settings say; that its goroutine, and what it holds, are
// not freed; and that its real end is not recorded.
func (s *SmallBen) CancelRuns(options *CancelRunsOptions) error {
	switch {
	case options == nil:
		return errors.New("cancel runs: nil options")
	case options.AbandonAfter < 0:
		return fmt.Errorf("cancel runs: AbandonAfter is %v", options.AbandonAfter)
	case s.record == nil:
		s.scheduler.cancelRuns(*options)
		return nil
	}
	if err := s.record.open(); err != nil {
		return fmt.Errorf("cancel runs: %w", err)
	}
	query := ledger.Query{JobIDs: options.JobIDs, GroupIDs: options.GroupIDs, SuperGroupIDs: options.SuperGroupIDs}
	if err := s.record.store.CancelRuns(query, options.AbandonAfter); err != nil {
		return err
	}
	if session := s.scheduler.current(); session != nil {
		session.ledger.Notice()
	}
	return nil
}

// cancelRuns cancels the runs of this process that match.
func (s *scheduler) cancelRuns(options CancelRunsOptions) {
	selects := func(ids []int64, id int64) bool { return ids == nil || slices.Contains(ids, id) }
	var canceled []*run
	s.each(func(e *entry) {
		for _, r := range e.runs.running {
			if selects(options.JobIDs, e.id) && selects(options.GroupIDs, r.input.GroupID) && selects(options.SuperGroupIDs, r.input.SuperGroupID) {
				canceled = append(canceled, r)
			}
		}
	})
	for _, r := range canceled {
		r.Cancel(ErrRunCanceled)
		if options.AbandonAfter > 0 {
			time.AfterFunc(options.AbandonAfter, r.Abandon)
		}
	}
}

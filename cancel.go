package smallben

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nbena/smallben/internal/ledger"
)

// ErrRunCanceled is the cause (context.Cause) with which the context of a run ends that
// CancelRuns was called for.
var ErrRunCanceled = errors.New("the run was canceled by CancelRuns")

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
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.Lock()
		for id, state := range shard.states {
			for _, r := range state.running {
				if selects(options.JobIDs, id) && selects(options.GroupIDs, r.input.GroupID) && selects(options.SuperGroupIDs, r.input.SuperGroupID) {
					canceled = append(canceled, r)
				}
			}
		}
		shard.mu.Unlock()
	}
	for _, r := range canceled {
		r.Cancel(ErrRunCanceled)
		if options.AbandonAfter > 0 {
			time.AfterFunc(options.AbandonAfter, r.Abandon)
		}
	}
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

// Abandon implements ledger.Canceler: it takes the run off the books, unless it has
// ended.
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
	result.began(&r.input, start)
	result.Duration, result.Outcome, result.Error = now.Sub(start), OutcomeAbandoned, "it went on after it was canceled"
	if _, ok := s.finish(r, &result); ok {
		s.log.Info("run abandoned", "job", r.input.JobID, "tick", result.Tick)
	}
}

// finish takes a run off the books, and starts the one that waited for it. It returns
// when the run is tried again, or the zero time if it is not, and false if it was
// abandoned before.
func (s *scheduler) finish(r *run, result *runResult) (retry time.Time, ok bool) {
	retry = r.retry(result)
	wanted := !retry.IsZero()
	next, ok := s.end(r, result, &retry)
	if !ok {
		return time.Time{}, false
	}
	if r.grant == nil {
		r.entry.session.release()
	} else {
		finish(r.grant, result, retry)
	}
	r.metrics.Ended(string(result.Outcome), result.Attempt, result.Duration, result.Outcome != OutcomeOK && r.options.Attempts > 1 && !wanted)
	if retry.IsZero() && wanted && r.grant == nil && r.entry.session.stopped.Load() {
		s.logDropped([]int64{r.input.JobID}, 1)
	}
	if next != nil {
		go s.execute(next) // in the same place
	} else {
		s.leave()
	}
	return retry, true
}

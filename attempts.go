package smallben

import (
	"slices"
	"time"
)

// attempts are the further attempts of the runs of one job that wait in memory for
// their time, where runs are not recorded. The zero value has none. They are guarded by
// the mu of the job's shard.
type attempts struct {
	newest  time.Time // the newest tick of the schedule that has started
	waiting []*attempt
}

// attempt is one that waits.
type attempt struct {
	entry *entry
	tick  tick
	due   time.Time
	timer *time.Timer
}

// retry is when the next attempt of a run that has ended is due, or the zero time if
// there is to be none.
func (r *run) retry(result *runResult) time.Time {
	if result.Outcome == OutcomeOK || result.permanent || r.input.Attempt >= r.options.Attempts || r.canceled() {
		return time.Time{}
	}
	now := time.Now()
	if r.grant != nil {
		now = r.entry.session.ledger.Now()
	}
	return now.Add(r.options.backoff(r.input.Attempt))
}

func (r *run) canceled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cause != nil
}

// tryAgain lets the next attempt of a run wait for its time. It returns false if there
// is to be none: the job was paused, deleted or rescheduled, a later tick has started,
// or SmallBen was stopped. It expects the shard's mu.
func (s *scheduler) tryAgain(state *jobState, r *run, due time.Time) bool {
	e := r.entry
	at := tick{at: r.input.ScheduledAt, triggered: r.input.Triggered, tried: int32(r.input.Attempt)}
	if !e.live(at) || state.gone || state.createdAt != e.createdAt {
		return false
	}
	if state.attempts == nil {
		state.attempts = &attempts{}
	}
	if !at.triggered && at.at.Before(state.attempts.newest) {
		return false
	}
	a := &attempt{entry: e, tick: at, due: due}
	a.timer = time.AfterFunc(time.Until(due), func() { s.fireAndExecute(e, at) })
	state.attempts.waiting = append(state.attempts.waiting, a)
	return true
}

// take removes the attempt that a tick is for, and reports whether it still waited.
func (a *attempts) take(at tick) bool {
	if a == nil {
		return false
	}
	i := slices.IndexFunc(a.waiting, func(w *attempt) bool {
		return w.tick.at.Equal(at.at) && w.tick.triggered == at.triggered && w.tick.tried == at.tried
	})
	if i >= 0 {
		a.waiting = slices.Delete(a.waiting, i, i+1)
	}
	return i >= 0
}

// end ends those of the attempts that match, and returns how many.
func (a *attempts) end(match func(w *attempt) bool) (n int) {
	if a == nil {
		return 0
	}
	n = len(a.waiting)
	a.waiting = slices.DeleteFunc(a.waiting, func(w *attempt) bool {
		if !match(w) {
			return false
		}
		w.timer.Stop()
		return true
	})
	return n - len(a.waiting)
}

func anyAttempt(*attempt) bool { return true }

// began notes that a tick of the schedule has started, which ends the attempts of the
// ticks before it. It expects the shard's mu.
func (state *jobState) began(at tick, options *RunOptions) {
	if at.triggered || at.tried > 0 || state.attempts == nil && options.Attempts <= 1 {
		return
	}
	if state.attempts == nil {
		state.attempts = &attempts{}
	}
	if at.at.After(state.attempts.newest) {
		state.attempts.newest = at.at
	}
	state.attempts.end(func(w *attempt) bool { return w.tick.supersededBy(at) })
}

// supersededBy reports whether a tick is an attempt that is not to start any more when
// another tick does.
func (t tick) supersededBy(other tick) bool {
	return t.tried > 0 && !t.triggered && other.tried == 0 && !other.triggered && t.at.Before(other.at)
}

// next returns the attempt of a job that is due first, or the zero value.
func (a *attempts) next(jobID int64) (next Run) {
	if a == nil || len(a.waiting) == 0 {
		return Run{}
	}
	first := slices.MinFunc(a.waiting, func(a, b *attempt) int { return a.due.Compare(b.due) })
	return Run{JobID: jobID, Tick: first.tick.at, Triggered: first.tick.triggered, Attempt: first.tick.attempt(), GroupID: first.entry.groupID,
		SuperGroupID: first.entry.superGroupID, Outcome: OutcomeWaiting, Due: first.due.In(first.tick.at.Location())}
}

// dropAttempts ends all attempts that wait, and logs that: SmallBen was stopped.
func (s *scheduler) dropAttempts() {
	count := 0
	ids := s.ran(func(_ int64, state *jobState) bool {
		n := state.attempts.end(anyAttempt)
		count += n
		return n > 0
	})
	if count > 0 {
		s.logDropped(ids, count)
	}
}

func (s *scheduler) logDropped(ids []int64, count int) {
	s.log.Info("attempts dropped: SmallBen was stopped", "count", count, "jobs", idText(ids))
}

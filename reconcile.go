package smallben

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// unsettledWrite is a write of which it is not known whether it happened.
type unsettledWrite struct {
	ids []int64
	// settled reports whether the database has decided. Nil means that it has.
	settled func() (bool, error)
}

// failed follows a write of the repository that returned err. Most
// errors mean that nothing changed. After the others the rows are read again:
// at once if the database said that ids were missing, and in the background if
// it did not say what happened.
func (s *SmallBen) failed(c *call, err error, ids []int64) {
	unknown := errors.Is(err, ErrOutcomeUnknown)
	write := unsettledWrite{ids: ids}
	var outcome interface{ Settled() (bool, error) }
	if unknown && errors.As(err, &outcome) {
		write.settled = outcome.Settled
	} else if unknown {
		s.watch(ids)
	}
	switch {
	case unknown:
		s.mu.Lock()
		s.unsettled = append(s.unsettled, write)
		s.mu.Unlock()
		s.wakeReconciliation()
	case s.isMismatch(err):
		s.reread(c, write)
	}
}

// reread reads the rows of a write again, and leaves that to the background if
// the database does not answer.
func (s *SmallBen) reread(c *call, write unsettledWrite) {
	s.mu.Lock()
	s.unsettled = append(s.unsettled, write)
	s.mu.Unlock()
	if s.settle(c, nil) != nil {
		s.wakeReconciliation()
	}
}

// A COMMIT of which nobody can tell may yet happen: the network or the server may
// hold it up for a while. Its rows are read again every watchEvery until watchFor
// has passed.
const (
	watchEvery = 2 * time.Second
	watchFor   = 5 * time.Minute
)

// watchedWrite is a write that may yet happen, until an instant.
type watchedWrite struct {
	ids   []int64
	until time.Time
}

func (s *SmallBen) watch(ids []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watched = append(s.watched, watchedWrite{ids, time.Now().Add(watchFor)})
}

// lookAtWatched reads the rows of watched writes again, and reports whether any are
// left.
func (s *SmallBen) lookAtWatched() bool {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	s.mu.RLock()
	watched := s.watched
	s.mu.RUnlock()
	for _, write := range watched {
		// A database that does not answer is asked the next time.
		_, _ = s.settleWrite(s.background(), unsettledWrite{ids: write.ids})
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watched = slices.DeleteFunc(slices.Clone(s.watched), func(write watchedWrite) bool { return now.After(write.until) })
	return len(s.watched) > 0
}

func (s *SmallBen) wakeReconciliation() {
	select {
	case s.reconcile <- struct{}{}:
	default:
	}
}

// settle reads the rows of unsettled writes again and makes the scheduler agree
// with them. It is called at the start of each change, with the ids that the
// change is about: an error refuses the change.
func (s *SmallBen) settle(c *call, ids []int64) error {
	s.mu.RLock()
	writes := s.unsettled
	s.mu.RUnlock()
	if len(writes) == 0 {
		return nil
	}
	var remaining []unsettledWrite
	var failure error
	for _, write := range writes {
		if failure == nil {
			var settled bool
			if settled, failure = s.settleWrite(c, write); settled {
				continue
			}
		}
		remaining = append(remaining, write)
	}
	s.mu.Lock()
	s.unsettled = remaining
	s.mu.Unlock()
	if failure != nil {
		return fmt.Errorf("learn the outcome of an earlier write: %w", failure)
	}
	return s.refuseUnsettled(ids)
}

func (s *SmallBen) settleWrite(c *call, write unsettledWrite) (bool, error) {
	if write.settled != nil {
		if settled, err := c.ask(write.settled); !settled {
			return false, err
		}
	}
	if s.record != nil {
		err := s.follow(c, 0, write.ids)
		return err == nil, err
	}
	rows, err := s.find(c.repository, ListJobsOptions{JobIDs: write.ids})
	if err != nil && !s.isMismatch(err) {
		return false, err
	}
	err = s.meet(c, rows, write.ids)
	return err == nil, err
}

// meet makes the scheduler agree with rows, which are those of the ids that exist.
func (s *SmallBen) meet(c *call, rows []RawJob, ids []int64) error {
	jobs, undecodable := decodeRows(rows)
	gone := idSet(ids)
	for i := range jobs {
		delete(gone, jobs[i].rawJob.ID)
	}
	s.mu.Lock()
	news := slices.DeleteFunc(slices.Clone(undecodable), func(err error) bool {
		_, known := s.undecodable[jobID(err)]
		return known
	})
	missing := slices.Collect(maps.Keys(gone))
	s.forgetLocked(missing)
	s.scheduler.forget(missing)
	for _, err := range undecodable {
		s.undecodable[jobID(err)] = struct{}{}
	}
	if s.record != nil {
		s.record.holdBackLocked(rows, undecodable)
	}
	s.mu.Unlock()
	for _, err := range news {
		s.log.Error(err, "row held back", "job", jobID(err))
	}
	return s.adopt(c, jobs)
}

// refuseUnsettled returns an error if one of the ids has an unsettled write.
func (s *SmallBen) refuseUnsettled(ids []int64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.unsettled) == 0 {
		return nil
	}
	named := idSet(ids)
	for _, write := range s.unsettled {
		for _, id := range write.ids {
			if _, ok := named[id]; ok {
				return jobErrorf(id, "the outcome of an earlier write is not known yet: try again")
			}
		}
	}
	return nil
}

// reconcileUntil settles writes in the background as soon as the database
// answers.
func (s *SmallBen) reconcileUntil(stop <-chan struct{}) {
	const shortest, longest = 100 * time.Millisecond, 5 * time.Second
	var watch <-chan time.Time // nil: no write is watched
	for {
		select {
		case <-stop:
			return
		case <-watch:
			watch = nil
			if s.lookAtWatched() {
				watch = time.After(watchEvery)
			}
			continue
		case <-s.reconcile:
		}
		watch = time.After(watchEvery)
		for delay := shortest; !s.reconciled(); delay = min(2*delay, longest) {
			select {
			case <-stop:
				return
			case <-time.After(delay):
			}
		}
	}
}

// reconciled tries once. It asks the database before it takes the lock, so that
// changes do not queue behind one that does not answer.
func (s *SmallBen) reconciled() bool {
	s.mu.RLock()
	writes := s.unsettled
	s.mu.RUnlock()
	for _, write := range writes {
		if write.settled == nil {
			continue
		}
		if settled, err := write.settled(); err != nil || !settled {
			return false
		}
	}
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	return s.settle(s.background(), nil) == nil && s.count().unsettled == 0
}

// adopt makes the scheduler agree with rows that another process may have
// written: one that is not paused and has no entry here gets one.
func (s *SmallBen) adopt(c *call, jobs []JobWithSchedule) error {
	unscheduled, others := s.scheduler.unscheduled(jobs)
	s.mu.Lock()
	s.projectLocked(others)
	s.mu.Unlock()
	if len(unscheduled) == 0 {
		return nil
	}
	renumbered := s.scheduler.renumber(unscheduled, false)
	if s.record == nil {
		if err := c.repository.SetCronId(renumbered); err != nil {
			return fmt.Errorf("store cron ids: %w", err) // the next look at these rows tries again
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.projectLocked(unscheduled)
	return nil
}

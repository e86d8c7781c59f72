package smallben

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// unsettledWrite is a write whose rows are to be read again: memory does not know yet what
// became of it.
type unsettledWrite struct {
	ids []int64

	// ended reports whether the transaction of the application that made the write has
	// ended, as far as can be told without the database. It was made at began. Nil means
	// that SmallBen made the write itself.
	ended func() bool
	began time.Time

	// settled asks the database whether what the rows hold is the outcome. Nil means that
	// it is, or that nobody can be asked.
	settled func() (bool, error)
	answer  atomic.Bool // settled has said that it is

	// untold says that nobody can be asked: the network or the server may hold a COMMIT up
	// for a while. The rows are read again every watchEvery then, for watchFor.
	untold bool

	// SmallBen.mu guards the fields below.
	until time.Time     // when watchFor has passed; zero until the rows have been read
	next  time.Time     // when the background looks at it again
	delay time.Duration // from the last look of the background to next
}

const (
	watchEvery = 2 * time.Second
	watchFor   = 5 * time.Minute
)

// refusesLocked reports whether the jobs of the write may not be changed until their
// rows have been read again.
func (w *unsettledWrite) refusesLocked() bool { return w.ended == nil && w.until.IsZero() }

// isSettled asks the database, unless it has answered.
func (w *unsettledWrite) isSettled(c *call) (bool, error) {
	if w.settled == nil || w.answer.Load() {
		return true, nil
	}
	err := c.await(func() error {
		settled, err := w.settled()
		if settled {
			w.answer.Store(true)
		}
		return err
	})
	return w.answer.Load(), err
}

// writeFailed follows a write of the repository that returned err. Most
// errors mean that nothing changed. After the others the rows are read again:
// at once if the database said that ids were missing, and in the background if
// it did not say what happened.
func (s *SmallBen) writeFailed(c *call, err error, ids []int64) {
	if !errors.Is(err, ErrOutcomeUnknown) {
		if s.isMismatch(err) {
			s.reread(c, ids)
		}
		return
	}
	write := &unsettledWrite{ids: ids, untold: true}
	var outcome interface{ Settled() (bool, error) }
	if errors.As(err, &outcome) {
		write.settled, write.untold = outcome.Settled, false
	}
	s.addUnsettled(write)
}

// reread reads rows again, and leaves that to the background if the database does not
// answer.
func (s *SmallBen) reread(c *call, ids []int64) {
	if len(ids) > 0 && s.readAgain(c, ids) != nil {
		s.addUnsettled(&unsettledWrite{ids: ids})
	}
}

// addUnsettled leaves a write to the background.
func (s *SmallBen) addUnsettled(write *unsettledWrite) {
	s.mu.Lock()
	if !s.started() {
		// Start reads what the application has committed.
		s.unsettled = slices.DeleteFunc(s.unsettled, func(other *unsettledWrite) bool {
			return other.ended != nil && other.ended()
		})
	}
	s.unsettled = append(s.unsettled, write)
	s.mu.Unlock()
	select {
	case s.reconcile <- struct{}{}:
	default:
	}
}

// unsettledWrites returns those that match, which is called with mu.
func (s *SmallBen) unsettledWrites(match func(w *unsettledWrite) bool) (writes []*unsettledWrite) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, write := range s.unsettled {
		if match(write) {
			writes = append(writes, write)
		}
	}
	return writes
}

// refusingLocked counts the writes that refuse changes of their jobs.
func (s *SmallBen) refusingLocked() (n int) {
	for _, write := range s.unsettled {
		if write.refusesLocked() {
			n++
		}
	}
	return n
}

// settle reads the rows of the writes that refuse changes again. It is called at the
// start of each change, with the ids that the change is about: an error refuses the
// change.
func (s *SmallBen) settle(c *call, ids []int64) error {
	for _, write := range s.unsettledWrites((*unsettledWrite).refusesLocked) {
		settled, err := write.isSettled(c)
		if settled {
			err = s.readUnsettled(c, write)
		}
		if err != nil {
			return fmt.Errorf("learn the outcome of an earlier write: %w", err)
		}
	}
	return s.refuseUnsettled(ids)
}

// refuseUnsettled returns an error if one of the ids has a write that refuses changes.
func (s *SmallBen) refuseUnsettled(ids []int64) error {
	writes := s.unsettledWrites((*unsettledWrite).refusesLocked)
	if len(writes) == 0 {
		return nil
	}
	named := idSet(ids)
	for _, write := range writes {
		for _, id := range write.ids {
			if _, ok := named[id]; ok {
				return jobErrorf(id, "the outcome of an earlier write is not known yet: try again")
			}
		}
	}
	return nil
}

// readUnsettled reads the rows of a write again whose outcome they hold, as far as
// anybody can tell. It expects changeMu.
func (s *SmallBen) readUnsettled(c *call, write *unsettledWrite) error {
	now := time.Now()
	unscheduled := slices.DeleteFunc(slices.Clone(write.ids), s.scheduler.has)
	if err := s.readAgain(c, write.ids); err != nil {
		return err
	}
	s.mu.Lock()
	first := write.until.IsZero()
	if first {
		write.until = now.Add(watchFor)
	}
	if !write.untold || now.After(write.until) {
		s.unsettled = slices.DeleteFunc(s.unsettled, func(other *unsettledWrite) bool { return other == write })
	}
	s.mu.Unlock()
	if first && write.ended != nil {
		s.scheduler.catchUp(unscheduled, write.began, now)
	}
	return nil
}

// readAgain makes memory agree with the rows of ids. It expects changeMu.
func (s *SmallBen) readAgain(c *call, ids []int64) error {
	if s.record != nil {
		return s.follow(c, 0, ids)
	}
	rows, err := s.matching(c.repository, ListJobsOptions{JobIDs: ids})
	if err != nil {
		return err
	}
	return s.meet(c, rows, ids)
}

// reconcileUntil settles writes in the background as soon as the database answers.
func (s *SmallBen) reconcileUntil(stop <-chan struct{}) {
	for {
		now := time.Now()
		for _, write := range s.unsettledWrites(func(w *unsettledWrite) bool { return !now.Before(w.next) }) {
			// A database that does not answer is asked the next time.
			_ = s.reconcileWrite(write)
		}
		var again <-chan time.Time
		if next, ok := s.nextLook(); ok {
			again = time.After(time.Until(next))
		}
		select {
		case <-stop:
			return
		case <-s.reconcile:
		case <-again:
		}
	}
}

// nextLook is when the background looks at a write again, if there is one.
func (s *SmallBen) nextLook() (next time.Time, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, write := range s.unsettled {
		if !ok || write.next.Before(next) {
			next, ok = write.next, true
		}
	}
	return next, ok
}

// reconcileWrite looks once what became of a write, and at its rows if that is known. It
// asks the database before it waits for its turn, so that changes do not queue behind
// one that does not answer.
func (s *SmallBen) reconcileWrite(write *unsettledWrite) (err error) {
	const shortest, longest = 100 * time.Millisecond, 5 * time.Second
	var delay time.Duration // zero: twice the last one
	if write.ended != nil && !write.ended() {
		delay = shortest
	} else {
		var settled bool
		if settled, err = write.isSettled(s.background()); settled {
			err = s.inTurn(context.Background(), func(c *call) error { return s.readUnsettled(c, write) })
		}
		if settled && err == nil {
			delay = watchEvery
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if delay == 0 {
		delay = min(max(2*write.delay, shortest), longest)
	}
	write.next, write.delay = time.Now().Add(delay), delay
	return err
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
	s.forgetLocked(slices.Collect(maps.Keys(gone)))
	maps.Copy(s.undecodable, s.record.undecodable(rows, undecodable))
	s.mu.Unlock()
	for _, err := range news {
		s.log.Error(err, "row held back", "job", jobID(err))
	}
	return s.adopt(c, jobs)
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
	renumbered := s.scheduler.renumber(unscheduled)
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

package ledger

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// sweepBatch is how many jobs are accounted for in one transaction.
	sweepBatch = 500
	// pruneBatch is how many runs are pruned in one.
	pruneBatch = 5000
	// maxPostponed is how often in a row a sweep is put off.
	maxPostponed = 8
)

// sweep does what one process does for all, the leader: it accounts for ticks and
// prunes. What is to run it leaves in the store as waiting runs. Any process expires
// others.
type sweep struct {
	*common
	trouble  trouble
	expiring sync.Mutex           // held while processes expire
	last     atomic.Pointer[news] // what the last heartbeat brought
	looked   map[int64]lookedAt   // what run knows of watermarks
}

// lookedAt is when a job is to be looked at again, as long as it has the revision:
// at its next tick, in Unix seconds.
type lookedAt struct{ revision, next int64 }

func newSweep(c *common) *sweep {
	s := &sweep{common: c, looked: make(map[int64]lookedAt), trouble: c.newTrouble("sweep")}
	s.last.Store(&news{})
	return s
}

// heard notes who is alive and who leads.
func (s *sweep) heard(n news) { s.last.Store(&n) }

// leftToOthers reports whether another live process is to do what this one would, since it
// decodes every job, and this one does not: it knows how to treat each job.
func (s *sweep) leftToOthers() bool {
	return s.host.Partial() && slices.ContainsFunc(s.last.Load().live, func(m Member) bool { return !m.Partial && m.Process != s.process })
}

// run sweeps from time to time. After a start, and after a while in which the store did
// not answer or this process stood still, it waits until everything that was missed is
// old enough, so that one sweep finds all of it; not for ever, if that happens again and
// again.
func (s *sweep) run() {
	oldEnough := s.config.Timing.MissedAfter + 2*s.config.SyncInterval
	timer := time.NewTimer(oldEnough)
	defer timer.Stop()
	for postponed := 0; s.next(nil, timer.C); {
		if s.clock.silent() {
			timer.Reset(oldEnough)
			continue
		}
		if wait := oldEnough - s.clock.sinceResumed(); wait > 0 && postponed < maxPostponed {
			postponed++
			timer.Reset(wait)
			continue
		}
		if err := s.sweep(); err == nil {
			s.trouble.end()
		} else if !s.isStopped() {
			s.trouble.begin(err)
		}
		postponed = 0
		timer.Reset(s.config.Timing.SweepEvery)
	}
}

func (s *sweep) sweep() error {
	leads, err := s.lead()
	if err != nil || !leads {
		return err
	}
	// A process that left may have had no time to record the ends of its runs.
	expireLeft := func() error { return s.expireOnce(nil) }
	for _, step := range []func() error{expireLeft, s.store.Compare, s.accountClosed, s.accountJobs, s.prune} {
		if s.isStopped() {
			return nil
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// lead reports whether this process leads, and makes it the leader if there is none.
func (s *sweep) lead() (leads bool, err error) {
	if s.leftToOthers() {
		return false, nil
	}
	last, partial := s.last.Load(), s.host.Partial()
	if last.Leader == s.process {
		return true, nil
	}
	if slices.ContainsFunc(last.Members, func(m Member) bool { return m.Process == last.Leader && (partial || !m.Partial) }) {
		return false, nil
	}
	_, err = s.ChangeIn(s.store, func(tx Tx) (err error) {
		leads, err = tx.Lead(s.process)
		return err
	})
	if leads {
		// What an earlier leader knew is not known here.
		clear(s.looked)
	}
	return leads && err == nil, err
}

// prune deletes old runs. It comes after all closed spans are accounted for.
func (s *sweep) prune() error {
	if s.config.Retention < 0 {
		return nil
	}
	before := s.clock.now().Add(-s.config.Retention)
	for !s.isStopped() {
		n, err := s.store.Prune(before, pruneBatch)
		if err != nil || n < pruneBatch {
			return err
		}
	}
	return nil
}

// accountClosed accounts for closed spans.
func (s *sweep) accountClosed() error {
	for !s.isStopped() {
		spans, err := s.store.Closed(sweepBatch)
		if err != nil || len(spans) == 0 {
			return err
		}
		batch := make([]account, len(spans))
		for i, span := range spans {
			schedule := s.host.Schedule(span.Expression, span.CreatedAt)
			job := Job{ID: span.JobID, GroupID: span.GroupID, SuperGroupID: span.SuperGroupID, CreatedAt: span.CreatedAt.UnixMicro(), Schedule: schedule}
			if now, ok := s.host.Look(span.JobID, false); ok && span.MakeUp && now.CreatedAt == job.CreatedAt {
				job.Policy = now.Policy
			}
			batch[i] = account{Job: job, Span: span.Span, closed: &spans[i]}
		}
		if _, err := s.account(batch); err != nil {
			return err
		}
	}
	return nil
}

// accountJobs accounts for the jobs that have a tick to be accounted for, some at a
// time.
func (s *sweep) accountJobs() error {
	until := s.clock.now().Add(-s.config.Timing.MissedAfter)
	due, err := s.dueJobs(until)
	if err != nil {
		return err
	}
	for len(due) > 0 && !s.isStopped() {
		jobs := due[:min(sweepBatch, len(due))]
		due = due[len(jobs):]
		batch, err := s.accountsOf(jobs, until)
		if err != nil {
			return err
		}
		left, err := s.account(batch)
		if err != nil {
			left = batch
		}
		for _, a := range left {
			delete(s.looked, a.ID)
			if a.cut {
				due = append(due, a.Job)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// accountsOf returns what is to be accounted for of jobs, and notes when each of them is
// to be looked at again.
func (s *sweep) accountsOf(jobs []Job, until time.Time) (batch []account, err error) {
	ids := make([]int64, len(jobs))
	byID := make(map[int64]Job, len(jobs))
	for i, job := range jobs {
		ids[i], byID[job.ID] = job.ID, job
	}
	marks, err := s.store.Watermarks(ids)
	for _, mark := range marks {
		job := byID[mark.JobID]
		if job.Revision != mark.Revision {
			continue // the next sweep knows it as it is
		}
		after := until
		if mark.Until.Before(until) {
			batch = append(batch, account{Job: job, Span: Span{JobID: job.ID, After: mark.Until, Until: until}})
		} else {
			after = mark.Until
		}
		s.looked[job.ID] = lookedAt{job.Revision, nextTick(job.Schedule, after.In(s.config.Location))}
	}
	return batch, err
}

// nextTick is in Unix seconds, and 0 if there is none.
func nextTick(schedule Schedule, after time.Time) int64 {
	if next := schedule.Next(after); !next.IsZero() {
		return next.Unix()
	}
	return 0
}

// dueJobs returns the jobs that have a tick to be accounted for, in order. Jobs whose
// revision is not known are read, and looked at in the next sweep.
func (s *sweep) dueJobs(until time.Time) (due []Job, err error) {
	var unknown []int64
	jobs := s.host.Jobs()
	present := make(map[int64]struct{}, len(jobs))
	for _, job := range jobs {
		present[job.ID] = struct{}{}
		if job.Revision == 0 {
			unknown = append(unknown, job.ID)
			continue
		}
		known, ok := s.looked[job.ID]
		if !ok || known.revision != job.Revision || known.next > 0 && known.next <= until.Unix() {
			due = append(due, job)
		}
	}
	maps.DeleteFunc(s.looked, func(id int64, _ lookedAt) bool {
		_, ok := present[id]
		return !ok
	})
	slices.SortFunc(due, func(a, b Job) int { return cmp.Compare(a.ID, b.ID) })
	if len(unknown) > 0 {
		err = s.host.Follow(unknown)
	}
	return due, err
}

// expire removes processes that are dead from the record, and lets run again what
// they ran, and what others ran that left, if that is wanted.
func (s *sweep) expire(dead []Member) {
	if err := s.expireOnce(dead); err != nil {
		s.trouble.begin(err)
	}
}

func (s *sweep) expireOnce(dead []Member) error {
	if s.leftToOthers() {
		return nil // one of them finds them too
	}
	if !s.expiring.TryLock() {
		return nil // the next heartbeat finds them again
	}
	defer s.expiring.Unlock()
	var lost, again []Run
	_, err := s.ChangeIn(s.store, func(tx Tx) (err error) {
		if lost, err = tx.Expire(dead); err != nil || len(lost) == 0 {
			return err
		}
		again, err = s.rerun(tx, lost)
		return err
	})
	if err != nil || len(lost) == 0 {
		return err
	}
	s.config.Metrics.Count(RunsLost, len(lost))
	names := make(map[string]struct{})
	for i := range lost {
		names[lost[i].Process] = struct{}{}
	}
	s.config.Log.Info("runs lost", "count", len(lost), "processes", slices.Sorted(maps.Keys(names)), "runAgain", len(again))
	if len(again) > 0 {
		s.wake.heartbeat.set() // which learns that they wait
	}
	return nil
}

// rerun records the next attempts of lost runs as waiting. The runs of a job that is
// gone are not run again, nor, unless they were triggered, those of a paused one, nor, if
// the job has attempts, those before a tick that has started.
func (s *sweep) rerun(tx Tx, lost []Run) (again []Run, err error) {
	lost = slices.DeleteFunc(slices.Clone(lost), func(run Run) bool { return !s.runAgain(&run) })
	if len(lost) == 0 {
		return nil, nil
	}
	ids := make([]int64, len(lost))
	for i := range lost {
		ids[i] = lost[i].JobID
	}
	marks, err := lockJobs(tx, ids)
	if err != nil {
		return nil, err
	}
	superseded, err := s.superseded(tx, lost)
	if err != nil {
		return nil, err
	}
	for i, run := range lost {
		mark, exists := marks[run.JobID]
		if !exists || superseded[i] || run.Tick.Before(mark.CreatedAt) || mark.Paused && !run.Triggered {
			continue
		}
		run.Attempt++
		run.Process, run.Start, run.End, run.Outcome, run.Error = "", time.Time{}, time.Time{}, Waiting, ""
		run.Due = tx.Now()
		again = append(again, run)
	}
	if len(again) == 0 {
		return nil, nil
	}
	return again, tx.Record(nil, again)
}

// superseded tells, by their indexes, the lost runs of jobs with attempts before a tick
// that has started or waits.
func (s *sweep) superseded(tx Tx, lost []Run) (map[int]bool, error) {
	var keys []Key
	var indexes []int
	for i := range lost {
		if job, ok := s.host.Look(lost[i].JobID, false); ok && job.Attempts > 1 && !lost[i].Triggered {
			keys, indexes = append(keys, lost[i].Key), append(indexes, i)
		}
	}
	found, err := tx.Superseded(keys)
	superseded := make(map[int]bool, len(found))
	for _, n := range found {
		superseded[indexes[n]] = true
	}
	return superseded, err
}

// runAgain reports whether a lost run is to be tried again, as far as its job exists.
// Where this process cannot know that, whoever claims the attempt decides.
func (s *sweep) runAgain(run *Run) bool {
	if s.config.RerunLost && run.Attempt == 1 {
		return true
	}
	job, ok := s.host.Look(run.JobID, run.Triggered)
	return !ok || job.Attempts == 0 || run.Attempt < job.Attempts
}

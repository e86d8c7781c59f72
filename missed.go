package smallben

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/robfig/cron/v3"
)

const (
	// maxTicks bounds how many ticks of a job are looked at one by one. Beyond it
	// a stretch that was missed is recorded with this count.
	maxTicks = 10_000
	// maxCatchUp bounds how many missed ticks of a job MissedRunAll runs.
	maxCatchUp = 100
	// maxCatchingUp bounds how many runs of a process make up for missed ones at a
	// time, and catchUpWait how long a sweep waits for them.
	maxCatchingUp = 500
	catchUpWait   = 30 * time.Second
	// maxPostponed is how often a job with missed ticks waits for the next sweep,
	// because it is still running or because too much else makes up for missed
	// ticks, before it is left at the record.
	maxPostponed = 3
	// sweepBatch is how many jobs are accounted for in one transaction.
	sweepBatch = 500
	// pruneBatch is how many runs are pruned in one.
	pruneBatch = 5000
)

// isTick reports whether the instant is a tick of the schedule.
func isTick(schedule cron.Schedule, at time.Time) bool {
	return schedule.Next(at.Add(-time.Second)).Equal(at)
}

// ticksIn returns the ticks after an instant up to another, at most limit of them,
// and whether there are more.
func ticksIn(schedule cron.Schedule, after, until time.Time, limit int) (ticks []time.Time, more bool) {
	for at := schedule.Next(after); !at.IsZero() && !at.After(until); at = schedule.Next(at) {
		if len(ticks) == limit {
			return ticks, true
		}
		ticks = append(ticks, at)
	}
	return ticks, false
}

// lastTicks returns the last ticks after an instant up to another, n at most, in
// order, without walking through all of them.
func lastTicks(schedule cron.Schedule, after, until time.Time, n int) (ticks []time.Time) {
	for range n {
		// Next does not fall as its argument rises: look for the last second
		// whose next tick is still within.
		low, high := after.Unix(), until.Unix() // Next(low) is within or there is none, Next(high) is beyond
		within := func(second int64) bool {
			next := schedule.Next(time.Unix(second, 0).In(after.Location()))
			return !next.IsZero() && !next.After(until)
		}
		if next := schedule.Next(after); next.IsZero() || next.After(until) {
			break
		}
		for high-low > 1 {
			if middle := low + (high-low)/2; within(middle) {
				low = middle
			} else {
				high = middle
			}
		}
		tick := schedule.Next(time.Unix(low, 0).In(after.Location()))
		ticks = append(ticks, tick)
		until = tick.Add(-time.Second)
	}
	slices.Reverse(ticks)
	return ticks
}

// ticker is a job as its account is seen.
type ticker struct {
	id, groupID, superGroupID int64
	createdAt                 int64 // as target.createdAt
	revision                  int64 // as this process knows it
	schedule                  cron.Schedule
	postponed                 int  // how often it was, one sweep after another
	closing                   bool // it is about to change: everything is recorded now, whatever its revision
}

// missedTicks are ticks of a job that nobody ran.
type missedTicks struct {
	ticker
	account Account     // as it is from now on
	ticks   []time.Time // that were due, the missed ones and the others
	missed  []int       // which of them were missed
	// tail is nil, or the newest ticks after those of ticks: more than are ever
	// run. All after those of ticks were missed then.
	tail []time.Time
}

// stretch is some ticks of a job, one after another.
type stretch struct {
	first, last time.Time
	count       int
}

// accounting is what became of accounts.
type accounting struct {
	claims    []*claim // to be started when the transaction is committed, and given up if it is not
	missed    int      // ticks
	postponed []int64  // jobs that are to be looked at again
	left      []ticker // jobs for which there was no time
}

// account finds out which ticks of jobs nobody ran, up to an instant, records
// them, and claims those that the policy wants to be run by a recording.
func (r *record) account(tx RecordTx, by *recording, jobs []ticker, until time.Time, policy MissedPolicy) (done accounting, err error) {
	slices.SortFunc(jobs, func(a, b ticker) int { return cmp.Compare(a.id, b.id) })
	found, done, err := r.unrecorded(tx, jobs, until)
	if err != nil {
		return accounting{}, err
	}
	if by == nil {
		policy = MissedSkip
	}
	exclusive := r.scheduler.overlap == overlapSkip
	var accounts []Account
	var runs []Run
	for i := range found {
		m := &found[i]
		stretches, newest := m.split(policy)
		chain, err := by.claimAll(m, newest, exclusive)
		if errors.Is(err, errNotNow) {
			if !m.closing && m.postponed < maxPostponed {
				done.postponed = append(done.postponed, m.id)
				continue
			}
			// There is no later for what is about to change, or never ends.
			stretches, newest = m.split(MissedSkip)
		} else if err != nil {
			// The next leader finds them again.
			dropAll(done.claims)
			return accounting{}, err
		}
		count := len(newest)
		for _, s := range stretches {
			count += s.count
			runs = append(runs, Run{RunKey: RunKey{JobID: m.id, Tick: s.last.UTC(), Attempt: 1}, GroupID: m.groupID, SuperGroupID: m.superGroupID,
				Process: by.name(), Start: tx.Now(), End: tx.Now(), Outcome: OutcomeMissed, Missed: s.count, FirstTick: s.first.UTC()})
		}
		if len(chain) > 0 {
			chain[0].missed = count - len(chain) + 1
			done.claims = append(done.claims, chain[0])
		}
		runs = append(runs, link(chain, exclusive, tx.Now())...)
		accounts = append(accounts, m.account)
		done.missed += count
		if m.account.Until.Before(until) {
			done.postponed = append(done.postponed, m.id) // its account was cut
		}
	}
	if len(accounts) == 0 {
		return done, nil
	}
	if err := tx.Record(accounts, runs); err != nil {
		dropAll(done.claims)
		return accounting{}, err
	}
	return done, nil
}

// errNotNow is why missed ticks cannot be run yet: their job is still running, one
// of them is being claimed, or too much else makes up for missed ticks.
var errNotNow = errors.New("missed ticks cannot be run now")

// claimAll makes claims of missed ticks of a job. No ticks need no recording.
func (r *recording) claimAll(m *missedTicks, ticks []time.Time, exclusive bool) (chain []*claim, err error) {
	if len(ticks) > 0 && (exclusive && m.account.Busy || r.catchingUp.Load() > maxCatchingUp) {
		return nil, errNotNow
	}
	for _, at := range ticks {
		c, err := r.newClaim(RunKey{JobID: m.id, Tick: at.UTC(), Attempt: 1}, m.createdAt)
		if errors.Is(err, errAsked) {
			err = errNotNow
		}
		if err != nil {
			dropAll(chain)
			return nil, err
		}
		c.GroupID, c.SuperGroupID, c.missed = m.groupID, m.superGroupID, 1
		chain = append(chain, c)
	}
	return chain, nil
}

// name is the process, or "" for changes that come before Start.
func (r *recording) name() string {
	if r == nil {
		return ""
	}
	return r.process
}

// split tells the missed ticks that the policy runs, oldest first, from the
// others, which are the older ones.
func (m *missedTicks) split(policy MissedPolicy) (stretches []stretch, newest []time.Time) {
	most := map[MissedPolicy]int{MissedSkip: 0, MissedRunOnce: 1, MissedRunAll: maxCatchUp}[policy]
	skipped := m.missed
	if m.tail == nil {
		skipped = m.missed[:len(m.missed)-min(most, len(m.missed))]
		for _, i := range m.missed[len(skipped):] {
			newest = append(newest, m.ticks[i])
		}
	}
	for n, i := range skipped {
		if n == 0 || skipped[n-1] != i-1 {
			stretches = append(stretches, stretch{first: m.ticks[i]})
		}
		s := &stretches[len(stretches)-1]
		s.last = m.ticks[i]
		s.count++
	}
	if m.tail == nil {
		return stretches, newest
	}
	last := len(m.ticks) - 1
	if len(skipped) == 0 || skipped[len(skipped)-1] != last {
		stretches = append(stretches, stretch{first: m.schedule.Next(m.ticks[last])})
	}
	s := &stretches[len(stretches)-1]
	s.count = maxTicks
	s.last = m.tail[len(m.tail)-1-most]
	return stretches, m.tail[len(m.tail)-most:]
}

// link makes claims of one job run one after another, and returns what is recorded
// of them. The last one holds the running key for all.
func link(chain []*claim, exclusive bool, now time.Time) []Run {
	runs := make([]Run, len(chain))
	for i, c := range chain {
		c.Exclusive = exclusive && i == len(chain)-1
		c.catchUp = true
		runs[i] = Run{RunKey: c.RunKey, GroupID: c.GroupID, SuperGroupID: c.SuperGroupID, Process: c.recording.process,
			Start: now, Outcome: OutcomeRunning, Missed: c.missed, Exclusive: c.Exclusive}
	}
	if len(chain) > 0 {
		chain[0].rest = chain[1:]
		chain[0].recording.catchingUp.Add(int64(len(chain)))
	}
	return runs
}

// dropAll drops claims and those that were to follow them.
func dropAll(claims []*claim) {
	for _, c := range claims {
		for _, next := range c.rest {
			next.drop()
		}
		c.drop()
	}
}

// unrecorded compares the ticks of jobs with the record. What it returns has new
// accounts, and may have missed nothing. Jobs that this process does not know as
// they are are postponed, and left are those after very many ticks: others wait for
// the transaction.
func (r *record) unrecorded(tx RecordTx, jobs []ticker, until time.Time) (found []missedTicks, done accounting, err error) {
	ids := make([]int64, len(jobs))
	byID := make(map[int64]ticker, len(jobs))
	for i, job := range jobs {
		ids[i], byID[job.id] = job.id, job
	}
	accounts, err := tx.Accounts(ids)
	if err != nil {
		return nil, done, err
	}
	location := r.scheduler.location
	walked := 0
	var spans []TickSpan
	for _, account := range accounts {
		m := missedTicks{ticker: byID[account.JobID], account: account}
		if !m.closing && m.revision != account.Revision {
			done.postponed = append(done.postponed, m.id)
			continue
		}
		if !m.closing && !until.After(account.Until) {
			continue
		}
		if !m.closing && walked > 10*maxTicks {
			done.left = append(done.left, m.ticker)
			continue
		}
		var more bool
		m.ticks, more = ticksIn(m.schedule, account.Until.In(location), until.In(location), maxTicks)
		walked += len(m.ticks)
		if len(m.ticks) == 0 && !m.closing {
			continue
		}
		// Before a change of the expression the account moves on in any case: the
		// new one has other ticks.
		m.account.Until = until
		if more {
			m.tail = []time.Time{}
		}
		if len(m.ticks) > 0 {
			spans = append(spans, TickSpan{JobID: m.id, After: account.Until, Until: until})
		}
		found = append(found, m)
	}
	var recorded [][]time.Time
	if len(spans) > 0 {
		if recorded, err = tx.RecordedTicks(spans); err != nil {
			return nil, done, err
		}
	}
	for i := range found {
		if len(found[i].ticks) > 0 {
			found[i].compare(recorded[0])
			recorded = recorded[1:]
		}
	}
	return found, done, nil
}

// compare notes the ticks that are not recorded.
func (m *missedTicks) compare(recorded []time.Time) {
	if m.tail != nil {
		m.extend(recorded)
	}
	known := make(map[int64]struct{}, len(recorded))
	for _, at := range recorded {
		known[at.Unix()] = struct{}{}
	}
	for i, at := range m.ticks {
		if _, ok := known[at.Unix()]; !ok {
			m.missed = append(m.missed, i)
		}
	}
}

// extend finds the newest ticks after those that were looked at. The account ends
// where the record goes on.
func (m *missedTicks) extend(recorded []time.Time) {
	last := m.ticks[len(m.ticks)-1]
	for _, at := range recorded {
		if at.After(last) {
			m.account.Until = at.Add(-time.Second)
			break
		}
	}
	until := m.account.Until.In(last.Location())
	if beyond, more := ticksIn(m.schedule, last, until, maxTicks); !more {
		m.ticks, m.tail = append(m.ticks, beyond...), nil
		return
	}
	m.tail = lastTicks(m.schedule, last, until, maxCatchUp+1)
}

// closeAccounts records the ticks of jobs as they are before a change, in its
// transaction. It does nothing if runs are not recorded.
func (s *SmallBen) closeAccounts(tx Repository, c *change, rows []RawJob, policy MissedPolicy) error {
	recordTx, ok := tx.(RecordTx)
	if !ok || s.record == nil {
		return nil
	}
	var jobs []ticker
	for i := range rows {
		row := &rows[i]
		if row.Paused {
			continue
		}
		schedule, err := parseExpression(row.CronExpression, row.CreatedAt)
		if err != nil {
			schedule = neverSchedule{}
		}
		jobs = append(jobs, ticker{id: row.ID, groupID: row.GroupID, superGroupID: row.SuperGroupID,
			createdAt: row.CreatedAt.UnixMicro(), schedule: inLocation(schedule, s.scheduler.location), closing: true})
	}
	if len(jobs) == 0 {
		return nil
	}
	if len(jobs) < len(c.ids) {
		// What is locked in two calls might be waited for in a circle: all that the
		// change will write is locked first.
		if _, err := recordTx.Accounts(c.ids); err != nil {
			return err
		}
	}
	var by *recording
	if session := s.scheduler.current(); session != nil {
		by = session.recording
	}
	done, err := s.record.account(recordTx, by, jobs, recordTx.Now(), policy)
	c.missed, c.catchUp = done.missed, done.claims
	return err
}

func (s *SmallBen) missedPolicy() MissedPolicy {
	if s.record == nil {
		return MissedSkip
	}
	return s.record.config.Missed
}

// accounted is when the account of a job is to be looked at again, as long as the
// job has the revision: its next tick, in Unix seconds.
type accounted struct{ revision, next int64 }

// sweepUntilStopped sweeps from time to time. After a start, and when the database
// answers again, it waits until everything that was missed is old enough, so that
// one sweep finds all of it; not for ever, if that happens again and again.
func (r *recording) sweepUntilStopped() {
	settled := r.timing.MissedAfter + 2*r.config.SyncInterval
	last := time.Now()
	timer := time.NewTimer(settled)
	defer timer.Stop()
	for {
		select {
		case <-r.session.stop:
			return
		case <-r.due:
			if time.Since(last) < 5*max(settled, r.timing.SweepEvery) {
				timer.Reset(settled)
			}
			continue
		case <-timer.C:
		}
		if err := r.sweep(); err != nil && !r.session.stopped.Load() {
			r.trouble(err)
		}
		last = time.Now()
		timer.Reset(r.timing.SweepEvery)
	}
}

// sweep does what one process does for all.
func (r *recording) sweep() error {
	leads, err := r.lead()
	if err != nil || !leads {
		return err
	}
	// A process that left may have had no time to record the ends of its runs.
	if err := r.bury(nil); err != nil {
		return err
	}
	if err := r.recorder.CompareMarks(); err != nil {
		return err
	}
	if err := r.accountAll(); err != nil {
		return err
	}
	if r.config.Retention < 0 {
		return nil
	}
	for !r.session.stopped.Load() {
		n, err := r.recorder.PruneRuns(r.databaseTime().Add(-r.config.Retention), pruneBatch)
		if err != nil || n < pruneBatch {
			return err
		}
	}
	return nil
}

// databaseTime is about what time it is in the database.
func (r *recording) databaseTime() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Add(r.offset)
}

// lead reports whether this process leads, and makes it the leader if there is
// none.
func (r *recording) lead() (leads bool, err error) {
	r.mu.Lock()
	pulse := r.pulse
	r.mu.Unlock()
	if pulse.Leader == r.process {
		return true, nil
	}
	if slices.ContainsFunc(pulse.Peers, func(p Peer) bool { return p.Process == pulse.Leader }) {
		return false, nil
	}
	_, err = r.change(func(tx RecordTx) (err error) {
		leads, err = tx.Lead(r.process)
		return err
	})
	if leads {
		// What an earlier leader knew is not known here.
		clear(r.accounted)
	}
	return leads && err == nil, err
}

// accountAll accounts for the jobs that are due, some at a time. It waits a while
// for what makes up for missed ticks; if there is too much of it, the jobs that
// have missed some are postponed.
func (r *recording) accountAll() error {
	until := r.databaseTime().Add(-r.timing.MissedAfter)
	began := time.Now()
	again := make(map[int64]int)
	defer func() { r.postponed = again }()
	due := r.dueJobs(until)
	if err := r.learnRevisions(due); err != nil {
		return err
	}
	for len(due) > 0 {
		batch := due[:min(sweepBatch, len(due))]
		due = due[len(batch):]
		for r.catchingUp.Load() > maxCatchingUp && time.Since(began) < catchUpWait && !r.session.stopped.Load() {
			r.pause(troubleWait)
		}
		if r.session.stopped.Load() {
			return nil
		}
		var done accounting
		_, err := r.change(func(tx RecordTx) (err error) {
			until = tx.Now().Add(-r.timing.MissedAfter)
			done, err = r.account(tx, r, batch, until, r.config.Missed)
			return err
		})
		if err != nil {
			abandon(done.claims, err)
			return err
		}
		r.caughtUp(done)
		due = append(due, done.left...)
		for _, job := range batch {
			next := job.schedule.Next(until.In(r.scheduler.location))
			r.accounted[job.id] = accounted{job.revision, next.Unix()}
		}
		for _, job := range done.left {
			delete(r.accounted, job.id)
		}
		for _, id := range done.postponed {
			delete(r.accounted, id)
			again[id] = r.postponed[id] + 1
		}
	}
	return nil
}

// abandon gives up claims whose transaction failed with err. What is committed all
// the same is recorded as skipped, as soon as it is known that it is.
func abandon(claims []*claim, err error) {
	if len(claims) == 0 {
		return
	}
	if !errors.Is(err, ErrOutcomeUnknown) {
		dropAll(claims)
		return
	}
	r := claims[0].recording
	go func() {
		for !r.await(err) {
			if r.session.stopped.Load() {
				r.inDoubt.Store(true)
				break
			}
		}
		for _, c := range claims {
			rest := c.rest
			c.rest = nil
			for _, one := range append([]*claim{c}, rest...) {
				one.skip("it was not known in time whether it was claimed")
			}
		}
	}()
}

// caughtUp counts missed ticks and starts what makes up for them.
func (r *recording) caughtUp(done accounting) {
	r.metrics.missed.Add(float64(done.missed))
	if done.missed > 0 {
		r.smallBen.log.Info("ticks missed", "count", done.missed, "jobsToRun", len(done.claims))
	}
	for _, c := range done.claims {
		go c.start(false)
	}
}

// dueJobs returns the jobs that have a tick to be accounted for.
func (r *recording) dueJobs(until time.Time) (due []ticker) {
	s := r.scheduler
	s.mu.RLock()
	defer s.mu.RUnlock()
	maps.DeleteFunc(r.accounted, func(id int64, _ accounted) bool {
		_, ok := s.entries[id]
		return !ok
	})
	for id, e := range s.entries {
		shard := s.shard(id)
		shard.mu.Lock()
		known, ok := r.accounted[id]
		if !ok || known.revision != e.revision || known.next > 0 && known.next <= until.Unix() {
			due = append(due, ticker{id: id, groupID: e.groupID, superGroupID: e.superGroupID, createdAt: e.createdAt, revision: e.revision, schedule: e.slot.Schedule, postponed: r.postponed[id]})
		}
		shard.mu.Unlock()
	}
	slices.SortFunc(due, func(a, b ticker) int { return cmp.Compare(a.id, b.id) })
	return due
}

// learnRevisions reads jobs that this process met without their revision: those are
// looked at in the next sweep.
func (r *recording) learnRevisions(jobs []ticker) error {
	var ids []int64
	for _, job := range jobs {
		if job.revision == 0 {
			ids = append(ids, job.id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return r.smallBen.sync(ids)
}

// bury removes processes that are dead from the record, and runs again what they
// ran, and what others ran that left, if that is wanted.
func (r *recording) bury(dead []Peer) error {
	if !r.burying.TryLock() {
		return nil // the next beat finds them again
	}
	defer r.burying.Unlock()
	var lost []Run
	var claims []*claim
	_, err := r.change(func(tx RecordTx) (err error) {
		if lost, err = tx.Bury(dead); err != nil {
			return err
		}
		if r.config.RerunLost && len(lost) > 0 {
			claims, err = r.rerun(tx, lost)
		}
		return err
	})
	if err != nil {
		abandon(claims, err)
		return err
	}
	if len(lost) == 0 {
		return nil
	}
	r.metrics.lostRuns.Add(float64(len(lost)))
	names := make(map[string]struct{})
	for i := range lost {
		names[lost[i].Process] = struct{}{}
	}
	r.smallBen.log.Info("runs lost", "count", len(lost), "processes", slices.Sorted(maps.Keys(names)), "runAgain", len(claims))
	if len(claims) > 0 {
		if err := r.smallBen.sync(nil); err != nil {
			r.trouble(err)
		}
	}
	for _, c := range claims {
		go c.start(false)
	}
	return nil
}

// rerun claims second attempts of lost runs, of each job one after another. A job
// that is paused or gone is not run.
func (r *recording) rerun(tx RecordTx, lost []Run) (claims []*claim, err error) {
	byJob := make(map[int64][]Run)
	for _, run := range lost {
		if run.Attempt == 1 {
			byJob[run.JobID] = append(byJob[run.JobID], run)
		}
	}
	ids := slices.Sorted(maps.Keys(byJob))
	if len(ids) == 0 {
		return nil, nil
	}
	running := false
	rows, err := tx.ListJobs(&ListJobsOptions{JobIDs: ids, Paused: &running})
	if err != nil {
		return nil, err
	}
	accounts, err := tx.Accounts(ids)
	if err != nil {
		return nil, err
	}
	busy := make(map[int64]bool)
	for _, account := range accounts {
		busy[account.JobID] = account.Busy
	}
	exclusive := r.exclusive()
	var runs []Run
	for i := range rows {
		row := &rows[i]
		if exclusive && busy[row.ID] {
			continue // it runs already, in another process
		}
		again := byJob[row.ID]
		slices.SortFunc(again, func(a, b Run) int { return a.Tick.Compare(b.Tick) })
		var chain []*claim
		for _, run := range again {
			key := run.RunKey
			key.Attempt = 2
			c, err := r.newClaim(key, row.CreatedAt.UnixMicro())
			if err != nil {
				dropAll(append(claims, chain...))
				return nil, err
			}
			c.GroupID, c.SuperGroupID, c.missed = row.GroupID, row.SuperGroupID, run.Missed
			chain = append(chain, c)
		}
		runs = append(runs, link(chain, exclusive, tx.Now())...)
		claims = append(claims, chain[0])
	}
	if err := tx.Record(nil, runs); err != nil {
		dropAll(claims)
		return nil, err
	}
	return claims, nil
}

package smallben

import (
	"cmp"
	"context"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/robfig/cron/v3"

	"github.com/nbena/smallben/internal/cronexpr"
	"github.com/nbena/smallben/internal/eventlog"
	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/metrics"
	"github.com/nbena/smallben/internal/numbers"
	"github.com/nbena/smallben/internal/places"
	"github.com/nbena/smallben/internal/shared"
	"github.com/nbena/smallben/internal/stored"
	"github.com/nbena/smallben/internal/timetable"
)

// scheduler runs jobs in memory. It holds an entry for each job that is scheduled, and for
// each other one that has run, and is the one way for a job to run (run.go). newScheduler
// makes one, and start lets the scheduled entries fire until stop.
type scheduler struct {
	location *time.Location
	defaults *RunOptions // of jobs that say nothing
	log      *eventlog.Log
	metrics  *metrics.Runs
	pageSize int              // of timetables; tests change it
	clock    func() time.Time // of timetables; nil but in tests

	wrap      func(next RunFunc) RunFunc // of each run; nil: not at all
	runLogger logr.Logger

	places    *places.Places[tick]      // of MaxConcurrentRuns
	schedules shared.Values[*scheduled] // by expression
	givens    stored.Givens

	// mu guards the fields below. Who schedules an entry, or ends that, holds SmallBen.mu as
	// well, so that they and what SmallBen knows of the other rows change together. The locks
	// of the timetable and of entries are taken under it, not the other way
	// round. No I/O happens under it, and no code of the user runs.
	mu      sync.RWMutex
	entries map[int64]*entry // of the jobs that are scheduled, by id
	dormant map[int64]*entry // of jobs that are not and have run or been triggered, by id
	session *session         // the last one, which may be stopped; nil before the first
	ended   []*session       // those that were stopped, of which runs may be in progress
	cronIDs numbers.Free
}

func newScheduler(config *Config, log *eventlog.Log) *scheduler {
	return &scheduler{
		location:  config.location(),
		defaults:  config.defaultOptions(),
		log:       log,
		metrics:   metrics.NewRuns(),
		wrap:      config.WrapRun,
		runLogger: runLogger(config),
		places:    places.New[tick](config.SchedulerConfig.MaxConcurrentRuns),
		entries:   make(map[int64]*entry),
		dormant:   make(map[int64]*entry),
	}
}

// entry is what is known of a job by its id. It stays while the job is updated, paused,
// or deleted and added again, and from one session to the next: so the job does not
// overlap itself. An entry of a job that was deleted goes with its last run.
type entry struct {
	id     int64
	cronID int32 // guarded by the scheduler's mu

	// mu guards the fields below, and what runs points to. All but runs change only
	// under the scheduler's mu, too, so that either lock will do for reading. Nothing
	// waits under mu, and no other lock is taken but those of places and of the queue of
	// log lines.
	mu         sync.Mutex
	generation int32    // counts pauses, deletions and new expressions: a run that began before one is not tried again
	createdAt  int64    // of the job, in Unix microseconds: tells it from an earlier one of the same id; or noJob
	slot       *slot    // nil: it is not scheduled
	runs       *jobRuns // nil: none yet

	// What its runs do. What pointers point to is not changed.
	job          CronJob       // nil: it is not known, since the entry is dormant
	jobHash      uint64        // of the stored job
	options      *RunOptions   // resolved
	metrics      *metrics.Type // of the type of job
	groupID      int64
	superGroupID int64
	revision     int64 // of the stored job, if runs are recorded
	scheduled    *scheduled
	storedInput  string        // each run decodes it
	given        *stored.Given // what of it a user gave and JSON does not give back; or nil
}

// noJob is the createdAt of an entry whose job was deleted.
const noJob = math.MinInt64

// slot is the place of an entry in the timetable. There is a new one for new ticks.
type slot = timetable.Entry[*entry]

// scheduled is an expression and what it means. Jobs of one expression share it.
type scheduled struct {
	expression string
	schedule   cron.Schedule
}

// scheduledOf is when a job is due: in the scheduler's location, where its expression
// names none.
func (s *scheduler) scheduledOf(job *JobWithSchedule) *scheduled {
	expression := job.rawJob.CronExpression
	if _, ok := job.schedule.(cronexpr.Zoned); !ok {
		return &scheduled{expression, job.schedule} // of the job alone
	}
	common, _ := s.schedules.Get(expression, func() (*scheduled, error) {
		return &scheduled{strings.Clone(expression), cronexpr.In(job.schedule, s.location)}, nil
	})
	return common
}

var hashSeed = maphash.MakeSeed()

// setJob makes the runs of an entry do what the row of its job says. A job or an input
// that did not change keeps its values, unless the job is scheduled anew. It expects both
// locks.
func (s *scheduler) setJob(e *entry, job *JobWithSchedule) {
	row := &job.rawJob
	anew := e.job == nil || e.slot == nil && !row.Paused
	e.groupID, e.superGroupID = row.GroupID, row.SuperGroupID
	if row.revision != 0 {
		e.revision = row.revision
	}
	if anew || e.scheduled.expression != row.CronExpression {
		e.scheduled = s.scheduledOf(job)
	}
	if hash := maphash.String(hashSeed, row.SerializedJob); anew || job.changes.job || e.jobHash != hash {
		e.jobHash = hash
		e.job, e.options = job.job, job.options.resolve(s.defaults)
		e.metrics = metricsOf(s.metrics, job)
	}
	if anew || job.changes.input || e.storedInput != row.SerializedJobInput {
		e.storedInput, e.given = row.SerializedJobInput, nil
		if job.given {
			e.given = s.givens.Of(job.input)
		}
	}
}

// session is the time from a Start to the Stop that ends it.
type session struct {
	scheduler *scheduler
	timetable *timetable.Table[*entry]
	ledger    *ledger.Session // nil: runs are not recorded
	stop      chan struct{}   // closed by stop
	context   context.Context // of its runs
	cancel    context.CancelFunc

	// stopped ends the starting of runs. A run counts itself in running first, and
	// looks at stopped then, so that stop misses none. With a ledger a run
	// begins to count when its claim is asked for: one that is won is started.
	stopped atomic.Bool
	running atomic.Int64  // runs in progress, and one until stop
	idle    chan struct{} // closed when running is 0
	closing sync.Once     // of idle
}

// over reports whether nothing of the session goes on.
func (s *session) over() bool {
	return closed(s.idle) && (s.ledger == nil || closed(s.ledger.Done()))
}

// hold counts a run in progress, unless the session was stopped.
func (s *session) hold() bool {
	s.running.Add(1)
	if s.stopped.Load() {
		s.release()
		return false
	}
	return true
}

// release takes back a hold, or what a run that ended held.
func (s *session) release() {
	if s.running.Add(-1) > 0 {
		return
	}
	s.closing.Do(func() {
		close(s.idle)
		if s.ledger != nil {
			s.ledger.Idle()
		}
	})
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// start begins a session with the jobs that are scheduled, and forgets the others but
// for the paused ones. It expects the scheduler not to be started.
func (s *scheduler) start(jobs []JobWithSchedule, paused map[int64]int64, joined *ledger.Session, host *ledgerHost) *session {
	begun := s.newSession(joined)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = begun
	s.ended = slices.DeleteFunc(s.ended, (*session).over)
	for _, e := range s.entries {
		e.mu.Lock()
		e.slot = nil
		e.mu.Unlock()
	}
	var t transition
	for i := range jobs {
		s.scheduleLocked(&jobs[i], &t)
	}
	for _, e := range s.entries {
		if e.slot == nil {
			s.retireLocked(e, false, &t)
		}
	}
	for id, e := range s.dormant {
		if _, ok := paused[id]; !ok {
			s.retireLocked(e, true, &t)
			continue
		}
		e.mu.Lock()
		e.jobHash, e.given = ^e.jobHash, nil // the next trigger runs what it decodes
		e.mu.Unlock()
	}
	if joined != nil {
		host.session = begun
	}
	s.completeLocked(&t, "its job was changed while it waited")
	if joined != nil {
		joined.Run()
	}
	return begun
}

func (s *scheduler) newSession(joined *ledger.Session) *session {
	ctx, cancel := context.WithCancel(context.Background())
	begun := &session{
		scheduler: s,
		ledger:    joined,
		stop:      make(chan struct{}),
		context:   ctx,
		cancel:    cancel,
		idle:      make(chan struct{}),
	}
	begun.running.Store(1)
	begun.timetable = timetable.New(timetable.Config[*entry]{
		Fire:     begun.fire,
		Location: s.location,
		SteppedBack: func(step time.Duration) {
			s.log.Info("clock stepped back, schedules follow it", "step", step.String())
		},
		PageSize: s.pageSize,
		Clock:    s.clock,
	})
	return begun
}

// stop ends the session, if there is one: from here on nothing starts. It returns
// the sessions of which something may go on: the idle channel of each tells when
// its last run has ended.
func (s *scheduler) stop() (sessions []*session, stopped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ending := s.currentLocked(); ending != nil {
		stopped = true
		s.ended = append(s.ended, ending)
		close(ending.stop)
		ending.stopped.Store(true)
		s.dropAttemptsLocked()
		if ending.ledger != nil {
			ending.ledger.Stop()
		}
		ending.release()
		ending.timetable.Stop()
	}
	return slices.Clone(s.ended), stopped
}

// current returns the session, or nil while the scheduler is not started.
func (s *scheduler) current() *session {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.currentLocked()
}

func (s *scheduler) currentLocked() *session {
	if s.session == nil || s.session.stopped.Load() {
		return nil
	}
	return s.session
}

// now is the time by the clock that ticks go by.
func (s *scheduler) now() time.Time {
	now := time.Now()
	if session := s.current(); session != nil {
		now = now.Add(session.timetable.Ahead())
	}
	return now.In(s.location)
}

// has reports whether a job is scheduled.
func (s *scheduler) has(id int64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.entries[id]
	return ok
}

// ids returns the ids of the jobs that are scheduled, in no order.
func (s *scheduler) ids() []int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Keys(s.entries))
}

// count returns how many jobs are scheduled.
func (s *scheduler) count() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.entries)
}

// transition is what a change of entries does to the timetable, and to ticks that wait.
type transition struct {
	removed, added []*slot
	ended          []tick // wait no more
}

// completeLocked carries a transition out. The reason is why the ticks that waited do not run.
func (s *scheduler) completeLocked(t *transition, reason string) {
	if session := s.currentLocked(); session != nil {
		session.timetable.Remove(t.removed)
		session.timetable.Add(t.added)
	}
	for i := range t.ended {
		t.ended[i].skip(reason)
	}
}

// project makes the entries agree with jobs: a paused one is not scheduled, any other
// is, with its expression, job, input and groups. An entry whose expression is the same
// keeps its phase.
func (s *scheduler) project(jobs []JobWithSchedule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var t transition
	for i := range jobs {
		if jobs[i].rawJob.Paused {
			s.pauseLocked(&jobs[i], &t)
		} else {
			s.scheduleLocked(&jobs[i], &t)
		}
	}
	s.completeLocked(&t, "its job was changed while it waited")
}

// entryLocked returns the entry of an id, or nil.
func (s *scheduler) entryLocked(id int64) *entry { return cmp.Or(s.entries[id], s.dormant[id]) }

// lockEntry returns the entry for a job, locked: that of its id, or a new one. If the id
// was another job's, nothing of that goes on but its runs.
func (s *scheduler) lockEntry(job *JobWithSchedule, t *transition) *entry {
	id, createdAt := job.rawJob.ID, job.rawJob.CreatedAt.UnixMicro()
	e := s.entryLocked(id)
	if e == nil {
		e = &entry{id: id, createdAt: createdAt}
	}
	replaces := e.createdAt != createdAt
	if replaces {
		s.retireLocked(e, false, t)
	}
	e.mu.Lock()
	if replaces {
		e.createdAt = createdAt
		if e.runs != nil {
			e.runs.last = runResult{}
		}
	}
	return e
}

// scheduleLocked makes the entry of a job agree with it, which is not paused. What waits
// for the end of a run, or for a place, still does.
func (s *scheduler) scheduleLocked(job *JobWithSchedule, t *transition) {
	e := s.lockEntry(job, t)
	defer e.mu.Unlock()
	before := e.scheduled
	s.setJob(e, job)
	switch {
	case e.slot == nil:
		e.cronID = int32(job.rawJob.CronID)
	case e.scheduled == before:
		return
	default:
		t.removed = append(t.removed, e.slot)
		e.generation++
		s.endAttempts(e)
	}
	e.slot = &slot{Key: e, Schedule: e.scheduled.schedule}
	t.added = append(t.added, e.slot)
	s.entries[e.id] = e
	delete(s.dormant, e.id)
}

// pauseLocked makes the entry of a paused job agree with it, if there is one. What was
// triggered and waits still does, if the job was paused before.
func (s *scheduler) pauseLocked(job *JobWithSchedule, t *transition) {
	if e := s.entries[job.rawJob.ID]; e != nil {
		s.retireLocked(e, false, t)
	}
	if s.dormant[job.rawJob.ID] == nil {
		return
	}
	e := s.lockEntry(job, t)
	defer e.mu.Unlock()
	if e.job != nil {
		s.setJob(e, job)
	}
}

// pausedEntryLocked returns the entry through which a paused job runs that is triggered.
func (s *scheduler) pausedEntryLocked(job *JobWithSchedule) *entry {
	var t transition
	e := s.lockEntry(job, &t)
	s.setJob(e, job)
	e.mu.Unlock()
	s.dormant[e.id] = e
	s.completeLocked(&t, "its job was changed while it waited")
	return e
}

// remove ends the ticks of jobs that were paused or, if they were deleted, forgets them.
// Once it has returned, no run of the jobs starts, not even one that waited.
func (s *scheduler) remove(ids []int64, deleted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var t transition
	for _, id := range ids {
		if e := s.entryLocked(id); e != nil {
			s.retireLocked(e, deleted, &t)
		}
	}
	s.completeLocked(&t, "its job was paused or deleted while it waited")
}

// retireLocked ends the ticks of an entry, and what waits. The entry is dormant from then
// on: as long as a run is in progress or, if its job was not deleted, if it has run.
func (s *scheduler) retireLocked(e *entry, deleted bool, t *transition) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.slot != nil {
		t.removed = append(t.removed, e.slot)
	}
	e.generation++
	t.ended = append(t.ended, s.endWaiting(e, func(*waitingTick) bool { return true })...)
	e.slot, e.job, e.storedInput, e.given = nil, nil, "", nil
	if deleted {
		e.createdAt = noJob
	}
	delete(s.entries, e.id)
	delete(s.dormant, e.id)
	if e.runs != nil && (!deleted || e.runs.busy()) {
		s.dormant[e.id] = e
	}
}

// drop drops the entry of a deleted job of which the last run has ended, unless it was
// added again.
func (s *scheduler) drop(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.dormant[e.id] == e && e.createdAt == noJob && !e.runs.busy() {
		delete(s.dormant, e.id)
	}
}

// number gives each job the cron id that it is to be stored with: 0 for a paused
// one and while nothing is started, that of its entry if it has one, and else a
// new one.
func (s *scheduler) number(jobs []JobWithSchedule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var taken []int32
	for i := range jobs {
		raw := &jobs[i].rawJob
		switch live, ok := s.entries[raw.ID]; {
		case raw.Paused || s.currentLocked() == nil:
			raw.CronID = DefaultCronID
		case ok:
			raw.CronID = int64(live.cronID)
		default:
			id := s.cronIDs.Next(func() []int32 {
				for _, e := range s.entries {
					taken = append(taken, e.cronID)
				}
				return taken
			})
			taken = append(taken, id)
			raw.CronID = int64(id)
		}
	}
}

// renumber lets each job keep its stored cron id if that is positive and no
// other's, and gives it a new one else. It returns the jobs whose cron id changed.
// They have no entries. While nothing is started, no entry counts.
func (s *scheduler) renumber(jobs []JobWithSchedule) (changed []JobWithSchedule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := make(map[int32]struct{}, len(jobs))
	if s.currentLocked() != nil {
		for _, e := range s.entries {
			taken[e.cronID] = struct{}{}
		}
	}
	var unnumbered []int
	for i := range jobs {
		id := jobs[i].rawJob.CronID
		_, twice := taken[int32(id)]
		if twice || id <= 0 || id > math.MaxInt32 {
			unnumbered = append(unnumbered, i)
			continue
		}
		taken[int32(id)] = struct{}{}
	}
	s.cronIDs = numbers.Free{}
	for _, i := range unnumbered {
		id := s.cronIDs.Next(func() []int32 { return slices.Collect(maps.Keys(taken)) })
		taken[id] = struct{}{}
		jobs[i].rawJob.CronID = int64(id)
		changed = append(changed, jobs[i])
	}
	return changed
}

// unscheduled tells the jobs that need an entry and have none of their own from the
// others: another process added or resumed them.
func (s *scheduler) unscheduled(jobs []JobWithSchedule) (unscheduled, others []JobWithSchedule) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	session := s.currentLocked()
	if session == nil {
		return nil, jobs
	}
	for i := range jobs {
		row := &jobs[i].rawJob
		live, scheduled := s.entries[row.ID]
		if session.ledger != nil && scheduled && live.createdAt != row.CreatedAt.UnixMicro() {
			scheduled = false // it was deleted and added again, with another process's cron id
		}
		if scheduled || row.Paused {
			others = append(others, jobs[i])
		} else {
			unscheduled = append(unscheduled, jobs[i])
		}
	}
	return unscheduled, others
}

// trigger begins a run of each job, paused ones too. If runs are recorded, only those
// run that have a grant. It returns false if SmallBen was stopped.
func (s *scheduler) trigger(jobs []JobWithSchedule, at tick, grants map[int64]*ledger.Grant) (report []Triggered, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.session = s.currentLocked(); at.session == nil {
		return nil, false
	}
	for i := range jobs {
		at.entry = s.entries[jobs[i].rawJob.ID]
		if at.entry == nil {
			at.entry = s.pausedEntryLocked(&jobs[i])
		}
		report = append(report, s.triggerOne(at, grants[at.entry.id]))
	}
	return report, true
}

// triggerOne begins a run of one job. A grant that is nil is of a run that is not claimed,
// if runs are recorded.
func (s *scheduler) triggerOne(at tick, grant *ledger.Grant) Triggered {
	report := Triggered{JobID: at.entry.id, Tick: at.at}
	if at.session.ledger != nil {
		if grant == nil { // it runs elsewhere
			report.Skipped = stillRunning
			return report
		}
		if grant.Waits {
			grant.LeaveWaiting()
			report.Waiting = true
			return report
		}
		at.grant, at.at = grant, grant.Tick.In(s.location)
		report.Tick = at.at
	}
	var begun *run
	if begun, report.Skipped = s.admit(&at, false); begun != nil {
		go s.execute(begun)
		return report
	}
	report.Waiting = report.Skipped == ""
	if !report.Waiting {
		at.skip(report.Skipped)
	}
	return report
}

// runsOf returns the last run of a job in this process, whether it runs, and the
// attempt that waits in memory, if one does.
func (s *scheduler) runsOf(id int64) (last runResult, running bool, next Run) {
	s.mu.RLock()
	e := s.entryLocked(id)
	s.mu.RUnlock()
	if e == nil {
		return runResult{}, false, Run{}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.runs == nil {
		return runResult{}, false, Run{}
	}
	return e.runs.last, len(e.runs.running) > 0, e.nextAttempt()
}

// each calls do for each entry that has run or been triggered, under its mu.
func (s *scheduler) each(do func(e *entry)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.eachLocked(do)
}

func (s *scheduler) eachLocked(do func(e *entry)) {
	for _, entries := range []map[int64]*entry{s.entries, s.dormant} {
		for _, e := range entries {
			e.mu.Lock()
			if e.runs != nil {
				do(e)
			}
			e.mu.Unlock()
		}
	}
}

// ran returns the ids of the jobs that have run in this process and that match, in order.
func (s *scheduler) ran(match func(e *entry) bool) (ids []int64) {
	s.each(func(e *entry) {
		if match(e) {
			ids = append(ids, e.id)
		}
	})
	slices.Sort(ids)
	return ids
}

// running returns the ids of the jobs of which runs are in progress, in order.
func (s *scheduler) running() []int64 {
	return s.ran(func(e *entry) bool { return len(e.runs.running) > 0 })
}

// runningOf is running for the runs of some sessions.
func (s *scheduler) runningOf(sessions []*session) []int64 {
	return s.ran(func(e *entry) bool {
		return slices.ContainsFunc(e.runs.running, func(r *run) bool { return slices.Contains(sessions, r.session) })
	})
}

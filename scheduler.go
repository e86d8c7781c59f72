package smallben

import (
	"context"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

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

// scheduler runs jobs in memory. It holds an entry for each job that is not
// paused, and is the one way for a job to run (run.go). newScheduler makes one,
// and start lets the entries fire until stop.
type scheduler struct {
	location *time.Location
	defaults *RunOptions // of jobs that say nothing
	recorded bool        // runs are recorded
	log      *eventlog.Log
	metrics  *metrics.Runs
	runs     runner
	pageSize int              // of timetables; tests change it
	clock    func() time.Time // of timetables; nil but in tests

	places    *places.Places[waitingTick] // of MaxConcurrentRuns
	schedules shared.Values[scheduled]    // by expression
	givens    stored.Givens

	// mu guards the fields below. Who writes entries holds SmallBen.mu as well, so that
	// they and what SmallBen knows of the other rows change together. The lock
	// of the timetable and those of shards are taken under it, not the other way
	// round. No I/O happens under it, and no code of the user runs.
	mu      sync.RWMutex
	entries map[int64]*entry // by job id
	session *session         // nil while not started
	ended   []*session       // earlier ones, of which runs may be in progress
	cronIDs numbers.Free

	// shards hold what is known of the runs of jobs, by id.
	shards [64]shard
}

// shard is what runs of some jobs share with changes of them. There are many, so
// that runs that are due at one instant do not meet at one lock.
type shard struct {
	// mu guards states and, in entries of jobs of this shard, the fields that say
	// so. Nothing waits under it, and no other lock is taken but those of places and
	// of the queue of log lines.
	mu     sync.Mutex
	states map[int64]*jobState // by job id
}

// lockShard returns the shard of a job, locked.
func (s *scheduler) lockShard(id int64) *shard {
	shard := &s.shards[uint64(id)%uint64(len(s.shards))]
	shard.mu.Lock()
	return shard
}

func newScheduler(config *Config, log *eventlog.Log) *scheduler {
	s := &scheduler{
		location: config.location(),
		defaults: config.defaultOptions(),
		recorded: config.Runs.Record,
		log:      log,
		metrics:  metrics.NewRuns(),
		runs:     newRunner(config),
		places:   places.New[waitingTick](config.SchedulerConfig.MaxConcurrentRuns),
		entries:  make(map[int64]*entry),
	}
	for i := range s.shards {
		s.shards[i].states = make(map[int64]*jobState)
	}
	return s
}

// entry is a job that is scheduled. It is replaced where its ticks change.
type entry struct {
	id        int64
	createdAt int64 // Unix microseconds; tells a job from an earlier one of the same id
	cronID    int32
	dead      bool     // it was removed or replaced: guarded by the shard's mu
	session   *session // whose timetable it stands in; nil if in none
	slot      timetable.Entry[*entry]

	// work is guarded by the shard's mu: an update changes it in place.
	work
}

// work is what an entry runs. What given points to is not changed.
type work struct {
	job          CronJob
	metrics      *metrics.Type // of the type of job
	options      *RunOptions   // resolved
	groupID      int64
	superGroupID int64
	revision     int64 // of the stored job, if runs are recorded
	expression   string
	storedInput  string        // each run decodes it
	given        *stored.Given // what of it a user gave and JSON does not give back; or nil
	jobHash      uint64        // of the stored job
}

// newEntry returns an entry for a job. Old, if it is not nil, is the one whose place it
// takes: then it keeps the cron id, and what the job does not change.
func (s *scheduler) newEntry(job *JobWithSchedule, old *entry) *entry {
	e := &entry{
		id:        job.rawJob.ID,
		createdAt: job.rawJob.CreatedAt.UnixMicro(),
		cronID:    int32(job.rawJob.CronID),
	}
	if old != nil {
		e.cronID, e.work = old.cronID, old.work
	}
	s.describe(&e.work, job)
	s.schedule(e, job)
	return e
}

// scheduled is an expression and what it means. Jobs of one expression share it.
type scheduled struct {
	expression string
	schedule   cron.Schedule
}

// schedule sets when a new entry fires: in the scheduler's location, where its
// expression names none.
func (s *scheduler) schedule(e *entry, job *JobWithSchedule) {
	e.slot.Key = e
	e.slot.Schedule = job.schedule
	if _, ok := job.schedule.(cronexpr.Zoned); !ok {
		return // of the job alone
	}
	expression := job.rawJob.CronExpression
	common, _ := s.schedules.Get(expression, func() (scheduled, error) {
		return scheduled{strings.Clone(expression), cronexpr.In(job.schedule, s.location)}, nil
	})
	e.expression, e.slot.Schedule = common.expression, common.schedule
}

var hashSeed = maphash.MakeSeed()

// describe sets what an update sets in place. A job or an input that did not
// change keeps its values.
func (s *scheduler) describe(w *work, job *JobWithSchedule) {
	w.groupID = job.rawJob.GroupID
	w.superGroupID = job.rawJob.SuperGroupID
	w.expression = job.rawJob.CronExpression
	if job.rawJob.revision != 0 {
		w.revision = job.rawJob.revision
	}
	if hash := maphash.String(hashSeed, job.rawJob.SerializedJob); w.job == nil || job.changes.job || w.jobHash != hash {
		w.jobHash = hash
		w.job, w.options = job.job, job.options.resolve(s.defaults)
		w.metrics = metricsOf(s.metrics, job)
	}
	if w.storedInput == job.rawJob.SerializedJobInput && !job.changes.input {
		return
	}
	w.storedInput = job.rawJob.SerializedJobInput
	w.given = nil
	if job.given {
		w.given = s.givens.Of(job.input)
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
	running atomic.Int64  // runs in progress
	idle    chan struct{} // closed when stopped is set and nothing runs
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
	s.running.Add(-1)
	s.closeIdle()
}

// closeIdle closes idle if the session was stopped and nothing runs any more.
func (s *session) closeIdle() {
	if s.stopped.Load() && s.running.Load() == 0 {
		s.closing.Do(func() {
			close(s.idle)
			if s.ledger != nil {
				s.ledger.Idle()
			}
		})
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// start begins a session with entries for the jobs, in place of all entries
// before. It expects the scheduler not to be started.
func (s *scheduler) start(jobs []JobWithSchedule, joined *ledger.Session, host *ledgerHost) *session {
	entries := make([]*entry, len(jobs))
	for i := range jobs {
		entries[i] = s.newEntry(&jobs[i], nil)
	}
	ctx, cancel := context.WithCancel(context.Background())
	begun := &session{
		scheduler: s,
		ledger:    joined,
		stop:      make(chan struct{}),
		context:   ctx,
		cancel:    cancel,
		idle:      make(chan struct{}),
	}
	begun.timetable = timetable.New(timetable.Config[*entry]{
		Fire:        (*entry).fire,
		Location:    s.location,
		SteppedBack: s.steppedBack,
		PageSize:    s.pageSize,
		Clock:       s.clock,
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = begun
	s.ended = slices.DeleteFunc(s.ended, (*session).over)
	clear(s.entries)
	if joined != nil {
		host.session = begun
	}
	s.addLocked(entries)
	if joined != nil {
		joined.Run()
	}
	return begun
}

func (s *scheduler) steppedBack(step time.Duration) {
	s.log.Info("clock stepped back, schedules follow it", "step", step.String())
}

// stop ends the session, if there is one: from here on nothing starts. It returns
// the sessions of which something may go on: the idle channel of each tells when
// its last run has ended.
func (s *scheduler) stop() (sessions []*session, stopped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ending := s.session; ending != nil {
		stopped = true
		s.session = nil
		s.ended = append(s.ended, ending)
		close(ending.stop)
		ending.stopped.Store(true)
		s.dropAttempts()
		if ending.ledger != nil {
			ending.ledger.Stop()
		}
		ending.closeIdle()
		ending.timetable.Stop()
	}
	return slices.Clone(s.ended), stopped
}

// current returns the session, or nil while the scheduler is not started.
func (s *scheduler) current() *session {
	s.mu.RLock()
	defer s.mu.RUnlock()
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

// project makes the entries agree with jobs: a paused one has no entry, any other
// has one of its expression, job, input and groups. An entry that agrees already
// stays, and so does its phase.
func (s *scheduler) project(jobs []JobWithSchedule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var outdated []int64
	added := make([]*entry, 0, len(jobs))
	for i := range jobs {
		job := &jobs[i]
		id := job.rawJob.ID
		live, ok := s.entries[id]
		switch same := ok && live.createdAt == job.rawJob.CreatedAt.UnixMicro(); {
		case job.rawJob.Paused && !ok:
			s.updateLoose(job)
			continue
		case job.rawJob.Paused:
		case same && live.expression == job.rawJob.CronExpression:
			s.update(live, job)
			continue
		case same:
			added = append(added, s.newEntry(job, live))
		default:
			added = append(added, s.newEntry(job, nil))
		}
		if ok {
			outdated = append(outdated, id)
		}
	}
	waited := s.removeLocked(outdated)
	s.addLocked(added)
	for _, w := range waited {
		e, ok := s.entries[w.entry.id]
		if ok && e.createdAt == w.entry.createdAt && e.session != nil && w.tick.tried == 0 {
			// It waits again, or starts if the run before it has ended.
			go s.fire(e, w.tick)
		} else {
			w.tick.skip("its job was changed while it waited")
		}
	}
}

// update changes an entry in place: its ticks go on.
func (s *scheduler) update(e *entry, job *JobWithSchedule) {
	shard := s.lockShard(e.id)
	defer shard.mu.Unlock()
	s.describe(&e.work, job)
}

// updateLoose changes what the runs of a paused job do that were triggered and wait.
func (s *scheduler) updateLoose(job *JobWithSchedule) {
	shard := s.lockShard(job.rawJob.ID)
	defer shard.mu.Unlock()
	if state := shard.states[job.rawJob.ID]; state != nil && state.loose != nil {
		s.describe(&state.loose.work, job)
	}
}

// addLocked adds entries of jobs that have none, and schedules them if the
// scheduler is started.
func (s *scheduler) addLocked(entries []*entry) {
	for _, e := range entries {
		s.entries[e.id] = e
		e.session = s.session
	}
	if s.session == nil {
		return
	}
	slots := make([]*timetable.Entry[*entry], len(entries))
	for i, e := range entries {
		slots[i] = &e.slot
	}
	s.session.timetable.Add(slots)
}

// remove removes the entries of jobs that have one. Once it has returned, no run
// of the jobs starts, not even one that waited.
func (s *scheduler) remove(ids []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.removeLocked(ids) {
		w.tick.skip("its job was paused or deleted while it waited")
	}
}

// removeLocked is remove that returns the ticks that waited.
func (s *scheduler) removeLocked(ids []int64) (waited []waitingTick) {
	var slots []*timetable.Entry[*entry]
	for _, id := range ids {
		e := s.entries[id]
		waited = append(waited, s.bar(id, e)...)
		if e == nil {
			continue
		}
		delete(s.entries, id)
		if s.session != nil {
			slots = append(slots, &e.slot)
		}
	}
	if len(slots) > 0 {
		s.session.timetable.Remove(slots)
	}
	return waited
}

// bar ends the starting of runs of a job, and returns its ticks that waited and
// might have started. The job's own entry may be nil.
func (s *scheduler) bar(id int64, e *entry) (waited []waitingTick) {
	shard := s.lockShard(id)
	defer shard.mu.Unlock()
	if state := shard.states[id]; state != nil {
		waited = s.places.Remove(id)
		state.queued -= len(waited)
		if state.waiting.entry != nil {
			waited = append(waited, state.waiting)
			state.waiting = waitingTick{}
		}
		state.endAttempts(anyAttempt)
		waited = slices.DeleteFunc(waited, func(w waitingTick) bool { return !w.entry.live(w.tick) })
		if state.loose != nil {
			state.loose.dead = true
			state.loose = nil
		}
	}
	if e != nil {
		e.dead = true
	}
	return waited
}

// looseEntry returns the entry through which a paused job runs that was triggered. It
// is in no timetable, and it is known, so that bar ends it. It expects SmallBen.mu or
// changeMu.
func (s *scheduler) looseEntry(job *JobWithSchedule, session *session) *entry {
	e := s.newEntry(job, nil)
	e.session = session
	shard := s.lockShard(e.id)
	defer shard.mu.Unlock()
	state := shard.state(e)
	if known := state.loose; known != nil && known.createdAt == e.createdAt && known.session == session {
		s.describe(&known.work, job)
		return known
	}
	state.loose = e
	return e
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
		case raw.Paused || s.session == nil:
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
	if s.session != nil {
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
	for i := range jobs {
		live, scheduled := s.entries[jobs[i].rawJob.ID]
		if s.recorded && scheduled && live.createdAt != jobs[i].rawJob.CreatedAt.UnixMicro() {
			scheduled = false // it was deleted and added again, with another process's cron id
		}
		if scheduled || jobs[i].rawJob.Paused || s.session == nil {
			others = append(others, jobs[i])
		} else {
			unscheduled = append(unscheduled, jobs[i])
		}
	}
	return unscheduled, others
}

// trigger admits a run of each job: through its entry, or, where it has none
// because it is paused, through one that is in no timetable. If runs are recorded,
// only those run that have a grant. It returns false if SmallBen was stopped.
func (s *scheduler) trigger(jobs []JobWithSchedule, at tick, grants map[int64]*ledger.Grant) (begun []*run, report []Triggered, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.session == nil {
		return nil, nil, false
	}
	for i := range jobs {
		e, scheduled := s.entries[jobs[i].rawJob.ID]
		if !scheduled {
			e = s.looseEntry(&jobs[i], s.session)
		}
		r, one := s.triggerEntry(e, at, grants[e.id])
		if r != nil {
			begun = append(begun, r)
		}
		report = append(report, one)
	}
	return begun, report, true
}

// triggerEntry admits a run of one job. A grant that is nil is of a run that is not claimed,
// if runs are recorded.
func (s *scheduler) triggerEntry(e *entry, at tick, grant *ledger.Grant) (begun *run, report Triggered) {
	report = Triggered{JobID: e.id, Tick: at.at}
	switch {
	case !s.recorded:
	case grant == nil: // it runs elsewhere
		report.Skipped = stillRunning
		return nil, report
	case grant.Waits:
		grant.LeaveWaiting()
		report.Waiting = true
		return nil, report
	default:
		at.grant, at.at = grant, grant.Tick.In(s.location)
		report.Tick = at.at
	}
	begun, decision := s.admit(e, at, false)
	switch decision {
	case waits:
		report.Waiting = true
	case refused:
		report.Skipped = stillRunning
		at.skip(stillRunning)
	case gone:
		report.Skipped = "SmallBen was stopped"
		at.skip(report.Skipped)
	}
	return begun, report
}

// forget drops what is known of the runs of jobs that were deleted.
func (s *scheduler) forget(ids []int64) {
	for _, id := range ids {
		shard := s.lockShard(id)
		if state := shard.states[id]; state != nil {
			state.gone = true
			if !state.busy() {
				delete(shard.states, id)
			}
		}
		shard.mu.Unlock()
	}
}

// runsOf returns the last run of a job in this process, whether it runs, and the
// attempt that waits in memory, if one does.
func (s *scheduler) runsOf(id int64) (last runResult, running bool, next Run) {
	shard := s.lockShard(id)
	defer shard.mu.Unlock()
	if state := shard.states[id]; state != nil {
		return state.last, len(state.running) > 0, state.nextAttempt(id)
	}
	return runResult{}, false, Run{}
}

// each calls do for each job that has run in this process, under the mu of its shard.
func (s *scheduler) each(do func(id int64, state *jobState)) {
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.Lock()
		for id, state := range shard.states {
			do(id, state)
		}
		shard.mu.Unlock()
	}
}

// ran returns the ids of the jobs that have run in this process and that match.
func (s *scheduler) ran(match func(id int64, state *jobState) bool) (ids []int64) {
	s.each(func(id int64, state *jobState) {
		if match(id, state) {
			ids = append(ids, id)
		}
	})
	slices.Sort(ids)
	return ids
}

// running returns the ids of the jobs of which runs are in progress, in order.
func (s *scheduler) running() []int64 {
	return s.ran(func(_ int64, state *jobState) bool { return len(state.running) > 0 })
}

// runningOf is running for the runs of some sessions.
func (s *scheduler) runningOf(sessions []*session) []int64 {
	return s.ran(func(_ int64, state *jobState) bool {
		return slices.ContainsFunc(state.running, func(r *run) bool { return slices.Contains(sessions, r.entry.session) })
	})
}

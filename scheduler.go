package smallben

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/robfig/cron/v3"
)

const (
	// pageSize bounds how many entries one cron.Cron holds: it sorts all of
	// them at each add, remove and wake. bench/README.md has the measurements.
	pageSize = 128
	// clockInterval is how often the pages read the clock again, and clockStep
	// the step back from which on entries are armed anew.
	clockInterval = 30 * time.Second
	clockStep     = time.Minute
)

// scheduler runs jobs in memory. It holds the entries of the jobs that are not
// paused, in pages while it is started, and is the one way for a job to run.
type scheduler struct {
	location *time.Location
	overlap  overlap
	recorded bool // runs are recorded
	log      eventLog
	metrics  *runMetrics
	runs     runner
	pageSize int
	clock    func() (wall time.Time, monotonic time.Duration)

	// mu is SmallBen's. It guards the fields below, and the fields of sessions
	// and pages that say nothing else.
	mu      *sync.RWMutex
	entries map[int64]*entry // by job id
	session *session         // nil while not started
	cronIDs cronIDs

	// shards hold what is known of the runs of jobs, by id.
	shards [64]shard
}

// shard is what runs of some jobs share with changes of them. There are many, so
// that runs that are due at one instant do not meet at one lock.
type shard struct {
	// mu guards states, and of the jobs of this shard the fields of entries that
	// say so. It is a leaf, held for moments: nothing is called under it.
	mu     sync.Mutex
	states map[int64]*jobState // by job id
}

func (s *scheduler) shard(id int64) *shard { return &s.shards[uint64(id)%uint64(len(s.shards))] }

// overlap is what happens to a tick that comes while its job still runs.
type overlap int

const (
	overlapAllow overlap = iota
	overlapSkip
	overlapDelay
)

func newScheduler(config *Config, mu *sync.RWMutex, log eventLog) *scheduler {
	s := &scheduler{
		location: config.location(),
		recorded: config.Runs.Record,
		log:      log,
		metrics:  newRunMetrics(),
		runs:     newRunner(config),
		pageSize: pageSize,
		clock:    processClock(),
		mu:       mu,
		entries:  make(map[int64]*entry),
	}
	for i := range s.shards {
		s.shards[i].states = make(map[int64]*jobState)
	}
	switch {
	case config.SchedulerConfig.DelayIfStillRunning:
		s.overlap = overlapDelay
	case config.SchedulerConfig.SkipIfStillRunning:
		s.overlap = overlapSkip
	}
	return s
}

// session is the time from a Start to the Stop that ends it.
type session struct {
	scheduler *scheduler
	pages     map[*page]struct{}
	roomy     []*page         // pages that may have room; stale ones are dropped when met
	stop      chan struct{}   // closed by Stop
	context   context.Context // of its runs
	cancel    context.CancelFunc

	before *session // an earlier one that has runs in progress, if any

	recording *recording // nil: runs are not recorded

	// stopped ends the starting of runs. A run counts itself in running first, and
	// looks at stopped then, so that Stop misses none. With a recording a run
	// begins to count when its claim is asked for: one that is won is started.
	stopped atomic.Bool
	running atomic.Int64  // runs in progress
	logging atomic.Int64  // runs that failed and are being logged
	idle    chan struct{} // closed when stopped is set and nothing runs
	quiet   chan struct{} // closed when, besides, nothing is being logged
	closing sync.Mutex    // of idle and quiet
}

// over reports whether nothing of the session goes on.
func (s *session) over() bool {
	return closed(s.idle) && (s.recording == nil || closed(s.recording.done))
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
	s.ended()
}

// ended is called when something of a session has ended.
func (s *session) ended() {
	if !s.stopped.Load() || s.running.Load() > 0 {
		return
	}
	s.closing.Lock()
	defer s.closing.Unlock()
	if !closed(s.idle) {
		close(s.idle)
	}
	if s.logging.Load() == 0 && !closed(s.quiet) {
		close(s.quiet)
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

// page is one cron.Cron, filled to pageSize at most and never restarted.
type page struct {
	cron   *cron.Cron
	live   int  // entries in it; 0 means that it is stopped
	listed bool // stands in session.roomy
}

// target is what an entry runs, and when.
type target struct {
	id        int64
	createdAt int64 // Unix microseconds; tells a job from one of the same id before it
	cronID    int32
	jobHash   uint32 // of the stored job; guarded as the fields below
	schedule  cron.Schedule
	revision  int64 // of the stored job, if runs are recorded; guarded as the fields below

	// The fields below change in place at an update and are guarded by the
	// shard's mu; what input points to is not changed.
	metrics      *typeMetrics
	job          CronJob
	groupID      int64
	superGroupID int64
	expression   string
	input        []inputField
	storedInput  string
}

// inputField is one key of an input. A slice of them takes a tenth of the
// memory of a map, and each run is given a map of its own in any case.
type inputField struct {
	key   string
	value any
}

// entry is a target in the scheduler. It is the cron.Schedule and the cron.Job
// of its place in a page.
type entry struct {
	target
	ticks   tickQueue
	session *session // nil if it is in no page, as the two below
	page    *page
	pageID  int32
	dead    bool // it was removed or replaced: guarded by the shard's mu
}

func (s *scheduler) newTarget(job *JobWithSchedule) target {
	t := target{
		id:        job.rawJob.ID,
		createdAt: job.rawJob.CreatedAt.UnixMicro(),
		cronID:    int32(job.rawJob.CronID),
		schedule:  s.canonical(job.schedule),
	}
	s.describe(&t, job)
	return t
}

// canonical gives the schedule whose ticks every process computes alike, if runs
// are recorded.
func (s *scheduler) canonical(schedule cron.Schedule) cron.Schedule {
	if !s.recorded {
		return schedule
	}
	return canonicalSchedule(schedule, s.location)
}

var hashSeed = maphash.MakeSeed()

// describe sets what a change sets in place. A job or an input that did not
// change keeps its values.
func (s *scheduler) describe(t *target, job *JobWithSchedule) {
	t.groupID = job.rawJob.GroupID
	t.superGroupID = job.rawJob.SuperGroupID
	t.expression = job.rawJob.CronExpression
	if job.rawJob.Revision != 0 {
		t.revision = job.rawJob.Revision
	}
	if hash := uint32(maphash.String(hashSeed, job.rawJob.SerializedJob)); job.changes.job || t.jobHash != hash {
		t.jobHash = hash
		t.job = job.job
		t.metrics = s.metrics.forJob(job)
	}
	if t.storedInput == job.rawJob.SerializedJobInput && !job.changes.input {
		return
	}
	t.storedInput = job.rawJob.SerializedJobInput
	t.input = nil
	if job.input != nil {
		t.input = make([]inputField, 0, len(job.input))
		for key, value := range job.input {
			t.input = append(t.input, inputField{key, value})
		}
	}
}

// inputAt is what a run of the tick receives, its own map excepted: that one is
// made by execute, outside the lock.
func (t *target) inputAt(at tick) CronJobInput {
	return CronJobInput{
		JobID:          t.id,
		GroupID:        t.groupID,
		SuperGroupID:   t.superGroupID,
		CronExpression: t.expression,
		ScheduledAt:    at.at,
		Triggered:      at.triggered,
		Attempt:        at.attempt(),
		Missed:         at.missed(),
		stored:         t.storedInput,
	}
}

// Next implements cron.Schedule. cron calls it once when it arms the entry and
// once after each start, in that order, so that the ticks wait in the queue in
// the order of the runs that they are for.
func (e *entry) Next(now time.Time) time.Time {
	next := e.schedule.Next(now)
	if !next.IsZero() {
		e.ticks.push(next.Unix())
	}
	return next
}

// Run implements cron.Job.
func (e *entry) Run() {
	s := e.session.scheduler
	at := tick{at: time.Unix(e.ticks.pop(), 0).In(s.location)}
	if recording := e.session.recording; recording != nil {
		recording.ask(e, at)
		return
	}
	s.fireAndExecute(e, at)
}

// tickQueue holds the ticks that an entry was armed for and that no run has
// taken yet. The zero value is empty.
type tickQueue struct {
	mu    sync.Mutex
	ticks []int64 // Unix seconds
	first [2]int64
}

func (q *tickQueue) push(tick int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ticks == nil {
		q.ticks = q.first[:0]
	}
	q.ticks = append(q.ticks, tick)
}

func (q *tickQueue) pop() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	tick := q.ticks[0]
	q.ticks = slices.Delete(q.ticks, 0, 1)
	return tick
}

// startLocked puts the targets, in place of all entries before, into pages of a
// new session. It expects the scheduler not to be started.
func (s *scheduler) startLocked(targets []target, recording *recording) {
	ctx, cancel := context.WithCancel(context.Background())
	s.session = &session{
		scheduler: s,
		context:   ctx,
		cancel:    cancel,
		pages:     make(map[*page]struct{}),
		stop:      make(chan struct{}),
		idle:      make(chan struct{}),
		quiet:     make(chan struct{}),
		recording: recording,
	}
	if recording != nil {
		recording.session = s.session
	}
	clear(s.entries)
	s.addLocked(targets)
	go s.keepTime(s.session)
	if recording != nil {
		recording.run()
	}
}

// stopLocked ends the session: from here on nothing starts. Its idle channel
// tells when the last run has ended.
func (s *scheduler) stopLocked() {
	ending := s.session
	s.session = nil
	close(ending.stop)
	ending.stopped.Store(true)
	ending.ended()
	for p := range ending.pages {
		p.cron.Stop()
	}
	ending.pages, ending.roomy = nil, nil
}

// addLocked makes entries of the targets, whose ids have none, and schedules
// them if the scheduler is started. Whole pages are filled before they run: an
// add to a running one wakes and sorts it.
func (s *scheduler) addLocked(targets []target) {
	added := make([]*entry, len(targets))
	for i := range targets {
		added[i] = &entry{target: targets[i], session: s.session}
		s.entries[targets[i].id] = added[i]
		s.cronIDs.claim(int64(targets[i].cronID))
	}
	if s.session == nil {
		return
	}
	for len(added) >= s.pageSize {
		s.openPageLocked(added[:s.pageSize])
		added = added[s.pageSize:]
	}
	for len(added) > 0 {
		p := s.session.roomyPageLocked()
		if p == nil {
			s.openPageLocked(added)
			return
		}
		n := min(s.pageSize-p.live, len(added))
		for _, e := range added[:n] {
			p.add(e)
		}
		added = added[n:]
	}
}

func (s *scheduler) openPageLocked(entries []*entry) {
	p := &page{cron: cron.New(
		cron.WithLocation(s.location),
		cron.WithLogger(silent{}),
		cron.WithChain(),
	)}
	for _, e := range entries {
		p.add(e)
	}
	p.cron.Start()
	s.session.pages[p] = struct{}{}
	s.session.listLocked(p)
}

func (p *page) add(e *entry) {
	e.page = p
	e.pageID = int32(p.cron.Schedule(e, e))
	p.live++
}

// listLocked notes a page that has room.
func (s *session) listLocked(p *page) {
	if p.live < s.scheduler.pageSize && !p.listed {
		p.listed = true
		s.roomy = append(s.roomy, p)
	}
}

// roomyPageLocked returns a page that runs and has room, or nil.
func (s *session) roomyPageLocked() *page {
	for len(s.roomy) > 0 {
		p := s.roomy[len(s.roomy)-1]
		if p.live > 0 && p.live < s.scheduler.pageSize {
			return p
		}
		p.listed = false
		s.roomy = s.roomy[:len(s.roomy)-1]
	}
	return nil
}

// removeLocked removes the entries of the ids that have one, and frees their cron
// ids. Once it has returned, no run of theirs starts, not even one that waited:
// those it returns.
func (s *scheduler) removeLocked(ids []int64) (waited map[*entry]tick) {
	removed := make(map[*page][]*entry)
	for _, id := range ids {
		e, ok := s.entries[id]
		if waiting, at := s.shard(id).remove(id, e); waiting != nil {
			if waited == nil {
				waited = make(map[*entry]tick)
			}
			waited[waiting] = at
		}
		if !ok {
			continue
		}
		delete(s.entries, id)
		s.cronIDs.release(e.cronID)
		if e.session == s.session && e.page != nil {
			removed[e.page] = append(removed[e.page], e)
		}
	}
	if s.session == nil {
		return waited
	}
	for p, entries := range removed {
		p.live -= len(entries)
		if p.live == 0 {
			p.cron.Stop()
			delete(s.session.pages, p)
			delete(removed, p)
			continue
		}
		s.session.listLocked(p)
	}
	s.session.roomy = slices.DeleteFunc(s.session.roomy, func(p *page) bool { return p.live == 0 })
	// In turn from each page: a page is still busy with one entry when the next
	// page takes its own.
	for len(removed) > 0 {
		for p, entries := range removed {
			p.cron.Remove(cron.EntryID(entries[0].pageID))
			if len(entries) == 1 {
				delete(removed, p)
			} else {
				removed[p] = entries[1:]
			}
		}
	}
	return waited
}

// remove ends the starting of runs of a job, and returns the entry whose tick
// waited, if it might have started. The job's own entry may be nil.
func (s *shard) remove(id int64, e *entry) (waiting *entry, at tick) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state := s.states[id]; state != nil && state.waiting != nil {
		if state.waiting.live(state.tick) {
			waiting, at = state.waiting, state.tick
		}
		state.waiting = nil
	}
	if e != nil {
		e.dead = true
	}
	return waiting, at
}

// replaceLocked removes the entries of the ids and adds the targets. A tick that
// waits for the end of a run waits on, if its job is among the targets.
func (s *scheduler) replaceLocked(ids []int64, targets []target) {
	waited := s.removeLocked(ids)
	s.addLocked(targets)
	for old, at := range waited {
		e, ok := s.entries[old.id]
		if ok && e.createdAt == old.createdAt && e.session != nil {
			// It waits again, or starts if the run before it has ended.
			go s.fireAndExecute(e, at)
		} else {
			at.skip("its job was changed while it waited")
		}
	}
}

// describeLocked changes an entry in place: its ticks go on.
func (s *scheduler) describeLocked(e *entry, job *JobWithSchedule) {
	shard := s.shard(e.id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	s.describe(&e.target, job)
}

// describeWaiting changes the run of a paused job that was triggered and waits.
func (s *scheduler) describeWaiting(job *JobWithSchedule) {
	shard := s.shard(job.rawJob.ID)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if state := shard.states[job.rawJob.ID]; state != nil && state.waiting != nil {
		s.describe(&state.waiting.target, job)
	}
}

// rescheduledLocked gives the target that takes the place of an entry whose
// expression changed.
func (s *scheduler) rescheduledLocked(e *entry, job *JobWithSchedule) target {
	shard := s.shard(e.id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	t := e.target
	t.schedule = s.canonical(job.schedule)
	s.describe(&t, job)
	return t
}

// rearmLocked puts all entries into new pages, armed by the clock as it is now.
// They are new entries: the queues of the old ones hold ticks of the old clock.
func (s *scheduler) rearmLocked() {
	ids := make([]int64, 0, len(s.entries))
	targets := make([]target, 0, len(s.entries))
	for id, e := range s.entries {
		ids = append(ids, id)
		targets = append(targets, e.target)
	}
	s.replaceLocked(ids, targets)
}

// triggerLocked begins a run of each job: through its entry, or, where it has none
// because it is paused, through one that is in no page. If runs are recorded,
// only those run that have a claim.
func (s *scheduler) triggerLocked(jobs []JobWithSchedule, at tick, claims map[int64]*claim) (begun []*run, skipped []int64) {
	for i := range jobs {
		e, ok := s.entries[jobs[i].rawJob.ID]
		if !ok {
			e = &entry{target: s.newTarget(&jobs[i]), session: s.session}
		}
		at := at
		if s.recorded {
			if at.claim = claims[e.id]; at.claim == nil {
				continue // its job runs elsewhere
			}
			at.at = at.claim.Tick.In(s.location)
		}
		r, admission := s.admit(e, at)
		switch admission {
		case admitted:
			begun = append(begun, r)
		case refused:
			skipped = append(skipped, e.id)
			at.skip(stillRunning)
		case gone:
			at.skip("SmallBen was stopped")
		}
	}
	return begun, skipped
}

// keepTime makes the pages read the clock every clockInterval. cron compares
// wall times but sleeps on a monotonic timer, which a suspended machine and a
// clock that was set leave behind; and entries armed before a step back wait for
// a future that is too far.
func (s *scheduler) keepTime(session *session) {
	ticker := time.NewTicker(clockInterval)
	defer ticker.Stop()
	wall, monotonic := s.clock()
	for {
		select {
		case <-session.stop:
			return
		case <-ticker.C:
		}
		wallNow, monotonicNow := s.clock()
		step := wallNow.Sub(wall) - (monotonicNow - monotonic)
		wall, monotonic = wallNow, monotonicNow
		if step <= -clockStep {
			if s.rearm(session) {
				// Not on this goroutine: a sink may block.
				go s.log.Info("clock stepped back, schedules follow it", "step", step.String())
			}
			continue
		}
		for _, p := range s.pagesOf(session) {
			p.cron.Remove(0) // removes nothing, and wakes the page
		}
	}
}

func (s *scheduler) rearm(session *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != session {
		return false
	}
	s.rearmLocked()
	return true
}

func (s *scheduler) pagesOf(session *session) []*page {
	s.mu.RLock()
	defer s.mu.RUnlock()
	pages := make([]*page, 0, len(session.pages))
	for p := range session.pages {
		pages = append(pages, p)
	}
	return pages
}

// processClock gives the wall time, and the time that has passed on the
// monotonic clock since it was called itself.
func processClock() func() (time.Time, time.Duration) {
	origin := time.Now()
	return func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0), now.Sub(origin)
	}
}

// jobState is what is known of a job by its id, whatever its entries: it keeps a
// job from overlapping itself across updates, pauses and a deletion, and
// remembers the last run. It exists from the first run on.
type jobState struct {
	running []*session // of each run in progress
	waiting *entry     // whose tick waits for the end of a run, if any
	tick    tick
	last    RunResult // of the job that was created at createdAt
	gone    bool      // the job was deleted: the state goes with its last run

	createdAt int64 // as target.createdAt
}

// tick is an instant that a run is for.
type tick struct {
	at        time.Time
	triggered bool   // by TriggerJobs, not by the schedule
	claim     *claim // nil: runs are not recorded
}

func (t tick) attempt() int {
	if t.claim == nil {
		return 1
	}
	return t.claim.Attempt
}

func (t tick) missed() int {
	if t.claim == nil {
		return 0
	}
	return t.claim.missed
}

// live reports whether a run of the entry may start at a tick. It expects the
// shard's mu. One that is claimed starts though its session was stopped, which
// waits for it.
func (e *entry) live(at tick) bool {
	return !e.dead && (at.claim != nil || !e.session.stopped.Load())
}

// skip records that the tick will not run, if it is claimed.
func (t tick) skip(reason string) {
	if t.claim != nil {
		t.claim.skip(reason)
	}
}

func (s *scheduler) fireAndExecute(e *entry, at tick) {
	if r := s.fire(e, at); r != nil {
		s.execute(r)
	}
}

// fire is the one way for a job to run: it admits the tick, or lets it wait, or
// skips it. A run that is admitted is for the caller to execute.
func (s *scheduler) fire(e *entry, at tick) *run {
	r, admission := s.admit(e, at)
	switch admission {
	case refused:
		s.logSkipped(e.id, at)
		at.skip(stillRunning)
	case gone:
		at.skip("its job was paused, changed or deleted before it started")
	}
	return r
}

// stillRunning is why most ticks are skipped.
const stillRunning = "the job is still running"

func (s *scheduler) logSkipped(id int64, at tick) {
	s.log.Info("run skipped: "+stillRunning, "job", id, "tick", at.at)
}

// admission is what becomes of a tick.
type admission int

const (
	admitted admission = iota
	waits              // for the end of a run
	refused            // the job is still running
	gone               // the entry is, or its session
)

func (s *scheduler) admit(e *entry, at tick) (*run, admission) {
	shard := s.shard(e.id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if !e.live(at) {
		return nil, gone
	}
	state := shard.states[e.id]
	if state == nil {
		state = &jobState{}
		shard.states[e.id] = state
	}
	if state.createdAt != e.createdAt {
		// One of the same id was deleted.
		state.createdAt, state.last = e.createdAt, RunResult{}
	}
	state.gone = false
	if len(state.running) > 0 {
		switch {
		case s.overlap == overlapAllow:
		case s.overlap == overlapDelay && (state.waiting == nil || !state.waiting.live(state.tick)):
			state.waiting, state.tick = e, at
			return nil, waits
		default:
			e.metrics.skipped.Inc()
			return nil, refused
		}
	}
	if r := state.begin(e, at); r != nil {
		return r, admitted
	}
	return nil, gone
}

// begin puts a run on the books, or returns nil if the session was stopped. It
// expects the shard's mu.
func (state *jobState) begin(e *entry, at tick) *run {
	if at.claim == nil {
		e.session.running.Add(1)
	}
	if !e.live(at) {
		if at.claim == nil {
			e.session.release()
		}
		return nil
	}
	state.running = append(state.running, e.session)
	return &run{session: e.session, state: state, createdAt: e.createdAt, metrics: e.metrics, claim: at.claim, job: e.job, input: e.inputAt(at), fields: e.input}
}

// end takes a run off the books and returns the one that waited for it, if that
// may still start.
func (s *scheduler) end(r *run, result *RunResult) (next *run) {
	var dropped *claim // never started, though it waited
	defer func() {
		if dropped != nil {
			dropped.skip("its job was deleted while it waited")
		}
	}()
	if result.Outcome != OutcomeOK {
		r.session.logging.Add(1)
	}
	if r.claim == nil {
		defer r.session.release()
	} else {
		defer r.claim.finish(result)
	}
	id, state := r.input.JobID, r.state
	shard := s.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	i := slices.Index(state.running, r.session)
	state.running = slices.Delete(state.running, i, i+1)
	if state.createdAt == r.createdAt {
		state.last = *result
	}
	if len(state.running) > 0 {
		return nil
	}
	if state.waiting != nil {
		if next = state.begin(state.waiting, state.tick); next == nil {
			dropped = state.tick.claim
		}
		state.waiting = nil
	}
	if state.gone && next == nil {
		delete(shard.states, id)
	}
	return next
}

// logged takes the line of a run that failed off the books.
func (s *session) logged() {
	s.logging.Add(-1)
	s.ended()
}

// forgetLocked drops what is known of the runs of jobs that were deleted.
func (s *scheduler) forgetLocked(ids []int64) {
	for _, id := range ids {
		shard := s.shard(id)
		shard.mu.Lock()
		if state := shard.states[id]; state != nil {
			state.gone = true
			if len(state.running) == 0 {
				delete(shard.states, id)
			}
		}
		shard.mu.Unlock()
	}
}

// runsOf returns the last run of a job in this process, and whether it runs.
func (s *scheduler) runsOf(id int64) (last RunResult, running bool) {
	shard := s.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if state := shard.states[id]; state != nil {
		return state.last, len(state.running) > 0
	}
	return RunResult{}, false
}

// ran returns the ids of the jobs that have run in this process and that match.
func (s *scheduler) ran(match func(id int64, state *jobState) bool) (ids []int64) {
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.Lock()
		for id, state := range shard.states {
			if match(id, state) {
				ids = append(ids, id)
			}
		}
		shard.mu.Unlock()
	}
	slices.Sort(ids)
	return ids
}

// runningIn returns the ids of the jobs that run in a session or in those before
// it, in order.
func (s *scheduler) runningIn(session *session) []int64 {
	return s.ran(func(_ int64, state *jobState) bool {
		for s := session; s != nil; s = s.before {
			if slices.Contains(state.running, s) {
				return true
			}
		}
		return false
	})
}

// cronIDs hands out the numbers of entries: positive, and unique in this
// process. The zero value has handed out none.
type cronIDs struct {
	used map[int32]struct{}
	last int32
}

// claim takes a number if it is positive and free.
func (c *cronIDs) claim(id int64) bool {
	if id <= 0 || id > maxCronID {
		return false
	}
	if _, taken := c.used[int32(id)]; taken {
		return false
	}
	if c.used == nil {
		c.used = make(map[int32]struct{})
	}
	c.used[int32(id)] = struct{}{}
	return true
}

// next takes the next free number.
func (c *cronIDs) next() int32 {
	for {
		if c.last == maxCronID {
			c.last = 0
		}
		c.last++
		if c.claim(int64(c.last)) {
			return c.last
		}
	}
}

func (c *cronIDs) release(id int32) { delete(c.used, id) }

const maxCronID = 1<<31 - 1

// silent discards what cron says at each wake.
type silent struct{}

func (silent) Info(string, ...any)         {}
func (silent) Error(error, string, ...any) {}

package smallben

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	claimers    = 2    // goroutines that claim: a burst uses two connections
	maxClaims   = 1000 // in one call of the Recorder
	maxFinished = 2000 // runs in one call of the Recorder
	// While claims wait for the database, the ends of runs wait for them, this
	// long at most.
	finishWait, finishStep = 100 * time.Millisecond, 10 * time.Millisecond
	maxSyncWait            = 5 * time.Second
	// earlyWait is how long a claim waits that came before the database's clock.
	earlyWait = 200 * time.Millisecond
	// troubleWait is how long the record is left alone when it did not answer.
	troubleWait = 200 * time.Millisecond
)

// runsTiming is what tests shorten.
type runsTiming struct {
	// DeadAfter is how long a process has shown no beat, while the database
	// answered, when it is taken for dead.
	DeadAfter time.Duration
	// SweepEvery is how often the leader looks for missed ticks, and MissedAfter
	// how old one is at least.
	SweepEvery, MissedAfter time.Duration
	// ClaimPatience is how long a claim that the database does not answer is
	// tried, and how old a claim may be when its run starts.
	ClaimPatience time.Duration
	// FlushPatience is how long Stop waits for the ends of runs to be recorded.
	FlushPatience time.Duration
}

var defaultRunsTiming = runsTiming{
	DeadAfter:     15 * time.Second,
	SweepEvery:    time.Minute,
	MissedAfter:   30 * time.Second,
	ClaimPatience: 10 * time.Second,
	FlushPatience: 10 * time.Second,
}

// record is the record of runs as one SmallBen uses it.
type record struct {
	recorder  Recorder
	refusal   error // why there is no recorder
	config    RunsConfig
	location  string
	timing    runsTiming
	metrics   *recordMetrics
	scheduler *scheduler

	// seen is the revision that memory agrees with at least. It moves under
	// changeMu, or over a change that concerns no job.
	seen atomic.Int64

	opening sync.Mutex // guards opened
	opened  bool
}

func newRecord(repository Repository, config RunsConfig, s *scheduler) *record {
	r := &record{config: config, timing: defaultRunsTiming, metrics: newRecordMetrics(), scheduler: s, location: s.location.String()}
	r.recorder, r.refusal = recorderOf(repository, &r.config, s.location)
	return r
}

// recorderOf sets what the config leaves to us, or says why runs cannot be
// recorded so.
func recorderOf(repository Repository, config *RunsConfig, location *time.Location) (Recorder, error) {
	recorder, ok := repository.(Recorder)
	if !ok {
		return nil, fmt.Errorf("Runs.Record needs a repository that is a Recorder, and %T is none", repository)
	}
	if config.SyncInterval == 0 {
		config.SyncInterval = time.Second
	}
	if config.Retention == 0 {
		config.Retention = 7 * 24 * time.Hour
	}
	switch {
	case config.SyncInterval < 10*time.Millisecond || config.SyncInterval > 5*time.Second:
		return nil, fmt.Errorf("Runs.SyncInterval is %v, not between 10ms and 5s", config.SyncInterval)
	case config.Retention > 0 && config.Retention < time.Minute:
		return nil, fmt.Errorf("Runs.Retention is %v, less than a minute", config.Retention)
	case config.Missed < MissedSkip || config.Missed > MissedRunAll:
		return nil, fmt.Errorf("Runs.Missed is %d, which is no MissedPolicy", config.Missed)
	case location == time.Local:
		return nil, errors.New("WithLocation is time.Local, which may be another location in another process: with Runs.Record give one by name")
	}
	if !inDatabase(location) {
		return nil, fmt.Errorf("WithLocation is %q, which is not in the time zone database: with Runs.Record every process must find it there", location)
	}
	return recorder, nil
}

// inDatabase reports whether a location is the one of its name in the time zone
// database.
func inDatabase(location *time.Location) bool {
	named, err := time.LoadLocation(location.String())
	if err != nil || location.String() == "" {
		return false
	}
	for month := range 24 {
		at := time.Date(2025, time.Month(1+month), 1, 0, 0, 0, 0, time.UTC)
		_, offset := at.In(location).Zone()
		if _, want := at.In(named).Zone(); offset != want {
			return false
		}
	}
	return true
}

// open makes sure that there is a record.
func (r *record) open() error {
	r.opening.Lock()
	defer r.opening.Unlock()
	if r.refusal != nil || r.opened {
		return r.refusal
	}
	if err := r.recorder.OpenRecord(r.location); err != nil {
		return err
	}
	r.opened = true
	return nil
}

// change is Recorder.Change on a record that is open.
func (r *record) change(write func(tx RecordTx) error) (revision int64, err error) {
	revision, err = r.recorder.Change(write)
	if err == nil {
		r.seen.CompareAndSwap(revision-1, revision)
	}
	return revision, err
}

// ListRuns returns the recorded runs that match options, newest tick first: what
// ran, where and how it went, what was missed, skipped or lost, and what is
// running. Nil options match the newest thousand. Times are in the location of
// SchedulerConfig. Without Config.Runs.Record it returns an error.
func (s *SmallBen) ListRuns(options *ListRunsOptions) ([]Run, error) {
	if options == nil {
		options = &ListRunsOptions{}
	}
	runs, err := s.listRuns(*options)
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	return runs, nil
}

func (s *SmallBen) listRuns(options ListRunsOptions) ([]Run, error) {
	if s.record == nil {
		return nil, errors.New("runs are not recorded: Config.Runs.Record is not set")
	}
	if err := s.record.open(); err != nil {
		return nil, err
	}
	runs, err := s.record.recorder.ListRuns(options)
	for i := range runs {
		s.record.localize(&runs[i])
	}
	return runs, err
}

func (r *record) localize(run *Run) {
	for _, t := range []*time.Time{&run.Tick, &run.FirstTick, &run.Start, &run.End} {
		if !t.IsZero() {
			*t = t.In(r.scheduler.location)
		}
	}
}

// describe gives jobs their last recorded run.
func (r *record) describe(jobs []Job) error {
	if err := r.open(); err != nil {
		return err
	}
	ids := make([]int64, len(jobs))
	index := make(map[int64]int, len(jobs))
	for i := range jobs {
		ids[i], index[jobs[i].ID] = jobs[i].ID, i
	}
	runs, err := r.recorder.LastRuns(ids)
	for i := range runs {
		r.localize(&runs[i])
		jobs[index[runs[i].JobID]].recorded = runs[i]
	}
	return err
}

// follow makes memory agree with what was changed after a revision, or with the
// rows of ids. It expects changeMu.
func (s *SmallBen) follow(since int64, ids []int64) error {
	changes, err := s.record.recorder.Changes(since, ids)
	if err != nil {
		return err
	}
	known := slices.Clone(changes.Gone)
	if since == 0 && ids == nil {
		known = append(known, s.scheduled()...)
	}
	for i := range changes.Jobs {
		known = append(known, changes.Jobs[i].ID)
	}
	if err := s.meet(changes.Jobs, known); err != nil {
		return err
	}
	if ids == nil {
		s.record.seen.Store(changes.Revision)
	}
	return nil
}

// fireSince asks for the ticks of jobs that came after their accounts began
// and before they were scheduled here: nobody else fires them.
func (s *SmallBen) fireSince(began time.Time, jobs []JobWithSchedule) {
	const most = 100 // ticks of a job; what is more is missed
	if s.record == nil {
		return
	}
	s.scheduler.mu.RLock()
	defer s.scheduler.mu.RUnlock()
	if s.scheduler.session == nil {
		return
	}
	now := time.Now().In(s.scheduler.location)
	for i := range jobs {
		e, ok := s.scheduler.entries[jobs[i].rawJob.ID]
		if !ok {
			continue
		}
		ticks, _ := ticksIn(e.slot.Schedule, began.In(s.scheduler.location), now, most)
		for _, at := range ticks {
			e.session.recording.ask(e, tick{at: at})
		}
	}
}

// scheduled are the ids of the jobs that memory knows.
func (s *SmallBen) scheduled() []int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.AppendSeq(s.scheduler.ids(), maps.Keys(s.paused))
}

// sync follows what others changed, and reads the rows of ids in any case.
func (s *SmallBen) sync(ids []int64) error {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	if err := s.follow(s.record.seen.Load(), nil); err != nil {
		return err
	}
	if len(ids) == 0 {
		return nil
	}
	return s.follow(0, ids)
}

// recording is what records the runs of one session: it asks for claims, records
// ends, shows that it is alive, and follows what other processes do. Nil records
// nothing.
type recording struct {
	*record
	smallBen *SmallBen
	session  *session
	process  string

	claims   queue[*claim]
	finishes queue[FinishedRun]
	outdated chan struct{} // wakes the following of others; holds 1
	due      chan struct{} // wakes the sweep; holds 1
	answered chan struct{} // wakes what waits for the database; holds 1
	gaveUp   chan struct{} // closed: ends of runs are no longer recorded
	ended    chan struct{} // closed: beats end
	done     chan struct{} // closed: nothing more is recorded

	mu        sync.Mutex // guards the fields below, for moments
	asked     map[runKey]struct{}
	unclaimed map[*claim]struct{} // that run without being recorded, yet
	inTrouble bool
	lastBeat  time.Time     // by this process's clock
	inSync    time.Time     // when memory was known to agree with the database last
	offset    time.Duration // of the database's clock to this process's
	pulse     Pulse         // the last one

	registration sync.Mutex // held while the process joins, beats or leaves
	left         bool

	claiming   atomic.Int64 // calls of Claim in progress
	catchingUp atomic.Int64 // runs in progress that make up for missed or lost ones
	burying    sync.Mutex
	beating    sync.WaitGroup // the beats, and the burials that they begin
	inDoubt    atomic.Bool    // there may be unfinished runs that nobody knows

	// watched is what the beats know of other processes.
	watched map[string]watch
	// accounted is what the sweep knows of accounts.
	accounted map[int64]accounted
	postponed map[int64]int // how often jobs were, one sweep after another
}

// runKey is RunKey as a key of maps.
type runKey struct {
	jobID     int64
	tick      int64 // Unix microseconds
	triggered bool
	attempt   int
}

func (k RunKey) key() runKey {
	return runKey{k.JobID, k.Tick.UnixMicro(), k.Triggered, k.Attempt}
}

// claim is a run that this process asks for or has been given. It counts as a run
// in progress of the session until it is finished or dropped.
type claim struct {
	Claim
	recording *recording
	createdAt int64 // as target.createdAt
	missed    int   // as CronJobInput.Missed
	catchUp   bool
	via       *entry // that fired, or nil
	asked     time.Time
	stale     int      // how often it was
	unsure    bool     // it may be recorded already: the reply was lost
	rest      []*claim // to be run after it, one after another
}

// join registers a process for a new session.
func (s *SmallBen) join() (*recording, error) {
	if err := s.record.open(); err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	now := time.Now()
	r := &recording{
		record:    s.record,
		smallBen:  s,
		process:   fmt.Sprintf("%s/%d/%s", host, os.Getpid(), strings.ToLower(rand.Text()[:6])),
		claims:    newQueue[*claim](),
		finishes:  newQueue[FinishedRun](),
		outdated:  make(chan struct{}, 1),
		due:       make(chan struct{}, 1),
		answered:  make(chan struct{}, 1),
		gaveUp:    make(chan struct{}),
		ended:     make(chan struct{}),
		done:      make(chan struct{}),
		asked:     make(map[runKey]struct{}),
		unclaimed: make(map[*claim]struct{}),
		lastBeat:  now,
		inSync:    now,
		watched:   make(map[string]watch),
		accounted: make(map[int64]accounted),
	}
	return r, s.record.recorder.Join(r.process)
}

// leave undoes join, as far as the database lets it.
func (r *recording) leave() {
	if r == nil {
		return
	}
	r.registration.Lock()
	defer r.registration.Unlock()
	r.left = true
	if err := r.recorder.Leave(r.process); err != nil {
		// The others will take this process for dead.
		r.smallBen.log.Error(err, "the record of runs was not left", "process", r.process)
	}
}

// run begins the work in the background. It ends by itself after the session.
func (r *recording) run() {
	var claiming, finishing, others sync.WaitGroup
	for range claimers {
		claiming.Go(r.claimUntilClosed)
	}
	finishing.Go(r.finishUntilClosed)
	others.Go(r.sweepUntilStopped)
	others.Go(r.syncUntilStopped)
	r.beating.Go(r.beatUntilEnded)
	go func() {
		defer close(r.done)
		<-r.session.idle
		r.claims.close()
		claiming.Wait()
		others.Wait()
		r.finishes.close()
		giveUp := time.AfterFunc(r.timing.FlushPatience, func() { close(r.gaveUp) })
		finishing.Wait()
		flushed := giveUp.Stop()
		close(r.ended)
		if flushed {
			// The database answers: nothing of this process goes on in it after Stop.
			r.beating.Wait()
		}
		if flushed && !r.inDoubt.Load() {
			r.leave()
		}
	}()
}

// exclusive reports whether runs of one job must not overlap anywhere.
func (r *recording) exclusive() bool { return r.scheduler.overlap == overlapSkip }

// ask asks for the run of a tick, in the background.
func (r *recording) ask(e *entry, at tick) {
	c, err := r.newClaim(RunKey{JobID: e.id, Tick: at.at.UTC(), Attempt: 1}, e.createdAt)
	if err != nil {
		return
	}
	c.via, c.Exclusive = e, r.exclusive()
	r.claims.push(c)
}

var (
	errStopped = errors.New("SmallBen was stopped")
	errAsked   = errors.New("the run was asked for already")
)

// newClaim counts a claim as a run in progress. It returns errStopped, or errAsked
// if the same run is: the clock may have been set back.
func (r *recording) newClaim(key RunKey, createdAt int64) (*claim, error) {
	if !r.session.hold() {
		return nil, errStopped
	}
	r.mu.Lock()
	_, twice := r.asked[key.key()]
	r.asked[key.key()] = struct{}{}
	r.mu.Unlock()
	if twice {
		r.session.release()
		return nil, errAsked
	}
	return &claim{Claim: Claim{RunKey: key}, recording: r, createdAt: createdAt, asked: time.Now()}, nil
}

// drop takes back a claim that was not won.
func (c *claim) drop() {
	if c.catchUp {
		c.recording.catchingUp.Add(-1)
	}
	c.recording.forget([]RunKey{c.RunKey})
	c.recording.session.release()
}

func (r *recording) forget(keys []RunKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range keys {
		delete(r.asked, key.key())
	}
}

func (r *recording) claimUntilClosed() {
	for {
		if !r.claims.wait() {
			return
		}
		room, freed := r.scheduler.places.reserve(maxClaims)
		if room == 0 {
			r.waitForRoom(freed)
			continue
		}
		batch, _ := r.claims.take(room)
		started := 0
		if batch = r.current(batch); len(batch) > 0 {
			started = r.claim(batch)
		}
		for range room - started {
			r.scheduler.leave()
		}
	}
}

// waitForRoom waits until a run may start, for a while: claims that are too old, or
// come after Stop, do not wait.
func (r *recording) waitForRoom(freed <-chan struct{}) {
	select {
	case <-freed:
	case <-time.After(troubleWait):
		batch, _ := r.claims.take(maxClaims)
		r.askAgain(r.current(batch))
	}
}

// current brings claims up to what is known of their jobs, and drops those that are
// too old, or whose tick is one no longer.
func (r *recording) current(batch []*claim) []*claim {
	s := r.scheduler
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.DeleteFunc(batch, func(c *claim) bool {
		if !c.unsure && since(c.asked) > r.timing.ClaimPatience {
			c.drop()
			return true
		}
		e, ok := s.entries[c.JobID]
		ok = ok && e.session == r.session && e.createdAt == c.createdAt && (e == c.via || isTick(e.slot.Schedule, c.Tick.In(s.location)))
		if !ok {
			if !c.unsure {
				c.drop()
			}
			return !c.unsure
		}
		shard := s.shard(c.JobID)
		shard.mu.Lock()
		defer shard.mu.Unlock()
		c.Revision, c.GroupID, c.SuperGroupID = e.revision, e.groupID, e.superGroupID
		return false
	})
}

// claim asks the database for a batch of claims and starts those that are won, in
// places that were reserved for them. It returns how many.
func (r *recording) claim(batch []*claim) (started int) {
	claims := make([]Claim, len(batch))
	for i, c := range batch {
		claims[i] = c.Claim
	}
	r.claiming.Add(1)
	sent := time.Now()
	results, err := r.recorder.Claim(r.process, claims)
	r.metrics.claimed(sent)
	r.claiming.Add(-1)
	if err != nil {
		return r.claimFailed(batch, err)
	}
	r.wellAgain()
	confirm := since(sent) > r.timing.ClaimPatience
	var stale, early, again []*claim
	for i, c := range batch {
		switch result := results[i]; result {
		case ClaimWon:
			if confirm {
				// This process was stopped in between, and may have been taken
				// for dead.
				c.unsure = true
				again = append(again, c)
				continue
			}
			r.metrics.won.Inc()
			started++
			go c.start(true)
		case ClaimSkipped:
			r.metrics.won.Inc()
			r.scheduler.skippedElsewhere(c)
			c.drop()
		case ClaimStale:
			stale = append(stale, c)
		case ClaimEarly:
			early = append(early, c)
		default:
			r.metrics.lost.Inc()
			c.drop()
		}
	}
	r.claims.push(again...)
	if len(stale) > 0 {
		r.metrics.refused.Add(float64(len(stale)))
		go r.refresh(stale)
	}
	if len(early) > 0 {
		time.AfterFunc(earlyWait, func() { r.askAgain(early) })
	}
	return started
}

// since is how long ago an instant was, by the clock that went on the longest: the
// monotonic one stands still while a machine sleeps.
func since(t time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}

// claimFailed decides on claims that the database did not answer. It returns how
// many runs it started.
func (r *recording) claimFailed(batch []*claim, err error) (started int) {
	r.trouble(err)
	switch {
	case errors.Is(err, ErrNotRegistered):
		r.beat() // which joins again
		r.pause(troubleWait)
	case r.config.RunUnclaimed && !r.session.stopped.Load():
		r.runUnclaimed(batch)
		return len(batch)
	case errors.Is(err, ErrOutcomeUnknown):
		for _, c := range batch {
			c.unsure = true
		}
		r.await(err)
	default:
		r.pause(troubleWait)
	}
	r.askAgain(batch)
	return 0
}

// runUnclaimed starts runs without a claim.
func (r *recording) runUnclaimed(batch []*claim) {
	r.metrics.unclaimed.Add(float64(len(batch)))
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range batch {
		r.unclaimed[c] = struct{}{}
		go c.start(true)
	}
}

// claimUnclaimed claims what runs without a claim, so that nobody takes it for
// missed.
func (r *recording) claimUnclaimed() {
	r.mu.Lock()
	batch := slices.Collect(maps.Keys(r.unclaimed))
	r.mu.Unlock()
	for batch := range slices.Chunk(batch, maxClaims) {
		claims := make([]Claim, len(batch))
		for i, c := range batch {
			claims[i] = c.Claim
		}
		results, err := r.recorder.Claim(r.process, claims)
		if err != nil {
			r.trouble(err)
			return
		}
		r.mu.Lock()
		for i, c := range batch {
			if results[i] == ClaimWon {
				delete(r.unclaimed, c)
			}
		}
		r.mu.Unlock()
	}
}

// askAgain asks for claims again that the database did not decide on, unless they
// are too old.
func (r *recording) askAgain(batch []*claim) {
	stopped := r.session.stopped.Load()
	batch = slices.DeleteFunc(slices.Clone(batch), func(c *claim) bool {
		old := since(c.asked) > r.timing.ClaimPatience
		switch {
		case !c.unsure && (old || stopped):
		case c.unsure && old && stopped:
			r.inDoubt.Store(true)
		default:
			return false
		}
		c.drop()
		return true
	})
	r.claims.push(batch...)
}

// await waits until the outcome of a write is known, for as long as a claim is
// worth it, and reports whether it is.
func (r *recording) await(err error) bool {
	var outcome interface{ Settled() (bool, error) }
	if !errors.As(err, &outcome) {
		r.pause(troubleWait)
		return true
	}
	for start := time.Now(); since(start) < r.timing.ClaimPatience; {
		if settled, err := outcome.Settled(); settled && err == nil {
			return true
		}
		r.pause(troubleWait)
	}
	return false
}

// pause waits a while, also when the session is stopped: the database is to be
// left alone then, too.
func (r *recording) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-r.ended:
	}
}

// refresh learns what changed of the jobs of stale claims, and asks again.
func (r *recording) refresh(stale []*claim) {
	ids := make([]int64, len(stale))
	for i, c := range stale {
		ids[i] = c.JobID
	}
	err := r.smallBen.sync(ids)
	if err != nil {
		r.trouble(err)
	}
	if stale[0].stale++; err != nil || stale[0].stale > 1 {
		r.pause(troubleWait)
	}
	r.askAgain(slices.DeleteFunc(stale, func(c *claim) bool {
		if c.unsure {
			// Not ours, then.
			c.drop()
		}
		return c.unsure
	}))
}

// start runs what was claimed. The run has a place if placed.
func (c *claim) start(placed bool) {
	s := c.recording.scheduler
	at := tick{at: c.Tick.In(s.location), triggered: c.Triggered, claim: c, placed: placed}
	for {
		s.mu.RLock()
		e, ok := s.entries[c.JobID]
		s.mu.RUnlock()
		if !ok || e.session != c.recording.session || e.createdAt != c.createdAt {
			c.skip("its job was paused or deleted, or SmallBen stopped, before it started")
			if at.placed {
				s.leave()
			}
			return
		}
		r, admission := s.admit(e, at)
		switch admission {
		case admitted:
			s.execute(r)
			return
		case waits:
			return
		case refused:
			c.skip(stillRunning)
			return
		}
		// The entry was replaced, and the place was left.
		at.placed = false
	}
}

// skippedElsewhere counts a tick whose job runs in another process, or here.
func (s *scheduler) skippedElsewhere(c *claim) {
	s.mu.RLock()
	e, ok := s.entries[c.JobID]
	s.mu.RUnlock()
	if !ok {
		return
	}
	shard := s.shard(e.id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	s.countSkipped(shard.state(e), e, c.Tick.In(s.location))
}

// finish records how a run ended.
func (c *claim) finish(result *RunResult) {
	c.ended(FinishedRun{Start: result.Start, End: result.Start.Add(result.Duration), Outcome: result.Outcome, Error: result.Error})
}

// skip records that a claimed tick did not run.
func (c *claim) skip(reason string) {
	now := time.Now()
	c.ended(FinishedRun{Start: now, End: now, Outcome: OutcomeSkipped, Error: reason})
}

func (c *claim) ended(run FinishedRun) {
	r := c.recording
	r.mu.Lock()
	_, run.Unclaimed = r.unclaimed[c]
	delete(r.unclaimed, c)
	r.mu.Unlock()
	run.RunKey, run.Exclusive = c.RunKey, c.Exclusive
	run.GroupID, run.SuperGroupID = c.GroupID, c.SuperGroupID
	run.Start, run.End = run.Start.UTC().Truncate(time.Microsecond), run.End.UTC().Truncate(time.Microsecond)
	run.Error = strings.ReplaceAll(strings.ToValidUTF8(run.Error, "�"), "\x00", "�")
	r.finishes.push(run)
	if c.catchUp {
		r.catchingUp.Add(-1)
	}
	if len(c.rest) > 0 {
		next := c.rest[0]
		next.rest = c.rest[1:]
		if r.session.stopped.Load() {
			next.skip("SmallBen was stopped before it started")
		} else {
			go next.start(false)
		}
	}
	r.session.release()
}

// finishUntilClosed records the ends of runs, for as long as it takes.
func (r *recording) finishUntilClosed() {
	for {
		r.finishes.wait()
		// But not where the next run of a job waits for the end of the one before.
		for waited := time.Duration(0); !r.exclusive() && waited < finishWait && (r.claiming.Load() > 0 || r.claims.len() > 0); waited += finishStep {
			r.pause(finishStep)
		}
		batch, ok := r.finishes.take(maxFinished)
		if !ok {
			return
		}
		for wait := troubleWait; ; wait = min(2*wait, maxSyncWait) {
			err := r.recorder.Finish(r.process, batch)
			if err == nil {
				r.wellAgain()
				break
			}
			r.trouble(err)
			select {
			case <-time.After(wait):
				continue
			case <-r.answered:
				continue
			case <-r.gaveUp:
			}
			r.smallBen.log.Error(err, "ends of runs were not recorded", "runs", len(batch)+r.finishes.len())
			return
		}
		keys := make([]RunKey, len(batch))
		for i := range batch {
			keys[i] = batch[i].RunKey
		}
		r.forget(keys)
	}
}

// trouble says once that the record does not answer, and wellAgain that it does.
func (r *recording) trouble(err error) {
	r.mu.Lock()
	known := r.inTrouble
	r.inTrouble = true
	r.mu.Unlock()
	if !known {
		r.smallBen.log.Error(err, "the record of runs does not answer", "process", r.process)
	}
}

func (r *recording) wellAgain() {
	r.mu.Lock()
	known := r.inTrouble
	r.inTrouble = false
	r.mu.Unlock()
	if known {
		r.smallBen.log.Info("the record of runs answers again", "process", r.process)
		wake(r.due)
		wake(r.answered)
		go r.claimUnclaimed()
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// watch is a process as another sees it.
type watch struct {
	beats int64
	still time.Duration // for which it showed no beat while the database answered
}

func (r *recording) beatUntilEnded() {
	ticker := time.NewTicker(r.config.SyncInterval)
	defer ticker.Stop()
	for {
		r.beat()
		select {
		case <-ticker.C:
		case <-r.ended:
			return
		}
	}
}

// beat shows that this process is alive, and looks what there is to do.
func (r *recording) beat() {
	r.registration.Lock()
	defer r.registration.Unlock()
	if r.left {
		return
	}
	seen, sent := r.seen.Load(), time.Now()
	pulse, err := r.recorder.Beat(r.process)
	if errors.Is(err, ErrNotRegistered) {
		// It was taken for dead. What it ran is recorded as lost.
		r.smallBen.log.Info("this process was taken for dead, and joins again", "process", r.process)
		if err = r.recorder.Join(r.process); err == nil {
			pulse, err = r.recorder.Beat(r.process)
		}
	}
	now := time.Now()
	if err != nil {
		r.trouble(err)
		return
	}
	r.wellAgain()
	r.mu.Lock()
	gap := now.Sub(r.lastBeat)
	r.lastBeat, r.pulse = now, pulse
	r.offset = pulse.Now.Sub(sent.Add(now.Sub(sent) / 2))
	if pulse.Revision == seen {
		r.inSync = now
	}
	r.mu.Unlock()
	if pulse.Revision < seen {
		// The database is an older copy of itself: everything is to be read again.
		r.seen.CompareAndSwap(seen, 0)
	}
	if pulse.Revision != seen {
		wake(r.outdated)
	}
	if dead := r.dead(pulse.Peers, gap); len(dead) > 0 {
		r.beating.Go(func() {
			if err := r.bury(dead); err != nil {
				r.trouble(err)
			}
		})
	}
}

// dead returns the processes that have stood still for too long. A gap between
// two answers of the database that is longer than it should be proves nothing.
func (r *recording) dead(peers []Peer, gap time.Duration) (dead []Peer) {
	if gap > 2*r.config.SyncInterval+time.Second {
		gap = 0
	}
	watched := make(map[string]watch, len(peers))
	for _, peer := range peers {
		if peer.Process == r.process {
			continue
		}
		w, known := r.watched[peer.Process]
		if !known || w.beats != peer.Beats {
			w = watch{beats: peer.Beats}
		} else {
			w.still += gap
		}
		watched[peer.Process] = w
		if w.still >= r.timing.DeadAfter {
			dead = append(dead, peer)
		}
	}
	r.watched = watched
	return dead
}

func (r *recording) syncUntilStopped() {
	for {
		select {
		case <-r.session.stop:
			return
		case <-r.outdated:
		}
		began := time.Now()
		if err := r.smallBen.sync(nil); err != nil {
			r.trouble(err)
			continue // the next beat finds it outdated still
		}
		r.mu.Lock()
		r.inSync = began
		r.mu.Unlock()
	}
}

// claimTriggered claims a run of each job at once, for TriggerJobs. The map has
// those that are to run, by job.
func (s *SmallBen) claimTriggered(jobs []JobWithSchedule, at tick) (map[int64]*claim, error) {
	if s.record == nil {
		return nil, nil
	}
	session := s.scheduler.current()
	if session == nil {
		return nil, errStopped
	}
	r := session.recording
	won := make(map[int64]*claim, len(jobs))
	undo := func(reason string) {
		for _, c := range won {
			c.skip(reason)
		}
	}
	pending := jobs
	// Another process, or another call, may have triggered at the same instant.
	for tick := at.at.UTC().Truncate(time.Microsecond); len(pending) > 0; tick = tick.Add(time.Microsecond) {
		claimed, err := r.claimNow(pending, tick)
		if err != nil {
			undo("another run of the same call could not be claimed")
			return nil, err
		}
		var taken []JobWithSchedule
		for i, c := range claimed {
			if c.claim == nil || c.result == ClaimTaken {
				taken = append(taken, pending[i])
			}
			if c.claim == nil {
				continue
			}
			switch c.result {
			case ClaimWon:
				r.metrics.won.Inc()
				won[c.JobID] = c.claim
				continue
			case ClaimSkipped:
				s.scheduler.skippedElsewhere(c.claim)
			case ClaimTaken:
			default:
				err = fmt.Errorf("%w: no job with id %d", s.repository.ErrorTypeIfMismatchCount(), c.JobID)
			}
			c.drop()
		}
		if err != nil {
			undo("another job of the same call was deleted meanwhile")
			return nil, err
		}
		pending = taken
	}
	return won, nil
}

// claimResult is what became of a claim. The claim is nil if it is asked for
// already.
type claimResult struct {
	*claim
	result ClaimResult
}

// claimNow asks for a triggered run of each job. One whose claim is not known is
// recorded as skipped, if at all.
func (r *recording) claimNow(jobs []JobWithSchedule, tick time.Time) ([]claimResult, error) {
	results := make([]claimResult, len(jobs))
	var asked []*claim
	var claims []Claim
	for i := range jobs {
		row := &jobs[i].rawJob
		c, err := r.newClaim(RunKey{JobID: row.ID, Tick: tick, Triggered: true, Attempt: 1}, row.CreatedAt.UnixMicro())
		if errors.Is(err, errStopped) {
			dropAll(asked)
			return nil, err
		}
		if err != nil {
			continue
		}
		c.GroupID, c.SuperGroupID, c.Exclusive = row.GroupID, row.SuperGroupID, r.exclusive()
		results[i].claim = c
		asked, claims = append(asked, c), append(claims, c.Claim)
	}
	if len(claims) == 0 {
		return results, nil
	}
	sent := time.Now()
	answers, err := r.recorder.Claim(r.process, claims)
	r.metrics.claimed(sent)
	if err != nil {
		abandon(asked, err)
		return nil, err
	}
	for i := range results {
		if results[i].claim != nil {
			results[i].result, answers = answers[0], answers[1:]
		}
	}
	return results, nil
}

// queue holds what waits for goroutines that take it in batches. It is
// goroutine-safe.
type queue[T any] struct {
	mu     *sync.Mutex
	filled *sync.Cond // something is in it, or it is closed
	items  []T
	closed bool
}

func newQueue[T any]() queue[T] {
	mu := new(sync.Mutex)
	return queue[T]{mu: mu, filled: sync.NewCond(mu)}
}

func (q *queue[T]) push(items ...T) {
	if len(items) == 0 {
		return
	}
	q.mu.Lock()
	q.items = append(q.items, items...)
	q.mu.Unlock()
	q.filled.Broadcast()
}

func (q *queue[T]) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

// close lets take return false once the queue is empty.
func (q *queue[T]) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.filled.Broadcast()
}

// wait waits until there is something to take, or returns false if there will be
// nothing any more.
func (q *queue[T]) wait() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waitLocked()
	return len(q.items) > 0
}

func (q *queue[T]) waitLocked() {
	for len(q.items) == 0 && !q.closed {
		q.filled.Wait()
	}
}

// take waits for something, and takes at most limit of it.
func (q *queue[T]) take(limit int) (batch []T, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waitLocked()
	n := min(limit, len(q.items))
	batch, q.items = q.items[:n:n], q.items[n:]
	if len(q.items) == 0 {
		q.items = nil
	}
	return batch, n > 0
}

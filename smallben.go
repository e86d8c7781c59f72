// Package smallben keeps cron jobs of a Go service in its database: users add,
// pause, resume, update, delete and list them while the service runs, and after
// a restart everything is there again.
//
// A job is a value of a type that implements [CronJob] and is registered with
// gob.Register. It is stored by a [Repository], for which [NewRepositoryGorm]
// takes any GORM dialector, and run by robfig/cron. [New] puts the two together,
// and Start begins:
//
//	gob.Register(&Reminder{})
//	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
//		Dialector: sqlite.Open("jobs.db"),
//	})
//	...
//	scheduler := smallben.New(repository, &smallben.Config{})
//	err = scheduler.Start()
//	...
//	err = scheduler.AddJobs([]smallben.Job{{
//		ID: 1, CronExpression: "@daily", Job: &Reminder{Text: "stand up"},
//	}})
//
// The repository is the truth, and the running scheduler follows it. A change
// that returns nil has happened in both; one that returns an error has happened
// in neither, except when errors.Is finds [ErrOutcomeUnknown].
//
// In one process each tick of a job starts at most one run. A tick that passes
// while the process is down is not caught up, and several processes on one database
// each run every job, unless runs are recorded.
//
// # Many processes, no tick lost
//
// With Config.Runs.Record any number of processes share a database: each tick of
// each job starts once across all of them, every run is recorded, and what was
// missed or lost is known, and made up for if that is wanted. ListRuns tells.
//
// # More than a schedule
//
// UpsertJobs puts the jobs in place that a service wants to have at each start.
// A job that is a [ContextJob] is given a context and returns an error. TriggerJobs
// runs jobs now. The [Job] values of ListJobs, and of Jobs for very many, tell
// their next runs and the last one; [SmallBen.NextRuns] previews an expression. StopContext
// is Stop with a deadline. Config.WrapRun is the place for tracing, and
// RegisterMetrics for Prometheus.
package smallben

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/robfig/cron/v3"

	"github.com/nbena/smallben/internal/cronexpr"
	"github.com/nbena/smallben/internal/eventlog"
	"github.com/nbena/smallben/internal/ledger"
)

// SmallBen schedules the jobs of a repository. New makes one; the zero value
// does not work. All methods may be called from any goroutine, and from a run,
// except that a run must not wait for Stop. Stop ends it, and Start may begin
// again.
type SmallBen struct {
	repository Repository
	gorm       *RepositoryGorm // that repository is or embeds; nil: none
	config     Config          // as it was given
	rules      cronexpr.Rules
	log        *eventlog.Log
	types      sync.Map      // reflect.Type of the jobs that were added, to true
	reconcile  chan struct{} // wakes the reconciliation of the session; holds 1
	record     *record       // nil: runs are not recorded
	scheduler  *scheduler

	// changeMu serialises changes from their first look at the repository to
	// the end of their projection, so that database and memory change in one
	// order. It is held across I/O. No code of the user runs under it but the
	// repository, with the logger, the plugins and the NowFunc that GORM may have,
	// and the GobDecode and RunOptions of jobs.
	changeMu turn

	// mu guards the fields below. It is held while the scheduler is changed as
	// well, so that each row stands in one of paused, undecodable and the
	// scheduler's entries. It is held for moments, never across I/O. The locks of
	// the scheduler are taken under it, and it may be taken under changeMu, not the
	// other way round.
	mu          sync.RWMutex
	starting    chan struct{}         // while Start loads: closed at its end
	paused      map[int64]int64       // when they were created, in Unix microseconds
	undecodable map[int64]*ledger.Job // as record.undecodable gives them
	unsettled   []*unsettledWrite
}

// New returns a SmallBen that schedules the jobs of repository, without doing
// any I/O. A nil config means the zero Config. It panics if repository is nil.
func New(repository Repository, config *Config) *SmallBen {
	if gormRepository, ok := repository.(*RepositoryGorm); repository == nil || ok && gormRepository == nil {
		panic("smallben: New needs a repository, and was given nil")
	}
	if config == nil {
		config = &Config{}
	}
	s := &SmallBen{
		repository:  repository,
		gorm:        gormOf(repository),
		config:      *config,
		rules:       cronexpr.Rules{WithSeconds: config.SchedulerConfig.WithSeconds, Recorded: config.Runs.Record},
		log:         eventlog.New(config.sink()),
		paused:      make(map[int64]int64),
		undecodable: make(map[int64]*ledger.Job),
		reconcile:   make(chan struct{}, 1),
		changeMu:    make(turn, 1),
	}
	s.scheduler = newScheduler(config, s.log)
	if config.Runs.Record {
		s.record = newRecord(repository, config.Runs, s)
	}
	return s
}

// ErrorTypeIfMismatchCount returns the error that errors.Is finds when a call
// names jobs that do not exist. It is the repository's.
func (s *SmallBen) ErrorTypeIfMismatchCount() error {
	return s.repository.ErrorTypeIfMismatchCount()
}

// Start loads the jobs and begins to run them. If it is started already, it does
// nothing. If it returns an error, nothing runs, and Start may be called again.
//
// Rows that do not decode do not stop it: they are held back, logged, counted by
// the metrics, and can be paused and deleted.
//
// If runs are recorded (Config.Runs), it makes this process one of those that
// share the record. It returns an error if the repository is no RepositoryGorm and embeds none, if the
// configuration cannot be used so, or if others record with another location. Without
// Record it returns an error while another process records runs on the database.
func (s *SmallBen) Start() error { return s.StartContext(context.Background()) }

// StartContext is Start, and ends with ctx. What it started does not.
func (s *SmallBen) StartContext(ctx context.Context) error {
	var started bool
	var loaded contents
	err := s.inTurn(ctx, func(c *call) (err error) {
		started, loaded, err = s.start(c)
		return err
	})
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if !started {
		return nil
	}
	s.log.Report(func(sink cron.Logger) {
		logHeldBack(sink, loaded.heldBack)
		sink.Info("started", "scheduled", len(loaded.jobs), "paused", len(loaded.paused), "heldBack", len(loaded.heldBack))
	})
	return nil
}

func (s *SmallBen) start(c *call) (started bool, loaded contents, err error) {
	if s.started() {
		return false, contents{}, nil
	}
	if err := s.config.check(); err != nil {
		return false, contents{}, err
	}
	s.setStarting(make(chan struct{}))
	defer s.setStarting(nil)
	var joined *ledger.Session
	host := &ledgerHost{s: s}
	if s.record == nil {
		if err := refuseRecorded(c.repository); err != nil {
			return false, contents{}, err
		}
	} else {
		if err := c.await(s.record.open); err != nil {
			return false, contents{}, err
		}
		if joined, err = s.record.ledger.Join(c.store, host); err != nil {
			return false, contents{}, err
		}
	}
	if loaded, err = s.loadNumbered(c); err != nil {
		if joined != nil {
			joined.Leave()
		}
		return false, contents{}, err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.scheduler.start(loaded.jobs, loaded.paused, joined, host)
	s.paused = maps.Clone(loaded.paused) // changes change it
	s.undecodable = loaded.undecodable
	go s.reconcileUntil(session.stop)
	return true, loaded, nil
}

// refuseRecorded is an error if other processes on the database record runs, so that
// this one must as well. One that was killed counts until it would be taken for dead.
func refuseRecorded(repository Repository) error {
	inner := gormOf(repository)
	if inner == nil {
		return nil
	}
	process, err := inner.runs.Recording(ledger.DefaultTiming.DeadAfter)
	if err == nil && process != "" {
		err = fmt.Errorf("the process %s records runs on this database, and Runs.Record is not set here: ticks would run twice", process)
	}
	return err
}

// setStarting notes a Start in progress, or wakes those who wait for its end.
func (s *SmallBen) setStarting(starting chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if starting == nil {
		close(s.starting)
	}
	s.starting = starting
}

func (s *SmallBen) started() bool { return s.scheduler.current() != nil }

// contents is what a repository holds: every row stands in one of the three.
type contents struct {
	jobs        []JobWithSchedule     // neither paused nor undecodable
	paused      map[int64]int64       // when they were created, in Unix microseconds
	undecodable map[int64]*ledger.Job // as record.undecodable gives them
	heldBack    []error               // a JobError for each of those
}

// add adds jobs that decode.
func (c *contents) add(jobs []JobWithSchedule) {
	for i := range jobs {
		if row := &jobs[i].rawJob; row.Paused {
			c.paused[row.ID] = row.CreatedAt.UnixMicro()
		} else {
			c.jobs = append(c.jobs, jobs[i])
		}
	}
}

// loadNumbered loads the jobs and gives them cron ids, which it stores unless runs
// are recorded: several processes would each store their own then.
func (s *SmallBen) loadNumbered(c *call) (contents, error) {
	// A write of another process may come between the reading of a job and the
	// storing of its cron id: then what was read is old.
	const attempts = 3
	for attempt := 1; ; attempt++ {
		loaded, err := s.load(c)
		if err != nil {
			return contents{}, err
		}
		changed := s.scheduler.renumber(loaded.jobs)
		if s.record != nil {
			return loaded, nil
		}
		if err = c.storeCronIDs(changed); err == nil {
			return loaded, nil
		}
		if attempt == attempts || !s.isMismatch(err) {
			return contents{}, fmt.Errorf("store cron ids: %w", err)
		}
	}
}

// storeCronIDs stores cron ids in calls that a slow database answers in time.
func (c *call) storeCronIDs(jobs []JobWithSchedule) error {
	const most = 25_000 // in one transaction
	for some := range slices.Chunk(jobs, most) {
		if err := c.repository.SetCronId(some); err != nil {
			return err
		}
	}
	return nil
}

func (s *SmallBen) load(c *call) (contents, error) {
	if s.record == nil {
		loaded, err := s.loadInReads(c)
		loaded.undecodable = s.record.undecodable(nil, loaded.heldBack)
		return loaded, err
	}
	changes, err := c.store.Changes(0, nil)
	if err != nil {
		return contents{}, fmt.Errorf("load jobs: %w", err)
	}
	s.record.ledger.Saw(changes.Revision)
	jobs, undecodable := decodeRows(changes.Jobs)
	loaded := contents{paused: make(map[int64]int64), undecodable: s.record.undecodable(changes.Jobs, undecodable), heldBack: undecodable}
	loaded.add(jobs)
	return loaded, nil
}

// loadInReads loads the jobs without a record of runs, in more reads than one:
// another process may pause or resume some between them. The latest read counts.
func (s *SmallBen) loadInReads(c *call) (loaded contents, err error) {
	onlyPaused := true
	pausedBefore, err := s.listIDs(c.repository, &ListJobsOptions{Paused: &onlyPaused})
	if err != nil {
		return contents{}, fmt.Errorf("load paused jobs: %w", err)
	}
	if loaded.jobs, err = c.repository.GetAllJobsToExecute(); err != nil {
		undecodable, only := undecodableLeaves(err)
		if !only {
			return contents{}, fmt.Errorf("load jobs: %w", err)
		}
		loaded.heldBack = undecodable
	}
	rows, err := c.repository.ListJobs(&ListJobsOptions{Paused: &onlyPaused})
	if err != nil {
		return contents{}, fmt.Errorf("load paused jobs: %w", err)
	}
	paused, undecodable := decodeRows(rows)
	loaded.paused = make(map[int64]int64, len(paused))
	loaded.add(paused)
	loaded.heldBack = append(loaded.heldBack, undecodable...)
	loaded.jobs = slices.DeleteFunc(loaded.jobs, func(job JobWithSchedule) bool {
		_, ok := loaded.paused[job.rawJob.ID]
		return ok
	})
	return loaded, s.loadResumed(c, &loaded, pausedBefore)
}

// loadResumed adds the jobs that were resumed after the others had been read: they
// were paused before, and are in none of the reads.
func (s *SmallBen) loadResumed(c *call, loaded *contents, pausedBefore []int64) error {
	resumed := idSet(pausedBefore)
	for _, id := range slices.AppendSeq(jobIDs(loaded.jobs), maps.Keys(loaded.paused)) {
		delete(resumed, id)
	}
	for _, err := range loaded.heldBack {
		delete(resumed, jobID(err))
	}
	if len(resumed) == 0 {
		return nil
	}
	jobs, err := c.repository.GetJobsByIds(slices.Sorted(maps.Keys(resumed)))
	if undecodable, only := undecodableLeaves(err); only {
		loaded.heldBack = append(loaded.heldBack, undecodable...)
	} else if err != nil && !s.isMismatch(err) {
		return fmt.Errorf("load jobs: %w", err)
	}
	loaded.add(jobs)
	return nil
}

// Stop ends the starting of runs at once, and returns when those in progress
// have ended. A job must not wait for it; any other call that a job makes
// meanwhile is answered. Start may be called again after it. If nothing is
// started, Stop only waits for the runs of earlier sessions, if some still are.
// While Start loads, Stop waits for it, and stops what it started.
//
// If runs are recorded, a run counts as in progress from the moment it is claimed:
// one that is claimed already starts. Stop returns when the ends of runs are
// recorded too or, if the database does not answer, ten seconds after the last.
func (s *SmallBen) Stop() {
	// Without a deadline there is no error.
	_ = s.StopContext(context.Background())
}

// StopContext is Stop with a deadline: if ctx ends while runs are in progress, it
// ends their contexts, which only a ContextJob heeds, and returns at once with
// an error that names their jobs and wraps that of ctx. Nil means that all have
// ended; after an error Stop or StopContext may be called again to wait on.
func (s *SmallBen) StopContext(ctx context.Context) error {
	s.mu.Lock()
	for s.starting != nil {
		// What it starts is for this call to stop.
		starting := s.starting
		s.mu.Unlock()
		select {
		case <-starting:
		case <-ctx.Done():
			return fmt.Errorf("stop: %w: Start is still loading", ctx.Err())
		}
		s.mu.Lock()
	}
	ending, stopping := s.scheduler.stop()
	s.mu.Unlock()
	for _, session := range ending {
		defer session.cancel()
	}
	for _, session := range ending {
		select {
		case <-session.idle:
		case <-ctx.Done():
			if running := s.scheduler.runningOf(ending); len(running) > 0 {
				return fmt.Errorf("stop: %w: still running: jobs %s", ctx.Err(), idText(running))
			}
		}
	}
	for _, session := range ending {
		if session.ledger == nil {
			continue
		}
		select {
		case <-session.ledger.Done():
		case <-ctx.Done():
			return fmt.Errorf("stop: %w: the ends of runs are still being recorded", ctx.Err())
		}
	}
	// What runs logged as they failed is to be seen.
	s.log.Wait()
	if stopping {
		s.log.Report(func(sink cron.Logger) { sink.Info("stopped") })
	}
	return nil
}

// projectLocked makes the scheduler agree with rows that decode.
func (s *SmallBen) projectLocked(jobs []JobWithSchedule) {
	for i := range jobs {
		id := jobs[i].rawJob.ID
		delete(s.undecodable, id)
		if jobs[i].rawJob.Paused {
			s.paused[id] = jobs[i].rawJob.CreatedAt.UnixMicro()
		} else {
			delete(s.paused, id)
		}
	}
	s.scheduler.project(jobs)
}

// forgetLocked drops what is known of jobs that were deleted.
func (s *SmallBen) forgetLocked(ids []int64) {
	s.scheduler.remove(ids, true)
	for _, id := range ids {
		delete(s.paused, id)
		delete(s.undecodable, id)
	}
}

// knownLocked reports whether memory has a job that decodes.
func (s *SmallBen) knownLocked(id int64) bool {
	_, paused := s.paused[id]
	return paused || s.scheduler.has(id)
}

// counts are of what this instance knows.
type counts struct{ scheduled, paused, undecodable, unsettled int }

func (s *SmallBen) count() counts {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return counts{s.scheduler.count(), len(s.paused), len(s.undecodable), s.refusingLocked()}
}

func logHeldBack(sink cron.Logger, undecodable []error) {
	for _, err := range undecodable {
		sink.Error(err, "row held back", "job", jobID(err))
	}
}

func jobIDs(jobs []JobWithSchedule) []int64 {
	ids := make([]int64, len(jobs))
	for i := range jobs {
		ids[i] = jobs[i].rawJob.ID
	}
	return ids
}

func idsOf(rows []RawJob) []int64 {
	ids := make([]int64, len(rows))
	for i := range rows {
		ids[i] = rows[i].ID
	}
	return ids
}

func idSet(ids []int64) map[int64]struct{} {
	set := make(map[int64]struct{}, len(ids))
	for _, id := range ids {
		set[id] = struct{}{}
	}
	return set
}

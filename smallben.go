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
// their next runs and the last one; [NextRuns] previews an expression. StopContext
// is Stop with a deadline. Config.WrapRun is the place for tracing, and
// RegisterMetrics for Prometheus.
package smallben

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"
)

// SmallBen schedules the jobs of a repository. New makes one; the zero value
// does not work. All methods may be called from any goroutine, and from a run,
// except that a run must not wait for Stop. Stop ends it, and Start may begin
// again.
type SmallBen struct {
	repository  Repository
	config      Config // as it was given
	withSeconds bool
	log         eventLog
	types       sync.Map      // reflect.Type of the jobs that were added, to true
	reconcile   chan struct{} // wakes the reconciliation of the session; holds 1
	record      *record       // nil: runs are not recorded
	scheduler   *scheduler

	// changeMu serialises changes from their first look at the repository to
	// the end of their projection, so that database and memory change in one
	// order. It is held across I/O. No code of the user runs under it but the
	// repository, with the GORM logger that it may have, and GobDecode.
	changeMu sync.Mutex

	// mu guards the fields below. It is held while the scheduler is changed as
	// well, so that each row stands in one of paused, undecodable and the
	// scheduler's entries. It is held for moments, never across I/O. The locks of
	// the scheduler are taken under it, and it may be taken under changeMu, not the
	// other way round.
	mu          sync.RWMutex
	starting    chan struct{} // while Start loads: closed at its end
	paused      map[int64]struct{}
	undecodable map[int64]struct{}
	unsettled   []unsettledWrite
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
		config:      *config,
		withSeconds: config.SchedulerConfig.WithSeconds,
		log:         newEventLog(config),
		paused:      make(map[int64]struct{}),
		undecodable: make(map[int64]struct{}),
		reconcile:   make(chan struct{}, 1),
	}
	s.scheduler = newScheduler(config, s.log)
	if config.Runs.Record {
		s.record = newRecord(repository, config.Runs, s.scheduler)
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
// share the record. It returns an error if the repository is no Recorder, if the
// configuration cannot be used so, or if others record with another location.
func (s *SmallBen) Start() error {
	started, loaded, err := s.start()
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if !started {
		return nil
	}
	s.logHeldBack(loaded.heldBack)
	s.log.Info("started", "scheduled", len(loaded.jobs), "paused", len(loaded.paused), "heldBack", len(loaded.heldBack))
	return nil
}

func (s *SmallBen) start() (started bool, loaded contents, err error) {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	if s.started() {
		return false, contents{}, nil
	}
	s.setStarting(make(chan struct{}))
	defer s.setStarting(nil)
	var joined *recording
	if s.record != nil {
		if joined, err = s.join(); err != nil {
			return false, contents{}, err
		}
	}
	if loaded, err = s.loadNumbered(); err != nil {
		joined.leave()
		return false, contents{}, err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.scheduler.start(loaded.jobs, joined)
	s.paused = idSet(loaded.paused)
	s.undecodable = make(map[int64]struct{}, len(loaded.heldBack))
	for _, err := range loaded.heldBack {
		s.undecodable[jobID(err)] = struct{}{}
	}
	s.scheduler.forget(s.scheduler.ran(func(id int64, _ *jobState) bool { return !s.knownLocked(id) }))
	go s.reconcileUntil(session.stop)
	if len(s.unsettled) > 0 {
		s.wakeReconciliation()
	}
	return true, loaded, nil
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
	jobs     []JobWithSchedule // neither paused nor undecodable
	paused   []int64
	heldBack []error // a JobError for each undecodable row
}

// loadNumbered loads the jobs and gives them cron ids, which it stores unless runs
// are recorded: several processes would each store their own then.
func (s *SmallBen) loadNumbered() (contents, error) {
	// A write of another process may come between the reading of a job and the
	// storing of its cron id: then what was read is old.
	const attempts = 3
	for attempt := 1; ; attempt++ {
		loaded, err := s.load()
		if err != nil {
			return contents{}, err
		}
		changed := s.scheduler.renumber(loaded.jobs, true)
		if s.record != nil {
			return loaded, nil
		}
		err = s.repository.SetCronId(changed)
		if err == nil {
			return loaded, nil
		}
		if attempt == attempts || !s.isMismatch(err) {
			return contents{}, fmt.Errorf("store cron ids: %w", err)
		}
	}
}

func (s *SmallBen) load() (contents, error) {
	var loaded contents
	if s.record != nil {
		changes, err := s.record.recorder.Changes(0, nil)
		if err != nil {
			return contents{}, fmt.Errorf("load jobs: %w", err)
		}
		s.record.seen.Store(changes.Revision)
		jobs, undecodable := decodeRows(changes.Jobs)
		loaded.heldBack = undecodable
		for i := range jobs {
			if jobs[i].rawJob.Paused {
				loaded.paused = append(loaded.paused, jobs[i].rawJob.ID)
			} else {
				loaded.jobs = append(loaded.jobs, jobs[i])
			}
		}
		return loaded, nil
	}
	jobs, err := s.repository.GetAllJobsToExecute()
	if err != nil {
		undecodable, only := undecodableLeaves(err)
		if !only {
			return contents{}, fmt.Errorf("load jobs: %w", err)
		}
		loaded.heldBack = undecodable
	}
	loaded.jobs = jobs
	onlyPaused := true
	rows, err := s.repository.ListJobs(&ListJobsOptions{Paused: &onlyPaused})
	if err != nil {
		return contents{}, fmt.Errorf("load paused jobs: %w", err)
	}
	paused, undecodable := decodeRows(rows)
	for i := range paused {
		loaded.paused = append(loaded.paused, paused[i].rawJob.ID)
	}
	loaded.heldBack = append(loaded.heldBack, undecodable...)
	// Another process may have paused some between the two reads.
	pausedSince := idSet(loaded.paused)
	loaded.jobs = slices.DeleteFunc(loaded.jobs, func(job JobWithSchedule) bool {
		_, ok := pausedSince[job.rawJob.ID]
		return ok
	})
	return loaded, nil
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
			if running := s.scheduler.running(ending); len(running) > 0 {
				return fmt.Errorf("stop: %w: still running: jobs %s", ctx.Err(), idText(running))
			}
		}
	}
	for _, session := range ending {
		if session.recording == nil {
			continue
		}
		select {
		case <-session.recording.done:
		case <-ctx.Done():
			return fmt.Errorf("stop: %w: the ends of runs are still being recorded", ctx.Err())
		}
	}
	// What runs logged as they failed is to be seen, unless a sink blocks.
	patience := time.After(maxLogWait)
	for _, session := range ending {
		select {
		case <-session.quiet:
		case <-patience:
		}
	}
	if stopping {
		s.log.Info("stopped")
	}
	return nil
}

// maxLogWait bounds how long Stop waits for log sinks.
const maxLogWait = time.Second

// AddJobs stores jobs and schedules them, all of them or none. Those that are
// added before Start run from Start on.
//
// Its error joins a JobError for each job that is refused: ErrInvalidJob for one
// that could not be stored, loaded or run; ErrJobExists for an id that is stored
// already or stands twice in jobs. Until the next restart, or resume after a
// pause, Run is called on the value given here; the top level of its input is
// copied.
func (s *SmallBen) AddJobs(jobs []Job) error {
	if len(jobs) == 0 {
		return nil
	}
	built, err := s.build(jobs)
	if err != nil {
		return wrap("add", err)
	}
	if err := s.addJobs(built); err != nil {
		return wrap("add", err)
	}
	s.logChange("jobs added", jobIDs(built))
	return nil
}

// build validates and encodes the jobs, which runs code of the user: no lock is
// held.
func (s *SmallBen) build(jobs []Job) ([]JobWithSchedule, error) {
	createdAt := time.Now().UTC().Truncate(time.Microsecond)
	built := make([]JobWithSchedule, 0, len(jobs))
	var refused []error
	seen := make(map[int64]int, len(jobs))
	for i := range jobs {
		if seen[jobs[i].ID]++; seen[jobs[i].ID] == 2 && jobs[i].ID != 0 {
			refused = append(refused, jobErrorf(jobs[i].ID, "%w: the id stands twice in the batch", ErrJobExists))
		}
		job, err := jobs[i].build(s.withSeconds, createdAt)
		if err != nil {
			refused = append(refused, err)
			continue
		}
		built = append(built, job)
	}
	if len(refused) > 0 {
		return nil, join(refused)
	}
	s.logUnsent(built)
	return built, nil
}

func (s *SmallBen) addJobs(jobs []JobWithSchedule) error {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	c := change{ids: jobIDs(jobs)}
	err := s.change(&c, func(tx Repository) error {
		s.scheduler.number(jobs)
		return c.wrote(tx.AddJobs(jobs))
	})
	if err != nil {
		return err
	}
	s.project(&c, jobs)
	return nil
}

// change is one change of jobs: what it is about, and what came of it.
type change struct {
	ids      []int64   // of the jobs, as soon as they are known
	written  bool      // a write was tried
	revision int64     // in the record of runs, if there is one
	now      time.Time // of its database, from which accounts begin
	// missed is how many ticks were found missed, and catchUp what makes up for
	// them.
	missed  int
	catchUp []*claim
}

// wrote notes that a write was tried, with this error.
func (c *change) wrote(err error) error {
	c.written = true
	return err
}

// change lets write look at rows and write them: through the repository or, if
// runs are recorded, in one transaction. It expects changeMu.
func (s *SmallBen) change(c *change, write func(tx Repository) error) (err error) {
	if err := s.settle(c.ids); err != nil {
		return err
	}
	if s.record == nil {
		err = write(s.repository)
	} else {
		if err := s.record.open(); err != nil {
			return err
		}
		c.revision, err = s.record.change(func(tx RecordTx) error {
			c.now = tx.Now()
			return write(tx)
		})
	}
	if err != nil {
		abandon(c.catchUp, err)
		if c.written {
			s.failed(err, c.ids)
		}
	} else if c.missed > 0 {
		s.record.metrics.missed.Add(float64(c.missed))
	}
	return err
}

// project makes memory agree with the jobs that a change has written, and starts
// what makes up for ticks that it found missed.
func (s *SmallBen) project(c *change, written ...[]JobWithSchedule) {
	s.mu.Lock()
	for _, jobs := range written {
		for i := range jobs {
			jobs[i].rawJob.Revision = c.revision
		}
		s.projectLocked(jobs)
	}
	s.mu.Unlock()
	for _, jobs := range written {
		s.fireSince(c.now, jobs)
	}
	for _, missed := range c.catchUp {
		go missed.start()
	}
}

// DeleteJobs deletes the jobs that match options. Nil options are refused; THE
// ZERO DeleteOptions DELETES EVERY JOB. A run in progress goes on; once
// DeleteJobs has returned, none starts.
//
// If nothing matches, or ids do not exist and are the only filter, nothing is
// deleted and the error is that of ErrorTypeIfMismatchCount, with the ids.
func (s *SmallBen) DeleteJobs(options *DeleteOptions) error {
	if options == nil {
		return errors.New("delete jobs: nil options")
	}
	ids, err := s.deleteJobs(options.toListOptions())
	if err != nil {
		return wrap("delete", err)
	}
	s.logChange("jobs deleted", ids)
	return nil
}

func (s *SmallBen) deleteJobs(options ListJobsOptions) ([]int64, error) {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	var c change
	err := s.change(&c, func(tx Repository) error {
		rows, err := s.look(tx, &c, options)
		if err != nil {
			return err
		}
		if err := s.closeAccounts(tx, &c, rows, MissedSkip); err != nil {
			return err
		}
		return c.wrote(tx.DeleteJobsByIds(c.ids))
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetLocked(c.ids)
	s.scheduler.forget(c.ids)
	return c.ids, nil
}

// PauseJobs pauses the jobs that match options; those that are paused already
// stay as they are. Nil options are refused; the zero PauseResumeOptions matches
// every job. A run in progress goes on; once PauseJobs has returned, none
// starts.
//
// If nothing matches, or ids do not exist and are the only filter, nothing is
// paused and the error is that of ErrorTypeIfMismatchCount, with the ids.
func (s *SmallBen) PauseJobs(options *PauseResumeOptions) error {
	if options == nil {
		return errors.New("pause jobs: nil options")
	}
	ids, err := s.pauseJobs(options.toListOptions())
	if err != nil {
		return wrap("pause", err)
	}
	s.logChange("jobs paused", ids)
	return nil
}

func (s *SmallBen) pauseJobs(options ListJobsOptions) ([]int64, error) {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	var c change
	var rows []RawJob
	err := s.change(&c, func(tx Repository) (err error) {
		if rows, err = s.look(tx, &c, options); err != nil {
			return err
		}
		unpaused := slices.DeleteFunc(slices.Clone(rows), func(row RawJob) bool { return row.Paused })
		if err := s.closeAccounts(tx, &c, unpaused, MissedSkip); err != nil {
			return err
		}
		return c.wrote(tx.PauseJobs(unpaused))
	})
	if err != nil {
		return nil, err
	}
	undecodable := s.undecodableOf(rows)
	s.mu.Lock()
	s.forgetLocked(c.ids)
	for _, id := range c.ids {
		if _, bad := undecodable[id]; bad {
			s.undecodable[id] = struct{}{}
		} else {
			s.paused[id] = struct{}{}
		}
	}
	s.mu.Unlock()
	if len(undecodable) > 0 {
		// They decode now if it was a column that a pause writes.
		s.reread(unsettledWrite{ids: slices.Sorted(maps.Keys(undecodable))})
	}
	return c.ids, nil
}

// undecodableOf tells which of the rows do not decode. Those that are known are
// not decoded again.
func (s *SmallBen) undecodableOf(rows []RawJob) map[int64]struct{} {
	undecodable := make(map[int64]struct{})
	var unknown []RawJob
	s.mu.RLock()
	for _, row := range rows {
		if _, bad := s.undecodable[row.ID]; bad {
			undecodable[row.ID] = struct{}{}
		} else if !s.knownLocked(row.ID) {
			unknown = append(unknown, row)
		}
	}
	s.mu.RUnlock()
	_, errs := decodeRows(unknown)
	for _, err := range errs {
		undecodable[jobID(err)] = struct{}{}
	}
	return undecodable
}

func (s *SmallBen) knownLocked(id int64) bool {
	_, paused := s.paused[id]
	return paused || s.scheduler.has(id)
}

// ResumeJobs resumes the jobs that match options. One that is not paused stays
// as it is, its phase included. Nil options are refused; the zero
// PauseResumeOptions matches every job.
//
// If nothing matches, or ids do not exist and are the only filter, nothing is
// resumed and the error is that of ErrorTypeIfMismatchCount, with the ids. If
// rows do not decode, nothing is resumed either, and the error joins a JobError
// (ErrUndecodable) for each.
func (s *SmallBen) ResumeJobs(options *PauseResumeOptions) error {
	if options == nil {
		return errors.New("resume jobs: nil options")
	}
	ids, err := s.resumeJobs(options.toListOptions())
	if err != nil {
		return wrap("resume", err)
	}
	s.logChange("jobs resumed", ids)
	return nil
}

func (s *SmallBen) resumeJobs(options ListJobsOptions) ([]int64, error) {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	var c change
	var paused, unpaused []JobWithSchedule
	err := s.change(&c, func(tx Repository) error {
		rows, err := s.look(tx, &c, options)
		if err != nil {
			return err
		}
		jobs, undecodable := decodeRows(rows)
		if err := join(undecodable); err != nil {
			return err
		}
		for i := range jobs {
			if jobs[i].rawJob.Paused {
				jobs[i].rawJob.Paused = false
				paused = append(paused, jobs[i])
			} else {
				unpaused = append(unpaused, jobs[i])
			}
		}
		if err := s.adopt(unpaused); err != nil {
			return err
		}
		s.scheduler.number(paused)
		return c.wrote(tx.ResumeJobs(paused))
	})
	if err != nil {
		return nil, err
	}
	s.project(&c, paused)
	return c.ids, nil
}

// UpdateJobs changes the expression, the input or both of each job that
// scheduleInfo names, all of them or none. A paused job stays paused, and a run
// in progress keeps what it started with.
//
// Its error joins a JobError for each job that is refused: ErrUpdateOptionInvalid
// if nothing is to change or the id stands twice, ErrInvalidJob if the
// expression or the input could not be stored or run, ErrUndecodable if the row
// does not decode. An id that does not exist is the error of
// ErrorTypeIfMismatchCount.
func (s *SmallBen) UpdateJobs(scheduleInfo []UpdateOption) error {
	if len(scheduleInfo) == 0 {
		return nil
	}
	updates, err := s.prepareUpdates(scheduleInfo)
	if err != nil {
		return wrap("update", err)
	}
	ids, err := s.updateJobs(updates)
	if err != nil {
		return wrap("update", err)
	}
	s.logChange("jobs updated", ids)
	return nil
}

// preparedUpdate is an UpdateOption with its input encoded.
type preparedUpdate struct {
	UpdateOption
	input       map[string]any
	storedInput string
}

// prepareUpdates validates and encodes, which runs code of the user: no lock is
// held.
func (s *SmallBen) prepareUpdates(options []UpdateOption) (map[int64]preparedUpdate, error) {
	updates := make(map[int64]preparedUpdate, len(options))
	var refused []error
	for _, option := range options {
		update := preparedUpdate{UpdateOption: option}
		if _, twice := updates[option.JobID]; twice {
			refused = append(refused, jobErrorf(option.JobID, "%w: the id stands twice", ErrUpdateOptionInvalid))
		}
		updates[option.JobID] = update
		if err := option.valid(s.withSeconds); err != nil {
			refused = append(refused, err)
			continue
		}
		if option.CronExpression != nil {
			expression := *option.CronExpression
			update.CronExpression = &expression
		}
		if option.JobOtherInputs != nil {
			var err error
			if update.storedInput, err = encodeInput(*option.JobOtherInputs); err != nil {
				refused = append(refused, jobErrorf(option.JobID, "%w: %w", ErrInvalidJob, err))
				continue
			}
			update.input = maps.Clone(*option.JobOtherInputs)
		}
		updates[option.JobID] = update
	}
	return updates, join(refused)
}

func (s *SmallBen) updateJobs(updates map[int64]preparedUpdate) ([]int64, error) {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	var c change
	var jobs []JobWithSchedule
	err := s.change(&c, func(tx Repository) error {
		rows, err := s.look(tx, &c, ListJobsOptions{JobIDs: slices.Sorted(maps.Keys(updates))})
		if err != nil {
			return err
		}
		var undecodable []error
		jobs, undecodable = decodeRows(rows)
		if err := join(undecodable); err != nil {
			return err
		}
		rescheduled := rows[:0:0]
		for i := range jobs {
			update := updates[jobs[i].rawJob.ID]
			if update.CronExpression != nil && *update.CronExpression != jobs[i].rawJob.CronExpression {
				rescheduled = append(rescheduled, jobs[i].rawJob)
			}
			if err := jobs[i].apply(update); err != nil {
				return err
			}
		}
		if err := s.closeAccounts(tx, &c, rescheduled, s.missedPolicy()); err != nil {
			return err
		}
		s.scheduler.number(jobs)
		return c.wrote(tx.SetCronIdAndChangeScheduleAndJobInput(jobs))
	})
	if err != nil {
		return nil, err
	}
	s.project(&c, jobs)
	return c.ids, nil
}

// apply changes a row that was read into the one to store.
func (j *JobWithSchedule) apply(update preparedUpdate) error {
	if update.CronExpression != nil {
		schedule, err := parseExpression(*update.CronExpression, j.rawJob.CreatedAt)
		if err != nil {
			return jobErrorf(j.rawJob.ID, "%w: %w", ErrInvalidJob, err)
		}
		j.schedule = schedule
		j.rawJob.CronExpression = *update.CronExpression
		j.changes.expression = true
	}
	if update.JobOtherInputs != nil {
		j.input = update.input
		j.rawJob.SerializedJobInput = update.storedInput
		j.changes.input = true
	}
	return nil
}

// UpsertJobs makes the repository hold these jobs, all of them or none: it adds
// those whose id is not stored, and replaces the groups, expression, job and
// input of the others where they differ from what the row decodes to. A job that
// is paused stays paused, and the time of creation stays. A row that would not
// change is not written, and a schedule that does not change keeps its phase: a
// service may call this at each start with the jobs it wants to have. A row that
// does not decode is replaced. Jobs that are not named stay as they are.
//
// Its error is that of AddJobs, except that an id may be stored. To replace
// anything it needs a repository that is an Upserter. As with AddJobs, Run is
// called on the values given here.
func (s *SmallBen) UpsertJobs(jobs []Job) error {
	if len(jobs) == 0 {
		return nil
	}
	built, err := s.build(jobs)
	if err != nil {
		return wrap("upsert", err)
	}
	added, replaced, err := s.upsertJobs(built)
	if err != nil {
		return wrap("upsert", err)
	}
	if added+replaced > 0 {
		s.log.Info("jobs upserted", "added", added, "replaced", replaced, "unchanged", len(jobs)-added-replaced)
	}
	return nil
}

func (s *SmallBen) upsertJobs(jobs []JobWithSchedule) (added, replaced int, err error) {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	c := change{ids: jobIDs(jobs)}
	var toAdd, toReplace, unchanged []JobWithSchedule
	var undecodable []int64
	err = s.change(&c, func(tx Repository) error {
		rows, err := s.find(tx, ListJobsOptions{JobIDs: c.ids})
		if err != nil && !s.isMismatch(err) {
			return err
		}
		stored := make(map[int64]*RawJob, len(rows))
		for i := range rows {
			stored[rows[i].ID] = &rows[i]
		}
		var rescheduled []RawJob
		for i := range jobs {
			row, ok := stored[jobs[i].rawJob.ID]
			if ok && row.defect != "" {
				undecodable = append(undecodable, row.ID)
			}
			if !ok {
				toAdd = append(toAdd, jobs[i])
			} else if differs, err := jobs[i].replace(row); err != nil {
				return err
			} else if differs {
				toReplace = append(toReplace, jobs[i])
				if row.CronExpression != jobs[i].rawJob.CronExpression {
					rescheduled = append(rescheduled, *row)
				}
			} else {
				unchanged = append(unchanged, jobs[i])
			}
		}
		if len(toAdd)+len(toReplace) == 0 {
			return errNothingToWrite
		}
		if err := s.closeAccounts(tx, &c, rescheduled, s.missedPolicy()); err != nil {
			return err
		}
		s.scheduler.number(toAdd)
		s.scheduler.number(toReplace)
		if len(toReplace) == 0 {
			return c.wrote(tx.AddJobs(toAdd))
		}
		if upserter, ok := tx.(Upserter); ok {
			return c.wrote(upserter.UpsertJobs(toAdd, toReplace))
		}
		return fmt.Errorf("the repository %T cannot replace jobs: it is no Upserter", tx)
	})
	if err != nil && !errors.Is(err, errNothingToWrite) {
		return 0, 0, err
	}
	s.project(&c, toAdd, toReplace)
	if len(undecodable) > 0 {
		// They still do not decode if it is a column that stays.
		s.reread(unsettledWrite{ids: undecodable})
	}
	// The values given are run from here on, even those of rows that need no
	// change.
	if err := s.adopt(unchanged); err != nil {
		s.reread(unsettledWrite{ids: jobIDs(unchanged)})
	}
	return len(toAdd), len(toReplace), nil
}

// errNothingToWrite ends a change that has nothing to write.
var errNothingToWrite = errors.New("nothing to write")

// replace makes a job that was built anew into the one to store in place of row,
// and reports whether they differ.
func (j *JobWithSchedule) replace(row *RawJob) (differs bool, err error) {
	j.changes = columnChanges{expression: true, input: true, job: true}
	j.rawJob.CronID = row.CronID
	j.rawJob.Paused = row.Paused
	j.rawJob.CreatedAt = row.CreatedAt.UTC()
	j.rawJob.UpdatedAt = row.UpdatedAt.UTC()
	if j.schedule, err = parseExpression(j.rawJob.CronExpression, j.rawJob.CreatedAt); err != nil {
		return false, jobErrorf(j.rawJob.ID, "%w: %w", ErrInvalidJob, err)
	}
	if j.rawJob.GroupID != row.GroupID || j.rawJob.SuperGroupID != row.SuperGroupID || j.rawJob.CronExpression != row.CronExpression {
		return true, nil
	}
	before, err := row.ToJobWithSchedule()
	if err != nil {
		return true, nil
	}
	// gob writes maps in any order, and numbers types by the order in which a
	// process met them: where the bytes differ, only what they decode to tells.
	if row.SerializedJob != j.rawJob.SerializedJob {
		after, err := decodeJob(j.rawJob.SerializedJob)
		if err != nil {
			return false, jobErrorf(j.rawJob.ID, "%w: %w", ErrInvalidJob, err)
		}
		if !reflect.DeepEqual(before.job, after) {
			return true, nil
		}
	}
	if !sameJSON(row.SerializedJobInput, j.rawJob.SerializedJobInput) {
		return true, nil
	}
	j.rawJob = *row
	return false, nil
}

// TriggerJobs runs the jobs that match options now, paused ones too, once each,
// whatever their schedule. It returns when each run is started, waits for the end
// of another, or was skipped for one, as the overlap settings say. Nil options
// are refused, and so is a call while SmallBen is not started; the zero
// PauseResumeOptions matches every job.
//
// If nothing matches, or ids do not exist and are the only filter, nothing runs
// and the error is that of ErrorTypeIfMismatchCount, with the ids. If rows do not
// decode, nothing runs either, and the error joins a JobError (ErrUndecodable)
// for each. If runs are recorded, nothing runs that could not be recorded.
func (s *SmallBen) TriggerJobs(options *PauseResumeOptions) error {
	if options == nil {
		return errors.New("trigger jobs: nil options")
	}
	at := tick{at: time.Now().In(s.scheduler.location), triggered: true}
	ids, skipped, err := s.triggerJobs(options.toListOptions(), at)
	if err != nil {
		return wrap("trigger", err)
	}
	for _, id := range skipped {
		s.scheduler.logSkipped(id, at)
	}
	s.logChange("jobs triggered", ids)
	return nil
}

func (s *SmallBen) triggerJobs(options ListJobsOptions, at tick) (ids, skipped []int64, err error) {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	if !s.started() {
		return nil, nil, errors.New("SmallBen is not started")
	}
	if err := s.settle(nil); err != nil {
		return nil, nil, err
	}
	var c change
	rows, err := s.look(s.repository, &c, options)
	if err != nil {
		return nil, nil, err
	}
	jobs, undecodable := decodeRows(rows)
	if err := join(undecodable); err != nil {
		return nil, nil, err
	}
	if err := s.adopt(jobs); err != nil {
		return nil, nil, err
	}
	claims, err := s.claimTriggered(jobs, at)
	if err != nil {
		return nil, nil, err
	}
	begun, skipped, ok := s.scheduler.trigger(jobs, at, claims)
	if !ok {
		for _, c := range claims {
			c.skip("SmallBen was stopped before it started")
		}
		return nil, nil, errStopped
	}
	for _, r := range begun {
		go s.scheduler.execute(r)
	}
	return c.ids, skipped, nil
}

// ListJobs returns the jobs that match options, ordered by id. Nil options match
// every job. It reads the repository, and does not wait for a change in
// progress.
//
// Jobs may come together with an error: if the ids of jobs are the only filter
// and some do not exist, that of ErrorTypeIfMismatchCount; and for each row that
// does not decode a JobError (ErrUndecodable).
func (s *SmallBen) ListJobs(options *ListJobsOptions) ([]Job, error) {
	resolved := ResolveListOptions(options)
	rows, err := s.find(s.repository, resolved)
	if err != nil && !s.isMismatch(err) {
		return nil, wrap("list", err)
	}
	jobs, undecodable, lastErr := s.jobsOf(rows)
	if lastErr != nil {
		return nil, wrap("list", lastErr)
	}
	if err := join(append([]error{err}, undecodable...)); err != nil {
		return jobs, wrap("list", err)
	}
	return jobs, nil
}

// jobsOf decodes rows for users. It looks up their last recorded runs, if runs
// are recorded: err is the error of that.
func (s *SmallBen) jobsOf(rows []RawJob) (jobs []Job, undecodable []error, err error) {
	found, undecodable := decodeRows(rows)
	jobs = make([]Job, len(found))
	for i := range found {
		jobs[i] = found[i].toJob()
		jobs[i].schedule = s.scheduler.canonical(jobs[i].schedule)
		jobs[i].location = s.scheduler.location
		jobs[i].lastRun, jobs[i].running = s.scheduler.runsOf(jobs[i].ID)
	}
	if s.record != nil && len(jobs) > 0 {
		err = s.record.describe(jobs)
	}
	return jobs, undecodable, err
}

// Jobs walks the jobs that match options, ordered by id, without holding all of
// them if the repository is a Pager. Nil options match every job. A row that does
// not decode is yielded as its JobError (ErrUndecodable), with a Job of which
// only the ID is set; any other error is the last thing yielded. Ids that do not
// exist are no error. Jobs that change during the walk may be seen as they were
// or as they are.
func (s *SmallBen) Jobs(options *ListJobsOptions) iter.Seq2[Job, error] {
	return func(yield func(Job, error) bool) {
		next := s.pages(ResolveListOptions(options))
		for {
			rows, err := next()
			if err != nil {
				yield(Job{}, wrap("list", err))
				return
			}
			if len(rows) == 0 {
				return
			}
			jobs, undecodable, err := s.jobsOf(rows)
			if err != nil {
				yield(Job{}, wrap("list", err))
				return
			}
			for len(jobs)+len(undecodable) > 0 {
				if len(undecodable) > 0 && (len(jobs) == 0 || jobID(undecodable[0]) <= jobs[0].ID) {
					if !yield(Job{ID: jobID(undecodable[0])}, undecodable[0]) {
						return
					}
					undecodable = undecodable[1:]
				} else {
					if !yield(jobs[0], nil) {
						return
					}
					jobs = jobs[1:]
				}
			}
		}
	}
}

// pages returns a function that reads the rows that match options, a page at each
// call, and none after the last.
func (s *SmallBen) pages(options ListJobsOptions) func() ([]RawJob, error) {
	const size = 1000
	pager, ok := s.repository.(Pager)
	var after *int64
	done := false
	return func() (rows []RawJob, err error) {
		if done {
			return nil, nil
		}
		if !ok {
			done = true
			rows, err = s.repository.ListJobs(&options)
			if s.isMismatch(err) {
				err = nil
			}
			return rows, err
		}
		rows, err = pager.ListJobsAfter(&options, after, size)
		if err != nil || len(rows) < size {
			done = true
		} else {
			after = &rows[len(rows)-1].ID
		}
		return rows, err
	}
}

// find reads the rows that match options. If the ids of jobs are the only filter
// and some do not exist, the mismatch error comes with the rows.
func (s *SmallBen) find(repository Repository, options ListJobsOptions) ([]RawJob, error) {
	rows, err := repository.ListJobs(&options)
	if err != nil && !s.isMismatch(err) {
		return nil, err
	}
	if !options.onlyJobIDs() {
		return rows, nil
	}
	missing := idSet(options.JobIDs)
	for i := range rows {
		delete(missing, rows[i].ID)
	}
	if len(missing) > 0 {
		return rows, fmt.Errorf("%w: no job with id %s", s.repository.ErrorTypeIfMismatchCount(),
			idText(slices.Sorted(maps.Keys(missing))))
	}
	return rows, nil
}

// look is find for a change, which learns the ids: rows that are missing, or none
// at all, refuse it, and so does a row whose last write is not settled.
func (s *SmallBen) look(repository Repository, c *change, options ListJobsOptions) ([]RawJob, error) {
	rows, err := s.find(repository, options)
	if err != nil {
		return nil, err
	}
	// A change could not name them: they stay held back.
	rows = slices.DeleteFunc(rows, func(row RawJob) bool { return row.nameless() })
	if len(rows) == 0 {
		return nil, fmt.Errorf("%w: no job matches", s.repository.ErrorTypeIfMismatchCount())
	}
	c.ids = make([]int64, len(rows))
	for i := range rows {
		c.ids[i] = rows[i].ID
	}
	return rows, s.refuseUnsettled(c.ids)
}

func (s *SmallBen) isMismatch(err error) bool {
	return errors.Is(err, s.repository.ErrorTypeIfMismatchCount())
}

// projectLocked makes the scheduler agree with rows that decode.
func (s *SmallBen) projectLocked(jobs []JobWithSchedule) {
	for i := range jobs {
		id := jobs[i].rawJob.ID
		delete(s.undecodable, id)
		if jobs[i].rawJob.Paused {
			s.paused[id] = struct{}{}
		} else {
			delete(s.paused, id)
		}
	}
	s.scheduler.project(jobs)
}

// forgetLocked drops what is known of jobs.
func (s *SmallBen) forgetLocked(ids []int64) {
	s.scheduler.remove(ids)
	for _, id := range ids {
		delete(s.paused, id)
		delete(s.undecodable, id)
	}
}

// known counts what this instance knows of.
type known struct{ scheduled, paused, undecodable, unsettled int }

func (s *SmallBen) count() known {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return known{s.scheduler.count(), len(s.paused), len(s.undecodable), len(s.unsettled)}
}

func (s *SmallBen) logHeldBack(undecodable []error) {
	for _, err := range undecodable {
		s.log.Error(err, "row held back", "job", jobID(err))
	}
}

// logChange logs a change of jobs, with their ids if they are few.
func (s *SmallBen) logChange(msg string, ids []int64) {
	if len(ids) > maxIDsInText {
		s.log.Info(msg, "count", len(ids))
		return
	}
	s.log.Info(msg, "count", len(ids), "jobs", idText(ids))
}

func jobIDs(jobs []JobWithSchedule) []int64 {
	ids := make([]int64, len(jobs))
	for i := range jobs {
		ids[i] = jobs[i].rawJob.ID
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

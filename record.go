package smallben

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nbena/smallben/internal/cronexpr"
	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/ledger/ledgersql"
	"github.com/nbena/smallben/internal/metrics"
)

// record is the record of runs as one SmallBen uses it.
type record struct {
	smallBen *SmallBen
	store    runStore
	refusal  error // why there is no store
	config   RunsConfig
	timing   ledger.Timing
	metrics  *metrics.Record
	ledger   *ledger.Ledger // nil if there is no store
}

func newRecord(repository Repository, config RunsConfig, s *SmallBen) *record {
	r := &record{config: config, timing: ledger.DefaultTiming, metrics: metrics.NewRecord(), smallBen: s}
	if r.refusal = checkRecord(&r.config, s.scheduler.location); r.refusal != nil {
		return r
	}
	keeper, ok := repository.(interface{ runStore() runStore })
	if !ok {
		r.refusal = fmt.Errorf("Runs.Record needs a RepositoryGorm, or a repository that embeds one: %T is none", repository)
		return r
	}
	r.store = keeper.runStore()
	r.ledger = ledger.New(r.store, ledger.Config{
		Location:     s.scheduler.location,
		RerunLost:    r.config.RerunLost,
		RunUnclaimed: r.config.RunUnclaimed,
		SyncInterval: r.config.SyncInterval,
		Retention:    r.config.Retention,
		Timing:       &r.timing,
		Metrics:      r.metrics,
		Log:          s.log,
	})
	return r
}

// runStore is what the record of runs needs of a repository: RepositoryGorm has it,
// and so has what embeds one.
type runStore interface {
	ledger.Store
	// Changes returns the jobs that a Change with a higher revision than since has
	// changed last or, if ids is not nil, those of ids, whatever their revision. If since
	// is 0 and ids nil, it returns every row, and tells of none that is gone.
	Changes(since int64, ids []int64) (changedRows, error)
	// CountRuns counts runs as SmallBen.CountRuns does.
	CountRuns(from time.Time, step time.Duration, limit int) ([]ledgersql.Count, time.Time, error)
}

// changedRows is one picture of the database.
type changedRows struct {
	// Revision is that of the last Change, whatever it changed.
	Revision int64
	// Jobs are rows with their revisions, decodable or not, in the order of their ids.
	Jobs []RawJob
	// Gone are the ids of jobs that have no row; of ids that is every one.
	Gone []int64
}

// changeTx is a ledger.Tx as a change of jobs uses it: the methods of Repository and
// Upserter read and write in its transaction, lock what they read, and give the jobs
// that they write the revision of the Change.
type changeTx interface {
	Repository
	Upserter
	ledger.Tx
	formerJobs
}

// formerJobs is a transaction that knows of jobs what was stored before another type
// took its place.
type formerJobs interface {
	// FormerJobs returns what SetFormerJobs has kept of those of the jobs, and whether
	// a process that was heard of in the last maxSilence claims and decodes every job.
	FormerJobs(jobIDs []int64, maxSilence time.Duration) (former map[int64]string, decoding bool, err error)
	// SetFormerJobs keeps the stored values that jobs had, until they are deleted. An
	// empty one forgets.
	SetFormerJobs(former map[int64]string) error
}

// undecodable gives the jobs of JobErrors by id. Of those that have ticks, which are
// accounted for all the same, it has what the ledger is to know. A nil record is valid: of
// no job it has that.
func (r *record) undecodable(rows []RawJob, errs []error) map[int64]*ledger.Job {
	jobs := make(map[int64]*ledger.Job, len(errs))
	for _, err := range errs {
		jobs[jobID(err)] = nil
	}
	if r == nil {
		return jobs
	}
	for i := range rows {
		row := &rows[i]
		if _, ok := jobs[row.ID]; ok && !row.Paused && !row.nameless() {
			job := row.forLedger(r.smallBen.scheduler.defaults)
			job.Schedule, job.Undecodable = r.schedule(row.CronExpression, row.CreatedAt), true
			jobs[row.ID] = &job
		}
	}
	return jobs
}

// schedule is that of an expression. One that does not parse has no ticks.
func (r *record) schedule(expression string, createdAt time.Time) ledger.Schedule {
	schedule, err := cronexpr.Parse(expression, createdAt)
	if err != nil {
		return cronexpr.Never{}
	}
	return cronexpr.In(schedule, r.smallBen.scheduler.location)
}

// open makes sure that there is a record. A nil record is valid: there is none.
func (r *record) open() error {
	if r == nil {
		return errors.New("runs are not recorded: Config.Runs.Record is not set")
	}
	if r.refusal != nil {
		return r.refusal
	}
	return r.ledger.Open()
}

// forUsers gives runs as users see them.
func (r *record) forUsers(rows []ledger.Run) []Run {
	runs := make([]Run, len(rows))
	for i := range rows {
		row := &rows[i]
		runs[i] = Run{JobID: row.JobID, Tick: row.Tick, Triggered: row.Triggered, Attempt: row.Attempt, GroupID: row.GroupID, SuperGroupID: row.SuperGroupID,
			Process: row.Process, Start: row.Start, End: row.End, Outcome: Outcome(row.Outcome), Error: row.Error,
			Missed: row.Missed, FirstTick: row.FirstTick, Due: row.Due}
		for _, t := range []*time.Time{&runs[i].Tick, &runs[i].FirstTick, &runs[i].Start, &runs[i].End, &runs[i].Due} {
			if !t.IsZero() {
				*t = t.In(r.smallBen.scheduler.location)
			}
		}
	}
	return runs
}

// addRuns gives jobs their newest n recorded runs, the last one, and what waits.
func (r *record) addRuns(c *call, jobs []Job, n int) error {
	if err := c.await(r.open); err != nil {
		return err
	}
	ids := make([]int64, len(jobs))
	index := make(map[int64]int, len(jobs))
	for i := range jobs {
		ids[i], index[jobs[i].ID] = jobs[i].ID, i
		jobs[i].lastRun, jobs[i].running = Run{}, false
	}
	rows, err := c.store.RunsOf(ids, n)
	for _, run := range r.forUsers(rows) {
		job := &jobs[index[run.JobID]]
		if run.Tick.Before(job.createdAt) {
			continue // of another job, which had the id before
		}
		switch run.Outcome {
		case OutcomeWaiting:
			if job.nextAttempt == nil || run.Due.Before(job.nextAttempt.Due) {
				job.nextAttempt = &run
			}
		case OutcomeMissed, OutcomeSkipped:
		default:
			job.lastRun, job.running = run, job.running || run.Outcome == OutcomeRunning
		}
		if n > 0 {
			job.recentRuns = append(job.recentRuns, run)
		}
	}
	return err
}

// follow makes memory agree with what was changed after a revision, or with the
// rows of ids. It expects changeMu.
func (s *SmallBen) follow(c *call, since int64, ids []int64) error {
	changes, err := c.store.Changes(since, ids)
	if err != nil {
		return err
	}
	about := append(idsOf(changes.Jobs), changes.Gone...)
	if since == 0 && ids == nil {
		about = append(about, s.remembered()...)
	}
	if err := s.meet(c, changes.Jobs, about); err != nil {
		return err
	}
	if ids == nil {
		s.record.ledger.Saw(changes.Revision)
	}
	return nil
}

// remembered are the ids of the jobs that memory has.
func (s *SmallBen) remembered() []int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ids := slices.AppendSeq(s.scheduler.ids(), maps.Keys(s.paused))
	return slices.AppendSeq(ids, maps.Keys(s.undecodable))
}

// fireSince asks for the ticks that came after a change and before its jobs were scheduled
// here: nobody else fires them.
func (s *SmallBen) fireSince(changed time.Time, jobs []JobWithSchedule) {
	const most = 100 // ticks of a job; what is more is missed
	if s.record == nil {
		return
	}
	s.scheduler.mu.RLock()
	defer s.scheduler.mu.RUnlock()
	session := s.scheduler.currentLocked()
	if session == nil {
		return
	}
	now := session.ledger.TickNow().In(s.scheduler.location)
	for i := range jobs {
		e, ok := s.scheduler.entries[jobs[i].rawJob.ID]
		if !ok {
			continue
		}
		ticks, _ := ledger.TicksIn(e.slot.Schedule, changed.In(s.scheduler.location), now, most)
		for _, at := range ticks {
			session.ledger.Ask(e.forLedger(), at)
		}
	}
}

// forLedger is an entry as the ledger sees it.
func (e *entry) forLedger() ledger.Job {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.forLedgerLocked()
}

func (e *entry) forLedgerLocked() ledger.Job {
	return ledger.Job{ID: e.id, GroupID: e.groupID, SuperGroupID: e.superGroupID, CreatedAt: e.createdAt, Revision: e.revision,
		Schedule: e.scheduled.schedule, Policy: e.options.forLedger()}
}

// forLedger is a row as the ledger sees it, but for its schedule. It expects options that
// are resolved.
func (j *RawJob) forLedger(options *RunOptions) ledger.Job {
	return ledger.Job{ID: j.ID, GroupID: j.GroupID, SuperGroupID: j.SuperGroupID, CreatedAt: j.CreatedAt.UnixMicro(), Revision: j.revision,
		Policy: options.forLedger()}
}

var overlapsForLedger = map[Overlap]ledger.Overlap{OverlapAllow: ledger.Allow, OverlapSkip: ledger.Skip, OverlapDelay: ledger.Delay}

// forLedger is what of the options the ledger goes by. It expects options that are
// resolved.
func (o *RunOptions) forLedger() ledger.Policy {
	policy := ledger.Policy{Overlap: overlapsForLedger[o.Overlap], Within: o.MissedWithin, Attempts: o.Attempts}
	switch o.Missed {
	case MissedRunOnce:
		policy.MakeUp = 1
	case MissedRunAll:
		policy.MakeUp = ledger.MaxMakeUp
	}
	return policy
}

// ledgerHost is what a session of the ledger works for. It is goroutine-safe.
type ledgerHost struct {
	s       *SmallBen
	session *session
}

// Hold implements ledger.Host.
func (h *ledgerHost) Hold() bool { return h.session.hold() }

// Release implements ledger.Host.
func (h *ledgerHost) Release() { h.session.release() }

// Look implements ledger.Host.
func (h *ledgerHost) Look(jobID int64, triggered bool) (ledger.Job, bool) {
	e, createdAt, paused := h.lookUp(jobID)
	switch {
	case e != nil:
		return e.forLedger(), true
	case triggered && paused:
		// The run itself says whether it is exclusive.
		return ledger.Job{ID: jobID, CreatedAt: createdAt}, true
	}
	return ledger.Job{}, false
}

// lookUp returns the entry of a job, or nil, and whether it is paused, and when one that
// is was created.
func (h *ledgerHost) lookUp(jobID int64) (e *entry, createdAt int64, paused bool) {
	h.s.mu.RLock()
	defer h.s.mu.RUnlock()
	createdAt, paused = h.s.paused[jobID]
	return h.session.entry(jobID), createdAt, paused
}

// entry returns the entry of a job in a session, or nil.
func (s *session) entry(jobID int64) *entry {
	s.scheduler.mu.RLock()
	defer s.scheduler.mu.RUnlock()
	if s.scheduler.session != s {
		return nil
	}
	return s.scheduler.entries[jobID]
}

// Partial implements ledger.Host.
func (h *ledgerHost) Partial() bool {
	h.s.mu.RLock()
	defer h.s.mu.RUnlock()
	for _, job := range h.s.undecodable {
		if job != nil {
			return true
		}
	}
	return false
}

// Jobs implements ledger.Host.
func (h *ledgerHost) Jobs() []ledger.Job {
	h.s.mu.RLock()
	defer h.s.mu.RUnlock()
	h.s.scheduler.mu.RLock()
	defer h.s.scheduler.mu.RUnlock()
	jobs := make([]ledger.Job, 0, len(h.s.scheduler.entries))
	for _, e := range h.s.scheduler.entries {
		jobs = append(jobs, e.forLedger())
	}
	for _, job := range h.s.undecodable {
		if job != nil {
			jobs = append(jobs, *job)
		}
	}
	return jobs
}

// Schedule implements ledger.Host.
func (h *ledgerHost) Schedule(expression string, createdAt time.Time) ledger.Schedule {
	return h.s.record.schedule(expression, createdAt)
}

// Follow implements ledger.Host.
func (h *ledgerHost) Follow(ids []int64) error {
	h.s.changeMu.Lock()
	defer h.s.changeMu.Unlock()
	if err := h.s.follow(h.s.background(), h.s.record.ledger.Seen(), nil); err != nil {
		return err
	}
	if len(ids) == 0 {
		return nil
	}
	return h.s.follow(h.s.background(), 0, ids)
}

// Overlapped implements ledger.Host.
func (h *ledgerHost) Overlapped(jobID int64, at time.Time) {
	e := h.session.entry(jobID)
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.runs == nil {
		e.runs = &jobRuns{}
	}
	h.s.scheduler.countSkipped(e, at.In(h.s.scheduler.location))
}

// Shift implements ledger.Host.
func (h *ledgerHost) Shift(ahead time.Duration) { h.session.timetable.Shift(ahead) }

// TakePlaces implements ledger.Host.
func (h *ledgerHost) TakePlaces(limit int) (n int, freed <-chan struct{}) {
	return h.s.scheduler.places.Take(limit)
}

// LeavePlaces implements ledger.Host.
func (h *ledgerHost) LeavePlaces(n int) {
	for range n {
		h.s.scheduler.freePlace()
	}
}

// Start implements ledger.Host.
func (h *ledgerHost) Start(grant *ledger.Grant) { go h.start(grant) }

func (h *ledgerHost) start(grant *ledger.Grant) {
	s := h.s.scheduler
	at := tick{session: h.session, at: grant.Tick.In(s.location), triggered: grant.Triggered, grant: grant}
	for {
		var err error
		if at.entry, err = h.entryOf(grant); err != nil {
			grant.Skip(err.Error())
			break
		}
		r, refusal := s.admit(&at, true)
		if r != nil {
			s.execute(r)
			return
		}
		if refusal == changedBefore {
			continue // since entryOf
		}
		if refusal != "" {
			grant.Skip(refusal)
		}
		break
	}
	s.freePlace()
}

var (
	errGone     = errors.New("its job was paused or deleted, or SmallBen stopped, before it started")
	errNotAgain = errors.New("its job is not tried so often, which the process that let it wait did not know")
)

// entryOf returns the entry that runs a grant.
func (h *ledgerHost) entryOf(grant *ledger.Grant) (e *entry, err error) {
	e, _, paused := h.lookUp(grant.JobID)
	if e == nil {
		if !paused || !grant.Triggered {
			return nil, errGone
		}
		if e, err = h.pausedEntry(grant); err != nil {
			return nil, err
		}
	}
	job := e.forLedger()
	if job.CreatedAt != grant.CreatedAt {
		return nil, errGone
	}
	// The second attempt may be that of a lost run, which the options do not ask for.
	if afterLost := grant.Attempt == 2 && h.s.record.config.RerunLost; grant.Attempt > 1 && !afterLost && grant.Attempt > job.Attempts {
		return nil, errNotAgain
	}
	return e, nil
}

func (h *ledgerHost) pausedEntry(grant *ledger.Grant) (*entry, error) {
	job, err := h.s.background().hasten().repository.GetJob(grant.JobID)
	if err != nil {
		return nil, err
	}
	// A change comes before the look, or ends the entry.
	h.s.mu.RLock()
	defer h.s.mu.RUnlock()
	createdAt, paused := h.s.paused[grant.JobID]
	if !paused || createdAt != grant.CreatedAt || job.rawJob.CreatedAt.UnixMicro() != createdAt {
		return nil, errGone
	}
	h.s.scheduler.mu.Lock()
	defer h.s.scheduler.mu.Unlock()
	return h.s.scheduler.pausedEntryLocked(&job), nil
}

// claimTriggered claims a run of each job at once, for TriggerJobs. The map has
// those that are to run or wait, by job.
func (s *SmallBen) claimTriggered(jobs []JobWithSchedule, at tick) (map[int64]*ledger.Grant, error) {
	if s.record == nil {
		return nil, nil
	}
	session := s.scheduler.current()
	if session == nil {
		return nil, errStopped
	}
	asked := make([]ledger.Job, len(jobs))
	for i := range jobs {
		asked[i] = jobs[i].rawJob.forLedger(jobs[i].options.resolve(s.scheduler.defaults))
	}
	granted, err := session.ledger.Trigger(asked, at.at, func(id int64) error {
		return fmt.Errorf("%w: no job with id %d", s.repository.ErrorTypeIfMismatchCount(), id)
	})
	if err != nil {
		return nil, err
	}
	grants := make(map[int64]*ledger.Grant, len(granted))
	for _, grant := range granted {
		grants[grant.JobID] = grant
	}
	return grants, nil
}

var errStopped = ledger.ErrStopped

package smallben

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nbena/smallben/internal/cronexpr"
	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/ledger/ledgersql"
	"github.com/nbena/smallben/internal/metrics"
)

// Run is a run of a job or, in the record of runs (Config.Runs), a stretch of ticks
// that were missed. The zero value stands for none.
type Run struct {
	JobID int64
	// Tick is the nominal instant of the run; if it was triggered, the time of the
	// call.
	Tick      time.Time
	Triggered bool
	// Attempt is 1 for the first run of a tick, and one more for each further one.
	Attempt int
	// GroupID and SuperGroupID are those of the job when it ran.
	GroupID      int64
	SuperGroupID int64
	// Process is the process that ran it: its host, its process id, and letters
	// that tell its sessions apart. Of missed ticks it is the one that found out.
	// It is empty for a run that waits, and where runs are not recorded.
	Process string
	// Start and End are when the run started and ended, by the clock that ticks go
	// by: of its process or, where that differs by more than a second, of the
	// database. Until the run has ended, Start is when it was claimed, and End is
	// the zero time.
	Start, End time.Time
	// Outcome says how it ended, or that it has not, and Error what went wrong.
	Outcome Outcome
	Error   string
	// Missed is, for OutcomeMissed, how many ticks the entry stands for: FirstTick
	// to Tick. From 10,000 on it stands for at least as many. Of a run that makes
	// up for missed ticks it is how many, its own included.
	Missed    int
	FirstTick time.Time
	// Due is, for OutcomeWaiting, when the run may start.
	Due time.Time
}

// ErrRunLost is the cause (context.Cause) with which the context of a run ends whose
// process was taken for dead: the run is recorded as lost, and may run again elsewhere.
var ErrRunLost = ledger.ErrGivenAway

// Duration is how long the run took. It is 0 until it has ended.
func (r Run) Duration() time.Duration {
	if r.End.IsZero() {
		return 0
	}
	return r.End.Sub(r.Start)
}

// Lateness is the time from the tick to the start. It is 0 for what never started.
func (r Run) Lateness() time.Duration {
	switch r.Outcome {
	case OutcomeMissed, OutcomeSkipped, OutcomeWaiting:
		return 0
	}
	return r.Start.Sub(r.Tick)
}

// String describes the run in a line.
func (r Run) String() string {
	if r.Outcome == "" {
		return "none"
	}
	text := fmt.Sprintf("job %d, tick %s: %s", r.JobID, r.Tick.Format(time.RFC3339), r.Outcome)
	if r.Triggered {
		text += ", triggered"
	}
	if r.Attempt > 1 {
		text += fmt.Sprintf(", attempt %d", r.Attempt)
	}
	if r.Missed > 1 {
		text += fmt.Sprintf(", %d ticks", r.Missed)
	}
	if r.Process != "" {
		text += ", on " + r.Process
	}
	if r.Error != "" {
		text += ": " + r.Error
	}
	return text
}

// ListRunsOptions selects runs. A run is selected if it matches every filter that
// is given. The zero value selects the newest thousand.
type ListRunsOptions struct {
	// JobIDs, GroupIDs and SuperGroupIDs select the runs of jobs with one of these
	// ids. Nil means any; an empty slice that is not nil selects nothing.
	JobIDs        []int64
	GroupIDs      []int64
	SuperGroupIDs []int64
	// Outcomes selects runs with one of these outcomes. Nil means any.
	Outcomes []Outcome
	// From and Before select by the tick: not before From, and before Before. The
	// zero time does not select.
	From, Before time.Time
	// After selects what is listed after this run: the last one of the page before.
	// Nil means from the first.
	After *Run
	// Limit is how many runs to return at most, the newest ones. Zero or less
	// means 1,000.
	Limit int
}

// String says in words which runs are selected.
func (o ListRunsOptions) String() string {
	jobs := ListJobsOptions{JobIDs: o.JobIDs, GroupIDs: o.GroupIDs, SuperGroupIDs: o.SuperGroupIDs}
	text := "runs of " + jobs.String()
	if o.Outcomes != nil {
		names := make([]string, len(o.Outcomes))
		for i, outcome := range o.Outcomes {
			names[i] = string(outcome)
		}
		text += ", outcome " + strings.Join(names, " or ")
	}
	if !o.From.IsZero() {
		text += ", from " + o.From.Format(time.RFC3339)
	}
	if !o.Before.IsZero() {
		text += ", before " + o.Before.Format(time.RFC3339)
	}
	if o.After != nil {
		text += fmt.Sprintf(", after job %d, tick %s", o.After.JobID, o.After.Tick.Format(time.RFC3339))
	}
	return text
}

func (o *ListRunsOptions) query() ledger.Query {
	query := ledger.Query{JobIDs: o.JobIDs, GroupIDs: o.GroupIDs, SuperGroupIDs: o.SuperGroupIDs, From: o.From, Before: o.Before, Limit: o.Limit}
	if o.After != nil {
		query.After = &ledger.Key{JobID: o.After.JobID, Tick: o.After.Tick, Triggered: o.After.Triggered, Attempt: o.After.Attempt}
	}
	if o.Outcomes != nil {
		query.Outcomes = make([]ledger.Outcome, len(o.Outcomes))
		for i, outcome := range o.Outcomes {
			query.Outcomes[i] = ledger.Outcome(outcome)
		}
	}
	return query
}

// ListRuns returns the recorded runs that match options, newest tick first: what
// ran, where and how it went, what was missed, skipped or lost, what is running and
// what waits. Nil options match the newest thousand. Times are in the location of
// SchedulerConfig. Without Config.Runs.Record it returns an error.
func (s *SmallBen) ListRuns(options *ListRunsOptions) ([]Run, error) {
	return s.ListRunsContext(context.Background(), options)
}

// ListRunsContext is ListRuns, and ends with ctx.
func (s *SmallBen) ListRunsContext(ctx context.Context, options *ListRunsOptions) ([]Run, error) {
	if options == nil {
		options = &ListRunsOptions{}
	}
	if s.record == nil {
		return nil, wrapRuns(errNotRecorded)
	}
	c := s.begin(ctx)
	defer c.end()
	if err := c.await(s.record.open); err != nil {
		return nil, wrapRuns(err)
	}
	rows, err := c.store.ListRuns(options.query())
	if err != nil {
		return nil, wrapRuns(err)
	}
	return s.record.runs(rows), nil
}

func wrapRuns(err error) error { return fmt.Errorf("list runs: %w", err) }

// Process is a process that shares the record of runs.
type Process struct {
	// Name is its host, its process id, and letters that tell its sessions apart.
	Name string
	// Version is that of its program, as debug.ReadBuildInfo has it: "v1.4.2", or what
	// the go command makes of a commit. It is "(devel)" or empty if it is not known.
	Version string
	// Since is when it started, by the clock of the database.
	Since time.Time
	// Heartbeat is how long ago it was heard of.
	Heartbeat time.Duration
	// Claims says that it runs jobs: it has started, and was not stopped.
	Claims bool
	// Leads says that it is the one that looks for missed ticks and prunes.
	Leads bool
	// Partial says that some jobs do not decode there.
	Partial bool
	// ClockOffset is by how much the database's clock was ahead of its own.
	ClockOffset time.Duration
}

// Processes returns the processes that share the record of runs, in the order of their
// names. Without Config.Runs.Record it returns an error.
func (s *SmallBen) Processes() ([]Process, error) {
	if s.record == nil {
		return nil, fmt.Errorf("list processes: %w", errNotRecorded)
	}
	if err := s.record.open(); err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	found, err := s.record.store.Processes()
	if err != nil {
		return nil, err
	}
	processes := make([]Process, len(found))
	for i := range found {
		p := &found[i]
		processes[i] = Process{Name: p.Process, Version: p.Version, Since: p.Since.In(s.scheduler.location), Heartbeat: p.Age, Claims: p.Claims, Leads: p.Leads, Partial: p.Partial, ClockOffset: p.Offset}
	}
	return processes, nil
}

// errNotRecorded refuses what only the record of runs knows.
var errNotRecorded = errors.New("runs are not recorded: Config.Runs.Record is not set")

// RunCount is how many ticks within a step of time had an outcome.
type RunCount struct {
	From    time.Time
	Outcome Outcome
	Count   int
}

// CountRuns counts the runs whose tick is not before from, by steps of time since
// from and by outcome, in that order. An entry for missed ticks counts as many as
// it stands for. It looks at the newest limit runs at most, and returns since when
// all are counted: from, or a tick after it. Without Config.Runs.Record it returns
// an error.
func (s *SmallBen) CountRuns(from time.Time, step time.Duration, limit int) (counts []RunCount, since time.Time, err error) {
	switch {
	case s.record == nil:
		return nil, from, wrap("count runs", errNotRecorded)
	case step < time.Microsecond || limit <= 0:
		return nil, from, errors.New("count runs: step and limit must be positive")
	}
	if err := s.record.open(); err != nil {
		return nil, from, wrap("count runs", err)
	}
	if counter, ok := s.record.store.(interface {
		CountRuns(from time.Time, step time.Duration, limit int) ([]ledgersql.Count, time.Time, error)
	}); ok {
		var found []ledgersql.Count
		found, since, err = counter.CountRuns(from, step, limit)
		for _, c := range found {
			counts = append(counts, RunCount{from.Add(time.Duration(c.Step) * step), Outcome(c.Outcome), c.Ticks})
		}
	} else {
		counts, since, err = s.record.countListed(from, step, limit)
	}
	if err != nil {
		return nil, from, wrap("count runs", err)
	}
	return counts, since, nil
}

// countListed counts runs that it lists, for a store that cannot count.
func (r *record) countListed(from time.Time, step time.Duration, limit int) ([]RunCount, time.Time, error) {
	rows, err := r.store.ListRuns(ledger.Query{From: from, Limit: limit})
	if err != nil {
		return nil, from, err
	}
	runs := r.runs(rows)
	type key struct {
		step    int64
		outcome Outcome
	}
	found := make(map[key]int)
	for i := range runs {
		k := key{int64(runs[i].Tick.Sub(from) / step), runs[i].Outcome}
		if runs[i].Outcome == OutcomeMissed {
			found[k] += runs[i].Missed
		} else {
			found[k]++
		}
	}
	counts := make([]RunCount, 0, len(found))
	for k, count := range found {
		counts = append(counts, RunCount{from.Add(time.Duration(k.step) * step), k.outcome, count})
	}
	slices.SortFunc(counts, func(a, b RunCount) int {
		return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.Outcome, b.Outcome))
	})
	if len(runs) == limit {
		from = runs[limit-1].Tick
	}
	return counts, from, nil
}

// runStore is what the record of runs needs of a repository: RepositoryGorm has it,
// and so has what embeds one.
type runStore interface {
	ledger.Store
	// Changes returns the jobs that a Change with a higher revision than since has
	// changed last or, if ids is not nil, those of ids, whatever their revision.
	Changes(since int64, ids []int64) (changedRows, error)
}

// changedRows is one picture of the database.
type changedRows struct {
	// Revision is that of the last Change, whatever it changed.
	Revision int64
	// Jobs are rows, decodable or not, in the order of their ids, and Revisions
	// those of each.
	Jobs      []RawJob
	Revisions []int64
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

	// FormerJobs returns what SetFormerJobs has kept of those of the jobs, and whether
	// a process that was heard of in the last maxSilence claims and decodes every job.
	FormerJobs(jobIDs []int64, maxSilence time.Duration) (former map[int64]string, decoding bool, err error)
	// SetFormerJobs keeps the stored values that jobs had, until they are deleted. An
	// empty one forgets.
	SetFormerJobs(former map[int64]string) error
}

// record is the record of runs as one SmallBen uses it.
type record struct {
	store   runStore
	refusal error // why there is no store
	config  RunsConfig
	timing  ledger.Timing
	metrics *metrics.Record
	host    *SmallBen
	ledger  *ledger.Ledger // nil if there is no store

	// heldBack are the jobs that are not paused and do not decode here: their ticks
	// are accounted for all the same. It is guarded by SmallBen.mu.
	heldBack map[int64]ledger.Job
}

// holdBackLocked notes which rows do not decode, and that the others do.
func (r *record) holdBackLocked(rows []RawJob, undecodable []error) {
	bad := make(map[int64]bool, len(undecodable))
	for _, err := range undecodable {
		bad[jobID(err)] = true
	}
	for i := range rows {
		row := &rows[i]
		if !bad[row.ID] || row.Paused || row.nameless() {
			delete(r.heldBack, row.ID)
			continue
		}
		r.heldBack[row.ID] = r.host.scheduler.defaults.recorded(ledger.Job{ID: row.ID, GroupID: row.GroupID, SuperGroupID: row.SuperGroupID,
			CreatedAt: row.CreatedAt.UnixMicro(), Revision: row.revision, Schedule: r.schedule(row.CronExpression, row.CreatedAt), Undecodable: true})
	}
}

// schedule is that of an expression. One that does not parse has no ticks.
func (r *record) schedule(expression string, createdAt time.Time) ledger.Schedule {
	schedule, err := cronexpr.Parse(expression, createdAt)
	if err != nil {
		return cronexpr.Never{}
	}
	return cronexpr.In(schedule, r.host.scheduler.location)
}

func newRecord(repository Repository, config RunsConfig, s *SmallBen) *record {
	r := &record{config: config, timing: ledger.DefaultTiming, metrics: metrics.NewRecord(), host: s, heldBack: make(map[int64]ledger.Job)}
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
		Canceled:     ErrRunCanceled,
		Log:          s.log,
	})
	return r
}

// checkRecord sets what the config leaves to us, or says why runs cannot be recorded
// so.
func checkRecord(config *RunsConfig, location *time.Location) error {
	if config.SyncInterval == 0 {
		config.SyncInterval = time.Second
	}
	if config.Retention == 0 {
		config.Retention = 7 * 24 * time.Hour
	}
	switch {
	case config.SyncInterval < 10*time.Millisecond || config.SyncInterval > 5*time.Second:
		return fmt.Errorf("Runs.SyncInterval is %v, not between 10ms and 5s", config.SyncInterval)
	case config.Retention > 0 && config.Retention < time.Minute:
		return fmt.Errorf("Runs.Retention is %v, less than a minute", config.Retention)
	case config.Missed < MissedDefault || config.Missed > MissedRunAll:
		return fmt.Errorf("Runs.Missed is %d, which is no MissedPolicy", config.Missed)
	case location == time.Local:
		return errors.New("WithLocation is time.Local, which may be another location in another process: with Runs.Record give one by name")
	case !inDatabase(location):
		return fmt.Errorf("WithLocation is %q, which is not in the time zone database: with Runs.Record every process must find it there", location)
	}
	return nil
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
	if r.refusal != nil {
		return r.refusal
	}
	return r.ledger.Open()
}

// runs gives rows of the record to users.
func (r *record) runs(rows []ledger.Run) []Run {
	runs := make([]Run, len(rows))
	for i := range rows {
		row := &rows[i]
		runs[i] = Run{JobID: row.JobID, Tick: row.Tick, Triggered: row.Triggered, Attempt: row.Attempt, GroupID: row.GroupID, SuperGroupID: row.SuperGroupID,
			Process: row.Process, Start: row.Start, End: row.End, Outcome: Outcome(row.Outcome), Error: row.Error,
			Missed: row.Missed, FirstTick: row.FirstTick, Due: row.Due}
		for _, t := range []*time.Time{&runs[i].Tick, &runs[i].FirstTick, &runs[i].Start, &runs[i].End, &runs[i].Due} {
			if !t.IsZero() {
				*t = t.In(r.host.scheduler.location)
			}
		}
	}
	return runs
}

// describe gives jobs their newest n recorded runs, the last one, and what waits.
func (r *record) describe(c *call, jobs []Job, n int) error {
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
	for _, run := range r.runs(rows) {
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

// makeUp is how many missed ticks a policy runs.
func (p MissedPolicy) makeUp() int {
	switch p {
	case MissedRunOnce:
		return 1
	case MissedRunAll:
		return ledger.MaxMakeUp
	}
	return 0
}

// follow makes memory agree with what was changed after a revision, or with the
// rows of ids. It expects changeMu.
func (s *SmallBen) follow(c *call, since int64, ids []int64) error {
	changes, err := c.store.Changes(since, ids)
	if err != nil {
		return err
	}
	changes.number()
	known := slices.Clone(changes.Gone)
	if since == 0 && ids == nil {
		known = append(known, s.scheduled()...)
	}
	for i := range changes.Jobs {
		known = append(known, changes.Jobs[i].ID)
	}
	if err := s.meet(c, changes.Jobs, known); err != nil {
		return err
	}
	if ids == nil {
		s.record.ledger.Saw(changes.Revision)
	}
	return nil
}

// number gives the rows their revisions.
func (c *changedRows) number() {
	for i := range c.Jobs {
		c.Jobs[i].revision = c.Revisions[i]
	}
}

// scheduled are the ids of the jobs that memory knows.
func (s *SmallBen) scheduled() []int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.AppendSeq(s.scheduler.ids(), maps.Keys(s.paused))
}

// fireSince asks for the ticks of jobs that came after their watermarks began
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
	now := s.scheduler.session.ledger.Now().In(s.scheduler.location)
	for i := range jobs {
		e, ok := s.scheduler.entries[jobs[i].rawJob.ID]
		if !ok {
			continue
		}
		ticks, _ := ledger.TicksIn(e.slot.Schedule, began.In(s.scheduler.location), now, most)
		for _, at := range ticks {
			e.session.ledger.Ask(e.recorded(), at)
		}
	}
}

// closeSpans lets the ticks of jobs up to now be accounted for as the jobs are before
// a change, in its transaction. It does nothing if runs are not recorded.
func (s *SmallBen) closeSpans(tx Repository, c *change, ids []int64, makeUp bool) error {
	if s.record == nil || len(ids) == 0 {
		return nil
	}
	recordTx := tx.(changeTx)
	if len(ids) < len(c.ids) {
		// What is locked in two calls might be waited for in a circle: all that the
		// change will write is locked first.
		if _, err := recordTx.Watermarks(c.ids); err != nil {
			return err
		}
	}
	return recordTx.Close(ids, makeUp)
}

// reschedule prepares jobs for a change of their expressions.
func (s *SmallBen) reschedule(tx Repository, c *change, ids []int64) error {
	if err := s.closeSpans(tx, c, ids, true); err != nil {
		return err
	}
	return s.cancelWaiting(tx, ids, false, "the expression of its job was changed while it waited")
}

// cancelWaiting ends the waiting runs of jobs, in the transaction of a change.
func (s *SmallBen) cancelWaiting(tx Repository, ids []int64, triggered bool, reason string) error {
	if s.record == nil || len(ids) == 0 {
		return nil
	}
	_, err := tx.(changeTx).Cancel(ids, triggered, reason)
	return err
}

// recorded is an entry as the ledger sees it.
func (e *entry) recorded() ledger.Job {
	s := e.session.scheduler
	shard := s.shard(e.id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	return e.options.recorded(ledger.Job{ID: e.id, GroupID: e.groupID, SuperGroupID: e.superGroupID, CreatedAt: e.createdAt, Revision: e.revision,
		Schedule: e.slot.Schedule})
}

// recorded tells the ledger how the runs of a job are treated. It expects options that
// are resolved.
func (o *RunOptions) recorded(job ledger.Job) ledger.Job {
	switch o.Overlap {
	case OverlapSkip:
		job.Overlap = ledger.Skip
	case OverlapDelay:
		job.Overlap = ledger.Delay
	}
	job.MakeUp, job.Within, job.Attempts = o.Missed.makeUp(), o.MissedWithin, o.Attempts
	return job
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
	e, paused := h.known(jobID)
	switch {
	case e != nil:
		return e.recorded(), true
	case triggered && paused:
		// The run itself says whether it is exclusive.
		return ledger.Job{ID: jobID}, true
	}
	return ledger.Job{}, false
}

// known returns the entry of a job, or nil, and whether it is paused.
func (h *ledgerHost) known(jobID int64) (e *entry, paused bool) {
	h.s.mu.RLock()
	defer h.s.mu.RUnlock()
	_, paused = h.s.paused[jobID]
	return h.session.entry(jobID), paused
}

// entry returns the entry of a job in a session, or nil.
func (s *session) entry(jobID int64) *entry {
	s.scheduler.mu.RLock()
	defer s.scheduler.mu.RUnlock()
	if e, ok := s.scheduler.entries[jobID]; ok && e.session == s {
		return e
	}
	return nil
}

// Partial implements ledger.Host.
func (h *ledgerHost) Partial() bool {
	h.s.mu.RLock()
	defer h.s.mu.RUnlock()
	return len(h.s.record.heldBack) > 0
}

// Jobs implements ledger.Host.
func (h *ledgerHost) Jobs() []ledger.Job {
	h.s.mu.RLock()
	defer h.s.mu.RUnlock()
	h.s.scheduler.mu.RLock()
	defer h.s.scheduler.mu.RUnlock()
	jobs := make([]ledger.Job, 0, len(h.s.scheduler.entries))
	for _, e := range h.s.scheduler.entries {
		if e.session == h.session {
			jobs = append(jobs, e.recorded())
		}
	}
	return slices.AppendSeq(jobs, maps.Values(h.s.record.heldBack))
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
	s := h.s.scheduler
	shard := s.shard(jobID)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	s.countSkipped(shard.state(e), e, at.In(s.location))
}

// Shift implements ledger.Host.
func (h *ledgerHost) Shift(ahead time.Duration) { h.session.timetable.Shift(ahead) }

// Reserve implements ledger.Host.
func (h *ledgerHost) Reserve(limit int) (n int, freed <-chan struct{}) {
	return h.s.scheduler.places.Reserve(limit)
}

// Unreserve implements ledger.Host.
func (h *ledgerHost) Unreserve(n int) {
	for range n {
		h.s.scheduler.leave()
	}
}

// Start implements ledger.Host.
func (h *ledgerHost) Start(grant *ledger.Grant) { go h.start(grant) }

func (h *ledgerHost) start(grant *ledger.Grant) {
	s := h.s.scheduler
	at := tick{at: grant.Tick.In(s.location), triggered: grant.Triggered, grant: grant, placed: true}
	for {
		e, err := h.entry(grant)
		if err != nil {
			grant.Skip(err.Error())
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
			grant.Skip(stillRunning)
			return
		}
		// The entry was replaced, and the place was left.
		at.placed = false
	}
}

var errGone = errors.New("its job was paused or deleted, or SmallBen stopped, before it started")

// entry returns the entry that runs a grant: one in no page for the triggered run of
// a paused job.
func (h *ledgerHost) entry(grant *ledger.Grant) (*entry, error) {
	e, paused := h.known(grant.JobID)
	if e != nil && e.createdAt == grant.CreatedAt {
		return e, nil
	}
	if e != nil || !grant.Triggered || !paused {
		return nil, errGone
	}
	job, err := h.s.repository.GetJob(grant.JobID)
	if err != nil {
		return nil, err
	}
	if _, paused := h.known(grant.JobID); !paused {
		return nil, errGone
	}
	e = h.s.scheduler.newEntry(&job)
	e.session = h.session
	return e, nil
}

// claimTriggered claims a run of each job at once, for TriggerJobs. The map has
// those that are to run, by job, and nil for those that wait for another run.
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
		row := &jobs[i].rawJob
		asked[i] = jobs[i].options.resolve(s.scheduler.defaults).recorded(
			ledger.Job{ID: row.ID, GroupID: row.GroupID, SuperGroupID: row.SuperGroupID, CreatedAt: row.CreatedAt.UnixMicro()})
	}
	won, delayed, err := session.ledger.Trigger(asked, at.at, func(id int64) error {
		return fmt.Errorf("%w: no job with id %d", s.repository.ErrorTypeIfMismatchCount(), id)
	})
	if err != nil {
		return nil, err
	}
	grants := make(map[int64]*ledger.Grant, len(won))
	for _, grant := range won {
		grants[grant.JobID] = grant
	}
	for _, id := range delayed {
		grants[id] = nil
	}
	return grants, nil
}

var errStopped = ledger.ErrStopped

// finish records how a claimed run ended. A retry that is not zero is when its next
// attempt is due.
func finish(grant *ledger.Grant, result *runResult, retry time.Time) {
	grant.End(result.Start, result.Start.Add(result.Duration), ledger.Outcome(result.Outcome), result.Error, retry)
}

package smallben

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"gorm.io/gorm"

	"github.com/nbena/smallben/internal/jobsql"
	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/ledger/ledgersql"
	"github.com/nbena/smallben/internal/sqltx"
)

const defaultTimeout = 30 * time.Second

// RepositoryGormConfig says how to open a RepositoryGorm.
type RepositoryGormConfig struct {
	// Dialector is the database, such as postgres.Open(dsn) or
	// sqlite.Open(path). It must be set.
	//
	// On SQLite, readers and a writer block each other for the length of a
	// commit, unless the database is in WAL mode: for mattn's driver,
	// sqlite.Open("file:jobs.db?_journal_mode=WAL").
	Dialector gorm.Dialector

	// Config configures GORM. The repository copies it.
	// Zero means that nothing is logged. A TablePrefix of its NamingStrategy
	// names every table and index, NowFunc gives the times of rows, and Plugins
	// and Logger see the statements. README, "In your database", says what each
	// field does. Those have no effect that make GORM ping, open transactions,
	// prepare statements or skip them (DryRun).
	Config gorm.Config

	// SkipMigration leaves the creation of the table "jobs" and its indexes
	// to the user, and of those of the record of runs, if there is to be one:
	// Schema gives the statements. A missing table is then an error.
	// Zero means that NewRepositoryGorm creates them if the table is missing, and
	// Start those of the record. Nothing that is there is altered.
	SkipMigration bool

	// Timeout bounds each call, opening included.
	// Zero means 30 s, negative no bound.
	//
	// On SQLite it takes the place of the busy timeout of a connection, and
	// cache_spill is switched off, for as long as a call has the connection.
	Timeout time.Duration
}

// RepositoryGorm keeps jobs in the table "jobs" of a database that GORM opens.
// NewRepositoryGorm makes one, Close ends it, and it is safe for concurrent use.
//
// PostgreSQL (13 or later) and SQLite (3.38 or later) have statements of their
// own. Any other database takes portable ones, which are untested there.
//
// A transaction gets three quarters of the timeout; what is left is for
// learning whether a COMMIT happened whose reply was lost.
//
// On PostgreSQL, and on SQLite in WAL mode, it keeps the record of runs as well
// (Config.Runs). Nothing of the record is created or read until a SmallBen that records
// uses it.
type RepositoryGorm struct {
	table *jobsql.Table
	runs  *ledgersql.Store // the record of runs
}

var (
	_ Repository = (*RepositoryGorm)(nil)
	_ Upserter   = (*RepositoryGorm)(nil)
	_ Pager      = (*RepositoryGorm)(nil)

	_ ContextRepository = (*RepositoryGorm)(nil)
)

// NewRepositoryGorm opens the database, and creates the table "jobs" with its
// indexes if it is missing. Several processes may do so at once.
func NewRepositoryGorm(config *RepositoryGormConfig) (*RepositoryGorm, error) {
	return newRepositoryGorm(config, false)
}

// Schema returns the statements that create every table and index, those of the
// record of runs included, for those who set SkipMigration. It opens no database. For
// one that is neither PostgreSQL nor SQLite it is an error.
func Schema(config *RepositoryGormConfig) (string, error) {
	if config == nil || config.Dialector == nil {
		return "", errors.New("schema: Dialector is nil")
	}
	script, err := sqltx.Script(options(config), slices.Concat(jobsql.Schema(), ledgersql.Schema))
	if err != nil {
		return "", fmt.Errorf("schema: %w", err)
	}
	return script, nil
}

// options are what is known before a database is open.
func options(config *RepositoryGormConfig) sqltx.Options {
	return sqltx.Options{
		Dialector: config.Dialector, Config: config.Config,
		Tables: append([]sqltx.Table{jobsql.Jobs}, ledgersql.Tables...), Indexes: append(jobsql.IndexNames(), ledgersql.Indexes...),
	}
}

// newRepositoryGorm takes the portable statements if portable is set.
func newRepositoryGorm(config *RepositoryGormConfig, portable bool) (*RepositoryGorm, error) {
	if config == nil {
		return nil, errors.New("open repository: the config is nil")
	}
	if config.Dialector == nil {
		return nil, errors.New("open repository: Dialector is nil")
	}
	timeout := max(config.Timeout, 0)
	if config.Timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithCancel(context.Background())
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()
	open := options(config)
	open.Timeout, open.Portable = timeout, portable
	const op = "open repository"
	db, err := sqltx.Open(ctx, op, open)
	if err != nil {
		return nil, err
	}
	table := jobsql.New(db)
	r := &RepositoryGorm{table, ledgersql.New(db, ledgersql.Options{SkipMigration: config.SkipMigration, CreatedAt: table.CreatedAt})}
	if err := table.Migrate(ctx, op, !config.SkipMigration); err != nil {
		_ = db.CloseOwned()
		return nil, err
	}
	return r, nil
}

// Close closes the pool of connections, and with it the repository. It is not
// for those who passed a pool of their own in the dialector.
func (r *RepositoryGorm) Close() error { return r.db().Close() }

func (r *RepositoryGorm) db() *sqltx.DB { return r.table.DB() }

// gormOf returns the RepositoryGorm that a repository is or embeds, or nil.
func gormOf(repository Repository) *RepositoryGorm {
	if holder, ok := repository.(interface{ itself() *RepositoryGorm }); ok {
		return holder.itself()
	}
	return nil
}

func (r *RepositoryGorm) itself() *RepositoryGorm { return r }

// WithContext implements ContextRepository: GORM's plugins and its logger see ctx. The
// Timeout holds as well. The repository that it returns shares the pool, and is not to
// be closed.
func (r *RepositoryGorm) WithContext(ctx context.Context) Repository {
	return &RepositoryGorm{r.table.WithContext(ctx), r.runs.WithContext(ctx)}
}

// ErrorTypeIfMismatchCount returns gorm.ErrRecordNotFound.
func (r *RepositoryGorm) ErrorTypeIfMismatchCount() error { return gorm.ErrRecordNotFound }

// AddJobs implements Repository.
func (r *RepositoryGorm) AddJobs(jobs []JobWithSchedule) error {
	return r.store("add jobs", jobs, nil)
}

// UpsertJobs implements Upserter.
func (r *RepositoryGorm) UpsertJobs(add, replace []JobWithSchedule) error {
	return r.store("upsert jobs", add, replace)
}

// store adds and replaces rows in one transaction.
func (r *RepositoryGorm) store(op string, add, replace []JobWithSchedule) error {
	if len(add)+len(replace) == 0 {
		return nil
	}
	now := r.db().Now()
	added, problems := buildRows(add, now)
	replacing, more := buildRows(replace, now)
	problems = append(problems, more...)
	times := make(map[int64]int, len(added))
	for i := range added {
		id := added[i].ID
		if times[id]++; times[id] == 2 {
			problems = append(problems, jobErrorf(id, "%w: it stands twice in the batch", ErrJobExists))
		}
	}

	ctx, cancel := r.db().Context()
	defer cancel()
	wide, err := r.table.TooWide(ctx, slices.Concat(added, replacing))
	if err != nil {
		return r.db().Failed(op, err)
	}
	for _, value := range wide {
		problems = append(problems, invalid(value.JobID, value.Err))
	}

	var refused error
	if len(problems) == 0 {
		missing, err := r.table.Store(ctx, op, added, replacing, now)
		if err == nil {
			return mismatch(op, missing)
		}
		if !jobsql.Refused(err) {
			return err
		}
		refused = err
	}
	// Nothing is stored. Name every id that is in the way.
	existing, err := r.readRows(ctx, ListJobsOptions{JobIDs: slices.AppendSeq([]int64{}, maps.Keys(times))})
	for i := range existing {
		problems = append(problems, jobErrorf(existing[i].ID, "%w", ErrJobExists))
	}
	if refused == nil && err != nil {
		problems = append(problems, r.db().Failed(op, err))
	}
	if len(problems) == 0 {
		return refused
	}
	return join(problems)
}

// buildRows returns the rows of jobs, and a JobError for each that no table can
// hold.
func buildRows(jobs []JobWithSchedule, now time.Time) (rows []jobsql.Row, problems []error) {
	rows = make([]jobsql.Row, 0, len(jobs))
	for i := range jobs {
		row, err := jobs[i].buildRow((*jobsql.Row).Check)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		row.CreatedAt, row.UpdatedAt = storedTime(row.CreatedAt, now), storedTime(row.UpdatedAt, now)
		rows = append(rows, row)
	}
	return rows, problems
}

// buildRow is BuildJob for the table, which check may refuse.
func (j *JobWithSchedule) buildRow(check func(*jobsql.Row) error) (jobsql.Row, error) {
	raw, err := j.BuildJob()
	if err != nil {
		return jobsql.Row{}, err
	}
	row := jobsql.Row{ID: raw.ID, GroupID: raw.GroupID, SuperGroupID: raw.SuperGroupID, CronID: raw.CronID,
		CronExpression: raw.CronExpression, Paused: raw.Paused, CreatedAt: raw.CreatedAt, UpdatedAt: raw.UpdatedAt,
		SerializedJob: raw.SerializedJob, SerializedJobInput: raw.SerializedJobInput}
	if err := check(&row); err != nil {
		return jobsql.Row{}, invalid(row.ID, err)
	}
	return row, nil
}

func rawJobOf(row *jobsql.Row) RawJob {
	return RawJob{ID: row.ID, GroupID: row.GroupID, SuperGroupID: row.SuperGroupID, CronID: row.CronID,
		CronExpression: row.CronExpression, Paused: row.Paused, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
		SerializedJob: row.SerializedJob, SerializedJobInput: row.SerializedJobInput, defect: row.Defect}
}

func storedTime(t, now time.Time) time.Time {
	if t.IsZero() {
		return now
	}
	return t.UTC().Truncate(time.Microsecond)
}

// GetJob implements Repository.
func (r *RepositoryGorm) GetJob(jobID int64) (JobWithSchedule, error) {
	rows, err := r.read("get job", ListJobsOptions{JobIDs: []int64{jobID}})
	if err != nil {
		return JobWithSchedule{}, err
	}
	return rows[0].ToJobWithSchedule()
}

// PauseJobs implements Repository.
func (r *RepositoryGorm) PauseJobs(jobs []RawJob) error {
	targets := make([]jobsql.Target, len(jobs))
	for i := range jobs {
		targets[i] = jobsql.Target{ID: jobs[i].ID}
	}
	return r.changeTargets("pause jobs", jobsql.Pause, targets)
}

// ResumeJobs implements Repository.
func (r *RepositoryGorm) ResumeJobs(jobs []JobWithSchedule) error {
	return r.changeJobs("resume jobs", jobsql.Resume, jobs)
}

// SetCronId implements Repository.
func (r *RepositoryGorm) SetCronId(jobs []JobWithSchedule) error {
	return r.changeJobs("set cron ids", jobsql.SetCronID, jobs)
}

// SetCronIdAndChangeScheduleAndJobInput implements Repository. Of expression
// and input it writes only what the update that made a job names.
func (r *RepositoryGorm) SetCronIdAndChangeScheduleAndJobInput(jobs []JobWithSchedule) error {
	return r.changeJobs("update jobs", jobsql.Update, jobs)
}

// DeleteJobsByIds implements Repository.
func (r *RepositoryGorm) DeleteJobsByIds(jobsID []int64) error {
	targets := make([]jobsql.Target, len(jobsID))
	for i, id := range jobsID {
		targets[i].ID = id
	}
	return r.changeTargets("delete jobs", jobsql.Delete, targets)
}

// GetAllJobsToExecute implements Repository.
func (r *RepositoryGorm) GetAllJobsToExecute() ([]JobWithSchedule, error) {
	rows, err := r.read("get jobs to execute", ListJobsOptions{Paused: new(bool)})
	if err != nil {
		return nil, err
	}
	jobs, defects := decodeRows(rows)
	return jobs, errors.Join(defects...)
}

// GetJobsByIds implements Repository.
func (r *RepositoryGorm) GetJobsByIds(jobsID []int64) ([]JobWithSchedule, error) {
	if jobsID == nil {
		jobsID = []int64{}
	}
	rows, err := r.read("get jobs", ListJobsOptions{JobIDs: jobsID})
	if err != nil && !errors.Is(err, gorm.ErrRecordNotFound) {
		return nil, err
	}
	jobs, defects := decodeRows(rows)
	return jobs, errors.Join(append(defects, err)...)
}

// ListJobs implements Repository.
func (r *RepositoryGorm) ListJobs(options ToListOptions) ([]RawJob, error) {
	return r.read("list jobs", ResolveListOptions(options))
}

// ListJobsAfter implements Pager. Rows whose id cannot be read come before the
// others of the first page, and beyond its limit.
func (r *RepositoryGorm) ListJobsAfter(options ToListOptions, after *int64, limit int) ([]RawJob, error) {
	ctx, cancel := r.db().Context()
	defer cancel()
	page := jobsql.Selection{Filter: jobsql.Filter(ResolveListOptions(options)), After: after, Limit: limit}
	rows, err := r.readPage(ctx, page)
	if err != nil || after != nil {
		return rows, r.db().Failed("list jobs", err)
	}
	page.NoID = true
	nameless, err := r.readPage(ctx, page)
	return append(nameless, rows...), r.db().Failed("list jobs", err)
}

// read returns the rows that match, in the order of their ids.
func (r *RepositoryGorm) read(op string, options ListJobsOptions) ([]RawJob, error) {
	ctx, cancel := r.db().Context()
	defer cancel()
	rows, err := r.readRows(ctx, options)
	if err != nil {
		return nil, r.db().Failed(op, err)
	}
	if !options.onlyJobIDs() {
		return rows, nil
	}
	found := make(map[int64]bool, len(rows))
	for i := range rows {
		found[rows[i].ID] = true
	}
	missing := slices.DeleteFunc(slices.Clone(options.JobIDs), func(id int64) bool { return found[id] })
	return rows, mismatch(op, missing)
}

func (r *RepositoryGorm) readRows(ctx context.Context, options ListJobsOptions) ([]RawJob, error) {
	return r.readPage(ctx, jobsql.Selection{Filter: jobsql.Filter(options)})
}

// readPage returns the rows that match, in the order of their ids.
func (r *RepositoryGorm) readPage(ctx context.Context, page jobsql.Selection) ([]RawJob, error) {
	rows, err := jobsql.Read(ctx, r.table, page, rawJobOf)
	byID := func(a, b RawJob) int { return cmp.Compare(a.ID, b.ID) }
	if !slices.IsSortedFunc(rows, byID) {
		slices.SortStableFunc(rows, byID)
	}
	return rows, err
}

// listJobIDs reads the ids of the rows that match, and nothing else of them.
func (r *RepositoryGorm) listJobIDs(options ListJobsOptions) ([]int64, error) {
	ctx, cancel := r.db().Context()
	defer cancel()
	ids, err := r.table.IDs(ctx, jobsql.Filter(options))
	return ids, r.db().Failed("list ids", err)
}

// mismatch is the mismatch error of an operation, or nil if no id is missing.
func mismatch(op string, missing []int64) error {
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	missing = slices.Compact(missing)
	noun := "jobs"
	if len(missing) == 1 {
		noun = "job"
	}
	return notFound{fmt.Errorf("%s: %w: %s %s", op, gorm.ErrRecordNotFound, noun, idText(missing))}
}

func (r *RepositoryGorm) changeJobs(op string, kind jobsql.Kind, jobs []JobWithSchedule) error {
	check := func(*jobsql.Row) error { return nil }
	if kind == jobsql.Update {
		check = (*jobsql.Row).CheckText
	}
	targets := make([]jobsql.Target, len(jobs))
	var problems []error
	for i := range jobs {
		row, err := jobs[i].buildRow(check)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		targets[i] = jobsql.Target{ID: row.ID, CronID: row.CronID}
		changes := jobs[i].changes
		if both := changes == (columnChanges{}); kind == jobsql.Update {
			if changes.expression || both {
				targets[i].Expression = &row.CronExpression
			}
			if changes.input || both {
				targets[i].Input = &row.SerializedJobInput
			}
		}
	}
	if len(problems) > 0 {
		return join(problems)
	}
	return r.changeTargets(op, kind, targets)
}

// changeTargets changes every target that exists, in one transaction.
func (r *RepositoryGorm) changeTargets(op string, kind jobsql.Kind, targets []jobsql.Target) error {
	if len(targets) == 0 {
		return nil
	}
	ctx, cancel := r.db().Context()
	defer cancel()
	missing, err := r.table.Change(ctx, op, kind, targets)
	if err != nil {
		return err
	}
	return mismatch(op, missing)
}

// gormRuns is the record of runs in the database of a RepositoryGorm.
type gormRuns struct {
	*ledgersql.Store
	repository *RepositoryGorm // whose calls do not wait for a pool that is used up
	// lock are the jobs that a Change locks before it takes the record for itself. Nil
	// means none.
	lock *ListJobsOptions
}

var _ runStore = gormRuns{}

// runStore is how a SmallBen finds the record, also where a RepositoryGorm is embedded.
func (r *RepositoryGorm) runStore() runStore {
	return gormRuns{Store: r.runs, repository: &RepositoryGorm{r.table.On(r.runs.DB()), r.runs}}
}

// recordTx is the transaction of a Change. It is a changeTx.
type recordTx struct {
	Repository // in the transaction
	Upserter
	*ledgersql.Tx
}

var _ changeTx = recordTx{}

// Change implements ledger.Store.
func (g gormRuns) Change(change func(tx ledger.Tx) error) (int64, error) {
	var lock func(tx *sqltx.Tx, wait bool) error
	if g.lock != nil {
		lock = g.repository.table.Lock(jobsql.Filter(*g.lock))
	}
	return g.ChangeSQL("change the record", lock, func(tx *ledgersql.Tx) error {
		inside := &RepositoryGorm{g.repository.table.InChange(tx), g.repository.runs}
		return change(recordTx{inside, inside, tx})
	})
}

// Changes implements runStore.
func (g gormRuns) Changes(since int64, ids []int64) (changes changedRows, err error) {
	ctx, cancel := g.repository.db().Context()
	defer cancel()
	last, err := g.repository.table.ReadRevised(ctx, since, ids, func() { changes = changedRows{} }, func(job jobsql.Revised) {
		if job.Row == nil {
			changes.Gone = append(changes.Gone, job.ID)
			return
		}
		row := rawJobOf(job.Row)
		row.revision = job.Revision
		changes.Jobs = append(changes.Jobs, row)
	})
	if err != nil {
		return changedRows{}, err
	}
	changes.Revision = last
	return changes, nil
}

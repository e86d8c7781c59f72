package smallben

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"gorm.io/gorm"

	"github.com/nbena/smallben/internal/cronexpr"
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
	// Zero means that NewRepositoryGorm creates them if the table is missing,
	// and OpenRecord those of the record. They alter nothing that is there.
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
// It is a Recorder on PostgreSQL and on SQLite, there in WAL mode. Nothing of the
// record is created or read until OpenRecord is called.
type RepositoryGorm struct {
	db         *sqltx.DB
	statements jobStatements

	// What follows is for the record of runs.
	runs *ledgersql.Store
	// tx is the transaction of a Change, in which this copy of the repository
	// reads, locks and writes. Nil means that each call has one of its own.
	tx *ledgersql.Tx
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
	script, err := sqltx.Script(options(config), slices.Concat(jobSchema(), ledgersql.Schema))
	if err != nil {
		return "", fmt.Errorf("schema: %w", err)
	}
	return script, nil
}

// options are what is known before a database is open.
func options(config *RepositoryGormConfig) sqltx.Options {
	return sqltx.Options{
		Dialector: config.Dialector, Config: config.Config,
		Tables: append([]string{"jobs"}, ledgersql.TableNames()...), Indexes: append(jobIndexNames(), ledgersql.Indexes...),
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
	db, err := sqltx.Open(ctx, open)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("open repository: no answer from the database within %v: %w", timeout, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	r := &RepositoryGorm{db: db, statements: bulkStatements{}}
	r.runs = newRunStore(r, config.SkipMigration)
	if db.Kind() == sqltx.Portable {
		r.statements = portableStatements{}
	}
	if err := r.migrate(ctx, config.SkipMigration); err != nil {
		if db.Owned() {
			_ = r.Close()
		}
		return nil, db.Failed("open repository", err)
	}
	return r, nil
}

// Close closes the pool of connections, and with it the repository. It is not
// for those who passed a pool of their own in the dialector.
func (r *RepositoryGorm) Close() error { return r.db.Close() }

// now is the time by GORM's NowFunc.
func (r *RepositoryGorm) now() time.Time { return r.db.Now() }

// WithContext implements ContextRepository: GORM's plugins and its logger see ctx. The
// Timeout holds as well. The repository that it returns shares the pool, and is not to
// be closed.
func (r *RepositoryGorm) WithContext(ctx context.Context) Repository {
	view := *r
	view.db, view.runs = r.db.WithContext(ctx), r.runs.WithContext(ctx)
	return &view
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
	now := r.db.Now()
	added, problems := buildRows(add, now)
	replacing, more := buildRows(replace, now)
	problems = append(problems, more...)
	ids := make([]int64, len(added))
	for i := range added {
		ids[i] = added[i].ID
	}
	slices.Sort(ids)
	for i := 1; i < len(ids); i++ {
		if ids[i] == ids[i-1] && (i == 1 || ids[i] != ids[i-2]) {
			problems = append(problems, jobErrorf(ids[i], "%w: it stands twice in the batch", ErrJobExists))
		}
	}
	ids = slices.Compact(ids)

	ctx, cancel := r.db.Context()
	defer cancel()
	narrow, err := r.narrowRows(ctx, slices.Concat(added, replacing))
	if err != nil {
		return r.db.Failed(op, err)
	}
	problems = append(problems, narrow...)

	var refused error
	if len(problems) == 0 {
		targets := make([]rowChange, len(replacing))
		for i := range replacing {
			row := &replacing[i]
			targets[i] = rowChange{id: row.ID, cronID: row.CronID, row: row, expression: &row.CronExpression, input: &row.SerializedJobInput}
		}
		refused, err = r.insert(ctx, op, added, ids, sorted(targets), now)
		if refused == nil {
			return err
		}
	}
	// Nothing is stored. Name every id that is in the way.
	existing, err := r.readIDs(ctx, ids)
	if err != nil && refused == nil {
		return join(append(problems, r.db.Failed(op, err)))
	}
	for _, id := range existing {
		problems = append(problems, jobErrorf(id, "%w", ErrJobExists))
	}
	if len(problems) == 0 {
		return refused
	}
	return join(problems)
}

// buildRows returns the rows of jobs, and a JobError for each that no table can
// hold.
func buildRows(jobs []JobWithSchedule, now time.Time) (rows []RawJob, problems []error) {
	rows = make([]RawJob, 0, len(jobs))
	for i := range jobs {
		row, err := jobs[i].BuildJob()
		if err == nil {
			err = checkRow(&row)
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		row.CreatedAt, row.UpdatedAt = storedTime(row.CreatedAt, now), storedTime(row.UpdatedAt, now)
		rows = append(rows, row)
	}
	return rows, problems
}

// insert stores rows, and changes targets in the same transaction. It returns the
// refusal of an INSERT apart from other errors.
func (r *RepositoryGorm) insert(ctx context.Context, op string, rows []RawJob, ids []int64, targets []rowChange, now time.Time) (refused, err error) {
	var missing []int64
	err = r.db.Write(ctx, op, func(tx *sqltx.Tx) (err error) {
		refused = nil
		limit, _ := r.statements.chunks()
		for chunk := range chunks(rows, limit, func(row *RawJob) int { return len(row.SerializedJob) + len(row.SerializedJobInput) }) {
			if err = r.statements.insert(tx, chunk); err != nil {
				refused = err
				return err
			}
		}
		if r.tx != nil {
			err = r.tx.Touch(ids, true)
		}
		if err == nil && len(targets) > 0 {
			missing, err = r.changeRows(tx, replacing, targets, now)
		}
		return err
	}, func(tx *sqltx.Tx) (bool, error) {
		found, err := r.readIn(tx, selected{ListJobsOptions: ListJobsOptions{JobIDs: ids}})
		if err != nil || len(found) < len(ids) || len(targets) == 0 {
			return err == nil && len(found) == len(ids), err
		}
		return r.changed(tx, replacing, targets, missing, now)
	})
	if refused != nil {
		return err, nil
	}
	if err == nil {
		err = mismatch(op, missing)
	}
	return nil, err
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
	targets := make([]rowChange, len(jobs))
	for i := range jobs {
		targets[i] = rowChange{id: jobs[i].ID, cronID: DefaultCronID}
	}
	return r.change("pause jobs", pausing, targets)
}

// ResumeJobs implements Repository.
func (r *RepositoryGorm) ResumeJobs(jobs []JobWithSchedule) error {
	return r.changeJobs("resume jobs", resuming, jobs)
}

// SetCronId implements Repository.
func (r *RepositoryGorm) SetCronId(jobs []JobWithSchedule) error {
	return r.changeJobs("set cron ids", settingCronID, jobs)
}

// SetCronIdAndChangeScheduleAndJobInput implements Repository. Of expression
// and input it writes only what the update that made a job names.
func (r *RepositoryGorm) SetCronIdAndChangeScheduleAndJobInput(jobs []JobWithSchedule) error {
	return r.changeJobs("update jobs", updating, jobs)
}

// DeleteJobsByIds implements Repository.
func (r *RepositoryGorm) DeleteJobsByIds(jobsID []int64) error {
	targets := make([]rowChange, len(jobsID))
	for i, id := range jobsID {
		targets[i].id = id
	}
	return r.change("delete jobs", deleting, targets)
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
	ctx, cancel := r.db.Context()
	defer cancel()
	page := selected{ListJobsOptions: ResolveListOptions(options), after: after, limit: limit}
	rows, err := r.readPage(ctx, page)
	if err != nil || after != nil {
		return rows, r.db.Failed("list jobs", err)
	}
	page.noID = true
	nameless, err := r.readPage(ctx, page)
	return append(nameless, rows...), r.db.Failed("list jobs", err)
}

// migrate makes sure that the table is there with the columns it needs.
func (r *RepositoryGorm) migrate(ctx context.Context, skip bool) error {
	found, err := r.db.Exists(ctx, "jobs")
	if err != nil {
		return err
	}
	if !found {
		if skip {
			return fmt.Errorf("the table %s is missing%s, and SkipMigration is set: Schema gives the statements that create it", r.db.Table("jobs"), inSchema(r.db.Schema()))
		}
		err := r.db.Write(ctx, "create table "+r.db.Table("jobs"), func(tx *sqltx.Tx) error {
			return r.statements.create(tx)
		}, func(tx *sqltx.Tx) (bool, error) { return tx.Exists("jobs") })
		if err != nil {
			// Another process may have been faster.
			if found, existsErr := r.db.Exists(ctx, "jobs"); existsErr != nil || !found {
				return err
			}
		}
	}
	return r.db.Attempt(ctx, func(tx *sqltx.Tx) error { return tx.CheckTable("jobs", jobFields) })
}

// inSchema says where tables are looked for.
func inSchema(schema string) string {
	if schema == "" {
		return ""
	}
	return " in the schema " + schema
}

// read returns the rows that match, in the order of their ids.
func (r *RepositoryGorm) read(op string, options ListJobsOptions) ([]RawJob, error) {
	ctx, cancel := r.db.Context()
	defer cancel()
	rows, err := r.readRows(ctx, options)
	if err != nil {
		return nil, r.db.Failed(op, err)
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
	return r.readPage(ctx, selected{ListJobsOptions: options})
}

// selected is which rows to read.
type selected struct {
	ListJobsOptions
	lock  bool   // until the transaction ends
	limit int    // 0: all, and what follows is not set
	after *int64 // nil: from the first
	noID  bool   // only the rows whose id cannot be read, in place of the others
}

func (r *RepositoryGorm) readPage(ctx context.Context, options selected) (rows []RawJob, err error) {
	options.lock = r.tx != nil
	err = r.db.Attempt(ctx, func(tx *sqltx.Tx) (err error) {
		rows, err = r.readIn(tx, options)
		return err
	})
	return rows, err
}

// readIn returns the rows that match, in the order of their ids.
func (r *RepositoryGorm) readIn(tx *sqltx.Tx, options selected) ([]RawJob, error) {
	for _, ids := range [][]int64{options.JobIDs, options.GroupIDs, options.SuperGroupIDs} {
		if ids != nil && len(ids) == 0 {
			return []RawJob{}, nil
		}
	}
	rows, err := r.statements.read(tx, options)
	if err != nil {
		return nil, err
	}
	byID := func(a, b RawJob) int { return cmp.Compare(a.ID, b.ID) }
	if !slices.IsSortedFunc(rows, byID) {
		slices.SortStableFunc(rows, byID)
	}
	return rows, nil
}

// readIDs returns those of the ids that exist.
func (r *RepositoryGorm) readIDs(ctx context.Context, ids []int64) ([]int64, error) {
	rows, err := r.readRows(ctx, ListJobsOptions{JobIDs: ids})
	existing := make([]int64, len(rows))
	for i := range rows {
		existing[i] = rows[i].ID
	}
	return existing, err
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

// changeKind is what a change does to rows.
type changeKind int

const (
	pausing changeKind = iota
	resuming
	settingCronID
	updating
	replacing
	deleting
)

// rowChange is one row of a change, and what is written to it.
type rowChange struct {
	id, cronID        int64
	expression, input *string // nil: not written
	row               *RawJob // of a replacement, and else nil
}

// sorted puts changes in the order of their ids, so that two processes do not
// wait for each other, and keeps one of each.
func sorted(targets []rowChange) []rowChange {
	slices.SortStableFunc(targets, func(a, b rowChange) int { return cmp.Compare(a.id, b.id) })
	return slices.CompactFunc(targets, func(a, b rowChange) bool { return a.id == b.id })
}

func (r *RepositoryGorm) changeJobs(op string, kind changeKind, jobs []JobWithSchedule) error {
	targets := make([]rowChange, len(jobs))
	var problems []error
	for i := range jobs {
		row, err := jobs[i].BuildJob()
		if err == nil && kind == updating {
			err = checkText(&row)
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		targets[i] = rowChange{id: row.ID, cronID: row.CronID}
		changes := jobs[i].changes
		if both := changes == (columnChanges{}); kind == updating {
			if changes.expression || both {
				targets[i].expression = &row.CronExpression
			}
			if changes.input || both {
				targets[i].input = &row.SerializedJobInput
			}
		}
	}
	if len(problems) > 0 {
		return join(problems)
	}
	return r.change(op, kind, targets)
}

// change changes every target that exists, in one transaction.
func (r *RepositoryGorm) change(op string, kind changeKind, targets []rowChange) error {
	if len(targets) == 0 {
		return nil
	}
	targets = sorted(targets)
	ctx, cancel := r.db.Context()
	defer cancel()
	now := r.db.Now()
	var missing []int64
	err := r.db.Write(ctx, op, func(tx *sqltx.Tx) (err error) {
		missing, err = r.changeRows(tx, kind, targets, now)
		return err
	}, func(tx *sqltx.Tx) (bool, error) {
		return r.changed(tx, kind, targets, missing, now)
	})
	if err != nil {
		return err
	}
	return mismatch(op, missing)
}

// changeRows changes targets chunk by chunk. It returns the ids that do not exist.
func (r *RepositoryGorm) changeRows(tx *sqltx.Tx, kind changeKind, targets []rowChange, now time.Time) (missing []int64, err error) {
	_, limit := r.statements.chunks()
	size := func(t *rowChange) (n int) {
		for _, text := range []*string{t.expression, t.input} {
			if text != nil {
				n += len(*text)
			}
		}
		if t.row != nil {
			n += len(t.row.SerializedJob)
		}
		return n
	}
	for chunk := range chunks(targets, limit, size) {
		lost, err := r.statements.change(tx, kind, chunk, now)
		if err != nil {
			return nil, err
		}
		missing = append(missing, lost...)
	}
	if r.tx != nil {
		err = touch(r.tx, kind, targets, missing)
	}
	return missing, err
}

// changed reports whether the rows are as a change leaves them.
func (r *RepositoryGorm) changed(tx *sqltx.Tx, kind changeKind, targets []rowChange, missing []int64, now time.Time) (bool, error) {
	wanted := make(map[int64]rowChange, len(targets))
	ids := make([]int64, len(targets))
	for i, t := range targets {
		ids[i], wanted[t.id] = t.id, t
	}
	rows, err := r.readIn(tx, selected{ListJobsOptions: ListJobsOptions{JobIDs: ids}})
	if err != nil {
		return false, err
	}
	if kind == deleting {
		return len(rows) == 0, nil
	}
	for i := range rows {
		row, t := &rows[i], wanted[rows[i].ID]
		if kind == settingCronID && row.CronID != t.cronID || kind != settingCronID && !row.UpdatedAt.Equal(now) {
			return false, nil
		}
	}
	return len(rows) == len(targets)-len(missing), nil
}

// checkRow says why no table can hold the row, or nil.
func checkRow(row *RawJob) error {
	if row.ID == 0 {
		return jobErrorf(row.ID, "%w: the id is 0", ErrInvalidJob)
	}
	for _, t := range []time.Time{row.CreatedAt, row.UpdatedAt} {
		if year := t.UTC().Year(); year < 1 || year > 9999 {
			return jobErrorf(row.ID, "%w: a time in the year %d", ErrInvalidJob, year)
		}
	}
	return checkText(row)
}

func checkText(row *RawJob) error {
	if len(row.CronExpression) > cronexpr.MaxLength {
		return jobErrorf(row.ID, "%w: expression of %d bytes: at most %d are allowed", ErrInvalidJob, len(row.CronExpression), cronexpr.MaxLength)
	}
	for _, text := range []string{row.CronExpression, row.SerializedJob, row.SerializedJobInput} {
		if !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
			return jobErrorf(row.ID, "%w: text that is not UTF-8, or holds a NUL", ErrInvalidJob)
		}
	}
	return nil
}

func storedTime(t, now time.Time) time.Time {
	if t.IsZero() {
		return now
	}
	return t.UTC().Truncate(time.Microsecond)
}

// narrowRows returns a JobError for each row with an id that its column cannot
// hold. The original's table has 32 bits for super_group_id and cron_id, and
// SQLite would not mind.
func (r *RepositoryGorm) narrowRows(ctx context.Context, rows []RawJob) (problems []error, err error) {
	columns := []string{"id", "group_id", "super_group_id", "cron_id"}
	values := func(row *RawJob) []int64 {
		return []int64{row.ID, row.GroupID, row.SuperGroupID, row.CronID}
	}
	var wide []*RawJob
	for i := range rows {
		if slices.ContainsFunc(values(&rows[i]), func(v int64) bool { return v != int64(int32(v)) }) {
			wide = append(wide, &rows[i])
		}
	}
	if len(wide) == 0 {
		return nil, nil
	}
	narrow := make([]bool, len(columns))
	err = r.db.Attempt(ctx, func(tx *sqltx.Tx) error {
		result, err := tx.Query("SELECT " + strings.Join(columns, ", ") + " FROM {jobs} WHERE 1 = 0")
		if err != nil {
			return err
		}
		defer result.Close()
		types, err := result.ColumnTypes()
		if err != nil {
			return err
		}
		some64 := false
		for i, t := range types {
			switch strings.ToUpper(t.DatabaseTypeName()) {
			case "INT4", "INT", "INTEGER":
				narrow[i] = true
			case "INT8", "BIGINT":
				some64 = true
			}
		}
		if r.db.Dialect() == "sqlite" && !some64 {
			// The table does not tell integer from bigint: GORM's own do not.
			clear(narrow)
		}
		return result.Err()
	})
	for _, row := range wide {
		for i, v := range values(row) {
			if narrow[i] && v != int64(int32(v)) {
				problems = append(problems, jobErrorf(row.ID, "%w: column %s of the table %s has 32 bits, too few for %d", ErrInvalidJob, columns[i], r.db.Table("jobs"), v))
			}
		}
	}
	return problems, err
}

// chunks cuts values into slices of at most limit values and about chunkBytes.
func chunks[T any](values []T, limit int, size func(*T) int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		start, bytes := 0, 0
		for i := range values {
			n := size(&values[i])
			if i > start && (i-start == limit || bytes+n > chunkBytes) {
				if !yield(values[start:i]) {
					return
				}
				start, bytes = i, 0
			}
			bytes += n
		}
		if start < len(values) {
			yield(values[start:])
		}
	}
}

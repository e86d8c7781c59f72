package smallben

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

const (
	defaultTimeout = 30 * time.Second
	insertChunk    = 1000    // rows of one INSERT: 10 binds each, of SQLite's 32,766
	changeChunk    = 10_000  // rows of one UPDATE or DELETE, which takes them as one parameter
	portableChunk  = 200     // rows of one portable statement: SQL Server allows 2,100 binds
	chunkBytes     = 8 << 20 // text of one statement, about
	jobColumns     = "id, group_id, super_group_id, cron_id, cron_expression, paused, created_at, updated_at, serialized_job, serialized_job_input"
	// timeFormat is how the original wrote times to SQLite, and how mattn's
	// driver reads them first. PostgreSQL reads it as well.
	timeFormat = "2006-01-02 15:04:05.999999-07:00"
)

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
	// Zero means that nothing is logged. Those fields have no effect that make
	// GORM ping, open transactions, prepare statements or skip them (DryRun).
	Config gorm.Config

	// SkipMigration leaves the creation of the table "jobs" and its indexes
	// to the user, and of those of the record of runs, if there is to be one
	// (RepositoryGorm.RunsSchema). A missing table is then an error.
	// Zero means that NewRepositoryGorm creates them if the table is missing,
	// and OpenRecord those of the record. They alter nothing that is there.
	SkipMigration bool

	// Timeout bounds each call, opening included.
	// Zero means 30 s, negative no bound.
	//
	// On SQLite it takes the place of the busy timeout of a connection, also
	// of one in a pool that the dialector was given; cache_spill is switched
	// off there.
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
	db      *gorm.DB
	pool    *sql.DB
	dialect dialect
	timeout time.Duration // 0: none
	pinned  bool          // to one connection, with which the database would go

	// What follows is for the record of runs.
	state     *recordState
	isolation *sql.TxOptions // nil: the database's own
	// tx is the transaction of a Change, in which this copy of the repository
	// reads, locks and writes. Nil means that each call has one of its own.
	tx *recordTx
}

var (
	_ Repository = (*RepositoryGorm)(nil)
	_ Upserter   = (*RepositoryGorm)(nil)
	_ Pager      = (*RepositoryGorm)(nil)
)

// NewRepositoryGorm opens the database, and creates the table "jobs" with its
// indexes if it is missing. Several processes may do so at once.
func NewRepositoryGorm(config *RepositoryGormConfig) (*RepositoryGorm, error) {
	return newRepositoryGorm(config, false)
}

// newRepositoryGorm takes the portable statements if portable is set.
func newRepositoryGorm(config *RepositoryGormConfig, portable bool) (*RepositoryGorm, error) {
	if config == nil {
		return nil, errors.New("open repository: the config is nil")
	}
	if config.Dialector == nil {
		return nil, errors.New("open repository: Dialector is nil")
	}
	r := &RepositoryGorm{timeout: max(config.Timeout, 0), state: newRecordState(config.SkipMigration)}
	if config.Timeout == 0 {
		r.timeout = defaultTimeout
	}
	ctx, cancel := r.context()
	defer cancel()
	if err := r.open(ctx, config); err != nil {
		return nil, r.failed("open repository", err)
	}
	switch name := r.db.Name(); {
	case portable:
		r.dialect = portableDialect{}
	case name == "postgres":
		r.dialect = postgresDialect{}
	case name == "sqlite":
		r.dialect = sqliteDialect{}
	default:
		r.dialect = portableDialect{}
	}
	if err := r.migrate(ctx, config.SkipMigration); err != nil {
		if ownsPool(config.Dialector) {
			_ = r.Close()
		}
		return nil, r.failed("open repository", err)
	}
	return r, nil
}

// Close closes the pool of connections, and with it the repository. It is not
// for those who passed a pool of their own in the dialector.
func (r *RepositoryGorm) Close() error { return r.pool.Close() }

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
	now := time.Now().UTC().Truncate(time.Microsecond)
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

	ctx, cancel := r.context()
	defer cancel()
	narrow, err := r.narrowRows(ctx, slices.Concat(added, replacing))
	if err != nil {
		return r.failed(op, err)
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
		return join(append(problems, r.failed(op, err)))
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
	err = r.write(ctx, op, func(tx *gorm.DB) (note string, err error) {
		refused = nil
		limit := insertChunk
		if _, ok := r.dialect.(portableDialect); ok {
			limit = portableChunk
		}
		for chunk := range chunks(rows, limit, func(row *RawJob) int { return len(row.SerializedJob) + len(row.SerializedJobInput) }) {
			if note, err = r.dialect.insert(tx, chunk); err != nil {
				refused = err
				return "", err
			}
		}
		if r.tx != nil {
			err = r.tx.mark(ids, true)
		}
		if err == nil && len(targets) > 0 {
			missing, note, err = r.changeRows(tx, replacing, targets, now)
		}
		return note, err
	}, func(ctx context.Context) (bool, error) {
		stored, err := r.readIDs(ctx, ids)
		if err != nil || len(stored) < len(ids) || len(targets) == 0 {
			return err == nil && len(stored) == len(ids), err
		}
		return r.changed(ctx, replacing, targets, missing, now)
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
	ctx, cancel := r.context()
	defer cancel()
	page := selected{ListJobsOptions: ResolveListOptions(options), after: after, limit: limit}
	rows, err := r.readPage(ctx, page)
	if err != nil || after != nil {
		return rows, r.failed("list jobs", err)
	}
	page.noID = true
	nameless, err := r.readPage(ctx, page)
	return append(nameless, rows...), r.failed("list jobs", err)
}

// open lets GORM open the pool, within ctx: some drivers connect here and do not
// ask.
func (r *RepositoryGorm) open(ctx context.Context, config *RepositoryGormConfig) error {
	own := config.Config
	own.DisableAutomaticPing = true
	own.SkipDefaultTransaction = true
	own.DryRun = false
	own.PrepareStmt = false
	own.ClauseBuilders = maps.Clone(own.ClauseBuilders)
	own.Plugins = maps.Clone(own.Plugins)
	if own.Logger == nil {
		own.Logger = logger.Discard
	}
	type opened struct {
		db   *gorm.DB
		pool *sql.DB
		err  error
	}
	done := make(chan opened, 1)
	go func() {
		db, err := gorm.Open(config.Dialector, &own)
		if err != nil {
			done <- opened{err: err}
			return
		}
		pool, err := db.DB()
		if err != nil {
			err = fmt.Errorf("the dialector's pool is a %T: %w", db.ConnPool, err)
		}
		done <- opened{db, pool, err}
	}()
	select {
	case o := <-done:
		r.db, r.pool = o.db, o.pool
		return o.err
	case <-ctx.Done():
		go func() {
			if o := <-done; o.pool != nil && ownsPool(config.Dialector) {
				_ = o.pool.Close()
			}
		}()
		return ctx.Err()
	}
}

// ownsPool reports whether the dialector opened the pool. GORM's dialectors
// have a field Conn for one that the user opened.
func ownsPool(dialector gorm.Dialector) bool {
	v := reflect.Indirect(reflect.ValueOf(dialector))
	if v.Kind() != reflect.Struct {
		return true
	}
	field, found := v.Type().FieldByName("Conn")
	if !found {
		return true
	}
	conn, err := v.FieldByIndexErr(field.Index)
	return err != nil || conn.Kind() != reflect.Interface || conn.IsNil()
}

// migrate makes sure that the table is there with the columns it needs.
func (r *RepositoryGorm) migrate(ctx context.Context, skip bool) error {
	if r.db.Name() == "sqlite" {
		if err := r.pinMemory(ctx); err != nil {
			return err
		}
	}
	exists := func() (exists bool, err error) {
		err = r.attempt(ctx, func(tx *gorm.DB) (err error) {
			exists, err = r.dialect.exists(tx, "jobs")
			return err
		})
		return exists, err
	}
	found, err := exists()
	if err != nil {
		return err
	}
	if !found {
		if skip {
			return errors.New("the table jobs is missing, and SkipMigration is set")
		}
		err := r.write(ctx, "create table jobs", func(tx *gorm.DB) (string, error) {
			return "", r.dialect.create(tx)
		}, func(context.Context) (bool, error) { return exists() })
		if err != nil {
			// Another process may have been faster.
			if found, existsErr := exists(); existsErr != nil || !found {
				return err
			}
		}
	}
	return r.checkColumns(ctx, "jobs", jobColumns)
}

// checkColumns makes sure that a table has columns.
func (r *RepositoryGorm) checkColumns(ctx context.Context, table, columns string) error {
	err := r.attempt(ctx, func(tx *gorm.DB) error {
		rows, err := query(tx, "SELECT "+columns+" FROM "+table+" WHERE 1 = 0")
		if err != nil {
			return err
		}
		return errors.Join(rows.Err(), rows.Close())
	})
	if err != nil {
		return fmt.Errorf("table %s: %w", table, err)
	}
	return nil
}

// pinMemory keeps to one connection if the database is in memory: each
// connection has one of its own.
func (r *RepositoryGorm) pinMemory(ctx context.Context) error {
	return r.attempt(ctx, func(tx *gorm.DB) error {
		var file string
		err := queryRow(tx, "SELECT coalesce(max(file), '') FROM pragma_database_list WHERE name = 'main'", nil, &file)
		if err == nil && file == "" {
			r.pinned = true
			r.pool.SetMaxOpenConns(1)
			r.pool.SetMaxIdleConns(1)
			r.pool.SetConnMaxLifetime(0)
			r.pool.SetConnMaxIdleTime(0)
		}
		return err
	})
}

// context bounds a call.
func (r *RepositoryGorm) context() (context.Context, context.CancelFunc) {
	if r.timeout == 0 {
		return context.WithCancel(context.Background())
	}
	return context.WithTimeout(context.Background(), r.timeout)
}

// session gives GORM on one connection or transaction. It is good for any
// number of statements.
func (r *RepositoryGorm) session(ctx context.Context, pool gorm.ConnPool) *gorm.DB {
	session := r.db.Session(&gorm.Session{NewDB: true, Context: ctx})
	session.Statement.ConnPool = pool
	return session
}

// failed names the operation of an error.
func (r *RepositoryGorm) failed(op string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: no answer from the database within %v: %w", op, r.timeout, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// conn takes a connection from the pool. SQLite's drivers connect without a
// look at the context, and wait for locks as they do.
func (r *RepositoryGorm) conn(ctx context.Context) (*sql.Conn, error) {
	if r.db.Name() != "sqlite" {
		return r.pool.Conn(ctx)
	}
	type taken struct {
		conn *sql.Conn
		err  error
	}
	done := make(chan taken, 1)
	go func() {
		conn, err := r.pool.Conn(ctx)
		done <- taken{conn, err}
	}()
	select {
	case t := <-done:
		if t.err != nil {
			return nil, t.err
		}
		return t.conn, readySQLite(ctx, t.conn)
	case <-ctx.Done():
		go func() {
			if t := <-done; t.conn != nil {
				_ = t.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// readySQLite makes SQLite wait for locks until ctx ends: mattn's driver does not
// heed ctx while it waits. It also makes a large transaction keep its pages in
// memory until it commits: to spill them it would lock readers out for the rest
// of its time.
func readySQLite(ctx context.Context, conn interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}) error {
	wait := int64(math.MaxInt32)
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, max(1, time.Until(deadline).Milliseconds()))
	}
	_, err := conn.ExecContext(ctx, "PRAGMA cache_spill = 0; PRAGMA busy_timeout = "+strconv.FormatInt(wait, 10))
	return err
}

// attempt calls use, which must not commit anything, with a connection that it
// then gives back, or with the transaction of a Change.
func (r *RepositoryGorm) attempt(ctx context.Context, use func(tx *gorm.DB) error) error {
	if r.tx != nil {
		return use(r.tx.db)
	}
	conn, err := r.acquire(ctx, func(conn *sql.Conn) error { return use(r.session(ctx, conn)) })
	if err != nil {
		return err
	}
	return conn.Close()
}

// acquire calls first, which must not commit anything, with a connection, and
// returns that. A connection that died in the pool, with its server perhaps,
// fails no call: the next one is tried, until the pool holds only new ones.
func (r *RepositoryGorm) acquire(ctx context.Context, first func(conn *sql.Conn) error) (*sql.Conn, error) {
	for pooled := r.pool.Stats().OpenConnections; ; pooled-- {
		conn, err := r.conn(ctx)
		if conn == nil {
			return nil, overdue(ctx, err)
		}
		if err == nil {
			err = first(conn)
		}
		if err == nil {
			return conn, nil
		}
		dead := pooled > 0 && ctx.Err() == nil && conn.PingContext(ctx) != nil
		_ = conn.Close()
		if !dead {
			return nil, overdue(ctx, err)
		}
	}
}

// overdue puts the end of ctx before what drivers and database/sql make of it:
// pgx calls a connection bad on which it began nothing any more.
func overdue(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrTxDone)) {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// read returns the rows that match, in the order of their ids.
func (r *RepositoryGorm) read(op string, options ListJobsOptions) ([]RawJob, error) {
	ctx, cancel := r.context()
	defer cancel()
	rows, err := r.readRows(ctx, options)
	if err != nil {
		return nil, r.failed(op, err)
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

func (r *RepositoryGorm) readRows(ctx context.Context, options ListJobsOptions) (rows []RawJob, err error) {
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
	for _, ids := range [][]int64{options.JobIDs, options.GroupIDs, options.SuperGroupIDs} {
		if ids != nil && len(ids) == 0 {
			return []RawJob{}, nil
		}
	}
	options.lock = r.tx != nil
	err = r.attempt(ctx, func(tx *gorm.DB) (err error) {
		rows, err = r.dialect.read(tx, options)
		return err
	})
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
	return fmt.Errorf("%s: %w: %s %s", op, gorm.ErrRecordNotFound, noun, idText(missing))
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
	ctx, cancel := r.context()
	defer cancel()
	now := time.Now().UTC().Truncate(time.Microsecond)
	var missing []int64
	err := r.write(ctx, op, func(tx *gorm.DB) (note string, err error) {
		missing, note, err = r.changeRows(tx, kind, targets, now)
		return note, err
	}, func(ctx context.Context) (bool, error) {
		return r.changed(ctx, kind, targets, missing, now)
	})
	if err != nil {
		return err
	}
	return mismatch(op, missing)
}

// changeRows changes targets chunk by chunk. It returns the ids that do not exist.
func (r *RepositoryGorm) changeRows(tx *gorm.DB, kind changeKind, targets []rowChange, now time.Time) (missing []int64, note string, err error) {
	limit := changeChunk
	if _, ok := r.dialect.(portableDialect); ok {
		limit = portableChunk
	}
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
		var lost []int64
		lost, note, err = r.dialect.change(tx, kind, chunk, now)
		if err != nil {
			return nil, "", err
		}
		missing = append(missing, lost...)
	}
	if r.tx != nil {
		err = r.tx.markChanged(kind, targets, missing)
	}
	return missing, note, err
}

// changed reports whether the rows are as a change leaves them.
func (r *RepositoryGorm) changed(ctx context.Context, kind changeKind, targets []rowChange, missing []int64, now time.Time) (bool, error) {
	wanted := make(map[int64]rowChange, len(targets))
	ids := make([]int64, len(targets))
	for i, t := range targets {
		ids[i], wanted[t.id] = t.id, t
	}
	rows, err := r.readRows(ctx, ListJobsOptions{JobIDs: ids})
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

// write is writeOnce, again if PostgreSQL ended the transaction because it and
// another process's waited for each other: nothing of it happened then.
func (r *RepositoryGorm) write(ctx context.Context, op string, body func(tx *gorm.DB) (note string, err error), took func(context.Context) (bool, error)) error {
	if r.tx != nil {
		return r.failed(op, r.tx.atomically(func() error {
			_, err := body(r.tx.db)
			return err
		}))
	}
	for {
		err := r.writeOnce(ctx, op, body, took)
		var state interface{ SQLState() string }
		deadlock := errors.As(err, &state) && state.SQLState() == "40P01"
		if !deadlock || errors.Is(err, ErrOutcomeUnknown) || ctx.Err() != nil {
			return err
		}
	}
}

// writeOnce runs body in one transaction. If the COMMIT fails, it learns whether
// that happened from the note that body returns, if the dialect has such notes,
// and from took, which looks whether the rows are as body leaves them.
func (r *RepositoryGorm) writeOnce(ctx context.Context, op string, body func(tx *gorm.DB) (note string, err error), took func(context.Context) (bool, error)) error {
	txCtx := ctx
	if r.timeout > 0 {
		var cancel context.CancelFunc
		txCtx, cancel = context.WithTimeout(ctx, r.timeout*3/4)
		defer cancel()
	}
	beginCtx := txCtx
	if r.pinned {
		// database/sql closes the connection of a transaction whose context
		// ends. That of the statements bounds them.
		beginCtx = context.WithoutCancel(txCtx)
	}
	var tx *sql.Tx
	conn, err := r.acquire(txCtx, func(conn *sql.Conn) (err error) {
		tx, err = conn.BeginTx(beginCtx, r.isolation)
		return err
	})
	if err != nil {
		return r.failed(op, err)
	}
	defer func() { _ = conn.Close() }()
	defer func() { _ = tx.Rollback() }()

	note, err := body(r.session(txCtx, tx))
	if err == nil && r.db.Name() == "sqlite" {
		err = readySQLite(txCtx, tx)
	}
	if err == nil {
		err = txCtx.Err()
	}
	if err != nil {
		return r.failed(op, overdue(txCtx, err))
	}
	err = tx.Commit()
	if err == nil {
		return nil
	}
	if err == sql.ErrTxDone { //nolint:errorlint // as such, database/sql sent no COMMIT: txCtx ended, and it rolled back
		return r.failed(op, cmp.Or(txCtx.Err(), err))
	}
	r.abandon(ctx, conn)
	return r.settle(ctx, &unknownOutcome{op: op, cause: err, note: note, took: took, repository: r})
}

// abandon ends a transaction that a failed COMMIT may have left open.
func (r *RepositoryGorm) abandon(ctx context.Context, conn *sql.Conn) {
	if r.db.Name() == "sqlite" {
		// Not by closing the connection: the database may be in memory.
		_, _ = conn.ExecContext(ctx, "ROLLBACK")
		_ = conn.Close()
		return
	}
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}

// fate is what became of a COMMIT.
type fate int

const (
	pending fate = iota
	committed
	aborted
	obscure // the database will not say any more than it has
)

// settle asks what became of a COMMIT until ctx ends. It returns u if it cannot
// learn that.
func (r *RepositoryGorm) settle(ctx context.Context, u *unknownOutcome) error {
	if r.timeout == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultTimeout)
		defer cancel()
	}
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		f, err := r.dialect.fate(ctx, r, u.note, u.took)
		switch {
		case err != nil || f == pending:
		case f == committed:
			return nil
		case f == aborted:
			return r.failed(u.op, fmt.Errorf("commit: %w", u.cause))
		default:
			return u
		}
		select {
		case <-ctx.Done():
			return u
		case <-time.After(pause):
		}
	}
}

// unknownOutcome is the error of a write of which the database did not say
// whether it happened.
type unknownOutcome struct {
	op         string
	cause      error // of the COMMIT
	note       string
	took       func(context.Context) (bool, error)
	repository *RepositoryGorm
}

func (u *unknownOutcome) Error() string {
	return fmt.Sprintf("%s: %v: commit: %v", u.op, ErrOutcomeUnknown, u.cause)
}

func (u *unknownOutcome) Unwrap() []error { return []error{ErrOutcomeUnknown, u.cause} }

// settled reports whether what the database holds now is the outcome. Its error
// means that the database does not answer.
func (u *unknownOutcome) settled() (bool, error) {
	ctx, cancel := u.repository.context()
	defer cancel()
	if u.repository.timeout == 0 {
		ctx, cancel = context.WithTimeout(ctx, defaultTimeout)
		defer cancel()
	}
	f, err := u.repository.dialect.fate(ctx, u.repository, u.note, u.took)
	if err != nil {
		return false, u.repository.failed(u.op, err)
	}
	return f != pending, nil
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
	if len(row.CronExpression) > maxExpressionLength {
		return jobErrorf(row.ID, "%w: expression of %d bytes: at most %d are allowed", ErrInvalidJob, len(row.CronExpression), maxExpressionLength)
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
	err = r.attempt(ctx, func(tx *gorm.DB) error {
		result, err := query(tx, "SELECT "+strings.Join(columns, ", ")+" FROM jobs WHERE 1 = 0")
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
		if r.db.Name() == "sqlite" && !some64 {
			// The table does not tell integer from bigint: GORM's own do not.
			clear(narrow)
		}
		return result.Err()
	})
	for _, row := range wide {
		for i, v := range values(row) {
			if narrow[i] && v != int64(int32(v)) {
				problems = append(problems, jobErrorf(row.ID, "%w: column %s of the table jobs has 32 bits, too few for %d", ErrInvalidJob, columns[i], v))
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

package smallben_test

import (
	"context"
	"database/sql"
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/nbena/smallben/internal/testkit"
	"github.com/nbena/smallben/smallbentest"
)

// reminder is the job of the rows that the original library wrote.
type reminder struct {
	Text  string
	Tries int
}

func (*reminder) Run(smallben.CronJobInput) {}

func init() { gob.RegisterName("compat.Reminder", &reminder{}) }

// storedReminder is &reminder{"five", 0}.
const storedReminder = "OhAAD2NvbXBhdC5SZW1pbmRlcn8DAQEIUmVtaW5kZXIB/4AAAQIBBFRleHQBDAABBVRyaWVzAQQAAAAK/4AHAQRmaXZlAA=="

// hastySQLite keeps SQLite from waiting for the disk.
const hastySQLite = "_synchronous=OFF"

// database is a real one, of the test's own.
type database struct {
	name     string
	dsn      string
	path     string // of SQLite's file
	portable bool   // with the statements for any database
	pool     *sql.DB
}

func newSQLite(t testing.TB) *database {
	path := filepath.Join(t.TempDir(), "jobs.db")
	db := newDatabase(t, "SQLite", path+"?"+hastySQLite, "sqlite3")
	db.path = path
	return db
}

func newPortable(t testing.TB) *database {
	db := newSQLite(t)
	db.portable = true
	return db
}

func newPostgres(t testing.TB) *database {
	return newDatabase(t, "PostgreSQL", pgtest.DSN(t), "pgx")
}

func newDatabase(t testing.TB, name, dsn, driver string) *database {
	t.Helper()
	pool, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	return &database{name: name, dsn: dsn, pool: pool}
}

// eachDatabase runs a test on SQLite and on PostgreSQL.
func eachDatabase(t *testing.T, test func(t *testing.T, db *database)) {
	t.Helper()
	t.Parallel()
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		test(t, newSQLite(t))
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		test(t, newPostgres(t))
	})
}

// eachStatements runs a test on both databases, and with the portable
// statements.
func eachStatements(t *testing.T, test func(t *testing.T, db *database)) {
	t.Helper()
	eachDatabase(t, test)
	t.Run("portable", func(t *testing.T) {
		t.Parallel()
		test(t, newPortable(t))
	})
}

func (db *database) sqlite() bool { return db.name == "SQLite" }

func (db *database) dialector() gorm.Dialector {
	if db.sqlite() {
		return sqlite.Open(db.dsn)
	}
	return postgres.Open(db.dsn)
}

// tryOpen opens another repository on the database, as another process would.
func (db *database) tryOpen(edit ...func(*smallben.RepositoryGormConfig)) (*smallben.RepositoryGorm, error) {
	config := smallben.RepositoryGormConfig{Dialector: db.dialector()}
	for _, edit := range edit {
		edit(&config)
	}
	if db.portable {
		return smallben.NewPortableRepositoryGorm(&config)
	}
	return smallben.NewRepositoryGorm(&config)
}

func (db *database) open(t testing.TB, edit ...func(*smallben.RepositoryGormConfig)) *smallben.RepositoryGorm {
	t.Helper()
	var config smallben.RepositoryGormConfig
	for _, edit := range edit {
		edit(&config)
	}
	var repository *smallben.RepositoryGorm
	testkit.Enough(t, config.Timeout, func(enough time.Duration) (err error) {
		repository, err = db.tryOpen(append(edit, timeout(enough))...)
		return err
	})
	t.Cleanup(func() { _ = repository.Close() })
	return repository
}

func (db *database) exec(t testing.TB, statement string, args ...any) {
	t.Helper()
	_, err := db.pool.Exec(statement, args...)
	require.NoError(t, err, statement)
}

// strings returns the only column of a query.
func (db *database) strings(t testing.TB, query string) (values []string) {
	t.Helper()
	rows, err := db.pool.Query(query)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var value string
		require.NoError(t, rows.Scan(&value))
		values = append(values, value)
	}
	require.NoError(t, rows.Err())
	return values
}

// dump is the whole database as text: tables, indexes and rows.
func (db *database) dump(t testing.TB) []string {
	t.Helper()
	if db.sqlite() {
		return append(db.strings(t, "SELECT name || ': ' || coalesce(sql, '') FROM sqlite_master ORDER BY name"),
			db.strings(t, `SELECT concat_ws(' ', quote(id), quote(group_id), quote(super_group_id), quote(paused), quote(cron_expression), quote(cron_id),
quote(serialized_job), quote(serialized_job_input), quote(created_at), quote(updated_at)) FROM jobs ORDER BY id`)...)
	}
	return slices.Concat(
		db.strings(t, "SELECT indexname || ': ' || indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1"),
		db.strings(t, `SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default)
FROM information_schema.columns WHERE table_schema = current_schema() ORDER BY table_name, ordinal_position`),
		db.strings(t, "SELECT jobs::text FROM jobs ORDER BY id"))
}

// put stores a row as it is.
func (db *database) put(t testing.TB, row smallben.RawJob) {
	t.Helper()
	const format = "2006-01-02 15:04:05.999999-07:00"
	db.exec(t, `INSERT INTO jobs (id, group_id, super_group_id, cron_id, cron_expression, paused, created_at, updated_at, serialized_job, serialized_job_input)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`, row.ID, row.GroupID, row.SuperGroupID, row.CronID, row.CronExpression, row.Paused,
		row.CreatedAt.Format(format), row.UpdatedAt.Format(format), row.SerializedJob, row.SerializedJobInput)
}

// store is a Repository under the conformance suite.
type store struct {
	smallben.Repository
	put func(t testing.TB, row smallben.RawJob) // stores a row as it is
	big int64                                   // how many jobs make a large batch
}

// eachStore runs a test of the contract on every implementation of it.
func eachStore(t *testing.T, test func(t *testing.T, s store)) {
	t.Helper()
	eachStatements(t, func(t *testing.T, db *database) {
		big := int64(100_000)
		if db.portable {
			big = 2_000
		}
		test(t, store{db.open(t, timeout(5*time.Minute)), db.put, big}) // for large batches on a busy machine
	})
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		repository := newMemoryRepository()
		test(t, store{repository, func(_ testing.TB, row smallben.RawJob) { repository.Put(row) }, 2_000})
	})
}

// past is when the rows of the tests were written.
var past = time.Date(2024, 2, 29, 12, 34, 56, 789012000, time.UTC)

// rawJob is a row that decodes.
func rawJob(id int64) smallben.RawJob {
	return smallben.RawJob{
		ID: id, GroupID: id % 5, SuperGroupID: id % 3, CronID: id%1000 + 1, CronExpression: "*/5 * * * *",
		CreatedAt: past, UpdatedAt: past.Add(time.Hour),
		SerializedJob: storedReminder, SerializedJobInput: `{"id":` + fmt.Sprint(id) + `}`,
	}
}

func rawJobs(ids ...int64) []smallben.RawJob {
	rows := make([]smallben.RawJob, len(ids))
	for i, id := range ids {
		rows[i] = rawJob(id)
	}
	return rows
}

// withSchedule decodes rows, so that they can be stored.
func withSchedule(t testing.TB, rows ...smallben.RawJob) []smallben.JobWithSchedule {
	t.Helper()
	jobs, problems := smallben.DecodeRows(rows)
	require.NoError(t, errors.Join(problems...))
	return jobs
}

func (s store) add(t testing.TB, rows ...smallben.RawJob) {
	t.Helper()
	require.NoError(t, s.AddJobs(withSchedule(t, rows...)))
}

func list(t testing.TB, repository smallben.Repository) []smallben.RawJob {
	t.Helper()
	rows, err := repository.ListJobs(nil)
	require.NoError(t, err)
	return rows
}

func rowIDs(rows []smallben.RawJob) []int64 {
	ids := make([]int64, len(rows))
	for i := range rows {
		ids[i] = rows[i].ID
	}
	return ids
}

func built(t testing.TB, jobs []smallben.JobWithSchedule) []smallben.RawJob {
	t.Helper()
	rows := make([]smallben.RawJob, len(jobs))
	for i := range jobs {
		var err error
		rows[i], err = jobs[i].BuildJob()
		require.NoError(t, err)
	}
	return rows
}

// jobErrors returns the ids of the JobErrors of err that match target, sorted.
// Every leaf of err must be a JobError.
func jobErrors(t testing.TB, err, target error) (ids []int64) {
	t.Helper()
	var walk func(err error)
	walk = func(err error) {
		switch err := err.(type) {
		case *smallben.JobError:
			require.ErrorIs(t, err, target)
			ids = append(ids, err.JobID)
		case interface{ Unwrap() []error }:
			for _, err := range err.Unwrap() {
				walk(err)
			}
		default:
			require.Fail(t, "a leaf that is no JobError", "%v", err)
		}
	}
	require.Error(t, err)
	walk(err)
	slices.Sort(ids)
	return ids
}

// recent checks that a time was set by a call that began at start.
func recent(t testing.TB, got, start time.Time) {
	t.Helper()
	require.Equal(t, time.UTC, got.Location())
	require.Zero(t, got.Nanosecond()%1000)
	require.False(t, got.Before(start.Truncate(time.Microsecond)) || got.After(time.Now()), "%v is not between %v and now", got, start)
}

func TestRepositoryGormKeepsTheContract(t *testing.T) {
	t.Parallel()
	for name, create := range map[string]func(testing.TB) *database{"SQLite": newSQLite, "PostgreSQL": newPostgres, "portable": newPortable} {
		t.Run(name, func(t *testing.T) {
			smallbentest.TestRepository(t, func(t *testing.T) smallben.Repository { return create(t).open(t) })
		})
	}
}

func TestARowThatDoesNotDecodeHidesNoOther(t *testing.T) {
	eachStore(t, func(t *testing.T, s store) {
		rows := rawJobs(1, 2, 3, 4, 5, 6, 7)
		rows[1].SerializedJob = "!"
		rows[2].SerializedJobInput = "{"
		rows[3].CronExpression = "TZ=UTC"
		rows[4].SerializedJob, rows[4].Paused = "", true
		for _, row := range rows {
			s.put(t, row)
		}
		require.Equal(t, rows, list(t, s))
		jobs, err := s.GetAllJobsToExecute()
		require.Equal(t, []int64{2, 3, 4}, jobErrors(t, err, smallben.ErrUndecodable))
		require.Equal(t, []int64{1, 6, 7}, rowIDs(built(t, jobs)))

		jobs, err = s.GetJobsByIds([]int64{7, 5, 2})
		require.Equal(t, []int64{2, 5}, jobErrors(t, err, smallben.ErrUndecodable))
		require.Equal(t, []int64{7}, rowIDs(built(t, jobs)))
		jobs, err = s.GetJobsByIds([]int64{7, 5, 8})
		require.ErrorIs(t, err, smallben.ErrUndecodable)
		require.ErrorIs(t, err, s.ErrorTypeIfMismatchCount())
		require.Equal(t, []int64{7}, rowIDs(built(t, jobs)))

		_, err = s.GetJob(3)
		require.Equal(t, []int64{3}, jobErrors(t, err, smallben.ErrUndecodable))

		// It can be paused and deleted, and keeps what it holds.
		require.NoError(t, s.PauseJobs(rows[1:3]))
		got := list(t, s)
		require.True(t, got[1].Paused && got[2].Paused)
		require.Equal(t, rows[1].SerializedJob, got[1].SerializedJob)
		require.NoError(t, s.DeleteJobsByIds([]int64{2, 3, 4, 5}))
		require.Equal(t, []int64{1, 6, 7}, rowIDs(list(t, s)))
	})
}

// manyJobs are shared by the tests of large batches.
var manyJobs = sync.OnceValue(func() []smallben.JobWithSchedule {
	jobs, _ := smallben.DecodeRows(rawJobs(1))
	for id := int64(2); id <= 100_000; id++ {
		jobs = append(jobs, smallben.WithRow(jobs[0], rawJob(id)))
	}
	return jobs
})

func TestLargeBatchesAreOneWrite(t *testing.T) {
	eachStore(t, func(t *testing.T, s store) {
		jobs := manyJobs()[:s.big]
		require.NoError(t, s.AddJobs(jobs))
		paused := make([]smallben.RawJob, s.big*7/10)
		for i := range paused {
			paused[i].ID = int64(i + 1)
		}
		require.NoError(t, s.PauseJobs(paused))
		rows, err := s.ListJobs(&smallben.ListJobsOptions{Paused: ptr(true)})
		require.NoError(t, err)
		require.Equal(t, rowIDs(paused), rowIDs(rows))
	})
}

func TestABatchOfSeveralStatementsIsOneWrite(t *testing.T) {
	eachStore(t, func(t *testing.T, s store) {
		n := min(s.big, 12_000)
		jobs, ids := manyJobs()[:n], make([]int64, n)
		for i := range ids {
			ids[i] = int64(i + 1)
		}
		require.NoError(t, s.AddJobs(jobs[n-1:]))
		require.Equal(t, ids[n-1:], jobErrors(t, s.AddJobs(jobs), smallben.ErrJobExists))
		require.Len(t, list(t, s), 1)
		require.NoError(t, s.DeleteJobsByIds(ids[n-1:]))

		require.NoError(t, s.AddJobs(jobs))
		require.NoError(t, s.PauseJobs(built(t, jobs)))
		require.NoError(t, s.ResumeJobs(jobs))
		require.NoError(t, s.SetCronId(jobs))
		require.NoError(t, s.SetCronIdAndChangeScheduleAndJobInput(jobs))
		rows, err := s.ListJobs(&smallben.ListJobsOptions{JobIDs: ids, Paused: ptr(false)})
		require.NoError(t, err)
		require.Equal(t, ids, rowIDs(rows))
		require.ErrorIs(t, s.DeleteJobsByIds(append(ids[:n-1:n-1], -1)), s.ErrorTypeIfMismatchCount())
		require.Equal(t, ids[n-1:], rowIDs(list(t, s)))
	})
}

// RepositoryGorm.

func TestTheErrorsOfGormAreFoundAndNameAtMostTwentyJobs(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		r := db.open(t)
		require.Equal(t, gorm.ErrRecordNotFound, r.ErrorTypeIfMismatchCount())
		require.EqualError(t, r.PauseJobs(rawJobs(9, 3)), "pause jobs: record not found: jobs 3, 9")
		require.EqualError(t, r.DeleteJobsByIds([]int64{9}), "delete jobs: record not found: job 9")
		require.EqualError(t, r.UpsertJobs(withSchedule(t, rawJob(4)), withSchedule(t, rawJobs(4, 9)...)), "upsert jobs: record not found: job 9")
		err := r.AddJobs(withSchedule(t, rawJob(4)))
		require.Equal(t, []int64{4}, jobErrors(t, err, smallben.ErrJobExists))
		require.ErrorIs(t, err, gorm.ErrDuplicatedKey)
		many := make([]int64, 1000)
		for i := range many {
			many[i] = int64(i + 101)
		}
		require.EqualError(t, r.DeleteJobsByIds(many),
			"delete jobs: record not found: jobs 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115, 116, 117, 118, 119, 120 and 980 more")
	})
}

func TestAnUpdateLeavesOutTheColumnsThatItDoesNotName(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		r := db.open(t)
		rows := rawJobs(1, 2, 3)
		require.NoError(t, r.AddJobs(withSchedule(t, rows...)))
		changed := rawJobs(1, 2, 3)
		for i := range changed {
			changed[i].CronExpression, changed[i].SerializedJobInput = "@daily", "null"
		}
		jobs := withSchedule(t, changed...)
		require.NoError(t, r.SetCronIdAndChangeScheduleAndJobInput([]smallben.JobWithSchedule{
			smallben.Naming(jobs[0], true, false), smallben.Naming(jobs[1], false, true), smallben.Naming(jobs[2], true, true),
		}))
		got := list(t, r)
		require.Equal(t, []string{"@daily", rows[1].CronExpression, "@daily"}, []string{got[0].CronExpression, got[1].CronExpression, got[2].CronExpression})
		require.Equal(t, []string{rows[0].SerializedJobInput, "null", "null"}, []string{got[0].SerializedJobInput, got[1].SerializedJobInput, got[2].SerializedJobInput})
	})
}

func TestTextThatTheDatabaseCannotHoldIsRefused(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		r := db.open(t)
		rows := rawJobs(1, 2, 3)
		rows[0].SerializedJobInput = "{\"a\":\"\xff\"}"
		rows[2].CreatedAt = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
		jobs := withSchedule(t, rows...)
		require.Equal(t, []int64{1, 3}, jobErrors(t, r.AddJobs(jobs), smallben.ErrInvalidJob))
		require.Empty(t, list(t, r))
		require.NoError(t, r.AddJobs(jobs[1:2]))
		require.Equal(t, []int64{1}, jobErrors(t, r.SetCronIdAndChangeScheduleAndJobInput(jobs), smallben.ErrInvalidJob))
	})
}

func TestTheConfigMustNameADatabase(t *testing.T) {
	t.Parallel()
	_, err := smallben.NewRepositoryGorm(nil)
	require.ErrorContains(t, err, "the config is nil")
	_, err = smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{})
	require.ErrorContains(t, err, "Dialector is nil")
}

func TestAFileThatIsNoDatabaseIsAnError(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "jobs.db")
	require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("not a database ", 100)), 0o600))
	_, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: sqlite.Open(path)})
	require.ErrorContains(t, err, "open repository: ")
}

func TestAFileThatCannotBeOpenedIsNamed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "missing", "jobs.db")
	for _, dsn := range []string{path, "file:" + path + "?_auth_pass=secret"} {
		_, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: sqlite.Open(dsn)})
		require.ErrorContains(t, err, "open repository: "+path+": unable to open database file")
		require.NotContains(t, err.Error(), "secret")
	}
	text := filepath.Join(t.TempDir(), "text.db")
	require.NoError(t, os.WriteFile(text, []byte(strings.Repeat("no database ", 100)), 0o600))
	_, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: sqlite.Open(text)})
	require.ErrorContains(t, err, "open repository: "+text+": ")
}

func TestANewTableHas64BitIDsAndItsIndexes(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		db.open(t)
		dump := strings.Join(db.dump(t), "\n")
		for _, index := range []string{"paused_idx", "super_group_idx", "group_idx"} {
			require.Contains(t, dump, index)
		}
		types := "SELECT type FROM pragma_table_info('jobs') WHERE name LIKE '%id'"
		times := "SELECT type FROM pragma_table_info('jobs') WHERE name LIKE '%_at'"
		timeType := "datetime"
		if !db.sqlite() {
			types = "SELECT data_type FROM information_schema.columns WHERE table_schema = current_schema() AND column_name LIKE '%id'"
			times = "SELECT data_type FROM information_schema.columns WHERE table_schema = current_schema() AND column_name LIKE '%_at'"
			timeType = "timestamp with time zone"
		}
		require.Equal(t, []string{"bigint", "bigint", "bigint", "bigint"}, db.strings(t, types))
		require.Equal(t, []string{timeType, timeType}, db.strings(t, times))
	})
}

func TestOpeningAgainAltersNothing(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		require.NoError(t, db.open(t).AddJobs(withSchedule(t, rawJobs(1, 2)...)))
		before := db.dump(t)
		r := db.open(t)
		require.Equal(t, before, db.dump(t))
		require.Equal(t, rawJobs(1, 2), list(t, r))
	})
}

func TestManyMayCreateTheTableAtOnce(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		var wg sync.WaitGroup
		for i := range int64(12) {
			wg.Go(func() {
				r, err := db.tryOpen()
				if assert.NoError(t, err) {
					assert.NoError(t, r.AddJobs(withSchedule(t, rawJob(i+1))))
					assert.NoError(t, r.Close())
				}
			})
		}
		wg.Wait()
		require.Len(t, list(t, db.open(t)), 12)
		require.Contains(t, strings.Join(db.dump(t), "\n"), "super_group_idx")
	})
}

const openEnv = "SMALLBEN_TEST_OPEN"

// TestOpenForAnotherProcess is what the processes of the next test run.
func TestOpenForAnotherProcess(t *testing.T) {
	name, dsn, found := strings.Cut(os.Getenv(openEnv), " ")
	if !found {
		t.Skip("for TestManyProcessesMayCreateTheTableAtOnce")
	}
	db := &database{name: name, dsn: dsn}
	require.NoError(t, db.open(t).AddJobs(withSchedule(t, rawJob(int64(os.Getpid())))))
}

func TestManyProcessesMayCreateTheTableAtOnce(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOpenForAnotherProcess$")
				child.Env = append(os.Environ(), openEnv+"="+db.name+" "+db.dsn)
				out, err := child.CombinedOutput()
				assert.NoError(t, err, "%s", out)
			})
		}
		wg.Wait()
		require.Len(t, list(t, db.open(t)), 4)
	})
}

func TestIndexNamesOfAnotherTableDoNotStandInTheWay(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		db.exec(t, "CREATE TABLE other (paused bigint)")
		db.exec(t, "CREATE INDEX paused_idx ON other (paused)")
		db.open(t)
		require.Contains(t, strings.Join(db.dump(t), "\n"), "jobs_paused_idx")
	})
}

func TestSkipMigrationLeavesTheTableToTheUser(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		skip := func(config *smallben.RepositoryGormConfig) { config.SkipMigration = true }
		_, err := db.tryOpen(skip)
		require.ErrorContains(t, err, "the table jobs is missing")
		r := db.open(t)
		require.NoError(t, r.AddJobs(withSchedule(t, rawJob(1))))
		require.Len(t, list(t, db.open(t, skip)), 1)
	})
}

func TestATableWithoutAColumnIsAnErrorAtOpening(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		db.exec(t, "CREATE TABLE jobs (id bigint PRIMARY KEY, group_id bigint)")
		_, err := db.tryOpen()
		require.ErrorContains(t, err, "open repository: table jobs: ")
		require.ErrorContains(t, err, "super_group_id")
	})
}

// fixture loads the table and rows that the original library wrote.
func fixture(t testing.TB, db *database) {
	t.Helper()
	file := "v0_10_postgres.sql"
	if db.sqlite() {
		file = "v0_10_sqlite.sql"
	}
	script, err := os.ReadFile(filepath.Join("testdata", file))
	require.NoError(t, err)
	db.exec(t, string(script))
}

func TestTheOriginalsDataOpensAsItIs(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		fixture(t, db)
		before := db.dump(t)
		r := db.open(t)
		rows := list(t, r)
		require.Equal(t, before, db.dump(t))

		at := func(micros int) time.Time { return time.Date(2026, 11, 23, 16, 21, 16, micros*1000, time.UTC) }
		const input = `{"count":3,"nested":{"a":[1,2,3]},"ratio":0.5,"to":"ops@example.com","unicode":"naïve – ✓"}`
		job := func(last string) string {
			return "OhAAD2NvbXBhdC5SZW1pbmRlcn8DAQEIUmVtaW5kZXIB/4AAAQIBBFRleHQBDAABBVRyaWVzAQQAAAA" + last
		}
		require.Equal(t, []smallben.RawJob{
			{ID: -5, GroupID: 12, CronID: 6, CronExpression: "15,45 8-18/2 * * MON", CreatedAt: at(630679), UpdatedAt: at(630679), SerializedJob: job("L/4AIAQNuZWcBBAA="), SerializedJobInput: input},
			{ID: 1, GroupID: 10, SuperGroupID: 100, CronID: 7, CronExpression: "@weekly", CreatedAt: at(630479), UpdatedAt: at(634398), SerializedJob: job("O/4ALAQZob3VybHkBAgA="), SerializedJobInput: input},
			{ID: 2, GroupID: 10, SuperGroupID: 100, Paused: true, CronExpression: "*/5 * * * *", CreatedAt: at(630484), UpdatedAt: at(630484), SerializedJob: job("K/4AHAQRmaXZlAA=="), SerializedJobInput: "{}"},
			{ID: 3, GroupID: 11, SuperGroupID: 100, CronID: 3, CronExpression: "CRON_TZ=Europe/Rome 30 4 * * 1-5", CreatedAt: at(630671), UpdatedAt: at(630671), SerializedJob: job("M/4AJAQRyb21lAQ0A"), SerializedJobInput: "null"},
			{ID: 4, GroupID: 11, SuperGroupID: 200, Paused: true, CronExpression: "@daily", CreatedAt: at(630672), UpdatedAt: at(630672), SerializedJob: job("E/4ABAA=="), SerializedJobInput: input},
			{ID: 1<<53 + 1, GroupID: -1, SuperGroupID: math.MaxInt32, CronID: 5, CronExpression: "0 0 29 2 *", CreatedAt: at(630674), UpdatedAt: at(630674), SerializedJob: job("M/4AJAQRsZWFwAQQA"), SerializedJobInput: input},
		}, rows)
		jobs, err := r.GetAllJobsToExecute()
		require.NoError(t, err)
		require.Equal(t, []int64{-5, 1, 3, 1<<53 + 1}, rowIDs(built(t, jobs)))
	})
}

func TestJobsAreAddedToTheOriginalsTable(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		fixture(t, db)
		r := db.open(t)
		row := rawJob(77)
		row.SuperGroupID = math.MinInt32
		require.NoError(t, r.AddJobs(withSchedule(t, row)))
		require.NoError(t, r.PauseJobs(rawJobs(3, 77)))
		require.NoError(t, r.SetCronId(withSchedule(t, row)))
		got, err := r.ListJobs(&smallben.ListJobsOptions{SuperGroupIDs: []int64{math.MinInt32}})
		require.NoError(t, err)
		row.Paused, row.UpdatedAt = true, got[0].UpdatedAt
		require.Equal(t, []smallben.RawJob{row}, got)
	})
}

func TestASuperGroupBeyond32BitsIsRefusedInTheOriginalsTable(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		fixture(t, db)
		r := db.open(t)
		before := db.dump(t)
		rows := rawJobs(71, 72, 73, 3)
		rows[0].SuperGroupID = math.MaxInt32 + 1
		rows[1].GroupID = math.MaxInt64 // the original's column has 64 bits
		rows[2].SuperGroupID = math.MinInt32 - 1
		err := r.AddJobs(withSchedule(t, rows[:3]...))
		require.Equal(t, []int64{71, 73}, jobErrors(t, err, smallben.ErrInvalidJob))
		require.ErrorContains(t, err, "super_group_id")
		// Together with every other problem of the batch.
		err = r.AddJobs(withSchedule(t, rows...))
		require.ErrorIs(t, err, smallben.ErrInvalidJob)
		require.ErrorIs(t, err, smallben.ErrJobExists)
		require.Equal(t, before, db.dump(t))
		require.NoError(t, r.AddJobs(withSchedule(t, rows[1])))
	})
}

// looseTable is one in which anything can stand.
func looseTable(t testing.TB, db *database) {
	t.Helper()
	timeType := "datetime"
	if !db.sqlite() {
		timeType = "timestamptz"
	}
	db.exec(t, `CREATE TABLE jobs (id bigint, group_id bigint, super_group_id bigint, paused boolean, cron_expression varchar(256), cron_id bigint,
serialized_job text, serialized_job_input text, created_at `+timeType+`, updated_at `+timeType+`)`)
}

func TestANULLHoldsItsRowBackAndNoOther(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		looseTable(t, db)
		r := db.open(t)
		columns := []string{"group_id", "super_group_id", "paused", "cron_expression", "cron_id", "serialized_job", "serialized_job_input", "created_at", "updated_at"}
		var broken []int64
		db.put(t, rawJob(50))
		for i, column := range columns {
			id := int64(i + 1)
			db.put(t, rawJob(id))
			db.exec(t, fmt.Sprintf("UPDATE jobs SET %s = NULL WHERE id = %d", column, id))
			broken = append(broken, id)
		}
		before := db.dump(t)
		rows := list(t, r)
		require.Equal(t, append(broken, 50), rowIDs(rows))
		for i, column := range columns {
			_, err := rows[i].ToJobWithSchedule()
			require.Equal(t, []int64{int64(i + 1)}, jobErrors(t, err, smallben.ErrUndecodable))
			require.ErrorContains(t, err, "column "+column+" is NULL")
		}
		jobs, err := r.GetAllJobsToExecute()
		require.Equal(t, broken, jobErrors(t, err, smallben.ErrUndecodable))
		require.Equal(t, []int64{50}, rowIDs(built(t, jobs)))
		require.Equal(t, before, db.dump(t))

		// A row whose paused is NULL is not paused.
		unpaused, err := r.ListJobs(&smallben.ListJobsOptions{Paused: ptr(false)})
		require.NoError(t, err)
		require.Equal(t, append(broken, 50), rowIDs(unpaused))
		require.NoError(t, r.PauseJobs(rows))
		paused, err := r.ListJobs(&smallben.ListJobsOptions{Paused: ptr(true)})
		require.NoError(t, err)
		require.Equal(t, append(broken, 50), rowIDs(paused))
		require.NoError(t, r.DeleteJobsByIds(broken))
		require.Equal(t, []int64{50}, rowIDs(list(t, r)))
	})
}

func TestAnIDThatCannotBeReadIsZeroAndFirst(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		looseTable(t, db)
		r := db.open(t)
		db.put(t, rawJob(1))
		db.put(t, rawJob(2))
		db.exec(t, "UPDATE jobs SET id = NULL WHERE id = 1")
		if db.sqlite() {
			db.put(t, rawJob(3))
			db.exec(t, "UPDATE jobs SET id = 'three' WHERE id = 3")
		}
		rows := list(t, r)
		jobs, err := r.GetAllJobsToExecute()
		require.Equal(t, []int64{2}, rowIDs(built(t, jobs)))
		bad := jobErrors(t, err, smallben.ErrUndecodable)
		require.Equal(t, append(bad, 2), rowIDs(rows))
		for _, id := range bad {
			require.Zero(t, id)
		}
	})
}

func TestPagesShowRowsWithoutAnIDOnce(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		looseTable(t, db)
		r := db.open(t)
		for _, id := range []int64{-3, -2, -1, 1, 2, 3, 4, 5} {
			db.put(t, rawJob(id))
		}
		db.exec(t, "UPDATE jobs SET id = NULL WHERE id IN (1, 4)")
		want := []int64{0, 0, -3, -2, -1, 2, 3, 5}
		if db.sqlite() && !db.portable {
			db.exec(t, "UPDATE jobs SET id = 'x' WHERE id IN (3, 5)")
			want = []int64{0, 0, 0, 0, -3, -2, -1, 2}
		}
		for limit := 1; limit <= 9; limit++ {
			var got []int64
			var after *int64
			for {
				rows, err := r.ListJobsAfter(nil, after, limit)
				require.NoError(t, err)
				got = append(got, rowIDs(rows)...)
				if len(rows) < limit {
					break
				}
				after = &got[len(got)-1]
			}
			require.Equal(t, want, got, "limit %d", limit)
		}
	})
}

func TestAValueOfAnotherTypeHoldsItsRowBackOnSQLite(t *testing.T) {
	t.Parallel()
	db := newSQLite(t)
	r := db.open(t)
	values := []string{
		"group_id = 'x'", "super_group_id = 1.5", "cron_id = x'3132'", "paused = 'maybe'", "paused = 0.5",
		"created_at = 'yesterday'", "created_at = 1.5", "updated_at = ''", "updated_at = '2024-13-01 00:00:00'",
	}
	for i, value := range values {
		db.put(t, rawJob(int64(i+1)))
		db.exec(t, fmt.Sprintf("UPDATE jobs SET %s WHERE id = %d", value, i+1))
	}
	rows := list(t, r)
	require.Len(t, rows, len(values))
	for i, value := range values {
		_, err := rows[i].ToJobWithSchedule()
		column, _, _ := strings.Cut(value, " ")
		require.ErrorIs(t, err, smallben.ErrUndecodable)
		require.ErrorContains(t, err, "column "+column+" holds ")
		require.Equal(t, storedReminder, rows[i].SerializedJob)
	}
	// Each row is either paused or not.
	unpaused, err := r.ListJobs(&smallben.ListJobsOptions{Paused: ptr(false)})
	require.NoError(t, err)
	require.Equal(t, rows, unpaused)
	require.NoError(t, r.PauseJobs(rows))
	unpaused, err = r.ListJobs(&smallben.ListJobsOptions{Paused: ptr(false)})
	require.NoError(t, err)
	require.Empty(t, unpaused)
}

func TestTimesThatOthersWroteAreRead(t *testing.T) {
	t.Parallel()
	db := newSQLite(t)
	r := db.open(t)
	at := time.Date(2024, 2, 29, 12, 34, 56, 0, time.UTC)
	for i, value := range []any{
		"2024-02-29 12:34:56", "2024-02-29T12:34:56Z", "2024-02-29 14:34:56+02:00", "2024-02-29T12:34:56.000000999",
		at.Unix(), at.UnixMilli(), at.String(), at, []byte("2024-02-29 12:34:56"),
	} {
		db.put(t, rawJob(int64(i+1)))
		db.exec(t, "UPDATE jobs SET created_at = ? WHERE id = ?", value, i+1)
	}
	for _, row := range list(t, r) {
		require.Equal(t, at, row.CreatedAt, "row %d", row.ID)
		_, err := row.ToJobWithSchedule()
		require.NoError(t, err)
	}
}

// methods are all calls that reach the database, by name. They expect jobs 1 to
// 9, and change them only with success.
var methods = map[string]func(t testing.TB, r smallben.Repository) error{
	"AddJobs":   func(t testing.TB, r smallben.Repository) error { return r.AddJobs(withSchedule(t, rawJobs(11, 12)...)) },
	"PauseJobs": func(t testing.TB, r smallben.Repository) error { return r.PauseJobs(rawJobs(1, 2)) },
	"ResumeJobs": func(t testing.TB, r smallben.Repository) error {
		return r.ResumeJobs(withSchedule(t, rawJobs(3, 4)...))
	},
	"SetCronId": func(t testing.TB, r smallben.Repository) error {
		rows := rawJobs(5, 6)
		rows[0].CronID, rows[1].CronID = 555, 666
		return r.SetCronId(withSchedule(t, rows...))
	},
	"SetCronIdAndChangeScheduleAndJobInput": func(t testing.TB, r smallben.Repository) error {
		return r.SetCronIdAndChangeScheduleAndJobInput(withSchedule(t, rawJobs(7, 8)...))
	},
	"DeleteJobsByIds": func(t testing.TB, r smallben.Repository) error { return r.DeleteJobsByIds([]int64{9}) },
	"GetJob":          func(t testing.TB, r smallben.Repository) error { _, err := r.GetJob(1); return err },
	"GetJobsByIds":    func(t testing.TB, r smallben.Repository) error { _, err := r.GetJobsByIds([]int64{1}); return err },
	"GetAllJobsToExecute": func(t testing.TB, r smallben.Repository) error {
		_, err := r.GetAllJobsToExecute()
		return err
	},
	"ListJobs": func(t testing.TB, r smallben.Repository) error { _, err := r.ListJobs(nil); return err },
}

var methodRows = []int64{1, 2, 3, 4, 5, 6, 7, 8, 9}

// lock takes the table away from everybody else until unlock.
func (db *database) lock(t testing.TB) (unlock func()) {
	t.Helper()
	conn, err := db.pool.Conn(context.Background())
	require.NoError(t, err)
	statements := []string{"BEGIN", "LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"}
	if db.sqlite() {
		statements = []string{"BEGIN EXCLUSIVE"}
	}
	for _, statement := range statements {
		_, err := conn.ExecContext(context.Background(), statement)
		require.NoError(t, err)
	}
	return sync.OnceFunc(func() {
		_, err := conn.ExecContext(context.Background(), "ROLLBACK")
		assert.NoError(t, err)
		assert.NoError(t, conn.Close())
	})
}

// defaultTimeout is RepositoryGormConfig.Timeout's, and what a call takes that does not
// take notice of a shorter one. One that does is far quicker, on a busy machine too.
const defaultTimeout = 30 * time.Second

func timeout(d time.Duration) func(*smallben.RepositoryGormConfig) {
	return func(config *smallben.RepositoryGormConfig) { config.Timeout = d }
}

func TestALockedTableIsAnErrorWithinTheTimeout(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		if db.sqlite() {
			db.dsn += fmt.Sprintf("&_busy_timeout=%d", defaultTimeout.Milliseconds())
		}
		r := db.open(t, timeout(400*time.Millisecond))
		require.NoError(t, db.open(t).AddJobs(withSchedule(t, rawJobs(methodRows...)...)))
		before := db.dump(t)
		unlock := db.lock(t)
		defer unlock()
		var wg sync.WaitGroup
		for name, call := range methods {
			wg.Go(func() {
				start := time.Now()
				err := call(t, r)
				assert.Error(t, err, name)
				assert.NotErrorIs(t, err, smallben.ErrOutcomeUnknown, name)
				assert.Less(t, time.Since(start), defaultTimeout, name)
			})
		}
		wg.Wait()
		start := time.Now()
		_, err := db.tryOpen(timeout(400 * time.Millisecond))
		require.Error(t, err)
		require.Less(t, time.Since(start), defaultTimeout)
		unlock()
		require.Equal(t, before, db.dump(t))
		patient := db.open(t)
		for name, call := range methods {
			require.NoError(t, call(t, patient), name)
		}
	})
}

func TestAServerThatDoesNotAnswerIsAnErrorWithinTheTimeout(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	start := time.Now()
	_, err = smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
		Dialector: postgres.Open("postgres://u@" + listener.Addr().String() + "/d?sslmode=disable"), Timeout: 300 * time.Millisecond,
	})
	require.ErrorContains(t, err, "open repository: ")
	require.Less(t, time.Since(start), defaultTimeout)
}

func TestWithoutATimeoutACallWaitsForTheLock(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		r := db.open(t, timeout(-1))
		require.NoError(t, r.AddJobs(withSchedule(t, rawJobs(methodRows...)...)))
		unlock := db.lock(t)
		defer unlock()
		done := make(chan error)
		go func() { done <- r.PauseJobs(rawJobs(1)) }()
		select {
		case err := <-done:
			t.Fatal("it did not wait: ", err)
		case <-time.After(200 * time.Millisecond):
		}
		unlock()
		require.NoError(t, <-done)
	})
}

func TestAClosedRepositoryReturnsErrors(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		r := db.open(t)
		require.NoError(t, r.Close())
		for name, call := range methods {
			require.ErrorContains(t, call(t, r), "closed", name)
		}
		require.NoError(t, r.Close())
	})
}

func TestAFailedOpeningClosesOnlyItsOwnPool(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		for _, dialector := range []gorm.Dialector{postgres.New(postgres.Config{Conn: db.pool}), postgres.Dialector{Config: &postgres.Config{Conn: db.pool}}} {
			if db.sqlite() {
				dialector = sqlite.New(sqlite.Config{Conn: db.pool})
			}
			_, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector, SkipMigration: true})
			require.ErrorContains(t, err, "the table jobs is missing")
			require.NoError(t, db.pool.Ping())
		}
	})
}

func TestAnInMemoryDatabaseIsOneDatabase(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{":memory:", "file::memory:?cache=shared", "file:TestAnInMemoryDatabase?mode=memory&cache=shared", ""} {
		t.Run(dsn, func(t *testing.T) {
			r, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: sqlite.Open(dsn)})
			require.NoError(t, err)
			defer r.Close()
			require.NoError(t, r.AddJobs(withSchedule(t, rawJobs(methodRows...)...)))
			var wg sync.WaitGroup
			for name, call := range methods {
				wg.Go(func() { assert.NoError(t, call(t, r), name) })
			}
			wg.Wait()
			require.Len(t, list(t, r), 10)
		})
	}
}

// statementCount is a GORM logger that counts statements.
type statementCount struct {
	logger.Interface
	n int
}

func (c *statementCount) Trace(context.Context, time.Time, func() (string, int64), error) { c.n++ }

func TestTheUsersLoggerSeesAsManyStatementsAsThereAreChunks(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		statements := &statementCount{Interface: logger.Discard}
		r := db.open(t, func(config *smallben.RepositoryGormConfig) { config.Config.Logger = statements })
		count := func(err error) (n int) {
			t.Helper()
			require.NoError(t, err)
			n, statements.n = statements.n, 0
			return n
		}
		statements.n = 0
		jobs := manyJobs()[:11_000]
		rows := built(t, jobs)
		require.Equal(t, 11, count(r.AddJobs(jobs)))
		require.Equal(t, 2, count(r.SetCronId(jobs)))
		require.Equal(t, 2, count(r.PauseJobs(rows)))
		require.Equal(t, 2, count(r.ResumeJobs(jobs)))
		require.Equal(t, 2, count(r.SetCronIdAndChangeScheduleAndJobInput(jobs)))
		_, err := r.GetAllJobsToExecute()
		require.Equal(t, 1, count(err))
		_, err = r.GetJobsByIds(rowIDs(rows))
		require.Equal(t, 1, count(err))
		_, err = r.ListJobs(&smallben.ListJobsOptions{JobIDs: rowIDs(rows)})
		require.Equal(t, 1, count(err))
		require.Equal(t, 2, count(r.DeleteJobsByIds(rowIDs(rows))))
	})
}

// Poolers between client and server want another mode than pgx's own.
func TestEveryQueryModeOfPgxWorks(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			db := newPostgres(t)
			db.dsn += "&default_query_exec_mode=" + mode
			r := db.open(t)
			require.NoError(t, r.AddJobs(withSchedule(t, rawJobs(methodRows...)...)))
			require.Equal(t, rawJobs(methodRows...), list(t, r))
			require.Equal(t, []int64{1, 2}, jobErrors(t, r.AddJobs(withSchedule(t, rawJobs(1, 99, 2)...)), smallben.ErrJobExists))
			require.EqualError(t, r.PauseJobs(rawJobs(98, 99)), "pause jobs: record not found: jobs 98, 99")
			for name, call := range methods {
				require.NoError(t, call(t, r), name)
			}
			require.NoError(t, r.UpsertJobs(withSchedule(t, rawJob(21)), withSchedule(t, rawJob(1))))
			rows, err := r.ListJobsAfter(nil, ptr(int64(8)), 3)
			require.NoError(t, err)
			require.Equal(t, []int64{11, 12, 21}, rowIDs(rows))
		})
	}
}

// The fate of a COMMIT.

// faulty opens a repository over faults on the database.
func faulty(t testing.TB, db *database) (*faultsql.Faults, *smallben.RepositoryGorm) {
	t.Helper()
	var faults *faultsql.Faults
	if db.sqlite() {
		faults = faultsql.SQLite(db.path, hastySQLite)
	} else {
		var err error
		faults, err = faultsql.Postgres(db.dsn)
		require.NoError(t, err)
	}
	return faults, db.open(t, over(db, faults))
}

// over has a repository use the pool of faults.
func over(db *database, faults *faultsql.Faults) func(*smallben.RepositoryGormConfig) {
	return func(config *smallben.RepositoryGormConfig) {
		config.Dialector = postgres.New(postgres.Config{Conn: faults.DB()})
		if db.sqlite() {
			config.Dialector = sqlite.New(sqlite.Config{Conn: faults.DB()})
		}
	}
}

// refill brings jobs 1 to 9 to their first state.
func refill(t testing.TB, db *database) {
	t.Helper()
	db.exec(t, "DELETE FROM jobs")
	for _, row := range rawJobs(methodRows...) {
		db.put(t, row)
	}
}

// TestAnErrorIsTrueWhateverFails makes each operation of each call fail, in each
// way. Nil must mean that the write happened, an error that it did not.
func TestAnErrorIsTrueWhateverFails(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		for name, mode := range map[string]faultsql.Mode{"before": faultsql.Before, "after": faultsql.After, "bad connection": faultsql.BadConn, "midway": faultsql.Midway} {
			t.Run(name, func(t *testing.T) {
				faults, patient := faulty(t, db)
				for method, call := range methods {
					failEach(t, db, faults, mode, false, method, func() error { return call(t, patient) })
				}
			})
			t.Run(name+" for good", func(t *testing.T) {
				faults, patient := faulty(t, db)
				hasty := db.open(t, over(db, faults), timeout(100*time.Millisecond))
				for method, call := range methods {
					failEach(t, db, faults, mode, true, method, func() error { return call(t, hasty) })
					refill(t, db)
					require.NoError(t, call(t, patient), method)
				}
			})
		}
	})
}

// failEach makes the first, second, … operation of a call fail, until the call
// comes through without.
func failEach(t testing.TB, db *database, faults *faultsql.Faults, mode faultsql.Mode, persistent bool, method string, call func() error) {
	t.Helper()
	isRead := strings.HasPrefix(method, "Get") || method == "ListJobs"
	for n := 1; ; n++ {
		refill(t, db)
		before := db.dump(t)
		faults.FailNth(n, mode, persistent)
		err := call()
		fired := faults.Fired()
		faults.Heal()
		changed := !slices.Equal(before, db.dump(t))
		switch {
		case err == nil:
			require.Equal(t, !isRead, changed, "%s, operation %d: no error", method, n)
		case errors.Is(err, smallben.ErrOutcomeUnknown):
			require.False(t, isRead, method)
			requireSettles(t, err)
		default:
			require.False(t, changed, "%s, operation %d: %v", method, n, err)
		}
		if fired == 0 {
			return
		}
	}
}

// requireSettles waits until the outcome of a write is settled.
func requireSettles(t testing.TB, outcome error) {
	t.Helper()
	require.Eventually(t, func() bool {
		settled, err := smallben.Settled(outcome)
		return err == nil && settled
	}, 2*time.Minute, 10*time.Millisecond)
}

// TestAHangEndsWithTheTimeout makes each operation of each call hang.
func TestAHangEndsWithTheTimeout(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		for name, mode := range map[string]faultsql.Mode{"before": faultsql.Hang, "after": faultsql.HangAfter} {
			t.Run(name, func(t *testing.T) {
				faults, _ := faulty(t, db)
				hasty := db.open(t, over(db, faults), timeout(100*time.Millisecond))
				for method, call := range methods {
					failEach(t, db, faults, mode, false, method, func() error {
						start := time.Now()
						err := call(t, hasty)
						require.Less(t, time.Since(start), defaultTimeout)
						return err
					})
				}
			})
		}
	})
}

// overProxy opens a repository with jobs 1 to 9 that reaches PostgreSQL through
// a proxy.
func overProxy(t *testing.T, limit time.Duration) (*database, *pgtest.Proxy, *smallben.RepositoryGorm) {
	t.Helper()
	t.Parallel()
	db := newPostgres(t)
	db.open(t)
	refill(t, db)
	proxy := pgtest.NewProxy(t, db.dsn)
	r, _ := testkit.OpenHasty(t, postgres.Open(proxy.DSN()), limit)
	t.Cleanup(func() { _ = r.Close() })
	return db, proxy, r
}

func writes() map[string]func(t testing.TB, r smallben.Repository) error {
	writing := make(map[string]func(t testing.TB, r smallben.Repository) error)
	for name, call := range methods {
		if !strings.HasPrefix(name, "Get") && name != "ListJobs" {
			writing[name] = call
		}
	}
	return writing
}

func TestACommitWhoseReplyIsLostIsASuccess(t *testing.T) {
	db, proxy, r := overProxy(t, 0)
	for name, call := range writes() {
		refill(t, db)
		before := db.dump(t)
		proxy.DropAfterCommit()
		require.NoError(t, call(t, r), name)
		require.NotEqual(t, before, db.dump(t), name)
	}
}

func TestACommitThatArrivesLateIsAwaited(t *testing.T) {
	db, proxy, r := overProxy(t, 0)
	for name, call := range writes() {
		refill(t, db)
		before := db.dump(t)
		proxy.HoldCommit(300 * time.Millisecond)
		require.NoError(t, call(t, r), name)
		require.NotEqual(t, before, db.dump(t), name)
	}
}

func TestACommitThatArrivesTooLateHasAnUnknownOutcomeUntilItDoes(t *testing.T) {
	db, proxy, r := overProxy(t, 2*time.Second)
	before := db.dump(t)
	const late = 4 * time.Second
	begun := time.Now()
	proxy.HoldCommit(late)
	err := testkit.Patiently(func() error { return r.PauseJobs(rawJobs(1)) })
	require.ErrorIs(t, err, smallben.ErrOutcomeUnknown)
	require.ErrorContains(t, err, "pause jobs: outcome of the write unknown: commit: ")
	settled, settledErr := smallben.Settled(err)
	if time.Since(begun) < late {
		require.NoError(t, settledErr)
		require.False(t, settled)
	}
	requireSettles(t, err)
	require.NotEqual(t, before, db.dump(t))
}

func TestACommitThatNeverArrivesHasAnUnknownOutcomeUntilTheServerAnswers(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	db.open(t)
	refill(t, db)
	before := db.dump(t)
	proxy := pgtest.NewProxy(t, db.dsn)
	faults, err := faultsql.Postgres(proxy.DSN())
	require.NoError(t, err)
	r, _ := testkit.OpenHasty(t, postgres.New(postgres.Config{Conn: faults.DB()}), 2*time.Second)
	defer r.Close()
	faults.OnOp(func(op faultsql.Op) {
		if op.Kind == faultsql.Commit {
			proxy.BlackHole()
		}
	})
	err = testkit.Patiently(func() error { return r.PauseJobs(rawJobs(1)) })
	require.ErrorIs(t, err, smallben.ErrOutcomeUnknown)
	_, settledErr := smallben.Settled(err)
	require.Error(t, settledErr)
	proxy.Pass()
	requireSettles(t, err)
	require.Equal(t, before, db.dump(t))
}

func TestACrashDuringACommitIsToldAsItIs(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	db := newDatabase(t, "PostgreSQL", server.DSN(), "pgx")
	faults, r := faulty(t, db)
	refill(t, db)
	before := db.dump(t)
	require.NoError(t, db.pool.Close())
	faults.OnOp(func(op faultsql.Op) {
		if op.Kind == faultsql.Commit {
			faults.OnOp(nil)
			server.Restart()
		}
	})
	err := r.PauseJobs(rawJobs(1))
	require.Error(t, err)
	require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
	after := newDatabase(t, "PostgreSQL", server.DSN(), "pgx")
	require.Equal(t, before, after.dump(t))
}

func TestDeadConnectionsInThePoolFailNoCall(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	db.open(t)
	for name, call := range methods {
		refill(t, db)
		pool := newDatabase(t, "PostgreSQL", db.dsn, "pgx").pool
		pool.SetMaxIdleConns(8)
		r, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: postgres.New(postgres.Config{Conn: pool})})
		require.NoError(t, err)
		// Eight connections, all of which the server ends.
		conns := make([]*sql.Conn, 8)
		for i := range conns {
			conns[i], err = pool.Conn(t.Context())
			require.NoError(t, err)
			require.NoError(t, conns[i].PingContext(t.Context()))
		}
		for _, conn := range conns {
			require.NoError(t, conn.Close())
		}
		require.Equal(t, 8, pool.Stats().Idle)
		db.exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = current_schema() AND pid <> pg_backend_pid()")
		require.NoError(t, call(t, r), name)
	}
}

// Benchmarks.

func benchmarkDatabases(b *testing.B, bench func(b *testing.B, db *database)) {
	b.Run("SQLite", func(b *testing.B) { bench(b, newSQLite(b)) })
	b.Run("PostgreSQL", func(b *testing.B) { bench(b, newPostgres(b)) })
}

// BenchmarkAddJobs adds 1,000 jobs at a time: with RepositoryGorm, and the same
// rows with GORM's CreateInBatches.
func BenchmarkAddJobs(b *testing.B) {
	benchmarkDatabases(b, func(b *testing.B, db *database) {
		jobs := manyJobs()[:1000]
		rows := built(b, jobs)
		b.Run("SmallBen", func(b *testing.B) {
			r := db.open(b)
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, r.AddJobs(jobs))
				b.StopTimer()
				db.exec(b, "DELETE FROM jobs")
				b.StartTimer()
			}
		})
		b.Run("GORM", func(b *testing.B) {
			g, err := gorm.Open(db.dialector(), &gorm.Config{Logger: logger.Discard})
			require.NoError(b, err)
			pool, err := g.DB()
			require.NoError(b, err)
			defer pool.Close()
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, g.CreateInBatches(slices.Clone(rows), 1000).Error)
				b.StopTimer()
				db.exec(b, "DELETE FROM jobs")
				b.StartTimer()
			}
		})
	})
}

func BenchmarkListJobs30000(b *testing.B) {
	benchmarkDatabases(b, func(b *testing.B, db *database) {
		r := db.open(b)
		require.NoError(b, r.AddJobs(manyJobs()[:30_000]))
		b.ReportAllocs()
		for b.Loop() {
			require.Len(b, list(b, r), 30_000)
		}
	})
}

func BenchmarkGetAllJobsToExecute30000(b *testing.B) {
	benchmarkDatabases(b, func(b *testing.B, db *database) {
		r := db.open(b)
		require.NoError(b, r.AddJobs(manyJobs()[:30_000]))
		b.ReportAllocs()
		for b.Loop() {
			_, err := r.GetAllJobsToExecute()
			require.NoError(b, err)
		}
	})
}

// BenchmarkChanges15000 makes each change to every other one of 30,000 jobs.
func BenchmarkChanges15000(b *testing.B) {
	benchmarkDatabases(b, func(b *testing.B, db *database) {
		r := db.open(b)
		require.NoError(b, r.AddJobs(manyJobs()[:30_000]))
		var jobs []smallben.JobWithSchedule
		for i := 0; i < 30_000; i += 2 {
			jobs = append(jobs, manyJobs()[i])
		}
		rows := built(b, jobs)
		for name, change := range map[string]func() error{
			"PauseJobs":  func() error { return r.PauseJobs(rows) },
			"ResumeJobs": func() error { return r.ResumeJobs(jobs) },
			"SetCronId":  func() error { return r.SetCronId(jobs) },
			"Update":     func() error { return r.SetCronIdAndChangeScheduleAndJobInput(jobs) },
		} {
			b.Run(name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					require.NoError(b, change())
				}
			})
		}
	})
}

// Package testkit holds what the tests of this module share: jobs to run,
// repositories to run them on, and the invariant that holds after every call.
package testkit

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/nbena/smallben/internal/timetable"
	"github.com/nbena/smallben/smallbentest"
)

// parallel is how many tests run at once, unless -parallel says otherwise. Most of
// them wait for a database, a process or a timeout, and use no processor.
const parallel = 8

// Main runs the tests of a package, which fail if goroutines are left behind.
func Main(m *testing.M) {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if !asked {
		if err := flag.Set("test.parallel", strconv.Itoa(parallel)); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	pgtest.Stop()
	// pgx closes a connection that does not answer in the background, and reads from
	// it meanwhile.
	closing := goleak.IgnoreAnyFunction("github.com/jackc/pgx/v5/pgconn.(*PgConn).asyncClose.func1")
	reading := goleak.IgnoreAnyFunction("github.com/jackc/pgx/v5/pgconn/internal/bgreader.(*BGReader).bgRead")
	// GORM's store of prepared statements never ends, and dbresolver always has one.
	storing := goleak.IgnoreAnyFunction("gorm.io/gorm/internal/lru.NewLRU[...].func1")
	if err := goleak.Find(closing, reading, storing); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// OpenSQLite opens a repository on a file, which the test's end closes.
func OpenSQLite(t testing.TB, path string) *smallben.RepositoryGorm {
	t.Helper()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: sqlite.Open(path)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = repository.Close() })
	return repository
}

// Create makes a SmallBen that the test's end stops.
func Create(t testing.TB, repository smallben.Repository, config *smallben.Config) *smallben.SmallBen {
	t.Helper()
	s := smallben.New(repository, config)
	t.Cleanup(s.Stop)
	return s
}

// OpenPostgres opens a repository on a database of its own, which the test's end
// closes.
func OpenPostgres(t testing.TB) *smallben.RepositoryGorm {
	t.Helper()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: postgres.Open(pgtest.DSN(t))})
	require.NoError(t, err)
	t.Cleanup(func() { _ = repository.Close() })
	return repository
}

// EachRepository runs a test in memory, on SQLite and on PostgreSQL.
func EachRepository(t *testing.T, test func(t *testing.T, repository smallben.Repository)) {
	t.Helper()
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, smallbentest.NewMemoryRepository())
	})
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		test(t, OpenSQLite(t, filepath.Join(t.TempDir(), "jobs.db")))
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		test(t, OpenPostgres(t))
	})
}

// Started starts a SmallBen that the test's end stops, after a last look at the
// invariant.
func Started(t testing.TB, repository smallben.Repository, config smallben.SchedulerConfig) *smallben.SmallBen {
	t.Helper()
	s := Create(t, repository, &smallben.Config{SchedulerConfig: config, Logger: Quiet})
	require.NoError(t, s.Start())
	t.Cleanup(func() {
		if !t.Failed() {
			CheckInvariant(t, s, repository)
		}
	})
	return s
}

// Gauges returns the metrics of s, summed over job types: the name, and the values
// of the other labels after commas.
func Gauges(t testing.TB, s *smallben.SmallBen) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	require.NoError(t, s.RegisterMetrics(registry))
	families, err := registry.Gather()
	require.NoError(t, err)
	values := make(map[string]float64)
	for _, family := range families {
		for _, metric := range family.Metric {
			name := family.GetName()
			for _, label := range metric.Label {
				if label.GetName() != "job_type" {
					name += "," + label.GetValue()
				}
			}
			switch {
			case metric.Gauge != nil:
				values[name] += metric.Gauge.GetValue()
			case metric.Counter != nil:
				values[name] += metric.Counter.GetValue()
			case metric.Histogram != nil:
				values[name] += float64(metric.Histogram.GetSampleCount())
			}
		}
	}
	return values
}

// CheckInvariant is what holds after every call: the rows that are neither
// paused nor undecodable are the entries, with their expression, input and cron
// id, and each row counts in one gauge.
func CheckInvariant(t testing.TB, s *smallben.SmallBen, repository smallben.Repository) {
	t.Helper()
	rows, err := repository.ListJobs(&smallben.ListJobsOptions{})
	require.NoError(t, err)
	want := make(map[int64]insides.Entry)
	var paused, undecodable int
	numbers := make(map[int64]int64)
	counted, held := insides.Pages(s)
	for _, row := range rows {
		if _, err := row.ToJobWithSchedule(); err != nil {
			undecodable++
			continue
		}
		if row.Paused {
			paused++
			continue
		}
		want[row.ID] = insides.Entry{CronID: row.CronID, Expression: row.CronExpression, StoredInput: row.SerializedJobInput}
		if counted != nil {
			assert.Positive(t, row.CronID, "the cron id of job %d", row.ID)
			assert.LessOrEqual(t, row.CronID, int64(math.MaxInt32))
			other, taken := numbers[row.CronID]
			assert.False(t, taken, "jobs %d and %d share cron id %d", other, row.ID, row.CronID)
			numbers[row.CronID] = row.ID
		}
	}
	entries := insides.Entries(s)
	assert.Equal(t, want, entries)
	values := Gauges(t, s)
	assert.EqualValues(t, len(want), values["smallben_scheduler_jobs_not_paused"])
	assert.EqualValues(t, paused, values["smallben_scheduler_jobs_paused"])
	assert.EqualValues(t, undecodable, values["smallben_scheduler_jobs_undecodable"])
	assert.EqualValues(t, len(rows), values["smallben_scheduler_jobs_total"])
	assert.Zero(t, values["smallben_scheduler_unsettled_writes"])
	assert.Equal(t, counted, held)
	if counted != nil {
		inPages := 0
		for _, n := range counted {
			assert.LessOrEqual(t, n, timetable.PageSize)
			inPages += n
		}
		assert.Equal(t, len(entries), inPages)
	}
}

// ErrDown is the error of a database that a test has fail.
var ErrDown = errors.New("the database is down")

// Bubble runs a test in which time is fake and starts on a whole minute.
func Bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, test)
}

// Pass lets fake time pass, and then waits for what it started.
func Pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

package smallben_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/pgtest"
)

// rowsPerStatement is how many rows one statement takes at least, while they are
// small.
const (
	rowsPerInsert = 1000
	rowsPerChange = 10_000
)

// growing are n jobs of two groups.
func growing(n int) []smallben.Job {
	jobs := make([]smallben.Job, n)
	for i := range jobs {
		jobs[i] = smallben.Job{
			ID: int64(i + 1), GroupID: int64(i % 2), Job: idle(),
			CronExpression: fmt.Sprintf("%d %d * * *", i%60, i/60%24),
			JobInput:       map[string]any{"to": "ops@example.com"},
		}
	}
	return jobs
}

func TestStatementsGrowWithTheChunksAndNotWithTheJobs(t *testing.T) {
	t.Parallel()
	const many = rowsPerChange + 1
	run := func(t *testing.T, faults *faultsql.Faults, dialector gorm.Dialector) {
		one, all := countStatements(t, faults, dialector, 1), countStatements(t, faults, dialector, many)
		for operation, count := range all {
			perStatement := rowsPerChange
			if operation == "AddJobs" {
				perStatement = rowsPerInsert
			}
			assert.Equal(t, one[operation]+(many-1)/perStatement, count, operation)
		}
	}
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		faults := faultsql.SQLite(filepath.Join(t.TempDir(), "jobs.db"))
		t.Cleanup(func() { _ = faults.DB().Close() })
		run(t, faults, &sqlite.Dialector{Conn: faults.DB()})
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		faults, err := faultsql.Postgres(pgtest.DSN(t))
		require.NoError(t, err)
		t.Cleanup(func() { _ = faults.DB().Close() })
		run(t, faults, postgres.New(postgres.Config{Conn: faults.DB()}))
	})
}

// countStatements makes n jobs, lets each operation change all of them, deletes
// them, and returns how many statements each operation took. It requires that
// each is one transaction.
func countStatements(t *testing.T, faults *faultsql.Faults, dialector gorm.Dialector, n int) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector})
	require.NoError(t, err)
	s := started(t, repository, smallben.SchedulerConfig{})
	count := func(operation string, call func() error) {
		faults.Reset()
		require.NoError(t, call(), operation)
		counts[operation] = faults.Count(faultsql.Exec, faultsql.Query, faultsql.Prepare)
		require.Equal(t, 1, faults.Count(faultsql.Begin), operation)
		require.Equal(t, 1, faults.Count(faultsql.Commit), operation)
	}
	everything := &smallben.PauseResumeOptions{}
	updates := make([]smallben.UpdateOption, n)
	for i := range updates {
		updates[i] = smallben.UpdateOption{JobID: int64(i + 1), CronExpression: ptr("5 5 * * *"), JobOtherInputs: &map[string]any{"n": i}}
	}

	count("AddJobs", func() error { return s.AddJobs(growing(n)) })
	s.Stop()
	_, err = faults.DB().Exec("UPDATE jobs SET cron_id = 0")
	require.NoError(t, err)
	count("Start", s.Start)
	count("PauseJobs", func() error { return s.PauseJobs(everything) })
	count("ResumeJobs", func() error { return s.ResumeJobs(everything) })
	count("UpdateJobs", func() error { return s.UpdateJobs(updates) })
	require.Len(t, smallben.Entries(s), n)
	count("DeleteJobs", func() error { return s.DeleteJobs(&smallben.DeleteOptions{}) })
	return counts
}

func TestAnAddOrARemovalSortsAtMostOnePage(t *testing.T) {
	t.Parallel()
	const size = smallben.PageSize
	repository := newMemoryRepository()
	s := started(t, repository, smallben.SchedulerConfig{})
	jobs := growing(9*size + 7)
	// cron sorts and copies what one cron.Cron holds.
	check := func(live, mostPages int) {
		t.Helper()
		counted, held := smallben.Pages(s)
		require.Equal(t, counted, held)
		sum := 0
		for _, n := range held {
			require.LessOrEqual(t, n, size)
			require.Positive(t, n)
			sum += n
		}
		require.Equal(t, live, sum)
		require.LessOrEqual(t, len(held), mostPages)
	}
	added := 0
	for _, n := range []int{1, 1, size - 1, size, size + 1, 2*size - 1, 7, 2 * size} {
		require.NoError(t, s.AddJobs(jobs[added:added+n]))
		added += n
		check(added, added/size+2)
	}
	odd := &smallben.PauseResumeOptions{GroupIDs: []int64{1}}
	for range 2 {
		require.NoError(t, s.PauseJobs(odd))
		check((added+1)/2, 2*added/size+2)
		require.NoError(t, s.ResumeJobs(odd))
		check(added, 2*added/size+2)
	}
	for id := range int64(size) {
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{id + 1}}}))
	}
	check(added-size, 2*added/size+2)
	// What has room takes the next.
	counted, _ := smallben.Pages(s)
	room := len(counted)*size - (added - size)
	for _, job := range jobs[added : added+min(room, len(jobs)-added)] {
		require.NoError(t, s.AddJobs([]smallben.Job{job}))
	}
	again, _ := smallben.Pages(s)
	require.Len(t, again, len(counted))
	require.GreaterOrEqual(t, slices.Max(again), slices.Max(counted))
	require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
	check(0, 0)
}

package test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/pgtest"
)

func TestStartAndStopFromManyGoroutines(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := create(t, repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}})
		h := newHeart()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", h.probe), job(2, "@yearly", idle())}))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		before := changes(nil, snapshot(t, repository))
		var group sync.WaitGroup
		for i := range 10 {
			group.Go(func() {
				for n := range 50 {
					if (i+n)%2 == 0 {
						assert.NoError(t, s.Start())
					} else {
						s.Stop()
					}
				}
			})
		}
		group.Wait()
		s.Stop()
		counted, _ := insides.Pages(s)
		require.Nil(t, counted)
		require.NoError(t, s.Start())
		checkInvariant(t, s, repository)
		require.Equal(t, before, changes(nil, snapshot(t, repository)), "nothing but cron ids is written")
		h.beatsOn(t)
	})
}

// Each run must come from its own session: after Stop nothing starts, and after
// Start nothing starts twice.
func TestATickRunsOnceHoweverOftenSmallBenWasRestarted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
		r := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", r)}))
		for range 50 {
			var group sync.WaitGroup
			for range 10 {
				group.Go(func() { assert.NoError(t, s.Start()) })
			}
			group.Wait()
			pass(time.Minute)
			assert.Equal(t, 1, r.Count())
			for range 10 {
				group.Go(s.Stop)
			}
			group.Wait()
			pass(time.Minute)
			assert.Zero(t, r.Count())
		}
	})
}

func TestStartFailsWhileTheDatabaseIsDownAndSucceedsOnceItIsUp(t *testing.T) {
	t.Parallel()
	t.Run("PostgreSQL stopped", func(t *testing.T) {
		t.Parallel()
		server := pgtest.Start(t)
		db := openSQLDB(t, "pgx", server.DSN())
		t.Cleanup(func() { assert.NoError(t, db.Close()) })
		repository := openGorm(t, onPostgres(db), 0)
		failsUntil(t, repository, db, func(t *testing.T) (up func(t *testing.T)) {
			server.StopImmediate()
			_, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: onPostgres(db)})
			require.ErrorContains(t, err, "open repository: ")
			return func(*testing.T) { server.StartAgain() }
		})
	})
	t.Run("PostgreSQL does not answer", func(t *testing.T) {
		t.Parallel()
		dsn := pgtest.DSN(t)
		proxy := pgtest.NewProxy(t, dsn)
		db, pool := openSQLDB(t, "pgx", dsn), openSQLDB(t, "pgx", proxy.DSN())
		t.Cleanup(func() { assert.NoError(t, errors.Join(pool.Close(), db.Close())) })
		repository, timeout := openHasty(t, onPostgres(pool), time.Second)
		failsUntil(t, repository, db, func(t *testing.T) (up func(t *testing.T)) {
			proxy.BlackHole()
			_, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: onPostgres(pool), Timeout: timeout})
			require.ErrorContains(t, err, "open repository: ")
			return func(*testing.T) { proxy.Pass() }
		})
	})
	t.Run("SQLite moved away", func(t *testing.T) {
		t.Parallel()
		st, path, pool := onFile(t, 30*time.Second, "")
		failsUntil(t, st.repository, nil, func(t *testing.T) (up func(t *testing.T)) {
			pool.SetMaxIdleConns(-1)
			require.NoError(t, os.Rename(path, path+".away"))
			require.NoError(t, os.Mkdir(path, 0o700))
			return func(t *testing.T) {
				require.NoError(t, os.Remove(path))
				require.NoError(t, os.Rename(path+".away", path))
			}
		})
	})
}

func failsUntil(t *testing.T, repository smallben.Repository, fill *sql.DB, down func(t *testing.T) (up func(t *testing.T))) {
	t.Helper()
	if fill != nil {
		seed(t, openGorm(t, onPostgres(fill), 0), fill)
	}
	s := create(t, repository, &smallben.Config{Logger: quiet})
	up := down(t)
	for range 2 {
		begun := time.Now()
		err := s.Start()
		require.ErrorContains(t, err, "start: ")
		require.Less(t, time.Since(begun), unhurried)
		counted, _ := insides.Pages(s)
		require.Nil(t, counted)
		require.Zero(t, gauges(t, s)["smallben_scheduler_jobs_total"])
	}
	up(t)
	inTime(t, s.Start)
	require.Len(t, insides.Entries(s), 5)
	inTime(t, func() error {
		_, err := repository.ListJobs(nil)
		return err
	})
	checkInvariant(t, s, repository)
}

// round uses everything that a service does.
func round(t testing.TB, s *smallben.SmallBen) {
	t.Helper()
	require.NoError(t, s.Start())
	jobs := make([]smallben.Job, 300) // more than a page
	for i := range jobs {
		jobs[i] = job(int64(i+1), "* * * * * *", idle())
		jobs[i].JobInput = map[string]any{"n": i}
	}
	half := smallben.PauseResumeOptions{GroupIDs: []int64{0, 2, 4, 6, 8}}
	require.NoError(t, s.AddJobs(jobs))
	require.NoError(t, s.PauseJobs(&half))
	require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("@daily")}, {JobID: 2, JobOtherInputs: &map[string]any{}}}))
	require.NoError(t, s.ResumeJobs(&half))
	_, err := s.ListJobs(nil)
	require.NoError(t, err)
	gauges(t, s)
	s.Stop()
	require.NoError(t, s.Start())
	require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
	s.Stop()
}

// The two tests below do not run beside others, whose goroutines and memory they
// would see.

func TestStopLeavesNoGoroutine(t *testing.T) {
	for name, open := range map[string]func(testing.TB) smallben.Repository{
		"memory":     func(testing.TB) smallben.Repository { return newMemoryRepository() },
		"SQLite":     func(t testing.TB) smallben.Repository { return openSQLite(t, filepath.Join(t.TempDir(), "jobs.db")) },
		"PostgreSQL": func(t testing.TB) smallben.Repository { return openPostgres(t) },
	} {
		t.Run(name, func(t *testing.T) {
			repository := open(t)
			s := create(t, repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}})
			round(t, s)
			before := goleak.IgnoreCurrent() // those of the pool
			for range 3 {
				round(t, s)
				assert.NoError(t, goleak.Find(before))
			}
		})
	}
}

func TestNeitherHeapNorGoroutinesGrowFromRoundToRound(t *testing.T) {
	repository := newMemoryRepository()
	s := create(t, repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}})
	measure := func() (heap uint64, goroutines int) {
		var stats runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc, runtime.NumGoroutine()
	}
	for range 5 {
		round(t, s)
	}
	heap, goroutines := measure()
	for range 20 {
		round(t, s)
	}
	nowHeap, nowGoroutines := measure()
	for deadline := time.Now().Add(time.Minute); (nowHeap > heap+256<<10 || nowGoroutines > goroutines) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		nowHeap, nowGoroutines = measure()
	}
	require.LessOrEqual(t, nowGoroutines, goroutines)
	require.LessOrEqual(t, nowHeap, heap+256<<10, "bytes after 20 rounds more")
}

package smallben_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/nbena/smallben/internal/testkit"
)

// calls are all methods that take a context.
func calls(s *smallben.SmallBen) map[string]func(ctx context.Context) error {
	expression := "@hourly"
	all := &smallben.PauseResumeOptions{}
	return map[string]func(ctx context.Context) error{
		"Start": s.StartContext,
		"Add": func(ctx context.Context) error {
			return s.AddJobsContext(ctx, []smallben.Job{job(9, "@yearly", idle())})
		},
		"Upsert": func(ctx context.Context) error {
			return s.UpsertJobsContext(ctx, []smallben.Job{job(1, "@monthly", idle())})
		},
		"Update": func(ctx context.Context) error {
			return s.UpdateJobsContext(ctx, []smallben.UpdateOption{{JobID: 1, CronExpression: &expression}})
		},
		"Pause":   func(ctx context.Context) error { return s.PauseJobsContext(ctx, all) },
		"Resume":  func(ctx context.Context) error { return s.ResumeJobsContext(ctx, all) },
		"Delete":  func(ctx context.Context) error { return s.DeleteJobsContext(ctx, &smallben.DeleteOptions{}) },
		"Trigger": func(ctx context.Context) error { return s.TriggerJobsContext(ctx, all) },
		"List":    func(ctx context.Context) error { _, err := s.ListJobsContext(ctx, nil); return err },
		"Runs":    func(ctx context.Context) error { _, err := s.ListRunsContext(ctx, nil); return err },
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	for name, record := range map[string]bool{"recorded": true, "not recorded": false} {
		t.Run(name, func(t *testing.T) {
			eachShared(t, func(t *testing.T, db *database) {
				s := testkit.Create(t, db.open(t), recordingConfig(func(c *smallben.Config) { c.Runs.Record = record }))
				require.NoError(t, s.Start())
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}))
				ended, cancel := context.WithCancel(t.Context())
				cancel()
				for name, call := range calls(s) {
					if name == "Start" || name == "Runs" && !record {
						continue
					}
					err := call(ended)
					assert.ErrorIs(t, err, context.Canceled, name)
					assert.NotErrorIs(t, err, smallben.ErrOutcomeUnknown, name)
				}
				s.Stop()
				require.ErrorIs(t, s.StartContext(ended), context.Canceled)
				require.NoError(t, s.StartContext(t.Context()))
				jobs, err := s.ListJobs(nil)
				require.NoError(t, err)
				require.Len(t, jobs, 1)
				for name, call := range calls(s) {
					if name == "Runs" && !record || name == "Delete" {
						continue
					}
					assert.NoError(t, call(t.Context()), name)
				}
			})
		})
	}
}

// An operator's session may hold a lock on the table of processes.
func TestAStartThatWaitsToJoinTheRecordEndsWithItsContext(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	s := testkit.Create(t, db.open(t), recordingConfig())
	require.NoError(t, s.Start())
	s.Stop()
	tx, err := db.pool.Begin()
	require.NoError(t, err)
	_, err = tx.Exec("LOCK TABLE smallben_processes IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan error, 1)
	go func() { started <- s.StartContext(ctx) }()
	for waiting := "0"; waiting == "0"; time.Sleep(time.Millisecond) {
		waiting = db.strings(t, "SELECT count(*)::text FROM pg_stat_activity WHERE application_name = current_schema() AND wait_event_type = 'Lock'")[0]
	}
	cancel()
	require.ErrorIs(t, <-started, context.Canceled)
	require.NoError(t, tx.Rollback())
	require.NoError(t, s.Start())
}

func TestTenCallsOnASilentDatabaseReturnWithinOneTimeout(t *testing.T) {
	t.Parallel()
	for name, record := range map[string]bool{"recorded": true, "not recorded": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := pgtest.NewProxy(t, pgtest.DSN(t))
			repository, timeout := testkit.OpenHasty(t, postgres.Open(proxy.DSN()), 5*time.Second)
			t.Cleanup(func() { _ = repository.Close() })
			s := testkit.Create(t, repository, recordingConfig(func(c *smallben.Config) { c.Runs.Record = record }))
			testkit.InTime(t, s.Start)
			testkit.InTime(t, func() error { return s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}) })
			proxy.BlackHole()
			start := time.Now()
			var waiting sync.WaitGroup
			for name, call := range calls(s) {
				if name == "Start" || name == "Runs" && !record {
					continue // it is started
				}
				waiting.Go(func() {
					assert.Error(t, call(context.Background()), name)
					assert.Less(t, time.Since(start), 2*timeout, "%s waited for another, too", name)
				})
			}
			waiting.Wait()
			proxy.Pass()
		})
	}
}

// ctxKey is the key of a value of a context.
type ctxKey struct{}

// contextSeer is a plugin of GORM that notes a value of the contexts of statements.
type contextSeer struct{ seen atomic.Int64 }

func (*contextSeer) Name() string { return "seer" }

func (c *contextSeer) Initialize(db *gorm.DB) error {
	look := func(tx *gorm.DB) {
		if tx.Statement.Context.Value(ctxKey{}) != nil {
			c.seen.Add(1)
		}
	}
	return errors.Join(db.Callback().Raw().Before("*").Register("seer:raw", look), db.Callback().Row().Before("*").Register("seer:row", look))
}

func TestPluginsSeeTheContextOfACall(t *testing.T) {
	for name, record := range map[string]bool{"recorded": true, "not recorded": false} {
		t.Run(name, func(t *testing.T) {
			eachShared(t, func(t *testing.T, db *database) {
				seer := &contextSeer{}
				repository := db.open(t, func(config *smallben.RepositoryGormConfig) {
					config.Config.Plugins = map[string]gorm.Plugin{"seer": seer}
				})
				s := testkit.Create(t, repository, recordingConfig(func(c *smallben.Config) { c.Runs.Record = record }))
				require.NoError(t, s.Start())
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}))
				ctx := context.WithValue(t.Context(), ctxKey{}, true)
				for name, call := range calls(s) {
					if name == "Start" || name == "Delete" || name == "Runs" && !record {
						continue
					}
					before := seer.seen.Load()
					require.NoError(t, call(ctx), name)
					assert.Greater(t, seer.seen.Load(), before, name)
				}
			})
		})
	}
}

// overriding embeds a RepositoryGorm, and so has its WithContext.
type overriding struct {
	*smallben.RepositoryGorm
	pauses atomic.Int64
}

func (r *overriding) PauseJobs(jobs []smallben.RawJob) error {
	r.pauses.Add(1)
	return r.RepositoryGorm.PauseJobs(jobs)
}

func TestAContextLeavesOutNoMethodOfARepositoryThatEmbedsOurs(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *database) {
		repository := &overriding{RepositoryGorm: db.open(t)}
		s := testkit.Create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		require.NoError(t, s.PauseJobsContext(ctx, &smallben.PauseResumeOptions{}))
		require.Equal(t, int64(1), repository.pauses.Load())
	})
}

// An operator's session may hold a lock on the row of one job.
func TestALockOnOneRowHoldsUpNoChangeOfOthers(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	a := testkit.Create(t, db.open(t), recordingConfig())
	b := testkit.Create(t, db.open(t), recordingConfig())
	require.NoError(t, a.AddJobs([]smallben.Job{job(1, "@yearly", idle()), job(2, "@yearly", idle())}))
	tx, err := db.pool.Begin()
	require.NoError(t, err)
	_, err = tx.Exec("UPDATE jobs SET group_id = group_id WHERE id = 1")
	require.NoError(t, err)
	paused := make(chan error, 1)
	go func() { paused <- a.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}) }()
	for waiting := "0"; waiting == "0"; time.Sleep(time.Millisecond) {
		waiting = db.strings(t, "SELECT count(*)::text FROM pg_stat_activity WHERE application_name = current_schema() AND wait_event_type = 'Lock'")[0]
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	input := map[string]any{"a": 1}
	require.NoError(t, b.UpdateJobsContext(ctx, []smallben.UpdateOption{{JobID: 2, JobOtherInputs: &input}}))
	require.NoError(t, b.PauseJobsContext(ctx, &smallben.PauseResumeOptions{JobIDs: []int64{2}}))
	require.NoError(t, b.AddJobsContext(ctx, []smallben.Job{job(3, "@yearly", idle())}))
	require.NoError(t, b.DeleteJobsContext(ctx, &smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{3}}}))
	require.Empty(t, paused, "it waits")
	require.NoError(t, tx.Rollback())
	require.NoError(t, <-paused)
}

// Others lock the rows of a change in the meantime that were not there when it locked
// its own.
func TestChangesThatFindNewRowsDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	open := func(id int64) *smallben.SmallBen {
		s := testkit.Create(t, db.open(t), recordingConfig())
		require.NoError(t, s.AddJobs([]smallben.Job{job(id, "@yearly", idle())}))
		return s
	}
	a, b := open(8), open(9)
	tx, err := db.pool.Begin()
	require.NoError(t, err)
	_, err = tx.Exec("UPDATE smallben_ledger SET revision = revision")
	require.NoError(t, err)
	upserted := make(chan error, 2)
	upsert := func(s *smallben.SmallBen, expression, waiting string) {
		t.Helper()
		go func() { upserted <- s.UpsertJobs([]smallben.Job{job(1, expression, idle())}) }()
		require.Eventually(t, func() bool {
			return waiting == db.strings(t, "SELECT count(*)::text FROM pg_stat_activity WHERE application_name = current_schema() AND wait_event_type = 'Lock'")[0]
		}, time.Minute, 10*time.Millisecond)
	}
	upsert(a, "@yearly", "1")
	db.put(t, rawJob(1))
	upsert(b, "@monthly", "2")
	require.NoError(t, tx.Rollback())
	require.NoError(t, errors.Join(<-upserted, <-upserted))
}

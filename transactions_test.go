package smallben_test

import (
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/testkit"
)

// application is one that keeps customers beside its jobs.
type application struct {
	*database
	gorm   *gorm.DB
	record bool
}

// eachApplication runs a test on both databases, with and without the record of runs.
func eachApplication(t *testing.T, test func(t *testing.T, app *application)) {
	t.Helper()
	eachShared(t, func(t *testing.T, db *database) {
		for _, record := range []bool{false, true} {
			t.Run(fmt.Sprintf("Record=%t", record), func(t *testing.T) {
				own := db
				if record {
					own = newSQLiteWAL(t)
					if !db.sqlite() {
						own = newPostgres(t)
					}
				}
				test(t, newApplication(t, own, record))
			})
		}
	})
}

func newApplication(t testing.TB, db *database, record bool) *application {
	t.Helper()
	dialector := db.dialector()
	if db.sqlite() {
		dialector = sqlite.Open(db.dsn + "&_txlock=immediate")
	}
	app, err := gorm.Open(dialector, &gorm.Config{})
	require.NoError(t, err)
	pool, err := app.DB()
	require.NoError(t, err)
	t.Cleanup(func() { _ = pool.Close() })
	require.NoError(t, app.Exec("CREATE TABLE customers (id bigint PRIMARY KEY)").Error)
	return &application{db, app, record}
}

func (app *application) config() *smallben.Config {
	config := &smallben.Config{Logger: quiet}
	config.SchedulerConfig.WithSeconds = true
	config.Runs.Record = app.record
	if app.record {
		config.Runs.SyncInterval = 50 * time.Millisecond
	}
	return config
}

// start starts a process of the application.
func (app *application) start(t testing.TB) *smallben.SmallBen {
	t.Helper()
	s := create(t, app.open(t), app.config())
	require.NoError(t, s.Start())
	return s
}

// store is the record of runs of another process.
func (app *application) store(t testing.TB) smallben.RunStore {
	t.Helper()
	store := smallben.RunStoreOf(app.open(t))
	require.NoError(t, store.Open("UTC"))
	return store
}

// begin begins a transaction that inserts a customer. The test's end rolls it back.
func (app *application) begin(t testing.TB, customer int64) *gorm.DB {
	t.Helper()
	tx := app.gorm.Begin()
	require.NoError(t, tx.Error)
	t.Cleanup(func() { tx.Rollback() })
	require.NoError(t, tx.Exec("INSERT INTO customers VALUES (?)", customer).Error)
	return tx
}

// requireAgreement waits until memory agrees with the rows.
func requireAgreement(t testing.TB, repository smallben.Repository, processes ...*smallben.SmallBen) {
	t.Helper()
	rows, err := repository.ListJobs(&smallben.ListJobsOptions{Paused: ptr(false)})
	require.NoError(t, err)
	want := make(map[int64]string)
	for _, row := range rows {
		want[row.ID] = row.CronExpression + row.SerializedJobInput
	}
	for _, s := range processes {
		require.Eventually(t, func() bool { return assert.ObjectsAreEqual(want, entriesOf(s)) }, time.Minute, 10*time.Millisecond)
	}
}

func entriesOf(s *smallben.SmallBen) map[int64]string {
	entries := make(map[int64]string)
	for id, entry := range insides.Entries(s) {
		entries[id] = entry.Expression + entry.StoredInput
	}
	return entries
}

func TestARowOfTheApplicationAndItsJobsAreCommittedTogether(t *testing.T) {
	eachApplication(t, func(t *testing.T, app *application) {
		s := app.start(t)
		repository := app.open(t)
		tx := app.begin(t, 7)
		require.NoError(t, s.AddJobsTx(tx, []smallben.Job{job(1, "@daily", idle()), job(2, "@hourly", idle())}))
		require.NoError(t, s.Committed())
		assert.Empty(t, insides.Entries(s))
		assert.Empty(t, list(t, repository))

		require.NoError(t, tx.Commit().Error)
		require.NoError(t, s.Committed())
		assert.Len(t, insides.Entries(s), 2)
		assert.Equal(t, []int64{1, 2}, rowIDs(list(t, repository)))
		requireAgreement(t, repository, s)
		if !app.record {
			checkInvariant(t, s, repository) // the cron ids are stored
		}
	})
}

func TestARolledBackTransactionChangesNothing(t *testing.T) {
	eachApplication(t, func(t *testing.T, app *application) {
		s := app.start(t)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
		before := app.dump(t)
		tx := app.begin(t, 7)
		require.NoError(t, s.AddJobsTx(tx, []smallben.Job{job(2, "@daily", idle())}))
		require.NoError(t, s.DeleteJobsTx(tx, &smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{1}}}))
		require.NoError(t, tx.Rollback().Error)
		require.NoError(t, s.Committed())
		assert.Equal(t, before, app.dump(t))
		assert.Contains(t, insides.Entries(s), int64(1))
		assert.Len(t, insides.Entries(s), 1)
		if app.record {
			assert.Equal(t, []string{"0"}, app.strings(t, "SELECT count(*) FROM smallben_outbox"))
		}
	})
}

func TestEveryChangeInATransactionIsFollowedByItself(t *testing.T) {
	eachApplication(t, func(t *testing.T, app *application) {
		processes := []*smallben.SmallBen{app.start(t)}
		s, repository := processes[0], app.open(t)
		var jobs []smallben.Job
		for id := range int64(6) {
			jobs = append(jobs, job(id+1, "@daily", idle()))
		}
		require.NoError(t, s.AddJobs(jobs))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{3}}))
		if app.record {
			processes = append(processes, app.start(t))
		}
		of := func(id int64) *smallben.PauseResumeOptions {
			return &smallben.PauseResumeOptions{JobIDs: []int64{id}}
		}
		tx := app.begin(t, 7)
		require.NoError(t, s.UpdateJobsTx(tx, []smallben.UpdateOption{{JobID: 1, CronExpression: ptr("@weekly")}, {JobID: 6, JobOtherInputs: &map[string]any{"n": 1}}}))
		require.NoError(t, s.PauseJobsTx(tx, of(2)))
		require.NoError(t, s.ResumeJobsTx(tx, of(3)))
		require.NoError(t, s.DeleteJobsTx(tx, &smallben.DeleteOptions{PauseResumeOptions: *of(4)}))
		require.NoError(t, s.UpsertJobsTx(tx, []smallben.Job{job(5, "@monthly", idle()), job(7, "@daily", idle())}))
		require.NoError(t, tx.Commit().Error)

		requireAgreement(t, repository, processes...)
		for _, s := range processes {
			entries := insides.Entries(s)
			assert.Equal(t, "@weekly", entries[1].Expression)
			assert.NotContains(t, entries, int64(2))
			assert.Contains(t, entries, int64(3))
			assert.NotContains(t, entries, int64(4))
			assert.Equal(t, "@monthly", entries[5].Expression)
			assert.Equal(t, `{"n":1}`, entries[6].StoredInput)
			assert.Contains(t, entries, int64(7))
			assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_jobs_paused"])
		}
		require.NoError(t, s.ResumeJobs(of(2)))
		requireAgreement(t, repository, processes...)
	})
}

func TestAChangeThatIsRefusedLeavesTheTransactionAsItWas(t *testing.T) {
	eachApplication(t, func(t *testing.T, app *application) {
		s := app.start(t)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
		tx := app.begin(t, 7)
		require.ErrorIs(t, s.AddJobsTx(tx, []smallben.Job{job(2, "@daily", idle()), job(1, "@daily", idle())}), smallben.ErrJobExists)
		require.ErrorIs(t, s.AddJobsTx(tx, []smallben.Job{job(2, "61 * * * *", idle())}), smallben.ErrInvalidJob)
		missing := &smallben.PauseResumeOptions{JobIDs: []int64{1, 9}}
		require.ErrorIs(t, s.PauseJobsTx(tx, missing), smallben.ErrJobNotFound)
		require.ErrorIs(t, s.ResumeJobsTx(tx, missing), smallben.ErrJobNotFound)
		require.ErrorIs(t, s.DeleteJobsTx(tx, &smallben.DeleteOptions{PauseResumeOptions: *missing}), gorm.ErrRecordNotFound)
		require.ErrorIs(t, s.UpdateJobsTx(tx, []smallben.UpdateOption{{JobID: 9, CronExpression: ptr("@daily")}}), smallben.ErrJobNotFound)
		require.NoError(t, s.AddJobsTx(tx, []smallben.Job{job(3, "@daily", idle())}))
		require.NoError(t, tx.Commit().Error)
		require.NoError(t, s.Committed())
		assert.Equal(t, []int64{1, 3}, rowIDs(list(t, app.open(t))))
		assert.Len(t, insides.Entries(s), 2)
		assert.Equal(t, []string{"7"}, app.strings(t, "SELECT CAST(id AS varchar(20)) FROM customers"))
	})
}

func TestTheErrorOfAnUpsertThatOnlyAddsNamesTheUpsert(t *testing.T) {
	eachApplication(t, func(t *testing.T, app *application) {
		s := app.start(t)
		app.exec(t, "CREATE UNIQUE INDEX one_job_a_group ON jobs (group_id)")
		twins := []smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}
		twins[0].GroupID, twins[1].GroupID = 5, 5
		tx := app.begin(t, 7)
		inTransaction := s.UpsertJobsTx(tx, twins)
		require.NoError(t, tx.Rollback().Error)
		for _, err := range []error{inTransaction, s.UpsertJobs(twins)} {
			require.ErrorContains(t, err, "upsert jobs: ")
			assert.NotContains(t, err.Error(), "add jobs")
		}
	})
}

func TestACommitThatItsProcessDoesNotSurviveIsFollowed(t *testing.T) {
	eachApplication(t, func(t *testing.T, app *application) {
		var living []*smallben.SmallBen
		if app.record {
			living = append(living, app.start(t))
		}
		dying := app.start(t)
		tx := app.begin(t, 7)
		require.NoError(t, dying.AddJobsTx(tx, []smallben.Job{job(1, "@daily", idle())}))
		dying.Stop()
		require.NoError(t, tx.Commit().Error)
		requireAgreement(t, app.open(t), append(living, app.start(t))...)
	})
}

func TestATransactionThatSpansAStartIsFollowed(t *testing.T) {
	eachApplication(t, func(t *testing.T, app *application) {
		app.start(t).Stop() // the tables are there
		s := create(t, app.open(t), app.config())
		tx := app.begin(t, 7)
		require.NoError(t, s.AddJobsTx(tx, []smallben.Job{job(1, "@daily", idle())}))
		if !app.sqlite() {
			require.NoError(t, s.Start())
			require.Empty(t, insides.Entries(s))
		}
		require.NoError(t, tx.Commit().Error)
		require.NoError(t, s.Start())
		requireAgreement(t, app.open(t), s)
		require.Len(t, insides.Entries(s), 1)
	})
}

func TestATransactionThatStaysOpenHoldsUpNobody(t *testing.T) {
	t.Parallel()
	for _, record := range []bool{false, true} {
		t.Run(fmt.Sprintf("Record=%t", record), func(t *testing.T) {
			t.Parallel()
			app := newApplication(t, newPostgres(t), record)
			one, two := app.start(t), app.start(t)
			runs := make(chan struct{}, 100)
			require.NoError(t, one.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle()),
				job(3, "* * * * * *", newProbe(func(*probe, smallben.CronJobInput) { runs <- struct{}{} }))}))
			tx := app.begin(t, 7)
			require.NoError(t, one.PauseJobsTx(tx, &smallben.PauseResumeOptions{JobIDs: []int64{1}}))
			require.NoError(t, one.AddJobsTx(tx, []smallben.Job{job(9, "@daily", idle())}))

			// A change that waits for the transaction comes to its timeout.
			for i, s := range []*smallben.SmallBen{one, two} {
				id := int64(10 + i)
				require.NoError(t, s.AddJobs([]smallben.Job{job(id, "@daily", idle())}))
				require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id, 2}}))
				require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id, 2}}))
				require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{id}}}))
				_, err := s.ListJobs(nil)
				require.NoError(t, err)
			}
			for len(runs) > 0 {
				<-runs
			}
			select {
			case <-runs:
			case <-time.After(time.Minute):
				require.Fail(t, "no tick was run")
			}
			require.NoError(t, tx.Commit().Error)
			requireAgreement(t, app.open(t), one)
		})
	}
}

func TestManyTransactionsOnAPoolOfFewConnectionsDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	for _, record := range []bool{false, true} {
		t.Run(fmt.Sprintf("Record=%t", record), func(t *testing.T) {
			t.Parallel()
			db := newPostgres(t)
			db.pool.SetMaxOpenConns(4)
			app := newApplication(t, db, record)
			over, err := gorm.Open(testkit.OnPostgres(db.pool), &gorm.Config{})
			require.NoError(t, err)
			s := create(t, app.open(t, func(c *smallben.RepositoryGormConfig) { c.Dialector = testkit.OnPostgres(db.pool) }), app.config())
			require.NoError(t, s.Start())
			var requests sync.WaitGroup
			failures := make(chan error, 20)
			for id := range int64(20) {
				requests.Go(func() {
					err := over.Transaction(func(tx *gorm.DB) error {
						return errors.Join(tx.Exec("INSERT INTO customers VALUES (?)", id).Error,
							s.AddJobsTx(tx, []smallben.Job{job(id+1, "@daily", idle())}))
					})
					failures <- errors.Join(err, s.Committed())
				})
			}
			requests.Wait()
			close(failures)
			for err := range failures {
				require.NoError(t, err)
			}
			requireAgreement(t, app.open(t), s)
			require.Len(t, insides.Entries(s), 20)
		})
	}
}

// TestChangesDoNotWaitForAPoolThatIsUsedUp has the application take every connection of
// a process that keeps one for heartbeats and one in reserve.
func TestChangesDoNotWaitForAPoolThatIsUsedUp(t *testing.T) {
	t.Parallel()
	const connections, own = 6, 2
	db := newPostgres(t)
	pool, err := sql.Open("pgx", db.dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pool.Close() })
	pool.SetMaxOpenConns(connections)
	repository := testkit.OpenGorm(t, testkit.OnPostgres(pool), 30*time.Second)
	s, other := create(t, repository, recordingConfig()), create(t, db.open(t), recordingConfig())
	require.NoError(t, errors.Join(s.Start(), other.Start()))
	require.Eventually(t, func() bool { return pool.Stats().InUse == own }, time.Minute, time.Millisecond)
	for range connections - own {
		conn, err := pool.Conn(t.Context())
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
	}
	waited := pool.Stats().WaitCount // the application may have, for what Start began

	require.NoError(t, other.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
	requireAgreement(t, db.open(t), s)
	runs := make(chan smallben.CronJobInput, 1)
	replaced := newProbe(func(_ *probe, input smallben.CronJobInput) { runs <- input })
	require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, "@daily", replaced), job(3, "@daily", idle())}))
	require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
	require.EqualValues(t, 1, (<-runs).JobID)
	require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1, 2}}))
	require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
	require.EqualValues(t, 1, (<-runs).JobID)
	require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
	require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 3, CronExpression: ptr("@hourly")}}))
	require.NoError(t, s.CancelRuns(&smallben.CancelRunsOptions{JobIDs: []int64{1}}))
	require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{1}}}))
	requireAgreement(t, db.open(t), s, other)
	require.Equal(t, waited, pool.Stats().WaitCount, "something waited for the pool")
}

func TestATickBetweenTheCallAndTheCommitRunsOnce(t *testing.T) {
	eachApplication(t, func(t *testing.T, app *application) {
		s := app.start(t)
		runs := make(chan smallben.CronJobInput, 10)
		probe := newProbe(func(_ *probe, input smallben.CronJobInput) { runs <- input })
		at := time.Now().Add(4 * time.Second).Truncate(time.Second).UTC() // the call has three seconds
		tx := app.begin(t, 7)
		require.NoError(t, s.AddJobsTx(tx, []smallben.Job{job(1, "@at "+at.Format(time.RFC3339), probe)}))
		<-time.After(time.Until(at.Add(100 * time.Millisecond)))
		require.NoError(t, tx.Commit().Error)
		require.NoError(t, s.Committed())
		input := <-runs
		assert.True(t, at.Equal(input.ScheduledAt))
		s.Stop()
		assert.Empty(t, runs)
	})
}

func TestNoClaimIsWonAfterTheCommitOfAPauseOrADelete(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		app := newApplication(t, db, true)
		s := app.start(t)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
		s.Stop()
		store := app.store(t)
		require.NoError(t, store.Join("p"))
		changes, err := store.Changes(0, nil)
		require.NoError(t, err)
		claim := func() []ledger.Result {
			var claims []ledger.Claim
			for _, id := range []int64{1, 2} {
				claims = append(claims, ledger.Claim{Key: ledger.Key{JobID: id, Tick: time.Now().UTC().Truncate(time.Microsecond), Attempt: 1}, Revision: changes.RevisionOf(id)})
			}
			results, err := store.Claim("p", claims)
			require.NoError(t, err)
			return results
		}
		require.Equal(t, []ledger.Result{ledger.Won, ledger.Won}, claim())
		tx := app.begin(t, 7)
		require.NoError(t, s.PauseJobsTx(tx, &smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		require.NoError(t, s.DeleteJobsTx(tx, &smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{2}}}))
		if !db.sqlite() {
			require.Equal(t, []ledger.Result{ledger.Won, ledger.Won}, claim(), "before the COMMIT")
		}
		require.NoError(t, tx.Commit().Error)
		require.Equal(t, []ledger.Result{ledger.Stale, ledger.Stale}, claim(), "nobody has followed yet")
	})
}

func TestAPauseInATransactionEndsTriggeredRunsThatWaitOfAJobThatIsPausedAlready(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		app := newApplication(t, db, true)
		s := app.start(t)
		require.NoError(t, s.AddJobs([]smallben.Job{startPaused(job(1, "@daily", idle()), true)}))
		s.Stop()
		store := app.store(t)
		_, err := store.Change(func(tx ledger.Tx) error {
			at := time.Now().UTC().Truncate(time.Microsecond)
			return tx.Record(nil, []ledger.Run{{Key: ledger.Key{JobID: 1, Tick: at, Triggered: true, Attempt: 1}, Outcome: ledger.Waiting, Due: at}})
		})
		require.NoError(t, err)
		tx := app.begin(t, 7)
		require.NoError(t, s.PauseJobsTx(tx, &smallben.PauseResumeOptions{}))
		require.NoError(t, tx.Commit().Error)
		_, _, err = store.TakeOutbox()
		require.NoError(t, err)
		assert.Equal(t, []string{"skipped"}, app.strings(t, "SELECT outcome FROM smallben_runs"))
	})
}

func TestFollowingATransactionKeepsAccountOfTheTicksBefore(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		app := newApplication(t, db, true)
		s := app.start(t)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle()), job(3, "@daily", idle()), job(4, "@daily", idle())}))
		s.Stop()
		store := app.store(t)
		before, err := store.Watermarks([]int64{1, 2, 3, 4})
		require.NoError(t, err)
		tx := app.begin(t, 7)
		require.NoError(t, s.UpdateJobsTx(tx, []smallben.UpdateOption{{JobID: 1, CronExpression: ptr("@weekly")}, {JobID: 2, JobOtherInputs: &map[string]any{}}}))
		require.NoError(t, s.PauseJobsTx(tx, &smallben.PauseResumeOptions{JobIDs: []int64{3}}))
		require.NoError(t, s.DeleteJobsTx(tx, &smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{4}}}))
		require.NoError(t, s.AddJobsTx(tx, []smallben.Job{job(5, "@daily", idle())}))
		require.NoError(t, tx.Commit().Error)

		revision, begun, err := store.TakeOutbox()
		require.NoError(t, err)
		require.Len(t, begun, 1)
		assert.EqualValues(t, 5, begun[0].JobID)
		spans, err := store.Closed(10)
		require.NoError(t, err)
		closed := make(map[int64]ledger.ClosedSpan)
		for _, span := range spans {
			assert.Equal(t, "@daily", span.Expression)
			assert.True(t, before[span.JobID-1].Until.Equal(span.After))
			closed[span.JobID] = span
		}
		require.Len(t, closed, 3)
		assert.True(t, closed[1].MakeUp)
		assert.False(t, closed[3].MakeUp)
		assert.Contains(t, closed, int64(4))
		after, err := store.Watermarks([]int64{1, 2, 3, 4, 5})
		require.NoError(t, err)
		require.Len(t, after, 4) // 4 is gone
		assert.True(t, after[0].Until.Equal(closed[1].Until))
		assert.True(t, after[1].Until.Equal(before[1].Until), "a new input does not touch ticks")
		assert.Greater(t, after[1].Revision, before[1].Revision)
		assert.True(t, after[3].Until.Equal(begun[0].Until))

		assert.Equal(t, after[0].Revision, revision)
		revision, begun, err = store.TakeOutbox()
		require.NoError(t, err)
		assert.Zero(t, revision)
		assert.Empty(t, begun)
	})
}

func TestWhatIsNoTransactionOfTheDatabaseIsRefused(t *testing.T) {
	eachApplication(t, func(t *testing.T, app *application) {
		s := app.start(t)
		add := func(tx *gorm.DB) error { return s.AddJobsTx(tx, []smallben.Job{job(1, "@daily", idle())}) }
		require.ErrorContains(t, add(nil), "the transaction is nil")
		require.ErrorContains(t, add(app.gorm), "no transaction is open")
		over := app.gorm.Begin()
		require.NoError(t, over.Rollback().Error)
		require.ErrorContains(t, add(over), "already been committed or rolled back")
		failed := app.gorm.Begin()
		_ = failed.AddError(errDown)
		require.ErrorIs(t, add(failed), errDown)
		failed.Rollback()
		other := newApplication(t, newSQLiteWAL(t), false)
		if app.sqlite() {
			other = newApplication(t, newPostgres(t), false)
		}
		require.ErrorContains(t, add(other.begin(t, 1)), "the transaction is on "+other.gorm.Name())
		assert.Empty(t, list(t, app.open(t)))
		assert.Empty(t, insides.Entries(s))
	})
}

func TestATransactionNeedsARepositoryGorm(t *testing.T) {
	t.Parallel()
	app := newApplication(t, newSQLiteWAL(t), false)
	s := create(t, newMemoryRecorder(), app.config())
	require.ErrorContains(t, s.AddJobsTx(app.begin(t, 1), []smallben.Job{job(1, "@daily", idle())}), "needs a RepositoryGorm")
}

func TestATransactionSaysThatTheOutboxIsMissing(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		app := newApplication(t, db, true)
		s := create(t, app.open(t), app.config())
		tx := app.begin(t, 7)
		require.ErrorContains(t, s.AddJobsTx(tx, []smallben.Job{job(1, "@daily", idle())}), "the table smallben_outbox is missing")
		require.NoError(t, tx.Commit().Error)
	})
}

func TestATransactionMayPrepareStatementsAndNestOthers(t *testing.T) {
	eachApplication(t, func(t *testing.T, app *application) {
		s := app.start(t)
		tx := app.gorm.Session(&gorm.Session{PrepareStmt: true}).Begin()
		t.Cleanup(func() { tx.Rollback() })
		require.NoError(t, s.AddJobsTx(tx, []smallben.Job{job(1, "@daily", idle())}))
		require.ErrorIs(t, tx.Transaction(func(inner *gorm.DB) error {
			require.NoError(t, s.AddJobsTx(inner, []smallben.Job{job(2, "@daily", idle())}))
			return errDown
		}), errDown)
		require.NoError(t, tx.Transaction(func(inner *gorm.DB) error {
			return s.AddJobsTx(inner, []smallben.Job{job(3, "@daily", idle())})
		}))
		require.NoError(t, tx.Commit().Error)
		require.NoError(t, s.Committed())
		requireAgreement(t, app.open(t), s)
		assert.Equal(t, []int64{1, 3}, rowIDs(list(t, app.open(t))))
	})
}

func TestTheTicksOfAJobThatATransactionAddedRunOnceAcrossProcesses(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		app := newApplication(t, db, true)
		one, two := app.start(t), app.start(t)
		runs := make(chan smallben.CronJobInput, 100)
		tx := app.begin(t, 7)
		require.NoError(t, one.AddJobsTx(tx, []smallben.Job{job(1, "* * * * * *", newProbe(func(_ *probe, input smallben.CronJobInput) { runs <- input }))}))
		require.NoError(t, tx.Commit().Error)
		require.NoError(t, one.Committed())
		for range 3 {
			<-runs
		}
		one.Stop()
		two.Stop()
		recorded, err := one.ListRuns(nil)
		require.NoError(t, err)
		assert.Len(t, recorded, 3+len(runs))
		for i, run := range recorded[1:] {
			assert.Equal(t, smallben.OutcomeOK, run.Outcome)
			assert.Equal(t, time.Second, recorded[i].Tick.Sub(run.Tick))
		}
	})
}

// formerJobs is what the record knows of the former jobs.
func formerJobs(t testing.TB, store smallben.RunStore) (former map[int64]string) {
	t.Helper()
	_, err := store.Change(func(tx ledger.Tx) (err error) {
		former, _, err = tx.(smallben.ChangeTx).FormerJobs([]int64{1, 2}, time.Minute)
		return err
	})
	require.NoError(t, err)
	return former
}

func TestAnUpsertInATransactionLeavesTheRowOfANewerProgramAsItIs(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		app := newApplication(t, db, true)
		var lines logLines
		config := app.config()
		config.Logger = lines.logger()
		s := create(t, app.open(t), config)
		require.NoError(t, s.Start())
		mine := job(1, "@yearly", idle())
		require.NoError(t, s.AddJobs([]smallben.Job{mine}))
		s.Stop()
		store, former := app.store(t), list(t, app.open(t))[0].SerializedJob
		newer := base64.StdEncoding.EncodeToString([]byte("a type that is not registered here"))
		app.exec(t, "UPDATE jobs SET serialized_job = '"+newer+"'")
		_, err := store.Change(func(tx ledger.Tx) error {
			return tx.(smallben.ChangeTx).SetFormerJobs(map[int64]string{1: former})
		})
		require.NoError(t, err)
		require.NoError(t, store.Join("newer"))
		beat := func(standing ledger.Standing) {
			_, err := store.Beat("newer", standing)
			require.NoError(t, err)
		}
		beat(ledger.Standing{Claims: true})
		tx := app.begin(t, 7)
		err = s.UpsertJobsTx(tx, []smallben.Job{job(2, "@yearly", idle()), mine})
		require.ErrorIs(t, err, smallben.ErrUndecodable)
		require.ErrorContains(t, err, "job 1: ")
		require.NoError(t, tx.Commit().Error)
		rows := list(t, app.open(t))
		require.Len(t, rows, 1, "nothing of the batch is written")
		require.Equal(t, newer, rows[0].SerializedJob)

		beat(ledger.Standing{Claims: true, Partial: true})
		tx = app.begin(t, 8)
		require.NoError(t, s.UpsertJobsTx(tx, []smallben.Job{mine}), "nobody decodes it")
		require.NoError(t, tx.Commit().Error)
		require.Equal(t, former, list(t, app.open(t))[0].SerializedJob)
		assert.Eventually(t, func() bool { return len(lines.with("jobs replaced that did not decode")) > 0 }, time.Minute, time.Millisecond)
		// That was a rollback: what it replaced is forgotten.
		assert.Empty(t, formerJobs(t, store))
		_, _, err = store.TakeOutbox()
		require.NoError(t, err)
		assert.Empty(t, formerJobs(t, store))
	})
}

func TestAnUpsertInATransactionKeepsWhatItReplacesByAnotherType(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		app := newApplication(t, db, true)
		s := app.start(t)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", idle()), job(2, "@yearly", idle())}))
		s.Stop()
		store, before := app.store(t), list(t, app.open(t))
		tx := app.begin(t, 7)
		require.NoError(t, s.UpsertJobsTx(tx, []smallben.Job{job(1, "@yearly", newContextProbe(succeeds)), job(2, "@daily", idle())}))
		require.NoError(t, tx.Commit().Error)
		want := map[int64]string{1: before[0].SerializedJob}
		assert.Equal(t, want, formerJobs(t, store), "nobody has followed yet")
		_, _, err := store.TakeOutbox()
		require.NoError(t, err)
		assert.Equal(t, want, formerJobs(t, store))
	})
}

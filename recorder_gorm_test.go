package smallben_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/schema"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/nbena/smallben/internal/testkit"
)

// eachShared runs a test on both databases, as several processes can share them.
func eachShared(t *testing.T, test func(t *testing.T, db *database)) {
	t.Helper()
	t.Parallel()
	for name, open := range map[string]func(t testing.TB) *database{"SQLite": newSQLiteWAL, "PostgreSQL": newPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// recorder opens another repository on the database, as another process would.
func (db *database) recorder(t testing.TB) records {
	t.Helper()
	r := records{recordStore: recordOf(db.open(t)), put: db.put}
	require.NoError(t, r.Open(recordLocation))
	return r
}

// schema is all that was created, as text.
func (db *database) schema(t testing.TB) []string {
	t.Helper()
	if db.sqlite() {
		return db.strings(t, "SELECT name || ': ' || coalesce(sql, '') FROM sqlite_master ORDER BY name")
	}
	return slices.Concat(
		db.strings(t, "SELECT indexname || ': ' || replace(indexdef, schemaname || '.', '') FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1"),
		db.strings(t, `SELECT concat_ws(' ', table_name, column_name, data_type, character_maximum_length, is_nullable, column_default)
FROM information_schema.columns WHERE table_schema = current_schema() ORDER BY table_name, ordinal_position`),
		db.strings(t, `SELECT conrelid::regclass || ': ' || pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = current_schema()::regnamespace ORDER BY 1`))
}

// recordTables are the tables of the record that are there.
func (db *database) recordTables(t testing.TB) []string {
	t.Helper()
	text := "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema() AND table_name <> 'jobs'"
	if db.sqlite() {
		text = "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'jobs'"
	}
	return db.strings(t, text)
}

// apply executes statements that end in semicolons, as a user would.
func (db *database) apply(t testing.TB, statements string) {
	t.Helper()
	for statement := range strings.SplitSeq(strings.TrimSuffix(statements, ";\n"), ";\n") {
		db.exec(t, statement)
	}
}

func skipMigration(config *smallben.RepositoryGormConfig) { config.SkipMigration = true }

// The tables.

func TestNoRecordIsCreatedUntilItIsOpened(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		r := recordOf(db.open(t))
		require.NoError(t, r.AddJobs(withSchedule(t, rawJobs(1, 2)...)))
		require.Empty(t, db.recordTables(t))
		require.NoError(t, r.Open(recordLocation))
		require.ElementsMatch(t, []string{"smallben_runs", "smallben_job_state", "smallben_closed_spans", "smallben_locks", "smallben_processes", "smallben_ledger", "smallben_outbox"}, db.recordTables(t))
	})
}

func TestSchemaIsWhatIsCreated(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		db.recorder(t)
		var own *database
		if db.sqlite() {
			own = newSQLiteWAL(t)
		} else {
			own = newPostgres(t)
		}
		own.apply(t, own.script(t))
		require.Equal(t, db.schema(t), own.schema(t))
		recordsAJob(t, own.open(t, skipMigration), 1)

		cron := newSQLiteWAL(t)
		if !db.sqlite() {
			cron = newPostgres(t)
		}
		cron.apply(t, cron.script(t, prefixed("cron_")))
		recordsAJob(t, cron.open(t, skipMigration, prefixed("cron_")), 1)
	})
}

// script is the schema that the database should have.
func (db *database) script(t testing.TB, edit ...func(*smallben.RepositoryGormConfig)) string {
	t.Helper()
	config := &smallben.RepositoryGormConfig{Dialector: db.dialector()}
	for _, edit := range edit {
		edit(config)
	}
	script, err := smallben.Schema(config)
	require.NoError(t, err)
	return script
}

func TestSchemaOpensNoDatabase(t *testing.T) {
	t.Parallel()
	script, err := smallben.Schema(&smallben.RepositoryGormConfig{Dialector: postgres.Open("postgres://nobody@192.0.2.1/none"),
		Config: gorm.Config{NamingStrategy: schema.NamingStrategy{TablePrefix: "app.cron_"}}})
	require.NoError(t, err)
	require.Contains(t, script, `CREATE TABLE "app"."cron_jobs" (`)
	require.Contains(t, script, `CREATE INDEX "cron_paused_idx" ON "app"."cron_jobs" (paused);`)
	require.NotContains(t, script, "{")
	_, err = smallben.Schema(nil)
	require.Error(t, err)
	_, err = smallben.Schema(&smallben.RepositoryGormConfig{Dialector: mute{}})
	require.ErrorContains(t, err, "mute")
}

// mute is a dialect of GORM that we have no statements for.
type mute struct{ gorm.Dialector }

func (mute) Name() string { return "mute" }

func TestSkipMigrationLeavesTheRecordToTheUser(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		db.open(t)
		r := recordOf(db.open(t, skipMigration))
		err := r.Open(recordLocation)
		require.ErrorContains(t, err, "smallben_")
		require.ErrorContains(t, err, "Schema")
		require.Empty(t, db.recordTables(t))

		_, ofRecord, _ := strings.Cut(db.script(t), "(super_group_id);\n")
		db.apply(t, ofRecord)
		require.NoError(t, r.Open(recordLocation))
		require.NoError(t, r.Join("a"))
		_, err = r.Beat("a", claiming)
		require.NoError(t, err)
	})
}

func TestATableOfTheRecordWithoutAColumnIsAnErrorAtOpening(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		r := recordOf(db.open(t))
		db.exec(t, "CREATE TABLE smallben_locks (job_id bigint PRIMARY KEY)")
		require.ErrorContains(t, r.Open(recordLocation), "table smallben_locks")
	})
}

func TestOtherDatabasesHoldNoRecord(t *testing.T) {
	t.Parallel()
	r := recordOf(newPortable(t).open(t))
	require.EqualError(t, r.Open("UTC"), "open record: the record of runs needs PostgreSQL or SQLite, not sqlite")
	calls := map[string]func() error{
		"Join": func() error { return r.Join("a") }, "Leave": func() error { return r.Leave("a") },
		"Beat":     func() error { _, err := r.Beat("a", claiming); return err },
		"Claim":    func() error { _, err := r.Claim("a", claimsOf(1, runKey(1, 1))); return err },
		"Finish":   func() error { return r.Finish("a", []ledger.End{finished(runKey(1, 1))}) },
		"Change":   func() error { _, err := r.Change(func(ledger.Tx) error { return nil }); return err },
		"Changes":  func() error { _, err := r.Changes(0, nil); return err },
		"Compare":  r.Compare,
		"Prune":    func() error { _, err := r.Prune(dawn, 1); return err },
		"ListRuns": func() error { _, err := r.ListRuns(ledger.Query{}); return err },
		"RunsOf":   func() error { _, err := r.RunsOf([]int64{1}, 1); return err },
	}
	for name, call := range calls {
		assert.ErrorContains(t, call(), "the record of runs needs PostgreSQL or SQLite", name)
	}
}

func TestAFileOfSQLiteMustBeInWALMode(t *testing.T) {
	t.Parallel()
	db := newSQLite(t)
	r := recordOf(db.open(t))
	err := r.Open(recordLocation)
	require.ErrorContains(t, err, "WAL")
	require.ErrorContains(t, err, "_journal_mode=WAL")
	require.Empty(t, db.recordTables(t))
	require.Equal(t, []string{"delete"}, db.strings(t, "PRAGMA journal_mode"))

	db.exec(t, "PRAGMA journal_mode = WAL")
	require.NoError(t, r.Open(recordLocation))
}

func TestADatabaseInMemoryHoldsARecordOfOneProcess(t *testing.T) {
	t.Parallel()
	r := newDatabase(t, "SQLite", ":memory:", "sqlite3").recorder(t)
	revision := r.start(t, 1)
	require.NoError(t, r.Join("a"))
	r.win(t, "a", claimsOf(revision, runKey(1, 1)))
	require.NoError(t, r.Finish("a", []ledger.End{finished(runKey(1, 1))}))
	require.Len(t, r.runs(t), 1)
}

// Growth.

func TestStatementsOfTheRecordDoNotGrowWithTheRuns(t *testing.T) {
	eachFaultyRecord(t, func(t *testing.T, b *faultyRecord) {
		count := func(n int) (counts []int) {
			b.reset(t)
			ids := make([]int64, n)
			for i := range ids {
				ids[i] = int64(100 + i)
			}
			r := records{recordStore: b.repository}
			revision := r.start(t, ids...)
			keys, runs := make([]ledger.Key, n), make([]ledger.End, n)
			for i, id := range ids {
				keys[i] = runKey(id, 1)
				runs[i] = finished(keys[i])
				runs[i].Overlap = ledger.Skip
			}
			claims := exclusively(claimsOf(revision, keys...))
			for _, call := range []func(){
				func() { r.win(t, "a", claims) },
				func() { r.win(t, "a", claims) },
				func() { r.claim(t, "b", claims) },
				func() { require.NoError(t, r.Finish("a", runs)) },
			} {
				b.faults.Reset()
				call()
				counts = append(counts, b.faults.Count())
			}
			return counts
		}
		require.Equal(t, count(1), count(2000))
	})
}

func TestRunsOfJobsWithoutOptionsTakeTheStatementsThatTheyTookBeforeThereWereAny(t *testing.T) {
	eachFaultyRecord(t, func(t *testing.T, b *faultyRecord) {
		b.reset(t)
		r := records{recordStore: b.repository}
		count := func(call func()) int {
			b.faults.Reset()
			call()
			return b.faults.Count(faultsql.Exec, faultsql.Query)
		}
		plain, end := claimsOf(b.revision, runKey(2, 1)), finished(runKey(2, 1))
		claim := count(func() { r.win(t, "a", plain) })
		finish := count(func() { require.NoError(t, r.Finish("a", []ledger.End{end})) })
		want := map[string][2]int{"SQLite": {7, 6}, "PostgreSQL": {3, 2}} // some of which set up the connection
		assert.Equal(t, want[b.name], [2]int{claim, finish})

		tried, failed := claimsOf(b.revision, runKey(2, 2)), finished(runKey(2, 2))
		tried[0].NewestCounts, failed.Retry = true, time.Now()
		assert.Equal(t, claim+1, count(func() { r.win(t, "a", tried) }), "it ends attempts of earlier ticks")
		assert.Equal(t, finish+2, count(func() { require.NoError(t, r.Finish("a", []ledger.End{failed})) }), "it locks the state of the job and adds an attempt")
	})
}

// A plan that was made while the tables were empty, or by no statistics, would
// look at each run for each other.
func TestOnPostgreSQLClaimsAndFinishesReadTheirOwnRowsOnly(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	const jobs, ticks = 300, 50
	func() {
		repository, err := db.tryOpen()
		require.NoError(t, err)
		defer repository.Close() // and with it the server's processes, which count then
		r := records{recordStore: recordOf(repository)}
		require.NoError(t, r.Open(recordLocation))
		require.NoError(t, r.Join("a"))
		ids := make([]int64, jobs)
		for i := range ids {
			ids[i] = int64(i + 1)
		}
		revision := r.start(t, ids...)
		for tick := range ticks {
			keys, runs := make([]ledger.Key, jobs), make([]ledger.End, jobs)
			for i, id := range ids {
				keys[i] = runKey(id, tick+1)
				runs[i] = finished(keys[i])
			}
			r.win(t, "a", claimsOf(revision, keys...))
			require.NoError(t, r.Finish("a", runs))
		}
	}()
	var scans, rows sql.NullInt64
	for deadline := time.Now().Add(time.Minute); scans.Int64 < jobs*ticks; time.Sleep(10 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "%d index scans were counted", scans.Int64)
		require.NoError(t, db.pool.QueryRow("SELECT sum(idx_scan), sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables WHERE schemaname = current_schema()").Scan(&scans, &rows))
	}
	assert.Less(t, rows.Int64, int64(5*jobs*ticks))
}

// Competition.

func TestNoClaimIsWonAfterThePauseOfItsJobWasAcknowledged(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		const claimers, jobs, ticks, pauses = 3, 8, 400, 40
		writer := db.recorder(t)
		ids := make([]int64, jobs)
		spans := make([]ledger.Span, jobs)
		for i := range ids {
			ids[i] = int64(i + 1)
			spans[i] = ledger.Span{JobID: ids[i], After: dawn, Until: tickAt(ticks)}
		}
		writer.start(t, ids...)
		var (
			done    atomic.Bool
			won     atomic.Int64
			claimed sync.WaitGroup
			turns   = make(chan struct{}) // one for each batch
		)
		for i := range claimers {
			process := fmt.Sprint("claimer ", i)
			r := db.recorder(t)
			require.NoError(t, r.Join(process))
			claimed.Go(func() {
				for !done.Load() {
					changes, err := r.Changes(0, nil)
					if !assert.NoError(t, err) {
						return
					}
					for range 3 { // the last ones with an old revision, perhaps
						var claims []ledger.Claim
						for _, row := range changes.Jobs {
							key := runKey(row.ID, 1+rand.IntN(ticks))
							claims = append(claims, ledger.Claim{Key: key, Revision: changes.RevisionOf(row.ID)})
						}
						rand.Shuffle(len(claims), func(i, j int) { claims[i], claims[j] = claims[j], claims[i] })
						results, err := r.Claim(process, claims)
						if !assert.NoError(t, err) {
							return
						}
						for _, result := range results {
							if result == ledger.Won {
								won.Add(1)
							}
						}
						select {
						case turns <- struct{}{}:
						default:
						}
					}
				}
			})
		}
		defer claimed.Wait()
		defer done.Store(true)
		var before, after [][]time.Time
		for range pauses {
			writer.change(t, func(tx smallben.ChangeTx) (err error) {
				if err = tx.PauseJobs(rawJobs(ids[:jobs/2]...)); err == nil {
					before, err = tx.RecordedTicks(spans[:jobs/2])
				}
				return err
			})
			<-turns
			<-turns
			writer.change(t, func(tx smallben.ChangeTx) (err error) {
				if after, err = tx.RecordedTicks(spans[:jobs/2]); err == nil {
					err = tx.ResumeJobs(withSchedule(t, rawJobs(ids[:jobs/2]...)...))
				}
				if err == nil {
					err = tx.Record(accountsAt(dawn, ids...), nil) // which resuming has moved
				}
				return err
			})
			require.Equal(t, before, after)
			<-turns
		}
		require.Positive(t, won.Load())
	})
}

func TestCompetitorsDoNotWaitForEachOther(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		const processes, jobs, rounds = 4, 60, 25
		r := db.recorder(t)
		ids := make([]int64, jobs)
		for i := range ids {
			ids[i] = int64(i + 1)
		}
		revision := r.start(t, ids...)
		var wg, writers sync.WaitGroup
		turns := make(chan struct{}, processes*rounds) // of the writers, one for each round
		var pools []*faultsql.Faults
		open := func() records {
			faults := db.faults(t)
			pools = append(pools, faults)
			r := records{recordStore: recordOf(testkit.OpenGorm(t, db.dialectorOn(faults.DB()), 0))}
			require.NoError(t, r.Open(recordLocation))
			faults.Reset()
			return r
		}
		for i := range processes {
			process, r := fmt.Sprint("process ", i), open()
			require.NoError(t, r.Join(process))
			wg.Go(func() {
				for round := range rounds {
					turns <- struct{}{}
					var claims []ledger.Claim
					for _, n := range rand.Perm(jobs) {
						claim := claimsOf(revision, runKey(ids[n], round+1))[0]
						claim.Overlap = lockedIf(n%3 == 0)
						claims = append(claims, claim)
						if n%10 == 0 {
							claim.Key = triggered(claim.Key)
							claims = append(claims, claim)
						}
						if n%7 == 0 && round > 0 {
							claim.Key = attempt(2, runKey(ids[n], round))
							claim.OfWaiting = true
							claims = append(claims, claim)
						}
					}
					results, err := r.Claim(process, claims)
					if !assert.NoError(t, err) {
						return
					}
					var runs []ledger.End
					for i, result := range results {
						if result == ledger.Won {
							run := finished(claims[i].Key)
							run.Overlap = claims[i].Overlap
							if run.JobID%7 == 1 && run.Attempt == 1 && !run.Triggered {
								run.Retry = dawn
							}
							runs = append(runs, run)
						}
					}
					var finishing sync.WaitGroup
					half := len(runs) / 2
					finishing.Go(func() { assert.NoError(t, r.Finish(process, runs[:half])) })
					finishing.Go(func() { assert.NoError(t, r.Finish(process, runs)) })
					finishing.Wait()
					_, err = r.Beat(process, claiming)
					assert.NoError(t, err)
				}
			})
		}
		writer, another := open(), open()
		writers.Go(func() {
			for range turns {
				_, err := writer.Change(inJobs(func(tx smallben.ChangeTx) error {
					some := ids[rand.IntN(jobs/2):]
					if _, err := tx.Watermarks(some); err != nil {
						return err
					}
					_, err := tx.Expire([]ledger.Member{{Process: "process 1", Beats: -1}})
					return errors.Join(err, tx.Record(accountsAt(dawn, some...), nil))
				}))
				assert.NoError(t, err)
			}
		})
		writers.Go(func() {
			for range turns {
				_, err := another.Prune(dawn, 10)
				assert.NoError(t, err)
				assert.NoError(t, another.Join("guest"))
				assert.NoError(t, another.Leave("guest"))
			}
		})
		wg.Wait()
		close(turns)
		writers.Wait()
		for _, faults := range pools {
			assert.Zero(t, faults.Count(faultsql.Rollback), "a deadlock")
			require.NoError(t, faults.DB().Close())
		}
		runs := r.runs(t)
		retries := len(runs)
		maps.DeleteFunc(runs, func(key ledger.Key, _ ledger.Run) bool { return key.Attempt > 1 })
		retries -= len(runs)
		require.Positive(t, retries)
		require.Len(t, runs, rounds*(jobs+jobs/10))
		for _, run := range runs {
			require.Contains(t, []ledger.Outcome{ledger.Outcome(smallben.OutcomeOK), ledger.Skipped}, run.Outcome)
		}
		for _, account := range r.accounts(t, ids...) {
			require.False(t, account.Busy)
		}
	})
}

func TestAProcessThatIsStoppedInATransactionHoldsItsLocksForTenSecondsAtMost(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(op faultsql.Op) bool{
		"with its claims made":    func(op faultsql.Op) bool { return op.Kind == faultsql.Commit },
		"within a Change":         func(op faultsql.Op) bool { return strings.Contains(op.SQL, "paused = true") },
		"with its claims at hand": func(op faultsql.Op) bool { return strings.Contains(op.SQL, "smallben_processes") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := newPostgres(t)
			r := db.recorder(t)
			revision := r.start(t, 1)
			require.NoError(t, r.Join("a"))
			faults := db.faults(t)
			t.Cleanup(func() { require.NoError(t, faults.DB().Close()) })
			stopped := records{recordStore: recordOf(testkit.OpenGorm(t, db.dialectorOn(faults.DB()), 0))}
			require.NoError(t, stopped.Open(recordLocation))

			reached, goOn := make(chan struct{}), make(chan struct{})
			var once sync.Once
			faults.OnOp(func(op faultsql.Op) {
				if stop(op) {
					once.Do(func() { close(reached); <-goOn })
				}
			})
			pause := func(r records) error {
				_, err := r.Change(inJobs(func(tx smallben.ChangeTx) error { return tx.PauseJobs(rawJobs(1)) }))
				return err
			}
			failed := make(chan error)
			go func() {
				if name == "within a Change" {
					failed <- pause(stopped)
					return
				}
				_, err := stopped.Claim("a", claimsOf(revision, runKey(1, 1)))
				failed <- err
			}()
			<-reached
			begun := time.Now()
			require.NoError(t, pause(r))
			assert.Less(t, time.Since(begun), 15*time.Second)
			close(goOn)
			require.Error(t, <-failed)
			require.Empty(t, r.runs(t))
		})
	}
}

// Faults.

// faultyRecord is a record that can be made to fail, with processes a, which
// runs job 1, and b; job 2 is free, and job 3 was written by a process that does not record.
type faultyRecord struct {
	*database
	faults     *faultsql.Faults
	repository recordStore // over the faults
	truth      records
	revision   int64
}

func (db *database) faults(t testing.TB) *faultsql.Faults {
	t.Helper()
	if db.sqlite() {
		return faultsql.SQLite(db.path, "_journal_mode=WAL", hastySQLite)
	}
	faults, err := faultsql.Postgres(db.dsn)
	require.NoError(t, err)
	return faults
}

func (db *database) dialectorOn(pool *sql.DB) gorm.Dialector {
	if db.sqlite() {
		return sqlite.New(sqlite.Config{Conn: pool})
	}
	return postgres.New(postgres.Config{Conn: pool})
}

func eachFaultyRecord(t *testing.T, test func(t *testing.T, b *faultyRecord)) {
	t.Helper()
	eachShared(t, func(t *testing.T, db *database) {
		b := &faultyRecord{database: db, faults: db.faults(t), truth: db.recorder(t)}
		t.Cleanup(func() {
			b.faults.Heal()
			assert.NoError(t, b.faults.DB().Close())
		})
		b.repository = recordOf(testkit.OpenGorm(t, db.dialectorOn(b.faults.DB()), 0))
		test(t, b)
	})
}

func (b *faultyRecord) reset(t testing.TB) {
	t.Helper()
	for _, table := range []string{"jobs", "smallben_runs", "smallben_job_state", "smallben_locks", "smallben_processes"} {
		b.exec(t, "DELETE FROM "+table)
	}
	b.revision = b.truth.start(t, 1, 2)
	b.put(t, rawJob(3))
	require.NoError(t, b.truth.Join("a"))
	require.NoError(t, b.truth.Join("b"))
	b.truth.win(t, "a", exclusively(claimsOf(b.revision, runKey(1, 1))))
}

// contents is what is recorded, without times, as text.
func (b *faultyRecord) contents(t testing.TB) []string {
	t.Helper()
	return slices.Concat(
		b.strings(t, "SELECT concat_ws(' ', 'job', id, paused) FROM jobs ORDER BY id"),
		b.strings(t, "SELECT concat_ws(' ', 'run', job_id, tick, attempt, process, outcome) FROM smallben_runs ORDER BY job_id, tick, attempt"),
		b.strings(t, fmt.Sprintf("SELECT concat_ws(' ', 'mark', job_id, revision - %d, deleted_at IS NULL) FROM smallben_job_state ORDER BY job_id", b.revision)),
		b.strings(t, "SELECT concat_ws(' ', 'key', job_id, tick, process) FROM smallben_locks ORDER BY job_id"),
		b.strings(t, "SELECT concat_ws(' ', 'process', process) FROM smallben_processes ORDER BY process"),
		b.strings(t, fmt.Sprintf("SELECT concat_ws(' ', 'record', revision - %d, leader) FROM smallben_ledger", b.revision)))
}

// recordCalls are the calls that write the record, but Beat.
func recordCalls(b *faultyRecord) map[string]func() error {
	r := b.repository
	return map[string]func() error{
		"Join":  func() error { return r.Join("c") },
		"Leave": func() error { return r.Leave("b") },
		"Claim": func() error {
			claims := append(claimsOf(b.revision, runKey(2, 1), triggered(runKey(3, 1)), triggered(runKey(9, 1))),
				exclusively(claimsOf(b.revision, runKey(1, 2), runKey(2, 2), runKey(1, 1)))...)
			results, err := r.Claim("a", claims)
			if err == nil && !slices.Equal(results, []ledger.Result{ledger.Won, ledger.Won, ledger.Stale,
				ledger.Overlapped, ledger.Won, ledger.Won}) {
				err = fmt.Errorf("the results are %v", results)
			}
			return err
		},
		"Finish": func() error {
			run, unclaimed := finished(runKey(1, 1)), finished(runKey(2, 7))
			run.Overlap, unclaimed.Unclaimed = ledger.Skip, true
			return r.Finish("a", []ledger.End{run, unclaimed})
		},
		"Change": func() error {
			_, err := r.Change(inJobs(func(tx smallben.ChangeTx) error {
				if _, err := tx.Watermarks([]int64{1, 2}); err != nil {
					return err
				}
				if err := tx.PauseJobs(rawJobs(1)); err != nil {
					return err
				}
				if err := tx.Record(accountsAt(tickAt(5), 1), []ledger.Run{ended(runKey(1, 5), ledger.Missed)}); err != nil {
					return err
				}
				_, err := tx.Lead("b")
				return err
			}))
			return err
		},
		"Compare": r.Compare,
	}
}

func TestAWriteOfTheRecordThatADeadlockEndedIsTriedAgainUnlessItIsAChange(t *testing.T) {
	eachFaultyRecord(t, func(t *testing.T, b *faultyRecord) {
		require.NoError(t, b.repository.Open(recordLocation))
		for name, call := range recordCalls(b) {
			b.reset(t)
			before := b.contents(t)
			var met atomic.Bool
			b.faults.FailWhen(func(op faultsql.Op) bool {
				return strings.Contains(op.SQL, "job_") && !strings.Contains(op.SQL, "count(*)") && met.CompareAndSwap(false, true)
			}, faultsql.Fault{Mode: faultsql.Before, Err: testkit.Deadlock{}})
			err := call()
			b.faults.Heal()
			if name == "Change" || name == "Compare" {
				require.ErrorAs(t, err, new(testkit.Deadlock), name)
				require.Equal(t, before, b.contents(t))
				continue
			}
			require.NoError(t, err, name)
			require.NotEqual(t, before, b.contents(t))
		}
	})
}

func TestACommitOfTheRecordWhoseReplyIsLostIsLearned(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	b := &faultyRecord{database: db, truth: db.recorder(t)}
	proxy := pgtest.NewProxy(t, db.dsn)
	repository := testkit.OpenGorm(t, postgres.Open(proxy.DSN()), 0)
	b.repository = recordOf(repository)
	t.Cleanup(func() { require.NoError(t, repository.Close()) })
	require.NoError(t, b.repository.Open(recordLocation))
	for name, call := range recordCalls(b) {
		b.reset(t)
		testkit.InTime(t, call)
		after := b.contents(t)
		b.reset(t)
		proxy.DropAfterCommit()
		err := testkit.Patiently(call)
		proxy.Pass()
		require.NoError(t, err, name)
		require.Equal(t, after, b.contents(t), name)
	}
}

// Each process looks at ticks each second.
func TestALookAtTicksIsOneStatement(t *testing.T) {
	eachFaultyRecord(t, func(t *testing.T, b *faultyRecord) {
		require.NoError(t, b.repository.Open(recordLocation))
		b.reset(t)
		b.faults.Reset()
		_, err := b.repository.Unclaimed([]ledger.Key{runKey(1, 1), runKey(1, 2)})
		require.NoError(t, err)
		want := map[string]int{"SQLite": 2, "PostgreSQL": 1} // one of which reads the settings of the connection
		require.Equal(t, want[b.name], b.faults.Count(faultsql.Query))
		require.Zero(t, b.faults.Count(faultsql.Begin, faultsql.Commit, faultsql.Rollback))
	})
}

// What another does to the rows before we ask must not hide that ours happened.
func TestAChangeWhoseReplyIsLostIsLearnedThoughOthersFollow(t *testing.T) {
	eachFaultyRecord(t, func(t *testing.T, b *faultyRecord) {
		require.NoError(t, b.repository.Open(recordLocation))
		for _, happens := range []bool{true, false} {
			b.reset(t)
			mode := faultsql.After
			if !happens {
				mode = faultsql.Before
			}
			lost := false
			b.faults.FailWhen(func(op faultsql.Op) bool { return op.Kind == faultsql.Commit }, faultsql.Fault{Mode: mode})
			b.faults.OnOp(func(op faultsql.Op) {
				if lost {
					b.truth.change(t, func(tx smallben.ChangeTx) error { return tx.PauseJobs(rawJobs(2)) })
					b.faults.OnOp(nil)
				}
				lost = lost || op.Kind == faultsql.Commit
			})
			var revision int64
			revision, err := b.repository.Change(inJobs(func(tx smallben.ChangeTx) error { return tx.PauseJobs(rawJobs(2)) }))
			b.faults.OnOp(nil)
			b.faults.Heal()
			if happens {
				require.NoError(t, err)
				require.Equal(t, b.revision+1, revision)
			} else {
				require.Error(t, err)
				require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
			}
		}
	})
}

func TestWritersOfTheRecordOnOneRepositoryQueue(t *testing.T) {
	t.Parallel()
	db := newSQLiteWAL(t)
	repository := db.open(t)
	r := records{recordStore: recordOf(repository)}
	require.NoError(t, r.Open(recordLocation))
	require.NoError(t, r.Join("a"))
	revision := r.start(t, 1)
	var wg sync.WaitGroup
	for n := range 50 {
		wg.Go(func() {
			r.win(t, "a", claimsOf(revision, runKey(1, n+1)))
			assert.NoError(t, r.Finish("a", []ledger.End{finished(runKey(1, n+1))}))
			_, err := r.Beat("a", claiming)
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	// One that waits for its turn does not wait for longer than it may.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	hasty := recordOf(repository.WithContext(ctx).(*smallben.RepositoryGorm))
	_, err := r.Change(func(ledger.Tx) error {
		_, err := hasty.Beat("a", claiming)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		return errUndo
	})
	require.Equal(t, errUndo, err)
}

func BenchmarkClaimAndFinish(b *testing.B) {
	const jobs, batch = 100_000, 1000
	for name, open := range map[string]func(t testing.TB) *database{"SQLite": newSQLiteWAL, "PostgreSQL": newPostgres} {
		b.Run(name, func(b *testing.B) {
			r := open(b).recorder(b)
			ids := make([]int64, jobs)
			for i := range ids {
				ids[i] = int64(i + 1)
			}
			revision := r.start(b, ids...)
			require.NoError(b, r.Join("a"))
			claims, runs := make([]ledger.Claim, batch), make([]ledger.End, batch)
			n := 0
			begun := time.Now()
			for b.Loop() {
				for i := range claims {
					key := runKey(int64(n%jobs+1), n/jobs+1)
					claims[i] = ledger.Claim{Key: key, Revision: revision}
					runs[i] = finished(key)
					n++
				}
				r.win(b, "a", claims)
				require.NoError(b, r.Finish("a", runs))
			}
			b.ReportMetric(float64(n)/time.Since(begun).Seconds(), "runs/s")
		})
	}
}

// TestARecordAnswersWhileTheApplicationUsesUpThePool asks for what is not to wait:
// everything but what users read.
func TestARecordAnswersWhileTheApplicationUsesUpThePool(t *testing.T) {
	t.Parallel()
	for _, connections := range []int{4, 6} {
		t.Run(fmt.Sprint(connections), func(t *testing.T) {
			t.Parallel()
			db := newPostgres(t)
			pool, err := sql.Open("pgx", db.dsn)
			require.NoError(t, err)
			t.Cleanup(func() { _ = pool.Close() })
			pool.SetMaxOpenConns(connections)
			store := recordOf(testkit.OpenGorm(t, testkit.OnPostgres(pool), 10*time.Second))
			require.NoError(t, store.Open(recordLocation))
			r := records{recordStore: store, put: db.put}
			revision := r.start(t, 1)
			require.NoError(t, store.Join("p"))
			// A heartbeat holds both connections back, unless the machine is so busy that they
			// cannot be had soon. The next one tries again.
			const held = 2
			for pool.Stats().InUse < held {
				_, err = store.Beat("p", ledger.Standing{Claims: true})
				require.NoError(t, err)
			}
			results, err := store.Claim("p", exclusively(claimsOf(revision, runKey(1, 1))))
			require.NoError(t, err)
			require.Equal(t, []ledger.Result{ledger.Won}, results)

			// The application takes what is left.
			for pool.Stats().InUse < connections {
				conn, err := pool.Conn(t.Context())
				require.NoError(t, err)
				t.Cleanup(func() { _ = conn.Close() })
			}
			asked := func(what string, ask func() error) {
				began := time.Now()
				err := ask()
				t.Logf("%s: %v, %v", what, time.Since(began).Round(time.Millisecond), err)
				assert.NoError(t, err, what)
			}
			asked("heartbeat", func() error { _, err := store.Beat("p", ledger.Standing{Claims: true}); return err })
			asked("look at ticks", func() error { _, err := store.Unclaimed([]ledger.Key{runKey(1, 2)}); return err })
			asked("end", func() error {
				end := finished(runKey(1, 1))
				end.Overlap = ledger.Skip
				return store.Finish("p", []ledger.End{end})
			})
			asked("claim", func() error { _, err := store.Claim("p", claimsOf(revision, runKey(1, 2))); return err })
			// What others change is followed, by changes, transactions and cancellations.
			asked("read changes", func() error { _, err := store.Changes(0, nil); return err })
			asked("follow transactions", func() error { _, _, err := store.TakeOutbox(); return err })
			asked("read canceled runs", func() error { _, err := store.Canceled("p"); return err })
			// A leader decides what was missed and who is dead, and what waits is run.
			asked("read watermarks", func() error { _, err := store.Watermarks([]int64{1}); return err })
			asked("read closed spans", func() error { _, err := store.Closed(1); return err })
			asked("change the record", func() error {
				_, err := store.Change(func(tx ledger.Tx) error { _, err := tx.Expire(nil); return err })
				return err
			})
			asked("read waiting runs", func() error { _, err := store.Waiting(nil, 1); return err })
			asked("cancel runs", func() error { return store.CancelRuns(ledger.Query{}, 0) })
		})
	}
}

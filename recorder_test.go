package smallben_test

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/nbena/smallben/internal/testkit"
)

// The contract of Recorder and of RecordTx, on every implementation.

// newSQLiteWAL is SQLite as several processes can share it.
func newSQLiteWAL(t testing.TB) *database {
	path := filepath.Join(t.TempDir(), "jobs.db")
	db := newDatabase(t, "SQLite", path+"?_journal_mode=WAL&"+hastySQLite, "sqlite3")
	db.path = path
	return db
}

// recordStore is a repository with a record of runs.
type recordStore interface {
	smallben.Repository
	smallben.Upserter
	smallben.RunStore
}

// gormRecord is the record of a RepositoryGorm.
type gormRecord struct {
	*smallben.RepositoryGorm
	smallben.RunStore
}

func recordOf(r *smallben.RepositoryGorm) recordStore {
	return gormRecord{r, smallben.RunStoreOf(r)}
}

// records is a store under the conformance suite.
type records struct {
	recordStore
	connect func(t testing.TB) recordStore          // as another process does
	put     func(t testing.TB, row smallben.RawJob) // stores a row as it is
}

// eachRecordStore runs a test on every implementation, without a record yet.
func eachRecordStore(t *testing.T, test func(t *testing.T, r records)) {
	t.Helper()
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		r := newMemoryRecorder()
		test(t, records{r, func(testing.TB) recordStore { return r }, func(_ testing.TB, row smallben.RawJob) { r.put(row) }})
	})
	for name, open := range map[string]func(t testing.TB) *database{"SQLite": newSQLiteWAL, "PostgreSQL": newPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			connect := func(t testing.TB) recordStore { return recordOf(db.open(t)) }
			test(t, records{connect(t), connect, db.put})
		})
	}
}

const recordLocation = "Europe/Rome"

// eachRecorder runs a test on every implementation, with two processes, a and b.
func eachRecorder(t *testing.T, test func(t *testing.T, r records)) {
	t.Helper()
	eachRecordStore(t, func(t *testing.T, r records) {
		require.NoError(t, r.Open(recordLocation))
		require.NoError(t, r.Join("a"))
		require.NoError(t, r.Join("b"))
		test(t, r)
	})
}

// another is the Recorder of another process.
func (r records) another(t testing.TB) recordStore {
	t.Helper()
	recorder := r.connect(t)
	require.NoError(t, recorder.Open(recordLocation))
	return recorder
}

// dawn is the time before the first tick of the tests, tick 1, which comes a second
// later.
var dawn = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)

func tickAt(n int) time.Time { return dawn.Add(time.Duration(n) * time.Second) }

func runKey(id int64, n int) ledger.Key {
	return ledger.Key{JobID: id, Tick: tickAt(n), Attempt: 1}
}

func triggered(key ledger.Key) ledger.Key {
	key.Triggered = true
	return key
}

func attempt(n int, key ledger.Key) ledger.Key {
	key.Attempt = n
	return key
}

// claimsOf are claims of the runs, as made by who knows revision.
func claimsOf(revision int64, keys ...ledger.Key) []ledger.Claim {
	claims := make([]ledger.Claim, len(keys))
	for i, key := range keys {
		claims[i] = ledger.Claim{Key: key, GroupID: key.JobID % 5, SuperGroupID: key.JobID % 3, Revision: revision}
	}
	return claims
}

func exclusively(claims []ledger.Claim) []ledger.Claim {
	for i := range claims {
		claims[i].Overlap = ledger.Skip
	}
	return claims
}

// finished is the end of a run.
func finished(key ledger.Key) ledger.End {
	return ledger.End{Key: key, Start: key.Tick.Add(time.Millisecond), End: key.Tick.Add(time.Minute), Outcome: ledger.Outcome(smallben.OutcomeOK)}
}

// ended is a run that the record is to hold.
func ended(key ledger.Key, outcome ledger.Outcome) ledger.Run {
	run := ledger.Run{Key: key, Process: "a", Start: key.Tick, End: key.Tick.Add(time.Second), Outcome: outcome}
	if outcome == ledger.Running {
		run.End = time.Time{}
	}
	if outcome == ledger.Missed {
		run.Missed, run.FirstTick = 1, key.Tick
	}
	return run
}

// change is a Change that succeeds.
func (r records) change(t testing.TB, change func(tx smallben.ChangeTx) error) (revision int64) {
	t.Helper()
	revision, err := r.Change(inJobs(change))
	require.NoError(t, err)
	return revision
}

// claiming is the standing of a process that works.
var claiming = ledger.Standing{Claims: true}

// lockedIf is the overlap of a run that needs the lock of its job, or not.
func lockedIf(locked bool) ledger.Overlap {
	if locked {
		return ledger.Skip
	}
	return ledger.Allow
}

// inJobs is a function for a Change that changes jobs as well.
func inJobs(change func(tx smallben.ChangeTx) error) func(tx ledger.Tx) error {
	return func(tx ledger.Tx) error { return change(tx.(smallben.ChangeTx)) }
}

var errUndo = errors.New("undo it")

// look is a Change that undoes itself.
func (r records) look(t testing.TB, look func(tx smallben.ChangeTx)) {
	t.Helper()
	_, err := r.Change(inJobs(func(tx smallben.ChangeTx) error { look(tx); return errUndo }))
	require.Equal(t, errUndo, err)
}

// start adds jobs whose ticks count from dawn.
func (r records) start(t testing.TB, ids ...int64) (revision int64) {
	t.Helper()
	return r.change(t, func(tx smallben.ChangeTx) error {
		return errors.Join(tx.AddJobs(withSchedule(t, rawJobs(ids...)...)), tx.Record(accountsAt(dawn, ids...), nil))
	})
}

func accountsAt(until time.Time, ids ...int64) []ledger.Watermark {
	accounts := make([]ledger.Watermark, len(ids))
	for i, id := range ids {
		accounts[i] = ledger.Watermark{JobID: id, Until: until}
	}
	return accounts
}

func (r records) record(t testing.TB, runs ...ledger.Run) {
	t.Helper()
	r.change(t, func(tx smallben.ChangeTx) error { return tx.Record(nil, runs) })
}

func (r records) claim(t testing.TB, process string, claims []ledger.Claim) []ledger.Result {
	t.Helper()
	results, err := r.Claim(process, claims)
	require.NoError(t, err)
	return results
}

// win claims what must be won.
func (r records) win(t testing.TB, process string, claims []ledger.Claim) {
	t.Helper()
	for i, result := range r.claim(t, process, claims) {
		require.Equal(t, ledger.Won, result, "%+v", claims[i])
	}
}

// watermarks are those that a Change reads.
func (r records) watermarks(t testing.TB, ids ...int64) (marks []ledger.Watermark) {
	t.Helper()
	r.look(t, func(tx smallben.ChangeTx) {
		var err error
		marks, err = tx.Watermarks(ids)
		require.NoError(t, err)
	})
	return marks
}

// accounts are watermarks without what they say of the jobs.
func (r records) accounts(t testing.TB, ids ...int64) []ledger.Watermark {
	t.Helper()
	accounts := r.watermarks(t, ids...)
	for i := range accounts {
		accounts[i].CreatedAt, accounts[i].Paused = time.Time{}, false
	}
	return accounts
}

func (r records) changes(t testing.TB, since int64, ids []int64) smallben.Changes {
	t.Helper()
	changes, err := r.Changes(since, ids)
	require.NoError(t, err)
	return changes
}

// runs are all runs by their keys.
func (r records) runs(t testing.TB) map[ledger.Key]ledger.Run {
	t.Helper()
	runs, err := r.ListRuns(ledger.Query{Limit: math.MaxInt32})
	require.NoError(t, err)
	byKey := make(map[ledger.Key]ledger.Run, len(runs))
	for _, run := range runs {
		byKey[run.Key] = run
	}
	require.Len(t, byKey, len(runs), "a key twice")
	return byKey
}

// busy says whether a run holds the running key of the job.
func (r records) busy(t testing.TB, id int64) bool {
	t.Helper()
	accounts := r.accounts(t, id)
	require.Len(t, accounts, 1)
	return accounts[0].Busy
}

// settled checks that each mark remembers the row as it is.
func (r records) settled(t testing.TB) {
	t.Helper()
	before := r.changes(t, 0, nil)
	require.NoError(t, r.Compare())
	after := r.changes(t, 0, nil)
	require.Equal(t, before.Jobs, after.Jobs)
	require.Equal(t, before.Gone, after.Gone)
}

// OpenRecord.

func TestARecordKeepsTheLocationItWasOpenedWith(t *testing.T) {
	eachRecordStore(t, func(t *testing.T, r records) {
		require.NoError(t, r.Open("Europe/Rome"))
		other := r.connect(t)
		err := other.Open("Asia/Tokyo")
		require.ErrorContains(t, err, "Europe/Rome")
		require.ErrorContains(t, err, "Asia/Tokyo")
		require.NoError(t, other.Open("Europe/Rome"))
		require.NoError(t, r.Open("Europe/Rome"))
	})
}

func TestSeveralProcessesOpenOneRecordAtOnce(t *testing.T) {
	eachRecordStore(t, func(t *testing.T, r records) {
		rows := rawJobs(1, 2, 3)
		for _, row := range rows {
			r.put(t, row)
		}
		recorders := []recordStore{r.recordStore, r.recordStore, r.connect(t), r.connect(t)}
		var wg sync.WaitGroup
		for i, recorder := range recorders {
			wg.Go(func() {
				assert.NoError(t, recorder.Open(recordLocation))
				assert.NoError(t, recorder.Join(fmt.Sprint(i)))
			})
		}
		wg.Wait()
		heartbeat, err := r.Beat("0", claiming)
		require.NoError(t, err)
		require.Len(t, heartbeat.Members, 4)
		require.Equal(t, []int64{1, 2, 3}, rowIDs(r.changes(t, 0, nil).Jobs))
		r.settled(t)
	})
}

func TestOpenRecordMarksTheRowsThatAreThere(t *testing.T) {
	eachRecordStore(t, func(t *testing.T, r records) {
		broken := rawJob(3)
		broken.SerializedJob = "!"
		for _, row := range append(rawJobs(1, 2), broken) {
			r.put(t, row)
		}
		start := time.Now()
		require.NoError(t, r.Open(recordLocation))
		changes := r.changes(t, 0, nil)
		require.Equal(t, []int64{1, 2, 3}, rowIDs(changes.Jobs))
		for _, account := range r.accounts(t, 1, 2, 3) {
			recent(t, account.Until, start)
			require.Positive(t, account.Revision)
		}

		// Another process that opens it finds nothing to do, unless there is.
		other := r.another(t)
		require.Equal(t, changes.Jobs, r.changes(t, 0, nil).Jobs)
		require.NoError(t, r.PauseJobs(rawJobs(2)))
		require.NoError(t, other.Open(recordLocation))
		require.Equal(t, []int64{2}, rowIDs(r.changes(t, changes.Revision, nil).Jobs))
	})
}

// Join, Leave, Beat, Lead.

func TestAProcessIsRegisteredFromJoinToLeave(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		other := r.another(t)
		beat := func(process string, peers ...ledger.Member) {
			t.Helper()
			heartbeat, err := other.Beat(process, claiming)
			require.NoError(t, err)
			require.ElementsMatch(t, peers, heartbeat.Members)
		}
		beat("a", ledger.Member{Process: "a", Beats: 1, Standing: claiming}, ledger.Member{Process: "b"})
		beat("b", ledger.Member{Process: "a", Beats: 1, Standing: claiming}, ledger.Member{Process: "b", Beats: 1, Standing: claiming})
		require.NoError(t, other.Join("a"), "it is registered already, and keeps its heartbeats")
		beat("a", ledger.Member{Process: "a", Beats: 2, Standing: claiming}, ledger.Member{Process: "b", Beats: 1, Standing: claiming})
		require.NoError(t, r.Leave("a"))
		require.NoError(t, r.Leave("a"))
		require.NoError(t, r.Leave("nobody"))
		_, err := r.Beat("a", claiming)
		require.ErrorIs(t, err, ledger.ErrNotRegistered)
		beat("b", ledger.Member{Process: "b", Beats: 2, Standing: claiming})
		require.NoError(t, r.Join("a"))
		beat("b", ledger.Member{Process: "b", Beats: 3, Standing: claiming}, ledger.Member{Process: "a"})
	})
}

func TestABeatTellsTheTimeOfTheRecord(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		for range 3 {
			revision := r.start(t, rand.Int64N(math.MaxInt64)+1)
			start := time.Now()
			heartbeat, err := r.Beat("a", claiming)
			require.NoError(t, err)
			recent(t, heartbeat.Now, start)
			require.Equal(t, revision, heartbeat.Revision)
			require.Equal(t, revision, r.changes(t, 0, nil).Revision)
		}
		// A Change of no job counts, too; one that was undone does not.
		revision := r.change(t, func(smallben.ChangeTx) error { return nil })
		r.look(t, func(tx smallben.ChangeTx) { require.NoError(t, tx.DeleteJobsByIds(rowIDs(list(t, tx)))) })
		heartbeat, err := r.Beat("a", claiming)
		require.NoError(t, err)
		require.Equal(t, revision, heartbeat.Revision)
	})
}

func TestEveryBeatCounts(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		var wg sync.WaitGroup
		for _, recorder := range []recordStore{r.recordStore, r.another(t)} {
			for range 2 {
				wg.Go(func() {
					for range 5 {
						_, err := recorder.Beat("a", claiming)
						assert.NoError(t, err)
					}
				})
			}
		}
		wg.Wait()
		heartbeat, err := r.Beat("a", claiming)
		require.NoError(t, err)
		require.ElementsMatch(t, []ledger.Member{{Process: "a", Beats: 21, Standing: claiming}, {Process: "b"}}, heartbeat.Members)
	})
}

func TestOneProcessLeadsUntilItIsGone(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		lead := func(process string) (leads bool) {
			t.Helper()
			r.change(t, func(tx smallben.ChangeTx) (err error) { leads, err = tx.Lead(process); return err })
			return leads
		}
		leader := func() string {
			t.Helper()
			heartbeat, err := r.Beat("b", claiming)
			require.NoError(t, err)
			return heartbeat.Leader
		}
		require.Empty(t, leader())
		r.look(t, func(tx smallben.ChangeTx) {
			leads, err := tx.Lead("a")
			require.NoError(t, err)
			require.True(t, leads)
		})
		require.Empty(t, leader(), "that was undone")
		require.True(t, lead("a"))
		require.True(t, lead("a"))
		require.False(t, lead("b"))
		require.Equal(t, "a", leader())
		require.NoError(t, r.Leave("a"))
		require.Empty(t, leader(), "who left does not lead")
		require.True(t, lead("b"))
		require.NoError(t, r.Join("a"))
		require.False(t, lead("a"))
		require.Equal(t, "b", leader())

		// In one Change with its removal.
		r.change(t, func(tx smallben.ChangeTx) error {
			_, err := tx.Expire([]ledger.Member{{Process: "b", Beats: 5}})
			require.NoError(t, err)
			leads, err := tx.Lead("a")
			require.True(t, leads)
			return err
		})
		require.False(t, lead("b"))
	})
}

func TestAProcessThatRunsAllJobsLeadsBeforeOneThatDoesNot(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		lead := func(process string) (leads bool) {
			t.Helper()
			r.change(t, func(tx smallben.ChangeTx) (err error) { leads, err = tx.Lead(process); return err })
			return leads
		}
		beat := func(process string, standing ledger.Standing) {
			t.Helper()
			_, err := r.Beat(process, standing)
			require.NoError(t, err)
		}
		partial := ledger.Standing{Claims: true, Partial: true}
		beat("a", partial)
		beat("b", partial)
		require.True(t, lead("a"))
		require.False(t, lead("b"), "neither runs all jobs")
		require.False(t, lead("c"), "it is not registered")
		beat("b", claiming)
		require.True(t, lead("b"))
		require.False(t, lead("a"))
		beat("a", claiming)
		require.False(t, lead("a"))
		beat("b", partial)
		require.True(t, lead("b"), "it leads until another one asks")
		require.True(t, lead("a"))
	})
}

// Change.

func TestAChangeThatFailsChangesNothing(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3)
		r.win(t, "b", exclusively(claimsOf(revision, runKey(1, 1))))
		type picture struct {
			rows      []smallben.RawJob
			changes   smallben.Changes
			runs      map[ledger.Key]ledger.Run
			accounts  []ledger.Watermark
			heartbeat ledger.Heartbeat
		}
		look := func() (p picture) {
			t.Helper()
			var err error
			p = picture{rows: list(t, r), changes: r.changes(t, 0, nil), runs: r.runs(t), accounts: r.accounts(t, 1, 2, 3, 4)}
			p.heartbeat, err = r.Beat("a", claiming)
			require.NoError(t, err)
			p.heartbeat.Now = time.Time{}
			p.heartbeat.Members = slices.DeleteFunc(p.heartbeat.Members, func(p ledger.Member) bool { return p.Process == "a" })
			return p
		}
		everything := func(tx smallben.ChangeTx) {
			assert.NoError(t, tx.AddJobs(withSchedule(t, rawJob(4))))
			assert.NoError(t, tx.PauseJobs(rawJobs(1)))
			assert.NoError(t, tx.DeleteJobsByIds([]int64{2}))
			assert.NoError(t, tx.SetCronId(withSchedule(t, rawJob(3))))
			lost, err := tx.Expire([]ledger.Member{{Process: "b"}})
			assert.NoError(t, err)
			assert.Len(t, lost, 1)
			_, err = tx.Lead("a")
			assert.NoError(t, err)
			assert.NoError(t, tx.Record(accountsAt(tickAt(9), 3), []ledger.Run{ended(runKey(3, 5), ledger.Missed)}))
		}
		before := look()
		for name, fail := range map[string]func(t *testing.T){
			"error": func(t *testing.T) {
				calls := 0
				revision, err := r.Change(inJobs(func(tx smallben.ChangeTx) error { calls++; everything(tx); return errUndo }))
				require.True(t, err == errUndo, "%v", err) // as it is, not wrapped
				require.Zero(t, revision)
				require.Equal(t, 1, calls)
			},
			"panic": func(t *testing.T) {
				require.PanicsWithValue(t, "enough", func() {
					_, _ = r.Change(inJobs(func(tx smallben.ChangeTx) error { everything(tx); panic("enough") }))
				})
			},
			"Goexit": func(t *testing.T) {
				var wg sync.WaitGroup
				wg.Go(func() {
					_, _ = r.Change(inJobs(func(tx smallben.ChangeTx) error { everything(tx); runtime.Goexit(); return nil }))
				})
				wg.Wait()
			},
		} {
			t.Run(name, func(t *testing.T) {
				fail(t)
				require.Equal(t, before, look())
			})
		}
		require.Greater(t, r.change(t, func(tx smallben.ChangeTx) error { everything(tx); return nil }), revision)
		require.Equal(t, []int64{1, 3, 4}, rowIDs(list(t, r)))
		require.Len(t, r.runs(t), 2)
	})
}

func TestChangesComeOneAfterAnother(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		require.Positive(t, r.start(t, 1))
		var inside atomic.Int32
		var mu sync.Mutex
		counted := make(map[int64]int64) // by revision
		var wg sync.WaitGroup
		for _, recorder := range []recordStore{r.recordStore, r.another(t)} {
			for range 3 {
				wg.Go(func() {
					for range 4 {
						var count int64
						revision, err := recorder.Change(inJobs(func(tx smallben.ChangeTx) error {
							assert.EqualValues(t, 1, inside.Add(1))
							defer inside.Add(-1)
							rows, err := tx.ListJobs(nil)
							if !assert.NoError(t, err) || !assert.Len(t, rows, 1) {
								return err
							}
							rows[0].CronID++
							count = rows[0].CronID
							return tx.SetCronId(withSchedule(t, rows...))
						}))
						assert.NoError(t, err)
						mu.Lock()
						counted[revision] = count
						mu.Unlock()
					}
				})
			}
		}
		wg.Wait()
		require.Len(t, counted, 24, "a revision twice")
		first := rawJob(1).CronID
		for i, revision := range slices.Sorted(maps.Keys(counted)) {
			require.EqualValues(t, first+int64(i)+1, counted[revision], "a higher revision was committed later")
		}
	})
}

func TestAChangeReadsWhatItWroteAndOthersDoNot(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		broken := rawJob(4)
		broken.SerializedJobInput = "{"
		r.put(t, broken)
		r.start(t, 1, 2, 3)
		other, before := r.another(t), list(t, r)
		start := time.Now()
		r.change(t, func(tx smallben.ChangeTx) error {
			recent(t, tx.Now(), start)
			now := tx.Now()
			require.NoError(t, tx.PauseJobs(rawJobs(2)))
			require.NoError(t, tx.DeleteJobsByIds([]int64{1}))
			require.NoError(t, tx.AddJobs(withSchedule(t, rawJobs(5)...)))
			require.NoError(t, tx.Record(accountsAt(tickAt(9), 3), []ledger.Run{ended(runKey(3, 5), ledger.Missed)}))

			rows := list(t, tx)
			require.Equal(t, []int64{2, 3, 4, 5}, rowIDs(rows))
			require.Equal(t, []bool{true, false, false, false}, []bool{rows[0].Paused, rows[1].Paused, rows[2].Paused, rows[3].Paused})
			rows, err := tx.ListJobs(&smallben.ListJobsOptions{Paused: ptr(true)})
			require.NoError(t, err)
			require.Equal(t, []int64{2}, rowIDs(rows))
			rows, err = tx.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{5, 1, 2}})
			require.ErrorIs(t, err, tx.ErrorTypeIfMismatchCount())
			require.Equal(t, []int64{2, 5}, rowIDs(rows))
			jobs, err := tx.GetAllJobsToExecute()
			require.Equal(t, []int64{4}, jobErrors(t, err, smallben.ErrUndecodable))
			require.Equal(t, []int64{3, 5}, rowIDs(built(t, jobs)))
			jobs, err = tx.GetJobsByIds([]int64{5, 4, 1, 3})
			require.ErrorIs(t, err, tx.ErrorTypeIfMismatchCount())
			require.ErrorIs(t, err, smallben.ErrUndecodable)
			require.Equal(t, []int64{3, 5}, rowIDs(built(t, jobs)))
			_, err = tx.GetJob(1)
			require.ErrorIs(t, err, tx.ErrorTypeIfMismatchCount())
			_, err = tx.GetJob(5)
			require.NoError(t, err)
			accounts, err := tx.Watermarks([]int64{3})
			require.NoError(t, err)
			require.Equal(t, tickAt(9), accounts[0].Until)
			ticks, err := tx.RecordedTicks([]ledger.Span{{JobID: 3, After: dawn, Until: tickAt(9)}})
			require.NoError(t, err)
			require.Equal(t, [][]time.Time{{tickAt(5)}}, ticks)
			require.Equal(t, now, tx.Now(), "the time at which the Change began")

			require.Equal(t, before, list(t, other))
			require.Empty(t, records{recordStore: other}.runs(t))
			return nil
		})
		require.Equal(t, []int64{2, 3, 4, 5}, rowIDs(list(t, other)))
	})
}

func TestAnErrorWithinAChangeUndoesItsMethodAlone(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		r.start(t, 1, 2)
		revision := r.change(t, func(tx smallben.ChangeTx) error {
			require.NoError(t, tx.PauseJobs(rawJobs(1)))
			err := tx.AddJobs(withSchedule(t, rawJobs(3, 2, 4)...))
			require.Equal(t, []int64{2}, jobErrors(t, err, smallben.ErrJobExists))
			err = tx.UpsertJobs(withSchedule(t, rawJobs(1)...), withSchedule(t, rawJobs(2)...))
			require.Equal(t, []int64{1}, jobErrors(t, err, smallben.ErrJobExists))
			err = tx.AddJobs(withSchedule(t, rawJobs(0)...))
			require.Equal(t, []int64{0}, jobErrors(t, err, smallben.ErrInvalidJob))
			return tx.AddJobs(withSchedule(t, rawJobs(5)...))
		})
		require.Equal(t, []int64{1, 2, 5}, rowIDs(list(t, r)))
		changes := r.changes(t, revision-1, nil)
		require.Equal(t, []int64{1, 5}, rowIDs(changes.Jobs))
		require.True(t, changes.Jobs[0].Paused)
	})
}

func TestTheMismatchErrorUndoesAChangeIfItIsReturned(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3, 4, 5)
		for name, write := range map[string]func(tx smallben.ChangeTx) error{
			"pause":  func(tx smallben.ChangeTx) error { return tx.PauseJobs(rawJobs(1, 9)) },
			"resume": func(tx smallben.ChangeTx) error { return tx.ResumeJobs(withSchedule(t, rawJobs(2, 9)...)) },
			"delete": func(tx smallben.ChangeTx) error { return tx.DeleteJobsByIds([]int64{3, 9}) },
			"update": func(tx smallben.ChangeTx) error {
				return tx.SetCronIdAndChangeScheduleAndJobInput(withSchedule(t, rawJobs(4, 9)...))
			},
			"upsert":    func(tx smallben.ChangeTx) error { return tx.UpsertJobs(nil, withSchedule(t, rawJobs(5, 9)...)) },
			"SetCronId": func(tx smallben.ChangeTx) error { return tx.SetCronId(withSchedule(t, rawJobs(1, 9)...)) },
		} {
			before := list(t, r)
			_, err := r.Change(inJobs(write))
			require.ErrorIs(t, err, r.ErrorTypeIfMismatchCount(), name)
			require.ErrorContains(t, err, "9", name)
			require.Equal(t, before, list(t, r), name)
			require.Empty(t, r.changes(t, revision, nil).Jobs, name)
		}
		// Those that exist are changed, and they alone are marked.
		since := revision
		revision = r.change(t, func(tx smallben.ChangeTx) error {
			for _, err := range []error{
				tx.PauseJobs(rawJobs(1, 9)),
				tx.DeleteJobsByIds([]int64{3, 10}),
				tx.SetCronIdAndChangeScheduleAndJobInput(withSchedule(t, rawJobs(4, 11)...)),
				tx.UpsertJobs(withSchedule(t, rawJobs(6)...), withSchedule(t, rawJobs(5, 12)...)),
			} {
				require.ErrorIs(t, err, tx.ErrorTypeIfMismatchCount())
			}
			return nil
		})
		changes := r.changes(t, since, nil)
		require.Equal(t, []int64{1, 4, 5, 6}, rowIDs(changes.Jobs))
		require.Equal(t, []int64{3}, changes.Gone)
		require.Equal(t, revision, changes.Revision)
		r.settled(t)
	})
}

func TestAMethodMarksTheJobsThatItWrites(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		r.start(t, 1, 2, 3, 4)
		changed := rawJob(2)
		changed.CronExpression, changed.CronID = "@daily", 77
		replaced := rawJob(3)
		replaced.GroupID = 55
		all := []int64{1, 2, 3, 4, 5, 6, 7}
		for _, c := range []struct {
			name                 string
			do                   func(tx smallben.ChangeTx) error
			marked, begun, ended []int64 // jobs with the new revision; whose account begins now; which are gone
		}{
			{name: "add", do: func(tx smallben.ChangeTx) error { return tx.AddJobs(withSchedule(t, rawJobs(6, 5)...)) }, marked: []int64{5, 6}, begun: []int64{5, 6}},
			{name: "pause", do: func(tx smallben.ChangeTx) error { return tx.PauseJobs(rawJobs(1, 2, 1)) }, marked: []int64{1, 2}},
			{name: "resume", do: func(tx smallben.ChangeTx) error { return tx.ResumeJobs(withSchedule(t, rawJob(1))) }, marked: []int64{1}, begun: []int64{1}},
			{name: "SetCronId", do: func(tx smallben.ChangeTx) error { return tx.SetCronId(withSchedule(t, changed)) }},
			{name: "update", do: func(tx smallben.ChangeTx) error {
				return tx.SetCronIdAndChangeScheduleAndJobInput(withSchedule(t, changed))
			}, marked: []int64{2}},
			{name: "upsert", do: func(tx smallben.ChangeTx) error {
				return tx.UpsertJobs(withSchedule(t, rawJob(7)), withSchedule(t, replaced))
			}, marked: []int64{3, 7}, begun: []int64{7}},
			{name: "delete", do: func(tx smallben.ChangeTx) error { return tx.DeleteJobsByIds([]int64{5, 4}) }, ended: []int64{4, 5}},
			{name: "add again", do: func(tx smallben.ChangeTx) error { return tx.AddJobs(withSchedule(t, rawJob(5))) }, marked: []int64{5}, begun: []int64{5}},
			{name: "upsert again", do: func(tx smallben.ChangeTx) error { return tx.UpsertJobs(withSchedule(t, rawJob(4)), nil) }, marked: []int64{4}, begun: []int64{4}},
			{name: "several", do: func(tx smallben.ChangeTx) error {
				return errors.Join(tx.PauseJobs(rawJobs(7)), tx.DeleteJobsByIds([]int64{6}), tx.AddJobs(withSchedule(t, rawJob(6))), tx.PauseJobs(rawJobs(6)))
			}, marked: []int64{6, 7}, begun: []int64{6}},
			{name: "none of them", do: func(tx smallben.ChangeTx) error {
				_, err := tx.Lead("a")
				_, expireErr := tx.Expire(nil)
				_, accounts := tx.Watermarks(all)
				_, get := tx.GetJobsByIds(all)
				return errors.Join(err, expireErr, accounts, get, tx.Record(nil, []ledger.Run{ended(runKey(1, 1), ledger.Missed)}))
			}},
		} {
			t.Run(c.name, func(t *testing.T) {
				before := make(map[int64]ledger.Watermark)
				for _, account := range r.accounts(t, all...) {
					before[account.JobID] = account
				}
				since := r.changes(t, 0, nil).Revision
				var now time.Time
				revision := r.change(t, func(tx smallben.ChangeTx) error { now = tx.Now(); return c.do(tx) })
				changes := r.changes(t, since, nil)
				require.ElementsMatch(t, c.marked, rowIDs(changes.Jobs))
				require.ElementsMatch(t, c.ended, changes.Gone)
				for _, row := range changes.Jobs {
					require.Equal(t, revision, changes.RevisionOf(row.ID))
				}
				for _, account := range r.accounts(t, all...) {
					want := before[account.JobID]
					want.JobID = account.JobID
					if slices.Contains(c.begun, account.JobID) {
						want.Until = now
					}
					if slices.Contains(c.marked, account.JobID) {
						want.Revision = revision
					}
					require.Equal(t, want, account)
				}
				r.settled(t)
			})
		}
	})
}

// until keeps a Change busy until something is done, or for so long that it would
// be if it did not wait for the Change.
func (r records) until(t testing.TB, tx smallben.ChangeTx, done func() bool) {
	t.Helper()
	for start := time.Now(); time.Since(start) < 300*time.Millisecond && !done(); {
		_, err := tx.GetJob(1)
		require.NoError(t, err)
	}
}

// during does something beside a Change, of which it must not see the end before
// the Change does.
func (r records) during(t *testing.T, change func(tx smallben.ChangeTx), beside func()) {
	t.Helper()
	var over atomic.Bool
	waited := make(chan bool, 1)
	r.change(t, func(tx smallben.ChangeTx) error {
		change(tx)
		go func() {
			beside()
			waited <- over.Load()
		}()
		r.until(t, tx, func() bool { return len(waited) > 0 })
		over.Store(true)
		return nil
	})
	require.True(t, <-waited, "it did not wait for the end of the Change")
}

func TestAChangeLocksTheJobsThatItReads(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		r.start(t, 1, 2)
		other := r.another(t)
		for name, read := range map[string]func(tx smallben.ChangeTx) error{
			"GetJob":              func(tx smallben.ChangeTx) error { _, err := tx.GetJob(1); return err },
			"GetJobsByIds":        func(tx smallben.ChangeTx) error { _, err := tx.GetJobsByIds([]int64{2, 1}); return err },
			"GetAllJobsToExecute": func(tx smallben.ChangeTx) error { _, err := tx.GetAllJobsToExecute(); return err },
			"ListJobs":            func(tx smallben.ChangeTx) error { _, err := tx.ListJobs(nil); return err },
			"ListJobs of one": func(tx smallben.ChangeTx) error {
				_, err := tx.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{1}})
				return err
			},
		} {
			t.Run(name, func(t *testing.T) {
				r.during(t, func(tx smallben.ChangeTx) { require.NoError(t, read(tx)) }, func() {
					assert.NoError(t, other.SetCronId(withSchedule(t, rawJob(1))))
				})
			})
		}
	})
}

func TestNoClaimIsAnsweredWhileItsAccountIsHeld(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		other := records{recordStore: r.another(t)}
		for name, c := range map[string]struct {
			change func(tx smallben.ChangeTx, id int64) error
			want   ledger.Result
		}{
			"nothing": {func(smallben.ChangeTx, int64) error { return nil }, ledger.Won},
			"account": {func(tx smallben.ChangeTx, id int64) error { return tx.Record(accountsAt(tickAt(5), id), nil) }, ledger.Late},
			"pause":   {func(tx smallben.ChangeTx, id int64) error { return tx.PauseJobs(rawJobs(id)) }, ledger.Stale},
			"delete":  {func(tx smallben.ChangeTx, id int64) error { return tx.DeleteJobsByIds([]int64{id}) }, ledger.Stale},
			"update": {func(tx smallben.ChangeTx, id int64) error {
				return tx.SetCronIdAndChangeScheduleAndJobInput(withSchedule(t, rawJob(id)))
			}, ledger.Stale},
			"run": {func(tx smallben.ChangeTx, id int64) error {
				return tx.Record(nil, []ledger.Run{ended(runKey(id, 1), ledger.Running)})
			}, ledger.Taken},
		} {
			t.Run(name, func(t *testing.T) {
				if len(list(t, r)) == 0 {
					r.start(t, 1) // for during
				}
				id := rand.Int64N(math.MaxInt32) + 2
				revision := r.start(t, id)
				r.during(t, func(tx smallben.ChangeTx) {
					accounts, err := tx.Watermarks([]int64{id})
					require.NoError(t, err)
					require.Len(t, accounts, 1)
					require.NoError(t, c.change(tx, id))
				}, func() {
					results, err := other.Claim("b", claimsOf(revision, runKey(id, 1)))
					assert.NoError(t, err)
					assert.Equal(t, []ledger.Result{c.want}, results)
				})
			})
		}
	})
}

func TestAccountsAreThoseOfTheJobsThatExist(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		first := r.start(t, 5, -3, 2)
		second := r.change(t, func(tx smallben.ChangeTx) error {
			return errors.Join(tx.PauseJobs(rawJobs(2)), tx.Record(accountsAt(tickAt(7), 5), nil))
		})
		gone := r.start(t, 7)
		r.change(t, func(tx smallben.ChangeTx) error { return tx.DeleteJobsByIds([]int64{7}) })
		require.Greater(t, gone, second)
		r.win(t, "a", exclusively(claimsOf(first, runKey(-3, 1))))
		r.win(t, "a", claimsOf(first, runKey(5, 8)))
		require.Equal(t, []ledger.Watermark{
			{JobID: -3, Until: dawn, Revision: first, CreatedAt: rawJob(-3).CreatedAt, Busy: true},
			{JobID: 2, Until: dawn, Revision: second, CreatedAt: rawJob(2).CreatedAt, Paused: true},
			{JobID: 5, Until: tickAt(7), Revision: first, CreatedAt: rawJob(5).CreatedAt},
		}, r.watermarks(t, 7, 5, 99, 2, 5, -3))
		require.Empty(t, r.accounts(t, 99))
	})
}

// Changes.

func TestChangesAreThoseSinceARevision(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		zero := r.changes(t, 0, nil)
		require.Empty(t, zero.Jobs)
		require.Empty(t, zero.Gone)
		broken := rawJob(3)
		broken.SerializedJob = "!"
		r.put(t, broken)
		require.NoError(t, r.Compare())
		one := r.start(t, 1, 2, 5)
		two := r.change(t, func(tx smallben.ChangeTx) error {
			return errors.Join(tx.PauseJobs(rawJobs(2, 3)), tx.DeleteJobsByIds([]int64{5}))
		})
		r.change(t, func(smallben.ChangeTx) error { return nil })
		three := r.change(t, func(tx smallben.ChangeTx) error {
			return errors.Join(tx.AddJobs(withSchedule(t, rawJobs(-4)...)), tx.DeleteJobsByIds([]int64{1}))
		})
		rows := make(map[int64]smallben.RawJob)
		for _, row := range list(t, r) {
			rows[row.ID] = row
		}
		revisions := map[int64]int64{-4: three, 2: two, 3: two}
		for _, c := range []struct {
			since      int64
			ids        []int64
			jobs, gone []int64
		}{
			{0, nil, []int64{-4, 2, 3}, nil},
			{one - 1, nil, []int64{-4, 2, 3}, []int64{1, 5}},
			{one, nil, []int64{-4, 2, 3}, []int64{1, 5}},
			{two - 1, nil, []int64{-4, 2, 3}, []int64{1, 5}},
			{two, nil, []int64{-4}, []int64{1}},
			{three - 1, nil, []int64{-4}, []int64{1}},
			{three, nil, nil, nil},
			{three + 5, nil, nil, nil},
			{three + 5, []int64{3, 5, 2, 5, 99, 3, 1}, []int64{2, 3}, []int64{1, 5, 99}},
			{0, []int64{-4}, []int64{-4}, nil},
			{0, []int64{}, nil, nil},
		} {
			changes := r.changes(t, c.since, c.ids)
			require.Equal(t, three, changes.Revision)
			var want []smallben.RawJob
			for _, id := range c.jobs {
				row := rows[id]
				smallben.SetRevision(&row, revisions[id])
				want = append(want, row)
			}
			if want == nil {
				require.Empty(t, changes.Jobs, "%+v", c)
			} else {
				require.Equal(t, want, changes.Jobs, "%+v", c)
			}
			require.ElementsMatch(t, c.gone, changes.Gone, "%+v", c)
		}
		// One that comes back is gone no longer.
		back := r.start(t, 5)
		changes := r.changes(t, three, nil)
		require.Equal(t, []int64{5}, rowIDs(changes.Jobs))
		require.Equal(t, back, smallben.Revision(changes.Jobs[0]))
		require.Empty(t, changes.Gone)
	})
}

func TestChangesAreOnePicture(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		r.start(t, 1, 2, 3)
		const rounds = 25
		other := r.another(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for n := range int64(rounds) {
				_, err := other.Change(inJobs(func(tx smallben.ChangeTx) error {
					changed := rawJobs(1, 2)
					expression := fmt.Sprintf("%d 4 * * *", n)
					changed[0].CronExpression, changed[1].CronExpression = expression, expression
					ephemeral := withSchedule(t, rawJob(100+n))
					if n%2 == 1 {
						return errors.Join(tx.SetCronIdAndChangeScheduleAndJobInput(withSchedule(t, changed...)), tx.DeleteJobsByIds([]int64{99 + n}))
					}
					return errors.Join(tx.SetCronIdAndChangeScheduleAndJobInput(withSchedule(t, changed...)), tx.AddJobs(ephemeral))
				}))
				assert.NoError(t, err)
			}
		}()
		seen, revisions := make(map[int64]smallben.RawJob), make(map[int64]int64)
		var revision int64
		follow := func() {
			t.Helper()
			changes := r.changes(t, revision, nil)
			for _, row := range changes.Jobs {
				require.Greater(t, changes.RevisionOf(row.ID), revision)
				require.LessOrEqual(t, changes.RevisionOf(row.ID), changes.Revision)
				revisions[row.ID] = changes.RevisionOf(row.ID)
				seen[row.ID] = row
			}
			for _, id := range changes.Gone {
				delete(seen, id)
			}
			require.GreaterOrEqual(t, changes.Revision, revision)
			revision = changes.Revision
			require.Equal(t, seen[1].CronExpression, seen[2].CronExpression)
			require.Equal(t, revisions[1], revisions[2])
			require.LessOrEqual(t, len(seen), 4)
			require.GreaterOrEqual(t, len(seen), 3)
		}
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			follow()
		}
		want := r.changes(t, 0, nil).Jobs
		require.Equal(t, want, slices.SortedFunc(maps.Values(seen), func(a, b smallben.RawJob) int { return cmp.Compare(a.ID, b.ID) }))
		require.Equal(t, fmt.Sprintf("%d 4 * * *", rounds-1), seen[1].CronExpression)
	})
}

// CompareMarks.

func TestCompareMarksFindsWhatWasWrittenWithoutTheRecord(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		r.start(t, 1, 2, 3, 4, 5, 6)
		r.change(t, func(tx smallben.ChangeTx) error {
			return errors.Join(tx.DeleteJobsByIds([]int64{6}), tx.PauseJobs(rawJobs(2)))
		})
		known := r.changes(t, 0, nil)
		plain := r.connect(t)
		changed := rawJob(3)
		changed.CronExpression = "@daily"
		back := rawJob(6)
		for _, c := range []struct {
			name string
			do   func() error
			jobs []int64 // that get a new revision and an account that begins now
			gone []int64
		}{
			{"nothing", func() error { return nil }, nil, nil},
			{"SetCronId", func() error { return plain.SetCronId(withSchedule(t, changed)) }, nil, nil},
			{"pause", func() error { return plain.PauseJobs(rawJobs(1)) }, []int64{1}, nil},
			{"resume", func() error { return plain.ResumeJobs(withSchedule(t, rawJobs(1, 2)...)) }, []int64{1, 2}, nil},
			{"update", func() error { return plain.SetCronIdAndChangeScheduleAndJobInput(withSchedule(t, changed)) }, []int64{3}, nil},
			{"delete", func() error { return plain.DeleteJobsByIds([]int64{4, 5}) }, nil, []int64{4, 5}},
			{"add", func() error { return plain.AddJobs(withSchedule(t, rawJobs(7, 4)...)) }, []int64{4, 7}, nil},
			{"add with the time of the mark", func() error { return plain.AddJobs(withSchedule(t, back)) }, []int64{6}, nil},
			{"delete and add with the time of the mark", func() error {
				return errors.Join(plain.DeleteJobsByIds([]int64{6}), plain.AddJobs(withSchedule(t, back)))
			}, nil, nil},
		} {
			t.Run(c.name, func(t *testing.T) {
				before := r.accounts(t, 1, 2, 3, 4, 5, 6, 7)
				require.NoError(t, c.do())
				changes := r.changes(t, known.Revision, nil)
				require.Empty(t, changes.Jobs, "a plain method marks nothing")
				start := time.Now()
				require.NoError(t, r.Compare())
				changes = r.changes(t, known.Revision, nil)
				require.ElementsMatch(t, c.jobs, rowIDs(changes.Jobs))
				require.ElementsMatch(t, c.gone, changes.Gone)
				for _, account := range r.accounts(t, 1, 2, 3, 4, 5, 6, 7) {
					if slices.Contains(c.jobs, account.JobID) {
						recent(t, account.Until, start)
						require.Greater(t, account.Revision, known.Revision)
						require.LessOrEqual(t, account.Revision, changes.Revision)
					} else {
						require.Contains(t, before, account)
					}
				}
				known = changes
				r.settled(t)
			})
		}
	})
}

func TestAJobThatWasAddedWithoutTheRecordHasNoAccountUntilItIsMarked(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		r.start(t, 2, 4, 6)
		gone := r.change(t, func(tx smallben.ChangeTx) error { return tx.DeleteJobsByIds([]int64{2, 4, 6}) })
		require.NoError(t, r.AddJobs(withSchedule(t, rawJobs(1, 2, 3, 4, 5, 6)...))) // the even ones with tombstones
		stale := []ledger.Result{ledger.Stale, ledger.Stale}
		for id := range int64(6) {
			require.Equal(t, stale, r.claim(t, "a", append(claimsOf(0, runKey(id+1, 1)), claimsOf(gone, runKey(id+1, 1))...)))
			r.win(t, "a", claimsOf(0, triggered(runKey(id+1, 1))))
		}
		for i, mark := range []func(ids []int64) error{
			func(ids []int64) error {
				_, err := r.Change(inJobs(func(tx smallben.ChangeTx) error { _, err := tx.Watermarks(ids); return err }))
				return err
			},
			func(ids []int64) error {
				_, err := r.Change(inJobs(func(tx smallben.ChangeTx) error {
					return tx.SetCronIdAndChangeScheduleAndJobInput(withSchedule(t, rawJobs(ids...)...))
				}))
				return err
			},
			func([]int64) error { return r.Compare() },
		} {
			ids := []int64{2*int64(i) + 1, 2*int64(i) + 2}
			start := time.Now()
			require.NoError(t, mark(ids))
			accounts := r.accounts(t, ids...)
			require.Len(t, accounts, 2)
			changes := r.changes(t, gone, ids)
			for i, account := range accounts {
				recent(t, account.Until, start)
				require.Equal(t, smallben.Revision(changes.Jobs[i]), account.Revision)
				require.Equal(t, []ledger.Result{ledger.Late, ledger.Won}, r.claim(t, "a",
					claimsOf(account.Revision, runKey(account.JobID, 1), ledger.Key{JobID: account.JobID, Tick: time.Now(), Attempt: 1})))
			}
		}
		r.settled(t)
	})
}

// Claim.

func TestAClaimIsAnsweredByWhatTheRecordKnows(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3, 4)
		revision2 := r.change(t, func(tx smallben.ChangeTx) error {
			return errors.Join(tx.PauseJobs(rawJobs(2)), tx.DeleteJobsByIds([]int64{4}), tx.Record(accountsAt(tickAt(10), 3), nil))
		})
		const hour, microsecond = time.Hour, time.Microsecond
		r.record(t, ended(runKey(1, 50), ledger.Outcome(smallben.OutcomeOK)), ended(runKey(1, 51), ledger.Missed), ended(runKey(3, 10), ledger.Outcome(smallben.OutcomeOK)),
			ended(triggered(runKey(1, 52)), ledger.Outcome(smallben.OutcomeOK)))
		r.win(t, "b", claimsOf(revision, runKey(1, 53)))
		now := time.Now()
		at := func(id int64, tick time.Time) ledger.Key {
			return ledger.Key{JobID: id, Tick: tick, Attempt: 1}
		}
		cases := []struct {
			name     string
			key      ledger.Key
			revision int64
			want     ledger.Result
		}{
			{"its tick", runKey(1, 1), revision, ledger.Won},
			{"a tick between seconds", at(1, tickAt(2).Add(microsecond)), revision, ledger.Won},
			{"a second attempt", attempt(2, runKey(1, 3)), revision, ledger.Won},
			{"a tick that is about to come", at(1, now.Add(900*time.Millisecond)), revision, ledger.Won},
			{"a tick to come", at(1, now.Add(time.Minute)), revision, ledger.Early},
			{"a trigger to come", triggered(at(1, now.Add(hour))), revision, ledger.Won},

			{"an old revision", runKey(1, 4), revision - 1, ledger.Stale},
			{"a revision to come", runKey(1, 4), revision + 1, ledger.Stale},
			{"no revision", runKey(1, 4), 0, ledger.Stale},
			{"a trigger with another revision", triggered(runKey(1, 4)), 0, ledger.Won},
			{"paused", runKey(2, 1), revision2, ledger.Stale},
			{"paused, triggered", triggered(runKey(2, 1)), revision2, ledger.Won},
			{"deleted", runKey(4, 1), revision2, ledger.Stale},
			{"deleted, old revision", runKey(4, 1), revision, ledger.Stale},
			{"deleted, triggered", triggered(runKey(4, 1)), revision2, ledger.Stale},
			{"never was", runKey(99, 1), revision, ledger.Stale},
			{"never was, triggered", triggered(runKey(99, 1)), revision, ledger.Stale},

			{"recorded by the account", runKey(3, 9), revision, ledger.Late},
			{"the last that the account has", at(3, tickAt(10)), revision, ledger.Late},
			{"the first that it has not", at(3, tickAt(10).Add(microsecond)), revision, ledger.Won},
			{"a trigger before the account", triggered(runKey(3, 9)), revision, ledger.Won},

			{"finished", runKey(1, 50), revision, ledger.Taken},
			{"missed", runKey(1, 51), revision, ledger.Taken},
			{"claimed by another", runKey(1, 53), revision, ledger.Taken},
			{"triggered at this time", triggered(runKey(1, 52)), revision, ledger.Taken},
			{"only triggered at this time", runKey(1, 52), revision, ledger.Won},
			{"a trigger at the time of a tick", triggered(runKey(1, 50)), revision, ledger.Won},
			{"another attempt than the one that is", attempt(2, runKey(1, 50)), revision, ledger.Won},

			// Stale comes before Late, Early and Taken, Late before Taken.
			{"stale and late", runKey(3, 9), revision - 1, ledger.Stale},
			{"stale and early", at(1, now.Add(hour)), revision - 1, ledger.Stale},
			{"stale and taken", runKey(1, 53), revision - 1, ledger.Stale},
			{"late and taken", runKey(3, 10), revision, ledger.Late},
		}
		var claims []ledger.Claim
		for _, c := range cases {
			claims = append(claims, claimsOf(c.revision, c.key)...)
		}
		before, asked := r.runs(t), slices.Clone(claims)
		results := r.claim(t, "a", claims)
		require.Len(t, results, len(cases))
		require.Equal(t, asked, claims)
		runs := r.runs(t)
		for i, c := range cases {
			assert.Equal(t, c.want, results[i], c.name)
			key := c.key
			key.Tick = storedTime(key.Tick)
			run, exists := runs[key]
			if c.want != ledger.Won {
				assert.Equal(t, before[key], run, c.name)
				continue
			}
			if !assert.True(t, exists, c.name) {
				continue
			}
			recent(t, run.Start, now)
			assert.Equal(t, ledger.Run{Key: key, GroupID: key.JobID % 5, SuperGroupID: key.JobID % 3, Process: "a", Start: run.Start, Outcome: ledger.Running}, run, c.name)
		}
	})
}

func TestAClaimOfOnesOwnUnfinishedRunIsWonAgain(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3, 4)
		claims := append(claimsOf(revision, runKey(1, 1), runKey(2, 1), runKey(3, 1), runKey(4, 1)), exclusively(claimsOf(revision, runKey(4, 2)))...)
		r.win(t, "a", claims)
		before := r.runs(t)
		r.win(t, "a", claims)
		r.win(t, "a", append(claims, claims...))
		for i, result := range r.claim(t, "b", claims) {
			require.Equal(t, ledger.Taken, result, "%d", i)
		}
		require.True(t, r.busy(t, 4))
		r.change(t, func(tx smallben.ChangeTx) error {
			return errors.Join(tx.PauseJobs(rawJobs(1)), tx.DeleteJobsByIds([]int64{2}), tx.Record(accountsAt(tickAt(9), 3), nil))
		})
		r.win(t, "a", claims)
		require.Equal(t, before, r.runs(t))

		// Finished and lost ones are not.
		require.NoError(t, r.Finish("a", []ledger.End{finished(runKey(4, 1))}))
		require.Equal(t, []ledger.Result{ledger.Taken}, r.claim(t, "a", claims[3:4]))
		require.NoError(t, r.Leave("a"))
		r.change(t, func(tx smallben.ChangeTx) error { _, err := tx.Expire(nil); return err })
		require.NoError(t, r.Join("a"))
		require.Equal(t, []ledger.Result{ledger.Taken}, r.claim(t, "a", claims[4:]))
		require.False(t, r.busy(t, 4))
	})
}

func TestARunClaimedTwiceInOneCallIsOneRun(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1)
		r.win(t, "a", claimsOf(revision, runKey(1, 1), runKey(1, 2), runKey(1, 1)))
		r.win(t, "a", exclusively(claimsOf(revision, runKey(1, 3), runKey(1, 3))))
		require.Len(t, r.runs(t), 3)
	})
}

func TestAClaimNeedsAProcessThatIsRegistered(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1)
		require.NoError(t, r.Leave("a"))
		r.change(t, func(tx smallben.ChangeTx) error { _, err := tx.Expire([]ledger.Member{{Process: "b"}}); return err })
		for _, process := range []string{"a", "b", "nobody", ""} {
			results, err := r.Claim(process, claimsOf(revision, runKey(1, 1), triggered(runKey(1, 1))))
			require.ErrorIs(t, err, ledger.ErrNotRegistered)
			require.Empty(t, results)
		}
		require.Empty(t, r.runs(t))
	})
}

func TestOneRunAtATimeHoldsTheRunningKey(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2)
		result := func(process string, claim []ledger.Claim) ledger.Result {
			t.Helper()
			return r.claim(t, process, claim)[0]
		}
		first := exclusively(claimsOf(revision, runKey(1, 1)))
		end := finished(runKey(1, 1))
		end.Overlap = ledger.Skip
		r.win(t, "a", first)
		require.True(t, r.busy(t, 1))
		require.False(t, r.busy(t, 2))

		start := time.Now()
		skipped := runKey(1, 2)
		require.Equal(t, ledger.Overlapped, result("b", exclusively(claimsOf(revision, skipped))))
		run := r.runs(t)[skipped]
		recent(t, run.Start, start)
		recent(t, run.End, start)
		require.Equal(t, ledger.Run{Key: skipped, GroupID: 1, SuperGroupID: 1, Process: "b", Start: run.Start, End: run.End, Outcome: ledger.Skipped, Exclusive: true}, run)
		require.True(t, r.runs(t)[runKey(1, 1)].Exclusive)
		require.Equal(t, ledger.Taken, result("b", exclusively(claimsOf(revision, skipped))))
		require.Equal(t, ledger.Overlapped, result("a", exclusively(claimsOf(revision, triggered(runKey(1, 2))))), "a triggered one, of the same process")
		require.Equal(t, ledger.Taken, result("b", first))
		require.Equal(t, ledger.Stale, result("b", exclusively(claimsOf(revision-1, runKey(1, 3)))))
		r.win(t, "b", claimsOf(revision, runKey(1, 3)))              // one that is not exclusive
		r.win(t, "b", exclusively(claimsOf(revision, runKey(2, 1)))) // one of another job
		r.win(t, "a", first)

		// Only the run that holds it frees it.
		other := finished(skipped)
		other.Overlap = ledger.Skip
		require.NoError(t, r.Finish("b", []ledger.End{end, other}))
		another := finished(attempt(2, runKey(1, 1)))
		another.Overlap = ledger.Skip
		require.NoError(t, r.Finish("a", []ledger.End{another}))
		require.NoError(t, r.Finish("b", []ledger.End{finished(runKey(1, 3))}))
		require.True(t, r.busy(t, 1))
		require.Equal(t, run, r.runs(t)[skipped])
		require.NoError(t, r.Finish("a", []ledger.End{end}))
		require.False(t, r.busy(t, 1))

		// A claim that is not won takes none.
		require.Equal(t, ledger.Taken, result("b", exclusively(claimsOf(revision, runKey(1, 1)))))
		require.False(t, r.busy(t, 1))
		r.win(t, "b", exclusively(claimsOf(revision, runKey(1, 4))))
		require.True(t, r.busy(t, 1))
	})
}

func TestOneOfSeveralExclusiveClaimsInACallIsWon(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3)
		claims := exclusively(claimsOf(revision, runKey(2, 3), runKey(1, 1), runKey(2, 1), triggered(runKey(2, 1)), runKey(2, 2)))
		claims = append(claims, claimsOf(revision, runKey(2, 4), runKey(3, 1))...)
		results := r.claim(t, "a", claims)
		count := make(map[ledger.Result]int)
		for i, claim := range claims {
			if claim.JobID == 2 && claim.Overlap != ledger.Allow {
				count[results[i]]++
			} else {
				require.Equal(t, ledger.Won, results[i], "%d", i)
			}
			want := map[ledger.Result]ledger.Outcome{ledger.Won: ledger.Running, ledger.Overlapped: ledger.Skipped}
			require.Equal(t, want[results[i]], r.runs(t)[claim.Key].Outcome)
		}
		require.Equal(t, map[ledger.Result]int{ledger.Won: 1, ledger.Overlapped: 3}, count)
		require.True(t, r.busy(t, 1))
		require.True(t, r.busy(t, 2))
		require.False(t, r.busy(t, 3))
	})
}

// TestALargeCallIsAnsweredInOrder claims and finishes more than fits a statement.
func TestALargeCallIsAnsweredInOrder(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		const size = 5_000
		revision := r.start(t, 1, 2, 3)
		r.change(t, func(tx smallben.ChangeTx) error { return tx.PauseJobs(rawJobs(3)) })
		var claims []ledger.Claim
		var ends []ledger.End
		want := make([]ledger.Result, size)
		for i, n := range rand.New(rand.NewPCG(1, 2)).Perm(size) {
			claims = append(claims, claimsOf(revision, runKey(int64(n%3)+1, n+1))...)
			ends = append(ends, finished(claims[i].Key))
			want[i] = ledger.Won
			if claims[i].JobID == 3 {
				want[i] = ledger.Stale
			}
		}
		asked := slices.Clone(claims)
		require.Equal(t, want, r.claim(t, "a", claims))
		require.Equal(t, asked, claims, "the arguments are the caller's")
		require.Equal(t, want, r.claim(t, "a", claims))
		given := slices.Clone(ends)
		require.NoError(t, r.Finish("a", ends))
		require.Equal(t, given, ends)
		runs := r.runs(t)
		require.Len(t, runs, size-size/3)
		for key, run := range runs {
			require.Equal(t, ledger.Outcome(smallben.OutcomeOK), run.Outcome, "%v", key)
			require.Equal(t, key.Tick.Add(time.Minute), run.End)
		}
	})
}

func TestTicksAreTheSameInEveryZoneAndToTheMicrosecond(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1)
		fine := ledger.Key{JobID: 1, Tick: tickAt(1).Add(123456789).In(time.FixedZone("here", 5*3600)), Attempt: 1}
		stored := fine
		stored.Tick = tickAt(1).Add(123456000)
		r.win(t, "a", claimsOf(revision, fine))
		require.Equal(t, []ledger.Result{ledger.Taken}, r.claim(t, "b", claimsOf(revision, stored)))
		end := finished(fine)
		end.Start, end.End = fine.Tick.Add(time.Nanosecond), fine.Tick.Add(time.Second)
		require.NoError(t, r.Finish("a", []ledger.End{end}))
		run := r.runs(t)[stored]
		require.Equal(t, []time.Time{stored.Tick, stored.Tick, stored.Tick.Add(time.Second)}, []time.Time{run.Tick, run.Start, run.End})
		r.look(t, func(tx smallben.ChangeTx) {
			ticks, err := tx.RecordedTicks([]ledger.Span{{JobID: 1, After: dawn.In(time.Local), Until: fine.Tick}})
			require.NoError(t, err)
			require.Equal(t, [][]time.Time{{stored.Tick}}, ticks)
		})
	})
}

// TestEachTickIsWonOnce lets processes claim the same ticks, in batches of any
// order, while jobs are paused.
func TestEachTickIsWonOnce(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		const jobs, ticks, batch = 12, 12, 24 // odd jobs are exclusive, those up to 4 are paused
		var ids []int64
		for id := range int64(jobs) {
			ids = append(ids, id+1)
		}
		revision := r.start(t, ids...)
		var paused [jobs + 1]atomic.Bool
		var mu sync.Mutex
		winners := make(map[ledger.Key]string)
		var wg sync.WaitGroup
		other := r.another(t)
		for p, recorder := range []recordStore{r.recordStore, other, r.recordStore, other} {
			process := fmt.Sprintf("process %d", p)
			require.NoError(t, recorder.Join(process))
			wg.Go(func() {
				order := rand.Perm(jobs * ticks)
				for chunk := range slices.Chunk(order, batch) {
					var claims []ledger.Claim
					var before []bool
					for _, n := range chunk {
						claim := claimsOf(revision, runKey(int64(n%jobs)+1, n/jobs+1))[0]
						claim.Overlap = lockedIf(claim.JobID%2 == 1)
						claims, before = append(claims, claim), append(before, paused[claim.JobID].Load())
					}
					results, err := recorder.Claim(process, claims)
					if !assert.NoError(t, err) {
						return
					}
					mu.Lock()
					for i, result := range results {
						if result != ledger.Won {
							continue
						}
						assert.False(t, before[i], "won after the pause: %+v", claims[i])
						assert.Empty(t, winners[claims[i].Key], "won twice: %+v", claims[i])
						winners[claims[i].Key] = process
					}
					mu.Unlock()
				}
			})
		}
		for w, recorder := range []recordStore{r.recordStore, other} {
			wg.Go(func() {
				for _, id := range [][]int64{{3, 1}, {2, 4}}[w] {
					_, err := recorder.Change(inJobs(func(tx smallben.ChangeTx) error {
						return errors.Join(tx.PauseJobs(rawJobs(id)), tx.SetCronId(withSchedule(t, rawJobs(9, 8, 7)...)))
					}))
					assert.NoError(t, err)
					paused[id].Store(true)
				}
			})
		}
		wg.Wait()
		running := make(map[int64]int)
		for key, run := range r.runs(t) {
			if run.Outcome == ledger.Running {
				require.Equal(t, winners[key], run.Process)
				delete(winners, key)
				running[key.JobID]++
			} else {
				require.Equal(t, ledger.Skipped, run.Outcome)
				require.EqualValues(t, 1, key.JobID%2)
			}
		}
		require.Empty(t, winners, "won and not recorded")
		for _, id := range ids {
			switch {
			case id%2 == 1:
				require.LessOrEqual(t, running[id], 1, "job %d", id)
				require.True(t, running[id] == 1 || id <= 4, "job %d", id)
			case id > 4:
				require.Equal(t, ticks, running[id], "job %d", id)
			}
		}
	})
}

// Finish.

func TestAFinishMatchesProcessAndKey(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		const OK, Lost, Missed, Skipped = ledger.Outcome(smallben.OutcomeOK), ledger.Lost, ledger.Missed, ledger.Skipped
		revision := r.start(t, 1)
		r.win(t, "b", claimsOf(revision, runKey(1, 4), runKey(1, 14)))
		r.win(t, "a", claimsOf(revision, runKey(1, 1), attempt(2, runKey(1, 2)), triggered(runKey(1, 3)), runKey(1, 11), runKey(1, 20)))
		lost := ended(runKey(1, 8), Lost)
		lost.Process = "b"
		makesUp := ended(runKey(1, 21), ledger.Running)
		makesUp.Missed, makesUp.FirstTick = 3, tickAt(18)
		r.record(t, ended(runKey(1, 5), OK), ended(runKey(1, 6), Lost), ended(runKey(1, 7), Missed), lost, ended(runKey(1, 9), Skipped), makesUp,
			ended(runKey(1, 12), Missed), ended(runKey(1, 13), OK), ended(runKey(1, 15), Skipped), ended(runKey(1, 16), Lost))
		cases := []struct {
			name      string
			key       ledger.Key
			unclaimed bool
			set       bool
		}{
			{"claimed", runKey(1, 1), false, true},
			{"claimed, another attempt", runKey(1, 2), false, false},
			{"claimed, that attempt", attempt(2, runKey(1, 2)), false, true},
			{"claimed when triggered, the tick", runKey(1, 3), false, false},
			{"claimed when triggered", triggered(runKey(1, 3)), false, true},
			{"claimed by another", runKey(1, 4), false, false},
			{"finished", runKey(1, 5), false, false},
			{"lost", runKey(1, 6), false, true},
			{"missed", runKey(1, 7), false, false},
			{"lost by another", runKey(1, 8), false, false},
			{"skipped", runKey(1, 9), false, false},
			{"never claimed", runKey(1, 10), false, false},
			{"recorded as running", runKey(1, 21), false, true},

			{"unclaimed", runKey(1, 10), true, true},
			{"unclaimed, of no job", runKey(99, 10), true, true},
			{"unclaimed, with a claim after all", runKey(1, 11), true, true},
			{"unclaimed, missed", runKey(1, 12), true, true},
			{"unclaimed, finished", runKey(1, 13), true, false},
			{"unclaimed, claimed by another", runKey(1, 14), true, false},
			{"unclaimed, skipped", runKey(1, 15), true, true},
			{"unclaimed, lost", runKey(1, 16), true, true},
		}
		var ends []ledger.End
		for i, c := range cases {
			ends = append(ends, ledger.End{
				Key: c.key, Start: tickAt(100 + i), End: tickAt(200 + i), Outcome: ledger.Outcome(smallben.OutcomeError), Error: c.name,
				Unclaimed: c.unclaimed, GroupID: c.key.JobID % 5, SuperGroupID: c.key.JobID % 3,
			})
		}
		// A run that is not finished here may be the same as one that is, below.
		before := r.runs(t)
		require.NoError(t, r.Finish("a", ends[:13]))
		require.NotContains(t, r.runs(t), runKey(1, 10))
		require.NoError(t, r.Finish("a", ends[13:]))
		after := r.runs(t)
		for i, c := range cases {
			if !c.set {
				if c.key != runKey(1, 10) {
					assert.Equal(t, before[c.key], after[c.key], c.name)
				}
				continue
			}
			want := before[c.key]
			if want.Outcome == Missed {
				want.Missed, want.FirstTick = after[c.key].Missed, after[c.key].FirstTick
			}
			want.Key, want.Process = c.key, "a"
			if want.Outcome == "" || want.Outcome == Missed || want.Outcome == ledger.Skipped {
				want.GroupID, want.SuperGroupID = c.key.JobID%5, c.key.JobID%3
			}
			want.Start, want.End, want.Outcome, want.Error = ends[i].Start, ends[i].End, ends[i].Outcome, ends[i].Error
			assert.Equal(t, want, after[c.key], c.name)
		}
		require.Equal(t, before[runKey(1, 20)], after[runKey(1, 20)], "the others")
		// What is finished stays as it is.
		for i := range ends {
			ends[i].Error = "again"
		}
		require.NoError(t, r.Finish("a", ends))
		require.Equal(t, after, r.runs(t))
	})
}

func TestALateFinishCorrectsALostRun(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1)
		first, second := runKey(1, 1), runKey(1, 2)
		r.win(t, "a", exclusively(claimsOf(revision, first)))
		r.change(t, func(tx smallben.ChangeTx) error { _, err := tx.Expire([]ledger.Member{{Process: "a"}}); return err })
		require.Equal(t, ledger.Lost, r.runs(t)[first].Outcome)
		r.win(t, "b", exclusively(claimsOf(revision, second)))
		late := finished(first)
		late.Overlap = ledger.Skip
		require.NoError(t, r.Finish("a", []ledger.End{late}), "although it is not registered")
		run := r.runs(t)[first]
		require.Equal(t, ledger.Outcome(smallben.OutcomeOK), run.Outcome)
		require.Equal(t, late.End, run.End)
		require.True(t, r.busy(t, 1), "another run holds the key by now")

		// Nor does it free the key of a later run of the same process.
		require.NoError(t, r.Leave("b"))
		r.change(t, func(tx smallben.ChangeTx) error { _, err := tx.Expire(nil); return err })
		require.NoError(t, r.Join("b"))
		r.win(t, "b", exclusively(claimsOf(revision, runKey(1, 3))))
		late.Key = second
		require.NoError(t, r.Finish("b", []ledger.End{late}))
		require.Equal(t, ledger.Outcome(smallben.OutcomeOK), r.runs(t)[second].Outcome)
		require.True(t, r.busy(t, 1))
	})
}

func TestAFinishRecordsWhateverAJobSays(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1)
		texts := []string{"naïve – ✓ 'quoted' \\ {a,NULL}\n", "a zero \x00 byte", "no \xff UTF-8", strings.Repeat("long ", 200_000), ""}
		var ends []ledger.End
		for i, text := range texts {
			r.win(t, "a", claimsOf(revision, runKey(1, i+1)))
			end := finished(runKey(1, i+1))
			end.Outcome, end.Error = ledger.Outcome(smallben.OutcomePanic), text
			unclaimed := end
			unclaimed.Key, unclaimed.Unclaimed = runKey(2, i+1), true
			ends = append(ends, end, unclaimed)
		}
		require.NoError(t, r.Finish("a", ends))
		runs := r.runs(t)
		require.Len(t, runs, len(ends))
		for key, run := range runs {
			require.Equal(t, ledger.Outcome(smallben.OutcomePanic), run.Outcome, "%v", key)
			require.Equal(t, key.JobID == 1 && key.Tick.Equal(tickAt(len(texts))) || key.JobID == 2 && key.Tick.Equal(tickAt(len(texts))), run.Error == "")
		}
		require.Equal(t, texts[0], runs[runKey(1, 1)].Error)
		require.Equal(t, texts[0], runs[runKey(2, 1)].Error)
	})
}

// Expire.

func TestExpireLosesTheRunsOfWhoIsNotRegistered(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3)
		for _, process := range []string{"dead", "left", "revived"} {
			require.NoError(t, r.Join(process))
		}
		_, err := r.Beat("dead", claiming)
		require.NoError(t, err)
		_, err = r.Beat("revived", claiming)
		require.NoError(t, err)
		r.win(t, "dead", append(exclusively(claimsOf(revision, runKey(1, 1))), claimsOf(revision, runKey(1, 2), triggered(runKey(2, 2)), runKey(2, 3))...))
		r.win(t, "left", claimsOf(revision, runKey(2, 1)))
		r.win(t, "revived", exclusively(claimsOf(revision, runKey(3, 1))))
		r.win(t, "a", claimsOf(revision, runKey(3, 2)))
		require.Equal(t, ledger.Overlapped, r.claim(t, "dead", exclusively(claimsOf(revision, runKey(1, 3))))[0])
		require.NoError(t, r.Finish("dead", []ledger.End{finished(runKey(2, 3))}))
		require.NoError(t, r.Leave("left"))
		before := r.runs(t)

		start := time.Now()
		var lost []ledger.Run
		r.change(t, func(tx smallben.ChangeTx) (err error) {
			lost, err = tx.Expire([]ledger.Member{{Process: "dead", Beats: 1}, {Process: "revived"}, {Process: "b", Beats: 7}, {Process: "nobody"}})
			require.NoError(t, err)
			again, err := tx.Expire(nil)
			require.Empty(t, again)
			return err
		})
		after := r.runs(t)
		want := make(map[ledger.Key]bool)
		for _, key := range []ledger.Key{runKey(1, 1), runKey(1, 2), triggered(runKey(2, 2)), runKey(2, 1)} {
			run := before[key]
			run.Outcome, run.End = ledger.Lost, after[key].End
			recent(t, run.End, start)
			require.Equal(t, run, after[key])
			require.Contains(t, lost, run)
			want[key] = true
		}
		require.Len(t, lost, len(want))
		for key, run := range before {
			if !want[key] {
				require.Equal(t, run, after[key])
			}
		}
		require.False(t, r.busy(t, 1))
		require.True(t, r.busy(t, 3))
		heartbeat, err := r.Beat("a", claiming)
		require.NoError(t, err)
		require.ElementsMatch(t, []ledger.Member{{Process: "a", Beats: 1, Standing: claiming}, {Process: "b"}, {Process: "revived", Beats: 1, Standing: claiming}}, heartbeat.Members)
	})
}

func TestAnExpiredProcessLeavesNoRunUnfinished(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1)
		other := r.another(t)
		require.NoError(t, other.Join("slow"))
		begun := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for n := 1; ; n++ {
				_, err := other.Claim("slow", claimsOf(revision, runKey(1, n)))
				if n == 1 {
					close(begun)
				}
				if err != nil {
					assert.ErrorIs(t, err, ledger.ErrNotRegistered)
					return
				}
			}
		})
		<-begun
		var lost []ledger.Run
		r.change(t, func(tx smallben.ChangeTx) (err error) {
			lost, err = tx.Expire([]ledger.Member{{Process: "slow"}})
			return err
		})
		wg.Wait()
		require.NotEmpty(t, lost)
		require.Len(t, r.runs(t), len(lost))
		for key, run := range r.runs(t) {
			require.Equal(t, ledger.Lost, run.Outcome, "%v", key)
		}
	})
}

// TestAnExpiryThatIsRolledBackHurtsNobody claims while the process is being removed.
func TestAnExpiryThatIsRolledBackHurtsNobody(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1)
		other := r.another(t)
		answered := make(chan error, 1)
		r.look(t, func(tx smallben.ChangeTx) {
			_, err := tx.Expire([]ledger.Member{{Process: "b"}})
			require.NoError(t, err)
			go func() {
				_, err := other.Claim("b", claimsOf(revision, runKey(1, 1)))
				answered <- err
			}()
			r.until(t, tx, func() bool { return len(answered) > 0 })
		})
		require.NoError(t, <-answered, "it is registered, and never was not")
	})
}

// TestAnExpiryDoesNotWaitForWhoWaitsForIt has a claim wait for the lock of a
// run that is being lost, when the Change goes on to the accounts.
func TestAnExpiryDoesNotWaitForWhoWaitsForIt(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1)
		r.win(t, "a", exclusively(claimsOf(revision, runKey(1, 1))))
		other := r.another(t)
		answered := make(chan []ledger.Result, 1)
		again := ended(attempt(2, runKey(1, 1)), ledger.Running)
		again.Process, again.Exclusive = "b", true
		r.change(t, func(tx smallben.ChangeTx) error {
			_, expireErr := tx.Expire([]ledger.Member{{Process: "a"}})
			go func() {
				results, err := other.Claim("b", exclusively(claimsOf(revision, runKey(1, 2))))
				assert.NoError(t, err)
				answered <- results
			}()
			r.until(t, tx, func() bool { return len(answered) > 0 })
			accounts, err := tx.Watermarks([]int64{1})
			if err == nil {
				assert.Equal(t, []ledger.Watermark{{JobID: 1, Until: dawn, Revision: revision, CreatedAt: rawJob(1).CreatedAt}}, accounts)
			}
			return errors.Join(expireErr, err, tx.Record(nil, []ledger.Run{again}))
		})
		require.Equal(t, []ledger.Result{ledger.Overlapped}, <-answered)
		require.True(t, r.busy(t, 1))
	})
}

// TestAnExpiryIsNotEndedForADeadlock has a claim that holds up an expiry, and then
// asks for a lock of a job that the expiry frees.
func TestAnExpiryIsNotEndedForADeadlock(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	r := records{recordStore: recordOf(db.open(t))}
	require.NoError(t, r.Open(recordLocation))
	for _, process := range []string{"a", "b"} {
		require.NoError(t, r.Join(process))
	}
	revision := r.start(t, 1, 2)
	r.win(t, "a", exclusively(claimsOf(revision, runKey(2, 1))))
	waiting := func(n int) {
		for deadline := time.Now().Add(15 * time.Second); ; {
			var found int
			err := db.pool.QueryRow("SELECT count(*) FROM pg_stat_activity WHERE application_name = current_schema() AND wait_event_type = 'Lock'").Scan(&found)
			if !assert.NoError(t, err) || found >= n || !assert.True(t, time.Now().Before(deadline), "fewer than %d wait", n) {
				return
			}
		}
	}
	// The claim waits for the key of job 1, until the expiry waits for the claim.
	third, err := db.pool.Begin()
	require.NoError(t, err)
	_, err = third.Exec("INSERT INTO smallben_locks (job_id, process, tick, triggered, attempt) VALUES (1, 'third', 0, false, 1)")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := r.Claim("b", exclusively(claimsOf(revision, runKey(1, 2), runKey(2, 2))))
		assert.NoError(t, err)
	})
	waiting(1)
	r.change(t, func(tx smallben.ChangeTx) error {
		wg.Go(func() {
			waiting(2)
			assert.NoError(t, third.Rollback())
		})
		_, expireErr := tx.Expire([]ledger.Member{{Process: "a"}})
		_, err := tx.Watermarks([]int64{2})
		return errors.Join(expireErr, err)
	})
	wg.Wait()
}

// RecordedTicks and Record.

func TestRecordedTicksAreThoseInEachSpan(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		r.start(t, 1, 2)
		var runs []ledger.Run
		for n, outcome := range []ledger.Outcome{"", ledger.Outcome(smallben.OutcomeOK), ledger.Missed, ledger.Skipped, ledger.Lost, ledger.Running, ledger.Outcome(smallben.OutcomeError)} {
			if n > 0 {
				runs = append(runs, ended(runKey(1, n), outcome))
			}
		}
		runs = append(runs, ended(attempt(2, runKey(1, 4)), ledger.Outcome(smallben.OutcomeOK)), ended(attempt(2, runKey(1, 9)), ledger.Outcome(smallben.OutcomeOK)),
			ended(triggered(runKey(1, 7)), ledger.Outcome(smallben.OutcomeOK)), ended(triggered(runKey(1, 2)), ledger.Outcome(smallben.OutcomeOK)),
			ended(runKey(2, 3), ledger.Outcome(smallben.OutcomeOK)), ended(runKey(2, 8), ledger.Outcome(smallben.OutcomeOK)))
		r.record(t, runs...)
		spans := []ledger.Span{
			{JobID: 2, After: dawn, Until: tickAt(100)},
			{JobID: 1, After: dawn, Until: tickAt(100)},
			{JobID: 1, After: tickAt(2), Until: tickAt(4)},
			{JobID: 3, After: dawn, Until: tickAt(100)},
			{JobID: 1, After: tickAt(2).Add(-time.Microsecond), Until: tickAt(4).Add(-time.Microsecond)},
			{JobID: 1, After: tickAt(4), Until: tickAt(4)},
			{JobID: 2, After: tickAt(3), Until: tickAt(7)},
			{JobID: 2, After: dawn, Until: tickAt(100)},
		}
		at := func(ns ...int) (ticks []time.Time) {
			for _, n := range ns {
				ticks = append(ticks, tickAt(n))
			}
			return ticks
		}
		want := [][]time.Time{at(3, 8), at(1, 2, 3, 4, 5, 6, 9), at(3, 4), nil, at(2, 3), nil, nil, at(3, 8)}
		r.look(t, func(tx smallben.ChangeTx) {
			ticks, err := tx.RecordedTicks(spans)
			require.NoError(t, err)
			require.Len(t, ticks, len(spans))
			for i := range spans {
				require.Equal(t, want[i], append([]time.Time(nil), ticks[i]...), "span %d", i)
			}
		})
	})
}

func TestARunIsSupersededByALaterTickThatHasStartedOrWaits(t *testing.T) {
	for outcome, supersedes := range map[ledger.Outcome]bool{
		ledger.Running: true, ledger.Waiting: true, ledger.Lost: true, ledger.Outcome(smallben.OutcomeOK): true,
		ledger.Missed: false, ledger.Skipped: false,
	} {
		t.Run(string(outcome), func(t *testing.T) {
			eachRecorder(t, func(t *testing.T, r records) {
				r.start(t, 1, 2)
				r.record(t, ended(runKey(1, 1), ledger.Lost), ended(runKey(1, 2), outcome), ended(triggered(runKey(2, 9)), outcome))
				var want []int
				if supersedes {
					want = []int{1, 2}
				}
				r.look(t, func(tx smallben.ChangeTx) {
					found, err := tx.Superseded([]ledger.Key{runKey(2, 1), runKey(1, 1), attempt(3, runKey(1, 1)), runKey(1, 2), runKey(1, 3), runKey(3, 1)})
					require.NoError(t, err)
					require.Equal(t, want, found)
				})
			})
		})
	}
}

func TestFormerJobsAreKeptUntilTheJobIsDeleted(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		r.start(t, 1, 2, 3)
		set := func(former map[int64]string) {
			t.Helper()
			r.change(t, func(tx smallben.ChangeTx) error { return tx.SetFormerJobs(former) })
		}
		check := func(want map[int64]string, decoding bool) {
			t.Helper()
			r.look(t, func(tx smallben.ChangeTx) {
				former, found, err := tx.FormerJobs([]int64{1, 2, 4}, time.Minute)
				require.NoError(t, err)
				require.Equal(t, want, maps.Collect(maps.All(former)), "%v", former)
				require.Equal(t, decoding, found)
			})
		}
		_, err := r.Beat("a", claiming)
		require.NoError(t, err)
		check(map[int64]string{}, false)
		set(nil)
		set(map[int64]string{1: "one", 2: "two", 3: "three", 4: "none"})
		check(map[int64]string{1: "one", 2: "two"}, true)
		for _, standing := range []ledger.Standing{{}, {Claims: true, Partial: true}} {
			_, err := r.Beat("a", standing)
			require.NoError(t, err)
			check(map[int64]string{1: "one", 2: "two"}, false)
		}
		set(map[int64]string{1: ""})
		check(map[int64]string{2: "two"}, false)
		jobs := withSchedule(t, rawJobs(2)...)
		r.change(t, func(tx smallben.ChangeTx) error { return tx.DeleteJobsByIds([]int64{2}) })
		r.change(t, func(tx smallben.ChangeTx) error { return tx.AddJobs(jobs) })
		check(map[int64]string{}, false)
	})
}

func TestRecordKeepsRunsAsTheyAre(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		runs := []ledger.Run{
			{Key: runKey(1, 1), Process: "host/1/x", Start: tickAt(2), End: tickAt(3), Outcome: ledger.Outcome(smallben.OutcomeError), Error: "naïve – ✓ 'no' \\ {NULL}\n", GroupID: 7, SuperGroupID: 8},
			{Key: runKey(math.MaxInt64, 2), GroupID: math.MinInt64, SuperGroupID: math.MaxInt64, Process: "a", Start: tickAt(5), Outcome: ledger.Running},
			{Key: triggered(attempt(2, runKey(math.MinInt64, 2))), Process: "a", Start: tickAt(5), Outcome: ledger.Running, Exclusive: true},
			{Key: runKey(1, 9), Process: "b", Start: tickAt(40), End: tickAt(40), Outcome: ledger.Missed, Missed: 10_000, FirstTick: tickAt(2).Add(time.Microsecond)},
			{Key: runKey(1, 10), Process: "b", Start: tickAt(40), Outcome: ledger.Running, Missed: 4, FirstTick: tickAt(7), Exclusive: true},
			{Key: runKey(1, 11), Process: "b", Start: tickAt(40), End: tickAt(41), Outcome: ledger.Skipped, Exclusive: true},
			{Key: runKey(1, 12), Process: "", Start: tickAt(40), End: tickAt(41), Outcome: ledger.Lost},
			{Key: ledger.Key{JobID: 2, Tick: time.Date(2999, 12, 31, 23, 59, 59, 999999000, time.UTC), Attempt: 1}, Process: "a", Start: time.Date(1969, 12, 31, 23, 59, 59, 999999000, time.UTC), End: tickAt(1), Outcome: ledger.Outcome(smallben.OutcomeOK)},
		}
		r.start(t, 1)
		r.record(t, runs...)
		byKey := r.runs(t)
		require.Len(t, byKey, len(runs))
		for _, run := range runs {
			require.Equal(t, run, byKey[run.Key])
		}

		// What it started can be finished, by its process.
		require.True(t, r.busy(t, 1))
		end := finished(runKey(1, 10))
		end.Overlap = ledger.Skip
		require.NoError(t, r.Finish("a", []ledger.End{end}))
		require.True(t, r.busy(t, 1))
		require.NoError(t, r.Finish("b", []ledger.End{end}))
		require.False(t, r.busy(t, 1))
		run := runs[4]
		run.Start, run.End, run.Outcome = end.Start, end.End, end.Outcome
		require.Equal(t, run, r.runs(t)[run.Key])
	})
}

func TestRecordSetsHowFarTicksAreRecorded(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2)
		changes := r.changes(t, 0, nil)
		r.change(t, func(tx smallben.ChangeTx) error {
			return tx.Record([]ledger.Watermark{{JobID: 1, Until: tickAt(5).In(time.FixedZone("here", 3600)), Revision: 99, Busy: true}}, nil)
		})
		require.Equal(t, []ledger.Watermark{{JobID: 1, Until: tickAt(5), Revision: revision}, {JobID: 2, Until: dawn, Revision: revision}}, r.accounts(t, 1, 2))
		require.Equal(t, changes.Jobs, r.changes(t, 0, nil).Jobs)
		require.Equal(t, []ledger.Result{ledger.Late, ledger.Won, ledger.Won},
			r.claim(t, "a", claimsOf(revision, runKey(1, 5), runKey(1, 6), runKey(2, 5))))
	})
}

func TestRecordRefusesAKeyThatExists(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2)
		r.win(t, "a", exclusively(claimsOf(revision, runKey(1, 1))))
		r.record(t, ended(runKey(2, 1), ledger.Missed))
		exclusive := ended(runKey(1, 2), ledger.Running)
		exclusive.Exclusive = true
		one, two := exclusive, exclusive
		one.Key, two.Key = runKey(2, 2), runKey(2, 3)
		before, accounts := r.runs(t), r.accounts(t, 1, 2)
		for name, runs := range map[string][]ledger.Run{
			"of a claim":                       {ended(runKey(1, 1), ledger.Missed)},
			"of a missed tick":                 {ended(runKey(2, 1), ledger.Missed)},
			"twice":                            {ended(runKey(2, 4), ledger.Missed), ended(runKey(2, 4), ledger.Outcome(smallben.OutcomeOK))},
			"a running key that is held":       {exclusive},
			"a running key, twice in one call": {one, two},
		} {
			_, err := r.Change(inJobs(func(tx smallben.ChangeTx) error {
				require.NoError(t, tx.Record(accountsAt(tickAt(8), 1), []ledger.Run{ended(runKey(1, 8), ledger.Missed)}))
				return tx.Record(accountsAt(tickAt(9), 1, 2), append([]ledger.Run{ended(runKey(1, 9), ledger.Missed)}, runs...))
			}))
			require.Error(t, err, name)
			require.Equal(t, before, r.runs(t), name)
			require.Equal(t, accounts, r.accounts(t, 1, 2), name)
		}
		// Neither a run that has ended nor one that is not exclusive takes it.
		ended1, plain := exclusive, exclusive
		ended1.Outcome, ended1.End = ledger.Skipped, tickAt(3)
		plain.Key, plain.Exclusive = runKey(1, 3), false
		r.record(t, ended1, plain, one)
		require.True(t, r.busy(t, 2))
	})
}

// PruneRuns.

func TestPruneRunsKeepsWhatIsNeeded(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		const OK, Missed, Skipped, Lost, Running = ledger.Outcome(smallben.OutcomeOK), ledger.Missed, ledger.Skipped, ledger.Lost, ledger.Running
		r.start(t, 1, 2, 3, 4, 5, 6)
		old := []ledger.Run{ // to be pruned
			ended(runKey(1, 1), OK), ended(runKey(1, 2), ledger.Outcome(smallben.OutcomeError)), ended(triggered(runKey(1, 3)), OK), ended(runKey(1, 5), Missed), ended(runKey(1, 6), Skipped),
			ended(runKey(2, 1), OK), ended(runKey(2, 2), OK),
			ended(runKey(3, 1), OK), ended(runKey(3, 2), Lost), // of a job that is no more
			ended(runKey(4, 1), Lost),
			ended(runKey(5, 1), OK), ended(runKey(5, 3), Missed),
			ended(runKey(6, 1), Missed), ended(runKey(6, 2), Skipped),
			ended(runKey(99, 1), OK), // of one that never was
		}
		kept := []ledger.Run{
			ended(runKey(1, 0), Running), ended(runKey(1, 4), OK), // unfinished; the newest that ran
			ended(runKey(1, 7), Missed), ended(runKey(1, 8), Skipped), // not before the instant
			ended(runKey(2, 3), OK), ended(runKey(2, 4), Missed), ended(runKey(2, 5), OK), // what the account has not passed
			ended(attempt(2, runKey(4, 1)), OK),
			ended(runKey(5, 2), Running),
		}
		r.change(t, func(tx smallben.ChangeTx) error {
			accounts := append(accountsAt(tickAt(50), 1, 3, 4, 5, 6), accountsAt(tickAt(2), 2)...)
			return tx.Record(accounts, slices.Concat(old, kept))
		})
		deleted := r.change(t, func(tx smallben.ChangeTx) error { return tx.DeleteJobsByIds([]int64{3}) })
		prune := func(before time.Time, limit, want int) {
			t.Helper()
			n, err := r.Prune(before, limit)
			require.NoError(t, err)
			require.Equal(t, want, n)
		}
		prune(tickAt(7), 0, 0)
		prune(dawn, 100, 0)
		prune(tickAt(7), 4, 4)
		require.Len(t, r.runs(t), len(old)+len(kept)-4)
		prune(tickAt(7), len(old), len(old)-4)
		prune(tickAt(7), 100, 0)
		runs := r.runs(t)
		for _, run := range kept {
			require.Equal(t, run, runs[run.Key])
		}
		require.Len(t, runs, len(kept))
		require.Equal(t, []int64{3}, r.changes(t, deleted-1, nil).Gone, "a tombstone stays until then")
		prune(time.Now().Add(time.Hour), 0, 0)
		changes := r.changes(t, 0, nil)
		require.Empty(t, changes.Gone)
		require.Equal(t, []int64{1, 2, 4, 5, 6}, rowIDs(changes.Jobs))
		require.Equal(t, []int64{3}, r.changes(t, 0, []int64{3}).Gone)
	})
}

// ListRuns and RunsOf.

func TestListRunsReturnsTheNewestThatMatch(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		outcomes := []ledger.Outcome{ledger.Outcome(smallben.OutcomeOK), ledger.Missed, ledger.Outcome(smallben.OutcomeError), ledger.Running}
		var all []ledger.Run
		for n := range 30 {
			id := int64(n%4) - 1
			for a := range 1 + n%2 {
				run := ended(attempt(a+1, runKey(id, n/3)), outcomes[(n+a)%4])
				run.GroupID, run.SuperGroupID = int64(n%5), int64(n%3)
				all = append(all, run)
			}
		}
		r.record(t, all...)
		slices.SortFunc(all, func(a, b ledger.Run) int { return compareKeys(b.Key, a.Key) })
		ids := [][]int64{nil, {}, {1}, {2, -1, 2, 77}, {0}}
		for _, jobIDs := range ids {
			for _, groups := range ids {
				for _, superGroups := range ids[:4] {
					for i, outcomes := range [][]ledger.Outcome{nil, {}, {ledger.Missed}, {ledger.Running, ledger.Outcome(smallben.OutcomeOK), "none"}} {
						o := ledger.Query{JobIDs: jobIDs, GroupIDs: groups, SuperGroupIDs: superGroups, Outcomes: outcomes, Limit: []int{0, -1, 3, 1_000_000}[(len(jobIDs)+len(groups)+i)%4]}
						switch (i + len(superGroups)) % 4 {
						case 1:
							o.From = tickAt(3)
						case 2:
							o.Before = tickAt(7)
						case 3:
							o.From, o.Before = tickAt(3).In(time.FixedZone("here", 3600)), tickAt(7)
						}
						want := []ledger.Run{}
						for _, run := range all {
							if (o.JobIDs == nil || slices.Contains(o.JobIDs, run.JobID)) && (o.GroupIDs == nil || slices.Contains(o.GroupIDs, run.GroupID)) &&
								(o.SuperGroupIDs == nil || slices.Contains(o.SuperGroupIDs, run.SuperGroupID)) && (o.Outcomes == nil || slices.Contains(o.Outcomes, run.Outcome)) &&
								!run.Tick.Before(o.From) && (o.Before.IsZero() || run.Tick.Before(o.Before)) {
								want = append(want, run)
							}
						}
						if o.Limit > 0 {
							want = want[:min(len(want), o.Limit)]
						}
						got, err := r.ListRuns(o)
						require.NoError(t, err)
						require.Equal(t, want, append([]ledger.Run{}, got...), "%+v", o)
					}
				}
			}
		}
	})
}

func TestListRunsReturnsAThousandUnlessTold(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		var runs []ledger.Run
		for n := range 1_003 {
			runs = append(runs, ended(runKey(1, n+1), ledger.Missed))
		}
		r.record(t, runs...)
		slices.Reverse(runs)
		for limit, want := range map[int]int{0: 1_000, -5: 1_000, 2: 2, 1_002: 1_002, 5_000: 1_003} {
			got, err := r.ListRuns(ledger.Query{Limit: limit})
			require.NoError(t, err)
			require.Equal(t, runs[:want], got, "limit %d", limit)
		}
	})
}

func TestTheLastRunOfAJobStandsBehindAnyNumberOfSkippedTicks(t *testing.T) {
	for _, outcome := range []ledger.Outcome{ledger.Running, ledger.Lost, ledger.Outcome(smallben.OutcomeOK)} {
		t.Run(string(outcome), func(t *testing.T) {
			eachRecorder(t, func(t *testing.T, r records) {
				r.start(t, 1, 2)
				last := ended(runKey(1, 2), outcome)
				if outcome == ledger.Running {
					last.End = time.Time{}
				}
				runs := []ledger.Run{ended(runKey(1, 1), ledger.Outcome(smallben.OutcomeOK)), last, ended(runKey(2, 1), ledger.Outcome(smallben.OutcomeError))}
				for n := range 150 {
					runs = append(runs, ended(runKey(1, 3+n), ledger.Skipped))
				}
				r.record(t, runs...)
				found, err := r.RunsOf([]int64{1, 2}, 0)
				require.NoError(t, err)
				require.Len(t, found, 2)
				require.Equal(t, last.Key, found[0].Key)
				require.Equal(t, outcome, found[0].Outcome)
				require.Equal(t, int64(2), found[1].JobID)
			})
		})
	}
}

func TestRunsOfJobsAreTheNewestTheLastThatRanAndThoseThatWait(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		const OK, Missed, Skipped, Lost, Running = ledger.Outcome(smallben.OutcomeOK), ledger.Missed, ledger.Skipped, ledger.Lost, ledger.Running
		r.start(t, 1, 2, 3, 6, 7, 9)
		waiting := ledger.Run{Key: attempt(2, runKey(3, 1)), Outcome: ledger.Waiting, Due: tickAt(60)}
		older := []ledger.Run{
			ended(runKey(1, 1), OK), ended(runKey(2, 1), OK), ended(runKey(6, 1), Lost), ended(runKey(7, 1), OK), ended(runKey(9, 2), OK),
		}
		newest := []ledger.Run{ // of each job, those of two ticks
			ended(runKey(1, 3), Missed), ended(runKey(1, 4), Skipped),
			ended(runKey(3, 5), Missed), ended(runKey(3, 6), Skipped),
			ended(runKey(99, 1), OK),
		}
		last := []ledger.Run{
			ended(runKey(1, 2), ledger.Outcome(smallben.OutcomeError)),
			ended(runKey(2, 2), Running),
			ended(attempt(2, runKey(6, 1)), OK),
			ended(triggered(runKey(7, 2)), OK),
			ended(runKey(9, 3), Lost),
		}
		r.record(t, slices.Concat(older, newest, last, []ledger.Run{waiting})...)
		both := func(runs ...[]ledger.Run) []ledger.Run {
			all := slices.Concat(runs...)
			slices.SortFunc(all, func(a, b ledger.Run) int { return cmp.Or(cmp.Compare(a.JobID, b.JobID), compareKeys(a.Key, b.Key)) })
			return all
		}
		all := []int64{9, 7, 6, 6, 3, 2, 1, 99, 100}

		got, err := r.RunsOf(all, 0)
		require.NoError(t, err)
		// Both attempts of the tick that ran last.
		require.Equal(t, both(last, []ledger.Run{waiting, older[2], newest[4]}), got)
		got, err = r.RunsOf([]int64{7, 2}, 0)
		require.NoError(t, err)
		require.Equal(t, []ledger.Run{last[1], last[3]}, got)
		got, err = r.RunsOf(all, 2)
		require.NoError(t, err)
		require.Equal(t, both(older[1:], newest, last, []ledger.Run{waiting}), got)
	})
}

// The rest.

// TestEverythingAtOnceGoesWell has claims, ends, heartbeats, Changes, expiries and
// pruning wait for each other, in any order of jobs.
func TestEverythingAtOnceGoesWell(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		const jobs, rounds = 6, 12
		var ids []int64
		for id := range int64(jobs) {
			ids = append(ids, id+1)
		}
		r.start(t, ids...)
		shuffled := func() []int64 {
			some := slices.Clone(ids)
			rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
			return some[:1+rand.IntN(jobs)]
		}
		claim := func(recorder recordStore, process string) (won []ledger.End, err error) {
			changes, err := recorder.Changes(0, ids)
			if err != nil {
				return nil, err
			}
			var claims []ledger.Claim
			for range 2 {
				for _, id := range shuffled() {
					claim := claimsOf(smallben.Revision(changes.Jobs[id-1]), runKey(id, 1+rand.IntN(20)))[0]
					claim.Overlap, claim.Triggered = lockedIf(claim.Tick.Second()%2 == 0), rand.IntN(3) == 0
					claims = append(claims, claim)
				}
			}
			results, err := recorder.Claim(process, claims)
			for i, result := range results {
				if result == ledger.Won {
					end := finished(claims[i].Key)
					end.Overlap = claims[i].Overlap
					won = append(won, end)
				}
			}
			return won, err
		}
		var wg sync.WaitGroup
		often := func(do func() error) {
			wg.Go(func() {
				for range rounds {
					if !assert.NoError(t, do()) {
						return
					}
				}
			})
		}
		for p, recorder := range []recordStore{r.recordStore, r.another(t)} {
			for q := range 2 {
				process := fmt.Sprintf("process %d %d", p, q)
				require.NoError(t, recorder.Join(process))
				often(func() error {
					won, err := claim(recorder, process)
					_, beat := recorder.Beat(process, claiming)
					rand.Shuffle(len(won), func(i, j int) { won[i], won[j] = won[j], won[i] })
					return errors.Join(err, beat, recorder.Finish(process, won[:len(won)/2]))
				})
			}
			round := 0
			often(func() error {
				round++
				_, err := recorder.Change(inJobs(func(tx smallben.ChangeTx) error {
					some := shuffled()
					accounts, err := tx.Watermarks(some)
					var runs []ledger.Run
					for i := range accounts {
						runs = append(runs, ended(runKey(accounts[i].JobID, -2*round-p), ledger.Missed))
					}
					slices.Reverse(accounts)
					return errors.Join(err, tx.Record(accounts, runs), tx.SetCronIdAndChangeScheduleAndJobInput(withSchedule(t, rawJobs(some...)...)))
				}))
				return err
			})
			often(func() error {
				victim := fmt.Sprintf("victim %d", p)
				join := recorder.Join(victim)
				_, err := claim(recorder, victim)
				_, expireErr := recorder.Change(inJobs(func(tx smallben.ChangeTx) error {
					_, err := tx.Expire([]ledger.Member{{Process: victim}})
					return err
				}))
				return errors.Join(join, err, expireErr)
			})
			often(func() error {
				_, prune := recorder.Prune(dawn, 3)
				_, list := recorder.ListRuns(ledger.Query{JobIDs: shuffled()})
				_, last := recorder.RunsOf(shuffled(), 2)
				return errors.Join(prune, list, last, recorder.Compare())
			})
		}
		wg.Wait()
		holders := make(map[int64]int)
		for _, run := range r.runs(t) {
			if run.Exclusive && run.Outcome == ledger.Running {
				holders[run.JobID]++
			}
		}
		for _, account := range r.accounts(t, ids...) {
			require.Equal(t, account.Busy, holders[account.JobID] == 1, "job %d has %d exclusive runs that are not finished", account.JobID, holders[account.JobID])
		}
		r.settled(t)
	})
}

// brittleRecord is a database that can be made to fail, and that holds a record.
type brittleRecord struct {
	faults     *faultsql.Faults
	slow, fast recordStore // the same, one with a short timeout
	truth      records     // past the faults
}

func newBrittleRecord(t testing.TB, faults *faultsql.Faults, db *sql.DB, dialector func(*sql.DB) gorm.Dialector) *brittleRecord {
	t.Helper()
	pool := faults.DB()
	t.Cleanup(func() {
		faults.Heal()
		assert.NoError(t, errors.Join(pool.Close(), db.Close()))
	})
	slow := testkit.OpenGorm(t, dialector(pool), 0)
	fast, _ := testkit.OpenHasty(t, dialector(pool), testkit.Hasty)
	b := &brittleRecord{faults, recordOf(slow), recordOf(fast), records{recordStore: recordOf(testkit.OpenGorm(t, dialector(db), 0))}}
	require.NoError(t, b.truth.Open(recordLocation))
	return b
}

// TestTheRecordKeepsItsWordWhicheverOperationFails makes each operation of each
// call fail: an error means that nothing happened, unless it wraps
// ErrOutcomeUnknown, and no error that everything did.
func TestTheRecordKeepsItsWordWhicheverOperationFails(t *testing.T) {
	t.Parallel()
	const wal = "_journal_mode=WAL"
	onFile := func(t testing.TB) *brittleRecord {
		path := filepath.Join(t.TempDir(), "jobs.db")
		return newBrittleRecord(t, faultsql.SQLite(path, hastySQLite, wal), testkit.OpenSQLDB(t, "sqlite3", "file:"+path+"?"+hastySQLite+"&"+wal), testkit.OnSQLite)
	}
	onServer := func(t testing.TB) *brittleRecord {
		dsn := pgtest.DSN(t)
		faults, err := faultsql.Postgres(dsn)
		require.NoError(t, err)
		return newBrittleRecord(t, faults, testkit.OpenSQLDB(t, "pgx", dsn), testkit.OnPostgres)
	}
	// Each try has ids from first on, processes of its own, and an old tick.
	type try struct {
		t        testing.TB
		first    int64
		me, dead string
		revision int64
	}
	old := func(n int64) ledger.Key { return runKey(n, -1_000_000_000+int(n)) }
	end := func(key ledger.Key, exclusive, unclaimed bool) ledger.End {
		f := finished(key)
		f.Overlap, f.Unclaimed = lockedIf(exclusive), unclaimed
		return f
	}
	strange := func(b *brittleRecord, y *try) error {
		return errors.Join(b.truth.PauseJobs(rawJobs(y.first)), b.truth.DeleteJobsByIds([]int64{y.first + 1}), b.truth.AddJobs(withSchedule(y.t, rawJob(y.first+7))))
	}
	for name, c := range map[string]struct {
		prepare func(b *brittleRecord, y *try) error
		call    func(r recordStore, y *try) error
	}{
		"Change": {nil, func(r recordStore, y *try) error {
			revision, err := r.Change(inJobs(func(tx smallben.ChangeTx) error {
				if _, err := tx.Watermarks([]int64{y.first, y.first + 1, y.first + 2, y.first + 3}); err != nil {
					return err
				}
				lost, err := tx.Expire([]ledger.Member{{Process: y.dead}})
				if err != nil {
					return err
				}
				assert.Len(y.t, lost, 1)
				making := ended(runKey(y.first+3, 9), ledger.Running)
				making.Exclusive, making.Process = true, y.me
				for _, write := range []func() error{
					func() error { return tx.AddJobs(withSchedule(y.t, rawJobs(y.first+4, y.first+5)...)) },
					func() error { return tx.PauseJobs(rawJobs(y.first)) },
					func() error { return tx.SetCronIdAndChangeScheduleAndJobInput(withSchedule(y.t, rawJob(y.first+1))) },
					func() error { return tx.DeleteJobsByIds([]int64{y.first + 2}) },
					func() error {
						return tx.Record(accountsAt(tickAt(9), y.first+3), []ledger.Run{making, ended(runKey(y.first+3, 8), ledger.Missed)})
					},
				} {
					if err := write(); err != nil {
						return err
					}
				}
				return nil
			}))
			assert.Equal(y.t, err == nil, revision > y.revision, "%d: %v", revision, err)
			return err
		}},
		"Claim": {nil, func(r recordStore, y *try) error {
			claims := append(exclusively(claimsOf(y.revision, runKey(y.first+1, 1), runKey(y.first, 2))), claimsOf(y.revision, runKey(y.first+2, 1), triggered(runKey(y.first, 1)))...)
			claims = append(claims, claimsOf(0, runKey(y.first+3, 1))...)
			results, err := r.Claim(y.me, claims)
			if err == nil {
				assert.Equal(y.t, []ledger.Result{ledger.Won, ledger.Overlapped, ledger.Won, ledger.Won, ledger.Stale}, results)
			} else {
				assert.Nil(y.t, results)
			}
			return err
		}},
		"Finish": {func(b *brittleRecord, y *try) error {
			_, err := b.truth.Claim(y.me, append(exclusively(claimsOf(y.revision, runKey(y.first+1, 1))), claimsOf(y.revision, runKey(y.first+2, 1))...))
			return err
		}, func(r recordStore, y *try) error {
			return r.Finish(y.me, []ledger.End{end(runKey(y.first+2, 1), false, false), end(runKey(y.first+1, 1), true, false), end(runKey(y.first+3, 1), false, true)})
		}},
		"Join":         {nil, func(r recordStore, y *try) error { return r.Join("new " + y.me) }},
		"Leave":        {nil, func(r recordStore, y *try) error { return r.Leave(y.dead) }},
		"CompareMarks": {strange, func(r recordStore, y *try) error { return r.Compare() }},
		"PruneRuns": {func(b *brittleRecord, y *try) error {
			_, err := b.truth.Change(inJobs(func(tx smallben.ChangeTx) error {
				runs := []ledger.Run{ended(old(y.first), ledger.Missed), ended(old(y.first+1), ledger.Missed), ended(old(y.first+2), ledger.Missed)}
				return tx.Record(nil, runs)
			}))
			return err
		}, func(r recordStore, y *try) error {
			n, err := r.Prune(dawn, 10_000) // those of failed tries, too
			assert.Equal(y.t, err == nil, n >= 3, "%d: %v", n, err)
			return err
		}},
	} {
		for database, open := range map[string]func(t testing.TB) *brittleRecord{"SQLite": onFile, "PostgreSQL": onServer} {
			t.Run(database+"/"+name, func(t *testing.T) {
				t.Parallel()
				b := open(t)
				number := int64(0)
				prepare := func() *try {
					number++
					y := &try{t: t, first: 10 * number, me: fmt.Sprint("me ", number), dead: fmt.Sprint("dead ", number)}
					y.revision = b.truth.start(t, y.first, y.first+1, y.first+2, y.first+3)
					require.NoError(t, errors.Join(b.truth.Join(y.me), b.truth.Join(y.dead)))
					b.truth.win(t, y.dead, exclusively(claimsOf(y.revision, runKey(y.first, 1))))
					if c.prepare != nil {
						require.NoError(t, c.prepare(b, y))
					}
					return y
				}
				// look says what there is of a try.
				look := func(y *try) (lines []string) {
					t.Helper()
					ids := make([]int64, 8)
					for i := range ids {
						ids[i] = y.first + int64(i)
					}
					changes := b.truth.changes(t, 0, ids)
					revisions := make(map[bool]int64) // since the try began: the first that is seen
					for _, row := range changes.Jobs {
						revision := changes.RevisionOf(row.ID)
						later := revision > y.revision
						if revisions[later] == 0 {
							revisions[later] = revision
						}
						lines = append(lines, fmt.Sprintf("job %d paused %t marked %t of one revision %t", row.ID-y.first, row.Paused, later, revisions[later] == revision))
					}
					for _, account := range b.truth.accounts(t, ids...) {
						lines = append(lines, fmt.Sprintf("account %d since dawn %t busy %t", account.JobID-y.first, account.Until.Sub(dawn) == 0, account.Busy))
					}
					runs, err := b.truth.ListRuns(ledger.Query{JobIDs: ids})
					require.NoError(t, err)
					for _, run := range runs {
						run.JobID -= y.first
						if run.Tick.Before(dawn.AddDate(-1, 0, 0)) {
							run.Tick = dawn
						}
						lines = append(lines, fmt.Sprintf("%s by me %t ended %t exclusive %t", run.Key.Tick, run.Process == y.me, run.End.IsZero(), run.Exclusive)+fmt.Sprint(run.JobID, run.Triggered, run.Attempt, run.Outcome))
					}
					require.NoError(t, b.truth.Join("who looks"))
					heartbeat, err := b.truth.Beat("who looks", claiming)
					require.NoError(t, err)
					for _, peer := range heartbeat.Members {
						for _, process := range []string{y.me, y.dead, "new " + y.me} {
							if peer.Process == process {
								lines = append(lines, strings.ReplaceAll(peer.Process, fmt.Sprint(number), ""))
							}
						}
					}
					return lines
				}
				before, y := look(prepare()), prepare()
				require.NoError(t, c.call(b.slow, y))
				want := look(y)
				require.NotEqual(t, want, before)
				sweep := func(f testkit.Fault) (hits map[faultsql.Kind]int) {
					hits = make(map[faultsql.Kind]int)
					unknown := 0
					for n, tries := 1, 0; ; n++ {
						y := prepare()
						r := b.slow
						if f.Persistent {
							r = b.fast
						}
						// One connection in the pool, which is new.
						b.faults.DB().SetMaxIdleConns(-1)
						b.faults.DB().SetMaxIdleConns(1)
						require.NoError(t, b.faults.DB().PingContext(t.Context()))
						hit := f.Inject(b.faults, n)
						err := c.call(r, y)
						kind := hit()
						b.faults.Heal()
						after := look(y)
						switch {
						case err == nil:
							assert.Equal(t, want, after)
						case errors.Is(err, smallben.ErrOutcomeUnknown):
							unknown++
							if !slices.Equal(want, after) {
								assert.Equal(t, before, after)
							}
						default:
							assert.Equal(t, before, after, "%v", err)
						}
						if t.Failed() {
							t.Fatalf("%+v: operation %d, a %s: %v", f, n, kind, err)
						}
						if kind == "" && err == nil {
							break
						}
						if hits[kind]++; kind == "" {
							// On a busy machine the timeout may come before the fault.
							require.True(t, errors.Is(err, context.DeadlineExceeded) || errors.Is(err, driver.ErrBadConn), "%v", err)
							require.Less(t, tries, 100)
							tries++
							n--
						}
					}
					t.Logf("%+v: %d outcomes unknown, operations that failed: %v", f, unknown, hits)
					return hits
				}
				for _, f := range []testkit.Fault{
					{Mode: faultsql.Before}, {Mode: faultsql.After}, {Mode: faultsql.BadConn}, {Mode: faultsql.Midway},
					{Mode: faultsql.Before, Persistent: true}, {Mode: faultsql.After, Persistent: true},
				} {
					hits := sweep(f)
					assert.Positive(t, hits[faultsql.Query]+hits[faultsql.Exec])
					if f.Mode == faultsql.Midway {
						continue
					}
					if hits[faultsql.Commit] == 0 { // a busy machine had one try do an operation more
						f.Kind = faultsql.Commit
						hits = sweep(f)
					}
					assert.Positive(t, hits[faultsql.Commit])
				}
			})
		}
	}
}

func TestEmptyArgumentsOfTheRecordAreASuccess(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1)
		r.win(t, "a", claimsOf(revision, runKey(1, 1)))
		before := r.runs(t)
		require.Empty(t, r.claim(t, "a", nil))
		require.Empty(t, r.claim(t, "a", []ledger.Claim{}))
		require.NoError(t, r.Finish("a", nil))
		require.NoError(t, r.Finish("a", []ledger.End{}))
		for _, ids := range [][]int64{nil, {}} {
			runs, err := r.RunsOf(ids, 3)
			require.NoError(t, err)
			require.Empty(t, runs)
			require.Empty(t, r.accounts(t, ids...))
		}
		r.change(t, func(tx smallben.ChangeTx) error {
			require.NoError(t, tx.AddJobs(nil))
			require.NoError(t, tx.PauseJobs(nil))
			require.NoError(t, tx.ResumeJobs(nil))
			require.NoError(t, tx.DeleteJobsByIds(nil))
			require.NoError(t, tx.SetCronId(nil))
			require.NoError(t, tx.SetCronIdAndChangeScheduleAndJobInput(nil))
			require.NoError(t, tx.UpsertJobs(nil, nil))
			require.NoError(t, tx.Record(nil, nil))
			ticks, err := tx.RecordedTicks(nil)
			require.NoError(t, err)
			require.Empty(t, ticks)
			superseded, err := tx.Superseded(nil)
			require.NoError(t, err)
			require.Empty(t, superseded)
			awaited, err := tx.Awaited(nil)
			require.NoError(t, err)
			require.Empty(t, awaited)
			lost, err := tx.Expire(nil)
			require.NoError(t, err)
			require.Empty(t, lost)
			return nil
		})
		require.Equal(t, before, r.runs(t))
		require.Equal(t, []int64{1}, rowIDs(r.changes(t, 0, nil).Jobs))
		require.Equal(t, revision, smallben.Revision(r.changes(t, 0, nil).Jobs[0]))
	})
}

// TestACallOfTheRecordIsBoundedInTime has one wait for a Change that takes too long.
func TestACallOfTheRecordIsBoundedInTime(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t testing.TB) *database{"SQLite": newSQLiteWAL, "PostgreSQL": newPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			r := records{recordStore: recordOf(db.open(t))}
			require.NoError(t, r.Open(recordLocation))
			require.NoError(t, r.Join("a"))
			revision := r.start(t, 1)
			repository, _ := testkit.OpenHasty(t, db.dialector(), testkit.Hasty)
			t.Cleanup(func() { require.NoError(t, repository.Close()) })
			fast := recordOf(repository)
			r.change(t, func(tx smallben.ChangeTx) error {
				_, err := tx.Watermarks([]int64{1})
				require.NoError(t, err)
				for _, call := range []func() error{
					func() error { _, err := fast.Change(func(ledger.Tx) error { return nil }); return err },
					func() error { _, err := fast.Claim("a", claimsOf(revision, runKey(1, 1))); return err },
				} {
					err := call()
					require.Error(t, err)
					require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
				}
				return nil
			})
			require.Empty(t, r.runs(t))
			r.win(t, "a", claimsOf(revision, runKey(1, 1)))
		})
	}
}

func TestTheMemoryRecorderFailsAsItIsTold(t *testing.T) {
	t.Parallel()
	m := newMemoryRecorder()
	r := records{recordStore: m}
	require.NoError(t, r.Open(recordLocation))
	require.NoError(t, r.Join("a"))
	revision := r.start(t, 1)

	m.failNext("Claim", errUndo)
	_, err := r.Claim("a", claimsOf(revision, runKey(1, 1)))
	require.ErrorIs(t, err, errUndo)
	require.Empty(t, m.runs())
	m.loseNext("Claim")
	results, err := r.Claim("a", claimsOf(revision, runKey(1, 1)))
	require.ErrorIs(t, err, smallben.ErrOutcomeUnknown)
	require.Nil(t, results)
	require.Len(t, m.runs(), 1)
	r.win(t, "a", claimsOf(revision, runKey(1, 1)))

	pause := func(tx smallben.ChangeTx) error { return tx.PauseJobs(rawJobs(1)) }
	for _, call := range []string{"Change", "tx.PauseJobs", "commit"} {
		m.failNext(call, errUndo)
		_, err = r.Change(inJobs(pause))
		require.ErrorIs(t, err, errUndo, call)
		require.False(t, list(t, r)[0].Paused, call)
	}
	var watched []string
	m.watch(func(call string, happened bool) { watched = append(watched, fmt.Sprint(call, " ", happened)) })
	m.loseNext("Change")
	_, err = r.Change(inJobs(pause))
	require.ErrorIs(t, err, smallben.ErrOutcomeUnknown)
	require.Equal(t, []string{"Change false", "tx.PauseJobs false", "tx.PauseJobs true", "commit false", "commit true", "Change true"}, watched)
	require.True(t, list(t, r)[0].Paused)

	m.away(true)
	_, err = r.ListJobs(nil)
	require.ErrorIs(t, err, errAway)
	require.ErrorIs(t, r.Compare(), errAway)
	m.away(false)
	require.NoError(t, r.Compare())
	require.Equal(t, 2, m.calls()["Compare"])
	require.Zero(t, m.contents().processes["a"].beats)
}

package test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/nbena/smallben/internal/testkit"
)

// brittle is a database that can be made to fail, and the ways to see it past
// the faults.
type brittle struct {
	faults     *faultsql.Faults
	repository *hurried
	truth      *smallben.RepositoryGorm
	db         *sql.DB
	reset      func(testing.TB)
}

// hurried is a repository whose calls have a short timeout while in a hurry, and
// the default one otherwise.
type hurried struct {
	hurry      atomic.Bool
	fast, slow *smallben.RepositoryGorm
	timeout    time.Duration // of fast
}

func (h *hurried) now() *smallben.RepositoryGorm {
	if h.hurry.Load() {
		return h.fast
	}
	return h.slow
}

func (h *hurried) AddJobs(jobs []smallben.JobWithSchedule) error { return h.now().AddJobs(jobs) }
func (h *hurried) GetJob(id int64) (smallben.JobWithSchedule, error) {
	return h.now().GetJob(id)
}
func (h *hurried) PauseJobs(jobs []smallben.RawJob) error           { return h.now().PauseJobs(jobs) }
func (h *hurried) ResumeJobs(jobs []smallben.JobWithSchedule) error { return h.now().ResumeJobs(jobs) }
func (h *hurried) GetAllJobsToExecute() ([]smallben.JobWithSchedule, error) {
	return h.now().GetAllJobsToExecute()
}
func (h *hurried) GetJobsByIds(ids []int64) ([]smallben.JobWithSchedule, error) {
	return h.now().GetJobsByIds(ids)
}
func (h *hurried) DeleteJobsByIds(ids []int64) error               { return h.now().DeleteJobsByIds(ids) }
func (h *hurried) SetCronId(jobs []smallben.JobWithSchedule) error { return h.now().SetCronId(jobs) }
func (h *hurried) SetCronIdAndChangeScheduleAndJobInput(jobs []smallben.JobWithSchedule) error {
	return h.now().SetCronIdAndChangeScheduleAndJobInput(jobs)
}
func (h *hurried) ListJobs(options smallben.ToListOptions) ([]smallben.RawJob, error) {
	return h.now().ListJobs(options)
}
func (h *hurried) ErrorTypeIfMismatchCount() error { return h.slow.ErrorTypeIfMismatchCount() }

// newBrittle opens a repository over faults, and another past them.
func newBrittle(t testing.TB, faults *faultsql.Faults, db *sql.DB, dialector func(*sql.DB) gorm.Dialector) *brittle {
	t.Helper()
	pool := faults.DB()
	t.Cleanup(func() {
		faults.Heal()
		assert.NoError(t, errors.Join(pool.Close(), db.Close()))
	})
	db.SetMaxOpenConns(2)
	b := &brittle{
		faults: faults,
		repository: &hurried{
			slow: openGorm(t, dialector(pool), 0),
		},
		truth: openGorm(t, dialector(db), 0),
		db:    db,
	}
	b.repository.fast, b.repository.timeout = openHasty(t, dialector(pool), testkit.Hasty)
	b.reset = seed(t, b.truth, db)
	return b
}

// refresh leaves one connection in the pool, which is new, or none if pooled is
// not set, so that a call does the same operations each time.
func (b *brittle) refresh(t testing.TB, pooled bool) {
	t.Helper()
	pool := b.faults.DB()
	pool.SetMaxIdleConns(-1)
	if pooled {
		pool.SetMaxIdleConns(1)
		require.NoError(t, pool.PingContext(t.Context()))
	}
}

func brittleSQLite(t testing.TB) *brittle {
	t.Helper()
	path := filepath.Join(t.TempDir(), "jobs.db")
	return newBrittle(t, faultsql.SQLite(path, "_synchronous=OFF"), openSQLDB(t, "sqlite3", "file:"+path+"?_synchronous=OFF"), onSQLite)
}

func brittlePostgres(t testing.TB) *brittle {
	t.Helper()
	dsn := pgtest.DSN(t)
	faults, err := faultsql.Postgres(dsn)
	require.NoError(t, err)
	return newBrittle(t, faults, openSQLDB(t, "pgx", dsn), onPostgres)
}

// seed fills the table with jobs of every state: 1 to 3 run, 4 and 5 are paused,
// 6 and 7 do not decode, 7 being paused, and 8 and 9 are nobody's business. It
// returns a function that brings them back, as they were before a Start.
func seed(t testing.TB, repository smallben.Repository, db *sql.DB) (reset func(t testing.TB)) {
	t.Helper()
	s := smallben.New(repository, &smallben.Config{Logger: quiet})
	jobs := make([]smallben.Job, 9)
	for i := range jobs {
		jobs[i] = job(int64(i+1), "0 0 1 1 *", idle())
		jobs[i].JobInput = map[string]any{"n": i}
	}
	require.NoError(t, s.AddJobs(jobs))
	require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{4, 5, 7}}))
	for _, statement := range []string{
		"UPDATE jobs SET serialized_job = '!' WHERE id IN (6, 7)",
		"CREATE TABLE seed AS SELECT * FROM jobs",
	} {
		_, err := db.Exec(statement)
		require.NoError(t, err)
	}
	return func(t testing.TB) {
		t.Helper()
		tx, err := db.Begin()
		require.NoError(t, err)
		_, err = tx.Exec("DELETE FROM jobs")
		require.NoError(t, err)
		_, err = tx.Exec("INSERT INTO jobs SELECT * FROM seed")
		require.NoError(t, err)
		require.NoError(t, tx.Commit())
	}
}

// snapshot is the rows of the table by id.
func snapshot(t testing.TB, repository smallben.Repository) map[int64]smallben.RawJob {
	t.Helper()
	rows, err := repository.ListJobs(nil)
	require.NoError(t, err)
	snapshot := make(map[int64]smallben.RawJob, len(rows))
	for _, row := range rows {
		snapshot[row.ID] = row
	}
	return snapshot
}

// changes says by id what became of the rows that are not as before. Of times it
// says only whether they changed, and of cron ids nothing: checkInvariant does.
func changes(before, now map[int64]smallben.RawJob) map[int64]string {
	changes := make(map[int64]string)
	for id := range before {
		if _, still := now[id]; !still {
			changes[id] = "deleted"
		}
	}
	for id, row := range now {
		old, existed := before[id]
		if existed && row == old {
			continue
		}
		changes[id] = fmt.Sprintf("existed %t, created then %t, changed since %t, paused %t, groups %d %d, %q %s %s",
			existed, row.CreatedAt.Equal(old.CreatedAt), row.UpdatedAt.After(old.UpdatedAt),
			row.Paused, row.GroupID, row.SuperGroupID, row.CronExpression, row.SerializedJob, row.SerializedJobInput)
	}
	return changes
}

// faultCall is a call that meets faults. Once it has happened, calling it again
// changes nothing more, and its error is again.
type faultCall struct {
	name  string
	call  func(t testing.TB, s *smallben.SmallBen) error
	again error
	// rereads says that the call reads rows again that did not decode, once it
	// has happened, and leaves that to the background if it fails.
	rereads bool
}

var writeCalls = []faultCall{
	{"AddJobs", func(_ testing.TB, s *smallben.SmallBen) error {
		return s.AddJobs([]smallben.Job{job(11, "0 0 1 1 *", idle()), job(12, "@every 1000h", idle()), job(13, "0 0 1 1 *", valueJob{Text: "text", N: 7})})
	}, smallben.ErrJobExists, false},
	{"PauseJobs", func(_ testing.TB, s *smallben.SmallBen) error {
		return s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1, 2, 4, 6}})
	}, nil, true},
	{"ResumeJobs", func(_ testing.TB, s *smallben.SmallBen) error {
		return s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1, 4, 5}})
	}, nil, false},
	{"UpdateJobs", func(_ testing.TB, s *smallben.SmallBen) error {
		return s.UpdateJobs([]smallben.UpdateOption{
			{JobID: 4, CronExpression: ptr("@yearly"), JobOtherInputs: &map[string]any{"new": true}},
			{JobID: 1, CronExpression: ptr("@every 2000h")},
			{JobID: 2, JobOtherInputs: &map[string]any{"new": 2}},
		})
	}, nil, false},
	{"DeleteJobs", func(_ testing.TB, s *smallben.SmallBen) error {
		return s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{1, 4, 6, 7}}})
	}, gorm.ErrRecordNotFound, false},
}

var listCall = faultCall{"ListJobs", func(t testing.TB, s *smallben.SmallBen) error {
	jobs, err := s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{1, 2, 3, 4, 5}})
	if err != nil {
		assert.Empty(t, jobs)
		return err
	}
	assert.Equal(t, []int64{1, 2, 3, 4, 5}, ids(jobs))
	return nil
}, nil, false}

var startCall = faultCall{"Start", func(_ testing.TB, s *smallben.SmallBen) error { return s.Start() }, nil, false}

// oracle judges a call by its error, what it did to the rows, and memory: an
// error means that nothing changed anywhere, nil that everything did, and an
// unknown outcome one of the two, as soon as the database answers. It reports
// whether the call has happened.
type oracle struct {
	truth   smallben.Repository
	before  map[int64]smallben.RawJob
	want    map[int64]string // the changes of a call that has happened
	rereads bool             // see faultCall
}

func (o *oracle) judge(t testing.TB, s *smallben.SmallBen, err error) (happened bool) {
	t.Helper()
	if o.rereads || errors.Is(err, smallben.ErrOutcomeUnknown) {
		settled(t, s)
	}
	changed := changes(o.before, snapshot(t, o.truth))
	happened = err == nil || errors.Is(err, smallben.ErrOutcomeUnknown) && len(changed) > 0
	want := o.want
	if !happened {
		want = map[int64]string{}
	}
	assert.Equal(t, want, changed, "the rows after: %v", err)
	if counted, _ := insides.Pages(s); counted == nil {
		// Start failed: nothing runs, and the next one reads afresh.
		assert.Error(t, err)
		assert.Empty(t, insides.Entries(s))
		return happened
	}
	checkInvariant(t, s, o.truth)
	return happened
}

// stage is where calls are judged: a SmallBen on repository, and the truth.
type stage struct {
	repository smallben.Repository
	truth      smallben.Repository
	reset      func(testing.TB)
}

// begin sets the stage for a call.
func (st stage) begin(t testing.TB, call faultCall) (*smallben.SmallBen, *oracle) {
	t.Helper()
	st.reset(t)
	s := create(t, st.repository, &smallben.Config{Logger: quiet})
	if call.name != startCall.name {
		inTime(t, s.Start)
	}
	return s, &oracle{truth: st.truth, before: snapshot(t, st.truth), want: map[int64]string{}, rereads: call.rereads}
}

// rehearse returns what the call changes when nothing fails.
func (st stage) rehearse(t testing.TB, call faultCall) map[int64]string {
	t.Helper()
	s, o := st.begin(t, call)
	defer s.Stop()
	inTime(t, func() error { return call.call(t, s) })
	changed := changes(o.before, snapshot(t, st.truth))
	if call.name != listCall.name {
		require.NotEmpty(t, changed)
	}
	return changed
}

// again calls once more what has happened, or has not.
func (o *oracle) again(t testing.TB, s *smallben.SmallBen, call faultCall, happened bool) {
	t.Helper()
	err := patiently(func() error { return call.call(t, s) })
	if happened && call.again != nil {
		assert.ErrorIs(t, err, call.again)
	} else {
		assert.NoError(t, err)
	}
	o.judge(t, s, nil)
}

// sweep makes the first operation of the call fail, then the second, and so on,
// until the call meets no fault any more. It returns how often which kind of
// operation failed, and how many outcomes were unknown.
func sweep(t *testing.T, w *brittle, call faultCall, fault testkit.Fault) (hits map[faultsql.Kind]int, unknown int) {
	st := stage{w.repository, w.truth, func(t testing.TB) {
		w.reset(t)
		w.refresh(t, !fault.Unpooled)
	}}
	want := st.rehearse(t, call)
	hits = make(map[faultsql.Kind]int)
	tries := 0
	for n := 1; ; n++ {
		s, o := st.begin(t, call)
		o.want = want
		entries := insides.Entries(s)
		w.repository.hurry.Store(fault.Lasts())
		hit := fault.Inject(w.faults, n)
		err := call.call(t, s)
		kind := hit()
		if errors.Is(err, smallben.ErrOutcomeUnknown) {
			unknown++
			if fault.Persistent {
				assert.Equal(t, entries, insides.Entries(s), "as long as the outcome is unknown, memory stays as it was")
			}
		}
		w.faults.Heal()
		w.repository.hurry.Store(false)
		happened := o.judge(t, s, err)

		o.again(t, s, call, happened)
		s.Stop()
		if t.Failed() {
			t.Fatalf("%+v: operation %d, a %s", fault, n, kind)
		}
		switch {
		case kind == "" && err == nil:
			return hits, unknown
		case kind == "" || kind == faultsql.Connect && !fault.Unpooled:
			// On a busy machine the timeout may come before the fault, and the connection
			// in the pool may be taken for dead.
			if kind == "" {
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
			require.Less(t, tries, 100)
			tries++
			n--
		default:
			hits[kind]++
		}
	}
}

var faultModes = map[string]faultsql.Mode{
	"error before":        faultsql.Before,
	"error after":         faultsql.After,
	"connection lost":     faultsql.BadConn,
	"error while reading": faultsql.Midway,
	"hang before":         faultsql.Hang,
	"hang after":          faultsql.HangAfter,
}

func TestNothingIsLostWhicheverOperationFails(t *testing.T) {
	t.Parallel()
	modes := slices.Sorted(maps.Keys(faultModes))
	sweepAll(t, slices.Concat([]faultCall{startCall, listCall}, writeCalls), modes, func(t *testing.T, call faultCall, sweep func(testkit.Fault) (map[faultsql.Kind]int, int), mode faultsql.Mode) {
		reads := call.name == listCall.name
		for _, persistent := range []bool{false, true} {
			if persistent && mode == faultsql.Midway {
				continue // as an error before, one operation later
			}
			f := testkit.Fault{Mode: mode, Persistent: persistent}
			if mode == faultsql.HangAfter {
				// Of the others the soak takes care: each costs a timeout.
				f.Kind = faultsql.Commit
				if reads {
					f.Kind = faultsql.Query
				}
			}
			hits, unknown := sweep(f)
			t.Logf("persistent %t: %d outcomes unknown, operations that failed: %v", persistent, unknown, hits)
			if f.Kind == "" {
				assert.Positive(t, hits[faultsql.Query]+hits[faultsql.Exec])
			}
			if reads {
				continue
			}
			if hits[faultsql.Commit] == 0 { // a busy machine had one try do an operation more
				f.Kind = faultsql.Commit
				hits, _ = sweep(f)
			}
			assert.Positive(t, hits[faultsql.Commit])
		}
	})
}

func TestNothingIsLostWhicheverConnectionFails(t *testing.T) {
	t.Parallel()
	calls := []faultCall{startCall, listCall, writeCalls[0], writeCalls[1]}
	sweepAll(t, calls, []string{"error before", "hang before"}, func(t *testing.T, call faultCall, sweep func(testkit.Fault) (map[faultsql.Kind]int, int), mode faultsql.Mode) {
		for _, persistent := range []bool{false, true} {
			hits, _ := sweep(testkit.Fault{Mode: mode, Persistent: persistent, Kind: faultsql.Connect, Unpooled: true})
			assert.Positive(t, hits[faultsql.Connect])
		}
	})
}

// TestSoakFaultSweep fails every operation of calls that connect anew for each
// use of the pool.
func TestSoakFaultSweep(t *testing.T) {
	if os.Getenv("SMALLBEN_SOAK") == "" {
		t.Skip("a part of make soak, which sets SMALLBEN_SOAK")
	}
	t.Parallel()
	modes := slices.Sorted(maps.Keys(faultModes))
	sweepAll(t, slices.Concat([]faultCall{startCall, listCall}, writeCalls), modes, func(t *testing.T, _ faultCall, sweep func(testkit.Fault) (map[faultsql.Kind]int, int), mode faultsql.Mode) {
		for _, persistent := range []bool{false, true} {
			sweep(testkit.Fault{Mode: mode, Persistent: persistent, Unpooled: true})
		}
	})
}

// sweepAll sweeps each call on each database in each mode. The sweeps wait more
// than they work, so they run side by side, whatever -parallel says: those of
// one call and database one after the other, except the ones that hang.
func sweepAll(t *testing.T, calls []faultCall, modes []string,
	test func(t *testing.T, call faultCall, sweep func(testkit.Fault) (hits map[faultsql.Kind]int, unknown int), mode faultsql.Mode)) {
	var group sync.WaitGroup
	defer group.Wait()
	for database, open := range map[string]func(testing.TB) *brittle{"SQLite": brittleSQLite, "PostgreSQL": brittlePostgres} {
		for _, call := range calls {
			for _, hang := range []bool{false, true} {
				group.Go(func() {
					t.Run(fmt.Sprintf("%s/%s/hang %t", database, call.name, hang), func(t *testing.T) {
						w := open(t)
						for _, name := range modes {
							if strings.HasPrefix(name, "hang") != hang {
								continue
							}
							t.Run(name, func(t *testing.T) {
								test(t, call, func(f testkit.Fault) (map[faultsql.Kind]int, int) { return sweep(t, w, call, f) }, faultModes[name])
							})
						}
					})
				})
			}
		}
	}
}

func TestAWriteThatADeadlockEndedIsTriedAgain(t *testing.T) {
	t.Parallel()
	f := faultsql.SQLite(filepath.Join(t.TempDir(), "jobs.db"))
	db := f.DB()
	t.Cleanup(func() { _ = db.Close() })
	repository := openGorm(t, sqlite.New(sqlite.Config{Conn: db}), time.Minute)
	s := started(t, repository, smallben.SchedulerConfig{})
	once := func(statement string, call func() error) {
		t.Helper()
		var met atomic.Bool
		f.FailWhen(func(op faultsql.Op) bool {
			return strings.Contains(op.SQL, statement) && met.CompareAndSwap(false, true)
		}, faultsql.Fault{Mode: faultsql.Before, Err: testkit.Deadlock{}})
		require.NoError(t, call())
		assert.Equal(t, 1, f.Fired(), statement)
		f.Heal()
		checkInvariant(t, s, repository)
	}
	all := &smallben.PauseResumeOptions{}
	once(`INSERT INTO "jobs"`, func() error { return s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}) })
	once("paused = true", func() error { return s.PauseJobs(all) })
	once("paused = false", func() error { return s.ResumeJobs(all) })
	once(`DELETE FROM "jobs"`, func() error { return s.DeleteJobs(&smallben.DeleteOptions{}) })
}

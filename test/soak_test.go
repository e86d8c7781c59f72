package test

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/pgtest"
)

// TestSoak does everything at random for as long as SMALLBEN_SOAK says, as in
// "10m", and for two seconds where it says nothing. On each database a SmallBen
// is changed by several goroutines, by its jobs as they run, by restarts and by
// rows that rot, while operations of the database fail; each second the oracle
// looks. Beside it services are killed.
func TestSoak(t *testing.T) {
	t.Parallel()
	duration, kills := 2*time.Second, 1
	if text := os.Getenv("SMALLBEN_SOAK"); text != "" {
		var err error
		duration, err = time.ParseDuration(text)
		require.NoError(t, err, "SMALLBEN_SOAK")
		kills = 200
	}
	worlds := map[string]*soak{"memory": soakMemory(t), "SQLite": soakSQLite(t), "PostgreSQL": soakPostgres(t)}
	crashes := make(map[string]*crash)
	for name, dsn := range crashDatabases {
		crashes[name] = newCrash(t, dsn(t))
	}
	end := time.Now().Add(duration)
	measured := make(chan []footprint)
	over := make(chan struct{})
	go func() { measured <- measure(over) }()
	// Not with t.Parallel, which runs as many at once as there are processors.
	var group sync.WaitGroup
	for name, world := range worlds {
		group.Go(func() {
			t.Run(name, func(t *testing.T) { world.run(t, end) })
		})
	}
	for name, c := range crashes {
		group.Go(func() {
			t.Run("kill "+name, func(t *testing.T) {
				for c.kills < kills || time.Now().Before(end) {
					c.kill(t)
				}
			})
		})
	}
	group.Wait()
	close(over)
	footprints := <-measured

	var violations int64
	for _, name := range slices.Sorted(maps.Keys(worlds)) {
		t.Logf("%s: %s", name, worlds[name])
		violations += worlds[name].violations.Load()
	}
	for _, name := range slices.Sorted(maps.Keys(crashes)) {
		t.Logf("%s: %s", name, crashes[name])
	}
	first, last := footprints[0], footprints[len(footprints)-1]
	if n := len(footprints); n >= 60 {
		// The first quarter warms up.
		first, last = median(footprints[n/4:n/2]), median(footprints[3*n/4:])
		assert.Less(t, last.heap, first.heap*3/2+32<<20, "the heap grows")
		assert.Less(t, last.goroutines, first.goroutines*3/2+50, "goroutines are left behind")
	}
	t.Logf("heap %d KiB, then %d KiB; goroutines %d, then %d", first.heap>>10, last.heap>>10, first.goroutines, last.goroutines)
	t.Logf("violations: %d", violations)
	assert.Zero(t, violations)
}

type footprint struct{ heap, goroutines uint64 }

// measure looks once a second.
func measure(over <-chan struct{}) (footprints []footprint) {
	for {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		footprints = append(footprints, footprint{stats.HeapAlloc, uint64(runtime.NumGoroutine())})
		select {
		case <-over:
			return footprints
		case <-time.After(time.Second):
		}
	}
}

func median(footprints []footprint) footprint {
	var heaps, goroutines []uint64
	for _, f := range footprints {
		heaps, goroutines = append(heaps, f.heap), append(goroutines, f.goroutines)
	}
	slices.Sort(heaps)
	slices.Sort(goroutines)
	return footprint{heaps[len(heaps)/2], goroutines[len(goroutines)/2]}
}

// soak is a SmallBen on a database that fails, and what is known of both.
type soak struct {
	name   string
	flaky  *flaky              // over the database that fails
	faults *faultsql.Faults    // nil in memory
	truth  smallben.Repository // the database as it is
	spoil  func(t testing.TB, id int64)

	// gate is held for reading by what may change a row or plan a fault, and
	// for writing by the oracle.
	gate sync.RWMutex
	s    *smallben.SmallBen

	mu     sync.Mutex
	models []model             // of the workers, each of its own ids
	silent map[agent]time.Time // since when a job that was deleted or paused must not start
	ticks  map[int64][]int64   // the last ones of each job

	operations, succeeded, unknown, injected, restarts, rotted, runs, looks, violations atomic.Int64
}

func (w *soak) String() string {
	return fmt.Sprintf("%d operations of which %d succeeded, %d faults, %d outcomes unknown, %d restarts, %d rotten rows, %d runs, %d looks of the oracle",
		w.operations.Load(), w.succeeded.Load(), w.injected.Load(), w.unknown.Load(), w.restarts.Load(), w.rotted.Load(), w.runs.Load(), w.looks.Load())
}

func newSoak(name string, repository, truth smallben.Repository) *soak {
	return &soak{name: "soak " + name, flaky: &flaky{Repository: repository}, truth: truth,
		silent: map[agent]time.Time{}, ticks: map[int64][]int64{}}
}

func soakMemory(testing.TB) *soak {
	repository := newMemoryRepository()
	w := newSoak("memory", repository, repository)
	w.spoil = func(t testing.TB, id int64) {
		row := rowOf(t, repository, id)
		row.SerializedJob = rottenText
		repository.Put(row)
	}
	return w
}

func soakSQLite(t testing.TB) *soak {
	path := filepath.Join(t.TempDir(), "jobs.db")
	raw, err := sql.Open("sqlite3", path+"?_journal_mode=WAL")
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	return soakSQL(t, "SQLite", faultsql.SQLite(path, "_journal_mode=WAL"), raw,
		func(pool *sql.DB) gorm.Dialector { return sqlite.Dialector{Conn: pool} })
}

func soakPostgres(t testing.TB) *soak {
	dsn := pgtest.DSN(t)
	raw, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	faults, err := faultsql.Postgres(dsn)
	require.NoError(t, err)
	return soakSQL(t, "PostgreSQL", faults, raw,
		func(pool *sql.DB) gorm.Dialector { return postgres.New(postgres.Config{Conn: pool}) })
}

func soakSQL(t testing.TB, name string, faults *faultsql.Faults, raw *sql.DB, dialector func(*sql.DB) gorm.Dialector) *soak {
	t.Cleanup(func() { _ = faults.DB().Close() })
	truth, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector(raw)})
	require.NoError(t, err)
	repository, _ := openHasty(t, dialector(faults.DB()), time.Second) // since operations hang
	w := newSoak(name, repository, truth)
	w.faults = faults
	w.spoil = func(t testing.TB, id int64) {
		_, err := raw.Exec("UPDATE jobs SET serialized_job = $1 WHERE id = $2", rottenText, id)
		require.NoError(t, err)
	}
	return w
}

// violated counts what the oracle finds.
type violated struct {
	testing.TB
	n *atomic.Int64
}

func (v violated) Errorf(format string, args ...any) {
	v.TB.Helper()
	v.n.Add(1)
	v.TB.Errorf(format, args...)
}

func (w *soak) fresh() {
	w.s = smallben.New(w.flaky, &smallben.Config{Logger: quiet,
		SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true, SkipIfStillRunning: rand.IntN(2) == 0}})
}

const (
	soakWorkers = 4
	soakRotID   = 1 << 40 // from here on: jobs of the oracle, to rot
)

var soakExpressions = []string{"* * * * * *", "@every 1s", "*/2 * * * * *", "@daily"}

func (w *soak) run(tb *testing.T, end time.Time) {
	t := violated{tb, &w.violations}
	agents.Store(w.name, func(a agent, input smallben.CronJobInput) { w.runJob(t, a, input) })
	defer agents.Delete(w.name)
	w.fresh()
	inTime(t, w.s.Start)
	defer func() { w.s.Stop() }()
	w.models = make([]model, soakWorkers)
	var group sync.WaitGroup
	for n := range soakWorkers {
		w.models[n] = model{}
		group.Go(func() {
			for version := 1; time.Now().Before(end); version++ {
				w.work(t, n, version)
				time.Sleep(rand.N(20 * time.Millisecond)) // lets jobs live to run
			}
		})
	}
	group.Go(func() {
		for time.Now().Before(end) {
			w.disturb()
		}
	})
	rot := model{}
	for time.Now().Before(end) {
		time.Sleep(min(time.Second, time.Until(end)))
		w.look(t, rot)
	}
	group.Wait()
	w.look(t, rot)
}

// work is one operation of a worker on its own jobs.
func (w *soak) work(t testing.TB, n, version int) {
	var mine []int64
	for i := range int64(20) {
		mine = append(mine, int64(n+1)*1000+i)
	}
	o := drawOperation(rand.IntN, mine, soakExpressions, version, false)
	if o.Kind == "add" && w.faults != nil && rand.IntN(2) == 0 {
		o.Kind = "upsert"
	}
	before := w.models[n]
	o = o.likely(rand.IntN, before)
	after, targets, want := o.apply(before, w.truth.ErrorTypeIfMismatchCount())
	w.gate.RLock()
	defer w.gate.RUnlock()
	if o.Kind == "resume" {
		w.silence(before, targets, time.Time{})
	}
	err := o.call(w.s, w.name)
	w.operations.Add(1)
	switch {
	case err == nil:
		w.succeeded.Add(1)
		assert.NoError(t, want, "%s", o)
		if o.Kind == "delete" || o.Kind == "pause" {
			w.silence(before, targets, time.Now())
		}
	case errors.Is(err, smallben.ErrOutcomeUnknown):
		w.unknown.Add(1)
		// The next look at these jobs tells: a change of theirs is refused
		// until the outcome is known.
		after = w.learn(t, o, before, after, mine)
	default:
		// A fault, or what was to be expected: nothing changed.
		after = before
	}
	w.mu.Lock()
	w.models[n] = after
	w.mu.Unlock()
}

// learn waits for the outcome of an operation.
func (w *soak) learn(t testing.TB, o operation, before, after model, mine []int64) model {
	for deadline := time.Now().Add(time.Minute); gauges(t, w.s)["smallben_scheduler_unsettled_writes"] > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("the outcome of %s stays unknown", o)
			break
		}
		if rand.IntN(100) == 0 {
			// While nothing is started, only a change settles.
			_ = w.s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{-1}})
		}
	}
	now := w.mine(t, mine)
	if maps.Equal(now, after) {
		return after
	}
	assert.Equal(t, describe(before), describe(now), "%s: all or nothing", o)
	return now
}

func (w *soak) mine(t testing.TB, ids []int64) model {
	now, _ := truth(t, w.truth)
	maps.DeleteFunc(now, func(id int64, _ modelJob) bool { return !slices.Contains(ids, id) })
	return now
}

// silence notes from when on jobs must not start, or, with no time, that they
// may.
func (w *soak) silence(m model, ids []int64, since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		if key := (agent{w.name, id, m[id].Added}); since.IsZero() {
			delete(w.silent, key)
		} else {
			w.silent[key] = since
		}
	}
}

// runJob is what jobs do.
func (w *soak) runJob(t testing.TB, a agent, input smallben.CronJobInput) {
	w.runs.Add(1)
	tick := input.ScheduledAt.UnixNano()
	w.mu.Lock()
	since, silent := w.silent[a]
	if silent && input.ScheduledAt.After(since) {
		t.Errorf("%+v was deleted or paused at %s and ran at %s", a, since, input.ScheduledAt)
	}
	last := w.ticks[a.ID]
	if slices.Contains(last, tick) {
		t.Errorf("%+v ran twice at %s", a, input.ScheduledAt)
	}
	w.ticks[a.ID] = append(last[max(0, len(last)-9):], tick)
	w.mu.Unlock()
	switch rand.IntN(12) {
	case 0:
		panic("a job of the soak panics")
	case 1:
		runtime.Goexit()
	case 2:
		time.Sleep(rand.N(2 * time.Second))
	case 3, 4:
		if w.gate.TryRLock() {
			defer w.gate.RUnlock()
			o := drawOperation(rand.IntN, []int64{-10, -11, -12, -13}, soakExpressions, 1, false)
			_ = o.call(w.s, w.name)
			w.operations.Add(1)
		}
	case 5:
		if w.gate.TryRLock() {
			defer w.gate.RUnlock()
			_, _ = w.s.ListJobs(&smallben.ListJobsOptions{GroupIDs: []int64{1}})
		}
	}
}

// disturb makes something fail for a while, or restarts.
func (w *soak) disturb() {
	w.gate.RLock()
	switch n := rand.IntN(10); {
	case n == 0:
		w.s.Stop()
		w.restarts.Add(1)
		_ = w.s.Start() // the oracle does it otherwise
	case n < 4 || w.faults == nil:
		w.flaky.failNth(1+rand.IntN(10), flakiness(rand.IntN(3)))
	default:
		modes := []faultsql.Mode{faultsql.Before, faultsql.After, faultsql.BadConn, faultsql.Midway, faultsql.Hang, faultsql.HangAfter}
		w.faults.FailNth(1+rand.IntN(40), modes[rand.IntN(len(modes))], rand.IntN(4) == 0)
	}
	w.gate.RUnlock()
	time.Sleep(rand.N(100 * time.Millisecond))
	w.heal()
}

func (w *soak) heal() {
	w.flaky.mu.Lock()
	if w.flaky.fired {
		w.injected.Add(1)
	}
	w.flaky.n, w.flaky.fired = 0, false
	w.flaky.mu.Unlock()
	if w.faults != nil {
		w.injected.Add(int64(w.faults.Fired()))
		w.faults.FailWhen(nil, faultsql.Fault{}) // heals, and forgets what has fired
	}
}

// look is the oracle: nobody changes anything meanwhile, and no fault is left.
func (w *soak) look(t testing.TB, rot model) {
	w.gate.Lock()
	defer w.gate.Unlock()
	w.heal()
	inTime(t, w.s.Start)
	settled(t, w.s)
	w.looks.Add(1)
	want := maps.Clone(rot)
	w.mu.Lock()
	for _, m := range w.models {
		maps.Copy(want, m)
	}
	maps.DeleteFunc(w.silent, func(_ agent, since time.Time) bool { return time.Since(since) > time.Minute })
	w.mu.Unlock()
	now, _ := truth(t, w.truth)
	maps.DeleteFunc(now, func(id int64, _ modelJob) bool { return id < 0 })
	assert.Equal(t, describe(want), describe(now))
	checkInvariant(t, w.s, w.truth)
	if rand.IntN(3) > 0 {
		return
	}

	// A row rots, or is taken away, while the service restarts.
	w.s.Stop()
	w.restarts.Add(1)
	w.fresh()
	id := soakRotID + rand.Int64N(5)
	if _, exists := rot[id]; exists {
		inTime(t, func() error {
			return w.s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{id}}})
		})
		delete(rot, id)
	} else {
		o := operation{Kind: "add", IDs: []int64{id}, Expression: "* * * * * *", Version: 1}
		inTime(t, func() error { return o.call(w.s, w.name) })
		w.spoil(t, id)
		rot[id] = modelJob{Expression: o.Expression, Input: 1, Rotten: true}
		w.rotted.Add(1)
	}
	inTime(t, w.s.Start)
	checkInvariant(t, w.s, w.truth)
}

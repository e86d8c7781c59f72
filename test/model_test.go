package test

import (
	"database/sql"
	"encoding/gob"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/sqlite"
	"pgregory.net/rapid"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/insides"
)

func init() {
	gob.Register(agent{})
	// The default of 100 takes longer than its findings are worth at each run
	// of the tests; -rapid.checks has the last word.
	if err := flag.Set("rapid.checks", "30"); err != nil {
		panic(err)
	}
}

// agent is the job of a model. What its runs do is looked up by its world.
type agent struct {
	World   string
	ID      int64
	Version int
}

var agents sync.Map // world to func(agent, smallben.CronJobInput)

func (a agent) Run(input smallben.CronJobInput) {
	if run, ok := agents.Load(a.World); ok {
		run.(func(agent, smallben.CronJobInput))(a, input)
	}
}

// modelJob is what a model knows of a job. Its group is its id modulo 3, its
// super group modulo 2.
type modelJob struct {
	Expression   string
	Added, Input int // the versions that were added, and that the input has
	Paused       bool
	Rotten       bool // then Added is 0
}

// model is what a repository should hold.
type model map[int64]modelJob

// operation is a call that changes jobs, as data: it can be drawn, written to a
// journal, and applied to a model.
type operation struct {
	Kind       string // add, upsert, delete, pause, resume, update, trigger
	IDs        []int64
	Groups     []int64 // nil: no filter, as for IDs where they are one
	Paused     *bool   // of a delete
	Expression string  // of an add, and of an update that names one
	Version    int
	Input      bool // the update names an input
}

func (o operation) String() string {
	text := fmt.Sprintf("%s %v", o.Kind, o.IDs)
	if o.IDs == nil {
		text = o.Kind + " any"
	}
	if o.Groups != nil {
		text += fmt.Sprintf(" in groups %v", o.Groups)
	}
	if o.Paused != nil {
		text += fmt.Sprintf(" paused %v", *o.Paused)
	}
	return fmt.Sprintf("%s %q version %d", text, o.Expression, o.Version)
}

// drawOperation draws about these ids. pick gives a number below its argument.
func drawOperation(pick func(int) int, ids []int64, expressions []string, version int, filters bool) operation {
	o := operation{Kind: []string{"add", "add", "delete", "pause", "resume", "update", "update"}[pick(7)], IDs: []int64{}, Version: version}
	for range 1 + pick(4) {
		o.IDs = append(o.IDs, ids[pick(len(ids))])
	}
	if pick(8) > 0 { // now and then an id stands twice
		slices.Sort(o.IDs)
		o.IDs = slices.Compact(o.IDs)
	}
	switch o.Kind {
	case "add":
		o.Expression = expressions[pick(len(expressions))]
	case "update":
		named := pick(3)
		o.Input = named != 0
		if named != 1 {
			o.Expression = expressions[pick(len(expressions))]
		}
	default:
		if !filters {
			break
		}
		if pick(4) == 0 {
			o.Groups = []int64{int64(pick(4))}
		}
		if o.Kind == "delete" && pick(4) == 0 {
			o.Paused = ptr(pick(2) == 0)
		}
		if pick(6) == 0 && (o.Groups != nil || o.Kind != "delete") {
			o.IDs = nil
		}
	}
	return o
}

// likely leaves out ids that would make the operation fail, most of the time.
func (o operation) likely(pick func(int) int, m model) operation {
	ids := slices.DeleteFunc(slices.Clone(o.IDs), func(id int64) bool {
		_, exists := m[id]
		return o.Kind == "upsert" || exists == (o.Kind == "add")
	})
	if len(ids) > 0 && pick(4) > 0 {
		o.IDs = ids
	}
	return o
}

// call does it for real.
func (o operation) call(s *smallben.SmallBen, world string) error {
	input := map[string]any{"v": o.Version}
	selected := smallben.PauseResumeOptions{JobIDs: o.IDs, GroupIDs: o.Groups}
	switch o.Kind {
	case "add", "upsert":
		jobs := make([]smallben.Job, len(o.IDs))
		for i, id := range o.IDs {
			jobs[i] = smallben.Job{ID: id, GroupID: id % 3, SuperGroupID: id % 2, CronExpression: o.Expression,
				Job: agent{world, id, o.Version}, JobInput: input}
		}
		if o.Kind == "upsert" {
			return s.UpsertJobs(jobs)
		}
		return s.AddJobs(jobs)
	case "delete":
		return s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: selected, Paused: o.Paused})
	case "pause":
		return s.PauseJobs(&selected)
	case "resume":
		return s.ResumeJobs(&selected)
	case "trigger":
		return s.TriggerJobs(&selected)
	default:
		updates := make([]smallben.UpdateOption, len(o.IDs))
		for i, id := range o.IDs {
			updates[i].JobID = id
			if o.Expression != "" {
				updates[i].CronExpression = &o.Expression
			}
			if o.Input {
				updates[i].JobOtherInputs = &input
			}
		}
		return s.UpdateJobs(updates)
	}
}

// apply gives the model after the operation, the ids of the jobs that it
// changes or triggers, and the error to expect.
func (o operation) apply(m model, mismatch error) (after model, targets []int64, want error) {
	twice := len(o.IDs) != len(idSet(o.IDs))
	if o.Kind == "add" || o.Kind == "upsert" {
		for _, id := range o.IDs {
			if _, exists := m[id]; exists && o.Kind == "add" || twice {
				return m, nil, smallben.ErrJobExists
			}
		}
		after = maps.Clone(m)
		for _, id := range o.IDs {
			after[id] = modelJob{Expression: o.Expression, Added: o.Version, Input: o.Version, Paused: m[id].Paused}
		}
		return after, o.IDs, nil
	}
	if o.Kind == "update" && twice {
		return m, nil, smallben.ErrUpdateOptionInvalid
	}
	named := idSet(o.IDs)
	rotten, matches := false, 0
	for id, job := range m {
		if (o.IDs == nil || named[id]) && (o.Groups == nil || slices.Contains(o.Groups, id%3)) && (o.Paused == nil || *o.Paused == job.Paused) {
			matches++
			rotten = rotten || job.Rotten
			if o.Kind == "pause" && job.Paused || o.Kind == "resume" && !job.Paused {
				continue // nothing to change
			}
			targets = append(targets, id)
		}
	}
	onlyIDs := o.IDs != nil && o.Groups == nil && o.Paused == nil
	switch {
	case matches == 0 || onlyIDs && matches < len(named):
		return m, nil, mismatch
	case rotten && (o.Kind == "resume" || o.Kind == "update" || o.Kind == "trigger"):
		return m, nil, smallben.ErrUndecodable
	}
	after = maps.Clone(m)
	for _, id := range targets {
		job := after[id]
		switch o.Kind {
		case "delete":
			delete(after, id)
			continue
		case "pause":
			job.Paused = true
		case "resume":
			job.Paused = false
		case "update":
			if o.Expression != "" {
				job.Expression = o.Expression
			}
			if o.Input {
				job.Input = o.Version
			}
		}
		after[id] = job
	}
	return after, targets, nil
}

const rottenText = "rotten!"

// truth reads the model that a repository holds.
func truth(t testing.TB, repository smallben.Repository) (model, map[int64]smallben.RawJob) {
	t.Helper()
	rows, err := repository.ListJobs(nil)
	require.NoError(t, err)
	m, raw := make(model, len(rows)), make(map[int64]smallben.RawJob, len(rows))
	for _, row := range rows {
		known := modelJob{Expression: row.CronExpression, Paused: row.Paused, Rotten: row.SerializedJob == rottenText}
		version := strings.TrimSuffix(strings.TrimPrefix(row.SerializedJobInput, `{"v":`), "}")
		known.Input, err = strconv.Atoi(version)
		require.NoError(t, err, "input %s", row.SerializedJobInput)
		if !known.Rotten {
			built, err := row.ToJobWithSchedule()
			require.NoError(t, err)
			again, err := built.BuildJob()
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(row), fmt.Sprint(again))
			known.Added = agentOf(t, row).Version
		}
		assert.Equal(t, []int64{row.ID % 3, row.ID % 2}, []int64{row.GroupID, row.SuperGroupID})
		m[row.ID], raw[row.ID] = known, row
	}
	return m, raw
}

// agentOf decodes the job of a row through a repository that holds only it.
func agentOf(t testing.TB, row smallben.RawJob) agent {
	t.Helper()
	one := newMemoryRepository()
	one.Put(row)
	jobs, err := smallben.New(one, &smallben.Config{Logger: quiet}).ListJobs(nil)
	require.NoError(t, err)
	require.Len(t, jobs, 1)
	a, ok := jobs[0].Job.(agent)
	require.True(t, ok, "%T", jobs[0].Job)
	return a
}

// settled waits until no write is outstanding.
func settled(t testing.TB, s *smallben.SmallBen) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); gauges(t, s)["smallben_scheduler_unsettled_writes"] > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a write was never settled")
		}
	}
}

// flaky fails the nth call of a repository from now on, in one of the three ways
// that the contract has.
type flaky struct {
	smallben.Repository
	mu    sync.Mutex
	n     int
	mode  flakiness
	fired bool
}

type flakiness int

const (
	failsBefore  flakiness = iota // an ordinary error: no change
	unknownDone                   // ErrOutcomeUnknown, and it happened
	unknownUndue                  // ErrOutcomeUnknown, and it did not
)

func (f *flaky) failNth(n int, mode flakiness) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n, f.mode, f.fired = n, mode, false
}

func (f *flaky) do(writes bool, call func() error) error {
	f.mu.Lock()
	f.n--
	fails, mode := f.n == 0, f.mode
	f.fired = f.fired || fails
	f.mu.Unlock()
	unknown := fmt.Errorf("flaky: %w", smallben.ErrOutcomeUnknown)
	switch {
	case !fails:
		return call()
	case !writes || mode == failsBefore:
		return errDown
	case mode == unknownUndue:
		return unknown
	}
	if err := call(); err != nil {
		return err
	}
	return unknown
}

func (f *flaky) AddJobs(jobs []smallben.JobWithSchedule) error {
	return f.do(true, func() error { return f.Repository.AddJobs(jobs) })
}

func (f *flaky) PauseJobs(jobs []smallben.RawJob) error {
	return f.do(true, func() error { return f.Repository.PauseJobs(jobs) })
}

func (f *flaky) ResumeJobs(jobs []smallben.JobWithSchedule) error {
	return f.do(true, func() error { return f.Repository.ResumeJobs(jobs) })
}

func (f *flaky) DeleteJobsByIds(ids []int64) error {
	return f.do(true, func() error { return f.Repository.DeleteJobsByIds(ids) })
}

func (f *flaky) SetCronId(jobs []smallben.JobWithSchedule) error {
	return f.do(true, func() error { return f.Repository.SetCronId(jobs) })
}

func (f *flaky) SetCronIdAndChangeScheduleAndJobInput(jobs []smallben.JobWithSchedule) error {
	return f.do(true, func() error { return f.Repository.SetCronIdAndChangeScheduleAndJobInput(jobs) })
}

// UpsertJobs makes it an Upserter where it stands before one.
func (f *flaky) UpsertJobs(add, replace []smallben.JobWithSchedule) error {
	return f.do(true, func() error { return f.Repository.(smallben.Upserter).UpsertJobs(add, replace) })
}

func (f *flaky) ListJobs(options smallben.ToListOptions) (rows []smallben.RawJob, err error) {
	err = f.do(false, func() (err error) { rows, err = f.Repository.ListJobs(options); return err })
	return rows, err
}

func (f *flaky) GetAllJobsToExecute() (jobs []smallben.JobWithSchedule, err error) {
	err = f.do(false, func() (err error) { jobs, err = f.Repository.GetAllJobsToExecute(); return err })
	return jobs, err
}

// rapidTB lets the checks of other tests fail a rapid.T.
type rapidTB struct {
	testing.TB
	t *rapid.T
}

func (r rapidTB) Helper()                      {}
func (r rapidTB) Errorf(f string, args ...any) { r.t.Errorf(f, args...) }
func (r rapidTB) Fatalf(f string, args ...any) { r.t.Fatalf(f, args...) }
func (r rapidTB) Fatal(args ...any)            { r.t.Fatal(args...) }
func (r rapidTB) FailNow()                     { r.t.FailNow() }
func (r rapidTB) Failed() bool                 { return r.t.Failed() }
func (r rapidTB) Logf(f string, args ...any)   { r.t.Logf(f, args...) }
func (r rapidTB) Cleanup(f func())             { r.t.Cleanup(f) }

// machine is a SmallBen beside its model.
type machine struct {
	t       testing.TB
	draw    *rapid.T
	truth   smallben.Repository // without faults
	flaky   *flaky
	faults  *faultsql.Faults // nil in memory
	spoil   func(id int64, serializedJob string)
	s       *smallben.SmallBen
	started bool
	model   model
	rows    map[int64]smallben.RawJob // as they were after the last step
	version int
	world   string
	runs    *atomic.Int64
}

func (m *machine) pick(n int) int { return rapid.IntRange(0, n-1).Draw(m.draw, "pick") }

var (
	modelIDs         = []int64{1, 2, 3, 4, 5, 6, 7, -8, 9 << 40}
	modelExpressions = []string{"@daily", "@hourly", "@every 24h", "0 4 * * MON"}
)

func (m *machine) drawOperation() operation {
	m.version++
	o := drawOperation(m.pick, modelIDs, modelExpressions, m.version, true)
	if _, upserter := m.truth.(smallben.Upserter); upserter && o.Kind == "add" && m.pick(2) == 0 {
		o.Kind = "upsert"
	}
	return o.likely(m.pick, m.model)
}

// trigger runs jobs, and changes none.
func (m *machine) trigger() {
	o := m.drawOperation()
	o.Kind, o.Paused = "trigger", nil
	_, targets, want := o.apply(m.model, m.truth.ErrorTypeIfMismatchCount())
	before := m.runs.Load()
	err := o.call(m.s, m.world)
	switch {
	case !m.started:
		require.Error(m.t, err, "nothing runs before Start")
	case want != nil:
		require.ErrorIs(m.t, err, want, "%s", o)
	default:
		require.NoError(m.t, err, "%s", o)
		want := before + int64(len(targets))
		for deadline := time.Now().Add(30 * time.Second); m.runs.Load() < want && time.Now().Before(deadline); {
			time.Sleep(100 * time.Microsecond)
		}
		before = want
	}
	require.Equal(m.t, before, m.runs.Load(), "%s", o)
}

func (m *machine) restart(fresh bool) {
	m.s.Stop()
	m.started = false
	if fresh {
		m.s = smallben.New(m.flaky, &smallben.Config{Logger: quiet})
	}
}

func (m *machine) start() error {
	err := m.s.Start()
	m.started = m.started || err == nil
	if err == nil {
		settled(m.t, m.s) // writes from before
	}
	return err
}

// step does an operation, and holds what came of it against the model.
func (m *machine) step(fired func() bool) {
	o := m.drawOperation()
	before := m.model
	after, targets, want := o.apply(before, m.truth.ErrorTypeIfMismatchCount())
	err := o.call(m.s, m.world)
	faulty := fired()
	if m.started {
		settled(m.t, m.s)
	}
	now, rows := truth(m.t, m.truth)
	unknown := errors.Is(err, smallben.ErrOutcomeUnknown)
	switch {
	case err == nil:
		require.NoError(m.t, want, "%s", o)
		require.Equal(m.t, after, now, "%s: nil means that it happened", o)
	case unknown && maps.Equal(now, after):
		require.True(m.t, faulty)
	default:
		require.Equal(m.t, before, now, "%s: %v: an error means that nothing changed", o, err)
		if !faulty {
			require.ErrorIs(m.t, err, want, "%s", o)
		}
	}
	m.model = now
	for id, row := range m.rows {
		if !slices.Contains(targets, id) {
			require.Equal(m.t, fmt.Sprint(row), fmt.Sprint(rows[id]), "%s is not about job %d", o, id)
		}
	}
}

// check is what holds after each step.
func (m *machine) check() {
	now, rows := truth(m.t, m.truth)
	require.Equal(m.t, m.model, now)
	m.rows = rows
	if m.started {
		checkInvariant(m.t, m.s, m.truth)
	}
	jobs, err := m.s.ListJobs(nil)
	rotten := 0
	for _, job := range m.model {
		if job.Rotten {
			rotten++
			require.ErrorIs(m.t, err, smallben.ErrUndecodable)
		}
	}
	if rotten == 0 {
		require.NoError(m.t, err)
	}
	require.Len(m.t, jobs, len(m.model)-rotten)
	for _, job := range jobs {
		known := m.model[job.ID]
		require.Equal(m.t, known, modelJob{job.CronExpression, job.Job.(agent).Version, int(job.JobInput["v"].(float64)), job.Paused(), false})
	}
}

func (m *machine) actions() map[string]func(*rapid.T) {
	never := func() bool { return false }
	actions := map[string]func(){
		"operation":       func() { m.step(never) },
		"operation again": func() { m.step(never) },
		"trigger":         func() { m.trigger() },
		"stop":            func() { m.restart(m.pick(2) == 0) },
		"start":           func() { require.NoError(m.t, m.start()) },
		"restart":         func() { m.restart(m.pick(2) == 0); require.NoError(m.t, m.start()) },
		"operation of a flaky repository": func() {
			m.flaky.failNth(1+m.pick(3), flakiness(m.pick(3)))
			m.step(func() bool { m.flaky.failNth(0, 0); return true })
		},
		"start with a flaky repository": func() {
			m.restart(m.pick(2) == 0)
			m.flaky.failNth(1+m.pick(4), flakiness(m.pick(3)))
			err := m.start()
			m.flaky.failNth(0, 0)
			if err != nil {
				counted, _ := insides.Pages(m.s)
				require.Nil(m.t, counted, "nothing runs")
				require.NoError(m.t, m.start())
			}
			settled(m.t, m.s)
		},
		"rot": func() {
			m.restart(m.pick(2) == 0)
			ids := slices.Sorted(maps.Keys(m.model))
			if len(ids) > 0 {
				id := ids[m.pick(len(ids))]
				job := m.model[id]
				job.Rotten, job.Added = true, 0
				m.model = maps.Clone(m.model)
				m.model[id] = job
				m.spoil(id, rottenText)
			}
			require.NoError(m.t, m.start())
		},
	}
	if m.faults != nil {
		faulty := func() (fired func() bool) {
			mode := []faultsql.Mode{faultsql.Before, faultsql.After, faultsql.BadConn, faultsql.Midway}[m.pick(4)]
			m.faults.FailNth(1+m.pick(20), mode, m.pick(6) == 0)
			return func() bool {
				n := m.faults.Fired()
				m.faults.Heal()
				return n > 0
			}
		}
		actions["operation on a faulty database"] = func() { m.step(faulty()) }
		actions["start on a faulty database"] = func() {
			m.restart(m.pick(2) == 0)
			fired := faulty()
			err := m.start()
			if !fired() {
				require.NoError(m.t, err)
			}
			if err != nil {
				require.NoError(m.t, m.start())
			}
			settled(m.t, m.s)
		}
	}
	steps := map[string]func(*rapid.T){"": func(*rapid.T) { m.check() }}
	for name, action := range actions {
		steps[name] = func(draw *rapid.T) { m.draw = draw; m.t = rapidTB{m.t.(rapidTB).TB, draw}; action() }
	}
	return steps
}

func (m *machine) run(draw *rapid.T) {
	m.draw, m.model, m.started, m.runs = draw, model{}, false, new(atomic.Int64)
	m.world = fmt.Sprintf("model %p", m)
	agents.Store(m.world, func(agent, smallben.CronJobInput) { m.runs.Add(1) })
	defer agents.Delete(m.world)
	m.s = smallben.New(m.flaky, &smallben.Config{Logger: quiet})
	defer func() { m.s.Stop() }()
	draw.Repeat(m.actions())
}

func TestTheModelAgreesInMemory(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(draw *rapid.T) {
		repository := newMemoryRepository()
		m := &machine{t: rapidTB{t, draw}, truth: repository, flaky: &flaky{Repository: repository}}
		m.spoil = func(id int64, serializedJob string) {
			row := rowOf(t, repository, id)
			row.SerializedJob = serializedJob
			repository.Put(row)
		}
		m.run(draw)
	})
}

func TestTheModelAgreesOnSQLite(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(draw *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		require.NoError(t, err)
		path := filepath.Join(dir, "jobs.db")
		faults := faultsql.SQLite(path, "_synchronous=OFF", "_journal_mode=WAL")
		defer faults.DB().Close()
		// A COMMIT that fails while nothing else answers takes all of the timeout.
		repository, _ := openHasty(t, sqlite.Dialector{Conn: faults.DB()}, 3*time.Second)
		raw, err := sql.Open("sqlite3", path)
		require.NoError(t, err)
		defer raw.Close()
		whole, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: sqlite.Dialector{Conn: raw}})
		require.NoError(t, err)
		m := &machine{t: rapidTB{t, draw}, truth: whole, flaky: &flaky{Repository: repository}, faults: faults}
		m.spoil = func(id int64, serializedJob string) {
			_, err := raw.Exec("UPDATE jobs SET serialized_job = ? WHERE id = ?", serializedJob, id)
			require.NoError(m.t, err)
		}
		m.run(draw)
	})
}

// TestFiftyGoroutinesOfMixedCalls has goroutines that each know what their own
// jobs look like, while all of them, and the jobs as they run, change jobs that
// nobody owns, and one starts and stops.
func TestFiftyGoroutinesOfMixedCalls(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		const goroutines, calls = 50, 8
		expressions := []string{"* * * * * *", "@every 1s", "0-59 * * * * *"}
		s := create(t, repository, &smallben.Config{Logger: quiet,
			SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true, SkipIfStillRunning: true}})
		require.NoError(t, s.Start())
		shared := []int64{-1, -2, -3, -4, -5, -6}
		mismatch := s.ErrorTypeIfMismatchCount()
		meddle := func(pick func(int) int) {
			o := drawOperation(pick, shared, expressions, 0, false)
			if err := o.call(s, t.Name()); err != nil {
				expected := errors.Is(err, smallben.ErrJobExists) || errors.Is(err, mismatch) || errors.Is(err, smallben.ErrUpdateOptionInvalid)
				assert.True(t, expected, "%s: %v", o, err)
			}
		}
		var over atomic.Bool
		var runs atomic.Int64
		agents.Store(t.Name(), func(a agent, _ smallben.CronJobInput) {
			if runs.Add(1)%5 != 0 || over.Load() {
				return
			}
			meddle(rand.IntN)
			_, err := s.ListJobs(&smallben.ListJobsOptions{Paused: ptr(true)})
			assert.NoError(t, err)
		})
		defer agents.Delete(t.Name())

		models := make([]model, goroutines)
		var group sync.WaitGroup
		for g := range goroutines {
			group.Go(func() {
				var mine []int64
				for i := range int64(6) {
					mine = append(mine, int64(g)*100+i+1)
				}
				m := model{}
				for i := range calls {
					o := drawOperation(rand.IntN, mine, expressions, g*1000+i, false)
					after, _, want := o.apply(m, mismatch)
					err := o.call(s, t.Name())
					if want == nil {
						assert.NoError(t, err, "%s", o)
					} else {
						assert.ErrorIs(t, err, want, "%s", o)
					}
					m = after
					switch i % 4 {
					case 0:
						meddle(rand.IntN)
					case 1:
						jobs, err := s.ListJobs(&smallben.ListJobsOptions{JobIDs: mine, Paused: ptr(false)})
						assert.NoError(t, err)
						running := 0
						for _, job := range m {
							if !job.Paused {
								running++
							}
						}
						assert.Len(t, jobs, running)
					case 2:
						assert.NoError(t, s.Start())
					}
				}
				models[g] = m
			})
		}
		restarts := 0
		done := make(chan struct{})
		go func() { group.Wait(); close(done) }()
		for restarting := true; restarting; restarts++ {
			select {
			case <-done:
				restarting = false
			case <-time.After(50 * time.Millisecond):
				s.Stop()
				assert.NoError(t, s.Start())
			}
		}
		// At least one tick with everything in place.
		require.NoError(t, s.Start())
		for before := runs.Load(); runs.Load() == before && len(insides.Entries(s)) > 0; {
			time.Sleep(time.Millisecond)
		}
		over.Store(true)
		s.Stop()
		require.NoError(t, s.Start())
		checkInvariant(t, s, repository)
		want := model{}
		for _, m := range models {
			maps.Copy(want, m)
		}
		now, _ := truth(t, repository)
		maps.DeleteFunc(now, func(id int64, _ modelJob) bool { return id < 0 })
		assert.Equal(t, want, now)
		s.Stop()
		t.Logf("%d runs, %d restarts", runs.Load(), restarts)
	})
}

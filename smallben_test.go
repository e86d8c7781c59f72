package smallben_test

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/testkit"
)

// What the tests of this module share, by the names that it has here.
type (
	probe    = testkit.Probe
	valueJob = testkit.ValueJob

	discardSink = testkit.DiscardSink
)

var (
	newProbe       = testkit.NewProbe
	idle           = testkit.Idle
	quiet          = testkit.Quiet
	create         = testkit.Create
	started        = testkit.Started
	openSQLite     = testkit.OpenSQLite
	openPostgres   = testkit.OpenPostgres
	eachRepository = testkit.EachRepository
	checkInvariant = testkit.CheckInvariant
	gauges         = testkit.Gauges
	job            = testkit.Job
	ids            = testkit.IDs
	bubble         = testkit.Bubble
	pass           = testkit.Pass
	errDown        = testkit.ErrDown
)

func ptr[T any](v T) *T { return &v }

// recorder is a probe that keeps what its runs received.
type recorder struct {
	*probe
	mu     sync.Mutex
	inputs []smallben.CronJobInput
}

func newRecorder() *recorder {
	r := &recorder{}
	r.probe = newProbe(func(_ *probe, input smallben.CronJobInput) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.inputs = append(r.inputs, input)
	})
	return r
}

// runs returns the inputs so far and forgets them.
func (r *recorder) runs() []smallben.CronJobInput {
	r.mu.Lock()
	defer r.mu.Unlock()
	inputs := r.inputs
	r.inputs = nil
	return inputs
}

func (r *recorder) count() int { return len(r.runs()) }

// logLines is a logger that keeps its lines.
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) logger() logr.Logger {
	return funcr.New(func(prefix, args string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lines = append(l.lines, args)
	}, funcr.Options{})
}

func (l *logLines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}

func (l *logLines) with(part string) (found []string) {
	for _, line := range l.all() {
		if strings.Contains(line, part) {
			found = append(found, line)
		}
	}
	return found
}

func TestMain(m *testing.M) { testkit.Main(m) }

// Rule 1.

func TestNewDoesNoIO(t *testing.T) {
	t.Parallel()
	// Every method of the embedded nil interface would panic.
	s := create(t, struct{ smallben.Repository }{}, &smallben.Config{Logger: quiet})
	assert.Zero(t, gauges(t, s)["smallben_scheduler_jobs_total"])
	s.Stop()
}

func TestNewTakesNilConfigForTheZeroConfig(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := create(t, newMemoryRepository(), nil)
		require.NoError(t, s.Start())
		assert.ErrorIs(t, s.AddJobs([]smallben.Job{job(2, "* * * * * *", idle())}), smallben.ErrInvalidJob)
	})
}

func TestNewPanicsOnANilRepository(t *testing.T) {
	t.Parallel()
	const message = "smallben: New needs a repository, and was given nil"
	assert.PanicsWithValue(t, message, func() { smallben.New(nil, nil) })
	var none *smallben.RepositoryGorm
	assert.PanicsWithValue(t, message, func() { smallben.New(none, nil) })
}

// Rule 2.

func TestStartRunsStoredJobsOncePerTick(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		before := create(t, repository, &smallben.Config{Logger: quiet})
		r := newRecorder()
		require.NoError(t, before.AddJobs([]smallben.Job{job(1, "* * * * *", r)}))
		require.NoError(t, before.Start())
		require.NoError(t, before.Start())
		pass(10*time.Minute + time.Second)
		assert.Equal(t, 10, r.count())
		checkInvariant(t, before, repository)
		before.Stop()
	})
}

func TestAStopDuringStartStopsWhatItStarts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := &slowStart{memoryRepository: newMemoryRepository(), reached: make(chan struct{}), release: make(chan struct{})}
		s := create(t, repository, &smallben.Config{Logger: quiet})
		r := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", r)}))
		started, stopped := make(chan error, 1), make(chan struct{})
		go func() { started <- s.Start() }()
		<-repository.reached
		expired, cancel := context.WithCancel(t.Context())
		cancel()
		assert.ErrorContains(t, s.StopContext(expired), "Start is still loading")
		go func() { s.Stop(); close(stopped) }()
		synctest.Wait()
		close(repository.release)
		require.NoError(t, <-started)
		<-stopped
		pass(time.Hour)
		assert.Zero(t, r.count())
	})
}

// slowStart takes its time to load the jobs.
type slowStart struct {
	*memoryRepository
	reached, release chan struct{}
}

func (r *slowStart) GetAllJobsToExecute() ([]smallben.JobWithSchedule, error) {
	close(r.reached)
	<-r.release
	return r.memoryRepository.GetAllJobsToExecute()
}

func TestStartIsGoroutineSafe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		r := newRecorder()
		s := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", r)}))
		var group sync.WaitGroup
		for range 20 {
			group.Go(func() { assert.NoError(t, s.Start()) })
		}
		group.Wait()
		pass(3*time.Minute + time.Second)
		assert.Equal(t, 3, r.count())
		s.Stop()
	})
}

func TestStartAfterStopReadsTheRepositoryAfresh(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		first, second := newRecorder(), newRecorder()
		s := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", first)}))
		s.Stop()
		other := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, other.DeleteJobs(&smallben.DeleteOptions{}))
		require.NoError(t, other.AddJobs([]smallben.Job{job(2, "* * * * *", second)}))
		require.NoError(t, s.Start())
		checkInvariant(t, s, repository)
		pass(2*time.Minute + time.Second)
		assert.Zero(t, first.count())
		assert.Equal(t, 2, second.count())
		s.Stop()
	})
}

// failing makes chosen methods of a repository fail.
type failing struct {
	smallben.Repository
	mu   sync.Mutex
	errs map[string]error
}

func newFailing(repository smallben.Repository) *failing {
	return &failing{Repository: repository, errs: make(map[string]error)}
}

func (f *failing) fail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs[method] = err
}

func (f *failing) err(method string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.errs[method]
}

func (f *failing) GetAllJobsToExecute() ([]smallben.JobWithSchedule, error) {
	if err := f.err("GetAllJobsToExecute"); err != nil {
		return nil, err
	}
	return f.Repository.GetAllJobsToExecute()
}

func (f *failing) ListJobs(options smallben.ToListOptions) ([]smallben.RawJob, error) {
	if err := f.err("ListJobs"); err != nil {
		return nil, err
	}
	return f.Repository.ListJobs(options)
}

func (f *failing) SetCronId(jobs []smallben.JobWithSchedule) error {
	if err := f.err("SetCronId"); err != nil {
		return err
	}
	return f.Repository.SetCronId(jobs)
}

func (f *failing) AddJobs(jobs []smallben.JobWithSchedule) error {
	if err := f.err("AddJobs"); err != nil {
		return err
	}
	return f.Repository.AddJobs(jobs)
}

func (f *failing) PauseJobs(jobs []smallben.RawJob) error {
	if err := f.err("PauseJobs"); err != nil {
		return err
	}
	return f.Repository.PauseJobs(jobs)
}

func (f *failing) ResumeJobs(jobs []smallben.JobWithSchedule) error {
	if err := f.err("ResumeJobs"); err != nil {
		return err
	}
	return f.Repository.ResumeJobs(jobs)
}

func (f *failing) DeleteJobsByIds(ids []int64) error {
	if err := f.err("DeleteJobsByIds"); err != nil {
		return err
	}
	return f.Repository.DeleteJobsByIds(ids)
}

func (f *failing) SetCronIdAndChangeScheduleAndJobInput(jobs []smallben.JobWithSchedule) error {
	if err := f.err("SetCronIdAndChangeScheduleAndJobInput"); err != nil {
		return err
	}
	return f.Repository.SetCronIdAndChangeScheduleAndJobInput(jobs)
}

func TestStartThatFailsRunsNothingAndCanBeTriedAgain(t *testing.T) {
	for _, method := range []string{"GetAllJobsToExecute", "ListJobs", "SetCronId"} {
		t.Run(method, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				repository := newFailing(newMemoryRepository())
				s := create(t, repository, &smallben.Config{Logger: quiet})
				r := newRecorder()
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", r)}))
				repository.fail(method, errDown)
				require.ErrorIs(t, s.Start(), errDown)
				pass(5 * time.Minute)
				assert.Zero(t, r.count())
				repository.fail(method, nil)
				require.NoError(t, s.Start())
				checkInvariant(t, s, repository)
				pass(5 * time.Minute)
				assert.Equal(t, 5, r.count())
				s.Stop()
			})
		})
	}
}

// Rule 3.

func TestStopWaitsForRunsAndStartsNone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var ended atomic.Int32
		begun := make(chan struct{}, 100)
		slow := newProbe(func(*probe, smallben.CronJobInput) {
			begun <- struct{}{}
			time.Sleep(150 * time.Second)
			ended.Add(1)
		})
		repository := newMemoryRepository()
		s := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", slow)}))
		<-begun
		var group sync.WaitGroup
		for range 5 {
			group.Go(func() {
				s.Stop()
				assert.EqualValues(t, 1, ended.Load())
			})
		}
		group.Wait()
		s.Stop()
		pass(time.Hour)
		assert.Empty(t, begun)
		assert.EqualValues(t, 1, ended.Load())
		assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_jobs_not_paused"], "after Stop the gauges show what is known")
	})
}

func TestAJobMayCallEveryOtherMethodWhileStopWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := create(t, repository, &smallben.Config{Logger: quiet})
		begun, stopping, answered := make(chan struct{}), make(chan struct{}), make(chan struct{})
		caller := newProbe(func(_ *probe, input smallben.CronJobInput) {
			close(begun)
			<-stopping
			all := &smallben.PauseResumeOptions{JobIDs: []int64{2}}
			assert.NoError(t, s.AddJobs([]smallben.Job{job(2, "* * * * *", idle())}))
			assert.NoError(t, s.PauseJobs(all))
			assert.NoError(t, s.ResumeJobs(all))
			assert.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 2, CronExpression: ptr("@daily")}}))
			jobs, err := s.ListJobs(nil)
			assert.NoError(t, err)
			assert.Equal(t, []int64{1, 2}, ids(jobs))
			assert.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: *all}))
			gauges(t, s)
			close(answered)
		})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", caller)}))
		<-begun
		stopped := make(chan struct{})
		go func() { s.Stop(); close(stopped) }()
		synctest.Wait() // Stop waits
		close(stopping)
		<-answered
		<-stopped
	})
}

func TestStartWhileStopWaitsBeginsAnew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := create(t, repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{SkipIfStillRunning: true}})
		release := make(chan struct{})
		var runs atomic.Int32
		blocked := newProbe(func(*probe, smallben.CronJobInput) {
			if runs.Add(1) == 1 {
				<-release
			}
		})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", blocked)}))
		pass(61 * time.Second)
		stopped := make(chan struct{})
		go func() { s.Stop(); close(stopped) }()
		synctest.Wait()
		require.NoError(t, s.Start())
		pass(2 * time.Minute)
		assert.EqualValues(t, 1, runs.Load(), "the job does not overlap itself, not even across sessions")
		close(release)
		<-stopped
		pass(2 * time.Minute)
		assert.EqualValues(t, 3, runs.Load())
		s.Stop()
	})
}

// Rule 4.

type unregistered struct{ N int }

func (unregistered) Run(smallben.CronJobInput) {}

type panicky struct{ N int }

func (panicky) Run(smallben.CronJobInput)    {}
func (panicky) GobEncode() ([]byte, error)   { panic("no encoding today") }
func (*panicky) GobDecode(data []byte) error { return nil }

type selfish struct {
	Next *selfish
	Any  any
	List []selfish
}

func (*selfish) Run(smallben.CronJobInput) {}

type functional struct{ F func() }

func (functional) Run(smallben.CronJobInput) {}

// half has its methods on the pointer and is registered as a value: gob writes
// what it cannot read.
type half struct{ N int }

func (*half) Run(smallben.CronJobInput) {}

type marshalPanic struct{}

func (marshalPanic) MarshalJSON() ([]byte, error) { panic("no JSON today") }

func init() {
	gob.Register(panicky{})
	gob.Register(&selfish{})
	gob.Register(functional{})
	gob.Register(half{})
}

func TestAddJobsRefusesWhatCouldNotBeStoredOrRun(t *testing.T) {
	t.Parallel()
	loop := &selfish{}
	loop.Next = loop
	through := &selfish{}
	through.Any = through
	deep := &selfish{}
	for range 2000 {
		deep = &selfish{Next: deep}
	}
	cycle := map[string]any{}
	cycle["self"] = cycle
	input := func(v any) map[string]any { return map[string]any{"v": v} }
	good := func(change func(*smallben.Job)) smallben.Job {
		j := job(7, "* * * * *", idle())
		change(&j)
		return j
	}
	cases := map[string]struct {
		job smallben.Job
		why string
	}{
		"id 0":                                  {good(func(j *smallben.Job) { j.ID = 0 }), "the id is 0"},
		"nil job":                               {good(func(j *smallben.Job) { j.Job = nil }), "the job is nil"},
		"typed nil job":                         {good(func(j *smallben.Job) { j.Job = (*probe)(nil) }), "nil *testkit.Probe"},
		"unregistered type":                     {good(func(j *smallben.Job) { j.Job = unregistered{} }), "call gob.Register(smallben_test.unregistered{})"},
		"panic in GobEncode":                    {good(func(j *smallben.Job) { j.Job = panicky{1} }), "no encoding today"},
		"contains itself":                       {good(func(j *smallben.Job) { j.Job = loop }), ""},
		"contains itself through an interface":  {good(func(j *smallben.Job) { j.Job = through }), ""},
		"nested too deep":                       {good(func(j *smallben.Job) { j.Job = deep }), ""},
		"function field":                        {good(func(j *smallben.Job) { j.Job = functional{func() {}} }), ""},
		"registered as a value, run by pointer": {good(func(j *smallben.Job) { j.Job = &half{1} }), "cannot be read back"},
		"job over 1 MiB":                        {good(func(j *smallben.Job) { j.Job = valueJob{Text: strings.Repeat("x", 1<<20)} }), "at most 1048576"},
		"input over 1 MiB":                      {good(func(j *smallben.Job) { j.JobInput = input(strings.Repeat("x", 1<<20)) }), "at most 1048576"},
		"NaN input":                             {good(func(j *smallben.Job) { j.JobInput = input(math.NaN()) }), "NaN"},
		"infinite input":                        {good(func(j *smallben.Job) { j.JobInput = input(math.Inf(1)) }), "Inf"},
		"channel input":                         {good(func(j *smallben.Job) { j.JobInput = input(make(chan int)) }), "chan int"},
		"function input":                        {good(func(j *smallben.Job) { j.JobInput = input(func() {}) }), "func()"},
		"cyclic input":                          {good(func(j *smallben.Job) { j.JobInput = cycle }), "cycle"},
		"panic in MarshalJSON":                  {good(func(j *smallben.Job) { j.JobInput = input(marshalPanic{}) }), "no JSON today"},
		"number that no float64 holds":          {good(func(j *smallben.Job) { j.JobInput = input(json.Number("1e999")) }), "cannot be read back"},
		"bad expression":                        {good(func(j *smallben.Job) { j.CronExpression = "61 * * * *" }), `parse "61 * * * *"`},
		"six fields":                            {good(func(j *smallben.Job) { j.CronExpression = "* * * * * *" }), "found 6"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			repository := newMemoryRepository()
			s := started(t, repository, smallben.SchedulerConfig{})
			err := s.AddJobs([]smallben.Job{job(1, "* * * * *", idle()), c.job})
			require.ErrorIs(t, err, smallben.ErrInvalidJob)
			var jobError *smallben.JobError
			require.ErrorAs(t, err, &jobError)
			assert.Equal(t, c.job.ID, jobError.JobID)
			assert.ErrorContains(t, err, fmt.Sprintf("add job %d: ", c.job.ID))
			assert.ErrorContains(t, err, c.why)
			jobs, err := s.ListJobs(nil)
			require.NoError(t, err)
			assert.Empty(t, jobs, "the whole batch or nothing")
		})
	}
}

func TestAddJobsReportsEveryBadJobOfTheBatch(t *testing.T) {
	t.Parallel()
	s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
	err := s.AddJobs([]smallben.Job{
		job(1, "nonsense", idle()),
		job(2, "* * * * *", idle()),
		job(3, "* * * * *", nil),
		job(2, "* * * * *", idle()),
		job(2, "* * * * *", idle()),
	})
	assert.ErrorIs(t, err, smallben.ErrInvalidJob)
	assert.ErrorIs(t, err, smallben.ErrJobExists)
	for _, part := range []string{"job 1: ", "job 3: ", "job 2: "} {
		assert.Equal(t, 1, strings.Count(err.Error(), part), "%q in %q", part, err)
	}
}

func TestAddJobsOfNothingIsNil(t *testing.T) {
	t.Parallel()
	s := create(t, struct{ smallben.Repository }{}, &smallben.Config{Logger: quiet})
	assert.NoError(t, s.AddJobs(nil))
	assert.NoError(t, s.AddJobs([]smallben.Job{}))
	assert.NoError(t, s.UpdateJobs(nil))
}

func TestAddJobsRefusesAnIDThatIsStored(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
		err := s.AddJobs([]smallben.Job{job(3, "@daily", idle()), job(2, "@hourly", idle()), job(1, "@hourly", idle())})
		require.ErrorIs(t, err, smallben.ErrJobExists)
		assert.ErrorContains(t, err, "job 1: ")
		assert.ErrorContains(t, err, "job 2: ")
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, []int64{1, 2}, ids(jobs))
		assert.Equal(t, "@daily", jobs[1].CronExpression)
	})
}

// reentrant calls SmallBen while it is encoded, which deadlocks if a lock is
// held.
type reentrant struct{ Key string }

var reentry sync.Map

func (reentrant) Run(smallben.CronJobInput) {}
func (r reentrant) GobEncode() ([]byte, error) {
	if call, ok := reentry.Load(r.Key); ok {
		call.(func())()
	}
	return []byte(r.Key), nil
}
func (r *reentrant) GobDecode(data []byte) error { r.Key = string(data); return nil }

func (r reentrant) MarshalJSON() ([]byte, error) {
	_, err := r.GobEncode()
	return []byte(`"encoded"`), err
}

func TestEncodingHappensBeforeAnyLockIsTaken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gob.Register(reentrant{})
		repository := newMemoryRepository()
		s := started(t, repository, smallben.SchedulerConfig{})
		next := int64(100)
		reentry.Store(t.Name(), func() {
			next++
			assert.NoError(t, s.AddJobs([]smallben.Job{job(next, "@daily", idle())}))
		})
		defer reentry.Delete(t.Name())
		j := job(1, "@daily", reentrant{t.Name()})
		j.JobInput = map[string]any{"v": reentrant{t.Name()}}
		require.NoError(t, s.AddJobs([]smallben.Job{j}))
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"v": reentrant{t.Name()}}}}))
	})
}

// Rule 5.

func TestFiltersSelectWhatMatchesAllOfThem(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		var jobs []smallben.Job
		for id := int64(1); id <= 30; id++ {
			jobs = append(jobs, job(id, "@daily", idle()))
		}
		require.NoError(t, s.AddJobs(jobs))
		list := func(options smallben.ListJobsOptions) []int64 {
			t.Helper()
			jobs, err := s.ListJobs(&options)
			require.NoError(t, err)
			return ids(jobs)
		}
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{GroupIDs: []int64{3, 4}, SuperGroupIDs: []int64{1}}))
		assert.Equal(t, []int64{4, 13}, list(smallben.ListJobsOptions{Paused: ptr(true)}))
		assert.Equal(t, []int64{4}, list(smallben.ListJobsOptions{Paused: ptr(true), GroupIDs: []int64{4}}))
		assert.Equal(t, []int64{3, 13, 23}, list(smallben.ListJobsOptions{GroupIDs: []int64{3, 3}}))
		assert.Equal(t, []int64{4}, list(smallben.ListJobsOptions{JobIDs: []int64{4, 5, 99}, GroupIDs: []int64{4}}))
		assert.Empty(t, list(smallben.ListJobsOptions{GroupIDs: []int64{}}))
		require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{13, 13, 4}}))
		assert.Empty(t, list(smallben.ListJobsOptions{Paused: ptr(true)}))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1, 2}}))
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{Paused: ptr(true), PauseResumeOptions: smallben.PauseResumeOptions{SuperGroupIDs: []int64{1}}}))
		assert.Equal(t, []int64{2}, list(smallben.ListJobsOptions{Paused: ptr(true)}))
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
		assert.Empty(t, list(smallben.ListJobsOptions{}))
	})
}

func TestNilOptionsAreRefused(t *testing.T) {
	t.Parallel()
	s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
	require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
	assert.EqualError(t, s.DeleteJobs(nil), "delete jobs: nil options")
	assert.EqualError(t, s.PauseJobs(nil), "pause jobs: nil options")
	assert.EqualError(t, s.ResumeJobs(nil), "resume jobs: nil options")
}

func TestAChangeOfJobsThatDoNotExistChangesNothing(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		before, err := s.ListJobs(nil)
		require.NoError(t, err)
		for name, options := range map[string]smallben.PauseResumeOptions{
			"missing ids": {JobIDs: []int64{1, 2, 8, 9, 8}},
			"no match":    {GroupIDs: []int64{77}},
			"empty slice": {JobIDs: []int64{}},
			"no overlap":  {JobIDs: []int64{1}, GroupIDs: []int64{2}},
		} {
			for operation, call := range map[string]func() error{
				"pause":  func() error { return s.PauseJobs(&options) },
				"resume": func() error { return s.ResumeJobs(&options) },
				"delete": func() error { return s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: options}) },
			} {
				err := call()
				require.ErrorIs(t, err, s.ErrorTypeIfMismatchCount(), "%s, %s", operation, name)
				assert.ErrorContains(t, err, operation+" jobs: ")
				if name == "missing ids" {
					assert.ErrorContains(t, err, "8, 9")
				}
			}
		}
		after, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, before, after)
	})
}

func TestPausedCountsAsAFilterBesideJobIDs(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		options := smallben.DeleteOptions{Paused: ptr(true), PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{1, 2, 3}}}
		require.NoError(t, s.DeleteJobs(&options))
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, []int64{1}, ids(jobs))
	})
}

func TestPausingAPausedJobAndResumingARunningOneChangeNothing(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		before, err := repository.ListJobs(nil)
		require.NoError(t, err)
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		after, err := repository.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, before, after, "updated_at and cron_id included")
	})
}

func TestAResumeKeepsThePhaseOfAJobThatRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		r := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@every 10m", r)}))
		for range 12 {
			pass(5 * time.Minute)
			require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		}
		pass(time.Second)
		assert.Equal(t, 6, r.count())
	})
}

func TestOnceARemovalHasReturnedNoRunStarts(t *testing.T) {
	remove := map[string]func(*smallben.SmallBen) error{
		"delete": func(s *smallben.SmallBen) error {
			return s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{1}}})
		},
		"pause": func(s *smallben.SmallBen) error {
			return s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}})
		},
		"stop": func(s *smallben.SmallBen) error { go s.Stop(); synctest.Wait(); return nil },
	}
	for name, remove := range remove {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				repository := newMemoryRepository()
				s := create(t, repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{DelayIfStillRunning: true}})
				require.NoError(t, s.Start())
				release := make(chan struct{})
				var started atomic.Int32
				slow := newProbe(func(*probe, smallben.CronJobInput) { started.Add(1); <-release })
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", slow)}))
				pass(5*time.Minute + time.Second) // one runs, one waits
				require.EqualValues(t, 1, started.Load())
				require.NoError(t, remove(s))
				close(release)
				pass(time.Hour)
				assert.EqualValues(t, 1, started.Load(), "not even the run that was waiting")
				s.Stop()
			})
		})
	}
}

// Rule 6.

func TestUpdateJobsPairsByJobID(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		jobs := []smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle()), job(3, "@daily", idle())}
		for i := range jobs {
			jobs[i].JobInput = map[string]any{"id": float64(jobs[i].ID)}
		}
		require.NoError(t, s.AddJobs(jobs))
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{
			{JobID: 3, CronExpression: ptr("@hourly")},
			{JobID: 1, JobOtherInputs: &map[string]any{"new": "one"}},
			{JobID: 2, CronExpression: ptr("@weekly"), JobOtherInputs: &map[string]any{}},
		}))
		checkInvariant(t, s, repository)
		listed, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, []string{"@daily", "@weekly", "@hourly"}, []string{listed[0].CronExpression, listed[1].CronExpression, listed[2].CronExpression})
		assert.Equal(t, []map[string]any{{"new": "one"}, {}, {"id": 3.0}}, []map[string]any{listed[0].JobInput, listed[1].JobInput, listed[2].JobInput})
	})
}

func TestUpdateJobsRefusesAsAWhole(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
		before, err := repository.ListJobs(nil)
		require.NoError(t, err)
		good := smallben.UpdateOption{JobID: 1, CronExpression: ptr("@hourly")}
		for name, c := range map[string]struct {
			bad    smallben.UpdateOption
			target error
		}{
			"nothing set":    {smallben.UpdateOption{JobID: 2}, smallben.ErrUpdateOptionInvalid},
			"one id twice":   {smallben.UpdateOption{JobID: 1, CronExpression: ptr("@weekly")}, smallben.ErrUpdateOptionInvalid},
			"bad expression": {smallben.UpdateOption{JobID: 2, CronExpression: ptr("@sometimes")}, smallben.ErrInvalidJob},
			"seconds":        {smallben.UpdateOption{JobID: 2, CronExpression: ptr("* * * * * *")}, smallben.ErrInvalidJob},
			"bad input":      {smallben.UpdateOption{JobID: 2, JobOtherInputs: &map[string]any{"f": func() {}}}, smallben.ErrInvalidJob},
			"unknown id":     {smallben.UpdateOption{JobID: 3, CronExpression: ptr("@weekly")}, repository.ErrorTypeIfMismatchCount()},
		} {
			err := s.UpdateJobs([]smallben.UpdateOption{good, c.bad})
			require.ErrorIs(t, err, c.target, name)
			assert.ErrorContains(t, err, fmt.Sprint(c.bad.JobID), name)
			after, err := repository.ListJobs(nil)
			require.NoError(t, err)
			assert.Equal(t, before, after, name)
		}
	})
}

func TestValidAcceptsWhatSomeConfigurationAccepts(t *testing.T) {
	t.Parallel()
	assert.NoError(t, (&smallben.UpdateOption{JobID: 1, CronExpression: ptr("* * * * * *")}).Valid())
	assert.NoError(t, (&smallben.UpdateOption{JobID: 1, JobOtherInputs: &map[string]any{}}).Valid())
	assert.ErrorIs(t, (&smallben.UpdateOption{JobID: 1}).Valid(), smallben.ErrUpdateOptionInvalid)
	assert.ErrorIs(t, (&smallben.UpdateOption{JobID: 1, CronExpression: ptr("")}).Valid(), smallben.ErrInvalidJob)
}

func TestAPausedJobStaysPausedWhenUpdated(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := started(t, repository, smallben.SchedulerConfig{})
		r := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", r)}))
		all := &smallben.PauseResumeOptions{}
		require.NoError(t, s.PauseJobs(all))
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("* * * * *"), JobOtherInputs: &map[string]any{"n": 2}}}))
		checkInvariant(t, s, repository)
		pass(time.Hour)
		assert.Zero(t, r.count())
		require.NoError(t, s.ResumeJobs(all))
		pass(time.Minute)
		runs := r.runs()
		require.Len(t, runs, 1)
		assert.Equal(t, "* * * * *", runs[0].CronExpression)
		assert.Equal(t, map[string]any{"n": 2.0}, runs[0].OtherInputs)
	})
}

func TestRunsSeeAnUpdateFromThenOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		var before, after smallben.CronJobInput
		begun, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
		var runs atomic.Int32
		long := newProbe(func(_ *probe, input smallben.CronJobInput) {
			switch runs.Add(1) {
			case 1:
				close(begun)
				<-release
				before = input
				close(ended)
			case 2:
				after = input
			}
		})
		j := job(1, "* * * * *", long)
		j.JobInput = map[string]any{"n": 1}
		require.NoError(t, s.AddJobs([]smallben.Job{j}))
		<-begun
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("*/2 * * * *"), JobOtherInputs: &map[string]any{"n": 2}}}))
		close(release)
		<-ended
		assert.Equal(t, 1, before.OtherInputs["n"], "a run in progress keeps what it started with")
		pass(2 * time.Minute)
		assert.Equal(t, 2, after.OtherInputs["n"])
		assert.Equal(t, "*/2 * * * *", after.CronExpression)
	})
}

func TestAnUpdateOfTheInputKeepsTheTicks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{WithSeconds: true})
		r := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", r)}))
		for i := range 50 {
			pass(100 * time.Millisecond)
			require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"i": i}}}))
		}
		synctest.Wait()
		runs := r.runs()
		require.Len(t, runs, 5)
		assert.Equal(t, 48, runs[4].OtherInputs["i"])
	})
}

// Rule 7.

func TestListJobsReturnsWhatItFoundWithTheMismatchError(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(5, "@daily", idle()), job(-3, "@daily", idle()), job(math.MaxInt64, "@daily", idle()), job(math.MinInt64, "@daily", idle())}))
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, []int64{math.MinInt64, -3, 5, math.MaxInt64}, ids(jobs))
		jobs, err = s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{7, 5, 5, -3}})
		assert.ErrorIs(t, err, s.ErrorTypeIfMismatchCount())
		assert.ErrorContains(t, err, "7")
		assert.Equal(t, []int64{-3, 5}, ids(jobs))
		jobs, err = s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{7, 5}, Paused: ptr(false)})
		assert.NoError(t, err)
		assert.Equal(t, []int64{5}, ids(jobs))
	})
}

// blocking holds a method of a repository up.
type blocking struct {
	smallben.Repository
	reached, release chan struct{}
}

func (b *blocking) AddJobs(jobs []smallben.JobWithSchedule) error {
	close(b.reached)
	<-b.release
	return b.Repository.AddJobs(jobs)
}

func TestListJobsAndScrapesDoNotWaitForAChange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := &blocking{newMemoryRepository(), make(chan struct{}), make(chan struct{})}
		s := started(t, repository, smallben.SchedulerConfig{})
		added := make(chan error)
		go func() { added <- s.AddJobs([]smallben.Job{job(1, "@daily", idle())}) }()
		<-repository.reached
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Empty(t, jobs)
		assert.Zero(t, gauges(t, s)["smallben_scheduler_jobs_total"])
		close(repository.release)
		require.NoError(t, <-added)
		assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_jobs_total"])
	})
}

// Rules 9 and 10 stand in schedule_test.go; here is what a running job sees.

func TestWithSecondsAcceptsFiveFieldsAndSix(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{WithSeconds: true})
		five, six := newRecorder(), newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(5, "* * * * *", five), job(6, "*/10 * * * * *", six)}))
		pass(time.Minute)
		runs := five.runs()
		require.Len(t, runs, 1)
		assert.Zero(t, runs[0].ScheduledAt.Second())
		assert.Equal(t, 6, six.count())
	})
}

func TestExpressionsAreReadInTheConfiguredLocation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tokyo := time.FixedZone("Tokyo", 9*3600)
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{WithLocation: tokyo})
		local, named := newRecorder(), newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 9 * * *", local), job(2, "TZ=UTC 0 9 * * *", named)}))
		pass(24 * time.Hour)
		runs := local.runs()
		require.Len(t, runs, 1)
		assert.Equal(t, 0, runs[0].ScheduledAt.UTC().Hour())
		assert.Equal(t, 9, runs[0].ScheduledAt.Hour(), "ticks are given in the configured location")
		runs = named.runs()
		require.Len(t, runs, 1)
		assert.Equal(t, 9, runs[0].ScheduledAt.UTC().Hour())
	})
}

func TestEveryKeepsItsPhaseAcrossRestartPauseAndUpdate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		r := newRecorder()
		pass(90 * time.Second)
		created := time.Now()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@every 24h", r)}))
		var ticks []time.Time
		for day := range 5 {
			pass(23 * time.Hour)
			s.Stop()
			pass(30 * time.Minute)
			s = create(t, repository, &smallben.Config{Logger: quiet})
			require.NoError(t, s.Start())
			switch day {
			case 1:
				require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{}))
				require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{}))
			case 2:
				require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{}}}))
			case 3:
				require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("@every 12h")}}))
			}
			pass(30 * time.Minute)
			for _, run := range r.runs() {
				ticks = append(ticks, run.ScheduledAt)
			}
		}
		s.Stop()
		want := []time.Duration{24, 48, 72, 96, 108, 120}
		require.Len(t, ticks, len(want))
		for i := range want {
			assert.True(t, ticks[i].Equal(created.Add(want[i]*time.Hour)), "tick %d: %s", i, ticks[i])
		}
	})
}

// Rule 11.

func TestRunReceivesTheValuesGivenUntilTheJobIsLoaded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		var jobs []*probe
		var inputs []smallben.CronJobInput
		p := newProbe(func(p *probe, input smallben.CronJobInput) {
			jobs, inputs = append(jobs, p), append(inputs, input)
		})
		j := smallben.Job{ID: 1, GroupID: 2, SuperGroupID: 3, CronExpression: "* * * * *", Job: p,
			JobInput: map[string]any{"n": 1<<62 + 1, "list": []int{1, 2}}}
		require.NoError(t, s.AddJobs([]smallben.Job{j}))
		j.JobInput["n"] = "the caller changed it"
		tick := func() {
			pass(time.Minute)
		}
		tick()
		assert.Same(t, p, jobs[0])
		assert.Equal(t, map[string]any{"n": 1<<62 + 1, "list": []int{1, 2}}, inputs[0].OtherInputs)
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{}))
		require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{}))
		tick()
		s.Stop()
		s = create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		tick()
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"n": 1<<62 + 1}}}))
		tick()
		s.Stop()
		require.Len(t, inputs, 4)
		for i, input := range inputs {
			assert.Equal(t, []int64{1, 2, 3}, []int64{input.JobID, input.GroupID, input.SuperGroupID})
			assert.Equal(t, "* * * * *", input.CronExpression)
			var exact struct{ N int64 }
			require.NoError(t, input.Decode(&exact))
			assert.EqualValues(t, 1<<62+1, exact.N)
			switch i {
			case 1, 2:
				assert.NotSame(t, p, jobs[i])
				assert.Equal(t, p.Key, jobs[i].Key)
				assert.Equal(t, map[string]any{"n": float64(1 << 62), "list": []any{1.0, 2.0}}, input.OtherInputs)
			case 3:
				assert.Equal(t, map[string]any{"n": 1<<62 + 1}, input.OtherInputs)
			}
		}
	})
}

func TestAJobThatWritesToItsInputChangesNoOtherRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{WithSeconds: true})
		var mu sync.Mutex
		var seen []int
		writer := newProbe(func(_ *probe, input smallben.CronJobInput) {
			mu.Lock()
			seen = append(seen, len(input.OtherInputs))
			mu.Unlock()
			for i := range 100 {
				input.OtherInputs[fmt.Sprint(i)] = i
				runtime.Gosched()
			}
			time.Sleep(3 * time.Second)
			input.OtherInputs["late"] = true
		})
		j := job(1, "* * * * * *", writer)
		j.JobInput = map[string]any{"n": 1}
		require.NoError(t, s.AddJobs([]smallben.Job{j}))
		pass(10 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		assert.Equal(t, []int{1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, seen)
	})
}

func TestScheduledAtIsTheTick(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{WithSeconds: true, DelayIfStillRunning: true})
		var ticks []time.Time
		slow := newProbe(func(_ *probe, input smallben.CronJobInput) {
			ticks = append(ticks, input.ScheduledAt)
			time.Sleep(90 * time.Second)
		})
		start := time.Now()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", slow)}))
		pass(4*time.Minute + time.Second)
		require.Len(t, ticks, 3)
		for i, minute := range []time.Duration{1, 2, 3} {
			assert.True(t, ticks[i].Equal(start.Add(minute*time.Minute)), "%s", ticks[i])
		}
	})
}

// Rule 15.

func TestUpdatedAtChangesOnPauseResumeAndUpdateOnly(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := create(t, repository, &smallben.Config{Logger: quiet})
		before := time.Now().Truncate(time.Microsecond)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
		last := func() smallben.Job {
			t.Helper()
			jobs, err := s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{1}})
			require.NoError(t, err)
			return jobs[0]
		}
		added := last()
		assert.Equal(t, added.CreatedAt(), added.UpdatedAt())
		assert.False(t, added.CreatedAt().Before(before))
		assert.False(t, added.CreatedAt().After(time.Now()))
		assert.Equal(t, time.UTC, added.CreatedAt().Location())
		assert.Zero(t, added.CreatedAt().Nanosecond()%1000)
		require.NoError(t, s.Start())
		defer s.Stop()
		assert.Equal(t, added.UpdatedAt(), ptr(last()).UpdatedAt(), "Start is no update")
		one := &smallben.PauseResumeOptions{JobIDs: []int64{1}}
		for _, change := range []func() error{
			func() error { return s.PauseJobs(one) },
			func() error { return s.ResumeJobs(one) },
			func() error { return s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("@hourly")}}) },
			func() error {
				return s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{}}})
			},
		} {
			previous := last()
			require.NoError(t, change())
			now := last()
			assert.True(t, now.UpdatedAt().After(previous.UpdatedAt()))
			assert.Equal(t, added.CreatedAt(), now.CreatedAt())
		}
		jobs, err := s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{2}})
		require.NoError(t, err)
		assert.Equal(t, jobs[0].CreatedAt(), jobs[0].UpdatedAt(), "the other job")
	})
}

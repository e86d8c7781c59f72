package smallben_test

import (
	"context"
	"fmt"
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
	"github.com/nbena/smallben/smallbentest"
)

// What the tests of this module share, by the names that it has here.
type (
	probe    = testkit.Probe
	valueJob = testkit.ValueJob

	discardSink = testkit.DiscardSink

	memoryRepository = smallbentest.MemoryRepository
)

var (
	newProbe       = testkit.NewProbe
	idle           = testkit.Idle
	quiet          = testkit.Quiet
	create         = testkit.Create
	started        = testkit.Started
	openSQLite     = testkit.OpenSQLite
	eachRepository = testkit.EachRepository
	checkInvariant = testkit.CheckInvariant
	gauges         = testkit.Gauges
	job            = testkit.Job
	ids            = testkit.IDs
	bubble         = testkit.Bubble
	pass           = testkit.Pass
	errDown        = testkit.ErrDown

	newMemoryRepository = smallbentest.NewMemoryRepository
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

func TestStartRefusesWhatCannotBeMeant(t *testing.T) {
	t.Parallel()
	for want, config := range map[string]smallben.Config{
		"Runs.Missed":       {Runs: smallben.RunsConfig{Missed: smallben.MissedRunOnce}},
		"Runs.RerunLost":    {Runs: smallben.RunsConfig{RerunLost: true}},
		"Runs.RunUnclaimed": {Runs: smallben.RunsConfig{RunUnclaimed: true}},
		"SchedulerConfig.MaxConcurrentRuns is -1": {SchedulerConfig: smallben.SchedulerConfig{MaxConcurrentRuns: -1}},
	} {
		config.Logger = quiet
		s := create(t, newMemoryRepository(), &config)
		assert.ErrorContains(t, s.Start(), want)
		assert.False(t, s.Status().Started)
	}
}

// sizesRepository notes how many cron ids each call stores.
type sizesRepository struct {
	smallben.Repository
	sizes []int
}

func (r *sizesRepository) SetCronId(jobs []smallben.JobWithSchedule) error {
	r.sizes = append(r.sizes, len(jobs))
	return r.Repository.SetCronId(jobs)
}

// One transaction for a million of them once took longer than a call may.
func TestStartStoresVeryManyCronIDsInSeveralCalls(t *testing.T) {
	t.Parallel()
	const many = 30_000
	repository := &sizesRepository{Repository: newMemoryRepository()}
	jobs := make([]smallben.Job, many)
	for i := range jobs {
		jobs[i] = job(int64(i+1), "@yearly", idle())
	}
	require.NoError(t, create(t, repository, &smallben.Config{}).AddJobs(jobs))
	again := create(t, repository, &smallben.Config{})
	require.NoError(t, again.Start())
	assert.Equal(t, []int{25_000, 5_000}, repository.sizes)
}

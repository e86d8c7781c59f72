package smallben_test

import (
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/nbena/smallben/internal/testkit"
	"github.com/nbena/smallben/internal/timetable"
	"github.com/nbena/smallben/smallbentest"
)

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
	gob.Register(sparse{})
}

// sparse is a job whose empty rows take a byte each in the database and 192 in memory.
type sparse struct {
	Rows []struct{ A, B, C, D, E, F, G, H []byte }
}

func (sparse) Run(smallben.CronJobInput) {}

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
		"job over 64 MiB in memory":             {good(func(j *smallben.Job) { j.Job = sparse{make([]struct{ A, B, C, D, E, F, G, H []byte }, 400_000)} }), "cannot be read back: the value takes more than 64 MiB of memory"},
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

// mapJob has a gob whose bytes differ from one encoding to the next.
type mapJob struct{ Texts map[string]string }

func (*mapJob) Run(smallben.CronJobInput) {}

func init() { gob.Register(&mapJob{}) }

func TestUpsertJobsAddsReplacesAndLeavesAlone(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		texts := make(map[string]string)
		for i := range 20 {
			texts[fmt.Sprint(i)] = "text"
		}
		base := func() []smallben.Job {
			var jobs []smallben.Job
			for id := int64(1); id <= 7; id++ {
				j := job(id, "@daily", &mapJob{texts})
				j.JobInput = map[string]any{"id": id}
				jobs = append(jobs, j)
			}
			return jobs
		}
		require.NoError(t, s.UpsertJobs(base()))
		checkInvariant(t, s, repository)
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{6, 7}}))
		before, err := repository.ListJobs(nil)
		require.NoError(t, err)
		require.Len(t, before, 7)

		for range 3 {
			require.NoError(t, s.UpsertJobs(base()))
		}
		after, err := repository.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, before, after, "a row that needs no change is not written")

		jobs := append(base(), job(8, "@daily", idle()))
		jobs[0].CronExpression = "@hourly"
		jobs[1].GroupID = 77
		jobs[2].SuperGroupID = 78
		jobs[3].Job = idle()
		jobs[4].JobInput = map[string]any{"id": "five"}
		jobs[5].CronExpression = "@weekly" // of a paused one
		require.NoError(t, s.UpsertJobs(jobs))
		checkInvariant(t, s, repository)
		after, err = repository.ListJobs(nil)
		require.NoError(t, err)
		require.Len(t, after, 8)
		for i, row := range after[:7] {
			assert.Equal(t, before[i].CreatedAt, row.CreatedAt)
			assert.Equal(t, before[i].Paused, row.Paused)
			assert.Equal(t, i < 6, row.UpdatedAt.After(before[i].UpdatedAt), "job %d", row.ID)
		}
		assert.Equal(t, before[6], after[6])
		listed, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, []string{"@hourly", "@daily", "@daily", "@daily", "@daily", "@weekly", "@daily", "@daily"}, expressions(listed))
		assert.EqualValues(t, 77, listed[1].GroupID)
		assert.EqualValues(t, 78, listed[2].SuperGroupID)
		assert.IsType(t, &probe{}, listed[3].Job)
		assert.Equal(t, map[string]any{"id": "five"}, listed[4].JobInput)
	})
}

func expressions(jobs []smallben.Job) []string {
	out := make([]string, len(jobs))
	for i := range jobs {
		out[i] = jobs[i].CronExpression
	}
	return out
}

func TestUpsertJobsRefusesWhatAddJobsDoesAndChangesNothing(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		require.NoError(t, s.UpsertJobs(nil))
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
		before, err := repository.ListJobs(nil)
		require.NoError(t, err)
		good := job(1, "@hourly", idle())
		assert.ErrorIs(t, s.UpsertJobs([]smallben.Job{good, job(2, "nonsense", idle())}), smallben.ErrInvalidJob)
		err = s.UpsertJobs([]smallben.Job{good, job(2, "@daily", idle()), good})
		assert.ErrorIs(t, err, smallben.ErrJobExists)
		assert.ErrorContains(t, err, "upsert job 1: ")
		after, err := repository.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, before, after)
	})
}

func TestUpsertJobsKeepsThePhaseAndRunsTheValueGiven(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		first := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, first.AddJobs([]smallben.Job{job(1, "@every 10m", &probe{Key: "someone"})}))
		pass(3 * time.Minute)
		s := started(t, repository, smallben.SchedulerConfig{})
		var ran []*probe
		key := testkit.NewKey()
		testkit.SetProbe(key, func(p *probe, _ smallben.CronJobInput) { ran = append(ran, p) })
		given := &probe{Key: key}
		for range 4 {
			require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, "@every 10m", given)}))
			pass(5 * time.Minute)
		}
		require.Len(t, ran, 2, "at minutes 10 and 20")
		assert.Same(t, given, ran[0])
		assert.Same(t, given, ran[1])
	})
}

func TestUpsertJobsSeesAChangeInTheLastDigit(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		inputs := make(chan smallben.CronJobInput, 1)
		j := job(1, "@yearly", newProbe(func(_ *probe, input smallben.CronJobInput) { inputs <- input }))
		for _, n := range []int64{math.MaxInt64, math.MaxInt64 - 1} {
			j.JobInput = map[string]any{"n": n}
			require.NoError(t, s.UpsertJobs([]smallben.Job{j}))
			checkInvariant(t, s, repository)
			require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
			var got struct{ N int64 }
			require.NoError(t, (<-inputs).Decode(&got))
			assert.Equal(t, n, got.N)
		}
	})
}

func TestUpsertJobsReplacesARowThatDoesNotDecode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		repository.Put(smallben.RawJob{ID: 5, CronExpression: "@daily", SerializedJob: "rotten", SerializedJobInput: "{}"})
		s := started(t, repository, smallben.SchedulerConfig{})
		assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_jobs_undecodable"])
		require.NoError(t, s.UpsertJobs([]smallben.Job{job(5, "@daily", idle())}))
		checkInvariant(t, s, repository)
		assert.Zero(t, gauges(t, s)["smallben_scheduler_jobs_undecodable"])
	})
}

func TestUpsertJobsThatFailsLeavesTheValuesThatRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := &failingUpserter{memoryRepository: newMemoryRepository()}
		s := started(t, repository, smallben.SchedulerConfig{})
		var ran []*probe
		key := testkit.NewKey()
		testkit.SetProbe(key, func(p *probe, _ smallben.CronJobInput) { ran = append(ran, p) })
		first, second := &probe{Key: key}, &probe{Key: key}
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", first), job(2, "@yearly", idle())}))
		repository.err = errDown
		require.ErrorIs(t, s.UpsertJobs([]smallben.Job{job(1, "@yearly", second), job(2, "@daily", idle())}), errDown)
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		synctest.Wait()
		require.Len(t, ran, 1)
		assert.Same(t, first, ran[0])
	})
}

// failingUpserter fails with err, before the write or after it.
type failingUpserter struct {
	*memoryRepository
	err   error
	after bool
}

func (r *failingUpserter) UpsertJobs(add, replace []smallben.JobWithSchedule) error {
	if r.after {
		if err := r.memoryRepository.UpsertJobs(add, replace); err != nil {
			return err
		}
	}
	if r.err != nil {
		return r.err
	}
	return r.memoryRepository.UpsertJobs(add, replace)
}

func TestAReplacementOfUnknownOutcomeThatHappenedRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := &failingUpserter{memoryRepository: newMemoryRepository(), err: smallben.ErrOutcomeUnknown, after: true}
		s := started(t, repository, smallben.SchedulerConfig{})
		before, after := newRecorder(), newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", before)}))
		require.ErrorIs(t, s.UpsertJobs([]smallben.Job{job(1, "@yearly", after)}), smallben.ErrOutcomeUnknown)
		pass(time.Second)
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
		synctest.Wait()
		assert.Zero(t, before.count())
		assert.Equal(t, 1, after.count())
	})
}

func TestUpsertJobsDoesNotHideAColumnThatItCannotMend(t *testing.T) {
	t.Parallel()
	for _, column := range []string{"paused", "created_at", "cron_expression"} {
		t.Run(column, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "jobs.db")
			repository := openSQLite(t, path)
			s := started(t, repository, smallben.SchedulerConfig{})
			require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
			s.Stop()
			db, err := gorm.Open(sqlite.Open(path))
			require.NoError(t, err)
			require.NoError(t, db.Exec("UPDATE jobs SET "+column+" = x'ff' WHERE id = 1").Error)
			pool, err := db.DB()
			require.NoError(t, err)
			require.NoError(t, pool.Close())
			require.NoError(t, s.Start())
			assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_jobs_undecodable"])
			require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
			checkInvariant(t, s, repository)
			mended := column == "cron_expression"
			assert.Equal(t, mended, gauges(t, s)["smallben_scheduler_jobs_undecodable"] == 0)
		})
	}
}

func TestUpsertJobsNeedsAnUpserterToReplace(t *testing.T) {
	t.Parallel()
	repository := struct{ smallben.Repository }{newMemoryRepository()}
	s := started(t, repository, smallben.SchedulerConfig{})
	require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, "@daily", idle())}))
	require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
	assert.ErrorContains(t, s.UpsertJobs([]smallben.Job{job(1, "@hourly", idle())}), "cannot replace jobs")
}

// rowsPerStatement is how many rows one statement takes at least, while they are
// small.
const (
	rowsPerInsert = 1000
	rowsPerChange = 10_000
)

// growing are n jobs of two groups.
func growing(n int) []smallben.Job {
	jobs := make([]smallben.Job, n)
	for i := range jobs {
		jobs[i] = smallben.Job{
			ID: int64(i + 1), GroupID: int64(i % 2), Job: idle(),
			CronExpression: fmt.Sprintf("%d %d * * *", i%60, i/60%24),
			JobInput:       map[string]any{"to": "ops@example.com"},
		}
	}
	return jobs
}

func TestStatementsGrowWithTheChunksAndNotWithTheJobs(t *testing.T) {
	t.Parallel()
	const many = rowsPerChange + 1
	eachCounted(t, func(t *testing.T, faults *faultsql.Faults, dialector gorm.Dialector) {
		one, all := countStatements(t, faults, dialector, growing(1)), countStatements(t, faults, dialector, growing(many))
		for operation, count := range all {
			perStatement := rowsPerChange
			if operation == "AddJobs" {
				perStatement = rowsPerInsert
			}
			assert.Equal(t, one[operation]+(many-1)/perStatement, count, operation)
		}
	})
}

func TestOptionsOfAJobTakeNoStatement(t *testing.T) {
	t.Parallel()
	eachCounted(t, func(t *testing.T, faults *faultsql.Faults, dialector gorm.Dialector) {
		plain, configured := growing(3), growing(3)
		for i := range configured {
			configured[i].Job = withOptions(smallben.RunOptions{Overlap: smallben.OverlapSkip, Attempts: 3}, succeeds)
		}
		assert.Equal(t, countStatements(t, faults, dialector, plain), countStatements(t, faults, dialector, configured))
	})
}

// eachCounted runs a test on both databases, whose statements are counted.
func eachCounted(t *testing.T, run func(t *testing.T, faults *faultsql.Faults, dialector gorm.Dialector)) {
	t.Helper()
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		faults := faultsql.SQLite(filepath.Join(t.TempDir(), "jobs.db"))
		t.Cleanup(func() { _ = faults.DB().Close() })
		run(t, faults, &sqlite.Dialector{Conn: faults.DB()})
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		faults, err := faultsql.Postgres(pgtest.DSN(t))
		require.NoError(t, err)
		t.Cleanup(func() { _ = faults.DB().Close() })
		run(t, faults, postgres.New(postgres.Config{Conn: faults.DB()}))
	})
}

// countStatements adds jobs, lets each operation change all of them, deletes
// them, and returns how many statements each operation took. It requires that
// each is one transaction.
func countStatements(t *testing.T, faults *faultsql.Faults, dialector gorm.Dialector, jobs []smallben.Job) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector})
	require.NoError(t, err)
	s := started(t, repository, smallben.SchedulerConfig{})
	count := func(operation string, call func() error) {
		faults.Reset()
		require.NoError(t, call(), operation)
		counts[operation] = faults.Count(faultsql.Exec, faultsql.Query, faultsql.Prepare)
		require.Equal(t, 1, faults.Count(faultsql.Begin), operation)
		require.Equal(t, 1, faults.Count(faultsql.Commit), operation)
	}
	everything := &smallben.PauseResumeOptions{}
	updates := make([]smallben.UpdateOption, len(jobs))
	for i := range updates {
		updates[i] = smallben.UpdateOption{JobID: int64(i + 1), CronExpression: ptr("5 5 * * *"), JobOtherInputs: &map[string]any{"n": i}}
	}

	count("AddJobs", func() error { return s.AddJobs(jobs) })
	s.Stop()
	_, err = faults.DB().Exec("UPDATE jobs SET cron_id = 0")
	require.NoError(t, err)
	count("Start", s.Start)
	count("PauseJobs", func() error { return s.PauseJobs(everything) })
	count("ResumeJobs", func() error { return s.ResumeJobs(everything) })
	count("UpdateJobs", func() error { return s.UpdateJobs(updates) })
	require.Len(t, insides.Entries(s), len(jobs))
	count("DeleteJobs", func() error { return s.DeleteJobs(&smallben.DeleteOptions{}) })
	return counts
}

func TestAnAddOrARemovalSortsAtMostOnePage(t *testing.T) {
	t.Parallel()
	const size = timetable.PageSize
	repository := newMemoryRepository()
	s := started(t, repository, smallben.SchedulerConfig{})
	jobs := growing(9*size + 7)
	// cron sorts and copies what one cron.Cron holds.
	check := func(live, mostPages int) {
		t.Helper()
		counted, held := insides.Pages(s)
		require.Equal(t, counted, held)
		sum := 0
		for _, n := range held {
			require.LessOrEqual(t, n, size)
			require.Positive(t, n)
			sum += n
		}
		require.Equal(t, live, sum)
		require.LessOrEqual(t, len(held), mostPages)
	}
	added := 0
	for _, n := range []int{1, 1, size - 1, size, size + 1, 2*size - 1, 7, 2 * size} {
		require.NoError(t, s.AddJobs(jobs[added:added+n]))
		added += n
		check(added, added/size+2)
	}
	odd := &smallben.PauseResumeOptions{GroupIDs: []int64{1}}
	for range 2 {
		require.NoError(t, s.PauseJobs(odd))
		check((added+1)/2, 2*added/size+2)
		require.NoError(t, s.ResumeJobs(odd))
		check(added, 2*added/size+2)
	}
	for id := range int64(size) {
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{id + 1}}}))
	}
	check(added-size, 2*added/size+2)
	// What has room takes the next.
	counted, _ := insides.Pages(s)
	room := len(counted)*size - (added - size)
	for _, job := range jobs[added : added+min(room, len(jobs)-added)] {
		require.NoError(t, s.AddJobs([]smallben.Job{job}))
	}
	again, _ := insides.Pages(s)
	require.Len(t, again, len(counted))
	require.GreaterOrEqual(t, slices.Max(again), slices.Max(counted))
	require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
	check(0, 0)
}

func TestAChangeThatIsRefusedKeepsNoCronIDs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		memory := newMemoryRepository()
		repository := struct{ smallben.Repository }{memory} // it cannot replace
		s := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
		setCronIDs(t, repository, map[int64]int64{1: math.MaxInt32 - 10})
		s.Stop()
		require.NoError(t, s.Start())
		jobs := []smallben.Job{job(1, "@weekly", idle())}
		for id := range int64(1000) {
			jobs = append(jobs, job(id+2, "@daily", idle()))
		}
		for range 20 {
			require.Error(t, s.UpsertJobs(jobs))
		}
		require.NoError(t, s.AddJobs(jobs[1:]))
		checkInvariant(t, s, repository)
	})
}

func TestCronIDsAreUniqueThoughStoredOnesLeaveLittleRoom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle()), job(3, "@daily", idle())}))
		setCronIDs(t, repository, map[int64]int64{1: 1, 2: math.MaxInt32, 3: math.MaxInt32 / 2})
		require.NoError(t, s.Start())
		for id := range int64(300) {
			require.NoError(t, s.AddJobs([]smallben.Job{job(id+10, "@daily", idle())}))
			if id%3 == 0 {
				require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{id + 10}}}))
			}
		}
		checkInvariant(t, s, repository)
	})
}

// hooked is a job whose decoding may call something, once.
type hooked struct{ Text string }

var decodeHook atomic.Pointer[func()]

func (hooked) Run(smallben.CronJobInput) {}

func (h hooked) GobEncode() ([]byte, error) { return []byte(h.Text), nil }

func (h *hooked) GobDecode(b []byte) error {
	h.Text = string(b)
	if hook := decodeHook.Swap(nil); hook != nil {
		(*hook)()
	}
	return nil
}

func init() { gob.Register(hooked{}) }

func TestNoTransactionWaitsForADecoder(t *testing.T) {
	// Not parallel: it sets decodeHook.
	changes := map[string]func(s *smallben.SmallBen) error{
		"resume": func(s *smallben.SmallBen) error {
			return s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}})
		},
		"update": func(s *smallben.SmallBen) error {
			return s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("@weekly")}})
		},
		"upsert": func(s *smallben.SmallBen) error {
			return s.UpsertJobs([]smallben.Job{{ID: 1, CronExpression: "@daily", Job: hooked{"other"}}})
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				both := processes(t, recorder, 2)
				require.NoError(t, both[0].AddJobs([]smallben.Job{{ID: 1, CronExpression: "@daily", Job: hooked{"text"}, StartPaused: true}, job(2, "@daily", idle())}))
				pass(5 * time.Second)
				changed := false
				var hook func()
				hook = func() {
					changed = true
					// In a transaction of the other's change this would wait for itself.
					assert.NoError(t, both[1].PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
					decodeHook.Store(&hook) // for the next one: the first may come before the transaction
				}
				decodeHook.Store(&hook)
				defer decodeHook.Store(nil)
				require.NoError(t, change(both[0]))
				decodeHook.Store(nil)
				assert.True(t, changed)
				pass(5 * time.Second)
			})
		})
	}
}

// between calls a function after each read, the number of which it is given.
type between struct {
	*memoryRepository
	reads int
	then  func(read int)
}

func (b *between) GetAllJobsToExecute() ([]smallben.JobWithSchedule, error) {
	jobs, err := b.memoryRepository.GetAllJobsToExecute()
	b.reads++
	b.then(b.reads)
	return jobs, err
}

func (b *between) ListJobs(options smallben.ToListOptions) ([]smallben.RawJob, error) {
	rows, err := b.memoryRepository.ListJobs(options)
	b.reads++
	b.then(b.reads)
	return rows, err
}

func TestEachRowIsKnownWhateverOthersDoWhileStartLoads(t *testing.T) {
	everything := &smallben.PauseResumeOptions{}
	for name, change := range map[string]func(old *smallben.SmallBen) error{
		"resumed": func(old *smallben.SmallBen) error { return old.ResumeJobs(everything) },
		"paused":  func(old *smallben.SmallBen) error { return old.PauseJobs(everything) },
		"deleted": func(old *smallben.SmallBen) error { return old.DeleteJobs(&smallben.DeleteOptions{}) },
	} {
		for after := 1; after <= 2; after++ {
			t.Run(fmt.Sprint(name, " after read ", after), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					memory := newMemoryRepository()
					old := started(t, memory, smallben.SchedulerConfig{})
					require.NoError(t, old.AddJobs([]smallben.Job{startPaused(job(1, "* * * * *", idle()), name == "resumed")}))
					s := create(t, &between{memoryRepository: memory, then: func(read int) {
						if read == after {
							require.NoError(t, change(old))
						}
					}}, &smallben.Config{Logger: quiet})
					require.NoError(t, s.Start())
					old.Stop()
					values := gauges(t, s)
					switch name {
					case "resumed":
						assert.EqualValues(t, 1, values["smallben_scheduler_jobs_not_paused"])
					case "paused":
						assert.EqualValues(t, 1, values["smallben_scheduler_jobs_paused"])
					}
				})
			})
		}
	}
}

func TestAnUpsertKeepsAJobWhoseTimeIsPast(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := smallbentest.NewMemoryRepository()
		s := started(t, repository, smallben.SchedulerConfig{})
		at := func(in time.Duration) string {
			return "@at " + time.Now().Add(in).UTC().Format(time.RFC3339)
		}
		soon, runs := at(time.Minute), newRecorder()
		require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, soon, runs)}))
		pass(2 * time.Minute)
		require.Equal(t, 1, runs.count())

		// As at each start.
		require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, soon, runs), job(2, "@daily", idle())}))
		changed := job(1, soon, runs)
		changed.GroupID = 7
		require.NoError(t, s.UpsertJobs([]smallben.Job{changed}))

		before := list(t, repository)
		err := s.UpsertJobs([]smallben.Job{job(1, at(-time.Second), runs), job(2, "@hourly", idle()), job(3, soon, idle())})
		assert.Equal(t, []int64{1, 3}, jobErrors(t, errors.Unwrap(err), smallben.ErrInvalidJob))
		require.ErrorContains(t, err, "the time is past")
		require.ErrorIs(t, s.AddJobs([]smallben.Job{job(5, soon, idle())}), smallben.ErrInvalidJob)
		assert.Equal(t, before, list(t, repository))
		pass(time.Hour)
		assert.Zero(t, runs.count())
	})
}

func TestTriggerJobsReportTellsWhatBecameOfEachJob(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{MaxConcurrentRuns: 2, SkipIfStillRunning: true})
		var c crowd
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", c.probe(time.Minute)), job(2, "@yearly", c.probe(time.Minute)), job(3, "@yearly", c.probe(time.Minute))}))
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		now := time.Now().Round(0)
		report, err := s.TriggerJobsReport(&smallben.PauseResumeOptions{})
		require.NoError(t, err)
		for i := range report {
			assert.True(t, now.Equal(report[i].Tick))
			report[i].Tick = time.Time{}
		}
		assert.Equal(t, []smallben.Triggered{{JobID: 1}, {JobID: 2, Skipped: "the job is still running"}, {JobID: 3, Waiting: true}}, report)
		pass(3 * time.Minute)
		assert.Len(t, c.order(), 3)
		_, err = s.TriggerJobsReport(nil)
		assert.Error(t, err)
	})
}

func TestTriggerJobsReportNamesWhatRunsElsewhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		both := processes(t, recorder, 2, skipBusy)
		release := make(chan struct{})
		require.NoError(t, both[0].AddJobs([]smallben.Job{job(1, "@yearly", newProbe(func(*probe, smallben.CronJobInput) { <-release })), job(2, "@yearly", idle())}))
		require.NoError(t, both[0].TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		report, err := both[1].TriggerJobsReport(&smallben.PauseResumeOptions{})
		require.NoError(t, err)
		require.Len(t, report, 2)
		assert.Equal(t, "the job is still running", report[0].Skipped)
		assert.Empty(t, report[1].Skipped)
		close(release)
	})
}

func startPaused(j smallben.Job, paused bool) smallben.Job {
	j.StartPaused = paused
	return j
}

func TestAJobMayStartPaused(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		one := startPaused(job(1, "@yearly", idle()), true)
		require.NoError(t, s.AddJobs([]smallben.Job{one, job(2, "@yearly", idle())}))
		checkInvariant(t, s, repository)
		listed, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.True(t, listed[0].Paused())
		assert.Equal(t, listed[0].CreatedAt(), listed[0].UpdatedAt())
		assert.False(t, listed[1].Paused())
		require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		require.NoError(t, s.UpsertJobs([]smallben.Job{one}))
		checkInvariant(t, s, repository)
		listed, err = s.ListJobs(nil)
		require.NoError(t, err)
		assert.False(t, listed[0].Paused(), "it says nothing of a job that is stored")
		require.NoError(t, s.UpsertJobs([]smallben.Job{startPaused(job(3, "@yearly", idle()), true)}))
		checkInvariant(t, s, repository)
		s.Stop()
		require.NoError(t, s.Start())
		checkInvariant(t, s, repository)
		s.Stop()
	})
}

func TestAJobThatStartsPausedFiresInNoProcessUntilItIsResumed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		both := processes(t, recorder, 2, runOnce)
		runs := newRecorder()
		require.NoError(t, both[0].AddJobs([]smallben.Job{startPaused(job(1, "* * * * * *", runs), true)}))
		pass(5 * time.Minute)
		assert.Empty(t, recorder.runs(), "nothing runs, and nothing is missed")
		require.NoError(t, both[1].ResumeJobs(&smallben.PauseResumeOptions{}))
		pass(10*time.Second + time.Second/2)
		assert.Len(t, recorder.runs(), 10)
	})
}

func TestAllIsSaidByName(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := started(t, repository, smallben.SchedulerConfig{})
		for _, all := range []func() error{s.PauseAll, s.ResumeAll, s.DeleteAll} {
			assert.NoError(t, all(), "there is no job")
		}
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", idle()), job(2, "@yearly", idle())}))
		paused := func() (n int) {
			checkInvariant(t, s, repository)
			jobs, err := s.ListJobs(nil)
			require.NoError(t, err)
			for i := range jobs {
				if jobs[i].Paused() {
					n++
				}
			}
			return n
		}
		require.NoError(t, s.PauseAll())
		assert.Equal(t, 2, paused())
		require.NoError(t, s.ResumeAll())
		assert.Zero(t, paused())
		require.NoError(t, s.DeleteAll())
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Empty(t, jobs)
		checkInvariant(t, s, repository)
	})
}

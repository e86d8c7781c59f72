package smallben_test

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/timetable"
)

// Rule 12.

func TestAJobCannotTakeTheSchedulerDown(t *testing.T) {
	configs := map[string]smallben.SchedulerConfig{
		"allow": {}, "skip": {SkipIfStillRunning: true}, "delay": {DelayIfStillRunning: true},
	}
	failures := map[string]struct {
		run func()
		log string
	}{
		"panic":       {func() { panic("boom") }, "boom"},
		"nil panic":   {func() { panic(nil) }, "nil"},
		"nasty panic": {func() { panic(nastyError{}) }, "panic"},
		"Goexit":      {func() { runtime.Goexit() }, "Goexit"},
	}
	for configName, config := range configs {
		for name, failure := range failures {
			t.Run(configName+" "+name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					var lines logLines
					s := create(t, newMemoryRepository(), &smallben.Config{SchedulerConfig: config, Logger: lines.logger()})
					require.NoError(t, s.Start())
					healthy := newRecorder()
					bad := newProbe(func(*probe, smallben.CronJobInput) { failure.run() })
					require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", bad), job(2, "* * * * *", healthy)}))
					pass(3*time.Minute + time.Second)
					assert.Equal(t, 3, healthy.count())
					logged := lines.with("run failed")
					require.Len(t, logged, 3, "each tick ran")
					assert.Contains(t, logged[0], failure.log)
					assert.Contains(t, logged[0], `"job"=1`)
					assert.Contains(t, logged[0], "scheduler_test.go", "the stack")
					values := gauges(t, s)
					assert.EqualValues(t, 3, values["smallben_runs_total,panic"])
					assert.EqualValues(t, 3, values["smallben_runs_total,ok"])
					assert.Zero(t, values["smallben_runs_in_progress"])
					s.Stop()
				})
			})
		}
	}
}

type nastyError struct{}

func (nastyError) Error() string { panic("an error that cannot be printed") }

func TestAJobThatBlocksForEverDelaysNobodyElse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		release := make(chan struct{})
		stuck := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		healthy := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", stuck), job(2, "* * * * *", healthy)}))
		pass(10*time.Minute + time.Second)
		assert.Equal(t, 10, healthy.count())
		assert.EqualValues(t, 10, gauges(t, s)["smallben_runs_in_progress"])
		close(release)
		s.Stop()
	})
}

func TestALogSinkThatMisbehavesStopsNothing(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	for name, sink := range map[string]func(s **smallben.SmallBen){
		"panics": func(**smallben.SmallBen) { panic("sink") },
		"blocks": func(**smallben.SmallBen) { <-release },
		"calls back": func(s **smallben.SmallBen) {
			_, _ = (*s).ListJobs(nil)
			_ = (*s).ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{99}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s *smallben.SmallBen
			var failing atomic.Bool
			logger := funcr.New(func(_, args string) {
				if failing.Load() && strings.Contains(args, "run failed") || name != "blocks" && strings.Contains(args, "added") {
					sink(&s)
				}
			}, funcr.Options{})
			s = create(t, newMemoryRepository(), &smallben.Config{Logger: logger,
				SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true, SkipIfStillRunning: true}})
			require.NoError(t, s.Start())
			runs := make(chan struct{}, 10)
			bad := newProbe(func(*probe, smallben.CronJobInput) {
				select {
				case runs <- struct{}{}:
				default:
				}
				panic("boom")
			})
			failing.Store(true)
			require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", bad)}))
			<-runs
			<-runs
			s.Stop()
		})
	}
}

// Rule 13.

func TestOverlapSettingsBelongToTheJobID(t *testing.T) {
	changes := map[string]func(t *testing.T, s *smallben.SmallBen, j smallben.Job){
		"update": func(t *testing.T, s *smallben.SmallBen, j smallben.Job) {
			require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("*/1 * * * *")}}))
		},
		"pause and resume": func(t *testing.T, s *smallben.SmallBen, j smallben.Job) {
			require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{}))
			require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{}))
		},
		"delete and add": func(t *testing.T, s *smallben.SmallBen, j smallben.Job) {
			require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
			require.NoError(t, s.AddJobs([]smallben.Job{j}))
		},
	}
	for name, change := range changes {
		for setting, config := range map[string]smallben.SchedulerConfig{
			"skip":  {SkipIfStillRunning: true},
			"delay": {DelayIfStillRunning: true},
			"both":  {SkipIfStillRunning: true, DelayIfStillRunning: true},
		} {
			t.Run(setting+", "+name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := started(t, newMemoryRepository(), config)
					var running, most, runs atomic.Int32
					slow := newProbe(func(*probe, smallben.CronJobInput) {
						runs.Add(1)
						most.Store(max(most.Load(), running.Add(1)))
						time.Sleep(210 * time.Second)
						running.Add(-1)
					})
					j := job(1, "* * * * *", slow)
					require.NoError(t, s.AddJobs([]smallben.Job{j}))
					pass(61 * time.Second)
					change(t, s, j)
					pass(9*time.Minute - time.Second) // ticks at minutes 1 to 10
					synctest.Wait()
					assert.EqualValues(t, 1, most.Load())
					skipped := gauges(t, s)["smallben_runs_skipped_total,overlap"]
					if config.DelayIfStillRunning {
						assert.EqualValues(t, 3, runs.Load(), "at 1:00, and behind each other at 4:30 and 8:00")
						assert.EqualValues(t, 6, skipped)
					} else {
						assert.EqualValues(t, 3, runs.Load(), "at 1:00, 5:00 and 9:00")
						assert.EqualValues(t, 7, skipped)
					}
				})
			})
		}
	}
}

// Rule 5.

func TestATickThatIsUnderWayStartsUnlessTheTicksOfItsJobHaveChanged(t *testing.T) {
	all := &smallben.PauseResumeOptions{}
	for name, c := range map[string]struct {
		change func(s *smallben.SmallBen, j smallben.Job) error
		runs   int
	}{
		"nothing": {func(*smallben.SmallBen, smallben.Job) error { return nil }, 1},
		"update of the input": {func(s *smallben.SmallBen, _ smallben.Job) error {
			return s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"n": 2}}})
		}, 1},
		"update of the expression": {func(s *smallben.SmallBen, _ smallben.Job) error {
			return s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("0 0 1 2 *")}})
		}, 0},
		"pause": {func(s *smallben.SmallBen, _ smallben.Job) error { return s.PauseJobs(all) }, 0},
		"pause and resume": {func(s *smallben.SmallBen, _ smallben.Job) error {
			return errors.Join(s.PauseJobs(all), s.ResumeJobs(all))
		}, 0},
		"delete": {func(s *smallben.SmallBen, _ smallben.Job) error { return s.DeleteJobs(&smallben.DeleteOptions{}) }, 0},
		"delete and add": {func(s *smallben.SmallBen, j smallben.Job) error {
			return errors.Join(s.DeleteJobs(&smallben.DeleteOptions{}), s.AddJobs([]smallben.Job{j}))
		}, 0},
		"stop": {func(s *smallben.SmallBen, _ smallben.Job) error { s.Stop(); return nil }, 0},
		"stop and start": {func(s *smallben.SmallBen, _ smallben.Job) error {
			s.Stop()
			return s.Start()
		}, 0},
	} {
		for _, recorded := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", recorded ", recorded), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
					if recorded {
						s = processes(t, newMemoryRecorder(), 1)[0]
					}
					r := newRecorder()
					j := job(1, "0 0 1 1 *", r)
					require.NoError(t, s.AddJobs([]smallben.Job{j}))
					fire := smallben.Firing(s, 1)
					pass(10 * time.Second)
					require.NoError(t, c.change(s, j))
					pass(time.Second)
					fire(time.Now().Round(0))
					pass(10 * time.Second)
					assert.Equal(t, c.runs, r.count())
					s.Stop()
				})
			})
		}
	}
}

// Rule 14.

func TestStartKeepsStoredCronIDsThatArePositiveAndUnique(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := create(t, repository, &smallben.Config{Logger: quiet})
		var jobs []smallben.Job
		for id := int64(1); id <= 8; id++ {
			jobs = append(jobs, job(id, "@daily", idle()))
		}
		require.NoError(t, s.AddJobs(jobs))
		stored := map[int64]int64{1: 5, 2: 5, 3: 0, 4: -4, 5: math.MaxInt32, 6: math.MaxInt32, 7: 1, 8: 3}
		setCronIDs(t, repository, stored)
		require.NoError(t, s.Start())
		defer s.Stop()
		checkInvariant(t, s, repository)
		rows, err := repository.ListJobs(nil)
		require.NoError(t, err)
		for _, row := range rows {
			if id := row.ID; id == 1 || id == 5 || id == 7 || id == 8 {
				assert.Equal(t, stored[id], row.CronID, "job %d", id)
			}
			assert.Equal(t, row.CreatedAt, row.UpdatedAt, "a cron id is no update")
		}
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		rows, err = repository.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{1}})
		require.NoError(t, err)
		assert.Equal(t, smallben.DefaultCronID, rows[0].CronID)
	})
}

// setCronIDs writes cron ids as another process would have.
func setCronIDs(t *testing.T, repository smallben.Repository, cronIDs map[int64]int64) {
	t.Helper()
	rows, err := repository.ListJobs(nil)
	require.NoError(t, err)
	var jobs []smallben.JobWithSchedule
	for _, row := range rows {
		if cronID, ok := cronIDs[row.ID]; ok {
			row.CronID = cronID
			j, err := row.ToJobWithSchedule()
			require.NoError(t, err)
			jobs = append(jobs, j)
		}
	}
	require.NoError(t, repository.SetCronId(jobs))
}

func TestMemoryNeverActsOnACronIDFromTheDatabase(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := started(t, repository, smallben.SchedulerConfig{})
		one, two := newRecorder(), newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", one), job(2, "* * * * *", two)}))
		rows, err := repository.ListJobs(nil)
		require.NoError(t, err)
		setCronIDs(t, repository, map[int64]int64{1: rows[1].CronID, 2: rows[0].CronID})
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{1}}}))
		setCronIDs(t, repository, map[int64]int64{2: rows[1].CronID})
		pass(time.Minute)
		assert.Zero(t, one.count())
		assert.Equal(t, 1, two.count())
	})
}

// Rule 20.

func TestAStepBackOfTheClockRearmsTheSchedules(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logLines
		var step atomic.Int64
		repository := newMemoryRepository()
		s := create(t, repository, &smallben.Config{Logger: lines.logger()})
		smallben.SetClock(s, func() time.Time { return time.Now().Add(time.Duration(step.Load())) })
		require.NoError(t, s.Start())
		var many []smallben.Job
		r := newRecorder()
		for id := int64(1); id <= 3*timetable.PageSize/2; id++ {
			many = append(many, job(id, "@every 10m", r))
		}
		require.NoError(t, s.AddJobs(many))
		step.Add(int64(-59 * time.Second))
		pass(5 * time.Minute)
		assert.Empty(t, lines.with("clock stepped back"), "a smaller step repeats nothing")
		step.Add(int64(-time.Hour))
		pass(31 * time.Second)
		assert.Len(t, lines.with("clock stepped back"), 1)
		checkInvariant(t, s, repository)
		pass(5 * time.Minute)
		assert.Equal(t, len(many), r.count(), "each is armed once")
		step.Add(int64(24 * time.Hour))
		pass(10 * time.Minute)
		assert.Equal(t, len(many), r.count(), "a step forward only wakes the pages")
		s.Stop()
	})
}

// The pages.

func TestPagesHoldNoMoreThanTheirSize(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := started(t, repository, smallben.SchedulerConfig{})
		const n = 3*timetable.PageSize + 10
		var all []smallben.Job
		for id := int64(1); id <= n; id++ {
			all = append(all, job(id, "* * * * *", idle()))
		}
		pages := func() int { counted, _ := insides.Pages(s); return len(counted) }
		require.NoError(t, s.AddJobs(all[:1]))
		assert.Equal(t, 1, pages(), "a service with a few jobs has one page")
		require.NoError(t, s.AddJobs(all[1:]))
		assert.Equal(t, 4, pages())
		checkInvariant(t, s, repository)
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{GroupIDs: []int64{1, 2, 3}}}))
		checkInvariant(t, s, repository)
		for id := int64(1); id <= n; id++ {
			if id%10 >= 1 && id%10 <= 3 {
				require.NoError(t, s.AddJobs([]smallben.Job{job(id, "* * * * *", idle())}))
			}
		}
		assert.Equal(t, 4, pages(), "what was removed leaves room")
		checkInvariant(t, s, repository)
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
		assert.Zero(t, pages())
	})
}

func TestRowsHeldBackByARereadAreLogged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logLines
		repository := newFailing(newMemoryRepository())
		s := create(t, repository, &smallben.Config{Logger: lines.logger()})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(7, "@yearly", idle())}))
		repository.Repository.(*memoryRepository).Put(smallben.RawJob{ID: 7, CronExpression: "@yearly", SerializedJob: "rotten", SerializedJobInput: "{}"})
		repository.fail("DeleteJobsByIds", smallben.ErrOutcomeUnknown)
		require.ErrorIs(t, s.DeleteJobs(&smallben.DeleteOptions{}), smallben.ErrOutcomeUnknown)
		pass(time.Second)
		checkInvariant(t, s, repository)
		held := lines.with("row held back")
		require.Len(t, held, 1)
		assert.Contains(t, held[0], `"job"=7`)
	})
}

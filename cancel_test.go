package smallben_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
)

func TestCanceledRunsAreToldWhereverTheyRun(t *testing.T) {
	for _, recorded := range []bool{false, true} {
		t.Run(map[bool]string{false: "without a record", true: "with a record"}[recorded], func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var repository smallben.Repository = newMemoryRepository()
				var all []*smallben.SmallBen
				if recorded {
					repository = newMemoryRecorder()
					all = processes(t, repository, 3)
				} else {
					s := create(t, repository, &smallben.Config{Logger: quiet})
					require.NoError(t, s.Start())
					all = append(all, s)
				}
				causes := make(chan error, 10)
				long := newContextProbe(func(ctx context.Context, in smallben.CronJobInput) error {
					<-ctx.Done()
					causes <- context.Cause(ctx)
					return ctx.Err()
				})
				var jobs []smallben.Job
				for id := range int64(6) {
					jobs = append(jobs, smallben.Job{ID: id + 1, GroupID: id % 2, CronExpression: "* * * * *", Job: long})
				}
				require.NoError(t, all[0].AddJobs(jobs))
				pass(time.Minute + time.Second)
				require.NoError(t, all[0].CancelRuns(&smallben.CancelRunsOptions{GroupIDs: []int64{1}, JobIDs: []int64{2, 3, 4}}))
				pass(2 * time.Second)
				require.Len(t, causes, 2)
				assert.ErrorIs(t, <-causes, smallben.ErrRunCanceled)
				assert.ErrorIs(t, <-causes, smallben.ErrRunCanceled)
				require.NoError(t, all[0].CancelRuns(&smallben.CancelRunsOptions{}))
				pass(2 * time.Second)
				assert.Len(t, causes, 4)
			})
		})
	}
}

func TestARunThatGoesOnIsAbandonedAndItsJobRunsAgain(t *testing.T) {
	for _, recorded := range []bool{false, true} {
		t.Run(map[bool]string{false: "without a record", true: "with a record"}[recorded], func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				config := &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{SkipIfStillRunning: true}}
				var repository smallben.Repository = newMemoryRepository()
				if recorded {
					repository, config.Runs.Record = newMemoryRecorder(), true
				}
				s := create(t, repository, config)
				require.NoError(t, s.Start())
				release := make(chan struct{})
				starts := 0
				hangs := newProbe(func(*probe, smallben.CronJobInput) {
					if starts++; starts == 1 {
						<-release
					}
				})
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", hangs)}))
				pass(3*time.Minute + time.Second)
				require.Equal(t, 1, starts)
				require.NoError(t, s.CancelRuns(&smallben.CancelRunsOptions{JobIDs: []int64{1}, AbandonAfter: 10 * time.Second}))
				pass(9 * time.Second)
				jobs, err := s.ListJobs(nil)
				require.NoError(t, err)
				assert.True(t, jobs[0].Running())
				pass(3 * time.Second)
				jobs, err = s.ListJobs(nil)
				require.NoError(t, err)
				assert.Equal(t, smallben.OutcomeAbandoned, last(jobs[0]).Outcome)
				pass(time.Minute)
				assert.Equal(t, 2, starts)
				jobs, err = s.ListJobs(nil)
				require.NoError(t, err)
				assert.Equal(t, smallben.OutcomeOK, last(jobs[0]).Outcome)
				// Nothing waits for it, and its end changes nothing.
				s.Stop()
				close(release)
				pass(time.Second)
				values := gauges(t, s)
				assert.EqualValues(t, 1, values["smallben_runs_total,abandoned"])
				assert.EqualValues(t, 0, values["smallben_runs_in_progress"])
			})
		})
	}
}

func last(job smallben.Job) smallben.Run { return job.LastRun() }

func TestCancelRunsRefusesWhatItCannotDo(t *testing.T) {
	t.Parallel()
	s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
	require.ErrorContains(t, s.CancelRuns(nil), "nil options")
	require.ErrorContains(t, s.CancelRuns(&smallben.CancelRunsOptions{AbandonAfter: -time.Second}), "AbandonAfter is -1s")
	require.NoError(t, s.CancelRuns(&smallben.CancelRunsOptions{}))
}

func TestATriggerThatWaitsForARunElsewhereSaysSo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		delay := func(c *smallben.Config) { c.SchedulerConfig.DelayIfStillRunning = true }
		all := processes(t, newMemoryRecorder(), 2, delay)
		slow := newProbe(func(*probe, smallben.CronJobInput) { time.Sleep(10 * time.Second) })
		require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "@yearly", slow)}))
		pass(3 * time.Second)
		for i, want := range []smallben.Triggered{{JobID: 1}, {JobID: 1, Waiting: true}, {JobID: 1, Skipped: "the job is still running"}} {
			report, err := all[i%2].TriggerJobsReport(&smallben.PauseResumeOptions{})
			require.NoError(t, err)
			require.Len(t, report, 1)
			report[0].Tick = time.Time{}
			assert.Equal(t, want, report[0])
			pass(time.Second)
		}
		pass(20 * time.Second)
		runs, err := all[0].ListRuns(&smallben.ListRunsOptions{Outcomes: []smallben.Outcome{smallben.OutcomeOK}})
		require.NoError(t, err)
		assert.Len(t, runs, 2)
	})
}

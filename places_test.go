package smallben_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/testkit"
)

// crowd is a job that takes a minute, and notes how many run at a time and in which
// order they start.
type crowd struct {
	running, most atomic.Int32
	mu            sync.Mutex
	started       []string
}

func (c *crowd) probe(takes time.Duration) smallben.CronJob {
	return newProbe(func(_ *probe, input smallben.CronJobInput) {
		c.mu.Lock()
		c.started = append(c.started, fmt.Sprintf("%s job %d", input.ScheduledAt.UTC().Format("04:05"), input.JobID))
		c.mu.Unlock()
		c.most.Store(max(c.most.Load(), c.running.Add(1)))
		time.Sleep(takes)
		c.running.Add(-1)
	})
}

func (c *crowd) order() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.started)
}

func TestRunsBeyondTheLimitWaitInTheOrderOfTheirTicks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{MaxConcurrentRuns: 2})
		var c crowd
		require.NoError(t, s.AddJobs([]smallben.Job{
			job(1, "1 * * * *", c.probe(10*time.Minute)), job(2, "1 * * * *", c.probe(10*time.Minute)),
			job(3, "4 * * * *", c.probe(time.Minute)), job(4, "2 * * * *", c.probe(time.Minute)), job(5, "3 * * * *", c.probe(time.Minute)),
		}))
		pass(5 * time.Minute)
		assert.EqualValues(t, 3, gauges(t, s)["smallben_runs_waiting"])
		assert.EqualValues(t, 2, gauges(t, s)["smallben_runs_in_progress"])
		pass(20 * time.Minute)
		assert.EqualValues(t, 2, c.most.Load())
		order := c.order()
		slices.Sort(order[:2])
		slices.Sort(order[2:4]) // two places became free at once
		assert.Equal(t, []string{"01:00 job 1", "01:00 job 2", "02:00 job 4", "03:00 job 5", "04:00 job 3"}, order)
		assert.Zero(t, gauges(t, s)["smallben_runs_waiting"])
	})
}

func TestATickThatWaitsForAPlaceDoesNotStartOnceItsJobIsGone(t *testing.T) {
	changes := map[string]func(t *testing.T, s *smallben.SmallBen){
		"paused": func(t *testing.T, s *smallben.SmallBen) {
			require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		},
		"deleted": func(t *testing.T, s *smallben.SmallBen) {
			require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{2}}}))
		},
		"stopped": func(t *testing.T, s *smallben.SmallBen) { s.Stop() },
	}
	for name, change := range changes {
		for _, triggered := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " triggered ", triggered), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := started(t, newMemoryRepository(), smallben.SchedulerConfig{MaxConcurrentRuns: 1})
					var c crowd
					waits := newRecorder()
					require.NoError(t, s.AddJobs([]smallben.Job{job(1, "1 0 * * *", c.probe(10*time.Minute)),
						startPaused(job(2, "2 0 * * *", waits), triggered)}))
					pass(3 * time.Minute)
					if triggered {
						report, err := s.TriggerJobsReport(&smallben.PauseResumeOptions{JobIDs: []int64{2}})
						require.NoError(t, err)
						require.True(t, report[0].Waiting)
					}
					require.EqualValues(t, 1, gauges(t, s)["smallben_runs_waiting"])
					change(t, s)
					pass(20 * time.Minute)
					assert.Zero(t, waits.count())
					assert.Zero(t, gauges(t, s)["smallben_runs_waiting"])
				})
			})
		}
	}
}

func TestATickThatWaitsForAPlaceSeesAnUpdate(t *testing.T) {
	for _, option := range []smallben.UpdateOption{
		{JobOtherInputs: &map[string]any{"n": "new"}},
		{JobOtherInputs: &map[string]any{"n": "new"}, CronExpression: ptr("3 0 1 * *")},
	} {
		for _, paused := range []bool{false, true} {
			t.Run(fmt.Sprint("expression ", option.CronExpression != nil, " paused ", paused), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := started(t, newMemoryRepository(), smallben.SchedulerConfig{MaxConcurrentRuns: 1})
					var c crowd
					waits := newRecorder()
					require.NoError(t, s.AddJobs([]smallben.Job{job(1, "1 0 * * *", c.probe(10*time.Minute)),
						startPaused(job(2, "0 0 1 * *", waits), paused)}))
					pass(3 * time.Minute)
					require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
					option := option
					option.JobID = 2
					require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{option}))
					pass(20 * time.Minute)
					runs := waits.runs()
					require.Len(t, runs, 1)
					assert.Equal(t, "new", runs[0].OtherInputs["n"])
				})
			})
		}
	}
}

func TestOverlapCountsATickThatWaitsForAPlaceAsARun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{MaxConcurrentRuns: 1, SkipIfStillRunning: true})
		var c crowd
		waits := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "1 0 * * *", c.probe(10*time.Minute+30*time.Second)), job(2, "2-59 * * * *", waits)}))
		pass(10*time.Minute + time.Second)
		assert.EqualValues(t, 1, gauges(t, s)["smallben_runs_waiting"])
		assert.EqualValues(t, 8, gauges(t, s)["smallben_runs_skipped_total,overlap"])
		pass(3 * time.Minute)
		assert.Equal(t, 3, waits.count(), "that of 0:02 at 0:11:30, those of 0:12 and 0:13")
	})
}

func TestAHungRunOfAnEarlierSessionKeepsItsPlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{MaxConcurrentRuns: 1})
		release := make(chan struct{})
		stuck := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		other := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "1 0 * * *", stuck), job(2, "2-9 * * * *", other)}))
		pass(2 * time.Minute)
		over, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, s.StopContext(over))
		require.NoError(t, s.Start())
		pass(2 * time.Minute)
		assert.Zero(t, other.count())
		close(release)
		pass(time.Second)
		assert.Equal(t, 2, other.count(), "of this session")
	})
}

func TestClaimsAreAskedForWhereThereIsRoom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		full := create(t, recorder, recordingConfig(func(c *smallben.Config) { c.SchedulerConfig.MaxConcurrentRuns = 3 }))
		require.NoError(t, full.Start())
		release := make(chan struct{})
		stuck := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		var jobs []smallben.Job
		for id := range int64(20) {
			jobs = append(jobs, job(id+1, "@yearly", stuck))
		}
		require.NoError(t, full.AddJobs(jobs))
		require.NoError(t, full.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1, 2, 3}}))
		quick := newRecorder()
		require.NoError(t, full.AddJobs([]smallben.Job{job(100, "*/5 * * * * *", quick)}))
		pass(time.Minute + time.Second/2)
		assert.Zero(t, quick.count(), "it claims nothing that it cannot run")
		free := create(t, recorder, recordingConfig(func(c *smallben.Config) { c.SchedulerConfig.MaxConcurrentRuns = 3 }))
		require.NoError(t, free.Start())
		pass(time.Minute)
		assert.Equal(t, int64(12), ranOf(t, full, 100), "another process takes them")
		close(release)
		pass(time.Minute)
		assert.Equal(t, int64(24), ranOf(t, full, 100))
	})
}

func TestATickThatFindsNoPlaceForLongIsNotMissed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		one := func(c *smallben.Config) { c.SchedulerConfig.MaxConcurrentRuns = 1 }
		s := create(t, recorder, recordingConfig(one))
		require.NoError(t, s.Start())
		var c crowd
		var jobs []smallben.Job
		for id := range int64(20) {
			jobs = append(jobs, job(id+1, "0 1 * * * *", c.probe(20*time.Second)))
		}
		require.NoError(t, s.AddJobs(jobs))
		pass(2 * time.Minute)
		paused := int64(20)
		if slices.Contains(c.order(), "01:00 job 20") {
			paused = 19 // of those that are due at once any may be the first
		}
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{paused}}))
		pass(time.Minute)
		other := create(t, recorder, recordingConfig(one)) // which has not seen the tick
		require.NoError(t, other.Start())
		pass(5 * time.Minute)
		assert.EqualValues(t, 2, c.most.Load(), "one in each process")
		where := make(map[string]int)
		for _, run := range recorder.runs() {
			if run.JobID == paused {
				assert.Equal(t, smallben.OutcomeSkipped, run.Outcome, "%v of a job that was paused", run)
				continue
			}
			assert.Equal(t, smallben.OutcomeOK, run.Outcome, "%v", run)
			where[run.Process]++
		}
		assert.Len(t, c.order(), 19, "each once")
		assert.Len(t, where, 2, "another process takes them")
	})
}

func TestALaterTickTakesThePlaceOfOneThatWaitsForAPlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := create(t, recorder, recordingConfig(func(c *smallben.Config) { c.SchedulerConfig.MaxConcurrentRuns = 1 }))
		require.NoError(t, s.Start())
		release := make(chan struct{})
		quick := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", newProbe(func(*probe, smallben.CronJobInput) { <-release })), job(2, "0 * * * * *", quick)}))
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		pass(10*time.Minute + 30*time.Second)
		waiting, skipped := 0, 0
		for _, run := range recorder.runs() {
			switch run.Outcome {
			case smallben.OutcomeWaiting:
				waiting++
			case smallben.OutcomeSkipped:
				assert.Equal(t, "a later tick of its job came while it waited for a place", run.Error)
				skipped++
			}
		}
		assert.Equal(t, 1, waiting, "nothing piles up")
		assert.Equal(t, 9, skipped)
		close(release)
		pass(15 * time.Second)
		assert.Equal(t, 1, quick.count(), "the latest")
	})
}

// ranOf counts the runs of a job in the record that ended well.
func ranOf(t *testing.T, s *smallben.SmallBen, id int64) (n int64) {
	t.Helper()
	runs, err := s.ListRuns(&smallben.ListRunsOptions{JobIDs: []int64{id}})
	require.NoError(t, err)
	for _, run := range runs {
		if run.Outcome == smallben.OutcomeOK {
			n++
		}
	}
	return n
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

// TestManyRunsAtOneTickLeaveTheApplicationItsPool has each run use the pool that the
// application has. They take longer than a claim is tried.
func TestManyRunsAtOneTickLeaveTheApplicationItsPool(t *testing.T) {
	t.Parallel()
	const jobs, connections, places = 2_000, 16, 8
	for _, record := range []bool{false, true} {
		t.Run(fmt.Sprintf("Record=%t", record), func(t *testing.T) {
			t.Parallel()
			db := newPostgres(t)
			db.pool.SetMaxOpenConns(connections)
			repository := db.open(t, func(c *smallben.RepositoryGormConfig) { c.Dialector = testkit.OnPostgres(db.pool) })
			s := create(t, repository, recordingConfig(func(c *smallben.Config) {
				c.SchedulerConfig.MaxConcurrentRuns, c.Runs.Record = places, record
			}))
			require.NoError(t, s.Start())
			var ran atomic.Int64
			all := make(chan struct{})
			asks := newProbe(func(*probe, smallben.CronJobInput) {
				_, err := db.pool.Exec("SELECT pg_sleep(0.05)")
				assert.NoError(t, err)
				if ran.Add(1) == jobs {
					close(all)
				}
			})
			tick := time.Now().Add(3 * time.Second).Truncate(time.Second)
			batch := make([]smallben.Job, jobs)
			for i := range batch {
				batch[i] = job(int64(i)+1, "@at "+tick.Format(time.RFC3339), asks)
			}
			require.NoError(t, s.AddJobs(batch))
			time.Sleep(time.Until(tick))
			var longest time.Duration
			for over := false; !over; {
				select {
				case <-all:
					over = true
				case <-time.After(10 * time.Millisecond):
				}
				begin := time.Now()
				_, err := db.pool.Exec("SELECT 1")
				require.NoError(t, err)
				longest = max(longest, time.Since(begin))
			}
			t.Logf("the application waited for %v at most, %v after the tick all had run", longest, time.Since(tick))
			assert.Less(t, longest, time.Second)
			s.Stop()
			assert.EqualValues(t, jobs, ran.Load(), "each runs once")
			if record {
				runs, err := s.ListRuns(&smallben.ListRunsOptions{Limit: 2 * jobs})
				require.NoError(t, err)
				require.Len(t, runs, jobs)
				for i := range runs {
					require.Equal(t, smallben.OutcomeOK, runs[i].Outcome)
				}
			}
		})
	}
}

package smallben_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
)

// tries keeps when each attempt of a job ran, and makes it fail as it is told.
type tries struct {
	mu    sync.Mutex
	seen  []smallben.CronJobInput
	at    []time.Time
	fails func(input smallben.CronJobInput) error
	takes time.Duration
}

func (r *tries) run(ctx context.Context, input smallben.CronJobInput) error {
	r.mu.Lock()
	r.seen, r.at = append(r.seen, input), append(r.at, time.Now())
	takes := r.takes
	r.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	return r.fails(input)
}

// take says how long attempts take from here on.
func (r *tries) take(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.takes = d
}

// history lists tick and attempt of what ran since the last call, as "10:01/1".
func (r *tries) history() (ran []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, input := range r.seen {
		ran = append(ran, fmt.Sprintf("%s/%d", input.ScheduledAt.Format("15:04"), input.Attempt))
	}
	r.seen, r.at = nil, nil
	return ran
}

func (r *tries) times() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]time.Time(nil), r.at...)
}

func always(smallben.CronJobInput) error { return errDown }

// trying makes the attempts of a job fail, and the job.
func trying(options smallben.RunOptions, fails func(smallben.CronJobInput) error) (*tries, *configuredProbe) {
	r := &tries{fails: fails}
	return r, withOptions(options, r.run)
}

func TestARunThatFailsIsTriedAgainUntilItSucceeds(t *testing.T) {
	for name, c := range map[string]struct {
		fails   func(smallben.CronJobInput) error
		options smallben.RunOptions
		ran     int
		givenUp float64
	}{
		"no attempts of its own": {always, smallben.RunOptions{}, 1, 0},
		"one attempt":            {always, smallben.RunOptions{Attempts: 1}, 1, 0},
		"every attempt fails":    {always, smallben.RunOptions{Attempts: 4}, 4, 1},
		"the third succeeds": {func(input smallben.CronJobInput) error {
			if input.Attempt < 3 {
				return errDown
			}
			return nil
		}, smallben.RunOptions{Attempts: 5}, 3, 0},
		"a panic":           {func(smallben.CronJobInput) error { panic("boom") }, smallben.RunOptions{Attempts: 3}, 3, 1},
		"a permanent error": {func(smallben.CronJobInput) error { return fmt.Errorf("call: %w", smallben.Permanent(errDown)) }, smallben.RunOptions{Attempts: 5}, 1, 1},
		"permanent the second time": {func(input smallben.CronJobInput) error {
			if input.Attempt == 2 {
				return smallben.Permanent(errDown)
			}
			return errDown
		}, smallben.RunOptions{Attempts: 5}, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, j := trying(c.options, c.fails)
				s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 10 * * *", j)}))
				pass(20 * time.Hour)
				var want []string
				for attempt := range c.ran {
					want = append(want, fmt.Sprintf("10:00/%d", attempt+1))
				}
				assert.Equal(t, want, r.history())
				values := gauges(t, s)
				assert.Equal(t, c.givenUp, values["smallben_runs_given_up_total"])
				assert.EqualValues(t, 1, values["smallben_run_lateness_seconds"], "an attempt is not late")
				further := 0.0
				for _, outcome := range []smallben.Outcome{smallben.OutcomeOK, smallben.OutcomeError, smallben.OutcomePanic, smallben.OutcomeTimeout} {
					further += values["smallben_attempts_total,"+string(outcome)]
				}
				assert.EqualValues(t, c.ran-1, further)
				last, _ := lastRun(t, s, 1)
				assert.Equal(t, c.ran, last.Attempt)
			})
		})
	}
}

func TestATimeoutIsTriedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, j := trying(smallben.RunOptions{Attempts: 2, Timeout: time.Minute}, always)
		r.take(time.Hour)
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 10 * * *", j)}))
		pass(20 * time.Hour)
		assert.Equal(t, []string{"10:00/1", "10:00/2"}, r.history())
		assert.EqualValues(t, 1, gauges(t, s)["smallben_attempts_total,timeout"])
	})
}

func TestAttemptsWaitTwiceAsLongEachTimeAndAtMostTheBound(t *testing.T) {
	for name, c := range map[string]struct {
		options smallben.RunOptions
		waits   []time.Duration
	}{
		"by default": {smallben.RunOptions{Attempts: 12}, []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second,
			160 * time.Second, 320 * time.Second, 640 * time.Second, 1280 * time.Second, 2560 * time.Second, time.Hour, time.Hour}},
		"as they say": {smallben.RunOptions{Attempts: 5, Backoff: time.Minute, MaxBackoff: 3 * time.Minute},
			[]time.Duration{time.Minute, 2 * time.Minute, 3 * time.Minute, 3 * time.Minute}},
		"a bound below the backoff": {smallben.RunOptions{Attempts: 3, Backoff: time.Hour, MaxBackoff: time.Minute}, []time.Duration{time.Minute, time.Minute}},
		"a backoff beyond an hour":  {smallben.RunOptions{Attempts: 3, Backoff: 2 * time.Hour}, []time.Duration{2 * time.Hour, 2 * time.Hour}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, j := trying(c.options, always)
				s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 10 * * *", j)}))
				pass(20 * time.Hour)
				times := r.times()
				require.Len(t, times, len(c.waits)+1)
				for i, wait := range c.waits {
					waited := times[i+1].Sub(times[i])
					assert.GreaterOrEqual(t, waited, wait, "before attempt %d", i+2)
					assert.LessOrEqual(t, waited, wait+wait/5, "before attempt %d", i+2)
				}
			})
		})
	}
}

func TestAWaitingAttemptIsListedWithItsTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, j := trying(smallben.RunOptions{Attempts: 3, Backoff: time.Hour}, always)
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 10 * * *", j)}))
		next := func() smallben.Run {
			jobs, err := s.ListJobs(nil)
			require.NoError(t, err)
			return jobs[0].NextAttempt()
		}
		assert.Zero(t, next())
		pass(10 * time.Hour)
		waiting := next()
		assert.Equal(t, 2, waiting.Attempt)
		assert.Equal(t, smallben.OutcomeWaiting, waiting.Outcome)
		assert.Equal(t, "10:00", waiting.Tick.Format("15:04"))
		pass(time.Until(waiting.Due))
		assert.Equal(t, 3, next().Attempt)
	})
}

func TestAWaitingAttemptEndsWithWhatItIsFor(t *testing.T) {
	all := &smallben.PauseResumeOptions{}
	for name, end := range map[string]func(t *testing.T, s *smallben.SmallBen, j smallben.CronJob){
		"a pause":    func(t *testing.T, s *smallben.SmallBen, _ smallben.CronJob) { require.NoError(t, s.PauseJobs(all)) },
		"a deletion": func(t *testing.T, s *smallben.SmallBen, _ smallben.CronJob) { require.NoError(t, s.DeleteAll()) },
		"a pause and a resume": func(t *testing.T, s *smallben.SmallBen, _ smallben.CronJob) {
			require.NoError(t, s.PauseJobs(all))
			require.NoError(t, s.ResumeJobs(all))
		},
		"a new expression": func(t *testing.T, s *smallben.SmallBen, _ smallben.CronJob) {
			require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("0 9 * * *")}}))
		},
		"a deletion, and the same id again": func(t *testing.T, s *smallben.SmallBen, j smallben.CronJob) {
			require.NoError(t, s.DeleteAll())
			time.Sleep(time.Second)
			require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 9 * * *", j)}))
		},
		"a stop and a start": func(t *testing.T, s *smallben.SmallBen, _ smallben.CronJob) {
			s.Stop()
			require.NoError(t, s.Start())
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, j := trying(smallben.RunOptions{Attempts: 3, Backoff: time.Hour}, always)
				s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 10 * * *", j)}))
				pass(10*time.Hour + time.Minute)
				assert.Equal(t, []string{"10:00/1"}, r.history())
				end(t, s, j)
				pass(10 * time.Hour)
				assert.Empty(t, r.history())
			})
		})
	}
}

func TestARunThatFailsAfterWhatItIsForIsNotTriedAgain(t *testing.T) {
	for name, end := range map[string]func(s *smallben.SmallBen) error{
		"a pause":    func(s *smallben.SmallBen) error { return s.PauseAll() },
		"a deletion": func(s *smallben.SmallBen) error { return s.DeleteAll() },
		"a new expression": func(s *smallben.SmallBen) error {
			return s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("0 9 * * *")}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, j := trying(smallben.RunOptions{Attempts: 3}, always)
				r.take(time.Minute)
				s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 10 * * *", j)}))
				pass(10*time.Hour + time.Second)
				require.NoError(t, end(s))
				pass(10 * time.Hour)
				assert.Equal(t, []string{"10:00/1"}, r.history())
			})
		})
	}
}

func TestAnInputThatIsUpdatedReachesTheNextAttempt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var texts []any
		j := withOptions(smallben.RunOptions{Attempts: 2, Backoff: time.Hour}, func(_ context.Context, input smallben.CronJobInput) error {
			texts = append(texts, input.OtherInputs["text"])
			return errDown
		})
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 10 * * *", j)}))
		pass(10 * time.Hour)
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"text": "new"}}}))
		pass(2 * time.Hour)
		assert.Equal(t, []any{nil, "new"}, texts)
	})
}

func TestTheNextTickEndsTheAttemptsOfTheOneBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, j := trying(smallben.RunOptions{Attempts: 3, Backoff: 25 * time.Minute, MaxBackoff: 40 * time.Minute}, always)
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * *", j)}))
		pass(2*time.Hour + 59*time.Minute)
		assert.Equal(t, []string{"01:00/1", "01:00/2", "02:00/1", "02:00/2"}, r.history(), "the third would come after an hour")
		// Nothing piles up where runs take longer than their period.
		r.take(90 * time.Minute)
		pass(4 * time.Hour)
		assert.Equal(t, []string{"03:00/1", "04:00/1", "05:00/1", "06:00/1"}, r.history())
	})
}

func TestAnAttemptDoesNotOverlapARunOfItsJob(t *testing.T) {
	for _, overlap := range []smallben.Overlap{smallben.OverlapSkip, smallben.OverlapDelay, smallben.OverlapAllow} {
		t.Run(overlap.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, j := trying(smallben.RunOptions{Attempts: 2, Backoff: 10 * time.Minute, Overlap: overlap}, func(input smallben.CronJobInput) error {
					if input.Triggered {
						return nil
					}
					return errDown
				})
				s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 10 * * *", j)}))
				pass(10*time.Hour + time.Minute)
				r.take(time.Hour)
				require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
				pass(3 * time.Hour)
				times := r.times()
				assert.Equal(t, []string{"10:00/1", "10:01/1", "10:00/2"}, r.history())
				if overlap == smallben.OverlapAllow {
					assert.Less(t, times[2].Sub(times[1]), time.Hour)
				} else {
					assert.Equal(t, time.Hour, times[2].Sub(times[1]), "it waits for the triggered run")
				}
			})
		})
	}
}

func TestATriggeredRunHasAttemptsOfItsOwn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, j := trying(smallben.RunOptions{Attempts: 2, Backoff: time.Hour}, always)
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 10 * * *", j)}))
		pass(9*time.Hour + 30*time.Minute)
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
		pass(10 * time.Hour)
		assert.Equal(t, []string{"09:30/1", "10:00/1", "09:30/2", "10:00/2"}, r.history())
		require.NoError(t, s.PauseAll())
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
		pass(2 * time.Hour)
		assert.Equal(t, []string{"19:30/1", "19:30/2"}, r.history(), "a paused job, too")
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
		pass(time.Minute)
		require.NoError(t, s.PauseAll())
		pass(2 * time.Hour)
		assert.Equal(t, []string{"21:30/1"}, r.history(), "a pause ends it")
	})
}

func TestStopDropsWaitingAttemptsAndSaysSo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logLines
		r, j := trying(smallben.RunOptions{Attempts: 3, Backoff: time.Hour}, always)
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: lines.logger()})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 10 * * *", j), job(2, "0 10 * * *", j), job(3, "0 11 * * *", j)}))
		pass(10*time.Hour + time.Minute)
		assert.Len(t, lines.with(`"nextAttempt"`), 2)
		r.take(time.Minute)
		pass(50 * time.Minute)
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{3}}))
		s.Stop()
		dropped := lines.with("attempts dropped")
		require.Len(t, dropped, 2)
		assert.Contains(t, dropped[0], `"count"=2 "jobs"="1, 2"`)
		assert.Contains(t, dropped[1], `"count"=1 "jobs"="3"`)
		r.history()
		pass(10 * time.Hour)
		assert.Empty(t, r.history())
	})
}

func TestARunThatWasCanceledIsNotTriedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, j := trying(smallben.RunOptions{Attempts: 3}, always)
		r.take(time.Hour)
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 10 * * *", j)}))
		pass(10*time.Hour + time.Minute)
		require.NoError(t, s.CancelRuns(&smallben.CancelRunsOptions{}))
		pass(10 * time.Hour)
		assert.Equal(t, []string{"10:00/1"}, r.history())
		assert.EqualValues(t, 1, gauges(t, s)["smallben_runs_given_up_total"])
	})
}

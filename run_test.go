package smallben_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/gob"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/testkit"
)

// contextProbe is a probe that takes a context.
type contextProbe struct{ Key string }

var contextProbes sync.Map // key to smallben.RunFunc

func (*contextProbe) Run(smallben.CronJobInput) { panic("Run was called in RunContext's place") }

func (p *contextProbe) RunContext(ctx context.Context, input smallben.CronJobInput) error {
	if run, ok := contextProbes.Load(p.Key); ok {
		return run.(smallben.RunFunc)(ctx, input)
	}
	return nil
}

func newContextProbe(run smallben.RunFunc) *contextProbe {
	p := &contextProbe{Key: testkit.NewKey()}
	contextProbes.Store(p.Key, run)
	return p
}

func init() { gob.Register(&contextProbe{}) }

func lastRun(t *testing.T, s *smallben.SmallBen, id int64) (last smallben.Run, running bool) {
	t.Helper()
	jobs, err := s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{id}})
	require.NoError(t, err)
	return jobs[0].LastRun(), jobs[0].Running()
}

func TestTheOutcomeOfARunIsCountedLoggedAndKept(t *testing.T) {
	for name, c := range map[string]struct {
		job     smallben.CronJob
		outcome smallben.Outcome
		err     string
	}{
		"a run without an error": {newProbe(func(*probe, smallben.CronJobInput) {}), smallben.OutcomeOK, ""},
		"a context run":          {newContextProbe(func(context.Context, smallben.CronJobInput) error { return nil }), smallben.OutcomeOK, ""},
		"an error":               {newContextProbe(func(context.Context, smallben.CronJobInput) error { return errDown }), smallben.OutcomeError, "the database is down"},
		"a panic":                {newContextProbe(func(context.Context, smallben.CronJobInput) error { panic("boom") }), smallben.OutcomePanic, "panic: boom"},
		"a Goexit":               {newContextProbe(func(context.Context, smallben.CronJobInput) error { runtime.Goexit(); return nil }), smallben.OutcomePanic, "runtime.Goexit was called"},
		"a timeout": {newContextProbe(func(ctx context.Context, _ smallben.CronJobInput) error {
			<-ctx.Done()
			return ctx.Err()
		}), smallben.OutcomeTimeout, "context deadline exceeded"},
		"success after the timeout": {newContextProbe(func(ctx context.Context, _ smallben.CronJobInput) error {
			<-ctx.Done()
			return nil
		}), smallben.OutcomeOK, ""},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var lines logLines
				s := create(t, newMemoryRepository(), &smallben.Config{Logger: lines.logger(),
					SchedulerConfig: smallben.SchedulerConfig{RunTimeout: 10 * time.Second}})
				require.NoError(t, s.Start())
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", c.job)}))
				begin := time.Now()
				last, running := lastRun(t, s, 1)
				assert.Equal(t, smallben.Run{}, last)
				assert.False(t, running)
				pass(time.Minute + 10*time.Second)
				last, running = lastRun(t, s, 1)
				assert.False(t, running)
				assert.Equal(t, c.outcome, last.Outcome)
				assert.Equal(t, c.err, last.Error)
				assert.True(t, last.Tick.Equal(begin.Add(time.Minute)))
				assert.True(t, last.Start.Equal(begin.Add(time.Minute)))
				if name == "a timeout" {
					assert.Equal(t, 10*time.Second, last.Duration())
				}
				values := gauges(t, s)
				assert.EqualValues(t, 1, values["smallben_runs_total,"+string(c.outcome)])
				assert.EqualValues(t, 1, values["smallben_run_duration_seconds"])
				assert.EqualValues(t, 1, values["smallben_run_lateness_seconds"])
				logged := lines.with("run failed")
				if c.err == "" {
					assert.Empty(t, logged)
					return
				}
				require.Len(t, logged, 1)
				assert.Contains(t, logged[0], fmt.Sprintf(`"outcome"=%q`, c.outcome))
				assert.Contains(t, logged[0], c.err)
			})
		})
	}
}

// nilError is an error whose methods do not stand a nil pointer.
type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }

// hostileError is an error that panics when it is taken apart.
type hostileError struct{ error }

func (hostileError) Unwrap() error { panic("do not look inside") }

func TestAnErrorWhoseMethodsPanicIsAFailedRunAndNoMore(t *testing.T) {
	for name, err := range map[string]error{"typed nil": (*nilError)(nil), "Unwrap": hostileError{errDown}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var lines logLines
				s := create(t, newMemoryRepository(), &smallben.Config{Logger: lines.logger()})
				require.NoError(t, s.Start())
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", newContextProbe(func(context.Context, smallben.CronJobInput) error { return err }))}))
				pass(2 * time.Minute)
				last, _ := lastRun(t, s, 1)
				assert.Equal(t, smallben.OutcomeError, last.Outcome)
				assert.Contains(t, last.Error, "whose methods panic")
				assert.Len(t, lines.with("whose methods panic"), 2)
			})
		})
	}
}

func TestALongErrorIsKeptCutOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		long := strings.Repeat("é", 1<<20)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", newContextProbe(func(context.Context, smallben.CronJobInput) error { return errors.New("x" + long) }))}))
		pass(time.Minute)
		last, _ := lastRun(t, s, 1)
		assert.Less(t, len(last.Error), 1100)
		assert.True(t, utf8.ValidString(last.Error))
	})
}

func TestARunsContextCarriesItsLogger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logLines
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: lines.logger()})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(7, "* * * * *", newContextProbe(func(ctx context.Context, _ smallben.CronJobInput) error {
			logr.FromContextOrDiscard(ctx).Info("half way")
			return nil
		}))}))
		pass(time.Minute)
		logged := lines.with("half way")
		require.Len(t, logged, 1)
		assert.Contains(t, logged[0], `"job"=7`)
	})
}

func TestRunningTellsWhatRunsNow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * *", newProbe(func(*probe, smallben.CronJobInput) { time.Sleep(time.Minute) }))}))
		pass(time.Hour + time.Second)
		_, running := lastRun(t, s, 1)
		assert.True(t, running)
		pass(time.Minute)
		last, running := lastRun(t, s, 1)
		assert.False(t, running)
		assert.Equal(t, time.Minute, last.Duration())
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * *", idle())}))
		last, _ = lastRun(t, s, 1)
		assert.Equal(t, smallben.Run{}, last, "a deleted job takes its last run with it")
	})
}

func TestStopContextEndsRunsContextsAndNamesTheJobsThatRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		obedient := newContextProbe(func(ctx context.Context, _ smallben.CronJobInput) error {
			<-ctx.Done()
			return ctx.Err()
		})
		release := make(chan struct{})
		deaf := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		require.NoError(t, s.AddJobs([]smallben.Job{job(3, "0 0 * * *", obedient), job(9, "0 0 * * *", deaf), job(4, "0 0 * * *", idle())}))
		pass(24 * time.Hour)
		deadline := time.Now().Add(30 * time.Second)
		ctx, cancel := context.WithDeadline(t.Context(), deadline)
		defer cancel()
		err := s.StopContext(ctx)
		assert.True(t, time.Now().Equal(deadline))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.EqualError(t, err, "stop: context deadline exceeded: still running: jobs 3, 9")
		synctest.Wait()
		last, running := lastRun(t, s, 3)
		assert.False(t, running)
		assert.Equal(t, smallben.OutcomeError, last.Outcome)
		close(release)
		require.NoError(t, s.StopContext(t.Context()), "the runs have ended")
	})
}

func TestStopContextNamesAndWaitsForRunsOfEarlierSessions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
		release := make(chan struct{})
		stuck := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", stuck), job(2, "@yearly", stuck)}))
		expired, cancel := context.WithCancel(t.Context())
		cancel()
		for range 3 { // of which the second has no run
			require.NoError(t, s.Start())
			jobs, err := s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{1}})
			require.NoError(t, err)
			if !jobs[0].Running() {
				require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
			}
			assert.EqualError(t, s.StopContext(expired), "stop: context canceled: still running: jobs 1")
		}
		require.NoError(t, s.Start())
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		assert.EqualError(t, s.StopContext(expired), "stop: context canceled: still running: jobs 1, 2")
		stopped := make(chan struct{})
		go func() { s.Stop(); close(stopped) }()
		synctest.Wait()
		select {
		case <-stopped:
			t.Error("Stop did not wait for the run of the first session")
		default:
		}
		close(release)
		<-stopped
	})
}

func TestStopReturnsAfterTheLastFailureIsLogged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logLines
		inner := lines.logger()
		logger := funcr.New(func(prefix, args string) {
			time.Sleep(time.Millisecond) // a sink takes its time
			inner.Info(args)
		}, funcr.Options{})
		for range 10 {
			s := create(t, newMemoryRepository(), &smallben.Config{Logger: logger})
			require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", newProbe(func(*probe, smallben.CronJobInput) { panic("boom") }))}))
			require.NoError(t, s.Start())
			before := len(lines.with("boom"))
			require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
			s.Stop()
			assert.Len(t, lines.with("boom"), before+1)
		}
	})
}

func TestStopContextEndsTheContextsOfEarlierSessions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
		var ended sync.WaitGroup
		ended.Add(2)
		obedient := newContextProbe(func(ctx context.Context, _ smallben.CronJobInput) error {
			<-ctx.Done()
			ended.Done()
			return nil
		})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", obedient), job(2, "@yearly", obedient)}))
		require.NoError(t, s.Start())
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		go s.Stop()
		synctest.Wait()
		require.NoError(t, s.Start())
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.ErrorContains(t, s.StopContext(ctx), "still running: jobs 1, 2")
		ended.Wait()
	})
}

func TestATriggeredRunOfAPausedJobThatWaitsSeesAnUpdate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{DelayIfStillRunning: true})
		var inputs []map[string]any
		slow := newProbe(func(_ *probe, input smallben.CronJobInput) {
			inputs = append(inputs, input.OtherInputs)
			time.Sleep(time.Minute)
		})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", slow)}))
		all := &smallben.PauseResumeOptions{}
		require.NoError(t, s.PauseJobs(all))
		require.NoError(t, s.TriggerJobs(all))
		require.NoError(t, s.TriggerJobs(all))
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"new": true}}}))
		pass(time.Hour)
		assert.Equal(t, []map[string]any{nil, {"new": true}}, inputs)
	})
}

// counting counts the runs on a value, which is not stored.
type counting struct {
	Key  string
	runs int
}

func (c *counting) Run(smallben.CronJobInput) {
	c.runs++
	counts, _ := countings.LoadOrStore(c.Key, new([]int))
	*counts.(*[]int) = append(*counts.(*[]int), c.runs)
}

// countings are the counts of each run, by key.
var countings sync.Map

func init() { gob.Register(&counting{}) }

func TestAStartDecodesJobsAnewPausedOnesToo(t *testing.T) {
	for _, paused := range []bool{false, true} {
		t.Run(fmt.Sprint("paused ", paused), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
				trigger := func() {
					require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
					pass(time.Second)
				}
				key := rand.Text()
				require.NoError(t, s.AddJobs([]smallben.Job{startPaused(job(1, "@yearly", &counting{Key: key}), paused)}))
				trigger()
				trigger()
				s.Stop()
				require.NoError(t, s.Start())
				trigger()
				counts, _ := countings.Load(key)
				assert.Equal(t, []int{1, 2, 1}, *counts.(*[]int))
			})
		})
	}
}

func TestLastRunIsNotThatOfADeletedJobOfTheSameID(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		release := make(chan struct{})
		first := newContextProbe(func(context.Context, smallben.CronJobInput) error { <-release; return errDown })
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", first)}))
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
		pass(time.Second)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}))
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
		synctest.Wait()
		close(release)
		synctest.Wait()
		last, _ := lastRun(t, s, 1)
		assert.Equal(t, smallben.OutcomeOK, last.Outcome)
	})
}

func TestASinkThatPanicsInWithValuesStopsNoContextJob(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: logr.New(panicSink{})})
		require.NoError(t, s.Start())
		ran := false
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", newContextProbe(func(context.Context, smallben.CronJobInput) error { ran = true; return nil }))}))
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
		synctest.Wait()
		assert.True(t, ran)
	})
}

type panicSink struct{ discardSink }

func (panicSink) WithValues(...any) logr.LogSink { panic("sink") }

func TestStopContextWithTimeToSpareIsStop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
		require.NoError(t, s.StopContext(t.Context()), "before Start")
		require.NoError(t, s.Start())
		var err error
		slow := newContextProbe(func(ctx context.Context, _ smallben.CronJobInput) error {
			time.Sleep(time.Minute)
			err = ctx.Err()
			return nil
		})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * *", slow)}))
		pass(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.StopContext(ctx))
		assert.NoError(t, err, "a run that has time is left alone")
	})
}

func TestTriggerJobsRunsThemNow(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		inputs := make(chan smallben.CronJobInput, 10)
		p := newProbe(func(_ *probe, input smallben.CronJobInput) { inputs <- input })
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", p), job(2, "@yearly", p), job(3, "@yearly", p)}))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		before, err := repository.ListJobs(nil)
		require.NoError(t, err)
		begin := time.Now()
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1, 2}}))
		seen := make(map[int64]bool)
		for range 2 {
			input := <-inputs
			seen[input.JobID] = true
			assert.True(t, input.Triggered)
			assert.WithinRange(t, input.ScheduledAt, begin.Round(0), time.Now())
		}
		assert.Equal(t, map[int64]bool{1: true, 2: true}, seen, "paused ones too")
		after, err := repository.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, before, after, "nothing is written")

		assert.EqualError(t, s.TriggerJobs(nil), "trigger jobs: nil options")
		err = s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1, 8}})
		assert.ErrorIs(t, err, s.ErrorTypeIfMismatchCount())
		assert.ErrorContains(t, err, "8")
		s.Stop()
		assert.ErrorContains(t, s.TriggerJobs(&smallben.PauseResumeOptions{}), "not started")
		assert.Empty(t, inputs)
	})
}

func TestATriggeredRunObeysTheOverlapSettings(t *testing.T) {
	for name, c := range map[string]struct {
		config        smallben.SchedulerConfig
		runs, skipped int
	}{
		"allow": {smallben.SchedulerConfig{}, 4, 0},
		"skip":  {smallben.SchedulerConfig{SkipIfStillRunning: true}, 1, 3},
		"delay": {smallben.SchedulerConfig{DelayIfStillRunning: true}, 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := started(t, newMemoryRepository(), c.config)
				var runs atomic.Int32
				slow := newProbe(func(*probe, smallben.CronJobInput) { runs.Add(1); time.Sleep(time.Minute) })
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", slow)}))
				require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{}))
				for range 4 {
					require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
				}
				pass(time.Hour)
				assert.EqualValues(t, c.runs, runs.Load())
				assert.EqualValues(t, c.skipped, gauges(t, s)["smallben_runs_skipped_total,overlap"])
			})
		})
	}
}

func TestATriggeredRunThatWaitsDoesNotOutliveItsJob(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{DelayIfStillRunning: true})
		var runs atomic.Int32
		slow := newProbe(func(*probe, smallben.CronJobInput) { runs.Add(1); time.Sleep(time.Minute) })
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", slow)}))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{}))
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
		pass(time.Hour)
		assert.EqualValues(t, 1, runs.Load())
	})
}

func TestATickThatWaitsSurvivesAnUpdateOfItsExpression(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{DelayIfStillRunning: true})
		var inputs []smallben.CronJobInput
		slow := newProbe(func(_ *probe, input smallben.CronJobInput) {
			inputs = append(inputs, input)
			time.Sleep(90 * time.Second)
		})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", slow)}))
		pass(2*time.Minute + time.Second)
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("@yearly"), JobOtherInputs: &map[string]any{"new": true}}}))
		pass(time.Hour)
		require.Len(t, inputs, 2)
		assert.Equal(t, 2, inputs[1].ScheduledAt.Minute())
		assert.Equal(t, map[string]any{"new": true}, inputs[1].OtherInputs, "a run that starts after the update sees it")
	})
}

func TestWrapRunSeesBothEndsOfEachRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var seen []string
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet, WrapRun: func(next smallben.RunFunc) smallben.RunFunc {
			return func(ctx context.Context, input smallben.CronJobInput) error {
				begin := len(seen)
				seen = append(seen, fmt.Sprint("begin ", input.JobID))
				err := next(ctx, input)
				var stack interface{ Stack() []byte }
				if errors.As(err, &stack) && !bytes.Contains(stack.Stack(), []byte("run_test.go")) {
					err = errors.New("a panic without its stack")
				}
				seen[begin] += fmt.Sprint(", end: ", err)
				if input.JobID == 4 {
					panic("the wrapper's own")
				}
				return nil
			}
		}})
		require.NoError(t, s.Start())
		for id, j := range map[int64]smallben.CronJob{
			1: idle(),
			2: newProbe(func(*probe, smallben.CronJobInput) { panic("boom") }),
			3: newContextProbe(func(context.Context, smallben.CronJobInput) error { return errDown }),
			4: idle(),
		} {
			require.NoError(t, s.AddJobs([]smallben.Job{job(id, "@yearly", j)}))
		}
		for id := int64(1); id <= 4; id++ {
			require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id}}))
			synctest.Wait()
		}
		assert.Equal(t, []string{"begin 1, end: <nil>", "begin 2, end: panic: boom", "begin 3, end: the database is down", "begin 4, end: <nil>"}, seen)
		values := gauges(t, s)
		assert.EqualValues(t, 3, values["smallben_runs_total,ok"], "what the wrapper returns counts")
		assert.EqualValues(t, 1, values["smallben_runs_total,panic"])
	})
}

func TestNextRunFollowsTheScheduleAndThePause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rome, err := time.LoadLocation("Europe/Rome")
		require.NoError(t, err)
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{WithLocation: rome})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "30 4 * * *", idle()), job(2, "@every 36h", idle()), job(3, "@daily", idle())}))
		created := time.Now()
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{3}}))
		pass(40 * time.Hour)
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, time.Date(2000, 1, 3, 4, 30, 0, 0, rome), jobs[0].NextRun())
		assert.True(t, jobs[1].NextRun().Equal(created.Add(72*time.Hour)), "the phase of @every")
		assert.True(t, jobs[2].NextRun().IsZero(), "paused")
		next := jobs[2].NextRuns(2)
		require.Len(t, next, 2, "a preview, though")
		assert.Equal(t, 24*time.Hour, next[1].Sub(next[0]))
		require.NoError(t, s.AddJobs([]smallben.Job{job(4, "0 0 29 2 *", idle())}))
		assert.Empty(t, (&smallben.Job{CronExpression: "0 0 1 1 *"}).NextRuns(3), "it is not stored")
	})
}

func TestNextRunsPreviewsWhatAUserTypes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := create(t, newMemoryRepository(), &smallben.Config{SchedulerConfig: smallben.SchedulerConfig{WithLocation: time.UTC}})
		next, err := s.NextRuns("0 12 * * MON", 2)
		require.NoError(t, err)
		assert.Equal(t, []time.Time{time.Date(2000, 1, 3, 12, 0, 0, 0, time.UTC), time.Date(2000, 1, 10, 12, 0, 0, 0, time.UTC)}, next)
		next, err = s.NextRuns("@every 90m", 2)
		require.NoError(t, err)
		assert.True(t, next[1].Equal(time.Now().Add(3*time.Hour)))
		_, err = s.NextRuns("* * * * * *", 1)
		assert.ErrorContains(t, err, "found 6: seconds need SchedulerConfig.WithSeconds")
		assert.ErrorIs(t, err, smallben.ErrInvalidJob)
		s = create(t, newMemoryRepository(), &smallben.Config{SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}})
		next, err = s.NextRuns("* * * * * *", 0)
		require.NoError(t, err)
		assert.Empty(t, next)
	})
}

// The clock of Lord Howe is set by half an hour, and that of Cairo over midnight.
func TestNextRunsPreviewsWhatAJobWillDo(t *testing.T) {
	t.Parallel()
	expressions := []string{"0 12 * * *", "15 2 * * *", "0 0 * * FRI", "*/15 1-3 * * *", "CRON_TZ=Africa/Cairo 0 0 * * 5-7", "@daily", "0 0 29 2 *"}
	for _, zone := range []string{"", "Australia/Lord_Howe", "Africa/Cairo"} {
		for _, record := range []bool{false, true} {
			config := &smallben.Config{Logger: quiet, Runs: smallben.RunsConfig{Record: record}}
			if zone != "" {
				location, err := time.LoadLocation(zone)
				require.NoError(t, err)
				config.SchedulerConfig.WithLocation = location
			}
			s := create(t, newMemoryRecorder(), config)
			var jobs []smallben.Job
			for i, expression := range expressions {
				jobs = append(jobs, job(int64(i+1), expression, idle()))
			}
			require.NoError(t, s.AddJobs(jobs))
			listed, err := s.ListJobs(nil)
			require.NoError(t, err)
			for i, expression := range expressions {
				preview, err := s.NextRuns(expression, 400)
				require.NoError(t, err)
				assert.Equal(t, fmt.Sprint(preview), fmt.Sprint(listed[i].NextRuns(400)), "%s in %q, record: %v", expression, zone, record)
			}
		}
	}
}

// In 2000 the clock of Chatham is set back on 19 March, from 3:45 to 2:45, and
// forward on 1 October, from 2:45 to 3:45.
func TestAJobRunsOnceOnEachDayThoughTheClockIsSet(t *testing.T) {
	for _, record := range []bool{false, true} {
		t.Run(fmt.Sprintf("record %v", record), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				chatham, err := time.LoadLocation("Pacific/Chatham")
				require.NoError(t, err)
				time.Sleep(time.Until(time.Date(2000, 3, 17, 12, 0, 0, 0, chatham)))
				s := create(t, newMemoryRecorder(), recordingConfig(rarelyInSync, func(c *smallben.Config) {
					c.Runs.Record = record
					c.SchedulerConfig.WithLocation = chatham
				}))
				require.NoError(t, s.Start())
				var runs [4]atomic.Int32
				for i, expression := range []string{"50 3 * * *", "0 3 * * *", "45-59/5 3 * * SUN", "*/5 3 * * *"} {
					counting := newProbe(func(*probe, smallben.CronJobInput) { runs[i].Add(1) })
					require.NoError(t, s.AddJobs([]smallben.Job{job(int64(i+1), expression, counting)}))
				}
				pass(4 * 24 * time.Hour)
				got := [4]int32{runs[0].Load(), runs[1].Load(), runs[2].Load(), runs[3].Load()}
				assert.Equal(t, [4]int32{4, 4, 3, 4*12 + 9}, got)
			})
		})
	}
}

func TestAJobAtATimeRunsOnceAndStaysListed(t *testing.T) {
	for _, record := range []bool{false, true} {
		t.Run(fmt.Sprintf("record %v", record), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := create(t, newMemoryRecorder(), recordingConfig(rarelyInSync, func(c *smallben.Config) { c.Runs.Record = record }))
				require.NoError(t, s.Start())
				at := time.Now().Add(90*time.Minute + 250*time.Millisecond)
				var runs atomic.Int32
				once := newProbe(func(*probe, smallben.CronJobInput) { runs.Add(1) })
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@at "+at.Format(time.RFC3339Nano), once)}))
				pass(48 * time.Hour)
				assert.EqualValues(t, 1, runs.Load())
				jobs, err := s.ListJobs(nil)
				require.NoError(t, err)
				require.Len(t, jobs, 1)
				assert.Zero(t, jobs[0].NextRun())
				assert.Empty(t, jobs[0].NextRuns(3))
				assert.Equal(t, at.UTC(), jobs[0].LastRun().Tick.UTC())

				past := "@at " + at.Format(time.RFC3339)
				assert.ErrorIs(t, s.AddJobs([]smallben.Job{job(2, past, idle())}), smallben.ErrInvalidJob)
				assert.ErrorIs(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: &past}}), smallben.ErrInvalidJob)
				s.Stop()
				require.NoError(t, s.Start(), "a stored row loads though its time is past")
				jobs, err = s.ListJobs(nil)
				require.NoError(t, err)
				require.Len(t, jobs, 1)
			})
		})
	}
}

func TestWhatUsersPrintNamesTheJobAndNotItsInput(t *testing.T) {
	t.Parallel()
	secret := map[string]any{"password": "hunter2"}
	j := job(4, "@daily", idle())
	j.JobInput = secret
	at := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		value any
		text  string
	}{
		{j, `job 4 (group 4, super-group 1) "@daily"`},
		{&j, `job 4 (group 4, super-group 1) "@daily"`},
		{smallben.CronJobInput{JobID: 4, OtherInputs: secret, ScheduledAt: at}, "run of job 4 for 2026-11-23T10:00:00Z"},
		{smallben.UpdateOption{JobID: 4, CronExpression: ptr("@hourly"), JobOtherInputs: &secret}, `update of job 4: expression "@hourly", input`},
		{smallben.UpdateOption{JobID: 4}, "update of job 4: nothing"},
		{smallben.Run{}, "none"},
		{smallben.Run{JobID: 1, Tick: at, Outcome: smallben.OutcomeError, Error: "no"}, "job 1, tick 2026-11-23T10:00:00Z: error: no"},
		{smallben.ListJobsOptions{}, "all jobs"},
		{smallben.ListJobsOptions{Paused: ptr(false), GroupIDs: []int64{1, 2}, JobIDs: []int64{}}, "jobs not paused, of ids (none), of groups 1, 2"},
		{smallben.PauseResumeOptions{SuperGroupIDs: []int64{3}}, "jobs of super-groups 3"},
		{smallben.DeleteOptions{Paused: ptr(true)}, "jobs paused"},
	} {
		assert.Equal(t, c.text, fmt.Sprint(c.value))
	}
}

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

func TestATickThatHasJustGotItsPlaceDoesNotStartOnceItsJobIsDeleted(t *testing.T) {
	for _, paused := range []bool{false, true} {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprint("paused ", paused, " added again ", again), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := started(t, newMemoryRepository(), smallben.SchedulerConfig{MaxConcurrentRuns: 1})
					waits, all := newRecorder(), &smallben.PauseResumeOptions{}
					leave := smallben.TakePlace(s)
					require.NoError(t, s.AddJobs([]smallben.Job{startPaused(job(2, "@yearly", waits), paused)}))
					require.NoError(t, s.TriggerJobs(all))
					start := leave()
					require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
					if again {
						pass(time.Second)
						require.NoError(t, s.AddJobs([]smallben.Job{job(2, "@yearly", idle())}))
					}
					start()
					synctest.Wait()
					assert.Zero(t, waits.count())
					if !again {
						assert.Empty(t, smallben.Ran(s), "nothing is left of it")
						return
					}
					require.NoError(t, s.TriggerJobs(all))
					synctest.Wait()
					last, _ := lastRun(t, s, 2)
					assert.Equal(t, smallben.OutcomeOK, last.Outcome)
				})
			})
		}
	}
}

func TestTheEndOfARunOfADeletedJobDropsNothingOfAJobOfTheSameID(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		all := &smallben.PauseResumeOptions{}
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}))
		drop := smallben.Dropping(s, 1)
		require.NoError(t, s.DeleteAll())
		pass(time.Second)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}))
		require.NoError(t, s.TriggerJobs(all))
		pass(time.Second)
		require.NoError(t, s.PauseAll())
		drop()
		assert.Equal(t, []int64{1}, smallben.Ran(s))
	})
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
		pass(65 * time.Second)
		assert.EqualValues(t, 19, gauges(t, s)["smallben_runs_waiting"])
		pass(55 * time.Second)
		assert.EqualValues(t, 16, gauges(t, s)["smallben_runs_waiting"], "in the record, too")
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
		assert.Zero(t, gauges(t, s)["smallben_runs_waiting"])
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

func TestOneTickOfADelayedJobWaitsHoweverLongThereIsNoPlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := create(t, recorder, recordingConfig(func(c *smallben.Config) {
			c.SchedulerConfig.MaxConcurrentRuns, c.SchedulerConfig.DelayIfStillRunning = 1, true
		}))
		require.NoError(t, s.Start())
		release := make(chan struct{})
		quick := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", newProbe(func(*probe, smallben.CronJobInput) { <-release })), job(2, "*/5 * * * * *", quick)}))
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		pass(10*time.Minute + time.Second)
		waiting, err := s.ListRuns(&smallben.ListRunsOptions{Outcomes: []smallben.Outcome{smallben.OutcomeWaiting}})
		require.NoError(t, err)
		require.Len(t, waiting, 1)
		skipped := outcomes(recorder.runs())[smallben.OutcomeSkipped]
		assert.InDelta(t, 117, skipped, 1, "all but the one that waits and those of the last ten seconds")
		assert.EqualValues(t, skipped, gauges(t, s)["smallben_runs_skipped_total,overlap"])
		close(release)
		pass(time.Second)
		assert.Contains(t, ticksOf(quick.runs()), waiting[0].Tick, "the oldest")
	})
}

func TestATickOfAJobThatRunsForLongIsSkippedThoughItFoundNoPlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := create(t, recorder, recordingConfig(skipBusy, func(c *smallben.Config) { c.SchedulerConfig.MaxConcurrentRuns = 1 }))
		require.NoError(t, s.Start())
		slow := newProbe(func(*probe, smallben.CronJobInput) { time.Sleep(90 * time.Second) })
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", slow)}))
		pass(3*time.Minute - time.Second)
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeOK: 1, smallben.OutcomeSkipped: 1}, outcomes(recorder.runs()))
		assert.EqualValues(t, 1, gauges(t, s)["smallben_runs_skipped_total,overlap"])
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

// TestManyRunsAtOneTickLeaveTheApplicationItsPool has each run use the pool that the
// application has. They take longer than a claim is tried, at least jobs * takes / places.
func TestManyRunsAtOneTickLeaveTheApplicationItsPool(t *testing.T) {
	t.Parallel()
	const jobs, connections, places, takes = 2_000, 16, 8, 50 * time.Millisecond
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
				_, err := db.pool.Exec("SELECT pg_sleep($1)", takes.Seconds())
				assert.NoError(t, err)
				if ran.Add(1) == jobs {
					close(all)
				}
			})
			batch := make([]smallben.Job, jobs)
			for i := range batch {
				batch[i] = job(int64(i)+1, "@yearly", asks)
			}
			// How long the first call takes tells how long the second one may take on this
			// machine: it has to be over before the tick.
			begin := time.Now()
			require.NoError(t, s.AddJobs(batch))
			tick := time.Now().Add(3*time.Second + 4*time.Since(begin)).Truncate(time.Second)
			for i := range batch {
				batch[i].CronExpression = "@at " + tick.Format(time.RFC3339)
			}
			require.NoError(t, s.UpsertJobs(batch))
			require.True(t, time.Now().Before(tick), "the jobs were changed in time for their tick")
			for over := false; !over; {
				select {
				case <-all:
					over = true
				case <-time.After(10 * time.Millisecond):
				}
				_, err := db.pool.Exec("SELECT 1")
				require.NoError(t, err)
			}
			// If runs take all of the connections, nearly each waits for one.
			assert.Less(t, db.pool.Stats().WaitCount, int64(jobs/20), "waited for a connection")
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
				// One asks the run to end first.
				require.NoError(t, s.CancelRuns(&smallben.CancelRunsOptions{JobIDs: []int64{1}}))
				pass(5 * time.Second)
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

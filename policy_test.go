package smallben_test

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/ledger"
)

// configuredProbe is a context probe with options.
type configuredProbe struct {
	Key     string
	Options smallben.RunOptions
}

func (*configuredProbe) Run(smallben.CronJobInput) { panic("Run was called in RunContext's place") }

func (p *configuredProbe) RunContext(ctx context.Context, input smallben.CronJobInput) error {
	return (&contextProbe{p.Key}).RunContext(ctx, input)
}

// builds say what RunOptions does in place of giving the stored ones, by key.
var builds sync.Map

func (p *configuredProbe) RunOptions() smallben.RunOptions {
	if options, ok := builds.Load(p.Key); ok {
		return options.(func() smallben.RunOptions)()
	}
	return p.Options
}

// withOptions returns a job that has the options and whose runs call run.
func withOptions(options smallben.RunOptions, run smallben.RunFunc) *configuredProbe {
	return &configuredProbe{newContextProbe(run).Key, options}
}

func succeeds(context.Context, smallben.CronJobInput) error { return nil }

func init() { gob.Register(&configuredProbe{}) }

// badOptions are not valid, by the field that is why.
var badOptions = map[string]smallben.RunOptions{
	"Overlap":      {Overlap: smallben.OverlapDelay + 1},
	"Missed":       {Missed: smallben.MissedRunAll + 1},
	"MissedWithin": {MissedWithin: -time.Second},
	"Attempts":     {Attempts: -1},
	"Backoff":      {Backoff: -1},
	"MaxBackoff":   {MaxBackoff: -time.Hour},
}

func TestAJobWhoseOptionsAreNotValidIsRefusedNamingTheField(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(2, "@daily", idle())}))
		refused := func(options func() smallben.RunOptions, message string) {
			t.Helper()
			bad := withOptions(smallben.RunOptions{}, succeeds)
			setBuild(bad.Key, options)
			batch := []smallben.Job{job(1, "@daily", idle()), job(2, "@daily", bad)}
			for _, err := range []error{s.AddJobs(batch), s.UpsertJobs(batch)} {
				assert.ErrorIs(t, err, smallben.ErrInvalidJob)
				assert.ErrorContains(t, err, "job 2: ")
				assert.ErrorContains(t, err, message)
			}
		}
		for field, options := range badOptions {
			refused(func() smallben.RunOptions { return options }, "RunOptions."+field+" is ")
		}
		refused(func() smallben.RunOptions { panic("no options today") }, "RunOptions: panic: no options today")
		refused(func() smallben.RunOptions { runtime.Goexit(); return smallben.RunOptions{} }, "RunOptions: runtime.Goexit was called")
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, []int64{2}, ids(jobs), "nothing was stored")
	})
}

func TestARowWhoseOptionsAreNotValidIsHeldBack(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		before := create(t, repository, &smallben.Config{Logger: quiet})
		bad := map[string]func() smallben.RunOptions{
			"panic":  func() smallben.RunOptions { panic("no options today") },
			"Goexit": func() smallben.RunOptions { runtime.Goexit(); return smallben.RunOptions{} },
		}
		for field, options := range badOptions {
			bad[field] = func() smallben.RunOptions { return options }
		}
		id := int64(1)
		require.NoError(t, before.AddJobs([]smallben.Job{job(id, "@daily", idle())}))
		for name, build := range bad {
			id++
			stored := withOptions(smallben.RunOptions{Attempts: 3}, succeeds)
			require.NoError(t, before.AddJobs([]smallben.Job{job(id, "@daily", stored)}), name)
			setBuild(stored.Key, build)
		}
		s := started(t, repository, smallben.SchedulerConfig{})
		values := gauges(t, s)
		assert.EqualValues(t, 1, values["smallben_scheduler_jobs_not_paused"])
		assert.EqualValues(t, len(bad), values["smallben_scheduler_jobs_undecodable"])
		jobs, err := s.ListJobs(nil)
		assert.ErrorIs(t, err, smallben.ErrUndecodable)
		assert.Equal(t, []int64{1}, ids(jobs))
		for id := int64(2); id <= int64(len(bad))+1; id++ {
			err := s.UpdateJobs([]smallben.UpdateOption{{JobID: id, CronExpression: ptr("@hourly")}})
			assert.ErrorIs(t, err, smallben.ErrUndecodable)
			require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id}}))
			assert.ErrorIs(t, s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id}}), smallben.ErrUndecodable)
			require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{id}}}))
		}
	})
}

// setBuild says what RunOptions of the probes with this key does from here on.
func setBuild(key string, options func() smallben.RunOptions) { builds.Store(key, options) }

func TestOptionsAreAskedForWhenAJobIsBuiltOrLoadedAndNotAtEachRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		asked, ran := 0, 0
		j := withOptions(smallben.RunOptions{}, func(context.Context, smallben.CronJobInput) error { ran++; return nil })
		setBuild(j.Key, func() smallben.RunOptions { asked++; return smallben.RunOptions{} })
		s := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", j)}))
		pass(5 * time.Minute)
		assert.Equal(t, 5, ran)
		assert.Equal(t, 1, asked)
		s.Stop()
		require.NoError(t, s.Start())
		pass(5 * time.Minute)
		assert.Equal(t, 10, ran)
		assert.Equal(t, 2, asked)
	})
}

func TestAListedJobTellsItsOptionsAndWhatZeroStandsFor(t *testing.T) {
	t.Parallel()
	none := smallben.RunOptions{Overlap: smallben.OverlapAllow, Timeout: -1, Missed: smallben.MissedSkip, Attempts: 1, Backoff: 10 * time.Second, MaxBackoff: time.Hour}
	of := func(change func(o *smallben.RunOptions)) smallben.RunOptions {
		options := none
		change(&options)
		return options
	}
	skipping := smallben.Config{SchedulerConfig: smallben.SchedulerConfig{SkipIfStillRunning: true, RunTimeout: time.Minute}}
	own := smallben.RunOptions{Overlap: smallben.OverlapDelay, Timeout: time.Second, Missed: smallben.MissedRunAll, MissedWithin: time.Hour, Attempts: 3, Backoff: time.Minute, MaxBackoff: 2 * time.Minute}
	for name, c := range map[string]struct {
		config smallben.Config
		job    smallben.CronJob
		want   smallben.RunOptions
	}{
		"a job that says nothing":       {smallben.Config{}, idle(), none},
		"zero options":                  {smallben.Config{}, withOptions(smallben.RunOptions{}, succeeds), none},
		"the settings of the scheduler": {skipping, idle(), of(func(o *smallben.RunOptions) { o.Overlap, o.Timeout = smallben.OverlapSkip, time.Minute })},
		"both overlap settings": {smallben.Config{SchedulerConfig: smallben.SchedulerConfig{SkipIfStillRunning: true, DelayIfStillRunning: true}}, idle(),
			of(func(o *smallben.RunOptions) { o.Overlap = smallben.OverlapDelay })},
		"against the scheduler's": {skipping, withOptions(smallben.RunOptions{Overlap: smallben.OverlapAllow, Timeout: -time.Hour}, succeeds),
			of(func(o *smallben.RunOptions) { o.Timeout = -time.Hour })},
		"everything": {skipping, withOptions(own, succeeds), own},
		"a long backoff": {smallben.Config{}, withOptions(smallben.RunOptions{Backoff: 2 * time.Hour}, succeeds),
			of(func(o *smallben.RunOptions) { o.Backoff, o.MaxBackoff = 2*time.Hour, 2*time.Hour })},
	} {
		t.Run(name, func(t *testing.T) {
			c.config.Logger = quiet
			s := create(t, newMemoryRepository(), &c.config)
			require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", c.job)}))
			jobs, err := s.ListJobs(nil)
			require.NoError(t, err)
			assert.Equal(t, c.want, jobs[0].RunOptions())
		})
	}
	unlisted := job(1, "@daily", idle())
	assert.Zero(t, unlisted.RunOptions())
}

func TestOptionsAreWordsForPeople(t *testing.T) {
	t.Parallel()
	for value, want := range map[fmt.Stringer]string{
		smallben.Overlap(0):                           "default",
		smallben.OverlapAllow:                         "allow",
		smallben.OverlapSkip:                          "skip",
		smallben.OverlapDelay:                         "delay",
		smallben.Overlap(7):                           "Overlap(7)",
		smallben.MissedDefault:                        "default",
		smallben.MissedSkip:                           "skip",
		smallben.MissedRunOnce:                        "run once",
		smallben.MissedRunAll:                         "run all",
		smallben.MissedPolicy(-1):                     "MissedPolicy(-1)",
		smallben.RunOptions{}:                         "default",
		smallben.RunOptions{Timeout: -1, Attempts: 1}: "no timeout, 1 attempt",
		smallben.RunOptions{Overlap: smallben.OverlapSkip, Timeout: time.Minute, Missed: smallben.MissedRunOnce, MissedWithin: 3 * time.Hour, Attempts: 5, Backoff: time.Second, MaxBackoff: time.Hour}: "overlap skip, timeout 1m0s, missed run once, missed within 3h0m0s, 5 attempts, backoff 1s, backoff at most 1h0m0s",
	} {
		assert.Equal(t, want, value.String())
	}
}

func TestEachJobOverlapsAsItsOptionsSay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{SkipIfStillRunning: true})
		var mu sync.Mutex
		starts := make(map[int64]int)
		slow := func(_ context.Context, input smallben.CronJobInput) error {
			mu.Lock()
			starts[input.JobID]++
			mu.Unlock()
			time.Sleep(150 * time.Second)
			return nil
		}
		require.NoError(t, s.AddJobs([]smallben.Job{
			job(1, "* * * * *", withOptions(smallben.RunOptions{}, slow)),
			job(2, "* * * * *", withOptions(smallben.RunOptions{Overlap: smallben.OverlapSkip}, slow)),
			job(3, "* * * * *", withOptions(smallben.RunOptions{Overlap: smallben.OverlapDelay}, slow)),
			job(4, "* * * * *", withOptions(smallben.RunOptions{Overlap: smallben.OverlapAllow}, slow)),
			job(5, "* * * * *", newContextProbe(slow)),
		}))
		pass(6 * time.Minute)
		mu.Lock()
		// Those that skip start in the minutes 1 and 4; the one that is delayed starts
		// the tick of minute 2 at 3:30, and the next at 6:00.
		assert.Equal(t, map[int64]int{1: 2, 2: 2, 3: 3, 4: 6, 5: 2}, starts)
		mu.Unlock()
		require.NoError(t, s.DeleteAll())
		pass(10 * time.Minute)
	})
}

func TestEachJobTimesOutAsItsOptionsSay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{RunTimeout: 10 * time.Second})
		var mu sync.Mutex
		took := make(map[int64]time.Duration)
		bounded := func(ctx context.Context, input smallben.CronJobInput) error {
			begun := time.Now()
			select {
			case <-ctx.Done():
			case <-time.After(time.Minute):
			}
			mu.Lock()
			defer mu.Unlock()
			took[input.JobID] = time.Since(begun)
			return ctx.Err()
		}
		require.NoError(t, s.AddJobs([]smallben.Job{
			job(1, "@hourly", withOptions(smallben.RunOptions{}, bounded)),
			job(2, "@hourly", withOptions(smallben.RunOptions{Timeout: 20 * time.Second}, bounded)),
			job(3, "@hourly", withOptions(smallben.RunOptions{Timeout: -1}, bounded)),
		}))
		pass(time.Hour + time.Minute)
		assert.Equal(t, map[int64]time.Duration{1: 10 * time.Second, 2: 20 * time.Second, 3: time.Minute}, took)
		last, _ := lastRun(t, s, 2)
		assert.Equal(t, smallben.OutcomeTimeout, last.Outcome)
	})
}

func TestOptionsFollowTheValueThatRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		var ended atomic.Int32
		slow := func(ctx context.Context, _ smallben.CronJobInput) error {
			<-ctx.Done()
			ended.Add(1)
			return ctx.Err()
		}
		j := withOptions(smallben.RunOptions{Timeout: time.Second}, slow)
		other := *j
		other.Options.Timeout = 2 * time.Second
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", j)}))
		pass(time.Minute + time.Second)
		assert.EqualValues(t, 1, ended.Load())
		require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, "* * * * *", &other)}))
		pass(time.Minute)
		assert.EqualValues(t, 1, ended.Load())
		pass(time.Second)
		assert.EqualValues(t, 2, ended.Load())
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("*/2 * * * *")}}))
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, 2*time.Second, jobs[0].RunOptions().Timeout)
	})
}

func TestPermanentKeepsTheError(t *testing.T) {
	t.Parallel()
	assert.NoError(t, smallben.Permanent(nil))
	err := fmt.Errorf("call: %w", smallben.Permanent(errDown))
	assert.ErrorIs(t, err, errDown)
	assert.EqualError(t, err, "call: the database is down")
	assert.True(t, errors.Is(smallben.Permanent(errDown), errDown))
}

func TestOptionsHoldWhateverIsChangedOfAJob(t *testing.T) {
	all := &smallben.PauseResumeOptions{}
	update := func(option smallben.UpdateOption) func(s *smallben.SmallBen) error {
		option.JobID = 1
		return func(s *smallben.SmallBen) error { return s.UpdateJobs([]smallben.UpdateOption{option}) }
	}
	for name, change := range map[string]func(s *smallben.SmallBen) error{
		"a pause and a resume": func(s *smallben.SmallBen) error { return errors.Join(s.PauseJobs(all), s.ResumeJobs(all)) },
		"a new expression":     update(smallben.UpdateOption{CronExpression: ptr("@monthly")}),
		"a new input":          update(smallben.UpdateOption{JobOtherInputs: &map[string]any{"n": 1}}),
		"a pause, an update and a resume": func(s *smallben.SmallBen) error {
			return errors.Join(s.PauseJobs(all), update(smallben.UpdateOption{CronExpression: ptr("@monthly")})(s), s.ResumeJobs(all))
		},
		"a pause":   func(s *smallben.SmallBen) error { return s.PauseJobs(all) },
		"a restart": func(s *smallben.SmallBen) error { s.Stop(); return s.Start() },
	} {
		for recorded, record := range map[string]bool{"recorded": true, "not recorded": false} {
			t.Run(name+"/"+recorded, func(t *testing.T) {
				eachShared(t, func(t *testing.T, db *database) {
					bounded := make(chan bool, 1)
					j := withOptions(smallben.RunOptions{Timeout: time.Hour}, func(ctx context.Context, _ smallben.CronJobInput) error {
						_, ok := ctx.Deadline()
						bounded <- ok
						return nil
					})
					s := create(t, db.open(t), recordingConfig(func(c *smallben.Config) { c.Runs.Record = record }))
					require.NoError(t, s.Start())
					require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", j)}))
					require.NoError(t, change(s))
					require.NoError(t, s.TriggerJobs(all))
					assert.True(t, <-bounded)
				})
			})
		}
	}
}

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

// place keeps the only place of MaxConcurrentRuns from 10:05 on, for an hour.
func place() smallben.Job {
	return job(1, "5 10 * * *", newProbe(func(*probe, smallben.CronJobInput) { time.Sleep(time.Hour) }))
}

func TestTheNextTickEndsAnAttemptThatWaitsForItsEnd(t *testing.T) {
	for _, overlap := range []smallben.Overlap{smallben.OverlapSkip, smallben.OverlapDelay} {
		t.Run(overlap.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r, j := trying(smallben.RunOptions{Attempts: 2, Backoff: 10 * time.Minute, Overlap: overlap}, always)
				s := started(t, newMemoryRepository(), smallben.SchedulerConfig{MaxConcurrentRuns: 1})
				require.NoError(t, s.AddJobs([]smallben.Job{place(), job(2, "0,8 10 * * *", j)}))
				pass(14 * time.Hour)
				assert.Equal(t, []string{"10:00/1", "10:08/1", "10:08/2"}, r.history(), "10:08 waits for a place, and 10:00/2 for the end of that")
			})
		})
	}
}

func TestATickThatWaitsForAnAttemptStartsThoughANewExpressionEndsThat(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, j := trying(smallben.RunOptions{Attempts: 2, Backoff: 10 * time.Minute, Overlap: smallben.OverlapDelay}, always)
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{MaxConcurrentRuns: 1})
		require.NoError(t, s.AddJobs([]smallben.Job{place(), job(2, "0,20 10 * * *", j)}))
		pass(10*time.Hour + 25*time.Minute)
		assert.EqualValues(t, 1, gauges(t, s)["smallben_runs_waiting"], "10:00/2")
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 2, CronExpression: ptr("@yearly")}}))
		pass(time.Hour)
		assert.Equal(t, []string{"10:00/1", "10:20/1", "10:20/2"}, r.history())
	})
}

func TestAFailureTellsOfNoAttemptThatTheTickThatWaitsForItEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logLines
		r, j := trying(smallben.RunOptions{Attempts: 2, Overlap: smallben.OverlapDelay}, always)
		r.take(2 * time.Minute)
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: lines.logger()})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0,1 10 * * *", j)}))
		pass(11 * time.Hour)
		assert.Equal(t, []string{"10:00/1", "10:01/1", "10:01/2"}, r.history())
		assert.Len(t, lines.with(`"nextAttempt"`), 1)
		s.Stop()
	})
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

func TestStopSaysOfAttemptsThatWaitForMoreThanTheirTimeThatTheyAreDropped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logLines
		options := smallben.RunOptions{Attempts: 2, Backoff: 10 * time.Minute, Overlap: smallben.OverlapDelay}
		r, j := trying(options, always)
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: lines.logger(), SchedulerConfig: smallben.SchedulerConfig{MaxConcurrentRuns: 1}})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{place(), job(2, "0 10 * * *", j), job(3, "0,8 10 * * *", j)}))
		pass(10*time.Hour + 15*time.Minute)
		assert.EqualValues(t, 2, gauges(t, s)["smallben_runs_waiting"], "10:00/2 of job 2, and 10:08 of job 3, whose 10:00/2 waits for that")
		s.Stop()
		dropped := lines.with("attempts dropped")
		require.Len(t, dropped, 1)
		assert.Contains(t, dropped[0], `"count"=2 "jobs"="2, 3"`)
		assert.Equal(t, []string{"10:00/1", "10:00/1"}, r.history())
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

// attemptsOf lists tick, attempt and outcome of recorded runs, the oldest first.
func attemptsOf(runs []smallben.Run) (listed []string) {
	for i := len(runs) - 1; i >= 0; i-- {
		listed = append(listed, fmt.Sprintf("%s/%d %s", runs[i].Tick.Format("15:04"), runs[i].Attempt, runs[i].Outcome))
	}
	return listed
}

func listRuns(t testing.TB, s *smallben.SmallBen) []smallben.Run {
	t.Helper()
	runs, err := s.ListRuns(nil)
	require.NoError(t, err)
	return runs
}

func TestARecordedRunThatFailsIsTriedAgainByOneOfTheProcesses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		all := processes(t, recorder, 3, rarelyInSync)
		r, j := trying(smallben.RunOptions{Attempts: 4, Backoff: 10 * time.Minute}, func(input smallben.CronJobInput) error {
			if input.Attempt < 3 {
				return errDown
			}
			return nil
		})
		require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "0 0 10 * * *", j)}))
		pass(10*time.Hour + time.Minute)
		runs := listRuns(t, all[1])
		assert.Equal(t, []string{"10:00/1 error", "10:00/2 waiting"}, attemptsOf(runs))
		waited := runs[0].Due.Sub(runs[1].End)
		assert.GreaterOrEqual(t, waited, 10*time.Minute)
		assert.LessOrEqual(t, waited, 12*time.Minute)
		pass(10 * time.Hour)
		assert.Equal(t, []string{"10:00/1 error", "10:00/2 error", "10:00/3 ok"}, attemptsOf(listRuns(t, all[2])))
		times := r.times()
		assert.Equal(t, []string{"10:00/1", "10:00/2", "10:00/3"}, r.history())
		assert.InDelta(t, waited.Seconds(), times[1].Sub(times[0]).Seconds(), 3)
	})
}

func TestARecordedAttemptEndsWithWhatItIsFor(t *testing.T) {
	for name, c := range map[string]struct {
		fails func(smallben.CronJobInput) error
		end   func(s *smallben.SmallBen) error
		want  []string
	}{
		"every attempt fails": {always, nil, []string{"10:00/1 error", "10:00/2 error", "10:00/3 error"}},
		"permanent":           {func(smallben.CronJobInput) error { return smallben.Permanent(errDown) }, nil, []string{"10:00/1 error"}},
		"a pause":             {always, (*smallben.SmallBen).PauseAll, []string{"10:00/1 error", "10:00/2 skipped"}},
		"a deletion":          {always, (*smallben.SmallBen).DeleteAll, []string{"10:00/1 error", "10:00/2 skipped"}},
		"a new expression": {always, func(s *smallben.SmallBen) error {
			return s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("0 0 9 * * *")}})
		}, []string{"10:00/1 error", "10:00/2 skipped"}},
		"a new input": {always, func(s *smallben.SmallBen) error {
			return s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"n": 1}}})
		}, []string{"10:00/1 error", "10:00/2 error", "10:00/3 error"}},
		"a restart": {always, func(s *smallben.SmallBen) error {
			s.Stop()
			return s.Start()
		}, []string{"10:00/1 error", "10:00/2 error", "10:00/3 error"}},
		"a restart after it was due": {always, func(s *smallben.SmallBen) error {
			s.Stop()
			time.Sleep(3 * time.Hour)
			return s.Start()
		}, []string{"10:00/1 error", "10:00/2 error", "10:00/3 error"}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := processes(t, newMemoryRecorder(), 1, rarelyInSync)[0]
				_, j := trying(smallben.RunOptions{Attempts: 3, Backoff: time.Hour}, c.fails)
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 0 10 * * *", j)}))
				pass(10*time.Hour + time.Minute)
				if c.end != nil {
					require.NoError(t, c.end(s))
				}
				pass(9 * time.Hour)
				assert.Equal(t, c.want, attemptsOf(listRuns(t, s)))
			})
		})
	}
}

func TestTheNextTickEndsTheRecordedAttemptsOfTheOneBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		all := processes(t, newMemoryRecorder(), 2)
		_, j := trying(smallben.RunOptions{Attempts: 3, Backoff: 25 * time.Minute, MaxBackoff: 40 * time.Minute}, always)
		require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "0 0 1,2 * * *", j)}))
		pass(2*time.Hour + time.Minute)
		assert.Equal(t, []string{"01:00/1 error", "01:00/2 error", "01:00/3 skipped", "02:00/1 error", "02:00/2 waiting"}, attemptsOf(listRuns(t, all[0])))
	})
}

func TestATickThatIsSkippedEndsNoAttempt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := processes(t, newMemoryRecorder(), 1)[0]
		r, j := trying(smallben.RunOptions{Overlap: smallben.OverlapSkip, Attempts: 2}, always)
		r.take(90 * time.Minute)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 0 1,2 * * *", j)}))
		pass(5 * time.Hour)
		assert.Equal(t, []string{"01:00/1 error", "01:00/2 error", "02:00/1 skipped"}, attemptsOf(listRuns(t, s)))
	})
}

func TestALostRunCountsAsAnAttempt(t *testing.T) {
	for _, attempts := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(attempts), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				s := processes(t, recorder, 2)[0]
				_, j := trying(smallben.RunOptions{Attempts: attempts}, always)
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 0 1 * * *", j)}))
				time.Sleep(time.Hour - time.Second)
				claimAsOneThatIsGone(t, recorder, ledger.Key{JobID: 1, Tick: time.Now().UTC().Add(time.Second), Attempt: 1})
				pass(time.Hour)
				want := []string{"01:00/1 lost", "01:00/2 error", "01:00/3 error"}[:attempts]
				assert.Equal(t, want, attemptsOf(listRuns(t, s)))
			})
		})
	}
}

func TestALostRunIsNotTriedAgainWhenALaterTickHasStarted(t *testing.T) {
	for name, c := range map[string]struct {
		options smallben.RunOptions
		rerun   bool
		want    []string
	}{
		"attempts":               {smallben.RunOptions{Attempts: 3}, false, []string{"01:00/1 lost", "01:00/1 ok"}},
		"attempts and RerunLost": {smallben.RunOptions{Attempts: 3}, true, []string{"01:00/1 lost", "01:00/1 ok"}},
		"RerunLost alone":        {smallben.RunOptions{}, true, []string{"01:00/1 lost", "01:00/2 ok", "01:00/1 ok"}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				s := processes(t, recorder, 1, func(config *smallben.Config) { config.Runs.RerunLost = c.rerun })[0]
				_, j := trying(c.options, func(smallben.CronJobInput) error { return nil })
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0,10 0 1 * * *", j)}))
				time.Sleep(time.Hour - time.Second)
				claimAsOneThatIsGone(t, recorder, ledger.Key{JobID: 1, Tick: time.Now().UTC().Add(time.Second), Attempt: 1})
				pass(time.Hour)
				assert.Equal(t, c.want, attemptsOf(listRuns(t, s)))
			})
		})
	}
}

// claimAsOneThatIsGone has a process that shows no heartbeats claim a run of job 1, which is
// lost after a while.
func claimAsOneThatIsGone(t *testing.T, recorder *memoryRecorder, key ledger.Key) {
	t.Helper()
	require.NoError(t, recorder.Join("gone"))
	changes, err := recorder.Changes(0, nil)
	require.NoError(t, err)
	results, err := recorder.Claim("gone", []ledger.Claim{{Key: key, Revision: smallben.Revision(changes.Jobs[0])}})
	require.NoError(t, err)
	require.Equal(t, []ledger.Result{ledger.Won}, results)
}

func TestALostRunIsTriedAgainByAProcessThatKnowsItsType(t *testing.T) {
	for name, c := range map[string]struct {
		options   smallben.RunOptions
		rerunLost bool
		want      []string
	}{
		"attempts":              {smallben.RunOptions{Attempts: 3}, false, []string{"01:00/1 lost", "01:00/2 error", "01:00/3 error"}},
		"no attempts":           {smallben.RunOptions{}, false, []string{"01:00/1 lost", "01:00/2 skipped"}},
		"lost runs run again":   {smallben.RunOptions{}, true, []string{"01:00/1 lost", "01:00/2 error"}},
		"attempts of lost runs": {smallben.RunOptions{Attempts: 3}, true, []string{"01:00/1 lost", "01:00/2 error", "01:00/3 error"}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				rerun := func(config *smallben.Config) { config.Runs.RerunLost = c.rerunLost }
				_, j := trying(c.options, always)
				author := processes(t, recorder, 1, rerun)[0]
				require.NoError(t, author.AddJobs([]smallben.Job{job(1, "0 0 0 1 6 *", j)}))
				pass(time.Hour)
				author.Stop()
				claimAsOneThatIsGone(t, recorder, ledger.Key{JobID: 1, Tick: time.Now().UTC(), Triggered: true, Attempt: 1})
				setBuild(j.Key, func() smallben.RunOptions { panic("a version that does not know the type") })
				older := processes(t, recorder, 1, rerun)[0]
				pass(time.Minute)
				assert.Equal(t, []string{"01:00/1 lost", "01:00/2 waiting"}, attemptsOf(listRuns(t, older)))
				builds.Delete(j.Key)
				newer := processes(t, recorder, 1, rerun)[0]
				pass(time.Minute)
				assert.Equal(t, c.want, attemptsOf(listRuns(t, newer)))
			})
		})
	}
}

func TestALostRunIsLeftToAProcessThatKnowsTheOptionsOfItsJob(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		_, j := trying(smallben.RunOptions{}, always)
		author := processes(t, recorder, 1)[0]
		require.NoError(t, author.AddJobs([]smallben.Job{job(1, "0 0 0 1 6 *", j)}))
		pass(time.Hour)
		author.Stop()
		claimAsOneThatIsGone(t, recorder, ledger.Key{JobID: 1, Tick: time.Now().UTC(), Triggered: true, Attempt: 1})
		setBuild(j.Key, func() smallben.RunOptions { panic("a version that does not know the type") })
		processes(t, recorder, 1)
		builds.Delete(j.Key)
		pass(time.Second) // the older one would be the first to find it
		newer := processes(t, recorder, 1)[0]
		pass(time.Minute)
		assert.Equal(t, []string{"01:00/1 lost"}, attemptsOf(listRuns(t, newer)), "and no attempt that would be skipped")
	})
}

func TestAnAttemptWaitsForAProcessThatKnowsItsType(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		r, j := trying(smallben.RunOptions{Attempts: 2}, always)
		author := processes(t, recorder, 1)[0]
		require.NoError(t, author.AddJobs([]smallben.Job{job(1, "0 0 0 1 6 *", j)}))
		require.NoError(t, author.TriggerJobs(&smallben.PauseResumeOptions{}))
		pass(time.Second)
		author.Stop()
		setBuild(j.Key, func() smallben.RunOptions { panic("a version that does not know the type") })
		processes(t, recorder, 2)
		pass(time.Hour)
		assert.Equal(t, []string{"00:00/1"}, r.history())
		builds.Delete(j.Key)
		processes(t, recorder, 1)
		pass(10 * time.Second)
		assert.Equal(t, []string{"00:00/2"}, r.history())
	})
}

func TestALostRunOfAPausedJobThatWasTriggeredIsTriedAgain(t *testing.T) {
	for _, attempts := range []int{1, 3} {
		t.Run(fmt.Sprint(attempts), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				s := processes(t, recorder, 1)[0]
				r, j := trying(smallben.RunOptions{Attempts: attempts}, always)
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", j)}))
				require.NoError(t, s.PauseAll())
				pass(time.Minute)
				claimAsOneThatIsGone(t, recorder, ledger.Key{JobID: 1, Tick: time.Now().UTC(), Triggered: true, Attempt: 1})
				pass(5 * time.Minute)
				assert.Equal(t, []string{"00:01/2", "00:01/3"}[:attempts-1], append([]string{}, r.history()...))
			})
		})
	}
}

func TestOverlapAndMissedTicksFollowTheOptionsOfEachJob(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := processes(t, recorder, 1, func(c *smallben.Config) { c.Runs.Missed = smallben.MissedRunOnce })[0]
		options := map[int64]smallben.RunOptions{
			1: {},
			2: {Missed: smallben.MissedSkip},
			3: {Missed: smallben.MissedRunAll},
			4: {MissedWithin: 2 * time.Hour},
			5: {Missed: smallben.MissedRunAll, MissedWithin: 150 * time.Minute},
			6: {Missed: smallben.MissedRunAll, MissedWithin: time.Minute},
		}
		made := make(map[int64]*tries)
		for id, o := range options {
			r, j := trying(o, func(smallben.CronJobInput) error { return nil })
			made[id] = r
			require.NoError(t, s.AddJobs([]smallben.Job{job(id, "0 0 * * * *", j)}))
		}
		pass(30 * time.Minute)
		s.Stop()
		pass(5 * time.Hour) // to 5:30
		require.NoError(t, s.Start())
		pass(10 * time.Minute)
		ran := make(map[int64][]string)
		for id, r := range made {
			ran[id] = r.history()
		}
		assert.Equal(t, map[int64][]string{
			1: {"05:00/1"},
			2: nil,
			3: {"01:00/1", "02:00/1", "03:00/1", "04:00/1", "05:00/1"},
			4: {"05:00/1"},
			5: {"04:00/1", "05:00/1"},
			6: nil,
		}, ran)
		for id, count := range map[int64]int{1: 4, 2: 5, 3: 0, 4: 4, 5: 3, 6: 5} {
			runs, err := s.ListRuns(&smallben.ListRunsOptions{JobIDs: []int64{id}})
			require.NoError(t, err)
			assert.Equal(t, count, outcomes(runs)[smallben.OutcomeMissed], "job %d", id)
		}
	})
}

func TestAnAttemptSurvivesARestartOnEitherDatabase(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		open := func() *smallben.SmallBen {
			s := create(t, db.open(t), recordingConfig(func(c *smallben.Config) { c.Runs.SyncInterval = 50 * time.Millisecond }))
			require.NoError(t, s.Start())
			return s
		}
		var ran atomic.Int64
		failed, succeeded := make(chan int, 10), make(chan int, 10)
		j := withOptions(smallben.RunOptions{Overlap: smallben.OverlapSkip, Attempts: 5, Backoff: 300 * time.Millisecond}, func(_ context.Context, input smallben.CronJobInput) error {
			ran.Add(1)
			if input.Attempt < 3 {
				failed <- input.Attempt
				return errDown
			}
			succeeded <- input.Attempt
			return nil
		})
		first := open()
		require.NoError(t, first.AddJobs([]smallben.Job{job(1, "@yearly", j)}))
		require.NoError(t, first.TriggerJobs(&smallben.PauseResumeOptions{}))
		require.Equal(t, 1, <-failed)
		first.Stop()
		assert.Equal(t, []smallben.Outcome{smallben.OutcomeWaiting, smallben.OutcomeError}, outcomesOf(listRuns(t, first)))
		second, third := open(), open()
		require.Equal(t, 2, <-failed)
		require.Equal(t, 3, <-succeeded)
		second.Stop()
		third.Stop()
		runs := listRuns(t, first)
		require.Equal(t, []smallben.Outcome{smallben.OutcomeOK, smallben.OutcomeError, smallben.OutcomeError}, outcomesOf(runs))
		// It waits for 600 ms, by the clock of the database, which a busy machine reads with
		// some error. Without a backoff it would wait for a sweep at most.
		assert.Greater(t, runs[0].Start.Sub(runs[1].End), 300*time.Millisecond, "not before its time")
		assert.EqualValues(t, 3, ran.Load())
	})
}

func outcomesOf(runs []smallben.Run) (found []smallben.Outcome) {
	for i := range runs {
		found = append(found, runs[i].Outcome)
	}
	return found
}

// Each option, on both databases, with and without a record of runs, of a job that was
// added by a program which has ended.

// replicas are SmallBens on one database, as several processes: two where runs are
// recorded, and else one. Their job 1 was stored by a program that has ended.
type replicas struct {
	all    []*smallben.SmallBen
	config *smallben.Config
	db     *database
}

// restarted lets a program add a job and end, and starts others.
func restarted(t *testing.T, db *database, record bool, scheduler smallben.SchedulerConfig, expression string, j smallben.CronJob) *replicas {
	t.Helper()
	config := recordingConfig(func(c *smallben.Config) {
		c.SchedulerConfig = scheduler
		c.Runs.Record, c.Runs.SyncInterval = record, 50*time.Millisecond
	})
	r := &replicas{config: config, db: db}
	author := r.create(t)
	require.NoError(t, author.Start())
	require.NoError(t, author.AddJobs([]smallben.Job{job(1, expression, j)}))
	author.Stop()
	for range r.processes() {
		r.all = append(r.all, r.create(t))
	}
	return r
}

func (r *replicas) processes() int {
	if r.config.Runs.Record {
		return 2
	}
	return 1
}

func (r *replicas) create(t *testing.T) *smallben.SmallBen {
	s := create(t, r.db.open(t), r.config)
	if r.config.Runs.Record {
		timing := insides.Timing(s)
		timing.SweepEvery, timing.MissedAfter = 100*time.Millisecond, 100*time.Millisecond
	}
	return s
}

func (r *replicas) start(t *testing.T) {
	t.Helper()
	for _, s := range r.all {
		require.NoError(t, s.Start())
	}
}

// trigger triggers the job through the nth of them.
func (r *replicas) trigger(t *testing.T, n int) {
	t.Helper()
	require.NoError(t, r.all[n%len(r.all)].TriggerJobs(&smallben.PauseResumeOptions{}))
}

func (r *replicas) stop() {
	for _, s := range r.all {
		s.Stop()
	}
}

// eachWay runs a test on both databases, with and without a record.
func eachWay(t *testing.T, test func(t *testing.T, db *database, record bool)) {
	eachShared(t, func(t *testing.T, db *database) { test(t, db, true) })
	for name, open := range map[string]func(t testing.TB) *database{"SQLite": newSQLiteWAL, "PostgreSQL": newPostgres} {
		t.Run(name+" without a record", func(t *testing.T) {
			t.Parallel()
			test(t, open(t), false)
		})
	}
}

func TestOverlapHoldsAfterARestartAndAcrossProcesses(t *testing.T) {
	for overlap, scheduler := range map[smallben.Overlap]smallben.SchedulerConfig{
		smallben.OverlapAllow: {SkipIfStillRunning: true},
		smallben.OverlapSkip:  {DelayIfStillRunning: true},
		smallben.OverlapDelay: {SkipIfStillRunning: true},
	} {
		t.Run(overlap.String(), func(t *testing.T) {
			eachWay(t, func(t *testing.T, db *database, record bool) {
				started, goOn := make(chan struct{}, 9), make(chan struct{}, 9)
				r := restarted(t, db, record, scheduler, "@yearly", withOptions(smallben.RunOptions{Overlap: overlap}, func(context.Context, smallben.CronJobInput) error {
					started <- struct{}{}
					<-goOn
					return nil
				}))
				r.start(t)
				r.trigger(t, 0)
				<-started
				r.trigger(t, 1)
				if overlap == smallben.OverlapAllow {
					<-started
				}
				assert.Empty(t, started)
				goOn <- struct{}{}
				if overlap == smallben.OverlapDelay {
					<-started
				}
				goOn <- struct{}{}
				r.stop()
				assert.Empty(t, started)
			})
		})
	}
}

func TestTimeoutHoldsAfterARestart(t *testing.T) {
	for name, c := range map[string]struct {
		timeout, runTimeout time.Duration
		want                error
	}{
		"an own one":      {time.Millisecond, time.Hour, context.DeadlineExceeded},
		"none":            {-1, time.Nanosecond, nil},
		"the scheduler's": {0, time.Millisecond, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, db *database, record bool) {
				ended := make(chan error, 1)
				r := restarted(t, db, record, smallben.SchedulerConfig{RunTimeout: c.runTimeout}, "@yearly",
					withOptions(smallben.RunOptions{Timeout: c.timeout}, func(ctx context.Context, _ smallben.CronJobInput) error {
						if _, ok := ctx.Deadline(); ok {
							<-ctx.Done()
						}
						ended <- ctx.Err()
						return nil
					}))
				r.start(t)
				r.trigger(t, 1)
				assert.ErrorIs(t, <-ended, c.want)
			})
		})
	}
}

func TestAttemptsAndTheirBackoffHoldAfterARestartAndAcrossProcesses(t *testing.T) {
	eachWay(t, func(t *testing.T, db *database, record bool) {
		const backoff, most = 600 * time.Millisecond, 800 * time.Millisecond
		options := smallben.RunOptions{Attempts: 3, Backoff: backoff, MaxBackoff: most}
		begun, ended := make(chan time.Time, 9), make(chan time.Time, 9)
		r := restarted(t, db, record, smallben.SchedulerConfig{}, "@yearly", withOptions(options, func(context.Context, smallben.CronJobInput) error {
			begun <- time.Now()
			ended <- time.Now()
			return errDown
		}))
		r.start(t)
		r.trigger(t, 0)
		<-begun
		for _, wait := range []time.Duration{backoff, most} {
			before := <-ended
			const clockError = backoff / 2 // of the database's clock, as a busy machine reads it
			assert.Greater(t, (<-begun).Sub(before), wait-clockError)
		}
		<-ended
		r.stop()
		assert.Empty(t, begun)
		if record {
			assert.Equal(t, []smallben.Outcome{smallben.OutcomeError, smallben.OutcomeError, smallben.OutcomeError}, outcomesOf(listRuns(t, r.all[1])))
		}
	})
}

func TestMissedTicksAreMadeUpForAfterARestartAsTheOptionsSay(t *testing.T) {
	const day = 24 * time.Hour
	for name, c := range map[string]struct {
		options smallben.RunOptions
		runs    func(missed int) int
	}{
		"skip":                      {smallben.RunOptions{Missed: smallben.MissedSkip}, func(int) int { return 0 }},
		"run once":                  {smallben.RunOptions{Missed: smallben.MissedRunOnce}, func(int) int { return 1 }},
		"run all":                   {smallben.RunOptions{Missed: smallben.MissedRunAll}, func(missed int) int { return missed }},
		"run all, within a day":     {smallben.RunOptions{Missed: smallben.MissedRunAll, MissedWithin: day}, func(int) int { return 1 }},
		"run once, within a moment": {smallben.RunOptions{Missed: smallben.MissedRunOnce, MissedWithin: 1}, func(int) int { return 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, db *database, record bool) {
				ran := make(chan struct{}, 9)
				r := restarted(t, db, record, smallben.SchedulerConfig{}, "@daily", withOptions(c.options, func(context.Context, smallben.CronJobInput) error {
					ran <- struct{}{}
					return nil
				}))
				now := time.Now().UTC()
				since := now.Add(-3*day - day/2)
				missed := int(now.Truncate(day).Sub(since.Truncate(day)) / day) // midnights
				db.exec(t, "UPDATE jobs SET created_at = '2020-01-01 00:00:00+00:00'")
				if !record {
					r.start(t)
					r.stop()
					assert.Empty(t, ran, "without a record nobody knows")
					return
				}
				db.exec(t, fmt.Sprintf("UPDATE smallben_job_state SET accounted_until = %d", since.UnixMicro()))
				r.start(t)
				want := c.runs(missed)
				for range want {
					<-ran
				}
				counted := func() int { return outcomes(listRuns(t, r.all[0]))[smallben.OutcomeMissed] }
				if want == 0 {
					require.Eventually(t, func() bool { return counted() == missed }, time.Minute, 20*time.Millisecond)
				}
				r.stop()
				assert.Empty(t, ran)
				assert.Equal(t, missed-want, counted())
			})
		})
	}
}

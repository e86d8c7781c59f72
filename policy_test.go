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

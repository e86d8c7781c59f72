package smallben_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/insides"
)

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
		const backoff, most = 200 * time.Millisecond, 250 * time.Millisecond
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
			const clockError = 20 * time.Millisecond // of the database's clock
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
					require.Eventually(t, func() bool { return counted() == missed }, 10*time.Second, 20*time.Millisecond)
				}
				r.stop()
				assert.Empty(t, ran)
				assert.Equal(t, missed-want, counted())
			})
		})
	}
}

package smallben_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/ledger"
)

// Rule 19.

// onLine is a logger that calls a function once, for the first line that holds part.
func onLine(part string, call func()) logr.Logger {
	var called atomic.Bool
	return funcr.NewJSON(func(line string) {
		if strings.Contains(line, part) && !called.Swap(true) {
			call()
		}
	}, funcr.Options{})
}

// eachLine is a logger that calls a function for each line that holds part.
func eachLine(part string, call func()) logr.Logger {
	return funcr.NewJSON(func(line string) {
		if strings.Contains(line, part) {
			call()
		}
	}, funcr.Options{})
}

func TestASinkMayChangeJobsFromTheLineOfATriggerThatWasSkipped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		release := make(chan struct{})
		slow := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		one := create(t, recorder, recordingConfig(skipBusy))
		require.NoError(t, one.Start())
		require.NoError(t, one.AddJobs([]smallben.Job{job(1, "@yearly", slow)}))
		require.NoError(t, one.TriggerJobs(&smallben.PauseResumeOptions{}))
		var two *smallben.SmallBen
		paused := make(chan error, 1)
		two = create(t, recorder, recordingConfig(skipBusy, func(c *smallben.Config) {
			c.Logger = onLine("still running", func() { paused <- two.PauseJobs(&smallben.PauseResumeOptions{}) })
		}))
		require.NoError(t, two.Start())
		require.NoError(t, two.TriggerJobs(&smallben.PauseResumeOptions{}))
		require.NoError(t, <-paused)
		require.NoError(t, two.AddJobs([]smallben.Job{job(2, "@yearly", idle())}))
		close(release)
	})
}

func TestASinkMayChangeJobsFromTheLineOfAStartThatFailed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		var s *smallben.SmallBen
		added := make(chan error, 1)
		s = create(t, recorder, recordingConfig(func(c *smallben.Config) {
			c.Logger = onLine("was not left", func() { added <- s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}) })
		}))
		recorder.failNext("Changes", errors.New("away"))
		recorder.failNext("Leave", errors.New("away"))
		require.Error(t, s.Start())
		require.NoError(t, <-added)
		require.NoError(t, s.Start())
		checkEntries(t, s, recorder)
	})
}

func TestASinkMayChangeJobsFromTheLineOfAChange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		var s *smallben.SmallBen
		s = create(t, repository, &smallben.Config{Logger: onLine("jobs added", func() {
			assert.NoError(t, s.AddJobs([]smallben.Job{job(2, "@yearly", idle())}))
		})})
		require.NoError(t, s.Start())
		begin := time.Now()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}))
		assert.Zero(t, time.Since(begin), "nobody waits for oneself")
		checkInvariant(t, s, repository)
	})
}

func TestLinesOfACallAreSeenWhenItReturnsAndInTheirOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logLines
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: lines.logger()})
		require.NoError(t, s.Start())
		require.Len(t, lines.with("started"), 1)
		for id := range int64(10) {
			require.NoError(t, s.AddJobs([]smallben.Job{job(id+1, "@yearly", idle())}))
			require.Len(t, lines.with("jobs added"), int(id+1))
		}
		s.Stop()
		require.Len(t, lines.with("stopped"), 1)
	})
}

func TestASinkThatBlocksDelaysOneCallByASecond(t *testing.T) {
	bubble(t, func(t *testing.T) {
		block := make(chan struct{})
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: eachLine("", func() { <-block })})
		begin := time.Now()
		require.NoError(t, s.Start())
		assert.Equal(t, time.Second, time.Since(begin))
		for id := range int64(10) {
			require.NoError(t, s.AddJobs([]smallben.Job{job(id+1, "@yearly", idle())}))
		}
		assert.Equal(t, time.Second, time.Since(begin), "no other call waits while one blocks")
		close(block)
		synctest.Wait()
	})
}

// The lines are logged before claimed runs are started, by what starts them.
func TestASinkThatBlocksHoldsUpNeitherClaimedRunsNorStop(t *testing.T) {
	for _, line := range []string{"runs lost", "ticks missed"} {
		t.Run(line, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				block := make(chan struct{})
				recorder := newMemoryRecorder()
				s := create(t, recorder, recordingConfig(runOnce, skipBusy, func(c *smallben.Config) {
					c.Runs.RerunLost = true
					c.Logger = onLine(line, func() { <-block })
				}))
				require.NoError(t, s.Start())
				runs := newRecorder()
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", runs), job(2, "30 * * * * *", idle())}))
				pass(59 * time.Second)
				switch begin := time.Now().UTC().Add(time.Second); line {
				case "runs lost": // another process takes the tick, and dies
					require.NoError(t, recorder.Join("gone"))
					changes, err := recorder.Changes(0, []int64{1})
					require.NoError(t, err)
					_, err = recorder.Claim("gone", []ledger.Claim{{Key: ledger.Key{JobID: 1, Tick: begin, Attempt: 1},
						Revision: smallben.Revision(changes.Jobs[0]), Overlap: ledger.Skip}})
					require.NoError(t, err)
				case "ticks missed":
					recorder.away(true)
					pass(20 * time.Second)
					recorder.away(false)
				}
				pass(3*time.Minute + time.Second/2)
				again := 0
				for _, input := range runs.runs() {
					if input.Attempt == 2 || input.Missed > 0 {
						again++
					}
				}
				assert.Equal(t, 1, again, "what was lost or missed runs")
				begin := time.Now()
				s.Stop()
				assert.LessOrEqual(t, time.Since(begin), 2*time.Second)
				close(block)
				synctest.Wait()
			})
		})
	}
}

func TestASinkThatBlocksDoesNotEndTheClaims(t *testing.T) {
	bubble(t, func(t *testing.T) {
		block := make(chan struct{})
		s := create(t, newMemoryRecorder(), recordingConfig(skipBusy, func(c *smallben.Config) {
			c.Logger = eachLine("run skipped", func() { <-block })
		}))
		require.NoError(t, s.Start())
		runs := newRecorder()
		release := make(chan struct{})
		slow := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", slow), job(2, "0 * * * * *", slow), job(3, "30 * * * * *", runs)}))
		pass(10*time.Minute + time.Second)
		assert.Equal(t, 10, runs.count())
		close(block)
		close(release)
		s.Stop()
	})
}

func TestStopWaitsASecondForTheSinkWhateverFailed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		block := make(chan struct{})
		s := create(t, newMemoryRepository(), &smallben.Config{
			SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true},
			Logger:          eachLine("run failed", func() { <-block }),
		})
		release := make(chan struct{})
		fails := newProbe(func(*probe, smallben.CronJobInput) { <-release; panic("it fails") })
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", fails)}))
		// A run in progress in each of two sessions.
		require.NoError(t, s.Start())
		pass(time.Second + time.Second/10)
		over, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, s.StopContext(over))
		require.NoError(t, s.Start())
		pass(time.Second)
		close(release)
		pass(time.Second / 10)
		begin := time.Now()
		s.Stop()
		assert.Equal(t, time.Second, time.Since(begin))
		close(block)
		synctest.Wait()
	})
}

func TestSkippedTicksAreALineWhenTheyBeginAndOneWhenTheyEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logLines
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: lines.logger(),
			SchedulerConfig: smallben.SchedulerConfig{SkipIfStillRunning: true}})
		require.NoError(t, s.Start())
		var quick atomic.Bool
		slow := newProbe(func(*probe, smallben.CronJobInput) {
			if !quick.Load() {
				time.Sleep(210 * time.Second)
			}
		})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", slow)}))
		pass(18*time.Minute + time.Second)
		begun := lines.with("run skipped")
		require.Len(t, begun, 1, "in eighteen minutes")
		assert.Contains(t, begun[0], `"job"=1`)
		assert.Empty(t, lines.with("keeps up"))
		quick.Store(true) // from the run of minute 21 on
		pass(6 * time.Minute)
		ended := lines.with("keeps up")
		require.Len(t, ended, 1)
		skipped := int(gauges(t, s)["smallben_runs_skipped_total,overlap"])
		assert.Equal(t, 15, skipped)
		assert.Contains(t, ended[0], `"skipped"=15`)
		assert.Len(t, lines.with("run skipped"), 1)
	})
}

func TestTheDefaultLoggerWritesNoStackOfTheCall(t *testing.T) {
	// Not parallel: it sets os.Stderr.
	stderr := os.Stderr
	defer func() { os.Stderr = stderr }()
	read, write, err := os.Pipe()
	require.NoError(t, err)
	os.Stderr = write
	smallben.NewDefaultLogger().Error(errors.New("upstream said 503"), "run failed", "job", 1)
	require.NoError(t, write.Close())
	line, err := io.ReadAll(read)
	require.NoError(t, err)
	assert.Contains(t, string(line), `"upstream said 503"`)
	assert.NotContains(t, string(line), "stacktrace")
	assert.Equal(t, 1, strings.Count(string(line), "\n"))
}

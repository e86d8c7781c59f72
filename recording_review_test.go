package smallben_test

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
)

func runOnce(c *smallben.Config)   { c.Runs.Missed = smallben.MissedRunOnce }
func runAll(c *smallben.Config)    { c.Runs.Missed = smallben.MissedRunAll }
func skipBusy(c *smallben.Config)  { c.SchedulerConfig.SkipIfStillRunning = true }
func unclaimed(c *smallben.Config) { c.Runs.RunUnclaimed = true }

func TestStopDuringATriggerReturns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		runs := newRecorder()
		s := processes(t, recorder, 1)[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", runs)}))
		stopped := make(chan struct{})
		var once sync.Once
		recorder.watch(func(call string, happened bool) {
			if call == "Claim" && happened {
				once.Do(func() {
					go func() { s.Stop(); close(stopped) }()
					time.Sleep(time.Second)
				})
			}
		})
		require.ErrorContains(t, s.TriggerJobs(&smallben.PauseResumeOptions{}), "stopped")
		pass(time.Minute)
		select {
		case <-stopped:
		default:
			t.Error("Stop waits for a run that nobody starts")
		}
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeSkipped: 1}, outcomes(recorder.runs()))
	})
}

func TestMissedTicksOfAReplacedExpressionAreKnownWhileTheJobRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := processes(t, recorder, 1, runOnce, skipBusy)[0]
		release := make(chan struct{})
		slow := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		begin := time.Now()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", slow)}))
		pass(time.Minute + time.Second)
		recorder.away(true)
		pass(5 * time.Minute)
		recorder.away(false)
		pass(time.Second)
		until := time.Now()
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("30 0 0 1 1 *")}}))
		close(release)
		pass(5 * time.Minute)
		checkEveryTickIsRecorded(t, recorder, 1, ticksEvery(time.Minute, begin, until))
	})
}

func TestATickThatIsBeingClaimedWhenItsExpressionIsReplacedIsKnown(t *testing.T) {
	for _, policy := range []smallben.MissedPolicy{smallben.MissedSkip, smallben.MissedRunOnce, smallben.MissedRunAll} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				runs := newRecorder()
				s := processes(t, recorder, 1, func(c *smallben.Config) { c.Runs.Missed = policy })[0]
				begin := time.Now()
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", runs)}))
				pass(4*time.Second + time.Second/2)
				recorder.watch(func(call string, happened bool) {
					if call == "Claim" && !happened {
						time.Sleep(time.Second / 5)
					}
				})
				pass(time.Second/2 + time.Second/10)
				until := time.Now()
				require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("0 0 0 1 1 *")}}))
				pass(3 * time.Minute)
				checkEveryTickIsRecorded(t, recorder, 1, ticksEvery(time.Second, begin, until))
			})
		})
	}
}

func TestADatabaseThatHangsLeavesNoFloodOfOldClaims(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		var latest, started atomic.Int64
		runs := newProbe(func(_ *probe, input smallben.CronJobInput) {
			started.Add(1)
			late := int64(time.Since(input.ScheduledAt))
			for old := latest.Load(); late > old && !latest.CompareAndSwap(old, late); old = latest.Load() {
			}
		})
		s := processes(t, recorder, 1)[0]
		jobs := make([]smallben.Job, 800)
		for i := range jobs {
			jobs[i] = job(int64(i+1), "* * * * * *", runs)
		}
		require.NoError(t, s.AddJobs(jobs))
		pass(2*time.Second + time.Second/2)
		before := started.Load()
		var hangs atomic.Bool
		hangs.Store(true)
		recorder.watch(func(call string, happened bool) {
			if hangs.Load() && !happened {
				time.Sleep(10 * time.Second) // the timeout of the call
				recorder.failNext(call, errAway)
			}
		})
		pass(time.Minute)
		assert.Equal(t, before, started.Load())
		hangs.Store(false)
		pass(15 * time.Second)
		assert.Less(t, time.Duration(latest.Load()), 30*time.Second, "a claim is tried for ten seconds")
		s.Stop()
	})
}

func TestStopDoesNotHammerADatabaseThatIsAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := processes(t, recorder, 1)[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", idle())}))
		pass(time.Second / 2)
		recorder.loseNext("Claim")
		recorder.watch(func(call string, happened bool) {
			if call == "Claim" && happened {
				recorder.away(true)
			} else if call == "Claim" {
				time.Sleep(time.Millisecond) // what a refused connection takes
			}
		})
		pass(time.Second * 6 / 10)
		before := recorder.calls()["Claim"]
		s.Stop()
		assert.Less(t, recorder.calls()["Claim"]-before, 200)
		recorder.away(false)
	})
}

func TestAnUnknownOutcomeOfOpeningTheRecordIsNotForEver(t *testing.T) {
	t.Parallel()
	recorder := newMemoryRecorder()
	s := create(t, recorder, recordingConfig())
	recorder.failNext("OpenRecord", fmt.Errorf("%w: the connection broke", smallben.ErrOutcomeUnknown))
	require.ErrorIs(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}), smallben.ErrOutcomeUnknown)
	assert.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
}

// A database that fails over to a copy may be a little older than it was.
func TestJobsRunOnARecordThatHasGoneBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		runs := newRecorder()
		s := processes(t, recorder, 1)[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", runs)}))
		pass(2*time.Second + time.Second/2)
		copied := recorder.contents()
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"n": 1}}}))
		pass(time.Second)
		runs.runs()
		recorder.watch(func(call string, happened bool) {
			if call == "Claim" && !happened {
				time.Sleep(time.Millisecond) // what a call takes
			}
		})
		before := recorder.calls()["Claim"]
		recorder.mu.Lock()
		recorder.record = copied
		recorder.mu.Unlock()
		pass(30 * time.Second)
		assert.GreaterOrEqual(t, runs.count(), 25)
		assert.Less(t, recorder.calls()["Claim"]-before, 300)
		checkEntries(t, s, recorder)
	})
}

func TestAStretchAfterManyRecordedTicksHasItsOwnCount(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := processes(t, recorder, 1)[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", idle())}))
		begin := time.Now()
		s.Stop()
		// Accounts stood still, as while a leader waits for what makes up, and then
		// there was nobody.
		recorder.mu.Lock()
		for _, tick := range ticksEvery(time.Second, begin, begin.Add(9_900*time.Second)) {
			key := smallben.RunKey{JobID: 1, Tick: tick, Attempt: 1}
			recorder.record.runs[key] = smallben.Run{RunKey: key, Process: "ghost", Start: tick, End: tick, Outcome: smallben.OutcomeOK}
		}
		recorder.mu.Unlock()
		pass(10_500*time.Second + time.Second/2)
		require.NoError(t, s.Start())
		pass(3 * time.Minute)
		assert.Equal(t, 600, outcomes(recorder.runs())[smallben.OutcomeMissed])
	})
}

func TestARunOfAProcessThatLeftIsLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		runs := newRecorder()
		s := processes(t, recorder, 2, skipBusy)[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", runs)}))
		pass(50 * time.Second)
		// One whose claim was in doubt until its Stop gave up.
		require.NoError(t, recorder.Join("ghost"))
		changes, err := recorder.Changes(0, nil)
		require.NoError(t, err)
		_, err = recorder.Claim("ghost", []smallben.Claim{{
			RunKey:   smallben.RunKey{JobID: 1, Tick: time.Now().UTC().Truncate(time.Minute), Triggered: true, Attempt: 1},
			Revision: changes.Jobs[0].Revision, Exclusive: true,
		}})
		require.NoError(t, err)
		require.NoError(t, recorder.Leave("ghost"))
		pass(5 * time.Minute)
		assert.Equal(t, 1, outcomes(recorder.runs())[smallben.OutcomeLost])
		assert.NotZero(t, runs.count(), "the running key is free again")
	})
}

func TestRunsThatMakeUpForTicksAndHangDoNotEndTheAccounts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		release := make(chan struct{})
		hang := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		s := processes(t, recorder, 1, runAll)[0]
		jobs := []smallben.Job{job(100, "0 * * * * *", newRecorder())}
		for id := range int64(6) {
			jobs = append(jobs, job(id+1, "* * * * * *", hang))
		}
		begin := time.Now()
		require.NoError(t, s.AddJobs(jobs))
		pass(time.Second / 2)
		away := func() {
			recorder.away(true)
			pass(5 * time.Minute)
			recorder.away(false)
			pass(10 * time.Minute)
		}
		away()
		away()
		checkEveryTickIsRecorded(t, recorder, 100, ticksEvery(time.Minute, begin, time.Now().Add(-2*time.Minute)))
		close(release)
		synctest.Wait()
	})
}

func TestTheEndOfAnUnclaimedRunLeavesOtherMissedTicks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		release := make(chan struct{})
		slow := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		s := processes(t, recorder, 1, unclaimed)[0]
		begin := time.Now()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", slow)}))
		pass(30 * time.Second)
		recorder.away(true)
		pass(5 * time.Minute)
		recorder.away(false)
		pass(5 * time.Minute)
		close(release)
		pass(time.Minute)
		checkEveryTickIsRecorded(t, recorder, 1, ticksEvery(time.Minute, begin, time.Now().Add(-2*time.Minute)))
		assert.Zero(t, outcomes(recorder.runs())[smallben.OutcomeMissed], "all of them ran")
	})
}

// What a process that does not record costs, is what it cost before there was a
// record.
func TestAResumeThatCannotNumberAJobOfAnotherProcessAsksNothingMore(t *testing.T) {
	t.Parallel()
	recorder := newMemoryRecorder()
	one, other := create(t, recorder, &smallben.Config{Logger: quiet}), create(t, recorder, &smallben.Config{Logger: quiet})
	require.NoError(t, one.Start())
	require.NoError(t, other.AddJobs([]smallben.Job{job(1, "@yearly", idle())}))
	before := recorder.calls()
	recorder.failNext("SetCronId", fmt.Errorf("%w: the connection broke", smallben.ErrOutcomeUnknown))
	require.ErrorIs(t, one.ResumeJobs(&smallben.PauseResumeOptions{}), smallben.ErrOutcomeUnknown)
	require.Never(t, func() bool { return gauges(t, one)["smallben_scheduler_unsettled_writes"] > 0 }, 300*time.Millisecond, 10*time.Millisecond)
	after := recorder.calls()
	maps.DeleteFunc(after, func(call string, n int) bool { return n == before[call] })
	assert.Equal(t, map[string]int{"ListJobs": before["ListJobs"] + 1, "SetCronId": before["SetCronId"] + 1}, after)
}

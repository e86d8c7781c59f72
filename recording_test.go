package smallben_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/ledger"
)

// What several processes do with one record: SmallBens that share a
// memoryRecorder, in fake time.

// recordingConfig is one that records.
func recordingConfig(change ...func(*smallben.Config)) *smallben.Config {
	config := &smallben.Config{Logger: quiet, Runs: smallben.RunsConfig{Record: true}}
	config.SchedulerConfig.WithSeconds = true
	for _, change := range change {
		change(config)
	}
	return config
}

// processes starts n SmallBens on one record.
func processes(t testing.TB, recorder smallben.Repository, n int, change ...func(*smallben.Config)) []*smallben.SmallBen {
	t.Helper()
	all := make([]*smallben.SmallBen, n)
	for i := range all {
		all[i] = create(t, recorder, recordingConfig(change...))
		require.NoError(t, all[i].Start())
	}
	return all
}

// outcomes counts the recorded runs by outcome; a stretch of missed ticks counts
// with all of them.
func outcomes(runs []smallben.Run) map[smallben.Outcome]int {
	counts := make(map[smallben.Outcome]int)
	for _, run := range runs {
		if run.Outcome == smallben.OutcomeMissed {
			counts[run.Outcome] += run.Missed
		} else {
			counts[run.Outcome]++
		}
	}
	return counts
}

// ticksOf are the ticks of inputs, in order.
func ticksOf(inputs []smallben.CronJobInput) []time.Time {
	var ticks []time.Time
	for _, input := range inputs {
		ticks = append(ticks, input.ScheduledAt.UTC())
	}
	slices.SortFunc(ticks, time.Time.Compare)
	return ticks
}

// ticksEvery are the instants after one, up to another.
func ticksEvery(step time.Duration, after, until time.Time) []time.Time {
	var ticks []time.Time
	for at := after.Add(step); !at.After(until); at = at.Add(step) {
		ticks = append(ticks, at.UTC())
	}
	return ticks
}

func TestEachTickRunsOnceAcrossProcesses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		all := processes(t, recorder, 3)
		begin := time.Now()
		minutely, secondly := newRecorder(), newRecorder()
		require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "* * * * *", minutely), job(2, "@every 1s", secondly)}))
		pass(5*time.Minute + time.Second/2)
		assert.Equal(t, ticksEvery(time.Minute, begin, time.Now()), ticksOf(minutely.runs()))
		assert.Equal(t, ticksEvery(time.Second, begin, time.Now()), ticksOf(secondly.runs()))
		runs, err := all[1].ListRuns(&smallben.ListRunsOptions{Limit: 10_000})
		require.NoError(t, err)
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeOK: 305}, outcomes(runs))
		for _, run := range runs {
			assert.NotEmpty(t, run.Process)
			assert.Equal(t, 1, run.Attempt)
			assert.Zero(t, run.Lateness())
			assert.False(t, run.End.IsZero())
			assert.Equal(t, time.UTC, run.Tick.Location())
		}
		jobs, err := all[2].ListJobs(nil)
		require.NoError(t, err)
		last := jobs[0].LastRun()
		assert.True(t, begin.Add(5*time.Minute).Equal(last.Tick))
		assert.Equal(t, smallben.OutcomeOK, last.Outcome)
	})
}

func TestAChangeThroughOneProcessHoldsEverywhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		all := processes(t, recorder, 3)
		runs := newRecorder()
		each := func(op func(s *smallben.SmallBen) error) {
			t.Helper()
			for _, s := range all {
				require.NoError(t, op(s))
				for _, s := range all {
					pass(3 * time.Second)
					checkEntries(t, s, recorder)
				}
			}
		}
		one := &smallben.PauseResumeOptions{JobIDs: []int64{1}}
		require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "* * * * * *", runs)}))
		pass(time.Second / 2)
		runs.runs()
		// Between two ticks, with no time for the others to see it.
		for i, s := range all {
			require.NoError(t, s.PauseJobs(one))
			pass(3 * time.Second)
			assert.Zero(t, runs.count())
			require.NoError(t, all[(i+1)%3].ResumeJobs(one))
			pass(3 * time.Second)
			assert.Equal(t, 3, runs.count())
		}
		for i, s := range all {
			require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"n": i}}}))
			pass(3 * time.Second)
			inputs := runs.runs()
			require.Len(t, inputs, 3)
			for _, input := range inputs {
				assert.EqualValues(t, i, input.OtherInputs["n"])
			}
		}
		for i, s := range all {
			require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr(fmt.Sprintf("%d/%d * * * * *", i, i+2))}}))
			runs.runs()
			pass(time.Minute)
			assert.Equal(t, 60/(i+2), runs.count())
		}
		each(func(s *smallben.SmallBen) error {
			return s.UpsertJobs([]smallben.Job{{ID: 1, GroupID: 7, CronExpression: "* * * * * *", Job: runs.probe}})
		})
		runs.runs()
		require.NoError(t, all[2].DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: *one}))
		pass(time.Minute)
		assert.Zero(t, runs.count())
		for _, s := range all {
			checkEntries(t, s, recorder)
		}
		assert.Zero(t, outcomes(recorder.runs())[smallben.OutcomeMissed])
	})
}

// checkEntries is checkInvariant without the cron ids, which each process keeps
// for itself.
func checkEntries(t testing.TB, s *smallben.SmallBen, repository smallben.Repository) {
	t.Helper()
	rows, err := repository.ListJobs(&smallben.ListJobsOptions{Paused: ptr(false)})
	require.NoError(t, err)
	want, got := make(map[int64]string), make(map[int64]string)
	for _, row := range rows {
		want[row.ID] = row.CronExpression + row.SerializedJobInput
	}
	for id, entry := range insides.Entries(s) {
		got[id] = entry.Expression + entry.StoredInput
	}
	assert.Equal(t, want, got)
}

func TestMissedTicksAreRecordedAndRunByThePolicy(t *testing.T) {
	const away = 10 * time.Minute
	for _, test := range []struct {
		policy   smallben.MissedPolicy
		ran      int // of the 600 that were missed, of the job of each second
		recorded int
	}{
		{smallben.MissedSkip, 0, 600},
		{smallben.MissedRunOnce, 1, 599},
		{smallben.MissedRunAll, 100, 500},
	} {
		for _, cause := range []string{"the database was away", "no process was there"} {
			t.Run(fmt.Sprint(test.policy, ", ", cause), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					recorder := newMemoryRecorder()
					policy := func(c *smallben.Config) { c.Runs.Missed = test.policy }
					all := processes(t, recorder, 2, policy)
					runs, none := newRecorder(), newRecorder()
					begin := time.Now()
					require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "* * * * * *", runs), job(2, "0 0 0 1 1 *", none)}))
					pass(time.Minute + time.Second/2)
					require.Len(t, runs.runs(), 60)
					if cause == "no process was there" {
						all[0].Stop()
						all[1].Stop()
						pass(away)
						processes(t, recorder, 2, policy)
					} else {
						recorder.away(true)
						pass(away)
						recorder.away(false)
					}
					back := time.Now()
					pass(5 * time.Minute)
					inputs := runs.runs()
					var late []smallben.CronJobInput
					missed := 0
					for _, input := range inputs {
						if input.Missed > 0 {
							late = append(late, input)
							missed += input.Missed
						}
					}
					counts := outcomes(recorder.runs())
					ticks := len(ticksEvery(time.Second, begin, time.Now()))
					assert.Equal(t, ticks, counts[smallben.OutcomeOK]+counts[smallben.OutcomeMissed], "each tick is known")
					assert.Len(t, late, test.ran)
					if test.ran > 0 {
						assert.Equal(t, missed, test.ran+counts[smallben.OutcomeMissed])
						assert.True(t, slices.IsSortedFunc(late, func(a, b smallben.CronJobInput) int { return a.ScheduledAt.Compare(b.ScheduledAt) }))
						assert.WithinDuration(t, back, late[len(late)-1].ScheduledAt, 35*time.Second)
					}
					// Claims of the last seconds of an outage are still won after it.
					assert.InDelta(t, test.recorded, counts[smallben.OutcomeMissed], 11)
					seen := make(map[time.Time]bool)
					for _, tick := range ticksOf(inputs) {
						assert.False(t, seen[tick], "%v ran twice", tick)
						seen[tick] = true
					}
					assert.Zero(t, none.count())
					checkEveryTickIsRecorded(t, recorder, 1, ticksEvery(time.Second, begin, time.Now().Add(-40*time.Second)))
				})
			})
		}
	}
}

// checkEveryTickIsRecorded requires each tick to have one run or to be in one
// stretch of missed ticks.
func checkEveryTickIsRecorded(t testing.TB, recorder *memoryRecorder, jobID int64, ticks []time.Time) {
	t.Helper()
	times := make(map[time.Time]int)
	for _, run := range recorder.runs() {
		switch {
		case run.JobID != jobID || run.Triggered || run.Attempt > 1:
		case run.Outcome != smallben.OutcomeMissed:
			times[run.Tick.UTC()]++
		default:
			n := 0
			for _, tick := range ticks {
				if !tick.Before(run.FirstTick) && !tick.After(run.Tick) {
					times[tick]++
					n++
				}
			}
			assert.Equal(t, n, run.Missed, "%v", run)
		}
	}
	for _, tick := range ticks {
		assert.Equal(t, 1, times[tick], "%v", tick)
	}
}

func TestALongTimeAwayIsOneStretch(t *testing.T) {
	for policy, ran := range map[smallben.MissedPolicy]int{smallben.MissedSkip: 0, smallben.MissedRunOnce: 1, smallben.MissedRunAll: 100} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				runs := newRecorder()
				s := processes(t, recorder, 1, func(c *smallben.Config) { c.Runs.Missed = policy })[0]
				begin := time.Now()
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", runs)}))
				pass(10*time.Second + time.Second/2)
				s.Stop()
				require.Equal(t, 10, runs.count())
				time.Sleep(365 * 24 * time.Hour)
				require.NoError(t, s.Start())
				back := time.Now()
				pass(3 * time.Minute)
				late, missed := 0, 0
				for _, input := range runs.runs() {
					if input.Missed > 0 {
						late++
						missed += input.Missed
						assert.WithinDuration(t, back.Add(-30*time.Second), input.ScheduledAt, 101*time.Second)
					}
				}
				assert.Equal(t, ran, late)
				var stretches []smallben.Run
				for _, run := range recorder.runs() {
					if run.Outcome == smallben.OutcomeMissed && run.Missed > 60 {
						stretches = append(stretches, run)
					}
				}
				require.Len(t, stretches, 1)
				assert.Equal(t, 10_000, stretches[0].Missed, "that many or more")
				if ran > 0 {
					assert.GreaterOrEqual(t, missed, 10_000+ran)
				}
				assert.True(t, begin.Add(11*time.Second).Equal(stretches[0].FirstTick))
			})
		})
	}
}

func TestALostRunIsKnownAndRunAgainIfWanted(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprint("RerunLost ", again), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				runs := newRecorder()
				all := processes(t, recorder, 2, func(c *smallben.Config) { c.Runs.RerunLost = again })
				require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "0 * * * * *", runs)}))
				// A process that claims the first tick and is never heard of again.
				time.Sleep(59 * time.Second)
				require.NoError(t, recorder.Join("gone"))
				changes, err := recorder.Changes(0, nil)
				require.NoError(t, err)
				tick := time.Now().UTC().Add(time.Second)
				results, err := recorder.Claim("gone", []ledger.Claim{{Key: ledger.Key{JobID: 1, Tick: tick, Attempt: 1}, Revision: smallben.Revision(changes.Jobs[0])}})
				require.NoError(t, err)
				require.Equal(t, []ledger.Result{ledger.Won}, results)
				pass(14 * time.Second)
				assert.Zero(t, runs.count())
				assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeRunning: 1}, outcomes(recorder.runs()), "not yet")
				pass(4 * time.Second)
				listed, err := all[0].ListRuns(&smallben.ListRunsOptions{Outcomes: []smallben.Outcome{smallben.OutcomeLost}})
				require.NoError(t, err)
				require.Len(t, listed, 1)
				assert.Equal(t, "gone", listed[0].Process)
				inputs := runs.runs()
				if !again {
					assert.Empty(t, inputs)
				} else if assert.Len(t, inputs, 1) {
					assert.True(t, tick.Equal(inputs[0].ScheduledAt))
					assert.Equal(t, 2, inputs[0].Attempt)
				}
				lost := gauges(t, all[0])["smallben_runs_lost_total"] + gauges(t, all[1])["smallben_runs_lost_total"]
				assert.EqualValues(t, 1, lost)
				pass(time.Minute)
				assert.Equal(t, 1, runs.count())
			})
		})
	}
}

func TestAnOutageOfTheDatabaseKillsNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		all := processes(t, recorder, 3)
		release := make(chan struct{})
		busy := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "0 * * * * *", busy)}))
		pass(time.Minute + time.Second)
		recorder.away(true)
		pass(5 * time.Minute)
		recorder.away(false)
		pass(2 * time.Second)
		close(release)
		pass(3 * time.Minute)
		counts := outcomes(recorder.runs())
		assert.Zero(t, counts[smallben.OutcomeLost])
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeOK: counts[smallben.OutcomeOK], smallben.OutcomeMissed: counts[smallben.OutcomeMissed]}, counts)
		assert.Equal(t, 9, counts[smallben.OutcomeOK]+counts[smallben.OutcomeMissed])
	})
}

// TestWhatAStallMissedIsMadeUpForByOneRun has every call to the database last as long
// as the stall: nothing fails, as when a process is stopped and goes on.
func TestWhatAStallMissedIsMadeUpForByOneRun(t *testing.T) {
	for _, stall := range []time.Duration{45 * time.Second, 75 * time.Second, time.Hour} {
		for into := time.Duration(0); into < time.Minute; into += 7 * time.Second {
			t.Run(fmt.Sprintf("%v, %v after a whole minute", stall, into), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					recorder := newMemoryRecorder()
					runs := newRecorder()
					s := processes(t, recorder, 1, func(c *smallben.Config) { c.Runs.Missed = smallben.MissedRunOnce })[0]
					require.NoError(t, s.AddJobs([]smallben.Job{job(1, "*/10 * * * * *", runs)}))
					begin := time.Now()
					pass(2*time.Minute + into + time.Second/2)
					resumed := time.Now().Add(stall)
					recorder.watch(func(string, bool) { time.Sleep(time.Until(resumed)) })
					pass(stall + 4*time.Minute)
					madeUp := 0
					for _, input := range runs.runs() {
						if input.Missed > 0 {
							madeUp++
						}
					}
					assert.Equal(t, 1, madeUp)
					checkEveryTickIsRecorded(t, recorder, 1, ticksEvery(10*time.Second, begin, time.Now().Add(-40*time.Second)))
				})
			})
		}
	}
}

func TestAClaimWhoseReplyIsLostIsResolved(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		runs := newRecorder()
		all := processes(t, recorder, 2)
		require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "* * * * * *", runs)}))
		begin := time.Now()
		for range 20 {
			recorder.loseNext("Claim")
			recorder.loseNext("Finish")
			pass(time.Second)
		}
		pass(time.Second / 2)
		assert.Equal(t, ticksEvery(time.Second, begin, time.Now()), ticksOf(runs.runs()))
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeOK: 20}, outcomes(recorder.runs()))
	})
}

func TestRunUnclaimedRunsWhileTheDatabaseIsAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		runs := newRecorder()
		s := processes(t, recorder, 1, func(c *smallben.Config) { c.Runs.RunUnclaimed = true })[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", runs)}))
		begin := time.Now()
		pass(10 * time.Second)
		recorder.away(true)
		pass(20 * time.Second)
		recorder.away(false)
		pass(90*time.Second + time.Second/2)
		assert.Equal(t, ticksEvery(time.Second, begin, time.Now()), ticksOf(runs.runs()))
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeOK: 120}, outcomes(recorder.runs()))
		assert.EqualValues(t, 20, gauges(t, s)["smallben_runs_unclaimed_total"])
	})
}

func TestSkipHoldsAcrossProcesses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		var mu sync.Mutex
		running, most := 0, 0
		slow := newProbe(func(*probe, smallben.CronJobInput) {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(2500 * time.Millisecond)
			mu.Lock()
			running--
			mu.Unlock()
		})
		all := processes(t, recorder, 3, func(c *smallben.Config) { c.SchedulerConfig.SkipIfStillRunning = true })
		require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "* * * * * *", slow)}))
		pass(30*time.Second + time.Second/2)
		assert.Equal(t, 1, most)
		// Runs at 1, 4, 7, …
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeOK: 10, smallben.OutcomeSkipped: 20}, outcomes(recorder.runs()))
		require.NoError(t, all[1].TriggerJobs(&smallben.PauseResumeOptions{}))
		for _, s := range all {
			require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
		}
		pass(time.Second)
		assert.Equal(t, 1, most)
	})
}

func TestTriggeredRunsAreRecorded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		runs := newRecorder()
		all := processes(t, recorder, 2)
		require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "@daily", runs), job(2, "@daily", runs)}))
		require.NoError(t, all[0].PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		pass(3 * time.Second)
		require.NoError(t, all[1].TriggerJobs(&smallben.PauseResumeOptions{}))
		synctest.Wait()
		// At the same instant: each is a run of its own.
		require.NoError(t, all[0].TriggerJobs(&smallben.PauseResumeOptions{}))
		pass(time.Second)
		inputs := runs.runs()
		assert.Len(t, inputs, 4)
		listed, err := all[0].ListRuns(nil)
		require.NoError(t, err)
		require.Len(t, listed, 4)
		for _, run := range listed {
			assert.True(t, run.Triggered)
			assert.Equal(t, smallben.OutcomeOK, run.Outcome)
		}
		for _, input := range inputs {
			assert.True(t, slices.ContainsFunc(listed, func(run smallben.Run) bool { return run.JobID == input.JobID && run.Tick.Equal(input.ScheduledAt) }))
		}
		// What is not recorded does not run.
		recorder.failNext("Claim", errors.New("away"))
		require.ErrorContains(t, all[0].TriggerJobs(&smallben.PauseResumeOptions{}), "away")
		recorder.loseNext("Claim")
		err = all[0].TriggerJobs(&smallben.PauseResumeOptions{})
		require.ErrorContains(t, err, "the reply was lost")
		require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown, "nothing runs, and that is known")
		pass(time.Second)
		assert.Zero(t, runs.count())
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeOK: 4, smallben.OutcomeSkipped: 2}, outcomes(recorder.runs()))
	})
}

func TestASessionThatGivesUpTellsHowManyEndsAreNotRecorded(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		t.Run(map[bool]string{false: "the database is away", true: "the database hangs"}[stuck], func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				var lines logLines
				s := processes(t, recorder, 1, func(c *smallben.Config) { c.Logger = lines.logger() })[0]
				release, answer := make(chan struct{}), make(chan struct{})
				held := newProbe(func(*probe, smallben.CronJobInput) { <-release })
				var jobs []smallben.Job
				for id := range int64(5) {
					jobs = append(jobs, job(id+1, "0 * * * * *", held))
				}
				require.NoError(t, s.AddJobs(jobs))
				pass(time.Minute)
				if stuck {
					recorder.watch(func(call string, _ bool) {
						if call == "Finish" {
							<-answer
						}
					})
				} else {
					recorder.away(true)
				}
				close(release)
				s.Stop()
				given := lines.with("ends of runs were not recorded")
				require.Len(t, given, 1)
				assert.Contains(t, given[0], `"runs"=5`)
				close(answer)
			})
		})
	}
}

func TestASessionThatGivesUpWithAllEndsRecordedTellsOfNone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		var lines logLines
		s := processes(t, recorder, 1, func(c *smallben.Config) { c.Logger = lines.logger() })[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", newRecorder())}))
		answer := make(chan struct{})
		recorder.watch(func(call string, _ bool) {
			if call == "Compare" { // of a sweep
				<-answer
			}
		})
		pass(time.Minute)
		s.Stop()
		assert.Empty(t, lines.with("ends of runs were not recorded"))
		assert.Len(t, lines.with("the record of runs was not left"), 1)
		close(answer)
	})
}

func TestATriggerThatFailsLeavesNothingWaiting(t *testing.T) {
	for name, fail := range map[string]func(recorder *memoryRecorder, s *smallben.SmallBen){
		"the reply of the claim is lost": func(recorder *memoryRecorder, _ *smallben.SmallBen) { recorder.loseNext("Claim") },
		"another job is deleted": func(recorder *memoryRecorder, _ *smallben.SmallBen) {
			recorder.watch(func(call string, happened bool) {
				if call == "Claim" && !happened {
					_ = recorder.DeleteJobsByIds([]int64{2})
				}
			})
		},
		"SmallBen is stopped": func(recorder *memoryRecorder, s *smallben.SmallBen) {
			var once sync.Once
			recorder.watch(func(call string, happened bool) {
				if call == "Claim" && happened {
					once.Do(func() { go s.Stop(); time.Sleep(time.Second) })
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				delay := func(c *smallben.Config) { c.SchedulerConfig.DelayIfStillRunning = true }
				s := processes(t, recorder, 1, delay)[0]
				slow := newProbe(func(*probe, smallben.CronJobInput) { time.Sleep(10 * time.Second) })
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", slow), job(2, "@yearly", newRecorder())}))
				require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
				pass(time.Second)
				fail(recorder, s)
				require.Error(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
				pass(time.Minute)
				processes(t, recorder, 1, delay)
				pass(time.Minute)
				counts := outcomes(recorder.runs())
				assert.Equal(t, 1, counts[smallben.OutcomeOK], "%v", counts)
				assert.Zero(t, counts[smallben.OutcomeWaiting])
			})
		})
	}
}

func TestStopRecordsTheEndsOfRunsAndLeaves(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		all := processes(t, recorder, 2)
		release := make(chan struct{})
		slow := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "0 * * * * *", slow)}))
		pass(time.Minute + time.Second)
		var stopped sync.WaitGroup
		stopped.Go(all[0].Stop)
		stopped.Go(all[1].Stop)
		pass(time.Minute)
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeRunning: 1}, outcomes(recorder.runs()), "its process is alive as long as it runs")
		close(release)
		stopped.Wait()
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeOK: 1}, outcomes(recorder.runs()))
		assert.Empty(t, recorder.contents().processes)
	})
}

func TestWhatCannotBeRecordedIsRefusedByStart(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		repository smallben.Repository
		change     func(*smallben.Config)
		says       string
	}{
		"repository":    {newMemoryRepository(), func(*smallben.Config) {}, "needs a RepositoryGorm, or a repository that embeds one"},
		"interval":      {newMemoryRecorder(), func(c *smallben.Config) { c.Runs.SyncInterval = time.Minute }, "SyncInterval is 1m0s"},
		"retention":     {newMemoryRecorder(), func(c *smallben.Config) { c.Runs.Retention = time.Second }, "Retention is 1s"},
		"policy":        {newMemoryRecorder(), func(c *smallben.Config) { c.Runs.Missed = 7 }, "Missed is 7"},
		"local":         {newMemoryRecorder(), func(c *smallben.Config) { c.SchedulerConfig.WithLocation = time.Local }, "time.Local"},
		"unknown place": {newMemoryRecorder(), func(c *smallben.Config) { c.SchedulerConfig.WithLocation = time.FixedZone("Atlantis", 60) }, `"Atlantis"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := create(t, test.repository, recordingConfig(test.change))
			require.ErrorContains(t, s.Start(), test.says)
			require.ErrorContains(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}), test.says)
			_, err := s.ListRuns(nil)
			require.ErrorContains(t, err, test.says)
		})
	}
	s := create(t, newMemoryRecorder(), &smallben.Config{Logger: quiet})
	_, err := s.ListRuns(nil)
	require.ErrorContains(t, err, "runs are not recorded")
}

func TestAnotherLocationIsRefused(t *testing.T) {
	t.Parallel()
	recorder := newMemoryRecorder()
	rome, err := time.LoadLocation("Europe/Rome")
	require.NoError(t, err)
	first := create(t, recorder, recordingConfig())
	require.NoError(t, first.Start())
	second := create(t, recorder, recordingConfig(func(c *smallben.Config) { c.SchedulerConfig.WithLocation = rome }))
	require.ErrorContains(t, second.Start(), "Europe/Rome")
	third := create(t, recorder, recordingConfig(func(c *smallben.Config) { c.SchedulerConfig.WithLocation = time.UTC }))
	require.NoError(t, third.Start())
}

func TestDelayWaitsWithinAProcess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		slow := newProbe(func(*probe, smallben.CronJobInput) { time.Sleep(2500 * time.Millisecond) })
		s := processes(t, recorder, 1, func(c *smallben.Config) { c.SchedulerConfig.DelayIfStillRunning = true })[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", slow)}))
		// One runs, one waits, further ones are skipped, and all are recorded.
		pass(10*time.Second + time.Second/2)
		// One that waits when its job is paused does not run.
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{}))
		pass(10 * time.Second)
		counts := outcomes(recorder.runs())
		assert.Equal(t, 10, counts[smallben.OutcomeOK]+counts[smallben.OutcomeSkipped])
		assert.Equal(t, 4, counts[smallben.OutcomeOK])
		checkEveryTickIsRecorded(t, recorder, 1, ticksEvery(time.Second, time.Now().Add(-20500*time.Millisecond), time.Now().Add(-10500*time.Millisecond)))
	})
}

func TestAClaimOfARunThatWaitsIsNotLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		held := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		s := processes(t, newMemoryRecorder(), 1, func(c *smallben.Config) { c.SchedulerConfig.DelayIfStillRunning = true })[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", held)}))
		pass(3*time.Minute + time.Second)
		values := gauges(t, s)
		assert.EqualValues(t, 3, values["smallben_claims_total,won"], "one runs, one waits, one is skipped")
		assert.Zero(t, values["smallben_claims_total,lost"])
		close(release)
	})
}

func TestATickThatWaitsWhenItsProcessStopsRunsInAnother(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		slow := newProbe(func(*probe, smallben.CronJobInput) { time.Sleep(1500 * time.Millisecond) })
		delay := func(c *smallben.Config) { c.SchedulerConfig.DelayIfStillRunning = true }
		s := processes(t, recorder, 1, delay)[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", slow)}))
		pass(2*time.Second + time.Second/10)
		s.Stop()
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeOK: 1, smallben.OutcomeWaiting: 1}, outcomes(recorder.runs()))
		waits := recorder.runs()[1]
		processes(t, recorder, 1, delay)
		pass(2 * time.Second)
		ran := recorder.runs()[1]
		assert.Equal(t, waits.Tick, ran.Tick)
		assert.Equal(t, smallben.OutcomeOK, ran.Outcome)
	})
}

func TestAStepBackOfTheClockRunsNoTickTwice(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		release := make(chan struct{})
		runs := newRecorder()
		held := newProbe(func(_ *probe, input smallben.CronJobInput) {
			<-release
		})
		s := create(t, recorder, recordingConfig())
		step := time.Duration(0)
		var mu sync.Mutex
		smallben.SetClock(s, func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(-step)
		})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", runs), job(2, "0 * * * * *", held)}))
		pass(10 * time.Second)
		mu.Lock()
		step = time.Hour
		mu.Unlock()
		pass(5 * time.Minute)
		close(release)
		synctest.Wait()
		seen := make(map[time.Time]int)
		for _, tick := range ticksOf(runs.runs()) {
			seen[tick]++
			assert.Equal(t, 1, seen[tick])
		}
		assert.NotEmpty(t, seen)
	})
}

func TestWritesOfAProcessThatDoesNotRecordAreFound(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		all := processes(t, recorder, 2)
		plain := create(t, struct{ smallben.Repository }{recorder}, &smallben.Config{Logger: quiet})
		runs := newRecorder()
		require.NoError(t, plain.AddJobs([]smallben.Job{job(1, "* * * * *", runs), job(2, "* * * * *", runs)}))
		pass(2 * time.Minute)
		for _, s := range all {
			checkEntries(t, s, recorder)
		}
		require.NoError(t, plain.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		require.NoError(t, plain.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{2}}}))
		runs.runs()
		pass(2 * time.Minute)
		for _, s := range all {
			checkEntries(t, s, recorder)
		}
		assert.Zero(t, runs.count())
	})
}

func TestRunsArePrunedButTheLastOfEachJob(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := processes(t, recorder, 1, func(c *smallben.Config) { c.Runs.Retention = time.Hour })[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", idle()), job(2, "0 30 0 1 1 *", idle())}))
		pass(6 * time.Hour)
		runs, err := s.ListRuns(&smallben.ListRunsOptions{JobIDs: []int64{1}})
		require.NoError(t, err)
		assert.InDelta(t, 60, len(runs), 2)
		last, err := s.ListRuns(&smallben.ListRunsOptions{JobIDs: []int64{2}})
		require.NoError(t, err)
		assert.Len(t, last, 1)
	})
}

func TestAChangeWhoseReplyIsLostHoldsAllTheSame(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		all := processes(t, recorder, 2, func(c *smallben.Config) { c.Runs.Missed = smallben.MissedRunOnce })
		runs := newRecorder()
		require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "* * * * * *", runs)}))
		pass(3*time.Second + time.Second/2)
		recorder.loseNext("Change")
		require.ErrorIs(t, all[0].PauseJobs(&smallben.PauseResumeOptions{}), smallben.ErrOutcomeUnknown)
		runs.runs()
		pass(10 * time.Second)
		assert.Zero(t, runs.count())
		recorder.loseNext("Change")
		require.ErrorIs(t, all[1].ResumeJobs(&smallben.PauseResumeOptions{}), smallben.ErrOutcomeUnknown)
		pass(10 * time.Second)
		assert.Equal(t, 10, runs.count())
		recorder.loseNext("Change")
		require.ErrorIs(t, all[1].UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("*/2 * * * * *")}}), smallben.ErrOutcomeUnknown)
		pass(10 * time.Second)
		assert.Equal(t, 5, runs.count())
		recorder.loseNext("Change")
		require.ErrorIs(t, all[0].DeleteJobs(&smallben.DeleteOptions{}), smallben.ErrOutcomeUnknown)
		pass(10 * time.Second)
		assert.Zero(t, runs.count())
		for _, s := range all {
			checkEntries(t, s, recorder)
			assert.Zero(t, gauges(t, s)["smallben_scheduler_unsettled_writes"])
		}
	})
}

func TestTheTicksOfAnExpressionThatIsReplacedAreKnown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		runs := newRecorder()
		s := processes(t, recorder, 1)[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", runs), job(2, "* * * * * *", runs), job(3, "* * * * * *", runs)}))
		begin := time.Now()
		pass(5*time.Second + time.Second/2)
		recorder.away(true)
		pass(20 * time.Second)
		recorder.away(false)
		// Before anybody else has looked for what was missed.
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("@daily")}}))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{3}}}))
		until := time.Now()
		pass(2 * time.Minute)
		for id := range int64(3) {
			checkEveryTickIsRecorded(t, recorder, id+1, ticksEvery(time.Second, begin, until))
		}
		assert.EqualValues(t, outcomes(recorder.runs())[smallben.OutcomeMissed], gauges(t, s)["smallben_ticks_missed_total"])
	})
}

func TestANewExpressionHasNoTicksBeforeIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, policy := range []smallben.MissedPolicy{smallben.MissedSkip, smallben.MissedRunAll} {
			recorder := newMemoryRecorder()
			runs := newRecorder()
			s := processes(t, recorder, 1, func(c *smallben.Config) { c.Runs.Missed = policy })[0]
			begin := time.Now()
			require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", runs)}))
			pass(10*time.Second + time.Second/2)
			require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("* * * * * *")}}))
			pass(3 * time.Minute)
			assert.Equal(t, ticksEvery(time.Second, begin.Add(10*time.Second), time.Now()), ticksOf(runs.runs()))
			assert.Zero(t, outcomes(recorder.runs())[smallben.OutcomeMissed])
			s.Stop()
			pass(time.Second / 2)
		}
	})
}

func runOnce(c *smallben.Config) { c.Runs.Missed = smallben.MissedRunOnce }

// rarelyInSync saves most of the work of a test that lets hours or days pass.
func rarelyInSync(c *smallben.Config) { c.Runs.SyncInterval = 5 * time.Second }

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
		recorder.away(true)
		recorder.watch(func(call string, happened bool) {
			if hangs.Load() && !happened {
				time.Sleep(10 * time.Second) // the timeout of the call
			}
		})
		pass(time.Minute)
		assert.Equal(t, before, started.Load())
		hangs.Store(false)
		recorder.away(false)
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

// Where the answer comes after Stop gave up, the next heartbeat is due already.
func TestNoHeartbeatBeginsAfterStopGaveUp(t *testing.T) {
	for n := range 10 { // a heartbeat that was due began in every second one
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				s := processes(t, recorder, 1)[0]
				var stopped atomic.Bool
				var late atomic.Int64
				recorder.watch(func(call string, happened bool) {
					if call == "Beat" && !happened {
						if stopped.Load() {
							late.Add(1)
						}
						time.Sleep(30 * time.Second) // as long as a call may take
					}
				})
				pass(3 * time.Second)
				s.Stop()
				stopped.Store(true)
				pass(2 * time.Minute)
				assert.Zero(t, late.Load())
			})
		})
	}
}

func TestAnUnknownOutcomeOfOpeningTheRecordIsNotForEver(t *testing.T) {
	t.Parallel()
	recorder := newMemoryRecorder()
	s := create(t, recorder, recordingConfig())
	recorder.failNext("Open", fmt.Errorf("%w: the connection broke", smallben.ErrOutcomeUnknown))
	err := s.AddJobs([]smallben.Job{job(1, "@daily", idle())})
	require.ErrorContains(t, err, "the connection broke")
	require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown, "the change was not tried")
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
			key := ledger.Key{JobID: 1, Tick: tick, Attempt: 1}
			recorder.record.runs[key] = ledger.Run{Key: key, Process: "gone", Start: tick, End: tick, Outcome: ledger.Outcome(smallben.OutcomeOK)}
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
		require.NoError(t, recorder.Join("gone"))
		changes, err := recorder.Changes(0, nil)
		require.NoError(t, err)
		_, err = recorder.Claim("gone", []ledger.Claim{{
			Key:      ledger.Key{JobID: 1, Tick: time.Now().UTC().Truncate(time.Minute), Triggered: true, Attempt: 1},
			Revision: smallben.Revision(changes.Jobs[0]), Overlap: ledger.Skip,
		}})
		require.NoError(t, err)
		require.NoError(t, recorder.Leave("gone"))
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
		for id := range int64(6) { // due in each second of the minutes that are missed
			jobs = append(jobs, job(id+1, "TZ=UTC * 0-4,11-15 * * * *", hang))
		}
		begin := time.Now()
		require.NoError(t, s.AddJobs(jobs))
		pass(time.Second / 2)
		away := func() {
			recorder.away(true)
			pass(5 * time.Minute)
			recorder.away(false)
			pass(6 * time.Minute)
		}
		away()
		away()
		counts := outcomes(recorder.runs())
		assert.NotZero(t, counts[smallben.OutcomeRunning])
		assert.Greater(t, counts[smallben.OutcomeWaiting], 1000)
		checkEveryTickIsRecorded(t, recorder, 100, ticksEvery(time.Minute, begin, time.Now().Add(-2*time.Minute)))
		close(release)
		synctest.Wait()
	})
}

func TestARunWithoutAClaimDoesNotWaitInTheRecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		delay := func(c *smallben.Config) { c.SchedulerConfig.DelayIfStillRunning = true }
		s := processes(t, recorder, 1, delay, unclaimed)[0]
		processes(t, recorder, 1, delay)
		runs := newRecorder()
		slow := newProbe(func(p *probe, input smallben.CronJobInput) {
			runs.Run(input)
			time.Sleep(3 * time.Minute)
		})
		var jobs []smallben.Job
		for id := range int64(6) {
			jobs = append(jobs, job(id+1, "0 0,1,2 0 * * *", slow))
		}
		for id := range int64(6) { // whose claims tell that the database answers
			jobs = append(jobs, job(id+11, "* * * * * *", newRecorder()))
		}
		require.NoError(t, s.AddJobs(jobs))
		pass(90 * time.Second)
		recorder.away(true)
		pass(time.Minute)
		recorder.away(false)
		pass(4 * time.Minute)
		require.NotZero(t, gauges(t, s)["smallben_runs_unclaimed_total"])
		type run struct {
			job  int64
			tick time.Time
		}
		starts := make(map[run]int)
		for _, input := range runs.runs() {
			starts[run{input.JobID, input.ScheduledAt}]++
		}
		for run, n := range starts {
			assert.Equal(t, 1, n, "%v", run)
		}
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
	err := one.ResumeJobs(&smallben.PauseResumeOptions{})
	require.ErrorContains(t, err, "the connection broke")
	require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown, "the change was not tried")
	require.Never(t, func() bool { return gauges(t, one)["smallben_scheduler_unsettled_writes"] > 0 }, 300*time.Millisecond, 10*time.Millisecond)
	after := recorder.calls()
	maps.DeleteFunc(after, func(call string, n int) bool { return n == before[call] })
	assert.Equal(t, map[string]int{"ListJobs": before["ListJobs"] + 1, "SetCronId": before["SetCronId"] + 1}, after)
}

func TestTheTicksOfAJobThatNobodyDecodesAreAccountedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		broken := rawJob(1)
		broken.CronExpression, broken.SerializedJob, broken.Paused = "* * * * * *", "no gob", false
		recorder.put(broken)
		s := processes(t, recorder, 1, runOnce)[0]
		begin := time.Now()
		pass(5 * time.Minute)
		runs := recorder.runs()
		counts := outcomes(runs)
		assert.InDelta(t, 4*60, counts[smallben.OutcomeMissed], 90, "up to a sweep ago")
		assert.NotZero(t, counts[smallben.OutcomeWaiting], "they wait for a process that knows the type")
		// The row that a newer process writes is one that this process knows.
		var knows = newRecorder()
		require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, "* * * * * *", knows)}))
		pass(2*time.Minute + time.Second/2)
		checkEveryTickIsRecorded(t, recorder, 1, ticksEvery(time.Second, begin, time.Now().Add(-2*time.Minute)))
		assert.Greater(t, knows.count(), 110)
	})
}

func TestAnUpsertLeavesTheRowOfANewerProgramAsItIsWhileThatRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := processes(t, recorder, 1)[0]
		mine := job(1, "@yearly", idle())
		require.NoError(t, s.AddJobs([]smallben.Job{mine}))
		stored := func() []smallben.RawJob {
			rows, err := recorder.ListJobs(&smallben.ListJobsOptions{})
			require.NoError(t, err)
			return rows
		}
		former := stored()[0]
		newer := former
		newer.UpdatedAt = time.Now().UTC().Add(time.Second)
		newer.SerializedJob = base64.StdEncoding.EncodeToString([]byte("a type that is not registered here"))
		upsert := func() {
			recorder.put(newer)
			_, err := recorder.Change(func(tx ledger.Tx) error {
				require.NoError(t, tx.(smallben.ChangeTx).SetFormerJobs(map[int64]string{1: former.SerializedJob}))
				return nil
			})
			require.NoError(t, err)
		}
		beat := func(standing ledger.Standing) {
			_, err := recorder.Beat("newer", standing)
			require.NoError(t, err)
		}
		upsert()
		pass(2 * time.Minute) // Compare finds it
		require.NoError(t, recorder.Join("newer"))
		beat(ledger.Standing{Claims: true})
		for range 2 {
			err := s.UpsertJobs([]smallben.Job{job(2, "@yearly", idle()), mine})
			require.ErrorIs(t, err, smallben.ErrUndecodable)
			require.ErrorContains(t, err, "job 1: ")
			require.Equal(t, []smallben.RawJob{newer}, stored(), "nothing of the batch is written")
		}

		beat(ledger.Standing{Claims: true, Partial: true})
		require.NoError(t, s.UpsertJobs([]smallben.Job{mine}), "nobody decodes it")
		require.Equal(t, former.SerializedJob, stored()[0].SerializedJob)

		// That was a rollback: what it replaced is forgotten.
		recorder.put(newer)
		beat(ledger.Standing{Claims: true})
		require.NoError(t, s.UpsertJobs([]smallben.Job{mine}))
	})
}

// blind is the record as a process sees it that decodes no job.
type blind struct {
	*memoryRecorder
	smallben.Recorded
}

func (b *blind) Changes(since int64, ids []int64) (smallben.Changes, error) {
	changes, err := b.memoryRecorder.Changes(since, ids)
	for i := range changes.Jobs {
		changes.Jobs[i].SerializedJob = "no gob"
	}
	return changes, err
}

func TestAProcessThatDecodesEveryJobLeads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		b := &blind{memoryRecorder: recorder}
		b.Store = b
		processes(t, b, 1)
		pass(2 * time.Minute) // it leads
		s := processes(t, recorder, 1)[0]
		var madeUp atomic.Int64
		j := withOptions(smallben.RunOptions{Missed: smallben.MissedRunOnce}, func(_ context.Context, input smallben.CronJobInput) error {
			if input.Missed > 0 {
				madeUp.Add(1)
			}
			return nil
		})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", j)}))
		pass(5*time.Minute + 50*time.Second)
		for range 5 {
			s.Stop()
			pass(25 * time.Second) // in which a tick is missed
			require.NoError(t, s.Start())
			pass(4*time.Minute + 35*time.Second)
		}
		assert.EqualValues(t, 5, madeUp.Load())
	})
}

func TestATriggeredRunOfAPausedJobThatIsLostRunsAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := processes(t, recorder, 2, func(c *smallben.Config) { c.Runs.RerunLost = true })[0]
		runs := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", runs)}))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{}))
		pass(5 * time.Second)
		require.NoError(t, recorder.Join("gone"))
		key := ledger.Key{JobID: 1, Tick: time.Now().UTC(), Triggered: true, Attempt: 1}
		_, err := recorder.Claim("gone", []ledger.Claim{{Key: key}})
		require.NoError(t, err)
		pass(30 * time.Second)
		inputs := runs.runs()
		require.Len(t, inputs, 1)
		assert.Equal(t, 2, inputs[0].Attempt)
		assert.True(t, inputs[0].Triggered)
		assert.Equal(t, map[smallben.Outcome]int{smallben.OutcomeLost: 1, smallben.OutcomeOK: 1}, outcomes(recorder.runs()))
	})
}

// latecomer is a repository in which something happens before a job is read alone.
type latecomer struct {
	*memoryRecorder
	before func()
}

func (l *latecomer) GetJob(jobID int64) (smallben.JobWithSchedule, error) {
	l.before()
	return l.memoryRecorder.GetJob(jobID)
}

func TestATriggeredRunOfAPausedJobIsNotThatOfANewOneOfItsID(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := &latecomer{memoryRecorder: newMemoryRecorder(), before: func() {}}
		s := processes(t, l, 1, func(c *smallben.Config) { c.Runs.RerunLost = true })[0]
		former, runs := newRecorder(), newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{startPaused(job(1, "@yearly", former), true)}))
		pass(5 * time.Second)
		reads := 0
		l.before = func() {
			reads++
			require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
			require.NoError(t, s.AddJobs([]smallben.Job{startPaused(job(1, "@yearly", runs), true)}))
		}
		require.NoError(t, l.Join("gone"))
		_, err := l.Claim("gone", []ledger.Claim{{Key: ledger.Key{JobID: 1, Tick: time.Now().UTC(), Triggered: true, Attempt: 1}}})
		require.NoError(t, err)
		pass(30 * time.Second)
		assert.Equal(t, 1, reads)
		assert.Zero(t, former.count())
		assert.Zero(t, runs.count())
	})
}

func TestALostRunOfADeletedJobIsNotRunUnderANewOneOfItsID(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := processes(t, recorder, 1, func(c *smallben.Config) { c.Runs.RerunLost = true })[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}))
		pass(time.Second)
		require.NoError(t, recorder.Join("gone"))
		_, err := recorder.Claim("gone", []ledger.Claim{{Key: ledger.Key{JobID: 1, Tick: time.Now().UTC(), Triggered: true, Attempt: 1}}})
		require.NoError(t, err)
		pass(time.Second)
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
		runs := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", runs)}))
		pass(time.Minute)
		assert.Zero(t, runs.count())
		assert.Equal(t, 1, outcomes(recorder.runs())[smallben.OutcomeLost])
	})
}

func TestChangesOfJobsThatAreAWeekBehindWorkAtOnce(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		s := create(t, db.open(t), recordingConfig(runAll))
		var jobs []smallben.Job
		for id := range int64(1000) {
			jobs = append(jobs, job(id+1, "* * * * * *", idle()))
		}
		require.NoError(t, s.AddJobs(jobs))
		for i := range jobs {
			jobs[i].CronExpression = "*/2 * * * * *"
		}
		updates := make([]smallben.UpdateOption, len(jobs))
		for i := range updates {
			updates[i] = smallben.UpdateOption{JobID: int64(i + 1), CronExpression: ptr("*/3 * * * * *")}
		}
		for _, change := range []struct {
			name string
			do   func() error
		}{
			{"update", func() error { return s.UpdateJobs(updates) }},
			{"upsert", func() error { return s.UpsertJobs(jobs) }},
			{"pause", s.PauseAll},
			{"resume", s.ResumeAll},
			{"delete", s.DeleteAll},
		} {
			db.exec(t, fmt.Sprintf("UPDATE smallben_job_state SET accounted_until = %d", time.Now().AddDate(0, 0, -7).UnixMicro()))
			began := time.Now()
			require.NoError(t, change.do(), change.name)
			// To walk through 600 million ticks takes minutes, and so an error.
			assert.Less(t, time.Since(began), 20*time.Second, "%s walked through the ticks of a week", change.name)
		}
	})
}

func TestAClaimThatIsSkippedAfterAnUpdateDuringStopIsDropped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := smallben.New(recorder, recordingConfig(skipBusy))
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", idle())}))
		pass(58 * time.Second)
		require.NoError(t, recorder.Join("other"))
		_, err := recorder.Claim("other", []ledger.Claim{{Key: ledger.Key{JobID: 1, Tick: time.Now().UTC(), Triggered: true, Attempt: 1}, Overlap: ledger.Skip}})
		require.NoError(t, err)
		recorder.watch(func(call string, happened bool) {
			if call == "Claim" && happened {
				time.Sleep(time.Second) // until the reply comes
			}
		})
		pass(2*time.Second + 100*time.Millisecond)
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			s.Stop()
		}()
		pass(100 * time.Millisecond)
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("@daily")}}))
		<-stopped
		assert.Equal(t, 1, outcomes(recorder.runs())[smallben.OutcomeSkipped])
	})
}

func TestARunThatWasGivenAwayIsTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := processes(t, recorder, 1)[0]
		var cause error
		told := newContextProbe(func(ctx context.Context, _ smallben.CronJobInput) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return ctx.Err()
		})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 * * * * *", told)}))
		pass(time.Minute + time.Second)
		// Others take this process for dead.
		beat, err := recorder.Beat("nobody", claiming)
		require.ErrorIs(t, err, ledger.ErrNotRegistered)
		require.NoError(t, recorder.Join("other"))
		beat, err = recorder.Beat("other", claiming)
		require.NoError(t, err)
		_, err = recorder.Change(func(tx ledger.Tx) error {
			_, err := tx.Expire(beat.Members)
			return err
		})
		require.NoError(t, err)
		pass(3 * time.Second)
		assert.ErrorIs(t, cause, smallben.ErrRunLost)
	})
}

func TestASecondTakesTheTicksOfAnOwnerThatStandsStill(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		all := processes(t, recorder, 2)
		runs := newRecorder()
		var jobs []smallben.Job
		for id := range int64(20) {
			jobs = append(jobs, job(id+1, "* * * * * *", runs))
		}
		require.NoError(t, all[0].AddJobs(jobs))
		pass(10 * time.Second)
		// A process that is registered, claims nothing, and was heard of just now.
		require.NoError(t, recorder.Join("zombie"))
		_, err := recorder.Beat("zombie", claiming)
		require.NoError(t, err)
		begin := time.Now()
		pass(60*time.Second + time.Second/2)
		late := 0
		for _, run := range recorder.runs() {
			if run.Tick.After(begin) {
				assert.LessOrEqual(t, run.Lateness(), time.Second)
				if run.Lateness() > 0 {
					late++
				}
			}
		}
		assert.NotZero(t, late, "some were its own until it was suspected")
		for id := range int64(20) {
			checkEveryTickIsRecorded(t, recorder, id+1, ticksEvery(time.Second, begin, time.Now().Add(-time.Second)))
		}
	})
}

func TestTicksGoByTheClockOfTheDatabase(t *testing.T) {
	for _, ahead := range []time.Duration{-time.Hour, -15 * time.Second, -1500 * time.Millisecond, 0, 900 * time.Millisecond, 40 * time.Second, time.Hour} {
		t.Run(fmt.Sprint(ahead), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				recorder := newMemoryRecorder()
				recorder.ahead = ahead
				var lines logLines
				all := processes(t, recorder, 2, func(c *smallben.Config) { c.Logger = lines.logger() })
				runs := newRecorder()
				pass(2 * time.Second)
				require.NoError(t, all[0].AddJobs([]smallben.Job{job(1, "* * * * * *", runs), job(2, "0 * * * * *", runs)}))
				pass(2 * time.Second)
				begin := recorder.now()
				pass(5 * time.Minute)
				end := recorder.now()
				checkEveryTickIsRecorded(t, recorder, 1, ticksEvery(time.Second, begin.Truncate(time.Second), end.Add(-2*time.Second)))
				assert.Zero(t, outcomes(recorder.runs())[smallben.OutcomeMissed])
				said := lines.with("ticks go by the clock of the database")
				if ahead.Abs() > time.Second {
					assert.Len(t, said, 2, "each says so once")
				} else {
					assert.Empty(t, said)
				}
			})
		})
	}
}

func TestARunThatDidNotStartEndedByTheClockOfTheDatabase(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		recorder.ahead = time.Hour
		s := processes(t, recorder, 1, func(c *smallben.Config) { c.SchedulerConfig.MaxConcurrentRuns = 1 })[0]
		pass(2 * time.Second)
		release := make(chan struct{})
		blocks := newProbe(func(*probe, smallben.CronJobInput) { <-release })
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", blocks), job(2, "@yearly", idle())}))
		for _, id := range []int64{1, 2} {
			require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id}}))
		}
		pass(time.Second)
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{2}}}))
		close(release)
		pass(2 * time.Second)
		skipped := 0
		for _, run := range recorder.runs() {
			if run.Outcome == smallben.OutcomeSkipped {
				skipped++
				assert.WithinDuration(t, recorder.now(), run.End, time.Minute)
				assert.WithinDuration(t, recorder.now(), run.Start, time.Minute)
			}
		}
		assert.Equal(t, 1, skipped)
	})
}

// TestNoTickStartsEarlyAfterAChange has heartbeats take their time, so that nobody can
// tell from them what time it is in the database.
func TestNoTickStartsEarlyAfterAChange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := processes(t, recorder, 1)[0]
		recorder.watch(func(call string, happened bool) {
			if call == "Beat" && !happened {
				time.Sleep(400 * time.Millisecond)
			}
		})
		pass(2 * time.Second)
		var early []time.Duration
		runs := newProbe(func(_ *probe, input smallben.CronJobInput) {
			if before := time.Until(input.ScheduledAt); before > 0 {
				early = append(early, before)
			}
		})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", runs)}))
		for range 10 {
			time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(950 * time.Millisecond)))
			require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("* * * * * *")}}))
			time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
		}
		pass(time.Second)
		require.Empty(t, early)
	})
}

func TestAnUpdateWhileStopComesInBetweenSucceeds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := newMemoryRecorder()
		s := processes(t, recorder, 1, runOnce)[0]
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", idle())}))
		pass(2*time.Second + time.Second/2)
		recorder.away(true)
		pass(20 * time.Second)
		recorder.away(false)
		stopped := make(chan struct{})
		var once sync.Once
		recorder.watch(func(call string, happened bool) {
			if call == "tx.Close" && happened {
				once.Do(func() {
					go func() { s.Stop(); close(stopped) }()
					time.Sleep(time.Second / 10)
				})
			}
		})
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("@daily")}}))
		<-stopped
	})
}

func TestOneEndThatIsRefusedHoldsUpNoOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := &poisoned{memoryRecorder: newMemoryRecorder(), jobID: 1}
		recorder.Store = recorder
		var lines logLines
		s := processes(t, recorder, 1, skipBusy, func(c *smallben.Config) { c.Logger = lines.logger() })[0]
		runs := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "0 1 0 * * *", idle()), job(2, "0 * * * * *", runs)}))
		pass(10*time.Minute + time.Second)
		assert.Equal(t, 10, runs.count())
		recorded := 0
		for _, run := range recorder.runs() {
			if run.JobID == 2 && run.Outcome == smallben.OutcomeOK {
				recorded++
			}
		}
		assert.Equal(t, 10, recorded)
		assert.GreaterOrEqual(t, recorder.calls()["Prune"], 8, "the leader sweeps all the same")
		assert.Less(t, recorder.refused, 10*60/5+30)
	})
}

// TestEndsThatMeetAShortOutageHoldTheLocksNoLonger has the database away for the ends of
// runs between two heartbeats: nobody has refused them.
func TestEndsThatMeetAShortOutageHoldTheLocksNoLonger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		recorder := &interrupted{memoryRecorder: newMemoryRecorder()}
		recorder.Store = recorder
		s := processes(t, recorder, 1, skipBusy)[0]
		runs := newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", runs), job(2, "* * * * * *", runs)}))
		pass(5 * time.Second)
		recorder.until.Store(time.Now().Truncate(time.Second).Add(1500 * time.Millisecond).UnixNano()) // from the next tick on
		pass(5 * time.Second)
		assert.GreaterOrEqual(t, int(recorder.failed.Load()), 1)
		for _, run := range recorder.runs() {
			assert.NotEqual(t, smallben.OutcomeSkipped, run.Outcome, run)
		}
	})
}

// interrupted fails to record ends for a while.
type interrupted struct {
	*memoryRecorder
	until  atomic.Int64 // Unix nanoseconds
	failed atomic.Int64
}

func (i *interrupted) Finish(process string, ends []ledger.End) error {
	if time.Now().UnixNano() < i.until.Load() {
		i.failed.Add(1)
		return errors.New("connection refused")
	}
	return i.memoryRecorder.Finish(process, ends)
}

// poisoned refuses the ends of runs of a job, as a constraint of a database may.
type poisoned struct {
	*memoryRecorder
	jobID   int64
	refused int
}

func (p *poisoned) Finish(process string, ends []ledger.End) error {
	if slices.ContainsFunc(ends, func(end ledger.End) bool { return end.JobID == p.jobID }) {
		p.refused++
		return errors.New("a constraint is violated")
	}
	return p.memoryRecorder.Finish(process, ends)
}

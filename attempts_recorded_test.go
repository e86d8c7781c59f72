package smallben_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/ledger"
)

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
		all := processes(t, recorder, 3)
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
				s := processes(t, newMemoryRecorder(), 1)[0]
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
				claimAsGhost(t, recorder, ledger.Key{JobID: 1, Tick: time.Now().UTC().Add(time.Second), Attempt: 1})
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
				claimAsGhost(t, recorder, ledger.Key{JobID: 1, Tick: time.Now().UTC().Add(time.Second), Attempt: 1})
				pass(time.Hour)
				assert.Equal(t, c.want, attemptsOf(listRuns(t, s)))
			})
		})
	}
}

// claimAsGhost has a process that shows no heartbeats claim a run of job 1, which is
// lost after a while.
func claimAsGhost(t *testing.T, recorder *memoryRecorder, key ledger.Key) {
	t.Helper()
	require.NoError(t, recorder.Join("ghost"))
	changes, err := recorder.Changes(0, nil)
	require.NoError(t, err)
	results, err := recorder.Claim("ghost", []ledger.Claim{{Key: key, Revision: smallben.Revision(changes.Jobs[0])}})
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
				claimAsGhost(t, recorder, ledger.Key{JobID: 1, Tick: time.Now().UTC(), Triggered: true, Attempt: 1})
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
				claimAsGhost(t, recorder, ledger.Key{JobID: 1, Tick: time.Now().UTC(), Triggered: true, Attempt: 1})
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
		const clockError = 10 * time.Millisecond
		assert.Greater(t, runs[0].Start.Sub(runs[1].End), 600*time.Millisecond-clockError, "not before its time")
		assert.EqualValues(t, 3, ran.Load())
	})
}

func outcomesOf(runs []smallben.Run) (found []smallben.Outcome) {
	for i := range runs {
		found = append(found, runs[i].Outcome)
	}
	return found
}

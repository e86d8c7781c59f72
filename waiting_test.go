package smallben_test

import (
	"errors"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/ledger"
)

// What waits to run, in every store.

// waits is a waiting run of a tick.
func waits(key ledger.Key, due time.Time) ledger.Run {
	return ledger.Run{Key: key, Outcome: ledger.Waiting, Missed: 1, Due: due}
}

func (r records) waiting(t testing.TB) (keys []ledger.Key) {
	t.Helper()
	runs, err := r.Waiting(nil, 100)
	require.NoError(t, err)
	for _, run := range runs {
		keys = append(keys, run.Key)
	}
	return keys
}

func ofWaiting(claims []ledger.Claim) []ledger.Claim {
	for i := range claims {
		claims[i].OfWaiting = true
	}
	return claims
}

func delayed(claims []ledger.Claim) []ledger.Claim {
	for i := range claims {
		claims[i].Overlap = ledger.Delay
	}
	return claims
}

func TestAWaitingRunIsClaimedOnceWhenItIsDue(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3)
		now := time.Now().UTC().Truncate(time.Microsecond)
		r.record(t, waits(runKey(1, 1), now.Add(-time.Minute)), waits(runKey(2, 1), now.Add(-time.Hour)), waits(runKey(3, 1), now.Add(time.Hour)))
		require.Equal(t, []ledger.Key{runKey(2, 1), runKey(1, 1), runKey(3, 1)}, r.waiting(t))
		beat, err := r.Beat("a", claiming)
		require.NoError(t, err)
		require.Equal(t, now.Add(-time.Hour), beat.Due)
		first, err := r.Waiting(nil, 1)
		require.NoError(t, err)
		rest, err := r.Waiting(&first[0], 5)
		require.NoError(t, err)
		require.Len(t, rest, 2)

		claims := ofWaiting(claimsOf(revision, runKey(1, 1), runKey(2, 1), runKey(3, 1)))
		require.Equal(t, []ledger.Result{ledger.Won, ledger.Won, ledger.Taken}, r.claim(t, "a", claims))
		require.Equal(t, []ledger.Result{ledger.Taken, ledger.Taken}, r.claim(t, "b", claims[:2]))
		require.Equal(t, []ledger.Result{ledger.Won}, r.claim(t, "a", claims[:1]), "its own once more")
		run := r.runs(t)[runKey(1, 1)]
		require.Equal(t, "a", run.Process)
		require.Equal(t, ledger.Running, run.Outcome)
		require.Equal(t, 1, run.Missed)
		require.Zero(t, run.Due)
		require.NoError(t, r.Finish("a", []ledger.End{finished(runKey(1, 1))}))
		require.Equal(t, []ledger.Key{runKey(3, 1)}, r.waiting(t))
	})
}

func TestAWaitingRunOfAPausedOrChangedJobIsStale(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2)
		now := time.Now().UTC()
		r.record(t, waits(runKey(1, 1), now), waits(runKey(2, 1), now), waits(triggered(runKey(1, 2)), now), waits(triggered(runKey(2, 2)), now))
		paused := r.change(t, func(tx smallben.ChangeTx) error { return tx.PauseJobs(rawJobs(1)) })
		require.Equal(t, []ledger.Result{ledger.Stale, ledger.Stale, ledger.Stale},
			r.claim(t, "a", ofWaiting(claimsOf(revision, runKey(1, 1), ledger.Key{JobID: 9, Tick: now, Attempt: 1}, triggered(runKey(1, 2))))))
		require.Equal(t, []ledger.Result{ledger.Stale, ledger.Won}, r.claim(t, "a", ofWaiting(claimsOf(paused, runKey(1, 1), triggered(runKey(1, 2))))))
		require.Equal(t, []ledger.Result{ledger.Stale, ledger.Won},
			append(r.claim(t, "a", ofWaiting(claimsOf(revision-1, runKey(2, 1)))), r.claim(t, "a", ofWaiting(claimsOf(revision, runKey(2, 1))))...))
		require.Equal(t, []ledger.Result{ledger.Won}, r.claim(t, "a", ofWaiting(claimsOf(0, triggered(runKey(2, 2))))), "of a job that the claimer knows as paused")
	})
}

func TestWaitingRunsThatNeedTheLockRunOneAfterAnother(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1)
		now := time.Now().UTC().Add(-time.Second)
		runs := []ledger.Run{waits(runKey(1, 1), now), waits(runKey(1, 2), now)}
		runs[0].Exclusive, runs[1].Exclusive = true, true
		r.record(t, runs...)
		require.Equal(t, []ledger.Key{runKey(1, 1)}, r.waiting(t))
		claims := exclusively(ofWaiting(claimsOf(revision, runKey(1, 1), runKey(1, 2))))
		require.Equal(t, []ledger.Result{ledger.Won, ledger.Taken}, r.claim(t, "a", claims))
		require.Empty(t, r.waiting(t), "the lock is held")
		require.Equal(t, []ledger.Result{ledger.Overlapped}, r.claim(t, "b", exclusively(claimsOf(revision, runKey(1, 3)))))
		end := finished(runKey(1, 1))
		end.Overlap = ledger.Skip
		require.NoError(t, r.Finish("a", []ledger.End{end}))
		require.Equal(t, []ledger.Key{runKey(1, 2)}, r.waiting(t))
		r.win(t, "b", claims[1:])
		require.True(t, r.busy(t, 1))
	})
}

func TestOneDelayedRunWaitsForALock(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2)
		claims := delayed(claimsOf(revision, runKey(1, 1), runKey(1, 2), runKey(1, 3), runKey(2, 1)))
		require.Equal(t, []ledger.Result{ledger.Won, ledger.Delayed, ledger.Overlapped, ledger.Won}, r.claim(t, "a", claims))
		require.Equal(t, []ledger.Result{ledger.Overlapped}, r.claim(t, "b", delayed(claimsOf(revision, runKey(1, 4)))))
		run := r.runs(t)[runKey(1, 2)]
		require.Equal(t, ledger.Waiting, run.Outcome)
		require.Empty(t, run.Process)
		require.NotZero(t, run.Due)
		end := finished(runKey(1, 1))
		end.Overlap = ledger.Delay
		require.NoError(t, r.Finish("a", []ledger.End{end}))
		require.Equal(t, []ledger.Key{runKey(1, 2)}, r.waiting(t))
		r.win(t, "b", delayed(ofWaiting(claimsOf(revision, runKey(1, 2)))))
		require.Equal(t, []ledger.Result{ledger.Delayed}, r.claim(t, "a", delayed(claimsOf(revision, runKey(1, 5)))), "the place is free again")
	})
}

func TestTheEndOfAWaitingRunFreesThePlaceToWait(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1)
		require.Equal(t, []ledger.Result{ledger.Won, ledger.Delayed}, r.claim(t, "a", delayed(claimsOf(revision, runKey(1, 1), runKey(1, 2)))))
		r.change(t, func(tx smallben.ChangeTx) error { return tx.Cancel([]int64{1}, false, "it was paused") })
		require.Equal(t, []ledger.Result{ledger.Delayed, ledger.Overlapped}, r.claim(t, "b", delayed(claimsOf(revision, runKey(1, 3), runKey(1, 4)))))
	})
}

func TestNoTickTakesTheLockBeforeARunThatWaits(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3)
		r.record(t, waits(runKey(2, 1), time.Now().Add(time.Hour)), waits(runKey(3, 1), time.Now()))
		r.win(t, "a", delayed(claimsOf(revision, runKey(1, 1))))
		require.Equal(t, []ledger.Result{ledger.Delayed}, r.claim(t, "b", delayed(claimsOf(revision, runKey(1, 2)))))
		end := finished(runKey(1, 1))
		end.Overlap = ledger.Delay
		require.NoError(t, r.Finish("a", []ledger.End{end}))

		require.Equal(t, []ledger.Result{ledger.Overlapped}, r.claim(t, "a", exclusively(claimsOf(revision, triggered(runKey(1, 3))))))
		require.Equal(t, []ledger.Result{ledger.Delayed, ledger.Overlapped}, r.claim(t, "a", delayed(claimsOf(revision, runKey(1, 3), runKey(1, 4)))),
			"the lock is free, and so is the place to wait for the run that is about to take it")
		require.Equal(t, []ledger.Result{ledger.Overlapped}, r.claim(t, "a", delayed(claimsOf(revision, runKey(1, 5)))))
		require.False(t, r.busy(t, 1))
		require.Contains(t, r.waiting(t), runKey(1, 2))
		require.NotContains(t, r.waiting(t), runKey(1, 3), "one after another")
		r.win(t, "b", delayed(ofWaiting(claimsOf(revision, runKey(1, 2)))))
		require.Equal(t, []ledger.Result{ledger.Overlapped}, r.claim(t, "a", delayed(claimsOf(revision, runKey(1, 6)))))

		r.win(t, "a", delayed(claimsOf(revision, runKey(2, 2)))) // the other is not due
		r.win(t, "a", delayed(claimsOf(revision, runKey(3, 2)))) // the other needs no lock
	})
}

func TestATickDoesNotWaitForAttemptsThatItEnds(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2)
		again := waits(attempt(2, runKey(1, 1)), time.Now())
		again.Exclusive = true
		r.record(t, again)
		claims := delayed(claimsOf(revision, runKey(1, 2)))
		claims[0].NewestCounts = true
		r.win(t, "a", claims)
		require.Equal(t, ledger.Skipped, r.runs(t)[again.Key].Outcome)

		again.JobID = 2
		r.record(t, again)
		require.Equal(t, []ledger.Result{ledger.Delayed}, r.claim(t, "a", delayed(claimsOf(revision, runKey(2, 2)))), "it ends none")
	})
}

func TestATickIsNotHeldUpByOneThatWaitsForAPlaceAndEnds(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2)
		parked := func(id int64) ledger.Run {
			return ledger.Run{Key: runKey(id, 1), Outcome: ledger.Waiting, Due: tickAt(1), Exclusive: true}
		}
		r.record(t, parked(1), parked(2))
		require.Equal(t, []ledger.Result{ledger.Delayed}, r.claim(t, "a", delayed(claimsOf(revision, runKey(1, 2)))), "it ends nothing")
		require.Equal(t, []ledger.Key{runKey(1, 1), runKey(2, 1)}, r.waiting(t))
		r.win(t, "a", exclusively(claimsOf(revision, runKey(2, 2))))
	})
}

// TestTheEndOfARunAndTheClaimOfTheNextTickCross has a run end while the next tick of its
// delayed job is claimed: the tick runs or waits, and then it can be taken.
func TestTheEndOfARunAndTheClaimOfTheNextTickCross(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		const rounds = 30
		other := records{recordStore: r.another(t)}
		revision := r.start(t, 1)
		results := make(map[ledger.Result]int)
		for round := range rounds {
			running, next := runKey(1, 2*round+1), runKey(1, 2*round+2)
			r.win(t, "a", delayed(claimsOf(revision, running)))
			end := finished(running)
			end.Overlap = ledger.Delay
			var wg sync.WaitGroup
			var result []ledger.Result
			var endErr, claimErr error
			wg.Go(func() { endErr = r.Finish("a", []ledger.End{end}) })
			wg.Go(func() { result, claimErr = other.Claim("b", delayed(claimsOf(revision, next))) })
			wg.Wait()
			require.NoError(t, errors.Join(endErr, claimErr))
			results[result[0]]++
			if result[0] == ledger.Delayed {
				require.Equal(t, []ledger.Key{next}, r.waiting(t))
				r.win(t, "b", delayed(ofWaiting(claimsOf(revision, next))))
			}
			end.Key = next
			require.NoError(t, r.Finish("b", []ledger.End{end}))
			require.False(t, r.busy(t, 1))
			require.Empty(t, r.waiting(t))
		}
		t.Log(results)
		require.Equal(t, rounds, results[ledger.Won]+results[ledger.Delayed])
	})
}

// TestAPauseAndTheClaimOfARunThatWaitsCross has a job paused while the tick is claimed that
// waits for the end of a run: it runs, or ends with the pause, and does not wait on.
func TestAPauseAndTheClaimOfARunThatWaitsCross(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		const rounds = 20
		other := records{recordStore: r.another(t)}
		results := make(map[ledger.Result]int)
		for id := int64(1); id <= rounds; id++ {
			revision := r.start(t, id)
			require.Equal(t, []ledger.Result{ledger.Won, ledger.Delayed}, r.claim(t, "a", delayed(claimsOf(revision, runKey(id, 1), runKey(id, 2)))))
			end := finished(runKey(id, 1))
			end.Overlap = ledger.Delay
			require.NoError(t, r.Finish("a", []ledger.End{end}))
			var wg sync.WaitGroup
			var result []ledger.Result
			var pauseErr, claimErr error
			wg.Go(func() {
				_, pauseErr = r.Change(inJobs(func(tx smallben.ChangeTx) error {
					if _, err := tx.Watermarks([]int64{id}); err != nil {
						return err
					}
					return errors.Join(tx.Cancel([]int64{id}, false, "it was paused"), tx.PauseJobs(rawJobs(id)))
				}))
			})
			wg.Go(func() { result, claimErr = other.Claim("b", delayed(ofWaiting(claimsOf(revision, runKey(id, 2))))) })
			wg.Wait()
			require.NoError(t, errors.Join(pauseErr, claimErr))
			results[result[0]]++
			require.Empty(t, r.waiting(t))
			require.Equal(t, result[0] == ledger.Won, r.busy(t, id))
			want := ledger.Skipped
			if result[0] == ledger.Won {
				want = ledger.Running
			}
			require.Equal(t, want, r.runs(t)[runKey(id, 2)].Outcome)
		}
		t.Log(results)
	})
}

func TestAJobIsAwaitedIfARunWaitsForItsLock(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3, 4, 5)
		exclusive := func(run ledger.Run) ledger.Run {
			run.Exclusive = true
			return run
		}
		now := time.Now()
		r.record(t, exclusive(waits(runKey(1, 1), now)), waits(runKey(2, 1), now), exclusive(waits(runKey(3, 1), now.Add(time.Hour))),
			exclusive(waits(attempt(2, runKey(4, 1)), now)), exclusive(waits(attempt(2, runKey(5, 1)), now)))
		claims := delayed(claimsOf(revision, runKey(1, 2), runKey(1, 3), runKey(2, 2), runKey(3, 2), runKey(4, 2), runKey(5, 2), runKey(9, 2)))
		claims[5].NewestCounts = true // it ends the attempt
		r.look(t, func(tx smallben.ChangeTx) {
			awaited, err := tx.Awaited(claims)
			require.NoError(t, err)
			require.Equal(t, []int64{1, 4}, awaited)
		})
	})
}

func TestOneOfManyClaimsAtOnceWaitsForALock(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		const rounds, claimers = 10, 8
		jobs := make([]int64, rounds)
		for i := range jobs {
			jobs[i] = int64(i + 1)
		}
		revision := r.start(t, jobs...)
		for _, id := range jobs {
			r.win(t, "a", delayed(claimsOf(revision, runKey(id, 1))))
			var wg sync.WaitGroup
			results := make([][]ledger.Result, claimers)
			errs := make([]error, claimers)
			for i := range claimers {
				wg.Go(func() { results[i], errs[i] = r.Claim("b", delayed(claimsOf(revision, runKey(id, i+2)))) })
			}
			wg.Wait()
			require.NoError(t, errors.Join(errs...))
			count := make(map[ledger.Result]int)
			for _, result := range results {
				count[result[0]]++
			}
			require.Equal(t, map[ledger.Result]int{ledger.Delayed: 1, ledger.Overlapped: claimers - 1}, count)
		}
	})
}

func TestCancelEndsWaitingRuns(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		r.start(t, 1, 2)
		now := time.Now().UTC()
		r.record(t, waits(runKey(1, 1), now), waits(triggered(runKey(1, 1)), now), waits(runKey(2, 1), now))
		cancel := func(triggered bool) {
			r.change(t, func(tx smallben.ChangeTx) error { return tx.Cancel([]int64{1, 9}, triggered, "no more") })
		}
		cancel(false)
		run := r.runs(t)[runKey(1, 1)]
		require.Equal(t, ledger.Skipped, run.Outcome)
		require.Equal(t, "no more", run.Error)
		require.False(t, run.End.IsZero())
		require.ElementsMatch(t, []ledger.Key{triggered(runKey(1, 1)), runKey(2, 1)}, r.waiting(t))
		cancel(true)
		require.Equal(t, []ledger.Key{runKey(2, 1)}, r.waiting(t))
	})
}

func TestANextAttemptWaitsUnlessItsJobHasChanged(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3, 4, 5)
		due := time.Now().UTC().Truncate(time.Microsecond).Add(-time.Second)
		ends := []ledger.End{finished(runKey(1, 1)), finished(runKey(2, 1)), finished(runKey(3, 1)), finished(runKey(4, 1)), finished(runKey(5, 1))}
		for i := range ends {
			ends[i].Retry = due
		}
		r.win(t, "a", claimsOf(revision, runKey(1, 1), runKey(2, 1), runKey(3, 1), runKey(4, 1), runKey(5, 1)))
		r.record(t, ended(runKey(5, 2), ledger.Skipped), ended(runKey(5, 3), ledger.Missed))
		r.change(t, func(tx smallben.ChangeTx) error { return tx.PauseJobs(rawJobs(2)) })
		r.change(t, func(tx smallben.ChangeTx) error { return tx.DeleteJobsByIds([]int64{3}) })
		r.win(t, "b", claimsOf(revision, runKey(4, 2)))
		require.NoError(t, r.Finish("a", ends))
		require.NoError(t, r.Finish("a", ends), "as after a lost reply")
		require.Equal(t, []ledger.Key{attempt(2, runKey(1, 1)), attempt(2, runKey(5, 1))}, r.waiting(t), "ticks that did not start end nothing")
		require.Equal(t, due, r.runs(t)[attempt(2, runKey(1, 1))].Due)

		next := claimsOf(revision, runKey(1, 2))
		next[0].NewestCounts = true
		r.win(t, "b", next)
		require.Equal(t, []ledger.Key{attempt(2, runKey(5, 1))}, r.waiting(t), "the newest tick counts")
		require.Equal(t, ledger.Skipped, r.runs(t)[attempt(2, runKey(1, 1))].Outcome)
	})
}

func TestAnAttemptEndsInsteadOfBeingClaimedOnceALaterTickHasStarted(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3, 4, 5, 6)
		now := time.Now().UTC().Add(-time.Second)
		var attempts []ledger.Key
		for id := range int64(6) {
			attempts = append(attempts, attempt(2, runKey(id+1, 1)))
			r.record(t, waits(attempts[id], now))
		}
		// The first two have a later tick that has started, and the second is not to
		// look at it: lost runs of jobs without attempts are run again all the same.
		r.win(t, "b", claimsOf(revision, runKey(1, 2), runKey(2, 2)))
		r.record(t, ended(runKey(3, 2), ledger.Skipped), ended(runKey(4, 2), ledger.Missed), waits(runKey(5, 2), now), ended(triggered(runKey(6, 2)), "ok"))
		claims := ofWaiting(claimsOf(revision, attempts...))
		for i := range claims {
			claims[i].NewestCounts = claims[i].JobID != 2
		}
		require.Equal(t, []ledger.Result{ledger.Taken, ledger.Won, ledger.Won, ledger.Won, ledger.Won, ledger.Won}, r.claim(t, "a", claims))
		require.Equal(t, []ledger.Key{runKey(5, 2)}, r.waiting(t))
		run := r.runs(t)[attempts[0]]
		require.Equal(t, ledger.Skipped, run.Outcome)
		require.NotEmpty(t, run.Error)
		require.False(t, run.End.IsZero())
	})
}

func TestUnclaimedAreTheKeysWithoutARun(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2)
		r.win(t, "a", claimsOf(revision, runKey(1, 2)))
		unclaimed, err := r.Unclaimed([]ledger.Key{runKey(1, 1), runKey(1, 2), runKey(2, 1)})
		require.NoError(t, err)
		require.Equal(t, []int{0, 2}, unclaimed)
	})
}

func TestAClosedSpanIsWhatWasNotAccountedFor(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		r.start(t, 1, 2)
		r.change(t, func(tx smallben.ChangeTx) error { return tx.PauseJobs(rawJobs(2)) })
		var now time.Time
		revision := r.change(t, func(tx smallben.ChangeTx) error {
			now = tx.Now()
			return tx.Close([]int64{1, 2, 9}, true)
		})
		row := rawJob(1)
		want := ledger.ClosedSpan{Span: ledger.Span{JobID: 1, After: dawn, Until: now}, Revision: revision, CreatedAt: row.CreatedAt,
			Expression: row.CronExpression, GroupID: row.GroupID, SuperGroupID: row.SuperGroupID, MakeUp: true}
		closed := func() []ledger.ClosedSpan {
			spans, err := r.Closed(10)
			require.NoError(t, err)
			return spans
		}
		require.Equal(t, []ledger.ClosedSpan{want}, closed())
		require.Equal(t, now, r.accounts(t, 1)[0].Until)
		want.After = tickAt(5)
		r.change(t, func(tx smallben.ChangeTx) error { return tx.Shorten([]ledger.ClosedSpan{want}) })
		require.Equal(t, []ledger.ClosedSpan{want}, closed())
		want.After = want.Until
		r.change(t, func(tx smallben.ChangeTx) error { return tx.Shorten([]ledger.ClosedSpan{want}) })
		require.Empty(t, closed())
	})
}

func TestProcessesAreListedWithWhatTheyTell(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		start := time.Now()
		_, err := r.Beat("a", ledger.Standing{Claims: true, Partial: true, Offset: 3 * time.Second})
		require.NoError(t, err)
		r.change(t, func(tx smallben.ChangeTx) error {
			_, err := tx.Lead("b")
			return err
		})
		all, err := r.Processes()
		require.NoError(t, err)
		require.Len(t, all, 2)
		info, ok := debug.ReadBuildInfo()
		require.True(t, ok)
		for i := range all {
			recent(t, all[i].Since, start.Add(-time.Minute))
			require.Less(t, all[i].Age, time.Minute)
			if _, memory := r.recordStore.(*memoryRecorder); !memory {
				require.Equal(t, info.Main.Version, all[i].Version)
			}
			all[i].Version, all[i].Since, all[i].Age = "", time.Time{}, 0
		}
		require.Equal(t, []ledger.Process{
			{Member: ledger.Member{Process: "a", Beats: 1, Standing: ledger.Standing{Claims: true, Partial: true, Offset: 3 * time.Second}}},
			{Member: ledger.Member{Process: "b"}, Leads: true},
		}, all)
	})
}

func TestRunsAreListedPageByPage(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		var runs []ledger.Run
		for id := range int64(7) {
			for n := range 3 {
				runs = append(runs, ended(runKey(id, n+1), ledger.Missed), ended(attempt(2, runKey(id, n+1)), ledger.Lost), ended(triggered(runKey(id, n+1)), ledger.Skipped))
			}
		}
		r.record(t, runs...)
		all, err := r.ListRuns(ledger.Query{})
		require.NoError(t, err)
		require.Len(t, all, len(runs))
		for _, query := range []ledger.Query{{}, {JobIDs: []int64{1, 3, 5}}, {Outcomes: []ledger.Outcome{ledger.Lost, ledger.Missed}}} {
			want, err := r.ListRuns(query)
			require.NoError(t, err)
			var got []ledger.Run
			query.Limit = 4
			for {
				page, err := r.ListRuns(query)
				require.NoError(t, err)
				if len(page) == 0 {
					break
				}
				got = append(got, page...)
				query.After = &page[len(page)-1].Key
			}
			require.Equal(t, want, got)
		}
	})
}

func TestCanceledAreTheUnfinishedRunsThatMatch(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2, 3)
		r.win(t, "a", claimsOf(revision, runKey(1, 1), runKey(2, 1)))
		r.win(t, "b", claimsOf(revision, runKey(3, 1), runKey(1, 2)))
		require.NoError(t, r.Finish("b", []ledger.End{finished(runKey(1, 2))}))
		canceled := func(process string) (keys []ledger.Key) {
			runs, err := r.Canceled(process)
			require.NoError(t, err)
			for _, run := range runs {
				keys = append(keys, run.Key)
			}
			beat, err := r.Beat(process, claiming)
			require.NoError(t, err)
			require.Equal(t, len(keys), beat.Canceled)
			return keys
		}
		require.Empty(t, canceled("a"))
		require.NoError(t, r.CancelRuns(ledger.Query{JobIDs: []int64{1, 3}}, 0))
		require.Equal(t, []ledger.Key{runKey(1, 1)}, canceled("a"))
		require.Equal(t, []ledger.Key{runKey(3, 1)}, canceled("b"))
		require.NoError(t, r.CancelRuns(ledger.Query{GroupIDs: []int64{2}, SuperGroupIDs: []int64{2}}, time.Hour))
		require.ElementsMatch(t, []ledger.Key{runKey(1, 1), runKey(2, 1)}, canceled("a"))
		require.NoError(t, r.Finish("a", []ledger.End{finished(runKey(1, 1)), finished(runKey(2, 1))}))
		require.Empty(t, canceled("a"))
	})
}

func TestAnUnclaimedRunTakesThePlaceOfOneThatDidNotStart(t *testing.T) {
	eachRecorder(t, func(t *testing.T, r records) {
		revision := r.start(t, 1, 2)
		r.win(t, "b", exclusively(claimsOf(revision, runKey(1, 1))))
		require.Equal(t, []ledger.Result{ledger.Overlapped}, r.claim(t, "b", exclusively(claimsOf(revision, runKey(1, 2)))))
		r.record(t, waits(runKey(2, 1), time.Now().UTC()))
		ends := []ledger.End{finished(runKey(1, 2)), finished(runKey(2, 1)), finished(runKey(1, 1))}
		for i := range ends {
			ends[i].Unclaimed = true
		}
		require.NoError(t, r.Finish("a", ends))
		runs := r.runs(t)
		require.EqualValues(t, "ok", runs[runKey(1, 2)].Outcome)
		require.EqualValues(t, "ok", runs[runKey(2, 1)].Outcome)
		require.Equal(t, ledger.Running, runs[runKey(1, 1)].Outcome, "one that runs stays")
		require.Empty(t, r.waiting(t))
	})
}

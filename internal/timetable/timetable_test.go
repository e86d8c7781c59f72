package timetable_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben/internal/timetable"
)

// fired notes what a Table fires.
type fired struct {
	mu    sync.Mutex
	ticks map[int][]time.Time
}

func (f *fired) fire(entry *timetable.Entry[int], tick time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ticks == nil {
		f.ticks = make(map[int][]time.Time)
	}
	f.ticks[entry.Key] = append(f.ticks[entry.Key], tick)
}

func (f *fired) of(key int) []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ticks[key])
}

func (f *fired) count() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ticks := range f.ticks {
		n += len(ticks)
	}
	return n
}

func bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, test)
}

// pass lets fake time pass, and then waits for what it started.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// open returns a Table that stops with the test.
func open(t *testing.T, config timetable.Config[int]) *timetable.Table[int] {
	t.Helper()
	table := timetable.New(config)
	t.Cleanup(table.Stop)
	return table
}

func entries(t *testing.T, expression string, keys ...int) []*timetable.Entry[int] {
	t.Helper()
	schedule, err := cron.ParseStandard(expression)
	require.NoError(t, err)
	added := make([]*timetable.Entry[int], len(keys))
	for i, key := range keys {
		added[i] = &timetable.Entry[int]{Key: key, Schedule: schedule}
	}
	return added
}

func upTo(n int) (keys []int) {
	for key := range n {
		keys = append(keys, key+1)
	}
	return keys
}

func TestEachKeyIsFiredAtItsTicks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var f fired
		zone := time.FixedZone("zone", 3600)
		table := open(t, timetable.Config[int]{Fire: f.fire, Location: zone})
		table.Add(entries(t, "* * * * *", 1))
		table.Add(entries(t, "*/5 1 * * *", 2)) // the bubble begins at midnight UTC
		begin := time.Now().In(zone)
		pass(10*time.Minute + time.Second)
		var want []time.Time
		for minute := range 10 {
			want = append(want, begin.Add(time.Duration(minute+1)*time.Minute).Round(0))
		}
		assert.Equal(t, want, f.of(1))
		assert.Equal(t, []time.Time{want[4], want[9]}, f.of(2))
	})
}

func TestATickIsTheOneThatItsCallIsForThoughCallsAreSlow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var f fired
		table := open(t, timetable.Config[int]{Fire: func(entry *timetable.Entry[int], tick time.Time) {
			time.Sleep(150 * time.Second)
			f.fire(entry, tick)
		}})
		table.Add(entries(t, "* * * * *", 1))
		pass(5*time.Minute + time.Second)
		begin := time.Now().Add(-5*time.Minute - time.Second)
		assert.Equal(t, []time.Time{begin.Add(time.Minute).Round(0), begin.Add(2 * time.Minute).Round(0)}, f.of(1))
		table.Stop()
		pass(3 * time.Minute)
		assert.Len(t, f.of(1), 5)
	})
}

func TestAnEntryThatIsRemovedFiresNoMore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var f fired
		table := open(t, timetable.Config[int]{Fire: f.fire})
		added := entries(t, "* * * * *", 1, 2)
		table.Add(added)
		pass(time.Minute)
		table.Remove(added[:1])
		pass(time.Minute)
		assert.Len(t, f.of(1), 1)
		assert.Len(t, f.of(2), 2)
	})
}

func TestNothingFiresAfterStop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var f fired
		table := timetable.New(timetable.Config[int]{Fire: f.fire})
		added := entries(t, "* * * * *", upTo(2*timetable.PageSize)...)
		table.Add(added)
		table.Stop()
		table.Remove(added) // of a table that has stopped
		pass(time.Hour)
		assert.Zero(t, f.count())
	})
}

func TestAScheduleThatNeverFiresIsHeld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var f fired
		table := open(t, timetable.Config[int]{Fire: f.fire})
		added := []*timetable.Entry[int]{{Key: 1, Schedule: never{}}}
		table.Add(added)
		pass(24 * time.Hour)
		assert.Zero(t, f.count())
		table.Remove(added)
		counted, _, _ := table.Pages()
		assert.Empty(t, counted)
	})
}

type never struct{}

func (never) Next(time.Time) time.Time { return time.Time{} }

func TestPagesHoldNoMoreThanTheirSize(t *testing.T) {
	bubble(t, func(t *testing.T) {
		table := open(t, timetable.Config[int]{Fire: func(*timetable.Entry[int], time.Time) {}})
		const n = 3*timetable.PageSize + 10
		all := entries(t, "@yearly", upTo(n)...)
		pages := func() int {
			counted, held, _ := table.Pages()
			assert.Equal(t, counted, held)
			for _, entries := range counted {
				assert.LessOrEqual(t, entries, timetable.PageSize)
			}
			return len(counted)
		}
		table.Add(all[:1])
		assert.Equal(t, 1, pages(), "a few entries take one page")
		table.Add(all[1:])
		assert.Equal(t, 4, pages())
		table.Remove(all[:n/3])
		for _, again := range entries(t, "@yearly", upTo(n/3)...) {
			table.Add([]*timetable.Entry[int]{again})
		}
		assert.Equal(t, 4, pages(), "what was removed leaves room")
	})
}

func TestPagesThatWereEmptiedAreForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		table := open(t, timetable.Config[int]{Fire: func(*timetable.Entry[int], time.Time) {}})
		for range 10 {
			batch := entries(t, "@yearly", upTo(timetable.PageSize)...)
			table.Add(batch)
			table.Remove(batch[:1])
			table.Remove(batch[1:])
			counted, _, roomy := table.Pages()
			assert.Empty(t, counted)
			assert.Zero(t, roomy)
		}
	})
}

func TestAStepBackOfTheClockArmsEntriesAnew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var f fired
		var step atomic.Int64
		var told []time.Duration
		origin := time.Now()
		table := open(t, timetable.Config[int]{
			Fire:        f.fire,
			SteppedBack: func(step time.Duration) { told = append(told, step) },
			Clock:       func() time.Time { return time.Now().Add(time.Duration(step.Load())) },
		})
		const n = 3 * timetable.PageSize / 2
		all := entries(t, "*/10 * * * *", upTo(n)...)
		table.Add(all)
		table.Add([]*timetable.Entry[int]{{Key: 0, Schedule: never{}}})
		step.Add(int64(-59 * time.Second))
		pass(5 * time.Minute)
		assert.Empty(t, told, "a smaller step arms nothing anew")
		step.Add(int64(-time.Hour))
		pass(31 * time.Second)
		assert.Equal(t, []time.Duration{-time.Hour}, told)
		pass(5 * time.Minute)
		assert.Equal(t, n, f.count(), "each is armed once")
		assert.Equal(t, []time.Time{origin.Add(10 * time.Minute).Round(0)}, f.of(1))
		step.Add(int64(24 * time.Hour))
		pass(10 * time.Minute)
		assert.Equal(t, 2*n, f.count(), "a step forward only wakes the pages")
		assert.Len(t, told, 1)
		table.Remove(all)
		counted, held, _ := table.Pages()
		assert.Equal(t, []int{1}, counted)
		assert.Equal(t, counted, held)
	})
}

// every is the schedule of each whole interval since the zero time.
type every time.Duration

func (d every) Next(t time.Time) time.Time {
	return t.Truncate(time.Duration(d)).Add(time.Duration(d))
}

// The clock goes on while cron still takes a past instant for now: so it is when a
// process was stopped, and goes on.
func TestAnEntryThatStartsLateIsFiredForItsLatestTickAndArmedAfterTheClock(t *testing.T) {
	for _, behind := range []time.Duration{time.Second, 45*time.Second + 500*time.Millisecond, time.Minute, 26 * time.Hour, 400 * 24 * time.Hour} {
		for _, interval := range []time.Duration{time.Second, 10 * time.Second, time.Minute, 7 * time.Hour} {
			t.Run(fmt.Sprint(behind, " behind, every ", interval), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					var f fired
					var ahead atomic.Int64
					origin := time.Now()
					table := open(t, timetable.Config[int]{Location: time.UTC, Fire: f.fire, Clock: func() time.Time {
						return time.Now().Add(time.Duration(ahead.Load()))
					}})
					table.Add([]*timetable.Entry[int]{{Key: 1, Schedule: every(interval)}})
					first := every(interval).Next(origin)
					pass(time.Until(first) - time.Millisecond)
					ahead.Store(int64(behind))
					pass(time.Millisecond)
					clock := time.Now().Add(behind)
					assert.Equal(t, []time.Time{clock.Truncate(interval).Round(0).UTC()}, f.of(1))
					pass(min(behind, time.Minute) + 2*interval)
					for _, tick := range f.of(1)[1:] {
						assert.True(t, tick.After(clock), "%v is not after %v", tick, clock)
					}
					if behind < time.Minute {
						assert.Greater(t, len(f.of(1)), 1)
					}
				})
			})
		}
	}
}

func TestEntriesComeAndGoWhileTheyFire(t *testing.T) {
	t.Parallel()
	var f fired
	table := timetable.New(timetable.Config[int]{Fire: f.fire, PageSize: 8})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 200 {
				batch := []*timetable.Entry[int]{{Key: 1, Schedule: soon{}}, {Key: 2, Schedule: soon{}}}
				table.Add(batch)
				table.Remove(batch)
			}
		})
	}
	group.Wait()
	counted, _, _ := table.Pages()
	assert.Empty(t, counted)
	table.Stop()
}

// soon fires every few milliseconds.
type soon struct{}

func (soon) Next(t time.Time) time.Time { return t.Add(3 * time.Millisecond) }

func TestAShortStepForwardOfTheClockThatTicksGoByFiresEachTickOnce(t *testing.T) {
	for phase := 50 * time.Millisecond; phase < time.Second; phase += 100 * time.Millisecond {
		t.Run(phase.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var f fired
				table := open(t, timetable.Config[int]{Fire: f.fire})
				table.Add([]*timetable.Entry[int]{{Key: 1, Schedule: every(time.Second)}, {Key: 2, Schedule: every(7 * time.Second)}})
				begin := time.Now().Round(0)
				pass(6*time.Second + phase)
				table.Shift(1200 * time.Millisecond)
				pass(5 * time.Second)
				table.Shift(2 * time.Second)
				pass(5 * time.Second)
				end := begin.Add(16*time.Second + phase + table.Ahead())
				for key, interval := range map[int]time.Duration{1: time.Second, 2: 7 * time.Second} {
					var want []time.Time
					for tick := every(interval).Next(begin); !tick.After(end); tick = tick.Add(interval) {
						want = append(want, tick)
					}
					got := f.of(key)
					slices.SortFunc(got, time.Time.Compare)
					assert.Equal(t, want, got, "key %d", key)
				}
			})
		})
	}
}

func TestALongStepForwardOfTheClockThatTicksGoByIsNotMadeUpFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var f fired
		table := open(t, timetable.Config[int]{Fire: f.fire})
		table.Add([]*timetable.Entry[int]{{Key: 1, Schedule: every(time.Second)}})
		begin := time.Now().Round(0)
		pass(500 * time.Millisecond)
		table.Shift(time.Hour)
		pass(time.Second)
		assert.Equal(t, []time.Time{begin.Add(time.Hour + time.Second)}, f.of(1))
	})
}

package ledger

import (
	"slices"
	"time"
)

// Schedule gives the ticks of a job: Next is the first one after an instant, or
// the zero time. It is a pure function.
type Schedule interface {
	Next(after time.Time) time.Time
}

// isTick reports whether the instant is a tick of the schedule.
func isTick(schedule Schedule, at time.Time) bool {
	return schedule.Next(at.Add(-time.Second)).Equal(at)
}

// TicksIn returns the ticks after an instant up to another, at most limit of them,
// and whether there are more.
func TicksIn(schedule Schedule, after, until time.Time, limit int) (ticks []time.Time, more bool) {
	for at := schedule.Next(after); !at.IsZero() && !at.After(until); at = schedule.Next(at) {
		if len(ticks) == limit {
			return ticks, true
		}
		ticks = append(ticks, at)
	}
	return ticks, false
}

// LastTicks returns the last ticks after an instant up to another, n at most, in
// order, without walking through all of them.
func LastTicks(schedule Schedule, after, until time.Time, n int) (ticks []time.Time) {
	for range n {
		first := schedule.Next(after)
		if first.IsZero() || first.After(until) {
			break
		}
		// Next does not fall as its argument rises. Look for the last second whose
		// next tick is within: that of low is, that of high is not.
		low, high := after.Unix(), until.Unix()
		for high-low > 1 {
			middle := low + (high-low)/2
			next := schedule.Next(time.Unix(middle, 0).In(after.Location()))
			if next.IsZero() || next.After(until) {
				high = middle
			} else {
				low = middle
			}
		}
		tick := schedule.Next(time.Unix(low, 0).In(after.Location()))
		ticks = append(ticks, tick)
		until = tick.Add(-time.Second)
	}
	slices.Reverse(ticks)
	return ticks
}

package cronexpr

import (
	"time"

	"github.com/robfig/cron/v3"

	"github.com/nbena/smallben/internal/walltime"
)

// Zoned is the schedule of an expression of fields.
type Zoned struct {
	fields   *walltime.Fields // shared by jobs
	location *time.Location   // nil: that of the time which Next is given
}

// Next returns the first tick after t, the zero time if there is none.
func (z Zoned) Next(t time.Time) time.Time {
	location := z.location
	if location == nil {
		location = t.Location()
	}
	return z.fields.Next(location, t)
}

// In gives a schedule that goes by a location where its expression names no
// time zone.
func In(schedule cron.Schedule, location *time.Location) cron.Schedule {
	if z, ok := schedule.(Zoned); ok && z.location == nil {
		return Zoned{z.fields, location}
	}
	return schedule
}

// everySchedule is @every with a phase that does not depend on when the process
// started: its instants are origin + k·delay, in Unix seconds.
type everySchedule struct {
	origin int64 // Unix seconds
	delay  int64 // seconds, at least 1
}

// Next returns the first instant after t. Both operands are reduced first, so
// that no origin, the zero time included, overflows the difference.
func (s everySchedule) Next(t time.Time) time.Time {
	now := t.Unix()
	since := floorMod(floorMod(now, s.delay)-floorMod(s.origin, s.delay), s.delay)
	return time.Unix(now+s.delay-since, 0).In(t.Location())
}

// floorMod is a mod m with the sign of m.
func floorMod(a, m int64) int64 {
	return (a%m + m) % m
}

// atSchedule is the schedule of @at: one tick, in Unix microseconds.
type atSchedule int64

// Next returns the tick if it is after t, else the zero time.
func (s atSchedule) Next(t time.Time) time.Time {
	if at := time.UnixMicro(int64(s)); at.After(t) {
		return at.In(t.Location())
	}
	return time.Time{}
}

// Never is the schedule of an expression that cannot be read.
type Never struct{}

// Next returns the zero time, which robfig/cron takes for "never".
func (Never) Next(time.Time) time.Time { return time.Time{} }

// Ticks returns the first n ticks after from, fewer if there are fewer.
func Ticks(schedule cron.Schedule, from time.Time, n int) []time.Time {
	var ticks []time.Time
	for range n {
		if from = schedule.Next(from); from.IsZero() {
			break
		}
		ticks = append(ticks, from)
	}
	return ticks
}

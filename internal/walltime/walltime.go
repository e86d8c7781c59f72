// Package walltime finds the instants at which the clock of a time zone shows the
// times of a cron expression. It knows fields, zones and instants. It must not
// know the text of expressions, jobs, or what time it is now.
package walltime

import (
	"math"
	"math/bits"
	"time"
)

const (
	// lookAhead is how far Next looks: leap days are eight years apart around 2100,
	// and one of them falls on a given weekday within forty.
	lookAhead = 40 // years

	// Star is the bit of Fields.Dom and Fields.Dow that says that the field does not
	// restrict the day, as in robfig/cron.
	Star = uint64(1) << 63

	values = ^Star // of a set

	// maxOffset is more than any clock differs from UTC.
	maxOffset = 7 * day
	minute    = int64(60)
	hour      = 60 * minute
	day       = 24 * hour

	// maxInstant is far from where sums of instants overflow.
	maxInstant = int64(1) << 55
)

// Fields are the sets of an expression: bit n stands for the value n, and no bit for
// a value that the field cannot have. The zero value matches nothing.
type Fields struct {
	Second, Minute, Hour uint64
	Dom, Month, Dow      uint64 // a day must be in both Dom and Dow if one of them has Star, else in either

	// Interval says by which of the two rules of cron(8) the expression fires where
	// a clock is set. True: whenever the clock shows a time that matches, so not if the
	// time is skipped, and twice if it comes twice. False: once for each date and time
	// that match, when the clock first shows that time or a later one.
	Interval bool
}

// Next returns the first tick after an instant, for the clock of a zone, in the
// location of the instant. Ticks are whole seconds. It is the zero time if there is
// none in the next forty years. Next does not depend on where earlier calls began:
// it never returns a tick that another call passes over.
func (f *Fields) Next(zone *time.Location, after time.Time) time.Time {
	instant := after.Unix()
	if f.Second&values == 0 || f.Minute&values == 0 || f.Hour&values == 0 || instant < -maxInstant || instant > maxInstant {
		return time.Time{}
	}
	next, ok := int64(0), false
	if f.Interval {
		next, ok = f.nextShown(zone, instant)
	} else {
		next, ok = f.nextReached(zone, instant)
	}
	if !ok {
		return time.Time{}
	}
	return time.Unix(next, 0).In(after.Location())
}

// nextShown returns the first instant after the given one at which the clock shows a
// time that matches.
func (f *Fields) nextShown(zone *time.Location, after int64) (int64, bool) {
	for from := after + 1; ; {
		s := stretchAt(zone, from)
		if wall, ok := f.match(from + s.offset); ok && wall < s.end+s.offset {
			return wall - s.offset, true
		}
		// From the end on, the clock shows no time before end-maxOffset. So it shows
		// none that matches before wall, and reaches wall no sooner than wall-maxOffset.
		wall, ok := f.match(s.end - maxOffset)
		// match looks to the end of the fortieth year after the one that it is in, and
		// would look further from each stretch on.
		if !ok || wall-after > (lookAhead+1)*366*day {
			return 0, false
		}
		from = max(s.end, wall-maxOffset)
	}
}

// nextReached returns the first instant after the given one at which the clock reaches a
// time that matches: shows it, or a later one, for the first time. Where the clock
// skips times that is the instant at which it does, and where times come twice the
// first of the two.
func (f *Fields) nextReached(zone *time.Location, after int64) (int64, bool) {
	wall, ok := f.match(reached(zone, after) + 1)
	if !ok {
		return 0, false
	}
	// Before this the clock shows earlier times.
	for from := max(after+1, wall-maxOffset); ; {
		s := stretchAt(zone, from)
		if wall < s.end+s.offset {
			return max(from, wall-s.offset), true
		}
		from = s.end
	}
}

// reached returns the latest time that the clock of a zone has shown up to an instant.
func reached(zone *time.Location, until int64) int64 {
	latest := int64(math.MinInt64)
	for from := until - 2*maxOffset; ; {
		s := stretchAt(zone, from)
		if s.end > until {
			return max(latest, until+s.offset)
		}
		latest = max(latest, s.end-1+s.offset)
		from = s.end
	}
}

// stretch is time in which a clock is not set, from some instant on. A wall time
// is the instant at which a clock in UTC shows it: here, instant + offset.
type stretch struct{ end, offset int64 }

func stretchAt(zone *time.Location, instant int64) stretch {
	t := time.Unix(instant, 0).In(zone)
	_, offset := t.Zone()
	_, end := t.ZoneBounds()
	switch {
	case end.IsZero():
		return stretch{math.MaxInt64 / 2, int64(offset)}
	case end.Unix() <= instant:
		// By a zone's rules for the years to come, ZoneBounds ends each year after 365
		// days. On the 366th no clock is set before the day ends in UTC.
		return stretch{(floorDiv(instant, day) + 1) * day, int64(offset)}
	}
	return stretch{end.Unix(), int64(offset)}
}

// match returns the first wall time that matches, from the given one on. It
// reports false if there is none in the next forty years.
func (f *Fields) match(from int64) (int64, bool) {
	today := floorDiv(from, day) * day
	year, month, dom := time.Unix(today, 0).UTC().Date()
	first := today - int64(dom-1)*day // of the month
	weekday := time.Unix(first, 0).UTC().Weekday()
	earliest := uint64(1) << dom // day to consider
	if f.days(weekday)&earliest != 0 && 1<<month&f.Month != 0 {
		if second, ok := f.secondOfDay(from - today); ok {
			return today + second, true
		}
	}
	earliest <<= 1
	for last := year + lookAhead; year <= last; earliest = 1 << 1 {
		length := daysIn(year, month)
		if 1<<month&f.Month != 0 {
			if n := bits.TrailingZeros64(f.days(weekday) &^ (earliest - 1)); n <= length {
				second, _ := f.secondOfDay(0)
				return first + int64(n-1)*day + second, true
			}
		}
		first += int64(length) * day
		weekday = (weekday + time.Weekday(length)) % 7
		if month++; month > time.December {
			year, month = year+1, time.January
		}
	}
	return 0, false
}

// days returns the days that match in a month that begins on a weekday, as a set.
func (f *Fields) days(weekday time.Weekday) uint64 {
	const week = 1<<7 - 1
	const weeks = 1 | 1<<7 | 1<<14 | 1<<21 | 1<<28
	dow := f.Dow & week
	ofWeek := (dow>>weekday | dow<<(7-weekday)) & week // bit 0 stands for the weekday of the 1st
	byDow := ofWeek * weeks << 1
	byDom := f.Dom & values
	if (f.Dom|f.Dow)&Star != 0 {
		return byDom & byDow
	}
	return byDom | byDow
}

// secondOfDay returns the first second of a day that matches, from the given one on.
func (f *Fields) secondOfDay(from int64) (int64, bool) {
	h, m, s := from/hour, from/minute%60, from%minute
	firstMinute, _ := firstIn(f.Minute, 0)
	firstSecond, _ := firstIn(f.Second, 0)
	if f.Hour>>h&1 != 0 {
		if f.Minute>>m&1 != 0 {
			if n, ok := firstIn(f.Second, s); ok {
				return h*hour + m*minute + n, true
			}
		}
		if n, ok := firstIn(f.Minute, m+1); ok {
			return h*hour + n*minute + firstSecond, true
		}
	}
	n, ok := firstIn(f.Hour, h+1)
	return n*hour + firstMinute*minute + firstSecond, ok
}

// firstIn returns the first value of a set, from the given one on.
func firstIn(set uint64, from int64) (int64, bool) {
	set = (set & values) >> from << from
	return int64(bits.TrailingZeros64(set)), set != 0
}

func daysIn(year int, month time.Month) int {
	switch month {
	case time.February:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	case time.April, time.June, time.September, time.November:
		return 30
	}
	return 31
}

// floorDiv is a/b rounded down, for a positive b.
func floorDiv(a, b int64) int64 {
	quotient := a / b
	if a%b < 0 {
		quotient--
	}
	return quotient
}

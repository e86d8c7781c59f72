package walltime_test

import (
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben/internal/walltime"
)

const layout = "2006-01-02 15:04:05 -0700"

// ticks returns those of an expression after a wall time and up to another.
func ticks(t testing.TB, zone, expression, from, until string) (shown []string) {
	t.Helper()
	location := load(t, zone)
	wall := func(text string) time.Time {
		at, err := time.ParseInLocation("2006-01-02 15:04", text, location)
		require.NoError(t, err)
		return at
	}
	fields := parse(t, expression)
	for at := fields.Next(location, wall(from)); !at.IsZero() && !at.After(wall(until)); at = fields.Next(location, at) {
		shown = append(shown, at.Format(layout))
	}
	return shown
}

// What cron(8) says of jobs around a change of the clock, in zones that change it
// in one way or another. The dates are those of the time zone database.
func TestTicksWhereAClockIsSet(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, zone, expression, from, until string
		ticks                               []string
	}{
		{"a fixed time in the hour that is skipped fires when the gap ends", "Europe/Rome", "30 2 * * *", "2026-03-28 03:00", "2026-03-30 03:00",
			[]string{"2026-03-29 03:00:00 +0200", "2026-03-30 02:30:00 +0200"}},
		{"several fixed times that are skipped fire once", "Europe/Rome", "0,15,30 2 * * *", "2026-03-28 03:00", "2026-03-29 12:00",
			[]string{"2026-03-29 03:00:00 +0200"}},
		{"a skipped time and one that is due when the gap ends are one tick", "Europe/Rome", "0 2,3 * * *", "2026-03-28 12:00", "2026-03-29 12:00",
			[]string{"2026-03-29 03:00:00 +0200"}},
		{"a fixed time in the hour that comes twice fires at the first", "Europe/Rome", "30 2 * * *", "2026-10-24 03:00", "2026-10-26 03:00",
			[]string{"2026-10-25 02:30:00 +0200", "2026-10-26 02:30:00 +0100"}},
		{"a list of minutes at a fixed hour fires twice, not four times", "America/New_York", "0,30 1 * * *", "2026-10-31 12:00", "2026-11-01 12:00",
			[]string{"2026-11-01 01:00:00 -0400", "2026-11-01 01:30:00 -0400"}},
		{"an interval does not fire in the gap", "Europe/Rome", "*/30 * * * *", "2026-03-29 01:00", "2026-03-29 04:00",
			[]string{"2026-03-29 01:30:00 +0100", "2026-03-29 03:00:00 +0200", "2026-03-29 03:30:00 +0200", "2026-03-29 04:00:00 +0200"}},
		{"an interval within the hour that is skipped does not fire", "Europe/Rome", "*/20 2 * * *", "2026-03-28 12:00", "2026-03-29 12:00", nil},
		{"an interval fires in both passes", "Europe/Rome", "30 * * * *", "2026-10-25 01:00", "2026-10-25 03:00",
			[]string{"2026-10-25 01:30:00 +0200", "2026-10-25 02:30:00 +0200", "2026-10-25 02:30:00 +0100"}},
		{"a step of hours is an interval", "Europe/Rome", "15 */2 * * *", "2026-10-25 01:00", "2026-10-25 05:00",
			[]string{"2026-10-25 02:15:00 +0200", "2026-10-25 02:15:00 +0100", "2026-10-25 04:15:00 +0100"}},
		{"a list that begins with a star is an interval", "Europe/Rome", "*/30,7 2 * * *", "2026-10-25 01:00", "2026-10-25 12:00",
			[]string{"2026-10-25 02:00:00 +0200", "2026-10-25 02:07:00 +0200", "2026-10-25 02:30:00 +0200", "2026-10-25 02:00:00 +0100", "2026-10-25 02:07:00 +0100", "2026-10-25 02:30:00 +0100"}},
		{"a star in the seconds makes an interval", "Europe/Rome", "*/30 30 2 * * *", "2026-10-25 01:00", "2026-10-25 12:00",
			[]string{"2026-10-25 02:30:00 +0200", "2026-10-25 02:30:30 +0200", "2026-10-25 02:30:00 +0100", "2026-10-25 02:30:30 +0100"}},
		{"seconds that are skipped fire when the gap ends", "Europe/Rome", "5,10 30 2 * * *", "2026-03-28 12:00", "2026-03-29 12:00",
			[]string{"2026-03-29 03:00:00 +0200"}},

		{"a clock that is set by half an hour", "Australia/Lord_Howe", "15 2 * * *", "2026-10-03 12:00", "2026-10-05 12:00",
			[]string{"2026-10-04 02:30:00 +1100", "2026-10-05 02:15:00 +1100"}},
		{"and back", "Australia/Lord_Howe", "45 1 * * *", "2027-04-03 12:00", "2027-04-05 12:00",
			[]string{"2027-04-04 01:45:00 +1100", "2027-04-05 01:45:00 +1030"}},
		{"every day after a clock was set by half an hour", "Australia/Lord_Howe", "0 0 * * *", "2026-10-03 12:00", "2026-10-05 12:00",
			[]string{"2026-10-04 00:00:00 +1030", "2026-10-05 00:00:00 +1100"}},
		{"a clock that is set at a quarter to three", "Pacific/Chatham", "50 3 * * *", "2027-04-03 12:00", "2027-04-05 12:00",
			[]string{"2027-04-04 03:50:00 +1245", "2027-04-05 03:50:00 +1245"}},
		{"minutes of the hour that comes twice", "Pacific/Chatham", "45-59/5 3 * * *", "2027-04-03 12:00", "2027-04-04 12:00",
			[]string{"2027-04-04 03:45:00 +1245", "2027-04-04 03:50:00 +1245", "2027-04-04 03:55:00 +1245"}},
		{"a clock that is set by two hours", "Antarctica/Troll", "0,30 1,2 * * *", "2026-03-28 12:00", "2026-03-29 12:00",
			[]string{"2026-03-29 03:00:00 +0200"}},
		{"and back by two hours", "Antarctica/Troll", "30 1,2 * * *", "2026-10-24 12:00", "2026-10-25 12:00",
			[]string{"2026-10-25 01:30:00 +0200", "2026-10-25 02:30:00 +0200"}},
		{"a zone that moved by a quarter of an hour", "Asia/Kathmandu", "10 0 * * *", "1985-12-31 12:00", "1986-01-02 12:00",
			[]string{"1986-01-01 00:15:00 +0545", "1986-01-02 00:10:00 +0545"}},
		{"a zone that moved by twenty minutes", "Africa/Accra", "10 2 * * *", "1920-08-31 12:00", "1920-09-02 12:00",
			[]string{"1920-09-01 02:20:00 +0020", "1920-09-02 02:10:00 +0020"}},
		{"a zone that moved by forty minutes", "Pacific/Kiritimati", "39 0 * * *", "1979-09-30 12:00", "1979-10-02 12:00",
			[]string{"1979-10-01 00:40:00 -1000", "1979-10-02 00:39:00 -1000"}},
		{"a zone that moved by 45 minutes", "America/Guyana", "0,44,46 0 * * *", "1975-07-31 12:00", "1975-08-01 12:00",
			[]string{"1975-08-01 00:45:00 -0300", "1975-08-01 00:46:00 -0300"}},
		{"a zone that moved by 44 minutes and 30 seconds", "Africa/Monrovia", "30 0 * * *", "1972-01-06 12:00", "1972-01-08 12:00",
			[]string{"1972-01-07 00:44:30 +0000", "1972-01-08 00:30:00 +0000"}},

		{"midnight that is skipped", "Africa/Cairo", "0 0 * * *", "2027-04-29 12:00", "2027-05-01 12:00",
			[]string{"2027-04-30 01:00:00 +0300", "2027-05-01 00:00:00 +0300"}},
		{"noon of a Friday whose midnight is skipped", "Africa/Cairo", "0 12 * * FRI", "2027-04-24 12:00", "2027-05-01 12:00",
			[]string{"2027-04-30 12:00:00 +0300"}},
		{"the hours of a day whose midnight is skipped", "Asia/Beirut", "0 */6 28 3 *", "2027-03-27 12:00", "2027-03-29 12:00",
			[]string{"2027-03-28 06:00:00 +0300", "2027-03-28 12:00:00 +0300", "2027-03-28 18:00:00 +0300"}},
		{"a Saturday where midnight of the Sunday after is skipped", "America/Havana", "0 5 * * 6", "2027-03-12 12:00", "2027-03-20 12:00",
			[]string{"2027-03-13 05:00:00 -0500", "2027-03-20 05:00:00 -0400"}},
		{"a skipped midnight fires on its own day only", "America/Santiago", "0 0 * * SAT", "2026-09-05 12:00", "2026-09-12 12:00",
			[]string{"2026-09-12 00:00:00 -0300"}},
		{"a skipped midnight of a Sunday", "America/Santiago", "0 0 * * SUN", "2026-09-05 12:00", "2026-09-06 12:00",
			[]string{"2026-09-06 01:00:00 -0300"}},
		{"an hour before midnight that comes twice", "Africa/Cairo", "30 23 * * THU", "2026-10-29 12:00", "2026-10-30 12:00",
			[]string{"2026-10-29 23:30:00 +0300"}},
		{"a midnight that comes twice", "America/Havana", "0 0 * * *", "2026-10-31 12:00", "2026-11-02 12:00",
			[]string{"2026-11-01 00:00:00 -0400", "2026-11-02 00:00:00 -0500"}},
		{"a day that never was fires when the clock has passed it, once with the day after", "Pacific/Apia", "0 0 * * *", "2011-12-28 12:00", "2012-01-01 12:00",
			[]string{"2011-12-29 00:00:00 -1000", "2011-12-31 00:00:00 +1400", "2012-01-01 00:00:00 +1400"}},
		{"a weekday that never was", "Pacific/Apia", "0 12 * * FRI", "2011-12-28 12:00", "2012-01-06 12:00",
			[]string{"2011-12-31 00:00:00 +1400", "2012-01-06 12:00:00 +1400"}},
		{"an interval on a day that never was", "Pacific/Apia", "0 */12 30 * *", "2011-12-28 12:00", "2012-01-02 12:00", nil},
		{"a day that came twice", "America/Juneau", "0 12 * * *", "1867-10-18 13:00", "1867-10-20 13:00",
			[]string{"1867-10-19 12:00:00 +1502", "1867-10-20 12:00:00 -0857"}},
		{"winter time that is called summer time", "Europe/Dublin", "30 1 * * *", "2026-03-28 12:00", "2026-03-29 12:00",
			[]string{"2026-03-29 02:00:00 +0100"}},
		{"a clock that is set back for a month", "Africa/Casablanca", "30 2 * * *", "2027-03-13 12:00", "2027-03-15 12:00",
			[]string{"2027-03-14 03:00:00 +0100", "2027-03-15 02:30:00 +0100"}},
		{"the last day of a leap year", "Europe/Rome", "59 23 31 12 *", "2040-12-30 12:00", "2042-01-01 12:00",
			[]string{"2040-12-31 23:59:00 +0100", "2041-12-31 23:59:00 +0100"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := ticks(t, c.zone, c.expression, c.from, c.until)
			assert.Equal(t, c.ticks, got, "%s in %s", c.expression, c.zone)
		})
	}
}

// What Cronos publishes for its rules, where they are those of cron(8): it takes
// ranges for intervals, and does not skip an interval of one hour.
func TestNextAgreesWithWhatOthersPublish(t *testing.T) {
	t.Parallel()
	const minutes = "2006-01-02 15:04 -07:00"
	for _, c := range []struct{ zone, expression, after, next string }{
		{"America/New_York", "*/30 * * * *", "2016-03-13 01:30 -05:00", "2016-03-13 03:00 -04:00"},
		{"America/New_York", "0,30 0-23/2 * * *", "2016-03-13 00:30 -05:00", "2016-03-13 03:00 -04:00"},
		{"America/New_York", "0,30 2 * * *", "2016-03-12 02:30 -05:00", "2016-03-13 03:00 -04:00"},
		{"America/New_York", "0,30 02 13 03 *", "2016-03-13 01:45 -05:00", "2016-03-13 03:00 -04:00"},
		{"America/New_York", "30 0-23/2 * * *", "2016-03-13 00:30 -05:00", "2016-03-13 03:00 -04:00"},
		{"America/New_York", "0,59 * * * *", "2016-03-13 01:59 -05:00", "2016-03-13 03:00 -04:00"},
		{"Australia/Lord_Howe", "*/30 * * * *", "2017-10-01 01:45 +10:30", "2017-10-01 02:30 +11:00"},
		{"Australia/Lord_Howe", "0,30 0-23/2 * * *", "2017-10-01 01:59 +10:30", "2017-10-01 02:30 +11:00"},
		{"Australia/Lord_Howe", "0,30 02 01 10 *", "2017-10-01 01:45 +10:30", "2017-10-01 02:30 +11:00"},
		{"Australia/Lord_Howe", "30 2 * * *", "2017-10-01 01:59 +10:30", "2017-10-01 02:30 +11:00"},
		{"America/New_York", "*/30 */2 * * *", "2016-11-06 01:30 -04:00", "2016-11-06 02:00 -05:00"},
		{"America/New_York", "0 2-3 * * *", "2016-11-06 00:30 -04:00", "2016-11-06 02:00 -05:00"},
		{"America/New_York", "*/30 * * * *", "2016-11-06 01:30 -04:00", "2016-11-06 01:00 -05:00"},
		{"America/New_York", "*/30 * * * *", "2016-11-06 01:30 -05:00", "2016-11-06 02:00 -05:00"},
		{"America/New_York", "30 */1 * * *", "2016-11-06 01:59 -04:00", "2016-11-06 01:30 -05:00"},
		{"America/New_York", "*/30 1 * * *", "2016-11-06 01:59 -04:00", "2016-11-06 01:00 -05:00"},
		{"America/New_York", "0,30 1 * * *", "2016-11-06 01:20 -04:00", "2016-11-06 01:30 -04:00"},
		{"America/New_York", "0,30 1 * * *", "2016-11-06 01:30 -04:00", "2016-11-07 01:00 -05:00"},
		{"America/New_York", "0,30 1 * * *", "2016-11-06 01:00 -05:00", "2016-11-07 01:00 -05:00"},
	} {
		zone := load(t, c.zone)
		after, err := time.Parse(minutes, c.after)
		require.NoError(t, err)
		assert.Equal(t, c.next, parse(t, c.expression).Next(zone, after.In(zone)).Format(minutes), "%s in %s after %s", c.expression, c.zone, c.after)
	}
}

func TestEachDayOfAYearHasItsTick(t *testing.T) {
	t.Parallel()
	all, err := zones()
	require.NoError(t, err)
	for _, name := range []string{"Australia/Lord_Howe", "Africa/Cairo", "Asia/Beirut", "America/Havana", "America/Santiago", "Atlantic/Azores", "Pacific/Chatham", "Antarctica/Troll", "Europe/Rome"} {
		for _, expression := range []string{"0 12 * * *", "0 0 * * *", "30 2 * * *", "50 3 * * *"} {
			fields, days := parse(t, expression), make(map[string]int)
			begin := time.Date(2027, 1, 1, 0, 0, 0, 0, all[name]).Add(-time.Second)
			for at := fields.Next(all[name], begin); at.Year() < 2028; at = fields.Next(all[name], at) {
				days[at.Format("01-02")]++
			}
			assert.Len(t, days, 365, "%s in %s", expression, name)
			for day, ticks := range days {
				assert.Equal(t, 1, ticks, "%s in %s on %s", expression, name, day)
			}
		}
	}
}

func TestNextIsZeroWhereNothingMatches(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)
	for _, expression := range []string{"0 0 30 2 *", "0 0 31 4,6,9,11 *", "* * 30 2 *", ", * * * *", "* , * * *", ", * * * * *", "* * , * *", "* * * , *"} {
		assert.Zero(t, parse(t, expression).Next(load(t, "Europe/Rome"), now), expression)
	}
	assert.Zero(t, new(walltime.Fields).Next(time.UTC, now))
}

func TestNextLooksFortyYearsAhead(t *testing.T) {
	t.Parallel()
	leap := parse(t, "0 0 29 2 *")
	assert.Equal(t, time.Date(2104, 2, 29, 0, 0, 0, 0, time.UTC), leap.Next(time.UTC, time.Date(2096, 2, 29, 0, 0, 0, 0, time.UTC)))
	leap.Dow = walltime.Star | 1<<time.Monday
	assert.Equal(t, time.Date(2112, 2, 29, 0, 0, 0, 0, time.UTC), leap.Next(time.UTC, time.Date(2072, 2, 29, 0, 0, 0, 0, time.UTC)))
}

func TestDaysOfMonthAndWeekAreJoinedAsInRobfigCron(t *testing.T) {
	t.Parallel()
	for expression, days := range map[string][]int{
		"0 0 13 * FRI":  {4, 11, 13, 18, 25}, // either, as both are given
		"0 0 13 * *":    {13},
		"0 0 * * FRI":   {4, 11, 18, 25},
		"0 0 ? * FRI":   {4, 11, 18, 25},
		"0 0 */9 * 5":   {1, 4, 10, 11, 18, 19, 25, 28}, // a step restricts
		"0 0 */1 * FRI": {4, 11, 18, 25},
	} {
		fields := parse(t, expression)
		var got []int
		for at := fields.Next(time.UTC, time.Date(2026, 8, 31, 12, 0, 0, 0, time.UTC)); at.Month() == time.September; at = fields.Next(time.UTC, at) {
			got = append(got, at.Day())
		}
		assert.Equal(t, days, got, expression)
	}
}

func TestNextIsInTheLocationThatItIsGiven(t *testing.T) {
	t.Parallel()
	tokyo := load(t, "Asia/Tokyo")
	next := parse(t, "0 12 * * *").Next(load(t, "Europe/Rome"), time.Date(2026, 11, 25, 10, 0, 0, 999, tokyo))
	assert.Equal(t, time.Date(2026, 11, 25, 20, 0, 0, 0, tokyo), next)
}

func TestNextBearsAnyInstant(t *testing.T) {
	t.Parallel()
	fields := parse(t, "0 12 * * *")
	for _, seconds := range []int64{math.MinInt64, -1 << 60, -1 << 55, 1 << 55, 1 << 60, math.MaxInt64} {
		for _, zone := range []*time.Location{time.UTC, load(t, "Europe/Rome"), time.FixedZone("far", 100*3600)} {
			at := time.Unix(seconds, 0)
			if next := fields.Next(zone, at); !next.IsZero() {
				assert.Greater(t, next.Unix(), seconds)
			}
		}
	}
	assert.Equal(t, time.Date(1, 1, 1, 12, 0, 0, 0, time.UTC), fields.Next(time.UTC, time.Time{}))
}

// FuzzNext looks for fields, zones and instants for which Next is not after the
// instant, passes over a tick, or takes long.
func FuzzNext(f *testing.F) {
	all, err := zones()
	require.NoError(f, err)
	names := slices.Sorted(maps.Keys(all))
	for _, seed := range []struct {
		expression string
		zone       int
		at         int64
	}{
		{"* * * * *", 0, 0}, {"50 3 * * *", 500, 1806757200}, {"0 0 29 2 *", 100, 4e9}, {"* * 30 2 *", 17, 1e9},
		{"59 59 23 31 12 *", 321, 2240610000}, {"* 2 29 2 *", 42, 5e9}, {"*/7 2 28 3 0", 400, -5e9},
	} {
		s := parse(f, seed.expression)
		f.Add(s.Second, s.Minute, s.Hour, s.Dom, s.Month, s.Dow, s.Interval, seed.zone, seed.at, int64(0), int64(1))
	}
	f.Fuzz(func(t *testing.T, second, minute, hour, dom, month, dow uint64, interval bool, zone int, seconds, nanoseconds, between int64) {
		fields := walltime.Fields{
			Second: second & (1<<60 - 1), Minute: minute & (1<<60 - 1), Hour: hour & (1<<24 - 1), Month: month & (1<<13 - 2),
			Dom: dom & (1<<32 - 2 | walltime.Star), Dow: dow & (1<<7 - 1 | walltime.Star), Interval: interval,
		}
		location := all[names[uint(zone)%uint(len(names))]]
		after := time.Unix(seconds, nanoseconds)
		next := fields.Next(location, after)
		// The fastest of some: what else the machine does is not measured.
		took := time.Hour
		for try := 0; try < 10 && took > time.Millisecond; try++ {
			start := time.Now()
			fields.Next(location, after)
			took = min(took, time.Since(start))
		}
		if took > time.Millisecond {
			t.Errorf("%s after %v took %v", location, after, took)
		}
		if next.IsZero() {
			return
		}
		if !next.After(after) {
			t.Fatalf("%s: after %v comes %v", location, after, next)
		}
		if gap := next.Unix() - seconds; gap > 0 && between > 0 {
			if again := fields.Next(location, time.Unix(seconds+between%gap, 0)); !again.Equal(next) && seconds+between%gap >= after.Unix() {
				t.Fatalf("%s: after %v comes %v, but after %v %v", location, after, next, time.Unix(seconds+between%gap, 0), again)
			}
		}
	})
}

func BenchmarkNext(b *testing.B) {
	now := time.Date(2026, 11, 25, 10, 7, 12, 345, time.UTC)
	for _, c := range []struct{ name, expression string }{
		{"every minute", "* * * * *"},
		{"daily", "30 2 * * *"},
		{"29 February", "0 0 29 2 *"},
		{"never", "0 0 30 2 *"},
		{"never, an interval", "* * 30 2 *"},
	} {
		b.Run(c.name, func(b *testing.B) {
			fields, rome := parse(b, c.expression), load(b, "Europe/Rome")
			b.ReportAllocs()
			for b.Loop() {
				fields.Next(rome, now)
			}
		})
	}
}

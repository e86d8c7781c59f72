package cronexpr

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben/internal/ledger"
)

func TestExpressionsThatAreAccepted(t *testing.T) {
	t.Parallel()
	five := []string{
		"* * * * *", "*/5 * * * *", "0 0 29 2 *", "15,45 8-18/2 * * MON", "59 23 31 12 ?",
		"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly",
		"@every 1s", "@every 1h30m", "@every 1.5s", "@every 43800h",
		"CRON_TZ=Europe/Rome 30 4 * * 1-5", "TZ=UTC 0 12 * * *", "TZ=Asia/Tokyo @daily", "TZ= 0 12 * * *",
		"1,,2 * * * *",
		"0 0 * * 7", "0 0 * * 5-7", "0 0 * * 0-7", "0 0 * * 7,1", "0 0 * * */7", "0 0 * * 1-7/2", "0 0 * * sat-SUN", "0 0 * * 7/1", "0 0 * * 5-7/3",
		"0\t9\t*\t*\t*", "0 9 * * *\n", "\r\n 0 9 * * *\v\f", "CRON_TZ=Europe/Rome\t0 9 * * *", " CRON_TZ=Europe/Rome 0 9 * * *",
		"@every\t1h", " @daily\n", "TZ=Asia/Tokyo\t@every  90m",
		"*/60 * * * *", "0 */24 * * *", "0 0 */31 * *", "0 0 1 */12 *", "5-9/5 0-23/24 * * *", "0 0 1 jan/12 *",
		"@at " + time.Now().Add(time.Hour).Format(time.RFC3339), "@at\t" + time.Now().UTC().AddDate(39, 0, 0).Format(time.RFC3339Nano),
	}
	six := []string{"* * * * * *", "*/2 0 0 1 1 ?", "TZ=UTC 30 0 12 * * *", "\t0 0\t9 * * 7 ", "*/60 0 0 * * *"}
	for _, expression := range five {
		assert.NoError(t, Rules{}.Check(expression), expression)
		assert.NoError(t, Rules{WithSeconds: true, Recorded: true}.Check(expression), expression)
	}
	for _, expression := range six {
		assert.ErrorContains(t, Rules{}.Check(expression), "WithSeconds", expression)
		assert.NoError(t, Rules{WithSeconds: true}.Check(expression), expression)
	}
}

func TestExpressionsThatAreRefusedSayWhy(t *testing.T) {
	t.Parallel()
	refused := map[string]string{
		"":                                     "empty spec string",
		"61 * * * *":                           "above maximum",
		"* * * *":                              "found 4",
		"@never":                               "unrecognized descriptor",
		"0 0 30 2 *":                           "never fires in the next forty years",
		"0 0 31 4,6,9,11 *":                    "never fires in the next forty years",
		"@at 2001-01-01T00:00:00Z":             "the time is past",
		"@at 9999-01-01T00:00:00Z":             "never fires in the next forty years",
		"@at 2027-05-01T11:30:00":              "RFC 3339",
		"@at 2027-05-01":                       "RFC 3339",
		"@at 2027-05-01 11:30:00Z":             "RFC 3339",
		"@at 2027-13-01T11:30:00Z":             "month out of range",
		"@at 2027-02-30T11:30:00Z":             "day out of range",
		"@at 2027-05-01T24:00:00Z":             "hour out of range",
		"@at 2027-05-01T9:30:00Z":              "RFC 3339",
		"@at":                                  "RFC 3339",
		"@at tomorrow":                         "RFC 3339",
		"@at2027-05-01T11:30:00Z":              "unrecognized descriptor",
		"*/90 * * * *":                         "minute: */90: a step of 90 through 60 values",
		"*/61 * * * *":                         "a step of 61 through 60 values",
		"10/70 * * * *":                        "minute: 10/70: a step of 70 through 50 values",
		"0-30/60 * * * *":                      "a step of 60 through 31 values",
		"5,0-30/60 * * * *":                    "a step of 60 through 31 values",
		"?/90 * * * *":                         "minute: ?/90",
		"0 */36 * * *":                         "hour: */36",
		"0 0 */45 * *":                         "day of month: */45",
		"0 0 1 */18 *":                         "month: */18",
		"0 0 1 jan-mar/4 *":                    "month: jan-mar/4: a step of 4 through 3 values",
		"0 0 * * */10":                         "day of week: */10",
		"0 0 * * 7/2":                          "day of week: 7/2: a step of 2 through 1 values",
		"0 0 * * 8":                            "day of week: ",
		"0 0 * * 0-8":                          "day of week: ",
		"0 0 * * 7-1":                          "day of week: beginning of range (7) beyond end of range (1)",
		"0 0 * * funday":                       "day of week: failed to parse int from funday",
		"0 0 1 13 *":                           "month: end of range (13) above maximum (12)",
		"0 0 0 * *":                            "day of month: beginning of range (0) below minimum (1)",
		"0 24 * * *":                           "hour: end of range (24) above maximum (23)",
		"0 22-4 * * *":                         "hour: beginning of range (22) beyond end of range (4)",
		"0 0 TZ=UTC * *":                       "day of month: failed to parse int from TZ=UTC",
		"0 @daily * * *":                       "hour: failed to parse int from @daily",
		" \t\n":                                "empty spec string",
		", * * * *":                            "a field is an empty list",
		"* * , * *":                            "a field is an empty list",
		",,, , , , ,":                          "a field is an empty list",
		"@every 0s":                            "not positive",
		"@every -1h":                           "not positive",
		"@every 999ms":                         "under one second",
		"@every 43801h":                        "over five years",
		"@every forever":                       "invalid duration",
		"TZ=UTC @every 10ms":                   "under one second",
		"TZ=UTC":                               "nothing after the time zone",
		"CRON_TZ=Europe/Rome ":                 "nothing after the time zone",
		"TZ=":                                  "nothing after the time zone",
		"TZ=Mars/Olympus * * * * *":            "unknown time zone Mars/Olympus",
		"*\u00a0* * * * *":                     "printable ASCII",
		"* * * * *\x00":                        "printable ASCII",
		"\u0661 * * * *":                       "printable ASCII",
		"*/0 * * * *":                          "step of range should be a positive number",
		"@every 1h" + strings.Repeat(" ", 300): "at most 256",
	}
	for expression, why := range refused {
		for _, withSeconds := range []bool{false, true} {
			if expression == ",,, , , , ," && withSeconds {
				expression = ",,, , , , , ,"
			}
			start := time.Now()
			err := Rules{WithSeconds: withSeconds}.Check(expression)
			took := time.Since(start)
			if assert.ErrorContains(t, err, why, "%q", expression) && len(expression) <= MaxLength && expression != "" {
				assert.ErrorContains(t, err, fmt.Sprintf("%q", expression))
			}
			assert.Less(t, took, 10*time.Second, "%q: a hang, not a measurement", expression)
		}
	}
}

func TestAStoredExpressionThatTheParserAcceptsIsKept(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	for expression, next := range map[string]time.Time{
		"30 0 12 * * *":                    time.Date(2026, 11, 23, 12, 0, 30, 0, time.UTC), // six fields, whatever WithSeconds says
		"@every 100ms":                     now.Add(time.Second),
		"@every -5m":                       now.Add(time.Second),
		" *  * * * * ":                     now.Add(time.Minute),
		", * * * *":                        {}, // never, and at once
		"*/90 * * * *":                     time.Date(2026, 11, 23, 11, 0, 0, 0, time.UTC),
		"0 0 , * MON":                      time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC),
		"0 0 5/2 * *":                      time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC),
		"0 0 * * 5/2":                      time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC), // as in robfig/cron, whose week ends on Saturday
		"@at 2001-01-01T00:00:00Z":         {},
		"@at 2026-11-23T12:00:00.25+01:00": time.Date(2026, 11, 23, 11, 0, 0, 250_000_000, time.UTC),
		", , , , , ,":                      {},
		"0 0 30 2 *":                       {},
		"TZ=Asia/Tokyo 0 0 * * *":          time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC),
	} {
		schedule, err := Parse(expression, now)
		require.NoError(t, err, expression)
		assert.True(t, next.Equal(schedule.Next(now)), "%q: %s", expression, schedule.Next(now))
	}
}

func TestAnExpressionThatPanicsTheParserIsAnError(t *testing.T) {
	t.Parallel()
	for _, expression := range []string{"TZ=UTC", "CRON_TZ=Europe/Rome", "TZ=", "CRON_TZ="} {
		_, err := Parse(expression, time.Time{})
		assert.ErrorContains(t, err, "nothing after the time zone", expression)
	}
}

func TestEveryKeepsItsPhase(t *testing.T) {
	t.Parallel()
	created := time.Date(2026, 3, 1, 8, 30, 12, 987_000_000, time.UTC)
	schedule, err := Parse("@every 24h", created)
	require.NoError(t, err)
	for _, c := range []struct{ from, next time.Time }{
		{created, time.Date(2026, 3, 2, 8, 30, 12, 0, time.UTC)},
		{time.Date(2026, 3, 2, 8, 30, 11, 999, time.UTC), time.Date(2026, 3, 2, 8, 30, 12, 0, time.UTC)},
		{time.Date(2026, 3, 2, 8, 30, 12, 0, time.UTC), time.Date(2026, 3, 3, 8, 30, 12, 0, time.UTC)},
		{time.Date(2027, 3, 2, 23, 0, 0, 0, time.UTC), time.Date(2027, 3, 3, 8, 30, 12, 0, time.UTC)},
		{created.Add(-time.Hour), time.Date(2026, 3, 1, 8, 30, 12, 0, time.UTC)}, // a clock that was set back
	} {
		assert.Equal(t, c.next, schedule.Next(c.from), "from %s", c.from)
	}
}

func TestEveryFiresInTheFutureWhateverTheCreationTime(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 10, 0, 0, 123, time.UTC)
	for _, created := range []time.Time{
		{}, time.Unix(0, 0), time.Unix(-1, 0), now, now.Add(100 * 365 * 24 * time.Hour),
		time.Unix(math.MaxInt64, 0), time.Unix(math.MinInt64, 0), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	} {
		for _, every := range []string{"@every 1s", "@every 7s", "@every 43800h", "@every 2540400h"} {
			schedule, err := Parse(every, created)
			require.NoError(t, err)
			next := schedule.Next(now)
			assert.True(t, next.After(now), "%s from %s: %s", every, created, next)
			delay := schedule.(everySchedule).delay
			assert.LessOrEqual(t, next.Unix()-now.Unix(), delay)
			assert.Zero(t, floorMod(floorMod(next.Unix(), delay)-floorMod(created.Unix(), delay), delay), "the phase of %s from %s", every, created)
		}
	}
}

func FuzzExpression(f *testing.F) {
	for _, seed := range []string{
		"* * * * *", "TZ=UTC", "CRON_TZ=Europe/Rome 30 4 * * 1-5", ", * * * *", "@every 1s", "@every 9999999h",
		"0 0 30 2 *", "*/99999999999 * * * *", "TZ=../../etc/passwd * * * * *", "@", "1-2-3 * * * *", "? ? ? ? ? ?",
		"@every 1h1h1h", "59 59 23 31 12 6", "TZ=Australia/Lord_Howe */30 * * * *", "TZ=Africa/Cairo 0 0 * 4 5",
	} {
		f.Add(seed)
	}
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, expression string) {
		for _, withSeconds := range []bool{false, true} {
			start := time.Now()
			err := Rules{WithSeconds: withSeconds}.Check(expression)
			if took := time.Since(start); took > 5*time.Second {
				t.Fatalf("%q: the verdict took %s", expression, took)
			}
			if err != nil {
				continue
			}
			schedule, err := Parse(expression, now)
			if err != nil {
				t.Fatalf("%q is accepted and does not load: %v", expression, err)
			}
			if next := schedule.Next(now); !next.IsZero() && !next.After(now) {
				t.Fatalf("%q: the next tick %s is not in the future", expression, next)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, expression := range []string{"*/5 * * * *", "CRON_TZ=Europe/Rome 30 4 * * 1-5", "@every 1h"} {
		b.Run(expression, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(expression, time.Time{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkValidate(b *testing.B) {
	for _, expression := range []string{"*/5 * * * *", "0 0 29 2 *", "0 0 30 2 *"} {
		b.Run(expression, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = Rules{}.Check(expression)
			}
		})
	}
}

// scheduleIn is the schedule of an expression that was created at the epoch, in a
// location.
func scheduleIn(t *testing.T, expression string, location *time.Location) cron.Schedule {
	t.Helper()
	schedule, err := Parse(expression, time.Unix(0, 0))
	require.NoError(t, err)
	return In(schedule, location)
}

func TestSevenIsSunday(t *testing.T) {
	t.Parallel()
	for expression, days := range map[string]string{
		"7": "Sun", "0": "Sun", "5-7": "Fri Sat Sun", "0-7": "Mon Tue Wed Thu Fri Sat Sun", "7,1": "Mon Sun", "*/7": "Sun", "*/2": "Tue Thu Sat Sun",
		"1-7/2": "Mon Wed Fri Sun", "1-7/4": "Mon Fri", "6-7": "Sat Sun", "SAT-SUN": "Sat Sun", "fri-sun,2": "Tue Fri Sat Sun", "1-SUN/3": "Mon Thu Sun",
		"7-7": "Sun", "7-SUN": "Sun", "SUN-7": "Mon Tue Wed Thu Fri Sat Sun", "0-SUN": "Sun", "SUN-SUN": "Sun", "SUN-TUE": "Mon Tue Sun", "7/1": "Sun", "07": "Sun", "5/2": "Fri", "0-7/7": "Sun",
	} {
		schedule := scheduleIn(t, "0 12 * * "+expression, time.UTC)
		sunday := time.Date(2026, 11, 29, 23, 0, 0, 0, time.UTC)
		var got []string
		for _, at := range Ticks(schedule, sunday, 7) {
			if at.Before(sunday.AddDate(0, 0, 7)) {
				got = append(got, at.Format("Mon"))
			}
		}
		assert.Equal(t, days, strings.Join(got, " "), expression)
	}
}

// Which rule of cron(8) an expression follows is seen where a clock is set back.
func TestAnExpressionThatBeginsWithAStarIsAnInterval(t *testing.T) {
	t.Parallel()
	rome, err := time.LoadLocation("Europe/Rome")
	require.NoError(t, err)
	for expression, ticks := range map[string]int{ // from 2:00 to 3:00, which come twice
		"30 2 * * *": 1, "0,30 2 * * *": 2, "30 2-2 * * *": 1, "@daily": 0, "30 0,*/2 * * *": 1, "30 2 */1 * *": 1, "0 30 2 * * *": 1, "@every 1h": 2,
		"30 * * * *": 2, "30 */2 * * *": 2, "@hourly": 2, "* 2 * * *": 120, "*/30 2 * * *": 4, "*/30,7 2 * * *": 6, "? 2 * * *": 120, "*/60 2 * * *": 2,
		"*/30 30 2 * * *": 4, "0 */30 2 * * *": 4, "0 30 * * * *": 2, "*/2,2 30 2 * * *": 60,
		"@at 2026-10-25T02:30:00+01:00": 1, "CRON_TZ=UTC 30 0,1 * * *": 2,
	} {
		schedule := scheduleIn(t, expression, rome)
		end := time.Date(2026, 10, 25, 2, 0, 0, 0, time.UTC)
		got, _ := ledger.TicksIn(schedule, end.Add(-2*time.Hour-1), end.Add(-1), 1000)
		assert.Len(t, got, ticks, expression)
	}
}

func TestAtFiresOnce(t *testing.T) {
	t.Parallel()
	schedule := scheduleIn(t, "CRON_TZ=Asia/Tokyo @at 2027-05-01T11:30:00+02:00", time.UTC)
	at := time.Date(2027, 5, 1, 9, 30, 0, 0, time.UTC)
	assert.Equal(t, at, schedule.Next(at.Add(-time.Nanosecond)))
	assert.Equal(t, at, schedule.Next(time.Time{}.UTC()))
	assert.Zero(t, schedule.Next(at))
}

func TestLocalIsTheZoneOfTheMachine(t *testing.T) {
	// Not parallel: it sets time.Local.
	local := time.Local
	defer func() { time.Local = local }()
	for _, name := range []string{"America/New_York", "Asia/Tokyo"} {
		zone, err := time.LoadLocation(name)
		require.NoError(t, err)
		time.Local = zone
		schedule := scheduleIn(t, "CRON_TZ=Local 0 9 * * *", time.UTC)
		assert.Equal(t, 9, schedule.Next(time.Now().UTC()).In(zone).Hour(), name)
	}
	for _, expression := range []string{"TZ=Local @daily", "CRON_TZ=Local\t0 9 * * *"} {
		assert.NoError(t, Rules{}.Check(expression))
		assert.ErrorContains(t, Rules{Recorded: true}.Check(expression), "machines that record runs together may differ")
	}
}

func TestLeapDaysAroundACenturyAreEightYearsApart(t *testing.T) {
	t.Parallel()
	schedule := scheduleIn(t, "0 0 29 2 *", time.UTC)
	ticks := Ticks(schedule, time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC), 19)
	require.Len(t, ticks, 19)
	assert.Equal(t, 2096, ticks[17].Year())
	assert.Equal(t, 2104, ticks[18].Year())
}

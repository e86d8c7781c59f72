package smallben

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestExpressionsThatAreAccepted(t *testing.T) {
	t.Parallel()
	five := []string{
		"* * * * *", "*/5 * * * *", "0 0 29 2 *", "15,45 8-18/2 * * MON", "59 23 31 12 ?",
		"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly",
		"@every 1s", "@every 1h30m", "@every 1.5s", "@every 43800h",
		"CRON_TZ=Europe/Rome 30 4 * * 1-5", "TZ=UTC 0 12 * * *", "TZ=Asia/Tokyo @daily", "TZ= 0 12 * * *",
		"1,,2 * * * *",
	}
	six := []string{"* * * * * *", "*/2 0 0 1 1 ?", "TZ=UTC 30 0 12 * * *"}
	for _, expression := range five {
		assert.NoError(t, validateExpression(expression, false), expression)
		assert.NoError(t, validateExpression(expression, true), expression)
	}
	for _, expression := range six {
		assert.Error(t, validateExpression(expression, false), expression)
		assert.NoError(t, validateExpression(expression, true), expression)
	}
}

func TestExpressionsThatAreRefusedSayWhy(t *testing.T) {
	t.Parallel()
	refused := map[string]string{
		"":                                     "empty spec string",
		"61 * * * *":                           "above maximum",
		"* * * *":                              "found 4",
		"@never":                               "unrecognized descriptor",
		"0 0 30 2 *":                           "never fires in the next five years",
		"0 0 31 4,6,9,11 *":                    "never fires in the next five years",
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
		"TZ=Mars/Olympus * * * * *":            "bad time zone",
		"*\t* * * *":                           "printable ASCII",
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
			err := validateExpression(expression, withSeconds)
			took := time.Since(start)
			if assert.ErrorContains(t, err, why, "%q", expression) && len(expression) <= maxExpressionLength && expression != "" {
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
		"30 0 12 * * *":           time.Date(2026, 11, 23, 12, 0, 30, 0, time.UTC), // six fields, whatever WithSeconds says
		"@every 100ms":            now.Add(time.Second),
		"@every -5m":              now.Add(time.Second),
		" *  * * * * ":            now.Add(time.Minute),
		", * * * *":               {}, // never, and at once
		", , , , , ,":             {},
		"0 0 30 2 *":              {},
		"TZ=Asia/Tokyo 0 0 * * *": time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC),
	} {
		schedule, err := parseExpression(expression, now)
		require.NoError(t, err, expression)
		assert.True(t, next.Equal(schedule.Next(now)), "%q: %s", expression, schedule.Next(now))
	}
}

func TestAnExpressionThatPanicsTheParserIsAnError(t *testing.T) {
	t.Parallel()
	for _, expression := range []string{"TZ=UTC", "CRON_TZ=Europe/Rome", "TZ=", "CRON_TZ="} {
		_, err := parseExpression(expression, time.Time{})
		assert.ErrorContains(t, err, "nothing after the time zone", expression)
	}
}

func TestEveryKeepsItsPhase(t *testing.T) {
	t.Parallel()
	created := time.Date(2026, 3, 1, 8, 30, 12, 987_000_000, time.UTC)
	schedule, err := parseExpression("@every 24h", created)
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
			schedule, err := parseExpression(every, created)
			require.NoError(t, err)
			next := schedule.Next(now)
			assert.True(t, next.After(now), "%s from %s: %s", every, created, next)
			delay := schedule.(everySchedule).delay
			assert.LessOrEqual(t, next.Unix()-now.Unix(), delay)
			assert.Zero(t, floorMod(floorMod(next.Unix(), delay)-floorMod(created.Unix(), delay), delay), "the phase of %s from %s", every, created)
		}
	}
}

// A skipped hour is skipped and a repeated one repeats: robfig/cron's answer,
// which the README gives.
func TestDaylightSavingFollowsRobfig(t *testing.T) {
	t.Parallel()
	rome, err := time.LoadLocation("Europe/Rome")
	require.NoError(t, err)
	half := func(from time.Time, expression string) (ticks []string) {
		schedule, err := parseExpression("TZ=Europe/Rome "+expression, time.Time{})
		require.NoError(t, err)
		for end := from.Add(24 * time.Hour); ; {
			if from = schedule.Next(from); from.After(end) {
				return ticks
			}
			ticks = append(ticks, from.In(rome).Format("15:04 MST"))
		}
	}
	spring := time.Date(2026, 3, 29, 0, 0, 0, 0, rome)
	autumn := time.Date(2026, 10, 25, 0, 0, 0, 0, rome)
	assert.Empty(t, half(spring, "30 2 29 * *"))
	assert.Equal(t, []string{"02:30 CEST", "02:30 CET"}, half(autumn, "30 2 25 * *"))
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
			err := validateExpression(expression, withSeconds)
			if took := time.Since(start); took > 5*time.Second {
				t.Fatalf("%q: the verdict took %s", expression, took)
			}
			if err != nil {
				continue
			}
			schedule, err := parseExpression(expression, now)
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
				if _, err := parseExpression(expression, time.Time{}); err != nil {
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
				_ = validateExpression(expression, false)
			}
		})
	}
}

// canonical is the canonical schedule of an expression that was created at the
// epoch.
func canonical(t *testing.T, expression string, location *time.Location) cron.Schedule {
	t.Helper()
	schedule, err := parseExpression(expression, time.Unix(0, 0))
	require.NoError(t, err)
	return canonicalSchedule(schedule, location)
}

func TestCanonicalTicksDoNotDependOnWhereNextStarts(t *testing.T) {
	t.Parallel()
	for _, zone := range []string{"Australia/Lord_Howe", "Antarctica/Troll", "Europe/Rome", "America/New_York", "America/Sao_Paulo", "Africa/Cairo", "Asia/Beirut", "Pacific/Apia", "Asia/Kathmandu", "UTC"} {
		location, err := time.LoadLocation(zone)
		require.NoError(t, err)
		for _, expression := range []string{"30 2 * * *", "0 0 * * *", "15 1,2 * * *", "0 */6 * * *", "*/30 0-3 * * *", "0 3 29 2 *", "0 0 1 * *", "59 1 * * SUN"} {
			schedule := canonical(t, expression, location)
			begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			end := begin.AddDate(1, 2, 0)
			var ticks []time.Time
			for at := schedule.Next(begin); !at.IsZero() && at.Before(end); at = schedule.Next(at) {
				ticks = append(ticks, at)
			}
			if len(ticks) == 0 {
				require.Equal(t, "0 3 29 2 *", expression)
				require.Equal(t, 2028, schedule.Next(begin).Year())
				continue
			}
			random := rand.New(rand.NewPCG(1, 2))
			for range 50 {
				i := random.IntN(len(ticks))
				from := begin
				if i > 0 {
					from = ticks[i-1]
				}
				start := from.Add(time.Duration(random.Int64N(int64(ticks[i].Sub(from)))))
				require.True(t, ticks[i].Equal(schedule.Next(start)), "%s in %s from %v", expression, zone, start)
			}
			// Each is an instant at which the clock there shows a time that matches:
			// what the expression matches in a zone without changes.
			for _, at := range ticks {
				_, offset := at.In(location).Zone()
				fixed := canonical(t, expression, time.FixedZone("", offset))
				require.True(t, at.Equal(fixed.Next(at.Add(-time.Second))), "%s in %s: %v", expression, zone, at)
			}
		}
	}
}

func TestACanonicalScheduleFiresTwiceInAnHourThatComesTwice(t *testing.T) {
	t.Parallel()
	rome, err := time.LoadLocation("Europe/Rome")
	require.NoError(t, err)
	schedule := canonical(t, "30 2 * * *", rome)
	first := schedule.Next(time.Date(2026, 10, 24, 12, 0, 0, 0, time.UTC))
	second := schedule.Next(first)
	assert.Equal(t, "2026-10-25T00:30:00Z", first.UTC().Format(time.RFC3339))
	assert.Equal(t, "2026-10-25T01:30:00Z", second.UTC().Format(time.RFC3339))
	assert.Equal(t, "2026-10-26T01:30:00Z", schedule.Next(second).UTC().Format(time.RFC3339))
	skipped := schedule.Next(time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC))
	assert.Equal(t, "2026-03-30T00:30:00Z", skipped.UTC().Format(time.RFC3339))
}

func TestACanonicalScheduleGoesOnThroughTheYears(t *testing.T) {
	t.Parallel()
	for _, zone := range []string{"Europe/Rome", "Australia/Lord_Howe", "America/New_York", "Asia/Tokyo"} {
		location, err := time.LoadLocation(zone)
		require.NoError(t, err)
		for _, expression := range []string{"0 0 1 1 *", "59 23 31 12 *", "0 12 1 7 *"} {
			schedule := canonical(t, expression, location)
			for at := schedule.Next(time.Date(2026, 1, 1, 12, 0, 0, 0, location)); at.Year() < 2120; {
				next := schedule.Next(at)
				require.Equal(t, at.In(location).Year()+1, next.In(location).Year(), "%s in %s", expression, zone)
				at = next
			}
		}
	}
}

func TestLastTicksAreThoseThatAWalkFinds(t *testing.T) {
	t.Parallel()
	rome, err := time.LoadLocation("Europe/Rome")
	require.NoError(t, err)
	random := rand.New(rand.NewPCG(3, 4))
	begin := time.Date(2026, 3, 1, 0, 0, 0, 0, rome)
	for _, expression := range []string{"@every 7s", "*/15 * * * *", "30 2 * * *", "0 9 * * MON-FRI", "0 0 29 2 *"} {
		schedule := canonical(t, expression, rome)
		for range 50 {
			after := begin.Add(time.Duration(random.Int64N(int64(60 * 24 * time.Hour))))
			until := after.Add(time.Duration(random.Int64N(int64(24 * time.Hour))))
			walked, _ := ticksIn(schedule, after, until, 1_000_000)
			n := 1 + random.IntN(5)
			want := walked[max(0, len(walked)-n):]
			got := lastTicks(schedule, after, until, n)
			require.Len(t, got, len(want), "%s after %v until %v", expression, after, until)
			for i := range want {
				require.True(t, want[i].Equal(got[i]), "%s after %v until %v", expression, after, until)
			}
		}
	}
}

package console

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nbena/smallben"
	"github.com/stretchr/testify/require"
)

func TestExpressionsInWords(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"* * * * *":                       "every minute",
		"*/5 * * * *":                     "every 5 minutes",
		"0/15 * * * *":                    "every 15 minutes",
		"*/7 * * * *":                     "every 7 minutes from :00 to :56 of every hour",
		"5/10 * * * *":                    "every 10 minutes from :05 to :55 of every hour",
		"10-20 * * * *":                   "every minute from :10 to :20 of every hour",
		"0 * * * *":                       "every hour at :00",
		"5,35 * * * *":                    "at :05 and :35 of every hour",
		"0 9 * * *":                       "at 09:00 every day",
		"0 9 * * 1-5":                     "at 09:00 on Monday to Friday",
		"0 9 * * MON-FRI":                 "at 09:00 on Monday to Friday",
		"CRON_TZ=Europe/Rome 0 9 * * 1-5": "at 09:00 on Monday to Friday",
		"TZ=UTC\t30 8,12 * * sat,sun":     "at 08:30 and 12:30 on Saturday and Sunday",
		"0 0 * * 7":                       "at 00:00 on Sunday",
		"0 0 * * 5-7":                     "at 00:00 on Friday to Sunday",
		"0 0 * * 0-6":                     "at 00:00 every day",
		"*/15 9-17 * * 1-5":               "every 15 minutes from 09:00 to 17:45 on Monday to Friday",
		"*/20 9 * * *":                    "at 09:00, 09:20 and 09:40 every day",
		"*/5 9 * * *":                     "every 5 minutes from 09:00 to 09:55",
		"0 9-17 * * *":                    "every hour from 09:00 to 17:00",
		"0 */2 * * *":                     "every 2 hours from 00:00 to 22:00",
		"30 */6 * * *":                    "at 00:30, 06:30, 12:30 and 18:30 every day",
		"*/5 */2 * * *":                   "every 5 minutes of the hours 00, 02, 04, 06, 08, 10, 12, 14, 16, 18, 20 and 22",
		"5,35 9-12 * * *":                 "at :05 and :35 of every hour, from 09:05 to 12:35",
		"0 0 1 * *":                       "at 00:00 on day 1 of the month",
		"0 0 1,15 * ?":                    "at 00:00 on days 1 and 15 of the month",
		"0 0 1-7 * *":                     "at 00:00 on days 1 to 7 of the month",
		"0 0 13 * 5":                      "at 00:00 on day 13 of the month and on every Friday",
		"0 0 */2 * *":                     "", // sixteen days
		"0 0 */2 * 1":                     "",
		"0 0 */10 * 1":                    "at 00:00 on days 1, 11, 21 and 31 of the month and on every Monday",
		"0 0 1-31 * 1":                    "at 00:00 every day",
		"0 0 29 2 *":                      "at 00:00 on day 29 of the month in February",
		"0 0 1 1,6-8 *":                   "at 00:00 on day 1 of the month in January and June to August",
		"0 0 1 jan *":                     "at 00:00 on day 1 of the month in January",
		"@yearly":                         "at 00:00 on day 1 of the month in January",
		"@monthly":                        "at 00:00 on day 1 of the month",
		"@weekly":                         "at 00:00 on Sunday",
		"@daily":                          "at 00:00 every day",
		"@hourly":                         "every hour at :00",
		"@every 90m":                      "every 1 hour 30 minutes, counted from when it was added",
		"@every 1h":                       "every hour, counted from when it was added",
		"@every 24h":                      "every day, counted from when it was added",
		"@every 1m1s":                     "every 1 minute 1 second, counted from when it was added",
		"@at 2027-05-01T11:30:00+02:00":   "once, on 1 May 2027 at 11:30:00 (UTC+02:00)",
		"* * * * * *":                     "every second",
		"*/3 * * * * *":                   "every 3 seconds",
		"30 * * * * *":                    "every minute at second 30",
		"15,45 * * * * *":                 "at the seconds 15 and 45 of every minute",
		"* * 9-10 * * *":                  "every second from 09:00:00 to 10:59:59",
		"30 0 9 * * *":                    "at 09:00:30 every day",
		"0 0 9 * * *":                     "at 09:00 every day",
		"30 5 * * * *":                    "every hour at :05:30",
		"* 5 * * * *":                     "",
		"1,2,3,5,8,13,21,34,55,56,57,58,59 * * * *": "",
		"0 1,2,3,5,8,13,21 * * *":                   "at 01:00, 02:00, 03:00, 05:00, 08:00, 13:00 and 21:00 every day",
		"":                                          "",
		"nonsense":                                  "",
		"@reboot":                                   "",
		"@every x":                                  "",
		"61 * * * *":                                "",
		"5-1 * * * *":                               "",
		"*/0 * * * *":                               "",
		"1,, * * * *":                               "",
		"0 0 * * 8":                                 "",
		"CRON_TZ=Europe/Rome":                       "",
		"+1 * * * *":                                "",
	} {
		require.Equal(t, want, words(text), "%q", text)
	}
}

// random makes an expression that is mostly accepted.
func random(r *rand.Rand) string {
	pick := func(texts ...string) string { return texts[r.IntN(len(texts))] }
	number := func(from, to int) string { return strconv.Itoa(from + r.IntN(to-from+1)) }
	item := func(from, to int) string {
		a, b := from+r.IntN(to-from+1), from+r.IntN(to-from+1)
		return pick("*", "*", "?", "*/2", "*/"+number(1, 7), number(from, to), number(from, to)+"/"+number(1, 3), fmt.Sprintf("%d-%d", min(a, b), max(a, b)), fmt.Sprintf("%d-%d/%d", min(a, b), max(a, b), 1+r.IntN(3)))
	}
	list := func(from, to int) string {
		text := item(from, to)
		for r.IntN(3) == 0 {
			text += "," + item(from, to)
		}
		return text
	}
	month := pick("*", "*", "*", list(1, 12), "jan-mar", "DEC")
	weekday := pick("*", "*", list(0, 6), list(0, 7), "mon-fri", "Sun", "7", "5-7", "sat,sun")
	return strings.Join([]string{list(0, 59), list(0, 23), pick("*", "*", list(1, 31)), month, weekday}, pick(" ", "\t", "  "))
}

func TestAnExpressionIsUnderstoodAsItFires(t *testing.T) {
	t.Parallel()
	scheduler := newSite(t, Options{}, smallben.Config{SchedulerConfig: smallben.SchedulerConfig{WithLocation: time.UTC}})
	source := &source{scheduler: scheduler.scheduler}
	const ticks, window = 30, 3 * 24 * time.Hour
	understood := 0
	for seed := range uint64(400) {
		text := random(rand.New(rand.NewPCG(seed, 15)))
		before := time.Now().UTC().Truncate(time.Minute)
		next, err := source.nextRuns(text, ticks)
		if err != nil {
			continue // it is not accepted: then nothing is shown of it
		}
		e, ok := parse(text)
		require.True(t, ok, "%q", text)
		understood++
		fires := make(map[int64]bool)
		for _, tick := range next {
			require.True(t, e.selects(tick), "%q does not select %v", text, tick)
			fires[tick.Unix()] = true
		}
		until := before.Add(window)
		if len(next) == ticks && next[ticks-1].Before(until) {
			until = next[ticks-1]
		}
		for at := before.Add(2 * time.Minute); !at.After(until); at = at.Add(time.Minute) {
			require.Equal(t, fires[at.Unix()], e.selects(at), "%q at %v", text, at)
		}
	}
	require.Greater(t, understood, 200)
}

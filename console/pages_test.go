package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nbena/smallben"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
)

// walk follows the links to the next page from a page on, and returns what a pattern
// finds on all of them.
func (s *site) walk(path, pattern string) (found []string) {
	s.t.Helper()
	for pages := 0; path != ""; pages++ {
		require.Less(s.t, pages, 100, "the pages have no end")
		body := s.page(path).Body.String()
		for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(body, -1) {
			found = append(found, match[1])
		}
		next := regexp.MustCompile(`rel="next" href="\./([^"]*)"`).FindStringSubmatch(body)
		path = ""
		if next != nil {
			path = strings.ReplaceAll(next[1], "&amp;", "&")
		}
	}
	return found
}

func TestPagesOfJobsShowEachJobOnceInOrder(t *testing.T) {
	eachDatabase(t, func(t *testing.T, dialector gorm.Dialector) {
		var ids []int64
		for id := int64(-60); id <= 3*pageSize; id++ {
			if id != 0 {
				ids = append(ids, id)
			}
		}
		s := newSiteOn(t, dialector, Options{}, record, jobsOf(ids...)...)
		const link = `class="id" href="\./jobs/(-?\d+)"`
		var want, ofGroup []string
		for _, id := range ids {
			want = append(want, itoa(id))
			if id%3 == 1 {
				ofGroup = append(ofGroup, itoa(id))
			}
		}
		require.Equal(t, want, s.walk("jobs", link))
		require.Equal(t, ofGroup, s.walk("jobs?group=1", link))
		require.Empty(t, s.walk("jobs?outcome=failed", link))
		require.Contains(t, s.page("jobs?group=77").text, "No job matches")
	})
}

func TestPagesOfRunsShowEachRunOnceNewestFirst(t *testing.T) {
	eachDatabase(t, func(t *testing.T, dialector gorm.Dialector) {
		s := newSiteOn(t, dialector, Options{}, record, jobsOf(1)...)
		start := time.Now().Add(-time.Hour).Truncate(time.Second)
		var want []string
		var rows []string
		const ticks, each = 7, 31 // several pages, and ticks that reach over their ends
		for tick := range ticks {
			for id := range each {
				at := start.Add(time.Duration(tick) * time.Minute).UnixMicro()
				rows = append(rows, fmt.Sprintf("(%d, %d, false, 1, %d, 0, 'p', 'ok', %d, %d, '', 0, false)", id+1, at, id%3, at, at+1))
				want = append([]string{itoa(int64(id + 1))}, want...)
			}
		}
		require.NoError(t, s.db.Exec("INSERT INTO "+runsTable+" (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, exclusive) VALUES "+strings.Join(rows, ", ")).Error)
		const link = `data-label="Job"><a href="\./jobs/(\d+)"`
		require.Equal(t, want, s.walk("runs", link))
		var ofGroup []string
		for _, id := range want {
			if id == "2" || id == "5" {
				ofGroup = append(ofGroup, id)
			}
		}
		require.Equal(t, ofGroup, s.walk("runs?job=2,5", link))
		require.Empty(t, s.walk("runs?group=8", link))
		from := start.Add(2 * time.Minute).UTC().Format(formTime)
		require.Len(t, s.walk("runs?from="+from+"&before="+start.Add(3*time.Minute).UTC().Format(formTime), link), each)
	})
}

func TestAFilterThatMakesNoSenseSaysSo(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{}, record, jobsOf(1)...)
	for _, path := range []string{"jobs?state=lazy", "jobs?outcome=odd", "jobs?job=x", "jobs?group=1.5", "jobs?super=99999999999999999999", "jobs?after=x", "runs?from=yesterday", "runs?after=x", "runs?after=1.2", "runs?after=1.2.x.true"} {
		a := s.get(path)
		require.Equal(t, http.StatusBadRequest, a.Code, path)
		require.Contains(t, a.text, "That filter does not work", path)
	}
	require.Equal(t, http.StatusNotFound, s.get("jobs/x").Code)
}

func TestAnEmptyConsoleSaysWhatToDo(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{Authorize: allow}, record)
	require.NoError(t, s.scheduler.Start())
	t.Cleanup(s.scheduler.Stop)
	require.Contains(t, s.page("").text, "There are no jobs yet. The service adds them with scheduler.AddJobs")
	require.Contains(t, s.page("jobs").text, "There are no jobs yet. The service adds them with scheduler.AddJobs")
	require.Contains(t, s.page("runs").text, "Nothing has run yet.")
	require.Contains(t, s.page("").text, "Nothing: in the last 24 hours no job was left failing")
}

func TestAConsoleOfASchedulerThatIsNotStartedSaysSo(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{Authorize: allow}, record)
	require.NoError(t, s.scheduler.AddJobs(jobsOf(1)))
	for _, path := range []string{"", "jobs", "jobs/1", "runs"} {
		require.Contains(t, s.page(path).text, "SmallBen is not started in this process", path)
	}
}

func TestTicksThatAClockMovesAreMarked(t *testing.T) {
	t.Parallel()
	p := &page{zone: time.UTC, now: time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC), Zone: "UTC"}
	rome, err := time.LoadLocation("Europe/Rome")
	require.NoError(t, err)
	moved := func(expression string, tick time.Time) string { return p.ticks(expression, []time.Time{tick})[0].Moved }
	const daily = "CRON_TZ=Europe/Rome 30 2 * * *"
	require.Empty(t, moved(daily, time.Date(2027, 3, 27, 2, 30, 0, 0, rome)))
	require.Contains(t, moved(daily, time.Date(2027, 3, 28, 3, 0, 0, 0, rome)), "the clock is set forward", "02:30 does not come")
	first := time.Date(2027, 10, 31, 0, 30, 0, 0, time.UTC)
	require.Contains(t, moved(daily, first), "the clock is set back, and shows this time twice")
	require.Contains(t, moved("CRON_TZ=Europe/Rome 30 * * * *", first.Add(time.Hour)), "the second time")
	require.Empty(t, moved(daily, time.Date(2027, 11, 1, 1, 30, 0, 0, time.UTC)))
	require.Empty(t, moved("@every 90m", first))
}

func TestTheChartCoversTheWidestTimeThatCanBeCounted(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{}, record, jobsOf(1)...)
	put := func(age time.Duration, n int) {
		var rows []string
		for i := range n {
			at := time.Now().Add(-age).UnixMicro() + int64(i)
			rows = append(rows, fmt.Sprintf("(1, %d, false, 1, 0, 0, 'p', 'ok', %d, %d, '', 0, false)", at, at, at+1))
		}
		require.NoError(t, s.db.Exec("INSERT INTO "+runsTable+" (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, exclusive) VALUES "+strings.Join(rows, ", ")).Error)
	}
	require.Contains(t, s.page("").text, "Runs in the last 12 minutes")
	put(time.Minute, 5)
	put(50*time.Minute, 5)
	require.Contains(t, s.page("").text, "Runs in the last hour")
	put(20*time.Hour, 5)
	a := s.page("")
	require.Contains(t, a.text, "Runs in the last 24 hours")
	require.Contains(t, a.Body.String(), `aria-label="Runs of the last 24 hours: 15 ok"`)
}

func TestAStripShowsHowRunsEndedAndHowLongTheyTook(t *testing.T) {
	t.Parallel()
	p := &page{zone: time.UTC, now: time.Now()}
	run := func(outcome smallben.Outcome, took time.Duration) smallben.Run {
		start := p.now.Add(-time.Hour)
		return smallben.Run{Tick: start, Start: start, End: start.Add(took), Outcome: outcome}
	}
	s := p.drawStrip([]smallben.Run{run(smallben.OutcomeOK, time.Second), run(smallben.OutcomeOK, 4*time.Second), run(smallben.OutcomeError, 0), run(smallben.OutcomeMissed, 0)})
	require.Equal(t, "The last 4 runs: 2 ok, 1 failed and 1 missed", s.Label)
	require.Less(t, s.Bars[0].Height, s.Bars[1].Height)
	require.Equal(t, s.Height, s.Bars[2].Height, "a failure is seen whatever its colour")
	require.Equal(t, s.Width, s.Bars[3].X+s.Bars[3].Width, "the newest stands at the right")
	require.Nil(t, p.drawStrip(nil))
}

func TestAPageIsBoundedWhateverIsStored(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{}, record, jobsOf(1)...)
	// One is too long for the bound by itself, and all together are many times.
	long, longest := strings.Repeat("long ", 10_000), strings.Repeat("long ", 200_000)
	tick := time.Now().Add(-time.Minute).UnixMicro()
	for i := range int64(pageSize) {
		text := long
		if i == 0 {
			text = longest
		}
		require.NoError(t, s.db.Exec("INSERT INTO "+runsTable+` (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, exclusive)
VALUES (1, ?, false, 1, 0, 0, ?, 'error', ?, ?, ?, 0, false)`, tick-i, text, tick, tick+1, text).Error)
	}
	for _, path := range []string{"", "runs", "jobs", "jobs/1"} {
		require.Less(t, s.page(path).Body.Len(), 1_000_000, path)
	}
}

func TestTimesOfTheMachinesZoneSaySo(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{}, smallben.Config{}, jobsOf(1)...)
	require.Contains(t, s.page("jobs").text, "at 09:00 on Monday to Friday, the machine's time")
	require.NotContains(t, s.page("jobs").Body.String(), `value="Local"`)
}

// patient is a job whose runs are tried again, an hour later.
type patient struct{ Name string }

func (*patient) Run(smallben.CronJobInput) {}
func (*patient) RunContext(context.Context, smallben.CronJobInput) error {
	return errors.New("nobody is at home")
}
func (*patient) RunOptions() smallben.RunOptions {
	return smallben.RunOptions{Attempts: 3, Backoff: time.Hour, Timeout: time.Minute, Missed: smallben.MissedRunOnce, Overlap: smallben.OverlapSkip}
}

func TestAJobThatIsTriedAgainShowsThatItWaits(t *testing.T) {
	eachDatabase(t, func(t *testing.T, dialector gorm.Dialector) {
		s := newSiteOn(t, dialector, Options{Authorize: allow}, record, append(jobsOf(1), smallben.Job{ID: 9, CronExpression: "@yearly", Job: &patient{}})...)
		tick := time.Now().Add(-time.Minute)
		require.NoError(t, s.db.Exec("INSERT INTO "+runsTable+` (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, exclusive, due_at)
VALUES (9, ?, true, 1, 0, 0, 'host/1/abc', 'error', ?, ?, 'nobody is at home', 0, true, NULL), (9, ?, true, 2, 0, 0, '', 'waiting', NULL, NULL, '', 0, true, ?)`,
			tick.UnixMicro(), tick.UnixMicro(), tick.UnixMicro()+5, tick.UnixMicro(), tick.Add(time.Hour).UnixMicro()).Error)
		require.NoError(t, s.db.Exec("UPDATE jobs SET created_at = '2026-01-01 00:00:00'").Error)
		a := s.page("jobs/9")
		for _, text := range []string{
			"nobody is at home", "attempt 2", "waiting", "to run", "Attempts 3, the second 1 h after the first", "the context of a run ends after 1 min",
			"a tick that comes during a run is skipped", "the latest one is made up for",
		} {
			require.Contains(t, a.text, text)
		}
		require.Contains(t, s.page("jobs?state=waiting").Body.String(), `href="./jobs/9"`)
		require.NotContains(t, s.page("jobs?state=waiting").Body.String(), `href="./jobs/1"`)
		require.Contains(t, s.page("runs?outcome=waiting").text, "attempt 2")
		require.Contains(t, s.page("").text, "Running and waiting now Job Tick")
	})
}

func TestProcessesTellWhoIsAliveAndWhoLeads(t *testing.T) {
	eachDatabase(t, func(t *testing.T, dialector gorm.Dialector) {
		s := newSiteOn(t, dialector, Options{}, record, jobsOf(1)...)
		require.Eventually(t, func() bool {
			a := s.page("processes")
			return strings.Contains(a.text, "leads") && strings.Contains(a.text, "alive")
		}, time.Minute, 10*time.Millisecond)
		a := s.page("processes")
		require.Contains(t, a.text, fmt.Sprintf("/%d/", os.Getpid()))
		require.Contains(t, a.text, "this one")
		require.Contains(t, a.text, "alive")
		require.Contains(t, a.text, "in step")
		s.scheduler.Stop()
		require.Contains(t, s.page("processes").text, "No process shares the record at this moment")
	})
}

func TestWhatAilsAProcessIsSaid(t *testing.T) {
	t.Parallel()
	ails := processView{Name: "host/1/abc", Heartbeat: "9 s", Offset: "3 s behind the database's", Silent: true, OffClock: true, Undecided: true}
	require.True(t, ails.Ails())
	require.Equal(t, "it was last heard of 9 s ago, its clock is 3 s behind the database's and it cannot decode some jobs, and does not run them", ails.Why())
	require.False(t, processView{Name: "host/1/abc"}.Ails())
}

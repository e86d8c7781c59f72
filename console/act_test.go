package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nbena/smallben"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
)

// hidden are the hidden fields of the form of a page that is posted.
func hidden(body string) (fields []string) {
	_, form, _ := strings.Cut(body, `method="post" action="./act"`)
	form, _, _ = strings.Cut(form, "</form>")
	for _, field := range regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)"`).FindAllStringSubmatch(form, -1) {
		fields = append(fields, field[1], strings.ReplaceAll(field[2], "&amp;", "&"))
	}
	return fields
}

func TestJobsArePausedResumedRunAndDeleted(t *testing.T) {
	eachDatabase(t, func(t *testing.T, dialector gorm.Dialector) {
		s := newSiteOn(t, dialector, Options{Authorize: allow}, record, jobsOf(1, 2, 3)...)
		a := s.follow("act", s.post("act", "verb", "pause", "id", "1", "id", "2"))
		require.Contains(t, a.text, "Paused 2 jobs.")
		require.True(t, s.job(1).Paused() && s.job(2).Paused() && !s.job(3).Paused())
		require.Contains(t, s.page("jobs/1").text, "It is paused")

		a = s.follow("act", s.post("act", "verb", "run", "id", "1", "back", "jobs/1"))
		require.Contains(t, a.text, "Started 1 job.")
		require.Contains(t, a.text, "run by hand")

		a = s.follow("act", s.post("act", "verb", "resume", "id", "1"))
		require.Contains(t, a.text, "Resumed 1 job.")
		require.False(t, s.job(1).Paused())

		a = s.follow("act", s.post("act", "verb", "delete", "id", "1", "back", "jobs/1"))
		require.Contains(t, a.text, "Deleted 1 job.")
		require.Equal(t, http.StatusNotFound, s.get("jobs/1").Code)
	})
}

func TestARunThatHangsIsCancelledAndGivenUp(t *testing.T) {
	eachDatabase(t, func(t *testing.T, dialector gorm.Dialector) {
		config := record
		config.Runs.SyncInterval = 50 * time.Millisecond
		s := newSiteOn(t, dialector, Options{Authorize: allow}, config, jobsOf(1)...)
		id := hanging.Add(1) + 2000
		running, release := make(chan struct{}), make(chan struct{})
		works.Store(id, func(smallben.CronJobInput) error { close(running); <-release; return nil })
		require.NoError(t, s.scheduler.AddJobs(jobsOf(id)))
		require.NotContains(t, s.page("jobs/"+itoa(id)).text, "Cancel runs")
		s.follow("act", s.post("act", "verb", "run", "id", itoa(id)))
		<-running
		require.Contains(t, s.page("jobs/"+itoa(id)).text, "Cancel runs…")
		a := s.page("confirm?verb=cancel&id=" + itoa(id))
		require.Contains(t, a.text, "Cancel the runs of 1 job?")
		for _, bad := range []string{"x", "0", "-1", "9999999"} {
			require.Equal(t, http.StatusUnprocessableEntity, s.post("act", append(hidden(a.Body.String()), "abandon", bad)...).Code, bad)
		}
		s.follow("act", s.post("act", append(hidden(a.Body.String()), "abandon", "1")...))
		require.Eventually(t, func() bool { return strings.Contains(s.page("jobs/"+itoa(id)).text, "given up") }, time.Minute, 20*time.Millisecond)
		close(release)
	})
}

// hanging tells the jobs of tests that share works apart.
var hanging atomic.Int64

func TestAJobThatIsRunningSaysThatItDoesNotRunTwice(t *testing.T) {
	t.Parallel()
	config := record
	config.SchedulerConfig.SkipIfStillRunning = true
	s := newSite(t, Options{Authorize: allow}, config, jobsOf(1)...)
	running, release := make(chan struct{}), make(chan struct{})
	works.Store(int64(1003), func(smallben.CronJobInput) error { close(running); <-release; return nil })
	t.Cleanup(func() { close(release) })
	require.NoError(t, s.scheduler.AddJobs(jobsOf(1003)))
	s.follow("act", s.post("act", "verb", "run", "id", "1003"))
	<-running
	a := s.post("act", "verb", "run", "id", "1", "id", "1003")
	require.Equal(t, http.StatusOK, a.Code)
	require.Contains(t, a.text, "1 of 2 jobs started")
	require.Contains(t, a.text, "job 1003 did not run")
	require.NotContains(t, a.text, "job 1 did not run")
}

func TestAnActionOnJobsThatAreGoneChangesNothingAndNamesThem(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{Authorize: allow}, record, jobsOf(1)...)
	a := s.post("act", "verb", "pause", "id", "1", "id", "77")
	require.Equal(t, http.StatusNotFound, a.Code)
	require.Contains(t, a.text, "Nothing was changed")
	require.Contains(t, a.text, "77")
	require.False(t, s.job(1).Paused())
	require.Contains(t, s.page("confirm?verb=pause&id=1&id=77").text, "1 job that you marked no longer exists")
}

func TestWhoConfirmsIsToldHowManyJobsItIs(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{Authorize: allow}, record, jobsOf(1, 2, 3, 4, 5, 6)...)
	for path, want := range map[string]string{
		"confirm?verb=delete&id=1&id=2&id=2":                "Delete 2 jobs?",
		"confirm?verb=pause&scope=all":                      "Pause 6 jobs? This is about every job",
		"confirm?verb=run&scope=all&group=1":                "Run 2 jobs now? This is about the jobs with group 1",
		"confirm?verb=resume&scope=all&group=1,2&job=1%2C2": "Resume 2 jobs?",
	} {
		require.Contains(t, s.page(path).text, want, path)
	}
	require.Contains(t, s.get("confirm?verb=pause").text, "No job is selected")
	require.Contains(t, s.get("confirm?verb=pause&scope=all&group=9").text, "no job matches")
	require.Equal(t, http.StatusBadRequest, s.get("confirm?verb=explode&id=1").Code)
	require.Equal(t, http.StatusBadRequest, s.get("confirm?verb=pause&scope=all&outcome=failed").Code)
}

func TestAllThatMatchAreThoseThatWereConfirmed(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{Authorize: allow}, record, jobsOf(1, 2, 3, 4, 5, 6)...)
	confirmed := hidden(s.page("confirm?verb=pause&scope=all&group=1").Body.String())
	require.NotEmpty(t, confirmed)
	require.NoError(t, s.scheduler.AddJobs(jobsOf(7)))

	a := s.post("act", confirmed...)
	require.Equal(t, http.StatusConflict, a.Code)
	require.Contains(t, a.text, "Other jobs match now than when you were asked: there were 2, and there are 3. Nothing was changed.")
	require.False(t, s.job(1).Paused())

	a = s.follow("act", s.post("act", hidden(a.Body.String())...))
	require.Contains(t, a.text, "Paused 3 jobs.")
	require.True(t, s.job(1).Paused() && s.job(4).Paused() && s.job(7).Paused())
	require.False(t, s.job(2).Paused())

	require.Equal(t, http.StatusConflict, s.post("act", "verb", "delete", "scope", "all").Code, "all jobs without a confirmation")
	require.Equal(t, "1", fmt.Sprint(s.job(1).ID))
}

func TestAnExpressionIsPreviewedOrRefusedBeforeItIsSaved(t *testing.T) {
	eachDatabase(t, func(t *testing.T, dialector gorm.Dialector) {
		s := newSiteOn(t, dialector, Options{Authorize: allow}, record, jobsOf(1)...)
		a := s.page("jobs/1/expression?expression=" + url.QueryEscape("CRON_TZ=Europe/Rome 30 6 * * *"))
		require.Contains(t, a.text, "at 06:30 every day, Europe/Rome")
		require.Equal(t, 5, strings.Count(a.text, "06:30:00"))
		require.Contains(t, a.Body.String(), `name="expression" value="CRON_TZ=Europe/Rome 30 6 * * *"`)

		for _, bad := range []string{"61 * * * *", "", "0 0 31 2 *", "nonsense", "* * * * * *", "CRON_TZ=Mars/Phobos @daily"} {
			a := s.get("jobs/1/expression?expression=" + url.QueryEscape(bad))
			require.Equal(t, http.StatusUnprocessableEntity, a.Code, bad)
			require.Contains(t, a.text, "It would be refused:", bad)
			require.NotContains(t, a.Body.String(), `class="primary"`, "what would be refused cannot be saved")
			a = s.post("jobs/1/expression", "expression", bad, "updated", version(s.job(1).UpdatedAt()))
			require.Equal(t, http.StatusUnprocessableEntity, a.Code, bad)
		}
		require.Equal(t, "0 9 * * 1-5", s.job(1).CronExpression)

		seen := version(s.job(1).UpdatedAt())
		a = s.follow("jobs/1/expression", s.post("jobs/1/expression", "expression", "30 6 * * *", "updated", seen))
		require.Contains(t, a.text, "The expression is changed.")
		require.Equal(t, "30 6 * * *", s.job(1).CronExpression)
		a = s.post("jobs/1/expression", "expression", "30 7 * * *", "updated", seen)
		require.Equal(t, http.StatusConflict, a.Code)
		require.Contains(t, a.text, "the job was changed meanwhile, and nothing was saved")
		require.Equal(t, "30 6 * * *", s.job(1).CronExpression)
	})
}

func TestAnInputIsEditedToTheLastDigit(t *testing.T) {
	eachDatabase(t, func(t *testing.T, dialector gorm.Dialector) {
		s := newSiteOn(t, dialector, Options{Authorize: allow, ShowInput: true}, record, jobsOf(1)...)
		const input = `{"big": 9007199254740993, "list": [18446744073709551615, 0.1, 1e2], "text": "è <b>", "none": null, "precise": 0.12345678901234567890123}`
		a := s.follow("jobs/1/input", s.post("jobs/1/input", "input", input, "updated", version(s.job(1).UpdatedAt())))
		require.Contains(t, a.text, "The input is changed.")
		var stored json.RawMessage
		require.NoError(t, s.job(1).DecodeInput(&stored))
		require.JSONEq(t, input, string(stored))
		for _, digits := range []string{"9007199254740993", "18446744073709551615", "0.12345678901234567890123"} {
			require.Contains(t, string(stored), digits)
			require.Contains(t, s.page("jobs/1/input").text, digits, "and it is shown so")
		}
		for _, bad := range []string{"", "{", "[]", "null", "3", `{"a":1} {}`, `{"a":1}x`, `{"a":1e999}`, "{\n\n\"a\": tru}"} {
			before := s.job(1).UpdatedAt()
			a := s.post("jobs/1/input", "input", bad, "updated", version(before))
			require.Equal(t, http.StatusUnprocessableEntity, a.Code, bad)
			require.Contains(t, a.text, "It was not saved:", bad)
			require.Equal(t, before, s.job(1).UpdatedAt())
		}
		a = s.post("jobs/1/input", "input", "{}", "updated", "1")
		require.Equal(t, http.StatusConflict, a.Code)
	})
}

func TestARunGetsOrdinaryNumbersOfAnEditedInputAsAfterARestart(t *testing.T) {
	t.Parallel()
	input, err := parseInput(`{"a": 3, "b": 1.5, "c": [1e2, 9007199254740993], "d": {"e": -0.1}, "f": 1e999, "g": 9223372036854775807}`)
	require.NoError(t, err)
	require.Equal(t, map[string]any{
		"a": 3.0, "b": 1.5, "c": []any{100.0, json.Number("9007199254740993")}, "d": map[string]any{"e": -0.1},
		"f": json.Number("1e999"), "g": json.Number("9223372036854775807"),
	}, input)
}

func TestARowThatDoesNotDecodeIsShownWithTheReasonAndCanBePausedAndDeleted(t *testing.T) {
	eachDatabase(t, func(t *testing.T, dialector gorm.Dialector) {
		s := newSiteOn(t, dialector, Options{Authorize: allow, ShowInput: true}, record)
		require.NoError(t, s.db.Exec(`INSERT INTO jobs (id, group_id, super_group_id, cron_id, cron_expression, paused, created_at, updated_at, serialized_job, serialized_job_input)
VALUES (2, 0, 0, 0, '@daily', false, '2026-01-01 00:00:00', '2026-01-01 00:00:00', 'no base64', '{}')`).Error)
		require.NoError(t, s.scheduler.AddJobs(jobsOf(1, 3)))
		require.NoError(t, s.scheduler.Start())
		t.Cleanup(s.scheduler.Stop)
		require.Contains(t, s.page("").text, "1 job held back")
		for _, path := range []string{"jobs", "jobs?state=undecodable", "jobs/2"} {
			require.Contains(t, s.page(path).text, "illegal base64", path)
		}
		require.NotContains(t, s.page("jobs?state=scheduled").text, "illegal base64")
		require.Contains(t, s.get("jobs/2/expression").text, "does not decode")
		require.Equal(t, http.StatusConflict, s.post("act", "verb", "run", "id", "1", "id", "2").Code)
		require.Contains(t, s.page("confirm?verb=pause&scope=all&state=scheduled").text, "Pause 2 jobs?")
		s.follow("act", s.post("act", "verb", "pause", "id", "2"))
		a := s.page("confirm?verb=delete&scope=all&state=undecodable")
		require.Contains(t, a.text, "Delete 1 job?")
		s.follow("act", s.post("act", hidden(a.Body.String())...))
		require.NotContains(t, s.page("jobs").text, "illegal base64")
	})
}

func TestAJobThatDidNotRunLastNightTellsWhy(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{}, record, jobsOf(1, 2)...)
	night := time.Now().Add(-5 * time.Hour).Truncate(time.Minute).UnixMicro()
	put := func(jobID, tick int64, outcome, text string, missed int, first any) {
		require.NoError(t, s.db.Exec(`INSERT INTO `+runsTable+` (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, first_tick, exclusive)
VALUES (?, ?, false, 1, 1, 1, 'host/7/abc', ?, ?, ?, ?, ?, ?, false)`, jobID, tick, outcome, tick, tick+1_500_000, text, missed, first).Error)
	}
	put(1, night, "missed", "", 12, night-3_600_000_000)
	put(2, night, "error", "no route to host", 0, nil)
	put(2, night+60_000_000, "lost", "", 0, nil)
	require.NoError(t, s.db.Exec("UPDATE jobs SET created_at = '2026-01-01 00:00:00'").Error)

	a := s.page("jobs/1")
	require.Contains(t, a.text, "missed")
	require.Contains(t, a.text, "12 ticks since")
	require.Contains(t, a.text, "no process ran it")
	a = s.page("jobs/2")
	require.Contains(t, a.text, "no route to host")
	require.Contains(t, a.text, "its process died")
	require.Contains(t, a.text, "1.5 s")
	a = s.page("")
	require.Contains(t, a.text, "Lost or missed")
	require.Contains(t, a.Body.String(), "13 lost or missed")
	require.Contains(t, s.page("runs?outcome=missed").text, "12 ticks since")
	require.NotContains(t, s.page("runs?outcome=missed").text, "no route to host")
	require.Contains(t, s.page("jobs?outcome=lost").Body.String(), `href="./jobs/2"`)
	require.NotContains(t, s.page("jobs?outcome=lost").Body.String(), `href="./jobs/1"`)
}

func TestAFailingJobIsNamedWithSinceWhenAndWhy(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{}, record, jobsOf(1, 2, 3)...)
	works.Store(int64(1001), func(smallben.CronJobInput) error { return errors.New("the printer is on fire") })
	require.NoError(t, s.scheduler.AddJobs(jobsOf(1001)))
	require.NoError(t, s.scheduler.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1, 1001}}))
	s.scheduler.Stop() // records the ends
	a := s.page("")
	require.Contains(t, a.text, "the printer is on fire")
	require.Contains(t, a.Body.String(), `href="./jobs/1001"`)
	a = s.page("jobs?outcome=failed")
	require.Contains(t, a.Body.String(), `href="./jobs/1001"`)
	require.NotContains(t, a.Body.String(), `href="./jobs/1"`)
}

func TestWithoutARecordTheConsoleShowsWhatThisProcessKnows(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{Authorize: allow}, smallben.Config{}, jobsOf(1, 2)...)
	running, release := make(chan struct{}), make(chan struct{})
	works.Store(int64(1002), func(smallben.CronJobInput) error { close(running); <-release; return errors.New("it was released") })
	require.NoError(t, s.scheduler.AddJobs(jobsOf(1002)))
	s.follow("act", s.post("act", "verb", "run", "id", "1002"))
	<-running
	require.Contains(t, s.page("jobs?state=running").Body.String(), `href="./jobs/1002"`)
	require.NotContains(t, s.page("jobs?state=running").Body.String(), `href="./jobs/1"`)
	close(release)
	s.scheduler.Stop()
	require.Contains(t, s.page("jobs/1002").text, "it was released")
	for _, path := range []string{"", "jobs", "jobs/1", "runs", "processes"} {
		require.Contains(t, s.page(path).text, "Runs are not recorded", path)
	}
	require.Contains(t, s.page("jobs?outcome=failed").Body.String(), `href="./jobs/1002"`)
}

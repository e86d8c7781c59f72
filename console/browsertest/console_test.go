package browsertest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/nbena/smallben"
	"github.com/nbena/smallben/console/browsertest/jobs"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
)

func TestEachActionWorksWithAndWithoutJavaScript(t *testing.T) {
	eachDatabase(t, func(t *testing.T, dialector gorm.Dialector) {
		scheduler, base := newSite(t, dialector, seedJobs())
		for name, as := range map[string]look{"with": desk, "without": {1280, 900, "light", true}} {
			t.Run(name, func(t *testing.T) {
				require.NoError(t, scheduler.UpsertJobs(seedJobs()))
				everyAction(t, scheduler, newTab(t, base, as))
			})
		}
	})
}

func everyAction(t *testing.T, scheduler *smallben.SmallBen, b *tab) {
	job := func(id int64) *smallben.Job {
		found, err := scheduler.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{id}})
		require.NoError(t, err)
		return &found[0]
	}
	b.open("")
	b.sees("70", "jobs")
	b.leads(func() { b.click("nav a[href$=jobs]") })
	b.sees("at 09:00 on Monday to Friday", "Europe/Rome")

	// Some jobs, marked by hand.
	b.click("input[name=id][value='1']")
	b.click("input[name=id][value='2']")
	b.press("Pause")
	b.sees("Pause 2 jobs?")
	b.press("No, go back")
	b.sees("Run now")
	require.False(t, job(1).Paused())
	b.click("input[name=id][value='1']")
	b.press("Pause")
	b.sees("Pause 1 job?")
	b.press("Pause 1 job")
	b.sees("Paused 1 job.")
	require.True(t, job(1).Paused())

	// All that match a filter, over pages.
	b.fill("#f-group", "13")
	b.press("Filter")
	b.misses("Europe/Rome")
	b.click("input[name=scope][value=all]")
	b.press("Pause")
	b.sees("Pause 33 jobs?", "group 13")
	b.press("Pause 33 jobs")
	b.sees("Paused 33 jobs.")
	require.True(t, job(5).Paused() && job(69).Paused())
	require.False(t, job(6).Paused())
	b.open("jobs?state=paused")
	b.click("input[name=scope][value=all]")
	b.press("Resume")
	b.sees("Resume 34 jobs?")
	b.press("Resume 34 jobs")
	b.sees("Resumed 34 jobs.")
	require.False(t, job(1).Paused() || job(5).Paused())
	b.open("jobs")
	b.press("Next page")
	b.sees("70")
	b.press("First page")
	b.sees("Europe/Rome")

	// One job: run it by hand, find out why it fails.
	b.open("jobs/4")
	b.press("Run now")
	b.sees("Started 1 job.")
	b.until("its run does not show", func() bool {
		b.open("jobs/4")
		return strings.Contains(b.text(), "502 Bad Gateway")
	})
	b.press("Pause")
	b.sees("Paused 1 job.", "It is paused")
	b.press("Resume")
	b.sees("Resumed 1 job.")
	b.open("jobs?outcome=failed")
	b.until("job 4 is not among those that fail", func() bool { return b.has("a.id[href$='/4']") })

	// One that hangs: cancel it.
	b.open("jobs/3")
	b.press("Run now")
	b.sees("Cancel runs…")
	b.press("Cancel runs…")
	b.sees("Cancel the runs of 1 job?")
	b.press("Cancel the runs of 1 job")
	b.until("it is not cancelled", func() bool {
		b.open("jobs/3")
		return !strings.Contains(b.text(), "running") && strings.Contains(b.text(), "failed")
	})

	// Its expression: refused, previewed, saved.
	b.open("jobs/2")
	b.press("change")
	b.sees("Change the expression")
	b.fill("#expression", "61 * * * *")
	b.press("Preview")
	b.sees("It would be refused:")
	require.False(t, b.has("button.primary"))
	b.fill("#expression", "CRON_TZ=America/New_York 15 6 * * 1")
	b.press("Preview")
	b.sees("at 06:15 on Monday, America/New_York")
	b.press("Save CRON_TZ=America/New_York 15 6 * * 1")
	b.sees("The expression is changed.")
	require.Equal(t, "CRON_TZ=America/New_York 15 6 * * 1", job(2).CronExpression)
	require.NoError(t, scheduler.UpdateJobs([]smallben.UpdateOption{{JobID: 2, CronExpression: &[]string{"CRON_TZ=Europe/Rome 30 2 * * *"}[0]}}))

	// Its input.
	b.open("jobs/1")
	b.sees("9007199254740993", "ops@example.com")
	b.leads(func() { b.click("a[href$='/input']") })
	b.sees("Change the input")
	b.fill("#input", "{")
	b.press("Save")
	b.sees("It was not saved:")
	b.fill("#input", `{"account": 9007199254740995}`)
	b.press("Save")
	b.sees("The input is changed.", "9007199254740995")
	var input struct{ Account json.Number }
	require.NoError(t, job(1).DecodeInput(&input))
	require.Equal(t, "9007199254740995", input.Account.String())

	// Its end.
	require.NoError(t, scheduler.UpsertJobs([]smallben.Job{{ID: 500, GroupID: 99, CronExpression: "@daily", Job: &jobs.Report{}}}))
	b.open("jobs/500")
	b.press("Delete…")
	b.sees("Delete 1 job?")
	b.press("Delete 1 job")
	b.sees("Deleted 1 job.")
	b.open("jobs/500")
	b.sees("There is no job 500")

	// Runs, and the time that they are shown in.
	b.open("runs")
	b.do(chromedp.SetValue(chromedp.CSS("#f-outcome"), "failed"))
	b.press("Filter")
	b.sees("502 Bad Gateway")
	b.fill("#zone", "Asia/Tokyo")
	b.leads(func() { b.click("footer button") })
	zone, err := eval[string](b, "document.querySelector('#zone').value")
	require.NoError(t, err)
	require.Equal(t, "Asia/Tokyo", zone)
	b.sees("502 Bad Gateway")
	b.fill("#zone", "")
	b.leads(func() { b.click("footer button") })
	b.open("processes")
	b.sees("Processes")
}

// everyPage are the pages, with something on each.
var everyPage = []string{
	"", "jobs", "jobs?state=paused", "jobs?group=99999", "jobs/1", "jobs/2", "jobs/4", "jobs/1/expression?expression=61+*+*+*+*",
	"jobs/2/expression?expression=@daily", "jobs/1/input", "runs", "processes", "confirm?verb=delete&scope=all", "confirm?verb=pause&id=1&id=77777", "jobs/77777", "jobs?state=none",
}

// lively is a site on which something has happened.
func lively(t *testing.T) (*smallben.SmallBen, string) {
	scheduler, base := newSite(t, openSQLite(t), seedJobs())
	require.NoError(t, scheduler.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{5, 6}}))
	for range 3 {
		require.NoError(t, scheduler.TriggerJobs(&smallben.PauseResumeOptions{}))
	}
	return scheduler, base
}

func TestEachPageIsAccessibleInEachLook(t *testing.T) {
	t.Parallel()
	_, base := lively(t)
	for name, as := range map[string]look{"light": desk, "dark": night, "telephone": phone} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newTab(t, base, as)
			for _, path := range everyPage {
				b.open(path)
				b.accessible(path)
				wide, err := eval[bool](b, "document.scrollingElement.scrollWidth > innerWidth")
				require.NoError(t, err)
				require.False(t, wide, "%s is wider than the screen", path)
			}
		})
	}
}

func TestAJobIsPausedByKeyboardAlone(t *testing.T) {
	scheduler, base := newSite(t, openSQLite(t), seedJobs())
	b := newTab(t, base, desk)
	b.open("jobs")
	b.do(chromedp.KeyEvent(kb.Tab))
	first, err := eval[string](b, "document.activeElement.textContent")
	require.NoError(t, err)
	require.Equal(t, "To the content", first)
	// to goes on to the element of a selector, and requires that each that has the
	// focus on the way shows it.
	to := func(selector string) {
		for range 60 {
			b.do(chromedp.KeyEvent(kb.Tab))
			there, err := eval[bool](b, fmt.Sprintf("document.activeElement.matches(%q)", selector))
			require.NoError(t, err)
			seen, err := eval[string](b, "getComputedStyle(document.activeElement).outlineStyle")
			require.NoError(t, err)
			require.NotEqual(t, "none", seen)
			if there {
				return
			}
		}
		t.Fatalf("no way to %s by keyboard", selector)
	}
	to("input[name=id][value='1']")
	b.do(chromedp.KeyEvent(" "))
	back := func(selector string) {
		for range 60 {
			b.do(chromedp.KeyEvent(kb.Tab, chromedp.KeyModifiers(chromedp.ModifierShift)))
			if there, _ := eval[bool](b, fmt.Sprintf("document.activeElement.matches(%q)", selector)); there {
				return
			}
		}
		t.Fatalf("no way back to %s by keyboard", selector)
	}
	back("button[value=pause]")
	b.do(chromedp.KeyEvent(kb.Enter))
	b.sees("Pause 1 job?")
	to("button.primary")
	b.do(chromedp.KeyEvent(kb.Enter))
	b.sees("Paused 1 job.")
	paused, err := scheduler.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{1}})
	require.NoError(t, err)
	require.True(t, paused[0].Paused())
}

func TestAnEmptyConsoleSaysWhatToDo(t *testing.T) {
	_, base := newSite(t, openSQLite(t), nil)
	b := newTab(t, base, desk)
	for _, path := range []string{"", "jobs"} {
		b.open(path)
		b.sees("There are no jobs yet.")
		b.accessible(path)
	}
}

func TestAPageThatIsOpenFollowsThreeProcessesOfWhichOneIsKilled(t *testing.T) {
	t.Parallel()
	for name, dsn := range map[string]func(t *testing.T) string{
		"SQLite":     func(t *testing.T) string { return filepath.Join(t.TempDir(), "jobs.db") + "?_journal_mode=WAL" },
		"PostgreSQL": func(t *testing.T) string { return pgtest.DSN(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := dsn(t)
			var children []*child
			for range 3 {
				children = append(children, startChild(t, dsn))
			}
			repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialectorOf(dsn)})
			require.NoError(t, err)
			t.Cleanup(func() { _ = repository.Close() })
			require.NoError(t, smallben.New(repository, &config).AddJobs(seedJobs()))

			seen, dying := children[0], children[1]
			answer, err := http.Post("http://"+dying.address+"/backup", "", nil)
			require.NoError(t, err)
			require.NoError(t, answer.Body.Close())
			require.Equal(t, http.StatusOK, answer.StatusCode)

			b := newTab(t, "http://"+seen.address+prefix+"/", desk)
			processes := newTab(t, b.base, desk)
			processes.open("processes")
			processes.sees(children[0].pid(), children[1].pid(), children[2].pid(), "this one", "leads")
			b.open("jobs/3")
			b.sees("running", dying.pid())
			dying.kill()
			b.sees("lost", "its process died") // without a reload
			processes.misses(dying.pid())
			processes.sees(children[2].pid())

			seen.kill()
			b.sees("the service does not answer")
		})
	}
}

// TestPicturesOfTheREADME draws them anew if SMALLBEN_PICTURES names a directory.
func TestPicturesOfTheREADME(t *testing.T) {
	directory := os.Getenv("SMALLBEN_PICTURES")
	if directory == "" {
		t.Skip("SMALLBEN_PICTURES is not set")
	}
	base := gallery(t)
	for file, page := range map[string]struct {
		path string
		as   look
	}{
		"overview-light.png": {"", look{1120, 760, "light", false}},
		"overview-dark.png":  {"", look{1120, 760, "dark", false}},
		"jobs-light.png":     {"jobs", look{1120, 760, "light", false}},
		"jobs-dark.png":      {"jobs", look{1120, 760, "dark", false}},
	} {
		b := newTab(t, base, page.as)
		b.open(page.path)
		b.sees("Drawn")
		require.NoError(t, os.WriteFile(filepath.Join(directory, file), b.screenshot(), 0o644))
	}
}

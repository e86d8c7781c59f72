package console

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

// letter is a job. What a run of it does is found by its job's id, in works.
type letter struct{ To string }

var works sync.Map // of func(smallben.CronJobInput) error, by job id

func (l *letter) Run(input smallben.CronJobInput) {}

func (l *letter) RunContext(_ context.Context, input smallben.CronJobInput) error {
	if work, ok := works.Load(input.JobID); ok {
		return work.(func(smallben.CronJobInput) error)(input)
	}
	return nil
}

func TestMain(m *testing.M) {
	gob.Register(&letter{})
	gob.Register(&patient{})
	m.Run()
}

var quiet = logr.FromSlogHandler(slog.DiscardHandler)

// site is a console with what is behind it.
type site struct {
	t         testing.TB
	scheduler *smallben.SmallBen
	handler   http.Handler
	db        *gorm.DB
	log       *bytes.Buffer
}

func openSQLite(t testing.TB) gorm.Dialector {
	return sqlite.Open(filepath.Join(t.TempDir(), "jobs.db") + "?_journal_mode=WAL&_busy_timeout=10000")
}

// record is a configuration that records runs.
var record = smallben.Config{
	Logger:          quiet,
	SchedulerConfig: smallben.SchedulerConfig{WithLocation: time.UTC},
	Runs:            smallben.RunsConfig{Record: true},
}

// newSite makes a console, of a scheduler that is started if there are jobs.
func newSite(t *testing.T, options Options, config smallben.Config, jobs ...smallben.Job) *site {
	return newSiteOn(t, openSQLite(t), options, config, jobs...)
}

func newSiteOn(t testing.TB, dialector gorm.Dialector, options Options, config smallben.Config, jobs ...smallben.Job) *site {
	t.Helper()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector})
	require.NoError(t, err)
	t.Cleanup(func() { _ = repository.Close() })
	if config.Logger.GetSink() == nil {
		config.Logger = quiet
	}
	s := &site{t: t, scheduler: smallben.New(repository, &config), log: &bytes.Buffer{}}
	if s.db, err = gorm.Open(dialector, &gorm.Config{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if pool, err := s.db.DB(); err == nil {
			_ = pool.Close()
		}
	})
	if len(jobs) > 0 {
		require.NoError(t, s.scheduler.AddJobs(jobs))
		require.NoError(t, s.scheduler.Start())
		t.Cleanup(s.scheduler.Stop)
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.NewTextHandler(s.log, nil))
	}
	s.handler = http.StripPrefix("/some/prefix", New(s.scheduler, &options))
	return s
}

// allow allows everything.
func allow(*http.Request, Action) error { return nil }

func aJob(id int64) smallben.Job {
	return smallben.Job{ID: id, GroupID: id % 3, SuperGroupID: id % 2, CronExpression: "0 9 * * 1-5", Job: &letter{To: "ops@example.com"}, JobInput: map[string]any{"n": id}}
}

func jobsOf(ids ...int64) (jobs []smallben.Job) {
	for _, id := range ids {
		jobs = append(jobs, aJob(id))
	}
	return jobs
}

// answer is an answer of the console.
type answer struct {
	*httptest.ResponseRecorder
	text string // what a reader sees, about
}

func (s *site) do(r *http.Request) answer {
	s.t.Helper()
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return answer{w, readable(w.Body.String())}
}

var tags = regexp.MustCompile(`(?s)<title>.*?</title>|<[^>]*>|\s+`)

func readable(body string) string {
	return strings.TrimSpace(regexp.MustCompile(`\s+`).ReplaceAllString(html.UnescapeString(tags.ReplaceAllString(body, " ")), " "))
}

func (s *site) get(path string) answer {
	s.t.Helper()
	return s.do(httptest.NewRequest("GET", "/some/prefix/"+path, nil))
}

func (s *site) post(path string, fields ...string) answer {
	s.t.Helper()
	return s.do(newPost(path, fields...))
}

func newPost(path string, fields ...string) *http.Request {
	values := url.Values{}
	for i := 0; i+1 < len(fields); i += 2 {
		values.Add(fields[i], fields[i+1])
	}
	r := httptest.NewRequest("POST", "/some/prefix/"+path, strings.NewReader(values.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	return r
}

// page requires that a page is there.
func (s *site) page(path string) answer {
	s.t.Helper()
	a := s.get(path)
	require.Equal(s.t, http.StatusOK, a.Code, "%s: %s", path, a.text)
	return a
}

// follow requires that an answer leads to a page, relative to the one of path, and
// gets it.
func (s *site) follow(path string, a answer) answer {
	s.t.Helper()
	require.Equal(s.t, http.StatusSeeOther, a.Code, a.text)
	base, err := url.Parse("/some/prefix/" + path)
	require.NoError(s.t, err)
	to, err := base.Parse(a.Header().Get("Location"))
	require.NoError(s.t, err)
	require.True(s.t, strings.HasPrefix(to.Path, "/some/prefix/"), to.String())
	return s.page(strings.TrimPrefix(to.String(), "/some/prefix/"))
}

func (s *site) job(id int64) *smallben.Job {
	s.t.Helper()
	jobs, err := s.scheduler.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{id}})
	require.NoError(s.t, err)
	return &jobs[0]
}

// eachDatabase runs a test on SQLite and on PostgreSQL.
func eachDatabase(t *testing.T, test func(t *testing.T, dialector gorm.Dialector)) {
	t.Helper()
	t.Parallel()
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		test(t, openSQLite(t))
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		test(t, postgres.Open(pgtest.DSN(t)))
	})
}

// runsTable is where runs are recorded: tests put some there.
const runsTable = "smallben_runs"

var everyPage = []string{"", "jobs", "jobs/1", "jobs/1/expression", "jobs/1/input", "runs", "processes", "confirm?verb=pause&id=1", "jobs/99", "nowhere", "jobs?state=none"}

func TestEveryPageIsDrawnAndNamesNoOtherHost(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]smallben.Config{"recorded": record, "not recorded": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, Options{Authorize: allow, ShowInput: true}, config, jobsOf(1, 2)...)
			links := regexp.MustCompile(`(?:href|src|action)="([^"]*)"`)
			for _, path := range everyPage {
				a := s.get(path)
				require.Contains(t, a.Body.String(), "</html>", path)
				require.Equal(t, "text/html; charset=utf-8", a.Header().Get("Content-Type"), path)
				require.NotRegexp(t, `(?i)\sstyle=|<style|\son[a-z]+=|javascript:|<script>`, a.Body.String(), path)
				base, err := url.Parse("/some/prefix/" + path)
				require.NoError(t, err)
				found := links.FindAllStringSubmatch(a.Body.String(), -1)
				require.NotEmpty(t, found, path)
				for _, link := range found {
					to, err := url.Parse(html.UnescapeString(link[1]))
					require.NoError(t, err, link[1])
					require.False(t, to.IsAbs() || to.Host != "" || strings.HasPrefix(to.Path, "/"), "%s links to %s", path, link[1])
					require.True(t, strings.HasPrefix(base.ResolveReference(to).Path, "/some/prefix/") || strings.HasPrefix(link[1], "#"), "%s links to %s", path, link[1])
				}
			}
			require.NotContains(t, s.log.String(), "not drawn")
		})
	}
}

func TestEveryAnswerHasTheHeadersThatKeepItSafe(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{}, record, jobsOf(1)...)
	for _, path := range append(everyPage, "assets/console.css", "assets/none") {
		header := s.get(path).Header()
		require.Contains(t, header.Get("Content-Security-Policy"), "default-src 'self'", path)
		require.Contains(t, header.Get("Content-Security-Policy"), "frame-ancestors 'none'", path)
		require.Equal(t, "nosniff", header.Get("X-Content-Type-Options"), path)
		require.Equal(t, "DENY", header.Get("X-Frame-Options"), path)
		require.Equal(t, "same-origin", header.Get("Referrer-Policy"), path)
		require.Equal(t, "no-store", header.Get("Cache-Control"), path)
	}
}

func TestAssetsAreKeptByBrowsersUnderTheirVersion(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{}, record)
	link := regexp.MustCompile(`href="\./(assets/console\.css\?v=[0-9a-f]+)"`).FindStringSubmatch(s.page("").Body.String())
	require.NotNil(t, link)
	a := s.page(link[1])
	require.Contains(t, a.Header().Get("Cache-Control"), "immutable")
	require.Equal(t, "text/css; charset=utf-8", a.Header().Get("Content-Type"))
	require.Equal(t, "no-store", s.page("assets/console.css?v=old").Header().Get("Cache-Control"))
}

func TestAMountWithoutASlashLeadsToTheOneWithIt(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{}, record)
	for _, path := range []string{"/some/prefix", "/some/prefix?x=1"} {
		a := s.do(httptest.NewRequest("GET", path, nil))
		require.Equal(t, http.StatusPermanentRedirect, a.Code)
		base, _ := url.Parse(path)
		to, err := base.Parse(a.Header().Get("Location"))
		require.NoError(t, err)
		require.Equal(t, "/some/prefix/", to.Path)
	}
}

func TestWithoutAuthorizeNothingCanBeChanged(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{ShowInput: true}, record, jobsOf(1, 2)...)
	for _, path := range []string{"", "jobs", "jobs/1", "runs"} {
		a := s.page(path)
		require.NotContains(t, a.Body.String(), `action="./act"`)
		require.NotContains(t, a.Body.String(), `name="verb"`, path)
		require.NotContains(t, a.Body.String(), ">change<", path)
		require.Contains(t, a.text, "read-only")
	}
	for _, path := range []string{"jobs/1/expression", "jobs/1/input", "confirm?verb=pause&id=1"} {
		require.Equal(t, http.StatusForbidden, s.get(path).Code, path)
	}
	for _, verb := range []Verb{Pause, Resume, Run, Cancel, Delete} {
		a := s.post("act", "verb", string(verb), "id", "1")
		require.Equal(t, http.StatusForbidden, a.Code, verb)
		require.Contains(t, a.text, "Nothing was changed")
	}
	require.Equal(t, http.StatusForbidden, s.post("jobs/1/expression", "expression", "@daily").Code)
	require.Equal(t, http.StatusForbidden, s.post("jobs/1/input", "input", "{}").Code)
	require.False(t, s.job(1).Paused())
	require.Equal(t, "0 9 * * 1-5", s.job(1).CronExpression)
}

func TestAuthorizeDecidesByVerbAndIDs(t *testing.T) {
	t.Parallel()
	var asked []string
	var mu sync.Mutex
	authorize := func(r *http.Request, action Action) error {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, action.String())
		if action.Verb == Pause && len(action.JobIDs) == 1 && action.JobIDs[0] == 1 {
			return nil
		}
		return errors.New("only job 1 may be paused")
	}
	s := newSite(t, Options{Authorize: authorize, User: func(r *http.Request) string { return "ada" }}, record, jobsOf(1, 2)...)
	body := s.page("jobs/1").Body.String()
	require.Contains(t, body, `value="pause"`)
	require.NotContains(t, body, `value="delete"`, "a button that would be refused is left out")
	require.NotContains(t, s.page("jobs/2").Body.String(), `value="pause"`)

	a := s.post("act", "verb", "pause", "id", "1", "id", "2")
	require.Equal(t, http.StatusForbidden, a.Code)
	require.Contains(t, a.text, "Nothing was changed: only job 1 may be paused.")
	require.False(t, s.job(1).Paused())
	s.follow("act", s.post("act", "verb", "pause", "id", "1"))
	require.True(t, s.job(1).Paused())
	require.Contains(t, asked, "pause 2 jobs")

	require.Contains(t, s.log.String(), `level=WARN msg="console action refused" verb=pause count=2 jobs="[1 2]" user=ada error="only job 1 may be paused"`)
	require.Contains(t, s.log.String(), `level=INFO msg="console action" verb=pause count=1 jobs=[1] user=ada`)
}

func TestRequestsOfOtherSitesAreRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{Authorize: allow, TrustedOrigins: []string{"https://ops.example.com"}}, record, jobsOf(1)...)
	for _, c := range []struct {
		header, value string
		want          int
	}{
		{"Sec-Fetch-Site", "cross-site", http.StatusForbidden},
		{"Sec-Fetch-Site", "same-site", http.StatusForbidden},
		{"Origin", "https://evil.example", http.StatusForbidden},
		{"Origin", "null", http.StatusForbidden},
		{"Origin", "https://ops.example.com", http.StatusSeeOther},
		{"Origin", "http://example.com", http.StatusSeeOther}, // the host itself
	} {
		for path, fields := range map[string][]string{"act": {"verb", "pause", "id", "1"}, "zone": {"zone", "UTC"}} {
			r := newPost(path, fields...)
			r.Header.Del("Sec-Fetch-Site")
			r.Header.Set(c.header, c.value)
			require.Equal(t, c.want, s.do(r).Code, "%s: %s: %s", path, c.header, c.value)
		}
	}
}

func TestGETChangesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{Authorize: allow, ShowInput: true}, record, jobsOf(1)...)
	for _, path := range []string{"act?verb=delete&id=1", "zone?zone=UTC", "jobs/1/expression?expression=@daily", "jobs/1/input?input={}", "confirm?verb=delete&id=1&scope=all"} {
		a := s.get(path)
		require.NotEqual(t, http.StatusSeeOther, a.Code, path)
		require.Empty(t, a.Header().Get("Set-Cookie"), path)
	}
	require.Equal(t, "0 9 * * 1-5", s.job(1).CronExpression)
	require.Equal(t, map[string]any{"n": 1.0}, s.job(1).JobInput)
}

func TestRequestsThatAreTooLargeAreRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{Authorize: allow, ShowInput: true}, record, jobsOf(1)...)
	large := strings.Repeat("x", maxForm)
	for path, field := range map[string]string{"act": "verb", "zone": "zone", "jobs/1/expression": "expression"} {
		require.Equal(t, http.StatusRequestEntityTooLarge, s.post(path, field, large).Code, path)
	}
	require.Equal(t, http.StatusRequestEntityTooLarge, s.post("jobs/1/input", "input", strings.Repeat("x", maxInputForm)).Code)
	require.Equal(t, http.StatusRequestURITooLong, s.get("jobs?job="+strings.Repeat("1,", maxQuery/2)).Code)
	require.Equal(t, http.StatusBadRequest, s.get("jobs?job="+strings.Repeat("1,", maxSelected+1)).Code)
	fields := []string{"verb", "pause"}
	for id := range maxSelected + 1 {
		fields = append(fields, "id", itoa(int64(id)))
	}
	require.Equal(t, http.StatusBadRequest, s.post("act", fields...).Code)
}

func TestWhatIsStoredIsShownAndNotObeyed(t *testing.T) {
	t.Parallel()
	const hostile = `"'><script>alert(1)</script><img src=x onerror=alert(2)>{{.}}</textarea></title></svg>` + "\u202e\x00"
	s := newSite(t, Options{Authorize: allow, ShowInput: true, Title: hostile}, record, smallben.Job{
		ID: 1, CronExpression: "@daily", Job: &letter{To: hostile}, JobInput: map[string]any{hostile: hostile},
	})
	tick := time.Now().Add(-time.Minute).UnixMicro()
	exec := func(statement string, args ...any) { require.NoError(t, s.db.Exec(statement, args...).Error) }
	exec(`INSERT INTO `+runsTable+` (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, exclusive)
VALUES (1, ?, false, 1, 0, 0, ?, 'error', ?, ?, ?, 0, false), (1, ?, false, 1, 0, 0, ?, '<b>new</b>', ?, ?, ?, 0, false)`,
		tick, hostile, tick, tick+1, hostile, tick-1, hostile, tick, tick+1, hostile)
	exec(`INSERT INTO jobs (id, group_id, super_group_id, cron_id, cron_expression, paused, created_at, updated_at, serialized_job, serialized_job_input)
VALUES (2, 0, 0, 0, ?, false, '2026-01-01', '2026-01-01', ?, ?)`, hostile, hostile, hostile)
	for _, path := range append(everyPage, "jobs/2", "jobs?state="+url.QueryEscape(hostile), "jobs?job="+url.QueryEscape(hostile),
		"jobs/1/expression?expression="+url.QueryEscape(hostile), "jobs/"+url.PathEscape("<script>"), "runs?from="+url.QueryEscape(hostile),
		"runs?after="+url.QueryEscape(hostile), "jobs?after="+url.QueryEscape(hostile), "jobs?done=pause&n="+url.QueryEscape(hostile), "confirm?verb="+url.QueryEscape(hostile),
		"confirm?verb=pause&id=1&back="+url.QueryEscape(hostile)) {
		body := s.get(path).Body.String()
		require.NotContains(t, body, "<script>alert", path)
		require.NotContains(t, body, "<img", path)
		require.NotContains(t, body, "<b>new", path)
		require.Equal(t, 1, strings.Count(body, "</html>"), path)
	}
	for path, fields := range map[string][]string{
		"jobs/1/input": {"input", hostile}, "jobs/1/expression": {"expression", hostile}, "act": {"verb", hostile, "id", hostile}, "zone": {"zone", hostile, "back", hostile},
	} {
		a := s.post(path, fields...)
		require.NotContains(t, a.Body.String(), "<script>alert", path)
		require.NotContains(t, a.Body.String(), "<img", path)
	}
}

func TestAWayBackLeadsNowhereElse(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{Authorize: allow}, record, jobsOf(1)...)
	for _, back := range []string{"//evil.example", "https://evil.example", "/elsewhere", `\\evil.example`, "../../elsewhere", "javascript:alert(1)", "jobs/../../../x", "\thttps://evil.example"} {
		for path, fields := range map[string][]string{"zone": {"zone", "UTC", "back", back}, "act": {"verb", "pause", "id", "1", "back", back}} {
			s.follow(path, s.post(path, fields...)) // requires that it stays below the prefix
		}
	}
	require.Equal(t, "./jobs?group=1", s.post("zone", "zone", "UTC", "back", "jobs?group=1").Header().Get("Location"))
}

func TestTimesAreShownInTheZoneThatTheReaderAsksFor(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{}, record, smallben.Job{ID: 1, CronExpression: "CRON_TZ=Asia/Tokyo 0 9 * * *", Job: &letter{}})
	require.Contains(t, s.page("jobs").text, "00:00:00", "the scheduler's zone is UTC")
	a := s.post("zone", "zone", "America/Bogota", "back", "jobs")
	require.Equal(t, "./jobs", a.Header().Get("Location"))
	cookie := a.Result().Cookies()[0]
	require.True(t, cookie.HttpOnly)
	r := httptest.NewRequest("GET", "/some/prefix/jobs", nil)
	r.AddCookie(cookie)
	require.Contains(t, s.do(r).text, "19:00:00")
	for _, none := range []string{"Local", "Mars/Phobos", "../../etc/passwd"} {
		a := s.post("zone", "zone", none)
		require.Equal(t, http.StatusUnprocessableEntity, a.Code, none)
		require.Empty(t, a.Result().Cookies())
	}
	require.Negative(t, s.post("zone", "zone", "").Result().Cookies()[0].MaxAge)
}

func TestInputsAreHiddenUnlessShowInputIsSet(t *testing.T) {
	t.Parallel()
	job := smallben.Job{ID: 1, CronExpression: "@daily", Job: &letter{To: "field-of-the-job"}, JobInput: map[string]any{"key": "input-of-the-job"}}
	hidden := newSite(t, Options{Authorize: allow}, record, job)
	for _, path := range everyPage {
		require.NotRegexp(t, "(field|input)-of-the-job", hidden.get(path).Body.String(), path)
	}
	a := hidden.post("jobs/1/input", "input", "{}")
	require.Equal(t, http.StatusForbidden, a.Code)
	require.Equal(t, map[string]any{"key": "input-of-the-job"}, hidden.job(1).JobInput)
	shown := newSite(t, Options{ShowInput: true}, record, job).page("jobs/1").text
	require.Contains(t, shown, `"key": "input-of-the-job"`)
	require.Contains(t, shown, `"To": "field-of-the-job"`)
}

func TestAnErrorOfTheDatabaseSaysWhatHappenedAndNotWhatTheDatabaseSaid(t *testing.T) {
	t.Parallel()
	s := newSite(t, Options{Authorize: allow}, record, jobsOf(1)...)
	s.scheduler.Stop()
	require.NoError(t, s.db.Exec("ALTER TABLE jobs RENAME TO secret_name").Error)
	a := s.get("jobs")
	require.Equal(t, http.StatusServiceUnavailable, a.Code)
	require.Contains(t, a.text, "The database did not answer")
	a = s.post("act", "verb", "pause", "id", "1")
	require.Equal(t, http.StatusServiceUnavailable, a.Code)
	require.Contains(t, a.text, "Nothing was changed")
	require.NotContains(t, a.text, "no such table")
	require.Contains(t, s.log.String(), "no such table", "the log says it")
}

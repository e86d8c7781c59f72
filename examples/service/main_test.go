package main

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
)

const (
	// childVariable makes the test binary be the service.
	childVariable = "SMALLBEN_SERVICE_CHILD"
	childOfTest   = "test"
	childOfScript = "script" // whose standard input is empty
	// patience is how long a test waits for what is to come. It is not waited
	// out unless something is broken.
	patience = 2 * time.Minute
)

func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case childOfTest:
		go func() {
			// The other end of standard input closes when the test is gone,
			// however it went.
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(3)
		}()
		fallthrough
	case childOfScript:
		main()
		return
	}
	code := m.Run()
	pgtest.Stop()
	os.Exit(code)
}

// onEachDatabase runs the test on SQLite and on PostgreSQL. open gives a
// connection beside that of the service.
func onEachDatabase(t *testing.T, test func(t *testing.T, dsn string, open func() *sql.DB)) {
	opener := func(t *testing.T, driver, dsn string) func() *sql.DB {
		return func() *sql.DB {
			db, err := sql.Open(driver, dsn)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, db.Close()) })
			return db
		}
	}
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "service.db")
		test(t, path, opener(t, "sqlite3", path))
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		dsn := pgtest.DSN(t)
		test(t, dsn, opener(t, "pgx", dsn))
	})
}

const (
	beyondFloat = int64(1)<<53 + 1 // no float64 holds it
	lowest      = int64(math.MinInt64)
)

func TestEveryJobIsThereAfterAKill(t *testing.T) {
	t.Parallel()
	onEachDatabase(t, func(t *testing.T, dsn string, open func() *sql.DB) {
		hook := newReceiver(t)
		s := startService(t, dsn)
		s.expect("POST", "/jobs", fmt.Sprintf(`{"id": %d, "group_id": 7, "super_group_id": 70, "cron_expression": "* * * * * *",
			"webhook": {"url": %q}, "input": {"order": %d}}`, beyondFloat, hook.url, beyondFloat), http.StatusCreated)
		s.expect("POST", "/jobs", fmt.Sprintf(`{"id": %d, "group_id": 7, "super_group_id": 71, "cron_expression": "@hourly",
			"log": {"message": "tick"}}`, lowest), http.StatusCreated)
		s.expect("POST", "/jobs", `{"id": 3, "group_id": 8, "super_group_id": 71, "cron_expression": "CRON_TZ=Europe/Rome 0 9 * * *",
			"log": {"message": "good morning"}, "input": {"city": "Rome"}}`, http.StatusCreated)
		hook.wait(func(d received) bool {
			return d.JobID == beyondFloat && d.GroupID == 7 && d.SuperGroupID == 70 &&
				string(d.Input) == fmt.Sprintf(`{"order":%d}`, beyondFloat)
		})
		s.expect("POST", "/jobs/3/pause", "", http.StatusNoContent)

		before := s.stored()
		require.Equal(t, []int64{lowest, 3, beyondFloat}, ids(before))
		require.Equal(t, []int64{3}, ids(s.list("?paused=true")))
		require.Equal(t, gauges{total: 3, notPaused: 2, paused: 1}, s.gauges())

		s.kill()
		killed := time.Now()
		s = startService(t, dsn)
		require.Equal(t, before, s.stored())
		require.Equal(t, gauges{total: 3, notPaused: 2, paused: 1}, s.gauges())
		hook.wait(func(d received) bool { return d.ScheduledAt.After(killed) && d.JobID == beyondFloat })
		s.terminate()
	})
}

func TestJobsAreChangedByIDGroupAndSuperGroup(t *testing.T) {
	t.Parallel()
	onEachDatabase(t, func(t *testing.T, dsn string, open func() *sql.DB) {
		hook := newReceiver(t)
		s := startService(t, dsn)
		for id := range 6 {
			s.expect("POST", "/jobs", fmt.Sprintf(`{"id": %d, "group_id": %d, "super_group_id": %d, "cron_expression": "* * * * * *",
				"webhook": {"url": %q}, "input": {"version": 1}}`, id+1, id/2, id/3, hook.url), http.StatusCreated)
		}
		require.Equal(t, []int64{3, 4}, ids(s.list("?group=1")))
		require.Equal(t, []int64{4, 5, 6}, ids(s.list("?super_group=1")))
		require.Equal(t, []int64{4}, ids(s.list("?super_group=1&group=1")))
		require.Equal(t, []int64{2, 5}, ids(s.list("?id=5&id=2&id=5")))

		paused := func() []int64 { return ids(s.list("?paused=true")) }
		s.expect("POST", "/jobs/1/pause", "", http.StatusNoContent)
		s.expect("POST", "/jobs/pause?group=2", "", http.StatusNoContent)
		require.Equal(t, []int64{1, 5, 6}, paused())
		s.expect("POST", "/jobs/pause?all=true", "", http.StatusNoContent)
		require.Equal(t, []int64{1, 2, 3, 4, 5, 6}, paused())
		s.expect("POST", "/jobs/resume?super_group=1", "", http.StatusNoContent)
		s.expect("POST", "/jobs/resume?id=2", "", http.StatusNoContent)
		s.expect("POST", "/jobs/1/resume", "", http.StatusNoContent)
		require.Equal(t, []int64{3}, paused())
		require.Equal(t, gauges{total: 6, notPaused: 5, paused: 1}, s.gauges())

		s.expect("PATCH", "/jobs/6", `{"cron_expression": "*/2 * * * * *", "input": {"version": 2}}`, http.StatusNoContent)
		hook.wait(func(d received) bool { return d.JobID == 6 && string(d.Input) == `{"version":2}` })
		var job storedJob
		require.NoError(t, json.Unmarshal(s.expect("GET", "/jobs/6", "", http.StatusOK), &job))
		require.Equal(t, "*/2 * * * * *", job.CronExpression)
		require.Equal(t, &Webhook{URL: hook.url}, job.Webhook)
		require.Equal(t, map[string]any{"version": 2.0}, job.Input)
		require.False(t, job.Paused)
		require.True(t, job.UpdatedAt.After(job.CreatedAt))

		s.expect("DELETE", "/jobs/6", "", http.StatusNoContent)
		s.expect("DELETE", "/jobs?group=2", "", http.StatusNoContent)
		s.expect("DELETE", "/jobs?paused=true", "", http.StatusNoContent)
		require.Equal(t, []int64{1, 2, 4}, ids(s.list("")))
		s.expect("DELETE", "/jobs?super_group=1", "", http.StatusNoContent)
		require.Equal(t, gauges{total: 2, notPaused: 2}, s.gauges())
		s.expect("DELETE", "/jobs?all=true", "", http.StatusNoContent)
		require.Empty(t, s.list(""))
		require.Equal(t, gauges{}, s.gauges())
		s.terminate()
	})
}

func TestErrorsHaveTheirStatusAndNameTheJob(t *testing.T) {
	t.Parallel()
	onEachDatabase(t, func(t *testing.T, dsn string, open func() *sql.DB) {
		s := startService(t, dsn)
		const stored = `{"id": 1, "group_id": 7, "cron_expression": "@hourly", "log": {"message": "tick"}}`
		s.expect("POST", "/jobs", stored, http.StatusCreated)
		before := s.stored()

		for _, c := range []struct {
			method, path, body string
			status             int
			jobID              int64 // 0 for an error that is of no job
			message            string
		}{
			{"POST", "/jobs", `{"id": 0, "cron_expression": "@hourly", "log": {"message": "tick"}}`, 400, 0, "the id is 0"},
			{"POST", "/jobs", `{"id": 42, "cron_expression": "61 * * * *", "log": {"message": "tick"}}`, 400, 42, "61"},
			{"POST", "/jobs", `{"id": 42, "cron_expression": "@hourly"}`, 400, 42, "one of log and webhook"},
			{"POST", "/jobs", `{"id": 42, "cron_expression": "@hourly", "log": {"message": ""}}`, 400, 42, "message is empty"},
			{"POST", "/jobs", `{"id": 42, "cron_expression": "@hourly", "webhook": {"url": "file:///etc"}}`, 400, 42, "not an http"},
			{"POST", "/jobs", `{"id": 42, "expression": "@hourly"}`, 400, 0, `unknown field`},
			{"POST", "/jobs", `{"id": 4.2}`, 400, 0, "body"},
			{"POST", "/jobs", `{"id": 9223372036854775808}`, 400, 0, "body"},
			{"POST", "/jobs", stored + stored, 400, 0, "more than one"},
			{"POST", "/jobs", ``, 400, 0, "body"},
			{"POST", "/jobs", `{"cron_expression": "` + strings.Repeat("*", maxBody) + `"}`, 413, 0, "too large"},
			{"POST", "/jobs", stored, 409, 1, "exists"},
			{"PATCH", "/jobs/1", `{}`, 400, 1, "neither"},
			{"PATCH", "/jobs/1", `{"cron_expression": "@every 1ms"}`, 400, 1, "under one second"},
			{"PATCH", "/jobs/1", `{"id": 2}`, 400, 1, "unknown field"},
			{"PATCH", "/jobs/2", `{"cron_expression": "@daily"}`, 404, 2, "2"},
			{"PATCH", "/jobs/x", `{"cron_expression": "@daily"}`, 400, 0, `"x"`},
			{"GET", "/jobs/2", ``, 404, 2, "2"},
			{"GET", "/jobs?id=1&id=2", ``, 404, 0, "2"},
			{"GET", "/jobs?group=x", ``, 400, 0, `"x"`},
			{"GET", "/jobs?grupo=7", ``, 400, 0, "grupo"},
			{"DELETE", "/jobs/2", ``, 404, 2, "2"},
			{"DELETE", "/jobs", ``, 400, 0, "all=true"},
			{"DELETE", "/jobs?", ``, 400, 0, "all=true"},
			{"DELETE", "/jobs?&", ``, 400, 0, "empty"},
			{"DELETE", "/jobs?group=", ``, 400, 0, "group"},
			{"DELETE", "/jobs?grupo=7", ``, 400, 0, "grupo"},
			{"DELETE", "/jobs?all=true;group=8", ``, 400, 0, "semicolon"},
			{"DELETE", "/jobs?all=true&group=8", ``, 400, 0, "all"},
			{"DELETE", "/jobs?paused=true&paused=false", ``, 400, 0, "twice"},
			{"DELETE", "/jobs?group=8", ``, 404, 0, "no job matches"},
			{"POST", "/jobs/pause", ``, 400, 0, "all=true"},
			{"POST", "/jobs/pause?paused=true", ``, 400, 0, "paused"},
			{"POST", "/jobs/2/pause", ``, 404, 2, "2"},
			{"POST", "/jobs/2/resume", ``, 404, 2, "2"},
			{"POST", "/jobs/resume?super_group=5", ``, 404, 0, "no job matches"},
			{"POST", "/jobs/2/run", ``, 404, 2, "2"},
			{"POST", "/jobs/run", ``, 400, 0, "all=true"},
			{"POST", "/jobs/run?group=8", ``, 404, 0, "no job matches"},
			{"GET", "/jobs/2/next", ``, 404, 2, "2"},
			{"GET", "/jobs/1/next?n=0", ``, 400, 1, "not from 1"},
			{"GET", "/next?expression=@daily&n=x", ``, 400, 0, `"x"`},
			{"GET", "/next?expression=61+*+*+*+*", ``, 400, 0, "above maximum"},
			{"GET", "/next", ``, 400, 0, "empty"},
			{"GET", "/runs?id=1", ``, 400, 0, `"id"`},
			{"GET", "/runs?job=x", ``, 400, 0, `"x"`},
			{"GET", "/runs?outcome=failed", ``, 400, 0, "none of ok error panic timeout running lost skipped missed"},
			{"GET", "/runs?limit=1001", ``, 400, 0, "not from 1 to 1000"},
			{"GET", "/runs?limit=1&limit=2", ``, 400, 0, "twice"},
			{"GET", "/runs?from=yesterday", ``, 400, 0, "yesterday"},
			{"GET", "/runs?job=1;group=8", ``, 400, 0, "semicolon"},
		} {
			var answer refusal
			name := c.method + " " + c.path
			require.NoError(t, json.Unmarshal(s.expect(c.method, c.path, c.body, c.status), &answer), name)
			require.Contains(t, answer.Error, c.message, name)
			if c.jobID != 0 {
				require.NotNil(t, answer.JobID, name)
				require.Equal(t, c.jobID, *answer.JobID, name)
			}
		}
		require.Equal(t, before, s.stored(), "a request that was refused changed something")

		db := open()
		execute(t, db, "ALTER TABLE jobs RENAME TO jobs_away")
		for _, request := range [][2]string{
			{"GET", "/healthz"}, {"GET", "/jobs"}, {"GET", "/jobs/1"}, {"POST", "/jobs/1/pause"}, {"DELETE", "/jobs?all=true"},
		} {
			answer := s.expect(request[0], request[1], "", http.StatusServiceUnavailable)
			require.Contains(t, string(answer), "try again")
			require.NotContains(t, string(answer), "SQL")
		}
		execute(t, db, "ALTER TABLE jobs_away RENAME TO jobs")
		s.expect("GET", "/healthz", "", http.StatusOK)
		require.Equal(t, before, s.stored())

		execute(t, db, "UPDATE jobs SET serialized_job = 'broken' WHERE id = 1")
		s.expect("POST", "/jobs", strings.Replace(stored, "1", "2", 1), http.StatusCreated)
		require.Equal(t, []int64{2}, ids(s.list("")), "the broken row hides the other one")
		require.Contains(t, string(s.expect("GET", "/jobs", "", http.StatusOK)), `"error":"list job 1: undecodable row`)
		s.expect("GET", "/jobs/1", "", http.StatusInternalServerError)
		s.expect("PATCH", "/jobs/1", `{"cron_expression": "@daily"}`, http.StatusInternalServerError)
		s.expect("DELETE", "/jobs/1", "", http.StatusNoContent)
		s.terminate()
	})
}

func TestSIGTERMWaitsForARunInProgress(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	cut := make(chan error, 1)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-release
		cut <- r.Context().Err()
	}))
	defer hook.Close()
	s := startService(t, filepath.Join(t.TempDir(), "service.db"))
	s.expect("POST", "/jobs", fmt.Sprintf(`{"id": 1, "cron_expression": "* * * * * *", "webhook": {"url": %q}}`, hook.URL), http.StatusCreated)
	receive(t, arrived, "the webhook")

	require.NoError(t, s.command.Process.Signal(syscall.SIGTERM))
	receive(t, s.draining, "the log line of draining")
	require.Eventually(t, func() bool {
		_, err := http.Get(s.url + "/healthz")
		return err != nil
	}, patience, 10*time.Millisecond, "the service still takes requests")
	select {
	case <-s.exited:
		t.Fatal("the service did not wait for the run")
	default:
	}
	close(release)
	require.NoError(t, receive(t, cut, "the end of the webhook"), "the request was cut off")
	receive(t, s.exited, "the end of the service")
	require.True(t, s.command.ProcessState.Success(), s.command.ProcessState)
}

func TestSIGTERMEndsRunsWhoseTimeIsUp(t *testing.T) {
	t.Parallel()
	arrived, cut := make(chan struct{}, 1), make(chan struct{})
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a server notices a lost connection once it has read the request
		arrived <- struct{}{}
		<-r.Context().Done()
		close(cut)
	}))
	defer hook.Close()
	s := startService(t, filepath.Join(t.TempDir(), "service.db"), "-grace", "50ms")
	s.expect("POST", "/jobs", fmt.Sprintf(`{"id": 1, "cron_expression": "@yearly", "webhook": {"url": %q}}`, hook.URL), http.StatusCreated)
	s.expect("POST", "/jobs/1/run", "", http.StatusAccepted)
	receive(t, arrived, "the webhook")
	require.True(t, s.get(1).Running)

	require.NoError(t, s.command.Process.Signal(syscall.SIGTERM))
	receive(t, cut, "the end of the webhook")
	receive(t, s.exited, "the end of the service")
	require.Equal(t, 1, s.command.ProcessState.ExitCode())
	require.Contains(t, s.said.String(), "still running: jobs 1")
	require.Regexp(t, `"msg":"run ended".*"job":1,.*"ok":false`, s.said.String(), "it heeded its context")
}

func TestARunOnRequestIsOneOfManyAndShowsInTheList(t *testing.T) {
	t.Parallel()
	onEachDatabase(t, func(t *testing.T, dsn string, open func() *sql.DB) {
		hook := newReceiver(t)
		s := startService(t, dsn)
		s.expect("POST", "/jobs", fmt.Sprintf(`{"id": 1, "group_id": 7, "cron_expression": "@yearly", "webhook": {"url": %q}}`, hook.url), http.StatusCreated)
		s.expect("POST", "/jobs", `{"id": 2, "group_id": 7, "cron_expression": "0 0 12 * * MON", "webhook": {"url": "http://127.0.0.1:1/"}}`, http.StatusCreated)
		s.expect("POST", "/jobs/2/pause", "", http.StatusNoContent)
		require.Nil(t, s.get(1).LastRun)
		require.False(t, s.get(1).NextRun.IsZero())
		require.True(t, s.get(2).NextRun.IsZero(), "it is paused")

		s.expect("POST", "/jobs/run?group=7", "", http.StatusAccepted)
		hook.wait(func(d received) bool { return d.JobID == 1 && d.Triggered && trace.MatchString(d.trace) })
		first := s.ran(1)
		require.True(t, first.LastRun.Triggered)
		require.Equal(t, smallben.OutcomeOK, first.LastRun.Outcome)
		require.Empty(t, first.LastRun.Error)
		second := s.ran(2)
		require.Equal(t, smallben.OutcomeError, second.LastRun.Outcome, "no one listens at port 1")
		require.Contains(t, second.LastRun.Error, "127.0.0.1:1")
		require.True(t, second.Paused)

		for _, path := range []string{"/jobs/2/next?n=2", "/next?n=2&expression=0+12+*+*+MON"} {
			var next nextRuns
			require.NoError(t, json.Unmarshal(s.expect("GET", path, "", http.StatusOK), &next))
			require.Len(t, next.Next, 2, path)
			require.Equal(t, "Monday 12:00", next.Next[0].UTC().Format("Monday 15:04"), path)
			require.Equal(t, 7*24*time.Hour, next.Next[1].Sub(next.Next[0]), path)
		}
		metrics := string(s.expect("GET", "/metrics", "", http.StatusOK))
		require.Contains(t, metrics, `smallben_runs_total{job_type="webhook",outcome="ok"} 1`)
		require.Contains(t, metrics, `smallben_runs_total{job_type="webhook",outcome="error"} 1`)
		s.terminate()
		require.Regexp(t, `"msg":"run ended".*"trace":"[0-9a-f]{32}"`, s.said.String())
	})
}

// trace is what the traceparent of a run looks like.
var trace = regexp.MustCompile("^00-[0-9a-f]{32}-[0-9a-f]{16}-01$")

func TestTheServiceHasItsOwnJobAtEveryStart(t *testing.T) {
	t.Parallel()
	onEachDatabase(t, func(t *testing.T, dsn string, open func() *sql.DB) {
		start := func(expression string) (*service, storedJob) {
			s := startService(t, dsn, "-report", expression)
			return s, s.get(reportID)
		}
		s, added := start("@daily")
		require.Equal(t, &Report{AtMost: 10}, added.Report)
		s.expect("POST", "/jobs", `{"id": 1, "cron_expression": "@yearly", "webhook": {"url": "http://127.0.0.1:1/"}}`, http.StatusCreated)
		s.expect("POST", "/jobs/1/run", "", http.StatusAccepted)
		s.ran(1)
		s.expect("POST", "/jobs/-1/run", "", http.StatusAccepted)
		require.Equal(t, smallben.OutcomeOK, s.ran(reportID).LastRun.Outcome)
		s.terminate()
		require.Regexp(t, `"msg":"report".*"jobs":2,"failed":1,"first":\["job 1: error"\]`, s.said.String())

		s, same := start("@daily")
		require.Equal(t, added.UpdatedAt, same.UpdatedAt, "nothing was written")
		s.expect("POST", "/jobs/-1/pause", "", http.StatusNoContent)
		s.terminate()

		s, changed := start("@weekly")
		require.Equal(t, "@weekly", changed.CronExpression)
		require.Equal(t, added.CreatedAt, changed.CreatedAt)
		require.True(t, changed.Paused, "what is paused stays paused")
		s.expect("DELETE", "/jobs/-1", "", http.StatusNoContent)
		s.terminate()

		s, again := start("@weekly")
		require.False(t, again.Paused)
		require.True(t, again.CreatedAt.After(added.CreatedAt))
		s.terminate()
	})
}

func TestTheSessionsOfTheREADMEWorkWhenPasted(t *testing.T) {
	t.Parallel()
	for n, name := range []string{"the API", "an endpoint that fails"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			commands, prints := readmeSession(t, n)
			const documented = "http://127.0.0.1:8080"
			s := startService(t, filepath.Join(t.TempDir(), "service.db"), "-report", "@daily")
			session := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(commands, documented, s.url))
			printed, err := session.CombinedOutput()
			require.NoError(t, err, string(printed))
			require.Equal(t, prints, dotted(strings.ReplaceAll(string(printed), s.url, documented)))
			s.terminate()
		})
	}
}

// readmeSession returns the commands of a session in README.md and what they print.
func readmeSession(t *testing.T, n int) (commands, prints string) {
	t.Helper()
	for _, tool := range []string{"sh", "curl", "grep"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("no %s to paste the session with", tool)
			}
			t.Skipf("no %s to paste the session with", tool)
		}
	}
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```(?:sh|text)\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.Len(t, blocks, 6, "of each session the commands, and what they print")
	return blocks[2*n][1], blocks[2*n+1][1]
}

// dotted is the text with dots for what is different in each run.
func dotted(text string) string {
	return regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z|\d\d:\d\d:\d\d|[\w.-]+/\d+(?:/[a-z0-9]+)?|("(?:late|duration)_seconds":)[\d.e-]+`).
		ReplaceAllString(text, "$1…")
}

func TestStatusOfErrors(t *testing.T) {
	t.Parallel()
	a := &api{repository: &smallben.RepositoryGorm{}}
	for status, errs := range map[int][]error{
		http.StatusBadRequest:            {badRequestf("no"), smallben.ErrInvalidJob, smallben.ErrUpdateOptionInvalid},
		http.StatusNotFound:              {gorm.ErrRecordNotFound},
		http.StatusConflict:              {smallben.ErrJobExists},
		http.StatusRequestEntityTooLarge: {badRequestf("body: %w", &http.MaxBytesError{})},
		http.StatusInternalServerError:   {smallben.ErrUndecodable},
		http.StatusServiceUnavailable:    {smallben.ErrOutcomeUnknown, errors.New("connection refused")},
	} {
		for _, err := range errs {
			err = fmt.Errorf("wrapped: %w", &smallben.JobError{JobID: 42, Err: err})
			require.Equal(t, status, a.status(err), err)
			answer := httptest.NewRecorder()
			a.refuse(answer, httptest.NewRequest("GET", "/jobs", nil), err)
			var body refusal
			require.NoError(t, json.Unmarshal(answer.Body.Bytes(), &body))
			require.EqualValues(t, 42, *body.JobID)
			if errors.Is(err, smallben.ErrOutcomeUnknown) {
				require.Contains(t, body.Error, "look before you try again")
			}
		}
	}
}

func TestDialectorKnowsPostgreSQLFromAPath(t *testing.T) {
	t.Parallel()
	for dsn, name := range map[string]string{
		"postgres://localhost/jobs":    "postgres",
		"postgresql://localhost/jobs":  "postgres",
		"host=/tmp dbname=jobs":        "postgres",
		"dbname=jobs":                  "postgres",
		"service.db":                   "sqlite",
		"file:service.db?mode=rwc":     "sqlite",
		"/srv/a=b/service.db":          "sqlite",
		"service.db?_txlock=exclusive": "sqlite",
	} {
		require.Equal(t, name, dialector(dsn).Name(), dsn)
	}
}

// service is the service in a process of its own.
type service struct {
	t        *testing.T
	command  *exec.Cmd
	url      string
	addr     chan string     // it listens there
	draining chan struct{}   // closed when it says so
	exited   chan struct{}   // closed when the process has ended
	said     strings.Builder // the log, to be read when it has exited
}

// startService starts the service and waits until it listens. It has no job of its
// own unless the flags say so.
func startService(t *testing.T, dsn string, flags ...string) *service {
	t.Helper()
	s := launchService(t, dsn, flags...)
	s.listens()
	return s
}

func launchService(t *testing.T, dsn string, flags ...string) *service {
	t.Helper()
	executable, err := os.Executable()
	require.NoError(t, err)
	s := &service{
		t: t,
		command: exec.CommandContext(t.Context(), executable,
			append([]string{"-addr", "127.0.0.1:0", "-dsn", dsn, "-log", "json", "-report", ""}, flags...)...),
		addr:     make(chan string, 1),
		draining: make(chan struct{}),
		exited:   make(chan struct{}),
	}
	// Under the race detector a process sleeps for a second before it exits.
	s.command.Env = append(os.Environ(), childVariable+"="+childOfTest, "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=20")
	_, err = s.command.StdinPipe()
	require.NoError(t, err)
	logs, err := s.command.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, s.command.Start())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(s.exited)
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			s.said.WriteString(lines.Text() + "\n")
			var line struct{ Msg, Addr string }
			_ = json.Unmarshal(lines.Bytes(), &line) // what the race detector says is no JSON
			switch line.Msg {
			case "listening":
				s.addr <- line.Addr
			case "draining":
				close(s.draining)
			}
		}
		_ = s.command.Wait() // the tests look at ProcessState
	})
	t.Cleanup(func() {
		wg.Wait() // t.Context has ended, and with it the process
		if t.Failed() {
			t.Log("the service said:\n" + s.said.String())
		}
	})
	return s
}

// listens waits until the service listens.
func (s *service) listens() {
	s.t.Helper()
	select {
	case addr := <-s.addr:
		s.url = "http://" + addr
	case <-s.exited:
		s.t.Fatal("the service did not start")
	case <-time.After(patience):
		s.t.Fatal("the service does not listen")
	}
}

// kill ends the service with no chance to say anything.
func (s *service) kill() {
	s.t.Helper()
	require.NoError(s.t, s.command.Process.Kill())
	receive(s.t, s.exited, "the end of the service")
}

// terminate ends the service as those who run it do.
func (s *service) terminate() {
	s.t.Helper()
	require.NoError(s.t, s.command.Process.Signal(syscall.SIGTERM))
	receive(s.t, s.exited, "the end of the service")
	require.True(s.t, s.command.ProcessState.Success(), s.command.ProcessState)
}

// expect makes a request and returns the body of the answer.
func (s *service) expect(method, path, body string, status int) []byte {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	require.NoError(s.t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(s.t, err)
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	require.NoError(s.t, err)
	require.Equal(s.t, status, response.StatusCode, "%s %s: %s", method, path, answer)
	return answer
}

func (s *service) list(query string) []storedJob {
	s.t.Helper()
	var answer struct{ Jobs []storedJob }
	require.NoError(s.t, json.Unmarshal(s.expect("GET", "/jobs"+query, "", http.StatusOK), &answer))
	return answer.Jobs
}

// stored is list without what is not stored, which time changes.
func (s *service) stored() []storedJob {
	s.t.Helper()
	jobs := s.list("")
	for i := range jobs {
		jobs[i].Running, jobs[i].NextRun, jobs[i].LastRun = false, time.Time{}, nil
	}
	return jobs
}

func (s *service) runs(query string) []listedRun {
	s.t.Helper()
	var answer struct{ Runs []listedRun }
	require.NoError(s.t, json.Unmarshal(s.expect("GET", "/runs"+query, "", http.StatusOK), &answer))
	return answer.Runs
}

func (s *service) get(id int64) (job storedJob) {
	s.t.Helper()
	require.NoError(s.t, json.Unmarshal(s.expect("GET", fmt.Sprint("/jobs/", id), "", http.StatusOK), &job))
	return job
}

// ran waits until the job has run, and returns it.
func (s *service) ran(id int64) (job storedJob) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		job = s.get(id)
		return job.LastRun != nil && job.LastRun.Outcome != smallben.OutcomeRunning
	}, patience, 10*time.Millisecond, "job %d has not run", id)
	return job
}

func ids(jobs []storedJob) []int64 {
	ids := make([]int64, len(jobs))
	for i := range jobs {
		ids[i] = jobs[i].ID
	}
	return ids
}

// gauges are the gauges of /metrics that count jobs.
type gauges struct{ total, notPaused, paused, undecodable int }

func (s *service) gauges() (g gauges) {
	s.t.Helper()
	read := 0
	for line := range bytes.Lines(s.expect("GET", "/metrics", "", http.StatusOK)) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		gauge, ok := map[string]*int{
			"smallben_scheduler_jobs_total":       &g.total,
			"smallben_scheduler_jobs_not_paused":  &g.notPaused,
			"smallben_scheduler_jobs_paused":      &g.paused,
			"smallben_scheduler_jobs_undecodable": &g.undecodable,
		}[name]
		if ok {
			var err error
			*gauge, err = strconv.Atoi(value)
			require.NoError(s.t, err)
			read++
		}
	}
	require.Equal(s.t, 4, read, "gauges in /metrics")
	return g
}

// receiver is what webhooks call.
type receiver struct {
	t          *testing.T
	url        string
	deliveries chan received
}

// received is a delivery with its traceparent.
type received struct {
	delivery
	trace string
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{t: t, deliveries: make(chan received, 100)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		d := received{trace: request.Header.Get("traceparent")}
		if err := json.NewDecoder(request.Body).Decode(&d.delivery); err != nil {
			t.Errorf("delivery: %v", err)
		}
		select {
		case r.deliveries <- d:
		default: // nobody has waited for a while
		}
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

// wait returns when a delivery comes that is wanted.
func (r *receiver) wait(wanted func(received) bool) {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case d := <-r.deliveries:
			if wanted(d) {
				return
			}
		case <-deadline:
			r.t.Fatal("the webhook was not called")
		}
	}
}

func receive[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
	return v
}

func execute(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	_, err := db.ExecContext(t.Context(), statement)
	require.NoError(t, err)
}

package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/stretchr/testify/require"
)

func TestThreeReplicasRunEachTickOnceAndFollowEachOther(t *testing.T) {
	t.Parallel()
	onEachDatabase(t, func(t *testing.T, dsn string, open func() *sql.DB) {
		hook := newLedger(t)
		var replicas [3]*service
		for i := range replicas {
			replicas[i] = launchService(t, dsn) // all at once, on an empty database
		}
		var names [3]string
		for i, s := range replicas {
			s.listens()
			names[i] = s.name()
		}
		for id := range 2 {
			replicas[0].expect("POST", "/jobs", fmt.Sprintf(`{"id": %d, "cron_expression": "* * * * * *", "webhook": {"url": %q}}`, id+1, hook.url), http.StatusCreated)
		}
		hook.wait(1, 3)

		replicas[1].expect("POST", "/jobs/1/pause", "", http.StatusNoContent)
		paused := time.Now()
		for _, s := range replicas {
			require.True(t, s.get(1).Paused)
			require.Eventually(t, func() bool { return s.gauges() == gauges{total: 2, notPaused: 1, paused: 1} },
				patience, 50*time.Millisecond, "a replica does not follow")
		}
		hook.wait(2, 3)
		for _, tick := range hook.ticks(1) {
			require.True(t, tick.Before(paused), "a tick at %v of what was paused at %v", tick, paused)
		}

		// Between two ticks of job 2, none of its runs is in progress.
		for idle := false; !idle; {
			tick := replicas[0].idle(2)
			require.NoError(t, replicas[2].command.Process.Signal(syscall.SIGSTOP))
			if idle = time.Since(tick) < time.Second; !idle {
				require.NoError(t, replicas[2].command.Process.Signal(syscall.SIGCONT))
			}
		}
		replicas[2].kill()
		killed := time.Now()
		hook.wait(2, 4)
		replicas[1].expect("POST", "/jobs/1/resume", "", http.StatusNoContent)
		hook.wait(1, 2)
		replicas[0].expect("POST", "/jobs/pause?all=true", "", http.StatusNoContent)
		require.Eventually(t, func() bool { return len(replicas[0].runs("?outcome=running")) == 0 },
			patience, 10*time.Millisecond, "runs do not end")

		for id := range int64(2) {
			var ticks []time.Time
			notRun := 0 // on a busy machine, of which the record tells
			for _, run := range replicas[0].runs(fmt.Sprintf("?limit=1000&job=%d", id+1)) {
				if run.Outcome == smallben.OutcomeSkipped || run.Outcome == smallben.OutcomeMissed {
					notRun += max(1, run.Missed)
					continue
				}
				require.Equal(t, smallben.OutcomeOK, run.Outcome, run)
				by := slices.IndexFunc(names[:], func(name string) bool { return strings.HasPrefix(run.Process, name+"/") })
				require.NotEqual(t, -1, by, "%s is none of %v", run.Process, names)
				require.False(t, by == 2 && run.Start.After(killed), "%s was dead", run.Process)
				ticks = append(ticks, run.Tick)
			}
			slices.Reverse(ticks) // they come newest first
			require.Equal(t, ticks, hook.ticks(id+1), "what was recorded is what was run")
			if id+1 == 2 {
				seconds := int(ticks[len(ticks)-1].Sub(ticks[0]) / time.Second)
				require.InDelta(t, seconds+1, len(ticks)+notRun, float64(notRun), "each tick once: %v", ticks)
			}
		}
		replicas[0].terminate()
		replicas[1].terminate()
	})
}

// TestTheReplicasOfTheREADMEWorkWhenPasted starts them as README.md says.
func TestTheReplicasOfTheREADMEWorkWhenPasted(t *testing.T) {
	t.Parallel()
	commands, prints := readmeSession(t, 2)
	dsn := pgtest.DSN(t)
	if os.Getenv("SMALLBEN_POSTGRES_DSN") == "" {
		dsn = "" // the script starts a server of its own
	}
	executable, err := os.Executable()
	require.NoError(t, err)
	port := freePorts(t, 3)

	// The script ends when standard input does, or the test.
	script := exec.CommandContext(t.Context(), "sh", "-c", `sh replicas.sh "$0" & read -r _; kill $!; wait $!`, dsn)
	script.Env = append(os.Environ(), childVariable+"="+childOfScript, "SERVICE="+executable, "PORT="+strconv.Itoa(port),
		"GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=20")
	script.Cancel = func() error { return nil } // it sees the end of input
	input, err := script.StdinPipe()
	require.NoError(t, err)
	logs, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer logs.Close()
	script.Stdout, script.Stderr = logs, logs
	require.NoError(t, script.Start())
	said := func() string {
		text, err := os.ReadFile(logs.Name())
		require.NoError(t, err)
		return string(text)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			input.Close()
			_ = script.Wait()
		}
	}
	defer func() {
		end()
		if t.Failed() {
			t.Log("the script said:\n" + said())
		}
	}()
	require.Eventually(t, func() bool { return strings.Count(said(), "msg=listening") == 3 }, patience, 50*time.Millisecond)

	for i := range 3 {
		commands = strings.ReplaceAll(commands, fmt.Sprintf("127.0.0.1:%d", 8081+i), fmt.Sprintf("127.0.0.1:%d", port+i))
	}
	const kill = `if [ "$pid" = 1 ]`
	before, after, found := strings.Cut(commands, kill)
	require.True(t, found)
	reached, reach, err := os.Pipe()
	require.NoError(t, err)
	defer reached.Close()
	shell := exec.CommandContext(t.Context(), "sh")
	shell.ExtraFiles = []*os.File{reach}
	typed, err := shell.StdinPipe()
	require.NoError(t, err)
	var printed bytes.Buffer
	shell.Stdout, shell.Stderr = &printed, &printed
	require.NoError(t, shell.Start())
	require.NoError(t, reach.Close())
	_, err = io.WriteString(typed, before+"echo >&3\n")
	require.NoError(t, err)
	_, err = reached.Read(make([]byte, 1))
	require.NoError(t, err)
	(&service{t: t, url: fmt.Sprintf("http://127.0.0.1:%d", port)}).idle(1)
	_, err = io.WriteString(typed, kill+after)
	require.NoError(t, err)
	require.NoError(t, typed.Close())
	require.NoError(t, shell.Wait())
	require.Equal(t, dotted(prints), dotted(printed.String()), printed.String())

	end()
	require.Equal(t, 2, strings.Count(said(), "msg=stopped"), "one was killed")
	if dir := regexp.MustCompile(`psql -h (\S+)`).FindStringSubmatch(said()); dsn == "" {
		require.NotNil(t, dir)
		require.NoFileExists(t, dir[1])
		require.NoDirExists(t, dir[1])
	}
}

// freePorts returns the first of n ports that nobody uses.
func freePorts(t *testing.T, n int) int {
	t.Helper()
next:
	for range 100 {
		// Below those that systems take for outgoing connections.
		first := 16_384 + rand.IntN(16_384-n)
		for port := first; port < first+n; port++ {
			listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				continue next
			}
			require.NoError(t, listener.Close())
		}
		return first
	}
	t.Fatal("no free ports")
	return 0
}

func TestRunsAreFoundByJobOutcomeAndTime(t *testing.T) {
	t.Parallel()
	onEachDatabase(t, func(t *testing.T, dsn string, open func() *sql.DB) {
		hook := newLedger(t)
		s := startService(t, dsn)
		for id, url := range []string{hook.url, "http://127.0.0.1:1/"} {
			s.expect("POST", "/jobs", fmt.Sprintf(`{"id": %d, "group_id": %d, "super_group_id": 70, "cron_expression": "@yearly", "webhook": {"url": %q, "attempts": 1}}`,
				id+1, id+7, url), http.StatusCreated)
		}
		require.Empty(t, s.runs(""))
		s.expect("POST", "/jobs/1/run", "", http.StatusAccepted)
		s.ran(1)
		s.expect("POST", "/jobs/2/run", "", http.StatusAccepted)
		s.ran(2)

		runs := s.runs("")
		require.Len(t, runs, 2)
		failed, ok := runs[0], runs[1]
		require.Equal(t, listedRun{2, 8, 70, jobRun{
			Tick: failed.Tick, Outcome: smallben.OutcomeError, Process: failed.Process, Triggered: true, Attempt: 1,
			Start: failed.Start, Late: failed.Late, Seconds: failed.Seconds, Error: failed.Error,
		}}, failed)
		require.Contains(t, failed.Error, "127.0.0.1:1")
		require.True(t, strings.HasPrefix(failed.Process, s.name()+"/"))
		require.Equal(t, smallben.OutcomeOK, ok.Outcome)
		require.Equal(t, &ok.jobRun, s.get(1).LastRun)
		require.Equal(t, &failed.jobRun, s.get(2).LastRun)

		at := failed.Tick.Truncate(time.Microsecond).Format(time.RFC3339Nano)
		for query, want := range map[string][]listedRun{
			"?job=1":                     {ok},
			"?job=1&job=2&limit=1":       {failed},
			"?group=8":                   {failed},
			"?super_group=70":            {failed, ok},
			"?outcome=ok":                {ok},
			"?outcome=ok&outcome=error":  {failed, ok},
			"?outcome=missed":            {},
			"?job=3":                     {},
			"?from=" + at:                {failed},
			"?before=" + at:              {ok},
			"?from=" + at + "&group=7":   {},
			"?from=2001-02-03T04:05:06Z": {failed, ok},
		} {
			require.Equal(t, want, s.runs(query), query)
		}
		s.expect("DELETE", "/jobs/2", "", http.StatusNoContent)
		require.Equal(t, []listedRun{failed, ok}, s.runs(""), "what ran is not forgotten with its job")
		s.terminate()

		// A process that is alone may do without.
		s = startService(t, dsn, "-record=false")
		require.Contains(t, string(s.expect("GET", "/runs", "", http.StatusBadRequest)), "-record=false")
		require.Nil(t, s.get(1).LastRun)
		s.expect("POST", "/jobs/1/run", "", http.StatusAccepted)
		require.Empty(t, s.ran(1).LastRun.Process)
		s.terminate()
	})
}

func TestSQLiteIsOpenedInWALMode(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "service.db")
	for _, dsn := range []string{path, "file:" + path + "?mode=rwc", path + "?_journal_mode=WAL"} {
		startService(t, dsn).terminate()
	}
}

// name is what the replica calls itself.
func (s *service) name() string {
	s.t.Helper()
	var answer struct{ Replica string }
	require.NoError(s.t, json.Unmarshal(s.expect("GET", "/healthz", "", http.StatusOK), &answer))
	return answer.Replica
}

// idle returns early in a second whose run of the job has ended, with the tick of that:
// who is killed then is not in the middle of one.
func (s *service) idle(id int64) (tick time.Time) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		runs := s.runs(fmt.Sprintf("?limit=1&job=%d", id))
		if len(runs) != 1 || runs[0].Outcome != smallben.OutcomeOK {
			return false
		}
		tick = runs[0].Tick
		return time.Since(tick) < time.Second/2
	}, patience, 10*time.Millisecond)
	return tick
}

// ledger is what webhooks call, and keeps every call.
type ledger struct {
	t   *testing.T
	url string

	mu    sync.Mutex            // guards calls
	calls map[int64][]time.Time // the ticks of each job, as they came
}

func newLedger(t *testing.T) *ledger {
	l := &ledger{t: t, calls: make(map[int64][]time.Time)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var d delivery
		if err := json.NewDecoder(r.Body).Decode(&d); err != nil {
			t.Errorf("delivery: %v", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.calls[d.JobID] = append(l.calls[d.JobID], d.ScheduledAt)
	}))
	t.Cleanup(server.Close)
	l.url = server.URL
	return l
}

// ticks are those of a job, in order.
func (l *ledger) ticks(id int64) []time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(slices.Values(l.calls[id]), time.Time.Compare)
}

// wait waits for more calls of a job.
func (l *ledger) wait(id int64, more int) {
	l.t.Helper()
	before := len(l.ticks(id))
	require.Eventually(l.t, func() bool { return len(l.ticks(id)) >= before+more }, patience, 10*time.Millisecond,
		"job %d does not run", id)
}

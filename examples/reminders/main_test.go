package main

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben/internal/pgtest"
)

const (
	childVariable = "REMINDERS_CHILD" // set in the environment of a replica of a test
	password      = "open sesame"
	// patience is how long a test waits for what is to come. It is not waited for in
	// full unless the test fails.
	patience = 2 * time.Minute
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		go func() {
			// The other end of standard input closes when the test is gone.
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(3)
		}()
		main()
		return
	}
	code := m.Run()
	pgtest.Stop()
	os.Exit(code)
}

func TestEachReminderArrivesOnceATickThoughOneOfThreeReplicasIsKilled(t *testing.T) {
	t.Parallel()
	hook, dsn := newWebhook(t), pgtest.DSN(t)
	replicas := []*replica{launch(t, dsn), launch(t, dsn), launch(t, dsn)} // all at once, on an empty database
	for _, r := range replicas {
		r.listens()
	}
	replicas[0].add(http.StatusOK, "name", "Ada", "zone", "Europe/Rome", "url", hook.url, "when", "@every 1s", "text", "stand up")
	replicas[1].add(http.StatusOK, "name", "Ada", "when", "@every 1s", "text", "drink")
	replicas[1].add(http.StatusOK, "name", "Bob", "zone", "Asia/Tokyo", "url", hook.url, "when", "@every 1s", "text", "tea")
	replicas[2].add(http.StatusOK, "name", "Bob", "when", "@every 1s", "text", "never", "paused", "on")
	hook.wait("stand up", 3)
	hook.wait("drink", 3)

	db := open(t, dsn)
	replicas[2].killIdle(db)
	hook.wait("stand up", len(hook.calls("stand up"))+4)

	// Pausing through one replica holds in all.
	replicas[1].post("/customers/1/pause", nil, http.StatusOK)
	paused := time.Now()
	hook.wait("tea", len(hook.calls("tea"))+3)
	replicas[0].post("/customers/2/pause", nil, http.StatusOK)
	idleAtLast(t, db)
	for _, text := range []string{"stand up", "drink", "tea"} {
		calls := hook.calls(text)
		ticks := make(map[time.Time]int)
		for _, call := range calls {
			require.Equal(t, 1, call.Attempt, call)
			require.Equal(t, call.key, fmt.Sprintf("%d-%d", call.Reminder, call.At.UnixMicro()))
			ticks[call.At]++
			if text != "tea" {
				require.True(t, call.At.Before(paused), "%v, paused at %v", call, paused)
			}
		}
		require.Len(t, ticks, len(calls), "a tick of %q came twice: %v", text, calls)
		// What did not run on a busy machine is recorded.
		sorted := slices.SortedFunc(maps.Keys(ticks), time.Time.Compare)
		notRun := count(t, db, fmt.Sprintf("(SELECT generate_series(1, greatest(1, missed)) FROM smallben_runs WHERE job_id = %d AND outcome IN ('skipped', 'missed')) AS ticks", calls[0].Reminder))
		require.InDelta(t, sorted[len(sorted)-1].Unix()-sorted[0].Unix()+1, len(calls)+notRun, float64(notRun), "each tick of %q: %v", text, calls)
	}
	require.Empty(t, hook.calls("never"), "it was added paused")

	// What is paused runs by hand all the same, each reminder of the customer once.
	before := len(hook.calls("tea"))
	replicas[0].post("/customers/2/run", nil, http.StatusOK)
	hook.wait("tea", before+1)
	hook.wait("never", 1)
	idleAtLast(t, db)
	require.Len(t, hook.calls("tea"), before+1)
	require.Len(t, hook.calls("never"), 1)
	replicas[0].terminate()
	replicas[1].terminate()
}

func TestAWebhookIsTriedAgainUntilItAnswersAndNotIfItRefuses(t *testing.T) {
	t.Parallel()
	hook, dsn := newWebhook(t), pgtest.DSN(t)
	r := launch(t, dsn)
	r.listens()
	r.add(http.StatusOK, "name", "Ada", "zone", "UTC", "url", hook.url+"/busy-once", "when", "@yearly", "text", "again")
	r.add(http.StatusOK, "name", "Bob", "zone", "UTC", "url", hook.url+"/gone", "when", "@yearly", "text", "refused")
	r.post("/customers/1/run", nil, http.StatusOK)
	r.post("/customers/2/run", nil, http.StatusOK)
	hook.wait("again", 2)
	idleAtLast(t, open(t, dsn))

	calls := hook.calls("again")
	require.Len(t, calls, 2)
	require.Equal(t, []int{1, 2}, []int{calls[0].Attempt, calls[1].Attempt})
	require.Equal(t, calls[0].key, calls[1].key, "a receiver can tell")
	require.Len(t, hook.calls("refused"), 1)
	page := r.get("/", http.StatusOK)
	require.Contains(t, page, "the answer was 503 Service Unavailable")
	require.Contains(t, page, "the answer was 410 Gone")
	r.terminate()
}

func TestACustomerAndItsReminderAreCommittedTogetherOrNotAtAll(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	r := launch(t, dsn, "-monitor", "http://127.0.0.1:1/")
	r.listens()
	db := open(t, dsn)
	// A COMMIT that fails, after row and job have been written.
	_, err := db.Exec(`
		CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not him'; END $$;
		CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON customers DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW WHEN (NEW.name = 'Eve') EXECUTE FUNCTION refuse()`)
	require.NoError(t, err)
	r.add(http.StatusServiceUnavailable, "name", "Eve", "zone", "UTC", "url", "http://127.0.0.1:1/", "when", "@yearly", "text", "x")
	// A job that is refused, after the row has been written.
	said := r.add(http.StatusBadRequest, "name", "Ada", "zone", "UTC", "url", "http://127.0.0.1:1/", "when", "61 * * * *", "text", "x")
	require.Contains(t, said, "61")
	r.add(http.StatusBadRequest, "name", "Ada", "zone", "Atlantis", "url", "http://127.0.0.1:1/", "when", "@daily", "text", "x")
	require.Equal(t, [2]int{0, 1}, [2]int{count(t, db, "customers"), count(t, db, "jobs")}, "the monitor's job is there")
	r.add(http.StatusOK, "name", "Ada", "zone", "UTC", "url", "http://127.0.0.1:1/", "when", "@daily", "text", "x")
	require.Equal(t, [2]int{1, 2}, [2]int{count(t, db, "customers"), count(t, db, "jobs")})
	r.post("/customers/7/pause", nil, http.StatusNotFound)
	r.post("/customers/x/run", nil, http.StatusNotFound)
	r.terminate()
}

func TestThePageShowsCustomersInTheirZonesAndAsksWhoComes(t *testing.T) {
	t.Parallel()
	r := launch(t, pgtest.DSN(t))
	r.listens()
	r.add(http.StatusOK, "name", "<b>Ada</b>", "zone", "Asia/Tokyo", "url", "http://127.0.0.1:1/", "when", "0 9 * * *", "text", "tea & cake")
	page := r.get("/", http.StatusOK)
	require.Contains(t, page, "&lt;b&gt;Ada&lt;/b&gt;")
	require.Contains(t, page, "tea &amp; cake")
	require.Len(t, regexp.MustCompile(`09:00:00 JST<br>`).FindAllString(page, -1), 3)

	next := "/next?" + url.Values{"zone": {"Europe/Rome"}, "when": {"30 7 * * *"}}.Encode()
	require.Regexp(t, `^(\w+ \d+ \w+ 07:30:00 CES?T\n){3}$`, r.get(next, http.StatusOK))
	r.get("/next?zone=Europe/Rome&when=61+*+*+*+*", http.StatusBadRequest)
	require.Contains(t, r.get("/console/", http.StatusOK), "SmallBen")
	require.Eventually(t, func() bool {
		return strings.Contains(r.get("/metrics", http.StatusOK), "smallben_scheduler_jobs_total 1\n")
	}, patience, 50*time.Millisecond, "the replica does not follow")

	for path, status := range map[string]int{"/": 401, "/console/": 401, "/next?when=@daily&zone=UTC": 401, "/metrics": 200} {
		answer, err := http.Get(r.url + path)
		require.NoError(t, err)
		answer.Body.Close()
		require.Equal(t, status, answer.StatusCode, path)
	}
	r.terminate()
}

// webhook is what reminders call. It keeps every call.
type webhook struct {
	t   *testing.T
	url string

	mu   sync.Mutex // guards seen
	seen map[string][]call
}

// call is the body of a reminder's request, and its Idempotency-Key.
type call struct {
	Reminder, Customer int64
	Text               string
	At                 time.Time
	Attempt            int
	key                string
}

// newWebhook answers 200, except that /busy-once fails at the first attempt, and
// /gone refuses for good.
func newWebhook(t *testing.T) *webhook {
	h := &webhook{t: t, seen: make(map[string][]call)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := call{key: r.Header.Get("Idempotency-Key")}
		if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
			t.Errorf("body: %v", err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.seen[c.Text] = append(h.seen[c.Text], c)
		switch {
		case r.URL.Path == "/busy-once" && c.Attempt == 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/gone":
			w.WriteHeader(http.StatusGone)
		}
	}))
	t.Cleanup(server.Close)
	h.url = server.URL
	return h
}

func (h *webhook) calls(text string) []call {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]call(nil), h.seen[text]...)
}

// wait waits until n calls with a text have come.
func (h *webhook) wait(text string, n int) {
	h.t.Helper()
	require.Eventually(h.t, func() bool { return len(h.calls(text)) >= n }, patience, 10*time.Millisecond,
		"%q does not come", text)
}

func open(t *testing.T, dsn string) *sql.DB {
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func count(t *testing.T, db *sql.DB, rows string) (n int) {
	t.Helper()
	require.NoError(t, db.QueryRow("SELECT count(*) FROM "+rows).Scan(&n))
	return n
}

// killIdle kills the replica between ticks, when the runs of the last one have ended: none
// of its runs is in progress.
func (r *replica) killIdle(db *sql.DB) {
	r.t.Helper()
	for idle := false; !idle; {
		var second int64 // of the last tick
		require.Eventually(r.t, func() bool {
			second = time.Now().Unix()
			return count(r.t, db, fmt.Sprintf("smallben_runs WHERE outcome = 'ok' AND tick = %d", second*1_000_000)) == 3
		}, patience, 10*time.Millisecond, "runs do not end")
		require.NoError(r.t, r.command.Process.Signal(syscall.SIGSTOP))
		if idle = time.Now().Unix() == second; !idle {
			require.NoError(r.t, r.command.Process.Signal(syscall.SIGCONT))
		}
	}
	r.kill()
}

// idleAtLast returns when no run is in progress and none waits.
func idleAtLast(t *testing.T, db *sql.DB) {
	t.Helper()
	require.Eventually(t, func() bool { return count(t, db, "smallben_runs WHERE outcome IN ('running', 'waiting')") == 0 },
		patience, 10*time.Millisecond, "runs do not end")
}

// replica is a process of the service.
type replica struct {
	t       *testing.T
	url     string
	command *exec.Cmd
	addr    chan string
	exited  chan struct{}
}

var listening = regexp.MustCompile(`listening addr=(\S+)`)

func launch(t *testing.T, dsn string, flags ...string) *replica {
	t.Helper()
	executable, err := os.Executable()
	require.NoError(t, err)
	r := &replica{
		t:       t,
		command: exec.CommandContext(t.Context(), executable, append([]string{"-addr", "127.0.0.1:0", "-dsn", dsn}, flags...)...),
		addr:    make(chan string, 1),
		exited:  make(chan struct{}),
	}
	// Under the race detector a process sleeps for a second before it exits.
	r.command.Env = append(os.Environ(), childVariable+"=1", "REMINDERS_PASSWORD="+password,
		"GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=20")
	_, err = r.command.StdinPipe()
	require.NoError(t, err)
	logs, err := r.command.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, r.command.Start())
	var said strings.Builder // until exited is closed, of the goroutine
	go func() {
		defer close(r.exited)
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			said.WriteString(lines.Text() + "\n")
			if found := listening.FindStringSubmatch(lines.Text()); found != nil {
				r.addr <- found[1]
			}
		}
		_ = r.command.Wait() // the tests look at ProcessState
	}()
	t.Cleanup(func() {
		<-r.exited // t.Context has ended, and with it the process
		if t.Failed() {
			t.Log("a replica said:\n" + said.String())
		}
	})
	return r
}

// listens waits until the replica listens.
func (r *replica) listens() {
	r.t.Helper()
	select {
	case addr := <-r.addr:
		r.url = "http://" + addr
	case <-r.exited:
		r.t.Fatal("a replica did not start")
	case <-time.After(patience):
		r.t.Fatal("a replica does not listen")
	}
}

// kill ends the replica with no chance to say anything.
func (r *replica) kill() {
	r.t.Helper()
	require.NoError(r.t, r.command.Process.Kill())
	r.exits()
}

// terminate ends the replica as those who run it do.
func (r *replica) terminate() {
	r.t.Helper()
	require.NoError(r.t, r.command.Process.Signal(syscall.SIGTERM))
	r.exits()
	require.True(r.t, r.command.ProcessState.Success(), r.command.ProcessState)
}

func (r *replica) exits() {
	r.t.Helper()
	select {
	case <-r.exited:
	case <-time.After(patience):
		r.t.Fatal("a replica does not end")
	}
}

// add fills in the form of a reminder: names and values in turns.
func (r *replica) add(status int, form ...string) string {
	r.t.Helper()
	values := make(url.Values)
	for i := 0; i < len(form); i += 2 {
		values.Set(form[i], form[i+1])
	}
	return r.post("/reminders", values, status)
}

func (r *replica) post(path string, form url.Values, status int) string {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.url+path, strings.NewReader(form.Encode()))
	require.NoError(r.t, err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r.do(request, status)
}

func (r *replica) get(path string, status int) string {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, r.url+path, nil)
	require.NoError(r.t, err)
	return r.do(request, status)
}

// do makes a request, follows to the page, and returns the body of the answer.
func (r *replica) do(request *http.Request, status int) string {
	r.t.Helper()
	request.SetBasicAuth("operator", password)
	answer, err := http.DefaultClient.Do(request)
	require.NoError(r.t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(r.t, err)
	require.Equal(r.t, status, answer.StatusCode, string(body))
	return string(body)
}

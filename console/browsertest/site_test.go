package browsertest

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/nbena/smallben"
	"github.com/nbena/smallben/console"
	"github.com/nbena/smallben/console/browsertest/jobs"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

const prefix = "/deep/er"

var config = smallben.Config{
	Logger:          logr.FromSlogHandler(slog.DiscardHandler),
	SchedulerConfig: smallben.SchedulerConfig{SkipIfStillRunning: true, WithLocation: time.UTC},
	Runs:            smallben.RunsConfig{Record: true, SyncInterval: 200 * time.Millisecond},
}

// handler mounts a console under the prefix.
func handler(scheduler *smallben.SmallBen) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(prefix+"/", http.StripPrefix(prefix, console.New(scheduler, &console.Options{
		Authorize: func(*http.Request, console.Action) error { return nil },
		Logger:    slog.New(slog.DiscardHandler),
		Refresh:   500 * time.Millisecond,
		ShowInput: true,
	})))
	return mux
}

// seedJobs are those that each test begins with.
func seedJobs() []smallben.Job {
	all := []smallben.Job{
		{ID: 1, GroupID: 10, CronExpression: "0 9 * * 1-5", Job: &jobs.Report{To: "ops@example.com"}, JobInput: map[string]any{"account": int64(9007199254740993)}},
		{ID: 2, GroupID: 10, CronExpression: "CRON_TZ=Europe/Rome 30 2 * * *", Job: &jobs.Report{To: "rome@example.com"}},
		{ID: 3, GroupID: 11, CronExpression: "@every 24h", Job: &jobs.Backup{Bucket: "nightly"}},
		{ID: 4, GroupID: 11, CronExpression: "0 0 1 * *", Job: &jobs.Invoice{Customer: 13}},
	}
	for id := int64(5); id <= 70; id++ {
		all = append(all, smallben.Job{ID: id, GroupID: 12 + id%2, SuperGroupID: 1, CronExpression: "*/5 3 * * *", Job: &jobs.Invoice{Customer: int(id) + 100}})
	}
	return all
}

// newSite serves a console, and returns its address.
func newSite(t *testing.T, dialector gorm.Dialector, stored []smallben.Job) (*smallben.SmallBen, string) {
	t.Helper()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector})
	require.NoError(t, err)
	t.Cleanup(func() { _ = repository.Close() })
	scheduler := smallben.New(repository, &config)
	if len(stored) > 0 {
		require.NoError(t, scheduler.AddJobs(stored))
	}
	require.NoError(t, scheduler.Start())
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = scheduler.StopContext(ctx) // ends the contexts of backups
		scheduler.Stop()
	})
	server := httptest.NewServer(handler(scheduler))
	t.Cleanup(server.Close)
	return scheduler, server.URL + prefix + "/"
}

func openSQLite(t *testing.T) gorm.Dialector {
	return sqlite.Open(filepath.Join(t.TempDir(), "jobs.db") + "?_journal_mode=WAL")
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

// childVariable holds the DSN of the database of a child.
const childVariable = "SMALLBEN_BROWSERTEST_CHILD"

// runChild is a service with a console, until it is killed or its parent is gone.
func runChild() {
	jobs.Register()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialectorOf(os.Getenv(childVariable))})
	exitOn(err)
	scheduler := smallben.New(repository, &config)
	exitOn(scheduler.Start())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	exitOn(err)
	mux := http.NewServeMux()
	mux.Handle("/", handler(scheduler))
	mux.HandleFunc("POST /backup", func(w http.ResponseWriter, _ *http.Request) {
		if err := scheduler.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{3}}); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1)) // which ends with the parent
		os.Exit(0)
	}()
	fmt.Println(listener.Addr())
	exitOn(http.Serve(listener, mux))
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// child is a process of its own with a console.
type child struct {
	command *exec.Cmd
	address string
	once    sync.Once
}

func startChild(t *testing.T, dsn string) *child {
	t.Helper()
	executable, err := os.Executable()
	require.NoError(t, err)
	c := &child{command: exec.Command(executable)}
	c.command.Env = append(os.Environ(), childVariable+"="+dsn)
	c.command.Stderr = os.Stderr
	_, err = c.command.StdinPipe()
	require.NoError(t, err)
	out, err := c.command.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.command.Start())
	t.Cleanup(c.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err, "the child did not start")
	c.address = strings.TrimSpace(line)
	return c
}

func (c *child) kill() {
	c.once.Do(func() {
		_ = c.command.Process.Kill()
		_ = c.command.Wait()
	})
}

// pid is how the names of the child's processes tell it from others.
func (c *child) pid() string { return fmt.Sprintf("/%d/", c.command.Process.Pid) }

func dialectorOf(dsn string) gorm.Dialector {
	if strings.HasPrefix(dsn, "postgres") {
		return postgres.Open(dsn)
	}
	return sqlite.Open(dsn)
}

// runsTable is where runs are recorded.
const runsTable = "smallben_runs"

// gallery is a site to make pictures of: a service with a day behind it.
func gallery(t *testing.T) string {
	dialector := openSQLite(t)
	shown := []smallben.Job{
		{ID: 1001, GroupID: 10, SuperGroupID: 1, CronExpression: "*/15 * * * *", Job: &jobs.Invoice{}},
		{ID: 1002, GroupID: 10, SuperGroupID: 1, CronExpression: "CRON_TZ=Europe/Rome 0 9 * * 1-5", Job: &jobs.Report{}},
		{ID: 1003, GroupID: 10, SuperGroupID: 1, CronExpression: "0 */2 * * *", Job: &jobs.Backup{}},
		{ID: 1004, GroupID: 11, SuperGroupID: 1, CronExpression: "30 2 * * *", Job: &jobs.Backup{}},
		{ID: 1005, GroupID: 11, SuperGroupID: 2, CronExpression: "@every 45m", Job: &jobs.Invoice{}},
		{ID: 1006, GroupID: 12, SuperGroupID: 2, CronExpression: "CRON_TZ=America/New_York 15 6-18 * * *", Job: &jobs.Report{}},
		{ID: 1007, GroupID: 12, SuperGroupID: 2, CronExpression: "*/20 7-19 * * 1-5", Job: &jobs.Invoice{}},
	}
	for id := int64(1008); id < 1100; id++ {
		shown = append(shown, smallben.Job{ID: id, GroupID: 10 + id%5, SuperGroupID: 1 + id%2, CronExpression: fmt.Sprintf("%d * * * *", id%4*15), Job: &jobs.Invoice{}})
	}
	scheduler, base := newSite(t, dialector, shown)
	require.NoError(t, scheduler.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1005, 1020, 1021}}))
	db, err := gorm.Open(dialector, &gorm.Config{})
	require.NoError(t, err)
	exec := func(statement string, args ...any) { t.Helper(); require.NoError(t, db.Exec(statement, args...).Error) }
	exec("UPDATE jobs SET created_at = ?", time.Now().Add(-40*24*time.Hour).UTC())
	random := rand.New(rand.NewPCG(9, 15)) // the same pictures each time, but for the hour
	now := time.Now().Truncate(time.Minute)
	for _, job := range shown {
		step := time.Hour
		if job.ID < 1008 {
			step = []time.Duration{15 * time.Minute, 24 * time.Hour, 2 * time.Hour, 24 * time.Hour, 45 * time.Minute, time.Hour, 20 * time.Minute}[job.ID-1001]
		}
		first := now.Truncate(step)
		if job.ID > 1007 {
			first = first.Add(-time.Duration(job.ID%4*15) * time.Minute)
		}
		for tick := first; now.Sub(tick) < 24*time.Hour; tick = tick.Add(-step) {
			outcome, text, missed, firstMissed := smallben.OutcomeOK, "", 0, any(nil)
			took := time.Duration(400+random.IntN(2600)) * time.Millisecond
			ago := now.Sub(tick)
			switch {
			case job.ID == 1001 && ago < 3*time.Hour:
				outcome, text = smallben.OutcomeError, "post https://billing.example/invoices: 502 Bad Gateway"
			case job.ID == 1004 && ago < 24*time.Hour:
				outcome, took = smallben.OutcomeLost, 42*time.Second
			case job.ID > 1007 && job.ID%31 == 0 && ago > 9*time.Hour && ago < 12*time.Hour:
				outcome, missed, firstMissed = smallben.OutcomeMissed, 3, tick.Add(-2*step).UnixMicro()
			case random.IntN(60) == 0:
				outcome, text = smallben.OutcomeTimeout, "context deadline exceeded"
			case random.IntN(90) == 0:
				outcome = smallben.OutcomeSkipped
			}
			exec("INSERT INTO "+runsTable+` (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, first_tick, exclusive)
VALUES (?, ?, false, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, false) ON CONFLICT DO NOTHING`, job.ID, tick.UnixMicro(), job.GroupID, job.SuperGroupID,
				fmt.Sprintf("app-%d/7/k3v9qa", 1+random.IntN(3)), string(outcome), tick.UnixMicro()+3000, tick.Add(took).UnixMicro(), text, missed, firstMissed)
		}
	}
	require.NoError(t, scheduler.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1003}}))
	return base
}

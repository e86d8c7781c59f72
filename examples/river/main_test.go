package main

import (
	"bufio"
	"context"
	"encoding/gob"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
)

const (
	// childVariable makes the test binary be the example, and dieVariable says when
	// that is killed: before or after the first insert.
	childVariable = "SMALLBEN_RIVER_CHILD"
	dieVariable   = "SMALLBEN_RIVER_DIE"
	// patience is how long a test waits for what is to come.
	patience = time.Minute
)

func TestMain(m *testing.M) {
	gob.Register(&mortal{})
	jobs = []smallben.Job{{ID: 1, CronExpression: "* * * * * *", Job: &mortal{Enqueue{Customer: "Rossi"}}}}
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

// mortal is an Enqueue at whose run the process may be killed.
type mortal struct{ Enqueue }

func (m *mortal) RunContext(ctx context.Context, in smallben.CronJobInput) error {
	when := os.Getenv(dieVariable)
	if when == "before" {
		die()
	}
	err := m.Enqueue.RunContext(ctx, in)
	if when == "after" {
		die()
	}
	return err
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func TestEachTickIsOneJobInTheQueue(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	processes := []*process{start(t, dsn, "schedule", ""), start(t, dsn, "schedule", ""), start(t, dsn, "work", "")}
	require.Eventually(t, func() bool { return strings.Count(processes[2].said(), "report made") >= 4 }, patience, 50*time.Millisecond)
	for _, p := range processes {
		require.NoError(t, p.command.Process.Signal(syscall.SIGTERM))
		p.wait()
		require.True(t, p.command.ProcessState.Success(), p.command.ProcessState)
	}

	var ticks []time.Time
	for _, run := range runs(t, dsn) {
		require.Equal(t, smallben.OutcomeOK, run.Outcome, run)
		ticks = append(ticks, run.Tick)
	}
	slices.Reverse(ticks) // they come newest first
	for i := range ticks {
		require.True(t, ticks[i].Equal(ticks[0].Add(time.Duration(i)*time.Second)), "a tick is missing: %v", ticks)
	}
	require.Equal(t, ticks, queued(t, dsn))
}

func TestARunWhoseProcessDiedIsOneJobInTheQueue(t *testing.T) {
	t.Parallel()
	for when, inserted := range map[string]int{"before": 0, "after": 1} {
		t.Run(when+" its insert", func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.DSN(t)
			start(t, dsn, "schedule", when).wait()
			unfinished := runs(t, dsn)
			require.Len(t, unfinished, 1)
			require.Equal(t, smallben.OutcomeRunning, unfinished[0].Outcome)
			require.Len(t, queued(t, dsn), inserted)

			survivor := start(t, dsn, "schedule", "")
			tick := unfinished[0].Tick
			var attempts []smallben.Run
			require.Eventually(t, func() bool {
				attempts = slices.DeleteFunc(runs(t, dsn), func(run smallben.Run) bool { return !run.Tick.Equal(tick) })
				return len(attempts) == 2 && attempts[0].Outcome == smallben.OutcomeOK
			}, patience, 50*time.Millisecond, "the lost run was not run again")
			require.Equal(t, smallben.OutcomeLost, attempts[1].Outcome)
			count := 0
			for _, at := range queued(t, dsn) {
				if at.Equal(tick) {
					count++
				}
			}
			require.Equal(t, 1, count, "jobs in the queue for the tick")
			require.Equal(t, inserted, strings.Count(survivor.said(), "wasThere=true"))
		})
	}
}

// runs are the recorded runs, newest tick first.
func runs(t *testing.T, dsn string) []smallben.Run {
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: postgres.Open(dsn)})
	require.NoError(t, err)
	defer func() { require.NoError(t, repository.Close()) }()
	runs, err := smallben.New(repository, &smallben.Config{Runs: smallben.RunsConfig{Record: true}}).
		ListRuns(&smallben.ListRunsOptions{JobIDs: []int64{1}})
	require.NoError(t, err)
	return runs
}

// queued are the ticks of the jobs in the queue, in order.
func queued(t *testing.T, dsn string) []time.Time {
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), "SELECT (args->>'tick')::timestamptz AT TIME ZONE 'UTC' FROM river_job ORDER BY 1")
	require.NoError(t, err)
	ticks, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	require.NoError(t, err)
	return ticks
}

// process is the example in a process of its own.
type process struct {
	t       *testing.T
	command *exec.Cmd
	exited  chan struct{}

	mu   sync.Mutex // guards logs
	logs strings.Builder
}

func start(t *testing.T, dsn, role, die string) *process {
	t.Helper()
	executable, err := os.Executable()
	require.NoError(t, err)
	p := &process{t: t, command: exec.CommandContext(t.Context(), executable, "-dsn", dsn, role), exited: make(chan struct{})}
	p.command.Env = append(os.Environ(), childVariable+"=1", dieVariable+"="+die, "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=20")
	_, err = p.command.StdinPipe()
	require.NoError(t, err)
	logs, err := p.command.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.command.Start())
	go func() {
		defer close(p.exited)
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			p.mu.Lock()
			p.logs.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
		}
		_ = p.command.Wait() // the test looks at ProcessState
	}()
	t.Cleanup(func() {
		<-p.exited // t.Context has ended, and with it the process
		if t.Failed() {
			t.Logf("%s said:\n%s", role, p.said())
		}
	})
	return p
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.logs.String()
}

func (p *process) wait() {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.t.Fatal("the process does not end")
	}
}

package test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben/internal/pgtest"
)

// TestARollingDeployment has real processes of two programs, ./rolling built twice, share
// a database while the newer one takes over from the old one.
func TestARollingDeployment(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	old, newer := buildRolling(t, "old"), buildRolling(t, "newer")
	var all []*rollingProcess
	start := func(program, name string) *rollingProcess {
		p := startRolling(t, program, name, dsn)
		all = append(all, p)
		return p
	}

	first := start(old, "the first of the old program")
	first.awaits("upserted", "ran notice 1", "ran report 2")
	second := start(newer, "the first of the newer program")
	second.awaits("upserted", "ran summary 2")

	// A process of the old program is killed and starts again: it cannot read what has
	// become of its report, and does not take it back.
	first.kill()
	first = start(old, "the second of the old program")
	first.awaits("refused upsert job 2: ")
	second.next("ran summary 2")

	// The only process that knows the audit is killed in it. The old one finds the run
	// lost, and leaves it to another.
	second.say("3")
	second.awaits("ran audit 3")
	second.kill()
	runs := openSQLDB(t, "pgx", dsn)
	defer runs.Close()
	require.Eventually(t, func() bool {
		lost := 0
		err := runs.QueryRow("SELECT count(*) FROM smallben_runs WHERE job_id = 3 AND outcome = 'lost'").Scan(&lost)
		return err == nil && lost == 1
	}, time.Minute, 100*time.Millisecond)
	third := start(newer, "the second of the newer program")
	third.awaits("upserted", "attempt=2 missed=false", "missed=true", "ran summary 2")

	first.end()
	third.next("ran reminder 1", "ran summary 2")
	third.end()
	fourth := start(old, "a rollback")
	fourth.awaits("upserted", "ran report 2", "ran notice 1")

	// Every tick from the first to the last gets into the record: by itself, or in a
	// stretch that was missed.
	for _, id := range []int64{1, 2} {
		require.Eventually(t, func() bool {
			var lacking int
			err := runs.QueryRow(`WITH r AS (SELECT coalesce(first_tick, tick) / 1000000 AS since, tick / 1000000 AS until FROM smallben_runs WHERE job_id = $1)
				SELECT count(*) FROM generate_series((SELECT min(since) FROM r), (SELECT max(until) FROM r)) AS tick
				WHERE NOT EXISTS (SELECT 1 FROM r WHERE tick BETWEEN since AND until)`, id).Scan(&lacking)
			return err == nil && lacking == 0
		}, time.Minute, 100*time.Millisecond, "job %d", id)
	}
	fourth.end()

	ticks := make(map[string]string)
	for _, p := range all {
		for _, line := range p.lines() {
			if what, found := strings.CutPrefix(line, "ran "); found {
				_, tick, _ := strings.Cut(what, " ")
				assert.Empty(t, ticks[tick], "%s ran %s twice", p.name, tick)
				ticks[tick] = p.name
			}
		}
	}
}

// buildRolling builds ./rolling, with a tag that names the program.
func buildRolling(t *testing.T, tag string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), tag)
	output, err := exec.Command("go", "build", "-tags", tag, "-o", binary, "./rolling").CombinedOutput()
	require.NoError(t, err, "%s", output)
	return binary
}

// rollingProcess is a process of ./rolling.
type rollingProcess struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	stdin io.Closer
	say   func(line string)
	ended chan struct{}

	mu   sync.Mutex // guards said
	said []string
}

func startRolling(t *testing.T, program, name, dsn string) *rollingProcess {
	t.Helper()
	p := &rollingProcess{t: t, name: name, cmd: exec.Command(program), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "ROLLING_DSN="+dsn)
	p.cmd.Stderr = os.Stderr
	stdin, err := p.cmd.StdinPipe()
	require.NoError(t, err)
	p.stdin = stdin
	p.say = func(line string) {
		_, err := fmt.Fprintln(stdin, line)
		require.NoError(t, err)
	}
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			p.mu.Lock()
			p.said = append(p.said, lines.Text())
			p.mu.Unlock()
		}
		_ = p.cmd.Wait()
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *rollingProcess) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.said)
}

// awaits waits until the process has said each of these.
func (p *rollingProcess) awaits(parts ...string) {
	p.t.Helper()
	p.awaitsAfter(0, parts)
}

// next waits until the process says each of these once more.
func (p *rollingProcess) next(parts ...string) {
	p.t.Helper()
	p.awaitsAfter(len(p.lines()), parts)
}

func (p *rollingProcess) awaitsAfter(n int, parts []string) {
	p.t.Helper()
	for _, part := range parts {
		said := func() bool {
			return slices.ContainsFunc(p.lines()[n:], func(line string) bool { return strings.Contains(line, part) })
		}
		if !assert.Eventually(p.t, said, time.Minute, 50*time.Millisecond) {
			p.t.Fatalf("%s has not said %q, but\n%s", p.name, part, strings.Join(p.lines(), "\n"))
		}
	}
}

func (p *rollingProcess) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// end lets the process stop.
func (p *rollingProcess) end() {
	p.t.Helper()
	require.NoError(p.t, p.stdin.Close())
	<-p.ended
	require.True(p.t, p.cmd.ProcessState.Success(), "%s: %v\n%s", p.name, p.cmd.ProcessState, strings.Join(p.lines(), "\n"))
}

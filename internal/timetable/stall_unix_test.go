//go:build unix

package timetable_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben/internal/timetable"
)

// stallingProcess is set for the process that TestAfterAStall stops.
const stallingProcess = "SMALLBEN_TEST_STALLING_PROCESS"

// Entries of two pages, and some that share a page and are overdue one after
// another, in a process that is stopped for some seconds.
func TestAfterAStallEachKeyIsFiredForItsLatestTickAndThenOnTime(t *testing.T) {
	if os.Getenv(stallingProcess) != "" {
		fireForever()
	}
	t.Parallel()
	const tries = 5
	s := stallAProcess(t)
	for range tries - 1 {
		if !s.disturbed() {
			break
		}
		s = stallAProcess(t)
	}
	for key := range keys {
		interval := intervalOf(key)
		latest := s.resumed.Truncate(interval)
		want := []time.Time{}
		if latest.After(s.stopped) {
			want = append(want, latest)
		}
		for tick := latest.Add(interval); tick.Before(s.resumed.Add(2 * time.Second)); tick = tick.Add(interval) {
			want = append(want, tick)
		}
		var got []time.Time
		for _, start := range s.starts {
			if start.key == key {
				got = append(got, start.tick)
			}
		}
		if assert.GreaterOrEqual(t, len(got), len(want), "key %d, resumed at %v: %v", key, s.resumed, got) {
			assert.Equal(t, format(want), format(got[:len(want)]), "key %d, resumed at %v", key, s.resumed)
		}
	}
}

// stall is what a process did that was stopped for some seconds.
type stall struct {
	stopped, resumed time.Time
	starts           []start // since it was resumed, in their order, for three seconds
}

type start struct {
	key      int
	tick, at time.Time
}

// disturbed reports whether the machine had so little time for the processes that ticks
// came which the test does not expect: it counts on some tenths of a second.
func (s *stall) disturbed() bool {
	const much = 400 * time.Millisecond
	if s.stopped.Sub(s.stopped.Truncate(time.Second).Add(halfway)).Abs() > much || s.resumed.Sub(s.resumed.Truncate(time.Second)) > much {
		return true
	}
	last := s.resumed
	for _, start := range s.starts {
		due := start.tick
		if due.Before(s.resumed) {
			due = s.resumed
		}
		if start.at.Sub(due) > much || start.at.Sub(last) > time.Second+much {
			return true
		}
		last = start.at
	}
	return false
}

// halfway is half the time from one tick to the next.
const halfway = time.Second / 2

// stallAProcess stops a process halfway between ticks, and resumes it soon after one.
func stallAProcess(t *testing.T) *stall {
	t.Helper()
	process := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	process.Env = append(os.Environ(), stallingProcess+"=1")
	out, err := process.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, process.Start())
	defer func() {
		_ = process.Process.Kill()
		_ = process.Wait()
	}()
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan(), "it fires")
	s := &stall{}
	stop := time.Now().Truncate(time.Second).Add(time.Second + halfway)
	time.Sleep(time.Until(stop))
	require.NoError(t, process.Process.Signal(syscall.SIGSTOP))
	s.stopped = time.Now()
	time.Sleep(time.Until(stop.Add(3700 * time.Millisecond)))
	s.resumed = time.Now()
	require.NoError(t, process.Process.Signal(syscall.SIGCONT))
	for lines.Scan() {
		var key int
		var tick, at int64
		_, err := fmt.Sscan(lines.Text(), &key, &tick, &at)
		require.NoError(t, err, lines.Text())
		if time.UnixMilli(at).After(s.resumed.Add(3 * time.Second)) {
			break
		}
		if !time.UnixMilli(at).Before(s.resumed.Truncate(time.Millisecond)) {
			s.starts = append(s.starts, start{key, time.UnixMilli(tick), time.UnixMilli(at)})
		}
	}
	require.NoError(t, lines.Err())
	return s
}

const keys = timetable.PageSize + 10

func intervalOf(key int) time.Duration { return time.Duration(1+key%5) * time.Second }

func format(ticks []time.Time) string {
	var text strings.Builder
	for _, tick := range ticks {
		text.WriteString(tick.Format("05 "))
	}
	return text.String()
}

// fireForever prints the key, the tick and the instant of each start.
func fireForever() {
	table := timetable.New(timetable.Config[int]{Fire: func(entry *timetable.Entry[int], tick time.Time) {
		fmt.Println(entry.Key, tick.UnixMilli(), time.Now().UnixMilli())
	}})
	var added []*timetable.Entry[int]
	for key := range keys {
		added = append(added, &timetable.Entry[int]{Key: key, Schedule: every(intervalOf(key))})
	}
	table.Add(added)
	select {}
}

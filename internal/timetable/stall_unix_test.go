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
	stop := time.Now().Truncate(time.Second).Add(1500 * time.Millisecond)
	time.Sleep(time.Until(stop))
	require.NoError(t, process.Process.Signal(syscall.SIGSTOP))
	time.Sleep(3700 * time.Millisecond)
	resumed := time.Now()
	require.NoError(t, process.Process.Signal(syscall.SIGCONT))

	starts := make(map[int][]time.Time) // ticks, of starts since then
	for lines.Scan() {
		var key int
		var tick, at int64
		_, err := fmt.Sscan(lines.Text(), &key, &tick, &at)
		require.NoError(t, err, lines.Text())
		if time.UnixMilli(at).After(resumed.Add(3 * time.Second)) {
			break
		}
		if !time.UnixMilli(at).Before(resumed.Truncate(time.Millisecond)) {
			starts[key] = append(starts[key], time.UnixMilli(tick))
		}
	}
	require.NoError(t, lines.Err())
	for key := range keys {
		interval := intervalOf(key)
		latest := resumed.Truncate(interval)
		want := []time.Time{}
		if latest.After(stop) {
			want = append(want, latest)
		}
		for tick := latest.Add(interval); tick.Before(resumed.Add(2 * time.Second)); tick = tick.Add(interval) {
			want = append(want, tick)
		}
		got := starts[key]
		if assert.GreaterOrEqual(t, len(got), len(want), "key %d, resumed at %v: %v", key, resumed, got) {
			assert.Equal(t, format(want), format(got[:len(want)]), "key %d, resumed at %v", key, resumed)
		}
	}
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
	table := timetable.New(timetable.Config[int]{Fire: func(key int, tick time.Time) {
		fmt.Println(key, tick.UnixMilli(), time.Now().UnixMilli())
	}})
	var added []*timetable.Entry[int]
	for key := range keys {
		added = append(added, &timetable.Entry[int]{Key: key, Schedule: every(intervalOf(key))})
	}
	table.Add(added)
	select {}
}

//go:build unix

package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// disturbance is what happens at a time of the load.
type disturbance struct {
	at     time.Duration
	what   string
	do     func()
	onTick time.Duration // not 0: it waits until this long after the next second begins
}

// wait waits for its time.
func (d *disturbance) wait(start time.Time) {
	time.Sleep(time.Until(start.Add(d.at)))
	if now := time.Now(); d.onTick > 0 {
		time.Sleep(now.Truncate(time.Second).Add(time.Second + d.onTick).Sub(now))
	}
}

// troubles draws the disturbances of a round.
type troubles struct {
	*durableDriver
	random *rand.Rand
	drawn  []disturbance
}

// disturbances are what the seed has in store, in the order of their times.
func (d *durableDriver) disturbances(random *rand.Rand) []disturbance {
	t := &troubles{durableDriver: d, random: random}
	if d.Kills > 0 {
		t.crashes()
	}
	t.forget()
	t.hog()
	t.strike()
	if d.Roll {
		t.roll()
	}
	slices.SortStableFunc(t.drawn, func(a, b disturbance) int { return int(a.at - b.at) })
	return t.drawn
}

func (t *troubles) add(at time.Duration, what string, do func()) {
	t.drawn = append(t.drawn, disturbance{at: at, what: what, do: do})
}

// suddenly is add for what comes without a warning: half of it comes while claims
// are under way.
func (t *troubles) suddenly(at time.Duration, what string, do func()) {
	t.add(at, what, do)
	if t.random.IntN(2) == 0 {
		t.drawn[len(t.drawn)-1].onTick = 1 + time.Duration(t.random.IntN(60))*time.Millisecond
	}
}

// between draws a time between two parts of the load.
func (t *troubles) between(from, to float64) time.Duration {
	return time.Duration((from + t.random.Float64()*(to-from)) * float64(t.Load))
}

// crashes are kills, a long stop and a short one, a crash of the server, a restart
// as it should be.
func (t *troubles) crashes() {
	slots := t.random.Perm(t.Slots)
	stop := func(at, length time.Duration) {
		t.suddenly(at, fmt.Sprintf("SIGSTOP to slot %d", slots[0]), func() { t.signal(slots[0], syscall.SIGSTOP) })
		t.add(at+length, fmt.Sprintf("SIGCONT to slot %d", slots[0]), func() { t.signal(slots[0], syscall.SIGCONT) })
	}
	halt := time.Duration(t.random.Float64() * .9 * float64(t.Load-t.Halt))
	stop(halt, t.Halt)
	// After this one nobody may take it for dead.
	if short := t.Timing.DeadAfter * 2 / 5; halt > t.Load/3 {
		stop(t.between(0, .2), short)
	} else {
		stop(max(t.between(.7, .9), halt+t.Halt+2*time.Second), short)
	}
	// Kills in one slot come one after another.
	for n := range t.Kills {
		share := .8 / float64(t.Kills)
		at := t.between(.05+float64(n)*share, .05+(float64(n)+.6)*share)
		again := at + time.Duration(t.random.Float64()*.3*share*float64(t.Load))
		t.suddenly(at, fmt.Sprintf("SIGKILL to slot %d", slots[1]), func() { t.kill(slots[1]) })
		t.add(again, fmt.Sprintf("start of slot %d", slots[1]), func() { t.launch(slots[1]) })
	}
	if t.random.IntN(2) == 0 {
		at := t.between(.1, .7)
		again := at + t.between(0, .2)
		t.add(at, fmt.Sprintf("stop of slot %d", slots[2]), func() { t.finish(slots[2]) })
		t.add(again, fmt.Sprintf("start of slot %d", slots[2]), func() { <-t.slots[slots[2]].ended; t.launch(slots[2]) })
	}
	if t.server != nil {
		at := t.between(.1, .8)
		t.suddenly(at, "crash of the server", func() {
			t.mu.Lock()
			t.outages = append(t.outages, window{time.Now(), longTime})
			t.mu.Unlock()
			t.server.StopImmediate()
		})
		t.add(at+t.between(0, .1), "start of the server", func() {
			t.server.StartAgain()
			t.mu.Lock()
			t.outages[len(t.outages)-1].to = time.Now()
			t.mu.Unlock()
		})
	}
}

// lockedAfterCut is how long the locks of a transaction may last whose client the
// server no longer hears.
const lockedAfterCut = 6 * time.Second

// forget has the firewall before a process forget its connections, the one before
// the other processes not. The process traces, and nobody may take it for dead.
func (t *troubles) forget() {
	for n := range t.Forget {
		slot := t.random.IntN(t.Slots)
		share := .8 / float64(t.Forget)
		t.suddenly(t.between(.05+float64(n)*share, .05+float64(n+1)*share), fmt.Sprintf("the connections of slot %d are forgotten", slot), func() {
			p := t.slots[slot]
			p.mu.Lock()
			now := time.Now()
			p.cut = append(p.cut, window{now, now.Add(lockedAfterCut)})
			p.mu.Unlock()
			p.proxy.Forget()
		})
	}
}

// hog has the application in a process take all of its pool for longer than it
// takes to be taken for dead.
func (t *troubles) hog() {
	length := t.Timing.DeadAfter * 3 / 2
	for n := range t.Hog {
		slot := t.random.IntN(t.Slots)
		share := max(float64(t.Load-length), 0) / float64(t.Load) / float64(t.Hog)
		t.add(t.between(float64(n)*share, float64(n+1)*share), fmt.Sprintf("the pool of slot %d is used up for %v", slot, length), func() {
			p := t.slots[slot]
			p.mu.Lock()
			now := time.Now()
			p.hogged = append(p.hogged, window{now, now.Add(length + time.Second)})
			p.mu.Unlock()
			go p.do(durableOperation{Kind: "hog", For: length})
		})
	}
}

// strike strikes whichever process leads: it is killed, stopped for longer than it
// takes to be taken for dead, or asked to end.
func (t *troubles) strike() {
	for n := range t.Strike {
		share := .9 / float64(t.Strike)
		at := t.between(.05+float64(n)*share, .05+(float64(n)+.3)*share)
		heal := at + time.Duration(.6*share*float64(t.Load))
		kind := []string{"SIGKILL", "SIGSTOP", "stop"}[t.random.IntN(3)]
		slot := -1
		t.suddenly(at, kind+" to the leader", func() {
			t.await("a process leads", t.Timing.DeadAfter+t.Timing.SweepEvery, func() string {
				if slot = t.leader(); slot < 0 {
					return "none does"
				}
				return ""
			})
			t.say("the leader is in slot %d", slot)
			switch kind {
			case "SIGKILL":
				t.kill(slot)
			case "SIGSTOP":
				t.signal(slot, syscall.SIGSTOP)
			case "stop":
				t.finish(slot)
			}
		})
		t.add(heal, "the leader that was struck goes on, or is replaced", func() {
			if kind == "SIGSTOP" {
				t.signal(slot, syscall.SIGCONT)
				return
			}
			<-t.slots[slot].ended
			t.launch(slot)
		})
	}
}

// leader returns the slot of the leader that the database names, -1 if it is none
// that runs.
func (d *durableDriver) leader() int {
	var leader string
	require.NoError(d, d.raw.QueryRow("SELECT leader FROM "+tableRecord).Scan(&leader))
	for slot, p := range d.slots {
		p.mu.Lock()
		runs := p.gone.IsZero() && p.isNamed(leader)
		p.mu.Unlock()
		if runs {
			return slot
		}
	}
	return -1
}

// roll replaces one process after another by a newer one.
func (t *troubles) roll() {
	for i, slot := range t.random.Perm(t.Slots) {
		share := .8 / float64(t.Slots)
		at := t.between(.1+float64(i)*share, .1+(float64(i)+.5)*share)
		t.add(at, fmt.Sprintf("slot %d is replaced by a newer process", slot), func() {
			t.finish(slot)
			<-t.slots[slot].ended
			t.launchAs(slot, true)
		})
	}
}

// envSkew is by how many nanoseconds the clock of a process is ahead, if it was
// built by skewedBinary.
const envSkew = "SMALLBEN_TEST_SKEW"

// skewedBinary returns this binary with a clock that envSkew sets: Go reads the
// time without libc, so nothing but another time.Now can change it. The first build
// compiles all that depends on package time.
func skewedBinary(t testing.TB) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "skewed.test")
	require.NoError(t, buildSkewed(binary))
	return binary
}

func buildSkewed(binary string) error {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return err
	}
	const now = "\nfunc Now() Time {\n"
	if strings.Count(string(source), now) != 1 {
		return fmt.Errorf("%s has no function Now that this test knows", original)
	}
	patched := strings.Replace(string(source), now, `
var skew = func() (ahead Duration) {
	text, _ := syscall.Getenv("`+envSkew+`")
	negative := len(text) > 0 && text[0] == '-'
	if negative {
		text = text[1:]
	}
	for _, digit := range []byte(text) {
		ahead = ahead*10 + Duration(digit-'0')
	}
	if negative {
		return -ahead
	}
	return ahead
}()

func Now() Time {
	t := unskewedNow()
	ahead := t.Add(skew)
	if ahead.wall&hasMonotonic != 0 {
		ahead.ext = t.ext // the monotonic clock is what it was
	}
	return ahead
}

func unskewedNow() Time {
`, 1)
	patched = strings.Replace(patched, "\t_ \"unsafe\"", "\t\"syscall\"\n\t_ \"unsafe\"", 1)
	// In a place of its own: where a file is counts for the build cache.
	dir := filepath.Join(os.TempDir(), "smallben-test-"+strconv.Itoa(os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	for path, content := range map[string]string{file: patched, overlay: fmt.Sprintf(`{"Replace":{%q:%q}}`, original, file)} {
		if there, err := os.ReadFile(path); err == nil && string(there) == content {
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
	}
	build := exec.Command("go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // SQLite, which is in C, would be built again
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go test -c: %w\n%s", err, output)
	}
	return nil
}

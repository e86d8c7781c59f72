package walltime_test

import (
	"archive/zip"
	"encoding/binary"
	"fmt"
	"go/build"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben/internal/walltime"
)

// change is an instant at which the clock of a zone is set.
type change struct {
	zone *time.Location
	at   int64 // Unix seconds
	step int64 // seconds by which the clock is set forward
}

// clock is what brute force sees of a zone around a change: the instants of some
// days, one after another, and the times that the clock skips.
type clock struct {
	change
	from, until int64 // ticks are compared after from and before until
	moments     []moment
}

// moment is an instant at which the clock shows a time or, if skipped is set, at
// which it passes over one.
type moment struct {
	at, wall                       int64
	second, minute, hour, dom, dow int
	month                          time.Month
	skipped, first                 bool // first: the clock neither showed nor skipped the time before
}

// watch goes from one instant to the next, a step of seconds at a time.
func watch(c change, step int64, around time.Duration) *clock {
	shift := max(c.step, -c.step)
	reach := int64(around/time.Second) + 2*shift
	w := &clock{change: c, from: (c.at-reach)/step*step - 1, until: (c.at + reach) / step * step}
	begin := (w.from+1)/step*step - (reach+shift)/step*step
	w.moments = make([]moment, 0, (w.until-begin)/step+2*shift/step)
	seen := make(map[int64]bool, cap(w.moments))
	note := func(at, wall int64, skipped bool) {
		shown := time.Unix(wall, 0).UTC()
		m := moment{at: at, wall: wall, skipped: skipped, first: !seen[wall]}
		m.hour, m.minute, m.second = shown.Clock()
		_, m.month, m.dom = shown.Date()
		m.dow = int(shown.Weekday())
		seen[wall] = true
		w.moments = append(w.moments, m)
	}
	before := int64(0)
	for at := begin; at < w.until; at += step {
		_, offset := time.Unix(at, 0).In(c.zone).Zone()
		wall := at + int64(offset)
		if before != 0 {
			for skipped := before + step; skipped < wall; skipped += step {
				note(at, skipped, true)
			}
		}
		note(at, wall, false)
		before = wall
	}
	return w
}

// ticks are those of brute force.
func (w *clock) ticks(f *walltime.Fields) (ticks []int64) {
	for i := range w.moments {
		m := &w.moments[i]
		if m.at <= w.from || !matches(f, m) {
			continue
		}
		if f.Interval && !m.skipped || !f.Interval && m.first {
			if len(ticks) == 0 || ticks[len(ticks)-1] != m.at {
				ticks = append(ticks, m.at)
			}
		}
	}
	return ticks
}

func matches(f *walltime.Fields, m *moment) bool {
	in := func(set uint64, value int) bool { return set&(1<<value) != 0 }
	dom, dow := in(f.Dom, m.dom), in(f.Dow, m.dow)
	today := dom || dow
	if in(f.Dom, 63) || in(f.Dow, 63) {
		today = dom && dow
	}
	return in(f.Second, m.second) && in(f.Minute, m.minute) && in(f.Hour, m.hour) && in(f.Month, int(m.month)) && today
}

// compare says where Next differs from brute force: as it goes from tick to tick,
// and from instants at random.
func (w *clock) compare(f *walltime.Fields, random *rand.Rand) error {
	want := w.ticks(f)
	next := func(after time.Time) (int64, error) {
		tick := f.Next(w.zone, after)
		if tick.IsZero() || tick.Unix() >= w.until {
			return w.until, nil
		}
		if !tick.After(after) || tick.Nanosecond() != 0 {
			return 0, fmt.Errorf("after %v comes %v", after.In(w.zone), tick.In(w.zone))
		}
		return tick.Unix(), nil
	}
	at := w.from
	for _, tick := range append(want, w.until) {
		got, err := next(time.Unix(at, 0))
		if err != nil {
			return err
		}
		if got != tick {
			return fmt.Errorf("after %v comes %v, not %v", time.Unix(at, 0).In(w.zone), time.Unix(got, 0).In(w.zone), time.Unix(tick, 0).In(w.zone))
		}
		at = tick
	}
	for range 3 {
		after := time.Unix(w.from, 0).Add(time.Duration(random.Int64N(int64(time.Second) * (w.until - w.from))))
		i, _ := slices.BinarySearch(want, after.Unix()+1)
		tick := append(want, w.until)[i]
		got, err := next(after)
		if err != nil {
			return err
		}
		if got != tick {
			return fmt.Errorf("after %v comes %v, not %v", after.In(w.zone), time.Unix(got, 0).In(w.zone), time.Unix(tick, 0).In(w.zone))
		}
	}
	return nil
}

// parse gives the fields of an expression of five fields or six.
func parse(t testing.TB, expression string) *walltime.Fields {
	t.Helper()
	parser := cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)
	parsed, err := parser.Parse(expression)
	require.NoError(t, err, expression)
	s := parsed.(*cron.SpecSchedule)
	f := &walltime.Fields{Second: s.Second, Minute: s.Minute, Hour: s.Hour, Dom: s.Dom, Month: s.Month, Dow: s.Dow}
	fields := strings.Fields(expression)
	for _, field := range fields[:len(fields)-3] {
		f.Interval = f.Interval || strings.HasPrefix(field, "*")
	}
	return f
}

// expression makes one at random, more often than not for times near that of a
// change.
func expression(random *rand.Rand, near time.Time, seconds bool) string {
	number := func(low, high, about int) int {
		if random.IntN(3) > 0 {
			return min(high, max(low, about+random.IntN(3)-1))
		}
		return low + random.IntN(high-low+1)
	}
	field := func(low, high, about, stars int) string {
		switch kind := random.IntN(8); {
		case kind < stars:
			return "*"
		case kind < stars+1:
			return "*/" + strconv.Itoa(1+random.IntN(high-low))
		case kind < stars+2:
			first := number(low, high, about)
			return fmt.Sprintf("%d-%d", first, first+random.IntN(high-first+1))
		case kind < stars+3:
			return fmt.Sprintf("%d,%d", number(low, high, about), number(low, high, about))
		}
		return strconv.Itoa(number(low, high, about))
	}
	fields := []string{
		field(0, 59, near.Minute(), 0), field(0, 23, near.Hour(), 1),
		field(1, 31, near.Day(), 5), field(1, 12, int(near.Month()), 5), field(0, 6, int(near.Weekday()), 5),
	}
	if seconds {
		fields = append([]string{field(0, 59, near.Second(), 0)}, fields...)
	}
	return strings.Join(fields, " ")
}

// changes are the instants from 1970 to 2037 at which the clock of a zone is set,
// each way of setting it once: many zones have the same ones.
func changes(t testing.TB) (all []change) {
	t.Helper()
	seen := make(map[[3]int64]bool)
	names, err := zones()
	require.NoError(t, err)
	require.Greater(t, len(names), 400)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		zone := names[name]
		for at := time.Unix(0, 0).In(zone); at.Year() < 2038; {
			_, end := at.ZoneBounds()
			if end.IsZero() {
				break
			}
			if !end.After(at) { // the last day of a leap year, of which ZoneBounds takes no account
				at = at.Add(24 * time.Hour)
				continue
			}
			_, before := end.Add(-time.Second).Zone()
			_, offset := end.Zone()
			if key := [3]int64{end.Unix(), int64(before), int64(offset)}; before != offset && !seen[key] {
				seen[key] = true
				all = append(all, change{zone, end.Unix(), int64(offset - before)})
			}
			at = end
		}
	}
	return all
}

// zones are those of the time zone database of Go, by name: that of the machine
// may be another edition.
var zones = sync.OnceValues(func() (map[string]*time.Location, error) {
	database, err := zip.OpenReader(filepath.Join(build.Default.GOROOT, "lib", "time", "zoneinfo.zip"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = database.Close() }()
	found := make(map[string]*time.Location)
	for _, file := range database.File {
		if file.FileInfo().IsDir() || file.Name == "Factory" {
			continue
		}
		opened, err := file.Open()
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(opened)
		if err != nil {
			return nil, err
		}
		if found[file.Name], err = time.LoadLocationFromTZData(file.Name, data); err != nil {
			return nil, err
		}
	}
	return found, nil
})

func load(t testing.TB, name string) *time.Location {
	t.Helper()
	all, err := zones()
	require.NoError(t, err)
	require.Contains(t, all, name)
	return all[name]
}

// TestNextAgreesWithBruteForce compares Next with a walk from minute to minute, or
// from second to second, around instants at which the clock of a zone of the
// database is set. SMALLBEN_SOAK makes it try them all, with 100,000 expressions
// for each of three seeds; else it takes some at random.
func TestNextAgreesWithBruteForce(t *testing.T) {
	t.Parallel()
	seeds, expressions := []uint64{rand.Uint64()}, 1200
	if os.Getenv("SMALLBEN_SOAK") != "" {
		seeds, expressions = []uint64{rand.Uint64(), rand.Uint64(), rand.Uint64()}, 100_000
	}
	all := changes(t)
	for _, seed := range seeds {
		random := rand.New(rand.NewPCG(seed, 0))
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		each := max(6, (expressions+len(all)-1)/len(all))
		tried, wrong := 0, 0
		for _, c := range all {
			if tried >= expressions {
				break
			}
			wrong += agree(t, c, random, each)
			tried += each
		}
		t.Logf("seed %d: %d expressions, %d changes of clocks, %d wrong", seed, tried, len(all), wrong)
	}
}

// agree compares some expressions around a change, and returns how many are wrong.
func agree(t *testing.T, c change, random *rand.Rand, expressions int) (wrong int) {
	_, offset := time.Unix(c.at-1, 0).In(c.zone).Zone()
	near := time.Unix(c.at+int64(offset)+min(0, c.step), 0).UTC()
	if random.IntN(2) == 0 {
		near = near.Add(time.Duration(random.Int64N(max(1, c.step, -c.step))) * time.Second)
	}
	step, around := int64(60), 50*time.Hour
	seconds := offset%60 != 0 || c.step%60 != 0 || c.at%60 != 0 || random.IntN(100) == 0
	if seconds {
		step, around = 1, 2*time.Hour
	}
	w := watch(c, step, around)
	for range expressions {
		text := expression(random, near, seconds)
		if err := w.compare(parse(t, text), random); err != nil {
			wrong++
			t.Errorf("%s %q, set by %d s at %v: %v", c.zone, text, c.step, time.Unix(c.at, 0).UTC(), err)
			if wrong > 3 {
				t.FailNow()
			}
		}
	}
	return wrong
}

// Zones that never were: clocks that are set some times within hours, each time by
// some minutes, hours, or a day.
func TestNextAgreesWithBruteForceInZonesThatNeverWere(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 25 {
		var offsets []int32
		var instants []int64
		at := time.Date(2026, 2, 27, random.IntN(48), 15*random.IntN(4), 0, 0, time.UTC).Unix()
		for range 2 + random.IntN(4) {
			instants = append(instants, at)
			at += 60 * (1 + random.Int64N(600))
			offset := 15 * 60 * (random.Int32N(20) - 10)
			if random.IntN(4) == 0 {
				offset += 12 * 3600 * (random.Int32N(3) - 1)
			}
			offsets = append(offsets, offset)
		}
		zone := zoneOf(t, instants, offsets)
		change := change{zone: zone, at: instants[len(instants)/2], step: 24 * 3600}
		if agree(t, change, random, 20) > 0 {
			t.Fatalf("offsets %v from %v on", offsets, instants)
		}
	}
}

// zoneOf makes a zone whose clock is set at some instants to an offset each. Before
// the first it is that of UTC.
func zoneOf(t testing.TB, instants []int64, offsets []int32) *time.Location {
	t.Helper()
	// The form of RFC 8536, version 2, behind an empty one of version 1.
	header := func(times, types int) []byte {
		data := append([]byte("TZif2"), make([]byte, 15)...)
		for _, count := range []int{0, 0, 0, times, types, 1} {
			data = binary.BigEndian.AppendUint32(data, uint32(count))
		}
		return data
	}
	kind := func(data []byte, offset int32) []byte {
		return append(binary.BigEndian.AppendUint32(data, uint32(offset)), 0, 0)
	}
	data := append(kind(header(0, 1), 0), 0)
	data = append(data, header(len(instants), len(offsets)+1)...)
	for _, at := range instants {
		data = binary.BigEndian.AppendUint64(data, uint64(at))
	}
	for i := range instants {
		data = append(data, byte(i+1))
	}
	data = kind(data, 0)
	for _, offset := range offsets {
		data = kind(data, offset)
	}
	data = append(data, 0, '\n', '\n')
	zone, err := time.LoadLocationFromTZData("Never/Was", data)
	require.NoError(t, err)
	return zone
}

package gobrow

import (
	"bytes"
	"errors"
	"flag"
	"math/rand"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// beyondGob are the reasons to refuse a row that gob would read, or choke on.
// Encode writes no such row.
var beyondGob = []error{
	errTrailing, errUnfinished, errTerminator, errLength, errDepth, errMemory, errAmbiguous, errUndefined,
}

// requireAgreement compares Decode with a fresh decoder on any row: what Decode
// accepts is what gob reads, and what it refuses gob refuses too, but for the
// rows that gob is not to see.
func requireAgreement(t testing.TB, d *Decoder[job], row []byte) bool {
	got, err := d.Decode(row)
	if gobMisreads(row) {
		return err == nil
	}
	if err != nil {
		if slices.ContainsFunc(beyondGob, func(e error) bool { return errors.Is(err, e) }) {
			return false
		}
		_, freshErr := fresh(row)
		require.Error(t, freshErr, "refused with %v: %x", err, row)
		return false
	}
	want, freshErr := fresh(row)
	require.NoError(t, freshErr, "accepted: %x", row)
	if !assert.ObjectsAreEqual(want, got) {
		again, _ := fresh(row)
		if reflect.DeepEqual(want, again) { // NaN does not equal itself
			require.Equal(t, want, got, "%x", row)
		}
	}
	return true
}

// readAll is Decode for a row that is read once.
func (r *reader) readAll() (err error) {
	defer recoverTo(&err)
	h := r.head(true)
	local := r.registered(string(h.name), h.id)
	r.concrete(r.planConcrete(h.id, local), local, 0)
	return nil
}

// gobMisreads reports whether nothing receives some interface value of the row: gob
// skips it by a length, which is wrong where definitions stand in it. Or whether one
// local type has two definitions: gob reads both by the first.
func gobMisreads(row []byte) bool {
	r := newReader(row)
	_ = r.readAll()
	ids := map[reflect.Type]int32{}
	for at, n := range r.nodes {
		if at.local == nil && n.kind == interfaceKind || at.local != nil && ids[at.local] != 0 && ids[at.local] != at.id {
			return true
		}
		ids[at.local] = at.id
	}
	return false
}

func sampleRows(t testing.TB, seed int64) (rows [][]byte) {
	r := rand.New(rand.NewSource(seed))
	for _, sample := range samples {
		row, err := Encode(sample(r))
		require.NoError(t, err)
		rows = append(rows, row)
	}
	return rows
}

// Each round corrupts every sample twenty times.
var corruptRounds = flag.Int("corrupt-rounds", 10, "rounds of corrupted rows")

func TestDecodeAgreesWithAFreshDecoderOnCorruptedRows(t *testing.T) {
	t.Parallel()
	rounds := *corruptRounds
	if testing.Short() {
		rounds = min(rounds, 4)
	}
	var d Decoder[job]
	accepted, refused := 0, 0
	for round := range rounds {
		r := rand.New(rand.NewSource(int64(round)))
		rows := sampleRows(t, int64(round))
		for _, row := range rows {
			for range 20 {
				if requireAgreement(t, &d, corrupt(r, row, rows)) {
					accepted++
				} else {
					refused++
				}
			}
			require.True(t, requireAgreement(t, &d, row), "no longer accepted: %x", row)
		}
	}
	require.NotZero(t, accepted)
	require.NotZero(t, refused)
	t.Logf("%d accepted, %d refused", accepted, refused)
}

func corrupt(r *rand.Rand, row []byte, others [][]byte) []byte {
	row = bytes.Clone(row)
	for range 1 + r.Intn(3) {
		at := r.Intn(len(row) + 1)
		if r.Intn(2) == 0 {
			at = len(row) - at/4 // the value
		}
		switch r.Intn(6) {
		case 0, 1:
			if at < len(row) {
				row[at] ^= 1 << r.Intn(8)
			}
		case 2:
			row = row[:at]
		case 3:
			row = slices.Insert(row, at, byte(r.Intn(256)))
		case 4:
			if at < len(row) {
				row = slices.Delete(row, at, at+1)
			}
		case 5:
			other := others[r.Intn(len(others))]
			row = append(row[:at:at], other[min(at, len(other)):]...)
		}
	}
	return row
}

// rename makes a row say that it holds another type.
func rename(row []byte, name string) []byte {
	r := newReader(row)
	r.message()
	r.pos += 2
	r.bytes()
	first := message(uints(2*uint64(interfaceKind), 0), str(name), row[r.pos:r.end])
	return append(first, row[r.end:]...)
}

func TestDecodeAgreesWithAFreshDecoderOnRowsOfOtherTypes(t *testing.T) {
	t.Parallel()
	rounds := int64(3)
	if testing.Short() {
		rounds = 1
	}
	var d Decoder[job]
	r := rand.New(rand.NewSource(1))
	accepted := 0
	for round := range rounds {
		for _, row := range sampleRows(t, round) {
			for _, other := range append(samples, hostileSamples...) {
				if requireAgreement(t, &d, rename(row, nameOf(other(r)))) {
					accepted++
				}
			}
		}
	}
	require.NotZero(t, accepted)
}

var hostileSamples = []func(r *rand.Rand) job{
	func(*rand.Rand) job { return wide{} },
	func(*rand.Rand) job { return twins{} },
	func(*rand.Rand) job { return survivor{} },
	func(*rand.Rand) job { return bound{} },
}

func FuzzDecode(f *testing.F) {
	seeds(f)
	var d Decoder[job]
	f.Fuzz(func(t *testing.T, row []byte) {
		requireAgreement(t, &d, row)
		requireAgreement(t, &d, row) // now from a decoder that has read it
	})
}

// FuzzMemory holds a reader to its promise that it counts what it allocates.
func FuzzMemory(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, row []byte) {
		allocated := func(do func()) uint64 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			do()
			runtime.ReadMemStats(&after)
			return after.TotalAlloc - before.TotalAlloc
		}
		r := newReader(row)
		took := allocated(func() { _ = r.readAll() })
		require.Less(t, took, uint64(1<<20+100*len(row)+2*(maxMemory-r.memory)))
	})
}

func seeds(f *testing.F) {
	for seed := range int64(3) {
		for _, row := range sampleRows(f, seed) {
			f.Add(row)
		}
	}
	for _, c := range hostile() {
		if len(c.row) < 4096 {
			f.Add(c.row)
		}
	}
	for _, row := range handmade() {
		f.Add(row)
	}
}

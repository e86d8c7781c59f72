package gobrow

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Types that hostile rows claim to hold.
type (
	wide struct {
		L []struct{ Page [1 << 14]int }
		P []*struct{ Page [1 << 14]int }
		M map[int]struct{ Page [1 << 14]int }
	}
	twins struct{ A, B []bag }
	bag   struct {
		M map[string]string
		E map[struct{}]struct{}
	}
	survivor struct {
		M    map[string]string
		Last string
	}
	single [1]inner // of which nothing is decoded
	bound  struct {
		N number
		V any
	}
	atlas struct {
		Ints   []map[int64]int64
		Bools  []map[int8]bool
		Sets   []map[string]struct{}
		Pages  []map[int64][14]int64
		Books  []map[[20]int64][300]int64
		Shelfs []map[int]struct{ Page [1 << 14]int }
	}
)

// odd is a number whose arrays are registered, and stand in one hostile row only.
type odd int

const oddArrays = 20

func (wide) Run()     {}
func (twins) Run()    {}
func (survivor) Run() {}
func (bound) Run()    {}
func (single) Run()   {}
func (atlas) Run()    {}

func init() {
	for _, v := range []job{wide{}, twins{}, survivor{}, bound{}, single{}, atlas{}} {
		gob.Register(v)
	}
	for n := range oddArrays {
		gob.Register(reflect.Zero(reflect.ArrayOf(n, reflect.TypeFor[odd]())).Interface())
	}
}

// The ids of the definitions below.
const (
	t1 = firstID + iota
	t2
	t3
	t4
)

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func uints(us ...uint64) (b []byte) {
	for _, u := range us {
		b = appendUint(b, u)
	}
	return b
}

func str(s string) []byte { return append(appendUint(nil, uint64(len(s))), s...) }

func message(parts ...[]byte) []byte { return []byte(str(string(concat(parts...)))) }

// Definitions: a wireType without names, of id.
func structDef(id int64, fields ...any) []byte {
	b := concat(appendInt(nil, -id), uints(3, 2, uint64(len(fields)/2)))
	for i := 0; i < len(fields); i += 2 {
		b = append(append(append(b, 1), str(fields[i].(string))...), 1)
		b = append(appendInt(b, int64(fields[i+1].(int))), 0)
	}
	return append(b, 0, 0)
}

func sliceDef(id, elem int64) []byte {
	return concat(appendInt(nil, -id), uints(2, 2), appendInt(nil, elem), uints(0, 0))
}

func arrayDef(id, elem, n int64) []byte {
	return concat(appendInt(nil, -id), uints(1, 2), appendInt(nil, elem), uints(1), appendInt(nil, n), uints(0, 0))
}

func mapDef(id, key, elem int64) []byte {
	return concat(appendInt(nil, -id), uints(4, 2), appendInt(nil, key), uints(1), appendInt(nil, elem), uints(0, 0))
}

func bytesDef(id int64) []byte { return concat(appendInt(nil, -id), uints(5, 0, 0)) }

func nameOf(v any) string {
	t := reflect.TypeOf(v)
	if t.Kind() == reflect.Pointer {
		return t.String()
	}
	return t.PkgPath() + "." + t.Name()
}

// rowOf builds a row for the type of v: its definitions in messages of their
// own, as Encode writes them, and value as its value.
func rowOf(v any, defs [][]byte, id int64, value ...[]byte) []byte {
	b := concat(uints(2*uint64(interfaceKind), 0), str(nameOf(v)))
	var row []byte
	for _, def := range defs {
		row = append(row, message(b, def)...)
		b = nil
	}
	return append(row, message(b, appendInt(nil, id), message(value...))...)
}

// ifaceOf is the value of a nested interface variable, definitions included.
func ifaceOf(v any, defs [][]byte, id int64, value ...[]byte) []byte {
	b := str(nameOf(v))
	for _, def := range defs {
		b = append(append(b, def...), 0) // gob ignores the length
	}
	return concat(b, appendInt(nil, id), message(value...))
}

func defs(defs ...[]byte) [][]byte { return defs }

// errHarmless says that gob could not read a row, but Decode can.
var errHarmless = errors.New("harmless")

// hostile rows, and why each is refused.
func hostile() map[string]struct {
	row []byte
	err error
} {
	type rows = map[string]struct {
		row []byte
		err error
	}
	const tInt, tBytes, tString = 2, 5, 6
	const million = 1 << 20
	zeros := make([]byte, million)
	ones := bytes.Repeat([]byte{1}, million)
	empties := structDef(t2)
	strMap := mapDef(t2, tString, tString)
	valid, _ := Encode[job](&recursive{1, nil})

	var chain [][]byte
	for i := range int64(5000) {
		chain = append(chain, sliceDef(t3+i, t3+i+1))
	}
	chain = append(chain, sliceDef(t3+5000, tInt))
	var many, some []any
	for n := range 30000 {
		many = append(many, fmt.Sprint("X", n), t3)
	}
	for n := range 2000 {
		some = append(some, fmt.Sprint("X", n), tInt)
	}
	var named, boxes [][]byte // of long names, and of one element each
	for i := range int64(900) {
		named = append(named, structDef(t1+i, "Last", tString, strings.Repeat("x", 700), int(t1+i+1)))
		boxes = append(boxes, arrayDef(t1+i, t1+i+1, 1))
	}
	crowd := defs(structDef(t1, "Vs", t2), sliceDef(t2, int64(interfaceKind)))
	for i := range int64(35_000) {
		crowd = append(crowd, sliceDef(t3+oddArrays+i, tInt))
	}
	var odds []byte
	for n := range int64(oddArrays) {
		crowd = append(crowd, arrayDef(t3+n, tInt, n))
		odds = concat(odds, str(fmt.Sprintf("[%d]gobrow.odd", n)), appendInt(nil, t3+n), uints(0, 0, uint64(n)), zeros[:n])
	}
	named = append(named, structDef(t1+900))
	boxes = append(boxes, arrayDef(t1+900, t1+901, million/2), structDef(t1+901))

	return rows{
		"a map of 2^30 entries": {
			rowOf(dictionary{}, defs(mapDef(t1, tString, tString)), t1, uints(0, 1<<30)), errLength,
		},
		"a map of 2^63 entries": {
			rowOf(dictionary{}, defs(mapDef(t1, tString, tString)), t1, uints(0, 1<<63)), errLength,
		},
		"10^12 empty structs": {
			rowOf(&sliced{}, defs(structDef(t1, "Empty", t3), sliceDef(t3, t2), empties), t1, uints(1, 1e12)), errLength,
		},
		"10^12 empty structs that nothing receives": {
			rowOf(survivor{}, defs(structDef(t1, "Gone", t3, "Last", tString), sliceDef(t3, t2), empties), t1, uints(1, 1e12)), errLength,
		},
		"an array of 10^12 empty structs that nothing receives": {
			rowOf(survivor{}, defs(structDef(t1, "Gone", t3, "Last", tString), arrayDef(t3, t2, 1e12), empties), t1, uints(1, 1e12)), errLength,
		},
		"an array of negative length": {
			rowOf(survivor{}, defs(structDef(t1, "Gone", t3, "Last", tString), arrayDef(t3, t2, -1), empties), t1, uints(1, math.MaxUint64, 0)), errLength,
		},
		"a map of unterminated structs": {
			rowOf(survivor{}, defs(structDef(t1, "Gone", t3, "Last", tString), mapDef(t3, t2, t2), empties), t1, uints(1, 1e12)), errLength,
		},
		"a slice of slices of itself": {
			rowOf(nests{}, defs(sliceDef(t1, t1)), t1, uints(0), ones, uints(0)), errDepth,
		},
		"a list of a million nodes": {
			rowOf(&recursive{}, defs(structDef(t1, "V", tInt, "Next", t1)), t1, bytes.Repeat([]byte{2}, million)), errDepth,
		},
		"a list of a million nodes that nothing receives": {
			rowOf(survivor{}, defs(structDef(t1, "Gone", t1, "Last", tString)), t1, ones), errDepth,
		},
		"a million interface values": {
			rowOf(bound{}, defs(structDef(t1, "V", int(interfaceKind))), t1,
				bytes.Repeat(concat(uints(1), str(nameOf(bound{})), appendInt(nil, t1), uints(0)), 30000)), errDepth,
		},
		"a string beyond the end": {
			rowOf(survivor{}, defs(structDef(t1, "Last", tString)), t1, uints(1, 1<<40)), errLength,
		},
		"a name beyond the end":        {message(uints(2*uint64(interfaceKind), 0, 1<<40)), errLength},
		"a message beyond the end":     {uints(1 << 40), errLength},
		"bytes in the value's message": {rowOf(survivor{}, defs(structDef(t1, "Last", tString)), t1, uints(0, 0)), errTrailing},
		"bytes after the value":        {append(bytes.Clone(valid), 0), errTrailing},
		"two values":                   {append(bytes.Clone(valid), valid...), errTrailing},
		"a struct without terminator":  {rowOf(survivor{}, defs(structDef(t1, "Last", tString)), t1, uints(1), str("x")), errTerminator},
		"nil":                          {message(uints(2*uint64(interfaceKind), 0, 0)), errNil},
		"nothing":                      {nil, errShort},
		"large structs in a slice": {
			rowOf(wide{}, defs(structDef(t1, "L", t3), sliceDef(t3, t2), empties), t1, uints(1, million), zeros, uints(0)), errMemory,
		},
		"pointers to large structs in a slice": {
			rowOf(wide{}, defs(structDef(t1, "P", t3), sliceDef(t3, t2), empties), t1, uints(1, million), zeros, uints(0)), errMemory,
		},
		"large structs in a map": {
			rowOf(wide{}, defs(structDef(t1, "M", t3), mapDef(t3, tInt, t2), empties), t1, uints(1, million/2), zeros, uints(0)), errMemory,
		},
		"maps of one entry": {
			rowOf(atlas{}, defs(structDef(t1, "Pages", t2), sliceDef(t2, t3), mapDef(t3, tInt, t4), arrayDef(t4, tInt, 14)), t1,
				uints(1, million/17), bytes.Repeat(append([]byte{1, 0, 14}, zeros[:14]...), million/17), uints(0)), errMemory,
		},
		"empty maps": {
			rowOf(atlas{}, defs(structDef(t1, "Ints", t2), sliceDef(t2, t3), mapDef(t3, tInt, tInt)), t1, uints(1, million), zeros, uints(0)), errMemory,
		},
		"empty maps of large structs": {
			rowOf(atlas{}, defs(structDef(t1, "Shelfs", t2), sliceDef(t2, t3), mapDef(t3, tInt, t4), structDef(t4)), t1, uints(1, 1000), zeros[:1000], uints(0)), errHarmless,
		},
		"thousands of slices inside each other for a type of slices of itself": {
			rowOf(nests{}, append(defs(sliceDef(t1, t2), sliceDef(t2, t3)), chain...), t1, uints(0, 0)), nil,
		},
		"a slice without its elements": {
			rowOf(wide{}, defs(structDef(t1, "L", t3), sliceDef(t3, t2), empties), t1, uints(1, 100)), errLength,
		},
		"a hostile map inside an interface value": {
			rowOf(bound{}, defs(structDef(t1, "N", tInt, "V", int(interfaceKind))), t1,
				uints(2), ifaceOf(dictionary{}, defs(strMap), t2, uints(0, 1<<30)), uints(0)), errLength,
		},
		"a length that hides a map from those who skip the value": {
			rowOf(survivor{}, defs(structDef(t1, "Gone", int(interfaceKind), "M", t2), strMap), t1,
				uints(1), str(nameOf(survivor{})), appendInt(nil, tBytes), uints(1, 0), // skipped: one byte
				uints(1, 1<<30), uints(0)), errMalformed,
		},
		"two definitions for one local type": {
			rowOf(twins{}, defs(structDef(t1, "A", t2, "B", t3),
				sliceDef(t2, t4), structDef(t4, "M", t4+1), mapDef(t4+1, tString, tString),
				sliceDef(t3, t4+2), structDef(t4+2, "P", tBytes)), t1,
				// B's bytes are a map of 2^30 to those who read it as A.
				uints(2, 1, 1), str(string(uints(1<<30))), uints(0, 0)), errHarmless,
		},
		"an undefined type for a local type that has another": {
			rowOf(twins{}, defs(structDef(t1, "A", t2, "B", t3),
				sliceDef(t2, t4), structDef(t4, "M", t4+1), mapDef(t4+1, tString, tString), sliceDef(t3, t4+9)), t1,
				uints(2, 1, 1), str("x"), uints(0, 0)), errUndefined,
		},
		"a number for a local type that has a definition": {
			rowOf(twins{}, defs(structDef(t1, "A", t2, "B", tInt), sliceDef(t2, t3), structDef(t3)), t1, uints(0)), errMismatch,
		},
		"a definition for a local type that is a number": {
			rowOf(twins{}, defs(structDef(t1, "A", tInt, "B", t2), sliceDef(t2, t3), structDef(t3)), t1, uints(0)), errMismatch,
		},
		"a type of two kinds": {
			rowOf(survivor{}, defs(concat(appendInt(nil, -t1), uints(3, 0, 1, 0, 0))), t1, uints(0)), errAmbiguous,
		},
		"a type defined twice": {
			rowOf(survivor{}, defs(structDef(t1), structDef(t1)), t1, uints(0)), errAmbiguous,
		},
		"two fields of one name": {
			rowOf(survivor{}, defs(structDef(t1, "Last", tString, "Last", tString)), t1, uints(0)), errAmbiguous,
		},
		"an array with fewer elements than its type": {
			rowOf(survivor{}, defs(structDef(t1, "Gone", t2, "Last", tString), arrayDef(t2, tInt, 3)), t1, uints(1, 2, 0, 0, 0)), errMalformed,
		},
		"an array of itself":          {rowOf(single{}, defs(arrayDef(t1, t1, 1)), t1, uints(0, 1, 1, 1)), errDepth},
		"a type of no kind":           {rowOf(survivor{}, defs(concat(appendInt(nil, -t1), uints(0))), t1, uints(0)), errMalformed},
		"a type without definition":   {rowOf(survivor{}, defs(structDef(t1, "Gone", t2)), t1, uints(0)), errUndefined},
		"a type that gob uses itself": {rowOf(survivor{}, nil, 16, uints(0)), errUndefined},
		"thousands of fields that skip thousands of types": {
			rowOf(survivor{}, append(defs(structDef(t1, many...)), chain...), t1, uints(0)), errDepth,
		},
		"a slice of thousands of skipped types": {
			rowOf(list{}, append(defs(sliceDef(t1, t2), structDef(t2, many...)), chain...), t1, uints(0, 0)), errDepth,
		},
		"thousands of fields behind a long name": {
			rowOf(survivor{}, defs(structDef(t1, strings.Repeat("x", million/2), t2, "Last", tString), structDef(t2, some...)), t1, uints(0)), errHarmless,
		},
		"hundreds of long names behind each other": {rowOf(survivor{}, named, t1, uints(0)), errHarmless},
		"hundreds of arrays inside each other": {
			[]byte(strings.ReplaceAll(string(rowOf(survivor{}, boxes, t1, zeros)), "survivor", "deceased")), nil,
		},
		"many registered types beside thousands of definitions": {
			rowOf(&holder{}, crowd, t1, uints(1, oddArrays), odds, uints(0)), errHarmless,
		},
		"a million fields": {
			rowOf(survivor{}, defs(concat(appendInt(nil, -t1), uints(3, 2, million), zeros, uints(0, 0))), t1, uints(0)), errMemory,
		},
		"a million definitions": {
			rowOf(survivor{}, func() (d [][]byte) {
				for i := range int64(80000) {
					d = append(d, structDef(t1+i, "Gone", int(t1+i+1)))
				}
				return append(d, structDef(t1+80000))
			}(), t1, uints(0)), errMemory,
		},
		"an array of arrays of arrays": {
			[]byte(strings.ReplaceAll(string(rowOf(triple{}, defs(arrayDef(t1, t2, 1000), arrayDef(t2, t3, 1000), arrayDef(t3, t4, 1000), structDef(t4)), t1, uints(0, 3), zeros)), "triple", "tuples")), errLength,
		},
		"a type that is not registered": {
			[]byte(strings.ReplaceAll(string(rowOf(survivor{}, defs(structDef(t1)), t1, uints(0))), "survivor", "deceased")), nil,
		},
	}
}

// cpuTime is what the process has taken of the processors, which a busy machine does not delay.
func cpuTime(t *testing.T) time.Duration {
	var usage syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func TestHostileRowsAreRefusedAtOnce(t *testing.T) {
	for name, c := range hostile() {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			var err error
			took := time.Duration(math.MaxInt64)
			for range 5 { // the quickest counts: the collector of garbage may be in some
				start := cpuTime(t)
				runtime.ReadMemStats(&before)
				_, err = new(Decoder[job]).Decode(c.row)
				runtime.ReadMemStats(&after)
				if took = min(took, cpuTime(t)-start); took < time.Second {
					break
				}
			}
			switch c.err {
			case errHarmless:
				require.NoError(t, err)
			case nil:
				require.Error(t, err)
			default:
				require.ErrorIs(t, err, c.err)
			}
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20))
			require.Less(t, took, time.Second)
		})
	}
}

// handmade rows that gob reads, though Encode here would not write them.
func handmade() map[string][]byte {
	const tInt, tBytes, tString = 2, 5, 6
	return map[string][]byte{
		"definitions in messages of their own": rowOf(survivor{},
			defs(structDef(t1, "M", t2, "Last", tString), mapDef(t2, tString, tString)), t1,
			uints(1, 1), str("k"), str("v"), uints(1), str("last"), uints(0)),
		"definitions inside an interface value": rowOf(bound{}, defs(structDef(t1, "N", tInt, "V", int(interfaceKind))), t1,
			uints(1, 2, 1), ifaceOf(dictionary{}, defs(mapDef(t2, tString, tString)), t2, uints(0, 1), str("k"), str("v")), uints(0)),
		"a skipped interface value": rowOf(survivor{}, defs(structDef(t1, "Gone", int(interfaceKind), "Last", tString)), t1,
			uints(1), ifaceOf(dictionary{}, defs(mapDef(t2, tString, tString)), t2, uints(0, 1), str("k"), str("v")),
			uints(1), str("last"), uints(0)),
		"two definitions alike for one local type": rowOf(twins{}, defs(structDef(t1, "A", t2, "B", t3),
			sliceDef(t2, t4), structDef(t4, "M", t4+1), mapDef(t4+1, tString, tString),
			sliceDef(t3, t4+2), structDef(t4+2, "M", t4+3), mapDef(t4+3, tString, tString)), t1,
			uints(1, 1, 0, 1, 1, 1, 1), str("k"), str("v"), uints(0, 0)),
		"fields that nothing receives": rowOf(survivor{}, defs(structDef(t1, "A", t2, "B", t3, "C", t4, "D", tBytes, "Last", tString),
			arrayDef(t2, tInt, 2), sliceDef(t3, t1), bytesDef(t4)), t1,
			uints(1, 2, 5, 6, 1, 2), uints(0), uints(0), uints(1), str("opaque"), uints(1), str("bytes"), uints(1), str("last"), uints(0)),
	}
}

func TestHandmadeRowsDecode(t *testing.T) {
	t.Parallel()
	for name, row := range handmade() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, err := fresh(row)
			require.NoError(t, err)
			got, err := new(Decoder[job]).Decode(row)
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
}

// Rounded up by the allocator, it is half as much again at most.
func TestTheMemoryOfMapsIsCounted(t *testing.T) {
	const tInt, tString = 2, 6
	number := func(n int) []byte { return appendInt(nil, int64(n)) }
	for name, c := range map[string]struct {
		field      string
		key, value func(n int) []byte
		defs       [][]byte // of t3, the map
	}{
		"ints":  {"Ints", number, number, defs(mapDef(t3, tInt, tInt))},
		"bools": {"Bools", func(n int) []byte { return number(n % 100) }, func(int) []byte { return uints(1) }, defs(mapDef(t3, tInt, 1))},
		"sets":  {"Sets", func(n int) []byte { return str(fmt.Sprint(n)) }, func(int) []byte { return uints(0) }, defs(mapDef(t3, tString, t4), structDef(t4))},
		"pages": {"Pages", number, func(int) []byte { return append(uints(14), make([]byte, 14)...) }, defs(mapDef(t3, tInt, t4), arrayDef(t4, tInt, 14))},
		"books": {"Books", func(n int) []byte { return concat(uints(20), number(n), make([]byte, 19)) }, func(int) []byte { return append(uints(300), make([]byte, 300)...) },
			defs(mapDef(t3, t4, t4+1), arrayDef(t4, tInt, 20), arrayDef(t4+1, tInt, 300))},
	} {
		for _, entries := range []int{0, 1, 2, 8, 9, 14, 15, 100, 897, 1792, 20_000} {
			if c.field == "Bools" && entries > 100 {
				continue
			}
			t.Run(fmt.Sprint(name, " ", entries), func(t *testing.T) {
				one := uints(uint64(entries))
				for n := range entries {
					one = append(append(one, c.key(n)...), c.value(n)...)
				}
				// Many of them, beside which the rest of what gob allocates is little.
				count := max(1, 16_000/(1+entries*len(c.value(0))/4))
				row := rowOf(atlas{}, append(defs(structDef(t1, c.field, t2), sliceDef(t2, t3)), c.defs...), t1,
					uints(1, uint64(count)), bytes.Repeat(one, count), uints(0))
				r := newReader(row)
				r.memory = math.MaxInt
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				err := r.readAll()
				runtime.ReadMemStats(&after)
				require.NoError(t, err)
				counted := math.MaxInt - r.memory
				took := int(after.TotalAlloc - before.TotalAlloc)
				t.Logf("%d maps: %d bytes counted, %d allocated", count, counted, took)
				const rest = 64 << 10
				require.LessOrEqual(t, took, counted*3/2+rest)
				require.LessOrEqual(t, counted, 3*took)
			})
		}
	}
}

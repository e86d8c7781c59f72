package gobrow

import (
	"bytes"
	"encoding/gob"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

type (
	pointerLoop  *pointerLoop
	looping      struct{ P pointerLoop }
	unregistered struct{ N int } // not registered
	faulty       struct{ Do func() }
	faultyText   struct{ N int }
	graph        struct {
		Left, Right *graph
		Note        string
	}
	deepType struct {
		A struct{ B []map[string][2]*inner }
	}
)

func (looping) Run()      {}
func (unregistered) Run() {}
func (*faulty) Run()      {}
func (faultyText) Run()   {}
func (*graph) Run()       {}
func (deepType) Run()     {}

func (f *faulty) GobEncode() ([]byte, error) { f.Do(); return []byte("x"), nil }
func (f *faulty) GobDecode([]byte) error     { return nil }

// MarshalText would end the process if anything called it.
//
//lint:ignore SA5007 so it is meant
func (faultyText) MarshalText() ([]byte, error) { return faultyText{}.MarshalText() }

func init() {
	for _, v := range []job{looping{}, &faulty{}, faultyText{}, &graph{}, deepType{}} {
		gob.Register(v)
	}
}

func chainOf(n int) *recursive {
	var v *recursive
	for range n {
		v = &recursive{1, v}
	}
	return v
}

func TestEncodeRefusesWhatWouldEndTheProcess(t *testing.T) {
	t.Parallel()
	ring := chainOf(3)
	ring.Next.Next.Next = ring
	self := make(nests, 1)
	self[0] = self
	branch := tree{ByID: map[int]*tree{}}
	branch.ByID[1] = &branch
	anything := &dynamic{}
	anything.Map = map[string]any{"": map[string]any{"": anything}}
	var loop pointerLoop
	loop = &loop
	shared := &graph{Note: "x"}
	for range 60 {
		shared = &graph{Left: shared, Right: shared}
	}
	shades := &graph{Note: strings.Repeat("x", 1<<12)}
	for range 12 {
		shades = &graph{Left: shades, Right: shades}
	}
	for name, c := range map[string]struct {
		v   job
		err error
	}{
		"a ring of pointers":         {ring, errDepth},
		"a slice that holds itself":  {self, errDepth},
		"a map that holds itself":    {branch, errDepth},
		"an interface value's cycle": {anything, errDepth},
		"a list that is too long":    {chainOf(maxDepth + 1), errDepth},
		"a graph of 2^60 paths":      {shared, errEncodedSize},
		"a string on 2^12 paths":     {shades, errEncodedSize},
		"a pointer to itself":        {looping{loop}, errDepth},
		"nil":                        {nil, errNil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Encode(c.v)
			require.ErrorIs(t, err, c.err)
		})
	}
}

func TestEncodeReportsWhatGobCannotWrite(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		v    job
		says string
	}{
		"a type that is not registered": {unregistered{}, "not registered"},
		"a nil pointer":                 {(*nested)(nil), "nil pointer"},
		"a nil element":                 {&sliced{Ptrs: []*inner{nil}}, "nil element"},
		"a nil pointer inside":          {&dynamic{Jobs: []job{(*nested)(nil)}}, "nil pointer"},
		"an unregistered value inside":  {&dynamic{V: unregistered{}}, "not registered"},
		"a channel inside":              {&dynamic{V: make(chan int)}, "not registered"},
		"a panic":                       {&faulty{func() { panic("no") }}, "panic: no"},
		"a nil dereference":             {&faulty{}, "panic: runtime error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Encode(c.v)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestEncodeAndDecodeGoEquallyDeep(t *testing.T) {
	t.Parallel()
	var d Decoder[job]
	deepest := nests{nil, nests{}}
	for range maxDepth - 1 {
		deepest = nests{deepest}
	}
	forest := tree{}
	for range maxDepth/2 - 1 {
		below := forest
		forest = tree{ByID: map[int]*tree{0: &below}}
	}
	var boxed any = "core"
	for range (maxDepth - 4) / 2 { // a struct and an interface value each
		boxed = bound{V: boxed}
	}
	for name, v := range map[string]job{
		"list":             chainOf(maxDepth),
		"slices":           deepest,
		"maps":             forest,
		"interface values": bound{V: bound{V: boxed}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			row, err := Encode(v)
			require.NoError(t, err)
			for range 2 {
				got, err := d.Decode(row)
				require.NoError(t, err)
				want, err := fresh(row)
				require.NoError(t, err)
				require.True(t, reflect.DeepEqual(want, got))
			}
		})
	}
	_, err := Encode[job](nests{deepest})
	require.ErrorIs(t, err, errDepth)
	_, err = Encode[job](bound{V: bound{V: bound{V: boxed}}})
	require.ErrorIs(t, err, errDepth)
}

func TestEncodeLetsSharedPartsBe(t *testing.T) {
	t.Parallel()
	leaf := &graph{Note: "leaf"}
	v := &graph{Left: &graph{Left: leaf, Right: leaf}, Right: leaf}
	row, err := Encode[job](v)
	require.NoError(t, err)
	got, err := new(Decoder[job]).Decode(row)
	require.NoError(t, err)
	require.Equal(t, v, got)
}

func TestEncodeWalksOnlyTypesThatMayContainThemselves(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewSource(1))
	walked := map[string]bool{}
	for _, sample := range append(samples, hostileSamples...) {
		v := sample(r)
		walked[nameOf(v)[strings.LastIndex(nameOf(v), ".")+1:]] = factsOf(reflect.TypeOf(v)).mayRecur
	}
	for name, walks := range walked {
		switch name {
		case "recursive", "tree", "nests", "dynamic", "bound":
			require.True(t, walks, name)
		default:
			require.False(t, walks, name)
		}
	}
}

// freshRow is the row that Encode is measured against.
func freshRow(v job) ([]byte, error) {
	var buf bytes.Buffer
	err := gob.NewEncoder(&buf).Encode(&v)
	return buf.Bytes(), err
}

func TestEncodeWritesWhatAFreshEncoderWrites(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewSource(1))
	for range 100 {
		for _, sample := range samples {
			v := sample(r)
			row, err := Encode(v)
			require.NoError(t, err, "%T", v)
			want, err := freshRow(v)
			require.NoError(t, err, "%T", v)
			if !bytes.Equal(want, row) && !factsOf(reflect.TypeOf(v)).mayRecur {
				// A map of more than one entry comes in any order, and what it
				// holds may bring definitions in that order.
				require.Len(t, row, len(want), "%T", v)
				slices.Sort(want)
				slices.Sort(row)
				require.Equal(t, want, row, "%T", v)
			}
		}
	}
}

func TestAnEncoderIsNotUsedAgainAfterAFailure(t *testing.T) {
	t.Parallel()
	works := func() {
		row, err := Encode[job](&faulty{Do: func() {}})
		require.NoError(t, err)
		want, err := freshRow(&faulty{Do: func() {}})
		require.NoError(t, err)
		require.Equal(t, want, row)
	}
	for range 3 {
		works()
		_, err := Encode[job](&faulty{Do: func() { panic("no") }})
		require.ErrorContains(t, err, "no")
	}
	works()
}

func TestEncodeSendsDefinitionsOnce(t *testing.T) {
	allocs := testing.AllocsPerRun(100, func() {
		_, err := Encode[job](benchJob)
		require.NoError(t, err)
	})
	freshAllocs := testing.AllocsPerRun(100, func() { _, _ = freshRow(benchJob) })
	require.Less(t, allocs, freshAllocs/2)
}

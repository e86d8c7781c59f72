package gobrow

import (
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// box is a job that holds a value of any type.
type box[T any] struct{ V T }

func (box[T]) Run() {}

// boxed is a job that holds v, and its type is registered.
func boxed[T any](v T) job {
	gob.Register(box[T]{})
	return box[T]{v}
}

// Types as users have them.
type (
	octet   uint8
	digest  []byte
	octets  []octet
	level   int // writes itself as bytes
	weekday map[string]level
	flags   map[string]bool // GobDecode has no pointer
	name    string
	handle  *inner
	shape   interface{ Sides() int }
	square  struct{ Side int }
	polygon struct{ Corners []int }
	linked  struct {
		Value any
		Next  *linked
		Peers map[string]*linked
	}
	team struct {
		Members map[name]*player
		Rivals  []*team
	}
	player  struct{ Teams []team }
	withID  struct{ ID, Version int }
	audited struct {
		withID
		*Base
		Created time.Time
	}
	blank  struct{}
	quiet  struct{ _ int } // gob does not write it
	device struct {
		Name  string
		Ready chan bool
		Open  func()
		Close *func()
		_     int
		fd    int
	}
)

func (l level) MarshalBinary() ([]byte, error)     { return []byte{byte(l)}, nil }
func (l *level) UnmarshalBinary(data []byte) error { *l = level(data[0]); return nil }

func (f flags) GobEncode() ([]byte, error) { return []byte(fmt.Sprint(len(f))), nil }
func (f flags) GobDecode([]byte) error {
	if f != nil {
		return errors.New("a map that is there")
	}
	return nil
}

func (square) Sides() int     { return 4 }
func (p *polygon) Sides() int { return len(p.Corners) }

func init() {
	gob.RegisterName("shapes.square", square{})
	gob.RegisterName("ポリゴン", &polygon{})
	for _, v := range []any{linked{}, []any{}, map[string]any{}, map[any]any{}, time.Time{}, level(0), digest{}, octets{}, [2]octet{}, blank{}, netip.Addr{}} {
		gob.Register(v)
	}
	gob.Register(time.Minute)
}

func realValues() map[string]job {
	var no *int
	seven, half := 7, 0.5
	deep := &seven
	deeper := &deep
	long := strings.Repeat("x", 300)
	at := time.Date(2026, 2, 28, 12, 0, 0, 1, time.FixedZone("", 3600))
	ring := &linked{Value: "end"}
	return map[string]job{
		"integers at their ends": boxed(struct {
			A [2]int8
			B [2]int16
			C [2]int32
			D [2]int64
			E uint8
			F uint16
			G uint32
			H uint64
			I uint
			J uintptr
		}{[2]int8{math.MinInt8, math.MaxInt8}, [2]int16{math.MinInt16, math.MaxInt16}, [2]int32{math.MinInt32, math.MaxInt32},
			[2]int64{math.MinInt64, math.MaxInt64}, math.MaxUint8, math.MaxUint16, math.MaxUint32, math.MaxUint64, math.MaxUint, 1}),
		"floats": boxed([]any{math.Inf(1), math.Inf(-1), math.Copysign(0, -1), math.SmallestNonzeroFloat64, math.MaxFloat64,
			float32(math.MaxFloat32), float32(math.Inf(-1)), float32(math.SmallestNonzeroFloat32)}),
		"complex numbers": boxed(map[complex64][]complex128{1: nil, 2i: {complex(math.Inf(1), -1), 0}}),
		"bytes": boxed(struct {
			A, B []byte
			C    digest
			D    octets
			E    [3]byte
			F    [2]octet
			G    [][]byte
			H    *[]byte
		}{nil, []byte{}, digest{1, 2}, octets{3}, [3]byte{4}, [2]octet{0, 5}, [][]byte{nil, {6}}, &[]byte{7}}),
		"strings": boxed(map[name]string{"": "", "ключ": "\xff\x00", name(long): long}),
		"pointers to pointers": boxed(struct {
			A ***int
			B **int
			C []**int
			D *[]*float64
			E map[string]***int
			F *struct{ G *int }
		}{&deeper, nil, []**int{deeper}, &[]*float64{&half}, map[string]***int{"a": &deeper}, &struct{ G *int }{}}),
		"nil inside pointers": boxed(struct {
			A **int
			B *any
			C *[]int
			D *map[string]int
			E *blank
		}{&no, new(any), new([]int), &map[string]int{}, &blank{}}),
		"a named pointer":          boxed(struct{ A, B handle }{A: &inner{Name: "a"}}),
		"an interface with values": boxed([]shape{square{1}, &polygon{[]int{1, 2, 3}}, nil, &square{}, polygon{}.pointer()}),
		"an interface that holds a pointer": boxed(struct {
			A, B any
			C    *any
		}{&square{2}, &polygon{}, ptr[any](&seven)}),
		"pointers to pointers in an interface": boxed([]any{ptr(ptr(ptr(3)))}),
		"anything":                             boxed([]any{nil, 1, "a", true, uint8(200), []byte{1}, 2i, time.Minute, at, []any{[]any{}}, map[string]any{"a": map[any]any{1: "b", square{1}: nil}}, level(3), digest{1}, octets{2}, [2]octet{1, 2}, blank{}, netip.MustParseAddr("::1%eth0")}),
		"maps in maps":                         boxed(map[[2]int]map[string]map[bool][]map[int8]*string{{1, 2}: {"a": {true: {nil, {}, {1: &long}}}, "b": nil, "c": {}}}),
		"keys": boxed(struct {
			A map[any]int
			B map[shape]int
			C map[struct{ X, Y float32 }]int
			D map[time.Duration]struct{}
		}{map[any]int{1: 1, "1": 2, square{}: 3, nil: 4}, map[shape]int{square{1}: 1}, map[struct{ X, Y float32 }]int{{1, 2}: 3, {}: 0}, map[time.Duration]struct{}{0: {}, 1: {}}}),
		"arrays": boxed(struct {
			A [0]int
			B [2][0]string
			C [2][2]*inner
			D [1]any
			E [3]struct{}
			F [2]map[int]int
		}{C: [2][2]*inner{{{}, {Name: "a"}}, {{}, {}}}, D: [1]any{[]any{}}}),
		"types that write themselves": boxed(&struct {
			A time.Time
			B *time.Time
			C []time.Time
			D *big.Int
			E *big.Float
			F *big.Rat
			G url.URL
			H *url.URL
			I map[string]*url.URL
			J netip.AddrPort
			K []level
			L weekday
			M map[level][2]level
			N *level
			O time.Duration
		}{at.UTC(), &at, []time.Time{{}, at.UTC()}, big.NewInt(math.MinInt64), big.NewFloat(0.1), big.NewRat(-1, 3), url.URL{Host: "a"},
			&url.URL{Scheme: "https", User: url.UserPassword("a", "b")}, map[string]*url.URL{"": {}}, netip.MustParseAddrPort("1.2.3.4:5"),
			[]level{1, 0}, weekday{"mon": 2, "tue": 0}, map[level][2]level{1: {2, 3}}, ptr(level(0)), -time.Hour}),
		"a value that decodes itself": boxed(struct {
			A, B flags
			C    []flags
		}{A: flags{"a": true}, C: []flags{nil, {"b": true}}}),
		"embedded structs": boxed(audited{withID{1, 2}, &Base{3}, at.UTC()}),
		"an embedded nil pointer": boxed(struct {
			*Base
			N int
		}{N: 1}),
		"a struct that writes itself by what it embeds": boxed(struct {
			time.Time
			Note string
		}{at.UTC(), "lost"}),
		"types of themselves": boxed(linked{Value: linked{Value: *ring}, Next: &linked{Next: ring}, Peers: map[string]*linked{"a": ring, "b": {}}}),
		"types of each other": boxed(team{map[name]*player{"a": {[]team{{}, {Rivals: []*team{{}}}}}, "b": {}}, []*team{{}}}),
		"fields that gob leaves out": boxed(struct {
			A device
			B []device
			C *device
		}{device{Name: "a", Ready: make(chan bool), Open: func() {}, fd: 3}, []device{{}}, &device{Name: "c"}}),
		"empty structs": boxed(struct {
			A blank
			B []blank
			C map[string]blank
			D map[blank]blank
			E [2]*blank
			F struct{}
		}{B: make([]blank, 3), C: map[string]blank{"a": {}}, D: map[blank]blank{{}: {}}, E: [2]*blank{{}, {}}}),
		"zero values": boxed(struct {
			A int
			B string
			C inner
			D [2]inner
			E []inner
			F map[string]inner
			G any
			H *int
			I bool
			J audited
		}{}),
		"generic types":               boxed(box[map[string]box[[]box[int]]]{map[string]box[[]box[int]]{"a": {[]box[int]{{1}, {}}}}}),
		"a number that writes itself": marker(3),
		"bytes with a name":           raw{0, 255},
		"a bool":                      bit(false),
		"a pointer to a map":          &atree{"a": nil},
	}
}

type (
	marker uint16
	raw    []octet
	bit    bool
	atree  map[string]atree
)

func (marker) Run() {}
func (raw) Run()    {}
func (bit) Run()    {}
func (atree) Run()  {}

func (f marker) GobEncode() ([]byte, error)   { return []byte{byte(f), 0}, nil }
func (f *marker) GobDecode(data []byte) error { *f = marker(data[0]); return nil }

func (p polygon) pointer() *polygon { return &p }

func init() {
	for _, v := range []job{marker(0), raw{}, bit(false), &atree{}} {
		gob.Register(v)
	}
}

func TestValuesOfRealTypesComeBackAsFromGob(t *testing.T) {
	t.Parallel()
	var d Decoder[job]
	for what, v := range realValues() {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			for range 2 { // with a plan the second time
				row, err := Encode(v)
				require.NoError(t, err)
				want, err := fresh(row)
				require.NoError(t, err)
				got, err := d.Decode(row)
				require.NoError(t, err)
				require.True(t, reflect.DeepEqual(want, got), "want %#v\ngot  %#v", want, got)
			}
		})
	}
}

// A type changes between the program that stores a job and the one that reads it.
func TestRowsOfFormerTypesComeBackAsFromGob(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 2, 28, 12, 0, 0, 0, time.UTC)
	for what, c := range map[string]struct {
		before, now job
		fits        bool
	}{
		"a field more": {boxed(struct{ A int }{1}), boxed(struct{ A, B int }{}), true},
		"a field less": {boxed(struct{ A, B int }{1, 2}), boxed(struct{ B int }{}), true},
		"fields in another order": {boxed(struct {
			A int
			B string
		}{1, "b"}), boxed(struct {
			B string
			A int
		}{}), true},
		"no field in common":        {boxed(struct{ A int }{1}), boxed(struct{ B int }{}), true}, // of a field: gob minds only what interfaces hold
		"a field that does not fit": {boxed(struct{ A int }{1}), boxed(struct{ A string }{}), false},
		"an unset one": {boxed(struct{ A, B int }{A: 1}), boxed(struct {
			A int
			B string
		}{}), false},
		"a wider int":               {boxed(int8(-1)), boxed(int64(0)), true},
		"a narrower int":            {boxed(int64(127)), boxed(int8(0)), true},
		"an int that overflows":     {boxed([]int64{128}), boxed([]int8{}), false},
		"a uint that overflows":     {boxed(map[string]uint{"a": 1 << 32}), boxed(map[string]uint32{}), false},
		"a float that overflows":    {boxed([]float64{1e300}), boxed([]float32{}), false},
		"a complex that overflows":  {boxed(complex(0, 1e300)), boxed(complex64(0)), false},
		"an int for a uint":         {boxed(1), boxed(uint(1)), false},
		"a value for a pointer":     {boxed([]inner{{Name: "a"}, {}}), boxed([]***inner{}), true},
		"a pointer for a value":     {boxed(map[string]*inner{"a": {Name: "a"}}), boxed(map[string]inner{}), true},
		"a nil pointer for a value": {boxed((*int)(nil)), boxed(0), true},
		"an embedded field moves out": {boxed(struct{ ID, N int }{1, 2}), boxed(struct {
			withID
			N int
		}{}), true},
		"an embedded nil pointer": {boxed(struct{ ID, N int }{1, 2}), boxed(struct {
			*Base
			N int
		}{}), false},
		"a field embedded twice": {boxed(struct{ ID, N int }{1, 2}), boxed(struct {
			withID
			Base
			N int
		}{}), true},
		"bytes for octets":     {boxed([]byte{1, 2}), boxed(octets{}), true},
		"an array for a slice": {boxed([2]int{1, 2}), boxed([]int{}), false},
		"a longer array":       {boxed([2]int{1, 2}), boxed([3]int{}), false},
		"a time for a struct":  {boxed(at), boxed(inner{}), false},
		"a time that is gone": {boxed(struct {
			A time.Time
			B int
		}{at, 2}), boxed(struct{ B int }{}), true},
		"a time for a number":                          {boxed(at), boxed(level(0)), false},
		"a type begins to write itself":                {boxed(1), boxed(level(0)), false},
		"an interface for a value":                     {boxed[any](1), boxed(1), false},
		"a value for an interface":                     {boxed(square{1}), boxed[shape](nil), false},
		"another interface":                            {boxed[any](square{1}), boxed[shape](nil), true},
		"another interface that it does not implement": {boxed[any](1), boxed[shape](nil), false},
		"a field becomes a function": {boxed(struct{ A, B int }{1, 2}), boxed(struct {
			A int
			B func()
		}{}), false},
		"a field becomes private": {boxed(struct{ Hidden, B int }{1, 2}), boxed(struct{ hidden, B int }{}), true},
		"fields of all kinds are gone": {boxed(struct {
			A int
			B []map[string]*inner
			C [2][]byte
			D time.Time
			E complex128
			F float32
			G linked
			H team
			I level
			J [3]struct{}
			K string
		}{1, []map[string]*inner{{"a": {}}}, [2][]byte{{1}, nil}, at, 1i, 2, linked{Next: &linked{}}, team{Rivals: []*team{{}}}, 3, [3]struct{}{}, "k"}), boxed(struct{ K string }{}), true},
		"a struct without fields":     {boxed(inner{Name: "a"}), boxed(struct{}{}), true},
		"only private fields":         {boxed(inner{Name: "a"}), boxed(quiet{}), true},
		"the inner types change":      {boxed(map[inner][]struct{ A, B int }{{Name: "a"}: {{1, 2}}}), boxed(map[struct{ Name string }][]struct{ B int16 }{}), true},
		"a type of itself changes":    {boxed(linked{Next: &linked{Value: 1}}), boxed(struct{ Next *struct{ Next *linked } }{}), true},
		"a number no longer":          {bit(true), raw{}, false},
		"a job without common fields": {boxed(1), strange{}, false},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			row, err := Encode(c.before)
			require.NoError(t, err)
			row = rename(row, nameOf(c.now))
			want, wantErr := fresh(row)
			require.Equal(t, c.fits, wantErr == nil, wantErr)
			var d Decoder[job]
			for range 2 {
				got, err := d.Decode(row)
				require.Equal(t, c.fits, err == nil, err)
				require.True(t, reflect.DeepEqual(want, got), "want %#v\ngot  %#v", want, got)
			}
		})
	}
}

type strange struct{ W int }

func (strange) Run() {}

func init() { gob.Register(strange{}) }

func TestAFieldThatDoesNotFitIsNamed(t *testing.T) {
	t.Parallel()
	type (
		step  struct{ Rate int }
		steps struct{ Steps []map[string]*step }
	)
	row, err := Encode(boxed(struct{ Plan steps }{}))
	require.NoError(t, err)
	row = rename(row, nameOf(boxed(struct {
		Plan struct {
			Steps []map[string]struct{ Rate string }
		}
	}{})))
	_, err = new(Decoder[job]).Decode(row)
	require.ErrorIs(t, err, errMismatch)
	require.EqualError(t, err, "field V.Plan.Steps.Rate: a type that differs from the program's: the row holds an int for a string")
}

func TestRowsThatGobMisreadsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	type (
		first  struct{ X int }
		second struct{ Y, X int }
		both   struct{ X, Y int }
	)
	for what, c := range map[string]struct{ before, now, want job }{
		"two types are one now": {
			boxed(struct {
				A []first
				B []second
			}{[]first{{1}, {2}}, []second{{3, 4}, {5, 0}}}),
			boxed(struct{ A, B []both }{}),
			boxed(struct{ A, B []both }{[]both{{1, 0}, {2, 0}}, []both{{4, 3}, {0, 5}}}),
		},
		"an interface value inside another is gone": {
			boxed(struct {
				A any
				B string
			}{linked{Value: square{3}}, "b"}),
			boxed(struct{ B string }{}),
			boxed(struct{ B string }{"b"}),
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			row, err := Encode(c.before)
			require.NoError(t, err)
			row = rename(row, nameOf(c.now))
			if read, err := fresh(row); err == nil && reflect.DeepEqual(c.want, read) {
				t.Log("this release of gob reads it, too")
			}
			var d Decoder[job]
			for range 2 {
				got, err := d.Decode(row)
				require.NoError(t, err)
				require.Equal(t, c.want, got)
			}
		})
	}
}

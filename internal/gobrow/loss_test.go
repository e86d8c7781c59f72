package gobrow

import (
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

type (
	optional struct {
		DryRun *bool
		Limit  *int
		Name   *string
		Since  *time.Duration
		Level  *inner
		Deep   **int
		List   *[]int
		Dict   *map[string]int
		Fixed  *[2]int
		Any    *any
		At     *time.Time
		Sum    *big.Int
		N      *int
	}
	holder struct {
		Slice  []optional
		Ptrs   []*optional
		Array  [2]optional
		Map    map[string]optional
		ByID   map[int]*optional
		Nested struct{ Inner optional }
		V      any
		Vs     []any
		Jobs   map[string]job
		Keys   map[any]optional
		ByPtr  map[*int]optional
		Floats map[float64]*int
		optional
	}
	options struct{ Level int }
)

func (*optional) Run() {}
func (*holder) Run()   {}

func init() {
	gob.Register(&optional{})
	gob.Register(&holder{})
	gob.Register(options{})
	gob.Register([]any{})
}

// lossOf is what Loss says of a value and its row.
func lossOf(t testing.TB, v job) error {
	row, err := Encode(v)
	require.NoError(t, err)
	got, err := new(Decoder[job]).Decode(row)
	require.NoError(t, err)
	return Loss(v, got)
}

func TestLossNamesThePartsThatWouldNotComeBack(t *testing.T) {
	t.Parallel()
	var no bool
	var zero int
	var none *int
	var empty string
	var noSlice []int
	var noMap map[string]int
	var nothing any
	bad := optional{Limit: &zero}
	for name, c := range map[string]struct {
		v     job
		parts []string
	}{
		"bool":               {&optional{DryRun: &no}, []string{"field DryRun"}},
		"string and int":     {&optional{Name: &empty, N: &zero}, []string{"field Name", "field N"}},
		"duration":           {&optional{Since: new(time.Duration)}, []string{"field Since"}},
		"pointer to nil":     {&optional{Deep: &none}, []string{"field Deep"}},
		"empty slice":        {&optional{List: &[]int{}}, []string{"field List"}},
		"nil slice":          {&optional{List: &noSlice}, []string{"field List"}},
		"nil map":            {&optional{Dict: &noMap}, []string{"field Dict"}},
		"nil interface":      {&optional{Any: &nothing}, []string{"field Any"}},
		"in a slice":         {&holder{Slice: []optional{{}, bad}}, []string{"field Slice[1].Limit"}},
		"behind a pointer":   {&holder{Ptrs: []*optional{&bad}}, []string{"field Ptrs[0].Limit"}},
		"in an array":        {&holder{Array: [2]optional{1: bad}}, []string{"field Array[1].Limit"}},
		"in a map":           {&holder{Map: map[string]optional{"a b": bad}}, []string{`field Map["a b"].Limit`}},
		"in a map by number": {&holder{ByID: map[int]*optional{7: &bad}}, []string{"field ByID[7].Limit"}},
		"in a struct":        {&holder{Nested: struct{ Inner optional }{bad}}, []string{"field Nested.Inner.Limit"}},
		"in an interface":    {&holder{V: &bad}, []string{"field V.Limit"}},
		"in interfaces":      {&holder{Vs: []any{[]any{&bad}}}, []string{"field Vs[0][0].Limit"}},
		"in a job in a job":  {&holder{Jobs: map[string]job{"x": &bad}}, []string{`field Jobs["x"].Limit`}},
		"by any key":         {&holder{Keys: map[any]optional{"k": bad}}, []string{`field Keys[k].Limit`}},
		"another pointer":    {&holder{Vs: []any{&reminder{}}}, []string{"field Vs[0] holds a *gobrow.reminder, and would come back as gobrow.reminder, which"}},
		"another type":       {&holder{V: &options{1}}, []string{"field V holds a *gobrow.options, and would come back as gobrow.options, which"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			loss := lossOf(t, c.v)
			require.Error(t, loss)
			parts := strings.Split(loss.Error(), "; ")
			require.Len(t, parts, len(c.parts), loss)
			for i, part := range c.parts {
				require.True(t, strings.HasPrefix(parts[i]+" ", part+" "), loss)
			}
		})
	}
}

func TestLossListsTheFirstOfMany(t *testing.T) {
	t.Parallel()
	many := &holder{Slice: make([]optional, 100)}
	for i := range many.Slice {
		many.Slice[i].N = new(int)
	}
	loss := lossOf(t, many)
	require.Error(t, loss)
	require.Len(t, strings.Split(loss.Error(), "; "), maxLosses)
}

func TestNothingIsLostOf(t *testing.T) {
	t.Parallel()
	one, key := 1, 1
	now := time.Now()
	require.Contains(t, now.String(), "m=", "with a monotonic part")
	for name, v := range map[string]job{
		"nil pointers":                &optional{},
		"pointers to values":          &optional{N: &one, List: &[]int{0}, Any: ptr[any](2)},
		"a pointer to a struct":       &optional{Level: &inner{}},
		"a pointer to an array":       &optional{Fixed: &[2]int{}},
		"a pointer to an empty map":   &optional{Dict: &map[string]int{}},
		"types that write themselves": &optional{At: &time.Time{}, Sum: new(big.Int)},
		"a time with all its parts":   &optional{At: &now},
		"empty slices and maps":       &holder{Slice: []optional{}, Map: map[string]optional{}},
		"zeros in slices and maps":    &sliced{Ptrs: []*inner{{}}, Ints: []int{0}},
		"NaN":                         scalars{F64: math.NaN()},
		"a key of NaN":                &holder{Floats: map[float64]*int{math.NaN(): &one}},
		"a key that is a pointer":     &holder{ByPtr: map[*int]optional{&key: {N: &one}}},
		"unexported fields":           &private{cached: "x", Notify: make(chan int), Do: func() {}},
		"an embedded unexported type": &holder{optional: optional{N: new(int)}},
		"a value in an interface":     &holder{V: options{}, Vs: []any{nil, 0, "", options{}}},
		"a number":                    number(0),
		"a pointer among jobs":        &holder{Jobs: map[string]job{"x": &reminder{"hello", 3}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, lossOf(t, v))
		})
	}
}

func ptr[T any](v T) *T { return &v }

// Of random values: what Loss finds is what reflect.DeepEqual finds, once what
// is the same to Loss has been made the same.
func TestLossFindsWhatDeepEqualFinds(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewSource(1))
	lost, kept := 0, 0
	for range 500 {
		for _, v := range []job{ptr(random[pointed](r)), ptr(random[optional](r))} {
			if o, ok := v.(*optional); ok {
				o.Sum, o.At, o.Any = nil, nil, nil
			}
			row, err := Encode(v)
			require.NoError(t, err)
			got, err := new(Decoder[job]).Decode(row)
			require.NoError(t, err)
			equal := reflect.DeepEqual(reflect.Indirect(reflect.ValueOf(v)).Interface(), reflect.Indirect(reflect.ValueOf(got)).Interface())
			require.Equal(t, equal, Loss(v, got) == nil, "%+v %+v", v, got)
			if equal {
				kept++
			} else {
				lost++
			}
		}
	}
	require.NotZero(t, lost)
	require.NotZero(t, kept)
}

func TestPlainTypesPayNothingForLoss(t *testing.T) {
	plain, other := reminder{"hello", 3}, reminder{"hello", 3}
	require.False(t, factsOf(reflect.TypeOf(plain)).mayLose)
	require.Zero(t, testing.AllocsPerRun(100, func() { _ = Loss(&plain, &other) }))
}

func TestEncodeNamesTheTypeThatIsNotRegistered(t *testing.T) {
	t.Parallel()
	type unknown struct{ N int }
	for name, c := range map[string]struct {
		v  job
		t  any
		at string
	}{
		"itself":            {unregistered{}, unregistered{}, ""},
		"a field":           {&dynamic{V: unknown{}}, unknown{}, "field V"},
		"a pointer":         {&dynamic{V: &unknown{}}, &unknown{}, "field V"},
		"a slice":           {&dynamic{Map: map[string]any{"tags": []inner{{}}}}, []inner{}, `field Map["tags"]`},
		"a map":             {&dynamic{Map: map[string]any{"m": map[string]int{"a": 1}}}, map[string]int{}, `field Map["m"]`},
		"a job in a job":    {&dynamic{Jobs: []job{reminder{}, unregistered{}}}, unregistered{}, "field Jobs[1]"},
		"deep":              {&dynamic{V: &dynamic{Map: map[string]any{"": unknown{}}}}, unknown{}, `field V.Map[""]`},
		"a key":             {&holder{Keys: map[any]optional{unknown{3}: {}}}, unknown{}, "field Keys[{3}]"},
		"a slice of slices": {&holder{Vs: []any{[]any{1, unknown{}}}}, unknown{}, "field Vs[0][1]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Encode(c.v)
			var unregistered *UnregisteredError
			require.ErrorAs(t, err, &unregistered)
			require.Equal(t, reflect.TypeOf(c.t), unregistered.Type)
			require.Equal(t, c.at, unregistered.At)
			require.ErrorContains(t, err, "not registered for interface")
		})
	}
}

func TestEncodeNamesTheElementThatIsNil(t *testing.T) {
	t.Parallel()
	for at, v := range map[string]job{
		"field Ptrs[1] is nil":  &holder{Ptrs: []*optional{{}, nil}},
		"field ByID[4] is nil":  &holder{ByID: map[int]*optional{4: nil}},
		"field V is nil":        &holder{V: (*optional)(nil)},
		"field Vs[0][0] is nil": &holder{Vs: []any{[]any{(*optional)(nil)}}},
		"field Ptrs[0] is nil":  &holder{Slice: []optional{{Deep: new(*int)}}, Ptrs: []*optional{nil}}, // gob leaves Deep out
	} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			_, err := Encode(v)
			require.ErrorContains(t, err, at)
		})
	}
}

func TestAnErrorOfAUserIsNotExplained(t *testing.T) {
	t.Parallel()
	said := errors.New("type not registered for interface: of mine")
	_, err := Encode[job](&failing{said})
	require.ErrorIs(t, err, said)
	require.False(t, errors.As(err, ptr((*UnregisteredError)(nil))))
}

type failing struct{ err error }

func (*failing) Run()                         {}
func (f *failing) GobEncode() ([]byte, error) { return nil, f.err }
func (*failing) GobDecode([]byte) error       { return nil }

func init() { gob.Register(&failing{}) }

func TestUnsentListsTheFieldsThatGobDrops(t *testing.T) {
	t.Parallel()
	type config struct {
		Level  int
		client *int
	}
	type node struct {
		Next *node
		seen bool
	}
	type mixed struct {
		Text    string
		_       [0]func()
		secret  string
		Notify  chan int
		Do      *func()
		Config  config
		Configs map[string][]*config
		List    node
		At      time.Time
		Sum     *big.Int
		Any     any
		inner
	}
	want := []string{"secret", "Notify", "Do", "Config.client", "List.seen", "inner"}
	require.Equal(t, want, Unsent(reflect.TypeFor[*mixed]()), fmt.Sprint(mixed{secret: "", Config: config{client: nil}, List: node{seen: false}}.Text))
	require.Empty(t, Unsent(reflect.TypeFor[reminder]()))
	require.Empty(t, Unsent(reflect.TypeFor[*secret]()), "it writes itself")
	require.Empty(t, Unsent(reflect.TypeFor[number]()))
}

package gobrow

import (
	"encoding/gob"
	"errors"
	"fmt"
	"math/big"
	"math/rand"
	"net/url"
	"reflect"
	"strings"
	"time"
)

// job is the interface that the rows of these tests hold.
type job interface{ Run() }

type (
	number  int64
	text    string
	scalars struct {
		B   bool
		I   int
		I8  int8
		I16 int16
		I32 int32
		I64 int64
		U   uint
		U8  uint8
		U64 uint64
		F32 float32
		F64 float64
		C64 complex64
		C   complex128
		S   string
		BS  []byte
		Ptr uintptr
	}
	inner  struct{ Name, Note string }
	nested struct {
		A, B  inner
		Deep  struct{ Deeper struct{ N int } }
		Left  []inner
		Right []inner
	}
	mapped struct {
		M  map[string]int
		MM map[string]map[int]inner
		MS map[inner][]string
		MP map[string]*inner
	}
	dictionary map[string]text
	list       []inner
	triple     [3]inner
	sliced     struct {
		Ints    []int
		Strings []string
		Structs []inner
		Ptrs    []*inner
		Nested  [][]float64
		Empty   []struct{}
		Bools   []bool
		Complex []complex64
	}
	arrayed struct {
		A [3]int
		B [2][2]inner
		C [4]byte
		D [0]int
	}
	pointed struct {
		I  *int
		S  **string
		T  *inner
		PP ***inner
	}
	timed struct {
		At    time.Time
		For   time.Duration
		Times []time.Time
		Maybe *time.Time
	}
	texted struct {
		N   big.Float
		I   *big.Int
		Tag tag
		URL url.URL
	}
	tag      struct{ Text string } // a text marshaler, which gob ignores
	secret   struct{ hidden string }
	secretly struct {
		S secret
		P *secret
		L []secret
		M map[string]secret
	}
	Base     struct{ ID int }
	embedded struct {
		Base
		inner
		Name string
	}
	recursive struct {
		V    int
		Next *recursive
	}
	tree struct {
		Kids []tree
		ByID map[int]*tree
	}
	nests   []nests
	dynamic struct {
		V    any
		Jobs []job
		Map  map[string]any
		Last string
	}
	empty   struct{}
	private struct {
		Public string
		cached string
		Notify chan int
		Do     func()
	}
)

func (number) Run()     {}
func (text) Run()       {}
func (scalars) Run()    {}
func (*nested) Run()    {}
func (mapped) Run()     {}
func (dictionary) Run() {}
func (list) Run()       {}
func (triple) Run()     {}
func (*sliced) Run()    {}
func (arrayed) Run()    {}
func (pointed) Run()    {}
func (*timed) Run()     {}
func (*texted) Run()    {}
func (*secret) Run()    {}
func (*secretly) Run()  {}
func (embedded) Run()   {}
func (*recursive) Run() {}
func (tree) Run()       {}
func (nests) Run()      {}
func (*dynamic) Run()   {}
func (empty) Run()      {}
func (*private) Run()   {}

func (t tag) MarshalText() ([]byte, error)  { return []byte(t.Text), nil }
func (t *tag) UnmarshalText(b []byte) error { t.Text = string(b); return nil }

func (s *secret) GobEncode() ([]byte, error) { return []byte(s.hidden), nil }

func (s *secret) GobDecode(b []byte) error {
	if strings.HasPrefix(string(b), "panic") {
		panic(string(b))
	}
	if strings.HasPrefix(string(b), "error") {
		return errors.New(string(b))
	}
	s.hidden = string(b)
	return nil
}

// samples makes a random value of each type.
var samples = []func(r *rand.Rand) job{
	func(r *rand.Rand) job { return number(r.Int63()) },
	func(r *rand.Rand) job { return text(word(r)) },
	func(r *rand.Rand) job { return random[scalars](r) },
	func(r *rand.Rand) job { v := random[nested](r); return &v },
	func(r *rand.Rand) job {
		v := random[mapped](r)
		for k, p := range v.MP {
			if p == nil {
				v.MP[k] = &inner{}
			}
		}
		return v
	},
	func(r *rand.Rand) job { return random[dictionary](r) },
	func(r *rand.Rand) job { return random[list](r) },
	func(r *rand.Rand) job { return random[triple](r) },
	func(r *rand.Rand) job {
		v := random[sliced](r)
		for i, p := range v.Ptrs {
			if p == nil {
				v.Ptrs[i] = &inner{}
			}
		}
		return &v
	},
	func(r *rand.Rand) job { return random[arrayed](r) },
	func(r *rand.Rand) job { return random[pointed](r) },
	func(r *rand.Rand) job {
		at := time.Unix(r.Int63n(1<<33), r.Int63n(1e9)).UTC()
		return &timed{At: at, For: time.Duration(r.Int63()), Times: make([]time.Time, r.Intn(3)), Maybe: &at}
	},
	func(r *rand.Rand) job {
		return &texted{
			N: *big.NewFloat(r.Float64()), I: big.NewInt(r.Int63()), Tag: tag{word(r)},
			URL: url.URL{Scheme: "https", Host: "h", Path: "/" + fmt.Sprint(r.Intn(100))},
		}
	},
	func(r *rand.Rand) job { return &secret{word(r)} },
	func(r *rand.Rand) job {
		return &secretly{secret{word(r)}, &secret{word(r)}, make([]secret, r.Intn(3)), map[string]secret{}}
	},
	func(r *rand.Rand) job { return embedded{Base{r.Intn(9)}, inner{}, word(r)} },
	func(r *rand.Rand) job {
		v := &recursive{V: r.Intn(100)}
		for range r.Intn(20) {
			v = &recursive{r.Intn(100), v}
		}
		return v
	},
	func(r *rand.Rand) job { return grow(r, 4) },
	func(r *rand.Rand) job { return nests{nil, nests{nil, nil}, make(nests, r.Intn(9))} },
	func(r *rand.Rand) job { return random[empty](r) },
	func(r *rand.Rand) job { return &private{Public: word(r), cached: "gone"} },
	func(r *rand.Rand) job {
		v := &dynamic{V: word(r), Last: word(r), Map: map[string]any{"n": 1, "nested": inner{Name: word(r)}}}
		if r.Intn(2) == 0 {
			v.V = &dynamic{V: inner{Note: word(r)}, Jobs: []job{empty{}, number(r.Intn(9))}}
		}
		for range r.Intn(3) {
			v.Jobs = append(v.Jobs, list{{Name: word(r)}}, dictionary{"k": "v"}, triple{}, &recursive{V: 1})
		}
		return v
	},
}

func grow(r *rand.Rand, depth int) tree {
	t := tree{ByID: map[int]*tree{}}
	for range r.Intn(depth + 1) {
		kid := grow(r, depth-1)
		t.Kids = append(t.Kids, kid)
		t.ByID[r.Intn(1000)] = &kid
	}
	return t
}

// random fills a T without interfaces.
func random[T any](r *rand.Rand) T {
	var v T
	fill(r, reflect.ValueOf(&v).Elem())
	return v
}

func fill(r *rand.Rand, v reflect.Value) {
	if r.Intn(5) == 0 {
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(r.Intn(2) == 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(r.Uint64() >> r.Intn(64)))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		v.SetUint(r.Uint64() >> r.Intn(64))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(r.NormFloat64())
	case reflect.Complex64, reflect.Complex128:
		v.SetComplex(complex(r.NormFloat64(), r.NormFloat64()))
	case reflect.String:
		v.SetString(word(r))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(r, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), r.Intn(5), 8))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			fill(r, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range r.Intn(4) {
			key, elem := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(r, key)
			fill(r, elem)
			v.SetMapIndex(key, elem)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(r, v.Field(i))
			}
		}
	}
}

func word(r *rand.Rand) string {
	return strings.Repeat(string(rune('a'+r.Intn(26))), r.Intn(12))
}

func init() {
	for _, sample := range samples {
		gob.Register(sample(rand.New(rand.NewSource(1))))
	}
	gob.Register(inner{})
}

package gobrow

import (
	"bytes"
	"encoding"
	"encoding/gob"
	"fmt"
	"reflect"
	"sync"
)

// Encode writes v as one row. Errors: v is nil, its type is not registered
// with gob, it contains itself or is nested deeper than MaxDepth, gob cannot
// encode it, or a method that gob calls on it panics.
func Encode[I any](v I) (row []byte, err error) {
	rv := reflect.ValueOf(v)
	if !rv.IsValid() {
		return nil, errNil
	}
	defer recoverTo(&err)
	if factsOf(rv.Type()).mayRecur {
		w := walker{left: maxEncoded}
		if w.walk(rv, 0); w.err != nil {
			return nil, w.err
		}
	}
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(&v); err != nil {
		return nil, err
	}
	row = buf.Bytes()
	if len(row) > checkedLength {
		s := scanner{row: row, mem: maxMemory}
		if err := s.scanRow(); err != nil {
			return nil, err
		}
	}
	return row, nil
}

func recoverTo(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("panic: %v", r)
	}
}

// facts is what the walk needs to know about a type.
type facts struct {
	writesItself bool  // gob calls a method on it, and looks no further
	readsItself  bool  // the same for reading
	mayRecur     bool  // a value may contain itself, or something of any type
	fields       []int // of a struct: those that gob writes
}

var factsCache sync.Map // reflect.Type → *facts

func factsOf(t reflect.Type) *facts {
	if f, ok := factsCache.Load(t); ok {
		return f.(*facts)
	}
	f := &facts{
		writesItself: implements(t, gobEncoder) || implements(t, binaryMarshaler),
		readsItself:  implements(t, gobDecoder) || implements(t, binaryUnmarshaler),
		mayRecur:     mayRecur(t, map[reflect.Type]bool{}),
	}
	if t.Kind() == reflect.Struct {
		for i := range t.NumField() {
			if sent(t.Field(i)) {
				f.fields = append(f.fields, i)
			}
		}
	}
	factsCache.Store(t, f)
	return f
}

var (
	gobEncoder        = reflect.TypeFor[gob.GobEncoder]()
	gobDecoder        = reflect.TypeFor[gob.GobDecoder]()
	binaryMarshaler   = reflect.TypeFor[encoding.BinaryMarshaler]()
	binaryUnmarshaler = reflect.TypeFor[encoding.BinaryUnmarshaler]()
)

// implements reports whether gob finds the method m on t, or along the pointers
// from or to it. It does not look for text marshalers, see
// golang.org/issue/6760.
func implements(t, m reflect.Type) bool {
	if t.Kind() != reflect.Pointer && reflect.PointerTo(t).Implements(m) {
		return true
	}
	for n := 0; t.Kind() == reflect.Pointer && n < maxIndirect && !t.Implements(m); n++ {
		t = t.Elem()
	}
	return t.Implements(m)
}

// maxIndirect is how many pointers gob follows to a method.
const maxIndirect = 100

func sent(f reflect.StructField) bool {
	t := f.Type
	for n := 0; t.Kind() == reflect.Pointer && n < maxIndirect; n++ {
		t = t.Elem()
	}
	return f.IsExported() && t.Kind() != reflect.Chan && t.Kind() != reflect.Func
}

// mayRecur reports whether what gob writes of t leads back to t or to an
// interface. seen holds true for the types on the path and false for those
// that are known not to.
func mayRecur(t reflect.Type, seen map[reflect.Type]bool) bool {
	if onPath, ok := seen[t]; ok {
		return onPath
	}
	if implements(t, gobEncoder) || implements(t, binaryMarshaler) {
		return false
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Interface:
		return true
	case reflect.Map:
		if mayRecur(t.Key(), seen) || mayRecur(t.Elem(), seen) {
			return true
		}
	case reflect.Pointer, reflect.Slice, reflect.Array:
		if mayRecur(t.Elem(), seen) {
			return true
		}
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); sent(f) && mayRecur(f.Type, seen) {
				return true
			}
		}
	}
	seen[t] = false
	return false
}

// walker follows a value as gob would, with a bound on depth and work. left
// counts down by no more than the bytes that gob is certain to write. The first
// error stays in err and ends the walk.
type walker struct {
	left int
	err  error
}

func (w *walker) walk(v reflect.Value, depth int) {
	for n := 0; v.Kind() == reflect.Pointer; v, n = v.Elem(), n+1 {
		if n > MaxDepth { // type T *T
			w.err = errDepth
		}
		if v.IsNil() || factsOf(v.Type()).writesItself || w.err != nil {
			return
		}
	}
	size := 1
	switch v.Kind() {
	case reflect.String:
		w.spend(v.Len())
		return
	case reflect.Interface:
		if v.IsNil() {
			return
		}
	case reflect.Map, reflect.Slice, reflect.Array:
		if size = v.Len(); size == 0 {
			return
		}
	case reflect.Struct:
	default:
		return
	}
	f := factsOf(v.Type())
	if f.writesItself {
		return
	}
	if depth++; depth > MaxDepth {
		w.err = errDepth
	}
	if w.spend(size); w.err != nil {
		return
	}
	switch v.Kind() {
	case reflect.Interface:
		w.walk(v.Elem(), depth)
	case reflect.Struct:
		for _, i := range f.fields {
			w.walk(v.Field(i), depth)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next() && w.err == nil; {
			w.walk(it.Key(), depth)
			w.walk(it.Value(), depth)
		}
	default:
		if v.Type().Elem().Kind() < reflect.Array { // numbers
			return
		}
		for i := 0; i < size && w.err == nil; i++ {
			w.walk(v.Index(i), depth)
		}
	}
}

func (w *walker) spend(n int) {
	if w.left -= n; w.left < 0 && w.err == nil {
		w.err = errEncodedSize
	}
}

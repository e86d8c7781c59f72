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
		if err := w.walk(rv, 0); err != nil {
			return nil, err
		}
	}
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(&v); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func recoverTo(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("panic: %v", r)
	}
}

// facts is what the walk needs to know about a type.
type facts struct {
	opaque   bool  // writes itself: gob looks no further
	mayRecur bool  // a value may contain itself, or something of any type
	fields   []int // of a struct: those that gob writes
}

var factsCache sync.Map // reflect.Type → *facts

func factsOf(t reflect.Type) *facts {
	if f, ok := factsCache.Load(t); ok {
		return f.(*facts)
	}
	f := &facts{opaque: opaque(t, gobEncoder, binaryMarshaler)}
	f.mayRecur = mayRecur(t, map[reflect.Type]bool{})
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

// opaque reports whether gob calls one of the methods instead of looking into
// t. Text marshalers do not count: gob leaves them alone, see
// golang.org/issue/6760.
func opaque(t reflect.Type, methods ...reflect.Type) bool {
	for _, m := range methods {
		if t.Kind() != reflect.Pointer && reflect.PointerTo(t).Implements(m) {
			return true
		}
		for p, n := t, 0; n <= maxIndirect; p, n = p.Elem(), n+1 {
			if p.Implements(m) {
				return true
			}
			if p.Kind() != reflect.Pointer {
				break
			}
		}
	}
	return false
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
	if opaque(t, gobEncoder, binaryMarshaler) {
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
// counts down by no more than the bytes that gob is certain to write.
type walker struct{ left int }

func (w *walker) walk(v reflect.Value, depth int) error {
	for n := 0; v.Kind() == reflect.Pointer; v, n = v.Elem(), n+1 {
		if v.IsNil() || factsOf(v.Type()).opaque {
			return nil
		}
		if n > MaxDepth { // type T *T
			return errDepth
		}
	}
	switch v.Kind() {
	case reflect.String:
		return w.spend(v.Len())
	case reflect.Interface:
		if v.IsNil() {
			return nil
		}
	case reflect.Map, reflect.Slice, reflect.Array:
		if v.Len() == 0 {
			return nil
		}
	case reflect.Struct:
	default:
		return nil
	}
	f := factsOf(v.Type())
	if f.opaque {
		return nil
	}
	if depth++; depth > MaxDepth {
		return errDepth
	}
	switch v.Kind() {
	case reflect.Interface:
		if err := w.spend(1); err != nil {
			return err
		}
		return w.walk(v.Elem(), depth)
	case reflect.Struct:
		if err := w.spend(1); err != nil {
			return err
		}
		for _, i := range f.fields {
			if err := w.walk(v.Field(i), depth); err != nil {
				return err
			}
		}
		return nil
	}
	if err := w.spend(v.Len()); err != nil {
		return err
	}
	if v.Kind() == reflect.Map {
		for it := v.MapRange(); it.Next(); {
			if err := w.walk(it.Key(), depth); err != nil {
				return err
			}
			if err := w.walk(it.Value(), depth); err != nil {
				return err
			}
		}
		return nil
	}
	if v.Type().Elem().Kind() < reflect.Array { // numbers
		return nil
	}
	for i := range v.Len() {
		if err := w.walk(v.Index(i), depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) spend(n int) error {
	if w.left -= n; w.left < 0 {
		return errEncodedSize
	}
	return nil
}

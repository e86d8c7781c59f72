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
	f := factsOf(rv.Type())
	if f.mayRecur {
		w := walker{left: maxEncoded}
		if w.walk(rv, 0); w.err != nil {
			return nil, w.err
		}
	}
	s, _ := f.idle.Get().(*sender)
	if s == nil {
		s = newSender()
	}
	// After an error it has sent who knows what, and is not used again.
	s.buf.Reset()
	if err := s.enc.Encode(&v); err != nil {
		return nil, explain(err, rv)
	}
	row = s.row()
	if !f.mayRecur && s.sent && len(row) <= checkedLength {
		f.idle.Put(s)
	}
	if len(row) > checkedLength {
		s := scanner{row: row, mem: maxMemory}
		if err := s.scanRow(); err != nil {
			return nil, err
		}
	}
	return row, nil
}

// sender is a gob encoder for one type of which the definitions are the same for
// every value. gob sends them once for each encoder, and most of the time of the
// first value goes into them; the sender puts them before each later one.
type sender struct {
	enc  *gob.Encoder
	buf  bytes.Buffer // what enc has written since the last row
	sent bool         // definitions and header are known
	// definitions is the row up to the message of the value, and header what
	// gob writes in their place once it has sent them. Without definitions
	// every row is as gob writes it.
	definitions, header []byte
}

func newSender() *sender {
	s := &sender{}
	s.enc = gob.NewEncoder(&s.buf)
	return s
}

// row returns what a new encoder would have written for the value.
func (s *sender) row() []byte {
	if !s.sent {
		p, ok := split(s.buf.Bytes())
		if s.sent = ok; ok && len(p.key) > len(p.header) {
			s.definitions, s.header = bytes.Clone(p.key), bytes.Clone(p.header)
		}
		return bytes.Clone(s.buf.Bytes())
	}
	if s.definitions == nil {
		return bytes.Clone(s.buf.Bytes())
	}
	m := scanner{row: s.buf.Bytes()}
	m.message()
	body := bytes.TrimPrefix(m.row[m.pos:], s.header)
	row := make([]byte, 0, len(s.definitions)+9+len(body))
	row = append(row, s.definitions...)
	row = appendUint(row, uint64(len(body)))
	return append(row, body...)
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
	mayLose      bool  // a value may come back otherwise, see Loss
	fields       []int // of a struct: those that gob writes

	idle sync.Pool // *sender, unless mayRecur: then definitions depend on the value
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
		mayLose:      mayLose(t, map[reflect.Type]bool{}),
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

// mayLose reports whether what gob writes of t has pointers or interfaces.
func mayLose(t reflect.Type, seen map[reflect.Type]bool) bool {
	if seen[t] {
		return false
	}
	seen[t] = true
	if implements(t, gobEncoder) || implements(t, binaryMarshaler) {
		return false
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Interface:
		return true
	case reflect.Map:
		return mayLose(t.Key(), seen) || mayLose(t.Elem(), seen)
	case reflect.Slice, reflect.Array:
		return mayLose(t.Elem(), seen)
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); sent(f) && mayLose(f.Type, seen) {
				return true
			}
		}
	}
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

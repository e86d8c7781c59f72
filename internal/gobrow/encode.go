package gobrow

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"reflect"
	"strings"
)

// Encode writes v as one row. Errors: v is nil, its type is not registered
// with gob, it contains itself or is nested too deeply, gob cannot
// encode it, or a method that gob calls on it panics.
func Encode[I any](v I) (row []byte, err error) {
	rv := reflect.ValueOf(v)
	if !rv.IsValid() {
		return nil, errNil
	}
	defer recoverTo(&err)
	f := factsOf(rv.Type())
	if f.mayRecur {
		(&walker{left: maxEncoded}).walk(rv, 0)
	}
	s, _ := f.idle.Get().(*sender)
	if s == nil {
		s = &sender{}
		s.enc = gob.NewEncoder(&s.buf)
	}
	// After an error it has sent who knows what, and is not used again.
	s.buf.Reset()
	if err := s.enc.Encode(&v); err != nil {
		return nil, explain(err, rv)
	}
	row = s.row()
	if !f.mayRecur {
		f.idle.Put(s)
	}
	return row, nil
}

// sender is a gob encoder for one type of which the definitions are the same for
// every value. gob sends them once for each encoder, and most of the time of the
// first value goes into them; the sender puts them before each later one.
type sender struct {
	enc         *gob.Encoder
	buf         bytes.Buffer // what enc has written since the last row
	used        bool
	definitions []byte // of the first row; nil if the type needs none
}

// row returns what a new encoder would have written for the value.
func (s *sender) row() []byte {
	h := newReader(s.buf.Bytes()).head(false)
	if !s.used {
		s.used, s.definitions = true, bytes.Clone(h.definitions)
		return bytes.Clone(s.buf.Bytes())
	}
	if s.definitions == nil {
		return bytes.Clone(s.buf.Bytes())
	}
	value := s.buf.Bytes()[h.at:] // without the name, which the definitions begin with
	row := make([]byte, 0, len(s.definitions)+9+len(value))
	row = append(row, s.definitions...)
	return append(appendUint(row, uint64(len(value))), value...)
}

// walker follows a value as gob would, with a bound on depth and work. left
// counts down by no more than the bytes that gob is certain to write.
type walker struct{ left int }

// walk panics with a failure.
func (w *walker) walk(v reflect.Value, depth int) {
	for n := 0; v.Kind() == reflect.Pointer; v, n = v.Elem(), n+1 {
		if v.IsNil() || factsOf(v.Type()).writesItself {
			return
		}
		if n > maxDepth { // type T *T
			fail(errDepth)
		}
	}
	size := 1 // at least so many bytes
	switch v.Kind() {
	case reflect.String, reflect.Map, reflect.Slice, reflect.Array:
		size = v.Len()
	case reflect.Struct:
	case reflect.Interface:
		if v.IsNil() {
			return
		}
	default:
		return
	}
	if size == 0 || factsOf(v.Type()).writesItself {
		return
	}
	if w.left -= size; w.left < 0 {
		fail(errEncodedSize)
	}
	if kind := v.Kind(); kind == reflect.String || (kind == reflect.Slice || kind == reflect.Array) && v.Type().Elem().Kind() < reflect.Array {
		return // characters and numbers
	}
	if depth++; depth > maxDepth {
		fail(errDepth)
	}
	for _, part := range inside(v) {
		w.walk(part, depth)
	}
}

// UnregisteredError says that a type is not registered with gob.
type UnregisteredError struct {
	// Type is the type to register.
	Type reflect.Type
	// At leads to the value of that type, such as "field Payload[\"tags\"]". It
	// is empty for the whole value.
	At string
	// Err is gob's error.
	Err error
}

// Error names the type and where it stands.
func (e *UnregisteredError) Error() string {
	if e.At == "" {
		return fmt.Sprintf("%s: %v", e.Type, e.Err)
	}
	return fmt.Sprintf("%s in %s: %v", e.Type, e.At, e.Err)
}

// Unwrap returns Err.
func (e *UnregisteredError) Unwrap() error { return e.Err }

// explain says of gob's error which part of v it is about, if it is one of those
// that do not say so.
func explain(err error, v reflect.Value) error {
	text := fmt.Sprint(err)
	if _, name, ok := strings.Cut(text, "type not registered for interface: "); ok {
		found, at := find(v, reflect.Interface, func(v reflect.Value, parent reflect.Kind) bool {
			return parent == reflect.Interface && base(v.Type()).String() == name
		})
		if found.IsValid() {
			return &UnregisteredError{Type: found.Type(), At: described(at, ""), Err: err}
		}
	}
	if strings.Contains(text, "nil element") || strings.Contains(text, "nil pointer") {
		_, at := find(v, reflect.Interface, func(v reflect.Value, parent reflect.Kind) bool {
			return v.Kind() == reflect.Pointer && v.IsNil() && parent != reflect.Struct
		})
		if at != "" {
			return fmt.Errorf("%s is nil: %w", described(at, ""), err)
		}
	}
	return err
}

// find returns the first part of v that matches, in the order in which gob writes
// them, and the path to it. The value must not contain itself.
func find(v reflect.Value, parent reflect.Kind, match func(part reflect.Value, parent reflect.Kind) bool) (found reflect.Value, at string) {
	if match(v, parent) {
		return v, ""
	}
	if factsOf(v.Type()).writesItself {
		return nothing, ""
	}
	for step, part := range inside(v) {
		if found, at := find(part, v.Kind(), match); found.IsValid() {
			return found, step.String() + at
		}
	}
	return nothing, ""
}

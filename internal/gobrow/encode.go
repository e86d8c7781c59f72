package gobrow

import (
	"bytes"
	"cmp"
	"encoding/gob"
	"fmt"
	"reflect"
	"strings"
)

// UnregisteredError is an error of gob: a type is not registered.
type UnregisteredError struct {
	error
	// Type is the type to register.
	Type reflect.Type
	// At leads to the value of that type, such as "field Payload[\"tags\"]". It
	// is empty for the whole value.
	At string
}

// Unwrap returns gob's error.
func (e *UnregisteredError) Unwrap() error { return e.error }

// sender is a gob encoder for one type of which the definitions are the same for
// every value. gob sends them once for each encoder, and most of the time of the
// first value goes into them; the sender puts them before each later one.
type sender struct {
	enc         *gob.Encoder
	buf         bytes.Buffer // what enc has written since the last row
	definitions []byte       // nil if the type needs none
}

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
		check(rv)
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

// check fails of a value that gob would write without end, or beyond any stored job.
func check(v reflect.Value) {
	left := maxEncoded // bytes, of which gob writes at least so many
	walk(v, newPath(), func(v reflect.Value, at path) bool {
		size := 0
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() && base(v.Type()).Kind() == reflect.Pointer { // type T *T
				fail(errDepth)
			}
		case reflect.Struct:
			size = 1
		case reflect.String, reflect.Array, reflect.Slice, reflect.Map:
			size = v.Len()
		}
		if size > 0 && !factsOf(v.Type()).writesItself {
			left -= size
		}
		if left < 0 {
			fail(errEncodedSize)
		}
		if len(at) > maxDepth {
			fail(errDepth)
		}
		return true
	})
}

// explain says of gob's error which part of v it is about, if it is one of those
// that do not say so.
func explain(err error, v reflect.Value) error {
	text := fmt.Sprint(err)
	_, name, unregistered := strings.Cut(text, "type not registered for interface: ")
	isNil := strings.Contains(text, "nil element") || strings.Contains(text, "nil pointer")
	if !unregistered && !isNil {
		return err
	}
	var explained error
	walk(v, newPath(), func(v reflect.Value, at path) bool {
		last := at.last()
		inInterface := last.field == nil && !last.key.IsValid()
		switch {
		case explained != nil:
		case unregistered && inInterface && base(v.Type()).String() == name:
			explained = &UnregisteredError{err, v.Type(), at.String()}
		case isNil && v.Kind() == reflect.Pointer && v.IsNil() && last.field == nil && at.String() != "":
			explained = fmt.Errorf("%s is nil: %w", at, err)
		}
		return explained == nil
	})
	return cmp.Or(explained, err)
}

// row returns what a new encoder would have written for the value.
func (s *sender) row() []byte {
	h := newReader(s.buf.Bytes()).head(false)
	if h.definitions != nil { // in the first row only
		s.definitions = bytes.Clone(h.definitions)
	}
	if s.definitions == nil {
		return bytes.Clone(s.buf.Bytes())
	}
	value := s.buf.Bytes()[h.at:] // without the name, which the definitions begin with
	row := make([]byte, 0, len(s.definitions)+9+len(value))
	row = append(row, s.definitions...)
	return append(appendUint(row, uint64(len(value))), value...)
}

package gobrow

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"reflect"
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
	size := 1 // at least so many bytes
	switch v.Kind() {
	case reflect.String:
		w.spend(v.Len())
		return
	case reflect.Map, reflect.Slice, reflect.Array:
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
	if depth++; depth > MaxDepth {
		w.err = errDepth
	}
	w.spend(size)
	if kind := v.Kind(); (kind == reflect.Slice || kind == reflect.Array) && v.Type().Elem().Kind() < reflect.Array {
		return // numbers
	}
	for _, part := range inside(v) {
		if w.err != nil {
			return
		}
		w.walk(part, depth)
	}
}

func (w *walker) spend(n int) {
	if w.left -= n; w.left < 0 && w.err == nil {
		w.err = errEncodedSize
	}
}

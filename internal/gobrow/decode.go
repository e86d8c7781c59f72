package gobrow

import (
	"bytes"
	"encoding/gob"
	"maps"
	"sync"
	"sync/atomic"
)

// Decoder turns rows into values of interface type I, which must not have the
// methods GobDecode or UnmarshalBinary itself. Its zero value is ready to use,
// it may be used by several goroutines at once, and it needs no end.
//
// It keeps gob decoders that have compiled their definitions: for the first 256
// different sets of definitions, of 1 MiB together and 1024 types and fields
// each, and for a set no more decoders than have worked at the same time, until
// the garbage collector takes the idle ones. A set is added by a row that was
// decoded.
type Decoder[I any] struct {
	entries atomic.Pointer[map[string]*entry[I]] // copied for each change
	mu      sync.Mutex                           // held while entries changes
}

// entry is what rows with the same bytes before the value have in common.
type entry[I any] struct {
	id   int32 // the wire type of the value
	root *node
	idle sync.Pool // *warm[I]
}

// Decode returns the value of a row: what a new gob.Decoder would return, and
// an error where that would return one, or panic, or take time or memory out of
// proportion. It is also an error for a row to hold nil or bytes after the value.
func (d *Decoder[I]) Decode(row []byte) (v I, err error) {
	defer recoverTo(&err)
	l, known := split(row)
	if known {
		if e := d.entry(l.key); e != nil && e.id == l.id {
			s := scanner{row: row, pos: l.value, end: len(row), mem: maxMemory}
			if err := s.scanValue(e.root); err != nil {
				return v, err
			}
			if w, _ := e.idle.Get().(*warm[I]); w != nil {
				if v, err := w.decode(l.header, row[l.body:]); err == nil {
					e.idle.Put(w)
					return v, nil
				}
			}
		}
	}
	s := scanner{row: row, mem: maxMemory}
	if err := s.scanRow(); err != nil {
		return v, err
	}
	w := newWarm[I]()
	if v, err = w.decode(nil, row); err != nil {
		return v, err
	}
	if known && !s.interfaces && s.compiled <= maxKeptCompiled {
		d.keep(l, s.root, w)
	}
	return v, nil
}

func (d *Decoder[I]) entry(key []byte) *entry[I] {
	if m := d.entries.Load(); m != nil {
		return (*m)[string(key)]
	}
	return nil
}

// keep makes the decoder that has just read a row with layout l available to the
// next row like it, if there is room.
func (d *Decoder[I]) keep(l layout, root *node, w *warm[I]) {
	e := d.entry(l.key)
	if e == nil {
		e = d.add(l, root)
	}
	if e != nil && e.id == l.id {
		e.idle.Put(w)
	}
}

func (d *Decoder[I]) add(l layout, root *node) *entry[I] {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := map[string]*entry[I]{}
	if old := d.entries.Load(); old != nil {
		m = maps.Clone(*old)
	}
	size := len(l.key)
	for key := range m {
		size += len(key)
	}
	if m[string(l.key)] == nil && len(m) < maxKeys && size <= maxKeyBytes {
		m[string(l.key)] = &entry[I]{id: l.id, root: root}
		d.entries.Store(&m)
	}
	return m[string(l.key)]
}

// layout is where a row's definitions end and its value begins.
type layout struct {
	key    []byte // all that comes before the value's message
	header []byte // the type id of the interface, and the concrete type's name
	id     int32  // the wire type of the value
	body   int    // where that id stands
	value  int    // and where it ends
}

// split finds the layout of a row as Encode writes it: each definition fills the
// rest of its message. It does not read the definitions, so only an entry with
// the same key, which was made from a row that gob has read, says that they are
// sound.
func split(row []byte) (l layout, ok bool) {
	s := scanner{row: row}
	s.message()
	start := s.pos
	if s.int() != idInterface || s.uint() != 0 {
		return l, false
	}
	s.bytes()
	l.header = row[start:s.pos]
	l.key = l.header
	for s.err == nil {
		if s.pos == s.end {
			l.key = row[:s.end]
			s.message()
		}
		l.body = s.pos
		if l.id = int32(s.int()); l.id >= 0 {
			l.value = s.pos
			return l, s.err == nil && s.end == len(row)
		}
		s.pos = s.end
	}
	return l, false
}

// RegisteredName returns the name that the type of a row's value is registered
// under, and "" if the row does not begin as Encode's do.
func RegisteredName(row []byte) string {
	s := scanner{row: row}
	s.message()
	if s.int() != idInterface || s.uint() != 0 {
		return ""
	}
	return string(s.bytes())
}

// warm is a gob decoder and what it reads from.
type warm[I any] struct {
	dec *gob.Decoder
	in  bytes.Reader // an io.ByteReader: gob does not read ahead
	buf []byte
	out I
}

func newWarm[I any]() *warm[I] {
	w := &warm[I]{}
	w.dec = gob.NewDecoder(&w.in)
	return w
}

// decode decodes body, after header in one message if there is one. After an
// error the decoder must not be used again.
func (w *warm[I]) decode(header, body []byte) (v I, err error) {
	defer recoverTo(&err)
	if header != nil {
		w.buf = appendUint(w.buf[:0], uint64(len(header)+len(body)))
		w.buf = append(append(w.buf, header...), body...)
		body = w.buf
	}
	w.in.Reset(body)
	defer w.in.Reset(nil)
	if err := w.dec.Decode(&w.out); err != nil {
		return v, err
	}
	if w.in.Len() != 0 {
		return v, errTrailing
	}
	v, w.out = w.out, v
	if any(v) == nil {
		return v, errNil
	}
	return v, nil
}

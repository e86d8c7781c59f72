package gobrow

import (
	"encoding/gob"
	"io"
	"maps"
	"sync"
	"sync/atomic"
)

// Decoder turns rows into values of interface type I, which must not have the
// methods GobDecode or UnmarshalBinary itself. Its zero value is ready to use,
// it may be used by several goroutines at once, and it needs no end.
//
// It keeps gob decoders that have compiled their definitions: for at most 256
// different sets of definitions, of 1 MiB together and 1024 types and fields
// each, and for a set no more decoders than have worked at the same time, until
// the garbage collector takes the idle ones. A set is added by a row that was
// decoded, in the place of an arbitrary other one once there are too many.
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
	p, known := split(row)
	if known {
		if e := d.entry(p.key); e != nil && e.id == p.id {
			if err := p.scan(row, e.root); err != nil {
				return v, err
			}
			if w, _ := e.idle.Get().(*warm[I]); w != nil {
				w.in.feed(p.header, row[p.body:])
				if v, err := w.decode(); err == nil {
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
	w.in.feed(nil, row)
	if v, err = w.decode(); err != nil {
		return v, err
	}
	if known && !s.interfaces && s.steps <= maxKeptSteps {
		d.keep(p, s.root, w)
	}
	return v, nil
}

func (d *Decoder[I]) entry(key []byte) *entry[I] {
	if m := d.entries.Load(); m != nil {
		return (*m)[string(key)]
	}
	return nil
}

// keep makes the decoder that has just read a row with parts p available to
// the next row like it.
func (d *Decoder[I]) keep(p parts, root *node, w *warm[I]) {
	if e := d.entry(p.key); e != nil {
		if e.id == p.id {
			e.idle.Put(w)
		}
		return
	}
	if len(p.key) > maxKeyBytes {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	m := map[string]*entry[I]{}
	if old := d.entries.Load(); old != nil {
		m = maps.Clone(*old)
	}
	size := len(p.key)
	for key := range m {
		size += len(key)
	}
	for key := range m {
		if len(m) < maxKeys && size <= maxKeyBytes {
			break
		}
		delete(m, key)
		size -= len(key)
	}
	e := &entry[I]{id: p.id, root: root}
	e.idle.Put(w)
	m[string(p.key)] = e
	d.entries.Store(&m)
}

// parts is where a row's definitions end and its value begins.
type parts struct {
	key    []byte // all that comes before the value's message
	header []byte // the type id of the interface, and the concrete type's name
	id     int32  // the wire type of the value
	body   int    // where that id stands
	value  int    // and where it ends
}

// split finds the parts of a row as Encode writes it: each definition fills the
// rest of its message. It does not read the definitions, so only an entry with
// the same key, which was made from a row that gob has read, says that they are
// sound.
func split(row []byte) (p parts, ok bool) {
	s := scanner{row: row}
	s.message()
	start := s.pos
	if s.int() != idInterface || s.uint() != 0 {
		return p, false
	}
	s.bytes()
	p.header = row[start:s.pos]
	p.key = p.header
	for s.err == nil {
		if s.pos == s.end {
			p.key = row[:s.end]
			s.message()
		}
		p.body = s.pos
		if p.id = int32(s.int()); p.id >= 0 {
			p.value = s.pos
			return p, s.err == nil && s.end == len(row)
		}
		s.pos = s.end
	}
	return p, false
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

// scan checks the value of a row whose definitions are known.
func (p *parts) scan(row []byte, root *node) error {
	s := scanner{row: row, pos: p.value, end: len(row), mem: maxMemory}
	s.uint()
	s.rootValue(root, 0)
	return s.finish()
}

// warm is a gob decoder and what it reads from.
type warm[I any] struct {
	dec *gob.Decoder
	in  input
	out I
}

func newWarm[I any]() *warm[I] {
	w := &warm[I]{}
	w.dec = gob.NewDecoder(&w.in)
	return w
}

// decode decodes what was fed. After an error the decoder must not be used again.
func (w *warm[I]) decode() (v I, err error) {
	defer recoverTo(&err)
	defer w.in.feed(nil, nil)
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

// input gives a decoder exactly what it was fed: it is an io.ByteReader, so
// that gob does not read ahead.
type input struct {
	buf        []byte // what head is part of
	head, rest []byte
}

// feed sets what is read next: body, after header in one message if there is one.
func (in *input) feed(header, body []byte) {
	in.buf = in.buf[:0]
	if header != nil {
		in.buf = append(appendUint(in.buf, uint64(len(header)+len(body))), header...)
	}
	in.head, in.rest = in.buf, body
}

// Len is how many bytes have not been read yet.
func (in *input) Len() int { return len(in.head) + len(in.rest) }

func (in *input) Read(p []byte) (n int, err error) {
	n = copy(p, in.head)
	in.head = in.head[n:]
	m := copy(p[n:], in.rest)
	in.rest = in.rest[m:]
	if n += m; n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (in *input) ReadByte() (byte, error) {
	var b [1]byte
	_, err := in.Read(b[:])
	return b[0], err
}

package gobrow

import (
	"encoding/binary"
	"math/bits"
	"reflect"
)

// reader reads a row. It takes time and memory in proportion to the row, whatever
// the row claims: no value takes less than a byte of it, no length exceeds what is
// left, and what is allocated is spent before. Its methods panic with a failure.
type reader struct {
	row      []byte
	pos, end int // what is left of the current message is row[pos:end]
	memory   int // what may still be allocated

	types   map[int32]*definition // that the row has defined
	nodes   map[place]*node       // that have been planned
	dynamic bool                  // an interface type has been planned
}

func newReader(row []byte) *reader { return &reader{row: row, memory: maxMemory} }

// head is what a row begins with.
type head struct {
	definitions []byte // the messages before the value's: nil if the type needs no definition
	name        []byte // that the concrete type is registered under
	id          int32  // the wire type of the value
	at          int    // where that id stands
}

// head reads up to the value. It reads the definitions if define is true, and skips
// them otherwise.
func (r *reader) head(define bool) (h head) {
	if define {
		r.types, r.nodes = map[int32]*definition{}, map[place]*node{}
	}
	r.message()
	if r.int() != int64(interfaceKind) || r.uint() != 0 {
		fail(errMalformed)
	}
	if h.name = r.bytes(); len(h.name) == 0 {
		fail(errNil)
	}
	for h.at = r.pos; ; h.at = r.pos {
		if h.id = r.typeID(); h.id >= 0 {
			return h
		}
		if define {
			r.define(-h.id)
			if r.pos != r.end {
				fail(errTrailing)
			}
		}
		if r.end == len(r.row) {
			fail(errUnfinished)
		}
		h.definitions = r.row[:r.end]
		r.message()
	}
}

// message goes on to the next message.
func (r *reader) message() {
	r.pos, r.end = r.end, len(r.row)
	length := r.count()
	r.end = r.pos + length
}

// uint reads a number: one byte up to 127, and otherwise the count of its bytes, negated,
// and the bytes.
func (r *reader) uint() uint64 {
	first := r.take(1)[0]
	if first <= 0x7f {
		return uint64(first)
	}
	n := -int(int8(first))
	if n > 8 {
		fail(errShort)
	}
	var x uint64
	for _, b := range r.take(n) {
		x = x<<8 | uint64(b)
	}
	return x
}

// take reads n bytes.
func (r *reader) take(n int) []byte {
	if n > r.end-r.pos {
		fail(errShort)
	}
	r.pos += n
	return r.row[r.pos-n : r.pos]
}

func (r *reader) int() int64 { return signed(r.uint()) }

// signed is the number that gob writes as u: the lowest bit says that the others are inverted.
func signed(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// typeID reads the id of the type of a value that follows, or of a definition if it is
// negative. gob would go on to the next message where one ends, but writes no such row.
func (r *reader) typeID() int32 {
	if r.pos == r.end {
		fail(errUnfinished)
	}
	return int32(r.int())
}

// id reads a type id in a definition.
func (r *reader) id() int32 {
	id := r.int()
	if int64(int32(id)) != id {
		fail(errMalformed)
	}
	return int32(id)
}

// count reads how many values follow, of at least a byte each.
func (r *reader) count() int {
	n := r.uint()
	if n > uint64(r.end-r.pos) {
		fail(errLength)
	}
	return int(n)
}

// bytes reads a length and as many bytes.
func (r *reader) bytes() []byte { return r.take(r.count()) }

// fields reads a struct of n fields, and calls read for each that is there. It
// insists on the terminator, which gob does without at the end of a message: a
// struct of no bytes could stand there any number of times.
func (r *reader) fields(n int, read func(field int)) {
	for field := -1; ; {
		if r.pos == r.end {
			fail(errTerminator)
		}
		delta := r.uint()
		if delta == 0 {
			return
		}
		if delta > uint64(n-1-field) {
			fail(errMalformed)
		}
		field += int(delta)
		read(field)
	}
}

// spend counts n times size bytes of memory.
func (r *reader) spend(n, size int) {
	if size > 0 && n > r.memory/size {
		fail(errMemory)
	}
	r.memory -= n * size
}

// alloc makes a value that can be set.
func (r *reader) alloc(t reflect.Type) reflect.Value {
	r.spend(1, int(t.Size()))
	return reflect.New(t).Elem()
}

// inside is the depth of what stands in a value of some depth.
func inside(depth int) int {
	if depth == maxDepth {
		fail(errDepth)
	}
	return depth + 1
}

func appendInt(b []byte, i int64) []byte { return appendUint(b, uint64(i<<1^i>>63)) }

func appendUint(b []byte, u uint64) []byte {
	if u <= 0x7f {
		return append(b, byte(u))
	}
	var all [8]byte
	binary.BigEndian.PutUint64(all[:], u)
	n := (bits.Len64(u) + 7) / 8
	return append(append(b, byte(-n)), all[8-n:]...)
}

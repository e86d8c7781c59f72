package gobrow

// reader reads a row. It takes time and memory in proportion to the row, whatever
// the row claims: no value takes less than a byte of it, no length exceeds what is
// left, and what is allocated is spent before. Its methods panic with a failure.
type reader struct {
	row      []byte
	pos, end int // what is left of the current message is row[pos:end]
	memory   int // what may still be allocated
	depth    int // of what is being read

	types   map[int32]*definition
	nodes   map[place]*node
	path    []string // to what is being planned, for errors
	dynamic bool     // an interface type has been planned
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
	n := r.uint()
	if n > uint64(r.end-r.pos) {
		fail(errLength)
	}
	r.end = r.pos + int(n)
}

func (r *reader) uint() uint64 {
	if r.pos == r.end {
		fail(errShort)
	}
	b := r.row[r.pos]
	r.pos++
	if b <= 0x7f {
		return uint64(b)
	}
	n := -int(int8(b))
	if n > 8 || n > r.end-r.pos {
		fail(errShort)
	}
	var x uint64
	for _, b := range r.row[r.pos : r.pos+n] {
		x = x<<8 | uint64(b)
	}
	r.pos += n
	return x
}

func (r *reader) int() int64 {
	u := r.uint()
	if u&1 != 0 {
		return ^int64(u >> 1)
	}
	return int64(u >> 1)
}

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
func (r *reader) bytes() []byte {
	n := r.count()
	r.pos += n
	return r.row[r.pos-n : r.pos]
}

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

// enter goes into something that holds others.
func (r *reader) enter() {
	if r.depth++; r.depth > maxDepth {
		fail(errDepth)
	}
}

func (r *reader) leave() { r.depth-- }

func appendInt(b []byte, i int64) []byte { return appendUint(b, uint64(i<<1^i>>63)) }

func appendUint(b []byte, u uint64) []byte {
	if u <= 0x7f {
		return append(b, byte(u))
	}
	n := 8
	for n > 1 && u>>(8*(n-1)) == 0 {
		n--
	}
	b = append(b, byte(-n))
	for n--; n >= 0; n-- {
		b = append(b, byte(u>>(8*n)))
	}
	return b
}

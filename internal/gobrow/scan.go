package gobrow

// scanner reads a row along its own type definitions, as gob's decoder will read
// it into the registered types, but builds nothing. It ends within time and
// memory proportional to the row, whatever the row claims: no element takes less
// than one byte, no length exceeds what is left.
//
// The first error stays in err and leaves nothing to read.
type scanner struct {
	row      []byte
	pos, end int // what is left of the current message is row[pos:end]
	mem      int // what gob may still allocate
	err      error

	plans       // empty when a plan is at hand
	root  *node // the plan of the row's value
}

func (s *scanner) fail(err error) {
	if s.err == nil {
		s.err = err
	}
	s.pos, s.end = len(s.row), len(s.row)
}

// left is what is left of the row, in bytes: messages yet to come included,
// since gob goes on to them where an interface value defines types.
func (s *scanner) left() int { return len(s.row) - s.pos }

// message goes on to the next message.
func (s *scanner) message() bool {
	s.pos, s.end = s.end, len(s.row)
	n := s.uint()
	if n > uint64(s.left()) {
		s.fail(errLength)
	}
	if s.err == nil {
		s.end = s.pos + int(n)
	}
	return s.err == nil
}

func (s *scanner) uint() uint64 {
	if s.pos >= s.end {
		s.fail(errShort)
		return 0
	}
	b := s.row[s.pos]
	s.pos++
	if b <= 0x7f {
		return uint64(b)
	}
	n := -int(int8(b))
	if n > 8 || n > s.end-s.pos {
		s.fail(errShort)
		return 0
	}
	var x uint64
	for _, b := range s.row[s.pos : s.pos+n] {
		x = x<<8 | uint64(b)
	}
	s.pos += n
	return x
}

func (s *scanner) int() int64 {
	u := s.uint()
	if u&1 != 0 {
		return ^int64(u >> 1)
	}
	return int64(u >> 1)
}

// bytes reads a length and as many bytes.
func (s *scanner) bytes() []byte {
	n := s.uint()
	if n > uint64(s.end-s.pos) {
		s.fail(errLength)
		return nil
	}
	s.pos += int(n)
	return s.row[s.pos-int(n) : s.pos]
}

// count reads the number of elements that follow, each of at least least bytes
// here and of size bytes in memory.
func (s *scanner) count(least, size int) int {
	n := s.uint()
	if n > uint64(s.left()/least) {
		s.fail(errLength)
		return 0
	}
	s.spend(int(n), size)
	if s.err != nil {
		return 0
	}
	return int(n)
}

// spend counts n times size bytes of memory.
func (s *scanner) spend(n, size int) {
	if size > 0 && n > s.mem/size {
		s.fail(errMemory)
		return
	}
	s.mem -= n * size
}

// scanRow checks a whole row.
func (s *scanner) scanRow() error {
	if s.typeID(false) != idInterface || s.uint() != 0 {
		s.fail(errMalformed)
	}
	if s.root = s.iface(-1); s.root == nil {
		s.fail(errNil)
	}
	return s.finish()
}

// scanValue checks the value of a row whose definitions have a plan.
func (s *scanner) scanValue(root *node) error {
	s.uint()
	s.rootValue(root, 0)
	return s.finish()
}

func (s *scanner) finish() error {
	if s.err == nil && (s.pos != s.end || s.end != len(s.row)) {
		s.fail(errTrailing)
	}
	return s.err
}

// typeID takes in the type definitions that stand here and returns the id that
// follows them.
func (s *scanner) typeID(inside bool) int32 {
	for s.err == nil {
		if s.pos == s.end && !s.message() {
			break
		}
		id := int32(s.int())
		if id >= 0 {
			return id
		}
		s.define(-id)
		if s.pos < s.end {
			if !inside {
				s.fail(errMalformed)
			}
			s.uint()
		}
	}
	return -1
}

// iface reads the value of an interface variable and returns the plan of what is
// in it: nil for nothing. The row's own stands at depth -1, since it does not
// count. gob ignores the length here, and so does the scan.
func (s *scanner) iface(depth int) *node {
	name := s.bytes()
	if len(name) == 0 {
		return nil
	}
	depth = s.enter(1, depth)
	id := s.typeID(true)
	s.uint()
	if s.err != nil {
		return nil
	}
	local := s.localType(string(name), id)
	if local != nil {
		s.spend(1, int(local.Size()))
	}
	n := s.plan(id, local)
	s.rootValue(n, depth)
	return n
}

// rootValue reads the concrete value of an interface variable.
func (s *scanner) rootValue(n *node, depth int) {
	if n.kind != structKind && s.uint() != 0 {
		s.fail(errMalformed)
	}
	s.value(n, depth)
}

func (s *scanner) value(n *node, depth int) {
	if s.err != nil {
		return
	}
	s.spend(1, n.alloc)
	switch n.kind {
	case numberKind:
		s.uint()
	case complexKind:
		s.uint()
		s.uint()
	case bytesKind:
		s.spend(1, len(s.bytes()))
	case structKind:
		depth = s.enter(1, depth)
		s.fields(len(n.fields), func(field int) { s.value(n.fields[field], depth) })
	case arrayKind:
		if s.count(1, 0) != n.len {
			s.fail(errMalformed)
		}
		s.elements(n.len, depth, n.elem)
	case sliceKind:
		s.elements(s.count(1, n.size), depth, n.elem)
	case mapKind:
		entries := s.count(2, n.size)
		s.spend(slots(entries), n.slot)
		s.elements(entries, depth, n.key, n.elem)
	case interfaceKind:
		s.iface(depth)
	case skippedKind:
		// gob goes by the length here. It has no case for a nil one.
		if len(s.bytes()) == 0 {
			s.fail(errUnreadable)
		}
		s.typeID(true)
		s.bytes()
	}
}

// enter returns the depth of n parts of what stands at depth.
func (s *scanner) enter(n, depth int) int {
	if n > 0 && depth >= MaxDepth {
		s.fail(errDepth)
	}
	return depth + 1
}

// elements reads n elements of one value each, or of a key and a value.
func (s *scanner) elements(n, depth int, each ...*node) {
	for depth = s.enter(n, depth); n > 0 && s.err == nil; n-- {
		for _, part := range each {
			s.value(part, depth)
		}
	}
}

// fields reads a struct of n fields, calling read for each that is there. It
// insists on the terminator, which gob does without at the end of a message: a
// struct of no bytes could stand there any number of times.
func (s *scanner) fields(n int, read func(field int)) {
	for field := -1; s.err == nil; {
		if s.pos == s.end {
			s.fail(errTerminator)
			return
		}
		delta := s.uint()
		if delta == 0 {
			return
		}
		if delta > uint64(n-1-field) {
			s.fail(errMalformed)
			return
		}
		field += int(delta)
		read(field)
	}
}

package gobrow

import (
	"bytes"
	"encoding/gob"
	"reflect"
	"sync"
)

// node is the plan of a value: how it stands in a row, and what it takes of
// memory as what receives it.
type node struct {
	kind      kind
	key, elem *node
	fields    []*node // of a struct
	len       int     // of an array
	alloc     int     // bytes that the value takes, whatever is in it: pointers to it, an empty map
	size      int     // bytes that an element of a slice takes, or an entry of a map outside its slot
	slot      int     // bytes that a slot of a map takes: see slots
}

type kind uint8

const (
	noKind kind = iota
	numberKind
	complexKind
	bytesKind // strings, and the types that write themselves
	arrayKind
	sliceKind
	structKind
	mapKind
	interfaceKind
	skippedKind // an interface value that nothing receives
)

// wire is a type as a row defines it.
type wire struct {
	kind      kind
	key, elem int32
	len       int // of an array
	fields    []wireField
	body      []byte // the definition
}

type wireField struct {
	name string
	id   int32
}

// The type ids that gob gives out: those below firstUserID need no definition.
const (
	idInterface = 8
	firstUserID = 64
)

var builtin = [...]*wire{
	1: {kind: numberKind}, // bool
	2: {kind: numberKind}, // int
	3: {kind: numberKind}, // uint
	4: {kind: numberKind}, // float
	5: {kind: bytesKind},
	6: {kind: bytesKind}, // string
	7: {kind: complexKind},

	idInterface: {kind: interfaceKind},
}

// plans holds what a row has defined so far, and what was planned from it. Its
// zero value is ready to use.
type plans struct {
	wires      map[int32]*wire
	nodes      map[place]*node
	ids        map[reflect.Type]int32 // the wire type of a local type, without its pointers
	interfaces bool                   // an interface type occurs in a definition
	compiled   int                    // see compile
}

// place is what a plan is made for: local is nil where nothing receives the value.
type place struct {
	local reflect.Type
	id    int32
}

func (s *scanner) wire(id int32) *wire {
	switch {
	case s.wires[id] != nil:
		return s.wires[id]
	case id > 0 && int(id) < len(builtin):
		return builtin[id]
	case id > 0 && id < firstUserID:
		s.fail(errReserved)
	default:
		s.fail(errUndefined)
	}
	return &wire{}
}

// compile counts the types and fields that gob may compile. They are work here as well.
func (s *scanner) compile(n int) {
	if s.compiled += n; s.compiled > maxCompiled {
		s.fail(errDefinitions)
	}
}

// define reads the definition of type id, the wireType of encoding/gob's
// documentation.
func (s *scanner) define(id int32) {
	if id < firstUserID || s.wires[id] != nil {
		s.fail(errAmbiguous)
		return
	}
	s.compile(1)
	start := s.pos
	w := &wire{}
	forms := [...]kind{arrayKind, sliceKind, structKind, mapKind, bytesKind, bytesKind, bytesKind}
	s.fields(len(forms), func(form int) {
		if w.kind != noKind {
			s.fail(errAmbiguous)
			return
		}
		w.kind = forms[form]
		s.fields(3, func(field int) {
			switch {
			case field == 0: // CommonType: a name and an id, both without meaning
				s.nameAndID()
			case w.kind == structKind:
				for n := s.count(1, int(reflect.TypeFor[wireField]().Size())); n > 0 && s.err == nil; n-- {
					s.compile(1)
					w.fields = append(w.fields, s.nameAndID())
				}
			case w.kind == mapKind && field == 1:
				w.key = s.id()
			case w.kind == arrayKind && field == 2:
				w.len = int(s.int())
			default:
				w.elem = s.id()
			}
		})
	})
	if w.kind == noKind || w.len < 0 {
		s.fail(errMalformed)
	}
	if s.wires == nil {
		s.wires = map[int32]*wire{}
	}
	w.body = s.row[start:s.pos]
	s.wires[id] = w
}

func (s *scanner) nameAndID() (f wireField) {
	s.fields(2, func(field int) {
		if field == 0 {
			f.name = string(s.bytes())
		} else {
			f.id = s.id()
		}
	})
	return f
}

func (s *scanner) id() int32 {
	id := s.int()
	if id == idInterface {
		s.interfaces = true
	}
	if int64(int32(id)) != id {
		s.fail(errMalformed)
	}
	return int32(id)
}

// plan says how gob reads wire type id into the local type, which is nil where
// there is none. gob looks up by the local type alone some of what it has
// compiled, and would read a second wire type by the definition of the first.
// That is refused anywhere in a row, unless the two are the same. What gob
// itself refuses as incompatible is left to it: it compares the types before it
// reads a value.
func (s *scanner) plan(id int32, local reflect.Type) *node {
	s.compile(1)
	if n := s.nodes[place{local, id}]; n != nil {
		return n
	}
	if s.nodes == nil {
		s.nodes, s.ids = map[place]*node{}, map[reflect.Type]int32{}
	}
	n := &node{}
	s.nodes[place{local, id}] = n
	into := local
	for i := 0; into != nil && into.Kind() == reflect.Pointer; i++ {
		if into = into.Elem(); i > maxIndirect {
			s.fail(errMismatch)
			return n
		}
		n.alloc += int(into.Size())
	}
	if local != nil {
		if first, ok := s.ids[into]; ok && !s.same(first, id, map[[2]int32]bool{}) {
			s.fail(errAmbiguous)
		}
		s.ids[into] = id
	}
	w := s.wire(id)
	if n.kind, n.len = w.kind, w.len; w.kind < arrayKind || s.err != nil {
		return n
	}
	if local == nil && w.kind == interfaceKind {
		n.kind = skippedKind
		return n
	}
	if local != nil && into.Kind() != localKinds[w.kind] {
		s.fail(errMismatch)
		return n
	}
	var key, elem reflect.Type
	switch w.kind {
	case structKind:
		s.planFields(n, w, into)
	case mapKind:
		if local != nil {
			key, elem = into.Key(), into.Elem()
			n.planMap(key, elem)
		}
		n.key = s.plan(w.key, key)
		n.elem = s.plan(w.elem, elem)
	case arrayKind, sliceKind:
		if local != nil {
			elem = into.Elem()
			n.size = int(elem.Size())
		}
		n.elem = s.plan(w.elem, elem)
	}
	return n
}

// What a map takes, by internal/runtime/maps and encoding/gob of Go 1.26.
const (
	emptyMap  = 48 + 128 // the map, and what gob makes for each
	groupSize = 8        // slots that are made at once
	maxInSlot = 128      // a key or an element that is larger is outside of the slot,
	slotPtr   = 8        // which has a pointer to it
)

// planMap plans the memory of a map. For each gob makes a key and an element besides, which
// it copies.
func (n *node) planMap(key, elem reflect.Type) {
	n.alloc += emptyMap + int(key.Size()+elem.Size())
	align := max(key.Align(), elem.Align())
	for _, part := range []reflect.Type{key, elem} {
		size := int(part.Size())
		if size > maxInSlot {
			n.size += size
			size, align = slotPtr, slotPtr
		}
		n.slot += (max(size, 1) + align - 1) / align * align
	}
	n.slot++ // the byte that says whether it is used
}

// slots is how many slots a map of so many entries has at most. They are 7/8 full before
// there are twice as many.
func slots(entries int) int {
	if entries <= groupSize {
		return min(entries, 1) * groupSize
	}
	return groupSize + entries*2*8/7
}

var localKinds = [...]reflect.Kind{
	arrayKind:     reflect.Array,
	sliceKind:     reflect.Slice,
	structKind:    reflect.Struct,
	mapKind:       reflect.Map,
	interfaceKind: reflect.Interface,
}

// planFields plans the fields of a struct, by name. For each that nothing
// receives gob may compile every type of the row anew.
func (s *scanner) planFields(n *node, w *wire, local reflect.Type) {
	for _, f := range w.fields {
		var to reflect.Type
		if local != nil {
			if lf, ok := local.FieldByName(f.name); ok && lf.IsExported() {
				to = lf.Type
			}
		}
		if to == nil && s.wire(f.id).kind >= arrayKind {
			s.compile(len(s.wires))
		}
		n.fields = append(n.fields, s.plan(f.id, to))
	}
}

// same reports whether two wire types are read alike.
func (s *scanner) same(a, b int32, assumed map[[2]int32]bool) bool {
	if a == b || assumed[[2]int32{a, b}] {
		return true
	}
	x, y := s.wires[a], s.wires[b]
	s.compile(1)
	if s.err != nil || x == nil || y == nil ||
		x.kind != y.kind || x.len != y.len || len(x.fields) != len(y.fields) {
		return false
	}
	assumed[[2]int32{a, b}] = true
	for i := range x.fields {
		if x.fields[i].name != y.fields[i].name || !s.same(x.fields[i].id, y.fields[i].id, assumed) {
			return false
		}
	}
	return s.same(x.key, y.key, assumed) && s.same(x.elem, y.elem, assumed)
}

// localTypes remembers registered types by name. gob never takes one back.
var localTypes sync.Map

// localType returns the type that is registered under name. gob does not tell;
// but decoding an empty value into an any does. It is nil where the wire type
// says it all: for numbers, strings, types that write themselves, arrays of them.
//
// gob is given the definitions before plan has judged them. There are no more than
// maxCompiled of them, each has been read here, and no struct has a field: so gob
// compiles along the local type alone, and finds nothing but zeros to decode.
func (s *scanner) localType(name string, id int32) reflect.Type {
	leaf := s.wire(id)
	for n := 0; s.err == nil && leaf.kind == arrayKind; n++ {
		if leaf = s.wire(leaf.elem); n > MaxDepth {
			s.fail(errDepth)
		}
	}
	if s.err != nil || leaf.kind < arrayKind {
		return nil
	}
	if t, ok := localTypes.Load(name); ok {
		return t.(reflect.Type)
	}
	row := s.emptyRow(name, id)
	if s.err != nil {
		return nil
	}
	var v any
	if err := decodeAny(row, &v); err != nil {
		s.fail(err)
		return nil
	}
	t := reflect.TypeOf(v)
	localTypes.Store(name, t)
	return t
}

func decodeAny(row []byte, v *any) (err error) {
	defer recoverTo(&err)
	return gob.NewDecoder(bytes.NewReader(row)).Decode(v)
}

// emptyRow is a row with an empty value of the registered type. Its structs have
// no fields: any struct takes such a one, and gob has little to compile.
func (s *scanner) emptyRow(name string, id int32) []byte {
	b := appendUint(appendUint(appendUint(nil, 2*idInterface), 0), uint64(len(name)))
	b = append(b, name...)
	for defined, w := range s.wires {
		body := w.body
		if w.kind == structKind {
			body = []byte{3, 0, 0} // wireType{StructT: &structType{}}
		}
		b = append(appendInt(b, -int64(defined)), body...)
		b = append(b, 0) // a length, which gob skips
	}
	b = append(appendInt(b, int64(id)), 0)
	if s.wire(id).kind != structKind {
		b = append(b, 0)
	}
	b = s.appendEmpty(b, id)
	return append(appendUint(nil, uint64(len(b))), b...)
}

func (s *scanner) appendEmpty(b []byte, id int32) []byte {
	w := s.wire(id)
	if w.kind != arrayKind {
		return append(b, 0)
	}
	if w.len > s.left() {
		s.fail(errLength)
		return b
	}
	b = appendUint(b, uint64(w.len))
	if s.wire(w.elem).kind != arrayKind {
		return append(b, make([]byte, w.len)...)
	}
	for n := w.len; n > 0 && s.err == nil; n-- {
		if b = s.appendEmpty(b, w.elem); len(b) > 2*len(s.row) {
			s.fail(errLength)
		}
	}
	return b
}

func appendInt(b []byte, i int64) []byte {
	return appendUint(b, uint64(i<<1^i>>63))
}

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

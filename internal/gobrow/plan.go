package gobrow

import (
	"bytes"
	"encoding/gob"
	"reflect"
	"sync"
)

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

// wire is a type as a row defines it.
type wire struct {
	kind      kind
	opaque    bool
	key, elem int32
	len       int // of an array
	fields    []wireField
}

type wireField struct {
	name string
	id   int32
}

type definition struct {
	id   int32
	body []byte
}

// node is a place in a row: a wire type, and what the scan must know of the
// local type that receives it.
type node struct {
	id        int32
	kind      kind
	key, elem *node
	engine    *engine // of a struct
	len       int     // of an array
	alloc     int     // bytes that the pointers to the value take
	size      int     // bytes that an element of a slice or an entry of a map takes
}

type engine struct{ fields []*node }

// place is what gob compiles by: local is nil where nothing receives the value.
type place struct {
	local reflect.Type
	id    int32
}

// table holds what a row has defined so far, and what was planned from it. Its
// zero value is ready to use.
type table struct {
	wires       map[int32]*wire
	definitions []definition
	interfaces  bool // an interface type occurs in a definition
	root        *node
	roots       map[place]*node
	engines     map[place]*engine
	steps       int
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
	return nil
}

// rootPlan plans the concrete value of an interface variable.
func (s *scanner) rootPlan(name string, id int32) *node {
	local := s.localType(name, id)
	key := place{local, id}
	if n := s.roots[key]; n != nil {
		return n
	}
	n := *s.plan(id, local, map[place]*node{})
	if local != nil {
		n.alloc += int(local.Size())
	}
	if s.roots == nil {
		s.roots = map[place]*node{}
	}
	s.roots[key] = &n
	return &n
}

// step counts the work that definitions make, here and in gob.
func (s *scanner) step() {
	if s.steps++; s.steps > maxSteps {
		s.fail(errDefinitions)
	}
}

// plan follows decOpFor and decIgnoreOpFor of encoding/gob: it says how gob
// reads wire type id into the local type, which is nil where there is none.
// scope is what gob has in progress: it looks types up there by the local type
// alone, and so would read a second wire type by the definition of the first.
// That is refused unless the two are the same.
func (s *scanner) plan(id int32, local reflect.Type, scope map[place]*node) *node {
	s.step()
	key := place{local: local}
	if local == nil {
		key.id = id
	}
	if p := scope[key]; p != nil {
		if !s.same(p.id, id, map[[2]int32]bool{}) {
			s.fail(errAmbiguous)
		}
		return p
	}
	n := &node{id: id}
	w := s.wire(id)
	if s.err != nil {
		return n
	}
	n.kind, n.len = w.kind, w.len
	base := local
	for i := 0; base != nil && base.Kind() == reflect.Pointer; i++ {
		if base = base.Elem(); i > maxIndirect {
			s.fail(errMismatch)
			return n
		}
		n.alloc += int(base.Size())
	}
	if w.kind < arrayKind {
		return n
	}
	if local == nil && w.kind == interfaceKind {
		n.kind = skippedKind
		return n
	}
	if local != nil && (base.Kind() != localKinds[w.kind] || factsOf(local).readsItself) {
		s.fail(errMismatch)
		return n
	}

	scope[key] = n
	switch w.kind {
	case structKind:
		n.engine = s.compile(id, w, base)
	case mapKind:
		var key, elem reflect.Type
		if local != nil {
			key, elem = base.Key(), base.Elem()
			n.size = 2*int(key.Size()+elem.Size()) + 16 // as sparse as a new map gets
		}
		n.key = s.plan(w.key, key, scope)
		n.elem = s.plan(w.elem, elem, scope)
	case arrayKind, sliceKind:
		var elem reflect.Type
		if local != nil {
			elem = base.Elem()
			n.size = int(elem.Size())
		}
		n.elem = s.plan(w.elem, elem, scope)
	}
	return n
}

var localKinds = [...]reflect.Kind{
	arrayKind:     reflect.Array,
	sliceKind:     reflect.Slice,
	structKind:    reflect.Struct,
	mapKind:       reflect.Map,
	interfaceKind: reflect.Interface,
}

// compile follows compileDec: fields go by name, and each that nothing
// receives is compiled on its own.
func (s *scanner) compile(id int32, w *wire, local reflect.Type) *engine {
	if e := s.engines[place{local, id}]; e != nil {
		return e
	}
	if s.engines == nil {
		s.engines = map[place]*engine{}
	}
	e := &engine{fields: make([]*node, 0, len(w.fields))}
	s.engines[place{local, id}] = e
	scope := map[place]*node{}
	for _, f := range w.fields {
		var to reflect.Type
		in := map[place]*node{}
		if local != nil {
			if lf, ok := local.FieldByName(f.name); ok && lf.IsExported() {
				to, in = lf.Type, scope
			}
		}
		e.fields = append(e.fields, s.plan(f.id, to, in))
	}
	return e
}

// same reports whether two wire types are read alike.
func (s *scanner) same(a, b int32, assumed map[[2]int32]bool) bool {
	if a == b || assumed[[2]int32{a, b}] {
		return true
	}
	x, y := s.wires[a], s.wires[b]
	s.step()
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
// says it all: for numbers, strings, types that read themselves, arrays of them.
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
	var v any
	if err := decodeAny(s.emptyRow(name, id), &v); err != nil {
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

// emptyRow is a row with an empty value of the registered type. Any struct
// takes a struct without fields; other types need the definitions of the row,
// which gob is spared when it would compile too long.
func (s *scanner) emptyRow(name string, id int32) []byte {
	b := appendUint(appendUint(appendUint(nil, 2*idInterface), 0), uint64(len(name)))
	b = append(b, name...)
	if s.wire(id).kind == structKind {
		b = appendInt(b, -firstUserID)
		b = append(b, 3, 0, 0, 0) // wireType{StructT: &structType{}}, a length
		b = appendInt(b, firstUserID)
		b = append(b, 0, 0) // a length, the struct's end
	} else {
		s.plan(id, nil, map[place]*node{})
		for _, d := range s.definitions {
			b = append(appendInt(b, -int64(d.id)), d.body...)
			b = append(b, 0)
		}
		b = appendInt(b, int64(id))
		b = append(b, 0, 0)
		b = s.appendEmpty(b, id)
	}
	if s.err != nil {
		return nil
	}
	return append(appendUint(nil, uint64(len(b))), b...)
}

func (s *scanner) appendEmpty(b []byte, id int32) []byte {
	w := s.wire(id)
	if w.kind != arrayKind {
		return append(b, 0)
	}
	b = appendUint(b, uint64(w.len))
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

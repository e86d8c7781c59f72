package gobrow

import (
	"encoding"
	"encoding/gob"
	"fmt"
	"reflect"
	"strings"
)

// kind says how a value stands in a row. Those up to interfaceKind are the ids of
// types that need no definition.
type kind uint8

const (
	noKind kind = iota
	boolKind
	intKind
	uintKind
	floatKind
	bytesKind
	stringKind
	complexKind
	interfaceKind
	arrayKind
	sliceKind
	structKind
	mapKind
	gobKind // written by GobEncode
	binaryKind
	textKind
)

// String names the kind in errors.
func (k kind) String() string {
	return [...]string{"something else", "a bool", "an int", "a uint", "a float", "bytes", "a string", "a complex number", "an interface value",
		"an array", "a slice", "a struct", "a map", "what GobEncode writes", "what MarshalBinary writes", "what MarshalText writes"}[k]
}

// firstID is the first id of a type that needs a definition.
const firstID = 64

// definition is a type as a row defines it.
type definition struct {
	kind      kind
	key, elem int32
	len       int // of an array
	fields    []fieldDefinition
	body      []byte // as it stands in the row
}

type fieldDefinition struct {
	name string
	id   int32
}

// forms are the fields of the wireType of encoding/gob's documentation, and how
// many fields each has.
var forms = [...]struct {
	kind   kind
	fields int
}{{arrayKind, 3}, {sliceKind, 2}, {structKind, 2}, {mapKind, 3}, {gobKind, 1}, {binaryKind, 1}, {textKind, 1}}

// define reads the definition of a type.
func (r *reader) define(id int32) {
	if id < firstID || r.types[id] != nil {
		fail(errAmbiguous)
	}
	r.spend(1, definitionMemory)
	d, start := &definition{}, r.pos
	r.fields(len(forms), func(form int) {
		if d.kind != noKind {
			fail(errAmbiguous)
		}
		d.kind = forms[form].kind
		r.fields(forms[form].fields, func(field int) {
			switch {
			case field == 0:
				r.nameAndID() // both without meaning
			case d.kind == structKind:
				for range r.count() {
					r.spend(1, definitionMemory)
					d.fields = append(d.fields, r.nameAndID())
				}
			case d.kind == mapKind && field == 1:
				d.key = r.id()
			case d.kind == arrayKind && field == 2:
				d.len = int(r.int())
			default:
				d.elem = r.id()
			}
		})
	})
	if d.kind == noKind {
		fail(errMalformed)
	}
	if d.len < 0 {
		fail(errLength)
	}
	if r.types == nil {
		r.types = map[int32]*definition{}
	}
	d.body = r.row[start:r.pos]
	r.types[id] = d
}

func (r *reader) nameAndID() (f fieldDefinition) {
	r.fields(2, func(field int) {
		if field == 0 {
			f.name = string(r.bytes())
		} else {
			f.id = r.id()
		}
	})
	return f
}

// definition returns that of a type, which may be one that needs none.
func (r *reader) definition(id int32) *definition {
	d := r.types[id]
	if d == nil && id > 0 && id <= int32(interfaceKind) {
		d = &definition{kind: kind(id)}
	}
	if d == nil {
		fail(errUndefined)
	}
	return d
}

// node is the plan of a value: how it stands in a row, and what receives it.
type node struct {
	kind      kind
	len       int          // of an array
	local     reflect.Type // without pointers; nil if nothing receives it
	key, elem *node
	fields    []fieldNode
	receives  bool // some field is received
}

// fieldNode is a field as the row has it.
type fieldNode struct {
	*node
	index []int // of the field that receives it; nil if none does
}

// place is what a node is made for.
type place struct {
	id    int32
	local reflect.Type
}

// plan says how wire type id is read into the local type, which is nil where nothing
// receives the value. Like gob it refuses types that do not fit even where no value
// is there.
func (r *reader) plan(id int32, local reflect.Type) *node {
	if local != nil {
		local = base(local)
	}
	if n := r.nodes[place{id, local}]; n != nil {
		return n
	}
	r.spend(1, definitionMemory)
	r.enter()
	defer r.leave()
	d := r.definition(id)
	n := &node{kind: d.kind, len: d.len, local: local}
	if r.nodes == nil {
		r.nodes = map[place]*node{}
	}
	r.nodes[place{id, local}] = n
	if local != nil && (kindOf(local) != d.kind || d.kind == arrayKind && local.Len() != d.len) {
		at := described(strings.Join(r.path, ""), ": ")
		fail(fmt.Errorf("%s%w: the row holds %s for a %s", at, errMismatch, d.kind, local))
	}
	var key, elem reflect.Type
	switch d.kind {
	case interfaceKind:
		r.dynamic = true
	case structKind:
		r.planFields(n, d)
	case arrayKind, sliceKind, mapKind:
		if local != nil {
			elem = local.Elem()
		}
		if d.kind == mapKind {
			if local != nil {
				key = local.Key()
			}
			n.key = r.plan(d.key, key)
		}
		n.elem = r.plan(d.elem, elem)
	}
	return n
}

// planFields plans the fields of a struct, by name.
func (r *reader) planFields(n *node, d *definition) {
	seen := map[string]bool{}
	for _, f := range d.fields {
		if f.name == "" || seen[f.name] {
			fail(errAmbiguous)
		}
		seen[f.name] = true
		r.spend(1, definitionMemory)
		var to reflect.StructField
		if n.local != nil {
			if field, ok := n.local.FieldByName(f.name); ok && field.IsExported() {
				to, n.receives = field, true
			}
		}
		r.path = append(r.path, ".", f.name)
		n.fields = append(n.fields, fieldNode{r.plan(f.id, to.Type), to.Index})
		r.path = r.path[:len(r.path)-2]
	}
}

// kindOf says what a row must hold for a type without pointers.
func kindOf(t reflect.Type) kind {
	switch {
	case implements(t, reflect.TypeFor[gob.GobDecoder]()):
		return gobKind
	case implements(t, reflect.TypeFor[encoding.BinaryUnmarshaler]()):
		return binaryKind
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return bytesKind
	}
	return kinds[t.Kind()]
}

var kinds = [reflect.UnsafePointer + 1]kind{
	reflect.Bool: boolKind, reflect.String: stringKind, reflect.Interface: interfaceKind,
	reflect.Int: intKind, reflect.Int8: intKind, reflect.Int16: intKind, reflect.Int32: intKind, reflect.Int64: intKind,
	reflect.Uint: uintKind, reflect.Uint8: uintKind, reflect.Uint16: uintKind, reflect.Uint32: uintKind, reflect.Uint64: uintKind, reflect.Uintptr: uintKind,
	reflect.Float32: floatKind, reflect.Float64: floatKind, reflect.Complex64: complexKind, reflect.Complex128: complexKind,
	reflect.Array: arrayKind, reflect.Slice: sliceKind, reflect.Struct: structKind, reflect.Map: mapKind,
}

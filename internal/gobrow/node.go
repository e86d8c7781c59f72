package gobrow

import (
	"encoding"
	"encoding/gob"
	"fmt"
	"reflect"
	"slices"
)

// node is the plan of a value: how it stands in a row, and what receives it.
type node struct {
	kind      kind
	len       int          // of an array
	local     reflect.Type // without pointers; nil if nothing receives it
	key, elem *node
	fields    []fieldNode
}

// fieldNode is a field as the row has it.
type fieldNode struct {
	*node
	to *reflect.StructField // what receives it; nil if nothing does
}

// place is what a node is made for.
type place struct {
	id    int32
	local reflect.Type
}

// planConcrete plans what an interface holds. Like gob it refuses structs that have no
// field in common.
func (r *reader) planConcrete(id int32, local reflect.Type) *node {
	n := r.plan(id, local, newPath())
	received := func(f fieldNode) bool { return f.to != nil }
	if local != nil && len(n.fields) > 0 && n.local.NumField() > 0 && !slices.ContainsFunc(n.fields, received) {
		fail(fmt.Errorf("%w: no field in common with %s", errMismatch, local))
	}
	return n
}

// plan says how wire type id is read into the local type, which is nil where nothing
// receives the value. Like gob it refuses types that do not fit even where no value
// is there.
func (r *reader) plan(id int32, local reflect.Type, at path) *node {
	if local != nil {
		local = base(local)
	}
	if n := r.nodes[place{id, local}]; n != nil {
		return n
	}
	r.spend(1, definitionMemory)
	if len(at) == maxDepth {
		fail(errDepth)
	}
	d := r.definition(id)
	n := &node{kind: d.kind, len: d.len, local: local}
	r.nodes[place{id, local}] = n // before its parts, of which it may be one
	if local != nil && (kindOf(local) != d.kind || d.kind == arrayKind && local.Len() != d.len) {
		err := fmt.Errorf("%w: the row holds %s for a %s", errMismatch, d.kind, local)
		if text := at.String(); text != "" {
			err = fmt.Errorf("%s: %w", text, err)
		}
		fail(err)
	}
	switch d.kind {
	case interfaceKind:
		r.dynamic = true
	case structKind:
		n.fields = r.planFields(d, local, at)
	case arrayKind, sliceKind, mapKind:
		var key, elem reflect.Type
		if local != nil {
			elem = local.Elem()
		}
		if d.kind == mapKind {
			if local != nil {
				key = local.Key()
			}
			n.key = r.plan(d.key, key, append(at, step{}))
		}
		n.elem = r.plan(d.elem, elem, append(at, step{}))
	}
	return n
}

// planFields plans the fields of a struct, by name.
func (r *reader) planFields(d *definition, local reflect.Type, at path) (fields []fieldNode) {
	seen := map[string]bool{}
	for _, f := range d.fields {
		if f.name == "" || seen[f.name] {
			fail(errAmbiguous)
		}
		seen[f.name] = true
		r.spend(1, definitionMemory)
		var to *reflect.StructField
		var toType reflect.Type
		if local != nil {
			if field, ok := local.FieldByName(f.name); ok && field.IsExported() {
				to, toType = &field, field.Type
			}
		}
		fields = append(fields, fieldNode{r.plan(f.id, toType, append(at, step{field: to})), to})
	}
	return fields
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

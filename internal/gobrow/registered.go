package gobrow

import (
	"bytes"
	"encoding/gob"
	"reflect"
	"sync"
)

// registeredTypes has the registered types by name. gob never takes one back.
var registeredTypes sync.Map

// registered returns the type that is registered under a name, for a value of wire
// type id that follows. gob does not tell; but the value that it decodes has that type.
//
// gob is given a value without anything in it: empty structs, slices, maps and
// interfaces, and structs without fields. Only numbers, bytes and arrays of those are
// given as they are, since GobDecode may refuse what is empty. They take no more than
// their bytes, and their local type.
func (r *reader) registered(name string, id int32) reflect.Type {
	if t, ok := registeredTypes.Load(name); ok {
		return t.(reflect.Type)
	}
	value := []byte{0} // a length, which gob ignores
	if r.definition(id).kind != structKind {
		value = append(value, 0) // as before all but structs
	}
	value, ok := r.appendEmpty(value, id, 0)
	if !ok {
		value = r.row[r.pos:r.end]
	}
	b := appendUint(appendUint(appendInt(nil, int64(interfaceKind)), 0), uint64(len(name)))
	b = r.appendDefinitions(append(b, name...), id, map[int32]bool{})
	b = append(appendInt(b, int64(id)), value...)
	b = append(appendUint(nil, uint64(len(b))), b...)
	var v any
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&v); err != nil {
		fail(err)
	}
	t := reflect.TypeOf(v)
	registeredTypes.Store(name, t)
	return t
}

// appendDefinitions appends those that a value of a wire type needs if it has nothing in
// it, but for those that are done.
func (r *reader) appendDefinitions(b []byte, id int32, done map[int32]bool) []byte {
	d := r.types[id]
	if d == nil || done[id] {
		return b
	}
	done[id] = true
	body := d.body
	if d.kind == structKind {
		body = []byte{3, 0, 0} // wireType{StructT: &structType{}}
	}
	b = append(append(appendInt(b, int64(-id)), body...), 0) // a length, which gob ignores
	return r.appendDefinitions(r.appendDefinitions(b, d.key, done), d.elem, done)
}

// appendEmpty appends an empty value of a wire type. It reports false of numbers, bytes and
// what types write themselves, and of arrays of those: they have none.
func (r *reader) appendEmpty(b []byte, id int32, depth int) (_ []byte, ok bool) {
	d := r.definition(id)
	if d.kind != arrayKind {
		return append(b, 0), d.kind >= interfaceKind && d.kind <= mapKind
	}
	b = appendUint(b, uint64(d.len))
	first := len(b)
	b, ok = r.appendEmpty(b, d.elem, inside(depth))
	elem := b[first:]
	for n := 1; ok && n < d.len; n++ {
		if len(b) >= r.end-r.pos {
			fail(errLength)
		}
		b = append(b, elem...)
	}
	if d.len == 0 {
		b = b[:first]
	}
	return b, ok
}

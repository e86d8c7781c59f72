package gobrow

import (
	"bytes"
	"encoding"
	"encoding/gob"
	"fmt"
	"math"
	"math/bits"
	"reflect"
	"sync"
)

// nothing is where a value goes that nothing receives.
var nothing reflect.Value

// alloc makes a value that can be set.
func (r *reader) alloc(t reflect.Type) reflect.Value {
	r.spend(1, int(t.Size()))
	return reflect.New(t).Elem()
}

// concrete reads what an interface holds.
func (r *reader) concrete(n *node, v reflect.Value) {
	if n.kind != structKind && r.uint() != 0 {
		fail(errMalformed)
	}
	r.read(n, v)
}

// read reads a value into v, which is empty, or into nothing.
func (r *reader) read(n *node, v reflect.Value) {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(r.alloc(v.Type().Elem()).Addr())
		}
		v = v.Elem()
	}
	switch n.kind {
	case arrayKind, sliceKind:
		r.readElements(n, v)
	case structKind:
		r.enter()
		r.fields(len(n.fields), func(field int) {
			if f := n.fields[field]; f.index == nil {
				r.read(f.node, nothing)
			} else {
				r.read(f.node, v.FieldByIndex(f.index))
			}
		})
		r.leave()
	case mapKind:
		r.readMap(n, v)
	case interfaceKind:
		r.readInterface(v)
	default:
		r.readScalar(n.kind, v)
	}
}

func (r *reader) readScalar(kind kind, v reflect.Value) {
	receives, overflow := v.IsValid(), false
	switch kind {
	case boolKind:
		if x := r.uint(); receives {
			v.SetBool(x != 0)
		}
	case intKind:
		if x := r.int(); receives {
			overflow = v.OverflowInt(x)
			v.SetInt(x)
		}
	case uintKind:
		if x := r.uint(); receives {
			overflow = v.OverflowUint(x)
			v.SetUint(x)
		}
	case floatKind:
		if x := r.float(); receives {
			overflow = v.OverflowFloat(x)
			v.SetFloat(x)
		}
	case complexKind:
		realPart, imagPart := r.float(), r.float()
		if receives {
			overflow = v.OverflowComplex(complex(realPart, imagPart))
			v.SetComplex(complex(realPart, imagPart))
		}
	default:
		text := r.bytes()
		if receives {
			r.spend(1, len(text))
			setBytes(kind, v, text)
		}
	}
	if overflow {
		fail(fmt.Errorf("%w: the number does not fit a %s", errMismatch, v.Type()))
	}
}

// float reads a float64, of which gob writes the last byte first.
func (r *reader) float() float64 { return math.Float64frombits(bits.ReverseBytes64(r.uint())) }

func setBytes(kind kind, v reflect.Value, text []byte) {
	var err error
	switch kind {
	case stringKind:
		v.SetString(string(text))
	case bytesKind:
		v.SetBytes(append([]byte(nil), text...))
	case gobKind:
		err = v.Addr().Interface().(gob.GobDecoder).GobDecode(bytes.Clone(text))
	default:
		err = v.Addr().Interface().(encoding.BinaryUnmarshaler).UnmarshalBinary(bytes.Clone(text))
	}
	if err != nil {
		fail(err)
	}
}

func (r *reader) readElements(n *node, v reflect.Value) {
	count := r.count()
	if n.kind == arrayKind && count != n.len {
		fail(errMalformed)
	}
	if count == 0 {
		return
	}
	receives := v.IsValid()
	if receives && n.kind == sliceKind {
		r.spend(count, int(v.Type().Elem().Size()))
		v.Set(reflect.MakeSlice(v.Type(), count, count))
	}
	r.enter()
	for i := range count {
		if receives {
			r.read(n.elem, v.Index(i))
		} else {
			r.read(n.elem, nothing)
		}
	}
	r.leave()
}

// What a map takes: a header, and slots for keys and elements, of which eight are made
// at once and as a rule not all are used. What is larger than a slot stands outside.
const (
	mapHeader  = 64
	firstSlots = 8
	maxSlot    = 256
)

func (r *reader) readMap(n *node, v reflect.Value) {
	count := r.count()
	if !v.IsValid() {
		if count > 0 {
			r.enter()
			defer r.leave()
		}
		for range count {
			r.read(n.key, nothing)
			r.read(n.elem, nothing)
		}
		return
	}
	t := v.Type()
	r.spend(1, mapHeader)
	if count == 0 {
		v.Set(reflect.MakeMap(t))
		return
	}
	size := int(t.Key().Size() + t.Elem().Size())
	r.spend(max(firstSlots, 2*count), min(size, maxSlot)*3/2+1) // with what alignment takes, and a byte to say that it is used
	r.spend(count, max(size-maxSlot, 0))
	v.Set(reflect.MakeMapWithSize(t, count))
	key, elem := r.alloc(t.Key()), r.alloc(t.Elem())
	r.enter()
	for range count {
		r.read(n.key, key)
		r.read(n.elem, elem)
		v.SetMapIndex(key, elem)
		key.SetZero()
		elem.SetZero()
	}
	r.leave()
}

// readInterface reads the value of an interface variable, with the definitions that
// stand in it. The lengths do not count: where definitions stand in a value, gob
// writes it in pieces, each with its own length.
func (r *reader) readInterface(v reflect.Value) {
	name := r.bytes()
	if len(name) == 0 {
		return
	}
	r.enter()
	id := r.typeID()
	for ; id < 0; id = r.typeID() {
		r.define(-id)
		if r.pos == r.end {
			fail(errUnfinished)
		}
		r.uint()
	}
	if !v.IsValid() {
		n := r.planConcrete(id, nil)
		r.uint()
		r.concrete(n, nothing)
	} else {
		local := r.registered(string(name), id)
		if !local.AssignableTo(v.Type()) {
			fail(fmt.Errorf("%w: a %s is no %s", errMismatch, local, v.Type()))
		}
		n, value := r.planConcrete(id, local), r.alloc(local)
		r.uint()
		r.concrete(n, value)
		v.Set(value)
	}
	r.leave()
}

// planConcrete plans what an interface holds. Like gob it refuses structs that have no
// field in common.
func (r *reader) planConcrete(id int32, local reflect.Type) *node {
	defer func(depth int) { r.depth = depth }(r.depth)
	r.depth = 0
	n := r.plan(id, local)
	if local != nil && len(n.fields) > 0 && n.local.NumField() > 0 && !n.receives {
		fail(fmt.Errorf("%w: no field in common with %s", errMismatch, local))
	}
	return n
}

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
	b := append(appendUint(appendUint(appendInt(nil, int64(interfaceKind)), 0), uint64(len(name))), name...)
	b = r.appendDefinitions(b, id, map[int32]bool{})
	b = appendInt(b, int64(id))
	switch innermost := r.innermost(id); {
	case innermost < interfaceKind || innermost > mapKind:
		b = append(b, r.row[r.pos:r.end]...)
	case r.definition(id).kind == structKind:
		b = append(b, 0, 0) // after a length
	default:
		b = append(append(b, 0, 0), r.appendEmpty(nil, id)...)
	}
	var v any
	if err := gob.NewDecoder(bytes.NewReader(append(appendUint(nil, uint64(len(b))), b...))).Decode(&v); err != nil {
		fail(err)
	}
	t := reflect.TypeOf(v)
	registeredTypes.Store(name, t)
	return t
}

// appendDefinitions appends those that a value of a wire type needs if it has nothing in
// it, but for those that have been sent.
func (r *reader) appendDefinitions(b []byte, id int32, sent map[int32]bool) []byte {
	d := r.types[id]
	if d == nil || sent[id] {
		return b
	}
	sent[id] = true
	body := d.body
	if d.kind == structKind {
		body = []byte{3, 0, 0} // wireType{StructT: &structType{}}
	}
	b = append(append(appendInt(b, int64(-id)), body...), 0) // a length, which gob ignores
	return r.appendDefinitions(r.appendDefinitions(b, d.key, sent), d.elem, sent)
}

// innermost is the kind of what stands in arrays of arrays of a wire type.
func (r *reader) innermost(id int32) kind {
	for range maxDepth {
		d := r.definition(id)
		if d.kind != arrayKind {
			return d.kind
		}
		id = d.elem
	}
	fail(errDepth)
	return noKind
}

// appendEmpty appends an empty value of a wire type, which has an innermost, as it
// stands in a row.
func (r *reader) appendEmpty(b []byte, id int32) []byte {
	d := r.definition(id)
	if d.kind != arrayKind {
		return append(b, 0)
	}
	b = appendUint(b, uint64(d.len))
	if d.len == 0 {
		return b
	}
	first := len(b)
	b = r.appendEmpty(b, d.elem)
	elem := b[first:]
	for range d.len - 1 {
		if len(b) >= r.end-r.pos {
			fail(errLength)
		}
		b = append(b, elem...)
	}
	return b
}

package gobrow

import (
	"bytes"
	"encoding"
	"encoding/gob"
	"fmt"
	"math"
	"math/bits"
	"reflect"
)

// nothing is where a value goes that nothing receives.
var nothing reflect.Value

// concrete reads what an interface holds, as a local type or, if that is nil, into nothing.
// The length before it does not count: where definitions stand in a value, gob writes it in
// pieces, each with its own length.
func (r *reader) concrete(n *node, local reflect.Type, depth int) (v reflect.Value) {
	r.uint()
	if local != nil {
		v = r.alloc(local)
	}
	if n.kind != structKind && r.uint() != 0 {
		fail(errMalformed)
	}
	r.read(n, v, depth)
	return v
}

// read reads a value into v, which is empty, or into nothing.
func (r *reader) read(n *node, v reflect.Value, depth int) {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(r.alloc(v.Type().Elem()).Addr())
		}
		v = v.Elem()
	}
	switch n.kind {
	case boolKind, intKind, uintKind, floatKind, complexKind:
		r.readNumber(n.kind, v)
	case structKind:
		r.readStruct(n, v, inside(depth))
	case arrayKind, sliceKind:
		r.readElements(n, v, depth)
	case mapKind:
		r.readMap(n, v, depth)
	case interfaceKind:
		r.readInterface(v, depth)
	default:
		r.readBytes(n.kind, v)
	}
}

func (r *reader) readNumber(k kind, v reflect.Value) {
	x, imag := r.uint(), uint64(0)
	if k == complexKind {
		imag = r.uint()
	}
	if !v.IsValid() {
		return
	}
	overflow := false
	switch k {
	case boolKind:
		v.SetBool(x != 0)
	case intKind:
		overflow = v.OverflowInt(signed(x))
		v.SetInt(signed(x))
	case uintKind:
		overflow = v.OverflowUint(x)
		v.SetUint(x)
	case floatKind:
		overflow = v.OverflowFloat(float(x))
		v.SetFloat(float(x))
	case complexKind:
		c := complex(float(x), float(imag))
		overflow = v.OverflowComplex(c)
		v.SetComplex(c)
	}
	if overflow {
		fail(fmt.Errorf("%w: the number does not fit a %s", errMismatch, v.Type()))
	}
}

// float is the float64 that gob writes as x, its last byte first.
func float(x uint64) float64 { return math.Float64frombits(bits.ReverseBytes64(x)) }

// readBytes reads strings, bytes, and what types write themselves.
func (r *reader) readBytes(k kind, v reflect.Value) {
	text := r.bytes()
	if !v.IsValid() {
		return
	}
	r.spend(1, len(text))
	var err error
	switch k {
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

func (r *reader) readStruct(n *node, v reflect.Value, depth int) {
	r.fields(len(n.fields), func(field int) {
		f, to := n.fields[field], nothing
		if f.to != nil {
			to = v.FieldByIndex(f.to.Index)
		}
		r.read(f.node, to, depth)
	})
}

func (r *reader) readElements(n *node, v reflect.Value, depth int) {
	count := r.count()
	if n.kind == arrayKind && count != n.len {
		fail(errMalformed)
	}
	if count == 0 {
		return
	}
	if n.kind == sliceKind && v.IsValid() {
		r.spend(count, int(v.Type().Elem().Size()))
		v.Set(reflect.MakeSlice(v.Type(), count, count))
	}
	depth, elem := inside(depth), nothing
	for i := range count {
		if v.IsValid() {
			elem = v.Index(i)
		}
		r.read(n.elem, elem, depth)
	}
}

func (r *reader) readMap(n *node, v reflect.Value, depth int) {
	count := r.count()
	if v.IsValid() {
		r.makeMap(v, count)
	}
	if count == 0 {
		return
	}
	depth, key, elem := inside(depth), nothing, nothing
	if v.IsValid() {
		key, elem = r.alloc(v.Type().Key()), r.alloc(v.Type().Elem())
	}
	for range count {
		r.read(n.key, key, depth)
		r.read(n.elem, elem, depth)
		if v.IsValid() {
			v.SetMapIndex(key, elem)
			key.SetZero()
			elem.SetZero()
		}
	}
}

// What a map takes: a header, and slots for keys and elements, of which eight are made
// at once and as a rule not all are used. What is larger than a slot stands outside.
const (
	mapHeader  = 64
	firstSlots = 8
	maxSlot    = 256
)

// makeMap sets v to a map with room for some entries.
func (r *reader) makeMap(v reflect.Value, entries int) {
	r.spend(1, mapHeader)
	if entries > 0 {
		size := int(v.Type().Key().Size() + v.Type().Elem().Size())
		r.spend(max(firstSlots, 2*entries), min(size, maxSlot)*3/2+1) // with what alignment takes, and a byte to say that it is used
		r.spend(entries, max(size-maxSlot, 0))
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), entries))
}

// readInterface reads the value of an interface variable, with the definitions that
// stand in it.
func (r *reader) readInterface(v reflect.Value, depth int) {
	name := r.bytes()
	if len(name) == 0 {
		return
	}
	depth = inside(depth)
	id := r.typeID()
	for ; id < 0; id = r.typeID() {
		r.define(-id)
		if r.pos == r.end {
			fail(errUnfinished)
		}
		r.uint() // a length
	}
	var local reflect.Type
	if v.IsValid() {
		local = r.registered(string(name), id)
		if !local.AssignableTo(v.Type()) {
			fail(fmt.Errorf("%w: a %s is no %s", errMismatch, local, v.Type()))
		}
	}
	value := r.concrete(r.planConcrete(id, local), local, depth)
	if v.IsValid() {
		v.Set(value)
	}
}

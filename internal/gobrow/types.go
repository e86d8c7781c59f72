package gobrow

import (
	"encoding"
	"encoding/gob"
	"reflect"
	"sync"
)

// facts is what is known of a local type.
type facts struct {
	writesItself bool     // gob calls a method on it, and looks no further
	mayRecur     bool     // a value may contain itself, or something of any type
	mayLose      bool     // a value may come back otherwise, see Loss
	fields       []int    // of a struct: those that gob writes,
	names        []string // and their names

	idle sync.Pool // *sender, unless mayRecur: then definitions depend on the value
}

var factsCache sync.Map // reflect.Type → *facts

func factsOf(t reflect.Type) *facts {
	if f, ok := factsCache.Load(t); ok {
		return f.(*facts)
	}
	f := &facts{
		writesItself: writesItself(t),
		mayRecur:     mayRecur(t, map[reflect.Type]bool{}),
		mayLose:      mayLose(t, map[reflect.Type]bool{}),
	}
	if t.Kind() == reflect.Struct {
		for i := range t.NumField() {
			if sent(t.Field(i)) {
				f.fields = append(f.fields, i)
				f.names = append(f.names, t.Field(i).Name)
			}
		}
	}
	factsCache.Store(t, f)
	return f
}

// writesItself reports whether gob calls a method of t and looks no further. It
// does not look for text marshalers, see golang.org/issue/6760.
func writesItself(t reflect.Type) bool {
	return implements(t, reflect.TypeFor[gob.GobEncoder]()) || implements(t, reflect.TypeFor[encoding.BinaryMarshaler]())
}

// implements reports whether gob finds the method m on t, or along the pointers
// from or to it.
func implements(t, m reflect.Type) bool {
	if t.Kind() != reflect.Pointer && reflect.PointerTo(t).Implements(m) {
		return true
	}
	for n := 0; t.Kind() == reflect.Pointer && n < maxIndirect && !t.Implements(m); n++ {
		t = t.Elem()
	}
	return t.Implements(m)
}

// maxIndirect is how many pointers gob follows to a method.
const maxIndirect = 100

// base is t without its pointers, of which a type T *T has no end.
func base(t reflect.Type) reflect.Type {
	for n := 0; t.Kind() == reflect.Pointer && n < maxIndirect; n++ {
		t = t.Elem()
	}
	return t
}

// sent reports whether gob writes the field.
func sent(f reflect.StructField) bool {
	kind := base(f.Type).Kind()
	return f.IsExported() && kind != reflect.Chan && kind != reflect.Func
}

// parts are the types that gob goes on to from a value of type t.
func parts(t reflect.Type) (types []reflect.Type) {
	if writesItself(t) {
		return nil
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return []reflect.Type{t.Elem()}
	case reflect.Map:
		return []reflect.Type{t.Key(), t.Elem()}
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); sent(f) {
				types = append(types, f.Type)
			}
		}
	}
	return types
}

// mayRecur reports whether what gob writes of t leads back to t or to an
// interface. seen holds true for the types on the path and false for those
// that are known not to.
func mayRecur(t reflect.Type, seen map[reflect.Type]bool) bool {
	if onPath, ok := seen[t]; ok {
		return onPath
	}
	seen[t] = true
	if t.Kind() == reflect.Interface && !writesItself(t) {
		return true
	}
	for _, part := range parts(t) {
		if mayRecur(part, seen) {
			return true
		}
	}
	seen[t] = false
	return false
}

// mayLose reports whether what gob writes of t has pointers or interfaces.
func mayLose(t reflect.Type, seen map[reflect.Type]bool) bool {
	if seen[t] {
		return false
	}
	seen[t] = true
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return !writesItself(t)
	}
	for _, part := range parts(t) {
		if mayLose(part, seen) {
			return true
		}
	}
	return false
}

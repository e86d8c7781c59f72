package gobrow

import (
	"encoding"
	"encoding/gob"
	"reflect"
	"sync"
)

// facts is what Encode, Loss and Unsent know of a local type.
type facts struct {
	writesItself bool                  // gob calls a method on it, and looks no further
	mayRecur     bool                  // a value may contain itself, or something of any type
	mayLose      bool                  // it has pointers or interfaces: see Loss
	fields       []reflect.StructField // of a struct: those that gob writes

	idle sync.Pool // *sender, unless mayRecur: then definitions depend on the value
}

var factsCache sync.Map // reflect.Type → *facts

func factsOf(t reflect.Type) *facts {
	if f, ok := factsCache.Load(t); ok {
		return f.(*facts)
	}
	f := &facts{writesItself: writesItself(t)}
	f.explore(t, map[reflect.Type]bool{})
	if t.Kind() == reflect.Struct {
		f.fields = sentFields(t)
	}
	factsCache.Store(t, f)
	return f
}

// explore learns from the types that gob goes on to from t. onPath holds true for the
// types that have led to t, and false for those that have been explored.
func (f *facts) explore(t reflect.Type, onPath map[reflect.Type]bool) {
	if loops, seen := onPath[t]; seen {
		f.mayRecur = f.mayRecur || loops
		return
	}
	if writesItself(t) {
		return
	}
	onPath[t] = true
	switch t.Kind() {
	case reflect.Interface:
		f.mayRecur, f.mayLose = true, true
	case reflect.Pointer:
		f.mayLose = true
		f.explore(t.Elem(), onPath)
	case reflect.Slice, reflect.Array:
		f.explore(t.Elem(), onPath)
	case reflect.Map:
		f.explore(t.Key(), onPath)
		f.explore(t.Elem(), onPath)
	case reflect.Struct:
		for _, field := range sentFields(t) {
			f.explore(field.Type, onPath)
		}
	}
	onPath[t] = false
}

// writesItself reports whether gob calls a method of t and looks no further. It
// does not look for text marshalers, see golang.org/issue/6760.
func writesItself(t reflect.Type) bool {
	t = base(t)
	return implements(t, reflect.TypeFor[gob.GobEncoder]()) || implements(t, reflect.TypeFor[encoding.BinaryMarshaler]())
}

// implements reports whether gob finds the methods of m on t, which is no pointer.
func implements(t, m reflect.Type) bool { return t.Implements(m) || reflect.PointerTo(t).Implements(m) }

// base is t without its pointers, of which a type T *T has no end.
func base(t reflect.Type) reflect.Type {
	const maxPointers = 100
	for n := 0; t.Kind() == reflect.Pointer && n < maxPointers; n++ {
		t = t.Elem()
	}
	return t
}

// sent reports whether gob writes the field.
func sent(f reflect.StructField) bool {
	kind := base(f.Type).Kind()
	return f.IsExported() && kind != reflect.Chan && kind != reflect.Func
}

func sentFields(t reflect.Type) (fields []reflect.StructField) {
	for i := range t.NumField() {
		if f := t.Field(i); sent(f) {
			fields = append(fields, f)
		}
	}
	return fields
}

// Unsent lists the fields that gob drops from values of type t: those that are
// not exported, channels and functions, with the path to each, such as
// "Config.client". A type that occurs twice is listed once. It does not look into
// types that write themselves, nor into what stands in interfaces.
func Unsent(t reflect.Type) []string { return unsent("", t, map[reflect.Type]bool{}) }

func unsent(prefix string, t reflect.Type, seen map[reflect.Type]bool) (fields []string) {
	if seen[t] || writesItself(t) {
		return nil
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return unsent(prefix, t.Elem(), seen)
	case reflect.Map:
		return append(unsent(prefix, t.Key(), seen), unsent(prefix, t.Elem(), seen)...)
	case reflect.Struct:
		for i := range t.NumField() {
			switch f := t.Field(i); {
			case f.Name == "_":
			case !sent(f):
				fields = append(fields, prefix+f.Name)
			default:
				fields = append(fields, unsent(prefix+f.Name+".", f.Type, seen)...)
			}
		}
	}
	return fields
}

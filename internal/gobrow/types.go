package gobrow

import (
	"encoding"
	"encoding/gob"
	"reflect"
	"sync"
)

// facts is what is known of a type of the program.
type facts struct {
	writesItself bool                  // gob calls a method on it, and looks no further
	mayRecur     bool                  // a value may contain itself, or something of any type
	mayLose      bool                  // it has pointers or interfaces: see Loss
	fields       []reflect.StructField // of a struct: those that gob writes
	unsent       []string              // see Unsent

	idle sync.Pool // *sender, unless mayRecur: then definitions depend on the value
}

var factsCache sync.Map // reflect.Type → *facts

func factsOf(t reflect.Type) *facts {
	if f, ok := factsCache.Load(t); ok {
		return f.(*facts)
	}
	f := &facts{writesItself: writesItself(t)}
	f.explore(t, "", map[reflect.Type]bool{})
	for i := 0; t.Kind() == reflect.Struct && i < t.NumField(); i++ {
		if sent(t.Field(i)) {
			f.fields = append(f.fields, t.Field(i))
		}
	}
	factsCache.Store(t, f)
	return f
}

// explore learns from the types that gob goes on to from t, which stands behind prefix. onPath
// holds true for the types that have led to t, and false for those that have been explored.
func (f *facts) explore(t reflect.Type, prefix string, onPath map[reflect.Type]bool) {
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
	case reflect.Pointer, reflect.Slice, reflect.Array:
		f.mayLose = f.mayLose || t.Kind() == reflect.Pointer
		f.explore(t.Elem(), prefix, onPath)
	case reflect.Map:
		f.explore(t.Key(), prefix, onPath)
		f.explore(t.Elem(), prefix, onPath)
	case reflect.Struct:
		for i := range t.NumField() {
			switch field := t.Field(i); {
			case sent(field):
				f.explore(field.Type, prefix+field.Name+".", onPath)
			case field.Name != "_":
				f.unsent = append(f.unsent, prefix+field.Name)
			}
		}
	}
	onPath[t] = false
}

// Unsent lists the fields that gob drops from values of type t: those that are
// not exported, channels and functions, with the path to each, such as
// "Config.client". A type that occurs twice is listed once. It does not look into
// types that write themselves, nor into what stands in interfaces.
func Unsent(t reflect.Type) []string { return factsOf(t).unsent }

// sent reports whether gob writes the field.
func sent(f reflect.StructField) bool {
	k := base(f.Type).Kind()
	return f.IsExported() && k != reflect.Chan && k != reflect.Func
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

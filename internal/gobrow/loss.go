package gobrow

import (
	"fmt"
	"iter"
	"reflect"
	"strconv"
	"strings"
)

// LossError says which parts of a value gob would not give back as they are.
type LossError struct{ Parts []string }

// maxLosses bounds how many parts a LossError lists.
const maxLosses = 10

// Error lists the parts.
func (e *LossError) Error() string { return strings.Join(e.Parts, "; ") }

// Loss compares a value with what its row decodes to. Its error is a LossError:
// of a pointer that came back nil, or of a value in an any that came back as
// another type. It looks at what gob writes and no further: not at fields that gob
// drops, nor into types that write themselves. Nil and empty are the same. A type
// without pointers and interfaces can lose nothing and costs nothing.
//
// A pointer comes back as a value if its type is registered as one, and the other
// way round. In an interface that has methods, as which both do, that is no loss.
//
// Entries of a map whose key is not found again are not compared: NaN, and keys
// that hold pointers.
func Loss(given, got any) (err error) {
	defer recoverTo(&err) // the value may be changing
	a, b := indirect(reflect.ValueOf(given)), indirect(reflect.ValueOf(got))
	if a.Type() != b.Type() {
		return nil
	}
	parts := lost(a, b)
	if len(parts) == 0 {
		return nil
	}
	for i, part := range parts {
		parts[i] = described(part, "")
	}
	return &LossError{parts}
}

func indirect(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	return v
}

// lost lists what is lost of a value, each with the path to it.
func lost(given, got reflect.Value) (parts []string) {
	if !factsOf(given.Type()).mayLose {
		return nil
	}
	switch given.Kind() {
	case reflect.Pointer:
		switch {
		case given.IsNil():
			return nil
		case got.IsNil():
			return []string{" points to a zero value, and would come back nil"}
		}
		return lost(given.Elem(), got.Elem())
	case reflect.Interface:
		if given.IsNil() {
			return nil
		}
		anything := given.Type().NumMethod() == 0
		given, got = given.Elem(), got.Elem()
		switch {
		case given.Type() == got.Type():
			return lost(given, got)
		case anything:
			return []string{fmt.Sprintf(" holds a %s, and would come back as %s, which is what is registered with gob", given.Type(), got.Type())}
		}
		return lost(indirect(given), indirect(got))
	}
	for step, part := range inside(given) {
		other := step.of(got)
		if step.isKey || !other.IsValid() {
			continue
		}
		for _, loss := range lost(part, other) {
			if len(parts) < maxLosses {
				parts = append(parts, step.String()+loss)
			}
		}
	}
	return parts
}

// step leads from a value to a part of it: to a field, by a key or by an index. The
// zero step leads to what a pointer or an interface holds.
type step struct {
	field string
	key   reflect.Value // of a map
	isKey bool          // it leads to the key itself
	index int           // of a field or an element
	kind  reflect.Kind  // of what it leads from
}

// inside gives the parts of v that gob writes, in its order, with the steps to
// them: nothing for a nil pointer or interface, both keys and values of a map.
func inside(v reflect.Value) iter.Seq2[step, reflect.Value] {
	return func(yield func(step, reflect.Value) bool) {
		switch kind := v.Kind(); kind {
		case reflect.Pointer, reflect.Interface:
			if !v.IsNil() {
				yield(step{}, v.Elem())
			}
		case reflect.Struct:
			for i := range factsOf(v.Type()).fields {
				f := &factsOf(v.Type()).fields[i]
				if !yield(step{field: f.Name, index: f.Index[0], kind: kind}, v.Field(f.Index[0])) {
					return
				}
			}
		case reflect.Slice, reflect.Array:
			for i := range v.Len() {
				if !yield(step{index: i, kind: kind}, v.Index(i)) {
					return
				}
			}
		case reflect.Map:
			for entries := v.MapRange(); entries.Next(); {
				key := entries.Key()
				if !yield(step{key: key, isKey: true, kind: kind}, key) || !yield(step{key: key, kind: kind}, entries.Value()) {
					return
				}
			}
		}
	}
}

// of goes the same step from another value of the type. The part may not be there.
func (s step) of(v reflect.Value) reflect.Value {
	switch {
	case s.kind == reflect.Struct:
		return v.Field(s.index)
	case s.kind == reflect.Map:
		return v.MapIndex(s.key)
	case s.index < v.Len():
		return v.Index(s.index)
	}
	return nothing
}

// maxKeyInText bounds how much of a key stands in a message, in bytes.
const maxKeyInText = 50

// String writes the step as Go does: .Steps, [2], ["key"].
func (s step) String() string {
	switch s.kind {
	case reflect.Struct:
		return "." + s.field
	case reflect.Map:
		key := fmt.Sprint(s.key)
		if s.key.Kind() == reflect.String {
			key = strconv.Quote(key)
		}
		return "[" + key[:min(len(key), maxKeyInText)] + "]"
	case reflect.Slice, reflect.Array:
		return fmt.Sprintf("[%d]", s.index)
	}
	return ""
}

// described says what a path of steps leads to, followed by end: "field A.B[2]". Of
// the empty path it is "".
func described(path, end string) string {
	switch {
	case path == "":
		return ""
	case path[0] == '.':
		return "field " + path[1:] + end
	}
	return "element " + path + end
}

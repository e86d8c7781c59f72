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
	if a.Type() != b.Type() || !factsOf(a.Type()).mayLose {
		return nil
	}
	var c comparison
	c.compare(a, b)
	if len(c.parts) == 0 {
		return nil
	}
	return &LossError{c.parts}
}

func indirect(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	return v
}

type comparison struct {
	at    path
	parts []string
}

func (c *comparison) lost(format string, args ...any) {
	if len(c.parts) < maxLosses {
		c.parts = append(c.parts, fmt.Sprintf("%s %s", c.at, fmt.Sprintf(format, args...)))
	}
}

func (c *comparison) compare(given, got reflect.Value) {
	switch given.Kind() {
	case reflect.Pointer:
		switch {
		case given.IsNil():
		case got.IsNil():
			c.lost("points to a zero value, and would come back nil")
		default:
			c.compare(given.Elem(), got.Elem())
		}
		return
	case reflect.Interface:
		if given.IsNil() {
			return
		}
		whatever := given.Type().NumMethod() == 0
		given, got = given.Elem(), got.Elem()
		switch {
		case given.Type() == got.Type():
			c.compare(given, got)
		case whatever:
			c.lost("holds a %s, and would come back as %s, which is what is registered with gob", given.Type(), got.Type())
		default:
			c.compare(indirect(given), indirect(got))
		}
		return
	}
	f := factsOf(given.Type())
	if !f.mayLose {
		return
	}
	switch given.Kind() {
	case reflect.Struct:
		for n, i := range f.fields {
			c.at.push(step{field: f.names[n]})
			c.compare(given.Field(i), got.Field(i))
			c.at.pop()
		}
	case reflect.Slice, reflect.Array:
		for i := range min(given.Len(), got.Len()) {
			c.at.push(step{index: i})
			c.compare(given.Index(i), got.Index(i))
			c.at.pop()
		}
	case reflect.Map:
		for entries := given.MapRange(); entries.Next(); {
			if found := got.MapIndex(entries.Key()); found.IsValid() {
				c.at.push(step{key: entries.Key()})
				c.compare(entries.Value(), found)
				c.at.pop()
			}
		}
	}
}

// path leads from a value to a part of it.
type path []step

// step is a field, a key of a map, or an index.
type step struct {
	field string
	key   reflect.Value
	index int
}

// inside gives the parts of v that gob writes, in its order, with the steps to
// them: nothing for a nil pointer or interface, both keys and values of a map.
func inside(v reflect.Value) iter.Seq2[step, reflect.Value] {
	return func(yield func(step, reflect.Value) bool) {
		switch v.Kind() {
		case reflect.Pointer, reflect.Interface:
			if !v.IsNil() {
				yield(step{}, v.Elem())
			}
		case reflect.Struct:
			f := factsOf(v.Type())
			for n, i := range f.fields {
				if !yield(step{field: f.names[n]}, v.Field(i)) {
					return
				}
			}
		case reflect.Slice, reflect.Array:
			for i := range v.Len() {
				if !yield(step{index: i}, v.Index(i)) {
					return
				}
			}
		case reflect.Map:
			for entries := v.MapRange(); entries.Next(); {
				next := step{key: entries.Key()}
				if !yield(next, entries.Key()) || !yield(next, entries.Value()) {
					return
				}
			}
		}
	}
}

func (p *path) push(s step) { *p = append(*p, s) }
func (p *path) pop()        { *p = (*p)[:len(*p)-1] }

// maxKeyInText bounds how much of a key stands in a message, in bytes.
const maxKeyInText = 50

// String writes the path as Go does: field Steps[2].Config. The empty path is "".
func (p path) String() string {
	if len(p) == 0 {
		return ""
	}
	var b strings.Builder
	for i, s := range p {
		switch {
		case s.field != "":
			if i > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s.field)
		case s.key.IsValid():
			key := fmt.Sprint(s.key)
			if s.key.Kind() == reflect.String {
				key = strconv.Quote(key)
			}
			fmt.Fprintf(&b, "[%s]", key[:min(len(key), maxKeyInText)])
		default:
			fmt.Fprintf(&b, "[%d]", s.index)
		}
	}
	if p[0].field == "" {
		return "element " + b.String()
	}
	return "field " + b.String()
}

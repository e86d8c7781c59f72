package gobrow

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// path leads from a value to a part of it. Pointers are no steps.
type path []step

// step leads to a field, to an element or a key, or, if it is zero, into an interface.
type step struct {
	field *reflect.StructField
	key   reflect.Value // of a map, or the index of an element
	isKey bool          // it leads to the key itself
}

// newPath leads to the whole, and has room for the usual number of steps.
func newPath() path { return make(path, 0, 8) }

// walk visits v, which stands at a path, and the parts that gob writes of it, in gob's order.
// It goes on to the parts of a value if visit returns true.
func walk(v reflect.Value, at path, visit func(v reflect.Value, at path) bool) {
	if !visit(v, at) || v.Kind() < reflect.Array || factsOf(v.Type()).writesItself {
		return
	}
	switch k := v.Kind(); k {
	case reflect.Pointer:
		if !v.IsNil() {
			walk(v.Elem(), at, visit)
		}
	case reflect.Interface:
		if !v.IsNil() {
			walk(v.Elem(), append(at, step{}), visit)
		}
	case reflect.Struct:
		fields := factsOf(v.Type()).fields
		for i := range fields {
			walk(v.Field(fields[i].Index[0]), append(at, step{field: &fields[i]}), visit)
		}
	case reflect.Slice, reflect.Array, reflect.Map:
		if k != reflect.Map && v.Type().Elem().Kind() < reflect.Array {
			return // numbers
		}
		for key, elem := range v.Seq2() {
			if k == reflect.Map {
				walk(key, append(at, step{key: key, isKey: true}), visit)
			}
			walk(elem, append(at, step{key: key}), visit)
		}
	}
}

// last is the last step. The whole value stands in an interface.
func (p path) last() step {
	if len(p) == 0 {
		return step{}
	}
	return p[len(p)-1]
}

// String writes the path as Go does: "field A.B[2]", or "element [2].B". That to the whole
// value is "".
func (p path) String() string {
	text := ""
	for _, s := range p {
		switch {
		case s.field != nil:
			text += "." + s.field.Name
		case s.key.IsValid():
			key := fmt.Sprint(s.key)
			if s.key.Kind() == reflect.String {
				key = strconv.Quote(key)
			}
			text += "[" + key[:min(len(key), maxKeyInText)] + "]"
		}
	}
	if name, ok := strings.CutPrefix(text, "."); ok {
		return "field " + name
	}
	if text != "" {
		text = "element " + text
	}
	return text
}

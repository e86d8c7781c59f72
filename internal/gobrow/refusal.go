package gobrow

import (
	"fmt"
	"reflect"
	"strings"
)

// UnregisteredError says that a type is not registered with gob.
type UnregisteredError struct {
	// Type is the type to register.
	Type reflect.Type
	// At leads to the value of that type, such as "field Payload[\"tags\"]". It
	// is empty for the whole value.
	At string
	// Err is gob's error.
	Err error
}

// Error names the type and where it stands.
func (e *UnregisteredError) Error() string {
	if e.At == "" {
		return fmt.Sprintf("%s: %v", e.Type, e.Err)
	}
	return fmt.Sprintf("%s in %s: %v", e.Type, e.At, e.Err)
}

// Unwrap returns Err.
func (e *UnregisteredError) Unwrap() error { return e.Err }

// explain says of gob's error which part of v it is about, if it is one of those
// that do not say so.
func explain(err error, v reflect.Value) error {
	text := fmt.Sprint(err)
	if _, name, ok := strings.Cut(text, "type not registered for interface: "); ok {
		s := search{match: func(v reflect.Value, parent reflect.Kind) bool {
			return parent == reflect.Interface && base(v.Type()).String() == name
		}}
		if s.visit(v, reflect.Interface) {
			return &UnregisteredError{Type: s.found.Type(), At: s.at.String(), Err: err}
		}
	}
	if strings.Contains(text, "nil element") || strings.Contains(text, "nil pointer") {
		s := search{match: func(v reflect.Value, parent reflect.Kind) bool {
			return v.Kind() == reflect.Pointer && v.IsNil() && parent != reflect.Struct
		}}
		if s.visit(v, reflect.Interface) && len(s.at) > 0 {
			return fmt.Errorf("%s is nil: %w", s.at, err)
		}
	}
	return err
}

// search looks in a value for the first part that matches, in the order in which
// gob writes it. The value must not contain itself.
type search struct {
	match func(part reflect.Value, parent reflect.Kind) bool
	at    path
	found reflect.Value
}

// visit reports whether v or a part of it matches. Then at leads to it.
func (s *search) visit(v reflect.Value, parent reflect.Kind) bool {
	if s.match(v, parent) {
		s.found = v
		return true
	}
	if factsOf(v.Type()).writesItself {
		return false
	}
	if v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		return !v.IsNil() && s.visit(v.Elem(), v.Kind())
	}
	for next, part := range inside(v) {
		s.at.push(next)
		if s.visit(part, v.Kind()) {
			return true
		}
		s.at.pop()
	}
	return false
}

// Unsent lists the fields that gob drops from values of type t: those that are
// not exported, channels and functions, with the path to each, such as
// "Config.client". A type that occurs twice is listed once. It does not look into types that write themselves, nor into
// what stands in interfaces.
func Unsent(t reflect.Type) []string {
	return unsent("", t, map[reflect.Type]bool{})
}

func unsent(prefix string, t reflect.Type, seen map[reflect.Type]bool) (fields []string) {
	if seen[t] || factsOf(t).writesItself {
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
			f := t.Field(i)
			switch {
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

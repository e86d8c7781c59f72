package gobrow

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// Loss compares a value with what its row decodes to. Its error lists the parts that
// gob would not give back as they are, ten at most: pointers that came back nil, and values
// in an any that came back as another type. It looks at what gob writes and no further: not
// at fields that gob drops, nor into types that write themselves. Nil and empty are the same.
// A type without pointers and interfaces can lose nothing and costs nothing.
//
// A pointer comes back as a value if its type is registered as one, and the other
// way round. In an interface that has methods, as which both do, that is no loss.
//
// Entries of a map whose key is not found again are not compared: NaN, and keys
// that hold pointers.
func Loss(given, got any) (err error) {
	defer recoverTo(&err) // the value may be changing
	whole, gotWhole := indirect(reflect.ValueOf(given)), indirect(reflect.ValueOf(got))
	if whole.Type() != gotWhole.Type() || !factsOf(whole.Type()).mayLose {
		return nil
	}
	var losses []string
	decodedAt := []reflect.Value{gotWhole} // what v was decoded to, behind each step to v
	walk(whole, newPath(), func(v reflect.Value, at path) bool {
		if n := len(at); n > 0 {
			decodedAt = append(decodedAt[:n], follow(decodedAt[n-1], at[n-1]))
		}
		decoded := decodedAt[len(at)]
		if len(losses) == maxLosses || !decoded.IsValid() || !factsOf(v.Type()).mayLose {
			return false
		}
		lost := ""
		switch {
		case v.Kind() == reflect.Pointer && !v.IsNil() && !indirect(decoded).IsValid():
			lost = " points to a zero value, and would come back nil"
		case v.Kind() == reflect.Interface && !v.IsNil() && v.Type().NumMethod() == 0:
			if was, is := v.Elem().Type(), indirect(decoded).Elem().Type(); was != is {
				lost = fmt.Sprintf(" holds a %s, and would come back as %s, which is what is registered with gob", was, is)
			}
		}
		if lost != "" {
			losses = append(losses, at.String()+lost)
		}
		return lost == ""
	})
	if len(losses) == 0 {
		return nil
	}
	return errors.New(strings.Join(losses, "; "))
}

// follow returns the part of v to which a step leads. It may not be there, and a key is not
// looked for.
func follow(v reflect.Value, s step) reflect.Value {
	v = indirect(v)
	switch {
	case s.field != nil:
		return v.Field(s.field.Index[0])
	case s.isKey:
	case !s.key.IsValid():
		return v.Elem()
	case v.Kind() == reflect.Map:
		return v.MapIndex(s.key)
	case int(s.key.Int()) < v.Len():
		return v.Index(int(s.key.Int()))
	}
	return nothing
}

func indirect(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	return v
}

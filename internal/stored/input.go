package stored

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/nbena/smallben/internal/shared"
)

// Given is what an input that a user gave has and its JSON does not: the types
// of numbers, and the values that JSON changes. Runs decode the JSON, which takes a
// fraction of the memory of the values. Nil adds nothing.
type Given struct {
	numbers []givenNumber
	values  []inputField
}

// givenNumber is a key whose value is a number.
type givenNumber struct {
	key string
	of  reflect.Type // that was given
}

type inputField struct {
	key   string
	value any
}

// Givens makes Given values. Inputs of the same keys and types share one
// if they hold nothing but text, truth values and numbers. The zero value is ready;
// it is goroutine-safe.
type Givens struct{ common shared.Values[*Given] }

// Of returns what the JSON of an input leaves out.
func (g *Givens) Of(input map[string]any) *Given {
	var given Given
	var types []string
	for key, value := range input {
		if of := reflect.TypeOf(value); isNumber(of) {
			given.numbers = append(given.numbers, givenNumber{key, of})
			types = append(types, fmt.Sprintf("%q %T", key, value))
		} else if !exact(value) {
			given.values = append(given.values, inputField{key, value})
		}
	}
	switch {
	case len(given.values) > 0:
		return &given
	case len(given.numbers) == 0:
		return nil
	}
	slices.Sort(types)
	common, _ := g.common.Get(strings.Join(types, ","), func() (*Given, error) { return &given, nil })
	return common
}

// exact reports whether JSON gives a value back as it is.
func exact(value any) bool {
	switch v := value.(type) {
	case nil, bool, float64:
		return true
	case string:
		return utf8.ValidString(v)
	}
	return false
}

// isNumber reports whether a type is one of numbers that JSON would give back as another:
// all of the language's but float64.
func isNumber(of reflect.Type) bool {
	return of != nil && of.PkgPath() == "" && of.Kind() >= reflect.Int && of.Kind() <= reflect.Float32 && of.Kind() != reflect.Uintptr
}

// parse makes the JSON of the number that number again.
func (n givenNumber) parse(text []byte) any {
	value := reflect.New(n.of)
	_ = json.Unmarshal(text, value.Interface()) // it is the JSON of such a number
	return value.Elem().Interface()
}

// Decode makes the input of a run from its JSON, which was made or read before:
// there is no error.
func (g *Given) Decode(stored string) map[string]any {
	if g == nil {
		input, _ := DecodeInput(stored)
		return input
	}
	var raw map[string]json.RawMessage
	_ = json.Unmarshal([]byte(stored), &raw)
	input := make(map[string]any, len(raw))
	for _, number := range g.numbers {
		input[number.key] = number.parse(raw[number.key])
	}
	for _, field := range g.values {
		input[field.key] = field.value
	}
	for key, text := range raw {
		if _, done := input[key]; !done {
			var value any
			_ = json.Unmarshal(text, &value)
			input[key] = value
		}
	}
	return input
}

// EncodeInput gives the stored form of an input: its JSON.
func EncodeInput(input map[string]any) (stored string, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("encode the input: panic: %v", r)
		}
	}()
	encoded, err := json.Marshal(input)
	if err != nil {
		return "", fmt.Errorf("encode the input: %w", err)
	}
	if len(encoded) > maxLength {
		return "", fmt.Errorf("the stored input has %d bytes: at most %d are allowed", len(encoded), maxLength)
	}
	// What json writes it can mostly read: not a json.Number of 1e999, nor
	// nesting beyond its decoder's limit.
	if !plain(input) {
		if _, err := DecodeInput(string(encoded)); err != nil {
			return "", fmt.Errorf("the encoded input cannot be read back: %w", err)
		}
	}
	return string(encoded), nil
}

// plain reports whether input holds nothing but what json is certain to read
// back.
func plain(input map[string]any) bool {
	for _, value := range input {
		switch value.(type) {
		case nil, bool, string, int, int64, float64:
		default:
			return false
		}
	}
	return true
}

// noInput is the stored form of a nil input.
const noInput = "null"

// DecodeInput is the reverse of EncodeInput.
func DecodeInput(stored string) (map[string]any, error) {
	if stored == noInput {
		return nil, nil
	}
	var input map[string]any
	if err := json.Unmarshal([]byte(stored), &input); err != nil {
		return nil, fmt.Errorf("input: %w", err)
	}
	return input, nil
}

// SameInput reports whether two inputs are the same to the last digit, however
// they are written.
func SameInput(a, b string) bool {
	if a == b {
		return true
	}
	exact := func(stored string) (value any, err error) {
		decoder := json.NewDecoder(strings.NewReader(stored))
		decoder.UseNumber()
		err = decoder.Decode(&value)
		return value, err
	}
	before, err := exact(a)
	after, otherErr := exact(b)
	return err == nil && otherErr == nil && reflect.DeepEqual(before, after)
}

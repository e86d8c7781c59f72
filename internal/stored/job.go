// Package stored turns jobs and their inputs into the texts that a row holds, and
// back. A job is any value of an interface type that gob knows.
package stored

import (
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/nbena/smallben/internal/gobrow"
)

// maxLength bounds the text of a job and that of an input, in bytes.
const maxLength = 1 << 20

// Jobs encodes and decodes jobs, which are values of the interface type I. What it
// learns of a type serves every later row. The zero value is ready; it is
// goroutine-safe.
type Jobs[I any] struct{ decoder gobrow.Decoder[I] }

// Encode gives the stored form of a job: the base64 of its gob. The gob is
// read back at once, so that what is stored can be loaded and is what was given:
// gob encodes some values that it cannot decode, such as a pointer whose type was
// registered as a value, and leaves out others, such as a pointer to zero.
func (j *Jobs[I]) Encode(job I) (string, error) {
	v := reflect.ValueOf(job)
	if !v.IsValid() {
		return "", errors.New("the job is nil")
	}
	if v.Kind() == reflect.Pointer && v.IsNil() {
		return "", fmt.Errorf("the job is a nil %T", job)
	}
	row, err := gobrow.Encode(job)
	if err != nil {
		return "", explainEncoding(err)
	}
	if size := base64.StdEncoding.EncodedLen(len(row)); size > maxLength {
		return "", fmt.Errorf("the stored job has %d bytes: at most %d are allowed", size, maxLength)
	}
	decoded, err := j.decoder.Decode(row)
	if err != nil {
		return "", fmt.Errorf("the encoded job cannot be read back: %w", err)
	}
	if err := gobrow.Loss(job, decoded); err != nil {
		return "", fmt.Errorf("gob would not give back the job as it is: %w", err)
	}
	return base64.StdEncoding.EncodeToString(row), nil
}

// explainEncoding says what to do about an error of gobrow.Encode.
func explainEncoding(err error) error {
	var unregistered *gobrow.UnregisteredError
	if !errors.As(err, &unregistered) {
		return fmt.Errorf("encode the job: %w", err)
	}
	where := ""
	if unregistered.At != "" {
		where = " in " + unregistered.At
	}
	return fmt.Errorf("the type %s%s is unknown to gob: call gob.Register(%s) first: %w",
		unregistered.Type, where, exampleValue(unregistered.Type), unregistered)
}

// exampleValue writes the Go expression that gob.Register wants for type t.
func exampleValue(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		if t.Elem().Kind() != reflect.Struct {
			return "new(" + t.Elem().String() + ")"
		}
		return "&" + t.Elem().String() + "{}"
	case reflect.Struct, reflect.Map, reflect.Slice, reflect.Array:
		return t.String() + "{}"
	default:
		return "*new(" + t.String() + ")"
	}
}

// Decode is the reverse of Encode.
func (j *Jobs[I]) Decode(text string) (job I, err error) {
	if len(text) > maxLength {
		return job, fmt.Errorf("the stored job has %d bytes: at most %d are allowed", len(text), maxLength)
	}
	row, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return job, fmt.Errorf("job: %w", err)
	}
	job, err = j.decoder.Decode(row)
	if err != nil && strings.Contains(fmt.Sprint(err), "name not registered for interface") {
		return job, fmt.Errorf("job: %w: call gob.Register for its type before Start", err)
	}
	if err != nil {
		return job, fmt.Errorf("job: %w", err)
	}
	return job, nil
}

// RegisteredName is the name that the type of a job is registered under with gob: its
// text begins with it. It is empty if the text does not decode.
func RegisteredName(text string) string {
	row, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return ""
	}
	return gobrow.RegisteredName(row)
}

// Package gobrow turns jobs into stored rows and rows into jobs. It knows the format of
// encoding/gob, and nothing of jobs.
//
// # A row
//
// A row is what gob writes for one variable of an interface type. It is made of messages, each
// with its length in front. In a row each type has a number, its id. The basic types have ids
// of gob's, such as 6 for strings. The others are defined in the row, before the value:
//
//	8, 0, name, -65, definition   the name that the value's type is registered under; what it is made of
//	-66, definition               a type that it is made of, and so on
//	65, length, value             the value
//
// Where no type needs a definition, it is one message: 8, 0, name, 6, length, value. An
// interface value inside the value is written in the same way, without its own messages.
//
// # Reading it
//
// gob writes the rows, see [Encode]. It does not read them: it trusts what it reads, and 55
// bytes that claim a map of 2^30 entries end the process. [Decoder.Decode] reads them:
//
//  1. A reader takes numbers, texts and definitions from the row (reader.go, definition.go).
//  2. Only gob knows the type that is registered under a name. It is asked once for each name,
//     with an empty value (registered.go).
//  3. The definitions and the type make a plan: which field of the row goes where (node.go). Rows
//     with the same definitions share it.
//  4. The value is read by the plan (value.go).
//
// Beside what gob refuses (types that do not fit, unknown names, numbers that overflow, errors
// of GobDecode) Decode refuses rows that Encode never writes and that could end the process:
//
//   - with a length beyond the end of the row, or a struct without end. So each value takes a
//     byte of the row at least, and the time to read is in proportion to the row;
//   - of more than 64 MiB of memory, counted before it is allocated;
//   - with more than 1,000 values inside each other;
//   - with types that are defined twice or not at all, and with bytes that nobody reads.
//
// What remains: the methods of users' types that are called (GobDecode, GobEncode and the
// like) are given what a row holds. A panic in them is an error. One that recurses without end
// or allocates without bound ends the process, and so does one that changes a map while Encode
// reads it.
//
// # What gob does to a value
//
// gob writes a value that contains itself until the process ends, leaves out some fields, and
// does not give back a pointer to zero. Encode refuses the first, [Unsent] lists the second, and
// [Loss] finds the third. They know the types by their facts (types.go), and go through values
// as gob does (walk.go).
package gobrow

import (
	"errors"
	"fmt"
)

const (
	// maxDepth is how many structs, arrays, slices, maps and interface values
	// may stand inside each other in one row. Pointers do not count: gob does
	// not write them.
	maxDepth = 1000

	// maxEncoded bounds what check walks of a value that shares its parts, which gob
	// writes once for each path to them: 2^n bytes for n nodes. It is the cap
	// on a stored job, so no job that could be stored is refused.
	maxEncoded = 1 << 20

	// maxMemory is what one row may make Decode allocate, in bytes.
	maxMemory = 64 << 20

	// definitionMemory is what a definition, a field of it, and the plan of either
	// count of that. It is more than they take: gob may have to read them as well.
	definitionMemory = 1 << 10

	maxPlans     = 256     // rows with the same definitions, of which a Decoder keeps the plan,
	maxPlanBytes = 8 << 10 // and the length of their definitions
	maxLosses    = 10      // parts that an error of Loss names
	maxKeyInText = 50      // bytes of a map's key in an error
)

var (
	errNil         = errors.New("the value is nil")
	errTrailing    = errors.New("bytes after the value")
	errShort       = errors.New("the row ends too early")
	errUnfinished  = errors.New("a message that ends before its value")
	errTerminator  = errors.New("a struct without end")
	errMalformed   = errors.New("not a row that gob writes")
	errLength      = errors.New("a length beyond the end of the row")
	errDepth       = errors.New("nested too deeply, or containing itself")
	errMemory      = fmt.Errorf("the value takes more than %d MiB of memory", maxMemory>>20)
	errEncodedSize = errors.New("the encoded value is too long")
	errAmbiguous   = errors.New("type definitions that contradict each other")
	errUndefined   = errors.New("a type without definition")
	errMismatch    = errors.New("a type that differs from the program's")
)

// failure is what a reader panics with.
type failure struct{ error }

func fail(err error) { panic(failure{err}) }

// recoverTo turns a panic into an error. It is to be deferred.
func recoverTo(err *error) {
	switch r := recover().(type) {
	case nil:
	case failure:
		*err = r.error
	default:
		*err = fmt.Errorf("panic: %v", r)
	}
}

// Package gobrow turns jobs into stored rows and rows into jobs.
//
// A row is what encoding/gob writes for a variable of an interface type: the
// registered name of the concrete type, the definitions of the types that it
// is made of, and one value. The package knows gob's format, and nothing of jobs.
//
// encoding/gob writes the rows. It does not read them: it trusts what it reads, and
// 55 bytes that claim a map of 2^30 entries end the process. Decode reads the format,
// which gob documents and keeps, by itself. It allocates nothing that it has not
// counted before, and so it need not know how gob compiles types or allocates.
//
// Only gob knows the type that is registered under a name. It is asked once for each
// name, with an empty value: see registered.
//
// What remains: the methods of users' types that are called (GobDecode, GobEncode
// and the like) are given what a row holds. A panic in them is an error. One that
// recurses without end or allocates without bound ends the process, and so does
// one that changes a map while Encode reads it.
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

	// maxEncoded stops the walk of a value that shares its parts, which gob
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

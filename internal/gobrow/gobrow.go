// Package gobrow turns jobs into stored rows and rows into jobs.
//
// A row is what encoding/gob writes for a variable of an interface type: the
// registered name of the concrete type, the definitions of the types that it
// is made of, and one value. It knows gob's format, and nothing of jobs.
//
// gob trusts what it reads: 55 bytes that claim a map of 2^30 entries end the
// process. So Decode reads a row itself before gob does, along the row's
// definitions and the local types, and counts what gob will allocate, how deep
// it will go and how much it will compile. Before, gob sees no more of a row than
// its definitions, with an empty value, when it is asked for the type of a name.
//
// Whether a row is read as gob would rests on gob's documented format, and on no
// order in which gob compiles types: what such an order could matter for is
// refused, two definitions for one local type above all. What gob and the runtime
// allocate is documented nowhere. It is counted as in Go 1.26, but for what the
// allocator adds, which is half as much at most; a test compares the two.
//
// gob compiles the definitions of each stream, which takes most of the time of
// a row. Encode and Decode keep encoders and decoders that have done so. Rows of
// one type may begin with different bytes, since each process numbers types in
// the order in which it meets them.
//
// What remains: the methods of users' types that gob calls (GobDecode, GobEncode
// and the like) are given what a row holds. A panic in them is an error. One that
// recurses without end or allocates without bound ends the process, and so does
// one that changes a map while Encode reads it.
package gobrow

import "errors"

const (
	// MaxDepth is how many structs, arrays, slices, maps and interface values
	// may stand inside each other in one row. Pointers do not count: gob does
	// not write them.
	MaxDepth = 1000

	// maxEncoded stops the walk of a value that shares its parts, which gob
	// writes once for each path to them: 2^n bytes for n nodes. It is the cap
	// on a stored job, so no job that could be stored is refused.
	maxEncoded = 1 << 20

	// maxMemory is what one row may make gob allocate, in bytes, by the sizes
	// of the local types: one byte of a row can stand for a struct of any size.
	maxMemory = 64 << 20

	// maxCompiled is how many types and fields gob may compile for one row. It
	// compiles types anew for each field that it skips, so that without a bound
	// a few hundred KiB of definitions take gigabytes.
	maxCompiled = 1 << 16

	maxKeys         = 256     // sets of definitions that a Decoder keeps,
	maxKeyBytes     = 1 << 20 // their length together,
	maxKeptCompiled = 1 << 10 // and the types and fields of one of them

	// checkedLength is the length from which Encode scans what it has written,
	// so that Decode accepts it. Shorter rows reach the limits above only where an
	// element of their type takes 16 KiB.
	checkedLength = 4 << 10
)

var (
	errNil         = errors.New("the value is nil")
	errTrailing    = errors.New("bytes after the value")
	errShort       = errors.New("the row ends too early")
	errTerminator  = errors.New("a struct without end")
	errMalformed   = errors.New("not a row that gob writes")
	errLength      = errors.New("a length beyond the end of the row")
	errDepth       = errors.New("nested too deeply, or containing itself")
	errMemory      = errors.New("the value takes too much memory")
	errEncodedSize = errors.New("the encoded value is too long")
	errDefinitions = errors.New("too many type definitions")
	errAmbiguous   = errors.New("type definitions that contradict each other")
	errUnreadable  = errors.New("something that gob writes but cannot read")
	errReserved    = errors.New("a type that gob keeps to itself")
	errUndefined   = errors.New("a type without definition")
	errMismatch    = errors.New("a type that differs from the registered one")
)

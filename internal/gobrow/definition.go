package gobrow

// definition is a type as a row defines it.
type definition struct {
	kind      kind
	key, elem int32 // ids
	len       int   // of an array
	fields    []fieldDefinition
	body      []byte // as it stands in the row
}

type fieldDefinition struct {
	name string
	id   int32
}

// kind says how a value stands in a row. Those up to interfaceKind are the ids of
// types that need no definition.
type kind uint8

const (
	noKind kind = iota
	boolKind
	intKind
	uintKind
	floatKind
	bytesKind
	stringKind
	complexKind
	interfaceKind
	arrayKind
	sliceKind
	structKind
	mapKind
	gobKind // written by GobEncode
	binaryKind
	textKind
)

// String names the kind in errors.
func (k kind) String() string {
	return [...]string{"something else", "a bool", "an int", "a uint", "a float", "bytes", "a string", "a complex number", "an interface value",
		"an array", "a slice", "a struct", "a map", "what GobEncode writes", "what MarshalBinary writes", "what MarshalText writes"}[k]
}

// firstID is the first id of a type that needs a definition.
const firstID = 64

// forms are the fields of the wireType of encoding/gob's documentation, of which a definition
// has one, and how many fields each has. The first holds a name and an id without meaning.
var forms = [...]struct {
	kind   kind
	fields int
}{{arrayKind, 3}, {sliceKind, 2}, {structKind, 2}, {mapKind, 3}, {gobKind, 1}, {binaryKind, 1}, {textKind, 1}}

// define reads the definition of a type.
func (r *reader) define(id int32) {
	if id < firstID || r.types[id] != nil {
		fail(errAmbiguous)
	}
	r.spend(1, definitionMemory)
	d, start := &definition{}, r.pos
	r.fields(len(forms), func(form int) {
		if d.kind != noKind {
			fail(errAmbiguous)
		}
		d.kind = forms[form].kind
		r.fields(forms[form].fields, func(field int) {
			switch {
			case field == 0:
				r.nameAndID()
			case d.kind == structKind:
				for range r.count() {
					r.spend(1, definitionMemory)
					d.fields = append(d.fields, r.nameAndID())
				}
			case d.kind == mapKind && field == 1:
				d.key = r.id()
			case d.kind == arrayKind && field == 2:
				d.len = int(r.int())
			default:
				d.elem = r.id()
			}
		})
	})
	if d.kind == noKind {
		fail(errMalformed)
	}
	if d.len < 0 {
		fail(errLength)
	}
	d.body = r.row[start:r.pos]
	r.types[id] = d
}

func (r *reader) nameAndID() (f fieldDefinition) {
	r.fields(2, func(field int) {
		if field == 0 {
			f.name = string(r.bytes())
		} else {
			f.id = r.id()
		}
	})
	return f
}

// definition returns that of a type, which may be one that needs none.
func (r *reader) definition(id int32) *definition {
	d := r.types[id]
	if d == nil && id > 0 && id <= int32(interfaceKind) {
		d = &definition{kind: kind(id)}
	}
	if d == nil {
		fail(errUndefined)
	}
	return d
}

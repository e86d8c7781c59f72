package sqltx

import (
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// Rows are an argument that stands for the {rows} of a statement: any number of
// rows in one parameter for each column on PostgreSQL, and in one on SQLite. It is
// the last argument.
type Rows struct {
	// Fields are the names and types of the columns: "id bigint, name text".
	Fields string
	// Values are the rows: bool, int, int64, string, *string and nil.
	Values [][]any
}

// splitFields splits the Fields of Rows.
func splitFields(fields string) (names, types []string) {
	for field := range strings.SplitSeq(fields, ", ") {
		name, fieldType, _ := strings.Cut(field, " ")
		names, types = append(names, name), append(types, fieldType)
	}
	return names, types
}

// from returns the item of FROM, named v, and its arguments, which are the parameters
// from number first on.
func (r Rows) from(kind Kind, first int) (item string, args []any) {
	names, types := splitFields(r.Fields)
	columns := make([]string, len(names))
	if kind == SQLite {
		for i, name := range names {
			columns[i] = fmt.Sprintf("value ->> %d AS %s", i, name)
		}
		rows := appendList(nil, '[', r.Values, ']', func(b []byte, row []any) []byte {
			return appendList(b, '[', row, ']', func(b []byte, v any) []byte { return appendValue(b, v, appendJSON) })
		})
		return fmt.Sprintf("(SELECT %s FROM json_each($%d)) AS v", strings.Join(columns, ", "), first), []any{string(rows)}
	}
	for i := range names {
		columns[i] = fmt.Sprintf("$%d::%s[]", first+i, types[i])
		args = append(args, string(appendList(nil, '{', r.Values, '}', func(b []byte, row []any) []byte {
			return appendValue(b, row[i], appendQuoted)
		})))
	}
	return fmt.Sprintf("unnest(%s) AS v(%s)", strings.Join(columns, ", "), strings.Join(names, ", ")), args
}

// IDs are an argument for [Kind.Among]. On SQLite they are JSON, elsewhere an array.
type IDs []int64

// Among is the condition that a column is one of the [IDs] of parameter n.
func (kind Kind) Among(column string, n int) string {
	if kind == SQLite {
		return fmt.Sprintf("%s IN (SELECT value FROM json_each($%d))", column, n)
	}
	return fmt.Sprintf("%s = ANY($%d::bigint[])", column, n)
}

func (ids IDs) text(kind Kind) string {
	if kind == SQLite {
		return string(appendList(nil, '[', ids, ']', appendInt))
	}
	return string(appendList(nil, '{', ids, '}', appendInt))
}

// appendList writes values between commas. It grows b by what the first one takes.
func appendList[T any](b []byte, opening byte, values []T, closing byte, appendElement func([]byte, T) []byte) []byte {
	b = append(b, opening)
	start := len(b)
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendElement(b, v)
		if i == 0 {
			b = slices.Grow(b, (len(b)-start+1)*len(values))
		}
	}
	return append(b, closing)
}

// appendValue writes a value. All but text looks the same in JSON and in an array.
func appendValue(b []byte, v any, appendText func([]byte, string) []byte) []byte {
	switch v := v.(type) {
	case int:
		return appendInt(b, int64(v))
	case int64:
		return appendInt(b, v)
	case bool:
		return strconv.AppendBool(b, v)
	case string:
		return appendText(b, v)
	case *string:
		if v != nil {
			return appendText(b, *v)
		}
	}
	return append(b, "null"...)
}

func appendInt(b []byte, v int64) []byte { return strconv.AppendInt(b, v, 10) }

func appendJSON(b []byte, text string) []byte {
	quoted, _ := json.Marshal(text) // of a string it never fails
	return append(b, quoted...)
}

// appendQuoted writes text as an array of PostgreSQL takes it.
func appendQuoted(b []byte, text string) []byte {
	b = append(b, '"')
	for i := range len(text) {
		if c := text[i]; c == '"' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, text[i])
	}
	return append(b, '"')
}

// chunkBytes is about how much text of rows one statement has.
const chunkBytes = 8 << 20

// Chunks cuts values into slices for one statement each: of at most limit values, and of
// about 8 MiB of text, of which size gives a value's.
func Chunks[T any](values []T, limit int, size func(*T) int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		for rest := values; len(rest) > 0; {
			n, bytes := 1, size(&rest[0])
			for n < min(limit, len(rest)) && bytes+size(&rest[n]) <= chunkBytes {
				bytes += size(&rest[n])
				n++
			}
			if !yield(rest[:n]) {
				return
			}
			rest = rest[n:]
		}
	}
}

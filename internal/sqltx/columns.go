package sqltx

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// columnTypes are the types that hold every value of a field of PostgreSQL exactly,
// by the field's type. A number of too few bits or a text that is too short is an
// error when it is written.
var columnTypes = map[string][]string{
	"bigint":      {"bigint", "integer"},
	"int":         {"integer", "bigint"},
	"boolean":     {"boolean"},
	"text":        {"text", "character varying"},
	"timestamptz": {"timestamp with time zone", "timestamp(6) with time zone"},
}

// affinities are those of a column of SQLite that stores every value of a field as
// it is given, by the field's type.
var affinities = map[string][]string{
	"bigint":      {"integer", "numeric", "blob"},
	"int":         {"integer", "numeric", "blob"},
	"boolean":     {"integer", "numeric", "blob"},
	"text":        {"text", "blob"},
	"timestamptz": {"numeric", "text", "blob", "integer", "real"},
}

// CheckTable makes sure that a table has the columns of fields, each of a type that
// holds its values exactly. Fields are as in [Rows].
func (tx *Tx) CheckTable(table, fields string) error {
	if err := tx.checkColumns(table, fields); err != nil {
		return fmt.Errorf("table %s: %w", tx.db.Table(table), err)
	}
	return nil
}

func (tx *Tx) checkColumns(table, fields string) error {
	types, err := tx.columns(table)
	if err != nil {
		return err
	}
	var columns []string
	for field := range strings.SplitSeq(fields, ", ") {
		name, fieldType, _ := strings.Cut(field, " ")
		columns = append(columns, name)
		if tx.db.kind == Portable {
			continue
		}
		got, found := types[name]
		if !found {
			return fmt.Errorf("column %s is missing, so it seems to be another application's: gorm's NamingStrategy with a TablePrefix gives ours another name", name)
		}
		if err := tx.db.checkType(name, fieldType, got); err != nil {
			return err
		}
	}
	// What the catalogue says needs no right to read the table.
	rows, err := tx.look(table, columns)
	if err != nil {
		return err
	}
	return errors.Join(rows.Err(), rows.Close())
}

// look reads no row.
func (tx *Tx) look(table string, columns []string) (*sql.Rows, error) {
	if tx.db.kind == Portable {
		return tx.Model(table, nil).Select(columns).Where("1 = 0").Rows()
	}
	return tx.Query("SELECT " + strings.Join(columns, ", ") + " FROM {" + table + "} WHERE 1 = 0")
}

// checkType is an error if a column does not hold a field of a type.
func (db *DB) checkType(column, fieldType, got string) error {
	if db.kind == SQLite {
		if !slices.Contains(affinities[fieldType], affinity(got)) {
			return fmt.Errorf("column %s has the type %q, which changes what is stored as %s", column, got, fieldType)
		}
		return nil
	}
	base, _, _ := strings.Cut(got, "(")
	if slices.Contains(columnTypes[fieldType], got) || base == "character varying" && fieldType == "text" {
		return nil
	}
	hint := ""
	if fieldType == "timestamptz" && strings.HasSuffix(got, "without time zone") {
		hint = fmt.Sprintf("; ALTER COLUMN %s TYPE timestamp with time zone USING %s AT TIME ZONE 'UTC', if its times are in UTC", column, column)
	}
	return fmt.Errorf("column %s has the type %s, not %s%s", column, got, columnTypes[fieldType][0], hint)
}

// columns are the names and types of the columns of a table.
func (tx *Tx) columns(table string) (map[string]string, error) {
	types := make(map[string]string)
	text, name := "SELECT name, type FROM pragma_table_info($1)", tx.db.names.prefix+table
	switch tx.db.kind {
	case Portable:
		return nil, nil
	case Postgres:
		// A domain counts as the type below it.
		text = `SELECT a.attname, CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) ELSE format_type(a.atttypid, a.atttypmod) END
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped`
		name = tx.db.names.qualified(table)
	}
	err := tx.Each(text, []any{name}, func(rows *sql.Rows) error {
		var column, columnType string
		err := rows.Scan(&column, &columnType)
		types[strings.ToLower(column)] = columnType
		return err
	})
	return types, err
}

// affinity is what SQLite makes of a declared type:
// https://www.sqlite.org/datatype3.html#determination_of_column_affinity
func affinity(declared string) string {
	declared = strings.ToUpper(declared)
	for _, rule := range []struct {
		affinity string
		parts    []string
	}{
		{"integer", []string{"INT"}},
		{"text", []string{"CHAR", "CLOB", "TEXT"}},
		{"blob", []string{"BLOB"}},
		{"real", []string{"REAL", "FLOA", "DOUB"}},
	} {
		if slices.ContainsFunc(rule.parts, func(part string) bool { return strings.Contains(declared, part) }) {
			return rule.affinity
		}
	}
	if declared == "" {
		return "blob"
	}
	return "numeric"
}

package sqltx

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A columnType is the type of a column as the database stores it.
type columnType struct {
	declared string
	// stored is the affinity on SQLite, and on PostgreSQL the declared type without the
	// length of a text.
	stored string
}

// exactTypes are the stored types that hold every value of a field of [Rows] exactly, by
// its type. A number or a text that is too long for one is an error when it is written.
var exactTypes = map[Kind]map[string][]string{
	Postgres: {
		"bigint":      {"bigint", "integer"},
		"int":         {"integer", "bigint"},
		"boolean":     {"boolean"},
		"text":        {"text", "character varying"},
		"timestamptz": {"timestamp with time zone", "timestamp(6) with time zone"},
	},
	SQLite: {
		"bigint":      {"integer", "numeric", "blob"},
		"int":         {"integer", "numeric", "blob"},
		"boolean":     {"integer", "numeric", "blob"},
		"text":        {"text", "blob"},
		"timestamptz": {"numeric", "text", "blob", "integer", "real"},
	},
}

// listColumns gives the name of each column of a table, its declared and its stored type.
var listColumns = map[Kind]string{
	// A domain counts as the type below it.
	Postgres: `SELECT lower(name), type, CASE WHEN type LIKE 'character varying(%' THEN 'character varying' ELSE type END
FROM (SELECT a.attname AS name, CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) ELSE format_type(a.atttypid, a.atttypmod) END AS type
	FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped) AS listed`,
	// The rules of https://www.sqlite.org/datatype3.html#determination_of_column_affinity.
	SQLite: `SELECT lower(name), type, CASE
	WHEN type LIKE '%INT%' THEN 'integer'
	WHEN type LIKE '%CHAR%' OR type LIKE '%CLOB%' OR type LIKE '%TEXT%' THEN 'text'
	WHEN type LIKE '%BLOB%' OR type = '' THEN 'blob'
	WHEN type LIKE '%REAL%' OR type LIKE '%FLOA%' OR type LIKE '%DOUB%' THEN 'real'
	ELSE 'numeric' END FROM pragma_table_info($1)`,
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
	names, types := splitFields(fields)
	if tx.db.kind == Portable {
		return closed(tx.Model(table, nil).Select(names).Where("1 = 0").Rows())
	}
	stored := make(map[string]columnType)
	err := tx.Each(listColumns[tx.db.kind], []any{tx.db.names.inCatalogue(table)}, func(rows *sql.Rows) error {
		var name string
		var column columnType
		err := rows.Scan(&name, &column.declared, &column.stored)
		stored[name] = column
		return err
	})
	if err != nil {
		return err
	}
	for i, name := range names {
		column, found := stored[name]
		if !found {
			return fmt.Errorf("column %s is missing, so it seems to be another application's: gorm's NamingStrategy with a TablePrefix gives ours another name", name)
		}
		if !slices.Contains(exactTypes[tx.db.kind][types[i]], column.stored) {
			return column.refusal(tx.db.kind, name, types[i])
		}
	}
	// What the catalogue says needs no right to read the table.
	return closed(tx.Query("SELECT " + strings.Join(names, ", ") + " FROM {" + table + "} WHERE 1 = 0"))
}

// refusal says why a column does not hold a field.
func (c *columnType) refusal(kind Kind, name, fieldType string) error {
	if kind == SQLite {
		return fmt.Errorf("column %s has the type %q, which changes what is stored as %s", name, c.declared, fieldType)
	}
	hint := ""
	if fieldType == "timestamptz" && strings.HasSuffix(c.declared, "without time zone") {
		hint = fmt.Sprintf("; ALTER COLUMN %s TYPE timestamp with time zone USING %s AT TIME ZONE 'UTC', if its times are in UTC", name, name)
	}
	return fmt.Errorf("column %s has the type %s, not %s%s", name, c.declared, exactTypes[Postgres][fieldType][0], hint)
}

// closed closes the rows of a query that is asked for its error.
func closed(rows *sql.Rows, err error) error {
	if err != nil {
		return err
	}
	return errors.Join(rows.Err(), rows.Close())
}

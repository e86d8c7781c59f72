package sqltx

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Table is a table by its name without a prefix. Its Fields are the names and types of its
// columns, as in [Rows].
type Table struct{ Name, Fields string }

// Migrate makes sure that tables are there, and have their columns. Create creates those
// that are missing. If it is nil, a missing table is an error.
func (db *DB) Migrate(ctx context.Context, op string, tables []Table, create func(tx *Tx) error) error {
	missing := ""
	look := func(tx *Tx) error {
		missing = ""
		for _, table := range tables {
			exists, err := tx.Exists(table.Name)
			if err != nil {
				return err
			}
			if !exists {
				missing = table.Name
			} else if err := tx.check(table); err != nil {
				return fmt.Errorf("table %s: %w", db.Table(table.Name), err)
			}
		}
		return nil
	}
	err := db.Attempt(ctx, look)
	switch {
	case err != nil || missing == "":
		return db.Failed(op, err)
	case create == nil:
		where := ""
		if db.names.schema != "" {
			where = " in the schema " + db.names.schema
		}
		return fmt.Errorf("%s: the table %s is missing%s, and SkipMigration is set: Schema gives the statements that create it", op, db.Table(missing), where)
	}
	err = db.Write(ctx, op, create, func(tx *Tx) (bool, error) {
		err := look(tx)
		return missing == "", err
	})
	lookErr := db.Attempt(ctx, look)
	if err != nil && (lookErr != nil || missing != "") {
		return err
	}
	return db.Failed(op, lookErr) // nil: another process may have been faster
}

// check makes sure that a table has the columns of its fields, each of a type that holds
// its values exactly.
func (tx *Tx) check(table Table) error {
	names, types := splitFields(table.Fields)
	if tx.db.kind == Portable {
		return closed(tx.Model(table.Name, nil).Select(names).Where("1 = 0").Rows())
	}
	stored := make(map[string]string)
	err := tx.Each(listColumns[tx.db.kind], []any{tx.db.names.inCatalogue(table.Name)}, func(rows *sql.Rows) error {
		var name, what string
		err := rows.Scan(&name, &what)
		stored[name] = what
		return err
	})
	if err != nil {
		return err
	}
	for i, name := range names {
		if err := tx.db.checkColumn(name, types[i], stored[name]); err != nil {
			return err
		}
	}
	// What the catalogue says needs no right to read the table.
	return closed(tx.Query("SELECT " + strings.Join(names, ", ") + " FROM {" + table.Name + "} WHERE 1 = 0"))
}

// checkColumn is an error if what a column stores is not exactly a field.
func (db *DB) checkColumn(name, fieldType, stored string) error {
	if stored == "" {
		return fmt.Errorf("column %s is missing, so it seems to be another application's: gorm's NamingStrategy with a TablePrefix gives ours another name", name)
	}
	exact := exactTypes[db.kind][fieldType]
	if what, _, _ := strings.Cut(stored, "("); slices.Contains(exact, stored) || fieldType == "text" && slices.Contains(exact, what) {
		return nil
	}
	if db.kind == SQLite {
		return fmt.Errorf("column %s has the affinity %s, which changes what is stored as %s", name, stored, fieldType)
	}
	hint := ""
	if fieldType == "timestamptz" && strings.HasSuffix(stored, "without time zone") {
		hint = fmt.Sprintf("; ALTER COLUMN %s TYPE timestamp with time zone USING %s AT TIME ZONE 'UTC', if its times are in UTC", name, name)
	}
	return fmt.Errorf("column %s has the type %s, not %s%s", name, stored, exact[0], hint)
}

// closed closes the rows of a query that is asked for its error.
func closed(rows *sql.Rows, err error) error {
	if err != nil {
		return err
	}
	return errors.Join(rows.Err(), rows.Close())
}

// listColumns gives the columns of a table and what they store: on SQLite the affinity, by
// the rules of https://www.sqlite.org/datatype3.html#determination_of_column_affinity, and
// on PostgreSQL the type, where a domain counts as the one below it.
var listColumns = map[Kind]string{
	SQLite: `SELECT lower(name), CASE
	WHEN type LIKE '%INT%' THEN 'integer'
	WHEN type LIKE '%CHAR%' OR type LIKE '%CLOB%' OR type LIKE '%TEXT%' THEN 'text'
	WHEN type LIKE '%BLOB%' OR type = '' THEN 'blob'
	WHEN type LIKE '%REAL%' OR type LIKE '%FLOA%' OR type LIKE '%DOUB%' THEN 'real'
	ELSE 'numeric' END FROM pragma_table_info($1)`,
	Postgres: `SELECT lower(a.attname), CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) ELSE format_type(a.atttypid, a.atttypmod) END
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped`,
}

// exactTypes are what a column may store that holds every value of a field of [Rows]
// exactly, by the type of the field. A number or a text that is too long for the column is
// an error when it is written.
var exactTypes = map[Kind]map[string][]string{
	SQLite: {
		"bigint":      {"integer", "numeric", "blob"},
		"int":         {"integer", "numeric", "blob"},
		"boolean":     {"integer", "numeric", "blob"},
		"text":        {"text", "blob"},
		"timestamptz": {"numeric", "text", "blob", "integer", "real"},
	},
	Postgres: {
		"bigint":      {"bigint", "integer"},
		"int":         {"integer", "bigint"},
		"boolean":     {"boolean"},
		"text":        {"text", "character varying"}, // of any length
		"timestamptz": {"timestamp with time zone", "timestamp(6) with time zone"},
	},
}

package sqltx

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gorm.io/gorm"
)

// maxName is how many bytes of a name PostgreSQL keeps.
const maxName = 63

// names say how tables and indexes are called. They are the same for all of them
// and for as long as the DB is open: whatever a connection's search path becomes,
// every statement names the schema.
type names struct {
	schema string // of PostgreSQL; elsewhere it is empty
	prefix string
	first  string            // of the tables, which GORM's plugins are told
	shown  string            // what the user put before the names
	words  *strings.Replacer // of statements
}

// learnNames asks GORM's naming strategy for the prefix, and on PostgreSQL the
// database for the schema in which an unqualified name is created.
func (db *DB) learnNames(ctx context.Context, options Options) error {
	const probe = "things"
	prefix, found := strings.CutSuffix(db.gorm.NamingStrategy.JoinTableName(probe), probe)
	if !found {
		return fmt.Errorf("gorm's NamingStrategy makes %q of the name of a table: only a prefix is supported", db.gorm.NamingStrategy.JoinTableName(probe))
	}
	n := names{shown: prefix, prefix: prefix, first: prefix + options.Tables[0], words: db.names.words}
	dot := strings.LastIndexByte(prefix, '.')
	switch {
	case db.kind == SQLite && dot >= 0:
		return fmt.Errorf("table prefix %q: SQLite has no schemas", prefix)
	case db.kind == Postgres && dot >= 0:
		n.schema, n.prefix = prefix[:dot], prefix[dot+1:]
	}
	db.names = n
	if db.kind == Postgres {
		for _, name := range slices.Concat(options.Tables, options.Indexes) {
			if len(n.prefix+name) > maxName {
				return fmt.Errorf("table prefix %q: %s would have more than the %d bytes of a name", prefix, n.prefix+name, maxName)
			}
		}
		if err := db.learnSchema(ctx); err != nil {
			return err
		}
	}
	words := words[db.kind]
	words = words[:len(words):len(words)]
	for _, name := range options.Tables {
		words = append(words, "{"+name+"}", db.qualified(name))
	}
	for _, name := range options.Indexes {
		words = append(words, "{"+name+"}", quote(db.names.prefix+name))
	}
	db.names.words = strings.NewReplacer(words...)
	return nil
}

func (db *DB) learnSchema(ctx context.Context) error {
	var schema sql.NullString
	text, args := "SELECT current_schema()", []any(nil)
	if db.names.schema != "" {
		text, args = "SELECT nspname FROM pg_namespace WHERE nspname = $1", []any{db.names.schema}
	}
	err := db.Attempt(ctx, func(tx *Tx) error { return tx.Row(text, args, &schema) })
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("table prefix %q: there is no schema %q", db.names.shown, db.names.schema)
	case err != nil:
		return err
	case !schema.Valid:
		return errors.New("no schema of the search path exists, so that no table can be created")
	}
	db.names.schema = schema.String
	return nil
}

// qualified is the name of a table in statements.
func (db *DB) qualified(table string) string {
	if db.names.schema == "" {
		return quote(db.names.prefix + table)
	}
	return quote(db.names.schema) + "." + quote(db.names.prefix+table)
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// Table is the name of a table as the user knows it, such as app.cron_jobs.
func (db *DB) Table(name string) string { return db.names.shown + name }

// Schema is the schema of the tables, on PostgreSQL, and elsewhere empty.
func (db *DB) Schema() string { return db.names.schema }

// Words puts a statement without parameters into the words of the database.
func (db *DB) Words(statement string) string { return db.names.words.Replace(statement) }

// words are what the words in braces mean, and what the languages differ in.
var words = map[Kind][]string{
	Postgres: {
		"{timestamp}", "timestamp with time zone", "{without rowid}", "",
		"{clock}", "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
		"{json list}", "json_agg", "{json pair}", "json_build_array",
	},
	// On SQLite all processes have one clock: theirs.
	SQLite: {
		"{timestamp}", "datetime", "{without rowid}", " WITHOUT ROWID",
		"{clock}", "NULL",
		"{json list}", "json_group_array", "{json pair}", "json_array",
		"$", "?", "IS DISTINCT FROM", "IS NOT",
		" FOR UPDATE OF r SKIP LOCKED", "", " FOR UPDATE SKIP LOCKED", "", " FOR UPDATE", "", " FOR SHARE OF m", "",
		" FOR KEY SHARE SKIP LOCKED", "", " FOR KEY SHARE", "",
	},
}

// Exists reports whether there is a table.
func (tx *Tx) Exists(table string) (exists bool, err error) {
	switch tx.db.kind {
	case Postgres:
		err = tx.Row("SELECT to_regclass($1) IS NOT NULL", []any{tx.db.qualified(table)}, &exists)
	case SQLite:
		err = tx.Row("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type IN ('table', 'view') AND name = $1 COLLATE NOCASE)", []any{tx.db.names.prefix + table}, &exists)
	default:
		exists = tx.Gorm().Migrator().HasTable(tx.db.Table(table))
	}
	return exists, err
}

// IndexNameTaken reports whether there is anything where the tables are that has
// the name of the index.
func (tx *Tx) IndexNameTaken(index string) (taken bool, err error) {
	name := tx.db.names.prefix + index
	if tx.db.kind == SQLite {
		err = tx.Row("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = $1 COLLATE NOCASE)", []any{name}, &taken)
		return taken, err
	}
	err = tx.Row("SELECT EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2)",
		[]any{tx.db.names.schema, name}, &taken)
	return taken, err
}

// Model is GORM on the table, for databases that this package has no statements for.
func (tx *Tx) Model(table string, model any) *gorm.DB {
	return tx.Gorm().Table(tx.db.Table(table)).Model(model)
}

package sqltx

import (
	"slices"
	"strings"

	"gorm.io/gorm"
)

// names say how the user wants tables and indexes to be called.
type names struct {
	full  map[string]string // as GORM takes it, with a schema if there is one
	first string
	words *strings.Replacer // of statements
}

func newNames(kind Kind, tables []string) names {
	n := names{full: make(map[string]string, len(tables))}
	words := slices.Clone(words[kind])
	for _, name := range tables {
		n.full[name] = name
		words = append(words, "{"+name+"}", name)
	}
	if len(tables) > 0 {
		n.first = tables[0]
	}
	n.words = strings.NewReplacer(words...)
	return n
}

// Table is the name of a table as the user knows it, such as app.cron_jobs.
func (db *DB) Table(name string) string { return db.names.full[name] }

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
func (tx *Tx) Exists(name string) (exists bool, err error) {
	switch tx.db.kind {
	case Postgres:
		err = tx.Row("SELECT to_regclass($1) IS NOT NULL", []any{tx.db.Table(name)}, &exists)
	case SQLite:
		err = tx.Row("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type IN ('table', 'view') AND name = $1 COLLATE NOCASE)", []any{tx.db.Table(name)}, &exists)
	default:
		exists = tx.Gorm().Migrator().HasTable(tx.db.Table(name))
	}
	return exists, err
}

// Model is GORM on the table, for databases that this package has no statements for.
func (tx *Tx) Model(table string, model any) *gorm.DB {
	return tx.Gorm().Table(tx.db.Table(table)).Model(model)
}

// NameTaken reports whether there is anything of that name where the table is. The
// names are of Options.Names.
func (tx *Tx) NameTaken(name, table string) (taken bool, err error) {
	if tx.db.kind == SQLite {
		err = tx.Row("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = $1 COLLATE NOCASE)", []any{tx.db.Table(name)}, &taken)
		return taken, err
	}
	err = tx.Row("SELECT EXISTS (SELECT 1 FROM pg_class WHERE relname = $1::text AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = $2::regclass))",
		[]any{tx.db.Table(name), tx.db.Table(table)}, &taken)
	return taken, err
}

// Words puts a statement without parameters into the words of the database.
func (db *DB) Words(statement string) string { return db.names.words.Replace(statement) }

package sqltx

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gorm.io/gorm"
	"gorm.io/gorm/schema"
)

// maxName is how many bytes of a name PostgreSQL keeps.
const maxName = 63

// names say how tables and indexes are called. They are the same for all of them
// and for as long as the DB is open: whatever a connection's search path becomes,
// every statement names the schema.
type names struct {
	kind   Kind
	schema string // of PostgreSQL; elsewhere it is empty
	prefix string
	told   string            // the table that GORM's plugins are told
	shown  string            // what the user put before the names
	words  *strings.Replacer // of statements
}

// prefixOf asks GORM's naming strategy for the prefix.
func prefixOf(strategy schema.Namer) (string, error) {
	const probe = "things"
	if strategy == nil {
		return "", nil
	}
	name := strategy.JoinTableName(probe)
	prefix, found := strings.CutSuffix(name, probe)
	if !found {
		return "", fmt.Errorf("gorm's NamingStrategy makes %q of the name of a table: only a prefix is supported", name)
	}
	return prefix, nil
}

// namesOf are the names by the options alone.
func namesOf(kind Kind, strategy schema.Namer, options Options) (names, error) {
	prefix, err := prefixOf(strategy)
	if err != nil {
		return names{}, err
	}
	n := names{kind: kind, shown: prefix, prefix: prefix, told: prefix + options.Tables[0]}
	dot := strings.LastIndexByte(prefix, '.')
	switch {
	case kind == SQLite && dot >= 0:
		return names{}, fmt.Errorf("table prefix %q: SQLite has no schemas", prefix)
	case kind == Postgres && dot >= 0:
		n.schema, n.prefix = prefix[:dot], prefix[dot+1:]
	}
	if kind == Postgres {
		for _, name := range slices.Concat(options.Tables, options.Indexes) {
			if len(n.prefix+name) > maxName {
				return names{}, fmt.Errorf("table prefix %q: %s would have more than the %d bytes of a name", prefix, n.prefix+name, maxName)
			}
		}
	}
	n.setWords(options)
	return n, nil
}

// setWords puts the names into the words of statements.
func (n *names) setWords(options Options) {
	pairs := slices.Clone(languages[n.kind])
	for _, name := range options.Tables {
		pairs = append(pairs, "{"+name+"}", n.qualified(name))
	}
	for _, name := range options.Indexes {
		pairs = append(pairs, "{"+name+"}", quote(n.prefix+name))
	}
	n.words = strings.NewReplacer(pairs...)
}

// rowLocks are the locks of rows that a SELECT of PostgreSQL takes. SQLite has none.
var rowLocks = regexp.MustCompile(` FOR (NO KEY UPDATE|UPDATE|KEY SHARE|SHARE)( OF \w+)?( SKIP LOCKED| NOWAIT)?`)

// put puts a statement without {rows} into the words of the database.
func (n *names) put(statement string) string {
	if n.kind == SQLite {
		statement = rowLocks.ReplaceAllLiteralString(statement, "")
	}
	return n.words.Replace(statement)
}

// qualified is the name of a table in statements.
func (n *names) qualified(table string) string {
	if n.schema == "" {
		return quote(n.prefix + table)
	}
	return quote(n.schema) + "." + quote(n.prefix+table)
}

// Script puts statements without parameters into the words of the database that the
// options name, without opening it. It ends each with a semicolon.
func Script(options Options, statements []string) (string, error) {
	kind := kindOf(options.Dialector.Name())
	if kind == Portable {
		return "", fmt.Errorf("there are no statements for %s: GORM makes them", options.Dialector.Name())
	}
	n, err := namesOf(kind, options.Config.NamingStrategy, options)
	if err != nil {
		return "", err
	}
	var script strings.Builder
	for _, statement := range statements {
		script.WriteString(n.put(statement) + ";\n")
	}
	return script.String(), nil
}

// learnSchema asks PostgreSQL for the schema in which an unqualified name is created.
func (db *DB) learnSchema(ctx context.Context) error {
	var found sql.NullString
	text, args := "SELECT current_schema()", []any(nil)
	if db.names.schema != "" {
		text, args = "SELECT nspname FROM pg_namespace WHERE nspname = $1", []any{db.names.schema}
	}
	err := db.Attempt(ctx, func(tx *Tx) error { return tx.Row(text, args, &found) })
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("table prefix %q: there is no schema %q", db.names.shown, db.names.schema)
	case err != nil:
		return err
	case !found.Valid:
		return errors.New("no schema of the search path exists, so that no table can be created")
	}
	db.names.schema = found.String
	return nil
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// Table is the name of a table as the user knows it, such as app.cron_jobs.
func (db *DB) Table(name string) string { return db.names.shown + name }

// Schema is the schema of the tables, on PostgreSQL, and elsewhere empty.
func (db *DB) Schema() string { return db.names.schema }

// languages are what the words in braces mean, and what the languages differ in besides
// rowLocks.
var languages = map[Kind][]string{
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
	},
}

// Exists reports whether there is a table.
func (tx *Tx) Exists(table string) (exists bool, err error) {
	switch tx.db.kind {
	case Postgres:
		err = tx.Row("SELECT to_regclass($1) IS NOT NULL", []any{tx.db.names.qualified(table)}, &exists)
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

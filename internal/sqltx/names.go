package sqltx

import (
	"cmp"
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

// names are how tables and indexes are called. They stay as they are while the DB is
// open: whatever the search path of a connection becomes, every statement names the
// schema.
type names struct {
	kind   Kind
	schema string            // of PostgreSQL; elsewhere it is empty
	prefix string            // of each name in the schema
	given  string            // what the user gave as prefix, with the schema
	first  string            // the first table, which GORM's plugins are told of every statement
	words  *strings.Replacer // of statements
}

// namesOf returns the names by the options alone: an unqualified name has no schema.
func namesOf(kind Kind, strategy schema.Namer, options Options) (names, error) {
	given, err := prefixOf(strategy)
	if err != nil {
		return names{}, err
	}
	n := names{kind: kind, prefix: given, given: given, first: given + options.Tables[0].Name}
	if dot := strings.LastIndexByte(given, '.'); dot >= 0 {
		switch kind {
		case SQLite:
			return names{}, fmt.Errorf("table prefix %q: SQLite has no schemas", given)
		case Postgres:
			n.schema, n.prefix = given[:dot], given[dot+1:]
		}
	}
	longest := slices.MaxFunc(options.names(), func(a, b string) int { return cmp.Compare(len(a), len(b)) })
	if name := n.prefix + longest; kind == Postgres && len(name) > maxName {
		return names{}, fmt.Errorf("table prefix %q: %s would have more than the %d bytes of a name", given, name, maxName)
	}
	n.setWords(options)
	return n, nil
}

// names are those of all tables and indexes, without a prefix.
func (o *Options) names() []string {
	all := slices.Clone(o.Indexes)
	for _, table := range o.Tables {
		all = append(all, table.Name)
	}
	return all
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

// rowLocks are the locks of rows that a SELECT of PostgreSQL takes. SQLite has none.
var rowLocks = regexp.MustCompile(` FOR (NO KEY UPDATE|UPDATE|KEY SHARE|SHARE)( OF \w+)?( SKIP LOCKED| NOWAIT)?`)

// setWords puts the names into the words of statements.
func (n *names) setWords(options Options) {
	pairs := slices.Clone(languages[n.kind])
	for _, table := range options.Tables {
		pairs = append(pairs, "{"+table.Name+"}", n.qualified(table.Name))
	}
	for _, index := range options.Indexes {
		pairs = append(pairs, "{"+index+"}", quote(n.prefix+index))
	}
	n.words = strings.NewReplacer(pairs...)
}

// translate puts a statement without {rows} into the words of the database.
func (n *names) translate(statement string) string {
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

// inCatalogue is the name of a table or index as an argument: to_regclass takes it in
// quotes and with its schema, SQLite's catalogue as it is.
func (n *names) inCatalogue(name string) string {
	if n.kind == Postgres {
		return n.qualified(name)
	}
	return n.prefix + name
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

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
		script.WriteString(n.translate(statement) + ";\n")
	}
	return script.String(), nil
}

// learnSchema asks PostgreSQL for the schema of the tables: where an unqualified name is
// created, unless the user names one.
func (db *DB) learnSchema(ctx context.Context, options Options) error {
	var found sql.NullString
	named := db.names.schema
	err := db.Attempt(ctx, func(tx *Tx) error {
		return tx.Row("SELECT CASE WHEN $1 = '' THEN current_schema() ELSE (SELECT nspname FROM pg_namespace WHERE nspname = $1) END", []any{named}, &found)
	})
	switch {
	case err != nil:
		return err
	case !found.Valid && named != "":
		return fmt.Errorf("table prefix %q: there is no schema %q", db.names.given, named)
	case !found.Valid:
		return errors.New("no schema of the search path exists, so that no table can be created")
	}
	db.names.schema = found.String
	db.names.setWords(options)
	return nil
}

// Table is the name of a table as the user knows it, such as app.cron_jobs.
func (db *DB) Table(name string) string { return db.names.given + name }

// Exists reports whether there is a table or an index.
func (tx *Tx) Exists(name string) (exists bool, err error) {
	listed := []any{tx.db.names.inCatalogue(name)}
	switch tx.db.kind {
	case Postgres:
		err = tx.Row("SELECT to_regclass($1) IS NOT NULL", listed, &exists)
	case SQLite:
		err = tx.Row("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type <> 'trigger' AND name = $1 COLLATE NOCASE)", listed, &exists)
	default:
		exists = tx.Gorm().Migrator().HasTable(tx.db.Table(name))
	}
	return exists, err
}

// Model is GORM on the table, for databases that this package has no statements for.
func (tx *Tx) Model(table string, model any) *gorm.DB {
	return tx.Gorm().Table(tx.db.Table(table)).Model(model)
}

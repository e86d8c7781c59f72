package sqltx

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"gorm.io/gorm"
)

// Tx runs statements in a transaction, or on a connection if there is none. It is
// valid until the function that was given it returns, and not for concurrent use.
//
// A statement is written for PostgreSQL; its parameters are $1, $2 and so on. These
// words stand for what differs from database to database:
//
//   - a name of Options.Tables or Options.Indexes in braces, such as {jobs};
//   - {rows} for the item of FROM, named v, that an argument of type [Rows] becomes;
//   - {clock} for the time of the database in microseconds, or NULL on SQLite;
//   - {timestamp} for the type of instants, {without rowid} for the end of a CREATE
//     TABLE, {json list} and {json pair} for functions that make JSON.
//
// The locks of PostgreSQL are left out on SQLite, where a transaction that writes
// is alone.
type Tx struct {
	db   *DB
	gorm *gorm.DB
	sql  *sql.Tx   // nil: somebody else ends the transaction, or there is none
	now  time.Time // of one that writes: when it began
	xid  string    // its id, on PostgreSQL
}

// newTx returns a Tx on one connection or transaction.
func (db *DB) newTx(ctx context.Context, pool gorm.ConnPool) *Tx {
	session := db.gorm.Session(&gorm.Session{NewDB: true, Context: ctx})
	session.Statement.ConnPool = connPool{pool, db.unprepared}
	return &Tx{db: db, gorm: session}
}

// Gorm is GORM on the transaction.
func (tx *Tx) Gorm() *gorm.DB { return tx.gorm }

// Kind is the language of the database.
func (tx *Tx) Kind() Kind { return tx.db.kind }

// Now is when the transaction of a Write began, by the clock of the database. It is
// in UTC microseconds.
func (tx *Tx) Now() time.Time { return tx.now }

// Exec executes a statement that returns no rows.
func (tx *Tx) Exec(text string, args ...any) error {
	statement := tx.statement(text, args)
	return statement.Callback().Raw().Execute(statement).Error
}

// Row scans the first row of a query. Its error is sql.ErrNoRows if there is none, and
// not if the query failed.
func (tx *Tx) Row(text string, args []any, dest ...any) error {
	found := false
	err := tx.Each(text, args, func(rows *sql.Rows) error {
		if found {
			return nil
		}
		found = true
		return rows.Scan(dest...)
	})
	if err == nil && !found {
		return sql.ErrNoRows
	}
	return err
}

// Each calls scan for each row of a query.
func (tx *Tx) Each(text string, args []any, scan func(rows *sql.Rows) error) error {
	rows, err := tx.Query(text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

// Query returns the rows of a query. The caller closes them.
func (tx *Tx) Query(text string, args ...any) (*sql.Rows, error) {
	return tx.statement(text, args).Rows()
}

// Savepoint undoes what write did if it returns an error.
func (tx *Tx) Savepoint(write func() error) error {
	if err := tx.Exec("SAVEPOINT " + savepoint); err != nil {
		return err
	}
	if err := write(); err != nil {
		// If the connection broke, so will the COMMIT.
		_ = tx.Exec("ROLLBACK TO SAVEPOINT " + savepoint)
		_ = tx.Exec("RELEASE SAVEPOINT " + savepoint)
		return err
	}
	return tx.Exec("RELEASE SAVEPOINT " + savepoint)
}

// savepoint is the name of each. Those within one another may share it.
const savepoint = "sqltx"

// statement puts a statement into the words of the database.
func (tx *Tx) statement(text string, args []any) *gorm.DB {
	args = slices.Clone(args)
	for i, arg := range args {
		switch arg := arg.(type) {
		case Rows:
			from, params := arg.from(tx.db.kind, i+1)
			text = strings.Replace(text, "{rows}", from, 1)
			args = append(args[:i], params...)
		case IDs:
			args[i] = arg.text(tx.db.kind)
		}
	}
	statement := tx.gorm.Table(tx.db.names.first)
	statement.Statement.SQL.WriteString(tx.db.names.translate(text))
	statement.Statement.Vars = args
	return statement
}

// connPool is a connection or transaction as GORM's statements use it. It poses as a
// transaction, so that dbresolver does not take a read to another database than the
// writes.
type connPool struct {
	gorm.ConnPool
	unprepared bool // pgx is told to prepare no statement
}

var _ gorm.TxCommitter = connPool{}

func (connPool) Commit() error   { return gorm.ErrInvalidTransaction }
func (connPool) Rollback() error { return gorm.ErrInvalidTransaction }

func (c connPool) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return c.ConnPool.ExecContext(ctx, query, c.with(args)...)
}

func (c connPool) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return c.ConnPool.QueryContext(ctx, query, c.with(args)...)
}

func (c connPool) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return c.ConnPool.QueryRowContext(ctx, query, c.with(args)...)
}

// with puts first what tells pgx how to execute a statement.
func (c connPool) with(args []any) []any {
	if !c.unprepared {
		return args
	}
	return append([]any{pgx.QueryExecModeExec}, args...)
}

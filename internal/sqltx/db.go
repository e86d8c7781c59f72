// Package sqltx runs transactions on a database that GORM opened: with a deadline,
// on a connection that works, with rows as parameters, and with an answer to the
// question whether a COMMIT happened whose reply was lost.
//
// It knows PostgreSQL and SQLite. On any other database it leaves the statements to
// GORM. It knows nothing of what is stored: the names of tables come from outside.
//
// Each call gives a function a [Tx], which runs statements:
//
//	Attempt        on a connection, without a transaction
//	Look           the same for one query, which PostgreSQL plans anew
//	AttemptInTurn  the same for one statement that writes, and may happen twice
//	Read           in a transaction that is rolled back
//	Write          in a transaction that is committed: the outcome of the COMMIT is learned
//	WriteOnce      the same for a function that is not to be called again
//	Borrow         in a transaction of the application (this one returns the Tx)
//
// In the order of reading: db.go opens the database; conn.go and reserve.go find a
// connection that works, and give it back; write.go has the calls, and outcome.go learns
// what became of a COMMIT; tx.go, names.go and rows.go put statements into the words of the
// database; postgres.go and sqlite.go hold what is peculiar to one of them; tables.go makes
// sure of the tables; borrow.go takes part in transactions of the application.
package sqltx

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// Kind is the language of a database.
type Kind int

// The kinds of databases. Portable is any that this package has no statements for.
const (
	Portable Kind = iota
	Postgres
	SQLite
)

// kindOf is the kind of a dialect of GORM.
func kindOf(dialect string) Kind {
	switch dialect {
	case "postgres":
		return Postgres
	case "sqlite":
		return SQLite
	}
	return Portable
}

// Options say how to open a DB.
type Options struct {
	// Dialector is the database. It must be set.
	Dialector gorm.Dialector
	// Config configures GORM. It is copied.
	Config gorm.Config
	// Timeout bounds each call. Zero means no bound.
	Timeout time.Duration
	// Portable leaves the statements to GORM on every database.
	Portable bool
	// Tables are all of them, and Indexes their names, without a prefix. In
	// statements their names stand in braces. GORM's plugins are told the first table.
	Tables  []Table
	Indexes []string
}

// DB is a database. Open makes one, Close ends it, and it is safe for concurrent
// use. The methods that return another DB return a view of the same database.
type DB struct {
	gorm    *gorm.DB
	pool    *sql.DB
	kind    Kind
	sqlite  bool // also where the statements are portable
	owned   bool // we opened the pool
	pinned  bool // to one connection, with which the database would go
	names   names
	timeout time.Duration // 0: none
	// prepares says that pgx prepares statements. Then it can be told not to.
	prepares bool
	// turn holds one token, which a call has while it writes on SQLite: those of
	// one process wait in a queue, and not asleep.
	turn chan struct{}

	// What follows differs from view to view.
	ctx        context.Context // of all calls
	settings   string          // of each transaction on PostgreSQL
	unprepared bool            // pgx is told to prepare no statement
	tx         *Tx             // in which all calls happen; nil: each has its own
	reserve    *Reserve        // from which calls may take a connection; nil: none
}

// Open lets GORM open the database, and learns which tables are meant. Its error names the
// operation op.
func Open(ctx context.Context, op string, options Options) (*DB, error) {
	db := &DB{
		sqlite: options.Dialector.Name() == "sqlite", owned: ownsPool(options.Dialector), timeout: options.Timeout, turn: make(chan struct{}, 1),
		ctx: context.Background(), settings: defaultSettings,
	}
	if !options.Portable {
		db.kind = kindOf(options.Dialector.Name())
	}
	err := db.openPool(ctx, options)
	if err == nil {
		if err = db.learn(ctx, options); err != nil {
			_ = db.CloseOwned()
		}
	}
	if file := fileOf(options.Dialector); err != nil && file != "" {
		err = fmt.Errorf("%s: %w", file, err)
	}
	return db, db.Failed(op, err)
}

// openPool lets GORM open the pool, within ctx: some drivers connect here and do not
// ask.
func (db *DB) openPool(ctx context.Context, options Options) error {
	own := options.Config
	own.DisableAutomaticPing = true
	own.SkipDefaultTransaction = true
	own.DryRun = false
	own.PrepareStmt = false
	own.ClauseBuilders = maps.Clone(own.ClauseBuilders)
	own.Plugins = maps.Clone(own.Plugins)
	if own.Logger == nil {
		own.Logger = logger.Discard
	}
	opened, err := bounded(ctx, func() (*gorm.DB, error) { return gorm.Open(options.Dialector, &own) }, func(late *gorm.DB) {
		if pool, err := late.DB(); err == nil && db.owned {
			_ = pool.Close()
		}
	})
	if err != nil {
		return err
	}
	if _, ok := opened.ConnPool.(gorm.TxCommitter); ok {
		return errors.New("the dialector's Conn is a transaction, which would end without the repository")
	}
	db.gorm = opened
	if db.pool, err = opened.DB(); err != nil {
		return fmt.Errorf("the dialector's pool is a %T: %w", opened.ConnPool, err)
	}
	return nil
}

// bounded returns what open returns, or the error of ctx if that ends first. What open
// returns after that is given to drop.
func bounded[T any](ctx context.Context, open func() (T, error), drop func(late T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := open()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				drop(r.value)
			}
		}()
		var none T
		return none, ctx.Err()
	}
}

// fieldOf is a field of a dialector, or the zero Value if it has none of that name.
func fieldOf(dialector gorm.Dialector, name string) (value reflect.Value) {
	v := reflect.Indirect(reflect.ValueOf(dialector))
	if v.Kind() != reflect.Struct {
		return value
	}
	if field, found := v.Type().FieldByName(name); found {
		value, _ = v.FieldByIndexErr(field.Index)
	}
	return value
}

// ownsPool reports whether the dialector opens the pool. GORM's dialectors have a
// field Conn for one that the user opened.
func ownsPool(dialector gorm.Dialector) bool {
	conn := fieldOf(dialector, "Conn")
	return conn.Kind() != reflect.Interface || conn.IsNil()
}

// fileOf is the file of a database of SQLite, without what follows it, or "".
func fileOf(dialector gorm.Dialector) string {
	dsn := fieldOf(dialector, "DSN")
	if dialector.Name() != "sqlite" || dsn.Kind() != reflect.String {
		return ""
	}
	file, _, _ := strings.Cut(strings.TrimPrefix(dsn.String(), "file:"), "?")
	return file
}

// learn asks the database for what statements depend on.
func (db *DB) learn(ctx context.Context, options Options) (err error) {
	if db.names, err = namesOf(db.kind, db.gorm.NamingStrategy, options); err != nil {
		return err
	}
	if db.sqlite {
		return db.pinMemory(ctx)
	}
	if db.kind != Postgres {
		return nil
	}
	if err := db.learnPooler(ctx); err != nil {
		return err
	}
	return db.learnSchema(ctx, options)
}

// Close closes the pool.
func (db *DB) Close() error { return db.pool.Close() }

// CloseOwned closes the pool unless the user opened it.
func (db *DB) CloseOwned() error {
	if !db.owned {
		return nil
	}
	return db.Close()
}

// Kind is the language of the database.
func (db *DB) Kind() Kind { return db.kind }

// Dialect is GORM's name for the database.
func (db *DB) Dialect() string { return db.gorm.Name() }

// Now is the time by the clock that the user gave GORM, in UTC microseconds.
func (db *DB) Now() time.Time { return db.gorm.NowFunc().UTC().Truncate(time.Microsecond) }

// WithContext is the DB whose calls end with ctx, and whose statements carry it.
func (db *DB) WithContext(ctx context.Context) *DB {
	view := *db
	view.ctx = ctx
	return &view
}

// Within is the DB with a timeout of at most limit.
func (db *DB) Within(limit time.Duration) *DB {
	view := *db
	if db.timeout == 0 || db.timeout > limit {
		view.timeout = max(limit, 1)
	}
	return &view
}

// In is the DB all of whose calls happen in a transaction that is under way. A
// Write is a savepoint of it.
func (db *DB) In(tx *Tx) *DB {
	view := *db
	view.tx = tx
	return &view
}

// Context bounds a call.
func (db *DB) Context() (context.Context, context.CancelFunc) {
	if db.timeout == 0 {
		return context.WithCancel(db.ctx)
	}
	return context.WithTimeout(db.ctx, db.timeout)
}

// Failed names the operation of an error, and the timeout if that has passed.
func (db *DB) Failed(op string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: no answer from the database within %v: %w", op, db.timeout, err)
	}
	if state := sqlState(err); state == duplicatePreparedStatement || state == invalidStatementName {
		return fmt.Errorf("%s: %w (a pooler seems to part statements from connections: for pgx, put default_query_exec_mode=exec into the DSN)", op, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

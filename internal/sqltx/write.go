package sqltx

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"time"
)

// defaultSettings are those of each transaction. A process that is stopped within
// one does not hold its locks for long. Statements that have parameters are planned
// anew each time, by the size that the tables have by then: they may grow fast, and
// start empty.
const defaultSettings = `set_config('idle_in_transaction_session_timeout', '5s', true),
	set_config('plan_cache_mode', 'force_custom_plan', true), set_config('jit', 'off', true)`

// Attempt calls use, which must not commit anything, on a connection without a
// transaction. It may call it again.
func (db *DB) Attempt(ctx context.Context, use func(tx *Tx) error) error {
	if db.tx != nil {
		return use(db.tx)
	}
	return db.with(ctx, func(c *conn) error { return use(db.session(ctx, c)) })
}

// Look is Attempt for one query of tables that grow. PostgreSQL plans it anew each time,
// as it does in a transaction: a statement that is prepared may keep the plan of a time
// when the tables were empty.
func (db *DB) Look(ctx context.Context, use func(tx *Tx) error) error {
	view := *db
	view.unprepared = db.preparing
	return view.Attempt(ctx, use)
}

// AttemptInTurn is Attempt for one statement that writes, and does no harm if it
// happens twice.
func (db *DB) AttemptInTurn(ctx context.Context, use func(tx *Tx) error) error {
	done, err := db.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return db.Attempt(ctx, use)
}

// Read calls use in a transaction that is rolled back. It may call it again.
func (db *DB) Read(ctx context.Context, use func(tx *Tx) error) error {
	if db.tx != nil {
		return use(db.tx)
	}
	return db.with(ctx, func(c *conn) error {
		tx, session, err := db.begin(ctx, c, nil, (*Tx).openReading)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		return use(session)
	})
}

// Write runs body in one transaction and commits it. If the reply to the COMMIT is
// lost, it learns whether that happened: from the transaction's id on PostgreSQL,
// and from took, which reports in a Read whether the rows are as body leaves them, or
// returns ErrCannotTell.
// An error that wraps ErrOutcomeUnknown says that it could not learn that; after
// any other nothing has changed.
//
// Body is called again if PostgreSQL ended the transaction because it and another
// waited for each other, or if the connection was useless. In a transaction that is under way, Write is a savepoint.
func (db *DB) Write(ctx context.Context, op string, body func(tx *Tx) error, took func(tx *Tx) (bool, error)) error {
	if db.tx != nil {
		return db.Failed(op, db.tx.Savepoint(func() error { return body(db.tx) }))
	}
	for pooled := db.pool.Stats().OpenConnections; ; {
		err := db.WriteOnce(ctx, op, body, took)
		again := sqlState(err) == deadlockDetected || sqlState(err) == serializationFailure
		if useless(err) {
			again = pooled > 0
			pooled--
		}
		if !again || errors.Is(err, ErrOutcomeUnknown) || ctx.Err() != nil {
			return err
		}
	}
}

// The states of errors that PostgreSQL gives in SQL.
const (
	deadlockDetected           = "40P01"
	serializationFailure       = "40001"
	lockNotAvailable           = "55P03"
	readOnlyTransaction        = "25006"
	featureNotSupported        = "0A000"
	duplicatePreparedStatement = "42P05"
	invalidStatementName       = "26000"
)

// IsLocked reports whether a statement that does not wait found a row that another
// transaction has locked.
func IsLocked(err error) bool { return sqlState(err) == lockNotAvailable }

func sqlState(err error) string {
	var state interface{ SQLState() string }
	if !errors.As(err, &state) {
		return ""
	}
	return state.SQLState()
}

// WriteOnce is Write that calls body once.
func (db *DB) WriteOnce(ctx context.Context, op string, body func(tx *Tx) error, took func(tx *Tx) (bool, error)) error {
	done, err := db.takeTurn(ctx)
	if err != nil {
		return db.Failed(op, err)
	}
	defer done()
	txCtx, cancel := db.transactionContext(ctx)
	defer cancel()
	var tx *sql.Tx
	var session *Tx
	c, err := db.acquire(txCtx, func(c *conn) (err error) {
		tx, session, err = db.begin(txCtx, c, db.isolation(), (*Tx).openWriting)
		return err
	})
	if err != nil {
		return db.Failed(op, err)
	}
	defer c.release()
	defer func() { _ = tx.Rollback() }()

	err = body(session)
	if err == nil && db.sqlite {
		err = waitForLocks(txCtx, tx)
	}
	if err == nil {
		err = txCtx.Err()
	}
	if err != nil {
		if useless(err) {
			_ = tx.Rollback()
			discard(c.Conn)
		}
		return db.Failed(op, overdue(txCtx, err))
	}
	err = tx.Commit()
	if err == nil {
		return nil
	}
	if err == sql.ErrTxDone { //nolint:errorlint // as such, database/sql sent no COMMIT: txCtx ended, and it rolled back
		return db.Failed(op, cmp.Or(txCtx.Err(), err))
	}
	c.abandon(ctx)
	unknown := &unknownOutcome{db: db.WithContext(context.WithoutCancel(db.ctx)), op: op, cause: err, xid: session.xid, took: took}
	return unknown.settle(ctx)
}

// transactionContext bounds a transaction that writes: what is left of the time of its
// call is for learning whether the COMMIT happened.
func (db *DB) transactionContext(ctx context.Context) (context.Context, context.CancelFunc) {
	if db.timeout == 0 {
		return context.WithCancel(ctx)
	}
	left := db.timeout
	if deadline, ok := ctx.Deadline(); ok {
		left = min(left, time.Until(deadline))
	}
	return context.WithTimeout(ctx, left*3/4)
}

// isolation is that of a transaction that writes.
func (db *DB) isolation() *sql.TxOptions {
	if db.kind == Postgres {
		return &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	}
	return nil
}

// begin begins a transaction on a connection, with open as its first statement.
func (db *DB) begin(ctx context.Context, c *conn, options *sql.TxOptions, open func(tx *Tx) error) (*sql.Tx, *Tx, error) {
	life := ctx
	if db.pinned {
		// database/sql closes the connection of a transaction whose context ends: with
		// it a database in memory would go. The context of the statements bounds them.
		life = context.WithoutCancel(ctx)
	}
	tx, err := c.BeginTx(life, options)
	if err != nil {
		return nil, nil, err
	}
	session := db.session(ctx, tx)
	if err := open(session); err != nil {
		_ = tx.Rollback()
		return nil, nil, err
	}
	return tx, session, nil
}

// openReading opens a transaction that reads.
func (tx *Tx) openReading() error {
	if tx.db.kind != Postgres {
		return nil
	}
	var set string
	return tx.opening("SELECT concat("+tx.db.settings+")", &set)
}

// openWriting opens a transaction that writes. On PostgreSQL it learns the id of the
// transaction, by which its fate can be asked for.
func (tx *Tx) openWriting() error {
	if tx.db.sqlite {
		// It waits for other transactions that write, and keeps them waiting. SQLite does
		// not let a transaction write that began with a look, once another has written
		// since; and drivers begin transactions as their DSN says.
		statement := tx.gorm.Statement
		if _, err := statement.ConnPool.ExecContext(statement.Context, "ROLLBACK; BEGIN IMMEDIATE"); err != nil {
			return err
		}
	}
	if tx.db.kind != Postgres {
		tx.now = time.Now().UTC().Truncate(time.Microsecond)
		return nil
	}
	var micros int64
	var readOnly bool
	var set string
	err := tx.opening("SELECT pg_current_xact_id()::text, {clock}, current_setting('transaction_read_only') = 'on', concat("+tx.db.settings+")",
		&tx.xid, &micros, &readOnly, &set)
	if err == nil && readOnly {
		err = errReadOnly
	}
	tx.now = time.UnixMicro(micros).UTC()
	return err
}

// opening scans the row of the query that opens a transaction. GORM's logger and plugins
// see no more of it than of BEGIN and COMMIT.
func (tx *Tx) opening(text string, dest ...any) error {
	statement := tx.gorm.Statement
	return statement.ConnPool.QueryRowContext(statement.Context, tx.db.names.put(text)).Scan(dest...)
}

// WithSettings is the DB with further settings of each transaction on PostgreSQL,
// as names and values in turn.
func (db *DB) WithSettings(settings ...string) *DB {
	view := *db
	for i := 0; i+1 < len(settings); i += 2 {
		view.settings += ", set_config('" + settings[i] + "', '" + settings[i+1] + "', true)"
	}
	return &view
}

// abandon gives a connection back on which a COMMIT failed, and may have left the
// transaction open.
func (c *conn) abandon(ctx context.Context) {
	if c.db.sqlite {
		// Not by closing the connection: the database may be in memory.
		_ = onConn(func() error {
			_, err := c.ExecContext(ctx, "ROLLBACK")
			return err
		})
	} else {
		discard(c.Conn)
	}
	c.release()
}

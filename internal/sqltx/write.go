package sqltx

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"time"
)

// defaultSettings are those of each transaction on PostgreSQL. A process that is stopped
// within one does not hold its locks for long. Statements that have parameters are planned
// anew each time, by the size that the tables have by then: they may grow fast, and start
// empty.
const defaultSettings = `set_config('idle_in_transaction_session_timeout', '5s', true),
	set_config('plan_cache_mode', 'force_custom_plan', true), set_config('jit', 'off', true)`

// WithSettings is the DB with further settings of each transaction on PostgreSQL,
// as names and values in turn.
func (db *DB) WithSettings(settings ...string) *DB {
	view := *db
	for i := 0; i+1 < len(settings); i += 2 {
		view.settings += ", set_config('" + settings[i] + "', '" + settings[i+1] + "', true)"
	}
	return &view
}

// Attempt calls use, which must not commit anything, on a connection without a
// transaction. It may call it again.
func (db *DB) Attempt(ctx context.Context, use func(tx *Tx) error) error {
	if db.tx != nil {
		return use(db.tx)
	}
	return db.with(ctx, func(c *conn) error { return use(db.newTx(ctx, c)) })
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

// Look is Attempt for one query of tables that grow. PostgreSQL plans it anew each time,
// as it does in a transaction: a statement that is prepared may keep the plan of a time
// when the tables were empty.
func (db *DB) Look(ctx context.Context, use func(tx *Tx) error) error {
	view := *db
	view.unprepared = db.prepares
	return view.Attempt(ctx, use)
}

// Read calls use in a transaction that is rolled back. It may call it again.
func (db *DB) Read(ctx context.Context, use func(tx *Tx) error) error {
	if db.tx != nil {
		return use(db.tx)
	}
	return db.with(ctx, func(c *conn) error {
		tx, err := db.begin(ctx, c, nil, (*Tx).openReading)
		if err != nil {
			return err
		}
		defer tx.rollback()
		return use(tx)
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
// waited for each other, or if the connection was useless. In a transaction that is
// under way, Write is a savepoint.
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

// WriteOnce is Write that calls body once.
func (db *DB) WriteOnce(ctx context.Context, op string, body func(tx *Tx) error, took func(tx *Tx) (bool, error)) error {
	done, err := db.takeTurn(ctx)
	if err != nil {
		return db.Failed(op, err)
	}
	defer done()
	txCtx, cancel := db.transactionContext(ctx)
	defer cancel()
	var tx *Tx
	c, err := db.acquire(txCtx, func(c *conn) (err error) {
		tx, err = db.begin(txCtx, c, db.isolation(), (*Tx).openWriting)
		return err
	})
	if err != nil {
		return db.Failed(op, err)
	}
	defer c.release()
	defer tx.rollback()

	err = body(tx)
	if err == nil && db.sqlite {
		err = waitForLocks(txCtx, tx.sql) // for as long as is left
	}
	if err == nil {
		err = txCtx.Err()
	}
	if err != nil {
		if useless(err) {
			tx.rollback()
			discard(c.Conn)
		}
		return db.Failed(op, contextFirst(txCtx, err))
	}
	err = tx.sql.Commit()
	if err == nil {
		return nil
	}
	if err == sql.ErrTxDone { //nolint:errorlint // as such, database/sql sent no COMMIT: txCtx ended, and it rolled back
		return db.Failed(op, cmp.Or(txCtx.Err(), err))
	}
	c.abandon(ctx)
	unknown := &unknownOutcome{db: db.WithContext(context.WithoutCancel(db.ctx)), op: op, cause: err, xid: tx.xid, took: took}
	return unknown.settle(ctx)
}

// transactionContext bounds a transaction that writes: what is left of the time of its
// call is for learning whether the COMMIT happened.
func (db *DB) transactionContext(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok || db.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, min(db.timeout, time.Until(deadline))*3/4)
}

// isolation is that of a transaction that writes.
func (db *DB) isolation() *sql.TxOptions {
	if db.kind == Postgres {
		return &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	}
	return nil
}

// begin begins a transaction on a connection, and calls open in it.
func (db *DB) begin(ctx context.Context, c *conn, options *sql.TxOptions, open func(tx *Tx) error) (*Tx, error) {
	transactionCtx := ctx
	if db.pinned {
		// database/sql closes the connection of a transaction whose context ends: with
		// it a database in memory would go. The context of the statements bounds them.
		transactionCtx = context.WithoutCancel(ctx)
	}
	transaction, err := c.BeginTx(transactionCtx, options)
	if err != nil {
		return nil, err
	}
	tx := db.newTx(ctx, transaction)
	tx.sql = transaction
	if err := open(tx); err != nil {
		tx.rollback()
		return nil, err
	}
	return tx, nil
}

// rollback does nothing to a transaction that has ended.
func (tx *Tx) rollback() { _ = tx.sql.Rollback() }

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
		if err := tx.beginImmediate(); err != nil {
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
	return statement.ConnPool.QueryRowContext(statement.Context, tx.db.names.translate(text)).Scan(dest...)
}

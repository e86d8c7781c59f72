package sqltx

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"gorm.io/gorm"
)

// Borrowed is an open transaction of the application. Borrow makes one. Its end is the
// application's.
type Borrowed struct {
	*Tx
	pool gorm.ConnPool
}

// Borrow takes part in a transaction of the application, for as long as ctx lasts. On
// SQLite it waits for other transactions that write, and keeps them waiting: once this
// one has looked at a row and another has written, it could not write any more.
func (db *DB) Borrow(ctx context.Context, tx *gorm.DB) (*Borrowed, error) {
	if tx.Error != nil {
		return nil, fmt.Errorf("the transaction has failed: %w", tx.Error)
	}
	if tx.Name() != db.Dialect() {
		return nil, fmt.Errorf("the transaction is on %s, and the repository on %s", tx.Name(), db.Dialect())
	}
	if tx.DryRun {
		return nil, errors.New("the transaction is a dry run")
	}
	pool := tx.Statement.ConnPool
	if prepared, ok := pool.(*gorm.PreparedStmtTX); ok {
		pool = prepared.Tx
	}
	if _, ok := pool.(gorm.TxCommitter); !ok {
		return nil, errors.New("no transaction is open: it must be what gorm's Transaction or Begin gives")
	}
	borrowed := &Borrowed{Tx: db.newTx(ctx, pool), pool: pool}
	if db.Dialect() == "sqlite" {
		return borrowed, borrowed.writeNothing()
	}
	return borrowed, nil
}

// ID is the id of the transaction, which has written, on PostgreSQL. Elsewhere it is
// empty.
func (b *Borrowed) ID() (id string, err error) {
	if b.Kind() == Postgres {
		err = b.Row("SELECT pg_current_xact_id()::text", nil, &id)
	}
	return id, err
}

// Ended reports whether the application has ended the transaction, as far as can be
// told without the database: its COMMIT may be under way.
func (b *Borrowed) Ended() bool {
	tx, ok := b.pool.(*sql.Tx)
	if !ok {
		return true
	}
	// Tx.Stmt looks whether the transaction has ended before it refuses a statement
	// of another database. Close returns what it found, and nothing is sent.
	return errors.Is(tx.Stmt(&sql.Stmt{}).Close(), sql.ErrTxDone)
}

// Decided reports whether the database has committed or rolled back the transaction of
// an id. On SQLite it waits for the end of any that writes.
func (db *DB) Decided(id string) (bool, error) {
	ctx, cancel := db.settleContext()
	defer cancel()
	f := committed // or rolled back: no transaction that writes goes on
	var err error
	if db.kind == Postgres {
		f, err = db.fateOf(ctx, id)
	} else {
		err = db.AttemptInTurn(ctx, (*Tx).writeNothing)
	}
	return err == nil && f != pending, db.Failed("follow a transaction", err)
}

// writeNothing takes the lock of a transaction that writes, on SQLite.
func (tx *Tx) writeNothing() error {
	return tx.Exec("DELETE FROM " + quote(tx.db.names.first) + " WHERE 1 = 0")
}

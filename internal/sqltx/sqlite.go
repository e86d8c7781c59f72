package sqltx

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"

	"gorm.io/gorm"
)

// restoreTimeout bounds what restores the settings of a connection, which needs no file
// and no lock.
const restoreTimeout = 100 * time.Millisecond

// pinMemory keeps to one connection if the database is in memory: each connection
// has one of its own.
func (db *DB) pinMemory(ctx context.Context) error {
	var file string
	err := db.Attempt(ctx, func(tx *Tx) error {
		return tx.Row("SELECT coalesce(max(file), '') FROM pragma_database_list WHERE name = 'main'", nil, &file)
	})
	if err == nil && file == "" {
		db.pinned = true
		db.pool.SetMaxOpenConns(1)
		db.pool.SetMaxIdleConns(1)
		db.pool.SetConnMaxLifetime(0)
		db.pool.SetConnMaxIdleTime(0)
	}
	return err
}

// takeSQLite takes a connection from the pool. Drivers connect without a look at the
// context.
func (db *DB) takeSQLite(ctx context.Context) (*sql.Conn, error) {
	return bounded(ctx, func() (*sql.Conn, error) { return db.pool.Conn(ctx) }, func(late *sql.Conn) { _ = late.Close() })
}

// setSQLite gives a connection the settings of a call. In a pool that the user opened,
// release gives it back its own.
func (c *conn) setSQLite(ctx context.Context) error {
	if !c.db.owned {
		const own = "SELECT printf('PRAGMA cache_spill = %d; PRAGMA busy_timeout = %d', cache_spill, timeout) FROM pragma_busy_timeout, pragma_cache_spill"
		if err := c.QueryRowContext(ctx, own).Scan(&c.restore); err != nil {
			return err
		}
	}
	return waitForLocks(ctx, c)
}

// waitForLocks makes SQLite wait for locks until ctx ends: mattn's driver does not heed ctx
// while it waits. It also makes a large transaction keep its pages in memory until it
// commits: to spill them it would lock readers out for the rest of its time.
func waitForLocks(ctx context.Context, on gorm.ConnPool) error {
	wait := int64(math.MaxInt32)
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, max(1, time.Until(deadline).Milliseconds()))
	}
	_, err := on.ExecContext(ctx, fmt.Sprintf("PRAGMA cache_spill = 0; PRAGMA busy_timeout = %d", wait))
	return err
}

func (c *conn) restoreSQLite() {
	ctx, cancel := context.WithTimeout(context.Background(), restoreTimeout)
	defer cancel()
	_ = unlessClosed(func() error {
		_, err := c.ExecContext(ctx, c.restore)
		return err
	})
	c.restore = ""
}

// takeTurn waits for the turn to write. The caller ends it.
func (db *DB) takeTurn(ctx context.Context) (done func(), err error) {
	if !db.sqlite || db.tx != nil {
		return func() {}, nil
	}
	select {
	case db.turn <- struct{}{}:
		return func() { <-db.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// beginImmediate waits for other transactions that write, and keeps them waiting. SQLite
// does not let a transaction write that began with a look, once another has written since;
// and drivers begin transactions as their DSN says, of which nobody asks them otherwise.
func (tx *Tx) beginImmediate() error {
	statement := tx.gorm.Statement
	_, err := statement.ConnPool.ExecContext(statement.Context, "ROLLBACK; BEGIN IMMEDIATE")
	return err
}

package sqltx

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
)

// acquire calls first, which must not commit anything, with a connection, and
// returns that. A connection that died in the pool, with its server perhaps, fails
// no call: the next one is tried, until the pool holds only new ones.
func (db *DB) acquire(ctx context.Context, first func(conn *sql.Conn) error) (*sql.Conn, error) {
	for pooled := db.pool.Stats().OpenConnections; ; pooled-- {
		conn, err := db.conn(ctx)
		if conn == nil {
			return nil, overdue(ctx, err)
		}
		if err == nil {
			err = first(conn)
		}
		if err == nil {
			return conn, nil
		}
		dead := pooled > 0 && ctx.Err() == nil && conn.PingContext(ctx) != nil
		_ = conn.Close()
		if !dead {
			return nil, overdue(ctx, err)
		}
	}
}

// conn takes a connection from the pool. SQLite's drivers connect without a look at
// the context, and wait for locks as they do.
func (db *DB) conn(ctx context.Context) (*sql.Conn, error) {
	if db.gorm.Name() != "sqlite" {
		return db.pool.Conn(ctx)
	}
	type taken struct {
		conn *sql.Conn
		err  error
	}
	done := make(chan taken, 1)
	go func() {
		conn, err := db.pool.Conn(ctx)
		done <- taken{conn, err}
	}()
	select {
	case t := <-done:
		if t.err != nil {
			return nil, t.err
		}
		return t.conn, readySQLite(ctx, t.conn)
	case <-ctx.Done():
		go func() {
			if t := <-done; t.conn != nil {
				_ = t.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// readySQLite makes SQLite wait for locks until ctx ends: mattn's driver does not
// heed ctx while it waits. It also makes a large transaction keep its pages in
// memory until it commits: to spill them it would lock readers out for the rest of
// its time.
func readySQLite(ctx context.Context, conn interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}) error {
	wait := int64(math.MaxInt32)
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, max(1, time.Until(deadline).Milliseconds()))
	}
	_, err := conn.ExecContext(ctx, "PRAGMA cache_spill = 0; PRAGMA busy_timeout = "+strconv.FormatInt(wait, 10))
	return err
}

// overdue puts the end of ctx before what drivers and database/sql make of it: pgx
// calls a connection bad on which it began nothing any more.
func overdue(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrTxDone)) {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

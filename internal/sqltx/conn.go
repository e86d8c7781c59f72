package sqltx

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"time"
)

// probeTimeout is how long a connection that was idle may take to answer before it
// counts as dead: its peer may be gone without a word.
const probeTimeout = time.Second

// conn is a connection that a call has, until release.
type conn struct {
	*sql.Conn
	db      *DB
	restore string // the statement that restores the settings of SQLite; "": none
}

// with calls use, which must not commit anything, with a connection. If that has died or
// become useless, it calls use again with another one, until the pool holds only new
// ones.
func (db *DB) with(ctx context.Context, use func(c *conn) error) error {
	c, err := db.acquire(ctx, use)
	if err == nil {
		c.release()
	}
	return err
}

// acquire is with for those who need the connection after use. They release it.
func (db *DB) acquire(ctx context.Context, use func(c *conn) error) (*conn, error) {
	for pooled := db.pool.Stats().OpenConnections; ; pooled-- {
		taken, err := db.take(ctx)
		if err != nil {
			return nil, contextFirst(ctx, err)
		}
		c := &conn{Conn: taken, db: db}
		if db.sqlite {
			err = c.setSQLite(ctx)
		}
		if err == nil {
			err = use(c)
		}
		if err == nil {
			return c, nil
		}
		again := pooled > 0 && ctx.Err() == nil && (useless(err) || !answers(ctx, c.Conn))
		if useless(err) {
			discard(c.Conn)
		}
		c.release()
		if !again {
			return nil, contextFirst(ctx, err)
		}
	}
}

// release gives a connection back, with the settings that it had. The time of the
// call may be up: it takes restoreTimeout more at most.
func (c *conn) release() {
	if c.restore != "" {
		c.restoreSQLite()
	}
	if !c.db.reserve.back(c.Conn) {
		_ = c.Close()
	}
}

// abandon gives a connection back on which a COMMIT failed, and may have left the
// transaction open.
func (c *conn) abandon(ctx context.Context) {
	if c.db.sqlite {
		// Not by closing the connection: the database may be in memory.
		_ = unlessClosed(func() error {
			_, err := c.ExecContext(ctx, "ROLLBACK")
			return err
		})
	} else {
		discard(c.Conn)
	}
	c.release()
}

// take takes a connection from the pool or, if that is used up, from the reserve. One
// that was idle has to answer first.
func (db *DB) take(ctx context.Context) (*sql.Conn, error) {
	if db.sqlite {
		return db.takeSQLite(ctx)
	}
	if lent := db.reserve.take(ctx); lent != nil {
		if answers(ctx, lent) {
			return lent, nil
		}
		discard(lent)
		db.reserve.back(lent) // which sees that it is dead
	}
	for db.pool.Stats().Idle > 0 {
		taken, err := db.takeProbed(ctx)
		if err == nil || !errors.Is(err, errSilent) {
			return taken, err
		}
		// Others may be silent for the same reason: look at all of them at once.
		var looking sync.WaitGroup
		for range db.pool.Stats().Idle {
			looking.Go(func() {
				if idle, err := db.takeProbed(ctx); err == nil {
					_ = idle.Close()
				}
			})
		}
		looking.Wait()
	}
	return db.pool.Conn(ctx)
}

// errSilent says that a connection did not answer.
var errSilent = errors.New("the connection does not answer")

// takeProbed takes a connection from the pool that answers, or discards it.
func (db *DB) takeProbed(ctx context.Context) (*sql.Conn, error) {
	probe, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	taken, err := db.pool.Conn(probe)
	if err == nil {
		if answers(probe, taken) {
			return taken, nil
		}
		discard(taken)
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil || probe.Err() != nil:
		return nil, errSilent
	}
	return nil, err
}

// answers reports whether a connection answers within probeTimeout.
func answers(ctx context.Context, c *sql.Conn) bool {
	probe, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return unlessClosed(func() error { return c.PingContext(probe) }) == nil
}

// discard takes a connection out of the pool.
func discard(c *sql.Conn) {
	_ = unlessClosed(func() error {
		return c.Raw(func(any) error { return driver.ErrBadConn })
	})
	_ = c.Close()
}

// unlessClosed calls use, which uses a connection after a transaction. If the context of
// the transaction has ended, database/sql closes the connection in a goroutine of its own;
// a call that begins at that moment panics there, since it dereferences nil.
func unlessClosed(use func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = sql.ErrConnDone
		}
	}()
	return use()
}

// contextFirst returns the error of ctx, if that has ended, before what drivers and
// database/sql make of its end: pgx calls a connection bad that it did not use any more.
func contextFirst(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrTxDone)) {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

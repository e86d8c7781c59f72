package sqltx

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"gorm.io/gorm"
)

// probeTimeout is how long a pooled connection may take to answer before it counts
// as dead: its peer may be gone without a word.
const probeTimeout = time.Second

// restoreTimeout bounds what restores the settings of a connection of SQLite, which
// needs no file and no lock.
const restoreTimeout = 100 * time.Millisecond

// acquire calls use, which must not commit anything, with a connection, and
// returns that. A connection that died in the pool, with its server perhaps, or
// that has become useless, fails no call: the next one is tried, until the pool
// holds only new ones.
func (db *DB) acquire(ctx context.Context, use func(conn *sql.Conn) error) (*sql.Conn, error) {
	for pooled := db.pool.Stats().OpenConnections; ; pooled-- {
		conn, err := db.conn(ctx, pooled > 0)
		if errors.Is(err, errSilent) {
			db.weed(ctx)
			continue
		}
		if conn == nil {
			return nil, overdue(ctx, err)
		}
		if err == nil {
			err = use(conn)
		}
		if err == nil {
			return conn, nil
		}
		again := pooled > 0 && ctx.Err() == nil
		switch {
		case useless(err):
			discard(conn)
		case again:
			again = onConn(func() error { return conn.PingContext(ctx) }) != nil
		}
		db.release(conn)
		if !again {
			return nil, overdue(ctx, err)
		}
	}
}

// errSilent says that a pooled connection did not answer.
var errSilent = errors.New("the connection does not answer")

// conn takes a connection from the pool. If that may be one that was used before, it
// has to answer first.
func (db *DB) conn(ctx context.Context, pooled bool) (*sql.Conn, error) {
	if db.sqlite {
		return db.sqliteConn(ctx)
	}
	conn := db.reserve.take(ctx)
	if conn == nil && !pooled {
		return db.pool.Conn(ctx)
	}
	if conn == nil {
		probe, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		var err error
		if conn, err = db.pool.Conn(probe); err != nil {
			if probe.Err() != nil && ctx.Err() == nil {
				err = errSilent
			}
			return nil, err
		}
	}
	if answers(ctx, conn) {
		return conn, nil
	}
	discard(conn)
	db.release(conn)
	return nil, cmp.Or(ctx.Err(), errSilent)
}

// answers reports whether a connection answers within probeTimeout.
func answers(ctx context.Context, conn *sql.Conn) bool {
	probe, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return conn.PingContext(probe) == nil
}

// weed discards, all at a time, those of the idle connections that do not answer.
func (db *DB) weed(ctx context.Context) {
	probe, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var looking sync.WaitGroup
	for range db.pool.Stats().Idle {
		looking.Go(func() {
			conn, err := db.pool.Conn(probe)
			if err != nil {
				return
			}
			if !answers(probe, conn) {
				discard(conn)
			}
			_ = conn.Close()
		})
	}
	looking.Wait()
}

// useless reports whether an error means that another connection might do what this
// one cannot: it is read-only since a failover, or has prepared statements that do
// not fit any more. Nothing has happened then.
func useless(err error) bool {
	switch sqlState(err) {
	case readOnlyTransaction, duplicatePreparedStatement, invalidStatementName:
		return true
	case featureNotSupported:
		return strings.Contains(err.Error(), "cached plan must not change result type")
	}
	return errors.Is(err, errReadOnly)
}

var errReadOnly = errors.New("the connection is read-only")

// discard takes a connection out of the pool.
func discard(conn *sql.Conn) {
	_ = onConn(func() error {
		return conn.Raw(func(any) error { return driver.ErrBadConn })
	})
	_ = conn.Close()
}

// sqliteConn takes a connection of SQLite, whose drivers connect without a look at
// the context.
func (db *DB) sqliteConn(ctx context.Context) (*sql.Conn, error) {
	conn, err := bounded(ctx, func() (*sql.Conn, error) { return db.pool.Conn(ctx) }, func(late *sql.Conn) { _ = late.Close() })
	if err != nil {
		return nil, err
	}
	return conn, db.borrowSQLite(ctx, conn)
}

// readySQLite makes SQLite wait for locks until ctx ends: mattn's driver does not
// heed ctx while it waits. It also makes a large transaction keep its pages in
// memory until it commits: to spill them it would lock readers out for the rest of
// its time.
func (db *DB) readySQLite(ctx context.Context, conn gorm.ConnPool) error {
	wait := int64(math.MaxInt32)
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, max(1, time.Until(deadline).Milliseconds()))
	}
	return setSQLite(ctx, conn, sqliteSettings{busyTimeout: wait})
}

// sqliteSettings are those settings of a connection that we change.
type sqliteSettings struct{ busyTimeout, cacheSpill int64 }

func setSQLite(ctx context.Context, conn gorm.ConnPool, s sqliteSettings) error {
	_, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA cache_spill = %d; PRAGMA busy_timeout = %d", s.cacheSpill, s.busyTimeout))
	return err
}

// borrowSQLite remembers the settings of a connection of a pool that the user gave,
// and makes them ours.
func (db *DB) borrowSQLite(ctx context.Context, conn *sql.Conn) error {
	if !db.owned {
		var s sqliteSettings
		err := conn.QueryRowContext(ctx, "SELECT timeout, cache_spill FROM pragma_busy_timeout, pragma_cache_spill").Scan(&s.busyTimeout, &s.cacheSpill)
		if err != nil {
			return err
		}
		db.borrowed.Store(conn, s)
	}
	return db.readySQLite(ctx, conn)
}

// release gives a connection back, with the settings that it had. The time of the
// call may be up: it takes restoreTimeout more at most.
func (db *DB) release(conn *sql.Conn) {
	if s, found := db.borrowed.LoadAndDelete(conn); found {
		ctx, cancel := context.WithTimeout(context.Background(), restoreTimeout)
		defer cancel()
		_ = onConn(func() error { return setSQLite(ctx, conn, s.(sqliteSettings)) })
	}
	if !db.reserve.back(conn) {
		_ = conn.Close()
	}
}

// onConn calls use, which uses a connection after a transaction. database/sql closes the
// connection of a transaction whose context has ended, in a goroutine of its own, and
// dereferences nil in a call that begins at that moment.
func onConn(use func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = sql.ErrConnDone
		}
	}()
	return use()
}

// overdue puts the end of ctx before what drivers and database/sql make of it: pgx
// calls a connection bad on which it began nothing any more.
func overdue(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrTxDone)) {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
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

// learnPooler finds out whether pgx prepares statements, and whether there is a pooler
// between pgx and the server, whose connections come and go with transactions: a
// statement that is prepared on one is unknown to the next. Then none is prepared.
func (db *DB) learnPooler(ctx context.Context) error {
	conn, err := db.pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer db.release(conn)
	return conn.Raw(func(driverConn any) error {
		stdlibConn, ok := driverConn.(*stdlib.Conn)
		if !ok {
			return nil
		}
		c := stdlibConn.Conn()
		mode := c.Config().DefaultQueryExecMode
		db.preparing = mode == pgx.QueryExecModeCacheStatement || mode == pgx.QueryExecModeDescribeExec
		var pid uint32
		if err := c.QueryRow(ctx, "SELECT pg_backend_pid()", pgx.QueryExecModeExec).Scan(&pid); err != nil {
			return err
		}
		// A pooler makes up the process that it tells its clients.
		db.unprepared = db.preparing && pid != c.PgConn().PID()
		return nil
	})
}

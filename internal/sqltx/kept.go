package sqltx

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"
)

// Kept is a connection that is kept out of the pool between calls, so that none waits
// for the pool. DB.Keep makes one; it is goroutine-safe, and its calls come one after
// another. It takes its connection at the first call, and a new one after a call that
// failed. A connection that nobody uses for a while goes back by itself.
type Kept struct {
	db    *DB
	idle  time.Duration
	limit time.Duration // of a call

	mu    sync.Mutex // held while a call is in progress; guards the fields below
	conn  *sql.Conn  // nil: none is kept
	timer *time.Timer
}

// Keep keeps a connection while calls come more often than idle. A call takes limit at
// most.
func (db *DB) Keep(limit, idle time.Duration) *Kept { return &Kept{db: db, limit: limit, idle: idle} }

// AttemptInTurn is DB.AttemptInTurn on the connection that is kept. It is on any where
// the pool has too few for that, and on SQLite, whose connections do not break.
func (k *Kept) AttemptInTurn(ctx context.Context, use func(tx *Tx) error) error {
	if k.db.kind != Postgres {
		return k.db.AttemptInTurn(ctx, use)
	}
	ctx, cancel := context.WithTimeout(ctx, k.limit)
	defer cancel()
	const spared = 2 // connections that are left for others
	if most := k.db.pool.Stats().MaxOpenConnections; most > 0 && most <= spared {
		return k.db.AttemptInTurn(ctx, use)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer != nil {
		k.timer.Stop()
	}
	if k.conn != nil {
		if err := k.try(ctx, use); err == nil || ctx.Err() != nil {
			return overdue(ctx, err)
		}
	}
	conn, err := k.db.conn(ctx, k.db.pool.Stats().OpenConnections > 0)
	if errors.Is(err, errSilent) {
		k.db.weed(ctx)
		conn, err = k.db.conn(ctx, true)
	}
	if err == nil {
		k.conn = conn
		err = k.try(ctx, use)
	}
	return overdue(ctx, err)
}

// try calls use on the connection, for a part of the time: if it has died, a new one
// is to have the rest. The connection is given up if use fails.
func (k *Kept) try(ctx context.Context, use func(tx *Tx) error) error {
	part, cancel := context.WithTimeout(ctx, k.limit/4)
	defer cancel()
	err := use(k.db.session(part, k.conn))
	if err != nil {
		discard(k.conn)
		k.conn = nil
		return err
	}
	k.timer = time.AfterFunc(k.idle, k.giveBack)
	return nil
}

// giveBack gives the connection back to the pool, unless it is in use again.
func (k *Kept) giveBack() {
	if !k.mu.TryLock() {
		return
	}
	defer k.mu.Unlock()
	if k.conn != nil {
		k.db.release(k.conn)
		k.conn = nil
	}
}

package sqltx

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

// Kept is a connection that is kept out of the pool between calls, so that none waits
// for the pool. DB.Keep makes one; it is goroutine-safe, and its calls come one after
// another. It takes its connection at the first call, and a new one for one that has
// died or become useless. A connection that nobody uses for a while goes back by itself.
type Kept struct {
	db    *DB
	idle  time.Duration
	limit time.Duration // of a call

	// mu guards the fields below. It is held while a call is in progress, for about
	// limit at most.
	mu    sync.Mutex
	conn  *sql.Conn // nil: none is kept
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
	if answered, err := k.try(ctx, use); answered {
		k.timer = time.AfterFunc(k.idle, k.giveBack)
		return overdue(ctx, err)
	}
	c, err := k.db.acquire(ctx, func(c *conn) error { return use(k.db.session(ctx, c)) })
	if err == nil {
		k.conn, k.timer = c.Conn, time.AfterFunc(k.idle, k.giveBack)
	}
	return err
}

// try calls use on the connection that is kept. It reports whether that gave the answer;
// if not, none is kept any more, and there may be time left for another connection.
func (k *Kept) try(ctx context.Context, use func(tx *Tx) error) (answered bool, err error) {
	if k.conn == nil {
		return false, nil
	}
	if answers(ctx, k.conn) {
		err = use(k.db.session(ctx, k.conn))
		if err == nil || ctx.Err() != nil || !useless(err) && answers(ctx, k.conn) {
			return true, err
		}
	}
	discard(k.conn)
	k.conn = nil
	return false, nil
}

// giveBack gives the connection back to the pool, unless it is in use again.
func (k *Kept) giveBack() {
	if !k.mu.TryLock() {
		return
	}
	conn := k.conn
	k.conn = nil
	k.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
}

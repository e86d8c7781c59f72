package sqltx

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

const (
	// spared is how many connections of a pool reserves leave for others. Each holds
	// one back.
	spared = 2
	// fillTimeout is how long Fill waits for a connection.
	fillTimeout = 100 * time.Millisecond
	// takeInterval is how often a call that waits for the connection looks for it.
	takeInterval = 5 * time.Millisecond
)

// Reserve is a connection of a pool of PostgreSQL, held back for calls that must not wait
// until others give theirs back. DB.Reserve and DB.ReserveFirst make one; it is
// goroutine-safe, and ends with Drain. A pool that is too small has none.
type Reserve struct {
	db *DB
	// first is set if calls take the connection whether or not the pool has another.
	// A call that found none leaves its own here.
	first bool
	// free holds the connection while no call has it. Calls that wait for it get it in
	// their order.
	free chan *sql.Conn

	mu   sync.Mutex // guards conn, for moments
	conn *sql.Conn  // that is held back, free or lent to a call; nil: none
}

// Reserve makes a reserve whose calls take its connection while the pool is used up. It
// holds nothing until Fill. A pool without a limit needs none.
func (db *DB) Reserve() *Reserve { return &Reserve{db: db, free: make(chan *sql.Conn, 1)} }

// ReserveFirst makes a reserve for calls that come one after another: all of them share
// its connection. It comes before that of Reserve where a pool has enough for one only.
func (db *DB) ReserveFirst() *Reserve {
	return &Reserve{db: db, first: true, free: make(chan *sql.Conn, 1)}
}

// Using is the DB whose calls take the reserve's connection.
func (db *DB) Using(r *Reserve) *DB {
	view := *db
	view.reserve = r
	return &view
}

// mayHold reports whether the pool is large enough.
func (r *Reserve) mayHold() bool {
	most := r.db.pool.Stats().MaxOpenConnections
	if r.first {
		return r.db.kind == Postgres && (most == 0 || most >= spared+1)
	}
	return r.db.kind == Postgres && most >= spared+2
}

// Fill holds a connection back, if one can be had soon and none is.
func (r *Reserve) Fill() {
	if !r.mayHold() || r.holds() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), fillTimeout)
	defer cancel()
	conn, err := r.db.pool.Conn(ctx)
	if err != nil {
		return // the next heartbeat tries again
	}
	if !r.keep(conn, true) {
		_ = conn.Close()
	}
}

func (r *Reserve) holds() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conn != nil
}

// Drain gives the connection back to the pool. One that is lent follows.
func (r *Reserve) Drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn = nil
	select {
	case conn := <-r.free:
		_ = conn.Close()
	default:
	}
}

// take lends the connection if there is one, and the pool is used up or the reserve comes
// first. While another call has it, take waits for it, or for the pool to have room.
func (r *Reserve) take(ctx context.Context) *sql.Conn {
	if r == nil {
		return nil
	}
	for {
		stats := r.db.pool.Stats()
		if !r.holds() || !r.first && stats.InUse < stats.MaxOpenConnections {
			return nil
		}
		select {
		case conn := <-r.free:
			return conn
		case <-time.After(takeInterval):
		case <-ctx.Done():
			return nil
		}
	}
}

// back takes the connection of a call that is over, if it lent it, or if it comes first and
// has none. It reports whether it has it.
func (r *Reserve) back(conn *sql.Conn) bool {
	return r != nil && r.keep(conn, r.first && r.mayHold())
}

// keep holds a connection back that was lent or, if another may be held and none is, that
// one. A dead one is not kept.
func (r *Reserve) keep(conn *sql.Conn, another bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != conn && (r.conn != nil || !another) {
		return false
	}
	r.conn = nil
	if unlessClosed(func() error { return conn.Raw(func(any) error { return nil }) }) != nil {
		return false
	}
	r.conn = conn
	r.free <- conn
	return true
}

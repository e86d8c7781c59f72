package sqltx

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

const (
	// minReserved is the least limit of a pool of which a connection is held back.
	minReserved = 4
	// fillTimeout is how long Fill waits for a connection.
	fillTimeout = 100 * time.Millisecond
	// takeInterval is how often a call that waits for the connection looks for it.
	takeInterval = 5 * time.Millisecond
)

// Reserve is a connection of a pool with a limit, held back for calls that must not
// wait until others give theirs back. DB.Reserve makes one; it is goroutine-safe, and
// ends with Drain. Other pools have none: a new connection can be had, or there are too
// few.
type Reserve struct {
	db *DB
	// free holds the connection while no call has it. Calls that wait for it get it in
	// their order.
	free chan *sql.Conn

	mu   sync.Mutex // guards conn, for moments
	conn *sql.Conn  // that is held back, free or lent to a call; nil: none
}

// Reserve makes a reserve that holds nothing yet.
func (db *DB) Reserve() *Reserve { return &Reserve{db: db, free: make(chan *sql.Conn, 1)} }

// Using is the DB whose calls take the reserve's connection while the pool is used up.
func (db *DB) Using(r *Reserve) *DB {
	view := *db
	view.reserve = r
	return &view
}

// Fill holds a connection back, if one can be had soon and none is.
func (r *Reserve) Fill() {
	if most := r.db.pool.Stats().MaxOpenConnections; r.db.kind != Postgres || most < minReserved || r.holds() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), fillTimeout)
	defer cancel()
	conn, err := r.db.pool.Conn(ctx)
	if err != nil {
		return // the next heartbeat tries again
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		_ = conn.Close()
		return
	}
	r.conn = conn
	r.free <- conn
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

// take lends the connection, if the pool is used up and there is one. While another call
// has it, take waits for it, or for the pool to have room.
func (r *Reserve) take(ctx context.Context) *sql.Conn {
	if r == nil {
		return nil
	}
	for {
		if stats := r.db.pool.Stats(); stats.InUse < stats.MaxOpenConnections || !r.holds() {
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

// back takes a connection back that was lent, unless it is dead or the reserve was
// drained. It reports whether it has it.
func (r *Reserve) back(conn *sql.Conn) bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != conn {
		return false
	}
	if onConn(func() error { return conn.Raw(func(any) error { return nil }) }) != nil {
		r.conn = nil
		return false
	}
	r.free <- conn
	return true
}

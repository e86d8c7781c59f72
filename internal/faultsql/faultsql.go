// Package faultsql wraps a database/sql driver so that a test can count and
// log what the code under test asks of its database, and make any one of these
// operations fail, in each of the ways in which databases do.
//
// A sweep makes the first operation of a call fail, then the second, and so
// on, until the call comes through without meeting its fault:
//
//	for n := 1; ; n++ {
//		faults.FailNth(n, faultsql.After, false)
//		err := call()
//		fired := faults.Fired()
//		faults.Heal()
//		// … check that err is true …
//		if fired == 0 {
//			break
//		}
//	}
//
// Code that reaches through the pool for the driver's own connection
// ([sql.Conn.Raw]) finds the wrapper's.
package faultsql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/mattn/go-sqlite3"
)

// ErrInjected is what an operation that was made to fail returns, or wraps,
// unless the fault names another error.
var ErrInjected = errors.New("injected fault")

// Kind is what an operation does. The statements of a prepared statement count
// as Exec and Query too. Closing is not an operation.
type Kind string

const (
	Connect  Kind = "connect"
	Ping     Kind = "ping"
	Begin    Kind = "begin"
	Prepare  Kind = "prepare"
	Exec     Kind = "exec"
	Query    Kind = "query"
	Commit   Kind = "commit"
	Rollback Kind = "rollback"
)

// Op is one operation.
type Op struct {
	N    int // counted from 1, and from 1 again after FailNth, FailWhen, Heal and Reset
	Kind Kind
	SQL  string // Exec, Query and Prepare only
	Args int    // how many parameters the statement was given
}

// Mode is how an operation fails.
type Mode int

const (
	// None lets it happen.
	None Mode = iota
	// Before returns the error and does nothing. A Commit or Rollback that
	// fails so has rolled the transaction back, since no pool takes a
	// connection back with its transaction open.
	Before
	// After does the whole operation, then returns the error: COMMIT has
	// committed, a query's rows were read to their end and thrown away.
	After
	// BadConn loses the connection instead: it is closed, and this and all
	// further operations on it return driver.ErrBadConn, on which database/sql
	// tries another connection where it may.
	BadConn
	// Hang waits until the operation's context ends or the faults are healed,
	// then fails like Before, with the context's error if it has one. Commit
	// and Rollback wait for the context that their transaction was begun with.
	Hang
	// HangAfter does the operation, then hangs: the reply that never comes.
	HangAfter
	// Midway lets a query return one row, and then the error. Other operations
	// fail like Before.
	Midway
)

// Fault is a way to fail, and the error to return for it.
type Fault struct {
	Mode Mode
	Err  error // nil means ErrInjected; BadConn ignores it
}

func (f Fault) err() error {
	if f.Err != nil {
		return f.Err
	}
	return ErrInjected
}

// Faults is a driver connector that fails as told. All methods are safe for
// concurrent use. It must not be copied, and needs no closing: the pools opened
// over it do.
type Faults struct {
	inner  driver.Connector
	openDB func() *sql.DB

	mu         sync.Mutex // guards all below; held for moments, and never during an operation
	match      func(Op) bool
	fault      Fault
	healed     chan struct{} // closed when the present plan ends
	fired      int
	count      int // numbers operations
	kinds      map[Kind]int
	onOp       func(Op)
	recording  bool
	statements []string
}

var _ driver.Connector = (*Faults)(nil)

// New wraps a connector. Its driver's connections must implement the context
// forms of Ping, Begin, Prepare, Exec and Query, and its statements those of
// Exec and Query, as pgx and mattn/go-sqlite3 do.
func New(inner driver.Connector) *Faults {
	f := &Faults{inner: inner, healed: make(chan struct{}), kinds: make(map[Kind]int)}
	f.openDB = sync.OnceValue(func() *sql.DB { return sql.OpenDB(f) })
	return f
}

// Postgres wraps pgx's driver for database/sql.
func Postgres(dsn string) (*Faults, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	return New(stdlib.GetConnector(*config)), nil
}

// SQLite wraps mattn/go-sqlite3 on a file, or on :memory:. The parameters are
// the driver's, such as "_busy_timeout=100".
func SQLite(path string, params ...string) *Faults {
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + strings.Join(params, "&")
	return New(sqliteConnector(dsn))
}

type sqliteConnector string

func (c sqliteConnector) Connect(context.Context) (driver.Conn, error) {
	return c.Driver().Open(string(c))
}

func (c sqliteConnector) Driver() driver.Driver { return &sqlite3.SQLiteDriver{} }

// DB returns a pool over the connector, the same one at each call. The caller
// closes it. Another pool, for a restart, comes from sql.OpenDB(f).
func (f *Faults) DB() *sql.DB { return f.openDB() }

// FailNth makes the nth operation from now on fail, 1 being the next, and if
// persistent all later ones too, until Heal. It replaces any fault before it.
func (f *Faults) FailNth(n int, mode Mode, persistent bool) {
	f.FailWhen(func(op Op) bool { return op.N == n || persistent && op.N > n }, Fault{Mode: mode})
}

// FailWhen makes each operation that match accepts fail, until Heal; the
// numbering begins again at 1. It replaces any fault before it. match is called
// for one operation at a time, and must not call the Faults.
func (f *Faults) FailWhen(match func(Op) bool, fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.planLocked(match, fault)
}

// Heal lets everything happen again, and ends what hangs. Connections that
// were lost stay lost. Fired keeps its count.
func (f *Faults) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	fired := f.fired
	f.planLocked(nil, Fault{})
	f.fired = fired
}

// Fired returns how many operations were made to fail since the last FailNth
// or FailWhen.
func (f *Faults) Fired() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// Reset heals, and forgets all counts and statements. It leaves Record and
// OnOp as they are.
func (f *Faults) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.planLocked(nil, Fault{})
	f.statements = nil
	clear(f.kinds)
}

func (f *Faults) planLocked(match func(Op) bool, fault Fault) {
	close(f.healed)
	f.healed = make(chan struct{})
	f.match, f.fault, f.fired, f.count = match, fault, 0, 0
}

// Count returns how many operations of these kinds, or of all if none is
// given, there were since New or Reset, failed ones included.
func (f *Faults) Count(kinds ...Kind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	sum := 0
	for kind, n := range f.kinds {
		if len(kinds) == 0 || slices.Contains(kinds, kind) {
			sum += n
		}
	}
	return sum
}

// Record makes Statements keep, or no longer keep, what is executed.
func (f *Faults) Record(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recording = on
}

// Statements returns the SQL of each Exec and Query since Record or Reset.
func (f *Faults) Statements() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.statements)
}

// OnOp has hook called before each operation, on its goroutine; nil removes
// it. The operation waits for hook to return, so a test can hold it there.
func (f *Faults) OnOp(hook func(Op)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onOp = hook
}

// next numbers an operation, and says how it is to end.
func (f *Faults) next(kind Kind, query string, args int) (Fault, <-chan struct{}) {
	f.mu.Lock()
	f.count++
	f.kinds[kind]++
	if f.recording && (kind == Exec || kind == Query) {
		f.statements = append(f.statements, query)
	}
	op := Op{N: f.count, Kind: kind, SQL: query, Args: args}
	var fault Fault
	if f.match != nil && f.match(op) {
		fault = f.fault
		f.fired++
	}
	hook, healed := f.onOp, f.healed
	f.mu.Unlock()

	if hook != nil {
		hook(op)
	}
	return fault, healed
}

// operation is what do needs to know of one.
type operation struct {
	ctx   context.Context
	kind  Kind
	query string
	args  int
	run   func() error // does it
	drop  func()       // if set, completes and closes what run opened, as nobody receives it
	abort func()       // if set, does away with what not running it leaves behind
	cut   func(error)  // if set, prepares it to fail midway with the error
	lose  func()       // loses the connection
}

// do does one operation, or fails it as planned.
func (f *Faults) do(op operation) error {
	fault, healed := f.next(op.kind, op.query, op.args)
	mode := fault.Mode
	if mode == Midway && op.cut != nil {
		op.cut(fault.err())
		mode = None
	}
	switch mode {
	case None:
		return op.run()
	case BadConn:
		op.lose()
		return driver.ErrBadConn
	case After, HangAfter:
		if err := op.run(); err != nil {
			return err
		}
		if op.drop != nil {
			op.drop()
		}
	}
	err := fault.err()
	if mode == Hang || mode == HangAfter {
		select {
		case <-op.ctx.Done():
			err = op.ctx.Err()
		case <-healed:
		}
	}
	if op.abort != nil && mode != After && mode != HangAfter {
		op.abort()
	}
	return err
}

// Connect implements driver.Connector.
func (f *Faults) Connect(ctx context.Context) (driver.Conn, error) {
	var inner driver.Conn
	err := f.do(operation{
		ctx:  ctx,
		kind: Connect,
		run:  func() (err error) { inner, err = f.inner.Connect(ctx); return err },
		drop: func() { inner.Close() },
		lose: func() {},
	})
	if err != nil {
		return nil, err
	}
	full, ok := inner.(fullConn)
	if !ok {
		inner.Close()
		return nil, fmt.Errorf("connection %T lacks a context method", inner)
	}
	return &conn{inner: full, faults: f}, nil
}

// Driver implements driver.Connector.
func (f *Faults) Driver() driver.Driver { return f.inner.Driver() }

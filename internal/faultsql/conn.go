package faultsql

import (
	"context"
	"database/sql/driver"
	"fmt"
)

// fullConn is what an inner connection must implement.
type fullConn interface {
	driver.Conn
	driver.Pinger
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
}

type fullStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// conn is a connection whose operations may fail. Like any driver's it is used
// by one goroutine at a time.
type conn struct {
	inner  fullConn
	faults *Faults
	lost   bool
}

var (
	_ fullConn                 = (*conn)(nil)
	_ driver.NamedValueChecker = (*conn)(nil)
	_ driver.SessionResetter   = (*conn)(nil)
	_ driver.Validator         = (*conn)(nil)
)

// do adds what operations of a connection have in common.
func (c *conn) do(op operation) error {
	if c.lost {
		return driver.ErrBadConn
	}
	op.lose = c.lose
	return c.faults.do(op)
}

func (c *conn) lose() {
	c.lost = true
	c.inner.Close()
}

func (c *conn) Close() error {
	if c.lost {
		return nil
	}
	return c.inner.Close()
}

func (c *conn) Ping(ctx context.Context) error {
	return c.do(operation{ctx: ctx, kind: Ping, run: func() error { return c.inner.Ping(ctx) }})
}

func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *conn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	var inner driver.Tx
	err := c.do(operation{
		ctx:  ctx,
		kind: Begin,
		run:  func() (err error) { inner, err = c.inner.BeginTx(ctx, options); return err },
		drop: func() { inner.Rollback() },
	})
	if err != nil {
		return nil, err
	}
	return &tx{inner: inner, conn: c, ctx: ctx}, nil
}

func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	var inner driver.Stmt
	err := c.do(operation{
		ctx:   ctx,
		kind:  Prepare,
		query: query,
		run:   func() (err error) { inner, err = c.inner.PrepareContext(ctx, query); return err },
		drop:  func() { inner.Close() },
	})
	if err != nil {
		return nil, err
	}
	full, ok := inner.(fullStmt)
	if !ok {
		inner.Close()
		return nil, fmt.Errorf("statement %T lacks a context method", inner)
	}
	return &stmt{inner: full, conn: c, query: query}, nil
}

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.exec(ctx, query, args, func() (driver.Result, error) { return c.inner.ExecContext(ctx, query, args) })
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.query(ctx, query, args, func() (driver.Rows, error) { return c.inner.QueryContext(ctx, query, args) })
}

func (c *conn) exec(ctx context.Context, query string, args []driver.NamedValue, inner func() (driver.Result, error)) (driver.Result, error) {
	var result driver.Result
	err := c.do(operation{
		ctx:   ctx,
		kind:  Exec,
		query: query,
		args:  len(args),
		run:   func() (err error) { result, err = inner(); return err },
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

func (c *conn) query(ctx context.Context, query string, args []driver.NamedValue, inner func() (driver.Rows, error)) (driver.Rows, error) {
	var rows driver.Rows
	var cut error
	err := c.do(operation{
		ctx:   ctx,
		kind:  Query,
		query: query,
		args:  len(args),
		run:   func() (err error) { rows, err = inner(); return err },
		drop:  func() { drain(rows) },
		cut:   func(err error) { cut = err },
	})
	if err != nil {
		return nil, err
	}
	if cut != nil {
		return &cutRows{Rows: rows, err: cut}, nil
	}
	return rows, nil
}

func (c *conn) CheckNamedValue(value *driver.NamedValue) error {
	if checker, ok := c.inner.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(value)
	}
	return driver.ErrSkip // database/sql then does as if there were no checker
}

func (c *conn) ResetSession(ctx context.Context) error {
	if c.lost {
		return driver.ErrBadConn
	}
	if resetter, ok := c.inner.(driver.SessionResetter); ok {
		return resetter.ResetSession(ctx)
	}
	return nil
}

func (c *conn) IsValid() bool {
	if c.lost {
		return false
	}
	validator, ok := c.inner.(driver.Validator)
	return !ok || validator.IsValid()
}

// tx is a transaction; its commit and rollback have the context that it was
// begun with, since driver.Tx gives them none.
type tx struct {
	inner driver.Tx
	conn  *conn
	ctx   context.Context
}

func (t *tx) Commit() error {
	return t.conn.do(operation{ctx: t.ctx, kind: Commit, run: t.inner.Commit, abort: func() { t.inner.Rollback() }})
}

func (t *tx) Rollback() error {
	return t.conn.do(operation{ctx: t.ctx, kind: Rollback, run: t.inner.Rollback, abort: func() { t.inner.Rollback() }})
}

type stmt struct {
	inner fullStmt
	conn  *conn
	query string
}

var (
	_ fullStmt                 = (*stmt)(nil)
	_ driver.NamedValueChecker = (*stmt)(nil)
)

func (s *stmt) Close() error {
	if s.conn.lost {
		return nil
	}
	return s.inner.Close()
}

func (s *stmt) NumInput() int { return s.inner.NumInput() }

// Exec implements driver.Stmt. database/sql calls ExecContext.
func (s *stmt) Exec([]driver.Value) (driver.Result, error) { return nil, driver.ErrSkip }

// Query implements driver.Stmt. database/sql calls QueryContext.
func (s *stmt) Query([]driver.Value) (driver.Rows, error) { return nil, driver.ErrSkip }

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.exec(ctx, s.query, args, func() (driver.Result, error) { return s.inner.ExecContext(ctx, args) })
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.query(ctx, s.query, args, func() (driver.Rows, error) { return s.inner.QueryContext(ctx, args) })
}

func (s *stmt) CheckNamedValue(value *driver.NamedValue) error {
	if checker, ok := s.inner.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(value)
	}
	return s.conn.CheckNamedValue(value)
}

// cutRows breaks off after one row.
type cutRows struct {
	driver.Rows
	err  error
	read bool
}

func (r *cutRows) Next(dest []driver.Value) error {
	if r.read {
		return r.err
	}
	r.read = true
	return r.Rows.Next(dest)
}

// drain reads rows to their end: drivers execute a query as its rows are read.
func drain(rows driver.Rows) {
	dest := make([]driver.Value, len(rows.Columns()))
	for rows.Next(dest) == nil {
	}
	rows.Close()
}

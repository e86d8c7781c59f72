// Package jobsql keeps the rows of jobs in a database that package sqltx opened: on
// PostgreSQL and SQLite with statements of their own, elsewhere with those of GORM. It
// knows rows, and not what they stand for.
package jobsql

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nbena/smallben/internal/ledger/ledgersql"
	"github.com/nbena/smallben/internal/sqltx"
)

// maxExpression is the length of the column cron_expression, in bytes.
const maxExpression = 256

// Table is the table of jobs. New makes one; it is safe for concurrent use.
type Table struct {
	db         *sqltx.DB
	statements statements
	// change is the change of the record of runs in which this copy of the table
	// reads, locks and writes. Nil means that each call has a transaction of its own.
	change *ledgersql.Tx
}

// New does no I/O.
func New(db *sqltx.DB) *Table {
	if db.Kind() == sqltx.Portable {
		return &Table{db: db, statements: portable{}}
	}
	return &Table{db: db, statements: bulk{}}
}

// DB is the database.
func (t *Table) DB() *sqltx.DB { return t.db }

// WithContext returns the table whose calls end with ctx.
func (t *Table) WithContext(ctx context.Context) *Table {
	return t.On(t.db.WithContext(ctx))
}

// On returns the table as another view of its database has it.
func (t *Table) On(db *sqltx.DB) *Table {
	view := *t
	view.db = db
	return &view
}

// In returns the table in a transaction of somebody else.
func (t *Table) In(tx *sqltx.Tx) *Table {
	return t.On(t.db.In(tx))
}

// InChange returns the table in a change of the record of runs.
func (t *Table) InChange(tx *ledgersql.Tx) *Table {
	view := t.In(tx.SQL())
	view.change = tx
	return view
}

// Migrate makes sure that the table is there with the columns it needs. If create is
// not set, a table that is missing is an error.
func (t *Table) Migrate(ctx context.Context, op string, create bool) error {
	if !create {
		return t.db.Migrate(ctx, op, []sqltx.Table{Jobs}, nil)
	}
	return t.db.Migrate(ctx, op, []sqltx.Table{Jobs}, t.statements.create)
}

// Read returns the rows that match, each as convert makes it. They are in the order of
// their ids, but for those whose id cannot be read.
func Read[R any](ctx context.Context, t *Table, s Selection, convert func(row *Row) R) (rows []R, err error) {
	s.lock = t.change != nil
	err = t.db.Attempt(ctx, func(tx *sqltx.Tx) error {
		rows = []R{}
		return t.read(tx, s, func(row *Row) { rows = append(rows, convert(row)) })
	})
	return rows, err
}

func (t *Table) read(tx *sqltx.Tx, s Selection, give func(row *Row)) error {
	if s.empty() {
		return nil
	}
	return t.statements.read(tx, s, give)
}

// IDs returns the ids of the rows that match, and reads nothing else of them.
func (t *Table) IDs(ctx context.Context, filter Filter) (ids []int64, err error) {
	if filter.empty() {
		return nil, nil
	}
	kind := t.db.Kind()
	s := Selection{Filter: filter}
	if kind == sqltx.Portable {
		rows, err := Read(ctx, t, s, func(row *Row) Row { return *row })
		for i := range rows {
			if !Nameless(rows[i].Defect) {
				ids = append(ids, rows[i].ID)
			}
		}
		return ids, err
	}
	text, args := s.query(kind, "SELECT id FROM (SELECT * FROM {jobs} WHERE "+hasID(kind)+") AS named")
	err = t.db.Attempt(ctx, func(tx *sqltx.Tx) error {
		ids = nil
		return tx.Each(text, args, func(rows *sql.Rows) error {
			var id int64
			err := rows.Scan(&id)
			ids = append(ids, id)
			return err
		})
	})
	return ids, err
}

// Kind is what a change does to rows.
type Kind int

// The kinds of changes. All but SetCronID set the time of the last change.
const (
	Pause Kind = iota
	Resume
	SetCronID
	Update
	Replace
	Delete
)

// Target is a row of a change, and what is written to it.
type Target struct {
	ID, CronID        int64
	Expression, Input *string // nil: not written
	Row               *Row    // of a replacement, and else nil
}

// size is about how much text a statement takes for it.
func (t *Target) size() (n int) {
	for _, text := range []*string{t.Expression, t.Input} {
		if text != nil {
			n += len(*text)
		}
	}
	if t.Row != nil {
		n += len(t.Row.SerializedJob)
	}
	return n
}

// inOrder puts targets in the order of their ids, so that two processes do not wait
// for each other, and keeps one of each.
func inOrder(targets []Target) []Target {
	slices.SortStableFunc(targets, func(a, b Target) int { return cmp.Compare(a.ID, b.ID) })
	return slices.CompactFunc(targets, func(a, b Target) bool { return a.ID == b.ID })
}

// refusal is the error of an INSERT.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// Refused reports whether an error of Store is that of an INSERT.
func Refused(err error) bool { return errors.As(err, new(refusal)) }

// Store adds rows, and changes those of replace that exist to what is given, in one
// transaction. It returns the ids of the others.
func (t *Table) Store(ctx context.Context, op string, add, replace []Row, now time.Time) (missing []int64, err error) {
	targets := make([]Target, len(replace))
	for i := range replace {
		row := &replace[i]
		targets[i] = Target{ID: row.ID, CronID: row.CronID, Row: row, Expression: &row.CronExpression, Input: &row.SerializedJobInput}
	}
	return t.write(ctx, op, add, Replace, targets, now)
}

// Change changes every target that exists, in one transaction. It returns the ids of
// the others.
func (t *Table) Change(ctx context.Context, op string, kind Kind, targets []Target) (missing []int64, err error) {
	return t.write(ctx, op, nil, kind, targets, t.db.Now())
}

func (t *Table) write(ctx context.Context, op string, add []Row, kind Kind, targets []Target, now time.Time) (missing []int64, err error) {
	targets = inOrder(targets)
	added := make([]int64, len(add))
	for i := range add {
		added[i] = add[i].ID
	}
	added = unique(added)
	err = t.db.Write(ctx, op, func(tx *sqltx.Tx) error {
		err := t.insertRows(tx, add, added)
		if err == nil {
			missing, err = t.changeRows(tx, kind, targets, now)
		}
		return err
	}, func(tx *sqltx.Tx) (bool, error) {
		stored := 0
		err := t.read(tx, Selection{Filter: Filter{JobIDs: added}}, func(*Row) { stored++ })
		if err != nil || stored < len(added) {
			return false, err
		}
		return t.changed(tx, kind, targets, missing, now)
	})
	return missing, err
}

// insertRows adds rows chunk by chunk.
func (t *Table) insertRows(tx *sqltx.Tx, rows []Row, ids []int64) error {
	limit, _ := t.statements.chunks()
	for chunk := range sqltx.Chunks(rows, limit, func(row *Row) int { return len(row.SerializedJob) + len(row.SerializedJobInput) }) {
		if err := t.statements.insert(tx, chunk); err != nil {
			return refusal{err}
		}
	}
	if t.change == nil {
		return nil
	}
	return t.change.Touch(ids, true)
}

// changeRows changes targets chunk by chunk. It returns the ids that do not exist.
func (t *Table) changeRows(tx *sqltx.Tx, kind Kind, targets []Target, now time.Time) (missing []int64, err error) {
	found := make(map[int64]bool, len(targets))
	_, limit := t.statements.chunks()
	for chunk := range sqltx.Chunks(targets, limit, (*Target).size) {
		if err := t.statements.change(tx, kind, chunk, now, found); err != nil {
			return nil, err
		}
	}
	var ids []int64
	for i := range targets {
		if id := targets[i].ID; found[id] {
			ids = append(ids, id)
		} else {
			missing = append(missing, id)
		}
	}
	// The states of the jobs get the revision of the change.
	switch {
	case t.change == nil || kind == SetCronID:
		return missing, nil
	case kind == Delete:
		return missing, t.change.Delete(ids)
	}
	return missing, t.change.Touch(ids, kind == Resume)
}

// changed reports whether the rows are as a change leaves them.
func (t *Table) changed(tx *sqltx.Tx, kind Kind, targets []Target, missing []int64, now time.Time) (bool, error) {
	cronIDs := make(map[int64]int64, len(targets))
	ids := make([]int64, len(targets))
	for i, target := range targets {
		ids[i], cronIDs[target.ID] = target.ID, target.CronID
	}
	found, agree := 0, true
	err := t.read(tx, Selection{Filter: Filter{JobIDs: ids}}, func(row *Row) {
		found++
		if kind == SetCronID {
			agree = agree && row.CronID == cronIDs[row.ID]
		} else {
			agree = agree && row.UpdatedAt.Equal(now)
		}
	})
	switch {
	case err != nil:
		return false, err
	case kind == Delete:
		return found == 0, nil
	}
	return agree && found == len(targets)-len(missing), nil
}

// Wide is a value that is too wide for its column.
type Wide struct {
	JobID int64
	Err   error
}

// TooWide returns what of rows the columns of ids cannot hold. The original's table has
// 32 bits for super_group_id and cron_id, and SQLite would not mind.
func (t *Table) TooWide(ctx context.Context, rows []Row) (found []Wide, err error) {
	columns := []string{"id", "group_id", "super_group_id", "cron_id"}
	values := func(row *Row) []int64 { return []int64{row.ID, row.GroupID, row.SuperGroupID, row.CronID} }
	isWide := func(v int64) bool { return v != int64(int32(v)) }
	if !slices.ContainsFunc(rows, func(row Row) bool { return slices.ContainsFunc(values(&row), isWide) }) {
		return nil, nil
	}
	var narrow []bool
	err = t.db.Attempt(ctx, func(tx *sqltx.Tx) (err error) {
		narrow, err = t.narrowColumns(tx, columns)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range rows {
		for n, v := range values(&rows[i]) {
			if narrow[n] && isWide(v) {
				found = append(found, Wide{rows[i].ID, fmt.Errorf("column %s of the table %s has 32 bits, too few for %d", columns[n], t.db.Table("jobs"), v)})
			}
		}
	}
	return found, nil
}

// narrowColumns tells which of the columns have 32 bits.
func (t *Table) narrowColumns(tx *sqltx.Tx, names []string) ([]bool, error) {
	narrow := make([]bool, len(names))
	result, err := tx.Query("SELECT " + strings.Join(names, ", ") + " FROM {jobs} WHERE 1 = 0")
	if err != nil {
		return nil, err
	}
	defer result.Close()
	types, err := result.ColumnTypes()
	if err != nil {
		return nil, err
	}
	some64 := false
	for i, column := range types {
		switch strings.ToUpper(column.DatabaseTypeName()) {
		case "INT4", "INT", "INTEGER":
			narrow[i] = true
		case "INT8", "BIGINT":
			some64 = true
		}
	}
	if t.db.Dialect() == "sqlite" && !some64 {
		// The table does not tell integer from bigint: GORM's own do not.
		clear(narrow)
	}
	return narrow, result.Err()
}

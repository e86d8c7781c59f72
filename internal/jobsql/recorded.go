package jobsql

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/nbena/smallben/internal/sqltx"
)

// Revised is a row together with the revision of its last change. It is valid until the
// function that is given it returns. A job that was deleted has no Row.
type Revised struct {
	ID, Revision int64
	Row          *Row
}

// revisedJobs takes the columns, the jobs to give, v, and on which condition. On SQLite
// columns are read without their declared types; see bulk.read.
const revisedJobs = `SELECT c.revision, v.job_id, m.revision, %s FROM {smallben_ledger} c LEFT JOIN %s ON %s
LEFT JOIN {smallben_job_state} m ON m.job_id = v.job_id LEFT JOIN {jobs} j ON j.id = v.job_id ORDER BY v.job_id`

// ReadRevised gives the jobs of ids, whatever their revision. If ids is nil, it gives those
// that a change with a higher revision than since has changed last or, if since is 0, every
// row, and no tombstone. It returns the revision of the last change, whatever it changed.
// All comes from one picture of the database: it calls begin before the first job, and
// again if it starts over.
func (t *Table) ReadRevised(ctx context.Context, since int64, ids []int64, begin func(), give func(job Revised)) (last int64, err error) {
	if t.db.Kind() == sqltx.Portable {
		return 0, fmt.Errorf("read changes: the record of runs needs PostgreSQL or SQLite, not %s", t.db.Dialect())
	}
	from, condition, args := "{smallben_job_state} v", "v.revision > $1", []any{since}
	switch {
	case ids != nil:
		values := make([][]any, 0, len(ids))
		for _, id := range unique(ids) {
			values = append(values, []any{id})
		}
		from, condition, args = "{rows}", "true", []any{sqltx.Rows{Fields: "job_id bigint", Values: values}}
	case since == 0:
		from, condition, args = "(SELECT id AS job_id FROM {jobs} WHERE "+hasID(t.db.Kind())+") AS v", "true", nil
	}
	strict := t.db.Kind() == sqltx.SQLite
	listed := prefixed("j.", columns)
	if strict {
		listed = prefixed("+j.", columns)
	}
	err = t.db.Failed("read changes", t.db.Read(ctx, func(tx *sqltx.Tx) error {
		begin()
		var id, revision *int64
		var values rowValues
		var row Row // of each in turn
		dest := append([]any{&last, &id, &revision}, values.dest()...)
		return tx.Each(fmt.Sprintf(revisedJobs, listed, from, condition), args, func(rows *sql.Rows) error {
			if err := rows.Scan(dest...); err != nil || id == nil {
				return err
			}
			job := Revised{ID: *id}
			if revision != nil {
				job.Revision = *revision
			}
			if values[0] != nil {
				row = values.row(strict)
				job.Row = &row
			}
			give(job)
			return nil
		})
	}))
	return last, err
}

// Lock returns a function that locks the rows that match, in the order of their ids. It is
// the one that ledgersql.Store.ChangeSQL calls before a change takes the record for itself,
// so that a row that somebody else has locked holds up no change of other rows. It is nil
// where rows have no locks.
func (t *Table) Lock(filter Filter) func(tx *sqltx.Tx, wait bool) error {
	if t.db.Kind() != sqltx.Postgres {
		return nil
	}
	complete := false // no other row can match
	return func(tx *sqltx.Tx, wait bool) error {
		if complete && !wait {
			return nil
		}
		s := Selection{Filter: filter}
		text, args := s.query(tx.Kind(), "SELECT id FROM {jobs}")
		text += " FOR UPDATE"
		if !wait {
			text += " NOWAIT"
		}
		n := 0
		err := tx.Each(text, args, func(*sql.Rows) error { n++; return nil })
		complete = filter.onlyJobIDs() && n == len(unique(filter.JobIDs))
		return err
	}
}

// CreatedAt reads the column created_at as the driver gives it.
func (t *Table) CreatedAt(value any) time.Time {
	scanner := rowScanner{row: &Row{}, strict: t.db.Kind() == sqltx.SQLite}
	return scanner.time("created_at", value)
}

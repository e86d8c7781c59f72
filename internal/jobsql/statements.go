package jobsql

import (
	"database/sql"
	"slices"
	"strings"
	"time"

	"github.com/nbena/smallben/internal/sqltx"
)

const (
	insertChunk   = 1000   // rows of one INSERT: 10 binds each, of SQLite's 32,766
	changeChunk   = 10_000 // rows of one UPDATE or DELETE, which takes them as one parameter
	portableChunk = 200    // rows of one portable statement: SQL Server allows 2,100 binds
	columns       = "id, group_id, super_group_id, cron_id, cron_expression, paused, created_at, updated_at, serialized_job, serialized_job_input"
	// timeFormat is how the original wrote times to SQLite, and how mattn's
	// driver reads them first. PostgreSQL reads it as well.
	timeFormat = "2006-01-02 15:04:05.999999-07:00"
)

// statements are what the table of jobs takes from a transaction.
type statements interface {
	// create creates the table and its indexes.
	create(tx *sqltx.Tx) error
	// read calls give for each row that matches. The row is valid until give returns.
	read(tx *sqltx.Tx, s Selection, give func(row *Row)) error
	// insert adds rows.
	insert(tx *sqltx.Tx, rows []Row) error
	// change changes the targets that exist, and adds their ids to found. Targets
	// are in the order of their ids, and no two have the same.
	change(tx *sqltx.Tx, kind Kind, targets []Target, now time.Time, found map[int64]bool) error
	// chunks are how many rows insert and change take at most.
	chunks() (insert, change int)
}

// bulk are the statements of PostgreSQL and SQLite, which take any number of rows in a few
// parameters.
type bulk struct{}

func (bulk) chunks() (insert, change int) { return insertChunk, changeChunk }

// createTable creates the table of jobs.
const createTable = `CREATE TABLE {jobs} (
	id bigint PRIMARY KEY,
	group_id bigint NOT NULL,
	super_group_id bigint NOT NULL,
	paused boolean NOT NULL DEFAULT false,
	cron_expression varchar(256) NOT NULL,
	cron_id bigint NOT NULL DEFAULT 0,
	serialized_job text NOT NULL,
	serialized_job_input text NOT NULL,
	created_at {timestamp} NOT NULL DEFAULT current_timestamp,
	updated_at {timestamp} NOT NULL DEFAULT current_timestamp
)`

// indexes are the names and columns of the indexes. The names are the original's. Where
// one is taken, by another table's index, ours begins with jobs_.
var indexes = [][2]string{{"paused_idx", "paused"}, {"group_idx", "group_id"}, {"super_group_idx", "super_group_id"}}

// IndexNames are the names that the indexes may have.
func IndexNames() (names []string) {
	for _, index := range indexes {
		names = append(names, index[0], "jobs_"+index[0])
	}
	return names
}

func createIndex(name, column string) string {
	return "CREATE INDEX {" + name + "} ON {jobs} (" + column + ")"
}

// Schema are the statements that create the table and its indexes where no name
// is taken.
func Schema() []string {
	script := []string{createTable}
	for _, index := range indexes {
		script = append(script, createIndex(index[0], index[1]))
	}
	return script
}

func (bulk) create(tx *sqltx.Tx) error {
	if err := tx.Exec(createTable); err != nil {
		return err
	}
	for _, index := range indexes {
		name, column := index[0], index[1]
		taken, err := tx.Exists(name)
		if err != nil {
			return err
		}
		if taken {
			name = "jobs_" + name
		}
		if err := tx.Exec(createIndex(name, column)); err != nil {
			return err
		}
	}
	return nil
}

// read hides the declared types on SQLite, by which drivers convert what is stored:
// a timestamp that cannot be read would become the zero time.
func (bulk) read(tx *sqltx.Tx, s Selection, give func(row *Row)) error {
	strict := tx.Kind() == sqltx.SQLite
	listed := columns
	if strict {
		listed = prefixed("+", columns)
	}
	text, args := s.query(tx.Kind(), "SELECT "+listed+" FROM {jobs}")
	if s.lock {
		text += " FOR UPDATE"
	}
	rows, err := tx.Query(text, args...)
	if err != nil {
		return err
	}
	return scanRows(rows, strict, give)
}

// Jobs are the table, and what its columns are to hold.
var Jobs = sqltx.Table{Name: "jobs", Fields: "id bigint, group_id bigint, super_group_id bigint, cron_id bigint, cron_expression text, paused boolean, created_at timestamptz, updated_at timestamptz, serialized_job text, serialized_job_input text"}

// insert takes binds on SQLite, which is faster there.
func (bulk) insert(tx *sqltx.Tx, rows []Row) error {
	values := make([][]any, len(rows))
	for i := range rows {
		row := &rows[i]
		values[i] = []any{row.ID, row.GroupID, row.SuperGroupID, row.CronID, row.CronExpression, row.Paused,
			row.CreatedAt.Format(timeFormat), row.UpdatedAt.Format(timeFormat), row.SerializedJob, row.SerializedJobInput}
	}
	const into = "INSERT INTO {jobs} (" + columns + ") "
	if tx.Kind() == sqltx.SQLite {
		const row = "(?,?,?,?,?,?,?,?,?,?)"
		return tx.Exec(into+"VALUES "+strings.Repeat(row+",", len(rows)-1)+row, slices.Concat(values...)...)
	}
	return tx.Exec(into+"SELECT * FROM {rows}", sqltx.Rows{Fields: Jobs.Fields, Values: values})
}

// bulkChanges are the statements of changes. $1 is the time where one is written,
// and v has the fields that bulk.change gives it.
var bulkChanges = map[Kind]string{
	Delete:    "DELETE FROM {jobs} WHERE id IN (SELECT v.job_id FROM {rows})",
	SetCronID: "UPDATE {jobs} AS j SET cron_id = v.cron_id FROM {rows} WHERE j.id = v.job_id",
	Pause:     "UPDATE {jobs} AS j SET updated_at = $1, paused = true, cron_id = v.cron_id FROM {rows} WHERE j.id = v.job_id",
	Resume:    "UPDATE {jobs} AS j SET updated_at = $1, paused = false, cron_id = v.cron_id FROM {rows} WHERE j.id = v.job_id",
	Update: `UPDATE {jobs} AS j SET updated_at = $1, cron_id = v.cron_id,
	cron_expression = coalesce(v.expression, j.cron_expression), serialized_job_input = coalesce(v.input, j.serialized_job_input)
FROM {rows} WHERE j.id = v.job_id`,
	Replace: `UPDATE {jobs} AS j SET updated_at = $1, cron_id = v.cron_id, cron_expression = v.expression, serialized_job_input = v.input,
	group_id = v.new_group, super_group_id = v.new_super_group, serialized_job = v.job
FROM {rows} WHERE j.id = v.job_id`,
}

func (bulk) change(tx *sqltx.Tx, kind Kind, targets []Target, now time.Time, found map[int64]bool) error {
	rows := sqltx.Rows{Fields: "job_id bigint, cron_id bigint", Values: make([][]any, len(targets))}
	switch kind {
	case Update:
		rows.Fields += ", expression text, input text"
	case Replace:
		rows.Fields += ", expression text, input text, new_group bigint, new_super_group bigint, job text"
	}
	for i, t := range targets {
		values := []any{t.ID, t.CronID}
		if kind == Update || kind == Replace {
			values = append(values, t.Expression, t.Input)
		}
		if kind == Replace {
			values = append(values, t.Row.GroupID, t.Row.SuperGroupID, t.Row.SerializedJob)
		}
		rows.Values[i] = values
	}
	args := []any{rows}
	if kind != Delete && kind != SetCronID {
		args = []any{now.Format(timeFormat), rows}
	}
	return tx.Each(bulkChanges[kind]+" RETURNING id", args, func(rows *sql.Rows) error {
		var id int64
		err := rows.Scan(&id)
		found[id] = true
		return err
	})
}

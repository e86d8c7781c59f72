package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nbena/smallben"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"
)

var columns = []string{
	"id", "group_id", "super_group_id", "cron_id", "cron_expression", "paused",
	"created_at", "updated_at", "serialized_job", "serialized_job_input",
}

func values(row *smallben.RawJob) []any {
	return []any{
		row.ID, row.GroupID, row.SuperGroupID, row.CronID, row.CronExpression, row.Paused,
		row.CreatedAt, row.UpdatedAt, row.SerializedJob, row.SerializedJobInput,
	}
}

func destinations(row *smallben.RawJob) []any {
	return []any{
		&row.ID, &row.GroupID, &row.SuperGroupID, &row.CronID, &row.CronExpression, &row.Paused,
		&row.CreatedAt, &row.UpdatedAt, &row.SerializedJob, &row.SerializedJobInput,
	}
}

// bulk are the bulk statements of a database, whose parameters are lists of as
// many ids, numbers or texts.
type bulk struct {
	pause, resume, remove, renumber, update string
}

var bulks = map[string]bulk{
	"SQLite": {
		pause:    "UPDATE jobs SET paused = true, cron_id = 0, updated_at = ?2 WHERE id IN (SELECT value FROM json_each(?1))",
		resume:   "UPDATE jobs SET paused = false, cron_id = id, updated_at = ?2 WHERE id IN (SELECT value FROM json_each(?1))",
		remove:   "DELETE FROM jobs WHERE id IN (SELECT value FROM json_each(?1))",
		renumber: "UPDATE jobs SET cron_id = v.value FROM json_each(?1) AS v WHERE jobs.id = v.key + 1",
		update:   "UPDATE jobs SET cron_expression = v.value, updated_at = ?2 FROM json_each(?1) AS v WHERE jobs.id = v.key + 1",
	},
	"PostgreSQL": {
		pause:    "UPDATE jobs SET paused = true, cron_id = 0, updated_at = $2 WHERE id = ANY($1)",
		resume:   "UPDATE jobs SET paused = false, cron_id = id, updated_at = $2 WHERE id = ANY($1)",
		remove:   "DELETE FROM jobs WHERE id = ANY($1)",
		renumber: "UPDATE jobs SET cron_id = v.cron_id FROM unnest($1::bigint[]) WITH ORDINALITY AS v(cron_id, id) WHERE jobs.id = v.id",
		update:   "UPDATE jobs SET cron_expression = v.expression, updated_at = $2 FROM unnest($1::text[]) WITH ORDINALITY AS v(expression, id) WHERE jobs.id = v.id",
	},
}

var selection = "SELECT " + strings.Join(columns, ", ") + " FROM jobs WHERE "

// bare are the steps that a database does with nothing around it: insert adds
// one batch, read reads the rows of a condition and counts them, and exec runs a
// statement with a list and perhaps the time.
func bare(db *database, n int,
	insert func(rows []smallben.RawJob) error,
	read func(condition string) (int, error),
	exec func(statement string, args ...any) error,
) (map[work]step, error) {
	stored, err := rows(n)
	if err != nil {
		return nil, err
	}
	numbers, expressions := make([]int64, n), make([]string, n)
	for i := range n {
		numbers[i], expressions[i] = int64(n-i), expression(i+7)
	}
	odd, statements := half(n), bulks[db.name]
	all := func(condition string) error {
		found, err := read(condition)
		if err == nil && found != n {
			err = fmt.Errorf("%d rows of %d", found, n)
		}
		return err
	}
	start := func() error { return all("NOT paused ORDER BY id") }
	return map[work]step{
		adding: {do: func() error {
			for i := 0; i < n; i += batch {
				if err := insert(stored[i:min(i+batch, n)]); err != nil {
					return err
				}
			}
			return nil
		}},
		starting:    {do: start},
		renumbering: {do: func() error { return errors.Join(start(), exec(statements.renumber, numbers)) }},
		pausing:     {do: func() error { return exec(statements.pause, odd, time.Now().UTC()) }},
		resuming:    {do: func() error { return exec(statements.resume, odd, time.Now().UTC()) }},
		listing:     {do: func() error { return all("true ORDER BY id") }},
		updating:    {do: func() error { return exec(statements.update, expressions, time.Now().UTC()) }},
		deleting:    {do: func() error { return exec(statements.remove, odd) }},
	}, nil
}

// beginSQL is database/sql: on SQLite a prepared INSERT for each row, on
// PostgreSQL, where each statement is a round trip, one for each batch.
func beginSQL(db *database, dsn string, n int) (map[work]step, func() error, error) {
	pool, err := sql.Open(db.driver, dsn)
	if err != nil {
		return nil, nil, err
	}
	inTx := func(do func(tx *sql.Tx) error) error {
		tx, err := pool.Begin()
		if err != nil {
			return err
		}
		if err := do(tx); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	}
	insert := func(rows []smallben.RawJob) error {
		return inTx(func(tx *sql.Tx) error {
			statement, err := tx.Prepare("INSERT INTO jobs (" + strings.Join(columns, ", ") + ") VALUES (?,?,?,?,?,?,?,?,?,?)")
			if err != nil {
				return err
			}
			for i := range rows {
				if _, err := statement.Exec(values(&rows[i])...); err != nil {
					return err
				}
			}
			return statement.Close()
		})
	}
	if db.name == "PostgreSQL" {
		insert = func(rows []smallben.RawJob) error {
			var text strings.Builder
			text.WriteString("INSERT INTO jobs (" + strings.Join(columns, ", ") + ") VALUES ")
			var args []any
			for i := range rows {
				if i > 0 {
					text.WriteByte(',')
				}
				separator := byte('(')
				for _, value := range values(&rows[i]) {
					args = append(args, value)
					text.WriteByte(separator)
					text.WriteByte('$')
					text.WriteString(strconv.Itoa(len(args)))
					separator = ','
				}
				text.WriteByte(')')
			}
			_, err := pool.Exec(text.String(), args...)
			return err
		}
	}
	read := func(condition string) (int, error) { return readSQL(pool, condition) }
	exec := func(statement string, args ...any) error {
		if db.name == "SQLite" {
			list, err := json.Marshal(args[0])
			if err != nil {
				return err
			}
			args[0] = string(list)
		}
		return inTx(func(tx *sql.Tx) error {
			_, err := tx.Exec(statement, args...)
			return err
		})
	}
	steps, err := bare(db, n, insert, read, exec)
	return steps, pool.Close, err
}

func readSQL(pool *sql.DB, condition string) (int, error) {
	found, err := pool.Query(selection + condition)
	if err != nil {
		return 0, err
	}
	defer found.Close()
	var jobs []smallben.RawJob
	for found.Next() {
		jobs = append(jobs, smallben.RawJob{})
		if err := found.Scan(destinations(&jobs[len(jobs)-1])...); err != nil {
			return 0, err
		}
	}
	return len(jobs), found.Err()
}

// beginPgx is pgx without database/sql, and COPY for the rows.
func beginPgx(db *database, dsn string, n int) (map[work]step, func() error, error) {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, nil, err
	}
	insert := func(rows []smallben.RawJob) error {
		_, err := conn.CopyFrom(ctx, pgx.Identifier{"jobs"}, columns, pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) {
			return values(&rows[i]), nil
		}))
		return err
	}
	read := func(condition string) (int, error) {
		found, err := conn.Query(ctx, selection+condition)
		if err != nil {
			return 0, err
		}
		jobs, err := pgx.CollectRows(found, func(row pgx.CollectableRow) (job smallben.RawJob, err error) {
			return job, row.Scan(destinations(&job)...)
		})
		return len(jobs), err
	}
	exec := func(statement string, args ...any) error {
		_, err := conn.Exec(ctx, statement, args...)
		return err
	}
	steps, err := bare(db, n, insert, read, exec)
	return steps, func() error { return conn.Close(ctx) }, err
}

// beginGorm is GORM, with prepared statements as its documentation recommends,
// and an upsert for the update of rows that differ.
func beginGorm(db *database, dsn string, n int) (map[work]step, func() error, error) {
	g, err := gorm.Open(db.dialector(dsn), &gorm.Config{PrepareStmt: true, Logger: logger.Discard})
	if err != nil {
		return nil, nil, err
	}
	stored, err := rows(n)
	if err != nil {
		return nil, nil, err
	}
	pool, err := g.DB()
	if err != nil {
		return nil, nil, err
	}
	find := func(tx *gorm.DB) func() error {
		return func() error {
			var found []smallben.RawJob
			return tx.Order("id").Find(&found).Error
		}
	}
	odd := func() *gorm.DB { return g.Model(&smallben.RawJob{}).Where("group_id = ?", 1) }
	steps := map[work]step{
		adding:   {do: func() error { return g.CreateInBatches(stored, batch).Error }},
		starting: {do: find(g.Where("paused = ?", false))},
		pausing:  {do: func() error { return odd().Updates(map[string]any{"paused": true, "cron_id": 0}).Error }},
		resuming: {do: func() error {
			return odd().Updates(map[string]any{"paused": false, "cron_id": gorm.Expr("id")}).Error
		}},
		listing: {do: find(g)},
		updating: {
			before: func() error {
				for i := range stored {
					stored[i].CronExpression = expression(i + 7)
				}
				return nil
			},
			do: func() error {
				return g.Clauses(clause.OnConflict{
					Columns:   []clause.Column{{Name: "id"}},
					DoUpdates: clause.AssignmentColumns([]string{"cron_expression", "updated_at"}),
				}).CreateInBatches(stored, batch).Error
			},
		},
		deleting: {do: func() error { return odd().Delete(&smallben.RawJob{}).Error }},
	}
	return steps, pool.Close, nil
}

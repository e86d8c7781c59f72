package main

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// prototype are the statements of a record of runs with nothing around them: they
// claim a tick of the jobs of a list, and finish the runs that were won.
type prototype struct {
	schema, claim, finish string
}

const prototypeSchema = `
CREATE TABLE bare_marks (job_id bigint PRIMARY KEY, revision bigint NOT NULL, accounted_until bigint NOT NULL);
INSERT INTO bare_marks SELECT id, 1, 0 FROM jobs;
CREATE TABLE bare_runs (
	job_id bigint NOT NULL, tick bigint NOT NULL, triggered boolean NOT NULL, attempt int NOT NULL,
	group_id bigint NOT NULL, super_group_id bigint NOT NULL, process text NOT NULL, outcome varchar(16) NOT NULL,
	started_at bigint NOT NULL, ended_at bigint, error text NOT NULL, PRIMARY KEY (tick, job_id, triggered, attempt)
)%s;
CREATE INDEX bare_job_idx ON bare_runs (job_id, tick);
CREATE INDEX bare_unfinished_idx ON bare_runs (process) WHERE ended_at IS NULL`

// The parameters are the process, the time, and the runs. Conditions are such that
// no planner, which knows nothing yet of a table that fills so fast, prefers
// another index to the key.
var prototypes = map[string]prototype{
	"SQLite": {
		schema: fmt.Sprintf(prototypeSchema, " WITHOUT ROWID"),
		claim: `INSERT INTO bare_runs (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, error)
SELECT j.id, v.tick, false, 1, j.group_id, j.super_group_id, ?1, 'running', ?2, ''
FROM (SELECT value ->> 0 AS id, value ->> 1 AS tick FROM json_each(?3)) AS v JOIN jobs AS j ON j.id = v.id JOIN bare_marks AS m ON m.job_id = j.id
WHERE NOT j.paused AND m.revision = 1 AND m.accounted_until < v.tick
ORDER BY j.id ON CONFLICT DO NOTHING RETURNING job_id`,
		finish: `UPDATE bare_runs AS r SET started_at = ?2, ended_at = ?2, outcome = 'ok'
FROM (SELECT value ->> 0 AS id, value ->> 1 AS tick FROM json_each(?3)) AS v
WHERE r.tick = v.tick AND r.job_id = v.id AND +r.process = ?1 AND (r.ended_at IS NULL OR r.outcome = 'lost')`,
	},
	"PostgreSQL": {
		schema: fmt.Sprintf(prototypeSchema, ""),
		claim: `INSERT INTO bare_runs (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, error)
SELECT j.id, v.tick, false, 1, j.group_id, j.super_group_id, $1, 'running', $2, ''
FROM unnest($3::bigint[], $4::bigint[]) AS v (id, tick) JOIN jobs AS j ON j.id = v.id JOIN bare_marks AS m ON m.job_id = j.id
WHERE NOT j.paused AND m.revision = 1 AND m.accounted_until < v.tick
ORDER BY j.id FOR SHARE OF m ON CONFLICT DO NOTHING RETURNING job_id`,
		finish: `UPDATE bare_runs AS r SET started_at = $2, ended_at = $2, outcome = 'ok'
FROM unnest($3::bigint[], $4::bigint[]) AS v (id, tick)
WHERE r.tick = v.tick AND r.job_id = v.id AND CASE WHEN r.process = $1 THEN r.ended_at IS NULL OR r.outcome = 'lost' END`,
	},
}

// claimed are jobs whose run at a tick was won.
type claimed struct {
	ids  []int64
	tick int64
}

// claim claims and finishes, one tick after another, as fast as it can. Finishes go
// beside the next claims, but on SQLite, which has one writer.
func (t *task) claim(db *database, done <-chan struct{}) error {
	dsn := t.DSN
	if db.name == "SQLite" {
		dsn += "&_busy_timeout=60000" // who waits there may wait for long
	}
	pool, err := sql.Open(db.driver, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	if db.name == "SQLite" {
		pool.SetMaxOpenConns(1)
	}
	statements, process := prototypes[db.name], fmt.Sprintf("host/%d/abcdef", os.Getpid())
	all := make([]int64, batch)
	for i := range all {
		all[i] = int64(i + 1)
	}
	arguments := func(c claimed) []any {
		return append([]any{process, time.Now().UnixMicro()}, db.runs(c)...)
	}
	fmt.Println("begun")

	won := make(chan claimed, 1)
	finished := make(chan error, 1)
	go func() {
		for c := range won {
			if _, err := pool.Exec(statements.finish, arguments(c)...); err != nil {
				finished <- err
				return
			}
		}
		finished <- nil
	}()
	for tick := int64(1); ; tick++ {
		ids, err := readIDs(pool.Query(statements.claim, arguments(claimed{all, tick})...))
		if err != nil {
			return err
		}
		select {
		case won <- claimed{ids, tick}:
		case err := <-finished:
			return err
		case <-done:
			close(won)
			return <-finished
		}
	}
}

func readIDs(rows *sql.Rows, err error) (ids []int64, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// runs are the parameters for the runs of jobs.
func (db *database) runs(c claimed) []any {
	pairs, ticks := make([][2]int64, len(c.ids)), make([]int64, len(c.ids))
	for i, id := range c.ids {
		pairs[i], ticks[i] = [2]int64{id, c.tick}, c.tick
	}
	if db.name == "PostgreSQL" {
		return []any{c.ids, ticks}
	}
	text, _ := json.Marshal(pairs) // integers always do
	return []any{string(text)}
}

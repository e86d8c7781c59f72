package smallben

import (
	"fmt"
	"strings"
)

// recordTables are the tables of the record, and their columns.
var recordTables = []struct{ name, fields string }{
	{"job_runs", runFields},
	{"job_marks", "job_id bigint, revision bigint, accounted_until bigint, updated_at timestamptz, deleted_at bigint"},
	{"job_running", "process text, " + keyFields},
	{"job_processes", "process text, beats bigint"},
	{"job_record", "id int, revision bigint, tokens text, location text, leader text"},
}

func recordTableNames() (names []string) {
	for _, table := range recordTables {
		names = append(names, table.name)
	}
	return names
}

// recordIndexes are the names of their indexes.
var recordIndexes = []string{"job_runs_job_idx", "job_runs_unfinished_idx", "job_marks_revision_idx", "job_marks_deleted_idx"}

const (
	tickColumns = "tick, triggered, attempt"
	keyColumns  = "job_id, " + tickColumns
	runColumns  = keyColumns + ", group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, first_tick, exclusive"

	keyFields = "job_id bigint, tick bigint, triggered boolean, attempt int"
	runFields = keyFields + ", group_id bigint, super_group_id bigint, process text, outcome text, started_at bigint, ended_at bigint, error text, missed bigint, first_tick bigint, exclusive boolean"
	idFields  = "job_id bigint"

	sameRun = "r.job_id = v.job_id AND r.tick = v.tick AND r.triggered = v.triggered AND r.attempt = v.attempt"
)

// recordSchema are the statements that create the tables of the record. Times are
// in microseconds since 1970, but for updated_at, which is as in the table jobs.
// The key of a run begins with the tick, so that new runs are next to each other.
var recordSchema = []string{
	`CREATE TABLE IF NOT EXISTS {job_runs} (
	job_id bigint NOT NULL,
	tick bigint NOT NULL,
	triggered boolean NOT NULL,
	attempt int NOT NULL,
	group_id bigint NOT NULL,
	super_group_id bigint NOT NULL,
	process text NOT NULL,
	outcome varchar(16) NOT NULL,
	started_at bigint,
	ended_at bigint,
	error text NOT NULL,
	missed bigint NOT NULL,
	first_tick bigint,
	exclusive boolean NOT NULL,
	PRIMARY KEY (tick, job_id, triggered, attempt)
){without rowid}`,
	"CREATE INDEX IF NOT EXISTS {job_runs_job_idx} ON {job_runs} (job_id, tick)",
	"CREATE INDEX IF NOT EXISTS {job_runs_unfinished_idx} ON {job_runs} (process) WHERE ended_at IS NULL",
	`CREATE TABLE IF NOT EXISTS {job_marks} (
	job_id bigint PRIMARY KEY,
	revision bigint NOT NULL,
	accounted_until bigint NOT NULL,
	updated_at {timestamp},
	deleted_at bigint
)`,
	"CREATE INDEX IF NOT EXISTS {job_marks_revision_idx} ON {job_marks} (revision)",
	"CREATE INDEX IF NOT EXISTS {job_marks_deleted_idx} ON {job_marks} (deleted_at) WHERE deleted_at IS NOT NULL",
	`CREATE TABLE IF NOT EXISTS {job_running} (
	job_id bigint PRIMARY KEY,
	process text NOT NULL,
	tick bigint NOT NULL,
	triggered boolean NOT NULL,
	attempt int NOT NULL
)`,
	`CREATE TABLE IF NOT EXISTS {job_processes} (
	process text PRIMARY KEY,
	beats bigint NOT NULL
)`,
	`CREATE TABLE IF NOT EXISTS {job_record} (
	id int PRIMARY KEY CHECK (id = 1),
	revision bigint NOT NULL,
	tokens text NOT NULL,
	location text NOT NULL,
	leader text NOT NULL
)`,
}

// claimRuns adds the runs that may be claimed. It locks the marks of their jobs:
// a Change that changes one of them comes before or after. $1 is the process, $2
// the time.
const claimRuns = insertClaims + `JOIN {job_marks} m ON m.job_id = v.job_id
WHERE CASE WHEN m.deleted_at IS NOT NULL THEN false WHEN v.triggered THEN true
	ELSE NOT j.paused AND m.revision = v.revision AND m.accounted_until < v.tick AND v.tick <= CAST($2 AS bigint) + 1000000 END
ORDER BY v.job_id, v.tick, v.triggered, v.attempt FOR SHARE OF m` + notThere

// claimUnmarked adds triggered runs of jobs that have no mark yet.
const claimUnmarked = insertClaims + `WHERE v.triggered AND NOT EXISTS (SELECT 1 FROM {job_marks} m WHERE m.job_id = v.job_id AND m.deleted_at IS NULL)
ORDER BY v.job_id, v.tick, v.triggered, v.attempt` + notThere

const (
	insertClaims = `INSERT INTO {job_runs} (` + keyColumns + `, group_id, super_group_id, process, outcome, started_at, error, missed, exclusive)
SELECT v.job_id, v.tick, v.triggered, v.attempt, v.group_id, v.super_group_id, CAST($1 AS text), 'running', CAST($2 AS bigint), '', 0, v.exclusive
FROM {rows} JOIN {jobs} j ON j.id = v.job_id `
	notThere = " ON CONFLICT DO NOTHING RETURNING " + keyColumns
)

// judgeClaims says why runs were not added.
var judgeClaims = fmt.Sprintf(`SELECT v.n, CASE
	WHEN r.process = $1 AND r.ended_at IS NULL THEN %d
	WHEN j.id IS NULL OR NOT v.triggered AND (j.paused OR m.job_id IS NULL OR m.deleted_at IS NOT NULL OR m.revision <> v.revision) THEN %d
	WHEN NOT v.triggered AND m.accounted_until >= v.tick THEN %d
	WHEN NOT v.triggered AND v.tick > CAST($2 AS bigint) + 1000000 THEN %d
	WHEN r.job_id IS NOT NULL THEN %d
	ELSE %d END
FROM {rows} LEFT JOIN {job_marks} m ON m.job_id = v.job_id LEFT JOIN {jobs} j ON j.id = v.job_id LEFT JOIN {job_runs} r ON `+sameRun,
	ClaimWon, ClaimStale, ClaimLate, ClaimEarly, ClaimTaken, ClaimStale)

const claimFields = keyFields + ", group_id bigint, super_group_id bigint, revision bigint, exclusive boolean, n bigint"

const takeRunningKeys = `INSERT INTO {job_running} (job_id, process, ` + tickColumns + `)
SELECT v.job_id, CAST($1 AS text), v.tick, v.triggered, v.attempt FROM {rows} WHERE true
ORDER BY v.job_id, v.tick, v.triggered, v.attempt
ON CONFLICT DO NOTHING RETURNING ` + keyColumns

const skipRuns = `UPDATE {job_runs} AS r SET outcome = 'skipped', ended_at = $1 FROM {rows} WHERE ` + sameRun

const finishRuns = `UPDATE {job_runs} AS r SET started_at = v.started_at, ended_at = v.ended_at, outcome = v.outcome, error = v.error
FROM {rows} WHERE ` + sameRun + ` AND CASE WHEN r.process = $1 THEN r.ended_at IS NULL OR r.outcome = 'lost' ELSE false END`

const freeRunningKeys = `DELETE FROM {job_running} WHERE process = $1 AND (` + keyColumns + `) IN (SELECT v.job_id, v.tick, v.triggered, v.attempt FROM {rows})`

const addUnclaimedRuns = `INSERT INTO {job_runs} AS r (` + runColumns + `)
SELECT ` + runColumns + ` FROM {rows} WHERE true ORDER BY job_id, tick, triggered, attempt
ON CONFLICT (` + keyColumns + `) DO UPDATE SET group_id = excluded.group_id, super_group_id = excluded.super_group_id, process = excluded.process,
	outcome = excluded.outcome, started_at = excluded.started_at, ended_at = excluded.ended_at, error = excluded.error,
	missed = excluded.missed, first_tick = excluded.first_tick, exclusive = excluded.exclusive
WHERE r.outcome = 'missed' AND r.missed = 1`

// countUnfinished counts what finishing would yet change. $1 is the process.
const countUnfinished = `SELECT count(*) FROM {rows} LEFT JOIN {job_runs} r ON ` + sameRun + `
WHERE r.process = $1 AND (r.ended_at IS NULL OR r.outcome = 'lost') OR v.unclaimed AND (r.job_id IS NULL OR r.outcome = 'missed' AND r.missed = 1)`

// markJobs marks jobs that exist. $1 is the revision, $2 the time; the account
// begins there if $3, or if there is none.
const markJobs = insertMarks + `WHERE j.id IN (SELECT v.job_id FROM {rows}) ORDER BY j.id
ON CONFLICT (job_id) DO UPDATE SET revision = excluded.revision, updated_at = excluded.updated_at, deleted_at = NULL,
	accounted_until = CASE WHEN CAST($3 AS boolean) OR t.deleted_at IS NOT NULL THEN excluded.accounted_until ELSE t.accounted_until END`

const insertMarks = `INSERT INTO {job_marks} AS t (job_id, revision, accounted_until, updated_at)
SELECT j.id, CAST($1 AS bigint), CAST($2 AS bigint), j.updated_at FROM {jobs} j `

// beginMarks marks jobs anew, with an account that begins at $2.
const beginMarks = ` ORDER BY j.id ON CONFLICT (job_id) DO UPDATE
SET revision = excluded.revision, updated_at = excluded.updated_at, deleted_at = NULL, accounted_until = excluded.accounted_until`

// adoptJobs marks those of the jobs that exist and have no mark.
const adoptJobs = insertMarks + `LEFT JOIN {job_marks} m ON m.job_id = j.id
WHERE j.id IN (SELECT v.job_id FROM {rows}) AND (m.job_id IS NULL OR m.deleted_at IS NOT NULL)` + beginMarks

// markStrangers marks the jobs that were written without a mark of it.
const markStrangers = insertMarks + strangers + beginMarks

const strangers = `LEFT JOIN {job_marks} m ON m.job_id = j.id
WHERE {has id} AND (m.job_id IS NULL OR m.deleted_at IS NOT NULL OR j.updated_at IS DISTINCT FROM m.updated_at)`

const buryMarks = `UPDATE {job_marks} SET revision = $1, deleted_at = $2 WHERE job_id IN (` + orphans + ` ORDER BY m.job_id FOR UPDATE)`

const orphans = `SELECT m.job_id FROM {job_marks} m WHERE m.deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM {jobs} j WHERE j.id = m.job_id)`

// countDifferences compares all marks.
const countDifferences = `SELECT (SELECT count(*) FROM {jobs} j ` + strangers + `) + (SELECT count(*) FROM (` + orphans + `) AS o) > $1`

// entombJobs makes tombstones of the marks of jobs.
const entombJobs = `INSERT INTO {job_marks} (job_id, revision, accounted_until, deleted_at)
SELECT v.job_id, CAST($1 AS bigint), CAST($2 AS bigint), CAST($2 AS bigint) FROM {rows} WHERE true ORDER BY v.job_id
ON CONFLICT (job_id) DO UPDATE SET revision = excluded.revision, deleted_at = excluded.deleted_at`

const lockMarks = `SELECT job_id FROM {job_marks} WHERE job_id IN (SELECT v.job_id FROM {rows}) ORDER BY job_id FOR UPDATE`

const readAccounts = `SELECT m.job_id, m.accounted_until, m.revision, EXISTS (SELECT 1 FROM {job_running} k WHERE k.job_id = m.job_id)
FROM {job_marks} m WHERE m.job_id IN (SELECT v.job_id FROM {rows}) AND m.deleted_at IS NULL
	AND EXISTS (SELECT 1 FROM {jobs} j WHERE j.id = m.job_id)
ORDER BY m.job_id`

const recordedTicks = `SELECT DISTINCT v.n, r.tick FROM {rows}
JOIN {job_runs} r ON r.job_id = v.job_id AND r.tick > v.after AND r.tick <= v.until WHERE NOT r.triggered ORDER BY v.n, r.tick`

// lockMarksOfDead locks the marks of jobs of which processes that are not registered
// have runs or running keys, or those of the rows.
const lockMarksOfDead = `WITH dead AS (SELECT v.process, v.beats FROM {rows}) SELECT m.job_id FROM {job_marks} m WHERE m.job_id IN (
	SELECT job_id FROM {job_runs} WHERE ended_at IS NULL AND ` + ofDead + ` UNION SELECT job_id FROM {job_running} WHERE ` + ofDead + `) ORDER BY m.job_id FOR UPDATE`

const ofDead = `process >= '' AND process NOT IN (SELECT p.process FROM {job_processes} p WHERE (p.process, p.beats) NOT IN (SELECT d.process, d.beats FROM dead d))`

const loseRuns = `UPDATE {job_runs} SET outcome = 'lost', ended_at = $1 FROM (
	SELECT job_id AS d1, tick AS d2, triggered AS d3, attempt AS d4 FROM {job_runs}
	WHERE ended_at IS NULL AND process >= '' AND process NOT IN (SELECT process FROM {job_processes})
	ORDER BY job_id, tick, triggered, attempt FOR UPDATE) AS dead
WHERE job_id = d1 AND tick = d2 AND triggered = d3 AND attempt = d4 RETURNING ` + runColumns

const beatOnce = `UPDATE {job_processes} SET beats = beats + 1 WHERE process = $1
RETURNING beats, {clock}, (SELECT revision FROM {job_record}), coalesce((SELECT r.leader FROM {job_record} r JOIN {job_processes} p ON p.process = r.leader), ''),
	(SELECT CAST({json list}({json pair}(p.process, p.beats)) AS text) FROM {job_processes} p)`

const ran = "outcome NOT IN ('missed', 'skipped')"

// pruneRuns deletes the oldest runs with ticks from $2 to before $1, $3 at most.
const pruneRuns = `WITH old AS MATERIALIZED (SELECT ` + keyColumns + ` FROM {job_runs} r WHERE r.tick < $1 AND r.tick >= $2 AND r.ended_at IS NOT NULL
	AND NOT EXISTS (SELECT 1 FROM {job_marks} m WHERE m.job_id = r.job_id AND m.deleted_at IS NULL AND m.accounted_until < r.tick)
	AND (r.outcome IN ('missed', 'skipped') OR (SELECT j.id FROM {jobs} j WHERE j.id = r.job_id) IS NULL OR EXISTS (
		SELECT 1 FROM {job_runs} n WHERE n.job_id = r.job_id AND (n.tick, n.attempt, n.triggered) > (r.tick, r.attempt, r.triggered) AND n.` + ran + `))
	ORDER BY r.tick, r.job_id, r.triggered, r.attempt LIMIT $3 FOR UPDATE OF r SKIP LOCKED)
DELETE FROM {job_runs} WHERE (` + keyColumns + `) IN (SELECT ` + keyColumns + ` FROM old) RETURNING ` + keyColumns

const pruneTombstones = `DELETE FROM {job_marks} WHERE job_id IN (SELECT job_id FROM {job_marks} WHERE deleted_at < $1 FOR UPDATE SKIP LOCKED)`

// lastRuns gives all runs of the newest tick of each job.
const lastRuns = `SELECT {created}, {run} FROM {rows} JOIN {jobs} j ON j.id = v.job_id JOIN {job_runs} r ON r.job_id = v.job_id
	AND r.tick = (SELECT n.tick FROM {job_runs} n WHERE n.job_id = v.job_id AND n.` + ran + ` ORDER BY n.job_id DESC, n.tick DESC LIMIT 1)
WHERE r.` + ran + ` ORDER BY v.job_id, r.attempt, r.triggered`

// changedJobs takes the jobs to give, v, and on which condition.
const changedJobs = `SELECT c.revision, v.job_id, m.revision, {job} FROM {job_record} c LEFT JOIN %s ON %s
LEFT JOIN {job_marks} m ON m.job_id = v.job_id LEFT JOIN {jobs} j ON j.id = v.job_id ORDER BY v.job_id`

// prefixed puts a prefix before each column of a list.
func prefixed(prefix, columns string) string {
	return prefix + strings.ReplaceAll(columns, ", ", ", "+prefix)
}

// Columns of the table of jobs are read on SQLite without their declared types; see
// bulkStatements.read.
var (
	postgresColumns = strings.NewReplacer("{has id}", "j.id IS NOT NULL", "{created}", "j.created_at", "{job}", prefixed("j.", jobColumns), "{run}", prefixed("r.", runColumns))
	sqliteColumns   = strings.NewReplacer("{has id}", "typeof(j.id) = 'integer'", "{created}", "+j.created_at", "{job}", prefixed("+j.", jobColumns), "{run}", prefixed("r.", runColumns))
)

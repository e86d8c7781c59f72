package ledgersql

import (
	"fmt"
	"strings"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/sqltx"
)

// words stand for columns that are read from each database in its own way: those of
// the table of jobs are read on SQLite without their declared types.
var words = map[sqltx.Kind]*strings.Replacer{
	sqltx.Postgres: strings.NewReplacer("{has id}", "j.id IS NOT NULL", "{raw}", "", "{run}", prefixed("r.", runColumns), "{lead}", lead),
	sqltx.SQLite:   strings.NewReplacer("{has id}", "typeof(j.id) = 'integer'", "{raw}", "+", "{run}", prefixed("r.", runColumns), "{lead}", lead),
}

// lead is how far claims may be ahead of the database's clock, in microseconds.
var lead = fmt.Sprint(ledger.MaxClockLead.Microseconds())

// prefixed puts a prefix before each column of a list.
func prefixed(prefix, columns string) string {
	return prefix + strings.ReplaceAll(columns, ", ", ", "+prefix)
}

// awaitedJobs gives the jobs for whose locks another run waits. $1 is the time.
const awaitedJobs = `SELECT v.job_id FROM {rows} WHERE ` + anotherWaits

const unclaimedKeys = `SELECT v.n FROM {rows} LEFT JOIN {smallben_runs} r ON ` + sameRun + ` WHERE r.job_id IS NULL ORDER BY v.n`

// waitingRuns gives the waiting runs after $1 to $5, $6 at most.
const waitingRuns = `SELECT {run} FROM {smallben_runs} r
WHERE r.due_at IS NOT NULL AND r.due_at >= CAST($1 AS bigint)
	AND (r.due_at, r.job_id, r.tick, r.triggered, r.attempt) > (CAST($1 AS bigint), CAST($2 AS bigint), CAST($3 AS bigint), CAST($4 AS boolean), CAST($5 AS int))
	AND (NOT r.exclusive OR NOT EXISTS (SELECT 1 FROM {smallben_locks} k WHERE k.job_id = r.job_id) AND NOT EXISTS (
		SELECT 1 FROM {smallben_runs} o WHERE o.job_id = r.job_id AND o.due_at IS NOT NULL AND o.due_at <= r.due_at AND o.exclusive
			AND (o.tick < r.tick OR o.tick = r.tick AND (o.attempt < r.attempt OR o.attempt = r.attempt AND NOT o.triggered AND r.triggered))))
ORDER BY r.due_at, r.job_id, r.tick, r.triggered, r.attempt LIMIT $6`

const shareStates = `SELECT m.job_id FROM {smallben_job_state} m WHERE m.job_id IN (SELECT v.job_id FROM {rows}) ORDER BY m.job_id FOR SHARE OF m`

// laterTick is whether a later tick of the job has started or waits.
const laterTick = "EXISTS (SELECT 1 FROM {smallben_runs} n WHERE n.job_id = v.job_id AND n.tick > v.tick AND NOT n.triggered AND n.outcome NOT IN ('skipped', 'missed'))"

const supersededKeys = "SELECT v.n FROM {rows} WHERE " + laterTick + " ORDER BY v.n"

const countRuns = `SELECT count(*) FROM {rows} JOIN {smallben_runs} r ON ` + sameRun

// touchJobs gives the states of jobs that exist a new revision. $1 is the revision, $2
// the time; the watermark begins there if $3, or if there is none.
const touchJobs = insertStates + `WHERE j.id IN (SELECT v.job_id FROM {rows}) ORDER BY j.id
ON CONFLICT (job_id) DO UPDATE SET revision = excluded.revision, updated_at = excluded.updated_at, deleted_at = NULL,
	accounted_until = CASE WHEN CAST($3 AS boolean) OR t.deleted_at IS NOT NULL THEN excluded.accounted_until ELSE t.accounted_until END`

const insertStates = `INSERT INTO {smallben_job_state} AS t (job_id, revision, accounted_until, updated_at)
SELECT j.id, CAST($1 AS bigint), CAST($2 AS bigint), j.updated_at FROM {jobs} j `

// beginAnew gives states a new revision and a watermark of $2.
const beginAnew = ` ORDER BY j.id ON CONFLICT (job_id) DO UPDATE
SET revision = excluded.revision, updated_at = excluded.updated_at, deleted_at = NULL, accounted_until = excluded.accounted_until`

// addStates gives those of the jobs that exist and have no state one.
const addStates = insertStates + `LEFT JOIN {smallben_job_state} m ON m.job_id = j.id
WHERE j.id IN (SELECT v.job_id FROM {rows}) AND (m.job_id IS NULL OR m.deleted_at IS NOT NULL)` + beginAnew

// compareStates gives the jobs a state that were written without the record.
const compareStates = insertStates + differing + beginAnew

const differing = `LEFT JOIN {smallben_job_state} m ON m.job_id = j.id
WHERE {has id} AND (m.job_id IS NULL OR m.deleted_at IS NOT NULL OR j.updated_at IS DISTINCT FROM m.updated_at)`

const deleteRowless = `UPDATE {smallben_job_state} SET revision = $1, deleted_at = $2, former_job = NULL WHERE job_id IN (` + rowless + ` ORDER BY m.job_id FOR UPDATE)`

const rowless = `SELECT m.job_id FROM {smallben_job_state} m WHERE m.deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM {jobs} j WHERE j.id = m.job_id)`

// countDifferences compares all states with the jobs.
const countDifferences = `SELECT (SELECT count(*) FROM {jobs} j ` + differing + `) + (SELECT count(*) FROM (` + rowless + `) AS o) > 0`

// deleteStates makes tombstones of the states of jobs.
const deleteStates = `INSERT INTO {smallben_job_state} (job_id, revision, accounted_until, deleted_at)
SELECT v.job_id, CAST($1 AS bigint), CAST($2 AS bigint), CAST($2 AS bigint) FROM {rows} WHERE true ORDER BY v.job_id
ON CONFLICT (job_id) DO UPDATE SET revision = excluded.revision, deleted_at = excluded.deleted_at, former_job = NULL`

const readFormer = `SELECT m.job_id, m.former_job FROM {rows} JOIN {smallben_job_state} m ON m.job_id = v.job_id WHERE m.former_job IS NOT NULL`

// readAnnouncedFormer gives what readFormer gives once the outbox is followed: the latest
// value last, and an empty one where there is to be none.
const readAnnouncedFormer = `SELECT o.job_id, o.former_job FROM {rows} JOIN {smallben_outbox} o ON o.job_id = v.job_id WHERE o.former_job IS NOT NULL ORDER BY o.job_id, o.at, o.token`

const setFormer = "UPDATE {smallben_job_state} AS m SET former_job = nullif(v.former_job, '') FROM {rows} WHERE m.job_id = v.job_id"

const lockStates = `SELECT job_id FROM {smallben_job_state} WHERE job_id IN (SELECT v.job_id FROM {rows}) ORDER BY job_id FOR UPDATE`

const readWatermarks = `SELECT m.job_id, m.accounted_until, m.revision, {raw}j.created_at, CASE WHEN j.paused THEN 1 ELSE 0 END, EXISTS (SELECT 1 FROM {smallben_locks} k WHERE k.job_id = m.job_id)
FROM {smallben_job_state} m JOIN {jobs} j ON j.id = m.job_id WHERE m.job_id IN (SELECT v.job_id FROM {rows}) AND m.deleted_at IS NULL
ORDER BY m.job_id`

const setWatermarks = "UPDATE {smallben_job_state} AS m SET accounted_until = v.until FROM {rows} WHERE m.job_id = v.job_id"

// closeSpans leaves the time of jobs from their watermarks to $2 as closed spans of
// revision $1.
const closeSpans = `INSERT INTO {smallben_closed_spans} (job_id, revision, ` + spanColumns + `)
SELECT j.id, CAST($1 AS bigint), j.created_at, coalesce(j.cron_expression, ''), coalesce(j.group_id, 0), coalesce(j.super_group_id, 0), m.accounted_until, CAST($2 AS bigint), CAST($3 AS boolean)
FROM {jobs} j JOIN {smallben_job_state} m ON m.job_id = j.id
WHERE j.id IN (SELECT v.job_id FROM {rows}) AND NOT j.paused AND m.deleted_at IS NULL AND m.accounted_until < CAST($2 AS bigint)
ORDER BY j.id ON CONFLICT DO NOTHING`

const closeWatermarks = `UPDATE {smallben_job_state} SET accounted_until = $1 WHERE job_id IN (SELECT v.job_id FROM {rows}) AND deleted_at IS NULL AND accounted_until < $1`

const readClosed = `SELECT s.job_id, s.revision, {raw}s.created_at, s.expression, s.group_id, s.super_group_id, s.since_at, s.until_at, s.make_up
FROM {smallben_closed_spans} s ORDER BY s.since_at, s.job_id, s.revision LIMIT $1`

const (
	shortenedFields = "job_id bigint, revision bigint, since_at bigint"
	cutSpans        = "UPDATE {smallben_closed_spans} AS s SET since_at = v.since_at FROM {rows} WHERE s.job_id = v.job_id AND s.revision = v.revision"
	removeSpans     = "DELETE FROM {smallben_closed_spans} WHERE (job_id, revision) IN (SELECT v.job_id, v.revision FROM {rows}) AND since_at >= until_at"
)

const recordedTicks = `SELECT DISTINCT v.n, r.tick FROM {rows}
JOIN {smallben_runs} r ON r.job_id = v.job_id AND r.tick > v.after AND r.tick <= v.until WHERE NOT r.triggered ORDER BY v.n, r.tick`

// cancelWaiting ends the waiting runs of jobs. $1 is the time, $2 the reason; $3 says
// whether those that were triggered end, too.
const cancelWaiting = `UPDATE {smallben_runs} SET outcome = 'skipped', started_at = $1, ended_at = $1, due_at = NULL, error = $2
WHERE due_at IS NOT NULL AND (CAST($3 AS boolean) OR NOT triggered) AND job_id IN (SELECT v.job_id FROM {rows})`

// cancelRuns marks unfinished runs. $1 is the time, $2 when they are given up.
const cancelRuns = "UPDATE {smallben_runs} SET cancel_at = $1, abandon_at = $2 WHERE ended_at IS NULL AND process > ''"

const canceledRuns = "SELECT " + keyColumns + ", abandon_at FROM {smallben_runs} WHERE ended_at IS NULL AND process = $1 AND cancel_at IS NOT NULL"

const ran = "outcome NOT IN ('missed', 'skipped', 'waiting')"

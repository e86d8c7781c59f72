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

// claimRuns adds the runs that may be claimed. It locks the states of their jobs: a
// Change that changes one of them comes before or after. $1 is the process, $2 the
// time.
const claimRuns = insertClaims + `JOIN {smallben_job_state} m ON m.job_id = v.job_id
WHERE CASE WHEN m.deleted_at IS NOT NULL THEN false WHEN v.triggered THEN true
	ELSE NOT j.paused AND m.revision = v.revision AND m.accounted_until < v.tick AND v.tick <= CAST($2 AS bigint) + {lead} END
` + keyOrder + ` FOR SHARE OF m` + notThere

// claimStateless adds triggered runs of jobs that have no state yet.
const claimStateless = insertClaims + `WHERE v.triggered AND NOT EXISTS (SELECT 1 FROM {smallben_job_state} m WHERE m.job_id = v.job_id AND m.deleted_at IS NULL)
` + keyOrder + notThere

const (
	claimFields  = keyFields + ", group_id bigint, super_group_id bigint, revision bigint, exclusive boolean, n bigint"
	insertClaims = `INSERT INTO {smallben_runs} (` + keyColumns + `, group_id, super_group_id, process, outcome, started_at, error, missed, exclusive)
SELECT v.job_id, v.tick, v.triggered, v.attempt, v.group_id, v.super_group_id, CAST($1 AS text), 'running', CAST($2 AS bigint), '', 0, v.exclusive
FROM {rows} JOIN {jobs} j ON j.id = v.job_id `
	notThere = " ON CONFLICT DO NOTHING RETURNING " + keyColumns
)

// claimWaiting takes the waiting runs that may be claimed, and locks the states of
// their jobs as claimRuns does. claimAttempts leaves those of which a later tick has
// started.
const (
	claimWaiting  = selectFree + takeFree
	claimAttempts = selectFree + "AND NOT " + laterStarted + takeFree
)

const (
	selectFree = `WITH free AS MATERIALIZED (SELECT v.job_id AS w1, v.tick AS w2, v.triggered AS w3, v.attempt AS w4, v.exclusive AS w5
	FROM {rows} JOIN {jobs} j ON j.id = v.job_id JOIN {smallben_job_state} m ON m.job_id = v.job_id
	WHERE CASE WHEN m.deleted_at IS NOT NULL THEN false WHEN v.triggered THEN v.revision IN (0, m.revision) ELSE NOT j.paused AND m.revision = v.revision END
	`
	takeFree = keyOrder + ` FOR SHARE OF m)
UPDATE {smallben_runs} SET process = CAST($1 AS text), outcome = 'running', started_at = CAST($2 AS bigint), due_at = NULL, exclusive = w5 FROM free
WHERE job_id = w1 AND tick = w2 AND triggered = w3 AND attempt = w4 AND due_at <= CAST($2 AS bigint) + {lead} RETURNING ` + keyColumns
	laterStarted = `EXISTS (SELECT 1 FROM {smallben_runs} n WHERE n.job_id = v.job_id AND n.tick > v.tick AND NOT n.triggered AND n.` + ran + `)`
)

// judgeClaims says why runs were not won.
var judgeClaims = fmt.Sprintf(`SELECT v.n, CASE
	WHEN r.process = $1 AND r.ended_at IS NULL THEN %d
	WHEN j.id IS NULL OR CASE WHEN v.triggered THEN v.revision NOT IN (0, m.revision)
		ELSE j.paused OR m.job_id IS NULL OR m.deleted_at IS NOT NULL OR m.revision <> v.revision END THEN %d
	WHEN NOT v.triggered AND m.accounted_until >= v.tick THEN %d
	WHEN NOT v.triggered AND v.tick > CAST($2 AS bigint) + {lead} THEN %d
	WHEN r.job_id IS NOT NULL THEN %d
	ELSE %d END
FROM {rows} LEFT JOIN {smallben_job_state} m ON m.job_id = v.job_id LEFT JOIN {jobs} j ON j.id = v.job_id LEFT JOIN {smallben_runs} r ON `+sameRun,
	ledger.Won, ledger.Stale, ledger.Late, ledger.Early, ledger.Taken, ledger.Stale)

// takeLocks gives runs the locks of their jobs, in the order of their keys. Those that are
// not from the queue leave them to runs that wait. $1 is the time, $2 the process.
const takeLocks = `INSERT INTO {smallben_locks} (job_id, process, ` + tickColumns + `)
SELECT v.job_id, CAST($2 AS text), v.tick, v.triggered, v.attempt FROM {rows} WHERE v.queued OR NOT ` + anotherWaits + `
` + keyOrder + `
ON CONFLICT DO NOTHING RETURNING ` + keyColumns

const anotherWaits = "EXISTS (SELECT 1 " + waitingBefore + ")"

// waitingBefore are the runs that wait for the lock of a job, or are about to take it. $1 is
// the time. Runs that end because the tick of the row has come do not count: attempts, if
// newest, and ticks that wait for a place, if takes_turns.
const waitingBefore = `FROM {smallben_runs} o WHERE o.job_id = v.job_id AND o.exclusive AND o.due_at IS NOT NULL AND o.due_at <= CAST($1 AS bigint) + {lead}
	AND NOT (o.tick < v.tick AND NOT o.triggered AND CASE WHEN o.attempt > 1 THEN v.newest ELSE v.takes_turns AND o.missed = 0 END)`

const lockFields = keyFields + ", queued boolean, newest boolean, takes_turns boolean"

const skipRuns = `UPDATE {smallben_runs} AS r SET outcome = 'skipped', ended_at = $1 FROM {rows} WHERE ` + sameRun

const delayRuns = `UPDATE {smallben_runs} AS r SET outcome = 'waiting', process = '', started_at = NULL, due_at = $1 FROM {rows} WHERE ` + sameRun

// lockLocks lets claims look one after another whether a run waits. A lock that is free
// cannot be locked: of two claims that come in the moment before the run takes it that waits
// for it, both may wait.
const lockLocks = `SELECT job_id FROM {smallben_locks} WHERE job_id IN (SELECT v.job_id FROM {rows}) ORDER BY job_id FOR UPDATE`

// awaitedJobs gives the jobs for whose locks another run waits. $1 is the time.
const awaitedJobs = `SELECT v.job_id FROM {rows} WHERE ` + anotherWaits

// fullJobs gives the jobs of which one run holds the lock, or is about to take it, and
// another waits for that one. $1 is the time.
const fullJobs = `SELECT v.job_id FROM {rows} WHERE (SELECT count(*) ` + waitingBefore + `)
	+ (SELECT count(*) FROM {smallben_locks} k WHERE k.job_id = v.job_id) > 1`

// endSuperseded ends the waiting attempts of ticks before those of the rows.
const endSuperseded = endAttempts + ` WHERE r.job_id = v.job_id AND r.due_at IS NOT NULL AND r.attempt > 1 AND NOT r.triggered AND r.tick < v.tick`

const endAttempts = `UPDATE {smallben_runs} AS r SET outcome = 'skipped', started_at = $1, ended_at = $1, due_at = NULL, error = 'a later tick of its job came' FROM {rows}`

// endOvertaken ends waiting attempts of which a later tick has started.
const endOvertaken = endAttempts + ` WHERE ` + sameRun + ` AND r.due_at IS NOT NULL AND ` + laterStarted

const unclaimedKeys = `SELECT v.n FROM {rows} LEFT JOIN {smallben_runs} r ON ` + sameRun + ` WHERE r.job_id IS NULL ORDER BY v.n`

// waitingRuns gives the waiting runs after $1 to $5, $6 at most.
const waitingRuns = `SELECT {run} FROM {smallben_runs} r
WHERE r.due_at IS NOT NULL AND r.due_at >= CAST($1 AS bigint)
	AND (r.due_at, r.job_id, r.tick, r.triggered, r.attempt) > (CAST($1 AS bigint), CAST($2 AS bigint), CAST($3 AS bigint), CAST($4 AS boolean), CAST($5 AS int))
	AND (NOT r.exclusive OR NOT EXISTS (SELECT 1 FROM {smallben_locks} k WHERE k.job_id = r.job_id) AND NOT EXISTS (
		SELECT 1 FROM {smallben_runs} o WHERE o.job_id = r.job_id AND o.due_at IS NOT NULL AND o.due_at <= r.due_at AND o.exclusive
			AND (o.tick < r.tick OR o.tick = r.tick AND (o.attempt < r.attempt OR o.attempt = r.attempt AND NOT o.triggered AND r.triggered))))
ORDER BY r.due_at, r.job_id, r.tick, r.triggered, r.attempt LIMIT $6`

const finishRuns = `UPDATE {smallben_runs} AS r SET started_at = v.started_at, ended_at = v.ended_at, outcome = v.outcome, error = v.error
FROM {rows} WHERE ` + sameRun + ` AND CASE WHEN r.process = $1 THEN r.ended_at IS NULL OR r.outcome = 'lost' ELSE false END`

const freeLocks = `DELETE FROM {smallben_locks} WHERE process = $1 AND (` + keyColumns + `) IN (SELECT v.job_id, v.tick, v.triggered, v.attempt FROM {rows})`

const shareStates = `SELECT m.job_id FROM {smallben_job_state} m WHERE m.job_id IN (SELECT v.job_id FROM {rows}) ORDER BY m.job_id FOR SHARE OF m`

// addRetries adds the next attempts of runs that this process has ended. $1 is the
// process.
const addRetries = `INSERT INTO {smallben_runs} (` + runColumns + `)
SELECT r.job_id, r.tick, r.triggered, r.attempt + 1, r.group_id, r.super_group_id, '', 'waiting', NULL, NULL, '', r.missed, NULL, r.exclusive, v.due_at
FROM {rows} JOIN {smallben_runs} r ON ` + sameRun + ` JOIN {jobs} j ON j.id = v.job_id JOIN {smallben_job_state} m ON m.job_id = v.job_id
WHERE r.process = $1 AND m.deleted_at IS NULL AND (r.triggered OR NOT j.paused)
	AND (r.triggered OR NOT ` + laterTick + `)
` + keyOrder + ` ON CONFLICT DO NOTHING`

// laterTick is whether a later tick of the job has started or waits.
const laterTick = "EXISTS (SELECT 1 FROM {smallben_runs} n WHERE n.job_id = v.job_id AND n.tick > v.tick AND NOT n.triggered AND n.outcome NOT IN ('skipped', 'missed'))"

const supersededKeys = "SELECT v.n FROM {rows} WHERE " + laterTick + " ORDER BY v.n"

const addUnclaimedRuns = `INSERT INTO {smallben_runs} AS r (` + runColumns + `)
SELECT ` + runColumns + ` FROM {rows} WHERE true ORDER BY job_id, tick, triggered, attempt
ON CONFLICT (` + keyColumns + `) DO UPDATE SET group_id = excluded.group_id, super_group_id = excluded.super_group_id, process = excluded.process,
	outcome = excluded.outcome, started_at = excluded.started_at, ended_at = excluded.ended_at, error = excluded.error,
	missed = excluded.missed, first_tick = excluded.first_tick, exclusive = excluded.exclusive, due_at = NULL
WHERE r.outcome = 'missed' AND r.missed = 1 OR r.outcome IN ('skipped', 'waiting')`

// countUnfinished counts what finishing would yet change. $1 is the process.
const countUnfinished = `SELECT count(*) FROM {rows} LEFT JOIN {smallben_runs} r ON ` + sameRun + `
WHERE r.process = $1 AND (r.ended_at IS NULL OR r.outcome = 'lost')
	OR v.unclaimed AND (r.job_id IS NULL OR r.outcome = 'missed' AND r.missed = 1 OR r.outcome IN ('skipped', 'waiting'))`

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
const countDifferences = `SELECT (SELECT count(*) FROM {jobs} j ` + differing + `) + (SELECT count(*) FROM (` + rowless + `) AS o) > $1`

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
WHERE due_at IS NOT NULL AND (CAST($3 AS boolean) OR NOT triggered) AND job_id IN (SELECT v.job_id FROM {rows}) RETURNING job_id`

// lockStatesOfDead locks the states of jobs of which processes that are not registered
// have runs or locks, or those of the rows.
const lockStatesOfDead = `WITH dead AS (SELECT v.process, v.beats FROM {rows}) SELECT m.job_id FROM {smallben_job_state} m WHERE m.job_id IN (
	SELECT job_id FROM {smallben_runs} WHERE ended_at IS NULL AND ` + ofDead + ` UNION SELECT job_id FROM {smallben_locks} WHERE ` + ofDead + `) ORDER BY m.job_id FOR UPDATE`

// A waiting run has no process.
const ofDead = `process > '' AND process NOT IN (SELECT p.process FROM {smallben_processes} p WHERE (p.process, p.beats) NOT IN (SELECT d.process, d.beats FROM dead d))`

const removeDead = "DELETE FROM {smallben_processes} WHERE (process, beats) IN (SELECT v.process, v.beats FROM {rows})"

const loseRuns = `UPDATE {smallben_runs} SET outcome = 'lost', ended_at = $1 FROM (
	SELECT job_id AS d1, tick AS d2, triggered AS d3, attempt AS d4 FROM {smallben_runs}
	WHERE ended_at IS NULL AND process > '' AND process NOT IN (SELECT process FROM {smallben_processes})
	ORDER BY job_id, tick, triggered, attempt FOR UPDATE) AS dead
WHERE job_id = d1 AND tick = d2 AND triggered = d3 AND attempt = d4 RETURNING ` + runColumns

const freeLocksOfDead = "DELETE FROM {smallben_locks} WHERE process NOT IN (SELECT process FROM {smallben_processes})"

const takeLead = `UPDATE {smallben_ledger} SET leader = $1 WHERE leader = $1 OR leader NOT IN (
	SELECT p.process FROM {smallben_processes} p WHERE NOT p.partial OR coalesce((SELECT s.partial FROM {smallben_processes} s WHERE s.process = $1), true)) RETURNING leader`

const beatOnce = `UPDATE {smallben_processes} SET beats = beats + 1, claims = $2, partial = $3, clock_offset = $4, beat_at = coalesce({clock}, CAST($5 AS bigint)) WHERE process = $1
RETURNING beats, {clock}, (SELECT revision FROM {smallben_ledger}), coalesce((SELECT r.leader FROM {smallben_ledger} r JOIN {smallben_processes} p ON p.process = r.leader), ''),
	(SELECT min(due_at) FROM {smallben_runs} WHERE due_at IS NOT NULL), EXISTS (SELECT 1 FROM {smallben_outbox}),
	(SELECT count(*) FROM {smallben_runs} WHERE ended_at IS NULL AND process = $1 AND cancel_at IS NOT NULL),
	(SELECT CAST({json list}({json pair}(p.process, p.beats, CASE WHEN p.claims THEN 1 ELSE 0 END, CASE WHEN p.partial THEN 1 ELSE 0 END)) AS text) FROM {smallben_processes} p)`

// cancelRuns marks unfinished runs. $1 is the time, $2 when they are given up.
const cancelRuns = "UPDATE {smallben_runs} SET cancel_at = $1, abandon_at = $2 WHERE ended_at IS NULL AND process > ''"

const canceledRuns = "SELECT " + keyColumns + ", abandon_at FROM {smallben_runs} WHERE ended_at IS NULL AND process = $1 AND cancel_at IS NOT NULL"

// recordingProcess gives a process that was heard of in the last $2
// microseconds. $1 is the time, where the database has no clock.
const recordingProcess = `SELECT p.process FROM {smallben_processes} p
WHERE p.beat_at > coalesce({clock}, CAST($1 AS bigint)) - CAST($2 AS bigint) ORDER BY p.process LIMIT 1`

// decodingProcess counts the processes that claim, decode every job, and were heard of
// in the last $2 microseconds. $1 is the time, where the database has no clock.
const decodingProcess = `SELECT count(*) FROM {smallben_processes} p
WHERE p.claims AND NOT p.partial AND p.beat_at > coalesce({clock}, CAST($1 AS bigint)) - CAST($2 AS bigint)`

// listProcesses gives all processes. $1 is the time, where the database has no clock.
const listProcesses = `SELECT p.process, p.version, p.beats, p.claims, p.partial, p.clock_offset, p.since_at, coalesce({clock}, CAST($1 AS bigint)) - p.beat_at,
	EXISTS (SELECT 1 FROM {smallben_ledger} r WHERE r.leader = p.process) FROM {smallben_processes} p ORDER BY p.process`

const ran = "outcome NOT IN ('missed', 'skipped', 'waiting')"

// pruneRuns deletes the oldest runs with ticks from $2 to before $1, $3 at most.
const pruneRuns = `WITH old AS MATERIALIZED (SELECT ` + keyColumns + ` FROM {smallben_runs} r WHERE r.tick < $1 AND r.tick >= $2 AND r.ended_at IS NOT NULL
	AND NOT EXISTS (SELECT 1 FROM {smallben_job_state} m WHERE m.job_id = r.job_id AND m.deleted_at IS NULL AND m.accounted_until < r.tick)
	AND (r.outcome IN ('missed', 'skipped') OR (SELECT j.id FROM {jobs} j WHERE j.id = r.job_id) IS NULL OR EXISTS (
		SELECT 1 FROM {smallben_runs} n WHERE n.job_id = r.job_id AND (n.tick, n.attempt, n.triggered) > (r.tick, r.attempt, r.triggered) AND n.` + ran + `))
	ORDER BY r.tick, r.job_id, r.triggered, r.attempt LIMIT $3 FOR UPDATE OF r SKIP LOCKED)
DELETE FROM {smallben_runs} WHERE (` + keyColumns + `) IN (SELECT ` + keyColumns + ` FROM old) RETURNING ` + keyColumns

const pruneTombstones = `DELETE FROM {smallben_job_state} WHERE job_id IN (SELECT job_id FROM {smallben_job_state} WHERE deleted_at < $1 FOR UPDATE SKIP LOCKED)`

// lastRuns gives the runs of the newest tick of each job that ran, and those that wait.
// Behind many ticks that were skipped stands the run that they were skipped for. The plus
// has SQLite look among unfinished runs, and not among all of the jobs.
const lastRuns = `WITH v AS (SELECT v.job_id FROM {rows}), busy AS MATERIALIZED (SELECT +r.job_id AS job_id, max(r.tick) AS tick FROM {smallben_runs} r
	WHERE r.ended_at IS NULL AND r.process > '' AND +r.job_id IN (SELECT v.job_id FROM v) GROUP BY +r.job_id)
SELECT {run} FROM v JOIN {smallben_runs} r ON r.job_id = v.job_id AND r.tick = coalesce(
	(SELECT n.tick FROM (SELECT n.tick, n.outcome FROM {smallben_runs} n WHERE n.job_id = v.job_id ORDER BY n.job_id DESC, n.tick DESC LIMIT 100) AS n WHERE n.` + ran + ` ORDER BY n.tick DESC LIMIT 1),
	(SELECT b.tick FROM busy b WHERE b.job_id = v.job_id),
	(SELECT n.tick FROM {smallben_runs} n WHERE n.job_id = v.job_id AND n.` + ran + ` ORDER BY n.job_id DESC, n.tick DESC LIMIT 1))
WHERE r.` + ran + ` UNION ALL
SELECT {run} FROM v JOIN {smallben_runs} r ON r.job_id = v.job_id AND r.due_at IS NOT NULL`

// newestRuns goes on with the runs of the newest ticks of each job. $1 is how many
// ticks, less one.
const newestRuns = `SELECT {run} FROM v JOIN {smallben_runs} r ON r.job_id = v.job_id
	AND r.tick >= coalesce((SELECT n.tick FROM {smallben_runs} n WHERE n.job_id = v.job_id ORDER BY n.job_id DESC, n.tick DESC LIMIT 1 OFFSET $1), -9223372036854775808)`

// inKeyOrder orders runs by job id, tick, attempt and triggered, by their places in
// runColumns: of a UNION SQLite knows no other names.
const inKeyOrder = " ORDER BY 1, 2, 4, 3"

// countNewest counts the newest $3 runs with ticks from $1 on, by steps of $2.
const countNewest = `SELECT (tick - CAST($1 AS bigint)) / CAST($2 AS bigint) AS step, outcome, min(tick), count(*), sum(CASE WHEN outcome = 'missed' THEN missed ELSE 1 END)
FROM (SELECT tick, outcome, missed FROM {smallben_runs} WHERE tick >= CAST($1 AS bigint) ORDER BY tick DESC LIMIT $3) AS newest GROUP BY 1, 2 ORDER BY 1, 2`

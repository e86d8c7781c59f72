package ledgersql

import (
	"cmp"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/sqltx"
)

// Claim implements ledger.Store. A call takes claimLimit or claimQueue at most.
func (s *Store) Claim(process string, claims []ledger.Claim) (results []ledger.Result, err error) {
	if len(claims) == 0 {
		return nil, nil
	}
	limit := claimLimit
	if s.db.Kind() == sqltx.SQLite {
		limit = claimQueue
	}
	for deadline := time.Now().Add(limit); ; {
		bounded := s.over(s.db.Within(time.Until(deadline).Round(time.Millisecond)))
		results, err = bounded.claim(process, claims)
		if !errors.Is(err, ledger.ErrNotRegistered) {
			return results, err
		}
		// An Expire that was under way may have been undone. One that waits for it
		// here holds up nobody.
		registered := false
		lookErr := bounded.read("claim runs", func(on statements) (err error) {
			registered, err = on.registered(process, "FOR KEY SHARE")
			return err
		})
		if !registered {
			return nil, cmp.Or(lookErr, err)
		}
	}
}

// claim is Claim, for which a process that just expires is not registered. What waits
// for what, so that nobody waits for each other: for states and runs, in the order of
// their keys, then for locks, in the same order.
func (s *Store) claim(process string, claims []ledger.Claim) (results []ledger.Result, err error) {
	var all []*claimed
	err = s.write("claim runs", func(on statements) error {
		all = claimsOf(claims)
		c := claiming{statements: on, process: process}
		inOrder := slices.SortedStableFunc(slices.Values(all), func(a, b *claimed) int { return a.Key.Compare(b.Key) })
		for chunk := range slices.Chunk(inOrder, runChunk) {
			if err := c.claim(chunk); err != nil {
				return err
			}
		}
		for chunk := range slices.Chunk(c.exclusive, runChunk) {
			if err := c.lock(chunk); err != nil {
				return err
			}
		}
		if err := c.supersede(inOrder); err != nil {
			return err
		}
		registered, err := on.registered(process, "FOR KEY SHARE SKIP LOCKED")
		if err == nil && !registered {
			err = fmt.Errorf("%w: %s", ledger.ErrNotRegistered, process)
		}
		return err
	}, func(on statements) (bool, error) {
		won := those(all, func(claim *claimed) bool { return claim.result == ledger.Won })
		var mine int
		err := on.row(countRuns+" WHERE r.process = $1", []any{process, rowsOf(keyFields, keysOf(won))}, &mine)
		return mine == len(won), err
	})
	if err != nil {
		return nil, err
	}
	results = make([]ledger.Result, len(all))
	for i, claim := range all {
		results[i] = claim.result
	}
	return results, nil
}

// claimed is a claim and the answer to it, 0 until that is known.
type claimed struct {
	*ledger.Claim
	result ledger.Result
}

func claimsOf(claims []ledger.Claim) []*claimed {
	values := make([]claimed, len(claims))
	all := make([]*claimed, len(claims))
	for i := range claims {
		values[i].Claim, all[i] = &claims[i], &values[i]
	}
	return all
}

func those(claims []*claimed, match func(claim *claimed) bool) (found []*claimed) {
	for _, claim := range claims {
		if match(claim) {
			found = append(found, claim)
		}
	}
	return found
}

// isAttempt reports whether a claim is of a further attempt, which a later tick ends.
func (c *claimed) isAttempt() bool { return c.OfWaiting && c.NewestCounts && c.Attempt > 1 }

// claiming is the transaction of a call of Claim.
type claiming struct {
	statements
	process   string
	exclusive []*claimed // that were won by the call, and need a lock
}

// claim answers claims, but for locks.
func (c *claiming) claim(claims []*claimed) error {
	if c.Kind() == sqltx.Postgres && slices.ContainsFunc(claims, func(claim *claimed) bool { return claim.OfWaiting }) {
		// Several statements would lock the states each in its own order.
		ids := make([]int64, len(claims))
		for i, claim := range claims {
			ids[i] = claim.JobID
		}
		if err := c.execJobs(shareStates, ids); err != nil {
			return err
		}
	}
	for _, statement := range []struct {
		text string
		of   func(claim *claimed) bool
	}{
		{claimRuns, func(claim *claimed) bool { return !claim.OfWaiting }},
		{claimStateless, func(claim *claimed) bool { return !claim.OfWaiting && claim.Triggered && claim.result == 0 }},
		{claimWaiting, func(claim *claimed) bool { return claim.OfWaiting && !claim.isAttempt() }},
		{claimAttempts, (*claimed).isAttempt},
	} {
		if err := c.win(statement.text, those(claims, statement.of)); err != nil {
			return err
		}
	}
	c.exclusive = append(c.exclusive, those(claims, func(claim *claimed) bool { return claim.result == ledger.Won && claim.Overlap != ledger.Allow })...)
	return c.judge(those(claims, func(claim *claimed) bool { return claim.result == 0 }))
}

func (c *claiming) now() int64 { return c.Now().UnixMicro() }

// win runs a statement by which claims may be won.
func (c *claiming) win(text string, claims []*claimed) error {
	if len(claims) == 0 {
		return nil
	}
	won, err := c.keys(text, c.process, c.now(), claimRows(claims))
	for _, claim := range claims {
		if won[claim.Key.ID()] {
			claim.result = ledger.Won
		}
	}
	return err
}

// judge answers claims that no statement has won.
func (c *claiming) judge(claims []*claimed) error {
	if len(claims) == 0 {
		return nil
	}
	return c.each(judgeClaims, []any{c.process, c.now(), claimRows(claims)}, func(rows *sql.Rows) error {
		var n, result int
		err := rows.Scan(&n, &result)
		if err == nil {
			claims[n].result = ledger.Result(result)
		}
		return err
	})
}

// lock takes the locks of jobs for claims that are won. Those that get none are skipped
// or wait.
func (c *claiming) lock(claims []*claimed) error {
	taken, err := c.keys(takeLocks, c.now(), c.process, lockRows(claims))
	if err != nil {
		return err
	}
	var skipped, delayed, back []*claimed
	for _, claim := range claims {
		switch {
		case taken[claim.Key.ID()]:
		case claim.OfWaiting:
			claim.result = ledger.Taken
			back = append(back, claim)
		case claim.Overlap == ledger.Delay:
			delayed = append(delayed, claim)
		default:
			claim.result = ledger.Overlapped
			skipped = append(skipped, claim)
		}
	}
	if err := c.wait(back); err != nil {
		return err
	}
	waiting, full, err := c.delay(delayed)
	if err != nil {
		return err
	}
	if err := c.wait(waiting); err != nil {
		return err
	}
	return c.execKeys(skipRuns, keysOf(append(skipped, full...)), c.now())
}

func (c *claiming) wait(claims []*claimed) error {
	return c.execKeys(delayRuns, keysOf(claims), c.now())
}

// delay gives claims without a lock the one place to wait that each job has.
func (c *claiming) delay(claims []*claimed) (waiting, full []*claimed, err error) {
	if len(claims) == 0 {
		return nil, nil, nil
	}
	rows := lockRows(claims)
	if err := c.exec(lockLocks, rows); err != nil {
		return nil, nil, err
	}
	// A statement of its own, which sees the claims that the locks waited for.
	taken, err := c.ids(fullJobs, c.now(), rows)
	if err != nil {
		return nil, nil, err
	}
	for _, claim := range claims {
		if !taken[claim.JobID] {
			taken[claim.JobID] = true
			claim.result = ledger.Delayed
			waiting = append(waiting, claim)
		} else {
			claim.result = ledger.Overlapped
			full = append(full, claim)
		}
	}
	return waiting, full, nil
}

// supersede ends the waiting attempts of ticks before those that were won, and those
// that were not won because a later tick has started.
func (c *claiming) supersede(claims []*claimed) error {
	newer := those(claims, func(claim *claimed) bool {
		return claim.result == ledger.Won && claim.NewestCounts && claim.Attempt == 1
	})
	if err := c.execKeys(endSuperseded, keysOf(newer), c.now()); err != nil {
		return err
	}
	overtaken := those(claims, func(claim *claimed) bool { return claim.result != ledger.Won && claim.isAttempt() })
	return c.execKeys(endOvertaken, keysOf(overtaken), c.now())
}

func keysOf(claims []*claimed) [][]any {
	values := make([][]any, len(claims))
	for i, claim := range claims {
		values[i] = keyValues(&claim.Key)
	}
	return values
}

func claimRows(claims []*claimed) sqltx.Rows {
	values := make([][]any, len(claims))
	for i, claim := range claims {
		revision := claim.Revision
		if claim.Triggered && !claim.OfWaiting {
			revision = 0 // it does not matter
		}
		values[i] = append(keyValues(&claim.Key), claim.GroupID, claim.SuperGroupID, revision, claim.Overlap != ledger.Allow, i)
	}
	return rowsOf(claimFields, values)
}

func lockRows(claims []*claimed) sqltx.Rows {
	values := make([][]any, len(claims))
	for i, claim := range claims {
		values[i] = append(keyValues(&claim.Key), claim.OfWaiting, claim.NewestCounts, claim.Overlap == ledger.Skip && !claim.Triggered)
	}
	return rowsOf(lockFields, values)
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

// takeLocks gives runs the locks of their jobs, in the order of their keys. Those that
// did not wait leave them to runs that do. $1 is the time, $2 the process.
const takeLocks = `INSERT INTO {smallben_locks} (job_id, process, ` + tickColumns + `)
SELECT v.job_id, CAST($2 AS text), v.tick, v.triggered, v.attempt FROM {rows} WHERE v.of_waiting OR NOT ` + anotherWaits + `
` + keyOrder + `
ON CONFLICT DO NOTHING RETURNING ` + keyColumns

const anotherWaits = "EXISTS (SELECT 1 " + waitingBefore + ")"

// waitingBefore are the runs that wait for the lock of a job, or are about to take it. $1 is
// the time. Runs that end because the tick of the row has come do not count: attempts, if
// newest, and ticks that wait for a place, if takes_turns.
const waitingBefore = `FROM {smallben_runs} o WHERE o.job_id = v.job_id AND o.exclusive AND o.due_at IS NOT NULL AND o.due_at <= CAST($1 AS bigint) + {lead}
	AND NOT (o.tick < v.tick AND NOT o.triggered AND CASE WHEN o.attempt > 1 THEN v.newest ELSE v.takes_turns AND o.missed = 0 END)`

const lockFields = keyFields + ", of_waiting boolean, newest boolean, takes_turns boolean"

const skipRuns = `UPDATE {smallben_runs} AS r SET outcome = 'skipped', ended_at = $1 FROM {rows} WHERE ` + sameRun

const delayRuns = `UPDATE {smallben_runs} AS r SET outcome = 'waiting', process = '', started_at = NULL, due_at = $1 FROM {rows} WHERE ` + sameRun

// lockLocks makes claims look one after another whether a run waits. A lock that is free has
// no row to be locked: two claims that come after it was freed, and before the run takes it
// that waits for it, may both wait.
const lockLocks = `SELECT job_id FROM {smallben_locks} WHERE job_id IN (SELECT v.job_id FROM {rows}) ORDER BY job_id FOR UPDATE`

// fullJobs gives the jobs of which one run holds the lock, or is about to take it, and
// another waits for that one. $1 is the time.
const fullJobs = `SELECT v.job_id FROM {rows} WHERE (SELECT count(*) ` + waitingBefore + `)
	+ (SELECT count(*) FROM {smallben_locks} k WHERE k.job_id = v.job_id) > 1`

// endSuperseded ends the waiting attempts of ticks before those of the rows.
const endSuperseded = endAttempts + ` WHERE r.job_id = v.job_id AND r.due_at IS NOT NULL AND r.attempt > 1 AND NOT r.triggered AND r.tick < v.tick`

const endAttempts = `UPDATE {smallben_runs} AS r SET outcome = 'skipped', started_at = $1, ended_at = $1, due_at = NULL, error = 'a later tick of its job came' FROM {rows}`

// endOvertaken ends waiting attempts of which a later tick has started.
const endOvertaken = endAttempts + ` WHERE ` + sameRun + ` AND r.due_at IS NOT NULL AND ` + laterStarted

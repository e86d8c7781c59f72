package ledgersql

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/sqltx"
)

// Join implements ledger.Store.
func (s *Store) Join(process string) error {
	return s.write("join", func(on statements) error {
		return on.exec("INSERT INTO {smallben_processes} (process, version, beats, claims, partial, clock_offset, since_at, beat_at) VALUES ($1, $2, 0, false, false, 0, $3, $3) ON CONFLICT DO NOTHING", process, programVersion(), on.Now().UnixMicro())
	}, func(on statements) (bool, error) { return on.registered(process, "") })
}

// programVersion is what the build information says of the program, or "".
func programVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return info.Main.Version
}

// Leave implements ledger.Store.
func (s *Store) Leave(process string) error {
	s.reserve.Drain()
	s.beats.Drain()
	return s.write("leave", func(on statements) error {
		return on.exec("DELETE FROM {smallben_processes} WHERE process = $1", process)
	}, func(on statements) (bool, error) {
		registered, err := on.registered(process, "")
		return !registered, err
	})
}

// Beat implements ledger.Store. It is one statement, without a transaction: a heartbeat
// too many does no harm. On PostgreSQL it has a connection of its own, where there are
// enough, and takes beatLimit at most.
func (s *Store) Beat(process string, standing ledger.Standing) (beat ledger.Heartbeat, err error) {
	if err := s.supported("heartbeat"); err != nil {
		return beat, err
	}
	db := s.db.Using(s.beats)
	if db.Kind() == sqltx.Postgres {
		db = db.Within(beatLimit)
	}
	ctx, cancel := db.Context()
	defer cancel()
	err = db.Failed("heartbeat", db.AttemptInTurn(ctx, func(tx *sqltx.Tx) error {
		beat = ledger.Heartbeat{}
		var beats int64
		var now, due *int64
		var members string
		err := statements{tx}.row(beatOnce, []any{process, standing.Claims, standing.Partial, standing.Offset.Microseconds(), time.Now().UnixMicro()}, &beats, &now, &beat.Revision, &beat.Leader, &due, &beat.Outbox, &beat.Canceled, &members)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w: %s", ledger.ErrNotRegistered, process)
		}
		if err != nil {
			return err
		}
		beat.Now, beat.Due = databaseTime(now), instant(due)
		beat.Members, err = decodeMembers(members)
		for i := range beat.Members {
			if m := &beat.Members[i]; m.Process == process {
				m.Beats, m.Standing = beats, standing
			}
		}
		return err
	}))
	s.reserve.Fill()
	if err != nil {
		return ledger.Heartbeat{}, err
	}
	return beat, nil
}

// decodeMembers reads a list of processes, their heartbeats and standings, and sorts
// it.
func decodeMembers(text string) ([]ledger.Member, error) {
	var rows [][4]json.RawMessage
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		return nil, err
	}
	members := make([]ledger.Member, len(rows))
	for i, row := range rows {
		m := &members[i]
		m.Claims, m.Partial = string(row[2]) == "1", string(row[3]) == "1"
		if err := errors.Join(json.Unmarshal(row[0], &m.Process), json.Unmarshal(row[1], &m.Beats)); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(members, func(a, b ledger.Member) int { return cmp.Compare(a.Process, b.Process) })
	return members, nil
}

// Recording returns a process that records runs, or "": one that was heard of in the
// last maxSilence. There may be no record.
func (s *Store) Recording(maxSilence time.Duration) (process string, err error) {
	if s.db.Kind() == sqltx.Portable {
		return "", nil
	}
	const op = "look for processes that record runs"
	ctx, cancel := s.db.Context()
	defer cancel()
	err = s.db.Attempt(ctx, func(tx *sqltx.Tx) error {
		process = ""
		exists, err := tx.Exists("smallben_processes")
		if err != nil || !exists {
			return err
		}
		err = tx.Row(recordingProcess, []any{time.Now().UnixMicro(), maxSilence.Microseconds()}, &process)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	return process, s.db.Failed(op, err)
}

// Processes implements ledger.Store.
func (s *Store) Processes() (all []ledger.Process, err error) {
	err = s.readForUsers("list processes", func(on statements) error {
		all, err = collect(on, listProcesses, []any{time.Now().UnixMicro()}, func(rows *sql.Rows) (p ledger.Process, err error) {
			var offset, since, age int64
			err = rows.Scan(&p.Process, &p.Version, &p.Beats, &p.Claims, &p.Partial, &offset, &since, &age, &p.Leads)
			p.Offset, p.Since, p.Age = time.Duration(offset)*time.Microsecond, time.UnixMicro(since).UTC(), time.Duration(age)*time.Microsecond
			return p, err
		})
		return err
	})
	return all, err
}

// Expire implements ledger.Tx.
func (tx *Tx) Expire(dead []ledger.Member) ([]ledger.Run, error) {
	values := make([][]any, len(dead))
	for i, member := range dead {
		values[i] = []any{member.Process, member.Beats}
	}
	members := rowsOf("process text, beats bigint", values)
	// In the order of Claim: the states before the locks.
	err := tx.exec(lockStatesOfDead, members)
	if err == nil {
		err = tx.exec(removeDead, members)
	}
	var lost []ledger.Run
	if err == nil {
		lost, err = tx.runs(loseRuns, tx.now.UnixMicro())
	}
	if err == nil {
		err = tx.exec(freeLocksOfDead)
	}
	if err != nil {
		return nil, fmt.Errorf("expire processes: %w", err)
	}
	slices.SortFunc(lost, func(a, b ledger.Run) int { return a.Key.Compare(b.Key) })
	return lost, nil
}

// Lead implements ledger.Tx.
func (tx *Tx) Lead(process string) (bool, error) {
	leads := false
	err := tx.each(takeLead, []any{process}, func(*sql.Rows) error { leads = true; return nil })
	if err != nil {
		return false, fmt.Errorf("lead: %w", err)
	}
	return leads, nil
}

const beatOnce = `UPDATE {smallben_processes} SET beats = beats + 1, claims = $2, partial = $3, clock_offset = $4, beat_at = coalesce({clock}, CAST($5 AS bigint)) WHERE process = $1
RETURNING beats, {clock}, (SELECT revision FROM {smallben_ledger}), coalesce((SELECT r.leader FROM {smallben_ledger} r JOIN {smallben_processes} p ON p.process = r.leader), ''),
	(SELECT min(due_at) FROM {smallben_runs} WHERE due_at IS NOT NULL), EXISTS (SELECT 1 FROM {smallben_outbox}),
	(SELECT count(*) FROM {smallben_runs} WHERE ended_at IS NULL AND process = $1 AND cancel_at IS NOT NULL),
	(SELECT CAST({json list}({json pair}(p.process, p.beats, CASE WHEN p.claims THEN 1 ELSE 0 END, CASE WHEN p.partial THEN 1 ELSE 0 END)) AS text) FROM {smallben_processes} p)`

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

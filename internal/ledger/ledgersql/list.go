package ledgersql

import (
	"database/sql"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/sqltx"
)

// ListRuns implements ledger.Store.
func (s *Store) ListRuns(query ledger.Query) (runs []ledger.Run, err error) {
	err = s.readForUsers("list runs", func(on statements) error {
		var where []string
		var args []any
		filter := func(condition string, arg any) {
			args = append(args, arg)
			where = append(where, fmt.Sprintf(condition, len(args)))
		}
		where, args = amongIDs(on, query, args)
		if !query.From.IsZero() {
			filter("tick >= $%d", query.From.UnixMicro())
		}
		if !query.Before.IsZero() {
			filter("tick < $%d", query.Before.UnixMicro())
		}
		if query.After != nil {
			id := query.After.ID()
			args = append(args, id.Tick, id.JobID, id.Attempt, id.Triggered)
			n := len(args)
			where = append(where, fmt.Sprintf("(tick, job_id, attempt, triggered) < (CAST($%d AS bigint), CAST($%d AS bigint), CAST($%d AS int), CAST($%d AS boolean))", n-3, n-2, n-1, n),
				fmt.Sprintf("tick <= CAST($%d AS bigint)", n-3))
		}
		args = append(args, query.Most())
		newest := " ORDER BY tick DESC, job_id DESC, attempt DESC, triggered DESC LIMIT $" + strconv.Itoa(len(args))
		selection := func(conditions ...string) string {
			text := "SELECT " + runColumns + " FROM {smallben_runs}"
			if conditions = append(conditions, where...); len(conditions) > 0 {
				text += " WHERE " + strings.Join(conditions, " AND ")
			}
			return text + newest
		}
		switch {
		case query.Outcomes == nil:
			runs, err = on.runs(selection(), args...)
		case len(query.Outcomes) == 0:
			runs = []ledger.Run{}
		default:
			// An index has the newest runs of one outcome.
			var each []string
			for _, outcome := range query.Outcomes {
				each = append(each, "SELECT * FROM ("+selection(ofOutcome(outcome)...)+") AS one")
			}
			runs, err = on.runs("SELECT * FROM ("+strings.Join(each, " UNION ")+") AS every"+newest, args...)
		}
		return err
	})
	return runs, err
}

// amongIDs are the conditions for the ids of a query.
func amongIDs(on statements, query ledger.Query, args []any) (where []string, _ []any) {
	for _, filter := range []struct {
		column string
		ids    []int64
	}{{"job_id", query.JobIDs}, {"group_id", query.GroupIDs}, {"super_group_id", query.SuperGroupIDs}} {
		if len(filter.ids) == 1 {
			// So that an index gives the order, too.
			args = append(args, filter.ids[0])
			where = append(where, fmt.Sprintf("%s = $%d", filter.column, len(args)))
			if filter.ids[0] != 0 {
				where = append(where, filter.column+" <> 0") // as the index has it
			}
		} else if filter.ids != nil {
			args = append(args, sqltx.IDs(unique(filter.ids)))
			where = append(where, on.Kind().Among(filter.column, len(args)))
		}
	}
	return where, args
}

// ofOutcome are the conditions of an outcome. They name those of the index that has its
// runs: it is used where a query says so.
func ofOutcome(outcome ledger.Outcome) []string {
	conditions := []string{"outcome = '" + strings.ReplaceAll(string(outcome), "'", "''") + "'"}
	switch outcome {
	case "ok": // most runs are
	case ledger.Waiting:
		conditions = append(conditions, "due_at IS NOT NULL", "due_at >= 0")
	case ledger.Running:
		conditions = append(conditions, "ended_at IS NULL", "process >= ''")
	default:
		conditions = append(conditions, notable)
	}
	return conditions
}

// RunsOf implements ledger.Store.
func (s *Store) RunsOf(jobIDs []int64, n int) (runs []ledger.Run, err error) {
	text, args := lastRuns, []any{}
	if n > 0 {
		text, args = text+" UNION ALL "+newestRuns, append(args, n-1)
	}
	err = s.readForUsers("read runs of jobs", func(on statements) error {
		runs, err = on.runs(text+inKeyOrder, append(args, idRows(unique(jobIDs)))...)
		return err
	})
	return slices.CompactFunc(runs, func(a, b ledger.Run) bool { return a.Key.ID() == b.Key.ID() }), err
}

// Count is how many ticks within a step of time had an outcome.
type Count struct {
	Step    int64
	Outcome ledger.Outcome
	Ticks   int
}

// CountRuns counts runs whose tick is not before from, by steps of time since from and
// by outcome. It looks at the newest limit runs at most, and returns since when all are
// counted.
func (s *Store) CountRuns(from time.Time, step time.Duration, limit int) (counts []Count, since time.Time, err error) {
	since = from
	err = s.readForUsers("count runs", func(on statements) error {
		counts = nil
		looked, oldest := 0, int64(0)
		err := on.each(countNewest, []any{from.UnixMicro(), step.Microseconds(), limit}, func(rows *sql.Rows) error {
			var count Count
			var first int64
			var entries int
			err := rows.Scan(&count.Step, &count.Outcome, &first, &entries, &count.Ticks)
			if looked == 0 || first < oldest {
				oldest = first
			}
			looked += entries
			counts = append(counts, count)
			return err
		})
		if looked == limit {
			since = time.UnixMicro(oldest).In(from.Location())
		}
		return err
	})
	return counts, since, err
}

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

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
	err = s.read("list runs", func(on statements) error {
		var where []string
		var args []any
		filter := func(condition string, arg any) {
			args = append(args, arg)
			where = append(where, fmt.Sprintf(condition, len(args)))
		}
		where, args = amongIDs(on, query, args)
		if query.Outcomes != nil {
			outcomes := []string{"NULL"}
			for _, outcome := range query.Outcomes {
				args = append(args, string(outcome))
				outcomes = append(outcomes, "$"+strconv.Itoa(len(args)))
			}
			where = append(where, "outcome IN ("+strings.Join(outcomes, ", ")+")")
			where = append(where, indexed(query.Outcomes)...)
		}
		if !query.From.IsZero() {
			filter("tick >= $%d", query.From.UnixMicro())
		}
		if !query.Before.IsZero() {
			filter("tick < $%d", query.Before.UnixMicro())
		}
		if query.After != nil {
			id := idOf(query.After)
			args = append(args, id.tick, id.jobID, id.attempt, id.triggered)
			n := len(args)
			where = append(where, fmt.Sprintf("(tick, job_id, attempt, triggered) < (CAST($%d AS bigint), CAST($%d AS bigint), CAST($%d AS int), CAST($%d AS boolean))", n-3, n-2, n-1, n),
				fmt.Sprintf("tick <= CAST($%d AS bigint)", n-3))
		}
		text := "SELECT " + runColumns + " FROM {smallben_runs}"
		if len(where) > 0 {
			text += " WHERE " + strings.Join(where, " AND ")
		}
		args = append(args, query.Most())
		runs, err = on.runs(text+" ORDER BY tick DESC, job_id DESC, attempt DESC, triggered DESC LIMIT $"+strconv.Itoa(len(args)), args...)
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
		if filter.ids != nil {
			args = append(args, sqltx.IDs(unique(filter.ids)))
			where = append(where, on.Kind().Among(filter.column, len(args)))
		}
	}
	return where, args
}

// indexed are the conditions of an index that has all runs of these outcomes: it is used
// where a query says so.
func indexed(outcomes []ledger.Outcome) []string {
	all := func(match func(ledger.Outcome) bool) bool {
		return len(outcomes) > 0 && !slices.ContainsFunc(outcomes, func(o ledger.Outcome) bool { return !match(o) })
	}
	switch {
	case all(func(o ledger.Outcome) bool { return o == ledger.Waiting }):
		return []string{"due_at IS NOT NULL"}
	case all(func(o ledger.Outcome) bool { return o == ledger.Waiting || o == ledger.Running }):
		return []string{"ended_at IS NULL", "process >= ''"}
	case all(func(o ledger.Outcome) bool { return o != "ok" && o != ledger.Running && o != ledger.Waiting }):
		return []string{notable}
	}
	return nil
}

// LastRuns implements ledger.Store.
func (s *Store) LastRuns(jobIDs []int64) (runs []ledger.Run, err error) {
	err = s.read("read last runs", func(on statements) error {
		runs = []ledger.Run{}
		var created any
		return on.each(lastRuns, []any{idRows(unique(jobIDs))}, func(rows *sql.Rows) error {
			run, err := scanRun(rows, &created)
			if err != nil {
				return err
			}
			if run.Tick.Before(s.createdAt(created)) {
				return nil
			}
			if n := len(runs); n > 0 && runs[n-1].JobID == run.JobID {
				runs = runs[:n-1]
			}
			runs = append(runs, run)
			return nil
		})
	})
	return runs, err
}

// RecentRuns returns, for each of the jobs, the runs of its newest n ticks, oldest
// first.
func (s *Store) RecentRuns(jobIDs []int64, n int) (runs []ledger.Run, err error) {
	err = s.read("read recent runs", func(on statements) error {
		runs, err = on.runs(newestRuns, n-1, idRows(unique(jobIDs)))
		return err
	})
	return runs, err
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
	err = s.read("count runs", func(on statements) error {
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

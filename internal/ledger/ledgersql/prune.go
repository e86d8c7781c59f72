package ledgersql

import (
	"database/sql"
	"math"
	"slices"
	"time"
)

// Prune implements ledger.Store. A call goes on where the last one ended, so that what is
// kept is not looked at in each, and then begins with the oldest run. One that deletes less
// than limit has looked at all.
func (s *Store) Prune(before time.Time, limit int) (int, error) {
	limit = max(limit, 0)
	from := s.prunedTo()
	count, last := 0, from
	var sample []any
	err := s.write("prune runs", func(on statements) error {
		count, last, sample = 0, from, nil
		for _, start := range slices.Compact([]int64{from, math.MinInt64}) {
			if count == limit {
				break
			}
			last = math.MinInt64
			err := on.each(pruneRuns, []any{before.UnixMicro(), start, limit - count}, func(rows *sql.Rows) error {
				key, err := scanKey(rows)
				count, last, sample = count+1, max(last, key.Tick), idValues(key)
				return err
			})
			if err != nil {
				return err
			}
		}
		return on.exec(pruneTombstones, before.UnixMicro())
	}, func(on statements) (bool, error) {
		if sample == nil {
			return true, nil
		}
		var left int
		err := on.row(countRuns, []any{rowsOf(keyFields, [][]any{sample})}, &left)
		return left == 0, err
	})
	if err != nil {
		return 0, err
	}
	if count < limit {
		last = math.MinInt64
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pruned = last
	return count, nil
}

func (s *Store) prunedTo() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pruned
}

// pruneRuns deletes the oldest runs with ticks from $2 to before $1, $3 at most.
const pruneRuns = `WITH old AS MATERIALIZED (SELECT ` + keyColumns + ` FROM {smallben_runs} r WHERE r.tick < $1 AND r.tick >= $2 AND r.ended_at IS NOT NULL
	AND NOT EXISTS (SELECT 1 FROM {smallben_job_state} m WHERE m.job_id = r.job_id AND m.deleted_at IS NULL AND m.accounted_until < r.tick)
	AND (r.outcome IN ('missed', 'skipped') OR (SELECT j.id FROM {jobs} j WHERE j.id = r.job_id) IS NULL OR EXISTS (
		SELECT 1 FROM {smallben_runs} n WHERE n.job_id = r.job_id AND (n.tick, n.attempt, n.triggered) > (r.tick, r.attempt, r.triggered) AND n.` + ran + `))
	ORDER BY r.tick, r.job_id, r.triggered, r.attempt LIMIT $3 FOR UPDATE OF r SKIP LOCKED)
DELETE FROM {smallben_runs} WHERE (` + keyColumns + `) IN (SELECT ` + keyColumns + ` FROM old) RETURNING ` + keyColumns

const pruneTombstones = `DELETE FROM {smallben_job_state} WHERE job_id IN (SELECT job_id FROM {smallben_job_state} WHERE deleted_at < $1 FOR UPDATE SKIP LOCKED)`

package smallben

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/nbena/smallben/internal/sqltx"
)

// listJobIDs reads the ids of the rows that match, and nothing else of them.
func (r *RepositoryGorm) listJobIDs(options ListJobsOptions) (ids []int64, err error) {
	ctx, cancel := r.db.Context()
	defer cancel()
	for _, filter := range [][]int64{options.JobIDs, options.GroupIDs, options.SuperGroupIDs} {
		if filter != nil && len(filter) == 0 {
			return nil, nil
		}
	}
	kind := r.db.Kind()
	if kind == sqltx.Portable {
		return r.portableIDs(ctx, options)
	}
	text, args := selection(kind, selected{ListJobsOptions: options}, "SELECT id FROM (SELECT * FROM {jobs} WHERE "+hasID(kind)+") AS named")
	err = r.db.Attempt(ctx, func(tx *sqltx.Tx) error {
		ids = nil
		return tx.Each(text, args, func(rows *sql.Rows) error {
			var id int64
			err := rows.Scan(&id)
			ids = append(ids, id)
			return err
		})
	})
	return ids, r.db.Failed("list ids", err)
}

func (r *RepositoryGorm) portableIDs(ctx context.Context, options ListJobsOptions) (ids []int64, err error) {
	rows, err := r.readRows(ctx, options)
	for i := range rows {
		if !rows[i].nameless() {
			ids = append(ids, rows[i].ID)
		}
	}
	return ids, r.db.Failed("list ids", err)
}

// newestRuns gives the runs of the newest ticks of each job. $1 is how many ticks,
// less one.
const newestRuns = `SELECT {run} FROM {rows} JOIN {job_runs} r ON r.job_id = v.job_id
	AND r.tick >= coalesce((SELECT n.tick FROM {job_runs} n WHERE n.job_id = v.job_id ORDER BY n.job_id DESC, n.tick DESC LIMIT 1 OFFSET $1), -9223372036854775808)
ORDER BY v.job_id, r.tick, r.attempt, r.triggered`

func (r *RepositoryGorm) recentRuns(jobIDs []int64, n int) (runs []Run, err error) {
	err = r.readRecord("read recent runs", func(s *records) error {
		runs, err = s.runs(newestRuns, n-1, idRows(unique(jobIDs)))
		return err
	})
	return runs, err
}

// countNewest counts the newest $3 runs with ticks from $1 on, by steps of $2.
const countNewest = `SELECT (tick - CAST($1 AS bigint)) / CAST($2 AS bigint) AS step, outcome, min(tick), count(*), sum(CASE WHEN outcome = 'missed' THEN missed ELSE 1 END)
FROM (SELECT tick, outcome, missed FROM {job_runs} WHERE tick >= CAST($1 AS bigint) ORDER BY tick DESC LIMIT $3) AS newest GROUP BY 1, 2 ORDER BY 1, 2`

func (r *RepositoryGorm) countRuns(from time.Time, step time.Duration, limit int) (counts []RunCount, since time.Time, err error) {
	since = from
	err = r.readRecord("count runs", func(s *records) error {
		counts = nil
		looked, oldest := 0, int64(0)
		err := s.each(countNewest, []any{from.UnixMicro(), step.Microseconds(), limit}, func(rows *sql.Rows) error {
			var n, first int64
			var outcome string
			var entries, ticks int
			if err := rows.Scan(&n, &outcome, &first, &entries, &ticks); err != nil {
				return fmt.Errorf("scan: %w", err)
			}
			if looked == 0 || first < oldest {
				oldest = first
			}
			looked += entries
			counts = append(counts, RunCount{from.Add(time.Duration(n) * step), Outcome(outcome), ticks})
			return nil
		})
		if looked == limit {
			since = time.UnixMicro(oldest).In(from.Location())
		}
		return err
	})
	return counts, since, err
}

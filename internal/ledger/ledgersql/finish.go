package ledgersql

import (
	"slices"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/sqltx"
)

// Finish implements ledger.Store.
func (s *Store) Finish(process string, ends []ledger.End) error {
	if len(ends) == 0 {
		return nil
	}
	ends = slices.Clone(ends)
	slices.SortStableFunc(ends, func(a, b ledger.End) int { return a.Key.Compare(b.Key) })
	return s.write("finish runs", func(on statements) error {
		for chunk := range sqltx.Chunks(ends, runChunk, func(end *ledger.End) int { return len(end.Error) }) {
			if err := finish(on, process, chunk); err != nil {
				return err
			}
		}
		return nil
	}, func(on statements) (bool, error) {
		values := make([][]any, len(ends))
		for i := range ends {
			values[i] = append(keyValues(&ends[i].Key), ends[i].Unclaimed)
		}
		var left int
		err := on.row(countUnfinished, []any{process, rowsOf(keyFields+", unclaimed boolean", values)}, &left)
		return left == 0, err
	})
}

func finish(on statements, process string, ends []ledger.End) error {
	var ended, locked, unclaimed, retries [][]any
	var retried []int64
	for i := range ends {
		end := &ends[i]
		key := keyValues(&end.Key)
		ended = append(ended, append(slices.Clip(key), micros(end.Start), micros(end.End), string(end.Outcome), storedText(end.Error)))
		if end.Overlap != ledger.Allow {
			locked = append(locked, key)
		}
		if end.Unclaimed {
			unclaimed = append(unclaimed, runValues(&ledger.Run{Key: end.Key, GroupID: end.GroupID, SuperGroupID: end.SuperGroupID, Process: process,
				Start: end.Start, End: end.End, Outcome: end.Outcome, Error: end.Error, Exclusive: end.Overlap != ledger.Allow}))
		}
		if !end.Retry.IsZero() {
			retries = append(retries, append(slices.Clip(key), end.Retry.UnixMicro()))
			retried = append(retried, end.JobID)
		}
	}
	// Before the runs, in the order of Claim.
	if err := on.execJobs(shareStates, retried); err != nil {
		return err
	}
	if err := on.exec(finishRuns, process, rowsOf(keyFields+", started_at bigint, ended_at bigint, outcome text, error text", ended)); err != nil {
		return err
	}
	if err := on.execEach(addUnclaimedRuns, nil, runChunk, runFields, unclaimed); err != nil {
		return err
	}
	if err := on.execEach(addRetries, []any{process}, runChunk, keyFields+", due_at bigint", retries); err != nil {
		return err
	}
	return on.execKeys(freeLocks, locked, process) // at last, as in Claim
}

const finishRuns = `UPDATE {smallben_runs} AS r SET started_at = v.started_at, ended_at = v.ended_at, outcome = v.outcome, error = v.error
FROM {rows} WHERE ` + sameRun + ` AND CASE WHEN r.process = $1 THEN r.ended_at IS NULL OR r.outcome = 'lost' ELSE false END`

const addUnclaimedRuns = `INSERT INTO {smallben_runs} AS r (` + runColumns + `)
SELECT ` + runColumns + ` FROM {rows} WHERE true ORDER BY job_id, tick, triggered, attempt
ON CONFLICT (` + keyColumns + `) DO UPDATE SET group_id = excluded.group_id, super_group_id = excluded.super_group_id, process = excluded.process,
	outcome = excluded.outcome, started_at = excluded.started_at, ended_at = excluded.ended_at, error = excluded.error,
	missed = excluded.missed, first_tick = excluded.first_tick, exclusive = excluded.exclusive, due_at = NULL
WHERE ` + notStarted

// notStarted is whether a run did not start: one that was started without a claim takes
// its place.
const notStarted = "(r.outcome = 'missed' AND r.missed = 1 OR r.outcome IN ('skipped', 'waiting'))"

// addRetries adds the next attempts of runs that this process has ended. $1 is the
// process.
const addRetries = `INSERT INTO {smallben_runs} (` + runColumns + `)
SELECT r.job_id, r.tick, r.triggered, r.attempt + 1, r.group_id, r.super_group_id, '', 'waiting', NULL, NULL, '', r.missed, NULL, r.exclusive, v.due_at
FROM {rows} JOIN {smallben_runs} r ON ` + sameRun + ` JOIN {jobs} j ON j.id = v.job_id JOIN {smallben_job_state} m ON m.job_id = v.job_id
WHERE r.process = $1 AND m.deleted_at IS NULL AND (r.triggered OR NOT j.paused)
	AND (r.triggered OR NOT ` + laterTick + `)
` + keyOrder + ` ON CONFLICT DO NOTHING`

const freeLocks = `DELETE FROM {smallben_locks} WHERE process = $1 AND (` + keyColumns + `) IN (SELECT v.job_id, v.tick, v.triggered, v.attempt FROM {rows})`

// countUnfinished counts what finishing would yet change. $1 is the process.
const countUnfinished = `SELECT count(*) FROM {rows} LEFT JOIN {smallben_runs} r ON ` + sameRun + `
WHERE r.process = $1 AND (r.ended_at IS NULL OR r.outcome = 'lost')
	OR v.unclaimed AND (r.job_id IS NULL OR ` + notStarted + `)`

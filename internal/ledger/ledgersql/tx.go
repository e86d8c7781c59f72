package ledgersql

import (
	"cmp"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/sqltx"
)

// Tx is the transaction of a Change. It is valid until the function that was given it
// returns, and not for concurrent use.
type Tx struct {
	statements
	store    *Store
	revision int64
	now      time.Time
}

var _ ledger.Tx = (*Tx)(nil)

// SQL is the transaction for statements of others.
func (tx *Tx) SQL() *sqltx.Tx { return tx.statements.Tx }

// Now implements ledger.Tx.
func (tx *Tx) Now() time.Time { return tx.now }

// Watermarks implements ledger.Tx.
func (tx *Tx) Watermarks(jobIDs []int64) ([]ledger.Watermark, error) {
	marks := []ledger.Watermark{}
	for _, jobs := range chunksOf(jobIDs) {
		err := tx.exec(addStates, tx.revision, tx.now.UnixMicro(), jobs)
		if err == nil {
			err = tx.exec(lockStates, jobs)
		}
		var more []ledger.Watermark
		if err == nil {
			// A statement of its own, which sees the claims that the locks waited for.
			more, err = tx.store.watermarks(tx.statements, jobs)
		}
		if err != nil {
			return nil, fmt.Errorf("read watermarks: %w", err)
		}
		marks = append(marks, more...)
	}
	return marks, nil
}

// RecordedTicks implements ledger.Tx.
func (tx *Tx) RecordedTicks(spans []ledger.Span) ([][]time.Time, error) {
	ticks := make([][]time.Time, len(spans))
	values := make([][]any, len(spans))
	for i, span := range spans {
		values[i] = []any{i, span.JobID, span.After.UnixMicro(), span.Until.UnixMicro()}
	}
	for chunk := range slices.Chunk(values, jobChunk) {
		err := tx.each(recordedTicks, []any{rowsOf("n bigint, job_id bigint, after bigint, until bigint", chunk)}, func(rows *sql.Rows) error {
			var n int
			var tick int64
			err := rows.Scan(&n, &tick)
			if err == nil {
				ticks[n] = append(ticks[n], time.UnixMicro(tick).UTC())
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read ticks: %w", err)
		}
	}
	return ticks, nil
}

// Record implements ledger.Tx.
func (tx *Tx) Record(marks []ledger.Watermark, runs []ledger.Run) error {
	marks, runs = slices.Clone(marks), slices.Clone(runs)
	slices.SortStableFunc(marks, func(a, b ledger.Watermark) int { return cmp.Compare(a.JobID, b.JobID) })
	slices.SortStableFunc(runs, func(a, b ledger.Run) int { return a.Key.Compare(b.Key) })
	var ids []int64
	for i := range marks {
		ids = append(ids, marks[i].JobID)
	}
	for i := range runs {
		ids = append(ids, runs[i].JobID)
	}
	if err := tx.execJobs(lockStates, ids); err != nil {
		return fmt.Errorf("record runs: %w", err)
	}
	// Not with the watermarks: PostgreSQL would remember for each of them who had
	// locked it before the savepoint.
	err := tx.Savepoint(func() error {
		for chunk := range sqltx.Chunks(runs, runChunk, func(run *ledger.Run) int { return len(run.Error) }) {
			if err := tx.addRuns(chunk); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = tx.setWatermarks(marks)
	}
	if err != nil {
		return fmt.Errorf("record runs: %w", err)
	}
	return nil
}

func (tx *Tx) setWatermarks(marks []ledger.Watermark) error {
	values := make([][]any, len(marks))
	for i := range marks {
		values[i] = []any{marks[i].JobID, marks[i].Until.UnixMicro()}
	}
	return tx.execEach(setWatermarks, nil, jobChunk, "job_id bigint, until bigint", values)
}

// addRuns adds runs, and takes the locks of those that run and need one.
func (tx *Tx) addRuns(runs []ledger.Run) error {
	values := make([][]any, len(runs))
	var running [][]any
	for i := range runs {
		run := &runs[i]
		values[i] = runValues(run)
		if run.Exclusive && run.Outcome == ledger.Running {
			running = append(running, append(keyValues(&run.Key), run.Process))
		}
	}
	err := tx.exec("INSERT INTO {smallben_runs} ("+runColumns+") SELECT "+runColumns+" FROM {rows}", rowsOf(runFields, values))
	if err == nil && len(running) > 0 {
		err = tx.exec("INSERT INTO {smallben_locks} ("+keyColumns+", process) SELECT "+keyColumns+", process FROM {rows}", rowsOf(keyFields+", process text", running))
	}
	return err
}

// Close implements ledger.Tx.
func (tx *Tx) Close(jobIDs []int64, makeUp bool) error {
	err := tx.execJobs(lockStates, jobIDs)
	if err == nil {
		err = tx.execJobs(closeSpans, jobIDs, tx.revision, tx.now.UnixMicro(), makeUp)
	}
	if err == nil {
		err = tx.execJobs(closeWatermarks, jobIDs, tx.now.UnixMicro())
	}
	if err != nil {
		return fmt.Errorf("close spans: %w", err)
	}
	return nil
}

// Shorten implements ledger.Tx.
func (tx *Tx) Shorten(spans []ledger.ClosedSpan) error {
	values := make([][]any, len(spans))
	for i := range spans {
		values[i] = []any{spans[i].JobID, spans[i].Revision, spans[i].After.UnixMicro()}
	}
	err := tx.execEach(cutSpans, nil, jobChunk, shortenedFields, values)
	if err == nil {
		err = tx.execEach(removeSpans, nil, jobChunk, shortenedFields, values)
	}
	if err != nil {
		return fmt.Errorf("shorten spans: %w", err)
	}
	return nil
}

// Cancel implements ledger.Tx.
func (tx *Tx) Cancel(jobIDs []int64, triggered bool, reason string) error {
	if err := tx.execJobs(cancelWaiting, jobIDs, tx.now.UnixMicro(), reason, triggered); err != nil {
		return fmt.Errorf("cancel waiting runs: %w", err)
	}
	return nil
}

// Superseded implements ledger.Tx.
func (tx *Tx) Superseded(keys []ledger.Key) ([]int, error) {
	superseded, err := tx.indexes(supersededKeys, keys)
	if err != nil {
		return nil, fmt.Errorf("look for later ticks: %w", err)
	}
	return superseded, nil
}

// Awaited implements ledger.Tx.
func (tx *Tx) Awaited(claims []ledger.Claim) ([]int64, error) {
	awaited := make(map[int64]bool)
	for chunk := range slices.Chunk(claimsOf(claims), runChunk) {
		found, err := tx.ids(awaitedJobs, tx.now.UnixMicro(), lockRows(chunk))
		if err != nil {
			return nil, fmt.Errorf("look for waiting runs: %w", err)
		}
		maps.Copy(awaited, found)
	}
	return slices.Sorted(maps.Keys(awaited)), nil
}

// In is a transaction of the application as one in which FormerJobs can be asked for.
func (s *Store) In(tx *sqltx.Tx) *Tx {
	return &Tx{statements: statements{tx}, store: s, now: databaseTime(nil)}
}

// FormerJobs implements the transaction of a change of jobs. What a transaction of the
// application has changed, and nobody has followed yet, counts.
func (tx *Tx) FormerJobs(jobIDs []int64, maxSilence time.Duration) (former map[int64]string, decoding bool, err error) {
	former = make(map[int64]string)
	for _, rows := range chunksOf(jobIDs) {
		scan := func(rows *sql.Rows) error {
			var id int64
			var job string
			err := rows.Scan(&id, &job)
			if former[id] = job; job == "" {
				delete(former, id)
			}
			return err
		}
		err := tx.each(readFormer, []any{rows}, scan)
		if err == nil {
			err = tx.each(readAnnouncedFormer, []any{rows}, scan)
		}
		if err != nil {
			return nil, false, fmt.Errorf("read former jobs: %w", err)
		}
	}
	if len(former) == 0 {
		return nil, false, nil
	}
	var n int
	if err := tx.row(decodingProcess, []any{tx.now.UnixMicro(), maxSilence.Microseconds()}, &n); err != nil {
		return nil, false, fmt.Errorf("look for processes: %w", err)
	}
	return former, n > 0, nil
}

// SetFormerJobs implements the transaction of a change of jobs.
func (tx *Tx) SetFormerJobs(former map[int64]string) error {
	var values [][]any
	for _, id := range slices.Sorted(maps.Keys(former)) {
		values = append(values, []any{id, former[id]})
	}
	for chunk := range sqltx.Chunks(values, runChunk, func(value *[]any) int { return len((*value)[1].(string)) }) {
		if err := tx.exec(setFormer, rowsOf("job_id bigint, former_job text", chunk)); err != nil {
			return fmt.Errorf("keep former jobs: %w", err)
		}
	}
	return nil
}

// Touch gives jobs that exist the revision of the Change. Their watermarks begin now if
// begin.
func (tx *Tx) Touch(jobIDs []int64, begin bool) error {
	return tx.execJobs(touchJobs, jobIDs, tx.revision, tx.now.UnixMicro(), begin)
}

// Delete makes tombstones of the states of jobs.
func (tx *Tx) Delete(jobIDs []int64) error {
	return tx.execJobs(deleteStates, jobIDs, tx.revision, tx.now.UnixMicro())
}

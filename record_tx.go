package smallben

import (
	"cmp"
	"database/sql"
	"fmt"
	"slices"
	"time"
)

// recordTx is the transaction of a Change.
type recordTx struct {
	Repository // in the transaction
	Upserter
	records
	revision int64
}

var _ RecordTx = (*recordTx)(nil)

func newRecordTx(r *RepositoryGorm, s *records, revision int64) *recordTx {
	inside := *r
	tx := &recordTx{Repository: &inside, Upserter: &inside, records: *s, revision: revision}
	inside.tx, inside.db = tx, r.db.In(s.Tx)
	return tx
}

// Now implements RecordTx.
func (tx *recordTx) Now() time.Time { return tx.now }

// Accounts implements RecordTx. A job without a mark gets one.
func (tx *recordTx) Accounts(jobIDs []int64) ([]Account, error) {
	accounts := []Account{}
	for ids := range slices.Chunk(unique(jobIDs), changeChunk) {
		jobs := idRows(ids)
		err := tx.exec(adoptJobs, tx.revision, tx.now.UnixMicro(), jobs)
		if err == nil {
			err = tx.exec(lockMarks, jobs)
		}
		if err == nil {
			// A statement of its own, which sees the claims that the locks waited for.
			err = tx.each(readAccounts, []any{jobs}, func(rows *sql.Rows) error {
				var account Account
				var until int64
				err := rows.Scan(&account.JobID, &until, &account.Revision, &account.Busy)
				account.Until = time.UnixMicro(until).UTC()
				accounts = append(accounts, account)
				return err
			})
		}
		if err != nil {
			return nil, fmt.Errorf("read accounts: %w", err)
		}
	}
	return accounts, nil
}

// RecordedTicks implements RecordTx.
func (tx *recordTx) RecordedTicks(spans []TickSpan) ([][]time.Time, error) {
	ticks := make([][]time.Time, len(spans))
	values := make([][]any, len(spans))
	for i, span := range spans {
		values[i] = []any{i, span.JobID, span.After.UnixMicro(), span.Until.UnixMicro()}
	}
	for chunk := range slices.Chunk(values, changeChunk) {
		err := tx.each(recordedTicks, []any{rowsArg("n bigint, job_id bigint, after bigint, until bigint", chunk)}, func(rows *sql.Rows) error {
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

// Record implements RecordTx.
func (tx *recordTx) Record(accounts []Account, runs []Run) error {
	accounts, runs = slices.Clone(accounts), slices.Clone(runs)
	slices.SortStableFunc(accounts, func(a, b Account) int { return cmp.Compare(a.JobID, b.JobID) })
	slices.SortStableFunc(runs, func(a, b Run) int { return compareKeys(&a.RunKey, &b.RunKey) })
	var ids []int64
	for i := range accounts {
		ids = append(ids, accounts[i].JobID)
	}
	for i := range runs {
		ids = append(ids, runs[i].JobID)
	}
	for chunk := range slices.Chunk(unique(ids), changeChunk) {
		if err := tx.exec(lockMarks, idRows(chunk)); err != nil {
			return fmt.Errorf("record runs: %w", err)
		}
	}
	// Not with the accounts: PostgreSQL would remember for each of them who had
	// locked it before the savepoint.
	err := tx.Savepoint(func() error {
		for chunk := range chunks(runs, recordChunk, func(run *Run) int { return len(run.Error) }) {
			if err := tx.addRuns(chunk); err != nil {
				return err
			}
		}
		return nil
	})
	for chunk := range slices.Chunk(accounts, changeChunk) {
		if err != nil {
			break
		}
		values := make([][]any, len(chunk))
		for i := range chunk {
			values[i] = []any{chunk[i].JobID, chunk[i].Until.UnixMicro()}
		}
		err = tx.exec("UPDATE {job_marks} AS m SET accounted_until = v.until FROM {rows} WHERE m.job_id = v.job_id", rowsArg("job_id bigint, until bigint", values))
	}
	if err != nil {
		return fmt.Errorf("record runs: %w", err)
	}
	return nil
}

// addRuns adds runs, and takes the running keys of those that need one.
func (tx *recordTx) addRuns(runs []Run) error {
	values := make([][]any, len(runs))
	var running [][]any
	for i := range runs {
		run := runs[i]
		run.Error = storedText(run.Error)
		values[i] = runValues(&run)
		if run.Exclusive && run.End.IsZero() {
			running = append(running, append(keyValues(&run.RunKey), run.Process))
		}
	}
	err := tx.exec("INSERT INTO {job_runs} ("+runColumns+") SELECT "+runColumns+" FROM {rows}", rowsArg(runFields, values))
	if err == nil && len(running) > 0 {
		err = tx.exec("INSERT INTO {job_running} ("+keyColumns+", process) SELECT "+keyColumns+", process FROM {rows}", rowsArg(keyFields+", process text", running))
	}
	return err
}

// Bury implements RecordTx.
func (tx *recordTx) Bury(dead []Peer) ([]Run, error) {
	values := make([][]any, len(dead))
	for i, peer := range dead {
		values[i] = []any{peer.Process, peer.Beats}
	}
	peers := rowsArg("process text, beats bigint", values)
	// In the order of Claim: the marks before the running keys.
	err := tx.exec(lockMarksOfDead, peers)
	if err == nil {
		err = tx.exec("DELETE FROM {job_processes} WHERE (process, beats) IN (SELECT v.process, v.beats FROM {rows})", peers)
	}
	var lost []Run
	if err == nil {
		lost, err = tx.runs(loseRuns, tx.now.UnixMicro())
	}
	if err == nil {
		err = tx.exec("DELETE FROM {job_running} WHERE process NOT IN (SELECT process FROM {job_processes})")
	}
	if err != nil {
		return nil, fmt.Errorf("bury processes: %w", err)
	}
	slices.SortFunc(lost, func(a, b Run) int { return compareKeys(&a.RunKey, &b.RunKey) })
	return lost, nil
}

// Lead implements RecordTx.
func (tx *recordTx) Lead(process string) (bool, error) {
	leads := false
	err := tx.each("UPDATE {job_record} SET leader = $1 WHERE leader = $1 OR leader NOT IN (SELECT process FROM {job_processes}) RETURNING leader",
		[]any{process}, func(*sql.Rows) error { leads = true; return nil })
	if err != nil {
		return false, fmt.Errorf("lead: %w", err)
	}
	return leads, nil
}

// markChanged marks the jobs that a change has changed.
func (tx *recordTx) markChanged(kind changeKind, targets []rowChange, missing []int64) error {
	if kind == settingCronID {
		return nil
	}
	gone := make(map[int64]bool, len(missing))
	for _, id := range missing {
		gone[id] = true
	}
	var ids []int64
	for i := range targets {
		if id := targets[i].id; !gone[id] {
			ids = append(ids, id)
		}
	}
	if kind != deleting {
		return tx.mark(ids, kind == resuming)
	}
	for chunk := range slices.Chunk(ids, changeChunk) {
		if err := tx.exec(entombJobs, tx.revision, tx.now.UnixMicro(), idRows(chunk)); err != nil {
			return err
		}
	}
	return nil
}

// mark marks jobs with the revision. Their accounts begin now if begin.
func (tx *recordTx) mark(ids []int64, begin bool) error {
	for chunk := range slices.Chunk(ids, changeChunk) {
		if err := tx.exec(markJobs, tx.revision, tx.now.UnixMicro(), begin, idRows(chunk)); err != nil {
			return err
		}
	}
	return nil
}

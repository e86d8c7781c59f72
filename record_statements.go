package smallben

import (
	"cmp"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nbena/smallben/internal/sqltx"
)

// records runs statements of the record on a connection or in a transaction.
type records struct {
	*sqltx.Tx
	now time.Time // in a transaction: when it began, by the database
}

func (r *RepositoryGorm) recordsOn(tx *sqltx.Tx) (*records, error) {
	if tx.Kind() == sqltx.Portable {
		return nil, fmt.Errorf("the record of runs needs PostgreSQL or SQLite, not %s", r.db.Dialect())
	}
	return &records{Tx: tx, now: tx.Now()}, nil
}

func rowsArg(fields string, values [][]any) sqltx.Rows {
	return sqltx.Rows{Fields: fields, Values: values}
}

func idRows(ids []int64) sqltx.Rows {
	values := make([][]any, len(ids))
	for i, id := range ids {
		values[i] = []any{id}
	}
	return rowsArg(idFields, values)
}

func (s *records) exec(text string, args ...any) error { return s.Exec(s.words(text), args...) }

func (s *records) row(text string, args []any, dest ...any) error {
	return s.Row(s.words(text), args, dest...)
}

func (s *records) each(text string, args []any, scan func(rows *sql.Rows) error) error {
	return s.Each(s.words(text), args, scan)
}

// words puts in the columns that are read from each database in its own way.
func (s *records) words(text string) string {
	if s.Kind() == sqltx.SQLite {
		return sqliteColumns.Replace(text)
	}
	return postgresColumns.Replace(text)
}

// shareable is an error if processes cannot share the database.
func (s *records) shareable() error {
	if s.Kind() != sqltx.SQLite {
		return nil
	}
	var mode string
	if err := s.Row("PRAGMA journal_mode", nil, &mode); err != nil {
		return err
	}
	if mode != "wal" && mode != "memory" {
		return errors.New("the journal mode is " + strconv.Quote(mode) + ": processes can share a SQLite database in WAL mode only, for mattn's driver sqlite.Open(\"file:jobs.db?_journal_mode=WAL\")")
	}
	return nil
}

// runs returns the runs of a query.
func (s *records) runs(text string, args ...any) ([]Run, error) {
	runs := []Run{}
	err := s.each(text, args, func(rows *sql.Rows) error {
		run, err := scanRun(rows)
		runs = append(runs, run)
		return err
	})
	return runs, err
}

// keys returns the keys of a query.
func (s *records) keys(text string, args ...any) (map[runID]bool, error) {
	keys := make(map[runID]bool)
	err := s.each(text, args, func(rows *sql.Rows) error {
		key, err := scanKey(rows)
		keys[key] = true
		return err
	})
	return keys, err
}

// registered reports whether the process is, and with a lock keeps it so to the end
// of the transaction.
func (s *records) registered(process, lock string) (bool, error) {
	var found bool
	err := s.row("SELECT true FROM {job_processes} WHERE process = $1 "+lock, []any{process}, &found)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return found, err
}

// claim claims what these indexes name, and returns those that are added and
// want a running key.
func (s *records) claim(process string, claims []Claim, indexes []int, results []ClaimResult) (exclusive []int, err error) {
	values := func(indexes []int) sqltx.Rows {
		values := make([][]any, len(indexes))
		for i, n := range indexes {
			c := &claims[n]
			values[i] = append(keyValues(&c.RunKey), c.GroupID, c.SuperGroupID, c.Revision, c.Exclusive, n)
		}
		return rowsArg(claimFields, values)
	}
	rest := indexes
	try := func(text string) error {
		added, err := s.keys(text, process, s.now.UnixMicro(), values(rest))
		var others []int
		for _, n := range rest {
			switch c := &claims[n]; {
			case !added[idOf(&c.RunKey)]:
				others = append(others, n)
				continue
			case c.Exclusive:
				exclusive = append(exclusive, n)
			}
			results[n] = ClaimWon
		}
		rest = others
		return err
	}
	if err := try(claimRuns); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(rest, func(n int) bool { return claims[n].Triggered }) {
		if err := try(claimUnmarked); err != nil {
			return nil, err
		}
	}
	if len(rest) == 0 {
		return exclusive, nil
	}
	return exclusive, s.each(judgeClaims, []any{process, s.now.UnixMicro(), values(rest)}, func(rows *sql.Rows) error {
		var n, result int
		err := rows.Scan(&n, &result)
		if err == nil {
			results[n] = ClaimResult(result)
		}
		return err
	})
}

// takeRunningKeys takes the running keys for claims that are won, and makes those
// skipped that get none.
func (s *records) takeRunningKeys(process string, claims []Claim, indexes []int, results []ClaimResult) error {
	values := make([][]any, len(indexes))
	for i, n := range indexes {
		values[i] = keyValues(&claims[n].RunKey)
	}
	taken, err := s.keys(takeRunningKeys, process, rowsArg(keyFields, values))
	if err != nil {
		return err
	}
	var skipped [][]any
	for i, n := range indexes {
		if !taken[idOf(&claims[n].RunKey)] {
			results[n] = ClaimSkipped
			skipped = append(skipped, values[i])
		}
	}
	if len(skipped) == 0 {
		return nil
	}
	return s.exec(skipRuns, s.now.UnixMicro(), rowsArg(keyFields, skipped))
}

func (s *records) finish(process string, runs []FinishedRun) error {
	var ended, exclusive, unclaimed [][]any
	for i := range runs {
		run := &runs[i]
		key, text := keyValues(&run.RunKey), storedText(run.Error)
		ended = append(ended, append(slices.Clip(key), micros(run.Start), micros(run.End), string(run.Outcome), text))
		if run.Exclusive {
			exclusive = append(exclusive, key)
		}
		if run.Unclaimed {
			unclaimed = append(unclaimed, runValues(&Run{RunKey: run.RunKey, GroupID: run.GroupID, SuperGroupID: run.SuperGroupID, Process: process,
				Start: run.Start, End: run.End, Outcome: run.Outcome, Error: text, Exclusive: run.Exclusive}))
		}
	}
	if err := s.exec(finishRuns, process, rowsArg(keyFields+", started_at bigint, ended_at bigint, outcome text, error text", ended)); err != nil {
		return err
	}
	if len(exclusive) > 0 {
		if err := s.exec(freeRunningKeys, process, rowsArg(keyFields, exclusive)); err != nil {
			return err
		}
	}
	if len(unclaimed) == 0 {
		return nil
	}
	return s.exec(addUnclaimedRuns, rowsArg(runFields, unclaimed))
}

// runID is a RunKey that can be compared.
type runID struct {
	jobID, tick int64
	triggered   bool
	attempt     int
}

func idOf(key *RunKey) runID {
	return runID{key.JobID, key.Tick.UnixMicro(), key.Triggered, key.Attempt}
}

func (id runID) values() []any { return []any{id.jobID, id.tick, id.triggered, id.attempt} }

func keyValues(key *RunKey) []any { return idOf(key).values() }

func compareKeys(a, b *RunKey) int {
	return cmp.Or(cmp.Compare(a.JobID, b.JobID), cmp.Compare(a.Tick.UnixMicro(), b.Tick.UnixMicro()),
		compareBools(a.Triggered, b.Triggered), cmp.Compare(a.Attempt, b.Attempt))
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// runValues are in the order of runColumns.
func runValues(run *Run) []any {
	return append(keyValues(&run.RunKey), run.GroupID, run.SuperGroupID, run.Process, string(run.Outcome),
		micros(run.Start), micros(run.End), run.Error, run.Missed, micros(run.FirstTick), run.Exclusive)
}

// scanRun reads a run in the order of runColumns, after the columns of before.
func scanRun(rows *sql.Rows, before ...any) (run Run, err error) {
	var tick int64
	var start, end, first *int64
	err = rows.Scan(append(before, &run.JobID, &tick, &run.Triggered, &run.Attempt, &run.GroupID, &run.SuperGroupID, &run.Process, &run.Outcome,
		&start, &end, &run.Error, &run.Missed, &first, &run.Exclusive)...)
	run.Tick = time.UnixMicro(tick).UTC()
	run.Start, run.End, run.FirstTick = instant(start), instant(end), instant(first)
	return run, err
}

func scanKey(rows *sql.Rows) (id runID, err error) {
	err = rows.Scan(&id.jobID, &id.tick, &id.triggered, &id.attempt)
	return id, err
}

// micros is how the record stores a time; the zero time is NULL.
func micros(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

func instant(micros *int64) time.Time {
	if micros == nil {
		return time.Time{}
	}
	return time.UnixMicro(*micros).UTC()
}

// databaseTime is the time of the database, or, if it gives none, ours.
func databaseTime(micros *int64) time.Time {
	if micros == nil {
		return time.Now().UTC().Truncate(time.Microsecond)
	}
	return instant(micros)
}

// storedText is text without what a database refuses.
func storedText(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

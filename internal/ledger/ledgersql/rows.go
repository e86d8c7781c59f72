package ledgersql

import (
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/sqltx"
)

// statements runs statements of the record in a transaction or on a connection.
type statements struct{ *sqltx.Tx }

func (s statements) exec(text string, args ...any) error { return s.Exec(s.words(text), args...) }

func (s statements) row(text string, args []any, dest ...any) error {
	return s.Row(s.words(text), args, dest...)
}

func (s statements) each(text string, args []any, scan func(rows *sql.Rows) error) error {
	return s.Each(s.words(text), args, scan)
}

func (s statements) words(text string) string { return words[s.Kind()].Replace(text) }

// execEach runs a statement for values, limit of them at a time. They are its last
// parameter.
func (s statements) execEach(text string, args []any, limit int, fields string, values [][]any) error {
	for chunk := range slices.Chunk(values, limit) {
		if err := s.exec(text, append(slices.Clip(args), rowsOf(fields, chunk))...); err != nil {
			return err
		}
	}
	return nil
}

// execKeys is execEach for keys of runs, and execJobs for ids of jobs.
func (s statements) execKeys(text string, keys [][]any, args ...any) error {
	return s.execEach(text, args, runChunk, keyFields, keys)
}

func (s statements) execJobs(text string, ids []int64, args ...any) error {
	for _, jobs := range chunksOf(ids) {
		if err := s.exec(text, append(slices.Clip(args), jobs)...); err != nil {
			return err
		}
	}
	return nil
}

// collect returns what scan reads of each row of a query.
func collect[T any](on statements, text string, args []any, scan func(rows *sql.Rows) (T, error)) ([]T, error) {
	all := []T{}
	err := on.each(text, args, func(rows *sql.Rows) error {
		value, err := scan(rows)
		all = append(all, value)
		return err
	})
	return all, err
}

// runs returns the runs of a query.
func (s statements) runs(text string, args ...any) ([]ledger.Run, error) {
	return collect(s, text, args, scanRun)
}

// keys returns the keys of a query.
func (s statements) keys(text string, args ...any) (map[ledger.KeyID]bool, error) {
	return setOf(collect(s, text, args, scanKey))
}

// ids returns the ids of a query.
func (s statements) ids(text string, args ...any) (map[int64]bool, error) {
	return setOf(collect(s, text, args, scanNumber[int64]))
}

func setOf[T comparable](values []T, err error) (map[T]bool, error) {
	set := make(map[T]bool, len(values))
	for _, value := range values {
		set[value] = true
	}
	return set, err
}

// indexes returns the indexes of the keys that a query gives.
func (s statements) indexes(text string, keys []ledger.Key) (found []int, err error) {
	values := make([][]any, len(keys))
	for i := range keys {
		values[i] = append(keyValues(&keys[i]), i)
	}
	for chunk := range slices.Chunk(values, runChunk) {
		more, err := collect(s, text, []any{rowsOf(keyFields+", n bigint", chunk)}, scanNumber[int])
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// registered reports whether the process is, and with a lock keeps it so to the end of
// the transaction.
func (s statements) registered(process, lock string) (bool, error) {
	var found bool
	err := s.row("SELECT true FROM {smallben_processes} WHERE process = $1 "+lock, []any{process}, &found)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return found, err
}

func (s *Store) watermarks(on statements, jobs sqltx.Rows) ([]ledger.Watermark, error) {
	return collect(on, readWatermarks, []any{jobs}, func(rows *sql.Rows) (mark ledger.Watermark, err error) {
		var until int64
		var created any
		var paused int
		err = rows.Scan(&mark.JobID, &until, &mark.Revision, &created, &paused, &mark.Busy)
		mark.Until, mark.CreatedAt, mark.Paused = time.UnixMicro(until).UTC(), s.options.CreatedAt(created), paused == 1
		return mark, err
	})
}

func keyValues(key *ledger.Key) []any { return idValues(key.ID()) }

func idValues(id ledger.KeyID) []any { return []any{id.JobID, id.Tick, id.Triggered, id.Attempt} }

// runValues are in the order of runColumns.
func runValues(run *ledger.Run) []any {
	return append(keyValues(&run.Key), run.GroupID, run.SuperGroupID, run.Process, string(run.Outcome),
		micros(run.Start), micros(run.End), storedText(run.Error), run.Missed, micros(run.FirstTick), run.Exclusive, micros(run.Due))
}

// scanRun reads a run in the order of runColumns.
func scanRun(rows *sql.Rows) (run ledger.Run, err error) {
	var tick int64
	var start, end, first, due *int64
	err = rows.Scan(&run.JobID, &tick, &run.Triggered, &run.Attempt, &run.GroupID, &run.SuperGroupID, &run.Process, &run.Outcome,
		&start, &end, &run.Error, &run.Missed, &first, &run.Exclusive, &due)
	run.Tick = time.UnixMicro(tick).UTC()
	run.Start, run.End, run.FirstTick, run.Due = instant(start), instant(end), instant(first), instant(due)
	return run, err
}

func scanKey(rows *sql.Rows) (id ledger.KeyID, err error) {
	err = rows.Scan(&id.JobID, &id.Tick, &id.Triggered, &id.Attempt)
	return id, err
}

func scanNumber[T int | int64](rows *sql.Rows) (n T, err error) {
	err = rows.Scan(&n)
	return n, err
}

func rowsOf(fields string, values [][]any) sqltx.Rows {
	return sqltx.Rows{Fields: fields, Values: values}
}

func idRows(ids []int64) sqltx.Rows {
	values := make([][]any, len(ids))
	for i, id := range ids {
		values[i] = []any{id}
	}
	return rowsOf(idFields, values)
}

// chunksOf cuts ids, sorted and each once, into rows of statements.
func chunksOf(ids []int64) (chunks []sqltx.Rows) {
	for chunk := range slices.Chunk(unique(ids), jobChunk) {
		chunks = append(chunks, idRows(chunk))
	}
	return chunks
}

// unique gives ids sorted and each once.
func unique(ids []int64) []int64 {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	return slices.Compact(ids)
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

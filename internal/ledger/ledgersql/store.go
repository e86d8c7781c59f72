// Package ledgersql keeps the record of runs in a database that package sqltx opened.
// It knows PostgreSQL and SQLite. Of the table of jobs, {jobs}, it reads the columns
// id, group_id, super_group_id, cron_expression, paused, created_at and updated_at.
package ledgersql

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/sqltx"
)

const (
	runChunk   = 2000             // claims and ends of one statement
	jobChunk   = 10_000           // jobs of one statement
	claimLimit = 5 * time.Second  // of a call of Claim, where connections break
	claimQueue = 10 * time.Second // of one on SQLite, where writers queue
	beatLimit  = 6 * time.Second  // of a heartbeat, where connections break
)

// Options say how a Store reads and makes tables.
type Options struct {
	// SkipMigration leaves it to the user to create tables.
	SkipMigration bool
	// CreatedAt reads the column created_at as the driver gives it.
	CreatedAt func(value any) time.Time
}

// Store is a ledger.Store. New makes one, and it is safe for concurrent use.
type Store struct {
	db      *sqltx.DB // whose calls do not wait for a pool that is used up
	options Options
	pooled  *sqltx.DB      // for what users read, of which there may be much at a time
	reserve *sqltx.Reserve // of db
	beats   *sqltx.Reserve // of heartbeats, which wait for nobody

	mu sync.Mutex // guards pruned, for moments
	// pruned is the tick at which the next Prune goes on.
	pruned int64
}

var _ ledger.Store = (*Store)(nil)

// New makes a store. It does no I/O.
func New(db *sqltx.DB, options Options) *Store {
	reserve := db.Reserve()
	return &Store{db: db.Using(reserve), pooled: db, options: options, reserve: reserve, beats: db.ReserveFirst(), pruned: math.MinInt64}
}

// DB is the database as the changes of jobs use it: they do not wait for a pool that is
// used up, either, for those of other processes wait for them.
func (s *Store) DB() *sqltx.DB { return s.db }

// Open implements ledger.Store. It creates the tables of the record that are missing,
// unless SkipMigration is set.
func (s *Store) Open(location string) error {
	const op = "open record"
	if err := s.migrate(op); err != nil {
		return err
	}
	var stored string
	read := func(on statements) error {
		return on.row("SELECT location FROM {smallben_ledger}", nil, &stored)
	}
	err := s.write(op, func(on statements) error {
		err := on.exec("INSERT INTO {smallben_ledger} (id, revision, tokens, location, leader) VALUES (1, 0, '', $1, '') ON CONFLICT DO NOTHING", location)
		if err != nil {
			return err
		}
		return read(on)
	}, func(on statements) (bool, error) {
		err := read(on)
		if errors.Is(err, sql.ErrNoRows) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	if stored != location {
		return fmt.Errorf("open record: its location is %q, not %q", stored, location)
	}
	return s.Compare()
}

// migrate makes sure that the tables of the record are there with their columns.
func (s *Store) migrate(op string) error {
	if err := s.read(op, shareable); err != nil {
		return err
	}
	ctx, cancel := s.db.Context()
	defer cancel()
	if s.options.SkipMigration {
		return s.db.Migrate(ctx, op, Tables, nil)
	}
	return s.db.Migrate(ctx, op, Tables, func(tx *sqltx.Tx) error {
		for _, statement := range Schema {
			if err := tx.Exec(statement); err != nil {
				return err
			}
		}
		return nil
	})
}

// shareable is an error if processes cannot share the database.
func shareable(on statements) error {
	if on.Kind() != sqltx.SQLite {
		return nil
	}
	// Until it reads, a connection has the mode in which it read last.
	if _, err := on.Exists(Tables[0].Name); err != nil {
		return err
	}
	var mode string
	if err := on.Row("PRAGMA journal_mode", nil, &mode); err != nil {
		return err
	}
	if mode != "wal" && mode != "memory" {
		return errors.New("the journal mode is " + strconv.Quote(mode) + ": processes can share a SQLite database in WAL mode only, for mattn's driver sqlite.Open(\"file:jobs.db?_journal_mode=WAL\")")
	}
	return nil
}

// Unclaimed implements ledger.Store. It needs no transaction: each look of each process
// would open one.
func (s *Store) Unclaimed(keys []ledger.Key) (unclaimed []int, err error) {
	const op = "look at ticks"
	if err := s.supported(op); err != nil {
		return nil, err
	}
	ctx, cancel := s.db.Context()
	defer cancel()
	err = s.db.Failed(op, s.db.Look(ctx, func(tx *sqltx.Tx) (err error) {
		unclaimed, err = statements{tx}.indexes(unclaimedKeys, keys)
		return err
	}))
	return unclaimed, err
}

// Waiting implements ledger.Store.
func (s *Store) Waiting(after *ledger.Run, limit int) (runs []ledger.Run, err error) {
	args := []any{int64(math.MinInt64), int64(math.MinInt64), int64(math.MinInt64), false, 0, limit}
	if after != nil {
		args = append(append([]any{after.Due.UnixMicro()}, keyValues(&after.Key)...), limit)
	}
	err = s.read("read waiting runs", func(on statements) error {
		runs, err = on.runs(waitingRuns, args...)
		return err
	})
	return runs, err
}

// CancelRuns implements ledger.Store.
func (s *Store) CancelRuns(query ledger.Query, abandonAfter time.Duration) error {
	return s.write("cancel runs", func(on statements) error {
		var abandon any
		if abandonAfter > 0 {
			abandon = on.Now().Add(abandonAfter).UnixMicro()
		}
		text, args := cancelRuns, []any{on.Now().UnixMicro(), abandon}
		where, args := amongIDs(on, query, args)
		for _, condition := range where {
			text += " AND " + condition
		}
		return on.exec(text, args...)
	}, func(statements) (bool, error) { return true, nil }) // nobody can tell, and it does no harm twice
}

// Canceled implements ledger.Store.
func (s *Store) Canceled(process string) (runs []ledger.Cancellation, err error) {
	err = s.read("read canceled runs", func(on statements) error {
		runs, err = collect(on, canceledRuns, []any{process}, func(rows *sql.Rows) (run ledger.Cancellation, err error) {
			var tick int64
			var abandon *int64
			err = rows.Scan(&run.JobID, &tick, &run.Triggered, &run.Attempt, &abandon)
			run.Tick, run.Abandon = time.UnixMicro(tick).UTC(), instant(abandon)
			return run, err
		})
		return err
	})
	return runs, err
}

// Change implements ledger.Store.
func (s *Store) Change(change func(tx ledger.Tx) error) (int64, error) {
	return s.ChangeSQL("change the record", nil, func(tx *Tx) error { return change(tx) })
}

// ChangeSQL is Change for those who run statements of their own in the transaction. Lock,
// if it is not nil, comes first: while it waits, other changes go on. It is called again,
// not to wait, once the change has the record to itself: a row that came in between may
// be locked by a change that waits for the record. Then both start over.
func (s *Store) ChangeSQL(op string, lock func(tx *sqltx.Tx, wait bool) error, change func(tx *Tx) error) (revision int64, err error) {
	if err := s.supported(op); err != nil {
		return 0, err
	}
	if lock == nil {
		lock = func(*sqltx.Tx, bool) error { return nil }
	}
	ctx, cancel := s.db.Context()
	defer cancel()
	for {
		var again bool
		if revision, again, err = s.changeOnce(ctx, op, lock, change); !again || ctx.Err() != nil {
			return revision, err
		}
	}
}

// changeOnce is ChangeSQL. If it returns again, nothing has happened, and change was not
// called.
func (s *Store) changeOnce(ctx context.Context, op string, lock func(tx *sqltx.Tx, wait bool) error, change func(tx *Tx) error) (revision int64, again bool, err error) {
	var failure error
	token := rand.Text()[:tokenLength]
	err = s.writer().WriteOnce(ctx, op, func(tx *sqltx.Tx) error {
		on := statements{tx}
		if err := lock(tx, true); err != nil {
			return err
		}
		// From here on this change has the record to itself.
		var now *int64
		err := on.row("UPDATE {smallben_ledger} SET revision = revision + 1, tokens = substr(CAST($1 AS text) || tokens, 1, CAST($2 AS int)) RETURNING revision, {clock}",
			[]any{token, tokensKept * tokenLength}, &revision, &now)
		if err != nil {
			return err
		}
		if err := lock(tx, false); err != nil {
			again = sqltx.IsLocked(err)
			return err
		}
		failure = change(&Tx{statements: on, store: s, revision: revision, now: databaseTime(now)})
		return failure
	}, func(tx *sqltx.Tx) (bool, error) { return changed(statements{tx}, token, revision) })
	switch {
	case failure != nil:
		return 0, false, failure
	case err != nil:
		return 0, again, err
	}
	return revision, false, nil
}

// The record holds a token of each of the last Changes, so that one can tell whether
// its COMMIT happened or whether another has its revision.
const (
	tokenLength = 12
	tokensKept  = 20
)

func changed(on statements, token string, revision int64) (bool, error) {
	var latest int64
	var tokens string
	if err := on.row("SELECT revision, tokens FROM {smallben_ledger}", nil, &latest, &tokens); err != nil {
		return false, err
	}
	for chunk := range slices.Chunk([]byte(tokens), tokenLength) {
		if string(chunk) == token {
			return true, nil
		}
	}
	if latest-revision >= tokensKept {
		return false, sqltx.ErrCannotTell
	}
	return false, nil
}

// Watermarks implements ledger.Store.
func (s *Store) Watermarks(jobIDs []int64) (marks []ledger.Watermark, err error) {
	err = s.read("read watermarks", func(on statements) error {
		marks = nil
		for _, jobs := range chunksOf(jobIDs) {
			more, err := s.watermarks(on, jobs)
			if err != nil {
				return err
			}
			marks = append(marks, more...)
		}
		return nil
	})
	return marks, err
}

// Closed implements ledger.Store.
func (s *Store) Closed(limit int) (spans []ledger.ClosedSpan, err error) {
	err = s.read("read closed spans", func(on statements) error {
		spans, err = collect(on, readClosed, []any{limit}, func(rows *sql.Rows) (span ledger.ClosedSpan, err error) {
			var created any
			var since, until int64
			err = rows.Scan(&span.JobID, &span.Revision, &created, &span.Expression, &span.GroupID, &span.SuperGroupID, &since, &until, &span.MakeUp)
			span.CreatedAt, span.After, span.Until = s.options.CreatedAt(created), time.UnixMicro(since).UTC(), time.UnixMicro(until).UTC()
			return span, err
		})
		return err
	})
	return spans, err
}

// Compare implements ledger.Store.
func (s *Store) Compare() error {
	const op = "compare states"
	var differ bool
	err := s.read(op, func(on statements) error { return on.row(countDifferences, nil, &differ) })
	if err != nil || !differ {
		return err
	}
	_, err = s.ChangeSQL(op, nil, func(tx *Tx) error {
		if err := tx.exec(compareStates, tx.revision, tx.now.UnixMicro()); err != nil {
			return err
		}
		return tx.exec(deleteRowless, tx.revision, tx.now.UnixMicro())
	})
	return err
}

// write runs body in one transaction, again if PostgreSQL ended it for a deadlock. See
// sqltx.DB.Write for took.
func (s *Store) write(op string, body func(on statements) error, took func(on statements) (bool, error)) error {
	if err := s.supported(op); err != nil {
		return err
	}
	ctx, cancel := s.db.Context()
	defer cancel()
	return s.writer().Write(ctx, op, func(tx *sqltx.Tx) error { return body(statements{tx}) },
		func(tx *sqltx.Tx) (bool, error) { return took(statements{tx}) })
}

// writer is the database whose statements take the rows that they are given one after
// another, by the indexes. A CASE in a condition keeps it from having an influence on
// that.
func (s *Store) writer() *sqltx.DB {
	return s.db.WithSettings("enable_seqscan", "off", "enable_bitmapscan", "off", "enable_hashjoin", "off", "enable_mergejoin", "off")
}

// read calls use with a transaction to read in.
func (s *Store) read(op string, use func(on statements) error) error {
	if err := s.supported(op); err != nil {
		return err
	}
	ctx, cancel := s.db.Context()
	defer cancel()
	return s.db.Failed(op, s.db.Read(ctx, func(tx *sqltx.Tx) error { return use(statements{tx}) }))
}

// readForUsers is read for what users ask for.
func (s *Store) readForUsers(op string, use func(on statements) error) error {
	return s.over(s.pooled).read(op, use)
}

// supported is an error if there are no statements for the database.
func (s *Store) supported(op string) error {
	if s.db.Kind() == sqltx.Portable {
		return fmt.Errorf("%s: the record of runs needs PostgreSQL or SQLite, not %s", op, s.db.Dialect())
	}
	return nil
}

// WithContext is the store whose calls end with ctx.
func (s *Store) WithContext(ctx context.Context) *Store {
	return &Store{db: s.db.WithContext(ctx), pooled: s.pooled.WithContext(ctx), reserve: s.reserve, beats: s.beats, options: s.options}
}

// over is the store over another view of its database, without what is kept for it.
func (s *Store) over(db *sqltx.DB) *Store { return &Store{db: db, options: s.options} }

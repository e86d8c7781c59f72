package sqltx_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/nbena/smallben/internal/sqltx"
)

func TestMain(m *testing.M) {
	code := m.Run()
	pgtest.Stop()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// open opens a database of the test's own. Options say all but what it is.
func open(t testing.TB, dialector gorm.Dialector, options sqltx.Options) *sqltx.DB {
	t.Helper()
	options.Dialector = dialector
	options.Tables, options.Indexes = []sqltx.Table{{Name: "things"}}, []string{"things_name_idx"}
	db, err := sqltx.Open(t.Context(), "open", options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// each runs a test on SQLite and on PostgreSQL, with an empty table of things.
func each(t *testing.T, options sqltx.Options, test func(t *testing.T, db *sqltx.DB)) {
	t.Helper()
	t.Parallel()
	for name, dialector := range map[string]func(t *testing.T) gorm.Dialector{
		"SQLite":     func(t *testing.T) gorm.Dialector { return sqlite.Open(filepath.Join(t.TempDir(), "things.db")) },
		"PostgreSQL": func(t *testing.T) gorm.Dialector { return postgres.Open(pgtest.DSN(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t, dialector(t), options)
			write(t, db, func(tx *sqltx.Tx) error {
				return tx.Exec("CREATE TABLE {things} (id bigint PRIMARY KEY, name text, flag boolean)")
			})
			test(t, db)
		})
	}
}

func never(*sqltx.Tx) (bool, error) { return false, errors.New("nobody should ask") }

func write(t testing.TB, db *sqltx.DB, body func(tx *sqltx.Tx) error) {
	t.Helper()
	ctx, cancel := db.Context()
	defer cancel()
	require.NoError(t, db.Write(ctx, "write", body, never))
}

// count returns how many things there are.
func count(t testing.TB, db *sqltx.DB) (n int) {
	t.Helper()
	require.NoError(t, db.Attempt(t.Context(), func(tx *sqltx.Tx) error { return tx.Row("SELECT count(*) FROM {things}", nil, &n) }))
	return n
}

func add(id int64) func(tx *sqltx.Tx) error {
	return func(tx *sqltx.Tx) error { return tx.Exec("INSERT INTO {things} (id) VALUES ($1)", id) }
}

func TestRowsAreParametersOfAnyNumber(t *testing.T) {
	each(t, sqltx.Options{}, func(t *testing.T, db *sqltx.DB) {
		text := `{"quoted", \back\slash}, NULL, naïve – ✓` + "\n"
		values := [][]any{{int64(math.MinInt64), text, true}, {int64(math.MaxInt64), nil, false}, {7, &text, nil}, {int64(1<<53 + 1), "", true}}
		rows := sqltx.Rows{Fields: "id bigint, name text, flag boolean", Values: values}
		for _, some := range []sqltx.Rows{rows, {Fields: rows.Fields, Values: nil}} {
			write(t, db, func(tx *sqltx.Tx) error {
				return tx.Exec("INSERT INTO {things} SELECT v.id, v.name, v.flag FROM {rows}", some)
			})
		}
		var got [][]any
		err := db.Read(t.Context(), func(tx *sqltx.Tx) error {
			text := "SELECT id, name, flag FROM {things} WHERE name IS NOT $1 AND " + tx.Kind().Among("id", 2) + " ORDER BY id"
			if tx.Kind() == sqltx.Postgres {
				text = "SELECT id, name, flag FROM {things} WHERE name IS DISTINCT FROM $1 AND " + tx.Kind().Among("id", 2) + " ORDER BY id"
			}
			return tx.Each(text, []any{"other", sqltx.IDs{7, math.MinInt64, math.MaxInt64, 1<<53 + 1, 99}}, func(rows *sql.Rows) error {
				var id int64
				var name *string
				var flag *bool
				err := rows.Scan(&id, &name, &flag)
				got = append(got, []any{id, name, flag})
				return err
			})
		})
		require.NoError(t, err)
		yes, no, empty := true, false, ""
		require.Equal(t, [][]any{
			{int64(math.MinInt64), &text, &yes}, {int64(7), &text, (*bool)(nil)}, {int64(1<<53 + 1), &empty, &yes}, {int64(math.MaxInt64), (*string)(nil), &no},
		}, got)
	})
}

func TestTheLocksOfRowsAreLeftOutWhereThereAreNone(t *testing.T) {
	each(t, sqltx.Options{}, func(t *testing.T, db *sqltx.DB) {
		write(t, db, func(tx *sqltx.Tx) error {
			for _, lock := range []string{"UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"} {
				for _, of := range []string{"", " OF t", " OF other"} {
					for _, wait := range []string{"", " SKIP LOCKED", " NOWAIT"} {
						err := tx.Exec("SELECT t.id FROM {things} t JOIN {things} other ON other.id = t.id WHERE t.id = 1 FOR " + lock + of + wait)
						if err != nil {
							return err
						}
					}
				}
			}
			return nil
		})
	})
}

func TestAWriteHappensAsAWholeOrNotAtAll(t *testing.T) {
	each(t, sqltx.Options{}, func(t *testing.T, db *sqltx.DB) {
		refused := errors.New("refused")
		err := db.Write(t.Context(), "add", func(tx *sqltx.Tx) error { return errors.Join(add(1)(tx), refused) }, never)
		require.ErrorIs(t, err, refused)
		require.NotErrorIs(t, err, sqltx.ErrOutcomeUnknown)
		require.Zero(t, count(t, db))
	})
}

func TestAWriteWithinATransactionIsASavepoint(t *testing.T) {
	each(t, sqltx.Options{}, func(t *testing.T, db *sqltx.DB) {
		write(t, db, func(tx *sqltx.Tx) error {
			inside := db.In(tx)
			require.NoError(t, inside.Write(t.Context(), "add", add(1), never))
			require.Error(t, inside.Write(t.Context(), "add", func(tx *sqltx.Tx) error { return errors.Join(add(2)(tx), add(1)(tx)) }, never))
			require.Equal(t, 1, count(t, inside))
			return nil
		})
		require.Equal(t, 1, count(t, db))
	})
}

// On SQLite a transaction that has begun with a look cannot write any more once another
// process has.
func TestATransactionThatBeginsWithALookIsAloneFromThereOn(t *testing.T) {
	t.Parallel()
	look := func(tx *gorm.DB) (n int, err error) { return n, tx.Raw("SELECT id FROM things").Scan(&n).Error }
	set := func(tx *gorm.DB, n int) error { return tx.Exec("UPDATE things SET id = ?", n).Error }
	for name, c := range map[string]struct {
		options sqltx.Options
		within  func(db *sqltx.DB, file string, use func(tx *sqltx.Tx) error) error
	}{
		"a write": {sqltx.Options{}, func(db *sqltx.DB, _ string, use func(tx *sqltx.Tx) error) error {
			return db.Write(t.Context(), "write", use, never)
		}},
		"a write with portable statements": {sqltx.Options{Portable: true}, func(db *sqltx.DB, _ string, use func(tx *sqltx.Tx) error) error {
			return db.Write(t.Context(), "write", use, never)
		}},
		"a transaction of the application": {sqltx.Options{}, func(db *sqltx.DB, file string, use func(tx *sqltx.Tx) error) error {
			app, err := gorm.Open(sqlite.Open(file), &gorm.Config{Logger: logger.Discard})
			if err != nil {
				return err
			}
			pool, err := app.DB()
			if err != nil {
				return err
			}
			defer pool.Close()
			return app.Transaction(func(tx *gorm.DB) error {
				borrowed, err := db.Borrow(t.Context(), tx)
				if err != nil {
					return err
				}
				return use(borrowed.Tx)
			})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := "file:" + filepath.Join(t.TempDir(), "things.db") + "?_journal_mode=WAL"
			db, other := open(t, sqlite.Open(file), c.options), open(t, sqlite.Open(file), c.options)
			write(t, db, func(tx *sqltx.Tx) error {
				return tx.Gorm().Exec("CREATE TABLE things (id bigint)").Exec("INSERT INTO things VALUES (0)").Error
			})
			err := c.within(db, file, func(tx *sqltx.Tx) error {
				n, err := look(tx.Gorm())
				if err != nil {
					return err
				}
				hasty, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				assert.Error(t, other.Write(hasty, "write", func(tx *sqltx.Tx) error { return set(tx.Gorm(), 100) }, never), "it waits")
				return set(tx.Gorm(), n+1)
			})
			require.NoError(t, err)
			require.NoError(t, other.Attempt(t.Context(), func(tx *sqltx.Tx) error {
				n, err := look(tx.Gorm())
				assert.Equal(t, 1, n)
				return err
			}))
		})
	}
}

// interrupting is a plugin of GORM that ends the context of a query before its rows are
// read, if the context has the way to do so.
type interrupting struct{}

// endOfContext is the key of a context.CancelFunc in a context.
type endOfContext struct{}

func (interrupting) Name() string { return "interrupting" }

func (interrupting) Initialize(db *gorm.DB) error {
	return db.Callback().Row().After("gorm:row").Register("interrupting:row", func(tx *gorm.DB) {
		rows, isRows := tx.Statement.Dest.(*sql.Rows)
		if end, ok := tx.Statement.Context.Value(endOfContext{}).(context.CancelFunc); ok && isRows {
			for end(); rows.Err() == nil; {
				time.Sleep(time.Millisecond)
			}
		}
	})
}

func TestAQueryThatIsInterruptedDoesNotSayThatThereIsNoRow(t *testing.T) {
	options := sqltx.Options{Config: gorm.Config{Plugins: map[string]gorm.Plugin{"interrupting": interrupting{}}}}
	each(t, options, func(t *testing.T, db *sqltx.DB) {
		one := func(ctx context.Context, text string) error {
			return db.Attempt(ctx, func(tx *sqltx.Tx) error { return tx.Row(text, nil, new(int)) })
		}
		require.ErrorIs(t, one(t.Context(), "SELECT 1 WHERE false"), sql.ErrNoRows)
		ctx, cancel := context.WithCancel(t.Context())
		err := one(context.WithValue(ctx, endOfContext{}, cancel), "SELECT 1")
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, sql.ErrNoRows)
	})
}

func TestTheTimeOfAWriteIsTheDatabases(t *testing.T) {
	each(t, sqltx.Options{}, func(t *testing.T, db *sqltx.DB) {
		write(t, db, func(tx *sqltx.Tx) error {
			assert.WithinDuration(t, time.Now(), tx.Now(), time.Minute)
			assert.Equal(t, time.UTC, tx.Now().Location())
			return nil
		})
	})
}

func TestWritersThatWaitForEachOtherBothSucceed(t *testing.T) {
	t.Parallel()
	db := open(t, postgres.Open(pgtest.DSN(t)), sqltx.Options{})
	write(t, db, func(tx *sqltx.Tx) error {
		return errors.Join(tx.Exec("CREATE TABLE {things} (id bigint PRIMARY KEY, name text)"), add(1)(tx), add(2)(tx))
	})
	var both, writers sync.WaitGroup
	both.Add(2)
	bodies := make([]int, 2)
	for i, order := range [][]int64{{1, 2}, {2, 1}} {
		writers.Go(func() {
			err := db.Write(t.Context(), "rename", func(tx *sqltx.Tx) error {
				bodies[i]++
				for n, id := range order {
					if err := tx.Exec("UPDATE {things} SET name = 'new' WHERE id = $1", id); err != nil {
						return err
					}
					if n == 0 && bodies[i] == 1 {
						both.Done()
						both.Wait()
					}
				}
				return nil
			}, never)
			assert.NoError(t, err)
		})
	}
	writers.Wait()
	require.Greater(t, bodies[0]+bodies[1], 2, "one of them again")
}

// eachLossy runs a test on SQLite and on PostgreSQL, over faults, with an empty table of
// things.
func eachLossy(t *testing.T, test func(t *testing.T, db *sqltx.DB, faults *faultsql.Faults)) {
	t.Helper()
	t.Parallel()
	for name, open := range map[string]func(t *testing.T) (*sqltx.DB, *faultsql.Faults){
		"SQLite": func(t *testing.T) (*sqltx.DB, *faultsql.Faults) {
			faults := faultsql.SQLite(filepath.Join(t.TempDir(), "things.db"))
			return open(t, sqlite.New(sqlite.Config{Conn: faults.DB()}), sqltx.Options{Timeout: 10 * time.Second}), faults
		},
		"PostgreSQL": func(t *testing.T) (*sqltx.DB, *faultsql.Faults) {
			faults, err := faultsql.Postgres(pgtest.DSN(t))
			require.NoError(t, err)
			return open(t, postgres.New(postgres.Config{Conn: faults.DB()}), sqltx.Options{Timeout: 10 * time.Second}), faults
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, faults := open(t)
			write(t, db, func(tx *sqltx.Tx) error { return tx.Exec("CREATE TABLE {things} (id bigint PRIMARY KEY)") })
			test(t, db, faults)
		})
	}
}

// A prepared statement may keep a plan of when its tables were empty.
func TestALookIsOneStatementThatIsNotPrepared(t *testing.T) {
	each(t, sqltx.Options{}, func(t *testing.T, db *sqltx.DB) {
		look := func(use func(tx *sqltx.Tx) error) { require.NoError(t, db.Look(t.Context(), use)) }
		for range 7 { // from the sixth on PostgreSQL may choose a plan that it keeps
			look(func(tx *sqltx.Tx) error {
				var n int
				return tx.Row("SELECT count(*) FROM {things} WHERE id = $1 AND 'a look' <> ''", []any{int64(1)}, &n)
			})
		}
		if db.Kind() != sqltx.Postgres {
			return
		}
		require.NoError(t, db.Attempt(t.Context(), func(tx *sqltx.Tx) error {
			var n int
			err := tx.Row("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%''a look''%' AND statement NOT LIKE '%pg_prepared%'", nil, &n)
			require.Zero(t, n)
			return err
		}))
	})
}

func isCommit(op faultsql.Op) bool { return op.Kind == faultsql.Commit }

func TestALostReplyToACommitIsLookedUp(t *testing.T) {
	eachLossy(t, func(t *testing.T, db *sqltx.DB, faults *faultsql.Faults) {
		took := func(tx *sqltx.Tx) (found bool, err error) {
			err = tx.Row("SELECT count(*) > 0 FROM {things}", nil, &found)
			return found, err
		}

		faults.FailWhen(isCommit, faultsql.Fault{Mode: faultsql.Before})
		err := db.Write(t.Context(), "add", add(1), took)
		faults.Heal()
		require.ErrorIs(t, err, faultsql.ErrInjected)
		require.NotErrorIs(t, err, sqltx.ErrOutcomeUnknown)
		require.Zero(t, count(t, db))

		faults.FailWhen(isCommit, faultsql.Fault{Mode: faultsql.After})
		err = db.Write(t.Context(), "add", add(1), took)
		faults.Heal()
		require.NoError(t, err)
		require.Equal(t, 1, count(t, db))
	})
}

func TestAnOutcomeThatTheRowsDoNotTellAnyMoreIsSettled(t *testing.T) {
	eachLossy(t, func(t *testing.T, db *sqltx.DB, faults *faultsql.Faults) {
		faults.FailWhen(isCommit, faultsql.Fault{Mode: faultsql.After})
		err := db.Write(t.Context(), "add", add(1), func(*sqltx.Tx) (bool, error) { return false, fmt.Errorf("look: %w", sqltx.ErrCannotTell) })
		faults.Heal()
		require.ErrorIs(t, err, sqltx.ErrOutcomeUnknown)
		require.ErrorIs(t, err, faultsql.ErrInjected)
		var outcome interface{ Settled() (bool, error) }
		require.ErrorAs(t, err, &outcome)
		settled, err := outcome.Settled()
		require.NoError(t, err)
		require.True(t, settled, "what the database holds is all that can be known")
	})
}

func TestAnOutcomeThatNobodyTellsIsUnknownUntilTheDatabaseAnswers(t *testing.T) {
	t.Parallel()
	faults, err := faultsql.Postgres(pgtest.DSN(t))
	require.NoError(t, err)
	db := open(t, postgres.New(postgres.Config{Conn: faults.DB()}), sqltx.Options{Timeout: 3 * time.Second})
	write(t, db, func(tx *sqltx.Tx) error { return tx.Exec("CREATE TABLE {things} (id bigint PRIMARY KEY)") })
	silent := false
	faults.FailWhen(func(op faultsql.Op) bool {
		silent = silent || op.Kind == faultsql.Commit
		return silent
	}, faultsql.Fault{Mode: faultsql.After})
	ctx, cancel := db.Context()
	defer cancel()
	err = db.Write(ctx, "add", add(1), func(tx *sqltx.Tx) (bool, error) { return true, nil })
	require.ErrorIs(t, err, sqltx.ErrOutcomeUnknown)
	var outcome interface{ Settled() (bool, error) }
	require.ErrorAs(t, err, &outcome)
	_, err = outcome.Settled()
	require.Error(t, err)
	faults.Heal()
	settled, err := outcome.Settled()
	require.NoError(t, err)
	require.True(t, settled)
	require.Equal(t, 1, count(t, db))
}

func TestAReservedConnectionIsGivenUpOnlyWhenItIsDead(t *testing.T) {
	t.Parallel()
	const limit = 3 * time.Second
	db := open(t, postgres.Open(pgtest.DSN(t)), sqltx.Options{})
	reserve := db.ReserveFirst()
	t.Cleanup(reserve.Drain)
	backend := func(then func(tx *sqltx.Tx) error) (pid int, err error) {
		own := db.Using(reserve).Within(limit)
		ctx, cancel := own.Context()
		defer cancel()
		err = own.AttemptInTurn(ctx, func(tx *sqltx.Tx) error {
			return errors.Join(tx.Row("SELECT pg_backend_pid()", nil, &pid), then(tx))
		})
		return pid, err
	}
	nothing := func(*sqltx.Tx) error { return nil }
	first, err := backend(nothing)
	require.NoError(t, err)

	slow, err := backend(func(tx *sqltx.Tx) error { return tx.Exec("SELECT pg_sleep($1)", (limit * 6 / 10).Seconds()) })
	require.NoError(t, err, "a call has its whole time")
	require.Equal(t, first, slow)

	refused := errors.New("refused")
	answered, err := backend(func(*sqltx.Tx) error { return refused })
	require.ErrorIs(t, err, refused)
	require.Equal(t, first, answered)
	next, err := backend(nothing)
	require.NoError(t, err)
	require.Equal(t, first, next, "an answer that is an error")

	var killed bool
	require.NoError(t, db.Attempt(t.Context(), func(tx *sqltx.Tx) error {
		return tx.Row("SELECT pg_terminate_backend($1, 10000)", []any{first}, &killed)
	}))
	require.True(t, killed)
	next, err = backend(nothing)
	require.NoError(t, err)
	require.NotEqual(t, first, next)

	_, err = backend(func(tx *sqltx.Tx) error { return tx.Exec("SELECT pg_sleep(30)") })
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = backend(nothing)
	require.NoError(t, err, "after a call that took too long")
}

func TestReservesLeaveTwoConnectionsForOthers(t *testing.T) {
	t.Parallel()
	nothing := func(*sqltx.Tx) error { return nil }
	for _, c := range []struct{ limit, first, second int }{{0, 1, 0}, {2, 0, 0}, {3, 1, 0}, {4, 1, 1}} {
		t.Run(fmt.Sprint(c.limit), func(t *testing.T) {
			t.Parallel()
			pool, err := sql.Open("pgx", pgtest.DSN(t))
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, pool.Close()) })
			pool.SetMaxOpenConns(c.limit)
			db := open(t, postgres.New(postgres.Config{Conn: pool}), sqltx.Options{})
			first, second := db.ReserveFirst(), db.Reserve()
			for range 2 {
				require.NoError(t, db.Using(first).Attempt(t.Context(), nothing))
				require.Equal(t, c.first, pool.Stats().InUse)
			}
			second.Fill()
			for range 100 * c.second { // it gives up soon where the machine is busy
				if pool.Stats().InUse > c.first {
					break
				}
				second.Fill()
			}
			require.Equal(t, c.first+c.second, pool.Stats().InUse)
			if c.second == 1 {
				var others []*sql.Conn
				for pool.Stats().InUse < c.limit {
					other, err := pool.Conn(t.Context())
					require.NoError(t, err)
					others = append(others, other)
				}
				require.NoError(t, db.Using(second).Attempt(t.Context(), nothing), "though the pool is used up")
				for _, other := range others {
					require.NoError(t, other.Close())
				}
			}
			first.Drain()
			second.Drain()
			require.Zero(t, pool.Stats().InUse)
		})
	}
}

func TestACallOnASilentDatabaseEndsWithItsTimeout(t *testing.T) {
	t.Parallel()
	faults, err := faultsql.Postgres(pgtest.DSN(t))
	require.NoError(t, err)
	db := open(t, postgres.New(postgres.Config{Conn: faults.DB()}), sqltx.Options{Timeout: 300 * time.Millisecond})
	faults.FailWhen(func(faultsql.Op) bool { return true }, faultsql.Fault{Mode: faultsql.Hang})
	t.Cleanup(faults.Heal)
	ctx, cancel := db.Context()
	defer cancel()
	start := time.Now()
	require.ErrorIs(t, db.Write(ctx, "add", add(1), never), context.DeadlineExceeded)
	require.ErrorIs(t, db.Read(ctx, func(tx *sqltx.Tx) error { return add(1)(tx) }), context.DeadlineExceeded)
	require.Less(t, time.Since(start), 20*time.Second, "it would wait for ever")
}

// database/sql ends a transaction whose time is up, and closes its connection, at the
// same time as the call gives that back.
func TestACallWhoseTimeEndsInATransactionLeavesNoSettingsBehind(t *testing.T) {
	t.Parallel()
	const busyTimeout, calls = 1234, 2000
	pool, err := sql.Open("sqlite3", fmt.Sprintf("file:%s?_busy_timeout=%d", filepath.Join(t.TempDir(), "things.db"), busyTimeout))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	db := open(t, sqlite.New(sqlite.Config{Conn: pool}), sqltx.Options{})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for range calls / 4 {
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Microsecond)
				wait := func(*sqltx.Tx) error { <-ctx.Done(); return ctx.Err() }
				assert.ErrorIs(t, db.Write(ctx, "wait", wait, never), context.DeadlineExceeded)
				assert.ErrorIs(t, db.Read(ctx, wait), context.DeadlineExceeded)
				cancel()
			}
		})
	}
	callers.Wait()
	var conns []*sql.Conn
	for range max(1, pool.Stats().OpenConnections) {
		conn, err := pool.Conn(t.Context())
		require.NoError(t, err)
		conns = append(conns, conn)
		var timeout int
		require.NoError(t, conn.QueryRowContext(t.Context(), "PRAGMA busy_timeout").Scan(&timeout))
		assert.Equal(t, busyTimeout, timeout, "the user's setting")
	}
	for _, conn := range conns {
		require.NoError(t, conn.Close())
	}
}

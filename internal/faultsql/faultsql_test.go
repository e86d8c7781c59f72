package faultsql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben/internal/pgtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	pgtest.Stop()
	os.Exit(code)
}

// onBoth runs the test on each database, with a pool over the wrapper, and one
// past it to see what really happened. Table t is empty.
func onBoth(t *testing.T, test func(t *testing.T, f *Faults, db, truth *sql.DB)) {
	for name, open := range map[string]func(*testing.T) *Faults{
		"SQLite": func(t *testing.T) *Faults {
			return SQLite(filepath.Join(t.TempDir(), "a b?.db"), "_busy_timeout=5000", "_journal_mode=WAL")
		},
		"PostgreSQL": func(t *testing.T) *Faults {
			f, err := Postgres(pgtest.DSN(t))
			require.NoError(t, err)
			return f
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			db, truth := f.DB(), sql.OpenDB(f.inner)
			t.Cleanup(func() { require.NoError(t, errors.Join(db.Close(), truth.Close())) })
			_, err := truth.Exec("CREATE TABLE t (n integer)")
			require.NoError(t, err)
			test(t, f, db, truth)
		})
	}
}

// insert does one transaction: connect if need be, begin, exec, commit.
func insert(ctx context.Context, db *sql.DB, n int) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO t VALUES ($1)", n); err != nil {
		tx.Rollback()
		return err
	}
	return tx.Commit()
}

func rows(t *testing.T, db *sql.DB) (count int) {
	t.Helper()
	require.NoError(t, db.QueryRow("SELECT count(*) FROM t").Scan(&count))
	return count
}

func isKind(kind Kind) func(Op) bool { return func(op Op) bool { return op.Kind == kind } }

func TestOperationsAreNumberedCountedAndRecorded(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, f *Faults, db, _ *sql.DB) {
		var seen []string
		f.OnOp(func(op Op) { seen = append(seen, fmt.Sprint(op.N, " ", op.Kind, " ", op.Args)) })
		f.Record(true)
		require.NoError(t, insert(t.Context(), db, 1))
		stmt, err := db.Prepare("SELECT n FROM t WHERE n = $1")
		require.NoError(t, err)
		var n int
		require.NoError(t, stmt.QueryRow(1).Scan(&n))
		require.NoError(t, stmt.Close())
		require.NoError(t, db.Ping())
		tx, err := db.Begin()
		require.NoError(t, err)
		require.NoError(t, tx.Rollback())

		require.Equal(t, []string{"1 connect 0", "2 begin 0", "3 exec 1", "4 commit 0", "5 prepare 0", "6 query 1", "7 ping 0", "8 begin 0", "9 rollback 0"}, seen)
		require.Equal(t, []string{"INSERT INTO t VALUES ($1)", "SELECT n FROM t WHERE n = $1"}, f.Statements())
		require.Equal(t, 9, f.Count())
		require.Equal(t, 3, f.Count(Begin, Exec))
		f.Reset()
		require.Zero(t, f.Count())
		require.Empty(t, f.Statements())
	})
}

func TestASweepReachesEachOperationAndEnds(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, f *Faults, db, truth *sql.DB) {
		for _, mode := range []Mode{Before, After} {
			require.NoError(t, db.Ping()) // a connection is there: begin, exec, commit follow
			for n := 1; ; n++ {
				before := rows(t, truth)
				f.FailNth(n, mode, false)
				err := insert(t.Context(), db, n)
				fired := f.Fired()
				f.Heal()
				committed := rows(t, truth) - before
				if fired == 0 {
					require.Equal(t, 4, n)
					require.NoError(t, err)
					require.Equal(t, 1, committed)
					break
				}
				require.ErrorIs(t, err, ErrInjected)
				if mode == After && n == 3 {
					require.Equal(t, 1, committed, "an error after COMMIT has committed")
				} else {
					require.Zero(t, committed, "operation %d", n)
				}
			}
		}
	})
}

func TestAPersistentFaultLastsUntilItIsHealed(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, f *Faults, db, truth *sql.DB) {
		f.FailNth(3, Before, true) // after connect and ping
		require.NoError(t, db.Ping())
		for range 3 {
			require.ErrorIs(t, db.Ping(), ErrInjected)
		}
		require.Equal(t, 3, f.Fired())
		f.Heal()
		require.NoError(t, db.Ping())
	})
}

func TestALostConnectionIsReplacedWhereTheCallMayBeRepeated(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, f *Faults, db, truth *sql.DB) {
		require.NoError(t, db.Ping())
		f.FailNth(1, BadConn, false)
		require.NoError(t, insert(t.Context(), db, 1)) // at Begin: database/sql tries again

		f.FailNth(2, BadConn, false)
		require.ErrorIs(t, insert(t.Context(), db, 2), driver.ErrBadConn)

		f.FailWhen(isKind(Commit), Fault{Mode: BadConn})
		require.ErrorIs(t, insert(t.Context(), db, 3), driver.ErrBadConn)
		require.Equal(t, 1, rows(t, truth))

		f.FailNth(1, BadConn, true)
		require.ErrorIs(t, db.Ping(), driver.ErrBadConn)
		f.Heal()
		require.NoError(t, insert(t.Context(), db, 4))
	})
}

func TestAHangEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Connect, Begin, Exec, Commit} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, f *Faults, db, truth *sql.DB) {
				hung := make(chan struct{})
				f.OnOp(func(op Op) {
					if op.Kind == kind {
						close(hung)
					}
				})
				f.FailWhen(isKind(kind), Fault{Mode: Hang})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				go func() { done <- insert(ctx, db, 1) }()
				<-hung
				select {
				case err := <-done:
					t.Fatal("did not hang:", err)
				case <-time.After(20 * time.Millisecond):
				}
				cancel()
				require.ErrorIs(t, <-done, context.Canceled)
				f.OnOp(nil)
				f.Heal()
				require.Zero(t, rows(t, truth))
				require.NoError(t, insert(t.Context(), db, 2))
			})
		})
	}
}

func TestACommitThatHangsAfterwardsHasCommitted(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, f *Faults, db, truth *sql.DB) {
		f.FailWhen(isKind(Commit), Fault{Mode: HangAfter})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- insert(ctx, db, 1) }()
		require.Eventually(t, func() bool { return rows(t, truth) == 1 }, time.Minute, time.Millisecond)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

func TestHealEndsAHang(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, f *Faults, db, truth *sql.DB) {
		hung := make(chan struct{})
		f.OnOp(func(Op) { close(hung) })
		f.FailNth(1, Hang, false)
		done := make(chan error, 1)
		go func() { done <- db.Ping() }()
		<-hung
		f.Heal()
		require.ErrorIs(t, <-done, ErrInjected)
	})
}

func TestAQueryThatFailsAfterwardsHasTakenEffect(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, f *Faults, db, truth *sql.DB) {
		for i, query := range []func() error{
			func() error { return db.QueryRow("INSERT INTO t VALUES (1), (2) RETURNING n").Scan(new(int)) },
			func() error {
				stmt, err := db.Prepare("INSERT INTO t VALUES ($1), ($2) RETURNING n")
				require.NoError(t, err)
				defer stmt.Close()
				return stmt.QueryRow(3, 4).Scan(new(int))
			},
		} {
			f.FailWhen(isKind(Query), Fault{Mode: After})
			require.ErrorIs(t, query(), ErrInjected)
			require.Equal(t, 2*(i+1), rows(t, truth))
		}
	})
}

func TestAReadCanFailMidway(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, f *Faults, db, truth *sql.DB) {
		_, err := truth.Exec("INSERT INTO t VALUES (1), (2), (3)")
		require.NoError(t, err)
		f.FailWhen(isKind(Query), Fault{Mode: Midway})
		result, err := db.Query("SELECT n FROM t ORDER BY n")
		require.NoError(t, err)
		defer result.Close()
		read := 0
		for result.Next() {
			read++
		}
		require.Equal(t, 1, read)
		require.ErrorIs(t, result.Err(), ErrInjected)
	})
}

func TestAFaultCanNameItsError(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, f *Faults, db, truth *sql.DB) {
		mine := errors.New("mine")
		f.FailWhen(func(op Op) bool { return strings.HasPrefix(op.SQL, "INSERT") }, Fault{Before, mine})
		require.Equal(t, mine, insert(t.Context(), db, 1))
		require.Equal(t, 1, f.Fired())
		require.Zero(t, rows(t, truth))
	})
}

func TestDriverTypesPassThrough(t *testing.T) {
	t.Parallel()
	f, err := Postgres(pgtest.DSN(t))
	require.NoError(t, err)
	db := f.DB()
	defer db.Close()
	// Only pgx's own NamedValueChecker lets a slice through.
	var n int
	require.NoError(t, db.QueryRow("SELECT cardinality($1::bigint[])", []int64{1, 2, 3}).Scan(&n))
	require.Equal(t, 3, n)
}

func TestManyGoroutinesMayUseThePoolWhileFaultsComeAndGo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, f *Faults, db, truth *sql.DB) {
		db.SetMaxOpenConns(4)
		var wg sync.WaitGroup
		var mu sync.Mutex
		acknowledged := 0
		for range 8 {
			wg.Go(func() {
				for n := range 25 {
					if insert(t.Context(), db, n) == nil {
						mu.Lock()
						acknowledged++
						mu.Unlock()
					}
				}
			})
		}
		for n := range 50 {
			f.FailNth(n%5+1, []Mode{Before, BadConn}[n%2], false)
			f.Count()
			f.Heal()
		}
		wg.Wait()
		require.Equal(t, acknowledged, rows(t, truth))
	})
}

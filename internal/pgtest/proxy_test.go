//go:build unix

package pgtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// throughProxy returns a proxy before a schema with an empty table t, and a
// connection past the proxy that counts the table's rows.
func throughProxy(t *testing.T) (*Proxy, func() int) {
	t.Helper()
	dsn := DSN(t)
	truth := connect(t, dsn)
	_, err := truth.Exec(t.Context(), "CREATE TABLE t (n int)")
	require.NoError(t, err)
	return NewProxy(t, dsn), func() (count int) {
		require.NoError(t, truth.QueryRow(t.Context(), "SELECT count(*) FROM t").Scan(&count))
		return count
	}
}

// commits are the ways in which a client can send a COMMIT.
var commits = map[string]func(context.Context, pgx.Tx) error{
	"simple": func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) },
	"extended": func(ctx context.Context, tx pgx.Tx) error {
		return tx.Conn().PgConn().ExecParams(ctx, "COMMIT;", nil, nil, nil, nil).Read().Err
	},
	"prepared": func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Conn().Prepare(ctx, "c", "commit"); err != nil {
			return err
		}
		return tx.Conn().PgConn().ExecPrepared(ctx, "c", nil, nil, nil).Read().Err
	},
}

func insert(ctx context.Context, t *testing.T, dsn string, commit func(context.Context, pgx.Tx) error) error {
	t.Helper()
	tx, err := connect(t, dsn).Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, "INSERT INTO t VALUES ($1)", 1)
	require.NoError(t, err)
	return commit(ctx, tx)
}

func TestAProxyPassesEverythingOn(t *testing.T) {
	t.Parallel()
	proxy, rows := throughProxy(t)
	for _, commit := range commits {
		require.NoError(t, insert(t.Context(), t, proxy.DSN(), commit))
	}
	require.Equal(t, 3, rows())
	require.Equal(t, 3, proxy.Commits())

	var large string
	err := connect(t, proxy.DSN()).QueryRow(t.Context(), "SELECT repeat($1, 1000000)", "abc").Scan(&large)
	require.NoError(t, err)
	require.Len(t, large, 3_000_000)
}

func TestADroppedCommitHasCommittedAndTheClientIsNotTold(t *testing.T) {
	t.Parallel()
	for name, commit := range commits {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, rows := throughProxy(t)
			proxy.DropAfterCommit()
			require.Error(t, insert(t.Context(), t, proxy.DSN(), commit))
			require.Equal(t, 1, rows())

			proxy.Pass()
			require.NoError(t, insert(t.Context(), t, proxy.DSN(), commit))
			require.Equal(t, 2, rows())
		})
	}
}

func TestAHeldCommitArrivesAfterTheClientHasGone(t *testing.T) {
	t.Parallel()
	for name, commit := range commits {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, rows := throughProxy(t)
			const delay = time.Second
			start := time.Now()
			proxy.HoldCommit(delay)
			require.Error(t, insert(t.Context(), t, proxy.DSN(), commit))
			if n := rows(); time.Since(start) < delay {
				require.Zero(t, n)
			}
			eventually(t, func() bool { return rows() == 1 })
			require.GreaterOrEqual(t, time.Since(start), delay)
		})
	}
}

func TestAHeldTransactionIsInProgressUntilItsCommitArrives(t *testing.T) {
	t.Parallel()
	proxy, _ := throughProxy(t)
	conn, other := connect(t, proxy.DSN()), connect(t, proxy.DSN())
	const delay = time.Second
	begun := time.Now()
	proxy.HoldCommit(delay)
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	var xid string
	require.NoError(t, tx.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text").Scan(&xid))
	require.Error(t, tx.Commit(t.Context()))

	status := func() (status string) {
		require.NoError(t, other.QueryRow(t.Context(), fmt.Sprintf("SELECT pg_xact_status('%s'::xid8)", xid)).Scan(&status))
		return status
	}
	if found := status(); time.Since(begun) < delay {
		require.Equal(t, "in progress", found)
	}
	eventually(t, func() bool { return status() == "committed" })
}

func TestABlackHoleSwallowsEverythingUntilItPasses(t *testing.T) {
	t.Parallel()
	proxy, rows := throughProxy(t)
	bystander := connect(t, proxy.DSN())
	proxy.BlackHole()

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := pgx.Connect(ctx, proxy.DSN())
	require.ErrorIs(t, err, context.DeadlineExceeded)

	proxy.Pass()
	require.NoError(t, bystander.Ping(t.Context())) // nothing of it is missing

	err = insert(t.Context(), t, proxy.DSN(), func(ctx context.Context, tx pgx.Tx) error {
		proxy.BlackHole()
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		return tx.Commit(ctx)
	})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Zero(t, rows())
	require.Zero(t, proxy.Commits())

	proxy.Pass()
	require.NoError(t, insert(t.Context(), t, proxy.DSN(), commits["simple"]))
	require.Equal(t, 1, rows())
}

func TestABlackHoleKeepsTransactionsOpenUntilItPasses(t *testing.T) {
	t.Parallel()
	dsn := DSN(t)
	truth := connect(t, dsn)
	_, err := truth.Exec(t.Context(), "CREATE TABLE t (n int)")
	require.NoError(t, err)
	proxy := NewProxy(t, dsn)
	conn := connect(t, proxy.DSN())
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "LOCK TABLE t")
	require.NoError(t, err)
	proxy.BlackHole()
	require.NoError(t, conn.PgConn().Conn().Close())

	locked := func() (n int) {
		require.NoError(t, truth.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessExclusiveLock'").Scan(&n))
		return n
	}
	for start := time.Now(); time.Since(start) < 50*time.Millisecond; {
		require.Equal(t, 1, locked())
	}
	proxy.Pass()
	eventually(t, func() bool { return locked() == 0 })
}

func TestForgettingSwallowsWhatIsThereAndLetsNewConnectionsPass(t *testing.T) {
	t.Parallel()
	proxy, rows := throughProxy(t)
	idle := connect(t, proxy.DSN())
	proxy.Forget()
	require.NoError(t, insert(t.Context(), t, proxy.DSN(), commits["simple"]))
	require.Equal(t, 1, rows())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, idle.Ping(ctx), context.DeadlineExceeded)
}

func TestAProxyOutlivesARestartOfItsServer(t *testing.T) {
	t.Parallel()
	server := Start(t)
	proxy := NewProxy(t, server.DSN())
	conn := connect(t, proxy.DSN())
	server.StopImmediate()
	require.Error(t, conn.Ping(t.Context()))
	_, err := pgx.Connect(t.Context(), proxy.DSN())
	require.Error(t, err)
	server.StartAgain()
	require.NoError(t, connect(t, proxy.DSN()).Ping(t.Context()))
}

// eventually polls on the test's own goroutine, since a pgx connection is for
// one goroutine, and testify leaves its last poll running.
func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("condition never satisfied")
		}
	}
}

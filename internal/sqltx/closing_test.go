package sqltx

import (
	"context"
	"database/sql"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// database/sql closes the connection of a transaction whose context has ended in a
// goroutine of its own, and dereferences nil in a call that begins at that moment.
func TestAConnectionThatIsBeingClosedIsClosedToItsUser(t *testing.T) {
	t.Parallel()
	pool, err := sql.Open("sqlite3", filepath.Join(t.TempDir(), "jobs.db"))
	require.NoError(t, err)
	defer pool.Close()
	for range 5_000 { // it is met within some hundreds
		conn, err := pool.Conn(context.Background())
		require.NoError(t, err)
		var closing sync.WaitGroup
		closing.Go(func() { _ = conn.Close() })
		discard(conn)
		closing.Wait()
		conn, err = pool.Conn(context.Background())
		require.NoError(t, err)
		closing.Go(func() { _ = conn.Close() })
		reserve := &Reserve{conn: conn, free: make(chan *sql.Conn, 1)}
		_ = reserve.back(conn)
		closing.Wait()
	}
}

// Package pgtest gives tests a real PostgreSQL.
//
// The first call of [DSN] in a process starts a throwaway server, or connects
// to the one that SMALLBEN_POSTGRES_DSN names; each test then gets a schema of
// its own in it. A server that pgtest started ends with the process, however
// the process ends: a guardian outside it waits for a pipe to close.
//
// Where there is neither a server nor the binaries to start one, tests are
// skipped with one line that says so; with CI=true or
// SMALLBEN_REQUIRE_POSTGRES=1 in the environment they fail instead.
package pgtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// shared is the server of this process, started on first use.
var shared struct {
	once   sync.Once
	dsn    string
	server *server // nil when SMALLBEN_POSTGRES_DSN names the server
	err    error
}

// DSN returns the URL of a schema of its own for the test, empty, first in the
// search path, and dropped when the test ends. Its connections carry the
// schema's name as their application_name, so that a test can find, and
// terminate, its own in pg_stat_activity.
//
// It skips the test, or fails it, where no server can be had.
func DSN(t testing.TB) string {
	t.Helper()
	shared.once.Do(startShared)
	if shared.err != nil {
		unavailable(t, shared.err)
	}

	schema := fmt.Sprintf("smallben_test_%d_%08x", os.Getpid(), rand.Uint32())
	if err := execute(shared.dsn, "CREATE SCHEMA "+schema); err != nil {
		t.Fatalf("create schema: %v", err)
	}
	t.Cleanup(func() {
		// A transaction that the test left open would hold the drop up: an
		// error names the leak, where waiting for it would only hang.
		if err := execute(shared.dsn, "SET lock_timeout = '60s'; SET client_min_messages = warning; DROP SCHEMA "+schema+" CASCADE"); err != nil {
			t.Errorf("drop schema: %v", err)
		}
	})
	return withParams(shared.dsn, "search_path", schema, "application_name", schema)
}

// Stop ends the server that DSN started, if any, and removes its files. It is
// for TestMain, after the tests: DSN fails from then on. Without it the server
// ends with the process all the same, a moment later.
func Stop() {
	shared.once.Do(func() {})
	if shared.server != nil {
		shared.server.remove()
	}
	shared.dsn, shared.server, shared.err = "", nil, fmt.Errorf("pgtest was stopped")
}

func startShared() {
	if dsn := os.Getenv("SMALLBEN_POSTGRES_DSN"); dsn != "" {
		shared.dsn = dsn
		return
	}
	if shared.server, shared.err = newServer(nil); shared.err == nil {
		shared.dsn = shared.server.dsn()
	}
}

// unavailable ends the test for want of a server.
func unavailable(t testing.TB, err error) {
	t.Helper()
	missing(t, "SMALLBEN_REQUIRE_POSTGRES", fmt.Errorf("no PostgreSQL: %w", err))
}

// missing skips the test, or fails it where the variable or CI wants what is
// missing.
func missing(t testing.TB, variable string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" || os.Getenv(variable) == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
}

// execute runs statements without parameters on a connection of its own: a pool
// would leave goroutines behind for a leak check to find.
func execute(dsn, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// withParams sets connection parameters, given as names and values in turn, in
// a DSN of either form: URL, or keyword=value.
func withParams(dsn string, params ...string) string {
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		for i := 0; i < len(params); i += 2 {
			dsn += fmt.Sprintf(" %s='%s'", params[i], strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(params[i+1]))
		}
		return dsn
	}
	query := u.Query()
	for i := 0; i < len(params); i += 2 {
		query.Set(params[i], params[i+1])
	}
	u.RawQuery = query.Encode()
	return u.String()
}

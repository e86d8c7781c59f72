//go:build unix

package pgtest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// childEnv makes the test binary start a server, print its address and
// directory, and wait to be killed.
const childEnv = "PGTEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		s, err := newServer(nil)
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(s.dsn(), s.dir)
		select {}
	}
	code := m.Run()
	Stop()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func TestDSNGivesEachTestASchemaOfItsOwn(t *testing.T) {
	t.Parallel()
	first, second := connect(t, DSN(t)), connect(t, DSN(t))
	for i, conn := range []*pgx.Conn{first, second} {
		_, err := conn.Exec(t.Context(), "CREATE TABLE jobs (n int)")
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "INSERT INTO jobs VALUES ($1)", i)
		require.NoError(t, err)
	}
	var n, count int
	require.NoError(t, first.QueryRow(t.Context(), "SELECT min(n), count(*) FROM jobs").Scan(&n, &count))
	require.Equal(t, [2]int{0, 1}, [2]int{n, count})
}

func TestDSNDropsItsSchemaAfterTheTest(t *testing.T) {
	t.Parallel()
	conn := connect(t, DSN(t))
	schemas := func(name string) (count int) {
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_namespace WHERE nspname = $1", name).Scan(&count))
		return count
	}
	var schema string
	t.Run("inner", func(t *testing.T) {
		inner := connect(t, DSN(t))
		_, err := inner.Exec(t.Context(), "CREATE TABLE jobs (n int)")
		require.NoError(t, err)
		require.NoError(t, inner.QueryRow(t.Context(), "SELECT current_schema()").Scan(&schema))
		require.Equal(t, 1, schemas(schema))
	})
	require.Zero(t, schemas(schema))
}

func TestDSNNamesItsConnectionsAfterTheSchema(t *testing.T) {
	t.Parallel()
	conn := connect(t, DSN(t))
	var named bool
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT application_name = current_schema() FROM pg_stat_activity WHERE pid = pg_backend_pid()").Scan(&named))
	require.True(t, named)
}

func TestParametersAreSetInBothFormsOfADSN(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{
		"postgres://user:p%20w@db.example:5433/name?sslmode=disable",
		"host=db.example port=5433 user=user password='p w' dbname=name sslmode=disable",
	} {
		config, err := pgx.ParseConfig(withParams(dsn, "search_path", `it's\here`))
		require.NoError(t, err)
		require.Equal(t, "db.example", config.Host)
		require.Equal(t, "p w", config.Password)
		require.Equal(t, `it's\here`, config.RuntimeParams["search_path"])
	}
}

func TestAServerKeepsItsDataAndAddressOverACrash(t *testing.T) {
	t.Parallel()
	s := Start(t, "max_connections=17")
	dsn, addr := s.DSN(), s.Addr()
	conn := connect(t, dsn)
	_, err := conn.Exec(t.Context(), "CREATE TABLE jobs AS SELECT 42 AS n")
	require.NoError(t, err)

	s.StopImmediate()
	require.Error(t, conn.Ping(t.Context()))
	_, err = pgx.Connect(t.Context(), dsn)
	require.Error(t, err)

	s.StartAgain()
	require.Equal(t, dsn, s.DSN())
	require.Equal(t, addr, s.Addr())
	var n int
	var connections string
	conn = connect(t, dsn)
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT n, current_setting('max_connections') FROM jobs").Scan(&n, &connections))
	require.Equal(t, 42, n)
	require.Equal(t, "17", connections)
}

func TestAServerDiesWithItsProcessEvenWhenThatIsKilled(t *testing.T) {
	t.Parallel()
	Start(t) // skips where there are no binaries
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"=1")
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	dsn, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
	require.DirExists(t, dir, line)
	connect(t, dsn)

	require.NoError(t, child.Process.Kill())
	require.Error(t, child.Wait())
	require.Eventually(t, func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	}, time.Minute, 20*time.Millisecond)
	_, err = pgx.Connect(t.Context(), dsn)
	require.Error(t, err)
}

func TestAServerThatCannotBeStartedFailsItsTestInCI(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing")) // no server is made there
	for _, c := range []struct {
		ci, require, dsn string
		fails            bool
	}{
		{"", "", "", false},
		{"", "", "postgres://db.example", false},
		{"", "1", "", true},
		{"", "1", "postgres://db.example", false}, // the user has a server, and need not have binaries
		{"true", "", "", true},
		{"true", "", "postgres://db.example", true},
	} {
		t.Setenv("CI", c.ci)
		t.Setenv("SMALLBEN_REQUIRE_POSTGRES", c.require)
		t.Setenv("SMALLBEN_POSTGRES_DSN", c.dsn)
		end := &endOfTest{TB: t}
		func() {
			defer func() { require.Equal(t, end, recover()) }()
			Start(end)
		}()
		require.Equal(t, c.fails, end.failed, "%+v", c)
	}
}

// endOfTest is a test whose end is a panic with itself.
type endOfTest struct {
	testing.TB
	failed bool
}

func (e *endOfTest) Helper()              {}
func (e *endOfTest) Fatal(...any)         { e.failed = true; panic(e) }
func (e *endOfTest) Skip(...any)          { panic(e) }
func (e *endOfTest) Skipf(string, ...any) { panic(e) }

func TestStaleDirectoriesAreRemovedAndLiveOnesAreNot(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	old := time.Now().Add(-2 * time.Hour)
	for name, pid := range map[string]int{"dead": 1 << 30, "alive": os.Getpid(), "young": 1 << 30} {
		dir := filepath.Join(tmp, dirPattern+name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, pidFile), fmt.Append(nil, pid), 0o644))
		if name != "young" {
			require.NoError(t, os.Chtimes(dir, old, old))
		}
	}
	removeStale()
	require.NoDirExists(t, filepath.Join(tmp, dirPattern+"dead"))
	require.DirExists(t, filepath.Join(tmp, dirPattern+"alive"))
	require.DirExists(t, filepath.Join(tmp, dirPattern+"young"))
}

func connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func BenchmarkDSN(b *testing.B) {
	for b.Loop() {
		DSN(b)
	}
}

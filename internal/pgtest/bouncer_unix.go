//go:build unix

package pgtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// bouncerScript holds PgBouncer's life to that of the process at the other end of
// its standard input.
const bouncerScript = `"$1" -q "$2" & read -r _; kill -9 $!; wait`

// Bouncer starts a PgBouncer in transaction mode before the server of a DSN that
// DSN gave, and returns the DSN that leads through it: without a search path, which
// PgBouncer does not take. It has poolSize connections to the server.
//
// Where there is no PgBouncer, the test is skipped with a line that says so; with
// CI=true or SMALLBEN_REQUIRE_PGBOUNCER=1 in the environment it fails instead.
func Bouncer(t testing.TB, dsn string, poolSize int) string {
	t.Helper()
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		path = "/usr/sbin/pgbouncer" // Debian's, which may not be in PATH
		if _, err = os.Stat(path); err != nil {
			missing(t, "SMALLBEN_REQUIRE_PGBOUNCER", fmt.Errorf("no PgBouncer: install it (apt-get install pgbouncer)"))
		}
	}
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "smallben-bouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	settings := fmt.Sprintf(`[databases]
* = host=%s port=%d user=%s password=%s dbname=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
auth_type = any
pool_mode = transaction
default_pool_size = %d
max_client_conn = 200
unix_socket_dir =
`, config.Host, config.Port, config.User, config.Password, config.Database, port, poolSize)
	ini := filepath.Join(dir, "ini")
	if err := os.WriteFile(ini, []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", bouncerScript, "sh", path, ini)
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Setsid: true, Credential: credential()}
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start PgBouncer: %v", err)
	}
	t.Cleanup(func() {
		lifeline.Close()
		_ = cmd.Wait()
	})
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("PgBouncer does not listen: %v", err)
		}
	}
	return fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", config.User, address, config.Database)
}

//go:build unix

package pgtest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	dirPattern = "smallben-pg-"
	pidFile    = "guardian.pid" // in the server's directory
)

// settings are for speed where a crash of the machine may lose everything;
// what clients see, crashes of the server included, stays as in production.
var settings = []string{
	"listen_addresses=127.0.0.1",
	"unix_socket_directories=",
	"max_connections=200",
	"fsync=off",
	"full_page_writes=off",
	"synchronous_commit=on",
	"max_wal_size=4GB",
	"log_min_messages=fatal",
	"log_min_error_statement=panic",
}

// guardianScript holds the server's life to that of the process at the other
// end of its standard input, SIGKILL included. It runs as the server's user.
const guardianScript = `read -r _; "$1"/pg_ctl stop -D "$2"/data -m immediate -s; rm -rf "$2"`

// newServer makes a server in a temporary directory, and starts it.
func newServer(extra []string) (_ *server, err error) {
	bin, err := findBinaries()
	if err != nil {
		return nil, err
	}
	removeStale()

	dir, err := os.MkdirTemp("", dirPattern)
	if err != nil {
		return nil, err
	}
	s := &server{bin: bin, dir: dir}
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	if cred := credential(); cred != nil {
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			return nil, err
		}
	}
	if err := s.guard(); err != nil {
		return nil, err
	}
	if err := s.run("initdb", "-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"); err != nil {
		return nil, err
	}
	if err := s.configure(append(slices.Clone(settings), extra...)); err != nil {
		return nil, err
	}
	// Somebody may take the port between the look and the start.
	for range 5 {
		if s.port, err = freePort(); err != nil {
			return nil, err
		}
		if err = s.start(); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }

func (s *server) configure(settings []string) error {
	f, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		fmt.Fprintf(f, "%s = '%s'\n", name, value)
	}
	return f.Close()
}

// start returns once the server accepts connections.
func (s *server) start() error {
	return s.run("pg_ctl", "start", "-D", s.data(), "-w", "-s", "-t", "60",
		"-l", filepath.Join(s.dir, "log"), "-o", "-p "+strconv.Itoa(s.port))
}

func (s *server) stop() error {
	return s.run("pg_ctl", "stop", "-D", s.data(), "-m", "immediate", "-w", "-s", "-t", "60")
}

// remove stops the server, running or not, and removes its files.
func (s *server) remove() {
	if s.guardian == nil {
		os.RemoveAll(s.dir)
		return
	}
	s.lifeline.Close()
	s.guardian.Wait()
}

// guard starts the guardian. Only this process holds the pipe's writing end:
// Go closes it in every process that it starts.
func (s *server) guard() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", guardianScript, "sh", s.bin, s.dir)
	cmd.Stdin = r
	s.confine(cmd)
	if err := cmd.Start(); err != nil {
		w.Close()
		return fmt.Errorf("start guardian: %w", err)
	}
	s.lifeline, s.guardian = w, cmd.Process
	return os.WriteFile(filepath.Join(s.dir, pidFile), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644)
}

// run runs one of PostgreSQL's programs to its end.
func (s *server) run(program string, args ...string) error {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	s.confine(cmd)
	out, err := cmd.CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		return fmt.Errorf("%s %s: %w: %s", program, args[0], err, bytes.TrimSpace(append(out, log...)))
	}
	return nil
}

// confine runs the command in the server's directory, away from the signals of
// the terminal, and as a user that PostgreSQL accepts.
func (s *server) confine(cmd *exec.Cmd) {
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: credential()}
}

// credential returns whom to run the server as: PostgreSQL refuses root. It is
// nil when we are not root.
func credential() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if errors.Join(err1, err2) == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	return nil
}

// findBinaries returns the directory of initdb: one in PATH first, so that a
// user can choose, then the newest where Debian and the PGDG packages keep
// them, then what pg_config says.
func findBinaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		// Distributions may put a link into PATH; its neighbours are elsewhere.
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Abs(filepath.Dir(path))
		}
	}
	var found []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"} {
		dirs, _ := filepath.Glob(pattern)
		found = append(found, slices.DeleteFunc(dirs, func(dir string) bool { return !hasInitdb(dir) })...)
	}
	if len(found) > 0 {
		return slices.MaxFunc(found, func(a, b string) int { return cmp.Compare(version(a), version(b)) }), nil
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		if dir := strings.TrimSpace(string(out)); hasInitdb(dir) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no initdb in PATH, /usr/lib/postgresql/*/bin or pg_config --bindir: install the server package (apt-get install postgresql), or set SMALLBEN_POSTGRES_DSN")
}

func hasInitdb(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "initdb"))
	return err == nil
}

// version reads the major version from /usr/lib/postgresql/15/bin or
// /usr/pgsql-15/bin; 0 if it finds none.
func version(bin string) int {
	dir := filepath.Base(filepath.Dir(bin))
	v, _ := strconv.Atoi(strings.TrimPrefix(dir, "pgsql-"))
	return v
}

// freePort looks below the range from which systems take the local ports of
// outgoing connections: one of those could take the port while the server is
// stopped, or even connect to itself.
func freePort() (int, error) {
	for range 100 {
		port := 16_384 + rand.IntN(16_384)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no free port between 16384 and 32767")
}

// removeStale removes what servers left behind whose guardian was killed too.
// A directory younger than an hour may still be in the making.
func removeStale() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPattern+"*"))
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err == nil && time.Since(info.ModTime()) > time.Hour && !guarded(dir) {
			os.RemoveAll(dir)
		}
	}
}

func guarded(dir string) bool {
	content, err := os.ReadFile(filepath.Join(dir, pidFile))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) // another user's
	}
	pid, err := strconv.Atoi(string(content))
	return err == nil && !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

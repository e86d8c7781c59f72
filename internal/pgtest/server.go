package pgtest

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"
)

// Server is a PostgreSQL server that belongs to one test, which may stop it
// and start it again. It ends with the test.
type Server struct {
	t testing.TB
	s *server
}

// Start starts a server for the test alone, with the settings, such as
// "max_connections=10", on top of those of the shared one. It takes a second
// or two.
//
// It skips the test, or fails it, where there are no binaries. A user who set
// SMALLBEN_POSTGRES_DSN need not have them, so then it skips, except with CI=true.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	s, err := newServer(settings)
	if err != nil && os.Getenv("SMALLBEN_POSTGRES_DSN") != "" && os.Getenv("CI") != "true" {
		t.Skipf("no PostgreSQL that the test may stop: %v", err)
	}
	if err != nil {
		unavailable(t, err)
	}
	t.Cleanup(s.remove)
	return &Server{t, s}
}

// DSN returns the URL of the server's empty database. It stays valid when the
// server is stopped and started again.
func (s *Server) DSN() string { return s.s.dsn() }

// Addr returns the server's TCP address, host:port. It stays the same when the
// server is stopped and started again.
func (s *Server) Addr() string { return s.s.addr() }

// StopImmediate stops the server as a crash would: no goodbye to clients, and
// recovery at the next start. It returns once the server is gone. It is called
// from the test's goroutine.
func (s *Server) StopImmediate() {
	s.t.Helper()
	if err := s.s.stop(); err != nil {
		s.t.Fatal(err)
	}
}

// StartAgain starts the stopped server on the same data and port, and returns
// once it accepts connections. It is called from the test's goroutine.
func (s *Server) StartAgain() {
	s.t.Helper()
	if err := s.s.start(); err != nil {
		s.t.Fatal(err)
	}
}

// Restart is StopImmediate and StartAgain.
func (s *Server) Restart() {
	s.t.Helper()
	s.StopImmediate()
	s.StartAgain()
}

// server is a running PostgreSQL, its directory, and the guardian of both.
type server struct {
	bin      string   // directory of initdb and pg_ctl
	dir      string   // temporary; holds data/ and log
	port     int      // on 127.0.0.1
	lifeline *os.File // closed: the guardian stops the server and removes dir
	guardian *os.Process
}

func (s *server) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

func (s *server) dsn() string {
	return fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable", s.addr())
}

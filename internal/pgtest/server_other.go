//go:build !unix

package pgtest

import (
	"errors"
	"runtime"
	"testing"
)

var errUnsupported = errors.New("no throwaway server on " + runtime.GOOS + ": set SMALLBEN_POSTGRES_DSN")

func newServer([]string) (*server, error) { return nil, errUnsupported }

func (s *server) start() error { return errUnsupported }
func (s *server) stop() error  { return errUnsupported }
func (s *server) remove()      {}

// Bouncer skips the test.
func Bouncer(t testing.TB, _ string, _ int) string {
	t.Helper()
	missing(t, "SMALLBEN_REQUIRE_PGBOUNCER", errUnsupported)
	return ""
}

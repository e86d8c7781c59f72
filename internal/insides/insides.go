// Package insides shows the tests of this module what a SmallBen holds in memory, and
// what it waits for. Package smallben sets its variables; only tests read them. They are
// here because the tests in test/ see no export_test.go.
package insides

import "github.com/nbena/smallben/internal/ledger"

// Entry is an entry of the scheduler.
type Entry struct {
	CronID      int64
	Expression  string
	StoredInput string
}

// The argument s is a *smallben.SmallBen.
var (
	// Entries returns the entries of s by job id.
	Entries func(s any) map[int64]Entry

	// Pages returns how many entries each page of a started s holds, as
	// SmallBen counts them and as cron does.
	Pages func(s any) (counted, held []int)

	// Timing returns the timing of an s that records runs, which may be changed before
	// Start.
	Timing func(s any) *ledger.Timing
)

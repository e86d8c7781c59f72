// Package insides shows the tests of this module what a SmallBen holds in memory,
// and lets them shorten what it waits for. Package smallben sets its variables;
// only tests read them. They are here because the tests in test/ are in a
// directory of their own, and see no export_test.go.
package insides

import "time"

// Entry is an entry of the scheduler.
type Entry struct {
	CronID      int64
	Expression  string
	StoredInput string
}

// Timing is what a SmallBen that records runs waits for. Zero leaves a value as it
// is.
type Timing struct {
	DeadAfter, SweepEvery, MissedAfter, ClaimPatience, FlushPatience time.Duration
}

// The argument s is a *smallben.SmallBen.
var (
	// Entries returns the entries of s by job id.
	Entries func(s any) map[int64]Entry

	// Pages returns how many entries each page of a started s holds, as
	// SmallBen counts them and as cron does.
	Pages func(s any) (counted, held []int)

	// PageSize is how many entries a page holds at most.
	PageSize int

	// SetTiming sets the timing of s, before Start.
	SetTiming func(s any, timing Timing)
)

package ledger

import (
	"errors"
	"sync"
	"time"
)

// Grant is a run that a process asks for or has been given. It counts as a run in
// progress of the host until End, Skip or LeaveWaiting is called, once, or the claim is
// lost.
type Grant struct {
	Claim
	CreatedAt int64 // of the job, in Unix microseconds
	Missed    int   // how many ticks it stands for, if it makes up for missed ones
	// Waits says that the run waits in the store, or may do so. Skip ends it there,
	// unless it has started elsewhere, and LeaveWaiting leaves it.
	Waits bool

	claims *claims
	asked  time.Time
	stale  int    // how often it was answered so
	unsure bool   // it may be recorded already: the reply was lost
	ended  func() // nil, or is told when the grant is over

	mu       sync.Mutex // guards the fields below, for moments
	run      Canceler   // nil until it has started
	canceled error      // why the run is to end, or nil
	abandon  time.Time  // when the run is given up, or zero
}

// Canceler is a run that has started.
type Canceler interface {
	// Cancel ends the context of the run, if it has one.
	Cancel(cause error)
	// Abandon ends the grant, unless the run has ended it.
	Abandon()
}

// Attach says what runs. It is canceled at once if it is to be.
func (g *Grant) Attach(run Canceler) {
	g.mu.Lock()
	g.run = run
	cause := g.canceled
	g.mu.Unlock()
	if cause != nil {
		run.Cancel(cause)
	}
}

// cancel cancels the run, once, or as soon as it has started. It returns true if the run
// is to be given up at an instant, and earlier than was known before.
func (g *Grant) cancel(cause error, abandon time.Time) bool {
	g.mu.Lock()
	before, run := g.canceled, g.run
	g.canceled = cause
	sooner := !abandon.IsZero() && (g.abandon.IsZero() || abandon.Before(g.abandon))
	if sooner {
		g.abandon = abandon
	}
	g.mu.Unlock()
	if before == nil && run != nil {
		run.Cancel(cause)
	}
	return sooner
}

// started returns what runs, or nil.
func (g *Grant) started() Canceler {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.run
}

// ErrGivenAway is why the context of a run ends whose process was taken for dead: the
// run is recorded as lost, and may run again elsewhere.
var ErrGivenAway = errors.New("this process was taken for dead, and the run is recorded as lost")

// End records how the run ended. A retry that is not zero is when the next attempt
// may run.
func (g *Grant) End(start, end time.Time, outcome Outcome, text string, retry time.Time) {
	g.claims.over(g, End{Start: start, End: end, Outcome: outcome, Error: text, Retry: retry})
}

// Skip records that the run did not start, and why.
func (g *Grant) Skip(reason string) {
	now := g.claims.now()
	g.claims.over(g, End{Start: now, End: now, Outcome: Skipped, Error: reason})
}

// LeaveWaiting leaves the run to whichever process claims it.
func (g *Grant) LeaveWaiting() { g.claims.drop(g) }

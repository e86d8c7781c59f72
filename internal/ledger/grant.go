package ledger

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
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

	grants *grants
	asked  time.Time
	stale  int    // how often it was answered so
	unsure bool   // it may be recorded already: the reply was lost
	ended  func() // nil, or is told when the grant is over

	unclaimed atomic.Bool // it runs without being recorded, yet

	mu       sync.Mutex // guards the fields below, for moments
	run      Canceler   // nil until it has started
	canceled bool       // the run is to end
	abandon  time.Time  // when the run is given up, or zero
}

// Canceler is a run that has started.
type Canceler interface {
	// Cancel ends the context of the run, if it has one, with the first cause that it is
	// given.
	Cancel(cause error)
	// Abandon ends the grant, unless the run has ended it.
	Abandon()
}

// Attach says what runs. It is canceled at once if it is to be.
func (g *Grant) Attach(run Canceler) {
	g.mu.Lock()
	g.run = run
	canceled := g.canceled
	g.mu.Unlock()
	if canceled {
		run.Cancel(ErrCanceled)
	}
}

// cancel cancels the run, or does so as soon as it has started. It returns true if the run
// is to be given up at an instant, and earlier than was known before.
func (g *Grant) cancel(abandon time.Time) bool {
	g.mu.Lock()
	run := g.run
	g.canceled = true
	sooner := !abandon.IsZero() && (g.abandon.IsZero() || abandon.Before(g.abandon))
	if sooner {
		g.abandon = abandon
	}
	g.mu.Unlock()
	if run != nil {
		run.Cancel(ErrCanceled)
	}
	return sooner
}

// started returns what runs, or nil.
func (g *Grant) started() Canceler {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.run
}

// Why the contexts of runs end: ErrCanceled if that is what is recorded of them, and ErrLost
// if their process was taken for dead. They are recorded as lost then, and may run again
// elsewhere.
var (
	ErrCanceled = errors.New("the run was canceled by CancelRuns")
	ErrLost     = errors.New("this process was taken for dead, and the run is recorded as lost")
)

// End records how the run ended. A retry that is not zero is when the next attempt
// may run.
func (g *Grant) End(start, end time.Time, outcome Outcome, text string, retry time.Time) {
	g.grants.end(g, End{Start: start, End: end, Outcome: outcome, Error: text, Retry: retry})
}

// Skip records that the run did not start, and why.
func (g *Grant) Skip(reason string) {
	now := g.grants.clock.tickNow()
	g.grants.end(g, End{Start: now, End: now, Outcome: Skipped, Error: reason})
}

// LeaveWaiting leaves the run to whichever process claims it.
func (g *Grant) LeaveWaiting() { g.grants.drop(g) }

// grants are the runs that this process asks for, that are in progress here, and whose
// ends are yet to be recorded. It is goroutine-safe.
type grants struct {
	*common
	asked *queue[*Grant] // for claims
	over  *queue[End]    // for ends

	mu  sync.Mutex // guards all, for moments
	all map[KeyID]*Grant
}

func newGrants(c *common) *grants {
	return &grants{common: c, asked: newQueue[*Grant](), over: newQueue[End](), all: make(map[KeyID]*Grant)}
}

// ask asks for the run of a tick of a job.
func (a *grants) ask(job Job, tick time.Time) {
	g, err := a.add(Key{JobID: job.ID, Tick: tick.UTC(), Attempt: 1}, job)
	if err == nil {
		a.asked.push(g)
	}
}

var errAsked = errors.New("the run was asked for already")

// add counts a claim as a run in progress. It returns ErrStopped, or errAsked if the same
// run is: the clock may have been set back.
func (a *grants) add(key Key, job Job) (*Grant, error) {
	if !a.host.Hold() {
		return nil, ErrStopped
	}
	g := &Grant{
		Claim: Claim{Key: key, GroupID: job.GroupID, SuperGroupID: job.SuperGroupID, Revision: job.Revision,
			Overlap: job.Overlap, NewestCounts: job.Attempts > 1 && !key.Triggered},
		CreatedAt: job.CreatedAt, grants: a, asked: time.Now(),
	}
	a.mu.Lock()
	_, twice := a.all[key.ID()]
	if !twice {
		a.all[key.ID()] = g
	}
	a.mu.Unlock()
	if twice {
		a.host.Release()
		return nil, errAsked
	}
	return g, nil
}

// drop takes back a claim that was not won, or leaves its run to others.
func (a *grants) drop(g *Grant) {
	a.forget(g.Key)
	a.release(g)
}

// end hands the end of a run over for being recorded.
func (a *grants) end(g *Grant, end End) {
	end.Start, end.End = end.Start.UTC().Truncate(time.Microsecond), end.End.UTC().Truncate(time.Microsecond)
	end.Unclaimed = g.unclaimed.Swap(false) || g.Waits
	end.Key, end.Overlap = g.Key, g.Overlap
	end.GroupID, end.SuperGroupID = g.GroupID, g.SuperGroupID
	end.follow = g.OfWaiting || g.Overlap == Delay || !end.Retry.IsZero()
	a.over.push(end)
	a.release(g)
}

func (a *grants) release(g *Grant) {
	if g.ended != nil {
		g.ended()
	}
	a.host.Release()
}

// forget says that nothing more is to be recorded of runs.
func (a *grants) forget(keys ...Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, key := range keys {
		delete(a.all, key.ID())
	}
}

func (a *grants) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.all)
}

func (a *grants) list() []*Grant {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.all))
}

// cancel cancels runs, and gives up those that have not ended at their time.
func (a *grants) cancel(runs []Cancellation) {
	now := a.clock.now()
	for _, canceled := range runs {
		a.mu.Lock()
		g := a.all[canceled.ID()]
		a.mu.Unlock()
		if g == nil || !g.cancel(canceled.Abandon) {
			continue
		}
		time.AfterFunc(max(0, canceled.Abandon.Sub(now)), func() {
			if run := g.started(); run != nil {
				run.Abandon()
			}
		})
	}
}

// lose ends the contexts of all runs: they are lost.
func (a *grants) lose() {
	for _, g := range a.list() {
		if run := g.started(); run != nil {
			run.Cancel(ErrLost)
		}
	}
}

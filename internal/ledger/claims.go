package ledger

import (
	"errors"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
)

const (
	claimers  = 2    // goroutines that claim: a burst uses two connections
	maxClaims = 1000 // in one call of the store
	// Fewer than secondCall claims wait for the call in progress, callWait at most,
	// looking every callStep.
	secondCall         = 250
	callWait, callStep = 200 * time.Millisecond, 5 * time.Millisecond
	// earlyWait is how long a claim waits that came before the database's clock.
	earlyWait = 200 * time.Millisecond
)

// claims asks the store for runs, in batches, and starts those that are won.
type claims struct {
	*common
	grants  *grants
	feed    *feed
	trouble trouble

	calls    atomic.Int64 // to the store, in progress
	inDoubt  atomic.Bool  // there may be unfinished runs that nobody knows
	fullAt   atomic.Int64 // when there was last no place for a run, in Unix nanoseconds
	unplaced atomic.Int64 // claims that wait for a place
}

func newClaims(c *common, g *grants, f *feed) *claims {
	return &claims{common: c, grants: g, feed: f, trouble: c.newTrouble("claim runs")}
}

// busy reports whether claims wait for the store.
func (c *claims) busy() bool { return c.calls.Load() > 0 || c.grants.asked.len() > 0 }

// run claims until the queue of what is asked for is closed.
func (c *claims) run() {
	for c.grants.asked.wait() {
		c.gather()
		places, freed := c.host.TakePlaces(maxClaims)
		if places == 0 {
			c.fullAt.Store(time.Now().UnixNano())
			c.unplaced.Store(int64(c.grants.asked.len()))
			c.waitForPlace(freed)
			continue
		}
		started := 0
		batch := c.grants.asked.take(places)
		if c.unplaced.Load() > 0 {
			c.unplaced.Store(int64(c.grants.asked.len()))
		}
		if batch = c.current(batch); len(batch) > 0 {
			started = c.claim(batch)
		}
		c.host.LeavePlaces(places - started)
	}
}

// gather waits for claims that may go into one call: those of jobs that are due at one
// instant, and those that come while there is a call in progress.
func (c *claims) gather() {
	for before := 0; before < c.grants.asked.len() && before < maxClaims; {
		before = c.grants.asked.len()
		runtime.Gosched()
	}
	for waited := time.Duration(0); waited < callWait && c.calls.Load() > 0 && c.grants.asked.len() < secondCall; waited += callStep {
		c.pause(callStep)
	}
}

// waitForPlace waits until a run may start, for a while: claims that are too old, or
// come after Stop, do not wait.
func (c *claims) waitForPlace(freed <-chan struct{}) {
	select {
	case <-freed:
	case <-time.After(troubleWait):
		c.askAgain(c.current(c.grants.asked.take(maxClaims)))
		c.unplaced.Store(int64(c.grants.asked.len()))
	}
}

// current sets what claims say of their jobs to what is known now. It keeps those that may
// be won already. Of the others it drops those that are too old, or whose job no longer has
// the tick, and parks those that are too old because there was no place.
func (c *claims) current(batch []*Grant) []*Grant {
	full := time.Unix(0, c.fullAt.Load())
	var current, crowded []*Grant
	refill := false
	for _, g := range batch {
		job, known := c.host.Look(g.JobID, g.Triggered)
		wanted := known && job.CreatedAt == g.CreatedAt &&
			(g.OfWaiting || job.Revision == g.Revision || isTick(job.Schedule, g.Tick.In(c.config.Location)))
		if wanted {
			g.Revision = job.Revision
		}
		switch {
		case g.unsure:
			current = append(current, g)
		case wanted && !c.isOld(g):
			g.GroupID, g.SuperGroupID = job.GroupID, job.SuperGroupID
			current = append(current, g)
		case wanted && !g.OfWaiting && g.asked.Before(full):
			refill = true
			crowded = append(crowded, g)
		default:
			refill = refill || g.OfWaiting
			c.grants.drop(g)
		}
	}
	c.park(crowded)
	if refill {
		c.wake.waiting.set()
	}
	return current
}

// isOld reports whether a claim was tried for long enough.
func (c *claims) isOld(g *Grant) bool { return since(g.asked) > c.config.Timing.ClaimPatience }

// claim asks the store for a batch and starts what is won, each in a place. It
// returns how many runs it has started.
func (c *claims) claim(batch []*Grant) (started int) {
	sent := time.Now()
	results, err := c.call(batch)
	if err != nil {
		return c.failed(batch, err)
	}
	c.answered()
	confirm := since(sent) > c.config.Timing.ClaimPatience
	var stale, early, again []*Grant
	for i, g := range batch {
		switch results[i] {
		case Won:
			if confirm {
				// This process stood still meanwhile, and may have been taken for
				// dead.
				g.unsure = true
				again = append(again, g)
				continue
			}
			c.config.Metrics.Count(ClaimsWon, 1)
			started++
			c.host.Start(g)
		case Overlapped:
			c.config.Metrics.Count(ClaimsWon, 1)
			c.host.Overlapped(g.JobID, g.Tick)
			c.grants.drop(g)
		case Delayed:
			c.config.Metrics.Count(ClaimsWon, 1)
			c.grants.drop(g)
		case Stale:
			stale = append(stale, g)
		case Early:
			early = append(early, g)
		default:
			c.config.Metrics.Count(ClaimsLost, 1)
			c.grants.drop(g)
		}
	}
	c.grants.asked.push(again...)
	if len(stale) > 0 {
		c.config.Metrics.Count(ClaimsRefused, len(stale))
		go c.refresh(stale)
	}
	if len(early) > 0 {
		time.AfterFunc(earlyWait, func() { c.askAgain(early) })
	}
	return started
}

func (c *claims) call(batch []*Grant) ([]Result, error) {
	claims := make([]Claim, len(batch))
	for i, g := range batch {
		claims[i] = g.Claim
	}
	c.calls.Add(1)
	defer c.calls.Add(-1)
	sent := time.Now()
	results, err := c.store.Claim(c.process, claims)
	c.config.Metrics.Claimed(time.Since(sent))
	return results, err
}

// failed decides on claims that the store did not answer. It returns how many runs it
// has started.
func (c *claims) failed(batch []*Grant, err error) (started int) {
	c.trouble.begin(err)
	_, unknown := Settled(err)
	switch {
	case errors.Is(err, ErrNotRegistered):
		c.wake.heartbeat.set() // which registers this process again
		c.pause(troubleWait)
	case c.config.RunUnclaimed && !c.isStopped():
		c.runUnclaimed(batch)
		return len(batch)
	default:
		for _, g := range batch {
			g.unsure = g.unsure || unknown
		}
		c.await(err)
	}
	c.askAgain(batch)
	return 0
}

// answered notes that the store answered a claim.
func (c *claims) answered() {
	if c.trouble.end() {
		c.resume()
		go c.claimUnclaimed()
	}
}

// runUnclaimed starts runs without a claim.
func (c *claims) runUnclaimed(batch []*Grant) {
	c.config.Metrics.Count(RunsUnclaimed, len(batch))
	for _, g := range batch {
		if g.Overlap == Delay {
			// It is claimed while it goes on: it must not wait in the store then.
			g.Overlap = Skip
		}
		g.unclaimed.Store(true)
		c.host.Start(g)
	}
}

// claimUnclaimed claims what runs without a claim, so that nobody takes it for
// missed.
func (c *claims) claimUnclaimed() {
	unclaimed := slices.DeleteFunc(c.grants.list(), func(g *Grant) bool { return !g.unclaimed.Load() })
	for batch := range slices.Chunk(unclaimed, maxClaims) {
		results, err := c.call(batch)
		if err != nil {
			c.trouble.begin(err)
			return
		}
		for i, g := range batch {
			if results[i] == Won {
				g.unclaimed.Store(false)
			}
		}
	}
}

// askAgain asks for claims again that the store did not decide on, unless they are
// too old or the session was stopped.
func (c *claims) askAgain(batch []*Grant) {
	stopped := c.isStopped()
	var again []*Grant
	for _, g := range batch {
		switch old := c.isOld(g); {
		case g.unsure && old && stopped:
			c.inDoubt.Store(true)
			c.grants.drop(g)
		case !g.unsure && (old || stopped):
			c.grants.drop(g)
		default:
			again = append(again, g)
		}
	}
	c.grants.asked.push(again...)
}

// refresh learns what changed of the jobs of stale claims, and asks again.
func (c *claims) refresh(stale []*Grant) {
	if c.isStopped() {
		for _, g := range stale {
			c.grants.drop(g)
		}
		return
	}
	ids := make([]int64, len(stale))
	again := false
	for i, g := range stale {
		ids[i] = g.JobID
		again = again || g.stale > 0
		g.stale++
	}
	err := c.feed.refresh(ids)
	if err != nil || again {
		c.pause(troubleWait)
	}
	var sure []*Grant
	for _, g := range stale {
		if g.unsure {
			c.grants.drop(g) // it was not won before, then
		} else {
			sure = append(sure, g)
		}
	}
	c.askAgain(sure)
}

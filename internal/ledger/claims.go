package ledger

import (
	"errors"
	"maps"
	"runtime"
	"slices"
	"sync"
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
	ends      *ends
	feed      *feed
	rejoin    func() // a heartbeat, which registers this process again
	recovered func()
	now       func() time.Time // what the clock shows that ticks go by
	queue     *queue[*Grant]
	trouble   trouble

	calls   atomic.Int64 // to the store, in progress
	inDoubt atomic.Bool  // there may be unfinished runs that nobody knows

	fullAt   atomic.Int64 // when there was last no room for a run, in Unix nanoseconds
	unplaced atomic.Int64 // claims that wait for room
	refill   func()       // asks for runs that wait in the store

	mu        sync.Mutex // guards the fields below, for moments
	asked     map[KeyID]*Grant
	unclaimed map[*Grant]struct{} // that run without being recorded, yet
}

func newClaims(c *common, e *ends, f *feed) *claims {
	return &claims{common: c, ends: e, feed: f, queue: newQueue[*Grant](), asked: make(map[KeyID]*Grant), unclaimed: make(map[*Grant]struct{}),
		trouble: trouble{what: "claim runs", log: c.config.Log}}
}

// busy reports whether claims wait for the store.
func (c *claims) busy() bool { return c.calls.Load() > 0 || c.queue.len() > 0 }

// ask asks for the run of a tick of a job.
func (c *claims) ask(job Job, tick time.Time) {
	g, err := c.newGrant(Key{JobID: job.ID, Tick: tick.UTC(), Attempt: 1}, job)
	if err == nil {
		c.queue.push(g)
	}
}

var errAsked = errors.New("the run was asked for already")

// newGrant counts a claim as a run in progress. It returns ErrStopped, or errAsked if
// the same run is: the clock may have been set back.
func (c *claims) newGrant(key Key, job Job) (*Grant, error) {
	if !c.host.Hold() {
		return nil, ErrStopped
	}
	g := &Grant{
		Claim: Claim{Key: key, GroupID: job.GroupID, SuperGroupID: job.SuperGroupID, Revision: job.Revision,
			Overlap: job.Overlap, NewestCounts: job.Attempts > 1 && !key.Triggered},
		CreatedAt: job.CreatedAt, claims: c, asked: time.Now(),
	}
	c.mu.Lock()
	_, twice := c.asked[key.ID()]
	if !twice {
		c.asked[key.ID()] = g
	}
	c.mu.Unlock()
	if twice {
		c.host.Release()
		return nil, errAsked
	}
	return g, nil
}

// cancel cancels runs, and gives up those that have not ended at their time.
func (c *claims) cancel(runs []Cancellation, cause error, now time.Time) {
	for _, canceled := range runs {
		c.mu.Lock()
		g := c.asked[canceled.ID()]
		c.mu.Unlock()
		if g == nil || !g.cancel(cause, canceled.Abandon) {
			continue
		}
		time.AfterFunc(max(0, canceled.Abandon.Sub(now)), func() {
			if run := g.started(); run != nil {
				run.Abandon()
			}
		})
	}
}

// cancelAll ends the contexts of all runs: this process was taken for dead.
func (c *claims) cancelAll(cause error) {
	c.mu.Lock()
	var all []*Grant
	for _, g := range c.asked {
		all = append(all, g)
	}
	c.mu.Unlock()
	for _, g := range all {
		if run := g.started(); run != nil {
			run.Cancel(cause)
		}
	}
}

// drop takes back a claim that was not won.
func (c *claims) drop(g *Grant) {
	c.forget(g.Key)
	c.release(g)
}

func (c *claims) release(g *Grant) {
	if g.ended != nil {
		g.ended()
	}
	c.host.Release()
}

func (c *claims) forget(keys ...Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		delete(c.asked, key.ID())
	}
}

// over hands the end of a run over for being recorded.
func (c *claims) over(g *Grant, end End) {
	c.mu.Lock()
	_, unclaimed := c.unclaimed[g]
	delete(c.unclaimed, g)
	c.mu.Unlock()
	end.Unclaimed = unclaimed || g.Waits
	end.Key, end.Overlap = g.Key, g.Overlap
	end.GroupID, end.SuperGroupID = g.GroupID, g.SuperGroupID
	end.follow = g.FromQueue || g.Overlap == Delay || !end.Retry.IsZero()
	c.ends.push(end)
	c.release(g)
}

// run claims until the queue is closed.
func (c *claims) run() {
	for c.queue.wait() {
		c.gather()
		room, freed := c.host.Reserve(maxClaims)
		if room == 0 {
			c.fullAt.Store(time.Now().UnixNano())
			c.unplaced.Store(int64(c.queue.len()))
			c.waitForRoom(freed)
			continue
		}
		started := 0
		batch := c.queue.take(room)
		if c.unplaced.Load() > 0 {
			c.unplaced.Store(int64(c.queue.len()))
		}
		if batch = c.current(batch); len(batch) > 0 {
			started = c.claim(batch)
		}
		c.host.Unreserve(room - started)
	}
}

// gather waits for claims that may go into one call: those of jobs that are due at one
// instant, and those that come while there is a call in progress.
func (c *claims) gather() {
	for before := 0; before < c.queue.len() && before < maxClaims; {
		before = c.queue.len()
		runtime.Gosched()
	}
	for waited := time.Duration(0); waited < callWait && c.calls.Load() > 0 && c.queue.len() < secondCall; waited += callStep {
		c.pause(callStep)
	}
}

// waitForRoom waits until a run may start, for a while: claims that are too old, or
// come after Stop, do not wait.
func (c *claims) waitForRoom(freed <-chan struct{}) {
	select {
	case <-freed:
	case <-time.After(troubleWait):
		c.askAgain(c.current(c.queue.take(maxClaims)))
		c.unplaced.Store(int64(c.queue.len()))
	}
}

// current sets what claims say of their jobs to what is known now. It keeps those that may
// be won already. Of the others it drops those that are too old, or whose job no longer has
// the tick, and parks those that are too old because there was no room.
func (c *claims) current(batch []*Grant) []*Grant {
	full := time.Unix(0, c.fullAt.Load())
	var current, crowded []*Grant
	refill := false
	for _, g := range batch {
		job, known := c.host.Look(g.JobID, g.Triggered)
		wanted := known && job.CreatedAt == g.CreatedAt &&
			(g.FromQueue || job.Revision == g.Revision || isTick(job.Schedule, g.Tick.In(c.config.Location)))
		if wanted {
			g.Revision = job.Revision
		}
		switch {
		case g.unsure:
			current = append(current, g)
		case wanted && !c.isOld(g):
			g.GroupID, g.SuperGroupID = job.GroupID, job.SuperGroupID
			current = append(current, g)
		case wanted && !g.FromQueue && g.asked.Before(full):
			refill = true
			crowded = append(crowded, g)
		default:
			refill = refill || g.FromQueue
			c.drop(g)
		}
	}
	c.park(crowded)
	if refill {
		c.refill()
	}
	return current
}

// isOld reports whether a claim was tried for long enough.
func (c *claims) isOld(g *Grant) bool { return since(g.asked) > c.config.Timing.ClaimPatience }

// claim asks the store for a batch and starts what is won, for which there is room. It
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
			c.drop(g)
		case Delayed:
			c.config.Metrics.Count(ClaimsWon, 1)
			c.drop(g)
		case Stale:
			stale = append(stale, g)
		case Early:
			early = append(early, g)
		default:
			c.config.Metrics.Count(ClaimsLost, 1)
			c.drop(g)
		}
	}
	c.queue.push(again...)
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
		c.rejoin()
		c.pause(troubleWait)
	case c.config.RunUnclaimed && !c.isStopped():
		c.runUnclaimed(batch)
		return len(batch)
	case unknown:
		for _, g := range batch {
			g.unsure = true
		}
		c.await(err)
	default:
		c.pause(troubleWait)
	}
	c.askAgain(batch)
	return 0
}

// answered notes that the store answered a claim.
func (c *claims) answered() {
	if c.trouble.end() {
		c.recovered()
		go c.claimUnclaimed()
	}
}

// runUnclaimed starts runs without a claim.
func (c *claims) runUnclaimed(batch []*Grant) {
	c.config.Metrics.Count(RunsUnclaimed, len(batch))
	c.mu.Lock()
	for _, g := range batch {
		if g.Overlap == Delay {
			// It is claimed while it goes on: it must not wait in the store then.
			g.Overlap = Skip
		}
		c.unclaimed[g] = struct{}{}
	}
	c.mu.Unlock()
	for _, g := range batch {
		c.host.Start(g)
	}
}

// claimUnclaimed claims what runs without a claim, so that nobody takes it for
// missed.
func (c *claims) claimUnclaimed() {
	c.mu.Lock()
	unclaimed := slices.Collect(maps.Keys(c.unclaimed))
	c.mu.Unlock()
	for batch := range slices.Chunk(unclaimed, maxClaims) {
		results, err := c.call(batch)
		if err != nil {
			c.trouble.begin(err)
			return
		}
		c.mu.Lock()
		for i, g := range batch {
			if results[i] == Won {
				delete(c.unclaimed, g)
			}
		}
		c.mu.Unlock()
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
			c.drop(g)
		case !g.unsure && (old || stopped):
			c.drop(g)
		default:
			again = append(again, g)
		}
	}
	c.queue.push(again...)
}

// refresh learns what changed of the jobs of stale claims, and asks again.
func (c *claims) refresh(stale []*Grant) {
	if c.isStopped() {
		for _, g := range stale {
			c.drop(g)
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
			c.drop(g) // it was not won before, then
		} else {
			sure = append(sure, g)
		}
	}
	c.askAgain(sure)
}

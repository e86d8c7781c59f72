package ledger

import (
	"slices"
	"sync"
	"time"
)

// secondAfter is how long after a tick the second process looks whether the first has
// claimed it.
const secondAfter = 500 * time.Millisecond

// deputy looks, for the ticks of which this process is the second, whether the first
// has claimed them, and claims those that it has not. When a process is gone, it
// looks at the ticks that came since it was heard of last.
type deputy struct {
	*common
	grants  *grants
	owners  *owners
	noted   signal // there is something to look at
	trouble trouble

	mu      sync.Mutex // guards the fields below, for moments
	pending []pendingTick
	gone    *members // the live processes before some were gone, or nil
}

// pendingTick is a tick that is to be looked at.
type pendingTick struct {
	job  Job
	tick time.Time
	at   time.Time // when, by the clock of this process
}

func newDeputy(c *common, o *owners, g *grants) *deputy {
	return &deputy{common: c, owners: o, grants: g, noted: newSignal(), trouble: c.newTrouble("look at ticks of others")}
}

// look notes a tick to look at.
func (d *deputy) look(job Job, tick time.Time) {
	// The wait is by the monotonic clock: that of the database may be set meanwhile. It ends
	// together for the ticks of one instant, so that one call looks at them.
	now := time.Now()
	wait := min(tick.Sub(now)-d.clock.offset(), MaxClockLead) + secondAfter
	d.mu.Lock()
	d.pending = append(d.pending, pendingTick{job, tick, now.Add(wait)})
	d.mu.Unlock()
	d.noted.set()
}

// takeOver notes that processes are gone.
func (d *deputy) takeOver(before *members) {
	d.mu.Lock()
	d.gone = before
	d.mu.Unlock()
	d.noted.set()
}

// run looks until the session is stopped.
func (d *deputy) run() {
	for d.next(d.noted, d.timer()) {
		before, due := d.take()
		if before != nil {
			d.check(d.inherited(before))
		}
		d.check(due)
	}
}

// take takes what is to be looked at now.
func (d *deputy) take() (before *members, due []pendingTick) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	before, d.gone = d.gone, nil
	// Ticks come in their order, but for a few.
	n := 0
	for n < len(d.pending) && n < maxClaims && !d.pending[n].at.After(now) {
		n++
	}
	due, d.pending = d.pending[:n:n], d.pending[n:]
	if len(d.pending) == 0 {
		d.pending = nil
	}
	return before, due
}

// timer tells when the next tick is to be looked at, if there is one.
func (d *deputy) timer() <-chan time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.pending) == 0 {
		return nil
	}
	return time.After(time.Until(d.pending[0].at))
}

// inherited returns the ticks of the jobs that this process owns now, and another one
// did that is gone, which came since that one was heard of last.
func (d *deputy) inherited(before *members) (ticks []pendingTick) {
	now := d.clock.now().In(d.config.Location)
	from := now.Add(-suspectAfter(d.config.SyncInterval) - 2*d.config.SyncInterval - secondAfter)
	live := d.owners.live.Load()
	for _, job := range d.host.Jobs() {
		if job.Undecodable || d.owners.rank(job.ID) != first || live.has(before.owner(job.ID)) {
			continue
		}
		found, _ := TicksIn(job.Schedule, from, now, maxTakeOver)
		for _, tick := range found {
			ticks = append(ticks, pendingTick{job: job, tick: tick})
		}
	}
	return ticks
}

// maxTakeOver is how many ticks of a job are looked at when its owner is gone: in a
// few seconds there are no more.
const maxTakeOver = 100

// check claims the ticks that nobody has claimed.
func (d *deputy) check(ticks []pendingTick) {
	for batch := range slices.Chunk(ticks, maxClaims) {
		if d.isStopped() {
			return
		}
		keys := make([]Key, len(batch))
		for i, t := range batch {
			keys[i] = Key{JobID: t.job.ID, Tick: t.tick.UTC(), Attempt: 1}
		}
		unclaimed, err := d.store.Unclaimed(keys)
		if err != nil {
			// Claiming answers as well, and is tried for longer.
			d.trouble.begin(err)
			for _, t := range batch {
				d.grants.ask(t.job, t.tick)
			}
			continue
		}
		d.trouble.end()
		for _, i := range unclaimed {
			d.grants.ask(batch[i].job, batch[i].tick)
		}
	}
}

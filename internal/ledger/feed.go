package ledger

import (
	"sync"
	"sync/atomic"
	"time"
)

// feed lets the host follow what other processes change.
type feed struct {
	*common
	owners   *owners
	grants   *grants
	outdated signal
	arrived  atomic.Bool // there is something in the outbox
	trouble  trouble

	mu     sync.Mutex // guards inSync, for moments
	inSync time.Time  // when the host was known to agree with the database last
}

func newFeed(c *common, o *owners, g *grants) *feed {
	return &feed{common: c, owners: o, grants: g, outdated: newSignal(), inSync: time.Now(), trouble: c.newTrouble("follow changes")}
}

// run follows until the session is stopped.
func (f *feed) run() {
	for f.next(f.outdated, nil) {
		// The next heartbeat tells of changes again that could not be followed.
		_ = f.follow(f.arrived.Swap(false))
	}
}

// follow follows the changes of others and, if outbox is set, the transactions of the
// application.
func (f *feed) follow(outbox bool) error {
	began := time.Now()
	var revision int64
	var begun []Watermark
	var err error
	if outbox {
		revision, begun, err = f.store.TakeOutbox()
	}
	if revision > 0 {
		f.owners.changed(revision)
	}
	if err == nil {
		err = f.host.Follow(nil)
	}
	if err != nil {
		f.trouble.begin(err)
		return err
	}
	f.trouble.end()
	f.agreed(began)
	f.catchUp(begun)
	return nil
}

// catchUp asks for the latest tick that came between the call that began the ticks of a
// job and the moment it was followed: nobody else fires it.
func (f *feed) catchUp(begun []Watermark) {
	now := f.clock.tickNow().In(f.config.Location)
	for _, mark := range begun {
		job, ok := f.host.Look(mark.JobID, false)
		if !ok {
			continue
		}
		after := mark.Until.In(f.config.Location)
		for _, tick := range LastTicks(job.Schedule, after, now, 1) {
			f.grants.ask(job, tick)
		}
	}
}

// heard compares the revision of a heartbeat with the one that the host had seen when
// it was sent, and looks whether something has arrived in the outbox.
func (f *feed) heard(n news) {
	if n.Outbox {
		f.arrived.Store(true)
		f.outdated.set()
	}
	switch {
	case n.Revision == n.seen:
		f.agreed(time.Now())
		return
	case n.Revision < n.seen:
		// The database is an older copy of itself: everything is to be read again.
		f.seen.CompareAndSwap(n.seen, 0)
	}
	f.outdated.set()
}

// refresh reads what changed, and the rows of ids in any case.
func (f *feed) refresh(ids []int64) error {
	err := f.host.Follow(ids)
	if err != nil {
		f.trouble.begin(err)
	}
	return err
}

func (f *feed) agreed(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inSync = at
}

func (f *feed) lag() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.inSync)
}

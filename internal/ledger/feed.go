package ledger

import (
	"sync"
	"time"
)

// feed lets the host follow what other processes change.
type feed struct {
	*common
	outdated chan struct{} // holds 1
	trouble  trouble

	mu     sync.Mutex // guards inSync, for moments
	inSync time.Time  // when the host was known to agree with the database last
}

func newFeed(c *common) *feed {
	return &feed{common: c, outdated: make(chan struct{}, 1), inSync: time.Now(),
		trouble: trouble{what: "follow changes", log: c.config.Log}}
}

// run follows until the session is stopped.
func (f *feed) run() {
	for {
		select {
		case <-f.stopped:
			return
		case <-f.outdated:
		}
		began := time.Now()
		if err := f.host.Follow(nil); err != nil {
			f.trouble.begin(err)
			continue // the next heartbeat finds it outdated still
		}
		f.trouble.end()
		f.agreed(began)
	}
}

// heard compares the revision of a heartbeat with the one that the host had seen when
// it was sent.
func (f *feed) heard(revision, seen int64) {
	switch {
	case revision == seen:
		f.agreed(time.Now())
		return
	case revision < seen:
		// The database is an older copy of itself: everything is to be read again.
		f.seen.CompareAndSwap(seen, 0)
	}
	wake(f.outdated)
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

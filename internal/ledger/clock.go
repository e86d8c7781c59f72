package ledger

import (
	"sync"
	"time"
)

// clock is what the heartbeats that were answered tell of the database: what time it is
// there, and since when it answers. newClock makes one; it is goroutine-safe.
type clock struct {
	longestGap time.Duration // between two heartbeats while all is well

	mu       sync.Mutex    // guards the fields below, for moments
	answered time.Time     // when the last heartbeat was, by this process's clock
	ahead    time.Duration // by how much the database's clock is before this process's
	shift    time.Duration // of ticks: ahead when it was more than maxAhead
	resumed  time.Time     // when the store last answered, or this process went on, after a while
}

func newClock(syncInterval time.Duration) *clock {
	return &clock{longestGap: 2*syncInterval + time.Second, answered: time.Now()}
}

const (
	// maxAhead is how far the clocks may differ until ticks follow the database's, and
	// aheadStep how much the difference then has to change.
	maxAhead  = MaxClockLead
	aheadStep = maxAhead / 2
	// maxTrip is how long a heartbeat and its answer may take to tell what time it is: the
	// answer may have waited for a process that was stopped.
	maxTrip = aheadStep
)

// hear notes that a heartbeat that was sent at an instant was answered at another, and
// what time it was in the database between them. It returns how long before there was
// an answer.
func (c *clock) hear(database, sent, answered time.Time) (gap time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	gap = answered.Sub(c.answered)
	c.answered = answered
	// An answer that agrees with what is known, within what it took, tells no better: it may
	// have waited on one of the ways.
	trip := answered.Sub(sent)
	if ahead := database.Sub(sent.Add(trip / 2)); trip < maxTrip && (ahead-c.ahead).Abs() > trip/2 {
		c.ahead = ahead
	}
	return gap
}

// follow lets ticks follow the database's clock if this machine's differs.
func (c *clock) follow() (before, shift time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before = c.shift
	switch off := c.ahead.Abs(); {
	case off > maxAhead && (c.ahead-before).Abs() > aheadStep:
		c.shift = c.ahead.Round(time.Millisecond)
	case off < aheadStep:
		c.shift = 0
	}
	return before, c.shift
}

// resume notes that the store answers, or this process goes on, after a while.
func (c *clock) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resumed = time.Now()
}

// sinceResumed is how long ago that was.
func (c *clock) sinceResumed() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return since(c.resumed)
}

// silent reports whether the last heartbeat is longer ago than it should be: the store
// does not answer, or this process stood still.
func (c *clock) silent() bool { return since(c.lastAnswer()) > c.longestGap }

// lastAnswer is when a heartbeat was answered last.
func (c *clock) lastAnswer() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answered
}

// offset is by how much the database's clock is ahead of this process's.
func (c *clock) offset() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ahead
}

// now is about what time it is in the database.
func (c *clock) now() time.Time { return time.Now().Add(c.offset()) }

// tickNow is what the clock shows that ticks go by. It may be off from the database's by
// MaxClockLead, or by what a heartbeat takes.
func (c *clock) tickNow() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.shift)
}

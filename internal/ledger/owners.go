package ledger

import (
	"hash/fnv"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// owners says which process claims the ticks of a job. Every process computes the
// same from the same list of live processes, by rendezvous hashing: when the list
// changes, only the jobs of those that came or went move. Nothing depends on two
// processes agreeing: the key of a run decides who has it. It is goroutine-safe.
type owners struct {
	process      string
	syncInterval time.Duration
	live         atomic.Pointer[members]

	mu     sync.Mutex // guards recent, for moments
	recent []recentChange
	some   atomic.Bool // there are recent changes
}

// recentChange is a change of this process that others may not have followed yet: until
// then it claims the ticks of the jobs that it has changed, whoever owns them.
type recentChange struct {
	revision int64
	until    time.Time
}

// changed notes a change of this process.
func (o *owners) changed(revision int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dropFollowedLocked()
	o.recent = append(o.recent, recentChange{revision, time.Now().Add(suspectAfter(o.syncInterval) + secondAfter)})
	o.some.Store(true)
}

// changedLately reports whether a revision is that of a recent change of this process.
func (o *owners) changedLately(revision int64) bool {
	if !o.some.Load() {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dropFollowedLocked()
	o.some.Store(len(o.recent) > 0)
	return slices.ContainsFunc(o.recent, func(c recentChange) bool { return c.revision == revision })
}

func (o *owners) dropFollowedLocked() {
	now := time.Now()
	o.recent = slices.DeleteFunc(o.recent, func(c recentChange) bool { return now.After(c.until) })
}

// members are the live processes, in order, and their hashes.
type members struct {
	live   []Member
	hashes []uint64
	self   int // index of this process, or -1
}

// rank is the place of this process among those that may claim the ticks of a job.
type rank int

const (
	first  rank = iota // claims at the tick
	second             // looks a little later
	none
)

func newOwners(process string, syncInterval time.Duration) *owners {
	o := &owners{process: process, syncInterval: syncInterval}
	o.live.Store(newMembers([]Member{{Process: process}}, process))
	return o
}

func newMembers(live []Member, process string) *members {
	m := &members{live: live, hashes: make([]uint64, len(live)), self: slices.IndexFunc(live, func(l Member) bool { return l.Process == process })}
	for i := range live {
		h := fnv.New64a()
		_, _ = h.Write([]byte(live[i].Process))
		m.hashes[i] = h.Sum64()
	}
	return m
}

// set replaces the live processes. It returns those before, if some of them are live
// no longer, and else nil.
func (o *owners) set(live []Member) (before *members) {
	old := o.live.Load()
	same := func(a, b Member) bool { return a.Process == b.Process && a.Partial == b.Partial }
	if slices.EqualFunc(old.live, live, same) {
		return nil
	}
	next := newMembers(live, o.process)
	o.live.Store(next)
	if slices.ContainsFunc(old.live, func(m Member) bool { return !next.has(m.Process) }) {
		return old
	}
	return nil
}

func (m *members) has(process string) bool {
	return slices.ContainsFunc(m.live, func(l Member) bool { return l.Process == process })
}

// rank returns the place of this process for a job. Those that cannot run all jobs may
// not be able to run this one: the second is whoever ranks before the others but the
// first, and so are those after it as long as all before them are partial.
func (o *owners) rank(jobID int64) rank {
	m := o.live.Load()
	if m.self < 0 {
		return none
	}
	own := mix(m.hashes[m.self], jobID)
	above, whole := 0, 0 // processes that rank above this one, and those that are not partial
	best, bestWhole := uint64(0), false
	for i, hash := range m.hashes {
		if i == m.self {
			continue
		}
		weight := mix(hash, jobID)
		if weight < own || weight == own && i > m.self {
			continue
		}
		above++
		if !m.live[i].Partial {
			whole++
		}
		if weight >= best {
			best, bestWhole = weight, !m.live[i].Partial
		}
	}
	if bestWhole {
		whole-- // the first one: it may be gone
	}
	switch {
	case above == 0:
		return first
	case above == 1 || whole == 0:
		return second
	}
	return none
}

// owner is the process that ranks first for a job.
func (m *members) owner(jobID int64) string {
	best := 0
	for i := range m.hashes {
		if mix(m.hashes[i], jobID) > mix(m.hashes[best], jobID) {
			best = i
		}
	}
	return m.live[best].Process
}

// mix is the finalizer of MurmurHash3 over both.
func mix(hash uint64, jobID int64) uint64 {
	const c1, c2 = 0xff51afd7ed558ccd, 0xc4ceb9fe1a85ec53
	x := hash ^ uint64(jobID)*0x9e3779b97f4a7c15
	x ^= x >> 33
	x *= c1
	x ^= x >> 33
	x *= c2
	return x ^ x>>33
}

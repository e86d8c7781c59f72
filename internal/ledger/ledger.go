// Package ledger decides which of several processes runs what, and records every
// run: the record of runs. It knows ids, ticks, rows and revisions, and nothing of
// jobs: what a run does, and what is scheduled, is its Host's; where rows are kept
// is its Store's.
//
// A Ledger lives as long as its host, a Session from a start to the stop that ends
// it. A session is made of parts, each in a file of its own with its own state. Three
// know, and call nobody:
//
//   - clock: what time it is in the database, and since when it answers;
//   - owners: which process claims the ticks of a job;
//   - grants: the runs that this process asks for or has, and the ends to be recorded.
//
// The others work, on goroutines of their own, and call those:
//
//   - claims: asks the store for what is in grants, and starts the runs that are won;
//   - ends: records how runs ended;
//   - deputy: looks whether the owners of ticks have claimed them;
//   - waiting: asks for the runs that wait in the store;
//   - feed: follows the changes of other processes;
//   - heartbeat: shows that this process is alive, and learns who else is;
//   - sweep: what one process does for all: missed ticks, lost runs, pruning.
//
// Session puts them together, and tells them what a heartbeat has brought.
package ledger

import (
	"sync"
	"sync/atomic"
	"time"
)

// Timing is what tests shorten.
type Timing struct {
	// DeadAfter is how long a process has shown no heartbeat, while the database
	// answered, when it is taken for dead.
	DeadAfter time.Duration
	// SweepEvery is how often the leader looks for missed ticks, and MissedAfter
	// how old one is at least.
	SweepEvery, MissedAfter time.Duration
	// ClaimPatience is how long a claim that the database does not answer is
	// tried, and how old a claim may be when its run starts.
	ClaimPatience time.Duration
	// StopPatience is how long a session that was stopped may go on after its last
	// run, to record the ends of runs and to leave.
	StopPatience time.Duration
}

// DefaultTiming is the timing of production.
var DefaultTiming = Timing{
	DeadAfter:     15 * time.Second,
	SweepEvery:    time.Minute,
	MissedAfter:   30 * time.Second,
	ClaimPatience: 10 * time.Second,
	StopPatience:  9 * time.Second,
}

const (
	// troubleWait is how long a part leaves a store alone that did not answer.
	troubleWait = 200 * time.Millisecond
	// maxTroubleWait bounds that for the ends of runs, which are tried for ever.
	maxTroubleWait = 5 * time.Second
)

// Config says how a Ledger works. All fields but the flags must be set.
type Config struct {
	// Location is the one that schedules are read in, and Name what it is called
	// in the record.
	Location *time.Location
	// RerunLost runs the lost first attempts of runs again.
	RerunLost bool
	// RunUnclaimed starts runs that could not be claimed.
	RunUnclaimed bool
	// SyncInterval is the time between heartbeats.
	SyncInterval time.Duration
	// Retention is how long runs are kept. Negative means for ever.
	Retention time.Duration
	Timing    *Timing
	Metrics   Metrics
	Log       Log
}

// Log takes what happened. Its methods return at once.
type Log interface {
	Info(msg string, keysAndValues ...any)
	Error(err error, msg string, keysAndValues ...any)
}

// Metrics counts. Its methods return at once.
type Metrics interface {
	// Claimed is told how long a call of Store.Claim took.
	Claimed(took time.Duration)
	Count(event Event, n int)
}

// Event is something that is counted.
type Event int

// The events.
const (
	ClaimsWon Event = iota
	ClaimsLost
	ClaimsRefused
	RunsUnclaimed
	RunsLost
	TicksMissed
)

// Host is what the ledger works for. Its methods are goroutine-safe and may be
// called until the session is done.
type Host interface {
	// Hold counts a run in progress, unless the host was stopped; Release ends
	// it. Every Grant holds one.
	Hold() bool
	Release()

	// Look returns what is known here of a job, and false if it is not to run:
	// it is paused, deleted or not known. A triggered run may be of a paused job.
	Look(jobID int64, triggered bool) (Job, bool)
	// Partial reports whether there are jobs that do not decode here.
	Partial() bool
	// Jobs returns all jobs that are not paused, those that do not decode here
	// included.
	Jobs() []Job
	// Schedule returns the schedule of an expression that a job had.
	Schedule(expression string, createdAt time.Time) Schedule

	// Shift tells by how much the database's clock is ahead of this machine's: ticks
	// go by the database's. Zero means that the clocks agree.
	Shift(ahead time.Duration)
	// TakePlaces takes places for runs that are yet to be claimed, limit at most. If there
	// is none, freed is closed when it is worth asking again. LeavePlaces gives back
	// what was not needed.
	TakePlaces(limit int) (n int, freed <-chan struct{})
	LeavePlaces(n int)
	// Start starts the run of a grant, which has a place, on a goroutine of its
	// own, or ends it with Grant.Skip.
	Start(grant *Grant)
	// Overlapped is told that a tick was skipped because its job still runs.
	Overlapped(jobID int64, tick time.Time)

	// Follow makes the host agree with what was changed after Ledger.Seen, and
	// with the rows of ids in any case. It tells Ledger.Saw how far it has come.
	Follow(ids []int64) error
}

// Job is a job as the ledger sees it.
type Job struct {
	ID, GroupID, SuperGroupID int64
	CreatedAt                 int64 // Unix microseconds
	Revision                  int64 // 0: not known
	Schedule                  Schedule
	// Undecodable says that this process cannot run the job.
	Undecodable bool
	Policy
}

// Policy says how the runs of a job are treated.
type Policy struct {
	Overlap Overlap
	// MakeUp is how many missed ticks are made up for at most, the newest ones, and
	// Within how old they may be when they are found. Zero means any age.
	MakeUp int
	Within time.Duration
	// Attempts is how often a run is tried. Zero: that is not known here.
	Attempts int
}

// Ledger is the record of runs as one host uses it. New makes one; it is
// goroutine-safe and needs no end.
type Ledger struct {
	store  Store
	config Config

	// seen is the revision that the host agrees with at least.
	seen atomic.Int64

	opening sync.Mutex // guards opened; held while the store opens
	opened  bool
}

// New makes a ledger. It does no I/O.
func New(store Store, config Config) *Ledger { return &Ledger{store: store, config: config} }

// Open makes sure that there is a record. It does nothing once it has succeeded.
func (l *Ledger) Open() error {
	l.opening.Lock()
	defer l.opening.Unlock()
	if l.opened {
		return nil
	}
	if err := l.store.Open(l.config.Location.String()); err != nil {
		return err
	}
	l.opened = true
	return nil
}

// ChangeIn is Store.Change on a record that is open, through the store or a view of it,
// such as one with a context. The host makes itself agree with what it changed.
func (l *Ledger) ChangeIn(store Store, change func(tx Tx) error) (revision int64, err error) {
	revision, err = store.Change(change)
	if err == nil {
		l.seen.CompareAndSwap(revision-1, revision)
	}
	return revision, err
}

// Seen is the revision up to which the host has followed changes.
func (l *Ledger) Seen() int64 { return l.seen.Load() }

// Saw notes that the host agrees with everything up to the revision.
func (l *Ledger) Saw(revision int64) { l.seen.Store(revision) }

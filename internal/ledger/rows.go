package ledger

import (
	"cmp"
	"fmt"
	"time"
)

// Key names a run.
type Key struct {
	JobID int64
	// Tick is the nominal instant of the run; if it was triggered, the time of the
	// call.
	Tick      time.Time
	Triggered bool
	// Attempt is 1 for the first run of a tick, and one more for each further one.
	Attempt int
}

// KeyID is a Key that can be compared.
type KeyID struct {
	JobID     int64
	Tick      int64 // Unix microseconds
	Triggered bool
	Attempt   int
}

// ID gives the key for being compared.
func (k Key) ID() KeyID { return KeyID{k.JobID, k.Tick.UnixMicro(), k.Triggered, k.Attempt} }

// Compare orders keys by job, tick, triggered and attempt.
func (k Key) Compare(other Key) int {
	return cmp.Or(cmp.Compare(k.JobID, other.JobID), cmp.Compare(k.Tick.UnixMicro(), other.Tick.UnixMicro()),
		compareBools(k.Triggered, other.Triggered), cmp.Compare(k.Attempt, other.Attempt))
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Run is a row of the record: a run, or a stretch of ticks that were missed.
type Run struct {
	Key
	GroupID, SuperGroupID int64
	// Process is the one that runs it, or found it missed. It is "" while it waits.
	Process string
	// Start is, until the run has ended, when it was claimed.
	Start, End time.Time
	Outcome    Outcome
	Error      string
	// Missed is, for the outcome Missed, how many ticks the row stands for:
	// FirstTick to Tick. Of a run that makes up for missed ticks it is how many,
	// its own included.
	Missed    int
	FirstTick time.Time
	// Exclusive says that it is to hold the lock of its job.
	Exclusive bool
	// Due is when a waiting run may run, and the zero time for any other.
	Due time.Time
}

// String describes the run in a line.
func (r Run) String() string {
	return fmt.Sprintf("job %d, tick %s, attempt %d: %s", r.JobID, r.Tick.Format(time.RFC3339), r.Attempt, r.Outcome)
}

// Outcome says how a run ended, or that it has not.
type Outcome string

// The outcomes that the ledger knows of. How a run ended by itself is the host's.
const (
	Running Outcome = "running"
	Waiting Outcome = "waiting"
	Lost    Outcome = "lost"
	Skipped Outcome = "skipped"
	Missed  Outcome = "missed"
)

// Query selects runs. Nil and zero fields do not select.
type Query struct {
	JobIDs, GroupIDs, SuperGroupIDs []int64
	Outcomes                        []Outcome
	From, Before                    time.Time // of the tick
	After                           *Key      // in the order in which runs are listed
	Limit                           int       // zero or less: a thousand
}

// Most is how many runs are selected at most.
func (q *Query) Most() int {
	const unlessTold = 1000
	if q.Limit <= 0 {
		return unlessTold
	}
	return q.Limit
}

// Claim asks for a run.
type Claim struct {
	Key
	// GroupID and SuperGroupID are the job's, for the record.
	GroupID, SuperGroupID int64
	// Revision is that of the job as the claimer knows it. It does not matter for
	// a triggered run that does not wait, nor, if it is zero, for one that does: the
	// claimer reads the row of a paused job when the run starts.
	Revision int64
	// Overlap says whether the run needs the lock of its job.
	Overlap Overlap
	// OfWaiting says that the run is one that waits in the record. It waits on if its
	// lock is held.
	OfWaiting bool
	// NewestCounts says that a later tick of the job ends the attempts of an earlier
	// one: a first attempt that is won ends those that wait, and a further one
	// that waits ends, in place of being won, if a later tick has started.
	NewestCounts bool
}

// Overlap says what becomes of a run that needs the lock of its job while another
// run holds it.
type Overlap int

const (
	// Allow takes no lock.
	Allow Overlap = iota
	// Skip records the run as skipped.
	Skip
	// Delay lets one run wait for the one that holds the lock, or is about to take it;
	// more are skipped.
	Delay
)

// Result is the answer to a Claim.
type Result int

// The answers to a Claim. Of several that apply it is Won for one's own unfinished
// run, or else the first of Stale, Late, Early and Taken. A triggered run is never
// late or early.
const (
	// Won says that the run is recorded as running, and is for this process to
	// start.
	Won Result = iota + 1
	// Taken says that the key has a run already or, of a waiting run, that it
	// waits no longer, or not yet for us.
	Taken
	// Overlapped says that another run holds the lock of the job, or waits for it:
	// this one is recorded as skipped.
	Overlapped
	// Delayed says that another run holds the lock of the job, or is about to take it,
	// and none waits for that one: this one is recorded as waiting.
	Delayed
	// Stale says that the job has no row or that its revision matters and is another,
	// or, unless the run is triggered, that it is paused.
	Stale
	// Late says that the watermark of the job has passed the tick.
	Late
	// Early says that the tick is more than MaxClockLead ahead of the database.
	Early
)

// MaxClockLead is how far a claim may be ahead of the database's clock.
const MaxClockLead = time.Second

// End is the end of a run that was claimed.
type End struct {
	Key
	Start, End time.Time
	Outcome    Outcome
	Error      string
	// Overlap says whether the run holds the lock of its job.
	Overlap Overlap
	// Unclaimed says that the run was started without a claim. The ids of its
	// job's groups are for the record.
	Unclaimed             bool
	GroupID, SuperGroupID int64
	// Retry is when the next attempt may run. Zero means that there is none.
	Retry time.Time

	follow  bool      // a waiting run may be able to run now
	refused time.Time // by the store, first
}

// Watermark is how far the ticks of a job are accounted for.
type Watermark struct {
	JobID int64
	// Until is the instant up to which every tick is recorded, itself included.
	Until time.Time
	// The rest describes the job. Record ignores it.
	Revision  int64
	CreatedAt time.Time
	Paused    bool
	Busy      bool // a run holds its lock
}

// Span is the time after After up to Until, for one job.
type Span struct {
	JobID        int64
	After, Until time.Time
}

// ClosedSpan is the time of a job under an expression that it has no more, or no
// row for, whose ticks are not accounted for.
type ClosedSpan struct {
	Span
	// Revision is that of the Change that closed it. With JobID it names the span.
	Revision              int64
	CreatedAt             time.Time
	Expression            string
	GroupID, SuperGroupID int64
	// MakeUp says that missed ticks are made up for, as the job's policy says.
	MakeUp bool
}

// Process is a process as Store.Processes lists it.
type Process struct {
	Member
	Version string        // of its program
	Since   time.Time     // when it joined
	Age     time.Duration // of its last heartbeat
	Leads   bool
}

// Member is a process that is registered.
type Member struct {
	Process string
	Beats   int64
	Standing
}

// Standing is what a process tells the others of itself.
type Standing struct {
	Claims  bool // it claims ticks: it has started, and was not stopped
	Partial bool // it cannot run all jobs: some do not decode there
	// Offset is by how much the database's clock was ahead of the process's.
	Offset time.Duration
}

// Heartbeat is what a process learns at each heartbeat.
type Heartbeat struct {
	Now      time.Time // of the database
	Revision int64     // of the last Change
	Leader   string    // the process that leads, or ""
	Members  []Member  // all processes, this one included, in order
	// Due is when the next waiting run may run. Zero means that none waits.
	Due time.Time
	// Canceled is how many unfinished runs of the process are canceled.
	Canceled int
	// Outbox says that there is something for TakeOutbox.
	Outbox bool
}

// Cancellation is a run that is canceled.
type Cancellation struct {
	Key
	Abandon time.Time // when it is given up; zero: never
}

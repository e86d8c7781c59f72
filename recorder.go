package smallben

import (
	"fmt"
	"strings"
	"time"
)

// Recorder is what Config.Runs needs of a Repository: a record of runs, shared by
// every process on the database, which decides who runs what. RepositoryGorm is
// one on PostgreSQL and on SQLite.
//
// The contract of Repository holds for it: methods are safe for concurrent use and
// bounded in time, a method that writes is one atomic write, an error means that
// nothing changed unless it wraps ErrOutcomeUnknown, and times are in UTC and
// exact to the microsecond. The database's clock is the clock of all its rules.
//
// The record holds
//
//   - runs, each under its RunKey, of which there is one at most;
//   - a mark for each job: the revision of its last change, and the instant up to
//     which each of its ticks is recorded, its account. The mark of a deleted job
//     stays behind as a tombstone;
//   - the running key of a job, which one run at a time may hold;
//   - the processes, each with the number of its beats, and which of them leads.
//
// A revision is the number of a Change: they begin at 1, and one with a higher
// number was committed later.
type Recorder interface {
	Repository

	// OpenRecord makes sure that there is a record, and does what CompareMarks
	// does. The first call on a database stores the name of the location; one
	// with another name is an error. Several processes may call it at once.
	OpenRecord(location string) error

	// Join registers a process, with zero beats, unless it is registered. Leave
	// removes it; a process that is not registered is no error.
	Join(process string) error
	Leave(process string) error

	// Beat adds one to the beats of a process and tells what time it is in the
	// record. The error wraps ErrNotRegistered if the process is not.
	Beat(process string) (Pulse, error)

	// Claim asks for runs, and answers one ClaimResult for each, in the order of
	// the claims. It is ErrNotRegistered, wrapped, if the process is not
	// registered. No claim is won of what a Change that has returned before made
	// stale. A claim that the process has won before, and whose run is unfinished,
	// is won again.
	Claim(process string, claims []Claim) ([]ClaimResult, error)

	// Finish sets the start, the end, the outcome and the error of runs that the
	// process has claimed and that are unfinished or lost, and frees the
	// running keys of those that are Exclusive. A run that is not so is left alone; one that is Unclaimed
	// is added if there is no run under its key, or one missed tick.
	Finish(process string, runs []FinishedRun) error

	// Change calls change, once, and commits what it did under the revision that
	// it returns. Changes come one after another, across all processes. If
	// change returns an error or panics, nothing happened; its error is
	// returned as it is.
	Change(change func(tx RecordTx) error) (revision int64, err error)

	// Changes returns the jobs that a Change with a higher revision than since
	// has changed last or, if ids is not nil, those of ids, whatever their
	// revision. Those of them that are deleted or never were are in Gone; of ids
	// that is every one that has no row.
	Changes(since int64, ids []int64) (Changes, error)

	// CompareMarks makes marks agree with rows that were written by a process that
	// does not record: a job without a mark, or whose UpdatedAt is not the one
	// that its mark remembers, gets a new revision and an account that begins
	// now, and a mark whose job is missing becomes a tombstone.
	CompareMarks() error

	// PruneRuns deletes at most limit finished runs whose tick lies before the
	// instant, and returns how many. It keeps what the account of their job has
	// not passed, and the newest run of each job that exists which was neither
	// missed nor skipped. It also deletes tombstones from before the instant.
	PruneRuns(before time.Time, limit int) (int, error)

	// ListRuns returns the runs that match, newest tick first, and among those
	// of one tick by job id and attempt, highest first.
	ListRuns(options ListRunsOptions) ([]Run, error)

	// LastRuns returns, of each of the jobs that has one, the run with the newest
	// tick since the job was created that was neither missed nor skipped, in
	// the order of the job ids.
	LastRuns(jobIDs []int64) ([]Run, error)
}

// RecordTx is the record within a Change. Its methods read and write in the
// Change's transaction. Reading methods lock the jobs that they return until its
// end. Each method that writes jobs, but SetCronId, gives them the mark of this
// revision, and a job that is added or resumed an account that begins now; the
// mismatch error of one undoes the Change if it is returned.
type RecordTx interface {
	Repository
	Upserter

	// Now is the time of the database when the Change began.
	Now() time.Time

	// Accounts returns the accounts of those of the jobs that exist, in the order
	// of their ids; one without a mark gets it. A Change asks for all that it will
	// write at once, before it writes: claims wait in the order of ids. Until the end of the Change no claim of theirs is answered.
	Accounts(jobIDs []int64) ([]Account, error)

	// RecordedTicks returns, for each span and in the same order, the ticks in it
	// under which there is a run that was not triggered, in order.
	RecordedTicks(spans []TickSpan) ([][]time.Time, error)

	// Record sets Until of the accounts, adds runs, and takes the running key of
	// the job for each run that is Exclusive and unfinished. A key that exists
	// already is an error.
	Record(accounts []Account, runs []Run) error

	// Bury removes those of the processes whose beats are still the ones given.
	// Then it gives every unfinished run whose process is not registered the
	// outcome OutcomeLost, frees its running key, and returns it.
	Bury(dead []Peer) ([]Run, error)

	// Lead makes process the leader if the leader is not registered, or is process,
	// and reports whether it leads.
	Lead(process string) (bool, error)
}

// RunKey names a run.
type RunKey struct {
	JobID int64
	// Tick is the nominal instant of the run; if it was triggered, the time of
	// the call.
	Tick      time.Time
	Triggered bool
	// Attempt is 1 for the run of a tick, and 2 for the one in place of a run
	// that was lost.
	Attempt int
}

// Claim asks for a run.
type Claim struct {
	RunKey
	// GroupID and SuperGroupID are the job's, for the record.
	GroupID      int64
	SuperGroupID int64
	// Revision is that of the job as the claimer knows it. It does not matter for
	// a triggered run.
	Revision int64
	// Exclusive asks for the running key of the job as well.
	Exclusive bool
}

// ClaimResult is the answer to a Claim.
type ClaimResult int

// The answers to a Claim. Of several that apply it is ClaimWon for one's own
// unfinished run, or else the first of ClaimStale, ClaimLate, ClaimEarly and
// ClaimTaken. A triggered run is never late or early.
const (
	// ClaimWon says that the run is recorded with OutcomeRunning and that this
	// process is to start it.
	ClaimWon ClaimResult = iota + 1
	// ClaimTaken says that there is a run under the key already.
	ClaimTaken
	// ClaimSkipped says that the claim was Exclusive and that another run holds
	// the running key of the job: the run is recorded with OutcomeSkipped.
	ClaimSkipped
	// ClaimStale says that the job has no row, or, unless the run is triggered,
	// that it is paused or of another revision.
	ClaimStale
	// ClaimLate says that the account of the job has passed the tick.
	ClaimLate
	// ClaimEarly says that the tick is more than a second ahead of the database.
	ClaimEarly
)

// FinishedRun is the end of a run that was claimed.
type FinishedRun struct {
	RunKey
	Start, End time.Time
	Outcome    Outcome
	Error      string
	// Exclusive says that the run holds the running key of its job.
	Exclusive bool
	// Unclaimed says that the run was started without a claim. The ids of its
	// job's groups are for the record.
	Unclaimed    bool
	GroupID      int64
	SuperGroupID int64
}

// Pulse is what a process learns at each beat.
type Pulse struct {
	Now      time.Time // of the database
	Revision int64     // of the last Change
	Leader   string    // the process that leads, or ""
	Peers    []Peer    // all processes, this one included
}

// Peer is a process that is registered.
type Peer struct {
	Process string
	Beats   int64
}

// Changes is what Recorder.Changes returns: one picture of the database.
type Changes struct {
	// Revision is that of the last Change, whatever it changed.
	Revision int64
	// Jobs are rows, with their Revision, decodable or not, in the order of
	// their ids.
	Jobs []RawJob
	// Gone are the ids of jobs that have no row.
	Gone []int64
}

// Account is how far the ticks of a job are recorded.
type Account struct {
	JobID int64
	// Until is the instant up to which every tick is recorded, itself included.
	Until time.Time
	// Revision is that of the job. Record ignores it.
	Revision int64
	// Busy says that a run holds the running key of the job. Record ignores it.
	Busy bool
}

// TickSpan is the time after After up to Until, for one job.
type TickSpan struct {
	JobID        int64
	After, Until time.Time
}

// Run is a run in the record, or a stretch of ticks that were missed.
type Run struct {
	RunKey
	// GroupID and SuperGroupID are those of the job when it ran.
	GroupID      int64
	SuperGroupID int64
	// Process is the process that ran it: its host, its process id, and letters
	// that tell its sessions apart. Of missed ticks it is the one that found out.
	Process string
	// Start and End are when the run started and ended, by the clock of its
	// process. Until the run has ended, Start is when it was claimed, and End is
	// the zero time.
	Start, End time.Time
	// Outcome says how it ended, or that it has not, and Error what went wrong.
	Outcome Outcome
	Error   string
	// Missed is, for OutcomeMissed, how many ticks the entry stands for: FirstTick
	// to Tick. From 10,000 on it stands for at least as many. Of a run that makes
	// up for missed ticks it is how many, its own included.
	Missed    int
	FirstTick time.Time
	// Exclusive says that it was to hold the running key of its job.
	Exclusive bool
}

// Lateness is the time from the tick to the start. It is 0 for what never started.
func (r *Run) Lateness() time.Duration {
	if r.Outcome == OutcomeMissed || r.Outcome == OutcomeSkipped {
		return 0
	}
	return r.Start.Sub(r.Tick)
}

// String describes the run in a line.
func (r Run) String() string {
	text := fmt.Sprintf("job %d, tick %s: %s", r.JobID, r.Tick.Format(time.RFC3339), r.Outcome)
	if r.Triggered {
		text += ", triggered"
	}
	if r.Attempt > 1 {
		text += fmt.Sprintf(", attempt %d", r.Attempt)
	}
	if r.Missed > 1 {
		text += fmt.Sprintf(", %d ticks", r.Missed)
	}
	if r.Process != "" {
		text += ", on " + r.Process
	}
	if r.Error != "" {
		text += ": " + r.Error
	}
	return text
}

// ListRunsOptions selects runs. A run is selected if it matches every filter that
// is given. The zero value selects the newest thousand.
type ListRunsOptions struct {
	// JobIDs, GroupIDs and SuperGroupIDs select the runs of jobs with one of these
	// ids. Nil means any; an empty slice that is not nil selects nothing.
	JobIDs        []int64
	GroupIDs      []int64
	SuperGroupIDs []int64
	// Outcomes selects runs with one of these outcomes. Nil means any.
	Outcomes []Outcome
	// From and Before select by the tick: not before From, and before Before. The
	// zero time does not select.
	From, Before time.Time
	// Limit is how many runs to return at most, the newest ones. Zero or less
	// means 1,000.
	Limit int
}

const defaultRunsLimit = 1000

// String says in words which runs are selected.
func (o ListRunsOptions) String() string {
	jobs := ListJobsOptions{JobIDs: o.JobIDs, GroupIDs: o.GroupIDs, SuperGroupIDs: o.SuperGroupIDs}
	text := "runs of " + jobs.String()
	if o.Outcomes != nil {
		names := make([]string, len(o.Outcomes))
		for i, outcome := range o.Outcomes {
			names[i] = string(outcome)
		}
		text += ", outcome " + strings.Join(names, " or ")
	}
	if !o.From.IsZero() {
		text += ", from " + o.From.Format(time.RFC3339)
	}
	if !o.Before.IsZero() {
		text += ", before " + o.Before.Format(time.RFC3339)
	}
	return text
}

func (o *ListRunsOptions) limit() int {
	if o.Limit <= 0 {
		return defaultRunsLimit
	}
	return o.Limit
}

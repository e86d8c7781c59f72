package ledger

import (
	"errors"
	"time"
)

// ErrNotRegistered is what errors.Is finds when a Store is asked in the name of a
// process that it does not know, or no longer knows.
var ErrNotRegistered = errors.New("process not registered")

// Store is the database as the ledger sees it: the record of runs, shared by every
// process on the database.
//
// Methods are goroutine-safe and bounded in time. A method that writes is one
// atomic write: an error means that nothing changed, unless it has a method
// Settled (see Settled). Times are in UTC and exact to the microsecond. The
// database's clock is the clock of all rules.
//
// The record holds
//
//   - runs, each under its Key, of which there is one at most;
//   - the state of each job: the revision of its last change, and its watermark,
//     the instant up to which its ticks are accounted for. A deleted job leaves a
//     tombstone;
//   - the lock of a job, which one run at a time may hold;
//   - the processes, each with the number of its heartbeats, and which one leads.
//
// A revision is the number of a Change. Revisions begin at 1, and a higher one was
// committed later.
type Store interface {
	// Open makes sure that there is a record, and does what Compare does. The
	// first call on a database stores the name of the location; a call with
	// another name is an error. Several processes may call it at once.
	Open(location string) error

	// Join registers a process, with no heartbeats, unless it is registered. Leave
	// removes it; a process that is not registered is no error.
	Join(process string) error
	Leave(process string) error

	// Beat adds one to the heartbeats of a process, stores its standing, and tells
	// what time it is in the database. The error wraps ErrNotRegistered if the
	// process is not registered.
	Beat(process string, standing Standing) (Heartbeat, error)

	// Processes returns all processes, in the order of their names.
	Processes() ([]Process, error)

	// Claim asks for runs, and returns a Result for each, in the order of the
	// claims. It is ErrNotRegistered, wrapped, if the process is not registered.
	// No claim is won of what a Change that returned before made stale. A claim
	// that the process has won before, and whose run is unfinished, is won again.
	Claim(process string, claims []Claim) ([]Result, error)

	// Unclaimed returns the indexes of the keys under which there is no run.
	Unclaimed(keys []Key) ([]int, error)

	// Waiting returns at most limit waiting runs in the order of their Due, those that
	// are not due yet included, and of those only what comes after a run that is
	// not nil. It leaves out runs that need a lock which another run holds, and
	// those before which an older run that is due no later is to have the lock.
	Waiting(after *Run, limit int) ([]Run, error)

	// Finish sets start, end, outcome and error of runs that the process has
	// claimed and that are unfinished or lost, and frees the locks of those
	// that hold one. It leaves other runs alone. A run that is Unclaimed is
	// added if its key has no run, or one that did not start: one missed tick, one
	// that was skipped, or one that waits. An end with a Retry adds
	// the next attempt as a waiting run, unless the job is paused or deleted, or
	// a later tick of it has started or waits.
	Finish(process string, ends []End) error

	// CancelRuns marks the unfinished runs that match as canceled. Of the query it
	// takes the ids. They are given up after a time, unless that is zero.
	CancelRuns(query Query, abandonAfter time.Duration) error

	// Canceled returns the unfinished runs of a process that are canceled.
	Canceled(process string) ([]Cancellation, error)

	// Change calls change, once, and commits what it did under the revision that
	// it returns. Changes come one after another, across all processes. If
	// change returns an error or panics, nothing happened; its error is returned
	// as it is.
	Change(change func(tx Tx) error) (revision int64, err error)

	// Watermarks returns the watermarks of those of the jobs that have one, in
	// the order of their ids. It locks nothing.
	Watermarks(jobIDs []int64) ([]Watermark, error)

	// Closed returns at most limit closed spans, the oldest first.
	Closed(limit int) ([]ClosedSpan, error)

	// Compare makes the states agree with rows that were written by a process
	// that does not record: a job without a state, or whose row was changed
	// since, gets a new revision and a watermark of now, and the state of a job
	// without a row becomes a tombstone.
	Compare() error

	// TakeOutbox gives the jobs that transactions of the application have changed a
	// new revision, which it returns, and clears what those left in the outbox. Begun
	// are the watermarks of the jobs that they added or resumed. An empty outbox is no
	// error, and no Change: the revision is 0.
	TakeOutbox() (revision int64, begun []Watermark, err error)

	// Prune deletes at most limit finished runs with ticks before the instant,
	// and returns how many. It keeps what the watermark of their job has not
	// passed, and the newest run of each job that exists which was neither
	// missed nor skipped. It also deletes tombstones from before the instant.
	Prune(before time.Time, limit int) (int, error)

	// ListRuns returns the runs that match, newest tick first, and among those of
	// one tick by job id and attempt, highest first.
	ListRuns(query Query) ([]Run, error)

	// RunsOf returns the runs of each of the jobs: those of its newest n ticks, those
	// of the newest tick that was neither missed nor skipped nor waits, and those that
	// wait. Where a job was skipped very often since, the newest tick may be that of a
	// run in progress. They are in the order of job id, tick and attempt.
	RunsOf(jobIDs []int64, n int) ([]Run, error)
}

// Tx is the record within a Change.
type Tx interface {
	// Now is the time of the database when the Change began.
	Now() time.Time

	// Watermarks returns and locks the watermarks of those of the jobs that
	// exist, in the order of their ids; a job without one gets it. A Change asks
	// for all that it will write at once, before it writes: claims wait in the
	// order of ids. Until the end of the Change no claim of theirs is answered.
	Watermarks(jobIDs []int64) ([]Watermark, error)

	// RecordedTicks returns, for each span and in the same order, the ticks in it
	// that have a run which was not triggered, in order.
	RecordedTicks(spans []Span) ([][]time.Time, error)

	// Record sets the watermarks and adds runs. A key that exists is an error.
	Record(watermarks []Watermark, runs []Run) error

	// Close sets the watermarks of those of the jobs that are not paused to Now,
	// and leaves the time from where they stood as a ClosedSpan with the
	// expression that their rows have. A Change does so before it changes the
	// expression, pauses or deletes: nothing is computed in it.
	Close(jobIDs []int64, makeUp bool) error

	// Shorten moves the beginnings of closed spans to their After, and removes those
	// of which nothing is left.
	Shorten(spans []ClosedSpan) error

	// Cancel ends the waiting runs of jobs as skipped, with the reason for their
	// error. Triggered runs stay, unless triggered is set.
	Cancel(jobIDs []int64, triggered bool, reason string) error

	// Expire removes those of the processes whose heartbeats still have the
	// numbers given. Then it gives every unfinished run whose process is not
	// registered the outcome Lost, frees its lock, and returns it.
	Expire(dead []Member) ([]Run, error)

	// Superseded returns the indexes of the keys, none of them triggered, whose jobs have
	// a later tick that has started or waits.
	Superseded(keys []Key) ([]int, error)

	// Awaited returns, in order, the jobs for whose locks a run waits that the claims would
	// not end. Of the claims it takes what Claim goes by.
	Awaited(claims []Claim) ([]int64, error)

	// Lead makes process the leader if the leader is process, is not registered, or is
	// Partial while process is not, and reports whether process leads.
	Lead(process string) (bool, error)
}

// lockJobs returns the watermarks of those of the jobs that exist, by id, and locks them.
func lockJobs(tx Tx, ids []int64) (map[int64]Watermark, error) {
	locked, err := tx.Watermarks(ids)
	marks := make(map[int64]Watermark, len(locked))
	for _, mark := range locked {
		marks[mark.JobID] = mark
	}
	return marks, err
}

// Settled asks whether it is known by now what became of a write that failed with
// err. ok is false if err says that nothing changed.
func Settled(err error) (settle func() (bool, error), ok bool) {
	var outcome interface{ Settled() (bool, error) }
	if !errors.As(err, &outcome) {
		return nil, false
	}
	return outcome.Settled, true
}

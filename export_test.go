package smallben

import (
	"errors"
	"slices"
	"time"

	"github.com/nbena/smallben/internal/ledger"
)

// SetClock replaces the clock that watches for steps, before Start.
func SetClock(s *SmallBen, clock func() time.Time) {
	s.scheduler.clock = clock
}

// NewDefaultLogger makes what DefaultLogger is.
var NewDefaultLogger = newDefaultLogger

// NewPortableRepositoryGorm is NewRepositoryGorm with the statements that other
// databases than PostgreSQL and SQLite take.
func NewPortableRepositoryGorm(config *RepositoryGormConfig) (*RepositoryGorm, error) {
	return newRepositoryGorm(config, true)
}

// DecodeRows decodes rows.
func DecodeRows(rows []RawJob) ([]JobWithSchedule, []error) { return decodeRows(rows) }

// Naming returns job as an update that names these columns makes it.
func Naming(job JobWithSchedule, expression, input bool) JobWithSchedule {
	job.changes = columnChanges{expression: expression, input: input}
	return job
}

// WithRow returns job with the row for its own, without decoding it.
func WithRow(job JobWithSchedule, row RawJob) JobWithSchedule {
	job.rawJob = row
	return job
}

// Settled asks whether the outcome of a write is settled.
func Settled(err error) (bool, error) {
	var outcome interface{ Settled() (bool, error) }
	if !errors.As(err, &outcome) {
		return true, nil // nobody can be asked
	}
	return outcome.Settled()
}

// RunStore is what the record of runs needs of a repository.
type RunStore = runStore

// Changes is what RunStore.Changes returns.
type Changes = changedRows

// RevisionOf is the revision of the job with the id.
func (c changedRows) RevisionOf(id int64) int64 {
	return c.Jobs[slices.IndexFunc(c.Jobs, func(row RawJob) bool { return row.ID == id })].revision
}

// Revision is that of a row that RunStore.Changes returned.
func Revision(row RawJob) int64 { return row.revision }

// SetRevision is for what implements RunStore.
func SetRevision(row *RawJob, revision int64) { row.revision = revision }

// ChangeTx is the transaction of a Change as changes of jobs use it.
type ChangeTx = changeTx

// RunStoreOf returns the record of runs of a repository.
func RunStoreOf(r *RepositoryGorm) RunStore { return r.runStore() }

// Recorded makes a repository that embeds it one that has a record of runs.
type Recorded struct{ Store RunStore }

func (r Recorded) runStore() runStore { return r.Store }

// TakePlace takes a place of MaxConcurrentRuns. Its leave gives it to the tick that
// waits, which starts when start is called.
func TakePlace(s *SmallBen) (leave func() (start func())) {
	s.scheduler.places.Take(1)
	return func() func() {
		next, _ := s.scheduler.places.Leave()
		return func() { s.scheduler.startPlaced(next) }
	}
}

// Firing returns what the timetable calls at a tick of a job, as the job is now.
func Firing(s *SmallBen, jobID int64) func(at time.Time) {
	session := s.scheduler.current()
	from := s.scheduler.entries[jobID].slot
	return func(at time.Time) { session.fire(from, at) }
}

// Dropping returns what is called when the last run of a deleted job has ended, of the job
// as it is now.
func Dropping(s *SmallBen, jobID int64) func() {
	e := s.scheduler.entries[jobID]
	return func() { s.scheduler.drop(e) }
}

// Ran returns the ids of the jobs whose runs are known in memory.
func Ran(s *SmallBen) []int64 {
	return s.scheduler.ran(func(*entry) bool { return true })
}

// RunOf is a row of the record as users see it, in UTC.
func RunOf(row ledger.Run) Run {
	s := &SmallBen{scheduler: &scheduler{location: time.UTC}}
	return (&record{smallBen: s}).forUsers([]ledger.Run{row})[0]
}

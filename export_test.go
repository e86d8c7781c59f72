package smallben

import (
	"errors"
	"time"
)

// Entry is an entry of the scheduler as the tests' invariant sees it.
type Entry struct {
	CronID      int64
	Expression  string
	StoredInput string
}

// Entries returns the entries of s by job id.
func Entries(s *SmallBen) map[int64]Entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	entries := make(map[int64]Entry, len(s.scheduler.entries))
	for id, e := range s.scheduler.entries {
		entries[id] = Entry{int64(e.cronID), e.expression, e.storedInput}
	}
	return entries
}

// Pages returns how many entries each page of a started s holds, as SmallBen
// counts them and as cron does.
func Pages(s *SmallBen) (counted, held []int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.scheduler.session == nil {
		return nil, nil
	}
	for p := range s.scheduler.session.pages {
		counted = append(counted, p.live)
		held = append(held, len(p.cron.Entries()))
	}
	return counted, held
}

// RoomyPages returns how many pages s remembers for their room.
func RoomyPages(s *SmallBen) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.scheduler.session.roomy)
}

// PageSize is how many entries a page holds at most.
const PageSize = pageSize

// SetClock replaces the clock that watches for steps, before Start.
func SetClock(s *SmallBen, clock func() (wall time.Time, monotonic time.Duration)) {
	s.scheduler.clock = clock
}

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
	var outcome interface{ settled() (bool, error) }
	if !errors.As(err, &outcome) {
		return false, err
	}
	return outcome.settled()
}

// RunsTiming is what tests of the record of runs shorten.
type RunsTiming = runsTiming

// SetRunsTiming sets the timing of a SmallBen that records runs, before Start. What
// is zero stays.
func SetRunsTiming(s *SmallBen, timing RunsTiming) {
	for _, d := range []struct{ to, from *time.Duration }{
		{&s.record.timing.DeadAfter, &timing.DeadAfter},
		{&s.record.timing.SweepEvery, &timing.SweepEvery},
		{&s.record.timing.MissedAfter, &timing.MissedAfter},
		{&s.record.timing.ClaimPatience, &timing.ClaimPatience},
		{&s.record.timing.FlushPatience, &timing.FlushPatience},
	} {
		if *d.from != 0 {
			*d.to = *d.from
		}
	}
}

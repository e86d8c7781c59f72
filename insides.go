package smallben

import (
	"time"

	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/timetable"
)

func init() {
	insides.Entries = func(s any) map[int64]insides.Entry { return s.(*SmallBen).insideEntries() }
	insides.Pages = func(s any) (counted, held []int) { return s.(*SmallBen).insidePages() }
	insides.PageSize = timetable.PageSize
	insides.SetTiming = func(s any, timing insides.Timing) { s.(*SmallBen).setTiming(timing) }
}

func (s *SmallBen) insideEntries() map[int64]insides.Entry {
	s.scheduler.mu.RLock()
	defer s.scheduler.mu.RUnlock()
	entries := make(map[int64]insides.Entry, len(s.scheduler.entries))
	for id, e := range s.scheduler.entries {
		entries[id] = insides.Entry{CronID: int64(e.cronID), Expression: e.expression, StoredInput: e.storedInput}
	}
	return entries
}

func (s *SmallBen) insidePages() (counted, held []int) {
	if session := s.scheduler.current(); session != nil {
		counted, held, _ = session.timetable.Pages()
	}
	return counted, held
}

func (s *SmallBen) setTiming(timing insides.Timing) {
	for _, d := range []struct{ to, from *time.Duration }{
		{&s.record.timing.DeadAfter, &timing.DeadAfter},
		{&s.record.timing.SweepEvery, &timing.SweepEvery},
		{&s.record.timing.MissedAfter, &timing.MissedAfter},
		{&s.record.timing.ClaimPatience, &timing.ClaimPatience},
		{&s.record.timing.StopPatience, &timing.FlushPatience},
	} {
		if *d.from != 0 {
			*d.to = *d.from
		}
	}
}

package smallben

import (
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/ledger"
)

func init() {
	insides.Entries = func(s any) map[int64]insides.Entry {
		scheduler := s.(*SmallBen).scheduler
		scheduler.mu.RLock()
		defer scheduler.mu.RUnlock()
		entries := make(map[int64]insides.Entry, len(scheduler.entries))
		for id, e := range scheduler.entries {
			entries[id] = insides.Entry{CronID: int64(e.cronID), Expression: e.scheduled.expression, StoredInput: e.storedInput}
		}
		return entries
	}
	insides.Pages = func(s any) (counted, held []int) {
		if session := s.(*SmallBen).scheduler.current(); session != nil {
			counted, held, _ = session.timetable.Pages()
		}
		return counted, held
	}
	insides.Timing = func(s any) *ledger.Timing { return &s.(*SmallBen).record.timing }
}

package smallben

import (
	"cmp"
	"errors"
	"slices"
	"time"
)

// errNotRecorded refuses what only the record of runs knows.
var errNotRecorded = errors.New("runs are not recorded: Config.Runs.Record is not set")

// RecentRuns returns, for each of the jobs, the runs of its newest n ticks in the
// record, oldest first, and among the jobs in the order of their ids. What was
// missed and skipped is among them. Without Config.Runs.Record it returns an error.
func (s *SmallBen) RecentRuns(jobIDs []int64, n int) ([]Run, error) {
	if s.record == nil {
		return nil, wrap("recent runs", errNotRecorded)
	}
	if len(jobIDs) == 0 || n <= 0 {
		return nil, nil
	}
	if err := s.record.open(); err != nil {
		return nil, wrap("recent runs", err)
	}
	runs, err := s.recentRuns(jobIDs, n)
	if err != nil {
		return nil, wrap("recent runs", err)
	}
	for i := range runs {
		s.record.localize(&runs[i])
	}
	return runs, nil
}

func (s *SmallBen) recentRuns(jobIDs []int64, n int) (runs []Run, err error) {
	if reader, ok := s.record.recorder.(interface {
		recentRuns(jobIDs []int64, n int) ([]Run, error)
	}); ok {
		return reader.recentRuns(jobIDs, n)
	}
	for _, id := range unique(jobIDs) {
		of, err := s.record.recorder.ListRuns(ListRunsOptions{JobIDs: []int64{id}, Limit: n})
		if err != nil {
			return nil, err
		}
		slices.Reverse(of)
		runs = append(runs, of...)
	}
	return runs, nil
}

// RunCount is how many ticks within a step of time had an outcome.
type RunCount struct {
	From    time.Time
	Outcome Outcome
	Count   int
}

// CountRuns counts the runs whose tick is not before from, by steps of time since
// from and by outcome, in that order. An entry for missed ticks counts as many as
// it stands for. It looks at the newest limit runs at most, and returns since when
// all are counted: from, or a tick after it. Without Config.Runs.Record it returns
// an error.
func (s *SmallBen) CountRuns(from time.Time, step time.Duration, limit int) (counts []RunCount, since time.Time, err error) {
	switch {
	case s.record == nil:
		return nil, from, wrap("count runs", errNotRecorded)
	case step < time.Microsecond || limit <= 0:
		return nil, from, errors.New("count runs: step and limit must be positive")
	}
	if err := s.record.open(); err != nil {
		return nil, from, wrap("count runs", err)
	}
	if counter, ok := s.record.recorder.(interface {
		countRuns(from time.Time, step time.Duration, limit int) ([]RunCount, time.Time, error)
	}); ok {
		counts, since, err = counter.countRuns(from, step, limit)
	} else {
		counts, since, err = countListed(s.record.recorder, from, step, limit)
	}
	if err != nil {
		return nil, from, wrap("count runs", err)
	}
	return counts, since, nil
}

// countListed counts runs that it lists, for a Recorder that cannot count.
func countListed(recorder Recorder, from time.Time, step time.Duration, limit int) ([]RunCount, time.Time, error) {
	runs, err := recorder.ListRuns(ListRunsOptions{From: from, Limit: limit})
	if err != nil {
		return nil, from, err
	}
	type key struct {
		step    int64
		outcome Outcome
	}
	found := make(map[key]int)
	for i := range runs {
		k := key{int64(runs[i].Tick.Sub(from) / step), runs[i].Outcome}
		if runs[i].Outcome == OutcomeMissed {
			found[k] += runs[i].Missed
		} else {
			found[k]++
		}
	}
	counts := make([]RunCount, 0, len(found))
	for k, count := range found {
		counts = append(counts, RunCount{from.Add(time.Duration(k.step) * step), k.outcome, count})
	}
	slices.SortFunc(counts, func(a, b RunCount) int {
		return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.Outcome, b.Outcome))
	})
	if len(runs) == limit {
		from = runs[limit-1].Tick
	}
	return counts, from, nil
}

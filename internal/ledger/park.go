package ledger

import (
	"slices"
	"time"
)

// park records ticks as waiting runs that found no place within ClaimPatience: in the store
// they wait for a place in any process, in the order of their ticks. A tick that overlaps a
// run of its job is recorded as skipped, as its claim would have been. One that has a run,
// or whose job was changed, is dropped.
func (c *claims) park(batch []*Grant) {
	if len(batch) == 0 {
		return
	}
	slices.SortFunc(batch, func(a, b *Grant) int { return a.Key.Compare(b.Key) })
	var skipped []*Grant
	_, err := c.ChangeIn(c.store, func(tx Tx) (err error) {
		var runs []Run
		if runs, skipped, err = c.parked(tx, batch); err != nil {
			return err
		}
		return tx.Record(nil, runs)
	})
	if err != nil {
		c.trouble.begin(err)
		skipped = nil
	}
	c.config.Metrics.Count(ClaimsWon, len(skipped))
	for _, g := range skipped {
		c.host.Overlapped(g.JobID, g.Tick)
	}
	for _, g := range batch {
		c.grants.drop(g)
	}
}

// parked returns what park records, and which of it are skipped.
func (c *claims) parked(tx Tx, batch []*Grant) (runs []Run, skipped []*Grant, err error) {
	ids := make([]int64, len(batch))
	claims := make([]Claim, len(batch))
	spans := make([]Span, len(batch))
	for i, g := range batch {
		ids[i], claims[i] = g.JobID, g.Claim
		spans[i] = Span{JobID: g.JobID, After: g.Tick.Add(-time.Microsecond), Until: g.Tick}
	}
	marks, err := lockJobs(tx, ids)
	if err != nil {
		return nil, nil, err
	}
	ticks, err := tx.RecordedTicks(spans)
	if err != nil {
		return nil, nil, err
	}
	awaited, err := tx.Awaited(claims)
	if err != nil {
		return nil, nil, err
	}
	for i, g := range batch {
		mark, exists := marks[g.JobID]
		if !exists || mark.Revision != g.Revision || mark.Paused || !mark.Until.Before(g.Tick) || len(ticks[i]) > 0 {
			continue
		}
		run := Run{Key: g.Key, GroupID: g.GroupID, SuperGroupID: g.SuperGroupID, Outcome: Waiting, Due: g.Tick, Exclusive: g.Overlap != Allow}
		at, waited := slices.BinarySearch(awaited, g.JobID)
		switch {
		case g.Overlap == Skip && mark.Busy, g.Overlap == Delay && waited:
			run.Process, run.Start, run.End, run.Outcome, run.Due = c.process, tx.Now(), tx.Now(), Skipped, time.Time{}
			skipped = append(skipped, g)
		case g.Overlap == Delay:
			awaited = slices.Insert(awaited, at, g.JobID)
		}
		runs = append(runs, run)
	}
	return runs, skipped, nil
}

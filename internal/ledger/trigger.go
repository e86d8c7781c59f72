package ledger

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Trigger claims a run of each job at once. It returns those to start and those that
// wait; those of other jobs that run are skipped. If it returns an error, nothing runs
// but a run that waited and was started elsewhere meanwhile. gone is the error for a job
// that has no row.
func (s *Session) Trigger(jobs []Job, at time.Time, gone func(jobID int64) error) (granted []*Grant, err error) {
	c := s.claims
	undo := func(reason string) {
		for _, g := range granted {
			g.Skip(reason)
		}
	}
	pending := jobs
	// Another process, or another call, may have triggered at the same instant.
	for tick := at.UTC().Truncate(time.Microsecond); len(pending) > 0; tick = tick.Add(time.Microsecond) {
		grants, results, taken, err := c.claimTriggered(pending, tick)
		if err != nil {
			undo("another run of the same call could not be claimed")
			return nil, err
		}
		for i, g := range grants {
			switch results[i] {
			case Won:
				c.config.Metrics.Count(ClaimsWon, 1)
				granted = append(granted, g)
				continue
			case Delayed:
				g.Waits = true
				granted = append(granted, g)
				continue
			case Overlapped:
				s.host.Overlapped(g.JobID, g.Tick)
			case Taken:
				taken = append(taken, pending[slices.IndexFunc(pending, func(job Job) bool { return job.ID == g.JobID })])
			default:
				err = gone(g.JobID)
			}
			c.grants.drop(g)
		}
		if err != nil {
			undo("another job of the same call was deleted meanwhile")
			return nil, err
		}
		pending = taken
	}
	return granted, nil
}

// claimTriggered claims a triggered run of each job. taken are the jobs of which the
// same run is asked for already. A run whose claim is not known is recorded as
// skipped, if at all.
func (c *claims) claimTriggered(jobs []Job, tick time.Time) (grants []*Grant, results []Result, taken []Job, err error) {
	for _, job := range jobs {
		g, err := c.grants.add(Key{JobID: job.ID, Tick: tick, Triggered: true, Attempt: 1}, job)
		if errors.Is(err, ErrStopped) {
			for _, g := range grants {
				c.grants.drop(g)
			}
			return nil, nil, nil, err
		}
		if err != nil {
			taken = append(taken, job)
			continue
		}
		grants = append(grants, g)
	}
	if len(grants) == 0 {
		return nil, nil, taken, nil
	}
	if results, err = c.call(grants); err != nil {
		c.abandon(grants, err)
		return nil, nil, nil, fmt.Errorf("claim runs: %w", err)
	}
	return grants, results, taken, nil
}

// abandon gives up claims that failed with err. What may be committed all the same is
// recorded as skipped, as soon as it is known.
func (c *claims) abandon(grants []*Grant, err error) {
	if _, unknown := Settled(err); !unknown {
		for _, g := range grants {
			c.grants.drop(g)
		}
		return
	}
	go func() {
		for !c.await(err) {
			if c.isStopped() {
				c.inDoubt.Store(true)
				break
			}
		}
		for _, g := range grants {
			g.Waits = true
			g.Skip("it was not known in time whether it was claimed")
		}
	}()
}

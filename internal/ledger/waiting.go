package ledger

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	// maxWaiting is how many waiting runs are read in one call of the store.
	maxWaiting = 500
	// maxWaited bounds how many runs of this process that have waited go on at a
	// time: ticks come first.
	maxWaited = 500
	// rankWait is how long a waiting run is left to the process that owns its
	// job, and then to the second.
	rankWait = time.Second
)

// waiting asks for the runs that wait in the store: missed ticks that are made up for,
// lost runs, ticks that wait for the end of a run, further attempts. Each goes to the
// process that owns its job, or, if that has no place or cannot run it, to any that
// can.
type waiting struct {
	*common
	owners     *owners
	grants     *grants
	due        *time.Timer  // wakes run when the next waiting run may run
	inProgress atomic.Int64 // grants of runs that have waited
	trouble    trouble
}

func newWaiting(c *common, o *owners, g *grants) *waiting {
	due := time.AfterFunc(math.MaxInt64, c.wake.waiting.set)
	due.Stop() // until a heartbeat tells
	return &waiting{common: c, owners: o, grants: g, due: due, trouble: c.newTrouble("read waiting runs")}
}

// heard notes when the next waiting run may run.
func (w *waiting) heard(due, now time.Time) {
	if !due.IsZero() {
		w.due.Reset(max(0, due.Sub(now)))
	}
}

// run claims waiting runs until the session is stopped.
func (w *waiting) run() {
	for w.next(w.wake.waiting, nil) {
		if err := w.claim(); err != nil {
			// The next heartbeat says again that runs wait.
			w.trouble.begin(err)
			continue
		}
		w.trouble.end()
	}
	w.due.Stop()
}

// claim asks for the waiting runs that this process is to run.
func (w *waiting) claim() error {
	var after *Run
	for most := maxWaited - int(w.inProgress.Load()); most > 0 && !w.isStopped(); {
		runs, err := w.store.Waiting(after, maxWaiting)
		if err != nil {
			return err
		}
		var asked []*Grant
		early := false
		for i := range runs {
			if len(asked) == most {
				break
			}
			// They are in the order of their times: no further one is due, either.
			if now := w.clock.now(); runs[i].Due.After(now) {
				w.heard(runs[i].Due, now)
				early = true
				break
			}
			if g := w.grant(&runs[i]); g != nil {
				asked = append(asked, g)
			}
		}
		most -= len(asked)
		w.grants.asked.push(asked...)
		if early || len(runs) < maxWaiting {
			return nil
		}
		after = &runs[len(runs)-1]
	}
	return nil
}

// grant asks for a waiting run, if this process can run it and is to take it.
func (w *waiting) grant(run *Run) *Grant {
	job, ok := w.host.Look(run.JobID, run.Triggered)
	if !ok || job.Undecodable || !w.mine(run) {
		return nil
	}
	g, err := w.grants.add(run.Key, job)
	if err != nil {
		return nil
	}
	g.OfWaiting, g.Missed = true, run.Missed
	if run.Exclusive && g.Overlap == Allow {
		g.Overlap = Skip
	}
	w.inProgress.Add(1)
	g.ended = func() { w.inProgress.Add(-1) }
	if w.overtaken(run, &job) {
		g.Waits = true
		g.Skip("a later tick of its job came while it waited for a place")
		return nil
	}
	return g
}

// overtaken reports whether a waiting run is a tick that waits for a place, and a later
// tick of its job has come: the newest counts, and nothing piles up. A tick that waits
// for the end of a run, or that makes up for missed ones, is not overtaken.
func (w *waiting) overtaken(run *Run, job *Job) bool {
	if run.Triggered || run.Attempt > 1 || run.Missed > 0 || job.Overlap == Delay {
		return false
	}
	next := job.Schedule.Next(run.Tick.In(w.config.Location))
	return !next.IsZero() && !next.After(w.clock.now())
}

// mine reports whether a waiting run is for this process to take.
func (w *waiting) mine(run *Run) bool {
	late := w.clock.now().Sub(run.Due)
	switch w.owners.rank(run.JobID) {
	case first:
		return true
	case second:
		return late >= rankWait
	default:
		return late >= 2*rankWait
	}
}

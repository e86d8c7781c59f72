package ledger

import (
	"context"
	"errors"
	"slices"
	"time"
)

const (
	maxEnds = 2000 // in one call of the store
	// While claims wait for the store, the ends of runs wait for them, endsWait at
	// most, looking every endsStep.
	endsWait, endsStep = 100 * time.Millisecond, 10 * time.Millisecond
)

// ends records how runs ended, for as long as it takes.
type ends struct {
	*common
	grants  *grants
	claims  *claims
	trouble trouble
}

func newEnds(c *common, g *grants, cl *claims) *ends {
	return &ends{common: c, grants: g, claims: cl, trouble: c.newTrouble("record ends of runs")}
}

// run records ends until their queue is closed and empty, or the session is over.
func (e *ends) run() {
	urgent := func(end End) bool { return end.Overlap != Allow } // the next run of its job may wait for it
	for e.grants.over.wait() {
		for waited := time.Duration(0); waited < endsWait && e.claims.busy() && !e.grants.over.contains(urgent); waited += endsStep {
			e.pause(endsStep)
		}
		batch := e.grants.over.take(maxEnds)
		for n := range batch {
			if batch[n].refused.IsZero() {
				continue
			}
			if !e.finish(batch[n:n+1], batch[n].refused) {
				return
			}
		}
		batch = slices.DeleteFunc(batch, func(end End) bool { return !end.refused.IsZero() })
		if len(batch) > 0 && !e.finish(batch, time.Time{}) {
			return
		}
	}
}

// finish records a batch, for as long as it takes. It returns false when the session
// is over before. Refused is when the store first refused the batch, if it has.
func (e *ends) finish(batch []End, refused time.Time) bool {
	for wait := troubleWait; ; wait = min(2*wait, maxTroubleWait) {
		err := e.store.Finish(e.process, batch)
		if err == nil {
			e.recorded(batch)
			return true
		}
		e.trouble.begin(err)
		if refused.IsZero() {
			refused = time.Now()
		}
		_, unknown := Settled(err)
		late := errors.Is(err, context.DeadlineExceeded)
		if !unknown && !late && e.clock.lastAnswer().After(refused) {
			// The database answers, and refuses again: one bad end must not hold up
			// the others.
			if len(batch) > 1 {
				half := len(batch) / 2
				return e.finish(batch[:half], refused) && e.finish(batch[half:], refused)
			}
			e.postpone(batch[0], refused)
			return true
		}
		select {
		case <-time.After(wait):
		case <-e.wake.ends:
		case <-e.ended:
		}
		if closed(e.ended) {
			return false
		}
	}
}

func (e *ends) recorded(batch []End) {
	e.trouble.end()
	keys := make([]Key, len(batch))
	follow := false
	for i := range batch {
		keys[i] = batch[i].Key
		follow = follow || batch[i].follow
	}
	e.grants.forget(keys...)
	if follow {
		e.wake.waiting.set()
	}
}

// postpone tries an end that was refused again, after the others and by itself.
func (e *ends) postpone(end End, refused time.Time) {
	end.refused = refused
	time.AfterFunc(maxTroubleWait, func() {
		if !closed(e.ended) {
			e.grants.over.push(end)
		}
	})
}

// gaveUp says how many ends are not recorded, or that it is something else that hangs.
// Of no other grant anything is left when the session ends.
func (e *ends) gaveUp() {
	if n := e.grants.count(); n > 0 {
		e.config.Log.Error(errNoAnswer, "ends of runs were not recorded", "runs", n)
	} else {
		e.config.Log.Error(errNoAnswer, "the record of runs was not left", "process", e.process)
	}
}

var errNoAnswer = errors.New("the database did not answer in time")

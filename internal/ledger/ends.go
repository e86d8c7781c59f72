package ledger

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
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
	claims   *claims
	freed    func() // is told that locks of jobs were freed, or attempts added
	queue    *queue[End]
	answered signal // the store answers again
	// answeredSince reports whether a heartbeat was answered after an instant.
	answeredSince func(time.Time) bool
	unrecorded    atomic.Int64
	trouble       trouble
}

func newEnds(c *common) *ends {
	return &ends{common: c, queue: newQueue[End](), answered: newSignal(),
		trouble: trouble{what: "record ends of runs", log: c.config.Log}}
}

func (e *ends) push(end End) {
	end.Start, end.End = end.Start.UTC().Truncate(time.Microsecond), end.End.UTC().Truncate(time.Microsecond)
	e.unrecorded.Add(1)
	e.queue.push(end)
}

// wake says that the store answers again.
func (e *ends) wake() { e.answered.set() }

// run records ends until the queue is closed and empty, or the session is over.
func (e *ends) run() {
	urgent := func(end End) bool { return end.Overlap != Allow } // the next run of its job may wait for it
	for e.queue.wait() {
		for waited := time.Duration(0); waited < endsWait && e.claims.busy() && !e.queue.contains(urgent); waited += endsStep {
			e.pause(endsStep)
		}
		batch := e.queue.take(maxEnds)
		for n := range batch {
			if batch[n].refused.IsZero() {
				continue
			}
			if !e.record(batch[n:n+1], batch[n].refused) {
				return
			}
		}
		batch = slices.DeleteFunc(batch, func(end End) bool { return !end.refused.IsZero() })
		if len(batch) > 0 && !e.record(batch, time.Time{}) {
			return
		}
	}
}

// record records a batch, for as long as it takes. It returns false when the session
// is over before. Refused is when the store first refused the batch, if it has.
func (e *ends) record(batch []End, refused time.Time) bool {
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
		if !unknown && !late && e.answeredSince(refused) {
			// The database answers, and refuses again: one bad end must not hold up
			// the others.
			if len(batch) > 1 {
				half := len(batch) / 2
				return e.record(batch[:half], refused) && e.record(batch[half:], refused)
			}
			e.postpone(batch[0], refused)
			return true
		}
		select {
		case <-time.After(wait):
		case <-e.answered:
		case <-e.ended:
		}
		if closed(e.ended) {
			return false
		}
	}
}

func (e *ends) recorded(batch []End) {
	e.trouble.end()
	e.unrecorded.Add(-int64(len(batch)))
	keys := make([]Key, len(batch))
	follow := false
	for i := range batch {
		keys[i] = batch[i].Key
		follow = follow || batch[i].follow
	}
	e.claims.forget(keys...)
	if follow {
		e.freed()
	}
}

// postpone tries an end that was refused again, after the others and by itself.
func (e *ends) postpone(end End, refused time.Time) {
	end.refused = refused
	time.AfterFunc(maxTroubleWait, func() {
		if !closed(e.ended) {
			e.queue.push(end)
		}
	})
}

// gaveUp says how many ends are not recorded, or that it is something else that hangs.
func (e *ends) gaveUp() {
	if n := e.unrecorded.Load(); n > 0 {
		e.config.Log.Error(errNoAnswer, "ends of runs were not recorded", "runs", n)
	} else {
		e.config.Log.Error(errNoAnswer, "the record of runs was not left", "process", e.process)
	}
}

var errNoAnswer = errors.New("the database did not answer in time")

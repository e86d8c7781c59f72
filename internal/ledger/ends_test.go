package ledger

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// finishedStore is a Store that notes when ends were recorded.
type finishedStore struct {
	Store
	at []time.Time
}

func (s *finishedStore) Finish(string, []End) error {
	s.at = append(s.at, time.Now())
	return nil
}

func TestAnEndThatHoldsALockDoesNotWaitForClaims(t *testing.T) {
	const beforeLock = 3 * endsStep
	for name, c := range map[string]struct {
		end  func(push func(overlap Overlap))
		want time.Duration
	}{
		"the first one, with a lock": {func(push func(Overlap)) { push(Skip) }, 0},
		"one without a lock":         {func(push func(Overlap)) { push(Allow) }, endsWait},
		"one with a lock, behind one without": {func(push func(Overlap)) {
			push(Allow)
			time.Sleep(beforeLock)
			push(Delay)
		}, beforeLock},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &finishedStore{}
				shared := &common{Ledger: New(store, Config{Log: noLog{}}), stopped: make(chan struct{}), ended: make(chan struct{})}
				ends := newEnds(shared)
				ends.freed = func() {}
				ends.claims = newClaims(shared, ends, newFeed(shared))
				ends.claims.calls.Add(1) // one goes on
				begin := time.Now()
				go ends.run()
				defer ends.queue.close()
				c.end(func(overlap Overlap) { ends.push(End{Overlap: overlap}) })
				time.Sleep(2 * endsWait)
				synctest.Wait()
				if assert.Len(t, store.at, 1) {
					assert.WithinDuration(t, begin.Add(c.want), store.at[0], endsStep)
				}
			})
		})
	}
}

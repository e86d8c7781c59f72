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
				s := newSession(newCommon(New(store, Config{Log: noLog{}}), nil, "a"))
				s.claims.calls.Add(1) // one goes on
				begin := time.Now()
				go s.ends.run()
				defer s.grants.over.close()
				c.end(func(overlap Overlap) { s.grants.over.push(End{Overlap: overlap}) })
				time.Sleep(2 * endsWait)
				synctest.Wait()
				if assert.Len(t, store.at, 1) {
					assert.WithinDuration(t, begin.Add(c.want), store.at[0], endsStep)
				}
			})
		})
	}
}

package ledger

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// awayHost and awayStore count what they are asked for, and do not answer.
type awayHost struct {
	Host
	calls int
}

func (h *awayHost) Partial() bool { return false }

func (h *awayHost) Jobs() []Job { h.calls++; return nil }

func (h *awayHost) Follow([]int64) error { h.calls++; return errAway }

type awayStore struct {
	Store
	calls int
}

var errAway = errors.New("away")

func (s *awayStore) Change(func(tx Tx) error) (int64, error) { s.calls++; return 0, errAway }

func (s *awayStore) TakeOutbox() (int64, []Watermark, error) { s.calls++; return 0, nil, errAway }

func (s *awayStore) Waiting(*Run, int) ([]Run, error) { s.calls++; return nil, errAway }

// What a part waits for, and the stop, may have come both.
func TestNoPartBeginsACallAfterTheSessionWasStopped(t *testing.T) {
	for name, run := range map[string]func(c *common, clock *heartbeat){
		"deputy": func(c *common, clock *heartbeat) {
			d := newDeputy(c, nil, newOwners("a"), clock)
			d.takeOver(newMembers([]Member{{Process: "a"}, {Process: "b"}}, "a"))
			d.run()
		},
		"waiting": func(c *common, clock *heartbeat) {
			w := newWaiting(c, nil, newOwners("a"), clock)
			w.wake()
			w.run()
		},
		"feed": func(c *common, _ *heartbeat) {
			f := newFeed(c)
			f.heard(2, 1, false)
			f.run()
		},
		"feed, of an outbox": func(c *common, _ *heartbeat) {
			f := newFeed(c)
			f.heard(1, 1, true)
			f.run()
		},
		"sweep": func(c *common, clock *heartbeat) { newSweep(c, clock).run() },
		"claims that are stale": func(c *common, _ *heartbeat) {
			claims := newClaims(c, newEnds(c), newFeed(c))
			claims.refresh([]*Grant{{Claim: Claim{Key: Key{JobID: 1}}, claims: claims, asked: time.Now()}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 { // a select takes either case
				store, host := &awayStore{}, &awayHost{}
				c := &common{Ledger: New(store, Config{Location: time.UTC, Timing: &Timing{}, Log: noLog{}}), host: host, stopped: make(chan struct{}), ended: make(chan struct{})}
				close(c.stopped)
				run(c, newHeartbeat(c))
				assert.Zero(t, store.calls+host.calls)
			}
		})
	}
}

func (h *awayHost) Release() {}

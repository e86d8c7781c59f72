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
	for name, run := range map[string]func(s *Session){
		"deputy": func(s *Session) {
			s.deputy.takeOver(newMembers([]Member{{Process: "a"}, {Process: "b"}}, "a"))
			s.deputy.run()
		},
		"waiting": func(s *Session) {
			s.wake.waiting.set()
			s.waiting.run()
		},
		"feed": func(s *Session) {
			s.feed.heard(news{Heartbeat: Heartbeat{Revision: 2}, seen: 1})
			s.feed.run()
		},
		"feed, of an outbox": func(s *Session) {
			s.feed.heard(news{Heartbeat: Heartbeat{Revision: 1, Outbox: true}, seen: 1})
			s.feed.run()
		},
		"sweep": func(s *Session) { s.sweep.run() },
		"claims that are stale": func(s *Session) {
			s.claims.refresh([]*Grant{{Claim: Claim{Key: Key{JobID: 1}}, grants: s.grants, asked: time.Now()}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 { // a select takes either case
				store, host := &awayStore{}, &awayHost{}
				s := newSession(newCommon(New(store, Config{Location: time.UTC, Timing: &Timing{}, Log: noLog{}}), host, "a"))
				close(s.stopped)
				run(s)
				assert.Zero(t, store.calls+host.calls)
			}
		})
	}
}

func (h *awayHost) Release() {}

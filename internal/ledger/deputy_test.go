package ledger

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// lookedStore is a Store in which every tick is claimed.
type lookedStore struct {
	Store
	looked atomic.Int64
}

func (s *lookedStore) Unclaimed(keys []Key) ([]int, error) {
	s.looked.Add(int64(len(keys)))
	return nil, nil
}

// askedHost is a Host without jobs.
type askedHost struct {
	Host
	asked atomic.Int64
}

func (h *askedHost) Jobs() []Job { h.asked.Add(1); return nil }

type noLog struct{}

func (noLog) Info(string, ...any)         {}
func (noLog) Error(error, string, ...any) {}

func TestADeputyLooksThoughTheClockOfTheDatabaseIsSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, host := &lookedStore{}, &askedHost{}
		s := newSession(newCommon(New(store, Config{Location: time.UTC, SyncInterval: time.Second, Log: noLog{}}), host, "a"))
		d := s.deputy
		go d.run()
		defer close(s.stopped)

		d.look(Job{ID: 1}, time.Now())
		time.Sleep(secondAfter / 2)
		now := time.Now()
		s.clock.hear(now.Add(-10*time.Minute), now, now)
		d.look(Job{ID: 2}, time.Now())
		d.takeOver(newMembers([]Member{{Process: "a"}, {Process: "b"}}, "a"))
		synctest.Wait()
		assert.EqualValues(t, 1, host.asked.Load(), "what was another's")
		assert.Zero(t, store.looked.Load())
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.EqualValues(t, 2, store.looked.Load())
	})
}

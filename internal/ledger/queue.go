package ledger

import (
	"slices"
	"sync"
)

// queue holds what waits for goroutines that take it in batches. newQueue makes
// one; it is goroutine-safe, and close ends it.
type queue[T any] struct {
	mu     sync.Mutex // guards the fields below, for moments
	filled *sync.Cond // something is in it, or it is closed
	items  []T
	closed bool
}

func newQueue[T any]() *queue[T] {
	q := &queue[T]{}
	q.filled = sync.NewCond(&q.mu)
	return q
}

func (q *queue[T]) push(items ...T) {
	if len(items) == 0 {
		return
	}
	q.mu.Lock()
	q.items = append(q.items, items...)
	q.mu.Unlock()
	q.filled.Broadcast()
}

func (q *queue[T]) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

func (q *queue[T]) contains(match func(T) bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.ContainsFunc(q.items, match)
}

// close lets wait return false once the queue is empty.
func (q *queue[T]) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.filled.Broadcast()
}

// wait waits until there is something to take. It returns false after the last item
// of a closed queue.
func (q *queue[T]) wait() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 && !q.closed {
		q.filled.Wait()
	}
	return len(q.items) > 0
}

// take takes what is there, at most limit of it.
func (q *queue[T]) take(limit int) []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(limit, len(q.items))
	batch := q.items[:n:n]
	if q.items = q.items[n:]; len(q.items) == 0 {
		q.items = nil
	}
	return batch
}

// Package places bounds how many runs are in progress at a time, and keeps the ticks
// beyond it in their order. It knows of a tick its instant, and nothing else.
package places

import (
	"slices"
	"sync"
	"time"
)

// Places are taken by runs. Ticks for which there is none wait in memory, the oldest
// first. The zero value has no bound; it is goroutine-safe. Whoever has a place leaves
// it.
type Places[T any] struct {
	max int // 0: no bound

	mu      sync.Mutex // guards the fields below; a leaf, held for moments
	taken   int
	waiting []tick[T]     // the oldest first, and those of one instant as they came
	freed   chan struct{} // closed when a place is free and nothing waits; nil if nobody asked
}

// tick is one that waits.
type tick[T any] struct {
	at    time.Time
	value T
}

// New returns so many places, or any number of them if limit is not positive.
func New[T any](limit int) *Places[T] { return &Places[T]{max: max(limit, 0)} }

// Enter takes a place, or lets a tick wait for one and returns false: Leave returns its
// value then.
func (p *Places[T]) Enter(at time.Time, value T) bool {
	if p.max == 0 {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken < p.max {
		p.taken++
		return true
	}
	i, _ := slices.BinarySearchFunc(p.waiting, at, func(w tick[T], at time.Time) int {
		if w.at.After(at) {
			return 1
		}
		return -1 // those of the same instant came first
	})
	p.waiting = slices.Insert(p.waiting, i, tick[T]{at, value})
	return false
}

// Leave gives a place back: to the oldest tick that waits, whose value it returns, if
// there is one.
func (p *Places[T]) Leave() (next T, ok bool) {
	if p.max == 0 {
		return next, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) > 0 {
		next = p.waiting[0].value
		p.waiting[0] = tick[T]{} // the array stays
		p.waiting = p.waiting[1:]
		return next, true
	}
	p.taken--
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
	return next, false
}

// Take takes places for runs that are still to be claimed, limit at most. If
// there are none, freed is closed when it is worth asking again.
func (p *Places[T]) Take(limit int) (n int, freed <-chan struct{}) {
	if p.max == 0 {
		return limit, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n = min(limit, p.max-p.taken); n > 0 {
		p.taken += n
		return n, nil
	}
	if p.freed == nil {
		p.freed = make(chan struct{})
	}
	return 0, p.freed
}

// Remove lets the ticks wait no more whose values match.
func (p *Places[T]) Remove(match func(value T) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = slices.DeleteFunc(p.waiting, func(w tick[T]) bool { return match(w.value) })
}

// Count returns how many ticks wait.
func (p *Places[T]) Count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.waiting)
}

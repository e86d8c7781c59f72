package smallben

import (
	"container/heap"
	"slices"
	"sync"
)

// places bounds how many runs are in progress at a time
// (SchedulerConfig.MaxConcurrentRuns). Ticks beyond it wait in memory, in their
// order. The zero value has no bound; it is goroutine-safe. Whoever has a place
// leaves it.
type places struct {
	max int // 0: no bound

	mu      sync.Mutex // guards the fields below; a leaf, held for moments
	taken   int
	waiting tickHeap
	arrived int           // ticks that ever waited
	freed   chan struct{} // closed when a place is free and nothing waits; nil if nobody asked
}

// waitingTick is a tick of an entry that waits for something.
type waitingTick struct {
	entry *entry
	tick  tick
	order int // of arrival
}

// enter takes a place, or lets the tick wait for one and returns false: leave
// returns it then.
func (p *places) enter(e *entry, at tick) bool {
	if p.max == 0 {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken < p.max {
		p.taken++
		return true
	}
	p.arrived++
	heap.Push(&p.waiting, waitingTick{e, at, p.arrived})
	return false
}

// leave gives a place back: to the tick that waits and is the oldest, which it
// returns, if there is one.
func (p *places) leave() (next waitingTick, ok bool) {
	if p.max == 0 {
		return waitingTick{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) > 0 {
		return heap.Pop(&p.waiting).(waitingTick), true
	}
	p.taken--
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
	return waitingTick{}, false
}

// reserve takes places for runs that are still to be claimed, limit at most. If
// there are none, freed is closed when it is worth asking again.
func (p *places) reserve(limit int) (n int, freed <-chan struct{}) {
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

// remove returns the ticks of a job that wait, which wait no more.
func (p *places) remove(id int64) (removed []waitingTick) {
	if p.max == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = slices.DeleteFunc(p.waiting, func(w waitingTick) bool {
		if w.entry.id == id {
			removed = append(removed, w)
		}
		return w.entry.id == id
	})
	if len(removed) > 0 {
		heap.Init(&p.waiting)
	}
	return removed
}

// of returns the entries of a job whose ticks wait.
func (p *places) of(id int64) (entries []*entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.waiting {
		if w.entry.id == id {
			entries = append(entries, w.entry)
		}
	}
	return entries
}

// count returns how many ticks wait.
func (p *places) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.waiting)
}

// tickHeap is a container/heap of ticks, the oldest first.
type tickHeap []waitingTick

func (h tickHeap) Len() int      { return len(h) }
func (h tickHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

func (h tickHeap) Less(i, j int) bool {
	if c := h[i].tick.at.Compare(h[j].tick.at); c != 0 {
		return c < 0
	}
	return h[i].order < h[j].order
}

func (h *tickHeap) Push(w any) { *h = append(*h, w.(waitingTick)) }

func (h *tickHeap) Pop() any {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = waitingTick{}
	*h = (*h)[:last]
	return w
}

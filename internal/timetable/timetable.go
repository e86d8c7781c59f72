// Package timetable calls a function at each tick of many schedules. It knows
// keys, schedules and clocks, and nothing of what the keys stand for. It is the
// only place that runs a cron.Cron.
package timetable

import (
	"cmp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/robfig/cron/v3"
)

const (
	// PageSize bounds how many entries one cron.Cron holds: it sorts all of
	// them at each add, remove and wake. bench/README.md has the measurements.
	PageSize = 128
	// clockInterval is how often the pages read the clock again, and clockStep
	// the step back from which on entries are armed anew.
	clockInterval = 30 * time.Second
	clockStep     = time.Minute
	// maxDrift is the longest step of Shift that is taken for clocks that drift apart:
	// ticks that it makes due fire.
	maxDrift = 5 * time.Second
	// maxLateness is how far the time that cron takes for now may be behind the clock.
	maxLateness = 100 * time.Millisecond
)

// Table fires its entries, each at the ticks of its schedule. New
// makes one that runs already; the zero value does not work. It is
// goroutine-safe. Stop ends it.
type Table[K any] struct {
	config  Config[K]
	stopped chan struct{} // closed by Stop
	shift   atomic.Int64  // nanoseconds from the clock of this machine to the one that ticks go by

	// mu guards the fields below, and those of the pages. A page's goroutine is
	// waited for under it, which calls nothing but the Next of entries: Entry.mu,
	// the Next of schedules and Clock come under it, and must not call the Table.
	// No I/O happens under it, and Fire is not called under it.
	mu    sync.Mutex
	pages map[*page[K]]struct{} // those that run; nil when stopped
	roomy map[*page[K]]struct{} // those of them that have room
}

// Config says how a Table works. Fire is required.
type Config[K any] struct {
	// Fire is called at each tick, on a goroutine of its own, with the entry and
	// the nominal instant of the tick.
	Fire func(entry *Entry[K], tick time.Time)
	// Location is that of the ticks, and what schedules are asked in.
	// Nil means time.Local.
	Location *time.Location
	// SteppedBack is called when the clock was set back so far that all entries
	// were armed anew. It must not block. Nil means that nobody is told.
	SteppedBack func(step time.Duration)
	// PageSize is how many entries share a cron.Cron. Zero means PageSize.
	PageSize int
	// Clock gives the wall time. It must not block. Nil means that of this machine.
	Clock func() time.Time
}

// Entry is a key and its schedule in a Table. It is added once, and removed once.
type Entry[K any] struct {
	Key      K
	Schedule cron.Schedule // does not change while the entry is in a Table

	page *page[K] // nil if it was never added
	id   int32    // in the page

	// mu guards the fields below. The Next of the schedule and Clock are called under
	// it. Times are Unix microseconds, and 0 is none.
	//
	// For each start cron calls Run, on a goroutine, and Next, in either order. The
	// first of the two takes the tick, and arms the entry for the one after it. Run
	// notes in taken that it has; Next leaves the tick in ready.
	mu    sync.Mutex
	taken bool     // the next call of Next returns armed as it is
	armed int64    // the tick that cron waits for, or is about to
	ready *[]int64 // the ticks of starts whose Run has not come; nil: none, as nearly always
}

// page is one cron.Cron, filled to the page size at most and never restarted.
// The fields are guarded by the Table's mu, except table and waking.
type page[K any] struct {
	table  *Table[K]
	cron   *cron.Cron
	live   int         // entries in it; 0 means that it is stopped
	waking atomic.Bool // it is about to read the clock
}

// New returns a Table that runs.
func New[K any](config Config[K]) *Table[K] {
	config.Location = cmp.Or(config.Location, time.Local)
	config.PageSize = cmp.Or(config.PageSize, PageSize)
	if config.Clock == nil {
		config.Clock = func() time.Time { return time.Now().Round(0) }
	}
	t := &Table[K]{config: config, stopped: make(chan struct{}), pages: make(map[*page[K]]struct{}), roomy: make(map[*page[K]]struct{})}
	go t.keepTime()
	return t
}

// Stop ends the ticks, and the Table: entries are added and removed no more. Calls
// of Fire may still be in progress, or about to begin, when it returns.
func (t *Table[K]) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pages == nil {
		return
	}
	close(t.stopped)
	for p := range t.pages {
		p.cron.Stop()
	}
	t.pages, t.roomy = nil, nil
}

// Add lets entries fire, from the next tick of each on. Whole pages are filled
// before they run: an add to a running one wakes and sorts it.
func (t *Table[K]) Add(entries []*Entry[K]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pages == nil {
		return
	}
	for len(entries) > 0 {
		p := t.pageLocked(len(entries))
		n := min(t.config.PageSize-p.live, len(entries))
		for _, e := range entries[:n] {
			e.page = p
			e.id = int32(p.cron.Schedule(e, e))
		}
		p.cron.Start() // if it is new
		t.countLocked(p, n)
		entries = entries[n:]
	}
}

// pageLocked returns a page for n entries: a new one, which does not run yet, if they
// fill it or none has room.
func (t *Table[K]) pageLocked(n int) *page[K] {
	if n < t.config.PageSize {
		for p := range t.roomy {
			return p
		}
	}
	return &page[K]{table: t, cron: t.newCron()}
}

func (t *Table[K]) newCron() *cron.Cron {
	return cron.New(cron.WithLocation(t.config.Location), cron.WithLogger(cron.DiscardLogger))
}

// countLocked notes how many entries a page that runs has more, or less. One that has none
// left is stopped.
func (t *Table[K]) countLocked(p *page[K], more int) {
	p.live += more
	t.pages[p] = struct{}{}
	delete(t.roomy, p)
	switch {
	case p.live == 0:
		p.cron.Stop()
		delete(t.pages, p)
	case p.live < t.config.PageSize:
		t.roomy[p] = struct{}{}
	}
}

// Remove ends the ticks of entries that were added. A call of Fire may still be
// in progress, or about to begin, when it returns.
func (t *Table[K]) Remove(entries []*Entry[K]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pages == nil {
		return
	}
	removed := make(map[*page[K]][]*Entry[K])
	for _, e := range entries {
		removed[e.page] = append(removed[e.page], e)
	}
	var pages sync.WaitGroup // each is busy with one entry while others take theirs
	for p, gone := range removed {
		if t.countLocked(p, -len(gone)); p.live == 0 {
			continue
		}
		pages.Go(func() {
			for _, e := range gone {
				p.cron.Remove(cron.EntryID(e.id))
			}
		})
	}
	pages.Wait()
}

// Pages returns how many entries each page holds, as the Table counts them and as
// cron does, and how many pages are remembered for their room.
func (t *Table[K]) Pages() (counted, held []int, roomy int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.pages {
		counted = append(counted, p.live)
		held = append(held, len(p.cron.Entries()))
	}
	return counted, held, len(t.roomy)
}

// keepTime makes the pages read the clock every clockInterval. cron compares
// wall times but sleeps on a monotonic timer, which a suspended machine and a
// clock that was set leave behind; and entries armed before a step back wait for
// a future that is too far.
func (t *Table[K]) keepTime() {
	ticker := time.NewTicker(clockInterval)
	defer ticker.Stop()
	wall, monotonic := t.config.Clock(), time.Now()
	for {
		select {
		case <-t.stopped:
			return
		case <-ticker.C:
		}
		wallNow, monotonicNow := t.config.Clock(), time.Now()
		step := wallNow.Sub(wall) - monotonicNow.Sub(monotonic)
		wall, monotonic = wallNow, monotonicNow
		if step > -clockStep {
			t.wake()
		} else if t.rearm(0); t.config.SteppedBack != nil {
			t.config.SteppedBack(step)
		}
	}
}

// wake makes each page read the clock.
func (t *Table[K]) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.pages {
		p.cron.Remove(noEntry)
	}
}

// noEntry is the id of no entry. cron reads the clock at each removal.
const noEntry cron.EntryID = 0

// readClock makes a page read the clock, without waiting for it: what is overdue starts
// then.
func (p *page[K]) readClock() {
	if !p.waking.CompareAndSwap(false, true) {
		return
	}
	go func() {
		p.table.mu.Lock()
		defer p.table.mu.Unlock()
		p.waking.Store(false)
		p.cron.Remove(noEntry)
	}()
}

// rearm lets the clock that ticks go by take a step, if it is not 0, and arms all entries
// by that clock. Ticks that a drift has made due fire.
func (t *Table[K]) rearm(step time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.pages {
		p.cron.Stop()
	}
	t.shift.Add(int64(step))
	for p := range t.pages {
		armed := p.cron.Entries()
		p.cron = t.newCron()
		for _, old := range armed {
			e := old.Job.(*Entry[K])
			e.disarm(0 < step && step <= maxDrift)
			e.id = int32(p.cron.Schedule(e, e))
		}
		p.cron.Start()
	}
}

// disarm forgets the tick that cron waits for. If it catches up, it fires the ticks that
// are due, and leaves the entry armed for the one after them. No start is under way of
// which Next has not been called.
func (e *Entry[K]) disarm(catchUp bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !catchUp {
		e.armed = 0
		return
	}
	table := e.page.table
	for now := table.now().UnixMicro(); e.armed != 0 && e.armed <= now; {
		tick := table.at(e.armed)
		go table.config.Fire(e, tick)
		e.armed = unixMicro(e.Schedule.Next(tick))
	}
	e.taken = true
}

// Next implements cron.Schedule. cron calls it once when it arms the entry and once
// after each start, in that order. It goes by the clock, and not by what cron takes
// for now: that is the nominal time of a timer, which is long past when the process
// was stopped.
func (e *Entry[K]) Next(now time.Time) time.Time {
	table := e.page.table
	shift, clock := table.Ahead(), table.now()
	now = now.Add(shift)
	if clock.Sub(now) > maxLateness {
		e.page.readClock()
	}
	if clock.Before(now) {
		clock = now // it was set back a little: no tick comes twice
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.taken:
		e.taken = false // what is due since then starts at once
	case e.armed == 0:
		e.armed = unixMicro(e.Schedule.Next(clock))
	default:
		if e.ready == nil {
			e.ready = new([]int64)
		}
		*e.ready = append(*e.ready, e.take(clock))
	}
	if e.armed == 0 {
		return time.Time{}
	}
	return table.at(e.armed).Add(-shift)
}

// Run implements cron.Job.
func (e *Entry[K]) Run() {
	table := e.page.table
	table.config.Fire(e, table.at(e.started()))
}

// started returns the tick of a start.
func (e *Entry[K]) started() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ready == nil {
		e.taken = true
		return e.take(e.page.table.now())
	}
	tick := (*e.ready)[0]
	if *e.ready = (*e.ready)[1:]; len(*e.ready) == 0 {
		e.ready = nil
	}
	return tick
}

// take returns the last tick that is due, from the one that cron waited for on, and arms
// the entry for the next. The ticks between those two were missed, all in one: it does not
// walk through all of them.
func (e *Entry[K]) take(now time.Time) (tick int64) {
	last, end := e.page.table.at(e.armed), now
	for {
		// No tick is after end and due.
		middle := last
		if span := end.Sub(last); span > time.Second {
			middle = last.Add(span / 2)
		}
		next := e.Schedule.Next(middle)
		switch {
		case !next.IsZero() && !next.After(now):
			last = next
		case middle.Equal(last):
			e.armed = unixMicro(next)
			return last.UnixMicro()
		default:
			end = middle
		}
	}
}

// now is what the clock shows that ticks go by.
func (t *Table[K]) now() time.Time {
	return t.config.Clock().Add(t.Ahead()).In(t.config.Location)
}

// at is the instant of Unix microseconds.
func (t *Table[K]) at(micro int64) time.Time { return time.UnixMicro(micro).In(t.config.Location) }

// Shift makes ticks go by a clock that is ahead of this machine's by a difference. All
// entries are armed anew if the difference changes. Ticks fire that come due by a step of
// maxDrift at most; those that a longer step skips do not. One goroutine at a time calls it.
func (t *Table[K]) Shift(ahead time.Duration) {
	if step := ahead - t.Ahead(); step != 0 {
		t.rearm(step)
	}
}

// Ahead is how far the clock that ticks go by is ahead of this machine's.
func (t *Table[K]) Ahead() time.Duration { return time.Duration(t.shift.Load()) }

// unixMicro is an instant in Unix microseconds, and 0 for the zero time.
func unixMicro(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

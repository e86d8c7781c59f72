// Package timetable calls a function at each tick of many schedules. It knows
// keys, schedules and clocks, and nothing of what the keys stand for. It is the
// only place that runs a cron.Cron.
package timetable

import (
	"slices"
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

// Table fires the keys of its entries, each at the ticks of its schedule. New
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
	pages map[*page[K]]struct{} // nil when stopped
	roomy []*page[K]            // pages that may have room; stale ones are dropped when met
}

// Config says how a Table works. Fire is required.
type Config[K any] struct {
	// Fire is called at each tick, on a goroutine of its own, with the key and
	// the nominal instant of the tick.
	Fire func(key K, tick time.Time)
	// Location is that of the ticks, and what schedules are asked in.
	// Nil means time.Local.
	Location *time.Location
	// SteppedBack is called when the clock was set back so far that all entries
	// were armed anew. It must not block. Nil means that nobody is told.
	SteppedBack func(step time.Duration)
	// PageSize is how many entries share a cron.Cron. Zero means PageSize.
	PageSize int
	// Clock gives the wall time, and how far a monotonic clock has come. It must
	// not block. Nil means the clocks of this process.
	Clock func() (wall time.Time, monotonic time.Duration)
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
	// first of the two takes the tick from armed and leaves a note for the other: Run
	// sets at, and Next appends to ready.
	mu    sync.Mutex
	armed int64    // the tick that cron waits for
	at    int64    // from when on the next call of Next looks for a tick; 0: from now on
	ready *[]int64 // the ticks of starts whose Run has not come; nil: none, as nearly always
}

// page is one cron.Cron, filled to the page size at most and never restarted.
// The fields are guarded by the Table's mu, except table and waking.
type page[K any] struct {
	table  *Table[K]
	cron   *cron.Cron
	live   int  // entries in it; 0 means that it is stopped
	listed bool // stands in Table.roomy

	waking atomic.Bool // it is about to read the clock
}

// New returns a Table that runs.
func New[K any](config Config[K]) *Table[K] {
	if config.Location == nil {
		config.Location = time.Local
	}
	if config.PageSize == 0 {
		config.PageSize = PageSize
	}
	if config.Clock == nil {
		config.Clock = processClock()
	}
	t := &Table[K]{config: config, stopped: make(chan struct{}), pages: make(map[*page[K]]struct{})}
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
	for len(entries) >= t.config.PageSize {
		t.openPageLocked(entries[:t.config.PageSize])
		entries = entries[t.config.PageSize:]
	}
	for len(entries) > 0 {
		p := t.roomyPageLocked()
		if p == nil {
			t.openPageLocked(entries)
			return
		}
		n := min(t.config.PageSize-p.live, len(entries))
		p.addLocked(entries[:n])
		entries = entries[n:]
	}
}

func (t *Table[K]) openPageLocked(entries []*Entry[K]) {
	p := &page[K]{table: t, cron: t.newCron()}
	p.addLocked(entries)
	p.cron.Start()
	t.pages[p] = struct{}{}
	t.listLocked(p)
}

func (t *Table[K]) newCron() *cron.Cron {
	return cron.New(cron.WithLocation(t.config.Location), cron.WithLogger(silent{}))
}

func (p *page[K]) addLocked(entries []*Entry[K]) {
	for _, e := range entries {
		e.page = p
		e.id = int32(p.cron.Schedule(e, e))
	}
	p.live += len(entries)
}

// listLocked notes a page that has room.
func (t *Table[K]) listLocked(p *page[K]) {
	if p.live < t.config.PageSize && !p.listed {
		p.listed = true
		t.roomy = append(t.roomy, p)
	}
}

// roomyPageLocked returns a page that runs and has room, or nil.
func (t *Table[K]) roomyPageLocked() *page[K] {
	for len(t.roomy) > 0 {
		last := len(t.roomy) - 1
		p := t.roomy[last]
		if p.live > 0 && p.live < t.config.PageSize {
			return p
		}
		p.listed = false
		t.roomy = t.roomy[:last]
	}
	return nil
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
	for p, entries := range removed {
		p.live -= len(entries)
		if p.live == 0 {
			p.cron.Stop()
			delete(t.pages, p)
			delete(removed, p)
			continue
		}
		t.listLocked(p)
	}
	t.roomy = slices.DeleteFunc(t.roomy, func(p *page[K]) bool { return p.live == 0 })
	// In turn from each page: a page is still busy with one entry when the next
	// page takes its own.
	for len(removed) > 0 {
		for p, entries := range removed {
			p.cron.Remove(cron.EntryID(entries[0].id))
			if len(entries) == 1 {
				delete(removed, p)
			} else {
				removed[p] = entries[1:]
			}
		}
	}
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
	wall, monotonic := t.config.Clock()
	for {
		select {
		case <-t.stopped:
			return
		case <-ticker.C:
		}
		wallNow, monotonicNow := t.config.Clock()
		step := wallNow.Sub(wall) - (monotonicNow - monotonic)
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
		p.wakeLocked()
	}
}

// wakeLocked makes cron read the clock: it does so at each removal, and no entry has the
// id 0.
func (p *page[K]) wakeLocked() { p.cron.Remove(0) }

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
			if 0 < step && step <= maxDrift {
				e.catchUp()
			} else {
				e.disarm()
			}
			e.id = int32(p.cron.Schedule(e, e))
		}
		p.cron.Start()
	}
}

// Next implements cron.Schedule. cron calls it once when it arms the entry and once
// after each start, in that order. It goes by the clock, and not by what cron takes
// for now: that is the nominal time of a timer, which is long past when the process
// was stopped.
func (e *Entry[K]) Next(now time.Time) time.Time {
	table := e.page.table
	shift := time.Duration(table.shift.Load())
	now = now.Add(shift)
	next := e.arm(now)
	if table.now().Sub(now) > maxLateness {
		e.page.readClock()
	}
	if next.IsZero() {
		return next
	}
	return next.Add(-shift)
}

// Run implements cron.Job.
func (e *Entry[K]) Run() {
	config := &e.page.table.config
	config.Fire(e.Key, time.UnixMicro(e.start()).In(config.Location))
}

// arm takes the tick that cron has started, if any, and returns the first one after
// the clock.
func (e *Entry[K]) arm(now time.Time) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	clock := e.page.table.now()
	if clock.Before(now) {
		clock = now // it was set back a little: no tick comes twice
	}
	switch {
	case e.at != 0:
		// Run came first. What is due since is armed, and starts at once.
		clock, e.at = time.UnixMicro(e.at).In(now.Location()), 0
	case e.armed != 0:
		if e.ready == nil {
			e.ready = new([]int64)
		}
		*e.ready = append(*e.ready, e.lastTick(clock))
	}
	next := e.Schedule.Next(clock)
	e.armed = unixMicro(next)
	return next
}

// start returns the tick of a start: whichever comes first, arm or start, takes what
// cron has started.
func (e *Entry[K]) start() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ready != nil {
		tick := (*e.ready)[0]
		if *e.ready = (*e.ready)[1:]; len(*e.ready) == 0 {
			e.ready = nil
		}
		return tick
	}
	clock := e.page.table.now()
	tick := e.lastTick(clock)
	e.at = max(clock.UnixMicro(), e.armed)
	return tick
}

// catchUp fires the ticks that are due, and lets arm go on after them. No start is under
// way that arm has not been called for.
func (e *Entry[K]) catchUp() {
	e.mu.Lock()
	defer e.mu.Unlock()
	config, now := &e.page.table.config, e.page.table.now()
	for e.armed != 0 && e.armed <= now.UnixMicro() {
		tick := time.UnixMicro(e.armed).In(config.Location)
		go config.Fire(e.Key, tick)
		e.armed = unixMicro(e.Schedule.Next(tick))
	}
	e.at = now.UnixMicro()
}

// disarm forgets the tick that cron waits for.
func (e *Entry[K]) disarm() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.armed = 0
}

// lastTick returns the last tick up to now, from the one that cron waits for on: the
// others were missed, all in one. It does not walk through all of them.
func (e *Entry[K]) lastTick(now time.Time) int64 {
	tick, end := time.UnixMicro(e.armed).In(now.Location()), now
	for {
		// No tick is after end and due.
		middle := tick
		if span := end.Sub(tick); span > time.Second {
			middle = tick.Add(span / 2)
		}
		if next := e.Schedule.Next(middle); !next.IsZero() && !next.After(now) {
			tick = next
		} else if middle.Equal(tick) {
			return tick.UnixMicro()
		} else {
			end = middle
		}
	}
}

// readClock makes the page read the clock, without waiting for it. What is overdue
// starts then.
func (p *page[K]) readClock() {
	if !p.waking.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer p.waking.Store(false)
		t := p.table
		t.mu.Lock()
		defer t.mu.Unlock()
		if _, runs := t.pages[p]; runs {
			p.wakeLocked()
		}
	}()
}

// now is what the clock shows that ticks go by.
func (t *Table[K]) now() time.Time {
	wall, _ := t.config.Clock()
	return wall.Add(time.Duration(t.shift.Load())).In(t.config.Location)
}

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

// processClock gives the wall time, and the time that has passed on the
// monotonic clock since it was called itself.
func processClock() func() (time.Time, time.Duration) {
	origin := time.Now()
	return func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0), now.Sub(origin)
	}
}

// silent discards what cron says at each wake.
type silent struct{}

func (silent) Info(string, ...any)         {}
func (silent) Error(error, string, ...any) {}

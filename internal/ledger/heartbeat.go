package ledger

import (
	"errors"
	"sync"
	"time"
)

// suspectAfter is how long a process has shown no heartbeat when others claim its
// ticks, long before it is taken for dead.
func suspectAfter(syncInterval time.Duration) time.Duration { return syncInterval * 5 / 2 }

// heartbeat shows that this process is alive, and learns who else is: by the
// heartbeats of others, measured by its own clock while the database answers. A
// database that is away kills nobody.
type heartbeat struct {
	*common
	heard     func(h Heartbeat, seen int64, live, dead []Member)
	recovered func()         // is told that the store answers, or this process goes on, after a while
	givenAway func()         // is told that this process was taken for dead
	now       signal         // wakes run
	beating   sync.WaitGroup // run, and what it began
	trouble   trouble

	registration sync.Mutex // held while the process beats or leaves; guards the fields below
	left         bool
	watched      map[string]watch

	mu    sync.Mutex // guards known, for moments
	known answer
}

// answer is what is known by the last heartbeat that was answered.
type answer struct {
	at     time.Time     // by this process's clock
	offset time.Duration // of the database's clock to this process's
	shift  time.Duration // of ticks: the offset when it was more than maxOffset
	last   Heartbeat
}

// watch is a process as another one sees it.
type watch struct {
	beats int64
	still time.Duration // for which it showed no heartbeat while the database answered
}

func newHeartbeat(c *common) *heartbeat {
	return &heartbeat{common: c, now: newSignal(), known: answer{at: time.Now()}, watched: make(map[string]watch),
		trouble: trouble{what: "heartbeat", log: c.config.Log}}
}

func (h *heartbeat) wake() { h.now.set() }

// run beats until the session is over.
func (h *heartbeat) run() {
	ticker := time.NewTicker(h.config.SyncInterval)
	defer ticker.Stop()
	for !closed(h.ended) {
		h.beat()
		select {
		case <-ticker.C:
		case <-h.now:
		case <-h.ended:
		}
	}
}

// beat shows that this process is alive, and tells what it learns.
func (h *heartbeat) beat() {
	h.registration.Lock()
	defer h.registration.Unlock()
	if h.left {
		return
	}
	standing, seen := Standing{Claims: !h.isStopped(), Partial: h.host.Partial(), Offset: h.answer().offset}, h.Seen()
	sent := time.Now()
	beat, err := h.store.Beat(h.process, standing)
	if errors.Is(err, ErrNotRegistered) {
		// It was taken for dead. What it ran is recorded as lost.
		h.config.Log.Info("this process was taken for dead, and joins again", "process", h.process)
		h.givenAway()
		if err = h.store.Join(h.process); err == nil {
			seen, sent = h.Seen(), time.Now()
			beat, err = h.store.Beat(h.process, standing)
		}
	}
	if err != nil {
		h.trouble.begin(err)
		return
	}
	if stalled := h.silent(); h.trouble.end() || stalled {
		h.recovered()
	}
	now := time.Now()
	h.mu.Lock()
	gap := now.Sub(h.known.at)
	h.known.at, h.known.last = now, beat
	// The answer may have waited for a process that was stopped: then it does not tell
	// what time it is.
	if trip := now.Sub(sent); trip < maxTrip {
		h.known.offset = beat.Now.Sub(sent.Add(trip / 2))
	}
	h.mu.Unlock()
	h.compareClocks()
	live, dead := h.judge(beat.Members, gap, standing)
	h.heard(beat, seen, live, dead)
}

// maxOffset is how far the clocks may differ until ticks follow the database's, and
// offsetStep how much the difference then has to change.
const (
	maxOffset  = MaxClockLead
	offsetStep = maxOffset / 2
	maxTrip    = offsetStep // of a heartbeat and its answer, for it to tell the offset
)

// compareClocks lets ticks follow the database's clock if this machine's differs.
func (h *heartbeat) compareClocks() {
	h.mu.Lock()
	offset, before := h.known.offset, h.known.shift
	shift := before
	switch off := offset.Abs(); {
	case off > maxOffset && (offset-before).Abs() > offsetStep:
		shift = offset.Round(time.Millisecond)
	case off < offsetStep:
		shift = 0
	}
	h.known.shift = shift
	h.mu.Unlock()
	if shift == before {
		return
	}
	h.host.Shift(shift)
	if before == 0 {
		h.config.Log.Error(errClocks, "ticks go by the clock of the database", "ahead", shift.String(), "process", h.process)
	} else if shift == 0 {
		h.config.Log.Info("the clock agrees with that of the database again", "process", h.process)
	}
}

var errClocks = errors.New("the clock of this machine and that of the database differ")

// judge tells who may claim ticks and who is dead. A gap between two answers of the
// database that is longer than it should be proves nothing.
func (h *heartbeat) judge(all []Member, gap time.Duration, own Standing) (live, dead []Member) {
	if gap > h.longestGap() {
		gap = 0
	}
	watched := make(map[string]watch, len(all))
	for _, m := range all {
		if m.Process == h.process {
			if own.Claims {
				live = append(live, m)
			}
			continue
		}
		w, known := h.watched[m.Process]
		if !known || w.beats != m.Beats {
			w = watch{beats: m.Beats}
		} else {
			w.still += gap
		}
		watched[m.Process] = w
		if w.still >= h.config.Timing.DeadAfter {
			dead = append(dead, m)
		}
		if m.Claims && m.Beats > 0 && w.still < suspectAfter(h.config.SyncInterval) {
			live = append(live, m)
		}
	}
	h.watched = watched
	return live, dead
}

// longestGap is how far two heartbeats are apart at most while all is well.
func (h *heartbeat) longestGap() time.Duration { return 2*h.config.SyncInterval + time.Second }

// silent reports whether the last heartbeat is longer ago than it should be: the store
// does not answer, or this process stood still.
func (h *heartbeat) silent() bool { return since(h.answer().at) > h.longestGap() }

// leave takes this process out of the record, as far as the database lets it.
func (h *heartbeat) leave() {
	h.registration.Lock()
	defer h.registration.Unlock()
	h.left = true
	if err := h.store.Leave(h.process); err != nil {
		// The others will take this process for dead.
		h.config.Log.Error(err, "the record of runs was not left", "process", h.process)
	}
}

func (h *heartbeat) answer() answer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known
}

// databaseNow is about what time it is in the database.
func (h *heartbeat) databaseNow() time.Time { return time.Now().Add(h.answer().offset) }

// tickNow is what the clock shows that ticks go by. It may be off from the database's by
// MaxClockLead, or by what a heartbeat takes.
func (h *heartbeat) tickNow() time.Time { return time.Now().Add(h.answer().shift) }

// answeredSince reports whether a heartbeat was answered after an instant.
func (h *heartbeat) answeredSince(t time.Time) bool { return h.answer().at.After(t) }

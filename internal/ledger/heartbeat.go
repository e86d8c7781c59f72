package ledger

import (
	"errors"
	"time"
)

// suspectAfter is how long a process has shown no heartbeat when others claim its
// ticks, long before it is taken for dead.
func suspectAfter(syncInterval time.Duration) time.Duration { return syncInterval * 5 / 2 }

// heartbeat shows that this process is alive, and learns who else is: by the
// heartbeats of others, measured by its own clock while the database answers. A
// database that is away kills nobody. It is for one goroutine.
type heartbeat struct {
	*common
	grants  *grants
	watched map[string]watch
	trouble trouble
}

// watch is a process as another one sees it.
type watch struct {
	beats int64
	still time.Duration // for which it showed no heartbeat while the database answered
}

// news is what a heartbeat brought.
type news struct {
	Heartbeat
	seen       int64    // by the host, when it was sent
	live, dead []Member // who may claim ticks, and who is to be expired
}

func newHeartbeat(c *common, g *grants) *heartbeat {
	return &heartbeat{common: c, grants: g, watched: make(map[string]watch), trouble: c.newTrouble("heartbeat")}
}

// beat shows once that this process is alive. It returns false if the store did not
// answer.
func (h *heartbeat) beat() (heard news, ok bool) {
	standing := Standing{Claims: !h.isStopped(), Partial: h.host.Partial(), Offset: h.clock.offset()}
	var sent time.Time
	send := func() (err error) {
		heard.seen, sent = h.Seen(), time.Now()
		heard.Heartbeat, err = h.store.Beat(h.process, standing)
		return err
	}
	err := send()
	if errors.Is(err, ErrNotRegistered) {
		// It was taken for dead. What it ran is recorded as lost.
		h.config.Log.Info("this process was taken for dead, and joins again", "process", h.process)
		h.grants.lose()
		if err = h.store.Join(h.process); err == nil {
			err = send()
		}
	}
	if err != nil {
		h.trouble.begin(err)
		return news{}, false
	}
	if stalled := h.clock.silent(); h.trouble.end() || stalled {
		h.resume()
	}
	gap := h.clock.hear(heard.Now, sent, time.Now())
	h.compareClocks()
	heard.live, heard.dead = h.judge(heard.Members, gap, standing)
	return heard, true
}

// compareClocks tells the host whose clock ticks go by, if that changes.
func (h *heartbeat) compareClocks() {
	before, shift := h.clock.follow()
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
	if gap > h.clock.longestGap {
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

// leave takes this process out of the record, as far as the database lets it. No
// heartbeat comes after it: that would make it join again.
func (h *heartbeat) leave() {
	if err := h.store.Leave(h.process); err != nil {
		// The others will take this process for dead.
		h.config.Log.Error(err, "the record of runs was not left", "process", h.process)
	}
}

package ledger

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// ErrStopped is the error of what is asked of a session that was stopped.
var ErrStopped = errors.New("SmallBen was stopped")

// Session is one process in the record, from Join until it is done. Run begins its
// work, Stop ends the asking for runs, and Idle says that no run is left. It is
// goroutine-safe.
type Session struct {
	common
	owners    *owners
	claims    *claims
	deputy    *deputy
	waiting   *waiting
	ends      *ends
	heartbeat *heartbeat
	feed      *feed
	sweep     *sweep

	idle     chan struct{} // closed by Idle
	idleOnce sync.Once
	done     chan struct{} // closed: nothing more is recorded
}

// common is what the parts of a session share.
type common struct {
	*Ledger
	host    Host
	process string
	stopped chan struct{} // closed by Stop
	ended   chan struct{} // closed: the session is over, nothing is tried again
}

func (c *common) isStopped() bool { return closed(c.stopped) }

// next waits until a part is woken or it is time. It returns false once the session was
// stopped, also where both have come.
func (c *common) next(woken <-chan struct{}, at <-chan time.Time) bool {
	select {
	case <-c.stopped:
	case <-woken:
	case <-at:
	}
	return !c.isStopped()
}

// pause waits a while, also when the session is stopped: a store in trouble is left
// alone then, too.
func (c *common) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-c.ended:
	}
}

// await waits until the outcome of a write that failed with err is known or
// ClaimPatience has passed, and reports whether it is known. For any other error it
// waits for troubleWait and returns true.
func (c *common) await(err error) bool {
	settled, ok := Settled(err)
	if !ok {
		c.pause(troubleWait)
		return true
	}
	for start := time.Now(); since(start) < c.config.Timing.ClaimPatience && !closed(c.ended); {
		if known, err := settled(); known && err == nil {
			return true
		}
		c.pause(troubleWait)
	}
	return false
}

// Join registers a process for a new session.
func (l *Ledger) Join(host Host) (*Session, error) {
	if err := l.Open(); err != nil {
		return nil, err
	}
	name, err := os.Hostname()
	if err != nil || name == "" {
		name = "unknown"
	}
	s := &Session{
		common: common{
			Ledger:  l,
			host:    host,
			process: fmt.Sprintf("%s/%d/%s", name, os.Getpid(), strings.ToLower(rand.Text()[:6])),
			stopped: make(chan struct{}),
			ended:   make(chan struct{}),
		},
		idle: make(chan struct{}),
		done: make(chan struct{}),
	}
	s.owners = newOwners(s.process)
	s.feed = newFeed(&s.common)
	s.ends = newEnds(&s.common)
	s.claims = newClaims(&s.common, s.ends, s.feed)
	s.ends.claims, s.feed.ask = s.claims, s.claims.ask
	s.heartbeat = newHeartbeat(&s.common)
	s.claims.now = s.heartbeat.tickNow
	s.feed.now, s.feed.changed = s.heartbeat.tickNow, s.Changed
	s.ends.answeredSince = s.heartbeat.answeredSince
	s.waiting = newWaiting(&s.common, s.claims, s.owners, s.heartbeat)
	s.claims.refill = s.waiting.wake
	s.ends.freed = s.waiting.wake
	s.sweep = newSweep(&s.common, s.heartbeat)
	s.deputy = newDeputy(&s.common, s.claims, s.owners, s.heartbeat)
	s.claims.rejoin = s.heartbeat.beat
	s.heartbeat.heard = s.heard
	s.heartbeat.givenAway = func() { s.claims.cancelAll(ErrGivenAway) }
	s.heartbeat.recovered, s.claims.recovered = s.recovered, s.recovered
	if err := l.store.Join(s.process); err != nil {
		return nil, err
	}
	return s, nil
}

// heard passes on what a heartbeat brought.
func (s *Session) heard(h Heartbeat, seen int64, live, dead []Member) {
	s.feed.heard(h.Revision, seen, h.Outbox)
	if moved := s.owners.set(live); moved != nil {
		s.deputy.takeOver(moved)
	}
	s.waiting.heard(h.Due, h.Now)
	s.sweep.heard(live)
	if h.Canceled > 0 {
		s.heartbeat.beating.Go(s.cancelRuns)
	}
	if len(dead) > 0 {
		s.heartbeat.beating.Go(func() { s.sweep.expire(dead) })
	}
}

// cancelRuns cancels what is marked so.
func (s *Session) cancelRuns() {
	runs, err := s.store.Canceled(s.process)
	if err == nil {
		s.claims.cancel(runs, s.config.Canceled, s.Now())
	} // else the next heartbeat says so again
}

// Notice makes the session look at once what there is to do.
func (s *Session) Notice() { s.heartbeat.wake() }

// recovered is told that the store answers, or this process goes on, after a while.
func (s *Session) recovered() {
	s.ends.wake()
	s.sweep.interrupt()
}

// Leave ends a session that Run was not called of.
func (s *Session) Leave() { s.heartbeat.leave() }

// Stop ends the asking for runs. It returns at once, and is called once.
func (s *Session) Stop() {
	close(s.stopped)
	// The others are to claim from now on what this process owns.
	s.heartbeat.wake()
}

// Idle says that the host was stopped and that no grant is left.
func (s *Session) Idle() { s.idleOnce.Do(func() { close(s.idle) }) }

// Done is closed when the session was stopped, no grant is left and the ends of runs
// are recorded, or StopPatience has passed since.
func (s *Session) Done() <-chan struct{} { return s.done }

// Run begins the work in the background.
func (s *Session) Run() {
	var claiming, finishing, others sync.WaitGroup
	for range claimers {
		claiming.Go(s.claims.run)
	}
	finishing.Go(s.ends.run)
	others.Go(s.sweep.run)
	others.Go(s.feed.run)
	others.Go(s.deputy.run)
	others.Go(s.waiting.run)
	s.heartbeat.beating.Go(s.heartbeat.run)
	go func() {
		defer close(s.done)
		<-s.idle
		giveUp := make(chan struct{})
		timer := time.AfterFunc(s.config.Timing.StopPatience, func() { close(giveUp) })
		defer timer.Stop()
		s.claims.queue.close()
		flushed := within(giveUp, claiming.Wait) && within(giveUp, others.Wait)
		s.ends.queue.close()
		flushed = within(giveUp, finishing.Wait) && flushed
		close(s.ended)
		if !flushed {
			s.ends.gaveUp()
			return
		}
		// The database answers: nothing of this process goes on in it after Stop.
		if within(giveUp, s.heartbeat.beating.Wait) && !s.claims.inDoubt.Load() {
			within(giveUp, s.heartbeat.leave)
		}
	}()
}

// within calls wait and reports whether it returned before giveUp was closed.
func within(giveUp <-chan struct{}, wait func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait()
	}()
	select {
	case <-done:
		return true
	case <-giveUp:
		return false
	}
}

// Concerns reports whether Ask may have something to do for a job. It is for those who
// spare themselves to describe the job: most ticks are others'.
func (s *Session) Concerns(jobID int64) bool {
	return s.owners.some.Load() || s.owners.rank(jobID) != none
}

// Ask asks for the run of a tick that has come, in the background. The job is as it
// was when it was armed.
func (s *Session) Ask(job Job, tick time.Time) {
	switch rank := s.owners.rank(job.ID); {
	case rank == first || s.owners.changedLately(job.Revision):
		s.claims.ask(job, tick)
	case rank == second:
		s.deputy.look(job, tick)
	}
}

// Changed says that the host has made a change, and agrees with it: until the others
// have followed it, this process claims the ticks of the jobs that it has changed.
func (s *Session) Changed(revision int64) {
	s.owners.changed(revision, time.Now().Add(suspectAfter(s.config.SyncInterval)+secondAfter))
}

// FollowOutbox makes the host agree at once with what transactions of the application
// have committed.
func (s *Session) FollowOutbox() error { return s.feed.follow(true) }

// Unplaced is how many ticks wait because the host has no room for their runs.
func (s *Session) Unplaced() int { return int(s.claims.unplaced.Load()) }

// Now is about what time it is in the database.
func (s *Session) Now() time.Time { return s.heartbeat.databaseNow() }

// TickNow is what the clock shows that ticks go by.
func (s *Session) TickNow() time.Time { return s.heartbeat.tickNow() }

// Health is how a session does.
type Health struct{ SyncLag, ClockOffset, HeartbeatAge time.Duration }

// Health tells how the session does.
func (s *Session) Health() Health {
	known := s.heartbeat.answer()
	return Health{SyncLag: s.feed.lag(), ClockOffset: known.offset, HeartbeatAge: time.Since(known.at)}
}

// trouble is whether one kind of call to the store fails. It is goroutine-safe.
type trouble struct {
	what string
	log  Log

	mu sync.Mutex // guards on, for moments
	on bool
}

// begin says once that the call fails.
func (t *trouble) begin(err error) {
	if t.set(true) {
		t.log.Error(err, "the record of runs does not answer", "call", t.what)
	}
}

// end says once that it is answered again, and reports whether it failed before.
func (t *trouble) end() bool {
	if !t.set(false) {
		return false
	}
	t.log.Info("the record of runs answers again", "call", t.what)
	return true
}

func (t *trouble) set(on bool) (changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed = t.on != on
	t.on = on
	return changed
}

// since is how long ago an instant was, by the clock that went on the longest: the
// monotonic one stands still while a machine sleeps.
func since(t time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}

// signal wakes a goroutine. It stays set until that receives from it.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) set() {
	select {
	case s <- struct{}{}:
	default:
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

package ledger

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ErrStopped is the error of what is asked of a session that was stopped.
var ErrStopped = errors.New("SmallBen was stopped")

// Session is one process in the record, from Join until it is done. Run begins its
// work, Stop ends the asking for runs, and Idle says that no run is left. It is
// goroutine-safe.
type Session struct {
	*common
	owners    *owners
	grants    *grants
	feed      *feed
	claims    *claims
	ends      *ends
	waiting   *waiting
	deputy    *deputy
	sweep     *sweep
	heartbeat *heartbeat

	beating sync.WaitGroup // the heartbeats, and what they began
	idle    chan struct{}  // closed by Idle
	done    chan struct{}  // closed: nothing more is recorded
}

// common is what the parts of a session share. Besides, each holds the parts that it
// calls.
type common struct {
	*Ledger
	host    Host
	process string
	clock   *clock
	// wake has the signals of the parts that others wake.
	wake    struct{ heartbeat, waiting, ends signal }
	stopped chan struct{} // closed by Stop
	ended   chan struct{} // closed: the session is over, nothing is tried again
}

func newCommon(l *Ledger, host Host, process string) *common {
	c := &common{Ledger: l, host: host, process: process, clock: newClock(l.config.SyncInterval), stopped: make(chan struct{}), ended: make(chan struct{})}
	c.wake.heartbeat, c.wake.waiting, c.wake.ends = newSignal(), newSignal(), newSignal()
	return c
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

// resume says that the store answers, or this process goes on, after a while.
func (c *common) resume() {
	c.clock.resume()
	c.wake.ends.set()
}

// Join registers a process for a new session, through the store or a view of it, such as
// one with a context.
func (l *Ledger) Join(store Store, host Host) (*Session, error) {
	if err := l.Open(); err != nil {
		return nil, err
	}
	s := newSession(newCommon(l, host, processName()))
	if err := store.Join(s.process); err != nil {
		return nil, err
	}
	return s, nil
}

// processName is a name that no other process has.
func processName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d/%s", host, os.Getpid(), strings.ToLower(rand.Text()[:6]))
}

func newSession(c *common) *Session {
	s := &Session{common: c, idle: make(chan struct{}), done: make(chan struct{})}
	s.owners = newOwners(c.process, c.config.SyncInterval)
	s.grants = newGrants(c)
	s.feed = newFeed(c, s.owners, s.grants)
	s.claims = newClaims(c, s.grants, s.feed)
	s.ends = newEnds(c, s.grants, s.claims)
	s.waiting = newWaiting(c, s.owners, s.grants)
	s.deputy = newDeputy(c, s.owners, s.grants)
	s.sweep = newSweep(c)
	s.heartbeat = newHeartbeat(c, s.grants)
	return s
}

// beat shows that this process is alive until the session is over, and tells the parts
// what the heartbeats bring.
func (s *Session) beat() {
	ticker := time.NewTicker(s.config.SyncInterval)
	defer ticker.Stop()
	for !closed(s.ended) {
		if heard, ok := s.heartbeat.beat(); ok {
			s.heard(heard)
		}
		select {
		case <-ticker.C:
		case <-s.wake.heartbeat:
		case <-s.ended:
		}
	}
}

func (s *Session) heard(n news) {
	s.feed.heard(n)
	if before := s.owners.set(n.live); before != nil {
		s.deputy.takeOver(before)
	}
	s.waiting.heard(n.Due, n.Now)
	s.sweep.heard(n)
	if n.Canceled > 0 {
		s.beating.Go(s.cancelRuns)
	}
	if len(n.dead) > 0 {
		s.beating.Go(func() { s.sweep.expire(n.dead) })
	}
}

// cancelRuns cancels what is marked so.
func (s *Session) cancelRuns() {
	runs, err := s.store.Canceled(s.process)
	if err == nil {
		s.grants.cancel(runs)
	} // else the next heartbeat says so again
}

// Notice makes the session look at once what there is to do.
func (s *Session) Notice() { s.wake.heartbeat.set() }

// Leave ends a session that Run was not called of.
func (s *Session) Leave() { s.heartbeat.leave() }

// Stop ends the asking for runs. It returns at once, and is called once.
func (s *Session) Stop() {
	close(s.stopped)
	// The others are to claim from now on what this process owns.
	s.wake.heartbeat.set()
}

// Idle says that the host was stopped and that no grant is left. It is called once.
func (s *Session) Idle() { close(s.idle) }

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
	s.beating.Go(s.beat)
	go func() {
		defer close(s.done)
		<-s.idle
		giveUp := make(chan struct{})
		timer := time.AfterFunc(s.config.Timing.StopPatience, func() { close(giveUp) })
		defer timer.Stop()
		s.grants.asked.close()
		flushed := within(giveUp, claiming.Wait) && within(giveUp, others.Wait)
		s.grants.over.close()
		flushed = within(giveUp, finishing.Wait) && flushed
		close(s.ended)
		if !flushed {
			s.ends.gaveUp()
			return
		}
		// The database answers: nothing of this process goes on in it after Stop.
		if within(giveUp, s.beating.Wait) && !s.claims.inDoubt.Load() {
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
		s.grants.ask(job, tick)
	case rank == second:
		s.deputy.look(job, tick)
	}
}

// Changed says that the host has made a change, and agrees with it: until the others
// have followed it, this process claims the ticks of the jobs that it has changed.
func (s *Session) Changed(revision int64) {
	s.owners.changed(revision)
}

// FollowOutbox makes the host agree at once with what transactions of the application
// have committed.
func (s *Session) FollowOutbox() error { return s.feed.follow(true) }

// Unplaced is how many ticks wait because the host has no place for their runs.
func (s *Session) Unplaced() int { return int(s.claims.unplaced.Load()) }

// Now is about what time it is in the database.
func (s *Session) Now() time.Time { return s.clock.now() }

// TickNow is what the clock shows that ticks go by.
func (s *Session) TickNow() time.Time { return s.clock.tickNow() }

// Health is how a session does.
type Health struct{ SyncLag, ClockOffset, HeartbeatAge time.Duration }

// Health tells how the session does.
func (s *Session) Health() Health {
	return Health{SyncLag: s.feed.lag(), ClockOffset: s.clock.offset(), HeartbeatAge: time.Since(s.clock.lastAnswer())}
}

// trouble is whether one kind of call to the store fails. It is goroutine-safe.
type trouble struct {
	what string
	log  Log
	on   atomic.Bool
}

func (c *common) newTrouble(what string) trouble { return trouble{what: what, log: c.config.Log} }

// begin says once that the call fails.
func (t *trouble) begin(err error) {
	if !t.on.Swap(true) {
		t.log.Error(err, "the record of runs does not answer", "call", t.what)
	}
}

// end says once that it is answered again, and reports whether it failed before.
func (t *trouble) end() bool {
	if !t.on.Swap(false) {
		return false
	}
	t.log.Info("the record of runs answers again", "call", t.what)
	return true
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

package test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/ledger"
)

// history is what is known of a time in which processes shared a record of runs:
// what they and their driver wrote down, and what the database says. All of its
// clocks are one.
type history struct {
	overlap   string // "skip", "delay" or ""
	rerunLost bool
	policy    smallben.MissedPolicy
	sync      time.Duration // RunsConfig.SyncInterval
	deadAfter time.Duration
	// calm is how long a claim, or the end of a run, may take to be recorded while
	// nothing is in its way. Zero does not look for ticks that were missed
	// without need.
	calm time.Duration
	// rolling says that only newer processes know a newerJob.
	rolling bool
	// options are those of jobs that are tried again. Nil: there are none.
	options func(id int64) smallben.RunOptions

	traces     []*trace
	outages    []window // of the database
	operations []*driven
	runs       []smallben.Run
	rows       map[int64]jobState // at the end
	until      time.Time          // up to which each tick must be recorded
}

type window struct{ from, to time.Time }

func (w window) meets(from, to time.Time) bool { return !w.from.After(to) && !from.After(w.to) }

// trace is what is known of one process, from its start to its end.
type trace struct {
	name    string
	pid     int
	up      time.Time // it ran jobs; zero: never
	killed  time.Time // zero: not
	closed  time.Time // it was asked to end; zero: not
	gone    time.Time // zero: not yet
	stopped []window  // by SIGSTOP
	cut     []window  // its connections were forgotten, and hold locks
	hogged  []window  // its pool is used up
	newer   bool      // it knows newerJob
	skew    time.Duration
	notes   []runNote
}

// isNamed reports whether name is its name in the database: host, process id,
// letters.
func (l *trace) isNamed(name string) bool {
	parts := strings.Split(name, "/")
	return len(parts) >= 3 && parts[len(parts)-2] == strconv.Itoa(l.pid)
}

func (l *trace) String() string { return fmt.Sprintf("process %s (%d)", l.name, l.pid) }

// halted reports whether it was stopped for so long that others may have taken
// it for dead, between two instants.
func (l *trace) halted(deadAfter time.Duration, from, to time.Time) bool {
	return slices.ContainsFunc(l.stopped, func(w window) bool {
		return w.to.Sub(w.from) >= deadAfter*9/10 && w.meets(from, to)
	})
}

func (l *trace) end() time.Time {
	if l.killed.IsZero() {
		return l.gone
	}
	return l.killed
}

// alive reports whether it could run jobs all the time between two instants.
func (l *trace) alive(from, to time.Time) bool {
	if l.up.IsZero() || l.up.After(from) {
		return false
	}
	for _, end := range []time.Time{l.killed, l.closed, l.gone} {
		if !end.IsZero() && end.Before(to) {
			return false
		}
	}
	meets := func(w window) bool { return w.meets(from, to) }
	return !slices.ContainsFunc(l.stopped, meets) && !slices.ContainsFunc(l.cut, meets) && !slices.ContainsFunc(l.hogged, meets)
}

// runNote is what a run wrote to the journal of its process.
type runNote struct {
	Job       int64
	Tick      int64 // Unix microseconds
	Triggered bool  `json:",omitempty"`
	Attempt   int
	Missed    int              `json:",omitempty"`
	Input     int              `json:",omitempty"` // the version of its input
	At        int64            // Unix microseconds
	End       smallben.Outcome `json:",omitempty"` // empty: it starts
}

func (n runNote) key() durableKey { return durableKey{n.Job, n.Tick, n.Triggered, n.Attempt} }

// durableKey names a run, as a key of maps.
type durableKey struct {
	job, tick int64 // Unix microseconds
	triggered bool
	attempt   int
}

func keyOf(run *smallben.Run) durableKey {
	return durableKey{run.JobID, run.Tick.UnixMicro(), run.Triggered, run.Attempt}
}

func (k durableKey) String() string {
	text := fmt.Sprintf("job %d, tick %s", k.job, clock(time.UnixMicro(k.tick)))
	if k.triggered {
		text += ", triggered"
	}
	if k.attempt != 1 {
		text += fmt.Sprintf(", attempt %d", k.attempt)
	}
	return text
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05.000000") }

// driven is an operation through one of the processes.
type driven struct {
	durableOperation
	trace      *trace // nil: of the driver itself
	begin, end time.Time
	result     drivenResult
	err        string
	seen       map[int64]jobState // by a list
}

type drivenResult string

const (
	drivenOK      drivenResult = "ok"
	drivenRefused drivenResult = "refused"
	// drivenUnknown may have happened up to its end, which is when it was
	// certain that it happens no more.
	drivenUnknown drivenResult = "unknown"
)

func (d *driven) String() string {
	by := "the driver"
	if d.trace != nil {
		by = d.trace.String()
	}
	text := fmt.Sprintf("%s to %s: %s through %s: %s", clock(d.begin), clock(d.end), d.durableOperation, by, d.result)
	if d.err != "" {
		text += ": " + d.err
	}
	return text
}

// durableOperation is a call as data.
type durableOperation struct {
	Kind       string  // add, upsert, delete, pause, resume, update, trigger, list
	IDs        []int64 `json:",omitempty"`
	Group      int64   `json:",omitempty"` // in place of IDs
	Expression string  `json:",omitempty"` // of an update: empty for no change
	Input      int     `json:",omitempty"` // its version; of an update: 0 for no change

	For time.Duration `json:",omitempty"` // of a hog
}

// makesNewer reports whether it makes a newerJob, where there are such.
func (o durableOperation) makesNewer() bool {
	return (o.Kind == "add" || o.Kind == "upsert") && slices.ContainsFunc(o.IDs, isNewer)
}

func (o durableOperation) String() string {
	text := fmt.Sprintf("%s %v", o.Kind, o.IDs)
	if o.Group != 0 {
		text = fmt.Sprintf("%s group %d", o.Kind, o.Group)
	}
	if o.Expression != "" {
		text += fmt.Sprintf(" %q", o.Expression)
	}
	if o.Input != 0 {
		text += fmt.Sprintf(" input %d", o.Input)
	}
	return text
}

// durableGroup is the group of a job.
func durableGroup(id int64) int64 {
	if id > 0 {
		return 1
	}
	return 2 + -id%2
}

func (o durableOperation) covers(id int64) bool {
	return slices.Contains(o.IDs, id) || o.Group != 0 && durableGroup(id) == o.Group
}

// jobState is a job as it is at some time. The zero value is that of no job.
type jobState struct {
	Exists, Paused bool
	Expression     string
	Input          int // the version
	// Created is when it was added, in Unix seconds, between two of them.
	CreatedFrom, CreatedTo int64
}

// durablePeriods are the expressions that the driver uses: how many seconds are
// between ticks, and the second of the first; -1 is that in which the job was
// added.
var durablePeriods = map[string][2]int64{
	"* * * * * *":      {1, 0},
	"@every 1s":        {1, 0},
	"*/2 * * * * *":    {2, 0},
	"1-59/2 * * * * *": {2, 1},
	"*/3 * * * * *":    {3, 0},
	"@every 3s":        {3, -1},
}

// ticks reports whether a second may be a tick, and whether it must be.
func (s jobState) ticks(second int64) (may, must bool) {
	if !s.Exists || s.Paused {
		return false, false
	}
	schedule, ok := durablePeriods[s.Expression]
	if !ok {
		return true, false
	}
	if schedule[1] >= 0 {
		is := (second-schedule[1])%schedule[0] == 0
		return is, is
	}
	if s.CreatedTo-s.CreatedFrom >= schedule[0] {
		return true, false
	}
	must = true
	for created := s.CreatedFrom; created <= s.CreatedTo; created++ {
		is := (second-created)%schedule[0] == 0
		may, must = may || is, must && is
	}
	return may, must
}

// agrees reports whether it may be the state that was seen.
func (s jobState) agrees(seen jobState) bool {
	if !s.Exists || !seen.Exists {
		return s.Exists == seen.Exists
	}
	return s.Paused == seen.Paused && s.Expression == seen.Expression && s.Input == seen.Input &&
		s.CreatedFrom <= seen.CreatedFrom && seen.CreatedTo <= s.CreatedTo
}

// apply gives the state after an operation that happened, or false if it cannot
// have happened.
func (s jobState) apply(d *driven, id int64) (after jobState, ok bool) {
	after = s
	switch d.Kind {
	case "add", "upsert":
		if s.Exists && d.Kind == "add" {
			return s, false
		}
		if !s.Exists {
			after = jobState{Exists: true, CreatedFrom: d.begin.Unix(), CreatedTo: d.end.Unix()}
			if d.trace != nil { // its clock may differ
				after.CreatedFrom += int64(min(d.trace.skew, 0) / time.Second)
				after.CreatedTo += int64(max(d.trace.skew, 0) / time.Second)
			}
		}
		after.Expression, after.Input = d.Expression, d.Input
		return after, true
	case "list":
		seen := d.seen[id]
		if !s.agrees(seen) {
			return s, false
		}
		return seen, true
	}
	if !s.Exists {
		return s, d.Group != 0 // others of the group may have been there
	}
	switch d.Kind {
	case "delete":
		return jobState{}, true
	case "pause":
		after.Paused = true
	case "resume":
		after.Paused = false
	case "update":
		if d.Expression != "" {
			after.Expression = d.Expression
		}
		if d.Input != 0 {
			after.Input = d.Input
		}
	}
	return after, true
}

// phase is a time in which a job was in one of the states: the same all along or,
// if operations were in progress, one after another.
type phase struct {
	window
	states     []jobState
	operations []*driven // in progress; none: the state did not change
	chaos      bool      // too much went on at once: any state
}

// clockSlack is how far two processes may disagree on the order of what they did:
// their timers go by a clock that is not quite the one that tells the time.
const clockSlack = 20 * time.Millisecond

// clockStep is how far the clock of the machine may be set within a run.
const clockStep = 100 * time.Millisecond

var (
	longAgo  = time.Unix(0, 0)
	longTime = time.Unix(1<<40, 0)
)

// phases tells what became of a job from the operations that concern it, in the
// order of their beginnings.
func phases(id int64, operations []*driven) (told []phase, contradiction []*driven) {
	states, chaos := []jobState{{}}, false
	from := longAgo
	for len(operations) > 0 {
		n, end := 1, operations[0].end
		for n < len(operations) && operations[n].begin.Add(-2*clockSlack).Before(end) {
			end = maxTime(end, operations[n].end)
			n++
		}
		cluster := operations[:n]
		operations = operations[n:]
		begin := cluster[0].begin.Add(-clockSlack)
		told = append(told, phase{window: window{from, begin}, states: states, chaos: chaos})
		from = end.Add(clockSlack)
		busy := phase{window: window{begin, from}, operations: cluster}
		switch {
		case n > maxInterleaved:
			chaos = true
		case chaos && n == 1 && cluster[0].Kind == "list":
			// It is known again.
			busy.chaos, chaos, states = true, false, []jobState{cluster[0].seen[id]}
		case !chaos:
			if busy.states, states = interleave(id, states, cluster); len(states) == 0 {
				return nil, cluster
			}
		}
		busy.chaos = busy.chaos || chaos
		told = append(told, busy)
	}
	return append(told, phase{window: window{from, longTime}, states: states, chaos: chaos}), nil
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

const maxInterleaved = 14

// interleave gives the states that a job may be in while operations are in
// progress, and those after it: each order is possible in which none comes
// before one that had ended when it began.
func interleave(id int64, before []jobState, operations []*driven) (between, after []jobState) {
	var todo []interleaving
	known := make(map[interleaving]struct{})
	visit := func(p interleaving) {
		if _, ok := known[p]; !ok {
			known[p] = struct{}{}
			todo = append(todo, p)
		}
	}
	for _, state := range before {
		visit(interleaving{0, state})
	}
	all := uint32(1)<<len(operations) - 1
	passed := make(map[jobState]struct{})
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		passed[p.state] = struct{}{}
		if p.done == all {
			after = append(after, p.state)
			continue
		}
		for i, operation := range operations {
			if p.done&(1<<i) != 0 || p.awaits(operations, operation.begin) {
				continue
			}
			next, ok := p.state.apply(operation, id)
			if ok {
				visit(interleaving{p.done | 1<<i, next})
			}
			if operation.result == drivenUnknown {
				visit(interleaving{p.done | 1<<i, p.state})
			}
		}
	}
	for state := range passed {
		between = append(between, state)
	}
	return between, after
}

// interleaving is a state that a job may be in when some of the operations are done.
type interleaving struct {
	done  uint32 // a bit for each
	state jobState
}

// awaits reports whether an operation is not done that had ended before an instant.
func (i interleaving) awaits(operations []*driven, begin time.Time) bool {
	for j, operation := range operations {
		if i.done&(1<<j) == 0 && operation.end.Before(begin) {
			return true
		}
	}
	return false
}

// jobHistory is all that is known of one job.
type jobHistory struct {
	*history
	id         int64
	operations []*driven
	phases     []phase
	runs       []*smallben.Run // by tick
}

// at gives the phase of an instant.
func (s *jobHistory) at(t time.Time) *phase {
	i, _ := slices.BinarySearchFunc(s.phases, t, func(p phase, t time.Time) int {
		switch {
		case p.to.Before(t):
			return -1
		case p.from.After(t):
			return 1
		}
		return 0
	})
	return &s.phases[min(i, len(s.phases)-1)]
}

// during gives the phases between two instants.
func (s *jobHistory) during(from, to time.Time) (found []*phase) {
	for i := range s.phases {
		if s.phases[i].meets(from, to) {
			found = append(found, &s.phases[i])
		}
	}
	return found
}

// ticks reports whether a second may be a tick of the job, and whether it must be.
func (s *jobHistory) ticks(second int64) (may, must bool) {
	p := s.at(time.Unix(second, 0))
	if p.chaos {
		return true, false
	}
	must = true
	for _, state := range p.states {
		m, n := state.ticks(second)
		may, must = may || m, must && n
	}
	return may, must
}

// active reports whether the job may have had ticks at some time between two
// instants.
func (s *jobHistory) active(from, to time.Time) bool {
	for _, p := range s.during(from, to) {
		if p.chaos || slices.ContainsFunc(p.states, func(state jobState) bool { return state.Exists && !state.Paused }) {
			return true
		}
	}
	return false
}

// existed reports whether there was such a job all the time between two instants.
func (s *jobHistory) existed(from, to time.Time) bool {
	for _, p := range s.during(from, to) {
		if p.chaos || slices.ContainsFunc(p.states, func(state jobState) bool { return !state.Exists }) {
			return false
		}
	}
	return true
}

// violation is what must not be.
type violation struct {
	kind string
	job  int64
	at   time.Time
	text string
}

// The kinds of violations.
const (
	startedTwice      = "a run started twice"
	baselessAttempt   = "a further attempt without a reason"
	earlyAttempt      = "an attempt started before its time"
	lateAttempt       = "an attempt started after a later tick of its job"
	lostAttempt       = "a run that failed has no further attempt"
	endedAttempt      = "an attempt did not start though nothing had ended it"
	baselessLoss      = "a run is lost without a reason"
	notRunAgain       = "a lost run was not run again"
	noRecord          = "a tick without a record"
	notATick          = "a record of what was no tick"
	missedAndRun      = "a tick is recorded as missed, and otherwise as well"
	miscounted        = "missed ticks do not add up"
	needlesslyMissed  = "a tick was missed though a process was alive"
	needlesslySkipped = "a tick was skipped though nothing was in its way"
	unrecordedRun     = "a run started that is not recorded so"
	phantomRun        = "a run is recorded that did not start"
	otherEnd          = "a run ended otherwise than recorded"
	unfinishedRun     = "a run is unfinished"
	overlapping       = "runs overlap"
	lostTrigger       = "a triggered run is missing"
	untriggered       = "a triggered run that nobody triggered"
	lateStart         = "a run started long after its job was paused or deleted"
	oldInput          = "a run had an input of another time"
	otherRow          = "a row is not what the operations made of it"
	contradicting     = "acknowledgements contradict each other"
	unknownProcess    = "a run of an unknown process"
	takenForDead      = "a process that lives was taken for dead"
)

// checker compares the parts of a history.
type checker struct {
	*history
	violations []violation
	histories  map[int64]*jobHistory
	records    map[durableKey]*smallben.Run
	started    map[durableKey]noted
	ended      map[durableKey]noted
}

type noted struct {
	runNote
	trace *trace
}

func (c *checker) report(kind string, job int64, at time.Time, format string, args ...any) {
	c.violations = append(c.violations, violation{kind, job, at, fmt.Sprintf(format, args...)})
}

// check returns what is wrong.
func (h *history) check() []violation {
	c := &checker{history: h, histories: make(map[int64]*jobHistory), records: make(map[durableKey]*smallben.Run),
		started: make(map[durableKey]noted), ended: make(map[durableKey]noted)}
	c.read()
	for i := range h.runs {
		c.checkRecord(&h.runs[i])
	}
	for key, start := range c.started {
		c.checkStart(key, start)
	}
	for _, s := range c.histories {
		c.checkTicks(s)
		c.checkMissed(s)
		c.checkMadeUp(s)
		c.checkTriggers(s)
		c.checkAttempts(s)
		if final := s.phases[len(s.phases)-1]; !final.chaos && !slices.ContainsFunc(final.states, func(state jobState) bool { return state.agrees(h.rows[s.id]) }) {
			c.report(otherRow, s.id, h.until, "it is %+v, and should be %+v", h.rows[s.id], final.states)
		}
	}
	c.checkOverlaps()
	slices.SortStableFunc(c.violations, func(a, b violation) int {
		return cmp.Or(strings.Compare(a.kind, b.kind), a.at.Compare(b.at), cmp.Compare(a.job, b.job))
	})
	return c.violations
}

// read sorts what is known by job and by run.
func (c *checker) read() {
	historyOf := func(id int64) *jobHistory {
		if c.histories[id] == nil {
			c.histories[id] = &jobHistory{history: c.history, id: id}
		}
		return c.histories[id]
	}
	for _, operation := range c.operations {
		for _, id := range operation.IDs {
			historyOf(id)
		}
	}
	for i := range c.runs {
		run := &c.runs[i]
		s := historyOf(run.JobID)
		s.runs = append(s.runs, run)
		c.records[keyOf(run)] = run
	}
	for _, l := range c.traces {
		for _, note := range l.notes {
			historyOf(note.Job)
			key := note.key()
			if note.End != "" {
				c.ended[key] = noted{note, l}
				continue
			}
			if first, twice := c.started[key]; twice {
				c.report(startedTwice, note.Job, time.UnixMicro(note.Tick), "%s: on %s at %s, and on %s at %s",
					key, first.trace, clock(time.UnixMicro(first.At)), l, clock(time.UnixMicro(note.At)))
				continue
			}
			c.started[key] = noted{note, l}
		}
	}
	// In an order in which triggers find their runs; see checkTriggers.
	slices.SortStableFunc(c.operations, func(a, b *driven) int { return a.end.Compare(b.end) })
	for _, s := range c.histories {
		slices.SortFunc(s.runs, func(a, b *smallben.Run) int { return a.Tick.Compare(b.Tick) })
		for _, operation := range c.operations {
			if operation.covers(s.id) && operation.result != drivenRefused && operation.Kind != "trigger" {
				s.operations = append(s.operations, operation)
			}
		}
		slices.SortStableFunc(s.operations, func(a, b *driven) int { return a.begin.Compare(b.begin) })
		var contradiction []*driven
		if s.phases, contradiction = phases(s.id, s.operations); contradiction != nil {
			c.report(contradicting, s.id, contradiction[0].begin, "%v", contradiction)
			s.phases = []phase{{window: window{longAgo, longTime}, chaos: true}}
		}
	}
}

// traceOf is the process that a record names.
func (h *history) traceOf(process string) *trace {
	for _, l := range h.traces {
		if l.isNamed(process) {
			return l
		}
	}
	return nil
}

// checkRecord is what each record must be beside the journals.
func (c *checker) checkRecord(run *smallben.Run) {
	key := keyOf(run)
	start, started := c.started[key]
	end, ended := c.ended[key]
	l := c.traceOf(run.Process)
	canceled := run.Outcome == smallben.OutcomeSkipped && run.Process == "" // while it waited
	if l == nil && run.Outcome != smallben.OutcomeMissed && run.Outcome != smallben.OutcomeWaiting && !canceled {
		c.report(unknownProcess, run.JobID, run.Tick, "%s", run)
		return
	}
	switch run.Outcome {
	case smallben.OutcomeMissed, smallben.OutcomeSkipped:
		if started {
			c.report(unrecordedRun, run.JobID, run.Tick, "%s started on %s at %s, and is recorded as %s", key, start.trace, clock(time.UnixMicro(start.At)), run.Outcome)
		}
	case smallben.OutcomeRunning:
		c.report(unfinishedRun, run.JobID, run.Tick, "%s", run)
	case smallben.OutcomeWaiting:
		if started {
			c.report(unrecordedRun, run.JobID, run.Tick, "%s started on %s at %s, and waits", key, start.trace, clock(time.UnixMicro(start.At)))
		}
		// When the processes ended, nothing had to be left of what was due before.
		if !run.Due.After(c.until) {
			c.report(unfinishedRun, run.JobID, run.Tick, "%s, due %s", run, clock(run.Due))
		}
	case smallben.OutcomeLost:
		c.checkLost(run, l, end, ended)
	default:
		switch {
		case !started:
			c.report(phantomRun, run.JobID, run.Tick, "%s", run)
		case !ended && !c.cutOff(start.trace), ended && end.End != run.Outcome:
			c.report(otherEnd, run.JobID, run.Tick, "%s; the journal says %q", run, end.End)
		case run.Start.After(time.UnixMicro(start.At).Add(clockStep)), ended && run.End.Before(time.UnixMicro(end.At).Add(-clockStep)):
			c.report(otherEnd, run.JobID, run.Tick, "%s, from %s to %s; the journal says from %s to %s", run,
				clock(run.Start), clock(run.End), clock(time.UnixMicro(start.At)), clock(time.UnixMicro(end.At)))
		}
	}
	if run.Outcome == smallben.OutcomeSkipped {
		c.checkSkipped(run, l)
	}
	if started && l != nil && start.trace != l {
		c.report(unrecordedRun, run.JobID, run.Tick, "%s: it started on %s", run, start.trace)
	}
	if run.Attempt != 1 {
		c.checkAttempt(run)
	}
}

// checkSkipped looks whether there was a reason to skip a tick that was claimed.
func (c *checker) checkSkipped(run *smallben.Run, l *trace) {
	from, to := run.Tick.Add(-clockSlack), run.End.Add(clockSlack)
	if run.Attempt != 1 || run.Missed > 0 {
		return // it may have waited for others
	}
	// Of a trigger that another job was deleted from meanwhile, nothing runs.
	if run.Triggered && slices.ContainsFunc(c.operations, func(operation *driven) bool {
		return operation.Kind == "trigger" && operation.result == drivenRefused && operation.covers(run.JobID) && window{operation.begin, operation.end}.meets(run.Tick, run.End)
	}) {
		return
	}
	s := c.histories[run.JobID]
	for _, p := range s.during(from, to) {
		if len(p.operations) > 0 || slices.ContainsFunc(p.states, func(state jobState) bool { return !state.Exists || state.Paused && !run.Triggered }) {
			return
		}
	}
	if l != nil && !l.closed.IsZero() && !l.closed.After(to) || c.disturbed(from.Add(-2*c.sync), to) {
		return
	}
	for _, other := range s.runs {
		waited := other.Outcome == smallben.OutcomeSkipped && other.Process == "" // it was about to start
		ran := other.Outcome != smallben.OutcomeMissed && other.Outcome != smallben.OutcomeSkipped || waited
		// From its claim until its end was recorded. The claim of this one may have
		// waited for that of the other, and began before it.
		busy := window{other.Tick.Add(-time.Second), other.End.Add(c.calm)}
		if ran && c.overlap != "" && busy.meets(from, to) {
			return
		}
	}
	c.report(needlesslySkipped, run.JobID, run.Tick, "%s, at %s", run, clock(run.End))
}

// disturbed reports whether the database was away, or a process was stopped that
// may have held locks, between two instants.
func (h *history) disturbed(from, to time.Time) bool {
	meets := func(w window) bool { return w.meets(from, to) }
	return slices.ContainsFunc(h.outages, meets) ||
		slices.ContainsFunc(h.traces, func(l *trace) bool { return slices.ContainsFunc(l.stopped, meets) || slices.ContainsFunc(l.cut, meets) })
}

// excused reports whether a run on a process may be, or have been, taken for lost.
func (c *checker) excused(l *trace, run *smallben.Run) bool {
	from, to := run.Start, longTime // since it was claimed
	if run.Outcome != smallben.OutcomeLost {
		// Between which it was claimed and its end recorded.
		from, to = run.Tick, run.End.Add(max(time.Second, c.calm))
		for _, w := range c.outages {
			if w.meets(from, to) {
				to = maxTime(to, w.to.Add(6*time.Second)) // ends of runs are tried again each 5 s at least
			}
		}
	}
	return c.cutOff(l) || l.halted(c.deadAfter, from.Add(-time.Second), to)
}

// cutOff reports whether a process may have ended without recording everything: it was
// killed, or the database did not answer while it was asked to end, or another process
// was stopped with locks for longer than Stop waits.
func (h *history) cutOff(l *trace) bool {
	if l.closed.IsZero() {
		return !l.killed.IsZero()
	}
	meets := func(w window) bool { return w.meets(l.closed, l.gone) }
	locks := func(w window) bool { return meets(w) && w.to.Sub(w.from) >= ledger.DefaultTiming.StopPatience }
	return !l.killed.IsZero() || slices.ContainsFunc(h.outages, meets) ||
		slices.ContainsFunc(h.traces, func(other *trace) bool { return slices.ContainsFunc(other.stopped, locks) })
}

func (c *checker) checkLost(run *smallben.Run, l *trace, end noted, ended bool) {
	if !c.excused(l, run) {
		c.report(baselessLoss, run.JobID, run.Tick, "%s, though it was neither killed nor stopped", run)
		return
	}
	if ended && !c.cutOff(l) {
		c.report(otherEnd, run.JobID, run.Tick, "%s; the journal of the process, which lived on, says %q", run, end.End)
	}
	if !c.rerunLost || run.Attempt != 1 || c.overlap == "skip" || c.attempts(run.JobID) > 1 {
		return
	}
	s := c.histories[run.JobID]
	p := s.at(run.End)
	// Not if it was deleted meanwhile, and there is a new one of its id.
	running := s.existed(run.Tick, run.End) && !p.chaos && len(p.operations) == 0 && !slices.ContainsFunc(p.states, func(state jobState) bool { return !state.Exists || state.Paused })
	again := keyOf(run)
	again.attempt = 2
	if _, ok := c.records[again]; running && !ok && s.existed(run.Tick, run.End) {
		c.report(notRunAgain, run.JobID, run.Tick, "%s, at %s", run, clock(run.End))
	}
}

// attempts is how often a run of a job is tried at most, and wait the time before an
// attempt at least.
func (h *history) attempts(id int64) int {
	if h.options == nil {
		return 1
	}
	return max(1, h.options(id).Attempts)
}

func (h *history) wait(id int64, attempt int) time.Duration {
	options := h.options(id)
	wait := options.Backoff
	for ; attempt > 2; attempt-- {
		wait *= 2
	}
	return min(wait, options.MaxBackoff)
}

// isFailed reports whether a run ended so that it is to be tried again.
func isFailed(run *smallben.Run) bool {
	switch run.Outcome {
	case smallben.OutcomeError, smallben.OutcomePanic, smallben.OutcomeTimeout:
		return run.Error != errForGood.Error()
	}
	return false
}

// attemptOf gives another attempt of a run, or nil.
func (c *checker) attemptOf(run *smallben.Run, attempt int) *smallben.Run {
	key := keyOf(run)
	key.attempt = attempt
	return c.records[key]
}

// checkAttempt looks whether there was a reason for a further attempt.
func (c *checker) checkAttempt(run *smallben.Run) {
	most := c.attempts(run.JobID)
	tried := most > 1
	if c.rerunLost {
		most = max(most, 2)
	}
	before := c.attemptOf(run, run.Attempt-1)
	switch {
	case run.Outcome == smallben.OutcomeSkipped && before != nil && before.Attempt == most && c.excused(c.traceOf(before.Process), before):
		// Who found it lost did not know the options of the job; who claimed it did.
	case most == 1:
		c.report(baselessAttempt, run.JobID, run.Tick, "%s: its runs are not tried again", run)
	case run.Attempt > most:
		c.report(baselessAttempt, run.JobID, run.Tick, "%s: there are %d at most", run, most)
	case before == nil:
		c.report(baselessAttempt, run.JobID, run.Tick, "%s: there was none before it", run)
	case before.Outcome == smallben.OutcomeLost, tried && isFailed(before):
	case before.Process == "", before.Outcome == smallben.OutcomeMissed, before.Outcome == smallben.OutcomeSkipped, !c.excused(c.traceOf(before.Process), before):
		c.report(baselessAttempt, run.JobID, run.Tick, "%s: the one before it is %s", run, before)
	}
}

// successor is the first later tick of a run that ends its attempts: when it started, and
// when it was recorded at the earliest. Both are long from now if there is none.
type successor struct{ started, recorded time.Time }

// successors gives the successor of each tick of the schedule, by Unix microseconds.
func (c *checker) successors(s *jobHistory) map[int64]successor {
	found := make(map[int64]successor)
	next := successor{longTime, longTime}
	for _, run := range slices.Backward(s.runs) {
		tick := run.Tick.UnixMicro()
		if _, ok := found[tick]; !ok {
			found[tick] = next
		}
		at := run.Tick // while it waits, nothing of an earlier tick is added
		switch start, ok := c.started[keyOf(run)]; {
		case run.Triggered || run.Attempt != 1:
			continue
		case ok:
			started := time.UnixMicro(start.At)
			next.started = minTime(next.started, started)
			if c.overlap != "delay" {
				at = started
			}
		case run.Outcome == smallben.OutcomeLost:
			at = run.Start // claimed, by a process that came no further
		case run.Outcome != smallben.OutcomeWaiting:
			continue
		}
		next.recorded = minTime(next.recorded, at)
	}
	return found
}

// checkAttempts looks at the runs of a job that is tried again: which attempts are
// missing, and which started when they should not have.
func (c *checker) checkAttempts(s *jobHistory) {
	if c.attempts(s.id) == 1 {
		return
	}
	successors := c.successors(s)
	for _, run := range s.runs {
		next := successor{longTime, longTime}
		if !run.Triggered {
			next = successors[run.Tick.UnixMicro()]
		}
		if run.Attempt > 1 {
			c.checkBackoff(s, run, next)
		}
		if run.Outcome != smallben.OutcomeLost && !isFailed(run) || run.Attempt >= c.attempts(s.id) || c.attemptOf(run, run.Attempt+1) != nil {
			continue
		}
		// It may have taken until then to record the end.
		recorded := run.End.Add(c.calm)
		if c.calm == 0 || next.recorded.Before(recorded) || c.changed(s, run, run.Start, recorded) {
			continue
		}
		if run.Outcome != smallben.OutcomeLost && (c.disturbed(run.Start, recorded) || c.excused(c.traceOf(run.Process), run)) {
			continue
		}
		c.report(lostAttempt, s.id, run.Tick, "%s, at %s", run, clock(run.End))
	}
}

// changed reports whether operations may have ended the attempts of a run between two
// instants.
func (c *checker) changed(s *jobHistory, run *smallben.Run, from, to time.Time) bool {
	for _, p := range s.during(from.Add(-clockSlack), to.Add(clockSlack)) {
		ends := func(operation *driven) bool { return operation.Kind != "list" }
		if p.chaos || slices.ContainsFunc(p.operations, ends) ||
			slices.ContainsFunc(p.states, func(state jobState) bool { return !state.Exists || state.Paused && !run.Triggered }) {
			return true
		}
	}
	return false
}

// checkBackoff looks when a further attempt started, or why it did not.
func (c *checker) checkBackoff(s *jobHistory, run *smallben.Run, next successor) {
	before := c.attemptOf(run, run.Attempt-1)
	if before == nil {
		return
	}
	start, started := c.started[keyOf(run)]
	if !started {
		c.checkEnded(s, run, before, next)
		return
	}
	// It was claimed at claimed or later.
	at := time.UnixMicro(start.At)
	claimed := at.Add(-claimToStart)
	held := func(w window) bool { return w.meets(claimed, at) }
	if slices.ContainsFunc(slices.Concat(c.outages, start.trace.stopped, start.trace.cut, start.trace.hogged), held) {
		claimed = longAgo
	}
	if before.Outcome == smallben.OutcomeLost {
		claimed = maxTime(claimed, before.End) // when that was found
	}
	// A run that was taken for lost is tried again at once.
	lost := before.Outcome == smallben.OutcomeLost || c.excused(c.traceOf(before.Process), before)
	if end, ok := c.ended[keyOf(before)]; ok && !lost {
		due := time.UnixMicro(end.At).Add(c.wait(s.id, run.Attempt))
		if at.Before(due.Add(-clockStep)) {
			c.report(earlyAttempt, s.id, run.Tick, "%s started at %s, and was due at %s", run, clock(at), clock(due))
		}
		claimed = maxTime(claimed, due)
	}
	if next.started.Before(claimed.Add(-clockStep)) {
		c.report(lateAttempt, s.id, run.Tick, "%s started at %s, and was claimed at %s at the earliest; a later tick had started at %s", run, clock(at), clock(claimed), clock(next.started))
	}
}

// claimToStart is how long a run that was claimed takes to start, where nothing is in
// its way.
const claimToStart = time.Second

// checkEnded looks why an attempt did not start.
func (c *checker) checkEnded(s *jobHistory, run, before *smallben.Run, next successor) {
	if c.calm == 0 || run.Outcome != smallben.OutcomeSkipped {
		return
	}
	end := run.End.Add(c.calm) // of the run before it, and of the later tick's claim
	l := c.traceOf(run.Process)
	if next.recorded.Before(end) || c.changed(s, run, before.Start, end) || c.disturbed(before.Start, end) || l != nil && !l.closed.IsZero() && !l.closed.After(end) {
		return
	}
	c.report(endedAttempt, s.id, run.Tick, "%s, at %s", run, clock(run.End))
}

// checkStart is what each start of a run must be.
func (c *checker) checkStart(key durableKey, start noted) {
	tick, at := time.UnixMicro(key.tick), time.UnixMicro(start.At)
	if _, ok := c.records[key]; !ok {
		c.report(unrecordedRun, key.job, tick, "%s on %s at %s", key, start.trace, clock(at))
	}
	s := c.histories[key.job]
	var inputs []int
	for _, p := range s.during(tick.Add(-clockSlack), at) {
		if p.chaos {
			return
		}
		for _, state := range p.states {
			if state.Exists {
				inputs = append(inputs, state.Input)
			}
		}
	}
	if start.Input != 0 && len(inputs) > 0 && !slices.Contains(inputs, start.Input) {
		c.report(oldInput, key.job, tick, "%s on %s at %s had input %d, not one of %v", key, start.trace, clock(at), start.Input, inputs)
	}
	grace := 2*c.sync + 2*time.Second
	from := at.Add(-grace)
	disturbed := slices.ContainsFunc(c.outages, func(w window) bool { return w.meets(from.Add(-grace), at) }) ||
		slices.ContainsFunc(slices.Concat(start.trace.stopped, start.trace.cut, start.trace.hogged), func(w window) bool { return w.meets(from, at) })
	if !key.triggered && !disturbed && !s.active(from, at) {
		c.report(lateStart, key.job, at, "%s on %s at %s", key, start.trace, clock(at))
	}
}

// checkTicks looks for ticks without a record, and for records without a tick.
func (c *checker) checkTicks(s *jobHistory) {
	recorded := make(map[int64]struct{})
	for _, run := range s.runs {
		if run.Triggered {
			continue
		}
		second := run.Tick.Unix()
		if may, _ := s.ticks(second); !may || run.Tick.UnixMicro() != second*1_000_000 {
			c.report(notATick, s.id, run.Tick, "%s: then it was %+v", run, s.at(run.Tick).states)
		}
		recorded[second] = struct{}{}
		if run.Outcome == smallben.OutcomeMissed {
			for second := run.FirstTick.Unix(); second < run.Tick.Unix(); second++ {
				recorded[second] = struct{}{}
			}
		}
	}
	var missing []int64
	for i := range s.phases {
		p := &s.phases[i]
		if p.from.Equal(longAgo) {
			continue
		}
		for second := p.from.Unix(); second <= p.to.Unix() && second <= c.until.Unix(); second++ {
			if _, ok := recorded[second]; ok {
				continue
			}
			if _, must := s.ticks(second); must && s.at(time.Unix(second, 0)) == p {
				missing = append(missing, second)
			}
		}
	}
	if n := len(missing); n > 0 {
		c.report(noRecord, s.id, time.Unix(missing[0], 0), "job %d: %d of them, from %s to %s", s.id, n, clock(time.Unix(missing[0], 0)), clock(time.Unix(missing[n-1], 0)))
	}
}

// checkMissed looks at records of missed ticks.
func (c *checker) checkMissed(s *jobHistory) {
	for _, run := range s.runs {
		if run.Outcome != smallben.OutcomeMissed {
			continue
		}
		for _, other := range s.runs {
			if other != run && !other.Triggered && other.Attempt == 1 && !other.Tick.Before(run.FirstTick) && other.Tick.Before(run.Tick) {
				c.report(missedAndRun, s.id, other.Tick, "%s, and %s from %s on", other, run, clock(run.FirstTick))
			}
		}
		least, most := 0, 0
		for second := run.FirstTick.Unix(); second <= run.Tick.Unix(); second++ {
			may, must := s.ticks(second)
			if may {
				most++
			}
			if must {
				least++
				c.checkNeed(s, run, time.Unix(second, 0))
			}
		}
		if first, _ := s.ticks(run.FirstTick.Unix()); run.Missed < least || run.Missed > most || !first {
			c.report(miscounted, s.id, run.Tick, "%s, from %s on: it is of %d ticks at least and %d at most", run, clock(run.FirstTick), least, most)
		}
	}
}

// checkNeed looks whether there was a reason to miss a tick.
func (c *checker) checkNeed(s *jobHistory, run *smallben.Run, tick time.Time) {
	if c.calm == 0 {
		return
	}
	from, to := tick.Add(-2*c.sync-time.Second), tick.Add(c.calm)
	// A change may also come between a tick and its claim.
	for _, p := range s.during(from, tick.Add(time.Second)) {
		if slices.ContainsFunc(p.operations, func(operation *driven) bool { return operation.Kind != "list" }) {
			return
		}
	}
	alive := slices.ContainsFunc(c.traces, func(l *trace) bool { return l.alive(from, to) && (!c.rolling || l.newer || !isNewer(s.id)) })
	if alive && !c.disturbed(from.Add(-2*c.sync), to) {
		c.report(needlesslyMissed, s.id, tick, "%s at %s", run, clock(tick))
	}
}

// checkMadeUp looks at runs that make up for missed ticks: as many as they say
// are recorded just before them.
func (c *checker) checkMadeUp(s *jobHistory) {
	for i, run := range s.runs {
		if run.Outcome == smallben.OutcomeMissed || run.Triggered || run.Attempt != 1 || run.Missed == 0 {
			continue
		}
		if c.policy == smallben.MissedSkip {
			c.report(miscounted, s.id, run.Tick, "%s makes up for ticks that are not to be run", run)
		}
		left := run.Missed - 1
		for j := i - 1; j >= 0 && left > 0; j-- {
			if before := s.runs[j]; before.Outcome == smallben.OutcomeMissed && !before.Triggered {
				left -= before.Missed
			}
		}
		if left != 0 {
			c.report(miscounted, s.id, run.Tick, "%s: it stands for %d ticks, of which %d are not recorded", run, run.Missed, left)
		}
	}
}

// checkTriggers holds triggered runs against the calls.
func (c *checker) checkTriggers(s *jobHistory) {
	free := make(map[*smallben.Run]bool)
	for _, run := range s.runs {
		if run.Triggered && run.Attempt == 1 {
			free[run] = true
		}
	}
	possible := func(operation *driven, run *smallben.Run) bool {
		// A run that waits for another is taken by any process.
		return (c.overlap == "delay" || c.traceOf(run.Process) == operation.trace) && window{operation.begin.Add(-clockSlack), operation.end.Add(clockSlack)}.meets(run.Tick, run.Tick)
	}
	var others []*driven
	for _, operation := range c.operations {
		if operation.Kind != "trigger" || !operation.covers(s.id) {
			continue
		}
		if operation.result != drivenOK {
			others = append(others, operation)
			continue
		}
		// The operations are in the order of their ends: the first run that is
		// possible leaves the most to those that follow.
		var found *smallben.Run
		for _, run := range s.runs {
			if free[run] && possible(operation, run) {
				found = run
				break
			}
		}
		switch {
		case found == nil && operation.Group != 0 && !s.existed(operation.begin, operation.end):
		case found == nil:
			c.report(lostTrigger, s.id, operation.begin, "%s", operation)
		case found.Outcome == smallben.OutcomeMissed, found.Outcome == smallben.OutcomeSkipped && c.overlap == "":
			c.report(lostTrigger, s.id, operation.begin, "%s; %s", operation, found)
		}
		delete(free, found)
	}
	for run := range free {
		if !slices.ContainsFunc(others, func(operation *driven) bool { return possible(operation, run) }) {
			c.report(untriggered, s.id, run.Tick, "%s", run)
		}
	}
}

// interval is a run as its journal knows it.
type interval struct {
	noted
	window
}

// checkOverlaps looks for runs of one job at the same time where the
// configuration forbids it.
func (c *checker) checkOverlaps() {
	if c.overlap == "" {
		return
	}
	byJob := make(map[int64][]interval)
	for key, start := range c.started {
		i := interval{start, window{time.UnixMicro(start.At), start.trace.end()}}
		if end, ok := c.ended[key]; ok {
			i.to = time.UnixMicro(end.At)
		}
		byJob[key.job] = append(byJob[key.job], i)
	}
	for id, intervals := range byJob {
		slices.SortFunc(intervals, func(a, b interval) int { return a.from.Compare(b.from) })
		var open []interval
		for _, i := range intervals {
			open = slices.DeleteFunc(open, func(o interval) bool { return !o.to.After(i.from) })
			for _, o := range open {
				// It may have been stopped between its claim and its start.
				excused := func(i interval) bool { return i.trace.halted(c.deadAfter, i.from.Add(-clockStep), i.to) }
				if o.trace == i.trace || !excused(o) && !excused(i) {
					c.report(overlapping, id, i.from, "%s on %s from %s to %s, and %s on %s from %s to %s",
						o.key(), o.trace, clock(o.from), clock(o.to), i.key(), i.trace, clock(i.from), clock(i.to))
				}
			}
			open = append(open, i)
		}
	}
}

// timeline says what is known of a job around an instant.
func (h *history) timeline(id int64, around time.Time, radius time.Duration) []string {
	type line struct {
		at   time.Time
		text string
	}
	var lines []line
	from, to := around.Add(-radius), around.Add(radius)
	add := func(from2, to2 time.Time, format string, args ...any) {
		if !from2.After(to) && !to2.Before(from) {
			lines = append(lines, line{from2, clock(from2) + " " + fmt.Sprintf(format, args...)})
		}
	}
	for _, w := range h.outages {
		add(w.from, w.to, "the database is away until %s", clock(w.to))
	}
	for _, operation := range h.operations {
		if operation.covers(id) {
			add(operation.begin, operation.end, "operation %s", operation)
		}
	}
	for _, l := range h.traces {
		add(l.up, l.up, "%s is up", l)
		for what, at := range map[string]time.Time{"killed": l.killed, "asked to end": l.closed, "gone": l.gone} {
			if !at.IsZero() {
				add(at, at, "%s is %s", l, what)
			}
		}
		for _, w := range l.stopped {
			add(w.from, w.to, "%s is stopped until %s", l, clock(w.to))
		}
		for _, note := range l.notes {
			if note.Job != id {
				continue
			}
			at, tick := time.UnixMicro(note.At), time.UnixMicro(note.Tick)
			what := fmt.Sprintf("starts with input %d", note.Input)
			if note.End != "" {
				what = "ends: " + string(note.End)
			}
			if window := (window{from, to}); window.meets(at, at) || window.meets(tick, tick) {
				lines = append(lines, line{at, fmt.Sprintf("%s journal of %s: %s %s", clock(at), l, note.key(), what)})
			}
		}
	}
	for i := range h.runs {
		if run := &h.runs[i]; run.JobID == id {
			first := run.Tick
			if run.Outcome == smallben.OutcomeMissed {
				first = run.FirstTick
			}
			add(first, run.Tick, "record: %s, tick %s, from %s to %s", run, clock(run.Tick), clock(run.Start), clock(run.End))
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return a.at.Compare(b.at) })
	texts := make([]string, len(lines))
	for i := range lines {
		texts[i] = lines[i].text
	}
	return texts
}

// describeViolations says how many there are of each kind, and tells the first
// ones of each.
func (h *history) describeViolations(violations []violation, each int) string {
	var text strings.Builder
	counts := make(map[string]int)
	for _, v := range violations {
		counts[v.kind]++
	}
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&text, "%d times: %s\n", counts[kind], kind)
	}
	told := make(map[string]int)
	for _, v := range violations {
		if told[v.kind]++; told[v.kind] > each {
			continue
		}
		fmt.Fprintf(&text, "\n%s: %s\n", v.kind, v.text)
		for _, line := range h.timeline(v.job, v.at, 4*time.Second) {
			fmt.Fprintf(&text, "    %s\n", line)
		}
	}
	return text.String()
}

// handmade makes a history by hand. Its instants are seconds from its beginning.
type handmade struct {
	*history
	a, b *trace
}

func (*handmade) at(seconds float64) time.Time {
	return time.UnixMicro(1_700_000_040_000_000 + int64(seconds*1e6))
}

func (t *handmade) during(from, to float64) window { return window{t.at(from), t.at(to)} }

func (t *handmade) operate(l *trace, from, to float64, operation durableOperation) *driven {
	d := &driven{durableOperation: operation, trace: l, begin: t.at(from), end: t.at(to), result: drivenOK}
	t.operations = append(t.operations, d)
	return d
}

func (t *handmade) record(l *trace, tick float64, outcome smallben.Outcome) *smallben.Run {
	t.runs = append(t.runs, smallben.Run{
		JobID: 1, Tick: t.at(tick), Attempt: 1,
		Process: l.process(), Start: t.at(tick + .01), End: t.at(tick + .09), Outcome: outcome,
	})
	return &t.runs[len(t.runs)-1]
}

func (t *handmade) note(l *trace, run *smallben.Run, at float64, end smallben.Outcome) *runNote {
	input := 1
	if at > 15.5 {
		input = 2
	}
	l.notes = append(l.notes, runNote{Job: 1, Tick: run.Tick.UnixMicro(), Triggered: run.Triggered, Attempt: run.Attempt, Input: input, At: t.at(at).UnixMicro(), End: end})
	return &l.notes[len(l.notes)-1]
}

func (l *trace) process() string { return fmt.Sprintf("host/%d/x", l.pid) }

// run is a run that is recorded as it was.
func (t *handmade) run(l *trace, tick float64) *smallben.Run {
	run := t.record(l, tick, smallben.OutcomeOK)
	t.note(l, run, tick+.02, "")
	t.note(l, run, tick+.08, smallben.OutcomeOK)
	return run
}

func (t *handmade) miss(first, last float64) *smallben.Run {
	run := t.record(t.a, last, smallben.OutcomeMissed)
	run.FirstTick, run.Missed = t.at(first), int(last-first)+1
	return run
}

// skip makes a tick one that was claimed and not run.
func (t *handmade) skip(l *trace, tick float64) *smallben.Run {
	t.forget(tick)
	return t.record(l, tick, smallben.OutcomeSkipped)
}

// find gives the record of a tick.
func (t *handmade) find(tick float64) *smallben.Run {
	i := slices.IndexFunc(t.runs, func(run smallben.Run) bool { return run.Tick.Equal(t.at(tick)) })
	return &t.runs[i]
}

// forget takes a tick out of the record and out of the journals.
func (t *handmade) forget(tick float64) {
	t.runs = slices.DeleteFunc(t.runs, func(run smallben.Run) bool { return run.Tick.Equal(t.at(tick)) })
	for _, l := range t.traces {
		l.notes = slices.DeleteFunc(l.notes, func(note runNote) bool { return note.Tick == t.at(tick).UnixMicro() })
	}
}

// lose makes the run of a tick one that did not come to its end.
func (t *handmade) lose(tick float64) *smallben.Run {
	run := t.find(tick)
	run.Outcome, run.End = smallben.OutcomeLost, t.at(tick+5)
	for _, l := range t.traces {
		l.notes = slices.DeleteFunc(l.notes, func(note runNote) bool { return note.Tick == run.Tick.UnixMicro() && note.End != "" })
	}
	return run
}

// again makes a second attempt.
func (t *handmade) again(l *trace, tick, at float64) *smallben.Run {
	second := *t.find(tick)
	second.Attempt, second.Outcome, second.Start, second.End = 2, smallben.OutcomeOK, t.at(at), t.at(at+.09)
	second.Process = l.process()
	t.runs = append(t.runs, second)
	t.note(l, &second, at+.01, "")
	t.note(l, &second, at+.08, smallben.OutcomeOK)
	return &t.runs[len(t.runs)-1]
}

func (t *handmade) trigger(l *trace, at float64) {
	t.run(l, at).Triggered = true
	for i := range 2 {
		l.notes[len(l.notes)-1-i].Triggered = true
	}
}

// unwrite takes a tick out of the journals.
func (t *handmade) unwrite(tick float64) {
	for _, l := range t.traces {
		l.notes = slices.DeleteFunc(l.notes, func(note runNote) bool { return note.Tick == t.at(tick).UnixMicro() })
	}
}

// ends changes when a run ended, by the journal.
func (t *handmade) ends(l *trace, tick, at float64) {
	for i := range l.notes {
		if note := &l.notes[i]; note.Tick == t.at(tick).UnixMicro() && note.End != "" {
			note.At = t.at(at).UnixMicro()
		}
	}
}

// lasts changes when a run ended.
func (t *handmade) lasts(l *trace, tick, to float64) {
	t.ends(l, tick, to)
	t.find(tick).End = t.at(to + .01)
}

// starts changes when a run started.
func (t *handmade) starts(l *trace, tick, at float64) {
	run := t.find(tick)
	run.Start = t.at(at - .01)
	for i := range l.notes {
		if note := &l.notes[i]; note.Tick == run.Tick.UnixMicro() {
			note.At = t.at(at).UnixMicro()
		}
	}
	t.lasts(l, tick, at+.1)
}

// dies kills a process. What it would have done after that the other one does.
func (t *handmade) dies(at float64) {
	t.a.killed, t.a.gone, t.a.closed = t.at(at), t.at(at), time.Time{}
	t.takeOver(at, 100)
	for _, operation := range t.operations {
		if operation.begin.After(t.at(at)) {
			operation.trace = t.b
		}
	}
}

// halts stops a process for a time, in which the other one does what it would.
func (t *handmade) halts(from, to float64) {
	t.a.stopped = []window{t.during(from, to)}
	t.takeOver(from, to)
}

func (t *handmade) takeOver(from, to float64) {
	for i := range t.runs {
		if run := &t.runs[i]; run.Process == t.a.process() && run.Tick.After(t.at(from)) && run.Tick.Before(t.at(to)) {
			run.Process = t.b.process()
		}
	}
	for _, note := range t.a.notes {
		if tick := time.UnixMicro(note.Tick); tick.After(t.at(from)) && tick.Before(t.at(to)) {
			t.b.notes = append(t.b.notes, note)
		}
	}
	t.a.notes = slices.DeleteFunc(t.a.notes, func(note runNote) bool {
		tick := time.UnixMicro(note.Tick)
		return tick.After(t.at(from)) && tick.Before(t.at(to))
	})
}

// newHandmade is half a minute of a job that runs each second, on two processes in
// turn, while nothing is wrong.
func newHandmade() *handmade {
	h := &history{sync: time.Second, deadAfter: 4 * time.Second, calm: 3 * time.Second, policy: smallben.MissedSkip}
	t := &handmade{history: h, a: &trace{name: "a", pid: 11}, b: &trace{name: "b", pid: 12}}
	t.traces = []*trace{t.a, t.b}
	for _, l := range t.traces {
		l.up, l.closed, l.gone = t.at(-1), t.at(31), t.at(32)
	}
	const every = "* * * * * *"
	t.operate(t.a, .2, .3, durableOperation{Kind: "add", IDs: []int64{1}, Expression: every, Input: 1})
	t.operate(t.b, 15.2, 15.3, durableOperation{Kind: "update", IDs: []int64{1}, Input: 2})
	t.operate(t.a, 20.2, 20.3, durableOperation{Kind: "pause", IDs: []int64{1}})
	t.operate(t.a, 25.2, 25.3, durableOperation{Kind: "resume", IDs: []int64{1}})
	t.operate(t.b, 27.5, 27.6, durableOperation{Kind: "trigger", IDs: []int64{1}})
	t.outages = []window{t.during(7.5, 8.5)}
	for tick := 1.; tick <= 30; tick++ {
		switch {
		case tick == 8:
			t.miss(8, 9)
		case tick == 9 || tick > 20 && tick < 26:
		case int(tick)%2 == 0:
			t.run(t.a, tick)
		default:
			t.run(t.b, tick)
		}
	}
	run := t.record(t.b, 27.55, smallben.OutcomeOK)
	run.Triggered = true
	t.note(t.b, run, 27.57, "")
	t.note(t.b, run, 27.58, smallben.OutcomeOK)
	t.until = t.at(30)
	t.rows = map[int64]jobState{1: {Exists: true, Expression: every, Input: 2, CreatedFrom: t.at(0).Unix(), CreatedTo: t.at(0).Unix()}}
	return t
}

// newTried is newHandmade of a job whose runs are tried again, up to so often.
func newTried(attempts int) *handmade {
	t := newHandmade()
	t.options = func(int64) smallben.RunOptions {
		return smallben.RunOptions{Attempts: attempts, Backoff: 200 * time.Millisecond, MaxBackoff: 300 * time.Millisecond}
	}
	t.b.closed, t.b.gone = t.at(40), t.at(41)
	return t
}

// fails makes an attempt one that failed.
func (t *handmade) fails(run *smallben.Run) *smallben.Run {
	run.Outcome, run.Error = smallben.OutcomeError, "drawn"
	for _, l := range t.traces {
		for i := range l.notes {
			if note := &l.notes[i]; note.key() == keyOf(run) && note.End != "" {
				note.End = smallben.OutcomeError
			}
		}
	}
	return run
}

// unstarted adds the second attempt of a tick, which did not start.
func (t *handmade) unstarted(tick float64, outcome smallben.Outcome, at float64) *smallben.Run {
	t.runs = append(t.runs, smallben.Run{JobID: 1, Tick: t.at(tick), Attempt: 2, Outcome: outcome})
	run := &t.runs[len(t.runs)-1]
	if outcome == smallben.OutcomeWaiting {
		run.Due = t.at(at)
	} else {
		run.Start, run.End = t.at(at), t.at(at)
	}
	return run
}

func (t *handmade) kinds() (kinds []string) {
	for _, v := range t.check() {
		kinds = append(kinds, v.kind)
	}
	return slices.Compact(kinds)
}

func TestTheCheckOfDurableRunsFindsNothingWhereNothingIsWrong(t *testing.T) {
	t.Parallel()
	for name, vary := range map[string]func(t *handmade){
		"as it is": func(*handmade) {},
		"a run is lost with its process": func(t *handmade) {
			t.dies(10.05)
			t.lose(10)
		},
		"an attempt of a lost run ends where it is known that there is to be none": func(t *handmade) {
			t.dies(10.05)
			t.lose(10)
			t.unstarted(10, smallben.OutcomeSkipped, 15.1)
		},
		"a process ends while another is stopped that holds locks": func(t *handmade) {
			t.halts(28.5, 45)
			t.b.closed, t.b.gone = t.at(29.5), t.at(40)
			t.lose(29)
		},
		"a lost run is run again": func(t *handmade) {
			t.rerunLost = true
			t.dies(10.05)
			t.lose(10)
			t.again(t.b, 10, 15.1)
		},
		"a lost run ended after all, when it was run again": func(t *handmade) {
			t.rerunLost = true
			t.halts(10.05, 16)
			t.again(t.b, 10, 15.1)
		},
		"a lost run of a job that is paused is not run again": func(t *handmade) {
			t.rerunLost = true
			t.dies(18.05)
			t.lose(18)
		},
		"the journal breaks off before the end": func(t *handmade) {
			t.dies(10.05)
			t.a.notes = t.a.notes[:len(t.a.notes)-1]
		},
		"a pause is acknowledged late": func(t *handmade) {
			t.operations[2].end = t.at(22.5)
			t.run(t.b, 21)
			t.run(t.b, 22)
		},
		"a pause may have failed": func(t *handmade) {
			t.operations[2].result = drivenUnknown
			t.run(t.b, 21)
			t.run(t.b, 23)
		},
		"a pause was refused": func(t *handmade) {
			t.operations[2].result = drivenRefused
			for tick := 21.; tick <= 25; tick++ {
				t.run(t.b, tick)
			}
		},
		"two operations at once, in either order": func(t *handmade) {
			t.operate(t.b, 25.22, 25.32, durableOperation{Kind: "pause", IDs: []int64{1}})
			t.forget(27)
		},
		"a missed tick is made up for": func(t *handmade) {
			t.policy = smallben.MissedRunOnce
			t.forget(8)
			t.miss(8, 8)
			t.forget(9)
			t.run(t.b, 9).Missed = 2
		},
		"a tick is skipped": func(t *handmade) {
			t.overlap = "skip"
			t.lasts(t.b, 13, 14.5)
			t.skip(t.a, 14)
		},
		"a tick is skipped for one that waits until its job is deleted": func(t *handmade) {
			t.overlap, t.policy = "skip", smallben.MissedRunOnce
			t.calm = 500 * time.Millisecond // so that it is not for the run at 28
			t.forget(29)
			waited := t.record(t.b, 29, smallben.OutcomeSkipped)
			waited.Process, waited.Missed, waited.End = "", 1, t.at(30.5)
			t.skip(t.a, 30)
		},
		"an end is recorded late, when its process was stopped already": func(t *handmade) {
			t.rerunLost = true
			t.halts(12, 17)
			t.again(t.b, 10, 16)
		},
		"a run overlaps another that was stopped for long": func(t *handmade) {
			t.overlap = "skip"
			t.halts(10.05, 15.5)
			t.lasts(t.a, 10, 15.8)
		},
		"a run overlaps another that was stopped for long before it started": func(t *handmade) {
			t.overlap, t.calm = "skip", 0
			t.halts(10.005, 15.005)
			t.starts(t.a, 10, 15.01)
		},
		"a lost run of a job that was deleted and added again is not run again": func(t *handmade) {
			t.rerunLost = true
			t.dies(18.05)
			t.lose(18)
			t.operations[2].Kind, t.operations[3].Kind = "delete", "add"
			t.operations[2].begin, t.operations[2].end = t.at(20.1), t.at(20.2)
			t.operations[3].begin, t.operations[3].end = t.at(20.3), t.at(20.4)
			t.operations[3].Expression, t.operations[3].Input = "@daily", 2
			t.rows[1] = jobState{Exists: true, Expression: "@daily", Input: 2, CreatedFrom: t.at(20).Unix(), CreatedTo: t.at(20).Unix()}
			t.runs = slices.DeleteFunc(t.runs, func(run smallben.Run) bool { return run.Tick.After(t.at(21)) && !run.Triggered })
			for _, l := range t.traces {
				l.notes = slices.DeleteFunc(l.notes, func(note runNote) bool { return note.Tick > t.at(21).UnixMicro() && !note.Triggered })
			}
		},
		"a tick is skipped for a run that another one waits for": func(t *handmade) {
			t.overlap = "delay"
			t.lasts(t.b, 13, 14.05)
			t.skip(t.a, 14)
		},
		"a triggered run is skipped": func(t *handmade) {
			t.overlap = "skip"
			t.lasts(t.b, 27, 27.7)
			t.skip(t.b, 27.55).Triggered = true
		},
		"a trigger is refused when another of its jobs is gone": func(t *handmade) {
			t.operations[4].result = drivenRefused
			t.skip(t.b, 27.55).Triggered = true
		},
		"a trigger may have failed": func(t *handmade) {
			t.operations[4].result = drivenUnknown
			t.forget(27.55)
		},
		"triggers overlap": func(t *handmade) {
			t.operate(t.b, 27.4, 29, durableOperation{Kind: "trigger", IDs: []int64{1}})
			t.trigger(t.b, 28.5)
		},
		"a group without the job is triggered": func(t *handmade) {
			t.operations[2].Kind, t.operations[3].Kind = "delete", "add"
			t.operations[3].Expression, t.operations[3].Input = "* * * * * *", 2
			t.rows[1] = jobState{Exists: true, Expression: "* * * * * *", Input: 2, CreatedFrom: t.at(25).Unix(), CreatedTo: t.at(25).Unix()}
			t.operate(t.b, 22, 22.5, durableOperation{Kind: "trigger", Group: durableGroup(1)})
		},
		"a run that ended while the database was away is lost": func(t *handmade) {
			t.rerunLost = true
			t.outages = append(t.outages, t.during(10.05, 11))
			t.halts(12, 18)
			t.again(t.b, 10, 17)
		},
		"a tick comes just before a pause": func(t *handmade) {
			t.forget(20)
			t.miss(20, 20)
		},
		"a list tells what an operation came to": func(t *handmade) {
			t.operations[2].result = drivenUnknown
			seen := t.rows[1]
			seen.Paused = true
			t.operate(nil, 20.4, 20.5, durableOperation{Kind: "list", IDs: []int64{1}}).seen = map[int64]jobState{1: seen}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			handmade := newHandmade()
			vary(handmade)
			assert.Empty(t, handmade.kinds(), handmade.describeViolations(handmade.check(), 1))
		})
	}
}

func TestTheCheckOfDurableRunsFindsNothingWhereAttemptsAreAsTheyShouldBe(t *testing.T) {
	t.Parallel()
	for name, vary := range map[string]func(t *handmade){
		"as it is": func(*handmade) {},
		"a run that fails is tried again": func(t *handmade) {
			t.fails(t.find(10))
			t.again(t.b, 10, 10.3)
		},
		"every attempt fails": func(t *handmade) {
			t.fails(t.find(10))
			t.fails(t.again(t.b, 10, 10.3))
			third := t.again(t.a, 10, 10.75)
			third.Attempt = 3
			for i := range 2 {
				t.a.notes[len(t.a.notes)-1-i].Attempt = 3
			}
			t.fails(third)
		},
		"a run that fails for good is not": func(t *handmade) { t.fails(t.find(30)).Error = errForGood.Error() },
		"the next tick ends an attempt": func(t *handmade) {
			t.fails(t.find(10))
			t.unstarted(10, smallben.OutcomeSkipped, 11.01)
		},
		"the next tick comes before the end": func(t *handmade) {
			t.lasts(t.a, 10, 11.5)
			t.fails(t.find(10))
		},
		"a pause comes before the end": func(t *handmade) {
			t.lasts(t.a, 20, 20.4)
			t.fails(t.find(20))
		},
		"a pause ends an attempt": func(t *handmade) {
			t.fails(t.find(20))
			t.unstarted(20, smallben.OutcomeSkipped, 20.25)
		},
		"an attempt waits at the end": func(t *handmade) {
			t.fails(t.find(30))
			t.unstarted(30, smallben.OutcomeWaiting, 30.3)
		},
		"a lost run is tried again": func(t *handmade) {
			t.dies(30.05)
			t.lose(30)
			t.again(t.b, 30, 35.1)
		},
		"a run that failed is not when a later tick waits": func(t *handmade) {
			t.overlap, t.until = "delay", t.at(29.5)
			t.fails(t.find(29))
			t.forget(30)
			t.unstarted(30, smallben.OutcomeWaiting, 30).Attempt = 1
		},
		"an attempt ends with the claim of a later tick that did not start": func(t *handmade) {
			t.fails(t.find(29))
			t.unstarted(29, smallben.OutcomeSkipped, 30.01)
			t.dies(30.015)
			t.lose(30)
			t.unwrite(30)
			t.again(t.b, 30, 35.1)
		},
		"a lost run is not when a later tick has started": func(t *handmade) {
			t.dies(10.05)
			t.lose(10)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			handmade := newTried(3)
			vary(handmade)
			assert.Empty(t, handmade.kinds(), handmade.describeViolations(handmade.check(), 1))
		})
	}
}

func TestTheCheckOfDurableRunsReportsEachViolationOfAttempts(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(t *handmade)
		want  []string
	}{
		"no attempt after a failure": {func(t *handmade) { t.fails(t.find(30)) }, []string{lostAttempt}},
		"no attempt after a loss": {func(t *handmade) {
			t.dies(30.05)
			t.lose(30)
		}, []string{lostAttempt}},
		"an attempt after success": {func(t *handmade) { t.again(t.b, 10, 10.3) }, []string{baselessAttempt}},
		"an attempt after a failure for good": {func(t *handmade) {
			t.fails(t.find(10)).Error = errForGood.Error()
			t.again(t.b, 10, 10.3)
		}, []string{baselessAttempt}},
		"an attempt after one that did not start": {func(t *handmade) {
			t.skip(t.a, 10)
			t.overlap = "skip"
			t.lasts(t.b, 9, 10.5)
			t.again(t.b, 10, 10.7)
		}, []string{baselessAttempt}},
		"one attempt too many": {func(t *handmade) {
			t.fails(t.find(10))
			t.fails(t.again(t.b, 10, 10.3))
			t.again(t.a, 10, 10.7).Attempt = 3
			for i := range 2 {
				t.a.notes[len(t.a.notes)-1-i].Attempt = 3
			}
		}, []string{baselessAttempt}},
		"an attempt starts twice": {func(t *handmade) {
			t.fails(t.find(10))
			t.note(t.b, t.again(t.b, 10, 10.3), 10.32, "")
		}, []string{startedTwice}},
		"an attempt starts too early": {func(t *handmade) {
			t.fails(t.find(10))
			t.again(t.b, 10, 10.1)
		}, []string{earlyAttempt}},
		"an attempt starts long after the next tick": {func(t *handmade) {
			t.fails(t.find(10))
			t.again(t.b, 10, 12.5)
		}, []string{lateAttempt}},
		"an attempt is due after the next tick, and starts": {func(t *handmade) {
			t.lasts(t.a, 10, 11.3)
			t.fails(t.find(10))
			t.again(t.b, 10, 11.6)
		}, []string{lateAttempt}},
		"a lost run is tried again after a later tick": {func(t *handmade) {
			t.dies(10.05)
			t.lose(10)
			t.again(t.b, 10, 15.1)
		}, []string{lateAttempt}},
		"an attempt is ended without need": {func(t *handmade) {
			t.fails(t.find(30))
			t.unstarted(30, smallben.OutcomeSkipped, 30.2)
		}, []string{endedAttempt}},
		"an attempt that is due waits at the end": {func(t *handmade) {
			t.fails(t.find(29))
			t.unstarted(29, smallben.OutcomeWaiting, 29.3)
		}, []string{unfinishedRun}},
		"an attempt that waits has started": {func(t *handmade) {
			t.fails(t.find(30))
			t.note(t.b, t.unstarted(30, smallben.OutcomeWaiting, 30.3), 30.35, "")
		}, []string{unrecordedRun}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			handmade := newTried(2)
			test.spoil(handmade)
			assert.ElementsMatch(t, test.want, handmade.kinds(), handmade.describeViolations(handmade.check(), 1))
		})
	}
}

func TestTheCheckOfDurableRunsReportsEachViolation(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(t *handmade)
		want  []string
	}{
		"a tick starts on two processes": {func(t *handmade) { t.note(t.b, t.find(4), 4.03, "") }, []string{startedTwice}},
		"a tick starts twice on one":     {func(t *handmade) { t.note(t.a, t.find(4), 4.03, "") }, []string{startedTwice}},
		"a second attempt, and none is wanted": {func(t *handmade) {
			t.dies(10.05)
			t.lose(10)
			t.again(t.b, 10, 15.1)
		}, []string{baselessAttempt}},
		"a second attempt of a run that went well": {func(t *handmade) {
			t.rerunLost = true
			t.again(t.b, 10, 15.1)
		}, []string{baselessAttempt}},
		"a second attempt without a first": {func(t *handmade) {
			t.rerunLost = true
			t.again(t.b, 10, 15.1)
			t.runs = slices.DeleteFunc(t.runs, func(run smallben.Run) bool { return run.Tick.Equal(t.at(10)) && run.Attempt == 1 })
		}, []string{baselessAttempt, unrecordedRun}},
		"a third attempt": {func(t *handmade) {
			t.rerunLost = true
			t.dies(10.05)
			t.lose(10)
			t.again(t.b, 10, 15.1)
			t.again(t.b, 10, 15.3).Attempt = 3
			for i := range 2 {
				t.b.notes[len(t.b.notes)-1-i].Attempt = 3
			}
		}, []string{baselessAttempt}},
		"a run of a process that lives is lost": {func(t *handmade) { t.lose(10) }, []string{baselessLoss}},
		"a run of a process that was stopped for a moment is lost": {func(t *handmade) {
			t.halts(10.05, 12)
			t.lose(10)
		}, []string{baselessLoss}},
		"a run that came after the stop is lost": {func(t *handmade) {
			t.halts(10.05, 16)
			t.lose(18)
		}, []string{baselessLoss}},
		"the end of a lost run is not recorded": {func(t *handmade) {
			t.halts(10.05, 16)
			t.find(10).Outcome = smallben.OutcomeLost
		}, []string{otherEnd}},
		"a lost run is not run again": {func(t *handmade) {
			t.rerunLost = true
			t.dies(10.05)
			t.lose(10)
		}, []string{notRunAgain}},
		"a tick is forgotten":                        {func(t *handmade) { t.forget(5) }, []string{noRecord}},
		"the first tick is forgotten":                {func(t *handmade) { t.forget(1) }, []string{noRecord}},
		"the last tick before a pause is forgotten":  {func(t *handmade) { t.forget(20) }, []string{noRecord}},
		"the first tick after a resume is forgotten": {func(t *handmade) { t.forget(26) }, []string{noRecord}},
		"the last tick is forgotten":                 {func(t *handmade) { t.forget(30) }, []string{noRecord}},
		"a missed tick is forgotten":                 {func(t *handmade) { t.forget(9); t.miss(8, 8) }, []string{noRecord}},
		"a tick is run after a pause":                {func(t *handmade) { t.run(t.b, 21) }, []string{notATick}},
		"a tick is run that came before a resume":    {func(t *handmade) { t.run(t.b, 25) }, []string{notATick, lateStart}},
		"a tick is run after a deletion": {func(t *handmade) {
			t.operations[2].Kind, t.operations[3].Kind = "delete", "add"
			t.operations[3].Expression, t.operations[3].Input = "* * * * * *", 2
			t.rows[1] = jobState{Exists: true, Expression: "* * * * * *", Input: 2, CreatedFrom: t.at(25).Unix(), CreatedTo: t.at(25).Unix()}
			t.run(t.b, 21)
		}, []string{notATick}},
		"a tick is run of an expression from before": {func(t *handmade) {
			t.operate(t.a, 28.2, 28.3, durableOperation{Kind: "update", IDs: []int64{1}, Expression: "*/2 * * * * *"})
			row := t.rows[1]
			row.Expression = "*/2 * * * * *"
			t.rows[1] = row
		}, []string{notATick}},
		"a tick is run that is between ticks":  {func(t *handmade) { t.run(t.b, 4.5) }, []string{notATick}},
		"a tick is recorded as missed in vain": {func(t *handmade) { t.miss(22, 22) }, []string{notATick, miscounted}},
		"a tick is run among missed ones": {func(t *handmade) {
			t.calm = 0
			t.forget(13)
			t.miss(11, 13)
		}, []string{missedAndRun}},
		"a tick is missed twice":         {func(t *handmade) { t.calm = 0; t.forget(10); t.miss(9, 10) }, []string{missedAndRun}},
		"a missed tick starts":           {func(t *handmade) { t.note(t.a, t.find(9), 9.02, "") }, []string{unrecordedRun}},
		"a skipped tick starts":          {func(t *handmade) { t.find(12).Outcome = smallben.OutcomeSkipped }, []string{unrecordedRun, needlesslySkipped}},
		"too few ticks are counted":      {func(t *handmade) { t.find(9).Missed = 1 }, []string{miscounted}},
		"too many ticks are counted":     {func(t *handmade) { t.find(9).Missed = 3 }, []string{miscounted}},
		"a tick is missed without need":  {func(t *handmade) { t.forget(14); t.miss(14, 14) }, []string{needlesslyMissed}},
		"a tick is skipped without need": {func(t *handmade) { t.skip(t.a, 14) }, []string{needlesslySkipped}},
		"a tick is skipped for a run that had ended": {func(t *handmade) {
			t.overlap = "skip"
			for tick := 10.; tick <= 19; tick++ {
				t.skip(t.a, tick)
			}
		}, []string{needlesslySkipped}},
		"runs overlap on two processes that delay": {func(t *handmade) { t.overlap = "delay"; t.lasts(t.a, 10, 11.5) }, []string{overlapping}},
		"a run makes up for too many ticks":        {func(t *handmade) { t.policy = smallben.MissedRunOnce; t.find(10).Missed = 4 }, []string{miscounted}},
		"a run makes up where none is to":          {func(t *handmade) { t.find(10).Missed = 3 }, []string{miscounted}},
		"a run is not recorded":                    {func(t *handmade) { t.runs = t.runs[1:]; t.until = t.at(30) }, []string{unrecordedRun, noRecord}},
		"a run is recorded of another process":     {func(t *handmade) { t.find(4).Process = "host/12/x" }, []string{unrecordedRun}},
		"a run is recorded of no process":          {func(t *handmade) { t.find(4).Process = "host/13/x" }, []string{unknownProcess}},
		"a run is recorded that did not start":     {func(t *handmade) { t.unwrite(12) }, []string{phantomRun}},
		"a run ended otherwise":                    {func(t *handmade) { t.find(4).Outcome = smallben.OutcomeError }, []string{otherEnd}},
		"a run ended later than recorded":          {func(t *handmade) { t.ends(t.a, 4, 5.5) }, []string{otherEnd}},
		"a run started before it was recorded":     {func(t *handmade) { t.find(4).Start = t.at(4.25) }, []string{otherEnd}},
		"a run has not ended":                      {func(t *handmade) { t.find(4).Outcome = smallben.OutcomeRunning }, []string{unfinishedRun}},
		"runs overlap on two processes":            {func(t *handmade) { t.overlap = "skip"; t.lasts(t.a, 4, 5.5) }, []string{overlapping}},
		"runs overlap on one that delays them":     {func(t *handmade) { t.overlap = "delay"; t.lasts(t.a, 4, 6.5) }, []string{overlapping}},
		"a run overlaps one that was stopped for a moment": {func(t *handmade) {
			t.overlap = "skip"
			t.halts(10.05, 12)
			t.lasts(t.a, 10, 12.5)
		}, []string{overlapping}},
		"a triggered run is missing":                             {func(t *handmade) { t.forget(27.55) }, []string{lostTrigger}},
		"a triggered run is skipped where runs may overlap":      {func(t *handmade) { t.skip(t.b, 27.55).Triggered = true }, []string{lostTrigger, needlesslySkipped}},
		"a group with the job is triggered, and it does not run": {func(t *handmade) { t.operate(t.b, 22, 22.5, durableOperation{Kind: "trigger", Group: durableGroup(1)}) }, []string{lostTrigger}},
		"one run for two triggers":                               {func(t *handmade) { t.operate(t.b, 27.4, 29, t.operations[4].durableOperation) }, []string{lostTrigger}},
		"a triggered run that nobody asked for":                  {func(t *handmade) { t.trigger(t.b, 18.5) }, []string{untriggered}},
		"a triggered run on another process":                     {func(t *handmade) { t.operations[4].trace = t.a }, []string{lostTrigger, untriggered}},
		"a tick from before a pause starts late":                 {func(t *handmade) { t.starts(t.a, 20, 24.7) }, []string{lateStart}},
		"a run has an input from before":                         {func(t *handmade) { t.b.notes[len(t.b.notes)-4].Input = 1 }, []string{oldInput}},
		"a run has an input from after":                          {func(t *handmade) { t.a.notes[0].Input = 2 }, []string{oldInput}},
		"a change is lost":                                       {func(t *handmade) { row := t.rows[1]; row.Input = 1; t.rows[1] = row }, []string{otherRow}},
		"a deletion is lost": {func(t *handmade) {
			t.rows[7] = t.rows[1]
			t.operate(t.a, 1, 2, durableOperation{Kind: "add", IDs: []int64{7}, Expression: "@daily", Input: 1})
			t.operate(t.a, 3, 4, durableOperation{Kind: "delete", IDs: []int64{7}})
		}, []string{otherRow}},
		"two additions are acknowledged": {func(t *handmade) { t.operate(t.b, .25, .35, t.operations[0].durableOperation) }, []string{contradicting}},
		"a list shows what was not": {func(t *handmade) {
			t.operate(nil, 12, 12.1, durableOperation{Kind: "list", IDs: []int64{1}}).seen = map[int64]jobState{}
		}, []string{contradicting}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			handmade := newHandmade()
			test.spoil(handmade)
			assert.ElementsMatch(t, test.want, handmade.kinds(), handmade.describeViolations(handmade.check(), 1))
		})
	}
}

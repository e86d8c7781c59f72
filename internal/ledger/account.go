package ledger

import (
	"cmp"
	"slices"
	"time"
)

const (
	// maxTicks bounds how many ticks of a job are looked at one by one. Beyond twice
	// as many a stretch that was missed is recorded with this count.
	maxTicks = 10_000
	// MaxMakeUp bounds how many missed ticks of a job are made up for.
	MaxMakeUp = 100
)

// account is a span of a job whose ticks are compared with the record. What takes
// long, to walk through its ticks, happens before the transaction.
type account struct {
	Job
	Span
	closed *ClosedSpan // nil: the span begins at the job's watermark
	ticks  []time.Time // those that were due, maxTicks at most
	// tail is nil, or the newest ticks after those of ticks, more than are ever made
	// up for.
	tail   []time.Time
	cut    bool  // Until was moved: more is left
	missed []int // which of ticks nobody ran
}

// stretch is some ticks of a job, one after another.
type stretch struct {
	first, last time.Time
	count       int
}

// account records which ticks of the spans nobody ran, and lets those run that are to
// be made up for. left are the accounts that are to be looked at again.
func (s *sweep) account(batch []account) (left []account, err error) {
	for pending := batch; len(pending) > 0 && !s.isStopped(); {
		due := s.walk(pending)
		pending = nil
		if len(due) == 0 {
			break
		}
		var b accounted
		_, err = s.ChangeIn(s.store, func(tx Tx) (err error) {
			b, err = recordAccounts(tx, due, s.process)
			return err
		})
		if err != nil {
			return nil, err
		}
		if b.missed > 0 {
			s.config.Metrics.Count(TicksMissed, b.missed)
			s.config.Log.Info("ticks missed", "count", b.missed, "toRun", b.waiting)
		}
		if b.waiting > 0 {
			s.wake.heartbeat.set()
		}
		left, pending = append(left, b.left...), b.narrowed
	}
	return left, nil
}

// walk finds the ticks of accounts. It returns those that have some or are closed: a
// job without ticks keeps its watermark, and nothing is written for it.
func (s *sweep) walk(batch []account) (due []account) {
	for _, a := range batch {
		after, until := a.After.In(s.config.Location), a.Until.In(s.config.Location)
		var more bool
		a.ticks, more = TicksIn(a.Schedule, after, until, 2*maxTicks)
		a.tail = nil
		if more {
			a.ticks = a.ticks[:maxTicks]
			a.tail = LastTicks(a.Schedule, a.ticks[maxTicks-1], until, MaxMakeUp+1)
		}
		if len(a.ticks) > 0 || a.closed != nil {
			due = append(due, a)
		}
	}
	slices.SortFunc(due, func(a, b account) int { return cmp.Compare(a.ID, b.ID) })
	return due
}

// accounted is what became of accounts in one transaction.
type accounted struct {
	missed, waiting int
	left            []account // to be looked at again
	narrowed        []account // to be walked again, up to an earlier instant
}

// recordAccounts compares accounts with the runs of the record, in a transaction, and
// records what nobody ran.
func recordAccounts(tx Tx, due []account, process string) (b accounted, err error) {
	due, marks, left, err := lockAccounts(tx, due)
	b.left = left
	if err != nil || len(due) == 0 {
		return b, err
	}
	spans := make([]Span, len(due))
	for i := range due {
		spans[i] = due[i].Span
	}
	recorded, err := tx.RecordedTicks(spans)
	if err != nil {
		return b, err
	}
	var moved []Watermark
	var shortened []ClosedSpan
	var runs []Run
	for i := range due {
		a := &due[i]
		if !a.compare(recorded[i]) {
			b.narrowed = append(b.narrowed, *a)
			continue
		}
		mark, exists := marks[a.ID]
		if !exists || mark.Paused || mark.CreatedAt.UnixMicro() != a.CreatedAt {
			a.MakeUp = 0 // there is nothing to run any more
		}
		missed, more := a.rows(tx.Now(), process)
		b.missed += missed
		runs = append(runs, more...)
		if a.closed == nil {
			moved = append(moved, Watermark{JobID: a.ID, Until: a.Until})
		} else {
			span := *a.closed
			span.After = a.Until
			shortened = append(shortened, span)
		}
		if a.cut {
			b.left = append(b.left, *a)
		}
	}
	for i := range runs {
		if runs[i].Outcome == Waiting {
			b.waiting++
		}
	}
	if len(shortened) > 0 {
		if err := tx.Shorten(shortened); err != nil {
			return b, err
		}
	}
	return b, tx.Record(moved, runs)
}

// lockAccounts locks the jobs of accounts, and leaves those out that were changed or
// accounted for since they were read: they are left.
func lockAccounts(tx Tx, due []account) (current []account, marks map[int64]Watermark, left []account, err error) {
	ids := make([]int64, len(due))
	for i := range due {
		ids[i] = due[i].ID
	}
	marks, err = lockJobs(tx, ids)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, a := range due {
		mark, exists := marks[a.ID]
		if a.closed == nil && (!exists || mark.Revision != a.Revision || !mark.Until.Equal(a.After)) {
			left = append(left, a)
			continue
		}
		current = append(current, a)
	}
	return current, marks, left, nil
}

// compare notes the ticks that are not recorded. If there are more than maxTicks, and
// one beyond them is recorded, the account is to be walked again up to there: compare
// returns false.
func (a *account) compare(recorded []time.Time) bool {
	if a.tail != nil {
		last := a.ticks[len(a.ticks)-1]
		beyond := slices.IndexFunc(recorded, func(at time.Time) bool { return at.After(last) })
		if beyond >= 0 {
			a.cut, a.Until = true, recorded[beyond].Add(-time.Second)
			return false
		}
	}
	known := make(map[int64]struct{}, len(recorded))
	for _, at := range recorded {
		known[at.Unix()] = struct{}{}
	}
	a.missed = nil
	for i, at := range a.ticks {
		if _, ok := known[at.Unix()]; !ok {
			a.missed = append(a.missed, i)
		}
	}
	return true
}

// rows returns what is to be recorded of the missed ticks, and how many they are: the
// newest ones wait to be made up for, and the others are stretches.
func (a *account) rows(now time.Time, process string) (missed int, runs []Run) {
	stretches, newest := a.split(now)
	missed = len(newest)
	row := func(tick time.Time, outcome Outcome) Run {
		return Run{Key: Key{JobID: a.ID, Tick: tick.UTC(), Attempt: 1}, GroupID: a.GroupID, SuperGroupID: a.SuperGroupID, Outcome: outcome}
	}
	for _, s := range stretches {
		missed += s.count
		run := row(s.last, Missed)
		run.Process, run.Start, run.End, run.Missed, run.FirstTick = process, now, now, s.count, s.first.UTC()
		runs = append(runs, run)
	}
	for i, tick := range newest {
		run := row(tick, Waiting)
		run.Due, run.Missed = now, 1
		if i == 0 {
			run.Missed = missed - len(newest) + 1
		}
		// Several run one after another.
		run.Exclusive = a.Overlap != Allow || a.MakeUp > 1
		runs = append(runs, run)
	}
	return missed, runs
}

// most is how many of the missed ticks, of which missed are the newest, are made up for:
// those that are not too old.
func (a *account) most(missed []time.Time, now time.Time) (most int) {
	for most < min(a.MakeUp, MaxMakeUp, len(missed)) {
		if a.Within != 0 && missed[len(missed)-1-most].Before(now.Add(-a.Within)) {
			break
		}
		most++
	}
	return most
}

// split tells the missed ticks that are made up for, oldest first, from the others,
// which are the older ones.
func (a *account) split(now time.Time) (stretches []stretch, newest []time.Time) {
	newest = a.tail
	if a.tail == nil {
		for _, i := range a.missed {
			newest = append(newest, a.ticks[i])
		}
	}
	most := a.most(newest, now)
	newest = newest[len(newest)-most:]
	skipped := a.missed
	if a.tail == nil {
		skipped = a.missed[:len(a.missed)-most]
	}
	for n, i := range skipped {
		if n == 0 || skipped[n-1] != i-1 {
			stretches = append(stretches, stretch{first: a.ticks[i]})
		}
		s := &stretches[len(stretches)-1]
		s.last = a.ticks[i]
		s.count++
	}
	if a.tail == nil {
		return stretches, newest
	}
	// What lies beyond ticks goes on with their last stretch, or begins one.
	last := len(a.ticks) - 1
	if len(skipped) == 0 || skipped[len(skipped)-1] != last {
		stretches = append(stretches, stretch{first: a.Schedule.Next(a.ticks[last])})
	}
	s := &stretches[len(stretches)-1]
	s.count = maxTicks
	s.last = a.tail[len(a.tail)-1-most]
	return stretches, newest
}

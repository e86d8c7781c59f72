package smallben_test

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/ledger/ledgersql"
)

var (
	errAway     = errors.New("the database is away")
	errNoRecord = errors.New("there is no record: Open comes first")
)

// memoryRecorder is a repository with a record of runs, written from outside the package, against nothing
// but the contract. Several SmallBens that are given the same one share it, as
// processes share a database.
//
// Each method of it and, as "tx.PauseJobs", each method of a RecordTx is a call,
// which tests can watch and let fail. "commit" is the end of a Change.
type memoryRecorder struct {
	smallben.Recorded               // by itself
	writing           chan struct{} // holds a token while a call writes
	ahead             time.Duration // of its clock to that of the processes

	mu     sync.RWMutex
	record *memoryRecord

	faultMu sync.Mutex
	gone    bool
	fails   map[string]error
	loses   map[string]bool
	watcher func(call string, happened bool)
	counts  map[string]int
}

var (
	_ recordStore       = (*memoryRecorder)(nil)
	_ smallben.Upserter = (*memoryRecorder)(nil)
	_ smallben.Pager    = (*memoryRecorder)(nil)
	_ smallben.ChangeTx = (*memoryTx)(nil)
)

func newMemoryRecorder() *memoryRecorder {
	r := &memoryRecorder{
		writing: make(chan struct{}, 1),
		record: &memoryRecord{
			memoryRepository: newMemoryRepository(),
			marks:            make(map[int64]memoryMark),
			runs:             make(map[ledger.Key]ledger.Run),
			running:          make(map[int64]memoryHolder),
			processes:        make(map[string]memoryProcess),
			spans:            make(map[memorySpan]ledger.ClosedSpan),
			canceled:         make(map[ledger.Key]time.Time),
		},
		fails: make(map[string]error), loses: make(map[string]bool), counts: make(map[string]int),
	}
	r.Store = r
	return r
}

// memoryRecord is what memoryRecorder holds.
type memoryRecord struct {
	*memoryRepository
	open      bool
	location  string
	revision  int64
	leader    string
	marks     map[int64]memoryMark
	runs      map[ledger.Key]ledger.Run
	running   map[int64]memoryHolder
	processes map[string]memoryProcess
	spans     map[memorySpan]ledger.ClosedSpan
	canceled  map[ledger.Key]time.Time // to when they are given up
}

// memoryProcess is a process that is registered.
type memoryProcess struct {
	beats    int64
	standing ledger.Standing
	since    time.Time
	heard    time.Time
}

// memorySpan names a closed span.
type memorySpan struct{ jobID, revision int64 }

type memoryMark struct {
	revision  int64
	updatedAt time.Time // of the row, when it was marked
	until     time.Time
	deletedAt time.Time // of a tombstone
	former    string    // the stored job before an upsert of another type
}

// mark returns the mark of a job that is not a tombstone.
func (d *memoryRecord) mark(id int64) (mark memoryMark, marked bool) {
	mark = d.marks[id]
	return mark, mark.revision > 0 && mark.deletedAt.IsZero()
}

// memoryHolder is the run that holds a lock, and its process.
type memoryHolder struct {
	process string
	run     ledger.Key
}

func (d *memoryRecord) clone() *memoryRecord {
	c := *d
	c.memoryRepository = newMemoryRepository()
	c.Put(d.rows()...)
	c.marks, c.runs, c.running, c.processes = maps.Clone(d.marks), maps.Clone(d.runs), maps.Clone(d.running), maps.Clone(d.processes)
	c.spans, c.canceled = maps.Clone(d.spans), maps.Clone(d.canceled)
	return &c
}

// rows are the rows of all jobs, or of those with the ids that exist, in the order of the
// ids.
func (d *memoryRecord) rows(ids ...int64) []smallben.RawJob {
	rows, _ := d.ListJobs(&smallben.ListJobsOptions{JobIDs: ids}) // its only error is about ids that do not exist
	return rows
}

func (d *memoryRecord) row(id int64) (row smallben.RawJob, exists bool) {
	for _, row := range d.rows(id) {
		return row, true
	}
	return row, false
}

// find returns the rows that match, in the order of the ids.
func (d *memoryRecord) find(matches func(row smallben.RawJob) bool) []smallben.RawJob {
	return slices.DeleteFunc(d.rows(), func(row smallben.RawJob) bool { return !matches(row) })
}

// now is the time of the record.
func (r *memoryRecorder) now() time.Time { return storedNow().Add(r.ahead) }

// The knobs.

// away makes every call fail, or no longer.
func (r *memoryRecorder) away(away bool) {
	r.faultMu.Lock()
	defer r.faultMu.Unlock()
	r.gone = away
}

// failNext makes the next call of this name fail before it does anything.
func (r *memoryRecorder) failNext(call string, err error) {
	r.faultMu.Lock()
	defer r.faultMu.Unlock()
	r.fails[call] = err
}

// loseNext makes the next call of this name that succeeds happen, and its reply
// be lost: it returns nothing but an error that wraps ErrOutcomeUnknown.
func (r *memoryRecorder) loseNext(call string) {
	r.faultMu.Lock()
	defer r.faultMu.Unlock()
	r.loses[call] = true
}

// watch calls watcher before each call and, if it succeeded, after it. No lock is
// held then, but that of writers within a Change: watcher may wait, and call what
// does not write.
func (r *memoryRecorder) watch(watcher func(call string, happened bool)) {
	r.faultMu.Lock()
	defer r.faultMu.Unlock()
	r.watcher = watcher
}

// calls says how often each call was made.
func (r *memoryRecorder) calls() map[string]int {
	r.faultMu.Lock()
	defer r.faultMu.Unlock()
	return maps.Clone(r.counts)
}

// contents is a copy of what is recorded.
func (r *memoryRecorder) contents() *memoryRecord {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.record.clone()
}

// runs are all runs, oldest tick first.
func (r *memoryRecorder) runs() (runs []smallben.Run) {
	for _, row := range slices.SortedFunc(maps.Values(r.contents().runs), func(a, b ledger.Run) int { return compareKeys(a.Key, b.Key) }) {
		runs = append(runs, smallben.RunOf(row))
	}
	return runs
}

// put stores rows as they are, as another program would: tests put broken ones.
func (r *memoryRecorder) put(rows ...smallben.RawJob) {
	r.writing <- struct{}{}
	defer func() { <-r.writing }()
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.record.Put(rows...)
}

// call does what a call does, or what the knobs say.
func (r *memoryRecorder) call(name string, do func() error) error {
	r.faultMu.Lock()
	r.counts[name]++
	watcher := r.watcher
	r.faultMu.Unlock()
	if watcher != nil {
		watcher(name, false)
	}
	if err := r.fault(name); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	if watcher != nil {
		watcher(name, true)
	}
	r.faultMu.Lock()
	defer r.faultMu.Unlock()
	if r.loses[name] {
		delete(r.loses, name)
		return fmt.Errorf("%s: %w", name, errReplyLost{})
	}
	return nil
}

// errReplyLost is the error of a call that happened all the same.
type errReplyLost struct{}

func (errReplyLost) Error() string          { return "the reply was lost" }
func (errReplyLost) Unwrap() error          { return smallben.ErrOutcomeUnknown }
func (errReplyLost) Settled() (bool, error) { return true, nil }

func (r *memoryRecorder) fault(name string) error {
	r.faultMu.Lock()
	defer r.faultMu.Unlock()
	err := r.fails[name]
	delete(r.fails, name)
	if r.gone {
		err = errAway
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (r *memoryRecorder) read(name string, do func(d *memoryRecord) error) error {
	return r.call(name, func() error {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return do(r.record)
	})
}

// write waits for the Change in progress. do changes nothing if it fails.
func (r *memoryRecorder) write(name string, do func(d *memoryRecord) error) error {
	return r.call(name, func() error {
		r.writing <- struct{}{}
		defer func() { <-r.writing }()
		r.mu.Lock()
		defer r.mu.Unlock()
		return do(r.record)
	})
}

// recorded is do, for what needs an open record.
func recorded(do func(d *memoryRecord) error) func(d *memoryRecord) error {
	return func(d *memoryRecord) error {
		if !d.open {
			return errNoRecord
		}
		return do(d)
	}
}

// The plain Repository.

func (r *memoryRecorder) ErrorTypeIfMismatchCount() error {
	return newMemoryRepository().ErrorTypeIfMismatchCount()
}

func (r *memoryRecorder) AddJobs(jobs []smallben.JobWithSchedule) error {
	return r.write("AddJobs", func(d *memoryRecord) error { return d.AddJobs(jobs) })
}

func (r *memoryRecorder) GetJob(jobID int64) (job smallben.JobWithSchedule, err error) {
	err = r.read("GetJob", func(d *memoryRecord) error { job, err = d.GetJob(jobID); return err })
	return job, err
}

func (r *memoryRecorder) PauseJobs(jobs []smallben.RawJob) error {
	return r.write("PauseJobs", func(d *memoryRecord) error { return d.PauseJobs(jobs) })
}

func (r *memoryRecorder) ResumeJobs(jobs []smallben.JobWithSchedule) error {
	return r.write("ResumeJobs", func(d *memoryRecord) error { return d.ResumeJobs(jobs) })
}

func (r *memoryRecorder) GetAllJobsToExecute() (jobs []smallben.JobWithSchedule, err error) {
	err = r.read("GetAllJobsToExecute", func(d *memoryRecord) error { jobs, err = d.GetAllJobsToExecute(); return err })
	return jobs, err
}

func (r *memoryRecorder) GetJobsByIds(ids []int64) (jobs []smallben.JobWithSchedule, err error) {
	err = r.read("GetJobsByIds", func(d *memoryRecord) error { jobs, err = d.GetJobsByIds(ids); return err })
	return jobs, err
}

func (r *memoryRecorder) DeleteJobsByIds(ids []int64) error {
	return r.write("DeleteJobsByIds", func(d *memoryRecord) error { return d.DeleteJobsByIds(ids) })
}

func (r *memoryRecorder) SetCronId(jobs []smallben.JobWithSchedule) error {
	return r.write("SetCronId", func(d *memoryRecord) error { return d.SetCronId(jobs) })
}

func (r *memoryRecorder) SetCronIdAndChangeScheduleAndJobInput(jobs []smallben.JobWithSchedule) error {
	return r.write("SetCronIdAndChangeScheduleAndJobInput", func(d *memoryRecord) error {
		return d.SetCronIdAndChangeScheduleAndJobInput(jobs)
	})
}

func (r *memoryRecorder) ListJobs(options smallben.ToListOptions) (rows []smallben.RawJob, err error) {
	err = r.read("ListJobs", func(d *memoryRecord) error { rows, err = d.ListJobs(options); return err })
	return rows, err
}

func (r *memoryRecorder) UpsertJobs(add, replace []smallben.JobWithSchedule) error {
	return r.write("UpsertJobs", func(d *memoryRecord) error { return d.UpsertJobs(add, replace) })
}

func (r *memoryRecorder) ListJobsAfter(options smallben.ToListOptions, after *int64, limit int) (rows []smallben.RawJob, err error) {
	err = r.read("ListJobsAfter", func(d *memoryRecord) error { rows, err = d.ListJobsAfter(options, after, limit); return err })
	return rows, err
}

// The record.

func (r *memoryRecorder) Open(location string) error {
	return r.write("Open", func(d *memoryRecord) error {
		if d.open && d.location != location {
			return fmt.Errorf("open record: its location is %s, not %s", d.location, location)
		}
		d.open, d.location = true, location
		d.compareMarks()
		return nil
	})
}

func (r *memoryRecorder) Join(process string) error {
	return r.write("Join", recorded(func(d *memoryRecord) error {
		if _, registered := d.processes[process]; !registered {
			d.processes[process] = memoryProcess{since: r.now(), heard: r.now()}
		}
		return nil
	}))
}

func (r *memoryRecorder) Leave(process string) error {
	return r.write("Leave", recorded(func(d *memoryRecord) error {
		delete(d.processes, process)
		return nil
	}))
}

func (r *memoryRecorder) Beat(process string, standing ledger.Standing) (ledger.Heartbeat, error) {
	var beat ledger.Heartbeat
	err := r.write("Beat", recorded(func(d *memoryRecord) error {
		if err := d.registered("beat", process); err != nil {
			return err
		}
		d.processes[process] = memoryProcess{d.processes[process].beats + 1, standing, d.processes[process].since, r.now()}
		beat = ledger.Heartbeat{Now: r.now(), Revision: d.revision}
		if _, registered := d.processes[d.leader]; registered {
			beat.Leader = d.leader
		}
		for _, name := range slices.Sorted(maps.Keys(d.processes)) {
			beat.Members = append(beat.Members, ledger.Member{Process: name, Beats: d.processes[name].beats, Standing: d.processes[name].standing})
		}
		beat.Canceled = len(d.canceledOf(process))
		for _, run := range d.runs {
			if run.Outcome == ledger.Waiting && (beat.Due.IsZero() || run.Due.Before(beat.Due)) {
				beat.Due = run.Due
			}
		}
		return nil
	}))
	if err != nil {
		return ledger.Heartbeat{}, err
	}
	return beat, nil
}

func (r *memoryRecorder) CancelRuns(query ledger.Query, abandonAfter time.Duration) error {
	return r.write("CancelRuns", recorded(func(d *memoryRecord) error {
		selects := func(ids []int64, id int64) bool { return ids == nil || slices.Contains(ids, id) }
		for key, run := range d.runs {
			if run.Outcome != ledger.Running || !selects(query.JobIDs, run.JobID) || !selects(query.GroupIDs, run.GroupID) || !selects(query.SuperGroupIDs, run.SuperGroupID) {
				continue
			}
			d.canceled[key] = time.Time{}
			if abandonAfter > 0 {
				d.canceled[key] = r.now().Add(abandonAfter)
			}
		}
		return nil
	}))
}

func (r *memoryRecorder) Canceled(process string) (runs []ledger.Cancellation, err error) {
	err = r.read("Canceled", recorded(func(d *memoryRecord) error {
		runs = d.canceledOf(process)
		return nil
	}))
	return runs, err
}

func (d *memoryRecord) canceledOf(process string) (runs []ledger.Cancellation) {
	for key, abandon := range d.canceled {
		if run := d.runs[key]; run.Outcome == ledger.Running && run.Process == process {
			runs = append(runs, ledger.Cancellation{Key: key, Abandon: abandon})
		}
	}
	return runs
}

func (r *memoryRecorder) Processes() (all []ledger.Process, err error) {
	err = r.read("Processes", recorded(func(d *memoryRecord) error {
		for _, name := range slices.Sorted(maps.Keys(d.processes)) {
			p := d.processes[name]
			all = append(all, ledger.Process{Member: ledger.Member{Process: name, Beats: p.beats, Standing: p.standing}, Since: p.since, Age: r.now().Sub(p.heard), Leads: d.leader == name})
		}
		return nil
	}))
	return all, err
}

func (r *memoryRecorder) Claim(process string, claims []ledger.Claim) ([]ledger.Result, error) {
	results := make([]ledger.Result, len(claims))
	err := r.write("Claim", recorded(func(d *memoryRecord) error {
		if err := d.registered("claim", process); err != nil {
			return err
		}
		now := r.now()
		order := make([]int, len(claims))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(i, j int) int { return compareKeys(claims[i].Key, claims[j].Key) })
		stored := make(map[int64]smallben.RawJob)
		for _, row := range d.rows() {
			stored[row.ID] = row
		}
		for _, i := range order {
			row, exists := stored[claims[i].JobID]
			results[i] = d.claim(process, claims[i], row, exists, now)
			if results[i] == ledger.Won && claims[i].NewestCounts && claims[i].Attempt == 1 {
				d.supersede(claims[i].Key, now)
			}
		}
		return nil
	}))
	if err != nil {
		return nil, err
	}
	return results, nil
}

// claim claims a run of a job, whose row is there if it exists.
func (d *memoryRecord) claim(process string, claim ledger.Claim, row smallben.RawJob, exists bool, now time.Time) ledger.Result {
	key := storedKey(claim.Key)
	run, taken := d.runs[key]
	if taken && run.Process == process && run.Outcome == ledger.Running {
		return ledger.Won
	}
	mark, marked := d.mark(key.JobID)
	switch {
	case !exists, !key.Triggered && (row.Paused || !marked || mark.revision != claim.Revision):
		return ledger.Stale
	case key.Triggered && claim.OfWaiting && claim.Revision != 0 && mark.revision != claim.Revision:
		return ledger.Stale
	case claim.OfWaiting && (!taken || run.Outcome != ledger.Waiting || run.Due.After(now.Add(ledger.MaxClockLead))):
		return ledger.Taken
	case claim.OfWaiting:
		if claim.NewestCounts && claim.Attempt > 1 && d.startedAfter(key) {
			d.cancel(run, now, "a later tick of its job came")
			return ledger.Taken
		}
		if _, busy := d.running[key.JobID]; busy && claim.Overlap != ledger.Allow {
			run.Due = now
			d.runs[key] = run
			return ledger.Taken
		}
	case !key.Triggered && !mark.until.Before(key.Tick):
		return ledger.Late
	case !key.Triggered && key.Tick.After(now.Add(ledger.MaxClockLead)):
		return ledger.Early
	case taken:
		return ledger.Taken
	default:
		run = ledger.Run{Key: key, GroupID: claim.GroupID, SuperGroupID: claim.SuperGroupID}
	}
	run.Process, run.Start, run.Outcome, run.Exclusive, run.Due = process, now, ledger.Running, claim.Overlap != ledger.Allow, time.Time{}
	result := ledger.Won
	if claim.Overlap != ledger.Allow {
		_, busy := d.running[key.JobID]
		switch {
		case !busy && (claim.OfWaiting || d.waitingBefore(claim, now) == 0):
			d.running[key.JobID] = memoryHolder{process: process, run: key}
		case claim.Overlap == ledger.Delay && d.hasRoom(claim, now):
			run.Process, run.Start, run.Outcome, run.Due, result = "", time.Time{}, ledger.Waiting, now, ledger.Delayed
		default:
			run.Outcome, run.End, result = ledger.Skipped, now, ledger.Overlapped
		}
	}
	d.runs[key] = run
	return result
}

// hasRoom reports whether a claim may wait: one that holds the lock, or is about to take it,
// and one that waits for that are all.
func (d *memoryRecord) hasRoom(claim ledger.Claim, now time.Time) bool {
	n := d.waitingBefore(claim, now)
	if _, busy := d.running[claim.JobID]; busy {
		n++
	}
	return n < 2
}

// waitingBefore counts the runs that wait for the lock of a job, or are about to take it.
func (d *memoryRecord) waitingBefore(claim ledger.Claim, now time.Time) (n int) {
	for key, run := range d.runs {
		ends := claim.Overlap == ledger.Skip && !claim.Triggered && run.Missed == 0
		if key.Attempt > 1 {
			ends = claim.NewestCounts
		}
		ends = ends && !key.Triggered && key.Tick.Before(claim.Tick)
		if key.JobID == claim.JobID && run.Outcome == ledger.Waiting && run.Exclusive && !run.Due.After(now.Add(ledger.MaxClockLead)) && !ends {
			n++
		}
	}
	return n
}

// startedAfter reports whether a later tick of the job of a run has started.
func (d *memoryRecord) startedAfter(key ledger.Key) bool {
	for other, run := range d.runs {
		idle := run.Outcome == ledger.Skipped || run.Outcome == ledger.Missed || run.Outcome == ledger.Waiting
		if other.JobID == key.JobID && !idle && !other.Triggered && other.Tick.After(key.Tick) {
			return true
		}
	}
	return false
}

// supersede ends the waiting attempts of earlier ticks of a job.
func (d *memoryRecord) supersede(by ledger.Key, now time.Time) {
	for key, run := range d.runs {
		if key.JobID == by.JobID && run.Outcome == ledger.Waiting && key.Attempt > 1 && !key.Triggered && key.Tick.Before(by.Tick) {
			d.cancel(run, now, "a later tick of its job came")
		}
	}
}

func (d *memoryRecord) cancel(run ledger.Run, now time.Time, reason string) {
	run.Outcome, run.Start, run.End, run.Due, run.Error = ledger.Skipped, now, now, time.Time{}, reason
	d.runs[run.Key] = run
}

// waiting are the waiting runs, those that are due first first.
func (d *memoryRecord) waiting() (runs []ledger.Run) {
	for _, run := range d.runs {
		if run.Outcome == ledger.Waiting {
			runs = append(runs, run)
		}
	}
	slices.SortFunc(runs, compareDue)
	return runs
}

func compareDue(a, b ledger.Run) int { return cmp.Or(a.Due.Compare(b.Due), a.Key.Compare(b.Key)) }

func (r *memoryRecorder) Waiting(after *ledger.Run, limit int) (runs []ledger.Run, err error) {
	err = r.read("Waiting", recorded(func(d *memoryRecord) error {
		first := make(map[int64]ledger.Key) // of the exclusive runs of each job so far
		for _, run := range d.waiting() {
			_, busy := d.running[run.JobID]
			earlier, waits := first[run.JobID]
			behind := run.Exclusive && (busy || waits && earlier.Compare(run.Key) < 0)
			if len(runs) < limit && (after == nil || compareDue(run, *after) > 0) && !behind {
				runs = append(runs, run)
			}
			if run.Exclusive && (!waits || run.Key.Compare(earlier) < 0) {
				first[run.JobID] = run.Key
			}
		}
		return nil
	}))
	return runs, err
}

func (r *memoryRecorder) Unclaimed(keys []ledger.Key) (unclaimed []int, err error) {
	err = r.read("Unclaimed", recorded(func(d *memoryRecord) error {
		for i, key := range keys {
			if _, claimed := d.runs[storedKey(key)]; !claimed {
				unclaimed = append(unclaimed, i)
			}
		}
		return nil
	}))
	return unclaimed, err
}

func (r *memoryRecorder) Watermarks(ids []int64) (marks []ledger.Watermark, err error) {
	err = r.read("Watermarks", recorded(func(d *memoryRecord) error {
		marks = d.watermarks(ids)
		return nil
	}))
	return marks, err
}

func (d *memoryRecord) watermarks(ids []int64) (marks []ledger.Watermark) {
	wanted := idSet(ids)
	for _, row := range d.find(func(row smallben.RawJob) bool { return wanted[row.ID] }) {
		if mark, marked := d.mark(row.ID); marked {
			_, busy := d.running[row.ID]
			marks = append(marks, ledger.Watermark{JobID: row.ID, Until: mark.until, Revision: mark.revision, CreatedAt: row.CreatedAt, Paused: row.Paused, Busy: busy})
		}
	}
	return marks
}

func (r *memoryRecorder) Closed(limit int) (spans []ledger.ClosedSpan, err error) {
	err = r.read("Closed", recorded(func(d *memoryRecord) error {
		spans = slices.SortedFunc(maps.Values(d.spans), func(a, b ledger.ClosedSpan) int {
			return cmp.Or(a.After.Compare(b.After), cmp.Compare(a.JobID, b.JobID), cmp.Compare(a.Revision, b.Revision))
		})
		spans = spans[:min(limit, len(spans))]
		return nil
	}))
	return spans, err
}

func (r *memoryRecorder) Finish(process string, ends []ledger.End) error {
	return r.write("Finish", recorded(func(d *memoryRecord) error {
		for _, f := range ends {
			key := storedKey(f.Key)
			run, exists := d.runs[key]
			switch {
			case exists && run.Process == process && (run.Outcome == ledger.Running || run.Outcome == ledger.Lost):
			case f.Unclaimed && (!exists || run.Outcome == ledger.Missed && run.Missed == 1 || run.Outcome == ledger.Waiting || run.Outcome == ledger.Skipped):
				run = ledger.Run{Key: key, GroupID: f.GroupID, SuperGroupID: f.SuperGroupID, Process: process, Exclusive: f.Overlap != ledger.Allow}
			default:
				continue
			}
			run.Start, run.End, run.Outcome, run.Error = storedTime(f.Start), storedTime(f.End), f.Outcome, f.Error
			d.runs[key] = run
			if f.Overlap != ledger.Allow {
				d.free(process, key)
			}
			if !f.Retry.IsZero() {
				d.retry(run, storedTime(f.Retry))
			}
		}
		return nil
	}))
}

// retry adds the next attempt of a run, unless its job is paused or deleted, or has a
// later tick.
func (d *memoryRecord) retry(run ledger.Run, due time.Time) {
	row, exists := d.row(run.JobID)
	if !exists || row.Paused && !run.Triggered {
		return
	}
	if !run.Triggered && d.superseded(run.Key) {
		return
	}
	run.Attempt++
	if _, exists := d.runs[run.Key]; exists {
		return
	}
	d.runs[run.Key] = ledger.Run{Key: run.Key, GroupID: run.GroupID, SuperGroupID: run.SuperGroupID, Outcome: ledger.Waiting, Missed: run.Missed, Exclusive: run.Exclusive, Due: due}
}

// superseded reports whether a later tick has started or waits.
func (d *memoryRecord) superseded(by ledger.Key) bool {
	for key, other := range d.runs {
		idle := other.Outcome == ledger.Skipped || other.Outcome == ledger.Missed
		if key.JobID == by.JobID && !idle && !key.Triggered && key.Tick.After(by.Tick) {
			return true
		}
	}
	return false
}

// free takes the lock from a run, if it holds it.
func (d *memoryRecord) free(process string, key ledger.Key) {
	if holder := d.running[key.JobID]; holder.process == process && holder.run == key {
		delete(d.running, key.JobID)
	}
}

func (r *memoryRecorder) Change(change func(tx ledger.Tx) error) (int64, error) {
	var revision int64
	err := r.call("Change", func() error {
		r.writing <- struct{}{}
		defer func() { <-r.writing }()
		tx := &memoryTx{recorder: r, now: r.now(), record: r.contents()}
		if !tx.record.open {
			return errNoRecord
		}
		tx.record.revision++
		defer tx.end()
		if err := change(tx); err != nil {
			return err
		}
		if err := r.call("commit", func() error { return nil }); err != nil {
			return err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.record, revision = tx.record, tx.record.revision
		return nil
	})
	if err != nil {
		return 0, err
	}
	return revision, nil
}

func (r *memoryRecorder) Changes(since int64, ids []int64) (smallben.Changes, error) {
	var changes smallben.Changes
	err := r.read("Changes", recorded(func(d *memoryRecord) error {
		changes.Revision = d.revision
		wanted := idSet(ids)
		if ids == nil {
			for id, mark := range d.marks {
				if mark.revision > since {
					wanted[id] = true
				}
			}
		}
		all := since == 0 && ids == nil
		if all {
			clear(wanted) // of those that are gone it does not tell
		}
		changes.Jobs = d.find(func(row smallben.RawJob) bool { return all || wanted[row.ID] })
		for i := range changes.Jobs {
			smallben.SetRevision(&changes.Jobs[i], d.marks[changes.Jobs[i].ID].revision)
			delete(wanted, changes.Jobs[i].ID)
		}
		changes.Gone = slices.Sorted(maps.Keys(wanted))
		return nil
	}))
	if err != nil {
		return smallben.Changes{}, err
	}
	return changes, nil
}

// TakeOutbox implements ledger.Store: there are no transactions here.
func (r *memoryRecorder) TakeOutbox() (int64, []ledger.Watermark, error) { return 0, nil, nil }

func (r *memoryRecorder) Compare() error {
	return r.write("Compare", recorded(func(d *memoryRecord) error {
		d.compareMarks()
		return nil
	}))
}

func (d *memoryRecord) compareMarks() {
	now, revision := storedNow(), d.revision+1
	exist := make(map[int64]bool)
	for _, row := range d.rows() {
		exist[row.ID] = true
		mark, marked := d.mark(row.ID)
		if !marked || !mark.updatedAt.Equal(row.UpdatedAt) {
			d.marks[row.ID] = memoryMark{revision: revision, updatedAt: row.UpdatedAt, until: now, former: mark.former}
			d.revision = revision
		}
	}
	for id, mark := range d.marks {
		if !exist[id] && mark.deletedAt.IsZero() {
			mark.revision, mark.deletedAt, mark.former = revision, now, ""
			d.marks[id] = mark
			d.revision = revision
		}
	}
}

func (r *memoryRecorder) Prune(before time.Time, limit int) (pruned int, err error) {
	err = r.write("Prune", recorded(func(d *memoryRecord) error {
		newest := d.newestRuns()
		var old []ledger.Key
		for key, run := range d.runs {
			mark, marked := d.mark(key.JobID)
			if run.Outcome != ledger.Running && run.Outcome != ledger.Waiting && key.Tick.Before(before) && newest[key.JobID].Key != key &&
				!(marked && key.Tick.After(mark.until)) {
				old = append(old, key)
			}
		}
		slices.SortFunc(old, compareKeys)
		pruned = min(len(old), max(limit, 0))
		for _, key := range old[:pruned] {
			delete(d.runs, key)
		}
		maps.DeleteFunc(d.marks, func(_ int64, mark memoryMark) bool {
			return !mark.deletedAt.IsZero() && mark.deletedAt.Before(before)
		})
		return nil
	}))
	if err != nil {
		return 0, err
	}
	return pruned, nil
}

// newestRuns returns the newest run of each job that exists which was neither
// missed nor skipped nor waits.
func (d *memoryRecord) newestRuns() map[int64]ledger.Run {
	newest, exist := make(map[int64]ledger.Run), idSet(rowIDs(d.rows()))
	for key, run := range d.runs {
		if !exist[key.JobID] || !hasRun(run) {
			continue
		}
		if other, ok := newest[key.JobID]; !ok || compareKeys(key, other.Key) > 0 {
			newest[key.JobID] = run
		}
	}
	return newest
}

func (r *memoryRecorder) ListRuns(options ledger.Query) (runs []ledger.Run, err error) {
	jobIDs, groupIDs, superGroupIDs := idSet(options.JobIDs), idSet(options.GroupIDs), idSet(options.SuperGroupIDs)
	err = r.read("ListRuns", recorded(func(d *memoryRecord) error {
		for _, run := range d.runs {
			if (options.JobIDs == nil || jobIDs[run.JobID]) &&
				(options.GroupIDs == nil || groupIDs[run.GroupID]) &&
				(options.SuperGroupIDs == nil || superGroupIDs[run.SuperGroupID]) &&
				(options.Outcomes == nil || slices.Contains(options.Outcomes, run.Outcome)) &&
				(options.From.IsZero() || !run.Tick.Before(options.From)) &&
				(options.Before.IsZero() || run.Tick.Before(options.Before)) &&
				(options.After == nil || compareKeys(run.Key, storedKey(*options.After)) < 0) {
				runs = append(runs, run)
			}
		}
		return nil
	}))
	slices.SortFunc(runs, func(a, b ledger.Run) int { return compareKeys(b.Key, a.Key) })
	return runs[:min(options.Most(), len(runs))], err
}

func (r *memoryRecorder) RunsOf(jobIDs []int64, n int) (runs []ledger.Run, err error) {
	err = r.read("RunsOf", recorded(func(d *memoryRecord) error {
		for id := range idSet(jobIDs) {
			var of []ledger.Run
			var ran time.Time
			for key, run := range d.runs {
				if key.JobID != id {
					continue
				}
				of = append(of, run)
				if hasRun(run) && key.Tick.After(ran) {
					ran = key.Tick
				}
			}
			slices.SortFunc(of, func(a, b ledger.Run) int { return compareKeys(a.Key, b.Key) })
			for _, run := range of {
				newest := n > 0 && (len(of) <= n || !run.Tick.Before(of[len(of)-n].Tick))
				if newest || run.Outcome == ledger.Waiting || hasRun(run) && run.Tick.Equal(ran) {
					runs = append(runs, run)
				}
			}
		}
		return nil
	}))
	slices.SortFunc(runs, func(a, b ledger.Run) int {
		return cmp.Or(cmp.Compare(a.JobID, b.JobID), compareKeys(a.Key, b.Key))
	})
	return runs, err
}

func (r *memoryRecorder) CountRuns(from time.Time, step time.Duration, limit int) (counts []ledgersql.Count, since time.Time, err error) {
	type bucket struct {
		step    int64
		outcome ledger.Outcome
	}
	newest, err := r.ListRuns(ledger.Query{From: from, Limit: limit})
	found := make(map[bucket]int)
	for _, run := range newest {
		in := bucket{int64(run.Tick.Sub(from) / step), run.Outcome}
		if run.Outcome == ledger.Missed {
			found[in] += run.Missed
		} else {
			found[in]++
		}
	}
	for in, ticks := range found {
		counts = append(counts, ledgersql.Count{Step: in.step, Outcome: in.outcome, Ticks: ticks})
	}
	slices.SortFunc(counts, func(a, b ledgersql.Count) int {
		return cmp.Or(cmp.Compare(a.Step, b.Step), cmp.Compare(a.Outcome, b.Outcome))
	})
	since = from
	if len(newest) == limit {
		since = newest[limit-1].Tick.In(from.Location())
	}
	return counts, since, err
}

// hasRun reports whether a run has come to start.
func hasRun(run ledger.Run) bool {
	return run.Outcome != ledger.Missed && run.Outcome != ledger.Skipped && run.Outcome != ledger.Waiting
}

func (d *memoryRecord) registered(op, process string) error {
	if _, registered := d.processes[process]; !registered {
		return fmt.Errorf("%s: %w: %s", op, ledger.ErrNotRegistered, process)
	}
	return nil
}

// memoryTx is a RecordTx on a copy of the record, which takes the record's place
// when the Change succeeds.
type memoryTx struct {
	recorder *memoryRecorder
	now      time.Time

	mu     sync.Mutex
	record *memoryRecord
	ended  bool
}

func (tx *memoryTx) end() {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	tx.ended = true
}

func (tx *memoryTx) do(name string, do func(d *memoryRecord) error) error {
	return tx.recorder.call("tx."+name, func() error {
		tx.mu.Lock()
		defer tx.mu.Unlock()
		if tx.ended {
			return fmt.Errorf("%s: the Change has ended", name)
		}
		return do(tx.record)
	})
}

// mark marks those of the jobs that exist, after they were written.
func (tx *memoryTx) mark(ids []int64, account bool) {
	for _, id := range ids {
		row, exists := tx.record.row(id)
		if !exists {
			continue
		}
		mark, marked := tx.record.mark(id)
		if !marked || account {
			mark.until = tx.now
		}
		mark.revision, mark.updatedAt, mark.deletedAt = tx.record.revision, row.UpdatedAt, time.Time{}
		tx.record.marks[id] = mark
	}
}

// wrote marks jobs after a method that wrote them all or those that exist.
func (tx *memoryTx) wrote(err error, ids []int64, account bool) error {
	if err == nil || errors.Is(err, tx.ErrorTypeIfMismatchCount()) {
		tx.mark(ids, account)
	}
	return err
}

func jobIDs(jobs []smallben.JobWithSchedule) []int64 {
	ids := make([]int64, len(jobs))
	for i := range jobs {
		row, _ := jobs[i].BuildJob()
		ids[i] = row.ID
	}
	return ids
}

func (tx *memoryTx) ErrorTypeIfMismatchCount() error {
	return newMemoryRepository().ErrorTypeIfMismatchCount()
}

func (tx *memoryTx) Now() time.Time { return tx.now }

func (tx *memoryTx) AddJobs(jobs []smallben.JobWithSchedule) error {
	return tx.do("AddJobs", func(d *memoryRecord) error { return tx.wrote(d.AddJobs(jobs), jobIDs(jobs), true) })
}

func (tx *memoryTx) GetJob(jobID int64) (job smallben.JobWithSchedule, err error) {
	err = tx.do("GetJob", func(d *memoryRecord) error { job, err = d.GetJob(jobID); return err })
	return job, err
}

func (tx *memoryTx) PauseJobs(jobs []smallben.RawJob) error {
	return tx.do("PauseJobs", func(d *memoryRecord) error { return tx.wrote(d.PauseJobs(jobs), rowIDs(jobs), false) })
}

func (tx *memoryTx) ResumeJobs(jobs []smallben.JobWithSchedule) error {
	return tx.do("ResumeJobs", func(d *memoryRecord) error { return tx.wrote(d.ResumeJobs(jobs), jobIDs(jobs), true) })
}

func (tx *memoryTx) GetAllJobsToExecute() (jobs []smallben.JobWithSchedule, err error) {
	err = tx.do("GetAllJobsToExecute", func(d *memoryRecord) error { jobs, err = d.GetAllJobsToExecute(); return err })
	return jobs, err
}

func (tx *memoryTx) GetJobsByIds(ids []int64) (jobs []smallben.JobWithSchedule, err error) {
	err = tx.do("GetJobsByIds", func(d *memoryRecord) error { jobs, err = d.GetJobsByIds(ids); return err })
	return jobs, err
}

func (tx *memoryTx) DeleteJobsByIds(ids []int64) error {
	return tx.do("DeleteJobsByIds", func(d *memoryRecord) error {
		existed := d.find(func(row smallben.RawJob) bool { return slices.Contains(ids, row.ID) })
		err := d.DeleteJobsByIds(ids)
		for _, row := range existed {
			mark := d.marks[row.ID]
			mark.revision, mark.deletedAt, mark.former = d.revision, tx.now, ""
			d.marks[row.ID] = mark
		}
		return err
	})
}

func (tx *memoryTx) SetCronId(jobs []smallben.JobWithSchedule) error {
	return tx.do("SetCronId", func(d *memoryRecord) error { return d.SetCronId(jobs) })
}

func (tx *memoryTx) SetCronIdAndChangeScheduleAndJobInput(jobs []smallben.JobWithSchedule) error {
	return tx.do("SetCronIdAndChangeScheduleAndJobInput", func(d *memoryRecord) error {
		return tx.wrote(d.SetCronIdAndChangeScheduleAndJobInput(jobs), jobIDs(jobs), false)
	})
}

func (tx *memoryTx) ListJobs(options smallben.ToListOptions) (rows []smallben.RawJob, err error) {
	err = tx.do("ListJobs", func(d *memoryRecord) error { rows, err = d.ListJobs(options); return err })
	return rows, err
}

func (tx *memoryTx) UpsertJobs(add, replace []smallben.JobWithSchedule) error {
	return tx.do("UpsertJobs", func(d *memoryRecord) error {
		err := tx.wrote(d.UpsertJobs(add, replace), jobIDs(replace), false)
		return tx.wrote(err, jobIDs(add), true)
	})
}

func (tx *memoryTx) Watermarks(ids []int64) (marks []ledger.Watermark, err error) {
	err = tx.do("Watermarks", func(d *memoryRecord) error {
		for _, id := range ids {
			if _, marked := d.mark(id); !marked {
				tx.mark([]int64{id}, true)
			}
		}
		marks = d.watermarks(ids)
		return nil
	})
	return marks, err
}

func (tx *memoryTx) Close(ids []int64, makeUp bool) error {
	return tx.do("Close", func(d *memoryRecord) error {
		wanted := idSet(ids)
		for _, row := range d.find(func(row smallben.RawJob) bool { return wanted[row.ID] && !row.Paused }) {
			mark, marked := d.mark(row.ID)
			if !marked || !mark.until.Before(tx.now) {
				continue
			}
			d.spans[memorySpan{row.ID, d.revision}] = ledger.ClosedSpan{Span: ledger.Span{JobID: row.ID, After: mark.until, Until: tx.now}, Revision: d.revision,
				CreatedAt: row.CreatedAt, Expression: row.CronExpression, GroupID: row.GroupID, SuperGroupID: row.SuperGroupID, MakeUp: makeUp}
			mark.until = tx.now
			d.marks[row.ID] = mark
		}
		return nil
	})
}

func (tx *memoryTx) Shorten(spans []ledger.ClosedSpan) error {
	return tx.do("Shorten", func(d *memoryRecord) error {
		for _, shortened := range spans {
			name := memorySpan{shortened.JobID, shortened.Revision}
			span, exists := d.spans[name]
			span.After = shortened.After
			if !exists {
				continue
			}
			if d.spans[name] = span; !span.After.Before(span.Until) {
				delete(d.spans, name)
			}
		}
		return nil
	})
}

func (tx *memoryTx) Cancel(ids []int64, triggered bool, reason string) error {
	return tx.do("Cancel", func(d *memoryRecord) error {
		wanted := idSet(ids)
		for _, run := range d.waiting() {
			if wanted[run.JobID] && (triggered || !run.Triggered) {
				d.cancel(run, tx.now, reason)
			}
		}
		return nil
	})
}

func (tx *memoryTx) RecordedTicks(spans []ledger.Span) (ticks [][]time.Time, err error) {
	err = tx.do("RecordedTicks", func(d *memoryRecord) error {
		ticks = make([][]time.Time, len(spans))
		for key := range d.runs {
			for i, span := range spans {
				if key.JobID == span.JobID && !key.Triggered && key.Tick.After(span.After) && !key.Tick.After(span.Until) {
					ticks[i] = append(ticks[i], key.Tick)
				}
			}
		}
		for i := range ticks {
			slices.SortFunc(ticks[i], time.Time.Compare)
			ticks[i] = slices.CompactFunc(ticks[i], time.Time.Equal)
		}
		return nil
	})
	return ticks, err
}

func (tx *memoryTx) Record(marks []ledger.Watermark, runs []ledger.Run) error {
	return tx.do("Record", func(d *memoryRecord) error {
		recorded, running := maps.Clone(d.runs), maps.Clone(d.running)
		for _, run := range runs {
			run.Key = storedKey(run.Key)
			run.Start, run.End, run.FirstTick = storedTime(run.Start), storedTime(run.End), storedTime(run.FirstTick)
			run.Due = storedTime(run.Due)
			if _, exists := recorded[run.Key]; exists {
				return fmt.Errorf("record: there is a run already: %v", run)
			}
			recorded[run.Key] = run
			if run.Exclusive && run.Outcome == ledger.Running {
				if _, busy := running[run.JobID]; busy {
					return fmt.Errorf("record: another run holds the running key: %v", run)
				}
				running[run.JobID] = memoryHolder{process: run.Process, run: run.Key}
			}
		}
		d.runs, d.running = recorded, running
		for _, moved := range marks {
			if mark, marked := d.mark(moved.JobID); marked {
				mark.until = storedTime(moved.Until)
				d.marks[moved.JobID] = mark
			}
		}
		return nil
	})
}

func (tx *memoryTx) Expire(dead []ledger.Member) (lost []ledger.Run, err error) {
	err = tx.do("Expire", func(d *memoryRecord) error {
		for _, peer := range dead {
			if process, registered := d.processes[peer.Process]; registered && process.beats == peer.Beats {
				delete(d.processes, peer.Process)
			}
		}
		for key, run := range d.runs {
			if _, registered := d.processes[run.Process]; registered || run.Outcome != ledger.Running {
				continue
			}
			run.Outcome, run.End = ledger.Lost, tx.now
			d.runs[key] = run
			d.free(run.Process, key)
			lost = append(lost, run)
		}
		slices.SortFunc(lost, func(a, b ledger.Run) int { return compareKeys(a.Key, b.Key) })
		return nil
	})
	return lost, err
}

func (tx *memoryTx) FormerJobs(ids []int64, maxSilence time.Duration) (former map[int64]string, decoding bool, err error) {
	err = tx.do("FormerJobs", func(d *memoryRecord) error {
		former = make(map[int64]string)
		for _, id := range ids {
			if job := d.marks[id].former; job != "" {
				former[id] = job
			}
		}
		for _, process := range d.processes {
			standing := process.standing
			decoding = decoding || standing.Claims && !standing.Partial && tx.now.Sub(process.heard) < maxSilence
		}
		decoding = decoding && len(former) > 0
		return nil
	})
	return former, decoding, err
}

func (tx *memoryTx) SetFormerJobs(former map[int64]string) error {
	return tx.do("SetFormerJobs", func(d *memoryRecord) error {
		for id, job := range former {
			if mark, marked := d.marks[id]; marked {
				mark.former = job
				d.marks[id] = mark
			}
		}
		return nil
	})
}

func (tx *memoryTx) Awaited(claims []ledger.Claim) (jobIDs []int64, err error) {
	err = tx.do("Awaited", func(d *memoryRecord) error {
		for _, claim := range claims {
			if d.waitingBefore(claim, tx.now) > 0 && !slices.Contains(jobIDs, claim.JobID) {
				jobIDs = append(jobIDs, claim.JobID)
			}
		}
		slices.Sort(jobIDs)
		return nil
	})
	return jobIDs, err
}

func (tx *memoryTx) Superseded(keys []ledger.Key) (superseded []int, err error) {
	err = tx.do("Superseded", func(d *memoryRecord) error {
		for i, key := range keys {
			if d.superseded(key) {
				superseded = append(superseded, i)
			}
		}
		return nil
	})
	return superseded, err
}

func (tx *memoryTx) Lead(process string) (leads bool, err error) {
	err = tx.do("Lead", func(d *memoryRecord) error {
		leader, registered := d.processes[d.leader]
		own, known := d.processes[process]
		if !registered || leader.standing.Partial && known && !own.standing.Partial {
			d.leader = process
		}
		leads = d.leader == process
		return nil
	})
	return leads, err
}

// storedKey is the key as it is stored.
func storedKey(key ledger.Key) ledger.Key {
	key.Tick = storedTime(key.Tick)
	return key
}

func storedTime(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// compareKeys compares by tick, job, attempt, and puts the tick before the call.
func compareKeys(a, b ledger.Key) int {
	triggered := func(k ledger.Key) int {
		if k.Triggered {
			return 1
		}
		return 0
	}
	return cmp.Or(a.Tick.Compare(b.Tick), cmp.Compare(a.JobID, b.JobID), cmp.Compare(a.Attempt, b.Attempt), cmp.Compare(triggered(a), triggered(b)))
}

func storedNow() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

func idSet(ids []int64) map[int64]bool {
	set := make(map[int64]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set
}

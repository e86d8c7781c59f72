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
)

var (
	errAway     = errors.New("the database is away")
	errNoRecord = errors.New("there is no record: OpenRecord comes first")
)

// memoryRecorder is a Recorder written from outside the package, against nothing
// but the contract. Several SmallBens that are given the same one share it, as
// processes share a database.
//
// Each method of it and, as "tx.PauseJobs", each method of a RecordTx is a call,
// which tests can watch and let fail. "commit" is the end of a Change.
type memoryRecorder struct {
	writing chan struct{} // holds a token while a call writes

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
	_ smallben.Recorder = (*memoryRecorder)(nil)
	_ smallben.Upserter = (*memoryRecorder)(nil)
	_ smallben.Pager    = (*memoryRecorder)(nil)
	_ smallben.RecordTx = (*memoryTx)(nil)
)

func newMemoryRecorder() *memoryRecorder {
	return &memoryRecorder{
		writing: make(chan struct{}, 1),
		record: &memoryRecord{
			memoryRepository: newMemoryRepository(),
			marks:            make(map[int64]memoryMark),
			runs:             make(map[smallben.RunKey]smallben.Run),
			running:          make(map[int64]memoryHolder),
			processes:        make(map[string]int64),
		},
		fails: make(map[string]error), loses: make(map[string]bool), counts: make(map[string]int),
	}
}

// memoryRecord is what memoryRecorder holds.
type memoryRecord struct {
	*memoryRepository
	open      bool
	location  string
	revision  int64
	leader    string
	marks     map[int64]memoryMark
	runs      map[smallben.RunKey]smallben.Run
	running   map[int64]memoryHolder
	processes map[string]int64 // to their beats
}

type memoryMark struct {
	revision  int64
	updatedAt time.Time // of the row, when it was marked
	until     time.Time
	deletedAt time.Time // of a tombstone
}

// mark returns the mark of a job that is not a tombstone.
func (d *memoryRecord) mark(id int64) (mark memoryMark, marked bool) {
	mark = d.marks[id]
	return mark, mark.revision > 0 && mark.deletedAt.IsZero()
}

// memoryHolder is the run that holds a running key, and its process.
type memoryHolder struct {
	process string
	run     smallben.RunKey
}

func (d *memoryRecord) clone() *memoryRecord {
	d.mu.RLock()
	defer d.mu.RUnlock()
	c := *d
	c.memoryRepository = &memoryRepository{rows: maps.Clone(d.rows)}
	c.marks, c.runs, c.running, c.processes = maps.Clone(d.marks), maps.Clone(d.runs), maps.Clone(d.running), maps.Clone(d.processes)
	return &c
}

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
func (r *memoryRecorder) runs() []smallben.Run {
	return slices.SortedFunc(maps.Values(r.contents().runs), func(a, b smallben.Run) int { return compareKeys(a.RunKey, b.RunKey) })
}

// put stores rows as they are, as another program would: tests put broken ones.
func (r *memoryRecorder) put(rows ...smallben.RawJob) {
	r.writing <- struct{}{}
	defer func() { <-r.writing }()
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.record.put(rows...)
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
		return fmt.Errorf("%s: %w: the reply was lost", name, smallben.ErrOutcomeUnknown)
	}
	return nil
}

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

func (r *memoryRecorder) ErrorTypeIfMismatchCount() error { return errNoSuchJob }

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

func (r *memoryRecorder) OpenRecord(location string) error {
	return r.write("OpenRecord", func(d *memoryRecord) error {
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
		d.processes[process] += 0
		return nil
	}))
}

func (r *memoryRecorder) Leave(process string) error {
	return r.write("Leave", recorded(func(d *memoryRecord) error {
		delete(d.processes, process)
		return nil
	}))
}

func (r *memoryRecorder) Beat(process string) (smallben.Pulse, error) {
	var pulse smallben.Pulse
	err := r.write("Beat", recorded(func(d *memoryRecord) error {
		if err := d.registered("beat", process); err != nil {
			return err
		}
		d.processes[process]++
		pulse = smallben.Pulse{Now: storedNow(), Revision: d.revision}
		if _, registered := d.processes[d.leader]; registered {
			pulse.Leader = d.leader
		}
		for _, peer := range slices.Sorted(maps.Keys(d.processes)) {
			pulse.Peers = append(pulse.Peers, smallben.Peer{Process: peer, Beats: d.processes[peer]})
		}
		return nil
	}))
	if err != nil {
		return smallben.Pulse{}, err
	}
	return pulse, nil
}

func (r *memoryRecorder) Claim(process string, claims []smallben.Claim) ([]smallben.ClaimResult, error) {
	results := make([]smallben.ClaimResult, len(claims))
	err := r.write("Claim", recorded(func(d *memoryRecord) error {
		if err := d.registered("claim", process); err != nil {
			return err
		}
		now := storedNow()
		order := make([]int, len(claims))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(i, j int) int { return compareKeys(claims[i].RunKey, claims[j].RunKey) })
		for _, i := range order {
			results[i] = d.claim(process, claims[i], now)
		}
		return nil
	}))
	if err != nil {
		return nil, err
	}
	return results, nil
}

func (d *memoryRecord) claim(process string, claim smallben.Claim, now time.Time) smallben.ClaimResult {
	key := storedKey(claim.RunKey)
	run, taken := d.runs[key]
	if taken && run.Process == process && run.Outcome == smallben.OutcomeRunning {
		return smallben.ClaimWon
	}
	row, exists := d.rows[key.JobID]
	mark, marked := d.mark(key.JobID)
	switch {
	case !exists, !key.Triggered && (row.Paused || !marked || mark.revision != claim.Revision):
		return smallben.ClaimStale
	case !key.Triggered && !mark.until.Before(key.Tick):
		return smallben.ClaimLate
	case !key.Triggered && key.Tick.After(now.Add(time.Second)):
		return smallben.ClaimEarly
	case taken:
		return smallben.ClaimTaken
	}
	run = smallben.Run{
		RunKey: key, GroupID: claim.GroupID, SuperGroupID: claim.SuperGroupID, Process: process,
		Start: now, Outcome: smallben.OutcomeRunning, Exclusive: claim.Exclusive,
	}
	result := smallben.ClaimWon
	if claim.Exclusive {
		if _, busy := d.running[key.JobID]; busy {
			run.Outcome, run.End, result = smallben.OutcomeSkipped, now, smallben.ClaimSkipped
		} else {
			d.running[key.JobID] = memoryHolder{process, key}
		}
	}
	d.runs[key] = run
	return result
}

func (r *memoryRecorder) Finish(process string, runs []smallben.FinishedRun) error {
	return r.write("Finish", recorded(func(d *memoryRecord) error {
		for _, f := range runs {
			key := storedKey(f.RunKey)
			run, exists := d.runs[key]
			switch {
			case exists && run.Process == process && (run.Outcome == smallben.OutcomeRunning || run.Outcome == smallben.OutcomeLost):
			case f.Unclaimed && (!exists || run.Outcome == smallben.OutcomeMissed && run.Missed == 1):
				run = smallben.Run{RunKey: key, GroupID: f.GroupID, SuperGroupID: f.SuperGroupID, Process: process, Exclusive: f.Exclusive}
			default:
				continue
			}
			run.Start, run.End, run.Outcome, run.Error = storedTime(f.Start), storedTime(f.End), f.Outcome, f.Error
			d.runs[key] = run
			if f.Exclusive {
				d.free(process, key)
			}
		}
		return nil
	}))
}

// free takes the running key from a run, if it holds it.
func (d *memoryRecord) free(process string, key smallben.RunKey) {
	if d.running[key.JobID] == (memoryHolder{process, key}) {
		delete(d.running, key.JobID)
	}
}

func (r *memoryRecorder) Change(change func(tx smallben.RecordTx) error) (int64, error) {
	var revision int64
	err := r.call("Change", func() error {
		r.writing <- struct{}{}
		defer func() { <-r.writing }()
		tx := &memoryTx{recorder: r, now: storedNow(), record: r.contents()}
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
		changes.Jobs = d.find(func(row smallben.RawJob) bool { return wanted[row.ID] })
		for i := range changes.Jobs {
			changes.Jobs[i].Revision = d.marks[changes.Jobs[i].ID].revision
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

func (r *memoryRecorder) CompareMarks() error {
	return r.write("CompareMarks", recorded(func(d *memoryRecord) error {
		d.compareMarks()
		return nil
	}))
}

func (d *memoryRecord) compareMarks() {
	now, revision := storedNow(), d.revision+1
	for id, row := range d.rows {
		mark, marked := d.mark(id)
		if !marked || !mark.updatedAt.Equal(row.UpdatedAt) {
			d.marks[id] = memoryMark{revision: revision, updatedAt: row.UpdatedAt, until: now}
			d.revision = revision
		}
	}
	for id, mark := range d.marks {
		if _, exists := d.rows[id]; !exists && mark.deletedAt.IsZero() {
			mark.revision, mark.deletedAt = revision, now
			d.marks[id] = mark
			d.revision = revision
		}
	}
}

func (r *memoryRecorder) PruneRuns(before time.Time, limit int) (pruned int, err error) {
	err = r.write("PruneRuns", recorded(func(d *memoryRecord) error {
		newest := d.newestRuns(func(row smallben.RawJob, run smallben.Run) bool { return true })
		var old []smallben.RunKey
		for key, run := range d.runs {
			mark, marked := d.mark(key.JobID)
			if run.Outcome != smallben.OutcomeRunning && key.Tick.Before(before) && newest[key.JobID].RunKey != key &&
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
// missed nor skipped, of those that count.
func (d *memoryRecord) newestRuns(counts func(row smallben.RawJob, run smallben.Run) bool) map[int64]smallben.Run {
	newest := make(map[int64]smallben.Run)
	for key, run := range d.runs {
		row, exists := d.rows[key.JobID]
		if !exists || run.Outcome == smallben.OutcomeMissed || run.Outcome == smallben.OutcomeSkipped || !counts(row, run) {
			continue
		}
		if other, ok := newest[key.JobID]; !ok || compareKeys(key, other.RunKey) > 0 {
			newest[key.JobID] = run
		}
	}
	return newest
}

func (r *memoryRecorder) ListRuns(options smallben.ListRunsOptions) (runs []smallben.Run, err error) {
	jobIDs, groupIDs, superGroupIDs := idSet(options.JobIDs), idSet(options.GroupIDs), idSet(options.SuperGroupIDs)
	err = r.read("ListRuns", recorded(func(d *memoryRecord) error {
		for _, run := range d.runs {
			if (options.JobIDs == nil || jobIDs[run.JobID]) &&
				(options.GroupIDs == nil || groupIDs[run.GroupID]) &&
				(options.SuperGroupIDs == nil || superGroupIDs[run.SuperGroupID]) &&
				(options.Outcomes == nil || slices.Contains(options.Outcomes, run.Outcome)) &&
				(options.From.IsZero() || !run.Tick.Before(options.From)) &&
				(options.Before.IsZero() || run.Tick.Before(options.Before)) {
				runs = append(runs, run)
			}
		}
		return nil
	}))
	slices.SortFunc(runs, func(a, b smallben.Run) int { return compareKeys(b.RunKey, a.RunKey) })
	limit := options.Limit
	if limit <= 0 {
		limit = 1000
	}
	return runs[:min(limit, len(runs))], err
}

func (r *memoryRecorder) LastRuns(jobIDs []int64) (runs []smallben.Run, err error) {
	wanted := idSet(jobIDs)
	err = r.read("LastRuns", recorded(func(d *memoryRecord) error {
		newest := d.newestRuns(func(row smallben.RawJob, run smallben.Run) bool {
			return wanted[row.ID] && !run.Tick.Before(row.CreatedAt)
		})
		for _, id := range slices.Sorted(maps.Keys(newest)) {
			runs = append(runs, newest[id])
		}
		return nil
	}))
	return runs, err
}

func (d *memoryRecord) registered(op, process string) error {
	if _, registered := d.processes[process]; !registered {
		return fmt.Errorf("%s: %w: %s", op, smallben.ErrNotRegistered, process)
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
		row, exists := tx.record.rows[id]
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
	if err == nil || errors.Is(err, errNoSuchJob) {
		tx.mark(ids, account)
	}
	return err
}

func jobIDs(jobs []smallben.JobWithSchedule) []int64 {
	rows, _ := buildRows(jobs)
	return rowIDs(rows)
}

func (tx *memoryTx) ErrorTypeIfMismatchCount() error { return errNoSuchJob }

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
			mark.revision, mark.deletedAt = d.revision, tx.now
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

func (tx *memoryTx) Accounts(ids []int64) (accounts []smallben.Account, err error) {
	err = tx.do("Accounts", func(d *memoryRecord) error {
		wanted := idSet(ids)
		for _, row := range d.find(func(row smallben.RawJob) bool { return wanted[row.ID] }) {
			if _, marked := d.mark(row.ID); !marked {
				tx.mark([]int64{row.ID}, true)
			}
			mark := d.marks[row.ID]
			_, busy := d.running[row.ID]
			accounts = append(accounts, smallben.Account{JobID: row.ID, Until: mark.until, Revision: mark.revision, Busy: busy})
		}
		return nil
	})
	return accounts, err
}

func (tx *memoryTx) RecordedTicks(spans []smallben.TickSpan) (ticks [][]time.Time, err error) {
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

func (tx *memoryTx) Record(accounts []smallben.Account, runs []smallben.Run) error {
	return tx.do("Record", func(d *memoryRecord) error {
		recorded, running := maps.Clone(d.runs), maps.Clone(d.running)
		for _, run := range runs {
			run.RunKey = storedKey(run.RunKey)
			run.Start, run.End, run.FirstTick = storedTime(run.Start), storedTime(run.End), storedTime(run.FirstTick)
			if _, exists := recorded[run.RunKey]; exists {
				return fmt.Errorf("record: there is a run already: %v", run)
			}
			recorded[run.RunKey] = run
			if run.Exclusive && run.Outcome == smallben.OutcomeRunning {
				if _, busy := running[run.JobID]; busy {
					return fmt.Errorf("record: another run holds the running key: %v", run)
				}
				running[run.JobID] = memoryHolder{run.Process, run.RunKey}
			}
		}
		d.runs, d.running = recorded, running
		for _, account := range accounts {
			if mark, marked := d.mark(account.JobID); marked {
				mark.until = storedTime(account.Until)
				d.marks[account.JobID] = mark
			}
		}
		return nil
	})
}

func (tx *memoryTx) Bury(dead []smallben.Peer) (lost []smallben.Run, err error) {
	err = tx.do("Bury", func(d *memoryRecord) error {
		for _, peer := range dead {
			if beats, registered := d.processes[peer.Process]; registered && beats == peer.Beats {
				delete(d.processes, peer.Process)
			}
		}
		for key, run := range d.runs {
			if _, registered := d.processes[run.Process]; registered || run.Outcome != smallben.OutcomeRunning {
				continue
			}
			run.Outcome, run.End = smallben.OutcomeLost, tx.now
			d.runs[key] = run
			d.free(run.Process, key)
			lost = append(lost, run)
		}
		slices.SortFunc(lost, func(a, b smallben.Run) int { return compareKeys(a.RunKey, b.RunKey) })
		return nil
	})
	return lost, err
}

func (tx *memoryTx) Lead(process string) (leads bool, err error) {
	err = tx.do("Lead", func(d *memoryRecord) error {
		if _, registered := d.processes[d.leader]; !registered {
			d.leader = process
		}
		leads = d.leader == process
		return nil
	})
	return leads, err
}

// storedKey is the key as it is stored.
func storedKey(key smallben.RunKey) smallben.RunKey {
	key.Tick = storedTime(key.Tick)
	return key
}

func storedTime(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// compareKeys compares by tick, job, attempt, and puts the tick before the call.
func compareKeys(a, b smallben.RunKey) int {
	triggered := func(k smallben.RunKey) int {
		if k.Triggered {
			return 1
		}
		return 0
	}
	return cmp.Or(a.Tick.Compare(b.Tick), cmp.Compare(a.JobID, b.JobID), cmp.Compare(a.Attempt, b.Attempt), cmp.Compare(triggered(a), triggered(b)))
}

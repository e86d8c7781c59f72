package smallbentest

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

// MemoryRepository keeps jobs in memory, for tests of code that uses SmallBen. It
// stores what a database would: jobs are encoded when they are added, and decoded
// when they are read.
//
// It is a smallben.Upserter and a smallben.Pager, and does not record runs. It is
// safe for concurrent use. Its lock is never held while something waits, so it
// works inside testing/synctest. It needs no closing.
type MemoryRepository struct {
	mu   sync.RWMutex
	rows map[int64]smallben.RawJob // by id
}

var (
	_ smallben.Repository = (*MemoryRepository)(nil)
	_ smallben.Upserter   = (*MemoryRepository)(nil)
	_ smallben.Pager      = (*MemoryRepository)(nil)
)

// errNoSuchJob is the mismatch error.
var errNoSuchJob = errors.New("no such job")

// NewMemoryRepository returns a MemoryRepository that holds no job.
func NewMemoryRepository() *MemoryRepository {
	return &MemoryRepository{rows: make(map[int64]smallben.RawJob)}
}

// Put stores rows as they are, over those with the same ids, as another program
// would. Tests store rows with it that do not decode.
func (m *MemoryRepository) Put(rows ...smallben.RawJob) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, row := range rows {
		m.rows[row.ID] = row
	}
}

// ErrorTypeIfMismatchCount returns the error that errors.Is finds where ids do not exist.
func (m *MemoryRepository) ErrorTypeIfMismatchCount() error { return errNoSuchJob }

// AddJobs stores all of the jobs or none.
func (m *MemoryRepository) AddJobs(jobs []smallben.JobWithSchedule) error {
	return m.UpsertJobs(jobs, nil)
}

// UpsertJobs stores the jobs of add, and replaces those of replace.
func (m *MemoryRepository) UpsertJobs(add, replace []smallben.JobWithSchedule) error {
	added, problems := buildRows(add)
	replaced, replaceProblems := buildRows(replace)
	problems = append(problems, replaceProblems...)
	now := storedNow()
	m.mu.Lock()
	defer m.mu.Unlock()
	batch, moreProblems := m.newRowsLocked(added, now)
	if err := errors.Join(append(problems, moreProblems...)...); err != nil {
		return err
	}
	maps.Copy(m.rows, batch)
	return m.changeLocked("upsert jobs", replaced, func(stored *smallben.RawJob, job smallben.RawJob) {
		job.Paused, job.CreatedAt, job.UpdatedAt = stored.Paused, stored.CreatedAt, now
		*stored = job
	})
}

// GetJob returns one job.
func (m *MemoryRepository) GetJob(jobID int64) (smallben.JobWithSchedule, error) {
	m.mu.RLock()
	row, exists := m.rows[jobID]
	m.mu.RUnlock()
	if !exists {
		return smallben.JobWithSchedule{}, missing("get job", jobID)
	}
	return row.ToJobWithSchedule()
}

// PauseJobs pauses jobs.
func (m *MemoryRepository) PauseJobs(jobs []smallben.RawJob) error {
	now := storedNow()
	return m.change("pause jobs", jobs, func(stored *smallben.RawJob, _ smallben.RawJob) {
		stored.Paused, stored.CronID, stored.UpdatedAt = true, smallben.DefaultCronID, now
	})
}

// ResumeJobs resumes jobs.
func (m *MemoryRepository) ResumeJobs(jobs []smallben.JobWithSchedule) error {
	now := storedNow()
	return m.changeJobs("resume jobs", jobs, func(stored *smallben.RawJob, job smallben.RawJob) {
		stored.Paused, stored.CronID, stored.UpdatedAt = false, job.CronID, now
	})
}

// GetAllJobsToExecute returns the jobs that are not paused.
func (m *MemoryRepository) GetAllJobsToExecute() ([]smallben.JobWithSchedule, error) {
	return decode(m.find(func(row smallben.RawJob) bool { return !row.Paused }))
}

// GetJobsByIds returns the jobs with these ids.
func (m *MemoryRepository) GetJobsByIds(jobsID []int64) ([]smallben.JobWithSchedule, error) {
	wanted := idSet(jobsID)
	rows := m.find(func(row smallben.RawJob) bool { return wanted[row.ID] })
	jobs, err := decode(rows)
	return jobs, errors.Join(missingFrom("get jobs", jobsID, rows), err)
}

// DeleteJobsByIds deletes jobs.
func (m *MemoryRepository) DeleteJobsByIds(jobsID []int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var unknown []int64
	deleted := make(map[int64]bool)
	for _, id := range jobsID {
		if _, exists := m.rows[id]; !exists && !deleted[id] {
			unknown = append(unknown, id)
		}
		deleted[id] = true
		delete(m.rows, id)
	}
	return missing("delete jobs", unknown...)
}

// SetCronId stores the cron ids of jobs.
func (m *MemoryRepository) SetCronId(jobs []smallben.JobWithSchedule) error {
	return m.changeJobs("set cron ids", jobs, func(stored *smallben.RawJob, job smallben.RawJob) {
		stored.CronID = job.CronID
	})
}

// SetCronIdAndChangeScheduleAndJobInput stores the cron ids, expressions and inputs of jobs.
func (m *MemoryRepository) SetCronIdAndChangeScheduleAndJobInput(jobs []smallben.JobWithSchedule) error {
	now := storedNow()
	return m.changeJobs("update jobs", jobs, func(stored *smallben.RawJob, job smallben.RawJob) {
		stored.CronID, stored.CronExpression, stored.SerializedJobInput = job.CronID, job.CronExpression, job.SerializedJobInput
		stored.UpdatedAt = now
	})
}

// ListJobs returns the rows that match.
func (m *MemoryRepository) ListJobs(options smallben.ToListOptions) ([]smallben.RawJob, error) {
	o := smallben.ResolveListOptions(options)
	jobIDs, groupIDs, superGroupIDs := idSet(o.JobIDs), idSet(o.GroupIDs), idSet(o.SuperGroupIDs)
	rows := m.find(func(row smallben.RawJob) bool {
		return (o.JobIDs == nil || jobIDs[row.ID]) &&
			(o.GroupIDs == nil || groupIDs[row.GroupID]) &&
			(o.SuperGroupIDs == nil || superGroupIDs[row.SuperGroupID]) &&
			(o.Paused == nil || *o.Paused == row.Paused)
	})
	if o.GroupIDs != nil || o.SuperGroupIDs != nil || o.Paused != nil {
		return rows, nil
	}
	return rows, missingFrom("list jobs", o.JobIDs, rows)
}

// ListJobsAfter returns the first rows that match and whose ids are greater than
// *after.
func (m *MemoryRepository) ListJobsAfter(options smallben.ToListOptions, after *int64, limit int) ([]smallben.RawJob, error) {
	rows, _ := m.ListJobs(options) // its only error is about ids that do not exist
	if after != nil {
		rows = slices.DeleteFunc(rows, func(row smallben.RawJob) bool { return row.ID <= *after })
	}
	return rows[:min(limit, len(rows))], nil
}

// newRowsLocked returns rows by id as they are stored, and why they cannot be.
func (m *MemoryRepository) newRowsLocked(rows []smallben.RawJob, now time.Time) (batch map[int64]smallben.RawJob, problems []error) {
	batch = make(map[int64]smallben.RawJob, len(rows))
	exist := make(map[int64]bool)
	for _, row := range rows {
		_, twice := batch[row.ID]
		_, exists := m.rows[row.ID]
		if twice || exists {
			exist[row.ID] = true
		}
		if row.ID == 0 {
			problems = append(problems, &smallben.JobError{JobID: row.ID, Err: fmt.Errorf("%w: the id is 0", smallben.ErrInvalidJob)})
		}
		row.CreatedAt, row.UpdatedAt = storedAt(row.CreatedAt, now), storedAt(row.UpdatedAt, now)
		batch[row.ID] = row
	}
	for _, id := range slices.Sorted(maps.Keys(exist)) {
		problems = append(problems, &smallben.JobError{JobID: id, Err: smallben.ErrJobExists})
	}
	return batch, problems
}

// find returns the rows that match, in the order of their ids.
func (m *MemoryRepository) find(matches func(row smallben.RawJob) bool) []smallben.RawJob {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var found []smallben.RawJob
	for _, row := range m.rows {
		if matches(row) {
			found = append(found, row)
		}
	}
	slices.SortFunc(found, func(a, b smallben.RawJob) int { return cmp.Compare(a.ID, b.ID) })
	return found
}

func (m *MemoryRepository) changeJobs(op string, jobs []smallben.JobWithSchedule, set func(stored *smallben.RawJob, job smallben.RawJob)) error {
	rows, problems := buildRows(jobs)
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	return m.change(op, rows, set)
}

// change lets set change the stored row of each job that exists.
func (m *MemoryRepository) change(op string, jobs []smallben.RawJob, set func(stored *smallben.RawJob, job smallben.RawJob)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changeLocked(op, jobs, set)
}

func (m *MemoryRepository) changeLocked(op string, jobs []smallben.RawJob, set func(stored *smallben.RawJob, job smallben.RawJob)) error {
	var unknown []int64
	for _, job := range jobs {
		stored, exists := m.rows[job.ID]
		if !exists {
			unknown = append(unknown, job.ID)
			continue
		}
		set(&stored, job)
		m.rows[job.ID] = stored
	}
	return missing(op, unknown...)
}

func buildRows(jobs []smallben.JobWithSchedule) (rows []smallben.RawJob, problems []error) {
	for i := range jobs {
		row, err := jobs[i].BuildJob()
		if err != nil {
			problems = append(problems, err)
			continue
		}
		rows = append(rows, row)
	}
	return rows, problems
}

func decode(rows []smallben.RawJob) (jobs []smallben.JobWithSchedule, err error) {
	var problems []error
	for i := range rows {
		job, err := rows[i].ToJobWithSchedule()
		if err != nil {
			problems = append(problems, err)
			continue
		}
		jobs = append(jobs, job)
	}
	return jobs, errors.Join(problems...)
}

func missing(op string, ids ...int64) error {
	if len(ids) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w: %v", op, errNoSuchJob, ids)
}

func missingFrom(op string, wanted []int64, found []smallben.RawJob) error {
	unknown := idSet(wanted)
	for _, row := range found {
		delete(unknown, row.ID)
	}
	return missing(op, slices.Sorted(maps.Keys(unknown))...)
}

func idSet(ids []int64) map[int64]bool {
	set := make(map[int64]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set
}

func storedNow() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

func storedAt(t, now time.Time) time.Time {
	if t.IsZero() {
		return now
	}
	return t.UTC().Truncate(time.Microsecond)
}

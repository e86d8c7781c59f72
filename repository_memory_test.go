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

// errNoSuchJob is the mismatch error of memoryRepository: any error will do.
var errNoSuchJob = errors.New("no such job")

// memoryRepository is a Repository written from outside the package, against
// nothing but the contract.
type memoryRepository struct {
	mu   sync.RWMutex
	rows map[int64]smallben.RawJob // by id
}

var _ smallben.Repository = (*memoryRepository)(nil)

func newMemoryRepository() *memoryRepository {
	return &memoryRepository{rows: make(map[int64]smallben.RawJob)}
}

// put stores rows as they are, as another program would: tests put broken ones.
func (m *memoryRepository) put(rows ...smallben.RawJob) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, row := range rows {
		m.rows[row.ID] = row
	}
}

func (m *memoryRepository) ErrorTypeIfMismatchCount() error { return errNoSuchJob }

func (m *memoryRepository) AddJobs(jobs []smallben.JobWithSchedule) error {
	rows, problems := buildRows(jobs)
	now := storedNow()
	batch := make(map[int64]smallben.RawJob, len(rows))
	twice := make(map[int64]bool)

	m.mu.Lock()
	defer m.mu.Unlock()
	for _, row := range rows {
		if _, repeated := batch[row.ID]; repeated {
			twice[row.ID] = true
		}
		if row.ID == 0 {
			problems = append(problems, &smallben.JobError{JobID: row.ID, Err: fmt.Errorf("%w: the id is 0", smallben.ErrInvalidJob)})
		}
		row.CreatedAt, row.UpdatedAt = storedAt(row.CreatedAt, now), storedAt(row.UpdatedAt, now)
		batch[row.ID] = row
	}
	for id := range batch {
		if _, exists := m.rows[id]; exists || twice[id] {
			problems = append(problems, &smallben.JobError{JobID: id, Err: smallben.ErrJobExists})
		}
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	maps.Copy(m.rows, batch)
	return nil
}

func (m *memoryRepository) GetJob(jobID int64) (smallben.JobWithSchedule, error) {
	m.mu.RLock()
	row, exists := m.rows[jobID]
	m.mu.RUnlock()
	if !exists {
		return smallben.JobWithSchedule{}, missing("get job", jobID)
	}
	return row.ToJobWithSchedule()
}

func (m *memoryRepository) PauseJobs(jobs []smallben.RawJob) error {
	now := storedNow()
	return m.change("pause jobs", jobs, func(stored *smallben.RawJob, _ smallben.RawJob) {
		stored.Paused, stored.CronID, stored.UpdatedAt = true, smallben.DefaultCronID, now
	})
}

func (m *memoryRepository) ResumeJobs(jobs []smallben.JobWithSchedule) error {
	now := storedNow()
	return m.changeJobs("resume jobs", jobs, func(stored *smallben.RawJob, job smallben.RawJob) {
		stored.Paused, stored.CronID, stored.UpdatedAt = false, job.CronID, now
	})
}

func (m *memoryRepository) GetAllJobsToExecute() ([]smallben.JobWithSchedule, error) {
	return decode(m.find(func(row smallben.RawJob) bool { return !row.Paused }))
}

func (m *memoryRepository) GetJobsByIds(jobsID []int64) ([]smallben.JobWithSchedule, error) {
	wanted := idSet(jobsID)
	rows := m.find(func(row smallben.RawJob) bool { return wanted[row.ID] })
	jobs, err := decode(rows)
	return jobs, errors.Join(missingFrom("get jobs", jobsID, rows), err)
}

func (m *memoryRepository) DeleteJobsByIds(jobsID []int64) error {
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

func (m *memoryRepository) SetCronId(jobs []smallben.JobWithSchedule) error {
	return m.changeJobs("set cron ids", jobs, func(stored *smallben.RawJob, job smallben.RawJob) {
		stored.CronID = job.CronID
	})
}

func (m *memoryRepository) SetCronIdAndChangeScheduleAndJobInput(jobs []smallben.JobWithSchedule) error {
	now := storedNow()
	return m.changeJobs("update jobs", jobs, func(stored *smallben.RawJob, job smallben.RawJob) {
		stored.CronID, stored.CronExpression, stored.SerializedJobInput = job.CronID, job.CronExpression, job.SerializedJobInput
		stored.UpdatedAt = now
	})
}

func (m *memoryRepository) ListJobs(options smallben.ToListOptions) ([]smallben.RawJob, error) {
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

// find returns the rows that match, in the order of their ids.
func (m *memoryRepository) find(matches func(row smallben.RawJob) bool) []smallben.RawJob {
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

func (m *memoryRepository) changeJobs(op string, jobs []smallben.JobWithSchedule, set func(stored *smallben.RawJob, job smallben.RawJob)) error {
	rows, problems := buildRows(jobs)
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	return m.change(op, rows, set)
}

// change lets set change the stored row of each job that exists.
func (m *memoryRepository) change(op string, jobs []smallben.RawJob, set func(stored *smallben.RawJob, job smallben.RawJob)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
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

var (
	_ smallben.Upserter = (*memoryRepository)(nil)
	_ smallben.Pager    = (*memoryRepository)(nil)
)

func (m *memoryRepository) UpsertJobs(add, replace []smallben.JobWithSchedule) error {
	rows, problems := buildRows(replace)
	if err := errors.Join(problems...); err != nil {
		return err
	}
	if err := m.AddJobs(add); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var missing []int64
	for _, row := range rows {
		old, ok := m.rows[row.ID]
		if !ok {
			missing = append(missing, row.ID)
			continue
		}
		row.Paused, row.CreatedAt, row.UpdatedAt = old.Paused, old.CreatedAt, storedNow()
		m.rows[row.ID] = row
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %v", errNoSuchJob, missing)
	}
	return nil
}

func (m *memoryRepository) ListJobsAfter(options smallben.ToListOptions, after *int64, limit int) ([]smallben.RawJob, error) {
	rows, err := m.ListJobs(options)
	if err != nil && !errors.Is(err, errNoSuchJob) {
		return nil, err
	}
	for after != nil && len(rows) > 0 && rows[0].ID <= *after {
		rows = rows[1:]
	}
	return rows[:min(limit, len(rows))], nil
}

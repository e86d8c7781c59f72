package smallben

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/nbena/smallben/internal/cronexpr"
)

// ListJobs returns the jobs that match options, ordered by id. Nil options match
// every job. It reads the repository, and does not wait for a change in
// progress.
//
// Jobs may come together with an error: if the ids of jobs are the only filter
// and some do not exist, that of ErrorTypeIfMismatchCount; and for each row that
// does not decode a JobError (ErrUndecodable).
func (s *SmallBen) ListJobs(options *ListJobsOptions) ([]Job, error) {
	return s.ListJobsContext(context.Background(), options)
}

// ListJobsContext is ListJobs, and ends with ctx.
func (s *SmallBen) ListJobsContext(ctx context.Context, options *ListJobsOptions) ([]Job, error) {
	resolved := ResolveListOptions(options)
	c := s.begin(ctx)
	defer c.end()
	rows, err := s.find(c.repository, resolved)
	if err != nil && !s.isMismatch(err) {
		return nil, wrap("list", err)
	}
	jobs, undecodable, runsErr := s.jobsOf(c, rows, 0)
	if runsErr != nil {
		return nil, wrap("list", runsErr)
	}
	jobs = jobs[:len(jobs)-len(undecodable)]
	if err := join(append([]error{err}, undecodable...)); err != nil {
		return jobs, wrap("list", err)
	}
	return jobs, nil
}

// jobsOf decodes rows for users. Those that do not decode come last, with their ID, in
// the order of their errors. If runs are recorded it looks up the newest n of each job,
// the last one, and what waits: err is the error of that.
func (s *SmallBen) jobsOf(c *call, rows []RawJob, n int) (jobs []Job, undecodable []error, err error) {
	found, undecodable := decodeRows(rows)
	jobs = make([]Job, len(found), len(rows))
	for i := range found {
		jobs[i] = found[i].toJob()
		jobs[i].schedule = cronexpr.In(jobs[i].schedule, s.scheduler.location)
		jobs[i].location = s.scheduler.location
		last, running, next := s.scheduler.runsOf(jobs[i].ID)
		jobs[i].lastRun, jobs[i].running = last.run(jobs[i].ID), running
		if next.Attempt > 0 {
			jobs[i].nextAttempt = &next
		}
		jobs[i].options = jobs[i].options.resolve(s.scheduler.defaults)
	}
	for _, err := range undecodable {
		jobs = append(jobs, Job{ID: jobID(err)})
	}
	if s.record != nil && len(jobs) > 0 {
		err = s.record.addRuns(c, jobs, n)
	}
	return jobs, undecodable, err
}

// Jobs walks the jobs that match options, ordered by id, without holding all of
// them if the repository is a Pager. Nil options match every job. A row that does
// not decode is yielded as its JobError (ErrUndecodable), with a Job of which
// only the ID and the runs are set; any other error is the last thing yielded. Ids
// that do not exist are no error. Jobs that change during the walk may be seen as they
// were or as they are.
func (s *SmallBen) Jobs(options *ListJobsOptions) iter.Seq2[Job, error] {
	return func(yield func(Job, error) bool) {
		size := 1000 // of a page
		if _, ok := s.repository.(Pager); !ok {
			size = math.MaxInt
		}
		resolved := ResolveListOptions(options)
		var after *int64
		for {
			rows, err := s.pageOf(resolved, after, size)
			if !s.yieldJobs(rows, 0, err, yield) || len(rows) < size {
				return
			}
			after = &rows[len(rows)-1].ID
		}
	}
}

// JobsAfter is Jobs for a page: it yields those whose id is greater than *after, limit
// at most, rows that do not decode included. A nil after means from the first. If runs
// are recorded (Config.Runs), each job has its newest runs: those of at least so many
// ticks, as Job.RecentRuns tells them. If the repository is no [Pager], it is asked for
// all rows that match.
func (s *SmallBen) JobsAfter(options *ListJobsOptions, after *int64, limit, runs int) iter.Seq2[Job, error] {
	return func(yield func(Job, error) bool) {
		if limit <= 0 || runs < 0 {
			yield(Job{}, errors.New("list: the limit is not positive, or the number of runs is negative"))
			return
		}
		rows, err := s.pageOf(ResolveListOptions(options), after, limit)
		s.yieldJobs(rows, runs, err, yield)
	}
}

// yieldJobs yields the jobs of rows, with their newest n runs, and reports whether to go
// on. An error of reading the rows is yielded alone.
func (s *SmallBen) yieldJobs(rows []RawJob, n int, err error, yield func(Job, error) bool) bool {
	var jobs []Job
	var undecodable []error
	if err == nil {
		jobs, undecodable, err = s.jobsOf(s.background(), rows, n)
	}
	if err != nil {
		yield(Job{}, wrap("list", err))
		return false
	}
	held := jobs[len(jobs)-len(undecodable):]
	jobs = jobs[:len(jobs)-len(undecodable)]
	for len(jobs)+len(held) > 0 {
		if len(held) > 0 && (len(jobs) == 0 || held[0].ID <= jobs[0].ID) {
			if !yield(held[0], undecodable[0]) {
				return false
			}
			held, undecodable = held[1:], undecodable[1:]
		} else {
			if !yield(jobs[0], nil) {
				return false
			}
			jobs = jobs[1:]
		}
	}
	return true
}

// find reads the rows that match options. If the ids of jobs are the only filter
// and some do not exist, the mismatch error comes with the rows.
func (s *SmallBen) find(repository Repository, options ListJobsOptions) ([]RawJob, error) {
	rows, err := s.matching(repository, options)
	if err != nil || !options.onlyJobIDs() {
		return rows, err
	}
	missing := idSet(options.JobIDs)
	for i := range rows {
		delete(missing, rows[i].ID)
	}
	if len(missing) > 0 {
		return rows, notFound{fmt.Errorf("%w: no job with id %s", s.repository.ErrorTypeIfMismatchCount(),
			idText(slices.Sorted(maps.Keys(missing))))}
	}
	return rows, nil
}

func (s *SmallBen) pageOf(options ListJobsOptions, after *int64, limit int) ([]RawJob, error) {
	if pager, ok := s.repository.(Pager); ok {
		return pager.ListJobsAfter(&options, after, limit)
	}
	rows, err := s.matching(s.repository, options)
	if after != nil {
		rows = slices.DeleteFunc(rows, func(row RawJob) bool { return row.ID <= *after })
	}
	return rows[:min(limit, len(rows))], err
}

// matching reads the rows that match options. Ids that do not exist are no error.
func (s *SmallBen) matching(repository Repository, options ListJobsOptions) ([]RawJob, error) {
	rows, err := repository.ListJobs(&options)
	if err != nil && !s.isMismatch(err) {
		return nil, err
	}
	return rows, nil
}

// JobIDs returns the ids of the jobs that match options, in order. Nil options match
// every job. Ids that do not exist are no error, and rows need not decode.
func (s *SmallBen) JobIDs(options *ListJobsOptions) ([]int64, error) {
	return s.listIDs(s.repository, options)
}

func (s *SmallBen) listIDs(repository Repository, options *ListJobsOptions) ([]int64, error) {
	resolved := ResolveListOptions(options)
	if inner := gormOf(repository); inner != nil {
		ids, err := inner.listJobIDs(resolved)
		if err != nil {
			return nil, wrap("list ids", err)
		}
		return ids, nil
	}
	rows, err := s.matching(repository, resolved)
	if err != nil {
		return nil, wrap("list ids", err)
	}
	ids := make([]int64, 0, len(rows))
	for i := range rows {
		if !rows[i].nameless() {
			ids = append(ids, rows[i].ID)
		}
	}
	return ids, nil
}

// Status is what a SmallBen knows of itself. The database is not asked.
type Status struct {
	// Started says that jobs run here.
	Started bool
	// SchedulerConfig and Runs are those of the Config, with what zero stands for
	// in WithLocation.
	SchedulerConfig SchedulerConfig
	Runs            RunsConfig
	// Scheduled and Paused count the jobs whose rows decode.
	Scheduled, Paused int
	// Undecodable and Running are the ids, in order, of the jobs that are held back
	// here, and of those of which a run is in progress here.
	Undecodable, Running []int64
	// Unsettled counts the writes whose outcome is not known.
	Unsettled int
}

// Status returns what this SmallBen knows. Before Start and after Stop it is what
// it knew last, as it is for the gauges of Collector.
func (s *SmallBen) Status() Status {
	s.mu.RLock()
	defer s.mu.RUnlock()
	status := Status{
		Started:         s.started(),
		SchedulerConfig: s.config.SchedulerConfig,
		Runs:            s.config.Runs,
		Scheduled:       s.scheduler.count(),
		Paused:          len(s.paused),
		Undecodable:     slices.Sorted(maps.Keys(s.undecodable)),
		Running:         s.scheduler.running(),
		Unsettled:       s.refusingLocked(),
	}
	status.SchedulerConfig.WithLocation = s.scheduler.location
	return status
}

// NextRuns returns the first n ticks after the call that a job with the expression
// would have here, fewer if it has fewer, or why AddJobs would refuse it
// (ErrInvalidJob): for a form in which a user types one. The ticks of @every count
// from now, as if the job were added now. Of a job that is stored, Job.NextRuns
// tells. It may be called at any time, and does not touch the repository.
func (s *SmallBen) NextRuns(expression string, n int) ([]time.Time, error) {
	if err := s.rules.Check(expression); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidJob, err)
	}
	now := time.Now().In(s.scheduler.location)
	schedule, err := cronexpr.Parse(expression, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidJob, err)
	}
	return cronexpr.Ticks(cronexpr.In(schedule, s.scheduler.location), now, n), nil
}

package console

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/nbena/smallben"
)

// source is the scheduler as the pages use it. It is all of the console that talks
// to one.
type source struct{ scheduler *smallben.SmallBen }

func (s *source) status() smallben.Status { return s.scheduler.Status() }

func (s *source) recorded() bool { return s.status().Runs.Record }

// missing reports whether an error says that jobs do not exist.
func (s *source) missing(err error) bool {
	return errors.Is(err, s.scheduler.ErrorTypeIfMismatchCount())
}

// listed is a job of a page. Err says why its row does not decode, and then Job has
// its id and runs only.
type listed struct {
	smallben.Job
	Err     error
	hasRuns bool // its newest runs were asked for
}

// page reads a page of jobs, each with its newest runs, in two statements.
func (s *source) page(options smallben.ListJobsOptions, after *int64, limit, runs int) ([]listed, error) {
	var page []listed
	for job, err := range s.scheduler.JobsAfter(&options, after, limit, runs) {
		var undecodable *smallben.JobError
		if err != nil && !errors.As(err, &undecodable) {
			return nil, err
		}
		page = append(page, listed{Job: job, hasRuns: runs > 0})
		if undecodable != nil {
			page[len(page)-1].Err = undecodable.Err
		}
	}
	return page, nil
}

// addRuns reads those jobs again that do not have their newest runs. One that was deleted
// meanwhile stays as it is.
func (s *source) addRuns(jobs []listed, n int) error {
	var ids []int64
	place := make(map[int64]int)
	for i := range jobs {
		if !jobs[i].hasRuns {
			ids, place[jobs[i].ID] = append(ids, jobs[i].ID), i
		}
	}
	if ids == nil {
		return nil
	}
	page, err := s.page(smallben.ListJobsOptions{JobIDs: ids}, nil, len(ids), n)
	for i := range page {
		jobs[place[page[i].ID]] = page[i]
	}
	return err
}

// job reads one job, with its newest runs.
func (s *source) job(id int64) (*listed, error) {
	page, err := s.page(smallben.ListJobsOptions{JobIDs: []int64{id}}, nil, 1, stripLength)
	if err != nil {
		return nil, err
	}
	if len(page) == 0 {
		return nil, refusef(http.StatusNotFound, "There is no job "+itoa(id), "It may have been deleted. Its runs may still be in the record.")
	}
	return &page[0], nil
}

func (s *source) ids(options smallben.ListJobsOptions) ([]int64, error) {
	return s.scheduler.JobIDs(&options)
}

// runningJobs are the ids of the jobs of which a run is in progress: anywhere if runs
// are recorded, and here if not.
func (s *source) runningJobs() ([]int64, error) {
	status := s.status()
	if !status.Runs.Record {
		return status.Running, nil
	}
	_, ids, err := s.fewJobsWith([]smallben.Outcome{smallben.OutcomeRunning})
	return ids, err
}

// waitingJobs are the ids of the jobs of which a run waits, as the record knows.
func (s *source) waitingJobs() ([]int64, error) {
	if !s.recorded() {
		return nil, nil
	}
	_, ids, err := s.fewJobsWith([]smallben.Outcome{smallben.OutcomeWaiting})
	return ids, err
}

// fewJobsWith are the ids of the jobs of the newest runs with one of these outcomes,
// and whether there are no other jobs that have any.
func (s *source) fewJobsWith(outcomes []smallben.Outcome) (few bool, ids []int64, err error) {
	runs, err := s.scheduler.ListRuns(&smallben.ListRunsOptions{Outcomes: outcomes, Limit: maxSelected})
	if err != nil {
		return false, nil, err
	}
	for i := range runs {
		ids = append(ids, runs[i].JobID)
	}
	slices.Sort(ids)
	return len(runs) < maxSelected, slices.Compact(ids), nil
}

// nextRuns previews an expression, or says why it is refused.
func (s *source) nextRuns(expression string, n int) ([]time.Time, error) {
	return s.scheduler.NextRuns(expression, n)
}

// change does an action of which the verb says everything, and returns what there is
// to say of single jobs. abandonAfter is for Cancel.
func (s *source) change(verb Verb, ids []int64, abandonAfter time.Duration) (remarks []string, err error) {
	options := smallben.PauseResumeOptions{JobIDs: ids}
	switch verb {
	case Pause:
		return nil, s.scheduler.PauseJobs(&options)
	case Resume:
		return nil, s.scheduler.ResumeJobs(&options)
	case Run:
		triggered, err := s.scheduler.TriggerJobsReport(&options)
		for _, job := range triggered {
			switch {
			case job.Skipped != "":
				remarks = append(remarks, fmt.Sprintf("job %d did not run: %s", job.JobID, job.Skipped))
			case job.Waiting:
				remarks = append(remarks, fmt.Sprintf("job %d waits for another run to end", job.JobID))
			}
		}
		return remarks, err
	case Cancel:
		return nil, s.scheduler.CancelRuns(&smallben.CancelRunsOptions{JobIDs: ids, AbandonAfter: abandonAfter})
	case Delete:
		return nil, s.scheduler.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: options})
	}
	return nil, refusef(http.StatusBadRequest, "There is no such action", "Nothing was changed.")
}

func (s *source) update(option smallben.UpdateOption) error {
	return s.scheduler.UpdateJobs([]smallben.UpdateOption{option})
}

// jobErrors are the errors of single jobs in an error.
func jobErrors(err error) []*smallben.JobError {
	switch err := err.(type) {
	case nil:
		return nil
	case *smallben.JobError:
		return []*smallben.JobError{err}
	case interface{ Unwrap() []error }:
		var found []*smallben.JobError
		for _, leaf := range err.Unwrap() {
			found = append(found, jobErrors(leaf)...)
		}
		return found
	case interface{ Unwrap() error }:
		return jobErrors(err.Unwrap())
	}
	return nil
}

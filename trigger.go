package smallben

import (
	"context"
	"errors"
	"time"
)

// Triggered is what became of one job of TriggerJobsReport.
type Triggered struct {
	JobID int64
	// Tick is the CronJobInput.ScheduledAt of the run.
	Tick time.Time
	// Waiting says that the run has not started: it does when another run has
	// ended.
	Waiting bool
	// Skipped says why the job does not run. It is empty if it does.
	Skipped string
}

// TriggerJobs runs the jobs that match options now, paused ones too, once each,
// whatever their schedule. It returns when each run is started, waits for the end
// of another or for SchedulerConfig.MaxConcurrentRuns, or was skipped, as the
// overlap settings say; TriggerJobsReport tells which. Nil options are refused, and
// so is a call while SmallBen is not started; the zero PauseResumeOptions matches
// every job.
//
// If nothing matches, or ids do not exist and are the only filter, nothing runs
// and the error is that of ErrorTypeIfMismatchCount, with the ids. If rows do not
// decode, nothing runs either, and the error joins a JobError (ErrUndecodable)
// for each. If runs are recorded, nothing runs that could not be recorded.
func (s *SmallBen) TriggerJobs(options *PauseResumeOptions) error {
	return s.TriggerJobsContext(context.Background(), options)
}

// TriggerJobsContext is TriggerJobs, and ends with ctx. The runs do not.
func (s *SmallBen) TriggerJobsContext(ctx context.Context, options *PauseResumeOptions) error {
	_, err := s.reportTriggered(ctx, options)
	return err
}

// TriggerJobsReport is TriggerJobs, and returns what became of each job, ordered
// by id.
func (s *SmallBen) TriggerJobsReport(options *PauseResumeOptions) ([]Triggered, error) {
	return s.reportTriggered(context.Background(), options)
}

func (s *SmallBen) reportTriggered(ctx context.Context, options *PauseResumeOptions) (report []Triggered, err error) {
	at := tick{at: s.scheduler.now(), triggered: true}
	c := &change{}
	if c.selects(options); c.refused != nil {
		return nil, wrap("trigger", c.refused)
	}
	err = s.inTurn(ctx, func(turn *call) (err error) {
		c.call = turn
		report, err = s.triggerJobs(c, at)
		return err
	})
	if err != nil {
		return report, wrap("trigger", err)
	}
	s.logChange("jobs triggered", c.ids)
	return report, nil
}

func (s *SmallBen) triggerJobs(c *change, at tick) (report []Triggered, err error) {
	if !s.started() {
		return nil, errors.New("SmallBen is not started")
	}
	if err := s.settle(c.call, nil); err != nil {
		return nil, err
	}
	rows, err := s.rowsOf(c.repository, c)
	if err != nil {
		return nil, err
	}
	jobs, undecodable := decodeRows(rows)
	if err := join(undecodable); err != nil {
		return nil, err
	}
	if err := s.adopt(c.call, jobs); err != nil {
		return nil, unwritten{err}
	}
	grants, err := s.claimTriggered(jobs, at)
	if err != nil {
		return nil, unwritten{err} // nothing runs, and that is known
	}
	report, ok := s.scheduler.trigger(jobs, at, grants)
	if !ok {
		for _, grant := range grants {
			grant.Skip("SmallBen was stopped before it started")
		}
		return nil, errStopped
	}
	return report, nil
}

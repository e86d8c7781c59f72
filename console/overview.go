package console

import (
	"slices"
	"time"

	"github.com/nbena/smallben"
)

// attentionSpan is how far back the overview looks for what went wrong, and
// attentionRows how much of a kind it shows.
const (
	attentionSpan = 24 * time.Hour
	attentionRows = 8
)

type overviewPage struct {
	*page
	Scheduled, Paused, Total int
	Undecodable              int
	UndecodableIDs           []int64
	Unsettled                int
	RunningHere              int
	Chart                    *chart
	Failing                  []failingView
	MoreFailing              bool
	Lost                     []runView // and missed
	MoreLost                 bool
	Running                  []runView
	MoreRunning              bool
	Ailing                   []processView // processes with something to know of
	Quiet                    bool          // nothing needs attention
}

// failingView is a job whose last run went wrong.
type failingView struct {
	Job   jobView
	Since instant
	// Longer says that it may have failed before, too.
	Longer bool
	Error  string
}

func (c *console) overview(r *request) error {
	p := r.page
	p.Title, p.Section = "Overview", "overview"
	status := c.source.status()
	view := overviewPage{
		page: p, Scheduled: status.Scheduled, Paused: status.Paused, Undecodable: len(status.Undecodable),
		UndecodableIDs: status.Undecodable[:min(attentionRows, len(status.Undecodable))],
		Unsettled:      status.Unsettled, RunningHere: len(status.Running),
		Total: status.Scheduled + status.Paused + len(status.Undecodable),
	}
	if p.Recorded {
		if err := c.attention(p, &view); err != nil {
			return err
		}
	}
	view.Quiet = view.Undecodable+view.Unsettled+len(view.Failing)+len(view.Lost)+len(view.Ailing) == 0 && p.Started
	return c.draw(r, "overview", view)
}

// attention reads from the record what there is to know first.
func (c *console) attention(p *page, view *overviewPage) (err error) {
	if view.Chart, err = c.source.chart(p); err != nil {
		return err
	}
	list := func(outcomes ...smallben.Outcome) ([]runView, bool, error) {
		runs, err := c.source.scheduler.ListRuns(&smallben.ListRunsOptions{
			Outcomes: outcomes, From: p.now.Add(-attentionSpan), Limit: attentionRows + 1,
		})
		more := len(runs) > attentionRows
		return p.runViews(runs[:min(attentionRows, len(runs))]), more, err
	}
	if view.Running, view.MoreRunning, err = list(smallben.OutcomeRunning, smallben.OutcomeWaiting); err != nil {
		return err
	}
	if view.Lost, view.MoreLost, err = list(smallben.OutcomeLost, smallben.OutcomeMissed); err != nil {
		return err
	}
	if view.Failing, view.MoreFailing, err = c.failing(p); err != nil {
		return err
	}
	processes, err := c.source.processes(p)
	for _, process := range processes {
		if process.Ails() {
			view.Ailing = append(view.Ailing, process)
		}
	}
	return err
}

// failing finds the jobs whose last run went wrong, the latest first, and since when
// all of their runs did.
func (c *console) failing(p *page) (views []failingView, more bool, err error) {
	const newest, history = 200, 50
	wrong, _ := outcomesOf("failed")
	failed, err := c.source.scheduler.ListRuns(&smallben.ListRunsOptions{Outcomes: wrong, From: p.now.Add(-attentionSpan), Limit: newest})
	if err != nil {
		return nil, false, err
	}
	var ids []int64 // the latest failure first
	for i := range failed {
		if !slices.Contains(ids, failed[i].JobID) {
			ids = append(ids, failed[i].JobID)
		}
	}
	if len(ids) == 0 {
		return nil, false, nil
	}
	jobs, err := c.source.page(smallben.ListJobsOptions{JobIDs: ids}, nil, len(ids), history)
	if err != nil {
		return nil, false, err
	}
	jobs = slices.DeleteFunc(jobs, func(j listed) bool { return j.Err != nil || !slices.Contains(wrong, j.lastOutcome()) })
	slices.SortFunc(jobs, func(a, b listed) int { return slices.Index(ids, a.ID) - slices.Index(ids, b.ID) })
	more = len(jobs) > attentionRows || len(failed) == newest
	jobs = jobs[:min(attentionRows, len(jobs))]
	for i := range jobs {
		view := failingView{Job: p.job(&jobs[i]), Longer: true}
		for _, run := range slices.Backward(jobs[i].RecentRuns()) {
			if run.Outcome == smallben.OutcomeOK {
				view.Longer = false
				break
			}
			if slices.Contains(wrong, run.Outcome) {
				view.Since = p.Time(run.Tick)
				if view.Error == "" {
					view.Error = run.Error
				}
			}
		}
		view.Longer = view.Longer && len(jobs[i].RecentRuns()) >= history
		views = append(views, view)
	}
	return views, more, nil
}

package console

import (
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/nbena/smallben"
)

type jobsPage struct {
	*page
	Filter    filter
	Jobs      []jobView
	First     bool         // the first page
	Next      template.URL // the query of the next page, or ""
	Looked    bool         // not all jobs were looked through
	Actions   []verbView
	CanSelect bool // all that match
	Empty     bool // there is no job at all
	States    []string
	Outcomes  []choice
}

// choice is an option of a filter.
type choice struct{ Value, Label string }

func outcomeChoices() []choice {
	choices := []choice{{"failed", "failed, in any way"}}
	for _, o := range outcomes {
		choices = append(choices, choice{string(o.outcome), o.label})
	}
	choices[2].Label = "failed: error"
	return choices
}

func (c *console) jobs(r *request) error {
	p := r.page
	p.Title, p.Section = "Jobs", "jobs"
	query := r.URL.Query()
	f, err := parseFilter(query)
	if err != nil {
		return err
	}
	var after *int64
	if text := query.Get("after"); text != "" {
		id, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return badFilter("after: %q is no id", text)
		}
		after = &id
	}
	found, next, err := c.find(f, after, pageSize)
	if err != nil {
		return err
	}
	status := c.source.status()
	view := jobsPage{
		page: p, Filter: f, First: after == nil, States: states, Outcomes: outcomeChoices(),
		CanSelect: f.Outcome == "",
		Empty:     len(found) == 0 && !f.Active() && after == nil && status.Scheduled+status.Paused+len(status.Undecodable) == 0,
		Looked:    next != nil && len(found) < pageSize,
	}
	p.Notice = notice(query)
	for i := range found {
		view.Jobs = append(view.Jobs, p.job(&found[i]))
	}
	if next != nil {
		view.Next = f.query("after", itoa(*next))
	}
	if !p.ReadOnly {
		view.Actions = viewVerbs(Run, Pause, Resume, Cancel, Delete)
	}
	return c.draw(r, "jobs", view)
}

type jobPage struct {
	*page
	Job              jobView
	Defect           string
	Created, Updated instant
	Ticks            []tickView
	Policy           []fact
	Fields, Input    string
	Runs             []runView
	More             bool
	Actions          []verbView
	EditExpression   bool
	EditInput        bool
}

// fact is a line of a list of properties.
type fact struct{ Name, Value string }

// tickView is a tick to come, in its zone and, if that is another, in the reader's.
type tickView struct {
	At, Own       instant
	Zone, OwnZone string
	Moved         string // why it is not when the expression says
}

func (c *console) pathID(r *request) (int64, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return 0, refusef(http.StatusNotFound, "There is no such job", "%q is no id: ids are whole numbers.", r.PathValue("id"))
	}
	return id, nil
}

func (c *console) job(r *request) error {
	p := r.page
	id, err := c.pathID(r)
	if err != nil {
		return err
	}
	p.Title, p.Section = "Job "+itoa(id), "jobs"
	j, err := c.source.job(id)
	if err != nil {
		return err
	}
	p.Notice = notice(r.URL.Query())
	view := jobPage{page: p, Job: p.job(j)}
	if j.Err != nil {
		view.Defect = view.Job.Defect
	} else {
		view.Created, view.Updated = p.Time(j.CreatedAt()), p.Time(j.UpdatedAt())
		view.Ticks = p.ticks(j.CronExpression, j.NextRuns(5))
		view.Policy = policy(c.source.status(), &j.Job)
		if p.ShowInput {
			view.Fields, view.Input = fieldsOf(j.Job.Job), inputOf(&j.Job)
		}
	}
	if p.Recorded {
		runs, err := c.source.scheduler.ListRuns(&smallben.ListRunsOptions{JobIDs: []int64{id}, Limit: pageSize + 1})
		if err != nil {
			return err
		}
		view.More = len(runs) > pageSize
		view.Runs = p.runViews(runs[:min(pageSize, len(runs))])
	} else if last, ok := j.last(false); ok {
		view.Runs = []runView{p.run(&last)}
	}
	allowed := func(verb Verb) bool { return c.allowed(r.Request, verb, id) == nil }
	verbs := []Verb{Run, Pause, Delete}
	switch {
	case j.Err != nil:
		verbs = []Verb{Pause, Delete}
	case j.Paused():
		verbs = []Verb{Run, Resume, Delete}
	}
	if view.Job.Running {
		verbs = slices.Insert(verbs, len(verbs)-1, Cancel)
	}
	for _, verb := range verbs {
		if allowed(verb) {
			view.Actions = append(view.Actions, viewVerbs(verb)...)
		}
	}
	view.EditExpression = j.Err == nil && allowed(EditExpression)
	view.EditInput = j.Err == nil && p.ShowInput && allowed(EditInput)
	return c.draw(r, "job", view)
}

// ticks shows ticks of an expression. One at which the clock does not show what the
// expression says was moved by a clock that is set; one that the clock shows twice is
// at the first.
func (p *page) ticks(expression string, ticks []time.Time) []tickView {
	e, understood := parse(expression)
	views := make([]tickView, len(ticks))
	for i, tick := range ticks {
		if understood && e.zone != "" {
			if zone, err := time.LoadLocation(e.zone); err == nil {
				tick = tick.In(zone)
			}
		}
		views[i] = tickView{At: p.timeIn(tick, tick.Location()), Own: p.Time(tick), Zone: zoneName(tick.Location()), OwnZone: p.Zone}
		if !understood || e.every > 0 || !e.at.IsZero() {
			continue
		}
		start, end := tick.ZoneBounds()
		switch {
		case !e.selects(tick):
			views[i].Moved = "moved: the clock is set forward, and does not show the time of the expression"
		case !end.IsZero() && showsAgain(tick, end):
			views[i].Moved = "the clock is set back, and shows this time twice"
		case !start.IsZero() && showedBefore(tick, start):
			views[i].Moved = "the second time: the clock is set back, and shows this time twice"
		}
	}
	return views
}

// showsAgain reports whether the clock shows the time of t a second time, after it is
// set at change.
func showsAgain(t, change time.Time) bool {
	_, before := t.Zone()
	_, after := change.In(t.Location()).Zone()
	set := time.Duration(before-after) * time.Second
	return set > 0 && !t.Before(change.Add(-set))
}

// showedBefore reports whether the clock has shown the time of t before it was set at
// change.
func showedBefore(t, change time.Time) bool {
	_, before := change.Add(-time.Second).In(t.Location()).Zone()
	_, after := t.Zone()
	set := time.Duration(before-after) * time.Second
	return set > 0 && t.Before(change.Add(set))
}

// policy says how the runs of a job are treated.
func policy(status smallben.Status, j *smallben.Job) []fact {
	options := j.RunOptions()
	overlap := "runs may overlap"
	switch options.Overlap {
	case smallben.OverlapSkip:
		overlap = "one run at a time: a tick that comes during a run is skipped"
	case smallben.OverlapDelay:
		overlap = "one run at a time: a tick that comes during a run waits for its end"
	}
	facts := []fact{{"Overlap", overlap}}
	if most := status.SchedulerConfig.MaxConcurrentRuns; most > 0 {
		facts = append(facts, fact{"At a time", "at most " + plural(most, "run") + " in a process, of all jobs"})
	}
	if _, ok := j.Job.(smallben.ContextJob); ok {
		timeout := "none"
		if options.Timeout > 0 {
			timeout = "the context of a run ends after " + took(options.Timeout)
		}
		facts = append(facts, fact{"Timeout", timeout})
	}
	attempts := "one"
	if options.Attempts > 1 {
		attempts = fmt.Sprintf("%d, the second %s after the first, then twice as long each time, %s at most",
			options.Attempts, took(options.Backoff), took(options.MaxBackoff))
	}
	facts = append(facts, fact{"Attempts", attempts})
	if status.Runs.Record {
		missed := "recorded, not made up for"
		switch options.Missed {
		case smallben.MissedRunOnce:
			missed = "the latest one is made up for"
		case smallben.MissedRunAll:
			missed = "made up for, one after another"
		}
		if options.MissedWithin > 0 {
			missed += ", if it is at most " + took(options.MissedWithin) + " ago"
		}
		lost := "recorded, not run again"
		switch {
		case options.Attempts > 1:
			lost = "count as an attempt"
		case status.Runs.RerunLost:
			lost = "run again, once"
		}
		facts = append(facts, fact{"Missed ticks", missed}, fact{"Lost runs", lost})
	}
	return facts
}

// fieldsOf shows the fields of a job's value as JSON, or as Go prints them.
func fieldsOf(job smallben.CronJob) (text string) {
	defer func() {
		if recover() != nil {
			text = "its fields cannot be shown" // MarshalJSON is code of the user
		}
	}()
	encoded, err := json.MarshalIndent(job, "", "  ")
	if err != nil {
		return fmt.Sprintf("%+v", job)
	}
	return string(encoded)
}

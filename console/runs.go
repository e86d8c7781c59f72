package console

import (
	"errors"
	"fmt"
	"html/template"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nbena/smallben"
)

type runsPage struct {
	*page
	Filter   runFilter
	Runs     []runView
	Next     template.URL // the query of the next page, or ""
	First    bool
	Outcomes []choice
}

// runFilter selects runs.
type runFilter struct {
	filter       // State is not used
	From, Before string
	options      smallben.ListRunsOptions
}

// formTime is the form of times in fields of type datetime-local.
const formTime = "2006-01-02T15:04"

func (p *page) parseRunFilter(query url.Values) (f runFilter, err error) {
	if f.filter, err = parseFilter(query); err != nil {
		return f, err
	}
	wanted, _ := outcomesOf(f.Outcome)
	f.options = smallben.ListRunsOptions{JobIDs: f.IDs, GroupIDs: f.Groups, SuperGroupIDs: f.SuperGroups, Outcomes: wanted}
	for _, bound := range []struct {
		name string
		text *string
		to   *time.Time
	}{{"from", &f.From, &f.options.From}, {"before", &f.Before, &f.options.Before}} {
		if *bound.text = query.Get(bound.name); *bound.text == "" {
			continue
		}
		layout := formTime
		if strings.Count(*bound.text, ":") == 2 {
			layout += ":05" // as browsers write it when there are seconds
		}
		if *bound.to, err = time.ParseInLocation(layout, *bound.text, p.zone); err != nil {
			return f, badFilter("%s: %q is no time like 2027-05-01T09:00", bound.name, *bound.text)
		}
	}
	return f, nil
}

// Query is the filter as the query of a link.
func (f runFilter) Query() template.URL { return f.query() }

func (f runFilter) query(more ...string) template.URL {
	for _, bound := range []formField{{"from", f.From}, {"before", f.Before}} {
		if bound.Value != "" {
			more = append(more, bound.Name, bound.Value)
		}
	}
	return f.filter.query(more...)
}

// Active reports whether the filter selects at all.
func (f runFilter) Active() bool { return f.filter.Active() || f.From+f.Before != "" }

func (c *console) runs(r *request) error {
	p := r.page
	p.Title, p.Section = "Runs", "runs"
	query := r.URL.Query()
	f, err := p.parseRunFilter(query)
	if err != nil {
		return err
	}
	view := runsPage{page: p, Filter: f, Outcomes: outcomeChoices(), First: query.Get("after") == ""}
	if p.Recorded {
		runs, next, err := c.source.runs(f.options, query.Get("after"), pageSize)
		if err != nil {
			return err
		}
		view.Runs = p.runViews(runs)
		if next != "" {
			view.Next = f.query("after", next)
		}
	}
	return c.draw(r, "runs", view)
}

// runs reads a page of runs, newest first, after a cursor, and returns that of the
// next page.
func (s *source) runs(options smallben.ListRunsOptions, cursor string, limit int) (page []smallben.Run, next string, err error) {
	if cursor != "" {
		if options.After, err = parseCursor(cursor); err != nil {
			return nil, "", badFilter("after: %q is no place in the list", cursor)
		}
	}
	options.Limit = limit + 1
	runs, err := s.scheduler.ListRuns(&options)
	if err != nil || len(runs) <= limit {
		return runs, "", err
	}
	last := &runs[limit-1]
	return runs[:limit], fmt.Sprintf("%d.%d.%d.%t", last.Tick.UnixMicro(), last.JobID, last.Attempt, last.Triggered), nil
}

// parseCursor reads what names a run.
func parseCursor(cursor string) (*smallben.Run, error) {
	parts := strings.Split(cursor, ".")
	if len(parts) != 4 {
		return nil, errors.New("not four parts")
	}
	tick, tickErr := strconv.ParseInt(parts[0], 10, 64)
	jobID, jobErr := strconv.ParseInt(parts[1], 10, 64)
	attempt, attemptErr := strconv.ParseInt(parts[2], 10, 32)
	triggered, triggeredErr := strconv.ParseBool(parts[3])
	return &smallben.Run{Tick: time.UnixMicro(tick), JobID: jobID, Attempt: int(attempt), Triggered: triggered},
		errors.Join(tickErr, jobErr, attemptErr, triggeredErr)
}

type processesPage struct {
	*page
	Processes []processView
}

// processView is a process as it is shown.
type processView struct {
	Name, Version               string
	Offset, Heartbeat           string
	Since                       instant
	Leads, Self, Idle           bool
	Silent, OffClock, Undecided bool
}

// What is more than that is worth a look.
const (
	maxSilence = 5 * time.Second
	maxOffset  = time.Second
)

// Ails reports whether there is something to know of the process, and Why what it is.
func (v processView) Ails() bool { return v.Silent || v.OffClock || v.Undecided }

// Why says what there is to know of the process.
func (v processView) Why() string {
	var items []string
	if v.Silent {
		items = append(items, "it was last heard of "+v.Heartbeat+" ago")
	}
	if v.OffClock {
		items = append(items, "its clock is "+v.Offset)
	}
	if v.Undecided {
		items = append(items, "it cannot decode some jobs, and does not run them")
	}
	return enumerate(items)
}

func (s *source) processes(p *page) ([]processView, error) {
	processes, err := s.scheduler.Processes()
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	self := fmt.Sprintf("%s/%d/", host, os.Getpid())
	views := make([]processView, len(processes))
	for i, process := range processes {
		offset := "in step"
		switch ahead := -process.ClockOffset.Round(time.Millisecond); {
		case ahead >= 10*time.Millisecond:
			offset = took(ahead) + " ahead of the database's"
		case ahead <= -10*time.Millisecond:
			offset = took(-ahead) + " behind the database's"
		}
		views[i] = processView{
			Name: cut(process.Name, maxName), Version: cut(process.Version, maxName), Offset: offset, Heartbeat: took(process.Heartbeat), Since: p.Time(process.Since),
			Leads: process.Leads, Self: strings.HasPrefix(process.Name, self), Idle: !process.Claims,
			Silent: process.Heartbeat > maxSilence, OffClock: process.ClockOffset.Abs() > maxOffset, Undecided: process.Partial,
		}
	}
	return views, nil
}

func (c *console) processes(r *request) (err error) {
	p := r.page
	p.Title, p.Section = "Processes", "processes"
	view := processesPage{page: p}
	if p.Recorded {
		if view.Processes, err = c.source.processes(p); err != nil {
			return err
		}
	}
	return c.draw(r, "processes", view)
}

package console

import (
	"fmt"
	"html/template"
	"net/url"
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
	skip, passedTick := 0, int64(0)
	if cursor != "" {
		tickText, skipText, _ := strings.Cut(cursor, ".")
		tick, err := strconv.ParseInt(tickText, 10, 64)
		if err == nil {
			skip, err = strconv.Atoi(skipText)
		}
		if err != nil || skip < 0 || skip > maxSelected*10 {
			return nil, "", badFilter("after: %q is no place in the list", cursor)
		}
		passedTick = tick
		until := time.UnixMicro(tick + 1)
		if options.Before.IsZero() || until.Before(options.Before) {
			options.Before = until
		}
	}
	options.Limit = skip + limit + 1
	runs, err := s.scheduler.ListRuns(&options)
	if err != nil {
		return nil, "", err
	}
	runs = runs[min(skip, len(runs)):]
	if len(runs) <= limit {
		return runs, "", nil
	}
	last := runs[limit-1].Tick
	passed := 0
	for i := limit - 1; i >= 0 && runs[i].Tick.Equal(last); i-- {
		passed++
	}
	if last.UnixMicro() == passedTick {
		passed += skip
	}
	return runs[:limit], fmt.Sprintf("%d.%d", last.UnixMicro(), passed), nil
}

type processesPage struct {
	*page
	Processes []processView
}

// processView is a process as it is shown.
type processView struct {
	Name, Version, Offset, Heartbeat string
	Since                            instant
	Leads, Self, Suspect             bool
}

func (c *console) processes(r *request) error {
	p := r.page
	p.Title, p.Section = "Processes", "processes"
	return c.draw(r, "processes", processesPage{page: p})
}

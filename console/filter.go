package console

import (
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/nbena/smallben"
)

// filter selects jobs. Its zero value selects all of them.
type filter struct {
	State       string // "", or one of states
	Outcome     string // of the last run; "failed" stands for three
	IDs         []int64
	Groups      []int64
	SuperGroups []int64
}

var states = []string{"scheduled", "paused", "running", "waiting", "undecodable"}

// parseFilter reads the filter that a query or a form has.
func parseFilter(values url.Values) (f filter, err error) {
	f.State, f.Outcome = values.Get("state"), values.Get("outcome")
	if f.State != "" && !slices.Contains(states, f.State) {
		return f, badFilter("state %q is none of %s", f.State, enumerate(states))
	}
	if _, ok := outcomesOf(f.Outcome); !ok {
		return f, badFilter("there is no outcome %q", f.Outcome)
	}
	for _, ids := range []struct {
		name string
		to   *[]int64
	}{{"job", &f.IDs}, {"group", &f.Groups}, {"super", &f.SuperGroups}} {
		if *ids.to, err = parseIDs(values.Get(ids.name)); err != nil {
			return f, badFilter("%s: %v", ids.name, err)
		}
	}
	return f, nil
}

func badFilter(text string, args ...any) error {
	return refusef(http.StatusBadRequest, "That filter does not work", "%s", fmt.Sprintf(text, args...))
}

// parseIDs reads ids with commas or spaces between them; nil is none.
func parseIDs(text string) (ids []int64, err error) {
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || isSpace(r) }) {
		id, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is no id: ids are whole numbers, with commas between them", word)
		}
		if ids = append(ids, id); len(ids) > maxSelected {
			return nil, fmt.Errorf("more than %d ids", maxSelected)
		}
	}
	return ids, nil
}

func idList(ids []int64) string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = itoa(id)
	}
	return strings.Join(texts, ", ")
}

// query is the filter as the query of a link; more are names and values.
func (f filter) query(more ...string) template.URL {
	values := url.Values{}
	for _, field := range f.Fields() {
		values.Set(field.Name, field.Value)
	}
	for i := 0; i+1 < len(more); i += 2 {
		values.Set(more[i], more[i+1])
	}
	return template.URL(values.Encode()) // which escapes what is in it
}

// Field is a field of a form.
type formField struct{ Name, Value string }

// Fields are the parts of the filter that are set.
func (f filter) Fields() (fields []formField) {
	for _, field := range []formField{
		{"state", f.State}, {"outcome", f.Outcome}, {"job", idList(f.IDs)}, {"group", idList(f.Groups)}, {"super", idList(f.SuperGroups)},
	} {
		if field.Value != "" {
			fields = append(fields, field)
		}
	}
	return fields
}

// Query is the filter as the query of a link.
func (f filter) Query() template.URL { return f.query() }

// Active reports whether the filter selects at all.
func (f filter) Active() bool { return len(f.Fields()) > 0 }

// IDText, GroupText and SuperText are what the form shows.
func (f filter) IDText() string    { return idList(f.IDs) }
func (f filter) GroupText() string { return idList(f.Groups) }
func (f filter) SuperText() string { return idList(f.SuperGroups) }

// Words says which jobs are selected.
func (f filter) Words() string {
	var items []string
	if f.State != "" {
		items = append(items, f.State)
	}
	if f.Outcome != "" {
		items = append(items, "last run "+viewChoice(f.Outcome))
	}
	for _, ids := range []struct {
		name string
		ids  []int64
	}{{"id", f.IDs}, {"group", f.Groups}, {"super-group", f.SuperGroups}} {
		if ids.ids != nil {
			items = append(items, ids.name+" "+idList(ids.ids))
		}
	}
	if items == nil {
		return "all jobs"
	}
	return "jobs with " + strings.Join(items, "; ")
}

func viewChoice(outcome string) string {
	if outcome == "failed" {
		return outcome
	}
	return viewOutcome(smallben.Outcome(outcome)).Label
}

// options are the part of the filter that the database decides. None says that
// nothing can match.
func (c *console) filterOptions(f filter) (options smallben.ListJobsOptions, err error) {
	options = smallben.ListJobsOptions{JobIDs: f.IDs, GroupIDs: f.Groups, SuperGroupIDs: f.SuperGroups}
	switch f.State {
	case "scheduled", "paused":
		paused := f.State == "paused"
		options.Paused = &paused
	case "running":
		running, err := c.source.runningJobs()
		if err != nil {
			return options, err
		}
		options.JobIDs = among(running, f.IDs)
	case "waiting":
		waiting, err := c.source.waitingJobs()
		if err != nil {
			return options, err
		}
		options.JobIDs = among(waiting, f.IDs)
	case "undecodable":
		options.JobIDs = among(c.source.status().Undecodable, f.IDs)
	}
	return options, nil
}

// among are those of ids that are in chosen too, or all if that is nil. It is not nil.
func among(ids, chosen []int64) []int64 {
	wanted := make(map[int64]bool, len(chosen))
	for _, id := range chosen {
		wanted[id] = true
	}
	kept := make([]int64, 0, len(ids))
	for _, id := range ids {
		if chosen == nil || wanted[id] {
			kept = append(kept, id)
		}
	}
	return kept
}

// keeps decides what the database does not.
func (f filter) keeps(j *listed) bool {
	switch f.State {
	case "scheduled", "paused":
		if j.Err != nil {
			return false
		}
	case "undecodable":
		if j.Err == nil {
			return false
		}
	}
	if f.Outcome == "" {
		return true
	}
	wanted, _ := outcomesOf(f.Outcome)
	return j.Err == nil && slices.Contains(wanted, j.lastOutcome())
}

// lastOutcome is the outcome of the last run that was neither missed nor skipped.
func (j *listed) lastOutcome() smallben.Outcome {
	return j.LastRun().Outcome
}

// maxLooked bounds how many jobs a page looks through for those that match.
const maxLooked = 2_000

// find reads the first jobs that match, of those after an id, limit at most. Where
// the database cannot select them it looks through so many jobs at most: next is then
// the id to go on after, and nil at the end.
func (c *console) find(f filter, after *int64, limit int) (found []listed, next *int64, err error) {
	options, err := c.filterOptions(f)
	if err != nil {
		return nil, nil, err
	}
	if f.Outcome != "" && c.source.recorded() {
		// Jobs whose last run went so have such a run: if those are few, no other
		// job can match.
		wanted, _ := outcomesOf(f.Outcome)
		few, candidates, err := c.source.fewJobsWith(wanted)
		if err != nil {
			return nil, nil, err
		}
		if few {
			options.JobIDs = among(candidates, options.JobIDs)
		}
	}
	found, next, err = c.look(f, options, after, limit)
	if err != nil {
		return nil, nil, err
	}
	return found, next, c.source.addRuns(found, stripLength)
}

// look is find, of jobs that match options. Where most of them match the filter, the
// first read finds all. Further ones are large, and leave out the runs of jobs, most of
// which will not be shown.
func (c *console) look(f filter, options smallben.ListJobsOptions, after *int64, limit int) (found []listed, next *int64, err error) {
	const large = 1000
	batch, runs := limit+1, stripLength
	if f.Outcome != "" {
		batch = 2 * limit // some do not match
	}
	for looked := 0; looked < maxLooked; {
		page, err := c.source.page(options, after, batch, runs)
		if err != nil {
			return nil, nil, err
		}
		for i := range page {
			if f.keeps(&page[i]) {
				found = append(found, page[i])
			}
		}
		if len(found) > limit {
			return found[:limit], &found[limit-1].ID, nil
		}
		if len(page) < batch {
			return found, nil, nil
		}
		after = &page[len(page)-1].ID
		looked += batch
		batch, runs = large, 0
	}
	return found, after, nil
}

// ids are the ids of all jobs that match, in order.
func (c *console) matching(f filter) ([]int64, error) {
	if f.Outcome != "" {
		return nil, badFilter("Jobs can be selected by their last outcome one by one only: take it out of the filter, or mark the jobs in the list.")
	}
	options, err := c.filterOptions(f)
	if err != nil {
		return nil, err
	}
	ids, err := c.source.ids(options)
	if f.State == "scheduled" || f.State == "paused" {
		undecodable := c.source.status().Undecodable
		ids = slices.DeleteFunc(ids, func(id int64) bool {
			_, held := slices.BinarySearch(undecodable, id)
			return held
		})
	}
	return ids, err
}

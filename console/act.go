package console

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/nbena/smallben"
)

// verbView is a verb as it is shown.
type verbView struct {
	Verb        Verb
	Label, Done string
	asks        string // with the number of jobs for %s
	Means       string // what will happen
	Dangerous   bool   // it is asked for twice
}

var verbs = []verbView{
	{Run, "Run now", "Started", "Run %s now", "Each runs once, at once, whatever its schedule, paused or not. The overlap settings hold: a job that is running may skip this run, or run it later.", false},
	{Pause, "Pause", "Paused", "Pause %s", "They do not run until they are resumed. A run in progress goes on.", false},
	{Resume, "Resume", "Resumed", "Resume %s", "They run at their next tick. What they were to run while they were paused is not made up for.", false},
	{Cancel, "Cancel runs", "Asked for the end of the runs of", "Cancel the runs of %s", "The contexts of their runs in progress end, in every process. A job that takes no notice of its context runs on.", true},
	{Delete, "Delete", "Deleted", "Delete %s", "They are gone for good, with their input. A run in progress goes on, and runs that are recorded stay in the record.", true},
}

func viewVerbs(wanted ...Verb) (views []verbView) {
	for _, verb := range wanted {
		for _, view := range verbs {
			if view.Verb == verb {
				views = append(views, view)
			}
		}
	}
	return views
}

// notice says what was done, after a redirection: of it only a verb and a number are
// taken.
func notice(query url.Values) string {
	n, err := strconv.Atoi(query.Get("n"))
	if err != nil || n < 1 {
		return ""
	}
	switch verb := Verb(query.Get("done")); verb {
	case EditExpression:
		return "The expression is changed. It holds from now on."
	case EditInput:
		return "The input is changed. The next run gets it."
	default:
		for _, view := range viewVerbs(verb) {
			return view.Done + " " + plural(n, "job") + "."
		}
	}
	return ""
}

// selection is which jobs an action is about: those that are named, or all that
// match a filter.
type selection struct {
	Verb   verbView
	All    bool
	Filter filter
	IDs    []int64
	Gone   int // of those that were named
}

// Digest tells two sets of jobs apart.
func (s *selection) Digest() string {
	sum := sha256.New()
	for _, id := range s.IDs {
		_ = binary.Write(sum, binary.BigEndian, id) // to a hash it never fails
	}
	return hex.EncodeToString(sum.Sum(nil)[:12])
}

// Count is how many jobs, and Asks what is to be done to them, in words.
func (s *selection) Count() string { return plural(len(s.IDs), "job") }
func (s *selection) Asks() string  { return fmt.Sprintf(s.Verb.asks, s.Count()) }

func (c *console) parseSelection(values url.Values) (*selection, error) {
	view := viewVerbs(Verb(values.Get("verb")))
	if view == nil {
		return nil, refusef(http.StatusBadRequest, "There is no such action", "Nothing was changed.")
	}
	s := &selection{Verb: view[0], All: values.Get("scope") == "all"}
	var err error
	if s.Filter, err = parseFilter(values); err != nil {
		return nil, err
	}
	if s.All {
		s.IDs, err = c.matching(s.Filter)
		return s, err
	}
	for _, text := range values["id"] {
		id, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, refusef(http.StatusBadRequest, "That is no id", "Nothing was changed: ids are whole numbers, and %q is none.", text)
		}
		s.IDs = append(s.IDs, id)
	}
	slices.Sort(s.IDs)
	s.IDs = slices.Compact(s.IDs)
	if len(s.IDs) > maxSelected {
		return nil, refusef(http.StatusBadRequest, "Too many jobs are selected", "Nothing was changed: at most %d can be named. Select all that match a filter instead.", maxSelected)
	}
	return s, nil
}

type confirmPage struct {
	*page
	Selection *selection
	Sample    []jobView
	More      int
	Back      string
	Changed   string // what differs from what was confirmed
}

func (c *console) confirm(r *request) error {
	query := r.URL.Query()
	s, err := c.parseSelection(query)
	if err != nil {
		return err
	}
	if !s.All && len(s.IDs) > 0 {
		named := len(s.IDs)
		if s.IDs, err = c.source.ids(smallben.ListJobsOptions{JobIDs: s.IDs}); err != nil {
			return err
		}
		s.Gone = named - len(s.IDs)
	}
	return c.ask(r, s, localPath(query.Get("back")), "")
}

// ask draws the page that says how many jobs it is about.
func (c *console) ask(r *request, s *selection, back, changed string) error {
	if back == "" {
		back = "jobs?" + string(s.Filter.query())
	}
	if len(s.IDs) == 0 {
		text := "Nothing was changed. Mark the jobs that you mean, or choose all that match."
		if s.All {
			text = "Nothing was changed: no job matches any more."
		}
		return refusef(http.StatusUnprocessableEntity, "No job is selected", "%s", text)
	}
	if err := c.allowed(r.Request, s.Verb.Verb, s.IDs...); err != nil {
		return refusef(http.StatusForbidden, "You may not do that", "Nothing was changed: %v.", err)
	}
	const shown = 10
	sample, err := c.source.page(smallben.ListJobsOptions{JobIDs: s.IDs[:min(shown, len(s.IDs))]}, nil, shown, 0)
	if err != nil {
		return err
	}
	r.page.Title, r.page.Section = s.Asks(), "jobs"
	view := confirmPage{page: r.page, Selection: s, Back: back, Changed: changed, More: max(0, len(s.IDs)-shown)}
	for i := range sample {
		view.Sample = append(view.Sample, r.page.job(&sample[i]))
	}
	return c.draw(r, "confirm", view)
}

// maxAbandon is how many seconds a run that is cancelled may be given.
const maxAbandon = 24 * 60 * 60

// act does what was confirmed, to the jobs that it was confirmed for and to no other.
func (c *console) act(r *request) error {
	if err := r.ParseForm(); err != nil {
		return badForm(err)
	}
	s, err := c.parseSelection(r.PostForm)
	if err != nil {
		return err
	}
	back := localPath(r.PostForm.Get("back"))
	if s.All && (len(s.IDs) == 0 || s.Digest() != r.PostForm.Get("digest")) {
		r.status = http.StatusConflict
		return c.ask(r, s, back, "Other jobs match now than when you were asked: there were "+was(r.PostForm.Get("count"))+", and there are "+strconv.Itoa(len(s.IDs))+". Nothing was changed.")
	}
	if len(s.IDs) == 0 {
		return c.ask(r, s, back, "")
	}
	var abandonAfter time.Duration
	if text := r.PostForm.Get("abandon"); text != "" && s.Verb.Verb == Cancel {
		seconds, err := strconv.Atoi(text)
		if err != nil || seconds < 1 || seconds > maxAbandon {
			return refusef(http.StatusUnprocessableEntity, "That is no time to give runs up after", "Nothing was changed: give it in seconds, from 1 to %d, or leave it empty.", maxAbandon)
		}
		abandonAfter = time.Duration(seconds) * time.Second
	}
	var remarks []string
	err = c.perform(r, s.Verb.Verb, s.IDs, func() (err error) {
		remarks, err = c.source.change(s.Verb.Verb, s.IDs, abandonAfter)
		return err
	})
	if err != nil {
		return err
	}
	if len(remarks) > 0 {
		return &problem{
			status: http.StatusOK, Heading: fmt.Sprintf("%d of %s started", len(s.IDs)-len(remarks), plural(len(s.IDs), "job")),
			Text: "What is not named here was started. The others:", Details: atMost(remarks),
		}
	}
	to, query := "jobs", string(s.Filter.query("done", string(s.Verb.Verb), "n", strconv.Itoa(len(s.IDs))))
	if parsed, err := url.Parse(back); back != "" && err == nil && s.Verb.Verb != Delete {
		values := parsed.Query()
		values.Set("done", string(s.Verb.Verb))
		values.Set("n", strconv.Itoa(len(s.IDs)))
		to, query = parsed.Path, values.Encode()
	}
	return r.redirect(to + "?" + query)
}

// was is the number that a form has.
func was(text string) string {
	if n, err := strconv.Atoi(text); err == nil {
		return strconv.Itoa(n)
	}
	return "others"
}

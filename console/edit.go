package console

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nbena/smallben"
)

type expressionPage struct {
	*page
	Job        jobView
	Expression string
	Words      string
	InZone     string
	Ticks      []tickView
	Refused    string
	Previewed  bool
	Same       bool
	Updated    string
}

// previewTicks is how many ticks a preview shows.
const previewTicks = 5

// editable finds a job that may be edited so by whom asks.
func (c *console) editable(r *request, verb Verb) (*listed, error) {
	id, err := c.pathID(r)
	if err != nil {
		return nil, err
	}
	if err := c.allowed(r.Request, verb, id); err != nil {
		return nil, refusef(http.StatusForbidden, "You may not do that", "Nothing was changed: %v.", err)
	}
	j, err := c.source.job(id)
	if err != nil {
		return nil, err
	}
	if j.Err != nil {
		return nil, &problem{
			status: http.StatusConflict, Heading: "Job " + itoa(id) + " does not decode",
			Text: "Nothing was changed: a job that this program cannot decode can be paused and deleted, and nothing else.", Details: []string{j.Err.Error()},
		}
	}
	return j, nil
}

func (c *console) expressionForm(r *request) error {
	j, err := c.editable(r, EditExpression)
	if err != nil {
		return err
	}
	text, previewed := j.CronExpression, false
	if r.URL.Query().Has("expression") {
		text, previewed = r.URL.Query().Get("expression"), true
	}
	return c.previewExpression(r, j, text, previewed, "")
}

// previewExpression draws the form, with the next ticks of an expression or why it is
// refused.
func (c *console) previewExpression(r *request, j *listed, text string, previewed bool, refused string) error {
	p := r.page
	p.Title, p.Section = "Expression of job "+itoa(j.ID), "jobs"
	view := expressionPage{
		page: p, Job: p.job(j), Expression: text, Previewed: previewed, Refused: refused,
		Same: text == j.CronExpression, Updated: version(j.UpdatedAt()),
	}
	if refused == "" {
		ticks, err := c.source.nextRuns(text, previewTicks)
		if err != nil {
			view.Refused = reason(err)
			r.status = http.StatusUnprocessableEntity
		} else {
			view.Words, view.InZone = words(text), p.zoneOf(text)
			view.Ticks = p.ticks(text, ticks)
		}
	}
	return c.draw(r, "expression", view)
}

// reason is why something is refused, without the sentinel's own words.
func reason(err error) string {
	text := err.Error()
	if found := jobErrors(err); len(found) > 0 {
		text = found[0].Err.Error()
	}
	return strings.TrimPrefix(text, smallben.ErrInvalidJob.Error()+": ")
}

// version names a state of a job: its time of change.
func version(updated time.Time) string { return strconv.FormatInt(updated.UnixMicro(), 10) }

func (c *console) saveExpression(r *request) error {
	if err := r.ParseForm(); err != nil {
		return badForm(err)
	}
	j, err := c.editable(r, EditExpression)
	if err != nil {
		return err
	}
	text := r.PostForm.Get("expression")
	if r.PostForm.Get("updated") != version(j.UpdatedAt()) {
		r.status = http.StatusConflict
		return c.previewExpression(r, j, text, true, "the job was changed meanwhile, and nothing was saved. Its expression is now "+strconv.Quote(j.CronExpression))
	}
	err = c.perform(r, EditExpression, []int64{j.ID}, func() error {
		return c.source.update(smallben.UpdateOption{JobID: j.ID, CronExpression: &text})
	})
	if errors.Is(err, smallben.ErrInvalidJob) {
		r.status = http.StatusUnprocessableEntity
		return c.previewExpression(r, j, text, true, reason(err))
	}
	if err != nil {
		return err
	}
	return r.redirect("jobs/" + itoa(j.ID) + "?done=edit-expression&n=1")
}

type inputPage struct {
	*page
	Job     jobView
	Input   string
	Refused string
	Updated string
}

func (c *console) inputForm(r *request) error {
	if !c.options.ShowInput {
		return errHidden
	}
	j, err := c.editable(r, EditInput)
	if err != nil {
		return err
	}
	return c.askInput(r, j, inputOf(&j.Job), "")
}

var errHidden = refusef(http.StatusForbidden, "Inputs are hidden", "Nothing was changed: Options.ShowInput is not set.")

func (c *console) askInput(r *request, j *listed, text, refused string) error {
	r.page.Title, r.page.Section = "Input of job "+itoa(j.ID), "jobs"
	return c.draw(r, "input", inputPage{r.page, r.page.job(j), text, refused, version(j.UpdatedAt())})
}

func (c *console) saveInput(r *request) error {
	if err := r.ParseForm(); err != nil {
		return badForm(err)
	}
	if !c.options.ShowInput {
		return errHidden
	}
	j, err := c.editable(r, EditInput)
	if err != nil {
		return err
	}
	text := r.PostForm.Get("input")
	if r.PostForm.Get("updated") != version(j.UpdatedAt()) {
		r.status = http.StatusConflict
		return c.askInput(r, j, text, "the job was changed meanwhile, and nothing was saved. What you see is what you wrote")
	}
	input, err := parseInput(text)
	if err == nil {
		err = c.perform(r, EditInput, []int64{j.ID}, func() error {
			return c.source.update(smallben.UpdateOption{JobID: j.ID, JobOtherInputs: &input})
		})
	} else {
		err = fmt.Errorf("%w: %w", smallben.ErrInvalidJob, err)
	}
	if errors.Is(err, smallben.ErrInvalidJob) {
		r.status = http.StatusUnprocessableEntity
		return c.askInput(r, j, text, reason(err))
	}
	if err != nil {
		return err
	}
	return r.redirect("jobs/" + itoa(j.ID) + "?done=edit-input&n=1")
}

// inputOf is the input of a job as it is stored, indented.
func inputOf(j *smallben.Job) string {
	var stored json.RawMessage
	if err := j.DecodeInput(&stored); err != nil {
		return ""
	}
	var out bytes.Buffer
	if err := json.Indent(&out, stored, "", "  "); err != nil {
		return string(stored)
	}
	return out.String()
}

// parseInput reads the JSON of an input. Numbers are what a job gets after a restart,
// float64, except those that a float64 does not hold exactly: they are json.Number, so
// that all their digits are stored.
func parseInput(text string) (map[string]any, error) {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			line := 1 + strings.Count(text[:min(len(text), int(syntax.Offset))], "\n")
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("there is more than one JSON value")
	}
	input, ok := simplify(value).(map[string]any)
	if !ok {
		return nil, errors.New("an input is a JSON object: {…}")
	}
	return input, nil
}

// simplify makes a float64 of each number that it holds exactly.
func simplify(value any) any {
	switch value := value.(type) {
	case map[string]any:
		for key := range value {
			value[key] = simplify(value[key])
		}
	case []any:
		for i := range value {
			value[i] = simplify(value[i])
		}
	case json.Number:
		if f, err := value.Float64(); err == nil && !math.IsInf(f, 0) && sameNumber(value.String(), f) {
			return f
		}
	}
	return value
}

// sameNumber reports whether the shortest text of f is the number that text is.
func sameNumber(text string, f float64) bool {
	const longest = 40 // digits and exponent: more are not compared
	if len(text) > longest {
		return false
	}
	written := strconv.FormatFloat(f, 'g', -1, 64)
	if _, exponent, ok := strings.Cut(strings.ToLower(text), "e"); ok {
		if n, err := strconv.Atoi(exponent); err != nil || n < -400 || n > 400 {
			return false
		}
	}
	a, okA := new(big.Rat).SetString(text)
	b, okB := new(big.Rat).SetString(written)
	return okA && okB && a.Cmp(b) == 0
}

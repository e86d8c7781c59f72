package console

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nbena/smallben"
)

// page is what every page has. Templates call its methods.
type page struct {
	App, Title, Section string
	Root                string // the path to the root of the console, relative
	Here                string // from the root to this page, with its query
	ReadOnly            bool
	Recorded            bool
	Started             bool
	ShowInput           bool
	Refresh             int // milliseconds; 0 is never
	Notice              string
	Zone                string
	OwnZone             bool // the reader asked for it

	now     time.Time
	zone    *time.Location
	console *console
}

// Page is the page itself, for parts of templates that are given one.
func (p *page) Page() *page { return p }

const zoneCookie = "smallben_zone"

func (c *console) newPage(r *http.Request) *page {
	status := c.source.status()
	p := &page{
		App:       c.options.Title,
		Root:      "./" + strings.Repeat("../", max(0, strings.Count(r.URL.Path, "/")-1)),
		Here:      strings.TrimPrefix(r.URL.Path, "/"),
		ReadOnly:  c.options.Authorize == nil,
		ShowInput: c.options.ShowInput,
		Recorded:  status.Runs.Record,
		Started:   status.Started,
		Refresh:   max(0, int(c.options.Refresh.Milliseconds())),
		now:       time.Now(),
		zone:      status.SchedulerConfig.WithLocation,
		console:   c,
	}
	if r.URL.RawQuery != "" {
		p.Here += "?" + r.URL.RawQuery
	}
	if cookie, err := r.Cookie(zoneCookie); err == nil {
		if zone, ok := loadZone(cookie.Value); ok {
			p.zone, p.OwnZone = zone, true
		}
	}
	p.Zone = zoneName(p.zone)
	return p
}

// zoneName names a zone for readers.
func zoneName(zone *time.Location) string {
	if zone == time.Local {
		return "the machine's time"
	}
	return zone.String()
}

// loadZone finds a zone of the time zone database.
func loadZone(name string) (*time.Location, bool) {
	const longest = 64
	if name == "" || name == "Local" || len(name) > longest {
		return nil, false
	}
	zone, err := time.LoadLocation(name)
	return zone, err == nil
}

// setZone keeps the zone that a reader wants to see times in, in a cookie.
func (c *console) setZone(r *request) error {
	if err := r.ParseForm(); err != nil {
		return badForm(err)
	}
	name := strings.TrimSpace(r.PostForm.Get("zone"))
	cookie := &http.Cookie{Name: zoneCookie, Value: name, MaxAge: 365 * 24 * 3600, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	if name == "" {
		cookie.MaxAge = -1
	} else if _, ok := loadZone(name); !ok {
		return refusef(http.StatusUnprocessableEntity, "There is no such time zone",
			"%q is not in the time zone database. Its names are like Europe/Rome, America/New_York and UTC.", name)
	}
	http.SetCookie(r.w, cookie)
	return r.redirect(localPath(r.PostForm.Get("back")))
}

// localPath is a path below the root of the console, or the root.
func localPath(path string) string {
	if strings.HasPrefix(path, "/") || strings.HasPrefix(path, "\\") || strings.ContainsAny(strings.SplitN(path, "?", 2)[0], ":\\") ||
		strings.Contains(path, "..") || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' }) {
		return ""
	}
	return path
}

func badForm(err error) error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return err
	}
	return &problem{status: http.StatusBadRequest, Heading: "The form could not be read", Text: "Nothing was changed.", cause: err}
}

// Asset is the link to an embedded file.
func (p *page) Asset(name string) string {
	return p.Root + "assets/" + name + "?v=" + p.console.assets[name].version
}

// instant is a time as it is shown.
type instant struct{ ISO, Text, Relative string }

// Time shows a time in the reader's zone, or the scheduler's.
func (p *page) Time(t time.Time) instant { return p.timeIn(t, p.zone) }

func (p *page) timeIn(t time.Time, zone *time.Location) instant {
	if t.IsZero() {
		return instant{}
	}
	layout := "Mon 2 Jan 15:04:05"
	if t.In(zone).Year() != p.now.In(zone).Year() {
		layout = "Mon 2 Jan 2006 15:04:05"
	}
	return instant{t.UTC().Format(time.RFC3339Nano), t.In(zone).Format(layout), relative(t.Sub(p.now))}
}

// Now is when the page was drawn.
func (p *page) Now() instant { return p.Time(p.now) }

// relative says how far away a time is.
func relative(d time.Duration) string {
	switch {
	case d > -time.Second && d < time.Second:
		return "now"
	case d < 0:
		return roughly(-d) + " ago"
	}
	return "in " + roughly(d)
}

// roughly writes a duration with its largest units.
func roughly(d time.Duration) string {
	const day = 24 * time.Hour
	two := func(large time.Duration, largeUnit string, small time.Duration, smallUnit string) string {
		text := fmt.Sprintf("%d %s", d/large, largeUnit)
		if rest := d % large / small; rest > 0 && d < 10*large {
			text += fmt.Sprintf(" %d %s", rest, smallUnit)
		}
		return text
	}
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return two(time.Minute, "min", time.Second, "s")
	case d < day:
		return two(time.Hour, "h", time.Minute, "min")
	case d < 2*day:
		return two(day, "day", time.Hour, "h")
	}
	return two(day, "days", time.Hour, "h")
}

// took writes how long something took.
func took(d time.Duration) string {
	switch {
	case d < 0:
		return "−" + took(-d)
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d/time.Microsecond)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d/time.Millisecond)
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return roughly(d)
}

// What is stored may be long: a page is not to become so for it. In bytes.
const (
	maxName  = 300
	maxError = 4_000
)

// cut bounds a text.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// outcomes are the outcomes of runs, each with a word for people, and one that styles
// it. One that is not among them is shown as it is stored.
var outcomes = []struct {
	outcome                  smallben.Outcome
	label, class, why, brief string
}{
	{smallben.OutcomeOK, "ok", "ok", "It returned no error.", ""},
	{smallben.OutcomeError, "failed", "failed", "The job returned an error.", ""},
	{smallben.OutcomePanic, "panicked", "failed", "The job panicked. The log of the process has the stack.", ""},
	{smallben.OutcomeTimeout, "timed out", "failed", "The job returned an error after its time was up.", ""},
	{smallben.OutcomeLost, "lost", "lost", "The process died, or was taken for dead, before the run had ended. It may have been run in part, or whole.", "its process died"},
	{smallben.OutcomeMissed, "missed", "lost", "No process ran these ticks: all were down, the database did not answer, or the job was changed at that moment.", "no process ran it"},
	{smallben.OutcomeSkipped, "skipped", "skipped", "The job was still running, or was paused, deleted or stopped while this run waited.", "its job was still running, or was paused meanwhile"},
	{smallben.OutcomeRunning, "running", "running", "It has not ended.", ""},
	{smallben.OutcomeWaiting, "waiting", "waiting", "It runs when its time has come, or when another run has ended.", ""},
	{smallben.OutcomeAbandoned, "given up", "lost", "It was cancelled, and given up when it did not end. It may still go on.", "it was given up, and may still go on"},
}

// outcomeView is an outcome as it is shown.
type outcomeView struct{ Label, Class, Why, Brief string }

func viewOutcome(outcome smallben.Outcome) outcomeView {
	for _, o := range outcomes {
		if o.outcome == outcome {
			return outcomeView{o.label, o.class, o.why, o.brief}
		}
	}
	return outcomeView{Label: string(outcome), Class: "skipped"}
}

// outcomesOf are the outcomes that a choice in a filter stands for; nil is any.
func outcomesOf(choice string) ([]smallben.Outcome, bool) {
	switch choice {
	case "":
		return nil, true
	case "failed":
		return []smallben.Outcome{smallben.OutcomeError, smallben.OutcomePanic, smallben.OutcomeTimeout}, true
	}
	for _, o := range outcomes {
		if string(o.outcome) == choice {
			return []smallben.Outcome{o.outcome}, true
		}
	}
	return nil, false
}

// runView is a run as it is shown.
type runView struct {
	JobID, GroupID, SuperGroupID int64
	Tick, Start, First, Due      instant
	Outcome                      outcomeView
	Process, Error               string
	Duration, Late               string
	Attempt, Missed              int
	Triggered, Running           bool
}

func (p *page) run(run *smallben.Run) runView {
	v := runView{
		JobID: run.JobID, GroupID: run.GroupID, SuperGroupID: run.SuperGroupID,
		Tick: p.Time(run.Tick), Start: p.Time(run.Start), First: p.Time(run.FirstTick),
		Outcome: viewOutcome(run.Outcome), Process: cut(run.Process, maxName), Error: cut(run.Error, maxError),
		Attempt: run.Attempt, Missed: run.Missed, Triggered: run.Triggered,
		Running: run.Outcome == smallben.OutcomeRunning,
	}
	switch {
	case run.Outcome == smallben.OutcomeWaiting:
		v.Due = p.Time(run.Due)
	case v.Running:
		v.Duration = "for " + took(p.now.Sub(run.Start))
	case started(run) && !run.End.IsZero():
		v.Duration = took(run.End.Sub(run.Start))
	}
	if started(run) && !run.Triggered {
		v.Late = took(run.Lateness())
	}
	return v
}

// started reports whether a run came to start.
func started(run *smallben.Run) bool {
	switch run.Outcome {
	case smallben.OutcomeMissed, smallben.OutcomeSkipped, smallben.OutcomeWaiting:
		return false
	}
	return !run.Start.IsZero()
}

func (p *page) runViews(runs []smallben.Run) []runView {
	views := make([]runView, len(runs))
	for i := range runs {
		views[i] = p.run(&runs[i])
	}
	return views
}

// jobView is a job as a table shows it.
type jobView struct {
	ID, GroupID, SuperGroupID int64
	Type                      string
	Expression, Words, Zone   string
	State, StateClass         string
	Running, Waiting          bool
	Next                      instant
	Last                      *runView
	Strip                     *strip
	Defect                    string
}

func (p *page) job(j *listed) jobView {
	v := jobView{ID: j.ID, GroupID: j.GroupID, SuperGroupID: j.SuperGroupID, Expression: cut(j.CronExpression, maxName)}
	v.Running, v.Waiting = j.Running(), j.NextAttempt().Attempt > 0
	switch {
	case j.Err != nil:
		v.State, v.StateClass, v.Defect = "undecodable", "failed", cut(j.Err.Error(), maxError)
	case j.Paused():
		v.State, v.StateClass = "paused", "paused"
	default:
		v.State, v.StateClass = "scheduled", "scheduled"
	}
	if j.Err == nil {
		v.Type = fmt.Sprintf("%T", j.Job.Job)
		v.Words = words(j.CronExpression)
		v.Zone = p.zoneOf(j.CronExpression)
		v.Next = p.Time(j.NextRun())
	}
	v.Strip = p.drawStrip(j.RecentRuns())
	if last, ok := j.last(p.Recorded); ok {
		run := p.run(&last)
		v.Last = &run
	}
	return v
}

// zoneOf is the zone in which an expression is read; "" if that does not matter.
func (p *page) zoneOf(expression string) string {
	e, ok := parse(expression)
	switch {
	case !ok || e.every > 0 || !e.at.IsZero():
		return ""
	case e.zone != "":
		return e.zone
	}
	return zoneName(p.console.source.status().SchedulerConfig.WithLocation)
}

// last is the newest run of a job that ran or is to be known of.
func (j *listed) last(recorded bool) (smallben.Run, bool) {
	if runs := j.RecentRuns(); recorded && len(runs) > 0 {
		return runs[len(runs)-1], true
	}
	run := j.LastRun()
	run.GroupID, run.SuperGroupID = j.GroupID, j.SuperGroupID
	return run, !run.Tick.IsZero()
}

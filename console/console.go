// Package console is a web console for a SmallBen: a page of the service that it
// lives in, for people who want to know why a job did not run last night, to pause a
// customer's jobs, to mend an expression or to run a job by hand.
//
//	mux.Handle("/cron/", http.StripPrefix("/cron", console.New(scheduler, nil)))
//
// With nil options it shows and changes nothing: [Options.Authorize] says who may do
// what. It decides about actions only. Who may look is decided by what stands before
// the handler, which is to ask for a name and a password, or for a session.
//
// Pages are drawn on the server, work without JavaScript, and ask no other host for
// anything. They link to one another by relative paths, so that any prefix will do.
package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nbena/smallben"
)

// Options configure a console. The zero value works: it is read-only, and hides what
// jobs are given.
type Options struct {
	// Authorize decides on each action, before it is done: nil means yes, and any
	// other error no; its text is shown to whom it refuses. It is also asked when a
	// page is drawn, so that buttons that would be refused are left out: it has to be
	// quick, and to have no effects. It may be called from several goroutines.
	// Nil means that there are no actions: the console is read-only.
	Authorize func(r *http.Request, action Action) error

	// User names who acts, for the log.
	// Nil means that the log does not say.
	User func(r *http.Request) string

	// Logger receives a line for each action: who, what, which jobs, and what came
	// of it.
	// Nil means slog.Default().
	Logger *slog.Logger

	// ShowInput shows the inputs of jobs and the fields of their values to everybody
	// who may look, and lets inputs be edited.
	// False means that both stay hidden: they often hold what is secret.
	ShowInput bool

	// TrustedOrigins may send actions besides the origin of the console itself:
	// "https://ops.example.com". It is for proxies that change the Host of requests
	// and are used without TLS. Others are refused.
	// Nil means none.
	TrustedOrigins []string

	// Title stands at the top of each page.
	// Empty means "SmallBen".
	Title string

	// Refresh is how often a page that is open is drawn anew, where there is
	// JavaScript.
	// Zero means 5 s, negative never.
	Refresh time.Duration
}

// Verb is what an Action does.
type Verb string

// The verbs.
const (
	Pause          Verb = "pause"
	Resume         Verb = "resume"
	Run            Verb = "run"    // now, once
	Cancel         Verb = "cancel" // the runs in progress
	Delete         Verb = "delete"
	EditExpression Verb = "edit-expression"
	EditInput      Verb = "edit-input"
)

// Action is what somebody wants to do.
type Action struct {
	Verb Verb
	// JobIDs are the jobs that it is about, in order: never none, and all of them.
	JobIDs []int64
}

// String says what is to be done to how many jobs.
func (a Action) String() string {
	return string(a.Verb) + " " + plural(len(a.JobIDs), "job")
}

//go:embed assets templates
var files embed.FS

const (
	pageSize     = 50      // jobs, and runs, on a page
	maxSelected  = 1_000   // ids that a request may name
	maxForm      = 256_000 // bytes of the body of a request, and
	maxInputForm = 4 << 20 // of one with an input: at most 1 MiB, each byte written as three
	stripLength  = 14      // runs in the strip of a job
	maxQuery     = 32_000  // bytes of a query
)

// console is the handler.
type console struct {
	source    *source
	options   Options
	templates map[string]*template.Template
	assets    map[string]asset
}

type asset struct {
	contentType, version string
	content              []byte
}

// New returns the console of a scheduler, which need not be started. Nil options are
// the zero Options. It panics if scheduler is nil, or if an origin in TrustedOrigins
// is none.
func New(scheduler *smallben.SmallBen, options *Options) http.Handler {
	if scheduler == nil {
		panic("console: New needs a scheduler, and was given nil")
	}
	if options == nil {
		options = &Options{}
	}
	c := &console{source: &source{scheduler: scheduler}, options: *options}
	if c.options.Title == "" {
		c.options.Title = "SmallBen"
	}
	if c.options.Refresh == 0 {
		c.options.Refresh = 5 * time.Second
	}
	c.load()

	mux := http.NewServeMux()
	for pattern, handler := range map[string]func(*request) error{
		"GET /{$}":                   c.overview,
		"GET /jobs":                  c.jobs,
		"GET /jobs/{id}":             c.job,
		"GET /jobs/{id}/expression":  c.expressionForm,
		"POST /jobs/{id}/expression": c.saveExpression,
		"GET /jobs/{id}/input":       c.inputForm,
		"POST /jobs/{id}/input":      c.saveInput,
		"GET /runs":                  c.runs,
		"GET /processes":             c.processes,
		"GET /confirm":               c.confirm,
		"POST /act":                  c.act,
		"POST /zone":                 c.setZone,
		"/":                          c.notFound,
	} {
		mux.Handle(pattern, c.route(handler))
	}
	mux.HandleFunc("GET /assets/{name}", c.asset)

	protection := http.NewCrossOriginProtection()
	for _, origin := range c.options.TrustedOrigins {
		if err := protection.AddTrustedOrigin(origin); err != nil {
			panic("console: TrustedOrigins: " + err.Error())
		}
	}
	protection.SetDenyHandler(c.route(func(*request) error {
		return refusef(http.StatusForbidden, "This request came from another site",
			"Nothing was changed. Open the console itself and try again. Behind a proxy that changes the host of requests, name its origin in Options.TrustedOrigins.")
	}))
	return secure(protection.Handler(mux))
}

// load reads what is embedded.
func (c *console) load() {
	c.assets = make(map[string]asset)
	for name, contentType := range map[string]string{
		"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml",
	} {
		content, err := fs.ReadFile(files, "assets/"+name)
		if err != nil {
			panic(err) // it is embedded
		}
		sum := sha256.Sum256(content)
		c.assets[name] = asset{contentType, hex.EncodeToString(sum[:6]), content}
	}
	c.templates = make(map[string]*template.Template)
	functions := template.FuncMap{"plural": plural, "add": func(a, b int) int { return a + b }, "dict": dict}
	shared := template.Must(template.New("").Funcs(functions).ParseFS(files, "templates/layout.html", "templates/parts.html"))
	pages, err := fs.Glob(files, "templates/page_*.html")
	if err != nil || len(pages) == 0 {
		panic("console: no templates")
	}
	for _, name := range pages {
		page := template.Must(template.Must(shared.Clone()).ParseFS(files, name))
		c.templates[strings.TrimSuffix(strings.TrimPrefix(path.Base(name), "page_"), ".html")] = page
	}
}

// dict gives a template several values: names and values in turn.
func dict(pairs ...any) map[string]any {
	values := make(map[string]any)
	for i := 0; i+1 < len(pairs); i += 2 {
		values[pairs[i].(string)] = pairs[i+1]
	}
	return values
}

// secure sets the headers of every answer.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("X-Frame-Options", "DENY")
		header.Set("Referrer-Policy", "same-origin")
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Cache-Control", "no-store")
		if r.URL.Path == "" {
			// Mounted without a slash at the end: relative links need one.
			requested, _, _ := strings.Cut(r.RequestURI, "?")
			header.Set("Location", "./"+path.Base(requested)+"/")
			w.WriteHeader(http.StatusPermanentRedirect)
			return
		}
		if len(r.URL.RawQuery) > maxQuery {
			http.Error(w, "The address is too long.", http.StatusRequestURITooLong)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (c *console) asset(w http.ResponseWriter, r *http.Request) {
	file, ok := c.assets[r.PathValue("name")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", file.contentType)
	if r.URL.Query().Get("v") == file.version {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file.content))
}

// request is a request while it is answered.
type request struct {
	*http.Request
	w      http.ResponseWriter
	page   *page
	status int // of the page; 0 is 200
}

// route makes a handler of a function whose error, if any, is the answer.
func (c *console) route(handle func(*request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limit := int64(maxForm)
		if strings.HasSuffix(r.URL.Path, "/input") {
			limit = maxInputForm
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		req := &request{Request: r, w: w, page: c.newPage(r)}
		err := handle(req)
		if err == nil {
			return
		}
		answer := c.explain(req, err)
		req.status = answer.status
		req.page.Title = answer.Heading
		if err := c.draw(req, "error", struct {
			*page
			Problem *problem
		}{req.page, answer}); err != nil {
			c.logger().Error("console: page not drawn", "path", r.URL.Path, "error", err)
		}
	})
}

func (c *console) notFound(*request) error {
	return refusef(http.StatusNotFound, "There is no such page", "")
}

// draw writes a page.
func (c *console) draw(r *request, name string, data any) error {
	var out bytes.Buffer
	if err := c.templates[name].ExecuteTemplate(&out, "layout", data); err != nil {
		// Nothing is written yet: half a page would be worse.
		http.Error(r.w, "The page could not be drawn. The log says why.", http.StatusInternalServerError)
		c.logger().Error("console: page not drawn", "page", name, "error", err)
		return nil
	}
	r.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	r.w.WriteHeader(max(r.status, http.StatusOK))
	_, _ = out.WriteTo(r.w) // the reader may have gone
	return nil
}

// redirect answers a form: relative to the root of the console.
func (r *request) redirect(to string) error {
	r.w.Header().Set("Location", r.page.Root+to)
	r.w.WriteHeader(http.StatusSeeOther)
	return nil
}

func (c *console) logger() *slog.Logger {
	if c.options.Logger != nil {
		return c.options.Logger
	}
	return slog.Default()
}

// allowed asks Authorize.
func (c *console) allowed(r *http.Request, verb Verb, ids ...int64) error {
	if c.options.Authorize == nil {
		return errReadOnly
	}
	return c.options.Authorize(r, Action{verb, slices.Clone(ids)})
}

var errReadOnly = errors.New("this console is read-only")

// perform does an action that may be done, and logs it.
func (c *console) perform(r *request, verb Verb, ids []int64, do func() error) error {
	attributes := []any{"verb", string(verb), "count", len(ids), "jobs", firstIDs(ids)}
	if c.options.User != nil {
		attributes = append(attributes, "user", c.options.User(r.Request))
	}
	if err := c.allowed(r.Request, verb, ids...); err != nil {
		c.logger().Warn("console action refused", append(attributes, "error", err)...)
		return &problem{
			status: http.StatusForbidden, Heading: "You may not do that",
			Text: "Nothing was changed: " + err.Error() + ".",
		}
	}
	err := do()
	if err != nil {
		c.logger().Warn("console action failed", append(attributes, "error", err)...)
		return err
	}
	c.logger().Info("console action", attributes...)
	return nil
}

// firstIDs bounds how many ids a line of the log names.
func firstIDs(ids []int64) []int64 {
	const most = 20
	return ids[:min(most, len(ids))]
}

// problem is an error that is meant for readers.
type problem struct {
	status        int
	Heading, Text string
	Details       []string // of single jobs
	cause         error
}

func (p *problem) Error() string { return p.Heading + ": " + p.Text }
func (p *problem) Unwrap() error { return p.cause }

func refusef(status int, heading, text string, args ...any) *problem {
	return &problem{status: status, Heading: heading, Text: fmt.Sprintf(text, args...)}
}

// explain says what happened, and what did not. What a database says goes to the
// log: not everybody who may look at jobs is to read it.
func (c *console) explain(r *request, err error) *problem {
	var known *problem
	var tooLarge *http.MaxBytesError
	changes := r.Method != http.MethodGet && r.Method != http.MethodHead
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &tooLarge):
		return refusef(http.StatusRequestEntityTooLarge, "That is too much", "Nothing was changed: a request may have %d bytes at most.", tooLarge.Limit)
	case errors.Is(err, smallben.ErrOutcomeUnknown):
		return refusef(http.StatusServiceUnavailable, "It is not known whether this happened",
			"The database did not say. SmallBen asks it again and follows what it says. Look at the jobs before you try again.")
	case c.source.missing(err):
		return &problem{status: http.StatusNotFound, Heading: "These jobs do not exist, or no longer", Text: unchanged(changes), Details: leaves(err)}
	case errors.Is(err, smallben.ErrUndecodable):
		return &problem{
			status: http.StatusConflict, Heading: "Some rows do not decode", Details: leaves(err),
			Text: unchanged(changes) + " A job that this program cannot decode can be paused and deleted, and nothing else.",
		}
	case errors.Is(err, smallben.ErrInvalidJob), errors.Is(err, smallben.ErrUpdateOptionInvalid):
		return &problem{status: http.StatusUnprocessableEntity, Heading: "That was refused", Text: unchanged(changes), Details: leaves(err)}
	}
	c.logger().Error("console: request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	if changes {
		return refusef(http.StatusServiceUnavailable, "It did not work", "Nothing was changed. The log of the service says why; you can try again.")
	}
	return refusef(http.StatusServiceUnavailable, "The database did not answer", "The log of the service says why. Jobs that are loaded go on running.")
}

func unchanged(changes bool) string {
	if changes {
		return "Nothing was changed."
	}
	return ""
}

// leaves are the first of the errors of single jobs in an error, or its own text.
func leaves(err error) []string {
	var texts []string
	for _, leaf := range jobErrors(err) {
		texts = append(texts, leaf.Error())
	}
	if len(texts) == 0 {
		return []string{err.Error()}
	}
	return atMost(texts)
}

// atMost bounds how many texts are shown.
func atMost(texts []string) []string {
	const most = 20
	if len(texts) > most {
		return append(texts[:most:most], fmt.Sprintf("and %d more", len(texts)-most))
	}
	return texts
}

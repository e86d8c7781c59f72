package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nbena/smallben"
)

// maxBody bounds the body of a request, in bytes.
const maxBody = 1 << 20

// api is the HTTP side of the service.
type api struct {
	scheduler  *smallben.SmallBen
	repository smallben.Repository
	replica    string // the name of this process
	recorded   bool   // runs are recorded
}

// handler returns the routes, with metrics at /metrics and the console at /console/.
// Each answer says whose it is: behind a load balancer that is not obvious.
func (a *api) handler(metrics, pages http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /jobs", a.route(a.create))
	mux.Handle("GET /jobs", a.route(a.list))
	mux.Handle("DELETE /jobs", a.route(a.deleteMatching))
	mux.Handle("POST /jobs/pause", a.route(a.pauseMatching))
	mux.Handle("POST /jobs/resume", a.route(a.resumeMatching))
	mux.Handle("POST /jobs/run", a.route(a.runMatching))
	mux.Handle("GET /jobs/{id}", a.route(a.get))
	mux.Handle("PATCH /jobs/{id}", a.route(a.update))
	mux.Handle("DELETE /jobs/{id}", a.route(a.delete))
	mux.Handle("POST /jobs/{id}/pause", a.route(a.pause))
	mux.Handle("POST /jobs/{id}/resume", a.route(a.resume))
	mux.Handle("POST /jobs/{id}/run", a.route(a.run))
	mux.Handle("GET /jobs/{id}/next", a.route(a.next))
	mux.Handle("GET /next", a.route(a.preview))
	mux.Handle("GET /runs", a.route(a.runs))
	mux.Handle("GET /healthz", a.route(a.health))
	mux.Handle("GET /metrics", metrics)
	mux.Handle("/console/", http.StripPrefix("/console", pages))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Replica", a.replica)
		mux.ServeHTTP(w, r)
	})
}

// job is a job in the bodies of requests and answers. One of Log and Webhook is
// set.
type job struct {
	ID             int64          `json:"id"`
	GroupID        int64          `json:"group_id"`
	SuperGroupID   int64          `json:"super_group_id"`
	CronExpression string         `json:"cron_expression"`
	Log            *Log           `json:"log,omitempty"`
	Webhook        *Webhook       `json:"webhook,omitempty"`
	Input          map[string]any `json:"input,omitempty"`
}

// storedJob is a job as lists show it. Running and LastRun are of any replica if
// runs are recorded, and of this process if not.
type storedJob struct {
	job
	Report  *Report   `json:"report,omitempty"` // the service's own job
	Policy  string    `json:"policy,omitempty"` // of a job that has one of its own
	Paused  bool      `json:"paused"`
	Running bool      `json:"running"`
	NextRun time.Time `json:"next_run,omitzero"`
	LastRun *jobRun   `json:"last_run,omitempty"`
	// NextAttempt is what waits.
	NextAttempt *jobRun   `json:"next_attempt,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
	UpdatedAt   time.Time `json:"updated_at"`
}

func (a *api) create(w http.ResponseWriter, r *http.Request) error {
	var in job
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	task, err := in.task()
	if err != nil {
		return &smallben.JobError{JobID: in.ID, Err: err}
	}
	err = a.scheduler.AddJobs([]smallben.Job{{
		ID:             in.ID,
		GroupID:        in.GroupID,
		SuperGroupID:   in.SuperGroupID,
		CronExpression: in.CronExpression,
		Job:            task,
		JobInput:       in.Input,
	}})
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/jobs/"+strconv.FormatInt(in.ID, 10))
	return writeJSON(w, http.StatusCreated, in)
}

// task is what the job runs.
func (j *job) task() (smallben.CronJob, error) {
	switch {
	case (j.Log == nil) == (j.Webhook == nil):
		return nil, badRequestf("give one of log and webhook")
	case j.Log != nil:
		return j.Log, j.Log.validate()
	default:
		return j.Webhook, j.Webhook.validate()
	}
}

func (a *api) list(w http.ResponseWriter, r *http.Request) error {
	f, _, err := parseFilter(r, "id", "group", "super_group", "paused")
	if err != nil {
		return err
	}
	jobs, err := a.scheduler.ListJobs(&smallben.ListJobsOptions{
		JobIDs: f.JobIDs, GroupIDs: f.GroupIDs, SuperGroupIDs: f.SuperGroupIDs, Paused: f.Paused,
	})
	answer := struct {
		Jobs  []storedJob `json:"jobs"`
		Error string      `json:"error,omitempty"`
	}{Jobs: make([]storedJob, 0, len(jobs))}
	switch {
	case errors.Is(err, smallben.ErrUndecodable) && !a.isMissing(err):
		answer.Error = err.Error() // the other jobs are there all the same
	case err != nil:
		return err
	}
	for i := range jobs {
		answer.Jobs = append(answer.Jobs, stored(&jobs[i]))
	}
	return writeJSON(w, http.StatusOK, answer)
}

func (a *api) get(w http.ResponseWriter, r *http.Request) error {
	j, err := a.find(r)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, stored(j))
}

// find returns the job that the path names.
func (a *api) find(r *http.Request) (*smallben.Job, error) {
	id, err := pathID(r)
	if err != nil {
		return nil, err
	}
	jobs, err := a.scheduler.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{id}})
	if err != nil {
		return nil, err
	}
	return &jobs[0], nil
}

func stored(j *smallben.Job) storedJob {
	out := storedJob{
		job: job{
			ID:             j.ID,
			GroupID:        j.GroupID,
			SuperGroupID:   j.SuperGroupID,
			CronExpression: j.CronExpression,
			Input:          j.JobInput,
		},
		Paused:    j.Paused(),
		Running:   j.Running(),
		NextRun:   j.NextRun(),
		CreatedAt: j.CreatedAt(),
		UpdatedAt: j.UpdatedAt(),
	}
	switch task := j.Job.(type) {
	case *Log:
		out.Log = task
	case *Webhook:
		out.Webhook, out.Policy = task, j.RunOptions().String()
	case *Report:
		out.Report = task
	}
	if waiting := j.NextAttempt(); waiting.Attempt > 0 {
		next := recordedRun(&waiting)
		out.NextAttempt = &next
	}
	if last, ok := lastRun(j); ok {
		out.LastRun = &last
		out.Running = out.Running || last.Outcome == smallben.OutcomeRunning
	}
	return out
}

// next shows when a job would run, paused or not.
func (a *api) next(w http.ResponseWriter, r *http.Request) error {
	n, err := parseCount(r)
	if err != nil {
		return err
	}
	j, err := a.find(r)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, nextRuns{append([]time.Time{}, j.NextRuns(n)...)})
}

// preview shows when a job of an expression would run, or what is wrong with the
// expression: for a form in which a user types one.
func (a *api) preview(w http.ResponseWriter, r *http.Request) error {
	n, err := parseCount(r)
	if err != nil {
		return err
	}
	next, err := a.scheduler.NextRuns(r.URL.Query().Get("expression"), n)
	if err != nil {
		return badRequestf("%w", err)
	}
	return writeJSON(w, http.StatusOK, nextRuns{next})
}

type nextRuns struct {
	Next []time.Time `json:"next"`
}

func (a *api) update(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var change struct {
		CronExpression *string         `json:"cron_expression"`
		Input          *map[string]any `json:"input"`
	}
	if err := readJSON(w, r, &change); err != nil {
		return err
	}
	return done(w, a.scheduler.UpdateJobs([]smallben.UpdateOption{{
		JobID: id, CronExpression: change.CronExpression, JobOtherInputs: change.Input,
	}}))
}

func (a *api) pause(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	return done(w, a.scheduler.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id}}))
}

func (a *api) resume(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	return done(w, a.scheduler.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id}}))
}

// run answers when the run has started, or was skipped because the job still runs.
func (a *api) run(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	return accepted(w, a.scheduler.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id}}))
}

func (a *api) delete(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	return done(w, a.scheduler.DeleteJobs(&smallben.DeleteOptions{
		PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{id}},
	}))
}

func (a *api) pauseMatching(w http.ResponseWriter, r *http.Request) error {
	f, err := parseChangeFilter(r, "id", "group", "super_group")
	if err != nil {
		return err
	}
	return done(w, a.scheduler.PauseJobs(&f.PauseResumeOptions))
}

func (a *api) resumeMatching(w http.ResponseWriter, r *http.Request) error {
	f, err := parseChangeFilter(r, "id", "group", "super_group")
	if err != nil {
		return err
	}
	return done(w, a.scheduler.ResumeJobs(&f.PauseResumeOptions))
}

func (a *api) runMatching(w http.ResponseWriter, r *http.Request) error {
	f, err := parseChangeFilter(r, "id", "group", "super_group")
	if err != nil {
		return err
	}
	return accepted(w, a.scheduler.TriggerJobs(&f.PauseResumeOptions))
}

func (a *api) deleteMatching(w http.ResponseWriter, r *http.Request) error {
	f, err := parseChangeFilter(r, "id", "group", "super_group", "paused")
	if err != nil {
		return err
	}
	return done(w, a.scheduler.DeleteJobs(&f))
}

// health asks the database for a job that cannot exist.
func (a *api) health(w http.ResponseWriter, _ *http.Request) error {
	if _, err := a.repository.GetJob(0); err != nil && !a.isMissing(err) {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		Status  string `json:"status"`
		Replica string `json:"replica"`
	}{"ok", a.replica})
}

// parseChangeFilter is parseFilter for a change. The filter that matches every
// job is the empty one: it has to be asked for, with all=true.
func parseChangeFilter(r *http.Request, keys ...string) (smallben.DeleteOptions, error) {
	switch r.URL.RawQuery {
	case "":
		return smallben.DeleteOptions{}, badRequestf("give a filter (%s), or all=true for every job", strings.Join(keys, ", "))
	case "all=true":
		return smallben.DeleteOptions{}, nil
	}
	f, given, err := parseFilter(r, keys...)
	if err == nil && !given {
		err = badRequestf("the filter is empty")
	}
	return f, err
}

// parseFilter reads the filters that the query gives. A key that is not known is
// refused: to overlook one would match more jobs than were meant.
func parseFilter(r *http.Request, keys ...string) (f smallben.DeleteOptions, given bool, err error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return f, false, badRequestf("%w", err)
	}
	for key, values := range query {
		if !slices.Contains(keys, key) {
			return f, false, badRequestf("no filter %q here: there are %s", key, strings.Join(keys, ", "))
		}
		switch key {
		case "id":
			f.JobIDs, err = parseIDs(values)
		case "group":
			f.GroupIDs, err = parseIDs(values)
		case "super_group":
			f.SuperGroupIDs, err = parseIDs(values)
		case "paused":
			if len(values) > 1 {
				return f, false, badRequestf("filter paused: given twice")
			}
			var paused bool
			paused, err = strconv.ParseBool(values[0])
			f.Paused = &paused
		}
		if err != nil {
			return f, false, badRequestf("filter %s: %w", key, err)
		}
	}
	return f, len(query) > 0, nil
}

func parseIDs(values []string) ([]int64, error) {
	ids := make([]int64, len(values))
	for i, value := range values {
		var err error
		if ids[i], err = strconv.ParseInt(value, 10, 64); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// parseCount reads how many ticks are wanted.
func parseCount(r *http.Request) (int, error) {
	const most = 100
	text := r.URL.Query().Get("n")
	if text == "" {
		return 5, nil
	}
	n, err := parseNumber(text, most)
	if err != nil {
		return 0, badRequestf("n: %w", err)
	}
	return n, nil
}

func pathID(r *http.Request) (int64, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return 0, badRequestf("job id: %w", err)
	}
	return id, nil
}

// readJSON reads the one JSON value that the body has to be. Numbers keep all
// their digits.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	decoder.UseNumber()
	if err := decoder.Decode(v); err != nil {
		return badRequestf("body: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return badRequestf("body: more than one JSON value")
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		// The status is out. The client has gone, most likely.
		slog.Debug("answer not written", "error", err)
	}
	return nil
}

// done answers a change that says nothing but that it happened.
func done(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

// accepted answers a request for runs, whose end nobody waits for.
func accepted(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusAccepted)
	}
	return err
}

// route makes a handler of a function whose error, if any, is the answer.
func (a *api) route(f func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := f(w, r); err != nil {
			a.refuse(w, r, err)
		}
	})
}

// refusal is the body of an answer that is an error.
type refusal struct {
	Error string `json:"error"`
	JobID *int64 `json:"job_id,omitempty"`
}

func (a *api) refuse(w http.ResponseWriter, r *http.Request, err error) {
	answer := refusal{Error: err.Error()}
	var jobError *smallben.JobError
	if errors.As(err, &jobError) {
		answer.JobID = &jobError.JobID
	} else if id, err := pathID(r); err == nil {
		answer.JobID = &id
	}
	status := a.status(err)
	if status >= http.StatusInternalServerError {
		slog.Error("request failed", "method", r.Method, "path", r.URL.Path, "status", status, "error", err)
	}
	if status == http.StatusServiceUnavailable {
		// What a database says is not for clients.
		answer.Error = "the database did not do it: nothing changed, try again"
		if errors.Is(err, smallben.ErrOutcomeUnknown) {
			answer.Error = "the database did not say whether it did it: look before you try again"
		}
		w.Header().Set("Retry-After", "1")
	}
	_ = writeJSON(w, status, answer)
}

func (a *api) status(err error) int {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, errBadRequest),
		errors.Is(err, smallben.ErrInvalidJob),
		errors.Is(err, smallben.ErrUpdateOptionInvalid):
		return http.StatusBadRequest
	case errors.Is(err, smallben.ErrJobExists):
		return http.StatusConflict
	case a.isMissing(err):
		return http.StatusNotFound
	case errors.Is(err, smallben.ErrUndecodable):
		// The row is broken, or of a type that this build does not know: to
		// try again does not help.
		return http.StatusInternalServerError
	default:
		// The database, smallben.ErrOutcomeUnknown included.
		return http.StatusServiceUnavailable
	}
}

// isMissing reports whether err says that jobs do not exist.
func (a *api) isMissing(err error) bool {
	return errors.Is(err, a.repository.ErrorTypeIfMismatchCount())
}

// errBadRequest is what errors.Is finds when the request makes no sense.
var errBadRequest = errors.New("bad request")

func badRequestf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errBadRequest, fmt.Errorf(format, args...))
}

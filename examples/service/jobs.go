package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/go-logr/logr"
	"github.com/nbena/smallben"
)

// registerJobs makes the types of jobs known to gob, under names that stay the
// same when a type is renamed or moved: rows carry them.
func registerJobs() {
	gob.RegisterName("log", &Log{})
	gob.RegisterName("webhook", &Webhook{})
	gob.RegisterName("report", &Report{})
}

// Log writes a line to the log of the service. What a job needs beside its own
// fields, such as a logger or a client, is not stored: it comes from the package.
type Log struct {
	Message string `json:"message"`
}

// Run implements smallben.CronJob.
func (l *Log) Run(in smallben.CronJobInput) {
	slog.Info(l.Message, "job", in.JobID, "group", in.GroupID, "superGroup", in.SuperGroupID,
		"tick", in.ScheduledAt, "input", in.OtherInputs)
}

func (l *Log) validate() error {
	if l.Message == "" {
		return badRequestf("log: message is empty")
	}
	return nil
}

// Webhook sends a POST request to a URL. A request that fails is sent again. It is a
// smallben.ContextJob and a smallben.ConfiguredJob.
type Webhook struct {
	URL string `json:"url"`
	// Attempts is how often a request is sent; zero means 5. BackoffSeconds is the
	// time before the second attempt; zero means 10.
	Attempts       int `json:"attempts,omitempty"`
	BackoffSeconds int `json:"backoff_seconds,omitempty"`
}

// webhookAttempts is how often a request is sent, unless the job says.
const webhookAttempts = 5

// RunOptions implements smallben.ConfiguredJob.
func (h *Webhook) RunOptions() smallben.RunOptions {
	return smallben.RunOptions{
		Attempts: cmp.Or(h.Attempts, webhookAttempts),
		Backoff:  time.Duration(h.BackoffSeconds) * time.Second,
	}
}

// delivery is the body of a webhook's request.
type delivery struct {
	JobID        int64           `json:"job_id"`
	GroupID      int64           `json:"group_id"`
	SuperGroupID int64           `json:"super_group_id"`
	ScheduledAt  time.Time       `json:"scheduled_at"`
	Triggered    bool            `json:"triggered"`
	Attempt      int             `json:"attempt"`
	Input        json.RawMessage `json:"input"`
}

// Run implements smallben.CronJob. RunContext is called in its place.
func (h *Webhook) Run(in smallben.CronJobInput) { _ = h.RunContext(context.Background(), in) }

// RunContext implements smallben.ContextJob. What it returns is logged and
// counted by SmallBen.
func (h *Webhook) RunContext(ctx context.Context, in smallben.CronJobInput) error {
	body := delivery{
		JobID:        in.JobID,
		GroupID:      in.GroupID,
		SuperGroupID: in.SuperGroupID,
		ScheduledAt:  in.ScheduledAt.UTC(),
		Triggered:    in.Triggered,
		Attempt:      in.Attempt,
	}
	// Decode gives the input as it is stored: OtherInputs would round large numbers.
	if err := in.Decode(&body.Input); err != nil {
		return err
	}
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(encoded))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	if trace, ok := ctx.Value(traceKey{}).(string); ok {
		// https://www.w3.org/TR/trace-context/#traceparent-header
		request.Header.Set("traceparent", trace)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	// What is read to its end leaves a connection that can be used again.
	_, _ = io.CopyN(io.Discard, response.Body, 64<<10)
	if response.StatusCode == http.StatusGone {
		return smallben.Permanent(fmt.Errorf("the answer was %s", response.Status))
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("the answer was %s", response.Status)
	}
	return nil
}

func (h *Webhook) validate() error {
	u, err := url.Parse(h.URL)
	if err != nil {
		return badRequestf("webhook: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return badRequestf("webhook: %q is not an http or https URL", h.URL)
	}
	return nil
}

// reportID is the job that the service itself wants to have.
const reportID = -1

// Report logs which jobs went wrong when they ran last.
type Report struct {
	AtMost int `json:"at_most"` // jobs that it names
}

// reported is what Report reads. It is set before the scheduler starts.
var reported *smallben.SmallBen

// Run implements smallben.CronJob. RunContext is called in its place.
func (p *Report) Run(in smallben.CronJobInput) { _ = p.RunContext(context.Background(), in) }

// RunContext implements smallben.ContextJob.
func (p *Report) RunContext(ctx context.Context, _ smallben.CronJobInput) error {
	jobs, failed := 0, []string{}
	for job, err := range reported.Jobs(nil) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		jobs++
		last, ran := lastRun(&job)
		switch {
		case errors.Is(err, smallben.ErrUndecodable):
			failed = append(failed, err.Error())
		case err != nil:
			return err
		case ran && last.Outcome != smallben.OutcomeOK && last.Outcome != smallben.OutcomeRunning:
			failed = append(failed, fmt.Sprintf("job %d: %s", job.ID, last.Outcome))
		}
	}
	logr.FromContextOrDiscard(ctx).Info("report", "jobs", jobs, "failed", len(failed),
		"first", failed[:min(len(failed), p.AtMost)])
	return nil
}

// traceKey is the key of a run's traceparent in its context.
type traceKey struct{}

// traced gives each run a trace of its own, which webhooks send along and log
// lines carry, and logs how the run went. Here a span of OpenTelemetry would
// begin and end.
func traced(next smallben.RunFunc) smallben.RunFunc {
	return func(ctx context.Context, in smallben.CronJobInput) error {
		var ids [24]byte // 16 of the trace, 8 of the span
		_, _ = rand.Read(ids[:])
		trace, span := hex.EncodeToString(ids[:16]), hex.EncodeToString(ids[16:])
		logger := logr.FromContextOrDiscard(ctx).WithValues("trace", trace)
		ctx = context.WithValue(logr.NewContext(ctx, logger), traceKey{}, "00-"+trace+"-"+span+"-01")

		begin := time.Now()
		err := next(ctx, in)
		logger.Info("run ended", "triggered", in.Triggered, "late", begin.Sub(in.ScheduledAt).String(),
			"took", time.Since(begin).String(), "ok", err == nil)
		return err
	}
}

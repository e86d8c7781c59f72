package main

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/nbena/smallben"
)

// webhookTimeout bounds a run, and with it how long SIGTERM has to wait.
const webhookTimeout = 10 * time.Second

// registerJobs makes the types of jobs known to gob, under names that stay the
// same when a type is renamed or moved: rows carry them.
func registerJobs() {
	gob.RegisterName("log", &Log{})
	gob.RegisterName("webhook", &Webhook{})
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

// Webhook sends a POST request to a URL. A request that fails is logged, and not
// repeated before the next tick.
type Webhook struct {
	URL string `json:"url"`
}

// delivery is the body of a webhook's request.
type delivery struct {
	JobID        int64           `json:"job_id"`
	GroupID      int64           `json:"group_id"`
	SuperGroupID int64           `json:"super_group_id"`
	ScheduledAt  time.Time       `json:"scheduled_at"`
	Input        json.RawMessage `json:"input"`
}

// Run implements smallben.CronJob.
func (h *Webhook) Run(in smallben.CronJobInput) {
	if err := h.deliver(in); err != nil {
		slog.Warn("webhook failed", "job", in.JobID, "tick", in.ScheduledAt, "error", err)
	}
}

func (h *Webhook) deliver(in smallben.CronJobInput) error {
	body := delivery{
		JobID:        in.JobID,
		GroupID:      in.GroupID,
		SuperGroupID: in.SuperGroupID,
		ScheduledAt:  in.ScheduledAt.UTC(),
	}
	// Decode gives the input as it is stored: OtherInputs would round large numbers.
	if err := in.Decode(&body.Input); err != nil {
		return err
	}
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), webhookTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(encoded))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	// What is read to its end leaves a connection that can be used again.
	_, _ = io.CopyN(io.Discard, response.Body, 64<<10)
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

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/nbena/smallben"
)

// scheduler is set before it starts, for handlers and jobs.
var scheduler *smallben.SmallBen

// Reminder posts the text of its input to a customer's webhook.
type Reminder struct{ URL string }

// RunOptions implements smallben.ConfiguredJob: a webhook that fails is tried again, by
// any replica, and a tick that nobody ran is made up for if it is found within the hour.
func (*Reminder) RunOptions() smallben.RunOptions {
	return smallben.RunOptions{Timeout: 10 * time.Second, Attempts: 5, Backoff: time.Second,
		Missed: smallben.MissedRunOnce, MissedWithin: time.Hour}
}

// Run implements smallben.CronJob. RunContext is called in its place.
func (r *Reminder) Run(in smallben.CronJobInput) { _ = r.RunContext(context.Background(), in) }

// RunContext implements smallben.ContextJob.
func (r *Reminder) RunContext(ctx context.Context, in smallben.CronJobInput) error {
	var input struct{ Text string }
	if err := in.Decode(&input); err != nil {
		return smallben.Permanent(err)
	}
	body, err := json.Marshal(map[string]any{"reminder": in.JobID, "customer": in.GroupID, "text": input.Text,
		"at": in.ScheduledAt.UTC(), "attempt": in.Attempt})
	if err != nil {
		return smallben.Permanent(err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL, bytes.NewReader(body))
	if err != nil {
		return smallben.Permanent(err)
	}
	request.Header.Set("Content-Type", "application/json")
	// The same for each attempt, so that a receiver can tell that it has had it.
	request.Header.Set("Idempotency-Key", fmt.Sprintf("%d-%d", in.JobID, in.ScheduledAt.UnixMicro()))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	err = fmt.Errorf("the answer was %s", response.Status)
	switch response.StatusCode / 100 {
	case 2:
		return nil
	case 4: // the same request would be refused again
		return smallben.Permanent(err)
	}
	return err
}

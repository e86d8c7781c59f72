package main

import (
	"context"
	"crypto/sha256"
	"encoding/gob"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nbena/smallben"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
)

func init() { gob.RegisterName("enqueue", &Enqueue{}) }

// Enqueue is the job that SmallBen schedules. Its run puts the work into the queue,
// and does no more. It is a smallben.ContextJob.
type Enqueue struct {
	Customer string
}

// queue is where Enqueue puts it. It is set before the scheduler starts.
var queue *river.Client[pgx.Tx]

// Run implements smallben.CronJob. RunContext is called in its place.
func (e *Enqueue) Run(in smallben.CronJobInput) { _ = e.RunContext(context.Background(), in) }

// RunContext implements smallben.ContextJob. It may well insert twice: after a
// reply that was lost, or a process that was (RunsConfig.RerunLost). The queue
// takes the second one for the first.
func (e *Enqueue) RunContext(ctx context.Context, in smallben.CronJobInput) error {
	report := Report{
		JobID:     in.JobID,
		Tick:      in.ScheduledAt.UTC(),
		Triggered: in.Triggered,
		Customer:  e.Customer,
	}
	for {
		inserted, err := queue.Insert(ctx, report, nil)
		if err == nil {
			slog.Info("enqueued", "job", in.JobID, "tick", report.Tick, "attempt", in.Attempt,
				"riverJob", inserted.Job.ID, "wasThere", inserted.UniqueSkippedAsDuplicate)
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

// Report is the work, as it waits in the queue. The three that are unique name a
// run of SmallBen.
type Report struct {
	JobID     int64     `json:"job_id" river:"unique"`
	Tick      time.Time `json:"tick" river:"unique"`
	Triggered bool      `json:"triggered" river:"unique"`
	Customer  string    `json:"customer"`
}

// Kind implements river.JobArgs.
func (Report) Kind() string { return "report" }

// InsertOpts implements river.JobArgsWithInsertOpts: one for each run, whatever
// has become of it.
func (Report) InsertOpts() river.InsertOpts {
	return river.InsertOpts{UniqueOpts: river.UniqueOpts{ByArgs: true, ByState: rivertype.JobStates()}}
}

// reporter does the work.
type reporter struct {
	river.WorkerDefaults[Report]
}

// Work implements river.Worker. River tries again what returns an error, and what
// a worker left when it died: this may happen twice.
func (reporter) Work(ctx context.Context, job *river.Job[Report]) error {
	// What is too heavy for the process that schedules it.
	sum := sha256.Sum256([]byte(job.Args.Customer))
	for range 1_000_000 {
		sum = sha256.Sum256(sum[:])
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	slog.Info("report made", "customer", job.Args.Customer, "tick", job.Args.Tick,
		"riverJob", job.ID, "attempt", job.Attempt, "sum", fmt.Sprintf("%x", sum[:4]))
	return nil
}

package smallben_test

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/nbena/smallben"
)

// Task is a job whose options are stored with it. What it does is for each example to
// say.
type Task struct{ Options smallben.RunOptions }

// RunOptions implements smallben.ConfiguredJob.
func (t *Task) RunOptions() smallben.RunOptions { return t.Options }

// Run implements smallben.CronJob. RunContext is called in its place.
func (t *Task) Run(smallben.CronJobInput) {}

// RunContext implements smallben.ContextJob.
func (t *Task) RunContext(ctx context.Context, input smallben.CronJobInput) error {
	return task(ctx, input)
}

var task smallben.RunFunc

// startTask starts a SmallBen with one Task.
func startTask(options smallben.RunOptions, run smallben.RunFunc) (scheduler *smallben.SmallBen, end func()) {
	gob.Register(&Task{})
	task = run
	scheduler, end = start()
	if err := scheduler.AddJobs([]smallben.Job{{ID: 1, CronExpression: "@yearly", Job: &Task{options}}}); err != nil {
		log.Fatal(err)
	}
	return scheduler, end
}

func trigger(scheduler *smallben.SmallBen) {
	if err := scheduler.TriggerJobs(&smallben.PauseResumeOptions{}); err != nil {
		log.Fatal(err)
	}
}

// One at a time: what comes while the job runs is skipped.
func ExampleRunOptions_overlap() {
	started, goOn := make(chan struct{}), make(chan struct{})
	scheduler, end := startTask(smallben.RunOptions{Overlap: smallben.OverlapSkip}, func(context.Context, smallben.CronJobInput) error {
		fmt.Println("a run starts")
		close(started)
		<-goOn
		return nil
	})
	trigger(scheduler)
	<-started
	trigger(scheduler)
	close(goOn)
	end()
	// Output:
	// a run starts
}

// The context of a run ends when its time is up.
func ExampleRunOptions_timeout() {
	scheduler, end := startTask(smallben.RunOptions{Timeout: time.Millisecond}, func(ctx context.Context, _ smallben.CronJobInput) error {
		<-ctx.Done()
		fmt.Println(ctx.Err())
		return ctx.Err()
	})
	trigger(scheduler)
	end()
	// Output:
	// context deadline exceeded
}

// Three attempts, the first one included.
func ExampleRunOptions_attempts() {
	over := make(chan struct{})
	scheduler, end := startTask(smallben.RunOptions{Attempts: 3, Backoff: time.Millisecond}, func(_ context.Context, input smallben.CronJobInput) error {
		fmt.Println("attempt", input.Attempt)
		if input.Attempt == 3 {
			close(over)
		}
		return errors.New("503 Service Unavailable")
	})
	trigger(scheduler)
	<-over
	end()
	// Output:
	// attempt 1
	// attempt 2
	// attempt 3
}

// The time between attempts is doubled, up to a bound.
func ExampleRunOptions_backoff() {
	times := make(chan time.Time, 4)
	options := smallben.RunOptions{Attempts: 4, Backoff: 10 * time.Millisecond, MaxBackoff: 20 * time.Millisecond}
	scheduler, end := startTask(options, func(context.Context, smallben.CronJobInput) error {
		times <- time.Now()
		return errors.New("503 Service Unavailable")
	})
	trigger(scheduler)
	last := <-times
	for _, least := range []time.Duration{10, 20, 20} {
		next := <-times
		fmt.Println(next.Sub(last) >= least*time.Millisecond)
		last = next
	}
	end()
	// Output:
	// true
	// true
	// true
}

// The newest of the ticks that nobody ran is made up for, unless it is older than three
// hours. It takes a record of runs to know them.
func ExampleRunOptions_missed() {
	scheduler, end := startTask(smallben.RunOptions{Missed: smallben.MissedRunOnce, MissedWithin: 3 * time.Hour}, nil)
	defer end()
	jobs, err := scheduler.ListJobs(nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(jobs[0].RunOptions().Missed, "within", jobs[0].RunOptions().MissedWithin)
	// Output:
	// run once within 3h0m0s
}

// What is zero is left to the Config.
func ExampleRunOptions_String() {
	fmt.Println(smallben.RunOptions{})
	fmt.Println(smallben.RunOptions{Overlap: smallben.OverlapDelay, Timeout: -1, Missed: smallben.MissedRunAll, Attempts: 5, Backoff: time.Minute})
	// Output:
	// default
	// overlap delay, no timeout, missed run all, 5 attempts, backoff 1m0s
}

// A job whose options are not valid is refused.
func ExampleErrInvalidJob_options() {
	scheduler, end := start()
	defer end()
	gob.Register(&Task{})
	err := scheduler.AddJobs([]smallben.Job{{ID: 1, CronExpression: "@daily", Job: &Task{smallben.RunOptions{Attempts: -1}}}})
	fmt.Println(err)
	// Output:
	// add job 1: invalid job: RunOptions.Attempts is -1, less than 0
}

// Package jobs has the jobs of the tests: their types are shown on the pages.
package jobs

import (
	"context"
	"encoding/gob"
	"errors"
	"time"

	"github.com/nbena/smallben"
)

// Invoice fails if it is of customer 13.
type Invoice struct{ Customer int }

// Backup runs until its context ends.
type Backup struct{ Bucket string }

// Report is quickly done.
type Report struct{ To string }

// Run is not called: RunContext is.
func (*Invoice) Run(smallben.CronJobInput) {}

// RunContext takes a moment.
func (j *Invoice) RunContext(context.Context, smallben.CronJobInput) error {
	time.Sleep(time.Duration(j.Customer%9) * 7 * time.Millisecond)
	if j.Customer == 13 {
		return errors.New("post https://billing.example/invoices: 502 Bad Gateway")
	}
	return nil
}

// Run is not called: RunContext is.
func (*Backup) Run(smallben.CronJobInput) {}

// RunContext waits for the end of its context.
func (*Backup) RunContext(ctx context.Context, _ smallben.CronJobInput) error {
	<-ctx.Done()
	return ctx.Err()
}

// Run does nothing.
func (*Report) Run(smallben.CronJobInput) {}

// Register makes the types known to gob.
func Register() {
	gob.Register(&Invoice{})
	gob.Register(&Backup{})
	gob.Register(&Report{})
}

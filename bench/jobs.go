package main

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"fmt"
	"time"

	"github.com/nbena/smallben"
)

// batch is how many jobs are added at once.
const batch = 1000

// expression spreads jobs over the minutes of a day.
func expression(i int) string { return fmt.Sprintf("%d %d * * *", i%60, i/60%24) }

func newReminder(i int) *Reminder { return &Reminder{Text: fmt.Sprint("job ", i), Tries: i} }

// jobs are those with the indices from to to; half of them are in group 1.
func jobs(from, to int) []smallben.Job {
	made := make([]smallben.Job, 0, to-from)
	for i := from; i < to; i++ {
		made = append(made, smallben.Job{
			ID: int64(i + 1), GroupID: int64(i % 2), SuperGroupID: int64(i % 100),
			CronExpression: expression(i), Job: newReminder(i),
			JobInput: map[string]any{"to": "ops@example.com"},
		})
	}
	return made
}

// rows are what SmallBen stores of the jobs, for the bare databases.
func rows(n int) ([]smallben.RawJob, error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	made := make([]smallben.RawJob, n)
	for i := range made {
		var job smallben.CronJob = newReminder(i)
		var encoded bytes.Buffer
		if err := gob.NewEncoder(&encoded).Encode(&job); err != nil {
			return nil, err
		}
		made[i] = smallben.RawJob{
			ID: int64(i + 1), GroupID: int64(i % 2), SuperGroupID: int64(i % 100), CronID: int64(i + 1),
			CronExpression: expression(i), CreatedAt: now, UpdatedAt: now,
			SerializedJob:      base64.StdEncoding.EncodeToString(encoded.Bytes()),
			SerializedJobInput: `{"to":"ops@example.com"}`,
		}
	}
	return made, nil
}

// half are the ids of group 1.
func half(n int) []int64 {
	ids := make([]int64, 0, n/2)
	for i := 1; i < n; i += 2 {
		ids = append(ids, int64(i+1))
	}
	return ids
}

// Command rolling is the service of TestARollingDeployment. Its old program knows a
// notice and a report; the newer one, which is built with the tag newer, has renamed the
// first under its old name and the second under a new one, and knows an audit besides.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/go-logr/logr"
	"gorm.io/driver/postgres"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/ledger"
)

// timing is a few seconds where users wait for a minute.
var timing = ledger.Timing{DeadAfter: 4 * time.Second, SweepEvery: 3 * time.Second, MissedAfter: 3 * time.Second, ClaimPatience: 2 * time.Second,
	StopPatience: ledger.DefaultTiming.StopPatience}

// everySecond is a job that the service always wants to have.
func everySecond(id int64, job smallben.CronJob) smallben.Job {
	return smallben.Job{ID: id, CronExpression: "* * * * * *", Job: job}
}

// ran tells of a run.
func ran(what string, input smallben.CronJobInput) {
	fmt.Printf("ran %s %d %d attempt=%d missed=%t\n", what, input.JobID, input.ScheduledAt.Unix(), input.Attempt, input.Missed > 0)
}

func main() {
	if err := serve(os.Getenv("ROLLING_DSN")); err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
}

// serve runs the jobs until the input ends. It triggers those of lines.
func serve(dsn string) error {
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: postgres.Open(dsn)})
	if err != nil {
		return err
	}
	defer repository.Close()
	s := smallben.New(repository, &smallben.Config{Logger: logr.FromSlogHandler(slog.DiscardHandler), SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true},
		Runs: smallben.RunsConfig{Record: true, RerunLost: true, Missed: smallben.MissedRunOnce, SyncInterval: 200 * time.Millisecond}})
	*insides.Timing(s) = timing
	if err := s.Start(); err != nil {
		return err
	}
	defer s.Stop()
	switch err := s.UpsertJobs(wanted); {
	case err == nil:
		fmt.Println("upserted")
	case errors.Is(err, smallben.ErrUndecodable):
		fmt.Println("refused", err)
	default:
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var id int64
		if _, err := fmt.Sscan(lines.Text(), &id); err != nil {
			return err
		}
		if err := s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id}}); err != nil {
			return err
		}
	}
	return nil
}

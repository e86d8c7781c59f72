package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/dbos-inc/dbos-transact-golang/dbos"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/robfig/cron/v3"
)

// riverWorkers is as many as the jobs that are due at once in a full run, so that
// one fetch takes them all.
const riverWorkers = fleetRate

// withSeconds parses the expressions of the fleets for River, which has no parser.
var withSeconds = cron.NewParser(cron.Second | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

// riverArgs is a job of River.
type riverArgs struct {
	Number int64 `json:"number"`
}

func (riverArgs) Kind() string { return "timed" }

type riverWorker struct {
	river.WorkerDefaults[riverArgs]
}

func (riverWorker) Work(_ context.Context, job *river.Job[riverArgs]) error {
	start(job.Args.Number, job.ScheduledAt.Truncate(time.Second))
	return nil
}

// beginRiver begins a client whose periodic jobs are those of the fleet. Every
// client is given them, and the one that leads inserts their runs.
func beginRiver(t *task) (func() error, error) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, t.DSN)
	if err != nil {
		return nil, err
	}
	failed := func(err error) (func() error, error) {
		pool.Close()
		return nil, err
	}
	if t.First {
		migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return failed(err)
		}
		if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
			return failed(err)
		}
	}
	schedule, err := withSeconds.Parse(t.Expression)
	if err != nil {
		return failed(err)
	}
	periodic := make([]*river.PeriodicJob, t.Jobs)
	for i := range periodic {
		args := riverArgs{int64(i + 1)}
		periodic[i] = river.NewPeriodicJob(schedule, func() (river.JobArgs, *river.InsertOpts) { return args, nil }, nil)
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, riverWorker{})
	client, err := river.NewClient[pgx.Tx](riverpgxv5.New(pool), &river.Config{
		Queues:       map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: riverWorkers}},
		Workers:      workers,
		PeriodicJobs: periodic,
		Logger:       slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return failed(err)
	}
	if err := client.Start(ctx); err != nil {
		return failed(err)
	}
	return func() error {
		defer pool.Close()
		return client.Stop(ctx)
	}, nil
}

// timedWorkflow is a job of DBOS.
func timedWorkflow(_ dbos.Context, input dbos.ScheduledWorkflowInput) (any, error) {
	number, err := dbos.DecodeScheduleContext[int64](input)
	start(number, input.ScheduledTime)
	return nil, err
}

// beginDBOS begins an executor whose schedules are the jobs of the fleet.
func beginDBOS(t *task) (func() error, error) {
	ctx, err := dbos.NewContext(context.Background(), dbos.Config{
		AppName: "bench", DatabaseURL: t.DSN, ExecutorID: strconv.Itoa(os.Getpid()),
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		return nil, err
	}
	dbos.RegisterWorkflow(ctx, timedWorkflow)
	if t.First {
		schedules := make([]dbos.ScheduleSpec, t.Jobs)
		for i := range schedules {
			schedules[i] = dbos.ScheduleSpec{
				ScheduleName: fmt.Sprint("timed-", i+1), Schedule: t.Expression,
				Workflow: timedWorkflow, Context: int64(i + 1),
			}
		}
		if err := dbos.ApplySchedules(ctx, schedules); err != nil {
			return nil, errors.Join(err, dbos.Shutdown(ctx, time.Second))
		}
	}
	if err := dbos.Launch(ctx); err != nil {
		return nil, errors.Join(err, dbos.Shutdown(ctx, time.Second))
	}
	return func() error { return dbos.Shutdown(ctx, 10*time.Second) }, nil
}

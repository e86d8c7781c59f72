// River hands each run to River, a queue on the same PostgreSQL: processes that
// schedule insert a River job for each tick, and processes that work do the work.
// README.md shows them.
//
//	go run . -dsn postgres://localhost/jobs schedule
//	go run . -dsn postgres://localhost/jobs work
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nbena/smallben"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"gorm.io/driver/postgres"
)

const grace = 10 * time.Second // of what is in progress at SIGTERM

// jobs are what the schedulers always want to have.
var jobs = []smallben.Job{
	{ID: 1, CronExpression: "*/5 * * * * *", Job: &Enqueue{Customer: "Rossi"}},
	{ID: 2, CronExpression: "*/10 * * * * *", Job: &Enqueue{Customer: "Bianchi"}},
}

func main() {
	dsn := flag.String("dsn", "postgres://localhost/jobs", "PostgreSQL `DSN`")
	flag.Parse()
	ctx, release := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, release) // a second signal does not wait
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil).
		WithAttrs([]slog.Attr{slog.Int("process", os.Getpid())})))

	var err error
	switch role := flag.Arg(0); role {
	case "schedule":
		err = schedule(ctx, *dsn)
	case "work":
		err = work(ctx, *dsn)
	default:
		err = fmt.Errorf("%q: want schedule or work", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "river:", err)
		os.Exit(1)
	}
}

// schedule runs the jobs until ctx ends, together with all that do the same on the
// database.
func schedule(ctx context.Context, dsn string) (err error) {
	pool, err := open(ctx, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	// Without queues it is a client that only inserts.
	if queue, err = client(pool, nil); err != nil {
		return err
	}
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: postgres.Open(dsn)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repository.Close()) }()
	scheduler := smallben.New(repository, &smallben.Config{
		SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true},
		Logger:          logr.FromSlogHandler(slog.Default().Handler()),
		Runs: smallben.RunsConfig{
			Record:    true,
			Missed:    smallben.MissedRunOnce,
			RerunLost: true, // safe, for a run may insert twice
		},
	})
	if err := scheduler.Start(); err != nil {
		return err
	}
	if err := scheduler.UpsertJobs(jobs); err != nil {
		scheduler.Stop()
		return err
	}
	<-ctx.Done()
	stop, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	return scheduler.StopContext(stop)
}

// work does what is in the queue until ctx ends.
func work(ctx context.Context, dsn string) error {
	pool, err := open(ctx, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	worker, err := client(pool, map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2}})
	if err != nil {
		return err
	}
	if err := worker.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	slog.Info("working")
	<-ctx.Done()
	stop, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	return worker.Stop(stop)
}

func client(pool *pgxpool.Pool, queues map[string]river.QueueConfig) (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, reporter{})
	return river.NewClient(riverpgxv5.New(pool), &river.Config{
		Queues:  queues,
		Workers: workers,
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
}

// open connects to the database, and makes sure that River's tables are there.
func open(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, pool); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

// migrate is for one process at a time, and they may all start at once.
func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	const key = 0x5a11be4
	lock, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer lock.Release()
	if _, err := lock.Exec(ctx, "SELECT pg_advisory_lock($1)", key); err != nil {
		return err
	}
	defer func() { _, _ = lock.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", key) }()
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return err
}

// Service is a small HTTP service whose users create, pause, change and delete
// jobs while it runs. README.md shows it at work.
//
//	go run ./examples/service
//	go run ./examples/service -addr :8080 -dsn 'postgres://localhost/jobs'
//
// Any number of them may share a database: compose.yaml starts three, and so does
// replicas.sh, without containers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata" // for time zones in expressions, wherever the service runs

	"github.com/go-logr/logr"
	"github.com/nbena/smallben"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

const (
	databaseTimeout = 10 * time.Second // of each call
	runTimeout      = 10 * time.Second // of each run of a webhook or a report
	drainTimeout    = 15 * time.Second // of the requests in progress at SIGTERM
	lastWords       = 5 * time.Second  // of the runs whose contexts have ended
)

// scheduling says how expressions are read, and what happens to runs.
var scheduling = smallben.SchedulerConfig{
	SkipIfStillRunning: true,
	WithSeconds:        true,
	WithLocation:       time.UTC,
	RunTimeout:         runTimeout,
}

// options are the flags.
type options struct {
	addr, dsn, log, report string
	record                 bool
	grace                  time.Duration
	operator, password     string // of the console
}

func main() {
	var o options
	flag.StringVar(&o.addr, "addr", "127.0.0.1:8080", "`address` to listen on")
	flag.StringVar(&o.dsn, "dsn", "service.db", "PostgreSQL `DSN`, or path of a SQLite file")
	flag.BoolVar(&o.record, "record", true, "record runs, so that replicas share them; all must do the same")
	flag.StringVar(&o.log, "log", "text", "`format` of the log: text or json")
	flag.StringVar(&o.report, "report", "@daily", "cron `expression`: when to log which jobs went wrong; empty for never")
	flag.DurationVar(&o.grace, "grace", 15*time.Second, "`time` that runs in progress have at SIGTERM")
	flag.StringVar(&o.operator, "console", "operator", "`name` that the console asks for; its password is $CONSOLE_PASSWORD, or one that the log tells")
	flag.Parse()
	o.password = os.Getenv("CONSOLE_PASSWORD")
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

func run(o options) (err error) {
	var logs slog.Handler
	switch o.log {
	case "text":
		logs = slog.NewTextHandler(os.Stderr, nil)
	case "json":
		logs = slog.NewJSONHandler(os.Stderr, nil)
	default:
		return fmt.Errorf("-log %q: want text or json", o.log)
	}
	name := replicaName()
	logs = logs.WithAttrs([]slog.Attr{slog.String("replica", name)})
	slog.SetDefault(slog.New(logs))

	signals := []os.Signal{syscall.SIGTERM}
	if !signal.Ignored(os.Interrupt) { // as it is in the background of a script
		signals = append(signals, os.Interrupt)
	}
	ctx, release := signal.NotifyContext(context.Background(), signals...)
	defer release()
	listener, err := net.Listen("tcp", o.addr)
	if err != nil {
		return err
	}
	defer listener.Close()

	registerJobs()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
		Dialector: dialector(o.dsn),
		Timeout:   databaseTimeout,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repository.Close()) }()

	scheduler := smallben.New(repository, &smallben.Config{
		SchedulerConfig: scheduling,
		Logger:          logr.FromSlogHandler(logs),
		WrapRun:         traced,
		Runs:            smallben.RunsConfig{Record: o.record},
	})
	reported = scheduler
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	if err := scheduler.RegisterMetrics(registry); err != nil {
		return err
	}
	if err := scheduler.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop(scheduler, o.grace)) }()
	if o.report != "" {
		// At every start: the first one adds it, one with another expression
		// changes it, and any other leaves it alone.
		err := scheduler.UpsertJobs([]smallben.Job{{ID: reportID, CronExpression: o.report, Job: &Report{AtMost: 10}}})
		if err != nil {
			return err
		}
	}

	service := &api{scheduler: scheduler, repository: repository, replica: name, recorded: o.record}
	pages := operators(o.operator, o.password, scheduler)
	server := &http.Server{
		Handler:           service.handler(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), pages),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute, // longer than a change and those that it queues behind
		IdleTimeout:       time.Minute,
		ErrorLog:          slog.NewLogLogger(logs, slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	slog.Info("listening", "addr", listener.Addr().String())

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	release() // a second signal does not wait
	slog.Info("draining")
	// First no more changes, then no more runs, then no more database.
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	return server.Shutdown(drain)
}

// replicaName tells this process from the others in logs and answers. The names of
// processes in recorded runs begin with it.
func replicaName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}

// stop waits for the runs in progress. When their time is up it ends their
// contexts, and gives those that heed them a moment to say so.
func stop(scheduler *smallben.SmallBen, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	err := scheduler.StopContext(ctx)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), lastWords)
		defer cancel()
		_ = scheduler.StopContext(ctx) // err names more
	}
	return err
}

// dialector opens PostgreSQL for a URL or for keyword=value pairs, and else a
// SQLite file.
func dialector(dsn string) gorm.Dialector {
	keyword, _, pairs := strings.Cut(dsn, "=")
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") ||
		pairs && !strings.ContainsAny(keyword, "/.:?") {
		return postgres.Open(dsn)
	}
	if !strings.Contains(dsn, "_journal") {
		// Lists do not wait for changes, nor changes for lists; and recorded runs
		// need it.
		separator := "?"
		if strings.Contains(dsn, "?") {
			separator = "&"
		}
		dsn += separator + "_journal_mode=WAL"
	}
	return sqlite.Open(dsn)
}

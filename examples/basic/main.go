// Basic runs three jobs that a SQLite file remembers, with a console to look at them.
// Start it twice: the second start finds the jobs of the first.
//
//	go run ./examples/basic
//	go run ./examples/basic -db jobs.db -for 5s
package main

import (
	"context"
	"encoding/gob"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
	_ "time/tzdata" // for CRON_TZ on machines without a time zone database

	"github.com/go-logr/logr"
	"github.com/nbena/smallben"
	"github.com/nbena/smallben/console"
	"gorm.io/driver/sqlite"
)

// Greeting is a job. Its exported fields are stored with it.
type Greeting struct {
	Name string
}

// Run says hello, in the words of the input: unlike Name, UpdateJobs can change
// those later.
func (g *Greeting) Run(input smallben.CronJobInput) {
	var words struct{ Hello string }
	if err := input.Decode(&words); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	report(input, words.Hello+", "+g.Name)
}

// Clock is a job of another type.
type Clock struct {
	City, Zone string
}

// Run says what time it is in the city.
func (c *Clock) Run(input smallben.CronJobInput) {
	location, err := time.LoadLocation(c.Zone)
	if err != nil {
		fmt.Fprintf(os.Stderr, "job %d: %v\n", input.JobID, err)
		return
	}
	report(input, "in "+c.City+" it is "+input.ScheduledAt.In(location).Format(time.TimeOnly))
}

// report prints the line of a run.
func report(input smallben.CronJobInput, text string) {
	late := time.Since(input.ScheduledAt).Round(10 * time.Microsecond)
	fmt.Printf("job %d  group %d  tick %s  late %-8v  %s\n",
		input.JobID, input.GroupID, input.ScheduledAt.Format(time.TimeOnly), late, text)
}

var jobs = []smallben.Job{
	{
		ID: 1, GroupID: 10, CronExpression: "* * * * * *", // every second: six fields
		Job:      &Greeting{Name: "world"},
		JobInput: map[string]any{"hello": "hello"},
	},
	{
		ID: 2, GroupID: 10, CronExpression: "@every 2s",
		Job:      &Greeting{Name: "moon"},
		JobInput: map[string]any{"hello": "good evening"},
	},
	{
		ID: 3, GroupID: 20, CronExpression: "CRON_TZ=Asia/Tokyo */3 * * * * *",
		Job: &Clock{City: "Tokyo", Zone: "Asia/Tokyo"},
	},
}

func main() {
	db := flag.String("db", "smallben.db", "SQLite `file` that keeps the jobs")
	limit := flag.Duration("for", 0, "stop after this `duration`; 0 means at Ctrl-C")
	addr := flag.String("console", "127.0.0.1:8077", "`address` of the console")
	flag.Parse()
	if err := run(*db, *addr, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "basic:", err)
		os.Exit(1)
	}
}

func run(db, addr string, limit time.Duration) (err error) {
	ctx, release := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer release()
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}

	// Every type of job, before anything is loaded.
	gob.Register(&Greeting{})
	gob.Register(&Clock{})

	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
		Dialector: sqlite.Open(db + "?_journal_mode=WAL"), // which recorded runs need
	})
	if err != nil {
		return fmt.Errorf("%s: %w", db, err)
	}
	defer func() { err = errors.Join(err, repository.Close()) }()

	// Warnings and errors only: the lines of the runs are the show.
	handler := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})
	scheduler := smallben.New(repository, &smallben.Config{
		SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true},
		Logger:          logr.FromSlogHandler(handler),
		Runs:            smallben.RunsConfig{Record: true}, // for the console to show
	})

	stored, err := scheduler.ListJobs(nil)
	if err != nil {
		return err
	}
	if len(stored) > 0 {
		fmt.Printf("found %d jobs in %s, carrying on with them\n", len(stored), db)
	} else {
		if err := scheduler.AddJobs(jobs); err != nil {
			return err
		}
		fmt.Printf("added %d jobs to %s; the next start finds them there\n", len(jobs), db)
	}

	if err := scheduler.Start(); err != nil {
		return err
	}
	address, closeConsole, err := serveConsole(scheduler, addr)
	if err != nil {
		scheduler.Stop()
		return err
	}
	defer closeConsole()
	fmt.Printf("console: http://%s/\n", address)
	if limit == 0 {
		fmt.Println("Ctrl-C stops")
	}
	<-ctx.Done()
	release() // a second Ctrl-C does not wait
	fmt.Println("stopping: waiting for the runs in progress")
	scheduler.Stop()
	fmt.Println("stopped")
	return nil
}

// serveConsole serves the console on addr, or on any port if that one is taken. Who
// reaches it may do everything: it is for this machine only.
func serveConsole(scheduler *smallben.SmallBen, addr string) (address string, stop func(), err error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		if listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return "", nil, err
		}
	}
	address = listener.Addr().String()
	pages := console.New(scheduler, &console.Options{
		Authorize: func(*http.Request, console.Action) error { return nil },
		Logger:    slog.New(slog.DiscardHandler),
		ShowInput: true,
	})
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != address {
			// A page elsewhere whose name leads to this machine is not to get in.
			http.Error(w, "this is "+address, http.StatusMisdirectedRequest)
			return
		}
		pages.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(listener) }()
	return address, func() { _ = server.Close() }, nil
}

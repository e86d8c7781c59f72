// Reminders is a service that reminds customers by their webhooks, each in their
// own time zone. Any number of it may share a database. README.md shows it at work.
package main

import (
	"context"
	"encoding/gob"
	"errors"
	"flag"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
	_ "time/tzdata" // for the customers' time zones, wherever the service runs

	"github.com/go-logr/logr"
	"github.com/nbena/smallben"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to listen on")
	dsn := flag.String("dsn", "postgres:///reminders", "PostgreSQL `DSN`")
	monitor := flag.String("monitor", "", "`URL` to call each minute, for who wants to know when that ends")
	flag.Parse()
	password := os.Getenv("REMINDERS_PASSWORD")
	if password == "" {
		log.Fatal("REMINDERS_PASSWORD is not set")
	}
	ctx, release := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer release()

	// One pool, for the customers and for their jobs.
	db, err := gorm.Open(postgres.Open(*dsn), &gorm.Config{})
	check(err)
	pool, err := db.DB()
	check(err)
	pool.SetMaxOpenConns(10)
	check(migrate(db))
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: postgres.New(postgres.Config{Conn: pool})})
	check(err)
	gob.RegisterName("reminder", &Reminder{})
	scheduler = smallben.New(repository, &smallben.Config{
		Logger: logr.FromSlogHandler(slog.Default().Handler()),
		Runs:   smallben.RunsConfig{Record: true}, // so that replicas share the ticks
	})
	check(scheduler.RegisterMetrics(nil))
	check(scheduler.Start())
	if *monitor != "" { // the service's own job: a start with another URL changes it
		check(scheduler.UpsertJobs([]smallben.Job{{ID: -1, GroupID: -1, CronExpression: "@every 1m", Job: &Reminder{URL: *monitor}}}))
	}
	server := &http.Server{Handler: (&service{db, password}).routes(), ReadHeaderTimeout: 5 * time.Second}
	listener, err := net.Listen("tcp", *addr)
	check(err)
	slog.Info("listening", "addr", listener.Addr().String())
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			check(err)
		}
	}()
	<-ctx.Done()
	// First no more requests, then no more runs, then no more database.
	drain, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	check(errors.Join(server.Shutdown(drain), scheduler.StopContext(drain), pool.Close()))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

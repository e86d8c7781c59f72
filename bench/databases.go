package main

import (
	"database/sql"
	"errors"
	"fmt"
	"log"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/mattn/go-sqlite3"
	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/pgtest"
)

// work is what is measured: a row of a table.
type work string

const (
	adding       work = "AddJobs, batches of 1,000"
	starting     work = "Start"
	renumbering  work = "Start, with all cron ids to store"
	pausing      work = "PauseJobs, half of them by group"
	resuming     work = "ResumeJobs, that half"
	listing      work = "ListJobs, all"
	updating     work = "UpdateJobs, a new expression each"
	deleting     work = "DeleteJobs, half of them by group"
	addingAtOnce work = "one AddJobs of all"
	pausingMost  work = "one PauseJobs of 70 % of them by id"
	heapAdded    work = "heap for each job, after AddJobs"
	heapStarted  work = "heap for each job, after Start"
)

// life is what happens to n jobs in a database, in this order.
var life = []work{adding, starting, renumbering, pausing, resuming, listing, updating, deleting, addingAtOnce, pausingMost}

// step is a work as a subject does it. A subject may lack some.
type step struct {
	before func() error // not measured; may be nil
	do     func() error
	after  func() // as before
}

// subject is a way to keep jobs in a database.
type subject struct {
	name string
	// begin makes the steps of one life on an empty table.
	begin func(db *database, dsn string, n int) (steps map[work]step, end func() error, err error)
}

// database is a kind of database.
type database struct {
	name      string
	driver    string // for database/sql
	dialector func(dsn string) gorm.Dialector
	fresh     func() (dsn string, drop func(), err error) // a database of its own
	subjects  []subject
}

func databases(r results) []*database {
	smallBen := subject{"SmallBen", func(db *database, dsn string, n int) (map[work]step, func() error, error) {
		return beginSmallBen(r, db, dsn, n)
	}}
	return []*database{
		{
			name: "SQLite", driver: "sqlite3", dialector: sqlite.Open, fresh: freshSQLite,
			subjects: []subject{smallBen, {"database/sql", beginSQL}, {"GORM", beginGorm}},
		},
		{
			name: "PostgreSQL", driver: "pgx", dialector: postgres.Open, fresh: freshPostgres,
			subjects: []subject{smallBen, {"database/sql", beginSQL}, {"pgx", beginPgx}, {"GORM", beginGorm}},
		},
	}
}

// databaseNamed is one of databases, for another process.
func databaseNamed(name string) *database {
	all := databases(results{})
	return all[slices.IndexFunc(all, func(db *database) bool { return db.name == name })]
}

// create creates the table that all subjects share.
func (db *database) create(dsn string) error {
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: db.dialector(dsn)})
	if err != nil {
		return err
	}
	return repository.Close()
}

func freshSQLite() (string, func(), error) {
	dir, err := os.MkdirTemp("", "smallben-bench-")
	if err != nil {
		return "", nil, err
	}
	path := (&url.URL{Path: filepath.Join(dir, "jobs.db")}).EscapedPath()
	return "file:" + path + "?_journal_mode=WAL&_synchronous=NORMAL", func() { _ = os.RemoveAll(dir) }, nil
}

func freshPostgres() (dsn string, drop func(), err error) {
	t := &scope{}
	defer func() {
		if recover() != nil {
			err = t.err
		}
	}()
	return pgtest.DSN(t), t.end, nil
}

// scope is the testing.TB of one life, for pgtest.
type scope struct {
	testing.TB
	cleanups []func()
	err      error
}

func (*scope) Helper()                     {}
func (s *scope) Cleanup(f func())          { s.cleanups = append(s.cleanups, f) }
func (s *scope) Errorf(f string, a ...any) { log.Printf(f, a...) }
func (s *scope) Skipf(f string, a ...any)  { s.Fatalf(f, a...) }

func (s *scope) Fatalf(f string, a ...any) {
	s.err = fmt.Errorf(f, a...)
	panic(s.err)
}

func (s *scope) end() {
	for _, cleanup := range s.cleanups {
		cleanup()
	}
}

// runDatabases lives one life of each subject for each number of jobs.
func runDatabases(o *options, r results, round int) error {
	for _, n := range o.sizes() {
		for _, db := range databases(r) {
			for _, s := range rotated(db.subjects, round) {
				log.Printf("%s, %d jobs, %s", db.name, n, s.name)
				if err := live(r, db, s, n); err != nil {
					return fmt.Errorf("%s, %s: %w", db.name, s.name, err)
				}
			}
		}
	}
	return nil
}

func live(r results, db *database, s subject, n int) error {
	dsn, drop, err := db.fresh()
	if err != nil {
		return err
	}
	defer drop()
	if err := db.create(dsn); err != nil {
		return err
	}
	steps, end, err := s.begin(db, dsn, n)
	if err != nil {
		return err
	}
	for _, w := range life {
		step, ok := steps[w]
		if !ok {
			continue
		}
		if step.before != nil {
			if err := step.before(); err != nil {
				return errors.Join(fmt.Errorf("before %s: %w", w, err), end())
			}
		}
		if err := r.timed(cell{db.name, s.name, w, n}, step.do); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", w, err), end())
		}
		if step.after != nil {
			step.after()
		}
	}
	return end()
}

// beginSmallBen starts a SmallBen as a service does, its log at info level and
// written to nowhere.
func beginSmallBen(r results, db *database, dsn string, n int) (map[work]step, func() error, error) {
	before := heap()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: db.dialector(dsn)})
	if err != nil {
		return nil, nil, err
	}
	s := newSmallBen(repository)
	if err := s.Start(); err != nil {
		return nil, nil, errors.Join(err, repository.Close())
	}
	restart := func() {
		s.Stop()
		s = newSmallBen(repository)
	}
	odd := smallben.PauseResumeOptions{GroupIDs: []int64{1}}
	var batches [][]smallben.Job
	var updates []smallben.UpdateOption
	measure := func(w work) func() {
		return func() {
			batches = nil
			r.add(cell{db.name, "SmallBen", w, n}, (heap()-before)/float64(n))
		}
	}
	steps := map[work]step{
		adding: {
			before: func() error {
				for i := 0; i < n; i += batch {
					batches = append(batches, jobs(i, min(i+batch, n)))
				}
				return nil
			},
			do: func() error {
				for _, b := range batches {
					if err := s.AddJobs(b); err != nil {
						return err
					}
				}
				return nil
			},
			after: measure(heapAdded),
		},
		starting: {
			before: func() error { restart(); return nil },
			do:     func() error { return s.Start() },
			after:  measure(heapStarted),
		},
		renumbering: {
			before: func() error {
				restart()
				return db.exec(dsn, "UPDATE jobs SET cron_id = 0")
			},
			do: func() error { return s.Start() },
		},
		pausing:  {do: func() error { return s.PauseJobs(&odd) }},
		resuming: {do: func() error { return s.ResumeJobs(&odd) }},
		listing:  {do: func() error { _, err := s.ListJobs(nil); return err }},
		updating: {
			before: func() error {
				for i := range n {
					other := expression(i + 7)
					updates = append(updates, smallben.UpdateOption{JobID: int64(i + 1), CronExpression: &other})
				}
				return nil
			},
			do:    func() error { return s.UpdateJobs(updates) },
			after: func() { updates = nil },
		},
		deleting: {do: func() error { return s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: odd}) }},
		addingAtOnce: {
			before: func() error {
				batches = [][]smallben.Job{jobs(0, n)}
				return s.DeleteAll()
			},
			do: func() error { return s.AddJobs(batches[0]) },
		},
		pausingMost: {do: func() error {
			ids := make([]int64, n*7/10)
			for i := range ids {
				ids[i] = int64(i + 1)
			}
			return s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: ids})
		}},
	}
	return steps, func() error {
		s.Stop()
		return repository.Close()
	}, nil
}

func (db *database) exec(dsn, statement string) error {
	pool, err := sql.Open(db.driver, dsn)
	if err != nil {
		return err
	}
	_, err = pool.Exec(statement)
	return errors.Join(err, pool.Close())
}

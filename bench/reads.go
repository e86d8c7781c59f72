package main

import (
	"database/sql"
	"errors"
	"fmt"
	"log"

	"github.com/nbena/smallben"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	listingSome work = "ListJobs of one super group"
	readingSome work = "the same rows by database/sql"
	scraping    work = "metrics scrape"

	atRest  = "at rest"
	inWrite = "during AddJobs"
)

// runReads lists jobs and scrapes metrics, at rest and while one AddJobs of o.big
// jobs is in progress.
func runReads(o *options, r results, _ int) error {
	for _, db := range databases(r) {
		log.Printf("%s, reads during a write", db.name)
		if err := readDuringWrite(o, r, db); err != nil {
			return fmt.Errorf("%s: %w", db.name, err)
		}
	}
	return nil
}

func readDuringWrite(o *options, r results, db *database) (err error) {
	dsn, drop, err := db.fresh()
	if err != nil {
		return err
	}
	defer drop()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: db.dialector(dsn)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repository.Close()) }()
	pool, err := sql.Open(db.driver, dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	s := newSmallBen(repository)
	defer s.Stop()
	registry := prometheus.NewRegistry()
	if err := errors.Join(s.RegisterMetrics(registry), s.Start(), s.AddJobs(jobs(0, o.n))); err != nil {
		return err
	}

	one := &smallben.ListJobsOptions{SuperGroupIDs: []int64{7}}
	round := func(when string) error {
		return errors.Join(
			r.timedAtOnce(cell{db.name, when, listingSome, o.n}, func() error { _, err := s.ListJobs(one); return err }),
			r.timedAtOnce(cell{db.name, when, readingSome, o.n}, func() error {
				_, err := readSQL(pool, "super_group_id = 7 ORDER BY id")
				return err
			}),
			r.timedAtOnce(cell{db.name, when, scraping, o.n}, func() error { _, err := registry.Gather(); return err }))
	}
	for range 30 {
		if err := round(atRest); err != nil {
			return err
		}
	}
	more := jobs(o.n, o.n+max(o.big, o.n))
	added := make(chan error, 1)
	go func() { added <- s.AddJobs(more) }()
	for {
		select {
		case err := <-added:
			return err
		default:
		}
		if err := round(inWrite); err != nil {
			return errors.Join(err, <-added)
		}
	}
}

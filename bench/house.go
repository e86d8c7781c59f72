package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/nbena/smallben"
)

const (
	firesAlone  work = "runs of jobs that are due each second"
	keepsAlone  work = "memory"
	startsAlone work = "Start"

	bytesJob   work = "heap and stacks for each job, B"
	firstStart work = "Start, with all cron ids to store, s"
	nextStart  work = "Start, s"

	million = 1_000_000 // jobs that Start loads, in a full run
)

// started is the number of jobs that Start loads.
func (o *options) started() int {
	if o.quick() {
		return o.n
	}
	return o.scaled(million)
}

// runHouse measures SmallBen without a record of runs, and an earlier SmallBen,
// each in a process of its own.
func runHouse(o *options, r results, round int) error {
	type trial struct {
		subject, program string
		database         *database
		alone            work
		n                int
	}
	programs := map[string]string{subjectNow: ""}
	subjects := []string{subjectNow}
	if o.before != "" {
		programs[subjectBefore] = o.before
		subjects = append(subjects, subjectBefore)
	}
	var trials []trial
	for _, subject := range rotated(subjects, round) {
		program := programs[subject]
		trials = append(trials,
			trial{subject, program, nil, firesAlone, o.n},
			trial{subject, program, nil, keepsAlone, o.n})
		for _, db := range databases(r) {
			trials = append(trials, trial{subject, program, db, startsAlone, o.started()})
		}
	}
	for _, trial := range trials {
		t := task{Database: "SQLite", Alone: trial.alone, Jobs: trial.n, Length: o.seconds}
		place := memory
		if trial.database != nil {
			place = trial.database.name
		}
		name := fmt.Sprintf("house, %s, %s, %s", trial.subject, place, trial.alone)
		if !o.match.MatchString(name) {
			continue
		}
		log.Print(name)
		drop := func() {}
		if trial.database != nil {
			var err error
			if t.DSN, drop, err = trial.database.fresh(); err != nil {
				return err
			}
			t.Database = trial.database.name
		}
		if o.profiles != "" {
			t.Profile = filepath.Join(o.profiles, strings.ReplaceAll(name, " ", "-"))
		}
		measured, err := measuredAlone(trial.program, t)
		drop()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for w, value := range measured {
			r.add(cell{place, trial.subject, w, trial.n}, value)
		}
	}
	return nil
}

func measuredAlone(program string, t task) (measured map[work]float64, err error) {
	p, err := startProcess(program, t)
	if err != nil {
		return nil, err
	}
	return measured, p.report(&measured)
}

// measureAlone is the other end of measuredAlone.
func (t *task) measureAlone(db *database) error {
	fmt.Println("begun")
	r := results{}
	var err error
	switch t.Alone {
	case firesAlone:
		err = fire(&options{n: t.Jobs, seconds: t.Length}, r, contenders[0])
	case keepsAlone:
		err = t.keep(r)
	case startsAlone:
		err = t.startAll(db, r)
	}
	measured := make(map[work]float64)
	for c := range r {
		measured[c.work], _ = r.median(c)
	}
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(measured))
}

// keep measures the memory of jobs whose input has two keys, the stacks of
// goroutines included, the database left out.
func (t *task) keep(r results) error {
	inUse := func() float64 {
		allocated := heap()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return allocated + float64(stats.StackInuse)
	}
	before := inUse()
	s, err := beginTimer()
	if err != nil {
		return err
	}
	for first := 0; first < t.Jobs; first += batch {
		added := jobs(first, min(first+batch, t.Jobs))
		for i := range added {
			added[i].JobInput = map[string]any{"to": "ops@example.com", "number": first + i}
		}
		if err := s.AddJobs(added); err != nil {
			return err
		}
	}
	r.add(cell{work: bytesJob}, (inUse()-before)/float64(t.Jobs))
	return s.stop()
}

// startAll starts with all the jobs of a database.
func (t *task) startAll(db *database, r results) (err error) {
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: db.dialector(t.DSN)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repository.Close()) }()
	s := newSmallBen(repository)
	for first := 0; first < t.Jobs; first += batch {
		if err := s.AddJobs(jobs(first, min(first+batch, t.Jobs))); err != nil {
			return err
		}
	}
	for _, w := range []work{firstStart, nextStart} {
		s = newSmallBen(repository)
		if err := r.timed(cell{work: w}, s.Start); err != nil {
			return err
		}
		s.Stop()
	}
	return nil
}

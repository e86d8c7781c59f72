package main

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/pgtest"
	"gorm.io/driver/postgres"
)

const (
	again     work = "runs beyond one for each tick"
	cpuBoth   work = "CPU of processes and server for each run, µs"
	killLate  work = "latest start after a SIGKILL, s"
	killGone  work = "ticks without a run after a SIGKILL"
	burstP50  work = "p50 lateness at one instant, ms"
	burstP99  work = "p99 lateness at one instant, ms"
	fleetAsks work = "statements a second of an idle fleet"
	fleetCPU  work = "CPU of an idle fleet and its server, % of a core"

	subjectNow    = "SmallBen"
	subjectBefore = "SmallBen, before"
	subjectRiver  = "River"
	subjectDBOS   = "DBOS"

	fleetRate = 1000 // jobs due each second, in a full run
	dbosRate  = 100  // of which ten processes of DBOS keep a core busy
	dbosIdle  = 200  // robfig/cron, which is in DBOS, takes time with the square of its entries

	burstJobs   = 5000 // due at one instant, in a full run
	burstEvery  = 5 * time.Second
	bursts      = 5
	everyBurst  = "*/5 * * * * *"
	killFleet   = 3
	killWatched = 20 * time.Second

	idleFleet  = 10
	idleSettle = 45 * time.Second // the first sweep of SmallBen looks at every account
)

// fleet is a scheduler of which several processes share the jobs.
type fleet struct {
	name       string
	member     string // what each process is
	old        bool   // the program that is built beside an earlier SmallBen
	rate, idle int    // jobs of a full run: due each second, and not due
	burst      bool   // whether it is up to burstJobs
}

// fleets are those to measure.
func (o *options) fleets() []fleet {
	fleets := []fleet{
		{name: subjectNow, member: subjectNow, rate: fleetRate, idle: idleJobs, burst: true},
		{name: subjectRiver, member: subjectRiver, rate: fleetRate, idle: idleJobs, burst: true},
		{name: subjectDBOS, member: subjectDBOS, rate: dbosRate, idle: dbosIdle},
	}
	if o.before != "" {
		old := fleets[0]
		old.name, old.old = subjectBefore, true
		fleets = slices.Insert(fleets, 1, old)
	}
	return fleets
}

// counts are the processes of the fleets.
func (o *options) counts() []int {
	if o.quick() {
		return []int{3}
	}
	return []int{1, 3, 10}
}

func (f fleet) cell(processes int, w work, n int) cell {
	return cell{"fleet", fmt.Sprintf("%s, %d", f.name, processes), w, n}
}

// runFleets measures every fleet on a PostgreSQL server of its own.
func runFleets(o *options, r results, round int) error {
	type trial struct {
		name string
		do   func(p *fleetPlace) error
	}
	var trials []trial
	for _, f := range o.fleets() {
		for _, n := range o.counts() {
			trials = append(trials, trial{fmt.Sprintf("%s, processes: %d", f.name, n), func(p *fleetPlace) error { return p.keepUp(r, f, n) }})
		}
		if o.quick() {
			continue
		}
		if f.burst {
			trials = append(trials, trial{f.name + ", at one instant", func(p *fleetPlace) error { return p.burst(r, f) }})
		}
		trials = append(trials,
			trial{f.name + ", SIGKILL", func(p *fleetPlace) error { return p.kill(r, f) }},
			trial{f.name + ", idle", func(p *fleetPlace) error { return p.idle(r, f) }})
	}
	for _, trial := range rotated(trials, round) {
		name := "fleet, " + trial.name
		if !o.match.MatchString(name) {
			continue
		}
		log.Print(name)
		p, err := newFleetPlace(o)
		if err != nil {
			return err
		}
		if err := errors.Join(trial.do(p), p.end()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// fleetPlace is a PostgreSQL server with processes on it.
type fleetPlace struct {
	o       *options
	scope   *scope
	dsn     string
	pool    *sql.DB
	server  int
	members []*process
}

func newFleetPlace(o *options) (p *fleetPlace, err error) {
	p = &fleetPlace{o: o, scope: &scope{}}
	defer func() {
		if recover() != nil {
			err = p.scope.err
		}
	}()
	// Peers have pools of their own size, and the statements of all are counted.
	p.dsn = pgtest.Start(p.scope, "max_connections=400", "shared_preload_libraries=pg_stat_statements").DSN()
	if p.pool, err = sql.Open("pgx", p.dsn); err != nil {
		p.scope.end()
		return nil, err
	}
	p.server = serverOf(databaseNamed("PostgreSQL"), p.pool.QueryRow("SELECT pg_backend_pid()").Scan)
	return p, nil
}

func (p *fleetPlace) end() (err error) {
	for _, member := range p.members {
		err = errors.Join(err, member.stop())
	}
	err = errors.Join(err, p.pool.Close())
	p.scope.end()
	return err
}

// start starts n members, of which the first adds the jobs.
func (p *fleetPlace) start(f fleet, n, jobs int, expression string) error {
	for i := range n {
		t := task{Database: "PostgreSQL", DSN: p.dsn, Member: f.member, Jobs: jobs, Expression: expression, First: i == 0}
		if p.o.profiles != "" {
			t.Profile = filepath.Join(p.o.profiles, fmt.Sprintf("%s-%d-of-%d", f.name, i, n))
		}
		program := ""
		if f.old {
			program = p.o.before
		}
		member, err := startProcess(program, t)
		if err != nil {
			return err
		}
		p.members = append(p.members, member)
	}
	return nil
}

// stop stops the members, and returns the runs of all.
func (p *fleetPlace) stop() (all []ran, err error) {
	for _, member := range p.members {
		var reported []ran
		err = errors.Join(err, member.report(&reported))
		all = append(all, reported...)
	}
	p.members = nil
	return all, err
}

func (p *fleetPlace) cpu() (processes, server time.Duration) {
	if p.server != 0 {
		server = cpuOf(p.server)
	}
	for _, member := range p.members {
		processes += cpuOf(member.Process.Pid)
	}
	return processes, server
}

// keepUp watches a fleet whose jobs are all due each second.
func (p *fleetPlace) keepUp(r results, f fleet, processes int) error {
	n := p.o.scaled(f.rate)
	if err := p.start(f, processes, n, everySecond); err != nil {
		return err
	}
	// Begin and end between ticks, when all has run.
	const margin = 200 * time.Millisecond
	first := time.Now().Truncate(time.Second).Add(p.o.settle() + time.Second)
	last := first.Add(p.o.record)
	time.Sleep(time.Until(first.Add(-margin)))
	used, served := p.cpu()
	time.Sleep(time.Until(last.Add(-margin)))
	usedAfter, servedAfter := p.cpu()
	all, err := p.stop()
	if err != nil {
		return err
	}
	seen := within(all, first, last)
	if len(seen) == 0 {
		log.Printf("%s ran nothing", f.name)
		return nil
	}
	runs, ticks := float64(len(seen)), float64(distinct(seen))
	used, served = usedAfter-used, servedAfter-served
	for w, value := range map[work]float64{
		recorded: 100 * ticks / float64(n) / p.o.record.Seconds(),
		again:    runs - ticks,
		median:   lateness(seen, .5).Seconds() * 1e3,
		p99:      lateness(seen, .99).Seconds() * 1e3,
		cpuRun:   used.Seconds() * 1e6 / runs,
	} {
		r.add(f.cell(processes, w, n), value)
	}
	if p.server != 0 {
		r.add(f.cell(processes, cpuServer, n), served.Seconds()*1e6/runs)
		r.add(f.cell(processes, cpuBoth, n), (used+served).Seconds()*1e6/runs)
	}
	return nil
}

// burst watches one process whose jobs are due at one instant, and then at another.
func (p *fleetPlace) burst(r results, f fleet) error {
	n := p.o.scaled(burstJobs)
	if err := p.start(f, 1, n, everyBurst); err != nil {
		return err
	}
	first := time.Now().Truncate(burstEvery).Add(2 * burstEvery)
	last := first.Add(bursts * burstEvery)
	time.Sleep(time.Until(last))
	all, err := p.stop()
	if err != nil {
		return err
	}
	seen := within(all, first, last)
	if distinct(seen) < n*bursts {
		log.Printf("%s ran %d of %d", f.name, distinct(seen), n*bursts)
	}
	if len(seen) == 0 {
		return nil
	}
	r.add(f.cell(1, burstP50, n), lateness(seen, .5).Seconds()*1e3)
	r.add(f.cell(1, burstP99, n), lateness(seen, .99).Seconds()*1e3)
	return nil
}

// kill kills the process that was started first at any time of a second, and
// watches what the others do from the next second on.
func (p *fleetPlace) kill(r results, f fleet) error {
	n := p.o.scaled(f.rate)
	if err := p.start(f, killFleet, n, everySecond); err != nil {
		return err
	}
	time.Sleep(p.o.settle() + time.Second + time.Duration(time.Now().Nanosecond()))
	victim := p.members[0]
	p.members = p.members[1:]
	if err := victim.kill(); err != nil {
		return err
	}
	from := time.Now().Truncate(time.Second).Add(time.Second)
	time.Sleep(time.Until(from.Add(killWatched + 2*time.Second)))
	all, err := p.stop()
	if err != nil {
		return err
	}
	seen := within(all, from, from.Add(killWatched))
	r.add(f.cell(killFleet, killGone, n), float64(n)*killWatched.Seconds()-float64(distinct(seen)))
	if len(seen) > 0 {
		r.add(f.cell(killFleet, killLate, n), lateness(seen, 1).Seconds())
	}
	return nil
}

// idle counts the statements of a fleet whose jobs are not due.
func (p *fleetPlace) idle(r results, f fleet) error {
	n := p.o.scaled(f.idle)
	if _, err := p.pool.Exec("CREATE EXTENSION pg_stat_statements"); err != nil {
		return err
	}
	if err := p.start(f, idleFleet, n, never); err != nil {
		return err
	}
	asked := func() (n int, err error) {
		err = p.pool.QueryRow("SELECT sum(calls) FROM pg_stat_statements").Scan(&n)
		return n, err
	}
	time.Sleep(idleSettle)
	before, err := asked()
	if err != nil {
		return err
	}
	used, served := p.cpu()
	time.Sleep(p.o.idle)
	usedAfter, servedAfter := p.cpu()
	after, err := asked()
	if err != nil {
		return err
	}
	r.add(f.cell(idleFleet, fleetAsks, n), float64(after-before)/p.o.idle.Seconds())
	r.add(f.cell(idleFleet, fleetCPU, n), 100*(usedAfter-used+servedAfter-served).Seconds()/p.o.idle.Seconds())
	_, err = p.stop()
	return err
}

// ran is a run: the job, the tick in Unix seconds, and how late it started in
// microseconds.
type ran [3]int64

// within are the runs of the ticks of a time.
func within(all []ran, from, to time.Time) []ran {
	return slices.DeleteFunc(slices.Clone(all), func(run ran) bool { return run[1] < from.Unix() || run[1] >= to.Unix() })
}

// distinct is the number of ticks of jobs that were run.
func distinct(runs []ran) int {
	ticks := make(map[[2]int64]struct{}, len(runs))
	for _, run := range runs {
		ticks[[2]int64{run[0], run[1]}] = struct{}{}
	}
	return len(ticks)
}

func lateness(runs []ran, p float64) time.Duration {
	all := make([]time.Duration, len(runs))
	for i, run := range runs {
		all[i] = time.Duration(run[2]) * time.Microsecond
	}
	return percentile(all, p)
}

// started are the runs of this process.
var started struct {
	mu   sync.Mutex
	runs []ran
}

func start(job int64, tick time.Time) {
	late := time.Since(tick).Microseconds()
	started.mu.Lock()
	defer started.mu.Unlock()
	started.runs = append(started.runs, ran{job, tick.Unix(), late})
}

// Timed is a job that notes when its runs start.
type Timed struct{}

// Run notes it.
func (*Timed) Run(input smallben.CronJobInput) { start(input.JobID, input.ScheduledAt) }

// belong is a process of a fleet: it runs until done, and reports.
func (t *task) belong(done <-chan struct{}) error {
	begin := map[string]func(*task) (end func() error, err error){subjectNow: beginMember, subjectRiver: beginRiver, subjectDBOS: beginDBOS}[t.Member]
	end, err := begin(t)
	if err != nil {
		return err
	}
	fmt.Println("begun")
	<-done
	err = end()
	started.mu.Lock()
	defer started.mu.Unlock()
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(started.runs))
}

// beginMember begins a SmallBen that records.
func beginMember(t *task) (func() error, error) {
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: postgres.Open(t.DSN)})
	if err != nil {
		return nil, err
	}
	s := newRecording(repository)
	if t.First {
		for from := 0; from < t.Jobs; from += batch {
			added := jobs(from, min(from+batch, t.Jobs))
			for i := range added {
				added[i].CronExpression, added[i].Job = t.Expression, &Timed{}
			}
			if err := s.AddJobs(added); err != nil {
				return nil, errors.Join(err, repository.Close())
			}
		}
	}
	if err := s.Start(); err != nil {
		return nil, errors.Join(err, repository.Close())
	}
	return func() error {
		s.Stop()
		return repository.Close()
	}, nil
}

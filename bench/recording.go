package main

import (
	"database/sql"
	"errors"
	"fmt"
	"log"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

const (
	recorded   work = "run, of 100 %"
	aSecond    work = "recorded each second"
	cpuServer  work = "CPU of the server for each run, µs"
	bareRuns   work = "runs a second of the prototype"
	nextTick   work = "latest start of the ticks after a SIGKILL"
	ticksGone  work = "ticks without a run after a SIGKILL"
	lostMark   work = "SIGKILL to the mark of the last lost run"
	statements work = "statements a second of an idle process"
	idleServer work = "CPU of the server of an idle process"

	starts      = "Record off"
	firstStarts = "Record on, the first time"
	recordingOn = "Record on"

	takeoverRate = 500 // in a full run

	never = "0 0 0 29 2 *" // while the benchmark runs, but on one day
)

// Waiter is a job whose runs take a while.
type Waiter struct{ Time time.Duration }

// Run waits.
func (w *Waiter) Run(smallben.CronJobInput) { time.Sleep(w.Time) }

// load is how many jobs run each second, on how many processes. They are all due
// at one instant, or are triggered in a hundred calls.
type load struct {
	rate, processes int
	spread          bool
}

func (l load) String() string {
	if l.spread {
		return fmt.Sprintf("%d, triggered", l.processes)
	}
	return fmt.Sprint(l.processes)
}

func (l load) cell(place string, w work) cell { return cell{place, l.String(), w, l.rate} }

// loads are kept up on each database in a full run.
var loads = map[string][]load{
	"PostgreSQL": {{rate: 1000, processes: 1}, {rate: 3000, processes: 1}, {rate: 5000, processes: 1}, {rate: 10_000, processes: 1}, {rate: 20_000, processes: 1}, {rate: 30_000, processes: 1},
		{rate: 5000, processes: 3}, {rate: 10_000, processes: 3}, {rate: 5000, processes: 1, spread: true}},
	"SQLite": {{rate: 1000, processes: 1}, {rate: 3000, processes: 1}, {rate: 5000, processes: 1}, {rate: 10_000, processes: 1},
		{rate: 3000, processes: 3}, {rate: 5000, processes: 3}, {rate: 5000, processes: 1, spread: true}},
}

// loads are those of a database, in proportion to -n.
func (o *options) loads(database string) []load {
	all := slices.Clone(loads[database])
	if o.quick() {
		all = all[:1]
	}
	for i := range all {
		all[i].rate = o.scaled(all[i].rate)
	}
	return all
}

// runRecording measures what the record of runs costs.
func runRecording(o *options, r results, round int) error {
	type trial struct {
		name string
		do   func(p *place) error
	}
	for _, db := range databases(r) {
		trials := []trial{{"starts", func(p *place) error { return p.startRecording(o, r) }}}
		if !o.quick() {
			trials = append(trials,
				trial{"takeover", func(p *place) error { return p.takeOver(r, o.scaled(takeoverRate)) }},
				trial{"idle", func(p *place) error { return p.recordIdly(o, r, o.scaled(idleJobs)) }})
			for _, n := range []int{1, 3} {
				trials = append(trials, trial{fmt.Sprint("prototype, processes: ", n), func(p *place) error { return p.claimBare(o, r, n) }})
			}
		}
		for _, l := range o.loads(db.name) {
			trials = append(trials, trial{fmt.Sprintf("%d runs a second, processes: %v", l.rate, l), func(p *place) error { return p.keepUp(o, r, l) }})
		}
		for _, trial := range rotated(trials, round) {
			name := db.name + ", recording, " + trial.name
			if !o.match.MatchString(name) {
				continue
			}
			log.Print(name)
			p, err := newPlace(db)
			if err != nil {
				return err
			}
			if err := errors.Join(trial.do(p), p.end()); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// place is a database with processes on it, and a look into it.
type place struct {
	*database
	dsn       string
	pool      *sql.DB
	server    int
	processes []*process
	drop      func()
}

func newPlace(db *database) (*place, error) {
	p := &place{database: db}
	var err error
	if p.dsn, p.drop, err = db.fresh(); err != nil {
		return nil, err
	}
	if p.pool, err = sql.Open(db.driver, p.dsn); err != nil {
		p.drop()
		return nil, err
	}
	p.server = serverOf(db, p.pool.QueryRow("SELECT pg_backend_pid()").Scan)
	return p, nil
}

// end stops the processes that run.
func (p *place) end() error {
	err := errors.Join(p.stop(), p.pool.Close())
	p.drop()
	return err
}

func (p *place) start(n int, t task) error {
	t.Database, t.DSN = p.name, p.dsn
	profile := t.Profile
	for i := range n {
		if profile != "" {
			t.Profile = fmt.Sprintf("%s-%d", profile, i)
		}
		process, err := startProcess("", t)
		if err != nil {
			return err
		}
		p.processes = append(p.processes, process)
	}
	return nil
}

func (p *place) stop() (err error) {
	for _, process := range p.processes {
		err = errors.Join(err, process.stop())
	}
	p.processes = nil
	return err
}

// cpu is what the processes and the server have used.
func (p *place) cpu() (processes, server time.Duration) {
	if p.server != 0 {
		server = cpuOf(p.server)
	}
	for _, process := range p.processes {
		processes += cpuOf(process.Process.Pid)
	}
	return processes, server
}

// open opens the database for a SmallBen in this process.
func (p *place) open(do func(*smallben.RepositoryGorm) error) error {
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: p.dialector(p.dsn)})
	if err != nil {
		return err
	}
	return errors.Join(do(repository), repository.Close())
}

// fill adds jobs with one expression.
func (p *place) fill(n int, expression string, job smallben.CronJob) error {
	return p.open(func(repository *smallben.RepositoryGorm) error {
		s := newRecording(repository)
		for first := 0; first < n; first += batch {
			made := jobs(first, min(first+batch, n))
			for i := range made {
				made[i].CronExpression, made[i].Job = expression, job
			}
			if err := s.AddJobs(made); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *place) count(condition string, args ...any) (n int, err error) {
	err = p.pool.QueryRow("SELECT count(*) FROM smallben_runs WHERE "+condition, args...).Scan(&n)
	return n, err
}

// settle is how long processes run before they are measured.
func (o *options) settle() time.Duration {
	if o.quick() {
		return 2 * time.Second
	}
	return 4 * time.Second
}

// keepUp keeps up a load for a while, and looks into the record how it went.
func (p *place) keepUp(o *options, r results, l load) error {
	t, expression := task{}, everySecond
	if l.spread {
		t.Trigger, expression = l.rate, never
	}
	if o.profiles != "" {
		t.Profile = filepath.Join(o.profiles, fmt.Sprintf("%s-%d-%d", p.name, l.rate, l.processes))
	}
	if err := errors.Join(p.fill(l.rate, expression, &Reminder{}), p.start(l.processes, t)); err != nil {
		return err
	}
	// Some seconds to settle, and begin and end between ticks, when all is recorded.
	const margin = 300 * time.Millisecond
	first := time.Now().Truncate(time.Second).Add(o.settle())
	last := first.Add(o.record)
	look := func(at time.Time) (finished int, processes, server time.Duration, err error) {
		time.Sleep(time.Until(at.Add(-margin)))
		processes, server = p.cpu()
		finished, err = p.count("tick >= $1 AND outcome = 'ok'", first.Add(-time.Minute).UnixMicro())
		return finished, processes, server, err
	}
	before, used, served, err := look(first)
	if err != nil {
		return err
	}
	after, usedAfter, servedAfter, err := look(last)
	if err := errors.Join(err, p.stop()); err != nil {
		return err
	}
	r.add(l.cell(p.name, aSecond), float64(after-before)/o.record.Seconds())
	r.add(l.cell(p.name, cpuRun), (usedAfter-used).Seconds()*1e6/float64(after-before))
	if p.server != 0 {
		r.add(l.cell(p.name, cpuServer), (servedAfter-served).Seconds()*1e6/float64(after-before))
	}

	const watched = "tick >= $1 AND tick < $2 AND outcome = 'ok'"
	ticks := []any{first.Add(-margin).UnixMicro(), last.Add(-margin).UnixMicro()}
	n, err := p.count(watched, ticks...)
	if err != nil || n == 0 {
		return errors.Join(err, errors.New("nothing was run"))
	}
	r.add(l.cell(p.name, recorded), 100*float64(n)/float64(l.rate)/o.record.Seconds())
	for w, offset := range map[work]int{median: n / 2, p99: n * 99 / 100} {
		var late int64
		if err := p.pool.QueryRow("SELECT started_at - tick FROM smallben_runs WHERE "+watched+" ORDER BY 1 LIMIT 1 OFFSET $3", append(ticks, offset)...).Scan(&late); err != nil {
			return err
		}
		r.add(l.cell(p.name, w), float64(late)/1e3)
	}
	return nil
}

// claimBare lets prototypes compete.
func (p *place) claimBare(o *options, r results, processes int) error {
	if err := p.fill(batch, never, &Reminder{}); err != nil {
		return err
	}
	if _, err := p.pool.Exec(prototypes[p.name].schema); err != nil {
		return err
	}
	if err := p.start(processes, task{Bare: true}); err != nil {
		return err
	}
	finished := func() (n int, err error) {
		err = p.pool.QueryRow("SELECT count(*) FROM bare_runs WHERE ended_at IS NOT NULL").Scan(&n)
		return n, err
	}
	time.Sleep(time.Second)
	start := time.Now()
	before, err := finished()
	if err != nil {
		return err
	}
	time.Sleep(min(o.record, 10*time.Second))
	seconds := time.Since(start).Seconds()
	n, err := finished()
	r.add(load{processes: processes}.cell(p.name, bareRuns), float64(n-before)/seconds)
	return err
}

// startRecording starts with o.big jobs, without a record and with one.
func (p *place) startRecording(o *options, r results) error {
	n := max(o.n, o.big)
	return p.open(func(repository *smallben.RepositoryGorm) error {
		for first := 0; first < n; first += batch {
			if err := newSmallBen(repository).AddJobs(jobs(first, min(first+batch, n))); err != nil {
				return err
			}
		}
		// The first Start is for warmth.
		for i, subject := range []string{starts, starts, firstStarts, recordingOn} {
			s := newRecording(repository)
			if subject == starts {
				s = newSmallBen(repository)
			}
			measured := cell{p.name, subject, starting, n}
			if i == 0 {
				measured = cell{}
			}
			if err := r.timed(measured, s.Start); err != nil {
				return err
			}
			s.Stop()
		}
		return nil
	})
}

// takeOver kills one of two processes.
func (p *place) takeOver(r results, rate int) error {
	const watched = 10 * time.Second
	if err := errors.Join(p.fill(rate, everySecond, &Waiter{3 * time.Second}), p.start(2, task{})); err != nil {
		return err
	}
	time.Sleep(6*time.Second + time.Duration(time.Now().Nanosecond())) // at any time of a second
	dead := p.processes[0]
	p.processes = p.processes[1:]
	killed := time.Now()
	if err := dead.kill(); err != nil {
		return err
	}
	of := fmt.Sprintf("process LIKE '%%/%d/%%' AND ", dead.Process.Pid)
	unfinished, err := 1, error(nil)
	for unfinished > 0 && time.Since(killed) < time.Minute {
		time.Sleep(20 * time.Millisecond)
		if unfinished, err = p.count(of + "ended_at IS NULL"); err != nil {
			return err
		}
	}
	after := time.Since(killed)
	lost, err := p.count(of + "outcome = 'lost'")
	if err != nil {
		return err
	}
	log.Printf("%d runs lost", lost)
	from := killed.Truncate(time.Second).Add(time.Second)
	ticks := []any{from.UnixMicro(), from.Add(watched).UnixMicro()}
	var latest sql.NullInt64
	if err := p.pool.QueryRow("SELECT max(started_at - tick) FROM smallben_runs WHERE tick >= $1 AND tick < $2", ticks...).Scan(&latest); err != nil {
		return err
	}
	ran, err := p.count("tick >= $1 AND tick < $2 AND outcome IN ('ok', 'running')", ticks...)
	r.add(cell{p.name, recordingOn, lostMark, rate}, after.Seconds())
	r.add(cell{p.name, recordingOn, nextTick, rate}, float64(latest.Int64)/1e6)
	r.add(cell{p.name, recordingOn, ticksGone, rate}, float64(rate)*watched.Seconds()-float64(ran))
	return err
}

// recordIdly watches a process whose jobs are not due, and counts its statements.
func (p *place) recordIdly(o *options, r results, n int) error {
	if err := p.fill(n, never, &Reminder{}); err != nil {
		return err
	}
	counted, dialector, err := p.counted()
	if err != nil {
		return err
	}
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, counted.DB().Close()) }()
	s := newRecording(repository)
	if err := s.Start(); err != nil {
		return err
	}
	defer s.Stop()
	heap()
	time.Sleep(45 * time.Second) // the first sweep looks at every account
	before := counted.Count()
	_, serverBefore := p.cpu()
	used := cpu()
	time.Sleep(o.idle)
	used = cpu() - used
	_, server := p.cpu()
	seconds := o.idle.Seconds()
	r.add(cell{p.name, recordingOn, statements, n}, float64(counted.Count()-before)/seconds)
	r.add(cell{p.name, recordingOn, idleCPU, n}, 100*used.Seconds()/seconds)
	r.add(cell{p.name, recordingOn, idleServer, n}, 100*(server-serverBefore).Seconds()/seconds)
	return nil
}

// counted gives a dialector whose statements are counted.
func (p *place) counted() (*faultsql.Faults, gorm.Dialector, error) {
	if p.name == "PostgreSQL" {
		counted, err := faultsql.Postgres(p.dsn)
		if err != nil {
			return nil, nil, err
		}
		return counted, postgres.New(postgres.Config{Conn: counted.DB()}), nil
	}
	path, params, _ := strings.Cut(strings.TrimPrefix(p.dsn, "file:"), "?")
	path, err := url.PathUnescape(path)
	counted := faultsql.SQLite(path, params)
	return counted, sqlite.New(sqlite.Config{Conn: counted.DB()}), err
}

// Command bench measures SmallBen on SQLite and PostgreSQL, beside the bare
// databases and beside the schedulers that people would use instead, all of them
// interleaved in one process; what the record of runs costs, and what a fleet of
// processes costs beside River and DBOS, in several processes; and SmallBen beside
// an earlier SmallBen. It prints what README.md shows.
//
//	go run . -n 30000
package main

import (
	"encoding/gob"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/pgtest"
)

// Sizes and times of a full run. Everything else is in proportion to -n.
const (
	fullJobs  = 30_000
	quickJobs = 10_000 // below it, -n asks for a quick look

	fullFire, quickFire     = 6 * time.Second, time.Second
	fullIdle, quickIdle     = time.Minute, 2 * time.Second
	fullRecord, quickRecord = 25 * time.Second, 2 * time.Second
)

type options struct {
	n       int           // jobs of the tables
	big     int           // and of the row on growth
	rounds  int           // medians are taken over them
	seconds time.Duration // how long jobs fire each second
	idle    time.Duration // how long jobs spread over a day are watched
	dsn     string        // a PostgreSQL server
	svg     string        // where to draw
	only    string        // parts to run
	before  string        // this program, built beside an earlier SmallBen

	record   time.Duration  // how long each load is recorded
	match    *regexp.Regexp // the parts of record, fleet and house to run
	profiles string         // directory for profiles of what records
}

// quick reports whether all is to end within a minute. What takes its time however
// few the jobs are is then left out.
func (o *options) quick() bool { return o.n < quickJobs }

// scaled is the number of jobs for -n, where full is that for 30,000.
func (o *options) scaled(full int) int { return max(1, full*o.n/fullJobs) }

// complete sets the times that no flag set.
func (o *options) complete() {
	for _, d := range []struct {
		of          *time.Duration
		full, quick time.Duration
	}{{&o.seconds, fullFire, quickFire}, {&o.idle, fullIdle, quickIdle}, {&o.record, fullRecord, quickRecord}} {
		switch {
		case *d.of != 0:
		case o.quick():
			*d.of = d.quick
		default:
			*d.of = d.full
		}
	}
}

func (o *options) wants(part string) bool {
	return o.only == "" || slices.Contains(strings.Split(o.only, ","), part)
}

// sizes are those of the drawing, in ascending order.
func (o *options) sizes() []int {
	sizes := []int{o.n}
	if o.svg != "" {
		sizes = append(sizes, 1000, 3000, 10_000)
	}
	if o.big > 0 {
		sizes = append(sizes, o.big)
	}
	slices.Sort(sizes)
	return slices.Compact(sizes)
}

// Reminder is the job of the benchmark.
type Reminder struct {
	Text  string
	Tries int
}

// Run does nothing.
func (*Reminder) Run(smallben.CronJobInput) {}

func main() {
	log.SetFlags(log.Ltime)
	o := options{match: regexp.MustCompile("")}
	flag.IntVar(&o.n, "n", fullJobs, "jobs of the tables, to which all other numbers of jobs are in proportion; below 10,000 it is a quick look")
	flag.IntVar(&o.big, "big", 100_000, "jobs of the tables on growth; 0 leaves them out")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds, of which medians are taken")
	flag.DurationVar(&o.seconds, "fire", 0, "how long jobs fire each second; 0: 6s, or 1s in a quick look")
	flag.DurationVar(&o.idle, "idle", 0, "how long jobs that are not due are watched; 0: 1m, or 2s in a quick look")
	flag.StringVar(&o.dsn, "dsn", "", "PostgreSQL `URL`; if empty SMALLBEN_POSTGRES_DSN, or else a throwaway server")
	flag.StringVar(&o.svg, "svg", "", "`file` to draw the growth to")
	flag.StringVar(&o.only, "only", "", "comma-separated `parts` to run: databases, reads, memory, fire, idle, record, fleet, house; if empty all")
	flag.StringVar(&o.before, "before", "", "this `program`, built beside an earlier SmallBen, to measure in fleet and house as well")
	flag.DurationVar(&o.record, "record", 0, "how long each load is recorded; 0: 25s, or 2s in a quick look")
	flag.Func("match", "`expression` that the names of the parts of record, fleet and house match, which are logged", func(text string) (err error) {
		o.match, err = regexp.Compile(text)
		return err
	})
	flag.StringVar(&o.profiles, "profiles", "", "`directory` for profiles of the processes that record")
	process := flag.String("task", "", "what a process that this program started does")
	flag.Parse()
	o.complete()
	if o.dsn != "" {
		if err := os.Setenv("SMALLBEN_POSTGRES_DSN", o.dsn); err != nil {
			log.Fatal(err)
		}
	}
	gob.Register(&Reminder{})
	gob.Register(&call{})
	gob.Register(&Waiter{})
	gob.Register(&Timed{})
	if *process != "" {
		var t task
		if err := errors.Join(json.Unmarshal([]byte(*process), &t), t.do()); err != nil {
			log.Fatal(err)
		}
		return
	}
	err := run(&o)
	pgtest.Stop()
	if err != nil {
		log.Fatal(err)
	}
}

// part is a part of the benchmark, with its tables.
type part struct {
	name  string
	run   func(o *options, r results, round int) error
	print func(p *printer)
}

var parts = []part{
	{name: "databases", run: runDatabases, print: (*printer).databases},
	{name: "reads", run: runReads, print: (*printer).reads},
	{name: "memory", run: runMemory, print: (*printer).memory},
	{name: "fire", run: runFiring, print: (*printer).firing},
	{name: "idle", run: runIdle, print: (*printer).idle},
	{name: "record", run: runRecording, print: (*printer).recording},
	{name: "fleet", run: runFleets, print: (*printer).fleets},
	{name: "house", run: runHouse, print: (*printer).house},
}

// run prints the tables of each part as soon as it is over.
func run(o *options) error {
	r := results{}
	p := &printer{os.Stdout, o, r}
	p.head()
	for _, part := range parts {
		if !o.wants(part.name) {
			continue
		}
		for round := range o.rounds {
			log.Printf("%s, round %d of %d", part.name, round+1, o.rounds)
			if err := part.run(o, r, round); err != nil {
				return err
			}
		}
		part.print(p)
	}
	if o.svg != "" {
		if err := draw(o, r); err != nil {
			return fmt.Errorf("draw %s: %w", o.svg, err)
		}
	}
	return nil
}

// rotated is values from the round's first on, so that none always runs first.
func rotated[T any](values []T, round int) []T {
	k := round % len(values)
	return append(slices.Clone(values[k:]), values[:k]...)
}

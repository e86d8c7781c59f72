// Command bench measures SmallBen on SQLite and PostgreSQL, beside the bare
// databases and beside the schedulers that people would use instead, all of them
// interleaved in one process, and what the record of runs costs, in several
// processes. It prints what README.md shows.
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

type options struct {
	n       int           // jobs of the tables
	big     int           // and of the row on growth
	rounds  int           // medians are taken over them
	seconds time.Duration // how long 10,000 jobs fire each second
	idle    time.Duration // how long 100,000 jobs spread over a day are watched
	dsn     string        // a PostgreSQL server
	svg     string        // where to draw
	only    string        // parts to run

	record   time.Duration  // how long each load is recorded
	match    *regexp.Regexp // the parts of it to run
	profiles string         // directory for profiles of what records
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
	flag.IntVar(&o.n, "n", 30_000, "jobs of the tables")
	flag.IntVar(&o.big, "big", 100_000, "jobs of the tables on growth; 0 leaves them out")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds, of which medians are taken")
	flag.DurationVar(&o.seconds, "fire", 6*time.Second, "how long 10,000 jobs fire each second")
	flag.DurationVar(&o.idle, "idle", time.Minute, "how long 100,000 jobs that are spread over a day are watched")
	flag.StringVar(&o.dsn, "dsn", "", "PostgreSQL `URL`; if empty SMALLBEN_POSTGRES_DSN, or else a throwaway server")
	flag.StringVar(&o.svg, "svg", "", "`file` to draw the growth to")
	flag.StringVar(&o.only, "only", "", "comma-separated `parts` to run: databases, reads, memory, fire, idle, record; if empty all")
	flag.DurationVar(&o.record, "record", 25*time.Second, "how long each load is recorded")
	flag.Func("match", "`expression` that the names of the parts of record match, which are logged", func(text string) (err error) {
		o.match, err = regexp.Compile(text)
		return err
	})
	flag.StringVar(&o.profiles, "profiles", "", "`directory` for profiles of the processes that record")
	process := flag.String("task", "", "what a process that this program started does")
	flag.Parse()
	if o.dsn != "" {
		if err := os.Setenv("SMALLBEN_POSTGRES_DSN", o.dsn); err != nil {
			log.Fatal(err)
		}
	}
	gob.Register(&Reminder{})
	gob.Register(&call{})
	gob.Register(&Waiter{})
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

func run(o *options) error {
	r := results{}
	for round := range o.rounds {
		log.Printf("round %d of %d", round+1, o.rounds)
		if o.wants("databases") {
			if err := runDatabases(o, r, round); err != nil {
				return err
			}
		}
		if o.wants("reads") {
			if err := runReads(o, r); err != nil {
				return err
			}
		}
		if o.wants("memory") {
			if err := runMemory(o, r, round); err != nil {
				return err
			}
		}
		if o.wants("fire") {
			if err := runFiring(o, r, round); err != nil {
				return err
			}
		}
		if o.wants("record") {
			if err := runRecording(o, r, round); err != nil {
				return err
			}
		}
	}
	if o.wants("idle") {
		if err := runIdle(o, r); err != nil {
			return err
		}
	}
	report(os.Stdout, o, r)
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

package main

import (
	"errors"
	"fmt"
	"log"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	everySecond = "* * * * * *"
	firingJobs  = 10_000  // in a full run
	idleJobs    = 100_000 // in a full run

	runsSeen work = "runs, of 100 %"
	median   work = "median lateness, ms"
	p99      work = "p99 lateness, ms"
	cpuRun   work = "CPU for each run, µs"
	heapRan  work = "heap for each job, B"
	idleCPU  work = "CPU of an idle minute"
)

// runFiring lets as many jobs of each contender fire every second.
func runFiring(o *options, r results, round int) error {
	for _, c := range rotated(contenders, round) {
		if c.name == oneByOne {
			continue // it differs in adding only
		}
		log.Printf("firing, %s", c.name)
		if err := fire(o, r, c); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// recorder keeps how long after the whole second runs come while it is on.
type recorder struct {
	on       atomic.Bool
	next     atomic.Int64
	lateness []time.Duration
}

func (rec *recorder) run() {
	if !rec.on.Load() {
		return
	}
	late := time.Duration(time.Now().Nanosecond())
	if i := rec.next.Add(1) - 1; int(i) < len(rec.lateness) {
		rec.lateness[i] = late
	}
}

func fire(o *options, r results, c contender) error {
	seconds, n := int(o.seconds/time.Second), o.scaled(firingJobs)
	rec := &recorder{lateness: make([]time.Duration, (seconds+1)*n)}
	before := heap()
	t, err := c.begin()
	if err != nil {
		return err
	}
	expressions := make([]string, min(c.batch, n))
	for i := range expressions {
		expressions[i] = everySecond
	}
	for first := 0; first < n; first += len(expressions) {
		if err := t.add(first, expressions[:min(len(expressions), n-first)], rec.run); err != nil {
			return errors.Join(err, t.stop())
		}
	}
	settle := 2 * time.Second
	if o.quick() {
		settle = time.Second
	}
	// Begin and end well between ticks.
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(settle + 700*time.Millisecond)))
	used := cpu()
	rec.on.Store(true)
	time.Sleep(time.Duration(seconds) * time.Second)
	rec.on.Store(false)
	used = cpu() - used
	runs := min(int(rec.next.Load()), len(rec.lateness))
	seen := rec.lateness[:runs]
	r.add(cell{memory, c.name, runsSeen, n}, 100*float64(runs)/float64(seconds*n))
	if runs > 0 {
		r.add(cell{memory, c.name, median, n}, percentile(seen, .5).Seconds()*1e3)
		r.add(cell{memory, c.name, p99, n}, percentile(seen, .99).Seconds()*1e3)
		r.add(cell{memory, c.name, cpuRun, n}, used.Seconds()*1e6/float64(runs))
	}
	r.add(cell{memory, c.name, heapRan, n}, (heap()-before)/float64(n))
	return t.stop()
}

// runIdle watches jobs of SmallBen that are spread over a day.
func runIdle(o *options, r results, _ int) error {
	n := o.scaled(idleJobs)
	log.Printf("idle, %d jobs, for %v", n, o.idle)
	t, err := beginTimer()
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	if err := t.RegisterMetrics(registry); err != nil {
		return err
	}
	for first := 0; first < n; first += batch {
		expressions := make([]string, min(batch, n-first))
		for i := range expressions {
			expressions[i] = expression(first + i)
		}
		if err := t.add(first, expressions, func() {}); err != nil {
			return errors.Join(err, t.stop())
		}
	}
	heap()
	used := cpu()
	time.Sleep(o.idle)
	r.add(cell{memory, "SmallBen", idleCPU, n}, 100*(cpu()-used).Seconds()/o.idle.Seconds())
	return t.stop()
}

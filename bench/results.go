package main

import (
	"runtime"
	"slices"
	"syscall"
	"time"
)

// cell is a quantity that is measured once a round.
type cell struct {
	place   string // a database, or memory
	subject string
	work    work
	n       int // jobs
}

type results map[cell][]float64

func (r results) add(c cell, value float64) { r[c] = append(r[c], value) }

// median is false if nothing was measured.
func (r results) median(c cell) (float64, bool) {
	values := slices.Sorted(slices.Values(r[c]))
	if len(values) == 0 {
		return 0, false
	}
	if k := len(values) / 2; len(values)%2 == 0 {
		return (values[k-1] + values[k]) / 2, true
	}
	return values[len(values)/2], true
}

// slowest of what was measured.
func (r results) slowest(c cell) float64 { return slices.Max(r[c]) }

// timed adds the seconds that do takes, none of it spent on earlier garbage.
func (r results) timed(c cell, do func() error) error {
	runtime.GC()
	return r.timedAtOnce(c, do)
}

// timedAtOnce is timed without a collection first.
func (r results) timedAtOnce(c cell, do func() error) error {
	start := time.Now()
	if err := do(); err != nil {
		return err
	}
	r.add(c, time.Since(start).Seconds())
	return nil
}

// heap is what is in use.
func heap() float64 {
	runtime.GC()
	runtime.GC() // what pools kept through the first
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return float64(stats.HeapAlloc)
}

// cpu is what this process has used, the kernel's work for it included.
func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// percentile of values, which it sorts.
func percentile(values []time.Duration, p float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(len(values)-1, int(float64(len(values))*p))]
}

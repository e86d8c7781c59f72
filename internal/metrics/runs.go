// Package metrics counts and times runs, and what the record of runs does, for
// Prometheus. It knows the names of outcomes and of types, and no job.
package metrics

import (
	"reflect"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// collectors are a prometheus.Collector of several.
type collectors []prometheus.Collector

// Describe implements prometheus.Collector.
func (c collectors) Describe(descs chan<- *prometheus.Desc) {
	for _, collector := range c {
		collector.Describe(descs)
	}
}

// Collect implements prometheus.Collector.
func (c collectors) Collect(values chan<- prometheus.Metric) {
	for _, collector := range c {
		collector.Collect(values)
	}
}

// Runs counts and times runs. NewRuns makes one; it is goroutine-safe.
type Runs struct {
	collectors
	ended      *prometheus.CounterVec
	attempts   *prometheus.CounterVec
	givenUp    *prometheus.CounterVec
	skipped    *prometheus.CounterVec
	inProgress *prometheus.GaugeVec
	duration   *prometheus.HistogramVec
	lateness   *prometheus.HistogramVec

	types sync.Map // reflect.Type to *Type
}

// jobType is the label that says the type of job.
const jobType = "job_type"

// NewRuns returns counters that stand at 0.
func NewRuns() *Runs {
	m := &Runs{
		ended:    counters("smallben_runs_total", "Runs that ended, by outcome.", jobType, "outcome"),
		attempts: counters("smallben_attempts_total", "Second and further attempts that ended, by outcome.", jobType, "outcome"),
		givenUp:  counters("smallben_runs_given_up_total", "Runs of jobs with attempts that failed and are not tried again.", jobType),
		skipped:  counters("smallben_runs_skipped_total", "Ticks that did not become a run, by reason.", jobType, "reason"),
		inProgress: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "smallben_runs_in_progress",
			Help: "Runs in progress.",
		}, []string{jobType}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "smallben_run_duration_seconds",
			Help:    "Time from the start of a run to its end.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 2.5, 5, 10, 15, 30, 60, 300, 900, 3600},
		}, []string{jobType}),
		lateness: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "smallben_run_lateness_seconds",
			Help:    "Time from the tick of a run to the start of its first attempt.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{jobType}),
	}
	m.collectors = collectors{m.ended, m.attempts, m.givenUp, m.skipped, m.inProgress, m.duration, m.lateness}
	return m
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// Type are the metrics of the runs of one type of job, looked up once for each job and
// not at each run.
type Type struct {
	outcomes           map[string]prometheus.Counter
	attempts           map[string]prometheus.Counter // nil if its runs have one attempt
	givenUp            prometheus.Counter            // the same
	skipped            prometheus.Counter
	inProgress         prometheus.Gauge
	duration, lateness prometheus.Observer
}

// OfType returns the metrics of a type: name gives its label, outcomes are those that
// its runs may have, and attempts says whether they may be tried again. What the first
// call says of a type stands.
func (m *Runs) OfType(of reflect.Type, name func() string, outcomes []string, attempts bool) *Type {
	if known, ok := m.types.Load(of); ok {
		return known.(*Type)
	}
	label := name()
	made := &Type{
		outcomes:   make(map[string]prometheus.Counter),
		skipped:    m.skipped.WithLabelValues(label, "overlap"),
		inProgress: m.inProgress.WithLabelValues(label),
		duration:   m.duration.WithLabelValues(label),
		lateness:   m.lateness.WithLabelValues(label),
	}
	if attempts {
		made.givenUp = m.givenUp.WithLabelValues(label)
		made.attempts = make(map[string]prometheus.Counter)
	}
	for _, outcome := range outcomes {
		made.outcomes[outcome] = m.ended.WithLabelValues(label, outcome)
		if attempts {
			made.attempts[outcome] = m.attempts.WithLabelValues(label, outcome)
		}
	}
	known, _ := m.types.LoadOrStore(of, made)
	return known.(*Type)
}

// Skipped counts a tick that is skipped because its job still runs.
func (m *Type) Skipped() { m.skipped.Inc() }

// Started counts a run in progress, the first attempt or a further one.
func (m *Type) Started(attempt int32, late time.Duration) {
	m.inProgress.Inc()
	if attempt == 1 {
		m.lateness.Observe(late.Seconds())
	}
}

// Ended counts a run that has ended, and whether it failed for good though its job has
// attempts.
func (m *Type) Ended(outcome string, attempt int32, took time.Duration, givenUp bool) {
	m.inProgress.Dec()
	m.duration.Observe(took.Seconds())
	m.outcomes[outcome].Inc()
	if attempt > 1 && m.attempts != nil {
		m.attempts[outcome].Inc()
	}
	if givenUp {
		m.givenUp.Inc()
	}
}

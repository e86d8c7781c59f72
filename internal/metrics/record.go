package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nbena/smallben/internal/ledger"
)

var _ ledger.Metrics = (*Record)(nil)

// Record counts what the record of runs does. NewRecord makes one; it is
// goroutine-safe.
type Record struct {
	collectors
	events   map[ledger.Event]prometheus.Counter
	duration prometheus.Histogram
}

// NewRecord returns counters that stand at 0.
func NewRecord() *Record {
	claims := counters("smallben_claims_total", "Runs that this process asked for, by result.", "result")
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	unclaimed := counter("smallben_runs_unclaimed_total", "Runs that started without a claim because the database did not answer.")
	lost := counter("smallben_runs_lost_total", "Runs whose process died, found by this one.")
	missed := counter("smallben_ticks_missed_total", "Ticks that no process ran, found by this one.")
	duration := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "smallben_claim_duration_seconds",
		Help:    "Time to ask the database for a batch of claims.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	})
	return &Record{
		collectors: collectors{claims, duration, unclaimed, lost, missed},
		events: map[ledger.Event]prometheus.Counter{
			ledger.ClaimsWon:     claims.WithLabelValues("won"),
			ledger.ClaimsLost:    claims.WithLabelValues("lost"),
			ledger.ClaimsRefused: claims.WithLabelValues("refused"),
			ledger.RunsUnclaimed: unclaimed,
			ledger.RunsLost:      lost,
			ledger.TicksMissed:   missed,
		},
		duration: duration,
	}
}

// Claimed implements ledger.Metrics.
func (m *Record) Claimed(took time.Duration) { m.duration.Observe(took.Seconds()) }

// Count implements ledger.Metrics.
func (m *Record) Count(event ledger.Event, n int) { m.events[event].Add(float64(n)) }

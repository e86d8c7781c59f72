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
	claims             *prometheus.CounterVec
	won, lost, refused prometheus.Counter // of claims
	duration           prometheus.Histogram
	unclaimed          prometheus.Counter
	lostRuns           prometheus.Counter
	missed             prometheus.Counter
}

// NewRecord returns counters that stand at 0.
func NewRecord() *Record {
	m := &Record{
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "smallben_claims_total",
			Help: "Runs that this process asked for, by result.",
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "smallben_claim_duration_seconds",
			Help:    "Time to ask the database for a batch of claims.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		unclaimed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "smallben_runs_unclaimed_total",
			Help: "Runs that started without a claim because the database did not answer.",
		}),
		lostRuns: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "smallben_runs_lost_total",
			Help: "Runs whose process died, found by this one.",
		}),
		missed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "smallben_ticks_missed_total",
			Help: "Ticks that no process ran, found by this one.",
		}),
	}
	m.won, m.lost, m.refused = m.claims.WithLabelValues("won"), m.claims.WithLabelValues("lost"), m.claims.WithLabelValues("refused")
	m.collectors = collectors{m.claims, m.duration, m.unclaimed, m.lostRuns, m.missed}
	return m
}

// Claimed implements ledger.Metrics.
func (m *Record) Claimed(took time.Duration) { m.duration.Observe(took.Seconds()) }

// Count implements ledger.Metrics.
func (m *Record) Count(event ledger.Event, n int) {
	map[ledger.Event]prometheus.Counter{
		ledger.ClaimsWon:     m.won,
		ledger.ClaimsLost:    m.lost,
		ledger.ClaimsRefused: m.refused,
		ledger.RunsUnclaimed: m.unclaimed,
		ledger.RunsLost:      m.lostRuns,
		ledger.TicksMissed:   m.missed,
	}[event].Add(float64(n))
}

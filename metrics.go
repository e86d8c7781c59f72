package smallben

import (
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/stored"
)

// RegisterMetrics registers the metrics of this SmallBen, which Collector lists.
// A nil registry means prometheus.DefaultRegisterer. To register twice on one
// registry, or two instances on the same one, is Prometheus' own
// AlreadyRegisteredError; Collector with prometheus.WrapRegistererWith tells
// instances apart.
func (s *SmallBen) RegisterMetrics(registry *prometheus.Registry) error {
	if registry == nil {
		return prometheus.DefaultRegisterer.Register(s.Collector())
	}
	return registry.Register(s.Collector())
}

// Collector returns what RegisterMetrics registers. What it collects is read
// from memory, without waiting for the database. Before Start and after Stop it
// is what this instance knows.
//
// Of each job, once:
//
//	smallben_scheduler_jobs_total         all of the three below
//	smallben_scheduler_jobs_not_paused    scheduled
//	smallben_scheduler_jobs_paused        paused
//	smallben_scheduler_jobs_undecodable   held back: the row does not decode
//
// Of writes:
//
//	smallben_scheduler_unsettled_writes   outcome unknown, to be read again
//
// Of runs, by the name that the job's type is registered under with gob (label
// job_type), such as *jobs.Reminder for gob.Register(&jobs.Reminder{}):
//
//	smallben_runs_total                   ended, by outcome: ok, error, panic, timeout
//	smallben_attempts_total               those of them that were a second attempt or a further one, by outcome
//	smallben_runs_given_up_total          failed for good: the last attempt, or with a Permanent error
//	smallben_runs_skipped_total           ticks that did not run, by reason: overlap
//	smallben_runs_in_progress             running now
//	smallben_runs_waiting                 ticks beyond SchedulerConfig.MaxConcurrentRuns (no label)
//	smallben_run_duration_seconds         start to end
//	smallben_run_lateness_seconds         tick to start, of first attempts
//
// Of the record of runs, if Config.Runs.Record is set:
//
//	smallben_claims_total                 by result: won, lost (to another process), refused (the job had changed)
//	smallben_claim_duration_seconds       to ask the database for a batch of claims
//	smallben_runs_unclaimed_total         runs that started without a claim
//	smallben_runs_lost_total              runs whose process died, found by this one
//	smallben_ticks_missed_total           ticks that no process ran, found by this one
//	smallben_sync_lag_seconds             since memory was known to agree with the database
//	smallben_clock_offset_seconds         the database's clock minus this process's
//	smallben_heartbeat_age_seconds        since this process showed that it is alive
func (s *SmallBen) Collector() prometheus.Collector { return collector{s} }

type collector struct{ smallBen *SmallBen }

var (
	totalDesc = prometheus.NewDesc("smallben_scheduler_jobs_total",
		"Jobs known to this instance, in any state.", nil, nil)
	notPausedDesc = prometheus.NewDesc("smallben_scheduler_jobs_not_paused",
		"Jobs that are scheduled.", nil, nil)
	pausedDesc = prometheus.NewDesc("smallben_scheduler_jobs_paused",
		"Jobs that are paused.", nil, nil)
	undecodableDesc = prometheus.NewDesc("smallben_scheduler_jobs_undecodable",
		"Jobs that are held back because their row does not decode.", nil, nil)
	unsettledDesc = prometheus.NewDesc("smallben_scheduler_unsettled_writes",
		"Writes whose outcome is unknown and whose rows are to be read again.", nil, nil)
	waitingDesc = prometheus.NewDesc("smallben_runs_waiting",
		"Ticks that wait for SchedulerConfig.MaxConcurrentRuns.", nil, nil)
	syncLagDesc = prometheus.NewDesc("smallben_sync_lag_seconds",
		"Time since memory was known to agree with the database.", nil, nil)
	clockOffsetDesc = prometheus.NewDesc("smallben_clock_offset_seconds",
		"The clock of the database minus that of this process.", nil, nil)
	heartbeatAgeDesc = prometheus.NewDesc("smallben_heartbeat_age_seconds",
		"Time since this process showed in the database that it is alive.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(descs chan<- *prometheus.Desc) {
	descs <- totalDesc
	descs <- notPausedDesc
	descs <- pausedDesc
	descs <- undecodableDesc
	descs <- unsettledDesc
	descs <- waitingDesc
	for _, vec := range c.smallBen.scheduler.metrics.vecs() {
		vec.Describe(descs)
	}
	if c.smallBen.record != nil {
		descs <- syncLagDesc
		descs <- clockOffsetDesc
		descs <- heartbeatAgeDesc
		for _, metric := range c.smallBen.record.metrics.all() {
			metric.Describe(descs)
		}
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value int) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value))
	}
	known := c.smallBen.count()
	gauge(totalDesc, known.scheduled+known.paused+known.undecodable)
	gauge(notPausedDesc, known.scheduled)
	gauge(pausedDesc, known.paused)
	gauge(undecodableDesc, known.undecodable)
	gauge(unsettledDesc, known.unsettled)
	gauge(waitingDesc, c.smallBen.scheduler.places.count())
	for _, vec := range c.smallBen.scheduler.metrics.vecs() {
		vec.Collect(metrics)
	}
	if c.smallBen.record == nil {
		return
	}
	for _, metric := range c.smallBen.record.metrics.all() {
		metric.Collect(metrics)
	}
	if health, ok := c.smallBen.health(); ok {
		seconds := func(desc *prometheus.Desc, d time.Duration) {
			metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, d.Seconds())
		}
		seconds(syncLagDesc, health.SyncLag)
		seconds(clockOffsetDesc, health.ClockOffset)
		seconds(heartbeatAgeDesc, health.HeartbeatAge)
	}
}

// runMetrics counts and times runs. It is goroutine-safe.
type runMetrics struct {
	ended      *prometheus.CounterVec
	attempts   *prometheus.CounterVec
	givenUp    *prometheus.CounterVec
	skipped    *prometheus.CounterVec
	inProgress *prometheus.GaugeVec
	duration   *prometheus.HistogramVec
	lateness   *prometheus.HistogramVec

	types sync.Map // reflect.Type to *typeMetrics
}

func newRunMetrics() *runMetrics {
	return &runMetrics{
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "smallben_runs_total",
			Help: "Runs that ended, by outcome.",
		}, []string{"job_type", "outcome"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "smallben_attempts_total",
			Help: "Second and further attempts that ended, by outcome.",
		}, []string{"job_type", "outcome"}),
		givenUp: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "smallben_runs_given_up_total",
			Help: "Runs of jobs with attempts that failed and are not tried again.",
		}, []string{"job_type"}),
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "smallben_runs_skipped_total",
			Help: "Ticks that did not become a run, by reason.",
		}, []string{"job_type", "reason"}),
		inProgress: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "smallben_runs_in_progress",
			Help: "Runs in progress.",
		}, []string{"job_type"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "smallben_run_duration_seconds",
			Help:    "Time from the start of a run to its end.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 2.5, 5, 10, 15, 30, 60, 300, 900, 3600},
		}, []string{"job_type"}),
		lateness: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "smallben_run_lateness_seconds",
			Help:    "Time from the tick of a run to the start of its first attempt.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"job_type"}),
	}
}

func (m *runMetrics) vecs() []prometheus.Collector {
	return []prometheus.Collector{m.ended, m.attempts, m.givenUp, m.skipped, m.inProgress, m.duration, m.lateness}
}

// typeMetrics are the run metrics of one type of job, looked up once for each
// entry and not at each run.
type typeMetrics struct {
	outcomes           map[Outcome]prometheus.Counter
	attempts           map[Outcome]prometheus.Counter // nil if the type is no ConfiguredJob
	givenUp            prometheus.Counter             // the same
	skipped            prometheus.Counter
	inProgress         prometheus.Gauge
	duration, lateness prometheus.Observer
}

// forJob returns the metrics of the type of job. gob has one name for a type, and
// one type for a name, so each type is one series.
func (m *runMetrics) forJob(job *JobWithSchedule) *typeMetrics {
	jobType := reflect.TypeOf(job.job)
	if known, ok := m.types.Load(jobType); ok {
		return known.(*typeMetrics)
	}
	name := strings.ToValidUTF8(stored.RegisteredName(job.rawJob.SerializedJob), "\uFFFD")
	outcomes := make(map[Outcome]prometheus.Counter)
	for _, outcome := range []Outcome{OutcomeOK, OutcomeError, OutcomePanic, OutcomeTimeout, OutcomeAbandoned} {
		outcomes[outcome] = m.ended.WithLabelValues(name, string(outcome))
	}
	made := &typeMetrics{
		outcomes:   outcomes,
		skipped:    m.skipped.WithLabelValues(name, "overlap"),
		inProgress: m.inProgress.WithLabelValues(name),
		duration:   m.duration.WithLabelValues(name),
		lateness:   m.lateness.WithLabelValues(name),
	}
	if job.options != nil {
		made.givenUp = m.givenUp.WithLabelValues(name)
		made.attempts = make(map[Outcome]prometheus.Counter)
		for outcome := range outcomes {
			made.attempts[outcome] = m.attempts.WithLabelValues(name, string(outcome))
		}
	}
	known, _ := m.types.LoadOrStore(jobType, made)
	return known.(*typeMetrics)
}

func (m *typeMetrics) started(result *runResult) {
	m.inProgress.Inc()
	if result.Attempt == 1 {
		m.lateness.Observe(result.Start.Sub(result.Tick).Seconds())
	}
}

// ended counts a run that has ended, and whether it failed for good though its job has
// attempts.
func (m *typeMetrics) ended(result *runResult, givenUp bool) {
	m.inProgress.Dec()
	m.duration.Observe(result.Duration.Seconds())
	m.outcomes[result.Outcome].Inc()
	if result.Attempt > 1 && m.attempts != nil {
		m.attempts[result.Outcome].Inc()
	}
	if givenUp {
		m.givenUp.Inc()
	}
}

// recordMetrics count what the record of runs does. It is goroutine-safe.
type recordMetrics struct {
	claims             *prometheus.CounterVec
	won, lost, refused prometheus.Counter // of claims
	duration           prometheus.Histogram
	unclaimed          prometheus.Counter
	lostRuns           prometheus.Counter
	missed             prometheus.Counter
}

func newRecordMetrics() *recordMetrics {
	m := &recordMetrics{
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
	return m
}

func (m *recordMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.claims, m.duration, m.unclaimed, m.lostRuns, m.missed}
}

// Claimed implements ledger.Metrics.
func (m *recordMetrics) Claimed(took time.Duration) { m.duration.Observe(took.Seconds()) }

// Count implements ledger.Metrics.
func (m *recordMetrics) Count(event ledger.Event, n int) {
	map[ledger.Event]prometheus.Counter{
		ledger.ClaimsWon:     m.won,
		ledger.ClaimsLost:    m.lost,
		ledger.ClaimsRefused: m.refused,
		ledger.RunsUnclaimed: m.unclaimed,
		ledger.RunsLost:      m.lostRuns,
		ledger.TicksMissed:   m.missed,
	}[event].Add(float64(n))
}

// health tells how the record of runs does, and false while nothing is started.
func (s *SmallBen) health() (ledger.Health, bool) {
	session := s.scheduler.current()
	if session == nil || session.ledger == nil {
		return ledger.Health{}, false
	}
	return session.ledger.Health(), true
}

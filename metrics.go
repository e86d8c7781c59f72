package smallben

import (
	"reflect"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nbena/smallben/internal/metrics"
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
//	smallben_runs_total                   ended, by outcome: ok, error, panic, timeout, abandoned
//	smallben_attempts_total               second and further attempts, of jobs that ask for them, by outcome
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
	totalDesc        = describe("smallben_scheduler_jobs_total", "Jobs known to this instance, in any state.")
	notPausedDesc    = describe("smallben_scheduler_jobs_not_paused", "Jobs that are scheduled.")
	pausedDesc       = describe("smallben_scheduler_jobs_paused", "Jobs that are paused.")
	undecodableDesc  = describe("smallben_scheduler_jobs_undecodable", "Jobs that are held back because their row does not decode.")
	unsettledDesc    = describe("smallben_scheduler_unsettled_writes", "Writes whose outcome is unknown and whose rows are to be read again.")
	waitingDesc      = describe("smallben_runs_waiting", "Ticks that wait for SchedulerConfig.MaxConcurrentRuns.")
	syncLagDesc      = describe("smallben_sync_lag_seconds", "Time since memory was known to agree with the database.")
	clockOffsetDesc  = describe("smallben_clock_offset_seconds", "The clock of the database minus that of this process.")
	heartbeatAgeDesc = describe("smallben_heartbeat_age_seconds", "Time since this process showed in the database that it is alive.")
)

func describe(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }

// Describe implements prometheus.Collector.
func (c collector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{totalDesc, notPausedDesc, pausedDesc, undecodableDesc, unsettledDesc, waitingDesc} {
		descs <- desc
	}
	c.smallBen.scheduler.metrics.Describe(descs)
	if c.smallBen.record != nil {
		for _, desc := range []*prometheus.Desc{syncLagDesc, clockOffsetDesc, heartbeatAgeDesc} {
			descs <- desc
		}
		c.smallBen.record.metrics.Describe(descs)
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(values chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64) {
		values <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value)
	}
	known := c.smallBen.count()
	gauge(totalDesc, float64(known.scheduled+known.paused+known.undecodable))
	gauge(notPausedDesc, float64(known.scheduled))
	gauge(pausedDesc, float64(known.paused))
	gauge(undecodableDesc, float64(known.undecodable))
	gauge(unsettledDesc, float64(known.unsettled))
	session, waiting := c.smallBen.scheduler.current(), c.smallBen.scheduler.places.Count()
	recorded := session != nil && session.ledger != nil
	if recorded {
		waiting += session.ledger.Unplaced()
	}
	gauge(waitingDesc, float64(waiting))
	c.smallBen.scheduler.metrics.Collect(values)
	if c.smallBen.record != nil {
		c.smallBen.record.metrics.Collect(values)
	}
	if recorded {
		health := session.ledger.Health()
		gauge(syncLagDesc, health.SyncLag.Seconds())
		gauge(clockOffsetDesc, health.ClockOffset.Seconds())
		gauge(heartbeatAgeDesc, health.HeartbeatAge.Seconds())
	}
}

// endings are the outcomes of runs that have ended here.
var endings = []string{string(OutcomeOK), string(OutcomeError), string(OutcomePanic), string(OutcomeTimeout), string(OutcomeAbandoned)}

// metricsOf returns the metrics of the type of a job. gob has one name for a type, and
// one type for a name, so each type is one series.
func metricsOf(runs *metrics.Runs, job *JobWithSchedule) *metrics.Type {
	name := func() string {
		return strings.ToValidUTF8(stored.RegisteredName(job.rawJob.SerializedJob), "\uFFFD")
	}
	return runs.OfType(reflect.TypeOf(job.job), name, endings, job.options != nil)
}

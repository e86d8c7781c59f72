package smallben_test

import (
	"encoding/gob"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
)

// Rule 18.

func TestRegisteringTwiceIsPrometheusOwnError(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
	require.NoError(t, s.RegisterMetrics(registry))
	var already prometheus.AlreadyRegisteredError
	require.ErrorAs(t, s.RegisterMetrics(registry), &already)
	other := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
	require.ErrorAs(t, other.RegisterMetrics(registry), &already)

	both := prometheus.NewRegistry()
	for i, instance := range []*smallben.SmallBen{s, other} {
		require.NoError(t, prometheus.WrapRegistererWith(prometheus.Labels{"scheduler": fmt.Sprint(i)}, both).Register(instance.Collector()))
	}
	_, err := both.Gather()
	require.NoError(t, err)
}

func TestANilRegistryMeansTheDefaultOne(t *testing.T) {
	s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
	require.NoError(t, s.RegisterMetrics(nil))
	assert.True(t, prometheus.Unregister(s.Collector()))
}

func TestEachRowCountsInOneGaugeAtEveryStage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := create(t, repository, &smallben.Config{Logger: quiet})
		check := func(scheduled, paused int) {
			t.Helper()
			values := gauges(t, s)
			assert.EqualValues(t, scheduled, values["smallben_scheduler_jobs_not_paused"])
			assert.EqualValues(t, paused, values["smallben_scheduler_jobs_paused"])
			assert.EqualValues(t, scheduled+paused, values["smallben_scheduler_jobs_total"])
		}
		check(0, 0)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
		check(2, 0)
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		check(1, 1)
		require.NoError(t, s.Start())
		check(1, 1)
		require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{}))
		check(2, 0)
		s.Stop()
		check(2, 0)
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
		check(0, 0)
	})
}

// Rule 19.

func TestEventsAreOneLineEachAndCarryNoInput(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logLines
		s := create(t, newMemoryRepository(), &smallben.Config{Logger: lines.logger()})
		require.NoError(t, s.Start())
		var many []smallben.Job
		for id := int64(1); id <= 1000; id++ {
			j := job(id, "* * * * *", idle())
			j.JobInput = map[string]any{"password": "hunter2"}
			many = append(many, j)
		}
		require.NoError(t, s.AddJobs(many))
		pass(5 * time.Minute)
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1, 2}}))
		require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1, 2}}))
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"password": "hunter2"}}}))
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{}))
		s.Stop()
		all := lines.all()
		var messages []string
		for _, line := range all {
			assert.NotContains(t, line, "hunter2")
			assert.Less(t, len(line), 200)
			_, message, _ := strings.Cut(line, `"msg"="`)
			message, _, _ = strings.Cut(message, `"`)
			messages = append(messages, message)
		}
		assert.Equal(t, []string{"started", "jobs added", "jobs paused", "jobs resumed", "jobs updated", "jobs deleted", "stopped"}, messages)
		assert.Contains(t, all[2], `"jobs"="1, 2"`)
	})
}

func TestTheDefaultLoggerIsUsedWhereConfigLoggerIsZero(t *testing.T) {
	// Not parallel: it replaces a variable of the package.
	before := smallben.DefaultLogger
	defer func() { smallben.DefaultLogger = before }()
	var lines logLines
	smallben.DefaultLogger = lines.logger()
	s := create(t, newMemoryRepository(), &smallben.Config{})
	smallben.DefaultLogger = cron.DiscardLogger
	require.NoError(t, s.Start())
	s.Stop()
	assert.Len(t, lines.with("started"), 1)
}

// What promtool check metrics says of a scrape, by the same code.
func TestTheNamesOfTheMetricsFollowPrometheusConventions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{SkipIfStillRunning: true})
		slow := newProbe(func(*probe, smallben.CronJobInput) { time.Sleep(90 * time.Second) })
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", slow)}))
		pass(5 * time.Minute)
		registry := prometheus.NewPedanticRegistry()
		require.NoError(t, s.RegisterMetrics(registry))
		families, err := registry.Gather()
		require.NoError(t, err)
		assert.Len(t, families, 11, "each has a value")
		problems, err := testutil.GatherAndLint(registry)
		require.NoError(t, err)
		assert.Equal(t, []promlint.Problem{
			// A gauge, of the original's name.
			{Metric: "smallben_scheduler_jobs_total", Text: `non-counter metrics should not have "_total" suffix`},
		}, problems)
	})
}

// DoesNothing is embedded by the types of jobs whose names collide.
type DoesNothing struct{}

func (DoesNothing) Run(smallben.CronJobInput) {}

func TestTypesOfOneNameAreTwoSeriesUnderTheNamesThatGobHasForThem(t *testing.T) {
	first := func() smallben.CronJob {
		type cleanup struct{ DoesNothing }
		gob.RegisterName("files.Cleanup", &cleanup{})
		return &cleanup{}
	}()
	second := func() smallben.CronJob {
		type cleanup struct{ DoesNothing }
		gob.RegisterName("mails.Cleanup", &cleanup{})
		return &cleanup{}
	}()
	require.Equal(t, fmt.Sprintf("%T", first), fmt.Sprintf("%T", second))
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", first), job(2, "* * * * *", second), job(3, "* * * * *", idle())}))
		pass(90 * time.Second)
		registry := prometheus.NewRegistry()
		require.NoError(t, s.RegisterMetrics(registry))
		families, err := registry.Gather()
		require.NoError(t, err)
		var types []string
		for _, family := range families {
			if family.GetName() != "smallben_run_duration_seconds" {
				continue
			}
			for _, metric := range family.Metric {
				require.Len(t, metric.Label, 1)
				assert.EqualValues(t, 1, metric.Histogram.GetSampleCount())
				types = append(types, metric.Label[0].GetValue())
			}
		}
		assert.ElementsMatch(t, []string{"files.Cleanup", "mails.Cleanup", fmt.Sprintf("%T", idle())}, types)
	})
}

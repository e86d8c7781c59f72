package grafana

import (
	"bufio"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/nbena/smallben"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

// replicas is how many processes the tests show to Prometheus.
const replicas = 3

// program returns the path of a program of Prometheus. Without it the test is
// skipped, and fails in CI.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" || os.Getenv("SMALLBEN_REQUIRE_PROMETHEUS") == "1" {
			t.Fatalf("no Prometheus (sh scripts/setup.sh prometheus installs it): %v", err)
		}
		t.Skipf("no Prometheus (sh scripts/setup.sh prometheus installs it): %v", err)
	}
	return path
}

func TestPromtoolAcceptsTheAlertsAndTheyComeWhenTheyShould(t *testing.T) {
	t.Parallel()
	promtool := program(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		output, err := exec.Command(promtool, args...).CombinedOutput()
		assert.NoError(t, err, "promtool %s: %s", strings.Join(args, " "), output)
	}
}

// mail is a job that fails if it is told to.
type mail struct{ Fails bool }

func (*mail) Run(smallben.CronJobInput) {}

// RunOptions has each run that fails tried twice.
func (m *mail) RunOptions() smallben.RunOptions {
	return smallben.RunOptions{Attempts: 2, Backoff: 100 * time.Millisecond}
}

func (m *mail) RunContext(context.Context, smallben.CronJobInput) error {
	if m.Fails {
		return errors.New("no such address")
	}
	return nil
}

// startReplicas starts replicas that share four jobs, and returns their addresses.
// Of the jobs one does well, one fails, one is paused, and one does not decode.
func startReplicas(t *testing.T) (addresses []string) {
	t.Helper()
	gob.Register(&mail{})
	dialector := sqlite.Open("file:" + filepath.Join(t.TempDir(), "jobs.db") + "?_journal_mode=WAL&_busy_timeout=10000")
	config := &smallben.Config{
		Logger:          logr.FromSlogHandler(slog.DiscardHandler),
		SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true},
		Runs:            smallben.RunsConfig{Record: true},
	}
	for replica := range replicas {
		repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector})
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, repository.Close()) })
		scheduler := smallben.New(repository, config)
		if replica == 0 {
			const everySecond = "* * * * * *"
			require.NoError(t, scheduler.AddJobs([]smallben.Job{
				{ID: 1, CronExpression: everySecond, Job: &mail{}},
				{ID: 2, CronExpression: everySecond, Job: &mail{Fails: true}},
				{ID: 3, CronExpression: everySecond, Job: &mail{}},
				{ID: 4, CronExpression: everySecond, Job: &mail{}},
			}))
			require.NoError(t, scheduler.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{3}}))
			spoil(t, dialector, 4)
		}
		registry := prometheus.NewRegistry()
		require.NoError(t, scheduler.RegisterMetrics(registry))
		require.NoError(t, scheduler.Start())
		t.Cleanup(scheduler.Stop)
		server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
		t.Cleanup(server.Close)
		addresses = append(addresses, server.Listener.Addr().String())
	}
	return addresses
}

// spoil makes the row of a job one that does not decode.
func spoil(t *testing.T, dialector gorm.Dialector, id int64) {
	t.Helper()
	db, err := gorm.Open(dialector, nil)
	require.NoError(t, err)
	require.NoError(t, db.Exec("UPDATE jobs SET serialized_job = '' WHERE id = ?", id).Error)
	pool, err := db.DB()
	require.NoError(t, err)
	require.NoError(t, pool.Close())
}

// server is the URL of a Prometheus.
type server string

// startPrometheus starts one that scrapes the targets and evaluates alerts.yml.
func startPrometheus(t *testing.T, targets []string) server {
	t.Helper()
	path := program(t, "prometheus")
	alerts, err := filepath.Abs("alerts.yml")
	require.NoError(t, err)
	settings, err := json.Marshal(map[string]any{ // which is YAML
		"global":     map[string]string{"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"},
		"rule_files": []string{alerts},
		"scrape_configs": []any{map[string]any{
			"job_name": "service", "static_configs": []any{map[string]any{"targets": targets}},
		}},
	})
	require.NoError(t, err)
	dir := t.TempDir()
	file := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(file, settings, 0o600))

	command := exec.Command(path, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0")
	output, err := command.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())
	address := make(chan string, 1)
	read := make(chan string)
	go func() {
		var log strings.Builder
		listening := regexp.MustCompile(`msg="Listening on" address=(\S+)`)
		for lines := bufio.NewScanner(output); lines.Scan(); {
			fmt.Fprintln(&log, lines.Text())
			if match := listening.FindStringSubmatch(lines.Text()); match != nil {
				address <- match[1]
			}
		}
		read <- log.String()
	}()
	t.Cleanup(func() {
		_ = command.Process.Kill()
		log := <-read
		_ = command.Wait()
		if t.Failed() {
			t.Log(log)
		}
	})
	select {
	case at := <-address:
		return server("http://" + at)
	case <-time.After(time.Minute):
		t.Fatal("Prometheus does not say that it listens")
		return ""
	}
}

// ask decodes the data of an answer of the API.
func (s server) ask(path string, data any) error {
	response, err := http.Get(string(s) + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return errors.New(answer.Error)
	}
	return nil
}

// query returns the values of the series that an expression has now.
func (s server) query(expression string) (values []string, err error) {
	var data struct {
		Result []struct{ Value [2]any } // a time and a value
	}
	err = s.ask("/api/v1/query?"+url.Values{"query": {expression}}.Encode(), &data)
	for _, series := range data.Result {
		values = append(values, fmt.Sprint(series.Value[1]))
	}
	return values, err
}

// Some answers need two scrapes of each replica.
const patience, poll = time.Minute, 100 * time.Millisecond

func TestAPrometheusAnswersEachPanelAndShowsReplicasOnce(t *testing.T) {
	t.Parallel()
	prometheus := startPrometheus(t, startReplicas(t))
	variables := strings.NewReplacer("$job", ".*", "$instance", ".*", "$__rate_interval", "1m")
	for _, expression := range read(t).expressions() {
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			values, err := prometheus.query(variables.Replace(expression))
			require.NoError(t, err, expression)
			require.NotEmpty(t, values, expression)
		}, patience, poll)
	}
	var states []string
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		up, err := prometheus.query("count(smallben_scheduler_jobs_total)")
		require.NoError(t, err)
		require.Equal(t, []string{fmt.Sprint(replicas)}, up)
	}, patience, poll)
	for _, target := range read(t).Panels[0].Targets {
		values, err := prometheus.query(variables.Replace(target.Expr))
		require.NoError(t, err)
		states = append(states, target.LegendFormat+" "+strings.Join(values, ", "))
	}
	require.Equal(t, []string{"scheduled 2", "paused 1", "undecodable 1"}, states)
}

func TestAPrometheusEvaluatesTheAlerts(t *testing.T) {
	t.Parallel()
	prometheus := startPrometheus(t, startReplicas(t))
	var known struct {
		Groups []struct {
			Rules []struct{ Name, State, Health, LastError string }
		}
	}
	// The replicas do well, but for the job that fails and the one that does not decode.
	want := make(map[string]string)
	rules, err := os.ReadFile("alerts.yml")
	require.NoError(t, err)
	for _, match := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		want[match[1]] = "inactive"
	}
	want["SmallBenRunsFail"], want["SmallBenJobsUndecodable"] = "pending", "pending"
	want["SmallBenRunsGivenUp"] = "firing"
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		require.NoError(t, prometheus.ask("/api/v1/rules", &known))
		states := make(map[string]string)
		for _, group := range known.Groups {
			for _, rule := range group.Rules {
				require.Equal(t, "ok", rule.Health, "%s: %s", rule.Name, rule.LastError)
				states[rule.Name] = rule.State
			}
		}
		require.Equal(t, want, states)
	}, patience, poll)
}

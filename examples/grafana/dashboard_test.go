// Package grafana holds a dashboard.
package grafana

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/nbena/smallben"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/sqlite"
)

// dashboard is what the tests read of smallben.json.
type dashboard struct {
	Panels []struct {
		ID      int
		Title   string
		GridPos struct{ X, Y, W, H int }
		Targets []struct{ Expr string }
	}
	Templating struct {
		List []struct{ Definition string }
	}
}

func read(t *testing.T) (d dashboard) {
	t.Helper()
	content, err := os.ReadFile("smallben.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(content, &d))
	require.NotEmpty(t, d.Panels)
	return d
}

func (d dashboard) expressions() (expressions []string) {
	for _, panel := range d.Panels {
		for _, target := range panel.Targets {
			expressions = append(expressions, target.Expr)
		}
	}
	return expressions
}

// registered returns the names and labels of the metrics of SmallBen.
func registered(t *testing.T) map[string][]string {
	t.Helper()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: sqlite.Open(":memory:")})
	require.NoError(t, err)
	defer repository.Close()
	metrics := make(map[string][]string)
	descs := make(chan *prometheus.Desc, 100)
	smallben.New(repository, nil).Collector().Describe(descs)
	close(descs)
	description := regexp.MustCompile(`fqName: "(\w+)".*variableLabels: \{([^}]*)\}`)
	for desc := range descs {
		match := description.FindStringSubmatch(desc.String())
		require.NotNil(t, match, desc)
		metrics[match[1]] = strings.FieldsFunc(match[2], func(r rune) bool { return r == ',' })
	}
	return metrics
}

func TestTheDashboardShowsTheMetricsThatThereAre(t *testing.T) {
	t.Parallel()
	d := read(t)
	metrics := registered(t)
	shown := make(map[string]bool)
	name := regexp.MustCompile(`smallben_\w+`)
	label := regexp.MustCompile(`by \(([^)]*)\)`)
	for _, expression := range d.expressions() {
		metric := strings.TrimSuffix(name.FindString(expression), "_bucket")
		labels, ok := metrics[metric]
		require.True(t, ok, "%s: no metric %s", expression, metric)
		shown[metric] = true
		for _, by := range label.FindAllStringSubmatch(expression, -1) {
			for _, by := range strings.Split(by[1], ", ") {
				if by != "le" || metric+"_bucket" != name.FindString(expression) {
					assert.Contains(t, labels, by, expression)
				}
			}
		}
		assert.Contains(t, expression, `job=~"$job", instance=~"$instance"}`)
	}
	for _, variable := range d.Templating.List {
		if metric := name.FindString(variable.Definition); metric != "" {
			assert.Contains(t, metrics, metric)
		}
	}
	// What the three states add up to needs no line of its own.
	delete(metrics, "smallben_scheduler_jobs_total")
	for metric := range metrics {
		assert.True(t, shown[metric], "no panel shows %s", metric)
	}
}

func TestThePanelsDoNotOverlap(t *testing.T) {
	t.Parallel()
	panels := read(t).Panels
	for i, a := range panels {
		assert.LessOrEqual(t, a.GridPos.X+a.GridPos.W, 24, "the width of a dashboard")
		for _, b := range panels[:i] {
			assert.NotEqual(t, a.ID, b.ID)
			p, q := a.GridPos, b.GridPos
			apart := p.X+p.W <= q.X || q.X+q.W <= p.X || p.Y+p.H <= q.Y || q.Y+q.H <= p.Y
			assert.True(t, apart, "%s and %s", a.Title, b.Title)
		}
	}
}

// TestEachPanelAnswersOnAPrometheus asks a Prometheus that scrapes a service with
// jobs of every kind. README.md says how to have one.
func TestEachPanelAnswersOnAPrometheus(t *testing.T) {
	server := os.Getenv("SMALLBEN_PROMETHEUS")
	if server == "" {
		t.Skip("SMALLBEN_PROMETHEUS does not name a Prometheus, such as http://localhost:9090")
	}
	t.Parallel()
	variables := strings.NewReplacer("$job", ".*", "$instance", ".*", "$__rate_interval", "1m")
	// Nothing may have failed, or been skipped, in the last minute.
	mayBeEmpty := regexp.MustCompile(`> 0$`)
	for _, expression := range read(t).expressions() {
		response, err := http.Get(server + "/api/v1/query?" + url.Values{"query": {variables.Replace(expression)}}.Encode())
		require.NoError(t, err)
		var answer struct {
			Status, Error string
			Data          struct{ Result []json.RawMessage }
		}
		err = json.NewDecoder(response.Body).Decode(&answer)
		require.NoError(t, response.Body.Close())
		require.NoError(t, err)
		require.Equal(t, "success", answer.Status, "%s: %s", expression, answer.Error)
		if !mayBeEmpty.MatchString(expression) {
			assert.NotEmpty(t, answer.Data.Result, expression)
		}
		t.Logf("%d series: %s", len(answer.Data.Result), expression)
	}
}

// Package grafana holds a dashboard, and alert rules.
package grafana

import (
	"encoding/json"
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
		Targets []struct{ Expr, LegendFormat string }
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

// registered returns the names and labels of the metrics of a SmallBen that
// records its runs.
func registered(t *testing.T) map[string][]string {
	t.Helper()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: sqlite.Open(":memory:")})
	require.NoError(t, err)
	defer repository.Close()
	metrics := make(map[string][]string)
	descs := make(chan *prometheus.Desc, 100)
	smallben.New(repository, &smallben.Config{Runs: smallben.RunsConfig{Record: true}}).Collector().Describe(descs)
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
				if by == "job" || by == "instance" {
					continue // Prometheus adds them
				}
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

func TestEachAlertIsOfMetricsThatThereAre(t *testing.T) {
	t.Parallel()
	rules, err := os.ReadFile("alerts.yml")
	require.NoError(t, err)
	metrics := registered(t)
	for _, name := range regexp.MustCompile(`smallben_\w+`).FindAllString(string(rules), -1) {
		assert.Contains(t, metrics, strings.TrimSuffix(name, "_bucket"))
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

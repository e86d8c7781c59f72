package smallben_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
)

// find returns the files of the tree, bench/ included, whose names match.
func find(t *testing.T, pattern string) (paths []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name := entry.Name(); name == "testdata" || path != "." && strings.HasPrefix(name, ".") {
				return fs.SkipDir
			}
			return nil
		}
		if matched, _ := filepath.Match(pattern, entry.Name()); matched {
			paths = append(paths, path)
		}
		return nil
	}))
	require.NotEmpty(t, paths)
	return paths
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(content)
}

func TestEachTestThatTheDocumentationNamesExists(t *testing.T) {
	t.Parallel()
	exist := make(map[string]bool)
	for _, path := range find(t, "*.go") {
		for _, match := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark|Example)\w*)\(`).FindAllStringSubmatch(read(t, path), -1) {
			exist[match[1]] = true
		}
	}
	named := 0
	for _, path := range find(t, "*.md") {
		for _, name := range regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark|Example)[A-Z]\w*`).FindAllString(read(t, path), -1) {
			assert.True(t, exist[name], "%s names %s, which does not exist", path, name)
			named++
		}
	}
	assert.Greater(t, named, 30, "the guarantees of README.md")
}

func TestTheMetricsOfTheREADMEAreThoseThatAreRegistered(t *testing.T) {
	t.Parallel()
	s := create(t, newMemoryRecorder(), recordingConfig())
	var registered []string
	descs := make(chan *prometheus.Desc, 100)
	s.Collector().Describe(descs)
	close(descs)
	for desc := range descs {
		registered = append(registered, regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(desc.String())[1])
	}
	var documented []string
	for _, match := range regexp.MustCompile("(?m)^\\| `(smallben_\\w+)` \\|").FindAllStringSubmatch(read(t, "README.md"), -1) {
		documented = append(documented, match[1])
	}
	slices.Sort(registered)
	slices.Sort(documented)
	assert.Equal(t, registered, documented)
}

func TestEachFileThatTheDocumentationLinksExists(t *testing.T) {
	t.Parallel()
	for _, path := range find(t, "*.md") {
		for _, link := range regexp.MustCompile(`\]\(([^):#]+)[)#]`).FindAllStringSubmatch(read(t, path), -1) {
			target := filepath.Join(filepath.Dir(path), link[1])
			assert.FileExists(t, target, "%s links %s", path, link[1])
		}
	}
}

func TestTheQueriesOfTheDocumentationAreAnswered(t *testing.T) {
	t.Parallel()
	db := newPostgres(t)
	app := newApplication(t, db, true)
	s := app.start(t)
	require.NoError(t, s.AddJobs([]smallben.Job{{ID: 1, GroupID: 7, CronExpression: "@daily", Job: idle()}}))
	require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
	text := read(t, "docs/tables.md") + read(t, "README.md")
	queries := regexp.MustCompile("(?s)```sql\n(SELECT.*?)```").FindAllStringSubmatch(text, -1)
	require.Greater(t, len(queries), 8)
	for _, query := range queries {
		rows, err := db.pool.Query(query[1])
		require.NoError(t, err, query[1])
		require.NoError(t, rows.Close())
		require.NoError(t, rows.Err())
	}
	for _, table := range app.recordTables(t) {
		if table != "customers" && !strings.Contains(text, "| `"+table+"` |") {
			require.Fail(t, "docs/tables.md says nothing of "+table)
		}
	}
}

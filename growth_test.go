package smallben_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/testkit"
)

// fillRecord gives the record a history: n runs of each of 20 jobs that went well, in
// group 1; ten times n of job 21 that were skipped while its only run goes on, in group 1; seven
// runs of job 500 in group 2, of which some failed; and n*20 deleted jobs.
func fillRecord(t testing.TB, db *database, n int) {
	t.Helper()
	const columns = "(job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, first_tick, exclusive)"
	numbers := func(name string, most int) string {
		if db.sqlite() {
			return fmt.Sprintf("(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < %d) SELECT n FROM s) AS %s", most, name)
		}
		return fmt.Sprintf("(SELECT n::bigint FROM generate_series(1, %d) AS n) AS %s", most, name)
	}
	now, skipped := time.Now().Unix(), 10*n
	db.exec(t, fmt.Sprintf(`INSERT INTO smallben_runs %s SELECT j.n, (%d - k.n * 30) * 1000000, false, 1, 1, 1, 'p', 'ok', 0, 1, '', 0, NULL, false FROM %s, %s`,
		columns, now, numbers("k", n), numbers("j", 20)))
	db.exec(t, fmt.Sprintf(`INSERT INTO smallben_runs %s SELECT 21, (%d - k.n) * 1000000, false, 1, 1, 1, 'p', CASE WHEN k.n = %d THEN 'running' ELSE 'skipped' END, 0,
	CASE WHEN k.n = %d THEN NULL ELSE 1 END, '', 0, NULL, true FROM %s`, columns, now, skipped, skipped, numbers("k", skipped)))
	db.exec(t, fmt.Sprintf(`INSERT INTO smallben_runs %s SELECT 500, (%d - k.n * 86400) * 1000000 + 1, false, 1, 2, 2, 'p', CASE WHEN k.n > 3 THEN 'error' ELSE 'ok' END, 0, 1, '', 0, NULL, false FROM %s`,
		columns, now, numbers("k", 7)))
	db.exec(t, fmt.Sprintf("INSERT INTO smallben_job_state (job_id, revision, accounted_until, deleted_at) SELECT 1000 + k.n, 5 + k.n, 0, %d FROM %s", now*1_000_000, numbers("k", n*20)))
	db.exec(t, fmt.Sprintf("UPDATE smallben_ledger SET revision = revision + %d", n*20+10))
	if db.sqlite() {
		return // most users never ANALYZE
	}
	db.exec(t, "ANALYZE")
}

func TestWhatIsAskedOftenDoesNotGrowWithTheHistory(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a large table")
	}
	eachShared(t, func(t *testing.T, db *database) {
		config := recordingConfig(func(c *smallben.Config) { c.SchedulerConfig.SkipIfStillRunning = true })
		s := testkit.Create(t, db.open(t), config)
		var jobs []smallben.Job
		for id := range int64(21) {
			jobs = append(jobs, job(id+1, "@yearly", idle()))
		}
		require.NoError(t, s.AddJobs(jobs))
		db.exec(t, "UPDATE jobs SET created_at = '2020-01-01 00:00:00+00:00'")
		const n = 10_000
		fillRecord(t, db, n)
		// best is the shortest of three times, and of more while none is short enough:
		// others use the machine, too.
		best := func(enough time.Duration, ask func()) time.Duration {
			shortest := time.Hour
			for try := 0; try < 3 || try < 30 && shortest >= enough; try++ {
				start := time.Now()
				ask()
				shortest = min(shortest, time.Since(start))
			}
			return shortest
		}
		scan := best(time.Hour, func() { db.strings(t, "SELECT count(*) FROM smallben_runs WHERE error <> 'x'") })
		runs := func(want int, options smallben.ListRunsOptions) func() {
			return func() {
				found, err := s.ListRuns(&options)
				require.NoError(t, err)
				require.Len(t, found, want)
			}
		}
		failed := []smallben.Outcome{smallben.OutcomeError}
		for name, ask := range map[string]func(){
			"all":                        runs(20, smallben.ListRunsOptions{Limit: 20}),
			"a job":                      runs(20, smallben.ListRunsOptions{JobIDs: []int64{7}, Limit: 20}),
			"a group of many runs":       runs(20, smallben.ListRunsOptions{GroupIDs: []int64{1}, Limit: 20}),
			"a group of few":             runs(7, smallben.ListRunsOptions{GroupIDs: []int64{2}}),
			"a super-group of few":       runs(7, smallben.ListRunsOptions{SuperGroupIDs: []int64{2}}),
			"errors":                     runs(4, smallben.ListRunsOptions{Outcomes: failed, Limit: 20}),
			"errors and what was lost":   runs(4, smallben.ListRunsOptions{Outcomes: append(failed, smallben.OutcomeLost), Limit: 20}),
			"errors of a group":          runs(4, smallben.ListRunsOptions{Outcomes: failed, GroupIDs: []int64{2}, Limit: 20}),
			"errors since last year":     runs(4, smallben.ListRunsOptions{Outcomes: failed, From: time.Now().AddDate(-1, 0, 0)}),
			"skipped":                    runs(20, smallben.ListRunsOptions{Outcomes: []smallben.Outcome{smallben.OutcomeSkipped}, Limit: 20}),
			"what runs":                  runs(1, smallben.ListRunsOptions{Outcomes: []smallben.Outcome{smallben.OutcomeRunning}}),
			"what went well":             runs(20, smallben.ListRunsOptions{Outcomes: []smallben.Outcome{smallben.OutcomeOK}, Limit: 20}),
			"jobs and their newest runs": func() { found, err := s.ListJobs(nil); require.NoError(t, err); require.Len(t, found, 21) },
		} {
			most := scan/2 + 2*time.Millisecond
			took := best(most, ask)
			assert.Less(t, took, most, "%s; a scan takes %v", name, scan)
			t.Logf("%-28s %v", name, took.Round(10*time.Microsecond))
		}
		start := time.Now()
		require.NoError(t, s.Start())
		t.Logf("%-28s %v; a scan %v", "Start", time.Since(start).Round(10*time.Microsecond), scan)
		s.Stop()
	})
}

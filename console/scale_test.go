package console

import (
	"encoding/base64"
	"fmt"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

// manyJobs is how many jobs there are.
const manyJobs = 100_000

// pageCosts are the pages, and the statements about jobs and runs that each may take.
var pageCosts = map[string]int{
	"":                                     8,
	"jobs":                                 3,
	"jobs?after=50000":                     2,
	"jobs?group=7":                         3,
	"jobs?group=7&super=1&state=scheduled": 3,
	"jobs?state=paused":                    3,
	"jobs?state=running":                   4,
	"jobs?state=waiting":                   1,
	"jobs?state=undecodable":               1,
	"jobs?outcome=failed":                  4,
	"jobs?outcome=ok":                      4,
	"jobs?job=5,50000,99999":               3,
	"jobs/50000":                           4,
	"runs":                                 1,
	"runs?outcome=failed":                  1,
	"runs?outcome=lost":                    1,
	"runs?outcome=running":                 1,
	"runs?group=7":                         1,
	"runs?group=123456":                    1,
	"runs?job=50000":                       1,
	"processes":                            1,
	"jobs/50000/expression?expression=@daily": 3,
	"confirm?verb=pause&scope=all&group=7":    4,
	"confirm?verb=pause&scope=all":            4,
}

// ofJobs finds the statements that count: others begin and end transactions.
var ofJobs = regexp.MustCompile(`(?i)\b(FROM|JOIN|INTO|UPDATE) ("?\w+"?\.)?"?(jobs|job_\w+|smallben_\w+)\b`)

// veryMany calls use with a site of very many jobs and as many runs as it is told, on
// each database.
func veryMany[T interface {
	testing.TB
	Run(name string, f func(T)) bool
}](t T, runs int, use func(t T, faults *faultsql.Faults, s *site)) {
	if testing.Short() {
		t.Skip("very many jobs and runs")
	}
	for name, open := range map[string]func(t testing.TB) (*faultsql.Faults, gorm.Dialector){
		"SQLite": func(t testing.TB) (*faultsql.Faults, gorm.Dialector) {
			faults := faultsql.SQLite(filepath.Join(t.TempDir(), "jobs.db"), "_journal_mode=WAL")
			return faults, &sqlite.Dialector{Conn: faults.DB()}
		},
		"PostgreSQL": func(t testing.TB) (*faultsql.Faults, gorm.Dialector) {
			faults, err := faultsql.Postgres(pgtest.DSN(t))
			require.NoError(t, err)
			return faults, postgres.New(postgres.Config{Conn: faults.DB()})
		},
	} {
		t.Run(name, func(t T) {
			faults, dialector := open(t)
			t.Cleanup(func() { _ = faults.DB().Close() })
			s := newSiteOn(t, dialector, Options{Authorize: allow, ShowInput: true}, record)
			fill(t, s, runs)
			use(t, faults, s)
		})
	}
}

// TestPagesOfVeryManyJobsAndRunsTakeFewStatements counts the statements of each page.
func TestPagesOfVeryManyJobsAndRunsTakeFewStatements(t *testing.T) {
	veryMany(t, 100_000, func(t *testing.T, faults *faultsql.Faults, s *site) {
		for path, most := range pageCosts {
			faults.Reset()
			faults.Record(true)
			s.page(path)
			statements := 0
			for _, statement := range faults.Statements() {
				if ofJobs.MatchString(statement) {
					statements++
				}
			}
			assert.LessOrEqual(t, statements, most, path)
		}
	})
}

// BenchmarkPagesOfVeryManyJobsAndRuns draws each page.
func BenchmarkPagesOfVeryManyJobsAndRuns(b *testing.B) {
	veryMany(b, 1_000_000, func(b *testing.B, _ *faultsql.Faults, s *site) {
		for path := range pageCosts {
			b.Run("/"+path, func(b *testing.B) {
				for b.Loop() {
					s.page(path)
				}
			})
		}
	})
}

// fill stores very many jobs and runs, in the database itself.
func fill(t testing.TB, s *site, runs int) {
	t.Helper()
	require.NoError(t, s.scheduler.AddJobs(jobsOf(1)))
	var row smallben.RawJob
	require.NoError(t, s.db.Take(&row).Error)
	_, err := base64.StdEncoding.DecodeString(row.SerializedJob)
	require.NoError(t, err)
	series := func(n int) string {
		if s.db.Name() == "postgres" {
			return fmt.Sprintf("generate_series(1, %d) AS s(n)", n)
		}
		return fmt.Sprintf("(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < %d) SELECT n FROM s) AS s", n)
	}
	exec := func(statement string, args ...any) {
		t.Helper()
		require.NoError(t, s.db.Exec(statement, args...).Error)
	}
	exec(`INSERT INTO jobs (id, group_id, super_group_id, cron_id, cron_expression, paused, created_at, updated_at, serialized_job, serialized_job_input)
SELECT n, n % 1000, n % 3, 0, '*/5 * * * *', n % 50 = 0, ?, ?, ?, ? FROM `+series(manyJobs)+` WHERE n > 1`,
		row.CreatedAt.Add(-240*time.Hour), row.UpdatedAt, row.SerializedJob, row.SerializedJobInput)
	exec("UPDATE jobs SET created_at = ? WHERE id = 1", row.CreatedAt.Add(-240*time.Hour))
	// Ten runs of each job within a week, of which every hundredth failed, and few were lost.
	now := time.Now().UnixMicro()
	step := (7 * 24 * time.Hour).Microseconds() / int64(runs)
	exec(fmt.Sprintf(`INSERT INTO `+runsTable+` (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, exclusive)
SELECT 1 + n %% %d, %d - CAST(n AS bigint) * %d, false, 1, (1 + n %% %d) %% 1000, (1 + n %% %d) %% 3, 'host/1/abcdef', CASE WHEN n %% 100 = 7 THEN 'error' WHEN n %% 10007 = 0 THEN 'lost' ELSE 'ok' END,
	%d - CAST(n AS bigint) * %d, %d - CAST(n AS bigint) * %d + 250000, CASE WHEN n %% 100 = 7 THEN 'no route to host' ELSE '' END, 0, false FROM `, manyJobs, now, step, manyJobs, manyJobs, now, step, now, step) + series(runs))
	exec("UPDATE "+runsTable+" SET outcome = 'running', ended_at = NULL WHERE tick > ?", now-20*step)
	if s.db.Name() == "postgres" {
		exec("ANALYZE jobs")
		exec("ANALYZE " + runsTable)
	}
}

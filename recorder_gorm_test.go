package smallben_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
)

// eachShared runs a test on both databases, as several processes can share them.
func eachShared(t *testing.T, test func(t *testing.T, db *database)) {
	t.Helper()
	t.Parallel()
	for name, open := range map[string]func(t testing.TB) *database{"SQLite": newSQLiteWAL, "PostgreSQL": newPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// recorder opens another repository on the database, with a record.
func (db *database) recorder(t testing.TB, edit ...func(*smallben.RepositoryGormConfig)) *smallben.RepositoryGorm {
	t.Helper()
	r := db.open(t, edit...)
	require.NoError(t, r.OpenRecord("UTC"))
	return r
}

// addJobs adds n jobs, from id 1 on, and returns their revision.
func addJobs(t testing.TB, r smallben.Recorder, n int) (revision int64) {
	t.Helper()
	rows := make([]smallben.RawJob, n)
	for i := range rows {
		rows[i] = rawJob(int64(i + 1))
	}
	jobs := withSchedule(t, rows...)
	revision, err := r.Change(func(tx smallben.RecordTx) error { return tx.AddJobs(jobs) })
	require.NoError(t, err)
	return revision
}

// backdate lets the accounts of all jobs begin at dawn.
func backdate(t testing.TB, r smallben.Recorder, n int) {
	t.Helper()
	accounts := make([]smallben.Account, n)
	for i := range accounts {
		accounts[i] = smallben.Account{JobID: int64(i + 1), Until: dawn}
	}
	_, err := r.Change(func(tx smallben.RecordTx) error { return tx.Record(accounts, nil) })
	require.NoError(t, err)
}

func BenchmarkClaimAndFinish(b *testing.B) {
	const jobs, batch = 10_000, 1000
	for name, open := range map[string]func(t testing.TB) *database{"SQLite": newSQLiteWAL, "PostgreSQL": newPostgres} {
		b.Run(name, func(b *testing.B) {
			r := open(b).recorder(b)
			revision := addJobs(b, r, jobs)
			backdate(b, r, jobs)
			require.NoError(b, r.Join("a"))
			claims, runs := make([]smallben.Claim, batch), make([]smallben.FinishedRun, batch)
			n := 0
			begun := time.Now()
			for b.Loop() {
				for i := range claims {
					key := runKey(int64(n%jobs+1), n/jobs+1)
					claims[i] = smallben.Claim{RunKey: key, Revision: revision}
					runs[i] = finished(key)
					n++
				}
				results, err := r.Claim("a", claims)
				require.NoError(b, err)
				require.NotContains(b, results, smallben.ClaimTaken)
				require.NoError(b, r.Finish("a", runs))
			}
			b.ReportMetric(float64(n)/time.Since(begun).Seconds(), "runs/s")
		})
	}
}

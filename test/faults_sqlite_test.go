package test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/sqlite"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
)

// otherEnv makes TestHelperOtherProcess open the database of that path, and
// execute each line of its input on one connection.
const otherEnv = "SMALLBEN_TEST_OTHER_PROCESS"

// TestHelperOtherProcess is not a test, but the process of startOther.
func TestHelperOtherProcess(t *testing.T) {
	path := os.Getenv(otherEnv)
	if path == "" {
		return
	}
	db := openSQLDB(t, "sqlite3", path)
	db.SetMaxOpenConns(1)
	defer db.Close()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		_, err := db.Exec(lines.Text())
		fmt.Println("done", err)
	}
}

// startOther starts another process, and returns a function that makes it
// execute a statement on the database.
func startOther(t *testing.T, path string) (execute func(statement string)) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperOtherProcess$")
	cmd.Env = append(os.Environ(), otherEnv+"="+path)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	t.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		assert.NoError(t, cmd.Wait())
	})
	return func(statement string) {
		t.Helper()
		_, err := fmt.Fprintln(in, statement)
		require.NoError(t, err)
		require.True(t, lines.Scan(), "the other process ended")
		require.Equal(t, "done <nil>", lines.Text(), statement)
	}
}

// onFile is a stage on a SQLite file, and its path.
func onFile(t *testing.T, timeout time.Duration, params string) (st stage, path string, pool *sql.DB) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "jobs.db")
	db := openSQLDB(t, "sqlite3", "file:"+path+"?_synchronous=OFF"+params)
	pool = openSQLDB(t, "sqlite3", "file:"+path+"?_synchronous=OFF"+params)
	t.Cleanup(func() { assert.NoError(t, errors.Join(pool.Close(), db.Close())) })
	db.SetMaxIdleConns(-1) // the truth comes from the file
	truth := openGorm(t, onSQLite(db), 0)
	repository, _ := openHasty(t, onSQLite(pool), timeout)
	return stage{repository, truth, seed(t, truth, db)}, path, pool
}

func TestASQLiteFileThatAnotherProcessLocksIsATimeout(t *testing.T) {
	t.Parallel()
	// SQLite waits for a lock of readers this long, whatever the timeout of the call.
	const busy = "&_busy_timeout=1000"
	for name, lock := range map[string]struct {
		params, statement string
		calls             []faultCall // that it is in the way of
	}{
		"exclusive":        {busy, "BEGIN EXCLUSIVE", append(changingCalls, listCall)},
		"as it is opened":  {"", "BEGIN EXCLUSIVE", []faultCall{listCall}},
		"reserved":         {"", "BEGIN IMMEDIATE", changingCalls},
		"exclusive in WAL": {"&_journal_mode=WAL", "BEGIN EXCLUSIVE", changingCalls},
		// It lets a transaction write, and not commit.
		"shared": {"", "BEGIN; SELECT id FROM jobs", changingCalls},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st, path, _ := onFile(t, 250*time.Millisecond, lock.params)
			other := startOther(t, path)
			for _, call := range lock.calls {
				s, o := st.begin(t, call)
				for statement := range strings.SplitSeq(lock.statement, "; ") {
					other(statement)
				}
				begun := time.Now()
				err := call.call(t, s)
				assert.Less(t, time.Since(begun), unhurried)
				if !slices.ContainsFunc(lock.calls, func(c faultCall) bool { return c.name == listCall.name }) {
					inTime(t, func() error { return listCall.call(t, s) }) // readers are not locked out
				}
				other("ROLLBACK")
				require.Error(t, err, call.name)
				require.False(t, o.judge(t, s, err))
				inTime(t, func() error { return call.call(t, s) })
				s.Stop()
			}
		})
	}
}

func TestADiskThatIsFullChangesNothing(t *testing.T) {
	t.Parallel()
	st, _, pool := onFile(t, 30*time.Second, "")
	s, o := st.begin(t, listCall)
	pool.SetMaxIdleConns(1)
	pool.SetMaxOpenConns(1) // so that the PRAGMA stays
	var pages int
	require.NoError(t, pool.QueryRow("PRAGMA page_count").Scan(&pages))
	require.NoError(t, pool.QueryRow(fmt.Sprintf("PRAGMA max_page_count = %d", pages)).Scan(&pages))

	many := make([]smallben.Job, 500)
	for i := range many {
		many[i] = job(int64(100+i), "@yearly", idle())
	}
	large := map[string]any{"text": strings.Repeat("x", 100_000)}
	add := func() error { return s.AddJobs(many) }
	update := func() error { return s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &large}}) }
	for _, call := range []func() error{add, update} {
		err := call()
		require.ErrorContains(t, err, "database or disk is full")
		require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
		require.False(t, o.judge(t, s, err))
	}
	require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
	require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{3}}}))
	checkInvariant(t, s, st.truth)

	require.NoError(t, pool.QueryRow("PRAGMA max_page_count = 1000000").Scan(&pages))
	require.NoError(t, add())
	require.NoError(t, update())
	checkInvariant(t, s, st.truth)
}

func TestASQLiteFileThatCannotBeWrittenCanBeRead(t *testing.T) {
	t.Parallel()
	st, path, _ := onFile(t, 30*time.Second, "")
	st.reset(t)
	readOnly := openSQLDB(t, "sqlite3", "file:"+path+"?mode=ro")
	t.Cleanup(func() { assert.NoError(t, readOnly.Close()) })
	repository := openGorm(t, onSQLite(readOnly), 0)
	o := &oracle{truth: st.truth, before: snapshot(t, st.truth), want: map[int64]string{}}

	s := create(t, repository, &smallben.Config{Logger: quiet})
	err := s.Start()
	require.ErrorContains(t, err, "start: store cron ids: set cron ids: attempt to write a readonly database")
	require.False(t, o.judge(t, s, err))

	// With nothing to store, it starts.
	first := create(t, st.repository, &smallben.Config{Logger: quiet})
	require.NoError(t, first.Start())
	first.Stop()
	o.before = snapshot(t, st.truth)
	require.NoError(t, s.Start())
	for _, call := range writeCalls {
		err := call.call(t, s)
		require.ErrorContains(t, err, "attempt to write a readonly database", call.name)
		require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
		require.False(t, o.judge(t, s, err))
	}
	require.NoError(t, listCall.call(t, s))

	_, err = smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
		Dialector: sqlite.Open("file:" + filepath.Join(t.TempDir(), "none.db") + "?mode=ro"),
	})
	require.ErrorContains(t, err, "unable to open database file")
}

func TestAFileThatIsNotADatabaseIsAnErrorAndStaysAsItIs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "jobs.db")
	content := strings.Repeat("not a database", 1000)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	_, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: sqlite.Open(path)})
	require.ErrorContains(t, err, "file is not a database")
	left, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, content, string(left))
}

func TestAFileThatIsOverwrittenAndPutBackNeedsNoRestart(t *testing.T) {
	t.Parallel()
	st, path, pool := onFile(t, 30*time.Second, "")
	pool.SetMaxIdleConns(-1) // no page stays in a cache
	for _, call := range append(changingCalls, listCall) {
		s, o := st.begin(t, call)
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("not a database", 1000)), 0o600))
		err = call.call(t, s)
		require.ErrorContains(t, err, "file is not a database", call.name)
		require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		require.False(t, o.judge(t, s, err))
		require.NoError(t, call.call(t, s), call.name)
		s.Stop()
	}
}

func TestAMissingTableIsAnErrorUntilItIsThere(t *testing.T) {
	t.Parallel()
	st, path, pool := onFile(t, 30*time.Second, "")
	for _, call := range append(changingCalls, listCall) {
		s, o := st.begin(t, call)
		_, err := pool.Exec("ALTER TABLE jobs RENAME TO away")
		require.NoError(t, err)
		err = call.call(t, s)
		require.ErrorContains(t, err, "no such table: jobs", call.name)
		require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
		_, skipErr := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: sqlite.Open(path), SkipMigration: true})
		require.ErrorContains(t, skipErr, "the table jobs is missing, and SkipMigration is set")
		_, renameErr := pool.Exec("ALTER TABLE away RENAME TO jobs")
		require.NoError(t, renameErr)
		require.False(t, o.judge(t, s, err))
		require.NoError(t, call.call(t, s), call.name)
		s.Stop()
	}
}

func TestADatabaseInMemoryOutlivesErrorsAndTimeouts(t *testing.T) {
	t.Parallel()
	faults := faultsql.SQLite(":memory:")
	pool := faults.DB()
	t.Cleanup(func() { assert.NoError(t, pool.Close()) })
	pool.SetMaxOpenConns(1)
	repository := openGorm(t, onSQLite(pool), 0)
	st := stage{repository, repository, seed(t, repository, pool)}
	for _, call := range changingCalls {
		want := st.rehearse(t, call)
		for _, mode := range []faultsql.Mode{faultsql.Before, faultsql.After} {
			for n := 1; ; n++ {
				s, o := st.begin(t, call)
				o.want = want
				faults.FailNth(n, mode, false)
				err := call.call(t, s)
				fired := faults.Fired()
				faults.Heal()
				o.again(t, s, call, o.judge(t, s, err))
				s.Stop()
				if fired == 0 {
					require.Greater(t, n, 3)
					break
				}
			}
		}
	}
}

// When the context of a transaction ends, database/sql closes the connection,
// and a database in memory is gone with its connection.
func TestATransactionThatTimesOutLeavesADatabaseInMemoryAlone(t *testing.T) {
	t.Parallel()
	pool := openSQLDB(t, "sqlite3", ":memory:")
	t.Cleanup(func() { assert.NoError(t, pool.Close()) })
	pool.SetMaxOpenConns(1)
	repository := openGorm(t, onSQLite(pool), 0)
	s := smallben.New(repository, &smallben.Config{Logger: quiet})
	require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}))

	many := make([]smallben.Job, 50)
	large := map[string]any{"text": strings.Repeat("x", 100_000)}
	for i := range many {
		many[i] = job(int64(100+i), "@yearly", idle())
		many[i].JobInput = large
	}
	// Long enough to begin, and too short to end.
	for timeout := 5 * time.Millisecond; ; timeout *= 2 {
		repository, enough := openHasty(t, onSQLite(pool), timeout)
		timeout = enough
		err := smallben.New(repository, &smallben.Config{Logger: quiet}).AddJobs(many)
		jobs, listErr := s.ListJobs(nil)
		require.NoError(t, listErr)
		if err == nil {
			require.Len(t, jobs, 51)
			break
		}
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, []int64{1}, ids(jobs))
	}
}

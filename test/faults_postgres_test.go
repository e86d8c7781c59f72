package test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/pgtest"
)

// To pgx a connection is bad on which it began nothing, because time was up.
func TestATimeoutSaysSoWhateverTheDriverCallsIt(t *testing.T) {
	t.Parallel()
	w := brittlePostgres(t)
	for _, kind := range []faultsql.Kind{faultsql.Begin, faultsql.Query} {
		for _, call := range writeCalls {
			s, o := stage{w.repository, w.truth, w.reset}.begin(t, call)
			w.repository.hurry.Store(true)
			w.faults.OnOp(func(op faultsql.Op) {
				if op.Kind == kind {
					time.Sleep(w.repository.timeout)
				}
			})
			err := call.call(t, s)
			w.faults.OnOp(nil)
			w.repository.hurry.Store(false)
			assert.ErrorIs(t, err, context.DeadlineExceeded, "%s of %s", kind, call.name)
			assert.ErrorContains(t, err, within(w.repository.timeout))
			require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
			o.judge(t, s, err)
		}
	}
}

// heart is a job that runs each second, and says so.
type heart struct {
	*probe
	beats chan struct{}
}

func newHeart() heart {
	h := heart{beats: make(chan struct{}, 1000)}
	h.probe = newProbe(func(*probe, smallben.CronJobInput) { h.beats <- struct{}{} })
	return h
}

// beatsOn waits for two beats from now on.
func (h heart) beatsOn(t testing.TB) {
	t.Helper()
	for len(h.beats) > 0 {
		<-h.beats
	}
	for range 2 {
		select {
		case <-h.beats:
		case <-time.After(time.Minute):
			t.Fatal("a job stopped running")
		}
	}
}

// sideBySide runs tests that wait more than they work, whatever -parallel says.
func sideBySide(t *testing.T, calls []faultCall, test func(t *testing.T, call faultCall)) {
	var group sync.WaitGroup
	defer group.Wait()
	for _, call := range calls {
		group.Go(func() {
			t.Run(call.name, func(t *testing.T) { test(t, call) })
		})
	}
}

// network is a PostgreSQL behind a proxy.
type network struct {
	stage
	calls  *hurried // the stage's repository
	proxy  *pgtest.Proxy
	faults *faultsql.Faults // fails nothing, and says when an operation comes
	pool   *sql.DB
	db     *sql.DB // past the proxy
}

// behindProxy opens a repository whose pool goes through a proxy.
func behindProxy(t testing.TB) *network {
	t.Helper()
	dsn := pgtest.DSN(t)
	n := &network{proxy: pgtest.NewProxy(t, dsn), db: openSQLDB(t, "pgx", dsn)}
	var err error
	n.faults, err = faultsql.Postgres(n.proxy.DSN())
	require.NoError(t, err)
	n.pool = n.faults.DB()
	t.Cleanup(func() {
		n.proxy.Pass()
		assert.NoError(t, errors.Join(n.pool.Close(), n.db.Close()))
	})
	n.db.SetMaxOpenConns(1)
	n.truth = openGorm(t, onPostgres(n.db), 0)
	n.reset = seed(t, n.truth, n.db)
	n.calls = &hurried{slow: openGorm(t, onPostgres(n.pool), 0)}
	n.calls.fast, n.calls.timeout = openHasty(t, onPostgres(n.pool), time.Second)
	n.repository = n.calls
	return n
}

// hurried makes a call that meets a fault which lasts, again if a busy machine was
// too slow to reach it.
func (n *network) hurried(call func() error) error {
	n.calls.hurry.Store(true)
	defer n.calls.hurry.Store(false)
	return patiently(call)
}

// on calls hook before the next operation of the kind.
func (n *network) on(kind faultsql.Kind, hook func()) {
	var once sync.Once
	n.faults.OnOp(func(op faultsql.Op) {
		if op.Kind == kind {
			once.Do(hook)
		}
	})
}

// terminate ends the backends of the test that are in the state, waits until they are
// gone, and returns how many there were.
func terminate(t testing.TB, db *sql.DB, state string) int {
	t.Helper()
	const those = "FROM pg_stat_activity WHERE application_name = current_schema() AND pid <> pg_backend_pid() AND state = $1"
	var n int
	require.NoError(t, db.QueryRow("SELECT count(pg_terminate_backend(pid)) "+those, state).Scan(&n))
	ended := n
	for deadline := time.Now().Add(time.Minute); n > 0; time.Sleep(time.Millisecond) {
		require.NoError(t, db.QueryRow("SELECT count(*) "+those, state).Scan(&n))
		require.True(t, time.Now().Before(deadline))
	}
	return ended
}

var changingCalls = append([]faultCall{startCall}, writeCalls...)

func TestACommitWhoseReplyIsLostIsLearned(t *testing.T) {
	t.Parallel()
	n := behindProxy(t)
	for _, call := range changingCalls {
		want := n.rehearse(t, call)
		s, o := n.begin(t, call)
		o.want = want
		n.proxy.DropAfterCommit()
		err := call.call(t, s)
		n.proxy.Pass()
		require.NoError(t, err, call.name)
		o.judge(t, s, err)
		o.again(t, s, call, true)
		s.Stop()
	}
}

func TestACommitThatArrivesLaterIsWaitedFor(t *testing.T) {
	t.Parallel()
	sideBySide(t, changingCalls, func(t *testing.T, call faultCall) {
		n := behindProxy(t)
		want := n.rehearse(t, call)
		s, o := n.begin(t, call)
		o.want = want
		n.proxy.HoldCommit(500 * time.Millisecond)
		begun := time.Now()
		err := call.call(t, s)
		n.proxy.Pass()
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(begun), 500*time.Millisecond)
		o.judge(t, s, err)
		o.again(t, s, call, true)
	})
}

func TestACommitThatArrivesTooLateIsUnknownAndThenLearned(t *testing.T) {
	t.Parallel()
	sideBySide(t, changingCalls, func(t *testing.T, call faultCall) {
		n := behindProxy(t)
		want := n.rehearse(t, call)
		s, o := n.begin(t, call)
		entries := insides.Entries(s)
		// PostgreSQL ends a transaction that is idle for five seconds.
		n.proxy.HoldCommit(min(n.calls.timeout+1500*time.Millisecond, 4500*time.Millisecond))
		err := n.hurried(func() error { return call.call(t, s) })
		n.proxy.Pass()
		require.ErrorIs(t, err, smallben.ErrOutcomeUnknown)
		assert.Equal(t, entries, insides.Entries(s))
		if call.name == startCall.name {
			// The held transaction has the rows locked.
			for deadline := time.Now().Add(time.Minute); err != nil; err = s.Start() {
				require.True(t, time.Now().Before(deadline), err)
			}
		} else {
			assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_unsettled_writes"])
			settled(t, s)
		}
		o.want = want
		require.True(t, o.judge(t, s, nil))
		o.again(t, s, call, true)
	})
}

func TestATransactionThatDiesWithItsCommitUnsentIsLearned(t *testing.T) {
	t.Parallel()
	sideBySide(t, writeCalls, func(t *testing.T, call faultCall) {
		n := behindProxy(t)
		s, o := n.begin(t, call)
		n.proxy.HoldCommit(time.Hour)
		err := n.hurried(func() error { return call.call(t, s) })
		n.proxy.Pass()
		require.ErrorIs(t, err, smallben.ErrOutcomeUnknown)
		require.Positive(t, terminate(t, n.db, "idle in transaction"))
		settled(t, s)
		require.False(t, o.judge(t, s, err))
	})
}

func TestAWriteOfUnknownOutcomeHoldsUpItsOwnJobsOnly(t *testing.T) {
	t.Parallel()
	n := behindProxy(t)
	s, _ := n.begin(t, listCall)
	n.proxy.HoldCommit(time.Hour)
	pause := func(id int64) error { return s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id}}) }
	require.ErrorIs(t, n.hurried(func() error { return pause(1) }), smallben.ErrOutcomeUnknown)
	n.proxy.Pass()

	err := patiently(func() error { return pause(1) })
	require.ErrorContains(t, err, "job 1: the outcome of an earlier write is not known yet: try again")
	require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
	inTime(t, func() error { return pause(2) })
	require.NotContains(t, insides.Entries(s), int64(2))
	require.Contains(t, insides.Entries(s), int64(1))
	var jobs []smallben.Job
	inTime(t, func() error {
		jobs, err = s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{1, 2}})
		return err
	})
	require.Equal(t, []bool{false, true}, []bool{jobs[0].Paused(), jobs[1].Paused()})

	terminate(t, n.db, "idle in transaction") // none, where the five seconds have passed after which PostgreSQL does it
	settled(t, s)
	inTime(t, func() error { return pause(1) })
	checkInvariant(t, s, n.truth)
}

func TestABlackHoleIsATimeoutAndNoHang(t *testing.T) {
	t.Parallel()
	n := behindProxy(t)
	n.reset(t)
	s := create(t, n.repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}})
	inTime(t, s.Start)
	heart := newHeart()
	inTime(t, func() error { return s.AddJobs([]smallben.Job{job(99, "* * * * * *", heart.probe)}) })
	o := &oracle{truth: n.truth, before: snapshot(t, n.truth), want: map[int64]string{}}
	n.proxy.BlackHole()
	for _, call := range append(writeCalls, listCall) {
		begun := time.Now()
		n.calls.hurry.Store(true)
		err := call.call(t, s)
		n.calls.hurry.Store(false)
		assert.Less(t, time.Since(begun), unhurried)
		require.ErrorContains(t, err, within(n.calls.timeout), call.name)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		o.judge(t, s, err)
	}
	heart.beatsOn(t)
	n.proxy.Pass()
	for _, call := range writeCalls {
		inTime(t, func() error { return call.call(t, s) })
		checkInvariant(t, s, n.truth)
	}
}

func TestACommitThatFallsIntoABlackHoleIsUnknownAndThenLearned(t *testing.T) {
	t.Parallel()
	sideBySide(t, writeCalls, func(t *testing.T, call faultCall) {
		n := behindProxy(t)
		s, o := n.begin(t, call)
		n.on(faultsql.Commit, n.proxy.BlackHole)
		err := n.hurried(func() error { return call.call(t, s) })
		require.ErrorIs(t, err, smallben.ErrOutcomeUnknown)
		assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_unsettled_writes"])
		n.calls.hurry.Store(true)
		err = s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{8}}})
		n.calls.hurry.Store(false)
		require.ErrorContains(t, err, "learn the outcome of an earlier write")
		require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
		n.proxy.Pass() // which closes what it swallowed
		settled(t, s)
		require.False(t, o.judge(t, s, smallben.ErrOutcomeUnknown))
	})
}

func TestConnectionsThatDiedWhileIdleFailNoCall(t *testing.T) {
	t.Parallel()
	n := behindProxy(t)
	for _, call := range append(changingCalls, listCall) {
		want := n.rehearse(t, call)
		s, o := n.begin(t, call)
		o.want = want
		// Two of them, so that one retry is not enough.
		one, err := n.pool.Conn(t.Context())
		require.NoError(t, err)
		require.NoError(t, n.pool.PingContext(t.Context()))
		require.NoError(t, one.Close())
		require.Positive(t, terminate(t, n.db, "idle"))
		require.NoError(t, call.call(t, s), call.name)
		o.judge(t, s, nil)
		o.again(t, s, call, true)
		s.Stop()
	}
}

func TestATransactionWhoseBackendDiesHasNotHappened(t *testing.T) {
	t.Parallel()
	n := behindProxy(t)
	for _, call := range changingCalls {
		s, o := n.begin(t, call)
		n.on(faultsql.Commit, func() { require.Positive(t, terminate(t, n.db, "idle in transaction")) })
		err := call.call(t, s)
		n.faults.OnOp(nil)
		require.Error(t, err, call.name)
		require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
		require.False(t, o.judge(t, s, err))
		require.NoError(t, call.call(t, s), call.name)
		s.Stop()
	}
}

func TestAServerThatCrashesAndComesBackNeedsNoRestartOfSmallBen(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	faults, err := faultsql.Postgres(server.DSN())
	require.NoError(t, err)
	db := openSQLDB(t, "pgx", server.DSN())
	t.Cleanup(func() { assert.NoError(t, errors.Join(faults.DB().Close(), db.Close())) })
	truth := openGorm(t, onPostgres(db), 0)
	reset := seed(t, truth, db)
	repository := openGorm(t, onPostgres(faults.DB()), 3*time.Second)
	reset(t)
	s := create(t, repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}})
	require.NoError(t, s.Start())
	heart := newHeart()
	require.NoError(t, s.AddJobs([]smallben.Job{job(99, "* * * * * *", heart.probe)}))
	o := &oracle{truth: truth, before: snapshot(t, truth), want: map[int64]string{}}

	server.StopImmediate()
	for _, call := range append(writeCalls, listCall) {
		err := call.call(t, s)
		require.Error(t, err, call.name)
		require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
	}
	heart.beatsOn(t)
	server.StartAgain()
	o.judge(t, s, errDown)

	// Crashes with a COMMIT on its way, and with one done.
	for _, done := range []bool{false, true} {
		pause := func() error { return s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}) }
		if done {
			faults.FailWhen(func(op faultsql.Op) bool { return op.Kind == faultsql.Commit }, faultsql.Fault{Mode: faultsql.HangAfter})
			answered := make(chan error, 1)
			go func() { answered <- pause() }()
			for paused := false; !paused; time.Sleep(time.Millisecond) {
				require.NoError(t, db.QueryRow("SELECT paused FROM jobs WHERE id = 1").Scan(&paused))
			}
			server.StopImmediate()
			err = <-answered
			faults.Heal()
		} else {
			faults.OnOp(func(op faultsql.Op) {
				if op.Kind == faultsql.Commit {
					server.StopImmediate()
				}
			})
			err = pause()
			faults.OnOp(nil)
		}
		require.ErrorIs(t, err, smallben.ErrOutcomeUnknown)
		assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_unsettled_writes"])
		require.Contains(t, insides.Entries(s), int64(1), "memory stays as it was")
		server.StartAgain()
		settled(t, s)
		checkInvariant(t, s, truth)
		_, scheduled := insides.Entries(s)[1]
		require.Equal(t, !done, scheduled)
	}
	for _, call := range writeCalls[1:] {
		require.NoError(t, call.call(t, s), call.name)
		checkInvariant(t, s, truth)
	}
}

func TestARefusalByPostgreSQLChangesNothing(t *testing.T) {
	t.Parallel()
	const refuse = `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$`
	for name, refusal := range map[string]struct {
		session, schema []string
		message         string
	}{
		"read-only transaction": {session: []string{"SET default_transaction_read_only = on"}, message: "read-only"},
		"trigger":               {schema: []string{refuse, "CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON jobs FOR EACH ROW EXECUTE FUNCTION refuse()"}, message: "not today"},
		"at COMMIT": {schema: []string{refuse,
			"CREATE CONSTRAINT TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON jobs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()"}, message: "not today"},
		"missing table": {schema: []string{"ALTER TABLE jobs RENAME TO away"}, message: `.jobs" does not exist`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.DSN(t)
			// What the session is SET to holds for a connection in its place as well.
			var refusing atomic.Bool
			config, err := pgx.ParseConfig(dsn)
			require.NoError(t, err)
			pool := stdlib.OpenDB(*config, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
				if !refusing.Load() {
					return nil
				}
				_, err := conn.Exec(ctx, strings.Join(refusal.session, ";"))
				return err
			}))
			db, other := openSQLDB(t, "pgx", dsn), openSQLDB(t, "pgx", dsn)
			t.Cleanup(func() { assert.NoError(t, errors.Join(pool.Close(), other.Close(), db.Close())) })
			pool.SetMaxOpenConns(1) // so that what is SET stays
			other.SetMaxOpenConns(1)
			truth := openGorm(t, onPostgres(db), 0)
			st := stage{openGorm(t, onPostgres(pool), 0), truth, seed(t, truth, db)}
			for _, call := range changingCalls {
				s, o := st.begin(t, call)
				refusing.Store(true)
				for _, statement := range refusal.session {
					_, err := pool.Exec(statement)
					require.NoError(t, err)
				}
				for _, statement := range refusal.schema {
					_, err := other.Exec(statement)
					require.NoError(t, err)
				}
				err := call.call(t, s)
				assert.ErrorContains(t, err, refusal.message, call.name)
				assert.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
				refusing.Store(false)
				_, resetErr := pool.Exec("RESET ALL")
				require.NoError(t, resetErr)
				for _, statement := range []string{"ALTER TABLE IF EXISTS away RENAME TO jobs", "DROP FUNCTION IF EXISTS refuse CASCADE"} {
					_, err := other.Exec(statement)
					require.NoError(t, err)
				}
				o.judge(t, s, err)
				require.NoError(t, call.call(t, s), call.name)
				s.Stop()
			}
		})
	}
}

// A write is read committed, whatever the default is.
func TestADefaultOfSerializableFailsNoWrite(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	pool, db := openSQLDB(t, "pgx", dsn), openSQLDB(t, "pgx", dsn)
	t.Cleanup(func() { assert.NoError(t, errors.Join(pool.Close(), db.Close())) })
	pool.SetMaxOpenConns(1)
	truth := openGorm(t, onPostgres(db), 0)
	st := stage{openGorm(t, onPostgres(pool), 0), truth, seed(t, truth, db)}
	_, err := pool.Exec("SET default_transaction_isolation = 'serializable'")
	require.NoError(t, err)
	for _, call := range writeCalls[1:] { // an insert waits for nobody
		want := st.rehearse(t, call)
		s, o := st.begin(t, call)
		o.want = want
		tx, err := db.Begin()
		require.NoError(t, err)
		_, err = tx.Exec("UPDATE jobs SET cron_id = cron_id")
		require.NoError(t, err)
		answered := make(chan error, 1)
		go func() { answered <- call.call(t, s) }()
		for waiting := 0; waiting == 0; time.Sleep(time.Millisecond) {
			require.NoError(t, db.QueryRow("SELECT count(*) FROM pg_stat_activity WHERE application_name = current_schema() AND wait_event_type = 'Lock'").Scan(&waiting))
		}
		require.NoError(t, tx.Commit())
		err = <-answered
		require.NoError(t, err, call.name)
		require.True(t, o.judge(t, s, err))
		s.Stop()
	}
}

func TestALockedTableAndAnExhaustedPoolAreTimeouts(t *testing.T) {
	t.Parallel()
	for name, block := range map[string]func(t *testing.T, pool, db *sql.DB) (release func() error){
		"locked table": func(t *testing.T, _, db *sql.DB) func() error {
			tx, err := db.Begin()
			require.NoError(t, err)
			_, err = tx.Exec("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
			require.NoError(t, err)
			return tx.Rollback
		},
		"exhausted pool": func(t *testing.T, pool, _ *sql.DB) func() error {
			conn, err := pool.Conn(t.Context())
			require.NoError(t, err)
			return conn.Close
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sideBySide(t, append(changingCalls, listCall), func(t *testing.T, call faultCall) {
				dsn := pgtest.DSN(t)
				pool, db := openSQLDB(t, "pgx", dsn), openSQLDB(t, "pgx", dsn)
				t.Cleanup(func() { assert.NoError(t, errors.Join(pool.Close(), db.Close())) })
				pool.SetMaxOpenConns(1)
				truth := openGorm(t, onPostgres(db), 0)
				repository, timeout := openHasty(t, onPostgres(pool), time.Second)
				st := stage{repository, truth, seed(t, truth, db)}
				s, o := st.begin(t, call)
				release := block(t, pool, db)
				begun := time.Now()
				err := call.call(t, s)
				assert.Less(t, time.Since(begun), unhurried)
				require.NoError(t, release())
				require.ErrorContains(t, err, within(timeout))
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.False(t, o.judge(t, s, err))
				inTime(t, func() error { return call.call(t, s) })
			})
		})
	}
}

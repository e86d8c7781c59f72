package test

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
)

// A service, which is this binary with the name of a test below, changes jobs in
// transactions of its own. It is killed between a COMMIT and the moment at which it
// follows it, or anywhere. Another process, or the next one, follows.

const envCommit = "SMALLBEN_TEST_COMMIT"

// commitService says what a service does.
type commitService struct {
	DSN    string
	Record bool
	// Transacts lets it commit transactions. After so many it kills itself; -1 means
	// never.
	Transacts int
}

// The jobs of the service. A transaction of version n sets the version of its customer,
// and of the first two jobs: of the one in the job, of the other in the input. It pauses
// the third if n is odd, and resumes it if not; it deletes the job that the transaction
// before has added, and adds one.
const (
	replacedJob = 1
	updatedJob  = 2
	steeredJob  = 3
	addedJob    = 100 // plus n
)

// expected are the jobs that run after transaction n, and their versions.
func expected(n int) map[int64]int {
	versions := map[int64]int{replacedJob: n, updatedJob: n, addedJob + int64(n): n}
	if n%2 == 0 {
		versions[steeredJob] = 0
	}
	return versions
}

func TestTheServiceThatIsKilledAtACommit(t *testing.T) {
	text := os.Getenv(envCommit)
	if text == "" {
		t.Skip("the test of commits starts it")
	}
	var config commitService
	require.NoError(t, json.Unmarshal([]byte(text), &config))
	var output sync.Mutex
	agents.Store("commit", func(a agent, input smallben.CronJobInput) {
		version := a.Version
		if input.JobID == updatedJob {
			version = int(input.OtherInputs["version"].(float64))
		}
		output.Lock()
		defer output.Unlock()
		fmt.Printf("ran %d %d %d\n", input.JobID, version, input.ScheduledAt.Unix())
	})
	db, pool := openCommitDatabase(t, config.DSN)
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: commitDialector(config.DSN, pool)})
	require.NoError(t, err)
	own := &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}}
	own.Runs.Record = config.Record
	if config.Record && config.Transacts != 0 {
		own.Runs.SyncInterval = 5 * time.Second // it does not follow itself before it dies
	}
	s := create(t, repository, own)
	require.NoError(t, s.Start())
	fmt.Println("up")
	for n := 1; n <= config.Transacts || config.Transacts < 0; n++ {
		require.NoError(t, db.Transaction(func(tx *gorm.DB) error { return transact(tx, s, n) }))
		if n == config.Transacts {
			require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGKILL))
		}
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.Stop()
}

// transact writes version n.
func transact(tx *gorm.DB, s *smallben.SmallBen, n int) error {
	if err := tx.Exec("UPDATE customers SET version = ?", n).Error; err != nil {
		return err
	}
	versioned := func(id int64) []smallben.Job {
		return []smallben.Job{{ID: id, CronExpression: "* * * * * *", Job: agent{"commit", id, n}}}
	}
	input := map[string]any{"version": n}
	steer := s.PauseJobsTx
	if n%2 == 0 {
		steer = s.ResumeJobsTx
	}
	err := errors.Join(
		s.UpsertJobsTx(tx, versioned(replacedJob)),
		s.UpdateJobsTx(tx, []smallben.UpdateOption{{JobID: updatedJob, JobOtherInputs: &input}}),
		steer(tx, &smallben.PauseResumeOptions{JobIDs: []int64{steeredJob}}),
		s.AddJobsTx(tx, versioned(addedJob+int64(n))),
		s.DeleteJobsTx(tx, &smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{addedJob + int64(n) - 1}}}),
	)
	return err
}

func commitDialector(dsn string, pool *sql.DB) gorm.Dialector {
	if strings.HasPrefix(dsn, "postgres") {
		return postgres.New(postgres.Config{Conn: pool})
	}
	return &sqlite.Dialector{Conn: pool}
}

// openCommitDatabase opens the database as an application does.
func openCommitDatabase(t testing.TB, dsn string) (*gorm.DB, *sql.DB) {
	t.Helper()
	db, err := gorm.Open(crashDialector(dsn), &gorm.Config{})
	require.NoError(t, err)
	pool, err := db.DB()
	require.NoError(t, err)
	t.Cleanup(func() { _ = pool.Close() })
	return db, pool
}

// commitRun is a run of the service.
type commitRun struct {
	id      int64
	version int
	tick    int64 // Unix seconds
}

// commitProcess is a service that runs.
type commitProcess struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.Closer
	up    chan struct{}
	runs  chan commitRun
	ended chan struct{} // after that said may be read
	said  strings.Builder
}

func launchCommit(t testing.TB, config commitService) *commitProcess {
	t.Helper()
	text, err := json.Marshal(config)
	require.NoError(t, err)
	p := &commitProcess{t: t, up: make(chan struct{}), runs: make(chan commitRun, 10_000), ended: make(chan struct{})}
	p.cmd = exec.Command(os.Args[0], "-test.run=^TestTheServiceThatIsKilledAtACommit$", "-test.count=1")
	p.cmd.Env = append(os.Environ(), envCommit+"="+string(text))
	p.stdin, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.cmd.Stderr = p.cmd.Stdout
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var run commitRun
			if lines.Text() == "up" {
				close(p.up)
			} else if _, err := fmt.Sscanf(lines.Text(), "ran %d %d %d", &run.id, &run.version, &run.tick); err == nil {
				p.runs <- run
			} else {
				p.said.WriteString(lines.Text() + "\n")
			}
		}
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.stdin.Close()
		p.await(p.ended, "end")
	})
	p.await(p.up, "come up")
	return p
}

func (p *commitProcess) await(event <-chan struct{}, what string) {
	p.t.Helper()
	select {
	case <-event:
	case <-time.After(time.Minute):
		_ = p.cmd.Process.Kill()
		p.t.Errorf("the service does not %s", what)
	}
}

// dies waits for a process that is killed.
func (p *commitProcess) dies() {
	p.t.Helper()
	p.await(p.ended, "die")
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(p.t, ok && status.Signaled() && status.Signal() == syscall.SIGKILL, "%v: %s", p.cmd.ProcessState, &p.said)
}

// follows waits until the process runs the jobs as transaction n has left them. No run
// of a tick after the kill is of a job that is paused or deleted.
func (p *commitProcess) follows(n int, killed time.Time) {
	p.t.Helper()
	want := expected(n)
	met := make(map[int64]bool)
	const more = 2                           // ticks, in which nothing else runs
	deadline := time.After(20 * time.Second) // before a sweep finds what is not announced
	for last := int64(0); len(met) < len(want) || last <= more; {
		select {
		case run := <-p.runs:
			if run.tick <= killed.Unix() {
				continue
			}
			version, runs := want[run.id]
			require.True(p.t, runs, "transaction %d: job %d ran at %s, killed at %s", n, run.id, time.Unix(run.tick, 0), killed)
			require.False(p.t, met[run.id] && run.version != version, "transaction %d: job %d ran as of version %d again", n, run.id, run.version)
			if run.version == version {
				met[run.id] = true
			}
			if len(met) == len(want) && run.id == replacedJob {
				last++
			}
		case <-p.ended:
			p.t.Fatalf("the service has ended: %s", &p.said)
		case <-deadline:
			p.t.Fatalf("transaction %d is not followed: of %v there was %v", n, want, met)
		}
	}
}

// commitApplication is the database of the service.
type commitApplication struct {
	testing.TB
	db *gorm.DB
}

// newCommitApplication stores a customer and the jobs of version 0.
func newCommitApplication(t testing.TB, config commitService) *commitApplication {
	t.Helper()
	db, pool := openCommitDatabase(t, config.DSN)
	require.NoError(t, db.Exec("CREATE TABLE customers (version bigint)").Error)
	require.NoError(t, db.Exec("INSERT INTO customers VALUES (0)").Error)
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: commitDialector(config.DSN, pool)})
	require.NoError(t, err)
	s := create(t, repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true},
		Runs: smallben.RunsConfig{Record: config.Record}})
	var jobs []smallben.Job
	for id := range expected(0) {
		jobs = append(jobs, smallben.Job{ID: id, CronExpression: "* * * * * *", Job: agent{"commit", id, 0}, JobInput: map[string]any{"version": 0}})
	}
	require.NoError(t, s.AddJobs(jobs))
	return &commitApplication{t, db}
}

// version is what the last transaction has committed.
func (app *commitApplication) version() (n int) {
	app.Helper()
	require.NoError(app, app.db.Raw("SELECT version FROM customers").Scan(&n).Error)
	return n
}

// announced are how many jobs the outbox has.
func (app *commitApplication) announced() (n int) {
	app.Helper()
	require.NoError(app, app.db.Raw("SELECT count(DISTINCT job_id) FROM smallben_outbox").Scan(&n).Error)
	return n
}

// awaitServer waits until the server knows that the service is gone: it may still be at
// a COMMIT.
func (app *commitApplication) awaitServer() {
	app.Helper()
	if app.db.Name() != "postgres" {
		return
	}
	require.Eventually(app, func() bool {
		var left int
		err := app.db.Raw("SELECT count(*) FROM pg_stat_activity WHERE application_name = ?", doomedName).Scan(&left).Error
		return err == nil && left == 0
	}, time.Minute, time.Millisecond)
}

const doomedName = "smallben doomed" // of connections

func TestACommitWhoseProcessIsKilledIsFollowed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		record  bool
		another bool // process follows, which runs already; if not, the next one
	}{{false, false}, {true, false}, {true, true}} {
		for _, anywhere := range []bool{false, true} {
			for _, name := range []string{"SQLite WAL", "PostgreSQL"} {
				t.Run(fmt.Sprintf("%s/Record=%t/another=%t/anywhere=%t", name, c.record, c.another, anywhere), func(t *testing.T) {
					t.Parallel()
					living := commitService{DSN: crashDatabases[name](t), Record: c.record}
					doomed := living
					if name == "PostgreSQL" {
						doomed.DSN = withApplication(living.DSN, doomedName)
					} else {
						living.DSN += "&_txlock=immediate"
						doomed.DSN = living.DSN
					}
					app := newCommitApplication(t, living)
					var follower *commitProcess
					if c.another {
						follower = launchCommit(t, living)
					}
					if doomed.Transacts = 3; anywhere {
						doomed.Transacts = -1
					}
					p := launchCommit(t, doomed)
					if anywhere {
						time.Sleep(rand.N(300 * time.Millisecond))
						require.NoError(t, p.cmd.Process.Kill())
					}
					p.dies()
					app.awaitServer()
					killed, n := time.Now(), app.version()
					t.Log("killed after transaction", n)
					if !anywhere {
						require.Equal(t, doomed.Transacts, n)
					}
					if follower == nil {
						if c.record && !anywhere {
							require.Equal(t, 3+1+doomed.Transacts, app.announced(), "nobody has followed")
						}
						follower = launchCommit(t, living)
					}
					follower.follows(n, killed)
				})
			}
		}
	}
}

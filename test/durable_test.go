//go:build unix

package test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/pgtest"
)

// Three processes, each this binary with the name of a test below, share the
// record of runs, and the test is their driver: it changes their jobs at random,
// through any of them, kills one, stops another, and lets the server crash. The
// processes write each run to journals. When all is over the journals, what the
// driver was told, and the database are compared: durable_check_test.go.

// The tables of the record.
const (
	tableRuns      = "smallben_runs"
	tableState     = "smallben_job_state"
	tableClosed    = "smallben_closed_spans"
	tableLocks     = "smallben_locks"
	tableProcesses = "smallben_processes"
	tableRecord    = "smallben_ledger"
)

const (
	envDurable         = "SMALLBEN_TEST_DURABLE"          // a durableConfig, for a process
	envDurableSeed     = "SMALLBEN_TEST_SEED"             // repeats what the driver draws
	envDurableDatabase = "SMALLBEN_TEST_DURABLE_DATABASE" // PostgreSQL or SQLite: the long form takes only it
	envDurableRounds   = "SMALLBEN_TEST_DURABLE_ROUNDS"   // of the long form, in place of SMALLBEN_SOAK's time
	envDurableJobs     = "SMALLBEN_TEST_DURABLE_JOBS"     // of the long form, in place of 1,000
	envDurableKeep     = "SMALLBEN_TEST_DURABLE_KEEP"     // a directory for journals, logs and records
)

// durablePlan is a round, of which the rest is drawn.
type durablePlan struct {
	Slots   int // processes at a time
	Jobs    int
	Load    time.Duration // in which jobs are changed and processes disturbed
	Halt    time.Duration // by SIGSTOP
	Timing  ledger.Timing
	Workers int
	Gap     time.Duration // between two operations of a worker, on the average

	// What disturbs the processes, beside or instead of each other.
	Kills  int             // kills, a long stop and a short one, a crash of the server
	Forget int             // a firewall forgets the connections of a process, so often
	Hog    int             // the application takes all connections of its pool for longer than DeadAfter, so often
	Strike int             // the leader is killed, stopped or ended, so often
	Roll   bool            // the processes are replaced by newer ones, which know a type more
	Skew   []time.Duration // by which the clock of each slot is ahead
}

var (
	shortTiming = ledger.Timing{DeadAfter: 4 * time.Second, SweepEvery: 3 * time.Second, MissedAfter: 3 * time.Second, ClaimPatience: 2 * time.Second, StopPatience: ledger.DefaultTiming.StopPatience}
	longTiming  = ledger.DefaultTiming // that of users

	shortPlan = durablePlan{Slots: 3, Jobs: 150, Load: 15 * time.Second, Halt: 6 * time.Second, Kills: 1, Workers: 4, Gap: 100 * time.Millisecond, Timing: shortTiming}
	longPlan  = durablePlan{Slots: 3, Jobs: 1000, Load: time.Minute, Halt: 20 * time.Second, Kills: 2, Workers: 4, Gap: 50 * time.Millisecond, Timing: longTiming}
)

// quietly returns plan with none of its disturbances, and a smaller load.
func quietly(plan durablePlan) durablePlan {
	plan.Kills, plan.Jobs, plan.Workers, plan.Gap = 0, plan.Jobs/2, 3, plan.Gap*3/2
	return plan
}

// troublePlans are rounds in which one thing happens, and not what plan has.
var troublePlans = []struct {
	name     string
	database string
	edit     func(plan *durablePlan)
}{
	{"a firewall forgets connections", "PostgreSQL", func(plan *durablePlan) { plan.Forget = 3 }},
	{"the application uses up its pool", "PostgreSQL", func(plan *durablePlan) { plan.Hog = 2 }},
	{"clocks differ", "PostgreSQL", func(plan *durablePlan) { plan.Skew = []time.Duration{0, 37 * time.Second, -50 * time.Minute} }},
	{"a rolling deployment", "PostgreSQL", func(plan *durablePlan) { plan.Roll = true }},
	{"ten processes", "PostgreSQL", func(plan *durablePlan) { plan.Slots = 10 }},
	{"the leader is struck", "PostgreSQL", func(plan *durablePlan) { plan.Strike, plan.Load = 2, plan.Load*3/2 }},
	{"the leader is struck", "SQLite", func(plan *durablePlan) { plan.Strike, plan.Load = 2, plan.Load*3/2 }},
}

// durableConfig is what a process is told at its start.
type durableConfig struct {
	DSN, Journal string
	Overlap      string
	RerunLost    bool
	Missed       smallben.MissedPolicy
	Location     string
	Timing       ledger.Timing
	Long         bool
	Timeout      time.Duration // of calls of the database; zero: the default
	Connections  int           // of the pool at most; zero: no limit
	Newer        bool          // it knows newerJob
	Skew         time.Duration // by which its clock is ahead
}

func (c durableConfig) String() string {
	return fmt.Sprintf("overlap %q, RerunLost %v, Missed %d, location %q", c.Overlap, c.RerunLost, c.Missed, c.Location)
}

func (c durableConfig) smallBen() *smallben.Config {
	config := &smallben.Config{
		SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true, SkipIfStillRunning: c.Overlap == "skip", DelayIfStillRunning: c.Overlap == "delay"},
		Runs:            smallben.RunsConfig{Record: true, Missed: c.Missed, RerunLost: c.RerunLost},
	}
	if c.Location != "" {
		location, err := time.LoadLocation(c.Location)
		if err != nil {
			panic(err)
		}
		config.SchedulerConfig.WithLocation = location
	}
	return config
}

// durableCommand is a line from the driver to a process, durableReply one back. A
// reply without a number says that the process runs jobs.
type durableCommand struct {
	N int
	durableOperation
}

type durableReply struct {
	N       int                `json:",omitempty"`
	Err     string             `json:",omitempty"`
	Unknown bool               `json:",omitempty"`
	Seen    map[int64]jobState `json:",omitempty"`
	Trouble string             `json:",omitempty"` // why it does not run jobs yet
}

func init() {
	gob.Register(durableJob{})
	gob.Register(triedJob{})
}

// durableJob writes its runs to the journal of its process.
type durableJob struct{ ID int64 }

// durable is the process, where this is one.
var durable struct {
	durableConfig
	journal *durableJournal
	pool    *sql.DB // nil: the repository has its own
}

// newerJob is a durableJob of a type that processes know once they have been
// replaced by newer ones.
type newerJob struct{ ID int64 }

func (newerJob) Run(smallben.CronJobInput) { panic("RunContext is called in its place") }

func (j newerJob) RunContext(ctx context.Context, input smallben.CronJobInput) error {
	return durableJob(j).RunContext(ctx, input)
}

// RunOptions implements smallben.ConfiguredJob.
func (j newerJob) RunOptions() smallben.RunOptions { return triedOptions(j.ID) }

// isNewer reports whether a job is a newerJob, where there are such.
func isNewer(id int64) bool { return id > 0 && id%5 == 0 }

// triedJob is a durableJob whose runs are tried again when they fail.
type triedJob struct{ ID int64 }

func (triedJob) Run(smallben.CronJobInput) { panic("RunContext is called in its place") }

func (j triedJob) RunContext(ctx context.Context, input smallben.CronJobInput) error {
	return durableJob(j).RunContext(ctx, input)
}

// RunOptions implements smallben.ConfiguredJob.
func (j triedJob) RunOptions() smallben.RunOptions { return triedOptions(j.ID) }

// isTried reports whether the runs of a job are tried again when they fail. Some of
// those that are newer are.
func isTried(id int64) bool { return id > 0 && id%7 == 3 }

// triedOptions are the options of a job. The attempts of those that run each second end
// now and then before they are due, with the next tick.
func triedOptions(id int64) smallben.RunOptions {
	if !isTried(id) {
		return smallben.RunOptions{}
	}
	return smallben.RunOptions{Attempts: 2 + int(id%3), Backoff: 150 * time.Millisecond, MaxBackoff: 400 * time.Millisecond}
}

// planOf says how an attempt of a triedJob ends: half of the runs go well at once, the
// others fail once or twice, for good, or always.
func planOf(fate uint64, attempt int) (end smallben.Outcome, permanent bool) {
	failures, forGood := 0, false
	switch n := fate % 16; {
	case n < 8:
	case n < 10:
		failures = 1
	case n < 12:
		failures = 2
	case n < 13:
		failures, forGood = 1, true
	case n < 14:
		failures, forGood = 2, true
	default:
		failures = math.MaxInt
	}
	switch {
	case attempt > failures:
		return smallben.OutcomeOK, false
	case attempt == failures && forGood:
		return smallben.OutcomeError, true
	case fate/16%4 == 0:
		return smallben.OutcomePanic, false
	}
	return smallben.OutcomeError, false
}

func (durableJob) Run(smallben.CronJobInput) { panic("RunContext is called in its place") }

func (j durableJob) RunContext(_ context.Context, input smallben.CronJobInput) error {
	at := trueTime()
	var version struct{ V int }
	if err := input.Decode(&version); err != nil {
		return err
	}
	note := runNote{Job: input.JobID, Tick: input.ScheduledAt.UnixMicro(), Triggered: input.Triggered, Attempt: input.Attempt, Missed: input.Missed,
		Input: version.V, At: at.UnixMicro()}
	<-durable.journal.note(note)
	hash := fnv.New64a()
	fmt.Fprint(hash, note.Job, note.Tick)
	fate := hash.Sum64()
	var takes time.Duration
	switch n := fate % 1000; {
	case n < 2 && durable.Long:
		takes = 8 * time.Second
	case n < 8:
		takes = 2500 * time.Millisecond
	case n < 50:
		takes = 400 * time.Millisecond
	}
	if takes > 0 {
		<-time.After(takes)
	}
	note.End = smallben.OutcomeOK
	permanent := false
	switch n := fate / 1000 % 100; {
	case isTried(j.ID):
		note.End, permanent = planOf(fate/1000, input.Attempt)
	case n < 2:
		note.End = smallben.OutcomePanic
	case n < 5:
		note.End = smallben.OutcomeError
	}
	note.At = trueTime().UnixMicro()
	durable.journal.note(note)
	switch {
	case note.End == smallben.OutcomePanic:
		panic("drawn")
	case permanent:
		return smallben.Permanent(errForGood)
	case note.End == smallben.OutcomeError:
		return errors.New("drawn")
	}
	return nil
}

// errForGood is the error of a run that is not tried again.
var errForGood = errors.New("drawn, for good")

// trueTime is what the clock of the machine shows.
func trueTime() time.Time { return time.Now().Add(-durable.Skew) }

// durableJournal writes lines to a file, many in one go.
type durableJournal struct {
	file *os.File
	wake chan struct{} // holds 1
	done chan struct{}

	mu      sync.Mutex
	lines   bytes.Buffer
	written chan struct{} // closed: what is in lines is on the disk
	closed  bool
}

func newDurableJournal(path string) (*durableJournal, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	j := &durableJournal{file: file, wake: make(chan struct{}, 1), done: make(chan struct{}), written: make(chan struct{})}
	go j.write()
	return j, nil
}

// note returns a channel that is closed when the note is on the disk.
func (j *durableJournal) note(note runNote) <-chan struct{} {
	line, err := json.Marshal(note)
	if err != nil {
		panic(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines.Write(append(line, '\n'))
	select {
	case j.wake <- struct{}{}:
	default:
	}
	return j.written
}

func (j *durableJournal) write() {
	defer close(j.done)
	var lines bytes.Buffer
	for range j.wake {
		j.mu.Lock()
		lines, j.lines = j.lines, lines
		written, closed := j.written, j.closed
		j.written = make(chan struct{})
		j.mu.Unlock()
		if _, err := lines.WriteTo(j.file); err != nil {
			panic(err)
		}
		if err := j.file.Sync(); err != nil {
			panic(err)
		}
		close(written)
		if closed {
			return
		}
	}
}

func (j *durableJournal) close() {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
	<-j.done
	_ = j.file.Close()
}

func TestTheProcessOfDurableRuns(t *testing.T) {
	text := os.Getenv(envDurable)
	if text == "" {
		t.Skip("the tests of durable runs start it")
	}
	require.NoError(t, json.Unmarshal([]byte(text), &durable.durableConfig))
	config := durable.durableConfig
	if config.Newer {
		gob.Register(newerJob{})
	}
	journal, err := newDurableJournal(config.Journal)
	require.NoError(t, err)
	defer journal.close()
	durable.journal = journal
	log, err := os.Create(config.Journal + ".log")
	require.NoError(t, err)
	defer log.Close()
	var replying sync.Mutex
	reply := func(r durableReply) {
		line, err := json.Marshal(r)
		if err != nil {
			panic(err)
		}
		replying.Lock()
		defer replying.Unlock()
		fmt.Printf("%s\n", line)
	}
	// The database may be away.
	attempt := func(what func() error) {
		for again := time.NewTicker(100 * time.Millisecond); ; <-again.C {
			err := what()
			if err == nil {
				again.Stop()
				return
			}
			reply(durableReply{Trouble: err.Error()})
		}
	}
	dialector := crashDialector(config.DSN)
	if config.Connections > 0 {
		durable.pool = openSQLDB(t, "pgx", config.DSN)
		defer durable.pool.Close()
		durable.pool.SetMaxOpenConns(config.Connections)
		dialector = onPostgres(durable.pool)
	}
	var repository *smallben.RepositoryGorm
	attempt(func() (err error) {
		repository, err = smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector, Timeout: config.Timeout})
		return err
	})
	defer repository.Close()
	settings := config.smallBen()
	settings.Logger = funcr.New(func(_, args string) {
		if !strings.Contains(args, "run skipped") && !strings.Contains(args, "run failed") {
			fmt.Fprintln(log, time.Now().UTC().Format("15:04:05.000000"), args)
		}
	}, funcr.Options{})
	s := smallben.New(repository, settings)
	*insides.Timing(s) = config.Timing
	before := goleak.IgnoreCurrent() // those of the pool
	attempt(s.Start)
	reply(durableReply{})

	var commands sync.WaitGroup
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var command durableCommand
		require.NoError(t, json.Unmarshal(lines.Bytes(), &command))
		commands.Go(func() {
			seen, err := command.call(s)
			answer := durableReply{N: command.N, Seen: seen}
			if err != nil {
				answer.Err, answer.Unknown = err.Error(), errors.Is(err, smallben.ErrOutcomeUnknown)
			}
			reply(answer)
		})
	}
	commands.Wait()
	s.Stop()
	// Stop gives up on a file that a stopped process has locked. The calls that it
	// leaves behind end with their Timeout, of half a minute by default.
	for end := time.Now().Add(time.Minute); goleak.Find(before) != nil && time.Now().Before(end); {
	}
}

func (o durableOperation) call(s *smallben.SmallBen) (seen map[int64]jobState, err error) {
	selected := smallben.PauseResumeOptions{JobIDs: o.IDs}
	if o.Group != 0 {
		selected.GroupIDs = []int64{o.Group}
	}
	input := map[string]any{"v": o.Input}
	switch o.Kind {
	case "add", "upsert":
		jobs := make([]smallben.Job, len(o.IDs))
		for i, id := range o.IDs {
			jobs[i] = smallben.Job{ID: id, GroupID: durableGroup(id), CronExpression: o.Expression, Job: durableJob{id}, JobInput: input}
			switch {
			case durable.Newer && isNewer(id):
				jobs[i].Job = newerJob{id}
			case isTried(id):
				jobs[i].Job = triedJob{id}
			}
		}
		if o.Kind == "upsert" {
			return nil, s.UpsertJobs(jobs)
		}
		return nil, s.AddJobs(jobs)
	case "delete":
		return nil, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: selected})
	case "pause":
		return nil, s.PauseJobs(&selected)
	case "resume":
		return nil, s.ResumeJobs(&selected)
	case "trigger":
		return nil, s.TriggerJobs(&selected)
	case "update":
		updates := make([]smallben.UpdateOption, len(o.IDs))
		for i, id := range o.IDs {
			updates[i].JobID = id
			if o.Expression != "" {
				updates[i].CronExpression = &o.Expression
			}
			if o.Input != 0 {
				updates[i].JobOtherInputs = &input
			}
		}
		return nil, s.UpdateJobs(updates)
	case "list":
		jobs, err := s.ListJobs(&smallben.ListJobsOptions{JobIDs: o.IDs})
		if err != nil && (errors.Is(err, smallben.ErrUndecodable) || !errors.Is(err, s.ErrorTypeIfMismatchCount())) {
			return nil, err // of a row that does not decode it is not known what it holds
		}
		seen = make(map[int64]jobState)
		for i := range jobs {
			created := jobs[i].CreatedAt().Unix()
			seen[jobs[i].ID] = jobState{Exists: true, Paused: jobs[i].Paused(), Expression: jobs[i].CronExpression,
				Input: int(jobs[i].JobInput["v"].(float64)), CreatedFrom: created, CreatedTo: created}
		}
		_, err = s.ListRuns(&smallben.ListRunsOptions{JobIDs: o.IDs, Limit: 10})
		return seen, err
	case "hog":
		hog(o.For)
		return nil, nil
	}
	return nil, fmt.Errorf("no operation %q", o.Kind)
}

// hog takes the connections of the pool, as many as it gets, as an application does
// whose transactions wait for something.
func hog(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	for range durable.Connections {
		conn, err := durable.pool.Conn(ctx)
		if err != nil {
			return // what it has is released, for time is up
		}
		defer conn.Close()
	}
	<-ctx.Done()
}

// durableProcess is a process as the driver sees it.
type durableProcess struct {
	*trace                    // guarded by mu until the process is gone; notes are read then
	application string        // its name for PostgreSQL
	proxy       *pgtest.Proxy // before PostgreSQL; nil: none
	cmd         *exec.Cmd
	stdin       io.WriteCloser
	stderr      bytes.Buffer
	ended       chan struct{} // closed: it is gone, and all that it said is read
	failed      error         // it ended by itself, or as it should not

	mu      sync.Mutex
	last    int
	pending map[int]chan durableReply
	trouble string
}

var errNoReply = errors.New("the process ended")

// do waits for the reply.
func (p *durableProcess) do(operation durableOperation) (durableReply, error) {
	answer := make(chan durableReply, 1)
	p.mu.Lock()
	p.last++
	n := p.last
	p.pending[n] = answer
	line, err := json.Marshal(durableCommand{n, operation})
	if err == nil {
		_, err = p.stdin.Write(append(line, '\n'))
	}
	p.mu.Unlock()
	if err != nil {
		<-p.ended
		return durableReply{}, errNoReply
	}
	patience := time.NewTimer(durablePatience)
	defer patience.Stop()
	select {
	case reply := <-answer:
		return reply, nil
	case <-p.ended:
	case <-patience.C:
		p.mu.Lock()
		p.trouble = fmt.Sprintf("%s takes longer than %v", operation, durablePatience)
		p.mu.Unlock()
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // which tells where it is
		<-p.ended
	}
	select {
	case reply := <-answer:
		return reply, nil
	default:
		return durableReply{}, errNoReply
	}
}

// durablePatience is more than an operation may take, while its process is stopped
// and the database is away.
const durablePatience = 90 * time.Second

// listen reads replies to the end.
func (p *durableProcess) listen(stdout io.Reader) {
	defer close(p.ended)
	var rest bytes.Buffer
	for lines := bufio.NewScanner(io.TeeReader(stdout, &rest)); lines.Scan(); {
		var reply durableReply
		if json.Unmarshal(lines.Bytes(), &reply) != nil {
			continue // the output of a test
		}
		p.mu.Lock()
		switch {
		case reply.Trouble != "":
			p.trouble = reply.Trouble
		case reply.N == 0:
			p.up, p.trouble = time.Now(), ""
		default:
			p.pending[reply.N] <- reply
			delete(p.pending, reply.N)
		}
		p.mu.Unlock()
	}
	err := p.cmd.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = time.Now()
	if killed := !p.killed.IsZero(); killed == (err == nil) || !killed && p.closed.IsZero() {
		p.failed = fmt.Errorf("%s ended with %v, %s: %s\n%s", p.trace, err, p.trouble, last(rest.Bytes(), 2000), last(p.stderr.Bytes(), 50_000))
	}
}

func last(text []byte, n int) []byte { return text[max(0, len(text)-n):] }

// durableDriver is a round.
type durableDriver struct {
	testing.TB
	durablePlan
	config   durableConfig
	postgres bool
	number   int64
	server   *pgtest.Server // of the round alone; nil where it does not crash
	binary   string         // of the processes
	dsn      string
	dir      string
	raw      *sql.DB
	rows     *smallben.RepositoryGorm // without a record
	begun    time.Time

	mu         sync.Mutex
	slots      []*durableProcess // the latest in each
	all        []*durableProcess
	outages    []window
	operations []*driven
	expired    []violation // of processes that live

	version atomic.Int64
	over    atomic.Bool
}

// durableRounds tells the connections of rounds apart that run side by side.
var durableRounds atomic.Int64

// launch starts a process in a slot.
func (d *durableDriver) launch(slot int) { d.launchAs(slot, false) }

// launchAs starts a process that knows newerJob, or does not.
func (d *durableDriver) launchAs(slot int, newer bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(d.all) + 1
	p := &durableProcess{trace: &trace{name: fmt.Sprintf("%d in slot %d", n, slot), newer: newer},
		application: fmt.Sprintf("durable-%d-%d", d.number, n), ended: make(chan struct{}), pending: make(map[int]chan durableReply)}
	config := d.config
	config.Newer = newer
	config.Journal = filepath.Join(d.dir, fmt.Sprintf("journal-%d", n))
	if d.postgres {
		config.DSN = withApplication(d.dsn, p.application)
	}
	if d.Forget > 0 {
		p.proxy = pgtest.NewProxy(d, config.DSN)
		config.DSN = p.proxy.DSN()
	}
	if d.Skew != nil {
		p.skew = d.Skew[slot]
		config.Skew = p.skew
	}
	text, err := json.Marshal(config)
	require.NoError(d, err)
	p.cmd = exec.Command(d.binary, "-test.run=^TestTheProcessOfDurableRuns$", "-test.count=1", "-test.timeout=0")
	p.cmd.Env = append(os.Environ(), envDurable+"="+string(text), fmt.Sprintf("%s=%d", envSkew, config.Skew))
	// A process that is stopped in a group of its own goes on when the driver dies.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = &p.stderr
	p.stdin, err = p.cmd.StdinPipe()
	require.NoError(d, err)
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(d, err)
	require.NoError(d, p.cmd.Start())
	p.pid = p.cmd.Process.Pid
	go p.listen(stdout)
	d.slots[slot] = p
	d.all = append(d.all, p)
}

func withApplication(dsn, name string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		panic(err)
	}
	query := u.Query()
	query.Set("application_name", name)
	u.RawQuery = query.Encode()
	return u.String()
}

// kill kills the process of a slot.
func (d *durableDriver) kill(slot int) {
	p := d.slots[slot]
	p.mu.Lock()
	p.killed = time.Now()
	p.mu.Unlock()
	require.NoError(d, p.cmd.Process.Kill())
	<-p.ended
}

// finish asks the process of a slot to end.
func (d *durableDriver) finish(slot int) {
	p := d.slots[slot]
	p.mu.Lock()
	p.closed = time.Now()
	p.mu.Unlock()
	_ = p.stdin.Close()
}

func (d *durableDriver) signal(slot int, signal syscall.Signal) {
	p := d.slots[slot]
	p.mu.Lock()
	defer p.mu.Unlock()
	if signal == syscall.SIGSTOP {
		p.stopped = append(p.stopped, window{time.Now(), longTime})
	}
	require.NoError(d, p.cmd.Process.Signal(signal))
	if signal == syscall.SIGCONT {
		p.stopped[len(p.stopped)-1].to = time.Now()
	}
}

// pick gives a process that could take an operation: one that is stopped only now
// and then, since the operation waits for it to go on.
func (d *durableDriver) pick(random *rand.Rand, operation durableOperation) *durableProcess {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, slot := range random.Perm(len(d.slots)) {
		p := d.slots[slot]
		p.mu.Lock()
		usable := !p.up.IsZero() && p.killed.IsZero() && p.closed.IsZero() && (p.newer || !d.Roll || !operation.makesNewer())
		if n := len(p.stopped); n > 0 && p.stopped[n-1].to.Equal(longTime) {
			usable = usable && random.IntN(50) == 0
		}
		p.mu.Unlock()
		if usable {
			return p
		}
	}
	return nil
}

// operate does an operation through a process, and looks what came of it if
// nobody knows. It returns nil if no process could take it.
func (d *durableDriver) operate(random *rand.Rand, operation durableOperation) *driven {
	p := d.pick(random, operation)
	if p == nil {
		return nil
	}
	done := &driven{durableOperation: operation, trace: p.trace, begin: time.Now()}
	reply, err := p.do(operation)
	done.end = time.Now()
	switch {
	case err != nil:
		done.err, done.result = err.Error(), drivenUnknown
	case reply.Unknown:
		done.err, done.result = reply.Err, drivenUnknown
	case reply.Err != "":
		done.err, done.result = reply.Err, drivenRefused
	default:
		done.result, done.seen = drivenOK, reply.Seen
	}
	if operation.Kind == "list" && done.result != drivenOK {
		return done // nothing is known of it
	}
	if done.result == drivenUnknown && operation.Kind != "trigger" {
		d.awaitEnd(p, done)
		defer d.look(operation)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.operations = append(d.operations, done)
	return done
}

// awaitEnd waits until an operation can no longer happen.
func (d *durableDriver) awaitEnd(p *durableProcess, done *driven) {
	if d.postgres {
		gone := done.err == errNoReply.Error()
		d.poll(func() error {
			var n int
			err := d.raw.QueryRowContext(d.Context(), "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND (xact_start < $2 OR $3)",
				p.application, done.end, gone).Scan(&n)
			if err == nil && n > 0 {
				err = fmt.Errorf("%d transactions are in progress", n)
			}
			return err
		})
	}
	done.end = time.Now()
}

// poll calls what it is given until there is no error, or the test is over.
func (d *durableDriver) poll(do func() error) {
	for do() != nil && d.Context().Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
}

// look reads what has become of the jobs of an operation.
func (d *durableDriver) look(operation durableOperation) {
	list := durableOperation{Kind: "list", IDs: operation.IDs}
	if operation.Group != 0 {
		list.IDs = slices.DeleteFunc(slices.Clone(contended), func(id int64) bool { return !operation.covers(id) })
	}
	done := &driven{durableOperation: list, result: drivenOK}
	d.poll(func() (err error) {
		done.begin = time.Now()
		done.seen, err = d.see(list.IDs)
		done.end = time.Now()
		return err
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.operations = append(d.operations, done)
}

// see reads the rows of jobs; nil ids mean all.
func (d *durableDriver) see(ids []int64) (map[int64]jobState, error) {
	rows, err := d.rows.ListJobs(nil)
	if err != nil {
		return nil, err
	}
	seen := make(map[int64]jobState)
	for i := range rows {
		row := &rows[i]
		if ids != nil && !slices.Contains(ids, row.ID) {
			continue
		}
		var input struct{ V int }
		if err := json.Unmarshal([]byte(row.SerializedJobInput), &input); err != nil {
			return nil, err
		}
		seen[row.ID] = jobState{Exists: true, Paused: row.Paused, Expression: row.CronExpression, Input: input.V,
			CreatedFrom: row.CreatedAt.Unix(), CreatedTo: row.CreatedAt.Unix()}
	}
	return seen, nil
}

// contended are the jobs that all workers change.
var contended = []int64{-1, -2, -3, -4, -5, -6}

var durableExpressions = slices.Sorted(maps.Keys(durablePeriods))

// worker changes jobs of its own, and now and then one of those that all change.
type worker struct {
	*durableDriver
	random *rand.Rand
	mine   []int64
	hot    []int64 // those of mine that it prefers
	known  map[int64]jobState
}

func (d *durableDriver) newWorker(seed uint64, n int) *worker {
	w := &worker{durableDriver: d, random: rand.New(rand.NewPCG(seed, uint64(n)+10)), known: make(map[int64]jobState)}
	for id := int64(1); id <= int64(d.Jobs); id++ {
		if id%int64(d.Workers) == int64(n) {
			w.mine = append(w.mine, id)
		}
	}
	w.hot = w.mine[:min(15, len(w.mine))]
	return w
}

// populate adds all jobs.
func (w *worker) populate() {
	ids := w.mine
	if w.Roll {
		ids = slices.DeleteFunc(slices.Clone(ids), isNewer) // nobody knows their type yet
	}
	for ids := range slices.Chunk(ids, 50) {
		operation := durableOperation{Kind: "add", IDs: ids, Expression: []string{"* * * * * *", "* * * * * *", "@every 1s"}[w.random.IntN(3)], Input: int(w.version.Add(1))}
		w.do(operation)
	}
}

func (w *worker) run() {
	for !w.over.Load() {
		n := 1
		if w.random.IntN(10) == 0 {
			// When ticks come, and claims are under way.
			now := time.Now()
			time.Sleep(time.Until(now.Truncate(time.Second).Add(time.Second - 20*time.Millisecond)))
			n = 4
		}
		for range n {
			w.do(w.draw())
		}
		time.Sleep(time.Duration(w.random.Float64() * 2 * float64(w.Gap))) // lets jobs live to run
	}
}

// do keeps in mind what an operation made of the worker's own jobs.
func (w *worker) do(operation durableOperation) {
	done := w.operate(w.random, operation)
	if done == nil || operation.Group != 0 || operation.IDs[0] < 0 {
		return
	}
	if done.result == drivenUnknown && operation.Kind != "trigger" {
		w.poll(func() error {
			seen, err := w.see(operation.IDs)
			for _, id := range operation.IDs {
				w.known[id] = seen[id]
			}
			return err
		})
		return
	}
	if done.result != drivenOK {
		return
	}
	for _, id := range operation.IDs {
		if after, ok := w.known[id].apply(done, id); ok {
			w.known[id] = after
		}
	}
}

// draw draws an operation that is likely to succeed.
func (w *worker) draw() durableOperation {
	if w.random.IntN(6) == 0 {
		return w.drawContended()
	}
	ids := w.hot
	if w.random.IntN(4) == 0 {
		ids = w.mine
	}
	some := func(suits func(jobState) bool) (found []int64) {
		n := 1 + w.random.IntN(4)
		for _, i := range w.random.Perm(len(ids)) {
			if suits(w.known[ids[i]]) {
				found = append(found, ids[i])
			}
			if len(found) == n {
				break
			}
		}
		return found
	}
	exists := func(state jobState) bool { return state.Exists }
	for {
		var o durableOperation
		switch n := w.random.IntN(100); {
		case n < 10:
			o = durableOperation{Kind: "add", IDs: some(func(state jobState) bool { return !state.Exists })}
		case n < 20:
			o = durableOperation{Kind: "upsert", IDs: some(func(jobState) bool { return true })}
		case n < 28:
			o = durableOperation{Kind: "delete", IDs: some(exists)}
		case n < 45:
			o = durableOperation{Kind: "pause", IDs: some(func(state jobState) bool { return state.Exists && !state.Paused })}
		case n < 65:
			o = durableOperation{Kind: "resume", IDs: some(func(state jobState) bool { return state.Exists && state.Paused })}
		case n < 80:
			o = durableOperation{Kind: "update", IDs: some(exists)}
		case n < 95:
			o = durableOperation{Kind: "trigger", IDs: some(exists)}
		default:
			o = durableOperation{Kind: "list", IDs: some(func(jobState) bool { return true })}
		}
		if len(o.IDs) > 0 {
			return w.fill(o)
		}
	}
}

func (w *worker) drawContended() durableOperation {
	o := durableOperation{Kind: []string{"add", "upsert", "upsert", "delete", "pause", "resume", "resume", "update", "trigger", "list", "list"}[w.random.IntN(11)]}
	if w.random.IntN(3) == 0 && slices.Contains([]string{"delete", "pause", "resume", "trigger"}, o.Kind) {
		o.Group = durableGroup(contended[w.random.IntN(2)])
		return o
	}
	for _, i := range w.random.Perm(len(contended))[:1+w.random.IntN(2)] {
		o.IDs = append(o.IDs, contended[i])
	}
	return w.fill(o)
}

func (w *worker) fill(o durableOperation) durableOperation {
	expression := durableExpressions[w.random.IntN(len(durableExpressions))]
	switch o.Kind {
	case "add", "upsert":
		o.Expression, o.Input = expression, int(w.version.Add(1))
	case "update":
		n := w.random.IntN(3)
		if n != 0 {
			o.Expression = expression
		}
		if n != 1 {
			o.Input = int(w.version.Add(1))
		}
	}
	return o
}

// say logs a line with the time since the beginning.
func (d *durableDriver) say(format string, args ...any) {
	if testing.Verbose() {
		d.Logf("%s (%5.1f s) %s", clock(time.Now()), time.Since(d.begun).Seconds(), fmt.Sprintf(format, args...))
	}
}

// durableTurns bounds the rounds at a time: processes that starve prove nothing.
var durableTurns = make(chan struct{}, 3)

// durableRound does one round and returns what is wrong.
func durableRound(t testing.TB, plan durablePlan, database string, seed uint64) {
	durableTurns <- struct{}{}
	defer func() { <-durableTurns }()
	random := rand.New(rand.NewPCG(seed, 1))
	d := &durableDriver{TB: t, durablePlan: plan, dir: t.TempDir(), slots: make([]*durableProcess, plan.Slots), begun: time.Now(),
		number: durableRounds.Add(1), binary: os.Args[0], postgres: database == "PostgreSQL"}
	d.config = durableConfig{
		Overlap:   []string{"", "skip", "delay"}[random.IntN(3)],
		RerunLost: random.IntN(2) == 0,
		Missed:    smallben.MissedSkip + smallben.MissedPolicy(random.IntN(3)),
		Location:  []string{"", "America/New_York", "Australia/Lord_Howe"}[random.IntN(3)],
		Timing:    plan.Timing,
		Long:      plan.Load > 30*time.Second,
	}
	if plan.Forget > 0 || plan.Hog > 0 {
		// Calls of users that fall into a hole, or find no connection, end soon.
		d.config.Timeout, d.config.Connections = 5*time.Second, 6
	}
	t.Logf("%s, seed %d (%s=%d repeats what is drawn): %s", database, seed, envDurableSeed, seed, d.config)
	if keep := os.Getenv(envDurableKeep); keep != "" {
		d.dir = filepath.Join(keep, fmt.Sprintf("%s-%d", database, seed))
		require.NoError(t, os.MkdirAll(d.dir, 0o700))
	}
	d.open() // skips the round where there is no PostgreSQL, before anything is built
	if plan.Skew != nil {
		d.binary = skewedBinary(t)
	}
	disturbances := d.disturbances(random)
	defer func() {
		// Whatever happens, no process stays behind.
		for _, p := range d.all {
			_ = p.cmd.Process.Kill()
			<-p.ended
		}
	}()
	for slot := range d.Slots {
		d.launch(slot)
	}
	d.awaitProcesses()
	workers := make([]*worker, plan.Workers)
	var group sync.WaitGroup
	for n := range workers {
		workers[n] = d.newWorker(seed, n)
		group.Go(workers[n].populate)
	}
	group.Wait()
	d.say("all jobs are added")
	start := time.Now()
	for _, w := range workers {
		group.Go(w.run)
	}
	group.Go(d.watchExpiry)
	for _, next := range append(disturbances, disturbance{at: plan.Load, what: "end of the load", do: func() {}}) {
		next.wait(start)
		d.say("%s", next.what)
		next.do()
		d.watch()
	}
	d.over.Store(true)
	group.Wait()
	d.watch()
	h := d.settle()
	d.say("the processes ended")
	violations := slices.Concat(d.leftBehind(), d.expired, h.check())
	outcomes := make(map[smallben.Outcome]int)
	for i := range h.runs {
		outcomes[h.runs[i].Outcome]++
	}
	results := make(map[drivenResult]int)
	for _, operation := range h.operations {
		results[operation.result]++
	}
	t.Logf("%s, seed %d, %s: %d processes, operations %v, records %v, violations: %d", database, seed, d.config, len(h.traces), results, outcomes, len(violations))
	d.keep(h)
	if len(violations) > 0 {
		t.Errorf("seed %d: %s", seed, h.describeViolations(violations, 2))
	}
}

// watchExpiry looks, while there is load, whether the database knows each process
// that traces.
func (d *durableDriver) watchExpiry() {
	reported := make(map[*durableProcess]bool)
	for ; !d.over.Load(); time.Sleep(100 * time.Millisecond) {
		known, err := d.processes()
		if err != nil {
			continue
		}
		d.mu.Lock()
		now := time.Now()
		// From here on nobody was taken for dead with reason.
		since := now.Add(-2 * d.Timing.DeadAfter)
		away := slices.ContainsFunc(d.outages, func(w window) bool { return w.meets(since, now) })
		for _, p := range d.slots {
			p.mu.Lock()
			undisturbed := !away && !p.up.IsZero() && now.Sub(p.up) > time.Second && p.killed.IsZero() && p.closed.IsZero() &&
				!slices.ContainsFunc(p.stopped, func(w window) bool { return w.meets(since, now) })
			p.mu.Unlock()
			if undisturbed && !reported[p] && !slices.ContainsFunc(known, func(name string) bool { return p.isNamed(name) }) {
				reported[p] = true
				d.expired = append(d.expired, violation{kind: takenForDead, at: now, text: fmt.Sprintf("%s at %s", p.trace, clock(now))})
			}
		}
		d.mu.Unlock()
	}
}

// processes are those that the database knows.
func (d *durableDriver) processes() (names []string, err error) {
	rows, err := d.raw.Query("SELECT process FROM " + tableProcesses)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, rows.Err()
}

func (p *durableProcess) isUp() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.up.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s is not up: %s", p.trace, p.trouble)
}

// watch fails if a process ended by itself.
func (d *durableDriver) watch() {
	d.Helper()
	for _, p := range d.all {
		p.mu.Lock()
		err := p.failed
		p.mu.Unlock()
		require.NoError(d, err)
	}
}

// await waits until nothing is to be said.
func (d *durableDriver) await(what string, patience time.Duration, missing func() string) {
	d.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		text := missing()
		if text == "" {
			return
		}
		d.watch()
		if time.Now().After(deadline) {
			d.Fatalf("%s: not within %v: %s", what, patience, text)
		}
	}
}

func (d *durableDriver) awaitProcesses() {
	d.Helper()
	d.await("all processes run", time.Minute, func() string {
		for _, p := range d.slots {
			if text := p.isUp(); text != "" {
				return text
			}
		}
		return ""
	})
}

func (d *durableDriver) open() {
	driver := "sqlite3"
	switch {
	case d.postgres && d.Kills > 0:
		d.server = pgtest.Start(d)
		d.dsn, driver = d.server.DSN(), "pgx"
	case d.postgres:
		d.dsn, driver = pgtest.DSN(d), "pgx"
	default:
		d.dsn = filepath.Join(d.dir, "jobs.db") + "?_journal_mode=WAL"
	}
	d.config.DSN = d.dsn
	var err error
	d.raw, err = sql.Open(driver, d.dsn)
	require.NoError(d, err)
	d.Cleanup(func() { _ = d.raw.Close() })
	d.rows, err = smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: crashDialector(d.dsn)})
	require.NoError(d, err)
	d.Cleanup(func() { _ = d.rows.Close() })
}

// settle lets the processes account for everything up to now, ends them, and
// collects what is known.
func (d *durableDriver) settle() *history {
	until := time.Now()
	d.awaitProcesses()
	// A job with missed ticks may be left to some later sweep.
	patience := d.Timing.DeadAfter + d.Timing.MissedAfter + 6*d.Timing.SweepEvery + 30*time.Second
	d.await("everything is accounted for", patience, func() string {
		var behind, closed, waiting, unfinished int
		// What became due later waits for as long as there are ticks.
		err := d.raw.QueryRow("SELECT (SELECT count(*) FROM jobs JOIN "+tableState+" ON job_id = id WHERE NOT paused AND accounted_until < $1), (SELECT count(*) FROM "+tableClosed+"), (SELECT count(*) FROM "+tableRuns+" WHERE due_at <= $1)", until.UnixMicro()).
			Scan(&behind, &closed, &waiting)
		if err != nil {
			return err.Error()
		}
		for _, p := range d.all {
			if p.gone.IsZero() {
				continue
			}
			var n int
			err := d.raw.QueryRow("SELECT count(*) FROM "+tableRuns+" WHERE ended_at IS NULL AND process LIKE $1", fmt.Sprintf("%%/%d/%%", p.pid)).Scan(&n)
			if err != nil {
				return err.Error()
			}
			unfinished += n
		}
		if behind+closed+waiting+unfinished == 0 {
			return ""
		}
		return fmt.Sprintf("%d jobs have watermarks before %s, %d closed spans are left, %d runs wait, %d runs of processes that are gone are unfinished", behind, clock(until), closed, waiting, unfinished)
	})
	d.say("everything is accounted for")
	for slot := range d.slots {
		d.finish(slot)
	}
	for _, p := range d.slots {
		select {
		case <-p.ended:
		case <-time.After(time.Minute):
			_ = p.cmd.Process.Signal(syscall.SIGQUIT)
			<-p.ended
			d.Fatalf("%s does not end: %s", p.trace, last(p.stderr.Bytes(), 20_000))
		}
	}
	d.watch()
	return d.history(until)
}

// leftBehind looks for what processes that ended must not leave.
func (d *durableDriver) leftBehind() (violations []violation) {
	for table, what := range map[string]string{tableLocks: "locks", tableProcesses: "processes"} {
		var n int
		require.NoError(d, d.raw.QueryRow("SELECT count(*) FROM "+table).Scan(&n))
		if n > 0 {
			violations = append(violations, violation{kind: "something is left behind", at: time.Now(), text: fmt.Sprintf("%d %s", n, what)})
		}
	}
	return violations
}

func (d *durableDriver) history(until time.Time) *history {
	h := &history{
		overlap: d.config.Overlap, rerunLost: d.config.RerunLost, policy: d.config.Missed,
		sync: time.Second, deadAfter: d.Timing.DeadAfter, calm: d.Timing.ClaimPatience,
		rolling: d.Roll, options: triedOptions, outages: d.outages, operations: d.operations, until: until,
	}
	for n, p := range d.all {
		file, err := os.Open(filepath.Join(d.dir, fmt.Sprintf("journal-%d", n+1)))
		if errors.Is(err, os.ErrNotExist) {
			h.traces = append(h.traces, p.trace) // killed before it did anything
			continue
		}
		require.NoError(d, err)
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			var note runNote
			if json.Unmarshal(lines.Bytes(), &note) == nil { // the last one may have been cut
				p.notes = append(p.notes, note)
			}
		}
		h.traces = append(h.traces, p.trace)
	}
	var err error
	h.rows, err = d.see(nil)
	require.NoError(d, err)
	reader := smallben.New(d.rows, d.config.smallBen())
	h.runs, err = reader.ListRuns(&smallben.ListRunsOptions{Limit: 100_000_000})
	require.NoError(d, err)
	return h
}

// keep writes what is not in the directory yet, if that is kept.
func (d *durableDriver) keep(h *history) {
	if os.Getenv(envDurableKeep) == "" {
		return
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s\n", d.config)
	for _, l := range h.traces {
		fmt.Fprintf(&text, "%s: up %s, killed %s, closed %s, gone %s, stopped %v\n", l, clock(l.up), clock(l.killed), clock(l.closed), clock(l.gone), l.stopped)
	}
	for _, w := range h.outages {
		fmt.Fprintf(&text, "outage from %s to %s\n", clock(w.from), clock(w.to))
	}
	for _, operation := range h.operations {
		fmt.Fprintf(&text, "%s\n", operation)
	}
	for i := range h.runs {
		run := &h.runs[i]
		fmt.Fprintf(&text, "%s, tick %s from %s to %s, first %s\n", run, clock(run.Tick), clock(run.Start), clock(run.End), clock(run.FirstTick))
	}
	require.NoError(d, os.WriteFile(filepath.Join(d.dir, "history"), text.Bytes(), 0o600))
}

// durableSeed is the one that is asked for, or a new one.
func durableSeed(t testing.TB) uint64 {
	if text := os.Getenv(envDurableSeed); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, envDurableSeed)
		return seed
	}
	return uint64(rand.IntN(1_000_000))
}

func TestDurableRunsOnPostgreSQL(t *testing.T) {
	t.Parallel()
	durableRound(t, shortPlan, "PostgreSQL", durableSeed(t))
}

func TestDurableRunsOnSQLite(t *testing.T) {
	t.Parallel()
	durableRound(t, shortPlan, "SQLite", durableSeed(t))
}

func TestDurableRunsInTrouble(t *testing.T) {
	t.Parallel()
	for _, trouble := range troublePlans {
		t.Run(trouble.name+"/"+trouble.database, func(t *testing.T) {
			t.Parallel()
			plan := quietly(shortPlan)
			trouble.edit(&plan)
			durableRound(t, plan, trouble.database, durableSeed(t))
		})
	}
}

// TestSoakDurableRuns is the long form: rounds on one database after another, with
// the timings of users, for as long as SMALLBEN_SOAK says.
func TestSoakDurableRuns(t *testing.T) {
	text := os.Getenv("SMALLBEN_SOAK")
	if text == "" {
		t.Skip("SMALLBEN_SOAK is not set")
	}
	duration, err := time.ParseDuration(text)
	require.NoError(t, err, "SMALLBEN_SOAK")
	databases := []string{"PostgreSQL", "SQLite"}
	if only := os.Getenv(envDurableDatabase); only != "" {
		require.Contains(t, databases, only, envDurableDatabase)
		databases = []string{only}
	}
	rounds := 0
	if text := os.Getenv(envDurableRounds); text != "" {
		rounds, err = strconv.Atoi(text)
		require.NoError(t, err, envDurableRounds)
	}
	plan := longPlan
	if text := os.Getenv(envDurableJobs); text != "" {
		plan.Jobs, err = strconv.Atoi(text)
		require.NoError(t, err, envDurableJobs)
	}
	seed, end := durableSeed(t), time.Now().Add(duration)
	for round := 0; rounds == 0 && (round == 0 || time.Now().Before(end)) || round < rounds; round++ {
		for _, database := range databases {
			t.Run(fmt.Sprintf("%s %d", database, seed+uint64(round)), func(t *testing.T) {
				durableRound(t, plan, database, seed+uint64(round))
			})
		}
		for _, trouble := range troublePlans {
			if !slices.Contains(databases, trouble.database) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s %d", trouble.name, trouble.database, seed+uint64(round)), func(t *testing.T) {
				calm := quietly(plan)
				trouble.edit(&calm)
				durableRound(t, calm, trouble.database, seed+uint64(round))
			})
		}
	}
}

package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/pgtest"
)

// A service, which is this binary with the name of a test below, changes jobs at
// random and notes in a journal what it is about to do and what came of it. The
// test kills it, again and again, and compares journal and database.

const (
	envCrashDatabase = "SMALLBEN_TEST_CRASH_DATABASE"
	envCrashJournal  = "SMALLBEN_TEST_CRASH_JOURNAL"
	envCrashSeed     = "SMALLBEN_TEST_CRASH_SEED"
)

// journalLine is one of: an operation begins; it has ended; a job runs.
type journalLine struct {
	Begin *operation `json:",omitempty"`
	End   *struct {
		Err     string
		Unknown bool
		At      int64 // Unix nanoseconds
	} `json:",omitempty"`
	Run *struct {
		ID      int64
		Version int
		Tick    int64 // Unix nanoseconds
	} `json:",omitempty"`
}

type journal struct {
	mu   sync.Mutex
	file *os.File
}

// note is on the disk when it returns.
func (j *journal) note(line journalLine) {
	encoded, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.Write(append(encoded, '\n')); err != nil {
		panic(err)
	}
	if line.Run == nil {
		if err := j.file.Sync(); err != nil {
			panic(err)
		}
	}
}

func crashDialector(dsn string) gorm.Dialector {
	if strings.HasPrefix(dsn, "postgres") {
		return postgres.Open(dsn)
	}
	return sqlite.Open(dsn)
}

var crashExpressions = []string{"* * * * * *", "@every 1s", "0-59 * * * * *", "*/1 * * * * *", "@daily"}

// drawCrashOperation has large batches as well.
func drawCrashOperation(pick func(int) int, version int) operation {
	o := drawOperation(pick, []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, crashExpressions, version, true)
	if o.Kind == "add" && pick(2) == 0 {
		o.Kind = "upsert"
	}
	if pick(3) == 0 {
		o.IDs = nil
		base := 1000 * int64(1+pick(3))
		for id := range int64(100) {
			o.IDs = append(o.IDs, base+id)
		}
	}
	return o
}

func TestTheServiceThatIsKilled(t *testing.T) {
	dsn := os.Getenv(envCrashDatabase)
	if dsn == "" {
		t.Skip("the tests of crashes start it")
	}
	file, err := os.OpenFile(os.Getenv(envCrashJournal), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	require.NoError(t, err)
	notes := &journal{file: file}
	agents.Store("crash", func(a agent, input smallben.CronJobInput) {
		notes.note(journalLine{Run: &struct {
			ID      int64
			Version int
			Tick    int64
		}{a.ID, a.Version, input.ScheduledAt.UnixNano()}})
	})
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: crashDialector(dsn)})
	require.NoError(t, err)
	s := create(t, repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}})
	require.NoError(t, s.Start())
	checkInvariant(t, s, repository)
	require.False(t, t.Failed())
	fmt.Println(crashUp)
	seed, err := strconv.Atoi(os.Getenv(envCrashSeed))
	require.NoError(t, err)
	random := rand.New(rand.NewPCG(uint64(seed), 1))
	for version := seed * 1_000_000; ; version++ {
		o := drawCrashOperation(random.IntN, version)
		notes.note(journalLine{Begin: &o})
		err := o.call(s, "crash")
		line := journalLine{End: &struct {
			Err     string
			Unknown bool
			At      int64
		}{At: time.Now().UnixNano()}}
		if err != nil {
			line.End.Err, line.End.Unknown = err.Error(), errors.Is(err, smallben.ErrOutcomeUnknown)
		}
		notes.note(line)
	}
}

const crashUp = "the service is up"

// crash is a database, the journal about it, and what both should say.
type crash struct {
	dsn, journal string
	read         int64 // how much of the journal has been
	model        model
	silent       map[agent]int64 // since when a job that was deleted or paused must not start
	seed         int

	kills, operations, inFlight, landed, runs int
}

func newCrash(t testing.TB, dsn string) *crash {
	return &crash{dsn: dsn, journal: filepath.Join(t.TempDir(), "journal"), model: model{}, silent: map[agent]int64{}, seed: int(time.Now().Unix() % 1_000_000)}
}

// kill starts the service, kills it, and looks.
func (c *crash) kill(t testing.TB) {
	t.Helper()
	c.seed++
	service := exec.Command(os.Args[0], "-test.run=^TestTheServiceThatIsKilled$", "-test.count=1")
	service.Env = append(os.Environ(), envCrashDatabase+"="+c.dsn, envCrashJournal+"="+c.journal, envCrashSeed+"="+strconv.Itoa(c.seed))
	var output, complaints bytes.Buffer
	stdout, err := service.StdoutPipe()
	require.NoError(t, err)
	service.Stderr = &complaints
	require.NoError(t, service.Start())
	up := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(io.TeeReader(stdout, &output))
		for lines.Scan() {
			if lines.Text() == crashUp {
				close(up)
			}
		}
	}()
	moment := rand.N(150 * time.Millisecond)
	switch rand.IntN(8) {
	case 0: // while it starts
	case 1: // after ticks
		moment += time.Second
		fallthrough
	default:
		select {
		case <-up:
		case <-ended:
		}
	}
	select {
	case <-time.After(moment):
	case <-ended:
	}
	require.NoError(t, service.Process.Kill())
	<-ended
	err = service.Wait()
	killed := time.Now()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "the service ended by itself: %s%s", &output, &complaints)
	require.False(t, exit.Exited(), "the service failed: %s%s", &output, &complaints)
	c.kills++
	c.awaitServer(t)
	c.compare(t, killed)
}

// awaitServer waits for the server to notice: it may still be at a COMMIT.
func (c *crash) awaitServer(t testing.TB) {
	t.Helper()
	if !strings.HasPrefix(c.dsn, "postgres") {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	config, err := pgx.ParseConfig(c.dsn)
	require.NoError(t, err)
	name := config.RuntimeParams["application_name"]
	config.RuntimeParams["application_name"] = "smallben crash test"
	conn, err := pgx.ConnectConfig(ctx, config)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	for left := 1; left > 0; time.Sleep(time.Millisecond) {
		require.NoError(t, conn.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", name).Scan(&left))
	}
}

// compare reads what the service wrote to the journal: acknowledged operations
// are in the database, and the one in flight is there as a whole or not at all.
func (c *crash) compare(t testing.TB, killed time.Time) {
	t.Helper()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: crashDialector(c.dsn)})
	require.NoError(t, err)
	defer repository.Close()
	file, err := os.OpenFile(c.journal, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	defer file.Close()
	news, err := io.ReadAll(io.NewSectionReader(file, c.read, math.MaxInt64-c.read))
	require.NoError(t, err)
	// The last line may have been cut.
	news = news[:bytes.LastIndexByte(news, '\n')+1]
	c.read += int64(len(news))
	require.NoError(t, file.Truncate(c.read))
	maps.DeleteFunc(c.silent, func(_ agent, at int64) bool { return killed.Sub(time.Unix(0, at)) > time.Minute })

	mismatch := repository.ErrorTypeIfMismatchCount()
	var begun *operation
	var doubtful []operation
	acknowledge := func(o *operation, at int64) {
		after, targets, want := o.apply(c.model, mismatch)
		require.NoError(t, want, "%s was acknowledged", o)
		if o.Kind == "delete" || o.Kind == "pause" {
			for _, id := range targets {
				c.silent[agent{"crash", id, c.model[id].Added}] = at
			}
		}
		c.model = after
	}
	for line := range bytes.Lines(news) {
		var l journalLine
		require.NoError(t, json.Unmarshal(line, &l))
		switch {
		case l.Begin != nil:
			c.operations++
			begun = l.Begin
			if begun.Kind == "resume" {
				// It may run as soon as the resume is under way.
				maps.DeleteFunc(c.silent, func(a agent, _ int64) bool { return c.model[a.ID].Added == a.Version })
			}
		case l.End != nil && l.End.Err == "":
			acknowledge(begun, l.End.At)
			begun = nil
		case l.End != nil:
			if l.End.Unknown {
				doubtful = append(doubtful, *begun)
			}
			_, _, want := begun.apply(c.model, mismatch)
			require.Error(t, want, "%s: %s", begun, l.End.Err)
			begun = nil
		case l.Run != nil:
			c.runs++
			since, silent := c.silent[agent{"crash", l.Run.ID, l.Run.Version}]
			require.False(t, silent && l.Run.Tick > since, "job %d, version %d, ran at %s and was deleted or paused at %s",
				l.Run.ID, l.Run.Version, time.Unix(0, l.Run.Tick), time.Unix(0, since))
		}
	}
	require.Empty(t, doubtful)
	now, _ := truth(t, repository)
	if begun != nil {
		c.inFlight++
		if after, _, want := begun.apply(c.model, mismatch); want == nil && !maps.Equal(after, c.model) && maps.Equal(after, now) {
			c.landed++
			acknowledge(begun, killed.UnixNano())
		}
	}
	require.Equal(t, describe(c.model), describe(now), "in flight: %v", begun)
}

// describe is a model as lines, of which a difference is readable.
func describe(m model) (lines []string) {
	for _, id := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, fmt.Sprintf("%d: %+v", id, m[id]))
	}
	return lines
}

func (c *crash) String() string {
	return fmt.Sprintf("%d kills, %d operations of which %d were in flight and %d of these had happened, %d runs",
		c.kills, c.operations, c.inFlight, c.landed, c.runs)
}

// crashDatabases are the ones that survive a kill. SQLite has two ways to.
var crashDatabases = map[string]func(testing.TB) string{
	"SQLite":     func(t testing.TB) string { return filepath.Join(t.TempDir(), "jobs.db") },
	"SQLite WAL": func(t testing.TB) string { return filepath.Join(t.TempDir(), "jobs.db") + "?_journal_mode=WAL" },
	"PostgreSQL": func(t testing.TB) string { return pgtest.DSN(t) },
}

func TestAKilledServiceLosesNothingThatWasAcknowledged(t *testing.T) {
	t.Parallel()
	for name, dsn := range crashDatabases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCrash(t, dsn(t))
			for range 5 {
				c.kill(t)
			}
			t.Log(c)
		})
	}
}

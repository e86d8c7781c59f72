package smallben

import (
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/zapr"
	"github.com/robfig/cron/v3"
	"go.uber.org/zap"
)

// Config configures a SmallBen. The zero value works: jobs may overlap
// themselves, expressions have five fields and are read in the local time
// zone, and events go to DefaultLogger. New copies it.
type Config struct {
	SchedulerConfig SchedulerConfig

	// Logger receives one line for each event: jobs added, a run that
	// failed, a row held back. It may be called from several goroutines, and
	// may call SmallBen. One that blocks delays calls that log by a second, and
	// stops no run.
	// Zero means DefaultLogger. logr.Discard() is that zero value too: to
	// silence one SmallBen, give logr.FromSlogHandler(slog.DiscardHandler).
	Logger logr.Logger

	// WrapRun wraps each run, for tracing and error reports: it returns a
	// function that calls next once, with ctx or one made of it, and may do
	// something before and after. The error of next is that of a ContextJob, or
	// that of a panic, in which errors.As finds a method Stack() []byte. What
	// the function returns is what SmallBen logs and counts. It is called from
	// several goroutines.
	// Nil means that runs are not wrapped.
	WrapRun func(next RunFunc) RunFunc

	// Runs turns the record of runs on, with which any number of processes share
	// a database.
	// Zero means that there is none, and that each process runs every job.
	Runs RunsConfig
}

// RunsConfig says how runs are recorded, so that each tick of each job starts
// once across all processes on the database. All of them must record, with the
// same configuration. The zero value is off.
type RunsConfig struct {
	// Record turns the record on. It needs a RepositoryGorm, or what embeds one.
	// WithLocation must be a location of the time zone database then, the same
	// in all processes; nil means time.UTC.
	Record bool

	// Missed says what becomes of ticks that no process ran, for all were down or
	// the database was. They are recorded and counted in any case. A ConfiguredJob
	// may say so for itself.
	// Zero is MissedSkip.
	Missed MissedPolicy

	// RerunLost runs again, once and elsewhere, what a process ran when it died.
	// Such a job may have been run in part, or whole.
	// Zero means that it is recorded as lost, and that is all.
	RerunLost bool

	// RunUnclaimed runs a tick also if the database does not answer, perhaps on
	// several processes. Zero means that such a tick is missed.
	RunUnclaimed bool

	// SyncInterval is how often this process looks for changes that others made,
	// and shows that it is alive: at least 10 ms, at most 5 s.
	// Zero means a second.
	SyncInterval time.Duration

	// Retention is how long runs stay in the record, by their ticks, at least a
	// minute. The last run of each job stays. Zero means 7 days, negative for
	// ever.
	Retention time.Duration
}

// MissedPolicy says what becomes of missed ticks. The zero value is MissedDefault.
type MissedPolicy int

// The policies for missed ticks. Each job is looked at once a minute; CronJobInput
// says how many ticks a run makes up for.
const (
	// MissedDefault is what RunsConfig.Missed says, and there it is MissedSkip.
	MissedDefault MissedPolicy = iota
	// MissedSkip runs none of them.
	MissedSkip
	// MissedRunOnce runs the latest of a job's missed ticks.
	MissedRunOnce
	// MissedRunAll runs the newest hundred of a job's missed ticks, one after
	// another, oldest first.
	MissedRunAll
)

// SchedulerConfig says how jobs are scheduled. A ConfiguredJob may say otherwise for
// itself of overlaps and of the timeout. The zero value works.
type SchedulerConfig struct {
	// DelayIfStillRunning makes a tick that comes while its job still runs
	// wait for the end of that run. One tick waits at most; further ones
	// are skipped and counted. Zero means that runs of one job may overlap.
	// It holds within each process, and with Config.Runs.Record across all of them.
	DelayIfStillRunning bool

	// SkipIfStillRunning skips and counts a tick that comes while its job
	// still runs. Zero means that runs of one job may overlap. If
	// DelayIfStillRunning is set as well, that one wins. It holds across
	// processes that record runs.
	SkipIfStillRunning bool

	// WithSeconds accepts expressions of six fields, the first of them
	// seconds, beside those of five. Zero means that AddJobs, UpsertJobs
	// and UpdateJobs accept five fields only; a stored row of six runs in either case.
	WithSeconds bool

	// WithLocation is the time zone of expressions that do not name one.
	// Zero means time.Local or, with Config.Runs.Record, time.UTC.
	WithLocation *time.Location

	// MaxConcurrentRuns is how many runs this process has in progress at a time.
	// Ticks beyond it wait in memory, in their order, and do not survive Stop. If
	// runs are recorded, those wait unclaimed, so that other processes take them;
	// from ten seconds on one waits in the record, until a place is free in any
	// process or a later tick of its job comes.
	// Zero means no limit; Start refuses less.
	MaxConcurrentRuns int

	// RunTimeout ends the context of each run of a ContextJob after this time.
	// A job that goes on regardless is not interrupted.
	// Zero or less means no limit.
	RunTimeout time.Duration
}

// location is never nil. All processes that record runs share it.
func (c *Config) location() *time.Location {
	switch {
	case c.SchedulerConfig.WithLocation != nil:
		return c.SchedulerConfig.WithLocation
	case c.Runs.Record:
		return time.UTC
	}
	return time.Local
}

// check says why Start refuses the configuration, or returns nil.
func (c *Config) check() error {
	if c.SchedulerConfig.MaxConcurrentRuns < 0 {
		return fmt.Errorf("SchedulerConfig.MaxConcurrentRuns is %d, less than 0", c.SchedulerConfig.MaxConcurrentRuns)
	}
	if c.Runs.Record {
		return nil
	}
	for _, setting := range []struct {
		name string
		set  bool
	}{
		{"Runs.Missed", c.Runs.Missed != MissedDefault && c.Runs.Missed != MissedSkip},
		{"Runs.RerunLost", c.Runs.RerunLost},
		{"Runs.RunUnclaimed", c.Runs.RunUnclaimed},
	} {
		if setting.set {
			return fmt.Errorf("%s is set, which needs Runs.Record", setting.name)
		}
	}
	return nil
}

// checkRecord sets what the config leaves to us, or says why runs cannot be recorded
// so.
func checkRecord(config *RunsConfig, location *time.Location) error {
	if config.SyncInterval == 0 {
		config.SyncInterval = time.Second
	}
	if config.Retention == 0 {
		config.Retention = 7 * 24 * time.Hour
	}
	switch {
	case config.SyncInterval < 10*time.Millisecond || config.SyncInterval > 5*time.Second:
		return fmt.Errorf("Runs.SyncInterval is %v, not between 10ms and 5s", config.SyncInterval)
	case config.Retention > 0 && config.Retention < time.Minute:
		return fmt.Errorf("Runs.Retention is %v, less than a minute", config.Retention)
	case config.Missed < MissedDefault || config.Missed > MissedRunAll:
		return fmt.Errorf("Runs.Missed is %d, which is no MissedPolicy", config.Missed)
	case location == time.Local:
		return errors.New("WithLocation is time.Local, which may be another location in another process: with Runs.Record give one by name")
	case !inDatabase(location):
		return fmt.Errorf("WithLocation is %q, which is not in the time zone database: with Runs.Record every process must find it there", location)
	}
	return nil
}

// inDatabase reports whether a location is the one of its name in the time zone
// database.
func inDatabase(location *time.Location) bool {
	named, err := time.LoadLocation(location.String())
	if err != nil || location.String() == "" {
		return false
	}
	for month := range 24 {
		at := time.Date(2025, time.Month(1+month), 1, 0, 0, 0, 0, time.UTC)
		_, offset := at.In(location).Zone()
		if _, want := at.In(named).Zone(); offset != want {
			return false
		}
	}
	return true
}

// DefaultLogger receives the events of every SmallBen whose Config.Logger is
// zero. It is zap's production logger (JSON on standard error, from info level
// up) without sampling, so that no event is dropped, and without the stack of the
// call. A program may replace it before it calls New.
var DefaultLogger cron.Logger = newDefaultLogger()

func newDefaultLogger() cron.Logger {
	config := zap.NewProductionConfig()
	config.Sampling = nil
	config.DisableStacktrace = true
	logger, err := config.Build()
	if err != nil {
		// Only standard error that cannot be opened leads here.
		return cron.DiscardLogger
	}
	return zapr.NewLogger(logger)
}

// sink is where events go.
func (c *Config) sink() cron.Logger {
	if c.Logger.GetSink() != nil {
		return c.Logger
	}
	return DefaultLogger
}

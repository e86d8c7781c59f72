package smallben_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
)

// The public contract: every name with its exact type. That this file compiles
// is the test; code written against the original does, then, too.

const _ int64 = smallben.DefaultCronID

var (
	_ *cron.Logger = &smallben.DefaultLogger
	_ *error       = &smallben.ErrUpdateOptionInvalid

	_ = smallben.Config{
		SchedulerConfig: smallben.SchedulerConfig{},
		Logger:          logr.Logger{},
	}
	_ = smallben.SchedulerConfig{
		DelayIfStillRunning: false,
		SkipIfStillRunning:  false,
		WithSeconds:         false,
		WithLocation:        (*time.Location)(nil),
	}

	_ interface{ Run(smallben.CronJobInput) } = smallben.CronJob(nil)
	_ smallben.CronJob                        = interface{ Run(smallben.CronJobInput) }(nil)

	_ = smallben.CronJobInput{
		JobID:          int64(0),
		GroupID:        int64(0),
		SuperGroupID:   int64(0),
		CronExpression: "",
		OtherInputs:    map[string]interface{}(nil),
		ScheduledAt:    time.Time{}, // additive
	}
	_ func(smallben.CronJobInput, any) error = smallben.CronJobInput.Decode // additive

	_ = smallben.Job{
		ID:             int64(0),
		GroupID:        int64(0),
		SuperGroupID:   int64(0),
		CronExpression: "",
		Job:            smallben.CronJob(nil),
		JobInput:       map[string]interface{}(nil),
	}
	_ func(*smallben.Job) time.Time = (*smallben.Job).CreatedAt
	_ func(*smallben.Job) time.Time = (*smallben.Job).UpdatedAt
	_ func(*smallben.Job) bool      = (*smallben.Job).Paused

	_ = smallben.RawJob{
		ID:                 int64(0),
		GroupID:            int64(0),
		SuperGroupID:       int64(0),
		CronID:             int64(0),
		CronExpression:     "",
		Paused:             false,
		CreatedAt:          time.Time{},
		UpdatedAt:          time.Time{},
		SerializedJob:      "",
		SerializedJobInput: "",
	}
	_ func(*smallben.RawJob) string                            = (*smallben.RawJob).TableName
	_ func(*smallben.RawJob) (smallben.JobWithSchedule, error) = (*smallben.RawJob).ToJobWithSchedule
	_ func(*smallben.JobWithSchedule) (smallben.RawJob, error) = (*smallben.JobWithSchedule).BuildJob
	_ func(*smallben.JobWithSchedule) cron.Schedule            = (*smallben.JobWithSchedule).Schedule

	_ smallben.ToListOptions = &smallben.ListJobsOptions{
		Paused:        (*bool)(nil),
		GroupIDs:      []int64(nil),
		SuperGroupIDs: []int64(nil),
		JobIDs:        []int64(nil),
	}
	_ smallben.ToListOptions = &smallben.PauseResumeOptions{
		JobIDs:        []int64(nil),
		GroupIDs:      []int64(nil),
		SuperGroupIDs: []int64(nil),
	}
	_ smallben.ToListOptions = &smallben.DeleteOptions{
		PauseResumeOptions: smallben.PauseResumeOptions{},
		Paused:             (*bool)(nil),
	}
	_ = smallben.UpdateOption{
		JobID:          int64(0),
		CronExpression: (*string)(nil),
		JobOtherInputs: (*map[string]interface{})(nil),
	}
	_ func(*smallben.UpdateOption) error = (*smallben.UpdateOption).Valid

	_ smallben.Repository = (repository)(nil)
	_ repository          = (smallben.Repository)(nil)

	_ = smallben.RepositoryGormConfig{
		Dialector:     gorm.Dialector(nil),
		Config:        gorm.Config{},
		SkipMigration: false,            // additive
		Timeout:       time.Duration(0), // additive
	}
	_ func(*smallben.RepositoryGormConfig) (*smallben.RepositoryGorm, error) = smallben.NewRepositoryGorm
	_ smallben.Repository                                                    = (*smallben.RepositoryGorm)(nil)
	_ func(*smallben.RepositoryGorm) error                                   = (*smallben.RepositoryGorm).Close // additive

	_ func(smallben.Repository, *smallben.Config) *smallben.SmallBen              = smallben.New
	_ func(*smallben.SmallBen) error                                              = (*smallben.SmallBen).Start
	_ func(*smallben.SmallBen)                                                    = (*smallben.SmallBen).Stop
	_ func(*smallben.SmallBen, []smallben.Job) error                              = (*smallben.SmallBen).AddJobs
	_ func(*smallben.SmallBen, *smallben.DeleteOptions) error                     = (*smallben.SmallBen).DeleteJobs
	_ func(*smallben.SmallBen, *smallben.PauseResumeOptions) error                = (*smallben.SmallBen).PauseJobs
	_ func(*smallben.SmallBen, *smallben.PauseResumeOptions) error                = (*smallben.SmallBen).ResumeJobs
	_ func(*smallben.SmallBen, []smallben.UpdateOption) error                     = (*smallben.SmallBen).UpdateJobs
	_ func(*smallben.SmallBen, *smallben.ListJobsOptions) ([]smallben.Job, error) = (*smallben.SmallBen).ListJobs
	_ func(*smallben.SmallBen, *prometheus.Registry) error                        = (*smallben.SmallBen).RegisterMetrics
	_ func(*smallben.SmallBen) error                                              = (*smallben.SmallBen).ErrorTypeIfMismatchCount

	// Additive.
	_ *error                                                = &smallben.ErrInvalidJob
	_ *error                                                = &smallben.ErrJobExists
	_ *error                                                = &smallben.ErrUndecodable
	_ *error                                                = &smallben.ErrOutcomeUnknown
	_ error                                                 = &smallben.JobError{JobID: int64(0), Err: error(nil)}
	_ func(*smallben.JobError) error                        = (*smallben.JobError).Unwrap
	_ func(smallben.ToListOptions) smallben.ListJobsOptions = smallben.ResolveListOptions
	_ func(*smallben.SmallBen) prometheus.Collector         = (*smallben.SmallBen).Collector

	_ = smallben.Config{Runs: smallben.RunsConfig{
		Record:       false,
		Missed:       smallben.MissedSkip,
		RerunLost:    false,
		RunUnclaimed: false,
		SyncInterval: time.Duration(0),
		Retention:    time.Duration(0),
	}}
	_ = []smallben.MissedPolicy{smallben.MissedSkip, smallben.MissedRunOnce, smallben.MissedRunAll}

	_ func(*smallben.SmallBen, *smallben.ListRunsOptions) ([]smallben.Run, error) = (*smallben.SmallBen).ListRuns
	_ func(*smallben.RepositoryGormConfig) (string, error)                        = smallben.Schema
	_                                                                             = smallben.CronJobInput{Attempt: int(0), Missed: int(0)}
)

// repository is smallben.Repository written out: both have the same methods, and
// no more.
type repository interface {
	AddJobs(jobs []smallben.JobWithSchedule) error
	GetJob(jobID int64) (smallben.JobWithSchedule, error)
	PauseJobs(jobs []smallben.RawJob) error
	ResumeJobs(jobs []smallben.JobWithSchedule) error
	GetAllJobsToExecute() ([]smallben.JobWithSchedule, error)
	GetJobsByIds(jobsID []int64) ([]smallben.JobWithSchedule, error)
	DeleteJobsByIds(jobsID []int64) error
	SetCronId(jobs []smallben.JobWithSchedule) error
	SetCronIdAndChangeScheduleAndJobInput(jobs []smallben.JobWithSchedule) error
	ListJobs(options smallben.ToListOptions) ([]smallben.RawJob, error)
	ErrorTypeIfMismatchCount() error
}

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

package smallben_test

import (
	"encoding/gob"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/nbena/smallben"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/sqlite"
)

// Reminder is a job. Its exported fields are stored with it.
type Reminder struct{ Text string }

var said = make(chan string, 1)

// Run hands the text to the example that wants one.
func (r *Reminder) Run(input smallben.CronJobInput) {
	select {
	case said <- fmt.Sprintf("job %d: %s", input.JobID, r.Text):
	default:
	}
}

// The quickstart of README.md: a job that a file remembers. At the second start
// the job is there already.
func Example() {
	defer enterTemporaryDirectory()()

	gob.Register(&Reminder{})
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
		Dialector: sqlite.Open("jobs.db"),
	})
	if err != nil {
		log.Fatal(err)
	}
	scheduler := smallben.New(repository, &smallben.Config{})
	if err := scheduler.Start(); err != nil {
		log.Fatal(err)
	}
	err = scheduler.AddJobs([]smallben.Job{
		{ID: 1, CronExpression: "@every 1s", Job: &Reminder{Text: "stand up"}},
	})
	if err != nil && !errors.Is(err, smallben.ErrJobExists) {
		log.Fatal(err)
	}

	fmt.Println(<-said)
	scheduler.Stop()
	repository.Close()
	// Output: job 1: stand up
}

func TestTheQuickstartOfTheREADMEIsTheExample(t *testing.T) {
	t.Parallel()
	body := func(path string) string {
		source, err := os.ReadFile(path)
		require.NoError(t, err)
		_, rest, found := strings.Cut(string(source), "\tgob.Register(&Reminder{})\n")
		require.True(t, found, path)
		body, _, found := strings.Cut(rest, "\n\n")
		require.True(t, found, path)
		return body
	}
	require.Equal(t, body("example_test.go"), body("README.md"))
	require.Contains(t, body("README.md"), "AddJobs")
}

// start returns a SmallBen that has started on a database in memory.
func start() (scheduler *smallben.SmallBen, end func()) {
	gob.Register(&Reminder{})
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
		Dialector: sqlite.Open(":memory:"),
	})
	if err != nil {
		log.Fatal(err)
	}
	scheduler = smallben.New(repository, &smallben.Config{Logger: silent})
	if err := scheduler.Start(); err != nil {
		log.Fatal(err)
	}
	return scheduler, func() {
		scheduler.Stop()
		if err := repository.Close(); err != nil {
			log.Fatal(err)
		}
	}
}

// silent discards what it is given. logr.Discard() would not do: it is the zero
// Logger, for which SmallBen takes DefaultLogger.
var silent = logr.FromSlogHandler(slog.DiscardHandler)

// startWithJobs is start with four jobs in two groups, the last one paused.
func startWithJobs() (scheduler *smallben.SmallBen, end func()) {
	scheduler, end = start()
	if err := scheduler.AddJobs([]smallben.Job{
		{ID: 1, GroupID: 7, CronExpression: "@daily", Job: &Reminder{Text: "stand up"}},
		{ID: 2, GroupID: 7, CronExpression: "@daily", Job: &Reminder{Text: "sit down"}},
		{ID: 3, GroupID: 8, CronExpression: "@daily", Job: &Reminder{Text: "drink"}},
		{ID: 4, GroupID: 8, CronExpression: "@daily", Job: &Reminder{Text: "breathe"}},
	}); err != nil {
		log.Fatal(err)
	}
	if err := scheduler.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{4}}); err != nil {
		log.Fatal(err)
	}
	return scheduler, end
}

// show prints every job.
func show(scheduler *smallben.SmallBen) {
	jobs, err := scheduler.ListJobs(nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, job := range jobs {
		fmt.Printf("job %d, group %d, %s, paused: %t\n", job.ID, job.GroupID, job.CronExpression, job.Paused())
	}
}

// enterTemporaryDirectory returns what leaves and removes it again.
func enterTemporaryDirectory() func() {
	before, err := os.Getwd()
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "smallben")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.Chdir(dir); err != nil {
		log.Fatal(err)
	}
	return func() {
		if err := errors.Join(os.Chdir(before), os.RemoveAll(dir)); err != nil {
			log.Fatal(err)
		}
	}
}

func ExampleNew() {
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
		Dialector: sqlite.Open(":memory:"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer repository.Close()

	scheduler := smallben.New(repository, &smallben.Config{
		SchedulerConfig: smallben.SchedulerConfig{SkipIfStillRunning: true, WithLocation: time.UTC},
		Logger:          logr.FromSlogHandler(slog.Default().Handler()),
	})
	fmt.Println(scheduler.Start())
	scheduler.Stop() // waits for the runs in progress
	// Output: <nil>
}

func ExampleNewRepositoryGorm() {
	dir, err := os.MkdirTemp("", "smallben")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	// In WAL mode lists do not wait for changes. PostgreSQL is
	// postgres.Open("postgres://...") of gorm.io/driver/postgres.
	path := filepath.Join(dir, "jobs.db")
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
		Dialector: sqlite.Open(path + "?_journal_mode=WAL"),
		Timeout:   5 * time.Second,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer repository.Close()

	_, err = repository.GetJob(42)
	fmt.Println(errors.Is(err, repository.ErrorTypeIfMismatchCount()))
	// Output: true
}

// With seconds, expressions have five fields or six. Without, they have five.
func ExampleConfig() {
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
		Dialector: sqlite.Open(":memory:"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer repository.Close()

	everyHalfMinute := []smallben.Job{{ID: 1, CronExpression: "*/30 * * * * *", Job: &Reminder{Text: "blink"}}}
	for _, withSeconds := range []bool{false, true} {
		scheduler := smallben.New(repository, &smallben.Config{
			SchedulerConfig: smallben.SchedulerConfig{
				WithSeconds:         withSeconds,
				DelayIfStillRunning: true,
				WithLocation:        time.UTC,
			},
			Logger: silent,
		})
		fmt.Println(scheduler.AddJobs(everyHalfMinute))
	}
	// Output:
	// add job 1: invalid job: parse "*/30 * * * * *": expected exactly 5 fields, found 6: [*/30 * * * * *]
	// <nil>
}

// What one process adds, the next one finds.
func ExampleSmallBen_Start() {
	defer enterTemporaryDirectory()()
	gob.Register(&Reminder{})

	process := func(work func(scheduler *smallben.SmallBen)) {
		repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
			Dialector: sqlite.Open("jobs.db"),
		})
		if err != nil {
			log.Fatal(err)
		}
		defer repository.Close()
		scheduler := smallben.New(repository, &smallben.Config{Logger: silent})
		if err := scheduler.Start(); err != nil {
			log.Fatal(err)
		}
		defer scheduler.Stop()
		work(scheduler)
	}

	process(func(scheduler *smallben.SmallBen) {
		err := scheduler.AddJobs([]smallben.Job{
			{ID: 1, CronExpression: "@daily", Job: &Reminder{Text: "stand up"}, JobInput: map[string]any{"times": 2}},
		})
		if err != nil {
			log.Fatal(err)
		}
	})
	process(func(scheduler *smallben.SmallBen) {
		jobs, err := scheduler.ListJobs(nil)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(len(jobs), "job:", jobs[0].Job.(*Reminder).Text, jobs[0].JobInput)
	})
	// Output: 1 job: stand up map[times:2]
}

func ExampleSmallBen_AddJobs() {
	scheduler, end := start()
	defer end()

	err := scheduler.AddJobs([]smallben.Job{
		{
			ID: 1, GroupID: 7, SuperGroupID: 70,
			CronExpression: "CRON_TZ=Europe/Rome 0 9 * * 1-5",
			Job:            &Reminder{Text: "stand up"},
		},
		{ID: 2, CronExpression: "@every 90m", Job: &Reminder{Text: "drink"}, JobInput: map[string]any{"glasses": 1}},
	})
	fmt.Println(err)

	// All jobs of a batch are added, or none.
	err = scheduler.AddJobs([]smallben.Job{
		{ID: 3, CronExpression: "@daily", Job: &Reminder{Text: "read"}},
		{ID: 2, CronExpression: "@daily", Job: &Reminder{Text: "drink"}},
	})
	fmt.Println(errors.Is(err, smallben.ErrJobExists))

	err = scheduler.AddJobs([]smallben.Job{{ID: 4, CronExpression: "61 * * * *", Job: &Reminder{Text: "never"}}})
	var jobError *smallben.JobError
	if errors.Is(err, smallben.ErrInvalidJob) && errors.As(err, &jobError) {
		fmt.Println("refused:", jobError.JobID)
	}

	show(scheduler)
	// Output:
	// <nil>
	// true
	// refused: 4
	// job 1, group 7, CRON_TZ=Europe/Rome 0 9 * * 1-5, paused: false
	// job 2, group 0, @every 90m, paused: false
}

func ExampleSmallBen_PauseJobs() {
	scheduler, end := startWithJobs()
	defer end()

	fmt.Println(scheduler.PauseJobs(&smallben.PauseResumeOptions{GroupIDs: []int64{7}}))
	show(scheduler)
	// Output:
	// <nil>
	// job 1, group 7, @daily, paused: true
	// job 2, group 7, @daily, paused: true
	// job 3, group 8, @daily, paused: false
	// job 4, group 8, @daily, paused: true
}

func ExampleSmallBen_ResumeJobs() {
	scheduler, end := startWithJobs()
	defer end()

	// Job 3 runs already, and is not disturbed.
	fmt.Println(scheduler.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{3, 4}}))
	show(scheduler)
	// Output:
	// <nil>
	// job 1, group 7, @daily, paused: false
	// job 2, group 7, @daily, paused: false
	// job 3, group 8, @daily, paused: false
	// job 4, group 8, @daily, paused: false
}

func ExampleSmallBen_UpdateJobs() {
	scheduler, end := startWithJobs()
	defer end()

	hourly := "@hourly"
	input := map[string]any{"loud": true}
	fmt.Println(scheduler.UpdateJobs([]smallben.UpdateOption{
		{JobID: 3, CronExpression: &hourly},
		{JobID: 4, CronExpression: &hourly, JobOtherInputs: &input}, // stays paused
	}))
	show(scheduler)

	err := scheduler.UpdateJobs([]smallben.UpdateOption{{JobID: 1}})
	fmt.Println(errors.Is(err, smallben.ErrUpdateOptionInvalid))
	// Output:
	// <nil>
	// job 1, group 7, @daily, paused: false
	// job 2, group 7, @daily, paused: false
	// job 3, group 8, @hourly, paused: false
	// job 4, group 8, @hourly, paused: true
	// true
}

func ExampleSmallBen_DeleteJobs() {
	scheduler, end := startWithJobs()
	defer end()

	paused := true
	fmt.Println(scheduler.DeleteJobs(&smallben.DeleteOptions{Paused: &paused}))
	byGroup := &smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{GroupIDs: []int64{7}}}
	fmt.Println(scheduler.DeleteJobs(byGroup))
	show(scheduler)

	err := scheduler.DeleteJobs(byGroup)
	fmt.Println(errors.Is(err, scheduler.ErrorTypeIfMismatchCount()))
	// Output:
	// <nil>
	// <nil>
	// job 3, group 8, @daily, paused: false
	// true
}

func ExampleSmallBen_ListJobs() {
	scheduler, end := startWithJobs()
	defer end()

	paused := false
	jobs, err := scheduler.ListJobs(&smallben.ListJobsOptions{GroupIDs: []int64{8}, Paused: &paused})
	fmt.Println(len(jobs), jobs[0].Job.(*Reminder).Text, err)

	// Of jobs that are named, those that exist come with the error.
	jobs, err = scheduler.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{1, 5}})
	fmt.Println(len(jobs), jobs[0].Job.(*Reminder).Text, errors.Is(err, scheduler.ErrorTypeIfMismatchCount()))
	// Output:
	// 1 drink <nil>
	// 1 stand up true
}

func ExampleSmallBen_RegisterMetrics() {
	scheduler, end := startWithJobs()
	defer end()

	registry := prometheus.NewRegistry()
	if err := scheduler.RegisterMetrics(registry); err != nil {
		log.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		log.Fatal(err)
	}
	for _, family := range families {
		if strings.HasPrefix(family.GetName(), "smallben_scheduler_jobs") {
			fmt.Println(family.GetName(), family.GetMetric()[0].GetGauge().GetValue())
		}
	}
	// Output:
	// smallben_scheduler_jobs_not_paused 3
	// smallben_scheduler_jobs_paused 1
	// smallben_scheduler_jobs_total 4
	// smallben_scheduler_jobs_undecodable 0
}

// Several instances share a registry by a label.
func ExampleSmallBen_Collector() {
	registry := prometheus.NewRegistry()
	for _, tenant := range []string{"red", "blue"} {
		scheduler, end := start()
		defer end()
		labelled := prometheus.WrapRegistererWith(prometheus.Labels{"tenant": tenant}, registry)
		fmt.Println(labelled.Register(scheduler.Collector()))
	}
	// Output:
	// <nil>
	// <nil>
}

// Integers keep all their digits, which OtherInputs rounds after a restart.
func ExampleCronJobInput_Decode() {
	// As Run receives it.
	input := smallben.CronJobInput{
		JobID:       1,
		OtherInputs: map[string]any{"customer": int64(9007199254740993), "channel": "mail"},
	}
	var order struct {
		Customer int64
		Channel  string
	}
	fmt.Println(input.Decode(&order))
	fmt.Println(order.Customer, order.Channel)
	// Output:
	// <nil>
	// 9007199254740993 mail
}

func ExampleUpdateOption_Valid() {
	expression := "@every 1ms"
	option := smallben.UpdateOption{JobID: 1, CronExpression: &expression}
	fmt.Println(option.Valid())
	// Output: job 1: invalid job: expression "@every 1ms": the duration is under one second
}

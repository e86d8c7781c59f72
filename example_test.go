package smallben_test

import (
	"context"
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
	"gorm.io/gorm"
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
		Dialector: sqlite.Open("file:jobs.db?_journal_mode=WAL"),
	})
	if err != nil {
		log.Fatal(err)
	}
	scheduler := smallben.New(repository, &smallben.Config{})
	if err := scheduler.Start(); err != nil {
		log.Fatal(err)
	}
	err = scheduler.UpsertJobs([]smallben.Job{
		{ID: 1, CronExpression: "@every 1s", Job: &Reminder{Text: "stand up"}},
	})
	if err != nil {
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
	require.Contains(t, body("README.md"), "UpsertJobs")
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
	gob.Register(&Reminder{})
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
	// add job 1: invalid job: parse "*/30 * * * * *": expected exactly 5 fields, found 6: seconds need SchedulerConfig.WithSeconds
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

// What a service does at each start: the jobs that it wants to have are there
// afterwards, and a start that changes nothing writes nothing.
func ExampleSmallBen_UpsertJobs() {
	scheduler, end := startWithJobs()
	defer end()

	wanted := []smallben.Job{
		{ID: 3, GroupID: 8, CronExpression: "@daily", Job: &Reminder{Text: "drink"}},    // as it is
		{ID: 4, GroupID: 8, CronExpression: "@hourly", Job: &Reminder{Text: "breathe"}}, // stays paused
		{ID: 5, GroupID: 9, CronExpression: "@weekly", Job: &Reminder{Text: "call home"}},
	}
	fmt.Println(scheduler.UpsertJobs(wanted))
	show(scheduler)

	updatedAt := func() time.Time {
		jobs, err := scheduler.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{4}})
		if err != nil {
			log.Fatal(err)
		}
		return jobs[0].UpdatedAt()
	}
	before := updatedAt()
	fmt.Println(scheduler.UpsertJobs(wanted), updatedAt().Equal(before))
	// Output:
	// <nil>
	// job 1, group 7, @daily, paused: false
	// job 2, group 7, @daily, paused: false
	// job 3, group 8, @daily, paused: false
	// job 4, group 8, @hourly, paused: true
	// job 5, group 9, @weekly, paused: false
	// <nil> true
}

// A customer and the reminders of that customer are committed together.
func ExampleSmallBen_AddJobsTx() {
	defer enterTemporaryDirectory()()
	gob.Register(&Reminder{})
	type Customer struct{ ID int64 }
	const dsn = "file:shop.db?_journal_mode=WAL&_txlock=immediate"
	db, err := gorm.Open(sqlite.Open(dsn), &gorm.Config{})
	if err != nil {
		log.Fatal(err)
	}
	pool, err := db.DB()
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: sqlite.New(sqlite.Config{Conn: pool})})
	if err != nil {
		log.Fatal(err)
	}
	scheduler := smallben.New(repository, &smallben.Config{Logger: silent})
	if err := errors.Join(db.AutoMigrate(&Customer{}), scheduler.Start()); err != nil {
		log.Fatal(err)
	}
	defer scheduler.Stop()

	register := func(customer Customer, expression string) error {
		err := db.Transaction(func(tx *gorm.DB) error {
			if err := tx.Create(&customer).Error; err != nil {
				return err
			}
			return scheduler.AddJobsTx(tx, []smallben.Job{{ID: customer.ID, CronExpression: expression, Job: &Reminder{Text: "pay"}}})
		})
		return errors.Join(err, scheduler.Committed())
	}
	fmt.Println(register(Customer{ID: 1}, "@daily"))
	fmt.Println(register(Customer{ID: 2}, "at noon"))

	var customers int64
	fmt.Println(db.Model(&Customer{}).Count(&customers).Error, customers)
	show(scheduler)
	// Output:
	// <nil>
	// add job 2: invalid job: parse "at noon": expected exactly 5 fields, found 2
	// <nil> 1
	// job 1, group 0, @daily, paused: false
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

// Invoice is a job that says what it was told.
type Invoice struct{ Customer string }

// Run bills the customer.
func (i *Invoice) Run(input smallben.CronJobInput) {
	fmt.Printf("job %d bills %s, triggered: %t\n", input.JobID, i.Customer, input.Triggered)
}

// A job runs once more than its schedule says, even a paused one.
func ExampleSmallBen_TriggerJobs() {
	gob.Register(&Invoice{})
	scheduler, end := start()
	defer end()
	if err := scheduler.AddJobs([]smallben.Job{
		{ID: 1, CronExpression: "@monthly", Job: &Invoice{Customer: "Ann"}},
	}); err != nil {
		log.Fatal(err)
	}

	if err := scheduler.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}); err != nil {
		log.Fatal(err)
	}
	scheduler.Stop() // waits for the run
	fmt.Println(scheduler.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
	// Output:
	// job 1 bills Ann, triggered: true
	// trigger jobs: SmallBen is not started
}

// Very many jobs are walked without holding all of them.
func ExampleSmallBen_Jobs() {
	scheduler, end := startWithJobs()
	defer end()

	for job, err := range scheduler.Jobs(&smallben.ListJobsOptions{GroupIDs: []int64{8}}) {
		if errors.Is(err, smallben.ErrUndecodable) {
			fmt.Println("job", job.ID, "does not decode")
			continue
		} else if err != nil {
			log.Fatal(err)
		}
		fmt.Println(job)
	}
	// Output:
	// job 3 (group 8, super-group 0) "@daily"
	// job 4 (group 8, super-group 0) "@daily", paused
}

// Download is a job that takes a context and returns an error: a ContextJob.
type Download struct{ URL string }

// Run makes it a CronJob. It is not called.
func (d *Download) Run(smallben.CronJobInput) {}

// RunContext waits for an answer that does not come.
func (d *Download) RunContext(ctx context.Context, _ smallben.CronJobInput) error {
	<-ctx.Done()
	return fmt.Errorf("get %s: %w", d.URL, ctx.Err())
}

// A run whose time is up is told by its context. What it returns is logged,
// counted, and shown in lists.
func ExampleContextJob() {
	gob.Register(&Download{})
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
		Dialector: sqlite.Open(":memory:"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer repository.Close()
	scheduler := smallben.New(repository, &smallben.Config{
		SchedulerConfig: smallben.SchedulerConfig{RunTimeout: time.Millisecond},
		Logger:          silent,
	})
	if err := scheduler.Start(); err != nil {
		log.Fatal(err)
	}
	if err := scheduler.AddJobs([]smallben.Job{
		{ID: 1, CronExpression: "@hourly", Job: &Download{URL: "http://example.com/"}},
	}); err != nil {
		log.Fatal(err)
	}
	if err := scheduler.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}); err != nil {
		log.Fatal(err)
	}
	scheduler.Stop() // waits for the run

	jobs, err := scheduler.ListJobs(nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(jobs[0].LastRun().Outcome)
	fmt.Println(jobs[0].LastRun().Error)
	// Output:
	// timeout
	// get http://example.com/: context deadline exceeded
}

// A stop with a deadline: runs that are still in progress then are told by their
// contexts, and named in the error.
func ExampleSmallBen_StopContext() {
	gob.Register(&Download{})
	scheduler, end := start()
	defer end() // waits for runs that heed their context
	if err := scheduler.AddJobs([]smallben.Job{
		{ID: 1, CronExpression: "@hourly", Job: &Download{URL: "http://example.com/"}},
	}); err != nil {
		log.Fatal(err)
	}
	if err := scheduler.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}); err != nil {
		log.Fatal(err)
	}

	deadline, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	err := scheduler.StopContext(deadline)
	fmt.Println(err)
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	// Output:
	// stop: context deadline exceeded: still running: jobs 1
	// true
}

func ExampleJob_LastRun() {
	gob.Register(&Invoice{})
	scheduler, end := start()
	defer end()
	if err := scheduler.AddJobs([]smallben.Job{
		{ID: 1, CronExpression: "@monthly", Job: &Invoice{Customer: "Ann"}},
		{ID: 2, CronExpression: "@monthly", Job: &Invoice{Customer: "Bob"}},
	}); err != nil {
		log.Fatal(err)
	}
	if err := scheduler.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}); err != nil {
		log.Fatal(err)
	}
	scheduler.Stop() // waits for the run

	jobs, err := scheduler.ListJobs(nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, job := range jobs {
		last := job.LastRun()
		if last.Outcome == "" {
			fmt.Printf("job %d has not run in this process\n", job.ID)
			continue
		}
		fmt.Printf("job %d: %s, triggered: %t, running: %t\n", job.ID, last.Outcome, last.Triggered, job.Running())
	}
	// Output:
	// job 2 bills Bob, triggered: true
	// job 1 has not run in this process
	// job 2: ok, triggered: true, running: false
}

func ExampleJob_NextRun() {
	scheduler, end := start()
	defer end()
	if err := scheduler.AddJobs([]smallben.Job{
		{ID: 1, CronExpression: "CRON_TZ=Europe/Rome 30 9 * * MON", Job: &Reminder{Text: "stand up"}},
		{ID: 2, CronExpression: "@hourly", Job: &Reminder{Text: "drink"}},
	}); err != nil {
		log.Fatal(err)
	}
	if err := scheduler.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}); err != nil {
		log.Fatal(err)
	}

	jobs, err := scheduler.ListJobs(nil)
	if err != nil {
		log.Fatal(err)
	}
	rome, err := time.LoadLocation("Europe/Rome")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(jobs[0].NextRun().In(rome).Format("Monday 15:04"))
	fmt.Println(jobs[1].NextRun().IsZero()) // it is paused
	// Output:
	// Monday 09:30
	// true
}

// A preview of what the schedule has, paused or not.
func ExampleJob_NextRuns() {
	scheduler, end := startWithJobs()
	defer end()

	paused := true
	jobs, err := scheduler.ListJobs(&smallben.ListJobsOptions{Paused: &paused})
	if err != nil {
		log.Fatal(err)
	}
	next := jobs[0].NextRuns(3)
	fmt.Println(len(next), "ticks, the first after now:", next[0].After(time.Now()))
	// Output: 3 ticks, the first after now: true
}

// For a form in which a user types an expression: what AddJobs would say of it,
// and when it would run.
func ExampleSmallBen_NextRuns() {
	scheduler, end := start()
	defer end()
	next, err := scheduler.NextRuns("CRON_TZ=UTC 0 12 * * 7", 3)
	if err != nil {
		log.Fatal(err)
	}
	for _, tick := range next {
		fmt.Println(tick.UTC().Format("Monday 15:04 MST"))
	}

	_, err = scheduler.NextRuns("0 12 31 2 *", 3)
	fmt.Println(err)
	// Output:
	// Sunday 12:00 UTC
	// Sunday 12:00 UTC
	// Sunday 12:00 UTC
	// invalid job: expression "0 12 31 2 *": it never fires in the next forty years
}

// Charge is a job that goes wrong in the ways that there are.
type Charge struct{ Card string }

// Run makes it a CronJob. It is not called.
func (c *Charge) Run(smallben.CronJobInput) {}

// RunContext charges the card.
func (c *Charge) RunContext(context.Context, smallben.CronJobInput) error {
	switch c.Card {
	case "expired":
		return errors.New("the card has expired")
	case "":
		panic("no card")
	}
	return nil
}

// WrapRun sees both ends of each run: where a span of OpenTelemetry begins and
// ends, and where an error is reported to Sentry.
func ExampleConfig_wrapRun() {
	gob.Register(&Charge{})
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
		Dialector: sqlite.Open(":memory:"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer repository.Close()

	ended := make(chan bool)
	trace := func(next smallben.RunFunc) smallben.RunFunc {
		return func(ctx context.Context, input smallben.CronJobInput) error {
			fmt.Println("begin job", input.JobID) // ctx, span := tracer.Start(ctx, "run")
			err := next(ctx, input)
			var panicked interface{ Stack() []byte }
			if errors.As(err, &panicked) {
				fmt.Printf("a panic, with its stack: %t\n", len(panicked.Stack()) > 0)
			}
			fmt.Printf("end job %d: %v\n", input.JobID, err) // span.RecordError(err); span.End()
			ended <- true
			return err // what SmallBen logs and counts
		}
	}
	scheduler := smallben.New(repository, &smallben.Config{WrapRun: trace, Logger: silent})
	if err := scheduler.Start(); err != nil {
		log.Fatal(err)
	}
	defer scheduler.Stop()
	if err := scheduler.AddJobs([]smallben.Job{
		{ID: 1, CronExpression: "@monthly", Job: &Charge{Card: "valid"}},
		{ID: 2, CronExpression: "@monthly", Job: &Charge{Card: "expired"}},
		{ID: 3, CronExpression: "@monthly", Job: &Charge{}},
	}); err != nil {
		log.Fatal(err)
	}
	for id := int64(1); id <= 3; id++ {
		if err := scheduler.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{id}}); err != nil {
			log.Fatal(err)
		}
		<-ended
	}
	// Output:
	// begin job 1
	// end job 1: <nil>
	// begin job 2
	// end job 2: the card has expired
	// begin job 3
	// a panic, with its stack: true
	// end job 3: panic: no card
}

// Two processes on one database, here in one program: each tick runs once, and both
// see all runs.
func ExampleSmallBen_ListRuns() {
	gob.Register(&Invoice{})
	dir, err := os.MkdirTemp("", "smallben-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	process := func() (scheduler *smallben.SmallBen, end func()) {
		repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{
			// Processes can share SQLite in WAL mode only.
			Dialector: sqlite.Open(filepath.Join(dir, "jobs.db") + "?_journal_mode=WAL"),
		})
		if err != nil {
			log.Fatal(err)
		}
		scheduler = smallben.New(repository, &smallben.Config{
			Runs: smallben.RunsConfig{Record: true, Missed: smallben.MissedRunOnce},
		})
		if err := scheduler.Start(); err != nil {
			log.Fatal(err)
		}
		return scheduler, func() {
			scheduler.Stop()
			repository.Close()
		}
	}
	one, endOne := process()
	other, endOther := process()
	defer endOther()

	if err := one.AddJobs([]smallben.Job{
		{ID: 1, CronExpression: "@monthly", Job: &Invoice{Customer: "Ann"}},
	}); err != nil {
		log.Fatal(err)
	}
	if err := one.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}); err != nil {
		log.Fatal(err)
	}
	endOne() // waits until the end of the run is recorded

	runs, err := other.ListRuns(&smallben.ListRunsOptions{JobIDs: []int64{1}, Limit: 10})
	if err != nil {
		log.Fatal(err)
	}
	for _, run := range runs {
		fmt.Println(run.JobID, run.Outcome, run.Triggered, run.Attempt)
	}
	// Output:
	// job 1 bills Ann, triggered: true
	// 1 ok true 1
}

func ExampleSmallBen_RegisterMetrics() {
	scheduler, end := startWithJobs()
	defer end()

	registry := prometheus.NewRegistry()
	if err := scheduler.RegisterMetrics(registry); err != nil {
		log.Fatal(err)
	}
	if err := scheduler.TriggerJobs(&smallben.PauseResumeOptions{GroupIDs: []int64{7}}); err != nil {
		log.Fatal(err)
	}
	scheduler.Stop() // waits for the runs
	families, err := registry.Gather()
	if err != nil {
		log.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			switch {
			case strings.HasPrefix(family.GetName(), "smallben_scheduler_jobs"):
				fmt.Println(family.GetName(), metric.GetGauge().GetValue())
			case family.GetName() == "smallben_runs_total":
				labels := metric.GetLabel() // in the order of their names
				fmt.Println(family.GetName(), labels[0].GetValue(), labels[1].GetValue(), metric.GetCounter().GetValue())
			}
		}
	}
	// Output:
	// smallben_runs_total *smallben_test.Reminder abandoned 0
	// smallben_runs_total *smallben_test.Reminder error 0
	// smallben_runs_total *smallben_test.Reminder ok 2
	// smallben_runs_total *smallben_test.Reminder panic 0
	// smallben_runs_total *smallben_test.Reminder timeout 0
	// smallben_scheduler_jobs_not_paused 3
	// smallben_scheduler_jobs_paused 1
	// smallben_scheduler_jobs_total 4
	// smallben_scheduler_jobs_undecodable 0
}

// Several instances share a registry by a label.
func ExampleSmallBen_Collector() {
	registry := prometheus.NewRegistry()
	for _, tenant := range []string{"blue", "red"} {
		scheduler, end := start()
		defer end()
		labelled := prometheus.WrapRegistererWith(prometheus.Labels{"tenant": tenant}, registry)
		if err := labelled.Register(scheduler.Collector()); err != nil {
			log.Fatal(err)
		}
		if err := scheduler.AddJobs([]smallben.Job{
			{ID: 1, CronExpression: "@daily", Job: &Reminder{Text: "paint it " + tenant}},
		}); err != nil {
			log.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		log.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "smallben_scheduler_jobs_total" {
			for _, metric := range family.GetMetric() {
				fmt.Println(metric.GetLabel()[0].GetValue(), metric.GetGauge().GetValue())
			}
		}
	}
	// Output:
	// blue 1
	// red 1
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

// Delivery is a job that may fail.
type Delivery struct{ Endpoint string }

// RunOptions implements smallben.ConfiguredJob.
func (d *Delivery) RunOptions() smallben.RunOptions {
	return smallben.RunOptions{
		Overlap:      smallben.OverlapSkip,   // one at a time
		Timeout:      time.Minute,            // of the context of each attempt
		Missed:       smallben.MissedRunOnce, // if runs are recorded
		MissedWithin: 3 * time.Hour,          // and not older than that
		Attempts:     5,                      // the first one included
		Backoff:      10 * time.Millisecond,  // then twice as long each time
		MaxBackoff:   time.Hour,              // at most
	}
}

// Run implements smallben.CronJob. RunContext is called in its place.
func (d *Delivery) Run(smallben.CronJobInput) {}

// RunContext implements smallben.ContextJob.
func (d *Delivery) RunContext(_ context.Context, input smallben.CronJobInput) error {
	switch {
	case d.Endpoint == "gone":
		fmt.Println("attempt", input.Attempt, "is the last")
		return smallben.Permanent(errors.New("410 Gone"))
	case input.Attempt < 3:
		fmt.Println("attempt", input.Attempt, "fails")
		return errors.New("503 Service Unavailable")
	}
	fmt.Println("attempt", input.Attempt, "succeeds")
	delivered <- struct{}{}
	return nil
}

var delivered = make(chan struct{}, 1)

func ExampleConfiguredJob() {
	gob.Register(&Delivery{})
	scheduler, end := start()
	defer end()
	err := scheduler.AddJobs([]smallben.Job{{ID: 1, CronExpression: "@yearly", Job: &Delivery{Endpoint: "https://example.com"}}})
	if err != nil {
		log.Fatal(err)
	}
	if err := scheduler.TriggerJobs(&smallben.PauseResumeOptions{}); err != nil {
		log.Fatal(err)
	}
	<-delivered
	// Output:
	// attempt 1 fails
	// attempt 2 fails
	// attempt 3 succeeds
}

func ExamplePermanent() {
	gob.Register(&Delivery{})
	scheduler, end := start()
	err := scheduler.AddJobs([]smallben.Job{{ID: 1, CronExpression: "@yearly", Job: &Delivery{Endpoint: "gone"}}})
	if err != nil {
		log.Fatal(err)
	}
	if err := scheduler.TriggerJobs(&smallben.PauseResumeOptions{}); err != nil {
		log.Fatal(err)
	}
	end()
	// Output:
	// attempt 1 is the last
}

// A listed job tells what holds for it: its own options, or what Config says.
func ExampleJob_RunOptions() {
	gob.Register(&Delivery{})
	scheduler, end := start()
	defer end()
	err := scheduler.AddJobs([]smallben.Job{
		{ID: 1, CronExpression: "@yearly", Job: &Delivery{Endpoint: "https://example.com"}},
		{ID: 2, CronExpression: "@yearly", Job: &Reminder{Text: "stand up"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	jobs, err := scheduler.ListJobs(nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, job := range jobs {
		fmt.Println(job.RunOptions())
	}
	// Output:
	// overlap skip, timeout 1m0s, missed run once, missed within 3h0m0s, 5 attempts, backoff 10ms, backoff at most 1h0m0s
	// overlap allow, no timeout, missed skip, 1 attempt, backoff 10s, backoff at most 1h0m0s
}

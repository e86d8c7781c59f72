package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/go-logr/zapr"
	"github.com/nbena/smallben"
	"github.com/reugn/go-quartz/job"
	"github.com/reugn/go-quartz/quartz"
	"github.com/robfig/cron/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	memory            = "memory"
	oneByOne          = "SmallBen, one by one"
	addingInMem  work = "adds to a running scheduler"
	removingHalf work = "removal of half"
	heapInMem    work = "heap for each job"
)

// timer is a scheduler without a database. Its jobs are numbered from 0.
type timer interface {
	// add schedules jobs, as many as are handed over at once.
	add(first int, expressions []string, run func()) error
	remove(numbers []int) error
	stop() error
}

// contender is a scheduler under its name.
type contender struct {
	name  string
	batch int // jobs that are added at once
	most  int // jobs beyond which it is not measured, since its time grows with their square
	begin func() (timer, error)
}

var contenders = []contender{
	{"SmallBen", batch, 1 << 30, func() (timer, error) { return beginTimer() }},
	{oneByOne, 1, 1 << 30, func() (timer, error) { return beginTimer() }},
	{"robfig/cron", 1, 30_000, beginCron},
	{"gocron", 1, 1 << 30, beginGocron},
	{"go-quartz", 1, 30_000, beginQuartz},
}

// runMemory adds and removes.
func runMemory(o *options, r results, round int) error {
	for _, n := range o.sizes() {
		for _, c := range rotated(contenders, round) {
			if n > max(c.most, o.n) {
				continue
			}
			log.Printf("memory, %d jobs, %s", n, c.name)
			if err := addAndRemove(r, c, n); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return nil
}

func addAndRemove(r results, c contender, n int) error {
	expressions := make([]string, n)
	for i := range expressions {
		expressions[i] = expression(i)
	}
	odd := make([]int, 0, n/2)
	for i := 1; i < n; i += 2 {
		odd = append(odd, i)
	}
	before := heap()
	t, err := c.begin()
	if err != nil {
		return err
	}
	err = r.timed(cell{memory, c.name, addingInMem, n}, func() error {
		for first := 0; first < n; first += c.batch {
			if err := t.add(first, expressions[first:min(first+c.batch, n)], func() {}); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		r.add(cell{memory, c.name, heapInMem, n}, (heap()-before)/float64(n))
		err = r.timed(cell{memory, c.name, removingHalf, n}, func() error { return t.remove(odd) })
	}
	return errors.Join(err, t.stop())
}

// newSmallBen logs from info level up, and throws the lines away.
func newSmallBen(repository smallben.Repository) *smallben.SmallBen {
	return smallben.New(repository, configured(io.Discard, zap.InfoLevel))
}

// newRecording records runs, and logs errors.
func newRecording(repository smallben.Repository) *smallben.SmallBen {
	config := configured(os.Stderr, zap.ErrorLevel)
	config.Runs.Record = true
	return smallben.New(repository, config)
}

func configured(w io.Writer, level zapcore.Level) *smallben.Config {
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level)
	return &smallben.Config{
		Logger:          zapr.NewLogger(zap.New(core)),
		SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true},
	}
}

// smallBenTimer is the whole of SmallBen on a repository in memory: it encodes
// and stores each job.
type smallBenTimer struct{ *smallben.SmallBen }

// call is a job of smallBenTimer. What it calls is not stored.
type call struct {
	Reminder
	run func()
}

func (c *call) Run(smallben.CronJobInput) { c.run() }

func beginTimer() (smallBenTimer, error) {
	s := smallBenTimer{newSmallBen(&memoryRepository{ids: map[int64]struct{}{}})}
	return s, s.Start()
}

func (s smallBenTimer) add(first int, expressions []string, run func()) error {
	made := make([]smallben.Job, len(expressions))
	for i, expression := range expressions {
		made[i] = smallben.Job{ID: int64(first + i + 1), CronExpression: expression, Job: &call{run: run}}
	}
	return s.AddJobs(made)
}

func (s smallBenTimer) remove(numbers []int) error {
	ids := make([]int64, len(numbers))
	for i, number := range numbers {
		ids[i] = int64(number + 1)
	}
	return s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: ids}})
}

func (s smallBenTimer) stop() error {
	s.Stop()
	return nil
}

// memoryRepository is a smallben.Repository that keeps ids and no rows, so that
// the heap is that of the scheduler.
type memoryRepository struct {
	mu  sync.RWMutex
	ids map[int64]struct{}
}

var errMissing = errors.New("no such job")

func (m *memoryRepository) ErrorTypeIfMismatchCount() error { return errMissing }

func (m *memoryRepository) AddJobs(jobs []smallben.JobWithSchedule) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range jobs {
		row, err := jobs[i].BuildJob()
		if err != nil {
			return err
		}
		m.ids[row.ID] = struct{}{}
	}
	return nil
}

func (m *memoryRepository) DeleteJobsByIds(ids []int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		delete(m.ids, id)
	}
	return nil
}

func (m *memoryRepository) ListJobs(options smallben.ToListOptions) ([]smallben.RawJob, error) {
	ids := smallben.ResolveListOptions(options).JobIDs
	m.mu.RLock()
	defer m.mu.RUnlock()
	if ids == nil {
		ids = slices.Collect(maps.Keys(m.ids))
	}
	found := make([]smallben.RawJob, 0, len(ids))
	for _, id := range ids {
		if _, ok := m.ids[id]; ok {
			found = append(found, smallben.RawJob{ID: id})
		}
	}
	slices.SortFunc(found, func(a, b smallben.RawJob) int { return cmp.Compare(a.ID, b.ID) })
	return found, nil
}

// The methods below are not called here with any job.

func (m *memoryRepository) GetJob(int64) (smallben.JobWithSchedule, error) {
	return smallben.JobWithSchedule{}, errMissing
}
func (m *memoryRepository) GetAllJobsToExecute() ([]smallben.JobWithSchedule, error) { return nil, nil }
func (m *memoryRepository) GetJobsByIds([]int64) ([]smallben.JobWithSchedule, error) {
	return nil, errMissing
}
func (m *memoryRepository) PauseJobs([]smallben.RawJob) error           { return nil }
func (m *memoryRepository) ResumeJobs([]smallben.JobWithSchedule) error { return nil }
func (m *memoryRepository) SetCronId([]smallben.JobWithSchedule) error  { return nil }
func (m *memoryRepository) SetCronIdAndChangeScheduleAndJobInput([]smallben.JobWithSchedule) error {
	return nil
}

// cronTimer is robfig/cron, with its chain that recovers panics.
type cronTimer struct {
	cron *cron.Cron
	ids  []cron.EntryID
}

func beginCron() (timer, error) {
	seconds := cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)
	t := &cronTimer{cron: cron.New(cron.WithParser(seconds), cron.WithChain(cron.Recover(cron.DefaultLogger)))}
	t.cron.Start()
	return t, nil
}

func (t *cronTimer) add(_ int, expressions []string, run func()) error {
	for _, expression := range expressions {
		id, err := t.cron.AddFunc(expression, run)
		if err != nil {
			return err
		}
		t.ids = append(t.ids, id)
	}
	return nil
}

func (t *cronTimer) remove(numbers []int) error {
	for _, number := range numbers {
		t.cron.Remove(t.ids[number])
	}
	return nil
}

func (t *cronTimer) stop() error {
	<-t.cron.Stop().Done()
	return nil
}

// gocronTimer is gocron, which recovers panics.
type gocronTimer struct {
	scheduler gocron.Scheduler
	jobs      []gocron.Job
}

func beginGocron() (timer, error) {
	s, err := gocron.NewScheduler()
	if err != nil {
		return nil, err
	}
	s.Start()
	return &gocronTimer{scheduler: s}, nil
}

func (t *gocronTimer) add(_ int, expressions []string, run func()) error {
	for _, expression := range expressions {
		withSeconds := expression == everySecond
		j, err := t.scheduler.NewJob(gocron.CronJob(expression, withSeconds), gocron.NewTask(run))
		if err != nil {
			return err
		}
		t.jobs = append(t.jobs, j)
	}
	return nil
}

func (t *gocronTimer) remove(numbers []int) error {
	for _, number := range numbers {
		if err := t.scheduler.RemoveJob(t.jobs[number].ID()); err != nil {
			return err
		}
	}
	return nil
}

func (t *gocronTimer) stop() error { return t.scheduler.Shutdown() }

// quartzTimer is go-quartz, which recovers panics. Its threshold for outdated
// runs is as long as its documentation allows: by default it would drop all runs
// later than 100 ms.
type quartzTimer struct {
	scheduler quartz.Scheduler
	keys      []*quartz.JobKey
}

func beginQuartz() (timer, error) {
	s, err := quartz.NewStdScheduler(quartz.WithOutdatedThreshold(time.Second - time.Millisecond))
	if err != nil {
		return nil, err
	}
	s.Start(context.Background())
	return &quartzTimer{scheduler: s}, nil
}

func (t *quartzTimer) add(first int, expressions []string, run func()) error {
	for i, expression := range expressions {
		if expression != everySecond {
			// Seconds first, and one of the two days left open.
			expression = "0 " + expression[:len(expression)-1] + "?"
		}
		trigger, err := quartz.NewCronTrigger(expression)
		if err != nil {
			return err
		}
		key := quartz.NewJobKey(strconv.Itoa(first + i))
		function := job.NewFunctionJob(func(context.Context) (int, error) { run(); return 0, nil })
		if err := t.scheduler.ScheduleJob(quartz.NewJobDetail(function, key), trigger); err != nil {
			return err
		}
		t.keys = append(t.keys, key)
	}
	return nil
}

func (t *quartzTimer) remove(numbers []int) error {
	for _, number := range numbers {
		if err := t.scheduler.DeleteJob(t.keys[number]); err != nil {
			return err
		}
	}
	return nil
}

func (t *quartzTimer) stop() error {
	t.scheduler.Stop()
	t.scheduler.Wait(context.Background())
	return nil
}

package smallben

import (
	"encoding/gob"
	"flag"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben/internal/cronexpr"
	"github.com/nbena/smallben/internal/timetable"
)

// benchJob is the job of the benchmarks.
type benchJob struct {
	Text  string
	Tries int

	run func(CronJobInput) // of a value that was not decoded
}

func (j *benchJob) Run(input CronJobInput) {
	if j.run != nil {
		j.run(input)
	}
}

func init() { gob.Register(&benchJob{}) }

func benchJobs(from, n int) []Job {
	jobs := make([]Job, n)
	for i := range jobs {
		k := from + i
		jobs[i] = Job{
			ID: int64(k + 1), GroupID: int64(k % 2), SuperGroupID: int64(k % 100),
			CronExpression: fmt.Sprintf("%d %d * * *", k%60, k/60%24),
			Job:            &benchJob{Text: fmt.Sprint("job ", k), Tries: k},
			JobInput:       map[string]any{"to": "ops@example.com"},
		}
	}
	return jobs
}

// benchRepository stores nothing and lists rows.
type benchRepository struct {
	Repository
	rows []RawJob
}

func (benchRepository) AddJobs([]JobWithSchedule) error                 { return nil }
func (benchRepository) DeleteJobsByIds([]int64) error                   { return nil }
func (benchRepository) SetCronId([]JobWithSchedule) error               { return nil }
func (benchRepository) GetAllJobsToExecute() ([]JobWithSchedule, error) { return nil, nil }
func (benchRepository) ErrorTypeIfMismatchCount() error                 { return errNever }

func (r benchRepository) ListJobs(options ToListOptions) ([]RawJob, error) {
	if ResolveListOptions(options).Paused != nil {
		return nil, nil // Start asks for the paused ones
	}
	return slices.Clone(r.rows), nil
}

var errNever = fmt.Errorf("never")

// nowhere writes its lines, from info level up, to nowhere.
var nowhere = funcr.New(func(string, string) {}, funcr.Options{})

// benchStarted starts a SmallBen that logs nowhere.
func benchStarted(b *testing.B, repository benchRepository, pageSize int) *SmallBen {
	b.Helper()
	s := New(repository, &Config{
		Logger:          nowhere,
		SchedulerConfig: SchedulerConfig{WithSeconds: true},
	})
	s.scheduler.pageSize = pageSize
	require.NoError(b, s.Start())
	b.Cleanup(s.Stop)
	return s
}

// benchEntries gives the scheduler entries of jobs, and returns those that are to be added
// to its timetable.
func benchEntries(b *testing.B, s *SmallBen, from, n int) []*slot {
	b.Helper()
	built, err := s.build(benchJobs(from, n), false)
	require.NoError(b, err)
	s.scheduler.mu.Lock()
	defer s.scheduler.mu.Unlock()
	var t transition
	for i := range built {
		s.scheduler.scheduleLocked(&built[i], &t)
	}
	return t.added
}

// benchAdd adds entries as a change does.
func benchAdd(s *SmallBen, entries []*slot) {
	s.scheduler.mu.Lock()
	defer s.scheduler.mu.Unlock()
	s.scheduler.completeLocked(&transition{added: entries}, "")
}

func benchRows(b *testing.B, n int) []RawJob {
	b.Helper()
	created := time.Now().UTC().Truncate(time.Microsecond)
	rows := make([]RawJob, n)
	for i, job := range benchJobs(0, n) {
		built, err := job.build(cronexpr.Rules{}, created)
		require.NoError(b, err)
		rows[i] = built.rawJob
	}
	return rows
}

// BenchmarkEncodeJob validates a job and makes its row.
func BenchmarkEncodeJob(b *testing.B) {
	job := benchJobs(0, 1)[0]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := job.build(cronexpr.Rules{}, time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecodeRow makes a job of its row.
func BenchmarkDecodeRow(b *testing.B) {
	row := benchRows(b, 1)[0]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := row.ToJobWithSchedule(); err != nil {
			b.Fatal(err)
		}
	}
}

// benchFull is how many entries stand in the pages to which one is added, or from
// which one is removed.
const benchFull = 100 * timetable.PageSize

// BenchmarkAddToPage adds one entry to pages that run.
func BenchmarkAddToPage(b *testing.B) {
	s := benchStarted(b, benchRepository{}, timetable.PageSize)
	entries := benchEntries(b, s, 0, benchFull)
	b.ReportAllocs()
	next := 0
	for b.Loop() {
		if next == len(entries) {
			b.StopTimer()
			s.Stop()
			require.NoError(b, s.Start())
			entries, next = benchEntries(b, s, 0, benchFull), 0
			b.StartTimer()
		}
		benchAdd(s, entries[next:next+1])
		next++
	}
}

// BenchmarkRemoveFromPage removes one entry from pages that run.
func BenchmarkRemoveFromPage(b *testing.B) {
	s := benchStarted(b, benchRepository{}, timetable.PageSize)
	b.ReportAllocs()
	next := int64(benchFull)
	for b.Loop() {
		if next == benchFull {
			b.StopTimer()
			benchAdd(s, benchEntries(b, s, 0, benchFull))
			next = 0
			b.StartTimer()
		}
		next++
		s.scheduler.remove([]int64{next}, false)
	}
}

// BenchmarkRun is one tick, from the place where it is fired: the overlap
// guard, the recovery of panics, the metrics and the input's own map.
func BenchmarkRun(b *testing.B) {
	for _, config := range []struct {
		name string
		SchedulerConfig
	}{
		{"Allow", SchedulerConfig{}},
		{"Skip", SchedulerConfig{SkipIfStillRunning: true}},
		{"Delay", SchedulerConfig{DelayIfStillRunning: true}},
	} {
		b.Run(config.name, func(b *testing.B) {
			s := New(benchRepository{}, &Config{SchedulerConfig: config.SchedulerConfig, Logger: nowhere})
			require.NoError(b, s.Start())
			b.Cleanup(s.Stop)
			entries := benchEntries(b, s, 0, 1)
			benchAdd(s, entries)
			session := s.scheduler.current()
			b.ReportAllocs()
			for b.Loop() {
				session.fire(entries[0], time.Now())
			}
		})
	}
}

// BenchmarkAddJobsInMemory adds batches of 1,000 jobs, the database taking no time.
func BenchmarkAddJobsInMemory(b *testing.B) {
	const n = 1000
	jobs := benchJobs(0, n)
	all := make([]int64, n)
	for i := range all {
		all[i] = int64(i + 1)
	}
	s := benchStarted(b, benchRepository{}, timetable.PageSize)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.AddJobs(jobs); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.mu.Lock()
		s.forgetLocked(all)
		s.mu.Unlock()
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/job")
}

// BenchmarkListJobsInMemory lists 1,000 jobs, the database taking no time.
func BenchmarkListJobsInMemory(b *testing.B) {
	const n = 1000
	s := benchStarted(b, benchRepository{rows: benchRows(b, n)}, timetable.PageSize)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.ListJobs(nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/job")
}

// BenchmarkScrape gathers the metrics of 10,000 jobs.
func BenchmarkScrape(b *testing.B) {
	s := benchStarted(b, benchRepository{}, timetable.PageSize)
	require.NoError(b, s.AddJobs(benchJobs(0, 10_000)))
	registry := prometheus.NewRegistry()
	require.NoError(b, s.RegisterMetrics(registry))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}

var fire = flag.Duration("fire", 0, "how long BenchmarkPageSize lets 10,000 jobs fire each second; 0 leaves it out")

// BenchmarkPageSize is the table that the page size was chosen by, in
// bench/README.md. An iteration adds 30,000 jobs in batches of 1,000 and one by
// one, and removes half of the former.
func BenchmarkPageSize(b *testing.B) {
	for _, size := range []int{32, 64, 128, 256, 512, 1024, 2048} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			const n, batch = 30_000, 1000
			var p99, perRun time.Duration
			if *fire > 0 {
				p99, perRun = benchFire(b, size, *fire)
			}
			var batches, singles, removal time.Duration
			for b.Loop() {
				s := benchStarted(b, benchRepository{}, size)
				var half []int64
				for i := int64(2); i <= n; i += 2 {
					half = append(half, i)
				}
				entries := benchEntries(b, s, 0, n)
				batches += elapsed(func() {
					for chunk := range slices.Chunk(entries, batch) {
						benchAdd(s, chunk)
					}
				})
				removal += elapsed(func() { s.scheduler.remove(half, false) })
				s.Stop()
				require.NoError(b, s.Start())
				entries = benchEntries(b, s, 0, n)
				singles += elapsed(func() {
					for chunk := range slices.Chunk(entries, 1) {
						benchAdd(s, chunk)
					}
				})
				s.Stop()
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(batches.Seconds()*1e3/float64(b.N), "add-ms")
			b.ReportMetric(singles.Seconds()*1e3/float64(b.N), "add-singly-ms")
			b.ReportMetric(removal.Seconds()*1e3/float64(b.N), "remove-half-ms")
			if *fire > 0 {
				b.ReportMetric(p99.Seconds()*1e3, "p99-late-ms")
				b.ReportMetric(perRun.Seconds()*1e6, "cpu-µs/run")
			}
		})
	}
}

func elapsed(do func()) time.Duration {
	start := time.Now()
	do()
	return time.Since(start)
}

// benchFire lets 10,000 jobs fire each second, and returns the lateness that 99
// in 100 runs do not exceed, and the CPU of one run.
func benchFire(b *testing.B, pageSize int, d time.Duration) (p99, perRun time.Duration) {
	const n = 10_000
	s := benchStarted(b, benchRepository{}, pageSize)
	late := make([]time.Duration, int(d.Seconds()+2)*n)
	var on atomic.Bool
	var next atomic.Int64
	run := func(input CronJobInput) {
		if on.Load() {
			late[next.Add(1)-1] = time.Since(input.ScheduledAt)
		}
	}
	jobs := benchJobs(0, n)
	for i := range jobs {
		jobs[i].CronExpression = "* * * * * *"
		jobs[i].Job, jobs[i].JobInput = &benchJob{run: run}, nil
	}
	require.NoError(b, s.AddJobs(jobs))
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(2700 * time.Millisecond)))
	used := benchCPU(b)
	on.Store(true)
	time.Sleep(d)
	on.Store(false)
	used = benchCPU(b) - used
	late = late[:next.Load()]
	require.NotEmpty(b, late)
	slices.Sort(late)
	s.Stop()
	return late[len(late)*99/100], used / time.Duration(len(late))
}

// benchCPU is what this process has used.
func benchCPU(b *testing.B) time.Duration {
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

package smallbentest

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"

	"github.com/nbena/smallben"
)

// TestRepository tests that a repository keeps the contract of
// smallben.Repository, and those of smallben.Upserter and smallben.Pager if it is
// one. Each subtest calls open for a repository that holds no job; t.Cleanup is
// the place to close it. The subtests run in parallel.
//
//	func TestMyRepository(t *testing.T) {
//		smallbentest.TestRepository(t, func(t *testing.T) smallben.Repository { return mine.Open(t.TempDir()) })
//	}
func TestRepository(t *testing.T, open func(t *testing.T) smallben.Repository) {
	t.Helper()
	for _, c := range clauses {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(&contract{T: t, Repository: open(t)})
		})
	}
}

// clauses are the contract, each as a test.
var clauses = []struct {
	name string
	test func(c *contract)
}{
	{"what is added is read back exactly", addedIsReadBack},
	{"times are stored in microseconds and UTC", timesInMicroseconds},
	{"zero times of an added job become now", zeroTimesBecomeNow},
	{"AddJobs names every id that exists and stores nothing", addNamesExistingIDs},
	{"AddJobs refuses what no table can hold", addRefusesInvalidJobs},
	{"PauseJobs writes its columns only", pauseWritesItsColumns},
	{"ResumeJobs writes its columns only", resumeWritesItsColumns},
	{"SetCronId writes nothing else", setCronIDWritesNothingElse},
	{"an update writes expression, input and cron id", updateWritesItsColumns},
	{"DeleteJobsByIds deletes rows", deleteDeletesRows},
	{"a write changes what exists and names what does not", writesNameMissingIDs},
	{"reads return what they found with the mismatch error", readsNameMissingIDs},
	{"empty arguments are a success that changes nothing", emptyArguments},
	{"ListJobs returns the rows that match every filter", listFilters},
	{"a row that does not decode hides no other", undecodableRow},
	{"results and arguments belong to the caller", callerOwnsValues},
	{"the mismatch error is the same at each call", mismatchErrorIsConstant},
	{"methods are safe for concurrent use", concurrentUse},
	{"one of many concurrent adds of an id succeeds", concurrentAdds},
	{"a large batch is one write", largeBatch},
	{"large rows are stored", largeRows},
	{"UpsertJobs adds and replaces in one write", upsert},
	{"ListJobsAfter returns pages in the order of ids", listAfter},
	{"a SmallBen on it agrees with its rows", scheduler},
}

// contract is a repository under test.
type contract struct {
	*testing.T
	smallben.Repository
}

// stored is the job of the rows.
type stored struct{ Text string }

func (*stored) Run(smallben.CronJobInput) {}

// brittle is a job that no longer decodes once its key is in broken.
type brittle struct{ Key string }

var (
	broken     sync.Map // by key
	brittleKey atomic.Int64
)

func (brittle) Run(smallben.CronJobInput) {}

func (b brittle) GobEncode() ([]byte, error) { return []byte(b.Key), nil }

func (b *brittle) GobDecode(data []byte) error {
	b.Key = string(data)
	if _, found := broken.Load(b.Key); found {
		return errors.New("broken by the test")
	}
	return nil
}

func init() {
	gob.RegisterName("smallbentest.stored", &stored{})
	gob.RegisterName("smallbentest.brittle", brittle{})
}

// serialize returns the stored form of a job.
func serialize(job smallben.CronJob) string {
	var encoded bytes.Buffer
	if err := gob.NewEncoder(&encoded).Encode(&job); err != nil {
		panic(err)
	}
	return base64.StdEncoding.EncodeToString(encoded.Bytes())
}

// written is when the rows were written.
var written = time.Date(2024, 2, 29, 12, 34, 56, 789012000, time.UTC)

// row returns a row that decodes.
func row(id int64) smallben.RawJob {
	return smallben.RawJob{
		ID: id, GroupID: id % 5, SuperGroupID: id % 3, CronID: id%1000 + 1, CronExpression: "*/5 * * * *",
		CreatedAt: written, UpdatedAt: written.Add(time.Hour),
		SerializedJob: serialize(&stored{"five"}), SerializedJobInput: fmt.Sprintf(`{"id":%d}`, id),
	}
}

func rowsOf(ids ...int64) []smallben.RawJob {
	rows := make([]smallben.RawJob, len(ids))
	for i, id := range ids {
		rows[i] = row(id)
	}
	return rows
}

func idsOf(rows []smallben.RawJob) []int64 {
	ids := make([]int64, len(rows))
	for i := range rows {
		ids[i] = rows[i].ID
	}
	return ids
}

// jobs decodes rows, so that they can be stored.
func (c *contract) jobs(rows ...smallben.RawJob) []smallben.JobWithSchedule {
	c.Helper()
	jobs, err := decode(rows)
	c.succeeds(err)
	return jobs
}

func (c *contract) add(rows ...smallben.RawJob) {
	c.Helper()
	c.succeeds(c.AddJobs(c.jobs(rows...)))
}

func (c *contract) list() []smallben.RawJob {
	c.Helper()
	rows, err := c.ListJobs(nil)
	c.succeeds(err)
	return rows
}

// built returns the rows of jobs.
func (c *contract) built(jobs []smallben.JobWithSchedule) []smallben.RawJob {
	c.Helper()
	rows, problems := buildRows(jobs)
	c.succeeds(errors.Join(problems...))
	return rows
}

func (c *contract) succeeds(err error) {
	c.Helper()
	if err != nil {
		c.Fatalf("error: %v", err)
	}
}

func (c *contract) equal(want, got any) {
	c.Helper()
	if !reflect.DeepEqual(want, got) {
		c.Fatalf("want %+v\ngot  %+v", want, got)
	}
}

// wraps requires that err is target, and names all of the ids.
func (c *contract) wraps(err, target error, ids ...int64) {
	c.Helper()
	if !errors.Is(err, target) {
		c.Fatalf("want an error that wraps %q\ngot  %v", target, err)
	}
	for _, id := range ids {
		if !strings.Contains(err.Error(), fmt.Sprint(id)) {
			c.Fatalf("want an error that names %d\ngot  %v", id, err)
		}
	}
}

// jobErrors requires that every leaf of err is a JobError that wraps target, and
// that they are about these ids.
func (c *contract) jobErrors(err, target error, ids ...int64) {
	c.Helper()
	got, problem := leaves(err, target)
	slices.Sort(got)
	if problem != nil || !slices.Equal(ids, got) {
		c.Fatalf("want JobErrors of %v that wrap %q\ngot  %v", ids, target, err)
	}
}

func leaves(err, target error) (ids []int64, problem error) {
	switch e := err.(type) {
	case *smallben.JobError:
		if !errors.Is(e, target) {
			return nil, e
		}
		return []int64{e.JobID}, nil
	case interface{ Unwrap() []error }:
		for _, joined := range e.Unwrap() {
			more, leafProblem := leaves(joined, target)
			ids = append(ids, more...)
			problem = errors.Join(problem, leafProblem)
		}
		return ids, problem
	}
	return nil, fmt.Errorf("a leaf that is no JobError: %v", err)
}

// recent requires that a time was set by a call that began at start.
func (c *contract) recent(got, start time.Time) {
	c.Helper()
	if got.Location() != time.UTC || got.Nanosecond()%1000 != 0 {
		c.Fatalf("%v is not in UTC and exact to the microsecond", got)
	}
	if got.Before(start.Truncate(time.Microsecond)) || got.After(time.Now()) {
		c.Fatalf("%v is not between %v and now", got, start)
	}
}

func addedIsReadBack(c *contract) {
	rows := rowsOf(math.MinInt64, -1, 7, 1<<53+1, math.MaxInt64)
	for i := range rows {
		rows[i].GroupID, rows[i].SuperGroupID = math.MaxInt64-int64(i), math.MinInt64+int64(i)
	}
	rows[0].CreatedAt, rows[0].UpdatedAt = time.Date(1, 2, 3, 4, 5, 6, 7000, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)
	rows[1].CronID, rows[1].Paused = smallben.DefaultCronID, true
	rows[2].CronExpression = "CRON_TZ=Europe/Rome 30 4 * * 1-5"
	rows[2].SerializedJobInput = `{"to":"naïve – ✓ \"quoted\" \\ {a,b}","null":null,"n":9007199254740993}`
	rows[3].SerializedJobInput = "{\n\t\"pretty\": [1, 2]\n}"
	rows[4].SerializedJobInput = "null"
	c.add(rows[3], rows[0], rows[4], rows[1], rows[2])

	c.equal(rows, c.list())
	jobs, err := c.GetJobsByIds([]int64{math.MaxInt64, -1, -1, math.MinInt64, 7, 1<<53 + 1})
	c.succeeds(err)
	c.equal(rows, c.built(jobs))
	jobs, err = c.GetAllJobsToExecute()
	c.succeeds(err)
	c.equal(append(rows[:1:1], rows[2:]...), c.built(jobs))
	for i, row := range rows {
		job, err := c.GetJob(row.ID)
		c.succeeds(err)
		c.equal(rows[i:i+1], c.built([]smallben.JobWithSchedule{job}))
	}
}

func timesInMicroseconds(c *contract) {
	row := row(1)
	row.CreatedAt = time.Date(2024, 6, 1, 1, 2, 3, 123456789, time.FixedZone("here", 5*3600+1800))
	row.UpdatedAt = row.CreatedAt.Add(time.Nanosecond)
	c.add(row)
	got := c.list()[0]
	c.equal(time.Date(2024, 5, 31, 19, 32, 3, 123456000, time.UTC), got.CreatedAt)
	c.equal(got.CreatedAt, got.UpdatedAt)
}

func zeroTimesBecomeNow(c *contract) {
	row := row(1)
	row.CreatedAt, row.UpdatedAt = time.Time{}, time.Time{}
	start := time.Now()
	c.add(row)
	got := c.list()[0]
	c.recent(got.CreatedAt, start)
	c.equal(got.CreatedAt, got.UpdatedAt)
}

func addNamesExistingIDs(c *contract) {
	present := rowsOf(3, 4, 5)
	c.add(present...)
	c.jobErrors(c.AddJobs(c.jobs(rowsOf(1, 5, 2, 2, 3, 6, 2)...)), smallben.ErrJobExists, 2, 3, 5)
	c.jobErrors(c.AddJobs(c.jobs(rowsOf(1, 4)...)), smallben.ErrJobExists, 4)
	c.jobErrors(c.AddJobs(c.jobs(rowsOf(8, 8)...)), smallben.ErrJobExists, 8)
	c.equal(present, c.list())
}

func addRefusesInvalidJobs(c *contract) {
	c.jobErrors(c.AddJobs(c.jobs(rowsOf(1, 0, 2)...)), smallben.ErrInvalidJob, 0)
	c.jobErrors(c.AddJobs([]smallben.JobWithSchedule{{}}), smallben.ErrInvalidJob, 0)
	c.equal(0, len(c.list()))
}

func pauseWritesItsColumns(c *contract) {
	rows := rowsOf(1, 2, 3)
	c.add(rows...)
	start := time.Now()
	c.succeeds(c.PauseJobs([]smallben.RawJob{{ID: 3, CronID: 77, CronExpression: "not read"}, {ID: 1}, {ID: 3}}))
	got := c.list()
	for _, i := range []int{0, 2} {
		c.recent(got[i].UpdatedAt, start)
		rows[i].Paused, rows[i].CronID, rows[i].UpdatedAt = true, smallben.DefaultCronID, got[i].UpdatedAt
	}
	c.equal(rows, got)
}

func resumeWritesItsColumns(c *contract) {
	rows := rowsOf(1, 2, 3)
	for i := range rows {
		rows[i].Paused, rows[i].CronID = true, smallben.DefaultCronID
	}
	c.add(rows...)
	resumed := row(2)
	resumed.CronID, resumed.GroupID, resumed.CronExpression, resumed.SerializedJobInput = 99, 12, "@daily", `{"not":"written"}`
	start := time.Now()
	c.succeeds(c.ResumeJobs(c.jobs(resumed, resumed)))
	got := c.list()
	c.recent(got[1].UpdatedAt, start)
	rows[1].Paused, rows[1].CronID, rows[1].UpdatedAt = false, 99, got[1].UpdatedAt
	c.equal(rows, got)
}

func setCronIDWritesNothingElse(c *contract) {
	rows := rowsOf(1, 2, 3)
	c.add(rows...)
	changed := rowsOf(3, 1)
	for i := range changed {
		changed[i].CronID = math.MaxInt32 - int64(i)
		changed[i].CronExpression, changed[i].SerializedJobInput, changed[i].UpdatedAt = "@daily", "{}", time.Time{}
	}
	c.succeeds(c.SetCronId(c.jobs(changed...)))
	rows[2].CronID, rows[0].CronID = math.MaxInt32, math.MaxInt32-1
	c.equal(rows, c.list())
}

func updateWritesItsColumns(c *contract) {
	rows := rowsOf(1, 2, 3)
	rows[2].Paused, rows[2].CronID = true, smallben.DefaultCronID
	c.add(rows...)
	changed := rowsOf(3, 1)
	changed[0].CronID, changed[0].CronExpression, changed[0].SerializedJobInput = smallben.DefaultCronID, "@daily", "null"
	changed[1].CronID, changed[1].CronExpression, changed[1].SerializedJobInput = 55, "CRON_TZ=Asia/Tokyo 1 2 * * *", "{\"a\":\"NULL, \\\"x\\\" {1}\",\n\"b\":[]}"
	for i := range changed {
		changed[i].GroupID, changed[i].Paused = 1234, true
	}
	start := time.Now()
	c.succeeds(c.SetCronIdAndChangeScheduleAndJobInput(c.jobs(changed...)))
	got := c.list()
	for i, from := range map[int]int{2: 0, 0: 1} {
		c.recent(got[i].UpdatedAt, start)
		rows[i].CronID, rows[i].CronExpression, rows[i].SerializedJobInput = changed[from].CronID, changed[from].CronExpression, changed[from].SerializedJobInput
		rows[i].UpdatedAt = got[i].UpdatedAt
	}
	c.equal(rows, got)
}

func deleteDeletesRows(c *contract) {
	rows := rowsOf(-1, 1, 2, 3)
	c.add(rows...)
	c.succeeds(c.DeleteJobsByIds([]int64{3, -1, 3}))
	c.equal(rows[1:3], c.list())
	c.add(row(3))
	c.equal(rows[1:], c.list())
}

func writesNameMissingIDs(c *contract) {
	c.add(rowsOf(1, 2, 3)...)
	changed := rowsOf(9, 2, -4, 9, 1)
	for i := range changed {
		changed[i].CronID = 4242
	}
	check := func(err error, isChanged func(row smallben.RawJob) bool) {
		c.Helper()
		c.wraps(err, c.ErrorTypeIfMismatchCount(), -4, 9)
		for _, row := range c.list() {
			if isChanged(row) != (row.ID != 3) {
				c.Fatalf("the row of job %d is %+v", row.ID, row)
			}
		}
	}
	check(c.SetCronId(c.jobs(changed...)), func(row smallben.RawJob) bool {
		return row.CronID == 4242 && row.UpdatedAt.Equal(written.Add(time.Hour))
	})
	check(c.PauseJobs(changed), func(row smallben.RawJob) bool { return row.Paused && row.CronID == smallben.DefaultCronID })
	check(c.ResumeJobs(c.jobs(changed...)), func(row smallben.RawJob) bool { return !row.Paused && row.CronID == 4242 })
	for i := range changed {
		changed[i].CronExpression = "@monthly"
	}
	check(c.SetCronIdAndChangeScheduleAndJobInput(c.jobs(changed...)), func(row smallben.RawJob) bool { return row.CronExpression == "@monthly" })
	c.wraps(c.DeleteJobsByIds([]int64{1, 2, -4, 9}), c.ErrorTypeIfMismatchCount(), -4, 9)
	c.equal([]int64{3}, idsOf(c.list()))
}

func readsNameMissingIDs(c *contract) {
	c.add(rowsOf(1, 2, 3)...)
	jobs, err := c.GetJobsByIds([]int64{3, 8, 1, 8})
	c.wraps(err, c.ErrorTypeIfMismatchCount(), 8)
	c.equal([]int64{1, 3}, idsOf(c.built(jobs)))

	rows, err := c.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{3, 8, 1, 8}})
	c.wraps(err, c.ErrorTypeIfMismatchCount(), 8)
	c.equal([]int64{1, 3}, idsOf(rows))

	_, err = c.GetJob(8)
	c.wraps(err, c.ErrorTypeIfMismatchCount(), 8)

	// With another filter no match is no error.
	rows, err = c.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{3, 8}, GroupIDs: []int64{3}})
	c.succeeds(err)
	c.equal([]int64{3}, idsOf(rows))
}

func emptyArguments(c *contract) {
	rows := rowsOf(1, 2)
	c.add(rows...)
	for _, jobs := range [][]smallben.JobWithSchedule{nil, {}} {
		c.succeeds(c.AddJobs(jobs))
		c.succeeds(c.ResumeJobs(jobs))
		c.succeeds(c.SetCronId(jobs))
		c.succeeds(c.SetCronIdAndChangeScheduleAndJobInput(jobs))
	}
	c.succeeds(c.PauseJobs(nil))
	c.succeeds(c.PauseJobs([]smallben.RawJob{}))
	for _, ids := range [][]int64{nil, {}} {
		c.succeeds(c.DeleteJobsByIds(ids))
		jobs, err := c.GetJobsByIds(ids)
		c.succeeds(err)
		c.equal(0, len(jobs))
	}
	c.equal(rows, c.list())
}

func listFilters(c *contract) {
	var rows []smallben.RawJob
	for id := int64(-20); id < 40; id++ {
		if id == 0 {
			continue
		}
		row := row(id)
		row.Paused = id%4 == 0
		rows = append(rows, row)
	}
	c.add(rows...)
	yes, no := true, false
	filters := [][]int64{nil, {}, {1}, {-3, 0, 1, 2, 2, 39}, {77}, {-20, -1, 4}}
	for _, paused := range []*bool{nil, &yes, &no} {
		for _, jobIDs := range filters {
			for _, groups := range filters {
				for _, superGroups := range filters {
					options := smallben.ListJobsOptions{JobIDs: jobIDs, GroupIDs: groups, SuperGroupIDs: superGroups, Paused: paused}
					want := []int64{}
					for _, row := range rows {
						if matches(options, row) {
							want = append(want, row.ID)
						}
					}
					got, err := c.ListJobs(&options)
					if !errors.Is(err, c.ErrorTypeIfMismatchCount()) {
						c.succeeds(err)
					}
					if !slices.Equal(want, idsOf(got)) {
						c.Fatalf("%+v: want jobs %v, got %v", options, want, idsOf(got))
					}
				}
			}
		}
	}
	for _, options := range []smallben.ToListOptions{
		nil, &smallben.ListJobsOptions{}, smallben.ListJobsOptions{}, &smallben.PauseResumeOptions{}, &smallben.DeleteOptions{}, (*smallben.DeleteOptions)(nil),
	} {
		got, err := c.ListJobs(options)
		c.succeeds(err)
		c.equal(rows, got)
	}
}

// matches reports whether a row matches every filter.
func matches(options smallben.ListJobsOptions, row smallben.RawJob) bool {
	in := func(filter []int64, id int64) bool { return filter == nil || slices.Contains(filter, id) }
	return in(options.JobIDs, row.ID) && in(options.GroupIDs, row.GroupID) && in(options.SuperGroupIDs, row.SuperGroupID) &&
		(options.Paused == nil || *options.Paused == row.Paused)
}

func undecodableRow(c *contract) {
	rows := rowsOf(1, 2, 3, 4, 5)
	var keys []string
	for _, i := range []int{1, 3} {
		key := fmt.Sprint("key ", brittleKey.Add(1))
		keys = append(keys, key)
		rows[i].SerializedJob = serialize(brittle{key})
	}
	rows[3].Paused = true
	c.add(rows...)
	for _, key := range keys {
		broken.Store(key, true)
	}
	c.equal(rows, c.list())
	jobs, err := c.GetAllJobsToExecute()
	c.jobErrors(err, smallben.ErrUndecodable, 2)
	c.equal([]int64{1, 3, 5}, idsOf(c.built(jobs)))

	jobs, err = c.GetJobsByIds([]int64{5, 4, 2})
	c.jobErrors(err, smallben.ErrUndecodable, 2, 4)
	c.equal([]int64{5}, idsOf(c.built(jobs)))
	jobs, err = c.GetJobsByIds([]int64{5, 4, 8})
	c.wraps(err, smallben.ErrUndecodable)
	c.wraps(err, c.ErrorTypeIfMismatchCount(), 8)
	c.equal([]int64{5}, idsOf(c.built(jobs)))
	_, err = c.GetJob(2)
	c.jobErrors(err, smallben.ErrUndecodable, 2)

	// It can be paused and deleted, and keeps what it holds.
	c.succeeds(c.PauseJobs(rows[1:2]))
	got := c.list()
	c.equal(true, got[1].Paused)
	c.equal(rows[1].SerializedJob, got[1].SerializedJob)
	c.succeeds(c.DeleteJobsByIds([]int64{2, 4}))
	c.equal([]int64{1, 3, 5}, idsOf(c.list()))
}

func callerOwnsValues(c *contract) {
	rows := rowsOf(1, 2)
	jobs := c.jobs(rows...)
	c.succeeds(c.AddJobs(jobs))
	clear(jobs)
	clear(c.list())
	c.equal(rows, c.list())
	ids := []int64{2, 1, 2, 1}
	_, err := c.GetJobsByIds(ids)
	c.succeeds(err)
	_, err = c.ListJobs(&smallben.ListJobsOptions{JobIDs: ids, GroupIDs: ids})
	c.succeeds(err)
	c.equal([]int64{2, 1, 2, 1}, ids)
	paused := rowsOf(2, 1, 2)
	c.succeeds(c.PauseJobs(paused))
	c.equal(rowsOf(2, 1, 2), paused)
	c.succeeds(c.DeleteJobsByIds(ids))
	c.equal([]int64{2, 1, 2, 1}, ids)
}

func mismatchErrorIsConstant(c *contract) {
	if c.ErrorTypeIfMismatchCount() == nil {
		c.Fatal("there is no mismatch error")
	}
	c.equal(c.ErrorTypeIfMismatchCount(), c.ErrorTypeIfMismatchCount())
}

// concurrentUse has writers of the same rows, each batch of which readers must see
// whole or not at all.
func concurrentUse(c *contract) {
	shared := rowsOf(1, 2, 3, 4)
	for i := range shared {
		shared[i].CronID = 7
	}
	c.add(shared...)
	var writers, readers sync.WaitGroup
	var done atomic.Bool
	check := func(err error) {
		if err != nil {
			c.Errorf("error: %v", err)
		}
	}
	for w := range int64(4) {
		writers.Go(func() {
			for i := range int64(8) {
				batch := rowsOf(100+w*100+i, 1000+w*100+i)
				resumed := rowsOf(4, 3, 2, 1)
				for j := range resumed {
					resumed[j].CronID = w + 1
				}
				added, addProblem := decode(batch)
				resume, resumeProblem := decode(resumed)
				check(errors.Join(addProblem, resumeProblem))
				check(c.AddJobs(added))
				check(c.PauseJobs(resumed))
				check(c.ResumeJobs(resume))
				check(c.DeleteJobsByIds(idsOf(batch)))
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			for !done.Load() && !c.Failed() {
				check(c.seesWholeBatches())
			}
		})
	}
	writers.Wait()
	done.Store(true)
	readers.Wait()
	c.equal([]int64{1, 2, 3, 4}, idsOf(c.list()))
}

// seesWholeBatches reads while the writers of concurrentUse write.
func (c *contract) seesWholeBatches() error {
	rows, err := c.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{1, 2, 3, 4}})
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row.Paused != rows[0].Paused || row.CronID != rows[0].CronID {
			return fmt.Errorf("half a batch was written: %+v", rows)
		}
	}
	jobs, err := c.GetAllJobsToExecute()
	if err != nil {
		return err
	}
	executed, problems := buildRows(jobs)
	running := 0
	for _, row := range executed {
		if row.ID <= 4 {
			running++
		}
	}
	if running%4 != 0 || (len(executed)-running)%2 != 0 {
		return fmt.Errorf("half a batch was read: %v", idsOf(executed))
	}
	return errors.Join(problems...)
}

func concurrentAdds(c *contract) {
	var group sync.WaitGroup
	var added atomic.Int64
	for i := range int64(8) {
		jobs := c.jobs(rowsOf(42, 100+i)...)
		group.Go(func() {
			err := c.AddJobs(jobs)
			if err == nil {
				added.Add(1)
				return
			}
			if ids, problem := leaves(err, smallben.ErrJobExists); problem != nil || !slices.Equal(ids, []int64{42}) {
				c.Errorf("want a JobError of 42 that wraps %q\ngot  %v", smallben.ErrJobExists, err)
			}
		})
	}
	group.Wait()
	c.equal(int64(1), added.Load())
	c.equal(2, len(c.list()))
}

func largeBatch(c *contract) {
	const n = 2000
	rows, ids := make([]smallben.RawJob, n), make([]int64, n)
	for i := range rows {
		ids[i] = int64(i + 1)
		rows[i] = row(ids[i])
	}
	jobs := c.jobs(rows...)
	c.succeeds(c.AddJobs(jobs[n-1:]))
	c.jobErrors(c.AddJobs(jobs), smallben.ErrJobExists, n)
	c.equal(1, len(c.list()))
	c.succeeds(c.DeleteJobsByIds(ids[n-1:]))

	c.succeeds(c.AddJobs(jobs))
	c.succeeds(c.PauseJobs(rows))
	c.succeeds(c.ResumeJobs(jobs))
	c.succeeds(c.SetCronId(jobs))
	c.succeeds(c.SetCronIdAndChangeScheduleAndJobInput(jobs))
	no := false
	got, err := c.ListJobs(&smallben.ListJobsOptions{JobIDs: ids, Paused: &no})
	c.succeeds(err)
	c.equal(ids, idsOf(got))
	c.wraps(c.DeleteJobsByIds(append(ids[:n-1:n-1], -1)), c.ErrorTypeIfMismatchCount(), -1)
	c.equal(ids[n-1:], idsOf(c.list()))
}

func largeRows(c *contract) {
	rows := rowsOf(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	for i := range rows {
		rows[i].SerializedJobInput = `{"a":"` + strings.Repeat(`\"`, 500_000) + `"}`
	}
	check := func(err error) {
		c.Helper()
		c.succeeds(err)
		got := c.list()
		c.equal(idsOf(rows), idsOf(got))
		for i := range got {
			if got[i].SerializedJobInput != rows[i].SerializedJobInput {
				c.Fatalf("job %d has another input of %d bytes", rows[i].ID, len(got[i].SerializedJobInput))
			}
		}
	}
	jobs := c.jobs(rows...)
	check(c.AddJobs(jobs))
	check(c.SetCronIdAndChangeScheduleAndJobInput(jobs))
}

func upsert(c *contract) {
	upserter, ok := c.Repository.(smallben.Upserter)
	if !ok {
		c.Skip("the repository is no smallben.Upserter")
	}
	rows := rowsOf(1, 2, 3)
	rows[1].Paused = true
	c.add(rows...)
	changed := row(2)
	changed.GroupID, changed.SuperGroupID, changed.CronID, changed.CreatedAt = math.MinInt64, math.MaxInt64, smallben.DefaultCronID, time.Time{}
	changed.CronExpression, changed.SerializedJob, changed.SerializedJobInput = "@daily", serialize(&stored{"six"}), "null"
	start := time.Now()
	c.succeeds(upserter.UpsertJobs(nil, c.jobs(changed)))
	got := c.list()
	c.recent(got[1].UpdatedAt, start)
	changed.Paused, changed.CreatedAt, changed.UpdatedAt = true, rows[1].CreatedAt, got[1].UpdatedAt
	c.equal([]smallben.RawJob{rows[0], changed, rows[2]}, got)

	// Together with an id that exists, nothing happens.
	c.jobErrors(upserter.UpsertJobs(c.jobs(rowsOf(4, 3)...), c.jobs(row(2))), smallben.ErrJobExists, 3)
	c.equal(got, c.list())
	// A missing one is reported after the rest happened.
	c.wraps(upserter.UpsertJobs(c.jobs(row(4)), c.jobs(rowsOf(2, 9)...)), c.ErrorTypeIfMismatchCount(), 9)
	after := c.list()
	c.equal([]int64{1, 2, 3, 4}, idsOf(after))
	c.equal(row(2).CronExpression, after[1].CronExpression)
	c.succeeds(upserter.UpsertJobs(nil, nil))
	c.equal(after, c.list())
}

func listAfter(c *contract) {
	pager, ok := c.Repository.(smallben.Pager)
	if !ok {
		c.Skip("the repository is no smallben.Pager")
	}
	rows := rowsOf(-5, -4, 1, 2, 3, 6, 7, 8, 9)
	for i := range rows {
		rows[i].Paused = rows[i].ID%2 != 0
	}
	c.add(rows...)
	yes, no := true, false
	for _, options := range []smallben.ListJobsOptions{
		{}, {Paused: &yes}, {GroupIDs: []int64{1, 2}}, {JobIDs: []int64{9, 8, 2, -5, 77}},
		{SuperGroupIDs: []int64{0, -1}, Paused: &no}, {JobIDs: []int64{}},
	} {
		want := []int64{}
		for _, row := range rows {
			if matches(options, row) {
				want = append(want, row.ID)
			}
		}
		for limit := 1; limit <= len(rows)+1; limit++ {
			got := []int64{}
			var after *int64
			for {
				page, err := pager.ListJobsAfter(options, after, limit)
				c.succeeds(err)
				got = append(got, idsOf(page)...)
				if len(page) < limit {
					break
				}
				after = &page[len(page)-1].ID
			}
			c.equal(want, got)
		}
	}
}

func scheduler(c *contract) {
	s := smallben.New(c.Repository, &smallben.Config{Logger: funcr.New(func(_, line string) { c.Log(line) }, funcr.Options{})})
	c.Cleanup(s.Stop)
	c.succeeds(s.Start())
	for id := int64(1); id <= 5; id++ {
		c.succeeds(s.AddJobs([]smallben.Job{{ID: id, GroupID: id % 2, CronExpression: "@yearly", Job: &stored{"five"}, JobInput: map[string]any{"id": id}}}))
	}
	expression := "@monthly"
	c.succeeds(s.PauseJobs(&smallben.PauseResumeOptions{GroupIDs: []int64{1}}))
	c.succeeds(s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{3}}))
	c.succeeds(s.UpdateJobs([]smallben.UpdateOption{{JobID: 4, CronExpression: &expression}}))
	c.succeeds(s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{5}}}))
	c.wraps(s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{99}}), c.ErrorTypeIfMismatchCount(), 99)
	c.wraps(s.AddJobs([]smallben.Job{{ID: 1, CronExpression: "@daily", Job: &stored{}}}), smallben.ErrJobExists, 1)

	rows := c.list()
	c.equal([]int64{1, 2, 3, 4}, idsOf(rows))
	cronIDs := make(map[int64]bool)
	for _, row := range rows {
		c.equal(row.ID == 1, row.Paused)
		c.equal(row.Paused, row.CronID == smallben.DefaultCronID)
		cronIDs[row.CronID] = true
	}
	c.equal(len(rows), len(cronIDs))
	c.equal("@monthly", rows[3].CronExpression)
	s.Stop()
	c.succeeds(s.Start())
	c.equal(rows, c.list())
}

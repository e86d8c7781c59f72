package smallben_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
)

func TestListJobsReturnsWhatItFoundWithTheMismatchError(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(5, "@daily", idle()), job(-3, "@daily", idle()), job(math.MaxInt64, "@daily", idle()), job(math.MinInt64, "@daily", idle())}))
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, []int64{math.MinInt64, -3, 5, math.MaxInt64}, ids(jobs))
		jobs, err = s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{7, 5, 5, -3}})
		assert.ErrorIs(t, err, s.ErrorTypeIfMismatchCount())
		assert.ErrorContains(t, err, "7")
		assert.Equal(t, []int64{-3, 5}, ids(jobs))
		jobs, err = s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{7, 5}, Paused: ptr(false)})
		assert.NoError(t, err)
		assert.Equal(t, []int64{5}, ids(jobs))
	})
}

// blocking holds a method of a repository up.
type blocking struct {
	smallben.Repository
	reached, release chan struct{}
}

func (b *blocking) AddJobs(jobs []smallben.JobWithSchedule) error {
	close(b.reached)
	<-b.release
	return b.Repository.AddJobs(jobs)
}

func TestListJobsAndScrapesDoNotWaitForAChange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := &blocking{newMemoryRepository(), make(chan struct{}), make(chan struct{})}
		s := started(t, repository, smallben.SchedulerConfig{})
		added := make(chan error)
		go func() { added <- s.AddJobs([]smallben.Job{job(1, "@daily", idle())}) }()
		<-repository.reached
		jobs, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Empty(t, jobs)
		assert.Zero(t, gauges(t, s)["smallben_scheduler_jobs_total"])
		close(repository.release)
		require.NoError(t, <-added)
		assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_jobs_total"])
	})
}

func TestJobsAfterYieldsPagesByKey(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		require.NoError(t, repository.AddJobs(withSchedule(t, rawJobs(-7, 1, 2, 3, 4, 5, 6, 7, 8, 9)...)))
		s := create(t, repository, &smallben.Config{Logger: quiet})
		ids := func(options *smallben.ListJobsOptions, after *int64, limit int) (ids []int64) {
			for job, err := range s.JobsAfter(options, after, limit, 0) {
				require.NoError(t, err)
				ids = append(ids, job.ID)
			}
			return ids
		}
		four := int64(4)
		require.Equal(t, []int64{-7, 1, 2}, ids(nil, nil, 3))
		require.Equal(t, []int64{5, 6, 7}, ids(nil, &four, 3))
		require.Equal(t, []int64{5, 6, 7, 8, 9}, ids(nil, &four, 100))
		require.Equal(t, []int64{6}, ids(&smallben.ListJobsOptions{GroupIDs: []int64{1}}, &four, 100))
		require.Equal(t, []int64{8}, ids(&smallben.ListJobsOptions{JobIDs: []int64{1, 8, 99}}, &four, 100), "an id that does not exist is no error")
		for _, c := range []struct{ limit, runs int }{{0, 0}, {1, -1}} {
			for _, err := range s.JobsAfter(nil, nil, c.limit, c.runs) {
				require.ErrorContains(t, err, "list: ")
			}
		}
	})
}

func TestJobsAfterYieldsTheRowsThatDoNotDecodeInTheirPlace(t *testing.T) {
	eachStore(t, func(t *testing.T, repository store) {
		repository.add(t, rawJobs(1, 3, 4)...)
		broken := rawJob(2)
		broken.SerializedJob = "no base64"
		repository.put(t, broken)
		s := create(t, repository, &smallben.Config{Logger: quiet})
		var got []string
		for job, err := range s.JobsAfter(nil, nil, 3, 0) {
			got = append(got, fmt.Sprint(job.ID, " ", errors.Is(err, smallben.ErrUndecodable)))
		}
		require.Equal(t, []string{"1 false", "2 true", "3 false"}, got, "a row that does not decode counts for the page")
	})
}

func TestTheInputOfAListedJobIsReadExactly(t *testing.T) {
	t.Parallel()
	s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
	const large = int64(1)<<53 + 1
	require.NoError(t, s.AddJobs([]smallben.Job{{ID: 1, CronExpression: "@daily", Job: newProbe(nil), JobInput: map[string]any{"n": large}}}))
	jobs, err := s.ListJobs(nil)
	require.NoError(t, err)
	var stored json.RawMessage
	require.NoError(t, jobs[0].DecodeInput(&stored))
	require.Equal(t, `{"n":9007199254740993}`, string(stored))
	require.Error(t, (&smallben.Job{ID: 2}).DecodeInput(&stored), "a Job that was not listed")
}

func TestJobIDsAreThoseOfTheJobsThatMatch(t *testing.T) {
	eachStore(t, func(t *testing.T, repository store) {
		repository.add(t, rawJobs(1, 3, 4, 9)...)
		broken := rawJob(6)
		broken.SerializedJob = "no base64"
		repository.put(t, broken)
		s := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{3, 6}}))
		for _, c := range []struct {
			options *smallben.ListJobsOptions
			want    []int64
		}{
			{nil, []int64{1, 3, 4, 6, 9}},
			{&smallben.ListJobsOptions{Paused: ptr(true)}, []int64{3, 6}},
			{&smallben.ListJobsOptions{GroupIDs: []int64{1, 4}, Paused: ptr(false)}, []int64{1, 4, 9}},
			{&smallben.ListJobsOptions{SuperGroupIDs: []int64{0}, GroupIDs: []int64{4}}, []int64{9}},
			{&smallben.ListJobsOptions{JobIDs: []int64{9, 5, 1}}, []int64{1, 9}},
			{&smallben.ListJobsOptions{JobIDs: []int64{}}, nil},
		} {
			ids, err := s.JobIDs(c.options)
			require.NoError(t, err)
			require.Equal(t, c.want, slices.Clone(append([]int64(nil), ids...)), "%v", c.options)
		}
	})
}

// putRuns stores runs of a job at ticks every step from first on, with outcomes in
// turn.
func putRuns(t testing.TB, db *database, jobID int64, first time.Time, step time.Duration, outcomes ...smallben.Outcome) {
	t.Helper()
	for i, outcome := range outcomes {
		tick := first.Add(time.Duration(i) * step).UnixMicro()
		missed := 0
		if outcome == smallben.OutcomeMissed {
			missed = 3
		}
		db.exec(t, fmt.Sprintf(`INSERT INTO smallben_runs (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, exclusive)
VALUES (%d, %d, false, 1, 0, 0, 'host/1/abc', '%s', %d, %d, '', %d, false)`, jobID, tick, outcome, tick, tick+1, missed))
	}
}

// TestAPageOfJobsComesWithWhatItShows: the newest runs of each job, the last that ran
// and what waits, in one call.
func TestAPageOfJobsComesWithWhatItShows(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		s := create(t, db.open(t), recordingConfig())
		_, err := s.ListRuns(nil)
		require.NoError(t, err)
		start := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
		const ok, failed, missed, skipped = smallben.OutcomeOK, smallben.OutcomeError, smallben.OutcomeMissed, smallben.OutcomeSkipped
		rows := rawJobs(1, 2, 3, 4, 5)
		for i := range rows {
			rows[i].CreatedAt = start.Add(-2 * time.Hour)
		}
		rows[2].CreatedAt = start.Add(90 * time.Minute)
		rows[3].SerializedJob = "no base64"
		for _, row := range rows {
			db.put(t, row)
		}
		putRuns(t, db, 1, start, time.Second, ok, ok, ok, failed, ok, failed)
		putRuns(t, db, 2, start.Add(-time.Hour), time.Minute, ok, failed, missed, skipped, skipped, missed)
		putRuns(t, db, 3, start, time.Hour, failed, failed, ok) // two of them of another job that had the id
		putRuns(t, db, 4, start, time.Second, failed)
		db.exec(t, fmt.Sprintf(`INSERT INTO smallben_runs (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, exclusive, due_at)
VALUES (2, %d, false, 2, 0, 0, '', 'waiting', 0, NULL, '', 0, false, %d)`, start.Add(-59*time.Minute).UnixMicro(), start.UnixMicro()))
		db.exec(t, "UPDATE smallben_runs SET outcome = 'running', ended_at = NULL WHERE job_id = 1 AND tick = "+fmt.Sprint(start.Add(5*time.Second).UnixMicro()))

		describe := func(run smallben.Run) string { return run.Tick.Format(time.TimeOnly) + " " + string(run.Outcome) }
		for _, runs := range []int{3, 0} {
			type shown struct {
				recent  []string
				last    string
				running bool
				next    string
			}
			got := make(map[int64]shown)
			for job, err := range s.JobsAfter(nil, nil, 10, runs) {
				if job.ID == 4 {
					require.ErrorIs(t, err, smallben.ErrUndecodable)
				} else {
					require.NoError(t, err)
				}
				this := shown{last: describe(job.LastRun()), running: job.Running(), next: describe(job.NextAttempt())}
				for _, run := range job.RecentRuns() {
					this.recent = append(this.recent, describe(run))
				}
				got[job.ID] = this
			}
			want := map[int64]shown{
				1: {[]string{"10:00:03 error", "10:00:04 ok", "10:00:05 running"}, "10:00:05 running", true, "00:00:00 "},
				2: {[]string{"09:01:00 error", "09:01:00 waiting", "09:03:00 skipped", "09:04:00 skipped", "09:05:00 missed"}, "09:01:00 error", false, "09:01:00 waiting"},
				3: {[]string{"12:00:00 ok"}, "12:00:00 ok", false, "00:00:00 "},
				4: {[]string{"10:00:00 error"}, "10:00:00 error", false, "00:00:00 "},
				5: {nil, "00:00:00 ", false, "00:00:00 "},
			}
			if runs == 0 {
				for id, of := range want {
					of.recent = nil
					want[id] = of
				}
			}
			require.Equal(t, want, got, "%d runs", runs)
		}
		jobs, err := s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{2}})
		require.NoError(t, err)
		require.Equal(t, "09:01:00 waiting", describe(jobs[0].NextAttempt()), "ListJobs tells it, too")
	})
}

func TestAllRunsOfOneTickAreListedPageByPage(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		s := create(t, db.open(t), recordingConfig())
		_, err := s.ListRuns(nil)
		require.NoError(t, err)
		const runs = 2_500
		tick := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
		var values []string
		for id := range runs {
			values = append(values, fmt.Sprintf("(%d, %d, false, 1, 0, 0, 'host/1/abc', 'ok', 0, 1, '', 0, false)", id+1, tick.UnixMicro()))
		}
		db.exec(t, "INSERT INTO smallben_runs (job_id, tick, triggered, attempt, group_id, super_group_id, process, outcome, started_at, ended_at, error, missed, exclusive) VALUES "+
			strings.Join(values, ", "))
		var options smallben.ListRunsOptions // a page of a thousand
		var pages, ids []int64
		for {
			page, err := s.ListRuns(&options)
			require.NoError(t, err)
			if len(page) == 0 {
				break
			}
			pages = append(pages, int64(len(page)))
			for i := range page {
				ids = append(ids, page[i].JobID)
			}
			options.After = &page[len(page)-1]
		}
		require.Equal(t, []int64{1000, 1000, 500}, pages)
		slices.Reverse(ids)
		for i, id := range ids {
			require.EqualValues(t, i+1, id)
		}
	})
}

func TestCountRunsCountsByStepAndOutcome(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		s := create(t, db.open(t), recordingConfig())
		_, _, err := s.CountRuns(past, time.Minute, 10)
		require.NoError(t, err)
		start := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
		ok, failed, missed := smallben.OutcomeOK, smallben.OutcomeError, smallben.OutcomeMissed
		putRuns(t, db, 1, start.Add(-30*time.Second), 30*time.Second, ok, ok, ok, failed, missed)

		counts, since, err := s.CountRuns(start, time.Minute, 100)
		require.NoError(t, err)
		require.Equal(t, []smallben.RunCount{
			{From: start, Outcome: ok, Count: 2},
			{From: start.Add(time.Minute), Outcome: failed, Count: 1},
			{From: start.Add(time.Minute), Outcome: missed, Count: 3},
		}, counts, "an entry for missed ticks counts as many as it stands for")
		require.Equal(t, start, since)

		counts, since, err = s.CountRuns(start, time.Minute, 2)
		require.NoError(t, err)
		require.Equal(t, []smallben.RunCount{
			{From: start.Add(time.Minute), Outcome: failed, Count: 1},
			{From: start.Add(time.Minute), Outcome: missed, Count: 3},
		}, counts)
		require.Equal(t, start.Add(time.Minute), since, "older ones are not counted")
	})
}

func TestRunsThatAreNotRecordedAreNotCounted(t *testing.T) {
	t.Parallel()
	s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
	_, _, err := s.CountRuns(past, time.Minute, 3)
	require.ErrorContains(t, err, "runs are not recorded")
}

func TestStatusTellsWhatThisInstanceKnows(t *testing.T) {
	t.Parallel()
	repository := newMemoryRepository()
	running, release := make(chan struct{}), make(chan struct{})
	block := newProbe(func(*probe, smallben.CronJobInput) { close(running); <-release })
	broken := rawJob(8)
	broken.SerializedJobInput = "{"
	repository.Put(broken, rawJob(9))
	s := create(t, repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}})
	require.False(t, s.Status().Started)
	require.NoError(t, s.Start())
	require.NoError(t, s.AddJobs([]smallben.Job{{ID: 5, CronExpression: "@yearly", Job: block}}))
	require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{9}}))
	require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{5}}))
	<-running
	status := s.Status()
	require.Equal(t, smallben.Status{
		Started:         true,
		SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true, WithLocation: time.Local},
		Scheduled:       1, Paused: 1, Undecodable: []int64{8}, Running: []int64{5},
	}, status)
	close(release)
}

func TestJobsWalksThemAllInOrder(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := create(t, repository, &smallben.Config{Logger: quiet})
		var all []smallben.Job
		for id := int64(-1200); id < 1200; id++ {
			if id != 0 {
				all = append(all, job(id, "@daily", valueJob{N: int(id)}))
			}
		}
		require.NoError(t, s.AddJobs(all))
		walk := func(s *smallben.SmallBen, options *smallben.ListJobsOptions) (walked []int64) {
			for j, err := range s.Jobs(options) {
				require.NoError(t, err)
				assert.EqualValues(t, j.ID, j.Job.(valueJob).N)
				walked = append(walked, j.ID)
			}
			return walked
		}
		assert.Equal(t, ids(all), walk(s, nil))
		odd := &smallben.ListJobsOptions{GroupIDs: []int64{1, 3, 5, 7, 9}}
		listed, err := s.ListJobs(odd)
		require.NoError(t, err)
		assert.Equal(t, ids(listed), walk(s, odd))
		assert.Equal(t, []int64{5}, walk(s, &smallben.ListJobsOptions{JobIDs: []int64{5, 5000}}))
		plain := create(t, struct{ smallben.Repository }{repository}, &smallben.Config{Logger: quiet})
		assert.Equal(t, ids(all), walk(plain, nil), "without a Pager")
		for j := range s.Jobs(nil) {
			assert.EqualValues(t, -1200, j.ID)
			break
		}
	})
}

func TestJobsYieldsTheErrorsOfRowsThatDoNotDecode(t *testing.T) {
	t.Parallel()
	repository := newFailing(newMemoryRepository())
	s := create(t, repository, &smallben.Config{Logger: quiet})
	require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(3, "@daily", idle())}))
	repository.Repository.(*memoryRepository).Put(smallben.RawJob{ID: 2, CronExpression: "@daily", SerializedJob: "rotten"})
	var seen []string
	for j, err := range s.Jobs(nil) {
		seen = append(seen, fmt.Sprint(j.ID, errors.Is(err, smallben.ErrUndecodable)))
	}
	assert.Equal(t, []string{"1 false", "2 true", "3 false"}, seen)
	repository.fail("ListJobs", errDown)
	for _, err := range s.Jobs(nil) {
		assert.ErrorIs(t, err, errDown)
	}
}

package smallben_test

import (
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/testkit"
)

var (
	_ smallben.Upserter = (*memoryRepository)(nil)
	_ smallben.Pager    = (*memoryRepository)(nil)
)

func (m *memoryRepository) UpsertJobs(add, replace []smallben.JobWithSchedule) error {
	rows, problems := buildRows(replace)
	if err := errors.Join(problems...); err != nil {
		return err
	}
	if err := m.AddJobs(add); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var missing []int64
	for _, row := range rows {
		old, ok := m.rows[row.ID]
		if !ok {
			missing = append(missing, row.ID)
			continue
		}
		row.Paused, row.CreatedAt, row.UpdatedAt = old.Paused, old.CreatedAt, storedNow()
		m.rows[row.ID] = row
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %v", errNoSuchJob, missing)
	}
	return nil
}

func (m *memoryRepository) ListJobsAfter(options smallben.ToListOptions, after *int64, limit int) ([]smallben.RawJob, error) {
	rows, err := m.ListJobs(options)
	if err != nil && !errors.Is(err, errNoSuchJob) {
		return nil, err
	}
	for after != nil && len(rows) > 0 && rows[0].ID <= *after {
		rows = rows[1:]
	}
	return rows[:min(limit, len(rows))], nil
}

// mapJob has a gob whose bytes differ from one encoding to the next.
type mapJob struct{ Texts map[string]string }

func (*mapJob) Run(smallben.CronJobInput) {}

func init() { gob.Register(&mapJob{}) }

func TestUpsertJobsAddsReplacesAndLeavesAlone(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		texts := make(map[string]string)
		for i := range 20 {
			texts[fmt.Sprint(i)] = "text"
		}
		base := func() []smallben.Job {
			var jobs []smallben.Job
			for id := int64(1); id <= 7; id++ {
				j := job(id, "@daily", &mapJob{texts})
				j.JobInput = map[string]any{"id": id}
				jobs = append(jobs, j)
			}
			return jobs
		}
		require.NoError(t, s.UpsertJobs(base()))
		checkInvariant(t, s, repository)
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{6, 7}}))
		before, err := repository.ListJobs(nil)
		require.NoError(t, err)
		require.Len(t, before, 7)

		for range 3 {
			require.NoError(t, s.UpsertJobs(base()))
		}
		after, err := repository.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, before, after, "a row that needs no change is not written")

		jobs := append(base(), job(8, "@daily", idle()))
		jobs[0].CronExpression = "@hourly"
		jobs[1].GroupID = 77
		jobs[2].SuperGroupID = 78
		jobs[3].Job = idle()
		jobs[4].JobInput = map[string]any{"id": "five"}
		jobs[5].CronExpression = "@weekly" // of a paused one
		require.NoError(t, s.UpsertJobs(jobs))
		checkInvariant(t, s, repository)
		after, err = repository.ListJobs(nil)
		require.NoError(t, err)
		require.Len(t, after, 8)
		for i, row := range after[:7] {
			assert.Equal(t, before[i].CreatedAt, row.CreatedAt)
			assert.Equal(t, before[i].Paused, row.Paused)
			assert.Equal(t, i < 6, row.UpdatedAt.After(before[i].UpdatedAt), "job %d", row.ID)
		}
		assert.Equal(t, before[6], after[6])
		listed, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, []string{"@hourly", "@daily", "@daily", "@daily", "@daily", "@weekly", "@daily", "@daily"}, expressions(listed))
		assert.EqualValues(t, 77, listed[1].GroupID)
		assert.EqualValues(t, 78, listed[2].SuperGroupID)
		assert.IsType(t, &probe{}, listed[3].Job)
		assert.Equal(t, map[string]any{"id": "five"}, listed[4].JobInput)
	})
}

func expressions(jobs []smallben.Job) []string {
	out := make([]string, len(jobs))
	for i := range jobs {
		out[i] = jobs[i].CronExpression
	}
	return out
}

func TestUpsertJobsRefusesWhatAddJobsDoesAndChangesNothing(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		require.NoError(t, s.UpsertJobs(nil))
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
		before, err := repository.ListJobs(nil)
		require.NoError(t, err)
		good := job(1, "@hourly", idle())
		assert.ErrorIs(t, s.UpsertJobs([]smallben.Job{good, job(2, "nonsense", idle())}), smallben.ErrInvalidJob)
		err = s.UpsertJobs([]smallben.Job{good, job(2, "@daily", idle()), good})
		assert.ErrorIs(t, err, smallben.ErrJobExists)
		assert.ErrorContains(t, err, "upsert job 1: ")
		after, err := repository.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, before, after)
	})
}

func TestUpsertJobsKeepsThePhaseAndRunsTheValueGiven(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		first := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, first.AddJobs([]smallben.Job{job(1, "@every 10m", &probe{Key: "someone"})}))
		pass(3 * time.Minute)
		s := started(t, repository, smallben.SchedulerConfig{})
		var ran []*probe
		key := testkit.NewKey()
		testkit.SetProbe(key, func(p *probe, _ smallben.CronJobInput) { ran = append(ran, p) })
		given := &probe{Key: key}
		for range 4 {
			require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, "@every 10m", given)}))
			pass(5 * time.Minute)
		}
		require.Len(t, ran, 2, "at minutes 10 and 20")
		assert.Same(t, given, ran[0])
		assert.Same(t, given, ran[1])
	})
}

func TestUpsertJobsSeesAChangeInTheLastDigit(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		inputs := make(chan smallben.CronJobInput, 1)
		j := job(1, "@yearly", newProbe(func(_ *probe, input smallben.CronJobInput) { inputs <- input }))
		for _, n := range []int64{math.MaxInt64, math.MaxInt64 - 1} {
			j.JobInput = map[string]any{"n": n}
			require.NoError(t, s.UpsertJobs([]smallben.Job{j}))
			checkInvariant(t, s, repository)
			require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
			var got struct{ N int64 }
			require.NoError(t, (<-inputs).Decode(&got))
			assert.Equal(t, n, got.N)
		}
	})
}

func TestUpsertJobsReplacesARowThatDoesNotDecode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		repository.put(smallben.RawJob{ID: 5, CronExpression: "@daily", SerializedJob: "rotten", SerializedJobInput: "{}"})
		s := started(t, repository, smallben.SchedulerConfig{})
		assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_jobs_undecodable"])
		require.NoError(t, s.UpsertJobs([]smallben.Job{job(5, "@daily", idle())}))
		checkInvariant(t, s, repository)
		assert.Zero(t, gauges(t, s)["smallben_scheduler_jobs_undecodable"])
	})
}

func TestUpsertJobsThatFailsLeavesTheValuesThatRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := &failingUpserter{memoryRepository: newMemoryRepository()}
		s := started(t, repository, smallben.SchedulerConfig{})
		var ran []*probe
		key := testkit.NewKey()
		testkit.SetProbe(key, func(p *probe, _ smallben.CronJobInput) { ran = append(ran, p) })
		first, second := &probe{Key: key}, &probe{Key: key}
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", first), job(2, "@yearly", idle())}))
		repository.err = errDown
		require.ErrorIs(t, s.UpsertJobs([]smallben.Job{job(1, "@yearly", second), job(2, "@daily", idle())}), errDown)
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		synctest.Wait()
		require.Len(t, ran, 1)
		assert.Same(t, first, ran[0])
	})
}

// failingUpserter fails with err, before the write or after it.
type failingUpserter struct {
	*memoryRepository
	err   error
	after bool
}

func (r *failingUpserter) UpsertJobs(add, replace []smallben.JobWithSchedule) error {
	if r.after {
		if err := r.memoryRepository.UpsertJobs(add, replace); err != nil {
			return err
		}
	}
	if r.err != nil {
		return r.err
	}
	return r.memoryRepository.UpsertJobs(add, replace)
}

func TestAReplacementOfUnknownOutcomeThatHappenedRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := &failingUpserter{memoryRepository: newMemoryRepository(), err: smallben.ErrOutcomeUnknown, after: true}
		s := started(t, repository, smallben.SchedulerConfig{})
		before, after := newRecorder(), newRecorder()
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@yearly", before)}))
		require.ErrorIs(t, s.UpsertJobs([]smallben.Job{job(1, "@yearly", after)}), smallben.ErrOutcomeUnknown)
		pass(time.Second)
		require.NoError(t, s.TriggerJobs(&smallben.PauseResumeOptions{}))
		synctest.Wait()
		assert.Zero(t, before.count())
		assert.Equal(t, 1, after.count())
	})
}

func TestUpsertJobsDoesNotHideAColumnThatItCannotMend(t *testing.T) {
	t.Parallel()
	for _, column := range []string{"paused", "created_at", "cron_expression"} {
		t.Run(column, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "jobs.db")
			repository := openSQLite(t, path)
			s := started(t, repository, smallben.SchedulerConfig{})
			require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
			s.Stop()
			db, err := gorm.Open(sqlite.Open(path))
			require.NoError(t, err)
			require.NoError(t, db.Exec("UPDATE jobs SET "+column+" = x'ff' WHERE id = 1").Error)
			pool, err := db.DB()
			require.NoError(t, err)
			require.NoError(t, pool.Close())
			require.NoError(t, s.Start())
			assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_jobs_undecodable"])
			require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
			checkInvariant(t, s, repository)
			mended := column == "cron_expression"
			assert.Equal(t, mended, gauges(t, s)["smallben_scheduler_jobs_undecodable"] == 0)
		})
	}
}

func TestUpsertJobsNeedsAnUpserterToReplace(t *testing.T) {
	t.Parallel()
	repository := struct{ smallben.Repository }{newMemoryRepository()}
	s := started(t, repository, smallben.SchedulerConfig{})
	require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, "@daily", idle())}))
	require.NoError(t, s.UpsertJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
	assert.ErrorContains(t, s.UpsertJobs([]smallben.Job{job(1, "@hourly", idle())}), "cannot replace jobs")
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
	repository.Repository.(*memoryRepository).put(smallben.RawJob{ID: 2, CronExpression: "@daily", SerializedJob: "rotten"})
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

package smallben_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
	"github.com/nbena/smallben/internal/insides"
	"github.com/nbena/smallben/internal/pgtest"
	"github.com/nbena/smallben/internal/testkit"
)

// tardy is a Repository whose next delete has lost its reply, and happens later.
type tardy struct {
	*memoryRepository
	after time.Duration
	err   error // nil: a delete is as usual
}

func (r *tardy) DeleteJobsByIds(ids []int64) error {
	if r.err == nil {
		return r.memoryRepository.DeleteJobsByIds(ids)
	}
	time.AfterFunc(r.after, func() { _ = r.memoryRepository.DeleteJobsByIds(ids) })
	return fmt.Errorf("delete: %w", r.err)
}

// telling is an unknown outcome whose repository can be asked.
type telling struct{ known time.Time }

func (telling) Error() string            { return "the connection broke" }
func (telling) Unwrap() error            { return smallben.ErrOutcomeUnknown }
func (e telling) Settled() (bool, error) { return !time.Now().Before(e.known), nil }

func TestMemoryFollowsAWriteOfUnknownOutcomeThatHappensLater(t *testing.T) {
	for name, c := range map[string]struct {
		after time.Duration
		err   func() error
	}{
		"nobody can tell, soon":   {time.Second, func() error { return smallben.ErrOutcomeUnknown }},
		"nobody can tell, late":   {4 * time.Minute, func() error { return smallben.ErrOutcomeUnknown }},
		"the repository can tell": {time.Hour, func() error { return telling{time.Now().Add(time.Hour)} }},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				repository := &tardy{memoryRepository: newMemoryRepository(), after: c.after}
				s := create(t, repository, &smallben.Config{Logger: quiet, SchedulerConfig: smallben.SchedulerConfig{WithSeconds: true}})
				require.NoError(t, s.Start())
				runs := newRecorder()
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * * *", runs)}))
				pass(3 * time.Second)
				repository.err = c.err()
				require.ErrorIs(t, s.DeleteJobs(&smallben.DeleteOptions{}), smallben.ErrOutcomeUnknown)
				pass(c.after + time.Minute)
				require.Empty(t, list(t, repository))
				runs.runs()
				pass(time.Minute)
				assert.Zero(t, runs.count(), "runs of a job that is deleted")
			})
		})
	}
}

func TestAJobWhoseOutcomeNobodyCanTellMayBeChanged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := &tardy{memoryRepository: newMemoryRepository(), after: time.Hour, err: smallben.ErrOutcomeUnknown}
		s := create(t, repository, &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
		require.ErrorIs(t, s.DeleteJobs(&smallben.DeleteOptions{}), smallben.ErrOutcomeUnknown)
		pass(time.Second)
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{}))
	})
}

func TestPortableStatementsFollowACommitThatArrivesTooLate(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	require.NoError(t, testkit.OpenGorm(t, postgres.Open(dsn), 0).Close()) // creates the table
	proxy := pgtest.NewProxy(t, dsn)
	var repository *smallben.RepositoryGorm
	testkit.Enough(t, 2*time.Second, func(timeout time.Duration) (err error) {
		repository, err = smallben.NewPortableRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: postgres.Open(proxy.DSN()), Timeout: timeout})
		return err
	})
	t.Cleanup(func() { _ = repository.Close() })
	s := create(t, repository, &smallben.Config{Logger: quiet})
	testkit.InTime(t, s.Start)
	testkit.InTime(t, func() error { return s.AddJobs([]smallben.Job{job(1, "@yearly", idle())}) })
	proxy.HoldCommit(1500 * time.Millisecond)
	err := testkit.Patiently(func() error { return s.DeleteJobs(&smallben.DeleteOptions{}) })
	proxy.Pass()
	require.ErrorIs(t, err, smallben.ErrOutcomeUnknown)
	require.Eventually(t, func() bool { return len(insides.Entries(s)) == 0 }, time.Minute, 50*time.Millisecond)
	var rows []smallben.RawJob
	testkit.InTime(t, func() (err error) { rows, err = repository.ListJobs(nil); return err })
	require.Empty(t, rows)
}

func TestAProcessThatComesBackAfterManyChangesOfOthersMayChangeJobs(t *testing.T) {
	eachShared(t, func(t *testing.T, db *database) {
		faults := db.faults(t)
		t.Cleanup(func() { assert.NoError(t, faults.DB().Close()) })
		repository, _ := testkit.OpenHasty(t, db.dialectorOn(faults.DB()), 2*time.Second)
		a := create(t, repository, recordingConfig())
		b := create(t, db.open(t), recordingConfig())
		for _, s := range []*smallben.SmallBen{a, b} {
			testkit.InTime(t, s.Start)
		}
		testkit.InTime(t, func() error {
			return b.AddJobs([]smallben.Job{job(1, "@yearly", idle()), job(2, "@yearly", idle())})
		})
		away := false
		faults.FailWhen(func(op faultsql.Op) bool {
			away = away || op.Kind == faultsql.Commit
			return away
		}, faultsql.Fault{Mode: faultsql.After})
		err := testkit.Patiently(func() error { return a.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}) })
		require.ErrorIs(t, err, smallben.ErrOutcomeUnknown)
		for n := range 25 {
			testkit.InTime(t, func() error {
				return b.UpdateJobs([]smallben.UpdateOption{{JobID: 2, CronExpression: ptr(fmt.Sprintf("%d 0 0 1 1 *", n))}})
			})
		}
		faults.Heal()
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			assert.NoError(t, a.PauseJobs(&smallben.PauseResumeOptions{JobIDs: []int64{2}}))
		}, time.Minute, 50*time.Millisecond)
		require.Empty(t, insides.Entries(a))
	})
}

func TestEveryErrorAboutMissingIDsIsErrJobNotFound(t *testing.T) {
	eachStore(t, func(t *testing.T, st store) {
		s := create(t, st, &smallben.Config{Logger: quiet})
		require.NoError(t, s.Start())
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
		ids, expression := []int64{1, 2}, "@hourly"
		pause := &smallben.PauseResumeOptions{JobIDs: ids}
		_, listErr := s.ListJobs(&smallben.ListJobsOptions{JobIDs: ids})
		for name, err := range map[string]error{
			"list": listErr, "pause": s.PauseJobs(pause), "resume": s.ResumeJobs(pause), "trigger": s.TriggerJobs(pause),
			"delete": s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: *pause}),
			"update": s.UpdateJobs([]smallben.UpdateOption{{JobID: 2, CronExpression: &expression}}),
			"none":   s.PauseJobs(&smallben.PauseResumeOptions{GroupIDs: []int64{77}}),
		} {
			assert.ErrorIs(t, err, smallben.ErrJobNotFound, name)
			assert.ErrorIs(t, err, s.ErrorTypeIfMismatchCount(), name)
		}
	})
}

// vanishing is a Repository whose jobs vanish between a look and a write.
type vanishing struct{ *memoryRepository }

func (r vanishing) PauseJobs(jobs []smallben.RawJob) error {
	return errors.Join(r.DeleteJobsByIds([]int64{1}), r.memoryRepository.PauseJobs(jobs))
}

func TestAMismatchThatTheRepositoryFindsIsErrJobNotFound(t *testing.T) {
	t.Parallel()
	s := create(t, vanishing{newMemoryRepository()}, &smallben.Config{Logger: quiet})
	require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
	require.ErrorIs(t, s.PauseJobs(&smallben.PauseResumeOptions{}), smallben.ErrJobNotFound)
}

func TestTheRepositoryOfGORMSaysErrJobNotFound(t *testing.T) {
	eachStatements(t, func(t *testing.T, db *database) {
		repository := db.open(t)
		_, err := repository.GetJob(1)
		assert.ErrorIs(t, err, smallben.ErrJobNotFound)
		assert.ErrorIs(t, err, gorm.ErrRecordNotFound)
		assert.ErrorIs(t, repository.DeleteJobsByIds([]int64{1}), smallben.ErrJobNotFound)
	})
}

package smallben_test

import (
	"encoding/base64"
	"encoding/gob"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
)

// Rule 11.

func TestARunReceivesTheInputThatWasGivenWhateverItsTypes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		type named int
		pointer := &struct{ N int }{1}
		given := map[string]any{
			"nil": nil, "true": true, "text": "text", "broken text": "a\xffb", "<html>": "<b>&\u2028",
			"int": math.MaxInt, "int8": int8(-8), "int16": int16(-16), "int32": int32(-32), "int64": int64(math.MinInt64),
			"uint": uint(1), "uint8": uint8(8), "uint16": uint16(16), "uint32": uint32(32), "uint64": uint64(math.MaxUint64),
			"float32": float32(0.1), "float64": 0.1, "large": 1e300, "small": -5e-324,
			"named": named(7), "duration": time.Minute, "time": time.Now().Round(0), "pointer": pointer,
			"map": map[string]any{"n": 1}, "slice": []int{1, 2},
		}
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		runs := newRecorder()
		numbers := map[string]any{"to": "ops@example.com", "n": 1}
		one, two, three := job(1, "* * * * *", runs), job(2, "@yearly", idle()), job(3, "@yearly", idle())
		one.JobInput, two.JobInput = given, numbers
		require.NoError(t, s.AddJobs([]smallben.Job{one, two, three}))
		pass(time.Minute)
		inputs := runs.runs()
		require.Len(t, inputs, 1)
		assert.Equal(t, given, inputs[0].OtherInputs)
		assert.Same(t, pointer, inputs[0].OtherInputs["pointer"])
		for _, update := range []map[string]any{numbers, {}, nil, {"n": uint8(2)}, given} {
			require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &update}}))
			pass(time.Minute)
			inputs := runs.runs()
			require.Len(t, inputs, 1)
			assert.Equal(t, update, inputs[0].OtherInputs)
		}
	})
}

func TestInputsOfTheSameKeysKeepTheirOwnNumbers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		runs := newRecorder()
		var jobs []smallben.Job
		for id := range int64(20) {
			j := job(id+1, "* * * * *", runs)
			j.JobInput = map[string]any{"n": int(id), "a, \"b\" int": "text"}
			if id%2 == 1 {
				j.JobInput["n"] = id
			}
			jobs = append(jobs, j)
		}
		require.NoError(t, s.AddJobs(jobs))
		pass(time.Minute)
		for _, input := range runs.runs() {
			if input.JobID%2 == 0 {
				assert.Equal(t, input.JobID-1, input.OtherInputs["n"])
			} else {
				assert.Equal(t, int(input.JobID-1), input.OtherInputs["n"])
			}
		}
	})
}

func TestALoadedJobReceivesWhatItsRowDecodesTo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
		runs := newRecorder()
		one := job(1, "* * * * *", runs)
		one.JobInput = map[string]any{"n": 7, "of": []int{1}}
		two := job(2, "* * * * *", runs)
		require.NoError(t, s.AddJobs([]smallben.Job{one, two}))
		s.Stop()
		require.NoError(t, s.Start())
		require.NoError(t, s.PauseAll())
		require.NoError(t, s.ResumeAll())
		pass(time.Minute)
		for _, input := range runs.runs() {
			if input.JobID == 1 {
				assert.Equal(t, map[string]any{"n": 7.0, "of": []any{1.0}}, input.OtherInputs)
			} else {
				assert.Nil(t, input.OtherInputs)
			}
		}
	})
}

// syncJob is a job of which gob may lose something.
type syncJob struct {
	DryRun  *bool
	Steps   []syncStep
	Payload map[string]any
}

type syncStep struct{ Limit *int }

func (*syncJob) Run(smallben.CronJobInput) {}

// unknownPart is a type that is not registered with gob.
type unknownPart struct{ Text string }

// forgetfulJob has fields that gob drops.
type forgetfulJob struct {
	Text   string
	client *int
	Notify chan int
	Inner  struct {
		Note string
		done func()
	}
}

func (*forgetfulJob) Run(smallben.CronJobInput) {}

func init() {
	gob.Register(&syncJob{})
	gob.Register(&forgetfulJob{})
	gob.RegisterName("*before.Reminder", &renamedJob{})
	gob.RegisterName("*beside.Reminder", &twinOfRenamedJob{})
}

func TestAJobThatGobWouldNotGiveBackIsRefused(t *testing.T) {
	t.Parallel()
	no, zero := false, 0
	jobs := []smallben.Job{
		job(1, "@daily", idle()),
		job(2, "@daily", &syncJob{DryRun: &no}),
		job(3, "@daily", &syncJob{Steps: []syncStep{{}, {Limit: &zero}}}),
	}
	repository := newMemoryRepository()
	s := create(t, repository, &smallben.Config{Logger: quiet})
	for name, change := range map[string]func([]smallben.Job) error{"add": s.AddJobs, "upsert": s.UpsertJobs} {
		err := change(jobs)
		require.ErrorIs(t, err, smallben.ErrInvalidJob, name)
		assert.ErrorContains(t, err, "job 2: invalid job: gob would not give back the job as it is: field DryRun")
		assert.ErrorContains(t, err, "job 3: invalid job: gob would not give back the job as it is: field Steps[1].Limit")
		assert.NotContains(t, err.Error(), "job 1")
	}
	stored, err := s.ListJobs(nil)
	require.NoError(t, err)
	assert.Empty(t, stored, "nothing of a batch with such a job is stored")

	yes, one := true, 1
	require.NoError(t, s.AddJobs([]smallben.Job{job(2, "@daily", &syncJob{DryRun: &yes, Steps: []syncStep{{Limit: &one}}})}))
}

func TestTheErrorNamesTheTypeInsideAJobThatIsNotRegistered(t *testing.T) {
	t.Parallel()
	s := create(t, newMemoryRepository(), &smallben.Config{Logger: quiet})
	for says, payload := range map[string]map[string]any{
		`the type smallben_test.unknownPart in field Payload["part"] is unknown to gob: call gob.Register(smallben_test.unknownPart{}) first`:   {"part": unknownPart{}},
		`the type *smallben_test.unknownPart in field Payload["part"] is unknown to gob: call gob.Register(&smallben_test.unknownPart{}) first`: {"part": &unknownPart{}},
		`the type []smallben_test.syncStep in field Payload["steps"] is unknown to gob: call gob.Register([]smallben_test.syncStep{}) first`:    {"steps": []syncStep{{}}},
	} {
		err := s.AddJobs([]smallben.Job{job(7, "@daily", &syncJob{Payload: payload})})
		require.ErrorIs(t, err, smallben.ErrInvalidJob)
		assert.ErrorContains(t, err, "job 7: invalid job: "+says)
	}
}

// stored is the row of j with one piece of its gob replaced by another of the
// same length.
func storedWith(t *testing.T, j smallben.CronJob, before, after string) smallben.RawJob {
	t.Helper()
	require.Len(t, after, len(before))
	repository := newMemoryRepository()
	require.NoError(t, create(t, repository, &smallben.Config{Logger: quiet}).AddJobs([]smallben.Job{job(1, "@daily", j)}))
	rows, err := repository.ListJobs(nil)
	require.NoError(t, err)
	require.Len(t, rows, 1)
	row, err := base64.StdEncoding.DecodeString(rows[0].SerializedJob)
	require.NoError(t, err)
	require.Contains(t, string(row), before)
	rows[0].SerializedJob = base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(string(row), before, after)))
	return rows[0]
}

func TestARowWithAnUnregisteredTypeInsideNamesThatType(t *testing.T) {
	t.Parallel()
	row := storedWith(t, &syncJob{Payload: map[string]any{"job": &twinOfRenamedJob{Text: "x"}}}, "*beside.Reminder", "*beyond.Reminder")
	_, err := row.ToJobWithSchedule()
	require.ErrorIs(t, err, smallben.ErrUndecodable)
	assert.ErrorContains(t, err, `name not registered for interface: "*beyond.Reminder": call gob.Register for its type before Start`)
}

// renamedJob is what before.Reminder became.
type renamedJob struct{ Text string }

func (*renamedJob) Run(smallben.CronJobInput) {}

type twinOfRenamedJob struct{ Text string }

func (*twinOfRenamedJob) Run(smallben.CronJobInput) {}

func TestATypeIsRenamedByRegisteringItUnderItsOldName(t *testing.T) {
	t.Parallel()
	// What before.Reminder stored while it was registered by gob.Register.
	row := storedWith(t, &twinOfRenamedJob{Text: "call Rome"}, "*beside.Reminder", "*before.Reminder")
	decoded, err := row.ToJobWithSchedule()
	require.NoError(t, err)
	repository := newMemoryRepository()
	require.NoError(t, repository.AddJobs([]smallben.JobWithSchedule{decoded}))
	s := create(t, repository, &smallben.Config{Logger: quiet})
	require.NoError(t, s.Start())
	jobs, err := s.ListJobs(nil)
	require.NoError(t, err)
	require.Len(t, jobs, 1)
	assert.Equal(t, &renamedJob{Text: "call Rome"}, jobs[0].Job)

	require.NoError(t, s.AddJobs([]smallben.Job{job(2, "@daily", &renamedJob{Text: "call Turin"})}))
	rows, err := repository.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{2}})
	require.NoError(t, err)
	added, err := base64.StdEncoding.DecodeString(rows[0].SerializedJob)
	require.NoError(t, err)
	assert.Contains(t, string(added), "*before.Reminder", "new rows have the old name too")
}

func TestFieldsThatAreNotStoredAreLoggedOnceForEachType(t *testing.T) {
	t.Parallel()
	var lines logLines
	s := create(t, newMemoryRepository(), &smallben.Config{Logger: lines.logger()})
	bad := job(3, "every day", &forgetfulJob{})
	require.Error(t, s.AddJobs([]smallben.Job{bad}))
	require.Empty(t, lines.with("not stored"), "nothing was to be stored")

	one := 1
	forgetful := func() *forgetfulJob { return &forgetfulJob{Text: "x", client: &one, Notify: make(chan int)} }
	require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", forgetful()), job(2, "@daily", forgetful()), job(3, "@daily", idle())}))
	require.NoError(t, s.UpsertJobs([]smallben.Job{job(4, "@daily", forgetful())}))
	logged := lines.with("not stored")
	require.Len(t, logged, 1)
	assert.Contains(t, logged[0], `"job_type"="*smallben_test.forgetfulJob"`)
	assert.Contains(t, logged[0], `"fields"="client, Notify, Inner.done"`)
	assert.Contains(t, logged[0], `"level"=0`, "for information")
}

func TestTheSinkOfFieldsThatAreNotStoredMayCallSmallBen(t *testing.T) {
	t.Parallel()
	var s *smallben.SmallBen
	called := 0
	logger := funcr.New(func(_, args string) {
		if strings.Contains(args, "not stored") {
			called++
			assert.NoError(t, s.AddJobs([]smallben.Job{job(2, "@daily", &forgetfulJob{})}))
		}
	}, funcr.Options{})
	s = create(t, newMemoryRepository(), &smallben.Config{Logger: logger})
	require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", &forgetfulJob{})}))
	assert.Equal(t, 1, called)
}

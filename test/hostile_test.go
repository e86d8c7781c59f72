package test

import (
	"encoding/base64"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/insides"
)

// What users hand in. The cases of AddJobs stand in smallben_test.go.

func init() {
	gob.Register(loopedSlice{})
	gob.Register(loopedMap{})
	gob.Register(leaver{})
}

type (
	loopedSlice []any
	loopedMap   map[string]any
	// leaver ends the goroutine that encodes it.
	leaver struct{ N int }
)

func (loopedSlice) Run(smallben.CronJobInput) {}
func (loopedMap) Run(smallben.CronJobInput)   {}
func (leaver) Run(smallben.CronJobInput)      {}

func (leaver) GobEncode() ([]byte, error)   { runtime.Goexit(); return nil, nil }
func (*leaver) GobDecode([]byte) error      { return nil }
func (leaver) MarshalJSON() ([]byte, error) { runtime.Goexit(); return nil, nil }

type marshalPanic struct{}

func (marshalPanic) MarshalJSON() ([]byte, error) { panic("no JSON today") }

// nilError is an error whose methods do not stand a nil pointer.
type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }

var hostileTexts = []string{
	"", "\x00", "a\x00b", "\xff\xfe", "caf\xe9", "\xed\xa0\x80", "\u2028\u2029", "😀", "' OR 1=1 --", `"; DROP TABLE jobs; --`,
	`\`, `\\"`, `{"v":1}`, "{}", "{NULL}", "NULL", "null", "$1", "?", "?1", "%s%d", "<script>&amp;</script>", "\r\n\t", strings.Repeat("x", 100_000),
}

func TestTextOfAnyKindIsStoredAsItIs(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		input := map[string]any{}
		var jobs []smallben.Job
		for i, text := range hostileTexts {
			input[text] = text
			j := job(int64(i+1), "@daily", valueJob{Text: text, N: i})
			j.JobInput = map[string]any{text: text, "list": []any{text}}
			jobs = append(jobs, j)
		}
		require.NoError(t, s.AddJobs(jobs))
		require.NoError(t, s.AddJobs([]smallben.Job{job(1000, "@daily", idle())}))
		require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1000, JobOtherInputs: &input}}))
		stored := func(v map[string]any) (decoded map[string]any) { // text that is not UTF-8 becomes U+FFFD
			encoded, err := json.Marshal(v)
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(encoded, &decoded))
			return decoded
		}
		listed, err := s.ListJobs(nil)
		require.NoError(t, err)
		for i, text := range hostileTexts {
			assert.Equal(t, valueJob{Text: text, N: i}, listed[i].Job)
			assert.Equal(t, stored(jobs[i].JobInput), listed[i].JobInput)
		}
		assert.Equal(t, stored(input), listed[len(listed)-1].JobInput)
	})
}

func TestAllSixtyFourBitsOfIDsAndInputsAreKept(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		extremes := []int64{math.MinInt64, math.MinInt64 + 1, -1 << 53, -1, 1, 1<<53 + 1, math.MaxInt64 - 1, math.MaxInt64}
		for _, n := range extremes {
			j := smallben.Job{ID: n, GroupID: n, SuperGroupID: n, CronExpression: "@daily", Job: idle(), JobInput: map[string]any{"n": n}}
			require.NoError(t, s.AddJobs([]smallben.Job{j}))
		}
		for _, n := range extremes {
			one := smallben.PauseResumeOptions{JobIDs: []int64{n}, GroupIDs: []int64{n}, SuperGroupIDs: []int64{n}}
			require.NoError(t, s.PauseJobs(&one))
			require.NoError(t, s.ResumeJobs(&one))
			jobs, err := s.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{n}, GroupIDs: []int64{n}, SuperGroupIDs: []int64{n}})
			require.NoError(t, err)
			require.Len(t, jobs, 1)
			assert.Equal(t, []int64{n, n, n}, []int64{jobs[0].ID, jobs[0].GroupID, jobs[0].SuperGroupID})
			assert.Equal(t, fmt.Sprintf(`{"n":%d}`, n), insides.Entries(s)[n].StoredInput)
			require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: n, CronExpression: ptr("@hourly")}}))
		}
		for i, n := range extremes {
			require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{GroupIDs: []int64{n}}}))
			assert.Len(t, insides.Entries(s), len(extremes)-i-1)
		}
	})
}

func TestFiltersOfAnySizeAndKindAreAnswered(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
		before, err := repository.ListJobs(nil)
		require.NoError(t, err)
		many := make([]int64, 50_000)
		for i := range many {
			many[i] = int64(i + 1)
		}
		same := slices.Repeat([]int64{1}, 50_000)
		for name, unknown := range map[string][]int64{
			"too many": many, "zero": {0}, "extremes": {math.MinInt64, math.MaxInt64, -1}, "one of two": {1, 3}, "none": {},
		} {
			options := smallben.PauseResumeOptions{JobIDs: unknown}
			for _, err := range []error{
				s.PauseJobs(&options), s.ResumeJobs(&options), s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: options}),
			} {
				require.ErrorIs(t, err, s.ErrorTypeIfMismatchCount(), name)
				assert.Less(t, len(err.Error()), 1000, "%s: ids are counted", name)
			}
		}
		jobs, err := s.ListJobs(&smallben.ListJobsOptions{JobIDs: many})
		require.ErrorIs(t, err, s.ErrorTypeIfMismatchCount())
		assert.Less(t, len(err.Error()), 1000)
		assert.Equal(t, []int64{1, 2}, ids(jobs))
		after, err := repository.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, before, after)
		jobs, err = s.ListJobs(&smallben.ListJobsOptions{GroupIDs: many, SuperGroupIDs: many, Paused: ptr(false)})
		require.NoError(t, err)
		assert.Equal(t, []int64{1, 2}, ids(jobs))
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: same}))
		require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: same, GroupIDs: many}))
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: same}}))
		assert.Len(t, insides.Entries(s), 1)
	})
}

type knot struct{ Self *knot }

func TestAddAndUpdateRefuseTheSameHostileValues(t *testing.T) {
	t.Parallel()
	cycle, list, tied := map[string]any{}, make([]any, 1), &knot{}
	cycle["self"], list[0], tied.Self = cycle, list, tied
	deep := any(1)
	for range 20_000 {
		deep = []any{deep}
	}
	repository := newMemoryRepository()
	s := started(t, repository, smallben.SchedulerConfig{})
	require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle()), job(2, "@daily", idle())}))
	before, err := repository.ListJobs(nil)
	require.NoError(t, err)
	refused := func(name string, expression *string, input *map[string]any) {
		t.Helper()
		start := time.Now()
		j := job(7, "@daily", idle())
		if expression != nil {
			j.CronExpression = *expression
		}
		if input != nil {
			j.JobInput = *input
		}
		for id, err := range map[int64]error{
			7: s.AddJobs([]smallben.Job{job(6, "@daily", idle()), j}),
			2: s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("@hourly")}, {JobID: 2, CronExpression: expression, JobOtherInputs: input}}),
		} {
			require.ErrorIs(t, err, smallben.ErrInvalidJob, name)
			var jobError *smallben.JobError
			require.ErrorAs(t, err, &jobError, name)
			assert.Equal(t, id, jobError.JobID, name)
			assert.Less(t, len(err.Error()), 2000, name)
		}
		after, err := repository.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, before, after, name)
		assert.Less(t, time.Since(start), 2*time.Minute, "%s: a hang, not a measurement", name)
	}
	for name, value := range map[string]any{
		"NaN": math.NaN(), "infinity": math.Inf(-1), "channel": make(chan int), "function": func() {}, "complex": 1i,
		"cyclic map": cycle, "cyclic list": list, "cyclic pointer": tied, "nested too deep": deep, "MarshalJSON panics": marshalPanic{},
		"1e999": json.Number("1e999"), "no number": json.Number("one"), "no JSON": json.RawMessage("{"), "too long": strings.Repeat("x", 1<<20),
		"map without text keys": map[float64]int{1: 1},
	} {
		refused(name, nil, &map[string]any{"v": value})
	}
	for _, expression := range []string{
		"", " ", "* * * *", "* * * * * *", "* * * * * * *", "60 * * * *", "*/0 * * * *", "* * 31 2 *", ", * * * *", "5-1 * * * *", "-1 * * * *",
		"99999999999999999999 * * * *", "TZ=UTC", "CRON_TZ=", "TZ=UTC TZ=UTC * * * * *", "TZ=../../etc/passwd * * * * *", "@", "@nonsense", "@EVERY 1h",
		"@every", "@every 1", "@every 0s", "@every -1h", "@every 999ms", "@every 43801h", "@every 1e9h", "@every 9223372036s",
		"* * * * *\x00", "*\u00a0* * * * *", "* * * * *\u2028", "\xff * * * *", "é * * * *", "０ * * * *",
		strings.Repeat("1,", 200) + "1 * * * *", strings.Repeat(" ", 300),
	} {
		refused(fmt.Sprintf("%q", expression), &expression, nil)
	}
}

func TestJobsThatContainThemselvesAreRefused(t *testing.T) {
	t.Parallel()
	s := started(t, newMemoryRepository(), smallben.SchedulerConfig{})
	list := make(loopedSlice, 1)
	list[0] = list
	dictionary := loopedMap{}
	dictionary["self"] = dictionary
	both := loopedMap{"list": loopedSlice{dictionary}}
	for _, j := range []smallben.CronJob{list, dictionary, both} {
		assert.ErrorIs(t, s.AddJobs([]smallben.Job{job(1, "@daily", j)}), smallben.ErrInvalidJob, "%T", j)
	}
}

func TestAnEncodingThatEndsItsGoroutineHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	repository := newMemoryRepository()
	s := started(t, repository, smallben.SchedulerConfig{})
	require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", idle())}))
	for _, call := range []func(){
		func() { _ = s.AddJobs([]smallben.Job{job(2, "@daily", leaver{1})}) },
		func() {
			_ = s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"v": leaver{1}}}})
		},
	} {
		left := make(chan bool, 1)
		go func() {
			returned := false
			defer func() { left <- returned }()
			call()
			returned = true
		}()
		assert.False(t, <-left)
		require.NoError(t, s.AddJobs([]smallben.Job{job(2, "@daily", idle())}))
		require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: smallben.PauseResumeOptions{JobIDs: []int64{2}}}))
	}
}

func TestTheCallerMayChangeWhatItGaveOnceACallHasReturned(t *testing.T) {
	eachRepository(t, func(t *testing.T, repository smallben.Repository) {
		s := started(t, repository, smallben.SchedulerConfig{})
		value := &probe{Key: "given"}
		jobs := []smallben.Job{job(1, "@daily", value), job(2, "@daily", value)}
		input := map[string]any{"text": "given", "list": []any{"given"}}
		jobs[0].JobInput = input
		require.NoError(t, s.AddJobs(jobs))
		updated := map[string]any{"text": "updated", "list": []any{"updated"}}
		options := []smallben.UpdateOption{{JobID: 2, CronExpression: ptr("@hourly"), JobOtherInputs: &updated}}
		require.NoError(t, s.UpdateJobs(options))
		before, err := repository.ListJobs(nil)
		require.NoError(t, err)

		value.Key = "changed"
		jobs[0], jobs[1] = job(8, "@weekly", idle()), job(9, "@weekly", idle())
		for _, m := range []map[string]any{input, updated} {
			m["list"].([]any)[0] = "changed"
			m["text"], m["more"] = "changed", make(chan int)
		}
		*options[0].CronExpression = "changed"
		*options[0].JobOtherInputs = nil
		filter := []int64{1}
		require.NoError(t, s.PauseJobs(&smallben.PauseResumeOptions{JobIDs: filter}))
		filter[0] = 2
		require.NoError(t, s.ResumeJobs(&smallben.PauseResumeOptions{JobIDs: []int64{1}}))
		checkInvariant(t, s, repository)

		after, err := repository.ListJobs(nil)
		require.NoError(t, err)
		for i := range before {
			before[i].UpdatedAt, before[i].CronID = after[i].UpdatedAt, after[i].CronID
		}
		assert.Equal(t, before, after)
		listed, err := s.ListJobs(nil)
		require.NoError(t, err)
		assert.Equal(t, &probe{Key: "given"}, listed[0].Job)
		assert.Equal(t, map[string]any{"text": "given", "list": []any{"given"}}, listed[0].JobInput)
		assert.Equal(t, map[string]any{"text": "updated", "list": []any{"updated"}}, listed[1].JobInput)
		// What was listed is the caller's as well.
		listed[0].JobInput["text"] = "changed"
		listed[1].Job.(*probe).Key = "changed"
	})
}

// Jobs that misbehave. Panics, runtime.Goexit and log sinks stand in
// scheduler_test.go.

var overlapSettings = map[string]smallben.SchedulerConfig{
	"allow": {}, "skip": {SkipIfStillRunning: true}, "delay": {DelayIfStillRunning: true},
}

func TestARunThatLastsLongerThanItsPeriod(t *testing.T) {
	for name, config := range overlapSettings {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := started(t, newMemoryRepository(), config)
				var running, most, runs atomic.Int32
				long := newProbe(func(*probe, smallben.CronJobInput) {
					runs.Add(1)
					most.Store(max(most.Load(), running.Add(1)))
					time.Sleep(150 * time.Second)
					running.Add(-1)
				})
				brief := newRecorder()
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", long), job(2, "* * * * *", brief)}))
				pass(10*time.Minute + time.Second)
				assert.Equal(t, 10, brief.Count(), "nobody else notices")
				skipped := gauges(t, s)["smallben_runs_skipped_total,overlap"]
				switch name {
				case "allow":
					assert.EqualValues(t, 10, runs.Load())
					assert.EqualValues(t, 3, most.Load())
					assert.Zero(t, skipped)
				case "skip":
					assert.EqualValues(t, 4, runs.Load(), "at 1:00, 4:00, 7:00 and 10:00")
					assert.EqualValues(t, 1, most.Load())
					assert.EqualValues(t, 6, skipped)
				case "delay":
					assert.EqualValues(t, 4, runs.Load(), "at 1:00, and behind each other at 3:30, 6:00 and 8:30")
					assert.EqualValues(t, 1, most.Load())
					assert.EqualValues(t, 5, skipped, "and one waits")
				}
			})
		})
	}
}

func TestAJobThatBlocksForEverCanBeReplaced(t *testing.T) {
	for name, config := range overlapSettings {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := started(t, newMemoryRepository(), config)
				release := make(chan struct{})
				var stuck atomic.Int32
				forEver := newProbe(func(*probe, smallben.CronJobInput) { stuck.Add(1); <-release })
				healthy, successor := newRecorder(), newRecorder()
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", forEver), job(2, "* * * * *", healthy)}))
				pass(5*time.Minute + time.Second)
				one := smallben.PauseResumeOptions{JobIDs: []int64{1}}
				require.NoError(t, s.PauseJobs(&one))
				require.NoError(t, s.ResumeJobs(&one))
				require.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{}}}))
				require.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: one}))
				require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", successor)}))
				pass(5 * time.Minute)
				assert.Equal(t, 10, healthy.Count())
				if name == "allow" {
					assert.EqualValues(t, 5, stuck.Load())
					assert.Equal(t, 5, successor.Count())
				} else {
					assert.EqualValues(t, 1, stuck.Load())
					assert.Zero(t, successor.Count(), "it still runs as job 1")
				}
				close(release)
				pass(time.Minute)
				assert.NotZero(t, successor.Count(), "once it is free, the successor runs")
			})
		})
	}
}

func TestAJobMayChangeItself(t *testing.T) {
	one := smallben.PauseResumeOptions{JobIDs: []int64{1}}
	for change, c := range map[string]struct {
		do   func(s *smallben.SmallBen, p *probe) error
		runs int // within ten minutes
	}{
		"delete": {func(s *smallben.SmallBen, _ *probe) error {
			return s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: one})
		}, 1},
		"pause": {func(s *smallben.SmallBen, _ *probe) error { return s.PauseJobs(&one) }, 1},
		"pause and resume": {func(s *smallben.SmallBen, _ *probe) error {
			return errors.Join(s.PauseJobs(&one), s.ResumeJobs(&one))
		}, 10},
		"update of the expression": {func(s *smallben.SmallBen, _ *probe) error {
			return s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, CronExpression: ptr("*/2 * * * *")}})
		}, 6},
		"update of the input": {func(s *smallben.SmallBen, _ *probe) error {
			return s.UpdateJobs([]smallben.UpdateOption{{JobID: 1, JobOtherInputs: &map[string]any{"n": 1}}})
		}, 10},
		"delete and add": {func(s *smallben.SmallBen, p *probe) error {
			return errors.Join(s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: one}), s.AddJobs([]smallben.Job{job(1, "* * * * *", p)}))
		}, 10},
	} {
		for name, config := range overlapSettings {
			for ending, end := range map[string]func(){"returns": func() {}, "panics": func() { panic("after the change") }, "leaves": runtime.Goexit} {
				t.Run(name+", "+change+", "+ending, func(t *testing.T) {
					bubble(t, func(t *testing.T) {
						s := started(t, newMemoryRepository(), config)
						var runs atomic.Int32
						self := newProbe(func(p *probe, _ smallben.CronJobInput) {
							runs.Add(1)
							assert.NoError(t, c.do(s, p))
							end()
						})
						require.NoError(t, s.AddJobs([]smallben.Job{job(1, "* * * * *", self)}))
						pass(10*time.Minute + time.Second)
						assert.EqualValues(t, c.runs, runs.Load())
					})
				})
			}
		}
	}
}

func TestJobsMayCallEveryMethodWhileOthersStopAndStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := create(t, repository, &smallben.Config{Logger: quiet})
		var calls, next atomic.Int64
		var stops sync.WaitGroup
		busy := newProbe(func(_ *probe, input smallben.CronJobInput) {
			id := next.Add(1) + 1000
			own := smallben.PauseResumeOptions{JobIDs: []int64{id}}
			assert.NoError(t, s.AddJobs([]smallben.Job{job(id, "* * * * *", idle())}))
			assert.NoError(t, s.PauseJobs(&own))
			if id%3 == 0 {
				// A job must not wait for Stop itself, but somebody may.
				stops.Go(s.Stop)
			}
			time.Sleep(time.Second)
			assert.NoError(t, s.ResumeJobs(&own))
			assert.NoError(t, s.UpdateJobs([]smallben.UpdateOption{{JobID: id, CronExpression: ptr("@daily")}}))
			_, err := s.ListJobs(nil)
			assert.NoError(t, err)
			gauges(t, s)
			if id%2 == 0 {
				assert.NoError(t, s.Start())
			}
			assert.NoError(t, s.DeleteJobs(&smallben.DeleteOptions{PauseResumeOptions: own}))
			assert.Error(t, s.ErrorTypeIfMismatchCount())
			calls.Add(1)
		})
		var jobs []smallben.Job
		for id := range int64(20) {
			jobs = append(jobs, job(id+1, "* * * * *", busy))
		}
		require.NoError(t, s.AddJobs(jobs))
		for range 10 {
			require.NoError(t, s.Start())
			pass(time.Minute)
		}
		pass(time.Minute)
		s.Stop()
		stops.Wait()
		assert.EqualValues(t, next.Load(), calls.Load())
		assert.GreaterOrEqual(t, calls.Load(), int64(10), "a run in each minute at least: which of the others a Stop forestalls is chance")
		require.NoError(t, s.Start())
		checkInvariant(t, s, repository)
		assert.Len(t, insides.Entries(s), 20)
		s.Stop()
		synctest.Wait()
	})
}

// FuzzRow decodes rows that anybody may have written.
func FuzzRow(f *testing.F) {
	add := func(columns rotten) {
		row := map[string]string{"serialized_job": base64.StdEncoding.EncodeToString(gobOf(versionOne{"text", 7})),
			"serialized_job_input": `{"a":[1,"b",null]}`, "cron_expression": "*/5 * * * *"}
		for column, value := range columns {
			row[column] = value.(string)
		}
		if len(row["serialized_job"])+len(row["serialized_job_input"]) < 5000 {
			decoded, _ := base64.StdEncoding.DecodeString(row["serialized_job"])
			f.Add(decoded, "", row["serialized_job_input"], row["cron_expression"], int64(0))
			f.Add([]byte(nil), row["serialized_job"], row["serialized_job_input"], row["cron_expression"], int64(math.MinInt64))
		}
	}
	for _, columns := range rottenRows() {
		add(columns)
	}
	for _, j := range []smallben.CronJob{&probe{Key: "k"}, versionMore{Extra: []string{"a", "b"}}, rotMap{"k": "v"}, rotHollow{make([]struct{}, 3)},
		rotNest{nil, {nil}}, &rotList{1, &rotList{2, nil}}, loopedMap{"k": loopedSlice{1, "two", 3.0}}} {
		add(rottenJob(gobOf(j)))
	}
	for _, expression := range []string{"@every 1h", "TZ=Asia/Tokyo 0 0 * * *", "0 0 30 2 *", ", * * * *", "1 2 3 4 5 6"} {
		add(rotten{"cron_expression": expression})
	}
	f.Fuzz(func(t *testing.T, gobbed []byte, text, input, expression string, created int64) {
		if text == "" {
			text = base64.StdEncoding.EncodeToString(gobbed)
		}
		row := smallben.RawJob{ID: 1, GroupID: 2, SuperGroupID: 3, CronExpression: expression, CreatedAt: time.Unix(created, 0),
			SerializedJob: text, SerializedJobInput: input}
		var before, after runtime.MemStats
		start := time.Now()
		runtime.ReadMemStats(&before)
		decoded, err := row.ToJobWithSchedule()
		runtime.ReadMemStats(&after)
		// gob may take four times what a row is allowed to ask for.
		if took := after.TotalAlloc - before.TotalAlloc; took > 300<<20+uint64(100*(len(text)+len(input))) {
			t.Fatalf("%d bytes for a row of %d", took, len(text)+len(input))
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Fatalf("it took %s", took)
		}
		if err != nil {
			var jobError *smallben.JobError
			if !errors.Is(err, smallben.ErrUndecodable) || !errors.As(err, &jobError) || jobError.JobID != 1 {
				t.Fatal(err)
			}
			return
		}
		now := time.Now()
		if next := decoded.Schedule().Next(now); !next.IsZero() && !next.After(now) {
			t.Fatalf("%q fires next at %s, which is past", expression, next)
		}
		row.CreatedAt = row.CreatedAt.UTC()
		if built, err := decoded.BuildJob(); err != nil || !reflect.DeepEqual(built, row) {
			t.Fatalf("%v: %+v became %+v", err, row, built)
		}
	})
}

// FuzzInput sends inputs through AddJobs, UpdateJobs and the repository.
func FuzzInput(f *testing.F) {
	for i, text := range hostileTexts {
		if len(text) < 1000 {
			f.Add(`{"a":[1,{"b":null}],"c":"d"}`, text, text, int64(i)*math.MaxInt64/7, float64(i)*1e300)
		}
	}
	for _, document := range []string{`{}`, `null`, `{"a":1e308,"b":-0,"c":5e-324,"d":12345678901234567890}`, `{"":{"":{"":[[[[]]]]}}}`,
		`{"a":"\ud800","b":"\u0000","A":1,"a":2}`, `{"a":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}`} {
		f.Add(document, "k", "v", int64(math.MinInt64), math.Inf(1))
		f.Add(document, "k", "v", int64(-1), math.Copysign(0, -1))
	}
	f.Fuzz(func(t *testing.T, document, key, value string, n int64, x float64) {
		var parsed map[string]any
		if json.Unmarshal([]byte(document), &parsed) != nil {
			parsed = nil
		}
		input := map[string]any{"parsed": parsed, "text": map[string]string{key: value}, "n": n, "x": x}
		s := smallben.New(newMemoryRepository(), &smallben.Config{Logger: quiet})
		j := smallben.Job{ID: 1, CronExpression: "@daily", Job: valueJob{}, JobInput: input}
		bare := smallben.Job{ID: 2, CronExpression: "@daily", Job: valueJob{}}
		if err := s.AddJobs([]smallben.Job{bare, j}); err != nil {
			if !errors.Is(err, smallben.ErrInvalidJob) || !(math.IsNaN(x) || math.IsInf(x, 0) || len(document)+len(value) > 1<<16) {
				t.Fatal(err)
			}
			return
		}
		if err := s.UpdateJobs([]smallben.UpdateOption{{JobID: 2, JobOtherInputs: &input}}); err != nil {
			t.Fatal(err)
		}
		jobs, err := s.ListJobs(nil)
		if err != nil || len(jobs) != 2 {
			t.Fatal(jobs, err)
		}
		utf8 := func(text string) string { return string([]rune(text)) } // U+FFFD for each byte that is none
		want := map[string]any{"text": map[string]any{utf8(key): utf8(value)}, "n": float64(n), "x": x, "parsed": nil}
		if parsed != nil {
			want["parsed"] = parsed
		}
		for _, listed := range jobs {
			if !reflect.DeepEqual(want, listed.JobInput) {
				t.Fatalf("job %d: %#v became %#v", listed.ID, want, listed.JobInput)
			}
			var exact struct{ N int64 }
			if err := json.Unmarshal([]byte(insides.Entries(s)[listed.ID].StoredInput), &exact); err != nil || exact.N != n {
				t.Fatalf("%d became %d: %v", n, exact.N, err)
			}
		}
	})
}

// nilCoder is a job whose encoding methods return an error that cannot be
// printed.
type nilCoder struct{ Key string }

var failingCoders sync.Map

func (*nilCoder) Run(smallben.CronJobInput) {}

func (c *nilCoder) GobEncode() ([]byte, error) {
	if _, fails := failingCoders.Load("encode " + c.Key); fails {
		return nil, (*nilError)(nil)
	}
	return []byte(c.Key), nil
}

func (c *nilCoder) GobDecode(data []byte) error {
	c.Key = string(data)
	if _, fails := failingCoders.Load("decode " + c.Key); fails {
		return (*nilError)(nil)
	}
	return nil
}

func init() { gob.Register(&nilCoder{}) }

func TestACodingErrorThatCannotBePrintedIsAnErrorAndNoMore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repository := newMemoryRepository()
		s := create(t, repository, &smallben.Config{Logger: quiet})
		defer failingCoders.Clear()
		failingCoders.Store("encode bad", true)
		assert.ErrorIs(t, s.AddJobs([]smallben.Job{job(1, "@daily", &nilCoder{"bad"})}), smallben.ErrInvalidJob)
		require.NoError(t, s.AddJobs([]smallben.Job{job(1, "@daily", &nilCoder{"good"}), job(2, "@daily", idle())}))
		failingCoders.Store("decode good", true)
		require.NoError(t, s.Start())
		_, err := s.ListJobs(nil)
		assert.ErrorIs(t, err, smallben.ErrUndecodable)
		checkInvariant(t, s, repository)
		assert.EqualValues(t, 1, gauges(t, s)["smallben_scheduler_jobs_undecodable"])
	})
}

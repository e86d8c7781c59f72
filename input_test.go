package smallben_test

import (
	"math"
	"testing"
	"time"

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

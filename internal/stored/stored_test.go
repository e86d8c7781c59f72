package stored

import (
	"encoding/gob"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type runner interface{ Run() }

type letter struct {
	To    string
	Limit *int
}

type sparse struct {
	Rows []struct{ A, B, C, D, E, F, G, H []byte }
}

type unregistered struct{}

func (*letter) Run()      {}
func (sparse) Run()       {}
func (unregistered) Run() {}

func init() {
	gob.RegisterName("*post.Letter", &letter{})
	gob.Register(sparse{})
}

func TestAJobComesBackFromItsText(t *testing.T) {
	t.Parallel()
	var jobs Jobs[runner]
	limit := 3
	given := &letter{"ops@example.com", &limit}
	text, err := jobs.Encode(given)
	require.NoError(t, err)
	assert.Equal(t, "*post.Letter", RegisteredName(text))
	decoded, err := jobs.Decode(text)
	require.NoError(t, err)
	assert.Equal(t, given, decoded)
	assert.NotSame(t, given, decoded)
}

func TestWhatCannotBeStoredIsRefused(t *testing.T) {
	t.Parallel()
	var jobs Jobs[runner]
	zero := 0
	for why, job := range map[string]runner{
		"the job is nil":             nil,
		"the job is a nil *stored":   (*letter)(nil),
		"call gob.Register(stored.u": unregistered{},
		"field Limit":                &letter{Limit: &zero},
		"at most 1048576 are":        &letter{To: strings.Repeat("a", maxLength)},
		"more than 64 MiB of memory": sparse{make([]struct{ A, B, C, D, E, F, G, H []byte }, 400_000)},
	} {
		_, err := jobs.Encode(job)
		assert.ErrorContains(t, err, why)
	}
	deep := any("x")
	for range 11_000 {
		deep = []any{deep}
	}
	for why, input := range map[string]map[string]any{
		"encode the input: json":                {"f": func() {}},
		"at most 1048576 are":                   {"text": strings.Repeat("a", maxLength)},
		"the encoded input cannot be read back": {"deep": deep},
		"panic":                                 {"value": panicking{}},
	} {
		_, err := EncodeInput(input)
		assert.ErrorContains(t, err, why)
	}
}

type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic("no") }

func TestATextThatDoesNotDecodeSaysWhy(t *testing.T) {
	t.Parallel()
	var jobs Jobs[runner]
	for text, why := range map[string]string{"%": "illegal base64", "AAAA": "job: ", strings.Repeat("a", maxLength+1): "at most"} {
		_, err := jobs.Decode(text)
		assert.ErrorContains(t, err, why)
		assert.Empty(t, RegisteredName(text))
	}
	_, err := DecodeInput("{")
	assert.ErrorContains(t, err, "input: ")
}

func TestInputsAreTheSameToTheLastDigit(t *testing.T) {
	t.Parallel()
	assert.True(t, SameInput(`{"a":1,"b":[2]}`, `{"b": [2], "a": 1}`))
	assert.False(t, SameInput(`{"a":9007199254740993}`, `{"a":9007199254740992}`))
	assert.False(t, SameInput(`{`, `{}`))
}

func TestGivenAddsToTheTextWhatJSONLoses(t *testing.T) {
	t.Parallel()
	var givens Givens
	for name, input := range map[string]map[string]any{
		"nothing":       nil,
		"plain":         {"text": "a", "true": true, "half": 0.5, "nil": nil},
		"numbers":       {"int": math.MaxInt64, "uint8": uint8(8), "float32": float32(0.1)},
		"other values":  {"duration": time.Minute, "n": 1},
		"text as bytes": {"broken": "a\xffb"},
	} {
		text, err := EncodeInput(input)
		require.NoError(t, err)
		assert.Equal(t, input, givens.Of(input).Decode(text), name)
	}
	assert.Nil(t, givens.Of(map[string]any{"text": "a"}))
	one, two := givens.Of(map[string]any{"n": 1, "m": 2}), givens.Of(map[string]any{"m": 3, "n": 4})
	assert.Same(t, one, two, "inputs of the same keys and types share one")
}

package smallbentest_test

import (
	"encoding/gob"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/smallbentest"
)

// letter has fields of every kind, of which gob drops some.
type letter struct {
	To      string
	Due     time.Time
	Weights []float64
	Parts   map[string]part
	Next    *part
	Extra   any

	secret string
	after  func()
	mu     sync.Mutex
}

type part struct {
	Pages int
	done  chan struct{}
}

func (*letter) Run(smallben.CronJobInput) {}

type unregistered struct{}

func (unregistered) Run(smallben.CronJobInput) {}

func init() {
	gob.Register(&letter{})
	gob.Register(part{})
}

// complaints is a testing.TB that keeps the errors.
type complaints struct {
	testing.TB
	errors []string
}

func (c *complaints) Helper() {}
func (c *complaints) Errorf(f string, args ...any) {
	c.errors = append(c.errors, fmt.Sprintf(f, args...))
}

func TestCheckStoredNamesWhatStorageLoses(t *testing.T) {
	t.Parallel()
	whole := func() *letter {
		return &letter{To: "Ann", Due: time.Now(), Weights: []float64{1, math.NaN()}, Parts: map[string]part{"a": {Pages: 3}}, Next: &part{Pages: 1}, Extra: part{Pages: 2}}
	}
	job := func(edit func(j *smallben.Job, l *letter)) smallben.Job {
		l := whole()
		j := smallben.Job{ID: 7, CronExpression: "@daily", Job: l, JobInput: map[string]any{"n": 3, "at": time.Now()}}
		if edit != nil {
			edit(&j, l)
		}
		return j
	}
	for name, c := range map[string]struct {
		job  smallben.Job
		want string // "" if nothing is lost
	}{
		"all of it":           {job(nil), ""},
		"empty, and not nil":  {job(func(_ *smallben.Job, l *letter) { l.Weights, l.Parts = []float64{}, map[string]part{} }), ""},
		"six fields":          {job(func(j *smallben.Job, _ *letter) { j.CronExpression = "0 0 4 * * *" }), ""},
		"unexported field":    {job(func(_ *smallben.Job, l *letter) { l.secret = "x" }), "letter.secret is not stored"},
		"function":            {job(func(_ *smallben.Job, l *letter) { l.after = func() {} }), "letter.after is not stored"},
		"locked mutex":        {job(func(_ *smallben.Job, l *letter) { l.mu.Lock() }), "letter.mu"},
		"channel in a map":    {job(func(_ *smallben.Job, l *letter) { l.Parts["a"] = part{3, make(chan struct{})} }), "letter.Parts[a].done is not stored"},
		"channel in a field":  {job(func(_ *smallben.Job, l *letter) { l.Extra = part{3, make(chan struct{})} }), "letter.Extra.done is not stored"},
		"not registered":      {job(func(j *smallben.Job, _ *letter) { j.Job = unregistered{} }), "gob.Register"},
		"a bad expression":    {job(func(j *smallben.Job, _ *letter) { j.CronExpression = "61 * * * *" }), "61"},
		"an input of no JSON": {job(func(j *smallben.Job, _ *letter) { j.JobInput["f"] = func() {} }), "f"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found := complaints{TB: t}
			smallbentest.CheckStored(&found, c.job)
			if c.want == "" {
				assert.Empty(t, found.errors)
				return
			}
			assert.Len(t, found.errors, 1)
			assert.Contains(t, strings.Join(found.errors, "\n"), c.want)
			assert.Contains(t, strings.Join(found.errors, "\n"), "job 7")
		})
	}
}

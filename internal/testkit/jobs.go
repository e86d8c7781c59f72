package testkit

import (
	"encoding/gob"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/nbena/smallben"
)

// Probe is the job of most tests. What a run does is looked up by key, so that a
// probe that was decoded from a row does what the one that was added does.
type Probe struct{ Key string }

var (
	probes   sync.Map // key to func(*Probe, smallben.CronJobInput)
	probeKey atomic.Int64
)

// NewProbe returns a probe whose runs call run.
func NewProbe(run func(*Probe, smallben.CronJobInput)) *Probe {
	p := &Probe{Key: NewKey()}
	SetProbe(p.Key, run)
	return p
}

// Idle returns a probe that does nothing.
func Idle() *Probe { return &Probe{} }

// NewKey returns a key that no other probe has.
func NewKey() string { return fmt.Sprint(probeKey.Add(1)) }

// SetProbe says what runs of the probes with this key do.
func SetProbe(key string, run func(*Probe, smallben.CronJobInput)) { probes.Store(key, run) }

// Run calls what NewProbe or SetProbe was given.
func (p *Probe) Run(input smallben.CronJobInput) {
	if run, ok := probes.Load(p.Key); ok {
		run.(func(*Probe, smallben.CronJobInput))(p, input)
	}
}

func (p *Probe) probe() *Probe { return p }

// Recorder is a probe that keeps what its runs received.
type Recorder struct {
	*Probe
	mu     sync.Mutex
	inputs []smallben.CronJobInput
}

// NewRecorder returns a Recorder that has seen no run.
func NewRecorder() *Recorder {
	r := &Recorder{}
	r.Probe = NewProbe(func(_ *Probe, input smallben.CronJobInput) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.inputs = append(r.inputs, input)
	})
	return r
}

// Runs returns the inputs so far and forgets them.
func (r *Recorder) Runs() []smallben.CronJobInput {
	r.mu.Lock()
	defer r.mu.Unlock()
	inputs := r.inputs
	r.inputs = nil
	return inputs
}

// Count returns how many runs there were since the last call of Count or Runs.
func (r *Recorder) Count() int { return len(r.Runs()) }

// ValueJob is a job that is no pointer.
type ValueJob struct {
	Text string
	N    int
}

// Run does nothing.
func (ValueJob) Run(smallben.CronJobInput) {}

func init() {
	gob.Register(&Probe{})
	gob.Register(ValueJob{})
}

// Job returns a job whose groups follow from its id. A type that embeds a Probe
// stands for its probe.
func Job(id int64, expression string, j smallben.CronJob) smallben.Job {
	if embedding, ok := j.(interface{ probe() *Probe }); ok {
		j = embedding.probe()
	}
	return smallben.Job{ID: id, GroupID: id % 10, SuperGroupID: id % 3, CronExpression: expression, Job: j}
}

// IDs returns the ids of jobs.
func IDs(jobs []smallben.Job) []int64 {
	out := make([]int64, len(jobs))
	for i := range jobs {
		out[i] = jobs[i].ID
	}
	return out
}

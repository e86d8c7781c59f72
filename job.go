package smallben

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	"gorm.io/gorm"

	"github.com/nbena/smallben/internal/cronexpr"
	"github.com/nbena/smallben/internal/sqltx"
	"github.com/nbena/smallben/internal/stored"
)

// DefaultCronID is the cron id of a job that is not scheduled: a paused one, or
// one that was added while SmallBen was not started.
const DefaultCronID = int64(0)

var (
	// ErrInvalidJob is what errors.Is finds when a job, its input or its
	// expression can never be stored or run.
	ErrInvalidJob = errors.New("invalid job")
	// ErrJobExists is what errors.Is finds when the id of a job to add is
	// stored already, or stands twice in the batch. It wraps
	// gorm.ErrDuplicatedKey.
	ErrJobExists = fmt.Errorf("job exists already (%w)", gorm.ErrDuplicatedKey)
	// ErrUndecodable is what errors.Is finds when a stored row cannot be
	// turned back into a job.
	ErrUndecodable = errors.New("undecodable row")
	// ErrJobNotFound is what errors.Is finds when ids do not exist, whatever
	// the repository. So is the repository's own mismatch error.
	ErrJobNotFound = errors.New("job not found")
	// ErrOutcomeUnknown is what errors.Is finds when the database did not
	// say whether a write happened. SmallBen reads the rows again as soon as
	// the database answers; the caller may list the jobs to learn the same.
	ErrOutcomeUnknown = sqltx.ErrOutcomeUnknown
)

// JobError is an error of one job. errors.As gives it, and so the job's id;
// errors.Join collects those of a batch.
type JobError struct {
	// JobID is the id of the job, or 0 where it could not be read.
	JobID int64
	// Err says what is wrong. It is never nil.
	Err error
}

// Error gives the id and what is wrong.
func (e *JobError) Error() string { return fmt.Sprintf("job %d: %v", e.JobID, e.Err) }

// Unwrap returns Err.
func (e *JobError) Unwrap() error { return e.Err }

func jobErrorf(jobID int64, format string, args ...any) error {
	return &JobError{JobID: jobID, Err: fmt.Errorf(format, args...)}
}

// invalid is the error of a job that can never be stored or run, for err.
func invalid(jobID int64, err error) error { return jobErrorf(jobID, "%w: %w", ErrInvalidJob, err) }

// wrap says at the package's edge what was being done: "add job 42: …". A
// repository may have said it already.
func wrap(operation string, err error) error {
	if err == nil {
		return nil
	}
	if strings.HasPrefix(err.Error(), operation+" job") {
		return err
	}
	if one, ok := err.(*JobError); ok {
		return fmt.Errorf("%s %w", operation, one)
	}
	return fmt.Errorf("%s jobs: %w", operation, err)
}

// notFound is an error about ids that do not exist. It wraps the mismatch error of
// the repository.
type notFound struct{ error }

func (e notFound) Unwrap() []error { return []error{ErrJobNotFound, e.error} }

// unwritten is the error of a change that was not tried: whatever became of what
// prepares it, nothing of the change has happened.
type unwritten struct{ err error }

func (e unwritten) Error() string { return e.err.Error() }
func (e unwritten) Is(target error) bool {
	return target != ErrOutcomeUnknown && errors.Is(e.err, target)
}
func (e unwritten) As(target any) bool { return errors.As(e.err, target) }

// join is errors.Join that leaves a single error as it is.
func join(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// undecodableLeaves takes an error apart, and reports whether each of its leaves
// is a JobError that wraps ErrUndecodable.
func undecodableLeaves(err error) (leaves []error, only bool) {
	switch e := err.(type) {
	case *JobError:
		return []error{e}, errors.Is(e, ErrUndecodable)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			more, only := undecodableLeaves(err)
			if !only {
				return nil, false
			}
			leaves = append(leaves, more...)
		}
		return leaves, len(leaves) > 0
	case interface{ Unwrap() error }:
		return undecodableLeaves(e.Unwrap())
	}
	return nil, false
}

// jobID is the id of the job that err is about, or 0.
func jobID(err error) int64 {
	if jobError := (*JobError)(nil); errors.As(err, &jobError) {
		return jobError.JobID
	}
	return 0
}

// maxIDsInText bounds how many ids stand in a message.
const maxIDsInText = 20

// idText lists ids, the first of many.
func idText(ids []int64) string {
	var text strings.Builder
	for i, id := range ids {
		if i == maxIDsInText {
			fmt.Fprintf(&text, " and %d more", len(ids)-i)
			break
		}
		if i > 0 {
			text.WriteString(", ")
		}
		text.WriteString(strconv.FormatInt(id, 10))
	}
	return text.String()
}

// CronJob is what a user schedules. Its concrete type is registered with
// gob.Register before Start, so that a row can be turned back into it, and what
// is to survive a restart stands in exported fields. AddJobs refuses a value that
// gob would not give back as it is: gob makes a pointer to a zero value nil.
//
// Run is called on a goroutine of its own at each tick. It may call any method
// of SmallBen, except that it must not wait for Stop. A panic in Run, or a
// runtime.Goexit, is recovered, logged and counted. Panics on goroutines that
// Run starts, and fatal runtime errors, are beyond any library and end the
// process.
//
// A GobDecode method of the type must not call methods that change jobs:
// SmallBen may be waiting for it while it makes a change.
type CronJob interface {
	Run(input CronJobInput)
}

// CronJobInput is what a run receives.
type CronJobInput struct {
	// JobID, GroupID and SuperGroupID are the ids of the job.
	JobID        int64
	GroupID      int64
	SuperGroupID int64
	// CronExpression is the expression that the job is scheduled by.
	CronExpression string
	// OtherInputs is the input that was given to AddJobs or UpdateJobs, and
	// after a restart or a resume what its JSON decodes to: a float64 for each
	// number, a string for a time or bytes, []any and map[string]any for slices,
	// maps and structs. Decode gives the same in both cases. The map is the run's own; what its values point to
	// is shared with other runs.
	OtherInputs map[string]interface{}
	// ScheduledAt is the tick: the nominal instant that the run was started
	// for, in the location of SchedulerConfig.
	ScheduledAt time.Time
	// Triggered tells a run of TriggerJobs, whose ScheduledAt is the time of
	// that call, from one of the schedule.
	Triggered bool
	// Attempt counts the attempts of the run from 1: see RunOptions.Attempts, and
	// RunsConfig.RerunLost for runs that were lost.
	Attempt int
	// Missed is 0, or, for a run that makes up for missed ticks
	// (RunsConfig.Missed), how many it stands for, its own included.
	Missed int

	// stored is the JSON of OtherInputs as the row has it.
	stored string
}

// Decode unmarshals the stored JSON of the input into v, as json.Unmarshal
// does. An integer decoded into an integer field is exact to 64 bits, unlike
// one taken from OtherInputs after a restart.
func (in CronJobInput) Decode(v any) error {
	text := in.stored
	if text == "" {
		// Not from SmallBen: a CronJobInput that a user's test made.
		encoded, err := json.Marshal(in.OtherInputs)
		if err != nil {
			return jobErrorf(in.JobID, "input: %w", err)
		}
		text = string(encoded)
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return jobErrorf(in.JobID, "decode input: %w", err)
	}
	return nil
}

// String names the run, without the input.
func (in CronJobInput) String() string {
	return fmt.Sprintf("run of job %d for %s", in.JobID, in.ScheduledAt.Format(time.RFC3339))
}

// Job is a job as users see it: what AddJobs takes and ListJobs returns. What its
// methods tell is as of the listing.
type Job struct {
	// ID names the job. It is unique in the repository, and not 0.
	ID int64
	// GroupID and SuperGroupID let many jobs be selected at once. They mean
	// what the user wants them to mean.
	GroupID      int64
	SuperGroupID int64
	// CronExpression says when the job runs.
	CronExpression string
	// Job is what runs.
	Job CronJob
	// JobInput is handed to each run as CronJobInput.OtherInputs. It is
	// stored as JSON, in which text that is not UTF-8 becomes U+FFFD. Nil is
	// allowed.
	JobInput map[string]interface{}
	// StartPaused adds the job paused, in one write. Of a job that is stored it
	// says nothing: ListJobs leaves it false, and UpsertJobs takes no notice.
	StartPaused bool

	paused    bool
	createdAt time.Time
	updatedAt time.Time
	input     string         // as it is stored; empty for a Job that does not come from ListJobs
	schedule  cron.Schedule  // nil for a Job that does not come from ListJobs
	location  *time.Location // where the schedule is read
	lastRun   Run
	running   bool
	options   *RunOptions // nil for a Job that does not come from ListJobs

	nextAttempt *Run  // that waits; nil if none does
	recentRuns  []Run // oldest first
}

// CreatedAt returns when the job was added, in UTC. It is the zero time for a
// Job that does not come from ListJobs.
func (j *Job) CreatedAt() time.Time { return j.createdAt }

// UpdatedAt returns when the job was last paused, resumed, updated or replaced by
// UpsertJobs, in UTC; before that, when it was added.
func (j *Job) UpdatedAt() time.Time { return j.updatedAt }

// DecodeInput unmarshals the stored JSON of the input into v, as json.Unmarshal
// does: integers are exact to 64 bits, and a json.RawMessage gets the JSON itself.
// A Job that does not come from ListJobs has none, which is an error.
func (j *Job) DecodeInput(v any) error {
	if err := json.Unmarshal([]byte(j.input), v); err != nil {
		return fmt.Errorf("decode the input of job %d: %w", j.ID, err)
	}
	return nil
}

// Paused reports whether the job was paused when it was listed.
func (j *Job) Paused() bool { return j.paused }

// LastRun returns the last run of the job when it was listed, or the zero value if
// there is none. If runs are recorded (Config.Runs) it is the one of the newest tick
// that ran in any process, one in progress included; ticks that were missed or
// skipped, or that wait, are none. Otherwise it is the one that had ended last in
// this process: it outlives Stop, pauses and updates, but not the job nor the
// process.
func (j *Job) LastRun() Run { return j.lastRun }

// Running reports whether a run of the job was in progress when it was listed: in
// any process if runs are recorded, and otherwise in this one.
func (j *Job) Running() bool { return j.running }

// NextAttempt returns the attempt that waited when the job was listed, with the time at
// which it is Due; the zero value if none did. If runs are recorded it is the first one
// due that waits for any process, for its time or for the end of another run. Otherwise
// it is a further attempt of a run that failed in this process.
func (j *Job) NextAttempt() Run {
	if j.nextAttempt == nil {
		return Run{}
	}
	return *j.nextAttempt
}

// RecentRuns returns the newest recorded runs of a job that comes from JobsAfter, oldest
// first: those of as many ticks as it was asked for, what was missed and skipped
// included, and, though they may be older, LastRun and what waits.
func (j *Job) RecentRuns() []Run { return j.recentRuns }

// RunOptions tells how the runs of the job are treated: its own RunOptions if it is a
// ConfiguredJob, with what the Config of the SmallBen says in place of each zero. A
// Timeout below zero is no limit. A Job that does not come from ListJobs or Jobs has
// the zero value.
func (j *Job) RunOptions() RunOptions {
	if j.options == nil {
		return RunOptions{}
	}
	return *j.options
}

// NextRun returns the first tick of the job after the call: the zero time if the
// job was paused when it was listed, or if no tick comes in the next forty years.
func (j *Job) NextRun() time.Time {
	if next := j.NextRuns(1); len(next) > 0 && !j.paused {
		return next[0]
	}
	return time.Time{}
}

// NextRuns returns the first n ticks of the job's schedule after the call, fewer
// if it has fewer, whether the job is paused or not. They are in the location of
// SchedulerConfig. A Job that does not come from ListJobs or Jobs has none: for
// an expression that is not stored there is SmallBen.NextRuns.
func (j *Job) NextRuns(n int) []time.Time {
	if j.schedule == nil {
		return nil
	}
	return cronexpr.Ticks(j.schedule, time.Now().In(j.location), n)
}

// String names the job, without its input.
func (j Job) String() string {
	text := fmt.Sprintf("job %d (group %d, super-group %d) %q", j.ID, j.GroupID, j.SuperGroupID, j.CronExpression)
	if j.paused {
		text += ", paused"
	}
	return text
}

// build validates the job and encodes it into a row created at createdAt. It
// calls the user's encoding methods.
func (j *Job) build(rules cronexpr.Rules, createdAt time.Time) (JobWithSchedule, error) {
	if j.ID == 0 {
		return JobWithSchedule{}, jobErrorf(j.ID, "%w: the id is 0", ErrInvalidJob)
	}
	var past error
	err := rules.Check(j.CronExpression)
	if errors.Is(err, cronexpr.ErrPast) {
		past, err = invalid(j.ID, err), nil
	}
	if err != nil {
		return JobWithSchedule{}, invalid(j.ID, err)
	}
	schedule, err := cronexpr.Parse(j.CronExpression, createdAt)
	if err != nil {
		return JobWithSchedule{}, invalid(j.ID, err)
	}
	encodedJob, err := storedJobs.Encode(j.Job)
	if err != nil {
		return JobWithSchedule{}, invalid(j.ID, err)
	}
	encodedInput, err := stored.EncodeInput(j.JobInput)
	if err != nil {
		return JobWithSchedule{}, invalid(j.ID, err)
	}
	raw := RawJob{
		ID:                 j.ID,
		GroupID:            j.GroupID,
		SuperGroupID:       j.SuperGroupID,
		CronID:             DefaultCronID,
		CronExpression:     j.CronExpression,
		Paused:             j.StartPaused,
		CreatedAt:          createdAt,
		UpdatedAt:          createdAt,
		SerializedJob:      encodedJob,
		SerializedJobInput: encodedInput,
	}
	options, err := optionsOf(j.Job)
	if err != nil {
		return JobWithSchedule{}, invalid(j.ID, err)
	}
	built := newJobWithSchedule(raw, schedule, j.Job, maps.Clone(j.JobInput), options)
	built.given, built.past = true, past
	return built, nil
}

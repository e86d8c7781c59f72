package smallben

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/robfig/cron/v3"
	"gorm.io/gorm"

	"github.com/nbena/smallben/internal/gobrow"
)

// DefaultCronID is the cron id of a job that is not scheduled: a paused one, or
// one that was added while SmallBen was not started.
const DefaultCronID = int64(0)

// maxStored bounds the stored form of a job and of its input, in bytes.
const maxStored = 1 << 20

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
	// ErrOutcomeUnknown is what errors.Is finds when the database did not
	// say whether a write happened. SmallBen reads the rows again as soon as
	// the database answers; the caller may list the jobs to learn the same.
	ErrOutcomeUnknown = errors.New("outcome of the write unknown")
	// ErrNotRegistered is what errors.Is finds when a Recorder is asked in the
	// name of a process that it does not know, or no longer does.
	ErrNotRegistered = errors.New("process not registered")
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

// wrap says at the package's edge what was being done: "add job 42: …". A
// repository may have said it already.
func wrap(operation string, err error) error {
	if strings.HasPrefix(err.Error(), operation+" job") {
		return err
	}
	if one, ok := err.(*JobError); ok {
		return fmt.Errorf("%s %w", operation, one)
	}
	return fmt.Errorf("%s jobs: %w", operation, err)
}

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
// is to survive a restart stands in exported fields.
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
	// after a restart or a resume what its JSON decodes to, in which each
	// number is a float64. The map is the run's own; what its values point to
	// is shared with other runs.
	OtherInputs map[string]interface{}
	// ScheduledAt is the tick: the nominal instant that the run was started
	// for, in the location of SchedulerConfig.
	ScheduledAt time.Time
	// Triggered tells a run of TriggerJobs, whose ScheduledAt is the time of
	// that call, from one of the schedule.
	Triggered bool
	// Attempt is 1, or 2 for a run in place of one that was lost
	// (RunsConfig.RerunLost).
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
	stored := in.stored
	if stored == "" {
		// Not from SmallBen: a CronJobInput that a user's test made.
		encoded, err := json.Marshal(in.OtherInputs)
		if err != nil {
			return jobErrorf(in.JobID, "input: %w", err)
		}
		stored = string(encoded)
	}
	if err := json.Unmarshal([]byte(stored), v); err != nil {
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

	paused    bool
	createdAt time.Time
	updatedAt time.Time
	schedule  cron.Schedule  // nil for a Job that does not come from ListJobs
	location  *time.Location // where the schedule is read
	lastRun   RunResult
	running   bool
	recorded  Run // the last one in the record
}

// CreatedAt returns when the job was added, in UTC. It is the zero time for a
// Job that does not come from ListJobs.
func (j *Job) CreatedAt() time.Time { return j.createdAt }

// UpdatedAt returns when the job was last paused, resumed, updated or replaced by
// UpsertJobs, in UTC; before that, when it was added.
func (j *Job) UpdatedAt() time.Time { return j.updatedAt }

// Paused reports whether the job was paused when it was listed.
func (j *Job) Paused() bool { return j.paused }

// LastRun returns the run of the job that had ended last in this process when it
// was listed. The zero value means none. It outlives Stop, pauses and updates, but
// not the job nor the process.
func (j *Job) LastRun() RunResult { return j.lastRun }

// LastRecordedRun returns the newest run of the job in the record, of any process,
// one in progress included; ticks that were missed or skipped are none. It is the
// zero value if there is none or runs are not recorded (Config.Runs).
func (j *Job) LastRecordedRun() Run { return j.recorded }

// Running reports whether a run of the job was in progress in this process when
// it was listed.
func (j *Job) Running() bool { return j.running }

// NextRun returns the first tick of the job after the call: the zero time if the
// job was paused when it was listed, or if no tick comes in the next five years.
func (j *Job) NextRun() time.Time {
	if next := j.NextRuns(1); len(next) > 0 && !j.paused {
		return next[0]
	}
	return time.Time{}
}

// NextRuns returns the first n ticks of the job's schedule after the call, fewer
// if it has fewer, whether the job is paused or not. They are in the location of
// SchedulerConfig. A Job that does not come from ListJobs or Jobs has none: for
// an expression that is not stored there is the function NextRuns.
func (j *Job) NextRuns(n int) []time.Time {
	if j.schedule == nil {
		return nil
	}
	return nextTicks(j.schedule, time.Now().In(j.location), n)
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
func (j *Job) build(withSeconds bool, createdAt time.Time) (JobWithSchedule, error) {
	if j.ID == 0 {
		return JobWithSchedule{}, jobErrorf(j.ID, "%w: the id is 0", ErrInvalidJob)
	}
	if err := validateExpression(j.CronExpression, withSeconds); err != nil {
		return JobWithSchedule{}, jobErrorf(j.ID, "%w: %w", ErrInvalidJob, err)
	}
	schedule, err := parseExpression(j.CronExpression, createdAt)
	if err != nil {
		return JobWithSchedule{}, jobErrorf(j.ID, "%w: %w", ErrInvalidJob, err)
	}
	encodedJob, err := encodeJob(j.Job)
	if err != nil {
		return JobWithSchedule{}, jobErrorf(j.ID, "%w: %w", ErrInvalidJob, err)
	}
	encodedInput, err := encodeInput(j.JobInput)
	if err != nil {
		return JobWithSchedule{}, jobErrorf(j.ID, "%w: %w", ErrInvalidJob, err)
	}
	raw := RawJob{
		ID:                 j.ID,
		GroupID:            j.GroupID,
		SuperGroupID:       j.SuperGroupID,
		CronID:             DefaultCronID,
		CronExpression:     j.CronExpression,
		CreatedAt:          createdAt,
		UpdatedAt:          createdAt,
		SerializedJob:      encodedJob,
		SerializedJobInput: encodedInput,
	}
	return newJobWithSchedule(raw, schedule, j.Job, maps.Clone(j.JobInput)), nil
}

// RawJob is one row of the table "jobs".
type RawJob struct {
	// ID, GroupID and SuperGroupID are those of the Job.
	ID           int64 `gorm:"column:id;primaryKey;autoIncrement:false"`
	GroupID      int64 `gorm:"column:group_id;not null;index:group_idx"`
	SuperGroupID int64 `gorm:"column:super_group_id;not null;index:super_group_idx"`
	// CronID is the number of the job's entry in the process that wrote it,
	// or DefaultCronID. It is a label: nothing acts on it.
	CronID int64 `gorm:"column:cron_id;not null;default:0"`
	// CronExpression says when the job runs.
	CronExpression string `gorm:"column:cron_expression;type:varchar(256);not null"`
	// Paused says that the job does not run.
	Paused bool `gorm:"column:paused;not null;default:false;index:paused_idx"`
	// CreatedAt and UpdatedAt are in UTC, exact to the microsecond.
	CreatedAt time.Time `gorm:"column:created_at;precision:6;not null"`
	UpdatedAt time.Time `gorm:"column:updated_at;precision:6;not null"`
	// SerializedJob is the base64 of the gob of the CronJob interface value.
	SerializedJob string `gorm:"column:serialized_job;not null"`
	// SerializedJobInput is the JSON of the input.
	SerializedJobInput string `gorm:"column:serialized_job_input;not null"`

	// Revision is that of the last change of the job, as a Recorder gives it. It
	// is no column of the table, and 0 elsewhere.
	Revision int64 `gorm:"-"`

	// defect says why a column could not be read, if so.
	defect string
}

// nameless reports whether not even the id could be read.
func (j *RawJob) nameless() bool { return strings.HasPrefix(j.defect, "column id ") }

// TableName tells GORM the name of the table.
func (j *RawJob) TableName() string { return "jobs" }

// ToJobWithSchedule turns the row back into a job. Its error is a JobError that
// wraps ErrUndecodable: base64, gob, JSON or the expression is broken, a column
// is NULL or of another type, the type of the job is not registered with gob,
// or the stored job is larger than 1 MiB.
func (j *RawJob) ToJobWithSchedule() (JobWithSchedule, error) {
	fail := func(err error) (JobWithSchedule, error) {
		return JobWithSchedule{}, jobErrorf(j.ID, "%w: %w", ErrUndecodable, err)
	}
	if j.defect != "" {
		return fail(errors.New(j.defect))
	}
	schedule, err := parseExpression(j.CronExpression, j.CreatedAt)
	if err != nil {
		return fail(err)
	}
	job, err := decodeJob(j.SerializedJob)
	if err != nil {
		return fail(err)
	}
	input, err := decodeInput(j.SerializedJobInput)
	if err != nil {
		return fail(err)
	}
	return newJobWithSchedule(*j, schedule, job, input), nil
}

// JobWithSchedule is a row together with what it decodes to. It comes from
// RawJob.ToJobWithSchedule; the zero value holds no job.
type JobWithSchedule struct {
	rawJob   RawJob
	schedule cron.Schedule
	job      CronJob
	input    map[string]any

	// changes says which columns a change names. For an update, nothing set
	// means both expression and input.
	changes columnChanges
}

type columnChanges struct{ expression, input, job bool }

func newJobWithSchedule(raw RawJob, schedule cron.Schedule, job CronJob, input map[string]any) JobWithSchedule {
	raw.CreatedAt = raw.CreatedAt.UTC()
	raw.UpdatedAt = raw.UpdatedAt.UTC()
	return JobWithSchedule{rawJob: raw, schedule: schedule, job: job, input: input}
}

// BuildJob returns the row to store: the job and its input are in their stored
// form, and CronID is the one to write. It fails only for the zero value.
func (j *JobWithSchedule) BuildJob() (RawJob, error) {
	if j.job == nil {
		return RawJob{}, jobErrorf(j.rawJob.ID, "%w: the job is nil", ErrInvalidJob)
	}
	return j.rawJob, nil
}

// Schedule returns when the job runs. Where the expression names no time zone,
// Next goes by the location of the time that it is given.
func (j *JobWithSchedule) Schedule() cron.Schedule { return j.schedule }

func (j *JobWithSchedule) toJob() Job {
	return Job{
		ID:             j.rawJob.ID,
		GroupID:        j.rawJob.GroupID,
		SuperGroupID:   j.rawJob.SuperGroupID,
		CronExpression: j.rawJob.CronExpression,
		Job:            j.job,
		JobInput:       j.input,
		paused:         j.rawJob.Paused,
		createdAt:      j.rawJob.CreatedAt,
		updatedAt:      j.rawJob.UpdatedAt,
		schedule:       j.schedule,
	}
}

// jobDecoder is shared: what it learns of a type serves every later row.
var jobDecoder gobrow.Decoder[CronJob]

// encodeJob gives the stored form of a job: the base64 of its gob. The gob is
// read back at once, so that what is stored can be loaded: gob encodes some
// values that it cannot decode, such as a pointer whose type was registered as
// a value.
func encodeJob(job CronJob) (string, error) {
	if job == nil {
		return "", errors.New("the job is nil")
	}
	if v := reflect.ValueOf(job); v.Kind() == reflect.Pointer && v.IsNil() {
		return "", fmt.Errorf("the job is a nil %T", job)
	}
	row, err := gobrow.Encode(job)
	if err != nil {
		if strings.Contains(fmt.Sprint(err), "type not registered for interface") {
			return "", fmt.Errorf("the type %T is unknown to gob: call gob.Register(%s) first: %w", job, exampleValue(job), err)
		}
		return "", fmt.Errorf("encode the job: %w", err)
	}
	if size := base64.StdEncoding.EncodedLen(len(row)); size > maxStored {
		return "", fmt.Errorf("the stored job has %d bytes: at most %d are allowed", size, maxStored)
	}
	if _, err := jobDecoder.Decode(row); err != nil {
		return "", fmt.Errorf("the encoded job cannot be read back: %w", err)
	}
	return base64.StdEncoding.EncodeToString(row), nil
}

// exampleValue writes the Go expression that gob.Register wants for the type
// of job.
func exampleValue(job CronJob) string {
	t := reflect.TypeOf(job)
	switch t.Kind() {
	case reflect.Pointer:
		if t.Elem().Kind() != reflect.Struct {
			return "new(" + t.Elem().String() + ")"
		}
		return "&" + t.Elem().String() + "{}"
	case reflect.Struct, reflect.Map, reflect.Slice, reflect.Array:
		return t.String() + "{}"
	default:
		return "*new(" + t.String() + ")"
	}
}

func decodeJob(stored string) (CronJob, error) {
	if len(stored) > maxStored {
		return nil, fmt.Errorf("the stored job has %d bytes: at most %d are allowed", len(stored), maxStored)
	}
	row, err := base64.StdEncoding.DecodeString(stored)
	if err != nil {
		return nil, fmt.Errorf("job: %w", err)
	}
	job, err := jobDecoder.Decode(row)
	if err != nil && strings.Contains(fmt.Sprint(err), "name not registered for interface") {
		return nil, fmt.Errorf("job: %w: call gob.Register for its type before Start", err)
	}
	if err != nil {
		return nil, fmt.Errorf("job: %w", err)
	}
	return job, nil
}

// encodeInput gives the stored form of an input: its JSON.
func encodeInput(input map[string]any) (stored string, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("encode the input: panic: %v", r)
		}
	}()
	encoded, err := json.Marshal(input)
	if err != nil {
		return "", fmt.Errorf("encode the input: %w", err)
	}
	if len(encoded) > maxStored {
		return "", fmt.Errorf("the stored input has %d bytes: at most %d are allowed", len(encoded), maxStored)
	}
	// What json writes it can mostly read: not a json.Number of 1e999, nor
	// nesting beyond its decoder's limit.
	if !plain(input) {
		if _, err := decodeInput(string(encoded)); err != nil {
			return "", fmt.Errorf("the encoded input cannot be read back: %w", err)
		}
	}
	return string(encoded), nil
}

// plain reports whether input holds nothing but what json is certain to read
// back.
func plain(input map[string]any) bool {
	for _, value := range input {
		switch value.(type) {
		case nil, bool, string, int, int64, float64:
		default:
			return false
		}
	}
	return true
}

func decodeInput(stored string) (map[string]any, error) {
	var input map[string]any
	if err := json.Unmarshal([]byte(stored), &input); err != nil {
		return nil, fmt.Errorf("input: %w", err)
	}
	return input, nil
}

// sameJSON reports whether two inputs are the same to the last digit, however
// they are written.
func sameJSON(a, b string) bool {
	if a == b {
		return true
	}
	exact := func(stored string) (value any, err error) {
		decoder := json.NewDecoder(strings.NewReader(stored))
		decoder.UseNumber()
		err = decoder.Decode(&value)
		return value, err
	}
	before, err := exact(a)
	after, otherErr := exact(b)
	return err == nil && otherErr == nil && reflect.DeepEqual(before, after)
}

// decodeRows decodes rows on all cores. It returns the jobs of those that
// decode and the JobErrors of the others, each in the order of the rows.
func decodeRows(rows []RawJob) ([]JobWithSchedule, []error) {
	const block = 128
	jobs, errs := make([]JobWithSchedule, len(rows)), make([]error, len(rows))
	var next atomic.Int64
	work := func() {
		for {
			end := int(next.Add(block))
			for i := end - block; i < min(end, len(rows)); i++ {
				jobs[i], errs[i] = rows[i].ToJobWithSchedule()
			}
			if end >= len(rows) {
				return
			}
		}
	}
	// Not on this goroutine, which a GobDecode could end.
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), (len(rows)+block-1)/block) {
		wg.Go(work)
	}
	wg.Wait()
	for i := range rows {
		if jobs[i].job == nil && errs[i] == nil {
			errs[i] = jobErrorf(rows[i].ID, "%w: its decoding ends the goroutine", ErrUndecodable)
			wg.Go(func() { jobs[i], errs[i] = rows[i].ToJobWithSchedule() })
			wg.Wait()
		}
	}

	decoded := 0
	for i := range jobs {
		if errs[i] == nil {
			jobs[decoded] = jobs[i]
			decoded++
		}
	}
	return jobs[:decoded], slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

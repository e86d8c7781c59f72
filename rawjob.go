package smallben

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/nbena/smallben/internal/cronexpr"
	"github.com/nbena/smallben/internal/gobrow"
)

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

	// revision is that of the last change of the job, if runs are recorded. It is
	// no column of the table.
	revision int64

	// defect says why a column could not be read, if so.
	defect string
}

// nameless reports whether not even the id could be read.
func (j *RawJob) nameless() bool { return strings.HasPrefix(j.defect, "column id ") }

// storesAs reports whether another row decodes to the same job.
func (j *RawJob) storesAs(other *RawJob) bool {
	return j.defect == other.defect && j.SerializedJob == other.SerializedJob && j.SerializedJobInput == other.SerializedJobInput &&
		j.CronExpression == other.CronExpression && j.CreatedAt.Equal(other.CreatedAt)
}

// registeredName is the name that the type of the job is registered under with
// gob: the stored form begins with it. It is empty if the row does not decode.
func (j *RawJob) registeredName() string {
	row, err := base64.StdEncoding.DecodeString(j.SerializedJob)
	if err != nil {
		return ""
	}
	return gobrow.RegisteredName(row)
}

// TableName tells GORM the name of the table.
func (j *RawJob) TableName() string { return "jobs" }

// ToJobWithSchedule turns the row back into a job. Its error is a JobError that
// wraps ErrUndecodable: base64, gob, JSON or the expression is broken, a column
// is NULL or of another type, the type of the job is not registered with gob,
// its RunOptions are not valid, or the stored job is larger than 1 MiB.
func (j *RawJob) ToJobWithSchedule() (JobWithSchedule, error) {
	fail := func(err error) (JobWithSchedule, error) {
		return JobWithSchedule{}, jobErrorf(j.ID, "%w: %w", ErrUndecodable, err)
	}
	if j.defect != "" {
		return fail(errors.New(j.defect))
	}
	schedule, err := cronexpr.Parse(j.CronExpression, j.CreatedAt)
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
	decoded := newJobWithSchedule(*j, schedule, job, input)
	if decoded.options, err = optionsOf(job); err != nil {
		return fail(err)
	}
	return decoded, nil
}

// JobWithSchedule is a row together with what it decodes to. It comes from
// RawJob.ToJobWithSchedule; the zero value holds no job.
type JobWithSchedule struct {
	rawJob   RawJob
	schedule cron.Schedule
	job      CronJob
	input    map[string]any
	given    bool        // input is what a user gave, not what the row decodes to
	options  *RunOptions // as the job gives them; nil if it is no ConfiguredJob
	past     error       // why it is refused where no row has its expression already; or nil

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
		input:          j.rawJob.SerializedJobInput,
		schedule:       j.schedule,
		options:        j.options,
	}
}

// maxStored bounds the stored form of a job and of its input, in bytes.
const maxStored = 1 << 20

// jobDecoder is shared: what it learns of a type serves every later row.
var jobDecoder gobrow.Decoder[CronJob]

// encodeJob gives the stored form of a job: the base64 of its gob. The gob is
// read back at once, so that what is stored can be loaded and is what was given:
// gob encodes some values that it cannot decode, such as a pointer whose type was
// registered as a value, and leaves out others, such as a pointer to zero.
func encodeJob(job CronJob) (string, error) {
	if job == nil {
		return "", errors.New("the job is nil")
	}
	if v := reflect.ValueOf(job); v.Kind() == reflect.Pointer && v.IsNil() {
		return "", fmt.Errorf("the job is a nil %T", job)
	}
	row, err := gobrow.Encode(job)
	if err != nil {
		return "", explainEncoding(err)
	}
	if size := base64.StdEncoding.EncodedLen(len(row)); size > maxStored {
		return "", fmt.Errorf("the stored job has %d bytes: at most %d are allowed", size, maxStored)
	}
	stored, err := jobDecoder.Decode(row)
	if err != nil {
		return "", fmt.Errorf("the encoded job cannot be read back: %w", err)
	}
	if err := gobrow.Loss(job, stored); err != nil {
		return "", fmt.Errorf("gob would not give back the job as it is: %w", err)
	}
	return base64.StdEncoding.EncodeToString(row), nil
}

// explainEncoding says what to do about an error of gobrow.Encode.
func explainEncoding(err error) error {
	var unregistered *gobrow.UnregisteredError
	if !errors.As(err, &unregistered) {
		return fmt.Errorf("encode the job: %w", err)
	}
	where := ""
	if unregistered.At != "" {
		where = " in " + unregistered.At
	}
	return fmt.Errorf("the type %s%s is unknown to gob: call gob.Register(%s) first: %w",
		unregistered.Type, where, exampleValue(unregistered.Type), unregistered.Err)
}

// exampleValue writes the Go expression that gob.Register wants for type t.
func exampleValue(t reflect.Type) string {
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

// logUnsent logs, once for each type of job, the fields that are not stored.
func (s *SmallBen) logUnsent(jobs []JobWithSchedule) {
	for i := range jobs {
		jobType := reflect.TypeOf(jobs[i].job)
		if _, known := s.types.Load(jobType); known {
			continue
		}
		if _, known := s.types.LoadOrStore(jobType, true); known {
			continue
		}
		if fields := gobrow.Unsent(jobType); len(fields) > 0 {
			name := jobs[i].rawJob.registeredName()
			s.log.report(func(sink cron.Logger) {
				sink.Info("fields not stored", "job_type", name, "fields", strings.Join(fields, ", "))
			})
		}
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

// noInput is the stored form of a nil input.
const noInput = "null"

func decodeInput(stored string) (map[string]any, error) {
	if stored == noInput {
		return nil, nil
	}
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

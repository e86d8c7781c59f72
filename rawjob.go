package smallben

import (
	"errors"
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
	"github.com/nbena/smallben/internal/jobsql"
	"github.com/nbena/smallben/internal/stored"
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
func (j *RawJob) nameless() bool { return jobsql.Nameless(j.defect) }

// storesAs reports whether another row decodes to the same job.
func (j *RawJob) storesAs(other *RawJob) bool {
	return j.defect == other.defect && j.SerializedJob == other.SerializedJob && j.SerializedJobInput == other.SerializedJobInput &&
		j.CronExpression == other.CronExpression && j.CreatedAt.Equal(other.CreatedAt)
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
	job, err := storedJobs.Decode(j.SerializedJob)
	if err != nil {
		return fail(err)
	}
	input, err := stored.DecodeInput(j.SerializedJobInput)
	if err != nil {
		return fail(err)
	}
	options, err := optionsOf(job)
	if err != nil {
		return fail(err)
	}
	return newJobWithSchedule(*j, schedule, job, input, options), nil
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

func newJobWithSchedule(raw RawJob, schedule cron.Schedule, job CronJob, input map[string]any, options *RunOptions) JobWithSchedule {
	raw.CreatedAt = raw.CreatedAt.UTC()
	raw.UpdatedAt = raw.UpdatedAt.UTC()
	return JobWithSchedule{rawJob: raw, schedule: schedule, job: job, input: input, options: options}
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

// logUnsent logs, once for each type of job, the fields that are not stored.
func (s *SmallBen) logUnsent(jobs []JobWithSchedule) {
	for i := range jobs {
		jobType := reflect.TypeOf(jobs[i].job)
		if _, logged := s.types.LoadOrStore(jobType, true); logged {
			continue
		}
		if fields := gobrow.Unsent(jobType); len(fields) > 0 {
			name := stored.RegisteredName(jobs[i].rawJob.SerializedJob)
			s.log.Report(func(sink cron.Logger) {
				sink.Info("fields not stored", "job_type", name, "fields", strings.Join(fields, ", "))
			})
		}
	}
}

// storedJobs gives the stored form of jobs.
var storedJobs stored.Jobs[CronJob]

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

package smallben

// Repository keeps jobs. NewRepositoryGorm gives the one that comes with this
// package; another can be written against this contract, in any package.
//
// Reading and building rows: JobWithSchedule.BuildJob gives the row of a job,
// RawJob.ToJobWithSchedule the job of a row, ResolveListOptions the filters of
// a ToListOptions.
//
// Methods are safe for concurrent use, and each is bounded in time. A method
// that writes is one atomic write: it happens as a whole or not at all, and an
// error means that nothing changed, with two exceptions:
//
//   - the mismatch error (ErrorTypeIfMismatchCount) of a method that writes
//     means that every id that exists was changed and that the others do not
//     exist;
//   - an error that wraps ErrOutcomeUnknown means that the write may have
//     happened, and was a COMMIT whose reply was lost. It may have a method
//     Settled() (bool, error), which errors.As finds: SmallBen asks it until it
//     reports true, which says that what the rows are now is the outcome, and
//     reads the rows then. An error of Settled means that there was no answer.
//     Without the method, SmallBen reads the rows every two seconds, for five
//     minutes, since the COMMIT may yet happen.
//
// The mismatch error is wrapped, with the missing ids in the message; errors.Is
// finds it. Repeated ids count once. An empty or nil slice of jobs or ids is a
// success that changes nothing.
//
// Results are ordered by job id, and are the caller's to keep and to change. So
// are arguments once a method has returned. Times are in UTC and exact to the
// microsecond; what AddJobs stores is what the reading methods return.
//
// A row that cannot be read or decoded never fails the reading of the others:
// ListJobs returns it as it is, and the methods that return JobWithSchedule
// leave it out and return its JobError, which wraps ErrUndecodable.
//
// SmallBen serialises its own writes, and looks at the rows before each. Reads
// come at any time.
//
// Optional abilities of repositories are interfaces of their own, which
// SmallBen finds by type assertion; this one does not grow.
type Repository interface {
	// AddJobs stores all of the jobs or none, with the CronID, CreatedAt and
	// UpdatedAt that their BuildJob gives; a zero CreatedAt or UpdatedAt
	// stands for the current time. An id that is stored already, or that
	// stands twice in jobs, is a JobError that wraps ErrJobExists; a value
	// that the table cannot hold is a JobError that wraps ErrInvalidJob.
	AddJobs(jobs []JobWithSchedule) error

	// GetJob returns one job. The error is the mismatch error if there is
	// none, and a JobError that wraps ErrUndecodable if its row does not
	// decode.
	GetJob(jobID int64) (JobWithSchedule, error)

	// PauseJobs sets Paused, sets CronID to DefaultCronID, and sets UpdatedAt
	// to the current time. Of each job only the ID is read.
	PauseJobs(jobs []RawJob) error

	// ResumeJobs clears Paused, sets CronID to the one that BuildJob gives,
	// and sets UpdatedAt to the current time.
	ResumeJobs(jobs []JobWithSchedule) error

	// GetAllJobsToExecute returns every job that is not paused and whose row
	// decodes. If rows did not decode, an error comes with the jobs, and each
	// of its leaves (errors.Join) is a JobError that wraps ErrUndecodable. A
	// read that failed returns no job and an error that has another leaf.
	GetAllJobsToExecute() ([]JobWithSchedule, error)

	// GetJobsByIds returns the jobs found, and with them the mismatch error
	// if ids are missing, and the JobErrors of rows that do not decode,
	// joined.
	GetJobsByIds(jobsID []int64) ([]JobWithSchedule, error)

	// DeleteJobsByIds deletes rows.
	DeleteJobsByIds(jobsID []int64) error

	// SetCronId sets CronID to the one that BuildJob gives, and nothing else.
	SetCronId(jobs []JobWithSchedule) error

	// SetCronIdAndChangeScheduleAndJobInput sets CronID, CronExpression and
	// SerializedJobInput to those that BuildJob gives, and UpdatedAt to the
	// current time. RepositoryGorm leaves out the columns that the update of
	// a job does not name.
	SetCronIdAndChangeScheduleAndJobInput(jobs []JobWithSchedule) error

	// ListJobs returns the rows that match every filter of options, decodable
	// or not. If the ids of jobs are the only filter and some do not exist,
	// the mismatch error comes with the rows found. Otherwise no match is no
	// error.
	ListJobs(options ToListOptions) ([]RawJob, error)

	// ErrorTypeIfMismatchCount returns the error that errors.Is finds when
	// ids do not exist. It is the same at each call.
	ErrorTypeIfMismatchCount() error
}

// Upserter is an optional ability of a Repository, which UpsertJobs needs to
// replace jobs.
type Upserter interface {
	// UpsertJobs stores the jobs of add as AddJobs does, and sets GroupID,
	// SuperGroupID, CronID, CronExpression, SerializedJob and
	// SerializedJobInput of those of replace to the ones that BuildJob gives,
	// and their UpdatedAt to the current time. It is one write for both: an id
	// of add that exists means that nothing changes, and an id of replace that
	// is missing is reported with the mismatch error after the rest happened.
	UpsertJobs(add, replace []JobWithSchedule) error
}

// Pager is an optional ability of a Repository, with which SmallBen.Jobs does
// not hold all rows at once.
type Pager interface {
	// ListJobsAfter returns the rows that match every filter of options and
	// whose id is greater than *after, in the order of their ids, limit at most.
	// A nil after means from the first. Ids that do not exist are no error.
	ListJobsAfter(options ToListOptions, after *int64, limit int) ([]RawJob, error)
}

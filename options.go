package smallben

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/nbena/smallben/internal/cronexpr"
)

// ErrUpdateOptionInvalid is what errors.Is finds in the error of an update
// that names nothing to change, or of two updates of one job in one call.
var ErrUpdateOptionInvalid = errors.New("invalid option")

// ToListOptions is what Repository.ListJobs takes: one of ListJobsOptions,
// PauseResumeOptions and DeleteOptions. ResolveListOptions reads it.
type ToListOptions interface {
	toListOptions() ListJobsOptions
}

// ListJobsOptions selects jobs. A job is selected if it matches every filter
// that is given. The zero value selects every job.
type ListJobsOptions struct {
	// Paused selects the paused jobs, or those that are not.
	// Nil means both.
	Paused *bool
	// GroupIDs, SuperGroupIDs and JobIDs select the jobs that have one of
	// these ids. Nil means any; an empty slice that is not nil selects
	// nothing. An id may stand twice.
	GroupIDs      []int64
	SuperGroupIDs []int64
	JobIDs        []int64
}

func (o ListJobsOptions) toListOptions() ListJobsOptions { return o }

// String says in words which jobs are selected.
func (o ListJobsOptions) String() string {
	var filters []string
	if o.Paused != nil {
		filters = append(filters, map[bool]string{true: "paused", false: "not paused"}[*o.Paused])
	}
	for _, filter := range []struct {
		name string
		ids  []int64
	}{{"ids", o.JobIDs}, {"groups", o.GroupIDs}, {"super-groups", o.SuperGroupIDs}} {
		switch {
		case filter.ids == nil:
		case len(filter.ids) == 0:
			filters = append(filters, "of "+filter.name+" (none)")
		default:
			filters = append(filters, "of "+filter.name+" "+idText(filter.ids))
		}
	}
	if len(filters) == 0 {
		return "all jobs"
	}
	return "jobs " + strings.Join(filters, ", ")
}

// onlyJobIDs reports whether the ids of jobs are the only filter, so that an
// id that does not exist is an error.
func (o ListJobsOptions) onlyJobIDs() bool {
	return o.JobIDs != nil && o.GroupIDs == nil && o.SuperGroupIDs == nil && o.Paused == nil
}

// PauseResumeOptions selects the jobs to pause, to resume or to trigger: those
// that match every filter that is given. The zero value selects every job: where that
// is meant, PauseAll and ResumeAll say so.
type PauseResumeOptions struct {
	// JobIDs, GroupIDs and SuperGroupIDs select the jobs that have one of
	// these ids. Nil means any; an empty slice that is not nil selects
	// nothing. An id may stand twice.
	JobIDs        []int64
	GroupIDs      []int64
	SuperGroupIDs []int64
}

func (o PauseResumeOptions) toListOptions() ListJobsOptions {
	return ListJobsOptions{JobIDs: o.JobIDs, GroupIDs: o.GroupIDs, SuperGroupIDs: o.SuperGroupIDs}
}

// String says in words which jobs are selected.
func (o PauseResumeOptions) String() string { return o.toListOptions().String() }

// DeleteOptions selects the jobs to delete: those that match every filter that
// is given.
//
// THE ZERO VALUE DELETES EVERY JOB: a filter that is nil does not filter. Where
// a slice comes from elsewhere, make it non-nil: an empty one deletes nothing. Where
// every job is meant, DeleteAll says so.
type DeleteOptions struct {
	PauseResumeOptions
	// Paused selects the paused jobs, or those that are not.
	// Nil means both.
	Paused *bool
}

func (o DeleteOptions) toListOptions() ListJobsOptions {
	options := o.PauseResumeOptions.toListOptions()
	options.Paused = o.Paused
	return options
}

// String says in words which jobs are selected.
func (o DeleteOptions) String() string { return o.toListOptions().String() }

// ResolveListOptions gives the filters that options stand for, so that a
// Repository can be written in another package. Nil, or a nil pointer, gives
// the zero value, which selects every job.
func ResolveListOptions(options ToListOptions) ListJobsOptions {
	if isNil(options) {
		return ListJobsOptions{}
	}
	return options.toListOptions()
}

// isNil reports whether options are nil or a nil pointer.
func isNil(options ToListOptions) bool {
	v := reflect.ValueOf(options)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}

// UpdateOption changes one job. Of CronExpression and JobOtherInputs at least
// one is set; what is nil stays as it is.
type UpdateOption struct {
	// JobID names the job.
	JobID int64
	// CronExpression is the new expression. Nil means no change.
	CronExpression *string
	// JobOtherInputs is the new input, in place of the whole old one.
	// Nil means no change.
	JobOtherInputs *map[string]interface{}
}

// String says what would change, without the input.
func (u UpdateOption) String() string {
	var changes []string
	if u.CronExpression != nil {
		changes = append(changes, fmt.Sprintf("expression %q", *u.CronExpression))
	}
	if u.JobOtherInputs != nil {
		changes = append(changes, "input")
	}
	if len(changes) == 0 {
		changes = append(changes, "nothing")
	}
	return fmt.Sprintf("update of job %d: %s", u.JobID, strings.Join(changes, ", "))
}

// Valid reports whether the option can be given to UpdateJobs: it returns a
// JobError that wraps ErrUpdateOptionInvalid if nothing would change, and one
// that wraps ErrInvalidJob if the expression is one that no configuration
// accepts. UpdateJobs itself goes by the configuration of its SmallBen.
func (u *UpdateOption) Valid() error {
	return u.valid(cronexpr.Rules{WithSeconds: true})
}

// valid is Valid for a configuration.
func (u *UpdateOption) valid(rules cronexpr.Rules) error {
	if u.CronExpression == nil && u.JobOtherInputs == nil {
		return jobErrorf(u.JobID, "%w: neither CronExpression nor JobOtherInputs is set", ErrUpdateOptionInvalid)
	}
	if u.CronExpression != nil {
		if err := rules.Check(*u.CronExpression); err != nil {
			return invalid(u.JobID, err)
		}
	}
	return nil
}

package smallben

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/nbena/smallben/internal/cronexpr"
	"github.com/nbena/smallben/internal/ledger/ledgersql"
	"github.com/nbena/smallben/internal/stored"
)

// AddJobs stores jobs and schedules them, all of them or none. Those that are
// added before Start run from Start on.
//
// Its error joins a JobError for each job that is refused: ErrInvalidJob for one
// that could not be stored, loaded or run; ErrJobExists for an id that is stored
// already or stands twice in jobs. Until the next restart, or resume after a
// pause, Run is called on the value given here; the top level of its input is
// copied.
//
// Like every method that reads or changes jobs it takes a connection of its own: within
// a transaction of yours on the same pool, which may have no other left, call AddJobsTx.
func (s *SmallBen) AddJobs(jobs []Job) error {
	return s.AddJobsContext(context.Background(), jobs)
}

// AddJobsContext is AddJobs, and ends with ctx.
func (s *SmallBen) AddJobsContext(ctx context.Context, jobs []Job) error {
	return s.perform(ctx, s.addition(jobs))
}

func (s *SmallBen) addition(jobs []Job) *change {
	if len(jobs) == 0 {
		return nil
	}
	c := &change{verb: "add", done: "jobs added"}
	built, err := s.build(jobs, false)
	c.refused, c.ids = err, jobIDs(built)
	c.decide = func(Repository) (decision, error) {
		return decision{
			effects: effectsOf(nil, c.ids, ledgersql.Begins),
			number:  [][]JobWithSchedule{built},
			write:   func(tx Repository) error { return tx.AddJobs(built) },
		}, nil
	}
	c.project = func() { s.project(c, built) }
	return c
}

// build validates and encodes the jobs, which runs code of the user: no lock is
// held. An @at that is past is refused unless the jobs may exist already.
func (s *SmallBen) build(jobs []Job, mayExist bool) ([]JobWithSchedule, error) {
	createdAt := s.now()
	built := make([]JobWithSchedule, 0, len(jobs))
	var refused []error
	seen := make(map[int64]int, len(jobs))
	for i := range jobs {
		if seen[jobs[i].ID]++; seen[jobs[i].ID] == 2 && jobs[i].ID != 0 {
			refused = append(refused, jobErrorf(jobs[i].ID, "%w: the id stands twice in the batch", ErrJobExists))
		}
		job, err := jobs[i].build(s.rules, createdAt)
		if err == nil && !mayExist {
			err = job.past
		}
		if err != nil {
			refused = append(refused, err)
			continue
		}
		built = append(built, job)
	}
	if len(refused) > 0 {
		return nil, join(refused)
	}
	s.logUnsent(built)
	return built, nil
}

// now is the time of creation of new jobs: by GORM's NowFunc, if there is one.
func (s *SmallBen) now() time.Time {
	if s.gorm != nil {
		return s.gorm.db().Now()
	}
	return time.Now().UTC().Truncate(time.Microsecond)
}

// DeleteJobs deletes the jobs that match options. Nil options are refused; THE
// ZERO DeleteOptions DELETES EVERY JOB; where that is meant, DeleteAll says so. A run
// that has started goes on, though it may still be on its way to the first statement
// of Run; once DeleteJobs has returned, none starts.
//
// If nothing matches, or ids do not exist and are the only filter, nothing is
// deleted and the error is that of ErrorTypeIfMismatchCount, with the ids.
func (s *SmallBen) DeleteJobs(options *DeleteOptions) error {
	return s.DeleteJobsContext(context.Background(), options)
}

// DeleteJobsContext is DeleteJobs, and ends with ctx.
func (s *SmallBen) DeleteJobsContext(ctx context.Context, options *DeleteOptions) error {
	return s.perform(ctx, s.deletion(options))
}

// DeleteAll deletes every job, as DeleteJobs with the zero DeleteOptions does. It
// is no error if there is none.
func (s *SmallBen) DeleteAll() error { return s.unlessNone(s.DeleteJobs(&DeleteOptions{})) }

// unlessNone drops the error of a change of all jobs that there are none.
func (s *SmallBen) unlessNone(err error) error {
	if s.isMismatch(err) && !errors.Is(err, ErrOutcomeUnknown) {
		return nil
	}
	return err
}

func (s *SmallBen) deletion(options *DeleteOptions) *change {
	c := &change{verb: "delete", done: "jobs deleted", reason: "its job was deleted while it waited"}
	c.selects(options)
	c.decide = func(tx Repository) (decision, error) {
		_, err := s.rowsOf(tx, c)
		return decision{
			effects: effectsOf(nil, c.ids, ledgersql.Ends),
			write:   func(tx Repository) error { return tx.DeleteJobsByIds(c.ids) },
		}, err
	}
	c.project = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.forgetLocked(c.ids)
	}
	return c
}

var errNilOptions = errors.New("nil options")

// selects says which rows a change looks at. Nil options refuse it.
func (c *change) selects(options ToListOptions) {
	if isNil(options) {
		c.refused = errNilOptions
		return
	}
	selected := options.toListOptions()
	c.look = &selected
}

// PauseJobs pauses the jobs that match options; those that are paused already
// stay as they are. Nil options are refused; the zero PauseResumeOptions matches
// every job. A run that has started goes on, though it may still be on its way to the
// first statement of Run; once PauseJobs has returned, none starts.
//
// If nothing matches, or ids do not exist and are the only filter, nothing is
// paused and the error is that of ErrorTypeIfMismatchCount, with the ids.
func (s *SmallBen) PauseJobs(options *PauseResumeOptions) error {
	return s.PauseJobsContext(context.Background(), options)
}

// PauseJobsContext is PauseJobs, and ends with ctx.
func (s *SmallBen) PauseJobsContext(ctx context.Context, options *PauseResumeOptions) error {
	return s.perform(ctx, s.pause(options))
}

// PauseAll pauses every job, as PauseJobs with the zero PauseResumeOptions does. It
// is no error if there is none.
func (s *SmallBen) PauseAll() error { return s.unlessNone(s.PauseJobs(&PauseResumeOptions{})) }

func (s *SmallBen) pause(options *PauseResumeOptions) *change {
	c := &change{verb: "pause", done: "jobs paused", reason: "its job was paused while it waited"}
	c.selects(options)
	var rows []RawJob
	c.decide = func(tx Repository) (_ decision, err error) {
		rows, err = s.rowsOf(tx, c)
		unpaused := slices.DeleteFunc(slices.Clone(rows), func(row RawJob) bool { return row.Paused })
		effects := effectsOf(nil, c.ids, ledgersql.StaysPaused)
		return decision{
			effects: effectsOf(effects, idsOf(unpaused), ledgersql.Ends),
			write:   func(tx Repository) error { return tx.PauseJobs(unpaused) },
		}, err
	}
	c.project = func() { s.projectPause(c, rows) }
	return c
}

// projectPause makes memory agree with rows that were paused. It reads those again of
// which memory does not know that they decode: a pause may have mended their column.
func (s *SmallBen) projectPause(c *change, rows []RawJob) {
	var known, unknown []int64
	s.mu.Lock()
	for i := range rows {
		if id := rows[i].ID; s.knownLocked(id) {
			known = append(known, id)
			s.paused[id] = rows[i].CreatedAt.UnixMicro()
		} else {
			unknown = append(unknown, id)
		}
	}
	s.scheduler.remove(known, false)
	s.mu.Unlock()
	s.reread(c.call, unknown)
}

// ResumeJobs resumes the jobs that match options. One that is not paused stays
// as it is, its phase included. Nil options are refused; the zero
// PauseResumeOptions matches every job.
//
// If nothing matches, or ids do not exist and are the only filter, nothing is
// resumed and the error is that of ErrorTypeIfMismatchCount, with the ids. If
// rows do not decode, nothing is resumed either, and the error joins a JobError
// (ErrUndecodable) for each.
func (s *SmallBen) ResumeJobs(options *PauseResumeOptions) error {
	return s.ResumeJobsContext(context.Background(), options)
}

// ResumeJobsContext is ResumeJobs, and ends with ctx.
func (s *SmallBen) ResumeJobsContext(ctx context.Context, options *PauseResumeOptions) error {
	return s.perform(ctx, s.resumption(options))
}

// ResumeAll resumes every job, as ResumeJobs with the zero PauseResumeOptions does.
// It is no error if there is none.
func (s *SmallBen) ResumeAll() error { return s.unlessNone(s.ResumeJobs(&PauseResumeOptions{})) }

func (s *SmallBen) resumption(options *PauseResumeOptions) *change {
	c := &change{verb: "resume", done: "jobs resumed", decodes: true}
	c.selects(options)
	var paused []JobWithSchedule
	c.decide = func(tx Repository) (decision, error) {
		rows, err := s.rowsOf(tx, c)
		if err != nil {
			return decision{}, err
		}
		jobs, undecodable := c.decode(rows)
		if err := join(undecodable); err != nil {
			return decision{}, err
		}
		paused = nil
		var unpaused []JobWithSchedule
		for i := range jobs {
			if jobs[i].rawJob.Paused {
				paused = append(paused, jobs[i])
			} else {
				unpaused = append(unpaused, jobs[i])
			}
		}
		for i := range paused {
			paused[i].rawJob.Paused = false
		}
		return decision{
			effects:   effectsOf(nil, jobIDs(paused), ledgersql.Begins),
			unchanged: unpaused,
			number:    [][]JobWithSchedule{paused},
			write:     func(tx Repository) error { return tx.ResumeJobs(paused) },
		}, nil
	}
	c.project = func() { s.project(c, paused) }
	return c
}

// UpdateJobs changes the expression, the input or both of each job that
// scheduleInfo names, all of them or none. A paused job stays paused, and a run
// in progress keeps what it started with.
//
// Its error joins a JobError for each job that is refused: ErrUpdateOptionInvalid
// if nothing is to change or the id stands twice, ErrInvalidJob if the
// expression or the input could not be stored or run, ErrUndecodable if the row
// does not decode. An id that does not exist is the error of
// ErrorTypeIfMismatchCount.
func (s *SmallBen) UpdateJobs(scheduleInfo []UpdateOption) error {
	return s.UpdateJobsContext(context.Background(), scheduleInfo)
}

// UpdateJobsContext is UpdateJobs, and ends with ctx.
func (s *SmallBen) UpdateJobsContext(ctx context.Context, scheduleInfo []UpdateOption) error {
	return s.perform(ctx, s.update(scheduleInfo))
}

func (s *SmallBen) update(scheduleInfo []UpdateOption) *change {
	if len(scheduleInfo) == 0 {
		return nil
	}
	c := &change{verb: "update", done: "jobs updated", decodes: true}
	updates, err := s.prepareUpdates(scheduleInfo)
	if err != nil {
		c.refused = err
		return c
	}
	c.selects(ListJobsOptions{JobIDs: slices.Sorted(maps.Keys(updates))})
	var jobs []JobWithSchedule
	c.decide = func(tx Repository) (decision, error) {
		rows, err := s.rowsOf(tx, c)
		if err != nil {
			return decision{}, err
		}
		var rescheduled []int64
		jobs, rescheduled, err = c.updated(rows, updates)
		effects := effectsOf(nil, c.ids, ledgersql.Touched)
		return decision{
			effects: effectsOf(effects, rescheduled, ledgersql.Rescheduled),
			number:  [][]JobWithSchedule{jobs},
			write:   func(tx Repository) error { return tx.SetCronIdAndChangeScheduleAndJobInput(jobs) },
		}, err
	}
	c.project = func() { s.project(c, jobs) }
	return c
}

// preparedUpdate is an UpdateOption with its input encoded.
type preparedUpdate struct {
	UpdateOption
	input       map[string]any
	storedInput string
}

// prepareUpdates validates and encodes, which runs code of the user: no lock is
// held.
func (s *SmallBen) prepareUpdates(options []UpdateOption) (map[int64]preparedUpdate, error) {
	updates := make(map[int64]preparedUpdate, len(options))
	var refused []error
	for _, option := range options {
		update := preparedUpdate{UpdateOption: option}
		if _, twice := updates[option.JobID]; twice {
			refused = append(refused, jobErrorf(option.JobID, "%w: the id stands twice", ErrUpdateOptionInvalid))
		}
		updates[option.JobID] = update
		if err := option.valid(s.rules); err != nil {
			refused = append(refused, err)
			continue
		}
		if option.CronExpression != nil {
			expression := *option.CronExpression
			update.CronExpression = &expression
		}
		if option.JobOtherInputs != nil {
			var err error
			if update.storedInput, err = stored.EncodeInput(*option.JobOtherInputs); err != nil {
				refused = append(refused, invalid(option.JobID, err))
				continue
			}
			update.input = maps.Clone(*option.JobOtherInputs)
		}
		updates[option.JobID] = update
	}
	return updates, join(refused)
}

// updated changes rows that were read into the jobs to store. It returns the ids of
// those whose expression changes as well.
func (c *change) updated(rows []RawJob, updates map[int64]preparedUpdate) (jobs []JobWithSchedule, rescheduled []int64, err error) {
	jobs, undecodable := c.decode(rows)
	if err := join(undecodable); err != nil {
		return nil, nil, err
	}
	for i := range jobs {
		id := jobs[i].rawJob.ID
		update := updates[id]
		if update.CronExpression != nil && *update.CronExpression != jobs[i].rawJob.CronExpression {
			rescheduled = append(rescheduled, id)
		}
		if err := jobs[i].apply(update); err != nil {
			return nil, nil, err
		}
	}
	return jobs, rescheduled, nil
}

// apply changes a row that was read into the one to store.
func (j *JobWithSchedule) apply(update preparedUpdate) error {
	if update.CronExpression != nil {
		schedule, err := cronexpr.Parse(*update.CronExpression, j.rawJob.CreatedAt)
		if err != nil {
			return invalid(j.rawJob.ID, err)
		}
		j.schedule = schedule
		j.rawJob.CronExpression = *update.CronExpression
		j.changes.expression = true
	}
	if update.JobOtherInputs != nil {
		j.input, j.given = update.input, true
		j.rawJob.SerializedJobInput = update.storedInput
		j.changes.input = true
	}
	return nil
}

package smallben

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/nbena/smallben/internal/cronexpr"
	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/stored"
)

// change is one change of jobs: what it is about, and what came of it.
type change struct {
	*call
	lock     *ListJobsOptions          // which rows it will look at, if it knows
	ids      []int64                   // of the jobs, as soon as they are known
	written  bool                      // a write was tried
	revision int64                     // in the record of runs, if there is one
	now      time.Time                 // of its database, from which accounts begin
	ahead    map[int64]JobWithSchedule // what rows decoded to before the transaction, by id
	stored   map[string]bool           // which stored jobs decode: see decodes
}

// wrote notes that a write was tried, with this error.
func (c *change) wrote(err error) error {
	c.written = true
	return err
}

// change lets write look at rows and write them: through the repository or, if
// runs are recorded, in one transaction. It expects changeMu.
func (s *SmallBen) change(c *change, write func(tx Repository) error) error {
	err := s.tryChange(c, write)
	if err == nil {
		return nil
	}
	if !c.written && errors.Is(err, ErrOutcomeUnknown) {
		err = unwritten{err}
	}
	if s.isMismatch(err) && !errors.Is(err, ErrJobNotFound) {
		err = notFound{err}
	}
	return err
}

func (s *SmallBen) tryChange(c *change, write func(tx Repository) error) (err error) {
	if err := s.settle(c.call, c.ids); err != nil {
		return err
	}
	if s.record == nil {
		err = write(c.repository)
	} else {
		if err := c.await(s.record.open); err != nil {
			return err
		}
		store := c.store
		if locker, ok := store.(interface {
			locking(options ListJobsOptions) runStore
		}); ok && c.lock != nil {
			store = locker.locking(*c.lock)
		}
		c.revision, err = s.record.ledger.ChangeIn(store, func(tx ledger.Tx) error {
			c.now = tx.Now()
			return write(tx.(changeTx))
		})
	}
	if err != nil && c.written {
		s.writeFailed(c.call, err, c.ids)
	}
	return err
}

// project makes memory agree with the jobs that a change has written.
func (s *SmallBen) project(c *change, written ...[]JobWithSchedule) {
	if session := s.scheduler.current(); session != nil && session.ledger != nil {
		session.ledger.Changed(c.revision)
	}
	s.mu.Lock()
	for _, jobs := range written {
		for i := range jobs {
			jobs[i].rawJob.revision = c.revision
		}
		s.projectLocked(jobs)
	}
	s.mu.Unlock()
	for _, jobs := range written {
		s.fireSince(c.now, jobs)
	}
}

// look is find for a change, which learns the ids: rows that are missing, or none
// at all, refuse it, and so does a row whose last write is not settled.
func (s *SmallBen) look(repository Repository, c *change, options ListJobsOptions) ([]RawJob, error) {
	rows, err := s.find(repository, options)
	if err != nil {
		return nil, err
	}
	// A change could not name them: they stay held back.
	rows = slices.DeleteFunc(rows, func(row RawJob) bool { return row.nameless() })
	if len(rows) == 0 {
		return nil, notFound{fmt.Errorf("%w: no job matches", s.repository.ErrorTypeIfMismatchCount())}
	}
	c.ids = make([]int64, len(rows))
	for i := range rows {
		c.ids[i] = rows[i].ID
	}
	return rows, s.refuseUnsettled(c.ids)
}

// lookAhead decodes the rows that a change is about before its transaction, if runs
// are recorded: GobDecode is code of the user, and locks of the database are not to
// wait for it.
func (s *SmallBen) lookAhead(c *change, options ListJobsOptions) error {
	c.lock = &options
	if s.record == nil {
		return nil
	}
	rows, err := c.repository.ListJobs(&options)
	if err != nil && !s.isMismatch(err) {
		return err
	}
	jobs, _ := decodeRows(rows)
	c.ahead = make(map[int64]JobWithSchedule, len(jobs))
	for i := range jobs {
		c.ahead[jobs[i].rawJob.ID] = jobs[i]
	}
	return nil
}

// decode decodes the rows of a look, those that lookAhead has not seen as they are.
func (c *change) decode(rows []RawJob) (jobs []JobWithSchedule, undecodable []error) {
	var unseen []RawJob
	for i := range rows {
		row := &rows[i]
		if seen, ok := c.ahead[row.ID]; ok && seen.rawJob.storesAs(row) {
			jobs = append(jobs, newJobWithSchedule(*row, seen.schedule, seen.job, seen.input, seen.options))
		} else {
			unseen = append(unseen, *row)
		}
	}
	decoded, undecodable := decodeRows(unseen)
	jobs = append(jobs, decoded...)
	slices.SortFunc(jobs, func(a, b JobWithSchedule) int { return cmp.Compare(a.rawJob.ID, b.rawJob.ID) })
	return jobs, undecodable
}

func (s *SmallBen) isMismatch(err error) bool {
	return errors.Is(err, s.repository.ErrorTypeIfMismatchCount())
}

// unlessNone drops the error of a change of all jobs that there are none.
func (s *SmallBen) unlessNone(err error) error {
	if s.isMismatch(err) && !errors.Is(err, ErrOutcomeUnknown) {
		return nil
	}
	return err
}

// perform makes a change when it is its turn, and logs it.
func (s *SmallBen) perform(ctx context.Context, verb, done string, do func(c *change) error) error {
	ids, err := s.inTurn(ctx, do)
	if err != nil {
		return wrap(verb, err)
	}
	s.logChange(done, ids)
	return nil
}

// inTurn makes a change when it is its turn, and returns the ids that it is about.
func (s *SmallBen) inTurn(ctx context.Context, do func(c *change) error) ([]int64, error) {
	c := &change{}
	err := s.takeTurn(ctx, func(turn *call) error {
		c.call = turn
		return do(c)
	})
	return c.ids, err
}

// logChange logs a change of jobs, with their ids if they are few.
func (s *SmallBen) logChange(msg string, ids []int64) {
	s.log.Report(func(sink cron.Logger) {
		if len(ids) > maxIDsInText {
			sink.Info(msg, "count", len(ids))
		} else {
			sink.Info(msg, "count", len(ids), "jobs", idText(ids))
		}
	})
}

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
	if len(jobs) == 0 {
		return nil
	}
	built, err := s.build(jobs, false)
	if err != nil {
		return wrap("add", err)
	}
	return s.perform(ctx, "add", "jobs added", func(c *change) error { return s.addJobs(c, built) })
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

// now is the time of creation of new jobs: by the clock of the repository, if it has
// one of its own.
func (s *SmallBen) now() time.Time {
	if clock, ok := s.repository.(interface{ now() time.Time }); ok {
		return clock.now()
	}
	return time.Now().UTC().Truncate(time.Microsecond)
}

func (s *SmallBen) addJobs(c *change, jobs []JobWithSchedule) error {
	c.ids = jobIDs(jobs)
	err := s.change(c, func(tx Repository) error {
		s.scheduler.number(jobs)
		return c.wrote(tx.AddJobs(jobs))
	})
	if err != nil {
		return err
	}
	s.project(c, jobs)
	return nil
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
	if options == nil {
		return errors.New("delete jobs: nil options")
	}
	return s.perform(ctx, "delete", "jobs deleted", func(c *change) error { return s.deleteJobs(c, options.toListOptions()) })
}

// DeleteAll deletes every job, as DeleteJobs with the zero DeleteOptions does. It
// is no error if there is none.
func (s *SmallBen) DeleteAll() error { return s.unlessNone(s.DeleteJobs(&DeleteOptions{})) }

func (s *SmallBen) deleteJobs(c *change, options ListJobsOptions) error {
	c.lock = &options
	err := s.change(c, func(tx Repository) error {
		if _, err := s.look(tx, c, options); err != nil {
			return err
		}
		if err := s.closeSpans(tx, c, c.ids, false); err != nil {
			return err
		}
		if err := s.cancelWaiting(tx, c.ids, true, "its job was deleted while it waited"); err != nil {
			return err
		}
		return c.wrote(tx.DeleteJobsByIds(c.ids))
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetLocked(c.ids)
	s.scheduler.forget(c.ids)
	return nil
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
	if options == nil {
		return errors.New("pause jobs: nil options")
	}
	return s.perform(ctx, "pause", "jobs paused", func(c *change) error { return s.pauseJobs(c, options.toListOptions()) })
}

// PauseAll pauses every job, as PauseJobs with the zero PauseResumeOptions does. It
// is no error if there is none.
func (s *SmallBen) PauseAll() error { return s.unlessNone(s.PauseJobs(&PauseResumeOptions{})) }

func (s *SmallBen) pauseJobs(c *change, options ListJobsOptions) error {
	c.lock = &options
	var rows []RawJob
	err := s.change(c, func(tx Repository) (err error) {
		if rows, err = s.look(tx, c, options); err != nil {
			return err
		}
		unpaused := slices.DeleteFunc(slices.Clone(rows), func(row RawJob) bool { return row.Paused })
		if err := s.closeSpans(tx, c, idsOf(unpaused), false); err != nil {
			return err
		}
		if err := s.cancelWaiting(tx, c.ids, true, "its job was paused while it waited"); err != nil {
			return err
		}
		return c.wrote(tx.PauseJobs(unpaused))
	})
	if err != nil {
		return err
	}
	undecodable := s.undecodableOf(rows)
	s.mu.Lock()
	s.forgetLocked(c.ids)
	for i := range rows {
		if _, bad := undecodable[rows[i].ID]; bad {
			s.undecodable[rows[i].ID] = struct{}{}
		} else {
			s.paused[rows[i].ID] = rows[i].CreatedAt.UnixMicro()
		}
	}
	s.mu.Unlock()
	// They decode now if it was a column that a pause writes.
	s.reread(c.call, slices.Sorted(maps.Keys(undecodable)))
	return nil
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
	if options == nil {
		return errors.New("resume jobs: nil options")
	}
	return s.perform(ctx, "resume", "jobs resumed", func(c *change) error { return s.resumeJobs(c, options.toListOptions()) })
}

// ResumeAll resumes every job, as ResumeJobs with the zero PauseResumeOptions does.
// It is no error if there is none.
func (s *SmallBen) ResumeAll() error { return s.unlessNone(s.ResumeJobs(&PauseResumeOptions{})) }

func (s *SmallBen) resumeJobs(c *change, options ListJobsOptions) error {
	if err := s.lookAhead(c, options); err != nil {
		return err
	}
	var paused, unpaused []JobWithSchedule
	err := s.change(c, func(tx Repository) error {
		rows, err := s.look(tx, c, options)
		if err != nil {
			return err
		}
		jobs, undecodable := c.decode(rows)
		if err := join(undecodable); err != nil {
			return err
		}
		paused, unpaused = nil, nil
		for i := range jobs {
			if jobs[i].rawJob.Paused {
				jobs[i].rawJob.Paused = false
				paused = append(paused, jobs[i])
			} else {
				unpaused = append(unpaused, jobs[i])
			}
		}
		if err := s.adopt(c.call, unpaused); err != nil {
			return err
		}
		s.scheduler.number(paused)
		return c.wrote(tx.ResumeJobs(paused))
	})
	if err != nil {
		return err
	}
	s.project(c, paused)
	return nil
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
	if len(scheduleInfo) == 0 {
		return nil
	}
	updates, err := s.prepareUpdates(scheduleInfo)
	if err != nil {
		return wrap("update", err)
	}
	return s.perform(ctx, "update", "jobs updated", func(c *change) error { return s.updateJobs(c, updates) })
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

func (s *SmallBen) updateJobs(c *change, updates map[int64]preparedUpdate) error {
	options := ListJobsOptions{JobIDs: slices.Sorted(maps.Keys(updates))}
	if err := s.lookAhead(c, options); err != nil {
		return err
	}
	var jobs []JobWithSchedule
	err := s.change(c, func(tx Repository) error {
		rows, err := s.look(tx, c, options)
		if err != nil {
			return err
		}
		var rescheduled []int64
		if jobs, rescheduled, err = c.updated(rows, updates); err != nil {
			return err
		}
		if err := s.reschedule(tx, c, rescheduled); err != nil {
			return err
		}
		s.scheduler.number(jobs)
		return c.wrote(tx.SetCronIdAndChangeScheduleAndJobInput(jobs))
	})
	if err != nil {
		return err
	}
	s.project(c, jobs)
	return nil
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

// UpsertJobs makes the repository hold these jobs, all of them or none: it adds
// those whose id is not stored, and replaces the groups, expression, job and
// input of the others where they differ from what the row decodes to. A job that
// is paused stays paused, and the time of creation stays. A row that would not
// change is not written, and a schedule that does not change keeps its phase: a
// service may call this at each start with the jobs it wants to have. A row that
// does not decode is replaced. Jobs that are not named stay as they are.
//
// If runs are recorded, a job is refused (a JobError with ErrUndecodable) whose row
// does not decode and took the place of one that does, while a process runs that decodes every
// job: that one runs a newer program, and this one an older.
//
// Its error is that of AddJobs, except that an id may be stored, and an @at be past
// that its row has already. To replace
// anything it needs a repository that is an Upserter. As with AddJobs, Run is
// called on the values given here.
func (s *SmallBen) UpsertJobs(jobs []Job) error {
	return s.UpsertJobsContext(context.Background(), jobs)
}

// UpsertJobsContext is UpsertJobs, and ends with ctx.
func (s *SmallBen) UpsertJobsContext(ctx context.Context, jobs []Job) error {
	if len(jobs) == 0 {
		return nil
	}
	built, err := s.build(jobs, true)
	if err != nil {
		return wrap("upsert", err)
	}
	var parts upsertParts
	_, err = s.inTurn(ctx, func(c *change) (err error) {
		parts, err = s.upsertJobs(c, built)
		return err
	})
	if err != nil {
		return wrap("upsert", err)
	}
	if len(parts.add)+len(parts.replace) > 0 {
		s.log.Report(func(sink cron.Logger) {
			if len(parts.held) > 0 {
				parts.reportHeld(sink)
			}
			sink.Info("jobs upserted", "added", len(parts.add), "replaced", len(parts.replace), "unchanged", len(parts.unchanged))
		})
	}
	return nil
}

func (s *SmallBen) upsertJobs(c *change, jobs []JobWithSchedule) (parts upsertParts, err error) {
	c.ids = jobIDs(jobs)
	if err := s.lookAhead(c, ListJobsOptions{JobIDs: c.ids}); err != nil {
		return parts, err
	}
	upsert := func(tx Repository) error {
		rows, err := s.find(tx, ListJobsOptions{JobIDs: c.ids})
		if err != nil && !s.isMismatch(err) {
			return err
		}
		if parts, err = c.upsertOf(jobs, rows); err != nil {
			return err
		}
		if err := s.keepNewer(tx, c, &parts); err != nil {
			return err
		}
		if len(parts.add)+len(parts.replace) == 0 {
			return errNothingToWrite
		}
		if err := s.reschedule(tx, c, parts.rescheduled); err != nil {
			return err
		}
		s.scheduler.number(parts.add)
		s.scheduler.number(parts.replace)
		if len(parts.replace) == 0 {
			return c.wrote(tx.AddJobs(parts.add))
		}
		if upserter, ok := tx.(Upserter); ok {
			return c.wrote(upserter.UpsertJobs(parts.add, parts.replace))
		}
		return fmt.Errorf("the repository %T cannot replace jobs: it is no Upserter", tx)
	}
	err = s.change(c, upsert)
	for errors.Is(err, errUndecided) {
		c.decodeAsked()
		err = s.change(c, upsert)
	}
	if err != nil && !errors.Is(err, errNothingToWrite) {
		return parts, err
	}
	s.project(c, parts.add, parts.replace)
	// They still do not decode if it is a column that stays.
	s.reread(c.call, parts.undecodable)
	// The values given are run from here on, even those of rows that need no
	// change.
	if err := s.adopt(c.call, parts.unchanged); err != nil {
		s.reread(c.call, jobIDs(parts.unchanged))
	}
	return parts, nil
}

// upsertParts are what becomes of the jobs of an upsert.
type upsertParts struct {
	add, replace, unchanged []JobWithSchedule
	rescheduled             []int64   // of replace, those whose expression changes
	undecodable             []int64   // those whose row has a column that cannot be read
	retyped                 []*RawJob // the rows of replace that do not decode, or hold another type
	held                    []int64   // of these, those that do not decode
}

func (p *upsertParts) reportHeld(sink cron.Logger) {
	sink.Info("jobs replaced that did not decode", "count", len(p.held), "jobs", idText(p.held))
}

// upsertOf compares jobs that were built with the rows of those that are stored.
func (c *change) upsertOf(jobs []JobWithSchedule, rows []RawJob) (parts upsertParts, err error) {
	byID := make(map[int64]*RawJob, len(rows))
	for i := range rows {
		byID[rows[i].ID] = &rows[i]
	}
	var refused []error
	for i := range jobs {
		row, ok := byID[jobs[i].rawJob.ID]
		if past := jobs[i].past; past != nil && (!ok || row.CronExpression != jobs[i].rawJob.CronExpression) {
			refused = append(refused, past)
			continue
		}
		if !ok {
			parts.add = append(parts.add, jobs[i])
			continue
		}
		if row.defect != "" {
			parts.undecodable = append(parts.undecodable, row.ID)
		}
		differs, held, err := jobs[i].replace(row, c)
		if err != nil {
			return upsertParts{}, err
		}
		if !differs {
			parts.unchanged = append(parts.unchanged, jobs[i])
			continue
		}
		parts.replace = append(parts.replace, jobs[i])
		if held {
			parts.held = append(parts.held, row.ID)
		}
		if held || stored.RegisteredName(row.SerializedJob) != stored.RegisteredName(jobs[i].rawJob.SerializedJob) {
			parts.retyped = append(parts.retyped, row)
		}
		if row.CronExpression != jobs[i].rawJob.CronExpression {
			parts.rescheduled = append(parts.rescheduled, row.ID)
		}
	}
	return parts, join(refused)
}

// keepNewer refuses to replace rows of newer programs while those run: what does not
// decode here, and took the place of what does. It keeps what is replaced by another
// type. It does nothing if runs are not recorded.
func (s *SmallBen) keepNewer(tx Repository, c *change, parts *upsertParts) error {
	if s.record == nil || len(parts.retyped) == 0 {
		return nil
	}
	recordTx := tx.(formerJobs)
	former, decoding, err := recordTx.FormerJobs(parts.held, s.record.timing.DeadAfter)
	if err != nil {
		return err
	}
	keep := make(map[int64]string, len(parts.retyped))
	var refused, undecided []error
	for _, row := range parts.retyped {
		keep[row.ID] = row.SerializedJob
		before, replaced := former[row.ID]
		if !replaced {
			continue
		}
		older, newer, known := c.decodes(before, row.SerializedJob)
		switch {
		case !known:
			undecided = append(undecided, errUndecided)
		case !older || newer:
		case decoding:
			refused = append(refused, jobErrorf(row.ID, "%w: its row holds a %q, which a newer program stored in place of a %q", ErrUndecodable,
				stored.RegisteredName(row.SerializedJob), stored.RegisteredName(before)))
		default:
			keep[row.ID] = "" // the newer program is gone
		}
	}
	if err := cmp.Or(join(undecided), join(refused)); err != nil {
		return err
	}
	return recordTx.SetFormerJobs(keep)
}

// decodes reports which of two stored jobs decode, if decodeAsked has learned it. It
// notes them for it: no transaction is to wait for the code of users that is called.
func (c *change) decodes(one, other string) (oneDoes, otherDoes, known bool) {
	oneDoes, knowsOne := c.stored[one]
	otherDoes, knowsOther := c.stored[other]
	if c.stored == nil {
		c.stored = make(map[string]bool)
	}
	c.stored[one], c.stored[other] = oneDoes, otherDoes
	return oneDoes, otherDoes, knowsOne && knowsOther
}

// decodeAsked learns what decodes was asked for.
func (c *change) decodeAsked() {
	for job := range c.stored {
		_, err := storedJobs.Decode(job)
		c.stored[job] = err == nil
	}
}

// errUndecided ends a change that is to be made again after decodeAsked.
var errUndecided = errors.New("stored jobs are to be decoded")

// errNothingToWrite ends a change that has nothing to write.
var errNothingToWrite = errors.New("nothing to write")

// replace makes a job that was built anew into the one to store in place of row,
// and reports whether they differ, and whether the row does not decode.
func (j *JobWithSchedule) replace(row *RawJob, c *change) (differs, held bool, err error) {
	j.changes = columnChanges{expression: true, input: true, job: true}
	j.rawJob.CronID = row.CronID
	j.rawJob.Paused = row.Paused
	j.rawJob.CreatedAt = row.CreatedAt.UTC()
	j.rawJob.UpdatedAt = row.UpdatedAt.UTC()
	if j.schedule, err = cronexpr.Parse(j.rawJob.CronExpression, j.rawJob.CreatedAt); err != nil {
		return false, false, invalid(j.rawJob.ID, err)
	}
	decoded, undecodable := c.decode([]RawJob{*row})
	if len(undecodable) > 0 {
		return true, true, nil
	}
	if j.rawJob.GroupID != row.GroupID || j.rawJob.SuperGroupID != row.SuperGroupID || j.rawJob.CronExpression != row.CronExpression {
		return true, false, nil
	}
	before := decoded[0]
	// gob writes maps in any order, and numbers types by the order in which a
	// process met them: where the bytes differ, only what they decode to tells.
	if row.SerializedJob != j.rawJob.SerializedJob {
		after, err := storedJobs.Decode(j.rawJob.SerializedJob)
		if err != nil {
			return false, false, invalid(j.rawJob.ID, err)
		}
		if !reflect.DeepEqual(before.job, after) {
			return true, false, nil
		}
	}
	if !stored.SameInput(row.SerializedJobInput, j.rawJob.SerializedJobInput) {
		return true, false, nil
	}
	j.rawJob = *row
	return false, false, nil
}

// TriggerJobs runs the jobs that match options now, paused ones too, once each,
// whatever their schedule. It returns when each run is started, waits for the end
// of another or for SchedulerConfig.MaxConcurrentRuns, or was skipped, as the
// overlap settings say; TriggerJobsReport tells which. Nil options are refused, and
// so is a call while SmallBen is not started; the zero PauseResumeOptions matches
// every job.
//
// If nothing matches, or ids do not exist and are the only filter, nothing runs
// and the error is that of ErrorTypeIfMismatchCount, with the ids. If rows do not
// decode, nothing runs either, and the error joins a JobError (ErrUndecodable)
// for each. If runs are recorded, nothing runs that could not be recorded.
func (s *SmallBen) TriggerJobs(options *PauseResumeOptions) error {
	return s.TriggerJobsContext(context.Background(), options)
}

// TriggerJobsContext is TriggerJobs, and ends with ctx. The runs do not.
func (s *SmallBen) TriggerJobsContext(ctx context.Context, options *PauseResumeOptions) error {
	_, err := s.reportTriggered(ctx, options)
	return err
}

// Triggered is what became of one job of TriggerJobsReport.
type Triggered struct {
	JobID int64
	// Tick is the CronJobInput.ScheduledAt of the run.
	Tick time.Time
	// Waiting says that the run has not started: it does when another run has
	// ended.
	Waiting bool
	// Skipped says why the job does not run. It is empty if it does.
	Skipped string
}

// TriggerJobsReport is TriggerJobs, and returns what became of each job, ordered
// by id.
func (s *SmallBen) TriggerJobsReport(options *PauseResumeOptions) ([]Triggered, error) {
	return s.reportTriggered(context.Background(), options)
}

func (s *SmallBen) reportTriggered(ctx context.Context, options *PauseResumeOptions) (report []Triggered, err error) {
	if options == nil {
		return nil, errors.New("trigger jobs: nil options")
	}
	at := tick{at: s.scheduler.now(), triggered: true}
	err = s.perform(ctx, "trigger", "jobs triggered", func(c *change) error {
		report, err = s.triggerJobs(c, options.toListOptions(), at)
		return err
	})
	return report, err
}

func (s *SmallBen) triggerJobs(c *change, options ListJobsOptions, at tick) (report []Triggered, err error) {
	if !s.started() {
		return nil, errors.New("SmallBen is not started")
	}
	if err := s.settle(c.call, nil); err != nil {
		return nil, err
	}
	rows, err := s.look(c.repository, c, options)
	if err != nil {
		return nil, err
	}
	jobs, undecodable := decodeRows(rows)
	if err := join(undecodable); err != nil {
		return nil, err
	}
	if err := s.adopt(c.call, jobs); err != nil {
		return nil, unwritten{err}
	}
	grants, err := s.claimTriggered(jobs, at)
	if err != nil {
		return nil, unwritten{err} // nothing runs, and that is known
	}
	begun, report, ok := s.scheduler.trigger(jobs, at, grants)
	if !ok {
		for _, grant := range grants {
			grant.Skip("SmallBen was stopped before it started")
		}
		return nil, errStopped
	}
	for _, r := range begun {
		go s.scheduler.execute(r)
	}
	return report, nil
}

// undecodableOf tells which of the rows do not decode. Those that are known are
// not decoded again.
func (s *SmallBen) undecodableOf(rows []RawJob) map[int64]struct{} {
	undecodable := make(map[int64]struct{})
	var unknown []RawJob
	s.mu.RLock()
	for _, row := range rows {
		if _, bad := s.undecodable[row.ID]; bad {
			undecodable[row.ID] = struct{}{}
		} else if !s.knownLocked(row.ID) {
			unknown = append(unknown, row)
		}
	}
	s.mu.RUnlock()
	_, errs := decodeRows(unknown)
	for _, err := range errs {
		undecodable[jobID(err)] = struct{}{}
	}
	return undecodable
}

func (s *SmallBen) knownLocked(id int64) bool {
	_, paused := s.paused[id]
	return paused || s.scheduler.has(id)
}

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
	"github.com/nbena/smallben/internal/ledger/ledgersql"
	"github.com/nbena/smallben/internal/stored"
)

// change is one change of jobs: what it looks at and writes, and what came of it. perform
// makes it in a transaction of its own, and performTx in one of the application. The
// functions that make a change run code of the user: they hold no lock. They return nil
// if there is nothing to change.
type change struct {
	verb    string // for errors, such as "pause"
	done    string // for the log, such as "jobs paused"
	refused error  // why it is refused before anything is read, or nil

	look    *ListJobsOptions // which rows it looks at; nil: none
	decodes bool             // it decodes them
	reason  string           // why runs that wait do not run any more, if it ends their jobs

	// decide says what is to be written, by the rows of a transaction.
	decide func(tx Repository) (decision, error)
	// follow makes memory agree once decision has been written. It expects changeMu.
	follow func()
	// report logs what was done. Nil means done, with the ids.
	report func(sink cron.Logger)

	*call                              // nil in a transaction of the application
	ids      []int64                   // of the jobs, as soon as they are known
	written  bool                      // a write was tried
	revision int64                     // in the record of runs, if there is one
	now      time.Time                 // of its database, from which accounts begin
	ahead    map[int64]JobWithSchedule // what rows decoded to before the transaction, by id
	stored   map[string]bool           // which stored jobs decode: see decodesStored
	held     []int64                   // replaced rows that did not decode
}

// decision is what a change writes.
type decision struct {
	effects ledgersql.Effects         // on the ticks of its jobs
	known   []JobWithSchedule         // stay as they are, and may have no entry here
	number  [][]JobWithSchedule       // are given cron ids
	write   func(tx Repository) error // nil: nothing is to be written
}

// perform makes a change when it is its turn, and logs it.
func (s *SmallBen) perform(ctx context.Context, c *change) error {
	if c == nil {
		return nil
	}
	err := c.refused
	if err == nil {
		err = s.takeTurn(ctx, func(turn *call) error {
			c.call = turn
			return s.changeInTurn(c)
		})
	}
	if err != nil {
		return wrap(c.verb, err)
	}
	if c.report != nil {
		s.log.Report(c.report)
	} else {
		s.logChange(c.done, c.ids)
	}
	return nil
}

// changeInTurn makes a change in the repository, and then in memory.
func (s *SmallBen) changeInTurn(c *change) error {
	err := s.lookAhead(c)
	if err == nil {
		err = c.decided(func() error { return s.write(c) })
	}
	switch {
	case err == nil, errors.Is(err, errNothingToWrite):
		c.follow()
		return nil
	case !c.written && errors.Is(err, ErrOutcomeUnknown):
		return unwritten{err}
	case s.isMismatch(err) && !errors.Is(err, ErrJobNotFound):
		return notFound{err}
	}
	return err
}

// write looks at rows and writes them: through the repository or, if runs are recorded,
// in one transaction. It expects changeMu.
func (s *SmallBen) write(c *change) (err error) {
	if err := s.settle(c.call, c.ids); err != nil {
		return err
	}
	if s.record == nil {
		err = s.writeIn(c, c.repository)
	} else {
		if err := c.await(s.record.open); err != nil {
			return err
		}
		store := c.store
		if runs, ok := store.(gormRuns); ok {
			runs.lock = c.look
			store = runs
		}
		c.revision, err = s.record.ledger.ChangeIn(store, func(tx ledger.Tx) error {
			c.now = tx.Now()
			return s.writeIn(c, tx.(changeTx))
		})
	}
	if err != nil && c.written {
		s.writeFailed(c.call, err, c.ids)
	}
	return err
}

func (s *SmallBen) writeIn(c *change, tx Repository) error {
	decided, err := c.decide(tx)
	if err != nil {
		return err
	}
	if decided.write == nil {
		return errNothingToWrite
	}
	if err := s.endTicks(tx, c, decided.effects); err != nil {
		return err
	}
	if err := s.adopt(c.call, decided.known); err != nil {
		return err
	}
	for _, jobs := range decided.number {
		s.scheduler.number(jobs)
	}
	c.written = true
	return decided.write(tx)
}

// errNothingToWrite ends a change that has nothing to write.
var errNothingToWrite = errors.New("nothing to write")

// endTicks ends what the record of runs has of jobs as they were before a change: the
// time under their expressions, and the runs that wait.
func (s *SmallBen) endTicks(tx Repository, c *change, effects ledgersql.Effects) error {
	if err := s.reschedule(tx, c, idsWith(effects, ledgersql.Rescheduled)); err != nil {
		return err
	}
	ended := idsWith(effects, ledgersql.Ends)
	if err := s.closeSpans(tx, c, ended, false); err != nil {
		return err
	}
	return s.cancelWaiting(tx, idsWith(effects, ledgersql.Ends, ledgersql.StaysPaused), true, c.reason)
}

// effectsOf adds one effect on all ids.
func effectsOf(effects ledgersql.Effects, ids []int64, effect ledgersql.Effect) ledgersql.Effects {
	if effects == nil {
		effects = make(ledgersql.Effects, len(ids))
	}
	for _, id := range ids {
		effects[id] = effect
	}
	return effects
}

// idsWith returns the ids that have one of the effects, in order.
func idsWith(effects ledgersql.Effects, wanted ...ledgersql.Effect) (ids []int64) {
	for id, effect := range effects {
		if slices.Contains(wanted, effect) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
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

// rowsOf reads the rows that a change is about, and sets c.ids: rows that are missing, or
// none at all, refuse it, and so does a row whose last write is not settled.
func (s *SmallBen) rowsOf(repository Repository, c *change) ([]RawJob, error) {
	rows, err := s.find(repository, *c.look)
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
func (s *SmallBen) lookAhead(c *change) error {
	if s.record == nil || !c.decodes {
		return nil
	}
	rows, err := c.repository.ListJobs(c.look)
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

// decode decodes rows, those that lookAhead has not seen as they are.
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
	c.follow = func() { s.project(c, built) }
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

func (s *SmallBen) deletion(options *DeleteOptions) *change {
	c := &change{verb: "delete", done: "jobs deleted", reason: "its job was deleted while it waited"}
	if options == nil {
		c.refused = errNilOptions
		return c
	}
	c.selects(options)
	c.decide = func(tx Repository) (decision, error) {
		_, err := s.rowsOf(tx, c)
		return decision{
			effects: effectsOf(nil, c.ids, ledgersql.Ends),
			write:   func(tx Repository) error { return tx.DeleteJobsByIds(c.ids) },
		}, err
	}
	c.follow = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.forgetLocked(c.ids)
		s.scheduler.forget(c.ids)
	}
	return c
}

var errNilOptions = errors.New("nil options")

// selects says which rows a change looks at.
func (c *change) selects(options ToListOptions) {
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
	if options == nil {
		c.refused = errNilOptions
		return c
	}
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
	c.follow = func() { s.followPause(c, rows) }
	return c
}

// followPause makes memory agree with rows that were paused.
func (s *SmallBen) followPause(c *change, rows []RawJob) {
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
	if options == nil {
		c.refused = errNilOptions
		return c
	}
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
			effects: effectsOf(nil, jobIDs(paused), ledgersql.Begins),
			known:   unpaused,
			number:  [][]JobWithSchedule{paused},
			write:   func(tx Repository) error { return tx.ResumeJobs(paused) },
		}, nil
	}
	c.follow = func() { s.project(c, paused) }
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
	c.follow = func() { s.project(c, jobs) }
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
	return s.perform(ctx, s.upsert(jobs))
}

func (s *SmallBen) upsert(jobs []Job) *change {
	if len(jobs) == 0 {
		return nil
	}
	c := &change{verb: "upsert", decodes: true}
	built, err := s.build(jobs, true)
	if err != nil {
		c.refused = err
		return c
	}
	c.ids = jobIDs(built)
	c.selects(ListJobsOptions{JobIDs: c.ids})
	var parts upsertParts
	c.decide = func(tx Repository) (decision, error) {
		rows, err := s.find(tx, *c.look)
		if err != nil && !s.isMismatch(err) {
			return decision{}, err
		}
		if parts, err = c.upsertOf(built, rows); err != nil {
			return decision{}, err
		}
		if err := s.keepNewer(tx, c, &parts); err != nil {
			return decision{}, err
		}
		c.held = parts.held
		return parts.decision(), nil
	}
	c.follow = func() { s.followUpsert(c, &parts) }
	c.report = func(sink cron.Logger) {
		if len(parts.add)+len(parts.replace) > 0 {
			c.reportHeld(sink)
			sink.Info("jobs upserted", "added", len(parts.add), "replaced", len(parts.replace), "unchanged", len(parts.unchanged))
		}
	}
	return c
}

// reportHeld logs which of the replaced rows did not decode.
func (c *change) reportHeld(sink cron.Logger) {
	if len(c.held) > 0 {
		sink.Info("jobs replaced that did not decode", "count", len(c.held), "jobs", idText(c.held))
	}
}

// followUpsert makes memory agree with the rows of an upsert.
func (s *SmallBen) followUpsert(c *change, parts *upsertParts) {
	s.project(c, parts.add, parts.replace)
	// They still do not decode if it is a column that stays.
	s.reread(c.call, parts.undecodable)
	// The values given are run from here on, even those of rows that need no
	// change.
	if err := s.adopt(c.call, parts.unchanged); err != nil {
		s.reread(c.call, jobIDs(parts.unchanged))
	}
}

// upsertParts are what becomes of the jobs of an upsert.
type upsertParts struct {
	add, replace, unchanged []JobWithSchedule
	rescheduled             []int64   // of replace, those whose expression changes
	undecodable             []int64   // those whose row has a column that cannot be read
	retyped                 []*RawJob // the rows of replace that do not decode, or hold another type
	held                    []int64   // of these, those that do not decode
}

// decision is what they write.
func (p *upsertParts) decision() decision {
	if len(p.add)+len(p.replace) == 0 {
		return decision{}
	}
	effects := effectsOf(nil, jobIDs(p.add), ledgersql.Begins)
	effects = effectsOf(effects, jobIDs(p.replace), ledgersql.Touched)
	return decision{
		effects: effectsOf(effects, p.rescheduled, ledgersql.Rescheduled),
		number:  [][]JobWithSchedule{p.add, p.replace},
		write: func(tx Repository) error {
			if upserter, ok := tx.(Upserter); ok {
				return upserter.UpsertJobs(p.add, p.replace)
			}
			if len(p.replace) == 0 {
				return tx.AddJobs(p.add)
			}
			return fmt.Errorf("the repository %T cannot replace jobs: it is no Upserter", tx)
		},
	}
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
		older, newer, known := c.decodesStored(before, row.SerializedJob)
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

// decodesStored reports which of two stored jobs decode, if decided has learned it. It
// notes them for it: no transaction of ours is to wait for the code of users.
func (c *change) decodesStored(one, other string) (oneDoes, otherDoes, known bool) {
	oneDoes, knowsOne := c.stored[one]
	otherDoes, knowsOther := c.stored[other]
	if c.stored == nil {
		c.stored = make(map[string]bool)
	}
	c.stored[one], c.stored[other] = oneDoes, otherDoes
	return oneDoes, otherDoes, knowsOne && knowsOther
}

// decided calls try until it knows of all stored jobs that it asks decodesStored for
// whether they decode.
func (c *change) decided(try func() error) error {
	for {
		err := try()
		if !errors.Is(err, errUndecided) {
			return err
		}
		for job := range c.stored {
			_, err := storedJobs.Decode(job)
			c.stored[job] = err == nil
		}
	}
}

// errUndecided ends a change that is to be tried again: see decided.
var errUndecided = errors.New("stored jobs are to be decoded")

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
	c := &change{}
	c.selects(options)
	err = s.takeTurn(ctx, func(turn *call) (err error) {
		c.call = turn
		report, err = s.triggerJobs(c, at)
		return err
	})
	if err != nil {
		return report, wrap("trigger", err)
	}
	s.logChange("jobs triggered", c.ids)
	return report, nil
}

func (s *SmallBen) triggerJobs(c *change, at tick) (report []Triggered, err error) {
	if !s.started() {
		return nil, errors.New("SmallBen is not started")
	}
	if err := s.settle(c.call, nil); err != nil {
		return nil, err
	}
	rows, err := s.rowsOf(c.repository, c)
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

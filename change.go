package smallben

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/ledger/ledgersql"
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
	// project makes memory agree once decision has been written. It expects changeMu.
	project func()
	// report logs what was done. Nil means done, with the ids.
	report func(sink cron.Logger)

	*call                              // nil in a transaction of the application
	ids      []int64                   // of the jobs, as soon as they are known
	written  bool                      // a write was tried
	revision int64                     // in the record of runs, if there is one
	now      time.Time                 // of its database, from which accounts begin
	ahead    map[int64]JobWithSchedule // what rows decoded to before the transaction, by id
	built    []JobWithSchedule         // the jobs of an upsert
	values   map[string]CronJob        // what those decode to, where their rows hold other bytes
	stored   map[string]bool           // which stored jobs decode: see decodesStored
	held     []int64                   // replaced rows that did not decode
}

// decision is what a change writes.
type decision struct {
	effects   ledgersql.Effects         // on the ticks of its jobs
	unchanged []JobWithSchedule         // stay as they are, and may have no entry here
	number    [][]JobWithSchedule       // are given cron ids
	write     func(tx Repository) error // nil: nothing is to be written
}

// perform makes a change when it is its turn, and logs it.
func (s *SmallBen) perform(ctx context.Context, c *change) error {
	if c == nil {
		return nil
	}
	err := c.refused
	if err == nil {
		err = s.inTurn(ctx, func(turn *call) error {
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
		err = c.untilDecoded(func() error { return s.write(c) })
	}
	switch {
	case err == nil, errors.Is(err, errNothingToWrite):
		c.project()
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
	if s.record != nil {
		if err := c.endTicks(tx.(changeTx), decided.effects); err != nil {
			return err
		}
	}
	if err := s.adopt(c.call, decided.unchanged); err != nil {
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
func (c *change) endTicks(tx changeTx, effects ledgersql.Effects) error {
	rescheduled, ended := idsWith(effects, ledgersql.Rescheduled), idsWith(effects, ledgersql.Ends)
	if closed := len(rescheduled) + len(ended); closed > 0 && closed < len(c.ids) {
		// What is locked in two calls might be waited for in a circle: all that the
		// change will write is locked first.
		if _, err := tx.Watermarks(c.ids); err != nil {
			return err
		}
	}
	if len(rescheduled) > 0 {
		if err := tx.Close(rescheduled, true); err != nil {
			return err
		}
		if err := tx.Cancel(rescheduled, false, "the expression of its job was changed while it waited"); err != nil {
			return err
		}
	}
	if len(ended) > 0 {
		if err := tx.Close(ended, false); err != nil {
			return err
		}
	}
	if stopped := idsWith(effects, ledgersql.Ends, ledgersql.StaysPaused); len(stopped) > 0 {
		return tx.Cancel(stopped, true, c.reason)
	}
	return nil
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
	if session := s.scheduler.current(); session != nil && session.ledger != nil && c.revision > 0 {
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
	rows, err := s.matching(c.repository, *c.look)
	if err != nil {
		return err
	}
	jobs, _ := decodeRows(rows)
	c.ahead = make(map[int64]JobWithSchedule, len(jobs))
	for i := range jobs {
		c.ahead[jobs[i].rawJob.ID] = jobs[i]
	}
	c.values = make(map[string]CronJob)
	for i := range c.built {
		text := c.built[i].rawJob.SerializedJob
		if row, ok := c.ahead[c.built[i].rawJob.ID]; !ok || row.rawJob.SerializedJob == text {
			continue
		}
		if c.values[text], err = storedJobs.Decode(text); err != nil {
			return invalid(c.built[i].rawJob.ID, err)
		}
	}
	return nil
}

// value decodes a job of an upsert, unless lookAhead has.
func (c *change) value(text string) (CronJob, error) {
	if value, ok := c.values[text]; ok {
		return value, nil
	}
	return storedJobs.Decode(text)
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

// decodesStored reports which of two stored jobs decode, if untilDecoded has learned it. It
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

// untilDecoded calls try until it knows of all stored jobs that it asks decodesStored for
// whether they decode.
func (c *change) untilDecoded(try func() error) error {
	for {
		err := try()
		if !errors.Is(err, errUndecoded) {
			return err
		}
		for job := range c.stored {
			_, err := storedJobs.Decode(job)
			c.stored[job] = err == nil
		}
	}
}

// errUndecoded ends a change that is to be tried again: see untilDecoded.
var errUndecoded = errors.New("stored jobs are to be decoded")

func (s *SmallBen) isMismatch(err error) bool {
	return errors.Is(err, s.repository.ErrorTypeIfMismatchCount())
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

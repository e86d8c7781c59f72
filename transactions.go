package smallben

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/ledger/ledgersql"
	"github.com/nbena/smallben/internal/sqltx"
)

// appTx is a transaction of the application in which jobs are changed.
type appTx struct {
	Repository // in the transaction
	Upserter
	record *ledgersql.Store // nil: runs are not recorded
	former map[int64]string // what SetFormerJobs was given, for announce
	tx     *sqltx.Borrowed
	fate   func(id string) (bool, error) // nil: nobody can ask the database
}

// inTransaction gives the repository in a transaction of the application, until end
// is called or the Timeout has passed.
func (r *RepositoryGorm) inTransaction(tx *gorm.DB) (in *appTx, end context.CancelFunc, err error) {
	if tx == nil || tx.Statement == nil {
		return nil, nil, errors.New("the transaction is nil")
	}
	ctx, end := r.db().WithContext(tx.Statement.Context).Context()
	borrowed, err := r.db().Borrow(ctx, tx)
	if err != nil {
		end()
		return nil, nil, err
	}
	inside := &RepositoryGorm{r.table.In(borrowed.Tx), r.runs}
	in = &appTx{Repository: inside, Upserter: inside, record: r.runs, tx: borrowed}
	if r.db().Kind() != sqltx.Portable {
		in.fate = r.db().Decided
	}
	return in, end, nil
}

// announce tells the other processes, by the outbox, what is about to be written. It
// does nothing if runs are not recorded.
func (in *appTx) announce(effects ledgersql.Effects) error {
	if in.record == nil || len(effects) == 0 {
		return nil
	}
	return in.record.Announce(in.tx.Tx, effects, in.former)
}

// FormerJobs implements formerJobs.
func (in *appTx) FormerJobs(jobIDs []int64, maxSilence time.Duration) (former map[int64]string, decoding bool, err error) {
	return in.record.In(in.tx.Tx).FormerJobs(jobIDs, maxSilence)
}

// SetFormerJobs implements formerJobs, with the next announce: the states of jobs are
// not to be locked for as long as the transaction is open.
func (in *appTx) SetFormerJobs(former map[int64]string) error {
	in.former = former
	return nil
}

// AddJobsTx is AddJobs within tx, a transaction of the application on the database of
// the repository: what gorm's Transaction gives to its function, or Begin returns. The
// jobs are there if it is committed, and if it is rolled back nothing has happened.
//
// The rows are written through tx, which may stay open for long: nothing else waits
// for it but what writes the same rows and, on SQLite, every write, since a
// transaction that writes there is alone. If AddJobsTx returns an error, nothing of it
// is written, and tx goes on.
//
// After the COMMIT this process follows within Runs.SyncInterval, or at once if
// Committed is called. So do all others that record runs; without Config.Runs.Record
// another process follows at its next Start. From then on Run is called on what the
// row decodes to. A tick of a job that came since the call and before that runs then,
// the latest one.
//
// It needs a RepositoryGorm, or a repository that embeds one, and takes no connection
// but that of tx. AddJobs takes one of its own: called within a transaction on the
// same pool, it may wait for a connection that only its caller can give back.
func (s *SmallBen) AddJobsTx(tx *gorm.DB, jobs []Job) error {
	return s.performTx(tx, s.addition(jobs))
}

// UpsertJobsTx is UpsertJobs within tx. AddJobsTx says how that goes. It refuses no row
// of a newer program: what does not decode is replaced.
func (s *SmallBen) UpsertJobsTx(tx *gorm.DB, jobs []Job) error {
	return s.performTx(tx, s.upsert(jobs))
}

// UpdateJobsTx is UpdateJobs within tx. AddJobsTx says how that goes.
func (s *SmallBen) UpdateJobsTx(tx *gorm.DB, scheduleInfo []UpdateOption) error {
	return s.performTx(tx, s.update(scheduleInfo))
}

// PauseJobsTx is PauseJobs within tx. AddJobsTx says how that goes. With
// Config.Runs.Record no tick is won after the COMMIT. Without it, ticks start until
// the COMMIT has been followed, and a triggered run that waits of a job that was paused
// already goes on waiting.
func (s *SmallBen) PauseJobsTx(tx *gorm.DB, options *PauseResumeOptions) error {
	return s.performTx(tx, s.pause(options))
}

// ResumeJobsTx is ResumeJobs within tx. AddJobsTx says how that goes.
func (s *SmallBen) ResumeJobsTx(tx *gorm.DB, options *PauseResumeOptions) error {
	return s.performTx(tx, s.resumption(options))
}

// DeleteJobsTx is DeleteJobs within tx, in the words of AddJobsTx. With
// Config.Runs.Record no tick is won after the COMMIT. Without it, ticks start until
// the COMMIT has been followed.
func (s *SmallBen) DeleteJobsTx(tx *gorm.DB, options *DeleteOptions) error {
	return s.performTx(tx, s.deletion(options))
}

// performTx makes a change in a transaction of the application. No lock is held
// meanwhile.
func (s *SmallBen) performTx(tx *gorm.DB, c *change) error {
	if c == nil {
		return nil
	}
	if c.refused != nil {
		return wrap(c.verb, c.refused)
	}
	if err := s.changeWithin(tx, c); err != nil {
		return wrap(c.verb, err)
	}
	if len(c.held) > 0 {
		s.log.Report(c.reportHeld)
	}
	return nil
}

func (s *SmallBen) changeWithin(tx *gorm.DB, c *change) error {
	if s.gorm == nil {
		return fmt.Errorf("a change in a transaction needs a RepositoryGorm, or a repository that embeds one: %T is none", s.repository)
	}
	if s.record != nil && s.record.refusal != nil {
		return s.record.refusal
	}
	in, end, err := s.gorm.inTransaction(tx)
	if err != nil {
		return err
	}
	defer end()
	if s.record == nil {
		in.record = nil
	}
	began := time.Now()
	written := false
	err = in.tx.Savepoint(func() error {
		return c.untilDecoded(func() error {
			decided, err := c.decide(in)
			if err != nil || decided.write == nil {
				return err
			}
			if err := in.announce(decided.effects); err != nil {
				return err
			}
			written = true
			return decided.write(in)
		})
	})
	if err != nil {
		return s.explain(in, err)
	}
	if s.record != nil || !written {
		return nil
	}
	id, err := in.tx.ID()
	if err != nil {
		return err
	}
	unsettled := &unsettledWrite{ids: c.ids, began: began, ended: in.tx.Ended, untold: in.fate == nil}
	if in.fate != nil {
		unsettled.settled = func() (bool, error) { return in.fate(id) }
	}
	s.addUnsettled(unsettled)
	return nil
}

// explain gives the error of a change in a transaction the words of other changes.
func (s *SmallBen) explain(in *appTx, err error) error {
	if s.isMismatch(err) && !errors.Is(err, ErrJobNotFound) {
		return notFound{err}
	}
	if in.record != nil {
		if exists, existsErr := in.tx.Exists("smallben_outbox"); existsErr == nil && !exists {
			return fmt.Errorf("the table smallben_outbox is missing: Start creates it or, with SkipMigration, what Schema gives: %w", err)
		}
	}
	return err
}

// Committed makes this process follow at once what …Tx methods have changed in
// transactions that have been committed. It is not needed: without it the process
// follows within Runs.SyncInterval. Its error says that the database did not answer,
// and the process follows later.
func (s *SmallBen) Committed() error {
	session := s.scheduler.current()
	switch {
	case session == nil:
		return nil
	case session.ledger != nil:
		return session.ledger.FollowOutbox()
	}
	var failures []error
	for _, write := range s.unsettledWrites(func(w *unsettledWrite) bool { return w.ended != nil }) {
		if write.ended() {
			failures = append(failures, s.reconcileWrite(write))
		}
	}
	return errors.Join(failures...)
}

// catchUp fires the latest tick of each of the jobs that came after an instant, up to
// another at which they had no entry. Those that have none now had no such tick.
func (s *scheduler) catchUp(ids []int64, after, until time.Time) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	session := s.currentLocked()
	for _, id := range ids {
		e, ok := s.entries[id]
		if !ok || session == nil {
			continue
		}
		for _, at := range ledger.LastTicks(e.slot.Schedule, after.In(s.location), until.In(s.location), 1) {
			go s.fire(&tick{entry: e, session: session, slot: e.slot, at: at})
		}
	}
}

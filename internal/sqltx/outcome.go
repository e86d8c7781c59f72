package sqltx

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// ErrOutcomeUnknown is what errors.Is finds when the database did not say whether a
// write happened.
var ErrOutcomeUnknown = errors.New("outcome of the write unknown")

// ErrCannotTell is what errors.Is finds in the error of a took that has its answer, and
// will not learn more: the rows do not tell any more what became of the write.
var ErrCannotTell = errors.New("the rows do not tell any more")

// settleTimeout bounds a question about an outcome where calls have no timeout.
const settleTimeout = 30 * time.Second

// fate is what became of a COMMIT.
type fate int

const (
	pending fate = iota
	committed
	aborted
	unknowable // the database will not say any more than it has
)

// unknownOutcome is the error of a write of which the database did not say whether
// it happened.
type unknownOutcome struct {
	db    *DB
	op    string
	cause error // of the COMMIT
	xid   string
	took  func(tx *Tx) (bool, error)
}

func (u *unknownOutcome) Error() string {
	return fmt.Sprintf("%s: %v: commit: %v", u.op, ErrOutcomeUnknown, u.cause)
}

func (u *unknownOutcome) Unwrap() []error { return []error{ErrOutcomeUnknown, u.cause} }

// askableOutcome is an unknownOutcome of which the database may say later whether it
// happened. Where statements are portable it may not.
type askableOutcome struct{ *unknownOutcome }

// Settled reports whether what the database holds now is the outcome. Its error
// means that the database does not answer.
func (u askableOutcome) Settled() (bool, error) {
	ctx, cancel := u.db.settleContext()
	defer cancel()
	f, err := u.fate(ctx)
	return err == nil && f != pending, u.db.Failed(u.op, err)
}

// settleContext bounds a question about an outcome.
func (db *DB) settleContext() (context.Context, context.CancelFunc) {
	if db.timeout == 0 {
		return context.WithTimeout(db.ctx, settleTimeout)
	}
	return db.Context()
}

// settle asks what became of the COMMIT until it knows, or the deadline of ctx has
// passed. A call that is canceled in the middle of its COMMIT goes on waiting for that.
// The error wraps ErrOutcomeUnknown if the database did not say. It has a method Settled
// then, unless the statements are portable.
func (u *unknownOutcome) settle(ctx context.Context) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(settleTimeout)
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()
	const shortest, longest = 5 * time.Millisecond, 200 * time.Millisecond
	f, err := u.fate(ctx)
	for pause := shortest; (err != nil || f == pending) && ctx.Err() == nil; pause = min(2*pause, longest) {
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			f, err = u.fate(ctx)
		}
	}
	switch {
	case err == nil && f == committed:
		return nil
	case err == nil && f == aborted:
		return u.db.Failed(u.op, fmt.Errorf("commit: %w", u.cause))
	case u.db.kind == Portable:
		return u
	}
	return askableOutcome{u}
}

// fate asks the database. Its error means that there was no answer.
func (u *unknownOutcome) fate(ctx context.Context) (fate, error) {
	if u.xid != "" {
		f, err := u.db.fateOf(ctx, u.xid)
		if err != nil || f != committed {
			return f, err
		}
	}
	// After a crash, or on a copy that takes over, the server may give an id away
	// again, so the rows have the last word on a COMMIT that happened. Where they do
	// not tell any more, to read what they hold is all that is left.
	var took bool
	err := u.db.Read(ctx, func(tx *Tx) (err error) {
		took, err = u.took(tx)
		return err
	})
	switch {
	case errors.Is(err, ErrCannotTell):
		return unknowable, nil
	case err != nil:
		return pending, err
	case took:
		return committed, nil
	case u.db.kind == SQLite:
		return aborted, nil // SQLite rolls a COMMIT back that fails
	}
	return unknowable, nil
}

// fateOf asks PostgreSQL what became of a transaction.
func (db *DB) fateOf(ctx context.Context, xid string) (fate, error) {
	var status sql.NullString // NULL: PostgreSQL does not know any more
	err := db.Attempt(ctx, func(tx *Tx) error {
		return tx.Row("SELECT CASE WHEN $1::xid8 < pg_current_xact_id() THEN pg_xact_status($1::xid8) ELSE 'aborted' END", []any{xid}, &status)
	})
	switch {
	case err != nil || status.String == "in progress":
		return pending, err
	case status.String == "committed":
		return committed, nil
	case status.String == "aborted":
		return aborted, nil
	}
	return unknowable, nil
}

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
	obscure // the database will not say any more than it has
)

// settle asks what became of a COMMIT until the deadline of ctx. Who gives up a call
// in the middle of its COMMIT still waits for that. If it cannot learn that, it
// returns an error that wraps ErrOutcomeUnknown. That has a method Settled, unless
// the database is one that nobody can ask.
func (db *DB) settle(ctx context.Context, u *unknownOutcome) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(settleTimeout)
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()
	const shortest, longest = 5 * time.Millisecond, 200 * time.Millisecond
	for pause := shortest; ; pause = min(2*pause, longest) {
		f, err := u.fate(ctx)
		switch {
		case err != nil || f == pending:
		case f == committed:
			return nil
		case f == aborted:
			return db.Failed(u.op, fmt.Errorf("commit: %w", u.cause))
		default:
			return u.error()
		}
		select {
		case <-ctx.Done():
			return u.error()
		case <-time.After(pause):
		}
	}
}

// unknownOutcome is the error of a write of which the database did not say whether
// it happened.
type unknownOutcome struct {
	db    *DB
	op    string
	cause error // of the COMMIT
	xid   string
	took  func(tx *Tx) (bool, error)
}

func (u *unknownOutcome) error() error {
	if u.db.kind == Portable {
		return u
	}
	return askableOutcome{u}
}

// askableOutcome is the error of a write of which the database may say later
// whether it happened.
type askableOutcome struct{ *unknownOutcome }

func (u *unknownOutcome) Error() string {
	return fmt.Sprintf("%s: %v: commit: %v", u.op, ErrOutcomeUnknown, u.cause)
}

func (u *unknownOutcome) Unwrap() []error { return []error{ErrOutcomeUnknown, u.cause} }

// Settled reports whether what the database holds now is the outcome. Its error
// means that the database does not answer.
func (u askableOutcome) Settled() (bool, error) {
	ctx, cancel := u.db.Context()
	defer cancel()
	if u.db.timeout == 0 {
		ctx, cancel = context.WithTimeout(ctx, settleTimeout)
		defer cancel()
	}
	f, err := u.fate(ctx)
	if err != nil {
		return false, u.db.Failed(u.op, err)
	}
	return f != pending, nil
}

// fate asks the database. Its error means that there was no answer.
func (u *unknownOutcome) fate(ctx context.Context) (fate, error) {
	status := "committed"
	if u.xid != "" {
		var answer sql.NullString
		err := u.db.Attempt(ctx, func(tx *Tx) error {
			return tx.Row("SELECT CASE WHEN $1::xid8 < pg_current_xact_id() THEN pg_xact_status($1::xid8) ELSE 'aborted' END", []any{u.xid}, &answer)
		})
		if err != nil {
			return pending, err
		}
		status = answer.String
	}
	switch status {
	case "in progress":
		return pending, nil
	case "aborted":
		return aborted, nil
	case "committed":
		// After a crash, or on a copy that takes over, the server may give an id away
		// again, so the rows have the last word on a COMMIT that happened. Where they do
		// not tell any more, to read what they hold is all that is left.
		var took bool
		err := u.db.Read(ctx, func(tx *Tx) (err error) {
			took, err = u.took(tx)
			return err
		})
		if errors.Is(err, ErrCannotTell) {
			return obscure, nil
		}
		if err != nil || took {
			return committed, err
		}
		if u.db.kind == SQLite {
			return aborted, nil // SQLite rolls a COMMIT back that fails
		}
	}
	return obscure, nil
}

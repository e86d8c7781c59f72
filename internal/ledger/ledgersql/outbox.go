package ledgersql

import (
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/sqltx"
)

// Effect is what a transaction of the application does to the ticks of a job.
type Effect string

// The effects.
const (
	Begins      Effect = "begins"       // the job is added or resumed: its ticks count from the call on
	Ends        Effect = "ends"         // it is paused or deleted: its ticks count up to the call
	StaysPaused Effect = "stays paused" // it is paused and was: only its waiting runs end
	Rescheduled Effect = "rescheduled"  // its expression is replaced
	Touched     Effect = "touched"      // its ticks stay
)

// Effects are those on jobs, by id.
type Effects map[int64]Effect

// Announce leaves in the outbox what a transaction of the application is about to do to
// jobs, and what is to be kept of some of them as SetFormerJobs does. It is called in
// that transaction, before the rows of the jobs are written.
func (s *Store) Announce(tx *sqltx.Tx, effects Effects, former map[int64]string) error {
	if err := s.supported("announce changes"); err != nil {
		return err
	}
	values := make([][]any, 0, len(effects))
	for id, effect := range effects {
		var kept any // NULL
		if job, ok := former[id]; ok {
			kept = job
		}
		values = append(values, []any{id, string(effect), kept})
	}
	token := rand.Text()
	for chunk := range sqltx.Chunks(values, runChunk, func(value *[]any) int { return len(former[(*value)[0].(int64)]) }) {
		err := statements{tx}.exec(announce, token, time.Now().UnixMicro(), rowsOf("job_id bigint, effect text, former_job text", chunk))
		if err != nil {
			return fmt.Errorf("announce changes: %w", err)
		}
	}
	return nil
}

// errEmpty ends a Change of an outbox in which there is nothing.
var errEmpty = errors.New("the outbox is empty")

// TakeOutbox implements ledger.Store. It looks before it waits for other Changes.
func (s *Store) TakeOutbox() (revision int64, begun []ledger.Watermark, err error) {
	const op = "follow transactions"
	if err := s.supported(op); err != nil {
		return 0, nil, err
	}
	ctx, cancel := s.db.Context()
	defer cancel()
	arrived := false
	err = s.db.Failed(op, s.db.Attempt(ctx, func(tx *sqltx.Tx) error {
		return tx.Row("SELECT EXISTS (SELECT 1 FROM {smallben_outbox})", nil, &arrived)
	}))
	if err != nil || !arrived {
		return 0, nil, err
	}
	revision, err = s.ChangeSQL(op, nil, func(tx *Tx) error {
		begun, err = tx.takeOutbox()
		return err
	})
	if errors.Is(err, errEmpty) {
		return 0, nil, nil
	}
	return revision, begun, err
}

// outbox are rows of the outbox, by job and in the order of the calls.
type outbox []announced

type announced struct {
	jobID  int64
	token  string
	at     int64 // Unix microseconds
	effect Effect
	former *string // nil: it stays
	exists bool    // the job has a row
}

// ids gives the jobs of those rows that match.
func (o outbox) ids(match func(row *announced) bool) (ids []int64) {
	for i := range o {
		if match(&o[i]) {
			ids = append(ids, o[i].jobID)
		}
	}
	return ids
}

// takeOutbox gives the jobs of the outbox the revision of the Change, and their
// watermarks. It returns the watermarks that begin anew.
func (tx *Tx) takeOutbox() (begun []ledger.Watermark, err error) {
	box, err := tx.readOutbox()
	if err != nil {
		return nil, err
	}
	if len(box) == 0 {
		return nil, errEmpty
	}
	former := make(map[int64]string)
	for _, row := range box {
		if row.exists && row.former != nil {
			former[row.jobID] = *row.former
		}
		if row.exists && row.effect == Begins {
			begun = append(begun, ledger.Watermark{JobID: row.jobID, Until: time.UnixMicro(row.at).UTC()})
		}
	}
	rescheduled := box.ids(func(row *announced) bool { return row.effect == Rescheduled })
	stopped := box.ids(func(row *announced) bool { return !row.exists || row.effect == Ends || row.effect == StaysPaused })
	for _, step := range []func() error{
		func() error { return tx.execJobs(lockStates, box.ids(func(*announced) bool { return true })) },
		func() error { return tx.closeAnnounced(box) },
		func() error { return tx.Touch(box.ids(func(row *announced) bool { return row.exists }), false) },
		func() error { return tx.SetFormerJobs(former) },
		func() error { return tx.Delete(box.ids(func(row *announced) bool { return !row.exists })) },
		func() error { return tx.setWatermarks(begun) },
		func() error {
			return tx.Cancel(rescheduled, false, "the expression of its job was changed while it waited")
		},
		func() error { return tx.Cancel(stopped, true, "its job was paused or deleted while it waited") },
		func() error { return tx.removeAnnounced(box) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return begun, nil
}

// readOutbox reads what is committed.
func (tx *Tx) readOutbox() (outbox, error) {
	return collect(tx.statements, readOutbox, nil, func(rows *sql.Rows) (row announced, err error) {
		err = rows.Scan(&row.jobID, &row.token, &row.at, &row.effect, &row.former, &row.exists)
		return row, err
	})
}

func (tx *Tx) removeAnnounced(box outbox) error {
	followed := make([][]any, len(box))
	for i := range box {
		followed[i] = []any{box[i].jobID, box[i].token}
	}
	return tx.execEach(removeAnnounced, nil, jobChunk, "job_id bigint, token text", followed)
}

// closeAnnounced ends the time of jobs under expressions that they have no more. That of a
// rescheduled job ends now: until its transaction was committed, which may have been a moment
// ago, others claimed the ticks of its old expression.
func (tx *Tx) closeAnnounced(box outbox) error {
	var closed [][]any
	seen := make(map[int64]bool, len(box))
	for _, row := range box {
		if row.effect != Ends && row.effect != Rescheduled || seen[row.jobID] {
			continue
		}
		seen[row.jobID] = true
		until, rescheduled := row.at, row.effect == Rescheduled
		if rescheduled {
			until = tx.now.UnixMicro()
		}
		closed = append(closed, []any{row.jobID, row.token, until, rescheduled})
	}
	if err := tx.execEach(closeAnnounced, []any{tx.revision}, jobChunk, closedFields, closed); err != nil {
		return err
	}
	return tx.execEach(closeAnnouncedWatermarks, nil, jobChunk, closedFields, closed)
}

// announce writes the outbox. $1 is a token of the call, $2 the time where the database
// has no clock. What a row is before the change stands beside it.
const announce = `INSERT INTO {smallben_outbox} (job_id, token, at, effect, paused, created_at, expression, group_id, super_group_id, former_job)
SELECT v.job_id, CAST($1 AS text), coalesce({clock}, CAST($2 AS bigint)), v.effect, coalesce(j.paused, true), j.created_at, coalesce(j.cron_expression, ''), coalesce(j.group_id, 0), coalesce(j.super_group_id, 0), v.former_job
FROM {rows} LEFT JOIN {jobs} j ON j.id = v.job_id`

const readOutbox = `SELECT o.job_id, o.token, o.at, o.effect, o.former_job, j.id IS NOT NULL FROM {smallben_outbox} o LEFT JOIN {jobs} j ON j.id = o.job_id ORDER BY o.job_id, o.at, o.token`

const closedFields = "job_id bigint, token text, until bigint, make_up boolean"

// closeAnnounced leaves the time of jobs from their watermarks as closed spans of
// revision $1.
const closeAnnounced = `INSERT INTO {smallben_closed_spans} (job_id, revision, ` + spanColumns + `)
SELECT o.job_id, CAST($1 AS bigint), o.created_at, o.expression, o.group_id, o.super_group_id, m.accounted_until, v.until, v.make_up
FROM {rows} JOIN {smallben_outbox} o ON o.job_id = v.job_id AND o.token = v.token JOIN {smallben_job_state} m ON m.job_id = v.job_id
WHERE NOT o.paused AND m.deleted_at IS NULL AND m.accounted_until < v.until
ORDER BY o.job_id ON CONFLICT DO NOTHING`

const closeAnnouncedWatermarks = `UPDATE {smallben_job_state} AS m SET accounted_until = v.until
FROM {rows} WHERE m.job_id = v.job_id AND m.accounted_until < v.until`

const removeAnnounced = `DELETE FROM {smallben_outbox} WHERE (job_id, token) IN (SELECT v.job_id, v.token FROM {rows})`

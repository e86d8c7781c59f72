package ledgersql

import (
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
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

// announced is a row of the outbox.
type announced struct {
	jobID  int64
	token  string
	at     int64 // Unix microseconds
	effect Effect
	former *string // nil: it stays
}

// outbox are rows of the outbox, and what they are about.
type outbox struct {
	rows []announced
	ids  []int64 // of the jobs, in order
}

func (o *outbox) idsOf(effect Effect) (ids []int64) {
	for i := range o.rows {
		if o.rows[i].effect == effect {
			ids = append(ids, o.rows[i].jobID)
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
	if len(box.rows) == 0 {
		return nil, errEmpty
	}
	if err := tx.execJobs(lockStates, box.ids); err != nil {
		return nil, err
	}
	if err := tx.closeAnnounced(box); err != nil {
		return nil, err
	}
	existing := make(map[int64]bool, len(box.ids))
	for _, jobs := range chunksOf(box.ids) {
		found, err := tx.ids("SELECT j.id FROM {jobs} j WHERE j.id IN (SELECT v.job_id FROM {rows})", jobs)
		if err != nil {
			return nil, err
		}
		maps.Copy(existing, found)
	}
	var gone []int64
	for _, id := range box.ids {
		if !existing[id] {
			gone = append(gone, id)
		}
	}
	former := make(map[int64]string)
	for i := range box.rows {
		row := &box.rows[i]
		if !existing[row.jobID] {
			continue
		}
		if row.former != nil {
			former[row.jobID] = *row.former
		}
		if row.effect == Begins {
			begun = append(begun, ledger.Watermark{JobID: row.jobID, Until: time.UnixMicro(row.at).UTC()})
		}
	}
	if err := tx.Touch(slices.Collect(maps.Keys(existing)), false); err != nil {
		return nil, err
	}
	if err := tx.SetFormerJobs(former); err != nil {
		return nil, err
	}
	if err := tx.Delete(gone); err != nil {
		return nil, err
	}
	if err := tx.setWatermarks(begun); err != nil {
		return nil, err
	}
	if _, err := tx.Cancel(box.idsOf(Rescheduled), false, "the expression of its job was changed while it waited"); err != nil {
		return nil, err
	}
	if _, err := tx.Cancel(slices.Concat(box.idsOf(Ends), box.idsOf(StaysPaused), gone), true, "its job was paused or deleted while it waited"); err != nil {
		return nil, err
	}
	followed := make([][]any, len(box.rows))
	for i := range box.rows {
		followed[i] = []any{box.rows[i].jobID, box.rows[i].token}
	}
	return begun, tx.execEach(removeAnnounced, nil, jobChunk, "job_id bigint, token text", followed)
}

// readOutbox reads what is committed, by job and in the order of the calls.
func (tx *Tx) readOutbox() (*outbox, error) {
	box := &outbox{}
	err := tx.each(readOutbox, nil, func(rows *sql.Rows) error {
		var row announced
		err := rows.Scan(&row.jobID, &row.token, &row.at, &row.effect, &row.former)
		if last := len(box.ids) - 1; last < 0 || box.ids[last] != row.jobID {
			box.ids = append(box.ids, row.jobID)
		}
		box.rows = append(box.rows, row)
		return err
	})
	return box, err
}

// closeAnnounced ends the time of jobs under expressions that they have no more. Up to
// the COMMIT a job has its old one, and what follows it knows no earlier instant than
// now: until then the old one is claimed.
func (tx *Tx) closeAnnounced(box *outbox) error {
	var closed [][]any
	seen := make(map[int64]bool, len(box.ids))
	for _, row := range box.rows {
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

const readOutbox = `SELECT o.job_id, o.token, o.at, o.effect, o.former_job FROM {smallben_outbox} o ORDER BY o.job_id, o.at, o.token`

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

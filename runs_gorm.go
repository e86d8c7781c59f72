package smallben

import (
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/ledger/ledgersql"
	"github.com/nbena/smallben/internal/sqltx"
)

// gormRuns is the record of runs in the database of a RepositoryGorm.
type gormRuns struct {
	*ledgersql.Store
	repository *RepositoryGorm
	// lock are the jobs that a Change locks before it takes the record for itself:
	// a row that somebody else has locked holds up no change of other rows. Nil
	// means none.
	lock *ListJobsOptions
}

// locking is the record whose Change locks jobs first.
func (g gormRuns) locking(options ListJobsOptions) runStore {
	g.lock = &options
	return g
}

// lockJobs returns what locks the rows in the order of their ids: see
// ledgersql.Store.ChangeSQL.
func (g gormRuns) lockJobs() func(tx *sqltx.Tx, wait bool) error {
	if g.lock == nil || g.repository.db.Kind() != sqltx.Postgres {
		return nil
	}
	complete := false // no other row can match
	return func(tx *sqltx.Tx, wait bool) error {
		if complete && !wait {
			return nil
		}
		text, args := selection(tx.Kind(), selected{ListJobsOptions: *g.lock}, "SELECT id FROM {jobs}")
		text += " FOR UPDATE"
		if !wait {
			text += " NOWAIT"
		}
		n := 0
		err := tx.Each(text, args, func(*sql.Rows) error { n++; return nil })
		complete = g.lock.onlyJobIDs() && n == len(unique(g.lock.JobIDs))
		return err
	}
}

var _ runStore = gormRuns{}

// runStore is how a SmallBen finds the record, also where a RepositoryGorm is embedded.
func (r *RepositoryGorm) runStore() runStore { return gormRuns{Store: r.runs, repository: r} }

// recording returns a process that records runs on the database, or "".
func (r *RepositoryGorm) recording(maxSilence time.Duration) (process string, err error) {
	return r.runs.Recording(maxSilence)
}

func newRunStore(r *RepositoryGorm, skipMigration bool) *ledgersql.Store {
	return ledgersql.New(r.db, ledgersql.Options{
		SkipMigration: skipMigration,
		CreatedAt: func(value any) time.Time {
			scanner := rowScanner{row: &RawJob{}, strict: r.db.Kind() == sqltx.SQLite}
			return scanner.time("created_at", value)
		},
	})
}

// recordTx is the transaction of a Change. It is a changeTx.
type recordTx struct {
	Repository // in the transaction
	Upserter
	*ledgersql.Tx
}

var _ changeTx = (*recordTx)(nil)

// Change implements ledger.Store.
func (g gormRuns) Change(change func(tx ledger.Tx) error) (int64, error) {
	return g.ChangeSQL("change the record", g.lockJobs(), func(tx *ledgersql.Tx) error {
		inside := *g.repository
		inside.tx, inside.db = tx, g.repository.db.In(tx.SQL())
		return change(&recordTx{&inside, &inside, tx})
	})
}

// changedJobs takes the jobs to give, v, and on which condition. On SQLite columns are
// read without their declared types; see bulkStatements.read.
const changedJobs = `SELECT c.revision, v.job_id, m.revision, %s FROM {smallben_ledger} c LEFT JOIN %s ON %s
LEFT JOIN {smallben_job_state} m ON m.job_id = v.job_id LEFT JOIN {jobs} j ON j.id = v.job_id ORDER BY v.job_id`

// Changes implements runStore.
func (g gormRuns) Changes(since int64, ids []int64) (changedRows, error) {
	if ids == nil {
		return g.changes("{smallben_job_state} v", "v.revision > $1", since)
	}
	values := make([][]any, 0, len(ids))
	for _, id := range unique(ids) {
		values = append(values, []any{id})
	}
	return g.changes("{rows}", "true", sqltx.Rows{Fields: "job_id bigint", Values: values})
}

// jobs returns all jobs, and looks at no tombstone.
func (g gormRuns) jobs() (changedRows, error) {
	return g.changes("(SELECT id AS job_id FROM {jobs} WHERE "+hasID(g.repository.db.Kind())+") AS v", "true")
}

// changes returns the jobs of an item of FROM that meet a condition.
func (g gormRuns) changes(from, condition string, args ...any) (changes changedRows, err error) {
	db := g.repository.db
	if db.Kind() == sqltx.Portable {
		return changedRows{}, fmt.Errorf("read changes: the record of runs needs PostgreSQL or SQLite, not %s", db.Dialect())
	}
	ctx, cancel := db.Context()
	defer cancel()
	strict := db.Kind() == sqltx.SQLite
	columns := prefixed("j.", jobColumns)
	if strict {
		columns = prefixed("+j.", jobColumns)
	}
	text := fmt.Sprintf(changedJobs, columns, from, condition)
	err = db.Failed("read changes", db.Read(ctx, func(tx *sqltx.Tx) error {
		changes = changedRows{}
		var id, revision *int64
		var values rowValues
		dest := append([]any{&changes.Revision, &id, &revision}, values.dest()...)
		return tx.Each(text, args, func(rows *sql.Rows) error {
			if err := rows.Scan(dest...); err != nil || id == nil {
				return err
			}
			if values[0] == nil {
				changes.Gone = append(changes.Gone, *id)
				return nil
			}
			changes.Jobs = append(changes.Jobs, values.row(strict))
			of := int64(0)
			if revision != nil {
				of = *revision
			}
			changes.Revisions = append(changes.Revisions, of)
			return nil
		})
	}))
	if err != nil {
		return changedRows{}, err
	}
	return changes, nil
}

// touch gives the states of jobs that a change has changed its revision, in the
// transaction of a Change.
func touch(tx *ledgersql.Tx, kind changeKind, targets []rowChange, missing []int64) error {
	if kind == settingCronID {
		return nil
	}
	gone := make(map[int64]bool, len(missing))
	for _, id := range missing {
		gone[id] = true
	}
	var ids []int64
	for i := range targets {
		if id := targets[i].id; !gone[id] {
			ids = append(ids, id)
		}
	}
	if kind == deleting {
		return tx.Delete(ids)
	}
	return tx.Touch(ids, kind == resuming)
}

// prefixed puts a prefix before each column of a list.
func prefixed(prefix, columns string) string {
	return prefix + strings.ReplaceAll(columns, ", ", ", "+prefix)
}

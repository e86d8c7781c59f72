package smallben

import (
	"cmp"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nbena/smallben/internal/sqltx"
)

const (
	recordChunk = 2000             // claims and finished runs of one statement
	claimLimit  = 10 * time.Second // of a call of Claim
)

var _ Recorder = (*RepositoryGorm)(nil)

// recordState is what a RepositoryGorm has for the record of runs.
type recordState struct {
	skipMigration bool

	// turn holds one token, which a call has while it writes the record on SQLite:
	// those of one process wait in a queue, and not asleep.
	turn chan struct{}

	mu sync.Mutex // guards pruned, for moments
	// pruned is the tick up to which the present round of PruneRuns has looked.
	pruned int64
}

func newRecordState(skipMigration bool) *recordState {
	return &recordState{skipMigration: skipMigration, turn: make(chan struct{}, 1), pruned: math.MinInt64}
}

// RunsSchema returns the statements that create the tables of the record, each
// ended by a semicolon, for those who set SkipMigration. It is empty if the
// database is neither PostgreSQL nor SQLite.
func (r *RepositoryGorm) RunsSchema() string {
	if r.db.Kind() == sqltx.Portable {
		return ""
	}
	var text strings.Builder
	for _, statement := range recordSchema {
		text.WriteString(r.db.Words(statement) + ";\n")
	}
	return text.String()
}

// OpenRecord implements Recorder. It creates the tables of the record that are
// missing, unless SkipMigration is set.
func (r *RepositoryGorm) OpenRecord(location string) error {
	const op = "open record"
	if r.db.Kind() == sqltx.Portable {
		return fmt.Errorf("open record: the record of runs needs PostgreSQL or SQLite, not %s", r.db.Dialect())
	}
	if err := r.migrateRecord(op); err != nil {
		return err
	}
	var stored string
	err := r.writeRecord(op, true, func(s *records) error {
		err := s.exec("INSERT INTO {job_record} (id, revision, tokens, location, leader) VALUES (1, 0, '', $1, '') ON CONFLICT DO NOTHING", location)
		if err != nil {
			return err
		}
		return s.row("SELECT location FROM {job_record}", nil, &stored)
	}, func(s *records) (bool, error) {
		err := s.row("SELECT location FROM {job_record}", nil, &stored)
		return err == nil, err
	})
	if err != nil {
		return err
	}
	if stored != location {
		return fmt.Errorf("open record: its location is %q, not %q", stored, location)
	}
	return r.CompareMarks()
}

// migrateRecord makes sure that the tables of the record are there with their
// columns.
func (r *RepositoryGorm) migrateRecord(op string) error {
	var missing string
	look := func(s *records) error {
		missing = ""
		for _, table := range recordTables {
			exists, err := s.Exists(table.name)
			if err != nil {
				return err
			}
			if !exists {
				missing = table.name
				continue
			}
			if err := s.CheckTable(table.name, table.fields); err != nil {
				return err
			}
		}
		return nil
	}
	err := r.readRecord(op, func(s *records) error {
		if err := look(s); err != nil {
			return err
		}
		return s.shareable()
	})
	if err != nil {
		return err
	}
	if missing != "" && r.state.skipMigration {
		return fmt.Errorf("open record: the table %s is missing, and SkipMigration is set: RunsSchema gives the statements that create it", missing)
	}
	if missing != "" {
		err = r.writeRecord(op, true, func(s *records) error {
			for _, statement := range recordSchema {
				if err := s.exec(statement); err != nil {
					return err
				}
			}
			return nil
		}, func(s *records) (bool, error) {
			err := look(s)
			return missing == "", err
		})
		if err != nil {
			// Another process may have been faster.
			if lookErr := r.readRecord(op, look); lookErr != nil || missing != "" {
				return err
			}
		}
	}
	return r.readRecord(op, look)
}

// Join implements Recorder.
func (r *RepositoryGorm) Join(process string) error {
	return r.writeRecord("join", true, func(s *records) error {
		return s.exec("INSERT INTO {job_processes} (process, beats) VALUES ($1, 0) ON CONFLICT DO NOTHING", process)
	}, func(s *records) (bool, error) { return s.registered(process, "") })
}

// Leave implements Recorder.
func (r *RepositoryGorm) Leave(process string) error {
	return r.writeRecord("leave", true, func(s *records) error {
		return s.exec("DELETE FROM {job_processes} WHERE process = $1", process)
	}, func(s *records) (bool, error) {
		registered, err := s.registered(process, "")
		return !registered, err
	})
}

// Beat implements Recorder. It is one statement, without a transaction: a beat
// too many does no harm.
func (r *RepositoryGorm) Beat(process string) (pulse Pulse, err error) {
	const op = "beat"
	ctx, cancel := r.db.Context()
	defer cancel()
	err = r.db.Failed(op, r.db.AttemptInTurn(ctx, func(tx *sqltx.Tx) error {
		s, err := r.recordsOn(tx)
		if err != nil {
			return err
		}
		var beats int64
		var now *int64
		var peers string
		err = s.row(beatOnce, []any{process}, &beats, &now, &pulse.Revision, &pulse.Leader, &peers)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w: %s", ErrNotRegistered, process)
		}
		if err != nil {
			return err
		}
		pulse.Now = databaseTime(now)
		pulse.Peers, err = decodePeers(peers)
		for i := range pulse.Peers {
			if pulse.Peers[i].Process == process {
				pulse.Peers[i].Beats = beats
			}
		}
		return err
	}))
	if err != nil {
		return Pulse{}, err
	}
	return pulse, nil
}

// decodePeers reads a list of pairs, and sorts it.
func decodePeers(text string) ([]Peer, error) {
	var pairs [][2]json.RawMessage
	if err := json.Unmarshal([]byte(text), &pairs); err != nil {
		return nil, err
	}
	peers := make([]Peer, len(pairs))
	for i, pair := range pairs {
		if err := errors.Join(json.Unmarshal(pair[0], &peers[i].Process), json.Unmarshal(pair[1], &peers[i].Beats)); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Compare(a.Process, b.Process) })
	return peers, nil
}

// Claim implements Recorder. A call takes 10 s at most.
func (r *RepositoryGorm) Claim(process string, claims []Claim) (results []ClaimResult, err error) {
	if len(claims) == 0 {
		return nil, nil
	}
	for deadline := time.Now().Add(claimLimit); ; {
		bounded := r.within(time.Until(deadline).Round(time.Millisecond))
		results, err = bounded.claim(process, claims)
		if !errors.Is(err, ErrNotRegistered) {
			return results, err
		}
		// A burial that was under way may have been undone. One that waits for
		// it here holds up nobody.
		registered := false
		lookErr := bounded.readRecord("claim runs", func(s *records) (err error) {
			registered, err = s.registered(process, "FOR KEY SHARE")
			return err
		})
		if !registered {
			return nil, cmp.Or(lookErr, err)
		}
	}
}

// claim is Claim, for which a process that is just being buried is not registered.
// What waits for what, so that nobody waits for each other: for marks and runs, in
// the order of their keys, then for running keys, in the same order.
func (r *RepositoryGorm) claim(process string, claims []Claim) ([]ClaimResult, error) {
	order := make([]int, len(claims))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return compareKeys(&claims[a].RunKey, &claims[b].RunKey) })
	results := make([]ClaimResult, len(claims))
	err := r.writeRecord("claim runs", true, func(s *records) error {
		var exclusive []int
		for chunk := range slices.Chunk(order, recordChunk) {
			added, err := s.claim(process, claims, chunk, results)
			if err != nil {
				return err
			}
			exclusive = append(exclusive, added...)
		}
		for chunk := range slices.Chunk(exclusive, recordChunk) {
			if err := s.takeRunningKeys(process, claims, chunk, results); err != nil {
				return err
			}
		}
		registered, err := s.registered(process, "FOR KEY SHARE SKIP LOCKED")
		if err == nil && !registered {
			err = fmt.Errorf("%w: %s", ErrNotRegistered, process)
		}
		return err
	}, func(s *records) (bool, error) {
		var won [][]any
		for i, result := range results {
			if result == ClaimWon {
				won = append(won, keyValues(&claims[i].RunKey))
			}
		}
		var mine int
		err := s.row("SELECT count(*) FROM {rows} JOIN {job_runs} r ON "+sameRun+" WHERE r.process = $1", []any{process, rowsArg(keyFields, won)}, &mine)
		return mine == len(won), err
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// Finish implements Recorder.
func (r *RepositoryGorm) Finish(process string, runs []FinishedRun) error {
	if len(runs) == 0 {
		return nil
	}
	runs = slices.Clone(runs)
	slices.SortStableFunc(runs, func(a, b FinishedRun) int { return compareKeys(&a.RunKey, &b.RunKey) })
	return r.writeRecord("finish runs", true, func(s *records) error {
		for chunk := range chunks(runs, recordChunk, func(run *FinishedRun) int { return len(run.Error) }) {
			if err := s.finish(process, chunk); err != nil {
				return err
			}
		}
		return nil
	}, func(s *records) (bool, error) {
		values := make([][]any, len(runs))
		for i := range runs {
			values[i] = append(keyValues(&runs[i].RunKey), runs[i].Unclaimed)
		}
		var left int
		err := s.row(countUnfinished, []any{process, rowsArg(keyFields+", unclaimed boolean", values)}, &left)
		return left == 0, err
	})
}

// Change implements Recorder.
func (r *RepositoryGorm) Change(change func(tx RecordTx) error) (int64, error) {
	var failure error
	revision, err := r.changeRecord("change the record", func(tx *recordTx) error {
		failure = change(tx)
		return failure
	})
	if failure != nil {
		return 0, failure
	}
	return revision, err
}

// changeRecord is one Change.
func (r *RepositoryGorm) changeRecord(op string, body func(tx *recordTx) error) (revision int64, err error) {
	token := rand.Text()[:tokenLength]
	err = r.writeRecord(op, false, func(s *records) error {
		// The first statement: who has written the row has the record to itself.
		var now *int64
		err := s.row("UPDATE {job_record} SET revision = revision + 1, tokens = substr(CAST($1 AS text) || tokens, 1, CAST($2 AS int)) RETURNING revision, {clock}",
			[]any{token, tokensKept * tokenLength}, &revision, &now)
		if err != nil {
			return err
		}
		s.now = databaseTime(now)
		return body(newRecordTx(r, s, revision))
	}, func(s *records) (bool, error) {
		var latest int64
		var tokens string
		if err := s.row("SELECT revision, tokens FROM {job_record}", nil, &latest, &tokens); err != nil {
			return false, err
		}
		for chunk := range slices.Chunk([]byte(tokens), tokenLength) {
			if string(chunk) == token {
				return true, nil
			}
		}
		if latest-revision >= tokensKept {
			return false, errors.New("the record does not say any more")
		}
		return false, nil
	})
	if err != nil {
		return 0, err
	}
	return revision, nil
}

// The record holds a token of each of the last Changes, so that one can tell
// whether its COMMIT happened or whether another has its revision.
const (
	tokenLength = 12
	tokensKept  = 20
)

// Changes implements Recorder.
func (r *RepositoryGorm) Changes(since int64, ids []int64) (changes Changes, err error) {
	text, args := fmt.Sprintf(changedJobs, "{job_marks} v", "v.revision > $1"), []any{since}
	if ids != nil {
		text, args = fmt.Sprintf(changedJobs, "{rows}", "true"), []any{idRows(unique(ids))}
	}
	err = r.readRecord("read changes", func(s *records) error {
		strict := s.Kind() == sqltx.SQLite
		changes = Changes{}
		var id, revision *int64
		var values rowValues
		dest := append([]any{&changes.Revision, &id, &revision}, values.dest()...)
		return s.each(text, args, func(rows *sql.Rows) error {
			if err := rows.Scan(dest...); err != nil || id == nil {
				return err
			}
			if values[0] == nil {
				changes.Gone = append(changes.Gone, *id)
				return nil
			}
			row := values.row(strict)
			if revision != nil {
				row.Revision = *revision
			}
			changes.Jobs = append(changes.Jobs, row)
			return nil
		})
	})
	if err != nil {
		return Changes{}, err
	}
	return changes, nil
}

// CompareMarks implements Recorder.
func (r *RepositoryGorm) CompareMarks() error {
	const op = "compare marks"
	var differ bool
	err := r.readRecord(op, func(s *records) error { return s.row(countDifferences, []any{0}, &differ) })
	if err != nil || !differ {
		return err
	}
	_, err = r.changeRecord(op, func(tx *recordTx) error {
		if err := tx.exec(markStrangers, tx.revision, tx.now.UnixMicro()); err != nil {
			return err
		}
		return tx.exec(buryMarks, tx.revision, tx.now.UnixMicro())
	})
	return err
}

// PruneRuns implements Recorder. What is kept is looked at once in a round of
// calls, which ends when one finds nothing more.
func (r *RepositoryGorm) PruneRuns(before time.Time, limit int) (int, error) {
	limit = max(limit, 0)
	from, err := r.state.prunedTo(), error(nil)
	count, last := 0, from
	var sample []any
	err = r.writeRecord("prune runs", true, func(s *records) error {
		count, last, sample = 0, from, nil
		for _, start := range slices.Compact([]int64{from, math.MinInt64}) {
			if count == limit {
				break
			}
			last = math.MinInt64
			err := s.each(pruneRuns, []any{before.UnixMicro(), start, limit - count}, func(rows *sql.Rows) error {
				key, err := scanKey(rows)
				count, last, sample = count+1, max(last, key.tick), key.values()
				return err
			})
			if err != nil {
				return err
			}
		}
		return s.exec(pruneTombstones, before.UnixMicro())
	}, func(s *records) (bool, error) {
		if sample == nil {
			return true, nil
		}
		var left int
		err := s.row("SELECT count(*) FROM {rows} JOIN {job_runs} r ON "+sameRun, []any{rowsArg(keyFields, [][]any{sample})}, &left)
		return left == 0, err
	})
	if err != nil {
		return 0, err
	}
	if count < limit {
		last = math.MinInt64
	}
	r.state.setPruned(last)
	return count, nil
}

func (r *recordState) prunedTo() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pruned
}

func (r *recordState) setPruned(tick int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pruned = tick
}

// ListRuns implements Recorder.
func (r *RepositoryGorm) ListRuns(options ListRunsOptions) (runs []Run, err error) {
	err = r.readRecord("list runs", func(s *records) error {
		var where []string
		var args []any
		filter := func(condition string, arg any) {
			args = append(args, arg)
			where = append(where, fmt.Sprintf(condition, len(args)))
		}
		for _, ids := range []struct {
			column string
			ids    []int64
		}{{"job_id", options.JobIDs}, {"group_id", options.GroupIDs}, {"super_group_id", options.SuperGroupIDs}} {
			if ids.ids != nil {
				args = append(args, sqltx.IDs(unique(ids.ids)))
				where = append(where, s.Kind().Among(ids.column, len(args)))
			}
		}
		if options.Outcomes != nil {
			outcomes := []string{"NULL"}
			for _, outcome := range options.Outcomes {
				args = append(args, string(outcome))
				outcomes = append(outcomes, "$"+strconv.Itoa(len(args)))
			}
			where = append(where, "outcome IN ("+strings.Join(outcomes, ", ")+")")
		}
		if !options.From.IsZero() {
			filter("tick >= $%d", options.From.UnixMicro())
		}
		if !options.Before.IsZero() {
			filter("tick < $%d", options.Before.UnixMicro())
		}
		text := "SELECT " + runColumns + " FROM {job_runs}"
		if len(where) > 0 {
			text += " WHERE " + strings.Join(where, " AND ")
		}
		args = append(args, options.limit())
		runs, err = s.runs(text+" ORDER BY tick DESC, job_id DESC, attempt DESC, triggered DESC LIMIT $"+strconv.Itoa(len(args)), args...)
		return err
	})
	return runs, err
}

// LastRuns implements Recorder.
func (r *RepositoryGorm) LastRuns(jobIDs []int64) (runs []Run, err error) {
	err = r.readRecord("read last runs", func(s *records) error {
		runs = []Run{}
		var created any
		return s.each(lastRuns, []any{idRows(unique(jobIDs))}, func(rows *sql.Rows) error {
			run, err := scanRun(rows, &created)
			if err != nil {
				return err
			}
			scanner := rowScanner{row: &RawJob{}, strict: s.Kind() == sqltx.SQLite}
			if run.Tick.Before(scanner.time("created_at", created)) {
				return nil
			}
			if n := len(runs); n > 0 && runs[n-1].JobID == run.JobID {
				runs = runs[:n-1]
			}
			runs = append(runs, run)
			return nil
		})
	})
	return runs, err
}

// within is the repository with a timeout of at most limit.
func (r *RepositoryGorm) within(limit time.Duration) *RepositoryGorm {
	bounded := *r
	bounded.db = r.db.Within(limit)
	return &bounded
}

// readRecord calls use with a transaction to read in.
func (r *RepositoryGorm) readRecord(op string, use func(s *records) error) error {
	ctx, cancel := r.db.Context()
	defer cancel()
	return r.db.Failed(op, r.db.Read(ctx, func(tx *sqltx.Tx) error {
		s, err := r.recordsOn(tx)
		if err != nil {
			return err
		}
		return use(s)
	}))
}

// writeRecord runs body in one transaction: a second time if PostgreSQL ended it
// for a deadlock, and again says so. See sqltx.DB.Write for took. Statements take
// the rows that they are given one after another, by the indexes. A CASE in a
// condition keeps it from having an influence on that.
func (r *RepositoryGorm) writeRecord(op string, again bool, body func(s *records) error, took func(s *records) (bool, error)) error {
	ctx, cancel := r.db.Context()
	defer cancel()
	db := r.db.WithSettings("enable_seqscan", "off", "enable_bitmapscan", "off", "enable_hashjoin", "off", "enable_mergejoin", "off")
	write := db.WriteOnce
	if again {
		write = db.Write
	}
	return write(ctx, op, func(tx *sqltx.Tx) error {
		s, err := r.recordsOn(tx)
		if err != nil {
			return err
		}
		return body(s)
	}, func(tx *sqltx.Tx) (bool, error) { return took(&records{tx, tx.Now()}) })
}

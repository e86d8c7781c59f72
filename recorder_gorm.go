package smallben

import (
	"cmp"
	"context"
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

	"gorm.io/gorm"
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
	d, ok := r.dialect.(recordDialect)
	if !ok {
		return ""
	}
	var text strings.Builder
	for _, statement := range recordSchema {
		text.WriteString(d.words(statement) + ";\n")
	}
	return text.String()
}

// OpenRecord implements Recorder. It creates the tables of the record that are
// missing, unless SkipMigration is set.
func (r *RepositoryGorm) OpenRecord(location string) error {
	const op = "open record"
	if _, ok := r.dialect.(recordDialect); !ok {
		return fmt.Errorf("open record: the record of runs needs PostgreSQL or SQLite, not %s", r.db.Name())
	}
	if err := r.migrateRecord(op); err != nil {
		return err
	}
	var stored string
	err := r.writeRecord(op, true, func(s *records) error {
		err := s.exec("INSERT INTO job_record (id, revision, tokens, location, leader) VALUES (1, 0, '', $1, '') ON CONFLICT DO NOTHING", location)
		if err != nil {
			return err
		}
		return s.row("SELECT location FROM job_record", nil, &stored)
	}, func(s *records) (bool, error) {
		err := s.row("SELECT location FROM job_record", nil, &stored)
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
			exists, err := s.dialect.exists(s.db, table.name)
			if err != nil {
				return err
			}
			if !exists {
				missing = table.name
			}
		}
		return nil
	}
	err := r.readRecord(op, func(s *records) error {
		if err := look(s); err != nil {
			return err
		}
		return s.dialect.shareable(s.db)
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
	ctx, cancel := r.context()
	defer cancel()
	for _, table := range recordTables {
		if err := r.checkColumns(ctx, table.name, table.columns); err != nil {
			return r.failed(op, err)
		}
	}
	return nil
}

// Join implements Recorder.
func (r *RepositoryGorm) Join(process string) error {
	return r.writeRecord("join", true, func(s *records) error {
		return s.exec("INSERT INTO job_processes (process, beats) VALUES ($1, 0) ON CONFLICT DO NOTHING", process)
	}, func(s *records) (bool, error) { return s.registered(process, "") })
}

// Leave implements Recorder.
func (r *RepositoryGorm) Leave(process string) error {
	return r.writeRecord("leave", true, func(s *records) error {
		return s.exec("DELETE FROM job_processes WHERE process = $1", process)
	}, func(s *records) (bool, error) {
		registered, err := s.registered(process, "")
		return !registered, err
	})
}

// Beat implements Recorder. It is one statement, without a transaction: a beat
// too many does no harm.
func (r *RepositoryGorm) Beat(process string) (pulse Pulse, err error) {
	const op = "beat"
	ctx, cancel := r.context()
	defer cancel()
	done, err := r.takeTurn(ctx)
	if err != nil {
		return Pulse{}, r.failed(op, err)
	}
	defer done()
	err = r.failed(op, r.attempt(ctx, func(tx *gorm.DB) error {
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
		bounded := r.within(time.Until(deadline))
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
		err := s.row("SELECT count(*) FROM {rows} JOIN job_runs r ON "+sameRun+" WHERE r.process = $1", []any{process, rowsArg{keyFields, won}}, &mine)
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
		err := s.row(countUnfinished, []any{process, rowsArg{keyFields + ", unclaimed boolean", values}}, &left)
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
		err := s.row("UPDATE job_record SET revision = revision + 1, tokens = substr(CAST($1 AS text) || tokens, 1, CAST($2 AS int)) RETURNING revision, {clock}",
			[]any{token, tokensKept * tokenLength}, &revision, &now)
		if err != nil {
			return err
		}
		s.now = databaseTime(now)
		return body(newRecordTx(r, s, revision))
	}, func(s *records) (bool, error) {
		var latest int64
		var tokens string
		if err := s.row("SELECT revision, tokens FROM job_record", nil, &latest, &tokens); err != nil {
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
	text, args := fmt.Sprintf(changedJobs, "job_marks v", "v.revision > $1"), []any{since}
	if ids != nil {
		text, args = fmt.Sprintf(changedJobs, "{rows}", "true"), []any{idRows(unique(ids))}
	}
	err = r.readRecord("read changes", func(s *records) error {
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
			row := values.row(s.strict)
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
		err := s.row("SELECT count(*) FROM {rows} JOIN job_runs r ON "+sameRun, []any{rowsArg{keyFields, [][]any{sample}}}, &left)
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
		c := s.conditions
		for _, ids := range []struct {
			column string
			ids    []int64
		}{{"job_id", options.JobIDs}, {"group_id", options.GroupIDs}, {"super_group_id", options.SuperGroupIDs}} {
			if ids.ids != nil {
				args = append(args, c.list(unique(ids.ids)))
				where = append(where, fmt.Sprintf(c.among, ids.column, len(args)))
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
		text := "SELECT " + runColumns + " FROM job_runs"
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
			scanner := rowScanner{row: &RawJob{}, strict: s.strict}
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
	if r.timeout == 0 || r.timeout > limit {
		bounded.timeout = limit
	}
	return &bounded
}

// takeTurn waits for the turn to write the record. The caller ends it.
func (r *RepositoryGorm) takeTurn(ctx context.Context) (done func(), err error) {
	if r.db.Name() != "sqlite" {
		return func() {}, nil
	}
	select {
	case r.state.turn <- struct{}{}:
		return func() { <-r.state.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// readRecord calls use with a transaction to read in.
func (r *RepositoryGorm) readRecord(op string, use func(s *records) error) error {
	ctx, cancel := r.context()
	defer cancel()
	return r.failed(op, r.readTx(ctx, use))
}

func (r *RepositoryGorm) readTx(ctx context.Context, use func(s *records) error) error {
	beginCtx := ctx
	if r.pinned {
		beginCtx = context.WithoutCancel(ctx) // as in writeOnce
	}
	conn, err := r.acquire(ctx, func(conn *sql.Conn) error {
		tx, err := conn.BeginTx(beginCtx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		s, err := r.recordsOn(r.session(ctx, tx))
		if err == nil {
			err = s.dialect.beginRead(s.db)
		}
		if err == nil {
			err = use(s)
		}
		return err
	})
	if err != nil {
		return err
	}
	return conn.Close()
}

// writeRecord runs body in one transaction: a second time if PostgreSQL ended it
// for a deadlock, and again says so. See writeOnce for took.
func (r *RepositoryGorm) writeRecord(op string, again bool, body func(s *records) error, took func(s *records) (bool, error)) error {
	ctx, cancel := r.context()
	defer cancel()
	done, err := r.takeTurn(ctx)
	if err != nil {
		return r.failed(op, err)
	}
	defer done()
	writer := *r
	if r.db.Name() == "postgres" {
		writer.isolation = &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	}
	write := writer.writeOnce
	if again {
		write = writer.write
	}
	return write(ctx, op, func(tx *gorm.DB) (note string, err error) {
		s, err := r.recordsOn(tx)
		if err != nil {
			return "", err
		}
		if note, s.now, err = s.dialect.begin(tx); err != nil {
			return "", err
		}
		return note, body(s)
	}, func(ctx context.Context) (ok bool, err error) {
		err = r.readTx(ctx, func(s *records) (err error) {
			ok, err = took(s)
			return err
		})
		return ok, err
	})
}

// records runs statements of the record on a connection or in a transaction.
type records struct {
	db         *gorm.DB
	dialect    recordDialect
	conditions conditions
	strict     bool      // see scanRows
	now        time.Time // in a transaction: when it began, by the database
}

func (r *RepositoryGorm) recordsOn(tx *gorm.DB) (*records, error) {
	switch d := r.dialect.(type) {
	case postgresDialect:
		return &records{db: tx, dialect: d, conditions: postgresConditions}, nil
	case sqliteDialect:
		return &records{db: tx, dialect: d, conditions: sqliteConditions, strict: true}, nil
	}
	return nil, fmt.Errorf("the record of runs needs PostgreSQL or SQLite, not %s", r.db.Name())
}

// rowsArg is an argument of a statement, its last, which stands for {rows}.
type rowsArg struct {
	fields string
	values [][]any
}

func idRows(ids []int64) rowsArg {
	values := make([][]any, len(ids))
	for i, id := range ids {
		values[i] = []any{id}
	}
	return rowsArg{jobFields, values}
}

// prepare writes a statement in the words of the database.
func (s *records) prepare(text string, args []any) (string, []any) {
	text = s.dialect.words(text)
	if n := len(args); n > 0 {
		if source, ok := args[n-1].(rowsArg); ok {
			from, more := s.dialect.rows(n, source.fields, source.values)
			text = strings.Replace(text, "{rows}", from, 1)
			args = slices.Concat(args[:n-1], more)
		}
	}
	return text, args
}

func (s *records) exec(text string, args ...any) error {
	text, args = s.prepare(text, args)
	return exec(s.db, text, args...)
}

// row scans the only row of a query.
func (s *records) row(text string, args []any, dest ...any) error {
	text, args = s.prepare(text, args)
	return queryRow(s.db, text, args, dest...)
}

// each calls scan for each row of a query.
func (s *records) each(text string, args []any, scan func(rows *sql.Rows) error) error {
	text, args = s.prepare(text, args)
	rows, err := query(s.db, text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

// runs returns the runs of a query.
func (s *records) runs(text string, args ...any) ([]Run, error) {
	runs := []Run{}
	err := s.each(text, args, func(rows *sql.Rows) error {
		run, err := scanRun(rows)
		runs = append(runs, run)
		return err
	})
	return runs, err
}

// keys returns the keys of a query.
func (s *records) keys(text string, args ...any) (map[runID]bool, error) {
	keys := make(map[runID]bool)
	err := s.each(text, args, func(rows *sql.Rows) error {
		key, err := scanKey(rows)
		keys[key] = true
		return err
	})
	return keys, err
}

// registered reports whether the process is, and with a lock keeps it so to the end
// of the transaction.
func (s *records) registered(process, lock string) (bool, error) {
	var found bool
	err := s.row("SELECT true FROM job_processes WHERE process = $1 "+lock, []any{process}, &found)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return found, err
}

// claim claims what these indexes name, and returns those that are added and
// want a running key.
func (s *records) claim(process string, claims []Claim, indexes []int, results []ClaimResult) (exclusive []int, err error) {
	values := func(indexes []int) rowsArg {
		values := make([][]any, len(indexes))
		for i, n := range indexes {
			c := &claims[n]
			values[i] = append(keyValues(&c.RunKey), c.GroupID, c.SuperGroupID, c.Revision, c.Exclusive, n)
		}
		return rowsArg{claimFields, values}
	}
	rest := indexes
	try := func(text string) error {
		added, err := s.keys(text, process, s.now.UnixMicro(), values(rest))
		var others []int
		for _, n := range rest {
			switch c := &claims[n]; {
			case !added[idOf(&c.RunKey)]:
				others = append(others, n)
				continue
			case c.Exclusive:
				exclusive = append(exclusive, n)
			}
			results[n] = ClaimWon
		}
		rest = others
		return err
	}
	if err := try(claimRuns); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(rest, func(n int) bool { return claims[n].Triggered }) {
		if err := try(claimUnmarked); err != nil {
			return nil, err
		}
	}
	if len(rest) == 0 {
		return exclusive, nil
	}
	return exclusive, s.each(judgeClaims, []any{process, s.now.UnixMicro(), values(rest)}, func(rows *sql.Rows) error {
		var n, result int
		err := rows.Scan(&n, &result)
		if err == nil {
			results[n] = ClaimResult(result)
		}
		return err
	})
}

// takeRunningKeys takes the running keys for claims that are won, and makes those
// skipped that get none.
func (s *records) takeRunningKeys(process string, claims []Claim, indexes []int, results []ClaimResult) error {
	values := make([][]any, len(indexes))
	for i, n := range indexes {
		values[i] = keyValues(&claims[n].RunKey)
	}
	taken, err := s.keys(takeRunningKeys, process, rowsArg{keyFields, values})
	if err != nil {
		return err
	}
	var skipped [][]any
	for i, n := range indexes {
		if !taken[idOf(&claims[n].RunKey)] {
			results[n] = ClaimSkipped
			skipped = append(skipped, values[i])
		}
	}
	if len(skipped) == 0 {
		return nil
	}
	return s.exec(skipRuns, s.now.UnixMicro(), rowsArg{keyFields, skipped})
}

func (s *records) finish(process string, runs []FinishedRun) error {
	var ended, exclusive, unclaimed [][]any
	for i := range runs {
		run := &runs[i]
		key, text := keyValues(&run.RunKey), storedText(run.Error)
		ended = append(ended, append(slices.Clip(key), micros(run.Start), micros(run.End), string(run.Outcome), text))
		if run.Exclusive {
			exclusive = append(exclusive, key)
		}
		if run.Unclaimed {
			unclaimed = append(unclaimed, runValues(&Run{RunKey: run.RunKey, GroupID: run.GroupID, SuperGroupID: run.SuperGroupID, Process: process,
				Start: run.Start, End: run.End, Outcome: run.Outcome, Error: text, Exclusive: run.Exclusive}))
		}
	}
	if err := s.exec(finishRuns, process, rowsArg{keyFields + ", started_at bigint, ended_at bigint, outcome text, error text", ended}); err != nil {
		return err
	}
	if len(exclusive) > 0 {
		if err := s.exec(freeRunningKeys, process, rowsArg{keyFields, exclusive}); err != nil {
			return err
		}
	}
	if len(unclaimed) == 0 {
		return nil
	}
	return s.exec(addUnclaimedRuns, rowsArg{runFields, unclaimed})
}

// recordTx is the transaction of a Change.
type recordTx struct {
	Repository // in the transaction
	Upserter
	records
	revision int64
}

var _ RecordTx = (*recordTx)(nil)

func newRecordTx(r *RepositoryGorm, s *records, revision int64) *recordTx {
	inside := *r
	tx := &recordTx{Repository: &inside, Upserter: &inside, records: *s, revision: revision}
	inside.tx = tx
	return tx
}

// Now implements RecordTx.
func (tx *recordTx) Now() time.Time { return tx.now }

// Accounts implements RecordTx. A job without a mark gets one.
func (tx *recordTx) Accounts(jobIDs []int64) ([]Account, error) {
	accounts := []Account{}
	for ids := range slices.Chunk(unique(jobIDs), changeChunk) {
		jobs := idRows(ids)
		err := tx.exec(adoptJobs, tx.revision, tx.now.UnixMicro(), jobs)
		if err == nil {
			err = tx.exec(lockMarks, jobs)
		}
		if err == nil {
			// A statement of its own, which sees the claims that the locks waited for.
			err = tx.each(readAccounts, []any{jobs}, func(rows *sql.Rows) error {
				var account Account
				var until int64
				err := rows.Scan(&account.JobID, &until, &account.Revision, &account.Busy)
				account.Until = time.UnixMicro(until).UTC()
				accounts = append(accounts, account)
				return err
			})
		}
		if err != nil {
			return nil, fmt.Errorf("read accounts: %w", err)
		}
	}
	return accounts, nil
}

// RecordedTicks implements RecordTx.
func (tx *recordTx) RecordedTicks(spans []TickSpan) ([][]time.Time, error) {
	ticks := make([][]time.Time, len(spans))
	values := make([][]any, len(spans))
	for i, span := range spans {
		values[i] = []any{i, span.JobID, span.After.UnixMicro(), span.Until.UnixMicro()}
	}
	for chunk := range slices.Chunk(values, changeChunk) {
		err := tx.each(recordedTicks, []any{rowsArg{"n bigint, job_id bigint, after bigint, until bigint", chunk}}, func(rows *sql.Rows) error {
			var n int
			var tick int64
			err := rows.Scan(&n, &tick)
			if err == nil {
				ticks[n] = append(ticks[n], time.UnixMicro(tick).UTC())
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read ticks: %w", err)
		}
	}
	return ticks, nil
}

// Record implements RecordTx.
func (tx *recordTx) Record(accounts []Account, runs []Run) error {
	accounts, runs = slices.Clone(accounts), slices.Clone(runs)
	slices.SortStableFunc(accounts, func(a, b Account) int { return cmp.Compare(a.JobID, b.JobID) })
	slices.SortStableFunc(runs, func(a, b Run) int { return compareKeys(&a.RunKey, &b.RunKey) })
	var ids []int64
	for i := range accounts {
		ids = append(ids, accounts[i].JobID)
	}
	for i := range runs {
		ids = append(ids, runs[i].JobID)
	}
	for chunk := range slices.Chunk(unique(ids), changeChunk) {
		if err := tx.exec(lockMarks, idRows(chunk)); err != nil {
			return fmt.Errorf("record runs: %w", err)
		}
	}
	// Not with the accounts: PostgreSQL would remember for each of them who had
	// locked it before the savepoint.
	err := tx.atomically(func() error {
		for chunk := range chunks(runs, recordChunk, func(run *Run) int { return len(run.Error) }) {
			if err := tx.addRuns(chunk); err != nil {
				return err
			}
		}
		return nil
	})
	for chunk := range slices.Chunk(accounts, changeChunk) {
		if err != nil {
			break
		}
		values := make([][]any, len(chunk))
		for i := range chunk {
			values[i] = []any{chunk[i].JobID, chunk[i].Until.UnixMicro()}
		}
		err = tx.exec("UPDATE job_marks AS m SET accounted_until = v.until FROM {rows} WHERE m.job_id = v.job_id", rowsArg{"job_id bigint, until bigint", values})
	}
	if err != nil {
		return fmt.Errorf("record runs: %w", err)
	}
	return nil
}

// addRuns adds runs, and takes the running keys of those that need one.
func (tx *recordTx) addRuns(runs []Run) error {
	values := make([][]any, len(runs))
	var running [][]any
	for i := range runs {
		run := runs[i]
		run.Error = storedText(run.Error)
		values[i] = runValues(&run)
		if run.Exclusive && run.End.IsZero() {
			running = append(running, append(keyValues(&run.RunKey), run.Process))
		}
	}
	err := tx.exec("INSERT INTO job_runs ("+runColumns+") SELECT "+runColumns+" FROM {rows}", rowsArg{runFields, values})
	if err == nil && len(running) > 0 {
		err = tx.exec("INSERT INTO job_running ("+keyColumns+", process) SELECT "+keyColumns+", process FROM {rows}", rowsArg{keyFields + ", process text", running})
	}
	return err
}

// Bury implements RecordTx.
func (tx *recordTx) Bury(dead []Peer) ([]Run, error) {
	values := make([][]any, len(dead))
	for i, peer := range dead {
		values[i] = []any{peer.Process, peer.Beats}
	}
	peers := rowsArg{"process text, beats bigint", values}
	// In the order of Claim: the marks before the running keys.
	err := tx.exec(lockMarksOfDead, peers)
	if err == nil {
		err = tx.exec("DELETE FROM job_processes WHERE (process, beats) IN (SELECT v.process, v.beats FROM {rows})", peers)
	}
	var lost []Run
	if err == nil {
		lost, err = tx.runs(loseRuns, tx.now.UnixMicro())
	}
	if err == nil {
		err = tx.exec("DELETE FROM job_running WHERE process NOT IN (SELECT process FROM job_processes)")
	}
	if err != nil {
		return nil, fmt.Errorf("bury processes: %w", err)
	}
	slices.SortFunc(lost, func(a, b Run) int { return compareKeys(&a.RunKey, &b.RunKey) })
	return lost, nil
}

// Lead implements RecordTx.
func (tx *recordTx) Lead(process string) (bool, error) {
	leads := false
	err := tx.each("UPDATE job_record SET leader = $1 WHERE leader = $1 OR leader NOT IN (SELECT process FROM job_processes) RETURNING leader",
		[]any{process}, func(*sql.Rows) error { leads = true; return nil })
	if err != nil {
		return false, fmt.Errorf("lead: %w", err)
	}
	return leads, nil
}

// atomically undoes what write did if it returns an error.
func (tx *recordTx) atomically(write func() error) error {
	if err := tx.exec("SAVEPOINT smallben"); err != nil {
		return err
	}
	if err := write(); err != nil {
		// If the connection broke, so will the COMMIT.
		_ = cmp.Or(tx.exec("ROLLBACK TO SAVEPOINT smallben"), tx.exec("RELEASE SAVEPOINT smallben"))
		return err
	}
	return tx.exec("RELEASE SAVEPOINT smallben")
}

// markChanged marks the jobs that a change has changed.
func (tx *recordTx) markChanged(kind changeKind, targets []rowChange, missing []int64) error {
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
	if kind != deleting {
		return tx.mark(ids, kind == resuming)
	}
	for chunk := range slices.Chunk(ids, changeChunk) {
		if err := tx.exec(entombJobs, tx.revision, tx.now.UnixMicro(), idRows(chunk)); err != nil {
			return err
		}
	}
	return nil
}

// mark marks jobs with the revision. Their accounts begin now if begin.
func (tx *recordTx) mark(ids []int64, begin bool) error {
	for chunk := range slices.Chunk(ids, changeChunk) {
		if err := tx.exec(markJobs, tx.revision, tx.now.UnixMicro(), begin, idRows(chunk)); err != nil {
			return err
		}
	}
	return nil
}

// runID is a RunKey that can be compared.
type runID struct {
	jobID, tick int64
	triggered   bool
	attempt     int
}

func idOf(key *RunKey) runID {
	return runID{key.JobID, key.Tick.UnixMicro(), key.Triggered, key.Attempt}
}

func (id runID) values() []any { return []any{id.jobID, id.tick, id.triggered, id.attempt} }

func keyValues(key *RunKey) []any { return idOf(key).values() }

func compareKeys(a, b *RunKey) int {
	return cmp.Or(cmp.Compare(a.JobID, b.JobID), cmp.Compare(a.Tick.UnixMicro(), b.Tick.UnixMicro()),
		compareBools(a.Triggered, b.Triggered), cmp.Compare(a.Attempt, b.Attempt))
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// runValues are in the order of runColumns.
func runValues(run *Run) []any {
	return append(keyValues(&run.RunKey), run.GroupID, run.SuperGroupID, run.Process, string(run.Outcome),
		micros(run.Start), micros(run.End), run.Error, run.Missed, micros(run.FirstTick), run.Exclusive)
}

// scanRun reads a run in the order of runColumns, after the columns of before.
func scanRun(rows *sql.Rows, before ...any) (run Run, err error) {
	var tick int64
	var start, end, first *int64
	err = rows.Scan(append(before, &run.JobID, &tick, &run.Triggered, &run.Attempt, &run.GroupID, &run.SuperGroupID, &run.Process, &run.Outcome,
		&start, &end, &run.Error, &run.Missed, &first, &run.Exclusive)...)
	run.Tick = time.UnixMicro(tick).UTC()
	run.Start, run.End, run.FirstTick = instant(start), instant(end), instant(first)
	return run, err
}

func scanKey(rows *sql.Rows) (id runID, err error) {
	err = rows.Scan(&id.jobID, &id.tick, &id.triggered, &id.attempt)
	return id, err
}

// micros is how the record stores a time; the zero time is NULL.
func micros(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

func instant(micros *int64) time.Time {
	if micros == nil {
		return time.Time{}
	}
	return time.UnixMicro(*micros).UTC()
}

// databaseTime is the time of the database, or, if it gives none, ours.
func databaseTime(micros *int64) time.Time {
	if micros == nil {
		return time.Now().UTC().Truncate(time.Microsecond)
	}
	return instant(micros)
}

// storedText is text without what a database refuses.
func storedText(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

package ledgersql

import (
	"cmp"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nbena/smallben/internal/ledger"
	"github.com/nbena/smallben/internal/sqltx"
)

// Claim implements ledger.Store. A call takes claimLimit or claimQueue at most.
func (s *Store) Claim(process string, claims []ledger.Claim) (results []ledger.Result, err error) {
	if len(claims) == 0 {
		return nil, nil
	}
	limit := claimLimit
	if s.db.Kind() == sqltx.SQLite {
		limit = claimQueue
	}
	for deadline := time.Now().Add(limit); ; {
		bounded := s.over(s.urgent.Within(time.Until(deadline).Round(time.Millisecond)))
		results, err = bounded.claim(process, claims)
		if !errors.Is(err, ledger.ErrNotRegistered) {
			return results, err
		}
		// An Expire that was under way may have been undone. One that waits for it
		// here holds up nobody.
		registered := false
		lookErr := bounded.read("claim runs", func(on statements) (err error) {
			registered, err = on.registered(process, "FOR KEY SHARE")
			return err
		})
		if !registered {
			return nil, cmp.Or(lookErr, err)
		}
	}
}

// claim is Claim, for which a process that just expires is not registered. What waits
// for what, so that nobody waits for each other: for states and runs, in the order of
// their keys, then for locks, in the same order.
func (s *Store) claim(process string, claims []ledger.Claim) ([]ledger.Result, error) {
	order := make([]int, len(claims))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return claims[a].Key.Compare(claims[b].Key) })
	results := make([]ledger.Result, len(claims))
	err := s.write("claim runs", func(on statements) error {
		c := claiming{statements: on, process: process, claims: claims, results: results}
		for chunk := range slices.Chunk(order, runChunk) {
			if err := c.claim(chunk); err != nil {
				return err
			}
		}
		for chunk := range slices.Chunk(c.exclusive, runChunk) {
			if err := c.lock(chunk); err != nil {
				return err
			}
		}
		if err := c.supersede(order); err != nil {
			return err
		}
		registered, err := on.registered(process, "FOR KEY SHARE SKIP LOCKED")
		if err == nil && !registered {
			err = fmt.Errorf("%w: %s", ledger.ErrNotRegistered, process)
		}
		return err
	}, func(on statements) (bool, error) {
		var won [][]any
		for i, result := range results {
			if result == ledger.Won {
				won = append(won, keyValues(&claims[i].Key))
			}
		}
		var mine int
		err := on.row(countRuns+" WHERE r.process = $1", []any{process, rowsOf(keyFields, won)}, &mine)
		return mine == len(won), err
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// claiming is the transaction of a call of Claim.
type claiming struct {
	statements
	process   string
	claims    []ledger.Claim
	results   []ledger.Result
	exclusive []int // claims that were won and need a lock
}

// claim claims what these indexes name, but for locks.
func (c *claiming) claim(indexes []int) error {
	fromQueue := func(n int) bool { return c.claims[n].FromQueue }
	if slices.ContainsFunc(indexes, fromQueue) && c.Kind() == sqltx.Postgres {
		// Several statements would lock the states each in its own order.
		ids := make([]int64, len(indexes))
		for i, n := range indexes {
			ids[i] = c.claims[n].JobID
		}
		if err := c.execJobs(shareStates, ids); err != nil {
			return err
		}
	}
	rest := indexes
	for _, statement := range []struct {
		text string
		of   func(n int) bool
	}{
		{claimRuns, func(n int) bool { return !fromQueue(n) }},
		{claimStateless, func(n int) bool { return !fromQueue(n) && c.claims[n].Triggered }},
		{claimWaiting, func(n int) bool { return fromQueue(n) && !c.isAttempt(n) }},
		{claimAttempts, c.isAttempt},
	} {
		var err error
		if rest, err = c.try(statement.text, rest, statement.of); err != nil {
			return err
		}
	}
	if len(rest) == 0 {
		return nil
	}
	return c.each(judgeClaims, []any{c.process, c.now(), c.rows(rest)}, func(rows *sql.Rows) error {
		var n, result int
		err := rows.Scan(&n, &result)
		if err == nil {
			c.results[n] = ledger.Result(result)
		}
		return err
	})
}

// isAttempt reports whether a claim is of a further attempt, which a later tick ends.
func (c *claiming) isAttempt(n int) bool {
	claim := &c.claims[n]
	return claim.FromQueue && claim.NewestCounts && claim.Attempt > 1
}

func (c *claiming) now() int64 { return c.Now().UnixMicro() }

// try runs a statement for those of the indexes that match. It returns those that were
// not won by it.
func (c *claiming) try(text string, indexes []int, match func(n int) bool) (rest []int, err error) {
	var tried []int
	for _, n := range indexes {
		if match(n) {
			tried = append(tried, n)
		}
	}
	if len(tried) == 0 {
		return indexes, nil
	}
	won, err := c.keys(text, c.process, c.now(), c.rows(tried))
	for _, n := range indexes {
		claim := &c.claims[n]
		if !match(n) || !won[claim.Key.ID()] {
			rest = append(rest, n)
			continue
		}
		c.results[n] = ledger.Won
		if claim.Overlap != ledger.Allow {
			c.exclusive = append(c.exclusive, n)
		}
	}
	return rest, err
}

func (c *claiming) rows(indexes []int) sqltx.Rows {
	values := make([][]any, len(indexes))
	for i, n := range indexes {
		claim := &c.claims[n]
		revision := claim.Revision
		if claim.Triggered && !claim.FromQueue {
			revision = 0 // it does not matter
		}
		values[i] = append(keyValues(&claim.Key), claim.GroupID, claim.SuperGroupID, revision, claim.Overlap != ledger.Allow, n)
	}
	return rowsOf(claimFields, values)
}

// lock takes the locks of jobs for claims that are won. Those that get none are skipped
// or wait.
func (c *claiming) lock(indexes []int) error {
	taken, err := c.keys(takeLocks, c.now(), c.process, lockRows(c.claims, indexes))
	if err != nil {
		return err
	}
	var skipped, delayed, back []int
	for _, n := range indexes {
		switch claim := &c.claims[n]; {
		case taken[claim.Key.ID()]:
		case claim.FromQueue:
			c.results[n] = ledger.Taken
			back = append(back, n)
		case claim.Overlap == ledger.Delay:
			delayed = append(delayed, n)
		default:
			c.results[n] = ledger.Overlapped
			skipped = append(skipped, n)
		}
	}
	if err := c.wait(back); err != nil {
		return err
	}
	waiting, full, err := c.delay(delayed)
	if err != nil {
		return err
	}
	if err := c.wait(waiting); err != nil {
		return err
	}
	return c.execKeys(skipRuns, c.keyValues(append(skipped, full...)), c.now())
}

func (c *claiming) wait(indexes []int) error {
	return c.execKeys(delayRuns, c.keyValues(indexes), c.now())
}

// delay gives claims without a lock the one place to wait that each job has.
func (c *claiming) delay(indexes []int) (waiting, full []int, err error) {
	if len(indexes) == 0 {
		return nil, nil, nil
	}
	rows := lockRows(c.claims, indexes)
	if err := c.exec(lockLocks, rows); err != nil {
		return nil, nil, err
	}
	// A statement of its own, which sees the claims that the locks waited for.
	taken, err := c.ids(fullJobs, c.now(), rows)
	if err != nil {
		return nil, nil, err
	}
	for _, n := range indexes {
		if id := c.claims[n].JobID; !taken[id] {
			taken[id] = true
			c.results[n] = ledger.Delayed
			waiting = append(waiting, n)
		} else {
			c.results[n] = ledger.Overlapped
			full = append(full, n)
		}
	}
	return waiting, full, nil
}

func lockRows(claims []ledger.Claim, indexes []int) sqltx.Rows {
	values := make([][]any, len(indexes))
	for i, n := range indexes {
		claim := &claims[n]
		values[i] = append(keyValues(&claim.Key), claim.FromQueue, claim.NewestCounts, claim.Overlap == ledger.Skip && !claim.Triggered)
	}
	return rowsOf(lockFields, values)
}

func (c *claiming) keyValues(indexes []int) [][]any {
	values := make([][]any, len(indexes))
	for i, n := range indexes {
		values[i] = keyValues(&c.claims[n].Key)
	}
	return values
}

// supersede ends the waiting attempts of ticks before those that were won, and those
// that were not won because a later tick has started.
func (c *claiming) supersede(indexes []int) error {
	var newer, overtaken [][]any // keys
	for _, n := range indexes {
		claim, won := &c.claims[n], c.results[n] == ledger.Won
		switch {
		case won && claim.NewestCounts && claim.Attempt == 1:
			newer = append(newer, keyValues(&claim.Key))
		case !won && c.isAttempt(n):
			overtaken = append(overtaken, keyValues(&claim.Key))
		}
	}
	if err := c.execKeys(endSuperseded, newer, c.now()); err != nil {
		return err
	}
	return c.execKeys(endOvertaken, overtaken, c.now())
}

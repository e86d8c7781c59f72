package smallben

import (
	"cmp"
	"context"
	"fmt"
	"reflect"

	"github.com/robfig/cron/v3"

	"github.com/nbena/smallben/internal/cronexpr"
	"github.com/nbena/smallben/internal/ledger/ledgersql"
	"github.com/nbena/smallben/internal/stored"
)

// upsertParts are what becomes of the jobs of an upsert.
type upsertParts struct {
	add, replace, unchanged []JobWithSchedule
	rescheduled             []int64   // of replace, those whose expression changes
	undecodable             []int64   // those whose row has a column that cannot be read
	retyped                 []*RawJob // the rows of replace that do not decode, or hold another type
	held                    []int64   // of these, those that do not decode
}

// UpsertJobs makes the repository hold these jobs, all of them or none: it adds
// those whose id is not stored, and replaces the groups, expression, job and
// input of the others where they differ from what the row decodes to. A job that
// is paused stays paused, and the time of creation stays. A row that would not
// change is not written, and a schedule that does not change keeps its phase: a
// service may call this at each start with the jobs it wants to have. A row that
// does not decode is replaced. Jobs that are not named stay as they are.
//
// If runs are recorded, a job is refused (a JobError with ErrUndecodable) whose row
// does not decode and took the place of one that does, while a process runs that decodes every
// job: that one runs a newer program, and this one an older.
//
// Its error is that of AddJobs, except that an id may be stored, and an @at be past
// that its row has already. To replace
// anything it needs a repository that is an Upserter. As with AddJobs, Run is
// called on the values given here.
func (s *SmallBen) UpsertJobs(jobs []Job) error {
	return s.UpsertJobsContext(context.Background(), jobs)
}

// UpsertJobsContext is UpsertJobs, and ends with ctx.
func (s *SmallBen) UpsertJobsContext(ctx context.Context, jobs []Job) error {
	return s.perform(ctx, s.upsert(jobs))
}

func (s *SmallBen) upsert(jobs []Job) *change {
	if len(jobs) == 0 {
		return nil
	}
	c := &change{verb: "upsert", decodes: true}
	built, err := s.build(jobs, true)
	if err != nil {
		c.refused = err
		return c
	}
	c.built, c.ids = built, jobIDs(built)
	c.selects(ListJobsOptions{JobIDs: c.ids})
	var parts upsertParts
	c.decide = func(tx Repository) (decision, error) {
		rows, err := s.matching(tx, *c.look)
		if err != nil {
			return decision{}, err
		}
		if parts, err = c.upsertOf(built, rows); err != nil {
			return decision{}, err
		}
		if err := s.keepNewer(tx, c, &parts); err != nil {
			return decision{}, err
		}
		c.held = parts.held
		return parts.decision(), nil
	}
	c.project = func() { s.projectUpsert(c, &parts) }
	c.report = func(sink cron.Logger) {
		if len(parts.add)+len(parts.replace) > 0 {
			c.reportHeld(sink)
			sink.Info("jobs upserted", "added", len(parts.add), "replaced", len(parts.replace), "unchanged", len(parts.unchanged))
		}
	}
	return c
}

// reportHeld logs which of the replaced rows did not decode.
func (c *change) reportHeld(sink cron.Logger) {
	if len(c.held) > 0 {
		sink.Info("jobs replaced that did not decode", "count", len(c.held), "jobs", idText(c.held))
	}
}

// projectUpsert makes memory agree with the rows of an upsert.
func (s *SmallBen) projectUpsert(c *change, parts *upsertParts) {
	s.project(c, parts.add, parts.replace)
	// They still do not decode if it is a column that stays.
	s.reread(c.call, parts.undecodable)
	// The values given are run from here on, even those of rows that need no
	// change.
	if err := s.adopt(c.call, parts.unchanged); err != nil {
		s.reread(c.call, jobIDs(parts.unchanged))
	}
}

// decision is what they write.
func (p *upsertParts) decision() decision {
	if len(p.add)+len(p.replace) == 0 {
		return decision{}
	}
	effects := effectsOf(nil, jobIDs(p.add), ledgersql.Begins)
	effects = effectsOf(effects, jobIDs(p.replace), ledgersql.Touched)
	return decision{
		effects: effectsOf(effects, p.rescheduled, ledgersql.Rescheduled),
		number:  [][]JobWithSchedule{p.add, p.replace},
		write: func(tx Repository) error {
			if upserter, ok := tx.(Upserter); ok {
				return upserter.UpsertJobs(p.add, p.replace)
			}
			if len(p.replace) == 0 {
				return tx.AddJobs(p.add)
			}
			return fmt.Errorf("the repository %T cannot replace jobs: it is no Upserter", tx)
		},
	}
}

// upsertOf compares jobs that were built with the rows of those that are stored.
func (c *change) upsertOf(jobs []JobWithSchedule, rows []RawJob) (parts upsertParts, err error) {
	byID := make(map[int64]*RawJob, len(rows))
	for i := range rows {
		byID[rows[i].ID] = &rows[i]
	}
	var refused []error
	for i := range jobs {
		row, ok := byID[jobs[i].rawJob.ID]
		if past := jobs[i].past; past != nil && (!ok || row.CronExpression != jobs[i].rawJob.CronExpression) {
			refused = append(refused, past)
			continue
		}
		if !ok {
			parts.add = append(parts.add, jobs[i])
			continue
		}
		if row.defect != "" {
			parts.undecodable = append(parts.undecodable, row.ID)
		}
		differs, held, err := jobs[i].replace(row, c)
		if err != nil {
			return upsertParts{}, err
		}
		if !differs {
			parts.unchanged = append(parts.unchanged, jobs[i])
			continue
		}
		parts.replace = append(parts.replace, jobs[i])
		if held {
			parts.held = append(parts.held, row.ID)
		}
		if held || stored.RegisteredName(row.SerializedJob) != stored.RegisteredName(jobs[i].rawJob.SerializedJob) {
			parts.retyped = append(parts.retyped, row)
		}
		if row.CronExpression != jobs[i].rawJob.CronExpression {
			parts.rescheduled = append(parts.rescheduled, row.ID)
		}
	}
	return parts, join(refused)
}

// keepNewer refuses to replace rows of newer programs while those run: what does not
// decode here, and took the place of what does. It keeps what is replaced by another
// type. It does nothing if runs are not recorded.
func (s *SmallBen) keepNewer(tx Repository, c *change, parts *upsertParts) error {
	if s.record == nil || len(parts.retyped) == 0 {
		return nil
	}
	recordTx := tx.(formerJobs)
	former, decoding, err := recordTx.FormerJobs(parts.held, s.record.timing.DeadAfter)
	if err != nil {
		return err
	}
	keep := make(map[int64]string, len(parts.retyped))
	var refused, undecoded []error
	for _, row := range parts.retyped {
		keep[row.ID] = row.SerializedJob
		before, replaced := former[row.ID]
		if !replaced {
			continue
		}
		older, newer, known := c.decodesStored(before, row.SerializedJob)
		switch {
		case !known:
			undecoded = append(undecoded, errUndecoded)
		case !older || newer:
		case decoding:
			refused = append(refused, jobErrorf(row.ID, "%w: its row holds a %q, which a newer program stored in place of a %q", ErrUndecodable,
				stored.RegisteredName(row.SerializedJob), stored.RegisteredName(before)))
		default:
			keep[row.ID] = "" // the newer program is gone
		}
	}
	if err := cmp.Or(join(undecoded), join(refused)); err != nil {
		return err
	}
	return recordTx.SetFormerJobs(keep)
}

// replace makes a job that was built anew into the one to store in place of row,
// and reports whether they differ, and whether the row does not decode.
func (j *JobWithSchedule) replace(row *RawJob, c *change) (differs, held bool, err error) {
	j.changes = columnChanges{expression: true, input: true, job: true}
	j.rawJob.CronID = row.CronID
	j.rawJob.Paused = row.Paused
	j.rawJob.CreatedAt = row.CreatedAt.UTC()
	j.rawJob.UpdatedAt = row.UpdatedAt.UTC()
	if j.schedule, err = cronexpr.Parse(j.rawJob.CronExpression, j.rawJob.CreatedAt); err != nil {
		return false, false, invalid(j.rawJob.ID, err)
	}
	decoded, undecodable := c.decode([]RawJob{*row})
	if len(undecodable) > 0 {
		return true, true, nil
	}
	if j.rawJob.GroupID != row.GroupID || j.rawJob.SuperGroupID != row.SuperGroupID || j.rawJob.CronExpression != row.CronExpression {
		return true, false, nil
	}
	before := decoded[0]
	// gob writes maps in any order, and numbers types by the order in which a
	// process met them: where the bytes differ, only what they decode to tells.
	if row.SerializedJob != j.rawJob.SerializedJob {
		after, err := c.value(j.rawJob.SerializedJob)
		if err != nil {
			return false, false, invalid(j.rawJob.ID, err)
		}
		if !reflect.DeepEqual(before.job, after) {
			return true, false, nil
		}
	}
	if !stored.SameInput(row.SerializedJobInput, j.rawJob.SerializedJobInput) {
		return true, false, nil
	}
	j.rawJob = *row
	return false, false, nil
}

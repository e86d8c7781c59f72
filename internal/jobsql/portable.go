package jobsql

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/nbena/smallben/internal/sqltx"
)

// portable are the statements that GORM makes. A read takes several of them, so that it is
// not a snapshot, and an update that differs from row to row takes one for each row.
type portable struct{}

func (portable) chunks() (insert, change int) { return portableChunk, portableChunk }

func (portable) create(tx *sqltx.Tx) error {
	return tx.Model("jobs", nil).Migrator().CreateTable(&Row{})
}

func (portable) read(tx *sqltx.Tx, s Selection, give func(row *Row)) (err error) {
	var found []Row
	column, ids := "id", s.JobIDs
	switch {
	case s.JobIDs != nil:
	case s.GroupIDs != nil:
		column, ids = "group_id", s.GroupIDs
	default:
		column, ids = "super_group_id", s.SuperGroupIDs
	}
	read := func(tx *gorm.DB) error {
		if s.Limit > 0 {
			tx = tx.Where(is(!s.NoID, "id IS NOT NULL"))
		}
		if s.After != nil {
			tx = tx.Where("id > ?", *s.After)
		}
		if s.Limit > 0 && !s.NoID && ids == nil && s.Paused == nil {
			tx = tx.Limit(s.Limit)
		}
		rows, err := tx.Select(strings.Split(columns, ", ")).Order("id").Rows()
		if err != nil {
			return err
		}
		return scanRows(rows, false, func(row *Row) { found = append(found, *row) })
	}
	if ids == nil {
		err = read(tx.Model("jobs", &Row{}))
	}
	for chunk := range slices.Chunk(unique(ids), portableChunk) {
		if err = read(tx.Model("jobs", &Row{}).Where(column+" IN ?", chunk)); err != nil {
			break
		}
	}
	found = slices.DeleteFunc(found, func(row Row) bool {
		return s.Paused != nil && *s.Paused != row.Paused ||
			s.GroupIDs != nil && !slices.Contains(s.GroupIDs, row.GroupID) ||
			s.SuperGroupIDs != nil && !slices.Contains(s.SuperGroupIDs, row.SuperGroupID)
	})
	if s.Limit > 0 && !s.NoID && len(found) > s.Limit {
		slices.SortFunc(found, func(a, b Row) int { return cmp.Compare(a.ID, b.ID) })
		found = found[:s.Limit]
	}
	for i := range found {
		give(&found[i])
	}
	return err
}

func (portable) insert(tx *sqltx.Tx, rows []Row) error {
	return tx.Model("jobs", nil).Create(&rows).Error
}

func (portable) change(tx *sqltx.Tx, kind Kind, targets []Target, now time.Time, found map[int64]bool) error {
	// A write first: some databases refuse a transaction that reads, and then
	// writes what another has written in between.
	if err := tx.Model("jobs", &Row{}).Where("1 = 0").UpdateColumn("cron_id", 0).Error; err != nil {
		return err
	}
	ids := make([]int64, len(targets))
	for i, t := range targets {
		ids[i] = t.ID
	}
	var existing []int64
	if err := tx.Model("jobs", &Row{}).Where("id IN ?", ids).Pluck("id", &existing).Error; err != nil {
		return err
	}
	for _, id := range existing {
		found[id] = true
	}
	these := tx.Model("jobs", &Row{}).Where("id IN ?", existing)
	switch kind {
	case Delete:
		return these.Delete(&Row{}).Error
	case Pause:
		return these.UpdateColumns(map[string]any{"paused": true, "cron_id": 0, "updated_at": now}).Error
	}
	for _, t := range targets {
		if !found[t.ID] {
			continue
		}
		columns := map[string]any{"cron_id": t.CronID}
		if kind != SetCronID {
			columns["updated_at"] = now
		}
		if kind == Resume {
			columns["paused"] = false
		}
		if t.Expression != nil {
			columns["cron_expression"] = *t.Expression
		}
		if t.Input != nil {
			columns["serialized_job_input"] = *t.Input
		}
		if t.Row != nil {
			columns["group_id"], columns["super_group_id"], columns["serialized_job"] = t.Row.GroupID, t.Row.SuperGroupID, t.Row.SerializedJob
		}
		if err := tx.Model("jobs", &Row{}).Where("id = ?", t.ID).UpdateColumns(columns).Error; err != nil {
			return err
		}
	}
	return nil
}

package jobsql

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/nbena/smallben/internal/pgtest"
	"github.com/nbena/smallben/internal/sqltx"
)

func TestMain(m *testing.M) {
	defer pgtest.Stop()
	m.Run()
}

// each runs a test with an empty table on each kind of database.
func each(t *testing.T, test func(t *testing.T, table *Table)) {
	t.Helper()
	t.Parallel()
	for name, portable := range map[string]bool{"PostgreSQL": false, "SQLite": false, "portable": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dialector := func() gorm.Dialector { return sqlite.Open(filepath.Join(t.TempDir(), "jobs.db")) }
			if name == "PostgreSQL" {
				dialector = func() gorm.Dialector { return postgres.Open(pgtest.DSN(t)) }
			}
			db, err := sqltx.Open(t.Context(), "open", sqltx.Options{Dialector: dialector(), Tables: []sqltx.Table{Jobs}, Indexes: IndexNames(), Portable: portable})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, db.Close()) })
			table := New(db)
			require.NoError(t, table.Migrate(t.Context(), "open", true))
			require.NoError(t, table.Migrate(t.Context(), "open", false), "it is there already")
			test(t, table)
		})
	}
}

var noon = time.Date(2020, 11, 25, 12, 0, 0, 123456000, time.UTC)

func row(id int64) Row {
	return Row{ID: id, GroupID: id % 2, SuperGroupID: 7, CronExpression: "@daily", CreatedAt: noon, UpdatedAt: noon, SerializedJob: "job", SerializedJobInput: "null"}
}

func rowsOf(t *testing.T, table *Table, s Selection) []Row {
	t.Helper()
	rows, err := Read(t.Context(), table, s, func(row *Row) Row { return *row })
	require.NoError(t, err)
	return rows
}

func TestWhatIsStoredIsRead(t *testing.T) {
	each(t, func(t *testing.T, table *Table) {
		var all []Row
		for id := range int64(2*portableChunk + 1) {
			all = append(all, row(id+1))
		}
		_, err := table.Store(t.Context(), "add", all, nil, noon)
		require.NoError(t, err)
		assert.Equal(t, all, rowsOf(t, table, Selection{}))
		after := int64(3)
		assert.Equal(t, all[3:5], rowsOf(t, table, Selection{After: &after, Limit: 2}))
		assert.Empty(t, rowsOf(t, table, Selection{Limit: 2, NoID: true}))
		assert.Equal(t, []Row{all[1], all[3]}, rowsOf(t, table, Selection{Filter: Filter{JobIDs: []int64{4, 2, 3, 2}, GroupIDs: []int64{0}}}))
		assert.Empty(t, rowsOf(t, table, Selection{Filter: Filter{JobIDs: []int64{}}}))
		ids, err := table.IDs(t.Context(), Filter{SuperGroupIDs: []int64{7}, GroupIDs: []int64{1}, JobIDs: []int64{1, 2, 5}})
		require.NoError(t, err)
		assert.ElementsMatch(t, []int64{1, 5}, ids)

		_, err = table.Store(t.Context(), "add", []Row{row(1000), row(5)}, nil, noon)
		require.True(t, Refused(err), "%v", err)
		assert.Len(t, rowsOf(t, table, Selection{}), len(all), "all or nothing")
	})
}

func TestAChangeChangesWhatExistsAndReturnsTheRest(t *testing.T) {
	each(t, func(t *testing.T, table *Table) {
		_, err := table.Store(t.Context(), "add", []Row{row(1), row(2), row(3)}, nil, noon)
		require.NoError(t, err)
		expression := "@hourly"
		for _, change := range []struct {
			kind   Kind
			target Target
			check  func(row *Row) bool
		}{
			{Pause, Target{}, func(row *Row) bool { return row.Paused && row.CronID == 0 }},
			{Resume, Target{CronID: 5}, func(row *Row) bool { return !row.Paused && row.CronID == 5 }},
			{Update, Target{Expression: &expression}, func(row *Row) bool { return row.CronExpression == "@hourly" && row.SerializedJobInput == "null" }},
			{SetCronID, Target{CronID: 6}, func(row *Row) bool { return row.CronID == 6 && row.CronExpression == "@hourly" }},
		} {
			before := rowsOf(t, table, Selection{})
			var targets []Target
			for _, id := range []int64{9, 2, 1, 2} {
				target := change.target
				target.ID = id
				targets = append(targets, target)
			}
			missing, err := table.Change(t.Context(), "change", change.kind, targets)
			require.NoError(t, err)
			assert.Equal(t, []int64{9}, missing)
			after := rowsOf(t, table, Selection{})
			for i := range 2 {
				assert.True(t, change.check(&after[i]), "%+v", after[i])
				assert.Equal(t, change.kind != SetCronID, after[i].UpdatedAt.After(before[i].UpdatedAt))
			}
			assert.Equal(t, before[2], after[2])
		}
		other := row(3)
		other.GroupID, other.SerializedJob = 12, "another"
		missing, err := table.Store(t.Context(), "upsert", []Row{row(4)}, []Row{other, row(8)}, noon.Add(time.Hour))
		require.NoError(t, err)
		assert.Equal(t, []int64{8}, missing)
		other.UpdatedAt = noon.Add(time.Hour)
		assert.Equal(t, other, rowsOf(t, table, Selection{Filter: Filter{JobIDs: []int64{3}}})[0])
		missing, err = table.Change(t.Context(), "delete", Delete, []Target{{ID: 3}, {ID: 8}})
		require.NoError(t, err)
		assert.Equal(t, []int64{8}, missing)
		ids, err := table.IDs(t.Context(), Filter{})
		require.NoError(t, err)
		assert.Equal(t, []int64{1, 2, 4}, slices.Sorted(slices.Values(ids)))
	})
}

func TestARowThatCannotBeReadHasADefectAndHidesNoOther(t *testing.T) {
	t.Parallel()
	db, err := sqltx.Open(t.Context(), "open", sqltx.Options{Dialector: sqlite.Open(filepath.Join(t.TempDir(), "jobs.db")), Tables: []sqltx.Table{Jobs}, Indexes: IndexNames()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	table := New(db)
	require.NoError(t, table.Migrate(t.Context(), "open", true))
	_, err = table.Store(t.Context(), "add", []Row{row(1), row(2), row(3)}, nil, noon)
	require.NoError(t, err)
	require.NoError(t, db.Attempt(t.Context(), func(tx *sqltx.Tx) error {
		if err := tx.Exec("UPDATE {jobs} SET created_at = 'yesterday' WHERE id = 1"); err != nil {
			return err
		}
		return tx.Exec("UPDATE {jobs} SET paused = 'perhaps', group_id = 1.5 WHERE id = 3")
	}))
	rows := rowsOf(t, table, Selection{})
	require.Len(t, rows, 3)
	assert.Equal(t, `column created_at holds the text "yesterday"`, rows[0].Defect)
	assert.Equal(t, row(2), rows[1])
	assert.Equal(t, "column group_id holds 1.5", rows[2].Defect, "the first of two")
	assert.False(t, Nameless(rows[2].Defect))
}

func TestARowThatNoTableCanHoldIsRefused(t *testing.T) {
	t.Parallel()
	for why, set := range map[string]func(row *Row){
		"the id is 0":           func(row *Row) { row.ID = 0 },
		"a time in the year":    func(row *Row) { row.CreatedAt = noon.AddDate(9000, 0, 0) },
		"at most 256":           func(row *Row) { row.CronExpression = strings.Repeat("*", 257) },
		"or holds a NUL":        func(row *Row) { row.SerializedJobInput = "\"\x00\"" },
		"text that is not UTF-": func(row *Row) { row.SerializedJob = "\xff" },
	} {
		refused := row(1)
		set(&refused)
		assert.ErrorContains(t, refused.Check(), why)
	}
	fine := row(1)
	assert.NoError(t, fine.Check())
}

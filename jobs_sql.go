package smallben

import (
	"cmp"
	"database/sql"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/nbena/smallben/internal/sqltx"
)

const (
	insertChunk   = 1000    // rows of one INSERT: 10 binds each, of SQLite's 32,766
	changeChunk   = 10_000  // rows of one UPDATE or DELETE, which takes them as one parameter
	portableChunk = 200     // rows of one portable statement: SQL Server allows 2,100 binds
	chunkBytes    = 8 << 20 // text of one statement, about
	jobColumns    = "id, group_id, super_group_id, cron_id, cron_expression, paused, created_at, updated_at, serialized_job, serialized_job_input"
	// timeFormat is how the original wrote times to SQLite, and how mattn's
	// driver reads them first. PostgreSQL reads it as well.
	timeFormat = "2006-01-02 15:04:05.999999-07:00"
)

// jobStatements are what the table of jobs takes from a transaction.
type jobStatements interface {
	// create creates the table and its indexes.
	create(tx *sqltx.Tx) error
	// read returns the rows that match.
	read(tx *sqltx.Tx, options selected) ([]RawJob, error)
	// insert adds rows.
	insert(tx *sqltx.Tx, rows []RawJob) error
	// change changes the targets that exist, and returns the ids of the
	// others. Targets are in the order of their ids, and no two have the same.
	change(tx *sqltx.Tx, kind changeKind, targets []rowChange, now time.Time) (missing []int64, err error)
	// chunks are how many rows insert and change take at most.
	chunks() (insert, change int)
}

// bulkStatements take any number of rows in a few parameters. They are for
// PostgreSQL and SQLite.
type bulkStatements struct{}

func (bulkStatements) chunks() (insert, change int) { return insertChunk, changeChunk }

// jobTable creates the table of jobs.
const jobTable = `CREATE TABLE {jobs} (
	id bigint PRIMARY KEY,
	group_id bigint NOT NULL,
	super_group_id bigint NOT NULL,
	paused boolean NOT NULL DEFAULT false,
	cron_expression varchar(256) NOT NULL,
	cron_id bigint NOT NULL DEFAULT 0,
	serialized_job text NOT NULL,
	serialized_job_input text NOT NULL,
	created_at {timestamp} NOT NULL DEFAULT current_timestamp,
	updated_at {timestamp} NOT NULL DEFAULT current_timestamp
)`

// jobIndexes are the indexes of the table, and their columns. The names are the
// original's; where another table's index has one, ours gets a longer one.
var jobIndexes = [][2]string{{"paused_idx", "paused"}, {"group_idx", "group_id"}, {"super_group_idx", "super_group_id"}}

// jobIndexNames are the names that the indexes may have.
func jobIndexNames() (names []string) {
	for _, index := range jobIndexes {
		names = append(names, index[0], "jobs_"+index[0])
	}
	return names
}

func createJobIndex(name, column string) string {
	return "CREATE INDEX {" + name + "} ON {jobs} (" + column + ")"
}

// jobSchema are the statements that create the table and its indexes where no name
// is taken.
func jobSchema() []string {
	statements := []string{jobTable}
	for _, index := range jobIndexes {
		statements = append(statements, createJobIndex(index[0], index[1]))
	}
	return statements
}

func (bulkStatements) create(tx *sqltx.Tx) error {
	if err := tx.Exec(jobTable); err != nil {
		return err
	}
	for _, index := range jobIndexes {
		name, column := index[0], index[1]
		taken, err := tx.IndexNameTaken(name)
		if err != nil {
			return err
		}
		if taken {
			name = "jobs_" + name
		}
		if err := tx.Exec(createJobIndex(name, column)); err != nil {
			return err
		}
	}
	return nil
}

// read hides the declared types on SQLite, by which drivers convert what is stored:
// a timestamp that cannot be read would become the zero time.
func (bulkStatements) read(tx *sqltx.Tx, options selected) ([]RawJob, error) {
	strict := tx.Kind() == sqltx.SQLite
	columns := jobColumns
	if strict {
		columns = prefixed("+", jobColumns)
	}
	text, args := selection(tx.Kind(), options, "SELECT "+columns+" FROM {jobs}")
	if options.lock {
		text += " FOR UPDATE"
	}
	rows, err := tx.Query(text, args...)
	if err != nil {
		return nil, err
	}
	return scanRows(rows, strict)
}

const jobFields = "id bigint, group_id bigint, super_group_id bigint, cron_id bigint, cron_expression text, paused boolean, created_at timestamptz, updated_at timestamptz, serialized_job text, serialized_job_input text"

// insert takes binds on SQLite, which is faster there.
func (bulkStatements) insert(tx *sqltx.Tx, rows []RawJob) error {
	values := make([][]any, len(rows))
	for i := range rows {
		row := &rows[i]
		values[i] = []any{row.ID, row.GroupID, row.SuperGroupID, row.CronID, row.CronExpression, row.Paused,
			row.CreatedAt.Format(timeFormat), row.UpdatedAt.Format(timeFormat), row.SerializedJob, row.SerializedJobInput}
	}
	const into = "INSERT INTO {jobs} (" + jobColumns + ") "
	if tx.Kind() == sqltx.SQLite {
		const row = "(?,?,?,?,?,?,?,?,?,?)"
		return tx.Exec(into+"VALUES "+strings.Repeat(row+",", len(rows)-1)+row, slices.Concat(values...)...)
	}
	return tx.Exec(into+"SELECT * FROM {rows}", sqltx.Rows{Fields: jobFields, Values: values})
}

// bulkChanges are the statements of changes. $1 is the time where one is written,
// and v has the fields that bulkStatements.change gives it.
var bulkChanges = map[changeKind]string{
	deleting:      "DELETE FROM {jobs} WHERE id IN (SELECT v.job_id FROM {rows})",
	settingCronID: "UPDATE {jobs} AS j SET cron_id = v.cron_id FROM {rows} WHERE j.id = v.job_id",
	pausing:       "UPDATE {jobs} AS j SET updated_at = $1, paused = true, cron_id = v.cron_id FROM {rows} WHERE j.id = v.job_id",
	resuming:      "UPDATE {jobs} AS j SET updated_at = $1, paused = false, cron_id = v.cron_id FROM {rows} WHERE j.id = v.job_id",
	updating: `UPDATE {jobs} AS j SET updated_at = $1, cron_id = v.cron_id,
	cron_expression = coalesce(v.expression, j.cron_expression), serialized_job_input = coalesce(v.input, j.serialized_job_input)
FROM {rows} WHERE j.id = v.job_id`,
	replacing: `UPDATE {jobs} AS j SET updated_at = $1, cron_id = v.cron_id, cron_expression = v.expression, serialized_job_input = v.input,
	group_id = v.new_group, super_group_id = v.new_super_group, serialized_job = v.job
FROM {rows} WHERE j.id = v.job_id`,
}

func (bulkStatements) change(tx *sqltx.Tx, kind changeKind, targets []rowChange, now time.Time) (missing []int64, err error) {
	rows := sqltx.Rows{Fields: "job_id bigint, cron_id bigint", Values: make([][]any, len(targets))}
	switch kind {
	case updating:
		rows.Fields += ", expression text, input text"
	case replacing:
		rows.Fields += ", expression text, input text, new_group bigint, new_super_group bigint, job text"
	}
	for i, t := range targets {
		values := []any{t.id, t.cronID}
		if kind == updating || kind == replacing {
			values = append(values, t.expression, t.input)
		}
		if kind == replacing {
			values = append(values, t.row.GroupID, t.row.SuperGroupID, t.row.SerializedJob)
		}
		rows.Values[i] = values
	}
	args := []any{rows}
	if kind != deleting && kind != settingCronID {
		args = []any{now.Format(timeFormat), rows}
	}
	found := make(map[int64]bool, len(targets))
	err = tx.Each(bulkChanges[kind]+" RETURNING id", args, func(rows *sql.Rows) error {
		var id int64
		err := rows.Scan(&id)
		found[id] = true
		return err
	})
	for _, t := range targets {
		if !found[t.id] {
			missing = append(missing, t.id)
		}
	}
	return missing, err
}

// portableStatements leaves the statements to GORM. It reads in chunks, so that a
// read is not a snapshot, and updates that differ from row to row take one
// statement for each.
type portableStatements struct{}

func (portableStatements) chunks() (insert, change int) { return portableChunk, portableChunk }

func (portableStatements) create(tx *sqltx.Tx) error {
	return tx.Model("jobs", nil).Migrator().CreateTable(&RawJob{})
}

func (portableStatements) read(tx *sqltx.Tx, options selected) (found []RawJob, err error) {
	column, ids := "id", options.JobIDs
	switch {
	case options.JobIDs != nil:
	case options.GroupIDs != nil:
		column, ids = "group_id", options.GroupIDs
	default:
		column, ids = "super_group_id", options.SuperGroupIDs
	}
	read := func(tx *gorm.DB) error {
		if options.limit > 0 {
			tx = tx.Where(is(!options.noID, "id IS NOT NULL"))
		}
		if options.after != nil {
			tx = tx.Where("id > ?", *options.after)
		}
		if options.limit > 0 && !options.noID && ids == nil && options.Paused == nil {
			tx = tx.Limit(options.limit)
		}
		rows, err := tx.Select(strings.Split(jobColumns, ", ")).Order("id").Rows()
		if err != nil {
			return err
		}
		more, err := scanRows(rows, false)
		found = append(found, more...)
		return err
	}
	if ids == nil {
		err = read(tx.Model("jobs", &RawJob{}))
	}
	for chunk := range slices.Chunk(unique(ids), portableChunk) {
		if err = read(tx.Model("jobs", &RawJob{}).Where(column+" IN ?", chunk)); err != nil {
			break
		}
	}
	found = slices.DeleteFunc(found, func(row RawJob) bool {
		return options.Paused != nil && *options.Paused != row.Paused ||
			options.GroupIDs != nil && !slices.Contains(options.GroupIDs, row.GroupID) ||
			options.SuperGroupIDs != nil && !slices.Contains(options.SuperGroupIDs, row.SuperGroupID)
	})
	if options.limit > 0 && !options.noID && len(found) > options.limit {
		slices.SortFunc(found, func(a, b RawJob) int { return cmp.Compare(a.ID, b.ID) })
		found = found[:options.limit]
	}
	return found, err
}

func (portableStatements) insert(tx *sqltx.Tx, rows []RawJob) error {
	return tx.Model("jobs", nil).Create(&rows).Error
}

func (portableStatements) change(tx *sqltx.Tx, kind changeKind, targets []rowChange, now time.Time) (missing []int64, err error) {
	// A write first: some databases refuse a transaction that reads, and then
	// writes what another has written in between.
	if err := tx.Model("jobs", &RawJob{}).Where("1 = 0").UpdateColumn("cron_id", DefaultCronID).Error; err != nil {
		return nil, err
	}
	ids := make([]int64, len(targets))
	for i, t := range targets {
		ids[i] = t.id
	}
	var found []int64
	if err := tx.Model("jobs", &RawJob{}).Where("id IN ?", ids).Pluck("id", &found).Error; err != nil {
		return nil, err
	}
	exists := make(map[int64]bool, len(found))
	for _, id := range found {
		exists[id] = true
	}
	missing = slices.DeleteFunc(ids, func(id int64) bool { return exists[id] })

	these := tx.Model("jobs", &RawJob{}).Where("id IN ?", found)
	switch kind {
	case deleting:
		return missing, these.Delete(&RawJob{}).Error
	case pausing:
		return missing, these.UpdateColumns(map[string]any{"paused": true, "cron_id": DefaultCronID, "updated_at": now}).Error
	}
	for _, t := range targets {
		if !exists[t.id] {
			continue
		}
		columns := map[string]any{"cron_id": t.cronID}
		if kind != settingCronID {
			columns["updated_at"] = now
		}
		if kind == resuming {
			columns["paused"] = false
		}
		if t.expression != nil {
			columns["cron_expression"] = *t.expression
		}
		if t.input != nil {
			columns["serialized_job_input"] = *t.input
		}
		if t.row != nil {
			columns["group_id"], columns["super_group_id"], columns["serialized_job"] = t.row.GroupID, t.row.SuperGroupID, t.row.SerializedJob
		}
		if err := tx.Model("jobs", &RawJob{}).Where("id = ?", t.id).UpdateColumns(columns).Error; err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// selection builds a query from its beginning.
func selection(kind sqltx.Kind, options selected, text string) (string, []any) {
	isPaused := "paused IS TRUE"
	if kind == sqltx.SQLite {
		isPaused = "typeof(paused) = 'integer' AND paused <> 0"
	}
	var where []string
	var args []any
	for _, filter := range []struct {
		column string
		ids    []int64
	}{{"id", options.JobIDs}, {"group_id", options.GroupIDs}, {"super_group_id", options.SuperGroupIDs}} {
		if filter.ids != nil {
			args = append(args, sqltx.IDs(unique(filter.ids)))
			column := filter.column
			if kind == sqltx.SQLite && len(where) > 0 {
				column = "+" + column // without statistics it may take the index of the larger set
			}
			where = append(where, kind.Among(column, len(args)))
		}
	}
	if options.Paused != nil {
		where = append(where, is(*options.Paused, isPaused))
	}
	if options.limit > 0 {
		where = append(where, is(!options.noID, hasID(kind)))
	}
	if options.after != nil {
		args = append(args, *options.after)
		where = append(where, fmt.Sprintf("id > $%d", len(args)))
	}
	if len(where) > 0 {
		text += " WHERE " + strings.Join(where, " AND ")
	}
	text += " ORDER BY id"
	if options.limit > 0 && !options.noID {
		text += " LIMIT " + strconv.Itoa(options.limit)
	}
	return text, args
}

// hasID is the condition that the id of a row can be read.
func hasID(kind sqltx.Kind) string {
	if kind == sqltx.SQLite {
		return "typeof(id) = 'integer'"
	}
	return "id IS NOT NULL"
}

func is(wanted bool, condition string) string {
	if wanted {
		return "(" + condition + ")"
	}
	return "NOT (" + condition + ")"
}

func unique(ids []int64) []int64 {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	return slices.Compact(ids)
}

// scanRows reads rows in the order of jobColumns, and closes them. A value that
// cannot be read is noted as the row's defect, and its field left zero. Strict
// takes only the integers that SQLite compares as integers.
func scanRows(rows *sql.Rows, strict bool) ([]RawJob, error) {
	defer rows.Close()
	found := []RawJob{}
	var values rowValues
	for rows.Next() {
		if err := rows.Scan(values.dest()...); err != nil {
			return nil, err
		}
		found = append(found, values.row(strict))
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return found, rows.Close()
}

// rowValues are the columns of a row as the driver gives them.
type rowValues [10]any

func (v *rowValues) dest() []any {
	dest := make([]any, len(v))
	for i := range v {
		dest[i] = &v[i]
	}
	return dest
}

func (v *rowValues) row(strict bool) (row RawJob) {
	s := rowScanner{row: &row, strict: strict}
	row.ID = s.integer("id", v[0])
	row.GroupID = s.integer("group_id", v[1])
	row.SuperGroupID = s.integer("super_group_id", v[2])
	row.CronID = s.integer("cron_id", v[3])
	row.CronExpression = s.text("cron_expression", v[4])
	row.Paused = s.boolean("paused", v[5])
	row.CreatedAt = s.time("created_at", v[6])
	row.UpdatedAt = s.time("updated_at", v[7])
	row.SerializedJob = s.text("serialized_job", v[8])
	row.SerializedJobInput = s.text("serialized_job_input", v[9])
	return row
}

type rowScanner struct {
	row    *RawJob
	strict bool
}

// defect notes the first value that cannot be read.
func (s *rowScanner) defect(column string, v any) {
	if s.row.defect != "" {
		return
	}
	switch v := v.(type) {
	case nil:
		s.row.defect = fmt.Sprintf("column %s is NULL", column)
	case string:
		s.row.defect = fmt.Sprintf("column %s holds the text %.40q", column, v)
	case []byte:
		s.row.defect = fmt.Sprintf("column %s holds the bytes %.40q", column, v)
	default:
		s.row.defect = fmt.Sprintf("column %s holds %v", column, v)
	}
}

func (s *rowScanner) integer(column string, v any) int64 {
	switch v := v.(type) {
	case int64:
		return v
	case string, []byte:
		if n, err := strconv.ParseInt(text(v), 10, 64); err == nil && !s.strict {
			return n
		}
	}
	s.defect(column, v)
	return 0
}

func (s *rowScanner) boolean(column string, v any) bool {
	switch v := v.(type) {
	case bool:
		return v
	case int64:
		return v != 0
	case string, []byte:
		if b, err := strconv.ParseBool(text(v)); err == nil && !s.strict {
			return b
		}
	}
	s.defect(column, v)
	return false
}

func (s *rowScanner) text(column string, v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	}
	s.defect(column, v)
	return ""
}

func (s *rowScanner) time(column string, v any) time.Time {
	switch v := v.(type) {
	case time.Time:
		return v.UTC().Truncate(time.Microsecond)
	case string, []byte:
		if t, ok := parseTime(text(v)); ok {
			return t
		}
	case int64:
		// As mattn's driver reads it: seconds, or milliseconds if large.
		if v > 1e12 || v < -1e12 {
			return time.UnixMilli(v).UTC()
		}
		return time.Unix(v, 0).UTC()
	}
	s.defect(column, v)
	return time.Time{}
}

func text(v any) string {
	if b, ok := v.([]byte); ok {
		return string(b)
	}
	return v.(string)
}

// timeFormats are those that mattn's driver reads, and that of time.Time.String,
// which others write.
var timeFormats = []string{
	timeFormat,
	"2006-01-02T15:04:05.999999999-07:00",
	"2006-01-02 15:04:05.999999999",
	"2006-01-02T15:04:05.999999999",
	"2006-01-02 15:04",
	"2006-01-02T15:04",
	"2006-01-02",
	"2006-01-02 15:04:05.999999999 -0700 MST",
}

func parseTime(text string) (time.Time, bool) {
	text = strings.TrimSuffix(text, "Z")
	for _, format := range timeFormats {
		if t, err := time.Parse(format, text); err == nil {
			return t.UTC().Truncate(time.Microsecond), true
		}
	}
	return time.Time{}, false
}

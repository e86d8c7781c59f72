package smallben

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gorm.io/gorm"
)

// dialect is what differs between databases.
type dialect interface {
	// exists reports whether there is a table.
	exists(tx *gorm.DB, table string) (bool, error)
	// create creates the table and its indexes.
	create(tx *gorm.DB) error
	// read returns the rows that match.
	read(tx *gorm.DB, options selected) ([]RawJob, error)
	// insert adds rows. The note is for fate.
	insert(tx *gorm.DB, rows []RawJob) (note string, err error)
	// change changes the targets that exist, and returns the ids of the
	// others. Targets are in the order of their ids, and no two have the same.
	change(tx *gorm.DB, kind changeKind, targets []rowChange, now time.Time) (missing []int64, note string, err error)
	// fate tells what became of a COMMIT that failed, or an error if the
	// database does not answer.
	fate(ctx context.Context, r *RepositoryGorm, note string, took func(context.Context) (bool, error)) (fate, error)
}

// statement prepares a statement in the database's own placeholders.
func statement(tx *gorm.DB, text string, args []any) *gorm.DB {
	tx = tx.Table("jobs")
	tx.Statement.SQL.WriteString(text)
	tx.Statement.Vars = args
	return tx
}

func query(tx *gorm.DB, text string, args ...any) (*sql.Rows, error) {
	return statement(tx, text, args).Rows()
}

func exec(tx *gorm.DB, text string, args ...any) error {
	tx = statement(tx, text, args)
	return tx.Callback().Raw().Execute(tx).Error
}

// queryRow scans the only row of a query.
func queryRow(tx *gorm.DB, text string, args []any, dest ...any) error {
	rows, err := query(tx, text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	if !rows.Next() {
		return errors.Join(rows.Err(), sql.ErrNoRows)
	}
	if err := rows.Scan(dest...); err != nil {
		return err
	}
	return rows.Close()
}

// createTable creates the table with the type of times, and its indexes. Their
// names are the original's; where another table's index has one, ours gets a
// longer one.
func createTable(tx *gorm.DB, timeType, nameTaken string) error {
	if err := exec(tx, `CREATE TABLE jobs (
	id bigint PRIMARY KEY,
	group_id bigint NOT NULL,
	super_group_id bigint NOT NULL,
	paused boolean NOT NULL DEFAULT false,
	cron_expression varchar(256) NOT NULL,
	cron_id bigint NOT NULL DEFAULT 0,
	serialized_job text NOT NULL,
	serialized_job_input text NOT NULL,
	created_at `+timeType+` NOT NULL DEFAULT current_timestamp,
	updated_at `+timeType+` NOT NULL DEFAULT current_timestamp
)`); err != nil {
		return err
	}
	for _, index := range [][2]string{{"paused_idx", "paused"}, {"group_idx", "group_id"}, {"super_group_idx", "super_group_id"}} {
		name, column := index[0], index[1]
		var taken bool
		if err := queryRow(tx, nameTaken, []any{name}, &taken); err != nil {
			return err
		}
		if taken {
			name = "jobs_" + name
		}
		if err := exec(tx, "CREATE INDEX "+name+" ON jobs ("+column+")"); err != nil {
			return err
		}
	}
	return nil
}

// postgresDialect takes any number of rows as one array for each column.
type postgresDialect struct{}

func (postgresDialect) exists(tx *gorm.DB, table string) (exists bool, err error) {
	err = queryRow(tx, "SELECT to_regclass($1) IS NOT NULL", []any{table}, &exists)
	return exists, err
}

func (postgresDialect) create(tx *gorm.DB) error {
	return createTable(tx, "timestamp with time zone",
		"SELECT EXISTS (SELECT 1 FROM pg_class WHERE relname = $1::text AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'jobs'::regclass))")
}

func (postgresDialect) read(tx *gorm.DB, options selected) ([]RawJob, error) {
	text, args := selection(options, "SELECT "+jobColumns+" FROM jobs", postgresConditions)
	if options.lock {
		text += " FOR UPDATE"
	}
	rows, err := query(tx, text, args...)
	if err != nil {
		return nil, err
	}
	return scanRows(rows, false)
}

var postgresConditions = conditions{
	hasID: "id IS NOT NULL", after: "id > $%d", isPaused: "paused IS TRUE",
	among: "%s = ANY($%d::bigint[])", list: func(ids []int64) string { return pgArray(ids, appendInt) },
}

func (postgresDialect) insert(tx *gorm.DB, rows []RawJob) (xid string, err error) {
	args := []any{
		pgArray(rows, func(b []byte, row RawJob) []byte { return appendInt(b, row.ID) }),
		pgArray(rows, func(b []byte, row RawJob) []byte { return appendInt(b, row.GroupID) }),
		pgArray(rows, func(b []byte, row RawJob) []byte { return appendInt(b, row.SuperGroupID) }),
		pgArray(rows, func(b []byte, row RawJob) []byte { return appendInt(b, row.CronID) }),
		pgArray(rows, func(b []byte, row RawJob) []byte { return appendQuoted(b, row.CronExpression) }),
		pgArray(rows, func(b []byte, row RawJob) []byte { return strconv.AppendBool(b, row.Paused) }),
		pgArray(rows, func(b []byte, row RawJob) []byte { return appendQuoted(b, row.CreatedAt.Format(timeFormat)) }),
		pgArray(rows, func(b []byte, row RawJob) []byte { return appendQuoted(b, row.UpdatedAt.Format(timeFormat)) }),
		pgArray(rows, func(b []byte, row RawJob) []byte { return appendQuoted(b, row.SerializedJob) }),
		pgArray(rows, func(b []byte, row RawJob) []byte { return appendQuoted(b, row.SerializedJobInput) }),
	}
	err = queryRow(tx, "WITH added AS (INSERT INTO jobs ("+jobColumns+`)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::boolean[], $7::timestamptz[], $8::timestamptz[], $9::text[], $10::text[]))
SELECT pg_current_xact_id()::text`, args, &xid)
	return xid, err
}

// postgresChanges are the statements of changes. $1 are ids, $2 cron ids, $3 the
// time, $4 expressions, $5 inputs, $6 groups, $7 super-groups, $8 jobs.
var postgresChanges = map[changeKind]struct {
	text string
	args int
}{
	deleting:      {"DELETE FROM jobs WHERE id = ANY($1::bigint[])", 1},
	settingCronID: {"UPDATE jobs SET cron_id = v.cron_id FROM unnest($1::bigint[], $2::bigint[]) AS v(id, cron_id) WHERE jobs.id = v.id", 2},
	pausing:       {"UPDATE jobs SET paused = true, cron_id = v.cron_id, updated_at = $3::timestamptz FROM unnest($1::bigint[], $2::bigint[]) AS v(id, cron_id) WHERE jobs.id = v.id", 3},
	resuming:      {"UPDATE jobs SET paused = false, cron_id = v.cron_id, updated_at = $3::timestamptz FROM unnest($1::bigint[], $2::bigint[]) AS v(id, cron_id) WHERE jobs.id = v.id", 3},
	updating: {`UPDATE jobs SET cron_id = v.cron_id, updated_at = $3::timestamptz,
	cron_expression = coalesce(v.expression, jobs.cron_expression), serialized_job_input = coalesce(v.input, jobs.serialized_job_input)
FROM unnest($1::bigint[], $2::bigint[], $4::text[], $5::text[]) AS v(id, cron_id, expression, input) WHERE jobs.id = v.id`, 5},
	replacing: {`UPDATE jobs SET cron_id = v.cron_id, updated_at = $3::timestamptz, cron_expression = v.expression, serialized_job_input = v.input,
	group_id = v.group_id, super_group_id = v.super_group_id, serialized_job = v.job
FROM unnest($1::bigint[], $2::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::text[])
	AS v(id, cron_id, expression, input, group_id, super_group_id, job) WHERE jobs.id = v.id`, 8},
}

func (postgresDialect) change(tx *gorm.DB, kind changeKind, targets []rowChange, now time.Time) (missing []int64, xid string, err error) {
	change := postgresChanges[kind]
	args := []any{
		pgArray(targets, func(b []byte, t rowChange) []byte { return appendInt(b, t.id) }),
		pgArray(targets, func(b []byte, t rowChange) []byte { return appendInt(b, t.cronID) }),
		now.Format(timeFormat),
		pgArray(targets, func(b []byte, t rowChange) []byte { return appendNullable(b, t.expression) }),
		pgArray(targets, func(b []byte, t rowChange) []byte { return appendNullable(b, t.input) }),
	}
	if kind == replacing {
		args = append(args,
			pgArray(targets, func(b []byte, t rowChange) []byte { return appendInt(b, t.row.GroupID) }),
			pgArray(targets, func(b []byte, t rowChange) []byte { return appendInt(b, t.row.SuperGroupID) }),
			pgArray(targets, func(b []byte, t rowChange) []byte { return appendQuoted(b, t.row.SerializedJob) }))
	}
	var list string
	err = queryRow(tx, "WITH changed AS ("+change.text+` RETURNING jobs.id)
SELECT pg_current_xact_id()::text, array(SELECT unnest($1::bigint[]) EXCEPT SELECT id FROM changed)::text`, args[:change.args], &xid, &list)
	if err != nil {
		return nil, "", err
	}
	for id := range strings.FieldsFuncSeq(list, func(c rune) bool { return strings.ContainsRune("{,}", c) }) {
		n, err := strconv.ParseInt(id, 10, 64)
		if err != nil {
			return nil, "", err
		}
		missing = append(missing, n)
	}
	return missing, xid, nil
}

// fate goes by the transaction's id. After a crash the server may give an id
// away again, so the rows have the last word on a COMMIT that happened.
func (postgresDialect) fate(ctx context.Context, r *RepositoryGorm, xid string, took func(context.Context) (bool, error)) (fate, error) {
	status := "committed" // no id: took alone decides
	if xid != "" {
		var answer sql.NullString
		err := r.attempt(ctx, func(tx *gorm.DB) error {
			return queryRow(tx,
				"SELECT CASE WHEN $1::xid8 < pg_current_xact_id() THEN pg_xact_status($1::xid8) ELSE 'aborted' END", []any{xid}, &answer)
		})
		if err != nil {
			return pending, err
		}
		status = answer.String
	}
	switch status {
	case "in progress":
		return pending, nil
	case "aborted":
		return aborted, nil
	case "committed":
		if ok, err := took(ctx); err != nil || ok {
			return committed, err
		}
	}
	return obscure, nil
}

// pgArray writes the text of an array.
func pgArray[T any](values []T, appendValue func([]byte, T) []byte) string {
	b := []byte{'{'}
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendValue(b, v)
		if i == 0 {
			b = slices.Grow(b, len(b)*len(values))
		}
	}
	return string(append(b, '}'))
}

func appendInt(b []byte, v int64) []byte { return strconv.AppendInt(b, v, 10) }

// appendQuoted writes text as an array takes it.
func appendQuoted(b []byte, text string) []byte {
	b = append(b, '"')
	for i := range len(text) {
		if c := text[i]; c == '"' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, text[i])
	}
	return append(b, '"')
}

func appendNullable(b []byte, text *string) []byte {
	if text == nil {
		return append(b, "NULL"...)
	}
	return appendQuoted(b, *text)
}

// sqliteDialect takes any number of rows as one JSON parameter, but inserts them
// through binds, which is faster.
type sqliteDialect struct{}

func (sqliteDialect) exists(tx *gorm.DB, table string) (exists bool, err error) {
	err = queryRow(tx, "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type IN ('table', 'view') AND name = ? COLLATE NOCASE)", []any{table}, &exists)
	return exists, err
}

func (sqliteDialect) create(tx *gorm.DB) error {
	return createTable(tx, "datetime", "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = ? COLLATE NOCASE)")
}

// read hides the declared types, by which drivers convert what is stored: a
// timestamp that cannot be read would become the zero time.
func (sqliteDialect) read(tx *gorm.DB, options selected) ([]RawJob, error) {
	text, args := selection(options,
		"SELECT +id, +group_id, +super_group_id, +cron_id, +cron_expression, +paused, +created_at, +updated_at, +serialized_job, +serialized_job_input FROM jobs",
		sqliteConditions)
	rows, err := query(tx, text, args...)
	if err != nil {
		return nil, err
	}
	return scanRows(rows, true)
}

var sqliteConditions = conditions{
	hasID: "typeof(id) = 'integer'", after: "id > ?%d", isPaused: "typeof(paused) = 'integer' AND paused <> 0",
	among: "%s IN (SELECT value FROM json_each(?%d))", list: jsonIDs,
}

func (sqliteDialect) insert(tx *gorm.DB, rows []RawJob) (string, error) {
	const row = "(?,?,?,?,?,?,?,?,?,?)"
	args := make([]any, 0, 10*len(rows))
	for i := range rows {
		row := &rows[i]
		args = append(args, row.ID, row.GroupID, row.SuperGroupID, row.CronID, row.CronExpression, row.Paused,
			row.CreatedAt.Format(timeFormat), row.UpdatedAt.Format(timeFormat), row.SerializedJob, row.SerializedJobInput)
	}
	return "", exec(tx, "INSERT INTO jobs ("+jobColumns+") VALUES "+strings.Repeat(row+",", len(rows)-1)+row, args...)
}

// sqliteChanges are the statements of changes. ?1 is the array of rows, each an
// array of id, cron id, expression and input, and for a replacement groups,
// super-group and job; ?2 is the time.
var sqliteChanges = map[changeKind]struct {
	text string
	args int
}{
	deleting:      {"DELETE FROM jobs WHERE id IN (SELECT value ->> 0 FROM json_each(?1))", 1},
	settingCronID: {"UPDATE jobs SET cron_id = v.cron_id" + sqliteSource, 1},
	pausing:       {"UPDATE jobs SET paused = true, cron_id = v.cron_id, updated_at = ?2" + sqliteSource, 2},
	resuming:      {"UPDATE jobs SET paused = false, cron_id = v.cron_id, updated_at = ?2" + sqliteSource, 2},
	updating: {`UPDATE jobs SET cron_id = v.cron_id, updated_at = ?2,
	cron_expression = coalesce(v.expression, jobs.cron_expression), serialized_job_input = coalesce(v.input, jobs.serialized_job_input)` + sqliteSource, 2},
	replacing: {`UPDATE jobs SET cron_id = v.cron_id, updated_at = ?2, cron_expression = v.expression, serialized_job_input = v.input,
	group_id = v.group_id, super_group_id = v.super_group_id, serialized_job = v.job` + sqliteSource, 2},
}

const sqliteSource = ` FROM (SELECT value ->> 0 AS id, value ->> 1 AS cron_id, value ->> 2 AS expression, value ->> 3 AS input,
	value ->> 4 AS group_id, value ->> 5 AS super_group_id, value ->> 6 AS job FROM json_each(?1)) AS v
WHERE jobs.id = v.id`

func (sqliteDialect) change(tx *gorm.DB, kind changeKind, targets []rowChange, now time.Time) (missing []int64, note string, err error) {
	change := sqliteChanges[kind]
	sources := make([][]any, len(targets))
	for i, t := range targets {
		sources[i] = []any{t.id, t.cronID, t.expression, t.input}
		if kind == replacing {
			sources[i] = append(sources[i], t.row.GroupID, t.row.SuperGroupID, t.row.SerializedJob)
		}
	}
	source, err := json.Marshal(sources)
	if err != nil {
		return nil, "", err
	}
	args := []any{string(source), now.Format(timeFormat)}
	rows, err := query(tx, change.text+" RETURNING id", args[:change.args]...)
	if err != nil {
		return nil, "", err
	}
	defer rows.Close()
	found := make(map[int64]bool, len(targets))
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, "", err
		}
		found[id] = true
	}
	for _, t := range targets {
		if !found[t.id] {
			missing = append(missing, t.id)
		}
	}
	return missing, "", errors.Join(rows.Err(), rows.Close())
}

// fate looks at the rows. SQLite rolls a COMMIT back that fails.
func (sqliteDialect) fate(ctx context.Context, _ *RepositoryGorm, _ string, took func(context.Context) (bool, error)) (fate, error) {
	if ok, err := took(ctx); err != nil || ok {
		return committed, err
	}
	return aborted, nil
}

func jsonIDs(ids []int64) string {
	list := pgArray(ids, appendInt)
	return "[" + list[1:len(list)-1] + "]"
}

// portableDialect leaves the statements to GORM. It reads in chunks, so that a
// read is not a snapshot, and updates that differ from row to row take one
// statement for each.
type portableDialect struct{}

func (portableDialect) exists(tx *gorm.DB, table string) (bool, error) {
	return tx.Migrator().HasTable(table), nil
}

func (portableDialect) create(tx *gorm.DB) error { return tx.Migrator().CreateTable(&RawJob{}) }

func (portableDialect) read(tx *gorm.DB, options selected) (found []RawJob, err error) {
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
		rows, err := tx.Model(&RawJob{}).Select(strings.Split(jobColumns, ", ")).Order("id").Rows()
		if err != nil {
			return err
		}
		more, err := scanRows(rows, false)
		found = append(found, more...)
		return err
	}
	if ids == nil {
		err = read(tx)
	}
	for chunk := range slices.Chunk(unique(ids), portableChunk) {
		if err = read(tx.Where(column+" IN ?", chunk)); err != nil {
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

func (portableDialect) insert(tx *gorm.DB, rows []RawJob) (string, error) {
	return "", tx.Create(&rows).Error
}

func (portableDialect) change(tx *gorm.DB, kind changeKind, targets []rowChange, now time.Time) (missing []int64, note string, err error) {
	// A write first: some databases refuse a transaction that reads, and then
	// writes what another has written in between.
	if err := tx.Exec("UPDATE jobs SET cron_id = cron_id WHERE 1 = 0").Error; err != nil {
		return nil, "", err
	}
	ids := make([]int64, len(targets))
	for i, t := range targets {
		ids[i] = t.id
	}
	var found []int64
	if err := tx.Model(&RawJob{}).Where("id IN ?", ids).Pluck("id", &found).Error; err != nil {
		return nil, "", err
	}
	exists := make(map[int64]bool, len(found))
	for _, id := range found {
		exists[id] = true
	}
	missing = slices.DeleteFunc(ids, func(id int64) bool { return exists[id] })

	these := tx.Model(&RawJob{}).Where("id IN ?", found)
	switch kind {
	case deleting:
		return missing, "", these.Delete(&RawJob{}).Error
	case pausing:
		return missing, "", these.UpdateColumns(map[string]any{"paused": true, "cron_id": DefaultCronID, "updated_at": now}).Error
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
		if err := tx.Model(&RawJob{}).Where("id = ?", t.id).UpdateColumns(columns).Error; err != nil {
			return nil, "", err
		}
	}
	return missing, "", nil
}

// fate believes only a look at the rows that confirms the COMMIT: it may yet
// happen.
func (portableDialect) fate(ctx context.Context, _ *RepositoryGorm, _ string, took func(context.Context) (bool, error)) (fate, error) {
	if ok, err := took(ctx); err != nil || ok {
		return committed, err
	}
	return obscure, nil
}

// conditions are those of a query. after and among take the number of a
// parameter, among a column before it.
type conditions struct {
	hasID, after, isPaused, among string
	list                          func(ids []int64) string // makes the parameter of among
}

// selection builds a query from its beginning.
func selection(options selected, text string, c conditions) (string, []any) {
	var where []string
	var args []any
	for _, filter := range []struct {
		column string
		ids    []int64
	}{{"id", options.JobIDs}, {"group_id", options.GroupIDs}, {"super_group_id", options.SuperGroupIDs}} {
		if filter.ids != nil {
			args = append(args, c.list(unique(filter.ids)))
			where = append(where, fmt.Sprintf(c.among, filter.column, len(args)))
		}
	}
	if options.Paused != nil {
		where = append(where, is(*options.Paused, c.isPaused))
	}
	if options.limit > 0 {
		where = append(where, is(!options.noID, c.hasID))
	}
	if options.after != nil {
		args = append(args, *options.after)
		where = append(where, fmt.Sprintf(c.after, len(args)))
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

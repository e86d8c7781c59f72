package jobsql

import (
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Row is a row of the table.
type Row struct {
	ID                 int64     `gorm:"column:id;primaryKey;autoIncrement:false"`
	GroupID            int64     `gorm:"column:group_id;not null;index:group_idx"`
	SuperGroupID       int64     `gorm:"column:super_group_id;not null;index:super_group_idx"`
	CronID             int64     `gorm:"column:cron_id;not null;default:0"`
	CronExpression     string    `gorm:"column:cron_expression;type:varchar(256);not null"`
	Paused             bool      `gorm:"column:paused;not null;default:false;index:paused_idx"`
	CreatedAt          time.Time `gorm:"column:created_at;precision:6;not null"`
	UpdatedAt          time.Time `gorm:"column:updated_at;precision:6;not null"`
	SerializedJob      string    `gorm:"column:serialized_job;not null"`
	SerializedJobInput string    `gorm:"column:serialized_job_input;not null"`

	// Defect says why a column could not be read, if so.
	Defect string `gorm:"-"`
}

// TableName tells GORM the name of the table.
func (*Row) TableName() string { return "jobs" }

// Nameless reports whether a defect is that the id could not be read.
func Nameless(defect string) bool { return strings.HasPrefix(defect, "column id ") }

// Check says why no table can hold the row, or nil.
func (r *Row) Check() error {
	if r.ID == 0 {
		return errors.New("the id is 0")
	}
	for _, t := range []time.Time{r.CreatedAt, r.UpdatedAt} {
		if year := t.UTC().Year(); year < 1 || year > 9999 {
			return fmt.Errorf("a time in the year %d", year)
		}
	}
	return r.CheckText()
}

// CheckText is Check for what an update writes.
func (r *Row) CheckText() error {
	if len(r.CronExpression) > maxExpression {
		return fmt.Errorf("expression of %d bytes: at most %d are allowed", len(r.CronExpression), maxExpression)
	}
	for _, text := range []string{r.CronExpression, r.SerializedJob, r.SerializedJobInput} {
		if !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
			return errors.New("text that is not UTF-8, or holds a NUL")
		}
	}
	return nil
}

// scanRows calls give for each row of a query of columns, and closes rows. The row that
// give is given is valid until it returns. A value that cannot be read is noted as the row's
// defect, and its field left zero. Strict takes only the integers that SQLite compares as
// integers.
func scanRows(rows *sql.Rows, strict bool, give func(row *Row)) error {
	defer rows.Close()
	var values rowValues
	var row Row // of each in turn
	dest := values.dest()
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		row = values.row(strict)
		give(&row)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return rows.Close()
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

func (v *rowValues) row(strict bool) (row Row) {
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
	row    *Row
	strict bool
}

// defect notes the first value that cannot be read.
func (s *rowScanner) defect(column string, v any) {
	if s.row.Defect != "" {
		return
	}
	switch v := v.(type) {
	case nil:
		s.row.Defect = fmt.Sprintf("column %s is NULL", column)
	case string:
		s.row.Defect = fmt.Sprintf("column %s holds the text %.40q", column, v)
	case []byte:
		s.row.Defect = fmt.Sprintf("column %s holds the bytes %.40q", column, v)
	default:
		s.row.Defect = fmt.Sprintf("column %s holds %v", column, v)
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

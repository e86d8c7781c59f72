package jobsql

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nbena/smallben/internal/sqltx"
)

// Filter selects rows: those that match every filter that is not nil.
type Filter struct {
	Paused        *bool
	GroupIDs      []int64
	SuperGroupIDs []int64
	JobIDs        []int64
}

// empty reports whether a filter is a set without elements.
func (f *Filter) empty() bool {
	for _, ids := range [][]int64{f.JobIDs, f.GroupIDs, f.SuperGroupIDs} {
		if ids != nil && len(ids) == 0 {
			return true
		}
	}
	return false
}

// onlyJobIDs reports whether the ids of jobs are the only filter.
func (f *Filter) onlyJobIDs() bool {
	return f.JobIDs != nil && f.GroupIDs == nil && f.SuperGroupIDs == nil && f.Paused == nil
}

// Selection is which rows to read.
type Selection struct {
	Filter
	Limit int    // of rows; 0: none, and After and NoID are not set
	After *int64 // only rows with a greater id; nil: from the first
	NoID  bool   // only the rows whose id cannot be read, in place of the others
	lock  bool   // lock the rows until the transaction ends
}

// query builds a query from its beginning.
func (s *Selection) query(kind sqltx.Kind, text string) (string, []any) {
	isPaused := "paused IS TRUE"
	if kind == sqltx.SQLite {
		isPaused = "typeof(paused) = 'integer' AND paused <> 0"
	}
	var where []string
	var args []any
	for _, filter := range []struct {
		column string
		ids    []int64
	}{{"id", s.JobIDs}, {"group_id", s.GroupIDs}, {"super_group_id", s.SuperGroupIDs}} {
		if filter.ids != nil {
			args = append(args, sqltx.IDs(unique(filter.ids)))
			column := filter.column
			if kind == sqltx.SQLite && len(where) > 0 {
				column = "+" + column // without statistics it may take the index of the larger set
			}
			where = append(where, kind.Among(column, len(args)))
		}
	}
	if s.Paused != nil {
		where = append(where, is(*s.Paused, isPaused))
	}
	if s.Limit > 0 {
		where = append(where, is(!s.NoID, hasID(kind)))
	}
	if s.After != nil {
		args = append(args, *s.After)
		where = append(where, fmt.Sprintf("id > $%d", len(args)))
	}
	if len(where) > 0 {
		text += " WHERE " + strings.Join(where, " AND ")
	}
	text += " ORDER BY id"
	if s.Limit > 0 && !s.NoID {
		text += " LIMIT " + strconv.Itoa(s.Limit)
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

// prefixed puts a prefix before each column of a list.
func prefixed(prefix, columns string) string {
	return prefix + strings.ReplaceAll(columns, ", ", ", "+prefix)
}

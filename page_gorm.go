package smallben

import (
	"context"
	"database/sql"

	"github.com/nbena/smallben/internal/sqltx"
)

// listJobIDs reads the ids of the rows that match, and nothing else of them.
func (r *RepositoryGorm) listJobIDs(options ListJobsOptions) (ids []int64, err error) {
	ctx, cancel := r.db.Context()
	defer cancel()
	for _, filter := range [][]int64{options.JobIDs, options.GroupIDs, options.SuperGroupIDs} {
		if filter != nil && len(filter) == 0 {
			return nil, nil
		}
	}
	kind := r.db.Kind()
	if kind == sqltx.Portable {
		return r.portableIDs(ctx, options)
	}
	text, args := selection(kind, selected{ListJobsOptions: options}, "SELECT id FROM (SELECT * FROM {jobs} WHERE "+hasID(kind)+") AS named")
	err = r.db.Attempt(ctx, func(tx *sqltx.Tx) error {
		ids = nil
		return tx.Each(text, args, func(rows *sql.Rows) error {
			var id int64
			err := rows.Scan(&id)
			ids = append(ids, id)
			return err
		})
	})
	return ids, r.db.Failed("list ids", err)
}

func (r *RepositoryGorm) portableIDs(ctx context.Context, options ListJobsOptions) (ids []int64, err error) {
	rows, err := r.readRows(ctx, options)
	for i := range rows {
		if !rows[i].nameless() {
			ids = append(ids, rows[i].ID)
		}
	}
	return ids, r.db.Failed("list ids", err)
}

package sqltx

import "context"

// pinMemory keeps to one connection if the database is in memory: each connection
// has one of its own.
func (db *DB) pinMemory(ctx context.Context) error {
	var file string
	err := db.Attempt(ctx, func(tx *Tx) error {
		return tx.Row("SELECT coalesce(max(file), '') FROM pragma_database_list WHERE name = 'main'", nil, &file)
	})
	if err == nil && file == "" {
		db.pinned = true
		db.pool.SetMaxOpenConns(1)
		db.pool.SetMaxIdleConns(1)
		db.pool.SetConnMaxLifetime(0)
		db.pool.SetConnMaxIdleTime(0)
	}
	return err
}

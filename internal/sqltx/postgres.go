package sqltx

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// The states of errors that PostgreSQL gives in SQL.
const (
	deadlockDetected           = "40P01"
	serializationFailure       = "40001"
	lockNotAvailable           = "55P03"
	readOnlyTransaction        = "25006"
	featureNotSupported        = "0A000"
	duplicatePreparedStatement = "42P05"
	invalidStatementName       = "26000"
)

func sqlState(err error) string {
	var state interface{ SQLState() string }
	if !errors.As(err, &state) {
		return ""
	}
	return state.SQLState()
}

// IsLocked reports whether a statement that does not wait found a row that another
// transaction has locked.
func IsLocked(err error) bool { return sqlState(err) == lockNotAvailable }

// useless reports whether an error means that another connection might do what this
// one cannot: it is read-only since a failover, or has prepared statements that do
// not fit any more. Nothing has happened then.
func useless(err error) bool {
	switch sqlState(err) {
	case readOnlyTransaction, duplicatePreparedStatement, invalidStatementName:
		return true
	case featureNotSupported:
		return strings.Contains(err.Error(), "cached plan must not change result type")
	}
	return errors.Is(err, errReadOnly)
}

var errReadOnly = errors.New("the connection is read-only")

// learnPooler finds out whether pgx prepares statements, and whether there is a pooler
// between pgx and the server, whose connections come and go with transactions: a
// statement that is prepared on one is unknown to the next. Then none is prepared.
func (db *DB) learnPooler(ctx context.Context) error {
	taken, err := db.pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer taken.Close()
	return taken.Raw(func(driverConn any) error {
		stdlibConn, ok := driverConn.(*stdlib.Conn)
		if !ok {
			return nil
		}
		c := stdlibConn.Conn()
		mode := c.Config().DefaultQueryExecMode
		db.prepares = mode == pgx.QueryExecModeCacheStatement || mode == pgx.QueryExecModeDescribeExec
		var pid uint32
		if err := c.QueryRow(ctx, "SELECT pg_backend_pid()", pgx.QueryExecModeExec).Scan(&pid); err != nil {
			return err
		}
		// A pooler makes up the process that it tells its clients.
		db.unprepared = db.prepares && pid != c.PgConn().PID()
		return nil
	})
}

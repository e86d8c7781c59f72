package testkit

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
)

// Hasty bounds calls that meet a fault which lasts.
const Hasty = 250 * time.Millisecond

// OpenGorm opens a repository on a pool that the test keeps.
func OpenGorm(t testing.TB, dialector gorm.Dialector, timeout time.Duration) *smallben.RepositoryGorm {
	t.Helper()
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector, Timeout: timeout})
	require.NoError(t, err)
	return repository
}

// patience is how long a test waits for what comes at once, unless the machine is busy.
const patience = 2 * time.Minute

// timedOut reports whether a call took longer than its timeout, and changed nothing.
func timedOut(err error) bool {
	var timeout interface{ Timeout() bool } // of the network
	late := errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
	return late && !errors.Is(err, smallben.ErrOutcomeUnknown)
}

// Patiently makes a call that nothing is in the way of, again if a busy machine
// was too slow for its timeout.
func Patiently(call func() error) error {
	err := call()
	for deadline := time.Now().Add(patience); timedOut(err) && time.Now().Before(deadline); {
		err = call()
	}
	return err
}

// InTime requires that a call succeeds that nothing is in the way of.
func InTime(t testing.TB, call func() error) {
	t.Helper()
	require.NoError(t, Patiently(call))
}

// longHasty is the longest timeout of calls that meet a fault which lasts, on a busy
// machine. PostgreSQL ends a transaction of ours that is idle for five seconds, and then
// the fault is another.
const longHasty = 4 * time.Second

// Enough calls open with a timeout. While a busy machine is too slow for that, it is twice
// as long the next time, up to a bound. Enough returns the one that was long enough.
func Enough(t testing.TB, timeout time.Duration, open func(timeout time.Duration) error) time.Duration {
	t.Helper()
	InTime(t, func() error {
		err := open(timeout)
		if timedOut(err) {
			timeout = max(timeout, min(2*timeout, longHasty))
		}
		return err
	})
	return timeout
}

// OpenHasty is OpenGorm with a short timeout. It returns the one that was Enough.
func OpenHasty(t testing.TB, dialector gorm.Dialector, timeout time.Duration) (repository *smallben.RepositoryGorm, enough time.Duration) {
	t.Helper()
	enough = Enough(t, timeout, func(timeout time.Duration) (err error) {
		repository, err = smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: dialector, Timeout: timeout})
		return err
	})
	return repository, enough
}

// OnSQLite and OnPostgres are the dialectors of a pool.
func OnSQLite(db *sql.DB) gorm.Dialector   { return sqlite.New(sqlite.Config{Conn: db}) }
func OnPostgres(db *sql.DB) gorm.Dialector { return postgres.New(postgres.Config{Conn: db}) }

// OpenSQLDB opens a pool, which the test closes.
func OpenSQLDB(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	return db
}

// Fault is a way for an operation to fail. Only operations of Kind count, if that
// is set; all that follow fail too if it is Persistent.
type Fault struct {
	Mode       faultsql.Mode
	Persistent bool
	Kind       faultsql.Kind
	Unpooled   bool // each use of the pool connects
}

// Lasts reports whether only a timeout ends a call that meets the fault.
func (f Fault) Lasts() bool {
	return f.Persistent || f.Mode == faultsql.Hang || f.Mode == faultsql.HangAfter
}

// Inject makes the nth operation from now on fail, and returns a function that
// says of what kind it was, if it has come. It does not number rollbacks: they
// follow other failures, and those of database/sql come when they like.
func (f Fault) Inject(faults *faultsql.Faults, n int) (hit func() faultsql.Kind) {
	var met int
	var kind atomic.Value
	kind.Store(faultsql.Kind(""))
	faults.FailWhen(func(op faultsql.Op) bool {
		if f.Kind != "" && op.Kind != f.Kind || op.Kind == faultsql.Rollback {
			return f.Persistent && met >= n
		}
		if met++; met == n {
			kind.Store(op.Kind)
		}
		return met == n || f.Persistent && met > n
	}, faultsql.Fault{Mode: f.Mode})
	return func() faultsql.Kind { return kind.Load().(faultsql.Kind) }
}

// Deadlock is the error of PostgreSQL for a transaction that it ended because it
// and another waited for each other.
type Deadlock struct{}

func (Deadlock) Error() string    { return "deadlock detected" }
func (Deadlock) SQLState() string { return "40P01" }

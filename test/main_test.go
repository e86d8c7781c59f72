package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/testkit"
	"github.com/nbena/smallben/smallbentest"
)

// What the tests of this module share, by the names that it has here.
type (
	probe    = testkit.Probe
	valueJob = testkit.ValueJob
	logLines = testkit.LogLines
)

// unhurried is the default timeout of calls, which one that has a shorter timeout does
// not take.
const unhurried = 30 * time.Second

// within is what the error of a call says that took longer than its timeout.
func within(timeout time.Duration) string {
	return fmt.Sprintf("no answer from the database within %v", timeout)
}

var (
	newProbe       = testkit.NewProbe
	idle           = testkit.Idle
	newRecorder    = testkit.NewRecorder
	quiet          = testkit.Quiet
	create         = testkit.Create
	started        = testkit.Started
	openSQLite     = testkit.OpenSQLite
	openPostgres   = testkit.OpenPostgres
	openGorm       = testkit.OpenGorm
	openHasty      = testkit.OpenHasty
	openSQLDB      = testkit.OpenSQLDB
	onSQLite       = testkit.OnSQLite
	onPostgres     = testkit.OnPostgres
	patiently      = testkit.Patiently
	inTime         = testkit.InTime
	eachRepository = testkit.EachRepository
	checkInvariant = testkit.CheckInvariant
	gauges         = testkit.Gauges
	job            = testkit.Job
	ids            = testkit.IDs
	bubble         = testkit.Bubble
	pass           = testkit.Pass
	errDown        = testkit.ErrDown

	newMemoryRepository = smallbentest.NewMemoryRepository
)

func ptr[T any](v T) *T { return &v }

func idSet(ids []int64) map[int64]bool {
	set := make(map[int64]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set
}

// rowOf returns a row of repository.
func rowOf(t testing.TB, repository smallben.Repository, id int64) smallben.RawJob {
	t.Helper()
	rows, err := repository.ListJobs(&smallben.ListJobsOptions{JobIDs: []int64{id}})
	require.NoError(t, err)
	return rows[0]
}

func TestMain(m *testing.M) { testkit.Main(m) }

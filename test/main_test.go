package test

import (
	"testing"

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

const hasty = testkit.Hasty

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
	openInTime     = testkit.OpenInTime
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

package smallben_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/internal/faultsql"
)

// To pgx a connection is bad on which it began nothing, because time was up.
func TestATimeoutSaysSoWhateverTheDriverCallsIt(t *testing.T) {
	t.Parallel()
	w := brittlePostgres(t)
	for _, kind := range []faultsql.Kind{faultsql.Begin, faultsql.Query} {
		for _, call := range writeCalls {
			s, o := stage{w.repository, w.truth, w.reset}.begin(t, call)
			w.repository.hurry.Store(true)
			w.faults.OnOp(func(op faultsql.Op) {
				if op.Kind == kind {
					time.Sleep(hasty)
				}
			})
			err := call.call(t, s)
			w.faults.OnOp(nil)
			w.repository.hurry.Store(false)
			assert.ErrorIs(t, err, context.DeadlineExceeded, "%s of %s", kind, call.name)
			assert.ErrorContains(t, err, "no answer from the database within 120ms")
			require.NotErrorIs(t, err, smallben.ErrOutcomeUnknown)
			o.judge(t, s, err)
		}
	}
}

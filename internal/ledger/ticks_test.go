package ledger

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"
)

func TestLastTicksAreThoseThatAWalkFinds(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	begin := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for _, expression := range []string{"*/15 * * * *", "30 2 * * *", "0 9 * * MON-FRI", "0 0 29 2 *"} {
		schedule, err := cron.ParseStandard(expression)
		require.NoError(t, err)
		for range 50 {
			after := begin.Add(time.Duration(random.Int64N(int64(60 * 24 * time.Hour)))).Truncate(time.Second)
			until := after.Add(time.Duration(random.Int64N(int64(24 * time.Hour))))
			walked, _ := TicksIn(schedule, after, until, 1_000_000)
			n := 1 + random.IntN(5)
			want := walked[max(0, len(walked)-n):]
			got := LastTicks(schedule, after, until, n)
			require.Len(t, got, len(want), "%s after %v until %v", expression, after, until)
			for i := range want {
				require.True(t, want[i].Equal(got[i]), "%s after %v until %v", expression, after, until)
			}
		}
	}
}

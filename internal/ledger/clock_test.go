package ledger

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestAHeartbeatThatWaitedDoesNotChangeWhatTimeItIs(t *testing.T) {
	t.Parallel()
	c := newClock(time.Second)
	sent := time.Now()
	hear := func(ahead, there, back time.Duration) time.Duration {
		c.hear(sent.Add(there+ahead), sent, sent.Add(there+back))
		return c.offset()
	}
	assert.Zero(t, hear(0, 400*time.Millisecond, 0), "it waited before it was answered")
	assert.Zero(t, hear(0, 0, 400*time.Millisecond), "it waited afterwards")
	const ahead = 300 * time.Millisecond
	assert.Equal(t, ahead, hear(ahead, time.Millisecond, time.Millisecond), "the clocks differ")
	assert.Equal(t, ahead, hear(ahead, 200*time.Millisecond, time.Millisecond))
	assert.Equal(t, ahead, hear(ahead, time.Second, 0), "it took too long to tell")
	assert.InDelta(t, 0, hear(0, 150*time.Millisecond, 0), float64(75*time.Millisecond), "the clock was set back")
	assert.Zero(t, hear(0, time.Millisecond, time.Millisecond))
}

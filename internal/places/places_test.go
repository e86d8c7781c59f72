package places

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func TestTheOldestTickGetsThePlaceThatIsLeft(t *testing.T) {
	t.Parallel()
	p := New[string](1)
	assert.True(t, p.Enter(1, noon, "runs"))
	for _, tick := range []struct {
		key   int64
		after time.Duration
		value string
	}{{2, 2, "third"}, {3, 1, "first"}, {4, 1, "second"}, {3, 3, "removed"}} {
		assert.False(t, p.Enter(tick.key, noon.Add(tick.after), tick.value))
	}
	assert.Equal(t, 4, p.Count())
	for _, want := range []string{"first", "second", "third"} {
		if want == "second" {
			assert.Equal(t, []string{"removed"}, p.Remove(3))
			assert.Nil(t, p.Remove(3))
		}
		next, ok := p.Leave()
		assert.True(t, ok)
		assert.Equal(t, want, next)
	}
	_, ok := p.Leave()
	assert.False(t, ok)
	assert.True(t, p.Enter(5, noon, "free again"))
}

func TestReserveTakesWhatIsFreeAndTellsWhenThereIsMore(t *testing.T) {
	t.Parallel()
	p := New[string](3)
	assert.True(t, p.Enter(1, noon, "runs"))
	n, _ := p.Take(5)
	assert.Equal(t, 2, n)
	n, freed := p.Take(5)
	assert.Zero(t, n)
	p.Leave()
	<-freed
	n, _ = p.Take(5)
	assert.Equal(t, 1, n)
}

func TestWithoutALimitNothingWaits(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{0, -1} {
		p := New[string](limit)
		for range 1000 {
			assert.True(t, p.Enter(1, noon, "runs"))
		}
		n, freed := p.Take(7)
		assert.Equal(t, 7, n)
		assert.Nil(t, freed)
		_, ok := p.Leave()
		assert.False(t, ok)
		assert.Nil(t, p.Remove(1))
		assert.Zero(t, p.Count())
	}
}

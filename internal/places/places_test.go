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
	assert.True(t, p.Enter(noon, "runs"))
	for _, tick := range []struct {
		after time.Duration
		value string
	}{{2, "third"}, {1, "first"}, {1, "second"}, {3, "removed"}} {
		assert.False(t, p.Enter(noon.Add(tick.after), tick.value))
	}
	assert.Equal(t, 4, p.Count())
	for _, want := range []string{"first", "second", "third"} {
		if want == "second" {
			p.Remove(func(value string) bool { return value == "removed" })
			assert.Equal(t, 2, p.Count())
		}
		next, ok := p.Leave()
		assert.True(t, ok)
		assert.Equal(t, want, next)
	}
	_, ok := p.Leave()
	assert.False(t, ok)
	assert.True(t, p.Enter(noon, "free again"))
}

func TestReserveTakesWhatIsFreeAndTellsWhenThereIsMore(t *testing.T) {
	t.Parallel()
	p := New[string](3)
	assert.True(t, p.Enter(noon, "runs"))
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
			assert.True(t, p.Enter(noon, "runs"))
		}
		n, freed := p.Take(7)
		assert.Equal(t, 7, n)
		assert.Nil(t, freed)
		_, ok := p.Leave()
		assert.False(t, ok)
		p.Remove(func(string) bool { return true })
		assert.Zero(t, p.Count())
	}
}

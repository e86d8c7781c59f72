package numbers

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestNumbersComeFromTheLongestRangeInWhichNoneIsUsed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		used []int32
		want int32
	}{
		"none is used":            {nil, 1},
		"the first ones are used": {[]int32{3, 1, 2, 2}, 4},
		"the last one is used":    {[]int32{math.MaxInt32}, 1},
		"the range is within":     {[]int32{10, math.MaxInt32 - 10}, 11},
	} {
		t.Run(name, func(t *testing.T) {
			var free Free
			used := func() []int32 { return c.used }
			assert.Equal(t, c.want, free.Next(used))
			assert.Equal(t, c.want+1, free.Next(used))
		})
	}
}

func TestARangeThatIsUsedUpIsFollowedByAnother(t *testing.T) {
	t.Parallel()
	free := Free{first: math.MaxInt32, end: math.MaxInt32 + 1}
	used := func() []int32 { return []int32{math.MaxInt32, 1} }
	assert.EqualValues(t, math.MaxInt32, free.Next(used))
	assert.EqualValues(t, 2, free.Next(used))
}

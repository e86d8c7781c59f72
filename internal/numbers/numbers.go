// Package numbers hands out positive numbers that are not in use. It does not know
// what they are for.
package numbers

import (
	"math"
	"slices"
)

// Free hands out numbers of 31 bits, from a range in which none is used. The zero value
// looks for one first. It is not goroutine-safe.
type Free struct{ first, end int64 }

// Next takes a number. It calls used for those that are not free, if it has none
// left.
func (f *Free) Next(used func() []int32) int32 {
	if f.first == f.end {
		f.first, f.end = longestGap(used())
	}
	f.first++
	return int32(f.first - 1)
}

// longestGap returns the longest range of positive numbers in which none is used.
func longestGap(used []int32) (first, end int64) {
	slices.Sort(used)
	before := int64(0)
	gap := func(next int64) {
		if next-before-1 > end-first {
			first, end = before+1, next
		}
		before = next
	}
	for _, number := range used {
		gap(int64(number))
	}
	gap(math.MaxInt32 + 1)
	return first, end
}

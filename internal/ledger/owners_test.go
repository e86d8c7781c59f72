package ledger

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fleet are the owners of n processes that know each other.
func fleet(n int, partial ...int) (all []*owners, live []Member) {
	for i := range n {
		live = append(live, Member{Process: fmt.Sprint("host/", i), Beats: 1, Standing: Standing{Claims: true}})
	}
	for _, i := range partial {
		live[i].Partial = true
	}
	for i := range n {
		o := newOwners(live[i].Process, time.Second)
		o.set(live)
		all = append(all, o)
	}
	return all, live
}

func TestEachJobHasOneOwnerAndOneSecond(t *testing.T) {
	t.Parallel()
	const jobs = 10_000
	for _, n := range []int{1, 2, 3, 10} {
		all, _ := fleet(n)
		owned := make([]int, n)
		for id := range int64(jobs) {
			counts := make(map[rank]int)
			for i, o := range all {
				place := o.rank(id - jobs/2)
				counts[place]++
				if place == first {
					owned[i]++
					require.Equal(t, o.process, all[0].live.Load().owner(id-jobs/2))
				}
			}
			require.Equal(t, 1, counts[first])
			require.Equal(t, min(n-1, 1), counts[second])
		}
		for _, k := range owned {
			assert.InDelta(t, jobs/n, k, jobs/float64(n)/5, "%d processes own %v", n, owned)
		}
	}
}

func TestOnlyTheJobsOfAProcessThatIsGoneMove(t *testing.T) {
	t.Parallel()
	all, live := fleet(5)
	before := all[0].live.Load()
	gone := live[3].Process
	assert.NotNil(t, all[0].set(append(live[:3:3], live[4:]...)))
	after := all[0].live.Load()
	for id := range int64(1000) {
		if owner := before.owner(id); owner != gone {
			require.Equal(t, owner, after.owner(id))
		}
	}
	assert.Nil(t, all[0].set(live), "one that comes takes nothing over")
}

func TestSomebodyWhoCanRunEveryJobLooksAtEachTick(t *testing.T) {
	t.Parallel()
	for _, partial := range [][]int{{0}, {0, 1}, {0, 1, 2, 3}, {4, 2}} {
		all, live := fleet(5, partial...)
		for id := range int64(1000) {
			whole, asked := 0, 0
			for i, o := range all {
				if o.rank(id) != none {
					asked++
					if !live[i].Partial {
						whole++
					}
				}
			}
			require.Positive(t, whole, "job %d, partial %v", id, partial)
			require.LessOrEqual(t, asked, len(partial)+2)
		}
	}
}

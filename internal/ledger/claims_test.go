package ledger

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// followingHost is a Host that agrees with the database at once.
type followingHost struct{ Host }

func (followingHost) Follow([]int64) error { return nil }

func TestAClaimThatStaysStaleIsNotAskedAgainAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		before []int // how often each of the claims was stale
		want   time.Duration
	}{
		"stale for the first time":            {[]int{0, 0}, 0},
		"one of them stale again":             {[]int{1, 0}, troubleWait},
		"one of them stale again, and behind": {[]int{0, 1}, troubleWait},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				timing := DefaultTiming
				s := newSession(newCommon(New(nil, Config{Timing: &timing, Log: noLog{}}), followingHost{}, "a"))
				var stale []*Grant
				for i, times := range c.before {
					stale = append(stale, &Grant{Claim: Claim{Key: Key{JobID: int64(i + 1)}}, grants: s.grants, asked: time.Now(), stale: times})
				}
				begin := time.Now()
				s.claims.refresh(stale)
				assert.Equal(t, c.want, time.Since(begin))
				assert.Equal(t, len(stale), s.grants.asked.len())
			})
		})
	}
}

package shared

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestAValueIsMadeOnceUntilThereAreTooMany(t *testing.T) {
	t.Parallel()
	var values Values[int]
	made := 0
	get := func(key string) int {
		value, err := values.Get(key, func() (int, error) { made++; return made, nil })
		assert.NoError(t, err)
		return value
	}
	assert.Equal(t, []int{1, 1, 2, 1}, []int{get("a"), get("a"), get("b"), get("a")})
	for i := range maxValues {
		get(fmt.Sprint(i))
	}
	assert.LessOrEqual(t, len(values.values), maxValues)
	assert.Greater(t, get("a"), 2)
}

func TestAnErrorIsNotKept(t *testing.T) {
	t.Parallel()
	var values Values[int]
	_, err := values.Get("a", func() (int, error) { return 0, errors.New("no") })
	assert.EqualError(t, err, "no")
	value, err := values.Get("a", func() (int, error) { return 1, nil })
	assert.NoError(t, err)
	assert.Equal(t, 1, value)
}

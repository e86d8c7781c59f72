// Package shared keeps values that many have in common, so that each is in memory
// once.
package shared

import (
	"strings"
	"sync"
)

// Values keeps values that many jobs have in common. It forgets all of them when
// it is full, which only costs making them again. The zero value is empty; it is
// goroutine-safe.
type Values[V any] struct {
	mu     sync.RWMutex
	values map[string]V
}

const maxValues = 4096

// Get returns the value of key, or makes it. Errors are not kept.
func (s *Values[V]) Get(key string, create func() (V, error)) (V, error) {
	s.mu.RLock()
	value, ok := s.values[key]
	s.mu.RUnlock()
	if ok {
		return value, nil
	}
	value, err := create()
	if err != nil {
		return value, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.values == nil || len(s.values) >= maxValues {
		s.values = map[string]V{}
	}
	s.values[strings.Clone(key)] = value
	return value, nil
}

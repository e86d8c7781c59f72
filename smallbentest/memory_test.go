package smallbentest_test

import (
	"testing"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/smallbentest"
)

func TestTheRepositoryInMemoryKeepsTheContract(t *testing.T) {
	smallbentest.TestRepository(t, func(*testing.T) smallben.Repository { return smallbentest.NewMemoryRepository() })
}

package smallben

import (
	"context"
	"fmt"
)

// ContextRepository is an optional ability of a Repository: the …Context methods of
// SmallBen give it their contexts.
type ContextRepository interface {
	Repository
	// WithContext returns the repository whose calls end with ctx, at the latest.
	// It has the same optional abilities.
	WithContext(ctx context.Context) Repository
}

// call is a call of a user: its context, and the repository and the record of runs
// under it.
type call struct {
	context    context.Context
	repository Repository
	store      runStore // nil: runs are not recorded
	end        context.CancelFunc
}

// background is a call that nothing bounds but the repository.
func (s *SmallBen) background() *call {
	c := &call{context: context.Background(), repository: s.repository, end: func() {}}
	if s.record != nil {
		c.store = s.record.store
	}
	return c
}

// begin begins a call, which ends with ctx and, if the repository is a
// RepositoryGorm, when its Timeout has passed. The caller ends it.
func (s *SmallBen) begin(ctx context.Context) *call {
	c := s.background()
	c.context = ctx
	gormRepository, isGorm := s.repository.(*RepositoryGorm)
	if isGorm {
		c.context, c.end = gormRepository.db().WithContext(ctx).Context()
	}
	repository, ok := s.repository.(ContextRepository)
	if !ok || !isGorm && ctx == context.Background() {
		return c
	}
	inside := repository.WithContext(c.context)
	if _, bare := inside.(*RepositoryGorm); bare && !isGorm {
		// It embeds one, whose method would leave its own methods out.
		return c
	}
	c.repository = inside
	if keeper, ok := inside.(interface{ runStore() runStore }); ok && c.store != nil {
		c.store = keeper.runStore()
	}
	return c
}

// inTurn begins a call, and calls do when it is its turn to change jobs. The wait
// counts.
func (s *SmallBen) inTurn(ctx context.Context, do func(c *call) error) error {
	c := s.begin(ctx)
	defer c.end()
	if err := s.changeMu.wait(c.context); err != nil {
		return fmt.Errorf("wait for another change: %w", err)
	}
	defer s.changeMu.Unlock()
	// What others have changed is not followed meanwhile.
	return do(c.hasten())
}

// hasten lets a call not wait for a pool that is used up, if runs are recorded and the
// repository is a RepositoryGorm.
func (c *call) hasten() *call {
	_, bare := c.repository.(*RepositoryGorm)
	if runs, ok := c.store.(gormRuns); ok && bare {
		c.repository = runs.repository
	}
	return c
}

// await returns when do has, or when the call ends. Do goes on then, and must be
// harmless.
func (c *call) await(do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-c.context.Done():
		return c.context.Err()
	}
}

// turn is a mutex for which one can wait with a context. It is made with room for
// one, and is locked while it is full.
type turn chan struct{}

func (t turn) Lock()   { t <- struct{}{} }
func (t turn) Unlock() { <-t }

// wait locks it, or returns the error of ctx.
func (t turn) wait(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

package eventlog

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/assert"
)

// sink takes lines as long as it is open.
type sink struct {
	open  chan struct{}
	lines chan string
}

func newSink() sink { return sink{open: make(chan struct{}), lines: make(chan string, 10)} }

func (s sink) Info(msg string, _ ...any) {
	<-s.open
	s.lines <- msg
}

func (s sink) Error(err error, msg string, _ ...any) {
	<-s.open
	s.lines <- msg + ": " + err.Error()
}

func TestAReportWaitsForTheSinkASecondAndTheNextNotAtAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSink()
		l := New(s)
		start := time.Now()
		l.Report(func(to cron.Logger) { to.Info("first") })
		assert.Equal(t, maxWait, time.Since(start))
		l.Report(func(to cron.Logger) { to.Info("second") })
		assert.Equal(t, maxWait, time.Since(start))
		close(s.open)
		assert.ElementsMatch(t, []string{"first", "second"}, []string{<-s.lines, <-s.lines})
		synctest.Wait()
		l.Report(func(to cron.Logger) { to.Info("third") })
		assert.Equal(t, "third", <-s.lines)
		assert.Equal(t, maxWait, time.Since(start))
	})
}

func TestWaitEndsWhenTheSinkHasTakenAllLinesOrAfterASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSink()
		l := New(s)
		l.Wait()
		l.Begin()
		l.Error(errors.New("why"), "failed")
		start := time.Now()
		l.Wait()
		assert.Equal(t, maxWait, time.Since(start))
		close(s.open)
		assert.Equal(t, "failed: why", <-s.lines)
		time.AfterFunc(maxWait/2, func() { l.Write(func(to cron.Logger) { to.Info("last") }) })
		start = time.Now()
		l.Wait()
		assert.Equal(t, maxWait/2, time.Since(start))
		assert.Len(t, s.lines, 1)
	})
}

func TestASinkThatPanicsIsSurvived(t *testing.T) {
	t.Parallel()
	l := New(nil)
	l.Report(func(to cron.Logger) { to.Info("nil") })
	l.Info("nil")
	l.Wait()
	assert.Zero(t, l.writing)
}

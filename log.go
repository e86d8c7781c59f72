package smallben

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/zapr"
	"github.com/robfig/cron/v3"
	"go.uber.org/zap"
)

// DefaultLogger receives the events of every SmallBen whose Config.Logger is
// zero. It is zap's production logger (JSON on standard error, from info level
// up) without sampling, so that no event is dropped, and without the stack of the
// call. A program may replace it before it calls New.
var DefaultLogger cron.Logger = newDefaultLogger()

func newDefaultLogger() cron.Logger {
	config := zap.NewProductionConfig()
	config.Sampling = nil
	config.DisableStacktrace = true
	logger, err := config.Build()
	if err != nil {
		// Only standard error that cannot be opened leads here.
		return cron.DiscardLogger
	}
	return zapr.NewLogger(logger)
}

// maxLogWait bounds how long anything waits for a log sink.
const maxLogWait = time.Second

// eventLog hands lines to the logger. A sink may panic, call SmallBen, or block
// for ever: lines are written on goroutines that nothing waits for without a
// bound, and that hold no lock. newEventLog makes one; it is goroutine-safe.
type eventLog struct {
	sink    cron.Logger
	blocked atomic.Int64 // reports that were given up on, and whose lines still block

	mu      sync.Mutex    // guards the fields below, for moments
	writing int           // lines that the sink has not taken yet
	quiet   chan struct{} // closed when writing is 0 again; nil if nobody waits
}

func newEventLog(config *Config) *eventLog {
	if config.Logger.GetSink() != nil {
		return &eventLog{sink: config.Logger}
	}
	return &eventLog{sink: DefaultLogger}
}

// Info logs a line on a goroutine of its own.
func (l *eventLog) Info(msg string, keysAndValues ...any) {
	l.begin()
	go l.write(func(sink cron.Logger) { sink.Info(msg, keysAndValues...) })
}

// Error is Info at error level.
func (l *eventLog) Error(err error, msg string, keysAndValues ...any) {
	l.begin()
	go l.write(func(sink cron.Logger) { sink.Error(err, msg, keysAndValues...) })
}

// report logs lines of a call that is about to return, so that they are seen when
// it has. It waits maxLogWait for the sink at most, and not at all while another
// report blocks.
func (l *eventLog) report(lines func(sink cron.Logger)) {
	l.begin()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.write(lines)
	}()
	if l.blocked.Load() > 0 {
		return
	}
	patience := time.NewTimer(maxLogWait)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		l.blocked.Add(1)
		go func() {
			<-done
			l.blocked.Add(-1)
		}()
	}
}

// begin counts lines that are for write to write.
func (l *eventLog) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing++
}

// write calls the sink.
func (l *eventLog) write(lines func(sink cron.Logger)) {
	defer l.end()
	defer func() { _ = recover() }()
	lines(l.sink)
}

func (l *eventLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writing--; l.writing == 0 && l.quiet != nil {
		close(l.quiet)
		l.quiet = nil
	}
}

// wait waits until the sink has taken all lines, maxLogWait at most.
func (l *eventLog) wait() {
	l.mu.Lock()
	if l.writing == 0 {
		l.mu.Unlock()
		return
	}
	if l.quiet == nil {
		l.quiet = make(chan struct{})
	}
	quiet := l.quiet
	l.mu.Unlock()
	select {
	case <-quiet:
	case <-time.After(maxLogWait):
	}
}

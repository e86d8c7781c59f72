// Package eventlog writes lines to a log sink that may panic, block, or call back.
package eventlog

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/robfig/cron/v3"
)

// maxWait bounds how long anything waits for a log sink.
const maxWait = time.Second

// Log hands lines to the logger. A sink may panic, call SmallBen, or block
// for ever: lines are written on goroutines that nothing waits for without a
// bound, and that hold no lock. New makes one; it is goroutine-safe.
type Log struct {
	sink    cron.Logger
	blocked atomic.Int64 // reports that were given up on, and whose lines still block

	mu      sync.Mutex    // guards the fields below, for moments
	writing int           // lines that the sink has not taken yet
	quiet   chan struct{} // closed when writing is 0 again; nil if nobody waits
}

// New returns a Log that writes to sink.
func New(sink cron.Logger) *Log { return &Log{sink: sink} }

// Info logs a line on a goroutine of its own.
func (l *Log) Info(msg string, keysAndValues ...any) {
	l.Begin()
	go l.Write(func(sink cron.Logger) { sink.Info(msg, keysAndValues...) })
}

// Error is Info at error level.
func (l *Log) Error(err error, msg string, keysAndValues ...any) {
	l.Begin()
	go l.Write(func(sink cron.Logger) { sink.Error(err, msg, keysAndValues...) })
}

// Report logs lines of a call that is about to return, so that they are seen when
// it has. It waits maxWait for the sink at most, and not at all while another
// Report blocks.
func (l *Log) Report(lines func(sink cron.Logger)) {
	l.Begin()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Write(lines)
	}()
	if l.blocked.Load() > 0 {
		return
	}
	patience := time.NewTimer(maxWait)
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

// Begin counts lines that are for Write to write: Wait waits for them.
func (l *Log) Begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing++
}

// Write writes lines for which Begin was called.
func (l *Log) Write(lines func(sink cron.Logger)) {
	defer l.end()
	defer func() { _ = recover() }()
	lines(l.sink)
}

func (l *Log) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writing--; l.writing == 0 && l.quiet != nil {
		close(l.quiet)
		l.quiet = nil
	}
}

// Wait waits until the sink has taken all lines, maxWait at most.
func (l *Log) Wait() {
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
	case <-time.After(maxWait):
	}
}

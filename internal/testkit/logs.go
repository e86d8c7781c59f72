package testkit

import (
	"strings"
	"sync"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
)

// LogLines is a logger that keeps its lines.
type LogLines struct {
	mu    sync.Mutex
	lines []string
}

// Logger returns a logger that writes to l.
func (l *LogLines) Logger() logr.Logger {
	return funcr.New(func(prefix, args string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lines = append(l.lines, args)
	}, funcr.Options{})
}

// All returns the lines so far.
func (l *LogLines) All() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}

// With returns the lines that contain part.
func (l *LogLines) With(part string) (found []string) {
	for _, line := range l.All() {
		if strings.Contains(line, part) {
			found = append(found, line)
		}
	}
	return found
}

// Quiet is a logger that writes nothing.
var Quiet = logr.New(DiscardSink{})

// DiscardSink is the sink of Quiet.
type DiscardSink struct{}

func (DiscardSink) Init(logr.RuntimeInfo)            {}
func (DiscardSink) Enabled(int) bool                 { return false }
func (DiscardSink) Info(int, string, ...any)         {}
func (DiscardSink) Error(error, string, ...any)      {}
func (s DiscardSink) WithValues(...any) logr.LogSink { return s }
func (s DiscardSink) WithName(string) logr.LogSink   { return s }

package nri

import (
	"context"
	"fmt"
)

// LogLevel is how much a message matters.
type LogLevel int

// Levels of messages.
const (
	LogDebug LogLevel = iota
	LogInfo
	LogError
)

// Logger takes a message.
type Logger func(level LogLevel, text string)

// logger is what the library logs to.
type logger struct{ log Logger }

func (logger) Debugf(context.Context, string, ...any) {}

// Infof is about what the library does.
func (l logger) Infof(_ context.Context, format string, args ...any) {
	l.log(LogDebug, fmt.Sprintf(format, args...))
}

// Warnf is about plugins that do not do as they should.
func (l logger) Warnf(_ context.Context, format string, args ...any) {
	l.log(LogInfo, fmt.Sprintf(format, args...))
}

// Errorf is about plugins too: the daemon goes on without them.
func (l logger) Errorf(_ context.Context, format string, args ...any) {
	l.log(LogInfo, fmt.Sprintf(format, args...))
}

package export

import (
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
)

// maxKinds bounds what complaints remembers.
const maxKinds = 64

// complaints says each kind of thing once a minute at most.
type complaints struct {
	logger *slog.Logger
	mu     sync.Mutex
	last   map[string]time.Time
}

func (c *complaints) due(kind string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil {
		c.last = make(map[string]time.Time)
	}
	now := time.Now()
	if len(c.last) >= maxKinds {
		clear(c.last)
	}
	if t, ok := c.last[kind]; ok && now.Sub(t) < time.Minute {
		return false
	}
	c.last[kind] = now
	return true
}

func (c *complaints) warn(kind, msg string, args ...any) {
	if c.due(kind) {
		c.logger.Warn(msg, args...)
	}
}

func (c *complaints) error(kind, msg string, args ...any) {
	if c.due(kind) {
		c.logger.Error(msg, args...)
	}
}

// routeLibraryErrors sends what the OpenTelemetry libraries report to the
// agent's own log. They have one handler for the whole process, and by default
// write to stderr on their own.
func routeLibraryErrors(logger *slog.Logger) {
	c := &complaints{logger: logger}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		c.warn(err.Error(), "opentelemetry library", "error", err)
	}))
	otel.SetLogger(logr.FromSlogHandler(logger.Handler()))
}

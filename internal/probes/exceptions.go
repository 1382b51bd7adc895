package probes

import (
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/probes/event"
)

const (
	// exceptionWait is how long a span that a panic has ended waits for the text of the
	// panic, which the program writes after that.
	exceptionWait = time.Second
	// maxExceptions wait at once; more go without their text.
	maxExceptions = 256
)

// exceptions joins the spans that panics have ended with what was logged of the panics.
// The reader holds and releases; logs tell what was logged.
type exceptions struct {
	mu      sync.Mutex
	waiting map[trace.SpanID]*exception
}

type exception struct {
	span  event.Span
	since time.Time
	done  bool
}

func newExceptions() *exceptions {
	return &exceptions{waiting: map[trace.SpanID]*exception{}}
}

// hold takes a span that a panic has ended; false if there is no room.
func (e *exceptions) hold(span event.Span, now time.Time) bool {
	typ := ""
	for _, kv := range span.Attributes {
		if kv.Key == semconv.ErrorTypeKey {
			typ = kv.Value.AsString()
		}
	}
	span.Events = []event.SpanEvent{{
		Name: semconv.ExceptionEventName, Time: span.End,
		Attributes: []attribute.KeyValue{semconv.ExceptionType(typ)},
	}}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.waiting) >= maxExceptions {
		return false
	}
	e.waiting[span.SpanID] = &exception{span: span, since: now}
	return true
}

// logged looks whether a record is the text of a panic that a span waits for.
func (e *exceptions) logged(l *event.Log) {
	if !l.SpanID.IsValid() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.waiting[l.SpanID]
	if x == nil || x.done {
		return
	}
	message, stack, ok := panicText(l)
	if !ok {
		return
	}
	x.done = true
	attrs := &x.span.Events[0].Attributes
	if message != "" {
		*attrs = append(*attrs, semconv.ExceptionMessage(message))
	}
	if stack != "" {
		*attrs = append(*attrs, semconv.ExceptionStacktrace(stack))
	}
}

// panicText takes message and stack from the record of a panic: the program's last
// words, or what net/http's server writes of a panic that it has recovered.
func panicText(l *event.Log) (message, stack string, ok bool) {
	for _, kv := range l.Attributes {
		switch kv.Key {
		case semconv.ExceptionMessageKey:
			message = kv.Value.AsString()
		case semconv.ExceptionStacktraceKey:
			stack = kv.Value.AsString()
		}
	}
	if _, text, found := strings.Cut(l.Body, "http: panic serving "); found {
		if i := strings.Index(text, "\ngoroutine "); i >= 0 {
			text, stack = text[:i], text[i+1:]
		}
		_, message, _ = strings.Cut(text, ": ") // behind the client's address
		return strings.TrimSpace(message), stack, true
	}
	return message, stack, stack != ""
}

// release returns the spans that have their text, or have waited long enough; all of
// them with the zero time.
func (e *exceptions) release(now time.Time) []event.Span {
	e.mu.Lock()
	defer e.mu.Unlock()
	var spans []event.Span
	for id, x := range e.waiting {
		if x.done || now.IsZero() || now.Sub(x.since) >= exceptionWait {
			spans = append(spans, x.span)
			delete(e.waiting, id)
		}
	}
	return spans
}

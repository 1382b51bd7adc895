// Package observer receives OTLP/HTTP, keeps the last of what came, and shows
// it to a person: the traces as trees, each with its log lines.
//
// It is the local stand-in for Plain Cloud: "agent observe" and the demo print
// from it, and the tests assert on it and make it fail on purpose ([Fault]).
// The data path, in order: [Observer.Handler] reads a request, decode.go turns
// it into plain values, the Observer keeps them and hands them to the [Sink],
// which for a terminal is the [Printer]: tree.go joins spans to traces,
// render.go writes them.
package observer

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// defaultKeep is how many spans, log records and metric points are kept, each.
const defaultKeep = 100_000

// Sink is told of everything that is received. Calls come from many goroutines;
// the values are shared and read-only.
type Sink interface {
	Receive(Batch)
}

// Batch is the content of one request.
type Batch struct {
	Spans  []Span
	Logs   []Log
	Points []Point
}

// Options configure an [Observer]. The zero value keeps the last 100,000 items
// of each signal.
type Options struct {
	Keep int  // spans, logs and points kept, each; 0 means the default
	Sink Sink // nil: none
}

// Counts are totals since the start. They are not bounded by Options.Keep.
type Counts struct {
	Requests, Spans, Logs, Points int
}

// Observer is a receiver that remembers. It is safe for concurrent use.
type Observer struct {
	keep int
	sink Sink

	mu       sync.Mutex
	spans    []Span
	logs     []Log
	points   []Point
	requests []Request
	counts   Counts
	faults   []Fault
	changed  chan struct{} // closed and renewed whenever something arrives
}

// New returns an Observer that serves nothing yet: see [Observer.Handler].
func New(opts Options) *Observer {
	if opts.Keep <= 0 {
		opts.Keep = defaultKeep
	}
	return &Observer{keep: opts.Keep, sink: opts.Sink, changed: make(chan struct{})}
}

// add keeps a batch, wakes those who wait, and tells the sink.
func (o *Observer) add(b Batch) {
	o.mu.Lock()
	o.spans = appendLast(o.spans, b.Spans, o.keep)
	o.logs = appendLast(o.logs, b.Logs, o.keep)
	o.points = appendLast(o.points, b.Points, o.keep)
	o.counts.Spans += len(b.Spans)
	o.counts.Logs += len(b.Logs)
	o.counts.Points += len(b.Points)
	o.wake()
	o.mu.Unlock()
	if o.sink != nil {
		o.sink.Receive(b)
	}
}

// wake is called with the lock held.
func (o *Observer) wake() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// Spans returns the spans kept, in the order of arrival.
func (o *Observer) Spans() []Span { return snapshot(o, &o.spans) }

// Logs returns the log records kept, in the order of arrival.
func (o *Observer) Logs() []Log { return snapshot(o, &o.logs) }

// Points returns the metric points kept, in the order of arrival.
func (o *Observer) Points() []Point { return snapshot(o, &o.points) }

// Requests returns the requests received, the refused ones too.
func (o *Observer) Requests() []Request { return snapshot(o, &o.requests) }

// Counts returns the totals since the start.
func (o *Observer) Counts() Counts {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.counts
}

// Reset forgets what was kept and counted; faults stay.
func (o *Observer) Reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spans, o.logs, o.points, o.requests = nil, nil, nil, nil
	o.counts = Counts{}
}

// WaitFor blocks until done returns true or ctx ends. It asks at once and then
// after every arrival; done may call the Observer's methods.
func (o *Observer) WaitFor(ctx context.Context, done func() bool) error {
	for {
		o.mu.Lock()
		changed := o.changed
		o.mu.Unlock()
		if done() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for telemetry: %w", context.Cause(ctx))
		}
	}
}

// WaitForSpans blocks until at least n spans that match have arrived, and
// returns all that match; at the timeout it returns those that came and an
// error. A nil match takes every span.
func (o *Observer) WaitForSpans(n int, timeout time.Duration, match func(Span) bool) ([]Span, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var found []Span
	err := o.WaitFor(ctx, func() bool {
		found = found[:0]
		for _, s := range o.Spans() {
			if match == nil || match(s) {
				found = append(found, s)
			}
		}
		return len(found) >= n
	})
	if err != nil {
		return found, fmt.Errorf("%d of %d spans after %v: %w", len(found), n, timeout, err)
	}
	return found, nil
}

func snapshot[T any](o *Observer, kept *[]T) []T {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := *kept
	if len(all) > o.keep {
		all = all[len(all)-o.keep:]
	}
	return append([]T(nil), all...)
}

// appendLast appends and lets the slice grow to twice keep before it moves the
// last ones to the front, so that an arrival costs no copy of everything.
func appendLast[T any](kept, more []T, keep int) []T {
	if len(more) > keep {
		more = more[len(more)-keep:]
	}
	if len(kept)+len(more) > 2*keep {
		n := copy(kept, kept[len(kept)-(keep-len(more)):])
		clear(kept[n:])
		kept = kept[:n]
	}
	return append(kept, more...)
}

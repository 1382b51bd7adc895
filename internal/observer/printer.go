package observer

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// Bounds of the printer's memory. What is over is counted and said.
const (
	maxPending       = 10_000 // traces that wait for the rest of their spans
	maxSpansPerTrace = 1_000
	maxLines         = 1_000 // loose records and points between two ticks
)

// A trace is printed when nothing of it has arrived for a while: for longer if
// its root is still missing.
const (
	settled        = 700 * time.Millisecond
	settledNoRoot  = 3 * time.Second
	tick           = 100 * time.Millisecond
	isRemoteParent = 0x300 // OTLP span flags: "is remote" is known, and true
)

// PrinterOptions configure a [Printer].
type PrinterOptions struct {
	Colour    bool
	UTC       bool // print times in UTC, not in local time
	PerSecond int  // traces printed in a second at most; 0 means 50
}

// Printer is a [Sink] that writes for a person. Nothing is written before Run or
// Flush is called, so that a slow terminal never blocks the receiver.
type Printer struct {
	w    io.Writer
	opts PrinterOptions

	mu      sync.Mutex
	pending map[trace.TraceID]*pendingTrace
	logs    []Log
	points  []Point
	missed  int // items that found no room

	window  time.Time // start of the second that shown counts in
	shown   int
	skipped int
}

type pendingTrace struct {
	spans  []Span
	logs   []Log
	last   time.Time
	rooted bool
}

// NewPrinter returns a Printer that writes to w.
func NewPrinter(w io.Writer, opts PrinterOptions) *Printer {
	opts.PerSecond = cmp.Or(opts.PerSecond, 50)
	return &Printer{w: w, opts: opts, pending: make(map[trace.TraceID]*pendingTrace)}
}

// Receive implements [Sink].
func (p *Printer) Receive(b Batch) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range b.Spans {
		t := p.waiting(s.TraceID, now)
		if t == nil || len(t.spans) >= maxSpansPerTrace {
			p.missed++
			continue
		}
		t.spans = append(t.spans, s)
		t.rooted = t.rooted || !s.ParentID.IsValid() || s.Flags&isRemoteParent == isRemoteParent
	}
	for _, l := range b.Logs {
		if !l.TraceID.IsValid() {
			p.logs = p.bounded(p.logs, l)
			continue
		}
		t := p.waiting(l.TraceID, now)
		if t == nil || len(t.logs) >= maxSpansPerTrace {
			p.missed++
			continue
		}
		t.logs = append(t.logs, l)
	}
	for _, pt := range b.Points {
		if len(p.points) >= maxLines {
			p.missed++
			continue
		}
		p.points = append(p.points, pt)
	}
}

func (p *Printer) bounded(logs []Log, l Log) []Log {
	if len(logs) >= maxLines {
		p.missed++
		return logs
	}
	return append(logs, l)
}

// waiting returns the trace that waits under id, nil if there is no room.
func (p *Printer) waiting(id trace.TraceID, now time.Time) *pendingTrace {
	t := p.pending[id]
	if t == nil {
		if len(p.pending) >= maxPending {
			return nil
		}
		t = &pendingTrace{}
		p.pending[id] = t
	}
	t.last = now
	return t
}

// Run prints until ctx ends, then prints what is left.
func (p *Printer) Run(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			if err := p.print(now, false); err != nil {
				return err
			}
		case <-ctx.Done():
			return p.Flush()
		}
	}
}

// Flush prints everything that waits.
func (p *Printer) Flush() error { return p.print(time.Now(), true) }

// print writes the traces that have settled, or all of them.
func (p *Printer) print(now time.Time, all bool) error {
	r := renderer{colour: p.opts.Colour, utc: p.opts.UTC}
	p.mu.Lock()
	ready := p.take(now, all)
	logs, points, missed := p.logs, p.points, p.missed
	p.logs, p.points, p.missed = nil, nil, 0
	p.mu.Unlock()

	slices.SortFunc(ready, byStart)
	for _, t := range ready {
		if p.admit(now, &r) {
			r.tree(t)
		}
	}
	if all {
		p.sayHidden(&r)
	}
	for i := range logs {
		r.looseLog(&logs[i])
	}
	for i := range points {
		r.point(&points[i])
	}
	if missed > 0 {
		fmt.Fprintf(&r.b, "%s\n", r.in(yellow, fmt.Sprintf("… %d items more than this view can hold", missed)))
	}
	if r.b.Len() == 0 {
		return nil
	}
	if _, err := io.WriteString(p.w, r.b.String()); err != nil {
		return fmt.Errorf("print traces: %w", err)
	}
	return nil
}

// take removes the traces that are ready and joins them. The lock is held.
func (p *Printer) take(now time.Time, all bool) []tree {
	var ready []tree
	for id, t := range p.pending {
		wait := settledNoRoot
		if t.rooted {
			wait = settled
		}
		if !all && now.Sub(t.last) < wait {
			continue
		}
		delete(p.pending, id)
		ready = append(ready, buildTree(id, t.spans, t.logs))
	}
	return ready
}

// admit counts a trace against the limit of the current second. Only print calls
// it, one at a time.
func (p *Printer) admit(now time.Time, r *renderer) bool {
	if now.Sub(p.window) >= time.Second {
		p.window, p.shown = now, 0
		p.sayHidden(r)
	}
	if p.shown >= p.opts.PerSecond {
		p.skipped++
		return false
	}
	p.shown++
	return true
}

func (p *Printer) sayHidden(r *renderer) {
	if p.skipped == 0 {
		return
	}
	fmt.Fprintf(&r.b, "%s\n", r.in(yellow, fmt.Sprintf("… and %d more traces", p.skipped)))
	p.skipped = 0
}

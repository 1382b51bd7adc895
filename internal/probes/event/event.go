// Package event holds what the probes hand to the exporter: spans, log records
// and metric points of instrumented processes. It is plain data: it knows
// neither the kernel that the data comes from nor the wire that it leaves by.
//
// Values are built once by internal/probes, handed over in batches through a
// [Sink], and not written to afterwards by either side.
package event

import (
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/log"
	"go.opentelemetry.io/otel/trace"
)

// Process is one instrumented process. All telemetry of a process shares one
// *Process, so the exporter may use the pointer as a key.
type Process struct {
	PID       int    // in the agent's PID namespace
	StartTime uint64 // clock ticks since boot, field 22 of /proc/PID/stat; with PID it is unique
	Exe       string // path of the executable as the process sees it

	// Resource is the OpenTelemetry resource: service.*, process.*,
	// container.*, k8s.*, telemetry.*.
	Resource []attribute.KeyValue
}

// Scope is the instrumentation scope, one for each instrumented library.
type Scope struct {
	Name    string // "github.com/plainframework/agent/net/http"
	Version string // version of the agent
}

// Span is one finished operation.
type Span struct {
	Process *Process
	Scope   *Scope

	TraceID    trace.TraceID
	SpanID     trace.SpanID
	ParentID   trace.SpanID // zero for a root
	Flags      trace.TraceFlags
	TraceState string // W3C tracestate, as received
	// RemoteParent says that ParentID came over the wire.
	RemoteParent bool

	Kind       trace.SpanKind
	Name       string
	Start, End int64 // Unix time, ns

	Status        codes.Code
	StatusMessage string
	Attributes    []attribute.KeyValue
	Events        []SpanEvent
	Links         []SpanLink
}

// SpanEvent is a timed event inside a span, such as an exception.
type SpanEvent struct {
	Name       string
	Time       int64 // Unix time, ns
	Attributes []attribute.KeyValue
}

// SpanLink names a span of another trace that a span has to do with.
type SpanLink struct {
	TraceID    trace.TraceID
	SpanID     trace.SpanID
	TraceState string
	Attributes []attribute.KeyValue
}

// Log is one log record.
type Log struct {
	Process *Process
	Scope   *Scope

	Time         int64 // Unix time in ns that the line itself states; 0 if it states none
	Observed     int64 // Unix time in ns at which the kernel saw the write
	Severity     log.Severity
	SeverityText string // as written in the line
	Body         string
	Attributes   []attribute.KeyValue // nested fields as maps

	// Of the span that was current on the writing goroutine; zero if none.
	TraceID trace.TraceID
	SpanID  trace.SpanID
	Flags   trace.TraceFlags
}

// Histogram is what one explicit-bucket histogram series gained since it was
// collected last (delta temporality).
type Histogram struct {
	Process *Process
	Scope   *Scope

	Name, Unit, Description string
	Attributes              []attribute.KeyValue

	Start, End int64     // Unix time, ns; End of one point is Start of the next
	Bounds     []float64 // ascending upper bounds; shared, read-only
	Counts     []uint64  // len(Bounds)+1
	Sum        float64   // in Unit
	Exemplars  []Exemplar
}

// Exemplar ties a histogram point to a trace that was exported.
type Exemplar struct {
	Time    int64 // Unix time, ns
	Value   float64
	TraceID trace.TraceID
	SpanID  trace.SpanID
}

// Number is one point of a sum or a gauge.
type Number struct {
	Process *Process // nil for the agent's own metrics
	Scope   *Scope

	Name, Unit, Description string
	Attributes              []attribute.KeyValue

	Start, End int64 // Unix time, ns
	Value      int64
	Kind       NumberKind
}

// NumberKind tells how points of a [Number] add up.
type NumberKind uint8

const (
	Counter       NumberKind = iota // monotonic, delta
	UpDownCounter                   // not monotonic, cumulative even where delta is preferred
	Gauge                           // last value
)

// Sink takes finished telemetry off the data path. Each method takes ownership
// of the slice, never blocks, and returns how many items, from the front, it
// accepted; the sink itself counts the rest as lost ("queue full").
type Sink interface {
	Spans([]Span) int
	Logs([]Log) int
	// Metrics takes one collection: what each series gained since the last one,
	// and numbers beside it.
	Metrics([]Histogram, []Number) int
}

// Settler is a Sink that tells when nothing can be lost uncounted any more.
type Settler interface {
	Sink
	// MetricsSettled is Metrics, and calls settled once each of the points has been
	// exported, is on disk, or is counted as lost: at once, if that is so, else from
	// another goroutine. If the process ends before, the points are to be collected
	// again.
	MetricsSettled(h []Histogram, n []Number, settled func()) int
}

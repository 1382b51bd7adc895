package observer

import (
	"fmt"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Attrs are attributes by key. Values are string, int64, float64, bool, []byte,
// []any or map[string]any.
type Attrs map[string]any

// Text returns a value as text, "" where the key is missing.
func (a Attrs) Text(key string) string {
	v, ok := a[key]
	if !ok {
		return ""
	}
	if s, ok := v.(string); ok {
		return s
	}
	return fmt.Sprint(v)
}

// Origin says who made an item: the resource and the instrumentation scope.
type Origin struct {
	Resource     Attrs // shared by all items of one resource; read-only
	Scope        string
	ScopeVersion string
}

// Service is the resource's service.name.
func (o Origin) Service() string { return o.Resource.Text("service.name") }

// Span is one span as it was received.
type Span struct {
	Origin

	TraceID    trace.TraceID
	SpanID     trace.SpanID
	ParentID   trace.SpanID // zero for a root
	Flags      uint32       // as in OTLP: W3C flags and the remote-parent bits
	TraceState string

	Kind       trace.SpanKind
	Name       string
	Start, End time.Time
	Attrs      Attrs
	Events     []Event

	Status        codes.Code
	StatusMessage string
	Received      time.Time
}

// Duration is End - Start.
func (s Span) Duration() time.Duration { return s.End.Sub(s.Start) }

// Event is a timed event inside a span.
type Event struct {
	Name  string
	Time  time.Time
	Attrs Attrs
}

// Log is one log record as it was received.
type Log struct {
	Origin

	Time, Observed time.Time // Time is zero where the record states none
	Severity       int       // OTLP severity number
	SeverityText   string
	Body           any // as the values of [Attrs]
	Attrs          Attrs

	TraceID  trace.TraceID
	SpanID   trace.SpanID
	Flags    uint32
	Received time.Time
}

// when is the record's own time, or else the time it was seen.
func (l Log) when() time.Time {
	if l.Time.IsZero() {
		return l.Observed
	}
	return l.Time
}

// PointKind is the kind of metric that a point belongs to.
type PointKind uint8

const (
	GaugePoint     PointKind = iota // Value is the last value
	SumPoint                        // Value adds up
	HistogramPoint                  // Count, Sum, Bounds and Buckets are set
)

// Point is one point of a metric, as it was received.
type Point struct {
	Origin

	Name, Unit string
	Kind       PointKind
	Delta      bool // delta temporality; else cumulative
	Monotonic  bool
	Attrs      Attrs
	Start, End time.Time

	Value float64 // sums and gauges

	Count     uint64
	Sum       float64 // in Unit
	Bounds    []float64
	Buckets   []uint64
	Exemplars []Exemplar
}

// Exemplar ties a histogram point to a trace.
type Exemplar struct {
	Time    time.Time
	Value   float64
	TraceID trace.TraceID
	SpanID  trace.SpanID
}

// Request is one request as the receiver saw it.
type Request struct {
	Path     string
	Encoding string // Content-Encoding
	Auth     string // Authorization
	Wire     int    // bytes of the body as sent
	Items    int    // spans, records or points in it; 0 for a refused request
	Status   int    // answer; 0 for a connection that was closed on purpose
	Received time.Time
}

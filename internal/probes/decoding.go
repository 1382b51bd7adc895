package probes

import (
	"strings"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/sqltext"
)

// attributeSlab is how many attributes are allocated at once.
const attributeSlab = 4096

// decoding is what decoders share. One goroutine, the reader's, uses it.
type decoding struct {
	target  *target
	sql     *sqltext.Cache
	systems map[string]string // driver type → db.system.name
	names   map[nameKey]string
	scopes  map[event.Scope]*event.Scope // that programs have named
	own     bool                         // the program has made the span itself

	threshold  string // ot=th of sampled spans, "" unless sampling is consistent
	keepErrors bool   // failed local roots are kept, sampled or not

	attributes []attribute.KeyValue // of all spans of a slab
	mark       int                  // where those of the current span begin

	offset   int64 // Unix time minus CLOCK_MONOTONIC, ns
	offsetAt time.Time
}

type nameKey struct{ method, route string }

func newDecoding() *decoding {
	return &decoding{
		sql: sqltext.New(4096), systems: map[string]string{}, names: map[nameKey]string{},
		scopes: map[event.Scope]*event.Scope{},
	}
}

// syncClock follows adjustments of the wall clock. What may be the doubt of the reading
// alone is none: it would move a child out of its parent that was decoded before.
func (d *decoding) syncClock() {
	now := time.Now()
	if now.Sub(d.offsetAt) <= time.Second {
		return
	}
	d.offsetAt = now
	if offset, doubt := wallOffset(); offset-d.offset > 2*doubt || d.offset-offset > 2*doubt {
		d.offset = offset
	}
}

// begin fills in what every record has.
func (d *decoding) begin(h *bpf.AgentRecordHeader, t *target, span *event.Span) {
	const maxAttributes = 32 // of one span
	if cap(d.attributes)-len(d.attributes) < maxAttributes {
		d.attributes = make([]attribute.KeyValue, 0, attributeSlab)
	}
	d.target, d.mark, d.own = t, len(d.attributes), false
	span.TraceID = trace.TraceID(h.TraceId)
	span.SpanID = trace.SpanID(h.SpanId)
	span.ParentID = trace.SpanID(h.ParentId)
	flags := bpf.AgentSpanFlags(h.Flags)
	span.Flags = trace.FlagsSampled
	if flags&bpf.AgentSpanFlagsSPAN_RANDOM != 0 {
		span.Flags |= flagRandom
	}
	span.RemoteParent = flags&bpf.AgentSpanFlagsSPAN_REMOTE_PARENT != 0
	span.Start = int64(h.StartNs) + d.offset
	span.End = int64(h.EndNs) + d.offset
	if reason := keptBecause(flags); reason != "" {
		d.str("sampling.reason", reason)
	}
	if flags&bpf.AgentSpanFlagsSPAN_CUT_OFF != 0 {
		d.str("span.end_reason", "max_duration")
	}
}

// flagRandom is the W3C flag that says that the trace id is random.
const flagRandom trace.TraceFlags = 0x02

// keptBecause is why a span was kept whose trace is not sampled, "" if it is. Whoever
// extrapolates counts from sampled traces leaves those with a reason out.
func keptBecause(flags bpf.AgentSpanFlags) string {
	switch {
	case flags&bpf.AgentSpanFlagsSPAN_KEPT_ERROR != 0:
		return "error"
	case flags&bpf.AgentSpanFlagsSPAN_KEPT_SLOW != 0:
		return "slow"
	}
	return ""
}

// end completes what decoders left.
func (d *decoding) end(span *event.Span, flags bpf.AgentSpanFlags) {
	if d.threshold != "" {
		span.TraceState = withThreshold(span.TraceState, d.thresholdOf(span, flags))
	}
	span.Attributes = d.attributes[d.mark:len(d.attributes):len(d.attributes)]
}

// thresholdOf is the th that makes counts extrapolated from spans right, "" where the
// probability is not known. While every failed local root is kept, sampled or not, each
// stands for itself: 0. Its children are not: those of sampled traces stand for all, so
// those of kept ones must not count.
func (d *decoding) thresholdOf(span *event.Span, flags bpf.AgentSpanFlags) string {
	kept := keptBecause(flags)
	root := !d.own && (span.Kind == trace.SpanKindServer || !span.ParentID.IsValid())
	limited := flags&bpf.AgentSpanFlagsSPAN_KEPT_LIMITED != 0
	switch {
	case root && !limited && d.keepErrors && span.Status == codes.Error:
		return "0"
	case kept != "", flags&bpf.AgentSpanFlagsSPAN_REMOTE_LIMITED != 0:
		return ""
	}
	return d.threshold
}

func (d *decoding) str(key attribute.Key, value string) {
	d.attributes = append(d.attributes, attribute.KeyValue{Key: key, Value: attribute.StringValue(value)})
}

func (d *decoding) num(key attribute.Key, value int64) {
	d.attributes = append(d.attributes, attribute.KeyValue{Key: key, Value: attribute.Int64Value(value)})
}

// add appends attributes, however many there are.
func (d *decoding) add(attrs []attribute.KeyValue) {
	if cap(d.attributes)-len(d.attributes) < len(attrs) {
		some := append(make([]attribute.KeyValue, 0, attributeSlab), d.attributes[d.mark:]...)
		d.attributes, d.mark = some, 0
	}
	d.attributes = append(d.attributes, attrs...)
}

// join is method + " " + route. Both are few; a program that makes up more only loses
// the cache.
func (d *decoding) join(method, route string) string {
	key := nameKey{method, route}
	name, ok := d.names[key]
	if !ok {
		if len(d.names) > 4096 {
			clear(d.names)
		}
		name = method + " " + route
		d.names[nameKey{strings.Clone(method), strings.Clone(route)}] = name
	}
	return name
}

// typeName is the Go type at an address of the target's binary, with its package's
// path; "" if unknown.
func (d *decoding) typeName(addr uint64) string { return d.target.binary.typeName(addr) }

// errorType is how %T prints a type: with its package's name instead of the path.
func (d *decoding) errorType(addr uint64) string {
	name := d.typeName(addr)
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		pointer := name[:len(name)-len(strings.TrimLeft(name, "*"))]
		return pointer + name[i+1:]
	}
	return name
}

// validText copies bytes of the target into a string that is valid UTF-8.
func validText(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}

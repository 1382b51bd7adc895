package observer

import (
	"time"

	collogspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// maxDepth bounds the nesting of attribute values; what is deeper is dropped.
const maxDepth = 16

func decodeSpans(req *coltracepb.ExportTraceServiceRequest, now time.Time) []Span {
	var out []Span
	for _, rs := range req.GetResourceSpans() {
		res := resource(rs.GetResource())
		for _, ss := range rs.GetScopeSpans() {
			from := origin(res, ss.GetScope())
			for _, s := range ss.GetSpans() {
				out = append(out, span(from, s, now))
			}
		}
	}
	return out
}

func span(from Origin, s *tracepb.Span, now time.Time) Span {
	out := Span{
		Origin:        from,
		TraceID:       traceID(s.GetTraceId()),
		SpanID:        spanID(s.GetSpanId()),
		ParentID:      spanID(s.GetParentSpanId()),
		Flags:         s.GetFlags(),
		TraceState:    s.GetTraceState(),
		Kind:          trace.SpanKind(s.GetKind()), // the numbers agree, from "internal" on
		Name:          s.GetName(),
		Start:         nanos(s.GetStartTimeUnixNano()),
		End:           nanos(s.GetEndTimeUnixNano()),
		Attrs:         attrs(s.GetAttributes()),
		StatusMessage: s.GetStatus().GetMessage(),
		Received:      now,
	}
	switch s.GetStatus().GetCode() {
	case tracepb.Status_STATUS_CODE_OK:
		out.Status = codes.Ok
	case tracepb.Status_STATUS_CODE_ERROR:
		out.Status = codes.Error
	}
	for _, e := range s.GetEvents() {
		out.Events = append(out.Events, Event{Name: e.GetName(), Time: nanos(e.GetTimeUnixNano()), Attrs: attrs(e.GetAttributes())})
	}
	return out
}

func decodeLogs(req *collogspb.ExportLogsServiceRequest, now time.Time) []Log {
	var out []Log
	for _, rl := range req.GetResourceLogs() {
		res := resource(rl.GetResource())
		for _, sl := range rl.GetScopeLogs() {
			from := origin(res, sl.GetScope())
			for _, l := range sl.GetLogRecords() {
				out = append(out, logRecord(from, l, now))
			}
		}
	}
	return out
}

func logRecord(from Origin, l *logspb.LogRecord, now time.Time) Log {
	return Log{
		Origin:       from,
		Time:         nanos(l.GetTimeUnixNano()),
		Observed:     nanos(l.GetObservedTimeUnixNano()),
		Severity:     int(l.GetSeverityNumber()),
		SeverityText: l.GetSeverityText(),
		Body:         value(l.GetBody(), 0),
		Attrs:        attrs(l.GetAttributes()),
		TraceID:      traceID(l.GetTraceId()),
		SpanID:       spanID(l.GetSpanId()),
		Flags:        l.GetFlags(),
		Received:     now,
	}
}

func decodeMetrics(req *colmetricspb.ExportMetricsServiceRequest) []Point {
	var out []Point
	for _, rm := range req.GetResourceMetrics() {
		res := resource(rm.GetResource())
		for _, sm := range rm.GetScopeMetrics() {
			from := origin(res, sm.GetScope())
			for _, m := range sm.GetMetrics() {
				out = append(out, points(from, m)...)
			}
		}
	}
	return out
}

// points returns the points of a gauge, a sum or an explicit-bucket histogram;
// the agent sends no other kind.
func points(from Origin, m *metricspb.Metric) []Point {
	base := Point{Origin: from, Name: m.GetName(), Unit: m.GetUnit()}
	var out []Point
	number := func(p *metricspb.NumberDataPoint) {
		pt := base
		pt.Attrs, pt.Start, pt.End = attrs(p.GetAttributes()), nanos(p.GetStartTimeUnixNano()), nanos(p.GetTimeUnixNano())
		pt.Value = p.GetAsDouble()
		if v, ok := p.GetValue().(*metricspb.NumberDataPoint_AsInt); ok {
			pt.Value = float64(v.AsInt)
		}
		out = append(out, pt)
	}
	const delta = metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA
	switch {
	case m.GetGauge() != nil:
		for _, p := range m.GetGauge().GetDataPoints() {
			number(p)
		}
	case m.GetSum() != nil:
		base.Kind, base.Monotonic = SumPoint, m.GetSum().GetIsMonotonic()
		base.Delta = m.GetSum().GetAggregationTemporality() == delta
		for _, p := range m.GetSum().GetDataPoints() {
			number(p)
		}
	case m.GetHistogram() != nil:
		base.Kind = HistogramPoint
		base.Delta = m.GetHistogram().GetAggregationTemporality() == delta
		for _, p := range m.GetHistogram().GetDataPoints() {
			pt := base
			pt.Attrs, pt.Start, pt.End = attrs(p.GetAttributes()), nanos(p.GetStartTimeUnixNano()), nanos(p.GetTimeUnixNano())
			pt.Count, pt.Sum, pt.Bounds, pt.Buckets = p.GetCount(), p.GetSum(), p.GetExplicitBounds(), p.GetBucketCounts()
			for _, e := range p.GetExemplars() {
				pt.Exemplars = append(pt.Exemplars, Exemplar{Time: nanos(e.GetTimeUnixNano()), Value: e.GetAsDouble(),
					TraceID: traceID(e.GetTraceId()), SpanID: spanID(e.GetSpanId())})
			}
			out = append(out, pt)
		}
	}
	return out
}

func resource(r *resourcepb.Resource) Attrs { return attrs(r.GetAttributes()) }

func origin(res Attrs, scope *commonpb.InstrumentationScope) Origin {
	return Origin{Resource: res, Scope: scope.GetName(), ScopeVersion: scope.GetVersion()}
}

func attrs(kvs []*commonpb.KeyValue) Attrs { return nested(kvs, 0) }

func nested(kvs []*commonpb.KeyValue, depth int) map[string]any {
	out := make(map[string]any, len(kvs))
	for _, kv := range kvs {
		out[kv.GetKey()] = value(kv.GetValue(), depth)
	}
	return out
}

func value(v *commonpb.AnyValue, depth int) any {
	if depth >= maxDepth {
		return nil
	}
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_BoolValue:
		return v.BoolValue
	case *commonpb.AnyValue_IntValue:
		return v.IntValue
	case *commonpb.AnyValue_DoubleValue:
		return v.DoubleValue
	case *commonpb.AnyValue_BytesValue:
		return v.BytesValue
	case *commonpb.AnyValue_ArrayValue:
		out := make([]any, 0, len(v.ArrayValue.GetValues()))
		for _, e := range v.ArrayValue.GetValues() {
			out = append(out, value(e, depth+1))
		}
		return out
	case *commonpb.AnyValue_KvlistValue:
		return nested(v.KvlistValue.GetValues(), depth+1)
	}
	return nil
}

// traceID and spanID give the zero id for bytes of a wrong length.
func traceID(b []byte) (id trace.TraceID) {
	if len(b) == len(id) {
		copy(id[:], b)
	}
	return id
}

func spanID(b []byte) (id trace.SpanID) {
	if len(b) == len(id) {
		copy(id[:], b)
	}
	return id
}

func nanos(ns uint64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(ns))
}

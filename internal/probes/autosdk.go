package probes

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/gobin"
)

const (
	autoSDK   = "go.opentelemetry.io/auto/sdk"
	autoStart = autoSDK + ".(*tracer).start"
	autoSpan  = autoSDK + ".span"
	autoData  = autoSDK + "/internal/telemetry.Span"
)

// autoSpans are the spans that programs make by hand with OpenTelemetry's SDK for such
// agents as this one; bpf/autosdk.bpf.c says how they are seen. OpenTelemetry's API links
// it into every program from 1.33 on, so that it is there does not mean that it is used.
var autoSpans = library{
	name: autoSDK,
	groups: []group{{
		name: "spans made by hand",
		when: func(b *gobin.Binary) bool { return has(b, autoStart) },
		hooks: []hook{
			{program: "autosdk_ended", sites: entry(autoSDK + ".(*span).ended")},
			{program: "autosdk_start", sites: entry(autoStart)},
		},
	}},
	layoutMap: "autosdk_layouts",
	layout: func(l *layouts) any {
		return &bpf.AgentAutosdkLayout{
			SpanData: l.offset(autoSpan, "span"),
			DataName: l.offset(autoData, "Name"),
			DataKind: l.offset(autoData, "Kind"),
		}
	},
	records: map[uint32]decoder{
		uint32(bpf.AgentAutosdkKindRECORD_AUTO_SPAN): decodeAutoSpan,
	},
}

// Bounds on what a program can make of its spans. The kernel hands over 32 KiB at most.
const (
	maxAutoScopes = 1024 // of all programs; more have the library's
	maxAutoDepth  = 8    // of nested values
	maxAutoList   = 1024 // elements of one list or map
	maxJSONDepth  = 64
	// A span's own times are taken where they differ by more than this from when it was
	// seen to begin or end: the program has set them. (ns)
	autoTimesDiffer = 10_000_000
)

// decodeAutoSpan makes a span of the JSON that the program has made of its own. Where there
// is none, for the span was too long or only remembered for a trace that is kept late,
// it has a name, its times, and a kind.
func decodeAutoSpan(d *decoding, raw []byte, span *event.Span) error {
	r, payload, err := recordAs[bpf.AgentAutosdkRecord](raw)
	if err != nil {
		return err
	}
	d.own = true
	name := make([]byte, 0, len(r.Body.Name))
	for _, c := range r.Body.Name[:min(int(r.Body.NameLen), len(r.Body.Name))] {
		name = append(name, byte(c))
	}
	span.Name, span.Kind = validText(name), autoKind(int32(r.Body.SpanKind))
	if r.Body.TextLen == 0 {
		span.Name = orUnnamed(span.Name)
		return nil
	}
	if int64(r.Body.TextLen) > int64(len(payload)) {
		return fmt.Errorf("a span of %d bytes in a record of %d", r.Body.TextLen, len(payload))
	}
	var traces tracepb.TracesData
	options := protojson.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: maxJSONDepth}
	if err := options.Unmarshal(payload[:r.Body.TextLen], &traces); err != nil {
		return fmt.Errorf("a span's JSON: %w", err)
	}
	for _, rs := range traces.ResourceSpans {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				d.autoSpan(span, s)
				span.Scope = d.autoScope(ss.GetScope(), span.Scope)
				return nil
			}
		}
	}
	return fmt.Errorf("a span's JSON has no span in it")
}

// autoSpan fills in what the program says. Ids are ours: the program has none.
func (d *decoding) autoSpan(span *event.Span, s *tracepb.Span) {
	span.Name, span.Kind = orUnnamed(s.GetName()), autoKind(int32(s.GetKind()))
	span.Start = autoTime(span.Start, s.GetStartTimeUnixNano())
	span.End = max(autoTime(span.End, s.GetEndTimeUnixNano()), span.Start)
	switch s.GetStatus().GetCode() {
	case tracepb.Status_STATUS_CODE_OK:
		span.Status = codes.Ok
	case tracepb.Status_STATUS_CODE_ERROR:
		span.Status, span.StatusMessage = codes.Error, s.GetStatus().GetMessage()
	}
	d.add(autoAttributes(s.GetAttributes()))
	for _, e := range s.GetEvents() {
		at := int64(e.GetTimeUnixNano())
		if at <= 0 { // the SDK knows no time but one that it is given
			at = span.End
		}
		span.Events = append(span.Events, event.SpanEvent{Name: e.GetName(), Time: at, Attributes: autoAttributes(e.GetAttributes())})
	}
	for _, l := range s.GetLinks() {
		link := event.SpanLink{TraceState: l.GetTraceState(), Attributes: autoAttributes(l.GetAttributes())}
		if autoID(link.TraceID[:], l.GetTraceId()) && autoID(link.SpanID[:], l.GetSpanId()) && link.TraceID.IsValid() && link.SpanID.IsValid() {
			span.Links = append(span.Links, link)
		}
	}
}

func orUnnamed(name string) string {
	if name == "" {
		return "unnamed"
	}
	return name
}

func autoKind(kind int32) trace.SpanKind {
	return trace.ValidateSpanKind(trace.SpanKind(kind)) // its numbers are those of OTLP
}

// autoTime is when a span was seen to begin or end, unless the program says otherwise.
func autoTime(seen int64, said uint64) int64 {
	if t := int64(said); t > 0 && (t-seen > autoTimesDiffer || seen-t > autoTimesDiffer) {
		return t
	}
	return seen
}

// autoID undoes that protojson takes the hexadecimal digits of an id for base64.
func autoID(id, decoded []byte) bool {
	text := base64.StdEncoding.EncodeToString(decoded)
	if len(text) != 2*len(id) {
		return false
	}
	_, err := hex.Decode(id, []byte(text))
	return err == nil
}

// autoScope is the instrumentation scope that the program has named, one for all of its
// spans; other where it has named none.
func (d *decoding) autoScope(s *commonpb.InstrumentationScope, other *event.Scope) *event.Scope {
	key := event.Scope{Name: s.GetName(), Version: s.GetVersion()}
	if key.Name == "" {
		return other
	}
	if scope := d.scopes[key]; scope != nil {
		return scope
	}
	if len(d.scopes) >= maxAutoScopes {
		return other
	}
	scope := &event.Scope{Name: strings.Clone(key.Name), Version: strings.Clone(key.Version)}
	d.scopes[*scope] = scope
	return scope
}

func autoAttributes(list []*commonpb.KeyValue) []attribute.KeyValue {
	attrs := make([]attribute.KeyValue, 0, len(list))
	for _, kv := range list {
		if kv.GetKey() != "" {
			attrs = append(attrs, attribute.KeyValue{Key: attribute.Key(kv.GetKey()), Value: autoValue(kv.GetValue(), 0)})
		}
	}
	return attrs
}

func autoValue(v *commonpb.AnyValue, depth int) attribute.Value {
	if depth > maxAutoDepth {
		return attribute.Value{}
	}
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return attribute.StringValue(v.StringValue)
	case *commonpb.AnyValue_BoolValue:
		return attribute.BoolValue(v.BoolValue)
	case *commonpb.AnyValue_IntValue:
		return attribute.Int64Value(v.IntValue)
	case *commonpb.AnyValue_DoubleValue:
		return attribute.Float64Value(v.DoubleValue)
	case *commonpb.AnyValue_BytesValue:
		return attribute.ByteSliceValue(v.BytesValue)
	case *commonpb.AnyValue_ArrayValue:
		values := []attribute.Value{}
		for _, e := range firstOfMany(v.ArrayValue.GetValues()) {
			values = append(values, autoValue(e, depth+1))
		}
		return attribute.SliceValue(values...)
	case *commonpb.AnyValue_KvlistValue:
		values := []attribute.KeyValue{}
		for _, kv := range firstOfMany(v.KvlistValue.GetValues()) {
			values = append(values, attribute.KeyValue{Key: attribute.Key(kv.GetKey()), Value: autoValue(kv.GetValue(), depth+1)})
		}
		return attribute.MapValue(values...)
	}
	return attribute.Value{}
}

func firstOfMany[T any](list []T) []T { return list[:min(len(list), maxAutoList)] }

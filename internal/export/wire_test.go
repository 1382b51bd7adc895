package export

import (
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/plainframework/agent/internal/probes/event"
)

// decodeSpans reads what appendSpan wrote, with the protobuf library.
func decodeSpans(t *testing.T, b []byte) []*tracepb.Span {
	t.Helper()
	var ss tracepb.ScopeSpans
	if err := proto.Unmarshal(b, &ss); err != nil {
		t.Fatalf("not a valid ScopeSpans: %v", err)
	}
	noUnknown(t, &ss)
	return ss.Spans
}

// noUnknown fails if any field was written under a number that OTLP does not
// have.
func noUnknown(t *testing.T, m proto.Message) {
	t.Helper()
	again, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		t.Errorf("unknown fields in %s", m.ProtoReflect().Descriptor().FullName())
	}
	known := proto.Clone(m)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(again, known); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(m, known) {
		t.Error("unknown fields below")
	}
}

func str(s string) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s}}
}

func num(n int64) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: n}}
}

func list(values ...*commonpb.AnyValue) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: values}}}
}

func TestAppendSpan(t *testing.T) {
	long := strings.Repeat("x", 300)
	span := event.Span{
		TraceID: trace.TraceID{1, 2, 15: 3}, SpanID: trace.SpanID{4, 7: 5}, ParentID: trace.SpanID{6},
		Flags: 3, TraceState: "a=b,c=d", RemoteParent: true,
		Kind: trace.SpanKindServer, Name: "GET /items/{id}", Start: 1_700_000_000_123_456_789, End: 1_700_000_001_000_000_000,
		Status: codes.Error, StatusMessage: "boom",
		Attributes: []attribute.KeyValue{
			attribute.String("s", "v"), attribute.String("empty", ""), attribute.String("long", long), attribute.String(long, "v"),
			attribute.Int("zero", 0), attribute.Int("i", 200), attribute.Int64("neg", -1), attribute.Int64("max", math.MaxInt64),
			attribute.Bool("t", true), attribute.Bool("f", false), attribute.Float64("d", 1.5), attribute.Float64("nan", math.Inf(1)),
			attribute.StringSlice("ss", []string{"a", "", long}), attribute.Int64Slice("is", []int64{1, -1}),
			attribute.BoolSlice("bs", []bool{true, false}), attribute.Float64Slice("ds", []float64{2.5}),
			attribute.StringSlice("none", nil),
			{Key: "map", Value: attribute.MapValue(attribute.String("k", long), attribute.KeyValue{Key: "in", Value: attribute.MapValue(attribute.Int("n", 7))})},
			{Key: "nothing"},
		},
		Events: []event.SpanEvent{{Name: "exception", Time: 42, Attributes: []attribute.KeyValue{attribute.String("exception.type", "*errors.errorString")}}},
		Links:  []event.SpanLink{{TraceID: trace.TraceID{7}, SpanID: trace.SpanID{8}, TraceState: "e=f", Attributes: []attribute.KeyValue{attribute.Int("i", 9)}}, {}},
	}
	kv := func(k string, v *commonpb.AnyValue) *commonpb.KeyValue { return &commonpb.KeyValue{Key: k, Value: v} }
	boolean := func(v bool) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: v}}
	}
	double := func(v float64) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: v}}
	}
	mapv := func(values ...*commonpb.KeyValue) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_KvlistValue{KvlistValue: &commonpb.KeyValueList{Values: values}}}
	}
	want := &tracepb.Span{
		TraceId: span.TraceID[:], SpanId: span.SpanID[:], ParentSpanId: span.ParentID[:], TraceState: "a=b,c=d",
		Name: span.Name, Kind: tracepb.Span_SPAN_KIND_SERVER,
		StartTimeUnixNano: 1_700_000_000_123_456_789, EndTimeUnixNano: 1_700_000_001_000_000_000,
		Attributes: []*commonpb.KeyValue{
			kv("s", str("v")), kv("empty", str("")), kv("long", str(long)), kv(long, str("v")),
			kv("zero", num(0)), kv("i", num(200)), kv("neg", num(-1)), kv("max", num(math.MaxInt64)),
			kv("t", boolean(true)), kv("f", boolean(false)), kv("d", double(1.5)), kv("nan", double(math.Inf(1))),
			kv("ss", list(str("a"), str(""), str(long))), kv("is", list(num(1), num(-1))),
			kv("bs", list(boolean(true), boolean(false))), kv("ds", list(double(2.5))), kv("none", list()),
			kv("map", mapv(kv("in", mapv(kv("n", num(7)))), kv("k", str(long)))), // sorted by attribute.MapValue
			kv("nothing", &commonpb.AnyValue{}),
		},
		Events: []*tracepb.Span_Event{{TimeUnixNano: 42, Name: "exception", Attributes: []*commonpb.KeyValue{kv("exception.type", str("*errors.errorString"))}}},
		Links: []*tracepb.Span_Link{
			{TraceId: append([]byte{7}, make([]byte, 15)...), SpanId: append([]byte{8}, make([]byte, 7)...), TraceState: "e=f", Attributes: []*commonpb.KeyValue{kv("i", num(9))}},
			{TraceId: make([]byte, 16), SpanId: make([]byte, 8)},
		},
		Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "boom"},
		Flags:  0x303,
	}
	small := event.Span{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, Kind: trace.SpanKindClient, Name: "SELECT", Status: codes.Ok, Flags: 1}
	wantSmall := &tracepb.Span{TraceId: small.TraceID[:], SpanId: small.SpanID[:], Name: "SELECT", Kind: tracepb.Span_SPAN_KIND_CLIENT,
		Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_OK}, Flags: 0x101}

	got := decodeSpans(t, appendSpan(appendSpan(nil, &span), &small))
	if len(got) != 2 {
		t.Fatalf("%d spans", len(got))
	}
	if !proto.Equal(got[0], want) {
		t.Errorf("got  %v\nwant %v", got[0], want)
	}
	if !proto.Equal(got[1], wantSmall) {
		t.Errorf("got  %v\nwant %v", got[1], wantSmall)
	}
}

func TestAppendSpanBounds(t *testing.T) {
	var attrs []attribute.KeyValue
	for range maxAttributes + 5 {
		attrs = append(attrs, attribute.Int("a", 1))
	}
	deep := attribute.StringValue("bottom")
	for range 100 {
		deep = attribute.MapValue(attribute.KeyValue{Key: "d", Value: deep})
	}
	span := event.Span{
		Name: strings.Repeat("é", maxString), TraceState: "\xff\xfe", Attributes: attrs,
		Events: make([]event.SpanEvent, maxEvents+3), Links: make([]event.SpanLink, maxLinks+2),
	}
	odd := event.Span{Name: "bad \xff utf-8", Attributes: []attribute.KeyValue{
		attribute.String("k\xc3", "v\xe2\x82"), {Key: "deep", Value: deep},
		attribute.StringSlice("many", make([]string, maxElements+1)),
	}}
	got := decodeSpans(t, appendSpan(appendSpan(nil, &span), &odd))
	if n := len(got[0].Name); n > maxString || n < maxString-3 || !utf8.ValidString(got[0].Name) {
		t.Errorf("name of %d bytes", n)
	}
	if len(got[0].Attributes) != maxAttributes || got[0].DroppedAttributesCount != 5 {
		t.Errorf("%d attributes, %d dropped", len(got[0].Attributes), got[0].DroppedAttributesCount)
	}
	if len(got[0].Events) != maxEvents || got[0].DroppedEventsCount != 3 {
		t.Errorf("%d events, %d dropped", len(got[0].Events), got[0].DroppedEventsCount)
	}
	if len(got[0].Links) != maxLinks || got[0].DroppedLinksCount != 2 {
		t.Errorf("%d links, %d dropped", len(got[0].Links), got[0].DroppedLinksCount)
	}
	if got[1].Name != "bad \uFFFD utf-8" || got[1].Attributes[0].Key != "k\uFFFD" || got[1].Attributes[0].Value.GetStringValue() != "v\uFFFD" {
		t.Errorf("invalid UTF-8: %v", got[1])
	}
	if n := len(got[1].Attributes[2].Value.GetArrayValue().Values); n != maxElements {
		t.Errorf("%d elements", n)
	}
	depth := 0
	for v := got[1].Attributes[1].Value; v.GetKvlistValue() != nil; v = v.GetKvlistValue().Values[0].Value {
		depth++
	}
	if depth != maxDepth+1 {
		t.Errorf("depth %d", depth)
	}
}

func TestCleanCutsBetweenRunes(t *testing.T) {
	for _, r := range []string{"a", "é", "€", "😀", "\xff", "\xe2\x82"} {
		for shift := range 5 {
			s := cleanTo(strings.Repeat("a", shift)+strings.Repeat(r, 100), 50)
			if !utf8.ValidString(s) || len(s) > 150 || len(s) == 0 {
				t.Errorf("%q shifted by %d: %q", r, shift, s)
			}
			if utf8.ValidString(r) && (len(s) > 50 || len(s) < 47 || strings.Contains(s, "\uFFFD")) {
				t.Errorf("%q shifted by %d: %d bytes", r, shift, len(s))
			}
		}
	}
}

func FuzzAppendSpan(f *testing.F) {
	f.Add("GET /", "http.route", "/items/{id}", int64(200), uint8(2))
	f.Add("\xff", "", "\xe2\x82", int64(-1), uint8(200))
	f.Fuzz(func(t *testing.T, name, key, value string, n int64, code uint8) {
		s := event.Span{
			Name: name, TraceState: value, StatusMessage: value, Status: codes.Code(code), Start: n, End: n,
			Attributes: []attribute.KeyValue{attribute.String(key, value), attribute.Int64(key, n), attribute.StringSlice(key, []string{value, name})},
			Events:     []event.SpanEvent{{Name: name, Attributes: []attribute.KeyValue{attribute.Float64(key, float64(n))}}},
		}
		got := decodeSpans(t, appendSpan(nil, &s))
		if len(got) != 1 || got[0].Name != clean(name) || len(got[0].Attributes) != 3 || got[0].Attributes[1].Value.GetIntValue() != n {
			t.Fatalf("got %v", got)
		}
	})
}

package probes

import (
	"fmt"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/bpf"
)

// autoRecord is the record of a span whose name the kernel has read as well.
func autoRecord(json, name string) []byte {
	r := bpf.AgentAutosdkRecord{Header: bpf.AgentRecordHeader{
		Kind: uint32(bpf.AgentAutosdkKindRECORD_AUTO_SPAN), TraceId: [16]uint8{1}, SpanId: [8]uint8{2}, StartNs: 1000, EndNs: 2000,
	}}
	r.Body.TextLen, r.Body.NameLen, r.Body.SpanKind = uint32(len(json)), uint16(len(name)), uint16(trace.SpanKindConsumer)
	for i, c := range []byte(name) {
		r.Body.Name[i] = int8(c)
	}
	return append(bytesOf(&r, json), "what was in the ring before"...)
}

// autoJSON is what go.opentelemetry.io/auto/sdk 1.2.1 has written of a span.
const autoJSON = `{"resourceSpans":[{"resource":{},"scopeSpans":[{"scope":{"name":"shop/orders","version":"1.2.3"},"spans":[{"traceId":"","spanId":"","name":"pack","kind":3,` +
	`"attributes":[{"key":"items","value":{"intValue":"3"}},{"key":"tags","value":{"arrayValue":{"values":[{"stringValue":"a"},{"stringValue":"b"}]}}},{"key":"price","value":{"doubleValue":2.5}},{"key":"gift","value":{"boolValue":true}}],` +
	`"events":[{"attributes":[{"key":"by","value":{"stringValue":"eva"}}],"name":"packed","timeUnixNano":1500}],` +
	`"links":[{"traceId":"ab000000000000000000000000000001","spanId":"cd00000000000002","traceState":"v=1","attributes":[{"key":"why","value":{"stringValue":"batch"}}],"flags":1},{"traceId":"","spanId":""}],` +
	`"status":{"message":"out of paper","code":2},"startTimeUnixNano":1001,"endTimeUnixNano":99999999999}]}]}]}`

func TestDecodeAutoSpan(t *testing.T) {
	d := newDecoding()
	span, attrs, err := decodeRecord(t, d, autoRecord(autoJSON, "pack"))
	if err != nil {
		t.Fatal(err)
	}
	if span.Name != "pack" || span.Kind != trace.SpanKindClient || span.Status != codes.Error || span.StatusMessage != "out of paper" ||
		span.TraceID != (trace.TraceID{1}) || span.SpanID != (trace.SpanID{2}) || span.Scope.Name != "shop/orders" || span.Scope.Version != "1.2.3" {
		t.Errorf("%+v", span)
	}
	if span.Start != 1000 || span.End != 99999999999 {
		t.Errorf("from %d to %d: small differences are those of clocks, others the program's", span.Start, span.End)
	}
	for key, want := range map[string]string{"items": "3", "price": "2.5", "gift": "true", "tags": `["a","b"]`} {
		if attrs[key] != want {
			t.Errorf("%s = %q, want %q", key, attrs[key], want)
		}
	}
	if len(span.Events) != 1 || span.Events[0].Name != "packed" || span.Events[0].Time != 1500 || len(span.Events[0].Attributes) != 1 {
		t.Errorf("events %v", span.Events)
	}
	if len(span.Links) != 1 || span.Links[0].TraceID != (trace.TraceID{0xab, 15: 1}) || span.Links[0].SpanID != (trace.SpanID{0xcd, 7: 2}) || span.Links[0].TraceState != "v=1" {
		t.Errorf("links %v", span.Links)
	}
	again, _, err := decodeRecord(t, d, autoRecord(autoJSON, ""))
	if err != nil || again.Scope != span.Scope {
		t.Errorf("a scope of its own for each span: %v", err)
	}
}

// TestDecodeAutoSpanWithoutJSON: too long, or only remembered.
func TestDecodeAutoSpanWithoutJSON(t *testing.T) {
	for name, want := range map[string]string{"pack": "pack", "": "unnamed", "\xff": "\uFFFD"} {
		span, _, err := decodeRecord(t, newDecoding(), autoRecord("", name))
		if err != nil || span.Name != want || span.Kind != trace.SpanKindConsumer || span.Start != 1000 || span.End != 2000 {
			t.Errorf("%+v %v", span, err)
		}
	}
}

// TestDecodeAutoSpanRefuses: a program can write anything. Neither panics nor takes long.
func TestDecodeAutoSpanRefuses(t *testing.T) {
	for name, json := range map[string]string{
		"no JSON": "SELECT 1", "cut off": autoJSON[:200], "nothing": "{}", "no span": `{"resourceSpans":[{},{"scopeSpans":[{}]}]}`,
		"deep":    `{"resourceSpans":` + strings.Repeat("[", 30<<10),
		"deeper":  `{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"value":` + strings.Repeat(`{"arrayValue":{"values":[`, 1000),
		"invalid": `{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"` + "\xff" + `"}]}]}]}`,
	} {
		if span, _, err := decodeRecord(t, newDecoding(), autoRecord(json, "pack")); err == nil {
			t.Errorf("%s: %+v", name, span)
		}
	}
	r := autoRecord(autoJSON, "pack")
	if _, _, err := decodeRecord(t, newDecoding(), r[:len(r)-100]); err == nil {
		t.Error("a record whose text is longer than itself was decoded")
	}
	// A program with a scope for each span costs no memory without end.
	d := newDecoding()
	for i := range 3 * maxAutoScopes {
		json := strings.Replace(autoJSON, "shop/orders", fmt.Sprint("scope ", i), 1)
		if _, _, err := decodeRecord(t, d, autoRecord(json, "")); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.scopes) != maxAutoScopes {
		t.Errorf("%d scopes", len(d.scopes))
	}
}

package probes

import (
	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/gobin"
)

// Packages of OpenTelemetry's Go SDK.
const (
	otelTrace    = "go.opentelemetry.io/otel/trace"
	otelSDKTrace = "go.opentelemetry.io/otel/sdk/trace"
)

// otelSDK lets our spans stand down where a program has its own; bpf/sdk.bpf.c says when.
// It costs a trap for each span that the program's SDK ends.
var otelSDK = library{
	name: "opentelemetry",
	groups: []group{{
		name:  "SDK",
		when:  func(b *gobin.Binary) bool { return has(b, otelSDKTrace+".(*recordingSpan).End") },
		hooks: []hook{{program: "sdk_span_end", sites: entry(otelSDKTrace + ".(*recordingSpan).End")}},
	}},
	layoutMap: "sdk_layouts",
	layout: func(l *layouts) any {
		const span, tracer = otelSDKTrace + ".recordingSpan", otelSDKTrace + ".tracer"
		layout := &bpf.AgentSdkLayout{SpanKind: l.offset(span, "spanKind"), SpanTracer: l.offset(span, "tracer")}
		layout.TracerName = l.optional(tracer, "instrumentationLibrary.Name") // up to 1.10
		if layout.TracerName == 0 {
			layout.TracerName = l.offset(tracer, "instrumentationScope.Name")
		}
		return layout
	},
}

// sdkTypes are the types of the values by which contexts hold spans of the program's own:
// recording ones, those that only carry ids, and those of the SDK for agents. None, where a SpanContext is not laid out as the
// programs read it.
func sdkTypes(b *gobin.Binary) map[uint64]bpf.AgentTypeInfo {
	for field, want := range map[string]uint64{"traceID": 0, "spanID": 16, "traceFlags": 24} {
		if f, err := b.Field(otelTrace+".SpanContext", field); err != nil || f.Offset != want {
			return nil
		}
	}
	types := map[uint64]bpf.AgentTypeInfo{}
	if addr, err := b.TypeAddr("*" + autoSpan); err == nil {
		types[addr] = bpf.AgentTypeInfo{Role: uint32(bpf.AgentTypeRoleTYPE_AUTO_SPAN)}
	}
	for _, t := range []struct{ dynamic, structName, context, kind string }{
		{"*" + otelSDKTrace + ".recordingSpan", otelSDKTrace + ".recordingSpan", "spanContext", "spanKind"},
		{otelSDKTrace + ".nonRecordingSpan", otelSDKTrace + ".nonRecordingSpan", "sc", ""},
		{otelTrace + ".nonRecordingSpan", otelTrace + ".nonRecordingSpan", "sc", ""},
	} {
		addr, err := b.TypeAddr(t.dynamic)
		if err != nil {
			continue
		}
		f, err := b.Field(t.structName, t.context)
		if err != nil {
			continue
		}
		info := bpf.AgentTypeInfo{Role: uint32(bpf.AgentTypeRoleTYPE_SDK_SPAN), Offset: uint32(f.Offset)}
		if kind, err := b.Field(t.structName, t.kind); t.kind != "" && err == nil {
			info.Next = kind.Offset
		}
		types[addr] = info
	}
	return types
}

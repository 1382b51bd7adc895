package probes

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/gobin"
)

const (
	grpcPackage    = "google.golang.org/grpc."
	grpcTransport  = "google.golang.org/grpc/internal/transport."
	grpcStatus     = "google.golang.org/grpc/internal/status."
	grpcHandle     = grpcPackage + "(*Server).handleStream"
	grpcNewStream  = grpcPackage + "newClientStream"
	grpcWithParams = grpcPackage + "newClientStreamWithParams"

	grpcNewTransportStream = grpcTransport + "(*http2Client).NewStream"
)

// grpc is the server span and the client span of a call; bpf/grpc.bpf.c says where they
// begin and end.
var grpc = library{
	name: "google.golang.org/grpc",
	groups: []group{
		{
			name: "server",
			when: func(b *gobin.Binary) bool { return has(b, grpcHandle) },
			hooks: []hook{
				{program: "grpc_server_end", sites: firstOf(
					entry(grpcTransport+"(*http2Server).writeStatus"), // from 1.69 on
					entry(grpcTransport+"(*http2Server).WriteStatus"),
				)},
				{program: "grpc_server_begin", sites: entry(grpcHandle)},
			},
		},
		{
			name: "client",
			when: func(b *gobin.Binary) bool { return has(b, grpcNewStream) },
			hooks: []hook{
				{program: "grpc_client_end", variant: uint8(bpf.AgentGrpcEndSiteGRPC_FINISH), sites: entry(grpcPackage + "(*clientStream).finish")},
				{program: "grpc_client_end", variant: uint8(bpf.AgentGrpcEndSiteGRPC_NO_STREAM), sites: grpcNoStream},
				{program: "grpc_client_end", variant: uint8(bpf.AgentGrpcEndSiteGRPC_NO_CALL), sites: grpcError(grpcPackage+"invoke", grpcNewStream, 2), prunable: true},
				{program: "grpc_stream_opened", sites: grpcOpened},
				grpcNotResolved,
				grpcNumbered("grpc_client_numbered"),
				{program: "grpc_client_transport", sites: entry(grpcNewTransportStream), optional: true},
				{program: "grpc_client_begin", sites: entry(grpcNewStream)},
			},
		},
	},
	layoutMap: "grpc_layouts",
	layout:    grpcLayout,
	metrics: []metric{
		{
			kind: uint32(bpf.AgentGrpcKindRECORD_GRPC_SERVER), slot: 3,
			name: "rpc.server.call.duration", unit: "s",
			description: "Duration of incoming remote procedure calls.",
			bounds:      httpBounds, attributes: grpcSeries,
		},
		{
			kind: uint32(bpf.AgentGrpcKindRECORD_GRPC_CLIENT), slot: 4,
			name: "rpc.client.call.duration", unit: "s",
			description: "Duration of outgoing remote procedure calls.",
			bounds:      httpBounds, attributes: grpcSeries,
		},
	},
	records: map[uint32]decoder{
		uint32(bpf.AgentGrpcKindRECORD_GRPC_SERVER): decodeGRPC,
		uint32(bpf.AgentGrpcKindRECORD_GRPC_CLIENT): decodeGRPC,
	},
}

// Up to 1.35 newClientStream does itself what newClientStreamWithParams does later.
var (
	grpcNoStream = firstOf(
		grpcError(grpcNewStream, grpcPackage+"(*clientStream).withRetry", 0),
		grpcError(grpcWithParams, grpcPackage+"(*clientStream).withRetry", 0),
	)
	grpcOpened = firstOf(grpcStart(grpcNewStream), grpcStart(grpcWithParams))
)

// grpcNumbered is where the transport enters a stream under the number that it has just got:
// in a function literal that the caller's goroutine runs, and that lets the next waiting
// caller go. Up to 1.48 the goroutine that writes enters it, in another function literal;
// there it is where this one goes on after it took the number.
func grpcNumbered(program string) hook {
	return hook{
		program: program, variant: uint8(bpf.AgentGrpcNumberSiteGRPC_NUMBER_KEY),
		sites: grpcNumberedAt("runtime.mapassign_fast32"), optional: true,
		instead: &hook{
			program: program, variant: uint8(bpf.AgentGrpcNumberSiteGRPC_NUMBER_TAKEN),
			sites: grpcNumberedAt("runtime.newobject"), optional: true,
		},
	}
}

func grpcNumberedAt(call string) siteFinder {
	return func(b *gobin.Binary) ([]gobin.Site, error) {
		for _, f := range b.FuncsWithPrefix(grpcNewTransportStream + ".func") {
			if _, err := b.CallSite(f, gobin.Call{Callee: "runtime.selectnbsend"}); err != nil {
				continue
			}
			if site, err := b.CallSite(f, gobin.Call{Callee: call}); err == nil {
				return []gobin.Site{site}, nil
			}
		}
		return nil, errors.New(grpcNewTransportStream + " numbers its streams elsewhere")
	}
}

// grpcStart is the go statement of a function.
func grpcStart(function string) siteFinder {
	return inFunc(function, func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
		return b.CallSite(f, gobin.Call{Callee: "runtime.newproc"})
	})
}

// grpcError is where a function goes on after a call that failed: single-stepped, and
// passed by nothing else. Where other paths join there, it is the branch before.
func grpcError(function, callee string, at int) siteFinder {
	call, results := gobin.Call{Callee: callee}, inRegisters(at, at+1)
	return firstOf(
		inFunc(function, func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
			return b.ErrorPath(f, call, at, results)
		}),
		inFunc(function, func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
			return b.AfterCall(f, call, results)
		}),
	)
}

// grpcNotResolved ends calls whose target's addresses never came. What waits for them has
// a second result in later versions.
var grpcNotResolved = hook{
	program: "grpc_client_end", variant: uint8(bpf.AgentGrpcEndSiteGRPC_NOT_RESOLVED),
	sites: grpcErrorPath(grpcNewStream, grpcPackage+"(*ClientConn).waitForResolvedAddrs", 1), optional: true,
	instead: &hook{
		program: "grpc_client_end", variant: uint8(bpf.AgentGrpcEndSiteGRPC_NO_STREAM),
		sites: grpcErrorPath(grpcNewStream, grpcPackage+"(*ClientConn).waitForResolvedAddrs", 0), optional: true,
	},
}

func grpcErrorPath(function, callee string, at int) siteFinder {
	return inFunc(function, func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
		return b.ErrorPath(f, gobin.Call{Callee: callee}, at, inRegisters(at, at+1))
	})
}

func grpcLayout(l *layouts) any {
	const proto = "google.golang.org/genproto/googleapis/rpc/status.Status"
	layout := &bpf.AgentGrpcLayout{
		StatusProto:  l.offset(grpcStatus+"Status", "s"),
		ProtoCode:    l.offset(proto, "Code"),
		ProtoMessage: l.offset(proto, "Message"),
		StatusError:  l.typeAddr("*" + grpcStatus + "Error"),
	}
	if f, err := l.binary.Field(grpcStatus+"Error", "e"); err == nil { // up to 1.3x
		layout.ErrorStatus, layout.ErrorIsProto = uint32(f.Offset), 1
	} else {
		layout.ErrorStatus = l.offset(grpcStatus+"Error", "s")
	}
	if addr, err := l.binary.TypeAddr("*errors.errorString"); err == nil {
		layout.PlainError = addr
	}
	if has(l.binary, grpcHandle) {
		const value, stream = "context.valueCtx", grpcTransport + "Stream"
		layout.ServerTransport = l.typeAddr("*" + grpcTransport + "http2Server")
		layout.ValueContext = l.typeAddr("*" + value)
		layout.IncomingKey = l.typeAddr("google.golang.org/grpc/metadata.mdIncomingKey")
		layout.ValueKey, layout.ValueVal = l.offset(value, "key"), l.offset(value, "val")
		layout.StreamMethod, layout.StreamCtx = l.offset(stream, "method"), l.offset(stream, "ctx")
		// From 1.69 on; a pointer at first.
		if f, err := l.binary.Field(grpcTransport+"ServerStream", "Stream"); err == nil {
			layout.StreamBase = uint32(f.Offset)
			if strings.HasPrefix(f.Type, "*") {
				layout.StreamIndirect = 1
			}
		}
	}
	if f, err := l.field(grpcTransport+"Stream", "id"); err == nil { // up to 1.68 at 0
		layout.StreamId = f
		layout.ServerConn = l.optional(grpcTransport+"http2Server", "conn")
	}
	layout.ClientConn = l.optional(grpcTransport+"http2Client", "conn")
	layout.ClientNext = l.optional(grpcTransport+"http2Client", "nextID")
	if has(l.binary, grpcNewStream) {
		layout.ClientCc = l.offset(grpcPackage+"clientStream", "cc")
		layout.ClientDesc = l.offset(grpcPackage+"clientStream", "desc")
		layout.ConnTarget = l.offset(grpcPackage+"ClientConn", "target")
	}
	return layout
}

// grpcCodes are the names of google.golang.org/grpc/codes on the wire.
var grpcCodes = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
	"UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

// grpcOutcome takes a series' detail apart: the name of the code, and the error.type, "" if
// there was no error. To a client whatever is not OK is one; to a server only what
// went wrong on its side.
func grpcOutcome(kind uint32, detail uint64) (code, errorType string) {
	n := uint32(detail)
	code = strconv.FormatUint(uint64(n), 10)
	if int(n) < len(grpcCodes) {
		code = grpcCodes[n]
	}
	failed := n != 0
	if kind == uint32(bpf.AgentGrpcKindRECORD_GRPC_SERVER) {
		switch code {
		case "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS":
		default:
			failed = false
		}
	}
	if failed {
		errorType = code
	}
	return code, errorType
}

// grpcNoMethod is GRPC_NO_METHOD of bpf/grpc.h.
const grpcNoMethod = 1 << 32

func decodeGRPC(d *decoding, raw []byte, span *event.Span) error {
	r, payload, err := recordAs[bpf.AgentGrpcRecord](raw)
	if err != nil {
		return err
	}
	end := int(r.Body.MethodLen) + int(r.Body.MoreLen)
	if end > len(payload) {
		return fmt.Errorf("texts of %d bytes in a record of %d", end, len(payload))
	}
	method := grpcMethod(validText(payload[:r.Body.MethodLen]))
	more := validText(payload[r.Body.MethodLen:end])
	detail := r.Body.Key.Detail[0]
	d.str("rpc.system.name", "grpc")
	span.Name = method
	switch {
	case detail&grpcNoMethod != 0:
		d.str("rpc.method", "_OTHER")
		d.str("rpc.method_original", method)
		span.Name = "grpc"
	case method != "":
		d.str("rpc.method", method)
	default:
		span.Name = "grpc"
	}
	if r.Header.Kind == uint32(bpf.AgentGrpcKindRECORD_GRPC_SERVER) {
		span.Kind, span.TraceState = trace.SpanKindServer, more
	} else {
		span.Kind = trace.SpanKindClient
		d.attributes = append(d.attributes, grpcAddress(more)...)
	}
	code, errorType := grpcOutcome(r.Header.Kind, detail)
	d.str("rpc.response.status_code", code)
	if errorType != "" {
		d.str("error.type", errorType)
		span.Status = codes.Error
	}
	return nil
}

// grpcMethod drops the slash before "service/method".
func grpcMethod(path string) string { return strings.TrimPrefix(path, "/") }

// grpcSeries names the attributes of a series; its text is method and target, its extra
// the method's length.
func grpcSeries(_ *decoding, key *bpf.AgentSeriesKey, s *bpf.AgentSeries) []attribute.KeyValue {
	text, _ := textOf(s)
	at := min(int(s.Extra), len(text))
	method := grpcMethod(text[:at])
	if method == "" {
		method = "_OTHER"
	}
	code, errorType := grpcOutcome(key.Kind, key.Detail[0])
	attrs := []attribute.KeyValue{
		attribute.String("rpc.system.name", "grpc"), attribute.String("rpc.method", method),
		attribute.String("rpc.response.status_code", code),
	}
	if errorType != "" {
		attrs = append(attrs, attribute.String("error.type", errorType))
	}
	return append(attrs, grpcAddress(text[at:])...)
}

// grpcAddress is whom a client has dialed: "host:port", or a URI whose scheme says how the
// name is resolved, "dns://server/host:port", "unix:///path".
func grpcAddress(target string) []attribute.KeyValue {
	scheme, rest, ok := strings.Cut(target, ":")
	if ok {
		switch scheme {
		case "unix", "unix-abstract":
			return []attribute.KeyValue{attribute.String("server.address", strings.TrimPrefix(rest, "//"))}
		}
		if after, ok := strings.CutPrefix(rest, "//"); ok {
			_, target, _ = strings.Cut(after, "/") // behind the authority
		} else if scheme == "dns" || scheme == "passthrough" {
			target = rest
		}
	}
	name, port := splitHostPort(target)
	if name == "" {
		return nil
	}
	attrs := []attribute.KeyValue{attribute.String("server.address", name)}
	if port != 0 {
		attrs = append(attrs, attribute.Int("server.port", port))
	}
	return attrs
}

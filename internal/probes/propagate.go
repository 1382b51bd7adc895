package probes

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/gobin"
)

// Propagation says whether requests of targets are given a traceparent, and to whom they
// may tell one.
type Propagation struct {
	Headers  bool
	Messages bool           // never write to a target's memory
	Networks []netip.Prefix // of the server's address
	Names    []string       // of the host in the URL: equal, or *.example for all below example
	Dotless  bool           // hosts without a dot as well
}

const httpDial = "net/http.(*Transport).dialConn"

// propagateHTTP adds a header to requests of net/http's client; bpf/propagate.bpf.c says
// how.
var propagateHTTP = library{
	name:  "net/http/propagation",
	asked: true,
	groups: []group{{
		name: "HTTP/1.1",
		when: func(b *gobin.Binary) bool { return has(b, httpRoundTrip) },
		hooks: []hook{
			{program: "propagate_dial", sites: entry(httpDial)},
			{program: "propagate_request", sites: entry(httpConnRoundTrip)},
		},
	}},
	layoutMap: "propagate_layouts",
	layout:    propagateLayout,
}

func propagateLayout(l *layouts) any {
	const conn = "net/http.persistConn"
	return &bpf.AgentPropagateLayout{
		RequestHeader: l.offset("net/http.Request", "Header"),
		TreqRequest:   l.offset("net/http.transportRequest", "Request"),
		Conn:          l.offset(conn, "conn"),
		ConnProxy:     l.offset(conn, "cacheKey.proxy"),
		ConnScheme:    l.offset(conn, "cacheKey.scheme"),
		ConnAddr:      l.offset(conn, "cacheKey.addr"),
	}
}

const httpWriteRequest = "net/http.(*Request).write"

// propagateBuffers writes the header into a request of HTTP/1.x; bpf/propagate_write.bpf.c
// says how, for this and the following.
var propagateBuffers = library{
	name:  propagateHTTP.name,
	asked: true, written: true,
	groups: []group{{
		name:  "buffer of HTTP/1.1",
		when:  func(b *gobin.Binary) bool { return has(b, httpRoundTrip) },
		hooks: []hook{{program: "propagate_header", sites: everyCall(httpWriteRequest, "net/http.Header.writeSubset")}},
	}},
	layoutMap: "propagate_buffers",
	layout: func(l *layouts) any {
		const writer = "bufio.Writer"
		return &bpf.AgentPropagateBufferLayout{
			Type: l.typeAddr("*" + writer), Buf: l.offset(writer, "buf"), N: l.offset(writer, "n"), Wr: l.offset(writer, "wr"),
		}
	},
}

var (
	propagateHTTP2Bundled  = http2BundledClient.propagation("net/http.http2", "HTTP/2")
	propagateHTTP2Internal = http2InternalClient.propagation("net/http/internal/http2.", "HTTP/2")
	propagateHTTP2X        = http2XClient.propagation("golang.org/x/net/http2.", "HTTP/2 of golang.org/x/net")
)

// propagation writes the header into frames of HTTP/2.
func (h http2Client) propagation(prefix, name string) library {
	frame := hook{
		program: "propagate_frame", variant: uint8(h.which),
		sites: everyCall(methodOf(prefix+"Framer", "WriteHeaders"), methodOf(prefix+"Framer", "endWrite")),
	}
	groups := []group{{
		name: name,
		when: func(b *gobin.Binary) bool { return has(b, h.headers()) && has(b, httpRoundTrip) },
		hooks: []hook{
			frame,
			{program: "propagate_headers", variant: uint8(h.which), sites: entry(h.headers())},
			{program: "propagate_stream", variant: uint8(h.which), sites: h.start},
		},
	}}
	if h.which == bpf.AgentHttp2ClientHTTP2CLIENT_X {
		groups = append(groups, group{
			name:  "frames of gRPC",
			when:  func(b *gobin.Binary) bool { return has(b, grpcNewStream) },
			hooks: []hook{frame},
		})
	}
	return library{
		name:  propagateHTTP.name,
		asked: true, written: true,
		groups:      groups,
		layoutMap:   "propagate_framers",
		layoutIndex: uint32(h.which) * maxBinaries,
		layout: func(l *layouts) any {
			return &bpf.AgentPropagateHttp2Layout{
				ConnFramer: l.optional(h.conn, "fr"),
				FramerWbuf: l.offset(prefix+"Framer", "wbuf"),
			}
		},
	}
}

// propagateGRPC knows which call a frame begins.
var propagateGRPC = library{
	name:  propagateHTTP.name,
	asked: true, written: true,
	groups: []group{{
		name: "gRPC",
		when: func(b *gobin.Binary) bool { return has(b, grpcNewStream) },
		hooks: []hook{
			grpcNumbered("propagate_numbered"),
			{program: "propagate_call", sites: entry(grpcNewTransportStream)},
		},
	}},
	layoutMap: "propagate_grpc",
	layout: func(l *layouts) any {
		const value, raw = "context.valueCtx", "google.golang.org/grpc/metadata.rawMD"
		return &bpf.AgentPropagateGrpcLayout{
			ValueContext:    l.typeAddr("*" + value),
			OutgoingKey:     l.typeAddr("google.golang.org/grpc/metadata.mdOutgoingKey"),
			ValueKey:        l.offset(value, "key"),
			ValueVal:        l.offset(value, "val"),
			RawMd:           l.offset(raw, "md"),
			RawAdded:        l.offset(raw, "added"),
			TransportFramer: l.offset(grpcTransport+"http2Client", "framer"),
			FramerFramer:    l.offset(grpcTransport+"framer", "fr"),
		}
	},
}

// PropagationStatus says how requests are given a traceparent, and what became of those
// that have a span.
type PropagationStatus struct {
	Mode     string            `json:"mode"`             // off, messages: added to what is sent, memory: to what will be
	Reason   string            `json:"reason,omitempty"` // why it is not memory
	Requests map[string]uint64 `json:"requests,omitempty"`
}

// propagateCounts are the names of enum propagate_counter.
var propagateCounts = [bpf.AgentPropagateCounterPROPAGATE_COUNTERS]string{
	bpf.AgentPropagateCounterPROPAGATE_SENT:        "sent",
	bpf.AgentPropagateCounterPROPAGATE_OWN:         "own_traceparent",
	bpf.AgentPropagateCounterPROPAGATE_NOT_ALLOWED: "not_allowed",
	bpf.AgentPropagateCounterPROPAGATE_PROXIED:     "proxied",
	bpf.AgentPropagateCounterPROPAGATE_TLS:         "tls",
	bpf.AgentPropagateCounterPROPAGATE_UNREADABLE:  "unreadable",
	bpf.AgentPropagateCounterPROPAGATE_NEW:         "new_connection",
	bpf.AgentPropagateCounterPROPAGATE_UNFIT:       "unfit",
	bpf.AgentPropagateCounterPROPAGATE_NO_ROOM:     "no_room",
	bpf.AgentPropagateCounterPROPAGATE_FAILED:      "failed",
}

// uncovered says of a binary what is not given a header in it.
func (p *propagation) uncovered(b *gobin.Binary) (groups []GroupStatus) {
	add := func(name, reason string) {
		groups = append(groups, GroupStatus{Library: propagateHTTP.name, Group: name, State: groupUncovered, Reason: reason})
	}
	if p == nil {
		return nil
	}
	if p.reason != "" {
		if has(b, httpRoundTrip) || has(b, grpcNewStream) {
			add("", p.reason)
		}
		return groups
	}
	if p.writes {
		return nil
	}
	if has(b, httpRoundTrip) {
		add("TLS", "what is sent is encrypted before the kernel sees it")
	}
	for _, http2 := range []string{"net/http.(*http2ClientConn).", "net/http/internal/http2.(*ClientConn).", "golang.org/x/net/http2.(*ClientConn)."} {
		if has(b, http2+"RoundTrip") || has(b, http2+"roundTrip") {
			add("HTTP/2", "headers of HTTP/2 are not changed")
			break
		}
	}
	if has(b, grpcNewStream) {
		add("gRPC", "headers of HTTP/2 are not changed")
	}
	return groups
}

// storeAllowed tells the programs who may be told an id.
func (p *propagation) storeAllowed(maps map[string]*ebpf.Map, o Propagation) error {
	for _, prefix := range o.Networks {
		if err := maps["propagate_networks"].Put(networkKey(prefix), uint32(1)); err != nil {
			return fmt.Errorf("store network %s: %w", prefix, err)
		}
	}
	for _, name := range o.Names {
		key, err := hostKey(name)
		if err != nil {
			return err
		}
		if err := maps["propagate_names"].Put(key, uint32(1)); err != nil {
			return fmt.Errorf("store host %s: %w", name, err)
		}
	}
	return nil
}

// networkKey is a network as the programs look it up: IPv4 is mapped to IPv6.
func networkKey(prefix netip.Prefix) (key [20]byte) {
	bits := prefix.Bits()
	if prefix.Addr().Is4() {
		bits += 96
	}
	ip := prefix.Addr().As16()
	nativeUint32(key[:4], uint32(bits))
	copy(key[4:], ip[:])
	return key
}

// maxHost is PROPAGATE_HOST of bpf/propagate.h.
const maxHost = 120

// hostKey is a name as the programs look it up: backwards.
func hostKey(name string) (key [4 + maxHost + 8]byte, err error) {
	rest, below := strings.CutPrefix(strings.ToLower(name), "*")
	if len(rest) >= maxHost {
		return key, fmt.Errorf("store host %s: it is longer than %d bytes", name, maxHost-1)
	}
	for i := range len(rest) {
		key[4+i] = rest[len(rest)-1-i]
	}
	bits := 8 * len(rest)
	if !below {
		bits += 8 // the zero behind it
	}
	nativeUint32(key[:4], uint32(bits))
	return key, nil
}

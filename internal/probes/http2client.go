package probes

import (
	"strings"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/gobin"
)

// http2Client is one of the HTTP/2 clients that a program can have. Their spans are those of
// netHTTPClient; the hooks here are for joining them with the server's, so a program where
// they are not found has its spans all the same. bpf/http2client.bpf.c says how.
type http2Client struct {
	which  bpf.AgentHttp2Client
	conn   string // type of the connection, with its package
	stream string
	// roundTrip is the method of the connection that starts the stream's goroutine; until
	// Go 1.22 that was the exported one.
	roundTrip []string
	group     string
}

func http2ClientOf(which bpf.AgentHttp2Client, prefix, group string) http2Client {
	conn := prefix + "ClientConn"
	return http2Client{which: which, conn: conn, stream: prefix + "clientStream", group: group,
		roundTrip: []string{methodOf(conn, "internalRoundTrip"), methodOf(conn, "roundTrip"), methodOf(conn, "RoundTrip")}}
}

// methodOf is the name of a method of a pointer to a type, "a.b/c.T".
func methodOf(typeName, method string) string {
	at := strings.LastIndexByte(typeName, '.') + 1
	return typeName[:at] + "(*" + typeName[at:] + ")." + method
}

var (
	http2BundledClient  = http2ClientOf(bpf.AgentHttp2ClientHTTP2CLIENT, "net/http.http2", "client of HTTP/2")
	http2InternalClient = http2ClientOf(bpf.AgentHttp2ClientHTTP2CLIENT, "net/http/internal/http2.", "client of HTTP/2")
	http2XClient        = http2ClientOf(bpf.AgentHttp2ClientHTTP2CLIENT_X, "golang.org/x/net/http2.", "client of golang.org/x/net/http2")

	http2ClientBundled  = http2BundledClient.library()
	http2ClientInternal = http2InternalClient.library()
	http2ClientX        = http2XClient.library()
)

// headers is the method that writes a stream's first frame.
func (h http2Client) headers() string { return methodOf(h.stream, "encodeAndWriteHeaders") }

func (h http2Client) library() library {
	variant := uint8(h.which)
	return library{
		name:   netHTTPClient.name,
		beside: true,
		groups: []group{{
			name: h.group,
			when: func(b *gobin.Binary) bool { return has(b, h.headers()) && has(b, httpRoundTrip) },
			hooks: []hook{
				{program: "http2client_headers", variant: variant, sites: entry(h.headers())},
				{program: "http2client_start", variant: variant, sites: h.start},
			},
		}},
		layoutMap:   "http2client_layouts",
		layoutIndex: uint32(h.which) * maxBinaries,
		layout: func(l *layouts) any {
			return &bpf.AgentHttp2clientLayout{
				StreamConn: l.offset(h.stream, "cc"),
				StreamId:   l.offset(h.stream, "ID"),
				ConnConn:   l.offset(h.conn, "tconn"),
			}
		},
	}
}

// start is the go statement by which a request gets a goroutine that writes it.
func (h http2Client) start(b *gobin.Binary) (sites []gobin.Site, err error) {
	for _, function := range h.roundTrip {
		f, e := b.Func(function)
		if e != nil {
			err = e
			continue
		}
		site, e := b.CallSite(f, gobin.Call{Callee: "runtime.newproc"})
		if e == nil {
			return []gobin.Site{site}, nil
		}
		err = e
	}
	return nil, err
}

// http2XTransport is the client span of golang.org/x/net/http2's own transport, for programs
// that use it without net/http's: bpf/httpclient.bpf.c. With Go 1.27 it is a front of
// net/http's, which has the spans then.
var http2XTransport = group{
	name: "transport of golang.org/x/net/http2",
	when: func(b *gobin.Binary) bool {
		_, ok := http2XLoop(b)
		return ok && has(b, http2XClient.headers()) && has(b, httpRoundTrip)
	},
	hooks: []hook{
		{program: "httpclient_end", variant: uint8(bpf.AgentHttpclientEndSiteCLIENT_RETURN_X), sites: inHTTP2XLoop(http2XReturns)},
		{program: "httpclient_end", variant: uint8(bpf.AgentHttpclientEndSiteCLIENT_RESPONSE_X), sites: inHTTP2XLoop(func(b *gobin.Binary, f *gobin.Func) ([]gobin.Site, error) {
			return one(http2XResponse(b, f))
		})},
		{program: "httpclient_begin", variant: uint8(bpf.AgentHttpclientBeginSiteCLIENT_HTTP2X), sites: inHTTP2XLoop(func(b *gobin.Binary, f *gobin.Func) ([]gobin.Site, error) {
			return one(b.EntrySite(f))
		})},
	},
}

// http2XLoop is the method that tries a request until it has a response.
func http2XLoop(b *gobin.Binary) (function string, ok bool) {
	for _, method := range []string{"roundTripViaPool", "RoundTripOpt"} {
		if function := methodOf("golang.org/x/net/http2.Transport", method); has(b, function) {
			return function, true
		}
	}
	return "", false
}

func inHTTP2XLoop(rule func(*gobin.Binary, *gobin.Func) ([]gobin.Site, error)) siteFinder {
	return func(b *gobin.Binary) ([]gobin.Site, error) {
		function, _ := http2XLoop(b)
		return inBody(function, rule)(b)
	}
}

// http2XResponse is the branch on the error of a try. RoundTrip may be inlined there.
func http2XResponse(b *gobin.Binary, f *gobin.Func) (site gobin.Site, err error) {
	for _, method := range []string{"roundTrip", "RoundTrip"} {
		site, err = b.AfterCall(f, gobin.Call{Callee: methodOf(http2XClient.conn, method)}, inRegisters(0, 1, 2))
		if err == nil {
			break
		}
	}
	return site, err
}

func http2XReturns(b *gobin.Binary, f *gobin.Func) ([]gobin.Site, error) {
	response, err := http2XResponse(b, f)
	if err != nil {
		return nil, err
	}
	return b.ReturnsBeyond(f, gobin.Cut{Site: response, NilOnly: true})
}

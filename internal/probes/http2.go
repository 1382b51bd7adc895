package probes

import (
	"errors"
	"strings"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/gobin"
)

// http2Server is one of the HTTP/2 servers that a program can have. Its requests share
// programs, records and metrics with those of HTTP/1.x: bpf/nethttp.bpf.c.
type http2Server struct {
	which   bpf.AgentHttpServer
	begin   bpf.AgentHttpBeginSite
	conn    string // type of the connection, with its package
	state   string // of a response
	writer  string // type of the http.ResponseWriter that serverHandler is handed; "": never
	request string // type of state's req, and of runHandler's
	inline  bool   // req is the struct itself
	group   string
}

var (
	// Bundled into net/http up to Go 1.26.
	http2Bundled = http2Server{
		which: bpf.AgentHttpServerHTTP_2, begin: bpf.AgentHttpBeginSiteHTTP_RUN,
		conn: "net/http.(*http2serverConn)", state: "net/http.http2responseWriterState",
		writer: "*net/http.http2responseWriter", request: "net/http.Request", group: "server of HTTP/2",
	}
	// From Go 1.27 on, with a request type of its own.
	http2Internal = http2Server{
		which: bpf.AgentHttpServerHTTP_2, begin: bpf.AgentHttpBeginSiteHTTP_RUN,
		conn: "net/http/internal/http2.(*serverConn)", state: "net/http/internal/http2.responseWriterState",
		writer: "net/http.http2ResponseWriter", request: "net/http/internal/http2.ServerRequest", inline: true,
		group: "server of HTTP/2",
	}
	// Any handler may be behind it, so it begins in runHandler, always. Built with Go 1.27
	// it is a front of net/http/internal/http2.
	http2X = http2Server{
		which: bpf.AgentHttpServerHTTP_2X, begin: bpf.AgentHttpBeginSiteHTTP_RUN_X,
		conn: "golang.org/x/net/http2.(*serverConn)", state: "golang.org/x/net/http2.responseWriterState",
		request: "net/http.Request", group: "server of golang.org/x/net/http2",
	}
)

var (
	netHTTP2Bundled  = http2Bundled.library()
	netHTTP2Internal = http2Internal.library()
	netHTTP2X        = http2X.library()
)

func (h http2Server) runHandler() string { return h.conn + ".runHandler" }

// library makes the entry of the table. Its records and metrics are those of netHTTP.
func (h http2Server) library() library {
	end := hook{program: "nethttp_server_end", variant: uint8(bpf.AgentHttpEndSiteHTTP_STREAM_END), sites: h.streamEnd}
	begin := hook{program: "nethttp_server_begin", variant: uint8(h.begin), sites: entry(h.runHandler())}
	present := func(b *gobin.Binary) bool { return has(b, h.runHandler()) }
	return library{
		name: "net/http",
		groups: []group{
			{name: h.group, hooks: []hook{end, begin}, when: func(b *gobin.Binary) bool { return present(b) && !h.throughServer(b) }},
			// serverHandler.ServeHTTP, which has its probe anyway, begins the span.
			{name: h.group, hooks: []hook{end}, when: func(b *gobin.Binary) bool { return present(b) && h.throughServer(b) }},
		},
		layoutMap:   "nethttp_layouts",
		layoutIndex: uint32(h.which) * maxBinaries,
		layout:      h.layout,
	}
}

// throughServer tells whether all requests pass serverHandler.ServeHTTP, and its probe can
// begin them. They do not where golang.org/x/net/http2 lends its connections, as for h2c.
func (h http2Server) throughServer(b *gobin.Binary) bool {
	if h.writer == "" || has(b, "golang.org/x/net/http2.(*Server).ServeConn") {
		return false
	}
	_, err := entry("net/http.serverHandler.ServeHTTP")(b)
	return err == nil
}

func (h http2Server) layout(l *layouts) any {
	layout := &bpf.AgentNethttpLayout{
		ResponseReq:    l.offset(h.state, "req"),
		ResponseStatus: l.offset(h.state, "status"),
		// What a panic leaves unsent nobody has seen.
		ResponseWroteHeader: l.offset(h.state, "sentHeader"),
		RequestMethod:       l.offset(h.request, "Method"),
		RequestHeader:       l.offset(h.request, "Header"),
		RequestHost:         l.offset(h.request, "Host"),
		RequestUri:          l.offset(h.request, "RequestURI"),
		RequestRemoteAddr:   l.offset(h.request, "RemoteAddr"),
		RequestTls:          l.offset(h.request, "TLS"),
		RequestProtoMajor:   l.offset(h.request, "ProtoMajor"),
		RequestProtoMinor:   l.offset(h.request, "ProtoMinor"),
	}
	layout.RequestUrl = l.offset(h.request, "URL")
	layout.UrlPath = l.offset("net/url.URL", "Path")
	h.joined(l, layout)
	if h.inline {
		layout.RequestInline = 1
		layout.RequestCtx = l.offset(h.request, "Context")
	} else {
		layout.RequestCtx = l.offset(h.request, "ctx")
		layout.RequestPattern = patternOffset(l)
	}
	layout.RequestSize = requestSize(l, layout)
	fields := []uint32{layout.ResponseStatus, layout.ResponseWroteHeader}
	if !h.inline {
		fields = append(fields, layout.ResponseReq)
	}
	layout.ResponseSize = l.upTo(scratchSize, fields...)
	if _, err := h.streamEnd(l.binary); err == nil && h.throughServer(l.binary) {
		layout.ResponseType = l.typeAddr(h.writer)
	}
	return layout
}

// joined fills in by which stream of which connection a request has come. Without it hops are
// not joined.
func (h http2Server) joined(l *layouts, layout *bpf.AgentNethttpLayout) {
	prefix := strings.TrimSuffix(h.state, "responseWriterState")
	id := l.optional(prefix+"stream", "id")
	conn := l.optional(prefix+"serverConn", "conn")
	if id == 0 || conn == 0 {
		return
	}
	layout.StreamId, layout.ConnRwc = id, conn
	layout.ResponseStream = l.offset(h.state, "stream")
	layout.ResponseConn = l.offset(h.state, "conn")
}

// streamEnd is the entry of the function that runHandler defers to finish the response,
// whether the handler returns, panics or exits. The compiler numbers it among others.
func (h http2Server) streamEnd(b *gobin.Binary) ([]gobin.Site, error) {
	if _, err := b.Func(h.runHandler()); err != nil {
		return nil, err
	}
	for _, f := range b.FuncsWithPrefix(h.runHandler() + ".func") {
		if _, err := b.CallSite(f, gobin.Call{Callee: h.conn + ".writeFrameFromHandler"}); err == nil {
			return one(b.EntrySite(f))
		}
	}
	return nil, errors.New(h.runHandler() + " defers nothing that ends a response")
}

package probes

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/gobin"
)

// netHTTP is the server span of HTTP/1.x; http2.go adds HTTP/2. bpf/nethttp.bpf.c says
// where they begin and end.
var netHTTP = library{
	name: "net/http",
	groups: []group{{
		name: "server",
		when: func(b *gobin.Binary) bool { return has(b, httpServe) },
		hooks: []hook{
			requestEnd,
			{program: "nethttp_server_end", variant: uint8(bpf.AgentHttpEndSiteHTTP_CONNECTION_END), sites: entry("net/http.(*conn).serve.func1")},
			{program: "nethttp_server_end", variant: uint8(bpf.AgentHttpEndSiteHTTP_CRASH), sites: entry("runtime.startpanic_m"), optional: true},
			{program: "nethttp_route", when: hasFindHandler, sites: routeResult, optional: true, choice: choiceRoute},
			{program: "nethttp_route", when: hasMuxHandler, variant: uint8(bpf.AgentHttpRouteSiteHTTP_ROUTE_STACK), sites: routeStack, optional: true, choice: choiceRoute},
			{
				program: "nethttp_server_begin", sites: entry("net/http.serverHandler.ServeHTTP"),
				instead: &hook{
					program: "nethttp_server_begin", variant: uint8(bpf.AgentHttpBeginSiteHTTP_READ),
					sites: inFunc(connServe, func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
						return b.AfterCall(f, gobin.Call{Callee: "net/http.(*conn).readRequest"}, inRegisters(0, 1))
					}),
				},
			},
		},
	}},
	layoutMap: "nethttp_layouts",
	layout: func(l *layouts) any {
		const request, response, conn = "net/http.Request", "net/http.response", "net/http.conn"
		layout := &bpf.AgentNethttpLayout{
			ResponseType:        l.typeAddr("*" + response),
			ResponseConn:        l.offset(response, "conn"),
			ResponseReq:         l.offset(response, "req"),
			ResponseStatus:      l.offset(response, "status"),
			ResponseWroteHeader: l.offset(response, "wroteHeader"),
			ConnHijacked:        l.offset(conn, "hijackedv"),
			RequestMethod:       l.offset(request, "Method"),
			RequestHeader:       l.offset(request, "Header"),
			RequestHost:         l.offset(request, "Host"),
			RequestUri:          l.offset(request, "RequestURI"),
			RequestRemoteAddr:   l.offset(request, "RemoteAddr"),
			RequestTls:          l.offset(request, "TLS"),
			RequestCtx:          l.offset(request, "ctx"),
			RequestProtoMajor:   l.offset(request, "ProtoMajor"),
			RequestProtoMinor:   l.offset(request, "ProtoMinor"),
			RequestUrl:          l.offset(request, "URL"),
			UrlPath:             l.offset("net/url.URL", "Path"),
			UrlRawPath:          l.offset("net/url.URL", "RawPath"),
		}
		layout.ConnRwc = l.optional(conn, "rwc")
		layout.RequestPattern = patternOffset(l)
		_, layout.RouteSlot, _ = muxHandlerPattern(l.binary) // the hook says what is wrong
		layout.RequestSize = requestSize(l, layout)
		layout.ResponseSize = l.upTo(scratchSize, layout.ResponseReq, layout.ResponseStatus,
			layout.ResponseWroteHeader)
		return layout
	},
	metrics: []metric{{
		kind: uint32(bpf.AgentNethttpKindRECORD_HTTP_SERVER),
		slot: 0,
		name: "http.server.request.duration", unit: "s",
		description: "Duration of HTTP server requests.",
		bounds:      httpBounds,
		attributes:  httpServerSeries,
	}},
	records: map[uint32]decoder{
		uint32(bpf.AgentNethttpKindRECORD_HTTP_SERVER): decodeHTTPServer,
	},
}

// httpBounds are those of bpf/metric.h, in s.
var httpBounds = []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}

// patternOffset is where a Request has its pattern, from Go 1.23 on. Where it has none, the
// route's probe stays.
func patternOffset(l *layouts) uint32 {
	if offset := l.optional("net/http.Request", "Pattern"); offset+16 <= scratchSize {
		return offset
	}
	return 0
}

// requestSize is how much of a request is read.
func requestSize(l *layouts, layout *bpf.AgentNethttpLayout) uint32 {
	return l.upTo(scratchSize, layout.RequestMethod, layout.RequestUrl, layout.RequestHeader,
		layout.RequestHost, layout.RequestUri, layout.RequestRemoteAddr, layout.RequestTls,
		layout.RequestProtoMajor, layout.RequestProtoMinor, layout.RequestCtx, layout.RequestPattern)
}

// httpServe is in every program that serves HTTP.
const httpServe = "net/http.serverHandler.ServeHTTP"

// routeResult is where (*ServeMux) has matched a pattern, from Go 1.22 on: at the first
// branch after the call, the pattern is still in registers.
var routeResult = inFunc("net/http.(*ServeMux).ServeHTTP", func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
	return b.AfterCall(f, gobin.Call{Callee: findHandler}, inRegisters(2, 3))
})

const findHandler = "net/http.(*ServeMux).findHandler"

func hasFindHandler(b *gobin.Binary) bool { return has(b, findHandler) }

// routeStack is the same for the ServeMux of Go up to 1.21, which later releases keep for
// programs whose go.mod names no newer one (GODEBUG=httpmuxgo121). Its match is inlined;
// the pattern is in the stack frame of handler while that unlocks the mux.
func routeStack(b *gobin.Binary) ([]gobin.Site, error) {
	site, _, err := muxHandlerPattern(b)
	return one(site, err)
}

// muxHandlers are where the old ServeMux matches, by release.
var muxHandlers = []string{"net/http.(*ServeMux).handler", "net/http.(*serveMux121).handler"}

// muxUnlocks are the calls by which they unlock the mux: that of the deferred function, or
// of the runtime, in builds with -race. One of the latter is for panics only.
var muxUnlocks = []gobin.Call{{Indirect: true, N: -1}, {Callee: "runtime.deferreturn", N: -1}, {Callee: "runtime.deferreturn"}}

func hasMuxHandler(b *gobin.Binary) bool {
	return slices.ContainsFunc(muxHandlers, func(f string) bool { return has(b, f) })
}

// muxHandlerPattern returns the site, and where the pattern is from the stack pointer.
func muxHandlerPattern(b *gobin.Binary) (site gobin.Site, slot uint32, err error) {
	for _, name := range muxHandlers {
		var f *gobin.Func
		if f, err = b.Func(name); err != nil {
			continue
		}
		for _, unlock := range muxUnlocks {
			if site, err = b.BeforeReturn(f, unlock, []int{2, 3}); err == nil {
				break
			}
		}
		if err != nil {
			return site, 0, err
		}
		at := site.Where[2].Offset
		if at < 0 || at > 1<<12 || site.Where[3].Offset != at+8 {
			return site, 0, fmt.Errorf("the results of %s are not next to each other", name)
		}
		return site, uint32(at), nil
	}
	return site, 0, err
}

// knownMethods are the values of http.request.method besides _OTHER.
var knownMethods = map[string]bool{
	http.MethodConnect: true, http.MethodDelete: true, http.MethodGet: true, http.MethodHead: true,
	http.MethodOptions: true, http.MethodPatch: true, http.MethodPost: true, http.MethodPut: true,
	http.MethodTrace: true, "QUERY": true,
}

func decodeHTTPServer(d *decoding, raw []byte, span *event.Span) error {
	r, payload, err := recordAs[bpf.AgentHttpServerRecord](raw)
	if err != nil {
		return err
	}
	texts, err := splitTexts(payload, r.TextLen[:])
	if err != nil {
		return err
	}
	flags := bpf.AgentSpanFlags(r.Header.Flags)
	span.Kind = trace.SpanKindServer
	span.TraceState = texts[bpf.AgentHttpTextTEXT_TRACESTATE]

	d.httpMethod(span, texts[bpf.AgentHttpTextTEXT_METHOD], texts[bpf.AgentHttpTextTEXT_ROUTE])
	d.httpTarget(texts[bpf.AgentHttpTextTEXT_URI])
	scheme := "http"
	if flags&bpf.AgentSpanFlagsSPAN_TLS != 0 {
		scheme = "https"
	}
	d.str("url.scheme", scheme)
	d.httpStatus(span, r, flags)
	d.httpAddresses(scheme, texts[bpf.AgentHttpTextTEXT_HOST], texts[bpf.AgentHttpTextTEXT_REMOTE_ADDR],
		texts[bpf.AgentHttpTextTEXT_FORWARDED_FOR])
	if v := protoVersion(r.ProtoMajor, r.ProtoMinor); v != "" {
		d.str("network.protocol.version", v)
	}
	if agent := texts[bpf.AgentHttpTextTEXT_USER_AGENT]; agent != "" {
		d.str("user_agent.original", agent)
	}
	return nil
}

// splitTexts cuts the texts that follow a record. They share one string.
func splitTexts(payload []byte, lens []uint16) ([bpf.AgentHttpTextHTTP_TEXTS]string, error) {
	var texts [bpf.AgentHttpTextHTTP_TEXTS]string
	total := 0
	for _, n := range lens {
		total += int(n)
	}
	if total > len(payload) {
		return texts, fmt.Errorf("texts of %d bytes in a record of %d", total, len(payload))
	}
	all := string(payload[:total])
	for i, n := range lens {
		text := all[:n]
		if !utf8.ValidString(text) { // by itself: a border may cut a rune in two
			text = strings.ToValidUTF8(text, "\uFFFD")
		}
		texts[i], all = text, all[n:]
	}
	return texts, nil
}

// httpMethod sets the method, the route, and the span's name from both.
func (d *decoding) httpMethod(span *event.Span, method, pattern string) {
	name := method
	if method == "" {
		method, name = http.MethodGet, http.MethodGet
	}
	if !knownMethods[method] {
		d.str("http.request.method_original", method)
		method, name = "_OTHER", "HTTP"
	}
	d.str("http.request.method", method)
	if route := routeOf(pattern); route != "" {
		d.str("http.route", route)
		name = d.join(name, route)
	}
	span.Name = name
}

// routeOf drops the method and the host of a ServeMux pattern; those of other routers
// have neither.
func routeOf(pattern string) string {
	if strings.HasPrefix(pattern, "/") {
		return pattern
	}
	if _, path, ok := strings.Cut(pattern, " "); ok {
		pattern = strings.TrimLeft(path, " \t")
	}
	if i := strings.IndexByte(pattern, '/'); i >= 0 {
		return pattern[i:]
	}
	return ""
}

// httpTarget sets path and query from the request target of RFC 9112: origin-form
// /p?q, absolute-form http://h/p?q, authority-form h:p (CONNECT), asterisk-form *.
func (d *decoding) httpTarget(target string) {
	path, query, _ := strings.Cut(target, "?")
	if !strings.HasPrefix(path, "/") {
		if _, rest, ok := strings.Cut(path, "://"); ok {
			if i := strings.IndexByte(rest, '/'); i >= 0 {
				path = rest[i:]
			} else {
				path = "/"
			}
		}
	}
	d.str("url.path", path)
	if query != "" {
		d.str("url.query", redactQuery(query))
	}
}

// sensitiveQuery are the parameters whose values never leave the node: those of the
// semantic conventions, and what else is commonly a credential.
var sensitiveQuery = map[string]bool{
	"awsaccesskeyid": true, "signature": true, "sig": true, "x-goog-signature": true,
	"x-amz-signature": true, "x-amz-credential": true, "x-amz-security-token": true,
	"token": true, "access_token": true, "id_token": true, "refresh_token": true, "auth": true,
	"api_key": true, "apikey": true, "key": true, "code": true, "client_secret": true,
	"secret": true, "password": true, "passwd": true, "pwd": true, "session": true, "jwt": true,
}

func redactQuery(query string) string {
	var b strings.Builder
	changed := false
	for i, pair := range strings.Split(query, "&") {
		if i > 0 {
			b.WriteByte('&')
		}
		key, value, ok := strings.Cut(pair, "=")
		if ok && value != "" && sensitiveQuery[strings.ToLower(key)] {
			changed = true
			b.WriteString(key)
			b.WriteString("=REDACTED")
			continue
		}
		b.WriteString(pair)
	}
	if !changed {
		return query
	}
	return b.String()
}

// httpStatus sets the status code and what it says of success. Only a server error,
// 5xx, is an error of a server span.
func (d *decoding) httpStatus(span *event.Span, r *bpf.AgentHttpServerRecord, flags bpf.AgentSpanFlags) {
	status, errorType := d.httpOutcome(int(r.Status), flags, r.PanicType)
	if status != 0 {
		d.num("http.response.status_code", int64(status))
	}
	if errorType != "" {
		d.str("error.type", errorType)
		span.Status = codes.Error
	}
}

// httpOutcome is the status that the client got, 0 if unknown, and the error.type, ""
// if there was no error.
func (d *decoding) httpOutcome(status int, flags bpf.AgentSpanFlags, panicType uint64) (int, string) {
	if status == 0 && flags&bpf.AgentSpanFlagsSPAN_ABORTED == 0 {
		status = http.StatusOK // what finishRequest is about to write
	}
	switch {
	case flags&bpf.AgentSpanFlagsSPAN_CRASHED != 0 && panicType == 0:
		return status, crashType
	case flags&(bpf.AgentSpanFlagsSPAN_PANIC|bpf.AgentSpanFlagsSPAN_CRASHED) != 0:
		if name := d.errorType(panicType); name != "" {
			return status, name
		}
		return status, "panic"
	case flags&bpf.AgentSpanFlagsSPAN_GOEXIT != 0:
		return status, "runtime.Goexit"
	case status >= 500:
		return status, strconv.Itoa(status)
	}
	return status, ""
}

// crashType is the error.type of what was open when the runtime gave up.
const crashType = "fatal error"

// seriesMethods are the names of enum http_method.
var seriesMethods = [bpf.AgentHttpMethodHTTP_METHODS]string{
	"_OTHER", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "QUERY",
}

// httpDetail is HTTP_DETAIL of bpf/nethttp.h.
type httpDetail uint64

func (h httpDetail) status() int { return int(h & 0xffff) }

func (h httpDetail) method() string {
	if m := int(h >> 16 & 0xff); m < len(seriesMethods) {
		return seriesMethods[m]
	}
	return "_OTHER"
}

func (h httpDetail) protocol() string { return protoVersion(uint8(h>>24), uint8(h>>32)) }

func (h httpDetail) scheme() string {
	if h>>40&0xff != 0 {
		return "https"
	}
	return "http"
}

func (h httpDetail) flags() bpf.AgentSpanFlags { return bpf.AgentSpanFlags(h >> 48 & 0xff) }

// httpServerSeries names the attributes of a series.
func httpServerSeries(d *decoding, key *bpf.AgentSeriesKey, s *bpf.AgentSeries) []attribute.KeyValue {
	detail := httpDetail(key.Detail[0])
	attrs := []attribute.KeyValue{
		attribute.String("http.request.method", detail.method()), attribute.String("url.scheme", detail.scheme()),
	}
	pattern, _ := textOf(s)
	if route := routeOf(pattern); route != "" {
		attrs = append(attrs, attribute.String("http.route", route))
	}
	if v := detail.protocol(); v != "" {
		attrs = append(attrs, attribute.String("network.protocol.version", v))
	}
	status, errorType := d.httpOutcome(detail.status(), detail.flags(), key.ErrorType)
	if status != 0 {
		attrs = append(attrs, attribute.Int("http.response.status_code", status))
	}
	if errorType != "" {
		attrs = append(attrs, attribute.String("error.type", errorType))
	}
	return attrs
}

func protoVersion(major, minor uint8) string {
	switch {
	case major == 1 && minor == 1:
		return "1.1"
	case major == 1 && minor == 0:
		return "1.0"
	case major == 2:
		return "2"
	}
	return ""
}

// httpAddresses sets who talked to whom. client.address is the first hop that the
// request names, which a client can forge; network.peer.* is what the socket says.
func (d *decoding) httpAddresses(scheme, host, remote, forwarded string) {
	name, port := splitHostPort(host)
	if name != "" {
		d.str("server.address", name)
		if port == 0 {
			port = map[string]int{"http": 80, "https": 443}[scheme]
		}
		d.num("server.port", int64(port))
	}
	client, _, _ := strings.Cut(forwarded, ",")
	client = strings.TrimSpace(client)
	if peer, err := netip.ParseAddrPort(remote); err == nil {
		address := peer.Addr().Unmap().String()
		d.str("network.peer.address", address)
		d.num("network.peer.port", int64(peer.Port()))
		if client == "" {
			client = address
		}
	}
	if client != "" {
		d.str("client.address", client)
	}
}

// splitHostPort splits a Host header; the port is 0 if it has none.
func splitHostPort(host string) (name string, port int) {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.IndexByte(host[i:], ']') >= 0 {
		return strings.Trim(host, "[]"), 0
	}
	if n, err := strconv.ParseUint(host[i+1:], 10, 16); err == nil {
		port = int(n)
	}
	return strings.Trim(host[:i], "[]"), port
}

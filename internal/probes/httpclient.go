package probes

import (
	"encoding/binary"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/gobin"
)

const (
	httpRoundTrip     = "net/http.(*Transport).roundTrip"
	httpConnRoundTrip = "net/http.(*persistConn).roundTrip"
)

// netHTTPClient is the client span of net/http; bpf/httpclient.bpf.c says where it begins
// and ends.
var netHTTPClient = library{
	name: "net/http/client",
	groups: []group{{
		name: "client",
		when: func(b *gobin.Binary) bool { return has(b, httpRoundTrip) },
		hooks: []hook{
			{program: "httpclient_end", variant: uint8(bpf.AgentHttpclientEndSiteCLIENT_RETURN), sites: inBody(httpRoundTrip, clientReturns)},
			{program: "httpclient_end", variant: uint8(bpf.AgentHttpclientEndSiteCLIENT_ALTERNATE), sites: inFunc(httpRoundTrip, clientAlternate), optional: true},
			{program: "httpclient_end", variant: uint8(bpf.AgentHttpclientEndSiteCLIENT_RESPONSE), sites: inFunc(httpRoundTrip, clientResponse)},
			{program: "httpclient_connect", sites: entry(httpConnRoundTrip), optional: true},
			{program: "httpclient_begin", sites: entry(httpRoundTrip)},
		},
	}, http2XTransport},
	layoutMap: "httpclient_layouts",
	layout:    clientLayout,
	metrics: []metric{{
		kind: uint32(bpf.AgentHttpclientKindRECORD_HTTP_CLIENT),
		slot: 2,
		name: "http.client.request.duration", unit: "s",
		description: "Duration of HTTP client requests.",
		bounds:      []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10},
		attributes:  httpClientSeries,
	}},
	records: map[uint32]decoder{
		uint32(bpf.AgentHttpclientKindRECORD_HTTP_CLIENT): decodeHTTPClient,
	},
}

// clientResponse is the branch on the error of a try, whether HTTP/1.x or HTTP/2 made it.
func clientResponse(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
	opt := inRegisters(0, 1, 2)
	opt.Joined = true
	return b.AfterCall(f, gobin.Call{Callee: httpConnRoundTrip}, opt)
}

// clientAlternate is the branch on the error of a protocol that was registered for a
// scheme, as HTTP/2 is for connections that it has already.
func clientAlternate(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
	opt := inRegisters(0, 1, 2)
	opt.After = &gobin.Call{Callee: "net/http.(*Transport).alternateRoundTripper"}
	return b.AfterCall(f, gobin.Call{Indirect: true}, opt)
}

// clientReturns are the returns that only errors lead to: single-stepped, and rare.
func clientReturns(b *gobin.Binary, f *gobin.Func) ([]gobin.Site, error) {
	response, err := clientResponse(b, f)
	if err != nil {
		return nil, err
	}
	// Where there is a response, the branch has ended the span.
	cuts := []gobin.Cut{{Site: response, NilOnly: true}}
	if alternate, err := clientAlternate(b, f); err == nil {
		cuts = append(cuts, gobin.Cut{Site: alternate})
	}
	return b.ReturnsBeyond(f, cuts...)
}

func clientLayout(l *layouts) any {
	const request, response, url = "net/http.Request", "net/http.Response", "net/url.URL"
	c := &bpf.AgentHttpclientLayout{
		RequestMethod:      l.offset(request, "Method"),
		RequestUrl:         l.offset(request, "URL"),
		RequestHost:        l.offset(request, "Host"),
		RequestCtx:         l.offset(request, "ctx"),
		RequestResponse:    l.offset(request, "Response"),
		UrlScheme:          l.offset(url, "Scheme"),
		UrlOpaque:          l.offset(url, "Opaque"),
		UrlUser:            l.offset(url, "User"),
		UrlHost:            l.offset(url, "Host"),
		UrlPath:            l.offset(url, "Path"),
		UrlRawPath:         l.offset(url, "RawPath"),
		UrlRawQuery:        l.offset(url, "RawQuery"),
		ResponseStatus:     l.offset(response, "StatusCode"),
		ResponseProtoMajor: l.offset(response, "ProtoMajor"),
		ResponseProtoMinor: l.offset(response, "ProtoMinor"),
		ResponseRequest:    l.offset(response, "Request"),
		Conn:               l.offset("net/http.persistConn", "conn"),
	}
	// Without it a protocol that declines looks like one that fails.
	c.ErrorTextType = l.typeAddr("*errors.errorString")
	c.RequestSize = l.upTo(scratchSize, c.RequestMethod, c.RequestUrl, c.RequestHost, c.RequestResponse)
	c.UrlSize = l.upTo(scratchSize, c.UrlScheme, c.UrlOpaque, c.UrlUser, c.UrlHost, c.UrlPath, c.UrlRawPath, c.UrlRawQuery)
	c.ResponseSize = l.upTo(scratchSize, c.ResponseStatus, c.ResponseProtoMajor, c.ResponseProtoMinor)
	return c
}

// httpErrorCauses says where errors that a request can fail with keep what has caused
// them. An address or a host may be in their texts: those are not read.
var httpErrorCauses = []errorCode{
	{"*net.OpError", "net.OpError", "Err", bpf.AgentTypeRoleTYPE_ERROR_INTERFACE},
	{"*os.SyscallError", "os.SyscallError", "Err", bpf.AgentTypeRoleTYPE_ERROR_INTERFACE},
	{"*fmt.wrapError", "fmt.wrapError", "err", bpf.AgentTypeRoleTYPE_ERROR_INTERFACE},
	{"syscall.Errno", "", "", bpf.AgentTypeRoleTYPE_ERROR_NUMBER},
	{"*errors.errorString", "errors.errorString", "s", bpf.AgentTypeRoleTYPE_ERROR_TEXT},
}

func decodeHTTPClient(d *decoding, raw []byte, span *event.Span) error {
	r, payload, err := recordAs[bpf.AgentHttpclientRecord](raw)
	if err != nil {
		return err
	}
	body := &r.Body
	texts, err := splitTexts(payload, body.TextLen[:])
	if err != nil {
		return err
	}
	span.Kind = trace.SpanKindClient
	detail := httpDetail(body.Key.Detail[0])
	method := texts[bpf.AgentHttpclientTextCLIENT_TEXT_METHOD]
	if known := detail.method(); known != "_OTHER" {
		method = known
	}
	d.httpMethod(span, method, "")
	host := texts[bpf.AgentHttpclientTextCLIENT_TEXT_HOST]
	flags := bpf.AgentHttpclientFlags(body.Flags)
	path, query := texts[bpf.AgentHttpclientTextCLIENT_TEXT_PATH], texts[bpf.AgentHttpclientTextCLIENT_TEXT_QUERY]
	if flags&bpf.AgentHttpclientFlagsCLIENT_HOST_ONLY == 0 && host+path != "" {
		d.str("url.full", clientURL(detail.scheme(), host, path, query, flags))
	}
	d.attributes = append(d.attributes, serverOf(detail.scheme(), host)...)
	status, errorType := d.clientOutcome(&body.Key)
	if status != 0 {
		d.num("http.response.status_code", int64(status))
	}
	if errorType != "" {
		d.str("error.type", errorType)
		span.Status = codes.Error
	}
	if v := detail.protocol(); v != "" {
		d.str("network.protocol.version", v)
	}
	if body.ResendCount > 0 {
		d.num("http.request.resend_count", int64(body.ResendCount))
	}
	d.clientPeer(body)
	return nil
}

// clientURL is the absolute URL of a request, without what must not be told.
func clientURL(scheme, host, path, query string, flags bpf.AgentHttpclientFlags) string {
	var b strings.Builder
	b.WriteString(scheme + ":")
	if flags&bpf.AgentHttpclientFlagsCLIENT_OPAQUE == 0 {
		b.WriteString("//")
		if flags&bpf.AgentHttpclientFlagsCLIENT_USER != 0 {
			b.WriteString("REDACTED:REDACTED@")
		}
		b.WriteString(host)
		if flags&bpf.AgentHttpclientFlagsCLIENT_ENCODED == 0 {
			path = (&url.URL{Path: path}).EscapedPath()
		}
		if path == "" {
			path = "/"
		}
	} else if _, rest, ok := strings.Cut(path, "@"); ok {
		path = "//REDACTED:REDACTED@" + rest
	}
	b.WriteString(path)
	if query != "" {
		b.WriteString("?" + redactQuery(query))
	}
	return b.String()
}

// serverOf is whom a request was sent to, by its URL.
func serverOf(scheme, host string) []attribute.KeyValue {
	name, port := splitHostPort(host)
	if name == "" {
		return nil
	}
	if port == 0 {
		port = map[string]int{"http": 80, "https": 443}[scheme]
	}
	return []attribute.KeyValue{attribute.String("server.address", name), attribute.Int("server.port", port)}
}

// clientOutcome is the status that came, 0 if none, and the error.type, "" if there was
// no error. Being canceled by the caller is none; 4xx and 5xx are.
func (d *decoding) clientOutcome(key *bpf.AgentSeriesKey) (status int, errorType string) {
	status = httpDetail(key.Detail[0]).status()
	switch {
	case key.ErrorType != 0:
		return status, d.clientErrorType(key.ErrorType, key.Detail[1])
	case status >= 400:
		return status, strconv.Itoa(status)
	}
	return status, ""
}

// clientErrors are the causes that the semantic conventions have names for.
var clientErrors = map[string]string{
	"*net.DNSError":                     "name_resolution_error",
	"context.deadlineExceededError":     "timeout",
	"*net.timeoutError":                 "timeout",
	"*poll.DeadlineExceededError":       "timeout",
	"*http.timeoutError":                "timeout",
	"*http.httpError":                   "timeout", // up to Go 1.20
	"http.tlsHandshakeTimeoutError":     "timeout",
	"*tls.CertificateVerificationError": "server_certificate_invalid",
	"x509.UnknownAuthorityError":        "server_certificate_invalid",
	"x509.HostnameError":                "server_certificate_invalid",
	"x509.CertificateInvalidError":      "server_certificate_invalid",
}

func (d *decoding) clientErrorType(addr, code uint64) string {
	name := d.errorType(addr)
	if name == "syscall.Errno" {
		if errno := unix.ErrnoName(unix.Errno(code)); errno != "" {
			return errno
		}
	}
	if known, ok := clientErrors[name]; ok {
		return known
	}
	if name == "" {
		return "_OTHER"
	}
	return name
}

// clientPeer sets the address that the connection of HTTP/1.x went to.
func (d *decoding) clientPeer(body *bpf.AgentHttpclientBody) {
	if body.PeerPort == 0 {
		return
	}
	var ip [16]byte
	binary.NativeEndian.PutUint64(ip[:8], body.Peer[0])
	binary.NativeEndian.PutUint64(ip[8:], body.Peer[1])
	d.str("network.peer.address", netip.AddrFrom16(ip).Unmap().String())
	d.num("network.peer.port", int64(body.PeerPort))
}

// httpClientSeries names the attributes of a series; its text is the host of the URL.
func httpClientSeries(d *decoding, key *bpf.AgentSeriesKey, s *bpf.AgentSeries) []attribute.KeyValue {
	detail := httpDetail(key.Detail[0])
	attrs := []attribute.KeyValue{attribute.String("http.request.method", detail.method())}
	host, _ := textOf(s)
	attrs = append(attrs, serverOf(detail.scheme(), host)...)
	status, errorType := d.clientOutcome(key)
	if status != 0 {
		attrs = append(attrs, attribute.Int("http.response.status_code", status))
	}
	if errorType != "" {
		attrs = append(attrs, attribute.String("error.type", errorType))
	}
	if v := detail.protocol(); v != "" {
		attrs = append(attrs, attribute.String("network.protocol.version", v))
	}
	return attrs
}

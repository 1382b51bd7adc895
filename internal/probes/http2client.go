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

package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type receiver struct {
	mu  sync.Mutex
	out *bufio.Writer
}

// got says what a call has brought along. Headers of HTTP and metadata of gRPC are both
// map[string][]string.
func (r *receiver) got(number string, values, states []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "got %s %s\n", number, strings.Join(values, ","))
	if len(states) > 0 {
		fmt.Fprintf(r.out, "state %s %s\n", number, strings.Join(states, ","))
	}
	r.out.Flush()
}

// ServeHTTP answers with the hash of the body and of the app's own header.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	h := sha256.New()
	_, err := io.Copy(h, req.Body)
	r.got(req.FormValue("i"), req.Header.Values("Traceparent"), req.Header.Values("Tracestate"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(h, "%d", len(req.Header.Get("X-Mine")))
	fmt.Fprintf(w, "%x", h.Sum(nil))
}

// unary and stream echo a text.
func (r *receiver) unary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	text := new(wrapperspb.StringValue)
	if err := decode(text); err != nil {
		return nil, err
	}
	md, _ := metadata.FromIncomingContext(ctx)
	r.got(strings.Join(md.Get("x-number"), ","), md.Get("traceparent"), md.Get("tracestate"))
	return text, nil
}

func (r *receiver) stream(_ any, stream grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	r.got(strings.Join(md.Get("x-number"), ","), md.Get("traceparent"), md.Get("tracestate"))
	for {
		text := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(text); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(text); err != nil {
			return err
		}
	}
}

func receive() {
	r := &receiver{out: bufio.NewWriter(os.Stdout)}
	plain := listen("plain")
	go func() { log.Fatal(http.Serve(plain, h2c.NewHandler(r, &http2.Server{}))) }()

	secure := httptest.NewUnstartedServer(r)
	secure.Listener.Close()
	secure.Listener = listen("tls")
	secure.EnableHTTP2 = true
	secure.StartTLS()

	calls := grpc.NewServer()
	calls.RegisterService(&grpc.ServiceDesc{
		ServiceName: "told.Service", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: r.unary}},
		Streams: []grpc.StreamDesc{{StreamName: "Stream", Handler: r.stream, ServerStreams: true, ClientStreams: true}},
	}, nil)
	grpcs := listen("grpc")
	go func() { log.Fatal(calls.Serve(grpcs)) }()

	log.Fatal(http.Serve(listen("proxy"), http.HandlerFunc(tunnel)))
}

// tunnel is a proxy for CONNECT.
func tunnel(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodConnect {
		http.Error(w, "this proxy knows CONNECT only", http.StatusMethodNotAllowed)
		return
	}
	there, err := net.Dial("tcp", req.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	fmt.Fprint(here, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { _, _ = io.Copy(there, here) }()
	_, _ = io.Copy(here, there)
}

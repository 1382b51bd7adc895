//go:build e2e

package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// grpcBuilds are releases of grpc-go with a release of Go of their time.
var grpcBuilds = []struct {
	name, toolchain, modfile string
}{
	{"1.40", "go1.18.10", "go.mod"},
	{"1.57", "go1.21.13", "go1.57.mod"},
	{"1.69", "go1.23.12", "go1.69.mod"},
	{"latest", "local", "latest.mod"},
}

const (
	grpcService = "grpc.testing.TestService/"
	unaryCall   = grpcService + "UnaryCall"
	duplexCall  = grpcService + "FullDuplexCall"
	gaveUp      = grpcService + "HalfDuplexCall" // what code it has at the server depends on its version
	grpcTimes   = 500                            // of each path
)

// grpcCall is a client span and, but where nobody listens, a server span.
type grpcCall struct {
	method, code string
	server       string // "" for the same there, "-" for no span; or else its method and code
}

// grpcVisits are the paths of testdata/grpc and the calls that each makes.
var grpcVisits = []struct {
	path, answer string
	calls        []grpcCall
}{
	{"/unary", "OK", []grpcCall{{unaryCall, "OK", ""}}},
	{"/code?is=5", "NotFound", []grpcCall{{unaryCall, "NOT_FOUND", ""}}},
	{"/code?is=13", "Internal", []grpcCall{{unaryCall, "INTERNAL", ""}}},
	{"/goroutine", "OK", []grpcCall{{unaryCall, "OK", ""}}},
	{"/propagated", "OK", []grpcCall{{unaryCall, "OK", ""}}},
	{"/unknown", "Unimplemented", []grpcCall{{grpcService + "UnimplementedCall", "UNIMPLEMENTED", ""}}},
	{"/unknown-service", "Unimplemented", []grpcCall{{"grpc.testing.UnimplementedService/UnimplementedCall", "UNIMPLEMENTED", "_OTHER UNIMPLEMENTED UNIMPLEMENTED"}}},
	{"/bidi", "OK", []grpcCall{{duplexCall, "OK", ""}}},
	{"/bidi-code", "DataLoss", []grpcCall{{duplexCall, "DATA_LOSS", ""}}},
	{"/bidi-two", "OK", []grpcCall{{duplexCall, "OK", ""}, {duplexCall, "OK", ""}, {unaryCall, "OK", ""}}},
	{"/download", "OK", []grpcCall{{grpcService + "StreamingOutputCall", "OK", ""}}},
	{"/upload", "OK", []grpcCall{{grpcService + "StreamingInputCall", "OK", ""}}},
	{"/cancel", "Canceled", []grpcCall{{duplexCall, "CANCELLED", ""}}},
	{"/deadline", "DeadlineExceeded", []grpcCall{{gaveUp, "DEADLINE_EXCEEDED", gaveUp}}},
	{"/down", "Unavailable", []grpcCall{{grpcService + "EmptyCall", "UNAVAILABLE", "-"}}},
	{"/down-stream", "Unavailable", []grpcCall{{duplexCall, "UNAVAILABLE", "-"}}},
}

func (e *e2e) testGRPC(t *testing.T) {
	for _, b := range oldestAndNewest(grpcBuilds) {
		path := e.build(t, "grpc-"+b.name, "testdata/grpc", []string{"GOTOOLCHAIN=" + b.toolchain}, "-modfile="+b.modfile, "-ldflags=-s -w")
		t.Run(b.name, func(t *testing.T) { e.testGRPCBuild(t, path) })
		if b.toolchain == "local" {
			t.Run("kept", func(t *testing.T) { e.testGRPCKept(t, path) })
		}
	}
}

// startGRPC runs testdata/grpc and returns its address.
func startGRPC(t *testing.T, path string, args ...string) (*proc, string) {
	t.Helper()
	p := startProc(t, "grpc", nil, path, args...)
	var address string
	eventually(t, 10*time.Second, "the program listens", func() bool {
		_, rest, _ := strings.Cut(p.output(), " listens on ")
		address, _, _ = strings.Cut(rest, "\n")
		return strings.Contains(rest, "\n")
	})
	return p, address
}

func (e *e2e) testGRPCBuild(t *testing.T, path string) {
	server, address := startGRPC(t, path, "-workers", "2")
	front, url := startGRPC(t, path, "-target", address)
	a := e.startAgent(t, "--pid", fmt.Sprint(server.pid()), "--pid", fmt.Sprint(front.pid()))
	want := 0
	for _, v := range grpcVisits {
		want += grpcTimes
		for _, c := range v.calls {
			want += grpcTimes
			if c.server != "-" {
				want += grpcTimes
			}
		}
	}
	contexts := visitGRPC(t, "http://"+url)
	eventually(t, 20*time.Second, "every call is two spans", func() bool { return a.seen.Counts().Spans >= want })
	a.noLosses(t)
	spans := a.finish(t)
	if len(spans) != want {
		t.Errorf("%d spans, want %d", len(spans), want)
	}
	spans = checkGRPCHops(t, spans, contexts)
	checkGRPC(t, spans, address, contexts)
	kinds := map[trace.SpanKind]int{}
	for _, s := range spans {
		if s.Attrs.Text("rpc.system.name") == "grpc" {
			kinds[s.Kind]++
		}
	}
	for kind, name := range map[trace.SpanKind]string{trace.SpanKindServer: "rpc.server.call.duration", trace.SpanKindClient: "rpc.client.call.duration"} {
		if n := histogramCount(a.seen, name); n != uint64(kinds[kind]) {
			t.Errorf("%s counts %d, want %d", name, n, kinds[kind])
		}
	}
}

// testGRPCKept: of traces that are not sampled, failed ones are kept with their calls,
// unary or streaming; to the server it is its own call that failed.
func (e *e2e) testGRPCKept(t *testing.T, path string) {
	server, address := startGRPC(t, path)
	front, url := startGRPC(t, path, "-target", address)
	a := e.launchAgent(t, []string{"PLAIN_CLOUD_TRACE_SAMPLE_RATE=0", "PLAIN_CLOUD_TRACE_KEEP_LIMIT=100000"},
		"--pid", fmt.Sprint(server.pid()), "--pid", fmt.Sprint(front.pid()))
	a.waitReady(t)
	for range perPath {
		for _, path := range []string{"/unary", "/bidi", "/cancel?fail=1", "/code?is=13&fail=1", "/bidi-code?fail=1", "/down-stream?fail=1"} {
			statusOf("http://" + url + path)
		}
	}
	got := map[string]int{}
	for _, s := range a.finish(t) {
		got[s.Kind.String()+" "+s.Name+" "+s.Attrs.Text("rpc.response.status_code")+" "+s.Attrs.Text("sampling.reason")]++
	}
	compareCounts(t, got, map[string]int{
		"server GET /code  error": perPath, "client " + unaryCall + " INTERNAL error": perPath, "server " + unaryCall + " INTERNAL error": perPath,
		"server GET /bidi-code  error": perPath, "client " + duplexCall + " DATA_LOSS error": perPath, "server " + duplexCall + " DATA_LOSS error": perPath,
		"server GET /cancel  error": perPath, "client " + duplexCall + " CANCELLED error": perPath,
		"server GET /down-stream  error": perPath, "client " + duplexCall + " UNAVAILABLE error": perPath,
	})
}

// visitGRPC goes to every path, many at a time, and returns the contexts that it had the
// program send along.
func visitGRPC(t *testing.T, base string) map[string]bool {
	t.Helper()
	type job struct{ path, answer, context string }
	jobs := make(chan job)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for j := range jobs {
				req, err := http.NewRequest(http.MethodGet, base+j.path, nil)
				if err != nil {
					t.Error(err)
					continue
				}
				req.Header.Set("X-Context", "00-"+j.context+"-01")
				res, err := client.Do(req)
				if err != nil {
					t.Errorf("%s: %v", j.path, err)
					continue
				}
				answer, _ := io.ReadAll(res.Body)
				res.Body.Close()
				if string(answer) != j.answer {
					t.Errorf("%s: %s, want %s", j.path, answer, j.answer)
				}
			}
		})
	}
	contexts := map[string]bool{}
	for i := range grpcTimes {
		for _, v := range grpcVisits {
			context := fmt.Sprintf("%032x-%016x", 0xabc0000+i, 0xdef0000+i)
			if v.path == "/propagated" {
				contexts[context] = true
			}
			jobs <- job{v.path, v.answer, context}
		}
	}
	close(jobs)
	wg.Wait()
	return contexts
}

func checkGRPC(t *testing.T, spans []observer.Span, address string, contexts map[string]bool) {
	t.Helper()
	roots := map[trace.SpanID]observer.Span{}
	for _, s := range spans {
		if s.Attrs.Text("http.request.method") != "" {
			roots[s.SpanID] = s
		}
	}
	host, port, _ := strings.Cut(address, ":")
	got := map[string]int{}
	for _, s := range spans {
		if s.Attrs.Text("rpc.system.name") != "grpc" {
			continue
		}
		where := "server"
		if s.Kind == trace.SpanKindClient {
			root, ok := roots[s.ParentID]
			if !ok || root.TraceID != s.TraceID {
				t.Errorf("no request is the parent of %s", summary(s))
			}
			where = root.Attrs.Text("url.path")
			if q := root.Attrs.Text("url.query"); q != "" {
				where += "?" + q
			}
			to := port
			if strings.HasPrefix(where, "/down") && where != "/download" {
				to = "1"
			}
			if s.Start.Before(root.Start.Add(-time.Millisecond)) || s.Attrs.Text("server.address") != host || s.Attrs.Text("server.port") != to {
				t.Errorf("of %s: %s", where, summary(s))
			}
		} else if s.ParentID.IsValid() {
			context := s.TraceID.String() + "-" + s.ParentID.String()
			if !contexts[context] {
				t.Errorf("a context that nobody sent, or sent once: %s", context)
			}
			delete(contexts, context)
		}
		errorType := s.Attrs.Text("error.type")
		if (s.Status == codes.Error) != (errorType != "") || errorType != "" && errorType != s.Attrs.Text("rpc.response.status_code") || s.Duration() > 2*time.Second {
			t.Errorf("%v %s", s.Duration(), summary(s))
		}
		code := s.Attrs.Text("rpc.response.status_code")
		if where == "server" && s.Attrs.Text("rpc.method") == gaveUp {
			got["server "+gaveUp]++
			continue
		}
		got[where+" "+s.Attrs.Text("rpc.method")+" "+code+" "+errorType]++
	}
	if len(contexts) > 0 {
		t.Errorf("%d contexts that were sent have no span", len(contexts))
	}
	compareCounts(t, got, wantGRPC())
}

// checkGRPCHops: each server span but those with a context of their own has the client span
// of its call as its parent, and no other has. It returns the spans without these parents.
func checkGRPCHops(t *testing.T, spans []observer.Span, contexts map[string]bool) []observer.Span {
	t.Helper()
	clients := map[trace.SpanID]observer.Span{}
	for _, s := range spans {
		if s.Kind == trace.SpanKindClient {
			clients[s.SpanID] = s
		}
	}
	for i := range spans {
		s := &spans[i]
		if s.Kind != trace.SpanKindServer || s.Attrs.Text("rpc.system.name") != "grpc" || contexts[s.TraceID.String()+"-"+s.ParentID.String()] {
			continue
		}
		c, ok := clients[s.ParentID]
		if !s.ParentID.IsValid() && s.Attrs.Text("rpc.method") == gaveUp {
			continue // its caller may be gone before it is served
		}
		method := s.Attrs.Text("rpc.method")
		if method == "_OTHER" {
			method = s.Attrs.Text("rpc.method_original")
		}
		if !ok || c.TraceID != s.TraceID || c.Attrs.Text("rpc.method") != method || s.Start.Before(c.Start) || s.Start.After(c.End) || s.Flags&0x300 != 0x300 {
			t.Errorf("not joined with its caller: %s, %s", summary(*s), summary(c))
		}
		delete(clients, s.ParentID)
		s.ParentID = trace.SpanID{}
	}
	return spans
}

// wantGRPC counts the spans by path, or "server", method, code and error.type.
func wantGRPC() map[string]int {
	want := map[string]int{}
	for _, v := range grpcVisits {
		for _, c := range v.calls {
			errorType := c.code
			if c.code == "OK" {
				errorType = ""
			}
			want[v.path+" "+c.method+" "+c.code+" "+errorType] += grpcTimes
			if c.server != "" {
				if c.server != "-" {
					want["server "+c.server] += grpcTimes
				}
				continue
			}
			if c.code == "NOT_FOUND" || c.code == "CANCELLED" {
				errorType = "" // no fault of the server
			}
			want["server "+c.method+" "+c.code+" "+errorType] += grpcTimes
		}
	}
	return want
}

func compareCounts(t *testing.T, got, want map[string]int) {
	t.Helper()
	for k, n := range want {
		if got[k] != n {
			t.Errorf("%d × %q, want %d", got[k], k, n)
		}
		delete(got, k)
	}
	if len(got) > 0 {
		t.Errorf("also got %v", got)
	}
}

// testEtcd: etcd as Debian builds it, with grpc-go 1.33. Its gateway is an HTTP server that
// calls its gRPC server.
func (e *e2e) testEtcd(t *testing.T) {
	listen, peer := freeAddress(t), "http://"+freeAddress(t)
	p := startProc(t, "etcd", nil, "/usr/bin/etcd", "--data-dir", t.TempDir(),
		"--listen-client-urls", "http://"+listen, "--advertise-client-urls", "http://"+listen,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	etcdctl := func(args ...string) {
		t.Helper()
		cmd := exec.Command("/usr/bin/etcdctl", append([]string{"--endpoints", listen}, args...)...)
		cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("etcdctl %v: %v\n%s", args, err, out)
		}
	}
	eventually(t, 20*time.Second, "etcd is healthy", func() bool { return statusOf("http://"+listen+"/health") == 200 })
	a := e.startAgent(t, "--pid", fmt.Sprint(p.pid()))
	for i := range perPath {
		etcdctl("put", "key", fmt.Sprint(i))
		etcdctl("get", "key")
		res, err := client.Post("http://"+listen+"/v3/kv/range", "application/json", strings.NewReader(`{"key":"a2V5"}`))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	eventually(t, 10*time.Second, "every call is a span", func() bool { return a.seen.Counts().Spans >= 5*perPath })
	a.noLosses(t)
	spans := a.finish(t)
	names, got := map[trace.SpanID]string{}, map[string]int{}
	for _, s := range spans {
		names[s.SpanID] = s.Attrs.Text("url.path")
	}
	for _, s := range spans {
		got[strings.Join([]string{s.Kind.String(), s.Attrs.Text("rpc.method"), s.Attrs.Text("rpc.response.status_code"), names[s.ParentID]}, " ")]++
	}
	compareCounts(t, got, map[string]int{
		"server etcdserverpb.KV/Put OK ":               perPath,
		"server etcdserverpb.KV/Range OK ":             2 * perPath,
		"client etcdserverpb.KV/Range OK /v3/kv/range": perPath,
		"server   ": perPath, // the gateway's
	})
}

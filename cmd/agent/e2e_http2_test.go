//go:build e2e

package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// http2Builds are servers of HTTP/2: net/http's own, which moved into a package in Go
// 1.27, and golang.org/x/net/http2, which since then is a front of it. Those without
// latest.mod have the ServeMux of Go 1.21.
var http2Builds = []struct {
	name, toolchain, modfile string
	modes                    []string
}{
	{"go1.18", "go1.18.10", "", []string{"tls", "x", "h2c"}},
	{"go1.20", "go1.20.14", "", []string{"tls", "h2c"}},
	{"go1.22", "go1.22.12", "", []string{"tls", "x"}},
	{"current", "local", "latest.mod", []string{"tls", "x", "h2c"}},
	{"go1.27", "go1.27.4", "latest.mod", []string{"tls", "x", "h2c"}},
}

// http2Requests are how many of each path go over one connection.
const http2Requests = 100

// http2Visits are the paths of testdata/http2 and what their spans must say.
var http2Visits = []struct {
	path, route, status, errorType string
	times                          int // http2Requests
}{
	{"/items/7", "/items/", "200", "", 10},
	{"/silent", "/silent", "200", "", 1},
	{"/status?as=404", "/status", "404", "", 1},
	{"/status?as=503", "/status", "503", "503", 1},
	{"/recovered", "/recovered", "500", "500", 1},
	{"/abort", "/abort", "", "*errors.errorString", 1},
	{"/panic", "/panic", "", "string", 1},
	{"/late", "/late", "202", "string", 1},
	{"/goexit", "/goexit", "", "runtime.Goexit", 1},
	{"/stream", "/stream", "200", "", 1},
	{"/none", "", "404", "", 1},
}

func (e *e2e) testHTTP2(t *testing.T) {
	builds := oldestAndNewest(http2Builds)
	if len(builds) < len(http2Builds) { // the last release in which x/net has a transport of its own
		builds = append(builds, http2Builds[len(http2Builds)-2])
	}
	for _, b := range builds {
		flags := []string{"-ldflags=-s -w"}
		if b.modfile != "" {
			flags = append(flags, "-modfile="+b.modfile)
		}
		path := e.build(t, "http2-"+b.name, "testdata/http2", []string{"GOTOOLCHAIN=" + b.toolchain}, flags...)
		for _, mode := range b.modes {
			t.Run(b.name+"/"+mode, func(t *testing.T) { e.testHTTP2Server(t, path, mode) })
			t.Run(b.name+"/"+mode+"_calls", func(t *testing.T) { e.testHTTP2Calls(t, path, mode) })
		}
	}
	t.Run("curl", e.testCurl)
}

// startHTTP2 starts testdata/http2 and returns it with its URL.
func startHTTP2(t *testing.T, path, mode string) (p *proc, scheme, address string) {
	t.Helper()
	p = startProc(t, mode, nil, path, "-mode", mode)
	eventually(t, 10*time.Second, "the server listens", func() bool {
		_, rest, _ := strings.Cut(p.output(), " listens on ")
		address, _, _ = strings.Cut(rest, "\n")
		return strings.Contains(rest, "\n")
	})
	if mode == "h2c" {
		return p, "http", address
	}
	return p, "https", address
}

// testHTTP2Calls: calls of golang.org/x/net/http2's own transport, and of net/http's that
// hands requests on to it, joined with the server.
func (e *e2e) testHTTP2Calls(t *testing.T, path, mode string) {
	p, scheme, address := startHTTP2(t, path, mode)
	a := e.startAgent(t, "--pid", fmt.Sprint(p.pid()))
	calls := map[string]string{
		"/call":    "/call(call:200(/items/7))",
		"/missing": "/missing(call:404!(/none))",
		"/refused": "/refused(call:ECONNREFUSED!)",
	}
	if scheme == "https" {
		calls["/configured"] = "/configured(call:200(/items/7))"
	}
	c, want, spans := http2Client(), map[string]int{}, 0
	defer c.CloseIdleConnections()
	for path, tree := range calls {
		for range perPath {
			if code := sendBy(c, http.MethodGet, scheme+"://"+address+path, nil); code != 200 {
				t.Fatalf("%s answers %d", path, code)
			}
		}
		want[tree] = perPath
		spans += perPath * (strings.Count(tree, "/") + strings.Count(tree, "call:") - strings.Count(tree, "/items"))
	}
	eventually(t, 15*time.Second, "every call is a span", func() bool { return a.seen.Counts().Spans >= spans })
	a.noLosses(t)
	got := a.finish(t)
	compareTrees(t, trees(got, clientLabel), want)
	for _, s := range got {
		if s.Kind == trace.SpanKindClient && s.Attrs.Text("error.type") == "" && s.Attrs.Text("network.protocol.version") != "2" {
			t.Errorf("a call not of HTTP/2: %s", summary(s))
		}
	}
}

func (e *e2e) testHTTP2Server(t *testing.T, path, mode string) {
	p, scheme, address := startHTTP2(t, path, mode)
	a := e.startAgent(t, "--pid", fmt.Sprint(p.pid()))
	traces := sendHTTP2(t, scheme+"://"+address)
	want := 0
	for _, v := range http2Visits {
		want += v.times * http2Requests
	}
	eventually(t, 15*time.Second, "every request is a span", func() bool { return a.seen.Counts().Spans >= want })
	a.noLosses(t)
	spans := a.finish(t)
	checkHTTP2(t, spans, scheme)
	for _, s := range spans {
		if parent, ok := traces[s.TraceID.String()]; ok {
			delete(traces, s.TraceID.String())
			if s.ParentID.String() != parent {
				t.Errorf("parent %v, sent %s", s.ParentID, parent)
			}
		}
	}
	if len(traces) > 0 {
		t.Errorf("%d of the traces that were sent have no span", len(traces))
	}
}

// http2Client speaks HTTP/2 only.
func http2Client() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: protocols, // the server made its certificate itself
	}}
}

// sendHTTP2 makes all requests over one connection, many at a time, and returns the
// parents that it sent, by trace.
func sendHTTP2(t *testing.T, base string) map[string]string {
	t.Helper()
	c := http2Client()
	defer c.CloseIdleConnections()
	traces := map[string]string{}
	jobs := make(chan *http.Request)
	var wg sync.WaitGroup
	var wrong atomic.Int64
	for range 16 {
		wg.Go(func() {
			for req := range jobs {
				if err := getHTTP2(c, req); err != nil && wrong.Add(1) < 4 {
					t.Logf("%s: %v", req.URL.Path, err)
				}
			}
		})
	}
	for i := range http2Requests {
		for v, visit := range http2Visits {
			for n := range visit.times {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+visit.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					id, parent := fmt.Sprintf("%032x", 0xabc0000+i*100+v), fmt.Sprintf("%016x", 0xdef0000+i*100+v)
					req.Header.Set("Traceparent", "00-"+id+"-"+parent+"-01")
					traces[id] = parent
				}
				jobs <- req
			}
		}
	}
	close(jobs)
	wg.Wait()
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d requests had no answer of HTTP/2", n)
	}
	return traces
}

// getHTTP2 makes a request; of a stream it reads a line and resets it.
func getHTTP2(c *http.Client, req *http.Request) error {
	res, err := c.Do(req)
	if err != nil && strings.Contains(err.Error(), "INTERNAL_ERROR") {
		return nil // a handler that panics
	}
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if req.URL.Path == "/stream" {
		_, _ = bufio.NewReader(res.Body).ReadString('\n')
	}
	if res.ProtoMajor != 2 {
		return fmt.Errorf("answered by %s", res.Proto)
	}
	if req.URL.Path == "/stream" {
		return nil
	}
	for r := bufio.NewReader(res.Body); err == nil; {
		_, err = r.ReadString('\n')
	}
	return nil
}

func checkHTTP2(t *testing.T, spans []observer.Span, scheme string) {
	t.Helper()
	got := map[string]int{}
	for _, s := range spans {
		path := s.Attrs.Text("url.path")
		if q := s.Attrs.Text("url.query"); q != "" {
			path += "?" + q
		}
		errorType := s.Attrs.Text("error.type")
		got[strings.Join([]string{path, s.Name, s.Attrs.Text("http.response.status_code"), errorType}, " ")]++
		if s.Kind != trace.SpanKindServer || s.Attrs.Text("network.protocol.version") != "2" ||
			s.Attrs.Text("url.scheme") != scheme || s.Attrs.Text("network.peer.address") != "127.0.0.1" ||
			s.Attrs.Text("user_agent.original") == "" || (s.Status == codes.Error) != (errorType != "") {
			t.Errorf("%s", summary(s))
		}
		if d := s.Duration(); d < 0 || d > time.Second {
			t.Errorf("%s took %v", path, d)
		}
	}
	for _, v := range http2Visits {
		name := "GET"
		if v.route != "" {
			name += " " + v.route
		}
		key := strings.Join([]string{v.path, name, v.status, v.errorType}, " ")
		if got[key] != v.times*http2Requests {
			t.Errorf("%d × %q, want %d", got[key], key, v.times*http2Requests)
		}
		delete(got, key)
	}
	if len(got) > 0 {
		t.Errorf("also got %v", got)
	}
}

// testCurl: another client, and a server that nobody here wrote: Caddy, built by Debian
// with Go 1.19, over TLS.
func (e *e2e) testCurl(t *testing.T) {
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "file.txt"), []byte("some text\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	listen := freeAddress(t)
	config := filepath.Join(home, "Caddyfile")
	text := fmt.Sprintf("{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\nhttps://%s {\n\ttls internal\n\troot * %s\n\tfile_server\n}\n", listen, home)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p := startProc(t, "caddy", []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_DATA_HOME=" + home},
		caddy, "run", "--config", config, "--adapter", "caddyfile")
	args := []string{"--http2", "--insecure", "--silent", "--max-time", "20"}
	eventually(t, 20*time.Second, "caddy answers", func() bool {
		return exec.Command("curl", append(args, "https://"+listen+"/file.txt")...).Run() == nil
	})
	a := e.startAgent(t, "--pid", fmt.Sprint(p.pid()))
	args = append(args, "--parallel", "--output", "/dev/null", "--output", "/dev/null", fmt.Sprintf("https://%s/file.txt?[1-%d]", listen, http2Requests), "https://"+listen+"/none.txt")
	if out, err := exec.Command("curl", args...).CombinedOutput(); err != nil {
		t.Fatalf("curl: %v\n%s", err, out)
	}
	eventually(t, 10*time.Second, "every request is a span", func() bool { return a.seen.Counts().Spans >= http2Requests+1 })
	a.noLosses(t)
	got := map[string]int{}
	for _, s := range a.finish(t) {
		got[s.Name+" "+s.Attrs.Text("url.path")+" "+s.Attrs.Text("http.response.status_code")+" "+s.Attrs.Text("network.protocol.version")+" "+s.Attrs.Text("url.scheme")]++
	}
	if len(got) != 2 || got["GET /file.txt 200 2 https"] != http2Requests || got["GET /none.txt 404 2 https"] != 1 {
		t.Errorf("got %v", got)
	}
}

//go:build e2e

package main

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// tree is a trace as a text: the kind of each span, its name, and what a test asks of it,
// children in brackets, in the order of their begin.
func tree(spans []observer.Span, label func(observer.Span) string) string {
	known := map[trace.SpanID]bool{}
	for _, s := range spans {
		known[s.SpanID] = true
	}
	children := map[trace.SpanID][]observer.Span{}
	for _, s := range spans {
		parent := s.ParentID
		if !known[parent] && parent.IsValid() {
			return fmt.Sprintf("the parent of %s is not there", label(s))
		}
		children[parent] = append(children[parent], s)
	}
	var write func(trace.SpanID) string
	write = func(id trace.SpanID) string {
		list := children[id]
		slices.SortFunc(list, func(a, b observer.Span) int { return a.Start.Compare(b.Start) })
		var texts []string
		for _, s := range list {
			text := label(s)
			if inner := write(s.SpanID); inner != "" {
				text += "(" + inner + ")"
			}
			texts = append(texts, text)
		}
		return strings.Join(texts, " ")
	}
	return write(trace.SpanID{})
}

// trees counts equal traces.
func trees(spans []observer.Span, label func(observer.Span) string) map[string]int {
	byTrace := map[trace.TraceID][]observer.Span{}
	for _, s := range spans {
		byTrace[s.TraceID] = append(byTrace[s.TraceID], s)
	}
	got := map[string]int{}
	for _, list := range byTrace {
		got[tree(list, label)]++
	}
	return got
}

func compareTrees(t *testing.T, got, want map[string]int) {
	t.Helper()
	for text, n := range want {
		if got[text] != n {
			t.Errorf("%d traces, want %d: %s", got[text], n, text)
		}
	}
	for text, n := range got {
		if _, ok := want[text]; !ok {
			t.Errorf("%d traces like nothing expected: %s", n, text)
		}
	}
}

// clientLabel says of a server span its path, of a client span what became of it.
func clientLabel(s observer.Span) string {
	if s.Kind == trace.SpanKindServer {
		return s.Attrs.Text("url.path")
	}
	text := "call:" + s.Attrs.Text("http.response.status_code")
	if e := s.Attrs.Text("error.type"); e != s.Attrs.Text("http.response.status_code") {
		text += e
	}
	if s.Status.String() == "Error" {
		text += "!"
	}
	return text
}

// testClient: calls of net/http's client, with all that can become of them.
func (e *e2e) testClient(t *testing.T) {
	type variant struct {
		name  string
		env   []string
		flags []string
	}
	for _, v := range oldestAndNewest([]variant{
		{"local", nil, nil},
		{"stripped_pie", nil, []string{"-buildmode=pie", "-ldflags=-s -w"}},
		{"go1.22", []string{"GOTOOLCHAIN=go1.22.12"}, nil},
		{"go1.27", []string{"GOTOOLCHAIN=go1.27.4"}, nil},
	}) {
		t.Run(v.name, func(t *testing.T) {
			path := e.build(t, "client-"+v.name, "testdata/client", v.env, v.flags...)
			c := startCaller(t, "", path, "127.0.0.1:0")
			a := e.startAgent(t, "--exe", path)
			paths := slices.Sorted(maps.Keys(calls))
			if v.name == "go1.22" {
				paths = slices.DeleteFunc(paths, func(p string) bool { return p == "/h2c" })
			}
			checkCalls(t, a, c.url, paths)
		})
	}
}

// calls are the paths of testdata/client, and the traces that each of them gives.
var calls = map[string][]string{
	"/plain":        {"/plain(call:200(/answer))"},
	"/other":        {"/other(call:200(/answer))"},
	"/stranger":     {"/stranger", "call:200(/answer)"},
	"/redirect":     {"/redirect(call:302(/hop) call:302(/hop) call:200(/answer))"},
	"/missing":      {"/missing(call:404!(/nothing))"},
	"/secret":       {"/secret(call:200(/answer))"},
	"/refused":      {"/refused(call:ECONNREFUSED!)"},
	"/unknown":      {"/unknown(call:name_resolution_error!)"},
	"/timeout":      {"/timeout(call:timeout!(/slow))"},
	"/late":         {"/late(call:timeout!(/slow))"},
	"/cancel":       {"/cancel(call:(/slow))"},
	"/noscheme":     {"/noscheme(call:*errors.errorString!)"},
	"/untrusted":    {"/untrusted(call:server_certificate_invalid!)"},
	"/https":        {"/https(call:200(/answer))"},
	"/http2":        {"/http2(call:200(/answer))"},
	"/http2-upload": {"/http2-upload(call:200(/answer))"},
	"/http2-cancel": {"/http2-cancel(call:timeout!(/slow))"},
	"/h2c":          {"/h2c(call:200(/answer))"},
	"/two":          {"/two(call:200(/answer) call:200(/answer))"},
}

func checkCalls(t *testing.T, a *watcher, url string, paths []string) {
	want := map[string]int{}
	spans := 0
	for _, path := range paths {
		for range perPath {
			if code := statusOf(url + path); code != 200 {
				t.Fatalf("%s answers %d", path, code)
			}
		}
		for _, text := range calls[path] {
			want[text] += perPath
			spans += perPath * (strings.Count(text, "/") + strings.Count(text, "call:"))
		}
	}
	eventually(t, 15*time.Second, "every call is a span", func() bool { return a.seen.Counts().Spans >= spans })
	a.noLosses(t)
	got := a.finish(t)
	compareTrees(t, trees(got, clientLabel), want)

	port := portOf(t, url)
	seen := map[string]observer.Span{}
	for _, s := range got {
		if s.Kind == trace.SpanKindClient {
			for _, o := range got {
				if o.SpanID == s.ParentID {
					seen[o.Attrs.Text("url.path")] = s
				}
			}
		}
		if strings.Contains(summary(s), "geheim") || strings.Contains(summary(s), "maria") {
			t.Errorf("credentials are told: %s", summary(s))
		}
	}
	for path, attrs := range map[string]map[string]string{
		"/plain": {
			"url.full": url + "/answer", "server.address": "127.0.0.1", "server.port": port, "http.request.method": "GET",
			"network.protocol.version": "1.1", "network.peer.address": "127.0.0.1", "network.peer.port": port,
			"http.request.resend_count": "",
		},
		"/secret":       {"url.full": "http://REDACTED:REDACTED@127.0.0.1:" + port + "/answer?sig=REDACTED&a=b%20c"},
		"/redirect":     {"http.request.resend_count": "2", "url.full": url + "/answer"},
		"/unknown":      {"server.address": "no.such.host.invalid", "server.port": "80", "network.peer.address": ""},
		"/two":          {"http.request.method": "_OTHER", "http.request.method_original": "PURGE"},
		"/http2":        {"http.request.method": "GET", "network.protocol.version": "2", "network.peer.address": "127.0.0.1", "url.scheme": ""},
		"/http2-upload": {"http.request.method": "POST", "http.response.status_code": "200", "network.protocol.version": "2"},
	} {
		for key, want := range attrs {
			if s := seen[path]; s.Attrs.Text(key) != want {
				t.Errorf("%s: %s is %q, want %q", path, key, s.Attrs.Text(key), want)
			}
		}
	}
}

// proxied is a trace of Caddy in front of the shop: with the path in all spans, so that
// whoever takes part in a stranger's trace shows.
func proxied(s observer.Span) string {
	text := s.Service() + ":" + s.Kind.String()
	switch {
	case s.Attrs.Text("url.path") != "":
		return text + ":" + s.Attrs.Text("url.path")
	case s.Attrs.Text("url.full") != "":
		_, rest, _ := strings.Cut(s.Attrs.Text("url.full"), "//")
		return text + ":" + rest[strings.IndexByte(rest, '/'):]
	}
	return text + ":" + s.Attrs.Text("db.system.name")
}

// testHops: Caddy as a reverse proxy in front of the shop, 1000 requests by 32 clients on
// kept connections: each is one trace of four spans, without a header in between.
func (e *e2e) testHops(t *testing.T) {
	shop := e.startShop(t, e.shop)
	home := t.TempDir()
	listen := freeAddress(t)
	config := filepath.Join(home, "Caddyfile")
	text := "{\n\tadmin off\n\tauto_https off\n}\nhttp://" + listen + " {\n\treverse_proxy " + strings.TrimPrefix(shop.url, "http://") + "\n}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startProc(t, "caddy", []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_DATA_HOME=" + home},
		caddy, "run", "--config", config, "--adapter", "caddyfile")
	url := "http://" + listen
	eventually(t, 20*time.Second, "caddy answers", func() bool { return statusOf(url+"/plain") == 200 })
	a := e.startAgent(t, "--pid", fmt.Sprint(p.pid()), "--pid", fmt.Sprint(shop.pid()))

	const clients, requests = 32, 1000
	want := map[string]int{}
	paths := make(chan string, requests)
	for i := range requests {
		path := fmt.Sprintf("/items/%d", 1+i%9)
		want[fmt.Sprintf("caddy:server:%[1]s(caddy:client:%[1]s(shop:server:%[1]s(shop:client:sqlite)))", path)]++
		paths <- path
	}
	close(paths)
	var working sync.WaitGroup
	many := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}, Timeout: client.Timeout}
	for range clients {
		working.Go(func() {
			for path := range paths {
				if code := sendBy(many, http.MethodGet, url+path, nil); code != 200 {
					t.Errorf("%s answers %d", path, code)
				}
			}
		})
	}
	working.Wait()
	eventually(t, 15*time.Second, "every request is four spans", func() bool { return a.seen.Counts().Spans >= 4*requests })
	a.noLosses(t)
	got := a.finish(t)
	compareTrees(t, trees(got, proxied), want)
	for _, s := range got {
		remote := s.Flags&0x300 == 0x300
		if joined := s.Service() == "shop" && s.Kind == trace.SpanKindServer; remote != joined {
			t.Fatalf("remote parent: %v, of %s", remote, summary(s))
		}
	}
}

//go:build e2e

package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// autoSDKBuilds are the oldest and the newest of go.opentelemetry.io/auto/sdk, with the
// versions of OpenTelemetry's API that they came with.
var autoSDKBuilds = []struct{ name, toolchain, modfile string }{
	{"1.1.0", "go1.22.12", ""},
	{"latest", "local", "latest.mod"},
}

// autoSDKTraces are the paths of testdata/autosdk, and the traces that they make, of so
// many spans.
var autoSDKTraces = map[string]struct {
	spans  int
	traces []string
}{
	"/plain":     {2, []string{"/plain(sql:plain)"}},
	"/rich":      {3, []string{"/rich(rich, renamed(sql:rich))"}},
	"/nested":    {6, []string{"/nested(outer(inner(sql:inner) sql:outer) sql:beside)"}},
	"/failed":    {6, []string{"/failed(outer(inner(sql:inner) sql:outer) sql:beside)"}},
	"/elsewhere": {3, []string{"/elsewhere(elsewhere(sql:elsewhere))"}},
	"/worker":    {6, []string{"/worker", "outer(inner(sql:inner) sql:outer)", "sql:beside"}},
	"/client":    {5, []string{"/client(call(client(/plain(sql:plain))))"}},
	"/large":     {4, []string{"/large(large 2 large 20 large 200)"}},
	"/nan":       {2, []string{"/nan(not a number)"}},
	"/timed":     {2, []string{"/timed(timed)"}},
	"/linked":    {2, []string{"/linked(linked)"}},
}

// The scope that the program has named, and that of spans whose JSON was not to be had.
const (
	autoScope   = "shop/orders"
	autoNoScope = "github.com/plainframework/agent/go.opentelemetry.io/auto/sdk"
)

func isAutoSpan(s observer.Span) bool { return s.Scope == autoScope || s.Scope == autoNoScope }

// autoSDKLabel is the name of what the program has made itself.
func autoSDKLabel(s observer.Span) string {
	switch {
	case isAutoSpan(s):
		return s.Name
	case s.Kind == trace.SpanKindServer:
		return s.Attrs.Text("url.path")
	case s.Attrs.Text("db.query.text") != "":
		return "sql:" + strings.TrimPrefix(s.Attrs.Text("db.query.text"), "DELETE FROM ")
	}
	return s.Kind.String()
}

func (e *e2e) testAutoSDK(t *testing.T) {
	for _, b := range autoSDKBuilds {
		flags := []string{"-ldflags=-s -w"}
		if b.modfile != "" {
			flags = append(flags, "-modfile="+b.modfile)
		}
		path := e.build(t, "autosdk-"+b.name, "testdata/autosdk", []string{"GOTOOLCHAIN=" + b.toolchain}, flags...)
		t.Run(b.name, func(t *testing.T) { e.testAutoSpans(t, path) })
		t.Run(b.name+" kept", func(t *testing.T) { e.testAutoSpansKept(t, path) })
		t.Run(b.name+" forgotten", func(t *testing.T) { e.testAutoSpansForgotten(t, path) })
	}
}

// visitAll asks for each path several times, by many clients at a time.
func visitAll(t *testing.T, url string, times int) {
	t.Helper()
	paths := make(chan string)
	var working sync.WaitGroup
	for range 16 {
		working.Go(func() {
			for path := range paths {
				if code := sendBy(client, http.MethodGet, url+path, nil); code != 200 && code != 500 {
					t.Errorf("%s answers %d", path, code)
				}
			}
		})
	}
	for range times {
		for path := range autoSDKTraces {
			paths <- path
		}
	}
	close(paths)
	working.Wait()
}

// testAutoSpans: every span that the program makes is there, with what it says, between
// ours and above ours.
func (e *e2e) testAutoSpans(t *testing.T, path string) {
	const times = 50
	s := awaitShop(t, startProc(t, "autosdk", nil, path))
	a := e.startAgent(t, "--pid", fmt.Sprint(s.pid()))
	visitAll(t, s.url, times)
	settle(a.seen)
	status, _ := a.readStatus(t)
	for reason, n := range status.Probes.Losses {
		if want := map[string]uint64{"bad_read": 2 * times}[reason]; n != want { // of /large and of /nan
			t.Errorf("lost %d, want %d: %s", n, want, reason)
		}
	}
	got := a.finish(t)
	want := map[string]int{}
	for _, v := range autoSDKTraces {
		for _, text := range v.traces {
			want[text] += times
		}
	}
	compareTrees(t, trees(got, autoSDKLabel), want)
	for _, span := range got {
		if isAutoSpan(span) {
			checkAutoSpan(t, span)
		}
	}
}

func checkAutoSpan(t *testing.T, span observer.Span) {
	t.Helper()
	kind, attrs := trace.SpanKindInternal, map[string]string{}
	switch name, kib, _ := strings.Cut(span.Name, " "); name {
	case "rich,":
		kind = trace.SpanKindProducer
		attrs = map[string]string{"items": "3", "text": "grüße \uFFFD", "gift": "true", "price": "2.5", "tags": "[a b]", "sizes": "[1 -2]", "n99": "99"}
		if span.Status != codes.Error || span.StatusMessage != "not printed" || len(span.Events) != 2 || len(span.Attrs) != 106 {
			t.Errorf("status %v %q, %d events, %d attributes", span.Status, span.StatusMessage, len(span.Events), len(span.Attrs))
		} else if packed, failed := span.Events[0], span.Events[1]; packed.Name != "packed" || packed.Attrs.Text("by") != "eva" ||
			packed.Time.Before(span.Start) || packed.Time.After(span.End) ||
			failed.Name != "exception" || failed.Attrs.Text("exception.message") != "out of paper" {
			t.Errorf("events %v", span.Events)
		}
	case "timed":
		if span.Start.Unix() != 1_700_000_000 || span.Duration() != time.Minute {
			t.Errorf("timed by the program: from %v, for %v", span.Start, span.Duration())
		}
	case "large":
		// More than 32 KiB does not fit: the span has its name.
		if n := len(span.Attrs.Text("text")); n != map[string]int{"2": 2 << 10, "20": 20 << 10, "200": 0}[kib] {
			t.Errorf("%s has a text of %d bytes", span.Name, n)
		}
	}
	whole := span.Name != "large 200" && span.Name != "not a number"
	if span.Kind != kind || whole != (span.Scope == autoScope) || whole != (span.ScopeVersion == "1.2.3") || span.Name != "timed" && span.Duration() > time.Second {
		t.Errorf("%s, scope %s %s, took %v", summary(span), span.Scope, span.ScopeVersion, span.Duration())
	}
	for key, want := range attrs {
		if span.Attrs.Text(key) != want {
			t.Errorf("%s: %s is %q, want %q", span.Name, key, span.Attrs.Text(key), want)
		}
	}
}

// testAutoSpansKept: of traces that are not sampled none is there, but those that fail, with
// the spans that the program has made.
func (e *e2e) testAutoSpansKept(t *testing.T, path string) {
	const times = 5
	s := awaitShop(t, startProc(t, "autosdk", nil, path))
	a := e.launchAgent(t, []string{"PLAIN_CLOUD_TRACE_SAMPLE_RATE=0"}, "--pid", fmt.Sprint(s.pid()))
	a.waitReady(t)
	visitAll(t, s.url, times)
	settle(a.seen)
	status, text := a.readStatus(t)
	got := a.finish(t)
	compareTrees(t, trees(got, func(s observer.Span) string {
		if s.Attrs.Text("sampling.reason") != "error" {
			t.Errorf("kept without a reason: %s", summary(s))
		}
		return autoSDKLabel(s)
	}), map[string]int{autoSDKTraces["/failed"].traces[0]: times})
	all := 0
	for _, v := range autoSDKTraces {
		all += times * v.spans
	}
	if sum := int(status.Probes.Spans.Emitted + status.Probes.Spans.SampledOut); sum != all {
		t.Errorf("%d spans are accounted for, of %d:\n%s", sum, all, text)
	}
}

// testAutoSpansForgotten: what the program never ends is counted when the process is gone.
func (e *e2e) testAutoSpansForgotten(t *testing.T, path string) {
	const times = 20
	s := awaitShop(t, startProc(t, "autosdk", nil, path))
	a := e.startAgent(t, "--exe", path)
	for range times {
		sendBy(client, http.MethodGet, s.url+"/forgotten", nil)
	}
	settle(a.seen)
	s.kill()
	eventually(t, 15*time.Second, "what was forgotten is counted", func() bool {
		status, _ := a.readStatus(t)
		return status.Probes.Losses["exited"]+status.Probes.Losses["unfinished"] == times
	})
	if got := len(a.finish(t)); got != 2*times {
		t.Errorf("%d spans, want %d", got, 2*times)
	}
}

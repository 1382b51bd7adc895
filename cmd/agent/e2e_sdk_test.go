//go:build e2e

package main

import (
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// testSDK: a service that has spans of its own. What they cover we have none of, what they
// do not we have, and a query below one of theirs is its child.
func (e *e2e) testSDK(t *testing.T) {
	path := e.build(t, "sdk", "testdata/sdk", nil)
	s := awaitShop(t, startProc(t, "sdk", nil, path))
	a := e.startAgent(t, "--exe", path)
	// Only from the first request on is it known that their spans are there.
	sendBy(loner, "GET", s.url+"/otelhttp", nil)
	settle(a.seen)
	paths := []string{"/plain", "/byhand", "/client", "/otelsql", "/otelhttp", "/lost", "/grpc", "/otelgrpc", "/otelgrpc-stream"}
	for range perPath {
		for _, p := range paths {
			sendBy(loner, "GET", s.url+p, nil)
		}
	}
	settle(a.seen)
	status, _ := a.readStatus(t)
	// One of each request's two spans, but of /lost and /otelhttp only the server's, and of
	// /plain, /byhand and /grpc none.
	if got, want := status.Probes.Losses["stood_down"], uint64(1+6*perPath); got != want {
		t.Errorf("%d spans stood down, want %d", got, want)
	}
	theirs := sdkSpans(s.output())
	ours := a.finish(t)
	servers := map[trace.SpanID]observer.Span{}
	count := map[string]int{}
	for _, span := range ours {
		if span.Kind == trace.SpanKindServer && span.Attrs.Text("rpc.system.name") == "" {
			servers[span.SpanID] = span
			count[span.Attrs.Text("url.path")]++
		}
	}
	checkSDKCalls(t, ours, servers, theirs)
	for _, span := range ours {
		if span.Kind == trace.SpanKindServer || span.Attrs.Text("rpc.system.name") != "" {
			continue
		}
		table := span.Attrs.Text("db.query.text")[len("DELETE FROM "):]
		count[table]++
		parent, own := servers[span.ParentID]
		their := theirs[span.ParentID.String()]
		switch table {
		case "plain":
			if !own || parent.TraceID != span.TraceID {
				t.Errorf("a query that no span of theirs is above: %s, parent %v", summary(span), span.ParentID)
			}
		case "byhand", "otelhttp":
			if their.trace != span.TraceID.String() || !strings.HasSuffix(their.name, table) {
				t.Errorf("a query below %q: %s, parent %v", their.name, summary(span), span.ParentID)
			}
		case "lost":
			if span.ParentID.IsValid() || own {
				t.Errorf("a query without a context: %s, parent %v", summary(span), span.ParentID)
			}
		}
	}
	for name, want := range map[string]int{
		"/plain": perPath, "plain": perPath, "/byhand": perPath, "byhand": perPath,
		"/client": perPath, "client": 0, "/otelsql": perPath, "otelsql": 0,
		"/otelhttp": 0, "otelhttp": perPath + 1, "/lost": 0, "lost": perPath,
		"/grpc": perPath, "/otelgrpc": perPath, "/otelgrpc-stream": perPath,
	} {
		if count[name] != want {
			t.Errorf("%d spans of %s, want %d", count[name], name, want)
		}
	}
}

// checkSDKCalls: a call of gRPC below a stats handler of theirs has their client span and
// our server's, another has both of ours.
func checkSDKCalls(t *testing.T, ours []observer.Span, servers map[trace.SpanID]observer.Span, theirs map[string]sdkSpan) {
	t.Helper()
	clients := map[trace.SpanID]observer.Span{}
	for _, span := range ours {
		if span.Kind == trace.SpanKindClient && span.Attrs.Text("rpc.system.name") != "" {
			clients[span.SpanID] = span
			if parent, own := servers[span.ParentID]; !own || parent.Attrs.Text("url.path") != "/grpc" {
				t.Errorf("a call of ours below %q: %s", parent.Name, summary(span))
			}
		}
	}
	below := map[string]int{}
	for _, span := range ours {
		if span.Kind != trace.SpanKindServer || span.Attrs.Text("rpc.system.name") == "" {
			continue
		}
		client, own := clients[span.ParentID]
		their := theirs[span.ParentID.String()]
		switch {
		case own && client.TraceID == span.TraceID:
			below["ours"]++
		case their.kind == "client" && their.trace == span.TraceID.String():
			below["theirs"]++
		default:
			t.Errorf("a call was served below neither: %s, parent %v", summary(span), span.ParentID)
		}
	}
	if len(clients) != perPath || below["ours"] != perPath || below["theirs"] != 2*perPath {
		t.Errorf("%d calls of ours, want %d; served below %v", len(clients), perPath, below)
	}
}

type sdkSpan struct{ kind, name, trace string }

// sdkSpans are the spans that the service has printed, by id.
func sdkSpans(output string) map[string]sdkSpan {
	spans := map[string]sdkSpan{}
	for line := range strings.Lines(output) {
		// Names may have spaces: the ids come last.
		if f := strings.Fields(line); len(f) >= 5 && f[0] == "span" {
			n := len(f)
			spans[f[n-1]] = sdkSpan{f[1], strings.Join(f[2:n-2], " "), f[n-2]}
		}
	}
	return spans
}

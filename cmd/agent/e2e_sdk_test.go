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
	paths := []string{"/plain", "/byhand", "/client", "/otelsql", "/otelhttp", "/lost"}
	for range perPath {
		for _, p := range paths {
			sendBy(loner, "GET", s.url+p, nil)
		}
	}
	settle(a.seen)
	status, _ := a.readStatus(t)
	// One of each request's two spans, but of /lost and /otelhttp only the server's.
	if got, want := status.Probes.Losses["stood_down"], uint64(1+4*perPath); got != want {
		t.Errorf("%d spans stood down, want %d", got, want)
	}
	theirs := sdkSpans(s.output())
	ours := a.finish(t)
	servers := map[trace.SpanID]observer.Span{}
	count := map[string]int{}
	for _, span := range ours {
		if span.Kind == trace.SpanKindServer {
			servers[span.SpanID] = span
			count[span.Attrs.Text("url.path")]++
		}
	}
	for _, span := range ours {
		if span.Kind == trace.SpanKindServer {
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
	} {
		if count[name] != want {
			t.Errorf("%d spans of %s, want %d", count[name], name, want)
		}
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

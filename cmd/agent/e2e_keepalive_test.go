//go:build e2e

package main

import (
	"net/http"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/observer"
)

// testKeepAlive: the requests of one connection share its context and the goroutine that
// serves it. A goroutine that a request has left behind belongs to none that follows; one
// of its own belongs to each.
func (e *e2e) testKeepAlive(t *testing.T) {
	const rounds = 20
	shop := e.startShop(t, e.shop)
	a := e.startAgent(t, "--exe", e.shop)
	connections := make([]*http.Client, 3)
	for i := range connections {
		transport := &http.Transport{MaxConnsPerHost: 1}
		defer transport.CloseIdleConnections()
		connections[i] = &http.Client{Transport: transport, Timeout: 10 * time.Second}
	}
	for range rounds {
		for _, c := range connections {
			for _, path := range []string{"/late", "/follow"} {
				if status := sendBy(c, http.MethodGet, shop.url+path, nil); status != http.StatusOK {
					t.Fatalf("%s: status %d", path, status)
				}
			}
		}
	}

	want := rounds * len(connections)
	eventually(t, 10*time.Second, "every request is a span", func() bool { return serverSpans(a.seen) == 2*want })
	a.noLosses(t)
	byID := map[string]observer.Span{}
	spans := a.finish(t)
	for _, s := range spans {
		byID[s.SpanID.String()] = s
	}
	got := map[string]int{}
	for _, s := range spans {
		parent := byID[s.ParentID.String()]
		got[s.Attrs.Text("db.query.text")+parent.Name+s.Attrs.Text("url.path")]++
		if parent.Name != "" && s.TraceID != parent.TraceID {
			t.Errorf("%s has another trace than its parent", summary(s))
		}
	}
	for what, n := range map[string]int{
		"/late": want, "/follow": want,
		"SELECT min(price) FROM items": want, "SELECT max(stock) FROM itemsGET /follow": want,
	} {
		if got[what] != n {
			t.Errorf("%q: %d spans, want %d; all: %v", what, got[what], n, got)
		}
	}
}

//go:build e2e

package main

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// testRemoteLimit: a stranger who sends trace ids that every rate samples gets some of
// them, a second, and every request is accounted for.
func (e *e2e) testRemoteLimit(t *testing.T) {
	const requests, limit = 3000, 50
	shop := e.startShop(t, e.shop)
	seen := &tally{traces: map[trace.TraceID]*traceShape{}}
	a := e.launchCounting(t, seen, []string{
		"PLAIN_CLOUD_TRACE_SAMPLE_RATE=0.01", fmt.Sprint("PLAIN_CLOUD_TRACE_REMOTE_LIMIT=", limit),
	}, "--exe", e.shop)
	a.waitReady(t)
	begin := time.Now()
	load(t, shop.url, requests, func(i int) string {
		// The header ends in what load sends after a path.
		return fmt.Sprintf("/items/3 HTTP/1.1\r\nTraceparent: 00-%016x0000000000000000-00000000000000ff-01\r\nX-Rest: x", i+1)
	})
	seconds := time.Since(begin).Seconds()
	status, text := a.readStatus(t)
	a.stop(t)

	// A second's worth may come at once, and CPUs that meet may each pass one too many.
	most := int(limit*(seconds+1)) + 2 + runtime.NumCPU()
	if got := len(seen.traces); got < limit || got > most {
		t.Errorf("%d traces in %.1f s, want %d to %d", got, seconds, limit, most)
	}
	for id, shape := range seen.traces {
		if shape.servers != 1 || shape.queries != 1 || shape.child != shape.server {
			t.Fatalf("trace %s is not whole: %+v", id, *shape)
		}
	}
	s := status.Probes
	if sum := s.Spans.Emitted + s.Spans.SampledOut + s.Losses["remote_limited"]; sum != 2*requests || s.Spans.SampledOut != 0 {
		t.Errorf("%d spans are accounted for, of %d:\n%s", sum, 2*requests, text)
	}
	if n := histogramCount(a.seen, "http.server.request.duration"); n != requests {
		t.Errorf("the histogram counts %d of %d requests", n, requests)
	}

	// At rate 1 there is nothing to gain, and nothing is limited.
	all := e.launchCounting(t, &tally{traces: map[trace.TraceID]*traceShape{}}, []string{"PLAIN_CLOUD_TRACE_REMOTE_LIMIT=1"}, "--exe", e.shop)
	all.waitReady(t)
	for range 20 {
		send("GET", shop.url+"/plain", map[string]string{"Traceparent": "00-00000000000000010000000000000000-00000000000000ff-01"})
	}
	eventually(t, 10*time.Second, "all are sampled at rate 1", func() bool { return all.seen.Counts().Spans >= 20 })
	all.noLosses(t)
	all.stop(t)
}

// testLimitedThreshold: while the limit refuses traces, those that pass do not claim to
// stand for a known number.
func (e *e2e) testLimitedThreshold(t *testing.T) {
	shop := e.startShop(t, e.shop)
	a := e.launchAgentTo(t, observer.New(observer.Options{}), []string{
		"PLAIN_CLOUD_TRACE_SAMPLE_RATE=0.5", "PLAIN_CLOUD_TRACE_SAMPLER=probability", "PLAIN_CLOUD_TRACE_REMOTE_LIMIT=2",
	}, "--exe", e.shop)
	a.waitReady(t)
	for i := range 40 {
		send("GET", shop.url+"/plain", map[string]string{"Traceparent": fmt.Sprintf("00-%016x00ffffffffffffff-00000000000000ff-01", i+1)})
		time.Sleep(50 * time.Millisecond)
	}
	with, without := 0, 0
	for i, s := range a.finish(t) {
		switch s.TraceState {
		case "ot=th:8":
			with++
			if without > 0 {
				t.Errorf("span %d states a threshold after one that does not", i)
			}
		case "":
			without++
		default:
			t.Errorf("tracestate %q", s.TraceState)
		}
	}
	if with == 0 || without == 0 {
		t.Errorf("%d spans with a threshold and %d without", with, without)
	}
}

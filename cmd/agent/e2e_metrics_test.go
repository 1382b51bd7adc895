//go:build e2e

package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// bulk is how many requests the exact counts are made of. A million takes minutes.
var bulk = flag.Int("e2e.bulk", 30_000, "requests of the tests that count exactly")

// testMetrics counts: every request and every query is measured, at any sample rate.
func (e *e2e) testMetrics(t *testing.T) {
	for _, rate := range []string{"1", "0.1", "0"} {
		t.Run("rate "+rate, func(t *testing.T) { e.testExactCounts(t, rate) })
	}
	t.Run("errors", e.testKeepErrors)
	t.Run("overflow", e.testOverflow)
	t.Run("literals", e.testLiterals)
	t.Run("odd texts", e.testOddTexts)
	t.Run("constants", e.testConstants)
}

func (e *e2e) testExactCounts(t *testing.T, rate string) {
	shop := e.startShop(t, e.shop)
	seen := &tally{traces: map[trace.TraceID]*traceShape{}}
	a := e.launchCounting(t, seen, []string{"PLAIN_CLOUD_TRACE_SAMPLE_RATE=" + rate}, "--exe", e.shop)
	a.waitReady(t)
	load(t, shop.url, *bulk, func(int) string { return "/items/3" })
	a.stop(t)

	requests, queries := histogramCount(a.seen, "http.server.request.duration"), histogramCount(a.seen, "db.client.operation.duration")
	if want := uint64(*bulk); requests != want || queries != want {
		t.Errorf("histograms count %d requests and %d queries of %d", requests, queries, want)
	}
	switch rate {
	case "1":
		if got := seen.spans; got != 2**bulk {
			t.Errorf("%d spans of %d requests with a query each", got, *bulk)
		}
	case "0":
		if seen.spans != 0 {
			t.Errorf("%d spans at rate 0", seen.spans)
		}
	default:
		n := float64(*bulk)
		mean, sigma := n*0.1, math.Sqrt(n*0.1*0.9)
		if got := float64(len(seen.traces)); math.Abs(got-mean) > 3*sigma {
			t.Errorf("%v traces of %v, want %v within 3 × %.0f", got, n, mean, sigma)
		}
	}
	for id, shape := range seen.traces {
		if shape.servers != 1 || shape.queries != 1 || shape.child != shape.server {
			t.Fatalf("trace %s is not whole: %+v", id, *shape)
		}
	}
}

// testKeepErrors has one request in a hundred fail, and nothing sampled.
func (e *e2e) testKeepErrors(t *testing.T) {
	shop := e.startShop(t, e.shop)
	seen := &tally{traces: map[trace.TraceID]*traceShape{}}
	a := e.launchCounting(t, seen, []string{
		"PLAIN_CLOUD_TRACE_SAMPLE_RATE=0", "PLAIN_CLOUD_TRACE_KEEP_LIMIT=100000",
	}, "--exe", e.shop)
	a.waitReady(t)
	const n = 10_000
	load(t, shop.url, n, func(i int) string {
		if i%100 == 7 {
			return "/sqlerror"
		}
		return "/items/3"
	})
	a.stop(t)
	if len(seen.traces) != n/100 || seen.failed != n/100 {
		t.Errorf("%d traces, %d of them of failures, of %d that failed", len(seen.traces), seen.failed, n/100)
	}
	for id, shape := range seen.traces {
		if shape.servers != 1 || shape.queries != 1 || shape.child != shape.server {
			t.Fatalf("trace %s is not whole: %+v", id, *shape)
		}
	}
	if seen.reasons != 2*n/100 {
		t.Errorf("%d spans say why they were kept, want %d", seen.reasons, 2*n/100)
	}
}

// testOverflow visits more routes than there may be series.
func (e *e2e) testOverflow(t *testing.T) {
	const routes, limit = 5000, 2000
	dir := filepath.Join(e.dir, "routes")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"go.mod": "module routes\n\ngo 1.22\n", "main.go": routesProgram} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := e.build(t, "routes-server", dir, nil)
	target := e.startShop(t, path)
	a := e.startAgent(t, "--exe", path)
	load(t, target.url, 2*routes, func(i int) string { return fmt.Sprintf("/r%d", i%routes) })
	a.stop(t)

	series, overflow := 0, uint64(0)
	for _, p := range a.seen.Points() {
		if p.Name != "http.server.request.duration" {
			continue
		}
		if p.Attrs["otel.metric.overflow"] == true {
			overflow += p.Count
		} else {
			series++
		}
	}
	if total := histogramCount(a.seen, "http.server.request.duration"); total != 2*routes || series != limit || overflow == 0 {
		t.Errorf("%d requests in %d series, %d of them in the overflow; want %d, %d, more than 0", total, series, overflow, 2*routes, limit)
	}
}

const routesProgram = `package main

import (
	"fmt"
	"net"
	"net/http"
)

func main() {
	mux := http.NewServeMux()
	for i := range 5000 {
		mux.HandleFunc(fmt.Sprintf("GET /r%d", i), func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Printf("routes listens on http://%s\n", ln.Addr())
	http.Serve(ln, mux)
}
`

// launchCounting runs the agent with an endpoint that counts and keeps no spans.
func (e *e2e) launchCounting(t *testing.T, sink *tally, env []string, args ...string) *watcher {
	t.Helper()
	return e.launchAgentTo(t, observer.New(observer.Options{Keep: 10_000, Sink: sink}), env, args...)
}

// traceShape is what is remembered of a trace.
type traceShape struct {
	servers, queries int
	server           trace.SpanID
	child            trace.SpanID // parent of the query
}

// tally counts spans as they come, for there may be millions.
type tally struct {
	mu                     sync.Mutex
	spans, failed, reasons int
	traces                 map[trace.TraceID]*traceShape
}

func (c *tally) Receive(b observer.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range b.Spans {
		c.spans++
		shape := c.traces[s.TraceID]
		if shape == nil {
			shape = &traceShape{}
			c.traces[s.TraceID] = shape
		}
		if s.Attrs.Text("sampling.reason") != "" {
			c.reasons++
		}
		if s.Kind == trace.SpanKindServer {
			shape.servers++
			shape.server = s.SpanID
			if s.Attrs.Text("error.type") != "" {
				c.failed++
			}
		} else {
			shape.queries++
			shape.child = s.ParentID
		}
	}
}

func histogramCount(o *observer.Observer, name string) (n uint64) {
	for _, p := range o.Points() {
		if p.Name == name {
			n += p.Count
		}
	}
	return n
}

// load sends exactly n requests on 16 connections and reads every answer, so that
// client and server agree on how many there were.
func load(t *testing.T, url string, n int, path func(i int) string) {
	t.Helper()
	var next, bad atomic.Int64
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			if err := loadConnection(url, n, path, &next, &bad); err != nil {
				t.Errorf("load: %v", err)
			}
		})
	}
	workers.Wait()
	if bad.Load() > 0 {
		t.Errorf("%d of %d answers are neither 200 nor 500", bad.Load(), n)
	}
}

func loadConnection(url string, n int, path func(i int) string, next, bad *atomic.Int64) error {
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		i := int(next.Add(1)) - 1
		if i >= n {
			return nil
		}
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: load\r\n\r\n", path(i)); err != nil {
			return err
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusInternalServerError {
			bad.Add(1)
		}
	}
}

//go:build e2e && collector

package main

import (
	"flag"
	"net/http/httptest"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/observer"
)

var (
	hangingPairs = flag.Int("hanging.pairs", 6, "how often TestHanging compares latencies")
	hangingFor   = flag.Duration("hanging.for", 45*time.Second, "how long the endpoint hangs in the end")
)

// TestHanging has an endpoint that takes connections and requests and never answers, while
// the service is loaded as fast as it answers. The service's latency is compared with
// that beside a healthy endpoint and reported; that the agent's memory stays under its
// limit, and that nothing is lost, is demanded.
func TestHanging(t *testing.T) {
	needKernel(t)
	e := &e2e{dir: t.TempDir()}
	e.agent, e.shop = e.build(t, "agent", ".", nil), e.build(t, "shop", shopDir, nil)
	sink := httptest.NewServer(observer.New(observer.Options{Keep: 1}).Handler())
	defer sink.Close()
	chain := newChain(t, sink.URL)
	defer func() { chain.nginx.stop(t) }()
	chain.configure(t, "proxy_pass http://"+chain.back+"; proxy_read_timeout 1h;", "good")
	shop := e.startShop(t, e.shop)
	a := e.launchAgent(t, []string{
		"PLAIN_CLOUD_EXPORT_URL=https://" + chain.front, "PLAIN_CLOUD_EXPORT_CA_FILE=" + chain.ca, "PLAIN_CLOUD_SPOOL_DIR=" + t.TempDir(),
		"PLAIN_CLOUD_SPOOL_SIZE=2GiB", "OTEL_METRIC_EXPORT_INTERVAL=2000",
	}, "--exe", e.shop)
	a.waitReady(t)
	url := shop.url + "/items/7"
	drained := func() {
		eventually(t, 5*time.Minute, "the spool is empty", func() bool {
			s := a.fullStatus(t).Export.Signals["traces"]
			return s.Spooled == 0 && s.Queued == 0
		})
	}
	runWrk(t, url, 2*time.Second)
	drained()
	var ratios []float64
	for range *hangingPairs {
		well := runWrk(t, url, 3*time.Second)
		drained()
		chain.signal(t, syscall.SIGSTOP)
		time.Sleep(time.Second)
		hangs := runWrk(t, url, 3*time.Second)
		chain.signal(t, syscall.SIGCONT)
		drained()
		ratios = append(ratios, hangs.P99/well.P99)
		t.Logf("p99 %.2f ms, %.0f requests/s; hanging: p99 %.2f ms, %.0f requests/s", well.P99/1e3, well.perSecond(), hangs.P99/1e3, hangs.perSecond())
	}
	slices.Sort(ratios)
	if n := len(ratios); n > 0 {
		t.Logf("p99 with a hanging endpoint is %.2f times that with a healthy one: median of %d pairs, %.2f to %.2f", ratios[n/2], n, ratios[0], ratios[n-1])
	}

	chain.signal(t, syscall.SIGSTOP)
	defer chain.signal(t, syscall.SIGCONT)
	limit, peak := a.memoryLimit(t), a.watchMemory(t)
	l := runWrk(t, url, *hangingFor)
	all, own := peak()
	s := a.fullStatus(t)
	traces := s.Export.Signals["traces"]
	t.Logf("%v of hanging, %d requests, p99 %.2f ms: at most %.1f MiB resident, %.1f of them its own, limit %.1f; %.1f MiB in the spool; %+v; lost in the probes %v",
		*hangingFor, l.Requests, l.P99/1e3, mebi(all), mebi(own), mebi(limit), mebi(s.Export.Spool.Bytes), traces, s.Probes.Losses)
	if own > limit {
		t.Errorf("the agent took %d bytes, more than its limit of %d", own, limit)
	}
	if traces.LostTotal() != 0 || traces.Spooled+traces.Queued < int64(l.Requests) {
		t.Errorf("%d requests: %+v", l.Requests, traces)
	}
	chain.signal(t, syscall.SIGCONT)
	drained()
	if s := a.fullStatus(t).Export.Signals["traces"]; s.Received != s.Exported {
		t.Errorf("%+v", s)
	}
	a.stop(t)
}

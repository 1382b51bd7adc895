//go:build e2e && collector

package main

import (
	"flag"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/observer"
)

var outage = flag.Duration("outage", 45*time.Second, "how long the endpoint of TestOutage is down")

// TestOutage takes the endpoint away under load, and kills the agent twice while it is
// away: all three signals arrive in the end, once, or are counted by name.
//
//	agent ─TLS→ nginx → collector → the test
func TestOutage(t *testing.T) {
	needKernel(t)
	e := &e2e{dir: t.TempDir()}
	e.agent, e.shop = e.build(t, "agent", ".", nil), e.build(t, "shop", shopDir, nil)
	seen := observer.New(observer.Options{Keep: 1 << 21})
	sink := httptest.NewServer(seen.Handler())
	defer sink.Close()
	chain := newChain(t, sink.URL)
	defer func() { chain.nginx.stop(t) }()
	env := []string{
		"PLAIN_CLOUD_EXPORT_URL=https://" + chain.front, "PLAIN_CLOUD_EXPORT_CA_FILE=" + chain.ca, "PLAIN_CLOUD_SPOOL_DIR=" + t.TempDir(),
		"PLAIN_AGENT_STATE_DIR=" + stateDir(t), "OTEL_METRIC_EXPORT_INTERVAL=1000",
	}
	shop := e.startShop(t, e.shop, "-log")
	tr := startTraffic(t, shop.url)

	var attended []span
	var a *watcher
	attach := func() {
		a = e.launchAgent(t, env, "--exe", e.shop)
		a.waitReady(t)
		attended = append(attended, span{from: time.Now()})
	}
	kill := func() {
		attended[len(attended)-1].to = time.Now()
		a.kill()
	}
	attach()
	time.Sleep(3 * time.Second)
	began := time.Now()
	// What it takes now is not acknowledged: nginx gives up first.
	chain.signal(t, syscall.SIGSTOP)
	time.Sleep(*outage / 3)
	kill()
	chain.nginx.stop(t)
	attach()
	time.Sleep(*outage / 3)
	kill()
	chain.writeConfig(t, "return 503;", "good")
	chain.startNginx(t)
	attach()
	time.Sleep(*outage - time.Since(began))
	spool := a.fullStatus(t).Export
	t.Logf("after %v: %+v", time.Since(began).Round(time.Second), spool.Spool)
	for name, c := range spool.Signals {
		if c.Spooled == 0 || c.Restored == 0 {
			t.Errorf("the spool has no %s, or none of the agent before: %+v", name, c)
		}
	}
	chain.signal(t, syscall.SIGCONT)
	chain.configure(t, chain.pass(), "good")
	time.Sleep(3 * time.Second)
	tr.stop()
	s := a.settled(t, 90*time.Second)
	attended[len(attended)-1].to = time.Now()
	a.stop(t)
	t.Logf("all of it has left %v after the beginning", time.Since(began).Round(time.Second))
	accountFor(t, tr, attended, seen, s)
	nowhereInProcess(t, chain)
}

//go:build e2e && clock

package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/observer"
)

var overlay = flag.String("clock.overlay", "", "what makes the agent's wall clock jump; scripts/chaos writes it")

// TestClock has the wall clock of the agent jump under load, and while there is no agent,
// by seconds and by years: the agent stays well, and everything is accounted for.
func TestClock(t *testing.T) {
	needKernel(t)
	file := os.Getenv("TEST_WALL_CLOCK")
	if *overlay == "" || file == "" {
		t.Fatal("the clock does not jump: run scripts/chaos")
	}
	set := func(off time.Duration) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(off)), 0) // the page is mapped
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	defer set(0)
	e := &e2e{dir: t.TempDir()}
	e.agent, e.shop = e.build(t, "agent", ".", nil, "-overlay="+*overlay), e.build(t, "shop", shopDir, nil)
	seen := observer.New(observer.Options{Keep: 1 << 20})
	sink := httptest.NewServer(seen.Handler())
	defer sink.Close()
	env := []string{
		"PLAIN_CLOUD_EXPORT_URL=" + sink.URL, "PLAIN_CLOUD_SPOOL_DIR=" + t.TempDir(), "PLAIN_AGENT_STATE_DIR=" + stateDir(t),
		"OTEL_METRIC_EXPORT_INTERVAL=700",
	}
	shop := e.startShop(t, e.shop, "-log")
	tr := startTraffic(t, shop.url)
	var attended []span
	var a *watcher
	year := 365 * 24 * time.Hour
	began := time.Now()
	for life, jumps := range [][]time.Duration{
		{0, time.Hour, -time.Hour, 10 * year, -10 * year, -30 * time.Second},
		{year, year - 2*time.Second, 0}, // a year later, the agent before was killed
		{-2 * year, time.Second},
	} {
		set(jumps[0])
		a = e.launchAgent(t, env, "--exe", e.shop)
		a.waitReady(t)
		attended = append(attended, span{from: time.Now()})
		a.onThisClock(t, seen, jumps[0])
		for _, jump := range jumps[1:] {
			if life == 1 {
				seen.Inject(observer.Fault{Status: 503, Times: 3})
			}
			set(jump)
			a.onThisClock(t, seen, jump)
		}
		if life < 2 {
			attended[life].to = time.Now()
			a.kill()
		}
	}
	tr.stop()
	s := a.settled(t, 60*time.Second)
	attended[2].to = time.Now()
	gap := s.Probes.State.UnattendedAll
	a.stop(t)
	if gap <= 0 || gap > time.Since(began).Seconds() {
		t.Errorf("%v s without an agent", gap)
	}
	if out := a.output(); strings.Contains(out, "panic") {
		t.Errorf("the agent says\n%s", out)
	}
	accountFor(t, tr, attended, seen, s)
}

// onThisClock waits until spans and lines come that were made by this clock, and fails if
// the agent is not well all the time.
func (w *watcher) onThisClock(t *testing.T, seen *observer.Observer, off time.Duration) {
	t.Helper()
	near := func(at time.Time) bool { return time.Until(at.Add(-off)).Abs() < 10*time.Second }
	spans, logs, points, checks := len(seen.Spans()), len(seen.Logs()), len(seen.Points()), 0
	eventually(t, 30*time.Second, fmt.Sprintf("spans, lines and points of a clock that is off by %v", off), func() bool {
		if checks++; statusOf(w.status+"/healthz") != http.StatusOK || statusOf(w.status+"/readyz") != http.StatusOK {
			t.Fatalf("the agent is not well after a jump to %v", off)
		}
		newest := func(n int, at func(i int) time.Time) bool { return n > 0 && near(at(n-1)) }
		s, l, p := seen.Spans()[spans:], seen.Logs()[logs:], seen.Points()[points:]
		return newest(len(s), func(i int) time.Time { return s[i].End }) &&
			newest(len(l), func(i int) time.Time { return l[i].Observed }) &&
			newest(len(p), func(i int) time.Time { return p[i].End })
	})
	if checks < 2 {
		t.Errorf("the agent was asked %d times", checks)
	}
}

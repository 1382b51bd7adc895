//go:build e2e

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testReload changes rate and targets while requests come, by the file and by a signal:
// what goes on loses nothing, what is not asked for any more has no probes.
func (e *e2e) testReload(t *testing.T) {
	file, second := filepath.Join(t.TempDir(), "agent.yaml"), filepath.Join(e.dir, "shop-second")
	copyFile(t, e.shop, second)
	write := func(rate string, exes ...string) {
		t.Helper()
		text := fmt.Sprintf("traces: {sample_rate: %s}\ntargets: {exes: [%s]}\n", rate, strings.Join(exes, ", "))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	one, two := e.startShop(t, e.shop), e.startShop(t, second)
	write("1", e.shop)
	a := e.launchAgent(t, nil, "--config", file)
	a.waitReady(t)
	sent := 0
	send := func(n int) {
		for range n {
			statusOf(one.url + "/plain")
			sent++
		}
	}
	said := func(what string) {
		t.Helper()
		n := strings.Count(a.output(), what)
		eventually(t, 15*time.Second, "the agent says "+what, func() bool {
			send(1) // without a pause in between
			return strings.Count(a.output(), what) > n
		})
	}
	write("1", e.shop, second)
	said("settings changed")
	eventually(t, 10*time.Second, "the second shop has probes", func() bool { return patched(t, two.pid()) > 0 })
	statusOf(two.url + "/plain")
	send(10)
	eventually(t, 10*time.Second, "every request is a span", func() bool { return serverSpans(a.seen) == sent+1 })

	write("0", e.shop)
	if err := a.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	said("settings changed")
	eventually(t, 10*time.Second, "the second shop has none any more", func() bool { return patched(t, two.pid()) == 0 })
	send(50)
	write("2", e.shop)
	said("the settings stay as they are")
	s := a.fullStatus(t)
	a.noLosses(t)
	a.stop(t)
	if total := s.Probes.Spans.Emitted + s.Probes.Spans.SampledOut; total != uint64(sent+1) || s.Probes.Spans.SampledOut < 50 {
		t.Errorf("%d requests, and %+v", sent+1, s.Probes.Spans)
	}
}

//go:build e2e

package main

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/export"
	"github.com/plainframework/agent/internal/observer"
	"github.com/plainframework/agent/internal/probes"
)

// stateDir is a directory of a BPF filesystem for the agents of one test.
func stateDir(t *testing.T) string {
	t.Helper()
	dir := fmt.Sprintf("/sys/fs/bpf/plain-agent-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove state: %v", err)
		}
	})
	return dir
}

// fullStatus is what /status says of spans and of exports.
type fullStatus struct {
	Probes probes.Status `json:"probes"`
	Export export.Stats  `json:"export"`
}

func (w *watcher) fullStatus(t *testing.T) (s fullStatus) {
	t.Helper()
	_, body := w.readStatus(t)
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// testCrash kills agents with SIGKILL under load while their endpoint is down, and
// then looks where everything went: each span and each measured request that was fired
// while an agent was attached has arrived once, or is counted.
func (e *e2e) testCrash(t *testing.T) {
	state, spool, began := stateDir(t), t.TempDir(), time.Now()
	seen := observer.New(observer.Options{Keep: 1 << 20})
	sink := httptest.NewServer(seen.Handler())
	defer sink.Close()
	env := []string{
		"PLAIN_AGENT_STATE_DIR=" + state, "PLAIN_CLOUD_SPOOL_DIR=" + spool, "PLAIN_CLOUD_EXPORT_URL=" + sink.URL,
		"OTEL_METRIC_EXPORT_INTERVAL=500",
	}
	shop, brief := e.startShop(t, e.shop), e.startShop(t, e.shop)
	stop, ended := make(chan struct{}), sync.WaitGroup{}
	var sent atomic.Int64
	for _, s := range []server{shop, brief} {
		ended.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if statusOf(s.url+"/plain") == 0 {
						return // the brief one has ended
					}
					sent.Add(1)
				}
			}
		})
	}
	const kills = 3
	for i := range kills {
		if i == 1 {
			seen.Inject(observer.Fault{Status: 503})
		}
		a := e.launchAgent(t, env, "--exe", e.shop)
		a.waitReady(t)
		time.Sleep(time.Duration(700+150*i) * time.Millisecond)
		a.kill()
		if i == 1 {
			brief.kill() // nobody is there to see it
		}
	}
	seen.Clear()
	a := e.launchAgent(t, env, "--exe", e.shop)
	a.waitReady(t)
	time.Sleep(time.Second)
	close(stop)
	ended.Wait()
	var s fullStatus
	eventually(t, 20*time.Second, "everything has left", func() bool {
		s = a.fullStatus(t)
		traces := s.Export.Signals["traces"]
		return traces.Queued == 0 && traces.Spooled == 0 && s.Probes.Spans.Emitted == s.Probes.Spans.Decoded+s.Probes.Losses["crash"]+s.Probes.Losses["invalid_record"]
	})
	time.Sleep(1200 * time.Millisecond) // two more collections
	s = a.fullStatus(t)
	a.tokenNowhere(t, spool)
	a.stop(t)

	traces, counts := s.Export.Signals["traces"], s.Probes.Spans
	t.Logf("%d requests, %d spans emitted, %d exported, lost: %v in the probes, %v on the way, maybe twice %d; %.2f s without an agent",
		sent.Load(), counts.Emitted, traces.Exported, s.Probes.Losses, traces.Lost, traces.MaybeTwice, s.Probes.State.UnattendedAll)
	if !s.Probes.State.Kept || !s.Probes.State.Inherited {
		t.Errorf("state %+v", s.Probes.State)
	}
	if counts.Decoded != uint64(traces.Received) || traces.Received != traces.Exported+traces.LostTotal() {
		t.Errorf("the accounts do not add up: %+v, %+v", counts, traces)
	}
	times := map[string]int{}
	services := map[string]bool{}
	for _, span := range seen.Spans() {
		times[span.SpanID.String()]++
		services[span.Resource.Text("service.name")+" "+span.Resource.Text("process.pid")] = true
	}
	again := 0
	for _, n := range times {
		again += n - 1
	}
	// What was in memory at a kill may have arrived.
	if got, crash := int64(len(times)), traces.Lost["crash"]; got < traces.Exported || got > traces.Exported+crash || int64(again) > traces.MaybeTwice {
		t.Errorf("%d spans have arrived, %d of them again; %d exported, %d lost by crash, %d maybe twice", got, again, traces.Exported, crash, traces.MaybeTwice)
	}
	if len(services) != 2 {
		t.Errorf("spans of %v, want two processes with their names", services)
	}
	metrics := s.Export.Signals["metrics"]
	measured := histogramCount(seen, "http.server.request.duration")
	t.Logf("%d requests measured; points %+v", measured, metrics)
	if want := counts.Emitted + s.Probes.Losses["ring_full"]; measured != want && !(measured > want && metrics.MaybeTwice > 0) {
		t.Errorf("%d requests were measured, %d have ended", measured, want)
	}
	if gap := s.Probes.State.UnattendedAll; gap <= 0 || gap > time.Since(began).Seconds() {
		t.Errorf("%v s without an agent", gap)
	}
	if left, err := filepath.Glob(state + "/*"); err != nil || len(left) != 1 {
		t.Errorf("an agent that has ended in good order leaves %v, %v", left, err)
	}
}

// tokenNowhere looks for the token in what can be read of the agent by others: its
// entries in /proc but its environment and memory, its status, its output, its files.
func (w *watcher) tokenNowhere(t *testing.T, dirs ...string) {
	t.Helper()
	_, page := w.readStatus(t)
	if strings.Contains(page, testToken) || strings.Contains(w.output(), testToken) {
		t.Error("the token is in the status or in the output")
	}
	looked := 0
	look := func(path string) {
		data, err := os.ReadFile(path)
		if err != nil {
			return // not everything in /proc can be read
		}
		looked++
		if strings.Contains(string(data), testToken) {
			t.Errorf("%s has the token", path)
		}
	}
	for _, name := range []string{"cmdline", "comm", "status", "stat", "maps", "mounts", "limits", "cgroup", "task/" + fmt.Sprint(w.pid()) + "/comm"} {
		look(fmt.Sprintf("/proc/%d/%s", w.pid(), name))
	}
	for _, dir := range dirs {
		files, err := filepath.Glob(dir + "/*")
		if err != nil {
			t.Error(err)
		}
		for _, f := range files {
			look(f)
		}
	}
	if looked < 9 {
		t.Errorf("only %d files were read", looked)
	}
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", w.pid()))
	if err != nil || !strings.Contains(string(environment), testToken) {
		t.Errorf("the search finds the token not even where it is: %v", err)
	}
}

// testSecondAgent: two agents on one state directory would export everything twice.
func (e *e2e) testSecondAgent(t *testing.T) {
	state := stateDir(t)
	env := []string{"PLAIN_AGENT_STATE_DIR=" + state}
	shop := e.startShop(t, e.shop)
	a := e.launchAgent(t, env, "--exe", e.shop)
	a.waitReady(t)
	b := e.launchAgent(t, env, "--pid", fmt.Sprint(shop.pid()))
	if !b.ends(10 * time.Second) {
		t.Fatal("the second agent runs")
	}
	for _, want := range []string{"another agent runs on this node", fmt.Sprintf("process %d", a.pid()), "PLAIN_AGENT_STATE_DIR"} {
		if b.err == nil || !strings.Contains(b.output(), want) {
			t.Errorf("the second agent says %q, without %q", b.output(), want)
		}
	}
	c := e.launchAgent(t, []string{"PLAIN_AGENT_STATE_DIR=" + state + "-2"}, "--exe", e.shop)
	defer os.RemoveAll(state + "-2")
	c.waitReady(t) // told so
	c.stop(t)
	a.stop(t)
}

//go:build e2e && (collector || soak)

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// wrkResult has wrk print what it saw as one line of JSON, times in microseconds.
const wrkResult = `
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\nRESULT {"requests":%d,"us":%d,"p50":%g,"p99":%g,"failed":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
`

const wrkConnections = 16

// wrkLoad is what wrk saw of one run.
type wrkLoad struct {
	Requests int
	US       float64 `json:"us"`
	P50, P99 float64
	Failed   int
}

func (l wrkLoad) perSecond() float64 { return float64(l.Requests) / l.US * 1e6 }

// runWrk loads a URL as fast as it answers, for whole seconds.
func runWrk(t *testing.T, url string, d time.Duration) (l wrkLoad) {
	t.Helper()
	script := filepath.Join(t.TempDir(), "wrk.lua")
	if err := os.WriteFile(script, []byte(wrkResult), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "wrk", "--timeout", "60s", "-t1", fmt.Sprint("-c", wrkConnections), fmt.Sprintf("-d%.0fs", d.Seconds()), "-s", script, url).CombinedOutput()
	_, line, ok := strings.Cut(string(out), "\nRESULT ")
	if err != nil || !ok || json.Unmarshal([]byte(line), &l) != nil || l.Failed > 0 || l.Requests == 0 {
		t.Fatalf("wrk: %v\n%s", err, out)
	}
	return l
}

// memory is what a process has resident, in bytes: all of it, and what is its own. The
// rest is its executable and what it shares with the kernel.
func (p *proc) memory() (all, own int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	for line := range strings.Lines(string(text)) {
		var key string
		var kilobytes int64
		if n, _ := fmt.Sscan(line, &key, &kilobytes); n < 2 {
			continue
		}
		switch key {
		case "VmRSS:":
			all = kilobytes << 10
		case "RssAnon:":
			own = kilobytes << 10
		}
	}
	if err == nil && (all == 0 || own == 0) {
		err = errors.New("the kernel does not say what a process has resident")
	}
	return all, own, err
}

// watchMemory looks ten times a second what the process takes; end returns the most.
func (p *proc) watchMemory(t *testing.T) (end func() (all, own int64)) {
	t.Helper()
	stop, stopped := make(chan struct{}), make(chan struct{})
	var mostAll, mostOwn int64
	go func() {
		defer close(stopped)
		for {
			all, own, err := p.memory()
			if err != nil {
				t.Error(err)
			}
			mostAll, mostOwn = max(mostAll, all), max(mostOwn, own)
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() (int64, int64) { close(stop); <-stopped; return mostAll, mostOwn }
}

// memoryLimit is the limit that the agent states.
func (w *watcher) memoryLimit(t *testing.T) int64 {
	t.Helper()
	var s report
	_, body := w.readStatus(t)
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.Process.MemoryLimit == math.MaxInt64 {
		t.Fatalf("the agent has no limit of memory: %v", err)
	}
	return s.Process.MemoryLimit
}

func mebi(n int64) float64 { return float64(n) / (1 << 20) }

// files is how many descriptors a process has open.
func (p *proc) files(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

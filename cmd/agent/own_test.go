package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/export"
	"github.com/plainframework/agent/internal/probes"
	"github.com/plainframework/agent/internal/probes/event"
)

func sampleReport() report {
	return report{
		Agent: buildVersion{Version: "devel"}, State: stateActive, Started: time.Now().Add(-time.Minute), PID: 7,
		Process: processStatus{MemoryBytes: 40 << 20, CPU: time.Second},
		Probes: probes.Status{
			Spans:  probes.SpanCounts{Emitted: 113, SampledOut: 5, Decoded: 100},
			Losses: map[string]uint64{"ring_full": 4, "crash": 13, "bad_read": 2, "logs_ring_full": 9},
			Rings:  map[string]probes.RingStatus{"spans": {Size: 4096, Used: 8}},
			State:  probes.StateStatus{Kept: true, Inherited: true, Crash: 3, Unattended: 0.5, UnattendedAll: 1.5},
			Targets: []probes.TargetStatus{
				{PID: 4711, Service: "shop", State: "attached", Exe: "/usr/bin/shop", Spans: probes.SpanCounts{Emitted: 100, SampledOut: 5}, Losses: map[string]uint64{"ring_full": 4}},
				{Exe: "/usr/bin/late", State: "waiting", Reason: "there is no such file yet"},
			},
		},
		Export: &export.Stats{
			Signals: map[string]export.SignalStats{
				"traces": {Received: 100, Exported: 60, Queued: 10, Spooled: 20, Crashed: 1, Lost: map[string]int64{"queue_full": 3, "crash": 7}},
			},
			Endpoints: map[string]export.EndpointStats{"traces": {URL: "http://x/v1/traces", Requests: 5, LastError: "503\x1b[2J"}},
			Spool:     export.SpoolStats{State: "on", Bytes: 1 << 20, Limit: 512 << 20, OldestAge: 61},
		},
	}
}

// TestOwnMetrics: counters are what was gained, each once; what an agent before has
// reported is not reported again, what it lost by its end is.
func TestOwnMetrics(t *testing.T) {
	rep := sampleReport()
	own := newOwnMetrics("1", rep)
	find := func(points []event.Number, want string) (int64, bool) {
		for _, p := range points {
			text := p.Name
			for _, kv := range p.Attributes {
				text += " " + kv.Value.AsString()
			}
			if text == want {
				return p.Value, true
			}
			if p.Process != nil || !strings.HasPrefix(p.Name, "plain.agent.") {
				t.Errorf("%q is of %v", text, p.Process)
			}
		}
		return 0, false
	}
	check := func(points []event.Number, want map[string]int64) {
		t.Helper()
		for name, n := range want {
			if got, ok := find(points, name); !ok || got != n {
				t.Errorf("%s is %d (%v), want %d", name, got, ok, n)
			}
		}
	}
	check(own.numbers(rep), map[string]int64{
		"plain.agent.spans handed": 0, "plain.agent.spans lost ring_full": 0, "plain.agent.spans lost crash": 3,
		"plain.agent.unattended.time": 500, "plain.agent.export.items lost crash traces": 1, "plain.agent.export.items exported traces": 0,
		"plain.agent.ring.used spans": 8, "plain.agent.targets attached": 1, "plain.agent.targets waiting": 1, "plain.agent.spool.age": 61,
		"plain.agent.log.lines lost ring_full": 0, "plain.agent.degraded bad_read": 0, "plain.agent.spool.items traces": 20, "plain.agent.memory.used": 40 << 20,
	})
	status := rep.Probes.(probes.Status)
	status.Spans.Decoded, status.Losses = 150, map[string]uint64{"ring_full": 6, "crash": 13, "stack_full": 1}
	rep.Probes = status
	points := own.numbers(rep)
	check(points, map[string]int64{
		"plain.agent.spans handed": 50, "plain.agent.spans lost ring_full": 2, "plain.agent.spans lost crash": 0, "plain.agent.spans lost stack_full": 1,
		"plain.agent.unattended.time": 0,
	})
	// No feedback: as many points again, whatever was exported meanwhile.
	if again := len(own.numbers(rep)); again != len(points) {
		t.Errorf("%d points, then %d", len(points), again)
	}
}

func TestStatusCommand(t *testing.T) {
	srv := httptest.NewServer(statusHandler(sampleReport))
	defer srv.Close()
	var out bytes.Buffer
	if err := printStatus(context.Background(), &out, strings.TrimPrefix(srv.URL, "http://"), false); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	for _, want := range []string{
		"process 7: active for 1m0s", "40.0 MiB of memory", "1.5 s of that without an agent",
		"shop", "4711", "4 ring_full", "waiting: there is no such file yet",
		"7 crash, 3 queue_full", "1.0 MiB of 512.0 MiB, the oldest 1m1s old",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("an escape sequence of an endpoint reaches the terminal")
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	for _, address := range []string{"", "127.0.0.1:1", strings.TrimPrefix(other.URL, "http://")} {
		if err := printStatus(context.Background(), &out, address, false); err == nil {
			t.Errorf("%q: no error", address)
		}
	}
}

func TestCgroupMemory(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("pod/agent/memory.max", "max\n")
	write("pod/memory.max", "100000000\n")
	write("memory/v1/memory.limit_in_bytes", "50000000\n")
	write("memory/memory.limit_in_bytes", fmt.Sprintln(uint64(9223372036854771712)))
	write("memory.max", "junk")
	for membership, want := range map[string]int64{
		"0::/pod/agent\n": 100000000, "0::/\n": 0, "4:memory:/v1\n0::/\n": 50000000, "4:memory:/else\n": 0,
		"0::/not/mounted\n": 0, "junk\n": 0, "0::/../pod\n": 100000000, "": 0,
	} {
		file := filepath.Join(root, "membership")
		if err := os.WriteFile(file, []byte(membership), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := cgroupMemory(file, root); got != want {
			t.Errorf("%q: %d, want %d", membership, got, want)
		}
	}
	if got := cgroupMemory(filepath.Join(root, "none"), root); got != 0 {
		t.Errorf("without a file: %d", got)
	}
}

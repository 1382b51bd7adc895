package probes

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/process"
)

// counted is what the kernel has counted for a process.
type counted struct{ requests, queries, emitted, backedOff uint64 }

func countedOf(t *testing.T, a *Agent, pid int) counted {
	t.Helper()
	loads, err := newBackoff(a.kernel, a.targets, 1, a.log).readKernel()
	if err != nil {
		t.Fatal(err)
	}
	load := loads[uint32(pid)]
	var p bpf.AgentProcess
	_ = a.kernel.mapOf("processes").Lookup(uint32(pid), &p) // not there before the first request
	return counted{load.operations[httpKind], load.operations[sqlKind], load.emitted, p.Counters[bpf.AgentCounterCOUNT_LOST_BACKED_OFF]}
}

// TestGiveUp goes through all steps, up, down and across, with a process that serves
// requests meanwhile.
func TestGiveUp(t *testing.T) {
	s := startService(t)
	for _, o := range []struct {
		name    string
		options Options
	}{
		{"process", Options{PIDs: []int{s.pid}}},
		{"executable", Options{Exes: []string{s.exe}}},
	} {
		t.Run(o.name, func(t *testing.T) {
			a := startAgentOn(t, o.options, &sink{}, &lines{})
			binary := a.targets.attachedBinaries()[0]
			const n = 5
			all, measured, http, none := counted{n, n, 2 * n, 0}, counted{n, n, 0, 2 * n}, counted{n, 0, 0, n}, counted{}
			for i, step := range []struct {
				given givenUp
				want  counted
			}{
				{givenUpNothing, all}, {givenUpSpans, measured}, {givenUpSQL, http}, {givenUpAll, none},
				{givenUpSQL, http}, {givenUpSpans, measured}, {givenUpNothing, all},
				{givenUpAll, none}, {givenUpNothing, all},
			} {
				if err := a.targets.giveUp(binary, step.given, "because"); err != nil {
					t.Fatalf("step %d, %v: %v", i, step.given, err)
				}
				before := countedOf(t, a, s.pid)
				for range n {
					s.send(t, "GET", "/query")
				}
				now := countedOf(t, a, s.pid)
				got := counted{now.requests - before.requests, now.queries - before.queries, now.emitted - before.emitted, now.backedOff - before.backedOff}
				if got != step.want {
					t.Errorf("step %d, %v given up: %+v, want %+v", i, step.given, got, step.want)
				}
				status := a.Status().Binaries[0].Backoff
				if step.given == givenUpNothing && status != nil {
					t.Errorf("step %d: status says %v", i, status)
				} else if step.given != givenUpNothing && (status == nil || status.Level != step.given.String() || status.Reason != "because") {
					t.Errorf("step %d, %v given up: status says %v", i, step.given, status)
				}
			}
			if got := a.Status().Losses; got["backed_off"] != 6*n || got["unfinished"] != 0 {
				t.Errorf("losses are %v, want %d backed_off", got, 6*n)
			}
		})
	}
}

// TestGiveUpOpen: what is open when everything is given up does not stay in the kernel.
func TestGiveUpOpen(t *testing.T) {
	s := startService(t)
	a := startAgentOn(t, Options{PIDs: []int{s.pid}}, &sink{}, &lines{})
	ended := make(chan struct{})
	go func() { s.send(t, "GET", "/hold"); close(ended) }()
	open := func() int {
		all, err := a.collect.active.open()
		if err != nil {
			t.Error(err)
		}
		return len(all[uint32(s.pid)])
	}
	waitFor(t, "a request is open", func() bool { return open() == 1 })
	binary := a.targets.attachedBinaries()[0]
	if err := a.targets.giveUp(binary, givenUpAll, ""); err != nil {
		t.Fatal(err)
	}
	if n := open(); n != 0 {
		t.Errorf("%d are open when nothing is probed", n)
	}
	if err := a.targets.giveUp(binary, givenUpNothing, ""); err != nil {
		t.Fatal(err)
	}
	s.send(t, "GET", "/release")
	<-ended
	s.send(t, "GET", "/plain")
	// One was released, one is plain; the one that was open then is lost, and counted.
	if got := countedOf(t, a, s.pid); got.requests != 2 {
		t.Errorf("%d requests, want 2", got.requests)
	}
	if n := a.Status().Losses["unfinished"]; n != 1 {
		t.Errorf("%d unfinished, want 1", n)
	}
}

// TestBackoff has a limit that any load exceeds, and then no load.
func TestBackoff(t *testing.T) {
	s := startService(t)
	log := &lines{}
	a := startAgentOn(t, Options{PIDs: []int{s.pid}}, &sink{}, log)
	b := newBackoff(a.kernel, a.targets, 0.0001, a.log)
	tg := a.targets.find(s.pid)
	var record ringbuf.Record
	load := func() {
		if err := a.reader.drain(&record); err != nil {
			t.Fatal(err)
		}
		begin, err := process.CPUTime(s.pid, tg.process.StartTime)
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
			for range 50 {
				s.send(t, "GET", "/query")
			}
			if now, err := process.CPUTime(s.pid, tg.process.StartTime); err != nil || now-begin >= 2*leastCPU {
				return
			}
		}
		t.Fatal("the target uses no CPU time")
	}
	look := func() string {
		if err := b.look(); err != nil {
			t.Fatal(err)
		}
		if status := a.Status().Binaries[0].Backoff; status != nil {
			return status.Level
		}
		return ""
	}
	look() // counts from now on
	for i, want := range []string{"", "spans", "spans", "sql", "sql", "all", "all", "all"} {
		load()
		if got := look(); got != want {
			t.Fatalf("interval %d under load: %q is given up, want %q", i, got, want)
		}
	}
	if reason := a.Status().Binaries[0].Backoff.Reason; reason == "" {
		t.Error("no reason in the status")
	}
	for i := range 3 * quietIntervals {
		want := []string{"all", "sql", "spans", ""}[(i+1)/quietIntervals]
		if got := look(); got != want {
			t.Fatalf("quiet interval %d: %q is given up, want %q", i, got, want)
		}
	}
	if off, on := log.count("backs off"), log.count("takes up again"); off != 3 || on != 3 {
		t.Errorf("%d steps in the log that way and %d back, want 3 and 3", off, on)
	}
	if err := a.reader.drain(&record); err != nil {
		t.Fatal(err)
	}
	before := countedOf(t, a, s.pid)
	s.send(t, "GET", "/query")
	if now := countedOf(t, a, s.pid); now.emitted != before.emitted+2 {
		t.Errorf("%d spans of a request with a query, want 2", now.emitted-before.emitted)
	}
}

// TestGiveUpUnderLoad steps up and down while the agent runs and requests come from all
// sides: what is exported are whole traces, and every span is accounted for.
func TestGiveUpUnderLoad(t *testing.T) {
	s := startService(t)
	out := &sink{}
	a := startAgentOn(t, Options{PIDs: []int{s.pid}, MetricsInterval: 20 * time.Millisecond}, out, &lines{})
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()

	var sent atomic.Uint64
	var clients sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					s.send(t, "GET", "/query")
					sent.Add(1)
				}
			}
		})
	}
	binary := a.targets.attachedBinaries()[0]
	for range 3 {
		for _, given := range []givenUp{givenUpSpans, givenUpSQL, givenUpSpans, givenUpNothing} {
			time.Sleep(50 * time.Millisecond)
			if err := a.targets.giveUp(binary, given, "test"); err != nil {
				t.Errorf("%v: %v", given, err)
			}
		}
	}
	close(done)
	clients.Wait()
	requests := countedOf(t, a, s.pid).requests
	cancel()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}

	servers := map[trace.SpanID]bool{}
	for _, span := range out.spans {
		if span.Kind == trace.SpanKindServer {
			servers[span.SpanID] = true
		}
	}
	orphans := 0
	for _, span := range out.spans {
		if span.Kind == trace.SpanKindClient && !servers[span.ParentID] {
			orphans++
		}
	}
	status := a.Status()
	if requests != sent.Load() || len(servers) == 0 || len(servers) == int(requests) {
		t.Errorf("%d requests were measured and %d are spans, of %d", requests, len(servers), sent.Load())
	}
	if orphans > 0 {
		t.Errorf("%d of %d spans have lost their parent", orphans, len(out.spans))
	}
	if n := uint64(len(out.spans)); status.Spans.Emitted != n || status.Spans.Decoded != n || status.Losses["backed_off"] == 0 {
		t.Errorf("%d spans, the status says %+v and %v", n, status.Spans, status.Losses)
	}
	t.Logf("%d requests, %d spans, losses %v", requests, len(out.spans), status.Losses)
}

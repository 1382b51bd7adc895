//go:build e2e

package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/features"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// toldKinds are the ways of testdata/told.
var toldKinds = []struct {
	name string
	grpc bool
	http bool // 1.1: the header has room always
}{
	{name: "plain", http: true},
	{name: "tls", http: true},
	{name: "http2"},
	{name: "h2c"},
	{name: "x"},
	{name: "unary", grpc: true},
	{name: "stream", grpc: true},
}

// told is a receiver of testdata/told, and an agent on whatever sends to it.
type told struct {
	*watcher
	path, ports string
	receiver    *proc
}

func startTold(t *testing.T, e *e2e) *told {
	t.Helper()
	r := &told{path: e.build(t, "told", "testdata/told", nil)}
	r.receiver = startCmd(t, "receiver", exec.Command(r.path, "receive"))
	var ports []string
	eventually(t, 10*time.Second, "the receiver listens", func() bool {
		ports = nil
		for _, m := range regexp.MustCompile(`listens on (\d+)\n`).FindAllStringSubmatch(r.receiver.output(), -1) {
			ports = append(ports, m[1])
		}
		return len(ports) == 4
	})
	r.ports = strings.Join(ports, ",")
	return r
}

// send starts a sender and returns the URL to ask it at.
func (r *told) send(t *testing.T, host string) string {
	t.Helper()
	// The garbage collector checks its marks: memory that is not what it was shows.
	p := startProc(t, "sender", []string{"GODEBUG=gccheckmark=1"}, r.path, "send", "-host", host, "-ports", r.ports)
	return "http://127.0.0.1:" + listening(t, p)
}

func (r *told) run(t *testing.T, sender, kind string, from, to, workers int) {
	t.Helper()
	query := fmt.Sprintf("/run?kind=%s&from=%d&to=%d&workers=%d", kind, from, to, workers)
	if text := getText(t, sender+query); text != "" {
		t.Errorf("%s:\n%s", query, text)
	}
}

// testTold: the header is written into requests of all kinds, whatever encrypts them, on
// connections from before the agent as well. It is that of the call's span, everything
// else arrives as it was sent, and who may not be told is not.
func (e *e2e) testTold(t *testing.T) {
	r := startTold(t, e)
	calls := min(*bulk/5, 1000)
	sender, stranger, proxied := r.send(t, "127.0.0.1"), r.send(t, "127.0.0.2"), r.send(t, "127.0.0.1")
	for n, kind := range toldKinds { // before the agent
		r.run(t, sender, kind.name, 900_000+10*n, 900_002+10*n, 1)
	}
	r.watcher = e.launchAgent(t, []string{"PLAIN_CLOUD_PROPAGATE=memory", "PLAIN_CLOUD_PROPAGATE_TO=127.0.0.1,cluster"}, "--exe", r.path)
	r.waitReady(t)
	from := func(n int) int { return 10_000 * (n + 1) }
	for n, kind := range toldKinds {
		r.run(t, sender, kind.name, from(n), from(n)+calls, 4)
		r.run(t, stranger, kind.name, 800_000+100*n, 800_010+100*n, 2)
	}
	r.run(t, proxied, "proxied", 700_000, 700_010, 2)
	brought := map[int]string{}
	for n, kind := range toldKinds {
		r.passOn(t, sender, kind.name, 600_000+1000*n, brought)
	}
	status, _ := r.readStatus(t)
	r.noLosses(t)
	got, spans := received(t, r.receiver.output(), "got"), r.finish(t)
	t.Logf("%+v", status.Probes.Propagation)
	// Of the newest modules, too, each place is found.
	for _, b := range status.Probes.Binaries {
		for _, g := range b.Groups {
			for _, h := range g.Hooks {
				if h.Reason != "" && (strings.HasPrefix(h.Program, "propagate_") || strings.HasPrefix(h.Program, "http2client_")) {
					t.Errorf("%s %s: %s: %s", g.Library, g.Group, h.Program, h.Reason)
				}
			}
		}
	}
	if mode := status.Probes.Propagation.Mode; mode != "memory" {
		t.Fatalf("requests are changed by %s: %s", mode, status.Probes.Propagation.Reason)
	}
	calledAs := callsOf(spans)
	for n, kind := range toldKinds {
		own, untold := 0, 0
		for i := from(n); i < from(n)+calls; i++ {
			tp, arrived := got[i]
			want := ""
			if kind.grpc {
				want = spanOfCall(spans, tp)
			} else {
				want = traceparentOf(calledAs[i])
			}
			if i%10 == 7 {
				own++
				want = fmt.Sprintf("00-%032x-%016x-01", i+1, i+1)
			}
			switch {
			case !arrived:
				t.Errorf("%s: call %d has not arrived", kind.name, i)
			case tp == "" && i%10 != 7:
				untold++
			case tp != want:
				t.Errorf("%s: call %d was told %q, want %q", kind.name, i, tp, want)
			}
		}
		t.Logf("%s: %d calls, %d with a traceparent of their own, %d not told", kind.name, calls, own, untold)
		// The first frames have no room, and headers of 20 KB take several. What cannot be read
		// at the moment, as an arm64 without a hardware access flag has it, is left alone.
		limit := calls / 5
		if kind.http {
			limit = calls / 100
		}
		if untold > limit {
			t.Errorf("%s: %d of %d calls were not told, at most %d are expected", kind.name, untold, calls, limit)
		}
		for i := 800_000 + 100*n; i < 800_010+100*n; i++ {
			if tp, arrived := got[i]; !arrived || tp != "" && i%10 != 7 {
				t.Errorf("%s: call %d of a stranger has arrived: %v, and was told %q", kind.name, i, arrived, tp)
			}
		}
	}
	for i := 700_000; i < 700_010; i++ {
		if tp, arrived := got[i]; !arrived || tp != "" && i%10 != 7 {
			t.Errorf("call %d through a proxy has arrived: %v, and was told %q", i, arrived, tp)
		}
	}
	distinct := map[string]bool{}
	for i, tp := range got {
		if tp != "" && distinct[tp] {
			t.Errorf("call %d was told %q, as another was", i, tp)
		}
		distinct[tp] = true
	}
	r.passedOn(t, brought, func(i int) bool { return toldKinds[(i-600_000)/1000].http })
}

// passOn has calls made within requests that bring a tracestate along, of lengths that are
// written differently, and of one that is too long. It notes what each call should pass on.
func (r *told) passOn(t *testing.T, sender, kind string, from int, want map[int]string) {
	t.Helper()
	for n, length := range []int{20, 126, 127, 254, 255} {
		state := "plain=" + strings.Repeat("s", length-len("plain="))
		first := from + 100*n
		req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("%s/run?kind=%s&from=%d&to=%d&workers=2&within=1", sender, kind, first, first+9), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("traceparent", fmt.Sprintf("00-%032x-%016x-00", first+1, first+1))
		req.Header.Set("tracestate", state)
		if text := textOf(t, req); text != "" {
			t.Errorf("calls of %s from %d on:\n%s", kind, first, text)
		}
		for i := first; i < first+9; i++ {
			want[i] = ""
			if length <= 254 && i%10 != 7 {
				want[i] = state
			}
		}
	}
}

// passedOn compares what has arrived with what passOn has noted. Whoever was told of the
// trace has the tracestate, too, if always says so; else it may have found no room.
func (r *told) passedOn(t *testing.T, want map[int]string, always func(i int) bool) {
	t.Helper()
	got, states := received(t, r.receiver.output(), "got"), received(t, r.receiver.output(), "state")
	passed, untold, alone := 0, 0, 0
	for i, state := range want {
		tp, arrived := got[i]
		switch {
		case !arrived:
			t.Errorf("call %d has not arrived", i)
		case states[i] == state:
			passed++
		case tp == "" && states[i] == "":
			untold++
		case states[i] == "" && !always(i):
			alone++
		default:
			t.Errorf("call %d was told %q with the tracestate %q, want %q", i, tp, states[i], state)
		}
	}
	t.Logf("tracestate: %d calls as they should, %d were told nothing, %d of the trace alone", passed, untold, alone)
	if untold+alone > len(want)/3 {
		t.Errorf("%d of %d calls have no tracestate", untold+alone, len(want))
	}
	for i := range states {
		if _, expected := want[i]; !expected {
			t.Errorf("call %d has a tracestate: %q", i, states[i])
		}
	}
}

// testToldTracestate: what a request brings along goes on with the calls made within it.
func (e *e2e) testToldTracestate(t *testing.T) {
	r := startTold(t, e)
	sender := r.send(t, "127.0.0.1")
	r.watcher = e.launchAgent(t, []string{"PLAIN_CLOUD_PROPAGATE=headers"}, "--exe", r.path)
	r.waitReady(t)
	want := map[int]string{}
	r.passOn(t, sender, "plain", 0, want)
	r.noLosses(t)
	r.finish(t)
	r.passedOn(t, want, func(int) bool { return true })
}

// testToldByMessages: likewise for HTTP/1.1 without TLS, with no write to the sender's
// memory. Before Linux 6.12 nothing is changed.
func (e *e2e) testToldByMessages(t *testing.T) {
	r := startTold(t, e)
	calls := min(*bulk/5, 1000)
	sender := r.send(t, "127.0.0.1")
	r.watcher = e.launchAgent(t, []string{"PLAIN_CLOUD_PROPAGATE=headers"}, "--exe", r.path)
	r.waitReady(t)
	r.run(t, sender, "plain", 0, calls, 4)
	r.run(t, sender, "tls", 10_000, 10_000+calls, 4)
	status, _ := r.readStatus(t)
	r.noLosses(t)
	got, spans := received(t, r.receiver.output(), "got"), callsOf(r.finish(t))
	mode := status.Probes.Propagation.Mode
	if want := messagesMode(t); mode != want {
		t.Fatalf("requests are changed by %s, want %s: %s", mode, want, status.Probes.Propagation.Reason)
	}
	untold := 0
	for i := range calls {
		want := traceparentOf(spans[i])
		if i%10 == 7 {
			want = fmt.Sprintf("00-%032x-%016x-01", i+1, i+1)
		} else if mode == "off" {
			want = ""
		} else if got[i] == "" {
			untold++
			continue
		}
		if tp, arrived := got[i]; !arrived || tp != want {
			t.Errorf("call %d has arrived: %v, and was told %q, want %q", i, arrived, tp, want)
		}
		if tp, arrived := got[10_000+i]; !arrived || tp != "" && i%10 != 7 {
			t.Errorf("call %d over TLS has arrived: %v, and was told %q", 10_000+i, arrived, tp)
		}
	}
	t.Logf("%s: %d calls, %d not told; %+v", mode, calls, untold, status.Probes.Propagation)
	if untold > calls/20 {
		t.Errorf("%d of %d calls were not told", untold, calls)
	}
}

// messagesMode is what the agent is to make of PLAIN_CLOUD_PROPAGATE=headers on this kernel
// and CPU.
func messagesMode(t *testing.T) string {
	t.Helper()
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	noted := runtime.GOARCH != "amd64" || strings.Contains(string(cpu), " cx16 ")
	if version < 6<<16|12<<8 || version >= 7<<16 && !noted {
		return "off"
	}
	return "messages"
}

// testToldOthers: over IPv6, and that a trace is not sampled, which whoever is called must
// hear of as well.
func (e *e2e) testToldOthers(t *testing.T) {
	const calls = 100
	r := startTold(t, e)
	sender, sender6 := r.send(t, "127.0.0.1"), r.send(t, "::1")
	r.watcher = e.launchAgent(t, []string{"PLAIN_CLOUD_PROPAGATE=headers", "PLAIN_CLOUD_TRACE_SAMPLE_RATE=0"}, "--exe", r.path)
	r.waitReady(t)
	r.run(t, sender, "plain", 0, calls, 4)
	r.run(t, sender6, "plain", 1000, 1000+calls, 4)
	r.noLosses(t)
	if spans := r.finish(t); len(spans) != 0 {
		t.Errorf("%d spans at a rate of 0", len(spans))
	}
	got, distinct := received(t, r.receiver.output(), "got"), map[string]bool{}
	notSampled := regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-0[02]$`)
	for i, tp := range got {
		if i%10 != 7 && !notSampled.MatchString(tp) {
			t.Errorf("call %d was told %q", i, tp)
		}
		distinct[tp] = true
	}
	if len(got) != 2*calls || len(distinct) != 2*calls {
		t.Errorf("%d calls have arrived, with %d traceparents, of %d", len(got), len(distinct), 2*calls)
	}
}

// spanOfCall is the traceparent, if it is that of a client span of gRPC, else what
// nothing is equal to.
func spanOfCall(spans []observer.Span, traceparent string) string {
	for _, s := range spans {
		if s.Kind == trace.SpanKindClient && s.Attrs.Text("rpc.system.name") == "grpc" && traceparentOf(s) == traceparent {
			return traceparent
		}
	}
	return "that of a client span of gRPC"
}

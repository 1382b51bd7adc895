//go:build e2e

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/internal/observer"
)

// testVariants is the table again, for the same shop built in other ways.
func (e *e2e) testVariants(t *testing.T) {
	for _, v := range []struct {
		name  string
		env   []string
		flags []string
	}{
		{"stripped", nil, []string{"-ldflags=-s -w"}},
		{"pie", nil, []string{"-buildmode=pie"}},
		{"stripped_pie", nil, []string{"-buildmode=pie", "-ldflags=-s -w"}},
		{"go1.22", []string{"GOTOOLCHAIN=go1.22.12"}, nil},
	} {
		t.Run(v.name, func(t *testing.T) {
			f, _ := e.runTable(t, e.build(t, "shop-"+v.name, shopDir, v.env, v.flags...))
			f.report(t)
		})
	}
	t.Run("pgo", e.testPGO)
}

// runTable runs the table once and returns what is wrong, and /status.
func (e *e2e) runTable(t *testing.T, path string) (findings, agentStatus) {
	t.Helper()
	// The service is named after its executable: it must be "shop" here, too.
	dir := filepath.Join(e.dir, "in-"+filepath.Base(path))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	named := filepath.Join(dir, "shop")
	if err := os.Rename(path, named); err != nil {
		t.Fatal(err)
	}
	shop := e.startShop(t, named)
	a := e.startAgent(t, "--exe", named)
	go20(t, shop.url)
	settle(a.seen)
	a.noLosses(t)
	status, _ := a.readStatus(t)
	return checkVisits(a.finish(t), portOf(t, shop.url), perPath), status
}

// settle waits until no span has come for a while: for tests that cannot know
// how many will.
func settle(o *observer.Observer) {
	for n := -1; n != o.Counts().Spans; {
		n = o.Counts().Spans
		time.Sleep(2 * time.Second)
	}
}

// testPGO builds the shop with a profile of itself. What inlining takes away
// must be named in /status; no span may be wrong.
func (e *e2e) testPGO(t *testing.T) {
	profile := filepath.Join(e.dir, "shop.pprof")
	shop := e.startShop(t, e.shop, "-cpuprofile", profile)
	end := time.Now().Add(4 * time.Second)
	for time.Now().Before(end) {
		for _, path := range []string{"/plain", "/items/7", "/items", "/report", "/stmt/7"} {
			statusOf(shop.url + path)
		}
		send("POST", shop.url+"/orders", nil)
	}
	shop.stop(t)
	f, status := e.runTable(t, e.build(t, "shop-pgo", shopDir, nil, "-pgo="+profile))
	x := excusesOf(status)
	var serious findings
	excused := 0
	for _, one := range f {
		if x.cover(one) {
			excused++
			continue
		}
		serious = append(serious, one)
	}
	serious.report(t)
	if excused > 0 {
		t.Logf("%d findings are explained by what /status names:\n%s", excused, strings.Join(x.reasons, "\n"))
	}
}

// excuses are what /status names as out of reach, and so may be missing.
type excuses struct {
	requests, queries bool // spans of them
	routes            bool // of requests that middleware has copied: only the route's probe sees them
	reasons           []string
}

func excusesOf(status agentStatus) (x excuses) {
	routes := false
	for _, b := range status.Probes.Binaries {
		for _, g := range b.Groups {
			named := g.Reason != ""
			if named {
				x.reasons = append(x.reasons, g.Library+" "+g.Group+": "+g.Reason)
			}
			for _, h := range g.Hooks {
				routes = routes || h.Program == "nethttp_route" && h.Function == "net/http.(*ServeMux).ServeHTTP"
				if h.Reason == "" {
					continue
				}
				named = true
				x.reasons = append(x.reasons, g.Library+" "+g.Group+", "+h.Program+": "+h.Reason)
				x.routes = x.routes || h.Program == "nethttp_route"
			}
			if g.State != "attached" && named {
				x.requests = x.requests || g.Library == "net/http"
				x.queries = x.queries || g.Library == "database/sql"
			}
		}
	}
	x.routes = x.routes && !routes
	return x
}

func (x excuses) cover(f finding) bool {
	if f.missing {
		query := strings.Contains(f.text, ": no child ")
		return query && x.queries || !query && x.requests
	}
	copied := strings.Contains(f.text, "/mw/") || strings.Contains(f.text, "/timeout/")
	return x.routes && copied && (strings.Contains(f.text, `http.route is ""`) || strings.Contains(f.text, `service "shop", name "GET", `))
}

// testRemoteParent sends requests with a traceparent: the spans must be part of
// that trace, with the tracestate as it came.
func (e *e2e) testRemoteParent(t *testing.T) {
	shop := e.startShop(t, e.shop)
	a := e.startAgent(t, "--exe", e.shop)
	want := map[string]string{} // trace id → parent id
	for i := range perPath {
		traceID, parent := fmt.Sprintf("%032x", 0xabc000+i), fmt.Sprintf("%016x", 0xdef0+i)
		want[traceID] = parent
		send("GET", shop.url+"/items/7", map[string]string{"Traceparent": "00-" + traceID + "-" + parent + "-01", "Tracestate": "vendor=opaque,other=1"})
	}
	for _, bad := range []string{"00-" + strings.Repeat("0", 32) + "-00000000000000aa-01", "00-xyz", "ff-" + strings.Repeat("1", 32) + "-00000000000000aa-01", strings.Repeat("a", 4000)} {
		send("GET", shop.url+"/plain", map[string]string{"traceparent": bad})
	}
	eventually(t, 10*time.Second, "every request is a span", func() bool { return serverSpans(a.seen) >= perPath+4 })
	for _, s := range a.finish(t) {
		if s.Attrs.Text("url.path") == "/plain" {
			if s.ParentID.IsValid() || !s.TraceID.IsValid() {
				t.Errorf("a broken traceparent gives a parent: %v", s.ParentID)
			}
			continue
		}
		parent, ok := want[s.TraceID.String()]
		if !ok {
			t.Errorf("trace id %v was not sent: %s", s.TraceID, summary(s))
		} else if s.Kind == trace.SpanKindServer && (s.ParentID.String() != parent || s.TraceState != "vendor=opaque,other=1") {
			t.Errorf("parent %v and tracestate %q, want %s and as it was sent", s.ParentID, s.TraceState, parent)
		}
	}
}

// testBrokenConnections: HTTP/1.0, a client that resets while the handler runs,
// pipelined requests, and one that is no request.
func (e *e2e) testBrokenConnections(t *testing.T) {
	shop := e.startShop(t, e.shop)
	a := e.startAgent(t, "--exe", e.shop)
	address := strings.TrimPrefix(shop.url, "http://")
	raw := func(text string, read bool) {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, text)
		if read {
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.Copy(io.Discard, bufio.NewReader(c))
			return
		}
		time.Sleep(5 * time.Millisecond) // the handler has begun
		_ = c.(*net.TCPConn).SetLinger(0)
	}
	for range perPath {
		raw("GET /items/7 HTTP/1.0\r\n\r\n", true)
		raw("GET /slow?ms=30 HTTP/1.1\r\nHost: x\r\n\r\n", false)
		raw("GET /plain HTTP/1.1\r\nHost: x\r\n\r\nGET /items/8 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", true)
		raw("no request at all\r\n\r\n", true)
	}
	eventually(t, 10*time.Second, "every request is a span", func() bool { return serverSpans(a.seen) >= 4*perPath })
	got := map[string]int{}
	for _, s := range a.finish(t) {
		if s.Kind != trace.SpanKindServer {
			got["SQL "+s.Attrs.Text("db.system.name")]++
			continue
		}
		got[s.Attrs.Text("url.path")+" "+s.Attrs.Text("network.protocol.version")]++
		if path := s.Attrs.Text("url.path"); path == "/slow" && (s.Duration() < 30*time.Millisecond || s.Duration() > time.Second) {
			t.Errorf("a reset request took %v", s.Duration())
		}
	}
	for k, n := range map[string]int{"/items/7 1.0": perPath, "/slow 1.1": perPath, "/plain 1.1": perPath, "/items/8 1.1": perPath, "SQL sqlite": 2 * perPath} {
		if got[k] != n {
			t.Errorf("%d × %s, want %d", got[k], k, n)
		}
		delete(got, k)
	}
	if len(got) > 0 {
		t.Errorf("also got %v", got)
	}
}

// testTargets: --pid takes that process alone, --exe those that come later, too.
func (e *e2e) testTargets(t *testing.T) {
	one, other := e.startShop(t, e.shop), e.startShop(t, e.shop)
	a := e.startAgent(t, "--pid", fmt.Sprint(one.pid()))
	for range perPath {
		statusOf(one.url + "/items/7")
		statusOf(other.url + "/items/7")
	}
	eventually(t, 10*time.Second, "every request is a span", func() bool { return serverSpans(a.seen) >= perPath })
	for _, s := range a.finish(t) {
		if pid := s.Resource.Text("process.pid"); pid != fmt.Sprint(one.pid()) {
			t.Fatalf("a span of process %s, asked for %d", pid, one.pid())
		}
	}
	if n := serverSpans(a.seen); n != perPath {
		t.Errorf("%d server spans, want %d", n, perPath)
	}

	late := filepath.Join(e.dir, "late", "shop")
	a = e.startAgent(t, "--exe", late, "--exe", e.shop)
	if err := os.Mkdir(filepath.Dir(late), 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, e.shop, late)
	third := e.startShop(t, late)
	fourth := e.startShop(t, e.shop)
	pids := map[string]int{fmt.Sprint(one.pid()): 0, fmt.Sprint(third.pid()): 0, fmt.Sprint(fourth.pid()): 0}
	eventually(t, 10*time.Second, "spans of old and new processes", func() bool {
		for _, s := range []server{one, third, fourth} {
			statusOf(s.url + "/plain")
		}
		seen := map[string]bool{}
		for _, s := range a.seen.Spans() {
			seen[s.Resource.Text("process.pid")] = true
		}
		for pid := range pids {
			if !seen[pid] {
				return false
			}
		}
		return true
	})
	a.finish(t)
	for _, s := range []server{one, other, third, fourth} {
		if n := patched(t, s.pid()); n != 0 {
			t.Errorf("process %d has %d bytes of traps after the agent has gone", s.pid(), n)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// testFirstSpan: from the agent's start to the first exported span, 2 s at most.
// The best of three, for the machine may be busy with something else.
func (e *e2e) testFirstSpan(t *testing.T) {
	shop := e.startShop(t, e.shop)
	best := time.Hour
	for range 3 {
		begin := time.Now()
		a := e.launchAgent(t, nil, "--exe", e.shop)
		eventually(t, 20*time.Second, "the first span", func() bool {
			statusOf(shop.url + "/plain")
			return a.seen.Counts().Spans > 0
		})
		best = min(best, a.seen.Spans()[0].Received.Sub(begin))
		a.finish(t)
	}
	t.Logf("first span exported %v after the start", best)
	if best > 2*time.Second {
		t.Errorf("the first span took %v", best)
	}
}

// testKill kills the agent ten times under load. The shop must not notice, and
// must run at its bare speed afterwards, with its code as in its file.
func (e *e2e) testKill(t *testing.T) {
	shop := e.startShop(t, e.shop)
	var failed, sent atomic.Int64
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			path := []string{"/plain", "/items/7", "/report"}[i%3]
			if sent.Add(1); statusOf(shop.url+path) != 200 {
				failed.Add(1)
			}
		}
	}()
	for i := range 10 {
		a := e.startAgent(t, "--exe", e.shop)
		eventually(t, 10*time.Second, "spans", func() bool { return a.seen.Counts().Spans > 0 })
		if i == 0 && patched(t, shop.pid()) == 0 {
			t.Error("spans, but no trap in the shop's code: the check below proves nothing")
		}
		a.kill()
		eventually(t, 5*time.Second, "the kernel has removed the traps", func() bool { return patched(t, shop.pid()) == 0 })
	}
	close(stop)
	<-ended
	if !shop.running() || failed.Load() > 0 {
		t.Errorf("the shop runs: %v; %d of %d requests failed", shop.running(), failed.Load(), sent.Load())
	}
	// In turns with a shop that no agent has seen: the machine's own speed changes.
	other := e.startShop(t, e.shop)
	for range 20 {
		cpuPerRequest(t, other) // as warm as the first one
	}
	bare, after := time.Hour, time.Hour
	for range 10 {
		bare = min(bare, cpuPerRequest(t, other))
		after = min(after, cpuPerRequest(t, shop))
	}
	t.Logf("CPU a request: %v of a fresh shop, %v after ten kills, %d requests meanwhile", bare, after, sent.Load())
	if after > bare*5/4 {
		t.Errorf("CPU a request is %v, and %v of a fresh shop", after, bare)
	}
}

// cpuPerRequest is what 500 requests cost on average.
func cpuPerRequest(t *testing.T, shop server) time.Duration {
	t.Helper()
	const n = 500
	before := cpuTime(t, shop.pid())
	for range n {
		statusOf(shop.url + "/plain")
	}
	return (cpuTime(t, shop.pid()) - before) / n
}

// cpuTime is the CPU time of all threads of a process: the kernel's clock for it
// (see clock_getcpuclockid).
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	const schedClock = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedClock), &ts); err != nil {
		t.Fatalf("CPU time of %d: %v", pid, err)
	}
	return time.Duration(ts.Nano())
}

// patched counts the bytes of a process's code that are not as in its file: each
// trap of a uprobe is one, or two where the kernel uses a longer one.
func patched(t *testing.T, pid int) (n int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	exe, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	compared := 0
	for line := range bytes.Lines(maps) {
		var from, to, offset, inode int64
		var perms, dev string
		if _, err := fmt.Sscanf(string(line), "%x-%x %s %x %s %d", &from, &to, &perms, &offset, &dev, &inode); err != nil || inode == 0 || !strings.Contains(perms, "x") {
			continue
		}
		code, file := make([]byte, to-from), make([]byte, to-from)
		if _, err := mem.ReadAt(code, from); err != nil {
			t.Fatalf("read code: %v", err)
		}
		got, err := exe.ReadAt(file, offset)
		if err != nil && err != io.EOF {
			t.Fatalf("read file: %v", err)
		}
		for i := range got {
			if code[i] != file[i] {
				n++
			}
		}
		compared += got
	}
	if compared == 0 {
		t.Fatalf("process %d has no code", pid)
	}
	return n
}

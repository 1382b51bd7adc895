//go:build e2e

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"

	"github.com/plainframework/agent/internal/observer"
	"github.com/plainframework/agent/internal/probes"
)

// TestE2E runs the agent as a user would, on this machine's kernel, against real
// services: the built binary, its command line, its environment, its endpoint.
// Everything is built once; each part starts its own service and its own agent.
func TestE2E(t *testing.T) {
	needKernel(t)
	e := &e2e{dir: t.TempDir()}
	// Other users must reach the binaries, for the test without root.
	for dir := e.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if *patience > 1 {
		// The shop gives it 200 ms, which is not sure to be enough on a slow machine.
		visits = slices.DeleteFunc(visits, func(v visit) bool { return v.path == "/timeout/5" })
	}
	e.agent = e.build(t, "agent", ".", nil)
	e.shop = e.build(t, "shop", shopDir, nil)

	t.Run("shop", e.testShop)
	t.Run("keep-alive", e.testKeepAlive)
	t.Run("variants", e.testVariants)
	t.Run("context", e.testRemoteParent)
	t.Run("broken", e.testBrokenConnections)
	t.Run("targets", e.testTargets)
	t.Run("changes", e.testChanges)
	t.Run("quick", e.testFirstSpan)
	t.Run("kill", e.testKill)
	t.Run("postgres", e.testPostgresExporter)
	t.Run("caddy", e.testCaddy)
	t.Run("client", e.testClient)
	t.Run("hops", e.testHops)
	t.Run("busy", e.testBusyHops)
	t.Run("namespaces", e.testNamespaces)
	t.Run("http2", e.testHTTP2)
	t.Run("grpc", e.testGRPC)
	t.Run("etcd", e.testEtcd)
	t.Run("bad", e.testBadInput)
	t.Run("privileges", e.testPrivileges)
	t.Run("doctor", e.testDoctor)
	t.Run("remote limit", e.testRemoteLimit)
	t.Run("limited threshold", e.testLimitedThreshold)
	t.Run("logs", e.testLogs)
	t.Run("logs of others", e.testRealLogs)
	t.Run("metrics", e.testMetrics)
	t.Run("crash", e.testCrash)
	t.Run("secrets", e.testSecrets)
	t.Run("second", e.testSecondAgent)
	t.Run("reload", e.testReload)
	t.Run("routers", e.testRouters)
	t.Run("streams", e.testStreams)
	t.Run("stream flood", e.testStreamFlood)
	t.Run("discovery", e.testDiscovery)
	t.Run("sdk", e.testSDK)
	t.Run("autosdk", e.testAutoSDK)
	t.Run("propagation", e.testPropagation)
	t.Run("propagation killed", e.testPropagationKilled)
	t.Run("told by messages", e.testToldByMessages)
	t.Run("told others", e.testToldOthers)
	t.Run("told tracestate", e.testToldTracestate)
	// Where a kernel is locked down there is nothing to be tested; scripts/kernels has others.
	if features.HaveProgramHelper(ebpf.Kprobe, asm.FnProbeWriteUser) == nil {
		t.Run("told", e.testTold)
	}
}

// whole is for people with an hour: every build that is covered, not only the oldest and
// the newest of each kind.
var whole = flag.Bool("e2e.whole", false, "all builds of the programs that are instrumented")

func oldestAndNewest[T any](builds []T) []T {
	if *whole || len(builds) < 3 {
		return builds
	}
	return []T{builds[0], builds[len(builds)-1]}
}

const shopDir = "../../scripts/shop"

type e2e struct {
	dir         string
	agent, shop string // executables
}

// needKernel skips only where the kernel lacks what the agent is made of.
func needKernel(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the end-to-end tests need root: sudo ./scripts/test")
	}
	if _, err := os.Stat("/sys/bus/event_source/devices/uprobe/type"); errors.Is(err, os.ErrNotExist) {
		t.Skip("this kernel has no uprobes: no PMU \"uprobe\"")
	}
	for name, err := range map[string]error{
		"programs of type kprobe": features.HaveProgramType(ebpf.Kprobe),
		"BPF ring buffers":        features.HaveMapType(ebpf.RingBuf),
	} {
		if errors.Is(err, ebpf.ErrNotSupported) {
			t.Skipf("this kernel has no %s", name)
		} else if err != nil {
			t.Fatalf("ask the kernel for %s: %v", name, err)
		}
	}
}

// For machines without Go, and for slow ones: scripts/kernels uses both.
var (
	built    = flag.String("e2e.built", "", "take executables from this folder, where they are named as the tests name them")
	patience = flag.Int("e2e.patience", 1, "how many times longer everything may take")
)

// build compiles the package in dir to name and returns the executable.
func (e *e2e) build(t *testing.T, name, dir string, env []string, flags ...string) string {
	t.Helper()
	out := filepath.Join(e.dir, name)
	if *built != "" {
		copyFile(t, filepath.Join(*built, name), out)
		return out
	}
	cmd := exec.Command("go", append(append([]string{"build", "-buildvcs=false", "-o", out}, flags...), ".")...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, text)
	}
	return out
}

// proc is a child process. Its output is kept, and shown if the test fails.
type proc struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait; valid after done

	mu  sync.Mutex
	out bytes.Buffer // stdout and stderr
}

// maxOutput bounds what is kept of a child's output.
const maxOutput = 1 << 20

func (p *proc) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.Write(b[:min(len(b), max(maxOutput-p.out.Len(), 0))])
	return len(b), nil
}

func (p *proc) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func (p *proc) pid() int { return p.cmd.Process.Pid }

// startProc runs a command until the test ends, if it does not end before.
func startProc(t *testing.T, name string, env []string, path string, args ...string) *proc {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), env...)
	return startCmd(t, name, cmd)
}

func startCmd(t *testing.T, name string, cmd *exec.Cmd) *proc {
	t.Helper()
	p := &proc{name: name, cmd: cmd, done: make(chan struct{})}
	return p.start(t, p, p)
}

// startCmdTo is startCmd with the output elsewhere. It closes what is a file.
func startCmdTo(t *testing.T, name string, cmd *exec.Cmd, stdout, stderr *os.File) *proc {
	t.Helper()
	p := &proc{name: name, cmd: cmd, done: make(chan struct{})}
	defer stdout.Close()
	return p.start(t, stdout, stderr)
}

func (p *proc) start(t *testing.T, stdout, stderr io.Writer) *proc {
	t.Helper()
	name, cmd := p.name, p.cmd
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // no child outlives a test that is killed
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("output of %s:\n%s", name, p.output())
		}
	})
	return p
}

// kill ends the process at once and waits for it.
func (p *proc) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// stop sends SIGTERM and waits for a clean end.
func (p *proc) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("stop %s: %v", p.name, err)
	}
	if !p.ends(12 * time.Second) {
		t.Errorf("%s does not end within 12 s of SIGTERM", p.name)
		p.kill()
	} else if p.err != nil {
		t.Errorf("%s: %v", p.name, p.err)
	}
}

// ends waits for the end of the process.
func (p *proc) ends(within time.Duration) bool {
	select {
	case <-p.done:
		return true
	case <-time.After(within):
		return false
	}
}

// running tells whether the process has not ended.
func (p *proc) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// eventually polls until done returns true.
func eventually(t *testing.T, within time.Duration, what string, done func() bool) {
	t.Helper()
	within *= time.Duration(*patience)
	for deadline := time.Now().Add(within); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// server is a running service that is watched.
type server struct {
	*proc
	url string
}

func (e *e2e) startShop(t *testing.T, path string, args ...string) server {
	t.Helper()
	return awaitShop(t, startProc(t, "shop", nil, path, append([]string{"-listen", "127.0.0.1:0"}, args...)...))
}

// awaitShop waits until a shop has said where it listens.
func awaitShop(t *testing.T, p *proc) server {
	t.Helper()
	s := server{proc: p}
	eventually(t, 10*time.Second, p.name+" listens", func() bool {
		_, rest, ok := strings.Cut(p.output(), " listens on ")
		s.url, _, _ = strings.Cut(rest, "\n")
		return ok && strings.Contains(rest, "\n")
	})
	return s
}

// watcher is a running agent with its endpoint.
type watcher struct {
	*proc
	seen   *observer.Observer
	status string // URL
}

// startAgent runs the agent and waits until it is ready.
func (e *e2e) startAgent(t *testing.T, args ...string) *watcher {
	t.Helper()
	w := e.launchAgent(t, nil, args...)
	w.waitReady(t)
	return w
}

// launchAgent runs the agent with an endpoint of its own.
func (e *e2e) launchAgent(t *testing.T, env []string, args ...string) *watcher {
	t.Helper()
	return e.launchAgentTo(t, observer.New(observer.Options{}), env, args...)
}

func (e *e2e) launchAgentTo(t *testing.T, seen *observer.Observer, env []string, args ...string) *watcher {
	t.Helper()
	w, common := newWatcherOf(t, seen)
	w.proc = startProc(t, "agent", append(common, env...), e.agent, append([]string{"run", "--status", strings.TrimPrefix(w.status, "http://")}, args...)...)
	return w
}

// newWatcherOf is an endpoint for an agent that is yet to start, and its environment.
func newWatcherOf(t *testing.T, seen *observer.Observer) (*watcher, []string) {
	t.Helper()
	sink := httptest.NewServer(seen.Handler())
	t.Cleanup(sink.Close)
	return &watcher{seen: seen, status: "http://" + freeAddress(t)},
		[]string{"PLAIN_CLOUD_SPOOL_DIR=off", "PLAIN_AGENT_STATE_DIR=off", "PLAIN_CLOUD_EXPORT_TOKEN=" + testToken, "PLAIN_CLOUD_EXPORT_URL=" + sink.URL}
}

const testToken = "e2e-Token-that-must-not-be-seen"

func (w *watcher) waitReady(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, "the agent is ready", func() bool {
		if !w.running() {
			t.Fatalf("the agent has ended: %v\n%s", w.err, w.output())
		}
		return statusOf(w.status+"/readyz") == http.StatusOK
	})
}

// finish stops the agent, which flushes it, and returns every span that it sent.
func (w *watcher) finish(t *testing.T) []observer.Span {
	t.Helper()
	w.stop(t)
	if strings.Contains(w.output(), testToken) {
		t.Error("the agent's output has the token in it")
	}
	return w.seen.Spans()
}

// agentStatus is what the test reads of /status.
type agentStatus struct {
	Probes probes.Status `json:"probes"`
}

func (w *watcher) readStatus(t *testing.T) (agentStatus, string) {
	t.Helper()
	var s agentStatus
	res, err := client.Get(w.status + "/status")
	if err != nil {
		t.Fatalf("read status: %v", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("read status: %v", err)
	}
	if err := json.Unmarshal(body, &s); err != nil {
		t.Fatalf("read status: %v\n%s", err, body)
	}
	return s, string(body)
}

// noLosses fails the test if the agent lost anything.
func (w *watcher) noLosses(t *testing.T) {
	t.Helper()
	s, _ := w.readStatus(t)
	for reason, n := range s.Probes.Losses {
		if n > 0 {
			t.Errorf("lost %d: %s", n, reason)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// client keeps connections, as a real one does, and follows no redirect.
var client = &http.Client{
	Timeout:       15 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// loner makes a connection for each request: on a used connection net/http's
// client sends a request again that got no answer.
var loner = &http.Client{Timeout: client.Timeout, Transport: &http.Transport{DisableKeepAlives: true}}

// send makes one request and returns the status code, 0 where the connection
// ended without an answer.
func send(method, url string, header map[string]string) int {
	return sendBy(client, method, url, header)
}

func sendBy(c *http.Client, method, url string, header map[string]string) int {
	req, err := http.NewRequestWithContext(context.Background(), method, url, nil)
	if err != nil {
		return -1
	}
	req.Header.Set("User-Agent", "e2e/1")
	for k, v := range header {
		req.Header.Set(k, v)
	}
	res, err := c.Do(req)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body) // a broken body is seen by its status
	return res.StatusCode
}

func statusOf(url string) int { return send(http.MethodGet, url, nil) }

// summary is a span in one line, for messages; without its times, so that equal
// findings have equal texts.
func summary(s observer.Span) string {
	return fmt.Sprintf("%s %q %v %s", s.Kind, s.Name, s.Attrs, s.Status)
}

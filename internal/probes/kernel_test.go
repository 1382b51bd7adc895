package probes

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/probes/event"
)

// service is a running testdata/target.
type service struct {
	pid int
	exe string
	url string
}

var built = flag.String("built", "", "take executables from this folder, on machines without Go")

// startService builds and runs the target; it ends with the test.
func startService(t *testing.T) service {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to attach probes")
	}
	if *built != "" {
		return service{exe: filepath.Join(*built, "target")}.another(t)
	}
	exe := filepath.Join(t.TempDir(), "target")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", exe, "./testdata/target")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build target: %v\n%s", err, out)
	}
	return service{exe: exe}.another(t)
}

// another runs one more process of the same executable.
func (s service) another(t *testing.T) service {
	t.Helper()
	cmd := exec.Command(s.exe)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the target has no address: %v", err)
	}
	return service{pid: cmd.Process.Pid, exe: s.exe, url: "http://" + strings.TrimSpace(address)}
}

var httpClient = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 8}}

func (s service) send(t *testing.T, method, path string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := httpClient.Do(req)
	if err != nil {
		t.Errorf("%s %s: %v", method, path, err)
		return
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("%s %s: status %d", method, path, res.StatusCode)
	}
}

// sink keeps what it is given.
type sink struct {
	mu      sync.Mutex
	spans   []event.Span
	points  []event.Histogram
	numbers []event.Number
}

func (s *sink) Spans(spans []event.Span) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spans = append(s.spans, spans...)
	return len(spans)
}

func (s *sink) Logs(logs []event.Log) int { return len(logs) }

func (s *sink) Metrics(points []event.Histogram, numbers []event.Number) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.points, s.numbers = append(s.points, points...), append(s.numbers, numbers...)
	return len(points) + len(numbers)
}

// lines is a log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// startAgentOn attaches to a service; nothing but the exec watcher runs: tests collect and
// look by themselves.
func startAgentOn(t *testing.T, o Options, out event.Sink, log *lines) *Agent {
	t.Helper()
	o.Sampling, o.Version = Sampling{Rate: 1, KeepErrors: true}, "test"
	o.RingSize, o.MaxOpenSpans, o.MaxSeries = 8<<20, 1024, 100
	a, err := New(o, out, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", log.buf.String())
		}
	})
	return a
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func describe(numbers []event.Number) string {
	var all []string
	for _, n := range numbers {
		var attrs []string
		for _, kv := range n.Attributes {
			attrs = append(attrs, kv.Value.AsString())
		}
		all = append(all, fmt.Sprintf("%s %s=%d", n.Name, strings.Join(attrs, " "), n.Value))
	}
	return strings.Join(all, ", ")
}

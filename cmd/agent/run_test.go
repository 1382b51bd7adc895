package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/observer"
	"github.com/plainframework/agent/internal/probes"
	"github.com/plainframework/agent/internal/probes/event"
)

const runToken = "pt_run-t0ken"

// fakeProbes hands over a span at the start and one more when it is stopped.
type fakeProbes struct {
	sink  event.Sink
	stuck bool  // does not stop
	fails error // ends on its own with it
	ready bool

	mu      sync.Mutex
	closed  int
	changed []config.Config
}

func (f *fakeProbes) Run(ctx context.Context) error {
	process, scope := &event.Process{PID: 1}, &event.Scope{Name: "test"}
	f.sink.Spans([]event.Span{{Process: process, Scope: scope, TraceID: [16]byte{1}, SpanID: [8]byte{1}, Name: "early"}})
	if f.fails != nil {
		return f.fails
	}
	<-ctx.Done()
	if f.stuck {
		time.Sleep(time.Hour)
	}
	time.Sleep(50 * time.Millisecond) // draining takes a moment
	f.sink.Spans([]event.Span{{Process: process, Scope: scope, TraceID: [16]byte{2}, SpanID: [8]byte{2}, Name: "drained"}})
	return nil
}

func (f *fakeProbes) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed++
	return nil
}

func (f *fakeProbes) Alive() error { return nil }

func (f *fakeProbes) Change(_ context.Context, cfg config.Config) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = append(f.changed, cfg)
	return nil
}

func (f *fakeProbes) Ready() bool { return f.ready }
func (f *fakeProbes) Status() any { return map[string]string{"fake": "probes"} }

// testRun is a runner with its log and its endpoint.
type testRun struct {
	runner
	probes  *fakeProbes
	started int
	log     bytes.Buffer // written under mu, by way of lockedWriter
	mu      sync.Mutex
	addr    chan string
	seen    *observer.Observer
}

func (r *testRun) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(b)
}

func (r *testRun) output() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

func newTestRun(t *testing.T, change func(*config.Config)) *testRun {
	t.Helper()
	r := &testRun{probes: &fakeProbes{ready: true}, addr: make(chan string, 1), seen: observer.New(observer.Options{})}
	srv := httptest.NewServer(r.seen.Handler())
	t.Cleanup(srv.Close)
	r.cfg = config.Default()
	r.cfg.Export.URL, r.cfg.Export.Token, r.cfg.Export.SpoolDir = srv.URL, runToken, config.SpoolOff
	r.cfg.Targets.PIDs = []int{1}
	r.cfg.Agent.Status = "127.0.0.1:0"
	if change != nil {
		change(&r.cfg)
	}
	r.logger = slog.New(slog.NewTextHandler(r, nil))
	r.listening = func(addr string) { r.addr <- addr }
	r.openState = func(string, *slog.Logger) (*probes.State, error) { return nil, nil }
	r.startProbes = func(_ config.Config, c probeContext, _ *slog.Logger) (prober, error) {
		r.started++
		r.probes.sink = c.sink
		return r.probes, nil
	}
	return r
}

// begin runs it in the background and returns the URL of the status server and
// what ends it.
func (r *testRun) begin(t *testing.T) (url string, end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	select {
	case addr := <-r.addr:
		url = "http://" + addr
	case err := <-done:
		t.Fatalf("ended: %v", err)
	}
	return url, func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(15 * time.Second):
			t.Fatal("does not end")
			return nil
		}
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// waitFor polls the status page until it holds text.
func waitFor(t *testing.T, url, text string) string {
	t.Helper()
	for range 200 {
		if _, body := get(t, url+"/status"); strings.Contains(body, text) {
			return body
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("no %q on the status page", text)
	return ""
}

func TestRunFlushesWhatIsDrained(t *testing.T) {
	r := newTestRun(t, nil)
	url, end := r.begin(t)
	body := waitFor(t, url, `"exported": 1`)
	var page struct {
		State  string
		Ready  bool
		Probes map[string]string
		Export struct {
			Signals map[string]struct{ Received, Exported int }
		}
	}
	if err := json.Unmarshal([]byte(body), &page); err != nil {
		t.Fatal(err)
	}
	if page.State != "active" || !page.Ready || page.Probes["fake"] != "probes" || page.Export.Signals["traces"].Received != 1 {
		t.Errorf("status page %s", body)
	}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/": 404} {
		if status, _ := get(t, url+path); status != want {
			t.Errorf("%s answers %d, want %d", path, status, want)
		}
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	names := map[string]bool{}
	for _, s := range r.seen.Spans() {
		names[s.Name] = true
	}
	if !names["early"] || !names["drained"] || r.probes.closed != 1 {
		t.Errorf("arrived %v, closed %d times", names, r.probes.closed)
	}
	if strings.Contains(r.output()+body, runToken) {
		t.Error("the token shows")
	}
	if _, err := http.Get(url); err == nil {
		t.Error("the status server is still there")
	}
}

func TestIdleWithoutToken(t *testing.T) {
	tests := map[string]struct {
		change func(*config.Config)
		reason string
	}{
		"no token":   {func(c *config.Config) { c.Export.Token = ""; c.Targets = config.Targets{} }, "PLAIN_CLOUD_EXPORT_TOKEN"},
		"no export":  {func(c *config.Config) { c.Export.Enabled = false }, "PLAIN_CLOUD_EXPORT_ENABLED"},
		"no targets": {func(c *config.Config) { c.Export.Token = "" }, "PLAIN_CLOUD_EXPORT_TOKEN"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newTestRun(t, tt.change)
			url, end := r.begin(t)
			for _, path := range []string{"/healthz", "/readyz"} {
				if status, _ := get(t, url+path); status != http.StatusOK {
					t.Errorf("%s answers %d", path, status)
				}
			}
			if body := waitFor(t, url, `"idle"`); !strings.Contains(body, tt.reason) {
				t.Errorf("status page %s", body)
			}
			if err := end(); err != nil {
				t.Error(err)
			}
			if n := strings.Count(r.output(), "the agent does nothing"); n != 1 || r.started != 0 {
				t.Errorf("said %d times, probes started %d times:\n%s", n, r.started, r.output())
			}
		})
	}
}

func TestNotReadyWhileProbesAreNot(t *testing.T) {
	r := newTestRun(t, nil)
	r.probes.ready = false
	url, end := r.begin(t)
	waitFor(t, url, `"active"`)
	if status, _ := get(t, url+"/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("/readyz answers %d", status)
	}
	if status, _ := get(t, url+"/healthz"); status != http.StatusOK {
		t.Errorf("/healthz answers %d", status)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}

func TestRunErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	broken := errors.New("attach net/http: no uprobes here")
	tests := map[string]struct {
		change func(*testRun)
		want   string
	}{
		"no targets":   {func(r *testRun) { r.cfg.Targets = config.Targets{} }, "nothing to instrument: name a process with --pid"},
		"port in use":  {func(r *testRun) { r.cfg.Agent.Status = taken.Addr().String() }, "address already in use; choose another address with --status"},
		"probes fail":  {func(r *testRun) { r.probes.fails = broken }, broken.Error()},
		"no probes":    {func(r *testRun) { r.startProbes = failing(broken) }, broken.Error()},
		"probes stuck": {func(r *testRun) { r.probes.stuck = true }, "probes: not stopped within 4s"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newTestRun(t, nil)
			tt.change(r)
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			began := time.Now()
			err := r.run(ctx)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if d := time.Since(began); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func failing(err error) func(config.Config, probeContext, *slog.Logger) (prober, error) {
	return func(config.Config, probeContext, *slog.Logger) (prober, error) { return nil, err }
}

func TestGivenFlags(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	cmd := newRunCommand()
	args := "--pid 1 --pid 2,3 --exe /a,b --exe bin/x --url http://u --sample-rate 0.5 --logs=false --status="
	if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	given := givenFlags(cmd)
	want := map[string]any{
		"targets.pids": []string{"1", "2", "3"}, "targets.exes": []string{"/a,b", wd + "/bin/x"}, "export.url": "http://u",
		"traces.sample_rate": "0.5", "logs.export": "false", "agent.status": "",
	}
	if !reflect.DeepEqual(given, want) {
		t.Errorf("got %v, want %v", given, want)
	}
	cfg, err := config.Load(config.Sources{Environ: []string{}, Flags: given})
	if err != nil || fmt.Sprint(cfg.Targets.PIDs) != "[1 2 3]" || cfg.Traces.SampleRate != 0.5 || cfg.Logs.Export || cfg.Agent.Status != "" {
		t.Errorf("got %+v, %v", cfg, err)
	}
}

// TestHelp keeps the page readable: every setting is on it, no line too long
// for a terminal of 120 columns.
func TestHelp(t *testing.T) {
	cmd := newRootCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"run", "--help"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	for _, s := range config.Settings {
		if !strings.Contains(out.String(), s.Env) || !strings.Contains(out.String(), "--"+s.Flag) {
			t.Errorf("%s is not in the help", s.Key)
		}
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > 121 {
			t.Errorf("line of %d: %s", len(line), line)
		}
	}
}

func TestVersion(t *testing.T) {
	cmd := newRootCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"version"})
	if err := cmd.Execute(); err != nil || !strings.HasPrefix(out.String(), "agent ") || !strings.Contains(out.String(), "go1.") {
		t.Errorf("%q, %v", out.String(), err)
	}
	long := buildVersion{Version: "devel", Revision: "0123456789abcdef", Modified: true}
	if got := long.String(); got != "devel+0123456789ab-modified" {
		t.Errorf("version %s", got)
	}
}

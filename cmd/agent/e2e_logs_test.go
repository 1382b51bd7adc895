//go:build e2e

package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// logBuilds are the oldest versions of loggers and Go that are supported, and the newest.
var logBuilds = []struct{ name, toolchain, modfile string }{
	{"go1.18", "go1.18.10", ""},
	{"go1.27", "go1.27.4", "latest.mod"},
	{"current", "local", "latest.mod"},
}

func (e *e2e) testLogs(t *testing.T) {
	for _, b := range oldestAndNewest(logBuilds) {
		flags := []string{"-ldflags=-s -w"}
		if b.modfile != "" {
			flags = append(flags, "-modfile="+b.modfile)
		}
		path := e.build(t, "loggers-"+b.name, "testdata/loggers", []string{"GOTOOLCHAIN=" + b.toolchain}, flags...)
		t.Run(b.name, func(t *testing.T) {
			t.Run("loggers", func(t *testing.T) { e.testLoggers(t, path, b.modfile != "") })
			t.Run("below", func(t *testing.T) { e.testBelowLoggers(t, path) })
			t.Run("crash", func(t *testing.T) { e.testCrashes(t, path) })
			if b.name == "current" {
				t.Run("flood", func(t *testing.T) { e.testFlood(t, path) })
				t.Run("limit", func(t *testing.T) { e.testLogLimit(t, path) })
				t.Run("off", func(t *testing.T) { e.testLogsOff(t, path) })
			}
		})
	}
}

// logging is a server whose standard error is a file.
type logging struct {
	*proc
	url, stderr string
}

func startLogging(t *testing.T, path string, env ...string) logging {
	t.Helper()
	s := logging{stderr: filepath.Join(t.TempDir(), "stderr")}
	file, err := os.Create(s.stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), env...)
	s.proc = startCmdTo(t, "loggers", cmd, w, file)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the server does not listen: %v", err)
	}
	s.url = strings.TrimSpace(line[strings.Index(line, "http"):])
	return s
}

// written is what the server has written to standard error.
func (s logging) written(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(s.stderr)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var logSeverities = map[string]int{"debug": 5, "info": 9, "warn": 13, "error": 17}

// testLoggers compares the records with what the loggers were told, which is what stands
// on standard error.
func (e *e2e) testLoggers(t *testing.T, path string, withSlog bool) {
	names := []string{"log", "zap", "zap-console", "zerolog", "logrus", "logrus-json", "klog"}
	if withSlog {
		names = append(names, "slog-json", "slog-text")
	}
	s := startLogging(t, path)
	w := e.launchAgent(t, []string{"PLAIN_CLOUD_LOG_LEVEL=DEBUG"}, "--pid", fmt.Sprint(s.pid()))
	w.waitReady(t)
	var wanted []string
	for _, name := range names {
		for _, level := range []string{"debug", "info", "warn", "error"} {
			if name == "klog" && level == "debug" {
				continue
			}
			wanted = append(wanted, "/log/"+name+"/"+level)
			if code := statusOf(s.url + "/log/" + name + "/" + level); code != http.StatusOK {
				t.Fatalf("%s %s: status %d", name, level, code)
			}
		}
	}
	awaitLogs(t, w, len(wanted))
	w.noLosses(t)
	spans := bySpanID(w.finish(t))
	lines := strings.Count(s.written(t), "\n")
	if lines != len(wanted) {
		t.Errorf("%d lines on standard error, %d were logged", lines, len(wanted))
	}
	seen := map[string]int{}
	for _, l := range w.seen.Logs() {
		where := spans[l.SpanID].Attrs.Text("url.path")
		seen[where]++
		checkLogger(t, where, l, spans)
	}
	for _, where := range wanted {
		if seen[where] != 1 {
			t.Errorf("%s: %d records, not 1", where, seen[where])
		}
	}
}

func checkLogger(t *testing.T, where string, l observer.Log, spans map[trace.SpanID]observer.Span) {
	t.Helper()
	name, level, _ := strings.Cut(strings.TrimPrefix(where, "/log/"), "/")
	want := logSeverities[level]
	fields := name != "log" && (name != "klog" || level != "warn")
	if name == "log" {
		want = 0
	}
	if l.Severity != want {
		t.Errorf("%s: severity %d (%s), not %d", where, l.Severity, l.SeverityText, want)
	}
	if l.Body != "hello there" {
		t.Errorf("%s: body %q", where, l.Body)
	}
	if span := spans[l.SpanID]; span.TraceID != l.TraceID || l.Flags&1 == 0 {
		t.Errorf("%s: trace %s flags %d, its span has %s", where, l.TraceID, l.Flags, span.TraceID)
	}
	if fields && (fmt.Sprint(l.Attrs["n"]) != "7" || l.Attrs["s"] != "two words") {
		t.Errorf("%s: attributes %v", where, l.Attrs)
	}
	if name == "slog-json" {
		if g := fmt.Sprint(l.Attrs["g"]); !strings.Contains(g, "1.5") || !strings.Contains(g, "true") {
			t.Errorf("%s: group %v", where, l.Attrs["g"])
		}
	}
	if age := l.Observed.Sub(spans[l.SpanID].Start); age < 0 || age > 5*time.Second {
		t.Errorf("%s: observed %v after its span began", where, age)
	}
	if !l.Time.IsZero() && l.Observed.Sub(l.Time).Abs() > 2*time.Second {
		t.Errorf("%s: time %v, observed %v", where, l.Time, l.Observed)
	}
}

func bySpanID(spans []observer.Span) map[trace.SpanID]observer.Span {
	m := map[trace.SpanID]observer.Span{}
	for _, s := range spans {
		m[s.SpanID] = s
	}
	return m
}

func awaitLogs(t *testing.T, w *watcher, n int) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); w.seen.Counts().Logs < n; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, l := range w.seen.Logs() {
				t.Logf("%.80q", l.Body)
			}
			t.Fatalf("%d log records within 15 s, not %d", w.seen.Counts().Logs, n)
		}
	}
}

// testBelowLoggers writes to standard error in ways that no logger would.
func (e *e2e) testBelowLoggers(t *testing.T, path string) {
	s := startLogging(t, path)
	w := e.startAgent(t, "--pid", fmt.Sprint(s.pid()))
	file := filepath.Join(t.TempDir(), "elsewhere")
	big := strings.Repeat("0123456789abcdef", 4096)
	cases := []struct {
		what   string
		bodies []string
		mine   bool // in the goroutine of the request
	}{
		{"big", []string{big}, true},
		{"bytes", []string{"a line in writes of one byte, " + strings.Repeat("x", 500)}, true},
		{"interleaved", []string{"writer0-0 writer0-1 writer0-2 writer0-3 writer0-4", "writer1-0 writer1-1 writer1-2 writer1-3 writer1-4"}, false},
		{"utf8", []string{"not \uFFFD UTF-8"}, true},
		{"nul", []string{"a NUL \u2400 here"}, true},
		{"noend", []string{"no newline at the end"}, true},
		{"literal", []string{"a literal that nothing has read before"}, true},
		{"println", []string{"printed 7 true"}, true},
		{"syscall", []string{"a system call"}, true},
		{"dup", []string{"a line into a file"}, true},
	}
	total := 0
	for _, c := range cases {
		// A connection each: what follows a line without an end in the same goroutine
		// goes on with it.
		if code := sendBy(loner, http.MethodGet, s.url+"/below/"+c.what+"?to="+file, nil); code != http.StatusOK {
			t.Fatalf("%s: status %d", c.what, code)
		}
		total += len(c.bodies)
	}
	awaitLogs(t, w, total)
	if code := statusOf(s.url + "/below/many"); code != http.StatusOK {
		t.Fatalf("many: status %d", code)
	}
	awaitLogs(t, w, total+1000)
	w.noLosses(t)
	spans := bySpanID(w.finish(t))
	found := map[string]observer.Log{}
	many := 0
	for _, l := range w.seen.Logs() {
		body := fmt.Sprint(l.Body)
		if body == "buffered line" {
			many++
			continue
		}
		if _, twice := found[body]; twice {
			t.Errorf("twice: %.80q", body)
		}
		found[body] = l
	}
	if many != 1000 {
		t.Errorf("%d of 1000 buffered lines", many)
	}
	for _, c := range cases {
		for _, body := range c.bodies {
			l, ok := found[body]
			if !ok {
				t.Errorf("%s: not there: %.80q", c.what, body)
			}
			if at := spans[l.SpanID].Attrs.Text("url.path"); ok && c.mine && at != "/below/"+c.what || !c.mine && l.SpanID.IsValid() {
				t.Errorf("%s: of the span of %q", c.what, at)
			}
			delete(found, body)
		}
	}
	for body := range found {
		t.Errorf("nobody wrote %.80q", body)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "a line into a file\nnot standard error\n" {
		t.Errorf("the file has %q, %v", b, err)
	}
}

// testCrashes lets programs die in a request: their last words are one record, and what
// was open is ended or counted.
func (e *e2e) testCrashes(t *testing.T, path string) {
	for _, c := range []struct {
		how, errorType, message string
		mine                    bool // the goroutine of the request is the one that dies
	}{
		{"map", "fatal error", "concurrent map read and map write", true},
		{"stack", "fatal error", "stack overflow", true},
		{"panic", "*fmt.wrapError", "out of flour", false},
	} {
		t.Run(c.how, func(t *testing.T) {
			s := startLogging(t, path)
			w := e.startAgent(t, "--pid", fmt.Sprint(s.pid()))
			statusOf(s.url + "/silent")
			sendBy(loner, http.MethodGet, s.url+"/crash/"+c.how, nil)
			if !s.ends(10 * time.Second) {
				t.Fatal("the server lives")
			}
			died := time.Now()
			spans := 1
			if c.mine {
				spans = 2
			}
			eventually(t, 5*time.Second, "its last words and its spans arrive", func() bool {
				return w.seen.Counts().Logs >= 1 && w.seen.Counts().Spans >= spans
			})
			t.Logf("complete %v after the death", time.Since(died).Round(time.Millisecond))
			w.finish(t)
			var fatal []observer.Log
			for _, l := range w.seen.Logs() {
				if l.Severity == 21 {
					fatal = append(fatal, l)
				} else {
					t.Errorf("a record beside: %q", l.Body)
				}
			}
			if len(fatal) != 1 {
				t.Fatalf("%d records of severity FATAL", len(fatal))
			}
			l := fatal[0]
			stack := l.Attrs.Text("exception.stacktrace")
			if !strings.Contains(l.Attrs.Text("exception.message"), c.message) || !strings.Contains(stack, "goroutine ") || !strings.Contains(stack, "main.") {
				t.Errorf("attributes %v", l.Attrs)
			}
			if got := l.Attrs.Text("exception.type"); got != c.errorType && c.how != "panic" {
				t.Errorf("exception.type %q", got)
			}
			for _, span := range w.seen.Spans() {
				if span.Attrs.Text("url.path") != "/crash/"+c.how {
					continue
				}
				if span.Status != codes.Error || span.Attrs.Text("error.type") != c.errorType {
					t.Errorf("span %s", summary(span))
				}
				if l.SpanID != span.SpanID || l.TraceID != span.TraceID {
					t.Errorf("the record is of span %s, not %s", l.SpanID, span.SpanID)
				}
				if len(span.Events) != 1 || span.Events[0].Name != "exception" {
					t.Errorf("events %v", span.Events)
				}
			}
			if !c.mine && l.SpanID.IsValid() {
				t.Errorf("the record is of span %s, its goroutine had none", l.SpanID)
			}
		})
	}
	for _, how := range []string{"exit", "kill"} {
		t.Run(how, func(t *testing.T) { e.testExit(t, path, how) })
	}
	t.Run("recovered", func(t *testing.T) { e.testRecovered(t, path) })
}

// testExit ends a process with a request open: the span is lost, and counted.
func (e *e2e) testExit(t *testing.T, path, how string) {
	var s logging
	var w *watcher
	if how == "kill" {
		// A process that began after the agent, and whose first request is its last.
		w = e.startAgent(t, "--exe", path)
		s = startLogging(t, path)
	} else {
		s = startLogging(t, path)
		w = e.startAgent(t, "--pid", fmt.Sprint(s.pid()))
	}
	sendBy(loner, http.MethodGet, s.url+"/crash/"+how, nil)
	if !s.ends(5 * time.Second) {
		t.Fatal("the server lives")
	}
	eventually(t, 5*time.Second, "the open span is counted as lost by the exit", func() bool {
		status, _ := w.readStatus(t)
		return status.Probes.Losses["exited"] == 1
	})
	w.finish(t)
	logs := w.seen.Logs()
	if how == "exit" && (len(logs) != 1 || logs[0].Body != "giving up" || !logs[0].SpanID.IsValid()) {
		t.Errorf("records %v", logs)
	}
}

// testRecovered lets a handler panic: net/http recovers, and logs it.
func (e *e2e) testRecovered(t *testing.T, path string) {
	s := startLogging(t, path)
	w := e.startAgent(t, "--pid", fmt.Sprint(s.pid()))
	for range 5 {
		sendBy(loner, http.MethodGet, s.url+"/panic", nil)
	}
	awaitLogs(t, w, 5)
	spans := w.finish(t)
	logs := w.seen.Logs()
	if len(spans) != 5 || len(logs) != 5 {
		t.Fatalf("%d spans and %d records, not 5 each", len(spans), len(logs))
	}
	for _, span := range spans {
		if len(span.Events) != 1 || span.Events[0].Name != "exception" {
			t.Fatalf("events %v", span.Events)
		}
		attrs := span.Events[0].Attrs
		if attrs.Text("exception.type") != "string" || attrs.Text("exception.message") != "the kitchen burns" || !strings.Contains(attrs.Text("exception.stacktrace"), "main.") {
			t.Errorf("event %v", attrs)
		}
		if !slices.ContainsFunc(logs, func(l observer.Log) bool { return l.SpanID == span.SpanID && l.TraceID == span.TraceID }) {
			t.Errorf("no record of span %s", span.SpanID)
		}
	}
}

const (
	floodClients = 100
	floodEach    = 1000
)

// flood sends each line in a request of its own, from many connections at once.
func flood(t *testing.T, url string) {
	t.Helper()
	c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: floodClients}}
	defer c.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range floodClients {
		wg.Go(func() {
			for j := range floodEach {
				if code := sendBy(c, http.MethodGet, fmt.Sprintf("%s/line?id=%d", url, i*floodEach+j), nil); code != http.StatusOK {
					t.Errorf("status %d", code)
					return
				}
			}
		})
	}
	wg.Wait()
}

// testFlood writes lines from many goroutines at full speed: each arrives once, with the
// span of its own request.
func (e *e2e) testFlood(t *testing.T, path string) {
	bare := startLogging(t, path)
	flood(t, bare.url)
	bare.kill()

	s := startLogging(t, path)
	config := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(config, []byte("logs:\n  rate: 0\nexport:\n  queue_size: 256MiB\nprobes:\n  ring_size: 32MiB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const lines = floodClients * floodEach
	w := e.launchAgentTo(t, observer.New(observer.Options{Keep: 2 * lines}), nil, "--config", config, "--pid", fmt.Sprint(s.pid()))
	w.waitReady(t)
	flood(t, s.url)
	eventually(t, 60*time.Second, "all spans and records arrive", func() bool {
		status, _ := w.readStatus(t)
		lost := status.Probes.Losses
		return w.seen.Counts().Logs+int(lost["logs_ring_full"]) >= lines && w.seen.Counts().Spans+int(lost["ring_full"]) >= lines
	})
	status, _ := w.readStatus(t)
	spans := bySpanID(w.finish(t))
	seen := map[string]bool{}
	for _, l := range w.seen.Logs() {
		id := fmt.Sprint(l.Attrs["id"])
		if l.Body != "a line of the flood" || seen[id] {
			t.Fatalf("record %q id %s, seen before: %t", l.Body, id, seen[id])
		}
		seen[id] = true
		if span, ok := spans[l.SpanID]; ok && (span.TraceID != l.TraceID || span.Attrs.Text("url.query") != "id="+id) {
			t.Fatalf("line %s is said to be of %s", id, summary(span))
		} else if !ok && status.Probes.Losses["ring_full"] == 0 {
			t.Fatalf("line %s: no span %s", id, l.SpanID)
		}
	}
	lost := int(status.Probes.Losses["logs_ring_full"])
	t.Logf("%d lines arrived, %d found the ring full", len(seen), lost)
	if len(seen)+lost != lines {
		t.Errorf("%d lines arrived and %d were counted as lost, of %d", len(seen), lost, lines)
	}
	a, b := sortedLines(bare.written(t)), sortedLines(s.written(t))
	if !slices.Equal(a, b) {
		t.Errorf("standard error differs from that of a run without the agent: %d and %d lines", len(a), len(b))
	}
}

func sortedLines(s string) []string {
	lines := strings.SplitAfter(s, "\n")
	slices.Sort(lines)
	return lines
}

// testLogLimit: what the limits drop is counted, and said in a record.
func (e *e2e) testLogLimit(t *testing.T, path string) {
	s := startLogging(t, path)
	const lines = floodClients * floodEach
	w := e.launchAgentTo(t, observer.New(observer.Options{Keep: 2 * lines}), []string{"PLAIN_CLOUD_TRACE_SAMPLE_RATE=0"}, "--pid", fmt.Sprint(s.pid()))
	w.waitReady(t)
	flood(t, s.url)
	eventually(t, 20*time.Second, "each line is counted somewhere", func() bool {
		status, _ := w.readStatus(t)
		l := status.Probes.Logs
		return l.Kept+l.RateLimited+status.Probes.Losses["logs_rate_limited"]+status.Probes.Losses["logs_ring_full"] == lines
	})
	status, _ := w.readStatus(t)
	w.finish(t)
	kept, said := 0, int64(0)
	for _, l := range w.seen.Logs() {
		if n, ok := l.Attrs["log.dropped_lines"].(int64); ok {
			said += n
		} else {
			kept++
		}
	}
	t.Logf("kept %d, the records speak of %d dropped; %+v %v", kept, said, status.Probes.Logs, status.Probes.Losses)
	if kept != int(status.Probes.Logs.Kept) || kept+int(said) != lines {
		t.Errorf("%d records and %d lines said to be dropped, of %d", kept, said, lines)
	}
	if kept < 5000 || kept > 5000+1000*60 {
		t.Errorf("%d lines passed a limit of 1000 a second and 5000 at once", kept)
	}
}

// testLogsOff: the setting, and the program's own word.
func (e *e2e) testLogsOff(t *testing.T, path string) {
	for _, c := range []struct {
		name       string
		agent, app []string
	}{
		{"agent", []string{"PLAIN_CLOUD_EXPORT_LOGS=false"}, nil},
		{"target", nil, []string{"PLAIN_CLOUD_EXPORT_LOGS=false"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := startLogging(t, path, c.app...)
			w := e.launchAgent(t, c.agent, "--pid", fmt.Sprint(s.pid()))
			w.waitReady(t)
			statusOf(s.url + "/log/zap/error")
			if spans := w.finish(t); len(spans) != 1 || len(w.seen.Logs()) != 0 {
				t.Errorf("%d spans and %d records, not 1 and 0", len(spans), len(w.seen.Logs()))
			}
			if c.name == "agent" && strings.Contains(fmt.Sprint(w.output()), "stderr_write") {
				t.Error("the probe is attached")
			}
		})
	}
}

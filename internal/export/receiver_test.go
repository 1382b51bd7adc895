package export

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	collogspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes/event"
)

const testToken = "pt_s3cr3t"

// receiver is an OTLP endpoint. As an http.RoundTripper it works without a
// network, so that tests can run on synctest's clock.
type receiver struct {
	// answer, if set, is asked before a request is stored; a status other
	// than 200 refuses it.
	answer func(w http.ResponseWriter, r *http.Request, body []byte) (status int)

	mu       sync.Mutex
	requests []*http.Request
	times    []time.Time
	traces   []*coltracepb.ExportTraceServiceRequest
	metrics  []*colmetricspb.ExportMetricsServiceRequest
	logs     []*collogspb.ExportLogsServiceRequest
	bad      []error
}

func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := unpack(r)
	rc.mu.Lock()
	rc.requests = append(rc.requests, r)
	rc.times = append(rc.times, time.Now())
	rc.mu.Unlock()
	if err != nil {
		rc.fail(err)
	}
	status := http.StatusOK
	if rc.answer != nil {
		status = rc.answer(w, r, body)
	}
	if status != http.StatusOK {
		if status != 0 {
			w.WriteHeader(status)
			fmt.Fprintf(w, "refused, you sent %s", r.Header.Get("Authorization"))
		}
		return
	}
	rc.store(r.URL.Path, body)
}

func (rc *receiver) store(path string, body []byte) {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	var err error
	switch {
	case strings.HasSuffix(path, "/v1/traces"):
		m := &coltracepb.ExportTraceServiceRequest{}
		err = proto.Unmarshal(body, m)
		rc.traces = append(rc.traces, m)
	case strings.HasSuffix(path, "/v1/metrics"):
		m := &colmetricspb.ExportMetricsServiceRequest{}
		err = proto.Unmarshal(body, m)
		rc.metrics = append(rc.metrics, m)
	case strings.HasSuffix(path, "/v1/logs"):
		m := &collogspb.ExportLogsServiceRequest{}
		err = proto.Unmarshal(body, m)
		rc.logs = append(rc.logs, m)
	default:
		err = fmt.Errorf("path %s", path)
	}
	if err != nil {
		rc.bad = append(rc.bad, err)
	}
}

func (rc *receiver) fail(err error) {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	rc.bad = append(rc.bad, err)
}

func unpack(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Header.Get("Content-Encoding") != "gzip" {
		return body, err
	}
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// RoundTrip implements http.RoundTripper. A handler that sets no status is a
// broken connection, one that sets hang waits for the request's end.
func (rc *receiver) RoundTrip(r *http.Request) (*http.Response, error) {
	w := &memoryWriter{header: make(http.Header), status: http.StatusOK}
	rc.ServeHTTP(w, r)
	switch {
	case w.header.Get("Test-Hang") != "":
		<-r.Context().Done()
		return nil, r.Context().Err()
	case w.header.Get("Test-Break") != "":
		return nil, errors.New("connection refused")
	}
	return &http.Response{StatusCode: w.status, Status: fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)),
		Header: w.header, Body: io.NopCloser(&w.body), Request: r}, nil
}

type memoryWriter struct {
	header http.Header
	body   bytes.Buffer
	status int
}

func (w *memoryWriter) Header() http.Header         { return w.header }
func (w *memoryWriter) WriteHeader(status int)      { w.status = status }
func (w *memoryWriter) Write(b []byte) (int, error) { return w.body.Write(b) }

// hang makes an answer never come, refuseConn makes the connection fail.
func hang(w http.ResponseWriter) int       { w.Header().Set("Test-Hang", "1"); return 0 }
func refuseConn(w http.ResponseWriter) int { w.Header().Set("Test-Break", "1"); return 0 }

// spanNames returns the names of all spans that were taken, and how often.
func (rc *receiver) spanNames() map[string]int {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	names := make(map[string]int)
	for _, req := range rc.traces {
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					names[s.Name]++
				}
			}
		}
	}
	return names
}

func (rc *receiver) attempts() int {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return len(rc.requests)
}

// logBuffer is a log that a test can read.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newTestPipeline returns a pipeline that sends to rc without a network.
func newTestPipeline(t *testing.T, rc *receiver, change func(*config.Config)) (*Pipeline, *logBuffer) {
	t.Helper()
	cfg := config.Default()
	cfg.Export.URL = "http://endpoint.test/base"
	cfg.Export.Token = testToken
	cfg.Export.SpoolDir = config.SpoolOff
	if change != nil {
		change(&cfg)
	}
	log := &logBuffer{}
	p, err := New(cfg, slog.New(slog.NewTextHandler(log, nil)), func(o *options) { o.base = rc })
	if err != nil {
		t.Fatal(err)
	}
	return p, log
}

// start runs p and returns what stops it.
func start(t *testing.T, p *Pipeline) (stop func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- p.Run(context.Background()) }()
	return func() {
		if err := p.Shutdown(context.Background()); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

var (
	shop = &event.Process{PID: 1, Exe: "/shop", Resource: []attribute.KeyValue{
		attribute.String("service.name", "shop"), attribute.Int("process.pid", 1), attribute.StringSlice("process.command_args", []string{"shop", "-v"})}}
	billing = &event.Process{PID: 2, Exe: "/billing", Resource: []attribute.KeyValue{attribute.String("service.name", "billing")}}
	netHTTP = &event.Scope{Name: "github.com/plainframework/agent/net/http", Version: "1"}
	dbSQL   = &event.Scope{Name: "github.com/plainframework/agent/database/sql", Version: "1"}
)

func makeSpans(n int, prefix string) []event.Span {
	spans := make([]event.Span, n)
	for i := range spans {
		spans[i] = event.Span{
			Process: shop, Scope: netHTTP, TraceID: trace.TraceID{1, 15: byte(i)}, SpanID: trace.SpanID{1, 6: byte(i >> 8), 7: byte(i)},
			Kind: trace.SpanKindServer, Name: fmt.Sprint(prefix, i), Start: 1, End: 2, Flags: 1,
		}
	}
	return spans
}

// balanced fails unless every item of a signal is accounted for.
func balanced(t *testing.T, p *Pipeline, signal string) SignalStats {
	t.Helper()
	s := p.Stats().Signals[signal]
	if s.Received != s.Exported+s.Queued+s.Spooled+s.LostTotal() || s.Spooled < 0 || s.Queued < 0 {
		t.Errorf("%s does not add up: %+v", signal, s)
	}
	return s
}

// expect compares the numbers of a signal at rest.
func expect(t *testing.T, p *Pipeline, signal string, received, exported int64, lost map[string]int64) {
	t.Helper()
	s := balanced(t, p, signal)
	if s.Received != received || s.Exported != exported || s.Queued != 0 || s.QueuedBytes != 0 || fmt.Sprint(s.Lost) != fmt.Sprint(lost) {
		t.Errorf("%s: got %+v, want received %d, exported %d, lost %v", signal, s, received, exported, lost)
	}
}

func discard(l *logBuffer) *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// Short names for the answer functions of tests.
type (
	respWriter = http.ResponseWriter
	request    = http.Request
)

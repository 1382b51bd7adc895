package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

func TestSpread(t *testing.T) {
	tests := []struct {
		in   []float64
		want spread
	}{
		{nil, spread{}},
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{4, 1}, spread{2.5, 1, 4}},
		{[]float64{9, 2, 4}, spread{4, 2, 9}},
	}
	for _, tt := range tests {
		if got := spreadOf(tt.in); got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

// TestTable measures nothing: it checks the arithmetic on known samples.
func TestTable(t *testing.T) {
	r := &result{cfg: config{rates: []float64{1}, rounds: 2}, samples: map[key][]sample{}, steady: map[key][]pair{}, traps: map[key]trapCount{}, losses: map[string]float64{"ring_full": 3}, rss: 50e6, peak: 55e6}
	for _, req := range requests {
		for i := range 5 {
			k := key{req.path, 1}
			r.steady[k] = append(r.steady[k], pair{20, 24 + float64(i)})
		}
		for i := range 2 {
			with := sample{load: load{Requests: 1000, US: 1e6, P50: 200, P99: 400}, appCPU: 25 + float64(i), agentCPU: 4}
			with.got.server, with.got.client = 1000, 1000*req.children
			r.samples[key{req.path, 1}] = append(r.samples[key{req.path, 1}], with)
			r.samples[key{req.path, bare}] = append(r.samples[key{req.path, bare}], sample{load: load{Requests: 2000, US: 1e6, P50: 100, P99: 100}, appCPU: 20})
		}
	}
	r.traps[key{"/items/7", 1}] = trapCount{perRequest: 4, nsPerRun: 1000}
	r.emulated = 600
	text := r.markdown()
	for _, want := range []string{
		"| `/items/7` (1 query) | 1 | 20.00 (20.00–20.00) | 6.00 (5.00–7.00) | 1.300 (1.250–1.350) | 5 |",
		"| `/plain` (no SQL) | none | 20.00 (20.00–20.00) | – |",
		"| rate 1 | 25.50 (25.00–26.00) | 5.50 (5.00–6.00) | 1.275 (1.250–1.300) | 1000 (1000–1000) | 0.500 (0.500–0.500) | 200 (200–200) | 2.00 (2.00–2.00) | 400 (400–400) | 4.00 (4.00–4.00) |",
		"| `/items/7` | 1 | 4.00 (4.00–4.00) | 2.00 (2.00–2.00) | 4.00 | 1000 | 6.40 | 4000 | 4000 | 0 |",
		"50.0 MB resident, 55.0 MB at its peak",
		"Losses that the agent states: ring_full 3.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	dec := xml.NewDecoder(strings.NewReader(r.plot()))
	for {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the plot is not XML: %v", err)
		}
	}
}

// TestPacer counts what a server has answered, and takes no other answer for one.
func TestPacer(t *testing.T) {
	var served atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		if r.URL.Path != "/good" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, "text")
	}))
	defer srv.Close()
	p, err := newPacer(t.Context(), srv.URL, 3, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	n, err := p.run(t.Context(), "/good", 20*time.Millisecond)
	if err != nil || n == 0 || n%3 != 0 || int64(n) != served.Load() {
		t.Errorf("%d answers of %d, %v", n, served.Load(), err)
	}
	if _, err := p.run(t.Context(), "/bad", 20*time.Millisecond); err == nil {
		t.Error("status 404 is no error")
	}
}

func TestStalled(t *testing.T) {
	for us, want := range map[float64]bool{1e6: false, 1.1e6: false, 1.3e6: true, 20e6: true} {
		if got := (load{US: us}).stalled(time.Second); got != want {
			t.Errorf("a run of %g us for one second: stalled %v", us, got)
		}
	}
}

func TestAxisStep(t *testing.T) {
	for top, want := range map[float64]float64{0: 1, 4: 1, 10: 2, 23: 5, 99: 20, 0.4: 0.1} {
		if got := axisStep(top); math.Abs(got-want) > 1e-9 {
			t.Errorf("axisStep(%g) = %g, want %g", top, got, want)
		}
	}
}

func TestSinkCounts(t *testing.T) {
	s, err := startSink()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	first := s.expect()
	span := func(kind tracepb.Span_SpanKind) *tracepb.Span {
		return &tracepb.Span{Name: "x", Kind: kind, TraceId: make([]byte, 16)}
	}
	body, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{
		{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span(tracepb.Span_SPAN_KIND_SERVER), span(tracepb.Span_SPAN_KIND_CLIENT)}}}},
		{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span(tracepb.Span_SPAN_KIND_CLIENT)}}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	_, _ = zw.Write(body)
	_ = zw.Close()
	for _, b := range [][]byte{body, zipped.Bytes()} {
		res, err := http.Post(s.url+"/v1/traces", "application/x-protobuf", bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	select {
	case <-first:
	default:
		t.Error("the first request was not noticed")
	}
	got, err := s.count()
	if want := (received{server: 2, client: 4, bytes: int64(len(body) + zipped.Len())}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, err := s.count(); err != nil || got != (received{}) {
		t.Errorf("second count %+v, %v", got, err)
	}
	for n := range body { // a cut request is an error or has fewer spans, and never a panic
		var cut received
		if err := countSpans(body[:n], &cut); err == nil && cut.spans() >= 3 {
			t.Errorf("cut at %d: counted %+v", n, cut)
		}
	}
}

func TestAddLosses(t *testing.T) {
	var status any
	if err := json.Unmarshal([]byte(`{"probes":{"losses":{"ring_full":2,"bad_read":0}},"export":[{"lost":{"queue_full":3}},{"lost":{"queue_full":4}}],"lost":5}`), &status); err != nil {
		t.Fatal(err)
	}
	sum := map[string]float64{}
	addLosses(status, sum)
	if len(sum) != 2 || sum["ring_full"] != 2 || sum["queue_full"] != 7 {
		t.Errorf("losses %v", sum)
	}
}

// TestProcessCPU burns CPU time in a child and reads it back.
func TestProcessCPU(t *testing.T) {
	cmd := exec.Command("sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	before, err := p.cpu()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	after, err := p.cpu()
	if err != nil {
		t.Fatal(err)
	}
	if used := after - before; used <= 0 || used > time.Second {
		t.Errorf("used %v in 300 ms", used)
	}
	if now, peak := p.memory(); now <= 0 || peak < now {
		t.Errorf("memory %d, peak %d", now, peak)
	}
}

func TestParse(t *testing.T) {
	good := []string{"-agent", "a", "-shop", "s"}
	tests := []struct {
		args []string
		ok   bool
	}{
		{nil, true},
		{[]string{"-rates", "1.0,0.1, 0.01"}, true},
		{[]string{"-rates", "2"}, false},
		{[]string{"-rates", "a"}, false},
		{[]string{"-duration", "1ms"}, false},
		{[]string{"-rounds", "0"}, false},
		{[]string{"surplus"}, false},
	}
	for _, tt := range tests {
		if _, err := parse(append(good, tt.args...)); (err == nil) != tt.ok {
			t.Errorf("%v: %v", tt.args, err)
		}
	}
	if _, err := parse(nil); err == nil {
		t.Error("no executables and no error")
	}
}

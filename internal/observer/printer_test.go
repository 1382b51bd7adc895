package observer

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

var update = flag.Bool("update", false, "write the golden files anew")

var shop = Origin{Resource: Attrs{"service.name": "shop"}}

// when is a time so many microseconds after noon.
func when(us int64) time.Time { return time.Unix(0, int64(at(us))) }

// made returns a span of trace 1 with ids of one byte each.
func made(spanID, parent byte, name string, start, end int64, attrs Attrs) Span {
	return Span{Origin: shop, TraceID: trace.TraceID{1}, SpanID: trace.SpanID{spanID}, ParentID: trace.SpanID{parent},
		Name: name, Start: when(start), End: when(end), Attrs: attrs}
}

func sql(spanID, parent byte, name, text string, start, end int64) Span {
	s := made(spanID, parent, name, start, end, Attrs{"db.system.name": "sqlite", "db.query.text": text})
	s.Kind = trace.SpanKindClient
	return s
}

func order() Batch {
	root := made(1, 0, "POST /orders", 0, 3920, Attrs{"http.request.method": "POST", "http.response.status_code": int64(201), "url.path": "/orders", "url.query": "dry=1"})
	root.Kind = trace.SpanKindServer
	failed := sql(4, 1, "INSERT orders", "INSERT INTO orders\n  (id) VALUES (?)", 2000, 2300)
	failed.Status, failed.StatusMessage = codes.Error, "UNIQUE constraint failed"
	failed.Attrs["error.type"] = "*sqlite.Error"
	call := made(3, 1, "GET", 1000, 1900, Attrs{"http.request.method": "GET", "http.response.status_code": int64(404), "url.full": "http://pay/x", "error.type": "404"})
	call.Kind, call.Status = trace.SpanKindClient, codes.Error
	pay := made(5, 3, "GET /x", 1100, 1800, Attrs{"http.request.method": "GET", "http.response.status_code": int64(404), "url.path": "/x"})
	pay.Origin = Origin{Resource: Attrs{"service.name": "pay"}}
	pay.Events = []Event{{Name: "exception", Time: when(1200), Attrs: Attrs{"exception.type": "*errors.errorString", "exception.message": "boom"}}}
	return Batch{
		Spans: []Span{failed, sql(2, 1, "SELECT items", "SELECT price FROM items WHERE id = ?", 100, 310), pay, root, call},
		Logs: []Log{
			{Origin: shop, TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, Time: when(500), Severity: 9, Body: "order booked", Attrs: Attrs{"customer": "alice", "n": int64(2)}},
			{Origin: shop, TraceID: trace.TraceID{1}, SpanID: trace.SpanID{4}, Observed: when(2100), Severity: 17, Body: "insert failed"},
			{Origin: shop, TraceID: trace.TraceID{1}, SpanID: trace.SpanID{9}, Observed: when(2200), Body: "of a span that never came"},
			{Origin: shop, Observed: when(7000), Severity: 13, Body: "disk is\x1b[31m nearly\tfull\n"},
		},
		Points: []Point{
			{Origin: shop, Name: "http.server.request.duration", Unit: "s", Kind: HistogramPoint, Count: 20, Sum: 0.05, End: when(60e6), Attrs: Attrs{"http.route": "/orders"}},
			{Origin: shop, Name: "http.server.active_requests", Unit: "{request}", Kind: SumPoint, Value: 3, End: when(60e6)},
		},
	}
}

// broken holds what no well-behaved sender sends.
func broken() Batch {
	return Batch{Spans: []Span{
		made(1, 2, "circle one", 0, 10, nil), made(2, 1, "circle two", 10, 20, nil), // each the other's parent
		made(3, 3, "its own parent", 20, 30, nil),
		made(4, 77, "parent not here", 30, 40, Attrs{"k1": "v", "k2": true, "k3": 1.5, "k4": "x", "k5": "y"}),
		made(5, 4, "name\x1b]0;owned\x07 with \u202eevil "+strings.Repeat("long ", 50), 31, 5_000_031, Attrs{}),
		made(5, 4, "sent twice", 32, 33, nil),
		{Start: when(50), End: when(40), Attrs: Attrs{"http.request.method": "GET"}, TraceID: trace.TraceID{1}},
	}}
}

func TestGolden(t *testing.T) {
	tests := []struct {
		name   string
		batch  Batch
		colour bool
	}{
		{"order", order(), false},
		{"order_colour", order(), true},
		{"broken", broken(), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			p := NewPrinter(&out, PrinterOptions{UTC: true, Colour: tt.colour})
			p.Receive(tt.batch)
			if err := p.Flush(); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", tt.name+".golden")
			if *update {
				if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), want) {
				t.Errorf("got\n%s\nwant\n%s", out.Bytes(), want)
			}
			if !tt.colour && bytes.ContainsAny(out.Bytes(), "\x1b\x07\u202e") {
				t.Error("a control character reaches the terminal")
			}
		})
	}
}

func TestPrintsWhenSettled(t *testing.T) {
	var out bytes.Buffer
	p := NewPrinter(&out, PrinterOptions{UTC: true})
	p.Receive(Batch{Spans: []Span{made(1, 0, "rooted", 0, 1, nil)}})
	orphan := made(2, 9, "orphan", 0, 1, nil)
	orphan.TraceID = trace.TraceID{2}
	remote := made(3, 9, "remote", 0, 1, nil)
	remote.TraceID, remote.Flags = trace.TraceID{3}, isRemoteParent
	p.Receive(Batch{Spans: []Span{orphan, remote}})

	now := time.Now()
	for _, step := range []struct {
		after time.Duration
		want  string
	}{{0, ""}, {settled + tick, "remote rooted"}, {settledNoRoot + tick, "orphan remote rooted"}} {
		if err := p.print(now.Add(step.after), false); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range []string{"orphan", "remote", "rooted"} {
			if strings.Contains(out.String(), name) {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != step.want {
			t.Errorf("after %v: printed %v, want %q", step.after, got, step.want)
		}
	}
}

func TestPrinterIsBounded(t *testing.T) {
	var out bytes.Buffer
	p := NewPrinter(&out, PrinterOptions{UTC: true, PerSecond: 3})
	for i := range maxPending + 5 {
		s := made(1, 0, "root", int64(i), int64(i+1), nil)
		s.TraceID = trace.TraceID{byte(i >> 8), byte(i), 1}
		p.Receive(Batch{Spans: []Span{s}})
	}
	if len(p.pending) != maxPending {
		t.Errorf("%d traces wait, want %d", len(p.pending), maxPending)
	}
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
	got := out.String()
	if n := strings.Count(got, "root"); n != 3 {
		t.Errorf("printed %d traces, want 3", n)
	}
	for _, want := range []string{fmt.Sprintf("… and %d more traces", maxPending-3), "… 5 items more"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	for range maxSpansPerTrace + 7 {
		p.Receive(Batch{Spans: []Span{made(1, 0, "same", 0, 1, nil)}, Points: make([]Point, 1), Logs: make([]Log, 1)})
	}
	if p.missed != 3*7 {
		t.Errorf("missed %d, want 21", p.missed)
	}
}

func TestRunFlushesAtTheEnd(t *testing.T) {
	var out bytes.Buffer
	p := NewPrinter(&out, PrinterOptions{UTC: true})
	p.Receive(Batch{Spans: []Span{made(1, 0, "last words", 0, 1, nil)}})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "last words") {
		t.Errorf("printed %q", out.String())
	}
}

type brokenWriter struct{}

var errBroken = errors.New("pipe is gone")

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

func TestRunStopsWhenTheTerminalIsGone(t *testing.T) {
	p := NewPrinter(brokenWriter{}, PrinterOptions{})
	p.Receive(Batch{Logs: make([]Log, 1)})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.Run(ctx); !errors.Is(err, errBroken) {
		t.Errorf("error %v, want %v", err, errBroken)
	}
}

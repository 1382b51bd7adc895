package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/plainframework/agent/internal/observer"
)

func TestObservePrintsWhatIsSent(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer // written by observe alone, read when it has returned
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		got, err := observe(ctx, ln, observer.NewPrinter(&out, observer.PrinterOptions{}))
		if got.Spans != 1 {
			t.Errorf("counted %d spans, want 1", got.Spans)
		}
		done <- err
	}()

	body, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{
		Spans: []*tracepb.Span{{TraceId: bytes.Repeat([]byte{1}, 16), SpanId: bytes.Repeat([]byte{2}, 8), Name: "GET /seen"}}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post("http://"+ln.Addr().String()+"/v1/traces", "application/x-protobuf", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("does not end")
	}
	if !strings.Contains(out.String(), "GET /seen") {
		t.Errorf("printed %q", out.String())
	}
}

func TestUseColour(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tt := range []struct {
		want   string
		colour bool
		fails  bool
	}{{"always", true, false}, {"never", false, false}, {"auto", false, false}, {"perhaps", false, true}} {
		got, err := useColour(tt.want, null)
		if got != tt.colour || (err != nil) != tt.fails {
			t.Errorf("%s: %v, %v", tt.want, got, err)
		}
	}
}

package export

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes/event"
)

// sinkVariable makes the test binary serve as an endpoint, in a process of its
// own, so that its work is not measured as the exporter's.
const sinkVariable = "EXPORT_BENCH_SINK"

func TestMain(m *testing.M) {
	if os.Getenv(victimVariable) != "" {
		victim()
		return
	}
	if os.Getenv(sinkVariable) != "" {
		sink()
		return
	}
	os.Exit(m.Run())
}

// sink serves OTLP on a free port, says which, and ends with its stdin.
func sink() {
	srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println("error", err)
		return
	}
	go srv.Serve(ln)
	fmt.Println(ln.Addr())
	io.Copy(io.Discard, os.Stdin)
}

// startSink returns the URL of a sink that ends with the test.
func startSink(tb testing.TB) string {
	tb.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), sinkVariable+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		tb.Fatal(err)
	}
	return "http://" + strings.TrimSpace(addr)
}

// httpSpans makes spans as the net/http probe does: 15 attributes, some of
// which differ from span to span.
func httpSpans(n int, seed uint64) []event.Span {
	spans := make([]event.Span, n)
	for i := range spans {
		seed = seed*6364136223846793005 + 1442695040888963407
		s := &spans[i]
		s.Process, s.Scope, s.Flags = shop, netHTTP, 1
		binary.BigEndian.PutUint64(s.TraceID[:8], seed^0x9e3779b97f4a7c15)
		binary.BigEndian.PutUint64(s.TraceID[8:], seed*0xbf58476d1ce4e5b9)
		binary.BigEndian.PutUint64(s.SpanID[:], seed*0x94d049bb133111eb)
		s.Kind, s.Name = trace.SpanKindServer, "GET /items/{id}"
		s.Start = 1_700_000_000_000_000_000 + int64(i)*25_000
		s.End = s.Start + int64(seed>>44)
		s.Attributes = []attribute.KeyValue{
			attribute.String("http.request.method", "GET"),
			attribute.String("http.route", "/items/{id}"),
			attribute.String("url.path", fmt.Sprint("/items/", seed>>50)),
			attribute.String("url.query", ""),
			attribute.String("url.scheme", "http"),
			attribute.Int("http.response.status_code", 200),
			attribute.String("client.address", "10.0.0.17"),
			attribute.String("network.peer.address", "10.0.0.17"),
			attribute.Int("network.peer.port", 32768+int(seed>>50)),
			attribute.String("server.address", "shop.example"),
			attribute.Int("server.port", 8080),
			attribute.String("network.protocol.name", "http"),
			attribute.String("network.protocol.version", "1.1"),
			attribute.String("user_agent.original", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
			attribute.Int("thread.id", int(seed>>60)),
		}
	}
	return spans
}

func cpuTime() time.Duration {
	var ru syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkExport measures all of the exporter: from Spans to the answer of an
// endpoint in another process. cpu-ns/span is the time of all its threads, the
// collector's included.
func BenchmarkExport(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // as the agent does
	for _, compression := range []string{"gzip", "none"} {
		for _, batch := range []int{512, 2048} {
			b.Run(fmt.Sprint(compression, "-", batch), func(b *testing.B) {
				cfg := config.Default()
				cfg.Export.URL, cfg.Export.Token, cfg.Export.BatchSize, cfg.Export.Compression = startSink(b), testToken, batch, compression
				cfg.Export.SpoolDir = config.SpoolOff
				p, err := New(cfg, slog.New(slog.DiscardHandler))
				if err != nil {
					b.Fatal(err)
				}
				go p.Run(context.Background())
				spans := httpSpans(4096, 1)
				runtime.GC()
				b.ReportAllocs()
				began, sent := cpuTime(), 0
				for b.Loop() { // one iteration is a batch of 64 spans, as the ring reader hands over
					at := sent % len(spans)
					for sent += 64; p.Spans(spans[at:at+64]) == 0; {
						time.Sleep(time.Millisecond)
					}
				}
				if err := p.Shutdown(context.Background()); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(cpuTime()-began)/float64(sent), "cpu-ns/span")
				b.ReportMetric(float64(p.Stats().Endpoints["traces"].BytesSent)/float64(sent), "wire-B/span")
			})
		}
	}
}

// BenchmarkEncode compares what turns spans into a request: by hand, as the
// exporter does, and by protobuf messages, as the SDK does.
func BenchmarkEncode(b *testing.B) {
	spans := httpSpans(2048, 1)
	b.Run("by-hand", func(b *testing.B) {
		b.ReportAllocs()
		began := cpuTime()
		var buf []byte
		for b.Loop() {
			buf = buf[:0]
			for i := range spans {
				buf = appendSpan(buf, &spans[i])
			}
			ss := &tracepb.ScopeSpans{}
			ss.ProtoReflect().SetUnknown(buf)
			if _, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{ss}}}}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(cpuTime()-began)/float64(b.N)/float64(len(spans)), "cpu-ns/span")
	})
	b.Run("messages", func(b *testing.B) {
		b.ReportAllocs()
		began := cpuTime()
		for b.Loop() {
			ss := &tracepb.ScopeSpans{}
			for i := range spans {
				s := &spans[i]
				ss.Spans = append(ss.Spans, &tracepb.Span{TraceId: s.TraceID[:], SpanId: s.SpanID[:], Name: s.Name, Kind: tracepb.Span_SpanKind(s.Kind),
					StartTimeUnixNano: uint64(s.Start), EndTimeUnixNano: uint64(s.End), Attributes: messageAttributes(s.Attributes)})
			}
			if _, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{ss}}}}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(cpuTime()-began)/float64(b.N)/float64(len(spans)), "cpu-ns/span")
	})
}

func messageAttributes(attrs []attribute.KeyValue) []*commonpb.KeyValue {
	out := make([]*commonpb.KeyValue, len(attrs))
	for i, kv := range attrs {
		out[i] = &commonpb.KeyValue{Key: string(kv.Key), Value: str(kv.Value.AsString())}
		if kv.Value.Type() == attribute.INT64 {
			out[i].Value = num(kv.Value.AsInt64())
		}
	}
	return out
}

// BenchmarkCompress compares the exporters' own gzip with the transport's.
func BenchmarkCompress(b *testing.B) {
	var body []byte
	for _, s := range httpSpans(2048, 1) {
		body = appendSpan(body, &s)
	}
	type compressor interface {
		io.WriteCloser
		Reset(io.Writer)
	}
	fast, _ := kgzip.NewWriterLevel(nil, kgzip.BestSpeed)
	huffman, _ := kgzip.NewWriterLevel(nil, kgzip.HuffmanOnly)
	stdFast, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	for _, c := range []struct {
		name string
		z    compressor
	}{{"klauspost-best-speed", fast}, {"klauspost-huffman", huffman}, {"std-best-speed", stdFast}, {"std-default", gzip.NewWriter(nil)}} {
		b.Run(c.name, func(b *testing.B) {
			var out bytes.Buffer
			began := cpuTime()
			for b.Loop() {
				out.Reset()
				c.z.Reset(&out)
				c.z.Write(body)
				c.z.Close()
			}
			b.ReportMetric(float64(cpuTime()-began)/float64(b.N)/2048, "cpu-ns/span")
			b.ReportMetric(float64(out.Len())/2048, "B/span")
		})
	}
}

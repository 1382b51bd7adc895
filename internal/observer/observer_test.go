package observer

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	collogspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

func str(key, v string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v}}}
}

func num(key string, v int64) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: v}}}
}

func service(name string) *resourcepb.Resource {
	return &resourcepb.Resource{Attributes: []*commonpb.KeyValue{str("service.name", name)}}
}

func id(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

// at is a Unix time in ns, so many microseconds after noon of a fixed day.
func at(us int64) uint64 {
	return uint64(time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC).UnixNano() + us*1000)
}

func oneSpan(s *tracepb.Span) *coltracepb.ExportTraceServiceRequest {
	return &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   service("shop"),
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: "scope", Version: "1"}, Spans: []*tracepb.Span{s}}},
	}}}
}

// post sends a message and returns status and body of the answer.
func post(t *testing.T, url string, msg proto.Message, zipped bool) (*http.Response, []byte) {
	t.Helper()
	body, err := proto.Marshal(msg)
	if err != nil {
		t.Fatal(err)
	}
	if zipped {
		body = zip(t, body)
	}
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Authorization", "Bearer abc")
	if zipped {
		req.Header.Set("Content-Encoding", "gzip")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, answer
}

func zip(t *testing.T, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	if _, err := zw.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func serve(t *testing.T, opts Options) (*Observer, string) {
	t.Helper()
	o := New(opts)
	srv := httptest.NewServer(o.Handler())
	t.Cleanup(srv.Close)
	return o, srv.URL
}

func TestReceiveSpan(t *testing.T) {
	o, url := serve(t, Options{})
	sent := oneSpan(&tracepb.Span{
		TraceId: id(16, 1), SpanId: id(8, 2), ParentSpanId: id(8, 3), Flags: 0x301, TraceState: "a=b",
		Name: "GET /items/{id}", Kind: tracepb.Span_SPAN_KIND_SERVER, StartTimeUnixNano: at(0), EndTimeUnixNano: at(1500),
		Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "no"},
		Attributes: []*commonpb.KeyValue{num("http.response.status_code", 500), {Key: "list", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{
			ArrayValue: &commonpb.ArrayValue{Values: []*commonpb.AnyValue{str("", "x").Value, num("", 7).Value}}}}}},
		Events: []*tracepb.Span_Event{{Name: "exception", TimeUnixNano: at(100), Attributes: []*commonpb.KeyValue{str("exception.type", "T")}}},
	})
	for _, zipped := range []bool{false, true} {
		o.Reset()
		res, _ := post(t, url+"/v1/traces", sent, zipped)
		if res.StatusCode != 200 {
			t.Fatalf("zipped %v: status %d", zipped, res.StatusCode)
		}
		got, err := o.WaitForSpans(1, time.Second, nil)
		if err != nil {
			t.Fatal(err)
		}
		s := got[0]
		if s.TraceID.String() != strings.Repeat("01", 16) || s.SpanID.String() != strings.Repeat("02", 8) || s.ParentID.String() != strings.Repeat("03", 8) {
			t.Errorf("ids %v %v %v", s.TraceID, s.SpanID, s.ParentID)
		}
		if s.Service() != "shop" || s.Scope != "scope" || s.ScopeVersion != "1" || s.Name != "GET /items/{id}" || s.Kind.String() != "server" {
			t.Errorf("origin and name: %+v", s)
		}
		if s.Duration() != 1500*time.Microsecond || s.Status.String() != "Error" || s.StatusMessage != "no" || s.TraceState != "a=b" || s.Flags != 0x301 {
			t.Errorf("times, status and state: %+v", s)
		}
		if v, ok := s.Attrs["http.response.status_code"].(int64); !ok || v != 500 || s.Attrs.Text("list") != "[x 7]" || s.Attrs.Text("none") != "" {
			t.Errorf("attributes %v", s.Attrs)
		}
		if len(s.Events) != 1 || s.Events[0].Attrs.Text("exception.type") != "T" {
			t.Errorf("events %v", s.Events)
		}
		r := o.Requests()[0]
		if r.Auth != "Bearer abc" || r.Items != 1 || r.Status != 200 || r.Wire == 0 || (r.Encoding == "gzip") != zipped {
			t.Errorf("request %+v", r)
		}
	}
}

func TestReceiveLogsAndMetrics(t *testing.T) {
	o, url := serve(t, Options{})
	post(t, url+"/v1/logs", &collogspb.ExportLogsServiceRequest{ResourceLogs: []*logspb.ResourceLogs{{
		Resource: service("shop"),
		ScopeLogs: []*logspb.ScopeLogs{{LogRecords: []*logspb.LogRecord{{ObservedTimeUnixNano: at(5), SeverityNumber: 9, SeverityText: "INFO",
			Body: str("", "hello").Value, TraceId: id(16, 1), SpanId: id(8, 2)}}}},
	}}}, true)
	post(t, url+"/v1/metrics", &colmetricspb.ExportMetricsServiceRequest{ResourceMetrics: []*metricspb.ResourceMetrics{{
		Resource: service("shop"),
		ScopeMetrics: []*metricspb.ScopeMetrics{{Metrics: []*metricspb.Metric{
			{Name: "d", Unit: "s", Data: &metricspb.Metric_Histogram{Histogram: &metricspb.Histogram{
				AggregationTemporality: metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA,
				DataPoints: []*metricspb.HistogramDataPoint{{Count: 3, Sum: proto.Float64(1.5), ExplicitBounds: []float64{1}, BucketCounts: []uint64{2, 1},
					Exemplars: []*metricspb.Exemplar{{Value: &metricspb.Exemplar_AsDouble{AsDouble: 0.5}, TraceId: id(16, 1), SpanId: id(8, 2)}}}},
			}}},
			{Name: "n", Data: &metricspb.Metric_Sum{Sum: &metricspb.Sum{IsMonotonic: true, DataPoints: []*metricspb.NumberDataPoint{
				{Value: &metricspb.NumberDataPoint_AsInt{AsInt: 4}}}}}},
			{Name: "g", Data: &metricspb.Metric_Gauge{Gauge: &metricspb.Gauge{DataPoints: []*metricspb.NumberDataPoint{
				{Value: &metricspb.NumberDataPoint_AsDouble{AsDouble: 2.5}}}}}},
		}}},
	}}}, true)
	logs, points := o.Logs(), o.Points()
	if len(logs) != 1 || logs[0].Body != "hello" || logs[0].Severity != 9 || !logs[0].SpanID.IsValid() || !logs[0].when().Equal(time.Unix(0, int64(at(5)))) {
		t.Errorf("logs %+v", logs)
	}
	if len(points) != 3 {
		t.Fatalf("points %+v", points)
	}
	if h := points[0]; h.Kind != HistogramPoint || !h.Delta || h.Count != 3 || h.Sum != 1.5 || len(h.Buckets) != 2 || len(h.Exemplars) != 1 || h.Exemplars[0].Value != 0.5 {
		t.Errorf("histogram %+v", h)
	}
	if n := points[1]; n.Kind != SumPoint || n.Delta || !n.Monotonic || n.Value != 4 {
		t.Errorf("sum %+v", n)
	}
	if g := points[2]; g.Kind != GaugePoint || g.Value != 2.5 {
		t.Errorf("gauge %+v", g)
	}
	if c := o.Counts(); c != (Counts{Requests: 2, Logs: 1, Points: 3}) {
		t.Errorf("counts %+v", c)
	}
}

func TestBadRequests(t *testing.T) {
	bomb := zip(t, make([]byte, maxBody+1))
	tests := []struct {
		name, method, path, contentType, encoding string
		body                                      []byte
		want                                      int
	}{
		{"not protobuf", "POST", "/v1/traces", "application/x-protobuf", "", []byte{0xff}, 400},
		{"JSON", "POST", "/v1/traces", "application/json", "", []byte("{}"), 415},
		{"no content type", "POST", "/v1/traces", "", "", nil, 415},
		{"unknown encoding", "POST", "/v1/traces", "application/x-protobuf", "zstd", nil, 415},
		{"not gzip", "POST", "/v1/logs", "application/x-protobuf", "gzip", []byte("plain"), 400},
		{"cut gzip", "POST", "/v1/logs", "application/x-protobuf", "gzip", zip(t, []byte("some text"))[:15], 400},
		{"gzip bomb", "POST", "/v1/metrics", "application/x-protobuf", "gzip", bomb, 413},
		{"too long", "POST", "/v1/metrics", "application/x-protobuf", "", make([]byte, maxWire+1), 413},
		{"other path", "POST", "/v1/profiles", "application/x-protobuf", "", nil, 404},
		{"other method", "GET", "/v1/traces", "", "", nil, 405},
	}
	o, url := serve(t, Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequest(tt.method, url+tt.path, bytes.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", tt.contentType)
			req.Header.Set("Content-Encoding", tt.encoding)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != tt.want {
				t.Errorf("status %d, want %d", res.StatusCode, tt.want)
			}
		})
	}
	if c := o.Counts(); c.Spans+c.Logs+c.Points != 0 {
		t.Errorf("kept something: %+v", c)
	}
}

func TestFaults(t *testing.T) {
	o, url := serve(t, Options{})
	msg := oneSpan(&tracepb.Span{TraceId: id(16, 1), SpanId: id(8, 2)})

	o.Inject(
		Fault{Path: "/v1/logs", Status: 500},
		Fault{Path: "/v1/traces", Times: 2, Status: 503, RetryAfter: 1500 * time.Millisecond},
		Fault{Path: "/v1/traces", Times: 1, Reject: 1},
		Fault{Path: "/v1/traces", Times: 1, Status: 502, Accept: true},
	)
	for i, want := range []struct {
		status, kept int
	}{{503, 0}, {503, 0}, {200, 0}, {502, 1}, {200, 2}} {
		res, body := post(t, url+"/v1/traces", msg, false)
		if res.StatusCode != want.status || len(o.Spans()) != want.kept {
			t.Errorf("request %d: status %d, %d spans kept, want %+v", i, res.StatusCode, len(o.Spans()), want)
		}
		if want.status == 503 && res.Header.Get("Retry-After") != "2" {
			t.Errorf("request %d: Retry-After %q", i, res.Header.Get("Retry-After"))
		}
		if i == 2 {
			var answer coltracepb.ExportTraceServiceResponse
			if err := proto.Unmarshal(body, &answer); err != nil || answer.GetPartialSuccess().GetRejectedSpans() != 1 {
				t.Errorf("partial success: %v %v", &answer, err)
			}
		}
	}

	o.Clear()
	o.Inject(Fault{Times: 1, Reset: true}, Fault{Times: 1, Reset: true, Accept: true}, Fault{Times: 1, Delay: 50 * time.Millisecond})
	for _, kept := range []int{2, 3} {
		body, _ := proto.Marshal(msg)
		if res, err := http.Post(url+"/v1/traces", "application/x-protobuf", bytes.NewReader(body)); err == nil {
			res.Body.Close()
			t.Errorf("got status %d from a connection that was to be closed", res.StatusCode)
		}
		if len(o.Spans()) != kept {
			t.Errorf("%d spans kept, want %d", len(o.Spans()), kept)
		}
	}
	begin := time.Now()
	if post(t, url+"/v1/traces", msg, false); time.Since(begin) < 50*time.Millisecond {
		t.Error("no delay")
	}
}

func TestWaitFor(t *testing.T) {
	o := New(Options{})
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		o.add(Batch{Spans: make([]Span, 2)})
		o.add(Batch{Spans: make([]Span, 1)})
	}()
	if err := o.WaitFor(ctx, func() bool { return o.Counts().Spans == 3 }); err != nil {
		t.Error(err)
	}
	cancel(cause)
	if err := o.WaitFor(ctx, func() bool { return false }); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
	if got, err := o.WaitForSpans(4, time.Millisecond, nil); err == nil || len(got) != 3 {
		t.Errorf("%d spans, %v; want 3 and an error", len(got), err)
	}
}

func TestKeepsTheLast(t *testing.T) {
	o := New(Options{Keep: 5})
	var want string
	for i := range 40 {
		name := string(rune('A' + i%26))
		o.add(Batch{Spans: []Span{{Name: name}}})
		if want += name; len(want) > 5 {
			want = want[1:]
		}
		var got string
		for _, s := range o.Spans() {
			got += s.Name
		}
		if got != want {
			t.Fatalf("after %d: kept %q, want %q", i+1, got, want)
		}
	}
	o.add(Batch{Spans: make([]Span, 23)})
	if n, c := len(o.Spans()), o.Counts().Spans; n != 5 || c != 63 {
		t.Errorf("kept %d, counted %d", n, c)
	}
}

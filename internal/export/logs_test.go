package export

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	"go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes/event"
)

func TestLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{}
		p, _ := newTestPipeline(t, rc, nil)
		stop := start(t, p)
		line := strings.Repeat("l", 64<<10)
		logs := []event.Log{
			{Process: shop, Scope: netHTTP, Time: 1_000, Observed: 2_000, Severity: log.SeverityError, SeverityText: "error", Body: "boom",
				Attributes: []attribute.KeyValue{
					attribute.String("k", "v"), attribute.Int("n", 3), {Key: "group", Value: attribute.MapValue(attribute.String("inner", "x\xff"))}},
				TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, Flags: 1},
			{Process: billing, Scope: dbSQL, Observed: 3_000, Body: "raw \xff\x00 bytes"},
			{Process: shop, Scope: netHTTP, Observed: 4_000, Body: line},
		}
		if n := p.Logs(logs); n != 3 {
			t.Fatalf("accepted %d", n)
		}
		stop()
		if len(rc.logs) != 1 || len(rc.bad) > 0 || len(rc.logs[0].ResourceLogs) != 2 {
			t.Fatalf("requests %v, %v", rc.logs, rc.bad)
		}
		byService := make(map[string]*logspb.ResourceLogs)
		for _, rl := range rc.logs[0].ResourceLogs {
			for _, kv := range rl.Resource.Attributes {
				if kv.Key == "service.name" {
					byService[kv.Value.GetStringValue()] = rl
				}
			}
		}
		shopLogs, billingLogs := byService["shop"], byService["billing"]
		if shopLogs == nil || billingLogs == nil || len(shopLogs.Resource.Attributes) != len(shop.Resource) {
			t.Fatalf("resources: %v", byService)
		}
		if got := shopLogs.ScopeLogs[0].Scope; got.Name != netHTTP.Name || got.Version != netHTTP.Version {
			t.Errorf("scope %v", got)
		}
		want := &logspb.LogRecord{
			TimeUnixNano: 1_000, ObservedTimeUnixNano: 2_000, SeverityNumber: 17, SeverityText: "error", Body: str("boom"),
			Attributes: []*commonpb.KeyValue{{Key: "k", Value: str("v")}, {Key: "n", Value: num(3)},
				{Key: "group", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_KvlistValue{KvlistValue: &commonpb.KeyValueList{
					Values: []*commonpb.KeyValue{{Key: "inner", Value: str("x\uFFFD")}}}}}}},
			TraceId: logs[0].TraceID[:], SpanId: logs[0].SpanID[:], Flags: 1,
		}
		if got := shopLogs.ScopeLogs[0].LogRecords[0]; !proto.Equal(got, want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
		raw := &logspb.LogRecord{ObservedTimeUnixNano: 3_000, Body: str("raw \uFFFD\x00 bytes")}
		if got := billingLogs.ScopeLogs[0].LogRecords[0]; !proto.Equal(got, raw) {
			t.Errorf("got  %v\nwant %v", got, raw)
		}
		if got := shopLogs.ScopeLogs[0].LogRecords[1].Body.GetStringValue(); got != line {
			t.Errorf("a line of 64 KiB arrived with %d bytes", len(got))
		}
		expect(t, p, "logs", 3, 3, map[string]int64{})
	})
}

func TestLogsQueueAndSplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{}
		rc.answer = func(w respWriter, _ *request, body []byte) int {
			if countSpans(body) > 3 {
				return 413
			}
			return 200
		}
		p, _ := newTestPipeline(t, rc, func(c *config.Config) { c.Export.QueueSize = 1 << 20 })
		logs := make([]event.Log, 20)
		for i := range logs {
			logs[i] = event.Log{Process: shop, Scope: netHTTP, Observed: 1, Body: fmt.Sprint(i, strings.Repeat("x", 100<<10))}
		}
		n := p.Logs(logs) // not running yet: the queue fills
		if n < 8 || n > 12 {
			t.Errorf("accepted %d of 100 KiB each into 1 MiB", n)
		}
		stop := start(t, p)
		time.Sleep(5 * time.Second)
		stop()
		bodies := make(map[string]int)
		for _, req := range rc.logs {
			for _, rl := range req.ResourceLogs {
				for _, r := range rl.ScopeLogs[0].LogRecords {
					bodies[r.Body.GetStringValue()]++
				}
			}
		}
		if len(bodies) != n {
			t.Errorf("%d of %d arrived", len(bodies), n)
		}
		expect(t, p, "logs", 20, int64(n), map[string]int64{"queue_full": int64(20 - n)})
	})
}

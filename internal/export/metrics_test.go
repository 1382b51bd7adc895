package export

import (
	"fmt"
	"testing"
	"testing/synctest"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes/event"
)

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{}
		p, _ := newTestPipeline(t, rc, func(c *config.Config) {
			c.Metrics.Rename = map[string]string{"db.client.operation.duration": "db.client.query.duration"}
		})
		stop := start(t, p)
		bounds := []float64{0.1, 1}
		histogram := func(process *event.Process, name, route string, counts ...uint64) event.Histogram {
			return event.Histogram{Process: process, Scope: netHTTP, Name: name, Unit: "s", Description: "d",
				Attributes: []attribute.KeyValue{attribute.String("http.route", route)}, Start: 10, End: 20, Bounds: bounds, Counts: counts, Sum: 1.5,
				Exemplars: []event.Exemplar{{Time: 15, Value: 0.5, TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}}}}
		}
		n := p.Metrics([]event.Histogram{
			histogram(shop, "http.server.request.duration", "/a", 1, 2, 3),
			histogram(billing, "db.client.operation.duration", "/b", 0, 0, 1),
			histogram(shop, "http.server.request.duration", "/c", 0, 1, 0),
			histogram(shop, "http.server.request.duration", "/idle", 0, 0, 0),
		}, []event.Number{
			{Process: shop, Scope: netHTTP, Name: "http.server.active_requests", Unit: "{request}", Start: 1, End: 20, Value: -2, Kind: event.UpDownCounter},
			{Scope: netHTTP, Name: "plain.agent.lost", Start: 10, End: 20, Value: 5, Kind: event.Counter},
			{Scope: netHTTP, Name: "plain.agent.ring_fill", End: 20, Value: 7, Kind: event.Gauge},
		})
		if n != 6 {
			t.Errorf("accepted %d points", n)
		}
		stop()
		if len(rc.metrics) != 1 || len(rc.bad) > 0 {
			t.Fatalf("%d requests, %v", len(rc.metrics), rc.bad)
		}
		got := make(map[string]*metricspb.Metric)
		for _, rm := range rc.metrics[0].ResourceMetrics {
			for _, sm := range rm.ScopeMetrics {
				for _, m := range sm.Metrics {
					got[rm.Resource.Attributes[0].Value.GetStringValue()+" "+m.Name] = m
				}
			}
		}
		if len(got) != 5 {
			t.Errorf("metrics %v", got)
		}
		sum := 1.5
		point := &metricspb.HistogramDataPoint{
			Attributes:        []*commonpb.KeyValue{{Key: "http.route", Value: str("/a")}},
			StartTimeUnixNano: 10, TimeUnixNano: 20, Count: 6, Sum: &sum, BucketCounts: []uint64{1, 2, 3}, ExplicitBounds: bounds,
			Exemplars: []*metricspb.Exemplar{{TimeUnixNano: 15, Value: &metricspb.Exemplar_AsDouble{AsDouble: 0.5},
				TraceId: append([]byte{1}, make([]byte, 15)...), SpanId: append([]byte{2}, make([]byte, 7)...)}},
		}
		h := got["shop http.server.request.duration"].GetHistogram()
		if h.GetAggregationTemporality() != metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA || len(h.GetDataPoints()) != 2 || !proto.Equal(h.DataPoints[0], point) {
			t.Errorf("histogram %v", h)
		}
		if got["billing db.client.query.duration"].GetHistogram().GetDataPoints()[0].GetCount() != 1 {
			t.Error("renamed metric")
		}
		active := got["shop http.server.active_requests"].GetSum()
		if active.GetIsMonotonic() || active.GetAggregationTemporality() != metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE || active.GetDataPoints()[0].GetAsInt() != -2 {
			t.Errorf("up-down counter %v", active)
		}
		lost := got["plain-agent plain.agent.lost"].GetSum()
		if !lost.GetIsMonotonic() || lost.GetAggregationTemporality() != metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA {
			t.Errorf("counter %v", lost)
		}
		if got["plain-agent plain.agent.ring_fill"].GetGauge().GetDataPoints()[0].GetAsInt() != 7 {
			t.Error("gauge")
		}
		expect(t, p, "metrics", 6, 6, map[string]int64{})
	})
}

// TestManyPoints sends more points than a request takes, to an endpoint that
// takes fewer still.
func TestManyPoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{}
		rc.answer = func(_ respWriter, _ *request, body []byte) int {
			points := 0
			eachItem(body, func(metric []byte) { points += countPoints(metric) })
			if points > 1000 {
				return 413
			}
			return 200
		}
		p, _ := newTestPipeline(t, rc, nil)
		stop := start(t, p)
		const n = 12_345
		histograms := make([]event.Histogram, n)
		for i := range histograms {
			histograms[i] = event.Histogram{Process: shop, Scope: netHTTP, Name: "m", Unit: "s", Bounds: []float64{1}, Counts: []uint64{1, 0}, Sum: 1,
				Attributes: []attribute.KeyValue{attribute.Int("i", i)}, Start: 1, End: 2}
		}
		if got := p.Metrics(histograms, nil); got != n {
			t.Errorf("accepted %d", got)
		}
		stop()
		seen := make(map[string]bool)
		var count uint64
		for _, req := range rc.metrics {
			for _, m := range req.ResourceMetrics[0].ScopeMetrics[0].Metrics {
				for _, point := range m.GetHistogram().DataPoints {
					seen[fmt.Sprint(point.Attributes)] = true
					count += point.Count
				}
			}
		}
		if len(seen) != n || count != n {
			t.Errorf("%d series, count %d, want %d", len(seen), count, n)
		}
		expect(t, p, "metrics", n, n, map[string]int64{})
	})
}

func TestMetricsAfterShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := newTestPipeline(t, &receiver{}, nil)
		start(t, p)()
		if n := p.Metrics(nil, []event.Number{{Name: "n"}}); n != 0 {
			t.Errorf("accepted %d", n)
		}
		expect(t, p, "metrics", 1, 0, map[string]int64{"shutdown": 1})
	})
}

package export

import (
	"bytes"
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	colmetricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes/event"
)

// Points in one request and in one metric message. A request of 5000 is about
// 1.5 MB before compression; a metric is the smallest piece that a request too
// large for the endpoint can be split into.
const (
	maxPoints       = 5000
	maxMetricPoints = 250
)

// metricExport makes one request of a collection, for all services of the node
// (or as few as the limit of points allows).
//
// It uses the OTLP protobuf messages and the pipeline's HTTP client. The SDK's
// otlpmetrichttp takes one resource a call, so that a node with 50 services
// would send 50 requests a minute; pdata's pmetricotlp takes all, but brings a
// second set of the same generated messages with gRPC around it into the
// binary, for no more than the struct literals below.
type metricExport struct {
	*lane
	url    string
	http   *http.Client
	rename map[string]string
	agent  *resourcepb.Resource // of points without a process

	resources *resourceCache
}

func newMetricExport(cfg config.Config, url string, hc *http.Client, agent []attribute.KeyValue) *metricExport {
	return &metricExport{
		lane:      newLane(signalMetrics, int64(cfg.Export.QueueSize), 0, metricWorkers),
		url:       url,
		http:      hc,
		rename:    cfg.Metrics.Rename,
		agent:     &resourcepb.Resource{Attributes: attributesProto(agent)},
		resources: newResourceCache(),
	}
}

// add builds the requests and queues them. If settled is not nil, it is called when all
// of them have left, and the points are collected again if the agent is killed before.
func (e *metricExport) add(histograms []event.Histogram, numbers []event.Number, settled func()) int {
	b := metricBuilder{export: e}
	if settled != nil {
		b.round = &round{export: e, settled: settled, parcels: 1} // this one is the builder's own
	}
	for i := range histograms {
		if h := &histograms[i]; total(h.Counts) > 0 { // else it gained nothing
			b.histogram(h)
		}
	}
	for i := range numbers {
		b.number(&numbers[i])
	}
	b.finish()
	b.round.left()
	return b.accepted
}

// round is one collection on its way. A nil round is one that nobody waits for.
type round struct {
	export  *metricExport
	settled func()

	// Guarded by lane.mu.
	parcels, points int
}

// entered is told of a parcel. The caller holds mu.
func (r *round) entered(points int) {
	if r == nil {
		return
	}
	r.parcels++
	r.points += points
	r.export.again += int64(points)
	r.export.unsettled += int64(points)
}

// left is told when a parcel has left, and settles the collection with the last one. Only
// then nothing of it is sent again after a crash.
func (r *round) left() {
	if r == nil {
		return
	}
	r.export.mu.Lock()
	r.parcels--
	last := r.parcels == 0
	r.export.mu.Unlock()
	if !last {
		return
	}
	r.settled()
	r.export.mu.Lock()
	defer r.export.mu.Unlock()
	r.export.unsettled -= int64(r.points)
	r.export.book.write(r.export.lane)
}

// metricBuilder groups points by process, scope and metric.
type metricBuilder struct {
	export   *metricExport
	round    *round
	accepted int

	points    int
	request   *colmetricspb.ExportMetricsServiceRequest
	resources map[*event.Process]*metricspb.ResourceMetrics
	scopes    map[metricScopeKey]*metricspb.ScopeMetrics
	metrics   map[metricKey]*openMetric
}

type metricScopeKey struct {
	process *event.Process
	scope   *event.Scope
}

type metricKey struct {
	metricScopeKey
	name string
	kind metricKind
}

// metricKind tells apart what may not share a metric message.
type metricKind uint8

const kindHistogram metricKind = 255 // beside the values of event.NumberKind

type openMetric struct {
	proto  *metricspb.Metric
	points int
}

// metric returns the message that a point belongs into.
func (b *metricBuilder) metric(p *event.Process, s *event.Scope, kind metricKind, name, unit, description string) *metricspb.Metric {
	if b.points >= maxPoints {
		b.finish()
	}
	b.points++
	if b.request == nil {
		b.request = &colmetricspb.ExportMetricsServiceRequest{}
		b.resources = make(map[*event.Process]*metricspb.ResourceMetrics)
		b.scopes = make(map[metricScopeKey]*metricspb.ScopeMetrics)
		b.metrics = make(map[metricKey]*openMetric)
	}
	if to := b.export.rename[name]; to != "" {
		name = to
	}
	key := metricKey{metricScopeKey{p, s}, name, kind}
	m := b.metrics[key]
	if m == nil || m.points >= maxMetricPoints {
		m = &openMetric{proto: &metricspb.Metric{Name: clean(name), Unit: clean(unit), Description: clean(description)}}
		b.metrics[key] = m
		sm := b.scopeMetrics(key.metricScopeKey)
		sm.Metrics = append(sm.Metrics, m.proto)
	}
	m.points++
	return m.proto
}

func (b *metricBuilder) scopeMetrics(key metricScopeKey) *metricspb.ScopeMetrics {
	sm := b.scopes[key]
	if sm != nil {
		return sm
	}
	sm = &metricspb.ScopeMetrics{Scope: scopeProto(key.scope)}
	b.scopes[key] = sm
	rm := b.resources[key.process]
	if rm == nil {
		rm = &metricspb.ResourceMetrics{Resource: b.export.agent}
		if key.process != nil {
			rm.Resource = b.export.resources.of(key.process)
		}
		b.resources[key.process] = rm
		b.request.ResourceMetrics = append(b.request.ResourceMetrics, rm)
	}
	rm.ScopeMetrics = append(rm.ScopeMetrics, sm)
	return sm
}

func (b *metricBuilder) histogram(h *event.Histogram) {
	m := b.metric(h.Process, h.Scope, kindHistogram, h.Name, h.Unit, h.Description)
	data := m.GetHistogram()
	if data == nil {
		data = &metricspb.Histogram{AggregationTemporality: metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA}
		m.Data = &metricspb.Metric_Histogram{Histogram: data}
	}
	sum := h.Sum
	data.DataPoints = append(data.DataPoints, &metricspb.HistogramDataPoint{
		Attributes:        attributesProto(h.Attributes),
		StartTimeUnixNano: uint64(h.Start),
		TimeUnixNano:      uint64(h.End),
		Count:             total(h.Counts),
		Sum:               &sum,
		BucketCounts:      h.Counts,
		ExplicitBounds:    h.Bounds,
		Exemplars:         exemplarsProto(h.Exemplars),
	})
}

func exemplarsProto(exemplars []event.Exemplar) []*metricspb.Exemplar {
	var out []*metricspb.Exemplar
	for i := range exemplars {
		x := &exemplars[i]
		out = append(out, &metricspb.Exemplar{
			TimeUnixNano: uint64(x.Time),
			Value:        &metricspb.Exemplar_AsDouble{AsDouble: x.Value},
			TraceId:      x.TraceID[:],
			SpanId:       x.SpanID[:],
		})
	}
	return out
}

func (b *metricBuilder) number(n *event.Number) {
	m := b.metric(n.Process, n.Scope, metricKind(n.Kind), n.Name, n.Unit, n.Description)
	point := &metricspb.NumberDataPoint{
		Attributes:        attributesProto(n.Attributes),
		StartTimeUnixNano: uint64(n.Start),
		TimeUnixNano:      uint64(n.End),
		Value:             &metricspb.NumberDataPoint_AsInt{AsInt: n.Value},
	}
	if n.Kind == event.Gauge {
		if m.Data == nil {
			m.Data = &metricspb.Metric_Gauge{Gauge: &metricspb.Gauge{}}
		}
		m.GetGauge().DataPoints = append(m.GetGauge().DataPoints, point)
		return
	}
	if m.Data == nil {
		sum := &metricspb.Sum{
			IsMonotonic:            true,
			AggregationTemporality: metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA,
		}
		if n.Kind == event.UpDownCounter {
			sum.IsMonotonic = false
			sum.AggregationTemporality = metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE
		}
		m.Data = &metricspb.Metric_Sum{Sum: sum}
	}
	m.GetSum().DataPoints = append(m.GetSum().DataPoints, point)
}

// finish queues the request that was being built.
func (b *metricBuilder) finish() {
	if b.points == 0 {
		return
	}
	body, err := proto.Marshal(b.request)
	e, points := b.export, b.points
	b.request, b.points = nil, 0

	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		e.received += int64(points)
		e.fresh += int64(points)
		e.lost[lostEncode] += int64(points)
		e.book.write(e.lane)
		return
	}
	if e.closed || e.bytes >= e.limit {
		e.refuse(points)
		e.book.write(e.lane)
		return
	}
	b.accepted += points
	e.received += int64(points)
	e.fresh += int64(points)
	e.queued += int64(points)
	e.bytes += int64(len(body))
	b.round.entered(points)
	e.book.write(e.lane)
	e.push(parcel{items: points, bytes: int64(len(body)), again: b.round != nil, settled: b.round.left, upload: func(ctx context.Context, r *receipt) {
		if err := e.post(ctx, body); err != nil {
			r.failed(err)
		}
	}})
}

// post hands the request to the transport.
func (e *metricExport) post(ctx context.Context, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func total(counts []uint64) (n uint64) {
	for _, c := range counts {
		n += c
	}
	return n
}

package export

import (
	"context"
	"net/http"
	"slices"
	"sync"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes/event"
)

// Sizes of a batch of spans. Half a megabyte is about 1000 HTTP spans, 60 kB on
// the wire: a larger batch saves no CPU and costs its size several times over in
// memory, here, in the exporter's request and in the workers that wait.
const (
	maxBatchBytes = 512 << 10 // sealed when it has grown past this
	maxSpanBytes  = 4 << 20   // one span alone; larger is lost
	keepBuffer    = 1 << 20   // a larger buffer is not kept for reuse
	freeBuffers   = 6         // buffers kept, at most
	smallBuffer   = 16 << 10  // first size of a buffer
)

// spanExport encodes spans at the door and hands whole batches to
// otlptracehttp.
//
// The exporter's client takes ResourceSpans messages. Building those message by
// message and letting protobuf's reflection walk them costs several times the
// encoding itself, and 35 small objects a span. So each span is encoded by hand
// (wire.go) to what it will be on the wire, and a ScopeSpans carries its spans
// as raw fields, which protobuf copies as they are.
type spanExport struct {
	*lane
	client    otlptrace.Client
	batchSize int

	open spanBatch // guarded by lane.mu

	resources *resourceCache
	pool      bufferPool
}

// spanBatch is a batch that is being filled: spans by process and scope.
type spanBatch struct {
	groups []*spanGroup
	index  map[spanGroupKey]*spanGroup
	last   *spanGroup // most spans come in runs
	items  int
	bytes  int64
}

type spanGroupKey struct {
	process *event.Process
	scope   *event.Scope
}

type spanGroup struct {
	spanGroupKey
	buf []byte // encoded spans
}

func newSpanExport(cfg config.Config, url string, hc *http.Client) (*spanExport, error) {
	e := &spanExport{
		lane: newLane(signalSpans, int64(cfg.Export.QueueSize), cfg.Export.BatchDelay, spanWorkers),
		client: otlptracehttp.NewClient(
			otlptracehttp.WithEndpointURL(url),
			otlptracehttp.WithHTTPClient(hc),
			// The transport compresses, sets headers and tries again, for
			// all signals alike. These options also keep the exporter
			// from taking the same settings from the environment.
			otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf),
			otlptracehttp.WithCompression(otlptracehttp.NoCompression),
			otlptracehttp.WithHeaders(map[string]string{}),
			otlptracehttp.WithTLSClientConfig(nil),
			otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: false}),
		),
		batchSize: cfg.Export.BatchSize,
		resources: newResourceCache(),
	}
	e.seal = e.sealOpen
	return e, e.client.Start(context.Background())
}

func (e *spanExport) shutdown() error { return e.client.Stop(context.Background()) }

// add encodes spans into the open batch until there is no room.
func (e *spanExport) add(spans []event.Span) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range spans {
		if !e.admit() {
			e.refuse(len(spans) - i - 1)
			return i
		}
		e.put(&spans[i])
	}
	return len(spans)
}

// put encodes an admitted span.
func (e *spanExport) put(s *event.Span) {
	g := e.group(spanGroupKey{s.Process, s.Scope})
	before := len(g.buf)
	g.buf = appendSpan(g.buf, s)
	size := len(g.buf) - before
	if size > maxSpanBytes {
		g.buf = g.buf[:before]
		e.lost[lostTooLarge]++
		return
	}
	e.open.items++
	e.open.bytes += int64(size)
	e.entered(1, int64(size))
	if e.open.items >= e.batchSize || e.open.bytes >= maxBatchBytes {
		e.flushLocked()
	}
}

func (e *spanExport) group(key spanGroupKey) *spanGroup {
	b := &e.open
	if b.last != nil && b.last.spanGroupKey == key {
		return b.last
	}
	g := b.index[key]
	if g == nil {
		if b.index == nil {
			b.index = make(map[spanGroupKey]*spanGroup)
		}
		g = &spanGroup{spanGroupKey: key, buf: e.pool.get()}
		b.groups = append(b.groups, g)
		b.index[key] = g
	}
	b.last = g
	return g
}

// sealOpen implements lane.seal.
func (e *spanExport) sealOpen() (parcel, bool) {
	b := e.open
	e.open = spanBatch{}
	if b.items == 0 {
		return parcel{}, false
	}
	return parcel{
		items: b.items,
		bytes: b.bytes,
		upload: func(ctx context.Context, r *receipt) {
			if err := e.client.UploadTraces(ctx, e.resourceSpans(b.groups)); err != nil {
				r.failed(err)
			}
			// The exporter has copied the bytes into a request of its own.
			for _, g := range b.groups {
				e.pool.put(g.buf)
			}
		},
	}, true
}

// resourceSpans wraps the groups: one ResourceSpans a process, one ScopeSpans a
// scope in it.
func (e *spanExport) resourceSpans(groups []*spanGroup) []*tracepb.ResourceSpans {
	var out []*tracepb.ResourceSpans
	byProcess := make(map[*event.Process]*tracepb.ResourceSpans, len(groups))
	for _, g := range groups {
		if len(g.buf) == 0 {
			continue
		}
		rs := byProcess[g.process]
		if rs == nil {
			rs = &tracepb.ResourceSpans{Resource: e.resources.of(g.process)}
			byProcess[g.process] = rs
			out = append(out, rs)
		}
		ss := &tracepb.ScopeSpans{Scope: scopeProto(g.scope)}
		ss.ProtoReflect().SetUnknown(g.buf)
		rs.ScopeSpans = append(rs.ScopeSpans, ss)
	}
	return out
}

func scopeProto(s *event.Scope) *commonpb.InstrumentationScope {
	if s == nil {
		return nil
	}
	return &commonpb.InstrumentationScope{Name: clean(s.Name), Version: clean(s.Version)}
}

// bufferPool keeps a few buffers for reuse. It is not a sync.Pool, which a
// collection empties: with batches of a megabyte each collection would be
// followed by growing new ones.
type bufferPool struct {
	mu   sync.Mutex
	free [][]byte
}

func (p *bufferPool) get() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b
	}
	return make([]byte, 0, smallBuffer)
}

func (p *bufferPool) put(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cap(b) <= keepBuffer && len(p.free) < freeBuffers {
		p.free = append(p.free, b[:0])
		slices.SortFunc(p.free, func(a, b []byte) int { return cap(a) - cap(b) }) // the largest is taken first
	}
}

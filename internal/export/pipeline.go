// Package export takes finished telemetry off the data path and sends it to an
// OTLP/HTTP endpoint: traces, metrics and logs of every service of the node.
//
// This file is the map. The way of a span, in order:
//
//	probes call [Pipeline.Spans]                           pipeline.go
//	  → encoded, at the door, into the open batch          wire.go, spans.go
//	  → sealed when full or old, queued within a limit     lane.go
//	  ~ here the data path ends; a worker goes on ~
//	  → otlptracehttp makes one request of it              spans.go
//	  → compressed, given its headers                      transport.go
//	  → sent, retried, split, refused; counted             deliver.go, pace.go, split.go
//
// Logs go the same way, through the log SDK and otlploghttp (logs.go); metrics
// arrive as whole collections and are one request for all services (metrics.go).
//
// A span is encoded as soon as it arrives: its final bytes are a third of the
// size of the Go values, hold no pointers for the garbage collector to follow,
// and make the limit of the queue exact.
//
// Nothing here blocks the caller, and nothing is lost without a count: for each
// signal, received = exported + queued + lost by reason ([SignalStats]), at any
// time. What is sampled out never comes here: that is decided in the kernel.
package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes/event"
)

// shutdownLimit caps [Pipeline.Shutdown] whatever its context says: the whole
// agent has 10 s between SIGTERM and its end.
const shutdownLimit = 8 * time.Second

// Workers of one signal. More than one, because with a far endpoint the round
// trip, and not the work, bounds the throughput.
const (
	spanWorkers   = 4
	logWorkers    = 2
	metricWorkers = 1
)

// Pipeline exports the telemetry of a node. It is an [event.Sink]; its methods
// may be called from several goroutines.
type Pipeline struct {
	spans   *spanExport
	logs    *logExport
	metrics *metricExport
	lanes   []*lane

	http     *http.Client
	deliver  *deliverer
	startOne sync.Once
	stopOne  sync.Once
	stopErr  error
	ctx      context.Context // of the workers; ends when what is queued is given up
	cancel   context.CancelFunc
	workers  sync.WaitGroup
	done     chan struct{} // closed when all workers have returned
}

var _ event.Sink = (*Pipeline)(nil)

// options are what the configuration does not hold.
type options struct {
	resource []attribute.KeyValue
	base     http.RoundTripper
}

// Option changes how [New] builds a Pipeline.
type Option func(*options)

// WithResource sets the resource of the agent's own metrics, those without a
// process.
func WithResource(attrs []attribute.KeyValue) Option {
	return func(o *options) { o.resource = attrs }
}

// New returns a Pipeline that takes telemetry at once and sends it after
// [Pipeline.Run] was called. It also routes what the OpenTelemetry libraries
// have to say to logger, so that it goes nowhere else.
func New(cfg config.Config, logger *slog.Logger, opts ...Option) (*Pipeline, error) {
	o := options{
		resource: []attribute.KeyValue{attribute.String("service.name", "plain-agent")},
	}
	for _, opt := range opts {
		opt(&o)
	}
	ends, err := endpointsOf(cfg.Export)
	if err != nil {
		return nil, err
	}
	routeLibraryErrors(logger)

	p := &Pipeline{done: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.deliver = newDeliverer(cfg.Export, ends, logger, o.base)
	p.http = &http.Client{
		Transport: newTransport(cfg.Export, ends, p.deliver),
		// A redirect would carry the data, and maybe the token, to where
		// nobody meant them to go.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if p.spans, err = newSpanExport(cfg, ends[signalSpans], p.http); err != nil {
		return nil, fmt.Errorf("trace exporter: %w", err)
	}
	if p.logs, err = newLogExport(cfg, ends[signalLogs], p.http); err != nil {
		return nil, fmt.Errorf("log exporter: %w", err)
	}
	p.metrics = newMetricExport(cfg, ends[signalMetrics], p.http, o.resource)
	p.lanes = []*lane{p.spans.lane, p.metrics.lane, p.logs.lane}
	return p, nil
}

// Spans implements [event.Sink].
func (p *Pipeline) Spans(spans []event.Span) int { return p.spans.add(spans) }

// Logs implements [event.Sink].
func (p *Pipeline) Logs(logs []event.Log) int { return p.logs.add(logs) }

// Metrics queues one collection: what each series gained since the last, and
// the numbers beside it. It returns how many points were accepted; the others
// are counted as lost. The slices are not kept.
func (p *Pipeline) Metrics(histograms []event.Histogram, numbers []event.Number) int {
	return p.metrics.add(histograms, numbers)
}

// Run sends until [Pipeline.Shutdown] has finished, and returns nil then. If
// ctx ends before, what is queued is given up and counted, and ctx's error is
// returned: to flush, call Shutdown first.
func (p *Pipeline) Run(ctx context.Context) error {
	p.start()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.abandon()
		return ctx.Err()
	}
}

func (p *Pipeline) start() {
	p.startOne.Do(func() {
		for _, l := range p.lanes {
			for range l.workers {
				p.workers.Go(func() { l.work(p.ctx) })
			}
		}
		go func() {
			p.workers.Wait()
			close(p.done)
		}()
	})
}

// Shutdown refuses new telemetry, sends what is queued until ctx ends (8 s at
// most), and counts the rest as lost. It may be called more than once, and
// without Run.
func (p *Pipeline) Shutdown(ctx context.Context) error {
	p.stopOne.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, shutdownLimit)
		defer cancel()
		p.start()
		for _, l := range p.lanes {
			l.close()
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			p.abandon()
			p.stopErr = fmt.Errorf("flush: %w", ctx.Err())
		}
		p.stopErr = errors.Join(p.stopErr, p.spans.shutdown(), p.logs.shutdown())
		p.http.CloseIdleConnections()
	})
	return p.stopErr
}

// abandon makes the workers drop what is queued, and waits for them.
func (p *Pipeline) abandon() {
	for _, l := range p.lanes {
		l.close()
	}
	p.cancel()
	<-p.done
}

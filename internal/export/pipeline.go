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
//	  → or, if the endpoint cannot take it now, spooled    store.go, spool/
//	    and sent later, beside what is fresh               drain.go
//
// Logs go the same way, through the log SDK and otlploghttp (logs.go); metrics
// arrive as whole collections and are one request for all services (metrics.go).
//
// A span is encoded as soon as it arrives: its final bytes are a third of the
// size of the Go values, hold no pointers for the garbage collector to follow,
// and make the limit of the queue exact.
//
// Nothing here blocks the caller, and nothing is lost without a count: for each
// signal, received = exported + queued + spooled + lost by reason
// ([SignalStats]), at any time. What is sampled out never comes here: that is decided in the kernel.
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
	"github.com/plainframework/agent/internal/export/spool"
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

	cfg        config.Export
	http       *http.Client
	deliver    *deliverer
	store      *store
	spoolOff   string // why there is none
	drains     context.Context
	stopDrains context.CancelFunc
	startOne   sync.Once
	stopOne    sync.Once
	stopErr    error
	ctx        context.Context // of the workers; ends when what is queued is given up
	cancel     context.CancelFunc
	workers    sync.WaitGroup
	done       chan struct{} // closed when all workers have returned
}

var _ event.Settler = (*Pipeline)(nil)

// options are what the configuration does not hold.
type options struct {
	resource []attribute.KeyValue
	base     http.RoundTripper
	disk     spool.Disk // of the spool, instead of the directory
	book     func(signal int) Memory
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

	if o.base == nil {
		if o.base, err = newBase(cfg.Export); err != nil {
			return nil, err
		}
	}
	p := &Pipeline{cfg: cfg.Export, done: make(chan struct{})}
	if p.store, p.spoolOff, err = openStore(cfg.Export, ends, o.disk, logger); err != nil {
		return nil, err
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.drains, p.stopDrains = context.WithCancel(p.ctx)
	p.deliver = newDeliverer(cfg.Export, ends, logger, o.base, p.store)
	p.http = &http.Client{
		Transport: newTransport(cfg.Export, ends, p.deliver),
		// A redirect would carry the data, and maybe the token, to where
		// nobody meant them to go.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if err := p.addLanes(cfg, ends, o); err != nil {
		return nil, errors.Join(err, p.store.close())
	}
	return p, nil
}

func (p *Pipeline) addLanes(cfg config.Config, ends [signalCount]string, o options) (err error) {
	if p.spans, err = newSpanExport(cfg, ends[signalSpans], p.http); err != nil {
		return fmt.Errorf("trace exporter: %w", err)
	}
	if p.logs, err = newLogExport(cfg, ends[signalLogs], p.http); err != nil {
		return fmt.Errorf("log exporter: %w", err)
	}
	p.metrics = newMetricExport(cfg, ends[signalMetrics], p.http, o.resource)
	p.lanes = []*lane{p.spans.lane, p.metrics.lane, p.logs.lane}
	for _, l := range p.lanes {
		if o.book == nil {
			break
		}
		if memory := o.book(int(l.signal)); memory != nil {
			l.book = &book{memory: memory}
		}
	}
	p.store.start(p.lanes)
	return nil
}

// Handed is how many spans were given to this pipeline, and with [WithBook] to those of
// agents before that were killed.
func (p *Pipeline) Handed() uint64 {
	p.spans.mu.Lock()
	defer p.spans.mu.Unlock()
	return uint64(p.spans.fresh)
}

// Spans implements [event.Sink].
func (p *Pipeline) Spans(spans []event.Span) int {
	defer p.spans.keep()
	return p.spans.add(spans)
}

// Logs implements [event.Sink].
func (p *Pipeline) Logs(logs []event.Log) int {
	defer p.logs.keep()
	return p.logs.add(logs)
}

// Metrics queues one collection: what each series gained since the last, and
// the numbers beside it. It returns how many points were accepted; the others
// are counted as lost. The slices are not kept.
func (p *Pipeline) Metrics(histograms []event.Histogram, numbers []event.Number) int {
	return p.metrics.add(histograms, numbers, nil)
}

// MetricsSettled implements [event.Settler].
func (p *Pipeline) MetricsSettled(histograms []event.Histogram, numbers []event.Number, settled func()) int {
	return p.metrics.add(histograms, numbers, settled)
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
			if p.store != nil {
				p.workers.Go(func() { l.spill(p.ctx) })
				p.workers.Go(func() { p.deliver.drain(p.drains, p.ctx, l) })
			}
		}
		go func() {
			p.workers.Wait()
			close(p.done)
		}()
	})
}

// Shutdown refuses new telemetry and sends what is queued until ctx ends (8 s at
// most). With a spool, it stops sending after two thirds of that time and spools
// the rest; what is still left at the end is counted as lost. It may be called
// more than once, and without Run.
func (p *Pipeline) Shutdown(ctx context.Context) error {
	p.stopOne.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, shutdownLimit)
		defer cancel()
		p.start()
		p.stopDrains() // the next run goes on with it
		for _, l := range p.lanes {
			l.close()
		}
		if end, ok := ctx.Deadline(); ok && p.store != nil {
			defer time.AfterFunc(time.Until(end)*2/3, p.deliver.stopSending).Stop()
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			p.abandon()
			p.stopErr = fmt.Errorf("flush: %w", ctx.Err())
		}
		p.stopErr = errors.Join(p.stopErr, p.spans.shutdown(), p.logs.shutdown(), p.store.close())
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

package export

import (
	"context"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes/event"
)

// maxLogString is the cap on a body or an attribute: a line may have 64 KiB,
// and a crash is a record of many lines.
const maxLogString = 1 << 20

// logExport hands log records to the SDK's log pipeline.
//
// The SDK ties a resource to a LoggerProvider, and gives no other way to make a
// record with one. So each process has a provider of its own; all of them share
// one processor, which only collects the records that a worker emits, and one
// otlploghttp exporter, which groups them by resource again. The SDK's own
// BatchProcessor is not used: it drops without saying how many.
type logExport struct {
	*lane
	exporter  *otlploghttp.Exporter
	batchSize int

	open      []event.Log // guarded by lane.mu
	openBytes int64

	loggersMu sync.Mutex
	loggers   map[logKey]log.Logger
}

type logKey struct {
	process *event.Process
	scope   *event.Scope
}

func newLogExport(cfg config.Config, url string, hc *http.Client) (*logExport, error) {
	// As with spans, the transport does all that the exporter would.
	exporter, err := otlploghttp.New(context.Background(),
		otlploghttp.WithEndpointURL(url),
		otlploghttp.WithHTTPClient(hc),
		otlploghttp.WithCompression(otlploghttp.NoCompression),
		otlploghttp.WithHeaders(map[string]string{}),
		otlploghttp.WithTLSClientConfig(nil),
		otlploghttp.WithRetry(otlploghttp.RetryConfig{Enabled: false}),
	)
	if err != nil {
		return nil, err
	}
	e := &logExport{
		lane:      newLane(signalLogs, int64(cfg.Export.QueueSize), cfg.Export.BatchDelay, logWorkers),
		exporter:  exporter,
		batchSize: cfg.Export.BatchSize,
		loggers:   make(map[logKey]log.Logger),
	}
	e.seal = e.sealOpen
	return e, nil
}

func (e *logExport) shutdown() error { return e.exporter.Shutdown(context.Background()) }

func (e *logExport) add(logs []event.Log) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range logs {
		if !e.admit() {
			e.refuse(len(logs) - i - 1)
			return i
		}
		size := logSize(&logs[i])
		e.open = append(e.open, logs[i])
		e.openBytes += size
		e.entered(1, size)
		if len(e.open) >= e.batchSize || e.openBytes >= maxBatchBytes {
			e.flushLocked()
		}
	}
	return len(logs)
}

// logSize estimates what a queued record takes in memory.
func logSize(l *event.Log) int64 {
	const record, attr = 224, 80 // sizes of the Go values
	n := int64(record + len(l.Body) + len(l.SeverityText))
	for i := range l.Attributes {
		n += attr + valueSize(l.Attributes[i].Value, 0)
	}
	return n
}

func valueSize(v attribute.Value, depth int) int64 {
	switch v.Type() {
	case attribute.STRING:
		return int64(len(v.AsString()))
	case attribute.BYTESLICE:
		return int64(len(v.AsByteSlice()))
	case attribute.MAP:
		var n int64
		if depth <= maxDepth {
			for _, kv := range v.AsMap() {
				n += 80 + int64(len(kv.Key)) + valueSize(kv.Value, depth+1)
			}
		}
		return n
	}
	return 0
}

// sealOpen implements lane.seal.
func (e *logExport) sealOpen() (parcel, bool) {
	logs, size := e.open, e.openBytes
	e.open, e.openBytes = nil, 0
	if len(logs) == 0 {
		return parcel{}, false
	}
	return parcel{items: len(logs), bytes: size, upload: func(ctx context.Context, r *receipt) {
		if err := e.exporter.Export(ctx, e.records(logs)); err != nil {
			r.failed(err)
		}
	}}, true
}

// records runs the logs through the SDK and returns what comes out.
func (e *logExport) records(logs []event.Log) []sdklog.Record {
	out := make([]sdklog.Record, 0, len(logs))
	base := context.WithValue(context.Background(), gatherKey{}, &out)
	for i := range logs {
		l := &logs[i]
		ctx := base
		if l.TraceID.IsValid() {
			ctx = trace.ContextWithSpanContext(base, trace.NewSpanContext(trace.SpanContextConfig{
				TraceID: l.TraceID, SpanID: l.SpanID, TraceFlags: l.Flags,
			}))
		}
		e.logger(l.Process, l.Scope).Emit(ctx, recordOf(l))
	}
	return out
}

func recordOf(l *event.Log) log.Record {
	var r log.Record
	if l.Time != 0 {
		r.SetTimestamp(time.Unix(0, l.Time))
	}
	r.SetObservedTimestamp(time.Unix(0, l.Observed))
	r.SetSeverity(l.Severity)
	r.SetSeverityText(cleanTo(l.SeverityText, maxString))
	r.SetBody(attribute.StringValue(cleanTo(l.Body, maxLogString)))
	r.AddAttributes(cleanAttributes(l.Attributes, 0)...)
	return r
}

// cleanAttributes returns attrs with strings that protobuf takes: attrs itself
// where all of them are such already, which is nearly always.
func cleanAttributes(attrs []attribute.KeyValue, depth int) []attribute.KeyValue {
	if isClean(attrs) {
		return attrs
	}
	out := make([]attribute.KeyValue, len(attrs))
	for i, kv := range attrs {
		out[i] = attribute.KeyValue{Key: attribute.Key(clean(string(kv.Key))), Value: cleanValue(kv.Value, depth)}
	}
	return out
}

// isClean says whether attrs hold no text but short valid one. It does not look
// into maps and lists.
func isClean(attrs []attribute.KeyValue) bool {
	for i := range attrs {
		v := &attrs[i].Value
		switch v.Type() {
		case attribute.BOOL, attribute.INT64, attribute.FLOAT64:
		case attribute.STRING:
			if s := v.AsString(); len(s) > maxLogString || !utf8.ValidString(s) {
				return false
			}
		default:
			return false
		}
		if key := string(attrs[i].Key); len(key) > maxString || !utf8.ValidString(key) {
			return false
		}
	}
	return true
}

func cleanValue(v attribute.Value, depth int) attribute.Value {
	if depth > maxDepth {
		return attribute.Value{}
	}
	switch v.Type() {
	case attribute.STRING:
		return attribute.StringValue(cleanTo(v.AsString(), maxLogString))
	case attribute.STRINGSLICE:
		list := v.AsStringSlice() // a copy
		for i := range list {
			list[i] = clean(list[i])
		}
		return attribute.StringSliceValue(list)
	case attribute.MAP:
		return attribute.MapValue(cleanAttributes(v.AsMap(), depth+1)...)
	case attribute.SLICE:
		list := v.AsSlice() // a copy
		for i := range list {
			list[i] = cleanValue(list[i], depth+1)
		}
		return attribute.SliceValue(list...)
	}
	return v
}

// logger returns the process's logger for a scope.
func (e *logExport) logger(p *event.Process, s *event.Scope) log.Logger {
	e.loggersMu.Lock()
	defer e.loggersMu.Unlock()
	key := logKey{p, s}
	if l := e.loggers[key]; l != nil {
		return l
	}
	if len(e.loggers) >= maxProcesses {
		clear(e.loggers)
	}
	var attrs []attribute.KeyValue
	if p != nil {
		attrs = cleanAttributes(p.Resource, 0)
	}
	provider := sdklog.NewLoggerProvider(
		sdklog.WithResource(resource.NewSchemaless(attrs...)),
		sdklog.WithProcessor(gather{}),
		sdklog.WithAttributeCountLimit(maxAttributes),
		sdklog.WithAttributeValueLengthLimit(-1),
	)
	name, version := "", ""
	if s != nil {
		name, version = cleanTo(s.Name, maxString), cleanTo(s.Version, maxString)
	}
	l := provider.Logger(name, log.WithInstrumentationVersion(version))
	e.loggers[key] = l
	return l
}

// gather is the processor of all providers: it puts a record into the batch
// that is being made, which the context of the call names.
type gather struct{}

type gatherKey struct{}

// OnEmit implements [sdklog.Processor].
func (gather) OnEmit(ctx context.Context, r *sdklog.Record) error {
	if out, ok := ctx.Value(gatherKey{}).(*[]sdklog.Record); ok {
		*out = append(*out, *r)
	}
	return nil
}

// Enabled implements [sdklog.Processor].
func (gather) Enabled(context.Context, sdklog.EnabledParameters) bool { return true }

// Shutdown implements [sdklog.Processor]; the exporter has an owner.
func (gather) Shutdown(context.Context) error { return nil }

// ForceFlush implements [sdklog.Processor].
func (gather) ForceFlush(context.Context) error { return nil }

package main

import (
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/internal/probes"
	"github.com/plainframework/agent/internal/probes/event"
)

// ownMetrics makes the agent's own metrics, plain.agent.*, of what /status shows. They go
// out with each collection, under the agent's resource. There are about as many points
// each time, whatever happens, so that they cannot feed on themselves.
type ownMetrics struct {
	scope *event.Scope
	start event.Start

	mu   sync.Mutex
	seen map[ownKey]int64 // counters at the last collection
	last event.Start
}

// ownKey is one series.
type ownKey struct {
	name       string
	attributes attribute.Distinct
}

// newOwnMetrics begins with what agents before have reported; what the one that was killed
// has lost is for this one to report.
func newOwnMetrics(version string, first report) *ownMetrics {
	now := time.Now()
	start := event.StartAt(now.UnixNano(), now)
	o := &ownMetrics{
		scope: &event.Scope{Name: "github.com/plainframework/agent", Version: version},
		start: start, last: start, seen: map[ownKey]int64{},
	}
	o.numbers(first)
	if status, ok := first.Probes.(probes.Status); ok {
		o.undo("spans", int64(status.State.Crash), "outcome", "lost", "reason", "crash")
		o.undo("log.lines", int64(status.State.LogsCrash), "outcome", "lost", "reason", "crash")
		o.undo("unattended.time", int64(status.State.Unattended*1000))
	}
	if first.Export != nil {
		for signal, s := range first.Export.Signals {
			o.undo("export.items", s.Crashed, "signal", signal, "outcome", "lost", "reason", "crash")
		}
	}
	return o
}

// undo makes a part of a counter new again.
func (o *ownMetrics) undo(name string, n int64, attrs ...string) {
	if n != 0 {
		o.seen[keyOf("plain.agent."+name, pairs(attrs))] -= n
	}
}

func keyOf(name string, attributes []attribute.KeyValue) ownKey {
	set := attribute.NewSet(attributes...)
	return ownKey{name, set.Equivalent()}
}

func pairs(texts []string) (attributes []attribute.KeyValue) {
	for i := 0; i+1 < len(texts); i += 2 {
		attributes = append(attributes, attribute.String(texts[i], texts[i+1]))
	}
	return attributes
}

// numbers are the points of a report; counters are what was gained since the last one.
func (o *ownMetrics) numbers(rep report) []event.Number {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	b := ownBuilder{own: o, now: now.UnixNano(), start: o.start.At(now), last: o.last.At(now)}
	if status, ok := rep.Probes.(probes.Status); ok {
		b.probes(status)
	}
	b.exports(rep)
	b.process(rep)
	o.last = event.StartAt(b.now, now)
	return b.points
}

type ownBuilder struct {
	own    *ownMetrics
	now    int64
	start  int64
	last   int64
	points []event.Number
}

func (b *ownBuilder) add(kind event.NumberKind, name, unit, description string, value int64, attrs ...string) {
	n := event.Number{
		Scope: b.own.scope, Name: "plain.agent." + name, Unit: unit, Description: description,
		Start: b.start, End: b.now, Value: value, Kind: kind,
	}
	n.Attributes = pairs(attrs)
	if kind == event.Counter {
		key := keyOf(n.Name, n.Attributes)
		n.Value, n.Start = value-b.own.seen[key], b.last
		b.own.seen[key] = value
		if n.Value < 0 { // what is counted began anew
			n.Value = value
		}
	}
	b.points = append(b.points, n)
}

// degraded are reasons in [probes.Status].Losses that cost no span.
var degraded = map[string]bool{"bad_read": true, "contexts_full": true, "series_full": true}

// ofLogs are those that cost log lines.
var ofLogs = map[string]string{"logs_ring_full": "ring_full", "logs_rate_limited": "rate_limited", "logs_crash": "crash"}

func (b *ownBuilder) probes(s probes.Status) {
	const spans, lines = "Spans of instrumented processes, by what became of them.", "Lines on standard error, by what became of them."
	b.add(event.Counter, "spans", "{span}", spans, int64(s.Spans.Decoded), "outcome", "handed")
	b.add(event.Counter, "spans", "{span}", spans, int64(s.Spans.SampledOut), "outcome", "sampled_out")
	for reason, n := range s.Losses {
		if log := ofLogs[reason]; log != "" {
			b.add(event.Counter, "log.lines", "{line}", lines, int64(n), "outcome", "lost", "reason", log)
		} else if degraded[reason] {
			b.add(event.Counter, "degraded", "{operation}", "Operations that were seen, but not in full.", int64(n), "reason", reason)
		} else {
			b.add(event.Counter, "spans", "{span}", spans, int64(n), "outcome", "lost", "reason", reason)
		}
	}
	b.add(event.Counter, "log.lines", "{line}", lines, int64(s.Logs.Kept), "outcome", "handed")
	b.add(event.Counter, "log.lines", "{line}", lines, int64(s.Logs.BelowFloor), "outcome", "below_level")
	for name, r := range s.Rings {
		b.add(event.Gauge, "ring.used", "By", "What waits in a ring buffer.", int64(r.Used), "ring", name)
		b.add(event.Gauge, "ring.size", "By", "Size of a ring buffer.", int64(r.Size), "ring", name)
	}
	for name, p := range s.Programs {
		b.add(event.Counter, "probe.time", "ns", "Time that a BPF program ran.", int64(p.Time), "program", name)
		b.add(event.Counter, "probe.runs", "{run}", "How often a BPF program ran.", int64(p.Runs), "program", name)
	}
	states := map[string]int64{"attached": 0}
	for _, t := range s.Targets {
		states[t.State]++
	}
	for state, n := range states {
		b.add(event.UpDownCounter, "targets", "{process}", "Processes and paths that were asked for.", n, "state", state)
	}
	b.add(event.Gauge, "attach.time", "ms", "How long it took to attach when the agent started.", int64(s.AttachSeconds*1000))
	b.add(event.Counter, "unattended.time", "ms", "Time without an agent.", int64(s.State.UnattendedAll*1000))
}

func (b *ownBuilder) exports(rep report) {
	if rep.Export == nil {
		return
	}
	const items = "Spans, points and log records, by what became of them."
	for signal, s := range rep.Export.Signals {
		b.add(event.Counter, "export.items", "{item}", items, s.Exported, "signal", signal, "outcome", "exported")
		for reason, n := range s.Lost {
			b.add(event.Counter, "export.items", "{item}", items, n, "signal", signal, "outcome", "lost", "reason", reason)
		}
		b.add(event.Counter, "export.maybe_twice", "{item}", "Items that may have arrived twice.", s.MaybeTwice, "signal", signal)
		b.add(event.UpDownCounter, "export.queue.items", "{item}", "Items in memory.", s.Queued, "signal", signal)
		b.add(event.UpDownCounter, "export.queue.size", "By", "Memory of the items that wait.", s.QueuedBytes, "signal", signal)
		b.add(event.UpDownCounter, "spool.items", "{item}", "Items on disk.", s.Spooled, "signal", signal)
	}
	for signal, e := range rep.Export.Endpoints {
		b.add(event.Counter, "export.requests", "{request}", "Requests to the endpoint.", e.Requests, "signal", signal)
		b.add(event.Counter, "export.failures", "{request}", "Of these, those that did not succeed.", e.Failures, "signal", signal)
		b.add(event.Counter, "export.sent", "By", "Bodies that the endpoint took, compressed.", e.BytesSent, "signal", signal)
	}
	b.add(event.UpDownCounter, "spool.size", "By", "Size of the spool on disk.", rep.Export.Spool.Bytes)
	b.add(event.Gauge, "spool.age", "s", "Age of the oldest request in the spool.", int64(rep.Export.Spool.OldestAge))
}

func (b *ownBuilder) process(rep report) {
	b.add(event.Gauge, "memory.used", "By", "Memory of the agent that is resident.", rep.Process.MemoryBytes)
	b.add(event.Gauge, "memory.limit", "By", "What the agent's Go heap is kept below.", rep.Process.MemoryLimit)
	b.add(event.Counter, "cpu.time", "ms", "CPU time of the agent.", rep.Process.CPU.Milliseconds())
	b.add(event.Gauge, "uptime", "s", "How long the agent has run.", int64(time.Since(rep.Started).Seconds()))
}

// ownResource describes the agent itself.
func ownResource(version buildVersion) []attribute.KeyValue {
	resource := []attribute.KeyValue{
		attribute.String("service.name", "plain-agent"),
		attribute.String("service.version", version.String()),
		attribute.String("service.instance.id", uuid.NewString()),
		attribute.Int("process.pid", os.Getpid()),
	}
	if host, err := os.Hostname(); err == nil {
		resource = append(resource, attribute.String("host.name", host))
	}
	return resource
}

// ownCPU is that of this process.
func ownCPU() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

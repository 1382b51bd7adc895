package probes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"go.opentelemetry.io/otel/attribute"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
)

// metric is a histogram that the programs of a library fill.
type metric struct {
	kind                    uint32 // of the series' keys
	slot                    int    // of the overflow histograms
	name, unit, description string
	bounds                  []float64 // s; those of bpf/metric.h
	attributes              func(d *decoding, key *bpf.AgentSeriesKey, s *bpf.AgentSeries) []attribute.KeyValue
}

// maxBuckets is MAX_BUCKETS of bpf/event.h.
const maxBuckets = len(bpf.AgentHistogram{}.Counts)

// collector turns the kernel's cumulative histograms into what each gained since the
// last collection. The kernel never resets them, so nothing that happens meanwhile is
// lost or counted twice.
type collector struct {
	kernel  *kernel
	targets *targets
	sink    event.Sink
	log     *slog.Logger
	state   *State
	metrics map[uint32]*metric
	scopes  map[uint32]*event.Scope

	mu       sync.Mutex
	decode   *decoding
	seen     map[bpf.AgentSeriesKey]bpf.AgentHistogram
	points   map[pointKey]*event.Histogram             // gathered since the last hand-over
	last     event.Start                               // the last collection
	changed  map[bpf.AgentSeriesKey]bpf.AgentHistogram // by the collection that is under way
	pending  []*collection                             // handed over and not settled, in their order
	retiring map[int]*target                           // gone since the last collection
	leaving  *target                                   // whose last is being gathered
	early    chan struct{}                             // collect now

	active    *activeRequests
	own       func() []event.Number // may be nil
	exemplars exemplars
}

// pointKey tells exported points apart: several series of the kernel may be one, such
// as queries of the same summary.
type pointKey struct {
	process    *event.Process
	metric     *metric
	attributes attribute.Distinct
}

// exemplars keeps the last span that was exported of each series. The reader writes,
// the collector takes.
type exemplars struct {
	mu sync.Mutex
	of map[uint64]event.Exemplar // by AgentSeries.Id
}

func (e *exemplars) put(series uint64, span *event.Span) {
	if series == 0 {
		return
	}
	e.mu.Lock()
	if e.of == nil {
		e.of = map[uint64]event.Exemplar{}
	}
	e.of[series] = event.Exemplar{
		Time: span.End, Value: float64(span.End-span.Start) / 1e9,
		TraceID: span.TraceID, SpanID: span.SpanID,
	}
	e.mu.Unlock()
}

func (e *exemplars) take() map[uint64]event.Exemplar {
	e.mu.Lock()
	defer e.mu.Unlock()
	taken := e.of
	e.of = nil
	return taken
}

func newCollector(k *kernel, t *targets, sink event.Sink, log *slog.Logger, version string) *collector {
	c := &collector{
		kernel: k, targets: t, sink: sink, log: log, state: t.state, decode: newDecoding(),
		metrics: map[uint32]*metric{}, scopes: map[uint32]*event.Scope{},
		seen:     map[bpf.AgentSeriesKey]bpf.AgentHistogram{},
		points:   map[pointKey]*event.Histogram{},
		retiring: map[int]*target{},
		early:    make(chan struct{}, 1),
		active:   newActiveRequests(k, t, log, version),
		last:     event.StartAt(time.Now().UnixNano(), time.Now()),
	}
	for _, lib := range libraries {
		for i := range lib.metrics {
			c.metrics[lib.metrics[i].kind] = &lib.metrics[i]
			c.scopes[lib.metrics[i].kind] = scopeOf(lib, version)
		}
	}
	return c
}

// run collects at each interval until ctx is done. The caller collects once more when
// the probes are detached.
func (c *collector) run(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.collect()
		case <-c.early:
			c.collect()
		}
	}
}

// collect hands what every series gained to the sink.
func (c *collector) collect() {
	open := c.active.count()
	var own []event.Number
	if c.own != nil {
		own = c.own()
	}
	c.mu.Lock()
	now := time.Now()
	done := &collection{until: now.UnixNano(), retired: c.retiring}
	c.retiring = map[int]*target{}
	c.changed = map[bpf.AgentSeriesKey]bpf.AgentHistogram{}
	if err := c.gather(nil); err != nil {
		c.log.Warn("metrics of this interval come with the next", "error", err)
		maps.Copy(c.retiring, done.retired) // and so they stay
		done.retired = nil
	}
	done.baselines, c.changed = c.changed, nil
	c.pending = append(c.pending, done)
	points := c.take(now)
	c.last = event.StartAt(now.UnixNano(), now)
	numbers := append(c.active.numbers(open, now), own...)
	c.mu.Unlock()
	settled := func() { c.settled(done) }
	switch sink, ok := c.sink.(event.Settler); {
	case len(points)+len(numbers) == 0:
		settled()
	case ok:
		sink.MetricsSettled(points, numbers, settled)
	default:
		c.sink.Metrics(points, numbers)
		settled()
	}
}

// take returns what was gathered. The caller holds mu.
func (c *collector) take(now time.Time) []event.Histogram {
	points := make([]event.Histogram, 0, len(c.points))
	start := c.last.At(now)
	for _, p := range c.points {
		p.Start, p.End = start, now.UnixNano()
		points = append(points, *p)
	}
	c.points = map[pointKey]*event.Histogram{}
	return points
}

// retire is told of a process that is gone. What the kernel keeps of it is deleted when
// the collection that has its last is settled.
func (c *collector) retire(pid int, tg *target) {
	c.mu.Lock()
	c.retiring[pid] = tg
	many := len(c.retiring) >= manyRetired
	c.mu.Unlock()
	if many {
		select {
		case c.early <- struct{}{}:
		default: // it is about to happen
		}
	}
}

// manyRetired processes are not kept in the kernel until the interval is over.
const manyRetired = 64

// replaced hands the last of a process over at once, and frees its series, because
// another program has its number.
func (c *collector) replaced(pid int, tg *target) {
	tgid := uint32(pid)
	c.mu.Lock()
	delete(c.retiring, pid)
	c.leaving = tg
	err := c.gather(&tgid)
	c.leaving = nil
	points := c.take(time.Now())
	c.mu.Unlock()
	if err != nil {
		c.log.Warn("last metrics of a process are lost", "pid", tgid, "error", err)
	}
	if len(points) > 0 {
		c.sink.Metrics(points, nil)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free(map[int]*target{pid: nil})
}

// gather adds what series gained to the points: of all processes, or of one.
func (c *collector) gather(only *uint32) error {
	exemplars := map[uint64]event.Exemplar{}
	if only == nil {
		exemplars = c.exemplars.take()
	}
	err := eachInBatches(c.kernel.mapOf("all_series"), func(key *bpf.AgentSeriesKey, s *bpf.AgentSeries) {
		if only == nil || key.Tgid == *only {
			c.addSeries(key, s, exemplars[s.Id])
		}
	})
	return errors.Join(err, c.gatherOverflow(only))
}

// whose is the process that a histogram is of. The caller holds mu.
func (c *collector) whose(tgid, binary uint32) (*target, error) {
	if tg := c.leaving; tg != nil && tg.binary.id == binary {
		return tg, nil
	}
	return c.targets.measuredBy(int(tgid), binary)
}

func (c *collector) addSeries(key *bpf.AgentSeriesKey, s *bpf.AgentSeries, exemplar event.Exemplar) {
	m := c.metrics[key.Kind]
	if m == nil || s.Id == 0 {
		return // being made just now; the next collection has it
	}
	tg, err := c.whose(key.Tgid, s.Binary)
	if err != nil {
		return // not a process that was asked for
	}
	gained := histogramSince(&s.Histogram, c.seen[*key])
	if gained.count == 0 {
		return
	}
	c.saw(*key, s.Histogram)
	c.decode.target = tg
	p := c.point(tg.process, m, m.attributes(c.decode, key, s))
	p.add(gained)
	if m.kind == uint32(bpf.AgentNethttpKindRECORD_HTTP_SERVER) {
		c.active.learn(tg.process, p.Attributes)
	}
	if exemplar.Time != 0 && len(p.Exemplars) < maxExemplars {
		p.Exemplars = append(p.Exemplars, exemplar)
	}
}

// maxExemplars of one point: series of the kernel that became one each bring one.
const maxExemplars = 4

// gatherOverflow adds what had no series of its own, under the attribute that the
// OpenTelemetry SDKs use.
func (c *collector) gatherOverflow(only *uint32) error {
	processes := c.kernel.mapOf("processes")
	overflow := []attribute.KeyValue{attribute.Bool("otel.metric.overflow", true)}
	return eachInBatches(processes, func(tgid *uint32, p *bpf.AgentProcess) {
		if only != nil && *tgid != *only {
			return
		}
		for _, m := range c.metrics {
			key := overflowKey(*tgid, m)
			gained := histogramSince(&p.Overflow[m.slot], c.seen[key])
			if gained.count == 0 {
				continue
			}
			if tg, err := c.whose(*tgid, p.Binary); err == nil {
				c.saw(key, p.Overflow[m.slot])
				c.point(tg.process, m, overflow).add(gained)
			}
		}
	})
}

func (c *collector) point(process *event.Process, m *metric, attributes []attribute.KeyValue) *point {
	set := attribute.NewSet(attributes...)
	key := pointKey{process, m, set.Equivalent()}
	p := c.points[key]
	if p == nil {
		p = &event.Histogram{
			Process: process, Scope: c.scopes[m.kind],
			Name: m.name, Unit: m.unit, Description: m.description,
			Attributes: set.ToSlice(), Bounds: m.bounds, Counts: make([]uint64, len(m.bounds)+1),
		}
		c.points[key] = p
	}
	return (*point)(p)
}

// point is a histogram that is being gathered.
type point event.Histogram

func (p *point) add(g gained) {
	for i := range p.Counts {
		p.Counts[i] += g.counts[i]
	}
	p.Sum += float64(g.sumNs) / 1e9
}

// gained is the difference of two readings of a histogram.
type gained struct {
	counts [maxBuckets]uint64
	count  uint64
	sumNs  uint64
}

func histogramSince(now *bpf.AgentHistogram, before bpf.AgentHistogram) (g gained) {
	for i := range now.Counts {
		g.counts[i] = now.Counts[i] - before.Counts[i]
		g.count += g.counts[i]
	}
	g.sumNs = now.SumNs - before.SumNs
	return g
}

// eachInBatches calls f for every entry of a hash map, some hundred a syscall. f may
// keep neither of its arguments.
func eachInBatches[K comparable, V any](m *ebpf.Map, f func(*K, *V)) error {
	const batch = 256
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	done := map[K]bool{} // a map that changes meanwhile may show an entry again
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			if !done[keys[i]] {
				done[keys[i]] = true
				f(&keys[i], &values[i])
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read map: %w", err)
		}
	}
}

// textOf is a series' text; cut tells whether there was more of it.
func textOf(s *bpf.AgentSeries) (text string, cut bool) {
	n := min(int(s.TextLen), len(s.Text))
	b := unsafe.Slice((*byte)(unsafe.Pointer(&s.Text[0])), n)
	return validText(b), int(s.TextLen) > n
}

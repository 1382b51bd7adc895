package probes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
)

// Programs wake the reader only when a ring fills up fast: a wakeup is an interrupt that
// the app pays for. It looks into the ring at an interval that follows the load.
const (
	minPoll = 5 * time.Millisecond
	maxPoll = 200 * time.Millisecond
	// spanBatch spans go to the sink together.
	spanBatch = 256
)

// reader drains the ring: the first of the two asynchronous boundaries on a span's
// way. It never waits for what comes behind it.
type reader struct {
	ring    *ringbuf.Reader
	logRing *ringbuf.Reader // nil: logs are not captured
	full    <-chan struct{} // a ring fills up
	logs    *logs
	sink    event.Sink
	decode  *decoding
	targets *targets
	collect *collector

	exceptions *exceptions
	changes    chan func()   // for run
	alive      atomic.Uint64 // age of the machine at which run was last seen, ns

	kinds   map[uint32]recordKind
	decoded atomic.Uint64
	invalid atomic.Uint64 // records that made no sense
	refused uint64        // of those, the ones of spans
	// unselected are records of processes that turned out not to be wanted.
	unselected atomic.Uint64

	lateMu sync.Mutex
	late   [][]byte // records that do not come from the ring

	now   time.Time // of this look into the ring
	held  holding
	batch []event.Span
}

// recordKind is what to do with one kind of record.
type recordKind struct {
	decode decoder
	scope  *event.Scope
}

func newReader(ring *ringbuf.Reader, sink event.Sink, t *targets, c *collector, version string) *reader {
	r := &reader{
		ring: ring, sink: sink, decode: newDecoding(), targets: t, collect: c,
		changes: make(chan func()), exceptions: newExceptions(), kinds: map[uint32]recordKind{},
	}
	for _, lib := range libraries {
		scope := scopeOf(lib, version)
		for kind, decode := range lib.records {
			r.kinds[kind] = recordKind{decode, scope}
		}
	}
	return r
}

// run drains the ring until ctx is done, and then once more: what was fired before
// the probes were detached is in it.
func (r *reader) run(ctx context.Context) error {
	var record ringbuf.Record
	interval := minPoll
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return r.last(&record)
		case change := <-r.changes:
			change()
			continue
		case <-r.full:
		case <-timer.C:
		}
		r.alive.Store(sinceBoot())
		r.targets.state.beat()
		r.now = time.Now()
		r.letGo(r.now)
		full := r.fullness()
		if err := r.drain(&record); err != nil {
			return err
		}
		if err := r.drainLogs(&record); err != nil {
			return err
		}
		// A quarter of the ring between two looks leaves room for a burst.
		switch {
		case full > 1./4:
			interval = max(interval/2, minPoll)
		case full < 1./16:
			interval = min(interval*2, maxPoll)
		}
		timer.Reset(interval)
	}
}

// fullness is the share of a ring that waits to be read, of the fuller one.
func (r *reader) fullness() float64 {
	full := float64(r.ring.AvailableBytes()) / float64(r.ring.BufferSize())
	if r.logRing != nil {
		full = max(full, float64(r.logRing.AvailableBytes())/float64(r.logRing.BufferSize()))
	}
	return full
}

// last drains what is there when nothing is attached any more, and hands on what waited.
func (r *reader) last(record *ringbuf.Record) error {
	err := errors.Join(r.drain(record), r.drainLogs(record))
	r.letGo(time.Time{})
	if r.logs != nil {
		r.logs.close()
	}
	r.release(time.Time{})
	r.flush()
	return err
}

// drain handles every record that is in the ring now.
func (r *reader) drain(record *ringbuf.Record) error {
	r.release(time.Now())
	if r.ring.AvailableBytes() > 0 {
		r.decode.syncClock()
		if err := drainRing(r.ring, record, r.handle); err != nil {
			return err
		}
	}
	r.handleLate()
	r.flush()
	return nil
}

// drainRing calls handle for every record that is in a ring now, and for none that comes
// meanwhile: a program that writes without end must not keep the reader from the other
// ring.
func drainRing(ring *ringbuf.Reader, record *ringbuf.Record, handle func([]byte)) error {
	ring.SetDeadline(time.Now())
	for waiting := ring.AvailableBytes(); waiting > 0; waiting -= min(waiting, recordSize(record)) {
		err := ring.ReadInto(record)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read ring buffer: %w", err)
		}
		handle(record.RawSample)
	}
	return nil
}

// recordSize is what a record takes in its ring: its own eight bytes of head, and what
// it is rounded up to.
func recordSize(record *ringbuf.Record) int { return (len(record.RawSample) + 8 + 7) &^ 7 }

// drainLogs does the same for what was written to standard error. It comes second: the
// span that a panic has ended is there before the panic is logged.
func (r *reader) drainLogs(record *ringbuf.Record) error {
	if r.logs == nil {
		return nil
	}
	if r.logRing.AvailableBytes() > 0 {
		r.decode.syncClock()
		if err := drainRing(r.logRing, record, r.handleLog); err != nil {
			return err
		}
	}
	r.logs.flush(time.Now(), r.targets.goneAt)
	return nil
}

func (r *reader) handleLog(raw []byte) {
	written, text, err := recordAs[bpf.AgentStderrRecord](raw)
	if err != nil || written.Header.Kind != uint32(bpf.AgentStderrKindRECORD_STDERR) {
		r.invalid.Add(1)
		return
	}
	target, err := r.targets.of(int(written.Header.Tgid), written.Header.Binary)
	if err != nil {
		if !errors.Is(err, errNotSelected) {
			r.invalid.Add(1)
		}
		return
	}
	if target.holds(r.now) && r.held.putLog(target, written, text, r.decode.offset) {
		return
	}
	r.logs.write(target, written, text, r.decode.offset)
}

// target is where the record of a span came from; nil, and counted, if it is of no use.
func (r *reader) target(header *bpf.AgentRecordHeader) *target {
	target, err := r.targets.of(int(header.Tgid), header.Binary)
	switch {
	case errors.Is(err, errNotSelected):
		r.skip(1)
	case err != nil:
		r.refuse()
	}
	return target
}

// skip counts spans of processes that are not wanted.
func (r *reader) skip(n uint64) {
	r.unselected.Add(n)
	r.refused += n
	r.targets.state.note(wordInvalid, r.refused)
}

// release takes spans back that waited for the text of a panic.
func (r *reader) release(now time.Time) {
	if r.exceptions == nil {
		return
	}
	for _, span := range r.exceptions.release(now) {
		r.batch = append(r.batch, span)
		if len(r.batch) >= spanBatch {
			r.flush()
		}
	}
}

func (r *reader) handle(raw []byte) {
	header, _, err := recordAs[bpf.AgentRecordHeader](raw)
	if err != nil {
		r.refuse()
		return
	}
	if header.Kind == uint32(bpf.AgentRecordKindRECORD_EXEC) {
		r.targets.execed(int(header.Tgid), header.StartNs)
		return
	}
	kind, ok := r.kinds[header.Kind]
	if !ok {
		r.refuse()
		return
	}
	target := r.target(header)
	if target == nil {
		return
	}
	if r.batch == nil {
		r.batch = make([]event.Span, 0, spanBatch)
	}
	r.batch = append(r.batch, event.Span{})
	span := &r.batch[len(r.batch)-1]
	span.Process, span.Scope = target.process, kind.scope
	r.decode.begin(header, target, span)
	if err := kind.decode(r.decode, raw, span); err != nil {
		r.batch = r.batch[:len(r.batch)-1]
		r.refuse()
		return
	}
	r.decode.end(span, bpf.AgentSpanFlags(header.Flags))
	r.collect.exemplars.put(header.Series, span)
	r.decoded.Add(1)
	target.decoded.Add(1)
	if target.holds(r.now) && r.held.put(target, span) {
		r.batch = r.batch[:len(r.batch)-1]
		return
	}
	const panicked = bpf.AgentSpanFlagsSPAN_PANIC | bpf.AgentSpanFlagsSPAN_CRASHED
	if bpf.AgentSpanFlags(header.Flags)&panicked != 0 && r.exceptions.hold(*span, time.Now()) {
		r.batch = r.batch[:len(r.batch)-1]
	}
	if len(r.batch) >= spanBatch {
		r.flush()
	}
}

// later has a record handled that does not come from the ring.
func (r *reader) later(raw []byte) {
	r.lateMu.Lock()
	defer r.lateMu.Unlock()
	r.late = append(r.late, raw)
}

// handleLate handles the records that were left by later.
func (r *reader) handleLate() {
	r.lateMu.Lock()
	late := r.late
	r.late = nil
	r.lateMu.Unlock()
	if len(late) == 0 {
		return
	}
	r.decode.syncClock()
	for _, raw := range late {
		r.handle(raw)
	}
}

// refuse counts the record of a span that makes no sense.
func (r *reader) refuse() {
	r.invalid.Add(1)
	r.refused++
	r.targets.state.note(wordInvalid, r.refused)
}

// flush hands the batch over; the sink owns it from then on, and counts what it
// cannot take.
func (r *reader) flush() {
	if len(r.batch) > 0 {
		r.sink.Spans(r.batch)
		r.batch = nil
	}
}

// recordAs looks at the front of a record as a struct of the contract, and returns
// what follows it. ringbuf records are 8-byte aligned, as these structs are.
func recordAs[T any](raw []byte) (*T, []byte, error) {
	var t T
	size := int(unsafe.Sizeof(t))
	if len(raw) < size {
		return nil, nil, fmt.Errorf("record of %d bytes, need %d", len(raw), size)
	}
	return (*T)(unsafe.Pointer(unsafe.SliceData(raw))), raw[size:], nil
}

// wallOffset is what turns CLOCK_MONOTONIC into Unix time, and by how much it may be
// wrong, in ns. The clocks are read one after the other, so the closest of a few looks
// counts.
func wallOffset() (offset, doubt int64) {
	doubt = math.MaxInt64
	for range 5 {
		var mono unix.Timespec
		before := time.Now().UnixNano()
		if unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil {
			continue // cannot be
		}
		if half := (time.Now().UnixNano() - before) / 2; half >= 0 && half < doubt {
			offset, doubt = before+half-mono.Nano(), half
		}
	}
	return offset, doubt
}

package logtext

import (
	"bytes"
	"fmt"
	"strings"
	"time"
	"unsafe"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/plainframework/agent/internal/probes/event"
)

// Assembler makes log records of the writes of one process. It is not safe for
// concurrent use. Its memory is bounded: see maxHeld and maxWriters; what goes
// over them is handed on as it is.
type Assembler struct {
	opts    Options
	limit   limiter
	stats   Stats
	writers map[uint64]*stream
	order   stream    // root of the ring of streams, the one that waits longest first
	free    []*stream // to be used again
	held    int       // bytes of all streams
	rec     record    // reused
}

// stream is the unfinished text of one goroutine.
type stream struct {
	writer     uint64
	prev, next *stream // in the order of last
	last       int64   // when it wrote last

	partial     []byte // the beginning of a line
	partialFrom Chunk  // where that came from, without data
	partialCut  int    // bytes of it that were cut off
	// pieces says that it came as the runtime writes: the first word by itself.
	pieces bool

	// The record that may go on; lines is 0 if there is none.
	record []byte
	from   Chunk
	kind   format
	lines  int
	cut    int
	// crash says that the record may be the runtime's last words, and dying
	// that it is: by how it was written, or by the stacks in it.
	crash, dying bool
}

// clockSet is by how much a time is earlier than one before if the wall clock was set
// back in between.
const clockSet = time.Second

// maxFree bounds the idle streams that are kept.
const maxFree = 64

// New returns an assembler for one process.
func New(opts Options) *Assembler {
	a := &Assembler{opts: opts, writers: map[uint64]*stream{}}
	a.order.prev, a.order.next = &a.order, &a.order
	a.limit.init(opts.Rate, opts.Burst)
	return a
}

// Stats returns the counts so far.
func (a *Assembler) Stats() Stats { return a.stats }

// Write takes one write. It calls emit for each record that is complete by it;
// the records share no memory with the chunk.
func (a *Assembler) Write(c Chunk, emit func(event.Log)) {
	s := a.stream(c)
	data := c.Data
	c.Data = nil
	before := s.size()
	for first := true; len(data) > 0; first = false {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			s.addPartial(c, data)
			if c.Time-s.partialFrom.Time > int64(holdLongest) {
				a.partialLine(s, false, emit)
				a.finish(s, emit)
			}
			break
		}
		line := data[:i]
		data = data[i+1:]
		if len(s.partial) > 0 || s.partialCut > 0 {
			s.addPartial(c, line)
			a.partialLine(s, !first, emit)
			continue
		}
		cut := max(len(line)-maxLine, 0)
		a.line(s, c, line[:len(line)-cut], cut, !first, emit)
	}
	if c.Missing > 0 {
		if len(s.partial) == 0 && s.partialCut == 0 {
			s.partialFrom = c
		}
		s.partialCut += c.Missing
		a.partialLine(s, false, emit)
	}
	a.held += s.size() - before
	if s.idle() {
		a.drop(s)
	}
	for a.held > maxHeld || len(a.writers) > maxWriters {
		a.end(a.order.next, emit)
	}
}

// Flush hands on what has waited long enough at the given time. To be called
// every 50 ms or so.
func (a *Assembler) Flush(now int64, emit func(event.Log)) {
	for s, next := a.order.next, (*stream)(nil); s != &a.order; s = next {
		next = s.next
		age := time.Duration(now - s.last)
		if 0 <= age && age < holdRecord {
			break // the others wrote later
		}
		if age >= s.hold() || age < -clockSet {
			a.end(s, emit)
		}
	}
	a.summarize(now, emit)
}

// Lost tells that so many writes were dropped on the way here, nobody knows of which
// goroutines: no line may go on behind them.
func (a *Assembler) Lost(n uint64, now int64, emit func(event.Log)) {
	a.limit.dropped += n
	for len(a.writers) > 0 {
		a.end(a.order.next, emit)
	}
	a.summarize(now, emit)
}

// Close hands on everything: the process has ended, at the given time.
func (a *Assembler) Close(now int64, emit func(event.Log)) {
	for len(a.writers) > 0 {
		a.end(a.order.next, emit)
	}
	a.limit.lastSummary = 0
	a.summarize(now, emit)
}

// stream returns the stream of the chunk's writer, now the youngest.
func (a *Assembler) stream(c Chunk) *stream {
	s := a.writers[c.Writer]
	switch n := len(a.free); {
	case s != nil:
		s.unlink()
	case n > 0:
		s, a.free = a.free[n-1], a.free[:n-1]
	default:
		s = new(stream)
	}
	if s.next == nil {
		s.writer = c.Writer
		a.writers[c.Writer] = s
	}
	s.prev, s.next = a.order.prev, &a.order
	s.prev.next, s.next.prev = s, s
	s.last = c.Time
	return s
}

func (s *stream) unlink() { s.prev.next, s.next.prev = s.next, s.prev }

// drop forgets an idle stream.
func (a *Assembler) drop(s *stream) {
	s.unlink()
	s.prev, s.next = nil, nil
	delete(a.writers, s.writer)
	if len(a.free) < maxFree {
		a.free = append(a.free, s)
	}
}

// view is b as a string, without a copy, for the time of a call that does not
// keep it.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// end hands on all that a stream holds.
func (a *Assembler) end(s *stream, emit func(event.Log)) {
	a.held -= s.size()
	if len(s.partial) > 0 || s.partialCut > 0 {
		a.partialLine(s, false, emit)
	}
	a.finish(s, emit)
	a.drop(s)
}

func (s *stream) idle() bool { return s.lines == 0 && len(s.partial) == 0 && s.partialCut == 0 }

func (s *stream) size() int { return len(s.partial) + len(s.record) }

func (s *stream) hold() time.Duration {
	switch {
	case s.crash:
		return holdCrash
	case len(s.partial) > 0 || s.partialCut > 0:
		return holdLine
	}
	return holdRecord
}

// addPartial keeps the beginning of a line.
func (s *stream) addPartial(c Chunk, data []byte) {
	if len(s.partial) == 0 && s.partialCut == 0 {
		s.partialFrom = c
		s.pieces = isCrashWord(view(data))
	}
	keep := min(len(data), maxLine-len(s.partial))
	s.partial = append(s.partial, data[:keep]...)
	s.partialCut += len(data) - keep
}

// partialLine ends the line that was kept.
func (a *Assembler) partialLine(s *stream, sameWrite bool, emit func(event.Log)) {
	line, cut := s.partial, s.partialCut
	s.partial, s.partialCut = s.partial[:0], 0
	a.line(s, s.partialFrom, line, cut, sameWrite, emit)
	s.dying = s.dying || s.crash && s.pieces
	s.pieces = false
	if cap(s.partial) > 4<<10 {
		s.partial = nil
	}
}

// line takes one whole line: it belongs to the record held, or begins one.
func (a *Assembler) line(s *stream, c Chunk, line []byte, cut int, sameWrite bool, emit func(event.Log)) {
	a.stats.Lines++
	line = bytes.TrimSuffix(line, []byte{'\r'})
	if s.lines > 0 {
		endless := !s.crash && c.Time-s.from.Time > int64(holdLongest)
		if s.dying || !endless && continues(view(s.record), s.kind, view(line), sameWrite) {
			s.more(line, cut)
			return
		}
		a.finish(s, emit)
	}
	if len(line) == 0 && cut == 0 {
		a.stats.Empty++
		return
	}
	s.from, s.lines, s.cut = c, 1, cut
	s.record = append(s.record[:0], line...)
	s.kind = kindOf(view(line))
	s.crash = isCrashStart(view(line))
	if s.kind == formatJSON && line[len(line)-1] == '}' {
		a.finish(s, emit) // complete by itself
	}
}

// more adds a line to the record held.
func (s *stream) more(line []byte, cut int) {
	s.lines++
	s.cut += cut
	// Once the stacks of a crash begin, whatever follows belongs to it.
	s.dying = s.dying || s.crash && startsStack(view(line))
	if len(s.record)+1+len(line) > maxRecord {
		s.cut += len(line) + 1
		return
	}
	s.record = append(s.record, '\n')
	s.record = append(s.record, line...)
}

// finish hands on the record held, if it is to be.
func (a *Assembler) finish(s *stream, emit func(event.Log)) {
	if s.lines == 0 {
		return
	}
	lines, from, cut := uint64(s.lines), s.from, s.cut
	text := strings.TrimRight(clean(string(s.record)), "\n ")
	s.record, s.lines, s.cut = s.record[:0], 0, 0
	if cap(s.record) > 4<<10 {
		s.record = nil
	}
	crashed, dying := s.crash, s.dying
	s.crash, s.dying = false, false
	a.stats.Truncated += uint64(cut)
	if text == "" && cut == 0 {
		a.stats.Empty += lines
		return
	}
	r := &a.rec
	*r = record{observed: from.Time, attrs: r.attrs[:0]}
	crash := crashed && r.crash(text, dying)
	if !crash {
		if !a.limit.open(from.Time) {
			a.stats.RateLimited += lines
			a.limit.dropped += lines
			return
		}
		r.parse(text, cut > 0)
		switch {
		case r.sev != 0 && r.sev < a.opts.Floor:
			a.stats.BelowFloor += lines
			return
		case r.sdkError():
			a.stats.SDKErrors += lines
			return
		}
		a.limit.take(lines)
	}
	a.stats.Kept += lines
	a.stats.Records++
	emit(a.log(r, from, cut))
}

// log makes the event of a record.
func (a *Assembler) log(r *record, from Chunk, cut int) event.Log {
	if cut > 0 {
		r.put(TruncatedKey.Int(cut))
	}
	l := event.Log{
		Process: a.opts.Process, Scope: a.opts.Scope,
		Time: r.time, Observed: from.Time,
		Severity: r.sev, SeverityText: r.sevText, Body: r.body,
		TraceID: from.TraceID, SpanID: from.SpanID, Flags: from.Flags,
	}
	if !l.TraceID.IsValid() {
		l.TraceID, l.SpanID = r.traceID, r.spanID
	} else if r.traceID.IsValid() && r.traceID != l.TraceID {
		// The program has its own idea of the trace: keep it beside ours.
		r.put(attribute.String("trace_id", r.traceID.String()))
		if r.spanID.IsValid() {
			r.put(attribute.String("span_id", r.spanID.String()))
		}
	}
	l.Attributes = make([]attribute.KeyValue, 0, len(r.attrs)+1)
	l.Attributes = append(append(l.Attributes, semconv.LogIostreamStderr), r.attrs...)
	if a.opts.Redact != nil {
		a.opts.Redact.log(&l)
	}
	return l
}

// summarize reports once in a while what the rate limit dropped.
func (a *Assembler) summarize(now int64, emit func(event.Log)) {
	n := a.limit.summary(now)
	if n == 0 {
		return
	}
	emit(event.Log{
		Process: a.opts.Process, Scope: a.opts.Scope, Observed: now,
		Severity: log.SeverityWarn1, SeverityText: "WARN",
		Body:       fmt.Sprintf("%d lines of this process's log were dropped: it writes too many (logs.rate in the configuration)", n),
		Attributes: []attribute.KeyValue{semconv.LogIostreamStderr, DroppedKey.Int64(int64(n))},
	})
}

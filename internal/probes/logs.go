package probes

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/log"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/logtext"
	"github.com/plainframework/agent/internal/probes/process"
)

// Logs say what becomes of what targets write to standard error.
type Logs struct {
	Capture bool
	Floor   log.Severity      // the least that is kept
	Redact  *logtext.Redactor // nil: nothing is
	Rate    int               // lines a second and process; 0: no limit
	Burst   int               // how many may come at once
}

// The kernel drops lines of a process that writes so many times more than the rate: to
// tell which of them are below the floor costs more than to copy them.
const kernelLeeway = 10

// kernelLimit is what the programs are told of the rate limit.
func (o Logs) kernelLimit() (interval, burst uint64) {
	if o.Rate <= 0 {
		return 0, 0
	}
	interval = uint64(time.Second) / uint64(o.Rate*kernelLeeway)
	return max(interval, 1), uint64(max(o.Burst, 1)*kernelLeeway) * interval
}

const (
	// logFlush is how often lines that wait for more are looked at.
	logFlush = 50 * time.Millisecond
	// logQuiet is how long after the last record of a process the kernel is asked whether it
	// dropped more.
	logQuiet = time.Second
	// logBatch records go to the sink together.
	logBatch = 256
	// exitSettles is how long after the exit of a process its last words are complete.
	exitSettles = 200 * time.Millisecond
)

// logs makes log records of the writes of all targets. The reader writes; a process
// that is retired ends its stream.
type logs struct {
	options    Logs
	scope      *event.Scope
	sink       event.Sink
	exceptions *exceptions
	counts     logCounters

	mu      sync.Mutex
	dropped func(pid int) uint64 // writes of a process that the kernel has dropped so far
	streams map[*target]*logStream
	batch   []event.Log
	open    uint64 // lines in streams that are in no record yet
	flushed time.Time
	state   *State
}

// logStream is the standard error of one process.
type logStream struct {
	assembler *logtext.Assembler
	dropped   uint64        // writes that the kernel had dropped when it was last heard of
	written   time.Time     // when the last record came; zero once the kernel was asked after it
	counted   logtext.Stats // what of its counts is in logs.counts
	open      uint64        // of logs.open
}

// logCounters are those of all processes.
type logCounters struct {
	writes, lines, kept, belowFloor, limited, sdkErrors, empty, unread, refused atomic.Uint64
}

func newLogs(o Logs, sink event.Sink, e *exceptions, state *State, version string, dropped func(pid int) uint64) *logs {
	return &logs{
		state: state, dropped: dropped, options: o, scope: scopeOf(&standardError, version), sink: sink, exceptions: e,
		streams: map[*target]*logStream{},
	}
}

// write takes one record of the kernel; offset turns its clock into Unix time.
func (l *logs) write(t *target, r *bpf.AgentStderrRecord, text []byte, offset int64) {
	if t.withoutLogs {
		return
	}
	c := logtext.Chunk{
		Time: int64(r.Header.StartNs) + offset, Writer: r.Writer, Missing: int(r.Missing),
		TraceID: trace.TraceID(r.Header.TraceId), SpanID: trace.SpanID(r.Header.SpanId),
		Flags: trace.TraceFlags(r.TraceFlags),
	}
	n := min(int(r.Len), len(text))
	if r.Unread == 0 {
		c.Data = text[:n]
	} else if c.Data = t.literal(r.Unread, n); c.Data == nil {
		c.Missing += n
		l.counts.unread.Add(1)
	}
	l.counts.writes.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stream(t)
	l.lost(s, r.Dropped, c.Time)
	s.written = time.Now()
	s.assembler.Write(c, l.emit)
	l.mark(s)
}

// lost is told how many writes of a stream's process the kernel has dropped so far.
func (l *logs) lost(s *logStream, dropped uint64, now int64) {
	if dropped > s.dropped {
		s.assembler.Lost(dropped-s.dropped, now, l.emit)
		s.dropped = dropped
	}
}

// ask hears of writes that were dropped behind the last record of a stream.
func (l *logs) ask(t *target, s *logStream, now int64) {
	s.written = time.Time{}
	l.lost(s, l.dropped(t.process.PID), now)
}

// mark notes how many lines would be lost if the agent were killed now; the caller holds
// mu.
func (l *logs) mark(s *logStream) {
	n := s.assembler.Stats()
	open := n.Lines - n.Kept - n.BelowFloor - n.RateLimited - n.SDKErrors - n.Empty
	l.open += open - s.open
	s.open = open
	l.state.note(wordLogsOpen, l.open+uint64(len(l.batch)))
}

// stream is that of a target; the caller holds mu.
func (l *logs) stream(t *target) *logStream {
	s := l.streams[t]
	if s == nil {
		rate := l.options.Rate
		if rate <= 0 {
			rate = -1
		}
		s = &logStream{assembler: logtext.New(logtext.Options{
			Process: t.process, Scope: l.scope, Floor: l.options.Floor,
			Redact: l.options.Redact, Rate: rate, Burst: l.options.Burst,
		})}
		l.streams[t] = s
	}
	return s
}

// emit takes a finished record; the caller holds mu.
func (l *logs) emit(record event.Log) {
	l.exceptions.logged(&record)
	if l.batch == nil {
		l.batch = make([]event.Log, 0, logBatch)
	}
	l.batch = append(l.batch, record)
	if len(l.batch) == logBatch {
		l.hand()
	}
}

func (l *logs) hand() {
	if n := len(l.batch); n > 0 {
		l.counts.refused.Add(uint64(n - l.sink.Logs(l.batch)))
		l.batch = nil
		l.state.note(wordLogsOpen, l.open)
	}
}

// flush hands on what has waited long enough, and ends the streams of processes that
// have exited.
func (l *logs) flush(now time.Time, goneAt func(*target) time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.flushed) < logFlush {
		return
	}
	l.flushed = now
	for t, s := range l.streams {
		if at := goneAt(t); !at.IsZero() && now.Sub(at) > exitSettles {
			l.end(t, s)
			continue
		}
		if !s.written.IsZero() && now.Sub(s.written) > logQuiet {
			l.ask(t, s, now.UnixNano())
		}
		s.assembler.Flush(now.UnixNano(), l.emit)
		l.count(s)
	}
	l.hand()
}

// retire ends the stream of a process that is gone.
func (l *logs) retire(t *target) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.streams[t]; s != nil {
		l.end(t, s)
		l.hand()
	}
}

// close ends every stream: the agent stops.
func (l *logs) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for t, s := range l.streams {
		l.end(t, s)
	}
	l.hand()
}

func (l *logs) end(t *target, s *logStream) {
	now := time.Now().UnixNano()
	l.ask(t, s, now)
	s.assembler.Close(now, l.emit)
	l.count(s)
	delete(l.streams, t)
}

// count adds what a stream has counted since the last time.
func (l *logs) count(s *logStream) {
	now, was := s.assembler.Stats(), s.counted
	l.counts.lines.Add(now.Lines - was.Lines)
	l.counts.kept.Add(now.Kept - was.Kept)
	l.counts.belowFloor.Add(now.BelowFloor - was.BelowFloor)
	l.counts.limited.Add(now.RateLimited - was.RateLimited)
	l.counts.sdkErrors.Add(now.SDKErrors - was.SDKErrors)
	l.counts.empty.Add(now.Empty - was.Empty)
	s.counted = now
	l.mark(s)
}

// maxLiteral is how much of a literal is read from an executable.
const maxLiteral = 64 << 10

// literal reads a constant text of the program from its executable: it was not in
// memory yet when the kernel wanted it. Nil if it is not there.
func (t *target) literal(addr uint64, n int) []byte {
	if n <= 0 || t.binary.info == nil {
		return nil
	}
	offset, ok := t.binary.info.FileOffset(addr)
	if !ok {
		return nil
	}
	text := make([]byte, min(n, maxLiteral))
	if _, err := t.binary.exe.ReadAt(text, int64(offset)); err != nil {
		return nil
	}
	return text
}

// status says where the writes went.
func (c *logCounters) status() LogCounts {
	return LogCounts{
		Writes: c.writes.Load(), Lines: c.lines.Load(), Kept: c.kept.Load(),
		BelowFloor: c.belowFloor.Load(), RateLimited: c.limited.Load(),
		SDKErrors: c.sdkErrors.Load(), Empty: c.empty.Load(), Unread: c.unread.Load(),
	}
}

// asksForNoLogs tells whether a process has the setting of logs in its own environment,
// switched off: many nodes have a collector of logs already.
func asksForNoLogs(p *process.Process) bool {
	env, err := p.Environ()
	if err != nil {
		return false
	}
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, "PLAIN_CLOUD_EXPORT_LOGS="); ok {
			on, err := strconv.ParseBool(strings.ToLower(value))
			return err == nil && !on
		}
	}
	return false
}

// droppedLogs is how many writes of a process were dropped so far; 0 if it is not known.
func (k *kernel) droppedLogs(pid int) uint64 {
	var p bpf.AgentProcess
	if k.mapOf("processes").Lookup(uint32(pid), &p) != nil {
		return 0
	}
	return p.Counters[bpf.AgentCounterCOUNT_LOGS_DROPPED]
}

// captureLogs tells the programs whether a process is to be left alone.
func (k *kernel) captureLogs(pid int, capture bool) {
	m := k.mapOf("without_logs")
	if capture {
		_ = m.Delete(uint32(pid)) // it was hardly ever there
		return
	}
	// Without an entry its writes are dropped a little later.
	_ = m.Put(uint32(pid), uint32(1))
}

// goneAt is when a process was seen to have exited, zero if it was not.
func (t *targets) goneAt(tg *target) time.Time {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return tg.goneAt
}

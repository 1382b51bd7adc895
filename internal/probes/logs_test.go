package probes

import (
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/logtext"
)

// logSink keeps log records.
type logSink struct{ logs []event.Log }

func (s *logSink) Spans(spans []event.Span) int                      { return len(spans) }
func (s *logSink) Metrics(h []event.Histogram, _ []event.Number) int { return len(h) }
func (s *logSink) Logs(l []event.Log) int {
	s.logs = append(s.logs, l...)
	return len(l)
}

func (s *logSink) bodies() string {
	var all []string
	for _, l := range s.logs {
		all = append(all, l.Body)
	}
	return strings.Join(all, "|")
}

// dropped is how many lines the records say to be dropped.
func (s *logSink) dropped() (said int64) {
	for _, r := range s.logs {
		for _, kv := range r.Attributes {
			if kv.Key == logtext.DroppedKey {
				said += kv.Value.AsInt64()
			}
		}
	}
	return said
}

func newTestLogs(o Logs) (*logs, *logSink) {
	sink := &logSink{}
	return newLogs(o, sink, newExceptions(), nil, "test", func(int) uint64 { return 0 }), sink
}

func record(goid uint64, text string, dropped uint64) (*bpf.AgentStderrRecord, []byte) {
	r := &bpf.AgentStderrRecord{Writer: goid, Len: uint32(len(text)), Dropped: dropped}
	r.Header.StartNs = uint64(time.Second)
	return r, []byte(text)
}

// TestLogsGap: what was dropped is said, and no line goes on behind it.
func TestLogsGap(t *testing.T) {
	l, sink := newTestLogs(Logs{})
	tg := &target{process: &event.Process{PID: 7}}
	write := func(goid uint64, text string, dropped uint64) {
		r, b := record(goid, text, dropped)
		l.write(tg, r, b, 0)
	}
	write(1, "the beginning, ", 0)
	write(2, "another\n", 0)
	write(1, "not its end\n", 3)
	l.retire(tg)
	got := sink.bodies()
	if !strings.Contains(got, "the beginning,") || strings.Contains(got, "the beginning, not") {
		t.Errorf("records %q: a line goes on over a gap", got)
	}
	if said := sink.dropped(); said != 3 {
		t.Errorf("the records speak of %d dropped lines, not 3", said)
	}
	if len(l.streams) != 0 {
		t.Error("the stream of a process that is gone stays")
	}
}

// TestLogsLastDropped: what was dropped behind the last record is said once the process is
// quiet, and at the latest when it ends.
func TestLogsLastDropped(t *testing.T) {
	l, sink := newTestLogs(Logs{})
	dropped := uint64(2)
	l.dropped = func(pid int) uint64 {
		if pid != 7 {
			t.Errorf("asked for process %d", pid)
		}
		return dropped
	}
	tg := &target{process: &event.Process{PID: 7}}
	running := func(*target) time.Time { return time.Time{} }
	r, b := record(1, "a line\n", 2)
	l.write(tg, r, b, time.Now().UnixNano()-int64(r.Header.StartNs))
	dropped = 3
	l.flush(time.Now().Add(logQuiet/2), running)
	if said := sink.dropped(); said != 2 {
		t.Errorf("%d dropped lines are said while it writes, not 2", said)
	}
	l.flush(time.Now().Add(20*logQuiet), running)
	if said := sink.dropped(); said != 3 {
		t.Errorf("%d dropped lines are said when it is quiet, not 3", said)
	}
	dropped = 5
	l.retire(tg)
	if said := sink.dropped(); said != 5 {
		t.Errorf("%d dropped lines are said at its end, not 5", said)
	}
}

// TestLogsExit: the last words of a process do not wait until it is forgotten.
func TestLogsExit(t *testing.T) {
	l, sink := newTestLogs(Logs{})
	tg := &target{process: &event.Process{PID: 7}}
	r, b := record(1, "no end", 0)
	gone := time.Now()
	l.write(tg, r, b, gone.UnixNano()-int64(r.Header.StartNs))
	l.flush(gone.Add(exitSettles/2), func(*target) time.Time { return gone })
	if len(sink.logs) != 0 {
		t.Fatal("an unfinished line does not wait")
	}
	l.flush(gone.Add(2*exitSettles), func(*target) time.Time { return gone })
	if sink.bodies() != "no end" {
		t.Errorf("records %q", sink.bodies())
	}
}

// TestLogsRecordLies: lengths in a record are not believed.
func TestLogsRecordLies(t *testing.T) {
	l, sink := newTestLogs(Logs{})
	tg := &target{process: &event.Process{PID: 7}}
	r, b := record(1, "short\n", 0)
	r.Len = 1 << 31
	l.write(tg, r, b, 0)
	l.close()
	if sink.bodies() != "short" {
		t.Errorf("records %q", sink.bodies())
	}
}

func TestKernelLimit(t *testing.T) {
	interval, burst := Logs{Rate: 1000, Burst: 5000}.kernelLimit()
	if interval != 100_000 || burst != 50_000*100_000 {
		t.Errorf("every %d ns, %d ns ahead: not ten times 1000 a second and 5000 at once", interval, burst)
	}
	if interval, _ := (Logs{}).kernelLimit(); interval != 0 {
		t.Error("a limit where there is none")
	}
	if interval, _ := (Logs{Rate: 1 << 40}).kernelLimit(); interval == 0 {
		t.Error("a high rate is no rate")
	}
}

func TestExceptions(t *testing.T) {
	span := func(id byte) event.Span {
		return event.Span{SpanID: trace.SpanID{id}, Attributes: []attribute.KeyValue{attribute.String("error.type", "string")}}
	}
	e := newExceptions()
	now := time.Now()
	if !e.hold(span(1), now) || !e.hold(span(2), now) {
		t.Fatal("no room")
	}
	if got := e.release(now); len(got) != 0 {
		t.Fatalf("%d spans do not wait", len(got))
	}
	e.logged(&event.Log{SpanID: trace.SpanID{1}, Body: "a line before"})
	e.logged(&event.Log{SpanID: trace.SpanID{1}, Body: "http: panic serving [::1]:5: it burns: badly\n\ngoroutine 7 [running]:\nmain.f()"})
	got := e.release(now)
	if len(got) != 1 || got[0].SpanID != (trace.SpanID{1}) {
		t.Fatalf("released %v", got)
	}
	want := map[attribute.Key]string{
		"exception.type": "string", "exception.message": "it burns: badly",
		"exception.stacktrace": "goroutine 7 [running]:\nmain.f()",
	}
	for _, kv := range got[0].Events[0].Attributes {
		if want[kv.Key] != kv.Value.AsString() {
			t.Errorf("%s is %q", kv.Key, kv.Value.AsString())
		}
		delete(want, kv.Key)
	}
	if len(want) > 0 {
		t.Errorf("missing %v", want)
	}
	if got := e.release(now.Add(2 * exceptionWait)); len(got) != 1 || len(got[0].Events) != 1 {
		t.Errorf("after the wait: %v", got)
	}
	for i := range maxExceptions {
		e.hold(event.Span{SpanID: trace.SpanID{3, byte(i), byte(i >> 8)}}, now)
	}
	if e.hold(span(9), now) {
		t.Error("no bound on what waits")
	}
}

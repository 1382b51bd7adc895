package logtext

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/log"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/probes/event"
)

// base is a time at which tests run: 2026-03-04 05:06:07 UTC.
const base = int64(1772600767) * int64(time.Second)

// step is one write of a test: who, after how many ms, what.
type step struct {
	writer uint64
	ms     int64
	text   string
}

// run feeds steps and returns the records; the process ends after them.
func run(opts Options, steps ...step) ([]event.Log, Stats) {
	a := New(opts)
	var logs []event.Log
	emit := func(l event.Log) { logs = append(logs, l) }
	now := base
	for _, s := range steps {
		now += s.ms * int64(time.Millisecond)
		a.Flush(now, emit)
		a.Write(Chunk{Time: now, Writer: s.writer, Data: []byte(s.text), SpanID: trace.SpanID{byte(s.writer)}, TraceID: trace.TraceID{byte(s.writer)}}, emit)
	}
	a.Close(now, emit)
	return logs, a.Stats()
}

func bodies(logs []event.Log) []string {
	var list []string
	for _, l := range logs {
		list = append(list, l.Body)
	}
	return list
}

func attr(l event.Log, key string) string {
	for _, kv := range l.Attributes {
		if string(kv.Key) == key {
			return kv.Value.String()
		}
	}
	return ""
}

func TestAssemble(t *testing.T) {
	tests := []struct {
		name  string
		steps []step
		want  []string
	}{
		{"lines", []step{{1, 0, "a\nb\n"}, {1, 0, "c\n"}}, []string{"a", "b", "c"}},
		{"pieces of one goroutine", []step{{1, 0, "a"}, {1, 10, "b"}, {1, 500, "c\nd"}, {1, 900, "e\n"}}, []string{"abc", "de"}},
		{"a line that never ends", []step{{1, 0, "a"}, {2, 1500, "x\n"}, {1, 0, "b\n"}}, []string{"a", "x", "b"}},
		{"two goroutines, interleaved", []step{{1, 0, "a1 "}, {2, 0, "b1 "}, {1, 0, "a2\n"}, {2, 0, "b2\n"}}, []string{"a1 a2", "b1 b2"}},
		{"indented lines of the same goroutine only", []step{{1, 0, "a\n"}, {2, 0, "  b\n"}, {1, 0, "  c\n"}}, []string{"  b", "a\n  c"}},
		{"an indented line too late", []step{{1, 0, "a\n"}, {1, 150, "  b\n"}}, []string{"a", "  b"}},
		{"no newline at the end", []step{{1, 0, "a\nb"}}, []string{"a", "b"}},
		{"empty lines", []step{{1, 0, "\n\na\n\n"}, {1, 0, "\r\n"}, {1, 0, "b\r\n"}}, []string{"a", "b"}},
		{"message with line breaks in one write", []step{{1, 0, "2026/03/04 05:06:07 a\nb\nc\n"}, {1, 0, "d\n"}}, []string{"a\nb\nc", "d"}},
		{"buffered records in one write", []step{{1, 0, "2026/03/04 05:06:07 a\n2026/03/04 05:06:07 b\n{\"level\":\"info\",\"msg\":\"c\"}\nd\n"}}, []string{"a", "b", "c", "d"}},
		{"plain lines in one write stay apart", []step{{1, 0, "a\nb\n"}}, []string{"a", "b"}},
		{"JSON over several lines", []step{{1, 0, "{\n"}, {1, 0, "  \"level\": \"info\",\n"}, {1, 0, "  \"msg\": \"a\"\n"}, {1, 0, "}\n"}, {1, 0, "b\n"}}, []string{"a", "b"}},
		{"JSON is complete at once", []step{{1, 0, "{\"level\":\"info\",\"msg\":\"a\"}\n"}, {1, 0, "  b\n"}}, []string{"a", "  b"}},
		{"not JSON after all", []step{{1, 0, "{\"level\":\"info\",\"msg\":\"a\"\n"}, {1, 0, "{x}\n"}}, []string{"{\"level\":\"info\",\"msg\":\"a\"", "{x}"}},
		{"JSON that is no record", []step{{1, 0, "{\"a\":1}\n"}}, []string{"{\"a\":1}"}},
		{"NUL and invalid text", []step{{1, 0, "a\x00b\xff\xc3\n"}, {1, 0, "{\"msg\":\"a\\u0000\\ud800b\xff\",\"level\":\"x\"}\n"}}, []string{"a␀b\uFFFD", "a␀\uFFFDb\uFFFD"}},
		{"colours", []step{{1, 0, "\x1b[1;31mred\x1b[0m \x1b[ \x1b]0;t\n"}}, []string{"red \x1b[ \x1b]0;t"}},
		{"not a crash", []step{{1, 0, "panic: x\n"}, {1, 0, "y\n"}, {1, 0, "fatal error: z\n"}}, []string{"panic: x", "y", "fatal error: z"}},
		{"crash without stack", []step{{1, 0, "panic: "}, {1, 0, "x"}, {1, 0, "\n"}}, []string{"panic: x"}},
		{"a stack right after a record", []step{{1, 0, "a\n"}, {1, 0, "goroutine 1 [running]:\nmain.f()\n\t/a.go:1 +0x1\nmain.main()\n\t/a.go:2 +0x1\n"}}, []string{"a", "goroutine 1 [running]:"}},
		{"sentences after indented text", []step{{1, 0, "a\n\tb\n"}, {1, 0, "Then it went on.\n"}, {1, 0, "done.\n"}}, []string{"a\n\tb", "Then it went on.", "done."}},
	}
	for _, tt := range tests {
		logs, st := run(Options{}, tt.steps...)
		if got := bodies(logs); fmt.Sprintf("%q", got) != fmt.Sprintf("%q", tt.want) {
			t.Errorf("%s:\n got %q\nwant %q", tt.name, got, tt.want)
		}
		checkStats(t, st)
		for _, l := range logs {
			if l.TraceID[0] != l.SpanID[0] || l.TraceID[0] == 0 || attr(l, "log.iostream") != "stderr" {
				t.Errorf("%s: record %+v", tt.name, l)
			}
		}
	}
}

func checkStats(t *testing.T, st Stats) {
	t.Helper()
	if sum := st.Kept + st.BelowFloor + st.RateLimited + st.SDKErrors + st.Empty; sum != st.Lines {
		t.Errorf("%d lines seen, %d accounted for: %+v", st.Lines, sum, st)
	}
}

// TestPieces feeds the captures in random pieces of one goroutine, between the
// random pieces of another: the records are the same, but where one write
// makes several lines one record.
func TestPieces(t *testing.T) {
	files, _ := filepath.Glob("testdata/golden/*.writes")
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, file := range files {
		switch name := filepath.Base(file); name {
		case "log.writes", "klog.writes", "logrus-tty.writes", "served-panic.writes", "plain.writes":
			continue // messages with line breaks in one write
		case "zap-console.writes", "zap-console-epoch.writes", "zap-iso.writes":
			continue
		}
		c := readCapture(t, file)
		text := strings.Join(c.writes, "")
		whole := feed(c.start, func(write func(uint64, string)) {
			for _, w := range c.writes {
				write(1, w)
			}
		})
		for range 5 {
			pieces := feed(c.start, func(write func(uint64, string)) {
				for rest := text; rest != ""; {
					n := 1 + rnd.IntN(min(len(rest), 1+rnd.IntN(80)))
					// The runtime's first word comes whole.
					if strings.HasPrefix(rest, "panic: ") || strings.HasPrefix(rest, "fatal error: ") {
						n = strings.IndexByte(rest, ':') + 2
					} else if i := strings.LastIndexByte(rest[:n], '\n'); i >= 0 {
						n = i + 1 // no line but the first begins inside a piece
					}
					write(1, rest[:n])
					rest = rest[n:]
					write(2, "other ")
				}
			})
			if pieces != whole {
				t.Errorf("%s: in pieces\n got:\n%s\nwant:\n%s", file, pieces, whole)
				break
			}
		}
	}
}

func feed(start int64, writes func(func(uint64, string))) string {
	a := New(Options{Rate: -1})
	var b strings.Builder
	emit := func(l event.Log) {
		if l.TraceID[0] == 1 {
			b.WriteString(show(l, start))
		}
	}
	writes(func(writer uint64, text string) {
		a.Write(Chunk{Time: start, Writer: writer, Data: []byte(text), TraceID: trace.TraceID{byte(writer)}, SpanID: trace.SpanID{1}}, emit)
	})
	a.Close(start, emit)
	return b.String()
}

func TestNeedsCleaning(t *testing.T) {
	plain := "0123456789\t abc~\x7f\x1a\x1c\x01 and more of it"
	if needsCleaning(plain) || needsCleaning("") {
		t.Error("plain text needs cleaning")
	}
	for i := range len(plain) {
		for _, c := range []string{"\x00", "\x1b", "\x80", "\xff", "ä"} {
			if !needsCleaning(plain[:i] + c + plain[i+1:]) {
				t.Errorf("%q at %d is not seen", c, i)
			}
		}
	}
}

func TestLongLines(t *testing.T) {
	line := strings.Repeat("x", maxLine)
	tests := []struct {
		name  string
		steps []step
		size  int
		cut   string
	}{
		{"64 KiB at once", []step{{1, 0, line + "\n"}}, maxLine, ""},
		{"64 KiB in pieces", []step{{1, 0, line[:1]}, {1, 0, line[:40000]}, {1, 0, line[:maxLine-40001]}, {1, 0, "\n"}}, maxLine, ""},
		{"more at once", []step{{1, 0, line + "yyy\n"}}, maxLine, "3"},
		{"more in pieces", []step{{1, 0, line}, {1, 0, "y"}, {1, 0, "yy\n"}}, maxLine, "3"},
		{"more, no end", []step{{1, 0, line}, {1, 0, "y"}}, maxLine, "1"},
		{"a long record", []step{{1, 0, "a\n"}, {1, 0, " " + line[2:] + "\n"}, {1, 0, " " + line[2:] + "\n"}, {1, 0, " b\n"}}, maxLine + 1 + 3, "65536"},
	}
	for _, tt := range tests {
		logs, st := run(Options{}, tt.steps...)
		if len(logs) != 1 || len(logs[0].Body) != tt.size || attr(logs[0], string(TruncatedKey)) != tt.cut {
			t.Errorf("%s: %d records, %d bytes, cut %q", tt.name, len(logs), len(logs[0].Body), attr(logs[0], string(TruncatedKey)))
		}
		if fmt.Sprint(st.Truncated) != tt.cut && tt.cut != "" {
			t.Errorf("%s: counted %d", tt.name, st.Truncated)
		}
		checkStats(t, st)
	}
}

func TestMissing(t *testing.T) {
	var logs []event.Log
	emit := func(l event.Log) { logs = append(logs, l) }
	a := New(Options{})
	a.Write(Chunk{Time: base, Writer: 1, Data: []byte("a\nbc"), Missing: 7}, emit)
	a.Write(Chunk{Time: base, Writer: 1, Data: []byte("d\n")}, emit)
	a.Write(Chunk{Time: base, Writer: 1, Missing: 9}, emit)
	a.Close(base, emit)
	if len(logs) != 4 || logs[1].Body != "bc" || attr(logs[1], string(TruncatedKey)) != "7" || logs[2].Body != "d" || attr(logs[3], string(TruncatedKey)) != "9" {
		t.Errorf("%+v", logs)
	}
	checkStats(t, a.Stats())
}

func TestParts(t *testing.T) {
	many := `{"level":"info","msg":"m","list":[` + strings.Repeat("1,", 3000) + `1],"after":true}`
	deep := `{"level":"info","msg":"m","x":` + strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20) + `,"after":true}`
	stack := `goroutine 5 [running]:\nmain.f()\n\t/a.go:1 +0x1`
	tests := []struct{ name, line, key, want string }{
		{"many values", many, "after", "true"},
		{"deep values", deep, "after", "true"},
		{"handler panic through another logger", `{"level":"INFO","msg":"http: panic serving 1.2.3.4:5: boom\n` + stack + `"}`, "exception.message", "boom"},
		{"stack in a message", `{"level":"error","msg":"m\n` + stack + `"}`, "exception.stacktrace", strings.NewReplacer(`\n`, "\n", `\t`, "\t").Replace(stack)},
		{"lines in a message", `{"level":"error","msg":"a\nb","x":1}`, "x", "1"},
	}
	for _, tt := range tests {
		logs, _ := run(Options{}, step{1, 0, tt.line + "\n"})
		if len(logs) != 1 || attr(logs[0], tt.key) != tt.want || logs[0].Severity == 0 || logs[0].Body == tt.line {
			t.Errorf("%s: %+v", tt.name, logs)
		}
	}
	var l event.Log
	a := New(Options{})
	a.Write(Chunk{Time: base, Writer: 1, Data: []byte(`{"level":"warn","msg":"m","a":1,"b":"cut he`), Missing: 100}, func(x event.Log) { l = x })
	a.Close(base, func(x event.Log) { l = x })
	if l.Body != "m" || l.Severity != log.SeverityWarn1 || attr(l, "a") != "1" || attr(l, string(TruncatedKey)) != "100" {
		t.Errorf("cut JSON: %+v", l)
	}
}

// TestBounded gives an assembler more unfinished text than it may keep.
func TestBounded(t *testing.T) {
	a := New(Options{Rate: -1})
	n := 0
	emit := func(l event.Log) { n++ }
	for i := range 3 * maxWriters {
		a.Write(Chunk{Time: base, Writer: uint64(i), Data: []byte("held\n")}, emit)
	}
	if len(a.writers) > maxWriters || n != 2*maxWriters {
		t.Errorf("%d writers, %d records", len(a.writers), n)
	}
	for i := range 100 {
		a.Write(Chunk{Time: base, Writer: uint64(1e6 + i), Data: make([]byte, maxLine)}, emit)
		held := 0
		for _, s := range a.writers {
			held += s.size()
		}
		if held != a.held || held > maxHeld {
			t.Fatalf("%d bytes held, %d counted", held, a.held)
		}
	}
	a.Close(base, emit)
	if a.held != 0 || len(a.writers) != 0 || a.order.next != &a.order {
		t.Errorf("after Close: %d bytes, %d writers", a.held, len(a.writers))
	}
	checkStats(t, a.Stats())
}

func TestHold(t *testing.T) {
	var logs []event.Log
	emit := func(l event.Log) { logs = append(logs, l) }
	a := New(Options{})
	ms := int64(time.Millisecond)
	a.Write(Chunk{Time: base, Writer: 1, Data: []byte("line\n")}, emit)
	a.Write(Chunk{Time: base + 10*ms, Writer: 2, Data: []byte("part")}, emit)
	a.Write(Chunk{Time: base + 20*ms, Writer: 3, Data: []byte("panic: x\n")}, emit)
	for _, tt := range []struct {
		ms   int64
		want int
	}{{99, 0}, {100, 1}, {1009, 1}, {1010, 2}, {2019, 2}, {2020, 3}} {
		a.Flush(base+tt.ms*ms, emit)
		if len(logs) != tt.want {
			t.Errorf("after %d ms: %q", tt.ms, bodies(logs))
		}
	}
}

// TestTraceIDs: the kernel's span counts; what the line says is used where
// there is none.
func TestTraceIDs(t *testing.T) {
	line := []byte(`{"level":"info","msg":"x","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","span_id":"00f067aa0ba902b7","traceID":"short","span.id":"0000000000000000"}` + "\n")
	var l event.Log
	emit := func(x event.Log) { l = x }
	a := New(Options{})
	a.Write(Chunk{Time: base, Writer: 1, Data: line}, emit)
	if l.TraceID.String() != "4bf92f3577b34da6a3ce929d0e0e4736" || l.SpanID.String() != "00f067aa0ba902b7" || attr(l, "trace_id") != "" || attr(l, "traceID") != "short" {
		t.Errorf("none by the kernel: %+v", l)
	}
	a.Write(Chunk{Time: base, Writer: 1, Data: line, TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, Flags: 1}, emit)
	if l.TraceID != (trace.TraceID{1}) || l.SpanID != (trace.SpanID{2}) || l.Flags != 1 || attr(l, "trace_id") != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("another by the kernel: %+v", l)
	}
}

// TestManyGoroutines: 100,000 lines of 100 goroutines, in pieces of any size,
// arrive once, whole, with the right span.
func TestManyGoroutines(t *testing.T) {
	const goroutines, lines = 100, 1000
	rnd := rand.New(rand.NewPCG(5, 6))
	a := New(Options{Rate: -1})
	seen := make([]int, goroutines)
	emit := func(l event.Log) {
		var g, n int
		if _, err := fmt.Sscanf(l.Body, "goroutine %d line %d end", &g, &n); err != nil || int(l.TraceID[0]) != g+1 || n != seen[g] {
			t.Fatalf("record %q with span of %d, want line %d", l.Body, int(l.TraceID[0])-1, seen[g])
		}
		seen[g]++
	}
	rest := make([]string, goroutines)
	for g := range goroutines {
		var b strings.Builder
		for n := range lines {
			switch n % 3 {
			case 0:
				fmt.Fprintf(&b, "goroutine %d line %d end\n", g, n)
			case 1:
				fmt.Fprintf(&b, "2026/03/04 05:06:07 goroutine %d line %d end\n", g, n)
			case 2:
				fmt.Fprintf(&b, "{\"level\":\"info\",\"msg\":\"goroutine %d line %d end\"}\n", g, n)
			}
		}
		rest[g] = b.String()
	}
	now := base
	for left := goroutines; left > 0; {
		g := rnd.IntN(goroutines)
		if rest[g] == "" {
			continue
		}
		n := min(1+rnd.IntN(200), len(rest[g]))
		now += 1000
		a.Write(Chunk{Time: now, Writer: uint64(g), Data: []byte(rest[g][:n]), TraceID: trace.TraceID{byte(g + 1)}, SpanID: trace.SpanID{1}}, emit)
		if rest[g] = rest[g][n:]; rest[g] == "" {
			left--
		}
		if rnd.IntN(1000) == 0 {
			a.Flush(now, emit)
		}
	}
	a.Close(now, emit)
	for g, n := range seen {
		if n != lines {
			t.Errorf("goroutine %d: %d lines", g, n)
		}
	}
	checkStats(t, a.Stats())
}

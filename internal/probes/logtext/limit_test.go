package logtext

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/log"

	"github.com/plainframework/agent/internal/probes/event"
)

// TestBoundedTime: no text costs more than its length, as one line and as
// many.
func TestBoundedTime(t *testing.T) {
	redactor, err := NewRedactor(true, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []string{
		"eyJ-", "eyJ.", "ghp_-", "password=", "password='", `a="\"`, `a="x"y `, `"a `, "://a:", "-----BEGIN ", "1234 ", "1", "basic ", "authorization: bearer ",
		"{", `{"a":`, "[", `{"a":[`, `\u0000`, "\x1b[", "\x1b", "\x00", "\xff", "a=b ", "a=", "goroutine 1 [running]:", "2026/03/04 05:06:07 ", "panic: ",
		"\tat a.go:1 ", "main.f(", "I0102 15:04:05.067890 1 a.go:1] ", "05:06:07 ", "time=", "= ", ": ", "http: panic serving ", "}", "\\",
	} {
		for _, end := range []string{"", "\n", "\n\t"} {
			text := []byte(strings.Repeat(piece+end, (1<<18)/len(piece+end)))
			a := New(Options{Rate: -1, Redact: redactor})
			emit := func(event.Log) {}
			start := time.Now()
			for rest := text; len(rest) > 0; {
				n := min(len(rest), 16<<10)
				a.Write(Chunk{Time: base, Writer: 1, Data: rest[:n]}, emit)
				rest = rest[n:]
			}
			a.Close(base, emit)
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("256 KiB of %q took %v", piece+end, d)
			} else if d > time.Second {
				t.Logf("256 KiB of %q took %v", piece+end, d)
			}
		}
	}
}

// TestEndless: what never ends is handed on all the same.
func TestEndless(t *testing.T) {
	for _, text := range []string{"\tindented\n", "."} {
		a := New(Options{Rate: -1})
		n := 0
		for i := range 300 {
			a.Write(Chunk{Time: base + int64(i)*int64(50*time.Millisecond), Writer: 1, Data: []byte(text)}, func(event.Log) { n++ })
			a.Flush(base+int64(i)*int64(50*time.Millisecond), func(event.Log) { n++ })
		}
		if n != 1 {
			t.Errorf("%d records in 15 s of %q", n, text)
		}
	}
}

func TestFloor(t *testing.T) {
	text := `{"level":"debug","msg":"d"}
{"level":"info","msg":"i"}
{"level":"warn","msg":"w"}
{"level":30,"msg":"number"}
no level
`
	logs, st := run(Options{Floor: log.SeverityWarn1}, step{1, 0, text})
	if got := fmt.Sprint(bodies(logs)); got != "[w number no level]" || st.BelowFloor != 2 {
		t.Errorf("%s, %+v", got, st)
	}
	checkStats(t, st)
}

func TestRateLimit(t *testing.T) {
	var steps []step
	for range 300 {
		steps = append(steps, step{1, 1, "{\"level\":\"info\",\"msg\":\"x\"}\n"})
	}
	logs, st := run(Options{Rate: 100, Burst: 50}, steps...)
	// 50 at once, and 100 a second for 0.3 s.
	kept, summarized := 0, uint64(0)
	for _, l := range logs {
		if l.Body == "x" {
			kept++
			continue
		}
		var n uint64
		fmt.Sscan(attr(l, string(DroppedKey)), &n)
		summarized += n
	}
	if kept < 79 || kept > 81 || uint64(kept) != st.Kept || st.RateLimited != summarized || st.RateLimited != uint64(300-kept) {
		t.Errorf("%d kept, %d summarized, %+v", kept, summarized, st)
	}
	if n := len(logs) - kept; n != 2 {
		t.Errorf("%d summaries", n)
	}
	checkStats(t, st)
	// A crash passes a full limit.
	logs, _ = run(Options{Rate: 1, Burst: 1}, step{1, 0, "a\n"}, step{2, 0, "b\n"}, step{1, 0, "panic: "}, step{1, 0, "x\n\ngoroutine 1 [running]:\n"})
	if got := bodies(logs); !strings.Contains(fmt.Sprint(got), "panic: x") {
		t.Errorf("%q", got)
	}
	if _, st = run(Options{Rate: -1}, steps...); st.Kept != 300 {
		t.Errorf("no limit: %+v", st)
	}
}

func TestSDKErrors(t *testing.T) {
	tests := map[string]bool{
		`2026/03/04 05:06:07 traces export: Post "http://localhost:4318/v1/traces": dial tcp [::1]:4318: connect: connection refused`: true,
		`2026/03/04 05:06:07 traces export: exporter export timeout: rpc error: code = Unavailable`:                                   true,
		`2026/03/04 05:06:07 failed to upload metrics: Post "http://localhost:4318/v1/metrics": dial tcp`:                             true,
		`2026/03/04 05:06:07 Post "http://localhost:4318/v1/logs": dial tcp 127.0.0.1:4318: connect: connection refused`:              true,
		`2026/03/04 05:06:07 failed to send to http://x/v1/traces: 503 Service Unavailable (body: )`:                                  true,
		`2026/03/04 05:06:07 failed to send to bob`:                                                                                   false,
		`2026/03/04 05:06:07 main.go:1: traces export: x`:                                                                             false,
		`traces export: x`:                                       false,
		`{"level":"info","msg":"traces export: x"}`:              false,
		`2026/03/04 05:06:07 Post "http://shop/orders": timeout`: false,
		`2026/03/04 05:06:07 GET /v1/traces`:                     false,
	}
	for text, want := range tests {
		_, st := run(Options{}, step{1, 0, text + "\n"})
		if got := st.SDKErrors == 1; got != want {
			t.Errorf("%q: %v", text, got)
		}
		checkStats(t, st)
	}
}

// TestClockSetBack: lines do not wait, and the limit does not hold, until the clock is
// where it has been.
func TestClockSetBack(t *testing.T) {
	a, n := New(Options{Rate: 10, Burst: 10}), 0
	emit := func(event.Log) { n++ }
	write := func(at int64) {
		a.Write(Chunk{Time: at, Writer: uint64(at), Data: []byte("hello\n")}, emit)
	}
	for range 20 {
		write(base)
	}
	now := base - int64(time.Hour)
	a.Flush(now, emit)
	if n < 9 {
		t.Errorf("%d records, the others wait for an hour", n)
	}
	before := n
	for range 50 {
		now += int64(100 * time.Millisecond)
		write(now)
		a.Flush(now, emit)
	}
	a.Flush(now+int64(time.Second), emit)
	if n < before+40 {
		t.Errorf("%d of 50 records in the 5 s after the clock was set back", n-before)
	}
}

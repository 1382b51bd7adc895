package logtext

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/log"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/internal/probes/event"
)

func FuzzAssemble(f *testing.F) {
	for _, s := range []string{
		"I0102 15:04:05.067890 1 a.go:1] \"x\" a=<\n\tb\n >\n", "2026/03/04 05:06:07 INFO a b=\"c\"\n", "{\"level\":\"info\",\"ts\":1.7e9,\"a\":[{\"b\":null}]}\n",
		"2026-03-04T05:06:07.000Z\tINFO\ta.go:1\tx\t{\"a\":1}\nmain.f\n\t/a.go:1\n", "panic: x\n\ngoroutine 1 [running]:\nmain.f()\n\t/a.go:1\n",
		"\x1b[36mINFO\x1b[0m[0000] x a=b\n", "3:04PM INF a.go:1 > x a=b\n", "time=2026-03-04T05:06:07Z level=INFO+2 msg=\"a\\\"b\"\n", "password=x AKIAABCDEFGHIJKLMNOP 4111 1111 1111 1111\n",
	} {
		f.Add([]byte(s), uint8(3), uint8(1))
	}
	redactor, err := NewRedactor(true, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, size, writers uint8) {
		a := New(Options{Rate: -1, Redact: redactor})
		total := 0
		emit := func(l event.Log) {
			total += len(l.Body)
			if !utf8.ValidString(l.Body) || !utf8.ValidString(l.SeverityText) || strings.Contains(l.Body, "\x00") {
				t.Errorf("body %q", l.Body)
			}
			for _, kv := range l.Attributes {
				if kv.Key == "" || !utf8.ValidString(string(kv.Key)) || !utf8.ValidString(kv.Value.String()) {
					t.Errorf("attribute %q = %q", kv.Key, kv.Value.String())
				}
			}
			if l.Severity < 0 || l.Severity > log.SeverityFatal4 || len(l.Attributes) > maxAttributes+4 {
				t.Errorf("record %+v", l)
			}
		}
		now := base
		for i := 0; len(data) > 0; i++ {
			n := min(len(data), int(size)+1)
			a.Write(Chunk{Time: now, Writer: uint64(i) % (uint64(writers%4) + 1), Data: data[:n]}, emit)
			data = data[n:]
			now += int64(time.Millisecond)
			if i%64 == 0 {
				a.Flush(now, emit)
			}
		}
		a.Close(now, emit)
		st := a.Stats()
		if sum := st.Kept + st.BelowFloor + st.RateLimited + st.SDKErrors + st.Empty; sum != st.Lines || a.held != 0 {
			t.Errorf("%d bytes held, %+v", a.held, st)
		}
	})
}

// cpuTime is the CPU time of the process, the garbage collector included: on a
// busy machine it tells more than the time that passed.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkLine(b *testing.B) {
	redactor, err := NewRedactor(true, nil)
	if err != nil {
		b.Fatal(err)
	}
	for name, line := range map[string]string{
		"slog-json":   `{"time":"2026-11-22T10:06:29.341106161Z","level":"INFO","msg":"request done","method":"GET","path":"/items/42","status":200,"duration":1500000,"ok":true,"user":"alice"}`,
		"zap-json":    `{"level":"info","ts":1795341989.3515074,"caller":"shop/server.go:117","msg":"request done","method":"GET","path":"/items/42","status":200,"duration":0.0015}`,
		"slog-text":   `time=2026-11-22T10:06:29.341Z level=INFO msg="request done" method=GET path=/items/42 status=200 duration=1.5ms ok=true user=alice`,
		"klog":        `I1122 10:06:29.201737   10004 loggers.go:155] "Pod status updated" pod="kube-system/kubedns" status="ready" count=3`,
		"log":         `2026/11/22 10:06:29 request GET /items/42 done with status 200 in 1.5ms`,
		"slog-stdlog": `2026/11/22 10:06:29 INFO request done method=GET path=/items/42 status=200 duration=1.5ms ok=true`,
		"zap-console": "2026-11-22T10:06:29.341Z\tINFO\tshop/server.go:117\trequest done\t{\"method\": \"GET\", \"path\": \"/items/42\", \"status\": 200}",
		"plain":       `listening on 127.0.0.1:8080, serving 12 routes, cache of 1000 entries`,
	} {
		b.Run(name, func(b *testing.B) {
			a := New(Options{Rate: -1, Redact: redactor, Floor: log.SeverityDebug1})
			n := 0
			emit := func(event.Log) { n++ }
			c := Chunk{Data: []byte(line + "\n")}
			b.ReportAllocs()
			before := cpuTime(b)
			for i := 0; b.Loop(); i++ {
				c.Time, c.Writer = base+int64(i), uint64(i%100)
				a.Write(c, emit)
			}
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

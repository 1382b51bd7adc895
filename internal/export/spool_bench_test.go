package export

import (
	"context"
	"log/slog"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/config"
)

// BenchmarkHealthySpool measures what a spool costs while the endpoint takes
// everything: nothing. As BenchmarkExport, but with a producer that does not run
// ahead of the endpoint, which is what the queue is for, and then the spool.
func BenchmarkHealthySpool(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	for _, spooled := range []bool{false, true} {
		name := "off"
		if spooled {
			name = "on"
		}
		b.Run(name, func(b *testing.B) {
			cfg := config.Default()
			cfg.Export.URL, cfg.Export.Token = startSink(b), testToken
			cfg.Export.SpoolDir = config.SpoolOff
			if spooled {
				cfg.Export.SpoolDir = b.TempDir()
			}
			p, err := New(cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			go p.Run(context.Background())
			spans := httpSpans(4096, 1)
			runtime.GC()
			b.ReportAllocs()
			began, sent := cpuTime(), 0
			for b.Loop() {
				at := sent % len(spans)
				for sent += 64; p.Spans(spans[at:at+64]) == 0; {
					time.Sleep(time.Millisecond)
				}
				for sent%4096 == 0 && p.Stats().Signals["traces"].Queued > 8192 {
					time.Sleep(time.Millisecond)
				}
			}
			if err := p.Shutdown(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(cpuTime()-began)/float64(sent), "cpu-ns/span")
			if s := p.Stats(); s.Signals["traces"].Exported != int64(sent) || s.Spool.Segments != 0 || s.Spool.Errors != 0 {
				b.Errorf("%+v", s)
			}
		})
	}
}

package export

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plainframework/agent/internal/config"
)

// TestHangingEndpointSpills has more telemetry than the memory takes, while
// all workers hang: it goes to the disk instead of being lost.
func TestHangingEndpointSpills(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		rc := &receiver{answer: func(w http.ResponseWriter, _ *http.Request, _ []byte) int {
			if down.Load() {
				return hang(w)
			}
			return 200
		}}
		p, _, _ := newSpoolPipeline(t, rc, dir, nil, func(c *config.Config) { c.Export.QueueSize = 8 << 20 })
		stop := start(t, p)
		for i := range 100 { // 20,000 a second for 10 s: the first timeout is after 30
			if n := p.Spans(named(i*2000, 2000)); n != 2000 {
				t.Fatalf("accepted %d: %+v", n, p.Stats().Signals["traces"])
			}
			time.Sleep(100 * time.Millisecond)
			if s := balanced(t, p, "traces"); s.QueuedBytes > 6<<20 {
				t.Fatalf("%d bytes in memory", s.QueuedBytes)
			}
		}
		down.Store(false)
		time.Sleep(3 * time.Minute)
		stop()
		arrived(t, rc, 200_000)
		expect(t, p, "traces", 200_000, 200_000, map[string]int64{})
	})
}

func TestDiskThatRefusesLeavesMemory(t *testing.T) {
	for _, why := range []error{syscall.ENOSPC, syscall.EROFS} {
		t.Run(why.Error(), func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				var full, down atomic.Bool
				full.Store(true)
				down.Store(true)
				rc := &receiver{answer: func(http.ResponseWriter, *http.Request, []byte) int {
					if down.Load() {
						return 503
					}
					return 200
				}}
				p, _, log := newSpoolPipeline(t, rc, dir, func(op string) error {
					if full.Load() && (op == "write" || op == "create") {
						return why
					}
					return nil
				}, nil)
				stop := start(t, p)
				p.Spans(named(0, 10))
				time.Sleep(5 * time.Second)
				if st := p.Stats().Spool; st.State != "memory" || !strings.Contains(st.Reason, why.Error()) {
					t.Errorf("spool: %+v", st)
				}
				if s := balanced(t, p, "traces"); s.Queued != 10 || s.Spooled != 0 {
					t.Errorf("%+v", s)
				}
				full.Store(false) // somebody has made room
				time.Sleep(30 * time.Second)
				p.Spans(named(10, 10))
				time.Sleep(10 * time.Second)
				if s := balanced(t, p, "traces"); s.Spooled != 20 {
					t.Errorf("%+v", s)
				}
				if st := p.Stats().Spool; st.State != "on" || st.Reason != "" {
					t.Errorf("spool: %+v", st)
				}
				down.Store(false)
				time.Sleep(time.Minute)
				stop()
				arrived(t, rc, 20)
				if !strings.Contains(log.String(), why.Error()) {
					t.Errorf("log: %s", log)
				}
			})
		})
	}
}

func TestAnswersToSpooledRequests(t *testing.T) {
	tests := map[string]struct {
		answer func(body []byte) int
		lost   map[string]int64
	}{
		"too large": {func(b []byte) int {
			if countSpans(b) > 7 {
				return 413
			}
			return 200
		}, map[string]int64{}},
		"unauthorized": {func([]byte) int { return 401 }, map[string]int64{"unauthorized": 100}},
		"rejected":     {func([]byte) int { return 400 }, map[string]int64{"rejected": 100}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				var down atomic.Bool
				down.Store(true)
				n := 0
				rc := &receiver{answer: func(_ http.ResponseWriter, _ *http.Request, b []byte) int {
					if n++; down.Load() || n%4 == 0 { // halves are spooled again
						return 503
					}
					return tt.answer(b)
				}}
				p, _, _ := newSpoolPipeline(t, rc, dir, nil, nil)
				stop := start(t, p)
				p.Spans(named(0, 100))
				time.Sleep(10 * time.Second)
				down.Store(false)
				for range 600 {
					time.Sleep(time.Second)
					balanced(t, p, "traces")
				}
				stop()
				var lost int64
				for _, v := range tt.lost {
					lost += v
				}
				expect(t, p, "traces", 100, 100-lost, tt.lost)
				arrived(t, rc, int(100-lost))
			})
		})
	}
}

func TestSecondAgentOnTheSameSpoolRefuses(t *testing.T) {
	cfg := config.Default()
	cfg.Export.URL, cfg.Export.Token, cfg.Export.SpoolDir = "http://127.0.0.1:1", testToken, filepath.Join(t.TempDir(), "spool")
	first, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, err = New(cfg, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "another agent uses the spool directory") || strings.Contains(err.Error(), "\n") {
		t.Errorf("second: %v", err)
	}
	if err := first.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	second, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	second.Shutdown(context.Background())
}

func TestSpoolThatCannotBeOpenedIsNoReasonNotToStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Export.URL, cfg.Export.Token, cfg.Export.SpoolDir = "http://127.0.0.1:1", testToken, filepath.Join(file, "spool")
	p, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Shutdown(context.Background())
	if st := p.Stats().Spool; st.State != "off" || !strings.Contains(st.Reason, "not a directory") {
		t.Errorf("%+v", st)
	}
}

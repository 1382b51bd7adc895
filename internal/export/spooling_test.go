package export

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/export/spool/spooltest"
	"github.com/plainframework/agent/internal/probes/event"
)

// newSpoolPipeline is newTestPipeline with a spool in dir, on a disk that fails
// when fault says so.
func newSpoolPipeline(t *testing.T, rc http.RoundTripper, dir string, fault func(string) error, change func(*config.Config)) (*Pipeline, *spooltest.Disk, *logBuffer) {
	t.Helper()
	disk, err := spooltest.Open(dir, fault)
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Export.URL, cfg.Export.Token = "http://endpoint.test/base", testToken
	cfg.Export.SpoolDir = dir
	if change != nil {
		change(&cfg)
	}
	log := &logBuffer{}
	p, err := New(cfg, discard(log), func(o *options) { o.base, o.disk = rc, disk })
	if err != nil {
		t.Fatal(err)
	}
	return p, disk, log
}

// arrived fails unless each of the spans s0 to s<n-1> came once.
func arrived(t *testing.T, rc *receiver, n int) {
	t.Helper()
	names := rc.spanNames()
	if len(names) != n {
		t.Errorf("%d of %d spans arrived", len(names), n)
	}
	for name, times := range names {
		if times != 1 {
			t.Errorf("%s arrived %d times", name, times)
		}
	}
	if len(rc.bad) > 0 {
		t.Error(rc.bad[0])
	}
}

// named makes spans s<from> to s<from+n-1>.
func named(from, n int) []event.Span {
	spans := makeSpans(n, "s")
	for i := range spans {
		spans[i].Name = fmt.Sprint("s", from+i)
	}
	return spans
}

func TestOutageLosesNothing(t *testing.T) {
	answers := map[string]func(http.ResponseWriter) int{
		"refuses": refuseConn,
		"hangs":   hang,
		"503":     func(http.ResponseWriter) int { return 503 },
		"429": func(w http.ResponseWriter) int {
			w.Header().Set("Retry-After", "45")
			return 429
		},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				var down atomic.Bool
				rc := &receiver{answer: func(w http.ResponseWriter, _ *http.Request, _ []byte) int {
					if down.Load() {
						return answer(w)
					}
					return 200
				}}
				p, _, log := newSpoolPipeline(t, rc, dir, nil, nil)
				stop := start(t, p)
				sent := 0
				for second := range 1500 { // up for 5 minutes, down for 10, up again
					down.Store(second >= 300 && second < 900)
					p.Spans(named(sent, 3))
					sent += 3
					time.Sleep(time.Second)
					if s := balanced(t, p, "traces"); s.LostTotal() != 0 {
						t.Fatalf("after %d s: %+v", second, s)
					}
					if second == 899 && (p.Stats().Spool.OldestAge < 500 || p.Stats().Spool.Bytes == 0) {
						t.Errorf("at the end of the outage: %+v", p.Stats().Spool)
					}
				}
				stop()
				arrived(t, rc, sent)
				expect(t, p, "traces", int64(sent), int64(sent), map[string]int64{})
				if st := p.Stats().Spool; st.Bytes != 0 || st.State != "on" {
					t.Errorf("spool: %+v", st)
				}
				inOrder(t, rc)
				if n := strings.Count(log.String(), "will try again"); n == 0 || n > 11 {
					t.Errorf("said %d times in ten minutes that it tries again", n)
				}
			})
		})
	}
}

// inOrder checks that what was made in the outage, and so has been in the spool,
// came oldest first: in the order of going there, which for a request that hung
// is half a minute after it was made.
func inOrder(t *testing.T, rc *receiver) {
	t.Helper()
	last, seen := -1, 0
	for _, req := range rc.traces {
		var n int
		fmt.Sscanf(req.ResourceSpans[0].ScopeSpans[0].Spans[0].Name, "s%d", &n)
		if n < 310*3 || n > 890*3 {
			continue
		}
		if seen++; n < last-35*3 {
			t.Errorf("s%d came after s%d", n, last)
		}
		last = max(last, n)
	}
	if seen < 300 {
		t.Errorf("%d requests of the outage", seen)
	}
}

func TestRetryAfterHoldsForSpooledAndFresh(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		first := true
		rc := &receiver{answer: func(w http.ResponseWriter, _ *http.Request, _ []byte) int {
			if first {
				first = false
				w.Header().Set("Retry-After", "120")
				return 429
			}
			return 200
		}}
		p, _, _ := newSpoolPipeline(t, rc, dir, nil, nil)
		stop := start(t, p)
		began := time.Now()
		for i := range 200 {
			p.Spans(named(i, 1))
			time.Sleep(time.Second)
		}
		stop()
		if d := rc.times[1].Sub(began); d < 120*time.Second || d > 122*time.Second {
			t.Errorf("tried again after %v", d)
		}
		arrived(t, rc, 200)
	})
}

func TestFreshTelemetryGoesFirst(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		born := make(map[string]time.Time)
		var worst time.Duration
		rc := &receiver{}
		rc.answer = func(http.ResponseWriter, *http.Request, []byte) int {
			if down.Load() {
				return 503
			}
			time.Sleep(100 * time.Millisecond) // a far endpoint
			return 200
		}
		p, _, _ := newSpoolPipeline(t, rc, dir, nil, func(c *config.Config) { c.Export.BatchSize = 10 })
		stop := start(t, p)
		p.Spans(named(0, 5000)) // 500 requests: 50 s, one by one
		time.Sleep(time.Minute)
		down.Store(false)
		for p.Stats().Signals["traces"].Spooled == 5000 {
			time.Sleep(time.Second)
		}
		for i := range 30 {
			name := fmt.Sprint("s", 5000+i)
			born[name] = time.Now()
			p.Spans(named(5000+i, 1))
			for rc.spanNames()[name] == 0 {
				time.Sleep(50 * time.Millisecond)
			}
			worst = max(worst, time.Since(born[name]))
		}
		if s := p.Stats().Signals["traces"]; s.Spooled == 0 {
			t.Error("the spool was empty before the fresh telemetry came")
		}
		if worst > 1300*time.Millisecond { // 1 s of them is the batch delay
			t.Errorf("fresh telemetry took %v", worst)
		}
		time.Sleep(time.Minute)
		stop()
		arrived(t, rc, 5030)
	})
}

func TestRestartSendsWhatWasSpooled(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprint("kill ", kill), func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				var down atomic.Bool
				down.Store(true)
				rc := &receiver{answer: func(http.ResponseWriter, *http.Request, []byte) int {
					if down.Load() {
						return 503
					}
					return 200
				}}
				for run := range 3 {
					p, disk, _ := newSpoolPipeline(t, rc, dir, nil, nil)
					if s := p.Stats().Signals["traces"]; s.Restored != int64(run*100) || s.Received != s.Spooled {
						t.Errorf("run %d: %+v", run, s)
					}
					stop := start(t, p)
					p.Spans(named(run*100, 100))
					p.Logs([]event.Log{{Process: shop, Scope: netHTTP, Body: "line"}})
					p.Metrics([]event.Histogram{{Process: shop, Scope: netHTTP, Name: "m", Counts: []uint64{1, 0}, Bounds: []float64{1}}}, nil)
					time.Sleep(10 * time.Second)
					began := time.Now()
					if kill {
						disk.Kill()
						p.abandon()
						continue
					}
					stop()
					if d := time.Since(began); d > time.Second {
						t.Errorf("shutdown took %v though everything is spooled", d)
					}
					for _, signal := range []string{"traces", "logs", "metrics"} {
						if s := balanced(t, p, signal); s.Spooled != s.Received || s.Spooled == 0 {
							t.Errorf("run %d %s: %+v", run, signal, s)
						}
					}
				}
				nowhere(t, dir, testToken)
				down.Store(false)
				p, _, _ := newSpoolPipeline(t, rc, dir, nil, nil)
				stop := start(t, p)
				time.Sleep(time.Minute)
				stop()
				arrived(t, rc, 300)
				expect(t, p, "traces", 300, 300, map[string]int64{})
				expect(t, p, "logs", 3, 3, map[string]int64{})
				expect(t, p, "metrics", 3, 3, map[string]int64{})
				if len(rc.logs) != 3 || len(rc.metrics) != 3 {
					t.Errorf("%d logs, %d metrics", len(rc.logs), len(rc.metrics))
				}
				if s := p.Stats().Signals["traces"]; s.MaybeTwice != 0 {
					t.Errorf("refused requests count as maybe sent twice: %+v", s)
				}
			})
		})
	}
}

// TestKilledWhileSending kills the agent when a request from the spool has
// arrived and the answer has not: it comes again, and that is counted.
func TestKilledWhileSending(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{}
		rc.answer = func(w http.ResponseWriter, _ *http.Request, _ []byte) int {
			switch rc.attempts() {
			case 1:
				return 503
			case 2:
				return hang(w)
			}
			return 200
		}
		p, disk, _ := newSpoolPipeline(t, rc, dir, nil, nil)
		start(t, p)
		p.Spans(named(0, 10))
		time.Sleep(5 * time.Second)
		if s := p.Stats().Signals["traces"]; rc.attempts() != 2 || s.Spooled != 10 || s.MaybeTwice != 0 {
			t.Errorf("%d attempts: %+v", rc.attempts(), s)
		}
		disk.Kill()
		p.abandon()

		p, _, _ = newSpoolPipeline(t, rc, dir, nil, nil)
		stop := start(t, p)
		time.Sleep(5 * time.Second)
		stop()
		arrived(t, rc, 10)
		if s := p.Stats().Signals["traces"]; s.MaybeTwice != 10 || s.Exported != 10 {
			t.Errorf("%+v", s)
		}
	})
}

// nowhere fails if a text is in a file under dir.
func nowhere(t *testing.T, dir, text string) {
	t.Helper()
	files := 0
	filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			files++
			if b, _ := os.ReadFile(path); bytes.Contains(b, []byte(text)) {
				t.Errorf("%s holds the token", path)
			}
		}
		return nil
	})
	if files < 2 {
		t.Errorf("only %d files", files)
	}
}

func TestShutdownSpoolsTheRest(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{answer: func(w http.ResponseWriter, _ *http.Request, _ []byte) int { return hang(w) }}
		p, _, _ := newSpoolPipeline(t, rc, dir, nil, func(c *config.Config) { c.Export.BatchSize = 10 })
		stop := start(t, p)
		p.Spans(named(0, 5000))
		began := time.Now()
		stop()
		if d := time.Since(began); d > shutdownLimit {
			t.Errorf("took %v", d)
		}
		if s := balanced(t, p, "traces"); s.Spooled != 5000 || s.LostTotal() != 0 {
			t.Errorf("%+v", s)
		}
		rc.answer = nil
		p, _, _ = newSpoolPipeline(t, rc, dir, nil, nil)
		stop = start(t, p)
		time.Sleep(time.Minute)
		stop()
		arrived(t, rc, 5000)
	})
}

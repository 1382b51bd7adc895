package export

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes/event"
)

func TestSpansOfManyServicesInOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// What the exporters would read of the environment must not count.
		t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere.test")
		t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "leak=1")
		t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
		t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
		rc := &receiver{}
		p, _ := newTestPipeline(t, rc, func(c *config.Config) { c.Export.Headers = map[string]config.Secret{"x-tenant": "blue"} })
		stop := start(t, p)
		spans := makeSpans(6, "s")
		spans[1].Scope, spans[2].Process, spans[4].Scope = dbSQL, billing, dbSQL
		if n := p.Spans(spans); n != 6 {
			t.Fatalf("accepted %d", n)
		}
		stop()
		if len(rc.traces) != 1 || len(rc.bad) > 0 {
			t.Fatalf("%d requests, %v", len(rc.traces), rc.bad)
		}
		got := make(map[string]string) // span → service/scope
		for _, rs := range rc.traces[0].ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				noUnknown(t, ss)
				for _, s := range ss.Spans {
					got[s.Name] = rs.Resource.Attributes[0].Value.GetStringValue() + " " + ss.Scope.Name[len("github.com/plainframework/agent/"):]
				}
			}
		}
		want := map[string]string{"s0": "shop net/http", "s1": "shop database/sql", "s2": "billing net/http", "s3": "shop net/http", "s4": "shop database/sql", "s5": "shop net/http"}
		if fmt.Sprint(got) != fmt.Sprint(want) || len(rc.traces[0].ResourceSpans) != 2 {
			t.Errorf("got %v, want %v", got, want)
		}
		r := rc.requests[0]
		for name, want := range map[string]string{"Authorization": "Bearer " + testToken, "Content-Encoding": "gzip",
			"Content-Type": "application/x-protobuf", "X-Tenant": "blue", "Leak": "", "User-Agent": "plain-agent"} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if r.URL.String() != "http://endpoint.test/base/v1/traces" {
			t.Errorf("URL %s", r.URL)
		}
		expect(t, p, "traces", 6, 6, map[string]int64{})
	})
}

func TestFirstSpanIsNotKeptWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{}
		p, _ := newTestPipeline(t, rc, nil)
		stop := start(t, p)
		began := time.Now()
		p.Spans(makeSpans(1, "first"))
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if rc.attempts() != 1 || rc.times[0].Sub(began) > 100*time.Millisecond {
			t.Error("the first span is not out within 100 ms")
		}
		p.Spans(makeSpans(1, "second"))
		time.Sleep(900 * time.Millisecond)
		synctest.Wait()
		if rc.attempts() != 1 {
			t.Error("the second span did not wait for others")
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if rc.attempts() != 2 {
			t.Error("the second span is not out after the delay")
		}
		stop()
	})
}

func TestFullBatchLeavesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{}
		p, _ := newTestPipeline(t, rc, func(c *config.Config) { c.Export.BatchSize = 10 })
		stop := start(t, p)
		p.Spans(makeSpans(25, "s"))
		synctest.Wait()
		if n := len(rc.spanNames()); n != 20 {
			t.Errorf("%d spans out, want two batches of 10", n)
		}
		stop()
		expect(t, p, "traces", 25, 25, map[string]int64{})
	})
}

func TestQueueFullIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open := make(chan struct{})
		rc := &receiver{answer: func(http.ResponseWriter, *http.Request, []byte) int { <-open; return 200 }}
		p, _ := newTestPipeline(t, rc, func(c *config.Config) { c.Export.QueueSize = 1 << 20 })
		stop := start(t, p)
		accepted, offered := 0, 0
		for i := range 40 {
			spans := makeSpans(1000, fmt.Sprint(i, "-"))
			n := p.Spans(spans)
			accepted, offered = accepted+n, offered+len(spans)
			if n < len(spans) && n != 0 {
				// The rest after a refusal may not be accepted.
				if p.Spans(makeSpans(1, "late")) != 0 {
					t.Error("accepted after the queue was full")
				}
				offered++
			}
		}
		s := balanced(t, p, "traces")
		if s.Queued != int64(accepted) || s.Lost["queue_full"] != int64(offered-accepted) || accepted == offered {
			t.Errorf("accepted %d of %d: %+v", accepted, offered, s)
		}
		if s.QueuedBytes > 1<<20+maxSpanBytes || s.QueuedBytes < 1<<19 {
			t.Errorf("holds %d bytes", s.QueuedBytes)
		}
		close(open)
		stop()
		expect(t, p, "traces", int64(offered), int64(accepted), map[string]int64{"queue_full": int64(offered - accepted)})
		if n := len(rc.spanNames()); n != accepted {
			t.Errorf("%d arrived, %d were accepted", n, accepted)
		}
	})
}

func TestShutdownFlushesAndIsIdempotent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{}
		p, _ := newTestPipeline(t, rc, nil)
		p.Spans(makeSpans(5000, "s")) // never run: Shutdown sends all the same
		for range 3 {
			if err := p.Shutdown(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Run(context.Background()); err != nil {
			t.Errorf("run after shutdown: %v", err)
		}
		if n := p.Spans(makeSpans(2, "late")); n != 0 {
			t.Errorf("accepted %d after the end", n)
		}
		expect(t, p, "traces", 5002, 5000, map[string]int64{"shutdown": 2})
	})
}

func TestShutdownKeepsItsDeadline(t *testing.T) {
	answers := map[string]func(http.ResponseWriter) int{
		"hangs":   hang,
		"refuses": refuseConn,
		"throttles": func(w http.ResponseWriter) int {
			w.Header().Set("Retry-After", "30")
			return 503
		},
	}
	for name, answer := range answers {
		for _, limit := range []time.Duration{time.Second, time.Hour} {
			t.Run(fmt.Sprint(name, limit), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					rc := &receiver{answer: func(w http.ResponseWriter, _ *http.Request, _ []byte) int { return answer(w) }}
					p, _ := newTestPipeline(t, rc, func(c *config.Config) { c.Export.BatchSize = 10 })
					p.Spans(makeSpans(100, "s"))
					ctx, cancel := context.WithTimeout(context.Background(), limit)
					defer cancel()
					began := time.Now()
					if err := p.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("error %v", err)
					}
					if d := time.Since(began); d > min(limit, shutdownLimit)+10*time.Millisecond {
						t.Errorf("took %v", d)
					}
					expect(t, p, "traces", 100, 0, map[string]int64{"shutdown": 100})
				})
			})
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{answer: func(w http.ResponseWriter, _ *http.Request, _ []byte) int { return hang(w) }}
		p, _ := newTestPipeline(t, rc, nil)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		p.Spans(makeSpans(3, "s"))
		if err := p.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("run: %v", err)
		}
		expect(t, p, "traces", 3, 0, map[string]int64{"shutdown": 3})
	})
}

// TestAccountingUnderLoad adds up at every moment, with several producers and
// an endpoint that does everything wrong, over a real connection.
func TestAccountingUnderLoad(t *testing.T) {
	var n atomic.Int64
	rc := &receiver{}
	rc.answer = func(w http.ResponseWriter, r *http.Request, body []byte) int {
		switch n.Add(1) % 5 {
		case 0:
			return 400
		case 1:
			if countSpans(body) > 20 {
				return 413
			}
		}
		return 200
	}
	srv := httptest.NewServer(rc)
	defer srv.Close()
	cfg := config.Default()
	cfg.Export.URL, cfg.Export.Token, cfg.Export.SpoolDir, cfg.Export.BatchSize, cfg.Export.QueueSize = srv.URL, testToken, config.SpoolOff, 50, 1<<20
	log := &logBuffer{}
	p, err := New(cfg, discard(log))
	if err != nil {
		t.Fatal(err)
	}
	stop := start(t, p)
	var producers sync.WaitGroup
	var accepted atomic.Int64
	for g := range 4 {
		producers.Go(func() {
			for i := range 50 {
				accepted.Add(int64(p.Spans(makeSpans(40, fmt.Sprint(g, "-", i, "-")))))
				p.Logs([]event.Log{{Process: shop, Scope: netHTTP, Body: "line"}})
				balanced(t, p, "traces")
				balanced(t, p, "logs")
			}
		})
	}
	producers.Wait()
	stop()
	s := balanced(t, p, "traces")
	if s.Queued != 0 || s.QueuedBytes != 0 || s.Received != 8000 || s.Exported+s.LostTotal()-s.Lost["queue_full"] != accepted.Load() {
		t.Errorf("accepted %d: %+v", accepted.Load(), s)
	}
	if arrived := len(rc.spanNames()); int64(arrived) != s.Exported || s.Lost["rejected"] == 0 {
		t.Errorf("%d arrived: %+v", arrived, s)
	}
	if len(rc.bad) > 0 {
		t.Error(rc.bad[0])
	}
}

func TestEndpointThatStartsLater(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	cfg := config.Default()
	cfg.Export.URL, cfg.Export.Token, cfg.Export.SpoolDir = "http://"+addr, testToken, config.SpoolOff
	p, err := New(cfg, discard(&logBuffer{}))
	if err != nil {
		t.Fatal(err)
	}
	stop := start(t, p)
	p.Spans(makeSpans(1, "s"))
	time.Sleep(200 * time.Millisecond)
	if ln, err = net.Listen("tcp", addr); err != nil {
		t.Skip("the port was taken in between: ", err)
	}
	rc := &receiver{}
	srv := &http.Server{Handler: rc}
	defer srv.Close()
	go srv.Serve(ln)
	stop()
	if rc.spanNames()["s0"] != 1 {
		t.Error("the span did not arrive")
	}
	expect(t, p, "traces", 1, 1, map[string]int64{})
}

func TestLibraryErrorsGoToTheLog(t *testing.T) {
	_, log := newTestPipeline(t, &receiver{}, nil)
	otel.Handle(errors.New("something odd"))
	if !strings.Contains(log.String(), "something odd") {
		t.Errorf("log: %s", log)
	}
}

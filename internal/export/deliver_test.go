package export

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/plainframework/agent/internal/config"
)

func TestRetry(t *testing.T) {
	tests := []struct {
		name     string
		answer   func(w http.ResponseWriter, attempt int) int
		attempts int
		after    time.Duration // the last attempt, at least
		before   time.Duration // and at most
		lost     map[string]int64
	}{
		{"taken", func(http.ResponseWriter, int) int { return 200 }, 1, 0, time.Second, nil},
		{"503 twice", func(_ http.ResponseWriter, n int) int { return []int{503, 502, 200}[n] }, 3, time.Second, 3 * time.Second, nil},
		{"refused connection", func(w http.ResponseWriter, n int) int {
			if n < 2 {
				return refuseConn(w)
			}
			return 200
		}, 3, time.Second, 3 * time.Second, nil},
		{"429 with Retry-After", func(w http.ResponseWriter, n int) int {
			w.Header().Set("Retry-After", "7")
			return []int{429, 200}[n]
		}, 2, 7 * time.Second, 8 * time.Second, nil},
		{"no answer", func(w http.ResponseWriter, n int) int {
			if n == 0 {
				return hang(w)
			}
			return 200
		}, 2, 30 * time.Second, 32 * time.Second, nil},
		{"Retry-After beyond the limit", func(w http.ResponseWriter, n int) int {
			w.Header().Set("Retry-After", "3600")
			return 503
		}, 1, 0, time.Second, map[string]int64{"send_failed": 3}},
		{"never", func(http.ResponseWriter, int) int { return 504 }, 7, 20 * time.Second, time.Minute, map[string]int64{"send_failed": 3}},
		{"400", func(http.ResponseWriter, int) int { return 400 }, 1, 0, time.Second, map[string]int64{"rejected": 3}},
		{"401", func(http.ResponseWriter, int) int { return 401 }, 1, 0, time.Second, map[string]int64{"unauthorized": 3}},
		{"403", func(http.ResponseWriter, int) int { return 403 }, 1, 0, time.Second, map[string]int64{"unauthorized": 3}},
		{"redirect", func(w http.ResponseWriter, _ int) int {
			w.Header().Set("Location", "http://evil.test/?key=1")
			return 307
		}, 1, 0, time.Second, map[string]int64{"rejected": 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var attempt int
				rc := &receiver{}
				rc.answer = func(w http.ResponseWriter, _ *http.Request, _ []byte) int { attempt++; return tt.answer(w, attempt-1) }
				p, log := newTestPipeline(t, rc, nil)
				stop := start(t, p)
				began := time.Now()
				p.Spans(makeSpans(3, "s"))
				time.Sleep(3 * time.Minute)
				stop()
				if n := rc.attempts(); n < min(tt.attempts, 6) || n > tt.attempts+2 || tt.attempts < 6 && n != tt.attempts {
					t.Fatalf("%d attempts, want %d", n, tt.attempts)
				}
				if d := rc.times[len(rc.times)-1].Sub(began); d < tt.after || d > tt.before {
					t.Errorf("last attempt after %v, want %v to %v", d, tt.after, tt.before)
				}
				lost := tt.lost
				if lost == nil {
					lost = map[string]int64{}
				}
				var n int64
				for _, v := range lost {
					n += v
				}
				expect(t, p, "traces", 3, 3-n, lost)
				if strings.Contains(log.String(), testToken) {
					t.Errorf("the token is in the log: %s", log)
				}
				if n > 0 && log.String() == "" {
					t.Error("nothing in the log")
				}
			})
		})
	}
}

func TestUnauthorizedIsSaidOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{answer: func(http.ResponseWriter, *http.Request, []byte) int { return 401 }}
		p, log := newTestPipeline(t, rc, nil)
		stop := start(t, p)
		for range 90 { // 90 requests in 3 minutes
			p.Spans(makeSpans(1, "s"))
			time.Sleep(2 * time.Second)
		}
		stop()
		if n := strings.Count(log.String(), "PLAIN_CLOUD_EXPORT_TOKEN"); n != 3 {
			t.Errorf("said %d times, want 3:\n%s", n, log)
		}
		if strings.Contains(log.String(), testToken) || strings.Contains(p.Stats().Endpoints["traces"].LastError, testToken) {
			t.Errorf("the endpoint quoted the token and so do we: %s", log)
		}
		if rc.attempts() != 90 {
			t.Errorf("%d attempts", rc.attempts())
		}
		expect(t, p, "traces", 90, 0, map[string]int64{"unauthorized": 90})
	})
}

// countSpans counts the spans of a request body.
func countSpans(body []byte) (n int) {
	eachItem(body, func([]byte) { n++ })
	return n
}

func TestTooLargeIsSplit(t *testing.T) {
	for _, compression := range []string{"gzip", "none"} {
		t.Run(compression, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rc := &receiver{answer: func(_ http.ResponseWriter, _ *http.Request, body []byte) int {
					if countSpans(body) > 100 || strings.Contains(string(body), "giant") {
						return 413
					}
					return 200
				}}
				p, log := newTestPipeline(t, rc, func(c *config.Config) { c.Export.Compression = compression })
				stop := start(t, p)
				spans := makeSpans(1001, "s")
				for i := range spans {
					if i%3 == 0 {
						spans[i].Process = billing
					}
					if i%5 == 0 {
						spans[i].Scope = dbSQL
					}
				}
				spans[500].Name = "giant"
				p.Spans(spans)
				stop()
				names := rc.spanNames()
				if len(names) != 1000 {
					t.Errorf("%d of 1000 spans arrived", len(names))
				}
				for name, n := range names {
					if n != 1 {
						t.Errorf("%s arrived %d times", name, n)
					}
				}
				for _, req := range rc.traces {
					for _, rs := range req.ResourceSpans {
						if len(rs.Resource.GetAttributes()) == 0 || len(rs.ScopeSpans) == 0 || rs.ScopeSpans[0].Scope.GetName() == "" || len(rs.ScopeSpans[0].Spans) == 0 {
							t.Fatalf("a piece lost its resource or scope: %v", rs)
						}
					}
				}
				expect(t, p, "traces", 1001, 1000, map[string]int64{"too_large": 1})
				if !strings.Contains(log.String(), "it cannot be split") {
					t.Errorf("log: %s", log)
				}
			})
		})
	}
}

func TestPartialSuccessIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rc := &receiver{answer: func(w http.ResponseWriter, _ *http.Request, _ []byte) int {
			body, _ := proto.Marshal(&coltracepb.ExportTraceServiceResponse{PartialSuccess: &coltracepb.ExportTracePartialSuccess{
				RejectedSpans: 4, ErrorMessage: "too old"}})
			w.Header().Set("Content-Type", "application/x-protobuf")
			w.Write(body)
			return 200
		}}
		p, log := newTestPipeline(t, rc, nil)
		stop := start(t, p)
		p.Spans(makeSpans(10, "s"))
		stop()
		expect(t, p, "traces", 10, 6, map[string]int64{"rejected": 4})
		if !strings.Contains(log.String(), "too old") {
			t.Errorf("log: %s", log)
		}
	})
}

//go:build e2e && (clock || collector || soak)

package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/observer"
)

// traffic is requests to a shop that logs: each has a path of its own, and makes a server
// span, a query, a line on standard error, and a measurement of both.
type traffic struct {
	stop  func()
	times []span // of requests, by number; to be read after stop
}

// span is a time with a begin and an end.
type span struct{ from, to time.Time }

const trafficPath = "/items/9" // a number of 7 digits follows

func startTraffic(t *testing.T, url string) *traffic {
	t.Helper()
	tr, end, ended := &traffic{}, make(chan struct{}), sync.WaitGroup{}
	ended.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-end:
				return
			case <-time.After(2 * time.Millisecond):
			}
			from := time.Now()
			if code := statusOf(fmt.Sprintf("%s%s%07d", url, trafficPath, n)); code != 404 {
				t.Errorf("request %d: status %d", n, code)
				return
			}
			tr.times = append(tr.times, span{from, time.Now()})
		}
	})
	tr.stop = sync.OnceFunc(func() { close(end); ended.Wait() })
	t.Cleanup(tr.stop)
	return tr
}

// during is how many requests lie within one of these times.
func (tr *traffic) during(attended []span) (numbers []int) {
	for n, r := range tr.times {
		for _, a := range attended {
			if r.from.After(a.from) && r.to.Before(a.to) {
				numbers = append(numbers, n)
			}
		}
	}
	return numbers
}

// arrivals is what an endpoint got of the traffic.
type arrivals struct {
	times   map[string]int // how often each item came
	of      map[int]int    // items by number of the request
	again   int
	unknown int // of no request
}

func (a *arrivals) add(t *testing.T, id, path string) {
	t.Helper()
	a.times[id]++
	if a.times[id] > 1 {
		a.again++
		return
	}
	if n, err := strconv.Atoi(strings.TrimPrefix(path, trafficPath)); err == nil {
		a.of[n]++
	} else {
		a.unknown++
	}
}

// without is how many of these requests have no item.
func (a *arrivals) without(numbers []int) (missing int) {
	for _, n := range numbers {
		if a.of[n] == 0 {
			missing++
		}
	}
	return missing
}

// accountFor compares what an endpoint got with the traffic and with the accounts of the
// agents, all of them at rest: each span, log record and measurement of a request that ran
// while an agent was attached has arrived once, or is counted by name.
func accountFor(t *testing.T, tr *traffic, attended []span, seen *observer.Observer, s fullStatus) {
	t.Helper()
	numbers := tr.during(attended)
	t.Logf("%d requests, %d of them while an agent was attached; %+v", len(tr.times), len(numbers), s.Probes.Spans)
	servers := arrivals{times: map[string]int{}, of: map[int]int{}}
	queries := arrivals{times: map[string]int{}, of: map[int]int{}}
	for _, sp := range seen.Spans() {
		if path := sp.Attrs.Text("url.path"); path != "" {
			servers.add(t, sp.SpanID.String(), path)
		} else {
			queries.add(t, sp.SpanID.String(), "")
		}
	}
	p := s.Probes
	crashed := int(p.Losses["crash"] + p.Losses["ring_full"] + p.Losses["unfinished"])
	checkSignal(t, "traces", s, int64(len(servers.times)+len(queries.times)), int64(servers.again+queries.again))
	if missing, lost := servers.without(numbers), crashed+int(s.Export.Signals["traces"].LostTotal()); missing > lost {
		t.Errorf("%d requests have no span, %d are counted as lost", missing, lost)
	}
	if p.Spans.Decoded != uint64(s.Export.Signals["traces"].Received) || p.Spans.Emitted != p.Spans.Decoded+p.Losses["crash"]+p.Losses["invalid_record"] {
		t.Errorf("spans do not add up: %+v, lost %v", p.Spans, p.Losses)
	}

	lines := arrivals{times: map[string]int{}, of: map[int]int{}}
	for _, l := range seen.Logs() {
		lines.add(t, l.Attrs.Text("path"), l.Attrs.Text("path"))
	}
	checkSignal(t, "logs", s, int64(len(lines.times)), int64(lines.again))
	lost := int(p.Losses["logs_crash"] + p.Losses["logs_ring_full"] + p.Losses["logs_rate_limited"])
	if missing, lost := lines.without(numbers), lost+int(s.Export.Signals["logs"].LostTotal()); missing > lost || lines.unknown > 0 {
		t.Errorf("%d requests have no line, %d are counted as lost; %d lines of no request", missing, lost, lines.unknown)
	}

	metrics := s.Export.Signals["metrics"]
	if metrics.Received != metrics.Exported+metrics.LostTotal() || metrics.LostTotal() != 0 {
		t.Errorf("metrics do not add up: %+v", metrics)
	}
	measured := histogramCount(seen, "http.server.request.duration") + histogramCount(seen, "db.client.operation.duration")
	want := p.Spans.Emitted + p.Losses["ring_full"]
	t.Logf("%d spans in %d points, %d operations ended; %+v", measured, metrics.Exported, want, metrics)
	if measured != want && (measured < want || metrics.MaybeTwice == 0) {
		t.Errorf("%d operations were measured, %d have ended", measured, want)
	}
	for _, point := range seen.Points() {
		if point.Kind != observer.GaugePoint && !point.Start.Before(point.End) {
			t.Errorf("%s begins at %v and ends at %v", point.Name, point.Start, point.End)
			break
		}
	}
}

func checkSignal(t *testing.T, name string, s fullStatus, unique, again int64) {
	t.Helper()
	c := s.Export.Signals[name]
	t.Logf("%s: %d arrived, %d of them again; received %d, exported %d, maybe twice %d, lost %v; in the probes %v",
		name, unique, again, c.Received, c.Exported, c.MaybeTwice, c.Lost, s.Probes.Losses)
	if c.Received != c.Exported+c.LostTotal() || c.Queued+c.Spooled != 0 {
		t.Errorf("%s do not add up: %+v", name, c)
	}
	// What was in memory at a kill may have arrived.
	if unique < c.Exported || unique > c.Exported+c.Lost["crash"] {
		t.Errorf("%d %s have arrived, %d were exported and %d lost by crash", unique, name, c.Exported, c.Lost["crash"])
	}
	if again > c.MaybeTwice {
		t.Errorf("%d %s arrived again, %d are counted", again, name, c.MaybeTwice)
	}
}

// settled waits until the agent has sent all that it has, and the metrics of it.
func (w *watcher) settled(t *testing.T, within time.Duration) (s fullStatus) {
	t.Helper()
	eventually(t, within, "everything has left", func() bool {
		s = w.fullStatus(t)
		for _, c := range s.Export.Signals {
			if c.Spooled > 0 {
				return false
			}
		}
		p := s.Probes
		return s.Export.Signals["traces"].Queued == 0 && p.Spans.Emitted == p.Spans.Decoded+p.Losses["crash"]+p.Losses["invalid_record"]
	})
	time.Sleep(3 * time.Second) // collections, and lines that wait for more
	eventually(t, within, "the last of it has left", func() bool {
		s = w.fullStatus(t)
		for _, c := range s.Export.Signals {
			if c.Spooled+c.Queued > 0 {
				return false
			}
		}
		return true
	})
	return s
}

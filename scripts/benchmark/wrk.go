package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// wrkScript makes wrk print its result as one line of JSON, times in
// microseconds.
const wrkScript = `
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\nRESULT {"requests":%d,"us":%d,"p50":%g,"p99":%g,"failed":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
`

// load is what wrk saw.
type load struct {
	Requests int     // answered
	US       float64 `json:"us"` // length of the run, us
	P50, P99 float64 // latency, us
	Failed   int     // answers other than 2xx and 3xx, and broken connections
}

// perSecond is the throughput.
func (l load) perSecond() float64 { return float64(l.Requests) / l.US * 1e6 }

// stalled tells whether the run took much longer than asked: wrk itself was held
// up, and its figures say nothing.
func (l load) stalled(asked time.Duration) bool { return l.US > 1.2*micros(asked) }

// runWrk loads a URL for d, with one thread.
func runWrk(ctx context.Context, cfg config, script, url string, d time.Duration) (load, error) {
	ctx, cancel := context.WithTimeout(ctx, d+time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "taskset", "-c", strconv.Itoa(cfg.otherCPU),
		"wrk", "-t1", "-c"+strconv.Itoa(cfg.connections), "-d"+strconv.Itoa(int(d.Seconds()))+"s", "-s", script, url).CombinedOutput()
	if err != nil {
		return load{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	_, line, ok := strings.Cut(string(out), "\nRESULT ")
	var l load
	if !ok {
		return l, fmt.Errorf("wrk printed no result: %s", out)
	}
	if err := json.Unmarshal([]byte(line), &l); err != nil {
		return l, fmt.Errorf("read wrk's result %q: %w", line, err)
	}
	if l.Failed > 0 || l.Requests == 0 {
		return l, fmt.Errorf("%s: %d of %d requests failed", url, l.Failed, l.Requests)
	}
	return l, nil
}

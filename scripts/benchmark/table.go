package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// spread is a median with the extremes beside it.
type spread struct{ median, low, high float64 }

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{median: (sorted[(n-1)/2] + sorted[n/2]) / 2, low: sorted[0], high: sorted[n-1]}
}

// text prints a spread with so many decimals, as "5.1 (4.9–5.6)".
func (s spread) text(decimals int) string {
	return fmt.Sprintf("%.*f (%.*f–%.*f)", decimals, s.median, decimals, s.low, decimals, s.high)
}

// quartilesOf is the median with the quartiles beside it.
func quartilesOf(values []float64) spread {
	s := spreadOf(values)
	if n := len(values); n > 0 {
		sorted := slices.Sorted(slices.Values(values))
		s.low, s.high = sorted[(n-1)/4], sorted[n-1-(n-1)/4]
	}
	return s
}

// of returns one figure of every sample of a path and rate.
func (r *result) of(path string, rate float64, figure func(sample) float64) spread {
	var values []float64
	for _, s := range r.samples[key{path, rate}] {
		values = append(values, figure(s))
	}
	return spreadOf(values)
}

// against compares a figure with the bare one of the same round.
func (r *result) against(path string, rate float64, figure func(sample) float64, compare func(with, without float64) float64) spread {
	var values []float64
	without := r.samples[key{path, bare}]
	for i, s := range r.samples[key{path, rate}] {
		values = append(values, compare(figure(s), figure(without[i])))
	}
	return spreadOf(values)
}

func appCPU(s sample) float64   { return s.appCPU }
func agentCPU(s sample) float64 { return s.agentCPU }
func reqPerS(s sample) float64  { return s.perSecond() }
func p50(s sample) float64      { return s.P50 }
func p99(s sample) float64      { return s.P99 }

func minus(a, b float64) float64 { return a - b }
func ratio(a, b float64) float64 { return a / b }

// markdown is the report.
func (r *result) markdown() string {
	var b strings.Builder
	b.WriteString(r.machine())
	r.steadyTable(&b)
	b.WriteString("\nWhat the service pays at full speed, with as many requests as wrk gets answered. Median over the rounds\n")
	b.WriteString("(lowest–highest); \"added\" and ratios are taken within each round. wrk, the agent and the sink share a core: what\n")
	b.WriteString("wrk is held up there, the shop has fewer requests at a time, and each costs more.\n\n")
	b.WriteString("| request | agent | app CPU, µs a request | added, µs | ratio | requests/s | ratio | p50, µs | ratio | p99, µs | ratio |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, req := range requests {
		for _, rate := range append([]float64{bare}, r.cfg.rates...) {
			r.effectRow(&b, req, rate)
		}
	}
	b.WriteString("\nWhat the agent pays, and what became of the spans, all rounds together. A span is expected for each request\n")
	b.WriteString("that wrk saw answered and for each of its queries and calls, times the rate; a few requests more are cut off at the end.\n")
	b.WriteString("Traps are the kernel's count of runs, ns in a program what it has measured, itself included; with the price of a trap (below)\n")
	b.WriteString("that is the part of what the service pays that does not depend on what else the machine does.\n\n")
	b.WriteString("| request | rate | agent CPU, µs a request | µs a span | traps a request | ns in a program | traps and programs, µs a request | spans expected | received | bytes a span |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|\n")
	for _, req := range requests {
		for _, rate := range r.cfg.rates {
			r.costRow(&b, req, rate)
		}
	}
	b.WriteString("\n" + r.calibration.text())
	fmt.Fprintf(&b, "\nAgent memory: %.1f MB resident, %.1f MB at its peak.", float64(r.rss)/1e6, float64(r.peak)/1e6)
	if len(r.firstSpan) > 0 {
		var ms []float64
		for _, d := range r.firstSpan {
			ms = append(ms, float64(d)/float64(time.Millisecond))
		}
		fmt.Fprintf(&b, " First span exported %s ms after the agent's start.", spreadOf(ms).text(0))
	}
	fmt.Fprintf(&b, " Losses that the agent states: %s.\n", r.lossText())
	return b.String()
}

// steadyTable is what requests cost the service at a steady load.
func (r *result) steadyTable(b *strings.Builder) {
	fmt.Fprintf(b, "\nWhat the service pays at a steady load: %d requests every %v, alike for two shops, one of them under the agent, in\n",
		r.cfg.connections, steadyInterval)
	fmt.Fprintf(b, "turns of %v. Median over the pairs (quartiles); \"added\" is taken within each pair.\n\n", steadySlice)
	b.WriteString("| request | rate | bare, app CPU, µs a request | added, µs | ratio | pairs |\n|---|---|---|---|---|---|\n")
	for _, req := range requests {
		for _, rate := range r.cfg.rates {
			over := func(f func(pair) float64) spread { return r.steadyOf(req.path, rate, f) }
			fmt.Fprintf(b, "| `%s` (%s) | %g | %s | %s | %s | %d |\n", req.path, req.label, rate,
				over(pair.costBare).text(2), over(pair.added).text(2), over(pair.ratio).text(3),
				len(r.steady[key{req.path, rate}]))
		}
	}
}

// steadyOf returns one figure of every pair of a path and rate.
func (r *result) steadyOf(path string, rate float64, figure func(pair) float64) spread {
	var values []float64
	for _, p := range r.steady[key{path, rate}] {
		values = append(values, figure(p))
	}
	return quartilesOf(values)
}

// steadyCost is what a request costs the service, without the agent in all pairs.
func (r *result) steadyCost(path string, rate float64) spread {
	if rate != bare {
		return r.steadyOf(path, rate, pair.costWith)
	}
	var values []float64
	for _, rate := range r.cfg.rates {
		for _, p := range r.steady[key{path, rate}] {
			values = append(values, p.bare)
		}
	}
	return quartilesOf(values)
}

func (r *result) effectRow(b *strings.Builder, req request, rate float64) {
	at := func(f func(sample) float64, decimals int) string { return r.of(req.path, rate, f).text(decimals) }
	than := func(f func(sample) float64, compare func(a, b float64) float64, decimals int) string {
		if rate == bare {
			return "–"
		}
		return r.against(req.path, rate, f, compare).text(decimals)
	}
	name := "none"
	if rate != bare {
		name = fmt.Sprintf("rate %g", rate)
	}
	cells := []string{
		fmt.Sprintf("`%s` (%s)", req.path, req.label), name,
		at(appCPU, 2), than(appCPU, minus, 2), than(appCPU, ratio, 3),
		at(reqPerS, 0), than(reqPerS, ratio, 3),
		at(p50, 0), than(p50, ratio, 2), at(p99, 0), than(p99, ratio, 2),
	}
	fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
}

func (r *result) costRow(b *strings.Builder, req request, rate float64) {
	var expected, received, bytes float64
	for _, s := range r.samples[key{req.path, rate}] {
		expected += float64(s.Requests*(1+req.children)) * rate
		received += float64(s.got.spans())
		bytes += float64(s.got.bytes)
	}
	perSpan := func(s sample) float64 {
		return s.agentCPU * float64(s.Requests) / max(float64(s.got.spans()), 1)
	}
	t := r.traps[key{req.path, rate}]
	fmt.Fprintf(b, "| `%s` | %g | %s | %s | %.2f | %.0f | %.2f | %.0f | %.0f | %.0f |\n", req.path, rate,
		r.of(req.path, rate, agentCPU).text(2), r.of(req.path, rate, perSpan).text(2),
		t.perRequest, t.nsPerRun, t.perRequest*(t.nsPerRun+r.emulated)/1e3, expected, received, bytes/max(received, 1))
}

func (r *result) lossText() string {
	if len(r.losses) == 0 {
		return "none"
	}
	var parts []string
	for reason, n := range r.losses {
		parts = append(parts, fmt.Sprintf("%s %.0f", reason, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// machine says where and how this was measured.
func (r *result) machine() string {
	var u unix.Utsname
	kernel := "unknown"
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	goVersion := "unknown Go"
	if info, err := buildinfo.ReadFile(r.cfg.shop); err == nil {
		goVersion = info.GoVersion
	}
	idle := "halt, so that waking wrk is a part of what a request costs the shop, the more so the slower it is"
	if r.polling {
		idle = "poll, so that waking wrk costs the shop next to nothing"
	}
	model, cores := processor()
	return fmt.Sprintf("Machine: %s, %d cores, Linux %s. Shop built with %s, alone on core %d (so GOMAXPROCS=1); wrk (1 thread, %d\n"+
		"connections), the agent and the sink share core %d. %d rounds of %v each, conditions in turns. Idle cores\n"+
		"%s. Load average before: %s. %s.\n",
		model, cores, kernel, goVersion, r.cfg.appCPU, r.cfg.connections,
		r.cfg.otherCPU, r.cfg.rounds, r.cfg.duration, idle, r.loadBefore, time.Now().UTC().Format("2006-01-02"))
}

// loadAverage is the kernel's, over one minute.
func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	minute, _, _ := strings.Cut(string(data), " ")
	return minute
}

// processor returns the model and number of the cores; runtime.NumCPU counts
// only the core that this program may use.
func processor() (model string, cores int) {
	model = "unknown CPU"
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return model, 0
	}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "processor":
			cores++
		case "model name":
			model = strings.TrimSpace(value)
		}
	}
	return model, cores
}

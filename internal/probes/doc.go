// Package probes turns what unmodified Go programs do into telemetry. This is the
// way of a span, in order:
//
//	targets.go    which processes, and which binaries they run
//	executable.go work done once for each binary: layouts and probe sites (gobin),
//	              and uprobes on those sites
//	              ... the kernel: bpf/span.h and bpf/<library>.bpf.c ...
//	reader.go     ring buffer → record → the decoder of its library
//	nethttp.go, databasesql.go
//	              record → event.Span, by the semantic conventions
//	              → event.Sink, which internal/export implements
//
// Beside it, metrics.go collects the histograms that the kernel fills, active.go counts
// what is open now, and backoff.go takes probes out where they cost too much, as
// budget.go decides.
//
// doctor.go is the dry run: the same analysis, with nothing attached. privileges.go knows
// what each step asks of the kernel.
//
// library.go is the table of instrumented libraries. A new one is a line there, a
// file here and a file in bpf/.
package probes

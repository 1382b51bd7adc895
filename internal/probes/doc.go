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
// library.go is the table of instrumented libraries. A new one is a line there, a
// file here and a file in bpf/.
package probes

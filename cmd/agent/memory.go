package main

import (
	"math"
	"runtime/debug"

	"github.com/plainframework/agent/internal/config"
)

// The garbage collector's settings. What lives in the agent is small, about
// 5 MB at 40,000 spans a second, and what passes through is not: with Go's
// default the collector would run 30 times a second for nothing. At 250 % it runs
// some 8 times, for 8 MB more, and takes a fifth off the CPU of a span. The limit
// keeps the same factor from adding up when the queues are full.
const (
	gcPercent  = 250
	baseMemory = 64 << 20
)

// tuneMemory sets the collector, except for what GOGC or GOMEMLIMIT has set
// already: someone knew better.
func tuneMemory(cfg config.Config) {
	const unset = 100
	if before := debug.SetGCPercent(gcPercent); before != unset {
		debug.SetGCPercent(before)
	}
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(baseMemory + int64(cfg.Export.QueueSize))
	}
}

// releaseStartup gives back what loading programs and reading binaries took, which is
// several times what the agent needs from then on.
func releaseStartup() { debug.FreeOSMemory() }

package main

import (
	"bytes"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

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
// already: someone knew better. A cgroup with a lower limit lowers the agent's, with
// room for what is not Go's heap.
func tuneMemory(cfg config.Config) {
	const unset = 100
	if before := debug.SetGCPercent(gcPercent); before != unset {
		debug.SetGCPercent(before)
	}
	if debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return
	}
	limit := baseMemory + int64(cfg.Export.QueueSize)
	if c := cgroupMemory("/proc/self/cgroup", "/sys/fs/cgroup"); c > 0 {
		limit = min(limit, c/10*9)
	}
	debug.SetMemoryLimit(limit)
}

// cgroupMemory is the lowest memory limit of the cgroups that the process is in, by
// version 2 or 1; 0 if there is none.
func cgroupMemory(membership, root string) (lowest int64) {
	text, err := os.ReadFile(membership)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			continue
		}
		file, mount := "memory.max", root
		switch {
		case part[1] == "memory":
			file, mount = "memory.limit_in_bytes", path.Join(root, "memory")
		case part[0] != "0" || part[1] != "":
			continue
		}
		// A limit of a parent holds, too. In a container's own namespace the path is
		// the root, or one that is not mounted here: then the root alone counts.
		for dir := path.Join("/", part[2]); ; dir = path.Dir(dir) {
			b, err := os.ReadFile(path.Join(mount, dir, file))
			n, numErr := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
			// Version 1 says "none" by a number near the largest.
			if err == nil && numErr == nil && n > 0 && n < 1<<60 && (lowest == 0 || n < lowest) {
				lowest = n
			}
			if dir == "/" {
				break
			}
		}
	}
	return lowest
}

// releaseStartup gives back what loading programs and reading binaries took, which is
// several times what the agent needs from then on.
func releaseStartup() { debug.FreeOSMemory() }

// processStatus is what the agent itself takes.
type processStatus struct {
	MemoryBytes int64         `json:"memory_bytes"` // resident
	MemoryLimit int64         `json:"memory_limit"` // of Go's heap
	CPU         time.Duration `json:"cpu_ns"`
}

func readProcess() processStatus {
	s := processStatus{MemoryLimit: debug.SetMemoryLimit(-1), CPU: ownCPU()}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := strings.Fields(string(b)); len(fields) > 1 {
			pages, _ := strconv.ParseInt(fields[1], 10, 64) // 0 says unknown
			s.MemoryBytes = pages * int64(os.Getpagesize())
		}
	}
	return s
}

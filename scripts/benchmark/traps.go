package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// traps are the runs of uprobe programs that the kernel counted.
type traps struct {
	runs uint64
	time time.Duration // inside the programs, without the trap itself
}

// enableCounting makes the kernel count and time program runs until the closer
// is closed. That costs each run a little, so it is on only for its own
// measurement.
func enableCounting() (io.Closer, error) {
	c, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, fmt.Errorf("count program runs: %w", err)
	}
	return c, nil
}

// trapsOf adds up the programs of type kprobe, which uprobes are to the kernel,
// that a process holds.
func trapsOf(pid int) (traps, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return traps{}, fmt.Errorf("list descriptors: %w", err)
	}
	var sum traps
	seen := map[ebpf.ProgramID]bool{}
	for _, file := range files {
		id := programID(file)
		if id == 0 || seen[id] {
			continue
		}
		seen[id] = true
		t, err := runsOf(id)
		if err != nil {
			return traps{}, fmt.Errorf("program %d: %w", id, err)
		}
		sum.runs += t.runs
		sum.time += t.time
	}
	if len(seen) == 0 {
		return traps{}, fmt.Errorf("process %d holds no BPF program", pid)
	}
	return sum, nil
}

// programID reads the id out of a descriptor's fdinfo, 0 if there is none.
func programID(fdinfo string) ebpf.ProgramID {
	data, err := os.ReadFile(fdinfo)
	if err != nil {
		return 0 // closed meanwhile
	}
	_, rest, ok := strings.Cut(string(data), "prog_id:")
	if !ok {
		return 0
	}
	var id ebpf.ProgramID
	_, _ = fmt.Sscan(rest, &id) // stays 0 if it is no number
	return id
}

func runsOf(id ebpf.ProgramID) (traps, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return traps{}, err
	}
	defer p.Close()
	if p.Type() != ebpf.Kprobe {
		return traps{}, nil
	}
	s, err := p.Stats()
	if err != nil {
		return traps{}, err
	}
	return traps{runs: s.RunCount, time: s.Runtime}, nil
}

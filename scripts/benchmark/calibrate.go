package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/internal/probes/gobin"
)

// calibration is what one trap costs on this machine, with a program that does nothing,
// in a loop that does nothing else: the least that any agent pays.
type calibration struct {
	emulated, stepped     float64 // ns
	emulatedAt, steppedAt string  // instructions
}

const (
	// spinArg makes this program the target of the calibration.
	spinArg     = "-calibration-loop"
	spinRounds  = 5
	spinLasts   = 50 * time.Millisecond
	spinAtOnce  = 1000
	spinProgram = "main.spun"
)

// spin calls a function over and over, and prints what a call takes.
func spin() {
	runtime.LockOSThread()
	n := 0
	for start := time.Now(); time.Since(start) < time.Minute; {
		calls, began := 0, time.Now()
		for time.Since(began) < spinLasts {
			for range spinAtOnce {
				n = spun(n)
			}
			calls += spinAtOnce
		}
		fmt.Println(float64(time.Since(began).Nanoseconds())/float64(calls), n&1)
	}
}

// spun has a stack check and is small.
//
//go:noinline
func spun(n int) int {
	var room [64]byte
	room[n&63] = byte(n)
	return n + int(room[(n+1)&63]) + spunLeaf(n)
}

//go:noinline
func spunLeaf(n int) int { return n&1 + 1 }

// calibrate runs the loop on the shop's core, and probes it at the two kinds of
// instruction.
func calibrate(ctx context.Context, cpu int) (c calibration, err error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return c, fmt.Errorf("calibrate: %w", err)
	}
	defer self.Close()
	emulated, entry, err := spunSites(self)
	if err != nil {
		return c, fmt.Errorf("calibrate: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", spinArg)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return c, fmt.Errorf("calibrate: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return c, fmt.Errorf("calibrate: %w", err)
	}
	defer func() { cancel(); _ = cmd.Wait() }() // it was killed
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(cmd.Process.Pid, &set); err != nil {
		return c, fmt.Errorf("calibrate: pin to core %d: %w", cpu, err)
	}
	lines := bufio.NewScanner(out)
	without, err := fastest(lines)
	if err != nil {
		return c, err
	}
	if c.emulated, err = probed(lines, self, emulated.Offset); err != nil {
		return c, err
	}
	if c.stepped, err = probed(lines, self, entry.Offset); err != nil {
		return c, err
	}
	c.emulated -= without
	c.stepped -= without
	c.emulatedAt, c.steppedAt = emulated.Instr, entry.Instr
	return c, nil
}

// spunSites are the agent's choice for the function, and its first instruction, which
// others choose.
func spunSites(exe *os.File) (emulated, entry gobin.Site, err error) {
	stat, err := exe.Stat()
	if err != nil {
		return emulated, entry, err
	}
	b, err := gobin.Open(exe, stat.Size())
	if err != nil {
		return emulated, entry, err
	}
	f, err := b.Func(spinProgram)
	if err != nil {
		return emulated, entry, err
	}
	if emulated, err = b.EntrySite(f); err != nil {
		return emulated, entry, err
	}
	offset, ok := b.FileOffset(f.Addr)
	if !ok || !emulated.Emulated || emulated.Addr == f.Addr {
		return emulated, entry, errors.New("the loop has no two kinds of instruction")
	}
	return emulated, gobin.Site{Addr: f.Addr, Offset: offset, Instr: "the function's first instruction"}, nil
}

// fastest is the least of some rounds, in ns a call: whatever disturbs only adds.
func fastest(lines *bufio.Scanner) (float64, error) {
	best := 0.0
	for i := range spinRounds + 2 {
		if !lines.Scan() {
			return 0, errors.New("calibrate: the loop has ended")
		}
		text, _, _ := strings.Cut(lines.Text(), " ")
		ns, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return 0, fmt.Errorf("calibrate: %w", err)
		}
		if i >= 2 && (best == 0 || ns < best) { // the first two began before
			best = ns
		}
	}
	return best, nil
}

// probed measures the loop with an empty program at an offset of the executable.
func probed(lines *bufio.Scanner, exe *os.File, offset uint64) (float64, error) {
	multi := features.HaveBPFLinkUprobeMulti() == nil
	spec := &ebpf.ProgramSpec{
		Type: ebpf.Kprobe, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	}
	if multi {
		spec.AttachType = ebpf.AttachTraceUprobeMulti
	}
	program, err := ebpf.NewProgram(spec)
	if err != nil {
		return 0, fmt.Errorf("calibrate: %w", err)
	}
	defer program.Close()
	target, err := link.OpenExecutable(fmt.Sprintf("/proc/self/fd/%d", exe.Fd()))
	if err != nil {
		return 0, fmt.Errorf("calibrate: %w", err)
	}
	var l link.Link
	if multi {
		l, err = target.UprobeMulti(nil, program, &link.UprobeMultiOptions{Addresses: []uint64{offset}})
	} else {
		l, err = target.Uprobe("", program, &link.UprobeOptions{Address: offset})
	}
	if err != nil {
		return 0, fmt.Errorf("calibrate: %w", err)
	}
	defer l.Close()
	return fastest(lines)
}

// text is a line for the report.
func (c calibration) text() string {
	return fmt.Sprintf("One trap with an empty program, in a tight loop on the shop's core, in this run: %.0f ns where the kernel emulates the\n"+
		"instruction (`%s`), %.0f ns where it steps over a copy of it (%s, which others probe). The difference to what a trap\n"+
		"of the agent costs a request is its program, and memory that a tight loop has in the cache and a service has not.\n",
		c.emulated, c.emulatedAt, c.stepped, c.steppedAt)
}

package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// emulator is an unpacked QEMU.
type emulator struct{ dir string }

// command boots a kernel on a machine with one CPU, and its console on standard output.
func (e emulator) command(ctx context.Context, arch, kernel, initrd string) *exec.Cmd {
	program, console := "qemu-system-x86_64", "ttyS0"
	// Without 16-byte compare-and-swap, which QEMU 7.2 does not emulate reliably.
	machine := []string{"-cpu", "max,-cx16", "-machine", "q35"}
	if arch == "arm64" {
		// A CPU without pointer authentication, which is slow to emulate.
		program, console = "qemu-system-aarch64", "ttyAMA0"
		machine = []string{"-cpu", "cortex-a72", "-machine", "virt"}
	}
	args := append(machine, "-accel", "tcg", "-smp", "1", "-m", "1024", "-display", "none", "-serial", "stdio", "-monitor", "none",
		"-nic", "none", "-no-reboot", "-L", e.dir+"/usr/share/qemu", "-L", e.dir+"/usr/share/seabios", "-kernel", kernel, "-initrd", initrd,
		// A panic ends the machine; what the kernel has to say goes between lines of tests.
		// Preemption, where the kernel has a choice, finds what programs share by mistake.
		"-append", "console="+console+" panic=-1 loglevel=1 random.trust_cpu=on preempt=full")
	cmd := exec.CommandContext(ctx, filepath.Join(e.dir, "usr/bin", program), args...)
	lib := e.dir + "/usr/lib/x86_64-linux-gnu:" + e.dir + "/lib/x86_64-linux-gnu"
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+lib)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// step is how a step of the plan ended.
type step struct {
	name   string
	ended  bool
	code   int
	output []string // its last lines
}

// run is one boot of a guest.
type run struct {
	steps []*step
	done  bool // the guest came to the end of its plan
	took  time.Duration
	last  []string // the last lines of the console
}

// errDied: the guest ended before its plan did. That says nothing of the tests.
var errDied = errors.New("the guest died")

// boot runs a guest to its end; the whole console goes to the file log.
func (e emulator) boot(arch, kernel, initrd, nonce, log string) (*run, error) {
	ctx, cancel := context.WithTimeout(context.Background(), guestLimit)
	defer cancel()
	cmd := e.command(ctx, arch, kernel, initrd)
	console, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	r := &run{}
	err = r.follow(io.TeeReader(console, out), nonce)
	err = errors.Join(err, cmd.Wait())
	r.took = time.Since(start)
	if !r.done {
		return r, fmt.Errorf("%w: %w: %s", errDied, errors.Join(err, ctx.Err()), strings.Join(r.last, "\n"))
	}
	return r, nil
}

// guestLimit ends a guest that hangs.
const guestLimit = 40 * time.Minute

// keepLines of each step are kept, to be shown if it fails.
const keepLines = 4000

// follow reads the console to its end.
func (r *run) follow(console io.Reader, nonce string) error {
	lines := bufio.NewReaderSize(console, 1<<16)
	var now *step
	for {
		line, err := lines.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		said, ours := strings.CutPrefix(line, nonce+" ")
		words := strings.Fields(said)
		switch {
		case !ours || len(words) == 0:
			r.last = append(r.last[max(0, len(r.last)-20):], line)
			if now != nil {
				now.output = append(now.output[max(0, len(now.output)-keepLines):], line)
			}
		case words[0] == "begin" && len(words) == 2:
			now = &step{name: words[1]}
			r.steps = append(r.steps, now)
		case words[0] == "exit" && len(words) == 3 && now != nil:
			now.code, _ = strconv.Atoi(words[2])
			now.ended = true
			now = nil
		case words[0] == "done":
			r.done = true
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read console: %w", err)
		}
	}
}

func newNonce() string { return "guest-" + rand.Text() }

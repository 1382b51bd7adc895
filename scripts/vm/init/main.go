// Command init is the first process of a guest: it mounts what programs expect, runs the
// plan, says on the console how each step ended, and turns the machine off.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/scripts/vm/plan"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this runs as the first process of a virtual machine only")
		os.Exit(1)
	}
	if err := run(); err != nil {
		fmt.Println("init:", err) // the host misses "done", and shows this
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // QEMU takes it for the end
}

func run() error {
	if err := prepare(); err != nil {
		return err
	}
	text, err := os.ReadFile(plan.File)
	if err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	var p plan.Plan
	if err := json.Unmarshal(text, &p); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	for _, s := range p.Steps {
		fmt.Printf("\n%s begin %s\n", p.Nonce, s.Name)
		fmt.Printf("\n%s exit %s %d\n", p.Nonce, s.Name, runStep(s))
	}
	fmt.Printf("\n%s done\n", p.Nonce)
	return nil
}

// prepare makes the file system and the network what a program expects.
func prepare() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"cgroup2", "/sys/fs/cgroup"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", m.at, err)
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := os.MkdirAll("/tmp", 0o777); err != nil {
		return fmt.Errorf("make /tmp: %w", err)
	}
	for k, v := range map[string]string{"PATH": "/built", "HOME": "/tmp", "TMPDIR": "/tmp"} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	return loopbackUp()
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	return nil
}

// runStep returns the exit code, -1 where there is none.
func runStep(s plan.Step) int {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		fmt.Println("init:", err)
		return -1
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Command[0], s.Command[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Dir, os.Stdout, os.Stdout
	// Go prints all its goroutines on the way out.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	err := cmd.Run()
	if ctx.Err() != nil {
		fmt.Printf("init: %s is not done after %v\n", s.Name, s.Limit)
	}
	if err != nil && cmd.ProcessState == nil {
		fmt.Println("init:", err)
		return -1
	}
	return cmd.ProcessState.ExitCode()
}

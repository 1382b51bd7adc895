package probes

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// TestNeeds: what each way of attaching asks for, and what is kept of what there is.
func TestNeeds(t *testing.T) {
	root := ^capabilitySet(0)
	tests := []struct {
		name               string
		have               capabilitySet
		multi, perfAllowed bool
		missing            string // in the error; "" is no error
		least              capabilitySet
	}{
		{"root", root, true, true, "", setOf(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH)},
		{"root, perf events", root, false, false, "",
			setOf(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH, unix.CAP_SYS_ADMIN)},
		{"root, perf events of an old kernel", root, false, true, "",
			setOf(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH)},
		{"perf events", setOf(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_PTRACE), false, false, "missing CAP_SYS_ADMIN:",
			setOf(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_PTRACE)},
		{"CAP_SYS_ADMIN", setOf(unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE), true, true, "", setOf(unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE)},
		{"none", 0, true, true, "missing CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE:", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			list := needs(tt.multi, tt.perfAllowed)
			err := missingError(tt.have.missing(list))
			if tt.missing == "" && err != nil || tt.missing != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.missing)) {
				t.Errorf("error %v, want %q", err, tt.missing)
			}
			if least := tt.have.least(list); least != tt.least {
				t.Errorf("keeps %v, want %v", least, tt.least)
			}
		})
	}
}

// TestPerfAllowed: what the question without a file answers is what attaching meets, as
// root and for a user with fewer capabilities.
func TestPerfAllowed(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("PERF_ALLOWED_CHILD") == "" {
		t.Skip("needs root, to attach probes")
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Kprobe, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatalf("load a program: %v", err)
	}
	defer program.Close()
	exe, err := link.OpenExecutable("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	l, err := exe.Uprobe("", program, &link.UprobeOptions{Address: 1 << 20, PID: 1}) // never run
	switch {
	case err == nil:
		l.Close()
	case !errors.Is(err, os.ErrPermission):
		t.Fatalf("attach: %v", err)
	}
	if allowed := perfAllowed(); allowed != (err == nil) {
		t.Errorf("perfAllowed is %v, and attaching says %v", allowed, err)
	}
	t.Logf("perf events: %v", err)
	t.Logf("without CAP_SYS_ADMIN: %v", perfAllowedWithoutAdmin())
	if os.Geteuid() == 0 {
		for _, caps := range [][]uintptr{{unix.CAP_BPF, unix.CAP_PERFMON}, {unix.CAP_SYS_ADMIN}} {
			cmd := exec.Command("/proc/self/exe", "-test.run", "^TestPerfAllowed$", "-test.v")
			cmd.Env = append(os.Environ(), "PERF_ALLOWED_CHILD=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: caps}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: TestPerfAllowed") {
				t.Errorf("with %v: %v\n%s", caps, err, out)
			}
			t.Logf("with %v:\n%s", caps, out)
			// Whoever lacks the capability, and whoever has it, must be told the same.
			if want := fmt.Sprintf("without CAP_SYS_ADMIN: %v\n", perfAllowedWithoutAdmin()); !strings.Contains(string(out), want) {
				t.Errorf("with %v the answer is not %q", caps, want)
			}
		}
	}
}

// TestBPFForbidden: under a seccomp profile that refuses bpf, as those of some container
// engines do, that is what is said.
func TestBPFForbidden(t *testing.T) {
	if os.Getenv("BPF_FORBIDDEN_CHILD") != "" {
		forbidBPF(t)
		if _, err := loadKernel(Options{}); err == nil || !strings.Contains(err.Error(), "seccomp profile") {
			t.Errorf("load: %v", err)
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have the capabilities")
	}
	if err := refused(); err != nil {
		t.Errorf("here: %v", err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestBPFForbidden$", "-test.v")
	cmd.Env = append(os.Environ(), "BPF_FORBIDDEN_CHILD=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestBPFForbidden") {
		t.Errorf("%v\n%s", err, out)
	}
}

// forbidBPF has the kernel answer EPERM to bpf, to all threads and for good.
func forbidBPF(t *testing.T) {
	const load, equal, give = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	filter := []unix.SockFilter{
		{Code: load, K: 0}, // the number of the call
		{Code: equal, K: unix.SYS_BPF, Jf: 1},
		{Code: give, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: give, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		t.Fatal(errno)
	}
}

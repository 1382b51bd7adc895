package probes

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// kernelFeatures are those of which the agent has a way with and a way without.
var kernelFeatures = []struct {
	name         string
	major, minor int // of the kernel that brought it
	has          func() error
}{
	{"atomic lookup and delete", 5, 14, haveLookupAndDelete},
	{"attach cookies", 5, 15, func() error { return features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetAttachCookie) }},
	{"uprobe_multi", 6, 6, features.HaveBPFLinkUprobeMulti},
}

func haveLookupAndDelete() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	var value uint32
	if err := m.LookupAndDelete(uint32(1), &value); !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// kernelRelease is the version of this kernel as text and in numbers.
func kernelRelease(t *testing.T) (text string, major, minor int) {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	text = unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(text, "%d.%d", &major, &minor); err != nil {
		t.Fatalf("kernel release %q: %v", text, err)
	}
	return text, major, minor
}

// TestKernel: this kernel has what its version promises and lacks what it does not, so
// the agent takes the way that is tested for it; all programs load, and each of them
// attaches to a site of a real program. scripts/kernels reads the line that it logs.
func TestKernel(t *testing.T) {
	s := startService(t)
	release, major, minor := kernelRelease(t)
	lacks := []string{}
	for _, f := range kernelFeatures {
		want := major > f.major || major == f.major && minor >= f.minor
		err := f.has()
		if err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
			t.Errorf("ask for %s: %v", f.name, err)
		}
		if (err == nil) != want {
			t.Errorf("Linux %s has %s: %v, expected %v", release, f.name, err == nil, want)
		}
		if !want {
			lacks = append(lacks, f.name)
		}
	}
	mode := attachMulti
	if slices.Contains(lacks, "attach cookies") {
		mode = attachLookup
	} else if slices.Contains(lacks, "uprobe_multi") {
		mode = attachCookies
	}

	told := Propagation{Headers: true, Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Names: []string{"*.svc"}}
	reason := messagesRefused(t, major, minor)
	if reason != "" {
		lacks = append(lacks, reason)
	}
	changesMessages(t, told, reason == "")
	a := startAgentOn(t, Options{PIDs: []int{s.pid}, Propagation: told}, &sink{}, &lines{})
	want := "memory"
	// Kernels of scripts/kernels are not locked down.
	if *built == "" && features.HaveProgramHelper(ebpf.Kprobe, asm.FnProbeWriteUser) != nil {
		want = "messages"
		lacks = append(lacks, "memory of targets that can be written to")
	}
	if got := a.kernel.propagation.mode(); got != want {
		t.Errorf("requests are changed by %s, expected %s: %s; %s", got, want, a.kernel.propagation.reason, a.kernel.propagation.refused)
	}
	if a.kernel.mode != mode {
		t.Errorf("probes are attached by %s, expected %s", a.kernel.mode, mode)
	}
	if a.exec == nil {
		t.Error("execve is not followed")
	}
	programs := attachEach(t, a)
	facts, err := json.Marshal(map[string]any{"release": release, "attach": a.kernel.mode.String(), "programs": programs, "lacks": lacks})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("kernel: %s", facts)
}

// messagesRefused is why what sockets send is not to be changed here; "" if it is.
func messagesRefused(t *testing.T, major, minor int) string {
	t.Helper()
	if major < 6 || major == 6 && minor < 12 {
		return "safe ways to change what is sent"
	}
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	if major >= 7 && runtime.GOARCH == "amd64" && !strings.Contains(string(cpu), " cx16 ") {
		return "notes on sockets, for want of CMPXCHG16B in this emulator"
	}
	return ""
}

// changesMessages: the messages of targets are changed where that can be, else it is said
// why not.
func changesMessages(t *testing.T, told Propagation, can bool) {
	t.Helper()
	told.Messages = true
	a := startAgentOn(t, Options{PIDs: []int{startService(t).pid}, Propagation: told}, &sink{}, &lines{})
	p := a.kernel.propagation
	if want := map[bool]string{true: "messages", false: "off"}[can]; p.mode() != want || (p.reason == "") != can {
		t.Errorf("requests are changed by %s, expected %s: %s", p.mode(), want, p.reason)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// attachEach attaches every program to a site of the first target, whether that uses the
// library or not, and returns how many there are.
func attachEach(t *testing.T, a *Agent) int {
	t.Helper()
	b := a.targets.binaries[0]
	if len(b.plan) == 0 {
		t.Fatal("no site was found")
	}
	exe, err := link.OpenExecutable(fmt.Sprintf("/proc/self/fd/%d", b.exe.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	site := planned{offsets: b.plan[0].offsets[:1], cookies: b.plan[0].cookies[:1]}
	if err := a.kernel.programs.loadAll(); err != nil {
		t.Fatal(err)
	}
	for name, p := range a.kernel.programs.all() {
		if p.Type() != ebpf.Kprobe {
			continue
		}
		site.program = name
		links, err := attachProgram(a.kernel, exe, site, os.Getpid()) // which never fires there
		if err != nil {
			t.Errorf("attach %s: %v", name, err)
		}
		if err := links.Close(); err != nil {
			t.Errorf("detach %s: %v", name, err)
		}
	}
	return len(a.kernel.programs.all())
}

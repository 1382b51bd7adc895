package probes

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// capabilitySet has one bit for each capability of linux/capability.h.
type capabilitySet uint64

func setOf(bits ...uint) (s capabilitySet) {
	for _, bit := range bits {
		s |= 1 << bit
	}
	return s
}

func (s capabilitySet) has(bit uint) bool { return s&(1<<bit) != 0 }

// capabilityNames are those that the agent has a use for.
var capabilityNames = map[uint]string{
	unix.CAP_BPF: "CAP_BPF", unix.CAP_PERFMON: "CAP_PERFMON", unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN",
	unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE", unix.CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
	unix.CAP_SYS_RESOURCE: "CAP_SYS_RESOURCE",
}

// String lists the ones of capabilityNames.
func (s capabilitySet) String() string {
	var names []string
	for bit, name := range capabilityNames {
		if s.has(bit) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// need is something that the agent does, and the capabilities of which any one allows
// it, the least first.
type need struct {
	bits     []uint
	why      string // as in "CAP_BPF, <why>"
	optional bool   // without it some targets cannot be had, the others can
}

// needs are what the agent asks of the kernel. Where it has no uprobe_multi, probes are
// perf events: kernels since mid-2025, stable ones too, ask CAP_SYS_ADMIN for them, older
// ones only CAP_PERFMON, so perfAllowed looks.
func needs(multi, perfAllowed bool) []need {
	list := []need{
		{bits: []uint{unix.CAP_BPF, unix.CAP_SYS_ADMIN}, why: "to load BPF programs"},
		{bits: []uint{unix.CAP_PERFMON, unix.CAP_SYS_ADMIN}, why: "to load programs that trace, and to attach them"},
		{bits: []uint{unix.CAP_SYS_PTRACE}, why: "to look at processes of other users"},
		{bits: []uint{unix.CAP_DAC_READ_SEARCH, unix.CAP_DAC_OVERRIDE}, optional: true,
			why: "to read the environment of other users' processes, which may name the service, and executables closed to others"},
	}
	if !multi && !perfAllowed {
		list = append(list, need{bits: []uint{unix.CAP_SYS_ADMIN},
			why: "to attach probes through perf events, for this kernel has no uprobe_multi (Linux 6.6)"})
	}
	return list
}

// missing are the needs that a set does not cover.
func (s capabilitySet) missing(list []need) (out []need) {
	for _, n := range list {
		if !slices.ContainsFunc(n.bits, s.has) {
			out = append(out, n)
		}
	}
	return out
}

// least is the part of a set that covers what the set can cover of the needs.
func (s capabilitySet) least(list []need) (out capabilitySet) {
	for _, n := range list {
		if i := slices.IndexFunc(n.bits, s.has); i >= 0 {
			out |= setOf(n.bits[i])
		}
	}
	return out
}

// missingError is one sentence about needs that are not covered; nil if all that are not
// optional are.
func missingError(missing []need) error {
	var names, whys []string
	for _, n := range missing {
		if !n.optional {
			name := capabilityNames[n.bits[0]]
			names, whys = append(names, name), append(whys, name+" is needed "+n.why)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("missing %s: run the agent as root or give it %s too (%s)",
		strings.Join(names, ", "), strings.Join(names, ", "), strings.Join(whys, "; "))
}

// allowed tells in one sentence what this process may not do, before the kernel tells
// in ten thousand; and finds out how probes are attached.
func (k *kernel) allowed() error {
	if _, err := os.Stat(uprobeDevice); err != nil {
		return errors.New("this kernel has no uprobes: it must be built with CONFIG_UPROBE_EVENTS and have /sys mounted")
	}
	have, permitted, err := ownCapabilities()
	if err != nil {
		return err
	}
	if err := missingError(have.missing(needs(true, true))); err != nil {
		return err
	}
	if err := refused(); err != nil {
		return err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raise the limit of locked memory, against which Linux before 5.11 charges BPF maps: %w; give the agent CAP_SYS_RESOURCE, or no such limit (ulimit -l unlimited)", err)
	}
	if k.mode == attachAuto {
		k.mode = bestMode()
	}
	list := needs(k.mode == attachMulti, perfAllowedWithoutAdmin())
	k.least, k.missing = permitted.least(list), have.missing(list)
	return missingError(k.missing)
}

// refused tells whether the kernel makes not even the smallest map, for which any limit
// of locked memory has room: capabilities are not all that it asks.
func refused() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("the kernel refuses bpf in spite of the capabilities: in a container, use a seccomp profile that allows bpf and perf_event_open, or none: %w", err)
	}
	if err == nil {
		m.Close()
	}
	return nil
}

// ownCapabilities are the effective and the permitted ones of this thread. All threads
// of a Go program have the same.
func ownCapabilities() (effective, permitted capabilitySet, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, 0, fmt.Errorf("read own capabilities: %w", err)
	}
	return capabilitySet(data[1].Effective)<<32 | capabilitySet(data[0].Effective),
		capabilitySet(data[1].Permitted)<<32 | capabilitySet(data[0].Permitted), nil
}

// perfAllowed tells whether this process may open uprobes as perf events. It asks for
// one without a file, which the kernel refuses in any case: as not permitted, or as
// invalid.
func perfAllowed() bool {
	attr := unix.PerfEventAttr{Type: uprobeType(), Bits: unix.PerfBitDisabled}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fd, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err == nil {
		unix.Close(fd)
	}
	return !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM)
}

// perfAllowedWithoutAdmin asks on a thread that does without CAP_SYS_ADMIN meanwhile: only
// so can be seen whether it may be given up.
func perfAllowedWithoutAdmin() (allowed bool) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return false
	}
	own := data[0].Effective
	data[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	if unix.Capset(&header, &data[0]) != nil {
		return false
	}
	allowed = perfAllowed()
	data[0].Effective = own
	if unix.Capset(&header, &data[0]) != nil {
		runtime.LockOSThread() // cannot be, for it is permitted; no other goroutine gets this thread
	}
	return allowed
}

// uprobeDevice is where the kernel describes its uprobes.
const uprobeDevice = "/sys/bus/event_source/devices/uprobe"

// uprobeType is the number of the perf events that are uprobes, 0 if there are none.
func uprobeType() (n uint32) {
	text, err := os.ReadFile(uprobeDevice + "/type")
	if err == nil {
		_, _ = fmt.Sscan(string(text), &n) // 0 is an answer, too
	}
	return n
}

// dropPrivileges gives up every capability that is not in keep, for all threads and for
// good. What reads files of others from then on has as little to misuse as can be.
func dropPrivileges(keep capabilitySet) error {
	// Not even a program that this one would start gets them back.
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	low, high := uint32(keep), uint32(keep>>32)
	data := [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	err := onAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0, 0, 0)
	if err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// onAllThreads makes a system call on every thread: capabilities belong to a thread.
// Not in a program with cgo, where other threads than those of the runtime may be.
//
//go:uintptrescapes
func onAllThreads(trap, a1, a2, a3, a4, a5 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, a4, a5, 0)
	switch errno {
	case 0:
		return nil
	case syscall.ENOTSUP:
		return errors.New("this agent was built with cgo; build it with CGO_ENABLED=0")
	}
	return errno
}

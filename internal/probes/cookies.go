package probes

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/process"
)

// attachMode is how programs are attached, and how they learn which site fired.
type attachMode uint8

const (
	attachAuto    attachMode = iota // the best that the kernel has
	attachMulti                     // one link a program, with a cookie for each site: Linux 6.6
	attachCookies                   // one perf event a site, with a cookie: Linux 5.15
	// attachLookup is one perf event a site, and no cookies. A program looks up in sites
	// what it would be told by the binary of the process, which user space must have
	// stored, and by its own address there. What fires in a process that is not known yet
	// is lost and counted; it is never taken for something else.
	attachLookup
)

func (m attachMode) String() string {
	return [...]string{"auto", "uprobe_multi", "perf events, cookies", "perf events, lookup"}[m]
}

// bestMode asks the kernel.
func bestMode() attachMode {
	if features.HaveBPFLinkUprobeMulti() == nil {
		return attachMulti
	}
	if features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetAttachCookie) == nil {
		return attachCookies
	}
	return attachLookup
}

// prepare fits programs and maps to the mode, before they are loaded.
func (m attachMode) prepare(spec *ebpf.CollectionSpec) error {
	if err := withoutPrivateStacks(spec); err != nil {
		return err
	}
	if m == attachMulti {
		for _, p := range spec.Programs {
			if p.SectionName == "uprobe" {
				p.AttachType = ebpf.AttachTraceUprobeMulti
			}
		}
	}
	if m != attachLookup {
		spec.Maps["sites"].MaxEntries = 1 // not used
		return nil
	}
	if err := spec.Variables["without_cookies"].Set(uint32(1)); err != nil {
		return fmt.Errorf("do without cookies: %w", err)
	}
	return nil
}

// unknownProcesses is the entry of processes that counts what is lost in those that
// user space has not found yet.
const unknownProcesses = uint32(0)

// countUnknown makes the entry, without which nothing is counted.
func (k *kernel) countUnknown() error {
	if k.mode != attachLookup {
		return nil
	}
	// One that is there is of an agent that was killed.
	err := k.mapOf("processes").Update(unknownProcesses, &bpf.AgentProcess{}, ebpf.UpdateNoExist)
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("count what is lost in unknown processes: %w", err)
	}
	return nil
}

// attachProgram attaches a program to its sites in a binary.
func attachProgram(k *kernel, exe *link.Executable, p planned, pid int) (links closers, err error) {
	program, err := k.programs.get(p.program)
	if err != nil {
		return nil, err
	}
	if k.mode == attachMulti {
		l, err := exe.UprobeMulti(nil, program, &link.UprobeMultiOptions{
			Addresses: p.offsets, Cookies: p.cookies, PID: uint32(pid),
		})
		if err != nil {
			return nil, err
		}
		return closers{l}, nil
	}
	for i, offset := range p.offsets {
		o := link.UprobeOptions{Address: offset, PID: pid, Cookie: p.cookies[i]}
		if k.mode == attachLookup {
			if err := k.storeSite(o.Cookie); err != nil {
				return links, err
			}
			o.Cookie = 0
		}
		l, err := exe.Uprobe("", program, &o)
		if err != nil {
			return links, err
		}
		links = append(links, l)
	}
	return links, nil
}

// storeSite tells the programs what the cookie of a site is. Entries stay when probes are
// detached, for nothing fires there, and are replaced when the number of the binary is
// given to another.
func (k *kernel) storeSite(cookie uint64) error {
	key := bpf.AgentSiteKey{Binary: uint32(cookie >> cookieBinary), Address: cookie & cookieAddress}
	if err := k.mapOf("sites").Put(&key, cookie); err != nil {
		return fmt.Errorf("store site: %w", err)
	}
	return nil
}

// ambiguous is an error where two programs share a site and their cookies differ, as
// nothing would tell them apart.
func (p planned) ambiguous(plan []planned) error {
	for _, other := range plan {
		for i, at := range other.offsets {
			if j := slices.Index(p.offsets, at); j >= 0 && p.cookies[j] != other.cookies[i] {
				return fmt.Errorf("it shares a site with %s, and this kernel (before Linux 5.15) cannot tell them apart", other.program)
			}
		}
	}
	return nil
}

// introduce tells the programs what a process runs, where they cannot find out by
// themselves. It is called before probes are attached to the process, and whenever one
// is found; again for the same does nothing.
func (k *kernel) introduce(p *process.Process, b *executable) error {
	if k.mode != attachLookup {
		return nil
	}
	entry, err := p.Entry()
	if err != nil {
		return fmt.Errorf("find where process %d was loaded: %w", p.PID(), err)
	}
	processes, pid := k.mapOf("processes"), uint32(p.PID())
	var now bpf.AgentProcess
	err = processes.Lookup(pid, &now)
	bias := entry - b.info.Entry()
	if err == nil && now.Binary == b.id && now.Bias == bias {
		return nil
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("look up process %d: %w", pid, err)
	}
	// What a process of this number counted before stays counted.
	now.Binary, now.Bias = b.id, bias
	if err := processes.Put(pid, &now); err != nil {
		return fmt.Errorf("store process %d: %w", pid, err)
	}
	return nil
}

// introduceAll does so for the processes that a binary is about to be attached in: one,
// or all (pid 0).
func (t *targets) introduceAll(b *executable, pid int) error {
	if t.kernel.mode != attachLookup {
		return nil
	}
	running := []process.Running{{PID: pid, Exe: b.file}}
	if pid == 0 {
		var err error
		if running, err = t.watcher.FindByExe(b.file); err != nil {
			t.log.Warn("processes of other users are not seen", "error", err)
		}
	}
	var errs []error
	for _, r := range running {
		p, err := process.Open(r.PID)
		if err != nil {
			continue // gone
		}
		if p.ExeID() == b.file {
			errs = append(errs, t.kernel.introduce(p, b))
		}
		p.Close()
	}
	return errors.Join(errs...)
}

// meet makes a target of a process that has just called execve, if it runs a binary that
// is probed in all processes, or did run one: without cookies its first request would
// else not be seen, and what a process has open that ends before its first record would
// stay. It is called by the reader of the ring.
func (t *targets) meet(pid int, known bool, since uint64) {
	p, err := process.Open(pid)
	if err != nil {
		return // gone
	}
	t.mu.RLock()
	a := t.byFile[p.ExeID()]
	wanted := a != nil && a.binary != nil && (a.all() || known)
	t.mu.RUnlock()
	if !wanted || !t.asked(p) {
		p.Close()
		return
	}
	t.add(p, a.binary, since)
}

// meetMissed looks for processes that meet was not told of, if something was lost in
// one: a full ring drops the news of an execve, and a fork has none.
func (t *targets) meetMissed() {
	if t.kernel.mode != attachLookup {
		return
	}
	var unknown bpf.AgentProcess
	if err := t.kernel.mapOf("processes").Lookup(unknownProcesses, &unknown); err != nil {
		return // the kernel has it for as long as it is loaded
	}
	lost := unknown.Counters[bpf.AgentCounterCOUNT_LOST_UNKNOWN_PROCESS]
	if lost == t.lostUnknown {
		return
	}
	t.lostUnknown = lost
	running, err := t.watcher.Scan()
	if err != nil {
		t.log.Debug("processes of other users are not seen", "error", err)
	}
	for _, r := range running {
		t.mu.RLock()
		a, tg := t.byFile[r.Exe], t.byPID[r.PID]
		missed := a != nil && a.binary != nil && a.all() && (tg == nil || tg.binary != a.binary)
		t.mu.RUnlock()
		if missed {
			t.meet(r.PID, false, 0)
		}
	}
}

// take removes a process from the map, and returns what the kernel had of it.
func (k *kernel) take(pid uint32) (p bpf.AgentProcess, err error) {
	processes := k.mapOf("processes")
	if k.mode != attachLookup {
		return p, processes.LookupAndDelete(pid, &p)
	}
	// Linux before 5.14 has no such call. Nothing counts here meanwhile: the process is
	// gone, or has called execve and is not introduced again yet.
	if err = processes.Lookup(pid, &p); err != nil {
		return p, err
	}
	return p, processes.Delete(pid)
}

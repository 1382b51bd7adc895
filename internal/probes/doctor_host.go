package probes

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Check is one thing that the agent needs of the host, or makes use of.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // ok, limited (the agent works, with less), failed, unknown
	Found  string `json:"found"`
	Remedy string `json:"remedy,omitempty"`
}

const (
	checkOK      = "ok"
	checkLimited = "limited"
	checkFailed  = "failed"
	checkUnknown = "unknown"
)

// host looks at the host, loads the programs, and gives up the privileges that the agent
// would give up. It returns whether the agent would run.
func (d *Diagnosis) host(o Options, log *slog.Logger) bool {
	d.Host = append(d.Host, checkRelease(), checkUprobes())
	capable := checkCapabilities()
	d.Host = append(d.Host, capable, checkLockdown(), checkPIDNamespace())
	if capable.State == checkFailed {
		d.Host = append(d.Host, Check{Name: "programs", State: checkUnknown, Found: "not tried, for capabilities are missing"})
		return false
	}
	if err := refused(); err != nil {
		d.Host = append(d.Host, Check{Name: "programs", State: checkFailed, Found: err.Error()})
		return false
	}
	d.Host = append(d.Host, checkFeatures()...)
	load, least := checkLoad(o)
	d.Host = append(d.Host, load, checkJIT(), checkBPFFS(), checkBTF())
	if o.DropPrivileges {
		if err := dropPrivileges(least); err != nil {
			log.Warn("the rest is looked at with all privileges", "reason", err)
		}
	}
	for _, c := range d.Host {
		if c.State == checkFailed {
			return false
		}
	}
	return true
}

func checkRelease() Check {
	c := Check{Name: "kernel", State: checkOK}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Check{Name: "kernel", State: checkUnknown, Found: err.Error()}
	}
	c.Found = "Linux " + unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	return c
}

func checkUprobes() Check {
	if uprobeType() == 0 {
		return Check{Name: "uprobes", State: checkFailed, Found: "there is no " + uprobeDevice,
			Remedy: "use a kernel with CONFIG_UPROBE_EVENTS, and have /sys mounted"}
	}
	return Check{Name: "uprobes", State: checkOK, Found: "the kernel has them"}
}

// checkCapabilities does not know yet how probes are attached; checkLoad says whether that
// needs one more.
func checkCapabilities() Check {
	c := Check{Name: "capabilities"}
	have, _, err := ownCapabilities()
	if err != nil {
		return Check{Name: c.Name, State: checkUnknown, Found: err.Error()}
	}
	list := needs(true, true)
	missing := have.missing(list)
	c.State, c.Found = checkOK, have.least(list).String()
	if c.Found == "" {
		c.Found = "none of those that matter"
	}
	if len(missing) == 0 {
		return c
	}
	c.State = checkLimited
	var names []string
	for _, n := range missing {
		names = append(names, capabilityNames[n.bits[0]])
		if !n.optional {
			c.State = checkFailed
		}
	}
	c.Found += "; missing " + strings.Join(names, ", ")
	if c.State == checkFailed {
		c.Remedy = "run the agent as root, or give it " + strings.Join(names, ", ") + " too"
	} else {
		c.Remedy = names[0] + " is needed " + missing[0].why
	}
	return c
}

func checkLockdown() Check {
	c := Check{Name: "lockdown", State: checkOK}
	text, err := os.ReadFile("/sys/kernel/security/lockdown")
	switch {
	case err != nil:
		c.State, c.Found = checkUnknown, "/sys/kernel/security is not mounted here; the agent works under none and integrity"
	case strings.Contains(string(text), "[confidentiality]"):
		c.State, c.Found = checkFailed, "confidentiality: BPF programs may not read memory"
		c.Remedy = "boot with lockdown=integrity or none"
	default:
		_, mode, _ := strings.Cut(string(text), "[")
		c.Found, _, _ = strings.Cut(mode, "]")
	}
	return c
}

// hostPIDNamespace is the inode number of the first PID namespace (PROC_PID_INIT_INO).
const hostPIDNamespace = 0xEFFFFFFC

func checkPIDNamespace() Check {
	c := Check{Name: "PID namespace", State: checkOK, Found: "that of the host"}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return Check{Name: c.Name, State: checkUnknown, Found: err.Error()}
	}
	if st.Ino != hostPIDNamespace {
		c.State, c.Found = checkLimited, "not that of the host: processes outside it are not seen"
		c.Remedy = "in Kubernetes set hostPID: true, in Docker --pid=host"
	}
	return c
}

// checkFeatures are what the programs are made of, and what makes them cheaper.
func checkFeatures() []Check {
	uprobeMulti := feature("uprobe_multi", features.HaveBPFLinkUprobeMulti(), checkLimited,
		"probes are perf events: one link for each site, and CAP_SYS_ADMIN")
	cookies := feature("attach cookies", features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetAttachCookie), checkLimited,
		"each hit looks its site up, and what a process does before the agent has seen it is lost; Linux 5.15 has them")
	ring := feature("ring buffer", features.HaveMapType(ebpf.RingBuf), checkFailed, "use Linux 5.8 or later")
	return []Check{ring, cookies, uprobeMulti}
}

func feature(name string, err error, without, remedy string) Check {
	switch {
	case err == nil:
		return Check{Name: name, State: checkOK, Found: "the kernel has it"}
	case errors.Is(err, ebpf.ErrNotSupported):
		return Check{Name: name, State: without, Found: "this kernel lacks it", Remedy: remedy}
	}
	return Check{Name: name, State: checkUnknown, Found: err.Error()}
}

// checkLoad loads everything as the agent does, and lets it go.
func checkLoad(o Options) (Check, capabilitySet) {
	c := Check{Name: "programs", State: checkOK}
	begin := time.Now()
	k, err := loadKernel(o)
	if err != nil {
		_, permitted, _ := ownCapabilities()
		c.State, c.Found = checkFailed, err.Error()
		return c, permitted
	}
	defer k.Close()
	if err := k.programs.loadAll(); err != nil {
		c.State, c.Found = checkFailed, err.Error()
		return c, k.least
	}
	c.Found = fmt.Sprintf("%d are loaded in %d ms", len(k.programs.all()), time.Since(begin).Milliseconds())
	if exec, err := k.attachExec(); err != nil {
		c.State, c.Remedy = checkLimited, "new processes are found by scanning, not at once: "+err.Error()
	} else {
		exec.Close()
	}
	return c, k.least
}

func checkJIT() Check {
	text, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable")
	if err != nil {
		return Check{Name: "BPF compiler", State: checkUnknown, Found: "net.core.bpf_jit_enable cannot be read"}
	}
	if strings.TrimSpace(string(text)) == "0" {
		return Check{Name: "BPF compiler", State: checkLimited, Found: "off: each probe costs several times more",
			Remedy: "sysctl net.core.bpf_jit_enable=1"}
	}
	return Check{Name: "BPF compiler", State: checkOK, Found: "on"}
}

// checkBPFFS looks where the agent keeps maps by default.
func checkBPFFS() Check {
	const dir = "/sys/fs/bpf"
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.BPF_FS_MAGIC {
		return Check{Name: "bpffs", State: checkLimited, Found: "not mounted at " + dir + ": a crash of the agent loses what it had not sent",
			Remedy: "mount -t bpf bpf " + dir}
	}
	return Check{Name: "bpffs", State: checkOK, Found: "mounted at " + dir}
}

func checkBTF() Check {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return Check{Name: "BTF", State: checkOK, Found: "the kernel has none; nothing needs it"}
	}
	return Check{Name: "BTF", State: checkOK, Found: "the kernel has it; nothing needs it"}
}

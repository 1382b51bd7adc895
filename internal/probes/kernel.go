package probes

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/bpf"
)

// kernel is the BPF side, loaded once for all targets.
type kernel struct {
	collection *ebpf.Collection
	// multi: one link attaches a program to many sites, and its lighter path
	// asks CAP_BPF and CAP_PERFMON, not CAP_SYS_ADMIN (Linux 6.6 and later).
	multi bool
}

// loadKernel loads programs and maps. The caller closes it.
func loadKernel(o Options) (*kernel, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	// Kernels before 5.11 charge maps against RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise the limit of locked memory: %w", err)
	}
	spec, err := bpf.LoadAgent()
	if err != nil {
		return nil, fmt.Errorf("read the embedded BPF object: %w", err)
	}
	spec.Maps["ring"].MaxEntries = uint32(o.RingSize)
	if err := sizeTables(spec, o.MaxOpenSpans); err != nil {
		return nil, err
	}

	k := &kernel{multi: features.HaveBPFLinkUprobeMulti() == nil}
	if k.multi {
		for _, p := range spec.Programs {
			if p.SectionName == "uprobe" {
				p.AttachType = ebpf.AttachTraceUprobeMulti
			}
		}
	}
	k.collection, err = ebpf.NewCollection(spec)
	if err != nil {
		return nil, loadError(err)
	}
	return k, nil
}

// tableWays is TABLE_WAYS of bpf/maps.h.
const tableWays = 8

// sizeTables makes room for at least so many goroutines with open spans.
func sizeTables(spec *ebpf.CollectionSpec, open int) error {
	buckets := uint32(1)
	for int(buckets)*tableWays < open {
		buckets *= 2
	}
	spec.Maps["goroutine_table"].MaxEntries = buckets
	spec.Maps["context_table"].MaxEntries = buckets
	spec.Maps["goroutines"].MaxEntries = buckets * tableWays
	if err := spec.Variables["table_buckets"].Set(buckets); err != nil {
		return fmt.Errorf("size tables: %w", err)
	}
	return nil
}

func (k *kernel) Close() { k.collection.Close() }

func (k *kernel) mapOf(name string) *ebpf.Map { return k.collection.Maps[name] }

// put stores a value in a map.
func (k *kernel) put(mapName string, key, value any) error { return k.mapOf(mapName).Put(key, value) }

// loadError turns the kernel's refusal into a sentence; the verifier's dump is for
// whoever asks for it (%+v).
func loadError(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("the kernel refuses to load BPF programs: run the agent as root, or give it %s; in a container also a seccomp profile that allows bpf: %w", capabilitySentence, err)
	}
	return fmt.Errorf("load BPF programs: %w", err)
}

const capabilitySentence = "CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE (before Linux 6.6 also CAP_SYS_ADMIN)"

// Bits of linux/capability.h.
var capabilities = []struct {
	name string
	bits []uint // any of them is enough
}{
	{"CAP_BPF", []uint{unix.CAP_BPF, unix.CAP_SYS_ADMIN}},
	{"CAP_PERFMON", []uint{unix.CAP_PERFMON, unix.CAP_SYS_ADMIN}},
	{"CAP_SYS_PTRACE", []uint{unix.CAP_SYS_PTRACE}},
}

// checkKernel tells in one sentence what is missing, before the kernel tells in
// ten thousand.
func checkKernel() error {
	if _, err := os.Stat("/sys/bus/event_source/devices/uprobe"); err != nil {
		return errors.New("this kernel has no uprobes: it must be built with CONFIG_UPROBE_EVENTS and have /sys mounted")
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	var missing []string
	for _, c := range capabilities {
		ok := false
		for _, bit := range c.bits {
			ok = ok || data[bit/32].Effective&(1<<(bit%32)) != 0
		}
		if !ok {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing %s: run the agent as root or give it %s", strings.Join(missing, ", "), capabilitySentence)
	}
	return nil
}

// attachExec reports every execve of the node through the ring.
func (k *kernel) attachExec() (link.Link, error) {
	return link.AttachRawTracepoint(link.RawTracepointOptions{
		Name: "sched_process_exec", Program: k.collection.Programs["process_exec"],
	})
}

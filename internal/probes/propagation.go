package probes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/bpf"
)

// propagation is the part of the kernel's side that changes what targets send. It is
// loaded beside the rest, and only where it is asked for: what the kernel refuses here
// costs no span.
type propagation struct {
	log     *slog.Logger
	reason  string // why nothing is changed; "": it is
	writes  bool   // into buffers of targets, else into what sockets send
	refused string // why it does not write
	maps    map[string]*ebpf.Map
	cgroup  link.Link
	events  *ringbuf.Reader
	closing []interface{ Close() error }
}

// propagatePrefix begins the names of its programs and maps.
const propagatePrefix = "propagate_"

// withoutPropagation takes out of a collection what only propagation needs.
func withoutPropagation(spec *ebpf.CollectionSpec) {
	for name := range spec.Programs {
		if strings.HasPrefix(name, propagatePrefix) {
			delete(spec.Programs, name)
		}
	}
	for name := range spec.Maps {
		if strings.HasPrefix(name, propagatePrefix) {
			delete(spec.Maps, name)
		}
	}
}

// newPropagation loads and attaches it beside a loaded kernel. The error is in its reason:
// the agent works without. It returns nil if it is not asked for.
func newPropagation(k *kernel, o Propagation, log *slog.Logger) *propagation {
	if !o.Headers {
		return nil
	}
	p := &propagation{log: log, maps: map[string]*ebpf.Map{}}
	if p.refused = "PLAIN_CLOUD_PROPAGATE=memory allows more"; !o.Messages {
		p.writes = true
		err := p.start(k, o)
		if err == nil {
			return p
		}
		p.Close()
		p.writes, p.refused, p.maps = false, err.Error(), map[string]*ebpf.Map{}
	}
	if err := p.start(k, o); err != nil {
		p.Close()
		p.reason = err.Error()
		if !o.Messages {
			p.reason += "; and " + p.refused
		}
		log.Warn("no request is given a traceparent", "reason", p.reason)
	}
	return p
}

func (p *propagation) start(k *kernel, o Propagation) error {
	collection, err := p.load(k, o)
	if err != nil {
		return err
	}
	// From here on each is closed by Close; what is attached first, or sockets would stay.
	for name, m := range collection.Maps {
		if strings.HasPrefix(name, propagatePrefix) {
			p.maps[name] = m
		}
		p.closing = append(p.closing, m)
	}
	for _, program := range collection.Programs {
		p.closing = append(p.closing, program)
	}
	if err := p.storeAllowed(p.maps, o); err != nil {
		return err
	}
	if !p.writes {
		if err := p.trySocket(); err != nil {
			return err
		}
		if err := p.attachMessages(collection); err != nil {
			return err
		}
		if p.events, err = ringbuf.NewReader(p.maps["propagate_ring"]); err != nil {
			return fmt.Errorf("open ring buffer of connections: %w", err)
		}
	}
	return p.lend(k, collection)
}

// lend has uprobes attached with the rest, and layouts stored.
func (p *propagation) lend(k *kernel, collection *ebpf.Collection) error {
	for name, program := range collection.Programs {
		if program.Type() != ebpf.Kprobe {
			continue
		}
		program, err := program.Clone()
		if err != nil {
			return err
		}
		k.programs.done(name, program, nil)
	}
	for _, lib := range libraries {
		m := p.maps[lib.layoutMap]
		if m == nil {
			continue
		}
		m, err := m.Clone()
		if err != nil {
			return err
		}
		k.collection.Maps[lib.layoutMap] = m
	}
	return nil
}

// Programs of one way only, and maps that the other has no use for.
var (
	messagePrograms = []string{"propagate_connect", "propagate_send"}
	messageMaps     = []string{"propagate_notes", "propagate_conns", "propagate_connected", "propagate_sockets"}
	writePrograms   = []string{"propagate_header", "propagate_stream", "propagate_headers", "propagate_frame", "propagate_call", "propagate_numbered"}
	writeMaps       = []string{"propagate_pending", "propagate_buffers", "propagate_framers", "propagate_grpc"}
)

// choose takes out of a specification what is not of the way that is gone.
func (p *propagation) choose(spec *ebpf.CollectionSpec) {
	programs, maps := writePrograms, writeMaps
	if p.writes {
		programs, maps = messagePrograms, messageMaps
	}
	for _, name := range programs {
		delete(spec.Programs, name)
	}
	for _, name := range maps {
		// Code that is never run may name it.
		if m := spec.Maps[name]; m.MaxEntries > 1 {
			m.MaxEntries = 1
		}
	}
}

// load loads its programs, which share the maps of the others.
func (p *propagation) load(k *kernel, o Propagation) (*ebpf.Collection, error) {
	if p.writes {
		if err := features.HaveProgramHelper(ebpf.Kprobe, asm.FnProbeWriteUser); err != nil {
			return nil, fmt.Errorf("the kernel does not let the agent write to a process, which needs CAP_SYS_ADMIN and a kernel that is not locked down: %w", err)
		}
	}
	spec, err := bpf.LoadAgent()
	if err != nil {
		return nil, fmt.Errorf("read the embedded BPF object: %w", err)
	}
	for name := range spec.Programs {
		if !strings.HasPrefix(name, propagatePrefix) {
			delete(spec.Programs, name)
		}
	}
	if err := k.mode.prepare(spec); err != nil {
		return nil, err
	}
	shared := map[string]*ebpf.Map{}
	for name, m := range k.collection.Maps {
		if strings.HasPrefix(name, ".rodata") {
			continue // constants of these programs
		}
		spec.Maps[name].MaxEntries = m.MaxEntries()
		shared[name] = m
	}
	if !p.writes {
		if err := mayChangeMessages(); err != nil {
			return nil, err
		}
	}
	p.choose(spec)
	var offsets socketOffsets
	if !p.writes {
		if offsets, err = readSocketOffsets(); err != nil {
			return nil, err
		}
	}
	for name, value := range map[string]any{
		"table_buckets":     k.mapOf("goroutine_table").MaxEntries(),
		"propagate_dotless": boolNumber(o.Dotless),
		"propagate_writes":  boolNumber(p.writes),
		"propagate_tgid":    offsets.taskTgid,
		"propagate_queued":  offsets.sockQueued,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("changing what is sent needs CAP_NET_ADMIN: give it to the agent: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("load programs that change what is sent: %w", err)
	}
	return collection, nil
}

// mayChangeMessages: before Linux 6.12 putting something into a message had faults that
// change what else is in it. They were mended in stable releases of older series, too, but
// nothing tells which a kernel is.
func mayChangeMessages() error {
	version, err := features.LinuxVersionCode()
	if err != nil {
		return fmt.Errorf("read the version of the kernel: %w", err)
	}
	if version < 6<<16|12<<8 {
		return fmt.Errorf("changing what is sent needs Linux 6.12, this is %d.%d", version>>16, version>>8&0xff)
	}
	return nil
}

// trySocket notes a socket of the agent's own, as the programs do with those of targets.
// Where that fails they would change nothing, and not say so: the newest kernels (seen on
// 7.3) take the memory for it from kmalloc_nolock, which has none to give on an amd64 that
// lacks CMPXCHG16B, as some hypervisors have it.
func (p *propagation) trySocket() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	if err := p.maps["propagate_sockets"].Put(uint32(fd), &bpf.AgentPropagateSocket{}); err != nil {
		return fmt.Errorf("this kernel notes nothing about sockets, which on amd64 needs a CPU with CMPXCHG16B: %w", err)
	}
	return nil
}

// attachMessages has the programs see what sockets send. Neither outlives the agent: the
// one belongs to the map of sockets, the other is a link.
func (p *propagation) attachMessages(c *ebpf.Collection) error {
	err := link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: p.maps["propagate_connected"].FD(), Program: c.Programs["propagate_send"], Attach: ebpf.AttachSkMsgVerdict,
	})
	if err != nil {
		return fmt.Errorf("attach to what sockets send: %w", err)
	}
	root, err := openCgroupRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	p.cgroup, err = link.AttachRawLink(link.RawLinkOptions{
		Target: int(root.Fd()), Program: c.Programs["propagate_connect"], Attach: ebpf.AttachCGroupSockOps,
	})
	if err != nil {
		return fmt.Errorf("attach to connections: %w", err)
	}
	return nil
}

// openCgroupRoot opens the root of the node's cgroups. A container may see a part of them
// only: that of the first process is looked at before the own.
func openCgroupRoot() (*os.File, error) {
	for _, view := range []string{"/proc/1/root", ""} {
		for _, dir := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
			path := view + dir
			var fs unix.Statfs_t
			if unix.Statfs(path, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
				continue
			}
			if _, err := os.Stat(filepath.Join(path, "cgroup.type")); err == nil {
				continue // which every cgroup has, except the root
			}
			return os.Open(path)
		}
	}
	return nil, errors.New("find the root of cgroups, where connections are seen: version 2 is not mounted on /sys/fs/cgroup or /sys/fs/cgroup/unified of the node")
}

// socketOffsets are places in structs of the kernel.
type socketOffsets struct{ taskTgid, sockQueued uint32 }

func readSocketOffsets() (o socketOffsets, err error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return o, fmt.Errorf("read the kernel's types, without which nothing that is sent is changed: %w", err)
	}
	if o.taskTgid, err = kernelField(spec, "task_struct", "tgid"); err != nil {
		return o, err
	}
	o.sockQueued, err = kernelField(spec, "sock", "sk_wmem_queued")
	return o, err
}

// Close takes everything out: sockets go on without.
func (p *propagation) Close() error {
	if p == nil {
		return nil
	}
	var errs []error
	if p.cgroup != nil {
		errs = append(errs, p.cgroup.Close())
	}
	if p.events != nil {
		errs = append(errs, p.events.Close())
	}
	for _, c := range p.closing {
		errs = append(errs, c.Close())
	}
	p.cgroup, p.events, p.closing, p.maps = nil, nil, nil, nil
	return errors.Join(errs...)
}

// works tells whether requests are changed.
func (p *propagation) works() bool { return p != nil && p.reason == "" }

// mode is the way that is gone.
func (p *propagation) mode() string {
	switch {
	case p.reason != "":
		return "off"
	case p.writes:
		return "memory"
	}
	return "messages"
}

// status reads what the programs have counted.
func (p *propagation) status() *PropagationStatus {
	if p == nil {
		return nil
	}
	s := &PropagationStatus{Mode: p.mode(), Reason: p.reason}
	if !p.works() {
		return s
	}
	if !p.writes {
		s.Reason = "requests of HTTP/1.1 without TLS only: " + p.refused
	}
	s.Requests = map[string]uint64{}
	for i, name := range propagateCounts {
		var n uint64
		if p.maps["propagate_counts"].Lookup(uint32(i), &n) == nil && n > 0 {
			s.Requests[name] = n
		}
	}
	return s
}

func boolNumber(yes bool) uint32 {
	if yes {
		return 1
	}
	return 0
}

func nativeUint32(to []byte, n uint32) { binary.NativeEndian.PutUint32(to, n) }

package probes

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/cilium/ebpf/link"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/gobin"
	"github.com/plainframework/agent/internal/probes/process"
)

// fileID is the identity of a file: a uprobe belongs to an inode.
type fileID = process.FileID

// executable is the work that is done once for each executable, however many processes
// run it: it is analysed, its layouts are in the maps, and its sites are known.
type executable struct {
	id   uint32
	file fileID
	path string // for people
	exe  *os.File
	info *gobin.Binary

	plan   []planned
	groups []GroupStatus

	propagation *propagation // nil: not asked for

	// For Examine: told of each field that is looked up, and of each function that a hook
	// could do without.
	looked func(structName, path string, f gobin.Field)
	pruned func(g GroupStatus, program string, reason error)

	adaptMu  sync.Mutex
	unchosen map[choice]bool // what is detached because it does not pay

	namesMu sync.Mutex
	names   map[uint64]string
}

// planned is one program with its sites in one binary, in the order of attaching.
type planned struct {
	part    part
	program string
	offsets []uint64
	cookies []uint64
}

// The attach cookie; bpf/span.h has the other side.
const (
	cookieStackCheck = 1 << 40
	cookieVariant    = 44
	cookieBinary     = 48
	cookieAddress    = 1<<40 - 1
)

// errNothing: a Go binary with none of the libraries.
var errNothing = errors.New("nothing to instrument: it uses none of net/http, database/sql and gRPC")

// newExecutable analyses an executable and tells the kernel its layouts. It takes exe
// over, and closes it on error.
func newExecutable(k *kernel, id uint32, file fileID, path string, exe *os.File) (b *executable, err error) {
	defer func() {
		if err != nil {
			exe.Close()
		}
	}()
	stat, err := exe.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat executable: %w", err)
	}
	b = &executable{id: id, file: file, path: path, exe: exe, names: map[uint64]string{}, propagation: k.propagation,
		unchosen: map[choice]bool{choiceRows: true}}
	if b.info, err = gobin.Open(exe, stat.Size()); err != nil {
		return nil, err
	}
	if err := b.analyse(k.put); err != nil {
		return nil, err
	}
	if len(b.plan) == 0 {
		return nil, b.nothing()
	}
	return b, nil
}

// putFunc stores a value in a BPF map; [Examine] has one that only looks.
type putFunc func(mapName string, key, value any) error

// analyse finds layouts and probe sites of all libraries.
func (b *executable) analyse(put putFunc) error {
	if err := b.writeRuntime(put); err != nil {
		return err
	}
	for _, lib := range libraries {
		if lib.beside && len(b.plan) == 0 || lib.asked && !b.propagation.works() || lib.written && !b.propagation.writes {
			continue
		}
		if err := b.writeLibrary(put, lib); err != nil {
			return err
		}
	}
	b.groups = append(b.groups, b.propagation.uncovered(b.info)...)
	return nil
}

// nothing says why a binary has nothing to attach to.
func (b *executable) nothing() error {
	var reasons []string
	for _, g := range b.groups {
		for _, h := range g.Hooks {
			if h.Reason != "" {
				reasons = append(reasons, h.Reason)
			}
		}
	}
	if len(reasons) == 0 {
		return errNothing
	}
	return fmt.Errorf("nothing can be probed: %s", strings.Join(reasons, "; "))
}

func (b *executable) writeRuntime(put putFunc) error {
	l := layouts{binary: b.info, looked: b.looked}
	const g, p = "runtime.g", "runtime._panic"
	layout := bpf.AgentRuntimeLayout{
		G_goid:      l.offset(g, "goid"),
		G_m:         l.optional(g, "m"),
		M_curg:      l.optional("runtime.m", "curg"),
		G_panic:     l.optional(g, "_panic"),
		PanicGoexit: l.optional(p, "goexit"),
		PanicArg:    l.optional(p, "arg"),
	}
	if err := l.err(); err != nil {
		return err
	}
	if layout.PanicGoexit == 0 {
		layout.G_panic = 0 // not readable without
	}
	b.headerLayout(&layout)
	b.connLayout(&layout)
	if sdk := sdkTypes(b.info); len(sdk) > 0 {
		layout.SdkSpans = 1
	}
	const imageMax = 1 << 32 // IMAGE_MAX of bpf/image.h
	if addr, size := b.info.Constants(); addr < imageMax && size <= imageMax-addr {
		layout.Constants, layout.ConstantsSize = addr, size
	}
	if err := put("runtime_layouts", b.id, &layout); err != nil {
		return fmt.Errorf("store runtime layout: %w", err)
	}
	return b.writeTypes(put)
}

// headerLayout fills in how http.Header lies in memory, and metadata of gRPC, which is the
// same map. Without it incoming trace context and the user agent are not read, no more
// than that.
func (b *executable) headerLayout(layout *bpf.AgentRuntimeLayout) {
	m, err := b.info.MapLayout("net/http.Header")
	if err != nil {
		m, err = b.info.MapLayout("google.golang.org/grpc/metadata.MD")
	}
	if err != nil || m.Slots != 8 || m.Size > scratchSize {
		return
	}
	l := layouts{binary: b.info, looked: b.looked}
	if m.Swiss {
		const swiss, table = "internal/runtime/maps.Map", "internal/runtime/maps.table"
		layout.SwissMap = 1
		layout.MapDirPtr = l.offset(swiss, "dirPtr")
		layout.MapDirLen = l.offset(swiss, "dirLen")
		layout.TableGroups = l.offset(table, "groups.data")
	} else {
		layout.MapDirPtr = l.offset("runtime.hmap", "buckets")
		layout.MapDirLen = l.offset("runtime.hmap", "B")
	}
	// The head is read as eight words.
	if l.err() != nil || max(layout.MapDirPtr, layout.MapDirLen) >= 64 {
		return
	}
	layout.GroupSize = uint32(m.Size)
	layout.GroupControl = uint32(m.Control)
	layout.GroupKeys, layout.GroupKeyStride = uint32(m.Keys), uint32(m.KeyStride)
	layout.GroupElems, layout.GroupElemStride = uint32(m.Elems), uint32(m.ElemStride)
	layout.GroupOverflow = uint32(m.Overflow)
}

// scratchSize is SCRATCH_SIZE of bpf/maps.h.
const scratchSize = 512

// field is where a field is; [Examine] is told of it.
func (b *executable) field(structName, path string) (gobin.Field, error) {
	f, err := b.info.Field(structName, path)
	if err == nil && b.looked != nil {
		b.looked(structName, path, f)
	}
	return f, err
}

// writeLibrary plans the hooks of one library and stores its layout.
func (b *executable) writeLibrary(put putFunc, lib *library) error {
	l := layouts{binary: b.info, looked: b.looked}
	var groups []group
	for _, g := range lib.groups {
		if g.when(b.info) {
			groups = append(groups, g)
		}
	}
	if len(groups) == 0 {
		return nil
	}
	if lib.layout != nil {
		layout := lib.layout(&l)
		if err := l.err(); err != nil {
			b.groups = append(b.groups, GroupStatus{Library: lib.name, State: groupUncovered, Reason: err.Error()})
			return nil
		}
		if err := put(lib.layoutMap, lib.layoutIndex+b.id, layout); err != nil {
			return fmt.Errorf("store layout of %s: %w", lib.name, err)
		}
	}
	for _, g := range groups {
		b.planGroup(lib, g)
	}
	return nil
}

// planGroup finds the sites of a group; it is planned only if none that it needs is
// missing.
func (b *executable) planGroup(lib *library, g group) {
	status := GroupStatus{Library: lib.name, Group: g.name, State: groupAttached}
	var found []planned
	for _, h := range g.hooks {
		if h.when != nil && !h.when(b.info) {
			continue
		}
		h, sites, err := h.find(b.info)
		var missing *gobin.MissingError
		if h.prunable && errors.As(err, &missing) {
			if b.pruned != nil {
				b.pruned(status, h.program, err)
			}
			continue // nothing calls it
		}
		if err != nil {
			status.Hooks = append(status.Hooks, HookStatus{Program: h.program, Reason: err.Error()})
			if !h.optional {
				status.State = groupUncovered
			}
			continue
		}
		p := planned{part: part{lib, h.choice}, program: h.program}
		for _, s := range sites {
			p.offsets = append(p.offsets, s.Offset)
			p.cookies = append(p.cookies, cookie(b.id, h.variant, s))
			status.Hooks = append(status.Hooks, HookStatus{
				Program: h.program, Function: s.Func, Address: fmt.Sprintf("%#x", s.Addr),
				Instruction: s.Instr, Emulated: s.Emulated, Rule: s.Rule, While: h.choice.while(),
			})
		}
		found = append(found, p)
	}
	b.groups = append(b.groups, status)
	if status.State != groupAttached {
		return
	}
	for _, p := range found {
		b.addPlan(p)
	}
}

// addPlan adds sites to the plan, each site of a program once.
func (b *executable) addPlan(p planned) {
	for i := range b.plan {
		have := &b.plan[i]
		if have.program != p.program || have.part != p.part {
			continue
		}
	next:
		for j, offset := range p.offsets {
			for _, o := range have.offsets {
				if o == offset {
					continue next
				}
			}
			have.offsets = append(have.offsets, offset)
			have.cookies = append(have.cookies, p.cookies[j])
		}
		return
	}
	b.plan = append(b.plan, p)
}

func cookie(id uint32, variant uint8, s gobin.Site) uint64 {
	c := uint64(id)<<cookieBinary | uint64(variant)<<cookieVariant | s.Addr&cookieAddress
	if s.StackCheck {
		c |= cookieStackCheck
	}
	return c
}

// attach puts the plan of one library in force: for one process, or for all that run or
// will run the binary (pid 0). Closing the result undoes it.
func (b *executable) attach(k *kernel, pid int, part part) (links closers, err error) {
	var all closers
	defer func() {
		if err != nil {
			all.Close()
		}
	}()
	// Through the descriptor that was analysed: a path can change its meaning.
	exe, err := link.OpenExecutable(fmt.Sprintf("/proc/self/fd/%d", b.exe.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open executable: %w", err)
	}
	for _, p := range b.plan {
		if p.part != part {
			continue
		}
		if k.mode == attachLookup {
			if err := p.ambiguous(b.plan); err != nil {
				return nil, fmt.Errorf("attach %s: %w", p.program, err)
			}
		}
		l, err := attachProgram(k, exe, p, pid)
		all = append(all, l...)
		if err != nil {
			return nil, fmt.Errorf("attach %s: %w", p.program, err)
		}
	}
	return all, nil
}

// typeName is the name of the type whose descriptor is at an address, "" if none is.
func (b *executable) typeName(addr uint64) string {
	if addr == 0 {
		return ""
	}
	b.namesMu.Lock()
	defer b.namesMu.Unlock()
	name, ok := b.names[addr]
	if !ok && b.info != nil && len(b.names) < 4096 { // a binary has few error and driver types
		name = b.info.TypeName(addr)
		b.names[addr] = name
	}
	return name
}

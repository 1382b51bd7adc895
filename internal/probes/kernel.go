package probes

import (
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/bpf"
)

// kernel is the BPF side, once for all targets.
type kernel struct {
	collection *ebpf.Collection // the maps
	programs   *programs
	tables     sync.Mutex // held while entries of live or dead processes are freed
	mode       attachMode
	least      capabilitySet // of this process, what the agent needs from now on
	missing    []need        // that are optional
	// off are libraries that the settings switch off.
	off map[*library]bool
	// propagation is nil unless it is asked for.
	propagation *propagation
	offsets     func() (kernelOffsets, error) // reads them once
}

// loadKernel makes the maps, and whatever loads programs. The caller closes it.
func loadKernel(o Options) (*kernel, error) {
	k := &kernel{mode: o.mode}
	if err := k.allowed(); err != nil {
		return nil, err
	}
	k.offsets = sync.OnceValues(readKernelOffsets)
	go k.offsets()
	spec, err := specification(o, k.mode)
	if err != nil {
		return nil, err
	}
	pinned, err := o.State.maps(spec)
	if err != nil {
		return nil, err
	}
	defer closeMaps(pinned)
	// With a small program: whether the kernel takes any shows at once.
	const first = "process_exec"
	k.collection, err = ebpf.NewCollectionWithOptions(only(spec, first), ebpf.CollectionOptions{MapReplacements: pinned})
	if err != nil {
		return nil, loadError(err)
	}
	k.programs = newPrograms(func() (*ebpf.CollectionSpec, error) { return specification(o, k.mode) }, maps.Clone(k.collection.Maps))
	k.programs.done(first, k.collection.DetachProgram(first), nil)
	if err := k.countUnknown(); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// specification is the embedded object, as it is to be loaded.
func specification(o Options, mode attachMode) (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadAgent()
	if err != nil {
		return nil, fmt.Errorf("read the embedded BPF object: %w", err)
	}
	withoutPropagation(spec)
	spec.Maps["ring"].MaxEntries = uint32(o.RingSize)
	if o.Propagation.Headers {
		spec.Maps["tracestates"].MaxEntries = maxTracestates
	}
	if err := spec.Variables["tracestates_kept"].Set(boolNumber(o.Propagation.Headers)); err != nil {
		return nil, fmt.Errorf("keep what requests bring along: %w", err)
	}
	if err := sizeTables(spec, o.MaxOpenSpans); err != nil {
		return nil, err
	}
	return spec, mode.prepare(spec)
}

// maxTracestates is how many requests can be under way on the node whose tracestate is
// passed on; of the oldest it is not.
const maxTracestates = 8192

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

func (k *kernel) Close() {
	_ = k.propagation.Close() // what it has are descriptors
	if k.programs != nil {
		k.programs.close()
	}
	k.collection.Close()
}

func (k *kernel) mapOf(name string) *ebpf.Map { return k.collection.Maps[name] }

// put stores a value in a map.
func (k *kernel) put(mapName string, key, value any) error { return k.mapOf(mapName).Put(key, value) }

// loadError turns the kernel's refusal into a sentence; the verifier's dump is for
// whoever asks for it (%+v).
func loadError(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("the kernel refuses to load BPF programs, though the capabilities are there: a seccomp profile or a security module forbids bpf(2): %w", err)
	}
	return fmt.Errorf("load BPF programs: %w", err)
}

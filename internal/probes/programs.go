package probes

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// programs are the BPF programs, loaded when a binary first needs them: the verifier takes a
// second of CPU time for all, and most nodes use few libraries. One that a kernel refuses
// is the trouble of the binaries with its library, and of nobody else.
type programs struct {
	spec func() (*ebpf.CollectionSpec, error) // parsed anew: it takes more memory than what is loaded
	maps map[string]*ebpf.Map

	loading sync.Mutex // one load at a time; it uses all CPUs
	mu      sync.Mutex
	loaded  map[string]*ebpf.Program
	refused map[string]error // those that were tried in vain
}

// newPrograms loads from a specification, with the maps that are made already.
func newPrograms(spec func() (*ebpf.CollectionSpec, error), shared map[string]*ebpf.Map) *programs {
	return &programs{spec: spec, maps: shared, loaded: map[string]*ebpf.Program{}, refused: map[string]error{}}
}

// get is a program, loaded if need be.
func (p *programs) get(name string) (*ebpf.Program, error) {
	p.load(name)
	p.mu.Lock()
	defer p.mu.Unlock()
	if program := p.loaded[name]; program != nil {
		return program, nil
	}
	return nil, p.refused[name]
}

// all lists what is loaded.
func (p *programs) all() map[string]*ebpf.Program {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.loaded)
}

// loadAll loads every program that there is.
func (p *programs) loadAll() error {
	spec, err := p.spec()
	if err != nil {
		return err
	}
	p.load(slices.Sorted(maps.Keys(spec.Programs))...)
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(slices.Collect(maps.Values(p.refused))...)
}

// load loads programs side by side. What becomes of each, get says.
func (p *programs) load(names ...string) {
	p.loading.Lock()
	defer p.loading.Unlock()
	missing := p.missing(names)
	if len(missing) == 0 {
		return
	}
	spec, err := p.spec()
	if err != nil {
		for _, name := range missing {
			p.done(name, nil, err)
		}
		return
	}
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, name := range missing {
		one := only(spec, name)
		group.Go(func() error {
			program, err := p.verify(name, one)
			p.done(name, program, err)
			return nil
		})
	}
	_ = group.Wait()
}

// only is a copy of a specification with a single program: what is loaded side by side must
// share nothing.
func only(spec *ebpf.CollectionSpec, name string) *ebpf.CollectionSpec {
	few := *spec
	few.Programs = map[string]*ebpf.ProgramSpec{}
	if program := spec.Programs[name]; program != nil {
		few.Programs[name] = program
	}
	return few.Copy()
}

// verify has the kernel check a program and compile it.
func (p *programs) verify(name string, spec *ebpf.CollectionSpec) (*ebpf.Program, error) {
	if spec.Programs[name] == nil {
		return nil, fmt.Errorf("there is no BPF program %s", name)
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: p.maps})
	if err != nil {
		return nil, loadError(err)
	}
	defer c.Close() // its descriptors; the program is taken out
	return c.DetachProgram(name), nil
}

func (p *programs) missing(names []string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(names))), func(name string) bool {
		return p.loaded[name] != nil || p.refused[name] != nil && !passing(p.refused[name])
	})
}

// passing tells whether an error says more of the moment than of the kernel.
func passing(err error) bool {
	return errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)
}

func (p *programs) done(name string, program *ebpf.Program, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.refused[name] = err
		return
	}
	delete(p.refused, name)
	p.loaded[name] = program
}

func (p *programs) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, program := range p.loaded {
		program.Close()
	}
	clear(p.loaded)
}

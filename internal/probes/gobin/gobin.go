// Package gobin reads Go executables that it does not trust, and tells what a
// probe needs to know of them: functions and where they were inlined, struct
// layouts, addresses of type descriptors, build info, and the instructions at
// which a uprobe is cheap (see [Site]).
//
// It uses neither a table of known offsets nor DWARF nor a symbol table, but
// what the Go runtime itself needs at run time: the function table (pclntab),
// type descriptors and the build info, which stripping leaves in place. So a
// binary that `go build -ldflags='-s -w'` or strip made reads like any other.
// Go 1.18 to 1.27 on amd64 and arm64 are known to work; a later release does as
// long as its tables keep their shape, which is checked, not assumed.
//
// All sizes, counts and lengths of the file are checked against the file and
// against fixed limits before they are used, and the bytes read are bounded,
// so a crafted file costs a bounded amount of time and memory.
package gobin

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
)

// Arch is a processor architecture.
type Arch uint8

// Architectures.
const (
	AMD64 Arch = iota + 1
	ARM64
)

func (a Arch) String() string {
	switch a {
	case AMD64:
		return "amd64"
	case ARM64:
		return "arm64"
	}
	return "unknown"
}

// Binary is one executable or shared object. It is immutable and safe for
// concurrent use. Lookups read the file, which must stay open and unchanged
// as long as the Binary is used; the Binary keeps some 20 bytes of memory for
// each function and type, and nothing else that has to be released.
type Binary struct {
	img     *image
	md      *moduledata
	version Version
	info    *debug.BuildInfo

	funcSize  int      // sizeof(_func)
	mapSize   uint64   // sizeof(abi.MapType)
	shifted   bool     // field offsets are shifted left by one
	morestack []uint64 // entries of the functions that stack checks call
	barriers  []uint64 // entries of the write barriers that keep registers
	funcs     funcIndex
	types     typeIndex
}

// Open reads the tables of a Go executable of the given size in bytes. The
// errors are the Err… values of this package, wrapped, or those of r.
func Open(r io.ReaderAt, size int64) (*Binary, error) {
	f, err := readELF(r, size)
	if err != nil {
		return nil, err
	}
	b := &Binary{img: &image{elfFile: f, r: r, size: size}}
	v := newView(b.img, openShift, openSlots)
	version, info, err := b.img.readBuildInfo(v)
	switch {
	case errors.Is(err, errOldBuildInfo):
		return nil, fmt.Errorf("%w (%w)", ErrGoTooOld, err)
	case err != nil:
		return nil, fmt.Errorf("read build info: %w", err)
	}
	b.version, b.info = parseVersion(version), info
	if b.version.Known() && !b.version.AtLeast(1, 18) {
		return nil, fmt.Errorf("%w: %s", ErrGoTooOld, b.version)
	}
	if err := b.img.loadRelocs(v); err != nil {
		return nil, err
	}
	if b.md, err = b.img.findModuledata(v); err != nil {
		if errors.Is(err, ErrNotGo) && version != "" {
			err = ErrTables
		}
		return nil, err
	}
	if err := b.img.findTypes(v, b.md); err != nil {
		return nil, err
	}
	if err := b.indexFuncs(v); err != nil {
		return nil, err
	}
	if err := b.indexTypes(v); err != nil {
		return nil, err
	}
	b.calibrate(v)
	b.loadRuntime()
	return b, v.err
}

func (b *Binary) view() *view { return newView(b.img, queryShift, querySlots) }

// Arch returns the processor architecture.
func (b *Binary) Arch() Arch { return b.img.arch }

// GoVersion returns the Go release that built the binary, from its build info.
func (b *Binary) GoVersion() Version { return b.version }

// BuildInfo returns the main module, its dependencies and the build settings,
// or nil if the binary does not tell. The caller must not change it.
func (b *Binary) BuildInfo() *debug.BuildInfo { return b.info }

// PIE reports whether the loader chooses the address, so that addresses in
// memory differ from those of this package: position-independent executables
// and shared objects.
func (b *Binary) PIE() bool { return b.img.dyn }

// Entry returns the address of the entry point as linked; the kernel tells a process
// where it is in memory.
func (b *Binary) Entry() uint64 { return b.img.entry }

// Stripped reports whether the binary has no symbol table.
func (b *Binary) Stripped() bool {
	_, ok := b.img.sections[".symtab"]
	return !ok
}

// Constants returns where constant strings are, before relocation: the largest segment that
// is neither written to nor run. size is 0 if there is none, as where a linker has put them
// with the code.
func (b *Binary) Constants() (addr, size uint64) {
	for _, s := range b.img.segs {
		if !s.write && !s.exec && s.filesz > size {
			addr, size = s.addr, s.filesz
		}
	}
	return addr, size
}

// FileOffset returns the offset in the file of an address, which is where the
// kernel attaches a uprobe.
func (b *Binary) FileOffset(addr uint64) (uint64, bool) { return b.img.fileOffset(addr) }

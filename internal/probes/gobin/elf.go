package gobin

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// Bounds on the ELF headers. Go's linker writes under 10 program headers and
// under 40 sections; C linkers with -ffunction-sections reach thousands.
const (
	maxSegments = 64
	maxSections = 16384
	maxShstrtab = 1 << 20
)

// segment is one PT_LOAD: file bytes [off, off+filesz) at addr.
type segment struct {
	addr, off, filesz, memsz uint64
	exec, write              bool
}

func (s *segment) holds(addr uint64) bool { return addr-s.addr < s.filesz }

// section is one named section; only the few that Go names are kept.
type section struct{ addr, size uint64 }

// elfFile is what the ELF headers tell. debug/elf is used for its constants
// only: its NewFile reads all sections and relocations up front and is
// documented as not hardened against hostile files.
type elfFile struct {
	arch     Arch
	dyn      bool // ET_DYN: PIE or shared object
	entry    uint64
	segs     []segment
	dynamic  segment            // PT_DYNAMIC, filesz 0 if none
	sections map[string]section // the names in wantedSections
}

// wantedSections are the sections whose place or presence is used. Each is
// only a hint: a file without section headers is read as well.
var wantedSections = []string{
	".go.module", ".gopclntab", ".data.rel.ro.gopclntab", ".go.buildinfo", ".symtab",
}

func readELF(r io.ReaderAt, size int64) (*elfFile, error) {
	var h [64]byte
	if size < 4 {
		return nil, ErrNotELF
	}
	n, err := r.ReadAt(h[:min(size, 64)], 0)
	if n < 4 {
		return nil, fmt.Errorf("read ELF header: %w", orTruncated(err))
	}
	if string(h[:4]) != elf.ELFMAG {
		return nil, ErrNotELF
	}
	if n < 64 {
		return nil, ErrTruncated
	}
	if elf.Class(h[4]) == elf.ELFCLASS32 {
		return nil, Err32Bit
	}
	le := binary.LittleEndian
	f := &elfFile{sections: make(map[string]section), entry: le.Uint64(h[24:])}
	if elf.Class(h[4]) != elf.ELFCLASS64 || elf.Data(h[5]) != elf.ELFDATA2LSB {
		return nil, ErrArch
	}
	switch elf.Machine(le.Uint16(h[18:])) {
	case elf.EM_X86_64:
		f.arch = AMD64
	case elf.EM_AARCH64:
		f.arch = ARM64
	default:
		return nil, ErrArch
	}
	switch elf.Type(le.Uint16(h[16:])) {
	case elf.ET_EXEC:
	case elf.ET_DYN:
		f.dyn = true
	default:
		return nil, fmt.Errorf("%w: neither an executable nor a shared object", ErrNotELF)
	}
	if err := f.readSegments(r, size, le.Uint64(h[32:]), le.Uint16(h[54:]), le.Uint16(h[56:])); err != nil {
		return nil, err
	}
	f.readSections(r, size, le.Uint64(h[40:]), le.Uint16(h[58:]), le.Uint16(h[60:]), le.Uint16(h[62:]))
	return f, nil
}

func orTruncated(err error) error {
	if err == nil || err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrTruncated
	}
	return err
}

func (f *elfFile) readSegments(r io.ReaderAt, size int64, off uint64, entsize, num uint16) error {
	const phsize = 56
	if num == 0 || num > maxSegments || entsize != phsize {
		return fmt.Errorf("read program headers: %w", ErrTruncated)
	}
	if off > uint64(size) || uint64(size)-off < uint64(num)*phsize {
		return fmt.Errorf("read program headers: %w", ErrTruncated)
	}
	buf := make([]byte, int(num)*phsize)
	if _, err := r.ReadAt(buf, int64(off)); err != nil {
		return fmt.Errorf("read program headers: %w", orTruncated(err))
	}
	le := binary.LittleEndian
	for p := buf; len(p) >= phsize; p = p[phsize:] {
		flags := elf.ProgFlag(le.Uint32(p[4:]))
		s := segment{
			off: le.Uint64(p[8:]), addr: le.Uint64(p[16:]),
			filesz: le.Uint64(p[32:]), memsz: le.Uint64(p[40:]),
			exec: flags&elf.PF_X != 0, write: flags&elf.PF_W != 0,
		}
		typ := elf.ProgType(le.Uint32(p))
		if typ != elf.PT_LOAD && typ != elf.PT_DYNAMIC || s.filesz == 0 {
			continue
		}
		// The loader refuses segments that wrap around, and user space ends below 2^56.
		if s.addr >= 1<<56 || s.filesz >= 1<<56 {
			return fmt.Errorf("read program headers: %w", ErrTruncated)
		}
		if s.off > uint64(size) || s.filesz > uint64(size)-s.off {
			return fmt.Errorf("segment at %#x reaches past the end of the file: %w", s.addr, ErrTruncated)
		}
		if typ == elf.PT_DYNAMIC {
			f.dynamic = s
			continue
		}
		f.segs = append(f.segs, s)
	}
	if len(f.segs) == 0 {
		return fmt.Errorf("no loadable segment: %w", ErrTruncated)
	}
	return nil
}

// readSections looks for the wanted sections. Section headers are not needed
// at run time and may be damaged or gone, so nothing here is an error.
func (f *elfFile) readSections(r io.ReaderAt, size int64, off uint64, entsize, num, strndx uint16) {
	const shsize = 64
	if num == 0 || num > maxSections || entsize != shsize || strndx >= num {
		return
	}
	if off > uint64(size) || uint64(size)-off < uint64(num)*shsize {
		return
	}
	buf := make([]byte, int(num)*shsize)
	if _, err := r.ReadAt(buf, int64(off)); err != nil {
		return
	}
	le := binary.LittleEndian
	str := buf[int(strndx)*shsize:]
	stroff, strsize := le.Uint64(str[24:]), le.Uint64(str[32:])
	if strsize > maxShstrtab || stroff > uint64(size) || strsize > uint64(size)-stroff {
		return
	}
	names := make([]byte, strsize)
	if _, err := r.ReadAt(names, int64(stroff)); err != nil {
		return
	}
	for p := buf; len(p) >= shsize; p = p[shsize:] {
		i := uint64(le.Uint32(p))
		if i >= strsize {
			continue
		}
		name := names[i:min(i+64, strsize)]
		if n := slices.Index(name, 0); n >= 0 {
			name = name[:n]
		}
		if slices.Contains(wantedSections, string(name)) {
			f.sections[string(name)] = section{addr: le.Uint64(p[16:]), size: le.Uint64(p[32:])}
		}
	}
}

// fileOffset translates an address of file-backed memory.
func (f *elfFile) fileOffset(addr uint64) (uint64, bool) {
	for i := range f.segs {
		if s := &f.segs[i]; s.holds(addr) {
			return s.off + (addr - s.addr), true
		}
	}
	return 0, false
}

// segmentOf returns the segment whose file-backed bytes hold addr, or nil.
func (f *elfFile) segmentOf(addr uint64) *segment {
	for i := range f.segs {
		if s := &f.segs[i]; s.holds(addr) {
			return s
		}
	}
	return nil
}

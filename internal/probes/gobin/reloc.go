package gobin

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
)

// reloc says that the loader stores value (before adding the load address) at
// a file offset.
type reloc struct{ off, value uint64 }

// maxRelocs bounds the relocations kept: 16 bytes each. An 83 MB PIE that a C
// linker made has about half a million.
const maxRelocs = 2 << 20

// relocate applies the relocations of the page data, which begins at file
// offset off. Relocated words are 8-aligned (others were dropped), so none
// crosses a page.
func (img *image) relocate(data []byte, off uint64) {
	if len(img.relocs) == 0 {
		return
	}
	i, _ := slices.BinarySearchFunc(img.relocs, off, func(r reloc, o uint64) int {
		if r.off < o {
			return -1
		}
		return 1
	})
	for ; i < len(img.relocs); i++ {
		at := img.relocs[i].off - off
		if at+8 > uint64(len(data)) {
			return
		}
		binary.LittleEndian.PutUint64(data[at:], img.relocs[i].value)
	}
}

// loadRelocs reads the R_*_RELATIVE relocations of an ET_DYN file. Go's own
// linker and RELR leave the addend in place, where it is read as data; a C
// linker leaves zeros, so those words are remembered.
func (img *image) loadRelocs(v *view) error {
	if !img.dyn || img.dynamic.filesz == 0 {
		return nil
	}
	var rela, relasz uint64
	for at, n := img.dynamic.addr, 0; n < 256; at, n = at+16, n+1 {
		w, ok := v.words(at, 2)
		if !ok || elf.DynTag(w[0]) == elf.DT_NULL {
			break
		}
		switch elf.DynTag(w[0]) {
		case elf.DT_RELA:
			rela = w[1]
		case elf.DT_RELASZ:
			relasz = w[1]
		}
	}
	if rela == 0 || relasz == 0 {
		return nil
	}
	const entry = 24
	if relasz/entry > 2*maxRelocs {
		return fmt.Errorf("read relocations: %w", ErrLimit)
	}
	var list []reloc
	for end := rela + relasz/entry*entry; rela < end; rela += entry {
		var b [entry]byte
		if !v.read(rela, b[:]) {
			return fmt.Errorf("read relocations: %w", ErrTruncated)
		}
		r, ok := img.relative(b[:])
		if !ok {
			continue
		}
		if old, ok := v.u64(r.off); ok && old == r.value {
			continue
		}
		if r.off, ok = img.fileOffset(r.off); !ok || r.off%8 != 0 {
			continue
		}
		if len(list) == maxRelocs {
			return fmt.Errorf("read relocations: %w", ErrLimit)
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b reloc) int { return cmp.Compare(a.off, b.off) })
	img.relocs = slices.Clip(list)
	v.flush()
	return nil
}

// relative decodes one Elf64_Rela; off is still an address.
func (img *image) relative(b []byte) (reloc, bool) {
	le := binary.LittleEndian
	typ := uint32(le.Uint64(b[8:]))
	want := uint32(elf.R_X86_64_RELATIVE)
	if img.arch == ARM64 {
		want = uint32(elf.R_AARCH64_RELATIVE)
	}
	if typ != want {
		return reloc{}, false
	}
	r := reloc{off: le.Uint64(b), value: le.Uint64(b[16:])}
	return r, r.off < 1<<56
}

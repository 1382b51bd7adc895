package gobin

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// slice is a Go slice header in the binary.
type slice struct{ addr, len uint64 }

// moduledata is the part of runtime.moduledata that is used. Its first 24
// words are the same in Go 1.18 to 1.27; what follows moved, and is found by
// trying (see findTypes and findInlineTrees).
type moduledata struct {
	addr  uint64
	words []uint64 // the first moduledataWords words

	minLC       uint64
	funcnametab slice
	pctab       slice
	pclntable   slice
	ftab        slice // {entry offset, _func offset} uint32 pairs; the last is the end
	text, etext uint64

	types, etypes uint64
}

// moduledataWords covers all that is used of any known release: the words up
// to gofunc are within the first 48 in Go 1.27.
const moduledataWords = 64

// Bounds on the tables. The largest Go binaries known (kubelet and the like,
// 160 MB) have 200,000 functions.
const (
	maxFuncs       = 1 << 20
	maxPclntab     = 1 << 28
	maxTypesRegion = 1 << 26
)

// findModuledata finds runtime.firstmoduledata.
func (img *image) findModuledata(v *view) (*moduledata, error) {
	// Go 1.26 and later give it a section of its own.
	if s, ok := img.sections[".go.module"]; ok {
		if md, ok := img.moduledataAt(v, s.addr); ok {
			return md, nil
		}
	}
	for _, name := range []string{".gopclntab", ".data.rel.ro.gopclntab"} {
		if s, ok := img.sections[name]; ok && img.isPclntab(v, s.addr) {
			if md, ok := img.moduledataFor(v, s.addr); ok {
				return md, nil
			}
		}
	}
	found, err := img.scanPclntab(v)
	for _, addr := range found {
		if md, ok := img.moduledataFor(v, addr); ok {
			return md, nil
		}
	}
	switch {
	case v.err != nil:
		return nil, v.err
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, ErrNotGo
	}
	return nil, ErrTables
}

// isPclntab reports whether a plausible pcHeader of Go 1.18 or later is at
// addr. The magic's low byte tells no release apart and is not looked at.
func (img *image) isPclntab(v *view, addr uint64) bool {
	w, ok := v.words(addr, 3)
	if !ok {
		return false
	}
	lc, ptr := byte(w[0]>>48), byte(w[0]>>56)
	return w[0]>>32&0xffff == 0 && (lc == 1 || lc == 2 || lc == 4) && ptr == 8 &&
		w[1] > 0 && w[1] <= maxFuncs
}

// scanPclntab finds candidates for the pclntab where no section names it.
func (img *image) scanPclntab(v *view) ([]uint64, error) {
	const maxFound = 16
	minLC := byte(1)
	if img.arch == ARM64 {
		minLC = 4
	}
	pat := []byte{0xff, 0xff, 0xff, 0, 0, minLC, 8}
	var found []uint64
	err := img.scan(v, func(s *segment) bool { return true }, func(addr uint64, b []byte) bool {
		for i := 0; ; i++ {
			n := bytes.Index(b[i:], pat)
			if n < 0 {
				return true
			}
			i += n
			if at := addr + uint64(i) - 1; at%8 == 0 && img.isPclntab(v, at) {
				if found = append(found, at); len(found) == maxFound {
					return false
				}
			}
		}
	})
	return found, err
}

// scan calls f with the contents of each segment that want accepts, page by
// page, until f returns false. A pattern of 8-aligned data that fits in a
// page is never split. f may use v.
func (img *image) scan(v *view, want func(*segment) bool, f func(addr uint64, b []byte) bool) error {
	buf := make([]byte, 1<<v.shift)
	for i := range img.segs {
		s := &img.segs[i]
		if !want(s) {
			continue
		}
		for at, end := s.addr, s.addr+s.filesz; at < end; {
			b := v.at(at, len(buf))
			if len(b) == 0 {
				return v.err
			}
			n := copy(buf, b)
			if !v.charge(n) {
				return v.err
			}
			if !f(at, buf[:n]) {
				return nil
			}
			at += uint64(n)
		}
	}
	return nil
}

// moduledataFor finds the moduledata whose first word points to the pclntab:
// in writable segments first, where it is in every known release.
func (img *image) moduledataFor(v *view, pclntab uint64) (md *moduledata, ok bool) {
	look := func(addr uint64, b []byte) bool {
		for i := (8 - addr%8) % 8; i+8 <= uint64(len(b)); i += 8 {
			if binary.LittleEndian.Uint64(b[i:]) != pclntab {
				continue
			}
			if md, ok = img.moduledataAt(v, addr+i); ok {
				return false
			}
		}
		return true
	}
	for _, write := range []bool{true, false} {
		want := func(s *segment) bool { return !s.exec && s.write == write }
		if err := img.scan(v, want, look); err != nil || ok {
			break
		}
	}
	return md, ok
}

// moduledataAt reads and checks the moduledata at addr.
func (img *image) moduledataAt(v *view, addr uint64) (*moduledata, bool) {
	w, ok := v.words(addr, moduledataWords)
	if !ok || !img.isPclntab(v, w[0]) {
		return nil, false
	}
	md := &moduledata{addr: addr, words: w}
	hdr, _ := v.u64(w[0])
	md.minLC = hdr >> 48 & 0xff
	// funcnametab, cutab, filetab, pctab, pclntable, ftab, with the size of an element.
	var tabs [6]slice
	for i, elem := range []uint64{1, 4, 1, 1, 1, 8} {
		p, n, c := w[1+3*i], w[2+3*i], w[3+3*i]
		if n != c || n > maxPclntab || !img.backed(p, n*elem) {
			return nil, false
		}
		tabs[i] = slice{p, n}
	}
	md.funcnametab, md.pctab, md.pclntable, md.ftab = tabs[0], tabs[3], tabs[4], tabs[5]
	minpc, maxpc := w[20], w[21]
	md.text, md.etext = w[22], w[23]
	if md.text > minpc || minpc >= maxpc || maxpc > md.etext {
		return nil, false
	}
	s := img.segmentOf(md.text)
	if s == nil || !s.exec || md.etext > s.addr+s.memsz {
		return nil, false
	}
	// Function entries are 32-bit offsets from text.
	if md.etext-md.text > 1<<32 || md.ftab.len < 2 || md.ftab.len > maxFuncs {
		return nil, false
	}
	return md, true
}

// backed reports whether one segment's file bytes hold [addr, addr+n).
func (img *image) backed(addr, n uint64) bool {
	if n == 0 {
		return true
	}
	s := img.segmentOf(addr)
	return s != nil && n <= s.filesz-(addr-s.addr)
}

// findTypes sets the bounds of the type section: of the words where some
// release keeps moduledata.types, the one against which most of a sample of
// records parse as type descriptors.
func (img *image) findTypes(v *view, md *moduledata) error {
	const enough = 64
	type candidate struct{ start, end uint64 }
	var best candidate
	most := 0
	// Word 37 from Go 1.20 on, 35 before; then whatever a later release may do.
	order := []int{37, 35}
	for i := 28; i < moduledataWords-2; i++ {
		order = append(order, i)
	}
	for _, i := range order {
		c := candidate{start: md.words[i]}
		seg := img.segmentOf(c.start)
		// C linkers may put read-only data and code into one segment.
		if seg == nil || c.start%8 != 0 || c.start >= md.text && c.start < md.etext {
			continue
		}
		for _, w := range md.words[i+1 : i+3] {
			if w > c.start && w <= seg.addr+seg.filesz {
				c.end = w
				break
			}
		}
		if c.end == 0 || c.end-c.start > maxTypesRegion {
			continue
		}
		n := sampleTypes(v, c.start, c.end, enough)
		if n > most {
			most, best = n, c
		}
		if n >= enough {
			break
		}
	}
	if v.err != nil {
		return v.err
	}
	if most < 8 {
		return fmt.Errorf("find type descriptors: %w", ErrTables)
	}
	md.types, md.etypes = best.start, best.end
	return nil
}

// sampleTypes counts the descriptors in some windows of [start, end), up to
// enough. Large programs have more than a megabyte of names and the like in
// one piece.
func sampleTypes(v *view, start, end uint64, enough int) (n int) {
	const (
		windows = 32
		size    = 1 << 15
	)
	sw := sweeper{v: v, start: start, end: end}
	step := max((end-start)/windows, size) &^ 7
	for at := start; at < end && n < enough; at += step {
		sw.run(at, min(end, at+size), func(*typeHeader) bool {
			n++
			return n < enough
		})
	}
	return n
}

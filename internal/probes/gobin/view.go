package gobin

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// image is the program's memory as the loader would lay it out, read from the
// file on demand. It is immutable.
type image struct {
	*elfFile
	r      io.ReaderAt
	size   int64
	relocs []reloc // by file offset; only those that the file's bytes do not show already
}

// view reads an image through a direct-mapped cache of file pages. A view is
// for one goroutine; it is cheap to make, so each query has its own. Bytes
// are relocated when a page is loaded.
type view struct {
	img    *image
	shift  uint // log2 of the page size
	slots  []page
	seg    *segment // where the last address was found
	budget int64    // bytes that may still be loaded from the file
	work   int64    // units of work that may still be done
	err    error    // first error that is not just a bad address
}

type page struct {
	tag  uint64 // page number + 1; 0 is an empty slot
	data []byte
}

// Sizes of views. The one of Open sweeps megabytes, in at most 16 MiB of
// memory; the others look up a handful of records.
const (
	openShift, openSlots   = 16, 256
	querySlots, queryShift = 32, 12
)

// maxLoad bounds the bytes that one view reads from the file, so that a
// crafted file which makes the cache thrash cannot keep the agent busy. A
// real 160 MB binary needs about 200 MB.
const maxLoad = 1 << 30

// maxWork bounds what one view does with the bytes that it has: about one
// unit for each access, and one for every 16 bytes. Tables that overlap could
// otherwise be read over and over. The units cost some ns each.
const maxWork = 1 << 25

func newView(img *image, shift uint, slots int) *view {
	return &view{img: img, shift: shift, slots: make([]page, slots), budget: maxLoad, work: maxWork}
}

// charge counts n bytes of work, and reports whether there may be more.
func (v *view) charge(n int) bool {
	if v.work -= int64(1 + n>>4); v.work < 0 && v.err == nil {
		v.err = ErrLimit
	}
	return v.err == nil
}

// flush forgets all pages: the image's relocations changed.
func (v *view) flush() {
	for i := range v.slots {
		v.slots[i].tag = 0
	}
}

// page returns the file page n, or nil.
func (v *view) page(n uint64) []byte {
	p := &v.slots[n%uint64(len(v.slots))]
	if p.tag == n+1 {
		return p.data
	}
	if v.err != nil {
		return nil
	}
	off := n << v.shift
	want := min(uint64(1)<<v.shift, uint64(v.img.size)-off)
	if v.budget -= int64(want); v.budget < 0 {
		v.err = ErrLimit
		return nil
	}
	if p.data == nil {
		p.data = make([]byte, 1<<v.shift)
	}
	p.tag = 0
	p.data = p.data[:want]
	if m, err := v.img.r.ReadAt(p.data, int64(off)); m < int(want) {
		v.err = fmt.Errorf("read at %#x: %w", off, orTruncated(err))
		return nil
	}
	v.img.relocate(p.data, off)
	p.tag = n + 1
	return p.data
}

// at returns up to n bytes at addr: fewer where a page ends, none where no
// file-backed segment holds addr. They are valid until the next call of at.
func (v *view) at(addr uint64, n int) []byte {
	if !v.charge(0) {
		return nil
	}
	if v.seg == nil || !v.seg.holds(addr) {
		if v.seg = v.img.segmentOf(addr); v.seg == nil {
			return nil
		}
	}
	rel := addr - v.seg.addr
	n = int(min(uint64(n), v.seg.filesz-rel))
	off := v.seg.off + rel
	p := v.page(off >> v.shift)
	i := off & (1<<v.shift - 1)
	if i >= uint64(len(p)) {
		return nil
	}
	return p[i:min(int(i)+n, len(p))]
}

// read fills buf from addr, across pages.
func (v *view) read(addr uint64, buf []byte) bool {
	v.charge(len(buf))
	for len(buf) > 0 {
		b := v.at(addr, len(buf))
		if len(b) == 0 {
			return false
		}
		n := copy(buf, b)
		buf, addr = buf[n:], addr+uint64(n)
	}
	return true
}

func (v *view) u64(addr uint64) (uint64, bool) {
	if b := v.at(addr, 8); len(b) == 8 {
		return binary.LittleEndian.Uint64(b), true
	}
	var b [8]byte
	ok := v.read(addr, b[:])
	return binary.LittleEndian.Uint64(b[:]), ok
}

func (v *view) u32(addr uint64) (uint32, bool) {
	if b := v.at(addr, 4); len(b) == 4 {
		return binary.LittleEndian.Uint32(b), true
	}
	var b [4]byte
	ok := v.read(addr, b[:])
	return binary.LittleEndian.Uint32(b[:]), ok
}

// words reads n 64-bit words.
func (v *view) words(addr uint64, n int) ([]uint64, bool) {
	buf := make([]byte, 8*n)
	if !v.read(addr, buf) {
		return nil, false
	}
	w := make([]uint64, n)
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(buf[8*i:])
	}
	return w, true
}

// cstring reads a NUL-terminated string of at most limit bytes.
func (v *view) cstring(addr uint64, limit int) (string, bool) {
	var s []byte
	for len(s) < limit {
		b := v.at(addr, min(limit-len(s), 256))
		if len(b) == 0 {
			return "", false
		}
		if i := bytes.IndexByte(b, 0); i >= 0 {
			v.charge(len(s) + i)
			return string(append(s, b[:i]...)), true
		}
		s = append(s, b...)
		addr += uint64(len(b))
	}
	return "", false
}

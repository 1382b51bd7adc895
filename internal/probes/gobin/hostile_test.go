package gobin

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sparse is a file of zeros with pieces in it, and counts what is read.
type sparse struct {
	size   int64
	pieces map[int64][]byte
	read   int64
}

func (s *sparse) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	for at, b := range s.pieces {
		if lo, hi := max(at, off), min(at+int64(len(b)), off+int64(n)); lo < hi {
			copy(p[lo-off:hi-off], b[lo-at:hi-at])
		}
	}
	s.read += int64(n)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// header makes an ELF header with one program header for each segment.
func header(segs ...segment) []byte {
	b := make([]byte, 64+56*len(segs))
	le := binary.LittleEndian
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // ET_EXEC
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], uint16(len(segs)))
	for i, s := range segs {
		p := b[64+56*i:]
		le.PutUint32(p, 1) // PT_LOAD
		flags := uint32(4)
		if s.exec {
			flags |= 1
		}
		if s.write {
			flags |= 2
		}
		le.PutUint32(p[4:], flags)
		le.PutUint64(p[8:], s.off)
		le.PutUint64(p[16:], s.addr)
		le.PutUint64(p[32:], s.filesz)
		le.PutUint64(p[40:], s.filesz)
	}
	return b
}

// TestOpenErrors: what is not a Go executable that can be read gives the
// error that says so.
func TestOpenErrors(t *testing.T) {
	one := func(change func(b []byte) []byte) []byte { return change(header(segment{addr: 0x1000, filesz: 120})) }
	same := func(b []byte) []byte { return b }
	put16 := func(at int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint16(b[at:], v); return b }
	}
	old := append(one(same), make([]byte, 72)...)
	binary.LittleEndian.PutUint64(old[64+32:], uint64(len(old)))
	copy(old[128:], buildInfoMagic)
	recent := append([]byte(nil), old...)
	recent = append(recent, make([]byte, 64)...)
	recent[128+15] = 2
	copy(recent[160:], "\x08go1.17.5\x00")
	binary.LittleEndian.PutUint64(recent[64+32:], uint64(len(recent)))
	for _, c := range []struct {
		name string
		file []byte
		want error
	}{
		{"empty", nil, ErrNotELF},
		{"short", []byte("\x7fEL"), ErrNotELF},
		{"script", []byte("#!/bin/sh\nexit 0\n"), ErrNotELF},
		{"magic only", []byte("\x7fELF"), ErrTruncated},
		{"32-bit", one(func(b []byte) []byte { b[4] = 1; return b }), Err32Bit},
		{"big-endian", one(func(b []byte) []byte { b[5] = 2; return b }), ErrArch},
		{"riscv", one(put16(18, 243)), ErrArch},
		{"object file", one(put16(16, 1)), ErrNotELF},
		{"no program headers", one(put16(56, 0)), ErrTruncated},
		{"too many program headers", one(put16(56, 65535)), ErrTruncated},
		{"program headers beyond the end", one(func(b []byte) []byte { b[39] = 0x7f; return b }), ErrTruncated},
		{"segment beyond the end", header(segment{addr: 0x1000, filesz: 121}), ErrTruncated},
		{"segment that wraps around", header(segment{addr: 1 << 63, filesz: 100}), ErrTruncated},
		{"not Go", one(same), ErrNotGo},
		{"build info of Go 1.17", old, ErrGoTooOld},
		{"Go 1.17 by its version", recent, ErrGoTooOld},
	} {
		_, err := Open(bytes.NewReader(c.file), int64(len(c.file)))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// TestOpenReadError: the reader's own error comes through.
func TestOpenReadError(t *testing.T) {
	data, err := os.ReadFile(build(t, target{version: "local", arch: "amd64"}))
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	for _, limit := range []int64{32, 1 << 16, 1 << 20, int64(len(data)) / 2} {
		r := failing{bytes.NewReader(data), limit, boom}
		if _, err := Open(r, int64(len(data))); !errors.Is(err, boom) {
			t.Errorf("reader that fails after %d bytes: %v", limit, err)
		}
	}
}

type failing struct {
	io.ReaderAt
	limit int64
	err   error
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.limit {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(p, off)
}

// TestOpenTruncated cuts a real binary short, and zeroes parts of it, and
// then asks of it what can be asked: errors, no panic.
func TestOpenTruncated(t *testing.T) {
	data, err := os.ReadFile(build(t, target{version: "local", arch: "amd64", strip: true, pie: true}))
	if err != nil {
		t.Fatal(err)
	}
	n := len(data)
	for i := 0; i < 64; i++ {
		cut := data[:n*i/64]
		if _, err := Open(bytes.NewReader(cut), int64(len(cut))); err == nil && i < 32 {
			t.Errorf("%d of %d bytes: no error", len(cut), n)
		}
		holed := bytes.Clone(data)
		clear(holed[n*i/64 : n*(i+1)/64])
		if b, err := Open(bytes.NewReader(holed), int64(n)); err == nil {
			exercise(b)
		}
	}
}

// exercise asks a binary everything.
func exercise(b *Binary) {
	_ = b.Types(func(t Type) bool { _, _ = b.StructSize(t.Name); return true })
	for _, f := range required {
		for _, field := range []string{"Header", "mu", "pfd"} {
			_, _ = b.Field(f.name, field)
		}
	}
	_, _ = b.ContextTypes()
	_, _ = b.MapLayout("net/http.Header")
	_, _ = b.TypeAddr("*net/http.response")
	for _, h := range entryHooks {
		if fn, err := b.Func(h.name); err == nil {
			_, _ = b.EntrySite(fn)
			_, _ = b.ReturnSites(fn)
		}
	}
	for _, h := range callHooks {
		for _, fn := range b.lookupAll(h.fn) {
			_, _ = h.site(b, fn)
		}
	}
	b.FuncsWithPrefix("net/http.")
}

// TestNoSectionHeaders: section headers are only hints.
func TestNoSectionHeaders(t *testing.T) {
	for _, tg := range targets() {
		for _, pie := range []bool{false, true} {
			tg.pie = pie
			t.Run(tg.String(), func(t *testing.T) {
				data, err := os.ReadFile(build(t, tg))
				if err != nil {
					t.Fatal(err)
				}
				want := open(t, tg)
				for i := 40; i < 48; i++ {
					data[i] = 0 // e_shoff
				}
				clear(data[58:64]) // e_shentsize, e_shnum, e_shstrndx
				b, err := Open(bytes.NewReader(data), int64(len(data)))
				if err != nil {
					t.Fatal(err)
				}
				if got, want := len(b.types.all), len(want.types.all); got != want {
					t.Errorf("%d types, want %d", got, want)
				}
				if got, want := len(b.funcs.named), len(want.funcs.named); got != want {
					t.Errorf("%d functions, want %d", got, want)
				}
				if got, want := b.GoVersion(), want.GoVersion(); got != want {
					t.Errorf("version %v, want %v", got, want)
				}
				if !b.Stripped() {
					t.Error("not stripped, though there is no section")
				}
			})
		}
	}
}

// crafted are files that make work. Each claims 2 GB.
func crafted() map[string]*sparse {
	const size = 2 << 30
	whole := header(segment{addr: 0, filesz: size, exec: true}, segment{addr: size, filesz: size, write: true})
	files := map[string]*sparse{
		"zeros":    {size: size, pieces: map[int64][]byte{0: whole}},
		"many":     {size: size, pieces: map[int64][]byte{0: header(manySegments(size)...)}},
		"overlaid": {size: size, pieces: map[int64][]byte{0: header(manySegments(12 << 20)...)}},
		"pclntabs": {size: size, pieces: map[int64][]byte{0: whole}},
	}
	// Plausible function tables without moduledata, over and over.
	tab := make([]byte, 4096)
	for i := 0; i < len(tab); i += 32 {
		copy(tab[i:], "\xf1\xff\xff\xff\x00\x00\x01\x08")
		tab[i+8] = 1
	}
	for i := int64(1); i < 1000; i++ {
		files["pclntabs"].pieces[i<<21] = tab
	}
	for i := int64(1); i < 12; i++ {
		files["overlaid"].pieces[i<<20] = tab
	}
	// Types without end.
	types := withModuledata(size, 1<<16)
	some := bytes.Repeat(plausibleType(), 1<<12)
	for i := int64(0); i < maxTypesRegion; i += int64(len(some)) {
		types.pieces[256<<20+i] = some
	}
	files["types"] = types
	// A million functions, all with the longest name and inline tree there may be.
	files["functions"] = withFunctions(size)
	return files
}

// withModuledata makes a file whose tables have nfunc functions, and types at
// 256 MB of the file.
func withModuledata(size int64, nfunc uint64) *sparse {
	const data = 4 << 30 // address of file offset 0 as data
	f := &sparse{size: size, pieces: map[int64][]byte{
		0: header(segment{addr: 0, filesz: 1 << 20, exec: true}, segment{addr: data, filesz: 384 << 20, write: true}),
	}}
	hdr := make([]byte, 64)
	copy(hdr, "\xf1\xff\xff\xff\x00\x00\x01\x08")
	binary.LittleEndian.PutUint64(hdr[8:], nfunc)
	md := make([]byte, 8*moduledataWords)
	w := func(i int, v uint64) { binary.LittleEndian.PutUint64(md[8*i:], v) }
	w(0, data+1<<20)
	for i, s := range []slice{
		{data + 2<<20, 1 << 20}, {data, 1}, {data, 1}, // funcnametab
		{data + 4<<20, 1 << 20},   // pctab
		{data + 8<<20, 100 << 20}, // pclntable
		{data + 128<<20, nfunc},   // ftab
	} {
		w(1+3*i, s.addr)
		w(2+3*i, s.len)
		w(3+3*i, s.len)
	}
	w(20, 0x1000)
	w(21, 1<<20)
	w(22, 0x1000)
	w(23, 1<<20)
	w(37, data+256<<20)
	w(38, data+256<<20+maxTypesRegion)
	w(40, data+200<<20) // gofunc
	f.pieces[1<<20] = hdr
	f.pieces[1<<20+4096] = md
	return f
}

func withFunctions(size int64) *sparse {
	f := withModuledata(size, maxFuncs)
	f.pieces[256<<20] = bytes.Repeat(plausibleType(), 128)
	// One _func for all: entry 0, name 0, inline tree at gofunc.
	fn := make([]byte, 128)
	fn[28] = 3           // npcdata
	fn[funcSize-1] = 4   // nfuncdata
	fn[funcSize+4*2] = 1 // PCDATA_InlTreeIndex at pctab+1
	f.pieces[8<<20] = fn // FUNCDATA_InlTree at gofunc+0
	name := bytes.Repeat([]byte("n"), maxFuncName-1)
	f.pieces[2<<20] = name
	f.pieces[4<<20] = []byte{0, 0xfe, 0xff, 0x03, 1, 0} // one value, 32766
	tree := make([]byte, 16<<15)
	for i := 4; i < len(tree); i += 16 {
		tree[i+1] = 0x20 // name at 8192: after the first one's end
	}
	f.pieces[200<<20] = tree
	return f
}

func manySegments(size uint64) (list []segment) {
	for i := uint64(0); i < maxSegments; i++ {
		list = append(list, segment{addr: i << 40, filesz: size, write: true})
	}
	return list
}

// plausibleType is a descriptor of an 8-byte integer whose name is in itself.
func plausibleType() []byte {
	b := make([]byte, typeSize)
	b[0], b[offHash], b[offAlign], b[offFieldAlign], b[offKind] = 8, 1, 8, 8, 2
	b[offPtrBytes] = 0
	copy(b[24:], "\x00\x03int")
	b[offStr] = 24
	return b
}

// TestSampleTypes: descriptors are found though the type section begins with
// megabytes of something else, as in large programs.
func TestSampleTypes(t *testing.T) {
	const size = 16 << 20
	f := &sparse{size: size, pieces: map[int64][]byte{
		0:       header(segment{addr: 0, filesz: size}),
		9 << 20: bytes.Repeat(plausibleType(), 1<<16),
	}}
	file, err := readELF(f, size)
	if err != nil {
		t.Fatal(err)
	}
	v := newView(&image{elfFile: file, r: f, size: size}, openShift, openSlots)
	// The names of plausibleType are relative to the section's start.
	f.pieces[1<<20] = make([]byte, typeSize)
	copy(f.pieces[1<<20][24:], "\x00\x03int")
	if n := sampleTypes(v, 1<<20, size, 64); n < 64 {
		t.Errorf("%d types found in the sample", n)
	}
	if v := newView(v.img, openShift, openSlots); sampleTypes(v, 1<<20, 8<<20, 64) != 0 {
		t.Error("types found among zeros")
	}
}

// cpuTime is what this process has used, whatever else the machine does.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestCraftedFilesAreCheap: 2 GB of nonsense costs under a second, and under
// 50 MB of memory.
func TestCraftedFilesAreCheap(t *testing.T) {
	for name, f := range crafted() {
		t.Run(name, func(t *testing.T) {
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := cpuTime(t)
			b, err := Open(f, f.size)
			took := cpuTime(t) - start
			runtime.ReadMemStats(&after)
			alloc := after.TotalAlloc - before.TotalAlloc
			t.Logf("%v, %d MB read, %d MB allocated, error %v", took, f.read>>20, alloc>>20, err)
			if err == nil {
				t.Errorf("no error: %d types", len(b.types.all))
			}
			limit := time.Second
			if raceEnabled {
				limit *= 20
			}
			if took > limit {
				t.Errorf("took %v", took)
			}
			if alloc > 50<<20 {
				t.Errorf("allocated %d MB", alloc>>20)
			}
		})
	}
}

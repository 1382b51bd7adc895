package gobin

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"time"
)

// fuzzBase is the real binary whose tables fuzzing changes. The inputs are
// small edits of it, not the file itself: a corpus of megabytes teaches the
// fuzzer nothing.
func fuzzBase(f *testing.F) (*Binary, []byte) {
	f.Helper()
	data, err := os.ReadFile(build(f, target{version: "local", arch: "amd64", strip: true, pie: true}))
	if err != nil {
		f.Fatal(err)
	}
	b, err := Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		f.Fatal(err)
	}
	return b, data
}

// patched is a file with some bytes replaced.
type patched struct {
	data []byte
	at   int64
	with []byte
}

func (p patched) ReadAt(buf []byte, off int64) (int, error) {
	n, err := bytes.NewReader(p.data).ReadAt(buf, off)
	if lo, hi := max(p.at, off), min(p.at+int64(len(p.with)), off+int64(n)); lo < hi {
		copy(buf[lo-off:hi-off], p.with[lo-p.at:hi-p.at])
	}
	return n, err
}

// openPatched opens the file with bytes replaced and asks it everything. What
// comes out must hold together.
func openPatched(t *testing.T, data []byte, at uint64, with []byte) {
	t.Helper()
	p := patched{data, int64(at % uint64(len(data))), with}
	start := time.Now()
	b, err := Open(p, int64(len(data)))
	if err != nil {
		return
	}
	check(t, b)
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
}

// check asks what the probes ask and verifies that answers lie within the file.
func check(t *testing.T, b *Binary) {
	t.Helper()
	for _, r := range required[:8] {
		f, err := b.Field(r.name, "Header")
		if size, err2 := b.StructSize(r.name); err == nil && (err2 != nil || f.Offset > size || f.Size > size-f.Offset) {
			t.Errorf("%s.Header at %d, %d bytes, of %d", r.name, f.Offset, f.Size, size)
		}
	}
	list, _ := b.ContextTypes()
	for _, c := range list {
		if c.Kind < ContextIface || c.Kind > ContextVia {
			t.Errorf("%+v", c)
		}
	}
	_, _ = b.MapLayout("net/http.Header")
	for _, h := range []int{0, 1, 10, 15} {
		fn, err := b.Func(entryHooks[h].name)
		if err != nil {
			continue
		}
		if s, err := b.EntrySite(fn); err == nil && (s.Addr < fn.Addr || s.Addr >= fn.End || s.Offset >= uint64(b.img.size)) {
			t.Errorf("%s: outside of %#x to %#x", s, fn.Addr, fn.End)
		}
	}
	for _, h := range callHooks {
		for _, fn := range b.lookupAll(h.fn) {
			_, _ = h.site(b, fn)
		}
	}
}

// FuzzOpen reads arbitrary files.
func FuzzOpen(f *testing.F) {
	_, data := fuzzBase(f)
	f.Add(data[:4096], uint32(len(data)))
	f.Add(data[:64], uint32(64))
	f.Add(header(segment{addr: 0x1000, filesz: 120}), uint32(120))
	for _, s := range crafted() {
		if head := s.pieces[0]; len(head) < 1<<16 {
			f.Add(head, uint32(1<<20))
		}
	}
	f.Fuzz(func(t *testing.T, head []byte, size uint32) {
		// The head alone, padded with zeros, and in front of a real binary.
		n := int64(size % (1 << 24))
		if b, err := Open(&sparse{size: n, pieces: map[int64][]byte{0: head}}, n); err == nil {
			check(t, b)
		}
		openPatched(t, data, 0, head)
	})
}

// FuzzPclntab changes moduledata, the function table and inline trees.
func FuzzPclntab(f *testing.F) {
	b, data := fuzzBase(f)
	regions := []slice{
		{b.md.addr, 8 * moduledataWords}, {b.md.words[0], 72}, b.md.funcnametab, b.md.pctab, b.md.pclntable,
		{b.md.ftab.addr, 8 * b.md.ftab.len}, {b.funcs.tree.gofunc, 1 << 16},
	}
	fuzzRegions(f, b, data, regions)
}

// FuzzTypes changes type descriptors and names.
func FuzzTypes(f *testing.F) {
	b, data := fuzzBase(f)
	regions := []slice{{b.md.types, b.md.etypes - b.md.types}, {b.md.addr + 8*32, 8 * 16}}
	for _, name := range []string{"net/http.Request", "net/http.Header", "os.file", "context.Context"} {
		addr, err := b.TypeAddr(name)
		if err != nil {
			f.Fatal(err)
		}
		regions = append(regions, slice{addr, 128})
	}
	fuzzRegions(f, b, data, regions)
}

func fuzzRegions(f *testing.F, b *Binary, data []byte, regions []slice) {
	for i, r := range regions {
		for _, v := range []uint64{0, 1, 1 << 31, 1 << 63, ^uint64(0), r.addr} {
			f.Add(uint8(i), uint32(8), binary.LittleEndian.AppendUint64(nil, v))
		}
	}
	f.Fuzz(func(t *testing.T, region uint8, at uint32, with []byte) {
		r := regions[int(region)%len(regions)]
		off, ok := b.FileOffset(r.addr + uint64(at)%r.len)
		if !ok || len(with) > 1<<16 {
			return
		}
		openPatched(t, data, off, with)
	})
}

// FuzzBuildInfo reads arbitrary build info.
func FuzzBuildInfo(f *testing.F) {
	sentinel := "0123456789abcdef"
	f.Add([]byte(buildInfoMagic + "\x08\x02" + "0123456789abcdef" + "\x08go1.26.8\x40" + sentinel + "path\tx\nmod\tx\tv1\th1:=\ndep\ty\tv2\n=>\tz\tv3\n" + sentinel))
	f.Add([]byte(buildInfoMagic + "\x08\x00"))
	f.Add([]byte(buildInfoMagic + "\x08\x02" + "0123456789abcdef" + "\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, info []byte) {
		head := header(segment{addr: 1 << 20, filesz: 1 << 12, write: true}, segment{addr: 1 << 21, filesz: uint64(len(info)), off: 1 << 12, write: true})
		s := &sparse{size: 1<<12 + int64(len(info)), pieces: map[int64][]byte{0: head, 1 << 12: info}}
		file, err := readELF(s, s.size)
		if err != nil {
			return // no info at all
		}
		img := &image{elfFile: file, r: s, size: s.size}
		version, bi, err := img.readBuildInfo(newView(img, openShift, openSlots))
		if len(version) > len(info) || bi != nil && err != nil {
			t.Errorf("version of %d bytes from %d, error %v", len(version), len(info), err)
		}
		parseVersion(version)
	})
}

// FuzzDecode decodes arbitrary code, and looks for sites in it.
func FuzzDecode(f *testing.F) {
	b, data := fuzzBase(f)
	for _, h := range callHooks {
		for _, fn := range b.lookupAll(h.fn) {
			off, _ := b.FileOffset(fn.Addr)
			f.Add(data[off:off+min(fn.End-fn.Addr, 512)], false)
		}
	}
	f.Add([]byte{0xe0, 0x03, 0x1f, 0xaa, 0xc0, 0x03, 0x5f, 0xd6}, true)
	f.Fuzz(func(t *testing.T, code []byte, arm bool) {
		if len(code) == 0 || len(code) > 1<<14 {
			return
		}
		img := &image{elfFile: &elfFile{arch: AMD64, segs: []segment{{addr: 1 << 20, filesz: uint64(len(code)), exec: true}}}, r: bytes.NewReader(code), size: int64(len(code))}
		if arm {
			img.arch = ARM64
		}
		bin := &Binary{img: img, md: new(moduledata), morestack: []uint64{1 << 20}}
		fn := &Func{Name: "f", Addr: 1 << 20, End: 1<<20 + uint64(len(code))}
		in := func(s Site, err error) {
			if err == nil && (s.Addr < fn.Addr || s.Addr >= fn.End) {
				t.Errorf("%s: outside", s)
			}
		}
		in(bin.EntrySite(fn))
		for n := -1; n < 3; n++ {
			c := Call{Indirect: true, N: n}
			in(bin.AfterCall(fn, c, AfterOptions{Stepped: true, Results: []int{0, 1}}))
			in(bin.AfterCall(fn, c, AfterOptions{Of: &Call{Indirect: true}}))
			in(bin.ErrorPath(fn, c, 0, AfterOptions{}))
			in(bin.ReturnAfter(fn, c, AfterOptions{}))
			in(bin.CallSite(fn, c))
			in(bin.BeforeReturn(fn, c, []int{0, 1}))
		}
		_, _ = bin.ReturnSites(fn)
	})
}

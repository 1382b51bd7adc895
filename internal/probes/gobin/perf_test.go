package gobin

import (
	"flag"
	"os"
	"runtime"
	"testing"
	"time"
)

var fileFlag = flag.String("gobin.file", "", "Go `executable` to open, for its times and memory")

// TestOpenFile measures Open on any executable.
func TestOpenFile(t *testing.T) {
	path := *fileFlag
	if path == "" {
		path = build(t, target{version: "local", arch: "amd64", strip: true})
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var before, during, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	b, err := Open(f, st.Size())
	took := time.Since(start)
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&during)
	runtime.GC()
	runtime.ReadMemStats(&after)
	kept := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d MB, %s: %v; %d types, %d functions, %d relocations kept; %d KB allocated, %d KB kept",
		st.Size()>>20, b.GoVersion(), took, len(b.types.all), len(b.funcs.named), len(b.img.relocs),
		(during.TotalAlloc-before.TotalAlloc)>>10, kept>>10)
	start = time.Now()
	ctx, err := b.ContextTypes()
	t.Logf("%d context types: %v (%v)", len(ctx), time.Since(start), err)
	if kept > 1<<20+st.Size()/16 {
		t.Errorf("%d KB of memory kept for a file of %d KB", kept>>10, st.Size()>>10)
	}
	runtime.KeepAlive(b)
}

func BenchmarkOpen(b *testing.B) {
	f, err := os.Open(build(b, target{version: "local", arch: "amd64", strip: true}))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(st.Size())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Open(f, st.Size()); err != nil {
			b.Fatal(err)
		}
	}
}

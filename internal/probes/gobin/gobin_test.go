package gobin

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for _, c := range []struct {
		raw                 string
		major, minor, patch int
		text                string
	}{
		{"go1.26.8", 1, 26, 8, "go1.26.8"},
		{"go1.22", 1, 22, 0, "go1.22"},
		{"go1.27rc1", 1, 27, 0, "go1.27"},
		{"go1.19.8 X:boringcrypto", 1, 19, 8, "go1.19.8"},
		{"go1.21.13-fips", 1, 21, 13, "go1.21.13"},
		{"devel go1.28-0123abcd Thu Jan 1 00:00:00 2026 +0000", 1, 28, 0, "go1.28"},
		{"go2.0", 2, 0, 0, "go2.0"},
		{"devel +0123abcd", 0, 0, 0, "unknown"},
		{"gopher", 0, 0, 0, "unknown"},
		{"go1", 0, 0, 0, "unknown"},
		{"go1.", 0, 0, 0, "unknown"},
		{"go99999999999.1", 0, 0, 0, "unknown"},
		{"", 0, 0, 0, "unknown"},
	} {
		v := parseVersion(c.raw)
		if v.Major != c.major || v.Minor != c.minor || v.Patch != c.patch || v.String() != c.text || v.Raw != c.raw {
			t.Errorf("%q: %+v (%s)", c.raw, v, v)
		}
	}
	v := parseVersion("go1.22.3")
	if !v.AtLeast(1, 22) || !v.AtLeast(1, 9) || v.AtLeast(1, 23) || v.AtLeast(2, 0) || (Version{}).AtLeast(1, 0) {
		t.Error("AtLeast is wrong")
	}
}

func TestBuildInfo(t *testing.T) {
	for _, base := range targets() {
		for _, tg := range modes(base) {
			b := open(t, tg)
			info := b.BuildInfo()
			if info == nil || info.Main.Path != "example.com/app" || info.Path != "example.com/app" {
				t.Errorf("%s: build info %v", tg, info)
				continue
			}
			if b.GoVersion().Raw != info.GoVersion || !strings.HasPrefix(info.GoVersion, "go1.") {
				t.Errorf("%s: version %q, build info says %q", tg, b.GoVersion().Raw, info.GoVersion)
			}
			settings := make(map[string]string)
			for _, s := range info.Settings {
				settings[s.Key] = s.Value
			}
			if settings["GOARCH"] != tg.arch || b.Arch().String() != tg.arch {
				t.Errorf("%s: GOARCH=%s, arch %s", tg, settings["GOARCH"], b.Arch())
			}
			if b.PIE() != tg.pie || b.Stripped() != tg.strip {
				t.Errorf("%s: PIE %t, stripped %t", tg, b.PIE(), b.Stripped())
			}
		}
	}
}

// TestContextTypes: every shape of context in the test program leads to its
// parent.
func TestContextTypes(t *testing.T) {
	for _, tg := range targets() {
		t.Run(tg.String(), func(t *testing.T) {
			b := open(t, tg)
			list, err := b.ContextTypes()
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]ContextType)
			for _, c := range list {
				got[c.Name] = c
				if addr, err := b.TypeAddr(c.Name); err != nil || addr != c.Addr {
					t.Errorf("%s: at %#x, TypeAddr says %#x, %v", c.Name, c.Addr, addr, err)
				}
			}
			ctx, err := b.Field("net/http.Request", "ctx")
			if err != nil {
				t.Fatal(err)
			}
			parent, err := b.TypeAddr("*main.embedsIface")
			if err != nil {
				t.Fatal(err)
			}
			want := []ContextType{
				{Name: "*context.cancelCtx", Kind: ContextIface},
				{Name: "*context.valueCtx", Kind: ContextIface},
				{Name: "*context.timerCtx", Kind: ContextIface},
				{Name: "*main.embedsIface", Kind: ContextIface, Offset: 8},
				{Name: "main.embedsIface", Kind: ContextIface, Offset: 8},
				{Name: "main.embedsPointer", Kind: ContextPointer, Direct: true, Parent: parent},
				{Name: "*main.embedsPointer", Kind: ContextPointer, Parent: parent},
				{Name: "*main.embedsPointer2", Kind: ContextPointer, Offset: 8, Parent: parent},
				{Name: "*main.embedsStruct", Kind: ContextIface, Offset: 24},
				{Name: "*main.embedsWider", Kind: ContextIface, Offset: 8},
				{Name: "*main.holdsField", Kind: ContextIface, Offset: 16},
				{Name: "*main.holdsRequest", Kind: ContextVia, Offset: 16, Via: ctx.Offset},
			}
			if minor(t, b) >= 21 {
				want = append(want, ContextType{Name: "*context.afterFuncCtx", Kind: ContextIface},
					ContextType{Name: "context.withoutCancelCtx", Kind: ContextIface},
					ContextType{Name: "*context.stopCtx", Kind: ContextIface})
			}
			for _, w := range want {
				g := got[w.Name]
				if w.Name == "*context.timerCtx" && g.Kind == ContextPointer {
					continue // embeds *cancelCtx in Go 1.20
				}
				if w.Addr = g.Addr; g != w {
					t.Errorf("%s: %+v, want %+v", w.Name, g, w)
				}
			}
			for _, none := range []string{"*main.notOne", "main.notOne", "*context.backgroundCtx", "*net/http.Request"} {
				if c, ok := got[none]; ok {
					t.Errorf("%s is no context with a parent: %+v", none, c)
				}
			}
		})
	}
}

func TestMapLayout(t *testing.T) {
	for _, tg := range targets() {
		b := open(t, tg)
		got, err := b.MapLayout("net/http.Header")
		want := MapLayout{Size: 336, Slots: 8, Keys: 8, KeyStride: 16, Elems: 136, ElemStride: 24, Overflow: 328}
		switch v := minor(t, b); {
		case v >= 27: // keys and values apart
			want = MapLayout{Swiss: true, Size: 328, Slots: 8, Keys: 8, KeyStride: 16, Elems: 136, ElemStride: 24}
		case v >= 24:
			want = MapLayout{Swiss: true, Size: 328, Slots: 8, Keys: 8, KeyStride: 40, Elems: 24, ElemStride: 40}
		}
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", tg, got, err, want)
		}
		if _, err := b.MapLayout("net/http.Request"); err == nil {
			t.Errorf("%s: a struct has a map layout", tg)
		}
	}
}

// TestLookups: paths, generic and ambiguous names, and what is missing.
func TestLookups(t *testing.T) {
	b := open(t, target{version: "local", arch: "amd64", strip: true})
	outer, err := b.Field("os.file", "pfd")
	if err != nil {
		t.Fatal(err)
	}
	inner, err := b.Field("internal/poll.FD", "Sysfd")
	if err != nil {
		t.Fatal(err)
	}
	nested, err := b.Field("os.file", "pfd.Sysfd")
	if want := (Field{outer.Offset + inner.Offset, 8, reflect.Int, "int"}); err != nil || nested != want {
		t.Errorf("os.file.pfd.Sysfd: %+v, %v; want %+v", nested, err, want)
	}
	if f, err := b.Field("main.embedsStruct", "embedsIface.Context"); err != nil || f.Offset != 24 || f.Type != "context.Context" {
		t.Errorf("embedded path: %+v, %v", f, err)
	}
	if f, err := b.Field("main.pair[int]", "second"); err != nil || f.Offset != 8 || f.Kind != reflect.Int {
		t.Errorf("generic struct: %+v, %v", f, err)
	}
	if list := b.FuncsWithPrefix("main.generic["); len(list) != 2 || list[0].Addr >= list[1].Addr {
		t.Errorf("%d instances of a generic function, want 2", len(list))
	}
	for _, c := range []struct{ kind, name, path, want string }{
		{"field", "net/http.Request", "Nothing", "field net/http.Request.Nothing is not in the binary"},
		{"field", "net/http.Request", "URL.Path", "field net/http.Request.URL.Path is not in the binary: in a type of kind ptr"},
		{"field", "no/such.Type", "x", "type no/such.Type is not in the binary"},
		{"field", "main.local", "a", "type main.local is not in the binary: several types have this name"},
		{"func", "no/such.function", "", "function no/such.function is not in the binary"},
	} {
		_, err := b.Field(c.name, c.path)
		if c.kind == "func" {
			_, err = b.Func(c.name)
		}
		var missing *MissingError
		if !errors.As(err, &missing) || err.Error() != c.want {
			t.Errorf("%s %s: %v, want %q", c.name, c.path, err, c.want)
		}
	}
	var in *InlinedError
	_, err = b.Func("database/sql.(*DB).maybeOpenNewConnections")
	if want := "database/sql.(*DB).conn"; !errors.As(err, &in) || !slices.Contains(in.Into, want) || in.Kept != nil {
		t.Errorf("maybeOpenNewConnections: %v, want it inlined into %s", err, want)
	}
}

// TestRelocations: a binary whose words are all zero where the loader writes
// addresses, as C linkers leave them, reads the same.
func TestRelocations(t *testing.T) {
	for _, tg := range targets() {
		tg.pie = true
		t.Run(tg.String(), func(t *testing.T) {
			want := open(t, tg)
			data, err := os.ReadFile(build(t, tg))
			if err != nil {
				t.Fatal(err)
			}
			n := zeroRelocated(t, data)
			if n < 10000 {
				t.Fatalf("only %d relocations", n)
			}
			b, err := Open(bytes.NewReader(data), int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			if len(b.img.relocs) != n || len(want.img.relocs) != 0 {
				t.Errorf("%d relocations kept of %d, and %d of the linker's own file", len(b.img.relocs), n, len(want.img.relocs))
			}
			if !reflect.DeepEqual(b.types, want.types) || !reflect.DeepEqual(b.funcs, want.funcs) {
				t.Errorf("%d types and %d functions, want %d and %d", len(b.types.all), len(b.funcs.named), len(want.types.all), len(want.funcs.named))
			}
			for _, r := range required {
				for _, f := range strings.Fields(r.fields) {
					got, err1 := b.Field(r.name, f)
					want, err2 := want.Field(r.name, f)
					if got != want || (err1 == nil) != (err2 == nil) {
						t.Errorf("%s.%s: %+v, %v; want %+v, %v", r.name, f, got, err1, want, err2)
					}
				}
			}
		})
	}
}

// zeroRelocated clears the words that relative relocations set, and returns
// how many they are.
func zeroRelocated(t *testing.T, data []byte) int {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img := image{elfFile: new(elfFile)}
	if img.elfFile, err = readELF(bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
	var rela []byte
	for _, s := range f.Sections {
		if s.Type == elf.SHT_RELA {
			part, err := s.Data()
			if err != nil {
				t.Fatal(err)
			}
			rela = append(rela, part...)
		}
	}
	n := 0
	for ; len(rela) >= 24; rela = rela[24:] {
		r, ok := img.relative(rela)
		if !ok {
			continue
		}
		off, ok := img.fileOffset(r.off)
		if ok && r.value != 0 {
			binary.LittleEndian.PutUint64(data[off:], 0)
			n++
		}
	}
	return n
}

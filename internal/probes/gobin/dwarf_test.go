package gobin

import (
	"debug/dwarf"
	"debug/elf"
	"reflect"
	"strings"
	"testing"
)

// dwarfStruct is a struct as DWARF tells it.
type dwarfStruct struct {
	size   int64
	fields []dwarfField
}

type dwarfField struct {
	name         string
	offset, size int64
	kind         reflect.Kind // Invalid if DWARF does not tell
}

type dwarfInfo struct {
	structs map[string]dwarfStruct
	inlined map[string]bool   // names of functions that were inlined somewhere
	types   map[string]uint64 // addresses of descriptors
}

const (
	attrGoKind        dwarf.Attr = 0x2900
	attrGoRuntimeType dwarf.Attr = 0x2904
)

func readDWARF(t testing.TB, path string) *dwarfInfo {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := f.DWARF()
	if err != nil {
		t.Fatal(err)
	}
	c := dwarfCollector{
		d: d, info: &dwarfInfo{make(map[string]dwarfStruct), make(map[string]bool), make(map[string]uint64)},
		names: make(map[dwarf.Offset]string), origins: make(map[dwarf.Offset]bool),
	}
	r := d.Reader()
	for {
		e, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if e == nil {
			break
		}
		if err := c.add(e); err != nil {
			t.Fatal(err)
		}
	}
	for o := range c.origins {
		c.info.inlined[c.names[o]] = true
	}
	return c.info
}

type dwarfCollector struct {
	d       *dwarf.Data
	info    *dwarfInfo
	names   map[dwarf.Offset]string // of functions
	origins map[dwarf.Offset]bool   // of inlined calls
}

func (c *dwarfCollector) add(e *dwarf.Entry) error {
	name, _ := e.Val(dwarf.AttrName).(string)
	if a, ok := e.Val(attrGoRuntimeType).(uint64); ok && a != 0 {
		c.info.types[name] = a
	}
	switch e.Tag {
	case dwarf.TagStructType:
		kind, _ := e.Val(attrGoKind).(int64)
		typ, err := c.d.Type(e.Offset)
		if err != nil {
			return err
		}
		s, ok := typ.(*dwarf.StructType)
		if !ok || reflect.Kind(kind&kindMask) != reflect.Struct {
			break
		}
		out := dwarfStruct{size: s.ByteSize}
		for _, f := range s.Field {
			out.fields = append(out.fields, dwarfField{f.Name, f.ByteOffset, f.Type.Size(), dwarfKind(f.Type)})
		}
		c.info.structs[name] = out
	case dwarf.TagSubprogram:
		c.names[e.Offset] = name
	case dwarf.TagInlinedSubroutine:
		if o, ok := e.Val(dwarf.AttrAbstractOrigin).(dwarf.Offset); ok {
			c.origins[o] = true
		}
	}
	return nil
}

// dwarfKind tells the kinds that have a DWARF type of their own.
func dwarfKind(t dwarf.Type) reflect.Kind {
	switch t := t.(type) {
	case *dwarf.TypedefType:
		return dwarfKind(t.Type)
	case *dwarf.PtrType:
		return reflect.Pointer
	case *dwarf.ArrayType:
		return reflect.Array
	case *dwarf.BoolType:
		return reflect.Bool
	}
	return reflect.Invalid
}

// required are the structs and fields that probes read, by the release from
// which on they exist and, if they are gone, the first without them.
var required = []struct {
	name, fields string
	from, until  int // minor releases
}{
	{"net/http.Request", "Method URL Header Body Host RemoteAddr RequestURI TLS ctx ProtoMajor ProtoMinor", 0, 0},
	{"net/http.Request", "Pattern", 23, 0},
	{"net/http.Request", "pat", 22, 0},
	{"net/http.response", "conn req status written wroteHeader", 0, 0},
	{"net/http.conn", "server rwc remoteAddr tlsState", 0, 0},
	{"net/http.Server", "Addr Handler", 0, 0},
	{"net/http.ServeMux", "mu", 0, 0},
	{"net/http.pattern", "str method host", 22, 0},
	{"net/url.URL", "Scheme Host Path RawPath RawQuery", 0, 0},
	{"crypto/tls.ConnectionState", "Version", 0, 0},
	{"runtime.g", "m goid stack", 0, 0},
	{"runtime.m", "curg g0", 0, 0},
	{"runtime.hmap", "count B buckets oldbuckets", 0, 24},
	{"internal/runtime/maps.Map", "used dirPtr dirLen", 24, 0},
	{"internal/runtime/maps.table", "groups", 24, 0},
	{"internal/runtime/maps.groupsReference", "data lengthMask", 24, 0},
	{"database/sql.DB", "connector", 0, 0},
	{"database/sql.Stmt", "db query", 0, 0},
	{"database/sql.Tx", "db dc ctx", 0, 0},
	{"database/sql.Conn", "db dc", 0, 0},
	{"database/sql.driverConn", "db ci", 0, 0},
	{"database/sql.Rows", "dc rowsi", 0, 0},
	{"database/sql.dsnConnector", "dsn driver", 0, 0},
	{"context.cancelCtx", "Context", 0, 0},
	{"context.timerCtx", "cancelCtx", 0, 0},
	{"context.valueCtx", "Context key val", 0, 0},
	{"context.withoutCancelCtx", "c", 21, 0},
	{"context.afterFuncCtx", "cancelCtx", 21, 0},
	{"context.stopCtx", "Context", 21, 0},
	{"os.File", "file", 0, 0},
	{"os.file", "pfd", 0, 0},
	{"internal/poll.FD", "Sysfd", 0, 0},
	{"net.TCPConn", "conn", 0, 0},
	{"net.netFD", "pfd laddr raddr", 0, 0},
	{"net.TCPAddr", "IP Port Zone", 0, 0},
}

// minor returns the minor release of a target.
func minor(t testing.TB, b *Binary) int {
	if v := b.GoVersion(); v.Known() {
		return v.Minor
	}
	t.Fatalf("Go version %q not understood", b.GoVersion().Raw)
	return 0
}

// TestFieldsMatchDWARF compares every field of every named struct that has
// both a descriptor and DWARF, and the addresses of descriptors.
func TestFieldsMatchDWARF(t *testing.T) {
	for _, base := range targets() {
		for _, tg := range modes(base) {
			t.Run(tg.String(), func(t *testing.T) {
				compareFields(t, tg)
			})
		}
	}
}

// compareFields compares a build with the DWARF of its twin.
func compareFields(t *testing.T, tg target) {
	t.Helper()
	twin := tg
	twin.strip = false
	b := open(t, tg)
	d := readDWARF(t, build(t, twin))
	structs, fields := 0, 0
	for name, want := range d.structs {
		size, err := b.StructSize(name)
		if err != nil {
			continue // not all have a descriptor; see required
		}
		structs++
		if int64(size) != want.size {
			t.Errorf("%s: size %d, DWARF says %d", name, size, want.size)
		}
		for _, f := range want.fields {
			fields++
			compareField(t, b, name, f)
		}
	}
	if structs < 400 || fields < 1500 {
		t.Errorf("only %d structs and %d fields compared", structs, fields)
	}
	checkRequired(t, b, d)
	t.Logf("%d structs, %d fields", structs, fields)
}

func compareField(t *testing.T, b *Binary, name string, want dwarfField) {
	t.Helper()
	got, err := b.Field(name, want.name)
	if want.name == "_" {
		return // there may be several
	}
	if err != nil {
		t.Errorf("%s.%s: %v", name, want.name, err)
		return
	}
	if int64(got.Offset) != want.offset || int64(got.Size) != want.size {
		t.Errorf("%s.%s: at %d, %d bytes; DWARF says %d, %d bytes", name, want.name, got.Offset, got.Size, want.offset, want.size)
	}
	if k := want.kind; k != reflect.Invalid && k != got.Kind &&
		!(k == reflect.Pointer && (got.Kind == reflect.Map || got.Kind == reflect.Chan || got.Kind == reflect.Func || got.Kind == reflect.UnsafePointer)) {
		t.Errorf("%s.%s: kind %s, DWARF says %s", name, want.name, got.Kind, k)
	}
}

func checkRequired(t *testing.T, b *Binary, d *dwarfInfo) {
	t.Helper()
	v := minor(t, b)
	for _, r := range required {
		want := v >= r.from && (r.until == 0 || v < r.until)
		for _, f := range strings.Fields(r.fields) {
			_, err := b.Field(r.name, f)
			if want && err != nil {
				t.Errorf("required: %v", err)
			}
			if !want && err == nil {
				t.Errorf("%s.%s: found, though Go 1.%d has none", r.name, f, v)
			}
			if _, ok := d.structs[r.name]; want && !ok {
				t.Errorf("%s: not in DWARF, so not compared", r.name)
			}
		}
	}
}

// TestTypeAddrMatchesDWARF compares the addresses of type descriptors with
// those that the compiler put into DWARF.
func TestTypeAddrMatchesDWARF(t *testing.T) {
	for _, base := range targets() {
		for _, pie := range []bool{false, true} {
			tg := base
			tg.pie = pie
			t.Run(tg.String(), func(t *testing.T) {
				b := open(t, tg)
				d := readDWARF(t, build(t, tg))
				n := 0
				for name, want := range d.types {
					got, err := b.TypeAddr(name)
					if err != nil {
						continue
					}
					// Some releases write it as an offset from the type section.
					if n++; got != want && got != want+b.md.types {
						t.Errorf("%s: %#x, DWARF says %#x", name, got, want)
					}
				}
				if n < 500 {
					t.Errorf("only %d types compared", n)
				}
				for _, name := range []string{"*net/http.response", "net/http.Header", "*context.valueCtx", "error", "*main.embedsStruct"} {
					if _, ok := d.types[name]; !ok {
						t.Errorf("%s is not in DWARF", name)
					}
					if _, err := b.TypeAddr(name); err != nil {
						t.Error(err)
					}
				}
				t.Logf("%d types", n)
			})
		}
	}
}

// TestInlinedMatchesDWARF compares the names in inline trees with the
// inlined calls of DWARF.
func TestInlinedMatchesDWARF(t *testing.T) {
	for _, tg := range targets() {
		t.Run(tg.String(), func(t *testing.T) {
			b := open(t, tg)
			d := readDWARF(t, build(t, tg))
			if len(d.inlined) < 500 {
				t.Fatalf("only %d inlined functions in DWARF", len(d.inlined))
			}
			for name := range d.inlined {
				if i := strings.IndexByte(name, '['); i >= 0 && minor(t, b) == 20 {
					// This release's function table spells type arguments so.
					name = name[:i] + "[...]" + name[strings.LastIndexByte(name, ']')+1:]
				}
				if len(findRefs(b.funcs.inlined.names, hashName(name))) == 0 {
					t.Errorf("%s is not in an inline tree, DWARF says inlined", name)
				}
			}
			// Four names of assembly and the like may come on top.
			if n := len(b.funcs.inlined.names); n > len(d.inlined)+4 {
				t.Errorf("%d functions in inline trees, DWARF says %d", n, len(d.inlined))
			}
		})
	}
}

package gobin

import (
	"reflect"
	"strings"
	"testing"

	"github.com/plainframework/agent/internal/probes/gobin/gobintest"
)

// layouts is a binary as gobintest compares it.
type layouts struct{ *Binary }

func (l layouts) FieldAt(structName, path string) (offset, size uint64, kind reflect.Kind, err error) {
	f, err := l.Field(structName, path)
	return f.Offset, f.Size, f.Kind, err
}

func readDWARF(t testing.TB, path string) *gobintest.DWARF {
	t.Helper()
	d, err := gobintest.ReadDWARF(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
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
	c := d.Compare(layouts{b})
	for _, w := range c.Wrong {
		t.Error(w)
	}
	if c.Structs < 400 || c.Fields < 1500 {
		t.Errorf("only %d structs and %d fields compared", c.Structs, c.Fields)
	}
	checkRequired(t, b, d)
	t.Logf("%d structs, %d fields", c.Structs, c.Fields)
}

func checkRequired(t *testing.T, b *Binary, d *gobintest.DWARF) {
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
			if _, ok := d.Structs[r.name]; want && !ok {
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
				for name, want := range d.Types {
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
					if _, ok := d.Types[name]; !ok {
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
			if len(d.Inlined) < 500 {
				t.Fatalf("only %d inlined functions in DWARF", len(d.Inlined))
			}
			for name := range d.Inlined {
				if i := strings.IndexByte(name, '['); i >= 0 && minor(t, b) == 20 {
					// This release's function table spells type arguments so.
					name = name[:i] + "[...]" + name[strings.LastIndexByte(name, ']')+1:]
				}
				if len(findRefs(b.funcs.inlined.names, hashName(name))) == 0 {
					t.Errorf("%s is not in an inline tree, DWARF says inlined", name)
				}
			}
			// Four names of assembly and the like may come on top.
			if n := len(b.funcs.inlined.names); n > len(d.Inlined)+4 {
				t.Errorf("%d functions in inline trees, DWARF says %d", n, len(d.Inlined))
			}
		})
	}
}

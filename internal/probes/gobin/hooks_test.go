package gobin

import (
	"debug/elf"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// entryHooks are the functions whose entries probes attach to, by the minor
// release from which on they exist and the first without them (0: none).
var entryHooks = []struct {
	name        string
	from, until int
}{
	{"net/http.serverHandler.ServeHTTP", 0, 0},
	{"net/http.(*response).finishRequest", 0, 0},
	{"net/http.(*conn).serve.func1", 0, 0},
	{"net/http.(*ServeMux).ServeHTTP", 0, 0},
	{"net/http.(*Transport).roundTrip", 0, 0},
	{"net/http.(*persistConn).roundTrip", 0, 0},
	{"database/sql.(*DB).QueryContext", 0, 0},
	{"database/sql.(*DB).ExecContext", 0, 0},
	{"database/sql.(*Conn).QueryContext", 0, 0},
	{"database/sql.(*Conn).ExecContext", 0, 0},
	{"database/sql.(*Tx).QueryContext", 0, 0},
	{"database/sql.(*Tx).ExecContext", 0, 0},
	{"database/sql.(*Stmt).QueryContext", 0, 0},
	{"database/sql.(*Stmt).ExecContext", 0, 0},
	{"database/sql.(*DB).retry", 20, 0},
	{"database/sql.(*DB).query", 0, 0},
	{"database/sql.(*DB).exec", 0, 0},
	{"database/sql.(*DB).queryDC", 0, 0},
	{"database/sql.(*DB).execDC", 0, 0},
	{"database/sql.(*DB).conn", 0, 0},
	{"database/sql.(*Rows).initContextClose", 0, 0},
	{"database/sql.(*driverConn).releaseConn-fm", 0, 0},
	{"database/sql.(*Tx).closemuRUnlockRelease-fm", 0, 0},
	{"database/sql.(*Conn).closemuRUnlockCondReleaseConn-fm", 0, 0},
	{"runtime.gopanic", 0, 0},
	{"os.(*File).Write", 0, 0},
}

// TestEntrySites: every entry hook has an emulated site at the instruction
// that the rule of its release and architecture names.
func TestEntrySites(t *testing.T) {
	for _, base := range targets() {
		for _, tg := range []target{base, {version: base.version, arch: base.arch, strip: true, pie: true}} {
			t.Run(tg.String(), func(t *testing.T) {
				b := open(t, tg)
				v := minor(t, b)
				for _, h := range entryHooks {
					fn, err := b.Func(h.name)
					if want := v >= h.from && (h.until == 0 || v < h.until); !want {
						var missing *MissingError
						if !errors.As(err, &missing) {
							t.Errorf("%s: %v, want it missing in Go 1.%d", h.name, err, v)
						}
						continue
					}
					if err != nil {
						t.Error(err)
						continue
					}
					s, err := b.EntrySite(fn)
					if err != nil {
						t.Error(err)
						continue
					}
					if *tableFlag {
						t.Log(s)
					}
					checkEntry(t, b, fn, s, v)
				}
			})
		}
	}
}

func checkEntry(t *testing.T, b *Binary, fn *Func, s Site, minor int) {
	t.Helper()
	instr, check, cond := "JBE ", true, CondBE
	if b.Arch() == ARM64 {
		instr, cond = "BLS ", CondLS
	}
	if !strings.HasPrefix(s.Instr, instr) || s.StackCheck != check || s.Cond != cond || !s.Emulated {
		t.Errorf("%s; want an emulated %q, stack check %t", s, instr, check)
	}
	if s.Addr <= fn.Addr || s.Addr > fn.Addr+32 {
		t.Errorf("%s: not in the prologue of a function at %#x", s, fn.Addr)
	}
	if off, ok := b.FileOffset(s.Addr); !ok || off != s.Offset {
		t.Errorf("%s: file offset %#x, want %#x", s, s.Offset, off)
	}
}

// callHooks are the sites inside functions. The results are indices of
// result registers.
var callHooks = []struct {
	name        string
	from, until int
	fn          string
	site        func(*Binary, *Func) (Site, error)
	results     []int
	emulated    bool // amd64
}{
	{"retry: after a try", 20, 0, "database/sql.(*DB).retry", after(Call{Indirect: true}, 0, 1), []int{0, 1}, true},
	{"retry: after errors.Is", 20, 0, "database/sql.(*DB).retry", func(b *Binary, fn *Func) (Site, error) {
		return b.AfterCall(fn, Call{Callee: "errors.Is"}, AfterOptions{Results: []int{0, 1}, Of: &Call{Indirect: true}})
	}, []int{0, 1}, true},
	{"retry: last try", 20, 0, "database/sql.(*DB).retry", returnAfter(Call{Indirect: true, N: -1}, 0, 1), []int{0, 1}, false},
	{"query: after a try", 0, 20, "database/sql.(*DB).QueryContext", func(b *Binary, fn *Func) (Site, error) {
		return b.AfterCall(fn, Call{Callee: "errors.Is"}, AfterOptions{Results: []int{1, 2}, Of: &Call{Callee: "database/sql.(*DB).query"}})
	}, []int{1, 2}, true},
	{"query: last try", 0, 20, "database/sql.(*DB).QueryContext", returnAfter(Call{Callee: "database/sql.(*DB).query", N: -1}, 1, 2), []int{1, 2}, false},
	{"exec: after a try", 0, 20, "database/sql.(*DB).ExecContext", func(b *Binary, fn *Func) (Site, error) {
		return b.AfterCall(fn, Call{Callee: "errors.Is"}, AfterOptions{Results: []int{2, 3}, Of: &Call{Callee: "database/sql.(*DB).exec"}})
	}, []int{2, 3}, true},
	{"exec: last try", 0, 20, "database/sql.(*DB).ExecContext", returnAfter(Call{Callee: "database/sql.(*DB).exec", N: -1}, 2, 3), []int{2, 3}, false},
	{"DB.query: no connection", 0, 0, "database/sql.(*DB).query", errorPath("database/sql.(*DB).conn", 1), []int{1, 2}, false},
	{"DB.query: after conn", 0, 0, "database/sql.(*DB).query", after(Call{Callee: "database/sql.(*DB).conn"}, 1, 2), []int{1, 2}, true},
	{"DB.exec: no connection", 0, 0, "database/sql.(*DB).exec", errorPath("database/sql.(*DB).conn", 1), []int{1, 2}, false},
	{"DB.exec: after conn", 0, 0, "database/sql.(*DB).exec", after(Call{Callee: "database/sql.(*DB).conn"}, 1, 2), []int{1, 2}, true},
	{"Tx.Query: no connection", 0, 0, "database/sql.(*Tx).QueryContext", errorPath("database/sql.(*Tx).grabConn", 2), []int{2, 3}, false},
	{"Tx.Exec: no connection", 0, 0, "database/sql.(*Tx).ExecContext", errorPath("database/sql.(*Tx).grabConn", 2), []int{2, 3}, false},
	{"Conn.Query: no connection", 0, 0, "database/sql.(*Conn).QueryContext", errorPath("database/sql.(*Conn).grabConn", 2), []int{2, 3}, false},
	{"Conn.Exec: no connection", 0, 0, "database/sql.(*Conn).ExecContext", errorPath("database/sql.(*Conn).grabConn", 2), []int{2, 3}, false},
	{"Stmt.Query: no connection", 0, 20, "database/sql.(*Stmt).QueryContext", errorPath("database/sql.(*Stmt).connStmt", 3), []int{3, 4}, false},
	{"Stmt.Exec: no connection", 0, 20, "database/sql.(*Stmt).ExecContext", errorPath("database/sql.(*Stmt).connStmt", 3), []int{3, 4}, false},
	{"roundTrip: a response", 0, 0, roundTrip, func(b *Binary, fn *Func) (Site, error) {
		return b.AfterCall(fn, Call{Callee: "net/http.(*persistConn).roundTrip"}, AfterOptions{Results: []int{0, 1, 2}, InRegs: true, Joined: true})
	}, []int{0, 1, 2}, true},
	{"roundTrip: of another protocol", 0, 0, roundTrip, func(b *Binary, fn *Func) (Site, error) {
		return b.AfterCall(fn, Call{Indirect: true}, AfterOptions{Results: []int{0, 1, 2}, InRegs: true, After: &Call{Callee: "net/http.(*Transport).alternateRoundTripper"}})
	}, []int{0, 1, 2}, true},
	{"ServeMux: pattern", 22, 0, "net/http.(*ServeMux).ServeHTTP", after(Call{Callee: "net/http.(*ServeMux).findHandler"}, 2, 3), []int{2, 3}, true},
	{"ServeMux: pattern, as before 1.22", 22, 0, "net/http.(*serveMux121).handler", beforeReturn, []int{2, 3}, true},
	{"ServeMux: pattern (old)", 0, 22, "net/http.(*ServeMux).handler", beforeReturn, []int{2, 3}, true},
}

func beforeReturn(b *Binary, fn *Func) (Site, error) {
	return b.BeforeReturn(fn, Call{Indirect: true, N: -1}, []int{2, 3})
}

const roundTrip = "net/http.(*Transport).roundTrip"

func after(c Call, results ...int) func(*Binary, *Func) (Site, error) {
	return func(b *Binary, fn *Func) (Site, error) {
		return b.AfterCall(fn, c, AfterOptions{Results: results, InRegs: true})
	}
}

func returnAfter(c Call, results ...int) func(*Binary, *Func) (Site, error) {
	return func(b *Binary, fn *Func) (Site, error) {
		return b.ReturnAfter(fn, c, AfterOptions{Results: results, InRegs: true})
	}
}

func errorPath(callee string, errAt int) func(*Binary, *Func) (Site, error) {
	return func(b *Binary, fn *Func) (Site, error) {
		return b.ErrorPath(fn, Call{Callee: callee}, errAt, AfterOptions{Results: []int{errAt, errAt + 1}})
	}
}

func TestCallSites(t *testing.T) {
	for _, base := range targets() {
		for _, tg := range []target{base, {version: base.version, arch: base.arch, strip: true, pie: true}} {
			t.Run(tg.String(), func(t *testing.T) {
				b := open(t, tg)
				v := minor(t, b)
				for _, h := range callHooks {
					if v < h.from || h.until != 0 && v >= h.until {
						continue
					}
					fn := b.lookupAll(h.fn)
					if len(fn) != 1 {
						t.Errorf("%s: %d functions %s", h.name, len(fn), h.fn)
						continue
					}
					s, err := h.site(b, fn[0])
					if err != nil {
						t.Errorf("%s: %v", h.name, err)
						continue
					}
					if *tableFlag {
						t.Logf("%s: %s%s", h.name, s, places(b, s, h.results))
					}
					if b.Arch() == AMD64 && s.Emulated != h.emulated {
						t.Errorf("%s: %s, want emulated %t", h.name, s, h.emulated)
					}
					for _, r := range h.results {
						if l := s.Where[r]; !l.InReg && !l.InStack {
							t.Errorf("%s: result %d is lost at %s", h.name, r, s)
						}
					}
				}
			})
		}
	}
}

// places describes where results are.
func places(b *Binary, s Site, results []int) string {
	var out strings.Builder
	for _, r := range results {
		l := s.Where[r]
		out.WriteString(" ")
		if l.InReg {
			out.WriteString(b.Arch().RegName(l.Reg))
		}
		if l.InStack {
			out.WriteString("/SP+" + strconv.FormatInt(l.Offset, 10))
		}
	}
	return out.String()
}

// openSymbols opens a binary until the test ends, and reads its symbol table.
func openSymbols(t *testing.T, tg target) (*elf.File, []elf.Symbol) {
	t.Helper()
	f, err := elf.Open(build(t, tg))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	syms, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	return f, syms
}

// TestConstants compares where constant strings are with the symbol table.
func TestConstants(t *testing.T) {
	for _, base := range targets() {
		for _, pie := range []bool{false, true} {
			tg := base
			tg.pie = pie
			t.Run(tg.String(), func(t *testing.T) {
				addr, size := open(t, tg).Constants()
				f, syms := openSymbols(t, tg)
				i := slices.IndexFunc(syms, func(s elf.Symbol) bool {
					return s.Name == "go:string.*" || s.Name == "go.string.*"
				})
				if i < 0 {
					t.Fatal("no symbol says where strings begin")
				}
				if at := syms[i].Value; at < addr || at-addr >= size {
					t.Errorf("strings begin at %#x, which is not in the %#x bytes at %#x", at, size, addr)
				}
				for _, p := range f.Progs {
					if p.Type == elf.PT_LOAD && p.Flags&elf.PF_W != 0 && p.Vaddr < addr+size && addr < p.Vaddr+p.Memsz {
						t.Errorf("%#x bytes at %#x are not constant", size, addr)
					}
				}
			})
		}
	}
}

// TestFuncsMatchSymbols compares names and addresses of functions with the
// symbol table.
func TestFuncsMatchSymbols(t *testing.T) {
	for _, base := range targets() {
		for _, pie := range []bool{false, true} {
			tg := base
			tg.pie = pie
			t.Run(tg.String(), func(t *testing.T) {
				b := open(t, tg)
				_, syms := openSymbols(t, tg)
				n := 0
				abi0 := make(map[string]bool) // assembly, with a wrapper of the same name
				for _, s := range syms {
					if name, ok := strings.CutSuffix(s.Name, ".abi0"); ok {
						abi0[name] = true
					}
				}
				for _, s := range syms {
					if abi0[s.Name] || elf.ST_TYPE(s.Info) != elf.STT_FUNC || s.Size == 0 {
						continue
					}
					found := b.lookupAll(s.Name)
					if len(found) != 1 {
						continue // wrappers; generic instances share a name
					}
					n++
					if fn := found[0]; fn.Addr != s.Value || fn.End < s.Value+s.Size || fn.End > s.Value+s.Size+64 {
						t.Errorf("%s: %#x to %#x, the symbol table says %#x and %d bytes", s.Name, fn.Addr, fn.End, s.Value, s.Size)
					}
				}
				if n < 4000 {
					t.Errorf("only %d functions compared", n)
				}
				t.Logf("%d functions", n)
			})
		}
	}
}

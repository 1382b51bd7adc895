package main

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/plainframework/agent/internal/probes"
	"github.com/plainframework/agent/internal/probes/gobin"
	"github.com/plainframework/agent/internal/probes/gobin/gobintest"
)

// group is a set of hooks that a program must have.
type group struct {
	library, name string
	from, until   int // minor releases; 0: none
}

func (g group) in(minor int) bool { return minor >= g.from && (g.until == 0 || minor < g.until) }

func (g group) String() string { return strings.TrimSpace(g.library + " " + g.name) }

// stdGroups are those of testdata/std.
var stdGroups = []group{
	{library: "net/http", name: "server"},
	{library: "net/http/client", name: "client"},
	{library: "net/http/propagation", name: "HTTP/1.1"},
	{library: "net/http/propagation", name: "buffer of HTTP/1.1"},
	{library: "net/http/propagation", name: "HTTP/2"},
	{library: "database/sql", name: "DB"},
	{library: "database/sql", name: "Stmt"},
	{library: "database/sql", name: "Tx"},
	{library: "database/sql", name: "Conn"},
	{library: "runtime", name: "goroutines", until: 21},
}

// site is a probe site, where it can be compared between two builds.
type site struct {
	program, function, instruction, address string
	emulated                                bool
}

// twin is the unstripped build that a stripped one is compared with.
type twin struct {
	dwarf *gobintest.DWARF
	sites []site
}

// examine builds and checks one cell.
func (w *workshop) examine(ctx context.Context, b build) (r result) {
	r.build = b
	path, err := w.stdProgram(ctx, b)
	if err == nil {
		defer os.Remove(path)
		err = w.check(ctx, &r, path)
	}
	if err != nil {
		r.problem("%v", err)
	}
	return r
}

func (r *result) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// check is what must be true of the binary at path.
func (w *workshop) check(ctx context.Context, r *result, path string) error {
	x, err := examineFile(path)
	if err != nil {
		return err
	}
	defer x.Close()
	r.checkGroups(x.Examination, stdGroups)
	if !r.kind.stripped {
		d, err := gobintest.ReadDWARF(path)
		if err != nil {
			return err
		}
		w.twin = &twin{d, r.sites}
		if err := r.checkSymbols(path); err != nil {
			return err
		}
	}
	if r.kind.name == kinds[0].name {
		w.usual = r.sites
	}
	r.checkMoves(w.usual)
	if w.twin == nil {
		return fmt.Errorf("no unstripped build to compare with; build the kind before %s, too", r.kind.name)
	}
	if r.kind.stripped && !slices.Equal(r.sites, w.twin.sites) {
		r.problem("other sites than in the build that is not stripped")
	}
	r.checkLayouts(x.Examination, w.twin.dwarf)
	if w.run && r.runsHere() && len(r.problems) == 0 {
		w.checkSpans(ctx, r, x.Examination, path)
	}
	return nil
}

// examination is of a file that is still open: gobin reads as it is asked.
type examination struct {
	*probes.Examination
	*os.File
}

func examineFile(path string) (examination, error) {
	f, err := os.Open(path)
	if err != nil {
		return examination{}, err
	}
	stat, err := f.Stat()
	if err == nil {
		var x *probes.Examination
		if x, err = probes.Examine(f, stat.Size(), true); err == nil {
			return examination{x, f}, nil
		}
	}
	f.Close()
	return examination{}, fmt.Errorf("examine: %w", err)
}

// checkGroups: every group is there with every hook, or a reason that is fine.
func (r *result) checkGroups(x *probes.Examination, groups []group) {
	found := map[string]bool{}
	for _, g := range x.Groups {
		name := strings.TrimSpace(g.Library + " " + g.Group)
		found[name] = g.State == "attached"
		if g.State != "attached" && g.Reason != "" {
			r.absent(name, g.Reason)
		}
		for _, h := range g.Hooks {
			if h.Reason != "" {
				r.absent(name+" "+h.Program, h.Reason)
				continue
			}
			r.sites = append(r.sites, site{h.Program, h.Function, h.Instruction, h.Address, h.Emulated})
		}
	}
	for _, p := range x.Pruned {
		r.absent(p.Library+" "+p.Group+" "+p.Program, p.Reason)
	}
	for _, g := range groups {
		if _, ok := found[g.String()]; g.in(r.minor()) != ok {
			r.problem("group %s: there %t, want %t", g, ok, !ok)
		}
	}
}

// absent notes a hook that has no site; where nothing explains it, it is a problem.
func (r *result) absent(what, reason string) {
	if nothingToProbe(reason) {
		return
	}
	if r.kind.moves {
		r.absences = append(r.absences, absence{what, reason})
		return
	}
	r.problem("%s: %s", what, reason)
}

// nothingToProbe tells that a hook is for what only some programs do: writing to standard
// error past package os.
func nothingToProbe(reason string) bool {
	return strings.HasPrefix(reason, "call syscall.Write is not")
}

// checkMoves notes hooks that are in another function than in a plain build.
func (r *result) checkMoves(usual []site) {
	if !r.kind.moves {
		return
	}
	type place struct{ program, function string }
	known := map[place]bool{}
	for _, s := range usual {
		known[place{s.program, s.function}] = true
	}
	for _, s := range r.sites {
		if !known[place{s.program, s.function}] {
			r.absences = append(r.absences, absence{s.program, "at " + s.function + " instead"})
		}
	}
}

// checkSymbols: each site is inside the function that the symbol table has there.
func (r *result) checkSymbols(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		return fmt.Errorf("read symbols: %w", err)
	}
	for _, s := range r.sites {
		addr, err := strconv.ParseUint(s.address, 0, 64)
		if err != nil {
			return err
		}
		inside := slices.ContainsFunc(symbols, func(sym elf.Symbol) bool {
			return sym.Name == s.function && addr >= sym.Value && addr < sym.Value+sym.Size
		})
		if !inside {
			r.problem("%s: %s is not in the function %s of the symbol table", s.program, s.address, s.function)
		}
	}
	return nil
}

// layouts is a binary as gobintest compares it.
type layouts struct{ *gobin.Binary }

func (l layouts) FieldAt(structName, path string) (offset, size uint64, kind reflect.Kind, err error) {
	f, err := l.Field(structName, path)
	return f.Offset, f.Size, f.Kind, err
}

// checkLayouts compares all structs with DWARF, and makes sure that those which the
// probes read were among them.
func (r *result) checkLayouts(x *probes.Examination, d *gobintest.DWARF) {
	c := d.Compare(layouts{x.Binary})
	r.structs, r.fields = c.Structs, c.Fields
	r.problems = append(r.problems, c.Wrong[:min(len(c.Wrong), 10)]...)
	if len(x.Fields) < 10 {
		r.problem("only %d fields are used by the probes", len(x.Fields))
	}
	for _, u := range x.Fields {
		if offset, size, ok := d.Field(u.Struct, u.Path); !ok || offset != u.Offset || size != u.Size {
			r.problem("%s.%s: at %d, %d bytes; DWARF says %d, %d bytes (known %t)", u.Struct, u.Path, u.Offset, u.Size, offset, size, ok)
		}
	}
}

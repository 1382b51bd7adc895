package gobin

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Func is a function's code.
type Func struct {
	Name      string
	Addr, End uint64 // before relocation; End is the next function's entry, padding included
}

// funcIndex tells where functions are, by the hash of their name, and where
// they were inlined: some 20 bytes a function.
type funcIndex struct {
	named   []hashRef // ref is the index in ftab; wrappers left out
	inlined inlineIndex
	tree    inlineTable
}

// maxFuncName bounds a function's name. Closures in generic methods reach
// some thousand bytes.
const maxFuncName = 1 << 13

// funcRec is the part of runtime._func that is used.
type funcRec struct {
	entry   uint32 // offset from text
	nameOff uint32
	funcID  uint8
	inlPC   uint32 // offset in pctab of the PCDATA_InlTreeIndex table, 0 if none
	inlTree uint32 // offset from gofunc of the FUNCDATA_InlTree, noTree if none
}

const (
	noTree      = ^uint32(0)
	funcSize    = 44 // sizeof(_func) from Go 1.20 on: startLine was added
	funcSizeOld = 40
)

// ftabAt returns entry i of the function table.
func (b *Binary) ftabAt(v *view, i uint64) (entry, off uint32, ok bool) {
	w, ok := v.u64(b.md.ftab.addr + 8*i)
	return uint32(w), uint32(w >> 32), ok
}

// funcAt decodes the _func at an offset of pclntable.
func (b *Binary) funcAt(v *view, off uint32) (f funcRec, ok bool) {
	var buf [funcSize + 4*32]byte
	size := uint64(b.funcSize)
	if uint64(off)+size > b.md.pclntable.len {
		return f, false
	}
	n := min(uint64(len(buf)), b.md.pclntable.len-uint64(off))
	if !v.read(b.md.pclntable.addr+uint64(off), buf[:n]) {
		return f, false
	}
	le := binary.LittleEndian
	f = funcRec{
		entry: le.Uint32(buf[0:]), nameOff: le.Uint32(buf[4:]),
		funcID: buf[size-4], inlTree: noTree,
	}
	npcdata, nfuncdata := uint64(le.Uint32(buf[28:])), uint64(buf[size-1])
	const pcdataInlTreeIndex, funcdataInlTree = 2, 3
	if npcdata > 16 || nfuncdata > 16 || size+4*(npcdata+nfuncdata) > n {
		return f, false
	}
	if npcdata > pcdataInlTreeIndex {
		f.inlPC = le.Uint32(buf[size+4*pcdataInlTreeIndex:])
	}
	if nfuncdata > funcdataInlTree {
		f.inlTree = le.Uint32(buf[size+4*(npcdata+funcdataInlTree):])
	}
	return f, true
}

// funcName reads a name of funcnametab.
func (b *Binary) funcName(v *view, off uint32) (string, bool) {
	if uint64(off) >= b.md.funcnametab.len {
		return "", false
	}
	limit := min(maxFuncName, b.md.funcnametab.len-uint64(off))
	return v.cstring(b.md.funcnametab.addr+uint64(off), int(limit))
}

// calibrateFuncs finds the size of _func, and the ID of wrappers: the highest
// in use. (It moved three times, and every program has wrappers.)
func (b *Binary) calibrateFuncs(v *view) error {
	const sample = 512
	best, bestSize := 0, 0
	for _, size := range []int{funcSize, funcSizeOld} {
		b.funcSize = size
		good := 0
		for i := uint64(0); i < min(sample, b.md.ftab.len-1); i++ {
			entry, off, _ := b.ftabAt(v, i)
			f, ok := b.funcAt(v, off)
			if !ok || f.entry != entry || f.funcID > 64 {
				continue
			}
			if f.inlTree == noTree || f.inlTree < 1<<30 {
				good++
			}
		}
		if good > best {
			best, bestSize = good, size
		}
	}
	if v.err != nil {
		return v.err
	}
	if best == 0 {
		return fmt.Errorf("read function table: %w", ErrTables)
	}
	b.funcSize = bestSize
	return nil
}

// indexFuncs reads the function table once.
func (b *Binary) indexFuncs(v *view) error {
	if err := b.calibrateFuncs(v); err != nil {
		return err
	}
	n := b.md.ftab.len - 1
	ids := make([]uint8, n)
	var ix funcIndex
	ix.named = make([]hashRef, 0, n)
	ix.tree = b.findInlineTable(v)
	inl := inlineCollector{seen: make(map[uint32]inlineSeen)}
	last := uint32(0)
	for i := range n {
		entry, off, ok := b.ftabAt(v, i)
		if !ok || entry < last {
			return fmt.Errorf("read function table: %w", orTables(v.err))
		}
		last = entry
		f, ok := b.funcAt(v, off)
		if !ok {
			continue
		}
		ids[i] = f.funcID
		if name, ok := b.funcName(v, f.nameOff); ok && name != "" {
			ix.named = append(ix.named, hashRef{hashName(name), uint32(i)})
		}
		if err := ix.tree.each(v, b, &f, func(c inlinedCall) { inl.add(c.nameOff, uint32(i)) }); err != nil {
			return err
		}
		if inl.full() {
			return fmt.Errorf("read inline trees: %w", ErrLimit)
		}
	}
	wrapper := slices.Max(ids)
	keep := ix.named[:0]
	for _, r := range ix.named {
		if ids[r.ref] != wrapper || wrapper < minWrapperID || b.isCalled(v, r.ref) {
			keep = append(keep, r)
		}
	}
	ix.named = slices.Clip(keep)
	sortRefs(ix.named)
	ix.inlined = inl.index(v, b)
	b.funcs = ix
	return v.err
}

func orTables(err error) error {
	if err == nil {
		return ErrTables
	}
	return err
}

// minWrapperID is FuncID_wrapper in Go 1.18, the lowest that it ever was.
const minWrapperID = 21

// isCalled tells the wrappers to keep: those of method values, "-fm", and of deferred
// calls with arguments, which the runtime calls, and other code does not inline; and
// runtime.deferreturn, which is marked so to be left out of stack traces.
func (b *Binary) isCalled(v *view, i uint32) bool {
	_, off, ok := b.ftabAt(v, uint64(i))
	if !ok {
		return false
	}
	f, ok := b.funcAt(v, off)
	if !ok {
		return false
	}
	name, ok := b.funcName(v, f.nameOff)
	return ok && (strings.HasSuffix(name, "-fm") || strings.Contains(name, ".deferwrap") || name == "runtime.deferreturn")
}

// function returns the function at index i of ftab.
func (b *Binary) function(v *view, i uint32) (*Func, bool) {
	entry, off, ok := b.ftabAt(v, uint64(i))
	end, _, ok2 := b.ftabAt(v, uint64(i)+1)
	if !ok || !ok2 || end <= entry {
		return nil, false
	}
	rec, ok := b.funcAt(v, off)
	if !ok {
		return nil, false
	}
	name, ok := b.funcName(v, rec.nameOff)
	if !ok {
		return nil, false
	}
	f := &Func{Name: name, Addr: b.md.text + uint64(entry), End: b.md.text + uint64(end)}
	return f, f.End <= b.md.etext
}

// lookupAll is lookupFunc with a view of its own.
func (b *Binary) lookupAll(name string) []*Func { return b.lookupFunc(b.view(), name) }

// lookupFunc returns the functions of a name, wrappers left out.
func (b *Binary) lookupFunc(v *view, name string) []*Func {
	var found []*Func
	for _, r := range findRefs(b.funcs.named, hashName(name)) {
		if f, ok := b.function(v, r.ref); ok && f.Name == name {
			found = append(found, f)
		}
	}
	return found
}

// Func returns a function by its full name, such as
// "net/http.(*conn).serve.func1". The error is a *[MissingError], or an
// *[InlinedError] if a probe on the function would miss the calls of inlined
// copies, unless the file could not be read.
func (b *Binary) Func(name string) (*Func, error) {
	v := b.view()
	found := b.lookupFunc(v, name)
	if v.err != nil {
		return nil, v.err
	}
	if len(found) > 1 {
		return nil, &MissingError{"function", name, "several functions have this name"}
	}
	var f *Func
	if len(found) == 1 {
		f = found[0]
	}
	if into := b.inlinedInto(v, name); len(into) > 0 {
		return nil, &InlinedError{Func: name, Into: into, Kept: f}
	}
	if f == nil {
		return nil, &MissingError{"function", name, ""}
	}
	return f, nil
}

// FuncsWithPrefix returns the functions whose name starts with prefix, by
// address: the closures of a function, or the instances of a generic one
// ("pkg.Name["; Go 1.20 writes "[...]" for the type arguments). It reads all names, so it costs as much as a part of
// Open. At most 4096 are returned.
func (b *Binary) FuncsWithPrefix(prefix string) []*Func {
	const maxFound = 4096
	v := newView(b.img, openShift, openSlots/4)
	refs := make([]uint32, len(b.funcs.named))
	for i, r := range b.funcs.named {
		refs[i] = r.ref
	}
	slices.Sort(refs)
	var found []*Func
	for _, i := range refs {
		_, off, ok := b.ftabAt(v, uint64(i))
		if !ok {
			continue
		}
		rec, ok := b.funcAt(v, off)
		if !ok {
			continue
		}
		if name, ok := b.funcName(v, rec.nameOff); !ok || !strings.HasPrefix(name, prefix) {
			continue
		}
		if f, ok := b.function(v, i); ok {
			if found = append(found, f); len(found) == maxFound {
				break
			}
		}
	}
	return found
}

package gobin

import (
	"cmp"
	"slices"
	"strings"
)

// inlineTable tells how to read inline trees: each function's
// FUNCDATA_InlTree, an array of records at gofunc plus an offset. The array's
// length is not written down; it is one more than the highest index in the
// function's PCDATA_InlTreeIndex table.
type inlineTable struct {
	gofunc  uint64 // 0 if it was not found
	record  uint64 // size of runtime.inlinedCall
	nameOff uint64 // offset of the name in it
}

// inlinedCall is a decoded record.
type inlinedCall struct {
	nameOff  uint32
	parentPC uint32 // offset from the function's entry of an instruction at the call
}

// Bounds on one function's inline tree.
const (
	maxInlined  = 1 << 15
	maxNames    = 1 << 17 // of different functions inlined anywhere
	maxPairs    = 1 << 19 // of those and functions that hold them
	maxPCTable  = 1 << 18
	maxInto     = 16
	pcTableRead = 512
)

// findInlineTable finds moduledata.gofunc, a few words after types, and the
// records' layout, by trying on a sample of functions.
func (b *Binary) findInlineTable(v *view) inlineTable {
	const sample = 64
	recs := make([]funcRec, 0, sample)
	for i := uint64(0); i < b.md.ftab.len-1 && len(recs) < sample; i++ {
		_, off, _ := b.ftabAt(v, i)
		if f, ok := b.funcAt(v, off); ok && f.inlTree != noTree && f.inlPC != 0 {
			recs = append(recs, f)
		}
	}
	i := max(slices.Index(b.md.words, b.md.types), 0)
	for _, w := range b.md.words[i+1 : min(i+9, len(b.md.words))] {
		if b.img.segmentOf(w) == nil {
			continue
		}
		for _, tab := range []inlineTable{
			{gofunc: w, record: 16, nameOff: 4},  // Go 1.20 and later
			{gofunc: w, record: 20, nameOff: 12}, // 1.18, 1.19
		} {
			if b.inlineTableOK(v, tab, recs) {
				return tab
			}
		}
	}
	return inlineTable{}
}

func (b *Binary) inlineTableOK(v *view, tab inlineTable, recs []funcRec) bool {
	n, zeros := 0, 0
	for i := range recs {
		ok := true
		err := tab.each(v, b, &recs[i], func(c inlinedCall) {
			n++
			if c.nameOff == 0 { // the first name, or no table at all
				zeros++
				return
			}
			if uint64(c.nameOff) >= b.md.funcnametab.len {
				ok = false
				return
			}
			// A name begins after the end of another.
			p := v.at(b.md.funcnametab.addr+uint64(c.nameOff)-1, 1)
			ok = ok && len(p) > 0 && p[0] == 0
		})
		if err != nil || !ok {
			return false
		}
	}
	return zeros < n
}

// each calls f with each record of a function's inline tree.
func (tab inlineTable) each(v *view, b *Binary, fn *funcRec, f func(inlinedCall)) error {
	if tab.gofunc == 0 || fn.inlTree == noTree || fn.inlPC == 0 {
		return nil
	}
	n := b.maxPCValue(v, fn.inlPC) + 1
	if n <= 0 || n > maxInlined {
		return v.err
	}
	at := tab.gofunc + uint64(fn.inlTree)
	for range n {
		name, ok1 := v.u32(at + tab.nameOff)
		pc, ok2 := v.u32(at + tab.nameOff + 4)
		if !ok1 || !ok2 {
			break
		}
		f(inlinedCall{name, pc})
		at += tab.record
	}
	return v.err
}

// maxPCValue decodes a pc-value table of pctab and returns its highest value,
// -1 if it has none.
func (b *Binary) maxPCValue(v *view, off uint32) int {
	t := pcTable{v: v, addr: b.md.pctab.addr + uint64(off), left: int(min(maxPCTable, b.md.pctab.len-min(b.md.pctab.len, uint64(off))))}
	value, highest := int32(-1), int32(-1)
	for first := true; ; first = false {
		delta, ok := t.varint()
		if !ok || delta == 0 && !first {
			break
		}
		value += int32(-(delta & 1) ^ delta>>1)
		if _, ok = t.varint(); !ok { // how far in the code it holds
			break
		}
		highest = max(highest, value)
	}
	return int(highest)
}

// pcTable reads varints.
type pcTable struct {
	v    *view
	addr uint64
	left int
	buf  []byte
}

func (t *pcTable) next() (byte, bool) {
	if len(t.buf) == 0 {
		if t.left <= 0 {
			return 0, false
		}
		t.buf = t.v.at(t.addr, min(pcTableRead, t.left))
		if len(t.buf) == 0 {
			return 0, false
		}
		t.v.charge(len(t.buf) * 2)
		t.addr += uint64(len(t.buf))
		t.left -= len(t.buf)
	}
	c := t.buf[0]
	t.buf = t.buf[1:]
	return c, true
}

func (t *pcTable) varint() (x uint32, ok bool) {
	for shift := 0; shift < 35; shift += 7 {
		c, ok := t.next()
		if !ok {
			return 0, false
		}
		x |= uint32(c&0x7f) << shift
		if c&0x80 == 0 {
			return x, true
		}
	}
	return 0, false
}

// inlineIndex tells which functions hold a copy of another one's body, for at
// most maxInto functions each.
type inlineIndex struct {
	names []hashRef // of inlined functions; ref is the name's offset in funcnametab
	into  []intoRef // by name
}

type intoRef struct{ name, fn uint32 } // offset of the name; index in ftab

// inlineCollector builds an inlineIndex, function by function.
type inlineCollector struct {
	seen map[uint32]inlineSeen // by name
	into []intoRef
}

type inlineSeen struct {
	last uint32 // function that was recorded last
	n    int    // how many
}

func (c *inlineCollector) add(name, fn uint32) {
	s := c.seen[name]
	if s.n == maxInto || s.n > 0 && s.last == fn {
		return
	}
	c.seen[name] = inlineSeen{fn, s.n + 1}
	c.into = append(c.into, intoRef{name, fn})
}

func (c *inlineCollector) full() bool { return len(c.seen) > maxNames || len(c.into) > maxPairs }

func (c *inlineCollector) index(v *view, b *Binary) inlineIndex {
	var ix inlineIndex
	ix.names = make([]hashRef, 0, len(c.seen))
	for off := range c.seen {
		if name, ok := b.funcName(v, off); ok {
			ix.names = append(ix.names, hashRef{hashName(name), off})
		}
	}
	sortRefs(ix.names)
	slices.SortFunc(c.into, func(a, b intoRef) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.fn, b.fn))
	})
	ix.into = slices.Clip(c.into)
	return ix
}

// inlinedInto returns the functions that hold a copy of the named one's body.
func (b *Binary) inlinedInto(v *view, name string) []string {
	var into []string
	for _, r := range findRefs(b.funcs.inlined.names, hashName(name)) {
		if s, ok := b.funcName(v, r.ref); !ok || s != name {
			continue
		}
		list := b.funcs.inlined.into
		i, _ := slices.BinarySearchFunc(list, r.ref, func(x intoRef, name uint32) int { return cmp.Compare(x.name, name) })
		for ; i < len(list) && list[i].name == r.ref; i++ {
			if f, ok := b.function(v, list[i].fn); ok && !isWrapperOf(f.Name, name) {
				into = append(into, f.Name)
			}
		}
	}
	slices.Sort(into)
	into = slices.Compact(into)
	return into[:min(len(into), maxInto)]
}

// isWrapperOf reports whether outer is the compiler's pointer-receiver
// wrapper of a value method: "p.(*T).M" of "p.T.M". Its calls come from
// dispatch on a *T, of which the program has none if it only uses T.
func isWrapperOf(outer, name string) bool {
	recv, method, ok := strings.Cut(outer, ".(*")
	if !ok {
		return false
	}
	typ, method, ok := strings.Cut(method, ").")
	return ok && name == recv+"."+typ+"."+method
}

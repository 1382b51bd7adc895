package gobin

import (
	"fmt"
	"slices"
)

// Call names one call inside a function.
type Call struct {
	Callee   string // full name of the function called directly
	Indirect bool   // instead: a call through a register or memory (closure, interface method)
	N        int    // which one, in the order of the code, from 0; -1 is the last
}

func (c Call) String() string {
	if c.Indirect {
		return fmt.Sprintf("indirect call %d", c.N)
	}
	return fmt.Sprintf("call %d of %s", c.N, c.Callee)
}

// AfterOptions narrow what [Binary.AfterCall] and its kin may choose.
type AfterOptions struct {
	// Results are indices of result registers whose values must be known at the
	// site. An error result takes two: type word and data word.
	Results []int
	// InRegs asks that those values are still in their own result registers.
	InRegs bool
	// Of, if not nil, is an earlier call on the same straight line whose results
	// Results means, instead of those of the call that the site comes after.
	Of *Call
	// Stepped allows the instruction right after the call, single-stepped, where
	// no emulated one serves.
	Stepped bool
	// Joined allows the line to be joined by paths that come straight from another
	// call: both have their results in the same registers there.
	Joined bool
	// After, if not nil, is a call before the wanted one: N counts from there.
	After *Call
}

// body is a decoded function that sites are looked for in.
type body struct {
	b       *Binary
	fn      *Func
	code    []insn
	targets map[uint64]bool
}

func (b *Binary) body(fn *Func) (*body, error) {
	code, err := b.decode(fn)
	if err != nil {
		return nil, err
	}
	if len(code) == 0 {
		return nil, &SiteError{fn.Name, "it has no code"}
	}
	return &body{b, fn, code, branchTargets(code)}, nil
}

func (f *body) fail(format string, args ...any) error {
	return &SiteError{f.fn.Name, fmt.Sprintf(format, args...)}
}

// find returns the index of a call.
func (f *body) find(c Call) (int, error) {
	var entries []uint64
	if !c.Indirect {
		for _, callee := range f.b.lookupAll(c.Callee) {
			entries = append(entries, callee.Addr)
		}
		if len(entries) == 0 {
			return 0, &MissingError{"function", c.Callee, ""}
		}
	}
	var found []int
	for i := range f.code {
		in := &f.code[i]
		if c.Indirect && in.op == opCallInd || !c.Indirect && in.op == opCall && slices.Contains(entries, in.target) {
			found = append(found, i)
		}
	}
	n := c.N
	if n < 0 {
		n += len(found)
	}
	if n < 0 || n >= len(found) {
		return 0, f.fail("no %s: it has %d such calls", c, len(found))
	}
	return found[n], nil
}

// findAfter returns the index of a call, counted from another one in the order of the
// code if after is not nil.
func (f *body) findAfter(c Call, after *Call) (int, error) {
	if after == nil {
		return f.find(c)
	}
	first, err := f.find(*after)
	if err != nil {
		return 0, err
	}
	for n := 0; ; n++ {
		i, err := f.find(Call{c.Callee, c.Indirect, n})
		if err != nil {
			return 0, err
		}
		if i > first {
			return f.find(Call{c.Callee, c.Indirect, n + c.N})
		}
	}
}

// AfterCall returns an emulated instruction on the straight line after a
// call: the conditional branch that ends the line, usually the one that tests
// a result, else the first instruction that serves. It runs once for each
// return of that call, whatever the outcome; Site.Where tells where the
// results are.
func (b *Binary) AfterCall(fn *Func, c Call, opt AfterOptions) (Site, error) {
	f, err := b.body(fn)
	if err != nil {
		return Site{}, err
	}
	i, err := f.findAfter(c, opt.After)
	if err != nil {
		return Site{}, err
	}
	end, why := f.lineAfter(i, opt.Joined)
	err = f.fail("%s: %s", c, why)
	if end > i+1 && f.code[end-1].op == opJcc {
		s, e := f.siteAt(end-1, i, c, opt, "branch after "+c.String())
		if e == nil && s.Emulated {
			return s, nil
		}
		if e != nil { // of a branch that is not emulated the reason is why
			err = e
		}
	}
	for j := i + 1; j < end; j++ {
		if !f.code[j].emulated {
			continue
		}
		if s, err := f.siteAt(j, i, c, opt, "emulated instruction after "+c.String()); err == nil {
			return s, nil
		}
	}
	if opt.Stepped && end > i+1 {
		return f.siteAt(i+1, i, c, opt, "instruction after "+c.String())
	}
	return Site{}, err
}

// siteAt makes a site at index j, on the straight line after the call at i.
func (f *body) siteAt(j, i int, c Call, opt AfterOptions, rule string) (Site, error) {
	of := i
	if opt.Of != nil {
		var err error
		if of, err = f.callBefore(*opt.Of, i); err != nil {
			return Site{}, err
		}
		c = *opt.Of
	}
	path := make([]int, 0, j-of)
	for k := of + 1; k < j; k++ {
		path = append(path, k)
	}
	return f.located(j, path, c, opt, rule)
}

// callBefore finds the call named by c, or, where c.N is negative, the last
// one before index i, and checks that one line leads from it to i.
func (f *body) callBefore(c Call, i int) (int, error) {
	of := -1
	if c.N >= 0 {
		k, err := f.find(c)
		if err != nil {
			return 0, err
		}
		of = k
	} else {
		for n := 0; ; n++ {
			k, err := f.find(Call{c.Callee, c.Indirect, n})
			if err != nil || k >= i {
				break
			}
			of = k
		}
	}
	if of < 0 || of >= i {
		return 0, f.fail("%s does not come before", c)
	}
	for k := of + 1; k <= i; k++ {
		if f.targets[f.code[k].addr] || k < i && f.code[k].ends() {
			return 0, f.fail("other paths lie between %s and the site", c)
		}
	}
	return of, nil
}

// located makes the site at index j, reached from the return of call c along
// the instructions of path, and finds the call's results there.
func (f *body) located(j int, path []int, c Call, opt AfterOptions, rule string) (Site, error) {
	isa := f.b.img.arch.isa()
	st := newTrace(isa)
	for _, k := range path {
		st.step(&f.code[k], f.b)
	}
	s, err := f.b.site(f.fn, &f.code[j], rule)
	if err != nil {
		return Site{}, err
	}
	s.Where = st.where()
	if f.code[j].op == opJcc && s.Tests == NoReg {
		s.Tests = f.tested(j)
	}
	for _, r := range opt.Results {
		switch {
		case r < 0 || r >= len(s.Where):
			return Site{}, f.fail("no result register %d", r)
		case !s.Where[r].InReg && !s.Where[r].InStack:
			return Site{}, f.fail("result %d of %s is lost at %#x (%s)", r, c, s.Addr, s.Instr)
		case opt.InRegs && !(s.Where[r].InReg && s.Where[r].Reg == isa.args[r]):
			return Site{}, f.fail("result %d of %s has left its register at %#x (%s)", r, c, s.Addr, s.Instr)
		}
	}
	return s, nil
}

// tested returns the register whose comparison with zero the branch at j
// uses: that of the last instruction before it that sets the flags.
func (f *body) tested(j int) Reg {
	for k := j - 1; k >= 0; k-- {
		in := &f.code[k]
		switch {
		case in.tests != NoReg:
			return in.tests
		case in.flags || in.op != opOther && in.op != opNop || f.targets[f.code[k+1].addr]:
			return NoReg
		case j-k > 16:
			return NoReg
		}
	}
	return NoReg
}

// ErrorPath returns the first instruction that runs only if a call returned
// an error: of the branch that compares the error's type word with nil, the
// side taken for an error, if nothing else of the function leads there. errAt
// is the index of the type word's result register: 0 of a func() error, 1 of
// a func() (*T, error). The instruction is usually not emulated; the path is
// rare.
func (b *Binary) ErrorPath(fn *Func, c Call, errAt int, opt AfterOptions) (Site, error) {
	f, err := b.body(fn)
	if err != nil {
		return Site{}, err
	}
	i, err := f.find(c)
	if err != nil {
		return Site{}, err
	}
	path, j, err := f.errorBlock(i, c, errAt)
	if err != nil {
		return Site{}, err
	}
	return f.located(j, path, c, opt, "error path after "+c.String())
}

// errorBlock follows the line after the call at i to the branch on the error
// and returns the path to, and the index of, the first instruction beyond it.
func (f *body) errorBlock(i int, c Call, errAt int) (path []int, j int, err error) {
	st := newTrace(f.b.img.arch.isa())
	for k := i + 1; k < len(f.code); k++ {
		in := &f.code[k]
		if f.targets[in.addr] || in.ends() || in.op == opCall || in.op == opCallInd {
			break
		}
		path = append(path, k)
		if in.op != opJcc {
			st.step(in, f.b)
			continue
		}
		r := in.tests
		if r == NoReg {
			r = f.tested(k)
		}
		if r == NoReg || int(r) >= len(st.regs) || st.regs[r] != int8(errAt) {
			continue // a branch on something else, as a write barrier's
		}
		switch in.cond {
		case CondE, CondEQ, CondZ: // goes on at Next for an error
			if f.targets[in.next()] || k+1 >= len(f.code) {
				return nil, 0, f.fail("other paths join the error path of %s", c)
			}
			return path, k + 1, nil
		case CondNE, CondNEQ, CondNZ:
			j, ok := indexOf(f.code, in.target)
			if !ok || f.sources(in.target) != 1 || j == 0 || !f.code[j-1].ends() {
				return nil, 0, f.fail("other paths join the error path of %s", c)
			}
			return path, j, nil
		}
		break
	}
	return nil, 0, f.fail("no branch on the error of %s", c)
}

// sources counts the branches that go to addr.
func (f *body) sources(addr uint64) int {
	n := 0
	for i := range f.code {
		if in := &f.code[i]; (in.op == opJcc || in.op == opJmp) && in.target == addr {
			n++
		}
	}
	return n
}

// CallSite returns a call instruction itself, with the arguments in their
// registers; direct calls are emulated.
func (b *Binary) CallSite(fn *Func, c Call) (Site, error) {
	f, err := b.body(fn)
	if err != nil {
		return Site{}, err
	}
	i, err := f.find(c)
	if err != nil {
		return Site{}, err
	}
	return b.site(fn, &f.code[i], c.String())
}

// ReturnSites returns all return instructions of a function. They are
// emulated on arm64 only.
func (b *Binary) ReturnSites(fn *Func) ([]Site, error) {
	f, err := b.body(fn)
	if err != nil {
		return nil, err
	}
	var sites []Site
	for i := range f.code {
		if f.code[i].op != opRet {
			continue
		}
		s, err := b.site(fn, &f.code[i], "return")
		if err != nil {
			return nil, err
		}
		sites = append(sites, s)
	}
	if len(sites) == 0 {
		return nil, f.fail("it has no return instruction")
	}
	return sites, nil
}

// ReturnAfter returns the return instruction at the end of the straight line
// after a call, where nothing else of the function leads.
func (b *Binary) ReturnAfter(fn *Func, c Call, opt AfterOptions) (Site, error) {
	f, err := b.body(fn)
	if err != nil {
		return Site{}, err
	}
	i, err := f.find(c)
	if err != nil {
		return Site{}, err
	}
	for j := i + 1; j < len(f.code); j++ {
		in := &f.code[j]
		switch {
		case f.targets[in.addr]:
			return Site{}, f.fail("other paths join between %s and the return", c)
		case in.op == opRet:
			return f.siteAt(j, i, c, opt, "return after "+c.String())
		case in.op == opJcc || in.ends():
			return Site{}, f.fail("no straight line from %s to a return", c)
		}
	}
	return Site{}, f.fail("no return after %s", c)
}

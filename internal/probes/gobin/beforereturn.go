package gobin

// BeforeReturn returns a conditional branch that every normal return of a function
// passes once, after its results have been put into their stack slots: results that a
// deferred call could change live there until it has been made. c is that call, as the
// function makes it itself at its end (an open-coded defer); its results do not matter.
// Site.Where tells the slots of the function's results, which are those that are loaded
// into result registers between the call and the return.
//
// It is the branch around the code that sets a default result, which is where the paths
// of the function join for the last time. That nothing stores into the slots from where
// they join up to the call means that they have their values at the branch, for on one
// side of it nothing else happens.
func (b *Binary) BeforeReturn(fn *Func, c Call, results []int) (Site, error) {
	f, err := b.body(fn)
	if err != nil {
		return Site{}, err
	}
	i, err := f.find(c)
	if err != nil {
		return Site{}, err
	}
	slots, err := f.resultSlots(i, c)
	if err != nil {
		return Site{}, err
	}
	for _, r := range results {
		if r < 0 || r >= len(slots) || !slots[r].InStack {
			return Site{}, f.fail("result %d is not loaded from the stack after %s", r, c)
		}
	}
	join := i
	for ; !f.targets[f.code[join].addr]; join-- {
		if in := &f.code[join]; join == 0 || in.op == opJcc || in.ends() || in.move == moveSP {
			return Site{}, f.fail("paths do not join before %s", c)
		}
	}
	for k := join; k < i; k++ {
		if in := &f.code[k]; in.move == moveSP || storesTo(in, slots, results) {
			return Site{}, f.fail("results are stored between the last branch and %s", c)
		}
	}
	j, ok := f.aroundBranch(join)
	if !ok {
		return Site{}, f.fail("no branch that all paths to %s pass", c)
	}
	s, err := b.site(fn, &f.code[j], "last branch before "+c.String())
	s.Where = slots
	return s, err
}

// resultSlots finds the stack slots that result registers are loaded from on the straight
// line from the call at i to a return.
func (f *body) resultSlots(i int, c Call) ([]Loc, error) {
	isa := f.b.img.arch.isa()
	slots := make([]Loc, len(isa.args))
	load := func(dst Reg, disp int64) {
		for r, reg := range isa.args {
			if reg == dst {
				slots[r] = Loc{InStack: true, Offset: disp}
			}
		}
	}
	moved := false // the stack pointer has; nothing is loaded by then
	for k := i + 1; k < len(f.code); k++ {
		in := &f.code[k]
		switch {
		case f.targets[in.addr] || in.op == opJcc:
			return nil, f.fail("no straight line from %s to a return", c)
		case in.op == opRet:
			return slots, nil
		case in.ends():
			return nil, f.fail("no return after %s", c)
		case in.op == opCall || in.op == opCallInd:
			clear(slots)
			continue
		}
		for r, reg := range isa.args {
			if in.writes.Has(reg) {
				slots[r] = Loc{}
			}
		}
		if moved = moved || in.move == moveSP || in.writes.Has(isa.sp); !moved && in.move == moveLoad {
			load(in.dst, in.disp)
			if in.second != NoReg {
				load(in.second, in.disp+8)
			}
		}
	}
	return nil, f.fail("no return after %s", c)
}

// storesTo tells whether an instruction stores into the slots of results.
func storesTo(in *insn, slots []Loc, results []int) bool {
	size := int64(8)
	switch {
	case in.move == moveClear:
		size = in.msize
	case in.move != moveStore:
		return false
	case in.second != NoReg:
		size = 16
	}
	for _, r := range results {
		if off := slots[r].Offset; in.disp < off+8 && off < in.disp+size {
			return true
		}
	}
	return false
}

// aroundBranch returns the conditional branch by which alone the instruction at join is
// reached: it goes there, or past straight code that leads there, wherever that is.
func (f *body) aroundBranch(join int) (int, bool) {
	addr := f.code[join].addr
	if join == 0 || f.sources(addr) != 1 {
		return 0, false
	}
	from := -1
	for k := range f.code {
		if in := &f.code[k]; (in.op == opJcc || in.op == opJmp) && in.target == addr {
			from = k
		}
	}
	if f.code[from].op == opJcc { // past code that falls through to join
		return from, from < join && f.straight(from+1, join)
	}
	// The branch falls through to join, and goes to code elsewhere that jumps back.
	j := join - 1
	start, ok := indexOf(f.code, f.code[j].target)
	if f.code[j].op != opJcc || !ok || start == 0 || start > from || f.sources(f.code[start].addr) != 1 ||
		!f.code[start-1].ends() || !f.straight(start+1, from) {
		return 0, false
	}
	return j, f.code[start].op != opJcc && !f.code[start].ends()
}

// straight tells whether the instructions from..to-1 run one after the other, and are
// reached in no other way.
func (f *body) straight(from, to int) bool {
	for k := from; k < to; k++ {
		if in := &f.code[k]; f.targets[in.addr] || in.op == opJcc || in.ends() {
			return false
		}
	}
	return true
}

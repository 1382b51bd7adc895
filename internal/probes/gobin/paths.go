package gobin

// Cut is a conditional branch that ends a path of interest: what happens beyond it is
// known to the program that is attached there.
type Cut struct {
	Site Site
	// NilOnly cuts only the way taken when the register that the branch tests is zero,
	// such as that of a nil error; else both ways are cut.
	NilOnly bool
}

// ReturnsBeyond returns the return instructions that the function can reach without
// going beyond any of the cuts: those of the outcomes that no cut has seen. Like
// [Binary.ReturnSites] they are emulated on arm64 only; use it where what is left is
// rare.
func (b *Binary) ReturnsBeyond(fn *Func, cuts ...Cut) ([]Site, error) {
	f, err := b.body(fn)
	if err != nil {
		return nil, err
	}
	reached, err := f.reach(cuts)
	if err != nil {
		return nil, err
	}
	var sites []Site
	for i := range f.code {
		if f.code[i].op != opRet || !reached[i] {
			continue
		}
		s, err := b.site(fn, &f.code[i], "return of another outcome")
		if err != nil {
			return nil, err
		}
		sites = append(sites, s)
	}
	if len(sites) == 0 {
		return nil, f.fail("no return can be reached")
	}
	return sites, nil
}

// reach tells which instructions can be reached from the entry, up to the cuts.
func (f *body) reach(cuts []Cut) ([]bool, error) {
	reached := make([]bool, len(f.code))
	todo := []int{0}
	push := func(addr uint64) {
		// A branch out of the function is a tail call: it returns elsewhere.
		if i, ok := indexOf(f.code, addr); ok && !reached[i] {
			reached[i] = true
			todo = append(todo, i)
		}
	}
	reached[0] = true
	for len(todo) > 0 {
		in := &f.code[todo[len(todo)-1]]
		todo = todo[:len(todo)-1]
		toTarget, toNext := in.op == opJcc || in.op == opJmp, !in.ends()
		for _, c := range cuts {
			if c.Site.Addr != in.addr {
				continue
			}
			onNil, ok := c.Site.takenOnZero()
			if !ok && c.NilOnly {
				return nil, f.fail("the branch at %#x does not compare with zero", in.addr)
			}
			toTarget = toTarget && c.NilOnly && !onNil
			toNext = toNext && c.NilOnly && onNil
		}
		if in.op == opJmpInd || in.op == opBad {
			return nil, f.fail("it has a jump table at %#x", in.addr)
		}
		if toTarget {
			push(in.target)
		}
		if toNext {
			push(in.next())
		}
	}
	return reached, nil
}

// takenOnZero tells whether the branch goes to Target when what it compares with zero
// is zero, and whether it is such a branch at all.
func (s *Site) takenOnZero() (taken, ok bool) {
	if s.Tests == NoReg {
		return false, false
	}
	switch s.Cond {
	case CondE, CondEQ, CondZ:
		return true, true
	case CondNE, CondNEQ, CondNZ:
		return false, true
	}
	return false, false
}

// lineAfter returns the end (the index after the last instruction) of the
// straight line that follows the call at i: it ends with the first branch,
// call or return, or before other paths join, and why says which.
func (f *body) lineAfter(i int, joined bool) (end int, why string) {
	for j := i + 1; j < len(f.code); j++ {
		in := &f.code[j]
		switch {
		case f.targets[in.addr] && !(joined && f.fromCalls(in.addr)):
			return j, "other paths join before a branch"
		case in.op == opJcc:
			return j + 1, "the branch after it is not emulated"
		case in.op == opCall || in.op == opCallInd:
			return j + 1, "another call comes before a branch"
		case in.ends():
			return j + 1, "no branch comes after it"
		}
	}
	return len(f.code), "no branch comes after it"
}

// fromCalls reports whether every branch to addr is a jump right after a call, with
// nothing in between that changes a register.
func (f *body) fromCalls(addr uint64) bool {
	for i := range f.code {
		in := &f.code[i]
		if (in.op != opJcc && in.op != opJmp) || in.target != addr {
			continue
		}
		k := i - 1
		for k > 0 && f.code[k].op == opNop && !f.targets[f.code[k].addr] {
			k--
		}
		if in.op != opJmp || k < 0 || f.code[k].op != opCall && f.code[k].op != opCallInd || f.targets[f.code[k+1].addr] || f.targets[in.addr] {
			return false
		}
	}
	return true
}

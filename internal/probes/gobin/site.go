package gobin

import (
	"fmt"
	"strconv"
)

// Site is an instruction to put a uprobe on.
type Site struct {
	Func   string // the function that holds it
	Addr   uint64 // before relocation
	Offset uint64 // in the file: where the kernel attaches
	Instr  string // disassembly
	// Emulated says that the kernel emulates the instruction instead of
	// single-stepping a copy of it, which costs over ten times more.
	Emulated bool
	Rule     string // why this instruction was chosen, for people

	// StackCheck says that the site is the branch by which a function tests whether
	// its stack suffices. Where Cond holds for the flags on arrival, the function
	// will start again from its entry with a larger stack: the program must return
	// at once, or it counts the call twice.
	StackCheck bool

	// Of a conditional branch: Cond is the condition under which it goes to Target,
	// else execution goes on at Next. Tests is the register that is compared with
	// zero, NoReg if it is something else.
	Cond         Cond
	Target, Next uint64
	Tests        Reg

	// Where tells, for the results of the call that a site was asked for, in the
	// order of the result registers, where each is when the program runs. Of a
	// result that is lost, or was not asked for, InReg and InStack are false.
	Where []Loc
}

// Loc is where a value is.
type Loc struct {
	InReg   bool
	Reg     Reg
	InStack bool
	Offset  int64 // from the stack pointer at the site, in bytes
}

// site makes the Site for an instruction.
func (b *Binary) site(fn *Func, in *insn, rule string) (Site, error) {
	off, ok := b.img.fileOffset(in.addr)
	if !ok {
		return Site{}, &SiteError{fn.Name, "its code is not in the file"}
	}
	s := Site{Func: fn.Name, Addr: in.addr, Offset: off, Emulated: in.emulated, Rule: rule, Tests: NoReg}
	code := make([]byte, min(16, fn.End-in.addr))
	if !b.view().read(in.addr, code) {
		return Site{}, &SiteError{fn.Name, "its code cannot be read"}
	}
	if b.img.arch == ARM64 {
		s.Instr = a64Text(code)
	} else {
		s.Instr = x86Text(in.addr, code)
	}
	if in.op == opJcc {
		s.Cond, s.Target, s.Next, s.Tests = in.cond, in.target, in.next(), in.tests
	}
	return s, nil
}

// EntrySite returns where to probe the beginning of a function, so that the
// program runs once for each call, with all arguments and the closure still
// in their registers:
//
//   - the stack check's branch, with Site.StackCheck set: a tenth cheaper than
//     what follows it, because nothing is written to the target's stack;
//   - else PUSHQ BP after the stack check (Go 1.21 and later on amd64);
//   - of a function without a stack check, the first emulated instruction
//     that is reached before any such register changes;
//   - else the function's first instruction, which is not emulated.
//
// A function inlined elsewhere is [Binary.Func]'s to tell.
func (b *Binary) EntrySite(fn *Func) (Site, error) {
	code, err := b.decode(fn)
	if err != nil {
		return Site{}, err
	}
	if len(code) == 0 {
		return Site{}, &SiteError{fn.Name, "it has no code"}
	}
	args := b.img.arch.isa().argSet()
	targets := branchTargets(code)
	check, ok := b.stackCheck(code)
	if !ok {
		return Site{}, &SiteError{fn.Name, "its stack check is of an unknown kind"}
	}
	if check >= 0 {
		if !written(code[:check], args) && code[check].emulated && !targets[code[check].addr] {
			s, err := b.site(fn, &code[check], "branch of the stack check")
			s.StackCheck = true
			return s, err
		}
		if next := check + 1; next < len(code) && code[next].op == opPush && code[next].emulated &&
			!targets[code[next].addr] && !written(code[:next], args) {
			return b.site(fn, &code[next], "push after the stack check")
		}
		return Site{}, &SiteError{fn.Name, "arguments change before its stack check"}
	}
	for i := range code {
		in := &code[i]
		if targets[in.addr] { // a loop back to here would count again
			break
		}
		if in.emulated && in.op != opOther {
			return b.site(fn, in, "first emulated instruction of a function without stack check")
		}
		if in.ends() || in.op == opJcc || in.op == opCallInd || in.writes&args != 0 {
			break
		}
	}
	if targets[code[0].addr] {
		return Site{}, &SiteError{fn.Name, "its entry is the target of a loop"}
	}
	return b.site(fn, &code[0], "entry of a function without stack check")
}

// stackCheck returns the index of the conditional branch by which the
// prologue goes to the call of runtime.morestack, or -1 if it has none. Large
// frames compare through a scratch register, and very large ones branch
// twice: the last branch is the one. Not ok: there is a branch to morestack,
// but not with the condition that a stack check has.
func (b *Binary) stackCheck(code []insn) (check int, ok bool) {
	const prologue = 12
	check = -1
	for i := range code[:min(len(code), prologue)] {
		in := &code[i]
		if in.op == opJcc && b.callsMorestack(code, in.target) {
			check = i
			continue
		}
		if in.op != opOther {
			break
		}
	}
	return check, check < 0 || code[check].cond == CondBE || code[check].cond == CondLS
}

// callsMorestack reports whether the block at addr spills arguments and calls
// runtime.morestack or one of its variants.
func (b *Binary) callsMorestack(code []insn, addr uint64) bool {
	i, ok := indexOf(code, addr)
	if !ok {
		return false
	}
	for ; i < len(code); i++ {
		in := &code[i]
		if in.op == opCall {
			return b.isMorestack(in.target)
		}
		if in.op != opOther && in.op != opNop {
			return false
		}
	}
	return false
}

func (b *Binary) isMorestack(addr uint64) bool {
	for _, a := range b.morestack {
		if a == addr {
			return true
		}
	}
	return false
}

// branchTargets returns where the function's direct branches go.
func branchTargets(code []insn) map[uint64]bool {
	t := make(map[uint64]bool)
	for i := range code {
		if in := &code[i]; in.op == opJcc || in.op == opJmp {
			t[in.target] = true
		}
	}
	return t
}

// written reports whether any of set changes in straight-line code.
func written(code []insn, set RegSet) bool {
	for i := range code {
		if code[i].writes&set != 0 {
			return true
		}
	}
	return false
}

// indexOf finds the instruction at addr.
func indexOf(code []insn, addr uint64) (int, bool) {
	lo, hi := 0, len(code)
	for lo < hi {
		m := (lo + hi) / 2
		if code[m].addr < addr {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo, lo < len(code) && code[lo].addr == addr
}

// loadRuntime finds the runtime's functions that rules about code refer to.
func (b *Binary) loadRuntime() {
	for _, name := range []string{"runtime.morestack_noctxt", "runtime.morestack", "runtime.morestackc"} {
		for _, f := range b.lookupAll(name) {
			b.morestack = append(b.morestack, f.Addr)
		}
	}
	for i := range 9 {
		name := "runtime.gcWriteBarrier"
		if i > 0 {
			name += strconv.Itoa(i)
		}
		for _, f := range b.lookupAll(name) {
			b.barriers = append(b.barriers, f.Addr)
		}
	}
}

func (s Site) String() string {
	how := "stepped"
	if s.Emulated {
		how = "emulated"
	}
	return fmt.Sprintf("%s at %#x: %s (%s; %s)", s.Func, s.Addr, s.Instr, how, s.Rule)
}

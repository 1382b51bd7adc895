package gobin

import (
	"fmt"
)

// Reg is a general-purpose register by its number in machine code: on amd64
// AX 0, CX 1, DX 2, BX 3, SP 4, BP 5, SI 6, DI 7, R8 to R15; on arm64 R0 to R30,
// and 31 for SP.
type Reg uint8

// NoReg stands for no register.
const NoReg Reg = 0xff

// RegSet is a set of registers, one bit each.
type RegSet uint32

// Has reports whether r is in the set.
func (s RegSet) Has(r Reg) bool { return r < 32 && s>>r&1 != 0 }

func regs(list ...Reg) (s RegSet) {
	for _, r := range list {
		s |= 1 << r
	}
	return s
}

const allRegs = ^RegSet(0)

// isa is what differs between architectures.
type isa struct {
	args    []Reg // integer argument and result registers of Go's ABIInternal, in order
	context Reg   // the closure
	g       Reg   // the goroutine
	sp      Reg
	names   []string
	decode  func(addr uint64, code []byte) insn
}

func (a Arch) isa() *isa {
	if a == ARM64 {
		return &arm64ISA
	}
	return &amd64ISA
}

// ArgRegs returns the registers that hold a Go function's first integer
// arguments on entry, and its first results on return, in order (ABIInternal).
func (a Arch) ArgRegs() []Reg { return a.isa().args }

// RegName returns the name that Go's assembler has for r.
func (a Arch) RegName(r Reg) string {
	if names := a.isa().names; int(r) < len(names) {
		return names[r]
	}
	return "none"
}

// argSet returns the registers that hold arguments, or the closure, on entry.
func (i *isa) argSet() RegSet { return regs(i.args...) | regs(i.context) }

// op is what an instruction does to the flow of control.
type op uint8

const (
	opOther op = iota
	opJcc
	opJmp
	opJmpInd
	opCall
	opCallInd
	opRet
	opPush
	opNop
	opTrap // undefined or breakpoint: execution never goes on
	opBad  // not decoded
)

// move tells where a plain copy of a whole register or stack word goes.
type move uint8

const (
	moveNone  move = iota
	moveReg        // reg → dst
	moveStore      // reg → [SP+disp]
	moveLoad       // [SP+disp] → dst
	moveClear      // something else is stored in [SP+disp, SP+disp+size)
	moveSP         // SP += disp
)

// Cond is the condition of a conditional branch.
type Cond string

// Conditions. The first two are those of a stack check: the program that runs
// at such a branch must do nothing when it holds, because the function starts
// again with a larger stack.
const (
	CondBE   Cond = "CF|ZF"        // amd64 JBE: unsigned below or equal
	CondLS   Cond = "C==0||Z==1"   // arm64 B.LS
	CondB    Cond = "CF"           // amd64 JB
	CondLO   Cond = "C==0"         // arm64 B.LO
	CondE    Cond = "ZF"           // amd64 JE
	CondNE   Cond = "!ZF"          // amd64 JNE
	CondEQ   Cond = "Z==1"         // arm64 B.EQ
	CondNEQ  Cond = "Z==0"         // arm64 B.NE
	CondZ    Cond = "reg==0"       // arm64 CBZ
	CondNZ   Cond = "reg!=0"       // arm64 CBNZ
	CondOthr Cond = "another flag" // not told apart
)

// insn is a decoded instruction.
type insn struct {
	addr   uint64
	size   uint8
	op     op
	target uint64 // of a direct branch or call
	cond   Cond
	writes RegSet // registers whose value may change, but for calls

	move   move
	src    Reg
	dst    Reg
	disp   int64
	msize  int64 // bytes stored
	second Reg   // of a pair, stored at or loaded from disp+8; else NoReg
	tests  Reg   // register compared with zero, else NoReg
	flags  bool  // sets the flags

	emulated bool
}

func (in *insn) next() uint64 { return in.addr + uint64(in.size) }

// ends reports whether execution never reaches the following instruction.
func (in *insn) ends() bool {
	switch in.op {
	case opJmp, opJmpInd, opRet, opTrap, opBad:
		return true
	}
	return false
}

// maxCode bounds the function bodies that are decoded. The largest in the
// standard library has 60 KB.
const maxCode = 1 << 18

// decode decodes a function from its entry: where data looks like code, as
// arm64's literal pools, or an instruction is unknown, it says opBad.
func (b *Binary) decode(fn *Func) ([]insn, error) {
	n := fn.End - fn.Addr
	if fn.End <= fn.Addr || n > maxCode {
		return nil, &SiteError{fn.Name, fmt.Sprintf("its code of %d bytes is too large", n)}
	}
	code := make([]byte, n)
	v := b.view()
	if !v.read(fn.Addr, code) {
		if v.err != nil {
			return nil, fmt.Errorf("read the code of %s: %w", fn.Name, v.err)
		}
		return nil, &SiteError{fn.Name, "its code is not in the file"}
	}
	decode := b.img.arch.isa().decode
	list := make([]insn, 0, n/4)
	for i := uint64(0); i < n; {
		in := decode(fn.Addr+i, code[i:])
		if in.size == 0 || uint64(in.size) > n-i {
			break
		}
		list = append(list, in)
		i += uint64(in.size)
		if in.op == opBad && b.img.arch == AMD64 {
			break // no way to find the next instruction
		}
	}
	return list, nil
}

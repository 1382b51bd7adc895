package gobin

import (
	"golang.org/x/arch/x86/x86asm"
)

var amd64ISA = isa{
	args:    []Reg{0, 3, 1, 7, 6, 8, 9, 10, 11}, // AX BX CX DI SI R8 R9 R10 R11
	context: 2,                                  // DX
	g:       14,
	sp:      4,
	names: []string{"AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI",
		"R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"},
	decode: decodeX86,
}

const (
	x86AX, x86CX, x86DX, x86BX = Reg(0), Reg(1), Reg(2), Reg(3)
	x86SP, x86BP, x86SI, x86DI = Reg(4), Reg(5), Reg(6), Reg(7)
	x86R11                     = Reg(11)
)

func decodeX86(addr uint64, code []byte) insn {
	in := insn{addr: addr, src: NoReg, dst: NoReg, second: NoReg, tests: NoReg}
	x, err := x86asm.Decode(code[:min(len(code), 15)], 64)
	if err != nil || x.Len <= 0 {
		in.op, in.size, in.writes = opBad, 1, allRegs
		return in
	}
	in.size = uint8(x.Len)
	in.op, in.cond = x86Flow(&x)
	if rel, ok := x.Args[0].(x86asm.Rel); ok {
		in.target = in.next() + uint64(int64(rel))
	}
	in.emulated = x86Emulated(code[:x.Len])
	in.writes = x86Writes(&x)
	in.flags = !x86KeepsFlags[x.Op]
	x86Move(&x, &in)
	x86Compare(&x, &in)
	return in
}

// x86Text returns an instruction in the syntax of Go's assembler.
func x86Text(addr uint64, code []byte) string {
	x, err := x86asm.Decode(code[:min(len(code), 15)], 64)
	if err != nil {
		return "?"
	}
	return x86asm.GoSyntax(x, addr, nil)
}

func x86Flow(x *x86asm.Inst) (op, Cond) {
	_, direct := x.Args[0].(x86asm.Rel)
	switch x.Op {
	case x86asm.CALL:
		if direct {
			return opCall, ""
		}
		return opCallInd, ""
	case x86asm.JMP:
		if direct {
			return opJmp, ""
		}
		return opJmpInd, ""
	case x86asm.RET, x86asm.LRET, x86asm.IRET, x86asm.IRETD, x86asm.IRETQ:
		return opRet, ""
	case x86asm.PUSH:
		return opPush, ""
	case x86asm.NOP:
		return opNop, ""
	case x86asm.UD1, x86asm.UD2, x86asm.INT, x86asm.HLT:
		return opTrap, ""
	case x86asm.JBE:
		return opJcc, CondBE
	case x86asm.JB:
		return opJcc, CondB
	case x86asm.JE:
		return opJcc, CondE
	case x86asm.JNE:
		return opJcc, CondNE
	}
	if direct { // all other conditional branches, LOOP and JCXZ included
		return opJcc, CondOthr
	}
	return opOther, ""
}

// x86Emulated reports whether the kernel's uprobes emulate the instruction
// instead of single-stepping a copy (branch_setup_xol_ops and
// push_setup_xol_ops in arch/x86/kernel/uprobes.c, the same since 5.10).
// Multi-byte NOPs are emulated by the newest kernels only, so they count as
// stepped, and so do branches with prefixes, which the kernel refuses.
func x86Emulated(code []byte) bool {
	c := code[0]
	switch {
	case c == 0xe8, c == 0xe9, c == 0xeb, c == 0x90, c >= 0x70 && c <= 0x7f, c >= 0x50 && c <= 0x57:
		return true
	case c == 0x0f:
		return len(code) > 1 && code[1] >= 0x80 && code[1] <= 0x8f
	case c == 0x41:
		return len(code) == 2 && code[1] >= 0x50 && code[1] <= 0x57
	}
	return false
}

// x86Reg maps a register of any width to its number.
func x86Reg(a x86asm.Arg) (Reg, bool) {
	r, ok := a.(x86asm.Reg)
	switch {
	case !ok:
		return NoReg, false
	case r >= x86asm.AL && r <= x86asm.BL:
		return Reg(r - x86asm.AL), true
	case r >= x86asm.AH && r <= x86asm.BH:
		return Reg(r - x86asm.AH), true
	case r >= x86asm.SPB && r <= x86asm.R15B:
		return Reg(r-x86asm.SPB) + x86SP, true
	case r >= x86asm.AX && r <= x86asm.R15W:
		return Reg(r - x86asm.AX), true
	case r >= x86asm.EAX && r <= x86asm.R15L:
		return Reg(r - x86asm.EAX), true
	case r >= x86asm.RAX && r <= x86asm.R15:
		return Reg(r - x86asm.RAX), true
	}
	return NoReg, false
}

// x86Reg64 maps a 64-bit register only.
func x86Reg64(a x86asm.Arg) (Reg, bool) {
	if r, ok := a.(x86asm.Reg); ok && r >= x86asm.RAX && r <= x86asm.R15 {
		return Reg(r - x86asm.RAX), true
	}
	return NoReg, false
}

// x86NoDest are the instructions whose first operand is only read.
var x86NoDest = map[x86asm.Op]bool{
	x86asm.CMP: true, x86asm.TEST: true, x86asm.BT: true, x86asm.PUSH: true, x86asm.NOP: true,
	x86asm.UCOMISS: true, x86asm.UCOMISD: true, x86asm.COMISS: true, x86asm.COMISD: true,
	x86asm.PTEST: true, x86asm.MUL: true, x86asm.DIV: true, x86asm.IDIV: true,
	x86asm.PREFETCHNTA: true, x86asm.PREFETCHT0: true, x86asm.PREFETCHT1: true, x86asm.PREFETCHT2: true, x86asm.PREFETCHW: true,
}

// x86Implicit are registers that an instruction writes without naming them.
var x86Implicit = map[x86asm.Op]RegSet{
	x86asm.MUL: regs(x86AX, x86DX), x86asm.DIV: regs(x86AX, x86DX), x86asm.IDIV: regs(x86AX, x86DX),
	x86asm.CBW: regs(x86AX), x86asm.CWDE: regs(x86AX), x86asm.CDQE: regs(x86AX),
	x86asm.CWD: regs(x86DX), x86asm.CDQ: regs(x86DX), x86asm.CQO: regs(x86DX),
	x86asm.CPUID: regs(x86AX, x86BX, x86CX, x86DX), x86asm.RDTSC: regs(x86AX, x86DX),
	x86asm.RDTSCP: regs(x86AX, x86CX, x86DX), x86asm.XGETBV: regs(x86AX, x86DX), x86asm.RDPMC: regs(x86AX, x86DX),
	x86asm.CMPXCHG: regs(x86AX), x86asm.CMPXCHG8B: regs(x86AX, x86DX), x86asm.CMPXCHG16B: regs(x86AX, x86DX),
	x86asm.LAHF: regs(x86AX), x86asm.XLATB: regs(x86AX), x86asm.SYSCALL: regs(x86AX, x86CX, x86R11),
	x86asm.LODSB: regs(x86AX, x86CX, x86SI), x86asm.LODSW: regs(x86AX, x86CX, x86SI),
	x86asm.LODSD: regs(x86AX, x86CX, x86SI), x86asm.LODSQ: regs(x86AX, x86CX, x86SI),
	x86asm.STOSB: regs(x86CX, x86DI), x86asm.STOSW: regs(x86CX, x86DI), x86asm.STOSD: regs(x86CX, x86DI), x86asm.STOSQ: regs(x86CX, x86DI),
	x86asm.MOVSB: regs(x86CX, x86SI, x86DI), x86asm.MOVSW: regs(x86CX, x86SI, x86DI),
	x86asm.MOVSD: regs(x86CX, x86SI, x86DI), x86asm.MOVSQ: regs(x86CX, x86SI, x86DI),
	x86asm.CMPSB: regs(x86CX, x86SI, x86DI), x86asm.CMPSW: regs(x86CX, x86SI, x86DI),
	x86asm.CMPSD: regs(x86CX, x86SI, x86DI), x86asm.CMPSQ: regs(x86CX, x86SI, x86DI),
	x86asm.SCASB: regs(x86CX, x86DI), x86asm.SCASW: regs(x86CX, x86DI), x86asm.SCASD: regs(x86CX, x86DI), x86asm.SCASQ: regs(x86CX, x86DI),
	x86asm.PCMPESTRI: regs(x86CX), x86asm.PCMPISTRI: regs(x86CX), x86asm.LEAVE: regs(x86SP, x86BP),
	x86asm.LOOP: regs(x86CX), x86asm.LOOPE: regs(x86CX), x86asm.LOOPNE: regs(x86CX),
	x86asm.PUSH: regs(x86SP), x86asm.POP: regs(x86SP),
}

func x86Writes(x *x86asm.Inst) RegSet {
	set := x86Implicit[x.Op]
	if x.Op == x86asm.IMUL && x.Args[1] == nil {
		return set | regs(x86AX, x86DX)
	}
	all := x.Op == x86asm.XCHG || x.Op == x86asm.XADD
	for _, p := range x.Prefix {
		all = all || p.IsVEX() || p.IsEVEX() // some, as MULX, write two; no matter which
	}
	for i, a := range x.Args {
		if a == nil {
			break
		}
		if i == 0 && x86NoDest[x.Op] || i > 0 && !all {
			continue
		}
		if r, ok := x86Reg(a); ok {
			set |= regs(r)
		}
	}
	return set
}

// x86KeepsFlags are the instructions that Go's compiler puts between a
// comparison and its branch; all others count as changing the flags.
var x86KeepsFlags = map[x86asm.Op]bool{
	x86asm.MOV: true, x86asm.MOVZX: true, x86asm.MOVSX: true, x86asm.MOVSXD: true, x86asm.LEA: true,
	x86asm.MOVUPS: true, x86asm.MOVUPD: true, x86asm.MOVSS: true, x86asm.MOVSD_XMM: true, x86asm.MOVDQU: true,
	x86asm.XCHG: true, x86asm.NOP: true, x86asm.PUSH: true, x86asm.POP: true,
	x86asm.JE: true, x86asm.JNE: true, x86asm.JBE: true, x86asm.JB: true, x86asm.JAE: true, x86asm.JA: true,
	x86asm.JL: true, x86asm.JLE: true, x86asm.JG: true, x86asm.JGE: true, x86asm.JS: true, x86asm.JNS: true,
	x86asm.JP: true, x86asm.JNP: true, x86asm.JO: true, x86asm.JNO: true, x86asm.JMP: true,
	x86asm.SETE: true, x86asm.SETNE: true, x86asm.CMOVE: true, x86asm.CMOVNE: true,
}

// x86Stack returns the displacement of an operand [SP+disp].
func x86Stack(a x86asm.Arg) (disp int64, isStack, indexed bool) {
	m, ok := a.(x86asm.Mem)
	if !ok || m.Base != x86asm.RSP || m.Segment != 0 {
		return 0, false, false
	}
	return m.Disp, true, m.Index != 0
}

func x86Move(x *x86asm.Inst, in *insn) {
	imm, isImm := x.Args[1].(x86asm.Imm)
	dst, dst64 := x86Reg64(x.Args[0])
	switch {
	case x.Op == x86asm.PUSH:
		in.move, in.disp = moveSP, -8
		return
	case x.Op == x86asm.POP:
		in.move, in.disp = moveSP, 8
		return
	case x.Op == x86asm.ADD && dst64 && dst == x86SP && isImm:
		in.move, in.disp = moveSP, int64(imm)
		return
	case x.Op == x86asm.SUB && dst64 && dst == x86SP && isImm:
		in.move, in.disp = moveSP, -int64(imm)
		return
	case x.Op == x86asm.LEA && dst64 && dst == x86SP:
		if disp, ok, indexed := x86Stack(x.Args[1]); ok && !indexed {
			in.move, in.disp = moveSP, disp
		}
		return
	case x.Op == x86asm.MOV && dst64:
		if src, ok := x86Reg64(x.Args[1]); ok {
			in.move, in.src, in.dst = moveReg, src, dst
			return
		}
		if disp, ok, indexed := x86Stack(x.Args[1]); ok && !indexed {
			in.move, in.dst, in.disp = moveLoad, dst, disp
		}
		return
	}
	disp, ok, indexed := x86Stack(x.Args[0])
	if !ok || x86NoDest[x.Op] {
		return
	}
	in.move, in.disp, in.msize = moveClear, disp, int64(x.MemBytes)
	if indexed || x.MemBytes <= 0 {
		in.disp, in.msize = -1<<40, 1<<41 // anywhere
		return
	}
	if src, ok := x86Reg64(x.Args[1]); ok && x.Op == x86asm.MOV {
		in.move, in.src = moveStore, src
	}
}

// x86Compare recognizes TEST r, r and CMP r, $0 of any width.
func x86Compare(x *x86asm.Inst, in *insn) {
	a, ok := x86Reg(x.Args[0])
	if !ok {
		return
	}
	switch x.Op {
	case x86asm.TEST:
		if b, ok := x86Reg(x.Args[1]); ok && a == b {
			in.tests = a
		}
	case x86asm.CMP:
		if imm, ok := x.Args[1].(x86asm.Imm); ok && imm == 0 {
			in.tests = a
		}
	}
}

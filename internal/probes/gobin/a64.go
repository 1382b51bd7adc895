package gobin

import (
	"encoding/binary"

	"golang.org/x/arch/arm64/arm64asm"
)

var arm64ISA = isa{
	args:    []Reg{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
	context: 26,
	g:       28,
	sp:      a64SP,
	names: []string{"R0", "R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
		"R16", "R17", "R18", "R19", "R20", "R21", "R22", "R23", "R24", "R25", "R26", "R27", "g", "R29", "R30", "RSP"},
	decode: decodeA64,
}

const a64SP = Reg(31)

// decodeA64 decodes by the encoding's own groups, which tell the registers
// written even of instructions that arm64asm does not know (newer atomics).
func decodeA64(addr uint64, code []byte) insn {
	in := insn{addr: addr, src: NoReg, dst: NoReg, second: NoReg, tests: NoReg}
	if len(code) < 4 {
		in.size, in.op, in.writes = uint8(len(code)), opBad, allRegs
		return in
	}
	in.size = 4
	w := binary.LittleEndian.Uint32(code)
	rd := Reg(w & 31)
	switch {
	case a64Branch(w, &in):
	case w>>26&7 == 4: // data processing, immediate
		a64Immediate(w, &in)
	case w>>25&7 == 5: // data processing, register
		in.writes = gpr(rd)
		in.flags = w&0x1f000000 == 0x0b000000 && w>>29&1 == 1 || w&0x7f000000 == 0x6a000000 || w>>21&0xff == 0xd2
		switch {
		case w&0xffe0ffe0 == 0xaa0003e0: // ORR Xd, XZR, Xm
			in.move, in.dst, in.src = moveReg, rd, Reg(w>>16&31)
		case w&0xffe0fc1f == 0xea00001f && w>>16&31 == w>>5&31: // ANDS XZR, Xn, Xn
			in.tests = Reg(w >> 5 & 31)
		}
	case w>>25&7 == 7: // floating point and SIMD: some write a general register
		in.writes = gpr(rd)
		in.flags = w&0xff20fc07 == 0x1e202000
	case w>>27&1 == 1 && w>>25&1 == 0:
		a64LoadStore(w, &in)
	case w>>16 == 0: // UDF
		in.op = opTrap
	default:
		in.op, in.writes, in.flags = opBad, allRegs, true
	}
	return in
}

// gpr is the set of one register, where 31 is the zero register.
func gpr(r Reg) RegSet {
	if r == 31 {
		return 0
	}
	return regs(r)
}

func a64Text(code []byte) string {
	x, err := arm64asm.Decode(code)
	if err != nil {
		return "?"
	}
	return arm64asm.GoSyntax(x, 0, nil, nil)
}

func signExtend(v uint32, bits uint) int64 { return int64(int32(v<<(32-bits)) >> (32 - bits)) }

// a64Branch decodes branches, exceptions and hints. The kernel simulates
// B, BL, B.cond, CBZ, TBZ, BR, BLR, RET, ADR, ADRP and LDR (literal) for uprobes
// (arch/arm64/kernel/probes/decode-insn.c, since 4.10).
func a64Branch(w uint32, in *insn) bool {
	if w>>26&7 != 5 {
		return false
	}
	rel := int64(0)
	switch {
	case w>>26 == 0x05, w>>26 == 0x25: // B, BL
		in.op, rel = opJmp, signExtend(w&(1<<26-1), 26)
		if w>>31 == 1 {
			in.op, in.writes = opCall, gpr(30)
		}
	case w>>24 == 0x54: // B.cond
		in.op, rel, in.cond = opJcc, signExtend(w>>5&(1<<19-1), 19), a64Cond(w&15)
	case w>>25&0x3f == 0x1a: // CBZ, CBNZ
		in.op, rel, in.cond = opJcc, signExtend(w>>5&(1<<19-1), 19), CondZ
		if w>>24&1 == 1 {
			in.cond = CondNZ
		}
		if w>>31 == 1 {
			in.tests = Reg(w & 31)
		}
	case w>>25&0x3f == 0x1b: // TBZ, TBNZ
		in.op, rel, in.cond = opJcc, signExtend(w>>5&(1<<14-1), 14), CondOthr
	case w&0xfffffc1f == 0xd61f0000:
		in.op = opJmpInd
	case w&0xfffffc1f == 0xd63f0000:
		in.op, in.writes = opCallInd, gpr(30)
	case w&0xfffffc1f == 0xd65f0000:
		in.op = opRet
	case w>>24 == 0xd4: // BRK, HLT; SVC returns
		in.op = opTrap
		if w&0xffe0001f == 0xd4000001 {
			in.op, in.writes = opOther, allRegs
		}
		return true
	case w == 0xd503201f:
		in.op = opNop
		return true
	case w>>22 == 0x354: // system: MRS writes Rt; MSR, hints and barriers do not, no matter
		in.writes, in.flags = gpr(Reg(w&31)), true
		return true
	default:
		in.op, in.writes, in.flags = opBad, allRegs, true
		return true
	}
	in.emulated = true
	if rel != 0 || in.op == opJmp || in.op == opJcc || in.op == opCall {
		in.target = in.addr + uint64(rel*4)
	}
	return true
}

func a64Cond(c uint32) Cond {
	switch c {
	case 0:
		return CondEQ
	case 1:
		return CondNEQ
	case 3:
		return CondLO
	case 9:
		return CondLS
	}
	return CondOthr
}

func a64Immediate(w uint32, in *insn) {
	rd, rn := Reg(w&31), Reg(w>>5&31)
	in.writes = gpr(rd)
	in.emulated = w>>24&0x1f == 0x10 // ADR, ADRP
	switch {
	case w>>23&0x3f == 0x22: // ADD, SUB
		imm := int64(w >> 10 & 0xfff)
		if w>>22&1 == 1 {
			imm <<= 12
		}
		sub, sets := w>>30&1 == 1, w>>29&1 == 1
		in.flags = sets
		switch {
		case sets && rd == 31: // CMP, CMN
			if sub && imm == 0 && w>>31 == 1 && rn != a64SP {
				in.tests = rn
			}
		case !sets && rd == a64SP:
			in.writes = regs(a64SP)
			if rn == a64SP {
				in.move, in.disp = moveSP, imm
				if sub {
					in.disp = -imm
				}
			}
		case !sets && imm == 0 && w>>31 == 1 && rn != a64SP: // MOV through ADD
			in.move, in.dst, in.src = moveReg, rd, rn
		}
	case w>>23&0x3f == 0x24 && w>>29&3 == 3: // ANDS
		in.flags = true
	}
}

// a64LoadStore decodes loads and stores. What is not told apart counts as
// writing every register that it names.
func a64LoadStore(w uint32, in *insn) {
	rt, rn, rt2, rs := Reg(w&31), Reg(w>>5&31), Reg(w>>10&31), Reg(w>>16&31)
	simd := w>>26&1 == 1
	switch {
	case w>>27&7 == 5: // pair
		mode, load := w>>23&3, w>>22&1 == 1
		scale := uint(2) + uint(w>>31)
		if simd {
			scale = 2 + uint(w>>30)
		}
		disp := signExtend(w>>15&0x7f, 7) << scale
		if load && !simd {
			in.writes = gpr(rt) | gpr(rt2)
		}
		whole := !simd && w>>30 == 2
		a64Stack(in, rt, rt2, rn, disp, 2<<scale, load, whole, mode&1 == 1)
	case w>>27&7 == 7 && w>>24&3 == 1, // unsigned offset
		w>>27&7 == 7 && w>>24&3 == 0 && w>>21&1 == 0: // 9-bit offset
		size, opc := w>>30, w>>22&3
		load := opc != 0 && !simd || simd && opc&1 == 1
		scale := uint(size)
		if simd && opc >= 2 {
			scale = 4
		}
		disp, writeback := int64(w>>10&0xfff)<<scale, false
		if w>>24&3 == 0 {
			disp, writeback = signExtend(w>>12&0x1ff, 9), w>>10&1 == 1
		}
		if load && !simd {
			in.writes = gpr(rt)
		}
		whole := !simd && size == 3 && opc < 2
		a64Stack(in, rt, NoReg, rn, disp, 1<<scale, load, whole, writeback)
	case w>>27&7 == 7 && w>>24&3 == 0 && w>>10&3 == 2: // register offset
		if w>>22&3 != 0 && !simd {
			in.writes = gpr(rt)
		} else if rn == a64SP {
			in.move, in.disp, in.msize = moveClear, -1<<40, 1<<41
		}
	case w>>27&7 == 3 && w>>24&3 == 0: // literal
		in.emulated = !simd && w>>30 != 3
		if !simd {
			in.writes = gpr(rt)
		}
	default: // exclusives, atomics, SIMD structures
		in.writes = gpr(rt) | gpr(rt2) | gpr(rs) | gpr(rn)
		if rn == a64SP {
			in.move, in.disp, in.msize = moveClear, -1<<40, 1<<41
		}
	}
}

// a64Stack fills in what a load or store does to the stack frame.
func a64Stack(in *insn, rt, rt2, rn Reg, disp, size int64, load, whole, writeback bool) {
	if writeback {
		if rn != a64SP {
			in.writes |= gpr(rn)
			return
		}
		// Only prologues and epilogues do this, with the link register.
		in.writes |= regs(a64SP)
		in.move, in.disp = moveSP, disp
		return
	}
	if rn != a64SP {
		return
	}
	in.disp, in.msize, in.second = disp, size, rt2
	switch {
	case load && whole:
		in.move, in.dst = moveLoad, rt
	case load:
	case whole:
		in.move, in.src = moveStore, rt
	default:
		in.move = moveClear
	}
}

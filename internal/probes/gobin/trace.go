package gobin

// lost marks a place that holds none of the traced values.
const lost = int8(-1)

// trace follows the results of a call along one path of instructions: which
// registers and stack slots hold them. Values are the indices of the result
// registers. What an instruction may change counts as changed, but for stores
// through pointers: Go's compiler does not take the address of a spill slot.
type trace struct {
	isa   *isa
	regs  [32]int8
	slots map[int64]int8 // by offset from the stack pointer at the call
	sp    int64          // stack pointer, relative to that
	spOK  bool
}

// newTrace returns the state right after the call.
func newTrace(i *isa) *trace {
	t := &trace{isa: i, slots: make(map[int64]int8), spOK: true}
	t.clearRegs(allRegs)
	for k, r := range i.args {
		t.regs[r] = int8(k)
	}
	return t
}

func (t *trace) clearRegs(set RegSet) {
	for r := range t.regs {
		if set.Has(Reg(r)) {
			t.regs[r] = lost
		}
	}
}

func (t *trace) clearSlots(from, size int64) {
	for off := range t.slots {
		if off < from+size && off+8 > from {
			delete(t.slots, off)
		}
	}
}

func (t *trace) store(off int64, v int8) {
	t.clearSlots(off, 8)
	if v != lost && t.spOK {
		t.slots[off] = v
	}
}

func (t *trace) load(off int64) int8 {
	if v, ok := t.slots[off]; ok && t.spOK {
		return v
	}
	return lost
}

func (t *trace) step(in *insn, b *Binary) {
	switch in.op {
	case opCall, opCallInd:
		set := allRegs
		if in.op == opCall && b.isWriteBarrier(in.target) {
			set = b.barrierWrites()
		}
		t.clearRegs(set &^ regs(t.isa.sp))
		return
	case opBad:
		t.spOK = false
		t.clearRegs(allRegs)
		return
	}
	at := t.sp + in.disp
	switch in.move {
	case moveReg:
		v := t.regs[in.src]
		t.clearRegs(in.writes)
		t.regs[in.dst] = v
	case moveStore:
		t.store(at, t.regs[in.src])
		if in.second != NoReg {
			t.store(at+8, t.regs[in.second])
		}
	case moveLoad:
		v, v2 := t.load(at), t.load(at+8)
		t.clearRegs(in.writes)
		t.regs[in.dst] = v
		if in.second != NoReg {
			t.regs[in.second] = v2
		}
	case moveClear:
		t.clearSlots(at, in.msize)
		t.clearRegs(in.writes)
	case moveSP:
		if in.disp < 0 {
			t.clearSlots(t.sp+in.disp, -in.disp) // pushed over
		} else {
			t.clearSlots(t.sp, in.disp) // popped: a signal handler may write there
		}
		t.sp += in.disp
		t.clearRegs(in.writes)
	default:
		if in.writes.Has(t.isa.sp) {
			t.spOK = false
		}
		t.clearRegs(in.writes)
	}
}

// where returns each value's place: its own register if it is there, else
// another, else the stack.
func (t *trace) where() []Loc {
	locs := make([]Loc, len(t.isa.args))
	for k, own := range t.isa.args {
		l := &locs[k]
		if t.regs[own] == int8(k) {
			l.InReg, l.Reg = true, own
		}
		for r := range t.regs {
			if !l.InReg && t.regs[r] == int8(k) {
				l.InReg, l.Reg = true, Reg(r)
			}
		}
		if !t.spOK {
			continue
		}
		for off, v := range t.slots {
			if v == int8(k) && (!l.InStack || off-t.sp < l.Offset) {
				l.InStack, l.Offset = true, off-t.sp
			}
		}
	}
	return locs
}

// isWriteBarrier reports whether a call goes to the runtime's write barrier,
// which keeps all registers but its own scratch ones.
func (b *Binary) isWriteBarrier(addr uint64) bool {
	for _, a := range b.barriers {
		if a == addr {
			return true
		}
	}
	return false
}

func (b *Binary) barrierWrites() RegSet {
	if b.img.arch == ARM64 {
		return regs(25, 27, 30)
	}
	return regs(x86R11)
}

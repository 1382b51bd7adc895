package bpf

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// TestLoops finds loops that Linux 5.10 refuses, without such a kernel: a loop may be
// closed there only by a jump, and not by an instruction that goes on to the next. Which
// of the two it is decides the compiler when it puts blocks in order.
func TestLoops(t *testing.T) {
	objects, err := filepath.Glob("agent_*.o")
	if err != nil || len(objects) == 0 {
		t.Fatalf("no object: %v", err)
	}
	for _, object := range objects {
		f, err := os.Open(object)
		if err != nil {
			t.Fatal(err)
		}
		spec, err := ebpf.LoadCollectionSpecFromReader(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for name, p := range spec.Programs {
			for _, loop := range fallenLoops(p.Instructions) {
				t.Errorf("%s: %s: %s", object, name, loop)
			}
		}
	}
}

// fallenLoops walks through a program as check_cfg of kernel/bpf/verifier.c does (Linux
// 5.10): depth first, what follows before what is jumped to.
func fallenLoops(program asm.Instructions) (found []string) {
	type edge struct {
		to   asm.RawInstructionOffset
		jump bool
	}
	const entered, left = 1, 2
	edges := map[asm.RawInstructionOffset][]edge{}
	lines := map[asm.RawInstructionOffset]string{}
	line := ""
	for at := program.Iterate(); at.Next(); {
		if s := at.Ins.Source(); s != nil {
			line = s.String()
		}
		lines[at.Offset] = line
		next := at.Offset + asm.RawInstructionOffset(at.Ins.Size()/asm.InstructionSize)
		target := next + asm.RawInstructionOffset(at.Ins.Offset)
		switch op := at.Ins.OpCode.JumpOp(); {
		case op == asm.Exit:
		case op == asm.InvalidJumpOp, op == asm.Call:
			edges[at.Offset] = []edge{{next, false}}
		case op == asm.Ja:
			edges[at.Offset] = []edge{{target, true}}
		default:
			edges[at.Offset] = []edge{{next, true}, {target, true}}
		}
	}
	state := map[asm.RawInstructionOffset]int{0: entered}
	for path := []asm.RawInstructionOffset{0}; len(path) > 0; {
		from := path[len(path)-1]
		if len(edges[from]) == 0 {
			state[from], path = left, path[:len(path)-1]
			continue
		}
		e := edges[from][0]
		edges[from] = edges[from][1:]
		switch {
		case state[e.to] == 0:
			state[e.to], path = entered, append(path, e.to)
		case state[e.to] == entered && !e.jump:
			found = append(found, fmt.Sprintf("instruction %d runs back into %d: %s", from, e.to, lines[from]))
		}
	}
	return found
}

package probes

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// privateStacks is the release of Linux from which on a program of type kprobe may get a
// stack that its runs on one CPU share.
const privateStacks = 6<<16 | 13<<8

// withoutPrivateStacks has each uprobe run on the stack of the thread that it interrupts.
//
// From 6.13 on (arm64: 6.17) the kernel gives large programs of type kprobe a stack for each
// CPU. A kprobe cannot be preempted there by another; a uprobe can, by another thread that
// runs the same program, where the kernel is preemptible (PREEMPT_LAZY is its default since):
// then each finds the other's values on its stack. A program with a tail call is left
// on the thread's stack. The one here is behind a branch that is never taken: the verifier
// takes it out.
func withoutPrivateStacks(spec *ebpf.CollectionSpec) error {
	if version, err := features.LinuxVersionCode(); err != nil || version < privateStacks {
		return err
	}
	for name, p := range spec.Programs {
		if p.Type != ebpf.Kprobe {
			continue
		}
		first := p.Instructions[0]
		if first.Reference() != "" || first.Map() != nil {
			return fmt.Errorf("BPF program %s begins with a reference, which cannot be moved", name)
		}
		begin := asm.Mov.Imm(asm.R0, 0)
		begin.Metadata = first.Metadata // that of the function
		never := asm.JEq.Imm(asm.R0, 0, "")
		never.Offset = 1
		first.Metadata = asm.Metadata{}
		p.Instructions = append(asm.Instructions{begin, never, asm.FnTailCall.Call(), first}, p.Instructions[1:]...)
	}
	return nil
}

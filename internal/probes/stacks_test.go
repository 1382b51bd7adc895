package probes

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"

	"github.com/plainframework/agent/bpf"
)

// isTailCall tells whether an instruction calls that helper.
func isTailCall(i asm.Instruction) bool {
	return i.IsBuiltinCall() && i.Constant == int64(asm.FnTailCall)
}

// TestWithoutPrivateStacks: where the kernel may give programs a stack of the CPU, each
// uprobe has a tail call, which the kernel removes.
func TestWithoutPrivateStacks(t *testing.T) {
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := bpf.LoadAgent()
	if err != nil {
		t.Fatal(err)
	}
	if err := bestMode().prepare(spec); err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		want := version >= privateStacks && p.Type == ebpf.Kprobe
		if got := isTailCall(p.Instructions[2]); got != want {
			t.Errorf("%s: a tail call behind the first branch: %t, want %t", name, got, want)
		}
		if p.Instructions.Name() == "" {
			t.Errorf("%s: the first instruction has lost its name", name)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to load a program")
	}
	const some = "nethttp_server_begin"
	loaded, err := ebpf.NewCollection(only(spec, some))
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	info, err := loaded.Programs[some].Info()
	if err != nil {
		t.Fatal(err)
	}
	translated, err := info.Instructions()
	if err != nil {
		t.Fatal(err)
	}
	if len(translated) < 100 {
		t.Fatalf("%d instructions of %s are read", len(translated), some)
	}
	for n, i := range translated {
		if isTailCall(i) {
			t.Errorf("%s: the tail call is still there, at instruction %d", some, n)
		}
	}
}

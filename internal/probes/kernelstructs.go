package probes

import (
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// kernelOffsets are places in structs of the running kernel.
type kernelOffsets struct {
	taskNsproxy, nsproxyNet uint32 // 0: unknown
}

// readKernelOffsets looks them up in the kernel's own description of its types. It takes
// a tenth of a second, so it runs beside the loading of the programs.
func readKernelOffsets() (o kernelOffsets, err error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return o, fmt.Errorf("read the kernel's types: %w", err)
	}
	task, err := kernelField(spec, "task_struct", "nsproxy")
	if err != nil {
		return o, err
	}
	net, err := kernelField(spec, "nsproxy", "net_ns")
	if err != nil {
		return o, err
	}
	return kernelOffsets{task, net}, nil
}

func kernelField(spec *btf.Spec, name, field string) (uint32, error) {
	var s *btf.Struct
	if err := spec.TypeByName(name, &s); err != nil {
		return 0, fmt.Errorf("find struct %s of the kernel: %w", name, err)
	}
	for _, m := range s.Members {
		if m.Name == field {
			return m.Offset.Bytes(), nil
		}
	}
	return 0, fmt.Errorf("find %s in struct %s of the kernel: there is none", field, name)
}

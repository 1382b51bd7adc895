package probes

import (
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// contractOf is a hash of everything that two agents must agree on to share maps: their
// sizes, the layout of keys, values and records, what numbers stand for, and the bounds
// of histograms.
func contractOf(spec *ebpf.CollectionSpec) (uint64, error) {
	h := fnv.New64a()
	for _, name := range pinnedMaps {
		m := spec.Maps[name]
		fmt.Fprintf(h, "%s %v %d %d %d %d ", name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
		writeLayout(h, m.Key, 0)
		writeLayout(h, m.Value, 0)
	}
	for _, m := range ownMaps {
		fmt.Fprintf(h, "%s %v %d %d %d %d\n", m.Name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
	}
	var named []string
	for t, err := range spec.Types.All() {
		if err != nil {
			return 0, fmt.Errorf("read types of the BPF object: %w", err)
		}
		var b strings.Builder
		switch t := t.(type) {
		case *btf.Enum:
			writeLayout(&b, t, 0)
		case *btf.Struct:
			if len(t.Members) > 0 && t.Members[0].Type.TypeName() == "record_header" {
				writeLayout(&b, t, 0)
			}
		}
		named = append(named, b.String())
	}
	slices.Sort(named) // the compiler's order means nothing
	for _, text := range slices.Compact(named) {
		io.WriteString(h, text)
	}
	for _, lib := range libraries {
		for _, m := range lib.metrics {
			fmt.Fprintln(h, m.kind, m.slot, m.bounds)
		}
	}
	return h.Sum64(), nil
}

// writeLayout writes how a type lies in memory. The depth is bounded for form's sake: the
// contract has no type that holds itself.
func writeLayout(w io.Writer, t btf.Type, depth int) {
	if depth > 16 {
		return
	}
	switch t := t.(type) {
	case *btf.Struct:
		fmt.Fprintf(w, "struct %s %d{", t.Name, t.Size)
		for _, m := range t.Members {
			fmt.Fprintf(w, "%s@%d ", m.Name, m.Offset)
			writeLayout(w, m.Type, depth+1)
		}
		io.WriteString(w, "}\n")
	case *btf.Enum:
		fmt.Fprintf(w, "enum %s %v\n", t.Name, t.Values)
	case *btf.Array:
		fmt.Fprintf(w, "[%d]", t.Nelems)
		writeLayout(w, t.Type, depth+1)
	case *btf.Typedef:
		writeLayout(w, t.Type, depth+1)
	case *btf.Int:
		fmt.Fprintf(w, "int%d ", t.Size)
	case nil:
	default:
		fmt.Fprintf(w, "%T ", t)
	}
}

package main

import (
	"flag"
	"fmt"
	"math/bits"
	"os"
	"sort"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/config"
)

var updateDocs = flag.Bool("update-docs", false, "write the generated tables into the documents")

// TestDocuments keeps the tables of the documents that say what the code says: each
// stands between two marks, and must be what is generated here.
func TestDocuments(t *testing.T) {
	tests := []struct {
		file, mark string
		table      func(*testing.T) string
	}{
		{"README.md", "settings", settingsTable},
		{"ARCHITECTURE.md", "memory", memoryTable},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			path := "../../" + tt.file
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			begin, end := "<!-- "+tt.mark+": generated -->\n", "<!-- "+tt.mark+": end -->\n"
			before, rest, found := strings.Cut(string(text), begin)
			have, after, closed := strings.Cut(rest, end)
			if !found || !closed {
				t.Fatalf("%s has no lines %q and %q", tt.file, begin, end)
			}
			want := tt.table(t)
			if have == want {
				return
			}
			if *updateDocs {
				if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("the table %q of %s is not what the code says%s\nto write it: go test ./cmd/agent -run TestDocuments -update-docs",
				tt.mark, tt.file, lineDiff(have, want))
		})
	}
}

// lineDiff lists the lines that only one of two texts has.
func lineDiff(have, want string) string {
	var b strings.Builder
	only := func(sign, in, notIn string) {
		other := map[string]bool{}
		for line := range strings.Lines(notIn) {
			other[line] = true
		}
		for line := range strings.Lines(in) {
			if !other[line] {
				b.WriteString("\n" + sign + strings.TrimSuffix(line, "\n"))
			}
		}
	}
	only("- ", have, want)
	only("+ ", want, have)
	return b.String()
}

// settingsTable is config.Settings for people.
func settingsTable(*testing.T) string {
	code := func(s string) string {
		if s == "" {
			return ""
		}
		return "`" + strings.ReplaceAll(s, "|", `\|`) + "`"
	}
	var b strings.Builder
	b.WriteString("| In the file | Variable | Flag | Default | Meaning |\n|---|---|---|---|---|\n")
	for _, s := range config.Settings {
		option := s.Flag
		if option != "" {
			option = "--" + option
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", code(s.Key), code(s.Env), code(option), code(s.Default()),
			strings.ReplaceAll(s.Help, "|", `\|`))
	}
	return b.String()
}

// memoryTable is what the BPF maps take with default settings, computed from the
// object that the agent loads. Maps of less than 64 KiB are summed up.
func memoryTable(t *testing.T) string {
	spec, err := bpf.LoadAgent()
	if err != nil {
		t.Fatal(err)
	}
	ways := len(bpf.AgentTableBucket{}.Entries)
	probes := config.Default().Probes
	// As internal/probes sizes them: a power of two of buckets.
	buckets := uint32(1) << bits.Len(uint((probes.MaxInFlight-1)/ways))
	spec.Maps["goroutine_table"].MaxEntries = buckets
	spec.Maps["context_table"].MaxEntries = buckets
	spec.Maps["goroutines"].MaxEntries = buckets * uint32(ways)
	spec.Maps["ring"].MaxEntries = uint32(probes.RingSize)

	type row struct {
		name           string
		entries, bytes int
	}
	var rows []row
	total, rest := 0, 0
	for name, m := range spec.Maps {
		if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "propagate_") { // constants; not by default
			continue
		}
		r := row{name, int(m.MaxEntries), int(m.ValueSize)}
		switch m.Type {
		case ebpf.RingBuf:
			r.bytes = 1
		case ebpf.Hash, ebpf.LRUHash:
			r.bytes += int(m.KeySize)
		case ebpf.Array:
		default: // such as a map with a copy for each CPU
			t.Errorf("map %s is a %s, which the document does not reckon with", name, m.Type)
		}
		if total += r.entries * r.bytes; r.entries*r.bytes < 64<<10 {
			rest += r.entries * r.bytes
			continue
		}
		rows = append(rows, r)
	}
	sort.Slice(rows, func(i, j int) bool {
		a, b := rows[i], rows[j]
		return a.entries*a.bytes > b.entries*b.bytes || a.entries*a.bytes == b.entries*b.bytes && a.name < b.name
	})
	const mib = 1 << 20
	var b strings.Builder
	b.WriteString("| Map | Entries | Bytes each | MiB |\n|---|--:|--:|--:|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| `%s` | %d | %d | %.1f |\n", r.name, r.entries, r.bytes, float64(r.entries*r.bytes)/mib)
	}
	fmt.Fprintf(&b, "| all others | | | %.1f |\n| **together** | | | **%.1f** |\n", float64(rest)/mib, float64(total)/mib)
	return b.String()
}

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/plainframework/agent/internal/probes"
)

// printDiagnosis writes a diagnosis for a person: the host, then each executable, and
// the sum; sites of probes only where they are asked for.
func printDiagnosis(w io.Writer, d *probes.Diagnosis, sites bool) error {
	var b strings.Builder
	b.WriteString("Host\n")
	printHost(&b, d.Host)
	for i := range d.Targets {
		b.WriteByte('\n')
		printTarget(&b, &d.Targets[i])
		printGroups(&b, d.Targets[i].Groups, sites)
	}
	b.WriteByte('\n')
	for _, reason := range slices.Sorted(maps.Keys(d.Others)) {
		fmt.Fprintf(&b, "%d of the other processes: %s\n", d.Others[reason], clean(reason))
	}
	fmt.Fprintf(&b, "%d of %d executables would be instrumented.\n", d.Instruments, len(d.Targets))
	_, err := io.WriteString(w, b.String())
	return err
}

func printHost(b *strings.Builder, checks []probes.Check) {
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for _, c := range checks {
		fmt.Fprintf(t, "  %s\t%s\t%s\n", c.State, c.Name, clean(c.Found))
		if c.Remedy != "" {
			fmt.Fprintf(t, "  \t\t→ %s\n", clean(c.Remedy))
		}
	}
	t.Flush()
}

func printTarget(b *strings.Builder, t *probes.TargetDiagnosis) {
	name := clean(t.Exe)
	switch n := len(t.PIDs); {
	case n > 5:
		name += fmt.Sprintf("  (pids %s and %d more)", list(t.PIDs[:5]), n-5)
	case n > 0:
		name += "  (pid " + list(t.PIDs) + ")"
	}
	b.WriteString(strings.TrimSpace(name) + "\n")
	fmt.Fprintf(b, "  %s", map[string]string{
		"instrumented": "would be instrumented", "partly": "would be instrumented, but not all of it", "refused": "would not be instrumented",
	}[t.State])
	if t.Reason != "" {
		b.WriteString(": " + clean(t.Reason))
	}
	b.WriteByte('\n')
	if t.Go == "" {
		return
	}
	facts := []string{"built with " + t.Go, t.Arch, "with symbols", "fixed addresses"}
	if t.Stripped {
		facts[2] = "stripped"
	}
	if t.PIE {
		facts[3] = "position independent"
	}
	if t.Module != "" {
		facts = append(facts, "module "+clean(t.Module))
	}
	b.WriteString("  " + strings.Join(facts, ", ") + "\n")
	for _, reason := range slices.Sorted(maps.Keys(t.NotSelected)) {
		fmt.Fprintf(b, "  settings   leave out pid %s: %s\n", list(t.NotSelected[reason]), reason)
	}
	for _, l := range t.Libraries {
		state := "covered"
		if !l.Covered {
			state = l.Note
		}
		fmt.Fprintf(b, "  library    %s: %s\n", named(l), state)
	}
	for _, l := range t.Telemetry {
		fmt.Fprintf(b, "  telemetry  %s: %s\n", named(l), l.Note)
	}
	for _, op := range t.Operations {
		fmt.Fprintf(b, "  cost       of a %s (%s): %s\n", op.Name, op.Library, op)
	}
}

// printGroups writes a line for each kind of operation and each probe that is missing, and
// for each probe site on request.
func printGroups(b *strings.Builder, groups []probes.GroupStatus, sites bool) {
	for _, g := range groups {
		fmt.Fprintf(b, "  %s %s: %s\n", g.Library, g.Group, map[string]string{"attached": "would be seen", "uncovered": "would not be seen"}[g.State])
		if g.Reason != "" {
			fmt.Fprintf(b, "    %s\n", clean(g.Reason))
		}
		t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
		for _, h := range g.Hooks {
			if h.Address == "" {
				fmt.Fprintf(t, "    %s\tmissing: %s\n", h.Program, clean(h.Reason))
				continue
			}
			if !sites {
				continue
			}
			how, rule := "stepped", h.Rule
			if h.Emulated {
				how = "emulated"
			}
			if h.While != "" {
				rule += "; only " + h.While
			}
			fmt.Fprintf(t, "    %s\t%s\t%s\t%s\t%s\t%s\n", h.Program, clean(h.Function), h.Address, clean(h.Instruction), how, rule)
		}
		t.Flush()
	}
}

func named(l probes.LibraryFound) string {
	if l.Version == "" {
		return l.Name
	}
	return l.Name + " " + clean(l.Version)
}

func list(pids []int) string {
	return strings.Trim(fmt.Sprint(pids), "[]")
}

// clean makes what comes from a program that is not trusted fit for a terminal: one line,
// without control characters, of a bounded length.
func clean(s string) string {
	const limit = 1000
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

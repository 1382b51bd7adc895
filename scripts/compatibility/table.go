package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// report prints the result, and writes it into the document if asked to. It returns
// whether the agent is ready for everything that was built.
func report(o options, results []result, libs []moduleResult) (ready bool, err error) {
	problems := 0
	for _, r := range results {
		problems += len(r.problems)
	}
	for _, r := range libs {
		problems += len(r.problems)
	}
	goTable, libTable := goSection(o, results), moduleSection(libs)
	fmt.Print(goTable, "\n", libTable)
	if o.docs != "" {
		sections := map[string]string{"go": goTable}
		if o.modules {
			sections["modules"] = libTable
		}
		if err := writeSections(o.docs, sections); err != nil {
			return false, err
		}
	}
	if problems > 0 {
		fmt.Printf("\nNot ready: %d problems in %d builds.\n", problems, len(results)+len(libs))
		return false, nil
	}
	fmt.Printf("\nReady: %d builds, no problem.\n", len(results)+len(libs))
	return true, nil
}

// goSection is the matrix of releases and ways to build, a table for each architecture.
func goSection(o options, results []result) string {
	var b strings.Builder
	notes := newNotes()
	for _, arch := range o.arches {
		writeTable(&b, arch, results, notes)
	}
	b.WriteString(notes.String())
	structs, fields, sites, spans := 0, 0, 0, 0
	for _, r := range results {
		structs, fields, sites, spans = structs+r.structs, fields+r.fields, sites+len(r.sites), spans+r.spans
	}
	fmt.Fprintf(&b, "\n%d builds: %d fields of %d structs compared with DWARF, %d probe sites", len(results), fields, structs, sites)
	if spans > 0 {
		fmt.Fprintf(&b, ", %d spans compared with their requests", spans)
	}
	b.WriteString(".\n")
	return b.String()
}

// writeTable writes one architecture's table: a row for each release, a column for each
// way to build. A cell is the number of probe sites.
func writeTable(b *strings.Builder, arch string, results []result, notes *notes) {
	cells := map[[2]string]string{}
	var releases, names []string
	for _, r := range results {
		if r.arch != arch {
			continue
		}
		cell := fmt.Sprint(len(r.sites))
		if r.spans > 0 {
			cell += " ✓"
		}
		if len(r.problems) > 0 {
			cell = "**fails**"
		}
		cells[[2]string{r.release, r.kind.name}] = cell + notes.of(r)
		if !slices.Contains(releases, r.release) {
			releases = append(releases, r.release)
		}
		if !slices.Contains(names, r.kind.name) {
			names = append(names, r.kind.name)
		}
	}
	if len(releases) == 0 {
		return
	}
	slices.SortFunc(names, func(a, b string) int {
		return slices.Index(kindNames(), a) - slices.Index(kindNames(), b)
	})
	fmt.Fprintf(b, "| %s | %s |\n|---%s|\n", arch, strings.Join(names, " | "), strings.Repeat("|---", len(names)))
	for _, release := range releases {
		fmt.Fprintf(b, "| Go %s ", release)
		for _, name := range names {
			fmt.Fprintf(b, "| %s ", cells[[2]string{release, name}])
		}
		b.WriteString("|\n")
	}
	b.WriteString("\n")
}

// notes number what there is to say of cells; equal remarks share a number.
type notes struct {
	numbers map[string]int
	order   []string
}

func newNotes() *notes { return &notes{numbers: map[string]int{}} }

// of returns the references of a cell.
func (n *notes) of(r result) string {
	var texts []string
	for _, p := range r.problems {
		texts = append(texts, "**"+p+"**")
	}
	for _, a := range r.absences {
		texts = append(texts, a.what+": "+shorten(a.reason))
	}
	slices.Sort(texts)
	var refs []string
	for _, text := range slices.Compact(texts) {
		if n.numbers[text] == 0 {
			n.order = append(n.order, text)
			n.numbers[text] = len(n.order)
		}
		refs = append(refs, fmt.Sprint(n.numbers[text]))
	}
	if len(refs) == 0 {
		return ""
	}
	return " (" + strings.Join(refs, ", ") + ")"
}

// shorten keeps the beginning of a reason: inline trees name many functions.
func shorten(reason string) string {
	const limit = 200
	if len(reason) <= limit {
		return reason
	}
	return strings.ToValidUTF8(reason[:limit], "") + " …"
}

func (n *notes) String() string {
	var b strings.Builder
	for i, text := range n.order {
		fmt.Fprintf(&b, "%d. %s\n", i+1, text)
	}
	return b.String()
}

// writeSections replaces what stands between the marks of each section in a document.
func writeSections(path string, sections map[string]string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the document: %w", err)
	}
	text := string(data)
	for mark, content := range sections {
		begin, end := "<!-- "+mark+": generated -->\n", "<!-- "+mark+": end -->\n"
		before, rest, found := strings.Cut(text, begin)
		_, after, closed := strings.Cut(rest, end)
		if !found || !closed {
			return fmt.Errorf("%s has no lines %q and %q", path, begin, end)
		}
		text = before + begin + content + end + after
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// Command testcount reads the output of "go test -json" and prints what a
// person needs of it: one line for each package, the whole output of each test
// that failed, and each test that was skipped with its reason. It adds the
// counts to a file as a line "passed failed skipped", and exits with 1 if
// anything failed.
//
//	go test -json ./... | testcount -add counts
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is one line of "go test -json" (see "go doc test2json").
type event struct {
	Action, Package, Test, Output string
	ImportPath, FailedBuild       string // packages, perhaps with a test variant in brackets
	Elapsed                       float64
}

// maxOutput bounds the output kept of one test; its end is what tells.
const maxOutput = 64 << 10

type counts struct{ passed, failed, skipped int }

// report follows one run. Test names are unique within a package.
type report struct {
	w       io.Writer
	counts  counts
	output  map[string]string // of what still runs, by package and test
	blamed  map[string]bool   // packages of which a test has failed
	skipped []string
}

func main() {
	add := flag.String("add", "", "append the counts to this file")
	flag.Parse()
	c, err := run(os.Stdin, os.Stdout)
	if err == nil && *add != "" {
		err = appendCounts(*add, c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testcount:", err)
		os.Exit(1)
	}
	if c.failed > 0 {
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) (counts, error) {
	r := report{w: out, output: map[string]string{}, blamed: map[string]bool{}}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintln(out, lines.Text()) // the go command's own words
			continue
		}
		r.take(e)
	}
	if err := lines.Err(); err != nil {
		return r.counts, fmt.Errorf("read events: %w", err)
	}
	for _, s := range r.skipped {
		fmt.Fprintln(out, s)
	}
	return r.counts, nil
}

func (r *report) take(e event) {
	pkg := e.Package
	if pkg == "" {
		pkg = bare(e.ImportPath)
	}
	key := pkg + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if strings.HasPrefix(e.Output, "=== ") { // that a test runs, pauses or goes on
			return
		}
		text := r.output[key] + e.Output
		r.output[key] = text[max(len(text)-maxOutput, 0):]
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	if e.Test == "" {
		r.endPackage(pkg, e)
	} else {
		r.endTest(pkg, key, e)
	}
	delete(r.output, key)
}

func (r *report) endTest(pkg, key string, e event) {
	switch e.Action {
	case "pass":
		r.counts.passed++
	case "fail":
		r.counts.failed++
		r.blamed[pkg] = true
		fmt.Fprintf(r.w, "FAILED %s\n%s", key, r.output[key])
	case "skip":
		r.counts.skipped++
		r.skipped = append(r.skipped, "skipped "+key+": "+reason(r.output[key]))
	}
}

// endPackage counts a package that failed without a failed test: it does not
// build, or it died.
func (r *report) endPackage(pkg string, e event) {
	switch {
	case e.Action == "fail" && !r.blamed[pkg]:
		r.counts.failed++
		fmt.Fprintf(r.w, "FAILED %s\n%s", pkg, r.output[pkg+" "])
		if built := bare(e.FailedBuild); built != "" && built != pkg {
			fmt.Fprint(r.w, r.output[built+" "])
		}
		for key, text := range r.output { // the tests that were running
			if strings.HasPrefix(key, pkg+" ") && key != pkg+" " {
				fmt.Fprintf(r.w, "while running %s\n%s", key, text)
			}
		}
	case e.Action == "fail":
		fmt.Fprintf(r.w, "FAILED %s\n", pkg)
	case e.Action == "pass":
		fmt.Fprintf(r.w, "ok %s %.1fs\n", pkg, e.Elapsed)
	}
}

// bare is an import path without the test variant that may stand behind it.
func bare(importPath string) string {
	pkg, _, _ := strings.Cut(importPath, " ")
	return pkg
}

// reason is what the test said when it skipped: the last line that is not go
// test's own.
func reason(output string) string {
	last := "no reason given"
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "---") {
			last = line
		}
	}
	return last
}

func appendCounts(file string, c counts) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("add counts: %w", err)
	}
	_, err = fmt.Fprintln(f, c.passed, c.failed, c.skipped)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("add counts: %w", err)
	}
	return nil
}

// Command testcount reads the output of "go test -json" and prints what a
// person needs of it: one line for each package, the whole output of each test
// that failed, and each test that was skipped with its reason. It adds the
// counts to a file as a line "passed failed skipped", what the failed tests
// complained of to another, and exits with 1 if anything failed.
//
//	go test -json ./... | testcount -add counts -complaints complaints
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
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

// maxComplaints bounds the lines that are said again of one failed test.
const maxComplaints = 20

// report follows one run. Test names are unique within a package.
type report struct {
	w       io.Writer
	counts  counts
	output  map[string]string   // of what still runs, by package and test
	logged  map[string][]string // by the same, with its place in the source
	blamed  map[string]bool     // packages of which a test has failed
	skipped []string

	complaints strings.Builder
}

func main() {
	add := flag.String("add", "", "append the counts to this file")
	complaints := flag.String("complaints", "", "append what failed tests complained of to this file")
	flag.Parse()
	r, err := run(os.Stdin, os.Stdout)
	c := r.counts
	if err == nil && *add != "" {
		err = appendTo(*add, fmt.Sprintln(c.passed, c.failed, c.skipped))
	}
	if err == nil && *complaints != "" {
		err = appendTo(*complaints, r.complaints.String())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testcount:", err)
		os.Exit(1)
	}
	if c.failed > 0 {
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) (*report, error) {
	r := &report{w: out, output: map[string]string{}, logged: map[string][]string{}, blamed: map[string]bool{}}
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
		return r, fmt.Errorf("read events: %w", err)
	}
	for _, s := range r.skipped {
		fmt.Fprintln(out, s)
	}
	return r, nil
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
		r.note(key, e.Output)
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
	delete(r.logged, key)
}

func (r *report) endTest(pkg, key string, e event) {
	switch e.Action {
	case "pass":
		r.counts.passed++
	case "fail":
		r.counts.failed++
		r.blamed[pkg] = true
		fmt.Fprintf(r.w, "FAILED %s\n%s", key, r.output[key])
		fmt.Fprintf(&r.complaints, "FAILED %s\n%s", key, strings.Join(r.logged[key], ""))
	case "skip":
		r.counts.skipped++
		r.skipped = append(r.skipped, "skipped "+key+": "+reason(r.output[key]))
	}
}

// complaint is the first line of what a test logs, with its place in the source. What a
// test prints otherwise, the whole output of an agent above all, can be thousands of lines
// in which these are lost.
var complaint = regexp.MustCompile(`^ +\w+_test\.go:\d+: `)

// note keeps what a test logs, in case that it fails.
func (r *report) note(key, line string) {
	if lines := r.logged[key]; len(lines) < maxComplaints && complaint.MatchString(line) {
		r.logged[key] = append(lines, line)
	}
}

// endPackage counts a package that failed without a failed test: it does not
// build, or it died.
func (r *report) endPackage(pkg string, e event) {
	switch {
	case e.Action == "fail" && !r.blamed[pkg]:
		r.counts.failed++
		fmt.Fprintf(r.w, "FAILED %s\n%s", pkg, r.output[pkg+" "])
		fmt.Fprintf(&r.complaints, "FAILED %s\n", pkg)
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

func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("add to it: %w", err)
	}
	_, err = f.WriteString(text)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("add to %s: %w", file, err)
	}
	return nil
}

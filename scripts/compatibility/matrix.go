package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kind is a way to build.
type kind struct {
	name     string
	flags    []string
	ldflags  string
	cgo      bool // linked by the C compiler
	stripped bool // compared with the DWARF of the kind before it
	profile  bool // with a profile of the program itself
	native   bool // for this machine only: toolchains have no race detector of another
	from     int  // the first minor release that has it
	language int  // the release that go.mod names; 0: the toolchain's
	// moves: inlining differs, so that hooks may be elsewhere, or have a named reason
	// why they are nowhere.
	moves bool
}

var kinds = []kind{
	{name: "plain"},
	{name: "stripped", ldflags: "-s -w", stripped: true},
	{name: "pie", flags: []string{"-buildmode=pie"}},
	{name: "pie-stripped", flags: []string{"-buildmode=pie"}, ldflags: "-s -w", stripped: true},
	{name: "cgo", ldflags: "-linkmode=external", cgo: true},
	{name: "cgo-stripped", ldflags: "-linkmode=external -s -w", cgo: true, stripped: true},
	{name: "cgo-pie", flags: []string{"-buildmode=pie"}, ldflags: "-linkmode=external", cgo: true},
	{name: "cgo-pie-stripped", flags: []string{"-buildmode=pie"}, ldflags: "-linkmode=external -s -w", cgo: true, stripped: true},
	{name: "old-module", language: 18, from: 21},
	{name: "race", flags: []string{"-race"}, cgo: true, native: true, moves: true},
	{name: "pgo", profile: true, from: 20, moves: true},
	{name: "no-inlining", flags: []string{"-gcflags=all=-l"}, moves: true},
	{name: "unoptimized", flags: []string{"-gcflags=all=-N -l"}, moves: true},
}

func kindNames() (names []string) {
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// build is one cell of the matrix.
type build struct {
	release string // such as 1.22.12 or 1.28rc1
	arch    string
	kind    kind
}

func (b build) String() string { return "go" + b.release + " " + b.arch + " " + b.kind.name }

// minor is the number of the minor release: 22 of 1.22.12.
func (b build) minor() int {
	_, rest, _ := strings.Cut(b.release, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	n, _ := strconv.Atoi(rest[:end]) // 0 for nonsense, which does not build either
	return n
}

// result is what became of a build.
type result struct {
	build
	problems []string  // what is wrong
	absences []absence // what is not there, for a reason that is fine
	sites    []site
	structs  int // compared with DWARF
	fields   int
	spans    int // compared with the requests; 0: not run
}

// absence is a hook that is not where it usually is.
type absence struct{ what, reason string }

// inSlice tells whether a build is in the part of the matrix that stands for the rest: the
// oldest and the newest release, those in which something moved, and what is special.
func (b build) inSlice() bool {
	switch b.kind.name {
	case "pie", "pie-stripped": // the first has the DWARF
		return b.arch == "amd64"
	case "plain":
		return b.minor() == 27 && b.arch == "arm64" || b.minor() == 26 && b.arch == "amd64"
	case "race", "pgo":
		return b.arch == "amd64" && b.minor() == 26
	case "old-module":
		return b.arch == "amd64" && b.minor() == 22
	}
	return false
}

// sliceReleases are those of the slice: up to 1.19 the loop of tries is in each method, 1.22
// has another ServeMux, 1.26 another moduledata, 1.27 other maps.
var sliceReleases = []string{"1.18", "1.22", "1.26", "1.27"}

// matrix runs all builds and prints the result. It returns whether the agent is ready
// for all of them.
func matrix(ctx context.Context, o options) (ready bool, err error) {
	if _, err := os.Stat("scripts/compatibility/testdata/std"); err != nil {
		return false, fmt.Errorf("this must run at the top of the repository: %w", err)
	}
	dir, err := os.MkdirTemp("", "compatibility")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	w := &workshop{dir: dir, options: o}
	if o.run {
		if err := w.buildAgent(ctx); err != nil {
			return false, err
		}
	}
	earlier, err := openResults(o.results)
	if err != nil {
		return false, err
	}
	var results []result
	builds := o.builds()
	for i, b := range builds {
		if r, ok := earlier.of(b); ok && !earlier.needed(builds, i) {
			results = append(results, r)
			continue
		}
		begin := time.Now()
		r := w.examine(ctx, b)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		results = append(results, r)
		if err := earlier.add(r); err != nil {
			return false, err
		}
		fmt.Fprintf(os.Stderr, "%s (%.1f s)\n", r.line(), time.Since(begin).Seconds())
		if o.verbose {
			for _, s := range r.sites {
				fmt.Fprintf(os.Stderr, "    %+v\n", s)
			}
		}
	}
	var libs []moduleResult
	if o.modules {
		if libs, err = w.examineModules(ctx); err != nil {
			return false, err
		}
	}
	return report(o, results, libs)
}

// builds are the cells asked for, those of one release and architecture together.
func (o options) builds() (list []build) {
	for _, release := range o.releases {
		for _, arch := range o.arches {
			for _, k := range o.kinds {
				b := build{release, arch, k}
				if b.minor() < k.from || k.native && !b.runsHere() {
					continue
				}
				if o.slice && (!b.inSlice() || !slices.Contains(sliceReleases, "1."+strconv.Itoa(b.minor()))) {
					continue
				}
				list = append(list, b)
			}
		}
	}
	return list
}

// line is a result in one line.
func (r result) line() string {
	if len(r.problems) > 0 {
		return fmt.Sprintf("%s: FAILED: %s", r.build, strings.Join(r.problems, "; "))
	}
	text := fmt.Sprintf("%s: ok, %d sites, %d fields of %d structs", r.build, len(r.sites), r.fields, r.structs)
	if r.spans > 0 {
		text += fmt.Sprintf(", %d spans", r.spans)
	}
	if len(r.absences) > 0 {
		text += fmt.Sprintf(", %d hooks elsewhere or absent", len(r.absences))
	}
	return text
}

// runsHere tells whether this machine can run the program.
func (b build) runsHere() bool { return b.arch == runtime.GOARCH }

// workshop is where things are built.
type workshop struct {
	options
	dir     string
	agent   string
	profile string
	twin    *twin
	usual   []site // of the last plain build
}

func (w *workshop) path(name string) string { return filepath.Join(w.dir, name) }

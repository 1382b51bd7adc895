package main

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/plainframework/agent/scripts/vm/plan"
)

// row is one kernel of the matrix: the newest of a series that the archive has.
type row struct {
	series  string         // as the table shows it; "newest" takes its place from the kernel
	arch    string         // of Debian and of Go
	kernels *regexp.Regexp // names of packages
	slice   bool           // part of the quick run
}

func rows() []row {
	var all []row
	for _, arch := range []string{"amd64", "arm64"} {
		image := func(series string, slice bool) {
			all = append(all, row{
				series: series, arch: arch, slice: slice,
				kernels: regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `\..*-cloud-` + arch + `$`),
			})
		}
		image("5.10", false)
		image("6.1", false)
		image("6.12", arch == "arm64")
		all = append(all, row{
			series: "newest", arch: arch,
			kernels: regexp.MustCompile(`^linux-(image|binary)-[0-9.]+\+deb13-cloud-` + arch + `$`),
		})
	}
	return all
}

func (r row) String() string { return r.series + "/" + r.arch }

// built are the executables that the tests need and cannot build in a guest.
var built = []struct {
	name, dir string
	flags     []string
}{
	{"agent", "cmd/agent", nil},
	{"shop", "scripts/shop", nil},
	// Go links position-independent executables to be started by the dynamic loader.
	{"shop-stripped_pie", "scripts/shop", []string{"-buildmode=pie", "-ldflags=-s -w"}},
	{"told", "cmd/agent/testdata/told", nil},
	{"target", "internal/probes/testdata/target", nil},
}

// loaders is where executables of an architecture look for the dynamic loader.
var loaders = map[string]string{"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}

// suite is a test binary, and the tests of it that run in a guest.
type suite struct {
	name, dir string
	tags      []string
	runs      []string // patterns of -test.run, one step each
	flags     []string
}

// A guest is emulated, some twenty times slower than the machine that it runs on. So the
// tests that compare times or send many requests are left out; the host has them.
var suites = []suite{
	{
		name: "probes", dir: "internal/probes",
		runs:  []string{`^(TestKernel|TestWithoutPrivateStacks|TestUnknownProcess|TestMissedProcess|TestPerfAllowed)$`},
		flags: []string{"-built", builtDir},
	},
	{
		name: "e2e", dir: "cmd/agent", tags: []string{"-tags", "e2e"},
		runs: []string{
			`^TestE2E$/^(shop|context|targets)$`,
			`^TestE2E$/^variants$/^stripped_pie$`,
			`^TestE2E$/^metrics$/^rate_(1|0)$`,
			`^TestE2E$/^(told|told_by_messages)$`,
		},
		flags: []string{"-e2e.built", builtDir, "-e2e.patience", "20", "-e2e.bulk", "500"},
	},
}

const builtDir = "/built"

// stepLimit is far above what a step takes, on a busy machine too: it ends what hangs.
const stepLimit = 20 * time.Minute

// asksKernel tells whether a choice of steps has TestKernel among them.
func asksKernel(some string) bool {
	return slices.ContainsFunc(steps(some), func(s plan.Step) bool {
		return slices.ContainsFunc(s.Command, func(arg string) bool { return strings.Contains(arg, "TestKernel") })
	})
}

// steps are those whose names contain some text.
func steps(some string) []plan.Step {
	var all []plan.Step
	for _, s := range suites {
		for i, pattern := range s.runs {
			name := fmt.Sprintf("%s-%d", s.name, i+1)
			if !strings.Contains(name, some) {
				continue
			}
			command := append([]string{"/tests/" + s.name, "-test.v", "-test.count", "1", "-test.run", pattern}, s.flags...)
			all = append(all, plan.Step{
				Name: name, Dir: path.Join("/src", s.dir), Command: command, Limit: stepLimit,
			})
		}
	}
	return all
}

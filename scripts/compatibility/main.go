// Command compatibility answers for which releases of Go, ways to build, architectures
// and versions of libraries the agent works: it builds programs in all these ways,
// examines each as the agent does, and holds the result against what the compiler's
// DWARF says. Programs for this machine are run under the built agent as well, and the
// spans must be exactly those of the requests.
//
//	go run ./scripts/compatibility                  everything; hours on a cold cache
//	go run ./scripts/compatibility -slice           a part that stands for the rest
//	go run ./scripts/compatibility -go go1.28rc1    is the agent ready for a release candidate?
//	go run ./scripts/compatibility -docs            also write docs/compatibility.md
//	go run ./scripts/compatibility -results FILE    in parts: interrupted, it goes on from there
//
// Running programs under the agent needs root; -run=false leaves it out. Builds that are
// linked with C need gcc, for arm64 gcc-aarch64-linux-gnu and libc6-dev-arm64-cross.
//
// The files, in the order of the data: matrix.go what is built, build.go how, check.go
// what must be true of a binary, spans.go what must be true of the spans, modules.go the
// libraries beside Go's own, table.go the result. safety.go is for scripts/safety.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/plainframework/agent/internal/probes/gobin/gobintest"
)

type options struct {
	releases []string
	arches   []string
	kinds    []kind
	modules  bool
	run      bool
	slice    bool
	docs     string
	results  string // file of results that are known
	verbose  bool
	safety   time.Duration // instead of the matrix
}

func main() {
	o, err := parse(os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "compatibility:", err)
		}
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	var ready bool
	if o.safety > 0 {
		ready, err = true, safety(ctx, o.safety)
	} else {
		ready, err = matrix(ctx, o)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "compatibility:", err)
		os.Exit(1)
	}
	if !ready {
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("compatibility", flag.ContinueOnError)
	releases := f.String("go", "", "toolchains, a comma-separated `list` such as 1.22.12,go1.28rc1; default: the last patch of each release")
	arches := f.String("arch", "amd64,arm64", "architectures, a comma-separated `list`")
	only := f.String("kinds", "", "ways to build, a comma-separated `list` of: "+strings.Join(kindNames(), ", ")+"; default: all")
	f.BoolVar(&o.modules, "modules", true, "also build programs with libraries beside Go's own")
	f.BoolVar(&o.run, "run", os.Geteuid() == 0, "run programs for this machine under the agent and compare spans; needs root")
	f.BoolVar(&o.slice, "slice", false, "only a few builds that stand for the rest")
	docs := f.Bool("docs", false, "write the tables into docs/compatibility.md")
	f.StringVar(&o.results, "results", "", "keep results in this `file`, and build only what it does not have: for a run in parts")
	f.BoolVar(&o.verbose, "v", false, "print every probe site")
	f.DurationVar(&o.safety, "safety", 0, "instead, attach and detach for this long while a program is under stress: see scripts/safety")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.run && os.Geteuid() != 0 {
		return o, errors.New("running programs under the agent needs root; use sudo, or -run=false")
	}
	if *docs {
		if o.slice || *releases != "" || !o.run {
			return o, errors.New("-docs is for all releases; leave out what limits it")
		}
		o.docs = "docs/compatibility.md"
	}
	o.releases = slices.Clone(gobintest.Releases)
	if *releases != "" {
		o.releases = nil
		for r := range strings.SplitSeq(*releases, ",") {
			o.releases = append(o.releases, strings.TrimPrefix(r, "go"))
		}
		o.modules = false
	}
	o.arches = strings.Split(*arches, ",")
	o.kinds = kinds
	if *only != "" {
		o.kinds = nil
		for name := range strings.SplitSeq(*only, ",") {
			i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
			if i < 0 {
				return o, fmt.Errorf("no kind %q; there are: %s", name, strings.Join(kindNames(), ", "))
			}
			if kinds[i].stripped && !slices.ContainsFunc(o.kinds, func(k kind) bool { return k.name == kinds[i-1].name }) {
				o.kinds = append(o.kinds, kinds[i-1]) // to compare with
			}
			o.kinds = append(o.kinds, kinds[i])
		}
	}
	return o, nil
}

// Command vm runs the tests that touch the kernel on other kernels and on another
// architecture: it boots Debian's kernels in QEMU, with nothing in them but the tests and
// what they need, and prints a table. scripts/kernels builds and runs it; it must be
// started in the root of the repository.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/plainframework/agent/scripts/vm/plan"
)

type options struct {
	all    bool
	only   string
	jobs   int
	write  bool
	counts string
	suite  string
}

func main() {
	var o options
	flag.BoolVar(&o.all, "all", false, "every kernel of the matrix, instead of the quick choice")
	flag.StringVar(&o.only, "only", "", "these kernels, such as 5.10/amd64,6.12/arm64")
	flag.IntVar(&o.jobs, "jobs", 1, "guests that run at the same time; each takes a CPU")
	flag.BoolVar(&o.write, "write", false, "write the table into "+document)
	flag.StringVar(&o.counts, "counts", "", "append \"passed failed skipped\" to this file")
	flag.StringVar(&o.suite, "suite", "", "only the suite of tests of this name, probes or e2e, or one of its steps, such as e2e-2")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "vm: unexpected argument %s\n", flag.Arg(0))
		os.Exit(2)
	}
	if o.write && o.suite != "" {
		fmt.Fprintln(os.Stderr, "vm: -write takes whole runs: leave -suite away")
		os.Exit(2)
	}
	ok, err := matrix(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// matrix runs the chosen guests; ok tells whether all of their tests have passed.
func matrix(o options) (ok bool, err error) {
	chosen, err := choose(o)
	if err != nil {
		return false, err
	}
	s, err := openStore()
	if err != nil {
		return false, err
	}
	qemu, err := s.qemu()
	if err != nil {
		return false, fmt.Errorf("get QEMU: %w", err)
	}
	dir, err := os.MkdirTemp("", "plain-vm")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	l := lab{store: s, qemu: emulator{qemu}, dir: dir, nonce: newNonce(), suite: o.suite}
	if err := l.prepare(chosen); err != nil {
		return false, err
	}
	results := l.runAll(chosen, o.jobs)
	fmt.Printf("\n%s", table(results))
	if o.counts != "" {
		err = appendCounts(o.counts, results)
	}
	if o.write {
		err = errors.Join(err, writeDocument(results, o.all))
	}
	return !slices.ContainsFunc(results, func(r result) bool { return !r.ok() }), err
}

func choose(o options) ([]row, error) {
	var chosen []row
	wanted := strings.FieldsFunc(o.only, func(c rune) bool { return c == ',' })
	for _, r := range rows() {
		if o.all || o.only == "" && r.slice || slices.Contains(wanted, r.String()) {
			chosen = append(chosen, r)
		}
	}
	if len(chosen) == 0 || !o.all && len(wanted) > 0 && len(chosen) != len(wanted) {
		return nil, fmt.Errorf("unknown kernel in %q; there are %v", o.only, rows())
	}
	return chosen, nil
}

// lab is what the guests of one run share.
type lab struct {
	store *store
	qemu  emulator
	dir   string
	nonce string
	suite string
}

func (l lab) initrd(arch string) string { return filepath.Join(l.dir, "initrd-"+arch) }

// prepare builds the tests and all they need, once for each architecture.
func (l lab) prepare(chosen []row) error {
	for _, arch := range []string{"amd64", "arm64"} {
		if !slices.ContainsFunc(chosen, func(r row) bool { return r.arch == arch }) {
			continue
		}
		fmt.Printf("building the tests for %s\n", arch)
		files, err := l.build(arch)
		if err != nil {
			return err
		}
		loader, err := l.store.loader(arch)
		if err != nil {
			return fmt.Errorf("get the dynamic loader: %w", err)
		}
		files[loaders[arch]] = source{file: loader}
		text, err := json.Marshal(plan.Plan{Nonce: l.nonce, Steps: steps(l.suite)})
		if err != nil {
			return err
		}
		files[strings.TrimPrefix(plan.File, "/")] = source{data: text}
		f, err := os.Create(l.initrd(arch))
		if err != nil {
			return err
		}
		if err := errors.Join(files.write(f), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (l lab) build(arch string) (archive, error) {
	files := archive{}
	goCommand := func(to, dir string, args ...string) error {
		out := filepath.Join(l.dir, arch, to)
		files[to] = source{file: out}
		cmd := exec.Command("go", append(args[:1:1], append([]string{"-buildvcs=false", "-o", out}, append(args[1:], ".")...)...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s for %s: %w\n%s", to, arch, err, text)
		}
		return nil
	}
	if err := goCommand("init", "scripts/vm/init", "build"); err != nil {
		return nil, err
	}
	for _, b := range built {
		if err := goCommand(filepath.Join(builtDir[1:], b.name), b.dir, append([]string{"build"}, b.flags...)...); err != nil {
			return nil, err
		}
	}
	for _, s := range suites {
		if err := goCommand("tests/"+s.name, s.dir, append([]string{"test", "-c", "-ldflags=-s -w"}, s.tags...)...); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// runAll runs guests, some at the same time, and returns their results in order.
func (l lab) runAll(chosen []row, jobs int) []result {
	results := make([]result, len(chosen))
	slots := make(chan struct{}, max(jobs, 1))
	var guests sync.WaitGroup
	for i, r := range chosen {
		guests.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] = l.test(r)
			fmt.Print(results[i].text())
		})
	}
	guests.Wait()
	return results
}

// test boots a guest, and once more if it died of itself.
func (l lab) test(r row) result {
	res := result{row: r, part: !asksKernel(l.suite)}
	kernel, err := l.store.kernel(r)
	if err != nil {
		res.err = err
		return res
	}
	res.kernel = numberOf(filepath.Base(kernel))
	for range 2 {
		log := filepath.Join(l.store.dir, "logs", r.series+"-"+r.arch+".log")
		boot, err := l.qemu.boot(r.arch, kernel, l.initrd(r.arch), l.nonce, log)
		if res.err = err; errors.Is(err, errDied) {
			res.deaths++
			continue
		}
		if err == nil {
			res.read(boot)
		}
		break
	}
	return res
}

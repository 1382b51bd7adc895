package gobin

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/plainframework/agent/internal/probes/gobin/gobintest"
)

// The tests read binaries that they build: testdata/app by each of these
// toolchains. Others than the local one are fetched by the go command.
var (
	versionsFlag = flag.String("gobin.versions", "1.22,local", "Go releases to build test binaries with: a comma-separated `list` of minor releases and \"local\"")
	archesFlag   = flag.String("gobin.arches", "amd64,arm64", "architectures to build test binaries for")
	tableFlag    = flag.Bool("gobin.table", false, "print the probe sites found")
)

// target is one way to build the test program.
type target struct {
	version    string // as in the flag
	arch       string
	strip, pie bool
	extra      string // more flags of go build, separated by "|"
	cgo        bool   // link with the C compiler; the local architecture only
	env        string // one more variable, KEY=VALUE
}

func (tg target) String() string {
	name := tg.version + "," + tg.arch
	if tg.pie {
		name += ",pie"
	}
	if tg.strip {
		name += ",stripped"
	}
	if tg.cgo {
		name += ",cgo"
	}
	if tg.extra != "" {
		name += "," + tg.extra
	}
	if tg.env != "" {
		name += "," + tg.env
	}
	return name
}

func (tg target) flags() []string {
	var f []string
	if tg.pie {
		f = append(f, "-buildmode=pie")
	}
	ld := ""
	if tg.strip {
		ld = "-s -w"
	}
	if tg.cgo {
		ld += " -linkmode=external"
	}
	if ld != "" {
		f = append(f, "-ldflags="+ld)
	}
	if tg.extra != "" {
		f = append(f, strings.Split(tg.extra, "|")...)
	}
	return f
}

var builds = struct {
	sync.Mutex
	dir  string
	done map[target]string
}{done: make(map[target]string)}

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "gobin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	builds.dir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// targets returns the releases and architectures to build for.
func targets() []target {
	var list []target
	for _, v := range strings.Split(*versionsFlag, ",") {
		for _, a := range strings.Split(*archesFlag, ",") {
			list = append(list, target{version: v, arch: a})
		}
	}
	return list
}

// modes returns tg plain, stripped, PIE, and both.
func modes(tg target) []target {
	list := []target{tg, tg, tg, tg}
	list[1].strip = true
	list[2].pie = true
	list[3].strip, list[3].pie = true, true
	return list
}

// build returns the path of the test program, built once for each target. A
// toolchain that cannot be had fails the test.
func build(t testing.TB, tg target) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if path, ok := builds.done[tg]; ok {
		return path
	}
	path := filepath.Join(builds.dir, fmt.Sprintf("app%d", len(builds.done)))
	args := append([]string{"build", "-o", path}, tg.flags()...)
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Dir = filepath.Join("testdata", "app")
	toolchain := "local"
	if tg.version != "local" {
		i := slices.IndexFunc(gobintest.Releases, func(r string) bool { return strings.HasPrefix(r, tg.version+".") })
		if i < 0 {
			t.Fatalf("no patch release known of Go %s", tg.version)
		}
		toolchain = gobintest.Toolchain(gobintest.Releases[i])
	}
	cgo := "0"
	if tg.cgo {
		cgo = "1"
	}
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN="+toolchain, "GOOS=linux", "GOARCH="+tg.arch, "GOFLAGS=", "CGO_ENABLED="+cgo)
	if tg.env != "" {
		cmd.Env = append(cmd.Env, tg.env)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("build %s: %v\n%s", tg, err, out.Bytes())
	}
	builds.done[tg] = path
	return path
}

// open builds and opens a target.
func open(t testing.TB, tg target) *Binary {
	t.Helper()
	b, err := openPath(t, build(t, tg))
	if err != nil {
		t.Fatalf("open %s: %v", tg, err)
	}
	return b
}

func openPath(t testing.TB, path string) (*Binary, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return Open(f, st.Size())
}

//go:build e2e

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/observer"
)

// testChanges: targets that change while they are watched come to no harm, and no span
// is said to be of what a process was before.
func (e *e2e) testChanges(t *testing.T) {
	t.Run("replaced", e.testReplaced)
	t.Run("exec", e.testExec)
	t.Run("fork storm", e.testForkStorm)
	t.Run("stopped", e.testStopped)
	t.Run("seccomp", e.testSeccomp)
}

// byPID counts server spans by process.
func byPID(spans []observer.Span) map[string]int {
	n := map[string]int{}
	for _, s := range spans {
		if s.Attrs.Text("http.request.method") != "" {
			n[s.Resource.Text("process.pid")]++
		}
	}
	return n
}

// visit10 sends ten requests and fails the test if one has no good answer.
func visit10(t *testing.T, url string) {
	t.Helper()
	for range 10 {
		if got := statusOf(url); got != 200 {
			t.Errorf("%s answers %d", url, got)
		}
	}
}

// testReplaced puts another build in the place of a running executable, as a deployment
// does: the old process goes on, the new one is read anew.
func (e *e2e) testReplaced(t *testing.T) {
	path := filepath.Join(e.dir, "replaced", "shop")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, e.shop, path)
	a := e.startAgent(t, "--exe", path)
	old := e.startShop(t, path)
	eventually(t, 10*time.Second, "spans of the old one", func() bool {
		statusOf(old.url + "/plain")
		return serverSpans(a.seen) > 0
	})
	other := e.build(t, "other", shopDir, nil, "-ldflags=-s -w", "-buildmode=pie")
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	recent := e.startShop(t, path)
	eventually(t, 10*time.Second, "spans of the new one", func() bool {
		statusOf(recent.url + "/plain")
		return byPID(a.seen.Spans())[fmt.Sprint(recent.pid())] > 0
	})
	settle(a.seen)
	before := byPID(a.seen.Spans())
	visit10(t, old.url+"/items/7")
	visit10(t, recent.url+"/items/7")
	a.noLosses(t)
	after := byPID(a.finish(t))
	for _, s := range []server{old, recent} {
		pid := fmt.Sprint(s.pid())
		if n := after[pid] - before[pid]; n != 10 {
			t.Errorf("process %s: %d spans of 10 requests", pid, n)
		}
	}
	if n := patched(t, old.pid()); n != 0 {
		t.Errorf("the old process has %d bytes of traps after the agent has gone", n)
	}
}

const execText = `package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"
)

func main() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	http.HandleFunc("/plain", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	http.HandleFunc("/exec", func(w http.ResponseWriter, r *http.Request) {
		panic(syscall.Exec(os.Args[1], os.Args[1:], os.Environ()))
	})
	fmt.Printf("first listens on http://%s\n", ln.Addr())
	_ = http.Serve(ln, nil)
}
`

// testExec: a process becomes another program, in the middle of a request.
func (e *e2e) testExec(t *testing.T) {
	first := e.buildText(t, "first", execText, nil)
	p := startProc(t, "first", nil, first, e.shop, "-listen", "127.0.0.1:0")
	url := p.listens(t, "first")
	a := e.startAgent(t, "--pid", fmt.Sprint(p.pid()))
	visit10(t, url+"/plain")
	statusOf(url + "/exec")
	url = p.listens(t, "shop")
	visit10(t, url+"/items/7")
	settle(a.seen)
	plain := 0
	for _, s := range a.finish(t) {
		service, path := s.Resource.Text("service.name"), s.Attrs.Text("url.path")
		if path == "/plain" {
			plain++
		}
		if path == "/items/7" && service != "shop" || path == "/plain" && service != "first" {
			t.Errorf("a span of %s is said to be of %q", path, service)
		}
	}
	if plain != 10 {
		t.Errorf("%d spans before the exec, want 10", plain)
	}
	if !p.running() {
		t.Error("the program has died")
	}
}

// listens waits until a program says where it listens.
func (p *proc) listens(t *testing.T, name string) (url string) {
	t.Helper()
	eventually(t, 10*time.Second, name+" listens", func() bool {
		_, rest, ok := strings.Cut(p.output(), name+" listens on ")
		url, _, _ = strings.Cut(rest, "\n")
		return ok && strings.Contains(rest, "\n")
	})
	return url
}

// testForkStorm starts a watched executable over and over, hardly any of which lives
// until it has been looked at.
func (e *e2e) testForkStorm(t *testing.T) {
	shop := e.startShop(t, e.shop)
	a := e.startAgent(t, "--exe", e.shop)
	files := len(openFiles(t, a.pid()))
	var storm sync.WaitGroup
	for range 4 {
		storm.Go(func() {
			for range 50 {
				_ = exec.Command(e.shop, "-no-such-flag").Run() // it ends with a usage message
			}
		})
	}
	for range 10 {
		visit10(t, shop.url+"/items/7")
	}
	storm.Wait()
	visit10(t, shop.url+"/items/7")
	eventually(t, 15*time.Second, "every request is a span", func() bool { return serverSpans(a.seen) >= 110 })
	a.noLosses(t)
	eventually(t, 10*time.Second, "the agent closes the files of processes that are gone", func() bool {
		return len(openFiles(t, a.pid())) <= files+16
	})
	if got := byPID(a.finish(t)); len(got) != 1 || got[fmt.Sprint(shop.pid())] != 110 {
		t.Errorf("spans by process: %v, want 110 of %d", got, shop.pid())
	}
}

// A debugger of its own, for a parent that traces its child would take its end for a stop.
const tracerText = `package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
)

func main() {
	runtime.LockOSThread() // a tracer is a thread
	pid, _ := strconv.Atoi(os.Args[1])
	if err := syscall.PtraceAttach(pid); err != nil {
		panic(err)
	}
	if _, err := syscall.Wait4(pid, nil, syscall.WALL, nil); err != nil {
		panic(err)
	}
	fmt.Println("it is stopped")
	_ = syscall.Pause() // the target goes on when its tracer ends
}
`

// testStopped attaches while a debugger holds the target, and while all of it is stopped.
func (e *e2e) testStopped(t *testing.T) {
	shop := e.startShop(t, e.shop)
	tracer := startProc(t, "tracer", nil, e.buildText(t, "tracer", tracerText, nil), fmt.Sprint(shop.pid()))
	eventually(t, 10*time.Second, "the debugger has stopped it", func() bool { return strings.Contains(tracer.output(), "stopped") })
	a := e.startAgent(t, "--pid", fmt.Sprint(shop.pid()))
	tracer.kill()
	visit10(t, shop.url+"/items/7")
	eventually(t, 10*time.Second, "spans after the debugger has gone", func() bool { return serverSpans(a.seen) >= 10 })

	if err := syscall.Kill(shop.pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	a.finish(t) // does not wait for what is stopped
	b := e.startAgent(t, "--pid", fmt.Sprint(shop.pid()))
	if err := syscall.Kill(shop.pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	visit10(t, shop.url+"/items/7")
	eventually(t, 10*time.Second, "spans after it goes on", func() bool { return serverSpans(b.seen) >= 10 })
	if n := byPID(b.finish(t))[fmt.Sprint(shop.pid())]; n != 10 {
		t.Errorf("%d spans of 10 requests", n)
	}
}

// The filter kills the process at every system call that the kernel has for uprobes.
const seccompText = `package main

import (
	"fmt"
	"net"
	"net/http"
	"syscall"
	"unsafe"
)

type (
	instruction struct {
		code   uint16
		jt, jf uint8
		k      uint32
	}
	program struct {
		n     uint16
		first *instruction
	}
)

func main() {
	const load, equal, ret, allow, kill = 0x20, 0x15, 0x06, 0x7fff0000, 0x80000000
	filter := []instruction{
		{load, 0, 0, 0}, // the number of the call
		{equal, 2, 0, 335}, // uretprobe
		{equal, 1, 0, 336}, // uprobe
		{ret, 0, 0, allow},
		{ret, 0, 0, kill},
	}
	p := program{uint16(len(filter)), &filter[0]}
	const seccomp, setModeFilter, allThreads = 317, 1, 1
	if _, _, err := syscall.Syscall(seccomp, setModeFilter, allThreads, uintptr(unsafe.Pointer(&p))); err != 0 {
		panic(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	http.HandleFunc("/plain", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	fmt.Printf("filtered listens on http://%s\n", ln.Addr())
	_ = http.Serve(ln, nil)
}
`

// testSeccomp: probes make no system call in the target that a filter could kill it for.
func (e *e2e) testSeccomp(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the kernel has these system calls on amd64 only")
	}
	p := startProc(t, "filtered", nil, e.buildText(t, "filtered", seccompText, nil))
	url := p.listens(t, "filtered")
	a := e.startAgent(t, "--pid", fmt.Sprint(p.pid()))
	visit10(t, url+"/plain")
	eventually(t, 10*time.Second, "spans", func() bool { return serverSpans(a.seen) >= 10 })
	a.finish(t)
	visit10(t, url+"/plain")
	if !p.running() {
		t.Error("the filter has killed it")
	}
}

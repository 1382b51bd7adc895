//go:build e2e

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/internal/observer"
)

// nobody and another are users without rights; the service belongs to another.
const (
	nobody  = 65534
	another = 65533
)

// needed are the capabilities that README.md asks for, on a kernel with uprobe_multi.
var needed = []struct {
	bit  uintptr
	name string
}{
	{unix.CAP_BPF, "CAP_BPF"},
	{unix.CAP_PERFMON, "CAP_PERFMON"},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE"},
	{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"},
}

// asUser makes a command run as a user that has these capabilities and no others.
func asUser(cmd *exec.Cmd, uid uint32, capabilities []uintptr) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: uid, Gid: uid},
		AmbientCaps: capabilities,
	}
}

func (e *e2e) startShopAs(t *testing.T, uid uint32, path string, env ...string) server {
	t.Helper()
	cmd := exec.Command(path, "-listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), env...)
	asUser(cmd, uid, nil)
	return awaitShop(t, startCmd(t, "shop", cmd))
}

func (e *e2e) launchAgentAs(t *testing.T, uid uint32, capabilities []uintptr, args ...string) *watcher {
	t.Helper()
	w, env := newWatcherOf(t, observer.New(observer.Options{}))
	cmd := exec.Command(e.agent, append([]string{"run", "--status", strings.TrimPrefix(w.status, "http://")}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	asUser(cmd, uid, capabilities)
	w.proc = startCmd(t, "agent", cmd)
	return w
}

// testPrivileges: the documented set is enough for a user who is not root, to look into
// a service of yet another one; each that is missing is named; and root gives up
// whatever is not in the set.
func (e *e2e) testPrivileges(t *testing.T) {
	var all []uintptr
	for _, c := range needed {
		all = append(all, c.bit)
	}
	shop := e.startShopAs(t, another, e.shop, "OTEL_SERVICE_NAME=named")
	without := func(bit uintptr) []uintptr {
		return slices.DeleteFunc(slices.Clone(all), func(c uintptr) bool { return c == bit })
	}

	t.Run("enough", func(t *testing.T) {
		a := e.launchAgentAs(t, nobody, all, "--exe", e.shop)
		a.seesOne(t, shop, "named")
		if strings.Contains(a.output(), "CAP_") {
			t.Errorf("something is said to be missing:\n%s", a.output())
		}
	})
	t.Run("process", func(t *testing.T) {
		e.launchAgentAs(t, nobody, all, "--pid", fmt.Sprint(shop.pid())).seesOne(t, shop, "named")
	})
	t.Run("CAP_SYS_ADMIN in place of two", func(t *testing.T) {
		e.launchAgentAs(t, nobody, []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}, "--exe", e.shop).seesOne(t, shop, "named")
	})
	for _, c := range needed[:3] {
		t.Run("without "+c.name, func(t *testing.T) {
			a := e.launchAgentAs(t, nobody, without(c.bit), "--exe", e.shop)
			said := a.refusal(t)
			if !strings.HasPrefix(said, "agent: missing "+c.name+":") || strings.Count(a.output(), "\n") != 1 {
				t.Errorf("this is not one sentence that names %s:\n%s", c.name, a.output())
			}
		})
	}
	t.Run("without CAP_DAC_READ_SEARCH", func(t *testing.T) {
		a := e.launchAgentAs(t, nobody, without(unix.CAP_DAC_READ_SEARCH), "--exe", e.shop)
		a.seesOne(t, shop, "shop") // its environment is closed
		if strings.Count(a.output(), "CAP_DAC_READ_SEARCH") != 1 {
			t.Errorf("the capability is not named, once:\n%s", a.output())
		}
		closed := filepath.Join(e.dir, "closed")
		copyFile(t, e.shop, closed)
		if err := os.Chown(closed, another, another); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(closed, 0o700); err != nil {
			t.Fatal(err)
		}
		p := e.startShopAs(t, another, closed)
		for _, args := range [][]string{{"--exe", closed}, {"--pid", fmt.Sprint(p.pid())}} {
			said := e.launchAgentAs(t, nobody, without(unix.CAP_DAC_READ_SEARCH), args...).refusal(t)
			if !strings.HasSuffix(said, "lacks CAP_DAC_READ_SEARCH") {
				t.Errorf("%v: the capability is not named: %s", args, said)
			}
		}
		e.launchAgentAs(t, nobody, all, "--exe", closed).seesOne(t, p, "closed")
	})
	t.Run("root gives up the rest", func(t *testing.T) {
		a := e.startAgent(t, "--exe", e.shop)
		var want uint64
		for _, bit := range all {
			want |= 1 << bit
		}
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", a.pid()))
		if err != nil || len(tasks) < 3 {
			t.Fatalf("threads: %v, %v", tasks, err)
		}
		for _, task := range tasks {
			text, err := os.ReadFile(task)
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range []string{"CapInh:\t0000000000000000", fmt.Sprintf("CapPrm:\t%016x", want),
				fmt.Sprintf("CapEff:\t%016x", want), "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
				if !strings.Contains(string(text), line+"\n") {
					t.Errorf("%s has no line %q:\n%s", task, line, text)
				}
			}
		}
		a.seesOne(t, shop, "named")
	})
}

// seesOne sends a request and expects its spans.
func (w *watcher) seesOne(t *testing.T, shop server, service string) {
	t.Helper()
	w.waitReady(t)
	if code := statusOf(shop.url + "/items/7"); code != 200 {
		t.Fatalf("the shop answers %d", code)
	}
	eventually(t, 10*time.Second, "the request and its query are spans", func() bool { return w.seen.Counts().Spans >= 2 })
	for _, s := range w.finish(t) {
		if s.Service() != service {
			t.Errorf("a span of service %q, want %q: %s", s.Service(), service, summary(s))
		}
	}
}

package probes

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/kubernetes"
	"github.com/plainframework/agent/internal/probes/process"
)

// slowCluster knows a container from when it is told of it.
type slowCluster struct {
	mu      sync.Mutex
	known   map[string]kubernetes.Container // by id
	changed chan struct{}
}

func newSlowCluster() *slowCluster {
	return &slowCluster{known: map[string]kubernetes.Container{}, changed: make(chan struct{}, 1)}
}

func (c *slowCluster) Find(id, _ string) (kubernetes.Container, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.known[id]
	return known, ok
}

func (c *slowCluster) Changed() <-chan struct{} { return c.changed }

func (c *slowCluster) tell(id string, known kubernetes.Container) {
	c.mu.Lock()
	c.known[id] = known
	c.mu.Unlock()
	c.changed <- struct{}{}
}

// startContained runs one more process of the service, in a control group such as the
// kubelet makes for a container.
func (s service) startContained(t *testing.T, groups, id string) service {
	t.Helper()
	group := filepath.Join(groups, "kubepods", "burstable", "pod0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", id)
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command(s.exe)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for dir := group; dir != groups; dir = filepath.Dir(dir) {
			_ = unix.Rmdir(dir) // the last container's does it for all
		}
	})
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the target has no address: %v", err)
	}
	return service{pid: cmd.Process.Pid, exe: s.exe, url: "http://" + strings.TrimSpace(address)}
}

// controlGroups mounts version 2, whatever the machine has, and makes a group for a test.
func controlGroups(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := unix.Mount("none", root, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount control groups: %v", err)
	}
	dir := filepath.Join(root, fmt.Sprint("plain-test-", os.Getpid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Rmdir(dir)
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount control groups: %v", err)
		}
	})
	return dir
}

// runInCluster runs an agent until stop is called, which ends it and waits.
func runInCluster(t *testing.T, o Options, out *sink) (a *Agent, stop func()) {
	t.Helper()
	o.MetricsInterval = time.Hour
	a = startAgentOn(t, o, out, &lines{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return a, stop
}

func attributeOf(p *event.Process, key string) string {
	for _, kv := range p.Resource {
		if string(kv.Key) == key {
			return kv.Value.AsString()
		}
	}
	return ""
}

// pods of spans, and how many each has; "" for spans without one.
func (s *sink) pods() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	pods := map[string]int{}
	for _, one := range s.spans {
		pods[attributeOf(one.Process, "k8s.pod.name")]++
	}
	return pods
}

func stateOfTarget(a *Agent, pid int) string {
	for _, tg := range a.Status().Targets {
		if tg.PID == pid {
			return tg.State + ", " + tg.Reason
		}
	}
	return "unknown"
}

const idOne, idTwo = "3d274242653197955ae3bf3d1a5f1e9bd9fcf2d7f0cbff8b7c8bd1fdb9a1b8e5", "71f2b7e6a0a2c8f2f8a7f0a8c9d1b2a3e4f5061728394a5b6c7d8e9f00112233"

// TestOptIn: only a pod with the annotation has probes, and none before it is known.
func TestOptIn(t *testing.T) {
	first := startService(t)
	groups := controlGroups(t)
	cluster, out := newSlowCluster(), &sink{}
	a, stop := runInCluster(t, Options{
		Cluster: cluster, ClusterWait: time.Minute,
		Rules: process.Rules{Include: []process.Rule{{Annotations: map[string]string{"instrument": "true"}}}},
	}, out)
	in, other := first.startContained(t, groups, idOne), first.startContained(t, groups, idTwo)
	state := func(pid int) string { return stateOfTarget(a, pid) }
	waitFor(t, "both wait for the cluster", func() bool {
		return strings.HasPrefix(state(in.pid), "waiting") && strings.HasPrefix(state(other.pid), "waiting")
	})
	in.send(t, http.MethodGet, "/plain")
	other.send(t, http.MethodGet, "/plain")
	cluster.tell(idOne, kubernetes.Container{Namespace: "shop", Pod: "in", Annotations: map[string]string{"instrument": "true"}})
	cluster.tell(idTwo, kubernetes.Container{Namespace: "shop", Pod: "other"})
	waitFor(t, "each is decided about", func() bool {
		return state(in.pid) == "attached, " && state(other.pid) == "refused, not included by a rule"
	})
	for range 5 {
		in.send(t, http.MethodGet, "/plain")
		other.send(t, http.MethodGet, "/plain")
		first.send(t, http.MethodGet, "/plain") // in no pod
	}
	stop()
	if got := fmt.Sprint(out.pods()); got != "map[in:5]" {
		t.Errorf("spans by pod: %s", got)
	}
}

// TestLateMetadata: what comes before the cluster knows its container waits, and has the
// pod's name if that is known in time; else it goes out without. All is measured.
func TestLateMetadata(t *testing.T) {
	first := startService(t)
	groups := controlGroups(t)
	const wait = 3 * time.Second
	cluster, out := newSlowCluster(), &sink{}
	a, stop := runInCluster(t, Options{
		Cluster: cluster, ClusterWait: wait, Rules: process.Rules{Include: []process.Rule{{Exe: first.exe}}},
	}, out)
	const outside = 2 // New has attached to what runs
	for range outside {
		first.send(t, http.MethodGet, "/plain")
	}
	waitFor(t, "spans of what is in no container", func() bool { return out.pods()[""] == outside })

	soon, began := first.startContained(t, groups, idOne), time.Now()
	// Linux before 5.15 sees nothing before the process is known.
	waitFor(t, "the process is known", func() bool { return stateOfTarget(a, soon.pid) == "attached, " })
	for range 3 {
		soon.send(t, http.MethodGet, "/plain")
	}
	time.Sleep(wait / 6)
	if n := out.pods()[""]; time.Since(began) < wait && n != outside {
		t.Errorf("%d spans did not wait", n-outside)
	}
	cluster.tell(idOne, kubernetes.Container{Name: "web", Namespace: "shop", Pod: "soon", Deployment: "shop"})
	waitFor(t, "spans with their pod", func() bool { return out.pods()["soon"] == 3 })

	never := first.startContained(t, groups, idTwo)
	waitFor(t, "the process is known", func() bool { return stateOfTarget(a, never.pid) == "attached, " })
	for range 3 {
		never.send(t, http.MethodGet, "/plain")
	}
	waitFor(t, "spans without a pod", func() bool { return out.pods()[""] == outside+3 })
	cluster.tell(idTwo, kubernetes.Container{Namespace: "shop", Pod: "late"})
	waitFor(t, "from then on they have one", func() bool {
		never.send(t, http.MethodGet, "/plain")
		return out.pods()["late"] > 0
	})
	stop()
	for _, s := range out.spans {
		if attributeOf(s.Process, "k8s.pod.name") == "soon" &&
			(attributeOf(s.Process, "service.name") != "shop" || attributeOf(s.Process, "container.id") != idOne) {
			t.Errorf("resource %v", s.Process.Resource)
		}
	}
	measured := 0
	for _, p := range out.points {
		for _, n := range p.Counts {
			measured += int(n)
		}
	}
	if spans := out.count()["GET /plain"]; measured != spans {
		t.Errorf("%d requests measured, %d spans", measured, spans)
	}
}

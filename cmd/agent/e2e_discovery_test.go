//go:build e2e

package main

import (
	"bufio"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testDiscovery: processes that rules choose, as they are started.
func (e *e2e) testDiscovery(t *testing.T) {
	small := e.build(t, "discovered", "../../internal/probes/testdata/target", nil)
	dir := filepath.Join(e.dir, "fleet")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var exes []string
	for i := range 50 {
		exe := filepath.Join(dir, fmt.Sprint("service", i))
		copyFile(t, small, exe)
		exes = append(exes, exe)
	}
	config := filepath.Join(e.dir, "discovery.yaml")
	rules := fmt.Sprintf("targets: {include: [{exe: %s/*}], exclude: [{env: {NOT_ME: '1'}}]}\ntraces: {drop: [{user_agent: kube-probe/*}, {path: /other}, {path: /query, user_agent: bot/1}]}\n", dir)
	if err := os.WriteFile(config, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Run("fleet", func(t *testing.T) {
		links := e.testFleet(t, config, exes[:10], 20)
		if more := e.testFleet(t, config, exes, 10); more != links {
			t.Errorf("a binary has %d links with 10 processes of each, and %d with 20", more, links)
		}
	})
	t.Run("first request", func(t *testing.T) { e.testFirstRequests(t, config, exes[0], false) })
	t.Run("first request beside another", func(t *testing.T) { e.testFirstRequests(t, config, exes[1], true) })
	t.Run("churn", func(t *testing.T) { e.testChurn(t, config, exes[:5], false) })
	t.Run("churn of the same numbers", func(t *testing.T) { e.testChurn(t, config, exes[:5], true) })
	t.Run("drop", func(t *testing.T) { e.testDrop(t, config, exes[2]) })
	t.Run("overwritten", func(t *testing.T) { e.testOverwritten(t, config, exes[3]) })
}

// short is a process that answers requests until it is ended.
type short struct {
	cmd *exec.Cmd
	url string
}

func startShort(t *testing.T, exe string, env ...string) short {
	t.Helper()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("no address: %v", err)
	}
	return short{cmd, "http://" + strings.TrimSpace(address)}
}

func (s short) end() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// testFirstRequests starts a process a hundred times, sends it one request 25 ms after
// it listens, and ends it. Beside a process of the same binary that is not chosen, probes
// must be put into each one by itself, which takes a moment: more than the 25 ms where the
// kernel still takes probes out that were put in before, or the host is busy. So it is said
// of the better of two hundreds.
func (e *e2e) testFirstRequests(t *testing.T, config, exe string, beside bool) {
	const starts, want = 100, 95
	got := e.firstRequests(t, config, exe, beside, starts)
	if got < want {
		got = e.firstRequests(t, config, exe, beside, starts)
	}
	if got < want {
		t.Errorf("%d of %d first requests gave a span, want %d", got, starts, want)
	}
}

func (e *e2e) firstRequests(t *testing.T, config, exe string, beside bool, starts int) int {
	t.Helper()
	a := e.startAgent(t, "--config", config, "--log-level", "debug")
	if beside {
		other := startShort(t, exe, "NOT_ME=1")
		defer other.end()
		defer statusOf(other.url + "/plain")
	}
	time.Sleep(200 * time.Millisecond)
	answered := map[string]bool{}
	for range starts {
		s := startShort(t, exe)
		time.Sleep(25 * time.Millisecond)
		if statusOf(s.url+"/plain") == http.StatusOK {
			answered[fmt.Sprint(s.cmd.Process.Pid)] = true
		}
		s.end()
	}
	settle(a.seen)
	got := map[string]bool{}
	for _, s := range a.finish(t) {
		pid := s.Resource.Text("process.pid")
		if !answered[pid] {
			t.Errorf("a span of process %s, which was not asked for", pid)
		}
		got[pid] = true
	}
	t.Logf("%d of %d first requests gave a span", len(got), starts)
	if len(answered) != starts {
		t.Errorf("%d of %d requests were answered", len(answered), starts)
	}
	return len(got)
}

// testDrop: requests that a rule names are measured, with their queries, and have no spans.
func (e *e2e) testDrop(t *testing.T, config, exe string) {
	s := startShort(t, exe)
	defer s.end()
	a := e.startAgent(t, "--config", config)
	const dropped, kept = 4, 3 // of the paths below
	for range perPath {
		for path, agents := range map[string][]string{
			"/plain":     {"kube-probe/1.36", "my-kube-probe/1.36"},
			"/other":     {"any"},
			"/other?a=b": {"any"},
			"/others":    {"any"},
			"/query":     {"bot/1", "bot/12"},
		} {
			for _, agent := range agents {
				send("GET", s.url+path, map[string]string{"User-Agent": agent})
			}
		}
	}
	eventually(t, 10*time.Second, "the others are spans", func() bool { return serverSpans(a.seen) >= kept*perPath })
	status, _ := a.readStatus(t)
	if n := status.Probes.Losses["dropped_by_rule"]; n < dropped*perPath {
		t.Errorf("%d dropped by rule, want %d and their queries", n, dropped*perPath)
	}
	got := map[string]int{}
	for _, s := range a.finish(t) {
		got[s.Attrs.Text("url.path")+" "+s.Attrs.Text("user_agent.original")]++
	}
	want := map[string]int{"/plain my-kube-probe/1.36": perPath, "/others any": perPath, "/query bot/12": perPath, " ": perPath}
	if !maps.Equal(got, want) { // the last is the query of the one before
		t.Errorf("spans %v, want %v", got, want)
	}
	measured := map[string]uint64{}
	for _, p := range a.seen.Points() {
		measured[p.Name] += p.Count
	}
	if n := measured["http.server.request.duration"]; n != (dropped+kept)*perPath {
		t.Errorf("%d requests measured, want %d", n, (dropped+kept)*perPath)
	}
	if n := measured["db.client.operation.duration"]; n != 2*perPath {
		t.Errorf("%d queries measured, want %d: those of dropped requests, too", n, 2*perPath)
	}
}

// testOverwritten: a file that is written to in place keeps its inode, to which probes
// belong. They must be gone when the new program starts: in it they would stand anywhere.
func (e *e2e) testOverwritten(t *testing.T, config, exe string) {
	a := e.startAgent(t, "--config", config)
	s := startShort(t, exe)
	eventually(t, 10*time.Second, "a span", func() bool {
		statusOf(s.url + "/plain")
		return serverSpans(a.seen) > 0
	})
	s.end()
	settle(a.seen)
	before := serverSpans(a.seen)
	other := e.build(t, "overwriting", "../../internal/probes/testdata/target", nil, "-gcflags=all=-N -l")
	data, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(exe, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	f.Close()
	time.Sleep(1500 * time.Millisecond) // files are looked at each second
	s = startShort(t, exe)
	defer s.end()
	eventually(t, 10*time.Second, "spans of the new program", func() bool {
		if statusOf(s.url+"/plain") != http.StatusOK {
			t.Fatal("the new program does not answer")
		}
		return serverSpans(a.seen) > before
	})
	a.finish(t)
}

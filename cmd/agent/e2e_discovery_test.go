//go:build e2e

package main

import (
	"bufio"
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
)

// testDiscovery: processes that rules choose, as they are started.
func (e *e2e) testDiscovery(t *testing.T) {
	small := e.build(t, "discovered", "../../internal/probes/testdata/target", nil)
	dir := filepath.Join(e.dir, "fleet")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var exes []string
	for i := range 10 {
		exe := filepath.Join(dir, fmt.Sprint("service", i))
		copyFile(t, small, exe)
		exes = append(exes, exe)
	}
	config := filepath.Join(e.dir, "discovery.yaml")
	rules := fmt.Sprintf("targets: {include: [{exe: %s/*}], exclude: [{env: {NOT_ME: '1'}}]}\ntraces: {drop: [{user_agent: kube-probe/*}]}\n", dir)
	if err := os.WriteFile(config, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Run("fleet", func(t *testing.T) { e.testFleet(t, config, exes) })
	t.Run("first request", func(t *testing.T) { e.testFirstRequests(t, config, exes[0], false) })
	t.Run("first request beside another", func(t *testing.T) { e.testFirstRequests(t, config, exes[1], true) })
	t.Run("churn", func(t *testing.T) { e.testChurn(t, config, exes[:5]) })
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

// testFleet: 200 processes of 10 binaries that run when the agent starts.
func (e *e2e) testFleet(t *testing.T, config string, exes []string) {
	var fleet []short
	for range 20 {
		for _, exe := range exes {
			s := startShort(t, exe)
			defer s.end()
			fleet = append(fleet, s)
		}
	}
	begin := time.Now()
	a := e.startAgent(t, "--config", config)
	took := time.Since(begin)
	status, _ := a.readStatus(t)
	rss := residentKB(t, a.pid())
	t.Logf("%d processes of %d binaries attached in %v; the agent has %d MB", len(status.Probes.Targets), len(status.Probes.Binaries), took, rss>>10)
	if len(status.Probes.Targets) != len(fleet) || len(status.Probes.Binaries) != len(exes) {
		t.Errorf("%d targets of %d binaries", len(status.Probes.Targets), len(status.Probes.Binaries))
	}
	if took > 10*time.Second*time.Duration(*patience) || rss > 100<<10 {
		t.Errorf("attached after %v, with %d KB", took, rss)
	}
	for _, s := range fleet {
		statusOf(s.url + "/plain")
	}
	eventually(t, 10*time.Second, "a span of each", func() bool { return serverSpans(a.seen) >= len(fleet) })
	pids := map[string]int{}
	for _, s := range a.finish(t) {
		pids[s.Resource.Text("process.pid")]++
	}
	for _, s := range fleet {
		if n := pids[fmt.Sprint(s.cmd.Process.Pid)]; n != 1 {
			t.Errorf("%d spans of process %d", n, s.cmd.Process.Pid)
		}
	}
}

// testFirstRequests starts a process a hundred times, sends it one request 25 ms after
// it listens, and ends it. Beside a process of the same binary that is not chosen, probes
// must be put into each one by itself, which takes a moment.
func (e *e2e) testFirstRequests(t *testing.T, config, exe string, beside bool) {
	const starts = 100
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
	if len(answered) != starts || len(got) < 95 {
		t.Errorf("%d of %d first requests gave a span", len(got), len(answered))
	}
}

// testChurn: 50 starts and exits a second.
func (e *e2e) testChurn(t *testing.T, config string, exes []string) {
	a := e.startAgent(t, "--config", config)
	run := func(seconds int) (requests int) {
		var mu sync.Mutex
		var running sync.WaitGroup
		for i := range 50 * seconds {
			running.Go(func() {
				s := startShort(t, exes[i%len(exes)])
				defer s.end()
				if statusOf(s.url+"/plain") == http.StatusOK {
					mu.Lock()
					requests++
					mu.Unlock()
				}
			})
			time.Sleep(20 * time.Millisecond)
		}
		running.Wait()
		return requests
	}
	run(2)
	settle(a.seen)
	fds, rss := len(openFiles(t, a.pid())), residentKB(t, a.pid())
	before := serverSpans(a.seen)
	requests := run(8)
	settle(a.seen)
	got := serverSpans(a.seen) - before
	time.Sleep(2 * time.Second) // linger
	fdsAfter, rssAfter := len(openFiles(t, a.pid())), residentKB(t, a.pid())
	t.Logf("%d requests to as many processes gave %d spans; %d → %d files, %d → %d MB", requests, got, fds, fdsAfter, rss>>10, rssAfter>>10)
	if got < requests*95/100 || got > requests {
		t.Errorf("%d requests gave %d spans", requests, got)
	}
	if fdsAfter > fds+20 || rssAfter > rss+16<<10 {
		t.Errorf("files %d, then %d; memory %d KB, then %d", fds, fdsAfter, rss, rssAfter)
	}
	a.finish(t)
}

// testDrop: requests that a rule names are measured, and have no spans.
func (e *e2e) testDrop(t *testing.T, config, exe string) {
	s := startShort(t, exe)
	defer s.end()
	a := e.startAgent(t, "--config", config)
	for range perPath {
		send("GET", s.url+"/plain", map[string]string{"User-Agent": "kube-probe/1.36"})
		send("GET", s.url+"/plain", map[string]string{"User-Agent": "my-kube-probe/1.36"})
	}
	eventually(t, 10*time.Second, "the others are spans", func() bool { return serverSpans(a.seen) >= perPath })
	status, _ := a.readStatus(t)
	if n := status.Probes.Losses["dropped_by_rule"]; n != perPath {
		t.Errorf("%d dropped by rule, want %d", n, perPath)
	}
	a.finish(t)
	if n := serverSpans(a.seen); n != perPath {
		t.Errorf("%d spans, want %d", n, perPath)
	}
	measured := uint64(0)
	for _, p := range a.seen.Points() {
		if p.Name == "http.server.request.duration" {
			measured += p.Count
		}
	}
	if measured != 2*perPath {
		t.Errorf("%d measured, want %d", measured, 2*perPath)
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

func residentKB(t *testing.T, pid int) (kb int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			_, _ = fmt.Sscan(rest, &kb)
		}
	}
	return kb
}

func openFiles(t *testing.T, pid int) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

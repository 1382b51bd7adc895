//go:build e2e

package main

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/plainframework/agent/internal/observer"
)

// testFleet: many processes of some binaries, which run when the agent starts. It returns
// how many links the agent has for each binary.
func (e *e2e) testFleet(t *testing.T, config string, exes []string, each int) int {
	var fleet []short
	for range each {
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
	links := len(held(t, a.pid()).links) / len(exes)
	t.Logf("%d processes of %d binaries attached in %v; the agent has %d MB, and %d links for each binary",
		len(status.Probes.Targets), len(status.Probes.Binaries), took, rss>>10, links)
	if len(status.Probes.Targets) != len(fleet) || len(status.Probes.Binaries) != len(exes) {
		t.Errorf("%d targets of %d binaries", len(status.Probes.Targets), len(status.Probes.Binaries))
	}
	// What attaching takes grows with the binaries.
	limit := time.Duration(max(10, len(exes))) * time.Second * time.Duration(*patience)
	if took > limit || rss > 100<<10 {
		t.Errorf("attached after %v, with %d KB", took, rss)
	}
	for _, s := range fleet {
		statusOf(s.url + "/plain")
	}
	eventually(t, 20*time.Second, "a span of each", func() bool { return serverSpans(a.seen) >= len(fleet) })
	pids := map[string]int{}
	for _, s := range a.finish(t) {
		pids[s.Resource.Text("process.pid")]++
	}
	for _, s := range fleet {
		if n := pids[fmt.Sprint(s.cmd.Process.Pid)]; n != 1 {
			t.Errorf("%d spans of process %d", n, s.cmd.Process.Pid)
		}
	}
	return links
}

// churned is a process that answered one request, by that request's number.
type churned struct{ pid, service string }

// testChurn: 50 starts and exits a second, with numbers of processes that come again
// every second if again is set. Each span must have the resource of the process that
// answered, and its metrics be of that one alone; and the agent is to have afterwards what
// it had before.
func (e *e2e) testChurn(t *testing.T, config string, exes []string, again bool) {
	warm, seconds := 8, 8 // the heap grows until it is what so many processes take
	env := []string{"OTEL_METRIC_EXPORT_INTERVAL=5000"}
	if !again {
		// What is resident is to follow what lives, not how long ago that was looked at. Where
		// numbers come again, an agent that collects so often looks too late.
		env = append(env, "GOGC=25")
		warm = 4
		if *whole {
			warm, seconds = 20, 60
		}
	}
	seen := observer.New(observer.Options{Keep: 1 << 20})
	a := e.launchAgentTo(t, seen, env, "--config", config)
	a.waitReady(t)
	first := churn(t, exes, warm, 0, again)
	settle(seen)
	waitEmpty(t, a)
	before, rss := held(t, a.pid()), residentKB(t, a.pid())
	asked := churn(t, exes, seconds, len(first), again)
	settle(seen)
	waitEmpty(t, a)
	after, rssAfter := held(t, a.pid()), residentKB(t, a.pid())
	for n, c := range first {
		asked[n] = c
	}
	spans, merged := checkAttribution(t, seen, asked)
	t.Logf("%d requests to as many processes gave %d spans; files %d → %d, memory %d → %d MB, entries of maps %v → %v",
		len(asked), spans, before.files, after.files, rss>>10, rssAfter>>10, before.entries, after.entries)
	// Of a number that is given again within 50 ms histograms can be of both processes.
	if merged > 0 && !again || merged > spans/10 {
		t.Errorf("%d processes of %d have not one request in their histograms", merged, spans)
	}
	if spans < len(asked)*95/100 {
		t.Errorf("%d requests gave %d spans", len(asked), spans)
	}
	if after.files > before.files+20 || rssAfter > rss+16<<10 {
		t.Errorf("files %d, then %d; memory %d KB, then %d", before.files, after.files, rss, rssAfter)
	}
	n := goroutines(t, a)
	t.Logf("%d goroutines", n)
	if n > 60 {
		t.Errorf("%d goroutines are left", n)
	}
}

// churn starts 50 processes a second, sends each a request with a number, from first on,
// and ends it. It returns which process answered which number.
func churn(t *testing.T, exes []string, seconds, first int, again bool) map[string]churned {
	const lastPID = "/proc/sys/kernel/ns_last_pid"
	base, err := os.ReadFile(lastPID)
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]churned{}
	var mu sync.Mutex
	var running sync.WaitGroup
	for i := range 50 * seconds {
		if again && i%50 == 0 {
			if err := os.WriteFile(lastPID, base, 0); err != nil {
				t.Fatal(err)
			}
		}
		running.Go(func() {
			exe, n := exes[i%len(exes)], strconv.Itoa(first+i)
			s := startShort(t, exe)
			defer s.end()
			if statusOf(s.url+"/plain?n="+n) != http.StatusOK {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			asked[n] = churned{strconv.Itoa(s.cmd.Process.Pid), exe[strings.LastIndexByte(exe, '/')+1:]}
		})
		time.Sleep(20 * time.Millisecond)
	}
	running.Wait()
	return asked
}

// checkAttribution compares spans and metrics with who was asked, and returns how many
// spans there are, and how many processes have not just theirs in their histograms.
func checkAttribution(t *testing.T, seen *observer.Observer, asked map[string]churned) (spans, merged int) {
	t.Helper()
	instances, numbers := map[string]string{}, map[string]bool{}
	pids := map[string]int{}
	nameless := 0
	for _, s := range seen.Spans() {
		n := strings.TrimPrefix(s.Attrs.Text("url.query"), "n=")
		want, ok := asked[n]
		if got := (churned{s.Resource.Text("process.pid"), s.Service()}); !ok || got != want || numbers[n] {
			t.Errorf("request %s is of %v, want %v, once", n, got, want)
		}
		numbers[n] = true
		pids[want.pid]++
		spans++
		id := s.Resource.Text("service.instance.id")
		if id == "" {
			nameless++ // it was gone before anybody could look at it
			continue
		}
		if other, twice := instances[id]; twice {
			t.Errorf("requests %s and %s, of process %s, have the same instance", n, other, want.pid)
		}
		instances[id] = n
	}
	if nameless > spans/10 { // they are killed with their answer; a busy machine looks later
		t.Errorf("%d of %d spans know no more of their process than its binary", nameless, spans)
	}
	merged = checkMeasured(t, seen, asked, instances, spans)
	again := 0
	for _, n := range pids {
		if n > 1 {
			again++
		}
	}
	t.Logf("%d numbers of processes came more than once; %d spans know only the binary; %d histograms are not of one process", again, nameless, merged)
	return spans, merged
}

// checkMeasured counts the instances that have not one request in their histograms; all
// together must have as many as were asked.
func checkMeasured(t *testing.T, seen *observer.Observer, asked map[string]churned, instances map[string]string, spans int) (merged int) {
	t.Helper()
	all, of := 0, map[string]int{}
	for _, p := range seen.Points() {
		if p.Name != "http.server.request.duration" {
			continue
		}
		all += int(p.Count)
		id := p.Resource.Text("service.instance.id")
		of[id] += int(p.Count)
		if n, ok := instances[id]; ok && asked[n] != (churned{p.Resource.Text("process.pid"), p.Service()}) {
			t.Errorf("a histogram of %v, want %v", p.Resource, asked[n])
		}
	}
	for id := range instances {
		if of[id] != 1 {
			merged++
		}
	}
	if all < spans || all > len(asked) {
		t.Errorf("%d requests measured, of %d spans and %d requests", all, spans, len(asked))
	}
	return merged
}

// holdings are what an agent has of the kernel.
type holdings struct {
	files   int
	links   []string
	entries map[string]int // of hash maps, by name
}

func held(t *testing.T, pid int) holdings {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fdinfo", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := holdings{files: len(list), entries: map[string]int{}}
	for _, f := range list {
		text, _ := os.ReadFile(dir + "/" + f.Name()) // it may be closed by now
		for line := range strings.Lines(string(text)) {
			switch key, value, _ := strings.Cut(strings.TrimSpace(line), ":"); key {
			case "link_id":
				h.links = append(h.links, value)
			case "map_id":
				id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
				if err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				h.count(t, ebpf.MapID(id))
			}
		}
	}
	return h
}

// count counts the entries of a hash map.
func (h *holdings) count(t *testing.T, id ebpf.MapID) {
	t.Helper()
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return // the kernel has freed it
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	switch m.Type() {
	case ebpf.Hash, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.LRUCPUHash:
	default:
		return
	}
	n := 0
	key := make([]byte, m.KeySize())
	value := make([]byte, m.ValueSize())
	for it := m.Iterate(); it.Next(&key, &value); {
		n++
	}
	h.entries[info.Name] = n
}

// waitEmpty waits until the kernel has nothing of processes that are gone.
func waitEmpty(t *testing.T, a *watcher) {
	t.Helper()
	var left string
	defer func() {
		if left != "" {
			t.Log("there is left:", left)
		}
	}()
	eventually(t, 30*time.Second, "the maps have nothing of the processes that are gone", func() bool {
		left = ""
		entries := held(t, a.pid()).entries
		for _, name := range []string{"processes", "all_series", "lineages", "joins", "panics", "without_logs"} {
			if entries[name] > 0 {
				left += fmt.Sprintf(" %d in %s", entries[name], name)
			}
		}
		return left == ""
	})
}

// goroutines ends an agent by SIGQUIT, at which the Go runtime prints all of them, and
// counts.
func goroutines(t *testing.T, a *watcher) int {
	t.Helper()
	if err := a.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	if !a.ends(12 * time.Second) {
		t.Fatal("the agent does not end by SIGQUIT")
	}
	n := strings.Count(a.output(), "\ngoroutine ")
	if n == 0 {
		t.Errorf("no goroutine is printed:\n%s", a.output())
	}
	return n
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

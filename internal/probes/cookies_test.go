package probes

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/cilium/ebpf/ringbuf"
)

// modes are those that this kernel can do; each newer one can do the older ones.
func modes() []attachMode {
	return []attachMode{attachMulti, attachCookies, attachLookup}[bestMode()-attachMulti:]
}

// TestModes sees the same, whichever way probes are attached.
func TestModes(t *testing.T) {
	s := startService(t)
	for i, mode := range modes() {
		t.Run(mode.String(), func(t *testing.T) {
			o := Options{PIDs: []int{s.pid}, mode: mode}
			if i%2 == 0 {
				o = Options{Exes: []string{s.exe}, mode: mode}
			}
			var out sink
			a := startAgentOn(t, o, &out, &lines{})
			for range 20 {
				s.send(t, http.MethodGet, "/plain")
				s.send(t, http.MethodGet, "/query")
			}
			drain(t, a)
			if got := fmt.Sprint(out.count()); got != "map[GET /plain:20 GET /query:20 UPDATE t:20]" {
				t.Errorf("spans %s", got)
			}
			if losses := a.Status().Losses; len(losses) > 0 {
				t.Errorf("losses %v", losses)
			}
		})
	}
}

// TestUnknownProcess: without cookies, what a process does before user space knows it is
// counted, and nothing of it is taken for something else. From when it is known on, all
// is seen.
func TestUnknownProcess(t *testing.T) {
	known := startService(t)
	var out sink
	a := startAgentOn(t, Options{Exes: []string{known.exe}, mode: attachLookup}, &out, &lines{})
	late := known.another(t)
	for range 5 {
		late.send(t, http.MethodGet, "/query")
		known.send(t, http.MethodGet, "/plain")
	}
	// Nobody has read the ring yet: late is unknown. A request and a query are two.
	if got := a.Status().Losses["unknown_process"]; got != 10 {
		t.Errorf("%d operations lost in an unknown process, want 10", got)
	}
	drain(t, a) // brings the news of its execve
	if got := fmt.Sprint(out.count()); got != "map[GET /plain:5]" {
		t.Errorf("spans %s before the process is known", got)
	}
	late.send(t, http.MethodGet, "/query")
	drain(t, a)
	if got := fmt.Sprint(out.count()); got != "map[GET /plain:5 GET /query:1 UPDATE t:1]" {
		t.Errorf("spans %s", got)
	}
	for _, s := range out.spans {
		if want := late.pid; s.Process.PID != want && s.Name != "GET /plain" {
			t.Errorf("%s is of process %d, want %d", s.Name, s.Process.PID, want)
		}
	}
}

// TestAmbiguous: programs may share a site only if they are told the same there.
func TestAmbiguous(t *testing.T) {
	one := planned{program: "one", offsets: []uint64{16, 32}, cookies: []uint64{1, 2}}
	same := planned{program: "same", offsets: []uint64{32}, cookies: []uint64{2}}
	other := planned{program: "other", offsets: []uint64{8, 32}, cookies: []uint64{7, 3}}
	if err := one.ambiguous([]planned{one, same}); err != nil {
		t.Errorf("the same cookie at a shared site: %v", err)
	}
	if one.ambiguous([]planned{one, same, other}) == nil || other.ambiguous([]planned{one, other}) == nil {
		t.Error("different cookies at a shared site are no error")
	}
}

// TestMissedProcess: a process of whose execve nobody has told is found when something is
// lost in it.
func TestMissedProcess(t *testing.T) {
	known := startService(t)
	var out sink
	a := startAgentOn(t, Options{Exes: []string{known.exe}, mode: attachLookup}, &out, &lines{})
	if err := a.exec.Close(); err != nil {
		t.Fatal(err)
	}
	late := known.another(t)
	a.targets.meetMissed()
	late.send(t, http.MethodGet, "/plain") // lost
	a.targets.meetMissed()
	late.send(t, http.MethodGet, "/plain")
	drain(t, a)
	if got, lost := fmt.Sprint(out.count()), a.Status().Losses["unknown_process"]; got != "map[GET /plain:1]" || lost != 1 {
		t.Errorf("spans %s, lost %d; want one and one", got, lost)
	}
}

// drain hands over what is in the ring, in the place of the reader that does not run.
func drain(t *testing.T, a *Agent) {
	t.Helper()
	var record ringbuf.Record
	if err := a.reader.drain(&record); err != nil {
		t.Fatal(err)
	}
}

// count is how many spans there are of each name.
func (s *sink) count() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := map[string]int{}
	for _, one := range s.spans {
		names[one.Name]++
	}
	return names
}

package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newWatcher(t testing.TB) *Watcher {
	t.Helper()
	w, err := NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func TestScan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "target")
	copyFile(t, "/bin/sleep", path)
	w := newWatcher(t)
	id, err := Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := w.FindByExe(id); err != nil || len(list) != 0 {
		t.Errorf("before: %v, %v", list, err)
	}
	a := start(t, exec.Command(path, "60"))
	b := start(t, exec.Command(path, "60"))
	p := open(t, a.Process.Pid)
	list, err := w.FindByExe(id)
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, r := range list {
		if r.PID == p.PID() && r.StartTime != p.StartTime() || r.PID != a.Process.Pid && r.PID != b.Process.Pid {
			t.Errorf("found %+v", r)
		}
	}
	os.Remove(path)
	kill(t, b)
	if list, err := w.FindByExe(id); err != nil || len(list) != 1 || list[0].PID != a.Process.Pid {
		t.Errorf("after: %v, %v", list, err)
	}
	all, err := w.Scan()
	if err != nil {
		t.Fatal(err)
	}
	self := false
	for _, r := range all {
		self = self || r.PID == os.Getpid()
	}
	if !self {
		t.Error("the scan misses this process")
	}
}

func TestStat(t *testing.T) {
	for path, want := range map[string]string{
		t.TempDir(): "is a directory", "/dev/null": "no regular file", "/does/not/exist": "no such file",
	} {
		if _, err := Stat(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestExits starts many processes, and wants to hear of each exit once.
func TestExits(t *testing.T) {
	w := newWatcher(t)
	const n = 150 // more than the channel holds
	want := map[*Process]bool{}
	var cmds []*exec.Cmd
	for range n {
		cmd := start(t, exec.Command("sleep", "60"))
		p := open(t, cmd.Process.Pid)
		for range 2 { // the second time changes nothing
			if err := w.Track(p); err != nil {
				t.Fatal(err)
			}
		}
		cmds, want[p] = append(cmds, cmd), true
		if len(cmds)%3 == 0 {
			p.Close() // the watcher has a descriptor of its own
		}
	}
	quiet := start(t, exec.Command("sleep", "60"))
	q := open(t, quiet.Process.Pid)
	if err := w.Track(q); err != nil {
		t.Fatal(err)
	}
	w.Untrack(q)
	w.Untrack(q)
	kill(t, quiet)
	for _, cmd := range cmds {
		cmd.Process.Kill() // not waited for: zombies count as exited
	}
	deadline := time.After(20 * time.Second)
	for len(want) > 0 {
		select {
		case p := <-w.Exits():
			if !want[p] {
				t.Fatalf("process %d twice, or not tracked", p.PID())
			}
			delete(want, p)
		case <-deadline:
			t.Fatalf("%d exits missing", len(want))
		}
	}
	select {
	case p := <-w.Exits():
		t.Errorf("process %d, which nobody tracks", p.PID())
	case <-time.After(50 * time.Millisecond):
	}
	if len(w.tracked) != 0 || len(w.fds) != 0 {
		t.Errorf("%d, %d processes left", len(w.tracked), len(w.fds))
	}
}

func TestTrackAfterExit(t *testing.T) {
	w := newWatcher(t)
	cmd := start(t, exec.Command("sleep", "60"))
	p := open(t, cmd.Process.Pid)
	kill(t, cmd)
	if err := w.Track(p); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-w.Exits():
		if got != p {
			t.Errorf("process %d", got.PID())
		}
	case <-time.After(5 * time.Second):
		t.Error("no exit")
	}
}

func TestWatcherClose(t *testing.T) {
	before := countFDs(t)
	w := newWatcher(t)
	cmd := start(t, exec.Command("sleep", "60"))
	p := open(t, cmd.Process.Pid)
	if err := w.Track(p); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, ok := <-w.Exits(); ok {
		t.Error("an exit after Close")
	}
	if err := w.Track(p); err == nil {
		t.Error("tracked by a closed watcher")
	}
	w.Untrack(p)
	p.Close()
	kill(t, cmd)
	if after := countFDs(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func countFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func BenchmarkScan(b *testing.B) {
	w := newWatcher(b)
	n := 0
	for b.Loop() {
		list, _ := w.Scan()
		n = len(list)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(max(n, 1)), "ns/process")
}

func BenchmarkOpen(b *testing.B) {
	cmd := start(b, exec.Command("sleep", "60"))
	for b.Loop() {
		p, err := Open(cmd.Process.Pid)
		if err != nil {
			b.Fatal(err)
		}
		p.Close()
	}
}

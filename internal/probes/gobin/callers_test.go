package gobin

import (
	"os"
	"strings"
	"testing"
)

// TestCallers finds the calls of a function in this test's own executable, which
// objdump would show as well.
func TestCallers(t *testing.T) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	if twiceCalled(1)+callsOnce(2)+callsTwice(3) == 0 {
		t.Fatal("never")
	}
	mine := func(name string) bool { return strings.Contains(name, "gobin.calls") }
	sites, err := b.Callers("github.com/plainframework/agent/internal/probes/gobin.twiceCalled", mine)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, s := range sites {
		got[s.Func[strings.LastIndexByte(s.Func, '.')+1:]]++
		if !s.Emulated || !strings.Contains(s.Instr, "CALL") && !strings.Contains(s.Instr, "BL") {
			t.Errorf("site %+v", s)
		}
	}
	if got["callsOnce"] != 1 || got["callsTwice"] != 2 || len(got) != 2 {
		t.Errorf("calls by function: %v", got)
	}
	if _, err := b.Callers("no.such", mine); err == nil {
		t.Error("calls of a function that is not there")
	}
}

//go:noinline
func twiceCalled(n int) int { return n + 1 }

//go:noinline
func callsOnce(n int) int { return twiceCalled(n) }

//go:noinline
func callsTwice(n int) int { return twiceCalled(n) + twiceCalled(n+1) }

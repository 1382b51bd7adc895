package process

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// startTime is field 22 of a process's stat.
func startTime(t *testing.T, pid int) uint64 {
	t.Helper()
	p, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return p.StartTime()
}

func TestCPUTime(t *testing.T) {
	pid := os.Getpid()
	start := startTime(t, pid)
	before, err := CPUTime(pid, start)
	if err != nil {
		t.Fatal(err)
	}
	used := time.Duration(0)
	for deadline := time.Now().Add(10 * time.Second); used < 100*time.Millisecond && time.Now().Before(deadline); {
		now, err := CPUTime(pid, start)
		if err != nil {
			t.Fatal(err)
		}
		used = now - before
	}
	if used < 100*time.Millisecond || used > 5*time.Second {
		t.Errorf("used %v by reading for so long", used)
	}
	if _, err := CPUTime(pid, start+1); !errors.Is(err, ErrGone) {
		t.Errorf("another process of this number: %v", err)
	}
}

func TestParseCPU(t *testing.T) {
	line := "7 (a) b) R 1 7 7 0 -1 4194304 1 2 3 4 250 50 0 0 20 0 1 0 99 0 0"
	for _, tt := range []struct {
		name, line string
		want       time.Duration
		bad        bool
	}{
		{"user and system", line, 3 * time.Second, false},
		{"cut", line[:40], 0, true},
		{"no number", strings.Replace(line, "250", "2x0", 1), 0, true},
		{"larger than time", strings.Replace(line, "250", "18446744073709551615", 1), 0, true},
	} {
		got, err := parseCPU([]byte(tt.line))
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%s: %v, %v, want %v", tt.name, got, err, tt.want)
		}
	}
}

// TestInspect reads the test's own memory.
func TestInspect(t *testing.T) {
	pid := os.Getpid()
	start := startTime(t, pid)
	secret := new(uint64)
	*secret = 0x1122334455667788
	addr := uint64(uintptr(unsafe.Pointer(secret)))
	type result struct {
		value uint64
		bad   error
	}
	got, err := Inspect(pid, start, func(read Reader) result {
		var b [8]byte
		if err := read(addr, b[:]); err != nil {
			return result{bad: err}
		}
		return result{binary.LittleEndian.Uint64(b[:]), read(1, b[:])}
	})
	if err != nil || got.value != *secret {
		t.Errorf("read %#x, %v, want %#x", got.value, err, *secret)
	}
	if got.bad == nil {
		t.Error("address 1 was read")
	}
	if _, err := Inspect(pid, start+1, func(Reader) int { return 1 }); !errors.Is(err, ErrGone) {
		t.Errorf("another process of this number: %v", err)
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(cmd.Process.Pid, 1, func(Reader) int { return 1 }); err == nil {
		t.Error("a process that is gone was inspected")
	}
}

// TestInspectSlow: who does not answer is left, and reads nothing more.
func TestInspectSlow(t *testing.T) {
	pid := os.Getpid()
	start := startTime(t, pid)
	release, late := make(chan struct{}), make(chan error, maxStuck)
	began := time.Now()
	results := make(chan error, maxStuck)
	for range maxStuck {
		go func() {
			_, err := Inspect(pid, start, func(read Reader) int {
				<-release
				late <- read(1, make([]byte, 8))
				return 0
			})
			results <- err
		}()
	}
	for range maxStuck {
		if err := <-results; !errors.Is(err, ErrTimeout) {
			t.Errorf("no answer: %v", err)
		}
	}
	if d := time.Since(began); d > 10*readTimeout {
		t.Errorf("it took %v", d)
	}
	began = time.Now()
	if _, err := Inspect(pid, start, func(Reader) int { return 0 }); !errors.Is(err, ErrTimeout) {
		t.Errorf("one more than may be stuck: %v", err)
	}
	if d := time.Since(began); d > readTimeout/2 {
		t.Errorf("one more waited %v", d)
	}
	close(release)
	for range maxStuck {
		if err := <-late; !errors.Is(err, ErrTimeout) {
			t.Errorf("a read after the time: %v", err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); len(inspecting) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("tokens are not given back")
		}
	}
}

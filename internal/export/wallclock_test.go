package export

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// wallClock sets the wall clock of this process off, where it was built for that
// (scripts/wallclock): scripts/chaos does. A nil one goes right.
type wallClock struct {
	at    *int64
	jumps int
}

func openWallClock(t *testing.T) *wallClock {
	path := os.Getenv("TEST_WALL_CLOCK")
	if path == "" {
		t.Log("the clock does not jump: scripts/chaos makes it")
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := syscall.Mmap(int(f.Fd()), 0, 8, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	c := &wallClock{at: (*int64)(unsafe.Pointer(unsafe.SliceData(b)))}
	t.Cleanup(func() {
		atomic.StoreInt64(c.at, 0)
		if err := syscall.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	before := time.Now()
	atomic.StoreInt64(c.at, int64(time.Hour))
	if wall, passed := time.Now().UnixNano()-before.UnixNano(), time.Since(before); wall < int64(time.Hour) || passed > time.Minute {
		t.Fatalf("the clock has jumped by %v, and %v have passed: this was not built with -overlay", time.Duration(wall), passed)
	}
	return c
}

// jump sets the clock off by seconds or by years, to either side, or right again.
func (c *wallClock) jump(r *rand.Rand) {
	far := []time.Duration{0, 10 * time.Second, time.Hour, 10 * 365 * 24 * time.Hour}[r.IntN(4)]
	by := time.Duration(0)
	if far > 0 {
		by = time.Duration(r.Int64N(int64(2*far))) - far
	}
	if c != nil {
		atomic.StoreInt64(c.at, int64(by))
		c.jumps++
	}
}

// off is by how much the clock is off now.
func (c *wallClock) off() time.Duration {
	if c == nil {
		return 0
	}
	return time.Duration(atomic.LoadInt64(c.at))
}

// takeJumps is how often it has jumped since it was last asked.
func (c *wallClock) takeJumps() (n int) {
	if c != nil {
		n, c.jumps = c.jumps, 0
	}
	return n
}

// held is what a process holds.
type held struct {
	heap       uint64 // bytes
	files      int
	goroutines int
}

func (h held) String() string {
	return fmt.Sprintf("%.1f MB of heap, %d files, %d goroutines", float64(h.heap)/1e6, h.files, h.goroutines)
}

// holds is what the test's process holds without the test's own list of spans.
func (c *campaign) holds() (h held) {
	runtime.GC()
	runtime.GC() // what is pooled goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h.heap = m.HeapAlloc - uint64(cap(c.end.answered)+cap(c.end.taken))
	h.goroutines = runtime.NumGoroutine()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		c.t.Error(err)
	}
	h.files = len(files)
	return h
}

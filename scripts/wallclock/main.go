// Command wallclock writes an overlay with which programs can be built whose wall clock
// jumps when a test says so, while the machine's own goes on for everybody else:
//
//	overlay=$(go run ./scripts/wallclock FOLDER)
//	go build -overlay "$overlay" ./cmd/agent
//	TEST_WALL_CLOCK=FILE ./agent ...
//
// FILE holds 8 bytes, an int64 of the machine's byte order: by how many nanoseconds the
// program's wall clock is off. It is mapped, so that a write to it is a jump at once.
//
// There is no other way to do that to a static program: time namespaces have no wall
// clock, there is no library to preload, and setting the clock would be noticed by the
// whole machine. What is replaced is [time.Now] alone: monotonic time, timers and the
// kernel go on as they are, which is what a jump is.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: wallclock FOLDER")
		os.Exit(2)
	}
	path, err := write(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "wallclock:", err)
		os.Exit(1)
	}
	fmt.Println(path)
}

// begin is how time.Now of Go 1.26 begins.
const begin = "\tsec, nsec, mono := runtimeNow()\n"

// jump goes behind it. Inside of a bubble of testing/synctest there is no monotonic time,
// and so no jump that differs from the passing of time: there it is the bubble's clock.
const jump = `	if mono == 0 {
		mono = runtimeNano()
	}
	sec, nsec = jumped(sec, nsec)
`

// clock is the file that is added to the package.
const clock = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var wallClockOff = mapWallClock()

func mapWallClock() *int64 {
	path, ok := syscall.Getenv("TEST_WALL_CLOCK")
	if !ok {
		return new(int64)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic("open " + path + ": " + err.Error())
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("map " + path + ": " + err.Error())
	}
	syscall.Close(fd)
	return (*int64)(unsafe.Pointer(&b[0]))
}

func jumped(sec int64, nsec int32) (int64, int32) {
	off := atomic.LoadInt64(wallClockOff)
	sec, off = sec+off/1e9, off%1e9+int64(nsec)
	switch {
	case off < 0:
		return sec - 1, int32(off + 1e9)
	case off >= 1e9:
		return sec + 1, int32(off - 1e9)
	}
	return sec, int32(off)
}
`

func write(folder string) (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("ask for GOROOT: %w", err)
	}
	std := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	source, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		return "", err
	}
	before, after, found := strings.Cut(string(source), begin)
	if !found || strings.Contains(after, begin) {
		return "", errors.New("time.Now of this release of Go begins otherwise: look at it, and change this program")
	}
	if folder, err = filepath.Abs(folder); err != nil {
		return "", err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	replace := map[string]string{}
	for name, text := range map[string]string{"time.go": before + begin + jump + after, "wallclock.go": clock} {
		to := filepath.Join(folder, name)
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(std, name)] = to
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(folder, "overlay.json")
	return path, os.WriteFile(path, overlay, 0o644)
}

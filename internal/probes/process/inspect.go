package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ticks is USER_HZ, in which /proc counts: 100 on every architecture that the agent
// is built for.
const ticks = 100

// CPUTime is how much CPU time the process with this number and start time has used,
// in user and kernel mode, by all its threads, those that have ended included. It needs
// no open Process.
func CPUTime(pid int, start uint64) (time.Duration, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat") // less than maxStat
	if err != nil {
		return 0, fmt.Errorf("read stat: %w", err)
	}
	st, err := parseStat(b)
	if err != nil {
		return 0, err
	}
	if st.start != start {
		return 0, &failure{ErrGone, fmt.Sprintf("process %d has exited", pid)}
	}
	return parseCPU(b)
}

// parseCPU reads fields 14 and 15 of the line, the 12th and 13th after the name.
func parseCPU(b []byte) (time.Duration, error) {
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("parse stat: fields missing")
	}
	user, err := strconv.ParseUint(fields[11], 10, 48)
	system, err2 := strconv.ParseUint(fields[12], 10, 48)
	if err := errors.Join(err, err2); err != nil {
		return 0, fmt.Errorf("parse stat: %w", err)
	}
	return time.Duration(user+system) * (time.Second / ticks), nil
}

// inspecting is like stuck, so that those who do not answer here take nothing away there.
var inspecting = make(chan struct{}, maxStuck)

// Reader reads len(b) bytes of a process's memory.
type Reader func(addr uint64, b []byte) error

// Inspect gives f a reader of the memory of the process with this number and start
// time, and returns what f returns. A hostile process can back its memory by something
// that never answers, so after a second Inspect gives up with ErrTimeout and leaves f
// behind: f must change nothing but what it returns. Reads fail from then on.
func Inspect[T any](pid int, start uint64, f func(Reader) T) (T, error) {
	var none T
	slow := &failure{ErrTimeout, fmt.Sprintf("read memory of process %d: it does not answer", pid)}
	select {
	case inspecting <- struct{}{}:
	default:
		return none, slow
	}
	deadline := time.Now().Add(readTimeout)
	done := make(chan T, 1)
	go func() {
		defer func() { <-inspecting }()
		done <- f(func(addr uint64, b []byte) error {
			if time.Now().After(deadline) {
				return slow
			}
			return readVM(pid, addr, b)
		})
	}()
	timer := time.NewTimer(readTimeout)
	defer timer.Stop()
	select {
	case <-timer.C:
		return none, slow
	case result := <-done:
		// If it is the same process now, it was before.
		if _, err := CPUTime(pid, start); err != nil {
			return none, err
		}
		return result, nil
	}
}

func readVM(pid int, addr uint64, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}, 0)
	if err != nil {
		return fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	if n != len(b) {
		return fmt.Errorf("read memory of process %d: %d bytes of %d", pid, n, len(b))
	}
	return nil
}

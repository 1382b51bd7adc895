package main

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// pollWhenIdle has idle cores wait in a loop, until the result is closed. Else wrk's core
// halts between answers, and waking it takes the shop an interrupt to another core: in a
// virtual machine microseconds. The slower the shop is, the more often that happens, so an
// agent that makes it slower would pay for what it did not do. See
// Documentation/power/pm_qos_interface.rst of Linux.
func pollWhenIdle() (io.Closer, error) {
	if driver, err := os.ReadFile("/sys/devices/system/cpu/cpuidle/current_driver"); err != nil || string(driver) == "none\n" {
		return nil, errors.New("keep idle cores from halting: this kernel has no driver for what they do")
	}
	const path = "/dev/cpu_dma_latency"
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("keep idle cores from halting: %w", err)
	}
	if _, err := f.Write(make([]byte, 4)); err != nil { // microseconds, as a C int
		f.Close()
		return nil, fmt.Errorf("keep idle cores from halting, by %s: %w", path, err)
	}
	return f, nil
}

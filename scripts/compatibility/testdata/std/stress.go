package main

import (
	"context"
	"io"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"time"
)

// stress makes the runtime do all the time what it else does now and then: collect
// garbage, give memory back, shrink stacks, and be interrupted by a profiler.
func stress() {
	debug.SetGCPercent(1)
	runtime.SetCPUProfileRate(1000)
	_ = pprof.StartCPUProfile(io.Discard) // keeps the rate, and complains
	go func() {
		for {
			time.Sleep(50 * time.Millisecond)
			debug.FreeOSMemory()
		}
	}()
	go func() {
		for n := 0; ; n++ { // only a signal can take the processor from it
			if n&(1<<26-1) == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
	}()
}

// deep queries at every depth of a stack that grows, on a goroutine of its own, whose
// stack begins small.
func deep(ctx context.Context) error {
	done := make(chan error)
	go func() { done <- descend(ctx, 40) }()
	return <-done
}

//go:noinline
func descend(ctx context.Context, n int) error {
	var frame [300]byte
	if err := drain(db.QueryContext(ctx, "SELECT id FROM orders")); err != nil || n == 0 {
		return err
	}
	frame[n] = byte(n)
	err := descend(ctx, n-1)
	runtime.KeepAlive(&frame)
	return err
}

package probes

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/plainframework/agent/bpf"
)

// execWatch hears of every execve of the node as it happens: by a ring of its own, whose
// records wake the reader up. The ring of the spans is polled, which would be too late
// for a process that answers its first request 20 ms after its start.
type execWatch struct {
	link link.Link
	ring *ringbuf.Reader

	closeOnce sync.Once
	closeErr  error
}

func watchExec(k *kernel) (*execWatch, error) {
	ring, err := ringbuf.NewReader(k.mapOf("execs"))
	if err != nil {
		return nil, fmt.Errorf("open ring of execs: %w", err)
	}
	l, err := k.attachExec()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach to sched_process_exec: %w", err), ring.Close())
	}
	return &execWatch{link: l, ring: ring}, nil
}

// attachExec reports every execve of the node, through both rings.
func (k *kernel) attachExec() (link.Link, error) {
	program, err := k.programs.get("process_exec")
	if err != nil {
		return nil, err
	}
	return link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exec", Program: program})
}

// run passes on what it hears until ctx is done. What finds no room is left to the scan.
func (w *execWatch) run(ctx context.Context, to chan<- execd) {
	stop := context.AfterFunc(ctx, func() { _ = w.ring.Close() }) // wakes Read up
	defer stop()
	var record ringbuf.Record
	for w.ring.ReadInto(&record) == nil {
		notice, _, err := recordAs[bpf.AgentExecNotice](record.RawSample)
		if err != nil {
			continue
		}
		select {
		case to <- execd{pid: int(notice.Tgid), at: notice.AtNs}:
		default:
		}
	}
}

// Close may be called more than once, and on nil.
func (w *execWatch) Close() error {
	if w == nil {
		return nil
	}
	w.closeOnce.Do(func() { w.closeErr = errors.Join(w.link.Close(), w.ring.Close()) })
	return w.closeErr
}

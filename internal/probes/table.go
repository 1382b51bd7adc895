package probes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/plainframework/agent/bpf"
)

// purge frees the open spans that a process began before the given time of
// CLOCK_MONOTONIC in ns, and returns how many there were. The process is gone, so no
// program uses its entries any more; those of other processes are not touched.
func (k *kernel) purge(tgid uint32, before uint64) (open uint64, err error) {
	k.tables.Lock()
	defer k.tables.Unlock()
	goroutines := k.mapOf("goroutines")
	err = k.eachEntry("goroutine_table", func(e bpf.AgentTableEntry) bool {
		var g bpf.AgentGoroutine
		if e.Tgid != tgid || goroutines.Lookup(uint32(e.Value), &g) != nil || g.Frames[0].StartNs >= before {
			return false
		}
		open += uint64(g.Depth)
		return true
	})
	// A context is registered by a goroutine; without it nothing leads to a span.
	err = errors.Join(err, k.eachEntry("context_table", func(e bpf.AgentTableEntry) bool {
		return e.Tgid == tgid && before == allTime
	}))
	streams, streamsErr := k.purgeStreams(tgid, before)
	made, madeErr := k.purgeAutoSpans(func(key *bpf.AgentAutoSpanKey, s *bpf.AgentAutoSpan) bool {
		return key.Tgid == tgid && s.Frame.StartNs < before
	})
	return open + streams + made, errors.Join(err, streamsErr, madeErr)
}

// purgeAutoSpans frees the open spans that programs have made by hand, as far as which says
// so, and returns how many there were.
func (k *kernel) purgeAutoSpans(which func(*bpf.AgentAutoSpanKey, *bpf.AgentAutoSpan) bool) (open uint64, err error) {
	spans := k.mapOf("auto_spans")
	var gone []bpf.AgentAutoSpanKey
	err = eachInBatches(spans, func(key *bpf.AgentAutoSpanKey, s *bpf.AgentAutoSpan) {
		if which(key, s) {
			gone = append(gone, *key)
		}
	})
	for i := range gone {
		if spans.Delete(&gone[i]) == nil {
			open++
		}
	}
	return open, err
}

// purgeStreams does the same for the streams that gRPC's clients have open.
func (k *kernel) purgeStreams(tgid uint32, before uint64) (open uint64, err error) {
	streams := k.mapOf("grpc_streams")
	var gone []bpf.AgentGrpcStreamKey
	err = eachInBatches(streams, func(key *bpf.AgentGrpcStreamKey, s *bpf.AgentGrpcStream) {
		if key.Tgid == tgid && s.Frame.StartNs < before {
			gone = append(gone, *key)
		}
	})
	for i := range gone {
		if streams.Delete(&gone[i]) == nil {
			open++
		}
	}
	return open, err
}

// purgeAll frees the open spans of all processes, while nothing is attached, and returns
// how many there were.
func (k *kernel) purgeAll() (open uint64, err error) {
	goroutines := k.mapOf("goroutines")
	err = k.eachEntry("goroutine_table", func(e bpf.AgentTableEntry) bool {
		var g bpf.AgentGoroutine
		if goroutines.Lookup(uint32(e.Value), &g) == nil {
			open += uint64(g.Depth)
		}
		return true
	})
	return open, errors.Join(err, k.eachEntry("context_table", func(bpf.AgentTableEntry) bool { return true }))
}

// forgetImages makes the programs forget what they have read from images, by the number of
// a binary that another one is about to get. They read it again.
func (k *kernel) forgetImages() error {
	memory, err := k.mapOf("images").Memory()
	if err != nil {
		return fmt.Errorf("map images: %w", err)
	}
	if _, err := memory.WriteAt(make([]byte, memory.Size()), 0); err != nil {
		return fmt.Errorf("empty images: %w", err)
	}
	return nil
}

// allTime is later than anything.
const allTime = ^uint64(0)

// eachEntry calls f for the entries of a table, and frees those for which it returns
// true: only those of a process in which no program runs any more. A program reaches
// only for ways that are free, so a taken one is written to without harm.
func (k *kernel) eachEntry(table string, f func(bpf.AgentTableEntry) bool) error {
	memory, err := k.mapOf(table).Memory()
	if err != nil {
		return fmt.Errorf("map %s: %w", table, err)
	}
	const size = int(unsafe.Sizeof(bpf.AgentTableEntry{}))
	const entries = int(unsafe.Offsetof(bpf.AgentTableBucket{}.Entries))
	var free [size]byte
	buf := make([]byte, unsafe.Sizeof(bpf.AgentTableBucket{}))
	for at := 0; at+len(buf) <= int(memory.Size()); at += len(buf) {
		if _, err := memory.ReadAt(buf, int64(at)); err != nil {
			return fmt.Errorf("read %s: %w", table, err)
		}
		for way := range tableWays {
			e := decodeEntry(buf[entries+way*size:])
			if e.Address == 0 || !f(e) {
				continue
			}
			// The address before the claim, as bpf/table.h does.
			off := int64(at + entries + way*size)
			for _, part := range [][2]int64{{0, 8}, {12, 16}} {
				if _, err := memory.WriteAt(free[part[0]:part[1]], off+part[0]); err != nil {
					return fmt.Errorf("write %s: %w", table, err)
				}
			}
		}
	}
	return nil
}

func decodeEntry(b []byte) bpf.AgentTableEntry {
	return bpf.AgentTableEntry{
		Address: binary.LittleEndian.Uint64(b),
		Tgid:    binary.LittleEndian.Uint32(b[8:]),
		Claims:  binary.LittleEndian.Uint32(b[12:]),
		Value:   binary.LittleEndian.Uint64(b[16:]),
	}
}

package process

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Of linux/auxvec.h.
const (
	auxNull  = 0
	auxEntry = 9 // AT_ENTRY
)

// Entry is the address of the executable's entry point in the process: what the kernel
// told it when it started. The file has the same as linked; the difference is where it was
// loaded.
func (p *Process) Entry() (uint64, error) {
	b, err := p.read("auxv", maxStat)
	if err != nil {
		return 0, err
	}
	entry, err := parseEntry(b)
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", p.pid, err)
	}
	return entry, nil
}

// parseEntry reads pairs of words: what it is, and its value.
func parseEntry(b []byte) (uint64, error) {
	for ; len(b) >= 16; b = b[16:] {
		switch binary.LittleEndian.Uint64(b) {
		case auxNull:
			return 0, errors.New("parse auxv: it has no entry point")
		case auxEntry:
			return binary.LittleEndian.Uint64(b[8:]), nil
		}
	}
	return 0, errors.New("parse auxv: it has no end")
}

package gobin

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sort"
)

const (
	// maxCallers bounds the call sites that [Binary.Callers] returns, and the places that
	// look like one.
	maxCallers    = 256
	maxCandidates = 4096
	// maxSweep bounds the code that is searched for calls.
	maxSweep   = 512 << 20
	sweepChunk = 256 << 10
)

// Callers returns the instructions that call a function directly, with the arguments in
// their registers, wherever in the program they are; within limits them to functions by
// name. It reads all code, so it costs some milliseconds for each 10 MB. Functions that
// the compiler has inlined call what the inlined one called: ask for that too.
func (b *Binary) Callers(name string, within func(function string) bool) ([]Site, error) {
	callees := b.lookupAll(name)
	if len(callees) == 0 {
		return nil, &MissingError{"function", name, ""}
	}
	var sites []Site
	for _, callee := range callees {
		addrs, err := b.sweepCalls(callee.Addr)
		if err != nil {
			return nil, err
		}
		for _, addr := range addrs {
			fn, ok := b.funcHolding(addr)
			if !ok || !within(fn.Name) {
				continue
			}
			s, ok := b.callAt(fn, addr, callee)
			if ok {
				sites = append(sites, s)
			}
			if len(sites) > maxCallers {
				return nil, fmt.Errorf("calls of %s: %w", name, ErrLimit)
			}
		}
	}
	return sites, nil
}

// callAt is the call at an address, if an instruction begins there.
func (b *Binary) callAt(fn *Func, addr uint64, callee *Func) (Site, bool) {
	code, err := b.decode(fn)
	if err != nil {
		return Site{}, false
	}
	i := sort.Search(len(code), func(i int) bool { return code[i].addr >= addr })
	if i == len(code) || code[i].addr != addr || code[i].op != opCall || code[i].target != callee.Addr {
		return Site{}, false
	}
	s, err := b.site(fn, &code[i], "call of "+callee.Name)
	return s, err == nil
}

// sweepCalls returns where the bytes of a direct call of target are; on amd64 they may
// also be part of something else.
func (b *Binary) sweepCalls(target uint64) ([]uint64, error) {
	var found []uint64
	size := b.md.etext - b.md.text
	if size > maxSweep {
		return nil, fmt.Errorf("search for calls in %d MB of code: %w", size>>20, ErrLimit)
	}
	const longest = 5 // bytes of a call
	buf := make([]byte, sweepChunk)
	for at := b.md.text; at+longest <= b.md.etext; at += sweepChunk - longest + 1 {
		// Both steps keep instructions of arm64 aligned.
		at &^= 3
		off, ok := b.img.fileOffset(at)
		if !ok {
			return nil, ErrTruncated
		}
		n, err := b.img.r.ReadAt(buf[:min(uint64(len(buf)), b.md.etext-at)], int64(off))
		if n < longest {
			return nil, fmt.Errorf("read code: %w", orTruncated(err))
		}
		if b.img.arch == ARM64 {
			found = appendCallsARM64(found, buf[:n], at, target)
		} else {
			found = appendCallsAMD64(found, buf[:n], at, target)
		}
		if len(found) > maxCandidates {
			return nil, fmt.Errorf("search for calls: %w", ErrLimit)
		}
	}
	return found, nil
}

// appendCallsAMD64 finds CALL rel32.
func appendCallsAMD64(found []uint64, code []byte, at, target uint64) []uint64 {
	for i := 0; i+5 <= len(code); i++ {
		next := bytes.IndexByte(code[i:len(code)-4], 0xe8)
		if next < 0 {
			break
		}
		i += next
		rel := int32(binary.LittleEndian.Uint32(code[i+1:]))
		if addr := at + uint64(i); addr+5+uint64(int64(rel)) == target {
			found = appendNew(found, addr)
		}
	}
	return found
}

// appendCallsARM64 finds BL.
func appendCallsARM64(found []uint64, code []byte, at, target uint64) []uint64 {
	for i := 0; i+4 <= len(code); i += 4 {
		w := binary.LittleEndian.Uint32(code[i:])
		if w>>26 != 0x25 {
			continue
		}
		rel := int64(int32(w<<6)) >> 4
		if addr := at + uint64(i); addr+uint64(rel) == target {
			found = appendNew(found, addr)
		}
	}
	return found
}

// appendNew: chunks overlap, so the last one may be seen twice.
func appendNew(found []uint64, addr uint64) []uint64 {
	if n := len(found); n > 0 && found[n-1] >= addr {
		return found
	}
	return append(found, addr)
}

// funcHolding is the function whose code has an address.
func (b *Binary) funcHolding(addr uint64) (*Func, bool) {
	if addr < b.md.text || addr >= b.md.etext {
		return nil, false
	}
	v := b.view()
	n := int(b.md.ftab.len - 1)
	i := sort.Search(n, func(i int) bool {
		entry, _, ok := b.ftabAt(v, uint64(i))
		return !ok || b.md.text+uint64(entry) > addr
	})
	if i == 0 {
		return nil, false
	}
	return b.function(v, uint32(i-1))
}

package gobin

import (
	"encoding/binary"
	"math/bits"
	"reflect"
)

// Layout of abi.Type, the same in Go 1.18 to 1.27 on 64-bit machines.
const (
	typeSize       = 48 // sizeof(abi.Type)
	offPtrBytes    = 8
	offHash        = 16
	offTFlag       = 20
	offAlign       = 21
	offFieldAlign  = 22
	offKind        = 23
	offStr         = 40
	offPtrToThis   = 44
	kindMask       = 31
	kindDirect     = 1 << 5 // in the kind byte up to Go 1.25
	tflagUncommon  = 1 << 0
	tflagExtraStar = 1 << 1
	tflagNamed     = 1 << 2
	tflagDirect    = 1 << 5 // in the tflag byte from Go 1.26 on
)

// kindSizes holds the size in bytes that every type of a kind has; 0 for those whose
// size varies.
var kindSizes = [...]uint64{
	reflect.Bool: 1, reflect.Int: 8, reflect.Int8: 1, reflect.Int16: 2, reflect.Int32: 4, reflect.Int64: 8,
	reflect.Uint: 8, reflect.Uint8: 1, reflect.Uint16: 2, reflect.Uint32: 4, reflect.Uint64: 8, reflect.Uintptr: 8,
	reflect.Float32: 4, reflect.Float64: 8, reflect.Complex64: 8, reflect.Complex128: 16,
	reflect.Chan: 8, reflect.Func: 8, reflect.Interface: 16, reflect.Map: 8, reflect.Pointer: 8,
	reflect.Slice: 24, reflect.String: 16, reflect.UnsafePointer: 8,
	reflect.Array: 0, reflect.Struct: 0,
}

// typeHeader is a decoded abi.Type.
type typeHeader struct {
	addr      uint64
	size      uint64
	hash      uint32
	tflag     uint8
	kind      reflect.Kind // the runtime numbers kinds as package reflect does
	direct    bool         // an interface holds the value itself, not a pointer to it
	str       uint32
	ptrToThis uint32
}

// decodeType decodes the 48 bytes of an abi.Type and checks what can be
// checked without looking elsewhere.
func decodeType(addr uint64, b []byte) (t typeHeader, ok bool) {
	kind := reflect.Kind(b[offKind] & kindMask)
	align, fieldAlign, tflag := b[offAlign], b[offFieldAlign], b[offTFlag]
	if kind == reflect.Invalid || kind > reflect.UnsafePointer || tflag >= 1<<6 ||
		bits.OnesCount8(align) != 1 || align > 64 || bits.OnesCount8(fieldAlign) != 1 || fieldAlign > 64 {
		return t, false
	}
	le := binary.LittleEndian
	t = typeHeader{
		addr: addr, size: le.Uint64(b), hash: le.Uint32(b[offHash:]), tflag: tflag, kind: kind,
		direct: b[offKind]&kindDirect != 0 || tflag&tflagDirect != 0,
		str:    le.Uint32(b[offStr:]), ptrToThis: le.Uint32(b[offPtrToThis:]),
	}
	want := kindSizes[kind]
	ok = t.hash != 0 && le.Uint64(b[offPtrBytes:]) <= t.size && t.size < 1<<48 &&
		(want == 0 || want == t.size) && t.str != 0 && t.str < 1<<31
	return t, ok
}

// sweeper finds type descriptors in the type section [start, end) by trying
// every 8-aligned address. Walking the linker's typelinks instead would miss
// types, and Go 1.27 has none.
type sweeper struct {
	v          *view
	start, end uint64
}

// run calls f for each descriptor in [from, to) until it returns false. f may
// use the view.
func (s *sweeper) run(from, to uint64, f func(*typeHeader) bool) {
	var b [typeSize]byte
	for at := (from + 7) &^ 7; at+typeSize <= to; {
		p := s.v.at(at, int(min(to-at, 1<<16)))
		if len(p) < typeSize { // at the end of a page
			if !s.v.read(at, b[:]) {
				return
			}
			p = b[:]
		}
		n, hit, found := sweepPage(at, p)
		at += n
		if !found {
			continue
		}
		at += 8
		if s.nameOK(&hit) {
			at += typeSize - 8
			if !f(&hit) {
				return
			}
		}
	}
}

// sweepPage looks for the first plausible descriptor in p, which is at addr.
// n is how far it got.
func sweepPage(addr uint64, p []byte) (n uint64, t typeHeader, found bool) {
	i := 0
	for ; i+typeSize <= len(p); i += 8 {
		// The cheapest test first: most words fail it.
		if k := p[i+offKind] & kindMask; k == 0 || k > byte(reflect.UnsafePointer) {
			continue
		}
		if t, ok := decodeType(addr+uint64(i), p[i:i+typeSize]); ok {
			return uint64(i), t, true
		}
	}
	return uint64(i), t, false
}

// nameOK reports whether t's name is one.
func (s *sweeper) nameOK(t *typeHeader) bool {
	b, n, ok := s.name(s.start+uint64(t.str), 64)
	if !ok || n == 0 || t.tflag&tflagExtraStar != 0 && b[0] != '*' {
		return false
	}
	for _, c := range b {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// name reads the abi.Name at addr: flags, length, bytes. It returns at most
// limit of the n bytes of the name, valid until the view is used again.
func (s *sweeper) name(addr uint64, limit int) (b []byte, n int, ok bool) {
	if addr < s.start || addr >= s.end {
		return nil, 0, false
	}
	return readName(s.v, addr, limit)
}

// maxName bounds the length of a type's or field's name. Types without a name
// of their own, large anonymous structs, spell out their fields.
const maxName = 1 << 16

func readName(v *view, addr uint64, limit int) (b []byte, n int, ok bool) {
	h := v.at(addr, 4)
	var hb [4]byte
	if len(h) < 4 {
		if !v.read(addr, hb[:]) {
			return nil, 0, false
		}
		h = hb[:]
	}
	if h[0] >= 1<<4 {
		return nil, 0, false
	}
	size := 1
	for shift := 0; ; shift += 7 {
		c := h[size]
		n |= int(c&0x7f) << shift
		size++
		if c&0x80 == 0 {
			break
		}
		if size == len(h) {
			return nil, 0, false
		}
	}
	if n > maxName {
		return nil, 0, false
	}
	want := min(n, limit)
	v.charge(want)
	if b = v.at(addr+uint64(size), want); len(b) < want {
		b = make([]byte, want)
		if !v.read(addr+uint64(size), b) {
			return nil, 0, false
		}
	}
	return b, n, true
}

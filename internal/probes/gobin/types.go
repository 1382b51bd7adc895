package gobin

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// maxTypes bounds the descriptors indexed. The largest binaries known have
// 60,000.
const maxTypes = 1 << 18

// typeIndex tells where type descriptors are. It holds offsets and hashes,
// not names: 12 to 20 bytes a type.
type typeIndex struct {
	all   []uint32  // offsets from types, ascending
	named []hashRef // of types with a name, by hash of the qualified name
	ptrs  []ptrRef  // pointer types by their element
}

type hashRef struct{ hash, ref uint32 }

type ptrRef struct{ elem, ptr uint32 }

// hashName is FNV-1a.
func hashName(parts ...string) uint32 {
	h := uint32(2166136261)
	for _, s := range parts {
		for i := 0; i < len(s); i++ {
			h = (h ^ uint32(s[i])) * 16777619
		}
	}
	return h
}

func sortRefs(refs []hashRef) {
	slices.SortFunc(refs, func(a, b hashRef) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.ref, b.ref))
	})
}

func findRefs(refs []hashRef, hash uint32) []hashRef {
	i, _ := slices.BinarySearchFunc(refs, hash, func(r hashRef, h uint32) int { return cmp.Compare(r.hash, h) })
	j := i
	for j < len(refs) && refs[j].hash == hash {
		j++
	}
	return refs[i:j]
}

// indexTypes sweeps the type section.
func (b *Binary) indexTypes(v *view) error {
	sw := sweeper{v: v, start: b.md.types, end: b.md.etypes}
	var ix typeIndex
	var maps []uint32 // named map types: where their name's package is has to be found out
	over := false
	sw.run(sw.start, sw.end, func(t *typeHeader) bool {
		if over = len(ix.all) == maxTypes; over {
			return false
		}
		ref := uint32(t.addr - sw.start)
		ix.all = append(ix.all, ref)
		if t.kind == reflect.Pointer && t.tflag&tflagNamed == 0 { // not go.shape.*T
			if elem, ok := v.u64(t.addr + typeSize); ok && elem >= sw.start && elem < sw.end {
				ix.ptrs = append(ix.ptrs, ptrRef{uint32(elem - sw.start), ref})
			}
		}
		switch {
		case t.tflag&tflagNamed == 0:
		case t.kind == reflect.Map:
			maps = append(maps, ref)
		default:
			b.indexName(v, &ix, t)
		}
		return true
	})
	b.calibrateMaps(v, maps)
	for _, ref := range maps {
		if t, ok := b.typeAt(v, sw.start+uint64(ref)); ok {
			b.indexName(v, &ix, &t)
		}
	}
	switch {
	case v.err != nil:
		return v.err
	case over:
		return fmt.Errorf("index types: %w", ErrLimit)
	}
	sortRefs(ix.named)
	slices.SortFunc(ix.ptrs, func(a, b ptrRef) int { return cmp.Compare(a.elem, b.elem) })
	ix.all, ix.named, ix.ptrs = slices.Clip(ix.all), slices.Clip(ix.named), slices.Clip(ix.ptrs)
	b.types = ix
	return nil
}

func (b *Binary) indexName(v *view, ix *typeIndex, t *typeHeader) {
	if name, ok := b.qualifiedName(v, t); ok {
		ix.named = append(ix.named, hashRef{hashName(name), uint32(t.addr - b.md.types)})
	}
}

// typeAt decodes the descriptor at addr.
func (b *Binary) typeAt(v *view, addr uint64) (t typeHeader, ok bool) {
	var buf [typeSize]byte
	if addr < b.md.types || addr >= b.md.etypes || addr%8 != 0 || !v.read(addr, buf[:]) {
		return t, false
	}
	return decodeType(addr, buf[:])
}

// typeString returns the type's own text, such as "*http.response": packages
// by name, not by path.
func (b *Binary) typeString(v *view, t *typeHeader) (string, bool) {
	s, n, ok := readName(v, b.md.types+uint64(t.str), maxName)
	if !ok || n == 0 {
		return "", false
	}
	if t.tflag&tflagExtraStar != 0 {
		s = s[1:]
	}
	return string(s), true
}

// qualifiedName returns a named type's package path, a dot and its name:
// "net/http.response". Predeclared types have no package path.
func (b *Binary) qualifiedName(v *view, t *typeHeader) (string, bool) {
	s, ok := b.typeString(v, t)
	if !ok || t.tflag&tflagNamed == 0 {
		return "", false
	}
	end := strings.IndexByte(s, '[')
	if end < 0 {
		end = len(s)
	}
	dot := strings.LastIndexByte(s[:end], '.')
	if dot < 0 {
		return s, true
	}
	path, ok := b.pkgPath(v, t)
	if !ok || path == "go.shape" {
		return "", false
	}
	return path + s[dot:], true
}

// uncommonAt is the offset of the uncommon part by kind: the size of the
// kind's own struct.
func (b *Binary) uncommonAt(k reflect.Kind) uint64 {
	switch k {
	case reflect.Struct, reflect.Interface:
		return 80
	case reflect.Pointer, reflect.Func, reflect.Slice:
		return 56
	case reflect.Chan:
		return 64
	case reflect.Array:
		return 72
	case reflect.Map:
		return b.mapSize
	}
	return typeSize
}

// mapSizes are the sizes that abi.MapType has, or may get.
var mapSizes = []uint64{112, 88, 120, 128, 136, 96, 104}

// calibrateMaps finds the size of abi.MapType: 88 with buckets up to Go 1.23,
// 112 with Swiss tables, which 1.24 and 1.25 can be told not to use, and more
// later. Of a type http.Header, the package's path ends in http nearly always.
func (b *Binary) calibrateMaps(v *view, maps []uint32) {
	best, bestSize := 0, mapSizes[0]
	for _, size := range mapSizes {
		b.mapSize = size
		good := 0
		for _, ref := range maps[:min(len(maps), 256)] {
			t, _ := b.typeAt(v, b.md.types+uint64(ref))
			s, _ := b.typeString(v, &t)
			pkg, _, _ := strings.Cut(s, ".")
			if path, ok := b.pkgPath(v, &t); ok && pkg != "" && strings.HasSuffix(path, pkg) {
				good++
			}
		}
		if good > best {
			best, bestSize = good, size
		}
	}
	b.mapSize = bestSize
}

// uncommon is a decoded abi.UncommonType.
type uncommon struct {
	addr           uint64
	pkgPath        uint32
	mcount, xcount uint16
	moff           uint32
}

func (b *Binary) uncommonOf(v *view, t *typeHeader) (u uncommon, ok bool) {
	if t.tflag&tflagUncommon == 0 {
		return u, false
	}
	u.addr = t.addr + b.uncommonAt(t.kind)
	w, ok := v.words(u.addr, 2)
	if !ok {
		return u, false
	}
	u.pkgPath, u.mcount, u.xcount, u.moff = uint32(w[0]), uint16(w[0]>>32), uint16(w[0]>>48), uint32(w[1])
	ok = w[1]>>32 == 0 && u.xcount <= u.mcount && u.moff >= 16 && u.moff < 1<<20 && uint64(u.pkgPath) < b.md.etypes-b.md.types
	return u, ok
}

func (b *Binary) pkgPath(v *view, t *typeHeader) (string, bool) {
	u, ok := b.uncommonOf(v, t)
	if !ok || u.pkgPath == 0 {
		return "", false
	}
	s, n, ok := readName(v, b.md.types+uint64(u.pkgPath), 4096)
	return string(s), ok && n == len(s)
}

// typeName returns how a type is spelt in this package's API: packages by
// path for named types and pointers to them, else the type's own text.
func (b *Binary) typeName(v *view, t *typeHeader) string {
	if name, ok := b.qualifiedName(v, t); ok {
		return name
	}
	if t.kind == reflect.Pointer {
		if elem, ok := b.elemOf(v, t); ok && elem.tflag&tflagNamed != 0 {
			if name, ok := b.qualifiedName(v, &elem); ok {
				return "*" + name
			}
		}
	}
	s, _ := b.typeString(v, t)
	return s
}

// elemOf returns the type that t, of a kind with an element, points to.
func (b *Binary) elemOf(v *view, t *typeHeader) (typeHeader, bool) {
	addr, ok := v.u64(t.addr + typeSize)
	if !ok {
		return typeHeader{}, false
	}
	return b.typeAt(v, addr)
}

// lookupType finds a named type.
func (b *Binary) lookupType(v *view, name string) (typeHeader, error) {
	var found []typeHeader
	for _, r := range findRefs(b.types.named, hashName(name)) {
		t, ok := b.typeAt(v, b.md.types+uint64(r.ref))
		if !ok {
			continue
		}
		if s, ok := b.qualifiedName(v, &t); ok && s == name {
			found = append(found, t)
		}
	}
	switch {
	case v.err != nil:
		return typeHeader{}, v.err
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		// Types declared inside functions carry no more than the package's path.
		return typeHeader{}, &MissingError{"type", name, "several types have this name"}
	}
	return typeHeader{}, &MissingError{"type", name, ""}
}

// pointerTo finds the descriptor of *T.
func (b *Binary) pointerTo(v *view, elem uint64) (typeHeader, bool) {
	ref := uint32(elem - b.md.types)
	i, ok := slices.BinarySearchFunc(b.types.ptrs, ref, func(p ptrRef, r uint32) int { return cmp.Compare(p.elem, r) })
	if !ok {
		return typeHeader{}, false
	}
	return b.typeAt(v, b.md.types+uint64(b.types.ptrs[i].ptr))
}

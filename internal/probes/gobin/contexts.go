package gobin

import (
	"reflect"
	"slices"
)

// ContextKind tells how a context leads to its parent.
type ContextKind uint8

const (
	// ContextIface: at Offset is an interface value, the parent: a pointer to an
	// itab, whose second word is the parent's type, then the parent's data word.
	ContextIface ContextKind = iota + 1
	// ContextPointer: at Offset is a pointer to a struct that is the parent, of
	// the type at Parent.
	ContextPointer
	// ContextVia: at Offset is a pointer to a struct that holds, at Via, an
	// interface value as with ContextIface.
	ContextVia
)

// ContextType is a type of context.Context values that have a parent. To walk
// a chain: find the interface's type among the Addr values, go to the parent
// as Kind tells, and again. The data word of the interface points to the
// struct that Offset counts from; with Direct it is that struct's only word.
// Types that are not listed, such as context.backgroundCtx, end the walk.
type ContextType struct {
	Name   string // as Type.Name: "*context.cancelCtx"
	Addr   uint64 // of the descriptor, before relocation
	Kind   ContextKind
	Direct bool
	Offset uint64
	Via    uint64 // ContextVia only
	Parent uint64 // address of the parent's descriptor; ContextPointer only
}

// Bounds on the search for context types.
const (
	maxContextTypes = 1 << 12
	maxContextDepth = 4
)

// contextMethods are the methods of context.Context, as the tables sort them.
var contextMethods = []string{"Deadline", "Done", "Err", "Value"}

// ContextTypes returns the types whose values are contexts with a parent: those
// of package context, and any struct that has the methods of a context and, in
// this order, embeds a context, holds one in a field, or holds an
// *http.Request, whose context it is. It reads all struct types, so it costs
// as much as a part of Open: call it once.
func (b *Binary) ContextTypes() ([]ContextType, error) {
	v := newView(b.img, openShift, openSlots/4)
	s := contextSearch{b: b, v: v}
	if t, err := b.lookupType(v, "context.Context"); err == nil {
		s.context = t.addr
	} else {
		return nil, err
	}
	if t, err := b.lookupType(v, "net/http.Request"); err == nil {
		if f, err := b.Field("net/http.Request", "ctx"); err == nil {
			s.request, s.requestCtx = t.addr, f.Offset
		}
	}
	var list []ContextType
	for _, ref := range b.types.all {
		t, ok := b.typeAt(v, b.md.types+uint64(ref))
		if !ok || t.kind != reflect.Struct {
			continue
		}
		list = append(list, s.typesOf(&t)...)
		if len(list) >= maxContextTypes {
			break
		}
	}
	slices.SortFunc(list, func(a, b ContextType) int {
		if a.Addr < b.Addr {
			return -1
		}
		return 1
	})
	return list, v.err
}

type contextSearch struct {
	b          *Binary
	v          *view
	context    uint64 // descriptor of context.Context
	request    uint64 // descriptor of http.Request, 0 if none
	requestCtx uint64 // offset of its ctx
}

// typesOf returns the context types that struct type t gives: itself, where a
// value is one, and the pointer to it.
func (s *contextSearch) typesOf(t *typeHeader) []ContextType {
	c, ok := s.parent(t, 0)
	if !ok {
		return nil
	}
	var list []ContextType
	if s.isContext(t) {
		c := c
		c.Name, c.Addr, c.Direct = s.b.typeName(s.v, t), t.addr, t.direct
		list = append(list, c)
	}
	if p, ok := s.b.pointerTo(s.v, t.addr); ok && s.isContext(&p) {
		c.Name, c.Addr = s.b.typeName(s.v, &p), p.addr
		list = append(list, c)
	}
	return list
}

// parent finds where values of struct type t hold their parent.
func (s *contextSearch) parent(t *typeHeader, depth int) (ContextType, bool) {
	fields, ok := s.b.structFields(s.v, t)
	if !ok || depth > maxContextDepth {
		return ContextType{}, false
	}
	for i := range fields {
		if f := &fields[i]; f.embedded {
			if c, ok := s.embedded(f, depth); ok {
				return c, true
			}
		}
	}
	for i := range fields {
		if f := &fields[i]; f.typ.addr == s.context {
			return ContextType{Kind: ContextIface, Offset: f.offset}, true
		}
	}
	for i := range fields {
		f := &fields[i]
		if f.typ.kind != reflect.Pointer || s.request == 0 {
			continue
		}
		if elem, ok := s.v.u64(f.typ.addr + typeSize); ok && elem == s.request {
			return ContextType{Kind: ContextVia, Offset: f.offset, Via: s.requestCtx}, true
		}
	}
	return ContextType{}, false
}

func (s *contextSearch) embedded(f *structField, depth int) (ContextType, bool) {
	switch f.typ.kind {
	case reflect.Interface:
		// context.Context, or another interface that includes it.
		if f.typ.addr == s.context || s.isContext(&f.typ) {
			return ContextType{Kind: ContextIface, Offset: f.offset}, true
		}
	case reflect.Struct:
		p, ok := s.b.pointerTo(s.v, f.typ.addr)
		if !s.isContext(&f.typ) && !(ok && s.isContext(&p)) {
			return ContextType{}, false
		}
		c, ok := s.parent(&f.typ, depth+1)
		c.Offset += f.offset
		return c, ok
	case reflect.Pointer:
		elem, ok := s.b.elemOf(s.v, &f.typ)
		if !ok || elem.kind != reflect.Struct || !s.isContext(&f.typ) {
			return ContextType{}, false
		}
		return ContextType{Kind: ContextPointer, Offset: f.offset, Parent: f.typ.addr}, true
	}
	return ContextType{}, false
}

// isContext reports whether a type has the methods of context.Context, by name.
func (s *contextSearch) isContext(t *typeHeader) bool {
	return s.b.hasMethods(s.v, t, contextMethods)
}

// hasMethods reports whether a type has all of these methods, which are sorted. Their
// signatures are not looked at: the linker drops those of methods that are never called.
func (b *Binary) hasMethods(v *view, t *typeHeader, want []string) bool {
	addr, n, step := uint64(0), uint64(0), uint64(16)
	if t.kind == reflect.Interface {
		w, ok := v.words(t.addr+typeSize+8, 2)
		if !ok {
			return false
		}
		addr, n, step = w[0], w[1], 8
	} else {
		u, ok := b.uncommonOf(v, t)
		if !ok {
			return false
		}
		addr, n = u.addr+uint64(u.moff), uint64(u.mcount)
	}
	if n < uint64(len(want)) || n > 1<<16 {
		return false
	}
	for i := uint64(0); i < n && len(want) > 0; i++ {
		off, ok := v.u32(addr + i*step)
		if !ok {
			return false
		}
		name, size, ok := readName(v, b.md.types+uint64(off), 32)
		if !ok {
			return false
		}
		if size == len(want[0]) && string(name) == want[0] {
			want = want[1:]
		}
	}
	return len(want) == 0
}

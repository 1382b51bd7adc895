package gobin

import "reflect"

// MapLayout tells how the entries of a map type lie in memory. The map's own
// header is a struct to ask [Binary.Field] for: runtime.hmap with buckets, up
// to Go 1.23, internal/runtime/maps.Map with Swiss groups, from 1.24 on.
type MapLayout struct {
	Swiss bool   // groups of a Swiss table, else buckets
	Size  uint64 // of a group or bucket, in bytes
	Slots uint64 // entries in each; 8 in every known release

	// Control is the offset of the control word (Swiss: one byte an entry, the
	// highest bit set where it is empty or deleted) or of the tophash array
	// (buckets: one byte an entry, under 5 where there is none).
	Control uint64
	// Entry i has its key at Keys + i*KeyStride and its value at Elems + i*ElemStride.
	Keys, KeyStride   uint64
	Elems, ElemStride uint64
	Overflow          uint64 // offset of the next bucket's address; buckets only
}

// MapLayout returns the layout of a named map type, such as
// "net/http.Header".
func (b *Binary) MapLayout(name string) (MapLayout, error) {
	v := b.view()
	t, err := b.lookupType(v, name)
	if err != nil {
		return MapLayout{}, err
	}
	if t.kind != reflect.Map {
		return MapLayout{}, &MissingError{"type", name, "it is not a map but of kind " + t.kind.String()}
	}
	odd := &MissingError{"type", name, "its map has a layout that is not known"}
	const groupAt = typeSize + 16 // after key and element: Bucket or Group
	addr, _ := v.u64(t.addr + groupAt)
	group, ok := b.typeAt(v, addr)
	if !ok {
		return MapLayout{}, odd
	}
	fields, ok := b.structFields(v, &group)
	if !ok {
		return MapLayout{}, odd
	}
	m := MapLayout{Size: group.size}
	var seen int
	for i := range fields {
		f := &fields[i]
		switch f.name {
		case "ctrl":
			m.Swiss, m.Control = true, f.offset
			seen++
		case "topbits":
			m.Control = f.offset
			seen++
		case "keys":
			m.Keys = f.offset
			m.KeyStride, m.Slots = b.arrayOf(v, &f.typ)
			seen++
		case "elems":
			m.Elems = f.offset
			m.ElemStride, _ = b.arrayOf(v, &f.typ)
			seen++
		case "slots": // of {key, elem}
			if b.slots(v, f, &m) {
				seen += 2
			}
		case "overflow":
			m.Overflow = f.offset
		}
	}
	if seen != 3 || m.Slots == 0 || m.Slots > 64 {
		return MapLayout{}, odd
	}
	return m, nil
}

// arrayOf returns the element size and length of an array type.
func (b *Binary) arrayOf(v *view, t *typeHeader) (elem, n uint64) {
	if t.kind != reflect.Array {
		return 0, 0
	}
	e, ok := b.elemOf(v, t)
	if !ok || e.size == 0 {
		return 0, 0
	}
	return e.size, t.size / e.size
}

func (b *Binary) slots(v *view, f *structField, m *MapLayout) bool {
	if f.typ.kind != reflect.Array {
		return false
	}
	slot, ok := b.elemOf(v, &f.typ)
	if !ok || slot.size == 0 {
		return false
	}
	kv, ok := b.structFields(v, &slot)
	if !ok || len(kv) != 2 {
		return false
	}
	m.Slots, m.KeyStride, m.ElemStride = f.typ.size/slot.size, slot.size, slot.size
	m.Keys, m.Elems = f.offset+kv[0].offset, f.offset+kv[1].offset
	return true
}

package gobin

import (
	"reflect"
	"strings"
)

// maxFields bounds the fields of one struct.
const maxFields = 1 << 14

// Type is a type that has a descriptor in the binary.
type Type struct {
	Name string // as [Binary.TypeAddr] takes it, or the type's own text for a type without a name
	Addr uint64 // of the descriptor, before relocation
	Size uint64 // of a value, in bytes
	Kind reflect.Kind
}

// Field is a field of a struct.
type Field struct {
	Offset uint64 // from the start of the outer struct, in bytes
	Size   uint64 // in bytes
	Kind   reflect.Kind
	Type   string // as Type.Name
}

// structField is one decoded field.
type structField struct {
	name     string
	typ      typeHeader
	offset   uint64
	embedded bool
}

// structFields decodes the fields of a struct type. Nothing is returned
// unless all of it makes sense.
func (b *Binary) structFields(v *view, t *typeHeader) ([]structField, bool) {
	if t.kind != reflect.Struct {
		return nil, false
	}
	w, ok := v.words(t.addr+typeSize, 4) // pkgPath, fields
	if !ok || w[2] != w[3] || w[2] > maxFields || !b.img.backed(w[1], w[2]*24) {
		return nil, false
	}
	fields := make([]structField, 0, w[2])
	last := uint64(0)
	for i := range w[2] {
		f, ok := b.structField(v, w[1]+24*i)
		if !ok || f.offset < last || f.offset > t.size || f.typ.size > t.size-f.offset {
			return nil, false
		}
		last = f.offset
		fields = append(fields, f)
	}
	return fields, true
}

func (b *Binary) structField(v *view, addr uint64) (f structField, ok bool) {
	w, ok := v.words(addr, 3)
	if !ok {
		return f, false
	}
	flags, ok := v.u32(w[0])
	if !ok {
		return f, false
	}
	f.offset, f.embedded = w[2], flags&(1<<3) != 0
	if b.shifted {
		f.offset, f.embedded = w[2]>>1, w[2]&1 != 0
	}
	name, n, ok := readName(v, w[0], maxName)
	if !ok || n != len(name) {
		return f, false
	}
	f.name = string(name)
	f.typ, ok = b.typeAt(v, w[1])
	return f, ok
}

// calibrate finds out whether field offsets are shifted left by one, as up to
// Go 1.18, where the release is not known: in a shifted table read plainly,
// most structs have fields beyond their end.
func (b *Binary) calibrate(v *view) {
	if b.version.Known() {
		b.shifted = !b.version.AtLeast(1, 19)
		return
	}
	good, bad := 0, 0
	for _, ref := range b.types.all {
		t, ok := b.typeAt(v, b.md.types+uint64(ref))
		if !ok || t.kind != reflect.Struct || t.size < 16 {
			continue
		}
		if _, ok := b.structFields(v, &t); ok {
			good++
		} else {
			bad++
		}
		if good+bad == 256 {
			break
		}
	}
	b.shifted = bad > good
}

// Field returns where a field is in a struct. structName is the package path,
// a dot and the type's name; path names a field, or fields within fields
// separated by dots, an embedded one by its type's name: Field("os.file",
// "pfd.Sysfd"). A path never leads through a pointer. The error is a
// *[MissingError] unless the file could not be read.
func (b *Binary) Field(structName, path string) (Field, error) {
	v := b.view()
	t, err := b.lookupType(v, structName)
	if err != nil {
		return Field{}, err
	}
	full := structName + "." + path
	var f Field
	for _, name := range strings.Split(path, ".") {
		fields, ok := b.structFields(v, &t)
		if !ok {
			if v.err != nil {
				return Field{}, v.err
			}
			return Field{}, &MissingError{"field", full, "in a type of kind " + t.kind.String()}
		}
		found := false
		for i := range fields {
			if fields[i].name != name {
				continue
			}
			found = true
			t = fields[i].typ
			f.Offset += fields[i].offset
			break
		}
		if !found {
			return Field{}, &MissingError{"field", full, ""}
		}
	}
	f.Size, f.Kind, f.Type = t.size, t.kind, b.typeName(v, &t)
	return f, nil
}

// StructSize returns the size in bytes of a value of a named struct type.
func (b *Binary) StructSize(name string) (uint64, error) {
	t, err := b.lookupType(b.view(), name)
	if err != nil {
		return 0, err
	}
	if t.kind != reflect.Struct {
		return 0, &MissingError{"type", name, "it is not a struct but of kind " + t.kind.String()}
	}
	return t.size, nil
}

// TypeAddr returns the address, before relocation, of a type's descriptor:
// what the type word of an interface holds. The name is a package path, a dot
// and the type's name, with a star in front for the pointer type:
// "net/http.Header", "*net/http.response".
func (b *Binary) TypeAddr(name string) (uint64, error) {
	v := b.view()
	elem, isPtr := strings.CutPrefix(name, "*")
	t, err := b.lookupType(v, elem)
	if err != nil {
		return 0, err
	}
	if isPtr {
		p, ok := b.pointerTo(v, t.addr)
		if !ok {
			return 0, &MissingError{"type", name, ""}
		}
		t = p
	}
	return t.addr, nil
}

// Types calls f with each type that has a descriptor, by ascending address,
// until f returns false.
func (b *Binary) Types(f func(Type) bool) error {
	v := newView(b.img, openShift, openSlots/4)
	for _, ref := range b.types.all {
		t, ok := b.typeAt(v, b.md.types+uint64(ref))
		if !ok {
			continue
		}
		if !f(Type{Name: b.typeName(v, &t), Addr: t.addr, Size: t.size, Kind: t.kind}) {
			break
		}
	}
	return v.err
}

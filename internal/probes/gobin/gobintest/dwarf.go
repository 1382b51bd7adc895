// Package gobintest tells what a Go executable holds from sources that package gobin
// does not use: the DWARF that the compiler wrote. It is for tests, and for the
// compatibility matrix.
package gobintest

import (
	"debug/dwarf"
	"debug/elf"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// DWARF is what the debug information of an executable says.
type DWARF struct {
	Structs map[string]Struct
	Inlined map[string]bool   // names of functions that were inlined somewhere
	Types   map[string]uint64 // addresses of type descriptors; some releases write offsets
}

// Struct is a struct type. Sizes and offsets are bytes.
type Struct struct {
	Size   int64
	Fields []Field
}

// Field is a field of a struct.
type Field struct {
	Name         string
	Offset, Size int64
	Kind         reflect.Kind // Invalid if DWARF does not tell
	Struct       string       // its type, if that may be a struct with a name
}

const (
	attrGoKind        dwarf.Attr = 0x2900
	attrGoRuntimeType dwarf.Attr = 0x2904
	kindMask                     = 1<<5 - 1
)

// ReadDWARF reads the debug information of the executable at path.
func ReadDWARF(path string) (*DWARF, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open executable: %w", err)
	}
	defer f.Close()
	d, err := f.DWARF()
	if err != nil {
		return nil, fmt.Errorf("read DWARF: %w", err)
	}
	c := collector{
		d: d, info: &DWARF{make(map[string]Struct), make(map[string]bool), make(map[string]uint64)},
		names: make(map[dwarf.Offset]string), origins: make(map[dwarf.Offset]bool),
	}
	r := d.Reader()
	for {
		e, err := r.Next()
		if err == nil && e != nil {
			err = c.add(e)
		}
		if err != nil {
			return nil, fmt.Errorf("read DWARF: %w", err)
		}
		if e == nil {
			break
		}
	}
	for o := range c.origins {
		c.info.Inlined[c.names[o]] = true
	}
	return c.info, nil
}

type collector struct {
	d       *dwarf.Data
	info    *DWARF
	names   map[dwarf.Offset]string // of functions
	origins map[dwarf.Offset]bool   // of inlined calls
}

func (c *collector) add(e *dwarf.Entry) error {
	name, _ := e.Val(dwarf.AttrName).(string)
	if a, ok := e.Val(attrGoRuntimeType).(uint64); ok && a != 0 {
		c.info.Types[name] = a
	}
	switch e.Tag {
	case dwarf.TagStructType:
		kind, _ := e.Val(attrGoKind).(int64)
		if reflect.Kind(kind&kindMask) != reflect.Struct {
			break
		}
		typ, err := c.d.Type(e.Offset)
		if err != nil {
			return err
		}
		s, ok := typ.(*dwarf.StructType)
		if !ok {
			break
		}
		out := Struct{Size: s.ByteSize}
		for _, f := range s.Field {
			out.Fields = append(out.Fields, Field{f.Name, f.ByteOffset, f.Type.Size(), kindOf(f.Type), structOf(f.Type)})
		}
		c.info.Structs[name] = out
	case dwarf.TagSubprogram:
		c.names[e.Offset] = name
	case dwarf.TagInlinedSubroutine:
		if o, ok := e.Val(dwarf.AttrAbstractOrigin).(dwarf.Offset); ok {
			c.origins[o] = true
		}
	}
	return nil
}

// kindOf tells the kinds that have a DWARF type of their own.
func kindOf(t dwarf.Type) reflect.Kind {
	switch t := t.(type) {
	case *dwarf.TypedefType:
		return kindOf(t.Type)
	case *dwarf.PtrType:
		return reflect.Pointer
	case *dwarf.ArrayType:
		return reflect.Array
	case *dwarf.BoolType:
		return reflect.Bool
	}
	return reflect.Invalid
}

// structOf is the name of a struct type; "" for another.
func structOf(t dwarf.Type) string {
	switch t := t.(type) {
	case *dwarf.TypedefType:
		return t.Name
	case *dwarf.StructType:
		return t.StructName
	}
	return ""
}

// Field returns where a field is, path as gobin.Binary's method of this name takes it.
func (d *DWARF) Field(structName, path string) (offset, size uint64, ok bool) {
	for name := range strings.SplitSeq(path, ".") {
		fields := d.Structs[structName].Fields
		i := slices.IndexFunc(fields, func(f Field) bool { return f.Name == name })
		if i < 0 {
			return 0, 0, false
		}
		offset, size = offset+uint64(fields[i].Offset), uint64(fields[i].Size)
		structName = fields[i].Struct
	}
	return offset, size, true
}

// Layouts is what is compared with DWARF: struct sizes and fields by their names, as
// gobin.Binary has them. What it does not have is an error.
type Layouts interface {
	StructSize(name string) (uint64, error)
	FieldAt(structName, path string) (offset, size uint64, kind reflect.Kind, err error)
}

// Comparison counts what was compared, and lists what differs.
type Comparison struct {
	Structs, Fields int
	Wrong           []string
}

// Compare compares every field of every struct that both have.
func (d *DWARF) Compare(l Layouts) (c Comparison) {
	wrong := func(format string, args ...any) { c.Wrong = append(c.Wrong, fmt.Sprintf(format, args...)) }
	for name, want := range d.Structs {
		size, err := l.StructSize(name)
		if err != nil {
			continue // not all have a descriptor
		}
		c.Structs++
		if int64(size) != want.Size {
			wrong("%s: size %d, DWARF says %d", name, size, want.Size)
		}
		for _, f := range want.Fields {
			if f.Name == "_" {
				continue // there may be several
			}
			c.Fields++
			offset, size, kind, err := l.FieldAt(name, f.Name)
			switch {
			case err != nil:
				wrong("%s.%s: %v", name, f.Name, err)
			case int64(offset) != f.Offset || int64(size) != f.Size:
				wrong("%s.%s: at %d, %d bytes; DWARF says %d, %d bytes", name, f.Name, offset, size, f.Offset, f.Size)
			case !f.agrees(kind):
				wrong("%s.%s: kind %s, DWARF says %s", name, f.Name, kind, f.Kind)
			}
		}
	}
	slices.Sort(c.Wrong)
	return c
}

// agrees tells whether a kind is what DWARF says, which has one for all pointers.
func (f Field) agrees(kind reflect.Kind) bool {
	switch {
	case f.Kind == reflect.Invalid || f.Kind == kind:
		return true
	case f.Kind != reflect.Pointer:
		return false
	}
	return kind == reflect.Map || kind == reflect.Chan || kind == reflect.Func || kind == reflect.UnsafePointer
}

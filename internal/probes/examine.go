package probes

import (
	"io"

	"github.com/plainframework/agent/internal/probes/gobin"
)

// Examination is what the agent would do with an executable.
type Examination struct {
	Binary *gobin.Binary
	// Groups are the hooks of the libraries that it has: their sites, or why there are none.
	Groups []GroupStatus
	// Fields are the struct fields whose places the programs are told.
	Fields []FieldUse
	// Pruned are hooks left out because the linker left their function out.
	Pruned []PrunedHook
}

// FieldUse is a struct field that a program reads.
type FieldUse struct {
	Struct, Path string
	Offset, Size uint64 // in bytes
}

// PrunedHook is a hook whose function the binary does not have, as nothing calls it.
type PrunedHook struct {
	Library, Group, Program string
	Reason                  string
}

// Examine analyses an executable as the agent does, without a kernel: nothing is loaded
// or attached. The errors are those of [gobin.Open], and of a runtime that the programs
// cannot find their way in.
//
// With all set, what the settings would have to ask for is looked for as well.
func Examine(exe io.ReaderAt, size int64, all bool) (*Examination, error) {
	info, err := gobin.Open(exe, size)
	if err != nil {
		return nil, err
	}
	x := &Examination{Binary: info}
	b := &executable{info: info}
	if all {
		b.propagation = &propagation{writes: true}
	}
	b.looked = func(structName, path string, f gobin.Field) {
		x.Fields = append(x.Fields, FieldUse{structName, path, f.Offset, f.Size})
	}
	b.pruned = func(g GroupStatus, program string, reason error) {
		x.Pruned = append(x.Pruned, PrunedHook{g.Library, g.Group, program, reason.Error()})
	}
	if err := b.analyse(func(string, any, any) error { return nil }); err != nil {
		return nil, err
	}
	x.Groups = b.groups
	return x, nil
}

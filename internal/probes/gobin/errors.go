package gobin

import (
	"errors"
	"fmt"
	"strings"
)

// Errors of [Open]. Each is a sentence for a person; test with errors.Is.
var (
	ErrNotELF    = errors.New("not an ELF executable")
	Err32Bit     = errors.New("a 32-bit executable: only 64-bit ones are supported")
	ErrArch      = errors.New("an executable for another processor: only little-endian amd64 and arm64 are supported")
	ErrNotGo     = errors.New("not a Go executable: it has no Go function table")
	ErrGoTooOld  = errors.New("built with a Go release before 1.18")
	ErrTruncated = errors.New("the executable is truncated or damaged")
	ErrTables    = errors.New("the Go runtime's tables were not found: the executable is damaged, obfuscated, or of an unknown Go release")
	ErrLimit     = errors.New("the executable is larger or more intricate than the reader's limits allow")
)

// MissingError tells that a function, type or field is not in the binary.
type MissingError struct {
	What   string // "function", "type" or "field"
	Name   string // full name; "type.path" for a field
	Reason string // more, where more is known
}

func (e *MissingError) Error() string {
	s := e.What + " " + e.Name + " is not in the binary"
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// InlinedError tells that a function's body was copied into others, so that a
// probe on the function itself would miss those calls.
type InlinedError struct {
	Func string
	Into []string // names of functions that contain it, at most 16
	Kept *Func    // the function's own copy, nil if there is none
}

func (e *InlinedError) Error() string {
	into := strings.Join(e.Into, ", ")
	if len(e.Into) == maxInto {
		into += " and maybe others"
	}
	return fmt.Sprintf("function %s is inlined into %s", e.Func, into)
}

// SiteError tells why a function has no probe site of the kind asked for.
type SiteError struct {
	Func   string
	Reason string
}

func (e *SiteError) Error() string {
	return "no probe site in " + e.Func + ": " + e.Reason
}

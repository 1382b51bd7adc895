package probes

import (
	"errors"
	"fmt"
	"slices"

	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/gobin"
)

// libraries is the table of what can be instrumented.
var libraries = []*library{
	&netHTTP2Bundled, // before netHTTP, which begins its spans
	&netHTTP2Internal,
	&netHTTP2X,
	&netHTTP,
	&routers,
	&netHTTPClient,
	&propagateHTTP,
	&propagateBuffers,
	&propagateHTTP2Bundled,
	&propagateHTTP2Internal,
	&propagateHTTP2X,
	&propagateGRPC,
	&http2ClientBundled,
	&http2ClientInternal,
	&http2ClientX,
	&otelSDK,
	&autoSpans,
	&databaseSQL,
	&grpc,
	&goRuntime,
	&standardError,
}

// library is one instrumented library: what to probe, what the programs need to
// know of its structs, and how its records become spans.
type library struct {
	name string // import path; ends the name of the instrumentation scope

	// beside: of use only to programs that another library instruments.
	beside bool

	// asked: looked for only where the settings ask for it; written: and where the kernel
	// lets the agent write to what a target has in memory.
	asked, written bool

	// groups of hooks that are useless without each other, such as the begin
	// and the end of a span.
	groups []group

	// layoutMap is the BPF map, indexed by binary, that holds layout's result. Both
	// are left out where the programs need no more than the runtime's layout.
	layoutMap   string
	layoutIndex uint32 // added to the binary's number
	layout      func(*layouts) any

	metrics []metric

	// serves is the library whose operations pass this one's probes as well.
	serves *library

	// givenUp is the step of the back-off that takes its probes out; nothing: the last.
	givenUp givenUp

	// records are the kinds of ring records that the library's programs emit.
	records map[uint32]decoder
}

// scopeOf is the instrumentation scope of what a library yields.
func scopeOf(lib *library, version string) *event.Scope {
	return &event.Scope{Name: "github.com/plainframework/agent/" + lib.name, Version: version}
}

// decoder makes a span of a ring record. The record comes from the kernel, its
// texts from a program that is not trusted; a record that makes no sense is an
// error, which is counted.
type decoder func(d *decoding, raw []byte, span *event.Span) error

// group is a set of hooks that stand or fall together.
type group struct {
	name string
	// when limits the group to binaries for which it returns true; nil: to those
	// that have the function of its last hook, which begins the span.
	when  func(*gobin.Binary) bool
	hooks []hook // attached in this order: what ends a span before what begins it
}

// hook is one program and the sites that it is attached to. Several groups may name
// the same hook; it is attached once.
type hook struct {
	// when limits the hook to binaries for which it returns true, where releases of a
	// library differ; nil: none.
	when    func(*gobin.Binary) bool
	program string
	variant uint8 // tells the sites of one program apart; 0 to 15
	sites   siteFinder
	// instead is tried where this hook has no site, such as its caller where the
	// function was inlined.
	instead *hook
	// choice names hooks that adapt.go attaches only while they pay; "" is always.
	choice choice
	// prunable: the linker leaves the function out where nothing can call it, so
	// that it is not there says nothing.
	prunable bool
	// optional hooks that are not found leave the group complete, if poorer.
	optional bool
}

// find returns the first hook of this one and its fallbacks that has sites; if none has,
// the error is that of the first.
func (h hook) find(b *gobin.Binary) (hook, []gobin.Site, error) {
	sites, err := h.sites(b)
	if err == nil || h.instead == nil {
		return h, sites, err
	}
	if other, sites, otherErr := h.instead.find(b); otherErr == nil {
		return other, sites, nil
	}
	return h, nil, err
}

// siteFinder finds the sites of one hook in a binary.
type siteFinder func(*gobin.Binary) ([]gobin.Site, error)

// entry is the site where a function has begun, its arguments in registers.
func entry(function string) siteFinder {
	return func(b *gobin.Binary) ([]gobin.Site, error) {
		f, err := b.Func(function)
		if err != nil {
			return nil, err
		}
		return one(b.EntrySite(f))
	}
}

// returns is every RET of a function: correct, and the dearest site on amd64.
func returns(function string) siteFinder {
	return func(b *gobin.Binary) ([]gobin.Site, error) {
		f, err := b.Func(function)
		if err != nil {
			return nil, err
		}
		return b.ReturnSites(f)
	}
}

// firstOf tries finders in order; the last one's error counts.
func firstOf(finders ...siteFinder) siteFinder {
	return func(b *gobin.Binary) (sites []gobin.Site, err error) {
		for _, find := range finders {
			if sites, err = find(b); err == nil {
				return sites, nil
			}
		}
		return nil, err
	}
}

// inFunc applies a rule to a function by its name.
func inFunc(function string, rule func(*gobin.Binary, *gobin.Func) (gobin.Site, error)) siteFinder {
	return func(b *gobin.Binary) ([]gobin.Site, error) {
		f, err := b.Func(function)
		if err != nil {
			return nil, err
		}
		return one(rule(b, f))
	}
}

// inBody applies a rule with several sites to a function by its name.
func inBody(function string, rule func(*gobin.Binary, *gobin.Func) ([]gobin.Site, error)) siteFinder {
	return func(b *gobin.Binary) ([]gobin.Site, error) {
		f, err := b.Func(function)
		if err != nil {
			return nil, err
		}
		return rule(b, f)
	}
}

// inRegisters asks that these results of a call, counted in words, are still in their
// registers, where the programs look for them.
func inRegisters(results ...int) gobin.AfterOptions {
	return gobin.AfterOptions{Results: results, InRegs: true}
}

func one(site gobin.Site, err error) ([]gobin.Site, error) {
	if err != nil {
		return nil, err
	}
	return []gobin.Site{site}, nil
}

// everyCall is each call of one function in another.
func everyCall(function, callee string) siteFinder {
	return inBody(function, func(b *gobin.Binary, f *gobin.Func) (sites []gobin.Site, err error) {
		for {
			site, err := b.CallSite(f, gobin.Call{Callee: callee, N: len(sites)})
			if err != nil && len(sites) == 0 {
				return nil, err
			}
			if err != nil {
				return sites, nil
			}
			sites = append(sites, site)
		}
	})
}

// has tells whether a function can be called in the binary, inlined or not.
func has(b *gobin.Binary, function string) bool {
	_, err := b.Func(function)
	var inlined *gobin.InlinedError
	return err == nil || errors.As(err, &inlined)
}

// layouts collects struct offsets of one binary and what was not found.
type layouts struct {
	binary  *gobin.Binary
	looked  func(structName, path string, f gobin.Field) // told of each field that is found; or nil
	missing []error
}

func (l *layouts) field(structName, path string) (uint32, error) {
	f, err := l.binary.Field(structName, path)
	if err != nil {
		return 0, err
	}
	if l.looked != nil {
		l.looked(structName, path, f)
	}
	return uint32(f.Offset), nil
}

// offset is the place of a field in a struct, in bytes.
func (l *layouts) offset(structName, path string) uint32 {
	offset, err := l.field(structName, path)
	if err != nil {
		l.missing = append(l.missing, err)
	}
	return offset
}

// optional is like offset, but 0 and no error where the field is not found.
func (l *layouts) optional(structName, path string) uint32 {
	offset, _ := l.field(structName, path)
	return offset
}

// size is how long a struct is, in bytes.
func (l *layouts) size(structName string) uint32 {
	size, err := l.binary.StructSize(structName)
	if err != nil {
		l.missing = append(l.missing, err)
	}
	return uint32(size)
}

// typeAddr is the address of a type's descriptor as linked.
func (l *layouts) typeAddr(name string) uint64 {
	addr, err := l.binary.TypeAddr(name)
	if err != nil {
		l.missing = append(l.missing, err)
	}
	return addr
}

// upTo is how much of a struct holds all of these fields, each at most a string; more
// than limit bytes is an error.
func (l *layouts) upTo(limit uint32, offsets ...uint32) uint32 {
	const stringSize = 16
	size := slices.Max(offsets) + stringSize
	if size > limit {
		l.missing = append(l.missing, fmt.Errorf("a struct of which %d bytes would have to be read, at most %d can be", size, limit))
	}
	return size
}

func (l *layouts) err() error { return errors.Join(l.missing...) }

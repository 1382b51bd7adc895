package probes

import (
	"errors"
	"strings"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/gobin"
)

// standardError captures what a program writes to file descriptor 2;
// bpf/stderr.bpf.c says where. It yields no spans: logs.go has what becomes of it.
//
// The hook costs a trap for each write to an os.File, whatever its descriptor, and
// nothing for sockets. The other candidate, a tracepoint on the write system call, is
// cheaper for each line, and puts every system call of every process of the node on the
// slow path: ARCHITECTURE.md has the figures.
var standardError = library{
	name:   "os",
	beside: true,
	groups: []group{{
		name: "stderr",
		when: func(b *gobin.Binary) bool { return has(b, "os.(*File).Write") },
		hooks: []hook{
			{program: "stderr_write", variant: uint8(bpf.AgentStderrSiteSTDERR_RUNTIME), sites: entry("runtime.gwrite"), optional: true},
			{program: "stderr_write", variant: uint8(bpf.AgentStderrSiteSTDERR_SYSCALL), sites: directWrites, prunable: true, optional: true},
			{program: "stderr_write", variant: uint8(bpf.AgentStderrSiteSTDERR_FILE), sites: entry("os.(*File).Write")},
		},
	}},
	layoutMap: "stderr_layouts",
	layout: func(l *layouts) any {
		return &bpf.AgentStderrLayout{
			File:       l.offset("os.File", "file"),
			Sysfd:      l.offset("os.file", "pfd.Sysfd"),
			G_writebuf: l.offset("runtime.g", "writebuf"),
			G_m:        l.offset("runtime.g", "m"),
			M_dying:    l.offset("runtime.m", "dying"),
			M_curg:     l.offset("runtime.m", "curg"),
		}
	},
}

// directWrites are the calls of syscall.Write by others than the standard library, whose
// own are those of files and sockets. It is thin, and mostly inlined.
func directWrites(b *gobin.Binary) ([]gobin.Site, error) {
	ours := func(function string) bool {
		for _, pkg := range []string{"syscall.", "internal/", "os.", "net.", "runtime."} {
			if strings.HasPrefix(function, pkg) {
				return false
			}
		}
		return true
	}
	var all []gobin.Site
	for _, callee := range []string{"syscall.Write", "syscall.write"} {
		sites, err := b.Callers(callee, ours)
		var missing *gobin.MissingError
		if err != nil && !errors.As(err, &missing) {
			return nil, err
		}
		all = append(all, sites...)
	}
	if len(all) == 0 {
		return nil, &gobin.MissingError{What: "call", Name: "syscall.Write"}
	}
	return all, nil
}

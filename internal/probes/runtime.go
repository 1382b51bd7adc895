package probes

import "github.com/plainframework/agent/internal/probes/gobin"

// goRuntime follows go statements in programs that are too old to be helped otherwise:
// up to Go 1.20 many libraries, such as the collectors of Prometheus exporters, query
// on goroutines of their own and hand them no context. It costs a trap for each go
// statement, so newer programs, whose libraries pass contexts, are spared.
var goRuntime = library{
	name:    "runtime",
	beside:  true,
	givenUp: givenUpSQL, // it serves queries
	groups: []group{{
		name: "goroutines",
		when: func(b *gobin.Binary) bool {
			v := b.GoVersion()
			return v.Known() && !v.AtLeast(1, 21) && has(b, "database/sql.(*DB).queryDC")
		},
		hooks: []hook{{
			program: "runtime_newproc",
			sites: inFunc("runtime.newproc.func1", func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
				return b.CallSite(f, gobin.Call{Callee: "runtime.runqput"})
			}),
		}},
	}},
}

package probes

import (
	"errors"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/gobin"
)

const connServe = "net/http.(*conn).serve"

// requestEnd is where a request of HTTP/1.x ends. Profiles of a server make the compiler
// inline finishRequest into (*conn).serve, as its only frequent caller. Then the request
// ends at a call that stands for it, in the order of finishRequest's own code (the same
// from Go 1.18 to 1.27), and at last at the one that serve itself makes right after it.
var requestEnd = hook{
	program: "nethttp_server_end", sites: entry("net/http.(*response).finishRequest"),
	instead: &hook{
		program: "nethttp_server_end", variant: uint8(bpf.AgentHttpEndSiteHTTP_FINISHING),
		sites: callSites(connServe, "net/http.(*chunkWriter).close"),
		instead: &hook{
			program: "nethttp_server_end", variant: uint8(bpf.AgentHttpEndSiteHTTP_FINISHING),
			sites: callSites(connServe, "net/http.(*connReader).abortPendingRead"),
			instead: &hook{
				program: "nethttp_server_end",
				sites:   callSites(connServe, "net/http.(*response).shouldReuseConnection"),
			},
		},
	},
}

// maxCallSites bounds how often a function may call another.
const maxCallSites = 8

// callSites is every call of callee in a function.
func callSites(function, callee string) siteFinder {
	return func(b *gobin.Binary) ([]gobin.Site, error) {
		var sites []gobin.Site
		for n := range maxCallSites {
			more, err := callSite(function, callee, n)(b)
			if n > 0 && errors.As(err, new(*gobin.SiteError)) {
				return sites, nil
			}
			if err != nil {
				return nil, err
			}
			sites = append(sites, more...)
		}
		return nil, &gobin.SiteError{Func: function, Reason: "it has too many calls of " + callee}
	}
}

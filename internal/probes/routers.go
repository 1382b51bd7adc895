package probes

import (
	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/gobin"
)

// Import paths of routers.
const (
	gin        = "github.com/gin-gonic/gin"
	gorillaMux = "github.com/gorilla/mux"
	httpRouter = "github.com/julienschmidt/httprouter"
	chi4       = "github.com/go-chi/chi"
	chi5       = "github.com/go-chi/chi/v5"
	echo3      = "github.com/labstack/echo"
	echo4      = "github.com/labstack/echo/v4"
	echo5      = "github.com/labstack/echo/v5"
)

// routers are the routes of routers other than ServeMux; bpf/routers.bpf.c says where
// each is read. They serve the spans of net/http, one trap a request, and make none.
var routers = library{
	name:   "routers",
	serves: &netHTTP,
	groups: []group{
		route("gin", gin+".(*Engine).handleHTTPRequest", hook{
			variant: uint8(bpf.AgentRouterSiteROUTER_GIN), sites: callSite(gin+".(*Engine).handleHTTPRequest", gin+".(*Context).Next", 0),
			instead: &hook{program: "router_route", variant: uint8(bpf.AgentRouterSiteROUTER_GIN_POOL), sites: poolPut(gin + ".(*Engine).ServeHTTP")},
		}),
		route("gorilla/mux", gorillaMux+".(*Router).ServeHTTP", hook{
			variant: uint8(bpf.AgentRouterSiteROUTER_MUX), sites: entry(gorillaMux + ".requestWithRoute"),
			instead: &hook{program: "router_route", variant: uint8(bpf.AgentRouterSiteROUTER_MUX_ANY), sites: callSite(gorillaMux+".(*Router).ServeHTTP", gorillaMux+".contextSet", -1)},
		}),
		route("httprouter", httpRouter+".(*Router).ServeHTTP", hook{
			program: "router_httprouter", variant: uint8(bpf.AgentHttprouterSiteHTTPROUTER_SLICE), sites: httpRouterSite(false, 0, 1, 2),
			instead: &hook{program: "router_httprouter", variant: uint8(bpf.AgentHttprouterSiteHTTPROUTER_POINTER), sites: httpRouterSite(true, 0, 1)},
		}),
		poolRoute("chi", chi4+".(*Mux).ServeHTTP", chi4+".(*Mux).ServeHTTP", bpf.AgentRouterSiteROUTER_CHI4),
		poolRoute("chi/v5", chi5+".(*Mux).ServeHTTP", chi5+".(*Mux).ServeHTTP", bpf.AgentRouterSiteROUTER_CHI5),
		poolRoute("echo", echo3+".(*Echo).ServeHTTP", echo3+".(*Echo).ServeHTTP", bpf.AgentRouterSiteROUTER_ECHO3),
		poolRoute("echo/v4", echo4+".(*Echo).ServeHTTP", echo4+".(*Echo).ServeHTTP", bpf.AgentRouterSiteROUTER_ECHO4),
		poolRoute("echo/v5", echo5+".(*Echo).ServeHTTP", echo5+".(*Echo).serveHTTP.deferwrap1", bpf.AgentRouterSiteROUTER_ECHO5),
	},
	layoutMap: "router_layouts",
	layout:    routerLayout,
}

// route is the group of one router. function tells whether the program uses it.
func route(name, function string, h hook) group {
	if h.program == "" {
		h.program = "router_route"
	}
	return group{
		name:  name,
		when:  func(b *gobin.Binary) bool { return has(b, httpServe) && has(b, function) },
		hooks: []hook{h},
	}
}

// poolRoute is a router that has the route on a struct of a pool until put gives it back.
func poolRoute(name, serve, put string, site bpf.AgentRouterSite) group {
	return route(name, serve, hook{variant: uint8(site), sites: poolPut(put)})
}

// poolPut is where a function gives a struct back to its pool.
func poolPut(function string) siteFinder { return callSite(function, "sync.(*Pool).Put", 0) }

// callSite is the n-th call of callee in a function.
func callSite(function, callee string, n int) siteFinder {
	return inFunc(function, func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
		return b.CallSite(f, gobin.Call{Callee: callee, N: n})
	})
}

// httpRouterSite is the branch on the handler of getValue. Its parameters are a slice, or
// a pointer to one where routers can also save the matched path, and so have that field.
func httpRouterSite(pointer bool, results ...int) siteFinder {
	return inFunc(httpRouter+".(*Router).ServeHTTP", func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
		if _, err := b.Field(httpRouter+".Router", "SaveMatchedRoutePath"); (err == nil) != pointer {
			return gobin.Site{}, &gobin.SiteError{Func: f.Name, Reason: "it is of another version"}
		}
		return b.AfterCall(f, gobin.Call{Callee: httpRouter + ".(*node).getValue"}, inRegisters(results...))
	})
}

// routerLayout asks only for what the binary's routers need.
func routerLayout(l *layouts) any {
	layout := &bpf.AgentRouterLayout{}
	fields := func(function, structName, route, request string, sites ...bpf.AgentRouterSite) {
		if !has(l.binary, function) {
			return
		}
		for _, site := range sites {
			layout.Fields[site].Route = l.offset(structName, route)
			layout.Fields[site].Request = l.offset(structName, request)
		}
	}
	fields(gin+".(*Engine).handleHTTPRequest", gin+".Context", "fullPath", "Request", bpf.AgentRouterSiteROUTER_GIN, bpf.AgentRouterSiteROUTER_GIN_POOL)
	fields(echo3+".(*Echo).ServeHTTP", echo3+".context", "path", "request", bpf.AgentRouterSiteROUTER_ECHO3)
	fields(echo4+".(*Echo).ServeHTTP", echo4+".context", "path", "request", bpf.AgentRouterSiteROUTER_ECHO4)
	fields(echo5+".(*Echo).ServeHTTP", echo5+".Context", "path", "request", bpf.AgentRouterSiteROUTER_ECHO5)
	fields(chi5+".(*Mux).ServeHTTP", chi5+".Context", "RoutePatterns", "parentCtx", bpf.AgentRouterSiteROUTER_CHI5)
	if has(l.binary, chi4+".(*Mux).ServeHTTP") {
		f := &layout.Fields[bpf.AgentRouterSiteROUTER_CHI4]
		f.Route = l.offset(chi4+".Context", "RoutePatterns")
		f.Request = l.optional(chi4+".Context", "parentCtx") // from 1.5 on, which came after 4
	}
	if has(l.binary, gorillaMux+".(*Router).ServeHTTP") {
		muxLayout(l, layout)
	}
	if has(l.binary, httpRouter+".(*Router).ServeHTTP") {
		const param = httpRouter + ".Param"
		layout.ParamKey, layout.ParamValue = l.offset(param, "Key"), l.offset(param, "Value")
		layout.ParamSize = l.size(param)
	}
	return layout
}

// muxLayout is how a route of gorilla/mux leads to its template: by a group of matchers
// that is embedded from 1.7 on, and pointed to before.
func muxLayout(l *layouts, layout *bpf.AgentRouterLayout) {
	const route, group = gorillaMux + ".Route", gorillaMux + ".routeRegexpGroup"
	if f, err := l.binary.Field(route, "routeConf.regexp"); err == nil {
		layout.MuxRegexp = uint32(f.Offset)
	} else {
		layout.MuxRegexp, layout.MuxRegexpPointer = l.offset(route, "regexp"), 1
	}
	layout.MuxGroupPath = l.offset(group, "path")
	layout.MuxTemplate = l.offset(gorillaMux+".routeRegexp", "template")
}

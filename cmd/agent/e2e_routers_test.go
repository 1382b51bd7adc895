//go:build e2e

package main

import (
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/observer"
)

const routersDir = "testdata/routers"

// routerRoutes are the routes of the test programs: the request's path, and the pattern as
// that router writes it. The last router that matched has the say.
type routerRoutes map[string]string

var (
	colonRoutes = routerRoutes{
		"/users/7": "/users/:id", "/static/page": "/static/page", "/files/a/b.txt": "/files/*path",
		"/api/orders/7/items": "/api/orders/:id/items", "/inner/deep/x": "/inner/deep/",
		"/panic/7": "/panic/:id", "/missing/7": "",
	}
	echoRoutes = colonRoutes.with("/files/a/b.txt", "/files/*")
	chiRoutes  = routerRoutes{
		"/users/7": "/users/{id}", "/static/page": "/static/page", "/files/a/b.txt": "/files/*",
		"/api/orders/7/items": "/api/orders/{id}/items", "/inner/deep/x": "/inner/deep/",
		"/panic/7": "/panic/{id}", "/missing/7": "",
	}
	muxRoutes        = chiRoutes.with("/users/7", "/users/{id:[a-z0-9]+}").with("/files/a/b.txt", "/files/")
	httpRouterRoutes = colonRoutes.with("/teams/team_a/members/a", "/teams/team_:team/members/:member")
)

func (r routerRoutes) with(path, route string) routerRoutes {
	c := maps.Clone(r)
	c[path] = route
	return c
}

// vias are what stands before the router, see testdata/routers/serve, and what is put
// before the path for it.
var vias = map[string]string{"": "", "mux": "", "timeout": "", "context": "", "prefix": "/v1"}

// testRouters: requests of every kind to programs with the oldest and the newest version
// of each router that are covered; each span has the route that the router matched.
func (e *e2e) testRouters(t *testing.T) {
	for _, p := range []struct {
		name, versions string
		want           routerRoutes
	}{
		{"gin", "oldest newest", colonRoutes},
		{"mux", "oldest newest", muxRoutes},
		{"httprouter", "oldest newest", httpRouterRoutes},
		{"chi", "oldest newest", chiRoutes},
		{"chi5", "oldest newest", chiRoutes},
		{"echo3", "newest", echoRoutes},
		{"echo4", "oldest newest", echoRoutes},
		{"echo5", "newest", echoRoutes},
	} {
		for _, version := range strings.Fields(p.versions) {
			if version == "oldest" && !*whole && p.name != "gin" {
				continue
			}
			t.Run(p.name+"-"+version, func(t *testing.T) {
				flags := []string{"-modfile=../" + version + ".mod"}
				if p.name == "echo5" { // a module of its own: it asks for a newer Go than others
					flags = nil
				}
				path := e.build(t, p.name+"-"+version, filepath.Join(routersDir, p.name), nil, flags...)
				e.checkRoutes(t, path, func(via, path string) string {
					if p.name == "chi" && version == "oldest" && via == "timeout" && !strings.HasPrefix(path, "/inner/") {
						return "" // its context does not lead to the request's
					}
					return p.want[path]
				}, p.want)
			})
		}
	}
}

func (e *e2e) checkRoutes(t *testing.T, path string, want func(via, path string) string, paths routerRoutes) {
	router := awaitShop(t, startProc(t, "router", nil, path))
	a := e.startAgent(t, "--exe", path)
	sent := 0
	for via, prefix := range vias {
		for p := range paths {
			if strings.HasPrefix(p, "/panic") && via == "timeout" {
				continue // panics once more, on the server's goroutine
			}
			sendBy(loner, "GET", router.url+prefix+p, map[string]string{"Via": via, "User-Agent": "via-" + via})
			sent++
		}
	}
	eventually(t, 20*time.Second, "every request is a span", func() bool { return serverSpans(a.seen) >= sent })
	a.noLosses(t)
	for _, s := range a.finish(t) {
		via := strings.TrimPrefix(s.Attrs.Text("user_agent.original"), "via-")
		route := want(via, strings.TrimPrefix(s.Attrs.Text("url.path"), vias[via]))
		if route == "" && via == "mux" {
			route = "/" // what the ServeMux before it has matched
		}
		checkRoute(t, s, via, route)
	}
}

func checkRoute(t *testing.T, s observer.Span, via, want string) {
	t.Helper()
	name := strings.TrimSpace("GET " + want)
	if got := s.Attrs.Text("http.route"); got != want || s.Name != name {
		t.Errorf("%s via %q: route %q and name %q, want %q and %q", s.Attrs.Text("url.path"), via, got, s.Name, want, name)
	}
}

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"github.com/plainframework/agent/internal/probes"
	"github.com/plainframework/agent/internal/probes/gobin/gobintest"
)

// library is a program with modules whose functions or structs the probes know, and the
// versions of them to build it with.
type library struct {
	dir      string
	modules  []string  // to name the versions of
	versions []version // the oldest that is supported, perhaps some between, a recent one
	attached []string  // groups of the probes' table that must be there
	fields   []string  // that the probes must find, as "struct field"
}

// version is a set of versions of modules.
type version struct {
	modfile   string
	toolchain string // release of Go to build with; "": the local one
}

const e2eData = "cmd/agent/testdata/"

var oldestAndNewest = []version{{modfile: "../oldest.mod"}, {modfile: "../newest.mod"}}

// libraries are what is examined beside the standard library. A new one is an entry here.
var libraries = []library{
	{
		dir: "scripts/compatibility/testdata/drivers", versions: []version{{modfile: "oldest.mod"}, {modfile: "newest.mod"}},
		modules:  []string{"github.com/lib/pq", "github.com/jackc/pgx/v5", "github.com/go-sql-driver/mysql"},
		attached: []string{"net/http server", "database/sql DB"},
		fields: []string{
			"github.com/lib/pq.Error Code", "github.com/jackc/pgx/v5/pgconn.PgError Code", "github.com/go-sql-driver/mysql.MySQLError Number",
		},
	},
	{
		dir: e2eData + "grpc", modules: []string{"google.golang.org/grpc"}, attached: []string{"google.golang.org/grpc server", "google.golang.org/grpc client"},
		versions: []version{
			{modfile: "go.mod", toolchain: "1.18.10"}, {modfile: "go1.57.mod"}, {modfile: "go1.69.mod"}, {modfile: "latest.mod"},
		},
	},
	{dir: e2eData + "routers/gin", modules: []string{"github.com/gin-gonic/gin"}, versions: oldestAndNewest, attached: []string{"routers gin"}},
	{dir: e2eData + "routers/chi5", modules: []string{"github.com/go-chi/chi/v5"}, versions: oldestAndNewest, attached: []string{"routers chi/v5"}},
	{dir: e2eData + "routers/echo4", modules: []string{"github.com/labstack/echo/v4"}, versions: oldestAndNewest, attached: []string{"routers echo/v4"}},
	{dir: e2eData + "routers/mux", modules: []string{"github.com/gorilla/mux"}, versions: oldestAndNewest, attached: []string{"routers gorilla/mux"}},
	{dir: e2eData + "routers/httprouter", modules: []string{"github.com/julienschmidt/httprouter"}, versions: oldestAndNewest, attached: []string{"routers httprouter"}},
}

// moduleResult is what became of one program with one set of versions.
type moduleResult struct {
	result
	modules []string // with their versions
}

// examineModules builds and examines each program with each set of versions.
func (w *workshop) examineModules(ctx context.Context) (list []moduleResult, err error) {
	for _, l := range libraries {
		for i, v := range l.versions {
			if w.slice && i != len(l.versions)-1 {
				continue
			}
			r := w.examineModule(ctx, l, v)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			fmt.Fprintf(os.Stderr, "%s: %s\n", strings.Join(r.modules, ", "), r.line())
			list = append(list, r)
		}
	}
	return list, nil
}

func (w *workshop) examineModule(ctx context.Context, l library, v version) moduleResult {
	release := v.toolchain
	if release == "" {
		release = strings.TrimPrefix(runtime.Version(), "go")
	}
	r := moduleResult{result{build: build{release, runtime.GOARCH, kind{name: "plain"}}}, l.modules}
	path := w.path("module")
	cmd := exec.CommandContext(ctx, "go", "build", "-modfile="+v.modfile, "-o", path, ".")
	cmd.Dir, cmd.Env = l.dir, r.environment()
	if err := output(cmd, "go build"); err != nil {
		r.problem("%v", err)
		return r
	}
	defer os.Remove(path)
	if err := r.checkModules(path, l); err != nil {
		r.problem("%v", err)
	}
	return r
}

// checkModules is what must be true of a program with modules.
func (r *moduleResult) checkModules(path string, l library) error {
	x, err := examineFile(path)
	if err != nil {
		return err
	}
	defer x.Close()
	r.nameVersions(x.Examination)
	for _, g := range x.Groups {
		if g.State != "attached" {
			r.problem("%s %s: %s", g.Library, g.Group, g.Reason)
		}
		for _, h := range g.Hooks {
			if h.Reason != "" {
				if nothingToProbe(h.Reason) {
					continue
				}
				r.problem("%s %s %s: %s", g.Library, g.Group, h.Program, h.Reason)
				continue
			}
			r.sites = append(r.sites, site{h.Program, h.Function, h.Instruction, h.Address, h.Emulated})
		}
	}
	for _, name := range l.attached {
		if !slices.ContainsFunc(x.Groups, func(g probes.GroupStatus) bool { return strings.TrimSpace(g.Library+" "+g.Group) == name }) {
			r.problem("nothing of %s is found", name)
		}
	}
	d, err := gobintest.ReadDWARF(path)
	if err != nil {
		return err
	}
	r.checkLayouts(x.Examination, d)
	for _, f := range l.fields {
		name, field, _ := strings.Cut(f, " ")
		if !slices.ContainsFunc(x.Fields, func(u probes.FieldUse) bool { return u.Struct == name && u.Path == field }) {
			r.problem("%s.%s is not found", name, field)
		}
	}
	return r.checkSymbols(path)
}

// nameVersions adds the versions to the names of modules, as the binary tells them.
func (r *moduleResult) nameVersions(x *probes.Examination) {
	info := x.Binary.BuildInfo()
	if info == nil {
		return
	}
	r.modules = slices.Clone(r.modules)
	for i, path := range r.modules {
		for _, dep := range info.Deps {
			if dep.Path == path {
				r.modules[i] = path + " " + dep.Version
			}
		}
	}
}

// moduleSection is the table of modules.
func moduleSection(list []moduleResult) string {
	if len(list) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("| modules | Go | probe sites | fields compared | |\n|---|---|--:|--:|---|\n")
	for _, r := range list {
		verdict := "ok"
		if len(r.problems) > 0 {
			verdict = "**" + strings.Join(r.problems, "; ") + "**"
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %s |\n", strings.Join(r.modules, ", "), r.release, len(r.sites), r.fields, verdict)
	}
	return b.String()
}

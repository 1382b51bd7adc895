package probes

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestExamine: what is looked at without a kernel has the sites that the agent attaches
// to, and the fields that it reads.
func TestExamine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "target")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", path, "./testdata/target")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build target: %v\n%s", err, out)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	x, err := Examine(f, stat.Size(), false)
	if err != nil {
		t.Fatal(err)
	}
	server := false
	for _, g := range x.Groups {
		if g.State != "attached" {
			t.Errorf("%s %s: %+v", g.Library, g.Group, g)
		}
		server = server || g.Library == "net/http" && g.Group == "server"
	}
	if !server {
		t.Errorf("no server group in %+v", x.Groups)
	}
	uses := map[string]FieldUse{}
	for _, u := range x.Fields {
		uses[u.Struct+"."+u.Path] = u
	}
	want, err := x.Binary.Field("net/http.Request", "Method")
	if u := uses["net/http.Request.Method"]; err != nil || u.Size != 16 || u.Offset != want.Offset {
		t.Errorf("Request.Method: %+v, %v; want %+v", u, err, want)
	}
	if _, ok := uses["runtime.g.goid"]; !ok {
		t.Error("runtime.g.goid was not looked up")
	}
	if _, err := Examine(f, 100, false); err == nil {
		t.Error("a file of 100 bytes gives no error")
	}
}

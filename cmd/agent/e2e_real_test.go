//go:build e2e

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// Debian's packages of Go services, built by Debian with Go 1.19: the exporter
// is a stripped PIE.
const (
	exporter = "/usr/bin/prometheus-postgres-exporter"
	caddy    = "/usr/bin/caddy"
)

// database is a PostgreSQL of the test's own, which logs every statement.
type database struct {
	port, log string
}

// startPostgres makes a cluster in a folder of its own and starts it.
func startPostgres(t *testing.T) database {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Fatal("PostgreSQL is not installed; scripts/test installs it")
	}
	bin := filepath.Dir(found[len(found)-1])
	dir, err := os.MkdirTemp("", "e2e-postgres")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	postgres, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(postgres.Uid)
	gid, _ := strconv.Atoi(postgres.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) error {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, out.String())
		}
		return nil
	}
	data := filepath.Join(dir, "data")
	if err := run("initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"); err != nil {
		t.Fatal(err)
	}
	db := database{log: filepath.Join(dir, "log")}
	_, db.port, _ = strings.Cut(freeAddress(t), ":")
	options := "-h 127.0.0.1 -p " + db.port + " -k " + dir + " -c log_statement=all -c fsync=off"
	if err := run("pg_ctl", "-D", data, "-l", db.log, "-o", options, "-w", "start"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := run("pg_ctl", "-D", data, "-m", "fast", "-w", "stop"); err != nil {
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	return db
}

// statements counts the statements that the server has run, without the empty
// ones, which are lib/pq's pings and no operation of database/sql.
func (d database) statements(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile(d.log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		_, statement, ok := strings.Cut(line, "LOG:  statement: ")
		if !ok {
			_, statement, ok = strings.Cut(line, "LOG:  execute ")
		}
		if ok && strings.TrimSpace(statement) != ";" {
			n++
		}
	}
	return n
}

// testPostgresExporter: N scrapes give N server spans, each with SQL children,
// and as many of these as the server saw statements.
func (e *e2e) testPostgresExporter(t *testing.T) {
	db := startPostgres(t)
	listen := freeAddress(t)
	p := startProc(t, "exporter", []string{"DATA_SOURCE_NAME=user=postgres password=geheim host=127.0.0.1 port=" + db.port + " sslmode=disable"},
		exporter, "--web.listen-address="+listen)
	url := "http://" + listen + "/metrics"
	eventually(t, 20*time.Second, "the exporter answers", func() bool { return statusOf(url) == 200 })
	a := e.startAgent(t, "--pid", fmt.Sprint(p.pid()))
	before := db.statements(t)
	for range perPath {
		if code := statusOf(url); code != 200 {
			t.Fatalf("a scrape answers %d", code)
		}
	}
	want := db.statements(t) - before
	eventually(t, 15*time.Second, "every scrape and statement is a span", func() bool { return a.seen.Counts().Spans >= perPath+want })
	a.noLosses(t)
	spans := a.finish(t)
	t.Logf("%d scrapes ran %d statements", perPath, want)

	roots, children := map[trace.SpanID]observer.Span{}, map[trace.SpanID]int{}
	sql, orphans := 0, map[string]int{}
	for _, s := range spans {
		if s.Kind == trace.SpanKindServer {
			roots[s.SpanID] = s
		}
	}
	for _, s := range spans {
		if s.Kind == trace.SpanKindServer {
			continue
		}
		sql++
		children[s.ParentID]++
		if s.Attrs.Text("db.system.name") != "postgresql" || s.Attrs.Text("db.query.text") == "" || s.Attrs.Text("error.type") != "" {
			t.Errorf("SQL span: %s", summary(s))
		}
		if root, ok := roots[s.ParentID]; !ok || root.TraceID != s.TraceID {
			orphans[s.Name]++
		}
		if strings.Contains(summary(s), "geheim") {
			t.Error("the database's password is in a span")
		}
	}
	if len(orphans) > 0 {
		t.Errorf("SQL spans whose parent is no scrape: %v", orphans)
	}
	if len(roots) != perPath || sql != want {
		t.Errorf("%d server spans and %d SQL spans, want %d and %d", len(roots), sql, perPath, want)
	}
	for id, s := range roots {
		if children[id] == 0 || s.Attrs.Text("url.path") != "/metrics" || s.Attrs.Text("http.response.status_code") != "200" {
			t.Errorf("a scrape with %d children: %s", children[id], summary(s))
		}
	}
}

// testCaddy: N requests to a file server give N server spans.
func (e *e2e) testCaddy(t *testing.T) {
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "file.txt"), []byte("some text\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	listen := freeAddress(t)
	p := startProc(t, "caddy", []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_DATA_HOME=" + home},
		caddy, "file-server", "--listen", listen, "--root", home)
	url := "http://" + listen
	eventually(t, 20*time.Second, "caddy answers", func() bool { return statusOf(url+"/file.txt") == 200 })
	a := e.startAgent(t, "--pid", fmt.Sprint(p.pid()))
	for range perPath {
		statusOf(url + "/file.txt")
		statusOf(url + "/none.txt")
	}
	eventually(t, 10*time.Second, "every request is a span", func() bool { return a.seen.Counts().Spans >= 2*perPath })
	a.noLosses(t)
	got := map[string]int{}
	for _, s := range a.finish(t) {
		got[s.Kind.String()+" "+s.Name+" "+s.Attrs.Text("url.path")+" "+s.Attrs.Text("http.response.status_code")+" "+s.Service()]++
	}
	for k, n := range map[string]int{"server GET /file.txt 200 caddy": perPath, "server GET /none.txt 404 caddy": perPath} {
		if got[k] != n {
			t.Errorf("%d × %q, want %d", got[k], k, n)
		}
		delete(got, k)
	}
	if len(got) > 0 {
		t.Errorf("also got %v", got)
	}
}

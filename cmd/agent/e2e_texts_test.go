//go:build e2e

package main

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
	"github.com/plainframework/agent/internal/probes/sqltext"
)

// testLiterals: a program that writes literals into its queries has more texts than
// there may be series, and yet the histograms are right for each summary: nothing
// overflows, and no text is counted under the summary of another.
func (e *e2e) testLiterals(t *testing.T) {
	a, target := e.startTexts(t, "")
	const texts, tables = 5000, 3
	want := map[string]uint64{}
	load(t, target.url, texts, func(i int) string {
		return textPath(fmt.Sprintf("SELECT a, 'x''y' FROM t%d WHERE id IN (%s) AND name = 'n%d' AND b > %d.5",
			i%tables, strings.Join([]string{"1", " 22", "'333'"}[:1+i%3], ","), i, i))
	})
	for i := range tables {
		want[fmt.Sprintf("SELECT t%d", i)] = uint64((texts + tables - 1 - i) / tables)
	}
	a.stop(t)
	got, overflow := a.bySummary()
	if overflow != 0 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v and %d in the overflow, want %v", got, overflow, want)
	}
}

// oddTexts have quotes that are not what they seem, and digits that are no numbers. With
// %s in two ways, they must not be taken for the same.
var oddTexts = []string{
	"SELECT a FROM orders_202%s WHERE x = 1",
	"SELECT a FROM db.202%sx WHERE x = 1",
	"SELECT a FROM 7%sup WHERE x = 1",
	"SELECT a FROM b, 7%sup WHERE x = 1",
	"SELECT a FROM b WHERE x IN (1, 2) UNION SELECT a FROM f%s",
	"SELECT a -- don't\nFROM c%s WHERE x = 'y'",
	"SELECT a -- -don't\nFROM c%s WHERE x = 'y'",
	"SELECT a /* it's */ FROM d%s WHERE x = 'y'",
	"SELECT 4/2 /* it's */ FROM d%s WHERE x = 'y'",
	`SELECT "it's" FROM e%s WHERE x = 'y'`,
	"SELECT `it's` FROM g%s WHERE x = 'y'",
	"SELECT [it's] FROM h%s WHERE x = 'y'",
	"SELECT q'[it's]' FROM i%s WHERE x = 'y'",
	"SELECT Nq'!it's!' FROM i%s WHERE x = 'y'",
	"SELECT $$it's$$ FROM j%s WHERE x = 'y'",
	"SELECT $t$it's$t$ FROM k%s WHERE x = 'y'",
	"SELECT 1$t$it's$t$ FROM l%s WHERE x = 'y'",
	"SELECT 1, 2$t$it's$t$ FROM l%s WHERE x = 'y'",
	"SELECT 'it''s' FROM m%s WHERE x = 'y'",
	"SELECT '-- ' FROM n%s WHERE x = 'y'",
	"SELECT 'a', 'b''', 'c' FROM o%s WHERE x = 'y'",
	`UPDATE "p%s" SET a = 'b', c = 2 WHERE d = $1`,
	"INSERT INTO r%s VALUES (1, 'it''s', 2.5), (3, '', .5)",
}

// testOddTexts: texts that are easily mistaken for each other are not, even where all
// that differ in literals only are one series.
func (e *e2e) testOddTexts(t *testing.T) {
	a, target := e.startTexts(t, "metrics:\n  max_series: 400\n")
	const own, each = 300, 10 // texts that have a series of their own: three quarters
	var all []string
	for i := range own {
		all = append(all, fmt.Sprintf("SELECT a FROM t WHERE x = %d", i))
	}
	for range each {
		for _, text := range oddTexts {
			all = append(all, fmt.Sprintf(text, "1"), fmt.Sprintf(text, "2"))
		}
	}
	load(t, target.url, own, func(i int) string { return textPath(all[i]) })
	load(t, target.url, len(all)-own, func(i int) string { return textPath(all[own+i]) })
	a.stop(t)

	want := map[string]uint64{}
	for _, text := range all {
		want[sqltext.Sanitize(text, false, "other_sql").Summary]++
	}
	got, overflow := a.bySummary()
	if overflow > 0 {
		t.Errorf("%d queries in the overflow", overflow)
	}
	for summary, count := range want {
		if got[summary] != count {
			t.Errorf("%d of %q, want %d", got[summary], summary, count)
		}
	}
}

// testConstants: what a program has as a constant is read once, and then known: routes,
// the methods that they are for, queries, header names. Requests that differ in one of
// them only are told apart all the same, the first as the later ones, sampled or not.
func (e *e2e) testConstants(t *testing.T) {
	for _, rate := range []string{"0", "1"} {
		shop := e.startShop(t, e.shop)
		seen := observer.New(observer.Options{Keep: 1 << 20})
		a := e.launchAgentTo(t, seen, []string{"PLAIN_CLOUD_TRACE_SAMPLE_RATE=" + rate}, "--pid", strconv.Itoa(shop.pid()))
		a.waitReady(t)
		// So many that routes are taken from requests alone, without a probe of their own.
		const rounds, before = 5, 12_000
		links := len(held(t, a.pid()).links)
		load(t, shop.url, before, func(int) string { return "/plain" })
		eventually(t, 10*time.Second, "the route's probe is detached", func() bool { return len(held(t, a.pid()).links) < links })
		want := map[string]uint64{"GET /plain": before}
		for range rounds {
			for _, r := range []struct{ method, path, route string }{
				{"GET", "/plain", "/plain"},
				{"HEAD", "/plain", "/plain"},
				{"GET", "/items/1", "/items/{id}"},
				{"HEAD", "/items/2", "/items/{id}"},
				{"GET", "/literal/1", "/literal/{id}"},
				{"POST", "/orders", "/orders"},
				{"GET", "/nowhere", ""},
				{"PUT", "/plain", ""},
			} {
				send(r.method, shop.url+r.path+"?headers", map[string]string{"Accept-Encoding": "none", "X-Forwarded-For": "203.0.113.9"})
				want[r.method+" "+r.route]++
			}
		}
		settle(a.seen)
		spans := a.finish(t)
		got := map[string]uint64{}
		for _, p := range a.seen.Points() {
			if p.Name == "http.server.request.duration" {
				got[p.Attrs.Text("http.request.method")+" "+p.Attrs.Text("http.route")] += p.Count
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("at rate %s measured %v, want %v", rate, got, want)
		}
		if rate == "0" {
			continue
		}
		got = map[string]uint64{}
		for _, s := range spans {
			if s.Kind != trace.SpanKindServer {
				if s.Attrs.Text("db.query.text") == "" {
					t.Errorf("no text: %s", summary(s))
				}
				continue
			}
			got[s.Attrs.Text("http.request.method")+" "+s.Attrs.Text("http.route")]++
			if s.Attrs.Text("url.query") != "headers" {
				continue
			}
			if s.Attrs.Text("user_agent.original") != "e2e/1" || s.Attrs.Text("client.address") != "203.0.113.9" {
				t.Errorf("not all headers: %s", summary(s))
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("spans of %v, want %v", got, want)
		}
	}
}

func textPath(text string) string { return "/q?t=" + url.QueryEscape(text) }

// bySummary is how many queries were measured under each summary, and without one.
func (w *watcher) bySummary() (counts map[string]uint64, overflow uint64) {
	counts = map[string]uint64{}
	for _, p := range w.seen.Points() {
		if p.Name != "db.client.operation.duration" {
			continue
		}
		if p.Attrs["otel.metric.overflow"] == true {
			overflow += p.Count
		} else {
			counts[p.Attrs.Text("db.query.summary")] += p.Count
		}
	}
	return counts, overflow
}

// startTexts runs a program that executes whatever text a request has.
func (e *e2e) startTexts(t *testing.T, settings string) (*watcher, server) {
	t.Helper()
	path := filepath.Join(e.dir, "texts-server")
	if _, err := os.Stat(path); err != nil {
		dir := filepath.Join(e.dir, "texts")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"go.mod": "module texts\n\ngo 1.22\n", "main.go": textsProgram} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		e.build(t, "texts-server", dir, nil)
	}
	file := filepath.Join(e.dir, "texts.yaml")
	if err := os.WriteFile(file, []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	target := e.startShop(t, path)
	return e.startAgent(t, "--exe", path, "--config", file, "--sample-rate", "0"), target
}

const textsProgram = `package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"net"
	"net/http"
)

func main() {
	db := sql.OpenDB(connector{})
	http.HandleFunc("/q", func(w http.ResponseWriter, r *http.Request) {
		if _, err := db.ExecContext(r.Context(), r.URL.Query().Get("t")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Printf("texts listens on http://%s\n", ln.Addr())
	http.Serve(ln, nil)
}

type connector struct{}

func (connector) Connect(context.Context) (driver.Conn, error) { return conn{}, nil }
func (connector) Driver() driver.Driver                        { return nil }

type conn struct{}

func (conn) Prepare(string) (driver.Stmt, error) { return nil, driver.ErrSkip }
func (conn) Close() error                        { return nil }
func (conn) Begin() (driver.Tx, error)           { return nil, driver.ErrSkip }

func (conn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.RowsAffected(1), nil
}
`

//go:build e2e

package main

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// perPath is how many requests each path gets.
const perPath = 20

// visit is a request to the shop and the trace that it must give.
type visit struct {
	method, path string
	route        string // "" where there must be none
	status       int    // 0 where the client gets no answer
	hidden       bool   // the status is not known to the server: no attribute
	min, max     time.Duration
	sql          []query
}

// query is a database call that must be a child of the request.
type query struct {
	name, text string
	fails      bool
	system     string // "" for sqlite
}

const itemByID = "SELECT name, price FROM items WHERE id = ?"

var (
	oneItem = []query{{"SELECT items", itemByID, false, ""}}
	touched = []query{{"SELECT items", "SELECT count(*) FROM items", false, ""}}
)

var visits = []visit{
	{path: "/plain", route: "/plain", status: 200},
	{path: "/items", route: "/items", status: 200, sql: []query{{"SELECT items", "SELECT id, name FROM items ORDER BY name LIMIT ?", false, ""}}},
	{path: "/items/7", route: "/items/{id}", status: 200, sql: oneItem},
	{path: "/items/999", route: "/items/{id}", status: 404, sql: oneItem}, // no row is no error of the query
	{path: "/mw/7", route: "/mw/{id}", status: 200, sql: oneItem},
	{path: "/stmt/7", route: "/stmt/{id}", status: 200, sql: oneItem},
	{path: "/literal/7", route: "/literal/{id}", status: 200, sql: []query{{"SELECT items", itemByID + " AND name <> ?", false, ""}}},
	{path: "/conn/7", route: "/conn/{id}", status: 200, sql: append([]query{{"UPDATE items", "UPDATE items SET stock = stock WHERE id = ?", false, ""}}, oneItem...)},
	{path: "/report", route: "/report", status: 200, sql: []query{
		{"SELECT items", "SELECT min(stock) FROM items", false, ""}, {"SELECT items", "SELECT count(*) FROM items", false, ""},
		{"SELECT orders", "SELECT count(*) FROM orders", false, ""}, {"SELECT items", "SELECT max(price) FROM items", false, ""},
		{"SELECT order_lines", "SELECT count(*) FROM order_lines", false, ""}}},
	{method: "POST", path: "/orders", route: "/orders", status: 201, sql: []query{
		{"SELECT items", "SELECT price FROM items WHERE id = ?", false, ""}, {"DELETE order_lines", "DELETE FROM order_lines WHERE order_id = ?", false, ""},
		{"INSERT orders", "INSERT OR REPLACE INTO orders (id, customer, total) VALUES (?, ?, ?)", false, ""},
		{"INSERT order_lines", "INSERT INTO order_lines (order_id, item_id, amount) VALUES (?, ?, ?)", false, ""},
		{"UPDATE items", "UPDATE items SET stock = stock - ? WHERE id = ?", false, ""}}},
	{path: "/sqlerror", route: "/sqlerror", status: 500, sql: []query{{"SELECT no_such_table", "SELECT name FROM no_such_table WHERE id = ?", true, ""}}},
	{path: "/error", route: "/error", status: 500},
	{path: "/panic", route: "/panic", hidden: true, sql: touched},
	{path: "/abort", route: "/abort", hidden: true, sql: touched},
	{path: "/goexit", route: "/goexit", hidden: true, sql: touched},
	{path: "/hijack", route: "/hijack", status: 200, hidden: true, sql: touched},
	{path: "/stream", route: "/stream", status: 200, min: 30 * time.Millisecond, sql: touched},
	{path: "/nowrite", route: "/nowrite", status: 200},
	{path: "/slow?ms=30&token=geheim", route: "/slow", status: 200, min: 30 * time.Millisecond, max: time.Second},
	{path: "/timeout/5", route: "/timeout/{ms}", status: 200, min: 5 * time.Millisecond, max: 200 * time.Millisecond, sql: touched},
	{path: "/timeout/300", route: "/timeout/{ms}", status: 503, min: 200 * time.Millisecond, max: 300 * time.Millisecond, sql: touched},
	{path: "/nothing", status: 404},
	{method: "DELETE", path: "/plain", status: 405},
	{method: "BREW", path: "/nothing", status: 404},
	{path: "/sqlfail/closedstmt", route: "/sqlfail/{kind}", status: 503, sql: []query{{"SELECT items", "SELECT name FROM items WHERE id = ?", true, ""}}},
	{path: "/sqlfail/txdone", route: "/sqlfail/{kind}", status: 503, sql: []query{{"DELETE orders", "DELETE FROM orders", true, ""}}},
	// A closed sql.Conn has forgotten its database, and with it the driver.
	{path: "/sqlfail/conndone", route: "/sqlfail/{kind}", status: 503, sql: []query{{"SELECT", "SELECT ?", true, "other_sql"}}},
	{path: "/sqlfail/pooltimeout", route: "/sqlfail/{kind}", status: 503, min: 20 * time.Millisecond, sql: []query{{"SELECT items", "SELECT name FROM items WHERE id = ?", true, ""}}},
	{path: "/sqlfail/dbdown", route: "/sqlfail/{kind}", status: 503, sql: []query{{"SELECT", "SELECT ?", true, ""}}},
	{path: "/sqlfail/dbclosed", route: "/sqlfail/{kind}", status: 503, sql: []query{{"SELECT", "SELECT ?", true, ""}}},
	{path: "/sqlfail/canceled", route: "/sqlfail/{kind}", status: 503, sql: []query{{"SELECT", "SELECT ?", true, ""}}},
	{path: "/sqlfail/constraint", route: "/sqlfail/{kind}", status: 503, sql: []query{{"INSERT items", "INSERT INTO items (id, name, price, stock) VALUES (?, ?, ?, ?)", true, ""}}},
}

func (v visit) verb() string {
	if v.method == "" {
		return "GET"
	}
	return v.method
}

func (v visit) String() string { return v.verb() + " " + v.path }

// spanName is "{method} {route}"; a method that HTTP does not know is not one.
func (v visit) spanName() string {
	method := v.verb()
	if method == "BREW" {
		method = "HTTP"
	}
	return strings.TrimSpace(method + " " + v.route)
}

// go20 sends every request of the table perPath times, a few at a time, in an
// order that mixes the paths, and checks what the clients got.
func go20(t *testing.T, base string) {
	t.Helper()
	jobs := make(chan visit)
	var wg sync.WaitGroup
	workers := 4
	if *patience > 1 {
		workers = 1 // a slow machine is kept busy by one
	}
	for range workers {
		wg.Go(func() {
			for v := range jobs {
				c := client
				if v.status == 0 {
					c = loner
				}
				if got := sendBy(c, v.verb(), base+v.path, nil); got != v.status {
					t.Errorf("%v answers %d, want %d", v, got, v.status)
				}
			}
		})
	}
	for range perPath {
		for _, v := range visits {
			jobs <- v
		}
	}
	close(jobs)
	wg.Wait()
}

// finding is what is wrong with the spans. Missing spans are another thing than
// wrong ones: a hook that was inlined away and named excuses the first only.
type finding struct {
	missing bool
	text    string
}

type findings []finding

func (f *findings) missing(format string, args ...any) {
	*f = append(*f, finding{true, fmt.Sprintf(format, args...)})
}

func (f *findings) wrong(format string, args ...any) {
	*f = append(*f, finding{false, fmt.Sprintf(format, args...)})
}

// report fails the test with the findings, equal ones once, up to 30.
func (f findings) report(t *testing.T) {
	t.Helper()
	times := map[string]int{}
	for _, one := range f {
		times[one.text]++
	}
	shown := 0
	for _, one := range f {
		n := times[one.text]
		if n == 0 {
			continue
		}
		if times[one.text] = 0; shown == 30 {
			t.Errorf("… and more, %d findings in all", len(f))
			return
		}
		shown++
		t.Errorf("%d × %s", n, one.text)
	}
}

// checkVisits compares the spans with the table: each path has its number of
// server spans, each of these its children and no others, and nothing is left.
func checkVisits(spans []observer.Span, port string, each int) (f findings) {
	children := map[trace.SpanID][]observer.Span{}
	servers := map[string][]observer.Span{} // by method and path
	inTrace := map[trace.TraceID]int{}
	used := 0
	for _, s := range spans {
		inTrace[s.TraceID]++
		if s.Kind != trace.SpanKindServer {
			children[s.ParentID] = append(children[s.ParentID], s)
			continue
		}
		method := s.Attrs.Text("http.request.method_original")
		if method == "" {
			method = s.Attrs.Text("http.request.method")
		}
		k := method + " " + s.Attrs.Text("url.path")
		servers[k] = append(servers[k], s)
	}
	for _, v := range visits {
		path, _, _ := strings.Cut(v.path, "?")
		got := servers[v.verb()+" "+path]
		if len(got) < each {
			f.missing("%v: %d server spans, want %d", v, len(got), each)
		} else if len(got) > each {
			f.wrong("%v: %d server spans, want %d", v, len(got), each)
		}
		for _, s := range got {
			used += 1 + len(children[s.SpanID])
			v.checkServer(&f, s, port)
			v.checkChildren(&f, s, children[s.SpanID])
			if n := 1 + len(children[s.SpanID]); inTrace[s.TraceID] != n {
				f.wrong("%v: its trace has %d spans, %d belong to it", v, inTrace[s.TraceID], n)
			}
		}
	}
	roots := 0
	for _, s := range spans {
		if s.Kind != trace.SpanKindServer && !s.ParentID.IsValid() {
			roots++
		}
	}
	if roots > 0 {
		f.missing("the requests of %d database calls", roots)
	}
	if lost := len(spans) - used - roots; lost != 0 {
		f.wrong("%d of %d spans belong to no request", lost, len(spans))
	}
	return f
}

func (v visit) checkServer(f *findings, s observer.Span, port string) {
	_, query, _ := strings.Cut(v.path, "?")
	path, _, _ := strings.Cut(v.path, "?")
	want := map[string]string{
		"http.route": v.route, "url.path": path, "url.scheme": "http", "http.request.method": v.verb(),
		"network.protocol.version": "1.1", "server.address": "127.0.0.1", "server.port": port,
		"client.address": "127.0.0.1", "network.peer.address": "127.0.0.1", "user_agent.original": "e2e/1",
		"http.response.status_code": strconv.Itoa(v.status), "error.type": "", "http.request.method_original": "",
	}
	if v.hidden {
		want["http.response.status_code"] = ""
	}
	if v.method == "BREW" {
		want["http.request.method"], want["http.request.method_original"] = "_OTHER", "BREW"
	}
	wantStatus := codes.Unset
	if v.status >= 500 {
		wantStatus, want["error.type"] = codes.Error, strconv.Itoa(v.status)
	}
	if v.status == 0 { // it died: how that is told is the library's affair
		wantStatus = s.Status
		delete(want, "error.type")
	}
	for k, text := range want {
		if got := s.Attrs.Text(k); got != text {
			f.wrong("%v: %s is %q, want %q", v, k, got, text)
		}
	}
	if s.Name != v.spanName() || s.Status != wantStatus || s.ParentID.IsValid() || s.Service() != "shop" {
		f.wrong("%v: service %q, name %q, status %v, parent %v; want shop, %q, %v, none", v, s.Service(), s.Name, s.Status, s.ParentID, v.spanName(), wantStatus)
	}
	if code, ok := s.Attrs["http.response.status_code"]; ok {
		if _, ok := code.(int64); !ok {
			f.wrong("%v: the status code is a %T", v, code)
		}
	}
	if d := s.Duration(); d <= 0 || d < v.min || (v.max > 0 && d > v.max*time.Duration(*patience)) {
		f.wrong("%v: took %v, want %v to %v", v, d, v.min, v.max)
	}
	got := s.Attrs.Text("url.query")
	if values, err := url.ParseQuery(got); err != nil || (query != "") != (got != "") || strings.Contains(got, "geheim") || (query != "" && values.Get("ms") != "30") {
		f.wrong("%v: url.query is %q", v, got)
	}
}

func (v visit) checkChildren(f *findings, parent observer.Span, got []observer.Span) {
	left := slices.Clone(v.sql)
	for _, s := range got {
		i := slices.IndexFunc(left, func(q query) bool { return q.name == s.Name && q.text == s.Attrs.Text("db.query.text") })
		if i < 0 {
			f.wrong("%v: a child that should not be: %s", v, summary(s))
			continue
		}
		q := left[i]
		left = slices.Delete(left, i, i+1)
		wantStatus := codes.Unset
		if q.fails {
			wantStatus = codes.Error
		}
		if s.Status != wantStatus || q.fails != (s.Attrs.Text("error.type") != "") {
			f.wrong("%v: %q has status %v and error.type %q", v, q.text, s.Status, s.Attrs.Text("error.type"))
		}
		if s.TraceID != parent.TraceID || s.Kind != trace.SpanKindClient || s.Attrs.Text("db.system.name") != cmp.Or(q.system, "sqlite") || s.Attrs.Text("db.query.summary") != q.name {
			f.wrong("%v: %s", v, summary(s))
		}
		if s.Duration() <= 0 || s.Start.Before(parent.Start) || s.End.After(parent.End) {
			f.wrong("%v: %q ran from %v to %v after the request's start, and the request took %v", v, q.text,
				s.Start.Sub(parent.Start), s.End.Sub(parent.Start), parent.Duration())
		}
	}
	for _, q := range left {
		f.missing("%v: no child %q", v, q.text)
	}
}

func portOf(t *testing.T, base string) string {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return u.Port()
}

// testShop is the whole table, and that nothing else comes: neither the agent's
// own requests nor what the shop did before.
func (e *e2e) testShop(t *testing.T) {
	shop := e.startShop(t, e.shop)
	statusOf(shop.url + "/plain") // before the agent: never seen
	a := e.startAgent(t, "--exe", e.shop)
	go20(t, shop.url)
	if !shop.running() {
		t.Fatal("the shop has died")
	}
	eventually(t, 10*time.Second, "every request is a span", func() bool { return serverSpans(a.seen) >= perPath*len(visits) })
	a.noLosses(t)
	for range 5 {
		statusOf(a.status + "/status") // the agent's own server
	}
	spans := a.finish(t)
	checkVisits(spans, portOf(t, shop.url), perPath).report(t)
	for _, s := range spans {
		for _, k := range []string{"service.instance.id", "process.pid", "process.executable.name", "telemetry.distro.name"} {
			if s.Resource.Text(k) == "" {
				t.Fatalf("the resource has no %s: %v", k, s.Resource)
			}
		}
	}
	for _, r := range a.seen.Requests() {
		if r.Auth != "Bearer "+testToken || r.Encoding != "gzip" || r.Status != 200 {
			t.Errorf("request %+v", r)
		}
	}
	if n := patched(t, shop.pid()); n != 0 {
		t.Errorf("%d bytes of the shop's code are not as in its file, after the agent has gone", n)
	}
}

func serverSpans(o *observer.Observer) (n int) {
	for _, s := range o.Spans() {
		if s.Kind == trace.SpanKindServer {
			n++
		}
	}
	return n
}

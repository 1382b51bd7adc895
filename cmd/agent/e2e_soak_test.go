//go:build e2e && soak

package main

import (
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

var (
	soakFor   = flag.Duration("soak.for", 30*time.Minute, "how long TestSoak loads the service")
	soakAgent = flag.String("soak.agent", "", "the agent; scripts/soak builds it")
	soakShop  = flag.String("soak.shop", "", "the sample shop")
	soakCPU   = flag.String("soak.cpu", "0", "processor of the sample shop")
)

// counter is an endpoint that counts spans and keeps nothing.
type counter struct{ spans, server atomic.Int64 }

// ServeHTTP implements [http.Handler].
func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil && r.URL.Path == "/v1/traces" {
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(body)); err == nil {
			if body, err = io.ReadAll(z); err == nil {
				c.count(body, 0)
			}
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// count walks from a request down to the kinds of its spans.
func (c *counter) count(msg []byte, depth int) {
	path := []protowire.Number{1, 2, 2, 6} // resource spans, scope spans, spans, kind
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		size := protowire.ConsumeFieldValue(num, typ, msg[max(n, 0):])
		if n < 0 || size < 0 {
			return
		}
		switch value := msg[n : n+size]; {
		case num != path[depth]:
		case depth == len(path)-1:
			c.spans.Add(1)
			if kind, _ := protowire.ConsumeVarint(value); kind == 2 {
				c.server.Add(1)
			}
		case typ == protowire.BytesType:
			inner, _ := protowire.ConsumeBytes(value)
			c.count(inner, depth+1)
		}
		msg = msg[n+size:]
	}
}

// soakPaths are those of scripts/benchmark, with the queries of each.
var soakPaths = []struct {
	path    string
	queries int64
}{{"/plain", 0}, {"/items/7", 1}, {"/report", 5}}

// TestSoak loads a service as fast as it answers, for a long time: the agent's memory
// stays what it was, it leaks no descriptor and loses nothing.
func TestSoak(t *testing.T) {
	needKernel(t)
	if *soakAgent == "" || *soakShop == "" {
		t.Fatal("nothing to soak: run scripts/soak")
	}
	e := &e2e{dir: t.TempDir(), agent: *soakAgent, shop: *soakShop}
	sink := &counter{}
	endpoint := httptest.NewServer(sink)
	defer endpoint.Close()
	shop := awaitShop(t, startCmd(t, "shop", exec.Command("taskset", "-c", *soakCPU, e.shop, "-listen", "127.0.0.1:0")))
	a := e.launchAgent(t, []string{
		"PLAIN_CLOUD_EXPORT_URL=" + endpoint.URL, "PLAIN_CLOUD_SPOOL_DIR=" + t.TempDir(), "PLAIN_AGENT_STATE_DIR=" + stateDir(t),
		"OTEL_METRIC_EXPORT_INTERVAL=10000",
	}, "--exe", e.shop)
	a.waitReady(t)
	var rows []soakRow
	var requests, queries int64
	began := time.Now()
	var round time.Duration
	for n := 0; time.Since(began) < *soakFor; n++ {
		p := soakPaths[n%len(soakPaths)]
		l := runWrk(t, shop.url+p.path, 5*time.Second)
		requests, queries = requests+int64(l.Requests), queries+int64(l.Requests)*p.queries
		if round += 5 * time.Second; round >= *soakFor/20 && n%len(soakPaths) == len(soakPaths)-1 {
			rows, round = append(rows, a.soakRow(t, began, shop, requests, sink)), 0
		}
	}
	s := a.settled(t, time.Minute)
	rows = append(rows, a.soakRow(t, began, shop, requests, sink))
	printSoak(rows)
	a.stop(t)

	// A request that wrk did not wait for at its end is none of its requests.
	runs := int64(time.Since(began)/(5*time.Second)) + 1
	if got := sink.server.Load(); got < requests || got > requests+runs*wrkConnections {
		t.Errorf("%d server spans of %d requests", got, requests)
	}
	if got := sink.spans.Load(); got < requests+queries || got > requests+queries+runs*wrkConnections*6 || got != s.Export.Signals["traces"].Exported {
		t.Errorf("%d spans of %d requests with %d queries: %+v", got, requests, queries, s.Export.Signals["traces"])
	}
	for signal, c := range s.Export.Signals {
		if c.LostTotal() != 0 || c.Received != c.Exported {
			t.Errorf("%s: %+v", signal, c)
		}
	}
	for reason, n := range s.Probes.Losses {
		if n != 0 {
			t.Errorf("lost %d: %s", n, reason)
		}
	}
	checkFlat(t, rows)
}

type soakRow struct {
	at              time.Duration
	requests, spans int64
	own, all        int64 // bytes of the agent
	shop            int64 // bytes of the shop
	files, shopOpen int
	waits           int64 // items, in memory and on disk
	lost            string
}

func (w *watcher) soakRow(t *testing.T, began time.Time, shop server, requests int64, sink *counter) soakRow {
	t.Helper()
	s := w.fullStatus(t)
	r := soakRow{at: time.Since(began), requests: requests, spans: sink.spans.Load(), files: w.files(t), shopOpen: shop.files(t)}
	var err error
	if r.all, r.own, err = w.memory(); err == nil {
		r.shop, _, err = shop.memory()
	}
	if err != nil {
		t.Fatal(err)
	}
	lost := map[string]uint64{}
	for reason, n := range s.Probes.Losses {
		lost[reason] += n
	}
	for _, c := range s.Export.Signals {
		r.waits += c.Queued + c.Spooled
		for reason, n := range c.Lost {
			lost[reason] += uint64(n)
		}
	}
	r.lost = losses(lost)
	t.Logf("%v: %.1f MiB, lost %s", r.at.Round(time.Second), mebi(r.own), r.lost)
	return r
}

// checkFlat compares the last third of a run with the second: in the first the agent gets
// to know what there is.
func checkFlat(t *testing.T, rows []soakRow) {
	t.Helper()
	third := len(rows) / 3
	if third == 0 {
		t.Fatalf("too short: %d rows", len(rows))
	}
	median := func(rows []soakRow) int64 {
		own := make([]int64, len(rows))
		for i, r := range rows {
			own[i] = r.own
		}
		slices.Sort(own)
		return own[len(own)/2]
	}
	before, after := median(rows[third:2*third]), median(rows[2*third:])
	if after > before+before/10+4<<20 {
		t.Errorf("the agent's memory grows: from %.1f to %.1f MiB", mebi(before), mebi(after))
	}
	first, last := rows[third], rows[len(rows)-1]
	if last.files > first.files+2 {
		t.Errorf("the agent had %d descriptors, it has %d", first.files, last.files)
	}
}

func printSoak(rows []soakRow) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "after\trequests\tspans arrived\tagent MiB\tits own\tdescriptors\tshop MiB\tdescriptors\twaiting\tlost\t")
	for _, r := range rows {
		fmt.Fprintf(w, "%v\t%d\t%d\t%.1f\t%.1f\t%d\t%.1f\t%d\t%d\t%s\t\n", r.at.Round(time.Second), r.requests, r.spans, mebi(r.all), mebi(r.own), r.files, mebi(r.shop), r.shopOpen, r.waits, r.lost)
	}
	w.Flush()
	fmt.Fprint(os.Stdout, b.String())
}

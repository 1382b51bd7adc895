//go:build e2e

package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"

	"github.com/plainframework/agent/internal/observer"
)

const maxDuration = 3 * time.Second

// testStreams: what ends in time is a span as long as it was; what does not is one of
// traces.max_duration, handed over while it is still open, and no second one when it ends.
func (e *e2e) testStreams(t *testing.T) {
	path := e.build(t, "streams", "testdata/streams", nil)
	client := e.build(t, "client", "testdata/streams", nil) // a file of its own, to be left alone
	s := awaitShop(t, startProc(t, "streams", nil, path))
	a := e.launchAgent(t, []string{"PLAIN_CLOUD_TRACE_MAX_DURATION=" + maxDuration.String()}, "--exe", path)
	a.waitReady(t)

	const short, long = time.Second, 8 * time.Second
	var ends []<-chan struct{}
	open := func(f func()) {
		end := make(chan struct{})
		ends = append(ends, end)
		go func() { defer close(end); f() }()
	}
	for _, d := range []time.Duration{short, long} {
		open(func() { follow(s.url + "/events?for=" + d.String()) })
		open(func() { follow(s.url + "/poll?for=" + d.String()) })
		for _, library := range []string{"gorilla", "coder"} {
			talk := startProc(t, library, nil, client, "-talk", s.url+"/"+library+"?for="+d.String(), "-hold", d.String())
			open(func() {
				if <-talk.done; talk.err != nil {
					t.Errorf("talk with %s: %v", library, talk.err)
				}
			})
		}
	}
	open(func() { follow(s.url + "/hang") })
	eventually(t, 15*time.Second, "9 spans", func() bool { return serverSpans(a.seen) == 9 })
	for _, end := range ends[:len(ends)-1] {
		<-end
	}
	time.Sleep(2 * time.Second) // nothing may follow
	a.noLosses(t)
	seen := map[string]int{}
	for _, span := range a.finish(t) {
		seen[span.Attrs.Text("url.path")+" "+span.Attrs.Text("url.query")]++
		checkStream(t, span, short)
	}
	for what, n := range seen {
		if n != 1 {
			t.Errorf("%d spans of %s", n, what)
		}
	}
	if len(seen) != 9 {
		t.Errorf("spans of %v, want 9", seen)
	}
}

func checkStream(t *testing.T, span observer.Span, short time.Duration) {
	t.Helper()
	path := span.Attrs.Text("url.path")
	took := span.End.Sub(span.Start)
	cut := span.Attrs.Text("span.end_reason") == "max_duration"
	if isShort := strings.HasSuffix(span.Attrs.Text("url.query"), "for=1s"); isShort == cut ||
		isShort && (took < short || took > short+time.Second) ||
		!isShort && (took < maxDuration || took > maxDuration+4*time.Second) {
		t.Errorf("%s took %v, cut off: %v", summary(span), took, cut)
	}
	// A hijacked connection's status is known only if the handler has set it.
	status := map[string]string{"/events": "200", "/poll": "204", "/coder": "101"}[path]
	if path == "/poll" && cut {
		status = ""
	}
	if got := span.Attrs.Text("http.response.status_code"); got != status {
		t.Errorf("%s: status %q, want %q", summary(span), got, status)
	}
	if span.Name != "GET "+path || span.Attrs.Text("server.address") != "127.0.0.1" || span.Status == codes.Error {
		t.Errorf("%s", summary(span))
	}
}

func follow(url string) {
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(url)
	if err != nil {
		return // the service is killed
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
}

// testStreamFlood opens far more event streams, one wave after the other, than the agent has
// room for, all longer than they may be: each is a span, and the room is free again.
func (e *e2e) testStreamFlood(t *testing.T) {
	const streams, wave = 12000, 3000
	path := e.build(t, "flood", "testdata/streams", nil)
	cmd := exec.Command(path, "-flood", fmt.Sprint(streams), "-wave", fmt.Sprint(wave), "-hold", "4s")
	start, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s := awaitShop(t, startCmd(t, "flood", cmd))
	a := e.launchAgent(t, []string{"PLAIN_CLOUD_TRACE_MAX_DURATION=1s"}, "--exe", path)
	a.waitReady(t)
	fmt.Fprintln(start)
	eventually(t, time.Minute, "the first streams have ended", func() bool { return strings.Contains(s.output(), "opened") })
	before := residentMiB(t, a.pid())
	eventually(t, 3*time.Minute, "all streams have ended", func() bool { return strings.Contains(s.output(), "flooded") })
	settle(a.seen)
	// A way of the table may be full although others are not: that is counted.
	status, _ := a.readStatus(t)
	full := int(status.Probes.Losses["goroutines_full"])
	delete(status.Probes.Losses, "goroutines_full")
	parents := status.Probes.Losses["contexts_full"] // loses no span
	delete(status.Probes.Losses, "contexts_full")
	if len(status.Probes.Losses) > 0 || full > streams/1000 || parents > streams/1000 {
		t.Errorf("lost %v, %d and %d for want of room", status.Probes.Losses, full, parents)
	}
	if after := residentMiB(t, a.pid()); after > before+32 {
		t.Errorf("the agent has grown from %d to %d MiB", before, after)
	} else {
		t.Logf("%d MiB after the first streams, %d after the last", before, after)
	}
	cut := 0
	for _, span := range a.finish(t) {
		if span.Attrs.Text("span.end_reason") == "max_duration" {
			cut++
		}
	}
	if n := serverSpans(a.seen); n != streams-full || cut != n {
		t.Errorf("%d spans, %d of them cut off, want %d", n, cut, streams-full)
	}
}

// residentMiB is how much memory a process has.
func residentMiB(t *testing.T, pid int) (mib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize() >> 20
}

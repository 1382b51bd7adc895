//go:build e2e

package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
)

// publicAddress is one that no service of a private network has (RFC 5737).
const publicAddress = "198.51.100.7"

// kindsOfCalls of testdata/propagation: the kind of a call is its number modulo this.
const (
	kindOwn      = 7  // has set a traceparent itself
	kindLongPath = 10 // longer than what is looked through
	kindsOfCalls = 13
)

// propagating is a sender and a receiver, and an agent on the sender.
type propagating struct {
	*watcher
	receiver, sender *proc
	control          string // URL of the sender
	port             string // of the receiver
	path             string
}

func startPropagating(t *testing.T, e *e2e) *propagating {
	t.Helper()
	p := &propagating{path: e.build(t, "propagation", "testdata/propagation", nil)}
	p.receiver = startCmd(t, "receiver", exec.Command(p.path, "receive", "-listen", "0.0.0.0:0"))
	p.port = portOf(t, listening(t, p.receiver))
	// The garbage collector checks its marks: memory that is not what it was shows.
	p.sender, p.control = p.send(t, "127.0.0.1", "")
	// Connections from before the agent.
	p.run(t, p.control, "from=900000&to=900004&kind=0")
	p.watcher = e.launchAgent(t, []string{"PLAIN_CLOUD_PROPAGATE=headers"}, "--exe", p.path)
	p.waitReady(t)
	return p
}

// send starts a sender that calls the receiver by the name of a host, which it connects to
// at an address if one is given.
func (p *propagating) send(t *testing.T, host, address string) (*proc, string) {
	t.Helper()
	if address != "" {
		address += ":" + p.port
	}
	sender := startProc(t, "sender", []string{"GODEBUG=gccheckmark=1"}, p.path, "send", "-to", "http://"+host+":"+p.port, "-dial", address)
	return sender, listening(t, sender)
}

func listening(t *testing.T, p *proc) (url string) {
	t.Helper()
	eventually(t, 10*time.Second, p.name+" listens", func() bool {
		_, rest, ok := strings.Cut(p.output(), " listens on ")
		url, _, _ = strings.Cut(rest, "\n")
		return ok && strings.Contains(rest, "\n")
	})
	return url
}

// run has a sender make calls, of which none may go wrong.
func (p *propagating) run(t *testing.T, control, query string) {
	t.Helper()
	if text := getText(t, control+"/run?"+query); text != "" {
		t.Errorf("calls %s:\n%s", query, text)
	}
}

// unchanged compares what was sent with what has arrived.
func (p *propagating) unchanged(t *testing.T) {
	t.Helper()
	text := getText(t, p.control+"/sums")
	if !regexp.MustCompile(`^[0-9]+ connections\n$`).MatchString(text) {
		t.Errorf("what has arrived is not what was sent:\n%s", text)
	}
}

func getText(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return textOf(t, req)
}

// textOf is the body of the answer to a request.
func textOf(t *testing.T, req *http.Request) string {
	t.Helper()
	patient := *client
	patient.Timeout = time.Duration(*patience) * 2 * time.Minute
	res, err := patient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// received is what the receiver has printed: the traceparent of each call.
func (p *propagating) received(t *testing.T) map[int]string {
	t.Helper()
	return received(t, p.receiver.output(), "request")
}

// received takes lines of a word, the number of a call, and what that has brought along.
func received(t *testing.T, output, word string) map[int]string {
	t.Helper()
	got := map[int]string{}
	for line := range strings.Lines(output) {
		var i int
		if n, _ := fmt.Sscanf(line, word+" %d", &i); n != 1 {
			continue
		}
		if _, twice := got[i]; twice {
			t.Errorf("call %d has arrived twice", i)
		}
		got[i] = strings.TrimSpace(strings.TrimPrefix(line, fmt.Sprintf("%s %d", word, i)))
	}
	return got
}

// traceparentOf is what a span is called in a header.
func traceparentOf(s observer.Span) string {
	return fmt.Sprintf("00-%s-%s-%02x", s.TraceID, s.SpanID, s.Flags&0x03)
}

// callsOf are the client spans by the number of their call.
func callsOf(spans []observer.Span) map[int]observer.Span {
	calls := map[int]observer.Span{}
	number := regexp.MustCompile(`/call\?i=([0-9]+)`)
	for _, s := range spans {
		if m := number.FindStringSubmatch(s.Attrs.Text("url.full")); m != nil && s.Kind == trace.SpanKindClient {
			var i int
			_, _ = fmt.Sscan(m[1], &i)
			calls[i] = s
		}
	}
	return calls
}

// testPropagation: 10,000 calls of all kinds, on kept and on new connections. Where a
// header is added it is that of the call's span, and all else arrives as it was sent.
func (e *e2e) testPropagation(t *testing.T) {
	// Replaced, not added: it may be there from a run that was killed.
	if out, err := exec.Command("ip", "addr", "replace", publicAddress+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("add an address: %v\n%s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "addr", "del", publicAddress+"/32", "dev", "lo").Run() })
	p := startPropagating(t, e)
	_, stranger := p.send(t, publicAddress, "")
	_, named := p.send(t, "example.com", publicAddress)
	_, service := p.send(t, "receiver.Shop.svc", publicAddress)
	_, dotless := p.send(t, "receiver", publicAddress)

	const calls = 10_000
	// The first call on a connection from before mostly has none.
	p.run(t, p.control, "from=800000&to=800001&kind=0")
	time.Sleep(time.Duration(*patience) * 200 * time.Millisecond)
	p.run(t, p.control, "from=800001&to=800002&kind=0")
	p.run(t, p.control, fmt.Sprintf("from=0&to=%d&workers=16", calls))
	p.run(t, stranger, "from=700000&to=700050&workers=2")
	p.run(t, named, "from=600000&to=600010&kind=0")
	for i, control := range []string{service, dotless} {
		// A name is known only when the connection is there: from its second call on.
		p.run(t, control, fmt.Sprintf("from=%d&to=%d&kind=0", 500_000+100*i, 500_001+100*i))
		time.Sleep(time.Duration(*patience) * 200 * time.Millisecond)
		p.run(t, control, fmt.Sprintf("from=%d&to=%d&kind=0", 500_001+100*i, 500_010+100*i))
	}
	p.unchanged(t)
	status, _ := p.readStatus(t)
	t.Logf("requests: %v", status.Probes.Propagation)
	p.noLosses(t)
	got, spans := p.received(t), callsOf(p.finish(t))

	missing := 0
	for i := range calls {
		want := traceparentOf(spans[i])
		switch kind := i % kindsOfCalls; {
		case kind == kindOwn:
			want = fmt.Sprintf("00-%032x-%016x-01", i+1, i+1)
		case kind == kindLongPath:
			want = ""
		case got[i] == "":
			missing++
			continue
		}
		if got[i] != want {
			t.Errorf("call %d has arrived with %q, want %q", i, got[i], want)
		}
	}
	// What cannot be read in full is left alone.
	if missing > calls/1000 {
		t.Errorf("%d of %d calls have no traceparent", missing, calls)
	}
	if first := got[800000]; first != "" && first != traceparentOf(spans[800000]) {
		t.Errorf("the first call on a connection from before has arrived with %q", first)
	}
	if want := traceparentOf(spans[800001]); got[800001] != want {
		t.Errorf("the second call on a connection from before has arrived with %q, want %q", got[800001], want)
	}
	for i := range 10 {
		if tp, arrived := got[600_000+i]; !arrived || tp != "" {
			t.Errorf("a call by the name of a stranger has arrived: %v, with %q", arrived, tp)
		}
		for _, first := range []int{500_000, 500_100} {
			if want := traceparentOf(spans[first+i]); i > 0 && got[first+i] != want {
				t.Errorf("call %d by the name of a service has arrived with %q, want %q", first+i, got[first+i], want)
			}
		}
	}
	for i := 700_000; i < 700_050; i++ {
		if _, arrived := got[i]; !arrived || got[i] != "" && i%kindsOfCalls != kindOwn {
			t.Errorf("call %d of a public address has arrived: %v, with %q", i, arrived, got[i])
		}
	}
}

// testPropagationKilled: the agent is killed while a lot is under way.
func (e *e2e) testPropagationKilled(t *testing.T) {
	p := startPropagating(t, e)
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		time.Sleep(700 * time.Millisecond)
		_ = p.cmd.Process.Signal(os.Kill) // watched by the test
	}()
	p.run(t, p.control, "from=0&to=4000&workers=16")
	<-killed
	if !p.ends(10 * time.Second) {
		t.Fatal("the agent lives")
	}
	p.run(t, p.control, "from=4000&to=4100&workers=16")
	p.unchanged(t)
	got, added := p.received(t), 0
	for i := range 4000 {
		if got[i] != "" && i%kindsOfCalls != kindOwn {
			added++
		}
	}
	if added == 0 || added > 3500 {
		t.Errorf("%d of 4000 calls had a traceparent: the agent was killed too early or too late", added)
	}
	for i := 4000; i < 4100; i++ {
		if got[i] != "" && i%kindsOfCalls != kindOwn {
			t.Errorf("call %d has %q after the agent was killed", i, got[i])
		}
	}
}

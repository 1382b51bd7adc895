//go:build e2e

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/internal/observer"
)

// callLabel is clientLabel with the query, so that whoever takes part in a stranger's
// trace shows.
func callLabel(s observer.Span) string {
	if s.Kind != trace.SpanKindServer {
		return clientLabel(s)
	}
	text := s.Attrs.Text("url.path")
	if query, err := url.ParseQuery(s.Attrs.Text("url.query")); err == nil && query.Get("i") != "" {
		text += "#" + query.Get("i")
	}
	return text
}

// caller is a running testdata/client.
type caller struct {
	*proc
	url string
}

// startCaller runs the client, in a network namespace if one is named.
func startCaller(t *testing.T, namespace, path, listen string) caller {
	t.Helper()
	cmd := exec.Command(path, "-listen", listen)
	if namespace != "" {
		cmd = exec.Command("ip", "netns", "exec", namespace, path, "-listen", listen)
	}
	c := caller{proc: startCmd(t, "client", cmd)}
	eventually(t, 10*time.Second, "the client listens", func() bool {
		_, rest, ok := strings.Cut(c.output(), " listens on ")
		c.url, _, _ = strings.Cut(rest, "\n")
		return ok && strings.Contains(rest, "\n")
	})
	return c
}

// testBusyHops: 64 clients at once, on kept connections, each request with a number that
// its whole trace must have: plain and over TLS, on one goroutine and on another, and many
// at a time on one connection of HTTP/2.
func (e *e2e) testBusyHops(t *testing.T) {
	path := e.build(t, "busy", "testdata/client", nil)
	c := startCaller(t, "", path, "127.0.0.1:0")
	a := e.startAgent(t, "--exe", path)
	const clients, requests = 64, 6000
	want := map[string]int{}
	paths := make(chan string, requests)
	for i := range requests {
		p := []string{"/plain", "/https", "/other", "/http2", "/h2c", "/http2-upload"}[i%6]
		want[fmt.Sprintf("%s#%d(call:200(/answer#%d))", p, i, i)] = 1
		paths <- fmt.Sprintf("%s?i=%d", p, i)
	}
	close(paths)
	var working sync.WaitGroup
	for range clients {
		working.Go(func() {
			for p := range paths {
				if code := statusOf(c.url + p); code != 200 {
					t.Errorf("%s answers %d", p, code)
				}
			}
		})
	}
	working.Wait()
	eventually(t, 20*time.Second, "every request is three spans", func() bool { return a.seen.Counts().Spans >= 3*requests })
	a.noLosses(t)
	compareTrees(t, trees(a.finish(t), callLabel), want)
}

// namespaces makes network namespaces, connected in a line: 10.x.0.1 has the first.
func namespaces(t *testing.T, names ...string) {
	t.Helper()
	run := func(line string) {
		t.Helper()
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	for _, name := range names {
		_ = exec.Command("ip", "netns", "del", name).Run() // of a run that was killed
		run("ip netns add " + name)
		t.Cleanup(func() { run("ip netns del " + name) })
		run("ip -n " + name + " link set lo up")
	}
	a, b := names[0], names[1]
	run("ip -n " + a + " link add one type veth peer name two netns " + b)
	run("ip -n " + a + " addr add 10.9.0.1/24 dev one")
	run("ip -n " + b + " addr add 10.9.0.2/24 dev two")
	run("ip -n " + a + " link set one up")
	run("ip -n " + b + " link set two up")
}

// dialIn connects from inside a network namespace.
func dialIn(namespace string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		// The thread must come back: children that it has started die with it. Where to,
		// only it knows: /proc/self is the first thread, which may be away as well.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return nil, err
		}
		defer own.Close()
		other, err := os.Open("/run/netns/" + namespace)
		if err != nil {
			return nil, err
		}
		defer other.Close()
		if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWNET); err != nil {
			return nil, err
		}
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // nothing that runs here would be right any more
		}
		return c, err
	}
}

// testNamespaces: two services in network namespaces of their own, as in two pods. They
// call themselves over loopback at the same port, each other by address, and, as in
// Kubernetes, by the address of a service that is translated on the way.
func (e *e2e) testNamespaces(t *testing.T) {
	path := e.build(t, "pods", "testdata/client", nil)
	namespaces(t, "e2e-one", "e2e-two")
	nat := exec.Command("ip", "netns", "exec", "e2e-one", "iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp",
		"-d", "10.96.0.10", "--dport", "80", "-j", "DNAT", "--to-destination", "10.9.0.2:8000")
	if out, err := nat.CombinedOutput(); err != nil {
		t.Fatalf("translate addresses: %v\n%s", err, out)
	}
	if out, err := exec.Command("ip", "-n", "e2e-one", "route", "add", "default", "dev", "one").CombinedOutput(); err != nil {
		t.Fatalf("route: %v\n%s", err, out)
	}
	startCaller(t, "e2e-one", path, "0.0.0.0:8000")
	startCaller(t, "e2e-two", path, "0.0.0.0:8000")
	a := e.startAgent(t, "--exe", path)

	// Nobody out here reaches them: the first one is asked from its own namespace.
	var targets []string
	want := map[string]int{}
	n := 0
	for range perPath {
		for _, host := range []string{"127.0.0.1:8000", "10.9.0.1:8000", "10.9.0.2:8000", "10.96.0.10"} {
			// The second hop is over the loopback of whoever is called.
			inner := fmt.Sprintf("http://127.0.0.1:8000/answer?i=%d", n)
			middle := fmt.Sprintf("http://%s/to?i=%d&url=%s", host, n, url.QueryEscape(inner))
			targets = append(targets, fmt.Sprintf("http://127.0.0.1:8000/to?i=%d&url=%s", n, url.QueryEscape(middle)))
			want[fmt.Sprintf("/to#%[1]d(call:200(/to#%[1]d(call:200(/answer#%[1]d))))", n)] = 1
			n++
		}
	}
	inside := &http.Client{Timeout: client.Timeout, Transport: &http.Transport{DialContext: dialIn("e2e-one"), MaxIdleConnsPerHost: 16}}
	var asking sync.WaitGroup
	for some := range slices.Chunk(targets, len(targets)/16) {
		asking.Go(func() {
			for _, target := range some {
				if code := sendBy(inside, http.MethodGet, target, nil); code != 200 {
					t.Errorf("%s answers %d", target, code)
				}
			}
		})
	}
	asking.Wait()
	eventually(t, 15*time.Second, "every request is five spans", func() bool { return a.seen.Counts().Spans >= 5*n })
	a.noLosses(t)
	compareTrees(t, trees(a.finish(t), callLabel), want)
}

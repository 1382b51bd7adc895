package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/observer"
	"github.com/plainframework/agent/internal/probes"
)

// request is one to testdata/std, and what its trace must hold.
type request struct {
	path     string
	status   int      // 0: no answer
	children []string // names of spans below the server's, sorted; "!" in front: of a failed one
}

var requests = []request{
	{"/plain", 200, nil},
	{"/nothing", 404, nil},
	{"/db", 200, []string{"SELECT items", "UPDATE items"}},
	{"/stmt", 200, []string{"SELECT items", "SELECT items"}},
	{"/tx", 200, []string{"INSERT orders", "SELECT orders"}},
	{"/conn", 200, []string{"DELETE orders", "SELECT orders"}},
	{"/goroutine", 200, []string{"SELECT orders"}},
	{"/fail", 500, []string{"!SELECT broken"}},
	{"/abort", 0, []string{"SELECT orders"}},
}

// perRequest is how often each request is sent.
const perRequest = 10

// program is a running testdata/std.
type program struct {
	cmd    *exec.Cmd
	url    string
	client http.Client
}

func startProgram(ctx context.Context, path string, args ...string) (*program, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = cmd.Process.Kill()
		return nil, fmt.Errorf("read the program's address: %w, %v", err, cmd.Wait())
	}
	// No connection is used twice: an aborted request would be sent again on one that was.
	p := &program{cmd: cmd, url: strings.TrimSpace(line)}
	p.client = http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return p, nil
}

// stop ends the program by SIGTERM.
func (p *program) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return wait(p.cmd, 15*time.Second)
}

// wait waits for the end of a command; what takes too long is killed.
func wait(cmd *exec.Cmd, timeout time.Duration) error {
	timer := time.AfterFunc(timeout, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	return cmd.Wait()
}

// send returns the status of the answer, 0 if there is none.
func (p *program) send(ctx context.Context, r request, traceparent string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+r.path, nil)
	if err != nil {
		return -1
	}
	if traceparent != "" {
		req.Header.Set("Traceparent", traceparent)
	}
	res, err := p.client.Do(req)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// checkSpans runs the program and the agent, sends requests, each in a trace of its own,
// and compares the spans of each trace with what the request must give.
func (w *workshop) checkSpans(ctx context.Context, r *result, x *probes.Examination, path string) {
	p, err := startProgram(ctx, path)
	if err != nil {
		r.problem("run: %v", err)
		return
	}
	defer p.stop() //nolint:errcheck // it has served its purpose
	a, err := startAgent(ctx, w.agent, p.cmd.Process.Pid)
	if err != nil {
		r.problem("run the agent: %v", err)
		return
	}
	sent := map[string]request{} // by trace id
	want := 0
	for i := range perRequest {
		for j, q := range requests {
			id := fmt.Sprintf("%030x%02x", i+1, j)
			sent[id] = q
			want += 1 + len(q.children)
			if got := p.send(ctx, q, "00-"+id+"-00000000000000aa-01"); got != q.status {
				r.problem("%s answers %d, want %d", q.path, got, q.status)
			}
		}
	}
	_, _ = a.seen.WaitForSpans(want, 5*time.Second, nil) // what is missing is told below
	time.Sleep(200 * time.Millisecond)                   // for spans too many
	losses, err := a.losses(ctx)
	if err != nil {
		r.problem("read the agent's status: %v", err)
	}
	if err := a.stop(); err != nil {
		r.problem("the agent: %v", err)
	}
	complete := len(x.Pruned) == 0 && !slices.ContainsFunc(x.Groups, func(g probes.GroupStatus) bool {
		wanted := slices.ContainsFunc(stdGroups, func(w group) bool { return w.library == g.Library && w.name == g.Group })
		return wanted && g.State != "attached"
	})
	routes := !slices.ContainsFunc(r.absences, func(a absence) bool { return strings.HasSuffix(a.what, "nethttp_route") })
	for _, text := range compare(sent, a.seen.Spans(), complete, routes) {
		r.problem("%s", text)
	}
	if losses != "" {
		r.problem("losses: %s", losses)
	}
	r.spans = len(a.seen.Spans())
}

// compare says what is wrong with the spans, each thing once. Where not all probes could
// be attached, spans or routes may be missing, but those that are there must be right.
func compare(sent map[string]request, spans []observer.Span, complete, routes bool) (wrong []string) {
	note := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !slices.Contains(wrong, text) && len(wrong) < 10 {
			wrong = append(wrong, text)
		}
	}
	traces := map[string][]observer.Span{}
	for _, s := range spans {
		traces[s.TraceID.String()] = append(traces[s.TraceID.String()], s)
	}
	for id, got := range traces {
		// Without its server span, a query is the root of a trace.
		if _, ok := sent[id]; !ok && complete {
			note("a trace that nobody sent has %s", describe(got))
		}
	}
	for id, q := range sent {
		got := traces[id]
		var server *observer.Span
		var children []string
		for i, s := range got {
			if s.Kind == trace.SpanKindServer {
				server = &got[i]
			}
		}
		if server == nil {
			if complete || len(got) > 0 {
				note("%s: no server span, but %s", q.path, describe(got))
			}
			continue
		}
		for _, s := range got {
			if s.SpanID == server.SpanID {
				continue
			}
			name := s.Name
			if s.Status == codes.Error {
				name = "!" + name
			}
			if s.ParentID != server.SpanID {
				name += " elsewhere"
			}
			children = append(children, name)
		}
		slices.Sort(children)
		if complete && !slices.Equal(children, q.children) || !within(children, q.children) {
			note("%s: children %q, want %q", q.path, children, q.children)
		}
		compareServer(note, q, *server, routes)
	}
	return wrong
}

// within tells whether all of got are among want.
func within(got, want []string) bool {
	rest := slices.Clone(want)
	for _, g := range got {
		i := slices.Index(rest, g)
		if i < 0 {
			return false
		}
		rest = slices.Delete(rest, i, i+1)
	}
	return true
}

func compareServer(note func(string, ...any), q request, s observer.Span, routes bool) {
	route := q.path
	name := "GET " + q.path
	if q.status == http.StatusNotFound || !routes && s.Attrs.Text("http.route") == "" {
		route, name = "", "GET"
	}
	status := ""
	if q.status != 0 {
		status = strconv.Itoa(q.status)
	}
	for key, want := range map[string]string{
		"url.path": q.path, "http.route": route, "http.request.method": "GET", "http.response.status_code": status,
		"network.protocol.version": "1.1",
	} {
		if got := s.Attrs.Text(key); got != want {
			note("%s: %s is %q, want %q", q.path, key, got, want)
		}
	}
	if s.Name != name {
		note("%s: named %q, want %q", q.path, s.Name, name)
	}
	if s.ParentID.String() != "00000000000000aa" {
		note("%s: parent %s, want the one in its header", q.path, s.ParentID)
	}
	if failed := s.Status == codes.Error; failed != (q.status == 500 || q.status == 0) {
		note("%s: status %s", q.path, s.Status)
	}
}

func describe(spans []observer.Span) string {
	var names []string
	for _, s := range spans {
		names = append(names, s.Kind.String()+" "+s.Name)
	}
	slices.Sort(names)
	return fmt.Sprintf("%q", names)
}

// agent is the built agent, running, and where it sends to.
type agent struct {
	cmd    *exec.Cmd
	seen   *observer.Observer
	sink   *http.Server
	status string
	stderr bytes.Buffer // read when it has ended
}

// ready is long, for machines that do much else.
const ready = time.Minute

func startAgent(ctx context.Context, path string, pid int) (*agent, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	free.Close()
	a := &agent{seen: observer.New(observer.Options{}), status: "http://" + free.Addr().String()}
	a.sink = &http.Server{Handler: a.seen.Handler()}
	go a.sink.Serve(ln) //nolint:errcheck // ends with Close
	a.cmd = exec.CommandContext(ctx, path, "run", "--pid", strconv.Itoa(pid), "--status", free.Addr().String())
	a.cmd.Env = append(os.Environ(), "PLAIN_CLOUD_EXPORT_TOKEN=x", "PLAIN_CLOUD_EXPORT_URL=http://"+ln.Addr().String(),
		"PLAIN_CLOUD_SPOOL_DIR=off", "PLAIN_AGENT_STATE_DIR=off")
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	a.cmd.Stderr = &a.stderr
	if err := a.cmd.Start(); err != nil {
		a.sink.Close()
		return nil, err
	}
	for end := time.Now().Add(ready); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		res, err := http.Get(a.status + "/readyz")
		if err != nil {
			continue
		}
		res.Body.Close()
		if res.StatusCode == http.StatusOK {
			return a, nil
		}
	}
	err = errors.Join(fmt.Errorf("not ready within %v", ready), a.stop())
	return nil, fmt.Errorf("%w: %s", err, lastLines(a.stderr.String(), 3))
}

func (a *agent) stop() error {
	defer a.sink.Close()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return wait(a.cmd, 15*time.Second)
}

// losses are those that the agent states; "" is none.
func (a *agent) losses(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.status+"/status", nil)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var status struct {
		Probes probes.Status `json:"probes"`
	}
	if err := json.NewDecoder(res.Body).Decode(&status); err != nil {
		return "", err
	}
	var list []string
	for reason, n := range status.Probes.Losses {
		if n > 0 {
			list = append(list, fmt.Sprintf("%d %s", n, reason))
		}
	}
	slices.Sort(list)
	return strings.Join(list, ", "), nil
}

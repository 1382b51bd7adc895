//go:build e2e

package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/plainframework/agent/internal/observer"
)

const (
	headerSecret  = "header-Secret-that-must-not-be-seen"
	proxyPassword = "proxy-Password-that-must-not-be-seen"
)

// secrets are all that must not be seen, and how else they may be written.
var secrets = []string{
	testToken, headerSecret, proxyPassword,
	base64.StdEncoding.EncodeToString([]byte("someone:" + proxyPassword)),
}

func secretIn(text []byte) string {
	for _, s := range secrets {
		if bytes.Contains(text, []byte(s)) {
			return s
		}
	}
	return ""
}

// indiscreet is a proxy, and the endpoint behind it: it answers in every way that is wrong,
// and repeats in each answer all that it was told.
type indiscreet struct{ told, asked atomic.Int64 }

// ServeHTTP implements [http.Handler].
func (p *indiscreet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text := fmt.Sprintf("%s %v", r.URL, r.Header)
	if strings.Contains(text, testToken) && strings.Contains(text, headerSecret) && r.Header.Get("Proxy-Authorization") != "" {
		p.told.Add(1)
	}
	statuses := []int{401, 407, 403, 400, 500, 307, 429, 503}
	status := statuses[p.asked.Add(1)%int64(len(statuses))]
	if status == 307 {
		w.Header().Set("Location", "http://someone:"+proxyPassword+"@elsewhere.invalid/"+testToken+"?key="+headerSecret)
	}
	http.Error(w, text, status)
}

// testSecrets looks for the token, a header's value and the proxy's password in all that an
// agent says and leaves behind while everything goes wrong that could make it say them.
func (e *e2e) testSecrets(t *testing.T) {
	proxy := &indiscreet{}
	server := httptest.NewServer(proxy)
	defer server.Close()
	state, dir := stateDir(t), t.TempDir()
	config := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(config, []byte("export: {headers: {X-Key: "+headerSecret+"}}\nagent: {log_level: debug}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	spool := filepath.Join(dir, "spool")
	shop := e.startShop(t, e.shop, "-log")
	a := e.launchAgentTo(t, observer.New(observer.Options{}), []string{
		"PLAIN_CLOUD_EXPORT_URL=http://endpoint.invalid/base", "HTTP_PROXY=http://someone:" + proxyPassword + "@" + strings.TrimPrefix(server.URL, "http://"),
		"NO_PROXY=", "PLAIN_CLOUD_SPOOL_DIR=" + spool, "PLAIN_AGENT_STATE_DIR=" + state, "OTEL_METRIC_EXPORT_INTERVAL=300",
	}, "--exe", e.shop, "--config", config)
	a.waitReady(t)
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		statusOf(shop.url + "/items/1")
	}
	if proxy.told.Load() < 8 {
		t.Errorf("only %d of %d requests had all the secrets", proxy.told.Load(), proxy.asked.Load())
	}
	server.Close() // the connection is refused from now on
	for range 100 {
		statusOf(shop.url + "/items/1")
		time.Sleep(10 * time.Millisecond)
	}
	said := e.askAll(t, a, shop, config)
	a.lookEverywhere(t, dir, state)
	// Go's last words: every goroutine with its arguments.
	if err := a.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	a.ends(10 * time.Second)
	for _, want := range []string{"level=DEBUG", "check PLAIN_CLOUD_EXPORT_TOKEN", "refuses", "SIGQUIT", "goroutine 1 "} {
		if !strings.Contains(a.output(), want) {
			t.Errorf("the agent was to say %q:\n%s", want, a.output())
		}
	}
	if s := secretIn([]byte(a.output() + said)); s != "" {
		t.Errorf("%s is in what the agent says", s)
	}
}

// askAll is the output of every command of the agent, with the secrets in its settings.
func (e *e2e) askAll(t *testing.T, a *watcher, shop server, config string) string {
	t.Helper()
	var said strings.Builder
	address := strings.TrimPrefix(a.status, "http://")
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	text := fmt.Sprintf("export: {token: [%[1]s], headers: {'X Key': %[1]s, Y: \"a\\nb%[1]s\"}, url: 'http://u:%[1]s@h', token_file: /nowhere}\n", testToken)
	if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, works := range map[string]bool{
		"status --status " + address: true, "status --json --status " + address: true, "health --ready --status " + address: true,
		"doctor --pid " + fmt.Sprint(shop.pid()) + " --config " + config: true, "doctor --json --config " + config + " --exe " + e.shop: true,
		"run --pid 1 --status= --config " + bad: false, "run --help": true, "version": true, "doctor --config " + bad + " --pid 1": false,
	} {
		cmd := exec.CommandContext(t.Context(), e.agent, strings.Fields(args)...)
		cmd.Env = append(os.Environ(), "PLAIN_CLOUD_EXPORT_TOKEN="+testToken, "HTTPS_PROXY=http://someone:"+proxyPassword+"@127.0.0.1:1")
		out, err := cmd.CombinedOutput()
		if len(out) == 0 && args[:6] != "health" || (err == nil) != works && !strings.HasPrefix(args, "doctor") {
			t.Errorf("agent %s: %v\n%s", args, err, out)
		}
		fmt.Fprintf(&said, "agent %s\n%s\n", args, out)
	}
	_, page := a.readStatus(t)
	for _, path := range []string{"/", "/healthz", "/readyz", "/debug/pprof/", "/debug/vars", "/metrics"} {
		if res, err := client.Get(a.status + path); err == nil {
			_ = res.Write(&said) // what it is, as it comes
			res.Body.Close()
		}
	}
	return said.String() + page
}

// lookEverywhere reads what others can of a running agent: all of its entries in /proc but
// environment and memory, the files that it has written, its pinned maps.
func (w *watcher) lookEverywhere(t *testing.T, files, maps string) {
	t.Helper()
	read := map[string]int{}
	look := func(kind, path string) {
		fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return // not everything in /proc can be read
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		text, err := io.ReadAll(io.LimitReader(f, 16<<20))
		if err != nil && len(text) == 0 {
			return
		}
		read[kind]++
		if s := secretIn(text); s != "" {
			t.Errorf("%s has %s", path, s)
		}
	}
	base := fmt.Sprintf("/proc/%d", w.pid())
	_ = filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return nil
		case d.IsDir() && (name == "map_files" || name == "fd" || name == "net" || name == "attr"):
			return fs.SkipDir
		case d.Type().IsRegular() && name != "environ" && name != "mem" && name != "pagemap" && name != "clear_refs":
			look("proc", path)
		}
		return nil
	})
	_ = filepath.WalkDir(files, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != "agent.yaml" {
			look("file", path)
		}
		return nil
	})
	pins, _ := filepath.Glob(maps + "/*")
	for _, pin := range pins {
		m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			continue // such as the lock
		}
		read["map"]++
		var key, value []byte
		for entries := m.Iterate(); entries.Next(&key, &value); {
			if s := secretIn(value) + secretIn(key); s != "" {
				t.Errorf("%s has %s", pin, s)
			}
		}
		m.Close()
	}
	t.Logf("looked at %v", read)
	if read["proc"] < 50 || read["file"] < 1 || read["map"] < 5 {
		t.Errorf("too little was looked at: %v", read)
	}
	environment, err := os.ReadFile(base + "/environ")
	if err != nil || secretIn(environment) == "" {
		t.Errorf("the search finds the token not even where it is: %v", err)
	}
}

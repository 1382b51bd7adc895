//go:build e2e && collector

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/observer"
)

var (
	collectorPath = flag.String("collector", "", "an OpenTelemetry Collector; scripts/endpoint builds it")
	nginxPath     = flag.String("nginx", "/usr/sbin/nginx", "Debian's nginx")
)

// TestCollector sends to a real OpenTelemetry Collector through a real nginx with TLS,
// which fail in turn, under load: everything arrives, and what may have arrived twice is
// counted.
//
//	agent ─TLS→ nginx → collector → the test
func TestCollector(t *testing.T) {
	needKernel(t)
	if *collectorPath == "" {
		t.Fatal("no collector: run scripts/endpoint")
	}
	e := &e2e{dir: t.TempDir()}
	e.agent, e.shop = e.build(t, "agent", ".", nil), e.build(t, "shop", shopDir, nil)
	seen := observer.New(observer.Options{Keep: 1 << 20})
	sink := httptest.NewServer(seen.Handler())
	defer sink.Close()
	chain := newChain(t, sink.URL)
	// In time: workers of an nginx that is killed hold its output open.
	defer func() { chain.nginx.stop(t) }()

	shop := e.startShop(t, e.shop)
	var requests atomic.Int64
	stop, ended := make(chan struct{}), sync.WaitGroup{}
	state := stateDir(t)
	a := e.launchAgent(t, []string{
		"PLAIN_CLOUD_EXPORT_URL=https://" + chain.front, "PLAIN_CLOUD_EXPORT_CA_FILE=" + chain.ca, "PLAIN_CLOUD_SPOOL_DIR=" + t.TempDir(),
		"PLAIN_AGENT_STATE_DIR=" + state, "OTEL_METRIC_EXPORT_INTERVAL=1000",
	}, "--exe", e.shop)
	a.waitReady(t)
	ended.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
				if statusOf(shop.url+"/plain") == 200 {
					requests.Add(1)
				}
			}
		}
	})
	const each = 2 * time.Second
	for _, fault := range []struct {
		name       string
		begin, end func()
	}{
		{"503", func() { chain.configure(t, "return 503;", "good") }, nil},
		{"no answer", func() { chain.configure(t, "return 444;", "good") }, nil},
		{"429", func() { chain.configure(t, "add_header Retry-After 1 always; return 429;", "good") }, nil},
		{"another CA", func() { chain.configure(t, chain.pass(), "bad") }, nil},
		{"slow", func() { chain.configure(t, "limit_rate 1; "+chain.pass(), "good") }, nil},
		{"hanging", func() { chain.signal(t, syscall.SIGSTOP) }, func() { chain.signal(t, syscall.SIGCONT) }},
		{"nginx gone", func() { chain.nginx.stop(t) }, func() { chain.startNginx(t) }},
	} {
		began := time.Now()
		before := a.fullStatus(t).Export.Endpoints["traces"].Failures
		fault.begin()
		time.Sleep(each)
		failed := a.fullStatus(t).Export.Endpoints["traces"].Failures - before
		// Go's HTTP/2 client sends a request again by itself when the connection ends
		// without an answer.
		if failed == 0 && fault.name != "slow" && fault.name != "no answer" {
			t.Errorf("%s: no request has failed", fault.name)
		}
		if fault.end != nil {
			fault.end()
		}
		chain.configure(t, chain.pass(), "good")
		// The agent waits longer after each failure; the next fault is to find it at work.
		eventually(t, 30*time.Second, "the spool is empty after "+fault.name, func() bool {
			return a.fullStatus(t).Export.Signals["traces"].Spooled == 0
		})
		t.Logf("%s: %d requests failed, all well after %v", fault.name, failed, time.Since(began).Round(time.Second/10))
	}
	close(stop)
	ended.Wait()
	var s fullStatus
	eventually(t, 60*time.Second, "everything has left", func() bool {
		s = a.fullStatus(t)
		traces := s.Export.Signals["traces"]
		return traces.Queued == 0 && traces.Spooled == 0 && s.Probes.Spans.Decoded >= uint64(requests.Load())
	})
	time.Sleep(1500 * time.Millisecond)
	s = a.fullStatus(t)
	a.stop(t)
	traces := s.Export.Signals["traces"]
	unique := map[string]int{}
	for _, span := range seen.Spans() {
		unique[span.SpanID.String()]++
	}
	again := int64(len(seen.Spans()) - len(unique))
	t.Logf("%d requests, %d spans arrived, %d of them again, %d counted as maybe twice, lost %v; %+v",
		requests.Load(), len(unique), again, traces.MaybeTwice, traces.Lost, s.Export.Endpoints["traces"])
	if int64(len(unique)) != requests.Load() || traces.LostTotal() != 0 || traces.Exported != requests.Load() {
		t.Errorf("%d requests, %d spans: %+v", requests.Load(), len(unique), traces)
	}
	if again > traces.MaybeTwice {
		t.Errorf("%d arrived again, %d counted", again, traces.MaybeTwice)
	}
	metrics := s.Export.Signals["metrics"]
	if got := histogramCount(seen, "http.server.request.duration"); got < uint64(requests.Load()) || got > uint64(requests.Load()) && metrics.MaybeTwice == 0 {
		t.Errorf("%d of %d requests measured; %+v", got, requests.Load(), metrics)
	}
	nowhereInProcess(t, chain)
}

// nowhereInProcess: the token was sent to nginx only, and is in no file of the chain.
func nowhereInProcess(t *testing.T, c *chain) {
	t.Helper()
	err := filepath.Walk(c.dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(data), testToken) {
			t.Errorf("%s has the token", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// chain is nginx in front of a collector in front of the test.
type chain struct {
	dir, ca, front, back string
	nginx, collector     *proc
}

func newChain(t *testing.T, sink string) *chain {
	t.Helper()
	c := &chain{dir: t.TempDir(), front: freeAddress(t), back: freeAddress(t)}
	c.ca = filepath.Join(c.dir, "ca-good.pem")
	c.makeCertificate(t, "good")
	c.makeCertificate(t, "bad")
	c.write(t, "collector.yaml", fmt.Sprintf(`
receivers: {otlp: {protocols: {http: {endpoint: %s}}}}
exporters: {otlp_http: {endpoint: %s, sending_queue: {enabled: false}, retry_on_failure: {enabled: false}}}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    traces: {receivers: [otlp], exporters: [otlp_http]}
    metrics: {receivers: [otlp], exporters: [otlp_http]}
    logs: {receivers: [otlp], exporters: [otlp_http]}
`, c.back, sink))
	c.collector = startProc(t, "collector", nil, *collectorPath, "--config", filepath.Join(c.dir, "collector.yaml"))
	c.listens(t, c.back, c.collector)
	c.writeConfig(t, c.pass(), "good")
	c.startNginx(t)
	return c
}

func (c *chain) startNginx(t *testing.T) {
	t.Helper()
	_ = os.Remove(filepath.Join(c.dir, "pid"))
	c.nginx = startProc(t, "nginx", nil, *nginxPath, "-e", filepath.Join(c.dir, "error.log"), "-p", c.dir, "-c", filepath.Join(c.dir, "nginx.conf"))
	c.listens(t, c.front, c.nginx)
}

func (c *chain) listens(t *testing.T, address string, p *proc) {
	t.Helper()
	eventually(t, 20*time.Second, p.name+" listens", func() bool {
		if !p.running() {
			t.Fatalf("%s has ended: %v", p.name, p.err)
		}
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// pass has nginx hand requests on.
func (c *chain) pass() string {
	return "proxy_pass http://" + c.back + "; proxy_read_timeout 1s; proxy_send_timeout 1s;"
}

func (c *chain) writeConfig(t *testing.T, location, certificate string) {
	t.Helper()
	c.write(t, "nginx.conf", fmt.Sprintf(`
daemon off; master_process on; worker_processes 1; pid %[1]s/pid; user root;
events { worker_connections 256; }
http {
  access_log off; client_max_body_size 64m;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server {
    listen %[2]s ssl http2;
    ssl_certificate %[1]s/%[3]s.pem; ssl_certificate_key %[1]s/%[3]s.key;
    location / { %[4]s }
  }
}
`, c.dir, c.front, certificate, location))
}

// configure reloads nginx with other behaviour. Connections that were made before go on
// with the old one, so they are cut: the old worker has half a second.
func (c *chain) configure(t *testing.T, location, certificate string) {
	t.Helper()
	c.writeConfig(t, location, certificate)
	old := children(c.nginx.pid())
	if err := c.nginx.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	for _, pid := range old {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
}

func children(pid int) (pids []int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		out, _ := exec.Command("ps", "-o", "pid=", "--ppid", fmt.Sprint(pid)).Output()
		text = out
	}
	for f := range strings.FieldsSeq(string(text)) {
		var child int
		if _, err := fmt.Sscan(f, &child); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

func (c *chain) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := c.collector.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func (c *chain) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// makeCertificate makes a CA and a server's certificate of it.
func (c *chain) makeCertificate(t *testing.T, name string) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "endpoint"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caKey, leafKey := key(), key()
	put := func(file, kind string, der []byte, err error) {
		if err != nil {
			t.Fatal(err)
		}
		c.write(t, file, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	put("ca-"+name+".pem", "CERTIFICATE", der, err)
	der, err = x509.CreateCertificate(rand.Reader, leaf, ca, &leafKey.PublicKey, caKey)
	put(name+".pem", "CERTIFICATE", der, err)
	der, err = x509.MarshalECPrivateKey(leafKey)
	put(name+".key", "EC PRIVATE KEY", der, err)
}

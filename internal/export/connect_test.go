package export

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/config"
)

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{dir: t.TempDir()}
	a.issue(t, "ca", nil)
	return a
}

// issue writes name.pem and name.key.
func (a *authority) issue(t *testing.T, name string, by *authority) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<60))
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: by == nil,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := c, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if by == nil {
		a.key = key
		a.cert, _ = x509.ParseCertificate(der)
	}
	keyDER, _ := x509.MarshalPKCS8PrivateKey(key)
	write(t, a.path(name+".pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, a.path(name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTLS sends to an endpoint with a private authority that asks for a client
// certificate, over HTTP/2.
func TestTLS(t *testing.T) {
	a := newAuthority(t)
	a.issue(t, "server", a)
	a.issue(t, "client", a)
	rc := &receiver{}
	srv := httptest.NewUnstartedServer(rc)
	pair, err := tls.LoadX509KeyPair(a.path("server.pem"), a.path("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	defer srv.Close()

	tests := []struct {
		name   string
		change func(*config.Export)
		lost   string // matches the endpoint's last error; "" if it works
	}{
		{"all given", func(*config.Export) {}, ""},
		{"no authority", func(e *config.Export) { e.CAFile = "" }, "unknown authority"},
		{"no client certificate", func(e *config.Export) { e.CertFile, e.KeyFile = "", "" }, "certificate required|could not be established"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config.Default()
			cfg.Export.URL, cfg.Export.Token, cfg.Export.SpoolDir = srv.URL, testToken, config.SpoolOff
			cfg.Export.RetryFor = 0
			cfg.Export.CAFile, cfg.Export.CertFile, cfg.Export.KeyFile = a.path("ca.pem"), a.path("client.pem"), a.path("client.key")
			tt.change(&cfg.Export)
			p, err := New(cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			before := rc.attempts()
			stop := start(t, p)
			p.Spans(makeSpans(1, "s"))
			stop()
			if tt.lost != "" {
				if e := p.Stats().Endpoints["traces"].LastError; !regexp.MustCompile(tt.lost).MatchString(e) || rc.attempts() != before {
					t.Errorf("error %q, want %q", e, tt.lost)
				}
				return
			}
			expect(t, p, "traces", 1, 1, map[string]int64{})
			if r := rc.requests[len(rc.requests)-1]; r.ProtoMajor != 2 || r.TLS.PeerCertificates[0].Subject.CommonName != "client" {
				t.Errorf("%s, client %v", r.Proto, r.TLS.PeerCertificates)
			}
		})
	}
}

func TestBadCertificatesAreErrors(t *testing.T) {
	a := newAuthority(t)
	write(t, a.path("empty.pem"), "")
	for name, e := range map[string]config.Export{
		"no certificate in PEM form": {CAFile: a.path("empty.pem")},
		"no such file":               {CAFile: a.path("none.pem")},
		"read client certificate":    {CertFile: a.path("ca.pem"), KeyFile: a.path("empty.pem")},
	} {
		if _, err := newTLS(e); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want %q", err, name)
		}
	}
}

func TestTokenFileIsReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "pt_one\n")
	valid := "Bearer pt_one"
	rc := &receiver{}
	rc.answer = func(_ respWriter, r *request, _ []byte) int {
		if r.Header.Get("Authorization") != valid {
			return 401
		}
		return 200
	}
	p, log := newTestPipeline(t, rc, func(c *config.Config) {
		c.Export.Token, c.Export.TokenFile, c.Export.TokenFromFile = "pt_one", file, true
		c.Export.BatchDelay = time.Millisecond
	})
	send := func(name string, want int64) {
		t.Helper()
		before := p.Stats().Signals["traces"]
		p.Spans(makeSpans(1, name))
		for p.Stats().Signals["traces"].Queued > 0 {
			time.Sleep(time.Millisecond)
		}
		if got := p.Stats().Signals["traces"].Exported - before.Exported; got != want {
			t.Errorf("%s: %d exported, want %d: %s", name, got, want, log)
		}
	}
	stop := start(t, p)
	send("first", 1)
	valid = "Bearer pt_two!"
	send("refused", 0)
	write(t, file, "pt_two!\n")
	send("renewed", 1) // at once, not after the next look at the file
	write(t, file, "")
	send("emptied", 1)
	os.Remove(file)
	send("removed", 1)
	stop()
	expect(t, p, "traces", 5, 4, map[string]int64{"unauthorized": 1})
	for _, token := range []string{"pt_one", "pt_two!"} {
		if strings.Contains(log.String(), token) {
			t.Errorf("%s is in the log: %s", token, log)
		}
	}
}

// TestSecretsAreTakenOut: whatever an endpoint or a proxy repeats in its answer.
func TestSecretsAreTakenOut(t *testing.T) {
	e := config.Default().Export
	e.Token = "the-token"
	e.Headers = map[string]config.Secret{"X-Key": "the-key"}
	e.Proxy.HTTPS = "http://me:p%40ss@proxy:1"
	c := newCredentials(e, &complaints{logger: slog.New(slog.DiscardHandler)})
	for i := range 100 {
		c.use(config.Secret(fmt.Sprintf("token-%03d", i)))
	}
	got := c.redact("the-key p@ss p%40ss bWU6cEBzcw== token-099 token-098")
	if want := strings.TrimSpace(strings.Repeat("[redacted] ", 6)); got != want {
		t.Errorf("%q", got)
	}
}

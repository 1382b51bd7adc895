package export

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/plainframework/agent/internal/config"
)

// maxCertificates bounds the file of certificate authorities.
const maxCertificates = 4 << 20

// newBase makes the transport that reaches the network.
func newBase(e config.Export) (*http.Transport, error) {
	secure, err := newTLS(e)
	if err != nil {
		return nil, err
	}
	proxy := (&httpproxy.Config{
		HTTPProxy: e.Proxy.HTTP.Reveal(), HTTPSProxy: e.Proxy.HTTPS.Reveal(), NoProxy: e.Proxy.NoProxy,
	}).ProxyFunc()
	return &http.Transport{
		Proxy:               func(r *http.Request) (*url.URL, error) { return proxy(r.URL) },
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     secure,
		ForceAttemptHTTP2:   true,
		DisableCompression:  true, // answers are a few bytes
		MaxIdleConnsPerHost: spanWorkers + logWorkers + metricWorkers + int(signalCount),
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second,
		// A compressed batch in few writes.
		WriteBufferSize: 64 << 10,
	}, nil
}

// newTLS makes the TLS settings: nil, Go's own, where nothing is set.
func newTLS(e config.Export) (*tls.Config, error) {
	if e.CAFile == "" && e.CertFile == "" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CAFile != "" {
		pem, err := readFile(e.CAFile, maxCertificates)
		if err != nil {
			return nil, fmt.Errorf("read certificate authorities: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read certificate authorities: %s holds no certificate in PEM form", e.CAFile)
		}
	}
	if e.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("read client certificate: %w", err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		// Read for each handshake: such certificates are short-lived, and
		// replaced while the agent runs.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return c, nil
}

func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errors.New("the file is too large")
	}
	return data, err
}

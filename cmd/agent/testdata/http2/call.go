package main

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"

	"golang.org/x/net/http2"
)

// call asks this server for another path.
func call(r *http.Request, rt http.RoundTripper, path string) error {
	scheme := "https"
	if r.TLS == nil {
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, scheme+"://"+r.Host+path, nil)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

var (
	trusting = &tls.Config{InsecureSkipVerify: true} // the server made its certificate itself
	overTLS  = &http2.Transport{TLSClientConfig: trusting}
	without  = &http2.Transport{AllowHTTP: true, DialTLS: func(network, address string, _ *tls.Config) (net.Conn, error) {
		return net.Dial(network, address)
	}}
	netHTTP = &http.Transport{TLSClientConfig: trusting.Clone()}
)

// transport is that of golang.org/x/net/http2, alone.
func transport(h2c bool) http.RoundTripper {
	if h2c {
		return without
	}
	return overTLS
}

func init() {
	if err := http2.ConfigureTransport(netHTTP); err != nil {
		log.Fatal(err)
	}
}

// configured is that of net/http, which hands its requests on.
func configured() http.RoundTripper { return netHTTP }

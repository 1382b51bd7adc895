//go:build go1.24

package main

import (
	"net"
	"net/http"
)

// startH2C starts a server of HTTP/2 without TLS, and has a client for it.
func startH2C() (target, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return target{}, err
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	go (&http.Server{Handler: http.HandlerFunc(answer), Protocols: protocols}).Serve(ln)
	return target{"http://" + ln.Addr().String(), &http.Client{Transport: &http.Transport{Protocols: protocols}}}, nil
}

// Command http2 is a server of HTTP/2 for the end-to-end tests, small enough to be built
// with every release of Go that is covered.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
)

func main() {
	mode := flag.String("mode", "tls", "tls: net/http's server; x: golang.org/x/net/http2 over TLS; h2c: over nothing")
	flag.Parse()
	server := &http.Server{Handler: routes(), ErrorLog: log.New(io.Discard, "", 0)} // panics on purpose
	if *mode == "h2c" {
		server.Handler = h2c.NewHandler(server.Handler, &http2.Server{})
	} else {
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate()}}
	}
	if *mode == "x" {
		if err := http2.ConfigureServer(server, &http2.Server{}); err != nil {
			log.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s listens on %s\n", *mode, ln.Addr())
	if *mode == "h2c" {
		log.Fatal(server.Serve(ln))
	}
	log.Fatal(server.ServeTLS(ln, "", ""))
}

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/items/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, r.Proto, r.URL.Path)
	})
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("as"))
		w.WriteHeader(code)
	})
	mux.HandleFunc("/silent", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/abort", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusAccepted) // not sent yet
		panic("on purpose")
	})
	mux.HandleFunc("/late", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		w.(http.Flusher).Flush()
		panic("on purpose, after the header")
	})
	mux.HandleFunc("/recovered", func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if recover() != nil {
				w.WriteHeader(http.StatusInternalServerError)
			}
		}()
		panic("that nobody sees")
	})
	mux.HandleFunc("/call", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, call(r, transport(r.TLS == nil), "/items/7"))
	})
	mux.HandleFunc("/configured", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, call(r, configured(), "/items/7"))
	})
	mux.HandleFunc("/missing", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, call(r, transport(r.TLS == nil), "/none"))
	})
	mux.HandleFunc("/refused", func(w http.ResponseWriter, r *http.Request) {
		r.Host = "127.0.0.1:1"
		fmt.Fprintln(w, call(r, transport(r.TLS == nil), "/items/7"))
	})
	mux.HandleFunc("/goexit", func(http.ResponseWriter, *http.Request) { runtime.Goexit() })
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < 100; i++ { // or until the client resets the stream
			fmt.Fprintln(w, i)
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return mux
}

// certificate makes one that nobody trusts.
func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		log.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

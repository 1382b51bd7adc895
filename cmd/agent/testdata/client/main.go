// Command client is a service that calls services: itself, and others that fail. Each
// path makes calls of one kind with net/http's client. The end-to-end tests compare their
// spans with what it has done.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"time"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "listen on `address`")
	flag.Parse()
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	s := &service{url: "http://" + ln.Addr().String()}
	// Over TLS: HTTP/1.1 and HTTP/2, each at an address of its own.
	for _, h2 := range []bool{false, true} {
		answers := http.NewServeMux()
		answers.HandleFunc("/answer", answer)
		answers.HandleFunc("/slow", slow)
		secure := httptest.NewUnstartedServer(answers)
		secure.EnableHTTP2 = h2
		secure.StartTLS()
		client := secure.Client()
		client.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
		s.secure = append(s.secure, target{secure.URL, client})
	}
	h2c, err := startH2C()
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/answer", answer)
	mux.HandleFunc("/hop", hop)
	mux.HandleFunc("/slow", slow)
	for path, call := range map[string]func(context.Context) error{
		"/plain":    s.plain,
		"/other":    s.otherGoroutine,
		"/stranger": s.stranger,
		"/redirect": func(ctx context.Context) error { return get(ctx, http.DefaultClient, s.url+"/hop?n=2") },
		"/missing":  func(ctx context.Context) error { return get(ctx, http.DefaultClient, s.url+"/nothing") },
		"/secret":   s.secret,
		"/refused":  func(ctx context.Context) error { return get(ctx, http.DefaultClient, closedPort()+"/a?b=c") },
		"/unknown":  func(ctx context.Context) error { return get(ctx, http.DefaultClient, "http://no.such.host.invalid/") },
		"/timeout":  s.timeout,
		"/late":     s.lateHeaders,
		"/cancel":   s.cancel,
		"/noscheme": func(ctx context.Context) error { return get(ctx, http.DefaultClient, "gopher://127.0.0.1/") },
		"/untrusted": func(ctx context.Context) error {
			return get(ctx, http.DefaultClient, s.secure[0].url)
		},
		"/https": func(ctx context.Context) error {
			return get(ctx, s.secure[0].client, s.secure[0].url+"/answer"+number(ctx))
		},
		"/http2": func(ctx context.Context) error {
			return get(ctx, s.secure[1].client, s.secure[1].url+"/answer"+number(ctx))
		},
		"/http2-upload": func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.secure[1].url+"/answer"+number(ctx), strings.NewReader("text"))
			if err != nil {
				return err
			}
			return do(s.secure[1].client, req)
		},
		"/http2-cancel": func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			return get(ctx, s.secure[1].client, s.secure[1].url+"/slow"+number(ctx))
		},
		"/h2c": func(ctx context.Context) error { return get(ctx, h2c.client, h2c.url+"/answer"+number(ctx)) },
		"/two": s.two,
		"/to": func(ctx context.Context) error {
			return get(ctx, http.DefaultClient, ctx.Value(key{}).(url.Values).Get("url"))
		},
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, call(context.WithValue(r.Context(), key{}, r.URL.Query())))
		})
	}
	fmt.Printf("client listens on %s\n", s.url)
	log.Fatal((&http.Server{Handler: mux, ReadHeaderTimeout: time.Second}).Serve(ln))
}

// key is that of a request's query in its context.
type key struct{}

// number is "?i=", and the number of the request that a call is made for.
func number(ctx context.Context) string {
	if query, ok := ctx.Value(key{}).(url.Values); ok && query.Has("i") {
		return "?i=" + query.Get("i")
	}
	return ""
}

type service struct {
	url    string
	secure []target
}

type target struct {
	url    string
	client *http.Client
}

func answer(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "answer") }

func slow(w http.ResponseWriter, r *http.Request) { time.Sleep(300 * time.Millisecond) }

// hop redirects n times.
func hop(w http.ResponseWriter, r *http.Request) {
	switch r.FormValue("n") {
	case "2":
		http.Redirect(w, r, "/hop?n=1", http.StatusFound)
	case "1":
		http.Redirect(w, r, "/answer", http.StatusFound)
	}
}

func get(ctx context.Context, client *http.Client, target string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	return do(client, req)
}

func do(client *http.Client, req *http.Request) error {
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

func (s *service) plain(ctx context.Context) error {
	return get(ctx, http.DefaultClient, s.url+"/answer"+number(ctx))
}

// otherGoroutine calls on a goroutine of its own, with the request's context.
func (s *service) otherGoroutine(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var done sync.WaitGroup
	done.Add(1)
	go func() {
		defer done.Done()
		err = s.plain(ctx)
	}()
	done.Wait()
	return err
}

// stranger does the same without the context.
func (s *service) stranger(context.Context) error {
	return s.otherGoroutine(context.Background())
}

func (s *service) secret(ctx context.Context) error {
	return get(ctx, http.DefaultClient, "http://maria:geheim@"+s.url[len("http://"):]+"/answer?sig=geheim&a=b%20c")
}

// closedPort is where nobody listens.
func closedPort() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	return "http://" + ln.Addr().String()
}

func (s *service) timeout(ctx context.Context) error {
	return get(ctx, &http.Client{Timeout: 50 * time.Millisecond}, s.url+"/slow")
}

func (s *service) lateHeaders(ctx context.Context) error {
	transport := &http.Transport{ResponseHeaderTimeout: 50 * time.Millisecond}
	defer transport.CloseIdleConnections()
	return get(ctx, &http.Client{Transport: transport}, s.url+"/slow")
}

func (s *service) cancel(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	time.AfterFunc(50*time.Millisecond, cancel)
	return get(ctx, http.DefaultClient, s.url+"/slow")
}

// two calls at once, over TLS, as a client does that skips certificates.
func (s *service) two(ctx context.Context) error {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	target, err := url.Parse(s.secure[0].url + "/answer")
	if err != nil {
		return err
	}
	errs := make(chan error, 2)
	for range 2 {
		go func() {
			errs <- do(&http.Client{Transport: transport}, (&http.Request{Method: "PURGE", URL: target}).WithContext(ctx))
		}()
	}
	if err := <-errs; err != nil {
		return err
	}
	return <-errs
}

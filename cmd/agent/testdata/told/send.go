package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type sender struct {
	host  string
	ports map[string]string // of the receiver, by name
	calls map[string]func(ctx context.Context, i int) error
}

func send(args []string) {
	flags := flag.NewFlagSet("send", flag.ExitOnError)
	host := flags.String("host", "127.0.0.1", "where the receiver is")
	ports := flags.String("ports", "", "its ports: plain,tls,grpc,proxy")
	_ = flags.Parse(args)
	s := &sender{host: *host, ports: map[string]string{}}
	for i, port := range strings.Split(*ports, ",") {
		s.ports[[]string{"plain", "tls", "grpc", "proxy"}[i]] = port
	}
	insecureTLS := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // of a test
	plain := &http.Client{Transport: &http.Transport{}}
	secure := &http.Client{Transport: &http.Transport{TLSClientConfig: insecureTLS.Clone()}}
	two := &http.Client{Transport: &http.Transport{TLSClientConfig: insecureTLS.Clone(), ForceAttemptHTTP2: true}}
	proxied := &http.Client{Transport: &http.Transport{
		TLSClientConfig: insecureTLS.Clone(), ForceAttemptHTTP2: true,
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: "127.0.0.1:" + s.ports["proxy"]}),
	}}
	unencrypted := new(http.Protocols)
	unencrypted.SetUnencryptedHTTP2(true)
	h2c := &http.Client{Transport: &http.Transport{Protocols: unencrypted}}
	configured := &http.Transport{TLSClientConfig: insecureTLS.Clone()}
	if err := http2.ConfigureTransport(configured); err != nil {
		log.Fatal(err)
	}
	conn, err := grpc.NewClient(net.JoinHostPort(s.host, s.ports["grpc"]), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	s.calls = map[string]func(context.Context, int) error{
		"plain":   s.http(plain, "http", "plain", "HTTP/1.1"),
		"tls":     s.http(secure, "https", "tls", "HTTP/1.1"),
		"http2":   s.http(two, "https", "tls", "HTTP/2.0"),
		"h2c":     s.http(h2c, "http", "plain", "HTTP/2.0"),
		"x":       s.http(&http.Client{Transport: configured}, "https", "tls", "HTTP/2.0"),
		"proxied": s.http(proxied, "https", "tls", "HTTP/2.0"),
		"unary":   func(ctx context.Context, i int) error { return unary(metadataOf(ctx, i), conn, i) },
		"stream":  func(ctx context.Context, i int) error { return stream(metadataOf(ctx, i), conn, i) },
	}
	log.Fatal(http.Serve(listen("sender"), http.HandlerFunc(s.run)))
}

// run makes calls "from" up to, without, "to", by as many "workers", of one "kind", and
// "within" the request that asks for them or each by itself; it answers with what went
// wrong.
func (s *sender) run(w http.ResponseWriter, r *http.Request) {
	number := func(name string) int {
		n, _ := strconv.Atoi(r.FormValue(name))
		return n
	}
	call := s.calls[r.FormValue("kind")]
	if call == nil {
		http.Error(w, "no such kind", http.StatusBadRequest)
		return
	}
	parent := context.Background()
	if r.FormValue("within") != "" {
		parent = r.Context()
	}
	calls := make(chan int)
	var working sync.WaitGroup
	var mu sync.Mutex
	for range max(number("workers"), 1) {
		working.Go(func() {
			for i := range calls {
				ctx, cancel := context.WithTimeout(parent, time.Minute)
				err := call(ctx, i)
				cancel()
				if err != nil {
					mu.Lock()
					fmt.Fprintf(w, "call %d: %v\n", i, err)
					mu.Unlock()
				}
			}
		})
	}
	for i := number("from"); i < number("to"); i++ {
		calls <- i
	}
	close(calls)
	working.Wait()
}

// Every tenth call has set a traceparent itself, one way or the other.
func hasOwn(i int) bool { return i%10 == 7 }

// http makes calls with bodies and headers of different sizes.
func (s *sender) http(client *http.Client, scheme, port, proto string) func(context.Context, int) error {
	return func(ctx context.Context, i int) error {
		body := bytes.Repeat([]byte("x"), i%5*1000)
		target := fmt.Sprintf("%s://%s/call?i=%d", scheme, net.JoinHostPort(s.host, s.ports[port]), i)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
		if err != nil {
			return err
		}
		mine := strings.Repeat("y", i%7*20)
		if i%10 == 9 {
			mine = strings.Repeat("y", 20_000) // more than a frame, more than a buffer
		}
		req.Header.Set("X-Mine", mine)
		if hasOwn(i) {
			req.Header.Set("Traceparent", own(i))
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		got, err := io.ReadAll(res.Body)
		if err != nil {
			return err
		}
		h := sha256.New()
		h.Write(body)
		fmt.Fprintf(h, "%d", len(mine))
		if want := fmt.Sprintf("%x", h.Sum(nil)); string(got) != want || res.Proto != proto {
			return fmt.Errorf("status %d by %s: what has arrived is not what was sent", res.StatusCode, res.Proto)
		}
		return nil
	}
}

func metadataOf(ctx context.Context, i int) context.Context {
	number := strconv.Itoa(i)
	switch {
	case hasOwn(i) && i%20 == 7:
		return metadata.NewOutgoingContext(ctx, metadata.Pairs("x-number", number, "traceparent", own(i)))
	case hasOwn(i):
		return metadata.AppendToOutgoingContext(ctx, "x-number", number, "traceparent", own(i))
	}
	return metadata.AppendToOutgoingContext(ctx, "x-number", number)
}

func unary(ctx context.Context, conn *grpc.ClientConn, i int) error {
	text, got := wrapperspb.String(strings.Repeat("z", i%5*100)), new(wrapperspb.StringValue)
	if err := conn.Invoke(ctx, "/told.Service/Unary", text, got); err != nil {
		return err
	}
	if got.Value != text.Value {
		return errors.New("the echo is another")
	}
	return nil
}

func stream(ctx context.Context, conn *grpc.ClientConn, i int) error {
	both, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/told.Service/Stream")
	if err != nil {
		return err
	}
	for n := range 2 {
		text, got := wrapperspb.String(fmt.Sprint(i, n)), new(wrapperspb.StringValue)
		if err := both.SendMsg(text); err != nil {
			return err
		}
		if err := both.RecvMsg(got); err != nil {
			return err
		}
		if got.Value != text.Value {
			return errors.New("the echo is another")
		}
	}
	if err := both.CloseSend(); err != nil {
		return err
	}
	if err := both.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF {
		return fmt.Errorf("the end of the stream: %w", err)
	}
	return nil
}

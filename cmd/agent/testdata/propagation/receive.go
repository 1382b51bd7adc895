package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// added is what the agent puts into a request. Headers of net/http's own begin with a
// capital letter.
var added = regexp.MustCompile(`(?m)^traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]\r\n`)

// tap keeps what arrives on each connection, by the address of the client: one after the
// other may have the same.
type tap struct {
	net.Listener
	mu      sync.Mutex
	streams map[string][]*stream
}

type stream struct {
	mu  sync.Mutex
	got bytes.Buffer
}

type tapped struct {
	net.Conn
	s *stream
}

func (t *tap) Accept() (net.Conn, error) {
	c, err := t.Listener.Accept()
	if err != nil {
		return nil, err
	}
	s := &stream{}
	t.mu.Lock()
	client := c.RemoteAddr().String()
	t.streams[client] = append(t.streams[client], s)
	t.mu.Unlock()
	return tapped{c, s}, nil
}

func (c tapped) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.s.mu.Lock()
	c.s.got.Write(b[:n])
	c.s.mu.Unlock()
	return n, err
}

// CloseWrite is what net/http asks of a connection that it closes.
func (c tapped) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// sum is length and hash of what a client has sent on its first, second, ... connection,
// without what was added to it.
func (t *tap) sum(client string, nth int) string {
	t.mu.Lock()
	streams := t.streams[client]
	t.mu.Unlock()
	if nth >= len(streams) {
		return "nothing"
	}
	s := streams[nth]
	s.mu.Lock()
	defer s.mu.Unlock()
	h := sha256.New()
	got := added.ReplaceAll(s.got.Bytes(), nil)
	h.Write(got)
	return sumOf(len(got), h)
}

func sumOf(n int, h hash.Hash) string { return fmt.Sprintf("%d %x", n, h.Sum(nil)) }

// printer writes lines of several goroutines.
type printer struct {
	mu  sync.Mutex
	out *bufio.Writer
}

func (p *printer) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, format+"\n", args...)
	p.out.Flush()
}

// newReceiver answers each request with the hash of its body, and prints "request", its
// number, and all values of traceparent.
func newReceiver(t *tap) http.Handler {
	out := &printer{out: bufio.NewWriter(os.Stdout)}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		out.line("request %s %s", r.FormValue("i"), strings.Join(r.Header.Values("Traceparent"), ","))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if r.Header.Get("Upgrade") == "echo" {
			echo(w)
			return
		}
		w.Header().Set("X-Sum", sumOf(int(n), h))
	})
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		nth, _ := strconv.Atoi(r.FormValue("nth"))
		fmt.Fprint(w, t.sum(r.FormValue("client"), nth))
	})
	return mux
}

// echo takes the connection over and sends back what comes.
func echo(w http.ResponseWriter) {
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close()
	fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	_, _ = io.Copy(c, buffered)
}

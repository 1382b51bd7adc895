package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kinds of calls, by the number of the call.
const (
	kindGet = iota
	kindFresh
	kindPost
	kindLarge
	kindChunked
	kindExpect
	kindHead
	kindOwn
	kindFile
	kindManyHeaders
	kindLongPath
	kindUpgrade
	kindMethod
	kinds
)

// sender makes calls, by a transport whose connections are recorded, and one whose are not:
// only that one sends files by sendfile.
type sender struct {
	url             string
	recorded, plain *http.Client
	file            string

	mu    sync.Mutex
	conns []*recording
}

// recording is a connection that keeps a hash of what it was given.
type recording struct {
	net.Conn
	mu  sync.Mutex
	n   int
	sum hash.Hash
}

func (c *recording) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.mu.Lock()
	c.n += n
	c.sum.Write(b[:n])
	c.mu.Unlock()
	return n, err
}

// body is what call i sends, if it sends anything.
func body(i, size int) []byte {
	line := fmt.Sprintf("%d GET / HTTP/1.1\r\nHost: none\r\n", i)
	return bytes.Repeat([]byte(line), size/len(line)+1)[:size]
}

const fileSize = 200_000

func newSender(url, dial string) http.Handler {
	s := &sender{url: url}
	file, err := os.CreateTemp("", "propagation")
	if err == nil {
		_, err = file.Write(body(0, fileSize))
		s.file = file.Name()
		file.Close()
	}
	if err != nil {
		panic(err)
	}
	dialer := &net.Dialer{}
	s.plain = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	s.recorded = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64, ExpectContinueTimeout: time.Second,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if dial != "" {
				address = dial
			}
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			r := &recording{Conn: c, sum: sha256.New()}
			s.mu.Lock()
			s.conns = append(s.conns, r)
			s.mu.Unlock()
			return r, nil
		},
	}}
	mux := http.NewServeMux()
	mux.HandleFunc("/run", s.run)
	mux.HandleFunc("/sums", s.sums)
	return mux
}

// run makes calls "from" up to, without, "to", by as many "workers", of one "kind" or of
// all; it answers with what went wrong.
func (s *sender) run(w http.ResponseWriter, r *http.Request) {
	number := func(name string, otherwise int) int {
		n, err := strconv.Atoi(r.FormValue(name))
		if err != nil {
			return otherwise
		}
		return n
	}
	calls := make(chan int)
	var working sync.WaitGroup
	var mu sync.Mutex
	for range number("workers", 1) {
		working.Add(1)
		go func() {
			defer working.Done()
			for i := range calls {
				if err := s.call(i, number("kind", i%kinds)); err != nil {
					mu.Lock()
					fmt.Fprintf(w, "call %d: %v\n", i, err)
					mu.Unlock()
				}
			}
		}()
	}
	for i := number("from", 0); i < number("to", 0); i++ {
		calls <- i
	}
	close(calls)
	working.Wait()
}

// sums compares what was sent on each connection with what has arrived, once nothing is
// sent any more.
func (s *sender) sums(w http.ResponseWriter, _ *http.Request) {
	s.recorded.CloseIdleConnections()
	s.mu.Lock()
	defer s.mu.Unlock()
	before := map[string]int{}
	for _, c := range s.conns {
		client := c.LocalAddr().String()
		c.mu.Lock()
		sent := sumOf(c.n, c.sum)
		c.mu.Unlock()
		res, err := s.plain.Get(fmt.Sprintf("%s/sum?client=%s&nth=%d", s.url, client, before[client]))
		before[client]++
		if err != nil {
			fmt.Fprintln(w, err)
			continue
		}
		got, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(got) != sent {
			fmt.Fprintf(w, "%s has sent %s, %s has arrived\n", client, sent, got)
		}
	}
	fmt.Fprintf(w, "%d connections\n", len(s.conns))
}

func (s *sender) call(i, kind int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var content []byte
	method, client := http.MethodGet, s.recorded
	path := fmt.Sprintf("/call?i=%d", i)
	switch kind {
	case kindPost, kindExpect:
		method, content = http.MethodPost, body(i, 1000)
	case kindLarge, kindChunked:
		method, content = http.MethodPost, body(i, 300_000)
	case kindFile:
		method, content, client = http.MethodPut, body(0, fileSize), s.plain
	case kindHead:
		method = http.MethodHead
	case kindMethod:
		method = "PROPFIND"
	case kindLongPath:
		path += "&path=" + strings.Repeat("x", 3000)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	switch kind {
	case kindFresh:
		req.Close = true
	case kindChunked:
		req.ContentLength, req.Body = -1, io.NopCloser(slow(content))
	case kindExpect:
		req.Header.Set("Expect", "100-continue")
	case kindOwn:
		req.Header.Set("Traceparent", Own(i))
	case kindFile:
		file, err := os.Open(s.file)
		if err != nil {
			return err
		}
		req.Body = file
	case kindManyHeaders:
		for n := range 20 {
			req.Header.Set(fmt.Sprintf("X-Header-%d", n), strings.Repeat("y", 400))
		}
	case kindUpgrade:
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if kind == kindUpgrade {
		return talk(res)
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	h := sha256.New()
	h.Write(content)
	if got, want := res.Header.Get("X-Sum"), sumOf(len(content), h); got != want {
		return fmt.Errorf("status %d: the body that has arrived is %s, want %s", res.StatusCode, got, want)
	}
	return nil
}

// Own is the traceparent that a call has set itself.
func Own(i int) string { return fmt.Sprintf("00-%032x-%016x-01", i+1, i+1) }

// slow hands a content out in pieces, with a pause after the first.
func slow(content []byte) io.Reader {
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(content[:1])
		time.Sleep(time.Millisecond)
		_, _ = w.Write(content[1:1000])
		_, _ = w.Write(content[1000:])
		w.Close()
	}()
	return r
}

// talk says something on a connection that is no longer HTTP: it must come back as it was.
func talk(res *http.Response) error {
	c, ok := res.Body.(io.ReadWriteCloser)
	if !ok || res.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("no upgrade: status %d", res.StatusCode)
	}
	said := []byte("GET / HTTP/1.1\r\nHost: none\r\n\r\n")
	if _, err := c.Write(said); err != nil {
		return err
	}
	heard := make([]byte, len(said))
	if _, err := io.ReadFull(c, heard); err != nil {
		return err
	}
	if !bytes.Equal(said, heard) {
		return errors.New("the echo is another")
	}
	return nil
}

package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"google.golang.org/protobuf/encoding/protowire"
)

// Bounds of what the sink holds between two counts: at 10 MB/s of compressed
// spans for a minute, 600 MB.
const (
	maxRequest = 16 << 20
	maxHeld    = 1 << 30
)

// sink is the agent's endpoint. While a measurement runs it only puts the
// requests aside, for it shares a core with the agent.
type sink struct {
	url string
	srv *http.Server

	mu     sync.Mutex
	bodies [][]byte // compressed trace requests since the last count
	held   int
	bytes  int64 // of all signals, since the last count
	last   time.Time
	first  chan struct{} // closed by the first trace request after expect
}

func startSink() (*sink, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start sink: %w", err)
	}
	s := &sink{url: "http://" + ln.Addr().String(), first: make(chan struct{})}
	s.srv = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.srv.Serve(ln) }() // ends with close
	return s, nil
}

func (s *sink) close() { _ = s.srv.Close() }

// ServeHTTP implements [http.Handler]: an empty answer is a full success.
func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = time.Now()
	s.bytes += int64(len(body))
	if r.URL.Path == "/v1/traces" {
		if s.held += len(body); s.held > maxHeld {
			http.Error(w, "sink is full", http.StatusServiceUnavailable)
			return
		}
		s.bodies = append(s.bodies, body)
		select {
		case <-s.first:
		default:
			close(s.first)
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// expect returns a channel that the next trace request closes.
func (s *sink) expect() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first = make(chan struct{})
	return s.first
}

// settle waits until nothing has come for a while, for 10 s at most.
func (s *sink) settle(quiet time.Duration) {
	begin := time.Now()
	for time.Since(begin) < 10*time.Second {
		s.mu.Lock()
		last := s.last
		s.mu.Unlock()
		if last.Before(begin) {
			last = begin
		}
		if time.Since(last) >= quiet {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// received is what came since the last count.
type received struct {
	server, client int // spans by kind
	bytes          int64
}

func (r received) spans() int { return r.server + r.client }

// count unpacks what was put aside and forgets it.
func (s *sink) count() (received, error) {
	s.mu.Lock()
	bodies, got := s.bodies, received{bytes: s.bytes}
	s.bodies, s.held, s.bytes = nil, 0, 0
	s.mu.Unlock()
	for _, body := range bodies {
		data, err := unpack(body)
		if err == nil {
			err = countSpans(data, &got)
		}
		if err != nil {
			return got, fmt.Errorf("count spans: %w", err)
		}
	}
	return got, nil
}

// unpack decompresses a body that is gzip, by its first bytes.
func unpack(body []byte) ([]byte, error) {
	if !bytes.HasPrefix(body, []byte{0x1f, 0x8b}) {
		return body, nil
	}
	zr, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(zr, 64*maxRequest))
}

// Field numbers of OTLP's trace messages, from the request down to a span's
// kind, and the kinds that the agent makes.
const (
	resourceSpansField, scopeSpansField, spansField, kindField = 1, 2, 2, 6

	kindServer, kindClient = 2, 3
)

// countSpans walks an ExportTraceServiceRequest without building it.
func countSpans(req []byte, got *received) error {
	return each(req, resourceSpansField, func(rs []byte) error {
		return each(rs, scopeSpansField, func(ss []byte) error {
			return each(ss, spansField, func(span []byte) error {
				kind, err := varint(span, kindField)
				switch kind {
				case kindServer:
					got.server++
				case kindClient:
					got.client++
				}
				return err
			})
		})
	})
}

// each calls f for every field of that number, which holds a message.
func each(msg []byte, field protowire.Number, f func([]byte) error) error {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return protowire.ParseError(n)
		}
		size := protowire.ConsumeFieldValue(num, typ, msg[n:])
		if size < 0 {
			return protowire.ParseError(size)
		}
		if num == field && typ == protowire.BytesType {
			inner, _ := protowire.ConsumeBytes(msg[n:])
			if err := f(inner); err != nil {
				return err
			}
		}
		msg = msg[n+size:]
	}
	return nil
}

// varint returns the value of the first field of that number, 0 if there is none.
func varint(msg []byte, field protowire.Number) (uint64, error) {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		size := protowire.ConsumeFieldValue(num, typ, msg[n:])
		if size < 0 {
			return 0, protowire.ParseError(size)
		}
		if num == field && typ == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(msg[n:])
			return v, nil
		}
		msg = msg[n+size:]
	}
	return 0, nil
}

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// pacer loads a shop steadily: at every interval one request on each of its connections.
// Whatever a request costs, the shop gets them in the same portions. At full speed it does
// not: what holds up wrk, on the agent's core, leaves the shop with fewer at a time, and
// each costs more.
type pacer struct {
	interval time.Duration
	conns    []net.Conn
	answers  []*bufio.Reader
}

func newPacer(ctx context.Context, url string, conns int, interval time.Duration) (*pacer, error) {
	p := &pacer{interval: interval}
	var d net.Dialer
	for range conns {
		c, err := d.DialContext(ctx, "tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			p.close()
			return nil, fmt.Errorf("connect to shop: %w", err)
		}
		p.conns = append(p.conns, c)
		p.answers = append(p.answers, bufio.NewReader(c))
	}
	return p, nil
}

func (p *pacer) close() {
	for _, c := range p.conns {
		c.Close()
	}
}

// run asks for a path for so long and returns the number of answers.
func (p *pacer) run(ctx context.Context, path string, d time.Duration) (requests int, err error) {
	request := []byte("GET " + path + " HTTP/1.1\r\nHost: shop\r\n\r\n")
	next := time.Now()
	for end := next.Add(d); time.Now().Before(end) && ctx.Err() == nil; {
		for _, c := range p.conns {
			if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				return requests, err
			}
			if _, err := c.Write(request); err != nil {
				return requests, fmt.Errorf("ask for %s: %w", path, err)
			}
		}
		for _, r := range p.answers {
			if err := readAnswer(r); err != nil {
				return requests, fmt.Errorf("answer to %s: %w", path, err)
			}
			requests++
		}
		// A portion that comes late delays the others: they do not pile up.
		next = next.Add(p.interval)
		if now := time.Now(); next.Before(now) {
			next = now
		}
		time.Sleep(time.Until(next))
	}
	return requests, ctx.Err()
}

func readAnswer(r *bufio.Reader) error {
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return nil
}

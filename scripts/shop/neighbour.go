package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// neighbour is whom /client calls: a server as small as can be, that speaks as much HTTP as
// its one client needs. It is none of net/http, so what an agent adds is for the call alone.
type neighbour struct {
	url    string
	client *http.Client
}

func startNeighbour() (*neighbour, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the shop's own calls: %w", err)
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go answerAll(conn)
		}
	}()
	return &neighbour{
		url:    "http://" + ln.Addr().String() + "/price",
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}},
	}, nil
}

// answerAll answers each request of a connection, none of which has a body.
func answerAll(conn net.Conn) {
	defer conn.Close()
	for r := bufio.NewReader(conn); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if strings.TrimSpace(line) != "" {
			continue
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n42\n"); err != nil {
			return
		}
	}
}

// call asks the neighbour and passes its answer on.
func (n *neighbour) call(w http.ResponseWriter, r *http.Request) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, n.url, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	res, err := n.client.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer res.Body.Close()
	_, _ = io.Copy(w, res.Body) // the client has gone
}

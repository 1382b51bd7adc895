// streams serves requests that last: event streams, WebSockets of two libraries, a long
// poll, and a handler that hangs. The parameter for says how long. With -flood it is its
// own client, over connections in memory, and opens so many event streams, a wave at a time.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
)

func main() {
	flood := flag.Int("flood", 0, "how many event streams to open")
	wave := flag.Int("wave", 4000, "how many at once")
	hold := flag.Duration("hold", 4*time.Second, "for how long to hold one of them, or to talk")
	socket := flag.String("talk", "", "be a client instead, and exchange messages with this WebSocket")
	flag.Parse()
	if *socket != "" {
		if err := talk(*socket, *hold); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", events)
	mux.HandleFunc("GET /gorilla", gorillaSocket)
	mux.HandleFunc("GET /coder", coderSocket)
	mux.HandleFunc("GET /poll", func(w http.ResponseWriter, r *http.Request) { wait(r); w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /hang", func(_ http.ResponseWriter, r *http.Request) { <-make(chan int) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("streams listens on http://%s\n", ln.Addr())
	if *flood > 0 {
		pipes := pipeListener(make(chan net.Conn))
		go http.Serve(pipes, mux)
		bufio.NewReader(os.Stdin).ReadString('\n') // when the agent is ready
		for opened := 0; opened < *flood; opened += *wave {
			pipes.wave(min(*wave, *flood-opened), *hold)
			fmt.Printf("opened %d\n", opened+*wave)
		}
		fmt.Println("flooded")
	}
	http.Serve(ln, mux)
}

func wait(r *http.Request) {
	d, _ := time.ParseDuration(r.URL.Query().Get("for"))
	select {
	case <-time.After(d):
	case <-r.Context().Done():
	}
}

func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, "data: first\n\n")
	http.NewResponseController(w).Flush()
	wait(r)
}

func gorillaSocket(w http.ResponseWriter, r *http.Request) {
	var up gorilla.Upgrader
	c, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	for {
		kind, b, err := c.ReadMessage()
		if err != nil {
			return
		}
		c.WriteMessage(kind, b)
	}
}

func coderSocket(w http.ResponseWriter, r *http.Request) {
	c, err := coder.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	for {
		kind, b, err := c.Read(context.Background())
		if err != nil {
			return
		}
		c.Write(context.Background(), kind, b)
	}
}

func talk(url string, d time.Duration) error {
	ctx := context.Background()
	c, _, err := coder.Dial(ctx, url, nil)
	if err != nil {
		return err
	}
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err := c.Write(ctx, coder.MessageText, []byte("hello")); err != nil {
			return err
		}
		if _, _, err := c.Read(ctx); err != nil {
			return err
		}
	}
	return c.Close(coder.StatusNormalClosure, "")
}

// pipeListener takes connections in memory: there are not files enough for real ones.
type pipeListener chan net.Conn

func (l pipeListener) Accept() (net.Conn, error) { return <-l, nil }
func (l pipeListener) Close() error              { return nil }
func (l pipeListener) Addr() net.Addr            { return &net.TCPAddr{} }

func (l pipeListener) wave(n int, hold time.Duration) {
	var all sync.WaitGroup
	for range n {
		all.Add(1)
		go func() {
			defer all.Done()
			client, server := net.Pipe()
			l <- server
			fmt.Fprintf(client, "GET /events?for=%s HTTP/1.1\r\nHost: pipe\r\nConnection: close\r\n\r\n", hold)
			io.Copy(io.Discard, client)
		}()
	}
	all.Wait()
}
